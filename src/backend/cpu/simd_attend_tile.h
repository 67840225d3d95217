/* simd_attend_tile.h - blocks of rows times the heads that read them: attention's inner loops where rows
 * are used as they lie (lanes are the elements of a head).
 *
 *   score_heads  s[g][t] = q[g] . k[t]          weigh_head  s becomes e^(s - m), sums by lanes
 *   mix_heads    o[g] += sum_t p[g][t] v[t]
 *
 * Each K and V row is read once for all heads of its group; `next` is the block whose rows are asked for
 * meanwhile. m is a reference, not the maximum: it moves (and o is rescaled) only when a score passes it
 * by SLACK, so that the common block has no horizontal maximum and no rescaling. */
#ifndef HDL_SIMD_ATTEND_TILE_H
#define HDL_SIMD_ATTEND_TILE_H

#include "backend/cpu/simd_attend_int.h"

enum { BLOCK = 32, LINE = 64, MAX_GROUP = 4 };
static const float SLACK = 8; /* e^8 times n of V stays far inside f32 */

typedef struct token_block {
    const uint8_t *row[BLOCK];   /* slots; past n the last one again */
    const uint8_t *scale[BLOCK]; /* I8 only */
    int64_t n;
} token_block;

/* Asks for a row of the next block, into the second-level cache: two blocks would not fit the first.
 * Most rows are two lines. */
ALWAYS_INLINE void prefetch_row(const uint8_t *row, int64_t bytes)
{
    __builtin_prefetch(row, 0, 2);
    if (bytes > LINE) __builtin_prefetch(row + LINE, 0, 2);
    for (int64_t b = 2 * LINE; b < bytes; b += LINE) __builtin_prefetch(row + b, 0, 2);
}

/* s[g][t] = q[g] . k[t] for VW tokens and `group` heads; q is packed [dim / VW][group][VW]. */
ALWAYS_INLINE void score_tile(const uint8_t *const *row, const uint8_t *const *next, int64_t offset,
                              const float *q, int64_t dim, float *s, const hdl_dtype dtype, const int group)
{
    const int64_t bytes = stored_bytes(dtype, dim), turn = turn_of(dtype);
    vf part[MAX_GROUP][VW / 4];
    for (int i = 0; i < VW / 4; i++, row += FOLD_STRIDE, next += FOLD_STRIDE) {
        const uint8_t *k0 = row[FOLD_TOKEN[0]] + offset, *k1 = row[FOLD_TOKEN[1]] + offset;
        const uint8_t *k2 = row[FOLD_TOKEN[2]] + offset, *k3 = row[FOLD_TOKEN[3]] + offset;
        vf sum[MAX_GROUP][4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            prefetch_row(next[FOLD_TOKEN[t]] + offset, bytes);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) sum[g][t] = vf_set1(0);
        }
        const float *y = q;
        for (int64_t d = 0; d < dim; d += turn)
#pragma GCC unroll 8
            for (int64_t j = 0; j < turn; j += VW, y += group * VW) {
                vf x0 = vf_load_turn(dtype, k0, d, j, true), x1 = vf_load_turn(dtype, k1, d, j, true);
                vf x2 = vf_load_turn(dtype, k2, d, j, true), x3 = vf_load_turn(dtype, k3, d, j, true);
#pragma GCC unroll 4
                for (int g = 0; g < group; g++) {
                    vf z = vf_load(y + g * VW);
                    sum[g][0] = vf_fma(x0, z, sum[g][0]);
                    sum[g][1] = vf_fma(x1, z, sum[g][1]);
                    sum[g][2] = vf_fma(x2, z, sum[g][2]);
                    sum[g][3] = vf_fma(x3, z, sum[g][3]);
                }
            }
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) part[g][i] = vf_fold4(sum[g][0], sum[g][1], sum[g][2], sum[g][3]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < group; g++) vf_store(s + g * BLOCK, vf_fold_last(part[g]));
}

ALWAYS_INLINE void score_as(const token_block *block, const token_block *next, int64_t offset, const float *q,
                            int64_t dim, int group, float *s, const hdl_dtype dtype)
{
    for (int64_t t = 0; t < block->n; t += VW) {
        const uint8_t *const *row = block->row + t, *const *ahead = next->row + t;
        switch (group) {
            case 1: score_tile(row, ahead, offset, q, dim, s + t, dtype, 1); break;
            case 2: score_tile(row, ahead, offset, q, dim, s + t, dtype, 2); break;
            case 3: score_tile(row, ahead, offset, q, dim, s + t, dtype, 3); break;
            default: score_tile(row, ahead, offset, q, dim, s + t, dtype, 4); break;
        }
    }
}

static void score_heads(const token_block *block, const token_block *next, int64_t offset, const float *q,
                        int64_t dim, int group, float *s, hdl_dtype dtype)
{
    for (; group > 0; group -= MAX_GROUP, q += MAX_GROUP * dim, s += MAX_GROUP * BLOCK) {
        int n = HDL_MIN(group, (int)MAX_GROUP);
        switch (dtype) {
            case HDL_F16: score_as(block, next, offset, q, dim, n, s, HDL_F16); break;
            case HDL_BF16: score_as(block, next, offset, q, dim, n, s, HDL_BF16); break;
            case HDL_I8: score_as(block, next, offset, q, dim, n, s, HDL_I8); break;
            case HDL_Q4_1: score_as(block, next, offset, q, dim, n, s, HDL_Q4_1); break;
            default: score_as(block, next, offset, q, dim, n, s, HDL_F32); break;
        }
    }
}

/* The order score_tile reads: heads in groups of at most MAX_GROUP, each [dim / VW][heads][VW]. */
static void pack_query(const float *q, int64_t dim, int32_t group, float *to)
{
    for (int32_t first = 0; first < group; first += MAX_GROUP) {
        int32_t n = HDL_MIN(group - first, (int32_t)MAX_GROUP);
        for (int64_t d = 0; d < dim; d += VW)
            for (int32_t g = 0; g < n; g++, to += VW) vf_store(to, vf_load(q + (first + g) * dim + d));
    }
}

/* o[g][0..n_vectors VW) += sum over t < n of p[g][t] v[t], of v from element `first` on. */
ALWAYS_INLINE void mix_tile(const token_block *block, const token_block *next, int64_t offset, int64_t first,
                            const float *p, float *o, int64_t dim, const hdl_dtype dtype, const int group,
                            const int n_vectors)
{
    const int64_t bytes = stored_bytes(dtype, (int64_t)n_vectors * VW), ahead = stored_bytes(dtype, first);
    const bool is_whole = n_vectors * VW % Q4_BLOCK == 0;
    vf sum[MAX_GROUP][4];
#pragma GCC unroll 4
    for (int g = 0; g < group; g++)
#pragma GCC unroll 4
        for (int i = 0; i < n_vectors; i++) sum[g][i] = vf_load(o + g * dim + i * VW);
    const int64_t n = block->n;
    for (int64_t t = 0; t < n; t++) {
        const uint8_t *v = block->row[t] + offset;
        prefetch_row(next->row[t] + offset + ahead, bytes);
        vf weight[MAX_GROUP];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) weight[g] = vf_set1(p[g * BLOCK + t]);
#pragma GCC unroll 4
        for (int i = 0; i < n_vectors; i++) {
            vf x = vf_load_turn(dtype, v, first, i * VW, is_whole);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) sum[g][i] = vf_fma(x, weight[g], sum[g][i]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < group; g++)
#pragma GCC unroll 4
        for (int i = 0; i < n_vectors; i++) vf_store(o + g * dim + i * VW, sum[g][i]);
}

ALWAYS_INLINE void mix_as(const token_block *block, const token_block *next, int64_t offset, const float *p,
                          float *o, int64_t dim, int group, const hdl_dtype dtype)
{
    enum { WIDE = VW == 16 ? 4 : 2 };
    int64_t i = 0;
    for (; i + WIDE * VW <= dim; i += WIDE * VW) {
        switch (group) {
            case 1: mix_tile(block, next, offset, i, p, o + i, dim, dtype, 1, WIDE); break;
            case 2: mix_tile(block, next, offset, i, p, o + i, dim, dtype, 2, WIDE); break;
            case 3: mix_tile(block, next, offset, i, p, o + i, dim, dtype, 3, WIDE); break;
            default: mix_tile(block, next, offset, i, p, o + i, dim, dtype, 4, WIDE); break;
        }
    }
    for (; i < dim; i += VW)
        for (int g = 0; g < group; g++)
            mix_tile(block, next, offset, i, p + g * BLOCK, o + g * dim + i, dim, dtype, 1, 1);
}

static void mix_heads(const token_block *block, const token_block *next, int64_t offset, const float *p,
                      float *o, int64_t dim, int group, hdl_dtype dtype)
{
    for (; group > 0; group -= MAX_GROUP, p += MAX_GROUP * BLOCK, o += MAX_GROUP * dim) {
        int n = HDL_MIN(group, (int)MAX_GROUP);
        switch (dtype) {
            case HDL_F16: mix_as(block, next, offset, p, o, dim, n, HDL_F16); break;
            case HDL_BF16: mix_as(block, next, offset, p, o, dim, n, HDL_BF16); break;
            case HDL_I8: mix_as(block, next, offset, p, o, dim, n, HDL_I8); break;
            case HDL_Q4_1: mix_as(block, next, offset, p, o, dim, n, HDL_Q4_1); break;
            default: mix_as(block, next, offset, p, o, dim, n, HDL_F32); break;
        }
    }
}

static void gather_scales(const token_block *block, int64_t offset, float scales[BLOCK])
{
    for (int i = 0; i < BLOCK; i++) memcpy(&scales[i], block->scale[i] + offset, sizeof(float));
}

/* s becomes e^(s - m); o and the lane sums are rescaled first where m has to move. */
static void weigh_head(float *s, int64_t n, float *max, float *lanes, float *o, int64_t dim)
{
    const vf bound = vf_set1(*max + SLACK);
    bool is_above = false;
    for (int64_t t = 0; t < n; t += VW) {
        vf x = vf_load(s + t);
        if (t + VW > n) vf_store(s + t, x = vf_keep(x, 0, n - t));
        is_above |= vf_any_above(x, bound);
    }
    if (is_above) {
        vf top = vf_set1(*max);
        for (int64_t t = 0; t < n; t += VW) top = vf_max(vf_load(s + t), top);
        float old = *max;
        *max = vf_top(top);
        vf shrink = old == -INFINITY ? vf_set1(0) : vf_exp(vf_set1(old - *max));
        vf_store(lanes, vf_mul(vf_load(lanes), shrink));
        for (int64_t i = 0; i < dim; i += VW) vf_store(o + i, vf_mul(vf_load(o + i), shrink));
    }
    vf m = vf_set1(*max == -INFINITY ? 0 : *max), sum = vf_load(lanes);
    for (int64_t t = 0; t < n; t += VW) {
        vf p = vf_exp(vf_sub(vf_load(s + t), m));
        vf_store(s + t, p);
        sum = vf_add(sum, p);
    }
    vf_store(lanes, sum);
}

#endif
