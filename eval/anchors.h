/* anchors.h - the layers whose lists serve the others best: the dynamic programme of Kascade (2025), exact. */
#ifndef EVAL_ANCHORS_H
#define EVAL_ANCHORS_H

#include <stdbool.h>
#include <stdint.h>

/* served [n, n]: served[l * n + j], l <= j, 0 or more: how well layer j is served by the list of layer l. Exactly
 * n_anchors of the n layers make a list, layer 0 among them, 1 <= n_anchors <= n; every layer reads the list of the
 * nearest anchor that is not after it. is_anchor [n] is a set of the largest sum. false: no memory. */
bool anchors_solve(const double *served, int32_t n, int32_t n_anchors, bool *is_anchor);

#endif
