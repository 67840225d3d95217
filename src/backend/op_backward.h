/* op_backward.h - arguments of the gradients: ops of op.h's closed list that training needs.
 *
 * No plan lowers to them; they are the reference of what other trainers compute. A device may lack them
 * (its list is then empty: only the CPU has them now). What is marked "added to" is read and written, so
 * that the layers that share one K and V, or several losses, add up in one buffer. Sums are in double
 * within a call, in ascending order of rows and heads, so that bits do not depend on n_threads. */
#ifndef HDL_OP_BACKWARD_H
#define HDL_OP_BACKWARD_H

#include "backend/op.h"

/* ATTEND_BACKWARD: the gradient of ATTEND, for every visible set that it knows (dense, window, masks, token
 * lists, block lists). With x = scale * q . k, s = cap * tanh(x / cap) + bias, p = exp(s - lse):
 *   delta = d_o . o;  ds_j = p_j (d_o . v_j - delta);  dx_j = ds_j (1 - (cap's s_j / cap)^2)
 *   dq = scale sum_j dx_j k_j;  dk_j += scale sum dx_j q;  dv_j += sum p_j d_o    (over rows, heads of j)
 *   d_bias = ds summed over the block's tokens, the list's heads and the rows that share the list
 *   d_sink = -sum over rows of exp(sink - lse) delta
 * o and lse are the forward call's. Where the output was a MERGE of partials, give every partial's call
 * the merged o and lse: the results add. A row that sees nothing (lse = -inf) has dq = 0 and adds nothing.
 * The selection itself has no gradient. */
typedef struct hdl_attend_grad {
    float *dk; /* [kv_len, n_kv_heads, head_dim] added to; the caller's */
    float *dv; /* [kv_len, n_kv_heads, v_head_dim] added to; the caller's */
} hdl_attend_grad;
typedef struct hdl_attend_backward_args {
    hdl_attend_args forward; /* o and lse are read; mass is not looked at */
    const float *d_o;        /* [n_rows, n_heads, v_head_dim], row stride d_o_stride */
    int64_t d_o_stride;
    float *dq; /* [n_rows, n_heads, head_dim], row stride dq_stride; written */
    int64_t dq_stride;
    const hdl_attend_grad *grad; /* [n_seqs] */
    float *d_bias;               /* as the selection's bias, added to; or NULL */
    float *d_sink;               /* [n_heads] added to; or NULL */
} hdl_attend_backward_args;

/* INDEX_LOSS: how far an index is from what the layers that share its list attend to, and the gradient
 * (index_sharing 1.4). For each row, over its visible tokens J (all layers' are the same):
 *   A_j = mean over layers and heads of exp(s_j - lse)      constant: no gradient reaches the attention
 *   P_j = softmax over J of index_scale * iq . ik_j
 *   loss[row] = sum_j A_j (log A_j - log P_j);   g_j = weight * index_scale * (P_j sum(A) - A_j)
 *   d_iq += sum_j g_j ik_j;   d_ik_j += g_j iq
 * sum(A) is 1 where lse is that of attention over J (not of a wider set, no sink). One row of A is held
 * at a time: memory is O(kv_len) for each thread. An empty J gives loss 0 and adds nothing. */
typedef struct hdl_index_grad {
    const float *ik; /* [kv_len, index_dim] */
    float *d_ik;     /* [kv_len, index_dim] added to; the caller's; or NULL */
} hdl_index_grad;
typedef struct hdl_index_loss_args {
    int32_t n_layers, index_dim;
    const hdl_attend_args *layers; /* [n_layers] forward calls: q, lse and what is visible; o is not read */
    const float *iq;               /* [n_rows, index_dim], row stride iq_stride */
    int64_t iq_stride;
    const hdl_index_grad *index; /* [n_seqs] */
    float index_scale, weight;   /* weight 1 / rows gives the mean's gradient; loss is not weighted */
    float *loss;                 /* [n_rows] written */
    float *d_iq;                 /* [n_rows, index_dim], row stride iq_stride, added to; or NULL */
} hdl_index_loss_args;

#endif
