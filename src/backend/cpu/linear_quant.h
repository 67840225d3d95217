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
 * LANES * n_in * 1.25 bytes of scratch per tile from L1/L2, read once per group of rows.
 * Measured in cache (Zen 4, 470 GOP/s of int8 products): 79 % of that peak. */
#ifndef HDL_LINEAR_QUANT_H
#define HDL_LINEAR_QUANT_H

#include "backend/cpu/linear_unpack.h"

/* Rows of x, rounded, in groups: the rows of a group stand side by side block by block, so that a
 * kernel walks one pointer per array, forwards, whatever the number of rows.
 *   q    [n_groups, n_blocks, group, 32]      d, ds  [n_groups, n_blocks, group]
 *   zero [n_groups, n_blocks, 1 or 2 halves, group] */
typedef struct qrows {
    const int8_t *q;
    const float *d;
    const float *ds;     /* d * sum(q); NULL when no part needs it */
    const int32_t *zero; /* -zero point * sum(q); NULL = the codes have none */
    int64_t n_blocks, group;
} qrows;

/* The block `n` blocks further on. */
ALWAYS_INLINE void qrows_skip(qrows *x, int64_t n, code_kind kind)
{
    n *= x->group;
    x->q += n * 32;
    x->d += n;
    if (kind.has_min) x->ds += n;
    if (kind.zero_log2) x->zero += n * (kind.has_halves ? 2 : 1);
}

/* The same block of the row `n` rows further on in the group. */
ALWAYS_INLINE void qrows_next(qrows *x, int64_t n, code_kind kind)
{
    x->q += n * 32;
    x->d += n;
    if (kind.has_min) x->ds += n;
    if (kind.zero_log2) x->zero += n;
}

/* acc[r * n_tiles + t] += this block of n_rows rows times tile t's block. */
ALWAYS_INLINE void add_block(const packed *const p[2], const qrows *x, int n_rows, int n_tiles,
                             code_kind kind, vf *acc)
{
    const int n_sums = n_rows * n_tiles, n_halves = kind.has_halves ? 2 : 1, width = 8 / n_halves;
    const vi *const w[2] = {p[0]->w, p[n_tiles - 1]->w};
    UNROLL
    for (int h = 0; h < n_halves; h++) {
        vi s[12];
        UNROLL
        for (int i = 0; i < n_sums; i++)
            s[i] = vi_set1(kind.zero_log2 ? x->zero[h * x->group + i / n_tiles] : 0);
        add_products(w, x->q, n_rows, n_tiles, kind.bits, width * h, width * (h + 1), s);
        UNROLL
        for (int i = 0; i < n_sums; i++) {
            const packed *tile = p[i % n_tiles];
            acc[i] = vf_fma(to_f32(s[i]), (h ? tile->m : tile->d) * vf_set1(x->d[i / n_tiles]), acc[i]);
        }
    }
    if (!kind.has_min) return;
    UNROLL
    for (int i = 0; i < n_sums; i++) acc[i] = vf_fma(p[i % n_tiles]->m, vf_set1(x->ds[i / n_tiles]), acc[i]);
}

/* One row of x times the tile, straight from the weights. The tile is one contiguous run of bytes
 * (LANES rows): what lies ahead is prefetched in order, block by block. */
ALWAYS_INLINE vf dot_one_as(hdl_dtype dtype, const uint8_t *w, int64_t stride, const qrows *rows,
                            stream *ahead)
{
    const code_kind kind = kind_of(dtype);
    const int step = unit_bytes(dtype);
    vf acc = vf_set1(0);
    qrows x = *rows;
    x.group = 1;
    for (int64_t b = 0; b < x.n_blocks; b += kind.n_blocks, w += step) {
        packed blocks[8];
        prefetch_stream(ahead, LANES * step);
        unpack_blocks(dtype, w, stride, blocks);
        for (int i = 0; i < kind.n_blocks; i++) {
            const packed *const block[2] = {&blocks[i], &blocks[i]};
            add_block(block, &x, 1, 1, kind, &acc);
            qrows_skip(&x, 1, kind);
        }
    }
    return acc;
}

NEVER_INLINE vf dot_one_q8_0(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q8_0, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q4_0(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q4_0, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q4_1(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q4_1, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q5_0(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q5_0, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q5_1(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q5_1, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q4_k(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q4_K, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q5_k(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q5_K, w, stride, x, ahead);
}
NEVER_INLINE vf dot_one_q6_k(const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    return dot_one_as(HDL_Q6_K, w, stride, x, ahead);
}

ALWAYS_INLINE void pack_tile_as(hdl_dtype dtype, const uint8_t *w, int64_t stride, int64_t n_blocks,
                                packed *out)
{
    const int n = kind_of(dtype).n_blocks, step = unit_bytes(dtype), ahead = LANES * step;
    const uint8_t *next = w + LANES * stride + PREFETCH_AHEAD_BYTES;
    for (int64_t b = 0; b < n_blocks; b += n, w += step, next += ahead) {
        prefetch(next, ahead);
        unpack_blocks(dtype, w, stride, out + b);
    }
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

ALWAYS_INLINE vf dot_one(hdl_dtype dtype, const uint8_t *w, int64_t stride, const qrows *x, stream *ahead)
{
    switch (dtype) {
        case HDL_Q8_0: return dot_one_q8_0(w, stride, x, ahead);
        case HDL_Q4_0: return dot_one_q4_0(w, stride, x, ahead);
        case HDL_Q4_1: return dot_one_q4_1(w, stride, x, ahead);
        case HDL_Q5_0: return dot_one_q5_0(w, stride, x, ahead);
        case HDL_Q5_1: return dot_one_q5_1(w, stride, x, ahead);
        case HDL_Q4_K: return dot_one_q4_k(w, stride, x, ahead);
        case HDL_Q5_K: return dot_one_q5_k(w, stride, x, ahead);
        default: return dot_one_q6_k(w, stride, x, ahead);
    }
}

/* n_rows rows of one group times n_tiles packed tiles, a constant number of each; the tiles' blocks
 * follow each other. */
ALWAYS_INLINE void dot_rows(const packed *p, const qrows *rows, int n_rows, int n_tiles, code_kind kind,
                            vf *out)
{
    vf acc[12];
    qrows x = *rows;
    const packed *tile[2] = {p, p + (n_tiles - 1) * x.n_blocks};
    UNROLL
    for (int i = 0; i < n_rows * n_tiles; i++) acc[i] = vf_set1(0);
    for (int64_t b = 0; b < x.n_blocks; b++, tile[0]++, tile[1]++) {
        add_block(tile, &x, n_rows, n_tiles, kind, acc);
        qrows_skip(&x, 1, kind);
    }
    UNROLL
    for (int i = 0; i < n_rows * n_tiles; i++) out[i] = acc[i];
}

#endif
