/* linear_vector.h - LINEAR on AVX2 and AVX-512: how a call is cut into tasks.
 *
 * A tile is LANES consecutive outputs of one part and all rows of the call. The last tile of a part
 * is moved back so that it is full; the lanes that the tile before has done are not stored. One row:
 * the tile's dot products come straight from the weights. More rows: the tile is unpacked once into
 * the thread's scratch and multiplied with ROWS rows at a time.
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

enum { INLINE_ROUNDING_ELEMS = 16384, ROWS_PER_ROUNDING_TASK = 8 };

typedef struct linear_call {
    const hdl_linear_args *args;
    qspace space;
    uint8_t *scratch; /* [n_threads, scratch_bytes] */
    int64_t scratch_bytes;
    int64_t tiles_per_task;
    int64_t first_task[HDL_LINEAR_MAX_PARTS + 1];
} linear_call;

static const char *linear_why_not(const void *args)
{
    const hdl_linear_args *a = args;
    for (int32_t p = 0; p < a->n_parts; p++) {
        hdl_dtype dtype = a->part[p].w.dtype;
        bool is_float = dtype == HDL_F32 || dtype == HDL_F16 || dtype == HDL_BF16;
        if (a->part[p].w.n_rows < LANES) return "a part has fewer outputs than the vector has lanes";
        if (is_float && a->n_in % float_step(dtype)) return "n_in is not a multiple of 16 bytes of weights";
        if (!is_float && !hdl_dtype_of(dtype)->is_quantised) return "it has no kernel for a part's weight type";
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
    return HDL_ALIGN_UP(bytes, 64);
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

/* One piece of a tile: where it goes. */
typedef struct tile_out {
    const hdl_linear_part *part;
    int64_t j;
    int skip;
} tile_out;

/* The rows from `row` on, n at a time (constant), while n fit; returns the next row. */
ALWAYS_INLINE int64_t quant_rows(const packed *p, const qrows *x, int64_t row, int64_t n_rows, int n, code_kind kind,
                                 tile_out to)
{
    for (; row + n <= n_rows; row += n) {
        vf acc[12];
        qrows here = qrows_at(x, row, kind.has_halves);
        dot_rows(p, &here, n, kind, acc);
        for (int i = 0; i < n; i++) store_outputs(to.part, row + i, to.j, to.skip, acc[i]);
    }
    return row;
}

ALWAYS_INLINE void quant_tile_as(const packed *p, const qrows *x, int64_t n_rows, code_kind kind, tile_out to)
{
    int64_t row = 0;
    if (LANES == 16) {
        row = quant_rows(p, x, row, n_rows, 12, kind, to);
        row = quant_rows(p, x, row, n_rows, 6, kind, to);
    } else {
        row = quant_rows(p, x, row, n_rows, 4, kind, to);
    }
    row = quant_rows(p, x, row, n_rows, 3, kind, to);
    quant_rows(p, x, row, n_rows, 1, kind, to);
}

NEVER_INLINE void quant_tile_4(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q4_0), to);
}
NEVER_INLINE void quant_tile_4_min(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q4_1), to);
}
NEVER_INLINE void quant_tile_5(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q5_0), to);
}
NEVER_INLINE void quant_tile_5_min(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q5_1), to);
}
NEVER_INLINE void quant_tile_6(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q6_K), to);
}
NEVER_INLINE void quant_tile_8(const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    quant_tile_as(p, x, n_rows, kind_of(HDL_Q8_0), to);
}

static void quant_tile(hdl_dtype dtype, const packed *p, const qrows *x, int64_t n_rows, tile_out to)
{
    /* On AVX-512 the products are the same for all widths: formats share what they can. */
    const bool is_one_width = LANES == 16;
    code_kind kind = kind_of(dtype);
    if (kind.has_halves) quant_tile_6(p, x, n_rows, to);
    else if (kind.bits == 8) quant_tile_8(p, x, n_rows, to);
    else if (kind.has_min && (kind.bits == 4 || is_one_width)) quant_tile_4_min(p, x, n_rows, to);
    else if (kind.has_min) quant_tile_5_min(p, x, n_rows, to);
    else if (kind.bits == 4 || is_one_width) quant_tile_4(p, x, n_rows, to);
    else quant_tile_5(p, x, n_rows, to);
}

ALWAYS_INLINE int64_t float_rows(const vf *w, const hdl_linear_args *a, int64_t row, int n, tile_out to)
{
    for (; row + n <= a->n_rows; row += n) {
        vf acc[12];
        dot_float_rows(w, a->x + row * a->x_stride, a->x_stride, a->n_in, n, acc);
        for (int i = 0; i < n; i++) store_outputs(to.part, row + i, to.j, to.skip, acc[i]);
    }
    return row;
}

NEVER_INLINE void float_tile(const vf *w, const hdl_linear_args *a, tile_out to)
{
    int64_t row = float_rows(w, a, 0, 12, to);
    row = float_rows(w, a, row, 4, to);
    float_rows(w, a, row, 1, to);
}

static void linear_task(void *arg, int64_t task, int thread)
{
    const linear_call *call = arg;
    const hdl_linear_args *a = call->args;
    int p = 0;
    while (task >= call->first_task[p + 1]) p++;
    const hdl_linear_part *part = &a->part[p];
    const hdl_tensor *w = &part->w;
    const bool is_quantised = hdl_dtype_of(w->dtype)->is_quantised;
    const qrows x = is_quantised ? qrows_for(&call->space, w->dtype) : (qrows){0};
    void *scratch = call->scratch + thread * call->scratch_bytes;
    int64_t tile = (task - call->first_task[p]) * call->tiles_per_task;
    const int64_t n_tiles = (w->n_rows + LANES - 1) / LANES, end = HDL_MIN(tile + call->tiles_per_task, n_tiles);
    for (; tile < end; tile++) {
        const int64_t j = HDL_MIN(tile * LANES, w->n_rows - LANES);
        const uint8_t *rows = (const uint8_t *)w->data + j * w->row_bytes;
        tile_out to = {part, j, (int)(tile * LANES - j)};
        if (a->n_rows == 1 && is_quantised) {
            store_outputs(part, 0, j, to.skip, dot_one(w->dtype, rows, w->row_bytes, &x));
        } else if (a->n_rows == 1) {
            const int n = tile + 1 < end && j + 2 * LANES <= w->n_rows ? 2 : 1;
            vf acc[2];
            dot_float(w->dtype, rows, w->row_bytes, a->x, a->n_in, n, acc);
            store_outputs(part, 0, j, to.skip, acc[0]);
            if (n == 2) store_outputs(part, 0, j + LANES, 0, acc[1]), tile++;
        } else if (is_quantised) {
            pack_tile(w->dtype, rows, w->row_bytes, x.n_blocks, scratch);
            quant_tile(w->dtype, scratch, &x, a->n_rows, to);
        } else {
            pack_floats(w->dtype, rows, w->row_bytes, a->n_in, scratch);
            float_tile(scratch, a, to);
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

/* Four tasks per thread balance two threads within 1/8 and keep pieces contiguous. */
static int64_t tiles_per_task(int64_t n_tiles, int n_threads)
{
    return n_threads == 1 ? n_tiles : HDL_MAX(n_tiles / (4 * (int64_t)n_threads), 1);
}

static void linear_launch(const hdl_launch *launch, const void *args)
{
    const hdl_linear_args *a = args;
    if (a->n_rows <= 0) return;
    linear_call call = {.args = a, .space = qspace_of(a, launch->workspace)};
    int64_t n_tiles = 0;
    for (int32_t p = 0; p < a->n_parts; p++) n_tiles += (a->part[p].w.n_rows + LANES - 1) / LANES;
    call.scratch = (uint8_t *)launch->workspace + call.space.bytes;
    call.scratch_bytes = scratch_bytes_of(a);
    call.tiles_per_task = tiles_per_task(n_tiles, launch->n_threads);
    for (int32_t p = 0; p < a->n_parts; p++) {
        int64_t n = (a->part[p].w.n_rows + LANES - 1) / LANES;
        call.first_task[p + 1] = call.first_task[p] + (n + call.tiles_per_task - 1) / call.tiles_per_task;
    }
    if (call.space.q) {
        int64_t n = (a->n_rows + ROWS_PER_ROUNDING_TASK - 1) / ROWS_PER_ROUNDING_TASK;
        int n_threads = a->n_rows * a->n_in <= INLINE_ROUNDING_ELEMS ? 1 : launch->n_threads;
        hdl_parallel_for(n_threads, n, rounding_task, &call);
    }
    hdl_parallel_for(launch->n_threads, call.first_task[a->n_parts], linear_task, &call);
}

#endif
