/* json.h - thin glue over Jansson: load with line and column, read members with a path.
 *
 * Readers name the member by the path of its object ("layers[3]") so that a message says
 * "layers[3].top_k 0: must be in 1..1048576". Borrowed pointers live as long as the document. */
#ifndef HDL_JSON_H
#define HDL_JSON_H

#include <jansson.h>

#include "base/base.h"

/* Parses text; `name` (a file or preset) starts the message. The caller json_decref()s *root. */
heddle_status hdl_json_parse(json_t **root, const char *text, int64_t n_bytes, const char *name);

/* Each reads obj[key] if present; *out keeps its value (the default) when the key is absent. */
heddle_status hdl_json_int(const json_t *obj, const char *path, const char *key, int64_t min, int64_t max,
                           int64_t *out);
heddle_status hdl_json_num(const json_t *obj, const char *path, const char *key, double *out);
heddle_status hdl_json_bool(const json_t *obj, const char *path, const char *key, bool *out);
heddle_status hdl_json_str(const json_t *obj, const char *path, const char *key, const char **out);
/* Fails naming the first member of obj that is not in the NULL-terminated list `keys`, and the key
 * that was probably meant. */
heddle_status hdl_json_only(const json_t *obj, const char *path, const char *const *keys);

/* The word of the NULL-terminated list that `word` [n bytes] is a slip of the finger from; NULL: none resembles it. */
const char *hdl_nearest_word(const char *word, int64_t n, const char *const *words);

#endif
