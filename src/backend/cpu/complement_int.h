/* complement_int.h - which entries and listed tokens a row's complement is made of: plain C. */
#ifndef HDL_COMPLEMENT_INT_H
#define HDL_COMPLEMENT_INT_H

#include "backend/cpu/route_int.h"

/* One list of one query row: entries [begin, end) and the listed tokens before the end of the last. */
typedef struct complement_walk {
    kv_walk walk; /* steps [walk.begin, walk.end) lie in the entries */
    int64_t begin, end;
} complement_walk;

static inline complement_walk complement_of(const hdl_complement_args *args, const hdl_attend_seq *seq,
                                            int64_t row, int32_t list)
{
    const hdl_selection *sel = args->selection;
    int64_t at_row = list_row(sel, seq, row - seq->first_row);
    int64_t block = args->block_size, own = seq->kv_len - seq->q_len + row - seq->first_row;
    complement_walk at = {.begin = (seq->first_token + block - 1) / block, .end = own / block};
    if (seq->mask) at.end = HDL_MIN(at.end, (seq->kv_len - seq->q_len) / block);
    at.end = HDL_MAX(at.begin, at.end);
    at.walk = (kv_walk){.kv = &seq->kv, .ids = hdl_selection_ids(sel, at_row, list), .size = sel->block_size};
    int64_t n_steps = *hdl_selection_count(sel, at_row, list) * at.walk.size;
    at.walk.end = walk_lower_bound(&at.walk, n_steps, at.end * block);
    at.walk.begin = walk_lower_bound(&at.walk, at.walk.end, at.begin * block);
    return at;
}

static inline const hdl_attend_seq *complement_seq_of(const hdl_complement_args *args, int64_t row)
{
    const hdl_attend_seq *seq = args->seqs;
    while (row >= seq->first_row + seq->q_len || row < seq->first_row) seq++;
    return seq;
}

/* Entry e of all heads, in plane `at`: f16 [n_heads, dim]. */
static inline const uint8_t *mean_at(const hdl_kv_view *kv, int at, int64_t e, int32_t block_size)
{
    const hdl_kv_plane *plane = &kv->plane[at];
    return plane_at(kv, plane->offset, e, block_size, plane->n_heads * (int64_t)plane->dim * 2);
}

#endif
