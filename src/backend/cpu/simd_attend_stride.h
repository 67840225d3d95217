/* simd_attend_stride.h - one stride of KV against a tile of rows: conversion to f32 panels, scores, weights,
 * values. The order of it all, and why it is invariant: simd_attend_rows.c. */
#ifndef HDL_SIMD_ATTEND_STRIDE_H
#define HDL_SIMD_ATTEND_STRIDE_H

#include "backend/cpu/attend_int.h"
#include "backend/cpu/simd_attend_product.h"

/* Per-thread scratch. */
typedef struct tile_scratch {
    float *q;             /* [m_max, head_dim], scaled */
    float *o, *max, *sum; /* [m_max, v_head_dim], [m_max], [m_max] */
    float *k, *v;         /* KT and V of a stride, in panels */
    float *s;             /* [MR, STRIDE] */
} tile_scratch;

/* A short tile's rows of a stride (KV slots), for V. */
typedef struct short_rows {
    const uint8_t *row[STRIDE];
    float v_scale[STRIDE]; /* I8: of the head at work */
    int64_t v_offset;
} short_rows;

static const uint8_t *step_row(const row_tile *tile, const tile_stride *at, int64_t i, int64_t offset)
{
    i = HDL_MIN(HDL_MAX(i, at->begin), at->end - 1); /* lanes outside repeat a row: hidden, but readable */
    return kv_token_at(tile->walk.kv, walk_token(&tile->walk, at->base + i)) + offset;
}

static float step_scale(const row_tile *tile, const tile_stride *at, int64_t i, bool is_v)
{
    const hdl_kv_view *kv = tile->walk.kv;
    if (kv->dtype != HDL_I8) return 1;
    i = HDL_MIN(HDL_MAX(i, at->begin), at->end - 1);
    const uint8_t *scales = kv_scale_at(kv, walk_token(&tile->walk, at->base + i), tile->args->n_kv_heads);
    float scale;
    memcpy(&scale, scales + (is_v ? kv->v_scale_offset : kv->k_scale_offset) + tile->kv_head * 4,
           sizeof scale);
    return scale;
}

/* p V straight from the cache's rows, with the sums of product(): for tiles too small to share V. */
ALWAYS_INLINE void product_rows(const float *p, const short_rows *rows, int64_t begin, int64_t end, int64_t d,
                                float *o, int64_t dim, const float *alpha, const float *beta,
                                const hdl_dtype dtype, const int mr, const int nr)
{
    vf sum[MR][NR];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) sum[i][j] = vf_set1(0);
    for (int64_t k = begin; k < end; k++) {
        const uint8_t *row = rows->row[k] + rows->v_offset;
        vf y[NR];
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) {
            y[j] = vf_load_turn(dtype, row, d, j * VW, nr * VW % Q4_BLOCK == 0);
            if (dtype == HDL_I8) y[j] = vf_mul(y[j], vf_set1(rows->v_scale[k]));
        }
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf x = vf_set1(p[i * STRIDE + k]);
#pragma GCC unroll 4
            for (int j = 0; j < nr; j++) sum[i][j] = vf_fma(x, y[j], sum[i][j]);
        }
    }
    store_product(sum, o + d, dim, alpha, beta, mr, nr);
}

ALWAYS_INLINE void product_rows_as(const float *p, const short_rows *rows, int64_t begin, int64_t end,
                                   float *o, int64_t dim, const float *alpha, const float *beta, int mr,
                                   const hdl_dtype dtype)
{
    int64_t d = 0;
    for (; d + PANEL <= dim && mr <= 4; d += PANEL) switch (mr) {
            case 1: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 1, NR); break;
            case 2: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 2, NR); break;
            case 3: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 3, NR); break;
            default: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 4, NR); break;
        }
    for (; d < dim; d += VW) /* the rest, and groups of five and six heads */
        for (int i = 0; i < mr; i++)
            product_rows(p + i * STRIDE, rows, begin, end, d, o + i * dim, dim, alpha ? alpha + i : NULL,
                         beta + i, dtype, 1, 1);
}

static void product_short_values(const float *p, const short_rows *rows, int64_t begin, int64_t end, float *o,
                                 int64_t dim, const float *alpha, const float *beta, int mr, hdl_dtype dtype)
{
    switch (dtype) {
        case HDL_F16: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_F16); break;
        case HDL_BF16: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_BF16); break;
        case HDL_I8: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_I8); break;
        case HDL_Q4_1: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_Q4_1); break;
        default: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_F32); break;
    }
}

/* Asks for K and V of steps [begin, end) of the walk with this head. */
static void prefetch_steps(const row_tile *tile, int64_t begin, int64_t end)
{
    const hdl_kv_view *kv = tile->walk.kv;
    int64_t k_bytes = stored_bytes(kv->dtype, tile->args->head_dim);
    int64_t v_bytes = stored_bytes(kv->dtype, tile->args->v_head_dim);
    end = HDL_MIN(end, tile->walk.end);
    for (int64_t step = begin; step < end; step++) {
        const uint8_t *row = kv_token_at(kv, walk_token(&tile->walk, step));
        const uint8_t *k = row + kv->k_offset + tile->kv_head * kv->head_stride;
        const uint8_t *v = row + kv->v_offset + tile->kv_head * kv->v_head_stride;
        for (int64_t b = 0; b < k_bytes; b += LINE) __builtin_prefetch(k + b, 0, 2);
        for (int64_t b = 0; b < v_bytes; b += LINE) __builtin_prefetch(v + b, 0, 2);
    }
}

/* K of the stride, transposed, into panels [][head_dim][PANEL], the first of which begins at step
 * `first`. A short tile fetches the next stride meanwhile. */
ALWAYS_INLINE void convert_k_as(const row_tile *tile, const tile_stride *at, int64_t first, float *k,
                                const hdl_dtype dtype)
{
    int64_t dim = tile->args->head_dim;
    int64_t offset = tile->walk.kv->k_offset + tile->kv_head * tile->walk.kv->head_stride;
    for (int64_t i = at->begin / VW * VW; i < at->end; i += VW) {
        const uint8_t *row[VW];
        float scale[VW];
        for (int t = 0; t < VW; t++) {
            row[t] = step_row(tile, at, i + t, offset);
            if (dtype == HDL_I8) scale[t] = step_scale(tile, at, i + t, false);
        }
        float *to = k + (i - first) / PANEL * PANEL * dim + i % PANEL;
        if (tile->is_short) prefetch_steps(tile, at->base + i + STRIDE, at->base + i + STRIDE + VW);
        for (int64_t d = 0; d < dim; d += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int t = 0; t < VW; t++) x[t] = vf_load_as(dtype, row[t], d);
            vf_transpose(x);
            vf lanes = dtype == HDL_I8 ? vf_load(scale) : vf_set1(0);
#pragma GCC unroll 16
            for (int t = 0; t < VW; t++)
                vf_store(to + (d + t) * PANEL, dtype == HDL_I8 ? vf_mul(x[t], lanes) : x[t]);
        }
    }
}

/* V of the stride into panels [v_head_dim / PANEL][STRIDE][PANEL], the rest in panels of one vector. */
ALWAYS_INLINE void convert_v_as(const row_tile *tile, const tile_stride *at, float *v, const hdl_dtype dtype)
{
    int64_t dim = tile->args->v_head_dim, wide = dim / PANEL * PANEL;
    int64_t offset = tile->walk.kv->v_offset + tile->kv_head * tile->walk.kv->v_head_stride;
    for (int64_t i = at->begin; i < at->end; i++) {
        const uint8_t *row = step_row(tile, at, i, offset);
        vf scale = vf_set1(step_scale(tile, at, i, true));
        for (int64_t d = 0; d < dim; d += VW) {
            vf x = vf_load_as(dtype, row, d);
            if (dtype == HDL_I8) x = vf_mul(x, scale);
            float *to = d < wide ? v + d / PANEL * PANEL * STRIDE + i * PANEL + d % PANEL
                                 : v + d * STRIDE + i * VW;
            vf_store(to, x);
        }
    }
}

static void convert_k(const row_tile *tile, const tile_stride *at, int64_t first, float *k)
{
    switch (tile->walk.kv->dtype) {
        case HDL_F16: convert_k_as(tile, at, first, k, HDL_F16); break;
        case HDL_BF16: convert_k_as(tile, at, first, k, HDL_BF16); break;
        case HDL_I8: convert_k_as(tile, at, first, k, HDL_I8); break;
        case HDL_Q4_1: convert_k_as(tile, at, first, k, HDL_Q4_1); break;
        default: convert_k_as(tile, at, first, k, HDL_F32); break;
    }
}

static void convert_v(const row_tile *tile, const tile_stride *at, float *v)
{
    switch (tile->walk.kv->dtype) {
        case HDL_F16: convert_v_as(tile, at, v, HDL_F16); break;
        case HDL_BF16: convert_v_as(tile, at, v, HDL_BF16); break;
        case HDL_I8: convert_v_as(tile, at, v, HDL_I8); break;
        case HDL_Q4_1: convert_v_as(tile, at, v, HDL_Q4_1); break;
        default: convert_v_as(tile, at, v, HDL_F32); break;
    }
}

/* Where the products' rows of the head at work begin. */
static int64_t first_of_head(const row_tile *tile)
{
    return (tile->kv_head - tile->first_kv_head) * rows_of_head(tile);
}

/* Scores of the head's rows [m, m + mr), for panels that steps [begin, end) touch. */
static void score_block(const row_tile *tile, int64_t m, int mr, int64_t begin, int64_t end, const float *k,
                        float *s)
{
    int64_t dim = tile->args->head_dim;
    const float *q = tile->q + (first_of_head(tile) + m) * dim;
    for (int64_t i = begin / PANEL * PANEL; i < end; i += PANEL)
        product_scores(q, dim, k + i * dim, s + i, mr);
}

/* The same for a short tile, whose rows are one block: K is converted a panel at a time. */
static void score_short(const row_tile *tile, const tile_stride *at, int mr, int64_t begin, int64_t end,
                        const tile_scratch *scratch)
{
    int64_t dim = tile->args->head_dim;
    const float *q = tile->q + first_of_head(tile) * dim;
    for (int64_t i = begin / PANEL * PANEL; i < end; i += PANEL) {
        tile_stride panel = {at->base, HDL_MAX(at->begin, i), HDL_MIN(at->end, i + PANEL)};
        convert_k(tile, &panel, i, scratch->k);
        product_scores(q, dim, scratch->k, scratch->s + i, mr);
    }
}

/* s becomes e^(s - max) in the vectors; all hidden: max -inf, s 0. */
static void weigh_row(float *s, int64_t v_begin, int64_t v_end, float *max, float *sum)
{
    vf top = vf_set1(-INFINITY), total = vf_set1(0);
    for (int64_t i = v_begin; i < v_end; i += VW) top = vf_max(vf_load(s + i), top);
    *max = vf_top(top);
    vf m = vf_set1(*max == -INFINITY ? 0 : *max);
    for (int64_t i = v_begin; i < v_end; i += VW) {
        vf p = vf_exp(vf_sub(vf_load(s + i), m));
        vf_store(s + i, p);
        total = vf_add(total, p);
    }
    *sum = vf_sum(total);
}

/* Takes a partial (max, sum) into the row's; alpha scales the row's o, beta the partial's. */
static void merge_state(float part_max, float part_sum, float *max, float *sum, float *alpha, float *beta)
{
    *alpha = 1;
    *beta = 0;
    if (part_max == -INFINITY) return;
    float top = HDL_MAX(*max, part_max),
          factor[2 * VW] = {*max == -INFINITY ? -INFINITY : *max - top, part_max - top};
    vf_store(factor, vf_exp(vf_load(factor)));
    *alpha = factor[0];
    *beta = factor[1];
    *sum = *sum * *alpha + part_sum * *beta;
    *max = top;
}

/* The head's rows [m, m + mr) against a stride, which is converted, or (short tiles) in `rows`.
 * to: the tile's state; is_merged false: the stride's partial alone is stored there. */
static void attend_block(const row_tile *tile, const tile_stride *at, int64_t m, int mr,
                         const short_rows *rows, const tile_scratch *scratch, const tile_scratch *to,
                         bool is_merged)
{
    int64_t first_row = m / tile->group, last_row = (m + mr - 1) / tile->group, begin, end, unused;
    int64_t at_m = first_of_head(tile) + m, dim = tile->args->v_head_dim;
    row_range(tile, at, first_row, &begin, &unused);
    row_range(tile, at, last_row, &unused, &end);
    float alpha[MR], beta[MR];
    if (begin < end) {
        int64_t v_begin = begin / VW * VW, v_end = HDL_ALIGN_UP(end, VW);
        if (rows)
            score_short(tile, at, mr, begin, end, scratch);
        else
            score_block(tile, m, mr, begin, end, scratch->k, scratch->s);
        for (int i = 0; i < mr; i++) {
            float max, sum, *s = scratch->s + i * STRIDE;
            shape_row(tile, at, (m + i) / tile->group, v_begin, v_end, s);
            weigh_row(s, v_begin, v_end, &max, &sum);
            if (is_merged) {
                merge_state(max, sum, &to->max[at_m + i], &to->sum[at_m + i], &alpha[i], &beta[i]);
            } else {
                to->max[at_m + i] = max;
                to->sum[at_m + i] = sum;
            }
        }
    } else if (!is_merged) {
        for (int i = 0; i < mr; i++) {
            to->max[at_m + i] = -INFINITY;
            to->sum[at_m + i] = 0;
        }
    }
    if (begin >= end && is_merged) return;
    const float *shrink = is_merged ? alpha : NULL;
    float *o = to->o + at_m * dim;
    if (rows)
        product_short_values(scratch->s, rows, begin, end, o, dim, shrink, beta, mr, tile->walk.kv->dtype);
    else
        product_values(scratch->s, scratch->v, begin, end, o, dim, shrink, beta, mr);
}

/* Where the rows of a stride begin; for I8 the scales of V of the head at work. */
static void find_rows(const row_tile *tile, const tile_stride *at, short_rows *rows)
{
    const hdl_kv_view *kv = tile->walk.kv;
    rows->v_offset = kv->v_offset + tile->kv_head * kv->v_head_stride;
    for (int64_t i = at->begin; i < at->end; i++) {
        if (tile->kv_head == tile->first_kv_head) rows->row[i] = step_row(tile, at, i, 0);
        if (kv->dtype == HDL_I8) rows->v_scale[i] = step_scale(tile, at, i, true);
    }
}

static void attend_stride(row_tile *tile, int64_t stride, const tile_scratch *scratch, const tile_scratch *to,
                          bool is_merged)
{
    tile_stride at = stride_at(tile, stride);
    int64_t n = rows_of_head(tile), next = at.base + STRIDE;
    int32_t end = tile->first_kv_head + tile->n_kv_heads;
    short_rows rows;
    for (tile->kv_head = tile->first_kv_head; tile->kv_head < end; tile->kv_head++) {
        if (tile->is_short) {
            find_rows(tile, &at, &rows);
            attend_block(tile, &at, 0, (int)n, &rows, scratch, to, is_merged);
            continue;
        }
        convert_k(tile, &at, 0, scratch->k);
        convert_v(tile, &at, scratch->v);
        for (int64_t m = 0; m < n; m += MR) {
            int64_t mr = HDL_MIN(n - m, (int64_t)MR);
            prefetch_steps(tile, next + m * STRIDE / n, next + (m + mr) * STRIDE / n);
            attend_block(tile, &at, m, (int)mr, NULL, scratch, to, is_merged);
        }
    }
}

#endif
