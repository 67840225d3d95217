/* bench_linear.c - LINEAR on the shapes of the demo models, one CSV row per case.
 *
 *   bench_linear [-t THREADS] [-n ROWS,ROWS..] [-d DTYPE,DTYPE..] [-c NAME,NAME..]
 *
 * One row of x is timed with cold weights (copies of the weight are walked until 128 MiB lie between
 * two uses), more rows with warm ones. Median of at least 20 calls with p10 and p90; the shares are
 * of the peaks measured in this run. HEDDLE_IMPL picks the implementation. The last rows add a
 * whole SmolLM2-135M up: 30 layers, and the logits where one row is decoded. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../tests/backend/cases_linear.h"
#include "backend/cpu/peaks.h"
#include "base/pool.h"

enum { MAX_CALLS = 400, MIN_CALLS = 21, MAX_COPIES = 4096, N_LAYERS = 30 };
static const int64_t cold_bytes = 128 << 20;
static const double case_seconds = 0.25;

typedef struct options {
    int n_threads;
    const char *rows, *dtypes, *names;
} options;

typedef struct timing {
    double median, p10, p90; /* seconds */
} timing;

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* True when `list` (NULL = everything) holds the item. */
static bool holds(const char *list, const char *item)
{
    size_t n = strlen(item);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, item, n) && (at[n] == ',' || !at[n])) return true;
    return !list;
}

/* The weight, n_copies times in one allocation. */
static uint8_t *copies_of(const hdl_tensor *w, int64_t n_copies)
{
    int64_t bytes = w->n_rows * w->row_bytes;
    uint8_t *data = aligned_alloc(64, (size_t)HDL_ALIGN_UP(n_copies * bytes, 64));
    for (int64_t i = 0; data && i < n_copies; i++) memcpy(data + i * bytes, w->data, (size_t)bytes);
    return data;
}

static timing time_calls(const hdl_impl *impl, hdl_linear_args *a, uint8_t *const *copies, int64_t n_copies,
                         const hdl_launch *launch)
{
    double seconds[MAX_CALLS], begin = seconds_now();
    int n = 0;
    for (int64_t copy = 0; n < MAX_CALLS && (n < MIN_CALLS || seconds_now() - begin < case_seconds); n++) {
        for (int32_t p = 0; p < a->n_parts; p++)
            a->part[p].w.data = copies[p] + copy * a->part[p].w.n_rows * a->part[p].w.row_bytes;
        copy = (copy + 1) % n_copies;
        double start = seconds_now();
        impl->launch(launch, a);
        seconds[n] = seconds_now() - start;
    }
    qsort(seconds, (size_t)n, sizeof seconds[0], by_value);
    return (timing){seconds[n / 2], seconds[n / 10], seconds[n * 9 / 10]};
}

/* Prints the row and returns the median; 0 when there was no memory. */
static double bench_case(const linear_case *c, hdl_dtype dtype, int64_t n_rows, const hdl_peaks *peaks)
{
    hdl_linear_args a = {.n_rows = n_rows, .n_in = c->n_in, .x_stride = c->n_in, .n_parts = c->n_parts};
    uint8_t *copies[HDL_LINEAR_MAX_PARTS] = {NULL};
    uint64_t seed = 1;
    int64_t bytes = 0, n_outputs = 0;
    double median = 0;
    float *x = malloc((size_t)(n_rows * c->n_in) * 4);
    for (int64_t i = 0; x && i < n_rows * c->n_in; i++) x[i] = linear_noise(&seed);
    a.x = x;
    for (int32_t p = 0; p < c->n_parts; p++) bytes += c->n_out[p] * hdl_row_bytes(dtype, c->n_in);
    int64_t n_copies = n_rows > 1 ? 1 : HDL_MIN(cold_bytes / bytes + 1, (int64_t)MAX_COPIES);
    bool is_complete = x != NULL;
    for (int32_t p = 0; p < c->n_parts; p++) {
        hdl_linear_part *part = &a.part[p];
        part->w = linear_weight(dtype, c->n_out[p], c->n_in, 1);
        if (part->w.data) copies[p] = copies_of(&part->w, n_copies);
        free((void *)part->w.data);
        part->out_stride = c->n_out[p];
        part->out = calloc((size_t)(n_rows * c->n_out[p]), 4);
        part->accumulate = c->accumulate;
        n_outputs += c->n_out[p];
        is_complete = is_complete && copies[p] && part->out;
    }
    const hdl_impl *impl = hdl_choose(HDL_OP_LINEAR, &a, NULL);
    int64_t size = impl && impl->workspace ? impl->workspace(&a, peaks->n_threads) : 0;
    void *workspace = aligned_alloc(64, (size_t)HDL_ALIGN_UP(size + 64, 64));
    if (is_complete && impl && workspace) {
        bool is_float = !hdl_dtype_of(dtype)->is_quantised;
        timing t = time_calls(impl, &a, copies, n_copies,
                              &(hdl_launch){.n_threads = peaks->n_threads, .workspace = workspace});
        double gbs = 1e-9 * (double)bytes / t.median,
               gops = 2e-9 * (double)(n_rows * c->n_in * n_outputs) / t.median;
        median = t.median;
        printf("%s,%s,%" PRId64 ",%.1f,%.1f,%.1f,%.1f,%.0f,%.0f,%.0f,%s\n", c->name,
               hdl_dtype_of(dtype)->name, n_rows, 1e6 * t.median, 1e6 * t.p10, 1e6 * t.p90, gbs, gops,
               100 * gbs / peaks->read[HDL_N_READ_SIZES - 1].gbs_all,
               100 * gops / (is_float ? peaks->fma_gflops_all : peaks->int8_gops_all), impl->name);
        fflush(stdout);
    }
    for (int32_t p = 0; p < c->n_parts; p++) free(copies[p]), free(a.part[p].out);
    free(workspace);
    free(x);
    return median;
}

static void bench_type(const options *o, hdl_dtype dtype, int64_t n_rows, const hdl_peaks *peaks)
{
    double layer = 0, head = 0;
    bool has_all = true;
    for (int64_t i = 0; i < HDL_COUNT(linear_bench); i++) {
        const linear_case *c = &linear_bench[i];
        bool is_smol = !strncmp(c->name, "smol", 4), is_head = !strcmp(c->name, "smol_head");
        if (!holds(o->names, c->name) || c->n_in % hdl_dtype_of(dtype)->block_elems ||
            (is_head && n_rows > 8)) {
            has_all &= !is_smol || (is_head && n_rows > 8);
            continue;
        }
        double median = bench_case(c, dtype, n_rows, peaks);
        if (is_head)
            head = median;
        else if (is_smol)
            layer += median;
    }
    if (!has_all) return;
    double total = N_LAYERS * layer + head;
    printf("# smollm2-135m %s, %" PRId64 " rows: linear layers take %.2f ms, so at most %.0f tokens/s\n",
           hdl_dtype_of(dtype)->name, n_rows, 1e3 * total, (double)n_rows / total);
}

int main(int argc, char **argv)
{
    options o = {.n_threads = hdl_default_threads(), .rows = "1,8,512", .dtypes = NULL};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "-t"))
            o.n_threads = (int)HDL_MAX(strtol(argv[i + 1], NULL, 10), 1);
        else if (!strcmp(argv[i], "-n"))
            o.rows = argv[i + 1];
        else if (!strcmp(argv[i], "-d"))
            o.dtypes = argv[i + 1];
        else if (!strcmp(argv[i], "-c"))
            o.names = argv[i + 1];
    }
    hdl_peaks peaks;
    if (hdl_measure_peaks(&peaks, o.n_threads)) {
        fprintf(stderr, "%s\n", hdl_last_error());
        return 1;
    }
    printf("# isa %s, %d threads; f32 fma %.0f GFLOP/s (one thread %.0f), int8 %.0f GOP/s (%.0f)\n",
           hdl_isa_name(peaks.isa), peaks.n_threads, peaks.fma_gflops_all, peaks.fma_gflops_one,
           peaks.int8_gops_all, peaks.int8_gops_one);
    for (int i = 0; i < HDL_N_READ_SIZES; i++)
        printf("# read %" PRId64 " KiB: %.1f GB/s, one thread %.1f\n", peaks.read[i].bytes >> 10,
               peaks.read[i].gbs_all, peaks.read[i].gbs_one);
    printf("case,dtype,rows,us,p10,p90,GB/s,GOP/s,%%read,%%compute,impl\n");
    for (const char *at = o.rows; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        for (int64_t d = 0; d < HDL_COUNT(linear_dtypes); d++)
            if (holds(o.dtypes, hdl_dtype_of(linear_dtypes[d])->name))
                bench_type(&o, linear_dtypes[d], HDL_MAX(strtoll(at, NULL, 10), 1), &peaks);
    return 0;
}
