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
    const char *score; /* one of search_scores (under "attention_mass" these layers stay dense), or "none" */
    int64_t top_k, n_sink, window, dense_below;
} search_router;

typedef struct search_text {
    int32_t *ids; /* [n_ids] */
    int64_t n_ids;
    heddle_session *session; /* has read the first n_ids - n_rows tokens, densely */
    double dense_nll;        /* mean over the last rows */
    float *row_nll;          /* [n_rows] of dense */
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

/* search_heads.c: what each KV head of each layer that makes lists reads; it has a list of its own, which heads
 * of the layers after it read up to the next such layer, by the set's map. */
typedef struct search_heads {
    int32_t n_heads;     /* these layers * KV heads, layer by layer */
    int32_t *n_readers;  /* [n_heads] layers that read the head's list, its own among them */
    int32_t n_steps;     /* of a curve, SEARCH_STEP tokens each */
    double *captured;    /* [n_heads, n_steps + 1] mass by list length; NULL: each reads all or a window */
    bool *is_streaming;  /* [n_heads] reads sinks and window only */
    int32_t n_streaming; /* heads */
} search_heads;

typedef struct search_set { /* layers that make a list, or one for each KV head */
    bool has[SEARCH_MAX_LAYERS];
    bool is_dense[SEARCH_MAX_LAYERS]; /* reads and makes no list */
    int32_t n;
    bool is_mapped; /* one list for each KV head; KV head h of a reader reads list map[layer][h] */
    int16_t map[SEARCH_MAX_LAYERS][SEARCH_MAX_HEADS];
    const search_heads *heads; /* borrowed: of the layers that `has` names; NULL: all lists are made alike */
} search_set;

/* The scores that a search can be for: they choose single tokens and need no further member. NULL-terminated. */
extern const char *const search_scores[];

/* Adds a text of at most n_tokens of the file; then, once all are there, reads it densely. 0, or an exit code. */
int search_add_text(search *at, const char *path, int64_t n_tokens);
int search_read_text(search *at, search_text *text);
void search_free(search *at);
/* The plan file of a set, malloc'd; for this very model. */
char *search_plan_text(const search *at, const search_set *set, const search_router *router, const char *name,
                       const char *about);
/* The same, parsed; for this engine. 0, or an exit code. */
int search_plan(const search *at, const search_set *set, const search_router *router, heddle_plan **plan);
/* Mean NLL per token over texts [first, last) under the set's plan. */
int search_loss(search *at, const search_set *set, const search_router *router, int first, int last,
                double *nll);
/* The same, and the mean over the tokens of how far their NLL is from dense's, which no lucky token makes smaller. */
int search_deviation(search *at, const search_set *set, const search_router *router, int first, int last,
                     double *nll, double *deviation);
/* Starts from all open layers and takes away, again and again, the layer whose loss is smallest to lose, until
 * n_lists are left; curve[n] = the loss with n lists, dropped[n] = the layer that was taken to come to n. */
int search_greedy(search *at, int n_fit, int32_t n_lists, search_set *set, double *curve, int32_t *dropped);
/* The n_lists layers (the first open one among them) whose lists capture the most mass of the layers that read
 * them, exactly, by dynamic programming over the texts' last rows. is_mapped: lists are per KV head, and every
 * reader's head takes the list that captures most of its own mass. */
int search_dp(search *at, int n_fit, int32_t n_lists, bool is_mapped, search_set *set);

/* The maps alone, of the layers that the set has. */
int search_map(search *at, int n_fit, search_set *set);

/* As HyLRA (2026; the exact form of its public code, mended): the 9 % of the layers whose mass is least concentrated
 * stay dense; of the others about n_lists make a list for each KV head, so that the least overlap between a
 * reader's own list and the one it reads is largest, then the sum of the overlaps (eval/reuse.h). */
int search_hylra(search *at, int n_fit, int32_t n_lists, search_set *set);
/* search_dp.c: fn sees every open layer's attention mass, one list for all heads or one a KV head, of the first
 * observed of the text's last rows, all layers dense. 0, or an exit code. */
enum { SEARCH_OBSERVED_ROWS = 32 }; /* at most, and --rows */
int64_t search_observed_rows(const search *at);
int search_observe(search *at, const search_text *text, bool is_by_head, heddle_tap_fn fn, void *user);

/* search_heads.c */
enum { SEARCH_STEP = 32 }; /* tokens */
void search_heads_free(search_heads *heads);
/* The tokens of each list: router->top_k a head in the mean over all heads of all layers that read them, where the
 * set's heads have curves split by what they capture, a fifth of it for every head at least, the length of the texts at
 * most; else 0 for a streaming head, -1 (everything) for another.
 * top_k [n_heads]. 0, or an exit code. */
int search_head_top_k(const search_heads *heads, int64_t mean_top_k, int64_t *top_k);
/* In the manner of Ada-KV (2024), layers compared too: the curves of mass by list length of the texts' last rows, each
 * weighed by what the head's streaming alone costs (the deviation), so that a head of flat attention which does
 * nothing is given little. is_list [n_layers]: the layers that make lists, the first open one among them. Where they
 * are not all, each head of the others reads the list that captures most of its mass (search_map); the curve of a list
 * counts what its tokens, in its own head's order, capture in every head that reads them. */
int search_budgets(search *at, int n_fit, const bool *is_list, search_heads *heads, search_set *set);

/* search_budget.c: what a decode step may cost after `depth` tokens. */
typedef struct search_budget {
    cost_model model;
    double ms;     /* 0 = not asked */
    int64_t bytes; /* of keys, values and summaries; 0 = not asked */
    int64_t depth;
    const char *kv_type;
} search_budget;
/* Whether the set is within the budget; what it costs: a sentence's part of size bytes, or NULL. */
int search_is_within(const search *at, const search_set *set, const search_router *router,
                     const search_budget *budget, bool *is_within, char *cost, size_t size);
/* Sets the router's dense_below: the most tokens with which dense is still no slower, by the cost model. */
int search_find_crossover(const search *at, const search_set *set, const search_budget *budget,
                          search_router *router);
/* Of the sets that the greedy search came by, each with its largest top_k, the one of least loss on the texts
 * fitted on; the router's top_k is set. Refused when none is within the budget. */
int search_within_budget(search *at, int n_fit, const search_set *smallest, const int32_t *dropped,
                         const search_budget *budget, search_set *set, search_router *router);
/* search_heads.c, in the manner of DuoAttention (2024), heads found by the deviation from dense, not by training gates:
 * heads read sinks and window only, until no more than n_full (0: whatever number) read everything and the set is
 * within the budget (ms and bytes 0: any). The heads are tried one by one, the quarter of those left whose loss
 * deviates least goes, and again. Refused where no set of heads is within the budget.
 * control: as many heads, chosen at random (seed 1). */
int search_duo(search *at, int n_fit, int32_t n_full, const search_budget *budget, search_heads *heads,
               search_set *set, search_heads *control, search_set *control_set);
/* Says what the plan is expected to cost, and what a decode step costs when it is timed, dense beside it. */
int search_say_cost(search *at, const search_set *set, const search_router *router,
                    const search_budget *budget);

#endif
