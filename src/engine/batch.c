/* batch.c - several sessions in one step: one forward, weights read once for all of them. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

struct heddle_batch {
    hdl_runner *runner;
    hdl_forward_item *items; /* [max_sessions] */
};

heddle_status heddle_batch_new(heddle_batch **out, heddle_engine *engine, const heddle_plan *plan,
                               const heddle_session_options *options, int32_t max_sessions, int64_t max_rows)
{
    heddle_session_options checked;
    heddle_plan *own;
    const hdl_plan *used;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    HDL_TRY(hdl_options_check(options, &checked));
    HDL_TRY(hdl_context_check(checked.context_tokens));
    if (max_sessions < 1 || max_sessions > HDL_MAX_SEQS)
        return HDL_FAIL(HEDDLE_E_INVALID, "a batch of %d sessions: must be in 1..%d", max_sessions,
                        HDL_MAX_SEQS);
    if (max_rows < max_sessions || max_rows > 1 << 16)
        return HDL_FAIL(HEDDLE_E_INVALID, "a batch of %lld rows: must be in %d..%d", (long long)max_rows,
                        max_sessions, 1 << 16);
    HDL_TRY(hdl_plan_or_own(engine, plan, &own, &used));
    heddle_batch *batch = hdl_calloc(1, sizeof *batch);
    heddle_status status = HEDDLE_E_NOMEM;
    if (batch && (batch->items = hdl_calloc(max_sessions, sizeof *batch->items)))
        status = hdl_runner_new(&batch->runner, engine, used, &checked, max_sessions, max_rows);
    heddle_plan_free(own);
    if (!status) atomic_fetch_add(&engine->n_users, 1);
    if (status) heddle_batch_free(batch);
    *out = status ? NULL : batch;
    return status;
}

void heddle_batch_free(heddle_batch *batch)
{
    if (!batch) return;
    if (batch->runner) atomic_fetch_sub(&batch->runner->engine->n_users, 1);
    hdl_runner_unref(batch->runner);
    hdl_free(batch->items);
    hdl_free(batch);
}

static void keep_logits(const hdl_forward_item *item, int64_t row, const float *logits, void *user)
{
    const hdl_runner *runner = user;
    if (row != item->n_ids - 1) return;
    memcpy(item->session->logits, logits, (size_t)runner->schedule->facts->n_vocab * sizeof *logits);
    item->session->has_logits = true;
}

/* Why a session cannot be stepped by the batch; NULL = it can. Lists and cached rows are addressed
 * with the batch's schedule, so whatever shapes them must be equal. */
static const char *why_not(const hdl_runner *batch, const hdl_runner *own)
{
    const hdl_schedule *a = batch->schedule, *b = own->schedule;
    if (own->engine != batch->engine) return "was made with another engine";
    for (int r = 0; r < 2; r++)
        if (!hdl_route_plan_equal(&a->routes[r], &b->routes[r], a->facts->n_layers))
            return "was made with another plan";
    if (!hdl_retain_equal(&a->retain, &b->retain)) return "was made with another plan";
    if (a->retain_group >= 0 && own->options.context_tokens != batch->options.context_tokens)
        return "has another context than the batch, under a plan that evicts rows";
    if (own->options.context_tokens > batch->options.context_tokens)
        return "has a larger context than the batch";
    if (a->n_kept != b->n_kept || (a->n_kept && a->kept_ids_max != b->kept_ids_max))
        return "keeps lists of another size: under a plan with refresh the contexts must be equal";
    if (strcmp(own->options.kv_type, batch->options.kv_type) ||
        strcmp(own->options.kv_layout, batch->options.kv_layout) ||
        own->options.page_shift != batch->options.page_shift)
        return "stores its KV in another type, layout or page size";
    if (!own->options.is_invariant != !batch->options.is_invariant ||
        !own->options.plan_governs_all != !batch->options.plan_governs_all)
        return "was made with another is_invariant or plan_governs_all";
    if (a->n_gathers != b->n_gathers) return "gathers listed rows where the batch does not, or the other way";
    return NULL;
}

heddle_status heddle_batch_step(heddle_batch *batch, const heddle_batch_item *items, int32_t n_items)
{
    HDL_GIVEN(batch, items);
    const hdl_runner *runner = batch->runner;
    if (n_items < 1 || n_items > runner->schedule->limits.max_seqs)
        return HDL_FAIL(HEDDLE_E_INVALID, "a step of %d sessions: must be in 1..%d", n_items,
                        runner->schedule->limits.max_seqs);
    for (int32_t i = 0; i < n_items; i++) {
        HDL_GIVEN(items[i].session, items[i].ids);
        const char *why = why_not(runner, items[i].session->runner);
        if (why) return HDL_FAIL(HEDDLE_E_INVALID, "session %d of the step: %s", i, why);
        for (int32_t j = 0; j < i; j++)
            if (items[j].session == items[i].session)
                return HDL_FAIL(HEDDLE_E_INVALID, "sessions %d and %d of the step are the same", j, i);
        batch->items[i] = (hdl_forward_item){.session = items[i].session,
                                             .ids = items[i].ids,
                                             .n_ids = items[i].n_ids,
                                             .mask = items[i].mask,
                                             .is_prompt = items[i].is_prompt != 0,
                                             .is_prompt_end = items[i].is_prompt == 1,
                                             .first_logit_row = items[i].n_ids - 1};
    }
    return hdl_forward(batch->runner, batch->items, n_items, keep_logits, batch->runner);
}
