/* budgets.h - one budget of list tokens split among heads that need different numbers of them. */
#ifndef EVAL_BUDGETS_H
#define EVAL_BUDGETS_H

#include <stdint.h>

/* captured [n, n_steps + 1]: what head i gains from s steps of tokens, concave in s (the mass of a head's own best
 * tokens is). n_total steps, at most n * n_steps, are split so that the sum of what is captured is largest, each
 * head having `floor` steps at least (n * floor <= n_total): given one by one to the head that gains most, which is
 * exact for concave curves; ties go to the lowest head. steps [n]: each head's. In the manner of Ada-KV (2024), with
 * layers compared too. */
void budgets_split(const double *captured, int32_t n, int32_t n_steps, int64_t n_total, int32_t floor,
                   int32_t *steps);

#endif
