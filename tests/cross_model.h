/* cross_model.h - the golden model with a shared state (train/golden/clsa-tiny) for tests. */
#ifndef CROSS_MODEL_H
#define CROSS_MODEL_H

#include <stdio.h>

#include "base/base.h"
#include "tiny_model.h"

#define CROSS_GOLDEN HDL_TEST_DATA "/../train/golden/clsa-tiny"

enum { CROSS_TOKENS = 96, CROSS_VOCAB = 256, CROSS_TOP_K = 12 };

typedef struct cross_golden {
    int32_t tokens[CROSS_TOKENS];
    float logits_dense[CROSS_TOKENS][CROSS_VOCAB], logits_list[CROSS_TOKENS][CROSS_VOCAB];
    int32_t lists[CROSS_TOKENS][CROSS_TOP_K], counts[CROSS_TOKENS];
} cross_golden;

/* Each returns false after a message on stderr. */
bool cross_golden_read(cross_golden *out);
/* Changes to it: `n` index groups (its two cross layers lead one each), the second's query matrix that of the first
 * or its opposite; flat: the first cross layer adds nothing and the second norms as the shared state does. */
typedef struct cross_groups {
    int32_t n;
    bool is_own_input, is_opposite, is_flat;
} cross_groups;
/* As cross_write_f32, with these changes. */
bool cross_write_groups(char *folder, int64_t folder_bytes, const cross_groups *groups);
/* A new folder with the same model, its matrices decoded to F32; remove with tiny_remove_folder. */
bool cross_write_f32(char *folder, int64_t folder_bytes);
/* The same of the weights in folder `from` with another config.json, whose weight_format is q8_0; of the layers' own
 * index queries those of `leaders` alone. Where paired_head_dim is not 0 the heads' channels stand in another order,
 * and rope_style says so: what were (i, i + dim/2) are (2i, 2i + 1), which is the same model. */
bool cross_write_as_f32(char *folder, int64_t folder_bytes, const char *from, const char *config_path,
                        const int32_t *leaders, int64_t n_leaders, int64_t paired_head_dim);
/* n floats of a file. */
bool cross_read_floats(float *out, int64_t n, const char *path);
/* Whole numbers up to the end of a line; returns how many, -1 at the end of the file. */
int64_t cross_read_line(FILE *file, int32_t *out, int64_t most);

#endif
