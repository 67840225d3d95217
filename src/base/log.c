#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/env.h"

static hdl_log_fn sink;
static void *sink_user;

void hdl_set_log(hdl_log_fn fn, void *user)
{
    sink = fn;
    sink_user = user;
}

void hdl_log(int level, const char *fmt, ...)
{
    if (!sink || level > hdl_env()->log_level) return;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sink(level, text, sink_user);
}
