/* pick.c - the merge of two picks. */
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
