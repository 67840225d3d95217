/* attend_int.h - which tokens a query row reads, and where they lie: plain C, for attention's files.
 *
 * A *walk* is the ascending sequence of tokens that a row may read: every token for dense rows, the
 * listed ones for lists. Step i of a walk is token i (dense), ids[i] (token lists) or token i % size
 * of block ids[i / size] (block lists: every block but the last is full). KV is cut at multiples of
 * HDL_KV_STRIDE steps. The visible steps are one interval [begin, end): causality cuts the end, the
 * window the begin (positions ascend); a mask over the new rows may still hide steps in between. */
#ifndef HDL_ATTEND_INT_H
#define HDL_ATTEND_INT_H

#include <math.h>
#include <string.h>

#include "backend/cpu/quantise.h"
#include "backend/op.h"
#include "tensor/dtype.h"

typedef struct kv_walk {
    const hdl_kv_view *kv;
    const int32_t *ids;  /* NULL = dense */
    int64_t size;        /* block size of ids; 1 for tokens */
    int64_t begin, end;  /* visible steps */
    const float *bias;   /* [ids] or NULL */
    const uint8_t *mask; /* [new tokens] visibility of token first_new + i for this row, or NULL */
    int64_t first_new;
} kv_walk;

static inline int64_t walk_token(const kv_walk *walk, int64_t step)
{
    if (!walk->ids) return step;
    if (walk->size == 1) return walk->ids[step];
    return (int64_t)walk->ids[step / walk->size] * walk->size + step % walk->size;
}

static inline uint8_t *kv_page_of(const hdl_kv_view *kv, int64_t token, int64_t *slot)
{
    *slot = token & (((int64_t)1 << kv->page_shift) - 1);
    return kv->pages[token >> kv->page_shift];
}

/* Where slot and page of the token begin; K and V offsets are added by the caller. */
static inline uint8_t *kv_token_at(const hdl_kv_view *kv, int64_t token)
{
    int64_t slot;
    uint8_t *page = kv_page_of(kv, token, &slot);
    return page + slot * kv->token_stride;
}

/* Bytes from a token's scales to the next one's, for an op that reads n_kv_heads. */
static inline int64_t kv_scale_stride(const hdl_kv_view *kv, int32_t n_kv_heads)
{
    return (kv->n_scale_heads ? kv->n_scale_heads : n_kv_heads) * (int64_t)sizeof(float);
}

/* The scales of the token's heads are floats at this address + k_scale_offset (v_scale_offset). */
static inline uint8_t *kv_scale_at(const hdl_kv_view *kv, int64_t token, int32_t n_kv_heads)
{
    int64_t slot;
    uint8_t *page = kv_page_of(kv, token, &slot);
    return page + slot * kv_scale_stride(kv, n_kv_heads);
}

/* The first token inside the window of the row at token `at`; positions ascend. */
static inline int64_t window_begin(const hdl_kv_view *kv, int64_t at, int64_t window)
{
    if (window <= 0) return 0;
    if (!kv->positions) return HDL_MAX(at - window + 1, 0);
    int64_t low = 0, high = at, bound = kv->positions[at] - window;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (kv->positions[middle] > bound)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The first token that the row at token `at` may see. */
static inline int64_t first_visible(const hdl_attend_seq *seq, int64_t at, int64_t window)
{
    return HDL_MAX(window_begin(&seq->kv, at, window), seq->first_token);
}

/* The first step whose token is >= token. */
static inline int64_t walk_lower_bound(const kv_walk *walk, int64_t n_steps, int64_t token)
{
    int64_t low = 0, high = n_steps;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (walk_token(walk, middle) >= token)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The sequence of a row of the call. */
static inline const hdl_attend_seq *attend_seq_of(const hdl_attend_args *args, int64_t row)
{
    const hdl_attend_seq *seq = args->seqs;
    while (row < seq->first_row || row >= seq->first_row + seq->q_len) seq++;
    return seq;
}

/* The list that a KV head reads. */
static inline int32_t attend_list_of(const hdl_attend_args *args, int32_t kv_head)
{
    return args->selection ? (int32_t)((int64_t)kv_head * args->selection->n_lists / args->n_kv_heads) : 0;
}

/* Where the list of row i of the sequence stands: at the row, or at the first of the call that shares it. */
static inline int64_t list_row(const hdl_selection *sel, const hdl_attend_seq *seq, int64_t i)
{
    int64_t before = seq->kv_len - seq->q_len, n = sel->rows_per_list;
    if (n <= 1) return seq->first_row + i;
    return seq->first_row + HDL_MAX((before + i) / n * n - before, 0);
}

/* Row i of the sequence through selection list `list` (ignored for dense rows). */
static inline kv_walk row_walk(const hdl_attend_args *args, const hdl_attend_seq *seq, int64_t i,
                               int32_t list)
{
    int64_t at = seq->kv_len - seq->q_len + i;
    int64_t first = first_visible(seq, at, args->window);
    kv_walk walk = {
        .kv = &seq->kv, .size = 1, .begin = first, .end = at + 1, .first_new = seq->kv_len - seq->q_len};
    if (seq->mask) walk.mask = seq->mask + i * seq->q_len;
    const hdl_selection *sel = args->selection;
    if (sel) {
        int64_t row = list_row(sel, seq, i), n_ids = *hdl_selection_count(sel, row, list);
        walk.ids = hdl_selection_ids(sel, row, list);
        walk.size = sel->block_size;
        if (sel->bias) walk.bias = sel->bias + (row * sel->n_lists + list) * sel->n_ids_max;
        walk.end = walk_lower_bound(&walk, n_ids * walk.size, at + 1);
        walk.begin = walk_lower_bound(&walk, walk.end, first);
    }
    return walk;
}

/* False where a mask over the new rows hides the token. */
static inline bool walk_sees(const kv_walk *walk, int64_t token)
{
    return !walk->mask || token < walk->first_new || walk->mask[token - walk->first_new];
}

/* One row of a cache in int8; returns the scale. The rule of quantise.h with one block a row: every
 * APPEND writes the same bytes. */
static inline float quantise_i8(const float *x, int8_t *q, int64_t n)
{
    int32_t largest = 0;
    float scale;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= INT32_MAX;
        largest = HDL_MAX(largest, bits);
    }
    float factor = hdl_qscale(largest, &scale);
    for (int64_t i = 0; i < n; i++) q[i] = factor == 0 ? 0 : (int8_t)nearbyintf(x[i] * factor);
    return scale;
}

/* The same with 4 bits: q in -7..7, scale = amax / 7. */
static inline float quantise_i4(const float *x, int8_t *q, int64_t n)
{
    float scale = quantise_i8(x, q, n); /* amax / 127, and the two special cases */
    if (!(scale > 0)) return scale;
    scale *= 127.0f / 7;
    for (int64_t i = 0; i < n; i++) {
        float v = nearbyintf(x[i] / scale);
        q[i] = (int8_t)HDL_MIN(HDL_MAX(v, -7.0f), 7.0f);
    }
    return scale;
}

static inline bool is_kv_dtype(hdl_dtype dtype)
{
    return dtype == HDL_F32 || dtype == HDL_F16 || dtype == HDL_BF16 || dtype == HDL_I8 || dtype == HDL_Q4_1;
}

/* n elements of a cache's row in q4_1: 32 at a time [f16 d | f16 m | byte i: codes of elements i and i + 16],
 * x = d q + m. m is the smallest element and d a 15th of the range, both rounded to halves first; q is the
 * nearest code of the element between them. A NaN or an infinity in a block makes d and m NaN. Elements
 * side by side, so that compilers vectorise it. */
static inline void quantise_q4_1(const float *x, uint8_t *to, int64_t n)
{
    enum { N = 32, LANES = 16 };
    for (; n > 0; n -= N, x += N, to += 20) {
        int32_t bits[N], largest = 0;
        float low[LANES], high[LANES], y[N], least, most;
        memcpy(bits, x, sizeof bits);
        memcpy(low, x, sizeof low);
        memcpy(high, x, sizeof high);
        for (int i = 0; i < N; i++) largest = HDL_MAX(largest, bits[i] & INT32_MAX);
        for (int i = 0; i < LANES; i++) {
            low[i] = x[i + LANES] < low[i] ? x[i + LANES] : low[i];
            high[i] = x[i + LANES] > high[i] ? x[i + LANES] : high[i];
        }
        least = low[0];
        most = high[0];
        for (int i = 1; i < LANES; i++) {
            least = low[i] < least ? low[i] : least;
            most = high[i] > most ? high[i] : most;
        }
        bool is_finite = largest < HDL_QINF_BITS;
        uint16_t half[2] = {hdl_f32_to_f16(is_finite ? (most - least) / 15 : NAN),
                            hdl_f32_to_f16(is_finite ? least : NAN)};
        float d = hdl_f16_to_f32(half[0]), m = hdl_f16_to_f32(half[1]);
        float factor = is_finite && d > 0 ? 1 / d : 0;
        memcpy(to, half, sizeof half);
        for (int i = 0; i < N; i++) {
            float q = (x[i] - m) * factor;
            q = q > 0 ? q : 0;                    /* NaN, too */
            y[i] = (q < 15 ? q : 15) + 0x1.8p23f; /* to the nearest whole number, even on ties */
        }
        memcpy(bits, y, sizeof bits);
        for (int i = 0; i < LANES; i++) to[4 + i] = (uint8_t)((bits[i] & 15) | (bits[i + LANES] & 15) << 4);
    }
}

/* Element i of a stored K or V row; `scale` is an int8 row's. */
static inline float stored_element(hdl_dtype dtype, const uint8_t *row, int64_t i, float scale)
{
    uint16_t half[2];
    float x;
    switch (dtype) {
        case HDL_F32: memcpy(&x, row + 4 * i, sizeof x); return x;
        case HDL_F16: memcpy(half, row + 2 * i, sizeof *half); return hdl_f16_to_f32(half[0]);
        case HDL_BF16: memcpy(half, row + 2 * i, sizeof *half); return hdl_bf16_to_f32(half[0]);
        case HDL_Q4_1:
            row += i / 32 * 20;
            memcpy(half, row, sizeof half);
            x = (float)(row[4 + i % 16] >> (i % 32 < 16 ? 0 : 4) & 15);
            return hdl_f16_to_f32(half[0]) * x + hdl_f16_to_f32(half[1]);
        default: return (float)((const int8_t *)row)[i] * scale;
    }
}

/* How a row's partials become its output; shared by both kernels so that a sink is handled once.
 * Given max and sum of e^(s - max) over the visible tokens, both updated for the sink, returns the
 * factor for o; *lse is set. */
static inline float finish_head(const hdl_attend_args *args, int64_t row, int32_t head, float max, float sum)
{
    float lse = sum > 0 ? max + logf(sum) : -INFINITY, share = sum > 0 ? 1 / sum : 0;
    if (args->sink) {
        float sink = args->sink[head], top = HDL_MAX(max, sink);
        if (top > -INFINITY) {
            float shrink = sum > 0 ? expf(max - top) : 0, all = sum * shrink + expf(sink - top);
            lse = top + logf(all);
            share = shrink / all;
        }
    }
    if (args->lse) args->lse[row * args->n_heads + head] = lse;
    return share;
}

#endif
