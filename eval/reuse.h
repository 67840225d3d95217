/* reuse.h - which layers make a list and which reuse one: the dynamic programme of HyLRA (2026), mended. */
#ifndef EVAL_REUSE_H
#define EVAL_REUSE_H

#include <stdbool.h>
#include <stdint.h>

/* overlap [n, n]: overlap[i * n + j], i < j, is the share of layer j's own list that layer i's holds; the diagonal is
 * 1. Layer 0 makes a list; every later layer goes on with the source of the layer before it or becomes a source
 * itself, which is a change; at most max_changes of them. Maximised is the least overlap on the path, then, among
 * the paths of that bottleneck, the sum. source [n] is each layer's source; false: no memory.
 *
 * One pass over (least, sum) in lexicographic order is not exact: it drops a prefix of smaller least and larger
 * sum that a later layer would have made the better. So two passes: the largest bottleneck that some path keeps,
 * then the sum over the overlaps that reach it. */
bool reuse_solve(const double *overlap, int32_t n, int32_t max_changes, int32_t *source);

#endif
