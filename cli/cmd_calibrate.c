/* cmd_calibrate.c - `heddle bench calibrate`: the prices of a decode step on this host (cost.h).
 *
 * One session is filled densely, from depth to depth; at each depth every probe plan decodes a few tokens on a
 * fork of it. The probes read the same layers in different ways, so that each price shows in some of them; one
 * more, that shares lists between layers as real plans do, is no part of the fit and says how good it is. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "eval/stats.h"
#include "term.h"

typedef struct calibrate_options {
    cli_common common;
    const char *file, *out;
    int64_t depth, tokens;
} calibrate_options;

#define AT(field) offsetof(calibrate_options, field)
static const cli_option calibrate_rows[] = {
    {"depth", 0, CLI_INT, "TOKENS", "8K", "the deepest of four depths, each half of the next", AT(depth), 512,
     1 << 24, 0},
    {"tokens", 0, CLI_INT, "N", "24", "tokens decoded by each probe at each depth; the lower quartile counts",
     AT(tokens), 4, 256, 0},
    {"file", 'f', CLI_TEXT, "FILE", NULL, "fill with this text, repeated as needed (default: a built-in one)",
     AT(file), 0, 0, 0},
    {"out", 'o', CLI_TEXT, "FILE", "cost.json", "write the cost model here", AT(out), 0, 0, 0},
    {0},
};
#undef AT

#define PROBE(rules)       "{\"heddle_plan\": 1, \"name\": \"probe\", \"variants\": [{\"decode\": [" rules "]}]}"
#define ROUTED(op, router) "{\"layers\": \"all\", \"operator\": \"" op "\", \"router\": {" router "}}"
static const struct probe {
    const char *name, *json;
    bool is_check;
} probes[] = {
    {"dense", PROBE(""), false},
    {"window 256", PROBE(ROUTED("token_list", "\"score\": \"none\", \"window\": 256")), false},
    {"window 1024", PROBE(ROUTED("token_list", "\"score\": \"none\", \"window\": 1024")), false},
    {"4-bit keys, k 128",
     PROBE(ROUTED("token_list", "\"score\": \"key_i4\", \"top_k\": 128, \"window\": 64")), false},
    {"4-bit keys, k 1024",
     PROBE(ROUTED("token_list", "\"score\": \"key_i4\", \"top_k\": 1024, \"window\": 64")), false},
    {"8-bit keys, k 128",
     PROBE(ROUTED("token_list", "\"score\": \"key_i8\", \"top_k\": 128, \"window\": 64")), false},
    {"block means, k 512",
     PROBE(ROUTED("block_list", "\"score\": \"block_mean\", \"block\": 32, \"top_k\": 512, \"window\": 64")),
     false},
    {"dense that selects", PROBE(ROUTED("dense", "\"score\": \"attention_mass\", \"top_k\": 128")), false},
    {"one list for all",
     PROBE("{\"layers\": \"first\", \"operator\": \"token_list\", \"router\": {\"score\": \"key_i4\", "
           "\"top_k\": 512, \"window\": 64}}, "
           "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}"),
     true},
};
enum { N_PROBES = sizeof probes / sizeof *probes, N_DEPTHS = 4, N_WARM = 2, MAX_TOKENS = 256 };

typedef struct calibration {
    const calibrate_options *options;
    cli_setup setup;
    heddle_plan *plans[N_PROBES];
    int32_t *ids;
    cost_point points[N_PROBES * N_DEPTHS];
    int n_points;
} calibration;

/* Every probe decodes a token, then every probe the next: a host that is slower for a while is so for all. The
 * time of a probe is its lower quartile, since what else the host does only adds. */
static heddle_status time_probes(calibration *at, int64_t depth)
{
    static double ms[N_PROBES][MAX_TOKENS];
    heddle_session *forks[N_PROBES] = {NULL};
    int64_t n = at->options->tokens;
    heddle_status status = HEDDLE_OK;
    for (int p = 0; p < N_PROBES && !status; p++)
        status = heddle_session_fork_as(&forks[p], at->setup.session, at->plans[p], 0);
    for (int64_t i = 0; i < N_WARM + n; i++)
        for (int p = 0; p < N_PROBES && !status; p++) {
            double start_s = term_now();
            status = heddle_session_decode(forks[p], at->ids + depth + i, 1);
            if (i >= N_WARM) ms[p][i - N_WARM] = 1e3 * (term_now() - start_s);
        }
    for (int p = 0; p < N_PROBES && !status; p++) {
        cost_point *point = &at->points[at->n_points++];
        eval_sort(ms[p], n);
        *point = (cost_point){
            .plan = probes[p].name, .depth = depth, .ms = ms[p][n / 4], .is_check = probes[p].is_check};
        status = cost_terms(at->setup.engine, at->plans[p], at->setup.session_options.kv_type,
                            depth + N_WARM + n / 2, point->terms);
    }
    for (int p = 0; p < N_PROBES; p++) heddle_session_free(forks[p]);
    return status;
}

static int measure(calibration *at)
{
    int64_t deepest = at->options->depth, n_ids = deepest + N_WARM + at->options->tokens;
    heddle_session_options *options = &at->setup.session_options;
    heddle_status status = HEDDLE_OK;
    for (int i = 0; i < N_PROBES && !status; i++) {
        status = heddle_plan_parse(&at->plans[i], probes[i].json, (int64_t)strlen(probes[i].json), "probe");
        if (!status) status = heddle_plan_check(at->plans[i], at->setup.engine);
    }
    if (status) return cli_fail(status);
    options->kept_plans = (const heddle_plan *const *)at->plans;
    options->n_kept_plans = N_PROBES;
    int code = cli_sample_ids(at->setup.engine, at->options->file, n_ids, &at->ids);
    if (!code) code = cli_open_session(&at->setup, n_ids);
    for (int d = N_DEPTHS - 1; d >= 0 && !code; d--) {
        int64_t depth = deepest >> d, len = heddle_session_len(at->setup.session);
        status = heddle_session_extend(at->setup.session, at->ids + len, depth - len, NULL, NULL);
        if (!status) status = time_probes(at, depth);
        if (status) code = cli_fail(status);
    }
    return code;
}

static void print_model(const calibration *at, const cost_model *model)
{
    double check = 0;
    printf("%-20s %8s %10s %10s %8s\n", "probe", "depth", "measured", "fitted", "off by");
    for (int i = 0; i < at->n_points; i++) {
        const cost_point *point = &at->points[i];
        double fitted = cost_of_terms(model, point->terms), off = fitted / point->ms - 1;
        if (point->is_check) check = fmax(check, fabs(off));
        printf("%-20s %8" PRId64 " %7.3f ms %7.3f ms %+7.1f %%%s\n", point->plan, point->depth, point->ms,
               fitted, 100 * off, point->is_check ? " (not fitted to)" : "");
    }
    printf("\nA decode step: %.3f ms whatever the context holds (%.4f ms a layer)\n", model->ms[COST_STEP],
           model->ms[COST_STEP] / at->setup.info.n_layers);
    static const char *const what[COST_N_TERMS] = {NULL, "keys and values in their order",
                                                   "keys and values through lists", "summaries to score",
                                                   "scores to choose from"};
    for (int i = COST_DENSE; i < COST_N_TERMS; i++)
        printf("  + %.4f ms for each %-10s %s%s\n", model->ms[i], i == COST_SELECT ? "million" : "10^6 bytes",
               what[i], model->ms[i] > 0 ? "" : " (too little to see)");
    printf("off by at most %.1f %% where it was fitted, %.1f %% where it was not\n", 100 * model->worst_error,
           100 * check);
}

static int finish(calibration *at)
{
    cost_model model = {0};
    heddle_device_peaks peaks = {.struct_size = sizeof peaks};
    heddle_status status = heddle_device_measure(&peaks);
    if (status) return cli_fail(status);
    printf("%s, %d threads, KV %s: reads %.1f GB/s from memory; %.0f GFLOP/s f32, %.0f GOP/s int8\n\n",
           peaks.isa, peaks.n_threads, at->setup.session_options.kv_type, peaks.read_bytes_per_s / 1e9,
           peaks.fma_flops_per_s / 1e9, peaks.int8_ops_per_s / 1e9);
    if (!cost_fit(&model, at->points, at->n_points))
        return cli_refuse("bench calibrate: the measured times determine no prices");
    snprintf(model.model, sizeof model.model, "%s", at->setup.info.name);
    snprintf(model.kv_type, sizeof model.kv_type, "%s", at->setup.session_options.kv_type);
    snprintf(model.isa, sizeof model.isa, "%s", peaks.isa);
    model.weight_bytes = at->setup.info.weight_bytes;
    model.n_threads = peaks.n_threads;
    print_model(at, &model);
    return cost_save(&model, at->points, at->n_points, at->options->out);
}

static int calibrate(const void *command_options)
{
    calibration *at = calloc(1, sizeof *at);
    if (!at) return EXIT_RUNTIME;
    at->options = command_options;
    const char *out = at->options->out;
    int code = cli_check_file(out, "cost model", cli_file_is(out, "{*\"heddle_cost\"*"));
    if (!code) code = cli_open(&at->setup, &at->options->common);
    if (!code) code = measure(at);
    if (!code) code = finish(at);
    for (int i = 0; i < N_PROBES; i++) heddle_plan_free(at->plans[i]);
    free(at->ids);
    cli_close(&at->setup);
    free(at);
    return code ? code : cli_finish_output();
}

const cli_command cmd_calibrate = {
    .name = "bench calibrate",
    .usage = "-m MODEL [--depth TOKENS] [-o FILE] [options]",
    .summary = "Fits what a decode step costs on this host",
    .about =
        "Decodes under probe plans at four depths and fits a price to each thing that a step reads, by least\n"
        "squares of the relative error. plan search --cost FILE then finds a plan within a budget.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_SESSION,
    .options = calibrate_rows,
    .options_size = sizeof(calibrate_options),
    .run = calibrate,
};
