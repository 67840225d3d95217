/* runner.c - one forward over a ragged batch: order the rows, reserve, execute, hand out logits.
 *
 * Everything that can fail (pages, capacity) is done before the first kernel; from there on nothing
 * fails and nothing allocates. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

typedef struct hdl_wanted_row {
    const hdl_forward_item *item;
    int64_t row; /* of the item */
} wanted_row;

/* Arrays of a batch of so many rows and sequences; the runner frees them whether or not all were made. */
static heddle_status batch_init(hdl_exec_batch *batch, int64_t n_rows, int32_t n_seqs)
{
    bool is_made = (batch->seqs = hdl_calloc(n_seqs, sizeof *batch->seqs)) &&
                   (batch->attend = hdl_calloc(n_seqs + n_rows + 1, sizeof *batch->attend)) &&
                   (batch->n_visible = hdl_calloc(n_rows, sizeof *batch->n_visible)) &&
                   (batch->states = hdl_calloc(n_seqs, sizeof *batch->states)) &&
                   (batch->n_held = hdl_calloc(n_rows, sizeof *batch->n_held)) &&
                   (batch->doc_start = hdl_calloc(n_rows, sizeof *batch->doc_start));
    return is_made ? HEDDLE_OK : HEDDLE_E_NOMEM;
}

static void batch_deinit(hdl_exec_batch *batch)
{
    hdl_free(batch->seqs);
    hdl_free(batch->attend);
    hdl_free(batch->n_visible);
    hdl_free(batch->n_listed);
    hdl_free(batch->n_held);
    hdl_free(batch->doc_start);
    hdl_free(batch->states);
}

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
    if (!status) status = hdl_plan_format(plan, &runner->plan_text);
    if (!status && !(runner->plan_name = hdl_strdup(plan->name))) status = HEDDLE_E_NOMEM;
    if (!status) {
        int64_t last = runner->schedule->limits.max_logit_rows;
        bool is_made = (runner->ids = hdl_calloc(max_rows, sizeof *runner->ids)) &&
                       (runner->rows = hdl_calloc(last, sizeof *runner->rows)) &&
                       (runner->wanted = hdl_calloc(last, sizeof *runner->wanted)) &&
                       (runner->batch.n_listed = hdl_calloc(max_rows, sizeof(double))) &&
                       (runner->order = hdl_calloc(max_seqs, sizeof *runner->order));
        status = is_made ? batch_init(&runner->batch, max_rows, max_seqs) : HEDDLE_E_NOMEM;
        if (!status) status = batch_init(&runner->upper, last, max_seqs);
    }
    if (status) {
        hdl_runner_unref(runner);
        return status;
    }
    runner->batch.ids = runner->ids;
    *out = runner;
    return HEDDLE_OK;
}

void hdl_runner_unref(hdl_runner *runner)
{
    if (!runner || --runner->n_refs) return;
    hdl_schedule_free(runner->schedule);
    hdl_buf_deinit(&runner->plan_text);
    hdl_free(runner->plan_name);
    hdl_free(runner->ids);
    hdl_free(runner->rows);
    hdl_free(runner->order);
    hdl_free(runner->wanted);
    batch_deinit(&runner->batch);
    batch_deinit(&runner->upper);
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

/* Masked rows are scored in one tile, go up in one tile, and belong to one document. */
static heddle_status check_mask(const hdl_schedule *schedule, const hdl_forward_item *item, int32_t number)
{
    const hdl_model_facts *facts = schedule->facts;
    int64_t most = schedule->tile_rows;
    if (!item->mask) return HEDDLE_OK;
    if (facts->delta.n_layers)
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "sequence %d: rows under a mask: the %d gated-delta layers of this model take rows one after "
            "another",
            number, facts->delta.n_layers);
    if (facts->cross_from < facts->n_layers) most = HDL_MIN(most, schedule->limits.max_logit_rows);
    if (item->n_ids > most)
        return HDL_FAIL(HEDDLE_E_INVALID, "sequence %d: a mask over %lld rows; at most %lld", number,
                        (long long)item->n_ids, (long long)most);
    for (int64_t t = 0; facts->has_doc_resets && t < item->n_ids; t++)
        if (item->ids[t] == facts->doc_token)
            return HDL_FAIL(HEDDLE_E_INVALID, "sequence %d: token %lld of masked rows begins a document",
                            number, (long long)t);
    return HEDDLE_OK;
}

/* A session whose mounted rows were found damaged is stopped; after a mount a document begins. */
static heddle_status check_mounts(const hdl_schedule *schedule, const hdl_forward_item *item, int32_t number)
{
    const hdl_kv_seq *kv = item->session->kv;
    HDL_TRY(hdl_kv_seq_damage(kv));
    if (item->ids[0] != schedule->facts->doc_token && hdl_kv_seq_follows_mount(kv, hdl_kv_seq_len(kv)))
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "sequence %d: token %d follows a mounted document: must be %d, which begins another",
                        number, item->ids[0], schedule->facts->doc_token);
    return HEDDLE_OK;
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
        HDL_TRY(check_mask(schedule, item, i));
        HDL_TRY(check_mounts(schedule, item, i));
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

/* A made list in the words of heddle.h, to whoever taps the session. */
static void tell_tap(const hdl_tap_row *row, void *user)
{
    const heddle_session *session = user;
    int64_t block = row->made->block_size;
    heddle_tap_row told = {.struct_size = sizeof told,
                           .layer = row->layer,
                           .list = row->list,
                           .n_lists = row->made->n_lists,
                           .position = row->n_visible - 1,
                           .block_size = row->made->block_size,
                           .n_units = (row->n_visible + block - 1) / block,
                           .ids = hdl_selection_ids(row->made, row->row, row->list),
                           .n_ids = *hdl_selection_count(row->made, row->row, row->list),
                           .score = row->score};
    session->tap(&told, session->tap_user);
}

/* Rows of the retained group that the item's session holds when the item is in. */
static int64_t held_after(const hdl_runner *runner, const hdl_forward_item *item)
{
    int32_t kv_group = runner->schedule->retain_group;
    return kv_group < 0 ? 0 : hdl_kv_seq_rows(item->session->kv, kv_group, item->n_ids);
}

static int64_t rows_to_retain(const hdl_runner *runner, const hdl_forward_item *item)
{
    return hdl_retain_due(runner->schedule, held_after(runner, item), item->is_prompt, item->is_prompt_end);
}

static void fill_batch(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    const hdl_model_facts *facts = runner->schedule->facts;
    hdl_exec_batch *batch = &runner->batch;
    batch->n_seqs = n_items;
    batch->n_rows = 0;
    bool is_tapped = n_items == 1 && items[0].session->tap;
    batch->tap = runner->upper.tap = (hdl_tap){is_tapped ? tell_tap : NULL, items[0].session};
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        heddle_session *session = item->session;
        int64_t before = hdl_kv_seq_len(session->kv);
        bool has_hook = session->hook.made || session->hook.wanted;
        int32_t kv_group = runner->schedule->retain_group;
        int64_t n_evicted = kv_group < 0 ? 0 : hdl_kv_seq_evicted(session->kv, kv_group).n_rows;
        batch->seqs[i] = (hdl_exec_seq){.kv = session->kv,
                                        .hook = has_hook ? &session->hook : NULL,
                                        .q_len = item->n_ids,
                                        .kv_len = before + item->n_ids,
                                        .route = route_of(runner, item),
                                        .mask = item->mask,
                                        .gathers = session->gathers,
                                        .guesses = session->guesses,
                                        .kept_ids = session->kept_ids,
                                        .kept_counts = session->kept_counts,
                                        .kept_visible = session->kept_visible,
                                        .n_evicted = n_evicted,
                                        .n_retained = rows_to_retain(runner, item),
                                        .n_observed = HDL_MIN(item->n_ids, runner->schedule->retain.observe),
                                        .mass = session->retain_mass};
        memcpy(runner->ids + batch->n_rows, item->ids, (size_t)item->n_ids * sizeof *item->ids);
        int64_t doc_start = session->doc_start;
        for (int64_t t = 0; t < item->n_ids; t++) {
            if (facts->has_doc_resets && item->ids[t] == facts->doc_token) doc_start = before + t;
            batch->n_visible[batch->n_rows + t] = before + t + 1;
            batch->n_listed[batch->n_rows + t] = 0;
            batch->n_held[batch->n_rows + t] = before + t + 1 - n_evicted;
            batch->doc_start[batch->n_rows + t] = doc_start;
        }
        batch->n_rows += item->n_ids;
    }
}

/* What a row under the decode route read, and what dense reads for it. */
typedef struct row_reads {
    double tokens, bytes, dense_bytes;
} row_reads;

/* n_held: rows of the retained group before this one; n_listed: tokens that came through lists. Lists of
 * the layers above a shared state are not counted: for them it is what the plan's arithmetic says. */
static row_reads reads_of(const hdl_runner *runner, const heddle_session *session, int64_t position,
                          int64_t n_held, hdl_route route, double n_listed)
{
    const hdl_model_facts *facts = runner->schedule->facts;
    const hdl_route_plan *plan = &runner->schedule->routes[route == HDL_ROUTE_PREFILL ? 0 : 1];
    row_reads reads = {.tokens = n_listed};
    double list_bytes = 0; /* of a token: the same in every layer that reads lists */
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        int32_t kv_group = facts->layers[layer].cache_group;
        if (facts->layers[layer].is_delta) { /* whatever the position */
            double state_bytes = (double)hdl_delta_state_floats(&facts->delta) * sizeof(float);
            reads.bytes += state_bytes;
            reads.dense_bytes += state_bytes;
            continue;
        }
        double token_bytes = (double)hdl_kv_store_layout(session->store, kv_group)->token_bytes;
        bool is_retained = kv_group == runner->schedule->retain_group;
        hdl_cost cost = hdl_cost_of(plan, facts, layer, is_retained ? n_held : position);
        if (is_retained) cost.tokens += hdl_retain_observed(&runner->schedule->retain, n_held);
        if (plan->layers[layer].op != HDL_OPERATOR_DENSE && layer < facts->cross_from) {
            cost.tokens -= cost.listed;
            list_bytes = token_bytes;
        }
        reads.tokens += cost.tokens;
        reads.bytes += cost.tokens * token_bytes + cost.summary_bytes;
        reads.dense_bytes += hdl_cost_tokens_dense(facts, layer, position) * token_bytes;
    }
    reads.bytes += n_listed * list_bytes;
    return reads;
}

/* What an item's rows read, into its session's statistics: a decode step's row, or the rows of a text under
 * the decode route whose logits are wanted. first_row: of the batch. */
static void count_reads(const hdl_runner *runner, const hdl_forward_item *item, int32_t index,
                        int64_t first_row, int64_t n_held)
{
    heddle_session *session = item->session;
    hdl_route route = runner->batch.seqs[index].route;
    if (item->is_prompt && route == HDL_ROUTE_PREFILL) return;
    int64_t from = item->is_prompt ? item->first_logit_row : 0, end = item->is_prompt ? item->n_ids : 1;
    for (int64_t r = from; r < end; r++) {
        int64_t row = first_row + r;
        row_reads reads = reads_of(runner, session, runner->batch.n_visible[row] - 1, n_held + r, route,
                                   runner->batch.n_listed[row]);
        if (item->is_prompt) {
            session->stats.scored_kv_bytes_read += reads.bytes;
            session->stats.scored_kv_bytes_dense += reads.dense_bytes;
            continue;
        }
        session->tokens_read += reads.tokens;
        session->n_layer_rows += runner->schedule->facts->n_layers;
        session->stats.decode_kv_bytes_read += reads.bytes;
        session->stats.decode_kv_bytes_dense += reads.dense_bytes;
    }
}

static heddle_status reserve(const hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        int64_t n_retained = rows_to_retain(runner, item);
        heddle_status status = hdl_kv_seq_reserve(item->session->kv, item->n_ids);
        if (!status && n_retained)
            status = hdl_kv_seq_reserve_retained(item->session->kv, runner->schedule->retain_group,
                                                 n_retained);
        if (!status) continue;
        for (i++; i--;) hdl_kv_seq_release(items[runner->order[i]].session->kv);
        return status;
    }
    return HEDDLE_OK;
}

/* What hand_out may set of the sessions is set anew. */
static void begin_logits(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        heddle_session *session = items[runner->order[i]].session;
        session->had_logits = session->has_logits;
        session->has_logits = false; /* those of an earlier token; hand_out may bring new ones */
        session->kept_visible = runner->batch.seqs[i].kept_visible;
    }
}

/* A page of a mounted document did not hold: no session took the step's tokens. Lists of the step are in the
 * place of those kept before. Of several sessions some may have been handed logits of the step. */
static void undo(const hdl_forward_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        heddle_session *session = items[i].session;
        hdl_kv_seq_release(session->kv);
        hdl_session_forget_lists(session, hdl_kv_seq_len(session->kv));
        session->kept_visible = 0;
        session->has_logits = session->had_logits && n_items == 1;
    }
}

static void commit(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items)
{
    int64_t row = 0;
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        heddle_session *session = item->session;
        int64_t before = hdl_kv_seq_len(session->kv), n_held = held_after(runner, item) - item->n_ids;
        memcpy(session->ids + before, item->ids, (size_t)item->n_ids * sizeof *item->ids);
        hdl_kv_seq_commit(session->kv, item->n_ids);
        row += item->n_ids;
        session->doc_start = runner->batch.doc_start[row - 1];
        count_reads(runner, item, i, row - item->n_ids, n_held);
    }
}

/* Runs the tile's rows up and hands out their logits; the tile is empty again. */
static void finish_tile(hdl_runner *runner, hdl_logit_sink sink, void *user)
{
    const hdl_schedule *schedule = runner->schedule;
    const float *logits = hdl_schedule_at(schedule, HDL_BUF_LOGITS);
    hdl_exec_batch *upper = &runner->upper;
    if (!upper->n_rows) return;
    hdl_exec_upper(schedule, upper, runner->rows);
    int64_t row = 0;
    bool is_damaged = false;
    for (int32_t i = 0; i < upper->n_seqs; i++) {
        is_damaged |= hdl_kv_seq_damage(upper->seqs[i].kv) != HEDDLE_OK;
        runner->wanted[row].item->session->kept_visible = upper->seqs[i].kept_visible;
        row += upper->seqs[i].q_len;
    }
    for (row = 0; row < upper->n_rows && !is_damaged; row++) {
        const wanted_row *wanted = &runner->wanted[row];
        if (wanted->row >= wanted->item->first_logit_row)
            sink(wanted->item, wanted->row, logits + row * schedule->facts->n_vocab, user);
    }
    upper->n_seqs = 0;
    upper->n_rows = 0;
}

/* Rows [from, from + n) of the batch's sequence `index`, whose first row is first_row, into the tile. */
static void add_to_tile(hdl_runner *runner, const hdl_forward_item *item, int32_t index, int64_t first_row,
                        int64_t from, int64_t n)
{
    hdl_exec_batch *upper = &runner->upper;
    hdl_exec_seq *seq = &upper->seqs[upper->n_seqs++];
    *seq = runner->batch.seqs[index];
    seq->q_len = n;
    seq->kv_len -= item->n_ids - from - n;
    if (n < item->n_ids) seq->mask = NULL;
    for (int64_t r = from; r < from + n; r++) {
        int64_t at = upper->n_rows++;
        runner->wanted[at] = (wanted_row){item, r};
        runner->rows[at] = first_row + r;
        upper->n_visible[at] = runner->batch.n_visible[first_row + r];
        upper->doc_start[at] = runner->batch.doc_start[first_row + r];
    }
}

/* Rows whose logits are wanted go up in tiles; rows under a mask go together. */
static void hand_out(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items, hdl_logit_sink sink,
                     void *user)
{
    int64_t first_row = 0, most = runner->schedule->limits.max_logit_rows;
    bool has_cross = runner->schedule->facts->cross_from < runner->schedule->facts->n_layers;
    for (int32_t i = 0; i < n_items; i++) {
        const hdl_forward_item *item = &items[runner->order[i]];
        bool is_whole = has_cross && item->mask && item->first_logit_row < item->n_ids;
        for (int64_t from = is_whole ? 0 : item->first_logit_row; from < item->n_ids;) {
            int64_t room = most - runner->upper.n_rows, n = HDL_MIN(item->n_ids - from, room);
            if (!room || (is_whole && n < item->n_ids)) {
                finish_tile(runner, sink, user);
                continue;
            }
            add_to_tile(runner, item, i, first_row, from, n);
            from += n;
        }
        first_row += item->n_ids;
    }
    finish_tile(runner, sink, user);
}

heddle_status hdl_forward(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items,
                          hdl_logit_sink sink, void *user)
{
    if (!runner->schedule->arena) HDL_TRY(hdl_schedule_bind(runner->schedule));
    HDL_TRY(check_items(runner, items, n_items));
    order_items(runner, items, n_items);
    HDL_TRY(reserve(runner, items, n_items));
    fill_batch(runner, items, n_items);
    hdl_exec_lower(runner->schedule, &runner->batch);
    begin_logits(runner, items, n_items);
    hand_out(runner, items, n_items, sink, user);
    for (int32_t i = 0; i < n_items; i++) {
        heddle_status status = hdl_kv_seq_damage(items[i].session->kv);
        if (!status) continue;
        undo(items, n_items);
        return status;
    }
    commit(runner, items, n_items);
    return HEDDLE_OK;
}
