/* test_kv_q4.c - sessions whose K and V rows are q4_1: 4-bit codes, a step and a minimum per 32 elements. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine_int.h"
#include "heddle.h"
#include "tiny_model.h"

enum { N_IDS = 200, N_VOCAB = 400 /* at most */ };
static int32_t ids[N_IDS];
static char folder[512], model[600], narrow[600], path[600];
static heddle_engine *engine;

#define EVERY(operator, router)                                                                               \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": " \
    "\""                                                                                                      \
    operator"\", \"router\": {" router "}}]}]}"
/* in all of them k covers every token */
static const char *const whole_plans[] = {
    EVERY("token_list", "\"score\": \"key_i8\", \"top_k\": 400, \"window\": 4"),
    EVERY("token_list", "\"score\": \"key_i4\", \"top_k\": 400, \"window\": 4, \"lists\": \"kv_head\""),
    EVERY("block_list", "\"score\": \"block_mean\", \"block\": 16, \"top_k\": 400, \"window\": 1"),
};
static const char *const short_plans[] = {
    NULL,
    EVERY("token_list", "\"score\": \"key_i8\", \"top_k\": 24, \"window\": 4"),
    EVERY("block_list", "\"score\": \"block_mean\", \"block\": 16, \"top_k\": 48, \"window\": 1"),
};

static heddle_session_options options_of(const char *kv_type)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 256;
    options.kv_type = kv_type;
    options.page_shift = 4;
    options.is_invariant = 1;
    return options;
}

static heddle_session *new_session(const char *json, const heddle_session_options *options)
{
    heddle_session *session;
    heddle_plan *plan = NULL;
    if (json && heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test"))
        fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, options)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return session;
}

static int64_t n_vocab(const heddle_session *session)
{
    return session->runner->schedule->facts->n_vocab;
}

static void read_and_decode(heddle_session *session, int64_t n_read, int64_t n_decode)
{
    if (heddle_session_extend(session, ids, n_read, NULL, NULL)) fail_msg("%s", heddle_last_error());
    for (int64_t i = n_read; i < n_read + n_decode; i++)
        if (heddle_session_decode(session, ids + i, 1)) fail_msg("%s", heddle_last_error());
}

static void assert_same_logits(const heddle_session *a, const heddle_session *b)
{
    assert_memory_equal(heddle_session_logits(a), heddle_session_logits(b),
                        (size_t)n_vocab(a) * sizeof(float));
}

static double distance(const heddle_session *a, const heddle_session *b)
{
    double worst = 0;
    for (int64_t i = 0; i < n_vocab(a); i++)
        worst = fmax(worst, fabs((double)heddle_session_logits(a)[i] - (double)heddle_session_logits(b)[i]));
    return worst;
}

static void test_pages_layouts_and_chunks_do_not_change_a_bit(void **state)
{
    (void)state;
    for (int p = 0; p < HDL_COUNT(short_plans); p++) {
        heddle_session *first = NULL;
        for (int i = 0; i < 4; i++) {
            heddle_session_options options = options_of("q4_1");
            options.kv_layout = i % 2 ? "head" : "token";
            options.page_shift = i < 2 ? 4 : 8;
            options.chunk_rows = i < 3 ? 64 : 7;
            heddle_session *session = new_session(short_plans[p], &options);
            read_and_decode(session, 150, 20);
            if (first) {
                assert_same_logits(first, session);
                heddle_session_free(session);
            } else {
                first = session;
            }
        }
        heddle_session_free(first);
    }
}

/* A step of 4 bits is some 17 steps of 8: the logits of a random model move by as much. 5 of 16 bits are stored. */
static void test_distance_and_bytes(void **state)
{
    (void)state;
    heddle_session_options f32 = options_of("f32"), f16 = options_of("f16"), i8 = options_of("i8"),
                           q4 = options_of("q4_1");
    heddle_session *want = new_session(NULL, &f32), *half = new_session(NULL, &f16),
                   *eight = new_session(NULL, &i8), *got = new_session(NULL, &q4);
    read_and_decode(want, 150, 20);
    read_and_decode(half, 150, 20);
    read_and_decode(eight, 150, 20);
    read_and_decode(got, 150, 20);
    double d = distance(want, got), d8 = distance(want, eight);
    print_message("against f32: q4_1 %g of a logit, i8 %g\n", d, d8);
    assert_true(d > d8 && d < 30 * d8);
    heddle_session_free(eight);
    heddle_stats wide = {.struct_size = sizeof wide}, small = wide;
    heddle_session_stats(half, &wide);
    heddle_session_stats(got, &small);
    assert_true(small.kv_bytes * 16 <= wide.kv_bytes * 5 + 16 * 11 * 4096); /* pages end at 4 KiB */
    heddle_session_free(want);
    heddle_session_free(half);
    heddle_session_free(got);
}

static void test_lists_of_everything_equal_dense(void **state)
{
    (void)state;
    heddle_session_options options = options_of("q4_1");
    heddle_session *dense = new_session(NULL, &options);
    read_and_decode(dense, 150, 20);
    for (int p = 0; p < HDL_COUNT(whole_plans); p++) {
        heddle_session *listed = new_session(whole_plans[p], &options);
        read_and_decode(listed, 150, 20);
        assert_same_logits(dense, listed);
        heddle_session_free(listed);
    }
    heddle_session_free(dense);
}

static void test_session_files_and_forks(void **state)
{
    (void)state;
    for (int p = 0; p < HDL_COUNT(short_plans); p++) {
        heddle_session_options options = options_of("q4_1"), other = options_of("i8");
        heddle_session *straight = new_session(short_plans[p], &options), *fork;
        heddle_session *loaded = new_session(short_plans[p], &options);
        heddle_session *unlike = new_session(short_plans[p], &other);
        read_and_decode(straight, 150, 5);
        if (heddle_session_save(straight, path)) fail_msg("%s", heddle_last_error());
        if (heddle_session_load(loaded, path)) fail_msg("%s", heddle_last_error());
        assert_true(heddle_session_load(unlike, path) != HEDDLE_OK);
        if (heddle_session_fork(&fork, straight)) fail_msg("%s", heddle_last_error());
        for (int64_t i = 155; i < 190; i++) {
            if (heddle_session_decode(straight, ids + i, 1) || heddle_session_decode(loaded, ids + i, 1) ||
                heddle_session_decode(fork, ids + i, 1))
                fail_msg("%s", heddle_last_error());
            assert_same_logits(straight, loaded);
            assert_same_logits(straight, fork);
        }
        heddle_session_free(straight);
        heddle_session_free(loaded);
        heddle_session_free(unlike);
        heddle_session_free(fork);
    }
}

static void test_heads_that_are_not_whole_blocks_are_refused(void **state)
{
    (void)state;
    heddle_engine *small;
    heddle_session *session;
    heddle_session_options options = options_of("q4_1");
    if (heddle_engine_open(&small, narrow, NULL)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_new(&session, small, NULL, &options), HEDDLE_E_UNSUPPORTED);
    assert_string_equal(heddle_last_error(),
                        "KV type q4_1: heads of 16 and 16 elements are not whole blocks of 32; use i8");
    options.kv_type = "q4";
    assert_int_equal(heddle_session_new(&session, small, NULL, &options), HEDDLE_E_INVALID);
    assert_string_equal(heddle_last_error(), "KV type \"q4\": must be f16, bf16, f32, i8 or q4_1");
    heddle_engine_close(small);
}

static int set_up(void **state)
{
    (void)state;
    tiny_options wide = {.arch = "llama", .seed = 5, .hidden_size = 128, .head_dim = 64, .n_layers = 3};
    tiny_options odd = {.arch = "llama", .seed = 5};
    if (!tiny_make_folder(folder, sizeof folder)) return -1;
    snprintf(model, sizeof model, "%s/wide.gguf", folder);
    snprintf(narrow, sizeof narrow, "%s/narrow.gguf", folder);
    snprintf(path, sizeof path, "%s/q4.session", folder);
    for (int32_t i = 0; i < N_IDS; i++) ids[i] = 3 + i * 31 % 200;
    if (!tiny_write_gguf(model, &wide) || !tiny_write_gguf(narrow, &odd)) return -1;
    return heddle_engine_open(&engine, model, NULL) ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    heddle_engine_close(engine);
    tiny_remove_folder(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_layouts_and_chunks_do_not_change_a_bit),
        cmocka_unit_test(test_distance_and_bytes),
        cmocka_unit_test(test_lists_of_everything_equal_dense),
        cmocka_unit_test(test_session_files_and_forks),
        cmocka_unit_test(test_heads_that_are_not_whole_blocks_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
