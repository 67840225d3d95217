/* test_head_routers.c - KV heads of one layer whose lists are made by different routers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "engine/tiny_engine.h"
#include "tiny_model.h"

enum { N_IDS = 300, CONTEXT = 320, KV_HEADS = 2, WIDE_KV_HEADS = 4 };
#define KEYS8           "\"score\": \"key_i8\", \"lists\": \"kv_head\", \"sinks\": 2, \"window\": 4"
#define KEYS4           "\"score\": \"key_i4\", \"lists\": \"kv_head\", \"sinks\": 1, \"window\": 8"
#define MASS            "\"score\": \"attention_mass\", \"lists\": \"kv_head\", \"sinks\": 2, \"window\": 4"
#define FORCED          "\"score\": \"none\", \"lists\": \"kv_head\", \"sinks\": 3, \"window\": 40"
#define HEAD(h, router) ", \"head_routers\": [" ONE(h, router) "]"
#define ONE(h, router)  "{\"kv_heads\": [" h "], \"router\": {" router "}}"

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
    int32_t count[N_IDS][WIDE_KV_HEADS], ids[N_IDS][WIDE_KV_HEADS][N_IDS];
    int64_t n;
} heard;

static void listen(const heddle_tap_row *row, void *user)
{
    heard *at = user;
    assert_int_equal(row->layer, 1);
    at->n++;
    at->count[row->position][row->list] = (int32_t)row->n_ids;
    memcpy(at->ids[row->position][row->list], row->ids, (size_t)row->n_ids * sizeof(int32_t));
}

static heard *lists_of(heddle_engine *engine, const char *op, const char *members)
{
    heard *at = calloc(1, sizeof *at);
    heddle_model_info info = {.struct_size = sizeof info};
    assert_non_null(at);
    heddle_engine_model_info(engine, &info);
    heddle_session *session = session_of(engine, op, members, 64);
    heddle_session_set_tap(session, listen, at);
    if (heddle_session_score(session, ids, N_IDS, 0, sparse, NULL, NULL)) fail_msg("%s", heddle_last_error());
    assert_int_equal(at->n, N_IDS * info.n_kv_heads); /* each list once, as it is read */
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

/* Four KV heads, of which each router has some that do not follow each other. */
static void test_heads_apart_have_their_router_s_lists(void **state)
{
    (void)state;
    static const char *const routers[] = {"\"router\": {" KEYS8 ", \"top_k\": 30}",
                                          "\"router\": {" KEYS4 ", \"top_k\": 12}",
                                          "\"router\": {" FORCED "}"};
    static const struct {
        const char *members;
        int router_of[WIDE_KV_HEADS];
    } mixed[] = {
        {"\"router\": {" KEYS8 ", \"top_k\": 30}" HEAD("3, 1", KEYS4 ", \"top_k\": 12"), {0, 1, 0, 1}},
        {"\"router\": {" KEYS4 ", \"top_k\": 12}" HEAD("1, 2, 3", KEYS8 ", \"top_k\": 30"), {1, 0, 0, 0}},
        {"\"router\": {" FORCED "}, \"head_routers\": [" ONE("3", KEYS8 ", \"top_k\": 30") ", " ONE(
             "0", KEYS4 ", \"top_k\": 12") "]",
         {1, 2, 2, 0}},
    };
    char folder[256], path[300];
    tiny_options model = {.seed = 4, .hidden_size = 128, .n_heads = 8, .n_kv_heads = WIDE_KV_HEADS};
    heddle_engine *engine;
    assert_true(tiny_make_folder(folder, sizeof folder));
    snprintf(path, sizeof path, "%s/wide.gguf", folder);
    assert_true(tiny_write_gguf(path, &model));
    if (heddle_engine_open(&engine, path, NULL)) fail_msg("%s", heddle_last_error());
    heard *want[3], *got;
    for (int i = 0; i < 3; i++) want[i] = lists_of(engine, "token_list", routers[i]);
    for (size_t m = 0; m < sizeof mixed / sizeof *mixed; m++) {
        got = lists_of(engine, "token_list", mixed[m].members);
        for (int64_t r = 0; r < N_IDS; r++)
            for (int h = 0; h < WIDE_KV_HEADS; h++) {
                const heard *of = want[mixed[m].router_of[h]];
                assert_int_equal(got->count[r][h], of->count[r][h]);
                assert_memory_equal(got->ids[r][h], of->ids[r][h], (size_t)of->count[r][h] * sizeof(int32_t));
            }
        free(got);
    }
    for (int i = 0; i < 3; i++) free(want[i]);
    heddle_engine_close(engine);
    tiny_remove_folder(folder);
}

/* Every layer makes lists by the members given. */
static heddle_plan *plan_of_all(const char *members)
{
    char json[2048];
    heddle_plan *plan;
    snprintf(json, sizeof json,
             "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", "
             "\"operator\": \"token_list\", %s}]}]}",
             members);
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "heads")) fail_msg("%s", heddle_last_error());
    return plan;
}

static char *explained(const heddle_engine *engine, const char *members)
{
    char *text = NULL;
    heddle_plan *plan = plan_of_all(members);
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.plan_governs_all = 1;
    if (heddle_explain(engine, plan, &options, &text)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return text;
}

/* Bytes that explain books for a buffer. */
static int64_t booked(const char *text, const char *buffer)
{
    char name[32];
    snprintf(name, sizeof name, "\n  %s ", buffer);
    const char *at = strstr(text, name);
    assert_non_null(at);
    return strtoll(at + strlen(name), NULL, 10);
}

/* A head router reads its own heads' summaries and books their scores: half of two heads', by what explain shows. */
static void test_a_router_scores_its_own_heads_alone(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    char *mixed = explained(engine,
                            "\"router\": {" KEYS8 ", \"top_k\": 40}" HEAD("1", KEYS4 ", \"top_k\": 16")),
         *all = explained(engine, "\"router\": {" KEYS8 ", \"top_k\": 40}");
    assert_non_null(strstr(all, "(40 bytes for 1 token)"));   /* 2 heads of 16 bytes and a scale */
    assert_non_null(strstr(mixed, "(20 bytes for 1 token)")); /* one of them */
    assert_non_null(strstr(mixed, "(12 bytes for 1 token)")); /* one of 8 bytes and a scale */
    assert_null(strstr(mixed, "(40 bytes for 1 token)"));
    assert_null(strstr(mixed, "(24 bytes for 1 token)"));
    assert_non_null(strstr(mixed, "of KV heads 1..1"));
    assert_int_equal(2 * booked(mixed, "mass"), booked(all, "mass"));
    heddle_string_free(mixed);
    heddle_string_free(all);
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
    heddle_stats stats = {.struct_size = sizeof stats};
    heddle_session_options options;
    heddle_session *session;
    heddle_plan *plan = plan_of_all(
        "\"router\": {" FORCED "}" HEAD("1", "\"score\": \"none\", \"lists\": \"kv_head\", \"window\": 6"));
    double listed = 0, all = 0, said;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.plan_governs_all = 1;
    if (heddle_session_new(&session, engine, plan, &options) ||
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

static double share_read(const heddle_engine *engine, const char *members)
{
    heddle_plan *plan = plan_of_all(members);
    double share;
    if (heddle_plan_share_read(engine, plan, 100, N_IDS, &share)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return share;
}

/* Two heads, a router each: the mean of what layers read that have one router, summaries with it. */
static void test_the_summaries_are_counted_by_head(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    double eight = share_read(engine, "\"router\": {" KEYS8 ", \"top_k\": 40}"),
           four = share_read(engine, "\"router\": {" KEYS4 ", \"top_k\": 16}"),
           mixed = share_read(engine,
                              "\"router\": {" KEYS8 ", \"top_k\": 40}" HEAD("1", KEYS4 ", \"top_k\": 16"));
    assert_true(fabs(mixed - (eight + four) / 2) < 1e-9);
    assert_true(eight - four > 0.05);
    heddle_engine_close(engine);
}

int main(void)
{
    uint32_t x = 7;
    for (int i = 0; i < N_IDS; i++) ids[i] = (int32_t)((x = x * 1664525u + 1013904223u) >> 8) % 260;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_head_has_its_router_s_list),
        cmocka_unit_test(test_heads_apart_have_their_router_s_lists),
        cmocka_unit_test(test_a_router_scores_its_own_heads_alone),
        cmocka_unit_test(test_two_budgets_are_head_top_k),
        cmocka_unit_test(test_everything_is_dense_and_one_less_is_not),
        cmocka_unit_test(test_chunks_forks_and_truncation),
        cmocka_unit_test(test_the_share_is_counted_by_head),
        cmocka_unit_test(test_the_summaries_are_counted_by_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
