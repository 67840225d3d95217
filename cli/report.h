/* report.h - what the files of `heddle report` share: all that was read, by model and plan. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "eval/document.h"
#include "summary.h"
#include "svg.h"

enum {
    REPORT_MAX_PLANS = 64,
    REPORT_MAX_CARDS = 32,
    REPORT_MAX_CONTEXTS = 8,
    REPORT_MAX_TASKS = EVAL_N_TASKS + 32,
    REPORT_MAX_TEXTS = 16,
    REPORT_MAX_RUNS = 64
};

/* Speeds that were measured together, on one host: only these are set against each other. */
typedef struct report_run {
    char path[256];  /* of the file */
    char name[64];   /* of the run in it; empty where it is one */
    char host[320];  /* as the file says in a column or in comments above the rows; empty where it does not */
    bool is_made_up; /* of build/bench/bench_depth: no text was read, the rows are random numbers */
} report_run;

typedef struct report_speed { /* a line of `heddle bench depth --csv`, or of build/bench/bench_depth */
    char model[128], kv[8], plan[128];
    int run; /* of report.runs */
    double depth, prefill, decode, share, kv_bytes, peak_bytes;
} report_speed;

typedef struct report_plan {
    char spec[128], hash[20]; /* hash: empty where only its speed is known */
    char label[144]; /* the spec; where several of a card have it, with the first characters of the hash */
    bool is_control; /* dense, and what its own text calls a control */
    int colour;
} report_plan;

typedef struct report_task {
    char name[64];
    const char *about;
} report_task;

typedef struct report_card {                          /* one model with one kind of KV, asked in one way */
    char model[128], model_hash[20], kv[8], frame[8]; /* frame: of eval's tasks; empty where none was asked */
    bool is_invariant;
    report_plan plans[REPORT_MAX_PLANS]; /* dense first, then the window, then others by name */
    int n_plans;
    int64_t contexts[REPORT_MAX_CONTEXTS]; /* of the tasks, ascending */
    int n_contexts;
    report_task tasks[REPORT_MAX_TASKS]; /* eval's own, then files of RULER */
    int n_tasks;
    int64_t loss_context; /* the longest; 0 = no loss was measured */
} report_card;

typedef struct report {
    results results;
    report_speed *speeds;
    int n_speeds, speeds_capacity;
    report_run runs[REPORT_MAX_RUNS];
    int n_runs;
    report_card cards[REPORT_MAX_CARDS];
    int n_cards;
} report;

/* report_data.c. A file is told by its beginning, a CSV by the names of its columns. 0 or an exit code. */
int report_read(report *r, const char *path);
void report_sort(report *r); /* makes the cards; after all files */
void report_free(report *r);
/* A paragraph: of which file and host the speeds of run `only` of a card are, and how measured; -1 = of all runs. */
void report_runs(eval_buf *out, const report *r, const report_card *card, int only);
/* The speed of a plan at a depth (< 0 = the deepest that is there), of several runs that of the last; NULL = not
 * measured. */
const report_speed *report_speed_of(const report *r, const report_card *card, const char *plan, double depth);
/* Dense's tokens a second at a depth in a run: the middle of its rows there. NaN: it has none. */
double report_dense_decode(const report *r, const report_card *card, int run, double depth);
/* Times dense's speed at the same depth in the same run; NaN where one of them was not measured. */
double report_speed_over_dense(const report *r, const report_card *card, const report_speed *speed);

typedef struct report_quality {   /* of one plan, against dense; NaN where it was not measured */
    eval_interval recovery, loss; /* loss: nats a token over the last quarter */
    const char *governs;          /* which rows of the losses: "all", "last", a part; NULL = none */
    int64_t n_documents;          /* of the losses */
    eval_interval worst_recovery; /* of the worst text */
    double worst_loss;            /* of the worst text, which may be another */
    double share;                 /* of dense's K, V (and summary) bytes read there */
    double mean, worst;           /* points over the deciding tasks of the longest context, 0..1 */
    const char *worst_task;       /* of card.tasks */
    int n_deciding;
    double agreement;
} report_quality;
report_quality report_quality_of(const report *r, const report_card *card, const report_plan *plan);
/* The losses after a prompt of which the plan read a part: "prompt", or "both" the prompt and what comes after. */
report_quality report_quality_of_part(const report *r, const report_card *card, const report_plan *plan,
                                      const char *part);
summary_filter report_filter(const report_card *card, const char *what, const char *task, int64_t context);

bool report_is_window(const char *spec); /* the 512 recent tokens that R is measured from */

/* Each writes one section, or nothing where nothing was measured. */
void report_frontier(eval_buf *out, const report *r, const report_card *card);
void report_table(eval_buf *out, const report *r, const report_card *card);
void report_prompts(eval_buf *out, const report *r, const report_card *card);
void report_evictions(eval_buf *out, const report *r, const report_card *card);
void report_tasks(eval_buf *out, const report *r, const report_card *card);
void report_position(eval_buf *out, const report *r, const report_card *card);
void report_depths(eval_buf *out, const report *r, const report_card *card);
void report_needles(eval_buf *out, const report *r, const report_card *card);
void report_lists(eval_buf *out, const report *r, const report_card *card);
/* A section of a record's text, with the script that shows the list of a token. 0 or an exit code. */
int report_record(eval_buf *out, const heddle_engine *engine, const char *path);

#endif
