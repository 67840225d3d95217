/* reuse.c - sources of reused lists, exactly. */
#include "reuse.h"

#include <math.h>
#include <stdlib.h>

/* best [(max_changes + 1) * n]: the largest sum of a path that ends at layer j with source i after c changes, all of
 * its overlaps at least `least`; -inf: there is none. kept [n, max_changes + 1, n]: the source of the layer before. */
static double best_path(const double *overlap, int32_t n, int32_t max_changes, double least, double *best,
                        double *next, int32_t *kept, int32_t *source)
{
    int64_t width = (int64_t)(max_changes + 1) * n;
    for (int64_t s = 0; s < width; s++) best[s] = -INFINITY;
    best[0] = overlap[0];
    for (int32_t j = 1; j < n; j++) {
        for (int32_t c = 0; c <= max_changes; c++)
            for (int32_t i = 0; i < n; i++) {
                double *at = &next[(int64_t)c * n + i];
                int32_t from = i;
                *at = -INFINITY;
                if (i < j && overlap[(int64_t)i * n + j] >= least)
                    *at = best[(int64_t)c * n + i] + overlap[(int64_t)i * n + j];
                for (int32_t k = 0; i == j && c > 0 && k < j; k++) {
                    double value = best[(int64_t)(c - 1) * n + k] + overlap[(int64_t)j * n + j];
                    if (value > *at) {
                        *at = value;
                        from = k;
                    }
                }
                kept[((int64_t)j * (max_changes + 1) + c) * n + i] = from;
            }
        double *swap = best;
        best = next;
        next = swap;
    }
    int64_t last = 0;
    for (int64_t s = 1; s < width; s++)
        if (best[s] > best[last]) last = s;
    double sum = best[last];
    for (int32_t j = n - 1, c = (int32_t)(last / n), i = (int32_t)(last % n); sum > -INFINITY && j >= 0;
         j--) {
        source[j] = i;
        int32_t before = kept[((int64_t)j * (max_changes + 1) + c) * n + i];
        if (i == j) c--; /* at layer 0 nothing is before */
        i = before;
    }
    return sum;
}

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

bool reuse_solve(const double *overlap, int32_t n, int32_t max_changes, int32_t *source)
{
    if (max_changes > n - 1) max_changes = n - 1;
    int64_t width = (int64_t)(max_changes + 1) * n, n_values = 0;
    double *best = malloc((size_t)width * sizeof *best), *next = malloc((size_t)width * sizeof *next);
    double *values = malloc((size_t)n * (size_t)n * sizeof *values);
    int32_t *kept = calloc((size_t)(width * n), sizeof *kept);
    bool is_ready = best && next && values && kept;
    for (int32_t i = 0; i < n && is_ready; i++)
        for (int32_t j = i; j < n; j++) values[n_values++] = overlap[(int64_t)i * n + j];
    if (is_ready) {
        qsort(values, (size_t)n_values, sizeof *values, descending);
        int64_t too_high = -1, holds = n_values - 1; /* going on with layer 0 keeps the least value of all */
        while (holds - too_high > 1) {
            int64_t middle = (too_high + holds) / 2;
            if (best_path(overlap, n, max_changes, values[middle], best, next, kept, source) > -INFINITY)
                holds = middle;
            else
                too_high = middle;
        }
        best_path(overlap, n, max_changes, values[holds], best, next, kept, source);
    }
    free(best);
    free(next);
    free(values);
    free(kept);
    return is_ready;
}
