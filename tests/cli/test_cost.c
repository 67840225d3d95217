/* test_cost.c - the cost model's fit: prices that are there are found, none is below zero, a check is not fitted to; what
 * is written is what is read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "cli/cost.h"

enum { N_PROBES = 9, N_DEPTHS = 4, N = N_PROBES * N_DEPTHS };

/* Probes as `bench calibrate` has them: dense, lists of three sizes, summaries of three sizes, with scores and without. */
static void make_points(cost_point *points)
{
    static const double depth_of[N_DEPTHS] = {512, 2048, 8192, 32768};
    for (int p = 0; p < N_PROBES; p++)
        for (int d = 0; d < N_DEPTHS; d++) {
            double tokens = depth_of[d], listed = p ? fmin(tokens, 128 << (p % 3)) : 0;
            cost_point *at = &points[p * N_DEPTHS + d];
            *at = (cost_point){.plan = "probe", .depth = (int64_t)tokens};
            at->terms[COST_STEP] = 1;
            at->terms[COST_DENSE] = p ? 0 : tokens * 768e-6;
            at->terms[COST_LISTED] = listed * 768e-6;
            at->terms[COST_SUMMARY] = p > 3 ? tokens * 100e-6 / (p - 3) : 0;
            at->terms[COST_SELECT] = p > 2 ? tokens * 1e-6 * (p % 2 ? 1 : 3) : 0;
        }
}

static void price(cost_point *points, const double *ms)
{
    cost_model model = {0};
    memcpy(model.ms, ms, sizeof model.ms);
    for (int i = 0; i < N; i++) points[i].ms = cost_of_terms(&model, points[i].terms);
}

static void test_prices_are_found(void **state)
{
    (void)state;
    const double prices[] = {5.5, 0.08, 0.21, 0.13, 0.9};
    cost_point points[N];
    cost_model model = {0};
    make_points(points);
    price(points, prices);
    assert_true(cost_fit(&model, points, N));
    for (int i = 0; i < COST_N_TERMS; i++) assert_true(fabs(model.ms[i] / prices[i] - 1) < 1e-6);
    assert_true(model.worst_error < 1e-9);
    points[7].is_check = true; /* is not looked at */
    points[7].ms *= 10;
    assert_true(cost_fit(&model, points, N));
    for (int i = 0; i < COST_N_TERMS; i++) assert_true(fabs(model.ms[i] / prices[i] - 1) < 1e-6);
    points[7].is_check = false;
    assert_true(cost_fit(&model, points, N));
    assert_true(model.worst_error > 0.5);
}

/* The sum of squares of the relative error, what the fit makes least. */
static double error_of(const cost_model *model, const cost_point *points)
{
    double sum = 0;
    for (int i = 0; i < N; i++) sum += pow(cost_of_terms(model, points[i].terms) / points[i].ms - 1, 2);
    return sum;
}

static void test_no_price_is_below_zero(void **state)
{
    (void)state;
    const double prices[] = {5.5, 0.08, 0.21, 0.13, -0.2};
    cost_point points[N];
    cost_model model = {0};
    make_points(points);
    price(points, prices);
    assert_true(cost_fit(&model, points, N));
    for (int i = 0; i < COST_N_TERMS; i++) assert_true(model.ms[i] >= 0);
    assert_true(model.ms[COST_SELECT] == 0);
    for (int i = 0; i < COST_N_TERMS; i++) /* no price a little off is better */
        for (int sign = -1; sign <= 1; sign += 2) {
            cost_model other = model;
            other.ms[i] += sign * 1e-3 * fmax(model.ms[i], 1e-2);
            if (other.ms[i] >= 0) assert_true(error_of(&other, points) > error_of(&model, points));
        }
}

/* Where two things are always read together their prices cannot be told apart; what both cost can. */
static void test_what_goes_together(void **state)
{
    (void)state;
    const double prices[] = {5.5, 0.08, 0.21, 0.13, 0};
    cost_point points[N];
    cost_model model = {0};
    make_points(points);
    for (int i = 0; i < N; i++) points[i].terms[COST_SELECT] = 2 * points[i].terms[COST_SUMMARY];
    price(points, prices);
    assert_true(cost_fit(&model, points, N));
    assert_true(model.worst_error < 1e-6);
    assert_true(fabs(model.ms[COST_SUMMARY] + 2 * model.ms[COST_SELECT] - 0.13) < 1e-6);
    for (int i = 0; i < N; i++) points[i].is_check = true;
    assert_false(cost_fit(&model, points, N)); /* nothing to fit to */
}

static void test_written_is_read(void **state)
{
    (void)state;
    char path[] = "/tmp/heddle-cost-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    const double prices[] = {5.5, 0.08, 0.21, 0.13, 0.9};
    cost_point points[N];
    cost_model model = {.kv_type = "f16", .weight_bytes = 1234, .n_threads = 2}, read;
    heddle_model_info info = {.struct_size = sizeof info, .weight_bytes = 1234};
    snprintf(model.model, sizeof model.model, "m");
    snprintf(model.isa, sizeof model.isa, "avx2");
    info.name = "m";
    make_points(points);
    price(points, prices);
    assert_true(cost_fit(&model, points, N));
    assert_int_equal(cost_save(&model, points, N, path), 0);
    assert_int_equal(cost_load(&read, path, &info, "f16", 2), 0);
    for (int i = 0; i < COST_N_TERMS; i++) assert_true(fabs(read.ms[i] / prices[i] - 1) < 1e-4);
    assert_int_not_equal(cost_load(&read, path, &info, "q8_0", 2), 0);
    assert_int_not_equal(cost_load(&read, path, &info, "f16", 1), 0);
    info.weight_bytes++;
    assert_int_not_equal(cost_load(&read, path, &info, "f16", 2), 0);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prices_are_found),
        cmocka_unit_test(test_no_price_is_below_zero),
        cmocka_unit_test(test_what_goes_together),
        cmocka_unit_test(test_written_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
