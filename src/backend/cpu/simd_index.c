/* simd_index.c - SCORE by a model's own index: int8 query x int8 keys of a plane, one head; and SUMMARISE,
 * which writes the keys.
 *
 * The op is bound by memory: a token costs dim + 4 bytes read and 4 written. Sums are exact in integers and
 * the score is rounded once, so every instruction set gives the reference's bits:
 *
 *   AVX-512   u8 x i8 products want an unsigned side: k + 128 (one xor), and 128 * sum(q) off the sum
 *   AVX2      |k| x (q with k's sign), summed to 16 bits without saturation as |k|, |q| <= 127 */
#include <math.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/index_int.h"
#include "backend/cpu/simd_attend_int.h"

enum { INDEX_PAD = 64, KEY_ROWS = 64 };

typedef struct index_query {
    int8_t q8[INDEX_MAX_DIM]; /* zeroes behind the last element, to a multiple of INDEX_PAD */
    int32_t sum;              /* of q8 */
} index_query;

static int32_t one_dot(const index_query *q, const int8_t *k, int64_t dim)
{
    int32_t dot = 0;
    for (int64_t i = 0; i < dim; i++) dot += (int32_t)q->q8[i] * k[i];
    return dot;
}

#if defined(HDL_ISA_avx512)
enum { GROUP = 16 };

/* Lane j of the result: the sum of all lanes of x[j]. */
ALWAYS_INLINE __m512i sum_lanes(const __m512i x[GROUP])
{
    __m512i four[4];
    for (int i = 0; i < 4; i++) {
        const __m512i *at = x + 4 * i;
        __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(at[0], at[1]),
                                     _mm512_unpackhi_epi32(at[0], at[1]));
        __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(at[2], at[3]),
                                     _mm512_unpackhi_epi32(at[2], at[3]));
        four[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    __m512i a = _mm512_add_epi32(_mm512_shuffle_i64x2(four[0], four[1], 0x88),
                                 _mm512_shuffle_i64x2(four[0], four[1], 0xdd));
    __m512i b = _mm512_add_epi32(_mm512_shuffle_i64x2(four[2], four[3], 0x88),
                                 _mm512_shuffle_i64x2(four[2], four[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}

/* Scores of GROUP keys, `stride` bytes from one to the next. */
ALWAYS_INLINE void score_group(const index_query *q, const int8_t *k, int64_t stride, int64_t dim,
                               const float *scale, float *out)
{
    __m512i sums[GROUP], flip = _mm512_set1_epi8((char)0x80);
    for (int j = 0; j < GROUP; j++) sums[j] = _mm512_setzero_si512();
    for (int64_t d = 0; d < dim; d += 64) {
        __mmask64 mask = dim - d >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (dim - d)) - 1;
        __m512i query = _mm512_loadu_si512(q->q8 + d);
        for (int j = 0; j < GROUP; j++) {
            __m512i key = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, k + j * stride + d), flip);
            sums[j] = _mm512_dpbusd_epi32(sums[j], key, query);
        }
    }
    __m512i dots = _mm512_sub_epi32(sum_lanes(sums), _mm512_set1_epi32(128 * q->sum));
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_loadu_ps(scale)));
}
#elif defined(HDL_ISA_avx2)
enum { GROUP = 8 };

ALWAYS_INLINE __m256i sum_lanes(const __m256i x[GROUP])
{
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

ALWAYS_INLINE void score_group(const index_query *q, const int8_t *k, int64_t stride, int64_t dim,
                               const float *scale, float *out)
{
    __m256i sums[GROUP], ones = _mm256_set1_epi16(1);
    int64_t whole = dim / 32 * 32;
    int32_t rest[GROUP];
    for (int j = 0; j < GROUP; j++) sums[j] = _mm256_setzero_si256();
    for (int64_t d = 0; d < whole; d += 32) {
        __m256i query = _mm256_loadu_si256((const __m256i *)(const void *)(q->q8 + d));
        for (int j = 0; j < GROUP; j++) {
            __m256i key = _mm256_loadu_si256((const __m256i *)(const void *)(k + j * stride + d));
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(key), _mm256_sign_epi8(query, key));
            sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(pairs, ones));
        }
    }
    for (int j = 0; j < GROUP; j++) {
        rest[j] = 0;
        for (int64_t d = whole; d < dim; d++) rest[j] += (int32_t)q->q8[d] * k[j * stride + d];
    }
    __m256i dots = _mm256_add_epi32(sum_lanes(sums), _mm256_loadu_si256((const __m256i *)(const void *)rest));
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_loadu_ps(scale)));
}
#else
enum { GROUP = 4 };

ALWAYS_INLINE void score_group(const index_query *q, const int8_t *k, int64_t stride, int64_t dim,
                               const float *scale, float *out)
{
    for (int j = 0; j < GROUP; j++) out[j] = (float)one_dot(q, k + j * stride, dim) * scale[j];
}
#endif

/* n keys that lie one after another. */
static void score_run(const index_query *q, const int8_t *k, const float *scale, int64_t dim, int64_t n,
                      float *out)
{
    int64_t j = 0;
    for (; j + GROUP <= n; j += GROUP) score_group(q, k + j * dim, dim, dim, scale + j, out + j);
    for (; j < n; j++) out[j] = (float)one_dot(q, k + j * dim, dim) * scale[j];
}

/* Entries [begin, end) of the plane, of `block` tokens each, page by page. */
static void score_entries(const index_query *q, const hdl_kv_view *kv, int64_t block, int64_t begin,
                          int64_t end, float *out)
{
    const hdl_kv_plane *plane = &kv->plane[0];
    int64_t dim = plane->dim, in_page = ((int64_t)1 << kv->page_shift) / block;
    for (int64_t at = begin; at < end;) {
        int64_t n = HDL_MIN(end, (at / in_page + 1) * in_page) - at;
        const int8_t *k = (const int8_t *)plane_at(kv, plane->offset, at, block, dim);
        const float *scale = (const float *)(const void *)plane_at(kv, plane->scale_offset, at, block, 4);
        score_run(q, k, scale, dim, n, out + at);
        at += n;
    }
}

/* Steps [begin, end) of a row's candidates; the tokens of a block lie side by side, up to the page's end. */
static void score_candidates(const index_query *q, const kv_walk *walk, int64_t begin, int64_t end,
                             float *out)
{
    const hdl_kv_plane *plane = &walk->kv->plane[0];
    int64_t page_tokens = (int64_t)1 << walk->kv->page_shift, n;
    for (int64_t step = begin; step < end; step += n) {
        int64_t token = walk_token(walk, step);
        n = HDL_MIN(walk->size - step % walk->size, page_tokens - (token & (page_tokens - 1)));
        n = HDL_MIN(n, end - step);
        const uint8_t *scale = plane_at(walk->kv, plane->scale_offset, token, 1, 4);
        score_run(q, (const int8_t *)plane_at(walk->kv, plane->offset, token, 1, plane->dim),
                  (const float *)(const void *)scale, plane->dim, n, out + step);
    }
}

static void load_query(const hdl_score_args *args, int64_t row, index_query *q)
{
    int64_t dim = args->head_dim;
    quantise_i8(args->q + row * args->q_stride, q->q8, dim);
    memset(q->q8 + dim, 0, (size_t)(HDL_ALIGN_UP(dim, INDEX_PAD) - dim));
    q->sum = 0;
    for (int64_t i = 0; i < dim; i++) q->sum += q->q8[i];
}

static void score_rows(const hdl_score_args *args, const hdl_attend_seq *seq, int64_t first, int32_t n_rows,
                       int64_t begin)
{
    for (int64_t row = first; row < first + n_rows; row++) {
        int64_t visible = index_visible(seq, row), block = args->block_size;
        int64_t n = whole_entries(args->plane, visible, block);
        float *out = args->score + row * args->score_stride;
        kv_walk walk = {0};
        index_query q;
        if (args->has_candidates) {
            walk = candidate_walk(args->candidates, &seq->kv, row, 0, visible);
            n = walk.end;
        } else if (begin == 0 && n * block < visible)
            out[n] = -INFINITY; /* the row's own block */
        int64_t end = HDL_MIN(begin + INDEX_RUN, n);
        if (begin >= end) continue;
        load_query(args, row, &q);
        if (args->has_candidates)
            score_candidates(&q, &walk, begin, end, out);
        else
            score_entries(&q, &seq->kv, block, begin, end, out);
    }
}

static const char *index_why_not(const void *op)
{
    return index_refusal(op);
}

static void score_index(const hdl_launch *launch, const void *op)
{
    index_score(launch, op, score_rows);
}

/* ---- SUMMARISE ---- */

static const char *summarise_why_not(const void *op)
{
    const hdl_summarise_args *args = op;
    if (args->kind != HDL_PLANE_INDEX && args->kind != HDL_PLANE_INDEX_MEAN)
        return "not a plane of index keys";
    return args->kv.plane[0].dim > INDEX_MAX_DIM ? "index keys wider than 1024" : NULL;
}

/* Entry `entry` of the plane that is written, `block` tokens each: the int8 form of x and its scale. */
static void store_key(const hdl_summarise_args *args, int64_t entry, int64_t block, const float *x)
{
    const hdl_kv_plane *plane = &args->kv.plane[0];
    uint8_t *out = plane_at(&args->kv, plane->offset, entry, block, plane->dim);
    float scale = quantise_i8(x, (int8_t *)out, plane->dim);
    memcpy(plane_at(&args->kv, plane->scale_offset, entry, block, sizeof scale), &scale, sizeof scale);
}

static void summarise_rows(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_summarise_args *args = arg;
    int64_t end = HDL_MIN((task + 1) * KEY_ROWS, args->n_rows);
    for (int64_t row = task * KEY_ROWS; row < end; row++)
        store_key(args, args->first_token + row, 1, args->x + row * args->x_stride);
}

/* The mean of the n keys from token `first` on, all of one page; every sum in the order of the tokens. */
ALWAYS_INLINE void mean_key(const hdl_summarise_args *args, int64_t first, int64_t n, float *mean)
{
    const hdl_kv_plane *keys = &args->kv.plane[1];
    int64_t dim = keys->dim, i = 0;
    const int8_t *key = (const int8_t *)plane_at(&args->kv, keys->offset, first, 1, dim);
    const float *scale = (const float *)(const void *)plane_at(&args->kv, keys->scale_offset, first, 1, 4);
    for (; i + 4 * VW <= dim; i += 4 * VW) {
        vf sum[4] = {vf_set1(0), vf_set1(0), vf_set1(0), vf_set1(0)};
        for (int64_t t = 0; t < n; t++)
            for (int j = 0; j < 4; j++)
                sum[j] = vf_add(sum[j], vf_mul(vf_load_i8(key + t * dim + i + j * VW), vf_set1(scale[t])));
        for (int j = 0; j < 4; j++) vf_store(mean + i + j * VW, sum[j]);
    }
    for (; i < dim; i++) {
        mean[i] = 0;
        for (int64_t t = 0; t < n; t++) mean[i] += (float)key[t * dim + i] * scale[t];
    }
    for (i = 0; i < dim; i++) mean[i] /= (float)n;
}

static void summarise_mean(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_summarise_args *args = arg;
    int64_t block = args->block_size, entry = args->first_token / block + task, first = entry * block;
    float mean[INDEX_MAX_DIM];
    mean_key(args, first, HDL_MIN(block, args->first_token + args->n_rows - first), mean);
    store_key(args, entry, block, mean);
}

static void summarise_index(const hdl_launch *launch, const void *op)
{
    hdl_summarise_args args = *(const hdl_summarise_args *)op;
    bool is_mean = args.kind == HDL_PLANE_INDEX_MEAN;
    int64_t of_task = is_mean ? args.block_size : KEY_ROWS;
    int64_t before = is_mean ? args.first_token % of_task : 0; /* tokens of the first block that were there */
    hdl_parallel_for(launch->n_threads, (before + args.n_rows + of_task - 1) / of_task,
                     is_mean ? summarise_mean : summarise_rows, &args);
}

const hdl_impl HDL_CPU_ROWS(index)[] = {
    {"summarise_index" HDL_ISA_SUFFIX, HDL_OP_SUMMARISE, (hdl_isa)THIS_ISA, summarise_why_not, NULL,
     summarise_index},
    {"score_index" HDL_ISA_SUFFIX, HDL_OP_SCORE, (hdl_isa)THIS_ISA, index_why_not, NULL, score_index},
    {NULL, HDL_OP_SCORE, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
