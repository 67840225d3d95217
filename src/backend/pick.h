/* pick.h - selection over a context that lies in several places: local candidates and their merge.
 *
 * Each shard of a row's units selects its own top_k; what it found, ids with their scores, is a pick. The
 * merge of two picks is the top_k of both. It is associative and commutative, as the order is total (score,
 * then the lower id), so any tree of merges gives the ids that one selection over the whole row gives.
 * Shards know their own forced units and leave them out of the pick; top_k counts unforced ones.
 *
 *   TOP_K      top_k of the row
 *   THRESHOLD  every shard by the same threshold; top_k as in the row, or where that is 0 the number of units
 *   TOP_P      has no merge: how far down the order the list goes hangs on the whole row's mass, forced units and all,
 *              which no shard has. A shard's own share p may hold less than its part of the row's list, so what it
 *              would pick is not enough. (With the row's total and largest mass known beforehand, sums being whole
 *              numbers, each shard could cut its own order; SELECT takes no such numbers.)
 *   BEAM       has no merge: its tree is over the places of the row's unforced units */
#ifndef HDL_PICK_H
#define HDL_PICK_H

#include "base/base.h"

typedef struct hdl_pick {
    int64_t n;
    int32_t *ids;  /* [n] unique, ascending */
    float *scores; /* [n] NaN counts as -inf */
} hdl_pick;

/* The best top_k of a and b, which share no id; `out` has room for min(top_k, a.n + b.n) and is neither. */
void hdl_merge_picks(const hdl_pick *a, const hdl_pick *b, int64_t top_k, hdl_pick *out);

#endif
