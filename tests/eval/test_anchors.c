/* test_anchors.c - Kascade's programme against every set of anchors there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <math.h>

#include "eval/anchors.h"

enum { N = 8 };

/* A bit an anchor. */
static double value_of(const double *served, uint32_t anchors)
{
    double sum = 0;
    for (int32_t j = 0, anchor = 0; j < N; j++) {
        if (anchors >> j & 1) anchor = j;
        sum += served[anchor * N + j];
    }
    return sum;
}

static double best_of_all(const double *served, int32_t n_anchors)
{
    double best = -INFINITY;
    for (uint32_t set = 1; set < 1u << N; set += 2) /* with layer 0 */
        if (__builtin_popcount(set) == n_anchors) best = fmax(best, value_of(served, set));
    return best;
}

static uint32_t solved(const double *served, int32_t n_anchors)
{
    bool is_anchor[N];
    uint32_t set = 0;
    assert_true(anchors_solve(served, N, n_anchors, is_anchor));
    for (int32_t i = 0; i < N; i++) set |= (uint32_t)is_anchor[i] << i;
    return set;
}

/* levels: how many values there are, so that some cases have many equal sums and some none served at all. */
static void check_random(uint32_t levels)
{
    uint32_t seed = levels;
    for (int turn = 0; turn < 1000; turn++) {
        double served[N * N];
        for (int i = 0; i < N * N; i++) {
            seed = seed * 1664525 + 1013904223;
            served[i] = i / N > i % N ? NAN : (double)((seed >> 8) % levels) / levels; /* below: not read */
        }
        for (int32_t n = 1; n <= N; n++) {
            uint32_t set = solved(served, n);
            assert_true(set & 1);
            assert_int_equal(__builtin_popcount(set), n);
            double is = value_of(served, set), best = best_of_all(served, n);
            if (!(fabs(is - best) <= 1e-12))
                fail_msg("case %d, %d anchors: set %02x has %.9g, the best of all %.9g", turn, n, set, is,
                         best);
        }
    }
}

static void test_equals_every_set(void **state)
{
    (void)state;
    check_random(1);
    check_random(3);
    check_random(1 << 20);
}

/* By hand: a layer is served fully by itself, and by a list d layers before it the less the more d; but 3 serves 4..7
 * as well as they would themselves. */
static void test_golden(void **state)
{
    (void)state;
    double served[N * N] = {0};
    for (int l = 0; l < N; l++)
        for (int j = l; j < N; j++) served[l * N + j] = l == 3 ? 1 : 1 - 0.125 * (j - l);
    assert_int_equal(solved(served, 1), 0x01);
    assert_int_equal(solved(served, 2), 0x09);                 /* 0, 3 */
    assert_true(value_of(served, solved(served, 3)) == 7.875); /* 0, 3 and 1 or 2 */
    assert_int_equal(solved(served, 4) & 0x0f, 0x0f);
    assert_int_equal(solved(served, N), 0xff);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_equals_every_set)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
