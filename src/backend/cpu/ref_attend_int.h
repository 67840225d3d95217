/* ref_attend_int.h - a score of attention and the rows behind it, in double: shared by the references of
 * ATTEND, COMPLEMENT, VISIT and the gradients, so that all mean the same s_j. */
#ifndef HDL_REF_ATTEND_INT_H
#define HDL_REF_ATTEND_INT_H

#include "backend/cpu/attend_int.h"

/* The K or V row of a KV head, and its scale. */
static inline const uint8_t *ref_kv_row(const hdl_attend_args *args, const hdl_kv_view *kv, int64_t token,
                                        int32_t kv_head, bool is_v, float *scale)
{
    *scale = 1;
    if (kv->dtype == HDL_I8) {
        const uint8_t *at = kv_scale_at(kv, token, args->n_kv_heads);
        *scale = ((const float *)(at + (is_v ? kv->v_scale_offset : kv->k_scale_offset)))[kv_head];
    }
    return kv_token_at(kv, token) +
           (is_v ? kv->v_offset + kv_head * kv->v_head_stride : kv->k_offset + kv_head * kv->head_stride);
}

/* The scaled, capped score of a step, without the bias. */
static inline double ref_logit(const hdl_attend_args *args, const kv_walk *walk, int64_t step, const float *q,
                               int32_t kv_head)
{
    float k_scale;
    const uint8_t *k = ref_kv_row(args, walk->kv, walk_token(walk, step), kv_head, false, &k_scale);
    double dot = 0;
    for (int64_t i = 0; i < args->head_dim; i++)
        dot += q[i] * (double)stored_element(walk->kv->dtype, k, i, k_scale);
    dot *= args->scale;
    return args->soft_cap > 0 ? args->soft_cap * tanh(dot / args->soft_cap) : dot;
}

static inline double ref_score(const hdl_attend_args *args, const kv_walk *walk, int64_t step, const float *q,
                               int32_t kv_head)
{
    double s = ref_logit(args, walk, step, q, kv_head);
    return walk->bias ? s + walk->bias[step / walk->size] : s;
}

static inline kv_walk ref_head_walk(const hdl_attend_args *args, int64_t row, int32_t head, int32_t *kv_head)
{
    const hdl_attend_seq *seq = attend_seq_of(args, row);
    *kv_head = (int32_t)((int64_t)head * args->n_kv_heads / args->n_heads);
    return row_walk(args, seq, row - seq->first_row, attend_list_of(args, *kv_head));
}

/* o [v_head_dim], of weights e^(s - max) that add up to sum, becomes the head's output; returns its lse. */
static inline double ref_finish_head(const hdl_attend_args *args, int64_t row, int32_t head, const double *o,
                                     double max, double sum)
{
    double lse = sum > 0 ? max + log(sum) : -INFINITY, share = sum > 0 ? 1 / sum : 0;
    if (args->sink) {
        double sink = args->sink[head], top = HDL_MAX(lse, sink);
        double all = top == -INFINITY ? -INFINITY : top + log(exp(lse - top) + exp(sink - top));
        if (all > -INFINITY) share *= exp(lse - all);
        lse = all;
    }
    float *out = args->o + row * args->o_stride + head * (int64_t)args->v_head_dim;
    for (int64_t i = 0; i < args->v_head_dim; i++) out[i] = (float)(o[i] * share);
    if (args->lse) args->lse[row * args->n_heads + head] = (float)lse;
    return lse;
}

#endif
