/* pick.h - selection over a context that lies in several places: local candidates and their merge.
 *
 * Each shard of a row's units selects its own top_k; what it found, ids with their scores, is a pick. The
 * merge of two picks is the top_k of both. It is associative and commutative, as the order is total (score,
 * then the lower id), so any tree of merges gives the ids that one selection over the whole row gives.
 * Shards know their own forced units and leave them out of the pick; top_k counts unforced ones.
 *
 *   TOP_K      top_k of the row
 *   THRESHOLD  every shard by the same threshold; top_k as in the row, or where that is 0 the number of units
 *   TOP_P      in three rounds, each associative: the row's largest mass (the larger of two); its mass in whole numbers
 *              by that (sums of int64); picks of the shards by the row's mass, which the arguments hold, merged by
 *              hdl_merge_shares. A unit that a pick leaves out has more than p before it in the shard alone, so in the
 *              row; all that is better than what a pick holds is there, and the one that goes over p. EXCLUSIVE leaves
 *              that one out, without which units of other shards would seem to have room: shards and merges go by
 *              INCLUSIVE then, and a last merge with an empty pick by EXCLUSIVE. Without top_k only p bounds a pick.
 *   BEAM       a merge a level. Every shard knows the nodes, [first, n) of the row's unforced units, and splits them; a
 *              half belongs to the shard that holds its first unit, the only one that counts, so borders may lie
 *              anywhere, inside nodes too. Picks of the shards' halves, ids their first units, are merged as top_k;
 *              what stays are the nodes of the next level.
 * Whether a row is dense (dense_below) is the row's to say: a shard's arguments hold 0. */
#ifndef HDL_PICK_H
#define HDL_PICK_H

#include "backend/op.h"

typedef struct hdl_pick {
    int64_t n;
    int32_t *ids;  /* [n] unique, ascending */
    float *scores; /* [n] NaN counts as -inf */
} hdl_pick;

/* The best top_k of a and b, which share no id; `out` has room for min(top_k, a.n + b.n) and is neither. */
void hdl_merge_picks(const hdl_pick *a, const hdl_pick *b, int64_t top_k, hdl_pick *out);

/* ---- a share of the mass ---- */

/* Masses as whole numbers: units = mass * scale rounded down, where the largest has 38 bits or 39. The scale is 0
 * where nothing has a (finite) mass: then there is nothing to share. */
double hdl_mass_scale(float largest);
static inline int64_t hdl_mass_units(float score, double scale)
{
    return score > 0 ? (int64_t)((double)score * scale) : 0;
}

/* The largest of n masses, 0 of none. These two go over whole rows: kernels compile them for their own machine. */
static inline float hdl_largest_mass(const float *score, int64_t n)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = score[i] > largest ? score[i] : largest;
    return largest;
}

/* Adds n masses, of which [begin, end) are not forced, to `mass`, whose largest is the row's. */
static inline void hdl_add_mass(const float *score, int64_t n, int64_t begin, int64_t end, hdl_row_mass *mass)
{
    double scale = hdl_mass_scale(mass->largest);
    int64_t forced = 0, free = 0;
    if (!(scale > 0)) return;
    for (int64_t i = 0; i < begin; i++) forced += hdl_mass_units(score[i], scale);
    for (int64_t i = begin; i < end; i++) free += hdl_mass_units(score[i], scale);
    for (int64_t i = end; i < n; i++) forced += hdl_mass_units(score[i], scale);
    mass->forced += forced;
    mass->total += forced + free;
}

/* Whether a share of the row's mass leaves room under p, by the rule. */
static inline bool hdl_is_below_p(const hdl_select_args *args, int64_t units, int64_t total)
{
    float share = (float)((double)units / (double)total);
    return args->p_rule == HDL_P_STRICT ? share < args->p : share <= args->p;
}

/* Units chosen of n, when the shares of the best 1..m leave room; has_room: that of the forced does. */
int64_t hdl_count_by_p(const hdl_select_args *args, bool has_room, int64_t m, int64_t n);

/* TOP_P of a and b as hdl_merge_picks, by p, p_rule and top_k of the arguments and the row's mass. */
void hdl_merge_shares(const hdl_pick *a, const hdl_pick *b, const hdl_select_args *args,
                      const hdl_row_mass *mass, hdl_pick *out);

/* ---- a beam ---- */

typedef struct hdl_beam_node {
    int32_t first, n; /* units */
} hdl_beam_node;

/* The top_k nodes, at most n, that tile units [begin, begin + n); returns the units of the largest, at least 1. */
int64_t hdl_beam_tile(int64_t begin, int64_t n, int64_t top_k, hdl_beam_node *nodes);

/* Splits n nodes into halves [2 n], ascending, none empty; returns how many. The largest shrinks from m units to
 * (m + 1) / 2. */
int64_t hdl_beam_split(const hdl_beam_node *nodes, int64_t n, hdl_beam_node *halves);

/* Those of n halves whose first units the pick holds; returns how many. */
int64_t hdl_beam_keep(const hdl_beam_node *halves, int64_t n, const hdl_pick *pick, hdl_beam_node *nodes);

#endif
