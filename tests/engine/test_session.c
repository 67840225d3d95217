/* Laws of sessions and plans on small random models: what must be equal is compared bit for bit in
 * the invariant mode, within a tolerance outside it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/tiny_engine.h"
#include "heddle.h"

enum { N_IDS = 400, N_VOCAB = 300, CONTEXT = 512 };
static int32_t ids[N_IDS];

static heddle_session_options options_of(int32_t chunk_rows, int is_invariant)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.context_tokens = CONTEXT;
    options.chunk_rows = chunk_rows;
    options.is_invariant = is_invariant;
    options.page_shift = 5;
    return options;
}

static heddle_session *new_session(heddle_engine *engine, const heddle_plan *plan,
                                   const heddle_session_options *options)
{
    heddle_session *session;
    if (heddle_session_new(&session, engine, plan, options)) fail_msg("%s", heddle_last_error());
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

static heddle_plan *plan_of(const char *json)
{
    heddle_plan *plan;
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test")) fail_msg("%s", heddle_last_error());
    return plan;
}

/* Logits after the whole text and after each of the last `n_single` tokens fed one by one. */
static void logits_of(heddle_session *session, int64_t n_single, float *out /* [n_single + 1, N_VOCAB] */)
{
    extend(session, ids, N_IDS - n_single);
    memcpy(out, heddle_session_logits(session), N_VOCAB * sizeof *out);
    for (int64_t i = 0; i < n_single; i++) {
        decode(session, ids + N_IDS - n_single + i, 1);
        memcpy(out + (i + 1) * N_VOCAB, heddle_session_logits(session), N_VOCAB * sizeof *out);
    }
}

static const char *const models[] = {"llama", "qwen3", "gemma3"};
static const int32_t chunk_sizes[] = {512, 1, 2, 7, 64};
static float first[9][N_VOCAB], other[9][N_VOCAB];

static void test_chunks_and_threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t m = 0; m < 3; m++)
        for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
            heddle_engine *engine = tiny_engine(models[m], n_threads);
            for (size_t c = 0; c < sizeof chunk_sizes / sizeof *chunk_sizes; c++) {
                heddle_session_options options = options_of(chunk_sizes[c], 1);
                heddle_session *session = new_session(engine, NULL, &options);
                bool is_first = n_threads == 1 && c == 0;
                logits_of(session, 8, is_first ? first[0] : other[0]);
                if (!is_first && memcmp(first, other, sizeof first))
                    fail_msg("%s: chunk %d, %d threads: differs by %g", models[m], chunk_sizes[c], n_threads,
                             max_abs(first[0], other[0], 9 * N_VOCAB));
                heddle_session_free(session);
            }
            heddle_engine_close(engine);
        }
}

static void test_fast_mode_is_close_to_invariant_mode(void **state)
{
    (void)state;
    for (size_t m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        heddle_session_options invariant = options_of(512, 1), fast = options_of(64, 0);
        heddle_session *a = new_session(engine, NULL, &invariant), *b = new_session(engine, NULL, &fast);
        logits_of(a, 8, first[0]);
        logits_of(b, 8, other[0]);
        assert_true(max_abs(first[0], other[0], 9 * N_VOCAB) < 1e-3);
        heddle_session_free(a);
        heddle_session_free(b);
        heddle_engine_close(engine);
    }
}

/* A batch with a prompt, two decoding sequences and a second prompt, each step against the same
 * sequences alone. */
static void test_a_mixed_batch_equals_each_alone(void **state)
{
    (void)state;
    for (size_t m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        heddle_session_options options = options_of(512, 1);
        heddle_batch *batch;
        assert_int_equal(heddle_batch_new(&batch, engine, NULL, &options, 4, 512), HEDDLE_OK);
        heddle_session *in[4], *alone[4];
        int64_t before[4] = {0, 100, 7, 0}, n_new[4] = {130, 1, 1, 33};
        heddle_batch_item items[4];
        for (int i = 0; i < 4; i++) {
            in[i] = new_session(engine, NULL, &options);
            alone[i] = new_session(engine, NULL, &options);
            if (before[i]) extend(in[i], ids + i, before[i]);
            if (before[i]) extend(alone[i], ids + i, before[i]);
            items[i] = (heddle_batch_item){
                .session = in[i], .ids = ids + i + before[i], .n_ids = n_new[i], .is_prompt = n_new[i] > 1};
            extend(alone[i], ids + i + before[i], n_new[i]);
        }
        if (heddle_batch_step(batch, items, 4)) fail_msg("%s", heddle_last_error());
        for (int i = 0; i < 4; i++) {
            assert_int_equal(heddle_session_len(in[i]), before[i] + n_new[i]);
            assert_memory_equal(heddle_session_logits(in[i]), heddle_session_logits(alone[i]),
                                N_VOCAB * sizeof(float));
            heddle_session_free(in[i]);
            heddle_session_free(alone[i]);
        }
        items[1].session = items[0].session;
        heddle_batch_free(batch);
        assert_int_equal(heddle_engine_close(engine), HEDDLE_OK);
    }
}

static void test_fork_and_truncate(void **state)
{
    (void)state;
    for (size_t m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 1);
        heddle_session_options options = options_of(64, 1);
        heddle_session *session = new_session(engine, NULL, &options), *fork, *fresh;
        int64_t kept;
        extend(session, ids, 200);
        assert_int_equal(heddle_session_fork(&fork, session), HEDDLE_OK);
        extend(fork, ids + 300, 50); /* the fork goes elsewhere */
        extend(session, ids + 200, 50);
        fresh = new_session(engine, NULL, &options);
        extend(fresh, ids, 200);
        extend(fresh, ids + 200, 50);
        assert_memory_equal(heddle_session_logits(session), heddle_session_logits(fresh),
                            N_VOCAB * sizeof(float));
        heddle_session_free(session); /* the fork outlives it */
        extend(fork, ids + 350, 1);
        heddle_session_free(fork);
        assert_int_equal(heddle_session_sync(fresh, ids, 240, &kept, NULL, NULL), HEDDLE_OK);
        session = new_session(engine, NULL, &options);
        extend(session, ids, 240);
        assert_int_equal(heddle_session_len(fresh), 240);
        assert_memory_equal(heddle_session_logits(session), heddle_session_logits(fresh),
                            N_VOCAB * sizeof(float));
        heddle_session_free(session);
        heddle_session_free(fresh);
        assert_int_equal(heddle_engine_close(engine), HEDDLE_OK);
    }
}

#define ORACLE(args)                                                                                          \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": " \
    "\"token_list\", \"router\": {" args "}}]}]}"
#define ANCHOR(layer, args)                                                                                  \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [" layer                \
    "], \"operator\": "                                                                                      \
    "\"dense\", \"router\": {" args "}}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": "   \
    "\"previous\"}]}]}"

/* A prompt read densely and continued under a plan by fork_as is what a session of that plan does
 * (its prompt route is dense); the fork's forks too; the session that was forked goes on unchanged. */
static void test_fork_as_another_plan(void **state)
{
    (void)state;
    static const char *const plans[] = {ANCHOR("0", "\"top_k\": 16, \"sinks\": 2, \"window\": 8"), NULL,
                                        ANCHOR("0", "\"top_k\": 16, \"window\": 4, \"refresh\": 3")};
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_session_options options = options_of(64, 1);
    heddle_session *dense = new_session(engine, NULL, &options), *as[3], *own, *fork;
    extend(dense, ids, 300);
    for (int p = 0; p < 3; p++) {
        heddle_plan *plan = plans[p] ? plan_of(plans[p]) : NULL;
        assert_int_equal(heddle_session_fork_as(&as[p], dense, plan, 0), HEDDLE_OK);
        own = new_session(engine, plan, &options);
        extend(own, ids, 300);
        assert_int_equal(heddle_session_fork(&fork, as[p]), HEDDLE_OK);
        for (int i = 300; i < 320; i++) {
            decode(own, ids + i, 1);
            decode(as[p], ids + i, 1);
            decode(fork, ids + i, 1);
        }
        assert_int_equal(heddle_session_len(as[p]), 320);
        assert_memory_equal(heddle_session_ids(as[p]), ids, 320 * sizeof *ids);
        memcpy(other[p], heddle_session_logits(own), sizeof other[p]);
        assert_memory_equal(heddle_session_logits(as[p]), other[p], sizeof other[p]);
        assert_memory_equal(heddle_session_logits(fork), other[p], sizeof other[p]);
        heddle_session_free(own);
        heddle_session_free(fork);
        heddle_plan_free(plan);
    }
    assert_true(max_abs(other[0], other[1], N_VOCAB) > 1e-6); /* the plan is in force */
    for (int i = 300; i < 320; i++) decode(dense, ids + i, 1);
    assert_memory_equal(heddle_session_logits(dense), other[1], sizeof other[1]);
    heddle_session_free(dense); /* the forks outlive it */
    for (int p = 0; p < 3; p++) {
        decode(as[p], ids + 320, 1);
        heddle_session_free(as[p]);
    }
    assert_int_equal(heddle_engine_close(engine), HEDDLE_OK);
}

/* A plan that governs every row: the rows after the fork, read as one chunk, take the decode route. */
static void test_fork_as_governs_what_comes_after(void **state)
{
    (void)state;
    static float nll[2][20];
    heddle_plan *plan = plan_of(ANCHOR("0", "\"top_k\": 8, \"window\": 4"));
    for (size_t m = 0; m < 2; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        heddle_session_options options = options_of(64, 1);
        heddle_session *dense = new_session(engine, NULL, &options), *many, *one;
        extend(dense, ids, 300);
        assert_int_equal(heddle_session_fork_as(&many, dense, plan, 1), HEDDLE_OK);
        assert_int_equal(heddle_session_fork_as(&one, dense, plan, 1), HEDDLE_OK);
        assert_int_equal(heddle_session_score(many, ids + 300, 20, 0, nll[0], NULL, NULL), HEDDLE_OK);
        for (int i = 0; i < 20; i++)
            assert_int_equal(heddle_session_score(one, ids + 300 + i, 1, 0, &nll[1][i], NULL, NULL),
                             HEDDLE_OK);
        assert_memory_equal(nll[0], nll[1], sizeof nll[0]);
        heddle_session_free(many);
        heddle_session_free(one);
        heddle_session_free(dense);
        heddle_engine_close(engine);
    }
    heddle_plan_free(plan);
}

static void score_under(heddle_engine *engine, const char *json, int is_invariant, float *nll)
{
    heddle_plan *plan = json ? plan_of(json) : NULL;
    heddle_session_options options = options_of(64, is_invariant);
    options.plan_governs_all = 1;
    heddle_session *session = new_session(engine, plan, &options);
    if (heddle_session_score(session, ids, N_IDS, 0, nll, NULL, NULL)) fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
    heddle_plan_free(plan);
}

static void test_k_at_least_n_equals_dense(void **state)
{
    (void)state;
    static float dense[N_IDS], sparse[N_IDS];
    static const char *const plans[] = {
        ORACLE("\"top_k\": 512"), ORACLE("\"score\": \"none\", \"window\": 512"),
        ORACLE("\"top_k\": 400, \"sinks\": 4, \"window\": 16, \"lists\": \"kv_head\""),
        ORACLE("\"score\": \"random\", \"top_k\": 500"),
        ANCHOR("0", "\"top_k\": 512, \"sinks\": 4, \"window\": 8")};
    for (size_t m = 0; m < 2; m++)
        for (int is_invariant = 0; is_invariant < 2; is_invariant++) {
            heddle_engine *engine = tiny_engine(models[m], 2);
            score_under(engine, NULL, is_invariant, dense);
            for (size_t p = 0; p < sizeof plans / sizeof *plans; p++) {
                score_under(engine, plans[p], is_invariant, sparse);
                double worst = max_abs(dense + 1, sparse + 1, N_IDS - 1);
                if (worst > 2e-5 || (is_invariant && worst > 0))
                    fail_msg("%s, plan %zu, invariant %d: nll differs by %g", models[m], p, is_invariant,
                             worst);
            }
            heddle_engine_close(engine);
        }
}

static void test_a_small_k_changes_the_result(void **state)
{
    (void)state;
    static float dense[N_IDS], sparse[N_IDS];
    heddle_engine *engine = tiny_engine("llama", 2);
    score_under(engine, NULL, 1, dense);
    score_under(engine, ANCHOR("0", "\"top_k\": 4, \"sinks\": 1, \"window\": 4"), 1, sparse);
    assert_true(max_abs(dense + 1, sparse + 1, 8) ==
                0); /* the first rows see 9 tokens or fewer: all of them */
    assert_true(max_abs(dense + 16, sparse + 16, N_IDS - 16) > 1e-3);
    heddle_engine_close(engine);
}

/* Rows scored in chunks have the lists that decoding them one by one gives. */
static void test_chunks_under_a_plan_equal_single_steps(void **state)
{
    (void)state;
    static float chunked[N_IDS], single[N_IDS];
    static const char *const plans[] = {
        ANCHOR("0", "\"top_k\": 16, \"sinks\": 2, \"window\": 8"),
        ORACLE("\"top_k\": 16, \"lists\": \"kv_head\", \"window\": 1"),
        ORACLE("\"score\": \"random\", \"top_k\": 30, \"seed\": 5, \"window\": 4")};
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t p = 0; p < 3; p++) {
        heddle_plan *plan = plan_of(plans[p]);
        score_under(engine, plans[p], 1, chunked);
        heddle_session_options options = options_of(1, 1);
        options.plan_governs_all = 1;
        heddle_session *session = new_session(engine, plan, &options);
        for (int i = 0; i < N_IDS; i++) {
            assert_int_equal(heddle_session_score(session, ids + i, 1, 0, single + i, NULL, NULL), HEDDLE_OK);
        }
        assert_true(max_abs(chunked + 1, single + 1, N_IDS - 1) == 0);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

#define MAPPED(map)                                                                                                     \
    "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0], \"router\": {\"top_k\": 16, " \
    "\"window\": 2, \"lists\": \"kv_head\"}}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": 0" map    \
    "}]}]}"

static void test_head_maps(void **state)
{
    (void)state;
    static float own[N_IDS], identity[N_IDS], swapped[N_IDS];
    heddle_engine *engine = tiny_engine("llama", 2);
    score_under(engine, MAPPED(""), 1, own);
    score_under(engine, MAPPED(", \"head_map\": [0, 1]"), 1, identity);
    score_under(engine, MAPPED(", \"head_map\": [1, 0]"), 1, swapped);
    assert_true(max_abs(own + 1, identity + 1, N_IDS - 1) == 0);
    assert_true(max_abs(own + 64, swapped + 64, N_IDS - 64) > 1e-5);
    heddle_engine_close(engine);
}

/* Where and in which order rows are stored does not change a bit; narrower types come close. */
static void test_page_sizes_layouts_and_types(void **state)
{
    (void)state;
    static const char *const types[] = {"f32", "f16", "bf16", "i8"};
    static const double allowed[] = {0, 2e-2, 2e-1, 3e-1}; /* of a logit; measured: 9e-3, 9e-2, 2e-1 */
    static float base[9][N_VOCAB];
    for (size_t m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        for (int t = 0; t < 4; t++)
            for (int l = 0; l < 2; l++)
                for (int32_t shift = 4; shift <= 20; shift += 8) {
                    heddle_session_options options = options_of(64, 1);
                    options.kv_type = types[t];
                    options.kv_layout = l ? "head" : "token";
                    options.page_shift = shift;
                    heddle_session *session = new_session(engine, NULL, &options);
                    bool is_base = t == 0 && l == 0 && shift == 4, is_first = l == 0 && shift == 4;
                    logits_of(session, 8, is_first ? first[0] : other[0]);
                    if (is_base) memcpy(base, first, sizeof base);
                    if (!is_first && memcmp(first, other, sizeof first))
                        fail_msg("%s %s %s pages of 2^%d: other bits", models[m], types[t], options.kv_layout,
                                 shift);
                    double d = max_abs(base[0], first[0], 9 * N_VOCAB);
                    if (is_first)
                        print_message("%s KV %s: max-abs %g of %g\n", models[m], types[t], d, allowed[t]);
                    assert_true(d <= allowed[t]);
                    heddle_session_free(session);
                }
        heddle_engine_close(engine);
    }
}

/* Layer 1 reads layer 0's K and V: one cache row for both, the same bits for every chunk size. */
static void test_layers_that_share_kv(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64, 1), single = options_of(1, 1);
    heddle_session *own = new_session(engine, NULL, &options);
    heddle_stats own_stats = {.struct_size = sizeof own_stats}, shared_stats = own_stats;
    logits_of(own, 8, other[0]);
    heddle_session_stats(own, &own_stats);
    heddle_session_free(own);
    engine->model->facts.layers[1].kv_source = 0;
    engine->model->facts.layers[1].has_kv = false;
    engine->model->facts.groups[engine->model->facts.layers[0].cache_group].n_layers = 1;
    heddle_session *a = new_session(engine, NULL, &options), *b = new_session(engine, NULL, &single);
    logits_of(a, 8, first[0]);
    assert_true(max_abs(first[0], other[0], 9 * N_VOCAB) > 1e-3);
    logits_of(b, 8, other[0]);
    assert_memory_equal(first, other, sizeof first);
    heddle_session_stats(a, &shared_stats);
    assert_true(shared_stats.kv_bytes * 2 <= own_stats.kv_bytes + 2 * 13 * 4096); /* pages end at 4 KiB */
    heddle_session_free(a);
    heddle_session_free(b);
    heddle_engine_close(engine);
}

static void test_refresh(void **state)
{
    (void)state;
    static float every[N_IDS], fourth[N_IDS], dense[N_IDS], all[N_IDS];
    heddle_engine *engine = tiny_engine("llama", 1);
    score_under(engine, ANCHOR("0", "\"top_k\": 16, \"window\": 8, \"refresh\": 1"), 1, every);
    score_under(engine, ANCHOR("0", "\"top_k\": 16, \"window\": 8, \"refresh\": 4"), 1, fourth);
    assert_true(max_abs(every + 40, fourth + 40, N_IDS - 40) > 1e-6); /* it is in force */
    score_under(engine, NULL, 1, dense);
    score_under(engine, ANCHOR("0", "\"top_k\": 512, \"window\": 8, \"refresh\": 4"), 1, all);
    assert_true(max_abs(dense + 1, all + 1, N_IDS - 1) == 0); /* whole lists grow with the text */
    heddle_engine_close(engine);
}

static void test_decode_allocates_nothing(void **state)
{
    (void)state;
    static const char *const plans[] = {
        NULL, ANCHOR("0", "\"top_k\": 16, \"sinks\": 2, \"window\": 8, \"refresh\": 3")};
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t p = 0; p < 2; p++) {
        heddle_plan *plan = plans[p] ? plan_of(plans[p]) : NULL;
        heddle_session_options options = options_of(64, 0);
        heddle_session *session = new_session(engine, plan, &options);
        extend(session, ids, 100);
        int64_t before = hdl_mem_n_allocs();
        for (int i = 0; i < 400; i++) decode(session, ids + i, 1);
        assert_int_equal(hdl_mem_n_allocs() - before, 0);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

static heddle_status whole_life(void)
{
    char path[512];
    heddle_engine *engine = NULL;
    heddle_plan *plan = NULL;
    heddle_session *session = NULL, *fork = NULL, *other_plan = NULL;
    const char *json = ANCHOR("0", "\"top_k\": 16, \"window\": 8, \"refresh\": 2");
    char *text = NULL;
    heddle_session_options options = options_of(32, 0);
    snprintf(path, sizeof path, "%s/golden/tiny/llama", HDL_TEST_DATA);
    heddle_status status = heddle_engine_open(&engine, path, NULL);
    if (!status) status = heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test");
    if (!status) status = heddle_explain(engine, plan, &options, &text);
    if (!status) status = heddle_session_new(&session, engine, plan, &options);
    if (!status) status = heddle_session_extend(session, ids, 40, NULL, NULL);
    if (!status) status = heddle_session_fork(&fork, session);
    if (!status) status = heddle_session_decode(fork, ids + 40, 1);
    if (!status) status = heddle_session_fork_as(&other_plan, session, NULL, 0);
    heddle_string_free(text);
    heddle_session_free(other_plan);
    heddle_session_free(fork);
    heddle_session_free(session);
    heddle_plan_free(plan);
    assert_int_equal(heddle_engine_close(engine), HEDDLE_OK);
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    int64_t live = hdl_mem_live_bytes(), n = 0, before = hdl_mem_n_allocs(), in_all;
    heddle_status status = whole_life();
    assert_int_equal(status, HEDDLE_OK);
    in_all = hdl_mem_n_allocs() - before;
    do { /* some may be done without: the life goes on to its end and later ones fail in their turn */
        hdl_mem_fail_at(++n);
        status = whole_life();
        hdl_mem_fail_at(0);
        assert_true(status == HEDDLE_OK || status == HEDDLE_E_NOMEM);
        assert_int_equal(hdl_mem_live_bytes(), live);
    } while (n <= in_all);
    print_message("%lld allocations, each failed once\n", (long long)n - 1);
    assert_true(n > 10 && status == HEDDLE_OK);
}

static int stop_at_once(int64_t n_done, int64_t n_total, void *user)
{
    (void)n_done, (void)n_total, (void)user;
    return 1;
}

static void test_a_cancelled_read_leaves_no_stale_logits(void **state)
{
    (void)state;
    int64_t kept;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_session_options options = options_of(64, 1);
    heddle_session *session = new_session(engine, NULL, &options),
                   *fresh = new_session(engine, NULL, &options);
    extend(session, ids, 20);
    assert_int_equal(heddle_session_extend(session, ids + 20, 200, stop_at_once, NULL), HEDDLE_E_CANCELLED);
    assert_int_equal(heddle_session_len(session), 84);
    assert_null(heddle_session_logits(session));
    assert_int_equal(heddle_session_sync(session, ids, 84, &kept, NULL, NULL), HEDDLE_OK);
    extend(fresh, ids, 84);
    assert_memory_equal(heddle_session_logits(session), heddle_session_logits(fresh),
                        N_VOCAB * sizeof(float));
    heddle_session_free(session);
    heddle_session_free(fresh);
    heddle_engine_close(engine);
}

/* The second session of a step has no room: the first is as it was, and its forks stay its own. */
static void test_a_failed_step_changes_no_session(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_session_options options = options_of(64, 1), small = options;
    small.context_tokens = 30;
    heddle_batch *batch;
    assert_int_equal(heddle_batch_new(&batch, engine, NULL, &options, 2, 512), HEDDLE_OK);
    heddle_session *a = new_session(engine, NULL, &options), *b = new_session(engine, NULL, &small), *fork,
                   *fresh = new_session(engine, NULL, &options);
    extend(a, ids, 10);
    extend(b, ids, 20);
    heddle_stats before = {.struct_size = sizeof before}, after = before;
    heddle_session_stats(a, &before);
    heddle_batch_item items[] = {{.session = a, .ids = ids, .n_ids = 200, .is_prompt = 1},
                                 {.session = b, .ids = ids, .n_ids = 20, .is_prompt = 1}};
    assert_int_equal(heddle_batch_step(batch, items, 2), HEDDLE_E_CAPACITY);
    heddle_session_stats(a, &after);
    assert_int_equal(after.kv_bytes, before.kv_bytes);
    assert_int_equal(heddle_session_len(a), 10);
    assert_int_equal(heddle_session_fork(&fork, a), HEDDLE_OK);
    extend(a, ids + 10, 100);
    extend(fork, ids + 200, 100);
    extend(a, ids + 110, 1);
    extend(fresh, ids, 10);
    extend(fresh, ids + 10, 100);
    extend(fresh, ids + 110, 1);
    assert_memory_equal(heddle_session_logits(a), heddle_session_logits(fresh), N_VOCAB * sizeof(float));
    heddle_session *all[] = {a, b, fork, fresh};
    for (int i = 0; i < 4; i++) heddle_session_free(all[i]);
    heddle_batch_free(batch);
    assert_int_equal(heddle_engine_close(engine), HEDDLE_OK);
}

static void test_a_batch_refuses_sessions_of_other_options(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_plan *plan = plan_of(ANCHOR("0", "\"top_k\": 100, \"window\": 16, \"refresh\": 8"));
    heddle_session_options options = options_of(64, 0), unlike[4];
    heddle_batch *batch;
    assert_int_equal(heddle_batch_new(&batch, engine, plan, &options, 2, 64), HEDDLE_OK);
    for (int i = 0; i < 4; i++) unlike[i] = options;
    unlike[0].context_tokens = 80; /* its kept lists are shorter than the batch's */
    unlike[1].kv_type = "i8";
    unlike[2].is_invariant = 1;
    unlike[3].plan_governs_all = 1;
    for (int i = 0; i < 4; i++) {
        heddle_session *session = new_session(engine, plan, &unlike[i]);
        heddle_batch_item item = {.session = session, .ids = ids, .n_ids = 1};
        assert_int_equal(heddle_batch_step(batch, &item, 1), HEDDLE_E_INVALID);
        assert_int_equal(heddle_session_len(session), 0);
        heddle_session_free(session);
    }
    heddle_batch_free(batch);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_the_penalty_forgets_what_was_cut(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_session_options options = options_of(64, 1);
    heddle_sampler_options penalty;
    heddle_sampler *used, *fresh;
    heddle_sampler_options_default(&penalty);
    penalty.repetition_penalty = 100;
    assert_int_equal(heddle_sampler_new(&used, engine, &penalty), HEDDLE_OK);
    assert_int_equal(heddle_sampler_new(&fresh, engine, &penalty), HEDDLE_OK);
    heddle_session *session = new_session(engine, NULL, &options);
    int32_t id = 0, want = 0;
    int64_t kept;
    extend(session, ids, 5);
    assert_int_equal(heddle_sample(fresh, session, NULL, &want), HEDDLE_OK);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(heddle_sample(used, session, NULL, &id), HEDDLE_OK);
        decode(session, &id, 1);
    }
    heddle_session_truncate(session, 0, &kept);
    extend(session, ids, 5);
    assert_int_equal(heddle_sample(used, session, NULL, &id), HEDDLE_OK);
    assert_int_equal(id, want);
    heddle_session_truncate(session, 0, &kept); /* cut back and grown past what was seen, unnoticed */
    extend(session, ids, 40);
    heddle_sampler_free(fresh);
    assert_int_equal(heddle_sampler_new(&fresh, engine, &penalty), HEDDLE_OK);
    assert_int_equal(heddle_sample(fresh, session, NULL, &want), HEDDLE_OK);
    assert_int_equal(heddle_sample(used, session, NULL, &id), HEDDLE_OK);
    assert_int_equal(id, want);
    heddle_sampler_free(used);
    heddle_sampler_free(fresh);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

/* A row's route is what the caller says it is, not a guess from how many come at once. */
static void test_a_prompt_of_one_token_is_a_prompt(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_plan *plan = plan_of(ANCHOR("0", "\"top_k\": 1, \"window\": 1"));
    heddle_session_options options = options_of(64, 1);
    heddle_session *dense = new_session(engine, NULL, &options),
                   *routed = new_session(engine, plan, &options), *at_once;
    heddle_stats stats = {.struct_size = sizeof stats};
    extend(dense, ids, 100);
    extend(routed, ids, 99);
    extend(routed, ids + 99, 1);
    assert_memory_equal(heddle_session_logits(routed), heddle_session_logits(dense), N_VOCAB * sizeof(float));
    heddle_session_stats(routed, &stats);
    assert_int_equal(stats.n_prefill_tokens, 100);
    assert_int_equal(stats.n_decode_tokens, 0);
    assert_int_equal(heddle_session_fork(&at_once, routed), HEDDLE_OK);
    decode(at_once, ids + 100, 11);
    decode(dense, ids + 100, 11);
    for (int i = 0; i < 11; i++) decode(routed, ids + 100 + i, 1);
    assert_memory_equal(heddle_session_logits(routed), heddle_session_logits(at_once),
                        N_VOCAB * sizeof(float));
    assert_memory_not_equal(heddle_session_logits(routed), heddle_session_logits(dense),
                            N_VOCAB * sizeof(float));
    heddle_session_stats(at_once, &stats);
    assert_int_equal(stats.n_decode_tokens, 11);
    heddle_session *all[] = {dense, routed, at_once};
    for (int i = 0; i < 3; i++) heddle_session_free(all[i]);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_refusals(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 1);
    heddle_session_options options = options_of(64, 0);
    heddle_session *session = new_session(engine, NULL, &options);
    int32_t bad = N_VOCAB;
    assert_int_equal(heddle_session_extend(session, &bad, 1, NULL, NULL), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "0..299"));
    extend(session, ids, N_IDS);
    assert_int_equal(heddle_session_extend(session, ids, 200, NULL, NULL), HEDDLE_E_CAPACITY);
    assert_int_equal(heddle_session_len(session), N_IDS); /* nothing was lost */
    assert_int_equal(heddle_engine_close(engine), HEDDLE_E_BUSY);
    heddle_session *none;
    options.context_tokens = 1 << 27;
    assert_int_equal(heddle_session_new(&none, engine, NULL, &options), HEDDLE_E_CAPACITY);
    assert_non_null(strstr(heddle_last_error(), "largest context that fits"));
    static const int64_t too_large[] = {999999999, (int64_t)1 << 40, INT64_MAX};
    for (int i = 0; i < 3; i++) { /* more than can be counted: still the largest that fits is named */
        options.context_tokens = too_large[i];
        assert_int_equal(heddle_session_new(&none, engine, NULL, &options), HEDDLE_E_CAPACITY);
        assert_non_null(strstr(heddle_last_error(), "largest context that fits"));
        assert_null(strstr(heddle_last_error(), "is 0 tokens"));
    }
    options = options_of(64, 0);
    options.kv_type = "q3";
    assert_int_equal(heddle_session_new(&none, engine, NULL, &options), HEDDLE_E_INVALID);
    heddle_plan *plan = plan_of(ANCHOR("7", "\"top_k\": 1"));
    assert_int_equal(heddle_plan_check(plan, engine), HEDDLE_E_INVALID);
    assert_non_null(
        strstr(heddle_last_error(), "variants[0].decode[0].layers[0] 7: the model has layers 0..1"));
    heddle_plan_free(plan);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_and_threads_do_not_change_a_bit),
        cmocka_unit_test(test_fast_mode_is_close_to_invariant_mode),
        cmocka_unit_test(test_a_mixed_batch_equals_each_alone),
        cmocka_unit_test(test_fork_and_truncate),
        cmocka_unit_test(test_fork_as_another_plan),
        cmocka_unit_test(test_fork_as_governs_what_comes_after),
        cmocka_unit_test(test_k_at_least_n_equals_dense),
        cmocka_unit_test(test_a_small_k_changes_the_result),
        cmocka_unit_test(test_chunks_under_a_plan_equal_single_steps),
        cmocka_unit_test(test_head_maps),
        cmocka_unit_test(test_page_sizes_layouts_and_types),
        cmocka_unit_test(test_layers_that_share_kv),
        cmocka_unit_test(test_refresh),
        cmocka_unit_test(test_decode_allocates_nothing),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_a_cancelled_read_leaves_no_stale_logits),
        cmocka_unit_test(test_a_failed_step_changes_no_session),
        cmocka_unit_test(test_a_batch_refuses_sessions_of_other_options),
        cmocka_unit_test(test_the_penalty_forgets_what_was_cut),
        cmocka_unit_test(test_a_prompt_of_one_token_is_a_prompt),
        cmocka_unit_test(test_refusals),
    };
    uint32_t random = 1;
    for (int i = 0; i < N_IDS; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)((random >> 8) % N_VOCAB);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
