/* eval_loss.c - what a plan costs in prediction: loss by position, recovery, agreement with dense.
 *
 * Perplexity hides routing, as most tokens are local. Beside it stands the long-range recovery
 *
 *     R = (L_window - L_plan) / (L_window - L_dense)
 *
 * over the last quarter of a document, and over the tokens there where dense gains more than half a
 * nat on the window ("gain tokens"). A document is `context` tokens of a text. Every row is under the
 * plan; with --last only those of the last quarter are, after one dense reading shared by all plans.
 *
 * Agreement: dense writes 256 tokens greedily after the document; each plan reads them in its decode
 * route and says what it would have written instead of each. Dense read in the same way is the noise. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval_int.h"
#include "term.h"

enum { N_BINS = 8, AGREE_TOKENS = 256 };

typedef struct loss_document {
    eval_run *run;
    const eval_source *source;
    int64_t index;                   /* of the document in its text */
    cli_ids ids;                     /* [context] */
    float *nll[EVAL_CONTROLS];       /* [context] of dense and of the window, once they are known */
    eval_reads reads[EVAL_CONTROLS]; /* of the rows of the last quarter */
    heddle_session *dense;           /* all but the last quarter, read densely; made when it is needed */
    uint8_t *is_gain;                /* [context] */
} loss_document;

static int64_t last_quarter(const loss_document *d)
{
    return d->ids.n * 3 / 4;
}

static json_t *loss_row(const loss_document *d, const eval_plan *plan, const char *what)
{
    json_t *row = eval_row(d->run, what, plan);
    if (!row) return NULL;
    json_object_set_new(row, "source", json_string(d->source->name));
    json_object_set_new(row, "source_hash", json_string(d->source->hash));
    json_object_set_new(row, "document", json_integer(d->index));
    bool is_last = d->run->options->is_last && !strcmp(what, "loss");
    json_object_set_new(row, "governs", json_string(is_last ? "last" : "all"));
    return row;
}

static const json_t *find_row(const loss_document *d, const eval_plan *plan, const char *what)
{
    json_t *row = loss_row(d, plan, what);
    const json_t *found = row ? results_find(&d->run->results, row) : NULL;
    json_decref(row);
    return found;
}

/* A session with the first n_tokens of the document, under a plan (NULL = dense). */
static int read_prefix(const loss_document *d, const heddle_plan *plan, int governs, int64_t n_tokens,
                       heddle_session **session)
{
    heddle_session_options options = eval_document_options(d->run, d->run->context + AGREE_TOKENS);
    if (plan) options.n_kept_plans = 0; /* it is not forked */
    options.plan_governs_all = governs;
    heddle_status status = heddle_session_new(session, d->run->setup.engine, plan, &options);
    if (!status && n_tokens) {
        term_progress progress;
        term_progress_start(&progress, "reading");
        status = heddle_session_extend(*session, d->ids.ids, n_tokens, term_on_progress, &progress);
        term_clear_progress();
    }
    return status ? cli_fail(status) : 0;
}

/* nll [from, end) of the document. */
static heddle_status score_rows(const loss_document *d, heddle_session *session, int64_t from, int64_t end,
                                float *nll)
{
    term_progress progress;
    if (from == end) return HEDDLE_OK;
    term_progress_start(&progress, "scoring");
    heddle_status status = heddle_session_score(session, d->ids.ids + from, end - from, 0, nll + from,
                                                term_on_progress, &progress);
    term_clear_progress();
    return status;
}

/* nll [context] of the document under a plan; NaN where it is not scored. What the last quarter reads is counted. */
static int score(loss_document *d, const eval_plan *plan, float *nll, eval_reads *reads)
{
    heddle_session *session = NULL;
    int64_t from = d->run->options->is_last ? last_quarter(d) : 0, n = d->ids.n;
    int code = 0;
    for (int64_t i = 0; i < n; i++) nll[i] = NAN;
    if (from && !d->dense) code = read_prefix(d, NULL, 0, from, &d->dense);
    if (code) return code;
    if (from) {
        heddle_status status = heddle_session_fork_as(&session, d->dense, plan->plan, 1);
        code = status ? cli_fail(status) : 0;
    } else {
        code = read_prefix(d, plan->plan, 1, 0, &session);
    }
    heddle_status status = HEDDLE_OK;
    *reads = (eval_reads){0};
    if (!code) status = score_rows(d, session, from, last_quarter(d), nll);
    if (!code && !status) heddle_session_stats_reset(session);
    if (!code && !status) status = score_rows(d, session, last_quarter(d), n, nll);
    if (!code && !status) eval_count_reads(session, reads);
    heddle_session_free(session);
    return status ? cli_fail(status) : code;
}

/* Sums over [from, to) of what was scored, gain tokens only if asked. */
static double sum_nll(const loss_document *d, const float *nll, int64_t from, int64_t to, bool is_gain_only,
                      int64_t *n)
{
    double sum = 0;
    *n = 0;
    for (int64_t i = from; i < to; i++) {
        if (isnan(nll[i]) || (is_gain_only && !d->is_gain[i])) continue;
        sum += nll[i];
        ++*n;
    }
    return sum;
}

static int add_loss(loss_document *d, const eval_plan *plan, const float *nll, const eval_reads *reads)
{
    json_t *row = loss_row(d, plan, "loss"), *sums = json_array(), *counts = json_array();
    int64_t n = d->ids.n, from = last_quarter(d), n_scored;
    for (int bin = 0; bin < N_BINS; bin++) {
        json_array_append_new(
            sums, json_real(sum_nll(d, nll, n * bin / N_BINS, n * (bin + 1) / N_BINS, false, &n_scored)));
        json_array_append_new(counts, json_integer(n_scored));
    }
    json_object_set_new(row, "bin_nll", sums);
    json_object_set_new(row, "bin_tokens", counts);
    json_object_set_new(row, "last_nll", json_real(sum_nll(d, nll, from, n, false, &n_scored)));
    json_object_set_new(row, "last_tokens", json_integer(n_scored));
    json_object_set_new(row, "gain_nll", json_real(sum_nll(d, nll, from, n, true, &n_scored)));
    json_object_set_new(row, "gain_tokens", json_integer(n_scored));
    int code = eval_add_share(d->run, plan, from, n, reads, row);
    if (!code) return results_add(&d->run->results, row);
    json_decref(row);
    return code;
}

/* Which tokens are gain tokens, as the window's row tells it: one bit a token, hexadecimal. */
static bool read_gains(loss_document *d, const json_t *row)
{
    const char *bits = row_text(row, "gain_bits");
    int64_t from = last_quarter(d), n = d->ids.n - from;
    if ((int64_t)strlen(bits) != (n + 3) / 4) return false;
    for (int64_t i = 0; i < n; i++) {
        char c = bits[i / 4];
        int digit = c >= 'a' ? c - 'a' + 10 : c - '0';
        d->is_gain[from + i] = digit >> (i % 4) & 1;
    }
    return true;
}

static int write_gains(loss_document *d, json_t *row)
{
    int64_t from = last_quarter(d), n = d->ids.n - from;
    char *bits = calloc((size_t)((n + 3) / 4 + 1), 1);
    if (!bits) return eval_no_memory();
    for (int64_t i = 0; i < n; i += 4) {
        int digit = 0;
        for (int64_t j = i; j < n && j < i + 4; j++) digit |= d->is_gain[from + j] << (j - i);
        bits[i / 4] = "0123456789abcdef"[digit];
    }
    json_object_set_new(row, "gain_bits", json_string(bits));
    free(bits);
    return 0;
}

/* Dense and the window together, as the gain tokens come from both. */
static int control_losses(loss_document *d)
{
    eval_run *run = d->run;
    json_t *gains = loss_row(d, &run->plans[1], "gains");
    const json_t *known = gains ? results_find(&run->results, gains) : NULL;
    if (known && read_gains(d, known) && find_row(d, &run->plans[0], "loss") &&
        find_row(d, &run->plans[1], "loss")) {
        json_decref(gains);
        return 0;
    }
    int code = gains ? 0 : eval_no_memory();
    for (int p = 0; p < EVAL_CONTROLS && !code; p++) code = score(d, &run->plans[p], d->nll[p], &d->reads[p]);
    for (int64_t i = last_quarter(d); i < d->ids.n && !code; i++)
        d->is_gain[i] = d->nll[1][i] - d->nll[0][i] > 0.5f;
    for (int p = 0; p < EVAL_CONTROLS && !code; p++)
        code = add_loss(d, &run->plans[p], d->nll[p], &d->reads[p]);
    if (!code) code = write_gains(d, gains);
    if (!code) return results_add(&run->results, gains);
    json_decref(gains);
    return code;
}

static int run_losses(loss_document *d)
{
    eval_run *run = d->run;
    int code = control_losses(d);
    for (int p = EVAL_CONTROLS; p < run->n_plans && !code; p++) {
        double start_s = term_now();
        if (run->plans[p].evicts || find_row(d, &run->plans[p], "loss")) continue;
        code = score(d, &run->plans[p], d->nll[0], &d->reads[0]);
        if (!code) code = add_loss(d, &run->plans[p], d->nll[0], &d->reads[0]);
        if (!code)
            cli_note("loss of %s, document %" PRId64 ", plan %s: %.1f s", d->source->name, d->index + 1,
                     run->plans[p].spec, term_now() - start_s);
    }
    return code;
}

/* ---- agreement ---- */

typedef struct agree_call {
    const int32_t *ids;             /* [AGREE_TOKENS] dense's */
    int64_t n_vocab, n_same, first; /* first: rows before the first that differs */
} agree_call;

static int on_agree_logits(int64_t row, const float *logits, void *user)
{
    agree_call *call = user;
    if (row + 1 >= AGREE_TOKENS) return 0;
    bool is_same = eval_best(logits, call->n_vocab) == call->ids[row + 1];
    if (is_same && call->first == row) call->first++;
    call->n_same += is_same;
    return 0;
}

/* The first token comes from logits before the fork and is the same for all plans; it is not counted. */
static int agree_plan(loss_document *d, const heddle_session *session, const int32_t *ids,
                      const eval_plan *plan)
{
    heddle_session *fork = NULL;
    agree_call call = {.ids = ids, .n_vocab = d->run->setup.info.n_vocab};
    int code = eval_under_plan(d->run, session, &d->ids, plan, &fork);
    heddle_status status = HEDDLE_OK;
    if (!code) status = eval_each_logits(fork, plan, ids, AGREE_TOKENS, 0, on_agree_logits, &call);
    heddle_session_free(fork);
    if (status) code = cli_fail(status);
    if (code) return code;
    json_t *row = loss_row(d, plan, "agreement");
    json_object_set_new(row, "tokens", json_integer(AGREE_TOKENS - 1));
    json_object_set_new(row, "same", json_integer(call.n_same));
    json_object_set_new(row, "first", json_integer(call.first));
    return results_add(&d->run->results, row);
}

static int run_agreement(loss_document *d)
{
    eval_run *run = d->run;
    heddle_session *session = NULL, *writer = NULL;
    int32_t ids[AGREE_TOKENS];
    int code = 0;
    for (int p = 0; p < run->n_plans && !code; p++) {
        if (find_row(d, &run->plans[p], "agreement")) continue;
        if (!session) {
            heddle_status status = HEDDLE_OK;
            code = read_prefix(d, NULL, 0, d->ids.n, &session);
            if (!code) status = heddle_session_fork(&writer, session);
            for (int i = 0; i < AGREE_TOKENS && !code && !status; i++) {
                ids[i] = eval_best(heddle_session_logits(writer), run->setup.info.n_vocab);
                status = heddle_session_extend(writer, &ids[i], 1, NULL, NULL);
            }
            if (status) code = cli_fail(status);
        }
        if (!code) code = agree_plan(d, session, ids, &run->plans[p]);
        if (!code)
            cli_note("agreement on %s, document %" PRId64 ", plan %s", d->source->name, d->index + 1,
                     run->plans[p].spec);
    }
    heddle_session_free(writer);
    heddle_session_free(session);
    return code;
}

/* ---- documents ---- */

static bool is_all_there(const loss_document *d)
{
    for (int p = 0; p < d->run->n_plans; p++) {
        bool needs_loss = d->run->wants_loss && !d->run->plans[p].evicts;
        if (needs_loss && !find_row(d, &d->run->plans[p], "loss")) return false;
        if (d->run->wants_agreement && !find_row(d, &d->run->plans[p], "agreement")) return false;
    }
    return true;
}

int eval_cut_document(const eval_run *run, const int32_t *ids, int32_t bos, int64_t index, cli_ids *document)
{
    int64_t n = run->context, n_bos = bos >= 0;
    int code = n_bos ? cli_ids_add(document, &bos, 1) : 0;
    return code ? code : cli_ids_add(document, ids + n * index, n - n_bos);
}

int64_t eval_n_documents(const eval_run *run, int s, int64_t n_ids, int *code)
{
    int64_t n = n_ids / run->context;
    if (!*code && !n && eval_wants_document(run, s, 0))
        *code = cli_refuse("eval: %s has %" PRId64 " tokens; one document needs %" PRId64 " (-c)",
                           run->sources[s].name, n_ids, run->context);
    return *code ? 0 : n;
}

bool eval_wants_document(const eval_run *run, int s, int64_t index)
{
    int64_t at = index * run->n_sources + s;
    return at >= run->options->first && at < run->options->first + run->options->documents;
}

static int run_document(loss_document *d, const int32_t *ids, int32_t bos)
{
    if (is_all_there(d)) return 0;
    int code = eval_cut_document(d->run, ids, bos, d->index, &d->ids);
    for (int p = 0; p < EVAL_CONTROLS && !code; p++) {
        d->nll[p] = malloc((size_t)d->ids.n * sizeof *d->nll[p]);
        if (!d->nll[p]) code = eval_no_memory();
    }
    if (!code && !(d->is_gain = calloc((size_t)d->ids.n, 1))) code = eval_no_memory();
    if (!code && d->run->wants_loss) code = run_losses(d);
    if (!code && d->run->wants_agreement) code = run_agreement(d);
    heddle_session_free(d->dense);
    for (int p = 0; p < EVAL_CONTROLS; p++) free(d->nll[p]);
    free(d->is_gain);
    cli_ids_free(&d->ids);
    return code;
}

/* As many documents of a text as do not overlap, at most its part of --documents. */
static int run_source(eval_run *run, int s, int32_t bos, int64_t *n_run)
{
    const eval_source *source = &run->sources[s];
    cli_ids ids = {0};
    int code = eval_ids_text(run, &ids, source->text.data, source->text.n);
    int64_t n_documents = eval_n_documents(run, s, ids.n, &code);
    for (int64_t i = 0; i < n_documents && !code; i++) {
        loss_document d = {.run = run, .source = source, .index = i};
        if (!eval_wants_document(run, s, i)) continue;
        code = run_document(&d, ids.ids, bos);
        ++*n_run;
    }
    cli_ids_free(&ids);
    return code;
}

int eval_run_loss(eval_run *run)
{
    int32_t bos = -1;
    int64_t n_run = 0;
    int code = cli_bos(run->setup.engine, &bos);
    for (int s = 0; s < run->n_sources && !code; s++) code = run_source(run, s, bos, &n_run);
    if (!code && !n_run)
        cli_note("heddle: eval: the texts have no document of %" PRId64 " tokens from --first %" PRId64 " on",
                 run->context, run->options->first);
    return code;
}
