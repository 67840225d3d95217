/* svg.c - charts as inline SVG. Layout is by rule: labels are placed where they cover nothing. */
#include "svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 720,
    HEIGHT = 400,
    LEFT = 64,
    TOP = 14,
    BOTTOM = 52,
    LABEL_HEIGHT = 15,
    MAX_TICKS = 16,
    FOOT = 5
};
static const double label_width_per_byte = 7.6;

void svg_escape(eval_buf *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
            case '<': eval_buf_text(out, "&lt;"); break;
            case '>': eval_buf_text(out, "&gt;"); break;
            case '&': eval_buf_text(out, "&amp;"); break;
            case '"': eval_buf_text(out, "&quot;"); break;
            default: eval_buf_add(out, text, 1);
        }
    }
}

static void text_at(eval_buf *out, double x, double y, const char *anchor, const char *class,
                    const char *text)
{
    eval_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, class);
    svg_escape(out, text);
    eval_buf_text(out, "</text>\n");
}

static void line_at(eval_buf *out, double x1, double y1, double x2, double y2, const char *class)
{
    eval_buf_printf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2,
                    y2, class);
}

static void open_svg(eval_buf *out, const char *title, double width, double height)
{
    eval_buf_printf(out, "<svg viewBox=\"0 0 %.0f %.0f\" style=\"max-width:%.0fpx\" role=\"img\"><title>",
                    width, height, width);
    svg_escape(out, title);
    eval_buf_text(out, "</title>\n");
}

static const char *colour_class(char *text, size_t n, int colour)
{
    if (colour < 0)
        snprintf(text, n, "control");
    else
        snprintf(text, n, "s%d", colour % SVG_N_COLOURS);
    return text;
}

/* ---- axes ---- */

typedef struct scale {
    const svg_axis *axis;
    double low, high, from, to; /* data range, pixels */
    double ticks[MAX_TICKS];
    int n_ticks;
} scale;

static double at(const scale *s, double value)
{
    double share = s->axis->is_log ? log(value / s->low) / log(s->high / s->low)
                                   : (value - s->low) / (s->high - s->low);
    return s->from + share * (s->to - s->from);
}

/* 1, 2 or 5 times a power of ten, about range / n. */
static double nice_step(double range, int n)
{
    double raw = range / n, power = pow(10, floor(log10(raw))), ratio = raw / power;
    return power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
}

static void linear_ticks(scale *s)
{
    double step = nice_step(s->high - s->low, 5);
    bool is_open = s->axis->low == s->axis->high &&
                   !s->axis->is_tight; /* the data's range: out to whole steps */
    if (is_open) {
        s->low = floor(s->low / step + 1e-9) * step;
        s->high = ceil(s->high / step - 1e-9) * step;
    }
    for (double t = ceil(s->low / step - 1e-9) * step; t <= s->high + step * 1e-6 && s->n_ticks < MAX_TICKS;
         t += step)
        s->ticks[s->n_ticks++] = fabs(t) < step * 1e-6 ? 0 : t;
}

static void log_ticks(scale *s)
{
    double base = s->axis->is_count ? 2 : 10, step = base;
    while (log(s->high / s->low) / log(step) > 9) step *= base;
    for (double t = pow(base, floor(log(s->low) / log(base))); t <= s->high * 1.001 && s->n_ticks < MAX_TICKS;
         t *= step)
        if (t >= s->low * 0.999) s->ticks[s->n_ticks++] = t;
}

/* lowest, highest: of the data. */
static scale scale_of(const svg_axis *axis, double lowest, double highest, double from, double to)
{
    scale s = {.axis = axis, .low = axis->low, .high = axis->high, .from = from, .to = to};
    if (axis->low == axis->high) {
        double room = axis->is_tight     ? 0
                      : highest > lowest ? (highest - lowest) * 0.05
                                         : fabs(highest) * 0.1 + 1e-9;
        s.low = axis->has_zero ? 0 : axis->is_log ? lowest / 1.15 : lowest - room;
        s.high = axis->is_log ? highest * 1.15 : highest + room;
    }
    if (axis->is_log)
        log_ticks(&s);
    else
        linear_ticks(&s);
    return s;
}

static const char *tick_text(char *text, size_t n, const scale *s, double value)
{
    if (s->axis->is_percent)
        snprintf(text, n, "%.4g %%", value * 100);
    else if (s->axis->is_count && value >= 1048576)
        snprintf(text, n, "%.3gM", value / 1048576);
    else if (s->axis->is_count && value >= 1024)
        snprintf(text, n, "%.3gK", value / 1024);
    else
        snprintf(text, n, "%.5g", value);
    return text;
}

static void draw_axes(eval_buf *out, const scale *x, const scale *y)
{
    char text[32];
    for (int i = 0; i < y->n_ticks; i++) {
        double py = at(y, y->ticks[i]);
        line_at(out, x->from, py, x->to, py, "grid");
        text_at(out, x->from - 8, py + 4, "end", "tick", tick_text(text, sizeof text, y, y->ticks[i]));
    }
    for (int i = 0; i < x->n_ticks; i++) {
        double px = at(x, x->ticks[i]);
        line_at(out, px, y->from, px, y->from + 4, "axis");
        text_at(out, px, y->from + 19, "middle", "tick", tick_text(text, sizeof text, x, x->ticks[i]));
    }
    line_at(out, x->from, y->from, x->to, y->from, "axis");
    text_at(out, (x->from + x->to) / 2, y->from + 42, "middle", "title", x->axis->title);
    text_at(out, 2, TOP, "start", "title", y->axis->title);
}

/* ---- points ---- */

typedef struct box {
    double x0, y0, x1, y1;
} box;

static double overlap(const box *a, const box *b)
{
    double w = fmin(a->x1, b->x1) - fmax(a->x0, b->x0), h = fmin(a->y1, b->y1) - fmax(a->y0, b->y0);
    return w > 0 && h > 0 ? w * h : 0;
}

/* A label whose nearer end, or middle (0), is dx, dy away from its point. */
static box label_at(double px, double py, double dx, double dy, double width)
{
    double x0 = dx > 0   ? px + dx
                : dx < 0 ? px + dx - width
                         : px - width / 2,
           y0 = py + dy - LABEL_HEIGHT / 2.0;
    return (box){x0, y0, x0 + width, y0 + LABEL_HEIGHT};
}

/* How much of `taken` a label covers; far above that when it leaves the drawing. */
static double label_cost(const box *b, const box *taken, int n_taken, const scale *x, const scale *y)
{
    double cost = b->x0 < x->from || b->x1 > WIDTH - 2 ? 1e4 : 0;
    if (b->y0 < y->to - 6 || b->y1 > y->from + 4) cost += 1e4;
    for (int t = 0; t < n_taken; t++) cost += overlap(b, &taken[t]);
    return cost;
}

/* The place of a label: beside its point, or, for one that must be placed, on rings around it, ever wider, until one
 * covers nothing of `taken`; where none does, the one that covers least. *is_far: not beside. Gives what it covers. */
static double place_label(box *place, const box *taken, int n_taken, double px, double py, double width,
                          const scale *x, const scale *y, bool is_must, bool *is_far)
{
    static const double beside[][2] = {{10, 0},  {-10, 0}, {0, -16},  {0, 16},
                                       {6, -16}, {6, 16},  {-6, -16}, {-6, 16}};
    enum { N_NEAREST = 4, N_BESIDE = sizeof beside / sizeof *beside, N_RINGS = 40, N_TURNS = 16 };
    double least = INFINITY;
    for (int i = 0; i < (is_must ? N_BESIDE + N_RINGS * N_TURNS : N_NEAREST) && least > 0; i++) {
        int ring = (i - N_BESIDE) / N_TURNS + 2;
        double turn = 2 * 3.14159265358979 * ((i - N_BESIDE) % N_TURNS) / N_TURNS, radius = 8.0 * ring;
        box b = i < N_BESIDE ? label_at(px, py, beside[i][0], beside[i][1], width)
                             : label_at(px, py, round(radius * cos(turn)), round(radius * sin(turn)), width);
        double cost = label_cost(&b, taken, n_taken, x, y);
        if (cost >= least) continue;
        least = cost;
        *place = b;
        *is_far = i >= N_BESIDE;
    }
    return least;
}

/* Whether no other point is better on both axes. */
static bool is_on_frontier(const svg_scatter *chart, int i)
{
    for (int j = 0; j < chart->n_points; j++) {
        double dx = chart->points[j].x - chart->points[i].x, dy = chart->points[j].y - chart->points[i].y;
        if (chart->is_less_better) dx = -dx;
        if (j != i && dx >= 0 && dy >= 0 && (dx > 0 || dy > 0)) return false;
    }
    return true;
}

static void draw_frontier(eval_buf *out, const svg_scatter *chart, const scale *x, const scale *y)
{
    int order[SVG_MAX_POINTS], n = 0;
    for (int i = 0; i < chart->n_points; i++)
        if (is_on_frontier(chart, i) && chart->points[i].y >= y->low) order[n++] = i;
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && chart->points[order[j]].x < chart->points[order[j - 1]].x; j--) {
            int kept = order[j];
            order[j] = order[j - 1];
            order[j - 1] = kept;
        }
    if (n < 2) return;
    eval_buf_text(out, "<polyline class=\"frontier\" points=\"");
    for (int i = 0; i < n; i++)
        eval_buf_printf(out, "%.1f,%.1f ", at(x, chart->points[order[i]].x),
                        at(y, chart->points[order[i]].y));
    eval_buf_text(out, "\"/>\n");
}

/* What is shown where the point is pointed at: its name and both values. */
static void point_title(eval_buf *out, const svg_point *p, const scale *x, const scale *y)
{
    char value[32];
    eval_buf_text(out, "<title>");
    svg_escape(out, p->label);
    eval_buf_printf(out, ": %s; ", tick_text(value, sizeof value, x, round(p->x * 1000) / 1000));
    eval_buf_printf(out, "%s</title>", tick_text(value, sizeof value, y, round(p->y * 1000) / 1000));
}

static bool has_bar(const svg_point *p, const scale *y)
{
    return !isnan(p->y_low) && p->y >= y->low;
}

static double bar_end(double value, const scale *y)
{
    return fmax(y->low, fmin(value, y->high));
}

static void draw_point(eval_buf *out, const svg_point *p, double px, double py, const scale *x,
                       const scale *y, bool is_faint)
{
    char class[16];
    colour_class(class, sizeof class, p->colour);
    if (has_bar(p, y))
        eval_buf_printf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"bar %s\"/>\n", px,
                        at(y, bar_end(p->y_low, y)), px, at(y, bar_end(p->y_high, y)), class);
    if (p->y < y->low)
        eval_buf_printf(out, "<path d=\"M%.1f %.1fl-6 -9h12z\"", px, py + 4);
    else
        eval_buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\"", px, py);
    eval_buf_printf(out, " class=\"dot %s%s\">", class, is_faint ? " open" : "");
    point_title(out, p, x, y);
    eval_buf_printf(out, "</%s>\n", p->y < y->low ? "path" : "circle");
}

/* The name of a point, where it covers nothing that is `taken`, which it then is part of; returns how many are. Of
 * those beside the frontier and the controls a name that has no room is left out. */
static int draw_label(eval_buf *out, const svg_scatter *chart, int which, const scale *x, const scale *y,
                      box *taken, int n_taken)
{
    const svg_point *p = &chart->points[which];
    double px = at(x, p->x), py = fmin(at(y, p->y), y->from - FOOT);
    char label[160], value[32];
    bool is_far = false;
    snprintf(label, sizeof label, "%s%s%s", p->label, p->y < y->low ? " " : "",
             p->y < y->low ? tick_text(value, sizeof value, y, round(p->y * 100) / 100) : "");
    double width = ((double)strlen(label) + 0.5) *
                   label_width_per_byte; /* half a letter between neighbours */
    bool is_faint = !is_on_frontier(chart, which), is_must = !is_faint || p->colour == SVG_CONTROL;
    box b = {0};
    if (place_label(&b, taken, n_taken, px, py, width, x, y, is_must, &is_far) > 0 && !is_must)
        return n_taken;
    if (is_far) line_at(out, px, py, fmax(b.x0, fmin(px, b.x1)), fmax(b.y0, fmin(py, b.y1)), "leader");
    text_at(out, b.x0, b.y1 - 3.5, "start", is_faint ? "label faint" : "label", label);
    taken[n_taken] = b;
    return n_taken + 1;
}

/* The level's line; its text at that end where it covers fewer points. */
static int draw_level(eval_buf *out, const svg_scatter *chart, const scale *x, const scale *y, box *taken,
                      int n_taken)
{
    double py = at(y, chart->level), width = (double)strlen(chart->level_text) * label_width_per_byte;
    const box right = {x->to - width, py - 18, x->to, py - 2},
              left = {x->from, py - 18, x->from + width, py - 2};
    bool is_right = label_cost(&right, taken, n_taken, x, y) <= label_cost(&left, taken, n_taken, x, y);
    line_at(out, x->from, py, x->to, py, "level");
    text_at(out, is_right ? x->to : x->from, py - 5, is_right ? "end" : "start", "note", chart->level_text);
    taken[n_taken] = is_right ? right : left;
    return n_taken + 1;
}

void svg_draw_scatter(eval_buf *out, const svg_scatter *chart)
{
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    box taken[3 * SVG_MAX_POINTS + 1]; /* points, their bars and names; the level's text */
    int n_taken = 0;
    for (int i = 0; i < chart->n_points; i++) {
        x_low = fmin(x_low, chart->points[i].x);
        x_high = fmax(x_high, chart->points[i].x);
        y_low = fmin(y_low, chart->points[i].y);
        y_high = fmax(y_high, chart->points[i].y);
    }
    scale x = scale_of(&chart->x, x_low, x_high, LEFT, WIDTH - 24);
    scale y = scale_of(&chart->y, y_low, y_high, HEIGHT - BOTTOM, TOP + 30);
    open_svg(out, chart->title, WIDTH, HEIGHT);
    draw_axes(out, &x, &y);
    draw_frontier(out, chart, &x, &y);
    for (int i = 0; i < chart->n_points; i++) {
        const svg_point *p = &chart->points[i];
        double px = at(&x, p->x), py = fmin(at(&y, p->y), y.from - FOOT);
        taken[n_taken++] = (box){px - 6, py - 6, px + 6, py + 6};
        if (has_bar(p, &y))
            taken[n_taken++] = (box){px - 1, at(&y, bar_end(p->y_high, &y)), px + 1,
                                     at(&y, bar_end(p->y_low, &y))};
        draw_point(out, &chart->points[i], px, py, &x, &y, !is_on_frontier(chart, i));
    }
    if (!isnan(chart->level) && chart->level > y.low && chart->level < y.high)
        n_taken = draw_level(out, chart, &x, &y, taken, n_taken);
    for (int i = 0; i < 2 * chart->n_points; i++) { /* the frontier's own are placed first, nearest */
        int which = i % chart->n_points;
        bool is_faint = !is_on_frontier(chart, which);
        if (is_faint == (i >= chart->n_points))
            n_taken = draw_label(out, chart, which, &x, &y, taken, n_taken);
    }
    eval_buf_text(out, "</svg>\n");
}

/* ---- lines ---- */

/* Label heights, kept LABEL_HEIGHT apart in the order of the lines' ends. */
static void spread_labels(const double *wanted, double *placed, int n, double bottom)
{
    int order[SVG_MAX_SERIES];
    for (int i = 0; i < n; i++) {
        order[i] = i;
        placed[i] = wanted[i];
        for (int j = i; j > 0 && wanted[order[j]] < wanted[order[j - 1]]; j--) {
            int kept = order[j];
            order[j] = order[j - 1];
            order[j - 1] = kept;
        }
    }
    for (int i = 1; i < n; i++)
        placed[order[i]] = fmax(placed[order[i]], placed[order[i - 1]] + LABEL_HEIGHT);
    if (n && placed[order[n - 1]] > bottom) {
        placed[order[n - 1]] = bottom;
        for (int i = n - 2; i >= 0; i--)
            placed[order[i]] = fmin(placed[order[i]], placed[order[i + 1]] - LABEL_HEIGHT);
    }
}

static void draw_series(eval_buf *out, const svg_series *series, const scale *x, const scale *y)
{
    char class[16];
    colour_class(class, sizeof class, series->colour);
    eval_buf_printf(out, "<polyline class=\"line %s\" points=\"", class);
    for (int i = 0; i < series->n; i++)
        eval_buf_printf(out, "%.1f,%.1f ", at(x, series->x[i]), at(y, series->y[i]));
    eval_buf_text(out, "\"/>\n");
    for (int i = 0; i < series->n; i++)
        eval_buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" class=\"dot %s\"/>\n",
                        at(x, series->x[i]), at(y, series->y[i]), class);
}

void svg_draw_lines(eval_buf *out, const svg_lines *chart)
{
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    double wanted[SVG_MAX_SERIES], placed[SVG_MAX_SERIES], label_width = 0;
    int n = chart->n_series < SVG_MAX_SERIES ? chart->n_series : SVG_MAX_SERIES;
    for (int s = 0; s < n; s++) {
        label_width = fmax(label_width, (double)strlen(chart->series[s].label) * label_width_per_byte);
        for (int i = 0; i < chart->series[s].n; i++) {
            x_low = fmin(x_low, chart->series[s].x[i]);
            x_high = fmax(x_high, chart->series[s].x[i]);
            y_low = fmin(y_low, chart->series[s].y[i]);
            y_high = fmax(y_high, chart->series[s].y[i]);
        }
    }
    scale x = scale_of(&chart->x, x_low, x_high, LEFT, WIDTH - 20 - fmin(label_width, 260));
    double height = fmax(HEIGHT, TOP + 30 + n * (double)LABEL_HEIGHT + BOTTOM); /* every label has its line */
    scale y = scale_of(&chart->y, y_low, y_high, height - BOTTOM, TOP + 30);
    open_svg(out, chart->title, WIDTH, height);
    draw_axes(out, &x, &y);
    for (int s = 0; s < n; s++) {
        draw_series(out, &chart->series[s], &x, &y);
        wanted[s] = at(&y, chart->series[s].y[chart->series[s].n - 1]);
    }
    spread_labels(wanted, placed, n, y.from);
    for (int s = 0; s < n; s++) {
        char class[32], colour[16];
        double end = at(&x, chart->series[s].x[chart->series[s].n - 1]);
        snprintf(class, sizeof class, "label t-%s",
                 colour_class(colour, sizeof colour, chart->series[s].colour));
        if (fabs(placed[s] - wanted[s]) > 3 || x.to - end > 4)
            line_at(out, end + 5, wanted[s], x.to + 8, placed[s], "leader");
        text_at(out, x.to + 10, placed[s] + 4, "start", class, chart->series[s].label);
    }
    eval_buf_text(out, "</svg>\n");
}

/* ---- maps ---- */

void svg_draw_map(eval_buf *out, const svg_map *map)
{
    double left = 24, top = 34, row_width = 0;
    for (int r = 0; r < map->n_rows; r++)
        if (map->row_names[r])
            row_width = fmax(row_width, (double)strlen(map->row_names[r]) * label_width_per_byte);
    left += row_width;
    double width = left + map->n_columns * (double)map->cell_width + 16;
    double height = top + map->n_rows * (double)map->cell_height + 46;
    double title = (double)strlen(map->title) * 9.4,
           foot_title = (double)strlen(map->x_title) * label_width_per_byte;
    double least = left + fmax(title, foot_title);
    open_svg(out, map->title, fmax(width, least), height);
    text_at(out, left, 12, "start", "name", map->title);
    text_at(out, 0, top - 6, "start", "title", map->y_title);
    for (int r = 0; r < map->n_rows; r++) {
        double y = top + r * (double)map->cell_height;
        if (map->row_names[r])
            text_at(out, left - 8, y + map->cell_height / 2.0 + 4, "end", "tick", map->row_names[r]);
        for (int c = 0; c < map->n_columns; c++) {
            double value = map->values[r * map->n_columns + c], x = left + c * (double)map->cell_width;
            double share = (value - map->low) / (map->high - map->low);
            char number[16];
            share = share < 0 ? 0 : share > 1 ? 1 : share;
            if (isnan(value)) continue;
            eval_buf_printf(out,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" class=\"heat\" "
                            "fill-opacity=\"%.3f\"/>\n",
                            x + 0.5, y + 0.5, map->cell_width - 1, map->cell_height - 1, 0.04 + 0.96 * share);
            if (!map->has_numbers) continue;
            snprintf(number, sizeof number, "%.0f", 100 * value);
            text_at(out, x + map->cell_width / 2.0, y + map->cell_height / 2.0 + 4, "middle",
                    share > 0.55 ? "cell on" : "cell", number);
        }
    }
    double foot = top + map->n_rows * (double)map->cell_height;
    for (int c = 0; c < map->n_columns; c++)
        if (map->column_names[c])
            text_at(out, left + (c + 0.5) * map->cell_width, foot + 15, "middle", "tick",
                    map->column_names[c]);
    text_at(out, left, foot + 36, "start", "title", map->x_title);
    eval_buf_text(out, "</svg>\n");
}
