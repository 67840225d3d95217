/* ref_backward.c - the reference of ATTEND_BACKWARD and INDEX_LOSS: naive and normative.
 *
 * One sequence after the other; a task is one KV head (one sequence for the index), which owns its columns
 * of dk and dv, so that its sums in double are made in one order: rows ascending, then heads, then tokens.
 * Results are rounded to f32 once a call, when they are added to the caller's buffers. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/ref_attend_int.h"
#include "backend/op_backward.h"
#include "base/pool.h"

static void add_rounded(float *to, const double *sums, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (float)(to[i] + sums[i]);
}

/* ---- attention: sums of one KV head, dk [kv_len, head_dim] then dv [kv_len, v_head_dim] then dq ---- */

typedef struct backward_call {
    const hdl_attend_backward_args *args;
    const hdl_attend_seq *seq;
    const hdl_attend_grad *grad;
    double *sums;    /* [n_kv_heads, sums_of(args)] */
    double *d_sinks; /* [n_heads] of all sequences */
} backward_call;

static int64_t sums_of(const hdl_attend_args *fwd)
{
    return (fwd->max_kv_len + 1) * fwd->head_dim + fwd->max_kv_len * fwd->v_head_dim;
}

/* Gradients of one row and head. */
static void backward_head(const backward_call *call, int64_t row, int32_t head, double *dk, double *dv,
                          double *dq)
{
    const hdl_attend_backward_args *args = call->args;
    const hdl_attend_args *fwd = &args->forward;
    int64_t dim = fwd->head_dim, v_dim = fwd->v_head_dim;
    int32_t kv_head;
    kv_walk walk = ref_head_walk(fwd, row, head, &kv_head);
    const float *q = fwd->q + row * fwd->q_stride + head * dim;
    const float *o = fwd->o + row * fwd->o_stride + head * v_dim;
    const float *d_o = args->d_o + row * args->d_o_stride + head * v_dim;
    double lse = fwd->lse[row * fwd->n_heads + head], delta = 0;
    memset(dq, 0, (size_t)dim * sizeof *dq);
    for (int64_t i = 0; i < v_dim; i++) delta += (double)d_o[i] * o[i];
    if (lse > -INFINITY && fwd->sink) call->d_sinks[head] -= exp(fwd->sink[head] - lse) * delta;
    for (int64_t step = walk.begin; step < walk.end && lse > -INFINITY; step++) {
        int64_t token = walk_token(&walk, step);
        if (!walk_sees(&walk, token)) continue;
        double s = ref_logit(fwd, &walk, step, q, kv_head), d_p = 0;
        double p = exp(s + (walk.bias ? walk.bias[step / walk.size] : 0) - lse);
        if (p == 0) continue;
        float scale;
        const uint8_t *v = ref_kv_row(fwd, walk.kv, token, kv_head, true, &scale);
        for (int64_t i = 0; i < v_dim; i++) {
            d_p += d_o[i] * (double)stored_element(walk.kv->dtype, v, i, scale);
            dv[token * v_dim + i] += p * d_o[i];
        }
        double ds = p * (d_p - delta), dx = ds * fwd->scale;
        if (args->d_bias) {
            float *at = args->d_bias + (walk.bias - fwd->selection->bias) + step / walk.size;
            *at = (float)(*at + ds);
        }
        if (fwd->soft_cap > 0) dx *= 1 - s / fwd->soft_cap * (s / fwd->soft_cap);
        const uint8_t *k = ref_kv_row(fwd, walk.kv, token, kv_head, false, &scale);
        for (int64_t i = 0; i < dim; i++) {
            dq[i] += dx * (double)stored_element(walk.kv->dtype, k, i, scale);
            dk[token * dim + i] += dx * q[i];
        }
    }
}

static void backward_kv_head(void *arg, int64_t task, int thread)
{
    const backward_call *call = arg;
    const hdl_attend_backward_args *args = call->args;
    const hdl_attend_args *fwd = &args->forward;
    const hdl_attend_seq *seq = call->seq;
    int64_t dim = fwd->head_dim, v_dim = fwd->v_head_dim, group = fwd->n_heads / fwd->n_kv_heads;
    double *dk = call->sums + task * sums_of(fwd), *dv = dk + seq->kv_len * dim;
    double *dq = dv + seq->kv_len * v_dim;
    (void)thread;
    memset(dk, 0, (size_t)(seq->kv_len * (dim + v_dim)) * sizeof *dk);
    for (int64_t row = seq->first_row; row < seq->first_row + seq->q_len; row++)
        for (int64_t head = task * group; head < (task + 1) * group; head++) {
            backward_head(call, row, (int32_t)head, dk, dv, dq);
            float *out = args->dq + row * args->dq_stride + head * dim;
            for (int64_t i = 0; i < dim; i++) out[i] = (float)dq[i];
        }
    for (int64_t t = 0; t < seq->kv_len; t++) {
        add_rounded(call->grad->dk + (t * fwd->n_kv_heads + task) * dim, dk + t * dim, dim);
        add_rounded(call->grad->dv + (t * fwd->n_kv_heads + task) * v_dim, dv + t * v_dim, v_dim);
    }
}

static int64_t backward_workspace(const void *op, int n_threads)
{
    const hdl_attend_backward_args *args = op;
    (void)n_threads;
    return (args->forward.n_kv_heads * sums_of(&args->forward) + args->forward.n_heads) *
           (int64_t)sizeof(double);
}

static void attend_backward(const hdl_launch *launch, const void *op)
{
    const hdl_attend_backward_args *args = op;
    const hdl_attend_args *fwd = &args->forward;
    backward_call call = {.args = args, .d_sinks = launch->workspace};
    call.sums = call.d_sinks + fwd->n_heads;
    memset(call.d_sinks, 0, (size_t)fwd->n_heads * sizeof *call.d_sinks);
    /* heads of several KV heads share a list's d_bias: one thread keeps its order */
    int n_threads = args->d_bias ? 1 : launch->n_threads;
    for (int32_t s = 0; s < fwd->n_seqs; s++) {
        call.seq = &fwd->seqs[s];
        call.grad = &args->grad[s];
        hdl_parallel_for(n_threads, fwd->n_kv_heads, backward_kv_head, &call);
    }
    if (args->d_sink) add_rounded(args->d_sink, call.d_sinks, fwd->n_heads);
}

/* ---- the index's loss ---- */

typedef struct index_call {
    const hdl_index_loss_args *args;
    double *sums; /* [n_threads, index_sums_of(args)] */
} index_call;

static int64_t index_sums_of(const hdl_index_loss_args *args)
{
    return args->layers->max_kv_len * (2 + args->index_dim) + args->index_dim;
}

/* a[step] = the mean attention to the row's visible steps (0 where masked); returns its sum. */
static double mean_attention(const hdl_index_loss_args *args, int64_t row, double *a)
{
    const hdl_attend_args *first = args->layers;
    int32_t kv_head;
    kv_walk walk = ref_head_walk(first, row, 0, &kv_head);
    double sum = 0, n = (double)args->n_layers * first->n_heads;
    memset(a, 0, (size_t)HDL_MAX(walk.end - walk.begin, 0) * sizeof *a);
    for (const hdl_attend_args *fwd = first; fwd < first + args->n_layers; fwd++)
        for (int32_t head = 0; head < fwd->n_heads; head++) {
            walk = ref_head_walk(fwd, row, head, &kv_head);
            const float *q = fwd->q + row * fwd->q_stride + (int64_t)head * fwd->head_dim;
            double lse = fwd->lse[row * fwd->n_heads + head];
            for (int64_t step = walk.begin; step < walk.end && lse > -INFINITY; step++)
                if (walk_sees(&walk, walk_token(&walk, step)))
                    a[step - walk.begin] += exp(ref_score(fwd, &walk, step, q, kv_head) - lse) / n;
        }
    for (int64_t i = 0; i < walk.end - walk.begin; i++) sum += a[i];
    return sum;
}

/* x[step] = the index's score of the row's visible steps, -inf where masked; returns their lse. */
static double index_scores(const hdl_index_loss_args *args, const kv_walk *walk, const float *ik,
                           const float *iq, double *x)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0, step = walk->begin; step < walk->end; step++, i++) {
        const float *k = ik + walk_token(walk, step) * args->index_dim;
        double dot = 0;
        for (int32_t d = 0; d < args->index_dim; d++) dot += (double)iq[d] * k[d];
        x[i] = walk_sees(walk, walk_token(walk, step)) ? dot * args->index_scale : -INFINITY;
        max = HDL_MAX(max, x[i]);
    }
    for (int64_t i = 0; i < walk->end - walk->begin && max > -INFINITY; i++) sum += exp(x[i] - max);
    return sum > 0 ? max + log(sum) : -INFINITY;
}

static void index_row(const hdl_index_loss_args *args, const hdl_index_grad *index, int64_t row, double *a,
                      double *d_ik)
{
    int64_t dim = args->index_dim;
    double *x = a + args->layers->max_kv_len, *d_iq = x + args->layers->max_kv_len, loss = 0;
    const float *iq = args->iq + row * args->iq_stride;
    int32_t kv_head;
    kv_walk walk = ref_head_walk(args->layers, row, 0, &kv_head);
    double sum = mean_attention(args, row, a), lse = index_scores(args, &walk, index->ik, iq, x);
    memset(d_iq, 0, (size_t)dim * sizeof *d_iq);
    for (int64_t i = 0, step = walk.begin; step < walk.end && lse > -INFINITY; step++, i++) {
        if (x[i] == -INFINITY) continue;
        int64_t token = walk_token(&walk, step);
        double g = args->weight * (double)args->index_scale * (exp(x[i] - lse) * sum - a[i]);
        if (a[i] > 0) loss += a[i] * (log(a[i]) - x[i] + lse);
        for (int64_t d = 0; d < dim; d++) {
            d_iq[d] += g * index->ik[token * dim + d];
            d_ik[token * dim + d] += g * iq[d];
        }
    }
    args->loss[row] = (float)loss;
    if (args->d_iq) add_rounded(args->d_iq + row * args->iq_stride, d_iq, dim);
}

static void index_seq(void *arg, int64_t task, int thread)
{
    const index_call *call = arg;
    const hdl_index_loss_args *args = call->args;
    const hdl_attend_seq *seq = &args->layers->seqs[task];
    const hdl_index_grad *index = &args->index[task];
    double *a = call->sums + thread * index_sums_of(args);
    double *d_ik = a + 2 * args->layers->max_kv_len + args->index_dim;
    memset(d_ik, 0, (size_t)(seq->kv_len * args->index_dim) * sizeof *d_ik);
    for (int64_t row = seq->first_row; row < seq->first_row + seq->q_len; row++)
        index_row(args, index, row, a, d_ik);
    if (index->d_ik) add_rounded(index->d_ik, d_ik, seq->kv_len * args->index_dim);
}

static int64_t index_workspace(const void *op, int n_threads)
{
    return n_threads * index_sums_of(op) * (int64_t)sizeof(double);
}

static void index_loss(const hdl_launch *launch, const void *op)
{
    index_call call = {op, launch->workspace};
    hdl_parallel_for(launch->n_threads, call.args->layers->n_seqs, index_seq, &call);
}

const hdl_impl hdl_cpu_ref_backward[] = {
    {"attend_backward_ref", HDL_OP_ATTEND_BACKWARD, HDL_ISA_REF, NULL, backward_workspace, attend_backward},
    {"index_loss_ref", HDL_OP_INDEX_LOSS, HDL_ISA_REF, NULL, index_workspace, index_loss},
    {NULL, HDL_OP_ATTEND_BACKWARD, HDL_ISA_REF, NULL, NULL, NULL},
};
