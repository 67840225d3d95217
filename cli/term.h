/* term.h - what people see: progress, figures, bars. Escape codes only where stderr or stdout is a
 * terminal; elsewhere the same facts as plain lines. */
#ifndef CLI_TERM_H
#define CLI_TERM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { TERM_COUNT = 32 };
/* "12,288" and "140.2 MiB" into the caller's buffer, which is returned. */
const char *term_count(char text[TERM_COUNT], int64_t n);
const char *term_bytes(char text[TERM_COUNT], double bytes);
const char *term_seconds(char text[TERM_COUNT], double seconds); /* "1 min 20 s" */

double term_now(void);         /* seconds, monotonic */
int64_t term_peak_bytes(void); /* VmHWM of this process; 0 = unknown */
void term_peak_reset(void);    /* from here on, where the kernel can */

typedef struct term_progress {
    const char *verb; /* "reading" */
    double start_s, shown_s;
} term_progress;
void term_progress_start(term_progress *progress, const char *verb);
/* Shows tokens, tokens/s and the time left; at most a few times a second. */
void term_progress_show(term_progress *progress, int64_t n_done, int64_t n_total);
int term_on_progress(int64_t n_done, int64_t n_total,
                     void *progress); /* the same as the library calls it; 0 */
/* Removes the line from a terminal; anything that writes to stderr may call it. */
void term_clear_progress(void);

typedef struct term_bar {
    const char *group, *label; /* "16,384", "anchor" */
    double value;
    int series; /* 0..: one colour each */
} term_bar;
/* Horizontal bars on stdout, one line each, scaled to the largest. */
void term_chart(const char *title, const term_bar *bars, int n_bars);

#endif
