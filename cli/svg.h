/* svg.h - charts as inline SVG: points, lines and heat maps with axes and direct labels.
 *
 * Colours are classes and variables of the page (cmd_report.c), so that light and dark are one
 * drawing: series s0..s7, control, faint, heat (opacity carries the value). Sizes are in CSS pixels
 * of a drawing that scales with the page. */
#ifndef CLI_SVG_H
#define CLI_SVG_H

#include "eval/basics.h"

enum { SVG_MAX_POINTS = 128, SVG_MAX_SERIES = 64, SVG_N_COLOURS = 8, SVG_CONTROL = -1 };

/* Text with <, > and & written so that it is text. */
void svg_escape(eval_buf *out, const char *text);

typedef struct svg_axis {
    const char *title;
    double low, high;                  /* low == high: from the data */
    bool is_log, is_percent, is_count; /* percent: values are shares; count: 4K, 1M */
    bool has_zero, is_tight;           /* starts at 0; ends with the data */
} svg_axis;

typedef struct svg_point {
    double x, y;
    double y_low, y_high; /* an interval; NaN = none */
    const char *label;
    int colour; /* 0.. or SVG_CONTROL */
} svg_point;
/* Points, each of which says its name and place when it is pointed at. The names of the frontier and of controls are
 * written; those of others where there is room beside them. A point below y.low stands at the foot with its value.
 * level: a dashed line with its text; NaN = none. is_less_better: of x, which way the frontier runs. */
typedef struct svg_scatter {
    const char *title;
    svg_axis x, y;
    const svg_point *points;
    int n_points;
    double level;
    const char *level_text;
    bool is_less_better;
} svg_scatter;
void svg_draw_scatter(eval_buf *out, const svg_scatter *chart);

typedef struct svg_series {
    const char *label;
    int colour;
    int n;
    double x[SVG_MAX_POINTS], y[SVG_MAX_POINTS];
} svg_series;
typedef struct svg_lines {
    const char *title;
    svg_axis x, y;
    const svg_series *series;
    int n_series;
} svg_lines;
void svg_draw_lines(eval_buf *out, const svg_lines *chart);

typedef struct svg_map {
    const char *title, *x_title, *y_title;
    int n_columns, n_rows;
    const double *values;                               /* [n_rows, n_columns] 0..1; NaN = not measured */
    const char *const *column_names, *const *row_names; /* a NULL or empty name is not shown */
    double low, high;                                   /* the values of no and full colour */
    bool has_numbers;                                   /* each cell says its value in % */
    int cell_width, cell_height;
} svg_map;
void svg_draw_map(eval_buf *out, const svg_map *map);

#endif
