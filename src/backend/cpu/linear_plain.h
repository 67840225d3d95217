/* linear_plain.h - LINEAR in plain C, for every type and every shape; the compiler vectorises it.
 *
 * A task is a run of outputs. A weight row is decoded once, to int16 codes or to f32, and used for
 * all rows of x: lanes run along k. Float rows keep 8 partial sums (element k in sum k % 8), added
 * pairwise; quantised rows add one product per block in ascending order. */
#ifndef HDL_LINEAR_PLAIN_H
#define HDL_LINEAR_PLAIN_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/linear_codes.h"
#include "backend/cpu/quantise.h"
#include "base/pool.h"
#include "tensor/quant.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { OUTPUTS_PER_TASK = 16, ROWS_PER_ROUNDING_TASK = 8 };

typedef struct linear_call {
    const hdl_linear_args *args;
    int16_t *q; /* [n_rows, n_in] */
    float *d;   /* [n_rows, n_in / 32] */
    float *ds;  /* [n_rows, n_in / 32] d * sum(q) */
    uint8_t *scratch;
    int64_t scratch_bytes;
    int64_t first_task[HDL_LINEAR_MAX_PARTS + 1];
} linear_call;

static bool has_quantised(const hdl_linear_args *a)
{
    for (int32_t p = 0; p < a->n_parts; p++)
        if (hdl_dtype_of(a->part[p].w.dtype)->is_quantised) return true;
    return false;
}

static int64_t rounded_bytes(const hdl_linear_args *a)
{
    int64_t n = a->n_rows * a->n_in;
    return has_quantised(a) ? HDL_ALIGN_UP(n * 2, 64) + 2 * HDL_ALIGN_UP(n / 32 * 4, 64) : 0;
}

/* f32 [n_in], or int16 [n_in] with scales and minima behind. */
static int64_t scratch_bytes_of(const hdl_linear_args *a)
{
    return HDL_ALIGN_UP(a->n_in * 4, 64);
}

static int64_t linear_workspace(const void *args, int n_threads)
{
    return rounded_bytes(args) + scratch_bytes_of(args) * n_threads;
}

static const char *linear_why_not(const void *args)
{
    const hdl_linear_args *a = args;
    for (int32_t p = 0; p < a->n_parts; p++)
        if (a->part[p].w.dtype == HDL_I8 || a->part[p].w.dtype == HDL_I32)
            return "it has no kernel for a part's weight type";
    return NULL;
}

/* Exact sum of 16 products. The compilers here do not find pmaddwd by themselves; every x86-64 has it. */
#if defined(__SSE2__)
typedef __m128i int_sums;
static inline int_sums dot_16(const int16_t *w, const int16_t *q)
{
    const __m128i *a = (const __m128i *)w, *b = (const __m128i *)q;
    return _mm_add_epi32(_mm_madd_epi16(_mm_loadu_si128(a), _mm_loadu_si128(b)),
                         _mm_madd_epi16(_mm_loadu_si128(a + 1), _mm_loadu_si128(b + 1)));
}
static inline int_sums add_sums(int_sums a, int_sums b)
{
    return _mm_add_epi32(a, b);
}
static inline int32_t sum_of(int_sums s)
{
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
#else
typedef int32_t int_sums;
static inline int_sums dot_16(const int16_t *w, const int16_t *q)
{
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += w[i] * q[i];
    return sum;
}
static inline int_sums add_sums(int_sums a, int_sums b)
{
    return a + b;
}
static inline int32_t sum_of(int_sums s)
{
    return s;
}
#endif

static float dot_codes(const int16_t *w, const float *scale, const float *min, bool has_halves,
                       const int16_t *q, const float *d, const float *ds, int64_t n_blocks)
{
    float acc = 0;
    for (int64_t b = 0; b < n_blocks; b++) {
        int_sums s0 = dot_16(w + 32 * b, q + 32 * b), s1 = dot_16(w + 32 * b + 16, q + 32 * b + 16);
        if (has_halves) {
            acc += (float)sum_of(s0) * (scale[2 * b] * d[b]);
            acc += (float)sum_of(s1) * (scale[2 * b + 1] * d[b]);
        } else {
            acc += (float)sum_of(add_sums(s0, s1)) * (scale[2 * b] * d[b]);
            acc += min[b] * ds[b];
        }
    }
    return acc;
}

static float dot_floats(const float *w, const float *x, int64_t n)
{
    float acc[8] = {0};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        for (int i = 0; i < 8; i++) acc[i] += w[k + i] * x[k + i];
    for (; k < n; k++) acc[k % 8] += w[k] * x[k];
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
}

static void linear_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    int p = 0;
    while (task >= call->first_task[p + 1]) p++;
    const hdl_linear_part *part = &a->part[p];
    const bool is_quantised = hdl_dtype_of(part->w.dtype)->is_quantised;
    const int64_t n_blocks = a->n_in / 32;
    float *floats = (float *)(call->scratch + thread * call->scratch_bytes);
    int16_t *codes = (int16_t *)floats;
    float *scale = (float *)(codes + a->n_in), *min = scale + a->n_in / 16;
    int64_t j = (task - call->first_task[p]) * OUTPUTS_PER_TASK,
            end = HDL_MIN(j + OUTPUTS_PER_TASK, part->w.n_rows);
    for (; j < end; j++) {
        const uint8_t *row = (const uint8_t *)part->w.data + j * part->w.row_bytes;
        if (is_quantised)
            codes_row(part->w.dtype, row, a->n_in, codes, scale, min);
        else
            hdl_dequant_row(part->w.dtype, row, floats, a->n_in);
        for (int64_t r = 0; r < a->n_rows; r++) {
            float *out = part->out + r * part->out_stride + j;
            float sum = is_quantised
                            ? dot_codes(codes, scale, min, part->w.dtype == HDL_Q6_K, call->q + r * a->n_in,
                                        call->d + r * n_blocks, call->ds + r * n_blocks, n_blocks)
                            : dot_floats(floats, a->x + r * a->x_stride, a->n_in);
            if (part->bias) sum += part->bias[j];
            *out = part->accumulate ? *out + sum : sum;
        }
    }
}

static void rounding_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    int64_t row = task * ROWS_PER_ROUNDING_TASK, end = HDL_MIN(row + ROWS_PER_ROUNDING_TASK, a->n_rows);
    (void)thread;
    for (; row < end; row++) {
        for (int64_t b = 0; b < a->n_in / 32; b++) {
            int8_t q[32];
            int32_t sum = 0;
            float d = hdl_quantise_block(a->x + row * a->x_stride + b * 32, q);
            for (int i = 0; i < 32; i++) call->q[row * a->n_in + b * 32 + i] = q[i], sum += q[i];
            call->d[row * (a->n_in / 32) + b] = d;
            call->ds[row * (a->n_in / 32) + b] = d * (float)sum;
        }
    }
}

static void linear_launch(const hdl_launch *launch, const void *args)
{
    const hdl_linear_args *a = args;
    int64_t n = a->n_rows * a->n_in;
    if (n <= 0) return;
    linear_call call = {.args = a, .scratch_bytes = scratch_bytes_of(a)};
    call.q = launch->workspace;
    call.d = (float *)((uint8_t *)launch->workspace + HDL_ALIGN_UP(n * 2, 64));
    call.ds = (float *)((uint8_t *)call.d + HDL_ALIGN_UP(n / 32 * 4, 64));
    call.scratch = (uint8_t *)launch->workspace + rounded_bytes(a);
    for (int32_t p = 0; p < a->n_parts; p++) {
        int64_t n_tasks = (a->part[p].w.n_rows + OUTPUTS_PER_TASK - 1) / OUTPUTS_PER_TASK;
        call.first_task[p + 1] = call.first_task[p] + n_tasks;
    }
    if (has_quantised(a)) {
        int64_t n_tasks = (a->n_rows + ROWS_PER_ROUNDING_TASK - 1) / ROWS_PER_ROUNDING_TASK;
        hdl_parallel_for(launch->n_threads, n_tasks, rounding_task, &call);
    }
    hdl_parallel_for(launch->n_threads, call.first_task[a->n_parts], linear_task, &call);
}

#endif
