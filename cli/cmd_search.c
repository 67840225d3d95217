/* cmd_search.c - `heddle plan search`: a plan for a model, found on its own texts.
 *
 * Fits on -f texts, judges on --check texts, which it never fitted on; writes the plan file of the greedy search
 * by loss, and says beside it what the dynamic programme on captured mass would have given. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "search.h"

typedef struct search_options {
    cli_common common;
    cli_texts fit, check;
    const char *score, *out, *name, *method, *cost, *list_layers;
    double budget_ms;
    int64_t n_rows, n_lists, n_full_heads, fit_top_k, top_k, n_sink, window, budget_bytes, depth;
} search_options;

#define AT(field) offsetof(search_options, field)
static const cli_option search_rows[] = {
    {"file", 'f', CLI_TEXTS, "FILE", NULL, "a text to fit on (again for more)", AT(fit), 0, 0, 0},
    {"check", 0, CLI_TEXTS, "FILE", NULL, "a text to judge on, never fitted on", AT(check), 0, 0, 0},
    {"score", 0, CLI_TEXT, "SCORE", "attention_mass",
     "attention_mass (list layers stay dense), key_i8, key_i4, key_pq2 or key_pq4", AT(score), 0, 0, 0},
    {"by", 0, CLI_TEXT, "METHOD", "loss",
     "loss: greedily; mass: captured mass, by DP; heads: the same with a list and a map a KV head; "
     "hylra: overlap of lists, by DP; budgets: every KV head its own list, tokens split by captured mass "
     "and what it matters; duo: by deviation from dense, which KV heads read everything, the others sinks "
     "and window",
     AT(method), 0, 0, 0},
    {"lists", 0, CLI_INT, "N", NULL, "layers that make a list (default: 6)", AT(n_lists), 1,
     SEARCH_MAX_LAYERS, 0},
    {"list-layers", 0, CLI_TEXT, "L,L,...", NULL,
     "with --by budgets: only these layers make lists, the others read the nearest one's below",
     AT(list_layers), 0, 0, 0},
    {"full-heads", 0, CLI_INT, "N", NULL,
     "with --by duo: KV heads of all layers that go on reading everything, at most", AT(n_full_heads), 1,
     SEARCH_MAX_LAYERS *SEARCH_MAX_HEADS, 0},
    {"rows", 0, CLI_INT, "N", "256", "last tokens of each text that are scored", AT(n_rows), 16, 1 << 16, 0},
    {"fit-top-k", 0, CLI_INT, "K", "256", "top_k while searching: small enough to hurt", AT(fit_top_k), 1,
     1 << 24, 0},
    {"top-k", 0, CLI_INT, "K", "1024",
     "top_k of the plan that is written; with --by budgets the mean of all heads", AT(top_k), 1, 1 << 24, 0},
    {"sinks", 0, CLI_INT, "N", "4", "first tokens, always read", AT(n_sink), 0, 1 << 16, 0},
    {"window", 0, CLI_INT, "N", "128", "recent tokens, always read", AT(window), 1, 1 << 16, 0},
    {"cost", 0, CLI_TEXT, "FILE", NULL, "a cost model of this host: heddle bench calibrate", AT(cost), 0, 0,
     0},
    {"budget-ms", 0, CLI_NUM, "MS", NULL, "the plan's decode step may take so long, by the cost model",
     AT(budget_ms), 1e-6, 1e9, 0},
    {"budget-bytes", 0, CLI_INT, "N", NULL, "it may read so many bytes of keys, values and summaries",
     AT(budget_bytes), 1, 1e15, 0},
    {"at", 0, CLI_INT, "TOKENS", NULL, "the context that a budget and a price are for (default: -c)",
     AT(depth), 1, 1 << 28, 0},
    {"name", 0, CLI_TEXT, "NAME", "found", "the plan's name", AT(name), 0, 0, 0},
    {"out", 'o', CLI_TEXT, "FILE", NULL, "write the plan here; default: standard output", AT(out), 0, 0, 0},
    {0},
};
#undef AT

static void print_set(const search *at, const search_set *set, char *text, size_t size)
{
    size_t n = 0;
    *text = 0;
    if (set->heads && !set->heads->captured)
        snprintf(text, size, "%d of %d KV heads read everything",
                 set->heads->n_heads - set->heads->n_streaming, set->heads->n_heads);
    else if (set->n == at->n_open && (set->heads || set->is_mapped))
        snprintf(text, size, "a list for each KV head");
    if (*text) return;
    for (int32_t i = 0; i < at->n_layers && n < size; i++)
        if (set->has[i]) n += (size_t)snprintf(text + n, size - n, "%s%d", n ? ", " : "", i);
    if (set->heads && n < size) snprintf(text + n, size - n, ", a list for each KV head");
}

/* Loss of a set on the texts it was not fitted on, against dense: perplexity in percent. */
static int judge(search *at, const search_options *options, const search_set *set, const char *what,
                 int first, int last)
{
    search_router router = at->router;
    char layers[1024] = "";
    double dense = 0;
    print_set(at, set, layers, sizeof layers);
    for (int i = first; i < last; i++) dense += at->texts[i].dense_nll / (last - first);
    const int64_t top_ks[] = {options->fit_top_k, at->written_top_k};
    for (int k = 0; k < 2; k++) {
        double nll, deviation;
        char by[32] = "";
        bool has_top_k = strcmp(router.score, "none") != 0;
        router.top_k = top_ks[k];
        int code = search_deviation(at, set, &router, first, last, &nll, &deviation);
        if (code) return code;
        if (has_top_k) snprintf(by, sizeof by, " top_k %" PRId64, router.top_k);
        cli_note("  %-22s [%s]%s: perplexity %+.2f %%, a token's loss off by %.4f", what, layers, by,
                 100 * (exp(nll - dense) - 1), deviation);
        if (!has_top_k) break;
    }
    return 0;
}

typedef struct search_effort { /* what it took to find the plan, without what judged it afterwards */
    int64_t seconds, n_evaluations;
} search_effort;

static int write_plan(const search *at, const search_options *options, const search_set *set,
                      const search_router *router, const search_effort *effort)
{
    char about[512], what[64];
    snprintf(what, sizeof what, "%d list layers", set->n);
    if (set->heads && set->n == at->n_open) print_set(at, set, what, sizeof what);
    if (set->heads && set->n < at->n_open)
        snprintf(what, sizeof what, "%d layers' lists for each KV head", set->n);
    snprintf(about, sizeof about,
             "%s found by %s (plan search: %" PRId64 " evaluations of %" PRId64 " rows, %" PRId64 " s)", what,
             options->method, effort->n_evaluations, at->n_rows, effort->seconds);
    char *text = search_plan_text(at, set, router, options->name, about);
    if (!text) return cli_refuse("plan search: no memory for the plan");
    int code = options->out ? cli_write_file(options->out, text, (int64_t)strlen(text)) : 0;
    if (!options->out) fputs(text, stdout); /* cli_finish_output looks whether it could */
    free(text);
    return code;
}

/* Each KV head of every open layer has a list of its own: no layers are chosen. */
static bool is_by_head(const search_options *options)
{
    return !strcmp(options->method, "budgets") || !strcmp(options->method, "duo");
}

/* What a plan was fitted on says nothing of other texts: the tokens count, whatever the files are called. */
static int check_held_out(const search *at, const search_options *options)
{
    for (int i = options->fit.n; i < at->n_texts; i++)
        for (int j = 0; j < options->fit.n; j++) {
            const search_text *held_out = &at->texts[i], *fit = &at->texts[j];
            if (held_out->n_ids == fit->n_ids &&
                !memcmp(held_out->ids, fit->ids, (size_t)fit->n_ids * sizeof *fit->ids))
                return cli_refuse(
                    "plan search: --check %s: its %" PRId64 " tokens are those of -f %s, which are fitted on",
                    options->check.items[i - options->fit.n], fit->n_ids, options->fit.items[j]);
        }
    return 0;
}

static int32_t n_lists_of(const search_options *options)
{
    return options->n_lists ? (int32_t)options->n_lists : 6;
}

static int load_texts(search *at, const search_options *options)
{
    int64_t n_tokens = options->common.context ? options->common.context : 4096;
    int code = 0;
    for (int i = 0; i < options->fit.n && !code; i++)
        code = search_add_text(at, options->fit.items[i], n_tokens);
    for (int i = 0; i < options->check.n && !code; i++)
        code = search_add_text(at, options->check.items[i], n_tokens);
    if (!code && options->n_full_heads >= (int64_t)at->n_open * at->info.n_kv_heads)
        return cli_refuse("plan search: --full-heads %" PRId64
                          ": %d layers of %d KV heads are open; must be fewer "
                          "than all",
                          options->n_full_heads, at->n_open, at->info.n_kv_heads);
    if (!code && n_lists_of(options) >= at->n_open && !is_by_head(options))
        return cli_refuse("plan search: --lists %d: the model has %d layers that can make one; must be fewer",
                          n_lists_of(options), at->n_open);
    if (!code) code = check_held_out(at, options);
    for (int i = 0; i < at->n_texts && !code; i++) code = search_read_text(at, &at->texts[i]);
    return code;
}

typedef struct found {     /* a set and how it was come by */
    const search_set *set; /* NULL: none was */
    const char *how;
} found;

/* What was found and what it is compared with, on the texts fitted on and on the others. */
static int compare(search *at, const search_options *options, const found *sets, int n_sets)
{
    int n_fit = options->fit.n, code = 0;
    for (int held_out = 0; held_out < 2 && !code; held_out++) {
        int first = held_out ? n_fit : 0, last = held_out ? at->n_texts : n_fit;
        if (first == last) continue;
        cli_note("on the texts it was %sfitted on:", held_out ? "not " : "");
        for (int i = 0; i < n_sets && !code; i++)
            if (sets[i].set) code = judge(at, options, sets[i].set, sets[i].how, first, last);
    }
    return code;
}

static int load_budget(const search *at, const search_options *options, const heddle_session_options *session,
                       search_budget *budget)
{
    *budget = (search_budget){.ms = options->budget_ms,
                              .bytes = options->budget_bytes,
                              .depth = options->depth            ? options->depth
                                       : options->common.context ? options->common.context
                                                                 : 4096,
                              .kv_type = session->kv_type};
    if (options->budget_ms > 0 && !options->cost)
        return cli_refuse("plan search: --budget-ms needs --cost FILE (heddle bench calibrate writes one)");
    return options->cost ? cost_load(&budget->model, options->cost, &at->info, budget->kv_type,
                                     options->common.n_threads)
                         : 0;
}

/* Fits the budget, compares, says the cost, writes. dropped: see search_within_budget. */
static int finish_search(search *at, const search_options *options, search_set *set, const int32_t *dropped,
                         const found *sets, int n_sets, const search_budget *budget, time_t start)
{
    static search_set chosen; /* a few hundred KiB */
    search_router router = at->router;
    bool has_budget = budget->ms > 0 || budget->bytes > 0, has_top_k = strcmp(router.score, "none") != 0;
    int code = 0;
    router.top_k = options->top_k;
    if (has_budget && has_top_k) {
        code = search_within_budget(at, options->fit.n, set, dropped, budget, &chosen, &router);
        if (!code) *set = chosen;
    }
    const search_effort effort = {(int64_t)(time(NULL) - start), at->n_evaluations};
    if (!code)
        cli_note("fitted in %" PRId64 " s, %" PRId64 " evaluations", effort.seconds, effort.n_evaluations);
    if (!code && options->cost) code = search_find_crossover(at, set, budget, &router);
    at->written_top_k = router.top_k;
    if (set->heads && set->heads->captured && router.top_k > (int64_t)set->heads->n_steps * SEARCH_STEP)
        cli_note("top_k %" PRId64 " in the mean: no head is given more than the %d tokens of the texts",
                 router.top_k, set->heads->n_steps * SEARCH_STEP);
    if (!code) code = compare(at, options, sets, n_sets);
    if (!code && (has_budget || options->cost)) code = search_say_cost(at, set, &router, budget);
    return code ? code : write_plan(at, options, set, &router, &effort);
}

static int search_layers(search *at, const search_options *options, const search_budget *budget)
{
    static search_set greedy, by_mass, by_heads;
    bool is_by_overlap = !strcmp(options->method, "hylra"), is_by_loss = !strcmp(options->method, "loss"),
         has_maps = is_by_overlap || !strcmp(options->method, "heads");
    double curve[SEARCH_MAX_LAYERS + 1];
    int32_t dropped[SEARCH_MAX_LAYERS + 1], n_lists = n_lists_of(options);
    time_t start = time(NULL);
    int code = is_by_loss ? search_greedy(at, options->fit.n, n_lists, &greedy, curve, dropped) : 0;
    if (!code) code = search_dp(at, options->fit.n, n_lists, false, &by_mass);
    if (!code && is_by_overlap) code = search_hylra(at, options->fit.n, n_lists, &by_heads);
    if (!code && has_maps && !is_by_overlap) code = search_dp(at, options->fit.n, n_lists, true, &by_heads);
    if (code) return code;
    const found sets[] = {
        {is_by_loss ? &greedy : NULL, "by loss, greedily"},
        {&by_mass, "by captured mass (DP)"},
        {has_maps ? &by_heads : NULL, is_by_overlap ? "by overlap (HyLRA)" : "the same, head by head"}};
    return finish_search(at, options,
                         is_by_loss ? &greedy
                         : has_maps ? &by_heads
                                    : &by_mass,
                         is_by_loss ? dropped : NULL, sets, 3, budget, start);
}

static int refuse_list_layers(const char *text, int64_t layer, const char *why)
{
    return cli_refuse("plan search: --list-layers %s: layer %" PRId64 " %s", text, layer, why);
}

/* The layers of a text like "0,3,7", ascending; NULL: all open ones. */
static int read_list_layers(const search *at, const char *text, bool *is_list)
{
    memset(is_list, 0, SEARCH_MAX_LAYERS * sizeof *is_list);
    if (!text) memcpy(is_list, at->is_open, SEARCH_MAX_LAYERS * sizeof *is_list);
    int64_t last = -1, first = 0;
    while (!at->is_open[first]) first++;
    for (const char *next = text; next && *next;) {
        char *end;
        long long layer = strtoll(next, &end, 10);
        if (end == next || (*end && (*end != ',' || !end[1])))
            return cli_refuse("plan search: --list-layers %s: must be layer numbers with commas between them",
                              text);
        if (layer < 0 || layer >= at->n_layers || !at->is_open[layer])
            return refuse_list_layers(text, layer, "is none that can make a list");
        if (layer <= last) return refuse_list_layers(text, layer, "does not come after the one before it");
        if (last < 0 && layer != first)
            return cli_refuse("plan search: --list-layers %s: layer %" PRId64
                              " must be the first of them: nothing below it makes a list that it could read",
                              text, first);
        is_list[last = layer] = true;
        next = *end ? end + 1 : end;
    }
    return text && last < 0 ? cli_refuse("plan search: --list-layers: names no layer") : 0;
}

/* The same number for every head; or, under list layers, one list for all heads, which reads as much. */
static void make_others(const search_set *set, search_set *by_head, search_set *by_layer)
{
    *by_layer = (search_set){.n = set->n};
    memcpy(by_layer->has, set->has, sizeof set->has);
    *by_head = *by_layer;
    by_head->is_mapped = true;
    memcpy(by_head->map, set->map, sizeof set->map);
}

static int search_budgets_of_heads(search *at, const search_options *options, const search_budget *budget)
{
    static search_set set, by_head, by_layer;
    bool is_list[SEARCH_MAX_LAYERS];
    search_heads heads = {0};
    time_t start = time(NULL);
    int code = read_list_layers(at, options->list_layers, is_list);
    if (!code) code = search_budgets(at, options->fit.n, is_list, &heads, &set);
    if (!code) {
        make_others(&set, &by_head, &by_layer);
        const found sets[] = {{&set, "split among heads"},
                              {&by_head, "the same for every head"},
                              {options->list_layers ? &by_layer : NULL, "one list for all heads"}};
        code = finish_search(at, options, &set, NULL, sets, 3, budget, start);
    }
    search_heads_free(&heads);
    return code;
}

static int search_full_heads(search *at, const search_options *options, const search_budget *budget)
{
    static search_set set, other;
    search_heads heads = {0}, control = {0};
    time_t start = time(NULL);
    int code = search_duo(at, options->fit.n, (int32_t)options->n_full_heads, budget, &heads, &set, &control,
                          &other);
    const found sets[] = {{&set, "by deviation"}, {&other, "as many, at random"}};
    if (!code) code = finish_search(at, options, &set, NULL, sets, 2, budget, start);
    search_heads_free(&heads);
    search_heads_free(&control);
    return code;
}

static bool is_among(const char *const *words, const char *word)
{
    while (*words && strcmp(*words, word)) words++;
    return *words != NULL;
}

/* The name stands in the plan file as it is. */
static int check_name(const char *name)
{
    size_t n = strlen(name);
    if (!n || n > 64) return cli_refuse("plan search: --name: has %zu bytes; must have 1..64", n);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < ' ' || name[i] == 127 || strchr("\"\\", name[i]))
            return cli_refuse(
                "plan search: --name: has character %d at byte %zu; must have no control character, "
                "no \" and no \\",
                name[i], i);
    json_t *text = json_string(name); /* NULL: not UTF-8 */
    if (!text) return cli_refuse("plan search: --name: must be UTF-8");
    json_decref(text);
    return 0;
}

/* What goes not together, before anything is read. */
static int check_method(const search_options *options)
{
    static const char *const methods[] = {"loss", "mass", "heads", "hylra", "budgets", "duo", NULL};
    bool is_duo = !strcmp(options->method, "duo"), is_budgets = !strcmp(options->method, "budgets"),
         has_budget = options->budget_ms > 0 || options->budget_bytes > 0;
    if (!is_among(methods, options->method))
        return cli_refuse("plan search: --by %s: must be loss, mass, heads, hylra, budgets or duo",
                          options->method);
    if (!is_among(search_scores, options->score))
        return cli_refuse(
            "plan search: --score %s: must be attention_mass, key_i8, key_i4, key_pq2 or key_pq4: the "
            "plans it tries choose single tokens, by what every model's keys give",
            options->score);
    if (is_budgets && !strcmp(options->score, "attention_mass"))
        return cli_refuse(
            "plan search: --by budgets needs --score key_i8, key_i4, key_pq2 or key_pq4: where attention "
            "mass is the score, heads read everything");
    if (options->list_layers && !is_budgets)
        return cli_refuse("plan search: --list-layers goes with --by budgets: the others find such layers");
    if (options->n_lists && is_by_head(options))
        return cli_refuse("plan search: --lists goes not with --by %s, where every KV head has a list",
                          options->method);
    if (is_duo && !options->n_full_heads && !has_budget)
        return cli_refuse("plan search: --by duo needs --full-heads N, --budget-ms MS or --budget-bytes N");
    if (!is_duo && options->n_full_heads) return cli_refuse("plan search: --full-heads goes with --by duo");
    if (options->depth && !has_budget && !options->cost)
        return cli_refuse("plan search: --at goes with --budget-ms MS, --budget-bytes N or --cost FILE");
    return check_name(options->name);
}

static int plan_search(const void *command_options)
{
    const search_options *options = command_options;
    cli_setup setup = {0};
    search_budget budget;
    search at = {.router = {options->score, options->fit_top_k, options->n_sink, options->window, 0},
                 .n_rows = options->n_rows};
    if (!options->fit.n) return cli_refuse("plan search: no text is given: -f FILE");
    int code = check_method(options);
    if (!code && options->out) /* before a search of half an hour */
        code = cli_check_file(options->out, "plan file", cli_file_is(options->out, "{*\"heddle_plan\"*"));
    if (!code && !strcmp(options->method, "duo")) at.router.score = "none";
    if (!code) code = cli_open(&setup, &options->common);
    if (code) return code;
    at.engine = setup.engine;
    at.info = setup.info;
    code = load_budget(&at, options, &setup.session_options, &budget);
    if (!code) code = load_texts(&at, options);
    if (!code)
        code = (!is_by_head(options)              ? search_layers
                : !strcmp(options->method, "duo") ? search_full_heads
                                                  : search_budgets_of_heads)(&at, options, &budget);
    search_free(&at);
    cli_close(&setup);
    return code ? code : cli_finish_output();
}

const cli_command cmd_plan_search = {
    .name = "plan search",
    .usage = "-m MODEL -f FILE [--check FILE] [-c TOKENS] [options]",
    .summary = "Finds which layers should make lists, for any model",
    .about =
        "Reads the texts densely (-c tokens of each, default 4096), then judges sets of list-making layers on\n"
        "their last --rows tokens: from all layers down to --lists, each time without the layer that is\n"
        "cheapest to lose. Or gives each KV head a budget of its own (--by budgets, --by duo). Writes a plan file\n"
        "for this model. Under a budget: of these sets, each with the\n"
        "largest top_k that fits, the one of least loss; says what a step is expected to cost and what it does.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_CONTEXT,
    .options = search_rows,
    .options_size = sizeof(search_options),
    .run = plan_search,
};
