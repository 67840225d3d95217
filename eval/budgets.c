/* budgets.c - the split of a budget among heads. */
#include "budgets.h"

#include <stdlib.h>

void budgets_split(const double *captured, const int32_t *price, int32_t n, int32_t n_steps, int64_t n_total,
                   int32_t floor, int32_t *steps)
{
    int64_t left = n_total;
    for (int32_t i = 0; i < n; i++) {
        steps[i] = floor;
        left -= (int64_t)floor * (price ? price[i] : 1);
    }
    for (int32_t best; left > 0; left -= price ? price[best] : 1) {
        double most = 0;
        best = -1;
        for (int32_t i = 0; i < n; i++) {
            const double *at = captured + (int64_t)i * (n_steps + 1) + steps[i];
            int32_t cost = price ? price[i] : 1;
            if (steps[i] == n_steps || cost > left) continue;
            double gain = (at[1] - at[0]) / cost;
            if (best >= 0 && gain <= most) continue;
            best = i;
            most = gain;
        }
        if (best < 0) return;
        steps[best]++;
    }
}

static int by_score(const void *a, const void *b)
{
    const budgets_unit *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->unit > y->unit) - (x->unit < y->unit);
}

void budgets_order(const float *score, int64_t first, int64_t n, budgets_unit *order)
{
    for (int64_t i = 0; i < n; i++) order[i] = (budgets_unit){score[first + i], (int32_t)(first + i)};
    qsort(order, (size_t)n, sizeof *order, by_score);
}

void budgets_add_curve(const float *score, const budgets_unit *order, int64_t n, double forced, int32_t step,
                       int32_t n_steps, double *curve)
{
    double mass = forced;
    for (int64_t s = 0, i = 0; s <= n_steps; s++) {
        curve[s] += mass;
        for (; i < n && i < (s + 1) * step; i++) mass += (double)score[order[i].unit];
    }
}
