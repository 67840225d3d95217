/* eval_tasks.c - generated documents, read once and asked under every plan.
 *
 *     opening | document        dense, once
 *             +- fork as plan A -+- fork: question | turn | prefix | answer
 *             |                  +- fork: ...
 *             +- fork as plan B -+- ...
 *
 * A plan that evicts reads the document itself, and evicts at its end: questions come after the prompt.
 * From the question on, every row takes the plan's decode route. The answer is teacher-forced: each of
 * its tokens is scored after the right ones before it. All right = greedy decoding gives this answer. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval_int.h"
#include "term.h"

int eval_ids_text(const eval_run *run, cli_ids *to, const char *text, int64_t n_bytes)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    heddle_status status = heddle_tokenize(run->setup.engine, text, n_bytes, 0, &ids, &n);
    return cli_ids_take(to, status, ids, n);
}

int32_t eval_best(const float *logits, int64_t n_vocab)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Adds what one row of logits says of its target. */
static void score_row(eval_score *score, const float *logits, int64_t n_vocab, int32_t target)
{
    int32_t best = eval_best(logits, n_vocab);
    double sum = 0;
    for (int64_t i = 0; i < n_vocab; i++) sum += exp((double)(logits[i] - logits[best]));
    score->n++;
    score->n_right += best == target;
    score->nll += log(sum) + (double)logits[best] - (double)logits[target];
}

void eval_count_reads(const heddle_session *session, eval_reads *reads)
{
    heddle_stats stats = {.struct_size = sizeof stats};
    heddle_session_stats(session, &stats);
    reads->plan += stats.scored_kv_bytes_read + stats.decode_kv_bytes_read;
    reads->dense += stats.scored_kv_bytes_dense + stats.decode_kv_bytes_dense;
}

int eval_add_share(const eval_run *run, const eval_plan *plan, int64_t first, int64_t last,
                   const eval_reads *reads, json_t *row)
{
    double share = 1;
    heddle_status status = heddle_plan_share_read(run->setup.engine, plan->plan, first, last, &share);
    if (status) return cli_fail(status);
    json_object_set_new(row, "share_read", json_real(share));
    if (reads->dense > 0) json_object_set_new(row, "share_counted", json_real(reads->plan / reads->dense));
    return 0;
}

typedef struct ask_call {
    const cli_ids *ids;
    int64_t n_vocab;
    eval_score *score;
} ask_call;

static int on_logits(int64_t row, const float *logits, void *user)
{
    ask_call *call = user;
    if (row + 1 < call->ids->n) score_row(call->score, logits, call->n_vocab, call->ids->ids[row + 1]);
    return 0;
}

/* Tokens for what follows a document, and for a text that is longer than was counted, unit by unit. */
enum { SLACK = 1024 };

int eval_under_plan(const eval_run *run, const heddle_session *dense, const cli_ids *document,
                    const eval_plan *plan, heddle_session **session)
{
    heddle_status status;
    if (!plan->evicts) {
        status = heddle_session_fork_as(session, dense, plan->plan, 1);
        return status ? cli_fail(status) : 0;
    }
    heddle_session_options options = run->setup.session_options;
    options.context_tokens = (document->n > run->context ? document->n : run->context) + SLACK;
    status = heddle_session_new(session, run->setup.engine, plan->plan, &options);
    if (!status) status = heddle_session_extend(*session, document->ids, document->n, NULL, NULL);
    return status ? cli_fail(status) : 0;
}

heddle_status eval_each_logits(heddle_session *session, const eval_plan *plan, const int32_t *ids, int64_t n,
                               int64_t first_row, heddle_logits_fn fn, void *user)
{
    if (!plan->evicts) return heddle_session_each_logits(session, ids, n, first_row, fn, user);
    heddle_status status = first_row ? heddle_session_decode(session, ids, first_row) : HEDDLE_OK;
    for (int64_t row = first_row; row < n && !status; row++) {
        status = heddle_session_decode(session, ids + row, 1);
        if (!status) fn(row, heddle_session_logits(session), user);
    }
    return status;
}

int eval_ask(const eval_run *run, const eval_plan *plan, const heddle_session *session, const cli_ids *ids,
             int64_t n_answer, eval_score *score)
{
    heddle_session *fork = NULL;
    ask_call call = {ids, run->setup.info.n_vocab, score};
    int64_t first_row = ids->n - n_answer - 1;
    *score = (eval_score){0};
    heddle_status status = heddle_session_fork(&fork, session);
    if (!status) status = eval_each_logits(fork, plan, ids->ids, ids->n, first_row, on_logits, &call);
    if (!status) eval_count_reads(fork, &score->reads);
    heddle_session_free(fork);
    return status ? cli_fail(status) : 0;
}

static int64_t count_tokens(const char *text, int64_t n_bytes, void *user)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    heddle_tokenize(user, text, n_bytes, 0, &ids, &n);
    heddle_ids_free(ids);
    return n;
}

/* ---- one document ---- */

typedef struct task_document {
    eval_run *run;
    eval_haystack haystack;
    int64_t index;
    const eval_source *source; /* EVAL_TEXT; else NULL */
    eval_document document;
    cli_ids ids; /* of the document, once it is read */
    bool has_task[EVAL_N_TASKS];
} task_document;

static json_t *task_row(const task_document *d, const eval_plan *plan, int task)
{
    json_t *row = eval_row(d->run, "task", plan);
    if (!row) return NULL;
    json_object_set_new(row, "haystack", json_string(eval_haystack_names[d->haystack]));
    json_object_set_new(row, "source", json_string(d->source ? d->source->name : ""));
    json_object_set_new(row, "source_hash", json_string(d->source ? d->source->hash : ""));
    json_object_set_new(row, "document", json_integer(d->index));
    json_object_set_new(row, "task", json_string(eval_tasks[task].name));
    json_object_set_new(row, "answers", json_integer(d->run->options->answers));
    return row;
}

static bool is_missing(const task_document *d, const eval_plan *plan, int task)
{
    json_t *row = task_row(d, plan, task);
    bool is_there = row && results_find(&d->run->results, row);
    json_decref(row);
    return !is_there;
}

static bool is_plan_missing(const task_document *d, const eval_plan *plan)
{
    for (int task = 0; task < EVAL_N_TASKS; task++)
        if (d->has_task[task] && is_missing(d, plan, task)) return true;
    return false;
}

/* Says of which wanted tasks the document asks nothing. */
static void note_unasked(const task_document *d)
{
    char names[256] = "";
    int n_tasks = 0;
    for (int task = 0; task < EVAL_N_TASKS; task++) {
        size_t n = strlen(names);
        if (eval_tasks[task].haystack != d->haystack) continue;
        n_tasks++;
        if (d->run->wants_task[task] && !d->has_task[task])
            snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", eval_tasks[task].name);
    }
    if (*names)
        cli_note("heddle: eval: %s document %" PRId64
                 " has no question of %s: its %d tasks take turns, those not in "
                 "--tasks too, and --answers is %" PRId64,
                 eval_haystack_names[d->haystack], d->index + 1, names, n_tasks, d->run->options->answers);
}

static int make_document(task_document *d)
{
    eval_run *run = d->run;
    enum { QUESTION_TOKENS = 256 }; /* room for the longest question and its answer */
    eval_request request = {.haystack = d->haystack,
                            .seed = (uint64_t)run->options->seed,
                            .index = d->index,
                            .n_tokens = run->context - run->n_opening - run->n_turn - QUESTION_TOKENS,
                            .max_questions = (int32_t)run->options->answers,
                            .source = d->source ? d->source->text.data : NULL,
                            .source_bytes = d->source ? d->source->text.n : 0,
                            .count = count_tokens,
                            .count_user = run->setup.engine};
    /* every task's facts are in it whatever is asked, so that a row does not depend on --tasks */
    for (int task = 0; task < EVAL_N_TASKS; task++) request.wants[task] = true;
    const char *why = eval_document_make(&d->document, &request);
    if (why)
        return cli_refuse("eval: %s: %s", d->source ? d->source->name : eval_haystack_names[d->haystack],
                          why);
    for (int32_t i = 0; i < d->document.n_questions; i++) {
        eval_task task = d->document.questions[i].task;
        d->has_task[task] = run->wants_task[task];
    }
    note_unasked(d);
    return 0;
}

/* The ids that follow the document; *n_answer: how many of them are scored. */
static int question_ids(const eval_run *run, const eval_question *q, cli_ids *ids, int64_t *n_answer)
{
    ids->n = 0;
    int code = eval_ids_text(run, ids, q->question, (int64_t)strlen(q->question));
    if (!code && run->n_turn) code = cli_ids_add(ids, run->turn, run->n_turn);
    if (!code && !run->n_turn) code = eval_ids_text(run, ids, "\n", 1);
    if (!code) code = eval_ids_text(run, ids, q->prefix, (int64_t)strlen(q->prefix));
    int64_t before = ids->n;
    if (!code) code = eval_ids_text(run, ids, q->answer, (int64_t)strlen(q->answer));
    *n_answer = ids->n - before;
    return code;
}

/* The questions of one task under one plan; one row. */
static int ask_task(task_document *d, const heddle_session *session, const eval_plan *plan, int task)
{
    cli_ids ids = {0};
    json_t *row = task_row(d, plan, task), *depths = json_array(), *rights = json_array(),
           *counts = json_array();
    int64_t n_questions = 0, n_exact = 0, n = 0, n_right = 0, n_answer = 0;
    double nll = 0;
    eval_reads reads = {0};
    int code = row ? 0 : eval_no_memory();
    for (int32_t i = 0; i < d->document.n_questions && !code; i++) {
        const eval_question *q = &d->document.questions[i];
        eval_score score = {0};
        if (q->task != (eval_task)task) continue;
        code = question_ids(d->run, q, &ids, &n_answer);
        if (!code) code = eval_ask(d->run, plan, session, &ids, n_answer, &score);
        n_questions++;
        n_exact += score.n_right == score.n;
        n += score.n;
        n_right += score.n_right;
        nll += score.nll;
        reads.plan += score.reads.plan;
        reads.dense += score.reads.dense;
        json_array_append_new(depths, json_real(floor(q->depth * 1000 + 0.5) / 1000));
        json_array_append_new(rights, json_integer(score.n_right));
        json_array_append_new(counts, json_integer(score.n));
    }
    cli_ids_free(&ids);
    json_object_set_new(row, "questions", json_integer(n_questions));
    json_object_set_new(row, "exact", json_integer(n_exact));
    json_object_set_new(row, "tokens", json_integer(n));
    json_object_set_new(row, "right", json_integer(n_right));
    json_object_set_new(row, "nll", json_real(nll));
    json_object_set_new(row, "document_tokens", json_integer(heddle_session_len(session)));
    json_object_set_new(row, "depths", depths);
    json_object_set_new(row, "question_right", rights);
    json_object_set_new(row, "question_tokens", counts);
    if (!code) code = eval_add_share(d->run, plan, d->run->context - 1, d->run->context, &reads, row);
    if (!code) return results_add(&d->run->results, row);
    json_decref(row);
    return code;
}

static int ask_plan(task_document *d, const heddle_session *document, const eval_plan *plan)
{
    heddle_session *session = NULL;
    double start_s = term_now();
    int code = eval_under_plan(d->run, document, &d->ids, plan, &session), n_tasks = 0;
    for (int task = 0; task < EVAL_N_TASKS && !code; task++) {
        if (!d->has_task[task] || !is_missing(d, plan, task)) continue;
        code = ask_task(d, session, plan, task);
        n_tasks++;
    }
    heddle_session_free(session);
    if (!code)
        cli_note("%s document %" PRId64 ", plan %s: %d tasks, %.1f s", eval_haystack_names[d->haystack],
                 d->index + 1, plan->spec, n_tasks, term_now() - start_s);
    return code;
}

static int document_ids(task_document *d)
{
    if (d->ids.n) return 0;
    int code = cli_ids_add(&d->ids, d->run->opening, d->run->n_opening);
    return code ? code : eval_ids_text(d->run, &d->ids, d->document.text, (int64_t)strlen(d->document.text));
}

/* Reads the document densely. */
static int read_document(task_document *d, heddle_session **session)
{
    eval_run *run = d->run;
    heddle_session_options options = eval_document_options(run, run->context + SLACK);
    term_progress progress;
    term_progress_start(&progress, "reading");
    heddle_status status = heddle_session_new(session, run->setup.engine, NULL, &options);
    if (!status) status = heddle_session_extend(*session, d->ids.ids, d->ids.n, term_on_progress, &progress);
    term_clear_progress();
    return status ? cli_fail(status) : 0;
}

static void show_document(const task_document *d)
{
    printf("== %s, document %" PRId64 "\n%s\n", eval_haystack_names[d->haystack], d->index, d->document.text);
    for (int32_t i = 0; i < d->document.n_questions; i++) {
        const eval_question *q = &d->document.questions[i];
        printf("-- %s, depth %.3f%s\n%s[%s]\n", eval_tasks[q->task].name, q->depth, q->question, q->prefix,
               q->answer);
    }
}

static int run_document(task_document *d)
{
    heddle_session *session = NULL;
    int code = make_document(d);
    if (!code && d->run->options->is_shown) {
        show_document(d);
        eval_document_free(&d->document);
        return 0;
    }
    for (int p = 0; p < d->run->n_plans && !code; p++) {
        if (!is_plan_missing(d, &d->run->plans[p])) continue;
        code = document_ids(d);
        if (!code && !session && !d->run->plans[p].evicts) code = read_document(d, &session);
        if (!code) code = ask_plan(d, session, &d->run->plans[p]);
    }
    heddle_session_free(session);
    cli_ids_free(&d->ids);
    eval_document_free(&d->document);
    return code;
}

static bool wants_haystack(const eval_run *run, int haystack)
{
    for (int task = 0; task < EVAL_N_TASKS; task++)
        if (run->wants_task[task] && (int)eval_tasks[task].haystack == haystack) return true;
    return false;
}

int eval_check_tasks(const eval_run *run)
{
    bool has_others = false;
    for (int haystack = 0; haystack < EVAL_N_HAYSTACKS; haystack++)
        has_others |= haystack != EVAL_TEXT && wants_haystack(run, haystack);
    if (!wants_haystack(run, EVAL_TEXT) || run->n_sources || has_others) return 0;
    return cli_refuse("eval: --tasks %s: these need a real text: --text FILE", run->options->tasks);
}

int eval_run_tasks(eval_run *run)
{
    int code = 0;
    if (wants_haystack(run, EVAL_TEXT) && !run->n_sources)
        cli_note("heddle: without a real text (--text FILE) the tasks in one are left out");
    for (int64_t i = run->options->first, end = i + run->options->documents; i < end && !code; i++)
        for (int haystack = 0; haystack < EVAL_N_HAYSTACKS && !code; haystack++) {
            task_document d = {.run = run, .haystack = (eval_haystack)haystack, .index = i};
            if (!wants_haystack(run, haystack)) continue;
            if (haystack == EVAL_TEXT && !run->n_sources) continue;
            if (haystack == EVAL_TEXT) d.source = &run->sources[i % run->n_sources];
            code = run_document(&d);
        }
    return code;
}
