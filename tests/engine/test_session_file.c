/* Session files: going on from one equals never having stopped, bit for bit; what does not belong or
 * is not whole is refused, and neither the session nor the file changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/mem.h"
#include "engine/tiny_engine.h"
#include "heddle.h"
#include "tiny_model.h"

enum { N_IDS = 300, N_VOCAB = 300 /* at most */, CONTEXT = 400 };
static int32_t ids[N_IDS];
static char folder[512], path[600], other_path[600];

#define ANCHOR(router)                                                                                         \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0], \"router\": " router \
    "}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}"
#define OWN(top_k, refresh)                                                                                  \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [5], \"operator\": "    \
    "\"token_list\", \"router\": {\"top_k\": " top_k                                                         \
    ", \"window\": 8, \"lists\": \"kv_head\", \"refresh\": " refresh                                         \
    "}}, {\"layers\": \"rest\", \"operator\": \"dense\"}]}]}"
static const char *const plans[] = {
    NULL, ANCHOR("{\"top_k\": 16, \"window\": 8, \"refresh\": 4}"),
    ANCHOR("{\"top_k\": 9, \"window\": 2, \"lists\": \"kv_head\", \"refresh\": 3}")};
/* every layer its own blocks by this score */
#define OWN_ROUTER(score)                                                                                                     \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": \"block_list\", " \
    "\"router\": {\"score\": " score ", \"top_k\": 32, \"window\": 1}}]}]}"
/* for the model whose layers have a window, but for layer 5 */
static const char *const windowed_plans[] = {NULL, OWN("16", "4"), OWN("9", "3")};

static heddle_session_options base_options(void)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.chunk_rows = 64;
    options.page_shift = 4;
    options.is_invariant = 1;
    return options;
}

static heddle_plan *plan_of(const char *json)
{
    heddle_plan *plan = NULL;
    if (json && heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test"))
        fail_msg("%s", heddle_last_error());
    return plan;
}

static heddle_session *new_session(heddle_engine *engine, const char *json,
                                   const heddle_session_options *options)
{
    heddle_plan *plan = plan_of(json);
    heddle_session *session;
    if (heddle_session_new(&session, engine, plan, options)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return session;
}

static void extend(heddle_session *session, const int32_t *from, int64_t n)
{
    if (heddle_session_extend(session, from, n, NULL, NULL)) fail_msg("%s", heddle_last_error());
}

static void decode(heddle_session *session, const int32_t *from, int64_t n)
{
    if (heddle_session_decode(session, from, n)) fail_msg("%s", heddle_last_error());
}

static void save(const heddle_session *session)
{
    if (heddle_session_save(session, path)) fail_msg("%s", heddle_last_error());
}

static size_t logit_bytes(const heddle_session *session)
{
    return (size_t)session->runner->schedule->facts->n_vocab * sizeof(float);
}

static void assert_same_state(const heddle_session *a, const heddle_session *b)
{
    assert_int_equal(heddle_session_len(a), heddle_session_len(b));
    assert_memory_equal(heddle_session_ids(a), heddle_session_ids(b), (size_t)heddle_session_len(a) * 4);
    assert_memory_equal(heddle_session_logits(a), heddle_session_logits(b), logit_bytes(a));
}

/* Every model, KV type, layout and plan, stopped at several lengths; between two refreshes, too. */
static void test_going_on_equals_never_stopping(void **state)
{
    (void)state;
    static const char *const models[] = {"llama", "qwen3", "gemma3"};
    static const char *const types[] = {"f32", "f16", "bf16", "i8"};
    int64_t lens[] = {1, 15, 16, 17, 100, 290};
    int32_t n_runs = 0;
    for (int m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2), *again = tiny_engine(models[m], 2);
        for (int t = 0; t < 8; t++)
            for (int p = 0; p < 3; p++) {
                heddle_session_options options = base_options();
                options.kv_type = types[t / 2];
                options.kv_layout = t % 2 ? "head" : "token";
                options.plan_governs_all = p == 2;
                const char *plan = m == 2 ? windowed_plans[p] : plans[p];
                heddle_session *straight = new_session(engine, plan, &options);
                options.context_tokens = CONTEXT + 100; /* another context size is another stride */
                heddle_session *loaded = new_session(again, plan, &options);
                for (int l = 0; l < 6; l++) {
                    int64_t n = heddle_session_len(straight);
                    extend(straight, ids + n, lens[l] - n);
                    if (l == 4) /* so that lists are kept, and a refresh is not due */
                        for (n = lens[l]; n < lens[l] + 6; n++) decode(straight, ids + n, 1);
                    save(straight);
                    if (heddle_session_load(loaded, path)) fail_msg("%s", heddle_last_error());
                    assert_same_state(straight, loaded);
                    for (n = heddle_session_len(straight); l == 4 && n < 112; n++) {
                        decode(straight, ids + n, 1);
                        decode(loaded, ids + n, 1);
                        assert_same_state(straight, loaded);
                    }
                    n_runs++;
                }
                decode(straight, ids + 290, 10);
                decode(loaded, ids + 290, 10);
                assert_same_state(straight, loaded);
                heddle_session_free(straight);
                heddle_session_free(loaded);
            }
        heddle_engine_close(engine);
        heddle_engine_close(again);
    }
    assert_int_equal(n_runs, 3 * 8 * 3 * 6);
}

static void test_an_empty_and_a_cut_back_session(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = base_options();
    heddle_session *a = new_session(engine, NULL, &options), *b = new_session(engine, NULL, &options);
    int64_t kept;
    save(a);
    extend(b, ids, 20);
    assert_int_equal(heddle_session_load(b, path), HEDDLE_OK);
    assert_int_equal(heddle_session_len(b), 0);
    assert_null(heddle_session_logits(b));
    extend(a, ids, 40);
    assert_int_equal(heddle_session_truncate(a, 30, &kept), HEDDLE_OK);
    save(a); /* no logits: the last token was read before others that are gone */
    assert_int_equal(heddle_session_load(b, path), HEDDLE_OK);
    assert_int_equal(heddle_session_len(b), 30);
    assert_null(heddle_session_logits(b));
    extend(a, ids + 30, 5);
    extend(b, ids + 30, 5);
    assert_same_state(a, b);
    int64_t n_kept; /* a text that shares 20 tokens: the rest is read */
    int32_t text[25];
    memcpy(text, ids, 20 * sizeof *text);
    memcpy(text + 20, ids + 100, 5 * sizeof *text);
    assert_int_equal(heddle_session_sync(b, text, 25, &n_kept, NULL, NULL), HEDDLE_OK);
    assert_int_equal(n_kept, 20);
    heddle_session_free(a);
    heddle_session_free(b);
    heddle_engine_close(engine);
}

/* Whole lists near the end of the context, which have room for no more than it: once refused. */
static void test_whole_lists_at_the_end_of_the_context(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = base_options();
    options.context_tokens = 64;
    const char *plan = ANCHOR("{\"top_k\": 512, \"window\": 8, \"refresh\": 8}");
    heddle_session *a = new_session(engine, plan, &options), *b = new_session(engine, plan, &options);
    extend(a, ids, 60);
    decode(a, ids + 60, 2);
    save(a);
    if (heddle_session_load(b, path)) fail_msg("%s", heddle_last_error());
    decode(a, ids + 62, 2);
    decode(b, ids + 62, 2);
    assert_same_state(a, b);
    heddle_session_free(a);
    heddle_session_free(b);
    heddle_engine_close(engine);
}

/* A sliding cache goes back as far as it was told to keep, and the file keeps that, too. */
static void test_going_back_in_a_sliding_cache(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("gemma3", 2); /* windows of 16 tokens */
    for (int32_t rewind = 0; rewind <= 50; rewind += 25) {
        heddle_session_options options = base_options();
        options.rewind_tokens = rewind;
        heddle_session *a = new_session(engine, NULL, &options), *b = new_session(engine, NULL, &options);
        heddle_session *straight = new_session(engine, NULL, &options);
        int64_t kept = -1;
        extend(a, ids, 200);
        save(a);
        assert_int_equal(heddle_session_load(b, path), HEDDLE_OK);
        assert_int_equal(heddle_session_truncate(b, 200 - rewind, &kept), HEDDLE_OK);
        assert_int_equal(kept, 200 - rewind);
        if (rewind) {
            extend(b, ids + kept, 3);
            extend(straight, ids, kept + 3);
            assert_same_state(b, straight);
        }
        assert_int_equal(heddle_session_truncate(b, 200 - rewind - 34, &kept), HEDDLE_OK);
        assert_int_equal(kept, 0); /* window and page size do not reach so far */
        heddle_session_free(a);
        heddle_session_free(b);
        heddle_session_free(straight);
    }
    heddle_engine_close(engine);
}

/* ---- refusals ---- */

static void read_file(hdl_buf *bytes, const char *from)
{
    bytes->n = 0;
    assert_int_equal(hdl_buf_read_file(bytes, from, 1 << 24), HEDDLE_OK);
}

/* The file is refused with `status` and a sentence with `words`; file and session stay as they were. */
static void assert_refused(heddle_session *session, const char *from, heddle_status status, const char *words)
{
    static float logits[N_VOCAB];
    hdl_buf before = {0}, after = {0};
    int64_t len = heddle_session_len(session), live = hdl_mem_live_bytes();
    memcpy(logits, heddle_session_logits(session), logit_bytes(session));
    read_file(&before, from);
    int64_t buffered = hdl_mem_live_bytes() - live;
    heddle_status got = heddle_session_load(session, from);
    if (got != status || !strstr(heddle_last_error(), words) || !strstr(heddle_last_error(), from))
        fail_msg("status %d, not %d; \"%s\" should hold \"%s\"", got, status, heddle_last_error(), words);
    assert_int_equal(hdl_mem_live_bytes() - live, buffered);
    assert_int_equal(heddle_session_len(session), len);
    assert_memory_equal(heddle_session_logits(session), logits, logit_bytes(session));
    read_file(&after, from);
    assert_int_equal(before.n, after.n);
    assert_memory_equal(before.data, after.data, (size_t)after.n);
    hdl_buf_deinit(&before);
    hdl_buf_deinit(&after);
}

static void test_what_does_not_belong_is_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2), *scaled = tiny_engine("llama3-scaled", 2);
    heddle_session_options options = base_options(), changed;
    heddle_session *writer = new_session(engine, plans[1], &options);
    extend(writer, ids, 50);
    save(writer);
    struct {
        heddle_engine *engine;
        const char *plan;
        int which; /* option that differs */
        heddle_status status;
        const char *words;
    } rows[] = {{scaled, plans[1], 0, HEDDLE_E_INVALID, "another model"},
                {engine, plans[2], 0, HEDDLE_E_INVALID, "another wording of plan \"t\""},
                {engine, NULL, 0, HEDDLE_E_INVALID, "plan \"t\", this session has plan \"dense\""},
                {engine, plans[1], 1, HEDDLE_E_INVALID, "has KV type f16, this session i8"},
                {engine, plans[1], 2, HEDDLE_E_INVALID, "KV layout \"token\", this session \"head\""},
                {engine, plans[1], 3, HEDDLE_E_INVALID, "2^4 tokens, this session of 2^5"},
                {engine, plans[1], 4, HEDDLE_E_INVALID, "in the invariant mode, this session is outside it"},
                {engine, plans[1], 5, HEDDLE_E_INVALID, "took the prefill route"},
                {engine, plans[1], 6, HEDDLE_E_CAPACITY, "holds 50 tokens, the context of this session 49"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        changed = options;
        if (rows[i].which == 1) changed.kv_type = "i8";
        if (rows[i].which == 2) changed.kv_layout = "head";
        if (rows[i].which == 3) changed.page_shift = 5;
        if (rows[i].which == 4) changed.is_invariant = 0;
        if (rows[i].which == 5) changed.plan_governs_all = 1;
        if (rows[i].which == 6) changed.context_tokens = 49;
        heddle_session *reader = new_session(rows[i].engine, rows[i].plan, &changed);
        extend(reader, ids + 7, 9);
        assert_refused(reader, path, rows[i].status, rows[i].words);
        heddle_session_free(reader);
    }
    assert_int_equal(heddle_session_load(writer, "/no/such/file"), HEDDLE_E_IO);
    assert_int_equal(heddle_session_load(writer, folder), HEDDLE_E_IO);
    assert_int_equal(heddle_session_save(writer, folder), HEDDLE_E_INVALID);
    heddle_session_free(writer);
    heddle_engine_close(engine);
    heddle_engine_close(scaled);
}

/* Two kinds of summaries of one size: a file of the one is no file of the other. */
static void test_other_summaries_of_one_size_are_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    const char *kinds[] = {OWN_ROUTER("\"block_mean\", \"block\": 8"),
                           OWN_ROUTER("\"block_bounds\", \"block\": 16")};
    heddle_session *sessions[2];
    for (int i = 0; i < 2; i++) {
        heddle_plan *plan = plan_of(kinds[i]);
        const heddle_plan *kept[] = {plan};
        heddle_session_options options = base_options();
        options.kept_plans = kept;
        options.n_kept_plans = 1;
        if (heddle_session_new(&sessions[i], engine, NULL, &options)) fail_msg("%s", heddle_last_error());
        heddle_plan_free(plan);
    }
    assert_int_equal(hdl_kv_store_layout(sessions[0]->store, 0)->page_bytes,
                     hdl_kv_store_layout(sessions[1]->store, 0)->page_bytes);
    extend(sessions[0], ids, 50);
    save(sessions[0]);
    assert_int_not_equal(heddle_session_load(sessions[1], path), HEDDLE_OK);
    assert_int_equal(heddle_session_len(sessions[1]), 0);
    assert_int_equal(heddle_session_load(sessions[0], path), HEDDLE_OK);
    for (int i = 0; i < 2; i++) heddle_session_free(sessions[i]);
    heddle_engine_close(engine);
}

/* One weight that differs in one byte, far inside a matrix, makes another model. */
static void test_one_byte_of_one_weight_makes_another_model(void **state)
{
    (void)state;
    char a[600], b[600];
    hdl_buf bytes = {0};
    tiny_options model = {.seed = 3};
    heddle_engine *engine, *twin;
    heddle_session_options options = base_options();
    snprintf(a, sizeof a, "%s/a.gguf", folder);
    snprintf(b, sizeof b, "%s/b.gguf", folder);
    assert_true(tiny_gguf_bytes(&bytes, &model));
    assert_true(tiny_write_file(a, bytes.data, bytes.n));
    for (int is_changed = 0; is_changed < 2; is_changed++) {
        if (is_changed) bytes.data[bytes.n * 3 / 4] ^= 1;
        assert_true(tiny_write_file(b, bytes.data, bytes.n));
        assert_int_equal(heddle_engine_open(&engine, a, NULL), HEDDLE_OK);
        assert_int_equal(heddle_engine_open(&twin, b, NULL), HEDDLE_OK);
        heddle_session *writer = new_session(engine, NULL, &options);
        heddle_session *reader = new_session(twin, NULL, &options);
        extend(writer, ids, 20);
        extend(reader, ids, 3);
        save(writer);
        if (is_changed)
            assert_refused(reader, path, HEDDLE_E_INVALID, "another model");
        else
            assert_int_equal(heddle_session_load(reader, path), HEDDLE_OK);
        heddle_session_free(writer);
        heddle_session_free(reader);
        heddle_engine_close(engine);
        heddle_engine_close(twin);
    }
    hdl_buf_deinit(&bytes);
}

/* Cut at every byte of header, texts and ids and at every 61st after; every byte flipped; a tail. */
static void test_a_file_cut_or_flipped_anywhere_is_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = base_options();
    options.kv_type = "i8";
    heddle_session *writer = new_session(engine, plans[1], &options);
    heddle_session *reader = new_session(engine, plans[1], &options);
    hdl_buf bytes = {0};
    extend(reader, ids + 50, 3);
    extend(writer, ids, 12);
    for (int i = 12; i < 14; i++) decode(writer, ids + i, 1); /* lists are in the file */
    save(writer);
    read_file(&bytes, path);
    int64_t n_cuts = 0;
    for (int64_t n = 0; n < bytes.n; n += n < 1024 ? 1 : 61, n_cuts++) {
        assert_true(tiny_write_file(other_path, bytes.data, n));
        heddle_status status = heddle_session_load(reader, other_path);
        if (status != HEDDLE_E_FORMAT) fail_msg("cut at %lld: status %d", (long long)n, status);
        assert_true(strstr(heddle_last_error(), "cut") || strstr(heddle_last_error(), "session file"));
    }
    for (int64_t i = 0; i < bytes.n; i++) {
        bytes.data[i] ^= (char)(1 << i % 8);
        assert_true(tiny_write_file(other_path, bytes.data, bytes.n));
        heddle_status status = heddle_session_load(reader, other_path);
        if (status != HEDDLE_E_FORMAT && !(status == HEDDLE_E_UNSUPPORTED && i >= 8 && i < 12))
            fail_msg("byte %lld flipped: status %d", (long long)i, status);
        bytes.data[i] ^= (char)(1 << i % 8);
    }
    hdl_buf_add(&bytes, "x", 1);
    assert_true(tiny_write_file(other_path, bytes.data, bytes.n));
    assert_refused(reader, other_path, HEDDLE_E_FORMAT, "it has");
    bytes.data[8] = 5;
    assert_true(tiny_write_file(other_path, bytes.data, bytes.n));
    assert_refused(reader, other_path, HEDDLE_E_UNSUPPORTED, "session format 5; this build reads");
    assert_true(tiny_write_file(other_path, "a text that is no session file", 30));
    assert_refused(reader, other_path, HEDDLE_E_FORMAT, "is not a heddle session file");
    print_message("%lld cuts, %lld flips\n", (long long)n_cuts, (long long)bytes.n - 1);
    assert_int_equal(heddle_session_load(reader, path), HEDDLE_OK); /* and the true one still loads */
    assert_same_state(writer, reader);
    hdl_buf_deinit(&bytes);
    heddle_session_free(writer);
    heddle_session_free(reader);
    heddle_engine_close(engine);
}

/* Someone who mends the checksum too must not get past the reader's own checks. */
static void test_numbers_that_contradict_are_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("gemma3", 2);
    heddle_session_options options = base_options();
    heddle_session *writer = new_session(engine, windowed_plans[1], &options);
    heddle_session *reader = new_session(engine, windowed_plans[1], &options);
    hdl_buf bytes = {0};
    int64_t n_refused = 0, n_loaded = 0;
    extend(writer, ids, 70);
    decode(writer, ids + 70, 1);
    save(writer);
    read_file(&bytes, path);
    for (int64_t i = 0; i + 4 <= HDL_MIN(bytes.n - 8, 4096); i++)
        for (int v = 0; v < 4; v++) {
            static const int32_t values[] = {-1, 0, 1 << 30, 17};
            int32_t old;
            memcpy(&old, bytes.data + i, 4);
            memcpy(bytes.data + i, &values[v], 4);
            uint64_t sum = hdl_hash(bytes.data, bytes.n - 8);
            memcpy(bytes.data + bytes.n - 8, &sum, 8);
            assert_true(tiny_write_file(other_path, bytes.data, bytes.n));
            if (heddle_session_load(reader, other_path)) {
                n_refused++;
            } else { /* ids, logits and rows may be anything; the state must be sound */
                n_loaded++;
                extend(reader, ids, 1);
            }
            memcpy(bytes.data + i, &old, 4);
        }
    print_message("%lld refused, %lld loaded\n", (long long)n_refused, (long long)n_loaded);
    assert_true(n_refused > 500 && n_loaded > 100);
    hdl_buf_deinit(&bytes);
    heddle_session_free(writer);
    heddle_session_free(reader);
    heddle_engine_close(engine);
}

static void test_what_a_file_says_of_itself(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("qwen3", 2);
    heddle_session_options options = base_options();
    heddle_session *session = new_session(engine, plans[1], &options);
    heddle_session_file_info info = {.struct_size = sizeof info};
    extend(session, ids, 33);
    save(session);
    assert_int_equal(heddle_session_file_inspect(path, &info), HEDDLE_OK);
    assert_int_equal(info.n_tokens, 33);
    assert_string_equal(info.plan, "t");
    assert_string_equal(info.kv_type, "f16");
    assert_string_equal(info.kv_layout, "token");
    assert_int_equal(info.page_shift, 4);
    assert_true(info.is_invariant && !info.plan_governs_all);
    assert_int_equal(heddle_session_file_inspect("/no/such/file", &info), HEDDLE_E_IO);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

/* It had cut a name after 127 bytes, inside its 64th "é". */
static void test_a_long_name_is_cut_between_characters(void **state)
{
    (void)state;
    char json[512], name[201] = "";
    for (int i = 0; i < 100; i++) strcat(name, "é");
    snprintf(json, sizeof json, "{\"heddle_plan\": 1, \"name\": \"%s\", \"variants\": [{}]}", name);
    heddle_engine *engine = tiny_engine("qwen3", 2);
    heddle_session_options options = base_options();
    heddle_session *session = new_session(engine, json, &options);
    heddle_session_file_info info = {.struct_size = sizeof info};
    extend(session, ids, 33);
    save(session);
    assert_int_equal(heddle_session_file_inspect(path, &info), HEDDLE_OK);
    assert_int_equal(strlen(info.plan), 126);
    assert_memory_equal(info.plan, name, 126);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

/* A caller that was built when a struct was shorter: what lies behind its struct is not written. */
static void test_structs_of_an_older_caller_are_not_overrun(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("qwen3", 2);
    heddle_session_options options = base_options();
    heddle_session *session = new_session(engine, NULL, &options);
    union {
        uint32_t struct_size;
        heddle_session_file_info info;
        heddle_stats stats;
        heddle_memory memory;
        heddle_model_info model;
        uint8_t bytes[1024];
    } at;
    static uint8_t behind[sizeof at];
    memset(behind, 0x5a, sizeof behind);
    extend(session, ids, 33);
    save(session);
    for (int i = 0; i < 4; i++) {
        memset(&at, 0x5a, sizeof at);
        at.struct_size = 16;
        if (i == 0) assert_int_equal(heddle_session_file_inspect(path, &at.info), HEDDLE_OK);
        if (i == 1) heddle_session_stats(session, &at.stats);
        if (i == 2) assert_int_equal(heddle_memory_plan(engine, NULL, &options, 64, &at.memory), HEDDLE_OK);
        if (i == 3) heddle_engine_model_info(engine, &at.model);
        assert_int_equal(at.struct_size, 16);
        if (i < 2) assert_int_equal(i ? at.stats.n_prefill_tokens : at.info.n_tokens, 33);
        assert_memory_equal(at.bytes + 16, behind, sizeof at - 16);
    }
    memset(&at, 0x5a, sizeof at);
    at.struct_size = sizeof at; /* and one that is newer hears how much it got */
    heddle_session_stats(session, &at.stats);
    assert_int_equal(at.struct_size, sizeof at.stats);
    assert_memory_equal(at.bytes + sizeof at.stats, behind, sizeof at - sizeof at.stats);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("gemma3", 2);
    heddle_session_options options = base_options();
    heddle_session *a = new_session(engine, windowed_plans[1], &options);
    heddle_session *b = new_session(engine, windowed_plans[1], &options);
    extend(a, ids, 40);
    extend(b, ids + 9, 5);
    int64_t n = 0;
    for (heddle_status status = HEDDLE_E_NOMEM; status; n++) {
        int64_t live = hdl_mem_live_bytes();
        engine->identity = 0;
        hdl_mem_fail_at(n + 1);
        status = heddle_session_save(a, path);
        if (!status) status = heddle_session_load(b, path);
        hdl_mem_fail_at(0);
        assert_true(status == HEDDLE_OK || status == HEDDLE_E_NOMEM);
        assert_int_equal(hdl_mem_live_bytes(), live);
        assert_int_equal(heddle_session_len(b), status ? 5 : 40);
    }
    assert_true(n > 5);
    assert_same_state(a, b);
    heddle_session_free(a);
    heddle_session_free(b);
    heddle_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_going_on_equals_never_stopping),
        cmocka_unit_test(test_an_empty_and_a_cut_back_session),
        cmocka_unit_test(test_whole_lists_at_the_end_of_the_context),
        cmocka_unit_test(test_going_back_in_a_sliding_cache),
        cmocka_unit_test(test_what_does_not_belong_is_refused),
        cmocka_unit_test(test_other_summaries_of_one_size_are_refused),
        cmocka_unit_test(test_one_byte_of_one_weight_makes_another_model),
        cmocka_unit_test(test_a_file_cut_or_flipped_anywhere_is_refused),
        cmocka_unit_test(test_numbers_that_contradict_are_refused),
        cmocka_unit_test(test_what_a_file_says_of_itself),
        cmocka_unit_test(test_a_long_name_is_cut_between_characters),
        cmocka_unit_test(test_structs_of_an_older_caller_are_not_overrun),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    uint32_t random = 5;
    for (int i = 0; i < N_IDS; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)((random >> 8) % 256);
    }
    if (!tiny_make_folder(folder, sizeof folder)) return 1;
    snprintf(path, sizeof path, "%s/session", folder);
    snprintf(other_path, sizeof other_path, "%s/other", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tiny_remove_folder(folder);
    return failed;
}
