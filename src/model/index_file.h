/* index_file.h - learned indexes for a model that has none of its own: a sidecar file.
 *
 * A safetensors file with string metadata (docs/training.md, "The sidecar"): for each leading layer a key of `dim`
 * elements and `n_heads` queries a token, read from the vector that the layer's own q, k and v projections read. It
 * fits one set of weights: the SHA-256 of the model's file stands in it. */
#ifndef HDL_INDEX_FILE_H
#define HDL_INDEX_FILE_H

#include "model/model.h"

/* Adds the indexes to the model: facts.index, layers[].has_index and their weights. The file stays mapped until the
 * model is closed. FORMAT or UNSUPPORTED with a sentence; the model is then as it was. */
heddle_status hdl_model_attach_index(hdl_model *model, const char *model_path, const char *index_path);

#endif
