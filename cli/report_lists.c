/* report_lists.c - which tokens routers chose: overlap of layers, captured mass, the text itself. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { MAX_LAYERS = 128, MAX_SHOWN_TEXTS = 3, SHOWN_TOKENS = 900 };

/* Rows of a kind on this card; each is called with its place among them. */
typedef void (*row_fn)(const json_t *row, void *user);
static void each_row(const report *r, const report_card *card, const char *what, const report_plan *plan,
                     row_fn fn, void *user)
{
    const char *key;
    json_t *row;
    summary_filter filter = report_filter(card, what, NULL, 0);
    if (!r->results.by_key) return;
    json_object_foreach(r->results.by_key, key,
                        row) if (summary_fits(&filter, row) &&
                                 (!plan || !strcmp(row_text(row, "plan_hash"), plan->hash))) fn(row, user);
}

/* ---- overlap of layers ---- */

typedef struct overlap_mean {
    double sum[MAX_LAYERS * MAX_LAYERS];
    int layers[MAX_LAYERS], n_layers, n_rows;
    double step_sum[MAX_LAYERS];
} overlap_mean;

static void add_overlap(const json_t *row, void *user)
{
    overlap_mean *mean = user;
    const json_t *layers = json_object_get(row, "layers"), *matrix = json_object_get(row, "overlap");
    int n = (int)json_array_size(layers);
    if (n > MAX_LAYERS || (mean->n_rows && n != mean->n_layers)) return;
    mean->n_layers = n;
    for (int a = 0; a < n; a++) {
        mean->layers[a] = (int)row_count(row, "layers", a, MAX_LAYERS);
        mean->step_sum[a] += row_number_at(row, "step_overlap", a);
        for (int b = 0; b < n; b++)
            mean->sum[a * n + b] += json_number_value(
                json_array_get(json_array_get(matrix, (size_t)a), (size_t)b));
    }
    mean->n_rows++;
}

static void draw_overlap(eval_buf *out, const overlap_mean *mean)
{
    int n = mean->n_layers;
    double *values = malloc((size_t)(n * n + n) * sizeof *values);
    char(*names)[12] = malloc((size_t)n * sizeof *names);
    const char *columns[MAX_LAYERS] = {NULL}, *rows[MAX_LAYERS] = {NULL},
               *step_names[] = {"  "}; /* as wide as the names above */
    int every = n > 12 ? 5 : 1;
    for (int a = 0; values && names && a < n; a++) {
        snprintf(names[a], sizeof names[a], "%d", mean->layers[a]);
        if (a % every == 0) columns[a] = rows[a] = names[a];
        values[n * n + a] = mean->step_sum[a] / mean->n_rows;
        for (int b = 0; b < n; b++) values[a * n + b] = a == b ? NAN : mean->sum[a * n + b] / mean->n_rows;
    }
    double high = 0.1;
    for (int i = 0; values && i < n * n; i++)
        if (!isnan(values[i]) && values[i] > high) high = values[i];
    char title[64];
    snprintf(title, sizeof title, "layer to layer, up to %.0f %%", 100 * high);
    int size = n > 12 ? 480 / n : 36;
    svg_map map = {.title = title,
                   .x_title = "layer",
                   .y_title = "layer",
                   .n_columns = n,
                   .n_rows = n,
                   .values = values,
                   .column_names = columns,
                   .row_names = rows,
                   .high = high,
                   .has_numbers = n <= 12,
                   .cell_width = size,
                   .cell_height = size};
    svg_map steps = map;
    steps.title = "step to step";
    steps.y_title = "";
    steps.n_rows = 1;
    steps.values = values ? values + n * n : NULL;
    steps.row_names = step_names;
    steps.high = 1;
    steps.cell_height = 24;
    if (values && names) {
        svg_draw_map(out, &map);
        svg_draw_map(out, &steps);
    }
    free(values);
    free(names);
}

/* ---- mass held by the lists of a plan ---- */

enum { MAX_HEADS = 16 };
typedef struct recall_sums {
    double captured[MAX_LAYERS], best[MAX_LAYERS];
    double head_captured[MAX_HEADS][MAX_LAYERS], head_best[MAX_HEADS][MAX_LAYERS];
    int n_heads, n_layers;
} recall_sums;

static void add_recall(const json_t *row, void *user)
{
    recall_sums *sums = user;
    const json_t *captured = json_object_get(row, "captured"), *best = json_object_get(row, "oracle");
    for (size_t i = 0; i < json_array_size(captured); i++) {
        int layer = (int)row_count(row, "layers", (int64_t)i, MAX_LAYERS);
        const json_t *heads = json_array_get(captured, i), *best_heads = json_array_get(best, i);
        for (size_t h = 0; h < json_array_size(heads) && layer >= 0 && layer < MAX_LAYERS; h++) {
            double held = json_number_value(json_array_get(heads, h));
            double most = json_number_value(json_array_get(best_heads, h));
            sums->captured[layer] += held;
            sums->best[layer] += most;
            if (layer >= sums->n_layers) sums->n_layers = layer + 1;
            if (h >= MAX_HEADS) continue;
            if ((int)h >= sums->n_heads) sums->n_heads = (int)h + 1;
            sums->head_captured[h][layer] += held;
            sums->head_best[h][layer] += most;
        }
    }
}

/* One plan: KV heads down, layers across. */
static void draw_heads(eval_buf *out, const char *name, const recall_sums *sums)
{
    static double values[MAX_HEADS * MAX_LAYERS];
    char names[MAX_LAYERS][12], head_names[MAX_HEADS][12];
    const char *columns[MAX_LAYERS] = {NULL}, *rows[MAX_HEADS];
    for (int h = 0; h < sums->n_heads; h++) {
        snprintf(head_names[h], sizeof head_names[h], "%d", h);
        rows[h] = head_names[h];
        for (int i = 0; i < sums->n_layers; i++)
            values[h * sums->n_layers + i] = sums->head_best[h][i] > 0
                                                 ? sums->head_captured[h][i] / sums->head_best[h][i]
                                                 : NAN;
    }
    for (int i = 0; i < sums->n_layers; i += 5) {
        snprintf(names[i], sizeof names[i], "%d", i);
        columns[i] = names[i];
    }
    svg_map map = {.title = name,
                   .x_title = "layer",
                   .y_title = "head",
                   .n_columns = sums->n_layers,
                   .n_rows = sums->n_heads,
                   .values = values,
                   .column_names = columns,
                   .row_names = rows,
                   .high = 1,
                   .cell_width = 12,
                   .cell_height = 16};
    svg_draw_map(out, &map);
}

static void draw_recall(eval_buf *out, const report *r, const report_card *card)
{
    static svg_series series[SVG_MAX_SERIES];
    eval_buf maps = {0};
    int n = 0;
    for (int p = 0; p < card->n_plans && n < SVG_MAX_SERIES; p++) {
        recall_sums sums = {.n_heads = 0};
        svg_series *s = &series[n];
        *s = (svg_series){.label = card->plans[p].label, .colour = card->plans[p].colour};
        each_row(r, card, "lists", &card->plans[p], add_recall, &sums);
        for (int layer = 0; layer < MAX_LAYERS; layer++) {
            if (sums.best[layer] <= 0) continue;
            s->x[s->n] = layer;
            s->y[s->n++] = sums.captured[layer] / sums.best[layer];
        }
        if (s->n) n++;
        if (s->n) draw_heads(&maps, s->label, &sums);
    }
    if (!n) {
        eval_buf_free(&maps);
        return;
    }
    svg_lines chart = {.title = "mass held by the lists",
                       .x = {.title = "layer", .is_tight = true},
                       .y = {.title = "attention mass of the list, share of the best list as long",
                             .high = 1, /* it holds at most all */
                             .is_percent = true},
                       .series = series,
                       .n_series = n};
    eval_buf_text(
        out,
        "<section><h2>Mass held, by layer and head</h2>\n<p>Dense attention that lies on the tokens of the list that a "
        "layer reads (its own, or that of the layer it shares), over what the best list of the same length would "
        "hold. Layers that read everything are left out.</p>\n<div class=\"figure\">\n");
    svg_draw_lines(out, &chart);
    eval_buf_text(out,
                  "</div>\n<p>The same by KV head: full colour is all of it.</p>\n<div class=\"maps\">\n");
    eval_buf_add(out, maps.data, maps.n);
    eval_buf_text(out, "</div></section>\n");
    eval_buf_free(&maps);
}

/* ---- the text ---- */

static void keep_first(const json_t *row, void *user)
{
    const json_t **kept = user;
    if (!*kept) *kept = row;
}

/* The end of the document, each token shaded by how often it was read. Runs of one shade are one span. */
static void draw_text(eval_buf *out, const json_t *row)
{
    const char *text = row_text(row, "text");
    int64_t n = (int64_t)json_array_size(json_object_get(row, "lengths")), at = 0, most = 1;
    int64_t n_text = (int64_t)strlen(text);
    int64_t from = n > SHOWN_TOKENS ? n - SHOWN_TOKENS : 0;
    int shade = -1;
    for (int64_t i = 0; i < n; i++)
        if (row_count(row, "reads", i, INT32_MAX) > most) most = row_count(row, "reads", i, INT32_MAX);
    eval_buf_printf(out, "<div class=\"read\">%s", from ? "… " : "");
    for (int64_t i = 0; i < n; i++) {
        int64_t n_bytes = row_count(row, "lengths", i, n_text - at);
        if (i >= from) {
            int wanted = (int)((row_count(row, "reads", i, most) * 10 + most / 2) / most) * 6;
            if (wanted != shade)
                eval_buf_printf(out, "%s<b style=\"--w:%d%%\">", shade >= 0 ? "</b>" : "", wanted);
            shade = wanted;
            char piece[512];
            snprintf(piece, sizeof piece, "%.*s", (int)(n_bytes < 511 ? n_bytes : 511), text + at);
            svg_escape(out, piece);
        }
        at += n_bytes;
    }
    eval_buf_printf(out, "%s</div>\n", shade >= 0 ? "</b>" : "");
}

static void draw_texts(eval_buf *out, const report *r, const report_card *card)
{
    int n_shown = 0;
    for (int p = 0; p < card->n_plans && n_shown < MAX_SHOWN_TEXTS; p++) {
        const json_t *row = NULL;
        if (card->plans[p].is_control) continue;
        each_row(r, card, "text", &card->plans[p], keep_first, &row);
        if (!row) continue;
        eval_buf_text(out, "<section><h2>What was read under ");
        svg_escape(out, card->plans[p].label);
        eval_buf_text(
            out,
            "</h2>\n<p>The end of a document, and how often each token stood in a list while its last 32 tokens "
            "were read: the darker, the more often.</p>\n");
        draw_text(out, row);
        eval_buf_text(out, "</section>\n");
        n_shown++;
    }
}

void report_lists(eval_buf *out, const report *r, const report_card *card)
{
    overlap_mean *mean = calloc(1, sizeof *mean);
    if (!mean) {
        out->is_failed = true;
        return;
    }
    each_row(r, card, "overlap", NULL, add_overlap, mean);
    if (mean->n_rows) {
        eval_buf_text(
            out,
            "<section><h2>Overlap of lists</h2>\n<p>Of the tokens that hold most of a layer's dense attention (a "
            "sixteenth of the document; the first and the last ones left out), the share that another layer, "
            "or the step before, has too.</p>\n<div class=\"maps\">\n");
        draw_overlap(out, mean);
        eval_buf_text(out, "</div></section>\n");
    }
    free(mean);
    draw_recall(out, r, card);
    draw_texts(out, r, card);
}
