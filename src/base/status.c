/* status.c - the thread's last error sentence.
 *
 * The text is thread-local because `open` has no handle to keep it in and because a language
 * binding wants exactly one place to read. Worker threads hand code and text to the joiner. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

static _Thread_local char last_error[1024];

heddle_status hdl_fail(heddle_status code, const char *fmt, ...)
{
    /* formatted aside first: an argument may be the previous sentence itself */
    char text[sizeof last_error];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(last_error, sizeof last_error, "%s", text);
    return code;
}

heddle_status hdl_given(const char *function, const char *names, const void *const *pointers, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        size_t length = strcspn(names, ",");
        if (!pointers[i])
            return HDL_FAIL(HEDDLE_E_INVALID, "%s: %.*s: must not be NULL", function, (int)length, names);
        names += length + strspn(names + length, ", ");
    }
    return HEDDLE_OK;
}

const char *hdl_last_error(void)
{
    return last_error;
}

void hdl_clear_error(void)
{
    last_error[0] = 0;
}

const char *hdl_status_name(heddle_status status)
{
    static const char *const names[] = {"ok",       "invalid", "nomem", "io",        "format",  "unsupported",
                                        "capacity", "device",  "busy",  "cancelled", "internal"};
    int i = -(int)status;
    return i >= 0 && i < HDL_COUNT(names) ? names[i] : "unknown status";
}
