/* test_groups.c - routers that choose groups of like keys: laws on a small random model. All groups are everything
 * and equal dense, one group too few leaves out its members; chunks, forks, truncation and files change no bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "heddle.h"
#include "tiny_model.h"

enum { N_IDS = 800, N_VOCAB = 300, CONTEXT = 832, SEGMENT = 256, GROUP = 16 };
static int32_t ids[N_IDS], others[N_IDS];
static heddle_engine *engine;

/* Layer 1 chooses, the others read its list. */
static heddle_plan *plan_of(const char *router)
{
    char text[1024];
    heddle_plan *plan;
    snprintf(text, sizeof text,
             "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0]},"
             "{\"layers\": [1], \"operator\": \"token_list\", \"router\": {%s}},"
             "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": 1}]}]}",
             router);
    if (heddle_plan_parse(&plan, text, (int64_t)strlen(text), "test")) fail_msg("%s", heddle_last_error());
    return plan;
}

static heddle_plan *groups_of(int top_k, const char *more)
{
    char router[512];
    snprintf(router, sizeof router,
             "\"score\": \"group_mean\", \"block\": %d, \"top_k\": %d, \"sinks\": 2, \"window\": %d%s", GROUP,
             top_k, SEGMENT, more);
    return plan_of(router);
}

static heddle_session *open_session(const heddle_plan *plan, int32_t chunk_rows)
{
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.context_tokens = CONTEXT;
    options.chunk_rows = chunk_rows;
    options.is_invariant = 1;
    options.plan_governs_all = 1;
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    return session;
}

static void score(heddle_session *session, const int32_t *from, int64_t n, float *nll)
{
    if (heddle_session_score(session, from, n, 0, nll, NULL, NULL)) fail_msg("%s", heddle_last_error());
}

/* -log p of ids under a plan (NULL: dense), `chunk` rows at a time. */
static void nll_of(heddle_plan *plan, int32_t chunk, heddle_tap_fn tap, void *user, float *nll)
{
    heddle_session *session = open_session(plan, chunk);
    heddle_session_set_tap(session, tap, user);
    score(session, ids, N_IDS, nll);
    heddle_session_free(session);
    heddle_plan_free(plan);
}

static float dense[N_IDS], sparse[N_IDS], again[N_IDS];
static const char *const routers[] = {
    "\"score\": \"group_mean\", \"block\": 16, \"top_k\": TOP_K, \"sinks\": 2, \"window\": 256",
    "\"score\": \"group_mean\", \"block\": 64, \"top_k\": TOP_K, \"heads\": \"max\", \"lists\": \"kv_head\", \"window\": 300",
    "\"score\": \"group_mean\", \"block\": 2, \"top_k\": TOP_K, \"window\": 256, \"dense_below\": 400",
    "\"score\": \"group_mean\", \"block\": 256, \"top_k\": TOP_K, \"window\": 256, \"refresh\": 3",
    ("\"score\": \"key_i4\", \"top_k\": TOP_K, \"sinks\": 2, \"window\": 4, \"candidates\": "
     "{\"score\": \"group_mean\", \"block\": 8, \"top_k\": TOP_K, \"sinks\": 2, \"window\": 256}"),
};

static heddle_plan *plan_at(size_t i, int top_k)
{
    char router[512] = "", *to = router;
    for (const char *from = routers[i], *mark; *from;
         from = mark ? mark + strlen("TOP_K") : from + strlen(from)) {
        mark = strstr(from, "TOP_K");
        to += sprintf(to, "%.*s", mark ? (int)(mark - from) : (int)strlen(from), from);
        if (mark) to += sprintf(to, "%d", top_k);
    }
    return plan_of(router);
}

static void test_all_groups_equal_dense(void **state)
{
    (void)state;
    nll_of(NULL, 64, NULL, NULL, dense);
    for (size_t i = 0; i < HDL_COUNT(routers); i++)
        for (int top_k = 1024; top_k >= 64; top_k -= 960) {
            double worst = 0;
            nll_of(plan_at(i, top_k), 64, NULL, NULL, sparse);
            for (int t = 1; t < N_IDS; t++) worst = HDL_MAX(worst, fabs((double)dense[t] - sparse[t]));
            printf("router %d, top_k %d: max-abs %g\n", (int)i, top_k, worst);
            if (top_k == 1024) assert_true(worst < 2e-6); /* pieces of lists end elsewhere than dense's */
            if (top_k == 64) assert_true(worst > 1e-4);
        }
}

/* No group at all is the forced tokens alone. */
static void test_no_groups_are_a_window(void **state)
{
    (void)state;
    nll_of(groups_of(0, ", \"select\": \"threshold\", \"threshold\": 1"), 64, NULL, NULL, sparse);
    nll_of(plan_of("\"score\": \"none\", \"sinks\": 2, \"window\": 256"), 64, NULL, NULL, again);
    assert_memory_equal(sparse + 1, again + 1, (N_IDS - 1) * sizeof *sparse);
}

static void test_chunks_change_no_bit(void **state)
{
    (void)state;
    static const int32_t chunks[] = {1, 7, 256, 300, 512};
    for (size_t i = 0; i < HDL_COUNT(routers); i++) {
        if (strstr(routers[i], "refresh")) continue; /* a row alone may read a kept list */
        nll_of(plan_at(i, 64), 64, NULL, NULL, sparse);
        for (size_t c = 0; c < HDL_COUNT(chunks); c++) {
            nll_of(plan_at(i, 64), chunks[c], NULL, NULL, again);
            assert_memory_equal(sparse + 1, again + 1, (N_IDS - 1) * sizeof *sparse);
        }
    }
}

typedef struct boundary {
    int64_t n_whole, n_short, n_hidden; /* lists of everything; without a group; whose group is forced */
} boundary;

/* top_k is one group less than 512 tokens hold: what is left out, if anything, is one group's. */
static void check_boundary(const heddle_tap_row *row, void *user)
{
    boundary *at = user;
    int64_t n_groups = (row->position + GROUP) / GROUP, n_out = row->n_units - row->n_ids, segment = -1;
    if (n_groups > 2 * SEGMENT / GROUP) return;
    if (n_groups < 2 * SEGMENT / GROUP) {
        assert_int_equal(n_out, 0);
        at->n_whole++;
        return;
    }
    assert_true(n_out <= GROUP);
    for (int64_t t = 0, i = 0; t < row->n_units; t++) {
        if (i < row->n_ids && row->ids[i] == t) {
            i++;
            continue;
        }
        if (segment < 0) segment = t / SEGMENT;
        assert_int_equal(t / SEGMENT, segment);
        assert_true(t >= 2 && t < row->position + 1 - SEGMENT);
    }
    at->n_short += n_out > 0;
    at->n_hidden += n_out == 0;
}

static void test_one_group_too_few_leaves_out_its_members(void **state)
{
    (void)state;
    boundary at = {0};
    nll_of(NULL, 64, NULL, NULL, dense);
    nll_of(groups_of(2 * SEGMENT - GROUP, ""), 64, check_boundary, &at, sparse);
    printf("%lld lists hold everything, %lld lack a group, %lld a forced one\n", (long long)at.n_whole,
           (long long)at.n_short, (long long)at.n_hidden);
    assert_int_equal(at.n_whole, 2 * SEGMENT - GROUP);
    assert_int_equal(at.n_short + at.n_hidden, GROUP);
    assert_int_equal(at.n_short,
                     1); /* at 512 tokens: before, the last group is of a segment that is not full */
    double below = 0;    /* a row is predicted from the list of the row before */
    for (int t = 1; t < 2 * SEGMENT; t++) below = HDL_MAX(below, fabs((double)dense[t] - sparse[t]));
    assert_true(below < 2e-6);
    assert_true(fabs((double)dense[2 * SEGMENT] - sparse[2 * SEGMENT]) > 1e-5);
}

/* Back into a segment that was full, and on with other tokens: as a session that never had the first. */
static void test_truncation_and_forks(void **state)
{
    (void)state;
    for (int64_t cut = 100; cut < N_IDS; cut += 131) {
        heddle_plan *plan = groups_of(64, "");
        heddle_session *session = open_session(plan, 64), *fork = NULL, *fresh = open_session(plan, 512);
        int64_t kept;
        score(session, ids, N_IDS, sparse);
        if (heddle_session_truncate(session, cut, &kept) || heddle_session_fork(&fork, session))
            fail_msg("%s", heddle_last_error());
        assert_int_equal(kept, cut);
        score(session, others, N_IDS - cut, sparse);
        score(fork, others, N_IDS - cut, again);
        assert_memory_equal(sparse + 1, again + 1, (size_t)(N_IDS - cut - 1) * sizeof *sparse);
        score(fresh, ids, cut, again);
        score(fresh, others, N_IDS - cut, again);
        assert_memory_equal(sparse + 1, again + 1, (size_t)(N_IDS - cut - 1) * sizeof *sparse);
        heddle_session_free(session);
        heddle_session_free(fork);
        heddle_session_free(fresh);
        heddle_plan_free(plan);
    }
}

static void test_files_keep_the_order(void **state)
{
    (void)state;
    char folder[256], path[300];
    assert_true(tiny_make_folder(folder, sizeof folder));
    snprintf(path, sizeof path, "%s/session", folder);
    heddle_plan *plan = groups_of(64, "");
    heddle_session *session = open_session(plan, 64), *loaded = open_session(plan, 64);
    score(session, ids, 600, sparse);
    if (heddle_session_save(session, path) || heddle_session_load(loaded, path))
        fail_msg("%s", heddle_last_error());
    score(session, others, 200, sparse);
    score(loaded, others, 200, again);
    assert_memory_equal(sparse, again, 200 * sizeof *sparse);
    heddle_session_free(session);
    heddle_session_free(loaded);
    heddle_plan_free(plan);
    tiny_remove_folder(folder);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"\"score\": \"group_mean\", \"block\": 16, \"top_k\": 64, \"window\": 128",
         "window 128: score \"group_mean\" groups tokens when 256 of them are there; must be at least that"},
        {"\"score\": \"group_mean\", \"block\": 512, \"top_k\": 64, \"window\": 512",
         "block 512: score \"group_mean\" groups 256 tokens at a time; must be at most that"},
        {"\"score\": \"group_mean\", \"block\": 24, \"top_k\": 64, \"window\": 256",
         "block 24: must be a power of two"},
        {"\"score\": \"group_mean\", \"top_k\": 64, \"window\": 256",
         "block 1: score \"group_mean\" is by block"},
        {"\"score\": \"group_mean\", \"block\": 16, \"top_k\": 64, \"window\": 256, \"lists\": \"union\"",
         "lists \"union\": goes not with score \"group_mean\""},
        {"\"score\": \"group_mean\", \"block\": 16, \"top_k\": 64, \"window\": 256, \"tile\": 32, \"tile_by\": \"max\"",
         "tile_by: goes not with score \"group_mean\""},
    };
    heddle_plan *plan;
    char text[512];
    for (size_t i = 0; i < HDL_COUNT(wrong); i++) {
        snprintf(text, sizeof text,
                 "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", "
                 "\"operator\": \"token_list\", \"router\": {%s}}]}]}",
                 wrong[i][0]);
        assert_int_not_equal(heddle_plan_parse(&plan, text, (int64_t)strlen(text), "test"), HEDDLE_OK);
        if (!strstr(heddle_last_error(), wrong[i][1])) fail_msg("%s", heddle_last_error());
    }
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.page_shift = 7;
    plan = groups_of(64, "");
    assert_int_equal(heddle_session_new(&session, engine, plan, &options), HEDDLE_E_INVALID);
    assert_non_null(
        strstr(heddle_last_error(), "summary group_mean orders 256 tokens: must divide a KV page of 128"));
    heddle_plan_free(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_groups_equal_dense),
                                       cmocka_unit_test(test_chunks_change_no_bit),
                                       cmocka_unit_test(test_no_groups_are_a_window),
                                       cmocka_unit_test(test_one_group_too_few_leaves_out_its_members),
                                       cmocka_unit_test(test_truncation_and_forks),
                                       cmocka_unit_test(test_files_keep_the_order),
                                       cmocka_unit_test(test_refusals)};
    uint32_t random = 11;
    for (int i = 0; i < 2 * N_IDS; i++) {
        random = random * 1664525u + 1013904223u;
        (i < N_IDS ? ids : others)[i % N_IDS] = (int32_t)((random >> 8) % N_VOCAB);
    }
    if (heddle_engine_open(&engine, HDL_TEST_DATA "/golden/tiny/llama", NULL)) {
        printf("not ok 1 - the small model is there: %s\n", heddle_last_error());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heddle_engine_close(engine);
    return failed;
}
