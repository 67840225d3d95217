/* hidden.c - leaves tokens out of what rows read: hidden.h says how, compile.c chose what it takes. */
#include "plan/hidden.h"

#include <math.h>

bool hdl_has_hidden(const hdl_kv_seq *kv)
{
    int32_t n;
    hdl_kv_seq_hidden(kv, &n);
    return n > 0 || hdl_kv_seq_n_mounts(kv) > 0;
}

void hdl_hide_scores(const hdl_kv_seq *kv, float *score, int32_t n_lists, int64_t stride,
                     const int64_t *n_visible, int64_t n_rows)
{
    int32_t n;
    const hdl_kv_span *hidden = hdl_kv_seq_hidden(kv, &n);
    for (int64_t r = 0; r < n_rows * n_lists; r++) {
        float *row = score + r * stride;
        int64_t visible = n_visible[r / n_lists];
        for (int32_t i = 0; i < n; i++)
            for (int64_t t = hidden[i].first; t < HDL_MIN(hidden[i].end, visible); t++) row[t] = -INFINITY;
    }
}

static int32_t take_out(const hdl_kv_span *hidden, int32_t n_hidden, int32_t *ids, int32_t n)
{
    int32_t kept = 0, span = 0;
    for (int32_t i = 0; i < n; i++) {
        while (span < n_hidden && hidden[span].end <= ids[i]) span++;
        if (span < n_hidden && ids[i] >= hidden[span].first) continue;
        ids[kept++] = ids[i];
    }
    return kept;
}

void hdl_hide_listed(hdl_kv_seq *kv, hdl_selection *list)
{
    int32_t n;
    const hdl_kv_span *hidden = hdl_kv_seq_hidden(kv, &n);
    for (int64_t r = 0; r < list->n_rows; r++)
        for (int32_t l = 0; l < list->n_lists; l++) {
            int32_t *ids = hdl_selection_ids(list, r, l), *count = hdl_selection_count(list, r, l);
            *count = take_out(hidden, n, ids, *count);
            hdl_kv_seq_check_rows(kv, ids, *count);
        }
}

hdl_selection hdl_list_allowed(hdl_kv_seq *kv, int64_t kv_len, int32_t *space, int64_t max_context,
                               int64_t n_rows)
{
    int32_t n_hidden, n = 0;
    const hdl_kv_span *hidden = hdl_kv_seq_hidden(kv, &n_hidden);
    int32_t *counts = space + max_context;
    for (int32_t i = 0; i <= n_hidden; i++) {
        int64_t first = i ? hidden[i - 1].end : 0, end = i < n_hidden ? hidden[i].first : kv_len;
        for (int64_t t = first; t < HDL_MIN(end, kv_len); t++) space[n++] = (int32_t)t;
    }
    for (int64_t r = 0; r < n_rows; r++) counts[r] = n;
    hdl_kv_seq_check_rows(kv, space, n);
    /* a stride of 0: every row reads the same ids, each as far as it may see */
    return (hdl_selection){
        .block_size = 1, .n_rows = n_rows, .n_lists = 1, .n_ids_max = 0, .ids = space, .counts = counts};
}

/* The end of each sentence that follows. */
static const char no_documents[] =
    "its documents can be neither written to files of their own, mounted nor forbidden";

heddle_status hdl_facts_can_hide(const hdl_model_facts *facts)
{
    if (facts->cross_from == facts->n_layers)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "none of this model's %d layers reads a shared state: %s",
                        facts->n_layers, no_documents);
    if (!facts->has_doc_resets)
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "this model's windows and positions do not restart at documents (doc_reset false): %s",
            no_documents);
    for (int32_t layer = 0; layer < facts->cross_from; layer++)
        if (hdl_layer_is_open(facts, layer))
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "layer %d, below the shared state, reads all tokens before its row: %s", layer,
                            no_documents);
    return HEDDLE_OK;
}

/* What this step does with tokens before they could be left out; false: nothing. */
static bool reads_hidden(const hdl_schedule *schedule, const hdl_attend_step *at, hdl_buf *what)
{
    int32_t block = at->slot >= 0 ? schedule->slots[at->slot].block_size : 1;
    if (at->candidate_slot >= 0)
        hdl_buf_puts(what, "picks its list among candidates");
    else if (at->complement)
        hdl_buf_puts(what, "reads means of what its list leaves out");
    else if (at->n_slashes)
        hdl_buf_printf(what, "adds the scores of rows along %d distances", at->n_slashes);
    else if (at->is_resolving)
        hdl_buf_printf(what, "chooses groups of %d tokens", at->resolve.block_size);
    else if (block > 1)
        hdl_buf_printf(what, "chooses blocks of %d tokens", block);
    else if (at->args.has_mass)
        hdl_buf_puts(what, "observes the attention mass of a dense pass");
    else if (schedule->refresh > 1)
        hdl_buf_printf(what, "keeps its lists for %d tokens", schedule->refresh);
    else if (at->is_scoring && at->score.measure == HDL_MEASURE_MASS)
        hdl_buf_puts(what,
                     "chooses by shares of attention mass, to which every token adds (\"measure\": \"logit\" "
                     "chooses by scores)");
    else
        return false;
    return true;
}

heddle_status hdl_schedule_can_hide(const hdl_schedule *schedule)
{
    HDL_TRY(hdl_facts_can_hide(schedule->facts));
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        const hdl_attend_step *at = &schedule->steps[i].u.attend;
        hdl_buf what = {0};
        if (schedule->steps[i].op != HDL_OP_ATTEND || at->args.window) continue;
        if (!reads_hidden(schedule, at, &what)) continue;
        heddle_status status = hdl_buf_status(&what);
        if (!status)
            status = HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                              "layer %d %s: documents can be mounted or forbidden under plans that read "
                              "densely, or lists of single tokens by their scores, made for every token",
                              schedule->steps[i].layer, what.data);
        hdl_buf_deinit(&what);
        return status;
    }
    return HEDDLE_OK;
}
