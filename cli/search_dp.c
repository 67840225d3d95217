/* search_dp.c - the search by captured attention mass, in the manner of Kascade (2025).
 *
 * One dense pass observes every layer: for the last rows of a text, layer j's mass and the list that it would
 * make. captured[i][j] = mean over rows of (mass of layer j on layer i's list) / (on its own list), i <= j. With
 * anchors a_1 < a_2 < ... a layer reads the list of the nearest anchor below, and what is maximised is the sum of
 * captured over all layers: V[a][i] = max_l V[a-1][l] + sum_{j=l}^{i-1} captured[l][j]. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "search.h"

typedef struct observer {
    int32_t n_layers, *ids; /* [n_layers, max_ids] of the present row */
    int64_t n_ids[SEARCH_MAX_LAYERS], max_ids, first_position, n_rows;
    double *captured; /* [n_layers, n_layers] sums */
    bool has_row[SEARCH_MAX_LAYERS];
} observer;

/* Rows come layer by layer, several rows a layer: ids are kept for each of them. */
static void observe(const heddle_tap_row *row, void *user)
{
    observer *at = user;
    int64_t r = row->position - at->first_position;
    if (r < 0 || r >= at->n_rows || !row->score || row->n_ids > at->max_ids) return;
    int32_t *own = at->ids + (r * at->n_layers + row->layer) * (at->max_ids + 1);
    own[0] = (int32_t)row->n_ids;
    memcpy(own + 1, row->ids, (size_t)row->n_ids * sizeof *own);
    double all = 0;
    for (int64_t i = 0; i < row->n_ids; i++) all += (double)row->score[row->ids[i]];
    for (int32_t layer = 0; layer <= row->layer && all > 0; layer++) {
        const int32_t *ids = at->ids + (r * at->n_layers + layer) * (at->max_ids + 1);
        double mass = 0;
        for (int32_t i = 0; i < ids[0]; i++) mass += (double)row->score[ids[1 + i]];
        at->captured[layer * at->n_layers + row->layer] += mass / all;
    }
}

enum { OBSERVED_ROWS = 32 };

static int observe_text(search *at, const search_text *text, observer *into)
{
    char json[512];
    heddle_plan *plan;
    heddle_session *fork = NULL;
    int64_t before = text->n_ids - at->n_rows, n = at->n_rows < OBSERVED_ROWS ? at->n_rows : OBSERVED_ROWS;
    snprintf(
        json, sizeof json,
        "{\"heddle_plan\": 1, \"name\": \"observer\", \"variants\": [{\"decode\": [{\"layers\": \"all\", "
        "\"router\": {\"top_k\": %lld, \"sinks\": %lld, \"window\": %lld}}]}]}",
        (long long)at->router.top_k, (long long)at->router.n_sink, (long long)at->router.window);
    heddle_status status = heddle_plan_parse(&plan, json, (int64_t)strlen(json), "observer");
    if (status) return cli_fail(status);
    into->first_position = before;
    into->n_rows = n;
    memset(into->ids, 0, (size_t)(n * into->n_layers * (into->max_ids + 1)) * sizeof *into->ids);
    status = heddle_session_fork_as(&fork, text->session, plan, 1);
    if (!status) {
        heddle_session_set_tap(fork, observe, into);
        status = heddle_session_extend(fork, text->ids + before, n, NULL, NULL);
    }
    heddle_session_free(fork);
    heddle_plan_free(plan);
    return status ? cli_fail(status) : 0;
}

/* The best n_lists anchors among the open layers, the first open one forced. */
static int solve(const search *at, const double *captured, int32_t n_lists, search_set *set)
{
    int32_t n = 0, open[SEARCH_MAX_LAYERS];
    for (int32_t i = 0; i < at->n_layers; i++)
        if (at->is_open[i]) open[n++] = i;
    double *best = malloc((size_t)(n_lists + 1) * (size_t)(n + 1) * sizeof *best);
    int32_t *from = malloc((size_t)(n_lists + 1) * (size_t)(n + 1) * sizeof *from);
    if (!best || !from) {
        free(best);
        free(from);
        return cli_refuse("plan search: no memory for a table of %d layers", n);
    }
    /* best[a, i]: layers before i are served by a anchors; i is where the next anchor stands (n: the end) */
    for (int32_t a = 0; a <= n_lists; a++)
        for (int32_t i = 0; i <= n; i++) {
            double *value = &best[a * (n + 1) + i];
            *value = a == 0 && i == 0 ? 0 : -1;
            from[a * (n + 1) + i] = -1;
            for (int32_t l = 0; a > 0 && l < i; l++) {
                double before = best[(a - 1) * (n + 1) + l], sum = before;
                if (before < 0) continue;
                for (int32_t j = l; j < i; j++) sum += captured[open[l] * at->n_layers + open[j]];
                if (sum > *value) {
                    *value = sum;
                    from[a * (n + 1) + i] = l;
                }
            }
        }
    *set = (search_set){.n = n_lists};
    for (int32_t a = n_lists, i = n; a > 0; a--) {
        i = from[a * (n + 1) + i];
        set->has[open[i]] = true;
    }
    free(best);
    free(from);
    return 0;
}

int search_dp(search *at, int n_fit, int32_t n_lists, search_set *set)
{
    observer into = {.n_layers = at->n_layers,
                     .max_ids = at->router.top_k + at->router.n_sink + at->router.window + 1};
    into.ids = malloc((size_t)(OBSERVED_ROWS * at->n_layers * (into.max_ids + 1)) * sizeof *into.ids);
    into.captured = calloc((size_t)at->n_layers * (size_t)at->n_layers, sizeof *into.captured);
    int code = into.ids && into.captured
                   ? 0
                   : cli_refuse("plan search: no memory for the lists of %d layers", at->n_layers);
    for (int i = 0; i < n_fit && !code; i++) code = observe_text(at, &at->texts[i], &into);
    if (!code) code = solve(at, into.captured, n_lists, set);
    free(into.ids);
    free(into.captured);
    return code;
}
