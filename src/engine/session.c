/* session.c - one sequence: its tokens, its KV state, its last logits. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/engine_int.h"
#include "plan/hidden.h"

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

enum { SPARE_PAGES_FACTOR = 8, SPARE_PAGES = 256 }; /* address space only: room for forks */

static heddle_status make_store(hdl_kv_store **out, const hdl_runner *runner)
{
    const heddle_engine *engine = runner->engine;
    const heddle_session_options *options = &runner->options;
    hdl_kv_group_spec specs[HDL_MAX_GROUPS];
    int64_t n_pages[HDL_MAX_GROUPS];
    HDL_TRY(hdl_group_specs(engine, options, runner->schedule, specs));
    for (int32_t g = 0; g < engine->model->facts.n_groups; g++)
        n_pages[g] = hdl_kv_pages_for(&specs[g], options->context_tokens, options->chunk_rows) *
                         SPARE_PAGES_FACTOR +
                     (options->page_shift <= 12 ? SPARE_PAGES : 0);
    HDL_TRY(hdl_kv_store_new(out, specs, engine->model->facts.n_groups, n_pages));
    const hdl_delta_facts *delta = &engine->model->facts.delta;
    hdl_kv_store_keep_state(*out, delta->n_layers, hdl_delta_state_floats(delta));
    return HEDDLE_OK;
}

static heddle_status make_gathers(heddle_session *session)
{
    const hdl_schedule *schedule = session->runner->schedule;
    for (int32_t i = 0; i < schedule->n_gathers; i++) {
        int32_t group = schedule->facts->layers[schedule->gathers[i].kv_source].cache_group;
        HDL_TRY(hdl_gather_new(&session->gathers[i], hdl_kv_store_spec(session->store, group),
                               schedule->gathers[i].n_max));
    }
    return HEDDLE_OK;
}

/* A session over a runner, with a KV sequence that is either new or given (adopted). */
static heddle_status session_over(heddle_session **out, hdl_runner *runner, hdl_kv_store *store,
                                  hdl_kv_seq *kv)
{
    const hdl_schedule *schedule = runner->schedule;
    heddle_session *session = hdl_calloc(1, sizeof *session);
    heddle_status status = HEDDLE_E_NOMEM;
    if (!session) return status;
    session->runner = runner;
    runner->n_refs++;
    session->context_tokens = runner->options.context_tokens;
    session->store = hdl_kv_store_ref(store);
    session->stats.struct_size = sizeof session->stats;
    atomic_fetch_add(&runner->engine->n_users, 1);
    if (!(session->ids = hdl_calloc(session->context_tokens, sizeof *session->ids)) ||
        !(session->logits = hdl_calloc(schedule->facts->n_vocab, sizeof *session->logits)))
        goto done;
    if (schedule->n_kept &&
        (!(session->kept_ids = hdl_calloc(schedule->n_kept * schedule->kept_ids_max,
                                          sizeof *session->kept_ids)) ||
         !(session->kept_counts = hdl_calloc((int64_t)schedule->n_kept * schedule->facts->n_kv_heads,
                                             sizeof *session->kept_counts))))
        goto done;
    int64_t n_guesses = (int64_t)schedule->n_slots * schedule->facts->n_kv_heads;
    if (n_guesses && !(session->guesses = hdl_calloc(n_guesses, sizeof *session->guesses))) goto done;
    for (int64_t i = 0; i < n_guesses; i++) session->guesses[i] = NAN;
    if (make_gathers(session)) goto done;
    int64_t n_mass = hdl_retain_mass_size(schedule);
    if (n_mass && !(session->retain_mass = hdl_pages_alloc(n_mass * 4))) goto done;
    session->kv = kv;
    status = kv ? HEDDLE_OK : hdl_kv_seq_new(&session->kv, store, session->context_tokens);
done:
    if (status) heddle_session_free(session);
    *out = status ? NULL : session;
    return status;
}

heddle_status heddle_session_new(heddle_session **out, heddle_engine *engine, const heddle_plan *plan,
                                 const heddle_session_options *options)
{
    heddle_session_options checked;
    heddle_plan *own;
    const hdl_plan *used;
    hdl_runner *runner = NULL;
    hdl_kv_store *store = NULL;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    HDL_TRY(hdl_options_check(options, &checked));
    HDL_TRY(hdl_plan_or_own(engine, plan, &own, &used));
    heddle_status status = hdl_memory_check(engine, used, &checked);
    if (!status) status = hdl_runner_new(&runner, engine, used, &checked, 1, checked.chunk_rows);
    if (!status) status = make_store(&store, runner);
    if (!status) status = session_over(out, runner, store, NULL);
    hdl_kv_store_unref(store);
    hdl_runner_unref(runner);
    heddle_plan_free(own);
    return status;
}

void heddle_session_free(heddle_session *session)
{
    if (!session) return;
    if (session->retain_mass)
        hdl_pages_free(session->retain_mass, hdl_retain_mass_size(session->runner->schedule) * 4);
    hdl_kv_seq_free(session->kv);
    hdl_kv_store_unref(session->store);
    atomic_fetch_sub(&session->runner->engine->n_users, 1);
    hdl_runner_unref(session->runner);
    hdl_free(session->ids);
    hdl_free(session->logits);
    for (int32_t i = 0; i < HDL_MAX_GATHERS; i++) hdl_gather_free(session->gathers[i]);
    hdl_free(session->guesses);
    hdl_free(session->kept_ids);
    hdl_free(session->kept_counts);
    hdl_free(session);
}

/* ---- reading tokens: extend, score, each_logits are one loop over chunks ---- */

typedef struct read_call {
    const int32_t *ids;
    int64_t n_ids, first_logit_row; /* of the whole call */
    int64_t done;                   /* rows before the present chunk */
    heddle_progress_fn progress;
    void *progress_user;
    void (*row)(struct read_call *call, int64_t row, const float *logits);
    heddle_logits_fn logits_fn;
    void *logits_user;
    float *nll;
    bool is_generated; /* the decode route */
    bool is_stopped;
    heddle_session *session;
} read_call;

static void on_logits(const hdl_forward_item *item, int64_t row, const float *logits, void *user)
{
    read_call *call = user;
    int64_t at = call->done + row;
    if (call->row && !call->is_stopped) call->row(call, at, logits);
    if (at == call->n_ids - 1 || row == item->n_ids - 1) {
        memcpy(call->session->logits, logits,
               (size_t)call->session->runner->schedule->facts->n_vocab * sizeof *logits);
        call->session->has_logits = true;
    }
}

static int64_t chunk_rows(const heddle_session *session, bool is_generated)
{
    const hdl_schedule *schedule = session->runner->schedule;
    bool is_decoded = is_generated || session->runner->options.plan_governs_all;
    if (!is_decoded) return session->runner->options.chunk_rows;
    if (schedule->refresh > 1) return 1; /* a list kept over several rows exists only row by row */
    return HDL_MIN((int64_t)session->runner->options.chunk_rows, schedule->limits.max_list_rows);
}

/* Rows of the next chunk. It ends where a tile of rows that share a list ends, so that lists do not depend
 * on chunks; the last rows of a prompt that a plan observes come in one chunk. */
static int64_t rows_of_chunk(const heddle_session *session, const read_call *call, int64_t n_chunk)
{
    const hdl_retain_spec *retain = &session->runner->schedule->retain;
    int64_t left = call->n_ids - call->done, n = HDL_MIN(n_chunk, left);
    int64_t past = (hdl_kv_seq_len(session->kv) + n) % session->runner->schedule->rows_per_list;
    if (n < left && past < n) n -= past;
    int64_t wanted = retain->score == HDL_RETAIN_MASS_WINDOW && !call->is_generated ? retain->observe : 0;
    return n < left && left - n < wanted && n > wanted - (left - n) ? n - (wanted - (left - n)) : n;
}

static heddle_status read_tokens(heddle_session *session, read_call *call)
{
    double start = now_s();
    int64_t n_chunk = chunk_rows(session, call->is_generated), total = call->n_ids;
    heddle_status status = HEDDLE_OK;
    call->session = session;
    if (total < 1) return HDL_FAIL(HEDDLE_E_INVALID, "0 tokens to read: must be 1 or more");
    if (hdl_kv_seq_len(session->kv) + total > session->context_tokens)
        return HDL_FAIL(
            HEDDLE_E_CAPACITY, "%lld tokens are read and %lld more are given: the context holds %lld",
            (long long)hdl_kv_seq_len(session->kv), (long long)total, (long long)session->context_tokens);
    atomic_store(&session->is_cancelled, false);
    for (call->done = 0; call->done < total && !status;) {
        int64_t n = rows_of_chunk(session, call, n_chunk), last = call->done + n == total ? n - 1 : n;
        hdl_forward_item item = {
            .session = session,
            .ids = call->ids + call->done,
            .n_ids = n,
            .is_prompt = !call->is_generated,
            .is_prompt_end = !call->is_generated && call->done + n == total,
            .first_logit_row = HDL_MIN(last, HDL_MAX(call->first_logit_row - call->done, 0))};
        status = hdl_forward(session->runner, &item, 1, on_logits, call);
        if (status) hdl_session_forget_lists(session, hdl_kv_seq_len(session->kv)); /* of rows it began */
        if (status) break;
        call->done += n;
        bool is_asked = call->progress && call->progress(call->done, total, call->progress_user);
        if (call->done < total && (is_asked || call->is_stopped || atomic_load(&session->is_cancelled)))
            status = HDL_FAIL(HEDDLE_E_CANCELLED, "stopped after %lld of %lld tokens", (long long)call->done,
                              (long long)total);
    }
    if (!call->is_generated) {
        session->stats.n_prefill_tokens += call->done;
        session->stats.prefill_s += now_s() - start;
    } else {
        session->stats.n_decode_tokens += call->done;
        session->stats.decode_s += now_s() - start;
    }
    return status;
}

heddle_status heddle_session_extend(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                    heddle_progress_fn progress, void *user)
{
    HDL_GIVEN(session, ids);
    read_call call = {
        .ids = ids, .n_ids = n_ids, .first_logit_row = n_ids, .progress = progress, .progress_user = user};
    return read_tokens(session, &call);
}

heddle_status heddle_session_decode(heddle_session *session, const int32_t *ids, int64_t n_ids)
{
    HDL_GIVEN(session, ids);
    read_call call = {.ids = ids, .n_ids = n_ids, .first_logit_row = n_ids, .is_generated = true};
    return read_tokens(session, &call);
}

heddle_status heddle_session_sync(heddle_session *session, const int32_t *ids, int64_t n_ids, int64_t *n_kept,
                                  heddle_progress_fn progress, void *user)
{
    if (n_kept) *n_kept = 0;
    HDL_GIVEN(session, ids);
    int64_t same = 0, len = hdl_kv_seq_len(session->kv), kept;
    while (same < len && same < n_ids && session->ids[same] == ids[same]) same++;
    if (same == len && same == n_ids && session->has_logits) {
        if (n_kept) *n_kept = same;
        return HEDDLE_OK;
    }
    if (same == n_ids && same) same--; /* the last token is read again for its logits */
    HDL_TRY(heddle_session_truncate(session, same, &kept));
    if (n_kept) *n_kept = kept;
    return heddle_session_extend(session, ids + kept, n_ids - kept, progress, user);
}

/* -log softmax(logits)[id], summed in double so that vocabulary size does not cost digits. */
static float nll_of(const float *logits, int32_t n_vocab, int32_t id)
{
    float top = -INFINITY;
    double sum = 0;
    for (int32_t i = 0; i < n_vocab; i++) top = logits[i] > top ? logits[i] : top;
    for (int32_t i = 0; i < n_vocab; i++) sum += exp((double)(logits[i] - top));
    return (float)(log(sum) + (double)top - (double)logits[id]);
}

static void score_row(read_call *call, int64_t row, const float *logits)
{
    if (row + 1 < call->n_ids)
        call->nll[row + 1] = nll_of(logits, call->session->runner->schedule->facts->n_vocab,
                                    call->ids[row + 1]);
}

heddle_status heddle_session_score(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                   int64_t first_scored, float *nll, heddle_progress_fn progress, void *user)
{
    HDL_GIVEN(session, ids, nll);
    read_call call = {.ids = ids,
                      .n_ids = n_ids,
                      .first_logit_row = HDL_MAX(first_scored - 1, 0),
                      .progress = progress,
                      .progress_user = user,
                      .row = score_row,
                      .nll = nll};
    for (int64_t i = 0; i < n_ids; i++) nll[i] = NAN;
    if (n_ids > 0 && first_scored <= 0 && session->has_logits && ids[0] >= 0 &&
        ids[0] < session->runner->schedule->facts->n_vocab)
        nll[0] = nll_of(session->logits, session->runner->schedule->facts->n_vocab, ids[0]);
    return read_tokens(session, &call);
}

static void hand_row(read_call *call, int64_t row, const float *logits)
{
    if (row >= call->first_logit_row && call->logits_fn(row, logits, call->logits_user))
        call->is_stopped = true;
}

heddle_status heddle_session_each_logits(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                         int64_t first_row, heddle_logits_fn fn, void *user)
{
    HDL_GIVEN(session, ids);
    if (!fn) return HDL_FAIL(HEDDLE_E_INVALID, "%s: fn: must not be NULL", __func__);
    read_call call = {.ids = ids,
                      .n_ids = n_ids,
                      .first_logit_row = HDL_MAX(first_row, 0),
                      .row = hand_row,
                      .logits_fn = fn,
                      .logits_user = user};
    return read_tokens(session, &call);
}

/* ---- state ---- */

static int64_t retained_rows(const heddle_session *session)
{
    return hdl_kv_seq_rows(session->kv, session->runner->schedule->retain_group, 0);
}

/* Mass rows of another session of the same plan and context; only rows that are held are in use. */
static void copy_mass(heddle_session *to, const heddle_session *from)
{
    int64_t stride = from->runner->schedule->limits.max_context, n_rows = retained_rows(from);
    int64_t n_lists = hdl_retain_mass_size(from->runner->schedule) / stride;
    for (int64_t i = 0; i < n_lists; i++)
        memcpy(to->retain_mass + i * stride, from->retain_mass + i * stride, (size_t)n_rows * sizeof(float));
}

/* The session is empty: every row's sum is 0 again. */
static void clear_mass(heddle_session *session)
{
    if (session->retain_mass)
        memset(session->retain_mass, 0,
               (size_t)hdl_retain_mass_size(session->runner->schedule) * sizeof(float));
}

const float *heddle_session_logits(const heddle_session *session)
{
    return session && session->has_logits ? session->logits : NULL;
}

int64_t heddle_session_len(const heddle_session *session)
{
    return session ? hdl_kv_seq_len(session->kv) : 0;
}

const int32_t *heddle_session_ids(const heddle_session *session)
{
    return session ? session->ids : NULL;
}

int64_t hdl_doc_start(const heddle_session *session, int64_t n)
{
    const hdl_model_facts *facts = session->runner->schedule->facts;
    int64_t at = n - 1;
    if (!facts->has_doc_resets) return 0;
    while (at > 0 && session->ids[at] != facts->doc_token) at--;
    return HDL_MAX(at, 0);
}

heddle_status heddle_session_truncate(heddle_session *session, int64_t n, int64_t *n_kept)
{
    if (n_kept) *n_kept = 0;
    HDL_GIVEN(session);
    const hdl_model_facts *facts = session->runner->schedule->facts;
    int64_t len = hdl_kv_seq_len(session->kv), kept = len;
    if (n < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "truncation to %lld tokens: must be 0 or more", (long long)n);
    if (n < len) {
        /* the mass of rows that go cannot be taken out of a sum again */
        kept = hdl_kv_seq_truncate(session->kv, session->retain_mass ? 0 : n);
        if (n && !kept && facts->delta.n_layers)
            hdl_log(
                HDL_LOG_WARN,
                "the session starts over: it was to be cut back from %lld to %lld tokens, and its %d gated-delta "
                "layers hold the state of the last one only",
                (long long)len, (long long)n, facts->delta.n_layers);
        if (kept < n && session->runner->schedule->retain_group >= 0)
            hdl_log(
                HDL_LOG_WARN,
                "%lld tokens are read again: the session was to be cut back from %lld to %lld tokens, and "
                "its plan evicts rows, so that it can go back to %s only",
                (long long)(n - kept), (long long)len, (long long)n,
                session->retain_mass ? "nothing" : "where it last evicted, or to nothing");
        clear_mass(session);
        session->doc_start = hdl_doc_start(session, kept);
        session->has_logits = false;
        session->kept_visible = 0;
        hdl_session_forget_lists(session, kept);
    }
    if (n_kept) *n_kept = kept;
    return HEDDLE_OK;
}

/* The sequence and its tokens over another runner; what the plan itself keeps is the caller's. */
static heddle_status fork_over(heddle_session **out, const heddle_session *session, hdl_runner *runner)
{
    hdl_kv_seq *kv;
    HDL_TRY(hdl_kv_seq_fork(&kv, session->kv));
    heddle_status status = session_over(out, runner, session->store, kv);
    if (status) {
        hdl_kv_seq_free(kv);
        return status;
    }
    heddle_session *copy = *out;
    memcpy(copy->ids, session->ids, (size_t)hdl_kv_seq_len(kv) * sizeof *copy->ids);
    memcpy(copy->logits, session->logits, (size_t)runner->schedule->facts->n_vocab * sizeof *copy->logits);
    copy->has_logits = session->has_logits;
    copy->doc_start = session->doc_start;
    return HEDDLE_OK;
}

heddle_status heddle_session_fork(heddle_session **out, const heddle_session *session)
{
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(session);
    const hdl_schedule *schedule = session->runner->schedule;
    HDL_TRY(fork_over(out, session, session->runner));
    heddle_session *copy = *out;
    copy->kept_visible = session->kept_visible;
    if (session->retain_mass) copy_mass(copy, session);
    if (schedule->n_kept) {
        memcpy(copy->kept_ids, session->kept_ids, (size_t)(schedule->n_kept * schedule->kept_ids_max) * 4);
        memcpy(copy->kept_counts, session->kept_counts,
               (size_t)schedule->n_kept * schedule->facts->n_kv_heads * 4);
    }
    return HEDDLE_OK;
}

/* Can a sequence that another plan has read go on under this one's retain set? */
static heddle_status check_retained(const heddle_session *session, const hdl_schedule *schedule,
                                    const hdl_plan *plan)
{
    const hdl_schedule *own = session->runner->schedule;
    if (own->retain_group >= 0 && schedule->retain_group < 0 &&
        hdl_kv_seq_evicted(session->kv, own->retain_group).n_rows)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s reads every row, and this session has evicted %lld of them", plan->name,
                        (long long)hdl_kv_seq_evicted(session->kv, own->retain_group).n_rows);
    if (hdl_retain_mass_size(schedule) && hdl_kv_seq_len(session->kv))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s retains by the mass of every row so far, which was not observed while these "
                        "%lld tokens were read: read them under the plan itself",
                        plan->name, (long long)hdl_kv_seq_len(session->kv));
    return HEDDLE_OK;
}

heddle_status heddle_session_fork_as(heddle_session **out, const heddle_session *session,
                                     const heddle_plan *plan, int plan_governs_all)
{
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(session);
    heddle_session_options options = session->runner->options;
    heddle_engine *engine = session->runner->engine;
    heddle_plan *own;
    const hdl_plan *used;
    hdl_runner *runner = NULL;
    options.plan_governs_all = plan_governs_all;
    options.kept_plans = NULL;
    options.n_kept_plans = 0;
    HDL_TRY(hdl_plan_or_own(engine, plan, &own, &used));
    heddle_status status = hdl_runner_new(&runner, engine, used, &options, 1, options.chunk_rows);
    if (!status) status = hdl_schedule_fits_store(runner->schedule, used, session->kv);
    if (!status) status = check_retained(session, runner->schedule, used);
    if (!status && hdl_has_hidden(session->kv)) status = hdl_schedule_can_hide(runner->schedule);
    if (!status) status = fork_over(out, session, runner); /* no list is kept: the first step makes one */
    hdl_runner_unref(runner);
    heddle_plan_free(own);
    return status;
}

void heddle_session_set_tap(heddle_session *session, heddle_tap_fn fn, void *user)
{
    if (!session) return;
    session->tap = fn;
    session->tap_user = user;
}

void heddle_session_cancel(heddle_session *session)
{
    if (session) atomic_store(&session->is_cancelled, true);
}

void heddle_session_stats(const heddle_session *session, heddle_stats *stats)
{
    heddle_stats now = {0};
    if (!stats) return;
    if (!session) {
        hdl_give(stats, &now, sizeof now);
        return;
    }
    now = session->stats;
    now.kv_bytes = hdl_kv_seq_bytes(session->kv);
    now.kv_peak_bytes = hdl_kv_store_peak_bytes(session->store);
    now.workspace_bytes = session->runner->schedule->arena_bytes;
    now.decode_tokens_read = session->n_layer_rows ? session->tokens_read / session->n_layer_rows : 0;
    hdl_give(stats, &now, sizeof now);
}

void heddle_session_stats_reset(heddle_session *session)
{
    if (!session) return;
    session->stats = (heddle_stats){.struct_size = sizeof session->stats};
    session->n_layer_rows = session->tokens_read = 0;
}
