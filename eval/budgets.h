/* budgets.h - one budget of list tokens split among heads that need different numbers of them. */
#ifndef EVAL_BUDGETS_H
#define EVAL_BUDGETS_H

#include <stdint.h>

/* captured [n, n_steps + 1]: what head i gains from s steps of tokens, concave in s (the mass of a head's own best
 * tokens is). price [n]: what a step of head i costs (a list that four layers read: 4), at least 1; NULL = 1 each.
 * n_total, at most n_steps times all prices, is split so that the sum of what is captured is largest, each head having
 * `floor` steps at least (they cost n_total at most): given one by one to the head that gains most for its price among
 * those whose step can still be paid, which is exact for concave curves and one price; ties go to the lowest head.
 * steps [n]: each head's. In the manner of Ada-KV (2024), with layers compared too. */
void budgets_split(const double *captured, const int32_t *price, int32_t n, int32_t n_steps, int64_t n_total,
                   int32_t floor, int32_t *steps);

/* A unit of a row, and its place in the order of a list. */
typedef struct budgets_unit {
    float score;
    int32_t unit;
} budgets_unit;
/* order [n]: units first, first + 1, ... of score, the best first, ties to the lowest. */
void budgets_order(const float *score, int64_t first, int64_t n, budgets_unit *order);
/* Adds to curve [n_steps + 1] what a row captures of its own `score`: `forced` alone, then with the first `step`,
 * 2 * step, ... units of the order [n], which may be another head's. */
void budgets_add_curve(const float *score, const budgets_unit *order, int64_t n, double forced, int32_t step,
                       int32_t n_steps, double *curve);

#endif
