/* complement_int.h - which entries a row's complement is made of, and where their means lie: plain C. */
#ifndef HDL_COMPLEMENT_INT_H
#define HDL_COMPLEMENT_INT_H

#include "backend/cpu/attend_int.h"
#include "backend/cpu/route_int.h"

/* Entries of a row: what it sees lies in [seen, own]; those of [begin, end) it may read as means, since they are wholly
 * visible and hold neither its own token nor, under a mask, a new one. */
typedef struct row_entries {
    int64_t seen, own, begin, end;
} row_entries;

static inline row_entries complement_entries(const hdl_complement_args *args, int64_t row)
{
    const hdl_attend_seq *seq = attend_seq_of(&args->attend, row);
    int64_t block = args->block_size, first_new = seq->kv_len - seq->q_len,
            at = first_new + row - seq->first_row;
    int64_t first = first_visible(seq, at, args->attend.window);
    row_entries entries = {.seen = first / block, .own = at / block, .begin = (first + block - 1) / block};
    entries.end = HDL_MAX((seq->mask ? first_new : at) / block, entries.begin);
    return entries;
}

/* Entry e of all heads, in plane `at`: f16 [n_heads, dim]. */
static inline const uint8_t *mean_at(const hdl_kv_view *kv, int at, int64_t e, int32_t block_size)
{
    const hdl_kv_plane *plane = &kv->plane[at];
    return plane_at(kv, plane->offset, e, block_size, plane->n_heads * (int64_t)plane->dim * 2);
}

#endif
