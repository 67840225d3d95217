/* linear_act.h - the rows of x, rounded to int8 (quantise.h is the norm), in the workspace.
 *
 * Beside q and d stand the sums that take zero points and minima out of unsigned codes: only those
 * that some part of the call needs. Bytes: 4 n_in read, about 1.5 n_in written per row. */
#ifndef HDL_LINEAR_ACT_H
#define HDL_LINEAR_ACT_H

#include "backend/cpu/linear_quant.h"
#include "backend/cpu/quantise.h"
#include "backend/op.h"

enum { MAX_ZERO_LOG2 = 7 };

/* The workspace of the rounded rows. */
typedef struct qspace {
    int64_t n_blocks, group;
    int8_t *q;
    float *d, *ds;
    int32_t *zero[MAX_ZERO_LOG2 + 1]; /* by log2 of the zero point; [5] holds halves */
    int64_t bytes;
} qspace;

static inline uint8_t *carve(uint8_t *base, int64_t *used, int64_t bytes)
{
    uint8_t *at = base ? base + *used : NULL;
    *used += HDL_ALIGN_UP(bytes, 64);
    return at;
}

/* Lays the space out at `base`; NULL only counts. */
static inline qspace qspace_of(const hdl_linear_args *a, uint8_t *base)
{
    qspace s = {.n_blocks = a->n_in / HDL_QBLOCK, .group = HDL_MIN(a->n_rows, (int64_t)GROUP)};
    int64_t n = HDL_ALIGN_UP(a->n_rows, s.group) * s.n_blocks;
    bool is_used = false, has_min = false, has_zero[MAX_ZERO_LOG2 + 1] = {false};
    for (int32_t p = 0; p < a->n_parts; p++) {
        if (!hdl_dtype_of(a->part[p].w.dtype)->is_quantised) continue;
        code_kind kind = kind_of(a->part[p].w.dtype);
        is_used = true;
        has_min |= kind.has_min;
        has_zero[kind.zero_log2] = true;
    }
    if (!is_used) return s;
    s.q = (int8_t *)carve(base, &s.bytes, n * HDL_QBLOCK);
    s.d = (float *)carve(base, &s.bytes, n * 4);
    if (has_min) s.ds = (float *)carve(base, &s.bytes, n * 4);
    for (int z = 1; z <= MAX_ZERO_LOG2; z++)
        if (has_zero[z]) s.zero[z] = (int32_t *)carve(base, &s.bytes, n * (z == 5 ? 8 : 4));
    return s;
}

/* The group that starts at `row`, as the kernels of one weight type see it. */
static inline qrows qrows_at(const qspace *s, code_kind kind, int64_t row)
{
    qrows x = {s->q, s->d, s->ds, kind.zero_log2 ? s->zero[kind.zero_log2] : NULL, s->n_blocks, s->group};
    qrows_skip(&x, row / s->group * s->n_blocks, kind);
    return x;
}

#if defined(HDL_ISA_avx512)
ALWAYS_INLINE int32_t largest_bits(const float *x)
{
    __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 16), mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask)));
}
/* 16 elements; returns their sum. */
ALWAYS_INLINE int32_t round_16(const float *x, float factor, int8_t *q)
{
    __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(factor)));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(v));
    return _mm512_reduce_add_epi32(v);
}
#else
ALWAYS_INLINE int32_t largest_bits(const float *x)
{
    __m256i mask = _mm256_set1_epi32(0x7fffffff), top = _mm256_setzero_si256();
    for (int i = 0; i < 32; i += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), mask));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}
ALWAYS_INLINE int32_t round_16(const float *x, float factor, int8_t *q)
{
    __m256 f = _mm256_set1_ps(factor);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)q, bytes);
    a = _mm256_add_epi32(a, b);
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}
#endif

/* Rounds row `row` of the call into the space. */
static inline void quantise_row(const qspace *s, const float *x, int64_t row)
{
    int64_t at = row / s->group * s->n_blocks * s->group + row % s->group;
    for (int64_t b = 0; b < s->n_blocks; b++, at += s->group, x += 32) {
        int8_t *q = s->q + at * 32;
        float d, factor = hdl_qscale(largest_bits(x), &d);
        int32_t sum[2] = {0, 0};
        if (factor == 0) {
            memset(q, 0, 32);
        } else {
            sum[0] = round_16(x, factor, q);
            sum[1] = round_16(x + 16, factor, q + 16);
        }
        s->d[at] = d;
        if (s->ds) s->ds[at] = d * (float)(sum[0] + sum[1]);
        if (s->zero[3]) s->zero[3][at] = -8 * (sum[0] + sum[1]);
        if (s->zero[4]) s->zero[4][at] = -16 * (sum[0] + sum[1]);
        if (s->zero[7]) s->zero[7][at] = -128 * (sum[0] + sum[1]);
        if (!s->zero[5]) continue;
        int32_t *halves = s->zero[5] + at + (row / s->group * s->n_blocks + b) * s->group;
        halves[0] = -32 * sum[0];
        halves[s->group] = -32 * sum[1];
    }
}

#endif
