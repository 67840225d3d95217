/* search.c - candidates judged by loss, and the greedy search over them. */
#include "search.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const search_scores[] = {"attention_mass", "key_i8", "key_i4", "key_pq2", "key_pq4", NULL};

/* The rules of the layers that read lists: one for all, or one a layer with its head map. */
static void add_readers(const search *at, const search_set *set, cli_text *text)
{
    char line[64 + 8 * SEARCH_MAX_HEADS];
    if (set->n >= at->n_open) return;
    if (!set->is_mapped) {
        const char *rest =
            ",\n        {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}";
        cli_text_add(text, rest, (int64_t)strlen(rest));
        return;
    }
    for (int32_t i = 0, owner = -1; i < at->n_layers; i++) {
        if (set->has[i]) owner = i;
        if (set->has[i] || set->is_dense[i] || !at->is_open[i]) continue;
        int n = snprintf(
            line, sizeof line,
            ",\n        {\"layers\": [%d], \"operator\": \"token_list\", \"share\": %d, \"head_map\": [", i,
            owner);
        for (int32_t h = 0; h < at->info.n_kv_heads; h++)
            n += snprintf(line + n, sizeof line - (size_t)n, "%s%d", h ? ", " : "", set->map[i][h]);
        n += snprintf(line + n, sizeof line - (size_t)n, "]}");
        cli_text_add(text, line, n);
    }
}

/* "head_top_k": [...] of n heads. */
static void add_head_top_k(cli_text *text, const int64_t *top_k, int32_t n)
{
    char item[32];
    for (int32_t h = 0; h < n; h++) {
        int size = top_k[h] < 0 ? snprintf(item, sizeof item, "%s\"all\"", h ? ", " : "")
                                : snprintf(item, sizeof item, "%s%" PRId64, h ? ", " : "", top_k[h]);
        cli_text_add(text, item, size);
    }
}

/* Whether a head of the n has a list of its own choice: 0 and everything (-1) need no score. */
static bool chooses(const int64_t *top_k, int32_t n)
{
    bool any = false;
    for (int32_t h = 0; h < n; h++) any |= top_k[h] > 0;
    return any;
}

/* One rule for all layers of the set whose heads read the same numbers of tokens, then those of their readers. A layer
 * whose heads all read everything is dense, unless others read its lists. */
static void add_head_rules(const search *at, const search_set *set, const search_router *router,
                           const int64_t *top_k, cli_text *text)
{
    int32_t n = at->info.n_kv_heads, at_layer = 0;
    bool is_written[SEARCH_MAX_LAYERS] = {0};
    char line[256];
    const int64_t *rows[SEARCH_MAX_LAYERS];
    for (int32_t i = 0; i < at->n_layers; i++) rows[i] = top_k + (int64_t)n * (set->has[i] ? at_layer++ : 0);
    for (int32_t i = 0, n_rules = 0; i < at->n_layers; i++) {
        bool is_dense = set->n == at->n_open;
        if (!set->has[i] || is_written[i]) continue;
        for (int32_t h = 0; h < n; h++) is_dense &= rows[i][h] < 0;
        cli_text_add(text, line,
                     snprintf(line, sizeof line, "%s        {\"layers\": [", n_rules++ ? ",\n" : ""));
        for (int32_t j = i, n_listed = 0; j < at->n_layers; j++) {
            if (!set->has[j] || memcmp(rows[i], rows[j], (size_t)n * sizeof **rows)) continue;
            cli_text_add(text, line, snprintf(line, sizeof line, "%s%d", n_listed++ ? ", " : "", j));
            is_written[j] = true;
        }
        int size = is_dense ? snprintf(line, sizeof line, "], \"operator\": \"dense\"}")
                            : snprintf(line, sizeof line,
                                       "], \"operator\": \"token_list\",\n         \"router\": {\"score\": "
                                       "\"%s\", \"lists\": \"kv_head\", \"head_top_k\": [",
                                       chooses(rows[i], n) ? router->score : "none");
        cli_text_add(text, line, size);
        if (is_dense) continue;
        add_head_top_k(text, rows[i], n);
        size = snprintf(line, sizeof line,
                        "], \"sinks\": %" PRId64 ", \"window\": %" PRId64 ", \"dense_below\": %" PRId64 "}}",
                        router->n_sink, router->window, router->dense_below);
        cli_text_add(text, line, size);
    }
    add_readers(at, set, text);
}

/* The rules of layers that make a list, then of those that read one. */
static void add_layer_rules(const search *at, const search_set *set, const search_router *router,
                            cli_text *text)
{
    char line[512];
    cli_text_add(text, line, snprintf(line, sizeof line, "        {\"layers\": ["));
    for (int32_t i = 0, n_listed = 0; i < at->n_layers; i++)
        if (set->has[i])
            cli_text_add(text, line, snprintf(line, sizeof line, "%s%d", n_listed++ ? ", " : "", i));
    int size = snprintf(
        line, sizeof line,
        "], \"operator\": \"%s\",\n         \"router\": {\"score\": \"%s\"%s, \"top_k\": %" PRId64
        ", \"sinks\": %" PRId64 ", \"window\": %" PRId64 ", \"dense_below\": %" PRId64 "}}",
        strcmp(router->score, "attention_mass") ? "token_list" : "dense", router->score,
        set->is_mapped ? ", \"lists\": \"kv_head\"" : "", router->top_k, router->n_sink, router->window,
        router->dense_below);
    cli_text_add(text, line, size);
    add_readers(at, set, text);
}

char *search_plan_text(const search *at, const search_set *set, const search_router *router, const char *name,
                       const char *about)
{
    const char *end = "\n      ]\n    }\n  ]\n}\n";
    char head[1024]; /* a name of 64 bytes at most, a text of 512 */
    cli_text text = {0};
    int64_t *top_k = NULL;
    if (set->heads) {
        top_k = malloc((size_t)set->heads->n_heads * sizeof *top_k);
        if (!top_k || search_head_top_k(set->heads, router->top_k, top_k)) {
            free(top_k);
            return NULL;
        }
    }
    int n = snprintf(head, sizeof head,
                     "{\n  \"heddle_plan\": 1,\n  \"name\": \"%s\",\n  \"about\": \"%s\",\n"
                     "  \"variants\": [\n    {\n"
                     "      \"when\": {\"arch\": \"%s\", \"n_layers\": %d, \"hidden_size\": %d},\n"
                     "      \"decode\": [\n",
                     name, about, at->info.arch, at->info.n_layers, at->info.hidden_size);
    cli_text_add(&text, head, n);
    if (set->heads)
        add_head_rules(at, set, router, top_k, &text);
    else
        add_layer_rules(at, set, router, &text);
    free(top_k);
    if (!cli_text_add(&text, end, (int64_t)strlen(end))) cli_text_free(&text);
    return text.data;
}

/* Which layers the model leaves open: a rule that makes lists is refused on layers with a window. */
static int find_open_layers(search *at)
{
    at->n_open = 0;
    for (int32_t i = 0; i < at->n_layers; i++) {
        char text[256];
        heddle_plan *plan;
        snprintf(text, sizeof text,
                 "{\"heddle_plan\": 1, \"name\": \"probe\", \"variants\": [{\"decode\": [{\"layers\": [%d], "
                 "\"router\": {\"top_k\": 1}}]}]}",
                 i);
        heddle_status status = heddle_plan_parse(&plan, text, (int64_t)strlen(text), "probe");
        if (status) return cli_fail(status);
        at->is_open[i] = heddle_plan_check(plan, at->engine) == HEDDLE_OK;
        at->n_open += at->is_open[i];
        heddle_plan_free(plan);
    }
    return at->n_open ? 0 : cli_refuse("plan search: the model has no layer without a window");
}

/* A session over the text but its last rows, which keeps what the candidates' routers read. */
static int read_text(search *at, search_text *text)
{
    search_set all = {.n = at->n_open};
    memcpy(all.has, at->is_open, sizeof all.has);
    heddle_plan *plan = NULL;
    heddle_session_options options;
    bool has_scores = strcmp(at->router.score, "none") != 0;
    int code = has_scores ? search_plan(at, &all, &at->router, &plan) : 0;
    if (code) return code;
    const heddle_plan *kept[] = {plan};
    heddle_session_options_default(&options);
    options.context_tokens = text->n_ids;
    options.kept_plans = kept;
    options.n_kept_plans = has_scores;
    heddle_status status = heddle_session_new(&text->session, at->engine, NULL, &options);
    heddle_plan_free(plan);
    if (!status)
        status = heddle_session_extend(text->session, text->ids, text->n_ids - at->n_rows, NULL, NULL);
    return status ? cli_fail(status) : 0;
}

/* The sums of the last rows' NLL and of its distances from dense's, the text's session forked under `plan`. NULL:
 * dense, whose NLL is kept. */
static int score_text(search *at, const search_text *text, const heddle_plan *plan, double *sum,
                      double *apart)
{
    heddle_session *fork = NULL;
    float *nll = plan ? malloc((size_t)at->n_rows * sizeof *nll) : text->row_nll;
    if (!nll) return cli_refuse("plan search: no memory for %" PRId64 " scores", at->n_rows);
    heddle_status status = heddle_session_fork_as(&fork, text->session, plan, 1);
    if (!status)
        status = heddle_session_score(fork, text->ids + text->n_ids - at->n_rows, at->n_rows, 0, nll, NULL,
                                      NULL);
    for (int64_t i = 0; i < at->n_rows && !status; i++) {
        *sum += nll[i];
        *apart += fabs((double)nll[i] - (double)text->row_nll[i]);
    }
    heddle_session_free(fork);
    if (plan) free(nll);
    return status ? cli_fail(status) : 0;
}

int search_add_text(search *at, const char *path, int64_t n_tokens)
{
    cli_text file = {0};
    if (!at->n_layers) {
        at->info.struct_size = sizeof at->info;
        heddle_engine_model_info(at->engine, &at->info);
        at->n_layers = at->info.n_layers;
        int code = find_open_layers(at);
        if (code) return code;
    }
    if (at->n_texts == SEARCH_MAX_TEXTS)
        return cli_refuse("plan search: more than %d texts", SEARCH_MAX_TEXTS);
    search_text *text = &at->texts[at->n_texts];
    int code = cli_read_file(&file, path);
    if (code) return code;
    heddle_status status = heddle_tokenize(at->engine, file.data, file.n, HEDDLE_TOKENIZE_BOS, &text->ids,
                                           &text->n_ids);
    cli_text_free(&file);
    if (status) return cli_fail(status);
    at->n_texts++;
    if (text->n_ids > n_tokens) text->n_ids = n_tokens;
    if (text->n_ids < 2 * at->n_rows)
        return cli_refuse("plan search: %s has %" PRId64
                          " tokens; it must have at least twice --rows %" PRId64,
                          path, text->n_ids, at->n_rows);
    return 0;
}

int search_read_text(search *at, search_text *text)
{
    int code = read_text(at, text);
    double sum = 0, apart = 0;
    text->row_nll = malloc((size_t)at->n_rows * sizeof *text->row_nll);
    if (!code) code = score_text(at, text, NULL, &sum, &apart);
    text->dense_nll = sum / (double)at->n_rows;
    return code;
}

void search_free(search *at)
{
    for (int i = 0; i < at->n_texts; i++) {
        heddle_session_free(at->texts[i].session);
        heddle_ids_free(at->texts[i].ids);
        free(at->texts[i].row_nll);
    }
}

int search_plan(const search *at, const search_set *set, const search_router *router, heddle_plan **plan)
{
    char *json = search_plan_text(at, set, router, "candidate", "");
    *plan = NULL;
    if (!json) return cli_refuse("plan search: no memory for a plan");
    heddle_status status = heddle_plan_parse(plan, json, (int64_t)strlen(json), "candidate");
    free(json);
    return status ? cli_fail(status) : 0;
}

int search_deviation(search *at, const search_set *set, const search_router *router, int first, int last,
                     double *nll, double *deviation)
{
    heddle_plan *plan;
    int code = search_plan(at, set, router, &plan);
    if (code) return code;
    double sum = 0, apart = 0, n = (double)((last - first) * at->n_rows);
    for (int i = first; i < last && !code; i++) code = score_text(at, &at->texts[i], plan, &sum, &apart);
    heddle_plan_free(plan);
    *nll = sum / n;
    *deviation = apart / n;
    at->n_evaluations++;
    return code;
}

int search_loss(search *at, const search_set *set, const search_router *router, int first, int last,
                double *nll)
{
    double deviation;
    return search_deviation(at, set, router, first, last, nll, &deviation);
}

int search_greedy(search *at, int n_fit, int32_t n_lists, search_set *set, double *curve, int32_t *dropped)
{
    *set = (search_set){.n = at->n_open};
    memcpy(set->has, at->is_open, sizeof set->has);
    int32_t first = 0;
    while (!at->is_open[first]) first++;
    int code = search_loss(at, set, &at->router, 0, n_fit, &curve[set->n]);
    while (!code && set->n > n_lists) {
        int32_t best = -1;
        double least = 0;
        for (int32_t layer = first + 1; layer < at->n_layers && !code; layer++) {
            if (!set->has[layer]) continue;
            double loss;
            set->has[layer] = false;
            set->n--;
            code = search_loss(at, set, &at->router, 0, n_fit, &loss);
            set->has[layer] = true;
            set->n++;
            if (best < 0 || loss < least) {
                best = layer;
                least = loss;
            }
        }
        if (code || best < 0) break;
        set->has[best] = false;
        curve[--set->n] = least;
        dropped[set->n] = best;
        cli_note("%2d lists: loss %.4f (layer %d reads its neighbour's)", set->n, least, best);
    }
    return code;
}
