/* test_pool.c - POOL against the reference, bit for bit, and against the definition. */
#include "backend/route_impls.h"

typedef struct pool_case {
    const char *name;
    int32_t n, pad, entry_size;
    hdl_reduce reduce;
    int64_t n_visible;
} pool_case;

static const pool_case cases[] = {
    {"one token", 16, 0, 1, HDL_REDUCE_SUM, 1},
    {"less than a unit", 64, 0, 1, HDL_REDUCE_MAX, 63},
    {"tokens to blocks", 16, 0, 1, HDL_REDUCE_SUM, 16 * 40},
    {"ragged last unit", 16, 0, 1, HDL_REDUCE_SUM, 5003},
    {"largest", 32, 0, 1, HDL_REDUCE_MAX, 3001},
    {"units of 128", 128, 0, 1, HDL_REDUCE_SUM, 20011},
    {"entries of 16", 4, 0, 16, HDL_REDUCE_SUM, 9001},
    {"windows", 4, 1, 16, HDL_REDUCE_MAX, 9001},
    {"windows of 16", 16, 1, 4, HDL_REDUCE_MAX, 4003},
    {"window sums", 4, 1, 4, HDL_REDUCE_SUM, 77},
    {"units of 24", 24, 0, 1, HDL_REDUCE_SUM, 1000},
    {"units of one", 1, 0, 1, HDL_REDUCE_SUM, 100},
};

enum { ROWS = 3, LISTS = 2 };

/* By the definition, from the scores before: what a unit holds. */
static float unit_of(const pool_case *c, const float *s, int64_t n, int64_t u)
{
    float value = c->reduce == HDL_REDUCE_SUM ? 0 : -INFINITY;
    for (int64_t e = HDL_MAX(u * c->n - c->pad, 0); e < HDL_MIN((u + 1) * c->n, n); e++) {
        if (c->reduce == HDL_REDUCE_SUM)
            value += isinf(s[e]) ? 0 : s[e];
        else
            value = fmaxf(value, s[e]);
    }
    return value;
}

static void check_case(const pool_case *c, const hdl_impl *impl)
{
    uint64_t random = 21;
    int64_t stride = c->n_visible / c->entry_size + 5, total = ROWS * LISTS * stride;
    float *before = must_alloc(total * 4), *after = must_alloc(total * 4);
    for (int64_t i = 0; i < total; i++) before[i] = next_random(&random) % 9 ? next_unit(&random) : -INFINITY;
    int64_t n_visible[ROWS] = {c->n_visible, HDL_MAX(c->n_visible - 1, 1), c->n_visible / 2 + 1};
    for (int64_t r = 0; r < ROWS * LISTS; r++) { /* what lies past a row must not be seen */
        int64_t n = (n_visible[r / LISTS] + c->entry_size - 1) / c->entry_size;
        for (int64_t e = n; e < stride; e++) before[r * stride + e] = NAN;
    }
    memcpy(after, before, (size_t)total * 4);
    hdl_pool_args args = {.n_rows = ROWS,
                          .n_lists = LISTS,
                          .n = c->n,
                          .pad = c->pad,
                          .entry_size = c->entry_size,
                          .reduce = c->reduce,
                          .score = after,
                          .score_stride = stride,
                          .n_visible = n_visible};
    assert_true(!impl->why_not || !impl->why_not(&args));
    impl->launch(&(hdl_launch){.n_threads = 2}, &args);
    for (int64_t r = 0; r < ROWS * LISTS; r++) {
        int64_t n = (n_visible[r / LISTS] + c->entry_size - 1) / c->entry_size, u = 0;
        for (; u * c->n < n; u++) {
            float want = unit_of(c, before + r * stride, n, u), got = after[r * stride + u];
            if (memcmp(&want, &got, sizeof want) != 0) {
                print_error("%s, %s: row %d unit %d is %.9g, wanted %.9g\n", c->name, impl->name, (int)r,
                            (int)u, (double)got, (double)want);
                fail();
            }
        }
        assert_memory_equal(after + r * stride + n, before + r * stride + n, (size_t)(stride - n) * 4);
    }
    free(before);
    free(after);
}

static void test_by_definition(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_POOL, impls);
    assert_true(n >= 2);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < HDL_COUNT(cases); i++) check_case(&cases[i], impls[k]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_definition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
