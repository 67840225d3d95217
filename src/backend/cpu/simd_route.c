/* simd_route.c - APPEND, SELECT and MERGE.
 *
 * SELECT finds the key of the k-th largest score digit by digit (11, 11 and 10 bits of an integer in
 * the scores' order) and then lists, in id order, what lies above it and the first ties. Four passes
 * over the row, no memory in n: the first counts every score in a histogram (a load, a few
 * operations of a vector and an increment each, 4 bytes a score: bound by the increments), the others
 * compare a vector at a time and touch only what matches. Where few of many are wanted, a guessed score
 * (of the row before, or from a sample) cuts the row to a few first, in one pass of comparisons, and the
 * bound of these is found by halving: some 12 passes over what lies in the first-level cache, a comparison
 * for each vector, in place of histograms that must be cleared and searched.
 *
 * APPEND converts and scatters rows, MERGE reads every partial once: both are bound by memory. */
#include "backend/cpu/route_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_int.h"
#include "backend/cpu/simd_half.h"
#include "base/pool.h"

enum { DIGIT_BITS = 11, N_BINS = 1 << DIGIT_BITS, CHUNK = 64, APPEND_ROWS = 32, MERGE_ROWS = 64 };

/* ---- keys of scores, a vector at a time ---- */

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
ALWAYS_INLINE uint32_t scores_at_least(const float *score, float least)
{
    return _mm512_cmp_ps_mask(vf_load(score), vf_set1(least), _CMP_GE_OQ);
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
ALWAYS_INLINE uint32_t scores_at_least(const float *score, float least)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(vf_load(score), vf_set1(least), _CMP_GE_OQ));
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
ALWAYS_INLINE uint32_t scores_at_least(const float *score, float least)
{
    uint32_t mask = 0;
    for (int i = 0; i < VW; i++) mask |= (uint32_t)(score[i] >= least) << i;
    return mask;
}
#endif
/* ids[0..] = first + i for each bit i; returns how many. */
ALWAYS_INLINE int64_t write_ids(uint64_t mask, int64_t first, int32_t *ids)
{
    int64_t n = 0;
#if defined(HDL_ISA_avx512)
    enum { DENSE = 8 }; /* from here on a vector is less than a bit after the other */
    __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    id = _mm512_add_epi32(id, _mm512_set1_epi32((int32_t)first));
    for (bool is_dense = __builtin_popcountll(mask) >= DENSE; is_dense && mask; mask >>= 16) {
        __mmask16 here = (__mmask16)mask;
        int count = __builtin_popcount(here);
        __m512i packed = _mm512_maskz_compress_epi32(here, id);
        _mm512_mask_storeu_epi32(ids + n, (__mmask16)((1u << count) - 1), packed);
        id = _mm512_add_epi32(id, _mm512_set1_epi32(16));
        n += count;
    }
#endif
    for (; mask; mask &= mask - 1) ids[n++] = (int32_t)(first + __builtin_ctzll(mask));
    return n;
}

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

/* Scores compare as their keys do, but for NaN, which no score above -inf reaches; a bound of no score's key, such as
 * that after the key of inf, is NaN as a score. */
ALWAYS_INLINE uint64_t chunk_at_least(const float *score, int64_t n, int32_t bound)
{
    uint64_t mask = 0;
    float least = score_of(bound);
    if (bound <= key_of(-INFINITY)) return UINT64_MAX >> (CHUNK - n); /* NaN counts as -inf */
    if (n == CHUNK) {
        for (int i = 0; i < CHUNK; i += VW) mask |= (uint64_t)scores_at_least(score + i, least) << i;
    } else {
        for (int64_t i = 0; i < n; i++) mask |= (uint64_t)(score[i] >= least) << i;
    }
    return mask;
}

/* ---- SELECT ---- */

/* Counts the highest digit of every key; two histograms, so that equal neighbours do not wait. */
static void count_top_digits(const float *score, int64_t n, uint32_t bins[2][N_BINS])
{
    const int shift = 32 - DIGIT_BITS;
    int32_t digit[CHUNK];
    for (int64_t i = 0; i + CHUNK <= n; i += CHUNK) {
        for (int j = 0; j < CHUNK; j += VW) keys_store(score + i + j, digit + j, shift);
        for (int j = 0; j < CHUNK; j += 2) {
            bins[0][digit[j] + N_BINS / 2]++;
            bins[1][digit[j + 1] + N_BINS / 2]++;
        }
    }
    for (int64_t i = n / CHUNK * CHUNK; i < n; i++) bins[0][(key_of(score[i]) >> shift) + N_BINS / 2]++;
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

/* ---- a share of the mass ---- */

typedef struct mass_bins {
    int64_t units[N_BINS];
    uint32_t n[N_BINS];
} mass_bins;

/* Units and counts by the digit below `shift + bits` of the scores whose key begins with `prefix`; with
 * shift + bits 32 of all. */
static void count_masses(const float *score, int64_t n, double scale, int32_t prefix, int shift, int bits,
                         mass_bins *bins)
{
    bool is_first = shift + bits == 32;
    memset(bins, 0, sizeof *bins);
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t in_chunk = HDL_MIN(n - i, (int64_t)CHUNK);
        uint64_t all = in_chunk == CHUNK ? UINT64_MAX : ((uint64_t)1 << in_chunk) - 1;
        uint64_t mask = is_first ? all : chunk_equal(score + i, in_chunk, shift + bits, prefix);
        for (; mask; mask &= mask - 1) {
            float x = score[i + __builtin_ctzll(mask)];
            int32_t digit = key_of(x) >> shift;
            digit = is_first ? digit + N_BINS / 2 : digit & ((1 << bits) - 1);
            bins->n[digit]++;
            bins->units[digit] += hdl_mass_units(x, scale);
        }
    }
}

/* How many of the best unforced scores still leave room under p: those of whole bins from the top down,
 * then of the digits below in the bin that does not fit, at last of equal scores. */
static int64_t count_with_room(const hdl_select_args *args, const float *score, int64_t n, double scale,
                               int64_t share, int64_t total, mass_bins *bins)
{
    int64_t m = 0;
    int32_t prefix = 0;
    for (int shift = 32; shift > 0;) {
        int bits = HDL_MIN(shift, (int)DIGIT_BITS);
        bool is_first = shift == 32;
        shift -= bits;
        count_masses(score, n, scale, prefix, shift, bits, bins);
        int32_t bin = (1 << bits) - 1;
        for (; bin >= 0 && hdl_is_below_p(args, share + bins->units[bin], total); bin--) {
            share += bins->units[bin];
            m += bins->n[bin];
        }
        if (bin < 0) return m;
        prefix = is_first ? bin - N_BINS / 2 : (int32_t)((uint32_t)prefix << bits | (uint32_t)bin);
        if (shift > 0) continue;
        int64_t each = bins->units[bin] / bins->n[bin];
        while (
            hdl_is_below_p(args, share + each, total)) { /* ends before the bin does: all of it is too much */
            share += each;
            m++;
        }
    }
    return m;
}

static int64_t count_for_share(const hdl_select_args *args, const float *score, const unit_range *at,
                               const hdl_row_mass *mass, mass_bins *bins)
{
    int64_t n = at->end - at->begin;
    double scale = hdl_mass_scale(mass->largest);
    if (!mass->total) return 0;
    bool has_room = hdl_is_below_p(args, mass->forced, mass->total);
    int64_t m = has_room ? count_with_room(args, score + at->begin, n, scale, mass->forced, mass->total, bins)
                         : 0;
    return hdl_count_by_p(args, has_room, m, n);
}

/* ---- lists ---- */

typedef struct id_list {
    int32_t *ids;
    int64_t n;
} id_list;

static void list_range(id_list *list, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) list->ids[list->n++] = (int32_t)i;
}

/* The lowest n bits that are set. */
static uint64_t first_bits(uint64_t mask, int64_t n)
{
    uint64_t rest = mask;
    if (n >= __builtin_popcountll(mask)) return mask;
    for (; n > 0; n--) rest &= rest - 1;
    return mask & ~rest;
}

/* Ids first.. of scores above the bound and of the first n_ties at it, top_k in all. */
static void list_chosen(id_list *list, const float *score, int64_t n, int64_t first, int32_t bound,
                        int64_t n_ties, int64_t top_k)
{
    int64_t end = list->n + top_k;
    for (int64_t i = 0; i < n && list->n < end; i += CHUNK) {
        int64_t in_chunk = HDL_MIN(n - i, (int64_t)CHUNK);
        uint64_t mask = chunk_at_least(score + i, in_chunk, bound);
        if (!mask) continue;
        uint64_t above = bound < INT32_MAX ? chunk_at_least(score + i, in_chunk, bound + 1) : 0;
        uint64_t ties = first_bits(mask & ~above, n_ties);
        n_ties -= __builtin_popcountll(ties);
        list->n += write_ids(above | ties, first + i, list->ids + list->n);
    }
}

/* ---- a few that hold the best ---- */

/* Where top_k is a small part of a long row: a score that somewhat more than top_k reach, from a sample or
 * the row before; one pass collects those, and the exact search goes over them alone. When the score that
 * was guessed turns out to be the bound itself (many are equal), nothing needs searching. */
enum { SAMPLE = 2048, NARROW_MIN = 8 * SAMPLE, NARROW_SPARE = 4096 };

typedef struct few {
    int32_t sample[SAMPLE]; /* keys */
    int64_t capacity;
    float *scores; /* [capacity] each: scores, their places in the row and their keys */
    int32_t *ids, *keys;
} few;

static int64_t few_capacity(const hdl_select_args *args)
{
    return HDL_ALIGN_UP(HDL_MIN(2 * args->top_k, args->max_visible / 4) + NARROW_SPARE, 16);
}

static bool is_narrow(int64_t n, int64_t top_k)
{
    return n >= NARROW_MIN && top_k > 0 && top_k <= n / 8;
}

static void find_keys(const float *score, int64_t n, int32_t *key)
{
    int64_t whole = n - n % VW;
    for (int64_t i = 0; i < whole; i += VW) keys_store(score + i, key + i, 0);
    for (int64_t i = whole; i < n; i++) key[i] = key_of(score[i]);
}

static int32_t count_keys(const int32_t *key, int64_t n, int32_t bound)
{
    int32_t count = 0;
    for (int64_t i = 0; i < n; i++) count += key[i] >= bound;
    return count;
}

/* The rank-th largest of n >= rank >= 1 keys, by halving the interval that it lies in; *n_ties: how many equal to it
 * are among the rank largest. */
static int32_t halve_to_bound(const int32_t *key, int64_t n, int64_t rank, int64_t *n_ties)
{
    int32_t low = key_of(-INFINITY), high = key_of(INFINITY);
    while (low < high) {
        int32_t middle = (int32_t)(low + ((int64_t)high - low + 1) / 2), count = count_keys(key, n, middle);
        if (count == rank) { /* the least of these */
            low = high;
            for (int64_t i = 0; i < n; i++) low = HDL_MIN(low, key[i] >= middle ? key[i] : INT32_MAX);
            break;
        }
        if (count > rank)
            low = middle;
        else
            high = middle - 1;
    }
    *n_ties = rank - count_keys(key, n, low + 1); /* no key is INT32_MAX */
    return low;
}

/* The key of a score that probably top_k of n reach, and not many more. */
static int32_t sample_bound(const float *score, int64_t n, int64_t top_k, few *scratch)
{
    int64_t step = n / SAMPLE, rank = top_k / step, n_ties;
    for (int64_t i = 0; i < SAMPLE; i++) scratch->scores[i] = score[i * step];
    find_keys(scratch->scores, SAMPLE, scratch->sample);
    rank += 3 * (int64_t)sqrtf((float)rank) + 8;
    return halve_to_bound(scratch->sample, SAMPLE, HDL_MIN(rank, (int64_t)SAMPLE - 1), &n_ties);
}

/* How many keys are at least `bound`; those that fit are collected. */
static int64_t collect(const float *score, int64_t n, int32_t bound, few *scratch)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        uint64_t mask = chunk_at_least(score + i, HDL_MIN(n - i, (int64_t)CHUNK), bound);
        int64_t in_chunk = __builtin_popcountll(mask);
        if (mask && count + in_chunk <= scratch->capacity) write_ids(mask, i, scratch->ids + count);
        count += in_chunk;
    }
    return count;
}

static int64_t count_at_least(const float *score, int64_t n, int32_t bound)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += CHUNK)
        count += __builtin_popcountll(chunk_at_least(score + i, HDL_MIN(n - i, (int64_t)CHUNK), bound));
    return count;
}

/* Lists the top_k best by way of the guessed key; false when it leads nowhere. */
static bool list_narrowed(id_list *list, const float *score, int64_t n, int64_t first, int64_t top_k,
                          int32_t guess, few *scratch)
{
    int64_t count = collect(score, n, guess, scratch), n_ties;
    if (count < top_k) return false;
    if (count > scratch->capacity) {
        int64_t n_above = guess == INT32_MAX ? 0 : count_at_least(score, n, guess + 1);
        if (n_above >= top_k) return false;
        list_chosen(list, score, n, first, guess, top_k - n_above, top_k);
        return true;
    }
    int64_t from = list->n;
    for (int64_t i = 0; i < count; i++) scratch->scores[i] = score[scratch->ids[i]];
    if (count == top_k) {
        list_range(list, 0, count);
    } else {
        find_keys(scratch->scores, count, scratch->keys);
        int32_t bound = halve_to_bound(scratch->keys, count, top_k, &n_ties);
        list_chosen(list, scratch->scores, count, 0, bound, n_ties, top_k);
    }
    for (int64_t i = from; i < list->n; i++) list->ids[i] = (int32_t)first + scratch->ids[list->ids[i]];
    return true;
}

/* Lists the top_k best of n > top_k >= 1 scores. *guess as in the arguments, or NULL. */
static void list_best(id_list *list, const float *score, int64_t n, int64_t first, int64_t top_k,
                      float *guess, few *scratch)
{
    int64_t n_ties;
    bool is_guessed = guess && *guess == *guess;
    if (is_narrow(n, top_k)) {
        if (is_guessed && list_narrowed(list, score, n, first, top_k, key_of(*guess), scratch)) return;
        int32_t key = sample_bound(score, n, top_k, scratch);
        if (guess) *guess = score_of(key);
        if (list_narrowed(list, score, n, first, top_k, key, scratch)) return;
    }
    if (guess) *guess = NAN;
    int32_t bound = find_bound(score, n, top_k, &n_ties);
    list_chosen(list, score, n, first, bound, n_ties, top_k);
}

/* ---- the op ---- */

typedef struct select_call {
    const hdl_select_args *args;
    uint8_t *memory;
    int64_t bytes; /* of a thread: few, its scores, ids and keys, the bins of a share */
} select_call;

static int64_t thread_bytes(const hdl_select_args *args)
{
    int64_t bins = args->kind == HDL_SELECT_TOP_P ? HDL_ALIGN_UP((int64_t)sizeof(mass_bins), 64) : 0;
    return bins + HDL_ALIGN_UP((int64_t)sizeof(few), 64) + few_capacity(args) * 12;
}

static int64_t count_chosen(const hdl_select_args *args, int64_t row, int32_t list, const float *score,
                            const unit_range *at, mass_bins *bins)
{
    int64_t k = 0;
    if (args->kind == HDL_SELECT_TOP_K) return top_k_of(args, list);
    if (args->kind == HDL_SELECT_TOP_P) {
        hdl_row_mass mass = row_mass_of(args, row, list, score, at);
        k = count_for_share(args, score, at, &mass, bins);
    } else {
        for (int64_t i = at->begin; i < at->end; i++) k += score[i] > args->threshold;
    }
    return args->top_k > 0 ? HDL_MIN(k, args->top_k) : k;
}

static void select_list(void *arg, int64_t task, int thread)
{
    const select_call *call = arg;
    const hdl_select_args *args = call->args;
    int64_t row = task / args->n_lists;
    int32_t index = (int32_t)(task % args->n_lists);
    const float *score = args->score + task * args->score_stride;
    few *scratch = (few *)(void *)(call->memory + thread * call->bytes);
    scratch->capacity = few_capacity(args);
    scratch->scores = (float *)(void *)((uint8_t *)scratch + HDL_ALIGN_UP((int64_t)sizeof(few), 64));
    scratch->ids = (int32_t *)(void *)(scratch->scores + scratch->capacity);
    scratch->keys = scratch->ids + scratch->capacity;
    unit_range at = select_range(args, row, index);
    id_list list = {hdl_selection_ids(args->out, row, index), 0};
    int64_t k = count_chosen(args, row, index, score, &at,
                             (mass_bins *)(void *)(scratch->keys + scratch->capacity));
    if (at.end - at.begin <= k) {
        list_range(&list, 0, at.n);
    } else {
        list_range(&list, 0, at.begin);
        if (k > 0)
            list_best(&list, score + at.begin, at.end - at.begin, at.begin, k,
                      args->guess ? args->guess + task : NULL, scratch);
        list_range(&list, at.end, at.n);
    }
    select_map(args, &at, list.ids, (int32_t)list.n);
    *hdl_selection_count(args->out, row, index) = (int32_t)list.n;
}

static int64_t select_workspace(const void *op, int n_threads)
{
    return n_threads * thread_bytes(op);
}

static const char *select_why_not(const void *op)
{
    const hdl_select_args *args = op;
    return args->kind == HDL_SELECT_BEAM ? "a beam reads too few scores for vectors" : NULL;
}

static void select_tokens(const hdl_launch *launch, const void *op)
{
    const hdl_select_args *args = op;
    select_call call = {args, launch->workspace, thread_bytes(args)};
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
            case HDL_Q4_1: quantise_q4_1(x, to, dim); break;
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
    {"select" HDL_ISA_SUFFIX, HDL_OP_SELECT, (hdl_isa)THIS_ISA, select_why_not, select_workspace,
     select_tokens},
    {"merge" HDL_ISA_SUFFIX, HDL_OP_MERGE, (hdl_isa)THIS_ISA, merge_why_not, NULL, merge},
    {NULL, HDL_OP_APPEND, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
