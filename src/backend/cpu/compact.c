/* compact.c - COMPACT as op.h defines it: rows copied whole, so there is nothing to compute and the
 * reference is as fast as memory is. Threads take runs of rows of all heads. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/pool.h"

enum { ROWS_PER_TASK = 256 };

static void copy_row(const hdl_compact_args *a, int32_t head, int64_t from_row, int64_t to_row)
{
    const hdl_kv_view *from = &a->from, *to = &a->to;
    int64_t mask = ((int64_t)1 << from->page_shift) - 1, slot = from_row & mask, to_slot = to_row & mask;
    const uint8_t *page = from->pages[from_row >> from->page_shift];
    uint8_t *out = to->pages[to_row >> to->page_shift];
    memcpy(out + to->k_offset + to_slot * to->token_stride + head * to->head_stride,
           page + from->k_offset + slot * from->token_stride + head * from->head_stride,
           (size_t)hdl_row_bytes(from->dtype, a->head_dim));
    memcpy(out + to->v_offset + to_slot * to->token_stride + head * to->v_head_stride,
           page + from->v_offset + slot * from->token_stride + head * from->v_head_stride,
           (size_t)hdl_row_bytes(from->dtype, a->v_head_dim));
    if (from->dtype != HDL_I8) return;
    int64_t scale = (slot * a->n_kv_heads + head) * 4, to_scale = (to_slot * a->n_kv_heads + head) * 4;
    memcpy(out + to->k_scale_offset + to_scale, page + from->k_scale_offset + scale, 4);
    memcpy(out + to->v_scale_offset + to_scale, page + from->v_scale_offset + scale, 4);
}

static void copy_rows(void *arg, int64_t task, int thread)
{
    const hdl_compact_args *a = arg;
    const hdl_selection *rows = a->rows;
    (void)thread;
    for (int32_t head = 0; head < a->n_kv_heads; head++) {
        int32_t list = (int32_t)((int64_t)head * rows->n_lists / a->n_kv_heads);
        const int32_t *ids = hdl_selection_ids(rows, 0, list);
        int64_t n = *hdl_selection_count(rows, 0, list);
        for (int64_t r = task * ROWS_PER_TASK; r < HDL_MIN(n, (task + 1) * ROWS_PER_TASK); r++)
            copy_row(a, head, ids[r], r);
    }
}

static void compact_launch(const hdl_launch *launch, const void *args)
{
    hdl_compact_args a = *(const hdl_compact_args *)args;
    int64_t n = *hdl_selection_count(a.rows, 0, 0);
    hdl_parallel_for(launch->n_threads, (n + ROWS_PER_TASK - 1) / ROWS_PER_TASK, copy_rows, &a);
}

const hdl_impl hdl_cpu_compact[] = {
    {"compact", HDL_OP_COMPACT, HDL_ISA_REF, NULL, NULL, compact_launch},
    {0},
};
