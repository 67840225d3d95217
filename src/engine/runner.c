/* runner.c - one forward over a ragged batch: order the rows, reserve, execute, hand out logits.
 *
 * Everything that can fail (pages, capacity) is done before the first kernel; from there on nothing
 * fails and nothing allocates. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

heddle_status hdl_runner_new(hdl_runner **out, heddle_engine *engine, const hdl_plan *plan,
                             const heddle_session_options *options, int32_t max_seqs, int64_t max_rows)
{
    *out = NULL;
    hdl_runner *runner = hdl_calloc(1, sizeof *runner);
    if (!runner) return HEDDLE_E_NOMEM;
    runner->n_refs = 1;
    runner->engine = engine;
    runner->options = *options;
    heddle_status status = hdl_compile(&runner->schedule, engine, plan, options, max_seqs, max_rows);
    hdl_exec_batch *batch = &runner->batch;
    if (!status) {
        status = HEDDLE_E_NOMEM;
        if ((runner->ids = hdl_calloc(max_rows, sizeof *runner->ids)) &&
            (runner->rows = hdl_calloc(max_rows, sizeof *runner->rows)) &&
            (runner->order = hdl_calloc(max_seqs, sizeof *runner->order)) &&
            (batch->seqs = hdl_calloc(max_seqs, sizeof *batch->seqs)) &&
            (batch->attend = hdl_calloc(max_seqs + 1, sizeof *batch->attend)) &&
            (batch->n_visible = hdl_calloc(max_rows, sizeof *batch->n_visible)))
            status = HEDDLE_OK;
    }
    if (status) {
        hdl_runner_unref(runner);
        return status;
    }
    batch->ids = runner->ids;
    *out = runner;
    return HEDDLE_OK;
}

void hdl_runner_unref(hdl_runner *runner)
{
    if (!runner || --runner->n_refs) return;
    hdl_schedule_free(runner->schedule);
    hdl_free(runner->ids);
    hdl_free(runner->rows);
    hdl_free(runner->order);
    hdl_free(runner->batch.seqs);
    hdl_free(runner->batch.attend);
    hdl_free(runner->batch.n_visible);
    hdl_free(runner);
}

/* A decode step reads the lists of the last refresh until `refresh` tokens came after it. */
static hdl_route route_of(const hdl_runner *runner, const hdl_forward_item *item)
{
    if (item->is_prompt && !runner->options.plan_governs_all) return HDL_ROUTE_PREFILL;
    const heddle_session *session = item->session;
    int64_t len = hdl_kv_seq_len(session->kv);
    bool is_fresh = session->kept_visible &&
                    len + item->n_ids - session->kept_visible < runner->schedule->refresh;
    return item->n_ids == 1 && is_fresh ? HDL_ROUTE_REUSE : HDL_ROUTE_DECODE;
}

/* Items by (route, class), stable: group key first, then the caller's order. */
static void order_items(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    int32_t n = 0;
    for (int route = 0; route < HDL_N_ROUTES; route++)
        for (int cls = 0; cls < HDL_N_CLASSES; cls++)
            for (int32_t i = 0; i < n_items; i++)
                if (route_of(runner, &items[i]) == (hdl_route)route && (items[i].n_ids > 1) == cls)
                    runner->order[n++] = i;
}

static heddle_status check_items(const hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    const hdl_schedule *schedule = runner->schedule;
    int64_t n_rows = 0, n_list_rows = 0;
    int32_t n_vocab = schedule->facts->n_vocab;
    if (n_items < 1 || n_items > schedule->limits.max_seqs)
        return HDL_FAIL(HEDDLE_E_INVALID, "a step of %d sequences: must be in 1..%d", n_items,
                        schedule->limits.max_seqs);
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[i];
        if (item->n_ids < 1)
            return HDL_FAIL(HEDDLE_E_INVALID, "sequence %d: 0 new tokens; must be 1 or more", i);
        if (item->mask && item->n_ids > schedule->tile_rows)
            return HDL_FAIL(HEDDLE_E_INVALID, "sequence %d: a mask over %lld rows; at most %lld", i,
                            (long long)item->n_ids, (long long)schedule->tile_rows);
        for (int64_t t = 0; t < item->n_ids; t++)
            if (item->ids[t] < 0 || item->ids[t] >= n_vocab)
                return HDL_FAIL(HEDDLE_E_INVALID, "token %lld of sequence %d is %d: must be in 0..%d",
                                (long long)t, i, item->ids[t], n_vocab - 1);
        n_rows += item->n_ids;
        if (route_of(runner, item) != HDL_ROUTE_PREFILL) n_list_rows += item->n_ids;
    }
    if (n_rows > schedule->limits.max_rows)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "a step of %lld rows: at most %lld", (long long)n_rows,
                        (long long)schedule->limits.max_rows);
    if (n_list_rows > schedule->limits.max_list_rows)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "a step of %lld rows under the decode route: at most %lld",
                        (long long)n_list_rows, (long long)schedule->limits.max_list_rows);
    return HEDDLE_OK;
}

static void fill_batch(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    hdl_exec_batch *batch = &runner->batch;
    batch->n_seqs = n_items;
    batch->n_rows = 0;
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        heddle_session *session = item->session;
        int64_t before = hdl_kv_seq_len(session->kv);
        batch->seqs[i] = (hdl_exec_seq){.kv = session->kv,
                                        .q_len = item->n_ids,
                                        .kv_len = before + item->n_ids,
                                        .route = route_of(runner, item),
                                        .mask = item->mask,
                                        .kept_ids = session->kept_ids,
                                        .kept_counts = session->kept_counts,
                                        .kept_visible = session->kept_visible};
        memcpy(runner->ids + batch->n_rows, item->ids, (size_t)item->n_ids * sizeof *item->ids);
        for (int64_t t = 0; t < item->n_ids; t++) batch->n_visible[batch->n_rows + t] = before + t + 1;
        batch->n_rows += item->n_ids;
    }
}

/* Tokens the decode route reads at `position`, and dense's, into the session's statistics. */
static void count_reads(const hdl_runner *runner, heddle_session *session, int64_t position, hdl_route route)
{
    const hdl_model_facts *facts = runner->schedule->facts;
    const hdl_route_plan *plan = &runner->schedule->routes[route == HDL_ROUTE_PREFILL ? 0 : 1];
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        const hdl_kv_layout *layout = hdl_kv_store_layout(session->store, facts->layers[layer].cache_group);
        double tokens = hdl_cost_tokens(plan, facts, layer, position);
        session->tokens_read += tokens;
        session->n_layer_rows += 1;
        session->stats.decode_kv_bytes_read += tokens * (double)layout->token_bytes;
        session->stats.decode_kv_bytes_dense += hdl_cost_tokens_dense(facts, layer, position) *
                                                (double)layout->token_bytes;
    }
}

static heddle_status reserve(const hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        heddle_status status = hdl_kv_seq_reserve(item->session->kv, item->n_ids);
        if (!status) continue;
        while (i--) hdl_kv_seq_release(items[runner->order[i]].session->kv);
        return status;
    }
    return HEDDLE_OK;
}

static void commit(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        heddle_session *session = item->session;
        int64_t before = hdl_kv_seq_len(session->kv);
        memcpy(session->ids + before, item->ids, (size_t)item->n_ids * sizeof *item->ids);
        hdl_kv_seq_commit(session->kv, item->n_ids);
        session->has_logits = false; /* those of an earlier token; hand_out may bring new ones */
        session->kept_visible = runner->batch.seqs[i].kept_visible;
        if (!item->is_prompt) count_reads(runner, session, before, runner->batch.seqs[i].route);
    }
}

static void hand_out(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items, hdl_logit_sink sink,
                     void *user)
{
    const hdl_schedule *schedule = runner->schedule;
    int64_t first_row = 0, n_vocab = schedule->facts->n_vocab;
    const float *logits = hdl_schedule_at(schedule, HDL_BUF_LOGITS);
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        for (int64_t from = item->first_logit_row; from < item->n_ids;) {
            int64_t n = HDL_MIN(item->n_ids - from, schedule->limits.max_logit_rows);
            for (int64_t r = 0; r < n; r++) runner->rows[r] = first_row + from + r;
            hdl_exec_logits(schedule, runner->rows, n);
            for (int64_t r = 0; r < n; r++) sink(item, from + r, logits + r * n_vocab, user);
            from += n;
        }
        first_row += item->n_ids;
    }
}

heddle_status hdl_forward(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items,
                          hdl_logit_sink sink, void *user)
{
    if (!runner->schedule->arena) HDL_TRY(hdl_schedule_bind(runner->schedule));
    HDL_TRY(check_items(runner, items, n_items));
    order_items(runner, items, n_items);
    HDL_TRY(reserve(runner, items, n_items));
    fill_batch(runner, items, n_items);
    hdl_exec_layers(runner->schedule, &runner->batch);
    commit(runner, items, n_items);
    hand_out(runner, items, n_items, sink, user);
    return HEDDLE_OK;
}
