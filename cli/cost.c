/* cost.c - the cost model: fitted, written, read, applied. */
#include "cost.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const term_names[COST_N_TERMS] = {"step_ms", "dense_ms_per_mb", "listed_ms_per_mb",
                                                     "summary_ms_per_mb", "select_ms_per_million"};

heddle_status cost_terms(const heddle_engine *engine, const heddle_plan *plan, const char *kv_type,
                         int64_t depth, double *terms)
{
    heddle_plan_reads reads = {.struct_size = sizeof reads};
    heddle_status status = heddle_plan_count_reads(engine, plan, kv_type, depth, &reads);
    terms[COST_STEP] = 1;
    terms[COST_DENSE] = reads.dense_bytes / 1e6;
    terms[COST_LISTED] = reads.listed_bytes / 1e6;
    terms[COST_SUMMARY] = reads.summary_bytes / 1e6;
    terms[COST_SELECT] = reads.scores / 1e6;
    return status;
}

double cost_of_terms(const cost_model *model, const double *terms)
{
    double ms = 0;
    for (int i = 0; i < COST_N_TERMS; i++) ms += model->ms[i] * terms[i];
    return ms;
}

double cost_bytes(const double *terms)
{
    return 1e6 * (terms[COST_DENSE] + terms[COST_LISTED] + terms[COST_SUMMARY]);
}

/* Solves the normal equations of the active terms by elimination with pivoting; a term that the points do not
 * determine gets 0. */
static void solve(double a[COST_N_TERMS][COST_N_TERMS + 1], const bool *is_active, double *x)
{
    int order[COST_N_TERMS], n = 0;
    double pivot[COST_N_TERMS];
    for (int i = 0; i < COST_N_TERMS; i++) {
        x[i] = 0;
        pivot[i] = a[i][i];
        if (is_active[i] && pivot[i] > 0) order[n++] = i;
    }
    for (int i = 0; i < n; i++) {
        int r = order[i];
        if (a[r][r] <= 1e-12 * pivot[r]) { /* a sum of the terms before it */
            order[i--] = order[--n];
            continue;
        }
        for (int j = i + 1; j < n; j++) {
            int s = order[j];
            double f = a[s][r] / a[r][r];
            for (int k = 0; k <= COST_N_TERMS; k++) a[s][k] -= f * a[r][k];
        }
    }
    for (int i = n - 1; i >= 0; i--) {
        double value = a[order[i]][COST_N_TERMS];
        for (int j = i + 1; j < n; j++) value -= a[order[i]][order[j]] * x[order[j]];
        x[order[i]] = value / a[order[i]][order[i]];
    }
}

/* Least squares of the relative error; while a price comes out below zero, the lowest is taken as none. */
bool cost_fit(cost_model *model, const cost_point *points, int n)
{
    bool is_active[COST_N_TERMS];
    for (int i = 0; i < COST_N_TERMS; i++) is_active[i] = true;
    for (int turn = 0; turn < COST_N_TERMS; turn++) {
        double a[COST_N_TERMS][COST_N_TERMS + 1] = {{0}};
        for (int p = 0; p < n; p++) {
            if (points[p].is_check || !(points[p].ms > 0)) continue;
            double w = 1 / (points[p].ms * points[p].ms);
            for (int i = 0; i < COST_N_TERMS; i++) {
                for (int j = 0; j < COST_N_TERMS; j++) a[i][j] += w * points[p].terms[i] * points[p].terms[j];
                a[i][COST_N_TERMS] += w * points[p].terms[i] * points[p].ms;
            }
        }
        solve(a, is_active, model->ms);
        int lowest = 0;
        for (int i = 1; i < COST_N_TERMS; i++)
            if (model->ms[i] < model->ms[lowest]) lowest = i;
        if (model->ms[lowest] >= 0) break;
        is_active[lowest] = false;
    }
    model->worst_error = 0;
    for (int p = 0; p < n; p++)
        if (!points[p].is_check)
            model->worst_error = fmax(model->worst_error,
                                      fabs(cost_of_terms(model, points[p].terms) / points[p].ms - 1));
    double sum = 0;
    for (int i = 0; i < COST_N_TERMS; i++) sum += model->ms[i];
    return sum > 0 && isfinite(sum);
}

int cost_save(const cost_model *model, const cost_point *points, int n, const char *path)
{
    json_t *terms = json_object(), *rows = json_array();
    for (int i = 0; i < COST_N_TERMS; i++) json_object_set_new(terms, term_names[i], json_real(model->ms[i]));
    for (int p = 0; p < n; p++)
        json_array_append_new(rows, json_pack("{s:s, s:I, s:f, s:f, s:b}", "plan", points[p].plan, "depth",
                                              (json_int_t)points[p].depth, "ms", points[p].ms, "fitted_ms",
                                              cost_of_terms(model, points[p].terms), "is_check",
                                              points[p].is_check));
    json_t *root = json_pack("{s:i, s:s, s:I, s:s, s:s, s:i, s:o, s:f, s:o}", "heddle_cost", 1, "model",
                             model->model, "weight_bytes", (json_int_t)model->weight_bytes, "kv_type",
                             model->kv_type, "isa", model->isa, "n_threads", (int)model->n_threads, "terms",
                             terms, "worst_error", model->worst_error, "points", rows);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : NULL;
    int code = text ? cli_write_file(path, text, (int64_t)strlen(text))
                    : cli_refuse("%s: no memory for the cost model", path);
    free(text);
    json_decref(root);
    return code;
}

static int read_model(cost_model *model, const json_t *root, const char *path)
{
    const char *name = json_string_value(json_object_get(root, "model"));
    const char *kv_type = json_string_value(json_object_get(root, "kv_type"));
    const json_t *terms = json_object_get(root, "terms"), *threads = json_object_get(root, "n_threads");
    if (json_integer_value(json_object_get(root, "heddle_cost")) != 1 || !name || !kv_type ||
        !json_is_integer(threads))
        return cli_refuse("%s: is no cost model; heddle bench calibrate writes one", path);
    *model = (cost_model){.n_threads = (int32_t)json_integer_value(threads)};
    snprintf(model->model, sizeof model->model, "%s", name);
    snprintf(model->kv_type, sizeof model->kv_type, "%s", kv_type);
    model->weight_bytes = json_integer_value(json_object_get(root, "weight_bytes"));
    model->worst_error = json_number_value(json_object_get(root, "worst_error"));
    for (int i = 0; i < COST_N_TERMS; i++) {
        const json_t *term = json_object_get(terms, term_names[i]);
        model->ms[i] = json_number_value(term);
        if (!json_is_number(term) || !(model->ms[i] >= 0))
            return cli_refuse("%s: terms.%s: must be a number of 0 or more", path, term_names[i]);
    }
    return 0;
}

int cost_load(cost_model *model, const char *path, const heddle_model_info *info, const char *kv_type,
              int64_t n_threads)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root && error.line < 0) return cli_refuse("%s", error.text);
    if (!root) return cli_refuse("%s: line %d: %s", path, error.line, error.text);
    int code = read_model(model, root, path);
    json_decref(root);
    if (code) return code;
    if (model->weight_bytes != info->weight_bytes || strcmp(model->model, info->name))
        return cli_refuse(
            "%s: was measured with model \"%s\" of %lld bytes of weights, this is \"%s\" of %lld", path,
            model->model, (long long)model->weight_bytes, info->name, (long long)info->weight_bytes);
    if (strcmp(model->kv_type, kv_type))
        return cli_refuse("%s: was measured with KV %s, this is %s", path, model->kv_type, kv_type);
    if (n_threads && n_threads != model->n_threads)
        return cli_refuse("%s: was measured with %d threads, this is %lld", path, model->n_threads,
                          (long long)n_threads);
    return 0;
}
