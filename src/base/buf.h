/* buf.h - a growable byte string. Zero-initialise it; `data` is always NUL-terminated once
 * anything was added. A failed growth sets `is_failed` and later calls do nothing, so that a
 * long run of appends needs one check at its end. */
#ifndef HDL_BUF_H
#define HDL_BUF_H

#include "base/base.h"

typedef struct hdl_buf {
    char *data; /* owned; NULL while empty */
    int64_t n;  /* bytes, the terminator not counted */
    int64_t capacity;
    bool is_failed;
} hdl_buf;

void hdl_buf_add(hdl_buf *buf, const void *bytes, int64_t n);
void hdl_buf_puts(hdl_buf *buf, const char *text);
void hdl_buf_printf(hdl_buf *buf, const char *fmt, ...) HDL_PRINTF(2, 3);
heddle_status hdl_buf_status(const hdl_buf *buf); /* HEDDLE_OK, or NOMEM with its sentence */
void hdl_buf_deinit(hdl_buf *buf);
/* Reads a whole file; path "-" is standard input. More than max_bytes is refused. Regular
 * files and pipes only. */
heddle_status hdl_buf_read_file(hdl_buf *buf, const char *path, int64_t max_bytes);

#endif
