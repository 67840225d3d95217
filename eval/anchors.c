/* anchors.c - a row of layers cut into runs, each served by its first.
 *
 * best[a, i]: the largest sum of layers before i with a anchors, the next of which stands at i (n: the end):
 * best[a, i] = max over l < i of best[a - 1, l] + sum of served[l, j], l <= j < i. */
#include "anchors.h"

#include <math.h>
#include <stdlib.h>

bool anchors_solve(const double *served, int32_t n, int32_t n_anchors, bool *is_anchor)
{
    int64_t width = n + 1, size = (n_anchors + 1) * width;
    double *best = malloc((size_t)size * sizeof *best);
    int32_t *from = malloc((size_t)size * sizeof *from); /* l of the maximum */
    bool is_ready = best && from;
    for (int64_t s = 0; s < size && is_ready; s++) best[s] = -INFINITY;
    if (is_ready) best[0] = 0;
    for (int64_t a = 1; a <= n_anchors && is_ready; a++)
        for (int32_t l = 0; l < n; l++) {
            double sum = best[(a - 1) * width + l];
            for (int32_t i = l + 1; i <= n && sum > -INFINITY; i++) {
                sum += served[(int64_t)l * n + i - 1];
                if (sum <= best[a * width + i]) continue;
                best[a * width + i] = sum;
                from[a * width + i] = l;
            }
        }
    for (int32_t i = 0; i < n && is_ready; i++) is_anchor[i] = false;
    for (int32_t a = n_anchors, i = n; a > 0 && is_ready; a--) {
        i = from[a * width + i];
        is_anchor[i] = true;
    }
    free(best);
    free(from);
    return is_ready;
}
