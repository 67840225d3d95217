/* hidden.h - tokens that no row may read, for exec: in scores, in lists, and in dense passes. */
#ifndef HDL_HIDDEN_H
#define HDL_HIDDEN_H

#include "plan/schedule.h"

/* True when the sequence has hidden tokens or mounted rows, which are verified as they are read. */
bool hdl_has_hidden(const hdl_kv_seq *kv);
/* -inf in place of the scores of hidden tokens. */
void hdl_hide_scores(const hdl_kv_seq *kv, float *score /* [n_rows, n_lists, stride] */, int32_t n_lists,
                     int64_t stride, const int64_t *n_visible /* [n_rows] */, int64_t n_rows);
/* Takes hidden tokens out of every list, and verifies the rows that are left. */
void hdl_hide_listed(hdl_kv_seq *kv, hdl_selection *list);
/* One list for all n_rows rows: the tokens before kv_len that are not hidden, verified. ids
 * [max_context], then counts [n_rows], are written to `space`. */
hdl_selection hdl_list_allowed(hdl_kv_seq *kv, int64_t kv_len, int32_t *space, int64_t max_context,
                               int64_t n_rows);

#endif
