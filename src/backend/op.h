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
#include "backend/summary.h"
#include "tensor/tensor.h"

typedef enum hdl_op {
    HDL_OP_EMBED = 0,
    HDL_OP_NORM,
    HDL_OP_LINEAR,
    HDL_OP_ROPE,
    HDL_OP_APPEND,
    HDL_OP_SUMMARISE,
    HDL_OP_ATTEND,
    HDL_OP_COMPLEMENT,
    HDL_OP_SCORE,
    HDL_OP_POOL,
    HDL_OP_SELECT,
    HDL_OP_UNION,
    HDL_OP_RESOLVE,
    HDL_OP_ORDER,
    HDL_OP_VISIT,
    HDL_OP_MERGE,
    HDL_OP_GLU,
    HDL_OP_COMPACT,
    HDL_OP_CONV,
    HDL_OP_DELTA,
    HDL_OP_ATTEND_BACKWARD, /* op_backward.h; a device may lack these two */
    HDL_OP_INDEX_LOSS,
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
 * Q4_1 rows: blocks of 32 elements, each with its f16 step and minimum (quantise_q4_1 in attend_int.h).
 * I8 rows: x = q * scale, the f32 scale of (token, head) at
 *   pages[p] + k_scale_offset + (slot * n_scale_heads + h) * 4      (V: v_scale_offset)
 * A page that was freed (rolling caches) is NULL and no visible token lies in it. One page may be
 * the whole cache (page_shift up to 40). Rows with NaN outside [0, kv_len) must not matter. */
typedef struct hdl_kv_plane { /* entry e of page p: pages[p] + offset + e * entry bytes; scales likewise */
    int64_t offset, scale_offset; /* bytes */
    int32_t n_heads, dim;
} hdl_kv_plane;
typedef struct hdl_kv_view {
    uint8_t *const *pages; /* [ceil(kv_len / 2^page_shift)] */
    int32_t page_shift;
    hdl_dtype dtype;                                                      /* F32, F16, BF16, I8, Q4_1 */
    int64_t k_offset, v_offset, token_stride, head_stride, v_head_stride; /* bytes */
    int64_t k_scale_offset, v_scale_offset;                               /* bytes, I8 only */
    int32_t n_scale_heads;    /* I8: heads of a token's scales; 0 = as many as the op reads */
    const int32_t *positions; /* [kv_len] original position of row t; NULL = t itself */
    hdl_kv_plane plane[2];    /* the planes that the op reads or writes; unset = not used */
} hdl_kv_view;

/* The view of KV heads first, first + 1, ... of n_kv_heads: what an op over a range of heads is given, with q and o
 * at the range's first query head and their strides as they are; planes are not cut. */
static inline hdl_kv_view hdl_kv_heads(const hdl_kv_view *kv, int32_t first, int32_t n_kv_heads)
{
    hdl_kv_view at = *kv;
    at.k_offset += first * kv->head_stride;
    at.v_offset += first * kv->v_head_stride;
    at.k_scale_offset += first * (int64_t)sizeof(float);
    at.v_scale_offset += first * (int64_t)sizeof(float);
    if (!at.n_scale_heads) at.n_scale_heads = n_kv_heads;
    return at;
}

/* APPEND: writes rows [n_rows] of k and v at tokens first_token.. of the view, converted. */
typedef struct hdl_append_args {
    int64_t n_rows, first_token;
    int32_t n_kv_heads, head_dim, v_head_dim;
    const float *k; /* [n_rows, n_kv_heads, head_dim], row stride k_stride */
    const float *v; /* [n_rows, n_kv_heads, v_head_dim], row stride v_stride */
    int64_t k_stride, v_stride;
    hdl_kv_view kv;
} hdl_append_args;

/* SUMMARISE: brings a plane up to date after rows first_token.. were appended: recomputes every entry
 * that these rows touch from the block's stored rows (those before first_token + n_rows).
 * GROUP entries are written by the call that fills their segment, anew each time it is filled.
 * MEAN, MEAN_V, BOUNDS, GROUP, KEY_* read K (V) of the view and write view.plane[0]; INDEX writes the int8 form of
 * x, a row for each new token. INDEX_MEAN reads index keys in view.plane[1] and writes
 * view.plane[0]: sums in the order of the tokens, over their count. */
typedef struct hdl_summarise_args {
    int64_t n_rows, first_token;
    const float *x; /* INDEX: [n_rows, plane dim], row stride x_stride; else NULL */
    int64_t x_stride;
    int32_t n_kv_heads, head_dim, v_head_dim;
    hdl_plane_kind kind;
    int32_t block_size;
    hdl_kv_view kv;
} hdl_summarise_args;

typedef enum hdl_reduce { HDL_REDUCE_MEAN = 0, HDL_REDUCE_SUM, HDL_REDUCE_MAX } hdl_reduce; /* over heads */

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
 * Ranges: of heads by hdl_kv_heads, their bits those of all heads in the invariant order; of tokens [a, b) by
 * first_token a and kv_len b for a row that sees them all (q_len 1), its partials merge (MERGE). A range may be empty
 * of listed tokens: (0, -inf).
 * mass (observation): mass[r, l, j] = mass_reduce over the heads of list l of exp(s_j - lse_head), for
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
    hdl_unit selection_unit;        /* of the selection, where there is one */
    int32_t rows_per_list;          /* likewise; 0 counts as 1 */
    const hdl_selection *selection; /* n_rows lists, or NULL = dense / window */
    float *mass;                    /* [n_rows, n_mass_lists, mass_stride] or NULL */
    int32_t n_mass_lists;
    hdl_reduce mass_reduce;
    int64_t mass_stride; /* >= max_kv_len */
    bool is_invariant;
} hdl_attend_args;

/* COMPLEMENT: ATTEND over lists and, in the same softmax, over what they leave out, through the means of its blocks.
 * Entry e of the planes MEAN (kv.plane[0]) and MEAN_V (kv.plane[1]) stands for the tokens [e * B, (e+1) * B),
 * B = block_size. A row takes the entries from its first visible token up to, without it, the one that holds its
 * own token (under a mask: the first that holds a new token):
 *   n_e = B - the tokens of e that are listed; entries with n_e = 0 are left out
 *   k_e = (B mean_e - sum of the listed k_j) / n_e, the mean of the others; v_e likewise
 *   s_e = cap(scale * q . k_e) + log n_e;  o = softmax over the listed s_j and the s_e, of v_j and v_e
 * A row's own entry is the list's business: a window must force it. Means are f16: k_e is off by half an
 * f16 step of the mean times B / n_e. A row's bits depend on its own visible tokens alone. */
typedef struct hdl_complement_args {
    hdl_attend_args
        attend;         /* with a selection, without mass; seqs' kv.plane[0] is MEAN, kv.plane[1] MEAN_V */
    int32_t block_size; /* of the means: a power of two */
} hdl_complement_args;

/* SCORE: an entry's score for each (row, list), without reading K. Entry e stands for the tokens
 * [e * block_size, (e+1) * block_size). Entries that lie wholly within the row's visible tokens are
 * scored, the one that is cut by them (the row's own block) gets -inf: selection forces it. Of plane GROUP those
 * of segments that lie wholly within them are scored, the others get -inf.
 *   DOT      s_h[e] = scale * q_h . K~_e with K~ from plane MEAN, PEAK, MIDDLE, KEY_I8, GROUP, KEY_I4, KEY_PQ2
 *            or KEY_PQ4 (these two against the query rotated as the keys were: codebook.h)
 *   PAIRS    as DOT, with the mean of entries e and e + 1 of plane MEAN (a window of two blocks, which
 *            must be wholly visible; else -inf)
 *   BOUND    s_h[e] = scale * sum_d max(q_d * least_d, q_d * largest_d): no token of the block exceeds it
 *   INDEX    s[e] = (float)(q8 . k8) * k_scale, q8 the int8 form of the row's index query: one rounding,
 *            the same on every backend; by plane INDEX, or INDEX_MEAN where entries are blocks
 *   HASH     uniform in [0, 1), a hash of (seed, the row's block, e)
 *   STRIDE   1 where (e + list) % stride == 0, else -inf;   POWERS  1 where the distance in blocks from
 *            the row's own block is a power of two, else -inf
 * Integer planes multiply q rounded to int8 (one scale a row and head), exactly, and round once:
 * s = (float)dot * (k_scale * q_scale * scale) + bias. Then over the heads of the list:
 *   LOGIT  reduce s_h[e];   MASS  reduce n_e exp(s_h[e]) / sum_e' n_e' exp(s_h[e']), n_e the block's
 *   tokens; the sum in the order of e, cut and merged at multiples of HDL_KV_STRIDE entries.
 * With candidates (token planes only) entry i is step i of the row's candidate list: the walk of its
 * tokens (tokens of its blocks) in ascending order, the visible ones.
 * Shared (planes only, no candidates): the rows of a sequence make one score row, score[s, l, e] = rows over
 * those that score e; the row's entries are the last row's. What only some rows score lies between the
 * first new token and the last: a window forces that.
 * Ranges of KV heads: with first_kv_head above 0 the call's KV head 0 is that one of the plane, q, bias and candidates
 * begin at its own, and lists are numbered (HASH, STRIDE) as among all heads. A range of whole lists has the bits that
 * these lists have among all heads. Its n_lists and n_kv_heads are the range's.
 * Slashes (shared, rows SUM, entries of tokens): beside it the sums along distances, at the last row's entries:
 *   slash[s, l, e] = sum over rows i of score_i[e - (q_len - 1 - i)], i's own place in the sequence (absent: 0) */
typedef enum hdl_score_rule {
    HDL_RULE_DOT = 0,
    HDL_RULE_PAIRS,
    HDL_RULE_BOUND,
    HDL_RULE_INDEX,
    HDL_RULE_HASH,
    HDL_RULE_STRIDE,
    HDL_RULE_POWERS
} hdl_score_rule;
typedef enum hdl_measure { HDL_MEASURE_LOGIT = 0, HDL_MEASURE_MASS } hdl_measure;
typedef struct hdl_score_args {
    int64_t n_rows; /* of all sequences */
    int32_t n_seqs, n_heads, n_kv_heads, head_dim, n_lists;
    const hdl_attend_seq *seqs;    /* [n_seqs]; kv.plane[0] is the plane */
    int64_t max_q_len, max_kv_len; /* over the sequences (for sizes at compile: the limits) */
    const float *q;                /* [n_rows, n_heads, head_dim], row stride q_stride */
    int64_t q_stride;
    bool has_bias;
    const float
        *bias; /* [n_rows, n_heads] added to the scores of a row's head (DOT of integer planes); or NULL */
    float scale;
    hdl_score_rule rule;
    hdl_plane_kind plane; /* NONE for HASH, STRIDE, POWERS */
    hdl_measure measure;
    hdl_reduce reduce;
    int32_t block_size; /* tokens of an entry */
    int32_t stride;
    int64_t seed;
    int32_t first_kv_head; /* of the plane */
    bool has_candidates, is_shared;
    hdl_reduce rows;                 /* shared: SUM or MAX */
    float *slash;                    /* as score, or NULL */
    const hdl_selection *candidates; /* n_rows lists, n_lists or one a row; NULL = all tokens */
    float *score;                    /* [n_rows, n_lists, score_stride]; shared: [n_seqs, ...] */
    int64_t score_stride;            /* >= entries of max_kv_len */
    bool is_invariant;
} hdl_score_args;

/* POOL: entries to larger units, in place: score[u] = reduce over e in [u * n - pad, (u + 1) * n) of
 * score[e], those that exist (n entries a unit; pad reaches back); -inf counts as 0 in a sum. The
 * number of entries of a row is ceil(n_visible / entry_size). */
typedef struct hdl_pool_args {
    int64_t n_rows;
    int32_t n_lists, n, pad, entry_size;
    hdl_reduce reduce; /* SUM or MAX */
    float *score;      /* [n_rows, n_lists, score_stride] */
    int64_t score_stride;
    const int64_t *n_visible; /* [n_rows] tokens */
} hdl_pool_args;

/* SELECT: per (row, list), over units of block_size tokens (1 = tokens): forced = the units that hold
 * tokens [0, n_sink) or [n_visible - window, n_visible); chosen from the others, by score (ties to the
 * lowest id; exact; NaN counts as -inf):
 *   TOP_K      the top_k largest (-inf and 0 are ordinary scores)
 *   TOP_P      scores are masses a_1 >= a_2 >= ..., made shares of the row's total, the forced counted
 *              first: C_0 = their share, C_r = C_0 + a_1 + .. + a_r. p_rule says what stays:
 *              INCLUSIVE C_{r-1} <= p, STRICT C_{r-1} < p, PLUS_ONE #{C_r <= p} + 1, EXCLUSIVE C_r <= p;
 *              at most top_k of them (top_k 0 = no limit). Sums are whole numbers, so that no order or cut
 *              of the row changes them: a mass counts in units of 2^-38 of the power of two below the
 *              row's largest, rounded down; the share C_r is one division, rounded to f32.
 *   THRESHOLD  score > threshold; at most top_k of them, the largest (0 = no limit)
 *   BEAM       top_k of the n unforced units by a walk down a binary tree (HiP, arXiv 2406.09827): top_k
 *              nodes of sizes floor((i + 1) n / top_k) - floor(i n / top_k) tile them; each node is split
 *              into its first floor(size / 2) units and the rest, a half counts as its first unit's score,
 *              the top_k best halves stay (ties to the lowest id), until every node is one unit. What
 *              it misses lies in halves whose first unit scored low (every unit was scored all the same)
 * ids = forced and chosen, ascending, unique. A row with n_visible <= dense_below keeps everything, as
 * do TOP_K and BEAM where no more than top_k units are unforced.
 * With candidates: unit i is step i of the row's candidate list (block_size 1), forced steps are the
 * first n_sink and the last `window` steps, and the tokens that they stand for are written.
 * `guess` only saves time: the lists are the same whatever it holds. */
typedef enum hdl_select_kind {
    HDL_SELECT_TOP_K = 0,
    HDL_SELECT_TOP_P,
    HDL_SELECT_THRESHOLD,
    HDL_SELECT_BEAM
} hdl_select_kind;
typedef enum hdl_p_rule { HDL_P_INCLUSIVE = 0, HDL_P_STRICT, HDL_P_PLUS_ONE, HDL_P_EXCLUSIVE } hdl_p_rule;
/* The mass of a (row, list) of TOP_P, forced units and all. */
typedef struct hdl_row_mass {
    float largest;
    int64_t total, forced; /* in units of 2^-38 of the power of two below the largest */
} hdl_row_mass;
typedef struct hdl_select_args {
    int64_t n_rows;
    int32_t n_lists;
    const float *score; /* [n_rows, n_lists, score_stride] */
    int64_t score_stride;
    const int64_t *n_visible; /* [n_rows] tokens */
    int64_t max_visible;      /* bound for workspace, tokens */
    hdl_select_kind kind;
    hdl_p_rule p_rule;
    float p, threshold;
    const hdl_row_mass *mass;  /* TOP_P: [n_rows, n_lists] of what these are parts of (pick.h); or NULL */
    int64_t top_k;             /* unforced units; forced ones come on top */
    const int64_t *list_top_k; /* TOP_K: [n_lists] a top_k for each list, none above top_k; or NULL */
    int32_t n_sink, window;    /* tokens */
    int32_t block_size;        /* tokens of a unit; 0 counts as 1 */
    int64_t dense_below;       /* tokens */
    bool has_candidates;
    const hdl_selection *candidates; /* n_rows lists, n_lists or one a row; or NULL */
    float *guess;       /* [n_rows, n_lists] or NULL: a score that a few more than top_k reached in a similar
                   * row (NaN: not known); replaced by one for the next call */
    hdl_selection *out; /* n_ids_max: enough for forced and chosen */
} hdl_select_args;

/* UNION: the lists of a row's heads become fewer: list l of `out` holds, ascending and once, every id that stands in
 * one of the lists [l * g, (l + 1) * g), g = lists->n_lists / out->n_lists, at most HDL_MAX_UNITED. An id stays or
 * goes by itself: the union of what the heads chose in a range of tokens is that range of their union.
 * With slashes (as many lists as out) ids of list l of theirs join it, each with the n_before ids before it. */
enum { HDL_MAX_UNITED = 64 };
typedef struct hdl_union_args {
    int64_t n_rows;
    const hdl_selection *lists, *slashes; /* slashes: or NULL */
    int32_t n_before;
    hdl_selection *out; /* n_ids_max: enough for all of them */
} hdl_union_args;

/* RESOLVE: lists of groups become lists of tokens, by the order map of plane GROUP (seqs' kv.plane[0]). Group u of
 * a segment that the row sees wholly stands for its members, of one that it does not for the tokens
 * [u * block_size, (u + 1) * block_size) that it sees. With them stand [0, n_sink) and
 * [n_visible - window, n_visible); each token once, ascending. */
typedef struct hdl_resolve_args {
    int64_t n_rows; /* of all sequences */
    int32_t n_seqs, block_size;
    const hdl_attend_seq *seqs; /* [n_seqs] */
    const int64_t *n_visible;   /* [n_rows] tokens */
    int32_t n_sink, window;     /* tokens */
    const hdl_selection *lists; /* of groups, as many as out */
    hdl_selection *out;         /* n_ids_max: enough for chosen and forced */
} hdl_resolve_args;

/* ORDER: in which order the places of each list are visited (`order`, `n_first` of the selection): the forced ones
 * first, as SELECT names them, ascending; then the others by score, the largest first, ties to the lowest id (NaN
 * counts as -inf). Without scores all are first. */
typedef struct hdl_order_args {
    int64_t n_rows;
    const float *score; /* [n_rows, n_lists, score_stride] of units; NULL = none */
    int64_t score_stride;
    const int64_t *n_visible; /* [n_rows] tokens */
    int32_t n_sink, window;   /* tokens */
    hdl_selection *list;
} hdl_order_args;

/* VISIT: ATTEND over lists in the order of their visits, until the rest seems not to matter (S2O, arXiv 2602.22575).
 * A row and KV head attends to the first places; then to tiles of the order, `tile` tokens each (one block at
 * least). A tile's gain is the share that its exp(s) has in the sum of all visited so far, itself among them, of the
 * query heads of the KV head the largest. After `patience` tiles in a row that gain less than `below` the row is done:
 * what it read is a prefix of the order, its output ATTEND's over that. below 0 reads the whole list.
 * No lse, mass or sink. A row's bits depend on its own visible tokens, list and order alone. */
typedef struct hdl_stop_rule {
    float below;
    int32_t tile, patience; /* patience 0: there is no rule */
} hdl_stop_rule;
typedef struct hdl_visit_args {
    hdl_attend_args attend; /* with a selection that has an order */
    hdl_stop_rule stop;
    int32_t *n_read; /* [n_rows, n_kv_heads] tokens that were visited */
} hdl_visit_args;

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

/* COMPACT: row r of KV head h of `to` = row ids[r] of `from`, ids the list of head h; bytes as they are,
 * scales with them. No page is in both. All lists have the same count. */
typedef struct hdl_compact_args {
    int32_t n_kv_heads, head_dim, v_head_dim;
    hdl_kv_view from, to;      /* one dtype and layout */
    const hdl_selection *rows; /* one row; one list, or one a KV head */
} hdl_compact_args;

/* GLU: gate[r, j] = act(gate[r, j]) * up[r, j], in place. */
typedef struct hdl_glu_args {
    int64_t n_rows, n_cols;
    float *gate;     /* [n_rows, n_cols], row stride `stride` */
    const float *up; /* the same shape and stride */
    int64_t stride;
    bool is_gelu; /* tanh form of GELU; else SiLU */
} hdl_glu_args;

/* What the rows of a sequence leave behind for those after them. CONV and DELTA take a sequence's rows one
 * after another, from the state `before` to the state `after` (not the same memory). With row r a document
 * begins where n_visible[r] - 1 == doc_start[r]: neither rows above it nor `before` reach into it. A row's
 * bits depend on its document's rows up to it alone, never on where calls cut them, on the other sequences
 * or on n_threads. */
typedef struct hdl_state_seq {
    int64_t first_row, q_len; /* at least one row */
    const float *before;
    float *after;
} hdl_state_seq;

/* CONV: a short causal convolution of each column, then SiLU, in place:
 *   y[c] = sum_j weight[j, c] * x[r - (width - 1) + j, c];  x[r, c] = y / (1 + exp(-y))
 * Rows of another document or before the first count as 0. State: [width - 1, n_cols], the last rows of x as
 * they came, oldest first. */
typedef struct hdl_conv_args {
    int64_t n_rows, n_cols;
    int32_t n_seqs, width;
    const hdl_state_seq *seqs;            /* [n_seqs] */
    const int64_t *n_visible, *doc_start; /* [n_rows] */
    const float *weight;                  /* [width, n_cols]; the row's own last */
    float *x;                             /* [n_rows, n_cols], row stride x_stride */
    int64_t x_stride;
} hdl_conv_args;

/* DELTA: the gated delta rule (Gated Delta Networks, arXiv 2412.06464), for each head with its state S
 * [v_dim, k_dim]:
 *   q, k <- x / sqrt(sum x^2 + eps);  alpha = exp(-exp(a_log) * softplus(a + dt_bias));  beta = 1 / (1 + exp(-b))
 *   S <- alpha S (I - beta k k^T) + beta v k^T = alpha S + u k^T  with  u = beta (v - alpha S k)
 *   o = scale * S q
 * S is 0 where a document begins. State: [n_heads, k_dim, v_dim] f32, S transposed. */
typedef struct hdl_delta_args {
    int64_t n_rows;
    int32_t n_seqs, n_heads, k_dim, v_dim;
    const hdl_state_seq *seqs;            /* [n_seqs] */
    const int64_t *n_visible, *doc_start; /* [n_rows] */
    const float *qkv; /* [n_rows, n_heads * (2 * k_dim + v_dim)] q of all heads, then k, then v */
    const float *ab;  /* [n_rows, 2 * n_heads] a of all heads, then b */
    int64_t qkv_stride, ab_stride, o_stride;
    const float *a_log, *dt_bias; /* [n_heads] */
    float scale, eps;
    float *o; /* [n_rows, n_heads, v_dim] */
} hdl_delta_args;

#endif
