/* search_heads.c - budgets for single KV heads: by captured mass, or which heads need more than a window. */
#include <stdlib.h>
#include <string.h>

#include "eval/budgets.h"
#include "search.h"

void search_heads_free(search_heads *heads)
{
    free(heads->captured);
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
    budgets_split(heads->captured, n, heads->n_steps, n * mean, (int32_t)(mean / 5), steps);
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

static int new_heads(search *at, search_heads *heads, search_set *set)
{
    int32_t n = at->n_open * at->info.n_kv_heads;
    *heads = (search_heads){.n_heads = n, .is_streaming = calloc((size_t)n, sizeof *heads->is_streaming)};
    *set = (search_set){.n = at->n_open, .heads = heads};
    memcpy(set->has, at->is_open, sizeof set->has);
    return heads->is_streaming ? 0 : cli_refuse("plan search: no memory for %d heads", n);
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

typedef struct curves { /* of the tap */
    const search *at;
    search_heads *heads;
    int32_t first_head[SEARCH_MAX_LAYERS]; /* -1: the layer has a window of its own */
    float *sorted;                         /* [max_tokens] */
} curves;

/* Adds a row's curve: the mass of sinks and window, then of that and of the best 32, 64, ... of the others. */
static void add_curve(const heddle_tap_row *row, void *user)
{
    curves *into = user;
    search_heads *heads = into->heads;
    const search_router *router = &into->at->router;
    int32_t head = into->first_head[row->layer];
    int64_t window_from = row->position + 1 - router->n_sink > router->window
                              ? row->position + 1 - router->window
                              : router->n_sink,
            n = 0;
    if (head < 0 || !row->score) return;
    double *curve = &heads->captured[(int64_t)(head + row->list) * (heads->n_steps + 1)];
    double mass = 0;
    for (int64_t i = 0; i < row->n_units; i++)
        if (i >= router->n_sink && i < window_from)
            into->sorted[n++] = row->score[i];
        else
            mass += (double)row->score[i];
    qsort(into->sorted, (size_t)n, sizeof *into->sorted, search_descending);
    for (int64_t s = 0, i = 0; s <= heads->n_steps; s++) {
        curve[s] += mass;
        for (; i < n && i < (s + 1) * SEARCH_STEP; i++) mass += (double)into->sorted[i];
    }
}

static int add_curves(search *at, int n_fit, search_heads *heads)
{
    curves into = {.at = at, .heads = heads};
    int64_t max_tokens = 1;
    for (int32_t i = 0, n = 0; i < at->n_layers; i++) {
        into.first_head[i] = at->is_open[i] ? n : -1;
        n += at->is_open[i] ? at->info.n_kv_heads : 0;
    }
    for (int i = 0; i < n_fit; i++)
        if (at->texts[i].n_ids > max_tokens) max_tokens = at->texts[i].n_ids;
    heads->n_steps = (int32_t)((max_tokens + SEARCH_STEP - 1) / SEARCH_STEP);
    heads->captured = calloc((size_t)heads->n_heads * (size_t)(heads->n_steps + 1), sizeof *heads->captured);
    into.sorted = malloc((size_t)max_tokens * sizeof *into.sorted);
    int code = heads->captured && into.sorted
                   ? 0
                   : cli_refuse("plan search: no memory for the curves of %d heads", heads->n_heads);
    for (int i = 0; i < n_fit && !code; i++) code = search_observe(at, &at->texts[i], true, add_curve, &into);
    free(into.sorted);
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

int search_budgets(search *at, int n_fit, search_heads *heads, search_set *set)
{
    int code = new_heads(at, heads, set);
    candidate *tried = malloc((size_t)heads->n_heads * sizeof *tried);
    if (!code && !tried) code = cli_refuse("plan search: no memory for %d heads", heads->n_heads);
    if (!code) code = try_heads(at, n_fit, heads, set, tried);
    if (!code) code = add_curves(at, n_fit, heads);
    if (!code) weigh_curves(heads, tried);
    free(tried);
    return code;
}

/* ---- retrieval heads --------------------------------------------------------------------------- */

int search_duo(search *at, int n_fit, int32_t n_full, search_heads *heads, search_set *set,
               search_heads *control, search_set *control_set)
{
    int code = new_heads(at, heads, set);
    if (!code) code = new_heads(at, control, control_set);
    if (code) return code;
    int32_t n = heads->n_heads;
    candidate *tried = malloc((size_t)n * sizeof *tried);
    if (!tried) return cli_refuse("plan search: no memory for %d heads", n);
    while (n - heads->n_streaming > n_full && !code) {
        int32_t left = n - heads->n_streaming, take = (left + 3) / 4;
        if (take > left - n_full) take = left - n_full;
        code = try_heads(at, n_fit, heads, set, tried);
        if (code) break;
        qsort(tried, (size_t)left, sizeof *tried, by_deviation);
        for (int32_t i = 0; i < take; i++) heads->is_streaming[tried[i].head] = true;
        heads->n_streaming += take;
        double nll, deviation;
        code = search_deviation(at, set, &at->router, 0, n_fit, &nll, &deviation);
        if (!code)
            cli_note("%2d heads read everything: a token's loss is off by %.4f in the mean", left - take,
                     deviation);
    }
    free(tried);
    uint64_t random = 1;
    while (!code && control->n_streaming < heads->n_streaming) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        int32_t head = (int32_t)((random >> 33) % (uint64_t)n);
        control->n_streaming += !control->is_streaming[head];
        control->is_streaming[head] = true;
    }
    return code;
}
