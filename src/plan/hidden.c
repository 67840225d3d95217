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

heddle_status hdl_facts_can_hide(const hdl_model_facts *facts)
{
    if (facts->cross_from == facts->n_layers || !facts->has_doc_resets)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "this model's rows depend on what was read before them: its documents can be neither "
                        "written to files of their own, mounted nor forbidden");
    for (int32_t layer = 0; layer < facts->cross_from; layer++)
        if (hdl_layer_is_open(facts, layer))
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "layer %d, below the shared state, reads all tokens before its row: this model's "
                            "documents can be neither written to files of their own, mounted nor forbidden",
                            layer);
    return HEDDLE_OK;
}

heddle_status hdl_schedule_can_hide(const hdl_schedule *schedule)
{
    HDL_TRY(hdl_facts_can_hide(schedule->facts));
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        const hdl_attend_step *at = &schedule->steps[i].u.attend;
        if (schedule->steps[i].op != HDL_OP_ATTEND || at->args.window) continue;
        bool is_list = at->slot >= 0, is_by_token = !is_list || schedule->slots[at->slot].block_size == 1;
        if (at->args.has_mass || at->is_completing || at->candidate_slot >= 0 || !is_by_token ||
            at->n_slashes || at->is_resolving || schedule->refresh > 1)
            return HDL_FAIL(
                HEDDLE_E_UNSUPPORTED,
                "layer %d observes a dense pass, picks among candidates, adds scores along distances, reads blocks, "
                "groups or what lists leave out, or keeps its "
                "lists: documents can be mounted or forbidden under plans that read densely, or "
                "token lists by scores, made every step",
                schedule->steps[i].layer);
        if (at->is_scoring && at->score.measure == HDL_MEASURE_MASS)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "layer %d chooses by shares of attention mass, in which tokens that are left out "
                            "would count: documents can be mounted or forbidden under \"measure\": \"logit\"",
                            schedule->steps[i].layer);
    }
    return HEDDLE_OK;
}
