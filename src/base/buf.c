#include "base/buf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"

static bool reserve(hdl_buf *buf, int64_t more)
{
    if (buf->is_failed) return false;
    if (buf->n + more + 1 <= buf->capacity) return true;
    int64_t capacity = HDL_MAX(buf->capacity * 2, buf->n + more + 64);
    char *grown = hdl_realloc(buf->data, buf->n, capacity, 1);
    if (!grown) {
        buf->is_failed = true;
        return false;
    }
    buf->data = grown;
    buf->capacity = capacity;
    return true;
}

void hdl_buf_add(hdl_buf *buf, const void *bytes, int64_t n)
{
    if (!reserve(buf, n)) return;
    if (n) memcpy(buf->data + buf->n, bytes, (size_t)n);
    buf->n += n;
    buf->data[buf->n] = 0;
}

void hdl_buf_puts(hdl_buf *buf, const char *text)
{
    hdl_buf_add(buf, text, (int64_t)strlen(text));
}

void hdl_buf_printf(hdl_buf *buf, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n >= 0 && reserve(buf, n)) {
        vsnprintf(buf->data + buf->n, (size_t)n + 1, fmt, again);
        buf->n += n;
    }
    va_end(again);
    va_end(ap);
}

heddle_status hdl_buf_status(const hdl_buf *buf)
{
    return buf->is_failed
               ? HDL_FAIL(HEDDLE_E_NOMEM, "out of memory after %lld bytes of text", (long long)buf->n)
               : HEDDLE_OK;
}

void hdl_buf_deinit(hdl_buf *buf)
{
    hdl_free(buf->data);
    *buf = (hdl_buf){0};
}

heddle_status hdl_buf_read_file(hdl_buf *buf, const char *path, int64_t max_bytes)
{
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    if (!file) return HDL_FAIL(HEDDLE_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    heddle_status status = HEDDLE_OK;
    struct stat st;
    if (fstat(fileno(file), &st) == 0 && S_ISDIR(st.st_mode)) {
        status = HDL_FAIL(HEDDLE_E_IO, "%s: is a folder, not a file", path);
        goto done;
    }
    char piece[65536];
    for (size_t got; (got = fread(piece, 1, sizeof piece, file)) > 0;) {
        if (buf->n + (int64_t)got > max_bytes) {
            status = HDL_FAIL(HEDDLE_E_CAPACITY, "%s: is larger than the limit of %lld bytes", path,
                              (long long)max_bytes);
            goto done;
        }
        hdl_buf_add(buf, piece, (int64_t)got);
    }
    if (ferror(file)) status = HDL_FAIL(HEDDLE_E_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (!status) status = hdl_buf_status(buf);
done:
    if (!is_stdin) fclose(file);
    return status;
}
