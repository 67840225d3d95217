/* cmd_search.c - `heddle plan search`: a plan for a model, found on its own texts.
 *
 * Fits on -f texts, judges on --check texts, which it never fitted on; writes the plan file of the greedy search
 * by loss, and says beside it what the dynamic programme on captured mass would have given. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "search.h"

typedef struct search_options {
    cli_common common;
    cli_texts fit, check;
    const char *score, *out, *name, *method, *cost;
    double budget_ms;
    int64_t n_rows, n_lists, fit_top_k, top_k, n_sink, window, budget_bytes, depth;
} search_options;

#define AT(field) offsetof(search_options, field)
static const cli_option search_rows[] = {
    {"file", 'f', CLI_TEXTS, "FILE", NULL, "a text to fit on (again for more)", AT(fit), 0, 0, 0},
    {"check", 0, CLI_TEXTS, "FILE", NULL, "a text to judge on, never fitted on", AT(check), 0, 0, 0},
    {"score", 0, CLI_TEXT, "SCORE", "attention_mass",
     "attention_mass (list layers stay dense), key_i8 or key_i4", AT(score), 0, 0, 0},
    {"by", 0, CLI_TEXT, "METHOD", "loss",
     "loss: greedily; mass: captured mass, by DP; heads: the same with a list and a map a KV head; "
     "hylra: overlap of lists, by DP",
     AT(method), 0, 0, 0},
    {"lists", 0, CLI_INT, "N", "6", "layers that make a list", AT(n_lists), 1, SEARCH_MAX_LAYERS, 0},
    {"rows", 0, CLI_INT, "N", "256", "last tokens of each text that are scored", AT(n_rows), 16, 1 << 16, 0},
    {"fit-top-k", 0, CLI_INT, "K", "256", "top_k while searching: small enough to hurt", AT(fit_top_k), 1,
     1 << 24, 0},
    {"top-k", 0, CLI_INT, "K", "1024", "top_k of the plan that is written", AT(top_k), 1, 1 << 24, 0},
    {"sinks", 0, CLI_INT, "N", "4", "first tokens, always read", AT(n_sink), 0, 1 << 16, 0},
    {"window", 0, CLI_INT, "N", "128", "recent tokens, always read", AT(window), 1, 1 << 16, 0},
    {"cost", 0, CLI_TEXT, "FILE", NULL, "a cost model of this host: heddle bench calibrate", AT(cost), 0, 0,
     0},
    {"budget-ms", 0, CLI_NUM, "MS", NULL, "the plan's decode step may take so long, by the cost model",
     AT(budget_ms), 1e-6, 1e9, 0},
    {"budget-bytes", 0, CLI_INT, "N", NULL, "it may read so many bytes of keys, values and summaries",
     AT(budget_bytes), 1, 1e15, 0},
    {"at", 0, CLI_INT, "TOKENS", NULL, "the context that a budget is for (default: -c)", AT(depth), 0,
     1 << 28, 0},
    {"name", 0, CLI_TEXT, "NAME", "found", "the plan's name", AT(name), 0, 0, 0},
    {"out", 'o', CLI_TEXT, "FILE", NULL, "write the plan here; default: standard output", AT(out), 0, 0, 0},
    {0},
};
#undef AT

static void print_set(const search *at, const search_set *set, char *text, size_t size)
{
    size_t n = 0;
    for (int32_t i = 0; i < at->n_layers && n < size; i++)
        if (set->has[i]) n += (size_t)snprintf(text + n, size - n, "%s%d", n ? ", " : "", i);
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
        double nll;
        router.top_k = top_ks[k];
        int code = search_loss(at, set, &router, first, last, &nll);
        if (code) return code;
        cli_note("  %-22s [%s] top_k %" PRId64 ": perplexity %+.2f %%", what, layers, router.top_k,
                 100 * (exp(nll - dense) - 1));
    }
    return 0;
}

static int write_plan(const search *at, const search_options *options, const search_set *set,
                      const search_router *router, int64_t seconds)
{
    char about[512];
    snprintf(about, sizeof about,
             "%d list layers found by %s (plan search: %" PRId64 " evaluations of %" PRId64 " rows, %" PRId64
             " s)",
             set->n, options->method, at->n_evaluations, at->n_rows, seconds);
    char *text = search_plan_text(at, set, router, options->name, about);
    if (!text) return cli_refuse("plan search: no memory for the plan");
    FILE *file = options->out ? fopen(options->out, "w") : stdout;
    int code = 0;
    if (!file)
        code = cli_refuse("plan search: %s: cannot be written", options->out);
    else if (fputs(text, file) < 0 || (options->out && fclose(file)))
        code = cli_refuse("plan search: %s: not everything could be written",
                          options->out ? options->out : "-");
    free(text);
    return code;
}

static int load_texts(search *at, const search_options *options)
{
    int64_t n_tokens = options->common.context ? options->common.context : 4096;
    int code = 0;
    for (int i = 0; i < options->fit.n && !code; i++)
        code = search_add_text(at, options->fit.items[i], n_tokens);
    for (int i = 0; i < options->check.n && !code; i++)
        code = search_add_text(at, options->check.items[i], n_tokens);
    if (!code && options->n_lists >= at->n_open)
        return cli_refuse("plan search: --lists %" PRId64
                          ": the model has %d layers that can make one; must be fewer",
                          options->n_lists, at->n_open);
    return code;
}

/* What was found and what the dynamic programmes give, on the texts fitted on and on the others. */
static int compare(search *at, const search_options *options, const search_set *const *sets,
                   const char *const *names)
{
    int n_fit = options->fit.n, code = 0;
    for (int held_out = 0; held_out < 2 && !code; held_out++) {
        int first = held_out ? n_fit : 0, last = held_out ? at->n_texts : n_fit;
        if (first == last) continue;
        cli_note("on the texts it was %sfitted on:", held_out ? "not " : "");
        for (int i = 0; i < 3 && !code; i++)
            if (sets[i]) code = judge(at, options, sets[i], names[i], first, last);
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

static int run_search(search *at, const search_options *options, const search_budget *budget)
{
    static search_set greedy, by_mass, by_heads, chosen; /* a few hundred KiB */
    bool is_by_overlap = !strcmp(options->method, "hylra");
    const char *const names[] = {"by loss, greedily", "by captured mass (DP)",
                                 is_by_overlap ? "by overlap (HyLRA)" : "the same, head by head"};
    double curve[SEARCH_MAX_LAYERS + 1];
    int32_t dropped[SEARCH_MAX_LAYERS + 1];
    time_t start = time(NULL);
    int32_t n_lists = (int32_t)options->n_lists;
    bool is_by_loss = !strcmp(options->method, "loss"), is_by_heads = !strcmp(options->method, "heads"),
         has_budget = budget->ms > 0 || budget->bytes > 0;
    search_router router = at->router;
    router.top_k = options->top_k;
    int code = is_by_loss ? search_greedy(at, options->fit.n, n_lists, &greedy, curve, dropped) : 0;
    int64_t seconds = (int64_t)(time(NULL) - start);
    if (!code) code = search_dp(at, options->fit.n, n_lists, false, &by_mass);
    if (!code && is_by_heads) code = search_dp(at, options->fit.n, n_lists, true, &by_heads);
    if (!code && is_by_overlap) code = search_hylra(at, options->fit.n, n_lists, &by_heads);
    is_by_heads |= is_by_overlap;
    if (code) return code;
    cli_note("fitted in %" PRId64 " s, %" PRId64 " evaluations", seconds, at->n_evaluations);
    search_set *found = is_by_loss ? &greedy : is_by_heads ? &by_heads : &by_mass;
    if (has_budget) {
        code = search_within_budget(at, options->fit.n, found, is_by_loss ? dropped : NULL, budget, &chosen,
                                    &router);
        *found = chosen;
    }
    at->written_top_k = router.top_k;
    const search_set *sets[] = {is_by_loss ? &greedy : NULL, &by_mass, is_by_heads ? &by_heads : NULL};
    if (!code) code = compare(at, options, sets, names);
    if (!code && (has_budget || options->cost)) code = search_say_cost(at, found, &router, budget);
    return code ? code : write_plan(at, options, found, &router, seconds);
}

/* Before a search of half an hour: whether what it finds can be written. A file that is there is not touched. */
static int check_out(const char *path)
{
    if (!path) return 0;
    bool was_there = !access(path, F_OK);
    FILE *file = fopen(path, "a");
    if (!file) return cli_refuse("plan search: %s: cannot be written: %s", path, strerror(errno));
    fclose(file);
    if (!was_there) remove(path);
    return 0;
}

static int plan_search(const void *command_options)
{
    const search_options *options = command_options;
    cli_setup setup = {0};
    search_budget budget;
    search at = {.router = {options->score, options->fit_top_k, options->n_sink, options->window, 0},
                 .n_rows = options->n_rows};
    if (!options->fit.n) return cli_refuse("plan search: no text is given: -f FILE");
    if (strcmp(options->score, "attention_mass") && strcmp(options->score, "key_i8") &&
        strcmp(options->score, "key_i4"))
        return cli_refuse("plan search: --score %s: must be attention_mass, key_i8 or key_i4",
                          options->score);
    if (strcmp(options->method, "loss") && strcmp(options->method, "mass") &&
        strcmp(options->method, "heads") && strcmp(options->method, "hylra"))
        return cli_refuse("plan search: --by %s: must be loss, mass, heads or hylra", options->method);
    int code = check_out(options->out);
    if (!code) code = cli_open(&setup, &options->common);
    if (code) return code;
    at.engine = setup.engine;
    at.info = setup.info;
    code = load_budget(&at, options, &setup.session_options, &budget);
    if (!code) code = load_texts(&at, options);
    if (!code) code = run_search(&at, options, &budget);
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
        "cheapest to lose. Writes a plan file for this model. Under a budget: of these sets, each with the\n"
        "largest top_k that fits, the one of least loss; says what a step is expected to cost and what it does.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_CONTEXT,
    .options = search_rows,
    .options_size = sizeof(search_options),
    .run = plan_search,
};
