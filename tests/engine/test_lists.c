/* test_lists.c - the lists that rows read: one a row for all layers, kept in a file, given again. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/mem.h"
#include "cross_model.h"
#include "engine/engine_int.h"
#include "heddle.h"

enum { N_TOKENS = CROSS_TOKENS, N_VOCAB = CROSS_VOCAB, N_PROMPT = 60 };

static cross_golden golden;
static char folder[256], path[300];
static heddle_engine *engine;
static float want[N_TOKENS][N_VOCAB], got[N_TOKENS][N_VOCAB];

/* As the model's own plan, but the lists come by chance. */
static const char by_chance[] =
    "{\"heddle_plan\": 1, \"name\": \"chance\", \"variants\": [{"
    "\"prefill\": [{\"layers\": \"first\", \"operator\": \"token_list\","
    " \"router\": {\"score\": \"random\", \"top_k\": 12}},"
    " {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}],"
    "\"decode\": [{\"layers\": \"first\", \"operator\": \"token_list\","
    " \"router\": {\"score\": \"random\", \"top_k\": 12}},"
    " {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}";

static const char by_refresh[] =
    "{\"heddle_plan\": 1, \"name\": \"refresh\", \"variants\": [{"
    "\"decode\": [{\"layers\": \"first\", \"operator\": \"token_list\","
    " \"router\": {\"score\": \"random\", \"top_k\": 8, \"window\": 4, \"refresh\": 4}},"
    " {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}";

static const char by_candidates[] =
    "{\"heddle_plan\": 1, \"name\": \"candidates\", \"variants\": [{"
    "\"decode\": [{\"layers\": \"first\", \"operator\": \"token_list\","
    " \"router\": {\"score\": \"index\", \"top_k\": 8, \"window\": 2,"
    " \"candidates\": {\"score\": \"random\", \"top_k\": 24, \"window\": 2}}},"
    " {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}";

static heddle_session *session_under(const char *json)
{
    heddle_session *session = NULL;
    heddle_plan *plan;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.kv_type = "f32";
    heddle_status status = json ? heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test")
                                : heddle_plan_named(&plan, "clsa:top_k=12");
    if (status || heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return session;
}

static heddle_session *new_session(bool is_chance)
{
    return session_under(is_chance ? by_chance : NULL);
}

static void read_all(heddle_session *session, float (*out)[N_VOCAB])
{
    if (heddle_session_extend(session, golden.tokens, N_PROMPT, NULL, NULL))
        fail_msg("%s", heddle_last_error());
    memcpy(out[N_PROMPT - 1], heddle_session_logits(session), sizeof out[0]);
    for (int64_t t = N_PROMPT; t < N_TOKENS; t++) {
        if (heddle_session_decode(session, golden.tokens + t, 1)) fail_msg("%s", heddle_last_error());
        memcpy(out[t], heddle_session_logits(session), sizeof out[t]);
    }
}

static void test_recorded_lists_are_one_a_row(void **state)
{
    (void)state;
    heddle_lists *lists, *loaded;
    heddle_session *session = new_session(false);
    if (heddle_lists_new(&lists, engine)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_OK);
    read_all(session, want);
    assert_int_equal(heddle_lists_set_tokens(lists, session), HEDDLE_OK);
    heddle_session_free(session);
    /* the prompt's other rows stop at the shared state; all cross layers read one list */
    assert_int_equal(heddle_lists_count(lists), N_TOKENS - N_PROMPT + 1);
    assert_int_equal(heddle_lists_save(lists, path), HEDDLE_OK);
    heddle_lists_free(lists);
    if (heddle_lists_load(&loaded, engine, path)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_lists_count(loaded), N_TOKENS - N_PROMPT + 1);
    session = new_session(false); /* ids as the golden float lists have them, but near ties */
    assert_int_equal(heddle_session_replay(session, loaded), HEDDLE_OK);
    int n_equal = 0;
    for (int64_t t = N_PROMPT - 1; t < N_TOKENS; t++) {
        int32_t ids[CROSS_TOP_K];
        int32_t layer = engine->model->facts.cross_from;
        assert_int_equal(session->hook.wanted(session->hook.wanted_user, layer, t, ids, CROSS_TOP_K),
                         CROSS_TOP_K);
        assert_int_equal(session->hook.wanted(session->hook.wanted_user, layer + 1, t, ids, CROSS_TOP_K), -1);
        assert_int_equal(session->hook.wanted(session->hook.wanted_user, layer, t, ids, CROSS_TOP_K - 1), -1);
        session->hook.wanted(session->hook.wanted_user, layer, t, ids, CROSS_TOP_K);
        n_equal += !memcmp(ids, golden.lists[t], sizeof ids);
        int32_t own[CROSS_TOP_K], own_layer;
        int64_t row, i = t - N_PROMPT + 1;
        assert_int_equal(heddle_lists_at(loaded, i, &row, &own_layer, own, CROSS_TOP_K), CROSS_TOP_K);
        assert_true(row == t && own_layer == layer && !memcmp(own, ids, sizeof ids));
        assert_int_equal(heddle_lists_at(loaded, i, NULL, NULL, own, CROSS_TOP_K - 1), CROSS_TOP_K);
    }
    const int32_t *tokens;
    assert_int_equal(heddle_lists_at(loaded, N_TOKENS - N_PROMPT + 1, NULL, NULL, NULL, 0), -1);
    assert_int_equal(heddle_lists_tokens(loaded, &tokens), N_TOKENS);
    assert_memory_equal(tokens, golden.tokens, N_TOKENS * sizeof *tokens);
    print_message("%d of %d lists are the golden ones\n", n_equal, N_TOKENS - N_PROMPT + 1);
    assert_true(n_equal >= (N_TOKENS - N_PROMPT) * 7 / 8);
    heddle_session_free(session);
    heddle_lists_free(loaded);
}

/* Given the lists, a session that would choose by chance says the same, bit for bit. */
static void test_replay_is_in_place_of_scoring(void **state)
{
    (void)state;
    heddle_lists *loaded;
    heddle_session *session = new_session(true);
    read_all(session, got);
    assert_memory_not_equal(want[N_TOKENS - 1], got[N_TOKENS - 1], sizeof got[0]);
    heddle_session_free(session);
    if (heddle_lists_load(&loaded, engine, path)) fail_msg("%s", heddle_last_error());
    session = new_session(true);
    assert_int_equal(heddle_session_replay(session, loaded), HEDDLE_OK);
    read_all(session, got);
    for (int64_t t = N_PROMPT - 1; t < N_TOKENS; t++) assert_memory_equal(want[t], got[t], sizeof got[t]);
    heddle_session_free(session);
    heddle_lists_free(loaded);
}

/* Read, cut back, read otherwise: what was read last is what is given again. */
static void test_a_row_that_is_read_again_keeps_its_last_list(void **state)
{
    (void)state;
    char again[300];
    heddle_lists *lists, *loaded;
    heddle_session *session = new_session(false);
    snprintf(again, sizeof again, "%s/again.lists", folder);
    if (heddle_lists_new(&lists, engine)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(heddle_session_extend(session, golden.tokens, N_PROMPT, NULL, NULL), HEDDLE_OK);
        for (int64_t t = N_PROMPT; t < N_TOKENS; t++)
            assert_int_equal(heddle_session_decode(session, golden.tokens + (t * 7 + i) % N_PROMPT, 1),
                             HEDDLE_OK);
        assert_int_equal(heddle_session_truncate(session, 0, NULL), HEDDLE_OK);
    }
    read_all(session, want);
    heddle_session_free(session);
    assert_int_equal(heddle_lists_count(lists), N_TOKENS - N_PROMPT + 1);
    assert_int_equal(heddle_lists_save(lists, again), HEDDLE_OK);
    heddle_lists_free(lists);
    if (heddle_lists_load(&loaded, engine, again)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_lists_count(loaded), N_TOKENS - N_PROMPT + 1);
    session = new_session(true);
    assert_int_equal(heddle_session_replay(session, loaded), HEDDLE_OK);
    read_all(session, got);
    for (int64_t t = N_PROMPT - 1; t < N_TOKENS; t++) assert_memory_equal(want[t], got[t], sizeof got[t]);
    heddle_session_free(session);
    assert_int_equal(heddle_lists_save(loaded, again), HEDDLE_OK); /* all its bytes are there still */
    heddle_lists_free(loaded);
    if (heddle_lists_load(&loaded, engine, again)) fail_msg("%s", heddle_last_error());
    heddle_lists_free(loaded);
}

/* Cut back and read otherwise but shorter: nothing of the rows that went is in the file, whether a row was
 * never read again, or as a prompt's row that makes no list. */
static void test_rows_that_were_given_up_leave_the_record(void **state)
{
    (void)state;
    enum { N_KEPT = N_PROMPT + 4, N_AGAIN = 6 };
    char shorter[300];
    int32_t ids[CROSS_TOP_K];
    heddle_lists *lists, *loaded;
    heddle_session *session = new_session(false);
    int32_t layer = engine->model->facts.cross_from;
    snprintf(shorter, sizeof shorter, "%s/shorter.lists", folder);
    if (heddle_lists_new(&lists, engine)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_OK);
    read_all(session, want);
    assert_int_equal(heddle_session_truncate(session, N_KEPT, NULL), HEDDLE_OK);
    assert_int_equal(heddle_lists_count(lists), N_KEPT - N_PROMPT + 1);
    assert_int_equal(heddle_session_extend(session, golden.tokens, N_AGAIN, NULL, NULL), HEDDLE_OK);
    assert_int_equal(heddle_session_decode(session, golden.tokens, 1), HEDDLE_OK);
    int64_t n_rows = heddle_session_len(session);
    assert_true(n_rows < N_TOKENS);
    heddle_session_free(session);
    assert_int_equal(heddle_lists_save(lists, shorter), HEDDLE_OK);
    heddle_lists_free(lists);
    if (heddle_lists_load(&loaded, engine, shorter)) fail_msg("%s", heddle_last_error());
    session = new_session(true);
    assert_int_equal(heddle_session_replay(session, loaded), HEDDLE_OK);
    for (int64_t t = 0; t < N_TOKENS; t++) {
        bool is_decoded = (t >= N_PROMPT - 1 && t < N_KEPT) || (t >= n_rows - 2 && t < n_rows);
        int32_t n = session->hook.wanted(session->hook.wanted_user, layer, t, ids, CROSS_TOP_K);
        assert_int_equal(n, is_decoded ? CROSS_TOP_K : -1);
    }
    heddle_session_free(session);
    heddle_lists_free(loaded);
}

static void test_candidates_are_not_recorded(void **state)
{
    (void)state;
    heddle_lists *lists;
    heddle_session *session = session_under(by_candidates);
    if (heddle_lists_new(&lists, engine)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_OK);
    read_all(session, got);
    assert_int_equal(heddle_lists_count(lists), N_TOKENS - N_PROMPT);
    heddle_session_free(session);
    heddle_lists_free(lists);
}

static int32_t give_most(void *user, int32_t layer, int64_t row, int32_t *ids, int64_t n_max)
{
    (void)layer;
    *(int64_t *)user = n_max;
    for (int32_t i = 0; i < n_max; i++) ids[i] = i;
    return n_max <= row ? (int32_t)n_max : -1;
}

/* Until the next refresh, each step adds its token to the list that was given. */
static void test_a_replayed_list_leaves_room_until_the_refresh(void **state)
{
    (void)state;
    int64_t n_max = 0;
    heddle_session *session = session_under(by_refresh);
    const hdl_schedule *schedule = session->runner->schedule;
    int32_t layer = engine->model->facts.cross_from;
    int64_t room = schedule->slots[schedule->slot_of_layer[HDL_ROUTE_DECODE][layer]].n_ids_max;
    session->hook.wanted = give_most;
    session->hook.wanted_user = &n_max;
    read_all(session, got);
    assert_true(n_max > 0 && n_max + schedule->refresh - 1 <= room);
    heddle_session_free(session);
}

static void test_damaged_files_are_refused(void **state)
{
    (void)state;
    hdl_buf bytes = {0};
    heddle_lists *lists;
    char bad[300];
    snprintf(bad, sizeof bad, "%s/bad.lists", folder);
    if (hdl_buf_read_file(&bytes, path, 1 << 20)) fail_msg("%s", hdl_last_error());
    for (int64_t at = 0; at < bytes.n;
         at += at < 48 ? 1 : 7) { /* every byte of the header, some of the lists */
        bytes.data[at] ^= 1;
        assert_true(tiny_write_file(bad, bytes.data, bytes.n));
        assert_int_not_equal(heddle_lists_load(&lists, engine, bad), HEDDLE_OK);
        bytes.data[at] ^= 1;
    }
    for (int64_t n = 0; n < bytes.n; n += 13) {
        assert_true(tiny_write_file(bad, bytes.data, n));
        assert_int_not_equal(heddle_lists_load(&lists, engine, bad), HEDDLE_OK);
    }
    hdl_buf_deinit(&bytes);
}

/* As files were before: version 1 ends behind the lists, version 2 behind the tokens. u32 version at 8,
 * u32 n_tokens at 12, i64 bytes of the lists at 32, the lists at 40. */
static heddle_lists *load_as_version(uint8_t version)
{
    hdl_buf bytes = {0};
    heddle_lists *lists;
    char old[300];
    int64_t n;
    snprintf(old, sizeof old, "%s/old.lists", folder);
    if (hdl_buf_read_file(&bytes, path, 1 << 20)) fail_msg("%s", hdl_last_error());
    assert_int_equal(bytes.data[8], 3);
    memcpy(&n, bytes.data + 32, sizeof n);
    n += 40;
    bytes.data[8] = (char)version;
    if (version == 1)
        bytes.data[12] = 0;
    else
        n += N_TOKENS * (int64_t)sizeof(int32_t);
    uint64_t sum = hdl_hash(bytes.data, n);
    memcpy(bytes.data + n, &sum, sizeof sum);
    assert_true(tiny_write_file(old, bytes.data, n + 8));
    if (heddle_lists_load(&lists, engine, old)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_lists_count(lists), N_TOKENS - N_PROMPT + 1);
    hdl_buf_deinit(&bytes);
    return lists;
}

static void test_version_1_has_no_tokens(void **state)
{
    (void)state;
    heddle_lists *lists = load_as_version(1);
    assert_int_equal(heddle_lists_tokens(lists, NULL), 0);
    heddle_lists_free(lists);
    lists = load_as_version(2);
    assert_int_equal(heddle_lists_tokens(lists, NULL), N_TOKENS);
    heddle_lists_free(lists);
}

static void expect_told(const heddle_lists *lists, const heddle_session *session, const int32_t *ids,
                        int64_t n_ids, heddle_status want_status, const char *words)
{
    heddle_status status = heddle_lists_check(lists, session, ids, n_ids);
    if (status != want_status || (status && !strstr(heddle_last_error(), words)))
        fail_msg("%d: \"%s\", not \"%s\"", status, heddle_last_error(), words);
}

/* Lists are of a plan, of tokens, and of what may not be read; files of before version 3 do not say. */
static void test_lists_of_another_session_are_told(void **state)
{
    (void)state;
    int32_t other[N_TOKENS];
    heddle_lists *loaded;
    if (heddle_lists_load(&loaded, engine, path)) fail_msg("%s", heddle_last_error());
    heddle_session *session = new_session(false);
    memcpy(other, golden.tokens, sizeof other);
    other[7] ^= 1;
    expect_told(loaded, session, golden.tokens, N_PROMPT, HEDDLE_OK, "");
    expect_told(loaded, session, other, 7, HEDDLE_OK, "");
    expect_told(loaded, session, other, N_PROMPT, HEDDLE_E_INVALID, "this one's 60 tokens the first 7 are");
    for (int version = 1; version < 3; version++) {
        heddle_lists *old = load_as_version((uint8_t)version);
        expect_told(old, session, golden.tokens, N_PROMPT, HEDDLE_E_UNSUPPORTED, "since version 3");
        heddle_lists_free(old);
    }
    assert_int_equal(heddle_session_extend(session, golden.tokens, N_PROMPT, NULL, NULL), HEDDLE_OK);
    assert_int_equal(heddle_session_forbid(session, 3, 2), HEDDLE_OK);
    expect_told(loaded, session, golden.tokens, N_PROMPT, HEDDLE_E_INVALID, "other tokens forbidden");
    heddle_session_free(session);

    session = session_under(by_chance);
    expect_told(loaded, session, golden.tokens, N_PROMPT, HEDDLE_E_INVALID,
                "under plan \"clsa\": the session has plan \"chance\"");
    heddle_session_free(session);
    heddle_plan *plan;
    heddle_session_options options;
    heddle_session_options_default(&options);
    if (heddle_plan_named(&plan, "clsa:top_k=13")) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    expect_told(loaded, session, golden.tokens, N_PROMPT, HEDDLE_E_INVALID,
                "another wording of plan \"clsa\"");
    heddle_plan_free(plan);
    heddle_session_free(session);
    heddle_lists_free(loaded);
}

static void test_lists_of_another_model_are_refused(void **state)
{
    (void)state;
    char f32[256];
    heddle_engine *other;
    heddle_lists *lists;
    assert_true(cross_write_f32(f32, sizeof f32)); /* the same rows in other bytes */
    if (heddle_engine_open(&other, f32, NULL)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_lists_load(&lists, other, path), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "was recorded with another model"));
    heddle_engine_close(other);
    tiny_remove_folder(f32);
}

static void test_plans_without_lists_are_refused(void **state)
{
    (void)state;
    static const char dense[] = "{\"heddle_plan\": 1, \"name\": \"all\", \"variants\": [{}]}";
    heddle_lists *lists, *loaded;
    heddle_session *session = session_under(dense);
    if (heddle_lists_new(&lists, engine)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_E_UNSUPPORTED);
    assert_non_null(strstr(heddle_last_error(), "plan all makes no list"));
    if (heddle_lists_load(&loaded, engine, path)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_replay(session, loaded), HEDDLE_E_UNSUPPORTED);
    heddle_session_free(session);
    heddle_lists_free(loaded);
    heddle_lists_free(lists);
}

static int setup(void **state)
{
    (void)state;
    if (!cross_golden_read(&golden) || !tiny_make_folder(folder, sizeof folder)) return -1;
    snprintf(path, sizeof path, "%s/a.lists", folder);
    return heddle_engine_open(&engine, CROSS_GOLDEN, NULL) ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return heddle_engine_close(engine) ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorded_lists_are_one_a_row),
        cmocka_unit_test(test_replay_is_in_place_of_scoring),
        cmocka_unit_test(test_a_row_that_is_read_again_keeps_its_last_list),
        cmocka_unit_test(test_rows_that_were_given_up_leave_the_record),
        cmocka_unit_test(test_candidates_are_not_recorded),
        cmocka_unit_test(test_a_replayed_list_leaves_room_until_the_refresh),
        cmocka_unit_test(test_damaged_files_are_refused),
        cmocka_unit_test(test_version_1_has_no_tokens),
        cmocka_unit_test(test_lists_of_another_session_are_told),
        cmocka_unit_test(test_lists_of_another_model_are_refused),
        cmocka_unit_test(test_plans_without_lists_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
