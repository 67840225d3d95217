/* search.h - which layers should make lists: found by loss, or by captured attention mass.
 *
 * A candidate is a set of list-making layers; every other layer without a window of its own reads the list of
 * the nearest one below. It is judged on the last `n_rows` tokens of each text, over one dense KV cache of
 * everything before them: the dense session is forked under the candidate's plan. */
#ifndef CLI_SEARCH_H
#define CLI_SEARCH_H

#include <stdbool.h>

#include "cost.h"

enum { SEARCH_MAX_LAYERS = 512, SEARCH_MAX_TEXTS = 16, SEARCH_MAX_HEADS = 64 };

typedef struct search_router { /* what every list-making layer does */
    const char *score;         /* "attention_mass" (these layers stay dense), "key_i8", "key_i4" */
    int64_t top_k, n_sink, window, dense_below;
} search_router;

typedef struct search_text {
    int32_t *ids; /* [n_ids] */
    int64_t n_ids;
    heddle_session *session; /* has read the first n_ids - n_rows tokens, densely */
    double dense_nll;        /* mean over the last rows */
} search_text;

typedef struct search {
    heddle_engine *engine;
    heddle_model_info info;
    search_router router;
    int64_t n_rows;
    bool is_open[SEARCH_MAX_LAYERS]; /* layers that may make or read lists: those without a window */
    int32_t n_layers, n_open;
    search_text texts[SEARCH_MAX_TEXTS];
    int n_texts;
    int64_t n_evaluations;
    int64_t written_top_k; /* of the plan that is written */
} search;

typedef struct search_set { /* layers that make a list, or one for each KV head */
    bool has[SEARCH_MAX_LAYERS];
    bool is_dense[SEARCH_MAX_LAYERS]; /* reads and makes no list */
    int32_t n;
    bool is_mapped; /* one list for each KV head; KV head h of a reader reads list map[layer][h] */
    int16_t map[SEARCH_MAX_LAYERS][SEARCH_MAX_HEADS];
} search_set;

/* Reads a text for the search: at most n_tokens of the file. 0, or an exit code. */
int search_add_text(search *at, const char *path, int64_t n_tokens);
void search_free(search *at);
/* The plan file of a set, malloc'd; for this very model. */
char *search_plan_text(const search *at, const search_set *set, const search_router *router, const char *name,
                       const char *about);
/* The same, parsed; for this engine. 0, or an exit code. */
int search_plan(const search *at, const search_set *set, const search_router *router, heddle_plan **plan);
/* Mean NLL per token over texts [first, last) under the set's plan. */
int search_loss(search *at, const search_set *set, const search_router *router, int first, int last,
                double *nll);
/* Starts from all open layers and takes away, again and again, the layer whose loss is smallest to lose, until
 * n_lists are left; curve[n] = the loss with n lists, dropped[n] = the layer that was taken to come to n. */
int search_greedy(search *at, int n_fit, int32_t n_lists, search_set *set, double *curve, int32_t *dropped);
/* The n_lists layers (the first open one among them) whose lists capture the most mass of the layers that read
 * them, exactly, by dynamic programming over the texts' last rows. is_mapped: lists are per KV head, and every
 * reader's head takes the list that captures most of its own mass. */
int search_dp(search *at, int n_fit, int32_t n_lists, bool is_mapped, search_set *set);

/* As HyLRA (2026; the exact form of its public code, mended): the 9 % of the layers whose mass is least concentrated
 * stay dense; of the others about n_lists make a list for each KV head, so that the least overlap between a
 * reader's own list and the one it reads is largest, then the sum of the overlaps (eval/reuse.h). */
int search_hylra(search *at, int n_fit, int32_t n_lists, search_set *set);
/* search_budget.c: what a decode step may cost after `depth` tokens. */
typedef struct search_budget {
    cost_model model;
    double ms;     /* 0 = not asked */
    int64_t bytes; /* of keys, values and summaries; 0 = not asked */
    int64_t depth;
    const char *kv_type;
} search_budget;
/* The largest top_k (a multiple of 32, at most `depth`) with which the set is within the budget; 0 = none is. */
int search_largest_top_k(const search *at, const search_set *set, const search_budget *budget,
                         int64_t *top_k);
/* Of the sets that the greedy search came by, each with its largest top_k, the one of least loss on the texts
 * fitted on; the router's top_k and dense_below (the crossover with dense by the cost model) are set. Refused
 * when none is within the budget. */
int search_within_budget(search *at, int n_fit, const search_set *smallest, const int32_t *dropped,
                         const search_budget *budget, search_set *set, search_router *router);
/* Says what the plan is expected to cost, and what a decode step costs when it is timed, dense beside it. */
int search_say_cost(search *at, const search_set *set, const search_router *router,
                    const search_budget *budget);

#endif
