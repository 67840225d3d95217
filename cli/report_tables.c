/* report_tables.c - every plan in a row, every task in a row, needles by depth and length. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report.h"

static void cell(eval_buf *out, double value, const char *fmt)
{
    char text[64];
    snprintf(text, sizeof text, fmt, value);
    eval_buf_printf(out, "<td>%s</td>", isnan(value) ? "" : text);
}

static void range_cell(eval_buf *out, const eval_interval *i, double unit, const char *fmt)
{
    char text[3][32];
    if (isnan(i->value)) {
        eval_buf_text(out, "<td></td>");
        return;
    }
    snprintf(text[0], sizeof text[0], fmt, i->value * unit);
    snprintf(text[1], sizeof text[1], fmt, i->low * unit);
    snprintf(text[2], sizeof text[2], fmt, i->high * unit);
    eval_buf_printf(out, "<td>%s", text[0]);
    if (!isnan(i->low)) eval_buf_printf(out, "<br><small>%s … %s</small>", text[1], text[2]);
    eval_buf_text(out, "</td>");
}

/* R, perplexity against dense in percent, and the worst text of each. */
static void loss_cells(eval_buf *out, const report_quality *q)
{
    eval_interval perplexity = {expm1(q->loss.value), expm1(q->loss.low), expm1(q->loss.high)};
    range_cell(out, &q->recovery, 1, "%.3f");
    cell(out, q->worst_recovery.value, "%.3f");
    range_cell(out, &perplexity, 100, "%+.2f");
    cell(out, 100 * expm1(q->worst_loss), "%+.2f");
}

static void name_cell(eval_buf *out, const report_plan *plan)
{
    eval_buf_printf(out, "<tr%s><th scope=\"row\"><i class=\"key %s%d\"></i>",
                    plan->is_control ? " class=\"quiet\"" : "", plan->is_control ? "control" : "s",
                    plan->is_control ? 0 : plan->colour % SVG_N_COLOURS);
    svg_escape(out, plan->label);
    eval_buf_text(out, "</th>");
}

/* Of a plan its speed, dense's in the same run and their ratio; of dense itself its speed in every run. */
static void speed_cells(eval_buf *out, const report *r, const report_card *card, const report_speed *speed)
{
    if (!speed) {
        eval_buf_text(out, "<td></td><td></td><td></td><td></td>");
        return;
    }
    bool is_dense = !strcmp(speed->plan, "dense");
    const char *before = "<td>";
    for (int run = 0; run < r->n_runs; run++) {
        double decode = is_dense            ? report_dense_decode(r, card, run, speed->depth)
                        : run == speed->run ? speed->decode
                                            : NAN;
        if (isnan(decode)) continue;
        eval_buf_printf(out, "%s%.1f <small>at %.0fK, run %d</small>", before, decode, speed->depth / 1024,
                        run + 1);
        before = "<br>";
    }
    eval_buf_text(out, "</td>");
    cell(out, is_dense ? NAN : report_dense_decode(r, card, speed->run, speed->depth), "%.1f");
    cell(out, is_dense ? 1 : report_speed_over_dense(r, card, speed), "%.2f");
    cell(out, speed->kv_bytes / 1048576, "%.0f");
}

/* Of what every plan's row tells; what no plan of a card has, has no column. */
typedef struct table_columns {
    bool has_losses, has_tasks, has_agreement, has_speeds;
} table_columns;

static void table_head(eval_buf *out, const report_card *card, const table_columns *columns)
{
    eval_buf_text(out, "<section><h2>Every plan</h2>\n<p>");
    if (columns->has_losses)
        eval_buf_printf(
            out,
            "Over documents of %lld tokens. R: what a plan keeps of dense's gain over a window of 512 tokens, in the "
            "last quarter. Perplexity there, against dense. Small: 95 %% by document. Read: of dense's bytes there. ",
            (long long)card->loss_context);
    if (columns->has_tasks)
        eval_buf_printf(
            out,
            "Points: answer tokens right against dense, over the tasks of %lld tokens that decide on "
            "this model. ",
            (long long)card->contexts[card->n_contexts - 1]);
    if (columns->has_speeds)
        eval_buf_text(
            out,
            "Decode: at the greatest depth that was timed; what was timed together is a run, and a plan is "
            "set against dense of its run alone. Held: keys, values and summaries there.");
    eval_buf_printf(
        out,
        "</p>\n<div class=\"wide\"><table class=\"tasks\"><thead><tr><th>plan</th>%s%s%s<th>read, %%</th>"
        "%s</tr></thead><tbody>\n",
        columns->has_losses ? "<th>R</th><th>worst text</th><th>perplexity, %</th><th>worst text</th>"
                              "<th>documents</th>"
                            : "",
        columns->has_tasks ? "<th>tasks, mean</th><th>worst task</th>" : "",
        columns->has_agreement ? "<th>agreement, %</th>" : "",
        columns->has_speeds ? "<th>decode, tokens/s</th><th>dense in that run</th><th>over dense</th>"
                              "<th>held, MiB</th>"
                            : "");
}

/* Of documents, or, where nothing else is known, of the row that was timed at a depth of its own. */
static void share_cell(eval_buf *out, const report_quality *q, const report_speed *speed)
{
    bool is_timed = isnan(q->share) && speed && !isnan(speed->share);
    if (is_timed)
        eval_buf_printf(out, "<td>%.1f <small>at %.0fK</small></td>", 100 * speed->share,
                        speed->depth / 1024);
    else
        cell(out, 100 * q->share, "%.1f");
}

static void table_row(eval_buf *out, const report *r, const report_card *card, const report_plan *plan,
                      const report_quality *q, const table_columns *columns)
{
    const report_speed *speed = report_speed_of(r, card, plan->spec, -1);
    name_cell(out, plan);
    if (columns->has_losses && isnan(q->loss.value) && report_quality_of_part(r, card, plan, "both").governs)
        eval_buf_text(out, "<td colspan=\"5\"><small>reads prompts by lists: see below</small></td>");
    else if (columns->has_losses) {
        loss_cells(out, q);
        cell(out, q->governs ? (double)q->n_documents : NAN, "%.0f");
    }
    if (columns->has_tasks) {
        cell(out, 100 * q->mean, "%+.1f");
        if (isnan(q->worst))
            eval_buf_text(out, "<td></td>");
        else {
            eval_buf_printf(out, "<td>%+.1f<br><small>", 100 * q->worst);
            svg_escape(out, q->worst_task);
            eval_buf_text(out, "</small></td>");
        }
    }
    if (columns->has_agreement) cell(out, 100 * q->agreement, "%.1f");
    share_cell(out, q, speed);
    if (columns->has_speeds) speed_cells(out, r, card, speed);
    eval_buf_text(out, "</tr>\n");
}

static bool is_in_table(const report *r, const report_card *card, const report_plan *plan,
                        const report_quality *q)
{
    return !isnan(q->loss.value) || !isnan(q->mean) || !isnan(q->agreement) ||
           report_speed_of(r, card, plan->spec, -1);
}

void report_table(eval_buf *out, const report *r, const report_card *card)
{
    static report_quality qualities[REPORT_MAX_PLANS];
    table_columns columns = {false};
    bool has_any = false;
    for (int p = 0; p < card->n_plans; p++) {
        report_quality *q = &qualities[p];
        *q = report_quality_of(r, card, &card->plans[p]);
        columns.has_losses |= !isnan(q->loss.value);
        columns.has_tasks |= !isnan(q->mean);
        columns.has_agreement |= !isnan(q->agreement);
        columns.has_speeds |= report_speed_of(r, card, card->plans[p].spec, -1) != NULL;
        has_any |= is_in_table(r, card, &card->plans[p], q);
    }
    if (!has_any) return;
    table_head(out, card, &columns);
    for (int p = 0; p < card->n_plans; p++)
        if (is_in_table(r, card, &card->plans[p], &qualities[p]))
            table_row(out, r, card, &card->plans[p], &qualities[p], &columns);
    eval_buf_text(out, "</tbody></table></div>\n");
    report_runs(out, r, card, -1);
    eval_buf_text(out, "</section>\n");
}

static bool has_run(const report *r, const report_card *card, int run)
{
    for (int i = 0; i < r->n_speeds; i++)
        if (r->speeds[i].run == run && !strcmp(r->speeds[i].model, card->model) &&
            !strcmp(r->speeds[i].kv, card->kv))
            return true;
    return false;
}

void report_runs(eval_buf *out, const report *r, const report_card *card, int only)
{
    const char *before = "<p>";
    for (int i = 0; i < r->n_runs; i++) {
        const report_run *run = &r->runs[i];
        const char *slash = strrchr(run->path, '/');
        if ((only >= 0 && i != only) || !has_run(r, card, i)) continue;
        eval_buf_printf(out, "%sRun %d: ", before, i + 1);
        svg_escape(out, slash ? slash + 1 : run->path);
        eval_buf_text(out, *run->name ? ", " : "");
        svg_escape(out, run->name);
        eval_buf_text(out, "; ");
        svg_escape(out, *run->host ? run->host : "the file does not say on which host");
        eval_buf_text(out, run->is_made_up
                               ? "; by <code>build/bench/bench_depth</code>: the keys and values are "
                                 "made up, no text was read."
                               : "; by <code>heddle bench depth</code>, over a text.");
        before = "<br>";
    }
    if (!strcmp(before, "<br>")) eval_buf_text(out, "</p>\n");
}

/* ---- what comes after a prompt ---- */

void report_prompts(eval_buf *out, const report *r, const report_card *card)
{
    static const char *const parts[] = {"prompt", "both"}, *const names[] = {"the prompt", "all"};
    bool is_open = false;
    for (int i = 0; i < 2 * card->n_plans; i++) {
        const report_plan *plan = &card->plans[i / 2];
        if (!strcmp(plan->spec, "dense") || report_is_window(plan->spec)) continue;
        report_quality q = report_quality_of_part(r, card, plan, parts[i % 2]);
        if (!q.governs) continue;
        if (!is_open)
            eval_buf_text(
                out,
                "<section><h2>Prompts read by lists</h2>\n<p>Tokens after a prompt of 6,144 that the plan read by "
                "its prefill route, and dense or the plan itself the rest; R and perplexity against dense over the "
                "same tokens. Rows of a prompt that share a list have it from each other's queries, so their own "
                "loss would know of what is to come.</p>\n<div class=\"wide\"><table class=\"tasks\"><thead>"
                "<tr><th>plan</th><th>read by it</th><th>R</th><th>worst text</th><th>perplexity, %</th>"
                "<th>worst text</th><th>documents</th></tr></thead><tbody>\n");
        is_open = true;
        name_cell(out, plan);
        eval_buf_printf(out, "<td>%s</td>", names[i % 2]);
        loss_cells(out, &q);
        eval_buf_printf(out, "<td>%lld</td></tr>\n", (long long)q.n_documents);
    }
    if (is_open) eval_buf_text(out, "</tbody></table></div></section>\n");
}

static const json_t *eviction_of(const report *r, const report_card *card, const report_plan *plan)
{
    summary_filter filter = report_filter(card, "eviction", NULL, 0);
    const char *key;
    json_t *row;
    if (r->results.by_key && *plan->hash)
        json_object_foreach(r->results.by_key, key,
                            row) if (summary_fits(&filter, row) &&
                                     !strcmp(row_text(row, "plan_hash"), plan->hash)) return row;
    return NULL;
}

void report_evictions(eval_buf *out, const report *r, const report_card *card)
{
    bool is_open = false;
    for (int p = 0; p < card->n_plans; p++) {
        const json_t *row = eviction_of(r, card, &card->plans[p]);
        if (!row) continue;
        eval_interval difference = {row_number(row, "minus_dense"), row_number(row, "low95"),
                                    row_number(row, "high95")};
        if (!is_open)
            eval_buf_printf(
                out,
                "<section><h2>Rows evicted at the end of a prompt</h2>\n<p>The loss of %.0f tokens, each decoded, "
                "that come after prompts of 4,096 tokens at whose end the plan evicted rows; small: 95 %% over the "
                "tokens. Another measure than that of plans which evict nothing: no prompt row sees an eviction.</p>\n"
                "<div class=\"wide\"><table class=\"tasks\"><thead><tr><th>plan</th><th>loss, nats a token</th>"
                "<th>against dense</th><th>keys and values held, %%</th></tr></thead><tbody>\n",
                row_number(row, "n_tokens"));
        is_open = true;
        name_cell(out, &card->plans[p]);
        cell(out, row_number(row, "loss"), "%.3f");
        range_cell(out, &difference, 1, "%+.3f");
        cell(out, 100 * row_number(row, "held"), "%.0f");
        eval_buf_text(out, "</tr>\n");
    }
    if (is_open) eval_buf_text(out, "</tbody></table></div></section>\n");
}

/* ---- tasks ---- */

static bool has_controls(const report_card *card)
{
    return card->n_contexts && card->n_plans > 1 && !strcmp(card->plans[0].spec, "dense") &&
           report_is_window(card->plans[1].spec);
}

typedef struct task_column {
    const report_task *task;
    double dense, window;
} task_column;

/* Tasks that were measured, those that decide first; *n_deciding of them. */
static int task_columns(const report *r, const report_card *card, int64_t context, task_column *columns,
                        int *n_deciding)
{
    int n = 0;
    *n_deciding = 0;
    for (int is_deciding = 1; is_deciding >= 0; is_deciding--)
        for (int t = 0; t < card->n_tasks; t++) {
            const report_task *task = &card->tasks[t];
            summary_filter filter = report_filter(card, "task", task->name, context);
            const char *controls[] = {card->plans[0].hash, card->plans[1].hash};
            summary s;
            if (!summary_align(&s, &r->results, &filter, controls, 2, "right", "tokens") && s.n) {
                double dense = eval_ratio(s.num[0], s.den[0], s.n),
                       window = eval_ratio(s.num[1], s.den[1], s.n);
                if (summary_decides(dense, window) == is_deciding)
                    columns[n++] = (task_column){task, dense, window};
                *n_deciding += is_deciding && summary_decides(dense, window);
            }
            summary_free(&s);
        }
    return n;
}

static bool has_tasks(const report *r, const report_card *card, const report_plan *plan, int64_t context)
{
    summary_filter filter = report_filter(card, "task", NULL, context);
    const char *one[] = {plan->hash};
    summary s;
    bool has_any = *plan->hash && !summary_align(&s, &r->results, &filter, one, 1, "right", "tokens") && s.n;
    if (*plan->hash) summary_free(&s);
    return has_any;
}

static void task_cell(eval_buf *out, const report *r, const report_card *card, const report_plan *plan,
                      const task_column *column, int64_t context)
{
    summary_filter filter = report_filter(card, "task", column->task->name, context);
    const char *pair[] = {plan->hash, card->plans[0].hash};
    summary s;
    eval_interval d = {NAN, NAN, NAN};
    if (!summary_align(&s, &r->results, &filter, pair, 2, "right", "tokens") && s.n)
        d = eval_difference(s.num[0], s.den[0], s.num[1], s.den[1], s.n, 1);
    summary_free(&s);
    if (isnan(d.value)) {
        eval_buf_text(out, "<td></td>");
        return;
    }
    eval_buf_printf(out, "<td>%+.1f", 100 * d.value);
    if (!isnan(d.low)) eval_buf_printf(out, "<br><small>%+.1f … %+.1f</small>", 100 * d.low, 100 * d.high);
    eval_buf_text(out, "</td>");
}

void report_tasks(eval_buf *out, const report *r, const report_card *card)
{
    task_column columns[REPORT_MAX_TASKS];
    int n_deciding = 0;
    if (!has_controls(card)) return;
    int64_t context = card->contexts[card->n_contexts - 1];
    int n = task_columns(r, card, context, columns, &n_deciding);
    if (!n) return;
    eval_buf_printf(
        out,
        "<section><h2>Every task, at %lld tokens</h2>\n<p>Teacher-forced answer tokens right, %%; plans in "
        "points against dense. A task decides where dense reaches 60 %% and stands 20 points above a window "
        "of 512 tokens: the first %d here.</p>\n<div class=\"wide\"><table class=\"tasks\"><thead>"
        "<tr><th>plan</th>",
        (long long)context, n_deciding);
    for (int i = 0; i < n; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s", columns[i].task->name);
        for (char *under = name; (under = strchr(under, '_'));) *under = ' ';
        eval_buf_printf(out, "<th class=\"%s\" title=\"%s\">", i < n_deciding ? "" : "quiet",
                        columns[i].task->about);
        svg_escape(out, name);
        eval_buf_text(out, "</th>");
    }
    eval_buf_text(out, "</tr></thead><tbody>\n");
    for (int p = 0; p < card->n_plans; p++) {
        if (!has_tasks(r, card, &card->plans[p], context)) continue;
        name_cell(out, &card->plans[p]);
        for (int i = 0; i < n; i++) {
            if (p < 2)
                eval_buf_printf(out, "<td>%.1f</td>", 100 * (p ? columns[i].window : columns[i].dense));
            else
                task_cell(out, r, card, &card->plans[p], &columns[i], context);
        }
        eval_buf_text(out, "</tr>\n");
    }
    eval_buf_text(out, "</tbody></table></div></section>\n");
}

/* ---- needles by depth and length ---- */

enum { N_DEPTHS = 10 };

static void needle_values(const report *r, const report_card *card, const report_plan *plan, double *values)
{
    double right[N_DEPTHS * REPORT_MAX_CONTEXTS] = {0}, n[N_DEPTHS * REPORT_MAX_CONTEXTS] = {0};
    const char *key, *one[] = {plan->hash};
    summary_filter filter = report_filter(card, "task", NULL, 0);
    json_t *documents = summary_documents(&r->results, &filter, one, 1), *rows;
    json_object_foreach(documents, key, rows)
    {
        const json_t *row = json_array_get(rows, 0);
        if (strncmp(row_text(row, "task"), "needle", 6) != 0 &&
            strcmp(row_text(row, "task"), "multi_key") != 0)
            continue;
        int column = 0;
        while (column < card->n_contexts && (double)card->contexts[column] != row_number(row, "context"))
            column++;
        for (int64_t i = 0; column < card->n_contexts; i++) {
            double depth = row_number_at(row, "depths", i);
            if (isnan(depth)) break;
            int bin = depth < 0 ? -1 : depth >= 1 ? N_DEPTHS - 1 : (int)(depth * N_DEPTHS);
            if (bin < 0) continue;
            right[bin * card->n_contexts + column] += row_number_at(row, "question_right", i);
            n[bin * card->n_contexts + column] += row_number_at(row, "question_tokens", i);
        }
    }
    json_decref(documents);
    for (int i = 0; i < N_DEPTHS * card->n_contexts; i++) values[i] = n[i] > 0 ? right[i] / n[i] : NAN;
}

void report_needles(eval_buf *out, const report *r, const report_card *card)
{
    static const char *const depths[N_DEPTHS] = {"start", "",     "20 %", "",     "40 %",
                                                 "",      "60 %", "",     "80 %", "end"};
    char lengths[REPORT_MAX_CONTEXTS][16];
    const char *columns[REPORT_MAX_CONTEXTS];
    eval_buf maps = {0};
    for (int c = 0; c < card->n_contexts; c++) {
        int64_t n = card->contexts[c];
        snprintf(lengths[c], sizeof lengths[c], n % 1024 ? "%lld" : "%lldK",
                 (long long)(n % 1024 ? n : n / 1024));
        columns[c] = lengths[c];
    }
    for (int p = 0; p < card->n_plans; p++) {
        double values[N_DEPTHS * REPORT_MAX_CONTEXTS];
        bool has_any = false;
        if (!*card->plans[p].hash) continue;
        needle_values(r, card, &card->plans[p], values);
        for (int i = 0; i < N_DEPTHS * card->n_contexts; i++) has_any |= !isnan(values[i]);
        svg_map map = {.title = card->plans[p].label,
                       .x_title = "document, tokens",
                       .y_title = "depth",
                       .n_columns = card->n_contexts,
                       .n_rows = N_DEPTHS,
                       .values = values,
                       .column_names = columns,
                       .row_names = depths,
                       .low = 0.1,
                       .high = 1,
                       .has_numbers = true,
                       .cell_width = 44,
                       .cell_height = 22};
        if (has_any) svg_draw_map(&maps, &map);
    }
    if (maps.n) {
        eval_buf_text(
            out,
            "<section><h2>Needles by depth and length</h2>\n<p>Answer tokens right, %, over the needle tasks; where "
            "in the document the needle stands, from top to bottom.</p>\n<div class=\"maps\">\n");
        eval_buf_add(out, maps.data, maps.n);
        eval_buf_text(out, "</div></section>\n");
    }
    eval_buf_free(&maps);
}
