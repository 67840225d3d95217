/* term.c - progress on stderr, bars on stdout, figures as text. */
#include "term.h"

#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static bool is_line_open; /* a progress line stands on the terminal */

const char *term_count(char text[TERM_COUNT], int64_t n)
{
    char digits[TERM_COUNT];
    int n_digits = snprintf(digits, sizeof digits, "%" PRIu64, n < 0 ? (uint64_t)-n : (uint64_t)n);
    char *out = text;
    if (n < 0) *out++ = '-';
    for (int i = 0; i < n_digits; i++) {
        if (i && (n_digits - i) % 3 == 0) *out++ = ',';
        *out++ = digits[i];
    }
    *out = 0;
    return text;
}

const char *term_bytes(char text[TERM_COUNT], double bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, TERM_COUNT, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

const char *term_seconds(char text[TERM_COUNT], double seconds)
{
    if (seconds < 0) seconds = 0;
    int64_t whole = (int64_t)(seconds + 0.5);
    if (seconds < 10)
        snprintf(text, TERM_COUNT, "%.1f s", seconds);
    else if (whole < 60)
        snprintf(text, TERM_COUNT, "%" PRId64 " s", whole);
    else if (whole < 3600)
        snprintf(text, TERM_COUNT, "%" PRId64 " min %" PRId64 " s", whole / 60, whole % 60);
    else
        snprintf(text, TERM_COUNT, "%" PRId64 " h %" PRId64 " min", whole / 3600, whole % 3600 / 60);
    return text;
}

double term_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int64_t term_peak_bytes(void)
{
    FILE *file = fopen("/proc/self/status", "r");
    long long kib = 0;
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "VmHWM: %lld kB", &kib) == 1) break;
    }
    if (file) fclose(file);
    return (int64_t)kib * 1024;
}

void term_peak_reset(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file) return;
    fputs("5\n", file);
    fclose(file);
}

static bool is_tty_stream(FILE *stream)
{
    return isatty(fileno(stream));
}

void term_progress_start(term_progress *progress, const char *verb)
{
    double now = term_now();
    *progress = (term_progress){.verb = verb, .start_s = now, .shown_s = now};
}

void term_progress_show(term_progress *progress, int64_t n_done, int64_t n_total)
{
    double now = term_now();
    bool is_tty = is_tty_stream(stderr);
    if (n_done < n_total && now - progress->shown_s < (is_tty ? 0.1 : 5.0)) return;
    if (n_done >= n_total && now - progress->start_s < 1.0) return; /* over before anyone looked */
    progress->shown_s = now;
    double elapsed_s = now - progress->start_s;
    double rate = elapsed_s > 0 ? (double)n_done / elapsed_s : 0;
    char done[TERM_COUNT], total[TERM_COUNT], left[TERM_COUNT];
    fprintf(stderr, "%s%s %s of %s tokens, %.0f tokens/s, %s left%s", is_tty ? "\r\033[K" : "",
            progress->verb, term_count(done, n_done), term_count(total, n_total), rate,
            term_seconds(left, rate > 0 ? (double)(n_total - n_done) / rate : 0), is_tty ? "" : "\n");
    fflush(stderr);
    is_line_open = is_tty;
}

int term_on_progress(int64_t n_done, int64_t n_total, void *progress)
{
    term_progress_show(progress, n_done, n_total);
    return 0;
}

void term_clear_progress(void)
{
    if (!is_line_open) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    is_line_open = false;
}

static int screen_columns(void)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col < 40) return 80;
    return size.ws_col < 120 ? size.ws_col : 120;
}

/* A bar with a resolution of an eighth of a character. */
static void print_bar(double share, int width)
{
    static const char *const parts[] = {"",       "\u258f", "\u258e", "\u258d",
                                        "\u258c", "\u258b", "\u258a", "\u2589"};
    int eighths = (int)(share * width * 8 + 0.5);
    for (int i = 0; i < eighths / 8; i++) fputs("\u2588", stdout);
    fputs(parts[eighths % 8], stdout);
}

void term_chart(const char *title, const term_bar *bars, int n_bars)
{
    static const char *const colours[] = {"\033[34m", "\033[32m", "\033[33m", "\033[35m", "\033[36m"};
    bool is_tty = is_tty_stream(stdout);
    double largest = 0;
    int group_width = 0, label_width = 0;
    for (int i = 0; i < n_bars; i++) {
        int group = (int)strlen(bars[i].group), label = (int)strlen(bars[i].label);
        if (bars[i].value > largest) largest = bars[i].value;
        if (group > group_width) group_width = group;
        if (label > label_width) label_width = label;
    }
    int width = screen_columns() - group_width - label_width - 14;
    if (width < 10) width = 10;
    printf("%s\n", title);
    for (int i = 0; i < n_bars; i++) {
        bool is_new = !i || strcmp(bars[i].group, bars[i - 1].group) != 0;
        printf("%*s  %-*s  %s", group_width, is_new ? bars[i].group : "", label_width, bars[i].label,
               is_tty ? colours[bars[i].series % 5] : "");
        print_bar(largest > 0 ? bars[i].value / largest : 0, width);
        printf("%s %.1f\n", is_tty ? "\033[0m" : "", bars[i].value);
    }
}
