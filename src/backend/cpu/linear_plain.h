/* linear_plain.h - LINEAR in plain C, for every type and every shape; the compiler vectorises it.
 *
 * A task is a run of outputs. A weight row is decoded once, to int16 codes or to f32, and used for all
 * rows of x, four products at a time: four outputs of one row of x, or four rows of x. Lanes run along
 * k. Float rows keep 8 partial sums (element k in sum k % 8), added pairwise; quantised rows add one
 * product per block in ascending order. */
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

enum { OUTPUTS_PER_TASK = 16, ROWS_PER_ROUNDING_TASK = 8, FOUR = 4 };

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
static int64_t row_scratch_bytes(const hdl_linear_args *a)
{
    return HDL_ALIGN_UP(a->n_in * 4, 64);
}

static int64_t scratch_bytes_of(const hdl_linear_args *a)
{
    return FOUR * row_scratch_bytes(a);
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

/* One of four products done together: a decoded weight row and a rounded row of x. The four share either
 * the weight row or the row of x. */
typedef struct lane {
    const int16_t *w, *q;     /* [n_in] */
    const float *scale, *min; /* [n_in / 16], [n_in / 32] */
    const float *d, *ds;      /* [n_in / 32] */
} lane;

/* out[i] = lane i's product. Per lane and block: the exact sum of 32 products (two of 16 for has_halves)
 * times scale and d, then the minimum; so a product's bits do not depend on its neighbours. The
 * compilers here do not find pmaddwd by themselves; every x86-64 has it. */
#if defined(__SSE2__)
static inline __m128i dot_16(const int16_t *w, const int16_t *q)
{
    const __m128i *a = (const __m128i *)w, *b = (const __m128i *)q;
    return _mm_add_epi32(_mm_madd_epi16(_mm_loadu_si128(a), _mm_loadu_si128(b)),
                         _mm_madd_epi16(_mm_loadu_si128(a + 1), _mm_loadu_si128(b + 1)));
}
/* Lane i = the sum of s[i]'s lanes. */
static inline __m128 sums_of(const __m128i s[4])
{
    __m128i a = _mm_add_epi32(_mm_unpacklo_epi32(s[0], s[1]), _mm_unpackhi_epi32(s[0], s[1]));
    __m128i b = _mm_add_epi32(_mm_unpacklo_epi32(s[2], s[3]), _mm_unpackhi_epi32(s[2], s[3]));
    return _mm_cvtepi32_ps(_mm_add_epi32(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b)));
}
static inline __m128 four(const float *a, const float *b, const float *c, const float *d)
{
    return _mm_movelh_ps(_mm_unpacklo_ps(_mm_load_ss(a), _mm_load_ss(b)),
                         _mm_unpacklo_ps(_mm_load_ss(c), _mm_load_ss(d)));
}
static inline void dot_four_as(const lane l[4], bool has_halves, const bool is_same_w, int64_t n_blocks,
                               float *out)
{
    __m128 acc = _mm_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++) {
        const int64_t at = 2 * b;
        const __m128 d = four(l[0].d + b, l[1].d + b, l[2].d + b, l[3].d + b);
        const __m128 scale = is_same_w
                                 ? _mm_set1_ps(l[0].scale[at])
                                 : four(l[0].scale + at, l[1].scale + at, l[2].scale + at, l[3].scale + at);
        __m128i low[4], high[4];
        for (int i = 0; i < 4; i++) {
            const int16_t *w = l[is_same_w ? 0 : i].w + 32 * b, *q = l[is_same_w ? i : 0].q + 32 * b;
            low[i] = dot_16(w, q);
            high[i] = dot_16(w + 16, q + 16);
        }
        if (has_halves) {
            const int64_t o = at + 1;
            const __m128 other = four(l[0].scale + o, l[1].scale + o, l[2].scale + o, l[3].scale + o);
            acc = _mm_add_ps(acc, _mm_mul_ps(sums_of(low), _mm_mul_ps(scale, d)));
            acc = _mm_add_ps(acc, _mm_mul_ps(sums_of(high), _mm_mul_ps(other, d)));
        } else {
            const __m128 min = is_same_w ? _mm_set1_ps(l[0].min[b])
                                         : four(l[0].min + b, l[1].min + b, l[2].min + b, l[3].min + b);
            const __m128 ds = four(l[0].ds + b, l[1].ds + b, l[2].ds + b, l[3].ds + b);
            for (int i = 0; i < 4; i++) low[i] = _mm_add_epi32(low[i], high[i]);
            acc = _mm_add_ps(acc, _mm_mul_ps(sums_of(low), _mm_mul_ps(scale, d)));
            acc = _mm_add_ps(acc, _mm_mul_ps(min, ds));
        }
    }
    _mm_storeu_ps(out, acc);
}
static void dot_four(const lane l[4], bool has_halves, int64_t n_blocks, float *out)
{
    if (l[0].w == l[3].w)
        dot_four_as(l, has_halves, true, n_blocks, out);
    else
        dot_four_as(l, has_halves, false, n_blocks, out);
}
#else
static inline float dot_16(const int16_t *w, const int16_t *q)
{
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += w[i] * q[i];
    return (float)sum; /* below 2^24: exact */
}
static void dot_four(const lane l[4], bool has_halves, int64_t n_blocks, float *out)
{
    for (int i = 0; i < 4; i++) {
        float acc = 0;
        for (int64_t b = 0; b < n_blocks; b++) {
            const float *scale = l[i].scale + 2 * b, d = l[i].d[b];
            float low = dot_16(l[i].w + 32 * b, l[i].q + 32 * b),
                  high = dot_16(l[i].w + 32 * b + 16, l[i].q + 32 * b + 16);
            if (has_halves) {
                acc += low * (scale[0] * d);
                acc += high * (scale[1] * d);
            } else {
                acc += (low + high) * (scale[0] * d);
                acc += l[i].min[b] * l[i].ds[b];
            }
        }
        out[i] = acc;
    }
}
#endif

static float dot_floats(const float *w, const float *x, int64_t n)
{
    float acc[8] = {0};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        for (int i = 0; i < 8; i++) acc[i] += w[k + i] * x[k + i];
    for (; k < n; k++) acc[k % 8] += w[k] * x[k];
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
}

static void store_output(const hdl_linear_part *part, int64_t row, int64_t j, float sum)
{
    float *out = part->out + row * part->out_stride + j;
    if (part->bias) sum += part->bias[j];
    *out = part->accumulate ? *out + sum : sum;
}

/* Outputs j.. j + n - 1 (n <= FOUR) of a quantised part. One row of x: four outputs at once. */
static void quant_outputs(const linear_call *call, const hdl_linear_part *part, int64_t j, int n,
                          uint8_t *scratch)
{
    const hdl_linear_args *a = call->args;
    const int64_t n_blocks = a->n_in / 32;
    const bool has_halves = part->w.dtype == HDL_Q6_K;
    lane of[FOUR];
    float sums[FOUR];
    for (int i = 0; i < FOUR; i++) {
        int64_t at = HDL_MIN(i, n - 1);
        int16_t *codes = (int16_t *)(scratch + at * row_scratch_bytes(a));
        float *scale = (float *)(codes + a->n_in), *min = scale + a->n_in / 16;
        if (i == at)
            codes_row(part->w.dtype, (const uint8_t *)part->w.data + (j + i) * part->w.row_bytes, a->n_in,
                      codes, scale, min);
        of[i] = (lane){codes, call->q, scale, min, call->d, call->ds};
    }
    if (a->n_rows == 1) {
        dot_four(of, has_halves, n_blocks, sums);
        for (int i = 0; i < n; i++) store_output(part, 0, j + i, sums[i]);
        return;
    }
    for (int64_t k = 0; k < n; k++)
        for (int64_t row = 0; row < a->n_rows; row += FOUR) {
            lane l[FOUR];
            for (int i = 0; i < FOUR; i++) {
                int64_t r = HDL_MIN(row + i, a->n_rows - 1);
                l[i] = of[k];
                l[i].q += r * a->n_in;
                l[i].d += r * n_blocks;
                l[i].ds += r * n_blocks;
            }
            dot_four(l, has_halves, n_blocks, sums);
            for (int64_t r = row; r < HDL_MIN(row + FOUR, a->n_rows); r++)
                store_output(part, r, j + k, sums[r - row]);
        }
}

static void linear_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    int p = 0;
    while (task >= call->first_task[p + 1]) p++;
    const hdl_linear_part *part = &a->part[p];
    uint8_t *scratch = call->scratch + thread * call->scratch_bytes;
    int64_t j = (task - call->first_task[p]) * OUTPUTS_PER_TASK,
            end = HDL_MIN(j + OUTPUTS_PER_TASK, part->w.n_rows);
    if (hdl_dtype_of(part->w.dtype)->is_quantised) {
        for (; j < end; j += FOUR)
            quant_outputs(call, part, j, (int)HDL_MIN(end - j, (int64_t)FOUR), scratch);
        return;
    }
    float *floats = (float *)scratch;
    for (; j < end; j++) {
        hdl_dequant_row(part->w.dtype, (const uint8_t *)part->w.data + j * part->w.row_bytes, floats,
                        a->n_in);
        for (int64_t r = 0; r < a->n_rows; r++)
            store_output(part, r, j, dot_floats(floats, a->x + r * a->x_stride, a->n_in));
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
