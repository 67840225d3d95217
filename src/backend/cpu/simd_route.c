/* simd_route.c - APPEND, SELECT and MERGE.
 *
 * SELECT finds the key of the k-th largest score digit by digit (11, 11 and 10 bits of an integer in
 * the scores' order) and then lists, in id order, what lies above it and the first ties. Four passes
 * over the row, no memory in n: the first counts every score in a histogram (a load, a few
 * operations of a vector and an increment each, 4 bytes a score: bound by the increments), the others
 * compare a vector at a time and touch only what matches.
 *
 * APPEND converts and scatters rows, MERGE reads every partial once: both are bound by memory. */
#include "backend/cpu/route_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_int.h"
#include "backend/cpu/simd_half.h"
#include "base/pool.h"

enum { DIGIT_BITS = 11, N_BINS = 1 << DIGIT_BITS, CHUNK = 64, APPEND_ROWS = 32, MERGE_ROWS = 64 };

/* ---- keys: int32 in the order of the scores; -0 is 0 and NaN is -inf ---- */

static int32_t key_of(float score)
{
    int32_t u;
    score = score == score ? score + 0.0f : -INFINITY;
    memcpy(&u, &score, sizeof u);
    return u ^ (u >> 31 & INT32_MAX);
}

#if defined(HDL_ISA_avx512)
ALWAYS_INLINE __m512i keys_of(const float *score)
{
    vf x = _mm512_add_ps(vf_load(score), vf_set1(0));
    x = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), vf_set1(-INFINITY));
    __m512i u = _mm512_castps_si512(x),
            flip = _mm512_and_si512(_mm512_srai_epi32(u, 31), _mm512_set1_epi32(INT32_MAX));
    return _mm512_xor_si512(u, flip);
}
ALWAYS_INLINE void keys_store(const float *score, int32_t *key, int shift)
{
    _mm512_storeu_si512(key, _mm512_sra_epi32(keys_of(score), _mm_cvtsi32_si128(shift)));
}
ALWAYS_INLINE uint32_t keys_equal(const float *score, int shift, int32_t digit)
{
    __m512i key = _mm512_sra_epi32(keys_of(score), _mm_cvtsi32_si128(shift));
    return _mm512_cmpeq_epi32_mask(key, _mm512_set1_epi32(digit));
}
ALWAYS_INLINE uint32_t keys_at_least(const float *score, int32_t bound)
{
    return _mm512_cmpge_epi32_mask(keys_of(score), _mm512_set1_epi32(bound));
}
#elif defined(HDL_ISA_avx2)
ALWAYS_INLINE __m256i keys_of(const float *score)
{
    vf x = _mm256_add_ps(vf_load(score), vf_set1(0));
    x = _mm256_blendv_ps(x, vf_set1(-INFINITY), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i u = _mm256_castps_si256(x);
    return _mm256_xor_si256(u, _mm256_and_si256(_mm256_srai_epi32(u, 31), _mm256_set1_epi32(INT32_MAX)));
}
ALWAYS_INLINE void keys_store(const float *score, int32_t *key, int shift)
{
    _mm256_storeu_si256((__m256i *)(void *)key, _mm256_sra_epi32(keys_of(score), _mm_cvtsi32_si128(shift)));
}
ALWAYS_INLINE uint32_t keys_equal(const float *score, int shift, int32_t digit)
{
    __m256i key = _mm256_sra_epi32(keys_of(score), _mm_cvtsi32_si128(shift));
    return (uint32_t)_mm256_movemask_ps(
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(key, _mm256_set1_epi32(digit))));
}
ALWAYS_INLINE uint32_t keys_at_least(const float *score, int32_t bound)
{
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(bound), keys_of(score));
    return ~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(below)) & 0xff;
}
#else
ALWAYS_INLINE void keys_store(const float *score, int32_t *key, int shift)
{
    for (int i = 0; i < VW; i++) key[i] = key_of(score[i]) >> shift;
}
ALWAYS_INLINE uint32_t keys_equal(const float *score, int shift, int32_t digit)
{
    uint32_t mask = 0;
    for (int i = 0; i < VW; i++) mask |= (uint32_t)(key_of(score[i]) >> shift == digit) << i;
    return mask;
}
ALWAYS_INLINE uint32_t keys_at_least(const float *score, int32_t bound)
{
    uint32_t mask = 0;
    for (int i = 0; i < VW; i++) mask |= (uint32_t)(key_of(score[i]) >= bound) << i;
    return mask;
}
#endif

/* Bit i: the key of score[i] is equal (at least) ..., for n <= CHUNK scores. */
ALWAYS_INLINE uint64_t chunk_equal(const float *score, int64_t n, int shift, int32_t digit)
{
    uint64_t mask = 0;
    if (n == CHUNK) {
        for (int i = 0; i < CHUNK; i += VW) mask |= (uint64_t)keys_equal(score + i, shift, digit) << i;
    } else {
        for (int64_t i = 0; i < n; i++) mask |= (uint64_t)(key_of(score[i]) >> shift == digit) << i;
    }
    return mask;
}

ALWAYS_INLINE uint64_t chunk_at_least(const float *score, int64_t n, int32_t bound)
{
    uint64_t mask = 0;
    if (n == CHUNK) {
        for (int i = 0; i < CHUNK; i += VW) mask |= (uint64_t)keys_at_least(score + i, bound) << i;
    } else {
        for (int64_t i = 0; i < n; i++) mask |= (uint64_t)(key_of(score[i]) >= bound) << i;
    }
    return mask;
}

/* ---- SELECT ---- */

/* Counts the highest digit of every key; two histograms, so that equal neighbours do not wait. */
static void count_top_digits(const float *score, int64_t n, uint32_t bins[2][N_BINS])
{
    const int shift = 32 - DIGIT_BITS;
    int32_t digit[CHUNK];
    int64_t i = 0;
    for (; i + CHUNK <= n; i += CHUNK) {
        for (int j = 0; j < CHUNK; j += VW) keys_store(score + i + j, digit + j, shift);
        for (int j = 0; j < CHUNK; j += 2) {
            bins[0][digit[j] + N_BINS / 2]++;
            bins[1][digit[j + 1] + N_BINS / 2]++;
        }
    }
    for (; i < n; i++) bins[0][(key_of(score[i]) >> shift) + N_BINS / 2]++;
    for (int j = 0; j < N_BINS; j++) bins[0][j] += bins[1][j];
}

/* Counts the next digit (`bits` at `shift`) of keys that begin with `prefix`. */
static void count_next_digits(const float *score, int64_t n, int32_t prefix, int shift, int bits,
                              uint32_t *bins)
{
    for (int64_t i = 0; i < n; i += CHUNK) {
        uint64_t mask = chunk_equal(score + i, HDL_MIN(n - i, (int64_t)CHUNK), shift + bits, prefix);
        for (; mask; mask &= mask - 1)
            bins[key_of(score[i + __builtin_ctzll(mask)]) >> shift & ((1 << bits) - 1)]++;
    }
}

/* The bin that holds the *rank-th largest (1 = largest); *rank becomes the rank inside it. */
static int32_t find_bin(const uint32_t *bins, int32_t n_bins, int64_t *rank)
{
    int32_t bin = n_bins - 1;
    while (*rank > bins[bin]) *rank -= bins[bin--];
    return bin;
}

/* The key of the top_k-th largest of n > top_k >= 1 scores; *n_ties: how many equal to it are taken. */
static int32_t find_bound(const float *score, int64_t n, int64_t top_k, int64_t *n_ties)
{
    uint32_t bins[2][N_BINS] = {{0}};
    int64_t rank = top_k;
    count_top_digits(score, n, bins);
    int32_t bound = find_bin(bins[0], N_BINS, &rank) - N_BINS / 2;
    for (int shift = 32 - DIGIT_BITS; shift > 0;) {
        int bits = HDL_MIN(shift, (int)DIGIT_BITS);
        shift -= bits;
        memset(bins[0], 0, sizeof bins[0]);
        count_next_digits(score, n, bound, shift, bits, bins[0]);
        bound = (int32_t)((uint32_t)bound << bits | (uint32_t)find_bin(bins[0], 1 << bits, &rank));
    }
    *n_ties = rank;
    return bound;
}

typedef struct id_list {
    int32_t *ids;
    int64_t n;
} id_list;

static void list_range(id_list *list, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) list->ids[list->n++] = (int32_t)i;
}

/* Ids first.. of scores above the bound and of the first n_ties at it. */
static void list_chosen(id_list *list, const float *score, int64_t n, int64_t first, int32_t bound,
                        int64_t n_ties)
{
    for (int64_t i = 0; i < n; i += CHUNK) {
        uint64_t mask = chunk_at_least(score + i, HDL_MIN(n - i, (int64_t)CHUNK), bound);
        for (; mask; mask &= mask - 1) {
            int64_t at = i + __builtin_ctzll(mask);
            if (key_of(score[at]) == bound && n_ties-- <= 0) continue;
            list->ids[list->n++] = (int32_t)(first + at);
        }
    }
}

static void select_list(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_select_args *args = arg;
    int64_t row = task / args->n_lists;
    int32_t index = (int32_t)(task % args->n_lists);
    const float *score = args->score + task * args->score_stride;
    unit_range at = select_range(args, row, index);
    id_list list = {hdl_selection_ids(args->out, row, index), 0};
    if (at.end - at.begin <= args->top_k) {
        list_range(&list, 0, at.n);
    } else {
        list_range(&list, 0, at.begin);
        if (args->top_k > 0) {
            int64_t n_ties;
            int32_t bound = find_bound(score + at.begin, at.end - at.begin, args->top_k, &n_ties);
            list_chosen(&list, score + at.begin, at.end - at.begin, at.begin, bound, n_ties);
        }
        list_range(&list, at.end, at.n);
    }
    select_map(args, &at, list.ids, (int32_t)list.n);
    *hdl_selection_count(args->out, row, index) = (int32_t)list.n;
}

static const char *select_why_not(const void *op)
{
    const hdl_select_args *args = op;
    return args->kind != HDL_SELECT_TOP_K ? "selects by top_k only" : NULL;
}

static void select_tokens(const hdl_launch *launch, const void *op)
{
    const hdl_select_args *args = op;
    hdl_select_args call = *args;
    hdl_parallel_for(launch->n_threads, args->n_rows * args->n_lists, select_list, &call);
}

/* ---- MERGE ---- */

static void merge_rows(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_merge_args *args = arg;
    int64_t dim = args->v_head_dim, end = HDL_MIN((task + 1) * MERGE_ROWS, args->n_rows);
    for (int64_t row = task * MERGE_ROWS; row < end; row++) {
        float max = -INFINITY, sum = 0;
        for (int32_t p = 0; p < args->n_partials; p++) max = HDL_MAX(max, args->lse[p][row]);
        for (int32_t p = 0; p < args->n_partials && max > -INFINITY; p++)
            sum += expf(args->lse[p][row] - max);
        float *out = args->o_out + row * dim, inverse = sum > 0 ? 1 / sum : 0;
        bool is_first = true;
        for (int32_t p = 0; p < args->n_partials; p++) {
            if (args->lse[p][row] == -INFINITY) continue;
            vf weight = vf_set1(expf(args->lse[p][row] - max) * inverse);
            const float *o = args->o[p] + row * dim;
            for (int64_t i = 0; i < dim; i += VW) {
                vf x = vf_mul(vf_load(o + i), weight);
                vf_store(out + i, is_first ? x : vf_add(vf_load(out + i), x));
            }
            is_first = false;
        }
        if (is_first) memset(out, 0, (size_t)dim * sizeof *out);
        if (args->lse_out) args->lse_out[row] = sum > 0 ? max + logf(sum) : -INFINITY;
    }
}

static const char *merge_why_not(const void *op)
{
    const hdl_merge_args *args = op;
    return args->v_head_dim % 16 ? "v_head_dim is not a multiple of 16" : NULL;
}

static void merge(const hdl_launch *launch, const void *op)
{
    hdl_merge_args args = *(const hdl_merge_args *)op;
    /* o_out may be o[0], which the first term overwrites before others are added: nothing else reads it */
    hdl_parallel_for(launch->n_threads, (args.n_rows + MERGE_ROWS - 1) / MERGE_ROWS, merge_rows, &args);
}

/* ---- APPEND ---- */

/* Branch-free so that compilers vectorise it; the bits of hdl_f32_to_bf16. */
ALWAYS_INLINE void store_bf16(const float *x, uint16_t *to, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, quiet = u >> 16 | 0x40;
        to[i] = (uint16_t)((u & INT32_MAX) > 0x7f800000 ? quiet : rounded);
    }
}

static void append_row(const hdl_append_args *args, int64_t row, bool is_v)
{
    const hdl_kv_view *kv = &args->kv;
    int64_t dim = is_v ? args->v_head_dim : args->head_dim, token = args->first_token + row;
    const float *x = is_v ? args->v + row * args->v_stride : args->k + row * args->k_stride;
    uint8_t *to = kv_token_at(kv, token) + (is_v ? kv->v_offset : kv->k_offset);
    for (int32_t head = 0; head < args->n_kv_heads;
         head++, x += dim, to += is_v ? kv->v_head_stride : kv->head_stride) {
        switch (kv->dtype) {
            case HDL_F16: store_f16(x, (uint16_t *)(void *)to, dim); break;
            case HDL_BF16: store_bf16(x, (uint16_t *)(void *)to, dim); break;
            case HDL_F32: memcpy(to, x, (size_t)dim * sizeof *x); break;
            default: {
                float scale = quantise_i8(x, (int8_t *)to, dim);
                uint8_t *scales = kv_scale_at(kv, token, args->n_kv_heads) +
                                  (is_v ? kv->v_scale_offset : kv->k_scale_offset);
                memcpy(scales + head * (int64_t)sizeof scale, &scale, sizeof scale);
            }
        }
    }
}

static void append_rows(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_append_args *args = arg;
    int64_t end = HDL_MIN((task + 1) * APPEND_ROWS, args->n_rows);
    for (int64_t row = task * APPEND_ROWS; row < end; row++) {
        append_row(args, row, false);
        append_row(args, row, true);
    }
}

static void append(const hdl_launch *launch, const void *op)
{
    hdl_append_args args = *(const hdl_append_args *)op;
    hdl_parallel_for(launch->n_threads, (args.n_rows + APPEND_ROWS - 1) / APPEND_ROWS, append_rows, &args);
}

const hdl_impl HDL_CPU_ROWS(route)[] = {
    {"append" HDL_ISA_SUFFIX, HDL_OP_APPEND, (hdl_isa)THIS_ISA, NULL, NULL, append},
    {"select" HDL_ISA_SUFFIX, HDL_OP_SELECT, (hdl_isa)THIS_ISA, select_why_not, NULL, select_tokens},
    {"merge" HDL_ISA_SUFFIX, HDL_OP_MERGE, (hdl_isa)THIS_ISA, merge_why_not, NULL, merge},
    {NULL, HDL_OP_APPEND, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
