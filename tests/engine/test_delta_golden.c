/* Models with gated-delta layers (train/golden/delta-tiny: the hybrid; delta-cross-tiny: below a shared
 * state with an index) against the answers of train/modeling_heddle.py, which takes rows one by one with the
 * matrices written out; f32 there and here, K and V in f32: logits within 1e-3, max-abs. Then what a state
 * must not change: chunks, batches, forks, files, documents, the lists of the layers beside it. Three
 * documents, 97 tokens. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/env.h"
#include "base/log.h"
#include "base/mem.h"
#include "heddle.h"

enum { N = 97, N_VOCAB = 128, BORDER_1 = 41, BORDER_2 = 78, CONTEXT = 160 };
static const char *const names[] = {"delta-tiny", "delta-cross-tiny"};

static int32_t tokens[2][N];
static float want[2][N][N_VOCAB], got[N][N_VOCAB], whole[N][N_VOCAB];
static heddle_engine *engines[2];
static char session_path[300], said[512];

static void read_golden(int m, const char *name, hdl_buf *buf)
{
    char path[600];
    snprintf(path, sizeof path, "%s/../train/golden/%s/%s", HDL_TEST_DATA, names[m], name);
    assert_int_equal(hdl_buf_read_file(buf, path, 1 << 20), HEDDLE_OK);
}

static heddle_engine *open_model(int m)
{
    char path[600];
    heddle_engine *engine;
    heddle_engine_options options = {.struct_size = sizeof options, .n_threads = 2};
    snprintf(path, sizeof path, "%s/../train/golden/%s", HDL_TEST_DATA, names[m]);
    if (heddle_engine_open(&engine, path, &options)) fail_msg("%s", heddle_last_error());
    return engine;
}

static int set_up(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        hdl_buf text = {0}, logits = {0};
        read_golden(m, "tokens.txt", &text);
        hdl_buf_add(&text, "", 1);
        char *at = text.data;
        for (int i = 0; i < N; i++) tokens[m][i] = (int32_t)strtol(at, &at, 10);
        read_golden(m, "logits.f32", &logits);
        assert_int_equal(logits.n, sizeof want[m]);
        memcpy(want[m], logits.data, sizeof want[m]);
        hdl_buf_deinit(&text);
        hdl_buf_deinit(&logits);
        engines[m] = open_model(m);
    }
    snprintf(session_path, sizeof session_path, "/tmp/heddle-test-delta-%d", (int)getpid());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) assert_int_equal(heddle_engine_close(engines[m]), HEDDLE_OK);
    remove(session_path);
    return 0;
}

/* plan: a name, JSON, or NULL. */
static heddle_session *new_session(heddle_engine *engine, const char *plan, int32_t chunk, bool is_invariant)
{
    heddle_session *session = NULL;
    heddle_plan *made = NULL;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.kv_type = "f32";
    options.chunk_rows = chunk;
    options.page_shift = 4;
    options.is_invariant = is_invariant;
    options.plan_governs_all = 1;
    heddle_status status = HEDDLE_OK;
    if (plan && *plan == '{') status = heddle_plan_parse(&made, plan, (int64_t)strlen(plan), "test");
    if (plan && *plan != '{') status = heddle_plan_named(&made, plan);
    if (!status) status = heddle_session_new(&session, engine, made, &options);
    if (status) fail_msg("%s", heddle_last_error());
    heddle_plan_free(made);
    return session;
}

typedef struct taker {
    float (*rows)[N_VOCAB];
} taker;

static int take(int64_t row, const float *logits, void *user)
{
    memcpy(((taker *)user)->rows[row], logits, sizeof got[0]);
    return 0;
}

/* Tokens [first, end) in calls of `step`, the logits of each to out. */
static void read_rows(heddle_session *session, int m, int64_t first, int64_t end, int64_t step,
                      float (*out)[N_VOCAB])
{
    for (int64_t at = first; at < end; at += step) {
        int64_t n = HDL_MIN(step, end - at);
        taker to = {out + at};
        heddle_status status = n == 1 ? heddle_session_decode(session, tokens[m] + at, 1)
                                      : heddle_session_each_logits(session, tokens[m] + at, n, 0, take, &to);
        if (status) fail_msg("%s", heddle_last_error());
        if (n == 1) memcpy(out[at], heddle_session_logits(session), sizeof out[0]);
    }
}

static void read_all(int m, const char *plan, int32_t chunk, int64_t step, bool is_invariant,
                     float (*out)[N_VOCAB])
{
    heddle_session *session = new_session(engines[m], plan, chunk, is_invariant);
    read_rows(session, m, 0, N, step, out);
    heddle_session_free(session);
}

static double worst_of(int m, float (*rows)[N_VOCAB])
{
    double worst = 0;
    for (int64_t r = 0; r < N; r++)
        for (int64_t i = 0; i < N_VOCAB; i++) {
            double d = fabs((double)rows[r][i] - (double)want[m][r][i]);
            worst = d <= worst ? worst : d; /* a NaN is kept */
        }
    return worst;
}

static void test_golden(void **state)
{
    (void)state;
    static const char *const impls[] = {NULL, "ref", "generic", "avx2"};
    for (int i = 0; i < HDL_COUNT(impls); i++) {
        if (impls[i]) setenv("HEDDLE_IMPL", impls[i], 1);
        hdl_env_reload();
        for (int m = 0; m < 2; m++)
            for (int32_t chunk = 1; chunk <= 128; chunk = chunk * 6 + 1) {
                read_all(m, "dense", chunk, N, false, got);
                double worst = worst_of(m, got);
                print_message("%-16s %-8s chunk %3d  max-abs %.2e of 1e-3\n", names[m],
                              impls[i] ? impls[i] : "best", chunk, worst);
                assert_true(worst <= 1e-3);
            }
        unsetenv("HEDDLE_IMPL");
        hdl_env_reload();
    }
}

/* A prompt in any chunks and rows that come one by one leave the same bits. */
static void test_prefill_is_decode(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        read_all(m, NULL, 128, N, true, whole);
        static const struct {
            int32_t chunk;
            int64_t step;
        } ways[] = {{7, N}, {128, 31}, {128, 1}, {3, 2}};
        for (int i = 0; i < HDL_COUNT(ways); i++) {
            read_all(m, NULL, ways[i].chunk, ways[i].step, true, got);
            assert_memory_equal(got, whole, sizeof whole);
        }
    }
}

/* One reads a prompt while another generates: what each says alone. */
static void test_batch(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        heddle_batch *batch;
        heddle_session_options options;
        heddle_session_options_default(&options);
        options.context_tokens = CONTEXT;
        options.kv_type = "f32";
        options.page_shift = 4;
        options.is_invariant = options.plan_governs_all = 1;
        read_all(m, NULL, 128, N, true, whole);
        if (heddle_batch_new(&batch, engines[m], NULL, &options, 3, 64)) fail_msg("%s", heddle_last_error());
        static const int64_t before[3] = {50, 30, 0}, n[3] = {1, 25, 38};
        heddle_session *sessions[3];
        heddle_batch_item items[3];
        for (int i = 0; i < 3; i++) {
            sessions[i] = new_session(engines[m], NULL, 128, true);
            if (before[i]) read_rows(sessions[i], m, 0, before[i], before[i], got);
            items[i] = (heddle_batch_item){
                .session = sessions[i], .ids = tokens[m] + before[i], .n_ids = n[i], .is_prompt = i > 0};
        }
        if (heddle_batch_step(batch, items, 3)) fail_msg("%s", heddle_last_error());
        for (int i = 0; i < 3; i++) {
            assert_memory_equal(heddle_session_logits(sessions[i]), whole[before[i] + n[i] - 1],
                                sizeof whole[0]);
            read_rows(sessions[i], m, before[i] + n[i], N, 5, got);
            assert_memory_equal(got[N - 1], whole[N - 1], sizeof whole[0]);
            heddle_session_free(sessions[i]);
        }
        heddle_batch_free(batch);
    }
}

/* A fork goes its own way; its state is its own. */
static void test_fork(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        heddle_session *session = new_session(engines[m], NULL, 128, true), *fork;
        read_all(m, NULL, 128, N, true, whole);
        read_rows(session, m, 0, 60, 60, got);
        assert_int_equal(heddle_session_fork(&fork, session), HEDDLE_OK);
        assert_int_equal(heddle_session_decode(session, (int32_t[]){7, 9, 11}, 3), HEDDLE_OK);
        read_rows(fork, m, 60, N, 4, got);
        assert_memory_equal(got[60], whole[60], (N - 60) * sizeof whole[0]);
        heddle_session_free(session);
        heddle_session_free(fork);
    }
}

static void test_save_and_load(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        heddle_session_file_info info = {.struct_size = sizeof info};
        heddle_session *writer = new_session(engines[m], NULL, 128, true), *reader;
        read_all(m, NULL, 128, N, true, whole);
        read_rows(writer, m, 0, 55, 55, got);
        if (heddle_session_save(writer, session_path)) fail_msg("%s", heddle_last_error());
        read_rows(writer, m, 55, N, 9, got); /* what is saved stays what it was */
        assert_int_equal(heddle_session_file_inspect(session_path, &info), HEDDLE_OK);
        assert_int_equal(info.format, 2);
        reader = new_session(engines[m], NULL, 16, true);
        read_rows(reader, m, 0, 20, 20, got);
        if (heddle_session_load(reader, session_path)) fail_msg("%s", heddle_last_error());
        read_rows(reader, m, 55, N, 3, got);
        assert_memory_equal(got[55], whole[55], (N - 55) * sizeof whole[0]);
        heddle_session *other = new_session(engines[1 - m], NULL, 16, true);
        assert_int_equal(heddle_session_load(other, session_path), HEDDLE_E_INVALID);
        heddle_session_free(other);
        heddle_session_free(writer);
        heddle_session_free(reader);
    }
}

static void hear(int level, const char *text, void *user)
{
    (void)user;
    if (level <= HDL_LOG_WARN) snprintf(said, sizeof said, "%s", text);
}

/* What a later text shares with what was read cannot be kept: it is read anew, and that is said. A text that
 * goes on is not. */
static void test_cut_back_starts_over(void **state)
{
    (void)state;
    heddle_set_log(hear, NULL);
    for (int m = 0; m < 2; m++) {
        int64_t kept;
        heddle_session *session = new_session(engines[m], NULL, 128, true);
        read_all(m, NULL, 128, N, true, whole);
        read_rows(session, m, 0, 50, 50, got);
        assert_int_equal(heddle_session_decode(session, (int32_t[]){5, 6}, 2), HEDDLE_OK);
        said[0] = 0;
        if (heddle_session_sync(session, tokens[m], 70, &kept, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        assert_int_equal(kept, 0);
        assert_non_null(strstr(said, "the session starts over: it was to be cut back from 52 to 50 tokens"));
        assert_memory_equal(heddle_session_logits(session), whole[69], sizeof whole[0]);
        said[0] = 0;
        if (heddle_session_sync(session, tokens[m], 90, &kept, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        assert_int_equal(kept, 70);
        assert_int_equal(said[0], 0);
        assert_memory_equal(heddle_session_logits(session), whole[89], sizeof whole[0]);
        assert_int_equal(heddle_session_truncate(session, 0, &kept), HEDDLE_OK);
        assert_int_equal(said[0], 0);
        read_rows(session, m, 0, 30, 30, got);
        assert_memory_equal(got, whole, 30 * sizeof whole[0]);
        heddle_session_free(session);
    }
    heddle_set_log(NULL, NULL);
}

/* The hybrid's full layer under a list: of everything, the dense bits; of 8 tokens and the row's own, dense
 * up to row 8, and not at row 9. */
static void test_lists_beside_states(void **state)
{
    (void)state;
#define LISTS(top_k)                                                                                          \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": " \
    "\"token_list\", \"router\": {\"score\": \"key_i8\", \"top_k\": " top_k ", \"window\": 1}}]}]}"
    read_all(0, "dense", 128, N, true, whole);
    read_all(0, LISTS("160"), 128, N, true, got);
    assert_memory_equal(got, whole, sizeof whole);
    read_all(0, LISTS("8"), 128, N, true, got);
    assert_memory_equal(got, whole, 9 * sizeof whole[0]);
    assert_memory_not_equal(got[9], whole[9], sizeof whole[0]);
    read_all(1, "clsa:top_k=160", 128, N, true, got);
    read_all(1, "dense", 128, N, true, whole);
    assert_memory_equal(got, whole, sizeof whole);
}

static void test_refusals(void **state)
{
    (void)state;
    heddle_plan *plan;
    static const char text[] =
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [1], \"operator\": "
        "\"token_list\", \"router\": {\"top_k\": 8}}]}]}";
    assert_int_equal(heddle_plan_parse(&plan, text, (int64_t)strlen(text), "test"), HEDDLE_OK);
    assert_int_equal(heddle_plan_check(plan, engines[0]), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "this layer keeps a gated-delta state in place of rows"));
    heddle_plan_free(plan);
    heddle_batch *batch;
    heddle_session *session = new_session(engines[0], NULL, 128, false);
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.kv_type = "f32";
    options.page_shift = 4;
    options.plan_governs_all = 1;
    if (heddle_batch_new(&batch, engines[0], NULL, &options, 1, 8)) fail_msg("%s", heddle_last_error());
    heddle_batch_item item = {
        .session = session, .ids = tokens[0], .n_ids = 2, .mask = (const uint8_t[]){1, 0, 1, 1}};
    assert_int_equal(heddle_batch_step(batch, &item, 1), HEDDLE_E_UNSUPPORTED);
    assert_non_null(strstr(heddle_last_error(), "rows under a mask: the 3 gated-delta layers"));
    heddle_session_free(session);
    heddle_batch_free(batch);
}

/* States are in the memory plan, whatever the length, and in what a session says it holds. */
static void test_memory(void **state)
{
    (void)state;
    enum { COLS = 2 * (2 * 16 + 32), STATE = 2 * 3 * (3 * COLS + 2 * 16 * 32) * 4 };
    heddle_session_options options;
    heddle_memory at[2] = {{.struct_size = sizeof at[0]}, {.struct_size = sizeof at[0]}};
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.page_shift = 4;
    for (int i = 0; i < 2; i++)
        assert_int_equal(heddle_memory_plan(engines[0], NULL, &options, i ? 128 : 16, &at[i]), HEDDLE_OK);
    int64_t page = (at[1].kv_bytes - at[0].kv_bytes) / 7;
    assert_int_equal(at[0].kv_bytes, page + STATE);
    heddle_session *session = new_session(engines[0], NULL, 128, false);
    heddle_stats stats = {.struct_size = sizeof stats};
    read_rows(session, 0, 0, 16, 16, got);
    heddle_session_stats(session, &stats);
    assert_int_equal(stats.kv_bytes, page + STATE);
    int64_t n_allocs = hdl_mem_n_allocs();
    read_rows(session, 0, 16, 60, 1, got);
    assert_int_equal(hdl_mem_n_allocs(), n_allocs); /* a decode step allocates nothing */
    heddle_session_free(session);
}

/* A document's rows below the shared state are its own: mounted, they say what joint reading says. */
static void test_documents(void **state)
{
    (void)state;
    char paths[2][320];
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.kv_type = "f32";
    options.page_shift = 4;
    heddle_session *session = new_session(engines[1], "dense", 128, false);
    for (int i = 0; i < 2; i++) {
        heddle_document *document;
        int64_t first, begin = i ? BORDER_1 : 0, n = i ? BORDER_2 - BORDER_1 : BORDER_1;
        snprintf(paths[i], sizeof paths[i], "%s.%d.kv", session_path, i);
        if (heddle_document_encode(engines[1], &options, tokens[1] + begin, n, paths[i], NULL, NULL))
            fail_msg("%s", heddle_last_error());
        if (heddle_document_open(&document, engines[1], paths[i])) fail_msg("%s", heddle_last_error());
        if (heddle_session_mount(session, document, &first)) fail_msg("%s", heddle_last_error());
        heddle_document_close(document);
    }
    int64_t kept, len = heddle_session_len(session);
    read_rows(session, 1, BORDER_2, N, 1, got);
    double worst = 0;
    for (int64_t r = BORDER_2; r < N; r++)
        for (int64_t i = 0; i < N_VOCAB; i++)
            worst = fmax(worst, fabs((double)got[r][i] - (double)want[1][r][i]));
    print_message("mounted: max-abs %.2e of 1e-3\n", worst);
    assert_true(worst <= 1e-3);
    /* cut back to where a document begins: nothing before it is in the states */
    memcpy(whole, got, sizeof whole);
    assert_int_equal(heddle_session_truncate(session, len, &kept), HEDDLE_OK);
    assert_int_equal(kept, len);
    read_rows(session, 1, BORDER_2, N, 1, got);
    assert_memory_equal(got[BORDER_2], whole[BORDER_2], (N - BORDER_2) * sizeof whole[0]);
    heddle_session_free(session);
    for (int i = 0; i < 2; i++) remove(paths[i]);
    heddle_document *document;
    assert_int_equal(heddle_document_open(&document, engines[0], "x"), HEDDLE_E_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_prefill_is_decode),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_cut_back_starts_over),
        cmocka_unit_test(test_lists_beside_states),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_documents),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
