/* op.h - the closed list of backend primitives: one typed argument struct each.
 *
 * Arguments are plain data. Shapes stand beside every pointer, slowest first; strides count
 * elements unless they are called _bytes. Pointers may be NULL while compile asks why_not() and
 * workspace(): those look at sizes and types only, at the largest the schedule will ever pass.
 * Element counts, offsets and strides are int64. No op allocates, logs or reads options.
 *
 * -inf is a value here: the empty selection's partial is (o, lse) = (0, -inf). */
#ifndef HDL_OP_H
#define HDL_OP_H

#include "backend/selection.h"
#include "tensor/tensor.h"

typedef enum hdl_op {
    HDL_OP_EMBED = 0,
    HDL_OP_NORM,
    HDL_OP_LINEAR,
    HDL_OP_ROPE,
    HDL_OP_APPEND,
    HDL_OP_ATTEND,
    HDL_OP_SELECT,
    HDL_OP_MERGE,
    HDL_OP_GLU,
    HDL_N_OPS
} hdl_op;

/* EMBED: out[r] = scale * dequant(table[ids[r]]) */
typedef struct hdl_embed_args {
    int64_t n_rows;
    const int32_t *ids; /* [n_rows], each in 0..table.n_rows-1 */
    hdl_tensor table;   /* [n_vocab, hidden] */
    float scale;
    float *out; /* [n_rows, hidden], rows contiguous */
} hdl_embed_args;

/* NORM: out[r] = residual[r] + x[r] / sqrt(mean(x[r]^2) + eps) * (weight + offset)
 * in place allowed (out == x or out == residual). */
typedef struct hdl_norm_args {
    int64_t n_rows, n_cols;
    const float *x; /* [n_rows, n_cols], row stride x_stride */
    int64_t x_stride;
    const float *weight; /* [n_cols] */
    float offset, eps;
    const float *residual; /* [n_rows, n_cols], row stride out_stride, or NULL = 0 */
    float *out;            /* [n_rows, n_cols], row stride out_stride */
    int64_t out_stride;
} hdl_norm_args;

/* LINEAR: for each part: out[r, j] = (accumulate ? out[r, j] : 0) + bias[j] + x[r] . w[j]
 * Up to three weights read the same x (q, k, v; gate, up), so that x is quantised once.
 * Quantised weights multiply x rounded to int8 in blocks of 32 with one f32 scale amax/127 per
 * block (round to nearest even), whatever the weight's own block is; integer sums are exact per 32
 * elements (16 for q6_K) and enter f32 block by block in ascending order. F32/F16/BF16 weights
 * multiply x in f32. A call with is_invariant promises the same bits for a row however many rows
 * are in the call. */
enum { HDL_LINEAR_MAX_PARTS = 3 };
typedef struct hdl_linear_part {
    hdl_tensor w;      /* [n_out, n_in]; n_out = w.n_rows */
    const float *bias; /* [n_out] or NULL */
    float *out;        /* [n_rows, n_out], row stride out_stride */
    int64_t out_stride;
    bool accumulate;
} hdl_linear_part;
typedef struct hdl_linear_args {
    int64_t n_rows, n_in;
    const float *x; /* [n_rows, n_in], row stride x_stride */
    int64_t x_stride;
    int32_t n_parts;
    hdl_linear_part part[HDL_LINEAR_MAX_PARTS];
    bool is_invariant;
} hdl_linear_args;

/* ROPE: rotates x[r, h, :dim] by the row's position, in place. */
typedef struct hdl_rope_args {
    int64_t n_rows;
    int32_t n_heads, head_dim, dim;
    bool is_pairs;        /* pairs (2i, 2i+1); else (i, i + dim/2) */
    const float *cos_sin; /* [n_rows, dim/2, 2] */
    float *x;             /* [n_rows, n_heads, head_dim], row stride x_stride */
    int64_t x_stride;
} hdl_rope_args;

/* A KV cache of one sequence and one layer, through its page table.
 * Token t of the sequence lives in page t >> page_shift, slot t & (2^page_shift - 1):
 *   K of head h: pages[p] + k_offset + slot * token_stride + h * head_stride   (bytes)
 *   V of head h: pages[p] + v_offset + slot * token_stride + h * v_head_stride
 * Token-major page: [slot][K of all heads | V of all heads]; head-major: [head][slot][K | V].
 * I8 rows: x = q * scale, the f32 scale of (token, head) at
 *   pages[p] + k_scale_offset + (slot * n_kv_heads + h) * 4      (V: v_scale_offset)
 * A page that was freed (rolling caches) is NULL and no visible token lies in it. One page may be
 * the whole cache (page_shift up to 40). Rows with NaN outside [0, kv_len) must not matter. */
typedef struct hdl_kv_view {
    uint8_t *const *pages; /* [ceil(kv_len / 2^page_shift)] */
    int32_t page_shift;
    hdl_dtype dtype;                                                      /* F32, F16, BF16, I8 */
    int64_t k_offset, v_offset, token_stride, head_stride, v_head_stride; /* bytes */
    int64_t k_scale_offset, v_scale_offset;                               /* bytes, I8 only */
    const int32_t *positions; /* [kv_len] original position of row t; NULL = t itself */
} hdl_kv_view;

/* APPEND: writes rows [n_rows] of k and v at tokens first_token.. of the view, converted. */
typedef struct hdl_append_args {
    int64_t n_rows, first_token;
    int32_t n_kv_heads, head_dim, v_head_dim;
    const float *k; /* [n_rows, n_kv_heads, head_dim], row stride k_stride */
    const float *v; /* [n_rows, n_kv_heads, v_head_dim], row stride v_stride */
    int64_t k_stride, v_stride;
    hdl_kv_view kv;
} hdl_append_args;

/* ATTEND: for each sequence s, each of its q_len rows i (position kv_len - q_len + i), each head:
 *   visible tokens j: j <= position of the row (causal), j > position - window where window > 0,
 *   j >= the sequence's first_token,
 *   j in the row's list where `selection` is set, and mask[i][j - first] for new tokens where set.
 *   s_j = scale * q . k_j, soft-capped: cap * tanh(s_j / cap); o = sum softmax(s)_j v_j;
 *   lse = log sum exp(s_j) (a sink logit adds exp(sink) to the sum and nothing to o).
 * Streaming softmax in f32, one pass; K and V are read once per group of query rows and heads.
 * KV is cut at multiples of HDL_KV_STRIDE tokens (by position in the list for lists) and the
 * partials merged in ascending order; with is_invariant a row's bits depend on its own visible
 * tokens alone (never on q_len, the other rows, n_threads).
 * mass (observation): mass[r, l, j] = mean over the heads of list l of exp(s_j - lse_head), for
 * every j visible to row r, 0 for j < n_visible that are not visible (masked, outside the window or
 * list); entries from n_visible on are not written. Sequences' rows are numbered through. */
enum { HDL_KV_STRIDE = 256 };
typedef struct hdl_attend_seq {
    int64_t first_row;     /* row of q, o, lse, selection and mass where this sequence starts */
    int64_t q_len, kv_len; /* kv_len counts the new rows, already appended */
    hdl_kv_view kv;
    const uint8_t *mask; /* [q_len, q_len], 1 = visible, or NULL = causal */
    int64_t first_token; /* tokens before it are not visible: the rows' document begins there */
} hdl_attend_seq;
typedef struct hdl_attend_args {
    int64_t n_rows; /* of all sequences */
    int32_t n_seqs, n_heads, n_kv_heads, head_dim, v_head_dim;
    const hdl_attend_seq *seqs;    /* [n_seqs] */
    int64_t max_q_len, max_kv_len; /* over the sequences (for sizes at compile: the limits) */
    hdl_dtype kv_dtype;
    const float *q; /* [n_rows, n_heads, head_dim], row stride q_stride */
    float *o;       /* [n_rows, n_heads, v_head_dim], row stride o_stride */
    int64_t q_stride, o_stride;
    float *lse;                     /* [n_rows, n_heads] or NULL */
    float scale, soft_cap;          /* soft_cap 0 = none */
    const float *sink;              /* [n_heads] sink logits or NULL */
    int32_t window;                 /* 0 = none */
    bool has_selection, has_mass;   /* what the pointers will be (known at compile) */
    const hdl_selection *selection; /* n_rows lists, or NULL = dense / window */
    float *mass;                    /* [n_rows, n_mass_lists, mass_stride] or NULL */
    int32_t n_mass_lists;
    int64_t mass_stride; /* >= max_kv_len */
    bool is_invariant;
} hdl_attend_args;

/* SELECT: per (row, list): forced = tokens [0, n_sink) and [n_visible - window, n_visible);
 * chosen = the top_k unforced tokens of largest score, ties to the lowest id (exact; -inf and 0 are
 * ordinary scores; NaN counts as -inf); ids = forced and chosen, ascending, unique. n_visible <=
 * n_sink + window + top_k gives 0..n_visible-1. */
typedef struct hdl_select_args {
    int64_t n_rows;
    int32_t n_lists;
    const float *score; /* [n_rows, n_lists, score_stride] */
    int64_t score_stride;
    const int64_t *n_visible; /* [n_rows] */
    int64_t max_visible;      /* bound for workspace */
    int64_t top_k;            /* unforced tokens; forced ones come on top */
    int32_t n_sink, window;
    hdl_selection *out; /* n_ids_max >= n_sink + window + top_k */
} hdl_select_args;

/* MERGE: partials over disjoint sets, one scale and one soft cap, into one (lse-merge):
 *   lse = log sum_i exp(lse_i), o = sum_i exp(lse_i - lse) o_i; all empty stays (0, -inf). */
typedef struct hdl_merge_args {
    int64_t n_rows; /* rows x heads */
    int32_t n_partials, v_head_dim;
    const float *const *o;   /* [n_partials] of [n_rows, v_head_dim] */
    const float *const *lse; /* [n_partials] of [n_rows] */
    float *o_out;            /* [n_rows, v_head_dim]; may be o[0] */
    float *lse_out;          /* [n_rows] or NULL; may be lse[0] */
} hdl_merge_args;

/* GLU: gate[r, j] = act(gate[r, j]) * up[r, j], in place. */
typedef struct hdl_glu_args {
    int64_t n_rows, n_cols;
    float *gate;     /* [n_rows, n_cols], row stride `stride` */
    const float *up; /* the same shape and stride */
    int64_t stride;
    bool is_gelu; /* tanh form of GELU; else SiLU */
} hdl_glu_args;

#endif
