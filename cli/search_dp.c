/* search_dp.c - the search by captured attention mass, in the manner of Kascade (2025).
 *
 * One dense pass observes every layer: for the last rows of a text, the mass of each list of layer j (one, or one
 * a KV head) and the ids that it would choose. captured[i, g, j, h] = sum over rows of (mass of list h of layer j on
 * the ids of list g of layer i) / (on its own ids), i <= j; a reader's head takes the best g: the head map. What is
 * maximised over the anchors is the sum over layers of the mean over heads (eval/anchors.h). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/anchors.h"
#include "eval/reuse.h"
#include "eval/stats.h"
#include "search.h"

typedef struct observer {
    int32_t n_layers, n_lists;
    int32_t *ids; /* [rows, n_layers, n_lists, 1 + max_ids]: how many, then which */
    int64_t max_ids, first_position, n_rows;
    double *captured; /* [n_layers, n_lists, n_layers, n_lists] sums */
    double *shared;   /* the same: shares of the later list's ids that the earlier one holds; or NULL */
    double *spread;   /* [n_layers]: shares of the visible tokens that 90 % of the mass takes, summed */
    float *sorted;    /* [max_tokens] */
    int64_t n_seen;   /* rows, over all texts */
} observer;

static int32_t *ids_at(const observer *at, int64_t row, int32_t layer, int32_t list)
{
    return at->ids + ((row * at->n_layers + layer) * at->n_lists + list) * (at->max_ids + 1);
}

static double *captured_at(const observer *at, int32_t from, int32_t from_list, int32_t to, int32_t to_list)
{
    return &at->captured[(((int64_t)from * at->n_lists + from_list) * at->n_layers + to) * at->n_lists +
                         to_list];
}

static int32_t n_common(const int32_t *a, const int32_t *b)
{
    int32_t n = 0;
    for (int32_t i = 1, j = 1; i <= a[0] && j <= b[0];) {
        n += a[i] == b[j];
        int32_t x = a[i], y = b[j];
        i += x <= y;
        j += y <= x;
    }
    return n;
}

/* The share of the units that 90 % of a row's mass takes. */
static double spread_of(observer *at, const heddle_tap_row *row)
{
    double all = 0, sum = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < row->n_units; i++) all += (double)(at->sorted[i] = row->score[i]);
    eval_sort_down(at->sorted, row->n_units);
    while (n < row->n_units && sum < 0.9 * all) sum += (double)at->sorted[n++];
    return (double)n / (double)row->n_units;
}

/* Rows come layer by layer, several rows a layer: the ids of the layers below are kept for each row. */
static void observe(const heddle_tap_row *row, void *user)
{
    observer *at = user;
    int64_t r = row->position - at->first_position;
    if (r < 0 || r >= at->n_rows || !row->score || row->n_ids > at->max_ids) return;
    int32_t *own = ids_at(at, r, row->layer, row->list);
    own[0] = (int32_t)row->n_ids;
    memcpy(own + 1, row->ids, (size_t)row->n_ids * sizeof *own);
    if (at->shared) {
        for (int32_t layer = 0; layer <= row->layer; layer++)
            for (int32_t list = 0; list < at->n_lists; list++)
                at->shared[captured_at(at, layer, list, row->layer, row->list) - at->captured] +=
                    (double)n_common(ids_at(at, r, layer, list), own) / own[0];
        at->spread[row->layer] += spread_of(at, row) / at->n_lists;
        at->n_seen += row->layer == 0 && row->list == 0;
    }
    double all = 0;
    for (int64_t i = 0; i < row->n_ids; i++) all += (double)row->score[row->ids[i]];
    for (int32_t layer = 0; layer <= row->layer && all > 0; layer++)
        for (int32_t list = 0; list < at->n_lists; list++) {
            const int32_t *ids = ids_at(at, r, layer, list);
            double mass = 0;
            for (int32_t i = 0; i < ids[0]; i++) mass += (double)row->score[ids[1 + i]];
            *captured_at(at, layer, list, row->layer, row->list) += mass / all;
        }
}

/* How well layer `to` is served by the lists of layer `from`; map (may be NULL): the list of each head. */
static double served(const observer *at, int32_t from, int32_t to, int16_t *map)
{
    double sum = 0;
    for (int32_t h = 0; h < at->n_lists; h++) {
        int32_t best = 0;
        for (int32_t g = 1; g < at->n_lists; g++)
            if (*captured_at(at, from, g, to, h) > *captured_at(at, from, best, to, h)) best = g;
        sum += *captured_at(at, from, best, to, h) / at->n_lists;
        if (map) map[h] = (int16_t)best;
    }
    return sum;
}

int64_t search_observed_rows(const search *at)
{
    return at->n_rows < SEARCH_OBSERVED_ROWS ? at->n_rows : SEARCH_OBSERVED_ROWS;
}

int search_observe(search *at, const search_text *text, bool is_by_head, heddle_tap_fn fn, void *user)
{
    char json[512];
    heddle_plan *plan;
    heddle_session *fork = NULL;
    snprintf(
        json, sizeof json,
        "{\"heddle_plan\": 1, \"name\": \"observer\", \"variants\": [{\"decode\": [{\"layers\": \"all\", "
        "\"router\": {\"lists\": \"%s\", \"top_k\": %lld, \"sinks\": %lld, \"window\": %lld}}]}]}",
        is_by_head ? "kv_head" : "layer", (long long)at->router.top_k, (long long)at->router.n_sink,
        (long long)at->router.window);
    heddle_status status = heddle_plan_parse(&plan, json, (int64_t)strlen(json), "observer");
    if (status) return cli_fail(status);
    status = heddle_session_fork_as(&fork, text->session, plan, 1);
    if (!status) {
        heddle_session_set_tap(fork, fn, user);
        status = heddle_session_extend(fork, text->ids + text->n_ids - at->n_rows, search_observed_rows(at),
                                       NULL, NULL);
    }
    heddle_session_free(fork);
    heddle_plan_free(plan);
    return status ? cli_fail(status) : 0;
}

static int observe_text(search *at, const search_text *text, observer *into)
{
    into->first_position = text->n_ids - at->n_rows;
    into->n_rows = search_observed_rows(at);
    memset(into->ids, 0,
           (size_t)(into->n_rows * into->n_layers * into->n_lists * (into->max_ids + 1)) * sizeof *into->ids);
    return search_observe(at, text, into->n_lists > 1, observe, into);
}

/* The best n_lists anchors among the open layers, the first open one forced. */
static int solve(const search *at, const observer *seen, int32_t n_lists, search_set *set)
{
    int32_t n = 0, open[SEARCH_MAX_LAYERS];
    bool is_anchor[SEARCH_MAX_LAYERS];
    for (int32_t i = 0; i < at->n_layers; i++)
        if (at->is_open[i]) open[n++] = i;
    double *by = malloc((size_t)n * (size_t)n * sizeof *by);
    for (int32_t l = 0; l < n && by; l++)
        for (int32_t j = l; j < n; j++) by[l * n + j] = served(seen, open[l], open[j], NULL);
    bool is_solved = by && anchors_solve(by, n, n_lists, is_anchor);
    free(by);
    if (!is_solved) return cli_refuse("plan search: no memory for a table of %d layers", n);
    *set = (search_set){.n = n_lists};
    for (int32_t i = 0; i < n; i++) set->has[open[i]] = is_anchor[i];
    return 0;
}

/* Observes the texts fitted on; the observer's memory is the caller's to free, refused or not. */
static int watch(search *at, int n_fit, bool is_by_head, observer *into)
{
    *into = (observer){.n_layers = at->n_layers,
                       .n_lists = is_by_head ? at->info.n_kv_heads : 1,
                       .max_ids = at->router.top_k + at->router.n_sink + at->router.window + 1};
    if (into->n_lists > SEARCH_MAX_HEADS)
        return cli_refuse("plan search: %d KV heads: at most %d can be mapped", into->n_lists,
                          SEARCH_MAX_HEADS);
    size_t n = (size_t)(at->n_layers * into->n_lists);
    into->ids = malloc(SEARCH_OBSERVED_ROWS * n * (size_t)(into->max_ids + 1) * sizeof *into->ids);
    into->captured = calloc(n * n, sizeof *into->captured);
    int code = into->ids && into->captured
                   ? 0
                   : cli_refuse("plan search: no memory for the lists of %d layers", at->n_layers);
    for (int i = 0; i < n_fit && !code; i++) code = observe_text(at, &at->texts[i], into);
    return code;
}

/* Each head of a layer takes the list of the nearest list layer below that captures most of its mass. */
static void map_heads(const search *at, const observer *seen, search_set *set)
{
    set->is_mapped = true;
    for (int32_t layer = 0, owner = -1; layer < at->n_layers; layer++) {
        if (set->has[layer]) owner = layer;
        if (owner >= 0 && at->is_open[layer]) served(seen, owner, layer, set->map[layer]);
    }
}

int search_dp(search *at, int n_fit, int32_t n_lists, bool is_mapped, search_set *set)
{
    observer seen;
    int code = watch(at, n_fit, is_mapped, &seen);
    if (!code) code = solve(at, &seen, n_lists, set);
    if (!code && is_mapped) map_heads(at, &seen, set);
    free(seen.ids);
    free(seen.captured);
    return code;
}

int search_map(search *at, int n_fit, search_set *set)
{
    observer seen;
    int code = watch(at, n_fit, true, &seen);
    if (!code) map_heads(at, &seen, set);
    free(seen.ids);
    free(seen.captured);
    return code;
}

/* Overlaps of open layers as the programme wants them: a KV head's with the same head's, the least over the heads;
 * none with a layer that stays dense. */
static void fill_overlap(const observer *seen, const int32_t *open, int32_t n, const search_set *set,
                         double *overlap)
{
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i; j < n; j++) {
            double least = 1;
            for (int32_t h = 0; h < seen->n_lists; h++) {
                double sum = seen->shared[captured_at(seen, open[i], h, open[j], h) - seen->captured];
                least = fmin(least, sum / (double)seen->n_seen);
            }
            bool is_apart = i != j && (set->is_dense[open[i]] || set->is_dense[open[j]]);
            overlap[i * n + j] = i == j ? 1 : is_apart ? 0 : least;
        }
}

/* The n_dense layers whose mass is least concentrated stay dense. */
static void choose_dense(const observer *seen, const int32_t *open, int32_t n, int32_t n_dense,
                         search_set *set)
{
    for (int32_t d = 0; d < n_dense; d++) {
        int32_t widest = -1;
        for (int32_t i = 0; i < n; i++)
            if (!set->is_dense[open[i]] && (widest < 0 || seen->spread[open[i]] > seen->spread[widest]))
                widest = open[i];
        set->is_dense[widest] = true;
    }
}

int search_hylra(search *at, int n_fit, int32_t n_lists, search_set *set)
{
    observer into = {.n_layers = at->n_layers,
                     .n_lists = at->info.n_kv_heads,
                     .max_ids = at->router.top_k + at->router.n_sink + at->router.window + 1};
    int32_t n_open = 0, open[SEARCH_MAX_LAYERS], source[SEARCH_MAX_LAYERS];
    int64_t n_tokens = 1;
    for (int32_t i = 0; i < at->n_layers; i++)
        if (at->is_open[i]) open[n_open++] = i;
    for (int i = 0; i < n_fit; i++) n_tokens = n_tokens > at->texts[i].n_ids ? n_tokens : at->texts[i].n_ids;
    if (into.n_lists > SEARCH_MAX_HEADS)
        return cli_refuse("plan search: %d KV heads: at most %d can be mapped", into.n_lists,
                          SEARCH_MAX_HEADS);
    size_t n = (size_t)(at->n_layers * into.n_lists);
    into.ids = malloc(SEARCH_OBSERVED_ROWS * n * (size_t)(into.max_ids + 1) * sizeof *into.ids);
    into.captured = calloc(n * n, sizeof *into.captured);
    into.shared = calloc(n * n, sizeof *into.shared);
    into.spread = calloc((size_t)at->n_layers, sizeof *into.spread);
    into.sorted = malloc((size_t)n_tokens * sizeof *into.sorted);
    double *overlap = calloc((size_t)n_open * (size_t)n_open, sizeof *overlap);
    int code = into.ids && into.captured && into.shared && into.spread && into.sorted && overlap
                   ? 0
                   : cli_refuse("plan search: no memory for the lists of %d layers", at->n_layers);
    for (int i = 0; i < n_fit && !code; i++) code = observe_text(at, &at->texts[i], &into);
    *set = (search_set){.is_mapped = true};
    if (!code) {
        choose_dense(&into, open, n_open, (9 * n_open + 99) / 100, set);
        fill_overlap(&into, open, n_open, set, overlap);
        int32_t n_dense = (9 * n_open + 99) / 100; /* each costs a change, and the layer after it another */
        if (!reuse_solve(overlap, n_open, n_lists - 1 + 2 * n_dense, source))
            code = cli_refuse("plan search: no memory for a table of %d layers", n_open);
    }
    for (int32_t i = 0; i < n_open && !code; i++) {
        bool makes = source[i] == i && !set->is_dense[open[i]];
        set->has[open[i]] = makes;
        set->n += makes;
        for (int32_t h = 0; h < into.n_lists; h++) set->map[open[i]][h] = (int16_t)h;
    }
    free(into.ids);
    free(into.captured);
    free(into.shared);
    free(into.spread);
    free(into.sorted);
    free(overlap);
    return code;
}
