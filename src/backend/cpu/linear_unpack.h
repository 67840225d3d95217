/* linear_unpack.h - weight blocks of a tile of LANES rows into the one form the kernels multiply.
 *
 *   packed.w[g]  lane i = codes of elements 4g..4g+3 of row i, one byte each (VNNI order)
 *   packed.d     scale of the block per row; packed.m: the minimum (q4_1 q5_1 q4_K q5_K), or the
 *                scale of elements 16..31 (q6_K, whose d is then that of elements 0..15)
 *
 * Codes are unsigned, with their zero point (8, 16, 32, 128) still in: the sum of the activations
 * takes it out exactly, in integers. AVX2 keeps q8_0 signed, because its int8 product saturates.
 * f16 scale times 6-bit or int8 sub-scale is exact in f32. Rows are read in 16-byte pieces and
 * transposed in registers; no byte outside a block is read. */
#ifndef HDL_LINEAR_UNPACK_H
#define HDL_LINEAR_UNPACK_H

#include "backend/cpu/linear_vec.h"
#include "tensor/tensor.h"

typedef struct packed {
    vi w[8];
    vf d, m;
} packed;

/* What the kernels must know of a format; a pure function, folded at compile time. */
typedef struct code_kind {
    int bits;      /* of a code: 4, 5, 6, 8 */
    int zero_log2; /* log2 of the zero point; 0 = none */
    bool has_min, has_halves;
    int n_blocks; /* blocks of 32 that unpack_blocks() does at a time */
} code_kind;

ALWAYS_INLINE code_kind kind_of(hdl_dtype dtype)
{
#if defined(HDL_ISA_avx512)
    const int q8_zero = 7;
#else
    const int q8_zero = 0;
#endif
    switch (dtype) {
        case HDL_Q8_0: return (code_kind){8, q8_zero, false, false, 1};
        case HDL_Q4_0: return (code_kind){4, 3, false, false, 1};
        case HDL_Q4_1: return (code_kind){4, 0, true, false, 1};
        case HDL_Q5_0: return (code_kind){5, 4, false, false, 1};
        case HDL_Q5_1: return (code_kind){5, 0, true, false, 1};
        case HDL_Q4_K: return (code_kind){4, 0, true, false, 8};
        case HDL_Q5_K: return (code_kind){5, 0, true, false, 8};
        default: return (code_kind){6, 5, false, true, 8}; /* q6_K */
    }
}

/* Bytes that hold kind_of(dtype).n_blocks blocks of a row. */
ALWAYS_INLINE int unit_bytes(hdl_dtype dtype)
{
    switch (dtype) {
        case HDL_Q8_0: return 34;
        case HDL_Q4_0: return 18;
        case HDL_Q4_1: return 20;
        case HDL_Q5_0: return 22;
        case HDL_Q5_1: return 24;
        case HDL_Q4_K: return 144;
        case HDL_Q5_K: return 176;
        default: return 210;
    }
}

ALWAYS_INLINE vi low_nibbles(vi v)
{
    return v & vi_set1(0x0f0f0f0f);
}
ALWAYS_INLINE vi high_nibbles(vi v)
{
    return shr(v, 4) & vi_set1(0x0f0f0f0f);
}

ALWAYS_INLINE void unpack_q8_0(const uint8_t *p, int64_t stride, packed *out)
{
    load_cols(p + 2, stride, out->w);
    load_cols(p + 18, stride, out->w + 4);
    if (kind_of(HDL_Q8_0).zero_log2)
        for (int g = 0; g < 8; g++) out->w[g] ^= vi_set1((int32_t)0x80808080u);
    out->d = load_halves(p, stride);
}

/* q4_0, q4_1, q5_0, q5_1: [f16 d][f16 m][u32 high bits][nibbles], the middle two where present. */
ALWAYS_INLINE void unpack_nibbles(hdl_dtype dtype, const uint8_t *p, int64_t stride, packed *out)
{
    vi c[4];
    const bool has_min = kind_of(dtype).has_min, has_high = kind_of(dtype).bits == 5;
    const int at = has_min ? 4 : 2;
    load_cols(p + at + (has_high ? 4 : 0), stride, c);
    for (int g = 0; g < 4; g++) out->w[g] = low_nibbles(c[g]), out->w[4 + g] = high_nibbles(c[g]);
    if (has_high) {
        vi high = load_words(p + at, stride);
        UNROLL
        for (int g = 0; g < 8; g++) out->w[g] |= spread_bits(high, g);
    }
    if (has_min) {
        vi both = load_words(p, stride);
        out->d = f16_low(both);
        out->m = f16_low(shr(both, 16));
    } else {
        out->d = load_halves(p, stride);
    }
}

/* q4_K and q5_K. The 16 bytes d, dmin, scales[12] are one transposing load; the four 6-bit values
 * of a dword are unpacked together. */
ALWAYS_INLINE void unpack_k(hdl_dtype dtype, const uint8_t *p, int64_t stride, packed *out)
{
    const bool has_high = dtype == HDL_Q5_K;
    vi head[4], high[8];
    load_cols(p, stride, head);
    vf d = f16_low(head[0]), dmin = -f16_low(shr(head[0], 16));
    vi six = vi_set1(0x3f3f3f3f), top = vi_set1(0x30303030);
    vi sc[2] = {head[1] & six, low_nibbles(head[3]) | (shr(head[1], 2) & top)};
    vi mn[2] = {head[2] & six, high_nibbles(head[3]) | (shr(head[2], 2) & top)};
    if (has_high) {
        load_cols(p + 16, stride, high);
        load_cols(p + 32, stride, high + 4);
    }
    UNROLL
    for (int c = 0; c < 4; c++) {
        packed *low = out + 2 * c;
        vi cols[8];
        const uint8_t *codes = p + (has_high ? 48 : 16) + 32 * c;
        load_cols(codes, stride, cols);
        load_cols(codes + 16, stride, cols + 4);
        UNROLL
        for (int h = 0; h < 2; h++) {
            const int j = 2 * c + h;
            for (int g = 0; g < 8; g++) {
                vi w = h ? high_nibbles(cols[g]) : low_nibbles(cols[g]);
                if (has_high) w |= (shr(high[g], j) & vi_set1(0x01010101)) << 4;
                low[h].w[g] = w;
            }
            low[h].d = d * to_f32(shr(sc[j / 4], 8 * (j % 4)) & vi_set1(255));
            low[h].m = dmin * to_f32(shr(mn[j / 4], 8 * (j % 4)) & vi_set1(255));
        }
    }
}

NEVER_INLINE void unpack_q6_k(const uint8_t *p, int64_t stride, packed *out)
{
    vf d = load_halves(p + 208, stride);
    vi scales[4];
    load_cols(p + 192, stride, scales);
    UNROLL
    for (int half = 0; half < 2; half++) {
        UNROLL
        for (int piece = 0; piece < 2; piece++) { /* elements 16 * piece.. of each block */
            vi ql0[4], ql1[4], qh[4];
            load_cols(p + 64 * half + 16 * piece, stride, ql0);
            load_cols(p + 64 * half + 32 + 16 * piece, stride, ql1);
            load_cols(p + 128 + 32 * half + 16 * piece, stride, qh);
            packed *b = out + 4 * half;
            for (int g = 0; g < 4; g++) {
                vi top = vi_set1(0x30303030), h = qh[g];
                b[0].w[4 * piece + g] = low_nibbles(ql0[g]) | ((h << 4) & top);
                b[1].w[4 * piece + g] = low_nibbles(ql1[g]) | ((h << 2) & top);
                b[2].w[4 * piece + g] = high_nibbles(ql0[g]) | (h & top);
                b[3].w[4 * piece + g] = high_nibbles(ql1[g]) | (shr(h, 2) & top);
            }
        }
        for (int n = 0; n < 4; n++) {
            const int s = 8 * half + 2 * n; /* int8 scales s and s + 1 */
            out[4 * half + n].d = d * to_f32((scales[s / 4] << (24 - 8 * (s % 4))) >> 24);
            out[4 * half + n].m = d * to_f32((scales[s / 4] << (16 - 8 * (s % 4))) >> 24);
        }
    }
}

NEVER_INLINE void unpack_q4_k(const uint8_t *p, int64_t stride, packed *out)
{
    unpack_k(HDL_Q4_K, p, stride, out);
}
NEVER_INLINE void unpack_q5_k(const uint8_t *p, int64_t stride, packed *out)
{
    unpack_k(HDL_Q5_K, p, stride, out);
}

/* kind_of(dtype).n_blocks blocks at p of each row. `dtype` is a constant where this is inlined;
 * formats of 256 are calls, because their blocks pass through memory anyway. */
ALWAYS_INLINE void unpack_blocks(hdl_dtype dtype, const uint8_t *p, int64_t stride, packed *out)
{
    switch (dtype) {
        case HDL_Q8_0: unpack_q8_0(p, stride, out); break;
        case HDL_Q4_K: unpack_q4_k(p, stride, out); break;
        case HDL_Q5_K: unpack_q5_k(p, stride, out); break;
        case HDL_Q6_K: unpack_q6_k(p, stride, out); break;
        default: unpack_nibbles(dtype, p, stride, out); break;
    }
}

#endif
