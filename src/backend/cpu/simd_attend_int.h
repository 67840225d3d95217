/* simd_attend_int.h - the vector of attention's kernels, one per instruction set; no algorithms.
 *
 * vf is a vector of VW floats (16, 8, 4). vf_fma is fused where the instruction set has it and two
 * roundings in generic, so results differ between instruction sets by rounding only. Only `static
 * inline` may stand here: see cpu.h. */
#ifndef HDL_SIMD_ATTEND_INT_H
#define HDL_SIMD_ATTEND_INT_H

#include <math.h>
#include <string.h>

#include "backend/backend.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#if defined(HDL_ISA_avx512)
#include <immintrin.h>
typedef __m512 vf;
enum { VW = 16, THIS_ISA = HDL_ISA_AVX512 };

ALWAYS_INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
ALWAYS_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
ALWAYS_INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
ALWAYS_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
ALWAYS_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
ALWAYS_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
ALWAYS_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
ALWAYS_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
ALWAYS_INLINE vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
ALWAYS_INLINE vf vf_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
ALWAYS_INLINE vf vf_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
/* VW elements of a q4_1 block (f16 d | f16 m | 16 bytes of codes) from element i: d q + m, rounded once. */
ALWAYS_INLINE vf vf_load_q4(const uint8_t *block, int64_t i)
{
    const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint16_t d, m;
    memcpy(&d, block, sizeof d);
    memcpy(&m, block + 2, sizeof m);
    __m512 levels = _mm512_fmadd_ps(all, _mm512_cvtph_ps(_mm256_set1_epi16((int16_t)d)),
                                    _mm512_cvtph_ps(_mm256_set1_epi16((int16_t)m)));
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(block + 4)));
    if (i & 16) codes = _mm512_srli_epi32(codes, 4);
    return _mm512_permutexvar_ps(codes, levels); /* looks at the low 4 bits */
}
/* Lane i is table[index[i]], of 32 floats. */
ALWAYS_INLINE vf vf_look_up(const float *table, const int32_t *index)
{
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), _mm512_loadu_si512(index),
                                  _mm512_loadu_ps(table + 16));
}
/* Copies the sign bit of b onto a >= 0. */
ALWAYS_INLINE vf vf_sign_of(vf a, vf b)
{
    __m512i sign = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(INT32_MIN));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), sign));
}
ALWAYS_INLINE vf vf_abs(vf a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MAX)));
}
ALWAYS_INLINE bool vf_any_above(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
/* Lanes [begin, end) of v, -inf elsewhere; begin and end may lie outside 0..VW. */
ALWAYS_INLINE vf vf_keep(vf v, int64_t begin, int64_t end)
{
    uint32_t low = begin <= 0 ? 0xffff : begin >= 16 ? 0 : 0xffffu << begin;
    uint32_t high = end <= 0 ? 0 : end >= 16 ? 0xffff : ~(0xffffu << end);
    return _mm512_mask_blend_ps((__mmask16)(low & high), _mm512_set1_ps(-INFINITY), v);
}
ALWAYS_INLINE float vf_sum(vf v)
{
    return _mm512_reduce_add_ps(v);
}
ALWAYS_INLINE float vf_top(vf v)
{
    return _mm512_reduce_max_ps(v);
}
/* poly * 2^n where t = 1.5 * 2^23 + n; 0 where x is below the bound. */
ALWAYS_INLINE vf vf_scale_pow2(vf poly, vf t, vf x, vf bound)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    __mmask16 is_in = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(is_in, _mm512_castps_si512(poly), n));
}
/* Sums of VW vectors by lanes in two steps: for i < VW/4, vf_fold4 of the vectors of tokens
 * FOLD_STRIDE i + FOLD_TOKEN[0..3]; then vf_fold_last of these, whose lane t is the sum of token t's. */
enum { FOLD_STRIDE = 1 };
static const int8_t FOLD_TOKEN[4] = {0, 4, 8, 12};
ALWAYS_INLINE vf vf_fold4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
    vf cd = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, c, d), _mm512_shuffle_f32x4(c, d, 0x4e));
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
ALWAYS_INLINE vf vf_fold_last(const vf *p)
{
    vf u = _mm512_add_ps(_mm512_unpacklo_ps(p[0], p[1]), _mm512_unpackhi_ps(p[0], p[1]));
    vf w = _mm512_add_ps(_mm512_unpacklo_ps(p[2], p[3]), _mm512_unpackhi_ps(p[2], p[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(u, w, 0x44), _mm512_shuffle_ps(u, w, 0xee));
}
/* Rows become columns, in place. */
ALWAYS_INLINE void vf_transpose(vf r[VW])
{
    vf t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#elif defined(HDL_ISA_avx2)
#include <immintrin.h>
typedef __m256 vf;
enum { VW = 8, THIS_ISA = HDL_ISA_AVX2 };

ALWAYS_INLINE vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
ALWAYS_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
ALWAYS_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
ALWAYS_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
ALWAYS_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
ALWAYS_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
ALWAYS_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
ALWAYS_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
ALWAYS_INLINE vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
ALWAYS_INLINE vf vf_load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
ALWAYS_INLINE vf vf_load_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
ALWAYS_INLINE vf vf_load_q4(const uint8_t *block, int64_t i)
{
    uint16_t d, m;
    memcpy(&d, block, sizeof d);
    memcpy(&m, block + 2, sizeof m);
    __m128i codes = _mm_loadl_epi64((const __m128i *)(const void *)(block + 4 + (i & 8)));
    if (i & 16) codes = _mm_srli_epi16(codes, 4);
    codes = _mm_and_si128(codes, _mm_set1_epi8(15));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)),
                           _mm256_cvtph_ps(_mm_set1_epi16((int16_t)d)),
                           _mm256_cvtph_ps(_mm_set1_epi16((int16_t)m)));
}
ALWAYS_INLINE vf vf_look_up(const float *table, const int32_t *index)
{
    return _mm256_i32gather_ps(table, _mm256_loadu_si256((const __m256i *)(const void *)index), 4);
}
ALWAYS_INLINE vf vf_sign_of(vf a, vf b)
{
    return _mm256_or_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0f)));
}
ALWAYS_INLINE vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
ALWAYS_INLINE bool vf_any_above(vf a, vf b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
ALWAYS_INLINE vf vf_keep(vf v, int64_t begin, int64_t end)
{
    int32_t low = (int32_t)(begin < 0   ? 0
                            : begin > 8 ? 8
                                        : begin),
            high = (int32_t)(end < 0   ? 0
                             : end > 8 ? 8
                                       : end);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i is_in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane),
                                        _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), v, _mm256_castsi256_ps(is_in));
}
ALWAYS_INLINE float vf_sum(vf v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
ALWAYS_INLINE float vf_top(vf v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
ALWAYS_INLINE vf vf_scale_pow2(vf poly, vf t, vf x, vf bound)
{
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    vf y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(poly), n));
    return _mm256_and_ps(y, _mm256_cmp_ps(x, bound, _CMP_GE_OQ));
}
enum { FOLD_STRIDE = 2 };
static const int8_t FOLD_TOKEN[4] = {0, 1, 4, 5};
ALWAYS_INLINE vf vf_fold4(vf a, vf b, vf c, vf d)
{
    vf x = _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
    vf y = _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
    return _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
}
ALWAYS_INLINE vf vf_fold_last(const vf *p)
{
    return _mm256_add_ps(_mm256_shuffle_ps(p[0], p[1], 0x44), _mm256_shuffle_ps(p[0], p[1], 0xee));
}
ALWAYS_INLINE void vf_transpose(vf r[VW])
{
    vf t[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

#else
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vf_int __attribute__((vector_size(16)));
typedef uint16_t vf_half __attribute__((vector_size(8)));
typedef int8_t vf_byte __attribute__((vector_size(4)));
enum { VW = 4, THIS_ISA = HDL_ISA_GENERIC };

ALWAYS_INLINE vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}
ALWAYS_INLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
ALWAYS_INLINE void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
ALWAYS_INLINE vf vf_add(vf a, vf b)
{
    return a + b;
}
ALWAYS_INLINE vf vf_sub(vf a, vf b)
{
    return a - b;
}
ALWAYS_INLINE vf vf_mul(vf a, vf b)
{
    return a * b;
}
ALWAYS_INLINE vf vf_div(vf a, vf b)
{
    return a / b;
}
ALWAYS_INLINE vf vf_pick(vf_int is_a, vf a, vf b)
{
    return (vf)(((vf_int)a & is_a) | ((vf_int)b & ~is_a));
}
ALWAYS_INLINE vf vf_max(vf a, vf b)
{
    return vf_pick(a > b, a, b);
}
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
ALWAYS_INLINE vf vf_load_f16(const void *p)
{
    vf_half h;
    memcpy(&h, p, sizeof h);
    vf_int x = __builtin_convertvector(h, vf_int), rest = (x & 0x7fff) << 13;
    vf_int y = (vf_int)((vf)rest * 0x1p112f); /* the exponent's bias; subnormals come out right */
    y |= (rest >= 0x7c00 << 13) & 0x7f800000; /* infinities and NaN */
    return (vf)(y | ((x & 0x8000) << 16));
}
ALWAYS_INLINE vf vf_load_bf16(const void *p)
{
    vf_half h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vf_int) << 16);
}
ALWAYS_INLINE vf vf_load_i8(const void *p)
{
    vf_byte b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vf);
}
/* d q has 15 bits, so that the product is exact and only the sum rounds. */
ALWAYS_INLINE vf vf_load_q4(const uint8_t *block, int64_t i)
{
    uint16_t half[2][4];
    vf x;
    for (int t = 0; t < VW; t++) {
        memcpy(&half[0][t], block, sizeof half[0][t]);
        memcpy(&half[1][t], block + 2, sizeof half[1][t]);
        x[t] = (float)(block[4 + (i & 15) + t] >> (i & 16 ? 4 : 0) & 15);
    }
    return x * vf_load_f16(half[0]) + vf_load_f16(half[1]);
}
ALWAYS_INLINE vf vf_look_up(const float *table, const int32_t *index)
{
    return (vf){table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
ALWAYS_INLINE vf vf_sign_of(vf a, vf b)
{
    return (vf)((vf_int)a | ((vf_int)b & INT32_MIN));
}
ALWAYS_INLINE vf vf_abs(vf a)
{
    return (vf)((vf_int)a & INT32_MAX);
}
ALWAYS_INLINE bool vf_any_above(vf a, vf b)
{
    vf_int above = a > b;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}
ALWAYS_INLINE vf vf_keep(vf v, int64_t begin, int64_t end)
{
    int32_t low = (int32_t)(begin < 0   ? 0
                            : begin > 4 ? 4
                                        : begin),
            high = (int32_t)(end < 0   ? 0
                             : end > 4 ? 4
                                       : end);
    vf_int lane = {0, 1, 2, 3};
    return vf_pick((lane >= low) & (lane < high), v, vf_set1(-INFINITY));
}
ALWAYS_INLINE float vf_sum(vf v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}
ALWAYS_INLINE float vf_top(vf v)
{
    return HDL_MAX(HDL_MAX(v[0], v[1]), HDL_MAX(v[2], v[3]));
}
ALWAYS_INLINE vf vf_scale_pow2(vf poly, vf t, vf x, vf bound)
{
    return (vf)(((vf_int)poly + ((vf_int)t << 23)) & (x >= bound));
}
enum { FOLD_STRIDE = 4 };
static const int8_t FOLD_TOKEN[4] = {0, 1, 2, 3};
ALWAYS_INLINE void vf_transpose(vf r[VW])
{
    vf a = {r[0][0], r[1][0], r[2][0], r[3][0]}, b = {r[0][1], r[1][1], r[2][1], r[3][1]};
    vf c = {r[0][2], r[1][2], r[2][2], r[3][2]}, d = {r[0][3], r[1][3], r[2][3], r[3][3]};
    r[0] = a;
    r[1] = b;
    r[2] = c;
    r[3] = d;
}
ALWAYS_INLINE vf vf_fold4(vf a, vf b, vf c, vf d)
{
    vf r[4] = {a, b, c, d};
    vf_transpose(r);
    return (r[0] + r[2]) + (r[1] + r[3]);
}
ALWAYS_INLINE vf vf_fold_last(const vf *p)
{
    return p[0];
}
#endif

enum { Q4_BLOCK = 32, Q4_BYTES = 20 };

/* Bytes of n elements of a K or V row; of whole blocks, where it has blocks. */
ALWAYS_INLINE int64_t stored_bytes(hdl_dtype dtype, int64_t n)
{
    if (dtype == HDL_Q4_1) return n / Q4_BLOCK * Q4_BYTES;
    return n * (dtype == HDL_F32 ? 4 : dtype == HDL_I8 ? 1 : 2);
}

/* VW elements of a K or V row from element i; the scale of an int8 row is the caller's. */
ALWAYS_INLINE vf vf_load_as(hdl_dtype dtype, const uint8_t *row, int64_t i)
{
    switch (dtype) {
        case HDL_F16: return vf_load_f16(row + 2 * i);
        case HDL_BF16: return vf_load_bf16(row + 2 * i);
        case HDL_I8: return vf_load_i8(row + i);
        case HDL_Q4_1: return vf_load_q4(row + i / Q4_BLOCK * Q4_BYTES, i % Q4_BLOCK);
        default: return vf_load((const float *)(const void *)row + i);
    }
}

/* Elements that a loop takes in one turn, so that what a block has once is looked at once. */
ALWAYS_INLINE int64_t turn_of(hdl_dtype dtype)
{
    return dtype == HDL_Q4_1 ? Q4_BLOCK : VW;
}

/* VW elements from first + i on. i is a constant, and so is is_whole: first is a multiple of a block. */
ALWAYS_INLINE vf vf_load_turn(hdl_dtype dtype, const uint8_t *row, int64_t first, const int64_t i,
                              const bool is_whole)
{
    if (dtype == HDL_Q4_1 && is_whole)
        return vf_load_q4(row + stored_bytes(dtype, first) + i / Q4_BLOCK * Q4_BYTES, i % Q4_BLOCK);
    return vf_load_as(dtype, row, first + i);
}

/* e^x for x <= 0 and -inf: 2^n e^r, |r| <= ln 2 / 2, with a minimax polynomial (2e-8) and n added to
 * the exponent. Relative error below 1.5e-7; exactly 1 at 0 and exactly 0 below -87. */
ALWAYS_INLINE vf vf_exp(vf x)
{
    const vf magic = vf_set1(0x1.8p23f);
    vf t = vf_fma(x, vf_set1(0x1.715476p+0f), magic), n = vf_sub(t, magic);
    vf r = vf_fma(n, vf_set1(-0x1.62e4p-1f), x);
    r = vf_fma(n, vf_set1(-0x1.7f7d1cp-20f), r);
    vf y = vf_fma(r, vf_set1(0x1.6f93c6p-10f), vf_set1(0x1.12395cp-7f));
    y = vf_fma(y, r, vf_set1(0x1.55532ap-5f));
    y = vf_fma(y, r, vf_set1(0x1.555478p-3f));
    y = vf_fma(y, r, vf_set1(0.5f));
    y = vf_fma(y, r, vf_set1(1.0f));
    y = vf_fma(y, r, vf_set1(1.0f));
    return vf_scale_pow2(y, t, x, vf_set1(-87.0f));
}

/* cap * tanh(x / cap), by e^(-2|x / cap|). */
ALWAYS_INLINE vf vf_soft_cap(vf x, float cap)
{
    vf y = vf_mul(x, vf_set1(1 / cap)), e = vf_exp(vf_mul(vf_abs(y), vf_set1(-2.0f)));
    vf one = vf_set1(1.0f), t = vf_div(vf_sub(one, e), vf_add(one, e));
    return vf_mul(vf_sign_of(t, y), vf_set1(cap));
}

#endif
