/* simd_misc.c - EMBED, NORM, ROPE and GLU: row by row, in GCC's vector types, the same source for
 * every instruction set.
 *
 * All four move each element once or twice and do little with it: the bound is reading and writing
 * the rows (n_rows * n_cols * 8..12 bytes). No fma is used, so that element-wise results (ROPE, GLU)
 * are the same on every instruction set; NORM's sum depends on the number of lanes. A row's bits
 * depend on the row alone. Calls below INLINE_ELEMS elements run on the calling thread, because a
 * parallel region costs as much as they do.
 *
 * exp: |relative error| <= 2e-7 for -87 <= x <= 88, clamped outside; NaN stays NaN.
 * SiLU = x / (1 + exp(-x)): 4e-7 relative. GELU = x / (1 + exp(-2y)), the same function as
 * 0.5 x (1 + tanh y): its error in y grows with |y|, so 4e-7 + 4e-7 |y| relative, and always below
 * 1e-6 |x|. */
#include "backend/cpu/cpu.h"
#include "base/pool.h"
#include "tensor/quant.h"

#include <math.h>
#include <string.h>

enum { INLINE_ELEMS = 32768, ROWS_PER_TASK = 8 };
#if defined(HDL_ISA_avx512)
enum { THIS_ISA = HDL_ISA_AVX512, WIDTH = 16 };
#elif defined(HDL_ISA_avx2)
enum { THIS_ISA = HDL_ISA_AVX2, WIDTH = 8 };
#else
enum { THIS_ISA = HDL_ISA_GENERIC, WIDTH = 4 };
#endif
typedef float vf __attribute__((vector_size(WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(WIDTH * 4)));

static inline vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
static inline vf set1(float x)
{
    return (vf){0} + x;
}
/* a where the mask is set, else b. */
static inline vf choose(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* exp by 2^n * poly(r), |r| <= ln 2 / 2; n ln 2 is taken off in two exact pieces. */
static inline vf exp_v(vf x)
{
    x = choose(x < set1(-87.0f), set1(-87.0f), x);
    x = choose(x > set1(88.0f), set1(88.0f), x);
    vf shifted = x * set1(1.44269504f) + set1(12582912.0f); /* 1.5 * 2^23: rounds to integer */
    vf n = shifted - set1(12582912.0f);
    vf r = x - n * set1(0.693359375f) - n * set1(-2.12194440e-4f);
    vf p = set1(1.0f / 720);
    p = p * r + set1(1.0f / 120);
    p = p * r + set1(1.0f / 24);
    p = p * r + set1(1.0f / 6);
    p = p * r + set1(0.5f);
    p = p * r * r + r + set1(1.0f);
    return (vf)((vi)p + ((vi)shifted << 23));
}

static inline vf act(vf x, bool is_gelu)
{
    vf t = is_gelu ? x * (set1(-1.5957691216f) + set1(-0.0713548163f) * x * x) : -x;
    return x / (set1(1) + exp_v(t));
}

/* Rows of any op: run(args, row). */
typedef struct row_job {
    const void *args;
    int64_t n_rows;
    void (*run)(const void *args, int64_t row);
} row_job;

static void row_task(void *arg, int64_t task, int thread)
{
    const row_job *job = arg;
    int64_t row = task * ROWS_PER_TASK, end = HDL_MIN(row + ROWS_PER_TASK, job->n_rows);
    (void)thread;
    for (; row < end; row++) job->run(job->args, row);
}

static void run_rows(const hdl_launch *launch, const void *args, int64_t n_rows, int64_t n_cols,
                     void (*run)(const void *args, int64_t row))
{
    row_job job = {args, n_rows, run};
    int n_threads = n_rows * n_cols < INLINE_ELEMS ? 1 : launch->n_threads;
    hdl_parallel_for(n_threads, (n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, row_task, &job);
}

static void norm_row(const void *args, int64_t row)
{
    const hdl_norm_args *a = args;
    const int64_t n = a->n_cols;
    const float *x = a->x + row * a->x_stride, *w = a->weight;
    const float *residual = a->residual ? a->residual + row * a->out_stride : NULL;
    float *out = a->out + row * a->out_stride, sum = 0;
    vf sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int s = 0; s < 4; s++) sums[s] += load(x + i + s * WIDTH) * load(x + i + s * WIDTH);
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int lane = 0; lane < WIDTH; lane++) sum += sums[0][lane];
    for (; i < n; i++) sum += x[i] * x[i];
    const float factor = 1 / sqrtf(sum / (float)n + a->eps);
    for (i = 0; i + WIDTH <= n; i += WIDTH) {
        vf y = load(x + i) * set1(factor) * (load(w + i) + set1(a->offset));
        store(out + i, residual ? load(residual + i) + y : y);
    }
    for (; i < n; i++) out[i] = (residual ? residual[i] : 0) + x[i] * factor * (w[i] + a->offset);
}

static void norm_launch(const hdl_launch *launch, const void *args)
{
    const hdl_norm_args *a = args;
    run_rows(launch, a, a->n_rows, a->n_cols, norm_row);
}

/* One head, halves: (x[i], x[i + half]). The compiler vectorises it (cos and sin are interleaved). */
static void rope_halves(float *restrict x, const float *restrict cos_sin, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = x[i], v = x[i + half];
        x[i] = u * c - v * s;
        x[i + half] = u * s + v * c;
    }
}

static void rope_pairs(float *restrict x, const float *restrict cos_sin, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = x[2 * i], v = x[2 * i + 1];
        x[2 * i] = u * c - v * s;
        x[2 * i + 1] = u * s + v * c;
    }
}

static void rope_row(const void *args, int64_t row)
{
    const hdl_rope_args *a = args;
    const float *cos_sin = a->cos_sin + row * a->dim;
    float *x = a->x + row * a->x_stride;
    for (int32_t h = 0; h < a->n_heads; h++, x += a->head_dim) {
        if (a->is_pairs)
            rope_pairs(x, cos_sin, a->dim / 2);
        else
            rope_halves(x, cos_sin, a->dim / 2);
    }
}

static void rope_launch(const hdl_launch *launch, const void *args)
{
    const hdl_rope_args *a = args;
    run_rows(launch, a, a->n_rows, (int64_t)a->n_heads * a->dim, rope_row);
}

static void glu_row(const void *args, int64_t row)
{
    const hdl_glu_args *a = args;
    float *gate = a->gate + row * a->stride;
    const float *up = a->up + row * a->stride;
    int64_t i = 0;
    for (; i + WIDTH <= a->n_cols; i += WIDTH)
        store(gate + i, act(load(gate + i), a->is_gelu) * load(up + i));
    for (; i < a->n_cols; i++) gate[i] = act(set1(gate[i]), a->is_gelu)[0] * up[i];
}

static void glu_launch(const hdl_launch *launch, const void *args)
{
    const hdl_glu_args *a = args;
    run_rows(launch, a, a->n_rows, a->n_cols, glu_row);
}

#if defined(HDL_ISA_generic)
static void embed_row(const void *args, int64_t row)
{
    const hdl_embed_args *a = args;
    float *out = a->out + row * a->table.n_cols;
    hdl_dequant_row(a->table.dtype, (const uint8_t *)a->table.data + a->ids[row] * a->table.row_bytes, out,
                    a->table.n_cols);
    for (int64_t i = 0; i < a->table.n_cols; i++) out[i] *= a->scale;
}

static void embed_launch(const hdl_launch *launch, const void *args)
{
    const hdl_embed_args *a = args;
    run_rows(launch, a, a->n_rows, a->table.n_cols, embed_row);
}
#endif

const hdl_impl HDL_CPU_ROWS(misc)[] = {
    {"norm" HDL_ISA_SUFFIX, HDL_OP_NORM, (hdl_isa)THIS_ISA, NULL, NULL, norm_launch},
    {"rope" HDL_ISA_SUFFIX, HDL_OP_ROPE, (hdl_isa)THIS_ISA, NULL, NULL, rope_launch},
    {"glu" HDL_ISA_SUFFIX, HDL_OP_GLU, (hdl_isa)THIS_ISA, NULL, NULL, glu_launch},
#if defined(HDL_ISA_generic) /* a row of the table is decoded once: vectors would not pay */
    {"embed" HDL_ISA_SUFFIX, HDL_OP_EMBED, (hdl_isa)THIS_ISA, NULL, NULL, embed_launch},
#endif
    {0},
};
