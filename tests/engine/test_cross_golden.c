/* The shared-state model of train/golden/clsa-tiny (three documents, 96 tokens) against the answers that
 * train/modeling_heddle.py gave in float32, with K and V in f32:
 *
 *   matrices made F32       logits within 1e-3
 *   Q8_0 as in the file     logits within 0.25: activations are rounded to int8 (the largest logit is 14) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"
#include "cross_model.h"
#include "engine/engine_int.h"
#include "heddle.h"

enum { N_TOKENS = CROSS_TOKENS, N_VOCAB = CROSS_VOCAB };

static cross_golden golden;
static float logits[N_TOKENS][N_VOCAB];
static char f32_folder[256];

static int take(int64_t row, const float *from, void *user)
{
    (void)user;
    memcpy(logits[row], from, sizeof logits[row]);
    return 0;
}

static double worst_difference(float (*want)[N_VOCAB], int64_t first)
{
    double worst = 0;
    for (int64_t r = first; r < N_TOKENS; r++)
        for (int64_t i = 0; i < N_VOCAB; i++) {
            double d = fabs((double)logits[r][i] - (double)want[r][i]);
            worst = d <= worst ? worst : d;
        }
    return worst;
}

/* Reads all tokens in calls of `step` rows and chunks of `chunk`; logits of every row. */
static void read_all_as(const char *model, const char *plan_name, const char *kv_type, int32_t chunk,
                        int64_t step, bool is_invariant)
{
    heddle_engine *engine;
    heddle_plan *plan = NULL;
    heddle_session *session;
    heddle_engine_options on = {.struct_size = sizeof on, .n_threads = 2};
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.kv_type = kv_type;
    options.chunk_rows = chunk;
    options.page_shift = 4;
    options.is_invariant = is_invariant;
    options.plan_governs_all = 1;
    if (heddle_engine_open(&engine, model, &on)) fail_msg("%s", heddle_last_error());
    if (heddle_plan_named(&plan, plan_name)) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    for (int64_t at = 0; at < N_TOKENS; at += step) {
        int64_t n = HDL_MIN(step, N_TOKENS - at);
        float(*rows)[N_VOCAB] = logits + at;
        if (n == 1) {
            if (heddle_session_extend(session, golden.tokens + at, 1, NULL, NULL))
                fail_msg("%s", heddle_last_error());
            memcpy(rows[0], heddle_session_logits(session), sizeof rows[0]);
            continue;
        }
        float kept[N_TOKENS][N_VOCAB];
        memcpy(kept, logits, sizeof kept);
        if (heddle_session_each_logits(session, golden.tokens + at, n, 0, take, NULL))
            fail_msg("%s", heddle_last_error());
        memmove(rows, logits, (size_t)n * sizeof rows[0]);
        memcpy(logits, kept, (size_t)at * sizeof rows[0]);
    }
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void read_all(const char *model, const char *plan_name, int32_t chunk, int64_t step, bool is_invariant)
{
    read_all_as(model, plan_name, "f32", chunk, step, is_invariant);
}

static void test_dense_reading(void **state)
{
    (void)state;
    static const struct {
        int32_t chunk;
        int64_t step;
    } ways[] = {{128, 96}, {7, 96}, {128, 31}, {128, 1}};
    for (int i = 0; i < HDL_COUNT(ways); i++) {
        read_all(f32_folder, "dense", ways[i].chunk, ways[i].step, false);
        double worst = worst_difference(golden.logits_dense, 0);
        print_message("dense, chunks of %d, %d rows a call: worst difference %g\n", ways[i].chunk,
                      (int)ways[i].step, worst);
        assert_true(worst <= 1e-3);
    }
    read_all(CROSS_GOLDEN, "dense", 128, 96, false);
    double worst = worst_difference(golden.logits_dense, 0);
    print_message("dense, matrices in Q8_0: worst difference %g\n", worst);
    assert_true(worst <= 0.25);
}

/* Rows whose logits differ by more than `bound` from the golden ones. */
static int64_t rows_beyond(float (*want)[N_VOCAB], double bound, double *worst_of_others)
{
    int64_t n = 0;
    *worst_of_others = 0;
    for (int64_t r = 0; r < N_TOKENS; r++) {
        double worst = 0;
        for (int64_t i = 0; i < N_VOCAB; i++)
            worst = HDL_MAX(worst, fabs((double)logits[r][i] - (double)want[r][i]));
        n += !(worst <= bound);
        if (worst <= bound) *worst_of_others = HDL_MAX(*worst_of_others, worst);
    }
    return n;
}

/* Lists by int8 keys are those of float keys but where two scores are closer than the rounding of the
 * keys; a row with another list has other logits. */
static void test_list_reading(void **state)
{
    (void)state;
    double worst;
    read_all(f32_folder, "clsa:top_k=12", 128, 96, false);
    int64_t n = rows_beyond(golden.logits_list, 1e-3, &worst);
    print_message("lists: %d of %d rows read another list; the others differ by at most %g\n", (int)n,
                  N_TOKENS, worst);
    assert_true(n <= N_TOKENS / 8);
    read_all(f32_folder, "clsa:top_k=96", 128, 96, false);
    assert_true(worst_difference(golden.logits_dense, 0) <= 1e-3);
}

/* A plan file that picks top_k tokens out of the `kept` tokens of best blocks of 8. */
static void write_blocks_plan(char path[320], int32_t top_k, int32_t kept)
{
    snprintf(path, 320, "%s/blocks.json", f32_folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file,
            "{\"heddle_plan\": 1, \"name\": \"blocks\", \"variants\": [{\"decode\": ["
            "{\"layers\": \"leaders\", \"operator\": \"token_list\", \"router\": {\"score\": \"index\", "
            "\"top_k\": %d, \"candidates\": {\"score\": \"index_mean\", \"block\": 8, \"top_k\": %d, "
            "\"window\": 8}}}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": "
            "\"previous\"}]}]}",
            top_k, kept);
    assert_int_equal(fclose(file), 0);
}

/* Blocks by their mean index keys: all kept, the exact lists' bits; two kept beside the window's, the same
 * bits up to row 30, which sees three blocks and one cut, and not at row 31; any chunking. */
static void test_blocks_before_tokens(void **state)
{
    (void)state;
    static float exact[N_TOKENS][N_VOCAB], once[N_TOKENS][N_VOCAB];
    char path[320];
    read_all(f32_folder, "clsa:top_k=12", 128, 96, true);
    memcpy(exact, logits, sizeof exact);
    write_blocks_plan(path, 12, 96);
    read_all(f32_folder, path, 128, 96, true);
    assert_memory_equal(exact, logits, sizeof exact);
    read_all(f32_folder, "clsa:top_k=31", 128, 96, true);
    memcpy(exact, logits, sizeof exact);
    write_blocks_plan(path, 31, 16);
    read_all(f32_folder, path, 128, 96, true);
    assert_memory_equal(exact, logits, 31 * sizeof exact[0]);
    assert_memory_not_equal(exact[31], logits[31], sizeof exact[0]);
    memcpy(once, logits, sizeof once);
    read_all(f32_folder, path, 7, 1, true);
    assert_memory_equal(once, logits, sizeof once);
    read_all(f32_folder, path, 7, 29, true);
    assert_memory_equal(once, logits, sizeof once);
    remove(path);
}

/* Chunking, and so where a document's border falls in a call, does not change a bit. */
static void test_dense_is_invariant(void **state)
{
    (void)state;
    static float whole[N_TOKENS][N_VOCAB];
    read_all(CROSS_GOLDEN, "dense", 128, 96, true);
    memcpy(whole, logits, sizeof whole);
    read_all(CROSS_GOLDEN, "dense", 13, 96, true);
    assert_memory_equal(whole, logits, sizeof whole);
    read_all(CROSS_GOLDEN, "dense", 128, 1, true);
    assert_memory_equal(whole, logits, sizeof whole);
}

/* A prompt that stops at the shared state and goes up with its last row alone says what a pass with every
 * row does, bit for bit in the invariant mode; so do the steps after it. */
static void check_early_exit(const char *model, const char *plan_name)
{
    static float whole[N_TOKENS][N_VOCAB];
    heddle_engine *engine;
    heddle_plan *plan;
    heddle_session *session;
    heddle_engine_options on = {.struct_size = sizeof on, .n_threads = 2};
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.chunk_rows = 32;
    options.is_invariant = 1;
    read_all_as(model, plan_name, "f16", 128, 96, true);
    memcpy(whole, logits, sizeof whole);
    if (heddle_engine_open(&engine, model, &on)) fail_msg("%s", heddle_last_error());
    if (heddle_plan_named(&plan, plan_name)) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    for (int64_t at = 0, n = 77; at < N_TOKENS;
         at += n, n = 1) { /* the prompt ends two tokens into document 3 */
        if (heddle_session_extend(session, golden.tokens + at, n, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        assert_memory_equal(heddle_session_logits(session), whole[at + n - 1], sizeof whole[0]);
    }
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_prompt_stops_at_the_shared_state(void **state)
{
    (void)state;
    check_early_exit(CROSS_GOLDEN, "dense");
    check_early_exit(CROSS_GOLDEN, "clsa:top_k=12");
}

static void read_groups(const cross_groups *groups, const char *plan, float (*out)[N_VOCAB])
{
    char folder[256];
    assert_true(cross_write_groups(folder, sizeof folder, groups));
    read_all(folder, plan, 128, 96, true);
    memcpy(out, logits, sizeof logits);
    tiny_remove_folder(folder);
}

/* Two groups with one query are one group; so are queries from a layer's own input where that is the shared state
 * and its norm; other queries make other lists, and only for rows that leave something out. */
static void test_groups_have_lists_of_their_own(void **state)
{
    (void)state;
    static float one[N_TOKENS][N_VOCAB], two[N_TOKENS][N_VOCAB];
    read_groups(&(cross_groups){.n = 1}, "clsa:top_k=12", one);
    read_groups(&(cross_groups){.n = 2}, "clsa:top_k=12", two);
    assert_memory_equal(one, two, sizeof one);
    read_groups(&(cross_groups){.n = 1, .is_flat = true}, "clsa:top_k=12", one);
    read_groups(&(cross_groups){.n = 2, .is_flat = true, .is_own_input = true}, "clsa:top_k=12", two);
    assert_memory_equal(one, two, sizeof one);
    for (int is_own = 0; is_own < 2; is_own++) {
        cross_groups groups = {.n = 2, .is_own_input = is_own, .is_opposite = true};
        read_groups(&(cross_groups){.n = 1}, "clsa:top_k=12", one);
        read_groups(&groups, "clsa:top_k=12", two);
        assert_memory_equal(one, two, CROSS_TOP_K * sizeof one[0]);
        assert_memory_not_equal(one[CROSS_TOP_K], two[CROSS_TOP_K], sizeof one[0]);
        read_groups(&groups, "dense", one);
        read_groups(&groups, "clsa:top_k=96", two);
        assert_memory_equal(one, two, sizeof one); /* a list of everything is a dense pass */
    }
}

/* A plan file: the first group publishes `pool` tokens and picks top_k of them, the second does `second`. */
static void write_pools_plan(char path[320], int32_t top_k, int32_t pool, const char *second)
{
    snprintf(path, 320, "%s/pools.json", f32_folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file,
            "{\"heddle_plan\": 1, \"name\": \"pools\", \"variants\": [{\"decode\": ["
            "{\"layers\": \"first\", \"operator\": \"token_list\", \"router\": {\"score\": \"index\", "
            "\"top_k\": %d, \"candidates\": {\"score\": \"index\", \"top_k\": %d}}}, "
            "{\"layers\": \"rest\", \"operator\": \"token_list\", %s}]}]}",
            top_k, pool, second);
    assert_int_equal(fclose(file), 0);
}

static const char by_pool[] = "\"router\": {\"score\": \"index\", \"top_k\": %d, "
                              "\"candidates\": {\"share\": \"previous\", \"of\": \"candidates\"}}";

/* Pools: of everything, each group's own lists; of as many as are read, the first group's list for both; one
 * token less than a row sees changes the second group's list there and not before; any chunking. The second
 * query is the opposite of the first, so that a pool leaves out what it wants most. */
static void test_groups_pick_from_a_pool(void **state)
{
    (void)state;
    static float want_rows[N_TOKENS][N_VOCAB], got_rows[N_TOKENS][N_VOCAB];
    cross_groups groups = {.n = 2, .is_opposite = true};
    char path[320], second[200];
    snprintf(second, sizeof second, by_pool, 12);
    read_groups(&groups, "clsa:top_k=12", want_rows);
    write_pools_plan(path, 12, 96, second);
    read_groups(&groups, path, got_rows);
    assert_memory_equal(want_rows, got_rows, sizeof got_rows);
    write_pools_plan(path, 12, 12, second);
    read_groups(&groups, path, got_rows);
    write_pools_plan(path, 12, 12, "\"share\": \"previous\"");
    read_groups(&groups, path, want_rows);
    assert_memory_equal(want_rows, got_rows, sizeof got_rows);
    read_groups(&groups, "clsa:top_k=12", want_rows);
    write_pools_plan(path, 12, 31, second);
    read_groups(&groups, path, got_rows);
    assert_memory_equal(want_rows, got_rows, 31 * sizeof got_rows[0]);
    assert_memory_not_equal(want_rows[31], got_rows[31], sizeof got_rows[0]);
    char folder[256];
    assert_true(cross_write_groups(folder, sizeof folder, &groups));
    read_all(folder, path, 7, 1, true);
    assert_memory_equal(logits, got_rows, sizeof got_rows);
    read_all(folder, path, 7, 29, true);
    assert_memory_equal(logits, got_rows, sizeof got_rows);
    tiny_remove_folder(folder);
    remove(path);
}

/* What a tap hears: the first group's scores of every token, or the second group's lists. */
typedef struct heard {
    float score[N_TOKENS][N_TOKENS];
    int32_t ids[N_TOKENS][N_TOKENS];
    int64_t n[N_TOKENS];
} heard;

static void hear(const heddle_tap_row *row, void *user)
{
    heard *to = user;
    if (row->layer == 2 && row->score)
        memcpy(to->score[row->position], row->score, (size_t)row->n_units * sizeof *row->score);
    if (row->layer != 3) return;
    to->n[row->position] = row->n_ids;
    memcpy(to->ids[row->position], row->ids, (size_t)row->n_ids * sizeof *row->ids);
}

static void hear_all(const char *model, const char *plan_name, heard *to)
{
    heddle_engine *engine;
    heddle_plan *plan;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.plan_governs_all = 1;
    if (heddle_engine_open(&engine, model, NULL)) fail_msg("%s", heddle_last_error());
    if (heddle_plan_named(&plan, plan_name)) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    heddle_session_set_tap(session, hear, to);
    for (int64_t t = 0; t < N_TOKENS; t++)
        if (heddle_session_decode(session, golden.tokens + t, 1)) fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* How many of n tokens stand before token t by score times sign, ties by the lower number; of `among` only. */
static int64_t rank_of(const float *score, float sign, const bool *among, int64_t n, int64_t t)
{
    int64_t rank = 0;
    for (int64_t other = 0; other < n; other++) {
        float a = sign * score[other], b = sign * score[t];
        rank += (!among || among[other]) && (a > b || (a == b && other < t));
    }
    return rank;
}

/* The second group's lists by brute force: its query is the opposite, so its scores are the first's negated. */
static void test_pools_by_brute_force(void **state)
{
    (void)state;
    static heard exact, pooled;
    enum { POOL = 25, PICKED = 9 };
    char folder[256], path[320], second[200];
    assert_true(cross_write_groups(folder, sizeof folder, &(cross_groups){.n = 2, .is_opposite = true}));
    snprintf(second, sizeof second, by_pool, PICKED);
    write_pools_plan(path, PICKED, POOL, second);
    hear_all(folder, "clsa:top_k=9", &exact);
    hear_all(folder, path, &pooled);
    for (int64_t row = 0; row < N_TOKENS; row++) {
        bool in_pool[N_TOKENS];
        int64_t n = 0;
        for (int64_t t = 0; t <= row; t++) in_pool[t] = rank_of(exact.score[row], 1, NULL, row + 1, t) < POOL;
        for (int64_t t = 0; t <= row; t++) {
            if (!in_pool[t] || rank_of(exact.score[row], -1, in_pool, row + 1, t) >= PICKED) continue;
            assert_true(n < pooled.n[row] && pooled.ids[row][n] == t);
            n++;
        }
        assert_int_equal(n, pooled.n[row]);
        assert_int_equal(n, HDL_MIN(row + 1, PICKED));
    }
    tiny_remove_folder(folder);
    remove(path);
}

/* A prompt of a model with groups stops at the shared state as well; each group's list is recorded, and read again. */
static void test_groups_are_recorded(void **state)
{
    (void)state;
    static float first[N_VOCAB];
    char folder[256], path[300];
    assert_true(cross_write_groups(folder, sizeof folder,
                                   &(cross_groups){.n = 2, .is_own_input = true, .is_opposite = true}));
    check_early_exit(folder, "clsa:top_k=12");
    snprintf(path, sizeof path, "%s/lists", folder);
    heddle_engine *engine;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.is_invariant = 1;
    if (heddle_engine_open(&engine, folder, NULL)) fail_msg("%s", heddle_last_error());
    for (int pass = 0; pass < 2; pass++) {
        heddle_lists *lists;
        heddle_status status = pass ? heddle_lists_load(&lists, engine, path)
                                    : heddle_lists_new(&lists, engine);
        if (status || heddle_session_new(&session, engine, NULL, &options))
            fail_msg("%s", heddle_last_error());
        status = pass ? heddle_session_replay(session, lists) : heddle_session_record(session, lists);
        assert_int_equal(status, HEDDLE_OK);
        assert_int_equal(heddle_session_extend(session, golden.tokens, 80, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_decode(session, golden.tokens + 80, 1), HEDDLE_OK);
        if (!pass) {
            memcpy(first, heddle_session_logits(session), sizeof first);
            assert_int_equal(heddle_lists_count(lists), 4); /* two rows went up, two groups */
            assert_int_equal(heddle_lists_save(lists, path), HEDDLE_OK);
        }
        assert_memory_equal(first, heddle_session_logits(session), sizeof first);
        heddle_session_free(session);
        heddle_lists_free(lists);
    }
    heddle_engine_close(engine);
    tiny_remove_folder(folder);
}

/* An index file is a way out only for layers that have keys of their own. */
static void test_a_plan_by_an_index_needs_one(void **state)
{
    (void)state;
    static const char json[] = "{\"heddle_plan\": 1, \"name\": \"indexed\", \"variants\": [{\"decode\": ["
                               "{\"layers\": \"first\", \"operator\": \"token_list\", \"router\": "
                               "{\"score\": \"index\", \"top_k\": 12}}, {\"layers\": \"rest\", "
                               "\"operator\": \"token_list\", \"share\": \"previous\"}]}]}";
    static const struct {
        const char *folder, *words;
    } rows[] = {{CROSS_GOLDEN,
                 "layer 2 is routed by a learned index, which this model does not have: an index "
                 "file gives none to layers that read a shared state"},
                {HDL_TEST_DATA "/golden/tiny/llama", "layer 0 is routed by a learned index, which this model "
                                                     "does not have: --index FILE names one"}};
    heddle_plan *plan;
    if (heddle_plan_parse(&plan, json, sizeof json - 1, "indexed")) fail_msg("%s", heddle_last_error());
    for (int i = 0; i < HDL_COUNT(rows); i++) {
        heddle_engine *engine;
        if (heddle_engine_open(&engine, rows[i].folder, NULL)) fail_msg("%s", heddle_last_error());
        engine->model->facts.index.dim = 0;
        heddle_status status = heddle_plan_check(plan, engine);
        if (status != HEDDLE_E_UNSUPPORTED || !strstr(heddle_last_error(), rows[i].words))
            fail_msg("%d: %s", status, heddle_last_error());
        heddle_engine_close(engine);
    }
    heddle_plan_free(plan);
}

/* Tensors of another type than config.json says are another export's. */
static void test_another_weight_format_is_refused(void **state)
{
    (void)state;
    char folder[256], path[300], *format;
    hdl_buf config = {0};
    heddle_engine *engine;
    assert_true(cross_write_f32(folder, sizeof folder));
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (hdl_buf_read_file(&config, path, 1 << 16)) fail_msg("%s", hdl_last_error());
    format = strstr(config.data, "\"weight_format\": \"f32\"");
    assert_non_null(format);
    memcpy(format + strlen("\"weight_format\": \""), "f16", 3);
    assert_true(tiny_write_file(path, config.data, config.n));
    hdl_buf_deinit(&config);
    assert_int_equal(heddle_engine_open(&engine, folder, NULL), HEDDLE_E_FORMAT);
    if (!strstr(heddle_last_error(), "is f32, and weight_format of config.json says f16"))
        fail_msg("%s", heddle_last_error());
    tiny_remove_folder(folder);
}

/* Sessions of a batch, one reading a prompt while the other generates, say what each says alone. */
static void check_batch(const char *plan_name)
{
    static float alone[2][N_VOCAB];
    heddle_engine *engine;
    heddle_plan *plan;
    heddle_batch *batch;
    heddle_session *a[2], *b[2];
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.is_invariant = 1;
    if (heddle_engine_open(&engine, CROSS_GOLDEN, NULL)) fail_msg("%s", heddle_last_error());
    if (heddle_plan_named(&plan, plan_name)) fail_msg("%s", heddle_last_error());
    if (heddle_batch_new(&batch, engine, plan, &options, 2, 64)) fail_msg("%s", heddle_last_error());
    for (int i = 0; i < 2; i++) {
        if (heddle_session_new(&a[i], engine, plan, &options)) fail_msg("%s", heddle_last_error());
        if (heddle_session_new(&b[i], engine, plan, &options)) fail_msg("%s", heddle_last_error());
        int64_t n = i ? 30 : 50;
        assert_int_equal(heddle_session_extend(a[i], golden.tokens, n, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(b[i], golden.tokens, n, NULL, NULL), HEDDLE_OK);
    }
    assert_int_equal(heddle_session_decode(a[0], golden.tokens + 50, 1), HEDDLE_OK);
    assert_int_equal(heddle_session_extend(a[1], golden.tokens + 30, 25, NULL, NULL), HEDDLE_OK);
    for (int i = 0; i < 2; i++) memcpy(alone[i], heddle_session_logits(a[i]), sizeof alone[i]);
    heddle_batch_item items[2] = {{.session = b[0], .ids = golden.tokens + 50, .n_ids = 1},
                                  {.session = b[1], .ids = golden.tokens + 30, .n_ids = 25, .is_prompt = 1}};
    if (heddle_batch_step(batch, items, 2)) fail_msg("%s", heddle_last_error());
    for (int i = 0; i < 2; i++) assert_memory_equal(heddle_session_logits(b[i]), alone[i], sizeof alone[i]);
    for (int i = 0; i < 2; i++) {
        heddle_session_free(a[i]);
        heddle_session_free(b[i]);
    }
    heddle_batch_free(batch);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_batch_equals_sessions(void **state)
{
    (void)state;
    check_batch("dense");
    check_batch("clsa:top_k=12");
}

/* Truncating into an earlier document and going on equals never having been further. */
static void test_truncation_finds_the_document(void **state)
{
    (void)state;
    static float straight[N_VOCAB];
    heddle_engine *engine;
    heddle_session *session;
    int64_t kept;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.is_invariant = 1;
    if (heddle_engine_open(&engine, CROSS_GOLDEN, NULL)) fail_msg("%s", heddle_last_error());
    for (int way = 0; way < 2; way++) {
        if (heddle_session_new(&session, engine, NULL, &options)) fail_msg("%s", heddle_last_error());
        int64_t n = way ? 78 : 70; /* 75 begins the third document */
        if (heddle_session_extend(session, golden.tokens, n, NULL, NULL)) fail_msg("%s", heddle_last_error());
        if (heddle_session_truncate(session, 60, &kept)) fail_msg("%s", heddle_last_error());
        if (heddle_session_extend(session, golden.tokens + kept, 65 - kept, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        if (!way) memcpy(straight, heddle_session_logits(session), sizeof straight);
        assert_memory_equal(straight, heddle_session_logits(session), sizeof straight);
        heddle_session_free(session);
    }
    heddle_engine_close(engine);
}

static int setup(void **state)
{
    (void)state;
    return cross_golden_read(&golden) && cross_write_f32(f32_folder, sizeof f32_folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    tiny_remove_folder(f32_folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense_reading),
        cmocka_unit_test(test_list_reading),
        cmocka_unit_test(test_blocks_before_tokens),
        cmocka_unit_test(test_dense_is_invariant),
        cmocka_unit_test(test_prompt_stops_at_the_shared_state),
        cmocka_unit_test(test_groups_have_lists_of_their_own),
        cmocka_unit_test(test_groups_pick_from_a_pool),
        cmocka_unit_test(test_pools_by_brute_force),
        cmocka_unit_test(test_groups_are_recorded),
        cmocka_unit_test(test_a_plan_by_an_index_needs_one),
        cmocka_unit_test(test_another_weight_format_is_refused),
        cmocka_unit_test(test_truncation_finds_the_document),
        cmocka_unit_test(test_batch_equals_sessions),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
