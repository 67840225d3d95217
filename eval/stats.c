/* stats.c - intervals by bootstrap over documents. */
#include "eval/stats.h"

#include <math.h>
#include <stdlib.h>

#include "eval/basics.h"

enum { N_RESAMPLES = 2000, MAX_SERIES = 4 };

/* A statistic of the sums [n_series] of several series over the drawn documents. */
typedef double (*statistic)(const double *sums);

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void eval_sort(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, ascending);
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

void eval_sort_down(float *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, descending);
}

static double of_documents(const double *const *series, int n_series, const int64_t *drawn, int64_t n,
                           statistic f)
{
    double sums[MAX_SERIES] = {0};
    for (int s = 0; s < n_series; s++)
        for (int64_t i = 0; i < n; i++) sums[s] += series[s][drawn ? drawn[i] : i];
    return f(sums);
}

static eval_interval bootstrap(const double *const *series, int n_series, int64_t n, statistic f,
                               uint64_t seed)
{
    eval_interval interval = {of_documents(series, n_series, NULL, n, f), NAN, NAN};
    double *values = malloc(N_RESAMPLES * sizeof *values);
    int64_t *drawn = malloc((size_t)(n ? n : 1) * sizeof *drawn), n_values = 0;
    eval_rng rng = eval_rng_of(seed, "bootstrap", n);
    for (int r = 0; r < N_RESAMPLES && n > 1 && values && drawn; r++) {
        for (int64_t i = 0; i < n; i++) drawn[i] = eval_rng_below(&rng, n);
        double value = of_documents(series, n_series, drawn, n, f);
        if (!isnan(value)) values[n_values++] = value;
    }
    if (n_values >= N_RESAMPLES / 2) {
        eval_sort(values, n_values);
        interval.low = values[(int64_t)(0.025 * (double)(n_values - 1) + 0.5)];
        interval.high = values[(int64_t)(0.975 * (double)(n_values - 1) + 0.5)];
    }
    free(values);
    free(drawn);
    return interval;
}

static double ratio_of(const double *sums)
{
    return sums[1] > 0 ? sums[0] / sums[1] : NAN;
}

static double difference_of(const double *sums)
{
    return ratio_of(sums) - ratio_of(sums + 2);
}

static double recovery_of(const double *sums)
{
    double gain = sums[0] - sums[2];
    return gain > 0 ? (sums[0] - sums[1]) / gain : NAN;
}

double eval_ratio(const double *num, const double *den, int64_t n)
{
    const double *series[] = {num, den};
    return of_documents(series, 2, NULL, n, ratio_of);
}

eval_interval eval_ratio_interval(const double *num, const double *den, int64_t n, uint64_t seed)
{
    const double *series[] = {num, den};
    return bootstrap(series, 2, n, ratio_of, seed);
}

eval_interval eval_difference(const double *num_a, const double *den_a, const double *num_b,
                              const double *den_b, int64_t n, uint64_t seed)
{
    const double *series[] = {num_a, den_a, num_b, den_b};
    return bootstrap(series, 4, n, difference_of, seed);
}

eval_interval eval_recovery(const double *w, const double *p, const double *d, const double *n_tokens,
                            int64_t n, uint64_t seed)
{
    const double *series[] = {w, p, d, n_tokens};
    return bootstrap(series, 4, n, recovery_of, seed);
}
