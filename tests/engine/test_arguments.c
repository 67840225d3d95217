/* Every public function with NULL in place of each pointer that it needs: refused, with a sentence that names
 * the function and the argument; where there is no status to give, nothing happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "heddle.h"
#include "tiny_model.h"

static char folder[256];
static heddle_engine *engine;
static heddle_plan *plan;
static heddle_session *session;
static heddle_sampler *sampler;
static heddle_stream *stream;
static heddle_batch *batch;
static heddle_lists *lists;

static int32_t ids[4] = {5, 6, 7, 8}, id, *made_ids;
static int64_t n, n_more;
static const char *text;
static char *made_text;
static int is_stopped;
static float nll[4];
static double share;

static int on_row(int64_t row, const float *logits, void *user)
{
    (void)row, (void)logits, (void)user;
    return 0;
}

static void refused(heddle_status status, const char *call, const char *argument, int line)
{
    char sentence[128];
    int n_name = (int)strcspn(call, "(");
    snprintf(sentence, sizeof sentence, "%.*s: %s: must not be NULL", n_name, call, argument);
    if (status != HEDDLE_E_INVALID) fail_msg("line %d: %s: is not refused", line, call);
    if (strcmp(heddle_last_error(), sentence))
        fail_msg("line %d: says '%s', not '%s'", line, heddle_last_error(), sentence);
}
#define REFUSED(call, argument) refused(call, #call, argument, __LINE__)

static void test_engine_and_text(void **state)
{
    (void)state;
    heddle_memory memory = {.struct_size = sizeof memory};
    REFUSED(heddle_engine_open(NULL, "model", NULL), "out");
    heddle_engine *none = engine;
    assert_int_equal(heddle_engine_open(&none, NULL, NULL), HEDDLE_E_INVALID);
    assert_null(none);
    REFUSED(heddle_device_describe(NULL), "text");
    REFUSED(heddle_device_measure(NULL), "peaks");
    REFUSED(heddle_tokenize(NULL, "a", 1, 0, &made_ids, &n), "engine");
    REFUSED(heddle_tokenize(engine, "a", 1, 0, NULL, &n), "ids");
    REFUSED(heddle_tokenize(engine, "a", 1, 0, &made_ids, NULL), "n_ids");
    assert_int_equal(heddle_tokenize(engine, NULL, 1, 0, &made_ids, &n), HEDDLE_E_INVALID);
    assert_int_equal(heddle_tokenize(engine, "a", -1, 0, &made_ids, &n), HEDDLE_E_INVALID);
    REFUSED(heddle_detokenize(NULL, ids, 1, 0, &made_text, NULL), "engine");
    REFUSED(heddle_detokenize(engine, NULL, 1, 0, &made_text, NULL), "ids");
    REFUSED(heddle_detokenize(engine, ids, 1, 0, NULL, NULL), "text");
    REFUSED(heddle_chat_turn(NULL, NULL, "user", "a", 1, 1, &made_ids, &n), "engine");
    REFUSED(heddle_chat_turn(engine, NULL, NULL, "a", 1, 1, &made_ids, &n), "role");
    REFUSED(heddle_chat_turn(engine, NULL, "user", "a", 1, 1, NULL, &n), "ids");
    REFUSED(heddle_chat_turn(engine, NULL, "user", "a", 1, 1, &made_ids, NULL), "n_ids");
    assert_int_equal(heddle_chat_turn(engine, NULL, "user", NULL, 1, 1, &made_ids, &n), HEDDLE_E_INVALID);
    REFUSED(heddle_memory_plan(NULL, plan, NULL, 10, &memory), "engine");
    REFUSED(heddle_memory_plan(engine, plan, NULL, 10, NULL), "memory");
    REFUSED(heddle_explain(NULL, plan, NULL, &made_text), "engine");
    REFUSED(heddle_explain(engine, plan, NULL, NULL), "text");
}

static void test_plans(void **state)
{
    (void)state;
    heddle_plan *made = plan;
    REFUSED(heddle_plan_parse(NULL, "{}", 2, "p"), "out");
    REFUSED(heddle_plan_parse(&made, NULL, 2, "p"), "json");
    assert_null(made);
    assert_int_equal(heddle_plan_parse(&made, "{}", -1, "p"), HEDDLE_E_INVALID);
    REFUSED(heddle_plan_named(NULL, "dense"), "out");
    REFUSED(heddle_plan_named(&made, NULL), "spec");
    REFUSED(heddle_plan_default(NULL, engine), "out");
    REFUSED(heddle_plan_default(&made, NULL), "engine");
    REFUSED(heddle_plan_format(NULL, &made_text), "plan");
    REFUSED(heddle_plan_format(plan, NULL), "json");
    REFUSED(heddle_plan_route(plan, NULL, 0, &made_text), "engine");
    REFUSED(heddle_plan_route(plan, engine, 0, NULL), "text");
    REFUSED(heddle_plan_check(NULL, engine), "plan");
    REFUSED(heddle_plan_check(plan, NULL), "engine");
    int evicts = 1;
    REFUSED(heddle_plan_evicts(NULL, plan, &evicts), "engine");
    REFUSED(heddle_plan_evicts(engine, NULL, &evicts), "plan");
    REFUSED(heddle_plan_evicts(engine, plan, NULL), "evicts");
    assert_int_equal(evicts, 0);
    REFUSED(heddle_plan_share_read(NULL, plan, 0, 1, &share), "engine");
    REFUSED(heddle_plan_share_read(engine, NULL, 0, 1, &share), "plan");
    REFUSED(heddle_plan_share_read(engine, plan, 0, 1, NULL), "share");
    int32_t owners[64], which[64];
    REFUSED(heddle_plan_lists_read(NULL, plan, owners, which), "engine");
    REFUSED(heddle_plan_lists_read(engine, NULL, owners, which), "plan");
    REFUSED(heddle_plan_lists_read(engine, plan, NULL, which), "owners");
    REFUSED(heddle_plan_lists_read(engine, plan, owners, NULL), "lists");
    heddle_plan_reads reads = {.struct_size = sizeof reads};
    REFUSED(heddle_plan_count_reads(NULL, plan, NULL, 0, &reads), "engine");
    REFUSED(heddle_plan_count_reads(engine, plan, NULL, 0, NULL), "reads");
    assert_int_equal(heddle_plan_count_reads(engine, plan, NULL, -1, &reads), HEDDLE_E_INVALID);
    assert_int_equal(heddle_plan_count_reads(engine, plan, "f8", 0, &reads), HEDDLE_E_INVALID);
    assert_int_equal(heddle_plan_count_reads(engine, plan, NULL, 99, &reads), HEDDLE_OK);
    assert_true(reads.dense_bytes > 0);
}

static void test_sessions(void **state)
{
    (void)state;
    heddle_session *made = session;
    heddle_session_file_info info = {.struct_size = sizeof info};
    heddle_session_options options;
    REFUSED(heddle_session_new(NULL, engine, plan, NULL), "out");
    REFUSED(heddle_session_new(&made, NULL, plan, NULL), "engine");
    assert_null(made);
    heddle_session_options_default(&options);
    options.n_kept_plans = 1;
    assert_int_equal(heddle_session_new(&made, engine, plan, &options), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "kept plan 0 of 1"));
    REFUSED(heddle_session_extend(NULL, ids, 1, NULL, NULL), "session");
    REFUSED(heddle_session_extend(session, NULL, 1, NULL, NULL), "ids");
    REFUSED(heddle_session_decode(NULL, ids, 1), "session");
    REFUSED(heddle_session_decode(session, NULL, 1), "ids");
    REFUSED(heddle_session_sync(NULL, ids, 1, NULL, NULL, NULL), "session");
    REFUSED(heddle_session_sync(session, NULL, 1, NULL, NULL, NULL), "ids");
    REFUSED(heddle_session_score(NULL, ids, 4, 0, nll, NULL, NULL), "session");
    REFUSED(heddle_session_score(session, NULL, 4, 0, nll, NULL, NULL), "ids");
    REFUSED(heddle_session_score(session, ids, 4, 0, NULL, NULL, NULL), "nll");
    REFUSED(heddle_session_each_logits(NULL, ids, 4, 0, on_row, NULL), "session");
    REFUSED(heddle_session_each_logits(session, NULL, 4, 0, on_row, NULL), "ids");
    REFUSED(heddle_session_each_logits(session, ids, 4, 0, NULL, NULL), "fn");
    REFUSED(heddle_session_truncate(NULL, 0, &n), "session");
    REFUSED(heddle_session_fork(NULL, session), "out");
    REFUSED(heddle_session_fork(&made, NULL), "session");
    REFUSED(heddle_session_fork_as(NULL, session, plan, 0), "out");
    REFUSED(heddle_session_fork_as(&made, NULL, plan, 0), "session");
    REFUSED(heddle_session_save(NULL, "file"), "session");
    REFUSED(heddle_session_save(session, NULL), "path");
    REFUSED(heddle_session_load(NULL, "file"), "session");
    REFUSED(heddle_session_load(session, NULL), "path");
    REFUSED(heddle_session_file_inspect(NULL, &info), "path");
    REFUSED(heddle_session_file_inspect("file", NULL), "info");
    assert_int_equal(heddle_session_len(session), 4);
}

static void test_lists_and_documents(void **state)
{
    (void)state;
    heddle_lists *made;
    heddle_document *document;
    REFUSED(heddle_lists_new(NULL, engine), "out");
    REFUSED(heddle_lists_new(&made, NULL), "engine");
    REFUSED(heddle_lists_save(NULL, "file"), "lists");
    REFUSED(heddle_lists_set_tokens(NULL, session), "lists");
    REFUSED(heddle_lists_set_tokens(lists, NULL), "session");
    REFUSED(heddle_lists_check(NULL, session, ids, 1), "lists");
    REFUSED(heddle_lists_check(lists, NULL, ids, 1), "session");
    REFUSED(heddle_lists_check(lists, session, NULL, 1), "ids");
    REFUSED(heddle_lists_save(lists, NULL), "path");
    REFUSED(heddle_lists_load(NULL, engine, "file"), "out");
    REFUSED(heddle_lists_load(&made, NULL, "file"), "engine");
    REFUSED(heddle_lists_load(&made, engine, NULL), "path");
    REFUSED(heddle_session_record(NULL, lists), "session");
    REFUSED(heddle_session_replay(NULL, lists), "session");
    REFUSED(heddle_document_encode(NULL, NULL, ids, 1, "file", NULL, NULL), "engine");
    REFUSED(heddle_document_encode(engine, NULL, NULL, 1, "file", NULL, NULL), "ids");
    REFUSED(heddle_document_open(NULL, engine, "file"), "out");
    REFUSED(heddle_document_open(&document, NULL, "file"), "engine");
    REFUSED(heddle_document_open(&document, engine, NULL), "path");
    REFUSED(heddle_document_verify(NULL, &n, &n_more), "path");
    REFUSED(heddle_document_verify("file", NULL, &n_more), "n_tokens");
    REFUSED(heddle_document_verify("file", &n, NULL), "n_pages");
    REFUSED(heddle_session_mount(NULL, NULL, &n), "session");
    REFUSED(heddle_session_mount(session, NULL, &n), "document");
    REFUSED(heddle_session_mount(session, NULL, NULL), "first_token");
    REFUSED(heddle_session_unmount(NULL, 0), "session");
    REFUSED(heddle_session_forbid(NULL, 0, 1), "session");
}

static void test_batches_samplers_streams(void **state)
{
    (void)state;
    heddle_batch *new_batch;
    heddle_sampler *new_sampler;
    heddle_stream *new_stream;
    heddle_sampler_options options;
    heddle_batch_item no_session = {.ids = ids, .n_ids = 1}, no_ids = {.session = session, .n_ids = 1};
    static const char *const stops[] = {"a", NULL};
    REFUSED(heddle_batch_new(NULL, engine, plan, NULL, 1, 1), "out");
    REFUSED(heddle_batch_new(&new_batch, NULL, plan, NULL, 1, 1), "engine");
    REFUSED(heddle_batch_step(NULL, &no_ids, 1), "batch");
    REFUSED(heddle_batch_step(batch, NULL, 1), "items");
    REFUSED(heddle_batch_step(batch, &no_session, 1), "items[i].session");
    REFUSED(heddle_batch_step(batch, &no_ids, 1), "items[i].ids");
    REFUSED(heddle_sampler_new(NULL, engine, NULL), "out");
    REFUSED(heddle_sampler_new(&new_sampler, NULL, NULL), "engine");
    heddle_sampler_options_default(&options);
    options.n_bias = 1;
    REFUSED(heddle_sampler_new(&new_sampler, engine, &options), "given.bias");
    REFUSED(heddle_sample(NULL, session, NULL, &id), "sampler");
    REFUSED(heddle_sample(sampler, NULL, NULL, &id), "session");
    REFUSED(heddle_sample(sampler, session, NULL, NULL), "id");
    REFUSED(heddle_stream_new(NULL, engine, NULL, 0), "out");
    REFUSED(heddle_stream_new(&new_stream, NULL, NULL, 0), "engine");
    REFUSED(heddle_stream_new(&new_stream, engine, NULL, 1), "stops");
    REFUSED(heddle_stream_new(&new_stream, engine, stops, 2), "stops[i]");
    REFUSED(heddle_stream_push(NULL, 5, &text, &n, &is_stopped), "stream");
    REFUSED(heddle_stream_push(stream, 5, NULL, &n, &is_stopped), "text");
    REFUSED(heddle_stream_push(stream, 5, &text, NULL, &is_stopped), "n_bytes");
    REFUSED(heddle_stream_push(stream, 5, &text, &n, NULL), "is_stopped");
    REFUSED(heddle_stream_flush(NULL, &text, &n), "stream");
    REFUSED(heddle_stream_flush(stream, NULL, &n), "text");
    REFUSED(heddle_stream_flush(stream, &text, NULL), "n_bytes");
}

static void test_functions_without_a_status(void **state)
{
    (void)state;
    heddle_model_info info = {.struct_size = sizeof info, .arch = "x"};
    heddle_stats stats = {.struct_size = sizeof stats, .n_prefill_tokens = 7};
    heddle_engine_model_info(NULL, &info);
    assert_null(info.arch);
    heddle_engine_model_info(engine, NULL);
    assert_int_equal(heddle_token_is_end(NULL, 5), 0);
    assert_string_equal(heddle_plan_name(NULL), "");
    assert_string_equal(heddle_plan_about(NULL), "");
    assert_null(heddle_session_logits(NULL));
    assert_null(heddle_session_ids(NULL));
    assert_int_equal(heddle_session_len(NULL), 0);
    assert_int_equal(heddle_lists_count(NULL), 0);
    assert_int_equal(heddle_lists_tokens(NULL, NULL), 0);
    assert_int_equal(heddle_lists_at(NULL, 0, NULL, NULL, NULL, 0), -1);
    assert_int_equal(heddle_document_len(NULL), 0);
    heddle_session_stats(NULL, &stats);
    assert_int_equal(stats.n_prefill_tokens, 0);
    heddle_session_stats(session, NULL);
    heddle_session_stats_reset(NULL);
    heddle_session_set_tap(NULL, NULL, NULL);
    heddle_session_cancel(NULL);
    heddle_engine_options_default(NULL);
    heddle_session_options_default(NULL);
    heddle_sampler_options_default(NULL);
    heddle_string_free(NULL);
    heddle_ids_free(NULL);
    heddle_plan_free(NULL);
    heddle_session_free(NULL);
    heddle_lists_free(NULL);
    heddle_document_close(NULL);
    heddle_batch_free(NULL);
    heddle_sampler_free(NULL);
    heddle_stream_free(NULL);
    assert_int_equal(heddle_engine_close(NULL), HEDDLE_OK);
}

static int set_up(void **state)
{
    (void)state;
    heddle_session_options options;
    char path[300];
    heddle_session_options_default(&options);
    options.context_tokens = 16;
    if (!tiny_make_folder(folder, sizeof folder)) return -1;
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    return !tiny_write_gguf(path, &(tiny_options){0}) || heddle_engine_open(&engine, path, NULL) ||
           heddle_plan_named(&plan, "dense") || heddle_session_new(&session, engine, plan, &options) ||
           heddle_session_extend(session, ids, 4, NULL, NULL) || heddle_sampler_new(&sampler, engine, NULL) ||
           heddle_stream_new(&stream, engine, NULL, 0) ||
           heddle_batch_new(&batch, engine, plan, &options, 2, 8) || heddle_lists_new(&lists, engine);
}

static int tear_down(void **state)
{
    (void)state;
    heddle_lists_free(lists);
    heddle_batch_free(batch);
    heddle_stream_free(stream);
    heddle_sampler_free(sampler);
    heddle_session_free(session);
    heddle_plan_free(plan);
    tiny_remove_folder(folder);
    return heddle_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_and_text),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_sessions),
        cmocka_unit_test(test_lists_and_documents),
        cmocka_unit_test(test_batches_samplers_streams),
        cmocka_unit_test(test_functions_without_a_status),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
