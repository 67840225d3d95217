/* Retain sets: what is evicted (golden values of tests/oracle/retain_oracle.py), that its pages really
 * go, and the laws of sessions, which hold for evicting plans as for others. */
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
#include "tiny_model.h"

enum {
    N_IDS = 400,
    N_VOCAB = 300,
    CONTEXT = 512,
    N_PROMPT = 64,
    N_LAYERS = 2,
    N_KV_HEADS = 2,
    HEAD_DIM = 16
};
static int32_t ids[N_IDS];
static char folder[512], path[600];

#define RETAIN(members) "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"retain\": {" members "}}]}"
#define WINDOW          "\"score\": \"mass_window\", \"keep\": 48, \"window\": 8, \"observe\": 8, \"pool\": 7"
#define SUM             "\"score\": \"mass_sum\", \"keep\": 48, \"window\": 20, \"every\": 16"
static const char *const plans[] = {
    RETAIN(WINDOW), RETAIN(SUM), RETAIN("\"score\": \"random\", \"keep\": 48, \"every\": 5, \"seed\": 3"),
    RETAIN("\"score\": \"none\", \"keep\": 48, \"sinks\": 4, \"window\": 44, \"every\": 9")};
enum { N_PLANS = 4 };

static heddle_session_options options_of(int32_t chunk_rows)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.context_tokens = CONTEXT;
    options.chunk_rows = chunk_rows;
    options.is_invariant = 1;
    options.page_shift = 4;
    return options;
}

static heddle_session *new_session(heddle_engine *engine, const char *json,
                                   const heddle_session_options *options)
{
    heddle_session *session;
    heddle_plan *plan = NULL;
    if (json && heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test"))
        fail_msg("%s", heddle_last_error());
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
    for (int64_t i = 0; i < n; i++)
        if (heddle_session_decode(session, from + i, 1)) fail_msg("%s", heddle_last_error());
}

static int64_t rows_of(const heddle_session *session)
{
    return hdl_kv_seq_rows(session->kv, 0, 0);
}

static void assert_same(const heddle_session *a, const heddle_session *b)
{
    assert_int_equal(heddle_session_len(a), heddle_session_len(b));
    assert_memory_equal(heddle_session_logits(a), heddle_session_logits(b), N_VOCAB * sizeof(float));
}

/* ---- golden values ---- */

typedef struct held_rows { /* what the test knows of each held row */
    int64_t n, position[CONTEXT];
    float k[CONTEXT][HEAD_DIM];
} held_rows;
static held_rows known[N_LAYERS][N_KV_HEADS];

static const float *k_row(const heddle_session *session, int32_t layer, int32_t head, int64_t row)
{
    hdl_kv_view view = hdl_kv_seq_view(session->kv, 0, layer);
    const uint8_t *page = view.pages[row >> view.page_shift];
    assert_non_null(page);
    return (const float *)(const void *)(page + view.k_offset + (row & 15) * view.token_stride +
                                         head * view.head_stride);
}

/* Takes over the rows that the session holds now: each is one of the known ones, by its bytes, or the
 * last one, whose position is `position`. */
static void learn(const heddle_session *session, int64_t position)
{
    int64_t n = rows_of(session);
    for (int32_t layer = 0; layer < N_LAYERS; layer++)
        for (int32_t head = 0; head < N_KV_HEADS; head++) {
            held_rows *at = &known[layer][head], *now = calloc(1, sizeof *now);
            now->n = n;
            for (int64_t r = 0, old = 0; r < n; r++) {
                const float *k = k_row(session, layer, head, r);
                while (old < at->n && memcmp(at->k[old], k, sizeof at->k[old])) old++;
                if (old == at->n) assert_int_equal(r, n - 1);
                now->position[r] = old < at->n ? at->position[old] : position;
                memcpy(now->k[r], k, sizeof now->k[r]);
            }
            *at = *now;
            free(now);
        }
}

static void check_list(FILE *file, int64_t *n_checked)
{
    int layer, head;
    assert_int_equal(fscanf(file, "%d %d", &layer, &head), 2);
    const held_rows *at = &known[layer][head];
    for (int64_t r = 0; r < at->n; r++) {
        int want;
        assert_int_equal(fscanf(file, "%d", &want), 1);
        if (want != at->position[r])
            fail_msg("layer %d head %d row %lld: holds token %lld, not %d", layer, head, (long long)r,
                     (long long)at->position[r], want);
    }
    ++*n_checked;
}

static void check_logits(FILE *file, const heddle_session *session, double *worst)
{
    for (int i = 0; i < N_VOCAB; i++) {
        double want;
        assert_int_equal(fscanf(file, "%lf", &want), 1);
        double d = fabs(want - (double)heddle_session_logits(session)[i]);
        *worst = !(d <= *worst) ? d : *worst;
    }
}

static void run_golden(heddle_engine *engine, const char *name, const char *plan, int64_t n_lists)
{
    char file_path[600], word[16];
    int step;
    heddle_session_options options = options_of(64);
    heddle_session *dense = new_session(engine, NULL, &options),
                   *session = new_session(engine, plan, &options);
    snprintf(file_path, sizeof file_path, "%s/golden/methods/%s.txt", HDL_TEST_DATA, name);
    FILE *file = fopen(file_path, "r");
    assert_non_null(file);
    memset(known, 0, sizeof known);
    for (int64_t i = 0; i < N_PROMPT; i++) { /* the prompt's rows are dense's, one by one */
        extend(dense, ids + i, 1);
        learn(dense, i);
    }
    extend(session, ids, N_PROMPT);
    learn(session, -1);
    double worst = 0;
    int64_t n_checked = 0;
    while (fscanf(file, "%15s %d", word, &step) == 2) {
        for (int64_t len = heddle_session_len(session); len < step; len++) {
            decode(session, ids + len, 1);
            learn(session, len);
        }
        if (!strcmp(word, "list"))
            check_list(file, &n_checked);
        else
            check_logits(file, session, &worst);
    }
    fclose(file);
    print_message("%s: %lld lists equal, logits max-abs %.2g of 1e-3\n", name, (long long)n_checked, worst);
    assert_int_equal(n_checked, n_lists);
    assert_true(worst < 1e-3);
    heddle_session_free(dense);
    heddle_session_free(session);
}

static void test_lists_and_logits_of_the_oracle(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    run_golden(engine, "snapkv",
               RETAIN("\"score\": \"mass_window\", \"keep\": 24, \"observe\": 8, \"window\": 8, \"pool\": 7"),
               4);
    run_golden(
        engine, "snapkv-max",
        RETAIN("\"score\": \"mass_window\", \"keep\": 20, \"observe\": 6, \"window\": 4, \"sinks\": 2, "
               "\"pool\": 5, \"pool_by\": \"max\""),
        4);
    run_golden(engine, "h2o", RETAIN("\"score\": \"mass_sum\", \"keep\": 24, \"window\": 12, \"every\": 4"),
               20);
    heddle_engine_close(engine);
}

/* ---- memory ---- */

static void test_pages_are_really_freed(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    for (int p = 0; p < N_PLANS; p++) {
        heddle_session *session = new_session(engine, plans[p], &options);
        int64_t page = hdl_kv_store_layout(session->store, 0)->page_bytes;
        heddle_stats stats = {.struct_size = sizeof stats};
        extend(session, ids, 300);
        heddle_session_stats(session, &stats);
        assert_int_equal(stats.kv_bytes, 3 * page); /* 48 rows in pages of 16 */
        assert_int_equal(hdl_kv_store_live_bytes(session->store), 3 * page);
        assert_true(stats.kv_peak_bytes >= 19 * page); /* all 300 were there once */
        int64_t most = 0;
        for (int64_t i = 300; i < N_IDS; i++) {
            decode(session, ids + i, 1);
            heddle_session_stats(session, &stats);
            assert_int_equal(hdl_kv_store_live_bytes(session->store), stats.kv_bytes);
            most = HDL_MAX(most, rows_of(session));
        }
        int64_t every = session->runner->schedule->retain.every;
        assert_int_equal(most, every ? 48 + every - 1 : 148);
        heddle_session_free(session);
    }
    heddle_engine_close(engine);
}

/* What is said to be read is what is held, and twice that where every row is observed as well. */
static void test_share_read(void **state)
{
    (void)state;
    static const double expected[] = {0.49, 1.16}; /* 49 of 100 rows; 2 * 58 */
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    for (int p = 0; p < 2; p++) {
        heddle_plan *plan;
        double share;
        assert_int_equal(heddle_plan_parse(&plan, plans[p], (int64_t)strlen(plans[p]), "test"), HEDDLE_OK);
        assert_int_equal(heddle_plan_share_read(engine, plan, 99, 100, &share), HEDDLE_OK);
        if (fabs(share - expected[p]) > 0.021) fail_msg("plan %d: %g, not %g", p, share, expected[p]);
        heddle_plan_free(plan);
        heddle_session *session = new_session(engine, plans[p], &options);
        heddle_stats stats = {.struct_size = sizeof stats};
        extend(session, ids, 99);
        decode(session, ids + 99, 1);
        heddle_session_stats(session, &stats);
        assert_true(fabs(stats.decode_kv_bytes_read / stats.decode_kv_bytes_dense - (p ? 0.98 : 0.49)) <
                    1e-9);
        heddle_session_free(session);
    }
    heddle_engine_close(engine);
}

/* A fork that evicts leaves the rows of the other as they were. */
static void test_forks_do_not_see_each_others_evictions(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    heddle_plan *plan;
    for (int p = 0; p < N_PLANS; p++) {
        heddle_session *base = new_session(engine, NULL, &options), *fork, *second;
        heddle_session *straight = new_session(engine, NULL, &options);
        extend(base, ids, 200);
        assert_int_equal(heddle_plan_parse(&plan, plans[p], (int64_t)strlen(plans[p]), "test"), HEDDLE_OK);
        if (p == 1) { /* the mass of every row was not observed */
            assert_int_equal(heddle_session_fork_as(&fork, base, plan, 0), HEDDLE_E_UNSUPPORTED);
            assert_non_null(strstr(heddle_last_error(), "was not observed while these 200 tokens were read"));
        } else {
            assert_int_equal(heddle_session_fork_as(&fork, base, plan, 0), HEDDLE_OK);
            extend(fork, ids + 300, 20);
            assert_int_equal(rows_of(fork), 48);
            assert_int_equal(heddle_session_fork(&second, fork), HEDDLE_OK);
            decode(fork, ids + 10, 40);
            decode(second, ids + 10, 40);
            assert_same(fork, second);
            heddle_session *none;
            assert_int_equal(heddle_session_fork_as(&none, fork, NULL, 0), HEDDLE_E_UNSUPPORTED);
            heddle_session_free(fork);
            heddle_session_free(second);
        }
        heddle_plan_free(plan);
        extend(base, ids + 200, 50);
        extend(straight, ids, 250);
        assert_same(base, straight);
        heddle_session_free(base);
        heddle_session_free(straight);
    }
    heddle_engine_close(engine);
}

/* ---- laws ---- */

static void test_keeping_everything_equals_dense(void **state)
{
    (void)state;
    static const char *const all[] = {
        RETAIN("\"score\": \"mass_window\", \"keep\": 600, \"window\": 8, \"observe\": 8"),
        RETAIN("\"score\": \"mass_sum\", \"keep\": 600, \"window\": 8, \"every\": 1")};
    static const char *const models[] = {"llama", "qwen3", "gemma3"};
    for (int m = 0; m < 3; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        heddle_session_options options = options_of(64);
        for (int p = 0; p < 2; p++) {
            heddle_session *a = new_session(engine, NULL, &options),
                           *b = new_session(engine, all[p], &options);
            extend(a, ids, 150);
            extend(b, ids, 150);
            decode(a, ids + 150, 20);
            decode(b, ids + 150, 20);
            assert_same(a, b);
            heddle_session_free(a);
            heddle_session_free(b);
        }
        heddle_engine_close(engine);
    }
}

/* Chunks, page sizes and layouts do not change a bit; the last rows are observed in one chunk. */
static void test_chunks_and_layouts_do_not_change_a_bit(void **state)
{
    (void)state;
    static const int32_t chunks[] = {512, 8, 9, 30, 149};
    static const char *const types[] = {"f32", "f16", "bf16", "i8"};
    static const char *const models[] = {"llama", "gemma3"};
    for (int m = 0; m < 2; m++) {
        heddle_engine *engine = tiny_engine(models[m], 2);
        for (int p = 0; p < N_PLANS; p++)
            for (int t = 0; t < 4; t++) {
                heddle_session *first = NULL;
                for (int c = 0; c < 5; c++) {
                    heddle_session_options options = options_of(chunks[c]);
                    options.kv_type = types[t];
                    options.kv_layout = c % 2 ? "head" : "token";
                    options.page_shift = 4 + c;
                    heddle_session *session = new_session(engine, plans[p], &options);
                    extend(session, ids, 150);
                    decode(session, ids + 150, 30);
                    extend(session, ids + 200, 40); /* a second prompt evicts again */
                    decode(session, ids + 250, 5);
                    if (!c)
                        first = session;
                    else
                        assert_same(first, session);
                    if (c) heddle_session_free(session);
                }
                heddle_session_free(first);
            }
        heddle_engine_close(engine);
    }
}

static void test_going_back(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    for (int p = 0; p < 2; p++) {
        heddle_session *a = new_session(engine, plans[p], &options),
                       *b = new_session(engine, plans[p], &options);
        int64_t kept;
        extend(a, ids, 150);
        extend(b, ids, 150);
        decode(a, ids + 150, 10);
        assert_int_equal(heddle_session_truncate(a, 152, &kept), HEDDLE_OK);
        assert_int_equal(kept, p ? 0 : 152); /* sums cannot be undone */
        if (!p) {
            decode(b, ids + 150, 2);
            decode(a, ids + 300, 3);
            decode(b, ids + 300, 3);
            assert_same(a, b);
            assert_int_equal(heddle_session_truncate(a, 149, &kept), HEDDLE_OK);
            assert_int_equal(kept, 0); /* rows that token 149 would have read are gone */
        }
        extend(a, ids, 150); /* from the beginning again */
        heddle_session_free(b);
        b = new_session(engine, plans[p], &options);
        extend(b, ids, 150);
        decode(a, ids + 150, 20);
        decode(b, ids + 150, 20);
        assert_same(a, b);
        heddle_session_free(a);
        heddle_session_free(b);
    }
    heddle_engine_close(engine);
}

static void test_files_keep_what_was_evicted(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (int p = 0; p < N_PLANS; p++) {
        heddle_session_options options = options_of(64);
        heddle_session *a = new_session(engine, plans[p], &options),
                       *dense = new_session(engine, NULL, &options);
        options.context_tokens = CONTEXT + 77;
        heddle_session *b = new_session(engine, plans[p], &options);
        extend(a, ids, 130);
        decode(a, ids + 130, 7);
        assert_int_equal(heddle_session_save(a, path), HEDDLE_OK);
        extend(b, ids, 3);
        if (heddle_session_load(b, path)) fail_msg("%s", heddle_last_error());
        assert_int_equal(rows_of(b), rows_of(a));
        decode(a, ids + 200, 30);
        decode(b, ids + 200, 30);
        assert_same(a, b);
        assert_int_equal(heddle_session_load(dense, path), HEDDLE_E_INVALID); /* another plan */
        heddle_session_free(a);
        heddle_session_free(b);
        heddle_session_free(dense);
    }
    heddle_engine_close(engine);
}

static void test_a_batch_equals_each_alone(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (int p = 0; p < N_PLANS; p++) {
        heddle_session_options options = options_of(512);
        heddle_plan *plan;
        heddle_batch *batch;
        heddle_session *in[3], *alone[3];
        assert_int_equal(heddle_plan_parse(&plan, plans[p], (int64_t)strlen(plans[p]), "test"), HEDDLE_OK);
        assert_int_equal(heddle_batch_new(&batch, engine, plan, &options, 3, 512), HEDDLE_OK);
        for (int i = 0; i < 3; i++) {
            in[i] = new_session(engine, plans[p], &options);
            alone[i] = new_session(engine, plans[p], &options);
        }
        extend(in[1], ids + 1, 100);
        extend(alone[1], ids + 1, 100);
        for (int step = 0; step < 20; step++) {
            heddle_batch_item items[3] = {
                {in[0], ids + 7 * step, step == 1 ? 70 : 40, NULL, step == 1 ? 1 : 2},
                {in[1], ids + 100 + step, 1, NULL, 0},
                {in[2], ids + step, 1, NULL, step > 2 ? 0 : 2}};
            if (step > 1) items[0].n_ids = 1, items[0].is_prompt = 0;
            if (heddle_batch_step(batch, items, 3)) fail_msg("%s", heddle_last_error());
            if (step > 2) { /* the parts of a prompt are one prompt when read alone */
                decode(alone[0], ids + 7 * step, 1);
                decode(alone[2], ids + step, 1);
            } else if (step == 2) {
                int32_t prompt[110];
                memcpy(prompt, ids, 40 * sizeof *prompt);
                memcpy(prompt + 40, ids + 7, 70 * sizeof *prompt);
                extend(alone[0], prompt, 110);
                decode(alone[0], ids + 14, 1);
                extend(alone[2], ids, 3);
            }
            decode(alone[1], ids + 100 + step, 1);
            for (int i = 0; i < 3; i++)
                if (step > 2) assert_same(in[i], alone[i]);
        }
        for (int i = 0; i < 3; i++) {
            heddle_session_free(in[i]);
            heddle_session_free(alone[i]);
        }
        heddle_batch_free(batch);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* Summaries of the rows that stay are those that SUMMARISE makes of them anew. */
static void test_summaries_of_retained_rows(void **state)
{
    (void)state;
    static const char json[] =
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"retain\": {" WINDOW
        "}, \"decode\": [{\"layers\": "
        "\"all\", \"operator\": \"block_list\", \"router\": {\"score\": \"block_mean\", \"block\": 8, \"top_k\": 16, "
        "\"window\": 4}}]}]}";
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    heddle_session *session = new_session(engine, json, &options);
    extend(session, ids, 200);
    for (int32_t layer = 0; layer < N_LAYERS; layer++) {
        hdl_summarise_args args = {.n_rows = 48,
                                   .n_kv_heads = N_KV_HEADS,
                                   .head_dim = HEAD_DIM,
                                   .v_head_dim = HEAD_DIM,
                                   .kind = HDL_PLANE_MEAN,
                                   .block_size = 8,
                                   .kv = hdl_kv_seq_view(session->kv, 0, layer)};
        assert_true(hdl_kv_seq_plane(session->kv, 0, layer, HDL_PLANE_MEAN, 8, &args.kv, 0));
        const hdl_impl *impl = hdl_choose(HDL_OP_SUMMARISE, &args, NULL);
        hdl_launch launch = {.n_threads = 1};
        for (int64_t page = 0; page < 3; page++) {
            uint8_t was[4096];
            uint8_t *plane = args.kv.pages[page] + args.kv.plane[0].offset;
            int64_t n = 2 * hdl_plane_entry_bytes(HDL_PLANE_MEAN, N_KV_HEADS, HEAD_DIM);
            memcpy(was, plane, (size_t)n);
            memset(plane, 0x5a, (size_t)n);
            impl->launch(&launch, &args);
            assert_memory_equal(was, plane, (size_t)n);
        }
    }
    decode(session, ids + 200, 30);
    heddle_session_free(session);
    heddle_engine_close(engine);
}

static void test_decode_allocates_nothing(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (int p = 0; p < N_PLANS; p++) {
        heddle_session_options options = options_of(64);
        heddle_session *session = new_session(engine, plans[p], &options);
        extend(session, ids, 100);
        int64_t before = hdl_mem_n_allocs();
        decode(session, ids, 300);
        assert_int_equal(hdl_mem_n_allocs() - before, 0);
        heddle_session_free(session);
    }
    heddle_engine_close(engine);
}

/* ---- refusals ---- */

static void test_plans_that_contradict_themselves(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
    } rows[] = {
        {RETAIN("\"keep\": 9"), "retain.score: is missing"},
        {RETAIN("\"score\": \"mass\", \"keep\": 9"), "retain.score \"mass\": must be \"mass_window\""},
        {RETAIN("\"score\": \"mass_sum\""), "retain.keep: is missing"},
        {RETAIN("\"score\": \"mass_sum\", \"keep\": 0"), "retain.keep 0: must be in 1.."},
        {RETAIN("\"score\": \"mass_sum\", \"keep\": 9, \"window\": 9"), "must be above sinks + window, 9"},
        {RETAIN("\"score\": \"mass_sum\", \"keep\": 9, \"window\": 0"),
         "retain.window 0: must be at least 1"},
        {RETAIN("\"score\": \"mass_sum\", \"keep\": 9, \"pool\": 3"), "retain.pool: belongs to score"},
        {RETAIN("\"score\": \"mass_window\", \"keep\": 9, \"pool\": 4"), "retain.pool 4: must be odd"},
        {RETAIN("\"score\": \"mass_window\", \"keep\": 9, \"every\": 4"), "retain.every 4: score"},
        {RETAIN("\"score\": \"none\", \"keep\": 9, \"window\": 4"), "it is sinks + window, 4"},
        {RETAIN("\"score\": \"mass_sum\", \"kep\": 9"), "did you mean \"keep\""},
        {"{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"retain\": 5}]}",
         "retain: must be an object"},
    };
    heddle_plan *plan;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(heddle_plan_parse(&plan, rows[i].json, (int64_t)strlen(rows[i].json), "test"),
                         HEDDLE_E_INVALID);
        if (!strstr(heddle_last_error(), rows[i].words))
            fail_msg("\"%s\" should hold \"%s\"", heddle_last_error(), rows[i].words);
    }
    assert_int_equal(heddle_plan_named(&plan, "snapkv:keep=100,observe=16"), HEDDLE_OK);
    char *text;
    assert_int_equal(heddle_plan_format(plan, &text), HEDDLE_OK);
    assert_non_null(strstr(text, "\"keep\": 100"));
    heddle_string_free(text);
    heddle_plan_free(plan);
    assert_int_equal(heddle_plan_named(&plan, "snapkv:top_k=100"), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "has no router"));
    assert_int_equal(heddle_plan_named(&plan, "dense:keep=100"), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "has no retain set"));
}

static void assert_not_made(heddle_engine *engine, const char *json, const heddle_session_options *options,
                            heddle_status status, const char *words)
{
    heddle_plan *plan;
    heddle_session *session;
    assert_int_equal(heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test"), HEDDLE_OK);
    assert_int_equal(heddle_session_new(&session, engine, plan, options), status);
    if (!strstr(heddle_last_error(), words))
        fail_msg("\"%s\" should hold \"%s\"", heddle_last_error(), words);
    heddle_plan_free(plan);
}

static void test_what_eviction_does_not_go_with(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session_options options = options_of(64);
    assert_not_made(
        engine,
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"retain\": {" SUM
        "}, \"decode\": [{\"layers\": [0], \"router\": {\"top_k\": 8, \"window\": 4, \"refresh\": 2}}]}]}",
        &options, HEDDLE_E_UNSUPPORTED, "kept over 2 steps");
    options.chunk_rows = 7;
    assert_not_made(engine, plans[0], &options, HEDDLE_E_INVALID, "more than the 7 rows of a step");
    options = options_of(64);
    heddle_session *session = new_session(engine, plans[0], &options);
    heddle_lists *lists;
    assert_int_equal(heddle_lists_new(&lists, engine), HEDDLE_OK);
    assert_int_equal(heddle_session_record(session, lists), HEDDLE_E_UNSUPPORTED);
    assert_non_null(strstr(heddle_last_error(), "name rows and not tokens"));
    heddle_session_free(session);
    heddle_lists_free(lists);
    options.plan_governs_all = 1;
    assert_not_made(engine, plans[0], &options, HEDDLE_E_UNSUPPORTED,
                    "judge it by what comes after a prompt");
    heddle_engine_close(engine);
}

static heddle_status whole_life(heddle_engine *engine)
{
    heddle_plan *plan = NULL;
    heddle_session *session = NULL, *fork = NULL;
    heddle_session_options options = options_of(64);
    heddle_status status = heddle_plan_parse(&plan, plans[1], (int64_t)strlen(plans[1]), "test");
    if (!status) status = heddle_session_new(&session, engine, plan, &options);
    if (!status) status = heddle_session_extend(session, ids, 60, NULL, NULL);
    if (!status) status = heddle_session_fork(&fork, session);
    if (!status) status = heddle_session_decode(fork, ids + 60, 20);
    heddle_session_free(fork);
    heddle_session_free(session);
    heddle_plan_free(plan);
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    int64_t live = hdl_mem_live_bytes(), n_refused = 0;
    for (int64_t n = 1; n <= 120; n++) { /* a failure in a text that only explains is passed over */
        hdl_mem_fail_at(n);
        heddle_status status = whole_life(engine);
        hdl_mem_fail_at(0);
        assert_true(status == HEDDLE_OK || status == HEDDLE_E_NOMEM);
        assert_int_equal(hdl_mem_live_bytes(), live);
        n_refused += status != HEDDLE_OK;
    }
    assert_true(n_refused > 20);
    heddle_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists_and_logits_of_the_oracle),
        cmocka_unit_test(test_pages_are_really_freed),
        cmocka_unit_test(test_share_read),
        cmocka_unit_test(test_forks_do_not_see_each_others_evictions),
        cmocka_unit_test(test_keeping_everything_equals_dense),
        cmocka_unit_test(test_chunks_and_layouts_do_not_change_a_bit),
        cmocka_unit_test(test_going_back),
        cmocka_unit_test(test_files_keep_what_was_evicted),
        cmocka_unit_test(test_a_batch_equals_each_alone),
        cmocka_unit_test(test_summaries_of_retained_rows),
        cmocka_unit_test(test_decode_allocates_nothing),
        cmocka_unit_test(test_plans_that_contradict_themselves),
        cmocka_unit_test(test_what_eviction_does_not_go_with),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    char ids_path[600];
    uint32_t random = 9;
    snprintf(ids_path, sizeof ids_path, "%s/golden/tiny/llama/ids.i32", HDL_TEST_DATA);
    FILE *file = fopen(ids_path, "rb");
    size_t n = file ? fread(ids, 4, 96, file) : 0; /* the golden text, then more */
    if (file) fclose(file);
    if (n != 96) return 1;
    for (int i = 96; i < N_IDS; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)((random >> 8) % N_VOCAB);
    }
    if (!tiny_make_folder(folder, sizeof folder)) return 1;
    snprintf(path, sizeof path, "%s/session", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tiny_remove_folder(folder);
    return failed;
}
