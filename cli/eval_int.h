/* eval_int.h - what the files of `heddle eval` share: options, the run, the frame of a question. */
#ifndef CLI_EVAL_INT_H
#define CLI_EVAL_INT_H

#include "cli.h"
#include "eval/document.h"
#include "results.h"

enum { EVAL_MAX_PLANS = 64, EVAL_CONTROLS = 2 };

typedef struct eval_options {
    cli_common common;
    const char *plans, *tasks, *out;
    cli_texts texts, rulers;
    int64_t documents, first, answers, seed;
    bool is_raw, is_shown, is_last;
} eval_options;

typedef struct eval_plan {
    const char *spec; /* as it was given */
    heddle_plan *plan;
    char hash[20];
    int evicts; /* reads documents itself, and is judged by what comes after them */
} eval_plan;

typedef struct eval_source {
    char name[64]; /* of the file, without folder and ending */
    char hash[20];
    cli_text text;
} eval_source;

typedef struct eval_run {
    const eval_options *options;
    cli_setup setup;
    results results;
    char model_hash[20];
    char *plan_text;                 /* the list, cut up */
    eval_plan plans[EVAL_MAX_PLANS]; /* dense and the window first: the controls */
    int n_plans;
    const heddle_plan *kept[EVAL_MAX_PLANS]; /* [n_kept] plans whose summaries a document's KV keeps */
    int n_kept;
    eval_source *sources;
    int n_sources;
    bool wants_task[EVAL_N_TASKS], wants_loss, wants_agreement, wants_lists;
    int64_t context;
    /* around a question: ids before the document, between question and answer; empty without a template */
    int32_t *opening, *turn;
    int64_t n_opening, n_turn;
    const char *frame; /* "chat" or "raw" */
} eval_run;

/* A new row with what names it; members of the result are added by the caller. NULL: no memory. */
json_t *eval_row(const eval_run *run, const char *what, const eval_plan *plan);
int eval_no_memory(void);                                    /* says so; EXIT_RUNTIME */
void eval_base_name(const char *path, char *name, size_t n); /* without folder and ending */

/* eval_tasks.c: the generated documents; eval_ruler.c: those of files. */
int eval_check_tasks(const eval_run *run); /* before anything is read: a refusal, or 0 */
int eval_check_rulers(eval_run *run);
/* The task that a file's rows name: the file's name; with ".ruler" where a task of eval's own has it. */
void eval_ruler_task(const char *path, char *task, size_t n);
int eval_run_tasks(eval_run *run);
int eval_run_rulers(eval_run *run);
/* eval_loss.c: loss by position, recovery, agreement. */
int eval_run_loss(eval_run *run);
/* The index-th stretch of `context` tokens of a text's ids; begin-of-text (if >= 0) first. */
int eval_cut_document(const eval_run *run, const int32_t *ids, int32_t bos, int64_t index, cli_ids *document);
/* How many such documents text s has; 0 with code set where it has not one. */
int64_t eval_n_documents(const eval_run *run, int s, int64_t n_ids, int *code);
/* Whether document `index` of text s is asked for: the texts take turns, from --first on. */
bool eval_wants_document(const eval_run *run, int s, int64_t index);
/* A document that forks under every plan can be made of. */
heddle_session_options eval_document_options(const eval_run *run, int64_t context_tokens);
/* eval_lists.c: what routers chose, against dense attention. */
int eval_run_lists(eval_run *run);
/* eval_table.c: all that the results file holds for this run, as text. */
void eval_print_tables(const eval_run *run);

/* 0 or an exit code. */
int eval_ids_text(const eval_run *run, cli_ids *to, const char *text, int64_t n_bytes);

/* Bytes of K, V and summaries that scored rows read of the lists as they were made, and that dense would read. */
typedef struct eval_reads {
    double plan, dense;
} eval_reads;
void eval_count_reads(const heddle_session *session, eval_reads *reads); /* adds the session's */
/* Adds what the plan reads of dense's bytes for rows [first, last) of the context: "share_read", known before, where
 * lists are as long as their scores say the most; "share_counted", what was read. */
int eval_add_share(const eval_run *run, const eval_plan *plan, int64_t first, int64_t last,
                   const eval_reads *reads, json_t *row);

/* What was answered: each target id against the logits before it. */
typedef struct eval_score {
    int64_t n, n_right;
    double nll;
    eval_reads reads;
} eval_score;
/* The document as the plan goes on from it: a fork of `dense` that its decode route governs; where it evicts,
 * a session that reads the ids itself, prefill route and eviction at their end. */
int eval_under_plan(const eval_run *run, const heddle_session *dense, const cli_ids *document,
                    const eval_plan *plan, heddle_session **session);
/* Reads ids [n] on a fork of what eval_under_plan gave; scores the last n_answer of them. */
int eval_ask(const eval_run *run, const eval_plan *plan, const heddle_session *session, const cli_ids *ids,
             int64_t n_answer, eval_score *score);
/* Reads ids [n] on what eval_under_plan gave or a fork of it, by the plan's decode route, and hands the logits of each
 * row from first_row on to fn. Of a plan that evicts they are decoded one by one: nothing is evicted as at the end of
 * a prompt. */
heddle_status eval_each_logits(heddle_session *session, const eval_plan *plan, const int32_t *ids, int64_t n,
                               int64_t first_row, heddle_logits_fn fn, void *user);
int32_t eval_best(const float *logits, int64_t n_vocab); /* the id of the greatest, of equals the first */

#endif
