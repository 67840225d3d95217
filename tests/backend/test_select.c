/* test_select.c - exact top-k with ties to the lowest id and forced ranges, against a full sort. */
#include "backend/route_impls.h"

#include "backend/selection.h"
#include "sanitized.h"

typedef enum score_kind {
    SCORES_RANDOM,
    SCORES_MASS,
    SCORES_FEW,
    SCORES_EQUAL,
    SCORES_SPECIAL,
    SCORES_RISING
} score_kind;

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
    {"few of many", 40000, 600, 4, 128, SCORES_RANDOM},
    {"few of many masses", 65536, 2048, 0, 64, SCORES_MASS},
    {"few of many, few values", 40001, 1000, 4, 128, SCORES_FEW},
    {"few of many, all equal", 40001, 1000, 4, 128, SCORES_EQUAL},
    {"few of many, special", 40001, 2500, 4, 128, SCORES_SPECIAL},
    {"rising", 33000, 700, 4, 128, SCORES_RISING},
};

static float make_score(score_kind kind, uint64_t *random)
{
    static const float special[] = {0.0f,  -0.0f,  -INFINITY, INFINITY, NAN,
                                    -1.0f, 1e-42f, -1e-42f,   3e38f,    1.0f};
    switch (kind) {
        case SCORES_MASS: return expf(4 * next_unit(random) - 9);
        case SCORES_FEW: return (float)(next_random(random) % 5) - 2;
        case SCORES_EQUAL: return 0.25f;
        case SCORES_RISING:
            return (float)(*random += 1); /* the sample is wrong about every part of the row */
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

/* With scratch of exactly the size that was asked for. */
static void launch_select(const hdl_impl *impl, const hdl_select_args *args)
{
    int64_t bytes = impl->workspace ? impl->workspace(args, 2) : 0;
    uint8_t *workspace = must_alloc(bytes + 64);
    memset(workspace, 0xa5, (size_t)bytes + 64);
    assert_true(!impl->why_not || !impl->why_not(args));
    impl->launch(&(hdl_launch){.n_threads = 2, .workspace = workspace}, args);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + i], 0xa5);
    free(workspace);
}

/* own: a top_k for each list, or NULL. */
static void check_case(const select_case *c, const hdl_impl *impl, const int64_t *own)
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
                            .list_top_k = own,
                            .n_sink = c->n_sink,
                            .window = c->window,
                            .out = &out};
    launch_select(impl, &args);
    assert_int_equal(hdl_selection_check(&out, n_visible), HEDDLE_OK);
    for (int64_t row = 0; row < ROWS; row++)
        for (int32_t list = 0; list < LISTS; list++) {
            select_case of_list = *c;
            if (own) of_list.top_k = own[list];
            int32_t n = oracle(&of_list, n_visible[row], score + (row * LISTS + list) * stride, want);
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
        for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
            const int64_t top_k = cases[i].top_k;
            check_case(&cases[i], impls[k], NULL);
            for (int own = 0; own < 2; own++) { /* a top_k for each list */
                const int64_t own_top_k[][LISTS] = {{top_k, top_k / 3}, {0, top_k}};
                if (IS_SANITIZED && (i + k + own) % 2) continue;
                check_case(&cases[i], impls[k], own_top_k[own]);
            }
        }
}

/* One row of n scores through an implementation; the ids, and their number in *n_ids. */
static int32_t *ids_of(const hdl_impl *impl, hdl_select_args args, const float *score, int64_t n,
                       int32_t *n_ids)
{
    hdl_selection out = {.block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = n, .counts = n_ids};
    out.ids = must_alloc(n * 4);
    args.n_rows = args.n_lists = 1;
    args.score = score;
    args.score_stride = n;
    args.n_visible = &n;
    args.max_visible = n;
    args.out = &out;
    if (args.block_size > 1) { /* n units of which the last holds one token */
        int64_t tokens = (n - 1) * args.block_size + 1;
        args.n_visible = &tokens;
        args.max_visible = tokens;
        out.block_size = args.block_size;
        out.unit = HDL_UNIT_BLOCK;
        launch_select(impl, &args);
        assert_int_equal(hdl_selection_check(&out, &tokens), HEDDLE_OK);
        return out.ids;
    }
    launch_select(impl, &args);
    return out.ids;
}

static void check_ids(const hdl_impl *a, const hdl_impl *b, const hdl_select_args *args, const float *score,
                      int64_t n, const char *name)
{
    int32_t n_a, n_b, *ids_a = ids_of(a, *args, score, n, &n_a), *ids_b = ids_of(b, *args, score, n, &n_b);
    if (n_a != n_b || memcmp(ids_a, ids_b, (size_t)n_a * 4) != 0) {
        print_error("%s, %s: %d ids, wanted %d\n", name, b->name, n_b, n_a);
        fail();
    }
    free(ids_a);
    free(ids_b);
}

/* The worked example of the definitions: .40 .25 .15 .10 .06 .04. At p .80 a share is met exactly. */
static void test_share_by_definition(void **state)
{
    (void)state;
    static const float mass[] = {0.06f, 0.40f, 0.10f, 0.25f, 0.04f, 0.15f};
    static const float percent[] = {6, 40, 10, 25, 4, 15};
    static const struct {
        hdl_p_rule rule;
        int n80, n75;
    } want[] = {
        {HDL_P_INCLUSIVE, 4, 3}, {HDL_P_STRICT, 3, 3}, {HDL_P_PLUS_ONE, 4, 3}, {HDL_P_EXCLUSIVE, 3, 2}};
    static const int best[] = {1, 3, 5, 2, 0, 4}; /* places, best first */
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    for (int64_t k = 0; k < n_impls; k++)
        for (int i = 0; i < 16; i++) {
            int n_want = i & 1 ? want[i / 4].n80 : want[i / 4].n75;
            hdl_select_args args = {.kind = HDL_SELECT_TOP_P, .p_rule = want[i / 4].rule};
            args.p = i & 1 ? 0.80f : 0.75f;
            int32_t n, *ids = ids_of(impls[k], args, i & 2 ? percent : mass, 6, &n);
            assert_int_equal(n, n_want);
            for (int r = 0; r < n_want; r++) {
                bool is_there = false;
                for (int j = 0; j < n; j++) is_there |= ids[j] == best[r];
                assert_true(is_there);
            }
            free(ids);
        }
}

static void test_share_and_threshold(void **state)
{
    (void)state;
    static const float ps[] = {0, 0.1f, 0.5f, 0.9f, 0.999f, 1};
    static const int64_t sizes[] = {1, 7, 64, 999, 20000}, limits[] = {0, 3, 500};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    float *score = must_alloc(20000 * 4);
    for (int kind = SCORES_RANDOM; kind <= SCORES_SPECIAL; kind++)
        for (int64_t size = 0; size < HDL_COUNT(sizes); size++) {
            uint64_t random = 31;
            int64_t n = sizes[size];
            for (int64_t i = 0; i < n; i++) {
                score[i] = make_score((score_kind)kind, &random);
                if (kind == SCORES_SPECIAL && score[i] == INFINITY) score[i] = 0.5f; /* no mass is endless */
            }
            /* the reference sorts by insertion */
            int64_t n_ps = n > 1000 ? 1 : HDL_COUNT(ps), step = n > 1000 ? 5 : 1;
            for (int64_t i = 0; i < n_ps * 4 * HDL_COUNT(limits); i += step) {
                hdl_select_args args = {.kind = HDL_SELECT_TOP_P, .p_rule = (hdl_p_rule)(i % 4)};
                args.p = n_ps == 1 ? 0.7f : ps[i / 4 % n_ps];
                args.top_k = limits[i / 4 / n_ps];
                args.n_sink = i & 1 ? 4 : 0;
                args.window = i & 2 ? 9 : 0;
                for (int64_t k = 1; k < n_impls; k++) check_ids(impls[0], impls[k], &args, score, n, "share");
                args.kind = HDL_SELECT_THRESHOLD;
                args.threshold = args.p - 0.5f;
                for (int64_t k = 1; k < n_impls; k++)
                    check_ids(impls[0], impls[k], &args, score, n, "threshold");
                args.kind = HDL_SELECT_TOP_K;
                args.block_size = 16;
                for (int64_t k = 1; k < n_impls; k++)
                    check_ids(impls[0], impls[k], &args, score, n, "blocks");
            }
        }
    free(score);
}

/* A beam over scores that are equal in runs of 4 units is the exact top-k (HiP's locality, taken at its word);
 * over others it has the width, ascends, and misses what hides behind a low first unit. */
static void test_beam(void **state)
{
    (void)state;
    enum { N = 64, WIDTH = 8, SINK = 3, WINDOW = 5, ALL = SINK + N + WINDOW };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    float score[ALL];
    uint64_t random = 5;
    hdl_select_args args = {.kind = HDL_SELECT_BEAM, .top_k = WIDTH, .n_sink = SINK, .window = WINDOW};
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    for (int64_t k = 1; k < n_impls; k++) assert_non_null(impls[k]->why_not(&args));
    for (int round = 0; round < 50; round++) {
        int32_t n, n_exact;
        for (int i = 0; i < N; i++)
            score[SINK + i] = i % 4 ? score[SINK + i - 1] : (float)(next_random(&random) % 9);
        hdl_select_args exact = args;
        exact.kind = HDL_SELECT_TOP_K;
        int32_t *ids = ids_of(impls[0], args, score, ALL, &n);
        int32_t *want = ids_of(impls[0], exact, score, ALL, &n_exact);
        assert_int_equal(n, SINK + WIDTH + WINDOW);
        assert_int_equal(n_exact, n);
        assert_memory_equal(ids, want, (size_t)n * sizeof *ids);
        free(ids);
        free(want);
    }
    for (int i = 0; i < ALL; i++) score[i] = 0;
    score[SINK + 3] = 9; /* its halves count as units 0, then 2: ties, which the lowest ids win */
    score[SINK + 60] = 5;
    for (int64_t width = 1; width <= N + 1; width++) {
        int32_t n, n_found = 0;
        args.top_k = width;
        int32_t *ids = ids_of(impls[0], args, score, ALL, &n);
        assert_int_equal(n, SINK + HDL_MIN(width, N) + WINDOW);
        for (int32_t i = 1; i < n; i++) assert_true(ids[i] > ids[i - 1]);
        for (int32_t i = 0; i < n; i++) n_found += ids[i] == SINK + 3;
        if (width == 1) assert_int_equal(n_found, 0); /* exact top-k would take it first */
        if (width >= N) assert_int_equal(n_found, 1);
        if (width == N - 1) assert_true(n == ALL - 1); /* one unit too many for it */
        free(ids);
    }
}

/* Steps of a candidate list: blocks of 4, every third, and the tokens they stand for. */
static void test_candidates(void **state)
{
    (void)state;
    enum { N_TOKENS = 997 };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls), n_visible = N_TOKENS;
    int32_t blocks[N_TOKENS], n_blocks = 0, count[2], *ids[2] = {NULL};
    float score[N_TOKENS];
    uint64_t random = 13;
    for (int32_t b = 0; b * 4 < N_TOKENS; b++)
        if (b % 3 == 0) blocks[n_blocks++] = b; /* the last one is cut by the end */
    fill_random(score, N_TOKENS, &random);
    hdl_selection candidates = {.unit = HDL_UNIT_BLOCK,
                                .block_size = 4,
                                .n_rows = 1,
                                .n_lists = 1,
                                .n_ids_max = N_TOKENS,
                                .ids = blocks,
                                .counts = &n_blocks};
    for (int64_t k = 0; k < n_impls; k++) {
        int which = k > 0;
        ids[which] = must_alloc(N_TOKENS * 4);
        hdl_selection out = {.block_size = 1,
                             .n_rows = 1,
                             .n_lists = 1,
                             .n_ids_max = N_TOKENS,
                             .ids = ids[which],
                             .counts = &count[which]};
        hdl_select_args args = {.n_rows = 1,
                                .n_lists = 1,
                                .score = score,
                                .score_stride = N_TOKENS,
                                .n_visible = &n_visible,
                                .max_visible = N_TOKENS,
                                .top_k = 50,
                                .n_sink = 2,
                                .window = 3,
                                .has_candidates = true,
                                .candidates = &candidates,
                                .out = &out};
        launch_select(impls[k], &args);
        assert_int_equal(count[which], 55);
        for (int32_t i = 0; i < count[which]; i++) assert_int_equal(ids[which][i] / 4 % 3, 0);
        assert_memory_equal(ids[0], ids[which], (size_t)count[0] * 4);
        if (which) free(ids[1]);
    }
    free(ids[0]);
}

/* A guess changes no list, whatever it holds. */
static void test_guess(void **state)
{
    (void)state;
    enum { N = 50000, TOP_K = 800 };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    static const float guesses[] = {NAN, -INFINITY, INFINITY, 0, 0.1f, 0.5f, 0.9f, -1, 1e30f};
    float *score = must_alloc(N * 4);
    for (int kind = SCORES_RANDOM; kind <= SCORES_RISING; kind++) {
        uint64_t random = 17;
        for (int64_t i = 0; i < N; i++) score[i] = make_score((score_kind)kind, &random);
        for (int64_t k = 1; k < n_impls; k++)
            for (int64_t i = 0; i < HDL_COUNT(guesses); i++) {
                if (IS_SANITIZED && (i + kind) % 3) continue; /* each guess with two kinds of scores */
                float guess = guesses[i];
                hdl_select_args args = {.top_k = TOP_K, .n_sink = 4, .window = 128, .guess = &guess};
                for (int turn = 0; turn < 3; turn++) /* its own guesses too */
                    check_ids(impls[0], impls[k], &args, score, N, "guess");
            }
    }
    free(score);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact),
                                       cmocka_unit_test(test_share_by_definition),
                                       cmocka_unit_test(test_share_and_threshold),
                                       cmocka_unit_test(test_beam),
                                       cmocka_unit_test(test_candidates),
                                       cmocka_unit_test(test_guess),
                                       cmocka_unit_test(test_check_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
