/* bench_attend.c - attention, selection and their bounds: one CSV row per case and implementation.
 *
 *   bench_attend [threads] [words of case names...]
 *
 * Caches are as large as the layers of a model that a step walks through (several are used in turn),
 * so nothing is warm that would not be. Before each repeat of a case the read bandwidth (a buffer of
 * the same kind) and the FMA rate of the same threads are measured, so the shares of the peaks hold
 * for the minute in which they were taken; the machine may be shared. */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "backend/attend_cases.h"
#include "base/pool.h"

enum { REPEATS = 21, MAX_CACHES = 64, PAGE_SHIFT = 8 };
static const int64_t CACHE_BYTES = 160ll << 20, PROBE_BYTES = 128ll << 20;

typedef struct bench_case {
    const char *name;
    int32_t n_heads, n_kv_heads, head_dim;
    hdl_dtype dtype;
    int64_t q_len, kv_len;
    int32_t window;
    int64_t n_ids; /* 0 = dense */
    bool has_mass, is_invariant;
    int32_t block, n_lists; /* tokens of a unit, lists of a row; 0 counts as 1 */
    int32_t rows_per_list;  /* likewise */
} bench_case;

static const bench_case cases[] = {
    {"decode smol f16 1K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 1024},
    {"decode smol f16 4K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 4096},
    {"decode smol f16 16K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 16384},
    {"decode smol f16 32K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768},
    {"decode smol bf16 32K", 9, 3, 64, HDL_BF16, .q_len = 1, .kv_len = 32768},
    {"decode smol i8 32K", 9, 3, 64, HDL_I8, .q_len = 1, .kv_len = 32768},
    {"decode smol f16 32K mass", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .has_mass = true},
    {"decode smol f16 32K invariant", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .is_invariant = true},
    {"decode gemma f16 32K", 4, 1, 256, HDL_F16, .q_len = 1, .kv_len = 32768},
    {"decode gemma f16 window", 4, 1, 256, HDL_F16, .q_len = 1, .kv_len = 32768, .window = 512},
    {"list smol f16 1152 of 32K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024},
    {"list smol bf16 1152 of 32K", 9, 3, 64, HDL_BF16, .q_len = 1, .kv_len = 32768, .n_ids = 1024},
    {"list smol i8 1152 of 32K", 9, 3, 64, HDL_I8, .q_len = 1, .kv_len = 32768, .n_ids = 1024},
    {"list gemma f16 1152 of 32K", 4, 1, 256, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024},
    {"list smol f16 1152 of 32K per kv head", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024,
     .n_lists = 3},
    {"blocks of 16 smol f16 1152 of 32K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024,
     .block = 16},
    {"blocks of 16 smol f16 1152 of 32K per kv head", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768,
     .n_ids = 1024, .block = 16, .n_lists = 3},
    {"blocks of 64 smol f16 1152 of 32K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024,
     .block = 64},
    {"blocks of 64 smol f16 1152 of 32K per kv head", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768,
     .n_ids = 1024, .block = 64, .n_lists = 3},
    {"blocks of 64 smol i8 1152 of 32K", 9, 3, 64, HDL_I8, .q_len = 1, .kv_len = 32768, .n_ids = 1024,
     .block = 64},
    {"blocks of 256 smol f16 1152 of 32K", 9, 3, 64, HDL_F16, .q_len = 1, .kv_len = 32768, .n_ids = 1024,
     .block = 256},
    {"list rows smol f16 64 x 1152 of 8K", 9, 3, 64, HDL_F16, .q_len = 64, .kv_len = 8192, .n_ids = 1024},
    {"list rows smol f16 64 invariant", 9, 3, 64, HDL_F16, .q_len = 64, .kv_len = 8192, .n_ids = 1024,
     .is_invariant = true},
    {"prefill smol f16 512 at 0", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 512},
    {"prefill smol f16 512 at 4K", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 4096},
    {"prefill smol f16 512 at 32K", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 32768},
    {"tiles of 64 smol f16 512 x 1152 of 32K by blocks of 64", 9, 3, 64, HDL_F16, .q_len = 512,
     .kv_len = 32768, .n_ids = 1024, .block = 64, .rows_per_list = 64},
    {"tiles of 64 smol f16 512 x 1152 of 32K by tokens", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 32768,
     .n_ids = 1024, .rows_per_list = 64},
    {"tiles of 16 smol f16 512 x 1152 of 32K by tokens", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 32768,
     .n_ids = 1024, .rows_per_list = 16},
    {"prefill smol i8 512 at 4K", 9, 3, 64, HDL_I8, .q_len = 512, .kv_len = 4096},
    {"prefill smol f16 512 at 4K mass", 9, 3, 64, HDL_F16, .q_len = 512, .kv_len = 4096, .has_mass = true},
    {"prefill gemma f16 512 at 4K", 4, 1, 256, HDL_F16, .q_len = 512, .kv_len = 4096},
    {"prefill gemma f16 512 window", 4, 1, 256, HDL_F16, .q_len = 512, .kv_len = 4096, .window = 512},
};

/* One thread: its own processor time, so that other programs on the machine do not count. */
static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* ---- peaks of this minute ---- */

typedef struct probe {
    const uint8_t *data;
    int64_t bytes;
    float result[HDL_MAX_THREADS];
} probe;

enum { PROBE_CHUNK = 1 << 18, FMA_STEPS = 40000 };

__attribute__((target("avx2"))) static void read_chunk(void *arg, int64_t task, int thread)
{
    probe *p = arg;
    const __m256i *at = (const __m256i *)(const void *)(p->data + task * PROBE_CHUNK);
    __m256i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t i = 0; i < PROBE_CHUNK / 32; i += 8)
        for (int j = 0; j < 8; j++) sum[j] = _mm256_xor_si256(sum[j], at[i + j]);
    for (int j = 1; j < 8; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    p->result[thread] += (float)(_mm256_extract_epi32(sum[0], 0) & 1);
}

__attribute__((target("avx512f"))) static void fma_512(void *arg, int64_t task, int thread)
{
    probe *p = arg;
    /* ten chains, from different values or the compiler makes one of them */
    __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.5f), s0 = _mm512_set1_ps((float)task);
    __m512 s1 = s0 + y, s2 = s1 + y, s3 = s2 + y, s4 = s3 + y, s5 = s4 + y;
    __m512 s6 = s5 + y, s7 = s6 + y, s8 = s7 + y, s9 = s8 + y;
    for (int64_t i = 0; i < FMA_STEPS; i++) {
        s0 = _mm512_fmadd_ps(s0, x, y), s1 = _mm512_fmadd_ps(s1, x, y), s2 = _mm512_fmadd_ps(s2, x, y);
        s3 = _mm512_fmadd_ps(s3, x, y), s4 = _mm512_fmadd_ps(s4, x, y), s5 = _mm512_fmadd_ps(s5, x, y);
        s6 = _mm512_fmadd_ps(s6, x, y), s7 = _mm512_fmadd_ps(s7, x, y), s8 = _mm512_fmadd_ps(s8, x, y);
        s9 = _mm512_fmadd_ps(s9, x, y);
    }
    s0 = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9;
    p->result[thread] += s0[0];
}

__attribute__((target("avx2,fma"))) static void fma_256(void *arg, int64_t task, int thread)
{
    probe *p = arg;
    /* ten chains, from different values or the compiler makes one of them */
    __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.5f), s0 = _mm256_set1_ps((float)task);
    __m256 s1 = s0 + y, s2 = s1 + y, s3 = s2 + y, s4 = s3 + y, s5 = s4 + y;
    __m256 s6 = s5 + y, s7 = s6 + y, s8 = s7 + y, s9 = s8 + y;
    for (int64_t i = 0; i < FMA_STEPS; i++) {
        s0 = _mm256_fmadd_ps(s0, x, y), s1 = _mm256_fmadd_ps(s1, x, y), s2 = _mm256_fmadd_ps(s2, x, y);
        s3 = _mm256_fmadd_ps(s3, x, y), s4 = _mm256_fmadd_ps(s4, x, y), s5 = _mm256_fmadd_ps(s5, x, y);
        s6 = _mm256_fmadd_ps(s6, x, y), s7 = _mm256_fmadd_ps(s7, x, y), s8 = _mm256_fmadd_ps(s8, x, y);
        s9 = _mm256_fmadd_ps(s9, x, y);
    }
    s0 = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9;
    p->result[thread] += s0[0];
}

/* GB/s over the probe's buffer and GFLOP/s of independent FMA. */
static double read_rate(probe *p, int n_threads)
{
    double start = now_us();
    hdl_parallel_for(n_threads, p->bytes / PROBE_CHUNK, read_chunk, p);
    return (double)p->bytes / (now_us() - start) * 1e-3;
}

static double fma_rate(probe *p, int n_threads)
{
    bool is_512 = hdl_cpu_isa() >= HDL_ISA_AVX512;
    double start = now_us();
    hdl_parallel_for(n_threads, n_threads, is_512 ? fma_512 : fma_256, p);
    return 20.0 * FMA_STEPS * (is_512 ? 16 : 8) * n_threads / (now_us() - start) * 1e-3;
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

/* ---- cases ---- */

typedef struct bench_setup {
    hdl_attend_args args;
    hdl_attend_seq seqs[MAX_CACHES]; /* the same sequence in each cache */
    uint8_t *memory, **pages;
    hdl_selection sel;
    int64_t n_caches;
    double bytes, operations; /* of one call */
} bench_setup;

/* One list: the block of 4 sinks, n_ids tokens' blocks spread at random, the blocks of 128 recent tokens. */
static int32_t fill_list(int32_t *ids, int64_t n_visible, int64_t n_ids, int64_t block, uint64_t *random)
{
    int64_t first = (4 + block - 1) / block, last = (n_visible - 128) / block, left = n_ids / block;
    int32_t n = 0;
    for (int64_t u = 0; u < first; u++) ids[n++] = (int32_t)u;
    for (int64_t u = first; u < last; u++)
        if ((int64_t)(next_random(random) % (uint32_t)(last - u)) < left) ids[n++] = (int32_t)u, left--;
    for (int64_t u = last; u * block < n_visible; u++) ids[n++] = (int32_t)u;
    return n;
}

static void add_lists(bench_setup *setup, const bench_case *c)
{
    hdl_selection *sel = &setup->sel;
    uint64_t random = 5;
    *sel = (hdl_selection){.unit = c->block > 1 ? HDL_UNIT_BLOCK : HDL_UNIT_TOKEN,
                           .block_size = HDL_MAX(c->block, 1),
                           .n_rows = c->q_len,
                           .rows_per_list = c->rows_per_list,
                           .n_lists = HDL_MAX(c->n_lists, 1),
                           .n_ids_max = c->n_ids + 140};
    sel->ids = must_alloc(c->q_len * sel->n_lists * sel->n_ids_max * 4);
    sel->counts = must_alloc(c->q_len * sel->n_lists * 4);
    for (int64_t row = 0; row < c->q_len; row++)
        for (int32_t list = 0; list < sel->n_lists; list++)
            *hdl_selection_count(sel, row, list) = fill_list(hdl_selection_ids(sel, row, list),
                                                             c->kv_len - c->q_len + row + 1, c->n_ids,
                                                             sel->block_size, &random);
    setup->args.selection = sel;
    setup->args.has_selection = true;
    setup->args.rows_per_list = c->rows_per_list;
}

static void fill_cache(bench_setup *setup, const bench_case *c, const hdl_kv_view *kv, int64_t page_bytes)
{
    int64_t n_pages = c->kv_len >> PAGE_SHIFT, n = (int64_t)c->n_kv_heads * c->head_dim;
    const hdl_impl *append = hdl_cpu_ref_attend;
    while (append->op != HDL_OP_APPEND) append++;
    float *row = must_alloc(n * 4 * 257);
    uint64_t random = 9;
    fill_random(row, n * 257, &random);
    for (int64_t i = 0; i < setup->n_caches; i++) {
        hdl_attend_seq *seq = &setup->seqs[i];
        *seq = (hdl_attend_seq){.q_len = c->q_len, .kv_len = c->kv_len, .kv = *kv};
        uint8_t **pages = setup->pages + i * n_pages;
        for (int64_t p = 0; p < n_pages; p++) {
            pages[p] = setup->memory + (i * n_pages + p) * page_bytes;
            if (i + p > 0) {
                memcpy(pages[p], setup->memory, (size_t)page_bytes);
                continue;
            }
            hdl_append_args one = {
                1 << PAGE_SHIFT, 0, c->n_kv_heads, c->head_dim, c->head_dim, row, row + n, n, n, *kv};
            one.kv.pages = pages;
            append->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &one);
        }
        seq->kv.pages = (uint8_t *const *)pages;
    }
    free(row);
}

static void count_work(bench_setup *setup, const bench_case *c)
{
    double visible = 0, read = 0, size = c->dtype == HDL_F32 ? 4 : c->dtype == HDL_I8 ? 1 : 2;
    for (int64_t i = 0; i < c->q_len; i++) {
        int64_t n = c->kv_len - c->q_len + i + 1;
        if (c->window) n = HDL_MIN(n, (int64_t)c->window);
        if (c->n_ids) n = setup->sel.counts[i * setup->sel.n_lists] * (int64_t)setup->sel.block_size;
        visible += (double)n;
        read = c->n_ids ? read + (double)n : HDL_MAX(read, (double)n);
    }
    setup->operations = visible * 4 * c->n_heads * c->head_dim;
    setup->bytes = read * c->n_kv_heads * (2 * c->head_dim * size + (c->dtype == HDL_I8 ? 8 : 0));
}

static void open_case(bench_setup *setup, const bench_case *c)
{
    *setup = (bench_setup){.n_caches = 1};
    attend_case layout = {.n_kv_heads = c->n_kv_heads,
                          .head_dim = c->head_dim,
                          .v_head_dim = c->head_dim,
                          .dtype = c->dtype,
                          .page_shift = PAGE_SHIFT};
    hdl_kv_view kv = {0};
    int64_t page_bytes = HDL_ALIGN_UP(lay_out_page(&kv, &layout), 64),
            cache = page_bytes * (c->kv_len >> PAGE_SHIFT);
    setup->n_caches = HDL_MIN(HDL_MAX(CACHE_BYTES / cache, 1), (int64_t)MAX_CACHES);
    setup->memory = mmap(NULL, (size_t)(cache * setup->n_caches), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    setup->pages = must_alloc((c->kv_len >> PAGE_SHIFT) * setup->n_caches * (int64_t)sizeof(uint8_t *));
    fill_cache(setup, c, &kv, page_bytes);
    hdl_attend_args *args = &setup->args;
    *args = (hdl_attend_args){
        .n_rows = c->q_len, .n_seqs = 1, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads};
    args->head_dim = args->v_head_dim = c->head_dim;
    args->max_q_len = c->q_len;
    args->max_kv_len = args->mass_stride = c->kv_len;
    args->kv_dtype = c->dtype;
    args->q_stride = args->o_stride = (int64_t)c->n_heads * c->head_dim;
    args->scale = 0.125f;
    args->window = c->window;
    args->has_mass = c->has_mass;
    args->n_mass_lists = c->has_mass ? 1 : 0;
    args->is_invariant = c->is_invariant;
    float *q = must_alloc(c->q_len * args->q_stride * 4);
    uint64_t random = 4;
    fill_random(q, c->q_len * args->q_stride, &random);
    args->q = q;
    args->o = must_alloc(c->q_len * args->o_stride * 4);
    if (c->has_mass) args->mass = must_alloc(c->q_len * c->kv_len * 4);
    if (c->n_ids) add_lists(setup, c);
    count_work(setup, c);
}

static void close_case(bench_setup *setup, const bench_case *c)
{
    attend_case layout = {.n_kv_heads = c->n_kv_heads,
                          .head_dim = c->head_dim,
                          .v_head_dim = c->head_dim,
                          .dtype = c->dtype,
                          .page_shift = PAGE_SHIFT};
    hdl_kv_view kv = {0};
    int64_t page_bytes = HDL_ALIGN_UP(lay_out_page(&kv, &layout), 64),
            cache = page_bytes * (c->kv_len >> PAGE_SHIFT);
    munmap(setup->memory, (size_t)(cache * setup->n_caches));
    free(setup->pages);
    free((void *)(uintptr_t)setup->args.q);
    free(setup->args.o);
    free(setup->args.mass);
    free(setup->sel.ids);
    free(setup->sel.counts);
}

static void run_case(const bench_case *c, const hdl_impl *impl, int n_threads, probe *p)
{
    bench_setup setup;
    open_case(&setup, c);
    if (!impl->why_not || !impl->why_not(&setup.args)) {
        void *workspace = must_alloc(impl->workspace ? impl->workspace(&setup.args, n_threads) : 0);
        double times[REPEATS], reads[REPEATS], fmas[REPEATS];
        int64_t turn = 0, calls = (int64_t)(3000 / (setup.operations / 40e3)) + 1; /* a few ms a repeat */
        for (int i = -1; i < REPEATS; i++) {
            double read = read_rate(p, n_threads), fma = fma_rate(p, n_threads), start = now_us();
            for (int64_t k = 0; k < calls; k++, turn++) {
                hdl_attend_args args = setup.args;
                args.seqs = &setup.seqs[turn % setup.n_caches];
                impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = workspace}, &args);
            }
            if (i < 0) continue;
            times[i] = (now_us() - start) / (double)calls;
            reads[i] = read;
            fmas[i] = fma;
        }
        double us = percentile(times, 50), gbs = setup.bytes / us * 1e-3,
               gflops = setup.operations / us * 1e-3;
        double read = percentile(reads, 50), fma = percentile(fmas, 50);
        printf("%s,%s,%d,%.1f,%.1f,%.1f,%.1f,%.1f,%.0f,%.0f\n", c->name, impl->name, n_threads, us,
               percentile(times, 10), percentile(times, 90), gbs, gflops, 100 * gbs / read,
               100 * gflops / fma);
        fflush(stdout);
        free(workspace);
    }
    close_case(&setup, c);
}

static void bench_select(const hdl_impl *impl, int n_threads, int64_t n_rows, int64_t n, int64_t top_k)
{
    float *score = must_alloc(n_rows * n * 4);
    uint64_t random = 8;
    for (int64_t i = 0; i < n_rows * n; i++) score[i] = expf(5 * next_unit(&random) - 12);
    hdl_selection out = {.block_size = 1, .n_rows = n_rows, .n_lists = 1, .n_ids_max = top_k + 132};
    out.ids = must_alloc(n_rows * out.n_ids_max * 4);
    out.counts = must_alloc(n_rows * 4);
    int64_t *n_visible = must_alloc(n_rows * 8);
    for (int64_t i = 0; i < n_rows; i++) n_visible[i] = n;
    hdl_select_args args = {.n_rows = n_rows,
                            .n_lists = 1,
                            .score = score,
                            .score_stride = n,
                            .n_visible = n_visible,
                            .max_visible = n,
                            .top_k = top_k,
                            .n_sink = 4,
                            .window = 128,
                            .out = &out};
    hdl_launch launch = {.n_threads = n_threads};
    launch.workspace = must_alloc(impl->workspace ? impl->workspace(&args, n_threads) : 0);
    double times[REPEATS];
    for (int i = -1; i < REPEATS; i++) {
        int calls = n_rows == 1 ? 50 : 1;
        double start = now_us();
        for (int k = 0; k < calls; k++) impl->launch(&launch, &args);
        if (i >= 0) times[i] = (now_us() - start) / calls;
    }
    double us = percentile(times, 50);
    printf("select %lld x %lld of %lld,%s,%d,%.1f,%.1f,%.1f,%.1f,,,\n", (long long)n_rows, (long long)top_k,
           (long long)n, impl->name, n_threads, us, percentile(times, 10), percentile(times, 90),
           (double)(n_rows * n) * 4e-3 / us);
    free(launch.workspace);
    free(score);
    free(out.ids);
    free(out.counts);
    free(n_visible);
}

static bool is_wanted(const char *name, int argc, char **argv)
{
    for (int i = 2; i < argc; i++)
        if (!strstr(name, argv[i])) return false;
    return true;
}

static bool is_isa_wanted(const hdl_impl *impl)
{
    const char *isa = getenv("BENCH_ISA"); /* generic, avx2, avx512; the best otherwise */
    return isa ? strcmp(hdl_isa_name(impl->isa), isa) == 0 : impl->isa == hdl_cpu_isa();
}

int main(int argc, char **argv)
{
    static const hdl_impl *const tables[] = {
        hdl_cpu_amx_attend,          hdl_cpu_avx512_attend_row, hdl_cpu_avx512_attend_rows,
        hdl_cpu_avx2_attend_row,     hdl_cpu_avx2_attend_rows,  hdl_cpu_generic_attend_row,
        hdl_cpu_generic_attend_rows,
    };
    static const hdl_impl *const routes[] = {hdl_cpu_avx512_route, hdl_cpu_avx2_route, hdl_cpu_generic_route};
    int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
    probe p = {.bytes = PROBE_BYTES};
    uint8_t *data = must_alloc(PROBE_BYTES);
    for (int64_t i = 0; i < PROBE_BYTES; i++) data[i] = (uint8_t)(i * 2654435761u >> 24);
    p.data = data;
    printf("# isa %s, %d threads, %s time, reads %.1f GB/s, fma %.0f GFLOP/s\n", hdl_isa_name(hdl_cpu_isa()),
           n_threads, n_threads == 1 ? "processor" : "wall", read_rate(&p, n_threads),
           fma_rate(&p, n_threads));
    printf("case,impl,threads,us,us_p10,us_p90,gb_s,gflop_s,read_percent,fma_percent\n");
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        bool is_done = false;
        for (int64_t t = 0; t < HDL_COUNT(tables) && is_wanted(cases[i].name, argc, argv); t++)
            for (const hdl_impl *impl = tables[t]; impl->name && !is_done; impl++) {
                hdl_attend_args shape = {
                    .n_rows = 1, .n_heads = cases[i].n_heads, .n_kv_heads = cases[i].n_kv_heads};
                shape.head_dim = shape.v_head_dim = cases[i].head_dim;
                shape.kv_dtype = cases[i].dtype;
                shape.max_q_len = cases[i].q_len;
                shape.has_selection = cases[i].n_ids > 0;
                shape.rows_per_list = cases[i].rows_per_list;
                shape.has_mass = cases[i].has_mass;
                shape.is_invariant = cases[i].is_invariant;
                if (!is_isa_wanted(impl) || impl->why_not(&shape)) continue;
                run_case(&cases[i], impl, n_threads, &p);
                is_done = true;
            }
    }
    for (int64_t t = 0; t < HDL_COUNT(routes) && is_wanted("select", argc, argv); t++)
        for (const hdl_impl *impl = routes[t]; impl->name; impl++)
            if (impl->op == HDL_OP_SELECT && is_isa_wanted(impl)) {
                bench_select(impl, n_threads, 1, 32768, 1024);
                bench_select(impl, n_threads, 1, 131072, 1024);
                bench_select(impl, n_threads, 64, 8192, 1024);
            }
    free(data);
    return 0;
}
