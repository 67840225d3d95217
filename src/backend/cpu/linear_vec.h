/* linear_vec.h - the vectors of the linear kernels (AVX-512: 16 lanes, AVX2: 8); no algorithms.
 *
 * A lane is an output: lane i of every vector belongs to weight row i of a tile. The many-row kernels
 * multiply GROUP rows of x with TILES tiles: accumulators for sums and results fill the registers. The arithmetic of
 * GCC's vector types is used where it says enough (+ & | << >>, conversion); intrinsics stand here
 * only for transposing loads, f16, fma and int8 products. Only `static inline` may stand here. */
#ifndef HDL_LINEAR_VEC_H
#define HDL_LINEAR_VEC_H

#include <immintrin.h>
#include <string.h>

#include "base/base.h"

#define UNCHECKED     no_sanitize("address", "undefined")
#define ALWAYS_INLINE static inline __attribute__((always_inline, UNCHECKED))
/* Kernel bodies are outside the sanitizers: thousands of checked loads in one unrolled body take
 * minutes to compile. The test puts every buffer against an unreadable page instead. */
#define NEVER_INLINE static __attribute__((noinline, UNCHECKED))
/* Before a loop whose trip count is a constant once inlined: arrays indexed by it stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(HDL_ISA_avx512)
enum { LANES = 16, GROUP = 6, TILES = 2 };
#else
enum { LANES = 8, GROUP = 4, TILES = 1 };
#endif
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef float vf __attribute__((vector_size(LANES * 4)));

ALWAYS_INLINE int32_t load_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}
ALWAYS_INLINE short load_i16(const void *p)
{
    short v;
    memcpy(&v, p, 2);
    return v;
}
ALWAYS_INLINE __m128i load_16b(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}
/* Weights are prefetched in the order of their addresses, a tile and 4 KiB ahead of the work: a tile is
 * read in strides of its rows, so that all of it must have been asked for before it begins, and the
 * hardware follows only ascending addresses. One line of each step is asked for 16 KiB earlier: it
 * finds the page and sets the hardware off (one thread of Zen 5, cold: Q8_0 +15 %, Q4_1 as before). */
enum { PREFETCH_AHEAD_BYTES = 4096, PREFETCH_FAR_BYTES = 16384 };
ALWAYS_INLINE void prefetch(const uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 3);
}
/* What a thread reads, as far as it is known: bytes up to `end`, then those at `then`. */
typedef struct stream {
    const uint8_t *at, *end, *then;
} stream;
ALWAYS_INLINE void prefetch_stream(stream *s, int64_t n)
{
    const uint8_t *far = s->at + PREFETCH_FAR_BYTES;
    if (far >= s->end) far = s->then + (far - s->end);
    prefetch(s->at, n);
    __builtin_prefetch(far, 0, 2);
    s->at += n;
    if (s->at < s->end) return;
    s->at = s->then;
    s->end = (const uint8_t *)UINTPTR_MAX;
}
ALWAYS_INLINE vf to_f32(vi v)
{
    return __builtin_convertvector(v, vf);
}
ALWAYS_INLINE vi shr(vi v, int n)
{
    return (vi)((vu)v >> n);
} /* zeros come in */

#if defined(HDL_ISA_avx512)
ALWAYS_INLINE vi vi_set1(int32_t x)
{
    return (vi)_mm512_set1_epi32(x);
}
ALWAYS_INLINE vf vf_set1(float x)
{
    return (vf)_mm512_set1_ps(x);
}
ALWAYS_INLINE vf vf_load(const float *p)
{
    return (vf)_mm512_loadu_ps(p);
}
ALWAYS_INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, (__m512)v);
}
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
/* Stores lanes skip..15. */
ALWAYS_INLINE void vf_store_from(float *p, vf v, int skip)
{
    _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu << skip), (__m512)v);
}
ALWAYS_INLINE vf vf_load_from(const float *p, int skip)
{
    return (vf)_mm512_maskz_loadu_ps((__mmask16)(0xffffu << skip), p);
}
/* The f16 in the low half of each lane. */
ALWAYS_INLINE vf f16_low(vi v)
{
    return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)v));
}

ALWAYS_INLINE __m512i four_rows(const uint8_t *p, int64_t stride)
{
    __m256i lo = _mm256_inserti128_si256(_mm256_castsi128_si256(load_16b(p)), load_16b(p + 4 * stride), 1);
    __m256i hi = _mm256_inserti128_si256(_mm256_castsi128_si256(load_16b(p + 8 * stride)),
                                         load_16b(p + 12 * stride), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}
/* 16 bytes at p of each of 16 rows: c[j] lane i = dword j of row i. */
ALWAYS_INLINE void load_cols(const uint8_t *p, int64_t stride, vi c[4])
{
    __m512i r0 = four_rows(p, stride), r1 = four_rows(p + stride, stride);
    __m512i r2 = four_rows(p + 2 * stride, stride), r3 = four_rows(p + 3 * stride, stride);
    __m512i t0 = _mm512_unpacklo_epi32(r0, r1), t1 = _mm512_unpackhi_epi32(r0, r1);
    __m512i t2 = _mm512_unpacklo_epi32(r2, r3), t3 = _mm512_unpackhi_epi32(r2, r3);
    c[0] = (vi)_mm512_unpacklo_epi64(t0, t2);
    c[1] = (vi)_mm512_unpackhi_epi64(t0, t2);
    c[2] = (vi)_mm512_unpacklo_epi64(t1, t3);
    c[3] = (vi)_mm512_unpackhi_epi64(t1, t3);
}
ALWAYS_INLINE __m128i four_words(const uint8_t *p, int64_t stride)
{
    return _mm_setr_epi32(load_i32(p), load_i32(p + stride), load_i32(p + 2 * stride),
                          load_i32(p + 3 * stride));
}
/* The 4 bytes at p of each row. */
ALWAYS_INLINE vi load_words(const uint8_t *p, int64_t stride)
{
    __m256i lo = _mm256_inserti128_si256(_mm256_castsi128_si256(four_words(p, stride)),
                                         four_words(p + 4 * stride, stride), 1);
    __m256i hi = _mm256_inserti128_si256(_mm256_castsi128_si256(four_words(p + 8 * stride, stride)),
                                         four_words(p + 12 * stride, stride), 1);
    return (vi)_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}
ALWAYS_INLINE __m128i eight_halves(const uint8_t *p, int64_t s)
{
    return _mm_setr_epi16(load_i16(p), load_i16(p + s), load_i16(p + 2 * s), load_i16(p + 3 * s),
                          load_i16(p + 4 * s), load_i16(p + 5 * s), load_i16(p + 6 * s), load_i16(p + 7 * s));
}
/* The f16 at p of each row. */
ALWAYS_INLINE vf load_halves(const uint8_t *p, int64_t stride)
{
    __m128i hi = eight_halves(p + 8 * stride, stride);
    return (vf)_mm512_cvtph_ps(
        _mm256_inserti128_si256(_mm256_castsi128_si256(eight_halves(p, stride)), hi, 1));
}
/* 0x10 in byte e of each lane whose bit 4g + e of `bits` is set. */
ALWAYS_INLINE vi spread_bits(vi bits, int g)
{
    __m512i at = _mm512_set1_epi32(0x01010101 * (g / 2));
    __m512i rows = _mm512_shuffle_epi8(
        (__m512i)bits, _mm512_or_si512(at, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0)));
    __m512i want = _mm512_set1_epi32(g & 1 ? (int32_t)0x80402010u : 0x08040201);
    return (vi)_mm512_maskz_mov_epi8(_mm512_test_epi8_mask(rows, want), _mm512_set1_epi8(16));
}
#else
ALWAYS_INLINE vi vi_set1(int32_t x)
{
    return (vi)_mm256_set1_epi32(x);
}
ALWAYS_INLINE vf vf_set1(float x)
{
    return (vf)_mm256_set1_ps(x);
}
ALWAYS_INLINE vf vf_load(const float *p)
{
    return (vf)_mm256_loadu_ps(p);
}
ALWAYS_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, (__m256)v);
}
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
ALWAYS_INLINE __m256i lanes_from(int skip)
{
    return _mm256_cmpgt_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(skip - 1));
}
ALWAYS_INLINE void vf_store_from(float *p, vf v, int skip)
{
    _mm256_maskstore_ps(p, lanes_from(skip), (__m256)v);
}
ALWAYS_INLINE vf vf_load_from(const float *p, int skip)
{
    return (vf)_mm256_maskload_ps(p, lanes_from(skip));
}
ALWAYS_INLINE vf f16_low(vi v)
{
    __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(0xffff));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
ALWAYS_INLINE __m256i two_rows(const uint8_t *p, int64_t stride)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16b(p)), load_16b(p + 4 * stride), 1);
}
/* 16 bytes at p of each of 8 rows: c[j] lane i = dword j of row i. */
ALWAYS_INLINE void load_cols(const uint8_t *p, int64_t stride, vi c[4])
{
    __m256i r0 = two_rows(p, stride), r1 = two_rows(p + stride, stride);
    __m256i r2 = two_rows(p + 2 * stride, stride), r3 = two_rows(p + 3 * stride, stride);
    __m256i t0 = _mm256_unpacklo_epi32(r0, r1), t1 = _mm256_unpackhi_epi32(r0, r1);
    __m256i t2 = _mm256_unpacklo_epi32(r2, r3), t3 = _mm256_unpackhi_epi32(r2, r3);
    c[0] = (vi)_mm256_unpacklo_epi64(t0, t2);
    c[1] = (vi)_mm256_unpackhi_epi64(t0, t2);
    c[2] = (vi)_mm256_unpacklo_epi64(t1, t3);
    c[3] = (vi)_mm256_unpackhi_epi64(t1, t3);
}
ALWAYS_INLINE vi load_words(const uint8_t *p, int64_t s)
{
    return (vi)_mm256_setr_epi32(load_i32(p), load_i32(p + s), load_i32(p + 2 * s), load_i32(p + 3 * s),
                                 load_i32(p + 4 * s), load_i32(p + 5 * s), load_i32(p + 6 * s),
                                 load_i32(p + 7 * s));
}
ALWAYS_INLINE vf load_halves(const uint8_t *p, int64_t s)
{
    return (vf)_mm256_cvtph_ps(_mm_setr_epi16(load_i16(p), load_i16(p + s), load_i16(p + 2 * s),
                                              load_i16(p + 3 * s), load_i16(p + 4 * s), load_i16(p + 5 * s),
                                              load_i16(p + 6 * s), load_i16(p + 7 * s)));
}
ALWAYS_INLINE vi spread_bits(vi bits, int g)
{
    __m256i lane = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808,
                                     0x0c0c0c0c);
    __m256i at = _mm256_or_si256(lane, _mm256_set1_epi32(0x01010101 * (g / 2)));
    __m256i want = _mm256_set1_epi32(g & 1 ? (int32_t)0x80402010u : 0x08040201);
    __m256i rows = _mm256_and_si256(_mm256_shuffle_epi8((__m256i)bits, at), want);
    return (vi)_mm256_and_si256(_mm256_cmpeq_epi8(rows, want), _mm256_set1_epi8(16));
}
#endif

/* s[r * n_tiles + t] += sum over k-groups g0..g1-1 of the products of tile t's codes w[t][g] (unsigned,
 * of `bits` bits; AVX2 takes 8-bit codes as signed) with row r of x at q + 32 r, a broadcast dword
 * per group. All counts are constants. */
#if defined(HDL_ISA_avx512)
ALWAYS_INLINE void add_products(const vi *const w[2], const int8_t *q, int n_rows, int n_tiles, int bits,
                                int g0, int g1, vi *s)
{
    (void)bits;
    UNROLL
    for (int g = g0; g < g1; g++) {
        UNROLL
        for (int r = 0; r < n_rows; r++) {
            __m512i x = _mm512_set1_epi32(load_i32(q + 32 * r + 4 * g));
            UNROLL
            for (int t = 0; t < n_tiles; t++) {
                vi *sum = &s[r * n_tiles + t];
                *sum = (vi)_mm512_dpbusd_epi32((__m512i)*sum, (__m512i)w[t][g], x);
            }
        }
    }
}
#else
/* Pair sums are int16: 2 * 127 * code fits for 8, 4, 2 groups of 4-, 5-, 6-bit codes together, and
 * once for |signed 8-bit| <= 128 (32512). */
ALWAYS_INLINE void add_products(const vi *const w[2], const int8_t *q, int n_rows, int n_tiles, int bits,
                                int g0, int g1, vi *s)
{
    const int n_together = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    (void)n_tiles; /* 1: 16 registers hold no more */
    UNROLL
    for (int g = g0; g < g1; g += n_together) {
        __m256i pairs[4];
        UNROLL
        for (int i = g; i < g + n_together; i++) {
            __m256i codes = (__m256i)w[0][i], size = bits == 8 ? _mm256_abs_epi8(codes) : codes;
            UNROLL
            for (int r = 0; r < n_rows; r++) {
                __m256i x = _mm256_set1_epi32(load_i32(q + 32 * r + 4 * i));
                if (bits == 8) x = _mm256_sign_epi8(x, codes);
                __m256i product = _mm256_maddubs_epi16(size, x);
                pairs[r] = i == g ? product : _mm256_add_epi16(pairs[r], product);
            }
        }
        UNROLL
        for (int r = 0; r < n_rows; r++) s[r] += (vi)_mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1));
    }
}
#endif

#endif
