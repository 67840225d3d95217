/* budgets.c - the split of a budget among heads. */
#include "budgets.h"

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
