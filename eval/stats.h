/* stats.h - intervals by bootstrap over documents.
 *
 * A figure is a ratio of sums over documents (right tokens over tokens asked, nats over tokens).
 * Documents are drawn with replacement, N_RESAMPLES times; the interval is the middle 95 % of what
 * comes out. Two plans are compared on the same draws, so what a document adds to both falls out. */
#ifndef EVAL_STATS_H
#define EVAL_STATS_H

#include <stdint.h>

void eval_sort(double *values, int64_t n); /* ascending */
void eval_sort_down(float *values, int64_t n);

typedef struct eval_interval {
    double value, low, high; /* low, high: NaN where there are fewer than two documents */
} eval_interval;

/* sum(num) / sum(den) over documents [n]; NaN where nothing was counted. */
double eval_ratio(const double *num, const double *den, int64_t n);
eval_interval eval_ratio_interval(const double *num, const double *den, int64_t n, uint64_t seed);
/* ratio(a) - ratio(b), document by document the same. */
eval_interval eval_difference(const double *num_a, const double *den_a, const double *num_b,
                              const double *den_b, int64_t n, uint64_t seed);
/* (ratio(w) - ratio(p)) / (ratio(w) - ratio(d)): how much of what d gains over w is kept by p.
 * One count of tokens for all three. NaN where d gains nothing. */
eval_interval eval_recovery(const double *w, const double *p, const double *d, const double *n_tokens,
                            int64_t n, uint64_t seed);

#endif
