/* summary.h - figures from rows of results: sums aligned by document, plans paired. */
#ifndef CLI_SUMMARY_H
#define CLI_SUMMARY_H

#include "eval/stats.h"
#include "results.h"

enum { SUMMARY_MAX_PLANS = 3 };

typedef struct summary_filter { /* NULL and 0 fit everything, but for seed and mode */
    const char *what, *model_hash, *kv, *frame, *task, *governs;
    const char *text;               /* the source's name without a number: "prose" of prose-0 and prose-1 */
    int64_t context, answers, seed; /* seed: < 0 fits everything */
    bool is_invariant;              /* fits rows of this mode alone */
} summary_filter;
void summary_text_of(const char *source, char *text, size_t n);
bool summary_fits(const summary_filter *filter, const json_t *row);

/* The documents that all of these plans have, each once: [row of every plan], of several numbers of --answers those
 * with the most. NULL: no memory; the caller drops the reference. */
json_t *summary_documents(const results *r, const summary_filter *filter, const char *const *plan_hashes,
                          int n_plans);

/* Two members of the rows of several plans over the documents that all of these plans have. */
typedef struct summary {
    double *num[SUMMARY_MAX_PLANS], *den[SUMMARY_MAX_PLANS]; /* [n] */
    int64_t n;
} summary;
/* 0 or an exit code; free it in any case. den NULL: each document counts 1. */
int summary_align(summary *out, const results *r, const summary_filter *filter,
                  const char *const *plan_hashes, int n_plans, const char *num, const char *den);
void summary_free(summary *s);

/* The share of dense's bytes that the plan reads, the mean of its documents; NaN where no row says it. Counted where
 * rows say so, else known before the lists were made: the most, where these are as long as their scores say.
 * is_counted: may be NULL. */
double summary_share(const results *r, const summary_filter *filter, const char *plan_hash, bool *is_counted);

/* A task on a model decides where dense reaches 60 % and stands 20 points above the window. */
bool summary_decides(double dense, double window);

#endif
