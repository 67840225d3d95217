/* ref_attend.c - the reference of APPEND, ATTEND and MERGE: naive and normative.
 *
 * ATTEND walks the tokens of each (row, head) once with a streaming softmax in double and rounds at
 * the end; it reads a K or V row only if the row may see it. Where op.h leaves room:
 *   a selection's bias is added after the soft cap (it is a weight, log count, not a logit);
 *   with kv.positions the window is measured in original positions, which ascend; causality is by
 *   row order, which is the same thing;
 *   a sink makes lse = sink of an empty list. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/ref_attend_int.h"
#include "base/pool.h"

static void append_head(const hdl_append_args *args, int64_t token, int32_t head, bool is_v)
{
    const hdl_kv_view *kv = &args->kv;
    int64_t row = token - args->first_token, dim = is_v ? args->v_head_dim : args->head_dim;
    const float *x = is_v ? args->v + row * args->v_stride + head * dim
                          : args->k + row * args->k_stride + head * dim;
    uint8_t *at = kv_token_at(kv, token) +
                  (is_v ? kv->v_offset + head * kv->v_head_stride : kv->k_offset + head * kv->head_stride);
    switch (kv->dtype) {
        case HDL_F32: memcpy(at, x, (size_t)dim * sizeof *x); break;
        case HDL_F16:
            for (int64_t i = 0; i < dim; i++) ((uint16_t *)at)[i] = hdl_f32_to_f16(x[i]);
            break;
        case HDL_BF16:
            for (int64_t i = 0; i < dim; i++) ((uint16_t *)at)[i] = hdl_f32_to_bf16(x[i]);
            break;
        case HDL_Q4_1: quantise_q4_1(x, at, dim); break;
        default: {
            float scale = quantise_i8(x, (int8_t *)at, dim);
            uint8_t *scales = kv_scale_at(kv, token, args->n_kv_heads) +
                              (is_v ? kv->v_scale_offset : kv->k_scale_offset);
            ((float *)scales)[head] = scale;
        }
    }
}

static void append(const hdl_launch *launch, const void *op)
{
    (void)launch;
    const hdl_append_args *args = op;
    for (int64_t row = 0; row < args->n_rows; row++)
        for (int32_t head = 0; head < args->n_kv_heads; head++) {
            append_head(args, args->first_token + row, head, false);
            append_head(args, args->first_token + row, head, true);
        }
}

typedef struct attend_call {
    const hdl_attend_args *args;
    double *lse; /* [n_rows, n_heads] */
    double *o;   /* [n_threads, v_head_dim] */
} attend_call;

static void attend_head(void *arg, int64_t task, int thread)
{
    const attend_call *call = arg;
    const hdl_attend_args *args = call->args;
    int64_t row = task / args->n_heads, v_dim = args->v_head_dim;
    int32_t head = (int32_t)(task % args->n_heads), kv_head;
    kv_walk walk = ref_head_walk(args, row, head, &kv_head);
    const float *q = args->q + row * args->q_stride + (int64_t)head * args->head_dim;
    double *o = call->o + thread * v_dim, max = -INFINITY, sum = 0;
    memset(o, 0, (size_t)v_dim * sizeof *o);
    for (int64_t step = walk.begin; step < walk.end; step++) {
        int64_t token = walk_token(&walk, step);
        if (!walk_sees(&walk, token)) continue;
        double s = ref_score(args, &walk, step, q, kv_head);
        if (s == -INFINITY) continue;
        double old = s > max ? exp(max - s) : 1;
        max = HDL_MAX(max, s);
        double p = exp(s - max);
        float v_scale;
        const uint8_t *v = ref_kv_row(args, walk.kv, token, kv_head, true, &v_scale);
        sum = sum * old + p;
        for (int64_t i = 0; i < v_dim; i++)
            o[i] = o[i] * old + p * (double)stored_element(walk.kv->dtype, v, i, v_scale);
    }
    call->lse[row * args->n_heads + head] = ref_finish_head(args, row, head, o, max, sum);
}

/* One more head of a list; masses are not negative, so 0 is no largest one. */
static float add_mass(const hdl_attend_args *args, float mass, double p)
{
    int32_t n = args->n_heads / args->n_mass_lists;
    if (args->mass_reduce == HDL_REDUCE_MAX) return HDL_MAX(mass, (float)p);
    return mass + (float)(args->mass_reduce == HDL_REDUCE_MEAN ? p / n : p);
}

static void mass_row(void *arg, int64_t task, int thread)
{
    (void)thread;
    const attend_call *call = arg;
    const hdl_attend_args *args = call->args;
    int64_t row = task / args->n_mass_lists;
    int32_t list = (int32_t)(task % args->n_mass_lists), n = args->n_heads / args->n_mass_lists;
    const hdl_attend_seq *seq = attend_seq_of(args, row);
    float *mass = args->mass + task * args->mass_stride;
    memset(mass, 0, (size_t)(seq->kv_len - seq->q_len + row - seq->first_row + 1) * sizeof *mass);
    for (int32_t head = list * n; head < (list + 1) * n; head++) {
        int32_t kv_head;
        kv_walk walk = ref_head_walk(args, row, head, &kv_head);
        const float *q = args->q + row * args->q_stride + (int64_t)head * args->head_dim;
        double lse = call->lse[row * args->n_heads + head];
        for (int64_t step = walk.begin; step < walk.end && lse > -INFINITY; step++) {
            int64_t token = walk_token(&walk, step);
            if (walk_sees(&walk, token))
                mass[token] = add_mass(args, mass[token],
                                       exp(ref_score(args, &walk, step, q, kv_head) - lse));
        }
    }
}

static int64_t attend_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = op;
    return (args->n_rows * args->n_heads + (int64_t)n_threads * args->v_head_dim) * (int64_t)sizeof(double);
}

static void attend(const hdl_launch *launch, const void *op)
{
    const hdl_attend_args *args = op;
    attend_call call = {args, launch->workspace, NULL};
    call.o = call.lse + args->n_rows * args->n_heads;
    hdl_parallel_for(launch->n_threads, args->n_rows * args->n_heads, attend_head, &call);
    if (args->mass) hdl_parallel_for(launch->n_threads, args->n_rows * args->n_mass_lists, mass_row, &call);
}

static void merge(const hdl_launch *launch, const void *op)
{
    (void)launch;
    const hdl_merge_args *args = op;
    int64_t dim = args->v_head_dim;
    for (int64_t row = 0; row < args->n_rows; row++) {
        double max = -INFINITY, sum = 0;
        for (int32_t p = 0; p < args->n_partials; p++) max = HDL_MAX(max, (double)args->lse[p][row]);
        for (int32_t p = 0; p < args->n_partials && max > -INFINITY; p++) sum += exp(args->lse[p][row] - max);
        double lse = sum > 0 ? max + log(sum) : -INFINITY;
        for (int64_t i = 0; i < dim; i++) {
            double o = 0;
            for (int32_t p = 0; p < args->n_partials; p++)
                if (args->lse[p][row] > -INFINITY)
                    o += exp(args->lse[p][row] - lse) * args->o[p][row * dim + i];
            args->o_out[row * dim + i] = (float)o;
        }
        if (args->lse_out) args->lse_out[row] = (float)lse; /* may be lse[0]: written last */
    }
}

const hdl_impl hdl_cpu_ref_attend[] = {
    {"append_ref", HDL_OP_APPEND, HDL_ISA_REF, NULL, NULL, append},
    {"attend_ref", HDL_OP_ATTEND, HDL_ISA_REF, NULL, attend_workspace, attend},
    {"merge_ref", HDL_OP_MERGE, HDL_ISA_REF, NULL, NULL, merge},
    {NULL, HDL_OP_ATTEND, HDL_ISA_REF, NULL, NULL, NULL},
};
