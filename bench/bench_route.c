/* bench_route.c - scores, summaries and selection against the time to read their inputs: a CSV row a case.
 *
 *   bench_route [threads] [words of case names...]
 *
 * Every case walks through several planes in turn, more than the caches hold, and reads the same bytes
 * plainly just before each repeat: `x_read` is the time as a multiple of that. SELECT is measured against
 * one thread's time to read the row of scores. BENCH_ISA names another instruction set than the best. */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "backend/attend_cases.h"
#include "backend/summary.h"
#include "base/pool.h"

enum {
    REPEATS = 21,
    PAGE_SHIFT = 8,
    PAGE_TOKENS = 1 << PAGE_SHIFT,
    MAX_PLANES = 64,
    MEAN_TOKENS = 64,
    READ_CHUNK = 1 << 15
};
static const int64_t WORKING_SET = 160ll << 20;

static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *times, int p)
{
    double sorted[REPEATS];
    memcpy(sorted, times, sizeof sorted);
    qsort(sorted, REPEATS, sizeof *sorted, by_value);
    return sorted[(REPEATS - 1) * p / 100];
}

/* ---- plain reading ---- */

typedef struct read_job {
    const uint8_t *data;
    int64_t bytes;
    int64_t sum[HDL_MAX_THREADS * 8];
} read_job;

__attribute__((target("avx2"))) static void read_chunk(void *arg, int64_t task, int thread)
{
    read_job *job = arg;
    const __m256i *at = (const __m256i *)(const void *)(job->data + task * READ_CHUNK);
    int64_t n = HDL_MIN(job->bytes - task * READ_CHUNK, (int64_t)READ_CHUNK) / 32;
    __m256i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t i = 0; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(at + i + j));
    for (int j = 1; j < 8; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    job->sum[thread * 8] += _mm256_extract_epi64(sum[0], 0);
}

static read_job reading;

static void read_all(int n_threads, const void *data, int64_t bytes)
{
    reading.data = data;
    reading.bytes = bytes;
    hdl_parallel_for(n_threads, (bytes + READ_CHUNK - 1) / READ_CHUNK, read_chunk, &reading);
}

static void print_row(const char *name, const char *impl, int n_threads, const double *times,
                      const double *reads, double bytes)
{
    double us = percentile(times, 50), read_us = percentile(reads, 50);
    printf("%s,%s,%d,%.2f,%.2f,%.2f,%.1f,%.2f,%.1f,%.2f\n", name, impl, n_threads, us, percentile(times, 10),
           percentile(times, 90), bytes / us * 1e-3, read_us, bytes / read_us * 1e-3, us / read_us);
    fflush(stdout);
}

/* ---- SCORE ---- */

typedef struct score_bench {
    const char *name;
    hdl_score_rule rule;
    hdl_plane_kind plane;
    hdl_measure measure;
    int32_t n_heads, n_kv_heads, head_dim, n_lists, block_size;
    int64_t q_len, kv_len;
    int64_t n_chosen; /* blocks of MEAN_TOKENS whose tokens are scored; 0 = everything */
} score_bench;

static const score_bench score_benches[] = {
    {"score keys4 smol 8K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 8192, 0},
    {"score keys4 smol 32K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 32768, 0},
    {"score keys4 smol 128K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 131072, 0},
    {"score keys4 gemma 32K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 4, 1, 256, 1, 1, 1, 32768, 0},
    {"score pairs2 smol 32K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ2, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 32768, 0},
    {"score pairs2 smol 128K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ2, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 131072,
     0},
    {"score pairs2 gemma 32K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ2, HDL_MEASURE_MASS, 4, 1, 256, 1, 1, 1, 32768,
     0},
    {"score fours4 smol 32K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 32768, 0},
    {"score fours4 smol 128K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 131072,
     0},
    {"score fours4 gemma 32K", HDL_RULE_DOT, HDL_PLANE_KEY_PQ4, HDL_MEASURE_MASS, 4, 1, 256, 1, 1, 1, 32768,
     0},
    {"score keys8 smol 32K", HDL_RULE_DOT, HDL_PLANE_KEY_I8, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 1, 32768, 0},
    {"score index 128K", HDL_RULE_INDEX, HDL_PLANE_INDEX, HDL_MEASURE_LOGIT, 1, 1, 64, 1, 1, 1, 131072, 0},
    {"score index 64 rows of 8K", HDL_RULE_INDEX, HDL_PLANE_INDEX, HDL_MEASURE_LOGIT, 1, 1, 64, 1, 1, 64,
     8192, 0},
    {"score bounds smol 32K", HDL_RULE_BOUND, HDL_PLANE_BOUNDS, HDL_MEASURE_LOGIT, 9, 3, 64, 3, 16, 1, 32768,
     0},
    {"score means smol 32K", HDL_RULE_DOT, HDL_PLANE_MEAN, HDL_MEASURE_LOGIT, 9, 3, 64, 3, 16, 1, 32768, 0},
    {"score pairs smol 32K", HDL_RULE_PAIRS, HDL_PLANE_MEAN, HDL_MEASURE_MASS, 9, 3, 64, 1, 16, 1, 32768, 0},
    {"score keys4 smol 64 rows of 8K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 64,
     8192, 0},
    {"score keys4 smol 16 rows of 64K", HDL_RULE_DOT, HDL_PLANE_KEY_I4, HDL_MEASURE_MASS, 9, 3, 64, 1, 1, 16,
     65536, 0},
    {"score index 256 blocks of 128K", HDL_RULE_INDEX, HDL_PLANE_INDEX, HDL_MEASURE_LOGIT, 1, 1, 64, 1, 1, 1,
     131072, 256},
    {"score index means 128K", HDL_RULE_INDEX, HDL_PLANE_INDEX_MEAN, HDL_MEASURE_LOGIT, 1, 1, 64, 1,
     MEAN_TOKENS, 1, 131072, 0},
};

/* Planes of random bytes, page after page; scales are small numbers, halves finite. */
typedef struct plane_set {
    uint8_t *memory;
    uint8_t **pages; /* [n_planes][n_pages] */
    int64_t n_planes, n_pages, page_bytes;
    hdl_kv_plane plane, means;
} plane_set;

static void open_planes(plane_set *set, const score_bench *c)
{
    int64_t entries = PAGE_TOKENS / c->block_size;
    int64_t rows = HDL_ALIGN_UP(entries * hdl_plane_entry_bytes(c->plane, c->n_kv_heads, c->head_dim), 16);
    int64_t scales = entries * hdl_plane_scale_bytes(c->plane, c->n_kv_heads);
    uint64_t random = 3;
    set->plane = (hdl_kv_plane){.scale_offset = rows, .n_heads = c->n_kv_heads, .dim = c->head_dim};
    set->page_bytes = HDL_ALIGN_UP(rows + scales, 64);
    if (c->plane == HDL_PLANE_INDEX) { /* the means of its keys behind them */
        set->means = (hdl_kv_plane){.offset = set->page_bytes, .n_heads = 1, .dim = c->head_dim};
        set->means.scale_offset = set->means.offset + PAGE_TOKENS / MEAN_TOKENS * c->head_dim;
        set->page_bytes = HDL_ALIGN_UP(set->means.scale_offset + PAGE_TOKENS / MEAN_TOKENS * 4, 64);
    }
    set->n_pages = c->kv_len / PAGE_TOKENS;
    set->n_planes = HDL_MIN(HDL_MAX(WORKING_SET / (set->n_pages * set->page_bytes), 8), (int64_t)MAX_PLANES);
    int64_t total = set->n_planes * set->n_pages * set->page_bytes;
    if (posix_memalign((void **)&set->memory, 2 << 20, (size_t)HDL_ALIGN_UP(total, 2 << 20))) abort();
    madvise(set->memory, (size_t)total, MADV_HUGEPAGE);
    set->pages = must_alloc(set->n_planes * set->n_pages * (int64_t)sizeof(uint8_t *));
    for (int64_t p = 0; p < set->n_planes * set->n_pages; p++) {
        uint8_t *page = set->pages[p] = set->memory + p * set->page_bytes;
        for (int64_t i = 0; i < rows; i++) page[i] = (uint8_t)next_random(&random);
        if (!scales) /* halves below 2 */
            for (int64_t i = 1; i < rows; i += 2) page[i] &= 0xbf;
        for (int64_t i = 0; i < scales / 4; i++)
            ((float *)(void *)(page + rows))[i] = 0.01f + 0.001f * next_unit(&random);
    }
}

/* Repeats of `calls` launches, each with the next plane's pages in *pages, beside plain reads of `bytes`. */
static void time_planes(const char *name, const hdl_impl *impl, const void *args, uint8_t *const **pages,
                        const plane_set *set, int64_t bytes, int64_t calls, int n_threads)
{
    void *workspace = must_alloc(impl->workspace ? impl->workspace(args, n_threads) : 0);
    double times[REPEATS], reads[REPEATS];
    int64_t turn = 0, plane_bytes = set->n_pages * set->page_bytes;
    for (int i = -1; i < REPEATS; i++) {
        double start = now_us();
        for (int64_t k = 0; k < calls; k++)
            read_all(n_threads, set->memory + (turn + k) % set->n_planes * plane_bytes, bytes);
        double middle = now_us();
        for (int64_t k = 0; k < calls; k++, turn++) {
            *pages = set->pages + turn % set->n_planes * set->n_pages;
            impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = workspace}, args);
        }
        if (i < 0) continue;
        times[i] = (now_us() - middle) / (double)calls;
        reads[i] = (middle - start) / (double)calls;
    }
    print_row(name, impl->name, n_threads, times, reads, (double)bytes);
    free(workspace);
}

/* Blocks of MEAN_TOKENS, evenly apart. */
static hdl_selection choose_blocks(const score_bench *c, int32_t *count)
{
    hdl_selection sel = {.block_size = MEAN_TOKENS, .n_rows = 1, .n_lists = 1, .n_ids_max = c->n_chosen};
    *count = (int32_t)c->n_chosen;
    sel.counts = count;
    sel.ids = must_alloc(HDL_MAX(c->n_chosen, 1) * 4);
    for (int64_t i = 0; i < c->n_chosen; i++)
        sel.ids[i] = (int32_t)(i * (c->kv_len / MEAN_TOKENS) / c->n_chosen);
    return sel;
}

static void bench_score(const score_bench *c, const hdl_impl *impl, int n_threads)
{
    plane_set set;
    hdl_attend_seq seq = {.q_len = c->q_len, .kv_len = c->kv_len, .kv = {.page_shift = PAGE_SHIFT}};
    uint64_t random = 7;
    int32_t count;
    hdl_selection chosen = choose_blocks(c, &count);
    open_planes(&set, c);
    seq.kv.plane[0] = set.plane;
    hdl_score_args args = {.n_rows = c->q_len,
                           .n_seqs = 1,
                           .n_heads = c->n_heads,
                           .n_kv_heads = c->n_kv_heads,
                           .head_dim = c->head_dim,
                           .n_lists = c->n_lists,
                           .seqs = &seq,
                           .max_q_len = c->q_len,
                           .max_kv_len = c->kv_len,
                           .q_stride = (int64_t)c->n_heads * c->head_dim,
                           .scale = 0.125f,
                           .rule = c->rule,
                           .plane = c->plane,
                           .measure = c->measure,
                           .reduce = HDL_REDUCE_MEAN,
                           .block_size = c->block_size,
                           .has_candidates = c->n_chosen > 0,
                           .candidates = &chosen,
                           .score_stride = c->kv_len};
    float *q = must_alloc(c->q_len * args.q_stride * 4);
    fill_random(q, c->q_len * args.q_stride, &random);
    args.q = q;
    args.score = must_alloc(c->q_len * c->n_lists * args.score_stride * 4);
    int64_t bytes = c->n_chosen ? c->n_chosen * MEAN_TOKENS * (c->head_dim + 4)
                                : set.n_pages * set.page_bytes;
    time_planes(c->name, impl, &args, &seq.kv.pages, &set, bytes, c->q_len > 1 ? 1 : set.n_planes, n_threads);
    free(set.memory);
    free(set.pages);
    free(q);
    free(chosen.ids);
    free(args.score);
}

/* ---- SUMMARISE: the means of index keys ---- */

typedef struct means_bench {
    const char *name;
    int64_t first, n; /* new tokens */
} means_bench;

static const means_bench means_benches[] = {
    {"summarise index means 128K", 0, 131072},
    {"summarise index means one row", 131071, 1}, /* the last of a block */
};

static void bench_means(const means_bench *c, const hdl_impl *impl, int n_threads)
{
    plane_set set;
    open_planes(&set, &(score_bench){.plane = HDL_PLANE_INDEX,
                                     .n_kv_heads = 1,
                                     .head_dim = 64,
                                     .block_size = 1,
                                     .kv_len = c->first + c->n});
    hdl_summarise_args args = {.n_rows = c->n,
                               .first_token = c->first,
                               .kind = HDL_PLANE_INDEX_MEAN,
                               .block_size = MEAN_TOKENS,
                               .kv = {.page_shift = PAGE_SHIFT, .plane = {set.means, set.plane}}};
    int64_t bytes = HDL_MAX(c->n, (int64_t)MEAN_TOKENS) * (set.plane.dim + 4);
    time_planes(c->name, impl, &args, &args.kv.pages, &set, bytes, set.n_planes, n_threads);
    free(set.memory);
    free(set.pages);
}

/* ---- SELECT ---- */

typedef enum score_shape { SHAPE_NORMAL, SHAPE_MASS, SHAPE_EQUAL } score_shape;

typedef struct select_bench {
    const char *name;
    score_shape shape;
    int64_t n, top_k;
    hdl_select_kind kind;
    bool is_warm; /* rows that differ a little from one to the next, with what the row before said */
} select_bench;

static const select_bench select_benches[] = {
    {"select 2048 of 128K normal", SHAPE_NORMAL, 131072, 2048, HDL_SELECT_TOP_K, false},
    {"select 2048 of 128K masses", SHAPE_MASS, 131072, 2048, HDL_SELECT_TOP_K, false},
    {"select 2048 of 128K all equal", SHAPE_EQUAL, 131072, 2048, HDL_SELECT_TOP_K, false},
    {"select 2048 of 128K normal warm", SHAPE_NORMAL, 131072, 2048, HDL_SELECT_TOP_K, true},
    {"select 2048 of 128K masses warm", SHAPE_MASS, 131072, 2048, HDL_SELECT_TOP_K, true},
    {"select share 0.9 of 128K masses", SHAPE_MASS, 131072, 0, HDL_SELECT_TOP_P, false},
    {"select 1024 of 32K masses warm", SHAPE_MASS, 32768, 1024, HDL_SELECT_TOP_K, true},
    {"select 1024 of 32K masses", SHAPE_MASS, 32768, 1024, HDL_SELECT_TOP_K, false},
};

static float shaped(score_shape shape, uint64_t *random)
{
    float x = 0; /* nearly normal: a sum of 12 */
    for (int i = 0; i < 4; i++) x += next_unit(random);
    return shape == SHAPE_EQUAL ? 0.25f : shape == SHAPE_MASS ? expf(2 * x - 12) : x;
}

static void bench_select(const select_bench *c, const hdl_impl *impl)
{
    enum { CALLS = 20 };
    float *score = must_alloc(2 * c->n * 4), guess = NAN;
    uint64_t random = 8;
    for (int64_t i = 0; i < c->n; i++) {
        score[i] = shaped(c->shape, &random);
        score[c->n + i] = score[i] * (1 + 0.1f * next_unit(&random));
    }
    int32_t count;
    hdl_selection out = {.block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = c->n, .counts = &count};
    out.ids = must_alloc(out.n_ids_max * 4);
    hdl_select_args args = {.n_rows = 1,
                            .n_lists = 1,
                            .score = score,
                            .score_stride = c->n,
                            .n_visible = &c->n,
                            .max_visible = c->n,
                            .kind = c->kind,
                            .top_k = c->top_k,
                            .p = 0.9f,
                            .n_sink = 4,
                            .window = 128,
                            .guess = c->is_warm ? &guess : NULL,
                            .out = &out};
    void *workspace = must_alloc(impl->workspace ? impl->workspace(&args, 1) : 0);
    double times[REPEATS], reads[REPEATS];
    for (int i = -1; i < REPEATS; i++) {
        double start = now_us();
        for (int k = 0; k < CALLS; k++) read_all(1, score + (k & 1) * c->n, c->n * 4);
        double middle = now_us();
        for (int k = 0; k < CALLS; k++) {
            args.score = score + (k & 1) * c->n;
            impl->launch(&(hdl_launch){.n_threads = 1, .workspace = workspace}, &args);
        }
        if (i < 0) continue;
        times[i] = (now_us() - middle) / CALLS;
        reads[i] = (middle - start) / CALLS;
    }
    print_row(c->name, impl->name, 1, times, reads, (double)c->n * 4);
    free(score);
    free(out.ids);
    free(workspace);
}

static bool is_wanted(const char *name, int argc, char **argv)
{
    for (int i = 2; i < argc; i++)
        if (!strstr(name, argv[i])) return false;
    return true;
}

/* The row of the best instruction set, or of the one that BENCH_ISA names, that accepts. */
static const hdl_impl *choose(hdl_op op, const void *args)
{
    const char *isa = getenv("BENCH_ISA");
    for (const hdl_impl *const *impl = hdl_cpu_impls(op); *impl; impl++) {
        bool is_this = isa ? strcmp(hdl_isa_name((*impl)->isa), isa) == 0 : (*impl)->isa <= hdl_cpu_isa();
        if (is_this && !((*impl)->why_not && (*impl)->why_not(args))) return *impl;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
    printf("# isa %s, %d threads, %s time\n", hdl_isa_name(hdl_cpu_isa()), n_threads,
           n_threads == 1 ? "processor" : "wall");
    printf("case,impl,threads,us,us_p10,us_p90,gb_s,read_us,read_gb_s,x_read\n");
    for (int64_t i = 0; i < HDL_COUNT(score_benches); i++) {
        const score_bench *c = &score_benches[i];
        hdl_score_args args = {.n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .n_lists = c->n_lists,
                               .head_dim = c->head_dim,
                               .rule = c->rule,
                               .plane = c->plane,
                               .block_size = c->block_size,
                               .has_candidates = c->n_chosen > 0};
        const hdl_impl *impl = choose(HDL_OP_SCORE, &args);
        if (impl && is_wanted(c->name, argc, argv)) bench_score(c, impl, n_threads);
    }
    for (int64_t i = 0; i < HDL_COUNT(means_benches); i++) {
        hdl_summarise_args args = {.kind = HDL_PLANE_INDEX_MEAN, .block_size = MEAN_TOKENS};
        const hdl_impl *impl = choose(HDL_OP_SUMMARISE, &args);
        if (impl && is_wanted(means_benches[i].name, argc, argv))
            bench_means(&means_benches[i], impl, n_threads);
    }
    for (int64_t i = 0; i < HDL_COUNT(select_benches); i++) {
        hdl_select_args args = {.kind = select_benches[i].kind};
        const hdl_impl *impl = choose(HDL_OP_SELECT, &args);
        if (impl && is_wanted(select_benches[i].name, argc, argv)) bench_select(&select_benches[i], impl);
    }
    return 0;
}
