/* stop.h - stop strings in a stream of decoded bytes.
 *
 * The stream is cut where the first stop string ends, whatever sizes the bytes come in; that
 * string and what follows are dropped. Bytes that may yet turn out to be the beginning of a stop
 * string, and a UTF-8 sequence that is not complete, are held back until they cannot. */
#ifndef HDL_STOP_H
#define HDL_STOP_H

#include "base/buf.h"

typedef struct hdl_stop hdl_stop;

enum { HDL_MAX_STOPS = 64, HDL_MAX_STOP_BYTES = 1024 };

/* strings [n_strings], NUL-terminated, copied, not empty; n_strings 0 is fine: then only broken
 * UTF-8 is held back. */
heddle_status hdl_stop_new(hdl_stop **out, const char *const *strings, int64_t n_strings);
void hdl_stop_free(hdl_stop *stop); /* NULL is fine */
void hdl_stop_reset(hdl_stop *stop);
/* Appends to `out` what may be shown; true once a stop string was met (then nothing more comes). */
bool hdl_stop_feed(hdl_stop *stop, const char *bytes, int64_t n, hdl_buf *out);
/* The stream ended: appends what was held back, as it is. */
void hdl_stop_flush(hdl_stop *stop, hdl_buf *out);

#endif
