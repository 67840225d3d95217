/* report_data.c - reads results and speeds, and sorts them by model and plan. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* ---- CSV: speeds, and quality by document ---- */

enum { MAX_FIELDS = 32 };

/* Cuts a line at its commas, quotes taken off, in place. */
static int cut_fields(char *line, char *fields[MAX_FIELDS])
{
    int n = 0;
    for (char *at = line; n < MAX_FIELDS;) {
        bool is_quoted = *at == '"';
        if (is_quoted) at++;
        fields[n++] = at;
        char *end = is_quoted ? strchr(at, '"') : strchr(at, ',');
        if (!end) break;
        *end++ = 0;
        if (is_quoted) {
            if (*end != ',') break;
            end++;
        }
        at = end;
    }
    return n;
}

typedef struct csv_row {
    char *names[MAX_FIELDS], *fields[MAX_FIELDS];
    int n_names, n;
} csv_row;

static const char *text_of(const csv_row *row, const char *name) /* NULL: no such column */
{
    for (int i = 0; i < row->n_names && i < row->n; i++)
        if (!strcmp(row->names[i], name)) return row->fields[i];
    return NULL;
}

static double number_of(const csv_row *row, const char *name)
{
    const char *text = text_of(row, name);
    return text && *text ? strtod(text, NULL) : NAN;
}

/* "# heddle 0.1.0, model NAME, KV f16, 2 threads, avx512" */
static void read_comment(const char *line, report_speed *common)
{
    const char *model = strstr(line, ", model "), *kv = strstr(line, ", KV ");
    if (!model || !kv || kv < model) return;
    snprintf(common->model, sizeof common->model, "%.*s", (int)(kv - model - 8), model + 8);
    snprintf(common->kv, sizeof common->kv, "%.*s", (int)strcspn(kv + 5, ",\n"), kv + 5);
}

static int add_speed(report *r, const report_speed *speed)
{
    if (r->n_speeds == r->speeds_capacity) {
        int capacity = r->speeds_capacity ? r->speeds_capacity * 2 : 64;
        report_speed *grown = realloc(r->speeds, (size_t)capacity * sizeof *grown);
        if (!grown) {
            cli_note("heddle: report: no memory");
            return EXIT_RUNTIME;
        }
        r->speeds = grown;
        r->speeds_capacity = capacity;
    }
    r->speeds[r->n_speeds++] = *speed;
    return 0;
}

/* What the lines above a row of speeds say of it. */
typedef struct csv_place {
    const char *path;
    int part; /* joined files are parts, each a run of its own where rows name none */
    bool is_in_rows;
    char comments[320]; /* above the rows */
    report_speed common;
} csv_place;

static void add_comment(csv_place *place, const char *line)
{
    if (place->is_in_rows) place->comments[0] = 0; /* those of another part */
    place->is_in_rows = false;
    size_t n = strlen(place->comments), skip = 1 + strspn(line + 1, " ");
    snprintf(place->comments + n, sizeof place->comments - n, "%s%s", n ? "; " : "", line + skip);
    read_comment(line, &place->common);
}

/* The run of a row, made where it is new; -1: there are too many. */
static int run_of(report *r, const csv_row *row, const csv_place *place)
{
    const char *name = text_of(row, "run"), *host = text_of(row, "host");
    report_run wanted = {.is_made_up = text_of(row, "step_ms") != NULL};
    snprintf(wanted.path, sizeof wanted.path, "%s", place->path);
    if (name && *name)
        snprintf(wanted.name, sizeof wanted.name, "%s", name);
    else if (place->part)
        snprintf(wanted.name, sizeof wanted.name, "part %d", place->part + 1);
    for (int i = 0; i < r->n_runs; i++)
        if (!strcmp(r->runs[i].path, wanted.path) && !strcmp(r->runs[i].name, wanted.name)) return i;
    if (r->n_runs == REPORT_MAX_RUNS) return -1;
    snprintf(wanted.host, sizeof wanted.host, "%s", host && *host ? host : place->comments);
    r->runs[r->n_runs] = wanted;
    return r->n_runs++;
}

static int add_speed_row(report *r, const csv_row *row, const csv_place *place, bool *is_row)
{
    report_speed speed = place->common;
    const char *plan = text_of(row, "plan"), *model = text_of(row, "model"), *kv = text_of(row, "kv");
    if (plan) snprintf(speed.plan, sizeof speed.plan, "%s", plan);
    if (model) snprintf(speed.model, sizeof speed.model, "%s", model);
    if (kv) snprintf(speed.kv, sizeof speed.kv, "%s", kv);
    speed.depth = number_of(row, "depth");
    speed.prefill = number_of(row, "prefill_tokens_per_s");
    speed.decode = number_of(row, "decode_tokens_per_s");
    if (isnan(speed.decode)) speed.decode = 1e3 / number_of(row, "step_ms");
    speed.share = number_of(row, "share_of_dense");
    speed.kv_bytes = number_of(row, "kv_bytes");
    speed.peak_bytes = number_of(row, "peak_bytes");
    *is_row = plan && isfinite(speed.depth) && isfinite(speed.decode);
    if (!*is_row) return 0;
    speed.run = run_of(r, row, place);
    if (speed.run < 0)
        return cli_refuse("report: %s: more than %d runs of speeds", place->path, REPORT_MAX_RUNS);
    return add_speed(r, &speed);
}

/* What prefill_quality.py and eviction_quality.py measure, which have no column for it. */
static const char proved_model[] = "smollm2";

/* A row of tests/proofs/plan_quality.py, or of prefill_quality.py, as the row of `heddle eval` that has its
 * figures: documents of 8,192 tokens, `quarter` the mean loss of the last 2,047; `part`: which rows the plan read.
 * Its models and plans have their own short hashes. Plans are set against others of the same run: a document of
 * another one counts as another document (keep_one_run leaves one of a plan). */
static bool add_quality_row(report *r, const csv_row *row)
{
    const char *part = text_of(row, "part"), *model = part ? proved_model : text_of(row, "model");
    const char *plan = text_of(row, "plan"), *hash = text_of(row, "plan_hash"), *text = text_of(row, "text");
    const char *doc = text_of(row, "doc"), *doc_hash = text_of(row, "doc_sha256");
    double quarter = number_of(row, "quarter"), share = number_of(row, "share");
    if (!plan || !model || !text || !hash || !doc || !doc_hash || !isfinite(quarter) ||
        (!part && !isfinite(share)))
        return false;
    const char *run = text_of(row, "run"); /* NULL in older files */
    char source[128], source_hash[128];
    snprintf(source, sizeof source, "%s-%s", text, doc);
    snprintf(source_hash, sizeof source_hash, "%s%s", doc_hash, run ? run : "");
    json_t *made = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:s, s:f, s:i}", "what", "loss",
                             "model", model, "model_hash", model, "kv", "f16", "plan", plan, "plan_hash",
                             hash, "context", 8192, "source", source, "source_hash", source_hash, "governs",
                             part ? part : "all", "last_nll", quarter * 2047, "last_tokens", 2047);
    if (made) json_object_set_new(made, "run", json_string(run ? run : ""));
    if (made && !part) json_object_set_new(made, "share_read", json_real(share / 100));
    if (made && part && r->results.by_key && results_find(&r->results, made)) { /* dense, in both files */
        json_decref(made);
        return true;
    }
    return results_keep(&r->results, made);
}

/* A row of tests/proofs/eviction_quality.py. */
static bool add_eviction_row(report *r, const csv_row *row)
{
    const char *plan = text_of(row, "plan"), *hash = text_of(row, "plan_hash"), *keep = text_of(row, "keep");
    double loss = number_of(row, "loss"), held = number_of(row, "kv_percent"), n = number_of(row, "n_tokens");
    char spec[128];
    if (!plan || !hash || !isfinite(loss) || !isfinite(held) || !(n > 0)) return false;
    snprintf(spec, sizeof spec, *keep ? "%s:keep=%s" : "%s", plan, keep);
    json_t *made = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:f, s:f, s:f}", "what", "eviction",
                             "model", proved_model, "model_hash", proved_model, "kv", "f16", "plan", spec,
                             "plan_hash", hash, "context", 4096, "loss", loss, "n_tokens", n, "held",
                             held / 100);
    static const char *const differences[] = {"minus_dense", "low95", "high95"};
    for (int i = 0; i < 3 && made; i++) { /* dense has no interval: its difference is 0 */
        double value = number_of(row, differences[i]);
        if (isfinite(value)) json_object_set_new(made, differences[i], json_real(value));
    }
    return results_keep(&r->results, made);
}

static bool begins_csv(const char *line)
{
    return !strncmp(line, "plan,", 5) || !strncmp(line, "plan_hash,", 10) || !strncmp(line, "model,", 6);
}

static int read_csv(report *r, const char *path, cli_text *text)
{
    csv_row row = {0};
    char *rest = NULL;
    int code = 0, n_line = 0;
    csv_place place = {.path = path, .common = {.kv = "f16"}};
    snprintf(place.common.model, sizeof place.common.model, "%s", path);
    for (char *line = strtok_r(text->data, "\n", &rest); line && !code; line = strtok_r(NULL, "\n", &rest)) {
        bool is_row = false;
        size_t n = strlen(line);
        if (n && line[n - 1] == '\r') line[n - 1] = 0;
        n_line++;
        if (*line == '#') {
            add_comment(&place, line);
            continue;
        }
        if (!row.n_names || begins_csv(line)) { /* files that were joined have their names again */
            if (row.n_names) place.part++;
            row.n_names = row.n = cut_fields(line, row.names);
            continue;
        }
        place.is_in_rows = true;
        row.n = cut_fields(line, row.fields);
        if (text_of(&row, "keep"))
            is_row = add_eviction_row(r, &row);
        else if (text_of(&row, "quarter"))
            is_row = add_quality_row(r, &row);
        else
            code = add_speed_row(r, &row, &place, &is_row);
        if (!is_row && !code)
            code = cli_refuse("%s: line %d is no row of 'heddle bench depth --csv', nor of the programs in "
                              "tests/proofs that measure quality",
                              path, n_line);
    }
    return code;
}

int report_read(report *r, const char *path)
{
    cli_text text = {0};
    int code = cli_read_file(&text, path);
    if (code) return code;
    int64_t at = 0;
    while (at < text.n && isspace((unsigned char)text.data[at])) at++;
    if (at == text.n)
        code = cli_refuse("%s: is empty", path);
    else if (text.data[at] == '{')
        code = r->results.by_key ? results_also(&r->results, path) : results_open(&r->results, path, false);
    else if (text.data[at] == '#' || begins_csv(text.data + at))
        code = read_csv(r, path, &text);
    else
        code = cli_refuse("%s: is neither a result of 'heddle eval' nor a CSV of 'heddle bench depth'", path);
    cli_text_free(&text);
    return code;
}

/* ---- cards ---- */

static report_card *add_card(report *r, const char *model, const char *kv)
{
    if (r->n_cards == REPORT_MAX_CARDS) return NULL;
    report_card *card = &r->cards[r->n_cards++];
    snprintf(card->model, sizeof card->model, "%s", model);
    snprintf(card->kv, sizeof card->kv, "%s", kv);
    return card;
}

static report_card *card_of_speed(report *r, const report_speed *speed)
{
    for (int c = 0; c < r->n_cards; c++)
        if (!strcmp(r->cards[c].model, speed->model) && !strcmp(r->cards[c].kv, speed->kv))
            return &r->cards[c];
    return add_card(r, speed->model, speed->kv);
}

static report_card *card_of_row(report *r, const json_t *row)
{
    bool is_invariant = json_is_true(json_object_get(row, "invariant"));
    for (int c = 0; c < r->n_cards; c++) {
        report_card *card = &r->cards[c];
        if (!strcmp(card->model_hash, row_text(row, "model_hash")) &&
            !strcmp(card->kv, row_text(row, "kv")) && !strcmp(card->frame, row_text(row, "frame")) &&
            card->is_invariant == is_invariant)
            return card;
    }
    report_card *card = add_card(r, row_text(row, "model"), row_text(row, "kv"));
    if (!card) return NULL;
    snprintf(card->model_hash, sizeof card->model_hash, "%s", row_text(row, "model_hash"));
    snprintf(card->frame, sizeof card->frame, "%s", row_text(row, "frame"));
    card->is_invariant = is_invariant;
    return card;
}

/* Only eval's own tasks are asked in a frame of the run's: losses, lists and samples of RULER, which bring theirs,
 * stand on the card of the frame that the model's first such task has, chat before raw. */
static void share_frames(report *r)
{
    const char *key;
    json_t *row, *frames = json_object();
    for (int pass = 0; pass < 2; pass++) json_object_foreach(r->results.by_key, key, row)
        {
            bool is_framed = !strcmp(row_text(row, "what"), "task") &&
                             strcmp(row_text(row, "haystack"), "ruler");
            char of_model[256];
            snprintf(of_model, sizeof of_model, "%s|%s|%d", row_text(row, "model_hash"), row_text(row, "kv"),
                     json_is_true(json_object_get(row, "invariant")));
            if (pass && !is_framed)
                json_object_set_new(row, "frame", json_string(row_text(frames, of_model)));
            else if (!pass && is_framed && strcmp(row_text(frames, of_model), "chat") != 0)
                json_object_set(frames, of_model, json_object_get(row, "frame"));
        }
    json_decref(frames);
}

static bool is_control(const char *spec)
{
    heddle_plan *plan = NULL;
    char name[128];
    bool is_one = !strcmp(spec, "dense");
    snprintf(name, sizeof name, "%.*s", (int)strcspn(spec, ":"), spec);
    if (!heddle_plan_named(&plan, spec) ||
        !heddle_plan_named(&plan, name)) /* a row may not say every member */
        is_one |= !strncmp(heddle_plan_about(plan), "control", 7);
    heddle_plan_free(plan);
    return is_one;
}

static void add_plan(report_card *card, const char *spec, const char *hash)
{
    for (int p = 0; p < card->n_plans; p++) {
        bool is_same = *hash && *card->plans[p].hash ? !strcmp(card->plans[p].hash, hash)
                                                     : !strcmp(card->plans[p].spec, spec);
        if (is_same) return;
    }
    if (card->n_plans == REPORT_MAX_PLANS) return;
    report_plan *plan = &card->plans[card->n_plans++];
    snprintf(plan->spec, sizeof plan->spec, "%s", spec);
    snprintf(plan->hash, sizeof plan->hash, "%s", hash);
    plan->is_control = is_control(spec);
}

static void add_context(report_card *card, int64_t context)
{
    int at = 0;
    while (at < card->n_contexts && card->contexts[at] < context) at++;
    if ((at < card->n_contexts && card->contexts[at] == context) || card->n_contexts == REPORT_MAX_CONTEXTS)
        return;
    memmove(card->contexts + at + 1, card->contexts + at,
            (size_t)(card->n_contexts - at) * sizeof *card->contexts);
    card->contexts[at] = context;
    card->n_contexts++;
}

static void add_task(report_card *card, const char *name, const char *about)
{
    for (int t = 0; t < card->n_tasks; t++)
        if (!strcmp(card->tasks[t].name, name)) return;
    if (card->n_tasks == REPORT_MAX_TASKS) return;
    report_task *task = &card->tasks[card->n_tasks++];
    snprintf(task->name, sizeof task->name, "%s", name);
    task->about = about;
}

/* Of the card's rows; a row of another task than eval's own is one of RULER, or none. */
static void add_tasks_of(report_card *card, const results *rows)
{
    summary_filter filter = report_filter(card, "task", NULL, 0);
    for (int t = 0; t < EVAL_N_TASKS; t++) add_task(card, eval_tasks[t].name, eval_tasks[t].about);
    const char *key;
    json_t *row;
    if (rows->by_key)
        json_object_foreach(rows->by_key, key, row) if (summary_fits(&filter, row) &&
                                                        !strcmp(row_text(row, "haystack"), "ruler"))
            add_task(card, row_text(row, "task"), "samples of RULER in a file of this name");
}

bool report_is_window(const char *spec)
{
    return !strcmp(spec, "window:window=512") || !strcmp(spec, "window512");
}

static int rank_of(const report_plan *plan)
{
    return !strcmp(plan->spec, "dense") ? 0 : report_is_window(plan->spec) ? 1 : plan->is_control ? 3 : 2;
}

static int compare_plans(const void *a, const void *b)
{
    const report_plan *x = a, *y = b;
    return rank_of(x) != rank_of(y) ? rank_of(x) - rank_of(y)
                                    : strverscmp(x->spec, y->spec); /* 512 before 1024 */
}

static bool is_base(const json_t *row) /* what every run measures beside its plans */
{
    return !strcmp(row_text(row, "plan"), "dense") || report_is_window(row_text(row, "plan"));
}

/* Where a plan was measured in several runs, the rows of that with the most documents, of these the newest, are kept:
 * a document that two runs have would count twice. */
static void keep_one_run(report *r)
{
    const char *key;
    json_t *row, *counts = json_object(), *best = json_object();
    void *next;
    char of_plan[256], of_run[384];
    for (int pass = 0; pass < 2; pass++) json_object_foreach_safe(r->results.by_key, next, key, row)
        {
            const char *run = json_string_value(json_object_get(row, "run"));
            if (!run || is_base(row)) continue;
            snprintf(of_plan, sizeof of_plan, "%s|%s|%s", row_text(row, "plan_hash"), row_text(row, "model"),
                     row_text(row, "governs"));
            snprintf(of_run, sizeof of_run, "%s|%s", of_plan, run);
            const char *kept = row_text(best, of_plan);
            if (pass) {
                if (strcmp(kept, run) != 0) json_object_del(r->results.by_key, key);
                continue;
            }
            double n = row_number(counts, of_run);
            n = isnan(n) ? 1 : n + 1;
            json_object_set_new(counts, of_run, json_real(n));
            snprintf(of_run, sizeof of_run, "%s|%s", of_plan, kept);
            double most = row_number(counts, of_run);
            if (isnan(most) || n > most || (n == most && strcmp(run, kept) > 0))
                json_object_set_new(best, of_plan, json_string(run));
        }
    json_decref(counts);
    json_decref(best);
}

/* Rows of a prompt's part are set against dense and the window over the same tokens, where all rows are governed:
 * gives these a copy under the part's name, which pairs them. */
static void pair_parts(report *r)
{
    const char *key, *other;
    json_t *row, *base, *copies = json_array();
    json_object_foreach(r->results.by_key, key, row)
    {
        const char *part = row_text(row, "governs");
        if (strcmp(part, "prompt") != 0 && strcmp(part, "both") != 0) continue;
        json_object_foreach(r->results.by_key, other, base)
        {
            bool is_pair = is_base(base) && !strcmp(row_text(base, "governs"), "all") &&
                           !strcmp(row_text(base, "what"), row_text(row, "what")) &&
                           !strcmp(row_text(base, "model_hash"), row_text(row, "model_hash")) &&
                           !strcmp(row_text(base, "source_hash"), row_text(row, "source_hash"));
            json_t *copy = is_pair ? json_copy(base) : NULL;
            if (copy) json_object_set(copy, "governs", json_object_get(row, "governs"));
            if (copy) json_array_append_new(copies, copy);
        }
    }
    for (size_t i = 0; i < json_array_size(copies); i++)
        results_keep(&r->results, json_incref(json_array_get(copies, i)));
    json_decref(copies);
}

static void label_plans(report_card *card)
{
    for (int p = 0; p < card->n_plans; p++) {
        report_plan *plan = &card->plans[p];
        bool is_alone = true;
        for (int q = 0; q < card->n_plans; q++) is_alone &= q == p || strcmp(card->plans[q].spec, plan->spec);
        snprintf(plan->label, sizeof plan->label, is_alone ? "%s" : "%s (%.6s)", plan->spec, plan->hash);
    }
}

void report_sort(report *r)
{
    const char *key;
    json_t *row;
    if (r->results.by_key) {
        keep_one_run(r);
        pair_parts(r);
        share_frames(r);
    }
    if (r->results.by_key) json_object_foreach(r->results.by_key, key, row)
        {
            report_card *card = card_of_row(r, row);
            int64_t context = row_count(row, "context", -1, INT32_MAX);
            if (!card) continue;
            add_plan(card, row_text(row, "plan"), row_text(row, "plan_hash"));
            if (!strcmp(row_text(row, "what"), "task")) add_context(card, context);
            if (!strcmp(row_text(row, "what"), "loss") && context > card->loss_context)
                card->loss_context = context;
        }
    for (int i = 0; i < r->n_speeds; i++) {
        report_card *card = card_of_speed(r, &r->speeds[i]);
        if (card) add_plan(card, r->speeds[i].plan, "");
    }
    for (int c = 0; c < r->n_cards; c++) {
        report_card *card = &r->cards[c];
        int n_coloured = 0;
        add_tasks_of(card, &r->results);
        qsort(card->plans, (size_t)card->n_plans, sizeof *card->plans, compare_plans);
        label_plans(card);
        for (int p = 0; p < card->n_plans; p++)
            card->plans[p].colour = card->plans[p].is_control ? SVG_CONTROL : n_coloured++;
    }
}

void report_free(report *r)
{
    if (r->results.by_key) results_close(&r->results);
    free(r->speeds);
    free(r);
}

const report_speed *report_speed_of(const report *r, const report_card *card, const char *plan, double depth)
{
    const report_speed *found = NULL;
    for (int i = 0; i < r->n_speeds; i++) {
        const report_speed *s = &r->speeds[i];
        if (strcmp(s->model, card->model) != 0 || strcmp(s->kv, card->kv) != 0 || strcmp(s->plan, plan) != 0)
            continue;
        if (depth < 0 ? !found || s->depth >= found->depth : s->depth == depth) found = s;
    }
    return found;
}

double report_dense_decode(const report *r, const report_card *card, int run, double depth)
{
    double found[16]; /* a run begins and ends with dense; more than a few say no more */
    int n = 0;
    for (int i = 0; i < r->n_speeds && n < (int)(sizeof found / sizeof *found); i++) {
        const report_speed *s = &r->speeds[i];
        bool is_dense = s->run == run && s->depth == depth && s->decode > 0 && !strcmp(s->plan, "dense") &&
                        !strcmp(s->model, card->model) && !strcmp(s->kv, card->kv);
        if (is_dense) found[n++] = 1 / s->decode;
    }
    eval_sort(found, n);
    return n ? 2 / (found[(n - 1) / 2] + found[n / 2]) : NAN;
}

double report_speed_over_dense(const report *r, const report_card *card, const report_speed *speed)
{
    return speed ? speed->decode / report_dense_decode(r, card, speed->run, speed->depth) : NAN;
}

summary_filter report_filter(const report_card *card, const char *what, const char *task, int64_t context)
{
    return (summary_filter){.what = what,
                            .model_hash = card->model_hash,
                            .kv = card->kv,
                            .frame = card->frame,
                            .task = task,
                            .context = context,
                            .seed = -1,
                            .is_invariant = card->is_invariant};
}

/* ---- figures of one plan ---- */

static const char *hash_of(const report_card *card, const char *spec)
{
    for (int p = 0; p < card->n_plans; p++)
        if (!strcmp(card->plans[p].spec, spec)) return card->plans[p].hash;
    return "";
}

static const char *window_hash(const report_card *card)
{
    const char *hash = hash_of(card, "window:window=512");
    return *hash ? hash : hash_of(card, "window512");
}

/* Documents of the plan's losses, each once: those of dense and of the window were read in several runs. */
static int64_t count_documents(const report *r, const summary_filter *filter, const char *hash)
{
    const char *key;
    json_t *row, *seen = json_object();
    json_object_foreach(r->results.by_key, key, row)
    {
        char name[256];
        if (strcmp(row_text(row, "plan_hash"), hash) != 0 || !summary_fits(filter, row)) continue;
        snprintf(name, sizeof name, "%s|%.0f", row_text(row, "source"), row_number(row, "document"));
        json_object_set_new(seen, name, json_true());
    }
    int64_t n = (int64_t)json_object_size(seen);
    json_decref(seen);
    return n;
}

static void add_losses(const report *r, const report_card *card, const report_plan *plan, const char *governs,
                       report_quality *q)
{
    summary_filter filter = report_filter(card, "loss", NULL, card->loss_context);
    const char *three[] = {window_hash(card), plan->hash, hash_of(card, "dense")};
    summary s;
    filter.governs = governs;
    if (!summary_align(&s, &r->results, &filter, three, 3, "last_nll", "last_tokens") && s.n) {
        q->recovery = eval_recovery(s.num[0], s.num[1], s.num[2], s.den[0], s.n, 1);
        q->loss = eval_difference(s.num[1], s.den[1], s.num[2], s.den[2], s.n, 1);
        q->governs = governs;
        q->n_documents = count_documents(r, &filter, plan->hash);
    }
    summary_free(&s);
    if (isnan(q->share)) q->share = summary_share(&r->results, &filter, plan->hash, NULL);
}

/* The texts whose losses were measured on this card, each once. */
static int texts_of(const report *r, const report_card *card, char texts[REPORT_MAX_TEXTS][64])
{
    summary_filter filter = report_filter(card, "loss", NULL, card->loss_context);
    const char *key;
    json_t *row;
    int n = 0;
    json_object_foreach(r->results.by_key, key, row)
    {
        char text[64];
        int known = 0;
        if (!summary_fits(&filter, row)) continue;
        summary_text_of(row_text(row, "source"), text, sizeof text);
        while (known < n && strcmp(texts[known], text) != 0) known++;
        if (known == n && n < REPORT_MAX_TEXTS) snprintf(texts[n++], 64, "%s", text);
    }
    return n;
}

static void add_worst_text(const report *r, const report_card *card, const report_plan *plan,
                           report_quality *q)
{
    char texts[REPORT_MAX_TEXTS][64];
    int n = texts_of(r, card, texts);
    for (int i = 0; i < n; i++) {
        summary_filter filter = report_filter(card, "loss", NULL, card->loss_context);
        const char *three[] = {window_hash(card), plan->hash, hash_of(card, "dense")};
        summary s;
        filter.text = texts[i];
        filter.governs = q->governs;
        if (!summary_align(&s, &r->results, &filter, three, 3, "last_nll", "last_tokens") && s.n) {
            eval_interval recovery = eval_recovery(s.num[0], s.num[1], s.num[2], s.den[0], s.n, 1);
            double loss = eval_ratio(s.num[1], s.den[1], s.n) - eval_ratio(s.num[2], s.den[2], s.n);
            if (!(recovery.value >= q->worst_recovery.value)) q->worst_recovery = recovery;
            if (!(loss <= q->worst_loss)) q->worst_loss = loss;
        }
        summary_free(&s);
    }
}

static void add_tasks(const report *r, const report_card *card, const report_plan *plan, report_quality *q)
{
    double sum = 0;
    for (int t = 0; t < card->n_tasks && card->n_contexts; t++) {
        summary_filter filter = report_filter(card, "task", card->tasks[t].name,
                                              card->contexts[card->n_contexts - 1]);
        const char *three[] = {hash_of(card, "dense"), window_hash(card), plan->hash};
        summary s;
        if (!summary_align(&s, &r->results, &filter, three, 3, "right", "tokens") && s.n) {
            double dense = eval_ratio(s.num[0], s.den[0], s.n), window = eval_ratio(s.num[1], s.den[1], s.n);
            double difference = eval_ratio(s.num[2], s.den[2], s.n) - dense;
            if (summary_decides(dense, window)) {
                sum += difference;
                if (!q->n_deciding++ || difference < q->worst) {
                    q->worst = difference;
                    q->worst_task = card->tasks[t].name;
                }
            }
        }
        summary_free(&s);
    }
    if (q->n_deciding) q->mean = sum / q->n_deciding;
    if (!isnan(q->share) || !card->n_contexts) return;
    summary_filter filter = report_filter(card, "task", NULL, card->contexts[card->n_contexts - 1]);
    q->share = summary_share(&r->results, &filter, plan->hash, NULL);
}

static const report_quality not_measured = {.recovery = {NAN, NAN, NAN},
                                            .loss = {NAN, NAN, NAN},
                                            .worst_recovery = {NAN, NAN, NAN},
                                            .worst_loss = NAN,
                                            .share = NAN,
                                            .mean = NAN,
                                            .worst = NAN,
                                            .agreement = NAN};

report_quality report_quality_of_part(const report *r, const report_card *card, const report_plan *plan,
                                      const char *part)
{
    report_quality q = not_measured;
    if (!r->results.by_key || !*plan->hash) return q;
    add_losses(r, card, plan, part, &q);
    if (q.governs) add_worst_text(r, card, plan, &q);
    return q;
}

report_quality report_quality_of(const report *r, const report_card *card, const report_plan *plan)
{
    report_quality q = not_measured;
    if (!r->results.by_key || !*plan->hash) return q;
    add_losses(r, card, plan, "all", &q); /* never mixed: the first that is there */
    if (!q.governs) add_losses(r, card, plan, "last", &q);
    if (q.governs) add_worst_text(r, card, plan, &q);
    add_tasks(r, card, plan, &q);
    summary_filter filter = report_filter(card, "agreement", NULL, 0);
    const char *one[] = {plan->hash};
    summary s;
    if (!summary_align(&s, &r->results, &filter, one, 1, "same", "tokens") && s.n)
        q.agreement = eval_ratio(s.num[0], s.den[0], s.n);
    summary_free(&s);
    return q;
}
