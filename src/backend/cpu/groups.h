/* groups.h - the groups of plane GROUP: the 256 tokens of a segment, halved until a part is one group.
 *
 * A part is halved across the direction in which its keys (of all KV heads, one behind the other) differ most:
 * the rows y_t are the part's, by ascending token, less their mean; v begins as the longest y_t (ties to the
 * lowest token) and is replaced twice by sum_t (y_t . v) y_t over its largest element (power iteration;
 * kept where that is 0 or not finite); the half with the least y_t . v (ties to the lowest token, NaN as
 * -inf) is the first. Groups have equal sizes, so that an order of tokens is all there is to keep. Sums are in
 * the order of the tokens, products by hdl_dot16: the same bits on every instruction set.
 *
 * Why halves: k-means needs groups of all sizes, which an order map of whole blocks cannot hold (RetroInfer,
 * arXiv 2505.02922, and ClusterKV, arXiv 2412.03213, keep lists instead); that keys are permuted within segments
 * is PBS-Attn's (arXiv 2510.21270).
 *
 * Walk: token 5000 is place 136 of segment 19. Its key has the largest share along v in the second half of the
 * first cut, then ...: it ends as member 3 of group 19 * 16 + 9 (block_size 16). The row of the plane says:
 * mean key of that group, and places {7, 33, 60, 136, ...}.
 *
 * Cost: log2(256 / block_size) levels of 8 * 256 * width multiply-adds; 192 wide, groups of 16: 1.6
 * million a segment and layer. */
#ifndef HDL_GROUPS_H
#define HDL_GROUPS_H

#include "backend/cpu/codebook.h"
#include "backend/cpu/route_int.h"

enum { HDL_GROUP_TURNS = 2 };

/* Floats of the rows of a segment, `width` elements each, and of the scratch that ordering them takes. */
static inline int64_t hdl_group_rows_size(int64_t width)
{
    return HDL_SEGMENT_TOKENS * width;
}

static inline int64_t hdl_group_space_size(int64_t width)
{
    return (HDL_SEGMENT_TOKENS + 2) * width;
}

/* workspace() of SUMMARISE: for each thread a segment's rows, then what ordering them takes. */
static inline int64_t hdl_group_workspace(const void *op, int n_threads)
{
    const hdl_summarise_args *args = op;
    int64_t width = (int64_t)args->n_kv_heads * args->head_dim;
    if (args->kind != HDL_PLANE_GROUP) return 0;
    return n_threads * (hdl_group_rows_size(width) + hdl_group_space_size(width)) * (int64_t)sizeof(float);
}

/* y [n, width]: the rows at `places`, less their mean; sum [width] is scratch. */
static inline void hdl_group_centre(const float *rows, int64_t width, const uint8_t *places, int32_t n,
                                    float *y, float *sum)
{
    memset(sum, 0, (size_t)width * sizeof *sum);
    for (int32_t t = 0; t < n; t++)
        for (int64_t i = 0; i < width; i++) sum[i] += rows[places[t] * width + i];
    for (int64_t i = 0; i < width; i++) sum[i] /= (float)n;
    for (int32_t t = 0; t < n; t++)
        for (int64_t i = 0; i < width; i++) y[t * width + i] = rows[places[t] * width + i] - sum[i];
}

/* v [width]: along which the rows of y [n, width] differ most; next [width] is scratch. */
static inline void hdl_group_direction(const float *y, int64_t width, int32_t n, float *v, float *next)
{
    float longest = -1;
    for (int32_t t = 0; t < n; t++) {
        float length = hdl_dot16(y + t * width, y + t * width, width);
        if (!(length > longest)) continue;
        longest = length;
        memcpy(v, y + t * width, (size_t)width * sizeof *v);
    }
    if (longest < 0) memset(v, 0, (size_t)width * sizeof *v); /* nothing but NaN */
    for (int turn = 0; turn < HDL_GROUP_TURNS; turn++) {
        float largest = 0;
        memset(next, 0, (size_t)width * sizeof *next);
        for (int32_t t = 0; t < n; t++) {
            float along = hdl_dot16(y + t * width, v, width);
            for (int64_t i = 0; i < width; i++) next[i] += along * y[t * width + i];
        }
        for (int64_t i = 0; i < width; i++) largest = fabsf(next[i]) > largest ? fabsf(next[i]) : largest;
        if (!(largest > 0 && largest < INFINITY)) return;
        for (int64_t i = 0; i < width; i++) v[i] = next[i] / largest;
    }
}

/* Puts the half of places [n] with the least key first; each half ascends. */
static inline void hdl_group_halve(const int32_t *key, uint8_t *places, int32_t n)
{
    uint8_t first[HDL_SEGMENT_TOKENS], second[HDL_SEGMENT_TOKENS];
    int32_t n_first = 0, n_second = 0;
    for (int32_t t = 0; t < n; t++) {
        int32_t rank = 0;
        for (int32_t i = 0; i < n; i++) rank += key[i] < key[t] || (key[i] == key[t] && i < t);
        if (rank < n / 2)
            first[n_first++] = places[t];
        else
            second[n_second++] = places[t];
    }
    memcpy(places, first, (size_t)n_first);
    memcpy(places + n_first, second, (size_t)n_second);
}

/* places [256]: of the rows [256, width], group after group of block_size (a power of two), each ascending.
 * space: hdl_group_space_size floats. */
static inline void hdl_group_order(const float *rows, int64_t width, int32_t block_size, uint8_t *places,
                                   float *space)
{
    float *v = space, *next = v + width, *y = next + width;
    int32_t key[HDL_SEGMENT_TOKENS];
    for (int32_t t = 0; t < HDL_SEGMENT_TOKENS; t++) places[t] = (uint8_t)t;
    for (int32_t n = HDL_SEGMENT_TOKENS; n > block_size; n /= 2)
        for (int32_t from = 0; from < HDL_SEGMENT_TOKENS; from += n) {
            hdl_group_centre(rows, width, places + from, n, y, next);
            hdl_group_direction(y, width, n, v, next);
            for (int32_t t = 0; t < n; t++) key[t] = key_of(hdl_dot16(y + t * width, v, width));
            hdl_group_halve(key, places + from, n);
        }
}

/* mean [width] of a group's rows. */
static inline void hdl_group_mean(const float *rows, int64_t width, const uint8_t *places, int32_t n,
                                  float *mean)
{
    memset(mean, 0, (size_t)width * sizeof *mean);
    for (int32_t t = 0; t < n; t++)
        for (int64_t i = 0; i < width; i++) mean[i] += rows[places[t] * width + i];
    for (int64_t i = 0; i < width; i++) mean[i] /= (float)n;
}

#endif
