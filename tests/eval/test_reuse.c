/* test_reuse.c - the mended programme of reused lists against every path there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <math.h>

#include "eval/reuse.h"

enum { N = 8 };

typedef struct value { /* of a path */
    double least, sum;
} value;

static value value_of(const double *overlap, const int32_t *source)
{
    value at = {INFINITY, 0};
    for (int32_t j = 0; j < N; j++) {
        at.least = fmin(at.least, overlap[source[j] * N + j]);
        at.sum += overlap[source[j] * N + j];
    }
    return at;
}

static bool is_better(value a, value b)
{
    return a.least > b.least || (a.least == b.least && a.sum > b.sum + 1e-12);
}

/* Every one of the 2^(N-1) paths. */
static value brute_force(const double *overlap, int32_t max_changes)
{
    value best = {-INFINITY, 0};
    for (uint32_t bits = 0; bits < 1u << (N - 1); bits++) {
        int32_t source[N] = {0};
        if (__builtin_popcount(bits) > max_changes) continue;
        for (int32_t j = 1; j < N; j++) source[j] = bits >> (j - 1) & 1 ? j : source[j - 1];
        value at = value_of(overlap, source);
        if (is_better(at, best)) best = at;
    }
    return best;
}

/* The programme as it was published: one pass, the lexicographic best of each state. */
static value one_pass(const double *overlap, int32_t max_changes)
{
    value best[N][N];
    for (int c = 0; c < N; c++)
        for (int i = 0; i < N; i++) best[c][i] = (value){-INFINITY, 0};
    best[0][0] = (value){overlap[0], overlap[0]};
    for (int32_t j = 1; j < N; j++) {
        value next[N][N];
        for (int c = 0; c <= max_changes; c++)
            for (int i = 0; i < N; i++) {
                value from = i < j ? best[c][i] : (value){-INFINITY, 0};
                for (int k = 0; i == j && c > 0 && k < j; k++)
                    if (is_better(best[c - 1][k], from)) from = best[c - 1][k];
                next[c][i] = (value){fmin(from.least, overlap[i * N + j]), from.sum + overlap[i * N + j]};
                if (from.least == -INFINITY || i > j) next[c][i].least = -INFINITY;
            }
        for (int c = 0; c <= max_changes; c++)
            for (int i = 0; i < N; i++) best[c][i] = next[c][i];
    }
    value last = {-INFINITY, 0};
    for (int c = 0; c <= max_changes; c++)
        for (int i = 0; i < N; i++)
            if (is_better(best[c][i], last)) last = best[c][i];
    return last;
}

static void check_path(int32_t max_changes, const int32_t *source)
{
    int32_t n_changes = 0;
    assert_int_equal(source[0], 0);
    for (int32_t j = 1; j < N; j++) {
        assert_true(source[j] == j || source[j] == source[j - 1]);
        n_changes += source[j] == j;
    }
    assert_true(n_changes <= max_changes);
}

static void test_equals_every_path(void **state)
{
    (void)state;
    uint32_t seed = 5;
    int n_worse = 0;
    for (int turn = 0; turn < 2000; turn++) {
        double overlap[N * N];
        for (int i = 0; i < N * N; i++) {
            seed = seed * 1664525 + 1013904223;
            overlap[i] = i / N == i % N ? 1 : (double)(seed >> 8 & 15) / 16;
        }
        for (int32_t changes = 0; changes < N; changes++) {
            int32_t source[N];
            assert_true(reuse_solve(overlap, N, changes, source));
            check_path(changes, source);
            value is = value_of(overlap, source), best = brute_force(overlap, changes);
            if (is.least != best.least || fabs(is.sum - best.sum) > 1e-9)
                fail_msg("case %d, %d changes: (%g, %g), every path: (%g, %g)", turn, changes, is.least,
                         is.sum, best.least, best.sum);
            n_worse += is_better(best, one_pass(overlap, changes));
        }
    }
    printf("one pass would have been worse in %d of %d cases\n", n_worse, 2000 * N);
    assert_true(n_worse > 0);
}

/* By hand: layers 0..3 are alike, 4 like nothing before it, 5..7 like 4. */
static void test_golden(void **state)
{
    (void)state;
    double overlap[N * N] = {0};
    const int32_t one[N] = {0, 0, 0, 0, 4, 4, 4, 4}, two[N] = {0, 0, 0, 0, 4, 4, 6, 6};
    int32_t source[N];
    for (int i = 0; i < N; i++)
        for (int j = i; j < N; j++) overlap[i * N + j] = i == j ? 1 : (i < 4) == (j < 4) ? 0.75 : 0.125;
    assert_true(reuse_solve(overlap, N, 1, source));
    assert_memory_equal(source, one, sizeof one);
    overlap[4 * N + 6] = overlap[4 * N + 7] = 0.5;
    overlap[6 * N + 7] = 0.875;
    assert_true(reuse_solve(overlap, N, 2, source));
    assert_memory_equal(source, two, sizeof two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_equals_every_path)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
