/* ref_delta.c - the reference of CONV and DELTA: row by row in double, the state rounded to f32 after each
 * row, so that no cut between calls changes a bit. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"

/* The sequence's column c, `back` rows above row `row` of it, which may lie in `before`. */
static float column_at(const hdl_conv_args *a, const hdl_state_seq *seq, int64_t row, int64_t back, int64_t c)
{
    int64_t at = row - back;
    if (at >= 0) return a->x[(seq->first_row + at) * a->x_stride + c];
    return seq->before[(a->width - 1 + at) * a->n_cols + c];
}

static void conv_seq(const hdl_conv_args *a, const hdl_state_seq *seq)
{
    int64_t n_kept = a->width - 1;
    for (int64_t i = 0; i < n_kept; i++)
        for (int64_t c = 0; c < a->n_cols; c++)
            seq->after[i * a->n_cols + c] = column_at(a, seq, seq->q_len, n_kept - i, c);
    for (int64_t row = seq->q_len - 1; row >= 0; row--) { /* from below: what is read is not yet written */
        int64_t r = seq->first_row + row, reach = HDL_MIN(n_kept, a->n_visible[r] - 1 - a->doc_start[r]);
        for (int64_t c = 0; c < a->n_cols; c++) {
            double y = 0;
            for (int64_t back = reach; back >= 0; back--)
                y += (double)a->weight[(n_kept - back) * a->n_cols + c] * column_at(a, seq, row, back, c);
            a->x[r * a->x_stride + c] = (float)(y / (1 + exp(-y)));
        }
    }
}

static void conv_launch(const hdl_launch *launch, const void *args)
{
    const hdl_conv_args *a = args;
    (void)launch;
    for (int32_t s = 0; s < a->n_seqs; s++) conv_seq(a, &a->seqs[s]);
}

static double dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

static void delta_row(const hdl_delta_args *a, int64_t r, int32_t head, float *state)
{
    int64_t n_k = a->k_dim, n_v = a->v_dim, n_heads = a->n_heads;
    const float *qkv = a->qkv + r * a->qkv_stride, *ab = a->ab + r * a->ab_stride;
    const float *q = qkv + head * n_k, *k = qkv + (n_heads + head) * n_k,
                *v = qkv + 2 * n_heads * n_k + head * n_v;
    double q_factor = 1 / sqrt(dot(q, q, n_k) + a->eps), k_factor = 1 / sqrt(dot(k, k, n_k) + a->eps);
    double x = (double)ab[head] + a->dt_bias[head];
    double softplus = fmax(x, 0) + log1p(exp(-fabs(x)));
    double alpha = exp(-exp((double)a->a_log[head]) * softplus),
           beta = 1 / (1 + exp(-(double)ab[n_heads + head]));
    for (int64_t i = 0; i < n_v; i++) {
        double p = 0, o = 0;
        for (int64_t j = 0; j < n_k; j++) p += state[j * n_v + i] * (k[j] * k_factor);
        double u = beta * (v[i] - alpha * p);
        for (int64_t j = 0; j < n_k; j++) {
            double s = alpha * state[j * n_v + i] + u * (k[j] * k_factor);
            o += s * (q[j] * q_factor);
            state[j * n_v + i] = (float)s;
        }
        a->o[r * a->o_stride + head * n_v + i] = (float)(a->scale * o);
    }
}

static void delta_launch(const hdl_launch *launch, const void *args)
{
    const hdl_delta_args *a = args;
    int64_t n_state = (int64_t)a->k_dim * a->v_dim;
    (void)launch;
    for (int32_t s = 0; s < a->n_seqs; s++)
        for (int32_t head = 0; head < a->n_heads; head++) {
            const hdl_state_seq *seq = &a->seqs[s];
            float *state = seq->after + head * n_state;
            memcpy(state, seq->before + head * n_state, (size_t)n_state * sizeof *state);
            for (int64_t r = seq->first_row; r < seq->first_row + seq->q_len; r++) {
                if (a->n_visible[r] - 1 == a->doc_start[r]) memset(state, 0, (size_t)n_state * sizeof *state);
                delta_row(a, r, head, state);
            }
        }
}

const hdl_impl hdl_cpu_ref_delta[] = {
    {"conv_ref", HDL_OP_CONV, HDL_ISA_REF, NULL, NULL, conv_launch},
    {"delta_ref", HDL_OP_DELTA, HDL_ISA_REF, NULL, NULL, delta_launch},
    {0},
};
