/* report_charts.c - speed beside quality, loss by position, speed and memory by depth. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report.h"

static void open_figure(eval_buf *out, const char *heading, const char *about)
{
    eval_buf_printf(out, "<section><h2>%s</h2>\n<p>%s</p>\n<div class=\"figure\">\n", heading, about);
}

static void close_figure(eval_buf *out)
{
    eval_buf_text(out, "</div></section>\n");
}

/* ---- the frontier ---- */

typedef enum frontier_x { BY_SHARE, BY_SPEED } frontier_x;
typedef enum frontier_y { BY_RECOVERY, BY_PERPLEXITY, BY_WORST } frontier_y;

typedef struct frontier_axis {
    const char *title, *axis, *level_text;
    double low, least, high, level; /* low goes down to the plans (no controls) between it and least */
    bool is_percent;
} frontier_axis;

static const frontier_axis frontier_axes[] = {
    [BY_RECOVERY] = {"what is kept of dense's gain", "R of the worst text: dense's gain over a window of 512",
                     "a plan passes at 0.95", 0.8, 0.4, 1.02, 0.95, false},
    [BY_PERPLEXITY] = {"perplexity", "dense's perplexity over the plan's, of the worst text", "one percent",
                       0.94, 0.85, 1.004, 0.99, true},
    [BY_WORST] = {"the worst deciding task", "worst deciding task: answer tokens against dense, points",
                  "two points", -0.1, -0.5, 0.03, -0.02, true},
};

static svg_point frontier_point(const report *r, const report_card *card, const report_plan *plan,
                                frontier_x by_x, frontier_y by_y)
{
    report_quality q = report_quality_of(r, card, plan);
    const report_speed *speed = report_speed_of(r, card, plan->spec, -1);
    double x = by_x == BY_SHARE                        ? q.share
               : !strcmp(plan->spec, "dense") && speed ? 1
                                                       : report_speed_over_dense(r, card, speed);
    if (by_x == BY_SHARE && isnan(x) && speed) x = speed->share;
    double y = by_y == BY_RECOVERY     ? q.worst_recovery.value
               : by_y == BY_PERPLEXITY ? exp(-q.worst_loss)
                                       : q.worst;
    svg_point point = {x, y, NAN, NAN, plan->label, plan->colour};
    if (by_y == BY_RECOVERY) {
        point.y_low = q.worst_recovery.low;
        point.y_high = q.worst_recovery.high;
    }
    return point;
}

static void draw_frontier(eval_buf *out, const report *r, const report_card *card, frontier_x by_x,
                          frontier_y by_y)
{
    svg_point points[SVG_MAX_POINTS];
    const frontier_axis *y = &frontier_axes[by_y];
    int n = 0;
    for (int p = 0; p < card->n_plans && n < SVG_MAX_POINTS; p++) {
        svg_point point = frontier_point(r, card, &card->plans[p], by_x, by_y);
        if (isfinite(point.x) && point.x > 0 && !isnan(point.y)) points[n++] = point;
    }
    if (n < 2) return;
    double foot = y->low, head = y->high;
    for (int i = 0; i < n; i++) {
        if (points[i].y > head) head = ceil(points[i].y * 20) / 20;
        if (points[i].colour != SVG_CONTROL && points[i].y < foot && points[i].y >= y->least)
            foot = floor(points[i].y * 20) / 20;
    }
    svg_scatter chart = {
        .title = y->title,
        .x =
            {.title = by_x == BY_SPEED
                          ? "decode at the greatest depth measured, times dense's speed there in the same run"
                          : "keys and values read, share of dense's bytes",
             .is_percent = by_x == BY_SHARE,
             .is_log = true,
             .is_count = true},
        .y = {.title = y->axis, .low = foot, .high = head, .is_percent = y->is_percent},
        .points = points,
        .n_points = n,
        .level = y->level,
        .level_text = y->level_text,
        .is_less_better = by_x == BY_SHARE};
    svg_draw_scatter(out, &chart);
}

void report_frontier(eval_buf *out, const report *r, const report_card *card)
{
    eval_buf charts = {0};
    for (int by_x = BY_SPEED; by_x >= BY_SHARE; by_x--)
        for (int by_y = BY_RECOVERY; by_y <= BY_WORST; by_y++)
            draw_frontier(&charts, r, card, (frontier_x)by_x, (frontier_y)by_y);
    if (charts.n) {
        open_figure(
            out, "Quality beside speed and what is read",
            "Each plan's quality where it was measured and its decode speed where that was, which may be at another "
            "length: the table below says both. Filled points: no other plan is better on both axes. Grey: controls. A "
            "triangle at the foot is below the scale. Bars: 95 % by document. A name that has no room beside its point "
            "is shown when the point is pointed at.");
        eval_buf_add(out, charts.data, charts.n);
        close_figure(out);
    }
    eval_buf_free(&charts);
}

/* ---- loss by position ---- */

/* Dense's and the plan's sums of one bin over the documents that both have. */
static double bin_difference(const report *r, const report_card *card, const report_plan *plan,
                             const char *governs, int bin)
{
    double nll[2] = {0}, n[2] = {0};
    const char *key;
    json_t *row;
    json_object_foreach(r->results.by_key, key, row)
    {
        summary_filter filter = report_filter(card, "loss", NULL, card->loss_context);
        filter.governs = governs;
        if (!summary_fits(&filter, row)) continue;
        int which = !strcmp(row_text(row, "plan"), "dense")           ? 0
                    : !strcmp(row_text(row, "plan_hash"), plan->hash) ? 1
                                                                      : -1;
        if (which < 0 || isnan(row_number_at(row, "bin_tokens", bin))) continue;
        nll[which] += row_number_at(row, "bin_nll", bin);
        n[which] += row_number_at(row, "bin_tokens", bin);
    }
    return n[0] > 0 && n[1] == n[0] ? (nll[1] - nll[0]) / n[0] : NAN; /* the same tokens, or no figure */
}

void report_position(eval_buf *out, const report *r, const report_card *card)
{
    static svg_series series[SVG_MAX_SERIES];
    const char *governs = "all";
    int n = 0;
    if (!card->loss_context) return;
    for (int p = 0; p < card->n_plans && n < SVG_MAX_SERIES; p++) {
        const report_plan *plan = &card->plans[p];
        svg_series *s = &series[n];
        if (!*plan->hash || !strcmp(plan->spec, "dense")) continue;
        *s = (svg_series){.label = plan->label, .colour = plan->colour};
        for (int bin = 0; bin < 8; bin++) {
            double difference = bin_difference(r, card, plan, governs, bin);
            if (isnan(difference)) continue;
            s->x[s->n] = (bin + 0.5) / 8 * (double)card->loss_context;
            s->y[s->n++] = difference;
        }
        if (s->n) n++;
    }
    if (!n) return;
    svg_lines chart = {.title = "loss by position",
                       .x = {.title = "position in the document, tokens", .is_tight = true},
                       .y = {.title = "nats a token more than dense"},
                       .series = series,
                       .n_series = n};
    open_figure(out, "Loss by position",
                "Every row of the document is under the plan; an eighth of it a point.");
    svg_draw_lines(out, &chart);
    close_figure(out);
}

/* ---- speed and memory by depth ---- */

static double value_of(const report_speed *speed, int which)
{
    return which == 0 ? speed->decode : which == 1 ? speed->prefill : speed->kv_bytes / 1048576;
}

static bool is_of_plan(const report_speed *speed, const report_card *card, const char *plan)
{
    return !strcmp(speed->model, card->model) && !strcmp(speed->kv, card->kv) && !strcmp(speed->plan, plan);
}

/* Of one run; a plan that has several rows of a depth, as dense has, is drawn by the last. */
static int depth_series(svg_series *series, const report *r, const report_card *card, int run, int which)
{
    int n = 0, n_most = 0;
    for (int p = 0; p < card->n_plans && n < SVG_MAX_SERIES; p++) {
        svg_series *s = &series[n];
        *s = (svg_series){.label = card->plans[p].label, .colour = card->plans[p].colour};
        for (int i = 0; i < r->n_speeds && s->n < SVG_MAX_POINTS; i++) {
            const report_speed *speed = &r->speeds[i];
            bool is_wanted = speed->run == run && is_of_plan(speed, card, card->plans[p].spec) &&
                             speed->depth > 0;
            if (!is_wanted || isnan(value_of(speed, which))) continue;
            int at = 0;
            while (at < s->n && s->x[at] != speed->depth) at++;
            if (at < s->n) {
                s->y[at] = value_of(speed, which);
                continue;
            }
            s->n++;
            for (; at > 0 && s->x[at - 1] > speed->depth; at--) {
                s->x[at] = s->x[at - 1];
                s->y[at] = s->y[at - 1];
            }
            s->x[at] = speed->depth;
            s->y[at] = value_of(speed, which);
        }
        if (s->n > n_most) n_most = s->n;
        if (s->n) n++;
    }
    return n_most > 1 ? n : 0; /* of one depth, the table has the figures */
}

void report_depths(eval_buf *out, const report *r, const report_card *card)
{
    static const char *const headings[] = {"Decode speed by depth", "Prefill speed by depth",
                                           "Memory by depth"};
    static const char *const units[] = {"tokens a second, one at a time", "tokens a second, 512 at once",
                                        "keys and values held, MiB"};
    static svg_series series[SVG_MAX_SERIES];
    for (int at = 0; at < 3 * r->n_runs; at++) {
        int which = at / r->n_runs, run = at % r->n_runs, n = depth_series(series, r, card, run, which);
        if (!n) continue;
        svg_lines chart = {.title = headings[which],
                           .x = {.title = "tokens already there", .is_log = true, .is_count = true},
                           .y = {.title = units[which], .has_zero = true},
                           .series = series,
                           .n_series = n};
        eval_buf_printf(out, "<section><h2>%s</h2>\n", headings[which]);
        report_runs(out, r, card, run);
        eval_buf_text(out, "<div class=\"figure\">\n");
        svg_draw_lines(out, &chart);
        close_figure(out);
    }
}
