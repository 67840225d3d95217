/* gguf.h - reader of GGUF v2/v3 files, mapped and checked whole before anything is used.
 *
 * Every offset, count and length of the file is checked against the mapping when it is opened,
 * so the getters below cannot run outside it. Source: the GGUF specification. */
#ifndef HDL_GGUF_H
#define HDL_GGUF_H

#include "tensor/tensor.h"

typedef struct hdl_gguf hdl_gguf;

typedef struct hdl_text { /* borrowed bytes, not NUL-terminated */
    const char *data;
    int64_t n;
} hdl_text;

heddle_status hdl_gguf_open(hdl_gguf **out, const char *path);
void hdl_gguf_close(hdl_gguf *gguf); /* NULL is fine */

/* Metadata. A missing key returns false; a key of another type too, with the thread's sentence
 * set (integers and booleans of every width convert to int64, both floats to double). */
bool hdl_gguf_int(const hdl_gguf *gguf, const char *key, int64_t *out);
bool hdl_gguf_num(const hdl_gguf *gguf, const char *key, double *out);
bool hdl_gguf_str(const hdl_gguf *gguf, const char *key, hdl_text *out);
/* Arrays: number of elements, or -1 when absent. Elements by index, checked. */
int64_t hdl_gguf_array_n(const hdl_gguf *gguf, const char *key);
bool hdl_gguf_array_int(const hdl_gguf *gguf, const char *key, int64_t i, int64_t *out);
bool hdl_gguf_array_num(const hdl_gguf *gguf, const char *key, int64_t i, double *out);
/* Walks a string array in order in O(n): call with *cursor = 0 first. */
bool hdl_gguf_array_next_str(const hdl_gguf *gguf, const char *key, int64_t *cursor, hdl_text *out);

/* Tensors, by name; an absent one leaves out->data NULL and returns false. An unsupported tensor
 * type was refused at open with its name. n_dims > 2 is folded into rows. */
bool hdl_gguf_tensor(const hdl_gguf *gguf, const char *name, hdl_tensor *out);
int64_t hdl_gguf_n_tensors(const hdl_gguf *gguf);
int64_t hdl_gguf_find_tensor(const hdl_gguf *gguf, const char *name);             /* its index, or -1 */
const char *hdl_gguf_tensor_at(const hdl_gguf *gguf, int64_t i, hdl_tensor *out); /* its name; file order */
int64_t hdl_gguf_file_bytes(const hdl_gguf *gguf);

#endif
