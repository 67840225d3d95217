/* Intervals: of known samples, paired, reproducible. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "eval/basics.h"
#include "eval/stats.h"

enum { N = 200 };
static double right_a[N], right_b[N], asked[N], noise_only[N];

static int make_samples(void **state)
{
    (void)state;
    eval_rng rng = eval_rng_of(4, "samples", 0);
    for (int i = 0; i < N; i++) {
        double base = (double)eval_rng_below(&rng, 60); /* documents differ by much */
        asked[i] = 100;
        right_b[i] = base;
        right_a[i] = base + 5 + (double)eval_rng_below(&rng, 3) - 1; /* always about 5 points better */
        noise_only[i] = (double)eval_rng_below(&rng, 60);
    }
    return 0;
}

static void test_a_ratio(void **state)
{
    (void)state;
    double num[] = {1, 2, 3}, den[] = {10, 10, 40};
    assert_true(fabs(eval_ratio(num, den, 3) - 0.1) < 1e-15);
    double none[] = {0, 0, 0};
    assert_true(isnan(eval_ratio(num, none, 3)));
    assert_true(isnan(eval_ratio(num, den, 0)));
}

/* The standard error of the mean is known here: the interval is 1.96 of it each way. */
static void test_an_interval_has_the_width_of_theory(void **state)
{
    (void)state;
    double mean = 0, square = 0;
    for (int i = 0; i < N; i++) {
        mean += noise_only[i] / 100 / N;
        square += noise_only[i] * noise_only[i] / 1e4 / N;
    }
    double error = sqrt((square - mean * mean) / N);
    eval_interval interval = eval_ratio_interval(noise_only, asked, N, 1);
    assert_true(fabs(interval.value - mean) < 1e-12);
    assert_true(fabs((interval.high - interval.low) / (2 * 1.96 * error) - 1) < 0.1);
}

static void test_pairs_see_what_documents_hide(void **state)
{
    (void)state;
    eval_interval paired = eval_difference(right_a, asked, right_b, asked, N, 1);
    eval_interval alone = eval_ratio_interval(right_a, asked, N, 1);
    assert_true(paired.value > 0.045 && paired.value < 0.055);
    assert_true(paired.low > 0.04 && paired.high < 0.06);
    assert_true(paired.high - paired.low < (alone.high - alone.low) / 10);
    eval_interval same = eval_difference(right_a, asked, right_a, asked, N, 1);
    assert_true(same.value == 0 && same.low == 0 && same.high == 0);
    eval_interval again = eval_difference(right_a, asked, right_b, asked, N, 1);
    assert_true(again.low == paired.low && again.high == paired.high);
}

static void test_recovery(void **state)
{
    (void)state;
    double w[] = {3.3, 3.5}, p[] = {3.12, 3.32}, d[] = {3.1, 3.3}, n[] = {1, 1};
    eval_interval r = eval_recovery(w, p, d, n, 2, 1);
    assert_true(fabs(r.value - 0.9) < 1e-9);
    assert_true(eval_recovery(w, w, d, n, 2, 1).value == 0);
    assert_true(eval_recovery(w, d, d, n, 2, 1).value == 1);
    assert_true(isnan(eval_recovery(d, p, w, n, 2, 1).value)); /* nothing was gained */
}

static void test_one_document_has_no_interval(void **state)
{
    (void)state;
    eval_interval one = eval_ratio_interval(right_a, asked, 1, 1);
    assert_true(!isnan(one.value) && isnan(one.low) && isnan(one.high));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_ratio),
        cmocka_unit_test(test_an_interval_has_the_width_of_theory),
        cmocka_unit_test(test_pairs_see_what_documents_hide),
        cmocka_unit_test(test_recovery),
        cmocka_unit_test(test_one_document_has_no_interval),
    };
    return cmocka_run_group_tests(tests, make_samples, NULL);
}
