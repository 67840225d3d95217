/* test_budgets.c - the split of a budget against every split there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "eval/budgets.h"

enum { N = 4, STEPS = 5, WIDTH = STEPS + 1 };

static uint64_t random_state = 1;

static double random_share(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 40) / (double)(1 << 24);
}

/* Gains that only fall: a concave curve. */
static void make_curve(double *at)
{
    double gain = 1 + random_share();
    at[0] = 0;
    for (int s = 1; s <= STEPS; s++) {
        at[s] = at[s - 1] + gain;
        gain *= random_share();
    }
}

static double value_of(const double *captured, const int32_t *steps)
{
    double sum = 0;
    for (int i = 0; i < N; i++) sum += captured[i * WIDTH + steps[i]];
    return sum;
}

static double best_of_all(const double *captured, int64_t n_total, int32_t floor)
{
    double best = -1;
    for (int64_t code = 0; code < WIDTH * WIDTH * WIDTH * WIDTH; code++) {
        int32_t steps[N];
        int64_t rest = code, sum = 0;
        int is_allowed = 1;
        for (int i = 0; i < N; i++, rest /= WIDTH) {
            steps[i] = (int32_t)(rest % WIDTH);
            sum += steps[i];
            is_allowed &= steps[i] >= floor;
        }
        if (!is_allowed || sum != n_total) continue;
        double value = value_of(captured, steps);
        if (value > best) best = value;
    }
    return best;
}

static void test_split_is_the_best(void **state)
{
    (void)state;
    for (int round = 0; round < 50; round++) {
        double captured[N * WIDTH];
        for (int i = 0; i < N; i++) make_curve(captured + i * WIDTH);
        for (int32_t floor = 0; floor <= 2; floor++)
            for (int64_t total = N * floor; total <= N * STEPS; total++) {
                int32_t steps[N];
                int64_t sum = 0;
                budgets_split(captured, NULL, N, STEPS, total, floor, steps);
                for (int i = 0; i < N; i++) {
                    assert_in_range(steps[i], floor, STEPS);
                    sum += steps[i];
                }
                assert_int_equal(sum, total);
                double best = best_of_all(captured, total, floor), got = value_of(captured, steps);
                assert_true(best - got <= 1e-12 && got - best <= 1e-12);
            }
    }
}

/* A dear head's step is paid by so many steps of a cheap one, what cannot be paid is passed over, and a price that is
 * the same for all changes nothing. */
static void test_prices(void **state)
{
    (void)state;
    double captured[2 * WIDTH];
    int32_t steps[2], prices[2] = {1, 3};
    for (int s = 0; s < WIDTH; s++) {
        captured[s] = s;               /* 1 for 1 */
        captured[WIDTH + s] = 2.5 * s; /* 2.5 for 3 */
    }
    budgets_split(captured, prices, 2, STEPS, 7, 0, steps);
    assert_int_equal(steps[0],
                     STEPS); /* the better for its price first; 2 are left, which buy no step of 3 */
    assert_int_equal(steps[1], 0);
    budgets_split(captured, prices, 2, STEPS, 9, 0, steps);
    assert_int_equal(steps[0], STEPS);
    assert_int_equal(steps[1], 1);
    budgets_split(captured, prices, 2, STEPS, 8, 1, steps); /* a floor of one each costs 4 */
    assert_int_equal(steps[0], STEPS);
    assert_int_equal(steps[1], 1);
    for (int i = 0; i < N; i++) {
        double curves[N * WIDTH];
        int32_t same[N], free_of[N], threes[N] = {3, 3, 3, 3};
        for (int j = 0; j < N; j++) make_curve(curves + j * WIDTH);
        budgets_split(curves, threes, N, STEPS, 3 * 9, 1, same);
        budgets_split(curves, NULL, N, STEPS, 9, 1, free_of);
        assert_memory_equal(same, free_of, sizeof same);
    }
}

static void test_ties_go_to_the_lowest(void **state)
{
    (void)state;
    double captured[N * WIDTH];
    int32_t steps[N];
    for (int i = 0; i < N * WIDTH; i++) captured[i] = i % WIDTH;
    budgets_split(captured, NULL, N, STEPS, 7, 0, steps);
    assert_int_equal(steps[0], STEPS);
    assert_int_equal(steps[1], 2);
    assert_int_equal(steps[2] + steps[3], 0);
    budgets_split(captured, NULL, N, STEPS, 1000, 0, steps); /* more than there is: everything */
    for (int i = 0; i < N; i++) assert_int_equal(steps[i], STEPS);
}

/* A head that reads another's list captures its own mass in the other's order. */
static void test_curves_follow_the_list_s_order(void **state)
{
    (void)state;
    static const float owner[8] = {9, 0.1f, 0.4f, 0.2f, 0.4f, 0.3f, 9, 9}, /* 0, 6 and 7 are forced */
        reader[8] = {1, 8, 2, 4, 1, 16, 1, 1};
    static const double own_want[4] = {27, 27.8, 28.3, 28.4}, want[4] = {3, 6, 26, 34};
    static const int32_t order_want[5] = {2, 4, 5, 3, 1};
    budgets_unit order[5];
    double own[4] = {0}, other[4] = {0};
    budgets_order(owner, 1, 5, order);
    for (int i = 0; i < 5; i++) assert_int_equal(order[i].unit, order_want[i]);
    for (int twice = 0; twice < 2; twice++) { /* rows add up */
        budgets_add_curve(owner, order, 5, 27, 2, 3, own);
        budgets_add_curve(reader, order, 5, 3, 2, 3, other);
    }
    for (int s = 0; s < 4; s++) {
        assert_true(own[s] - 2 * own_want[s] < 1e-5 && 2 * own_want[s] - own[s] < 1e-5);
        assert_true(other[s] == 2 * want[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_is_the_best),
        cmocka_unit_test(test_prices),
        cmocka_unit_test(test_curves_follow_the_list_s_order),
        cmocka_unit_test(test_ties_go_to_the_lowest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
