/* test_head_routers.c - KV heads of one layer whose lists are made by different routers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "engine/tiny_engine.h"

enum { N_IDS = 300, CONTEXT = 320, KV_HEADS = 2 };
#define KEYS8           "\"score\": \"key_i8\", \"lists\": \"kv_head\", \"sinks\": 2, \"window\": 4"
#define KEYS4           "\"score\": \"key_i4\", \"lists\": \"kv_head\", \"sinks\": 1, \"window\": 8"
#define MASS            "\"score\": \"attention_mass\", \"lists\": \"kv_head\", \"sinks\": 2, \"window\": 4"
#define FORCED          "\"score\": \"none\", \"lists\": \"kv_head\", \"sinks\": 3, \"window\": 40"
#define HEAD(h, router) ", \"head_routers\": [{\"kv_heads\": [" h "], \"router\": {" router "}}]"

static int32_t ids[N_IDS];
static float dense[N_IDS], sparse[N_IDS], other[N_IDS];

/* Layer 0 is dense, layer 1 makes lists by the members given and the others read them. */
static heddle_session *session_of(heddle_engine *engine, const char *op, const char *members,
                                  int32_t chunk_rows)
{
    char json[2048];
    heddle_plan *plan = NULL;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.context_tokens = CONTEXT;
    options.chunk_rows = chunk_rows;
    options.is_invariant = 1;
    options.plan_governs_all = 1;
    snprintf(
        json, sizeof json,
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0]}, {\"layers\": [1], "
        "\"operator\": \"%s\", %s}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": 1}]}]}",
        op, members);
    if (members && heddle_plan_parse(&plan, json, (int64_t)strlen(json), "heads"))
        fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return session;
}

static void score(heddle_engine *engine, const char *members, float *nll)
{
    heddle_session *session = session_of(engine, "token_list", members, 64);
    if (heddle_session_score(session, ids, N_IDS, 0, nll, NULL, NULL)) fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
}

/* Lists of layer 1 as the tap heard them. */
typedef struct heard {
    int32_t count[N_IDS][KV_HEADS], ids[N_IDS][KV_HEADS][N_IDS];
    int64_t n;
} heard;

static void listen(const heddle_tap_row *row, void *user)
{
    heard *at = user;
    assert_int_equal(row->layer, 1);
    assert_int_equal(row->n_lists, KV_HEADS);
    at->n++;
    at->count[row->position][row->list] = (int32_t)row->n_ids;
    memcpy(at->ids[row->position][row->list], row->ids, (size_t)row->n_ids * sizeof(int32_t));
}

static heard *lists_of(heddle_engine *engine, const char *op, const char *members)
{
    heard *at = calloc(1, sizeof *at);
    assert_non_null(at);
    heddle_session *session = session_of(engine, op, members, 64);
    heddle_session_set_tap(session, listen, at);
    if (heddle_session_score(session, ids, N_IDS, 0, sparse, NULL, NULL)) fail_msg("%s", heddle_last_error());
    assert_int_equal(at->n, N_IDS * KV_HEADS); /* each list once, as it is read */
    heddle_session_free(session);
    return at;
}

/* Head 0's list is what its router makes for it alone, head 1's what the other makes. */
static void check_lists(heddle_engine *engine, const char *op, const char *mixed, const char *of_0,
                        const char *of_1)
{
    heard *got = lists_of(engine, op, mixed),
          *want[2] = {lists_of(engine, op, of_0), lists_of(engine, op, of_1)};
    int64_t n_apart = 0;
    for (int64_t r = 0; r < N_IDS; r++)
        for (int h = 0; h < KV_HEADS; h++) {
            int32_t n = want[h]->count[r][h];
            assert_int_equal(got->count[r][h], n);
            assert_memory_equal(got->ids[r][h], want[h]->ids[r][h], (size_t)n * sizeof(int32_t));
            n_apart += want[!h]->count[r][h] != n ||
                       memcmp(want[!h]->ids[r][h], want[h]->ids[r][h], (size_t)n * sizeof(int32_t)) != 0;
        }
    assert_true(n_apart > N_IDS); /* the two routers differ, so it matters whose list it is */
    free(got);
    free(want[0]);
    free(want[1]);
}

static void test_each_head_has_its_router_s_list(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    check_lists(engine, "token_list",
                "\"router\": {" KEYS8 ", \"top_k\": 40}" HEAD("1", KEYS4 ", \"top_k\": 16"),
                "\"router\": {" KEYS8 ", \"top_k\": 40}", "\"router\": {" KEYS4 ", \"top_k\": 16}");
    check_lists(engine, "token_list", "\"router\": {" KEYS8 ", \"top_k\": 12}" HEAD("0", FORCED),
                "\"router\": {" FORCED "}", "\"router\": {" KEYS8 ", \"top_k\": 12}");
    check_lists(engine, "dense", "\"router\": {" MASS ", \"top_k\": 20}" HEAD("1", KEYS8 ", \"top_k\": 9"),
                "\"router\": {" MASS ", \"top_k\": 20}", "\"router\": {" KEYS8 ", \"top_k\": 9}");
    heddle_engine_close(engine);
}

/* One score and two budgets are head_top_k, bit for bit. */
static void test_two_budgets_are_head_top_k(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    score(engine, "\"router\": {" KEYS8 ", \"head_top_k\": [40, 8]}", sparse);
    score(engine, "\"router\": {" KEYS8 ", \"top_k\": 40}" HEAD("1", KEYS8 ", \"top_k\": 8"), other);
    assert_memory_equal(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse);
    score(engine, "\"router\": {" KEYS8 ", \"top_k\": 8}" HEAD("0", KEYS8 ", \"top_k\": 40"), other);
    assert_memory_equal(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse);
    score(engine, "\"router\": {" KEYS8 ", \"top_k\": 8}" HEAD("1", KEYS8 ", \"top_k\": 40"), other);
    assert_true(max_abs(sparse + 1, other + 1, N_IDS - 1) > 1e-5);
    heddle_engine_close(engine);
}

/* Everything is dense; with one token too many in one head's list only the last row differs. */
static void test_everything_is_dense_and_one_less_is_not(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = session_of(engine, "dense", "\"router\": {\"top_k\": 300}", 64);
    if (heddle_session_score(session, ids, N_IDS, 0, dense, NULL, NULL)) fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
    score(engine, "\"router\": {" KEYS8 ", \"top_k\": 300}" HEAD("1", KEYS4 ", \"top_k\": 300"), sparse);
    assert_true(max_abs(dense + 1, sparse + 1, N_IDS - 1) < 2e-6);
    score(engine, "\"router\": {" KEYS8 ", \"top_k\": 300}" HEAD("1", KEYS4 ", \"top_k\": 289"), sparse);
    assert_true(max_abs(dense + 1, sparse + 1, N_IDS - 2) <
                2e-6); /* 298 + 1 tokens seen: 289 + 1 + 8 = 298 */
    heard *at = lists_of(engine, "token_list",
                         "\"router\": {" KEYS8 ", \"top_k\": 300}" HEAD("1", KEYS4 ", \"top_k\": 289"));
    assert_int_equal(at->count[N_IDS - 3][1], N_IDS - 2);
    assert_int_equal(at->count[N_IDS - 2][1], N_IDS - 2);
    assert_int_equal(at->count[N_IDS - 1][0], N_IDS);
    free(at);
    heddle_engine_close(engine);
}

/* Rows one by one, in chunks, after a truncation and in a fork: equal bits. */
static void test_chunks_forks_and_truncation(void **state)
{
    (void)state;
    const char *members = "\"router\": {" KEYS8 ", \"top_k\": 24}" HEAD("1", KEYS4 ", \"top_k\": 12");
    heddle_engine *engine = tiny_engine("llama", 2);
    score(engine, members, sparse);
    static const int32_t chunks[] = {1, 7, 300};
    for (int i = 0; i < 3; i++) {
        heddle_session *session = session_of(engine, "token_list", members, chunks[i]), *fork = NULL;
        if (heddle_session_extend(session, ids, 200, NULL, NULL) ||
            heddle_session_truncate(session, 90, NULL) || heddle_session_fork(&fork, session) ||
            heddle_session_score(fork, ids + 90, N_IDS - 90, 0, other + 90, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        assert_memory_equal(sparse + 91, other + 91, (N_IDS - 91) * sizeof *sparse);
        heddle_session_free(fork);
        heddle_session_free(session);
    }
    heddle_engine_close(engine);
}

/* Each head's list counts for its part: what is read, and what the plan says beforehand. Lists of forced tokens, so that
 * no summary is read beside. */
static void test_the_share_is_counted_by_head(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    const char *json =
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": "
        "\"token_list\", \"router\": {" FORCED
        "}" HEAD("1", "\"score\": \"none\", \"lists\": \"kv_head\", \"window\": 6") "}]}]}";
    heddle_stats stats = {.struct_size = sizeof stats};
    heddle_session_options options;
    heddle_session *session;
    heddle_plan *plan;
    double listed = 0, all = 0, said;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.plan_governs_all = 1;
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "heads") ||
        heddle_session_new(&session, engine, plan, &options) ||
        heddle_session_score(session, ids, N_IDS, 101, sparse, NULL, NULL) ||
        heddle_plan_share_read(engine, plan, 100, N_IDS, &said))
        fail_msg("%s", heddle_last_error());
    heddle_session_stats(session, &stats);
    for (int64_t t = 101; t <= N_IDS; t++) {
        all += (double)t;
        listed += (double)(HDL_MIN(t, 43) + HDL_MIN(t, 6)) / 2;
    }
    double share = stats.scored_kv_bytes_read / stats.scored_kv_bytes_dense;
    assert_true(fabs(share - listed / all) < 1e-9);
    assert_true(fabs(said - listed / all) < 1e-9);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

int main(void)
{
    uint32_t x = 7;
    for (int i = 0; i < N_IDS; i++) ids[i] = (int32_t)((x = x * 1664525u + 1013904223u) >> 8) % 300;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_head_has_its_router_s_list),
        cmocka_unit_test(test_two_budgets_are_head_top_k),
        cmocka_unit_test(test_everything_is_dense_and_one_less_is_not),
        cmocka_unit_test(test_chunks_forks_and_truncation),
        cmocka_unit_test(test_the_share_is_counted_by_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
