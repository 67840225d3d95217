/* budgets.c - the split of a budget among heads. */
#include "budgets.h"

void budgets_split(const double *captured, int32_t n, int32_t n_steps, int64_t n_total, int32_t floor,
                   int32_t *steps)
{
    for (int32_t i = 0; i < n; i++) steps[i] = floor;
    for (int64_t left = n_total - (int64_t)n * floor; left > 0; left--) {
        int32_t best = -1;
        double most = 0;
        for (int32_t i = 0; i < n; i++) {
            const double *at = captured + (int64_t)i * (n_steps + 1) + steps[i];
            if (steps[i] == n_steps || (best >= 0 && at[1] - at[0] <= most)) continue;
            best = i;
            most = at[1] - at[0];
        }
        if (best < 0) return;
        steps[best]++;
    }
}
