/* ref_complement.c - the reference of COMPLEMENT: naive and normative, in double. */
#include <math.h>
#include <string.h>

#include "backend/cpu/complement_int.h"
#include "backend/cpu/cpu.h"

enum { MAX_DIM = 1024 };

/* sum [dim] -= the token's K or V row of the head. */
static void take_away(const hdl_complement_args *args, const hdl_kv_view *kv, int64_t token, int32_t head,
                      bool is_v, double *sum)
{
    float scale = 1;
    if (kv->dtype == HDL_I8)
        memcpy(&scale,
               kv_scale_at(kv, token, args->n_kv_heads) + (is_v ? kv->v_scale_offset : kv->k_scale_offset) +
                   head * (int64_t)sizeof scale,
               sizeof scale);
    const uint8_t *row = kv_token_at(kv, token) + (is_v ? kv->v_offset + head * kv->v_head_stride
                                                        : kv->k_offset + head * kv->head_stride);
    int32_t dim = is_v ? args->v_head_dim : args->head_dim;
    for (int32_t i = 0; i < dim; i++) sum[i] -= (double)stored_element(kv->dtype, row, i, scale);
}

/* The mean of the entry's K or V rows that stand at none of steps [from, to); returns how many they are. */
static int64_t mean_of_rest(const hdl_complement_args *args, const complement_walk *at, int64_t e,
                            int64_t from, int64_t to, int32_t head, bool is_v, double *mean)
{
    const hdl_kv_view *kv = at->walk.kv;
    int32_t dim = is_v ? args->v_head_dim : args->head_dim;
    int64_t n = args->block_size - (to - from);
    if (!n) return 0;
    const uint16_t *stored_mean = (const uint16_t *)(const void *)mean_at(kv, is_v, e, args->block_size) +
                                  (int64_t)head * dim;
    for (int32_t i = 0; i < dim; i++) mean[i] = (double)args->block_size * hdl_f16_to_f32(stored_mean[i]);
    for (int64_t step = from; step < to; step++)
        take_away(args, kv, walk_token(&at->walk, step), head, is_v, mean);
    for (int32_t i = 0; i < dim; i++) mean[i] /= (double)n;
    return n;
}

static void complement_head(const hdl_complement_args *args, int64_t row, int32_t head)
{
    int32_t kv_head = (int32_t)((int64_t)head * args->n_kv_heads / args->n_heads);
    int32_t list = (int32_t)((int64_t)kv_head * args->selection->n_lists / args->n_kv_heads);
    complement_walk at = complement_of(args, complement_seq_of(args, row), row, list);
    const float *q = args->q + row * args->q_stride + (int64_t)head * args->head_dim;
    double key[MAX_DIM], value[MAX_DIM], o[MAX_DIM] = {0}, max = -INFINITY, sum = 0;
    int64_t step = at.walk.begin;
    for (int64_t e = at.begin; e < at.end; e++) {
        int64_t from = step;
        while (step < at.walk.end && walk_token(&at.walk, step) < (e + 1) * args->block_size) step++;
        int64_t n = mean_of_rest(args, &at, e, from, step, kv_head, false, key);
        if (!n) continue;
        mean_of_rest(args, &at, e, from, step, kv_head, true, value);
        double s = 0;
        for (int32_t i = 0; i < args->head_dim; i++) s += q[i] * key[i];
        s *= args->scale;
        if (args->soft_cap > 0) s = args->soft_cap * tanh(s / args->soft_cap);
        s += log((double)n);
        double old = s > max ? exp(max - s) : 1;
        max = HDL_MAX(max, s);
        double p = exp(s - max);
        sum = sum * old + p;
        for (int32_t i = 0; i < args->v_head_dim; i++) o[i] = o[i] * old + p * value[i];
    }
    float *out = args->o + row * args->o_stride + (int64_t)head * args->v_head_dim;
    for (int32_t i = 0; i < args->v_head_dim; i++) out[i] = sum > 0 ? (float)(o[i] / sum) : 0;
    args->lse[row * args->n_heads + head] = sum > 0 ? (float)(max + log(sum)) : -INFINITY;
}

static void complement(const hdl_launch *launch, const void *op)
{
    (void)launch;
    const hdl_complement_args *args = op;
    HDL_ASSERT(args->head_dim <= MAX_DIM && args->v_head_dim <= MAX_DIM);
    for (int64_t row = 0; row < args->n_rows; row++)
        for (int32_t head = 0; head < args->n_heads; head++) complement_head(args, row, head);
}

const hdl_impl hdl_cpu_ref_complement[] = {
    {"complement_ref", HDL_OP_COMPLEMENT, HDL_ISA_REF, NULL, NULL, complement},
    {NULL, HDL_OP_COMPLEMENT, HDL_ISA_REF, NULL, NULL, NULL},
};
