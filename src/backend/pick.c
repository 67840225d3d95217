/* pick.c - picks of shards and their merge. */
#include "backend/pick.h"

#include <math.h>
#include <string.h>

/* Integers in the order of the scores. */
static uint32_t order_of(float score)
{
    uint32_t u;
    score = isnan(score) ? -INFINITY : score + 0.0f;
    memcpy(&u, &score, sizeof u);
    return u >> 31 ? ~u : u | 0x80000000;
}

static int64_t count_from(const hdl_pick *pick, uint32_t bound)
{
    int64_t n = 0;
    for (int64_t i = 0; i < pick->n; i++) n += order_of(pick->scores[i]) >= bound;
    return n;
}

void hdl_merge_picks(const hdl_pick *a, const hdl_pick *b, int64_t top_k, hdl_pick *out)
{
    int64_t n = HDL_MIN(top_k, a->n + b->n), n_ties = n;
    uint32_t bound = 0; /* the largest that n of both reach */
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t higher = bound | (uint32_t)1 << bit;
        if (count_from(a, higher) + count_from(b, higher) >= n) bound = higher;
    }
    if (bound < UINT32_MAX) n_ties -= count_from(a, bound + 1) + count_from(b, bound + 1);
    out->n = 0;
    for (int64_t i = 0, j = 0; out->n < n;) {
        bool is_a = j == b->n || (i < a->n && a->ids[i] < b->ids[j]);
        const hdl_pick *from = is_a ? a : b;
        int64_t at = is_a ? i++ : j++;
        uint32_t order = order_of(from->scores[at]);
        if (order < bound || (order == bound && n_ties-- <= 0)) continue;
        out->ids[out->n] = from->ids[at];
        out->scores[out->n++] = from->scores[at];
    }
}

double hdl_mass_scale(float largest)
{
    return largest > 0 && largest < INFINITY ? ldexp(1.0, 38 - ilogbf(largest)) : 0;
}

int64_t hdl_count_by_p(const hdl_select_args *args, bool has_room, int64_t m, int64_t n)
{
    switch (args->p_rule) {
        case HDL_P_EXCLUSIVE: return m;
        case HDL_P_PLUS_ONE: return HDL_MIN(m + 1, n);
        default: return has_room ? HDL_MIN(m + 1, n) : 0; /* the first one over p still counts */
    }
}

static int64_t units_from(const hdl_pick *pick, uint32_t bound, double scale)
{
    int64_t units = 0;
    for (int64_t i = 0; i < pick->n; i++)
        if (order_of(pick->scores[i]) >= bound) units += hdl_mass_units(pick->scores[i], scale);
    return units;
}

/* The least order at and above which all of both leave room under p, 2^32 where not even the best does; *share: theirs
 * and the forced ones' units. */
static uint64_t bound_below_p(const hdl_pick *a, const hdl_pick *b, const hdl_select_args *args,
                              const hdl_row_mass *mass, int64_t *share)
{
    double scale = hdl_mass_scale(mass->largest);
    uint64_t low = 0, high = (uint64_t)1 << 32; /* high leaves room */
    *share = mass->forced;
    while (low < high) {
        uint64_t at = low + (high - low) / 2;
        int64_t units = mass->forced + units_from(a, (uint32_t)at, scale) +
                        units_from(b, (uint32_t)at, scale);
        if (hdl_is_below_p(args, units, mass->total)) {
            high = at;
            *share = units;
        } else {
            low = at + 1;
        }
    }
    return high;
}

/* The units of those whose order is `order`, of one of them. */
static int64_t units_at(const hdl_pick *pick, uint32_t order, double scale)
{
    for (int64_t i = 0; i < pick->n; i++)
        if (order_of(pick->scores[i]) == order) return hdl_mass_units(pick->scores[i], scale);
    return 0;
}

void hdl_merge_shares(const hdl_pick *a, const hdl_pick *b, const hdl_select_args *args,
                      const hdl_row_mass *mass, hdl_pick *out)
{
    int64_t n = a->n + b->n, share, m = 0;
    bool has_room = mass->total && hdl_is_below_p(args, mass->forced, mass->total);
    if (has_room) {
        uint64_t bound = bound_below_p(a, b, args, mass, &share);
        if (bound <= UINT32_MAX) m = count_from(a, (uint32_t)bound) + count_from(b, (uint32_t)bound);
        if (bound > 0) { /* of the equal ones below it some have room, not all */
            double scale = hdl_mass_scale(mass->largest);
            int64_t each = HDL_MAX(units_at(a, (uint32_t)(bound - 1), scale),
                                   units_at(b, (uint32_t)(bound - 1), scale));
            HDL_ASSERT(each > 0);
            for (; hdl_is_below_p(args, share + each, mass->total); m++) share += each;
        }
    }
    int64_t count = mass->total ? hdl_count_by_p(args, has_room, m, n) : 0;
    hdl_merge_picks(a, b, args->top_k > 0 ? HDL_MIN(count, args->top_k) : count, out);
}

int64_t hdl_beam_tile(int64_t begin, int64_t n, int64_t top_k, hdl_beam_node *nodes)
{
    for (int64_t i = 0; i < top_k; i++)
        nodes[i] = (hdl_beam_node){(int32_t)(begin + i * n / top_k),
                                   (int32_t)((i + 1) * n / top_k - i * n / top_k)};
    return top_k ? (n + top_k - 1) / top_k : 1;
}

int64_t hdl_beam_split(const hdl_beam_node *nodes, int64_t n, hdl_beam_node *halves)
{
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t left = nodes[i].n / 2;
        if (left) halves[m++] = (hdl_beam_node){nodes[i].first, left};
        halves[m++] = (hdl_beam_node){nodes[i].first + left, nodes[i].n - left};
    }
    return m;
}

int64_t hdl_beam_keep(const hdl_beam_node *halves, int64_t n, const hdl_pick *pick, hdl_beam_node *nodes)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n && kept < pick->n; i++)
        if (halves[i].first == pick->ids[kept]) nodes[kept++] = halves[i];
    return kept;
}
