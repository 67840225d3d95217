/* eval_lists.c - what routers choose, against where dense attention lies.
 *
 * The last ROWS tokens of a document are read one by one by two forks at once: an observer, dense in
 * every layer, which tells each layer's attention mass by KV head; and the plan, which tells its lists.
 * A KV head's recall is the mass that the list which it reads holds over the mass that the best list of
 * the same length holds (the oracle): the list of the layer and head that the plan names. Layers that
 * read everything or the model's own window are left out, those that make a list for others too.
 *
 * From the observer alone: how much the K tokens of largest mass (sinks and recent ones left out)
 * overlap from layer to layer and from step to step. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/stats.h"
#include "eval_int.h"
#include "term.h"

enum { ROWS = 32, SINKS = 4, RECENT = 128 };

static const char observer_text[] =
    "{\"heddle_plan\": 1, \"name\": \"observer\", \"variants\": "
    "[{\"decode\": [{\"layers\": \"all\", \"operator\": \"dense\", "
    "\"router\": {\"score\": \"attention_mass\", \"top_k\": 1, \"lists\": \"kv_head\"}}]}]}";

typedef struct list_of { /* of one layer and list, as tokens */
    int32_t *ids;
    int64_t n;
} list_of;

typedef struct lists_run {
    eval_run *run;
    const eval_source *source;
    int64_t index, n;          /* tokens of the document */
    int32_t n_layers, n_heads; /* KV heads */
    int64_t top;               /* K of the overlaps */
    cli_ids ids;
    heddle_plan *observer;
    int32_t *owners, *read; /* [n_layers, n_heads] whose list, and which, the plan reads; -1 = none */
    float *mass;            /* [n_layers, n_heads, n] of the present row */
    bool *is_observed;      /* [n_layers] the layer attends to everything and told its mass */
    list_of *lists;         /* [n_layers, n_heads] of the plan in the present row */
    int32_t *n_lists;       /* [n_layers] 0 = it makes none */
    bool is_failed;
    /* sums over rows */
    double *captured, *best;            /* [n_layers, n_heads] */
    double *step_overlap, *list_tokens; /* [n_layers] of the plan's lists */
    int64_t *n_steps;                   /* [n_layers] */
    list_of *before;                    /* [n_layers] the plan's list 0 of the row before */
    uint8_t *mark;                      /* [n] scratch */
    int64_t *reads;                     /* [n] how often a token stood in a list of the plan */
    float *scratch;                     /* [n] */
} lists_run;

/* ---- the two taps ---- */

static void on_mass(const heddle_tap_row *row, void *user)
{
    lists_run *l = user;
    if (!row->score || row->n_units > l->n || row->list >= l->n_heads) return;
    float *to = l->mass + ((int64_t)row->layer * l->n_heads + row->list) * l->n;
    memcpy(to, row->score, (size_t)row->n_units * sizeof *to);
    l->is_observed[row->layer] = true;
}

static void on_list(const heddle_tap_row *row, void *user)
{
    lists_run *l = user;
    if (row->list >= l->n_heads) return;
    list_of *list = &l->lists[row->layer * l->n_heads + row->list];
    int64_t block = row->block_size > 1 ? row->block_size : 1, n_visible = row->position + 1;
    if (!list->ids && !(list->ids = malloc((size_t)l->n * sizeof *list->ids))) {
        l->is_failed = true;
        return;
    }
    list->n = 0;
    for (int64_t i = 0; i < row->n_ids; i++)
        for (int64_t t = row->ids[i] * block;
             t < (row->ids[i] + 1) * block && t < n_visible && list->n < l->n; t++)
            list->ids[list->n++] = (int32_t)t;
    l->n_lists[row->layer] = row->n_lists;
}

/* ---- figures of one row ---- */

/* The mass of the m best of n. */
static double best_mass(lists_run *l, const float *mass, int64_t n, int64_t m)
{
    double sum = 0;
    memcpy(l->scratch, mass, (size_t)n * sizeof *mass);
    eval_sort_down(l->scratch, n);
    for (int64_t i = 0; i < m && i < n; i++) sum += l->scratch[i];
    return sum;
}

/* |a and b| / |a|. */
static double overlap_of(lists_run *l, const list_of *a, const list_of *b)
{
    int64_t n_both = 0;
    for (int64_t i = 0; i < b->n; i++) l->mark[b->ids[i]] = 1;
    for (int64_t i = 0; i < a->n; i++) n_both += l->mark[a->ids[i]];
    for (int64_t i = 0; i < b->n; i++) l->mark[b->ids[i]] = 0;
    return a->n ? (double)n_both / (double)a->n : NAN;
}

static void add_recall(lists_run *l, int64_t n_visible)
{
    for (int32_t at = 0; at < l->n_layers * l->n_heads; at++) {
        if (l->owners[at] < 0 || !l->is_observed[at / l->n_heads]) continue;
        const float *mass = l->mass + (int64_t)at * l->n;
        const list_of *list = &l->lists[l->owners[at] * l->n_heads + l->read[at]];
        for (int64_t i = 0; i < list->n; i++) l->captured[at] += mass[list->ids[i]];
        l->best[at] += best_mass(l, mass, n_visible, list->n);
    }
}

static void add_steps(lists_run *l)
{
    for (int32_t layer = 0; layer < l->n_layers; layer++) {
        const list_of *now = &l->lists[layer * l->n_heads];
        list_of *before = &l->before[layer];
        if (!l->n_lists[layer]) continue;
        for (int64_t i = 0; i < now->n; i++) l->reads[now->ids[i]]++;
        l->list_tokens[layer] += (double)now->n;
        if (before->n) {
            l->step_overlap[layer] += overlap_of(l, now, before);
            l->n_steps[layer]++;
        }
        if (!before->ids) before->ids = malloc((size_t)l->n * sizeof *before->ids);
        if (!before->ids) {
            l->is_failed = true;
            return;
        }
        memcpy(before->ids, now->ids, (size_t)now->n * sizeof *now->ids);
        before->n = now->n;
    }
}

/* ---- the observer's own figures ---- */

/* The K tokens of largest mass of a layer (mean of its heads) between sinks and recent ones. */
static void top_tokens(lists_run *l, int32_t layer, int64_t n_visible, float *mean, list_of *to)
{
    int64_t from = SINKS, until = n_visible - RECENT, n = 0;
    memset(mean, 0, (size_t)l->n * sizeof *mean);
    for (int32_t h = 0; h < l->n_heads; h++)
        for (int64_t i = from; i < until; i++)
            mean[i] += l->mass[((int64_t)layer * l->n_heads + h) * l->n + i];
    memcpy(l->scratch, mean + from, (size_t)(until - from) * sizeof *mean);
    eval_sort_down(l->scratch, until - from);
    float least = l->scratch[l->top - 1];
    for (int64_t i = from; i < until && n < l->top; i++)
        if (mean[i] >= least) to->ids[n++] = (int32_t)i;
    to->n = n;
}

typedef struct overlap_sums {
    list_of *now, *before; /* [n_layers] */
    double *layers;        /* [n_layers, n_layers] */
    double *steps;         /* [n_layers] */
    float *mean;           /* [n] */
    int64_t n_rows;
} overlap_sums;

static void overlap_free(lists_run *l, overlap_sums *o)
{
    for (int32_t i = 0; i < l->n_layers; i++) {
        if (o->now) free(o->now[i].ids);
        if (o->before) free(o->before[i].ids);
    }
    free(o->now);
    free(o->before);
    free(o->layers);
    free(o->steps);
    free(o->mean);
    *o = (overlap_sums){0};
}

static int overlap_new(lists_run *l, overlap_sums *o)
{
    size_t n = (size_t)l->n_layers;
    *o = (overlap_sums){.now = calloc(n, sizeof *o->now),
                        .before = calloc(n, sizeof *o->before),
                        .layers = calloc(n * n, sizeof *o->layers),
                        .steps = calloc(n, sizeof *o->steps),
                        .mean = calloc((size_t)l->n, sizeof *o->mean)};
    bool is_whole = o->now && o->before && o->layers && o->steps && o->mean;
    for (size_t i = 0; i < n && is_whole; i++) {
        o->now[i].ids = malloc((size_t)l->top * sizeof(int32_t));
        o->before[i].ids = malloc((size_t)l->top * sizeof(int32_t));
        is_whole = o->now[i].ids && o->before[i].ids;
    }
    return is_whole ? 0 : eval_no_memory();
}

static void add_overlaps(lists_run *l, overlap_sums *o, int64_t n_visible)
{
    for (int32_t a = 0; a < l->n_layers; a++)
        if (l->is_observed[a]) top_tokens(l, a, n_visible, o->mean, &o->now[a]);
    for (int32_t a = 0; a < l->n_layers; a++) {
        if (!l->is_observed[a]) continue;
        for (int32_t b = 0; b < l->n_layers; b++)
            if (l->is_observed[b]) o->layers[a * l->n_layers + b] += overlap_of(l, &o->now[a], &o->now[b]);
        if (o->n_rows) o->steps[a] += overlap_of(l, &o->now[a], &o->before[a]);
        list_of kept = o->before[a];
        o->before[a] = o->now[a];
        o->now[a] = kept;
    }
    o->n_rows++;
}

/* ---- rows of results ---- */

static json_t *lists_row(const lists_run *l, const char *what, const eval_plan *plan)
{
    json_t *row = eval_row(l->run, what, plan);
    if (!row) return NULL;
    json_object_set_new(row, "source", json_string(l->source->name));
    json_object_set_new(row, "source_hash", json_string(l->source->hash));
    json_object_set_new(row, "document", json_integer(l->index));
    return row;
}

static bool is_there(const lists_run *l, const char *what, const eval_plan *plan)
{
    json_t *row = lists_row(l, what, plan);
    bool is_found = row && results_find(&l->run->results, row);
    json_decref(row);
    return is_found;
}

static json_t *short_real(double value)
{
    return json_real(round(value * 1e4) / 1e4);
}

static int add_overlap_row(lists_run *l, const overlap_sums *o)
{
    json_t *row = lists_row(l, "overlap", &l->run->plans[0]);
    json_t *layers = json_array(), *matrix = json_array(), *steps = json_array();
    for (int32_t a = 0; a < l->n_layers; a++) {
        if (!l->is_observed[a]) continue;
        json_t *line = json_array();
        json_array_append_new(layers, json_integer(a));
        json_array_append_new(steps, short_real(o->steps[a] / (double)(o->n_rows - 1)));
        for (int32_t b = 0; b < l->n_layers; b++)
            if (l->is_observed[b])
                json_array_append_new(line, short_real(o->layers[a * l->n_layers + b] / (double)o->n_rows));
        json_array_append_new(matrix, line);
    }
    json_object_set_new(row, "rows", json_integer(o->n_rows));
    json_object_set_new(row, "top", json_integer(l->top));
    json_object_set_new(row, "layers", layers);
    json_object_set_new(row, "overlap", matrix);
    json_object_set_new(row, "step_overlap", steps);
    return results_add(&l->run->results, row);
}

static int add_lists_row(lists_run *l, const eval_plan *plan)
{
    json_t *row = lists_row(l, "lists", plan), *layers = json_array(), *captured = json_array(),
           *best = json_array();
    json_t *makers = json_array(), *steps = json_array(), *tokens = json_array();
    for (int32_t layer = 0; layer < l->n_layers; layer++) {
        if (l->n_lists[layer]) {
            json_array_append_new(makers, json_integer(layer));
            json_array_append_new(steps, short_real(l->step_overlap[layer] / (double)l->n_steps[layer]));
            json_array_append_new(tokens, short_real(l->list_tokens[layer] / ROWS));
        }
        if (l->best[layer * l->n_heads] == 0) continue;
        json_t *heads = json_array(), *best_heads = json_array();
        for (int32_t h = 0; h < l->n_heads; h++) {
            json_array_append_new(heads, short_real(l->captured[layer * l->n_heads + h] / ROWS));
            json_array_append_new(best_heads, short_real(l->best[layer * l->n_heads + h] / ROWS));
        }
        json_array_append_new(layers, json_integer(layer));
        json_array_append_new(captured, heads);
        json_array_append_new(best, best_heads);
    }
    json_object_set_new(row, "rows", json_integer(ROWS));
    json_object_set_new(row, "layers", layers);
    json_object_set_new(row, "captured", captured);
    json_object_set_new(row, "oracle", best);
    json_object_set_new(row, "makers", makers);
    json_object_set_new(row, "step_overlap", steps);
    json_object_set_new(row, "list_tokens", tokens);
    return results_add(&l->run->results, row);
}

/* The document's text, the bytes of each token and how often it was read, for the page that shows it. */
static int add_text_row(lists_run *l, const eval_plan *plan, int64_t n)
{
    json_t *row = lists_row(l, "text", plan), *lengths = json_array(), *reads = json_array();
    cli_text text = {0};
    int code = 0;
    for (int64_t i = 0; i < n && !code; i++) {
        char *piece = NULL;
        int64_t n_bytes = 0;
        heddle_status status = heddle_detokenize(l->run->setup.engine, &l->ids.ids[i], 1, 0, &piece,
                                                 &n_bytes);
        if (status)
            code = cli_fail(status);
        else if (!cli_text_add(&text, piece, n_bytes))
            code = eval_no_memory();
        heddle_string_free(piece);
        json_array_append_new(lengths, json_integer(n_bytes));
        json_array_append_new(reads, json_integer(l->reads[i]));
    }
    json_t *shown = code ? NULL : json_stringn(text.data ? text.data : "", (size_t)text.n);
    cli_text_free(&text);
    json_object_set_new(row, "lengths", lengths);
    json_object_set_new(row, "reads", reads);
    if (!code && shown) {
        json_object_set_new(row, "text", shown);
        return results_add(&l->run->results, row);
    }
    json_decref(row);
    if (!code)
        cli_note(
            "heddle: eval: the document is no whole UTF-8 text; which of its tokens were read is not kept");
    return code;
}

/* ---- running ---- */

static int step(heddle_session *session, int32_t id)
{
    heddle_status status = heddle_session_extend(session, &id, 1, NULL, NULL);
    return status ? cli_fail(status) : 0;
}

static int run_plan(lists_run *l, const heddle_session *document, const eval_plan *plan)
{
    heddle_session *observer = NULL, *session = NULL;
    int64_t n_list = (int64_t)l->n_layers * l->n_heads, first = l->n - ROWS;
    memset(l->captured, 0, (size_t)n_list * sizeof *l->captured);
    memset(l->best, 0, (size_t)n_list * sizeof *l->best);
    memset(l->step_overlap, 0, (size_t)l->n_layers * sizeof *l->step_overlap);
    memset(l->list_tokens, 0, (size_t)l->n_layers * sizeof *l->list_tokens);
    memset(l->n_steps, 0, (size_t)l->n_layers * sizeof *l->n_steps);
    memset(l->n_lists, 0, (size_t)l->n_layers * sizeof *l->n_lists);
    memset(l->reads, 0, (size_t)l->n * sizeof *l->reads);
    for (int32_t layer = 0; layer < l->n_layers; layer++) l->before[layer].n = 0;
    heddle_status status = heddle_plan_lists_read(l->run->setup.engine, plan->plan, l->owners, l->read);
    if (!status) status = heddle_session_fork_as(&observer, document, l->observer, 1);
    if (!status) status = heddle_session_fork_as(&session, document, plan->plan, 1);
    int code = status ? cli_fail(status) : 0;
    if (!code) {
        heddle_session_set_tap(observer, on_mass, l);
        heddle_session_set_tap(session, on_list, l);
    }
    bool is_making = true;
    for (int64_t i = first; i < l->n && !code && is_making; i++) {
        code = step(observer, l->ids.ids[i]);
        if (!code) code = step(session, l->ids.ids[i]);
        is_making = false; /* a plan without lists has nothing to tell */
        for (int32_t layer = 0; layer < l->n_layers; layer++) is_making |= l->n_lists[layer] > 0;
        if (code || !is_making) break;
        add_recall(l, i + 1);
        add_steps(l);
        if (l->is_failed) code = eval_no_memory();
    }
    heddle_session_free(session);
    heddle_session_free(observer);
    /* the text first: what a later run looks for is the other row */
    if (!code && is_making && !l->index && l->source == l->run->sources) code = add_text_row(l, plan, l->n);
    if (!code) code = add_lists_row(l, plan);
    if (!code)
        cli_note("lists on %s, document %" PRId64 ", plan %s", l->source->name, l->index + 1, plan->spec);
    return code;
}

static int run_observer(lists_run *l, const heddle_session *document)
{
    heddle_session *observer = NULL;
    overlap_sums sums;
    int code = overlap_new(l, &sums);
    heddle_status status = code ? HEDDLE_OK : heddle_session_fork_as(&observer, document, l->observer, 1);
    if (status) code = cli_fail(status);
    if (!code) heddle_session_set_tap(observer, on_mass, l);
    for (int64_t i = l->n - ROWS; i < l->n && !code; i++) {
        code = step(observer, l->ids.ids[i]);
        if (!code) add_overlaps(l, &sums, i + 1);
    }
    heddle_session_free(observer);
    if (!code) code = add_overlap_row(l, &sums);
    overlap_free(l, &sums);
    return code;
}

static int read_document(lists_run *l, heddle_session **session)
{
    heddle_session_options options = eval_document_options(l->run, l->n);
    term_progress progress;
    heddle_status status = heddle_session_new(session, l->run->setup.engine, NULL, &options);
    term_progress_start(&progress, "reading");
    if (!status) status = heddle_session_extend(*session, l->ids.ids, l->n - ROWS, NULL, NULL);
    return status ? cli_fail(status) : 0;
}

static int run_document(lists_run *l)
{
    eval_run *run = l->run;
    heddle_session *session = NULL;
    int code = 0;
    if (!is_there(l, "overlap", &run->plans[0])) {
        code = read_document(l, &session);
        if (!code) code = run_observer(l, session);
    }
    for (int p = 1; p < run->n_plans && !code; p++) {
        if (run->plans[p].evicts || is_there(l, "lists", &run->plans[p])) continue;
        if (!session) code = read_document(l, &session);
        if (!code) code = run_plan(l, session, &run->plans[p]);
    }
    heddle_session_free(session);
    return code;
}

static void lists_free(lists_run *l)
{
    for (int64_t i = 0; l->lists && i < (int64_t)l->n_layers * l->n_heads; i++) free(l->lists[i].ids);
    for (int32_t i = 0; l->before && i < l->n_layers; i++) free(l->before[i].ids);
    free(l->lists);
    free(l->owners);
    free(l->read);
    free(l->before);
    free(l->mass);
    free(l->is_observed);
    free(l->n_lists);
    free(l->captured);
    free(l->best);
    free(l->step_overlap);
    free(l->list_tokens);
    free(l->n_steps);
    free(l->mark);
    free(l->reads);
    free(l->scratch);
    heddle_plan_free(l->observer);
    cli_ids_free(&l->ids);
}

static int lists_new(lists_run *l, eval_run *run)
{
    size_t n_layers = (size_t)run->setup.info.n_layers, n_heads = (size_t)run->setup.info.n_kv_heads;
    size_t n = (size_t)run->context, n_lists = n_layers * n_heads;
    *l = (lists_run){.run = run,
                     .n = run->context,
                     .n_layers = run->setup.info.n_layers,
                     .n_heads = run->setup.info.n_kv_heads,
                     .top = run->context / 16,
                     .mass = calloc(n_lists * n, sizeof *l->mass),
                     .is_observed = calloc(n_layers, sizeof *l->is_observed),
                     .lists = calloc(n_lists, sizeof *l->lists),
                     .owners = calloc(n_lists, sizeof *l->owners),
                     .read = calloc(n_lists, sizeof *l->read),
                     .n_lists = calloc(n_layers, sizeof *l->n_lists),
                     .captured = calloc(n_lists, sizeof *l->captured),
                     .best = calloc(n_lists, sizeof *l->best),
                     .step_overlap = calloc(n_layers, sizeof *l->step_overlap),
                     .list_tokens = calloc(n_layers, sizeof *l->list_tokens),
                     .n_steps = calloc(n_layers, sizeof *l->n_steps),
                     .before = calloc(n_layers, sizeof *l->before),
                     .mark = calloc(n, sizeof *l->mark),
                     .reads = calloc(n, sizeof *l->reads),
                     .scratch = calloc(n, sizeof *l->scratch)};
    bool is_whole = l->mass && l->is_observed && l->lists && l->owners && l->read && l->n_lists &&
                    l->captured && l->best && l->step_overlap && l->list_tokens && l->n_steps && l->before &&
                    l->mark && l->reads && l->scratch;
    if (!is_whole) return eval_no_memory();
    heddle_status status = heddle_plan_parse(&l->observer, observer_text, (int64_t)sizeof observer_text - 1,
                                             "observer");
    return status ? cli_fail(status) : 0;
}

int eval_run_lists(eval_run *run)
{
    lists_run l;
    int32_t bos = -1;
    int code = lists_new(&l, run);
    if (!code) code = cli_bos(run->setup.engine, &bos);
    for (int s = 0; s < run->n_sources && !code; s++) {
        cli_ids ids = {0};
        code = eval_ids_text(run, &ids, run->sources[s].text.data, run->sources[s].text.n);
        int64_t n_documents = eval_n_documents(run, s, ids.n, &code);
        l.source = &run->sources[s];
        for (l.index = 0; l.index < n_documents && !code; l.index++) {
            if (!eval_wants_document(run, s, l.index)) continue;
            l.ids.n = 0;
            code = eval_cut_document(run, ids.ids, bos, l.index, &l.ids);
            if (!code) code = run_document(&l);
        }
        cli_ids_free(&ids);
    }
    lists_free(&l);
    return code;
}
