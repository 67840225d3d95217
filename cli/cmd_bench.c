/* cmd_bench.c - `heddle bench depth`: speed at several depths of one context, plans side by side.
 *
 * Each plan's session is filled once, from depth to depth. At a depth the session is forked (its
 * pages are shared, copied where written), and the fork is timed and thrown away:
 *
 *     fill to d --- fork -> 512 tokens at once      prefill tokens/s at this depth
 *               --- fork -> 64 tokens one by one    decode tokens/s, x reps
 *
 * The tokens are those of a real text, so that a routed plan has something to choose. Depth 0 is
 * one token, as there must be something to go on from. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "eval/stats.h"
#include "term.h"

enum { MAX_DEPTHS = 32, MAX_PLANS = 8, MAX_REPS = 100, PREFILL_TOKENS = 512 };

typedef struct bench_options {
    cli_common common;
    const char *depths, *plans, *csv, *file;
    int64_t reps, tokens;
} bench_options;

#define AT(field) offsetof(bench_options, field)
static const cli_option bench_rows[] = {
    {"depths", 0, CLI_TEXT, "LIST", "0,4096,16384,32768", "tokens already there, ascending", AT(depths), 0, 0,
     0},
    {"plans", 0, CLI_TEXT, "LIST", "dense,anchor",
     "plans to compare; ';' separates where one has a ','; no file's name can have a ';'", AT(plans), 0, 0,
     0},
    {"reps", 0, CLI_INT, "N", "5", "repeats; the median counts", AT(reps), 1, MAX_REPS, 0},
    {"tokens", 0, CLI_INT, "N", "64", "tokens decoded in each repeat", AT(tokens), 1, 65536, 0},
    {"file", 'f', CLI_TEXT, "FILE", NULL, "fill with this text, repeated as needed (default: a built-in one)",
     AT(file), 0, 0, 0},
    {"csv", 0, CLI_TEXT, "FILE", NULL, "also write one line a figure to this file", AT(csv), 0, 0, 0},
    {0},
};
#undef AT

typedef struct bench_row {
    int64_t depth;
    int plan;
    double fill_s;          /* all tokens up to this depth */
    double prefill, decode; /* tokens/s, medians */
    double decode_least, decode_most;
    double kv_bytes_per_token; /* read by a decode step */
    double share, tokens_read;
    int64_t peak_bytes, kv_bytes;
} bench_row;

typedef struct bench_state {
    const bench_options *options;
    int64_t depths[MAX_DEPTHS];
    int n_depths;
    char plan_text[512];
    const char *plans[MAX_PLANS];
    int n_plans;
    int32_t *ids; /* [n_ids]: the deepest fill and what is timed after it */
    int64_t n_ids;
    bench_row rows[MAX_DEPTHS * MAX_PLANS];
    int n_rows;
    heddle_model_info info;
    char model_name[128];
    heddle_device_peaks peaks;
} bench_state;

/* ---- what to measure ---- */

static int parse_depths(bench_state *state)
{
    const char *text = state->options->depths;
    while (*text) {
        char *end = NULL;
        long long depth = strtoll(text, &end, 10);
        if (end != text && (*end == 'K' || *end == 'k')) {
            depth *= 1024;
            end++;
        }
        bool is_ascending = !state->n_depths || depth > state->depths[state->n_depths - 1];
        if (end == text || (*end && *end != ',') || depth < 0 || depth > 1 << 28 || !is_ascending) {
            return cli_refuse(
                "bench depth: --depths '%s': must be ascending numbers of tokens such as 0,4096,32K",
                state->options->depths);
        }
        if (state->n_depths == MAX_DEPTHS) return cli_refuse("bench depth: --depths: at most %d", MAX_DEPTHS);
        state->depths[state->n_depths++] = depth;
        text = *end ? end + 1 : end;
    }
    return state->n_depths ? 0 : cli_refuse("bench depth: --depths is empty");
}

static int parse_plans(bench_state *state)
{
    const char *separator = strchr(state->options->plans, ';') ? ";" : ",";
    if (strlen(state->options->plans) >= sizeof state->plan_text)
        return cli_refuse("bench depth: --plans is too long");
    snprintf(state->plan_text, sizeof state->plan_text, "%s", state->options->plans);
    char *rest = NULL;
    for (char *name = strtok_r(state->plan_text, separator, &rest); name;
         name = strtok_r(NULL, separator, &rest)) {
        if (state->n_plans == MAX_PLANS) return cli_refuse("bench depth: --plans: at most %d", MAX_PLANS);
        state->plans[state->n_plans++] = name;
        heddle_plan *plan = NULL;
        heddle_status status = heddle_plan_named(&plan, name);
        heddle_plan_free(plan);
        if (status) return cli_fail(status);
    }
    return state->n_plans ? 0 : cli_refuse("bench depth: --plans is empty");
}

/* Some prose about the thing the project is named after; a file with -f is better. */
static const char built_in_text[] =
    "The warp is wound on the beam before the weaver sits down, and every thread of it passes through "
    "the eye of a heddle. When a shaft is raised, the heddles on it lift their threads together, and "
    "the shuttle goes through the shed that opens. A plain cloth needs two shafts, a twill needs three "
    "or more, and a figured cloth needs as many as the figure has different rows. The order in which "
    "the shafts rise is called the draft; it is written on a grid, with one line for each shaft and "
    "one column for each pick. In the year 1804 a loom read its draft from punched cards, one card for "
    "each pick, so that a pattern of a thousand picks could be woven by one person. ";

int cli_sample_ids(const heddle_engine *engine, const char *path, int64_t n_ids, int32_t **out)
{
    cli_text text = {0};
    int32_t *ids = NULL;
    int64_t n = 0;
    *out = NULL;
    int code = path ? cli_read_file(&text, path) : 0;
    if (code) goto done;
    const char *data = text.n ? text.data : built_in_text;
    heddle_status status = heddle_tokenize(engine, data, text.n ? text.n : (int64_t)strlen(data),
                                           HEDDLE_TOKENIZE_BOS, &ids, &n);
    if (status) {
        code = cli_fail(status);
        goto done;
    }
    *out = n > 0 ? malloc((size_t)n_ids * sizeof **out) : NULL;
    if (!*out) {
        cli_note("heddle: no tokens to fill a context of %" PRId64 " with", n_ids);
        code = EXIT_RUNTIME;
        goto done;
    }
    for (int64_t i = 0; i < n_ids; i++) (*out)[i] = ids[i % n];
done:
    heddle_ids_free(ids);
    cli_text_free(&text);
    return code;
}

static int make_ids(bench_state *state, const heddle_engine *engine)
{
    int64_t n_timed = state->options->tokens > PREFILL_TOKENS ? state->options->tokens : PREFILL_TOKENS;
    state->n_ids = state->depths[state->n_depths - 1] + n_timed + 1;
    return cli_sample_ids(engine, state->options->file, state->n_ids, &state->ids);
}

/* ---- measuring ---- */

/* Seconds for n tokens after position `at`, all at once or one by one, on a fork of the session. */
static heddle_status time_fork(const bench_state *state, heddle_session *session, int64_t at, int64_t n,
                               bool is_decode, double *seconds, heddle_stats *stats)
{
    heddle_session *fork = NULL;
    heddle_status status = heddle_session_fork(&fork, session);
    if (status) return status;
    heddle_session_stats_reset(fork);
    double start_s = term_now();
    for (int64_t i = 0; is_decode && i < n && !status; i++) {
        status = heddle_session_decode(fork, state->ids + at + i, 1);
    }
    if (!is_decode) status = heddle_session_extend(fork, state->ids + at, n, NULL, NULL);
    *seconds = term_now() - start_s;
    stats->struct_size = sizeof *stats;
    heddle_session_stats(fork, stats);
    heddle_session_free(fork);
    return status;
}

static heddle_status measure_depth(const bench_state *state, heddle_session *session, bench_row *row)
{
    const bench_options *options = state->options;
    int64_t at = heddle_session_len(session);
    double prefill[MAX_REPS], decode[MAX_REPS], seconds = 0;
    int reps = (int)options->reps;
    heddle_stats stats = {0};
    for (int i = 0; i < reps; i++) {
        heddle_status status = time_fork(state, session, at, PREFILL_TOKENS, false, &seconds, &stats);
        if (status) return status;
        prefill[i] = PREFILL_TOKENS / seconds;
    }
    for (int i = 0; i < reps; i++) {
        heddle_status status = time_fork(state, session, at, options->tokens, true, &seconds, &stats);
        if (status) return status;
        decode[i] = (double)options->tokens / seconds;
    }
    eval_sort(prefill, reps);
    eval_sort(decode, reps);
    row->prefill = prefill[reps / 2];
    row->decode = decode[reps / 2];
    row->decode_least = decode[0];
    row->decode_most = decode[reps - 1];
    row->kv_bytes_per_token = stats.decode_kv_bytes_read / (double)options->tokens;
    row->share = stats.decode_kv_bytes_dense > 0 ? stats.decode_kv_bytes_read / stats.decode_kv_bytes_dense
                                                 : 1;
    row->tokens_read = stats.decode_tokens_read;
    row->kv_bytes = stats.kv_bytes;
    row->peak_bytes = term_peak_bytes();
    return HEDDLE_OK;
}

static void print_row(const bench_state *state, const bench_row *row)
{
    char depth[TERM_COUNT], kv[TERM_COUNT], peak[TERM_COUNT], tokens[TERM_COUNT], fill[TERM_COUNT] = "-";
    if (row->depth && row->fill_s > 0) {
        snprintf(fill, sizeof fill, "%.1f", (double)row->depth / row->fill_s);
    }
    printf("%10s  %-14s %9s %9.1f %9.1f   %7.1f - %-7.1f %11s %6.1f %% %9s %11s\n",
           term_count(depth, row->depth), state->plans[row->plan], fill, row->prefill, row->decode,
           row->decode_least, row->decode_most, term_bytes(kv, row->kv_bytes_per_token), 100 * row->share,
           term_count(tokens, (int64_t)(row->tokens_read + 0.5)), term_bytes(peak, (double)row->peak_bytes));
    fflush(stdout);
}

/* All depths under one plan. */
static int measure_plan(bench_state *state, int plan)
{
    cli_common common = state->options->common;
    cli_setup setup = {0};
    common.plan = state->plans[plan];
    term_peak_reset();
    int code = cli_open(&setup, &common);
    if (!code && !state->ids) {
        state->info = setup.info;
        snprintf(state->model_name, sizeof state->model_name, "%s", setup.info.name);
        code = make_ids(state, setup.engine);
        if (!code) cli_warn_trained(&setup, state->depths[state->n_depths - 1]);
    }
    if (!code) code = cli_open_session(&setup, state->n_ids);
    double fill_s = 0;
    for (int i = 0; i < state->n_depths && !code; i++) {
        int64_t len = heddle_session_len(setup.session), target = state->depths[i] ? state->depths[i] : 1;
        term_progress progress;
        term_progress_start(&progress, "filling");
        heddle_status status = HEDDLE_OK;
        if (target > len) {
            status = heddle_session_extend(setup.session, state->ids + len, target - len, term_on_progress,
                                           &progress);
        }
        fill_s += term_now() - progress.start_s;
        term_clear_progress();
        bench_row *row = &state->rows[state->n_rows];
        *row = (bench_row){.depth = state->depths[i], .plan = plan, .fill_s = fill_s};
        if (!status) status = measure_depth(state, setup.session, row);
        if (status)
            code = cli_fail(status);
        else
            print_row(state, &state->rows[state->n_rows++]);
    }
    cli_close(&setup);
    return code;
}

/* ---- results ---- */

static void print_chart(const bench_state *state)
{
    term_bar bars[MAX_DEPTHS * MAX_PLANS];
    char groups[MAX_DEPTHS][TERM_COUNT];
    int n_bars = 0;
    for (int i = 0; i < state->n_depths; i++) {
        term_count(groups[i], state->depths[i]);
        for (int j = 0; j < state->n_rows; j++) {
            const bench_row *row = &state->rows[j];
            if (row->depth != state->depths[i]) continue;
            bars[n_bars++] = (term_bar){.group = groups[i],
                                        .label = state->plans[row->plan],
                                        .value = row->decode,
                                        .series = row->plan};
        }
    }
    printf("\n");
    term_chart("decode tokens/s by depth and plan", bars, n_bars);
}

static int write_csv(const bench_state *state)
{
    const bench_options *options = state->options;
    if (!options->csv) return 0;
    char *text = NULL;
    size_t n = 0;
    FILE *file = open_memstream(&text, &n);
    if (!file) return cli_refuse("%s: no memory for the figures", options->csv);
    const heddle_device_peaks *peaks = &state->peaks;
    fprintf(file, "# heddle %s, model %s, KV %s, %d threads, %s\n", heddle_version(), state->model_name,
            options->common.kv_type, peaks->n_threads, peaks->isa);
    fprintf(file, "# read %.2f GB/s (256 MiB), %.2f GB/s (16 MiB); %.1f GFLOP/s f32 FMA; %.1f GOP/s int8\n",
            peaks->read_bytes_per_s / 1e9, peaks->read_small_bytes_per_s / 1e9, peaks->fma_flops_per_s / 1e9,
            peaks->int8_ops_per_s / 1e9);
    fprintf(file,
            "plan,depth,fill_s,prefill_tokens_per_s,decode_tokens_per_s,decode_least,decode_most,"
            "weight_bytes,"
            "kv_bytes_read_per_token,share_of_dense,tokens_read_per_layer,kv_bytes,peak_bytes,reps,tokens\n");
    for (int i = 0; i < state->n_rows; i++) {
        const bench_row *row = &state->rows[i];
        fprintf(file,
                "\"%s\",%" PRId64 ",%.3f,%.2f,%.2f,%.2f,%.2f,%" PRId64 ",%.0f,%.4f,%.1f,%" PRId64 ",%" PRId64
                ",%" PRId64 ",%" PRId64 "\n",
                state->plans[row->plan], row->depth, row->fill_s, row->prefill, row->decode,
                row->decode_least, row->decode_most, state->info.weight_bytes, row->kv_bytes_per_token,
                row->share, row->tokens_read, row->kv_bytes, row->peak_bytes, options->reps, options->tokens);
    }
    int code = fclose(file) ? cli_refuse("%s: no memory for the figures", options->csv)
                            : cli_write_file(options->csv, text, (int64_t)n);
    free(text);
    return code;
}

static int print_peaks(bench_state *state)
{
    heddle_device_peaks *peaks = &state->peaks;
    peaks->struct_size = sizeof *peaks;
    heddle_status status = heddle_device_measure(peaks);
    if (status) return cli_fail(status);
    printf("%s, %d threads: reads %.1f GB/s from memory, %.1f GB/s within 16 MiB; "
           "%.0f GFLOP/s f32, %.0f GOP/s int8\n\n",
           peaks->isa, peaks->n_threads, peaks->read_bytes_per_s / 1e9, peaks->read_small_bytes_per_s / 1e9,
           peaks->fma_flops_per_s / 1e9, peaks->int8_ops_per_s / 1e9);
    printf("%10s  %-14s %9s %9s %9s   %-17s %11s %8s %9s %11s\n", "depth", "plan", "fill t/s", "512 t/s",
           "decode", "least - most", "KV a token", "of dense", "tokens", "peak");
    return 0;
}

static int bench_depth(const void *command_options)
{
    bench_state *state = calloc(1, sizeof *state);
    if (!state) return EXIT_RUNTIME;
    state->options = command_options;
    int code = state->options->common.model ? 0 : cli_refuse("bench depth: no model is given: -m MODEL");
    if (!code) code = parse_depths(state);
    if (!code) code = parse_plans(state);
    const char *csv = state->options->csv;
    if (!code && csv)
        code = cli_check_file(csv, "CSV of bench depth", cli_file_is(csv, "# heddle *, model *, KV *"));
    if (!code) code = print_peaks(state);
    for (int i = 0; i < state->n_plans && !code; i++) code = measure_plan(state, i);
    if (!code) print_chart(state);
    if (!code) code = write_csv(state);
    free(state->ids);
    free(state);
    return code;
}

const cli_command cmd_bench_depth = {
    .name = "bench depth",
    .usage = "-m MODEL [--depths LIST] [--plans LIST] [options]",
    .summary = "Speed at several context depths, plans side by side",
    .about =
        "fill t/s: the document up to this depth; 512 t/s: 512 more tokens at this depth; decode: one by\n"
        "one from this depth; KV a token: bytes of keys and values that a decode step reads, and tokens per layer.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_SESSION,
    .options = bench_rows,
    .options_size = sizeof(bench_options),
    .run = bench_depth,
};
