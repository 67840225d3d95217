/* linear_vector.h - LINEAR on AVX2 and AVX-512: how a call is cut into tasks.
 *
 * A tile is LANES consecutive outputs of one part and all rows of the call. The last tile of a part
 * is moved back so that it is full; the lanes that the tile before has done are not stored. One row:
 * the tile's dot products come straight from the weights. More rows: TILES tiles are unpacked once
 * into the thread's scratch and multiplied with GROUP rows at a time.
 *
 * One parallel region per call (one more where rounding x is worth threads); a task is a run of
 * tiles, so that a decoding thread streams one contiguous piece of the weights. */
#ifndef HDL_LINEAR_VECTOR_H
#define HDL_LINEAR_VECTOR_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/linear_act.h"
#include "backend/cpu/linear_float.h"
#include "backend/cpu/linear_quant.h"
#include "base/pool.h"

enum { INLINE_ROUNDING_ELEMS = 16384, ROWS_PER_ROUNDING_TASK = 8, TASKS_PER_THREAD = 8 };
/* A waiting thread fetches this much of what it reads next: a part of its L2. */
enum { IDLE_BYTES = 128 << 10 };

/* How outputs are cut into tasks: runs of tiles of one part. */
typedef struct linear_cut {
    int64_t tiles_per_task;
    int64_t first_task[HDL_LINEAR_MAX_PARTS + 1];
} linear_cut;

typedef struct linear_call {
    const hdl_linear_args *args;
    qspace space;
    uint8_t *scratch; /* [n_threads, scratch_bytes] */
    int64_t scratch_bytes;
    linear_cut cut;
    int n_threads;
    const hdl_linear_args *next; /* the call after this one, or NULL */
} linear_call;

static const char *linear_why_not(const void *args)
{
    const hdl_linear_args *a = args;
    for (int32_t p = 0; p < a->n_parts; p++) {
        hdl_dtype dtype = a->part[p].w.dtype;
        bool is_float = dtype == HDL_F32 || dtype == HDL_F16 || dtype == HDL_BF16;
        if (a->part[p].w.n_rows < LANES) return "a part has fewer outputs than the vector has lanes";
        if (is_float && a->n_in % float_step(dtype)) return "n_in is not a multiple of 16 bytes of weights";
        if (!is_float && !hdl_dtype_of(dtype)->is_quantised)
            return "it has no kernel for a part's weight type";
    }
    return NULL;
}

static int64_t scratch_bytes_of(const hdl_linear_args *a)
{
    int64_t bytes = 0;
    if (a->n_rows == 1) return 0;
    for (int32_t p = 0; p < a->n_parts; p++) {
        bool is_quantised = hdl_dtype_of(a->part[p].w.dtype)->is_quantised;
        int64_t n = is_quantised ? a->n_in / 32 * (int64_t)sizeof(packed) : a->n_in * (int64_t)sizeof(vf);
        bytes = HDL_MAX(bytes, n);
    }
    return HDL_ALIGN_UP(bytes * TILES, 64);
}

static int64_t linear_workspace(const void *args, int n_threads)
{
    return qspace_of(args, NULL).bytes + scratch_bytes_of(args) * n_threads;
}

ALWAYS_INLINE void store_outputs(const hdl_linear_part *part, int64_t row, int64_t j, int skip, vf v)
{
    float *out = part->out + row * part->out_stride + j;
    if (part->bias) v += vf_load(part->bias + j);
    if (skip) {
        if (part->accumulate) v += vf_load_from(out, skip);
        vf_store_from(out, v, skip);
    } else {
        if (part->accumulate) v += vf_load(out);
        vf_store(out, v);
    }
}

/* Up to TILES tiles of a part: where their outputs go. */
typedef struct tile_out {
    const hdl_linear_part *part;
    int n_tiles;
    int64_t j[2];
    int skip[2];
} tile_out;

ALWAYS_INLINE void store_tiles(const tile_out *to, int64_t row, int n_tiles, const vf *acc)
{
    UNROLL
    for (int t = 0; t < n_tiles; t++) store_outputs(to->part, row, to->j[t], to->skip[t], acc[t]);
}

/* n_rows (constant) rows from `row` on, which is row `first` of its group. */
ALWAYS_INLINE void quant_rows(const packed *p, const qrows *group, int64_t row, int first, int n_rows,
                              int n_tiles, code_kind kind, const tile_out *to)
{
    vf acc[12];
    qrows x = *group;
    qrows_next(&x, first, kind);
    dot_rows(p, &x, n_rows, n_tiles, kind, acc);
    UNROLL
    for (int i = 0; i < n_rows; i++) store_tiles(to, row + i, n_tiles, acc + i * n_tiles);
}

ALWAYS_INLINE void quant_tiles_as(const packed *p, const qspace *s, int64_t n_rows, code_kind kind,
                                  int n_tiles, const tile_out *to)
{
    for (int64_t row = 0; row < n_rows; row += s->group) {
        const qrows x = qrows_at(s, kind, row);
        int first = 0, n = (int)HDL_MIN(s->group, n_rows - row);
        if (n == GROUP) {
            quant_rows(p, &x, row, 0, GROUP, n_tiles, kind, to);
            continue;
        }
        if (GROUP > 4 && n >= 4) quant_rows(p, &x, row, 0, HDL_MIN(4, GROUP), n_tiles, kind, to), first = 4;
        if (n - first >= 2) quant_rows(p, &x, row + first, first, 2, n_tiles, kind, to), first += 2;
        if (n - first >= 1) quant_rows(p, &x, row + first, first, 1, n_tiles, kind, to);
    }
}

ALWAYS_INLINE void quant_tiles_of(hdl_dtype dtype, const packed *p, const qspace *s, int64_t n_rows,
                                  const tile_out *to)
{
    if (TILES == 2 && to->n_tiles == 2)
        quant_tiles_as(p, s, n_rows, kind_of(dtype), TILES, to);
    else
        quant_tiles_as(p, s, n_rows, kind_of(dtype), 1, to);
}

NEVER_INLINE void quant_tiles_q4_0(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q4_0, p, s, n_rows, to);
}
NEVER_INLINE void quant_tiles_q4_1(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q4_1, p, s, n_rows, to);
}
NEVER_INLINE void quant_tiles_q5_0(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q5_0, p, s, n_rows, to);
}
NEVER_INLINE void quant_tiles_q5_1(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q5_1, p, s, n_rows, to);
}
NEVER_INLINE void quant_tiles_q6_k(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q6_K, p, s, n_rows, to);
}
NEVER_INLINE void quant_tiles_q8_0(const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    quant_tiles_of(HDL_Q8_0, p, s, n_rows, to);
}

/* q4_K and q5_K are q4_1 and q5_1 once unpacked; on AVX-512 the products are the same for all widths
 * and the last two with a minimum are one. */
static void quant_tiles(hdl_dtype dtype, const packed *p, const qspace *s, int64_t n_rows, const tile_out *to)
{
    switch (dtype) {
        case HDL_Q4_0: quant_tiles_q4_0(p, s, n_rows, to); break;
        case HDL_Q4_1:
        case HDL_Q4_K: quant_tiles_q4_1(p, s, n_rows, to); break;
        case HDL_Q5_0: quant_tiles_q5_0(p, s, n_rows, to); break;
        case HDL_Q5_1:
        case HDL_Q5_K:
            if (LANES == 16)
                quant_tiles_q4_1(p, s, n_rows, to);
            else
                quant_tiles_q5_1(p, s, n_rows, to);
            break;
        case HDL_Q6_K: quant_tiles_q6_k(p, s, n_rows, to); break;
        default: quant_tiles_q8_0(p, s, n_rows, to); break;
    }
}

ALWAYS_INLINE int64_t float_rows(const vf *w, const hdl_linear_args *a, int64_t row, int n, int n_tiles,
                                 const tile_out *to)
{
    for (; row + n <= a->n_rows; row += n) {
        vf acc[12];
        dot_float_rows(w, a->x + row * a->x_stride, a->x_stride, a->n_in, n, n_tiles, acc);
        UNROLL
        for (int i = 0; i < n; i++) store_tiles(to, row + i, n_tiles, acc + i * n_tiles);
    }
    return row;
}

NEVER_INLINE void float_tiles(const vf *w, const hdl_linear_args *a, const tile_out *to)
{
    int64_t row = 0;
    if (TILES == 2 && to->n_tiles == 2) {
        row = float_rows(w, a, row, 6, TILES, to);
        row = float_rows(w, a, row, 2, TILES, to);
        float_rows(w, a, row, 1, TILES, to);
    } else {
        row = float_rows(w, a, row, 12, 1, to);
        row = float_rows(w, a, row, 4, 1, to);
        float_rows(w, a, row, 1, 1, to);
    }
}

/* The tiles of `to` for one row, straight from the weights. */
static void one_row(const linear_call *call, const tile_out *to, int64_t n_tiles, stream *ahead)
{
    const hdl_linear_args *a = call->args;
    const hdl_tensor *w = &to->part->w;
    vf acc[2];
    if (hdl_dtype_of(w->dtype)->is_quantised) {
        const qrows x = qrows_at(&call->space, kind_of(w->dtype), 0);
        for (int t = 0; t < n_tiles; t++)
            acc[t] = dot_one(w->dtype, (const uint8_t *)w->data + to->j[t] * w->row_bytes, w->row_bytes, &x,
                             ahead);
    } else {
        const uint8_t *rows[2];
        for (int t = 0; t < 2; t++)
            rows[t] = (const uint8_t *)w->data + to->j[HDL_MIN(t, n_tiles - 1)] * w->row_bytes;
        dot_float(w->dtype, rows, w->row_bytes, a->x, a->n_in, (int)n_tiles, ahead, acc);
    }
    for (int t = 0; t < n_tiles; t++) store_outputs(to->part, 0, to->j[t], to->skip[t], acc[t]);
}

static void many_rows(const linear_call *call, const tile_out *to, void *scratch)
{
    const hdl_linear_args *a = call->args;
    const hdl_tensor *w = &to->part->w;
    const bool is_quantised = hdl_dtype_of(w->dtype)->is_quantised;
    for (int t = 0; t < to->n_tiles; t++) {
        const uint8_t *rows = (const uint8_t *)w->data + to->j[t] * w->row_bytes;
        const int64_t n_blocks = call->space.n_blocks;
        if (is_quantised)
            pack_tile(w->dtype, rows, w->row_bytes, n_blocks, (packed *)scratch + t * n_blocks);
        else
            pack_floats(w->dtype, rows, w->row_bytes, a->n_in, (vf *)scratch + t, to->n_tiles);
    }
    if (is_quantised)
        quant_tiles(w->dtype, scratch, &call->space, a->n_rows, to);
    else
        float_tiles(scratch, a, to);
}

static int64_t n_tiles_of(const hdl_linear_part *part)
{
    return (part->w.n_rows + LANES - 1) / LANES;
}

/* Eight tasks per thread balance threads within 1/8; a share is contiguous, so they cost nothing. */
static linear_cut cut_of(const hdl_linear_args *a, int n_threads)
{
    int64_t n_tiles = 0;
    for (int32_t p = 0; p < a->n_parts; p++) n_tiles += n_tiles_of(&a->part[p]);
    linear_cut cut = {.tiles_per_task = n_tiles};
    if (n_threads > 1)
        cut.tiles_per_task = HDL_ALIGN_UP(HDL_MAX(n_tiles / (TASKS_PER_THREAD * (int64_t)n_threads), 1), 2);
    for (int32_t p = 0; p < a->n_parts; p++)
        cut.first_task[p + 1] = cut.first_task[p] +
                                (n_tiles_of(&a->part[p]) + cut.tiles_per_task - 1) / cut.tiles_per_task;
    return cut;
}

static int32_t part_of(const linear_cut *cut, int64_t task)
{
    int32_t p = 0;
    while (task >= cut->first_task[p + 1]) p++;
    return p;
}

/* Where the weights of a task lie; the end of its part for the first task of the next. */
static const uint8_t *task_weights(const hdl_linear_args *a, const linear_cut *cut, int32_t p, int64_t task)
{
    const hdl_tensor *w = &a->part[p].w;
    int64_t tile = (task - cut->first_task[p]) * cut->tiles_per_task;
    return (const uint8_t *)w->data + HDL_MIN(tile * LANES, w->n_rows) * w->row_bytes;
}

/* Asks for the weights of a one-row task, the first tile at once, and returns what to ask for while it
 * runs: the rest of the thread's share, then the beginning of its share of the next call, more of
 * which it fetches while it waits. A thread's tasks follow each other, so only the first (and one
 * taken from another thread) must begin by asking. */
static stream stream_of(const linear_call *call, int32_t p, int64_t task, int thread)
{
    const hdl_linear_args *a = call->args, *next = call->next;
    const int64_t n_tasks = call->cut.first_task[a->n_parts], tile_bytes = LANES * a->part[p].w.row_bytes;
    const int64_t own = hdl_pool_share(thread, call->n_threads, n_tasks),
                  own_end = hdl_pool_share(thread + 1, call->n_threads, n_tasks);
    const bool is_own = task >= own && task < own_end;
    const int64_t end = HDL_MIN(is_own ? own_end : n_tasks, call->cut.first_task[p + 1]);
    stream s = {.at = task_weights(a, &call->cut, p, task), .end = task_weights(a, &call->cut, p, end)};
    s.then = s.end;
    if (is_own && end < own_end) {
        s.then = a->part[p + 1].w.data;
    } else if (next) {
        const linear_cut after = cut_of(next, call->n_threads);
        const int64_t first = hdl_pool_share(thread, call->n_threads, after.first_task[next->n_parts]);
        const int32_t q = part_of(&after, first);
        s.then = task_weights(next, &after, q, first);
        int64_t left = (const uint8_t *)next->part[q].w.data +
                       next->part[q].w.n_rows * next->part[q].w.row_bytes - s.then;
        hdl_pool_ahead(thread, s.then, HDL_MIN(left, (int64_t)IDLE_BYTES));
    }
    if (!is_own || task == own) prefetch(s.at, HDL_MIN(tile_bytes + PREFETCH_AHEAD_BYTES, s.end - s.at));
    s.at += tile_bytes + PREFETCH_AHEAD_BYTES;
    if (s.at >= s.end) {
        s.at = s.then + (s.at - s.end);
        s.end = (const uint8_t *)UINTPTR_MAX;
    }
    return s;
}

static void linear_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    const int32_t p = part_of(&call->cut, task);
    const hdl_linear_part *part = &a->part[p];
    const int64_t n_out = part->w.n_rows, begin = (task - call->cut.first_task[p]) * call->cut.tiles_per_task,
                  end = HDL_MIN(begin + call->cut.tiles_per_task, n_tiles_of(part));
    stream ahead = {0};
    if (a->n_rows == 1) ahead = stream_of(call, p, task, thread);
    for (int64_t tile = begin; tile < end; tile += 2) {
        tile_out to = {.part = part, .n_tiles = (int)HDL_MIN(end - tile, 2)};
        for (int t = 0; t < to.n_tiles; t++) {
            to.j[t] = HDL_MIN((tile + t) * LANES, n_out - LANES);
            to.skip[t] = (int)((tile + t) * LANES - to.j[t]);
        }
        if (a->n_rows == 1) {
            one_row(call, &to, to.n_tiles, &ahead);
        } else if (TILES == 2 || to.n_tiles == 1) {
            many_rows(call, &to, call->scratch + thread * call->scratch_bytes);
        } else {
            for (int t = 0; t < 2; t++) {
                tile_out one = {part, 1, {to.j[t]}, {to.skip[t]}};
                many_rows(call, &one, call->scratch + thread * call->scratch_bytes);
            }
        }
    }
}

static void rounding_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    int64_t row = task * ROWS_PER_ROUNDING_TASK, end = HDL_MIN(row + ROWS_PER_ROUNDING_TASK, a->n_rows);
    (void)thread;
    for (; row < end; row++) quantise_row(&call->space, a->x + row * a->x_stride, row);
}

static void linear_launch(const hdl_launch *launch, const void *args)
{
    const hdl_linear_args *a = args;
    if (a->n_rows <= 0) return;
    linear_call call = {.args = a,
                        .space = qspace_of(a, launch->workspace),
                        .scratch_bytes = scratch_bytes_of(a),
                        .cut = cut_of(a, launch->n_threads),
                        .next = launch->next};
    call.scratch = (uint8_t *)launch->workspace + call.space.bytes;
    if (call.space.q) {
        int64_t n = (a->n_rows + ROWS_PER_ROUNDING_TASK - 1) / ROWS_PER_ROUNDING_TASK;
        int n_threads = a->n_rows * a->n_in <= INLINE_ROUNDING_ELEMS ? 1 : launch->n_threads;
        hdl_parallel_for(n_threads, n, rounding_task, &call);
    }
    const int64_t n_tasks = call.cut.first_task[a->n_parts];
    call.n_threads = (int)HDL_MIN((int64_t)launch->n_threads, n_tasks); /* those that have a share */
    hdl_parallel_for(call.n_threads, n_tasks, linear_task, &call);
}

#endif
