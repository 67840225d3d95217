/* linear_quant.h - a tile of LANES outputs of a quantised weight, for one row of x and for many.
 *
 * Both forms do the same operations per output in the same order, so a row's bits do not depend on
 * how many rows a call has:
 *   per block of 32, ascending: s = -zero * sum(x) + sum(code * x) in int32 (exact)
 *                               acc = fma(s, d_w * d_x, acc); with a minimum: acc = fma(m, d_x * sum(x), acc)
 *
 * Work for one tile and block, AVX-512: 8 vpdpbusd + cvt + mul + fma per row of x, so at best 8/10
 * (two FMA pipes of 256 bits) or 8/11 (p0, p5) of the VNNI peak; unpacking costs about 30 vector
 * operations once per tile and block. Bytes: the weights once (few rows), and for many rows
 * LANES * n_in * 1.25 bytes of scratch per tile from L1/L2, read once per ROWS rows. */
#ifndef HDL_LINEAR_QUANT_H
#define HDL_LINEAR_QUANT_H

#include "backend/cpu/linear_unpack.h"

/* Rows of x, rounded; row r is r * n_in / r * n_blocks further. */
typedef struct qrows {
    const int8_t *q;      /* [n_rows, n_in] */
    const float *d;       /* [n_rows, n_blocks] */
    const float *ds;      /* [n_rows, n_blocks] d * sum(q); may be NULL when no part needs it */
    const int32_t *zero;  /* [n_rows, n_blocks (x 2 for halves)] -zero * sum(q); NULL = none */
    int64_t n_in, n_blocks;
} qrows;

ALWAYS_INLINE qrows qrows_at(const qrows *x, int64_t row, bool has_halves)
{
    qrows y = *x;
    y.q += row * x->n_in;
    y.d += row * x->n_blocks;
    if (y.ds) y.ds += row * x->n_blocks;
    if (y.zero) y.zero += row * x->n_blocks * (has_halves ? 2 : 1);
    return y;
}

/* acc[r] += block b of the tile times rows 0..n_rows-1. */
ALWAYS_INLINE void add_block(const packed *p, const qrows *x, int64_t b, int n_rows, code_kind kind, vf *acc)
{
    vi s[12];
    const int8_t *q = x->q + b * 32;
    if (kind.has_halves) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
#pragma GCC unroll 12
            for (int r = 0; r < n_rows; r++) s[r] = vi_set1(x->zero[(r * x->n_blocks + b) * 2 + h]);
            add_products(p->w, q, x->n_in, n_rows, kind.bits, 4 * h, 4 * h + 4, s);
#pragma GCC unroll 12
            for (int r = 0; r < n_rows; r++)
                acc[r] = vf_fma(to_f32(s[r]), (h ? p->m : p->d) * vf_set1(x->d[r * x->n_blocks + b]), acc[r]);
        }
        return;
    }
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++)
        s[r] = vi_set1(kind.zero_log2 ? x->zero[r * x->n_blocks + b] : 0);
    add_products(p->w, q, x->n_in, n_rows, kind.bits, 0, 8, s);
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) {
        acc[r] = vf_fma(to_f32(s[r]), p->d * vf_set1(x->d[r * x->n_blocks + b]), acc[r]);
        if (kind.has_min) acc[r] = vf_fma(p->m, vf_set1(x->ds[r * x->n_blocks + b]), acc[r]);
    }
}

/* One row of x times the tile, straight from the weights. The tile is one contiguous run of bytes
 * (LANES rows), the next tile follows it: it is prefetched in order, block by block. */
ALWAYS_INLINE vf dot_one_as(hdl_dtype dtype, const uint8_t *w, int64_t stride, const qrows *x)
{
    const code_kind kind = kind_of(dtype);
    const int step = unit_bytes(dtype), ahead = LANES * step;
    vf acc = vf_set1(0);
    const uint8_t *next = w + LANES * stride;
    for (int64_t b = 0; b < x->n_blocks; b += kind.n_blocks, w += step, next += ahead) {
        packed blocks[8];
#pragma GCC unroll 8
        for (int i = 0; i < ahead; i += 64) __builtin_prefetch(next + i, 0, 3);
        unpack_blocks(dtype, w, stride, blocks);
#pragma GCC unroll 8
        for (int i = 0; i < kind.n_blocks; i++) add_block(&blocks[i], x, b + i, 1, kind, &acc);
    }
    return acc;
}

#define NEVER_INLINE static __attribute__((noinline))

NEVER_INLINE vf dot_one_q8_0(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q8_0, w, stride, x); }
NEVER_INLINE vf dot_one_q4_0(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q4_0, w, stride, x); }
NEVER_INLINE vf dot_one_q4_1(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q4_1, w, stride, x); }
NEVER_INLINE vf dot_one_q5_0(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q5_0, w, stride, x); }
NEVER_INLINE vf dot_one_q5_1(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q5_1, w, stride, x); }
NEVER_INLINE vf dot_one_q4_k(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q4_K, w, stride, x); }
NEVER_INLINE vf dot_one_q5_k(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q5_K, w, stride, x); }
NEVER_INLINE vf dot_one_q6_k(const uint8_t *w, int64_t stride, const qrows *x) { return dot_one_as(HDL_Q6_K, w, stride, x); }

ALWAYS_INLINE void pack_tile_as(hdl_dtype dtype, const uint8_t *w, int64_t stride, int64_t n_blocks, packed *out)
{
    const int n = kind_of(dtype).n_blocks;
    for (int64_t b = 0; b < n_blocks; b += n, w += unit_bytes(dtype)) unpack_blocks(dtype, w, stride, out + b);
}

/* The tile's weights, unpacked into scratch [n_blocks]. */
NEVER_INLINE void pack_tile(hdl_dtype dtype, const uint8_t *w, int64_t stride, int64_t n_blocks, packed *out)
{
    switch (dtype) {
    case HDL_Q8_0: pack_tile_as(HDL_Q8_0, w, stride, n_blocks, out); break;
    case HDL_Q4_0: pack_tile_as(HDL_Q4_0, w, stride, n_blocks, out); break;
    case HDL_Q4_1: pack_tile_as(HDL_Q4_1, w, stride, n_blocks, out); break;
    case HDL_Q5_0: pack_tile_as(HDL_Q5_0, w, stride, n_blocks, out); break;
    case HDL_Q5_1: pack_tile_as(HDL_Q5_1, w, stride, n_blocks, out); break;
    case HDL_Q4_K: pack_tile_as(HDL_Q4_K, w, stride, n_blocks, out); break;
    case HDL_Q5_K: pack_tile_as(HDL_Q5_K, w, stride, n_blocks, out); break;
    default: pack_tile_as(HDL_Q6_K, w, stride, n_blocks, out); break;
    }
}

ALWAYS_INLINE vf dot_one(hdl_dtype dtype, const uint8_t *w, int64_t stride, const qrows *x)
{
    switch (dtype) {
    case HDL_Q8_0: return dot_one_q8_0(w, stride, x);
    case HDL_Q4_0: return dot_one_q4_0(w, stride, x);
    case HDL_Q4_1: return dot_one_q4_1(w, stride, x);
    case HDL_Q5_0: return dot_one_q5_0(w, stride, x);
    case HDL_Q5_1: return dot_one_q5_1(w, stride, x);
    case HDL_Q4_K: return dot_one_q4_k(w, stride, x);
    case HDL_Q5_K: return dot_one_q5_k(w, stride, x);
    default: return dot_one_q6_k(w, stride, x);
    }
}

/* A run of rows of x times the packed tile, n_rows (a constant) at a time; result in acc. */
ALWAYS_INLINE void dot_rows(const packed *p, const qrows *x, int n_rows, code_kind kind, vf *out)
{
    vf acc[12];
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) acc[r] = vf_set1(0);
    for (int64_t b = 0; b < x->n_blocks; b++) add_block(p + b, x, b, n_rows, kind, acc);
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) out[r] = acc[r];
}

#endif
