/* search_heads.c - budgets for single KV heads: by captured mass, or which heads need more than a window. */
#include <stdlib.h>
#include <string.h>

#include "eval/budgets.h"
#include "search.h"

void search_heads_free(search_heads *heads)
{
    free(heads->captured);
    free(heads->n_readers);
    free(heads->is_streaming);
    *heads = (search_heads){0};
}

int search_head_top_k(const search_heads *heads, int64_t mean_top_k, int64_t *top_k)
{
    int32_t n = heads->n_heads;
    for (int32_t i = 0; i < n && !heads->captured; i++) top_k[i] = heads->is_streaming[i] ? 0 : -1;
    if (!heads->captured) return 0;
    int32_t *steps = malloc((size_t)n * sizeof *steps);
    if (!steps) return cli_refuse("plan search: no memory for the budgets of %d heads", n);
    int64_t mean = mean_top_k / SEARCH_STEP < heads->n_steps ? mean_top_k / SEARCH_STEP : heads->n_steps;
    int64_t n_total = 0;
    for (int32_t i = 0; i < n; i++) n_total += mean * heads->n_readers[i];
    budgets_split(heads->captured, heads->n_readers, n, heads->n_steps, n_total, (int32_t)(mean / 5), steps);
    for (int32_t i = 0; i < n; i++) top_k[i] = (int64_t)steps[i] * SEARCH_STEP;
    free(steps);
    return 0;
}

/* ---- one head at a time ------------------------------------------------------------------------ */

typedef struct candidate {
    double deviation;
    int32_t head;
} candidate;

static int by_deviation(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->deviation != y->deviation) return x->deviation < y->deviation ? -1 : 1;
    return x->head - y->head;
}

/* Heads of the layers is_list, none streaming yet, and the set that reads by them. */
static int new_heads(search *at, int n_fit, const bool *is_list, search_heads *heads, search_set *set)
{
    int32_t n_kv_heads = at->info.n_kv_heads, n = 0;
    int code = 0;
    *set = (search_set){.heads = heads};
    memcpy(set->has, is_list, sizeof set->has);
    for (int32_t i = 0; i < at->n_layers; i++) set->n += set->has[i];
    n = set->n * n_kv_heads;
    *heads = (search_heads){.n_heads = n,
                            .n_readers = calloc((size_t)n, sizeof *heads->n_readers),
                            .is_streaming = calloc((size_t)n, sizeof *heads->is_streaming)};
    if (!heads->is_streaming || !heads->n_readers)
        return cli_refuse("plan search: no memory for %d heads", n);
    for (int32_t i = 0; i < at->n_layers; i++)
        for (int32_t h = 0; h < n_kv_heads && h < SEARCH_MAX_HEADS; h++) set->map[i][h] = (int16_t)h;
    if (set->n < at->n_open) code = search_map(at, n_fit, set);
    for (int32_t i = 0, last = 0; i < at->n_layers && !code; i++) {
        if (!at->is_open[i]) continue;
        last += set->has[i];
        for (int32_t h = 0; h < n_kv_heads; h++)
            heads->n_readers[(last - 1) * n_kv_heads + (set->has[i] ? h : set->map[i][h])]++;
    }
    return code;
}

/* The deviation of each head that still reads everything, were it a streaming one. */
static int try_heads(search *at, int n_fit, search_heads *heads, const search_set *set, candidate *tried)
{
    int code = 0;
    double nll;
    for (int32_t i = 0, n = 0; i < heads->n_heads && !code; i++) {
        if (heads->is_streaming[i]) continue;
        heads->is_streaming[i] = true;
        tried[n].head = i;
        code = search_deviation(at, set, &at->router, 0, n_fit, &nll, &tried[n++].deviation);
        heads->is_streaming[i] = false;
    }
    return code;
}

/* ---- captured mass ----------------------------------------------------------------------------- */

typedef struct curves { /* of the tap: rows come layer by layer, several rows a layer */
    const search *at;
    search_heads *heads;
    int32_t
        first_head[SEARCH_MAX_LAYERS]; /* of the layer whose lists it reads; -1: it has a window of its own */
    const search_set *set;
    budgets_unit *order; /* [rows, KV heads, max_tokens] by the list's own head, the best first */
    int64_t first_position, max_tokens;
} curves;

/* Adds a row's curve: the mass of sinks and window, then of that and of the first 32, 64, ... of the others in the
 * order of the head whose list it reads. */
static void add_curve(const heddle_tap_row *row, void *user)
{
    curves *into = user;
    search_heads *heads = into->heads;
    const search_router *router = &into->at->router;
    int32_t head = into->first_head[row->layer];
    int64_t window_from = row->position + 1 - router->n_sink > router->window
                              ? row->position + 1 - router->window
                              : router->n_sink,
            n = window_from > router->n_sink ? window_from - router->n_sink : 0;
    if (head < 0 || !row->score) return;
    int32_t list = into->set->has[row->layer] ? row->list : into->set->map[row->layer][row->list];
    double *curve = &heads->captured[(int64_t)(head + list) * (heads->n_steps + 1)];
    budgets_unit *order = into->order +
                          ((row->position - into->first_position) * into->at->info.n_kv_heads + list) *
                              into->max_tokens;
    double forced = 0;
    for (int64_t i = 0; i < row->n_units; i++)
        if (i < router->n_sink || i >= window_from) forced += (double)row->score[i];
    if (into->set->has[row->layer]) budgets_order(row->score, router->n_sink, n, order);
    budgets_add_curve(row->score, order, n, forced, SEARCH_STEP, heads->n_steps, curve);
}

static int add_curves(search *at, int n_fit, const search_set *set, search_heads *heads)
{
    curves into = {.at = at, .heads = heads, .set = set, .max_tokens = 1};
    for (int32_t i = 0, n = 0; i < at->n_layers; i++) {
        n += set->has[i];
        into.first_head[i] = at->is_open[i] ? (n - 1) * at->info.n_kv_heads : -1;
    }
    for (int i = 0; i < n_fit; i++)
        if (at->texts[i].n_ids > into.max_tokens) into.max_tokens = at->texts[i].n_ids;
    heads->n_steps = (int32_t)((into.max_tokens + SEARCH_STEP - 1) / SEARCH_STEP);
    heads->captured = calloc((size_t)heads->n_heads * (size_t)(heads->n_steps + 1), sizeof *heads->captured);
    into.order = malloc((size_t)(search_observed_rows(at) * at->info.n_kv_heads * into.max_tokens) *
                        sizeof *into.order);
    int code = heads->captured && into.order
                   ? 0
                   : cli_refuse("plan search: no memory for the curves of %d heads", heads->n_heads);
    for (int i = 0; i < n_fit && !code; i++) {
        into.first_position = at->texts[i].n_ids - at->n_rows;
        code = search_observe(at, &at->texts[i], true, add_curve, &into);
    }
    free(into.order);
    return code;
}

/* Mass that a head lacks costs what it was seen to cost where the head lacked all outside sinks and window. */
static void weigh_curves(search_heads *heads, const candidate *tried)
{
    for (int32_t i = 0; i < heads->n_heads; i++) {
        double *curve = &heads->captured[(int64_t)i * (heads->n_steps + 1)];
        double lacked = curve[heads->n_steps] - curve[0],
               weight = lacked > 0 ? tried[i].deviation / lacked : 0;
        for (int32_t s = 0; s <= heads->n_steps; s++) curve[s] *= weight;
    }
}

int search_budgets(search *at, int n_fit, const bool *is_list, search_heads *heads, search_set *set)
{
    int code = new_heads(at, n_fit, is_list, heads, set);
    candidate *tried = malloc((size_t)heads->n_heads * sizeof *tried);
    if (!code && !tried) code = cli_refuse("plan search: no memory for %d heads", heads->n_heads);
    if (!code) code = try_heads(at, n_fit, heads, set, tried);
    if (!code) code = add_curves(at, n_fit, set, heads);
    if (!code) weigh_curves(heads, tried);
    free(tried);
    return code;
}

/* ---- retrieval heads --------------------------------------------------------------------------- */

typedef struct duo { /* what ends the search */
    int32_t n_full;  /* the most heads that may read everything; 0 = whatever number */
    const search_budget *budget;
    char cost[160]; /* of the set when it was last priced */
} duo;

static int is_done(search *at, duo *wanted, const search_heads *heads, const search_set *set, bool *is_over)
{
    bool has_budget = wanted->budget->ms > 0 || wanted->budget->bytes > 0;
    *is_over = !wanted->n_full || heads->n_heads - heads->n_streaming <= wanted->n_full;
    return *is_over && has_budget ? search_is_within(at, set, &at->router, wanted->budget, is_over,
                                                     wanted->cost, sizeof wanted->cost)
                                  : 0;
}

/* The quarter of the heads that deviates least goes, or less where that is enough. */
static int drop_heads(search *at, duo *wanted, int n_fit, search_heads *heads, const search_set *set,
                      candidate *tried, bool *is_over)
{
    int32_t left = heads->n_heads - heads->n_streaming, take = (left + 3) / 4;
    double nll, deviation;
    int code = try_heads(at, n_fit, heads, set, tried);
    if (code) return code;
    qsort(tried, (size_t)left, sizeof *tried, by_deviation);
    for (int32_t i = 0; i < take && !*is_over && !code; i++) {
        heads->is_streaming[tried[i].head] = true;
        heads->n_streaming++;
        code = is_done(at, wanted, heads, set, is_over);
    }
    if (!code) code = search_deviation(at, set, &at->router, 0, n_fit, &nll, &deviation);
    if (!code)
        cli_note("%2d heads read everything: a token's loss is off by %.4f in the mean",
                 heads->n_heads - heads->n_streaming, deviation);
    return code;
}

int search_duo(search *at, int n_fit, int32_t n_full, const search_budget *budget, search_heads *heads,
               search_set *set, search_heads *control, search_set *control_set)
{
    duo wanted = {.n_full = n_full, .budget = budget};
    bool is_over = false;
    int code = new_heads(at, n_fit, at->is_open, heads, set);
    if (!code) code = new_heads(at, n_fit, at->is_open, control, control_set);
    if (code) return code;
    int32_t n = heads->n_heads;
    candidate *tried = malloc((size_t)n * sizeof *tried);
    if (!tried) return cli_refuse("plan search: no memory for %d heads", n);
    code = is_done(at, &wanted, heads, set, &is_over);
    while (!is_over && heads->n_streaming < n && !code)
        code = drop_heads(at, &wanted, n_fit, heads, set, tried, &is_over);
    free(tried);
    if (!code && !is_over)
        code = cli_refuse("plan search: no plan is within the budget: sinks and window of all %d heads %s", n,
                          wanted.cost);
    uint64_t random = 1;
    while (!code && control->n_streaming < heads->n_streaming) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        int32_t head = (int32_t)((random >> 33) % (uint64_t)n);
        control->n_streaming += !control->is_streaming[head];
        control->is_streaming[head] = true;
    }
    return code;
}
