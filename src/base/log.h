/* log.h - a levelled log with one sink; nothing below the engine writes to stderr itself. */
#ifndef HDL_LOG_H
#define HDL_LOG_H

#include "base/base.h"

enum { HDL_LOG_ERROR = 0, HDL_LOG_WARN = 1, HDL_LOG_INFO = 2, HDL_LOG_DEBUG = 3 };

typedef void (*hdl_log_fn)(int level, const char *text, void *user);
void hdl_set_log(hdl_log_fn fn, void *user); /* NULL = silence, the default */
void hdl_log(int level, const char *fmt, ...) HDL_PRINTF(2, 3);

#endif
