/* selection.h - the waist: which KV tokens (or blocks) each query group reads.
 *
 *   routers write it        ids  int32 [n_rows, n_lists, n_ids_max]   unique, ascending per list
 *   operators read it       counts int32 [n_rows, n_lists]            how many of them are valid
 *
 * A list belongs to (query row, list); KV head h of the row reads list h * n_lists / n_kv_heads
 * (n_lists = 1: one list for all heads). Forced ids (sinks, recent window, always-sets) are already
 * in the list: operators know nothing of them. ids are logical: token t is row t of the sequence,
 * block b is tokens [b * block_size, (b+1) * block_size) cut at the visible length. Page tables are
 * applied once, by the operator. An empty list gives (o, lse) = (0, -inf).
 *
 * Walk: token 5000 of a 8192-token document is chosen in anchor layer 2 for row 8191. Its id 5000
 * stands once in ids[row][0]; layer 3's token-list operator turns it into page 5000 >> shift,
 * slot 5000 & mask of layer 3's pages and reads that K and V row. Nothing was copied but 4 bytes.
 *
 * Units of a permuted order (plane GROUP) never reach an operator: op RESOLVE turns a list of them into the list of
 * their tokens, once.
 *
 * The struct is a view: memory is booked by compile and owned by the session's arena. */
#ifndef HDL_SELECTION_H
#define HDL_SELECTION_H

#include "base/base.h"

typedef enum hdl_unit { HDL_UNIT_TOKEN = 0, HDL_UNIT_BLOCK = 1 } hdl_unit;

typedef struct hdl_selection {
    hdl_unit unit;
    int32_t block_size;    /* tokens of a block; 1 for tokens */
    int64_t n_rows;        /* query rows; row r of the operator's call reads list r, */
    int32_t rows_per_list; /* but above 1: rows whose position / rows_per_list is equal, the first's */
    int32_t n_lists;       /* lists per row: 1 .. n_kv_heads, a divisor of n_kv_heads */
    int64_t n_ids_max;     /* stride of ids */
    int32_t *ids;          /* [n_rows, n_lists, n_ids_max] */
    int32_t *counts;       /* [n_rows, n_lists] */
    bool has_order;        /* what these two will be: */
    int32_t *order;    /* [n_rows, n_lists, n_ids_max] places of ids as they are visited; NULL = ascending */
    int32_t *n_first;  /* [n_rows, n_lists] so many of the order are visited whatever a stop rule says */
    const float *bias; /* [n_rows, n_lists, n_ids_max] added to the scaled score; NULL = none */
} hdl_selection;

static inline int32_t *hdl_selection_ids(const hdl_selection *sel, int64_t row, int32_t list)
{
    return sel->ids + (row * sel->n_lists + list) * sel->n_ids_max;
}

static inline int32_t *hdl_selection_count(const hdl_selection *sel, int64_t row, int32_t list)
{
    return sel->counts + row * sel->n_lists + list;
}

/* Unique, ascending, inside 0..n_visible-1 (tokens) for every list; else a sentence that names the
 * row, list and id. For tests, taps and plans read from outside; never called in the decode path. */
heddle_status hdl_selection_check(const hdl_selection *sel, const int64_t *n_visible /* [n_rows] */);

#endif
