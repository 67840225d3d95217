/* safetensors.h - reader of safetensors files, single or sharded, mapped and checked whole.
 *
 *   u64 header length | JSON header | data; the header maps a tensor's name to
 *   {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]} counted from the data.
 * The tensors must tile the data exactly, as the format's specification demands. */
#ifndef HDL_SAFETENSORS_H
#define HDL_SAFETENSORS_H

#include "tensor/tensor.h"

typedef struct hdl_safetensors hdl_safetensors;

/* path: a .safetensors file, or a folder with model.safetensors or, for shards,
 * model.safetensors.index.json. */
heddle_status hdl_safetensors_open(hdl_safetensors **out, const char *path);
void hdl_safetensors_close(hdl_safetensors *file);               /* NULL is fine */
int64_t hdl_safetensors_file_bytes(const hdl_safetensors *file); /* of all shards */

/* Tensors are sorted by name; those of more than two dimensions are folded into rows. */
int64_t hdl_safetensors_n_tensors(const hdl_safetensors *file);
int64_t hdl_safetensors_find_tensor(const hdl_safetensors *file, const char *name); /* or -1 */
const char *hdl_safetensors_tensor_at(const hdl_safetensors *file, int64_t i, hdl_tensor *out);

#endif
