/* simd_attend_walk.h - how many query rows are cut into tiles, and what each row sees of a stride of KV: shared by the
 * kernels of many rows (simd_attend_rows.c, amx_attend.c). */
#ifndef HDL_SIMD_ATTEND_WALK_H
#define HDL_SIMD_ATTEND_WALK_H

#include "backend/cpu/attend_int.h"
#include "backend/cpu/simd_attend_int.h"

enum {
    STRIDE = HDL_KV_STRIDE,
    TILE_SHARED = 64, /* rows of a tile that share a list, at most */
    LINE = 64
};

/* Rows [first, first + n_rows) of a sequence with KV heads that share a walk: one, or, for few rows,
 * all, so that a token's row is read at once. The rows of its products are (KV head, row, head). */
typedef struct row_tile {
    const hdl_attend_args *args;
    const hdl_attend_seq *seq;
    int64_t first, n_rows;
    int32_t first_kv_head, n_kv_heads, group;
    int32_t kv_head; /* the one at work */
    bool is_short;   /* few rows: the next stride is fetched while V is converted */
    kv_walk walk;    /* of the first row; end is that of the last: steps that some row sees */
    struct {
        int64_t begin, end;
    } seen[TILE_SHARED]; /* lists: steps that each row sees */
    const float *q;      /* [n_kv_heads, n_rows group, head_dim] scaled */
} row_tile;

/* One stride of a tile: steps [base + begin, base + end) of the walk are converted. */
typedef struct tile_stride {
    int64_t base, begin, end;
} tile_stride;

/* Steps of the stride that row i of the tile sees, relative to its base. */
static inline void row_range(const row_tile *tile, const tile_stride *at, int64_t i, int64_t *begin,
                             int64_t *end)
{
    int64_t first, last;
    if (tile->walk.ids) {
        first = tile->seen[i].begin;
        last = tile->seen[i].end;
    } else {
        int64_t position = tile->seq->kv_len - tile->seq->q_len + tile->first + i;
        first = first_visible(tile->seq, position, tile->args->window);
        last = position + 1;
    }
    *begin = HDL_MIN(HDL_MAX(first - at->base, 0), (int64_t)STRIDE);
    *end = HDL_MAX(HDL_MIN(last - at->base, (int64_t)STRIDE), *begin);
}

/* Products' rows of one KV head. */
static inline int64_t rows_of_head(const row_tile *tile)
{
    return tile->n_rows * tile->group;
}

static inline tile_stride stride_at(const row_tile *tile, int64_t stride)
{
    tile_stride at = {.base = stride * STRIDE};
    at.begin = HDL_MAX(tile->walk.begin - at.base, 0);
    at.end = HDL_MIN(tile->walk.end - at.base, (int64_t)STRIDE);
    return at;
}

/* Caps, biases and hides scores of one row in vectors [v_begin, v_end). */
static inline void shape_row(const row_tile *tile, const tile_stride *at, int64_t row, int64_t v_begin,
                             int64_t v_end, float *s)
{
    const hdl_attend_args *args = tile->args;
    const kv_walk *walk = &tile->walk;
    int64_t begin, end;
    row_range(tile, at, row, &begin, &end);
    if (args->soft_cap > 0)
        for (int64_t i = v_begin; i < v_end; i += VW)
            vf_store(s + i, vf_soft_cap(vf_load(s + i), args->soft_cap));
    if (walk->bias)
        for (int64_t i = begin; i < end; i++) s[i] += walk->bias[(at->base + i) / walk->size];
    if (begin > v_begin || end < v_end)
        for (int64_t i = v_begin; i < v_end; i += VW)
            vf_store(s + i, vf_keep(vf_load(s + i), begin - i, end - i));
    if (!walk->mask) return;
    kv_walk own = *walk;
    own.mask = tile->seq->mask + (tile->first + row) * tile->seq->q_len;
    for (int64_t i = begin; i < end; i++)
        if (!walk_sees(&own, walk_token(walk, at->base + i))) s[i] = -INFINITY;
}

/* Rows by which the sequence's first tile is cut: tiles of shared lists begin at multiples of their rows
 * by position, which no list crosses. */
static inline int64_t rows_cut(const hdl_attend_args *args, int64_t tile_rows, const hdl_attend_seq *seq)
{
    const hdl_selection *sel = args->selection;
    return sel && sel->rows_per_list > 1 ? (seq->kv_len - seq->q_len) % tile_rows : 0;
}

static inline int64_t n_tiles_of(const hdl_attend_args *args, int64_t tile_rows, const hdl_attend_seq *seq)
{
    return (rows_cut(args, tile_rows, seq) + seq->q_len + tile_rows - 1) / tile_rows;
}

/* Tiles of all sequences. */
static inline int64_t n_tiles_of_all(const hdl_attend_args *args, int64_t tile_rows)
{
    int64_t n = 0;
    for (int32_t i = 0; i < args->n_seqs; i++) n += n_tiles_of(args, tile_rows, &args->seqs[i]);
    return n;
}

/* Rows of tile `index` of the call, last rows of a sequence first. */
static inline row_tile tile_at(const hdl_attend_args *args, int64_t tile_rows, int64_t index)
{
    const hdl_attend_seq *seq = args->seqs;
    for (; index >= n_tiles_of(args, tile_rows, seq); seq++) index -= n_tiles_of(args, tile_rows, seq);
    int64_t begin = (n_tiles_of(args, tile_rows, seq) - 1 - index) * tile_rows -
                    rows_cut(args, tile_rows, seq);
    row_tile tile = {.args = args, .seq = seq, .first = HDL_MAX(begin, 0)};
    tile.n_rows = HDL_MIN(begin + tile_rows, seq->q_len) - tile.first;
    tile.group = args->n_heads / args->n_kv_heads;
    return tile;
}

/* The tile's walk, and what each of its rows sees of it. */
static inline void tile_walk(row_tile *tile, int32_t list)
{
    tile->walk = row_walk(tile->args, tile->seq, tile->first, list);
    if (!tile->walk.ids) {
        tile->walk.end += tile->n_rows - 1; /* one token more a row */
        return;
    }
    for (int64_t i = 0; i < tile->n_rows; i++) {
        kv_walk own = i ? row_walk(tile->args, tile->seq, tile->first + i, list) : tile->walk;
        tile->seen[i].begin = own.begin;
        tile->seen[i].end = tile->walk.end = own.end;
    }
}

/* Rows of a tile whose products have at most m rows: the conversion of a stride is shared by them. */
static inline int64_t tile_rows_within(const hdl_attend_args *args, int64_t m)
{
    int64_t rows = 1;
    int64_t most = HDL_MAX(HDL_MIN(m / (args->n_heads / args->n_kv_heads), args->max_q_len), 1);
    if (!args->has_selection) return most;
    /* a power of two that divides the rows of a list */
    while (2 * rows <= HDL_MIN(most, (int64_t)TILE_SHARED) && args->rows_per_list % (2 * rows) == 0 &&
           args->rows_per_list > 1)
        rows *= 2;
    return rows;
}

#endif
