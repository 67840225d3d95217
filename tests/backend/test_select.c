/* test_select.c - exact top-k with ties to the lowest id and forced ranges, against a full sort. */
#include "backend/route_impls.h"

#include "backend/selection.h"

typedef enum score_kind { SCORES_RANDOM, SCORES_MASS, SCORES_FEW, SCORES_EQUAL, SCORES_SPECIAL } score_kind;

typedef struct select_case {
    const char *name;
    int64_t n, top_k;
    int32_t n_sink, window;
    score_kind kind;
} select_case;

static const select_case cases[] = {
    {"one", 1, 1, 0, 0, SCORES_RANDOM},
    {"all forced", 100, 10, 4, 128, SCORES_RANDOM},
    {"k at least n", 300, 300, 4, 16, SCORES_RANDOM},
    {"k one less", 300, 279, 4, 16, SCORES_RANDOM},
    {"k one", 1000, 1, 0, 0, SCORES_RANDOM},
    {"k zero", 1000, 0, 4, 128, SCORES_RANDOM},
    {"random", 5003, 500, 4, 128, SCORES_RANDOM},
    {"mass", 32768, 1024, 4, 128, SCORES_MASS},
    {"few values", 9001, 700, 3, 65, SCORES_FEW},
    {"all equal", 4099, 500, 4, 128, SCORES_EQUAL},
    {"nan, zeros, infinities", 3001, 1500, 1, 1, SCORES_SPECIAL},
    {"sink past the end", 3, 8, 10, 10, SCORES_RANDOM},
    {"window and sink meet", 130, 8, 4, 126, SCORES_RANDOM},
    {"one left over", 131, 1, 4, 126, SCORES_FEW},
};

static float make_score(score_kind kind, uint64_t *random)
{
    static const float special[] = {0.0f,  -0.0f,  -INFINITY, INFINITY, NAN,
                                    -1.0f, 1e-42f, -1e-42f,   3e38f,    1.0f};
    switch (kind) {
        case SCORES_MASS: return expf(4 * next_unit(random) - 9);
        case SCORES_FEW: return (float)(next_random(random) % 5) - 2;
        case SCORES_EQUAL: return 0.25f;
        case SCORES_SPECIAL: return special[next_random(random) % HDL_COUNT(special)];
        default: return next_unit(random);
    }
}

static const float *sort_scores;

static float comparable(float score)
{
    return isnan(score) ? -INFINITY : score;
}

static int by_score_then_id(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    float x = comparable(sort_scores[i]), y = comparable(sort_scores[j]);
    return x > y ? -1 : x < y ? 1 : i - j;
}

static int by_id(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* The definition, by sorting. */
static int32_t oracle(const select_case *c, int64_t n, const float *score, int32_t *ids)
{
    int32_t *order = must_alloc(n * 4);
    int64_t begin = HDL_MIN((int64_t)c->n_sink, n), end = HDL_MAX(begin, n - c->window), count = 0;
    for (int64_t i = begin; i < end; i++) order[i - begin] = (int32_t)i;
    sort_scores = score;
    qsort(order, (size_t)(end - begin), 4, by_score_then_id);
    for (int64_t i = 0; i < n; i++)
        if (i < begin || i >= end) ids[count++] = (int32_t)i;
    for (int64_t i = 0; i < HDL_MIN(end - begin, c->top_k); i++) ids[count++] = order[i];
    qsort(ids, (size_t)count, 4, by_id);
    free(order);
    return (int32_t)count;
}

enum { ROWS = 3, LISTS = 2 };

static void check_case(const select_case *c, const hdl_impl *impl)
{
    uint64_t random = 11;
    int64_t stride = c->n + 3, n_ids_max = HDL_MIN(c->n, c->n_sink + c->window + c->top_k);
    float *score = must_alloc(ROWS * LISTS * stride * 4);
    for (int64_t i = 0; i < ROWS * LISTS * stride; i++)
        score[i] = i % stride < c->n ? make_score(c->kind, &random)
                                     : INFINITY; /* past the end: not to be chosen */
    int32_t *ids = must_alloc(ROWS * LISTS * n_ids_max * 4 + 64), *want = must_alloc(c->n * 4),
            counts[ROWS * LISTS];
    memset(ids, 0x55, (size_t)(ROWS * LISTS * n_ids_max * 4 + 64));
    hdl_selection out = {
        .block_size = 1, .n_rows = ROWS, .n_lists = LISTS, .n_ids_max = n_ids_max, .ids = ids};
    out.counts = counts;
    int64_t n_visible[ROWS] = {c->n, HDL_MAX(c->n - 1, 1), HDL_MAX(c->n / 2, 1)};
    hdl_select_args args = {.n_rows = ROWS,
                            .n_lists = LISTS,
                            .score = score,
                            .score_stride = stride,
                            .n_visible = n_visible,
                            .max_visible = c->n,
                            .top_k = c->top_k,
                            .n_sink = c->n_sink,
                            .window = c->window,
                            .out = &out};
    impl->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
    assert_int_equal(hdl_selection_check(&out, n_visible), HEDDLE_OK);
    for (int64_t row = 0; row < ROWS; row++)
        for (int32_t list = 0; list < LISTS; list++) {
            int32_t n = oracle(c, n_visible[row], score + (row * LISTS + list) * stride, want);
            if (n != *hdl_selection_count(&out, row, list) ||
                memcmp(want, hdl_selection_ids(&out, row, list), (size_t)n * 4) != 0) {
                print_error("%s, %s, row %d: %d ids, wanted %d\n", c->name, impl->name, (int)row,
                            *hdl_selection_count(&out, row, list), n);
                fail();
            }
        }
    for (int i = 0; i < 64; i++) assert_int_equal(((uint8_t *)(ids + ROWS * LISTS * n_ids_max))[i], 0x55);
    free(score);
    free(ids);
    free(want);
}

static void test_exact(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_SELECT, impls);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < HDL_COUNT(cases); i++) check_case(&cases[i], impls[k]);
}

static void test_check_refuses(void **state)
{
    (void)state;
    int32_t ids[4] = {0, 3, 5, 7}, count = 4;
    int64_t n_visible = 8;
    hdl_selection sel = {
        .block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = 4, .ids = ids, .counts = &count};
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_OK);
    n_visible = 7; /* id 7 is not visible */
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
    assert_non_null(strstr(hdl_last_error(), "id 7"));
    n_visible = 8;
    ids[1] = 5; /* twice */
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
    ids[1] = -1;
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
    ids[1] = 6; /* descending */
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
    count = 5; /* more than there is room for */
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
    count = 0;
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_OK);
    count = 1;
    ids[0] = 1;
    sel.unit = HDL_UNIT_BLOCK;
    sel.block_size = 4; /* block 1 of 8 tokens is the last */
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_OK);
    n_visible = 4;
    assert_int_equal(hdl_selection_check(&sel, &n_visible), HEDDLE_E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact), cmocka_unit_test(test_check_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
