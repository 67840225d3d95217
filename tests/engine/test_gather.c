/* test_gather.c - rows gathered once a token, against reading them through the list: the same bits after any
 * history of a session, in every KV type and layout. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cross_model.h"
#include "engine/engine_int.h"
#include "heddle.h"
#include "kv/docfile.h"

enum { N_TOKENS = CROSS_TOKENS, N_VOCAB = CROSS_VOCAB, CONTEXT = 256, BORDER_1 = 40 };

static cross_golden golden;
static heddle_engine *engine;
static char folder[256], document_path[300];

static heddle_session_options options_of(int gathering, const char *kv_type, const char *layout)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.kv_type = kv_type;
    options.kv_layout = layout;
    options.page_shift = 4;
    options.rewind_tokens = 64;
    options.gathering = gathering;
    return options;
}

static heddle_plan *plan_of(const char *name)
{
    heddle_plan *plan;
    if (heddle_plan_named(&plan, name)) fail_msg("%s", heddle_last_error());
    return plan;
}

typedef struct pair {
    heddle_session *of[2]; /* never, always */
    uint64_t state;
} pair;

static void pair_new(pair *p, const char *plan_name, const char *kv_type, const char *layout,
                     bool governs_all)
{
    *p = (pair){.state = 7};
    for (int i = 0; i < 2; i++) {
        heddle_session_options options = options_of(i ? HEDDLE_GATHERING_ALWAYS : HEDDLE_GATHERING_NEVER,
                                                    kv_type, layout);
        heddle_plan *plan = plan_of(plan_name);
        options.plan_governs_all = governs_all;
        options.chunk_rows = governs_all ? 16 : options.chunk_rows;
        if (heddle_session_new(&p->of[i], engine, plan, &options)) fail_msg("%s", heddle_last_error());
        heddle_plan_free(plan);
    }
    assert_null(p->of[0]->gathers[0]);
    assert_non_null(p->of[1]->gathers[0]);
}

static void pair_free(pair *p)
{
    for (int i = 0; i < 2; i++) heddle_session_free(p->of[i]);
}

static uint64_t next(pair *p, uint64_t range)
{
    p->state = p->state * 6364136223846793005u + 1442695040888963407u;
    return (p->state >> 33) % range;
}

static void expect_same(const pair *p)
{
    assert_int_equal(heddle_session_len(p->of[0]), heddle_session_len(p->of[1]));
    const float *want = heddle_session_logits(p->of[0]), *got = heddle_session_logits(p->of[1]);
    if (want || got) assert_memory_equal(want, got, N_VOCAB * sizeof *want);
}

static void decode(pair *p, int64_t n)
{
    for (int64_t t = 0; t < n && heddle_session_len(p->of[0]) < CONTEXT; t++) {
        int32_t id = (int32_t)(1 + next(p, N_VOCAB - 1));
        for (int i = 0; i < 2; i++)
            if (heddle_session_decode(p->of[i], &id, 1)) fail_msg("%s", heddle_last_error());
        expect_same(p);
    }
}

static void extend(pair *p, int64_t n)
{
    int32_t ids[64];
    n = HDL_MIN(n, CONTEXT - heddle_session_len(p->of[0]));
    for (int64_t t = 0; t < n; t++) ids[t] = (int32_t)(1 + next(p, N_VOCAB - 1));
    for (int i = 0; i < 2 && n; i++)
        if (heddle_session_extend(p->of[i], ids, n, NULL, NULL)) fail_msg("%s", heddle_last_error());
    if (n) expect_same(p);
}

static void truncate_by(pair *p, int64_t n)
{
    int64_t kept[2], to = HDL_MAX(heddle_session_len(p->of[0]) - n, 1);
    for (int i = 0; i < 2; i++)
        if (heddle_session_truncate(p->of[i], to, &kept[i])) fail_msg("%s", heddle_last_error());
    assert_int_equal(kept[0], kept[1]);
}

/* Rows by the full pass, each with a list: for sessions whose plan governs all rows. */
static void score(pair *p, int64_t n)
{
    int32_t ids[64];
    float nll[2][64];
    n = HDL_MIN(n, CONTEXT - heddle_session_len(p->of[0]));
    for (int64_t t = 0; t < n; t++) ids[t] = (int32_t)(1 + next(p, N_VOCAB - 1));
    for (int i = 0; i < 2 && n; i++)
        if (heddle_session_score(p->of[i], ids, n, 0, nll[i], NULL, NULL))
            fail_msg("%s", heddle_last_error());
    if (n) assert_memory_equal(nll[0], nll[1], (size_t)n * sizeof nll[0][0]);
}

static void fork_both(pair *p)
{
    for (int i = 0; i < 2; i++) {
        heddle_session *fork;
        if (heddle_session_fork(&fork, p->of[i])) fail_msg("%s", heddle_last_error());
        heddle_session_free(p->of[i]);
        p->of[i] = fork;
    }
}

/* A history of 60 acts, each drawn: steps, prompts, going back, forks, saving and loading. */
static void live(pair *p)
{
    char path[400];
    extend(p, 60);
    for (int act = 0; act < 60; act++) {
        uint64_t what = next(p, 13);
        if (what < 6) decode(p, 1 + (int64_t)next(p, 4));
        if (what == 6) extend(p, 1 + (int64_t)next(p, 12));
        if (what == 7 || what == 8) truncate_by(p, 1 + (int64_t)next(p, 9));
        if (what == 9) { /* as long as before, with other tokens */
            int64_t n = 2 + (int64_t)next(p, 5);
            truncate_by(p, n);
            extend(p, n);
        }
        if (what == 10) fork_both(p);
        for (int i = 0; i < 2 && what == 11; i++) {
            snprintf(path, sizeof path, "%s/session", folder);
            if (heddle_session_save(p->of[i], path) || heddle_session_load(p->of[i], path))
                fail_msg("%s", heddle_last_error());
        }
        if (what == 12) score(p, 1 + (int64_t)next(p, 20));
        if (heddle_session_len(p->of[0]) > CONTEXT - 8) truncate_by(p, 60);
    }
    decode(p, 3);
}

static void test_any_history(void **state)
{
    (void)state;
    static const char *const types[] = {"f32", "f16", "bf16", "i8"};
    static const char *const plans[] = {"clsa:top_k=12", "clsa:top_k=37", "clsa:top_k=256"};
    for (int t = 0; t < HDL_COUNT(types); t++)
        for (int l = 0; l < 4; l++) {
            pair p;
            pair_new(&p, plans[(t + l) % 3], types[t], l & 1 ? "head" : "token", l & 2);
            live(&p);
            hdl_gather *gather = p.of[1]->gathers[0];
            assert_true(gather->n_listed > 0 && gather->n_copied < gather->n_listed);
            pair_free(&p);
        }
}

/* Rows of documents: mounted behind and before, unmounted (their slots must not be read again), forbidden. */
static void test_documents_come_and_go(void **state)
{
    (void)state;
    heddle_document *document;
    heddle_session_options options = options_of(0, "f16", "token");
    if (heddle_document_encode(engine, &options, golden.tokens, BORDER_1, document_path, NULL, NULL) ||
        heddle_document_open(&document, engine, document_path))
        fail_msg("%s", heddle_last_error());
    pair p;
    int64_t first[2];
    pair_new(&p, "clsa:top_k=12", "f16", "token", false);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++)
            if (heddle_session_mount(p.of[i], document, &first[i])) fail_msg("%s", heddle_last_error());
        int32_t begins = 0; /* a document's first token */
        for (int i = 0; i < 2; i++)
            if (heddle_session_decode(p.of[i], &begins, 1)) fail_msg("%s", heddle_last_error());
        decode(&p, 5);
        for (int i = 0; i < 2 && round == 1; i++)
            if (heddle_session_forbid(p.of[i], first[i] + 3, 20)) fail_msg("%s", heddle_last_error());
        decode(&p, 3);
        for (int i = 0; i < 2; i++)
            if (heddle_session_unmount(p.of[i], first[i])) fail_msg("%s", heddle_last_error());
        decode(&p, 4);
    }
    pair_free(&p);
    heddle_document_close(document);
}

/* Sessions of a batch, each with its page. */
static void test_batches(void **state)
{
    (void)state;
    heddle_batch *batch[2];
    pair p[2];
    heddle_plan *plan = plan_of("clsa:top_k=12");
    for (int i = 0; i < 2; i++) {
        heddle_session_options options = options_of(i ? HEDDLE_GATHERING_ALWAYS : HEDDLE_GATHERING_NEVER,
                                                    "f16", "token");
        if (heddle_batch_new(&batch[i], engine, plan, &options, 2, 64)) fail_msg("%s", heddle_last_error());
        pair_new(&p[i], "clsa:top_k=12", "f16", "token", false);
        extend(&p[i], 30 + 20 * i);
    }
    for (int32_t step = 0; step < 20; step++) {
        int32_t ids[2] = {1 + step, 100 + step};
        for (int i = 0; i < 2; i++) {
            heddle_batch_item items[2] = {{.session = p[0].of[i], .ids = &ids[0], .n_ids = 1},
                                          {.session = p[1].of[i], .ids = &ids[1], .n_ids = 1}};
            if (heddle_batch_step(batch[i], items, 2)) fail_msg("%s", heddle_last_error());
        }
        for (int s = 0; s < 2; s++) expect_same(&p[s]);
    }
    int32_t id = 1;
    heddle_batch_item other = {.session = p[0].of[0], .ids = &id, .n_ids = 1};
    assert_int_equal(heddle_batch_step(batch[1], &other, 1), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "session 0 of the step: gathers listed rows where"));
    for (int i = 0; i < 2; i++) {
        heddle_batch_free(batch[i]);
        pair_free(&p[i]);
    }
    heddle_plan_free(plan);
}

/* A step of two sessions fails for one's damaged document; the other's row is another one when it comes again. */
static void test_a_step_that_is_given_up(void **state)
{
    (void)state;
    char bad_path[320];
    heddle_document *bad;
    heddle_session_options options = options_of(0, "f16", "token");
    snprintf(bad_path, sizeof bad_path, "%s/bad.kv", folder);
    if (heddle_document_encode(engine, &options, golden.tokens, BORDER_1, bad_path, NULL, NULL))
        fail_msg("%s", heddle_last_error());
    FILE *file = fopen(bad_path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, 8192 + 100, SEEK_SET), 0); /* a row of its first page */
    int byte = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
    fputc(byte ^ 255, file);
    fclose(file);
    pair p, damaged;
    pair_new(&p, "clsa:top_k=256", "f16", "token", false);
    pair_new(&damaged, "clsa:top_k=256", "f16", "token", false);
    if (heddle_document_open(&bad, engine, bad_path)) fail_msg("%s", heddle_last_error());
    heddle_plan *plan = plan_of("clsa:top_k=256");
    extend(&p, 50);
    decode(&p, 2);
    int32_t id = 5, begins = 0; /* a document's first token */
    for (int i = 0; i < 2; i++) {
        int64_t first;
        heddle_batch *batch = NULL;
        options = options_of(i ? HEDDLE_GATHERING_ALWAYS : HEDDLE_GATHERING_NEVER, "f16", "token");
        if (heddle_session_mount(damaged.of[i], bad, &first) ||
            heddle_batch_new(&batch, engine, plan, &options, 2, 16))
            fail_msg("%s", heddle_last_error());
        heddle_batch_item items[2] = {{.session = p.of[i], .ids = &id, .n_ids = 1},
                                      {.session = damaged.of[i], .ids = &begins, .n_ids = 1}};
        if (heddle_batch_step(batch, items, 2) != HEDDLE_E_FORMAT) fail_msg("%s", heddle_last_error());
        heddle_batch_free(batch);
    }
    decode(&p, 4);
    pair_free(&p);
    pair_free(&damaged);
    heddle_document_close(bad);
    heddle_plan_free(plan);
}

/* What it takes is in the memory that is known before; nonsense is refused; models without shared rows have none. */
static void test_memory_and_refusals(void **state)
{
    (void)state;
    heddle_memory with, without;
    heddle_session *session;
    char *text;
    heddle_session_options options = options_of(HEDDLE_GATHERING_ALWAYS, "f16", "token");
    heddle_plan *plan = plan_of("clsa:top_k=12");
    with.struct_size = without.struct_size = sizeof with;
    assert_int_equal(heddle_memory_plan(engine, plan, &options, CONTEXT, &with), HEDDLE_OK);
    assert_int_equal(heddle_explain(engine, plan, &options, &text), HEDDLE_OK);
    assert_non_null(strstr(text, "to and from gathered page 0"));
    heddle_string_free(text);
    options.gathering = HEDDLE_GATHERING_NEVER;
    assert_int_equal(heddle_memory_plan(engine, plan, &options, CONTEXT, &without), HEDDLE_OK);
    assert_true(with.workspace_bytes > without.workspace_bytes);
    options.gathering = 3;
    assert_int_equal(heddle_session_new(&session, engine, plan, &options), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "gathering 3: must be in 0..2"));
    heddle_plan_free(plan);
    options.gathering = HEDDLE_GATHERING_ALWAYS;
    assert_int_equal(heddle_session_new(&session, engine, NULL, &options), HEDDLE_OK);
    heddle_session_free(session);
    plan = plan_of("dense");
    assert_int_equal(heddle_session_new(&session, engine, plan, &options), HEDDLE_OK);
    assert_null(session->gathers[0]);
    heddle_session_free(session);
    heddle_plan_free(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_history),
        cmocka_unit_test(test_documents_come_and_go),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_a_step_that_is_given_up),
        cmocka_unit_test(test_memory_and_refusals),
    };
    if (!cross_golden_read(&golden) || !cross_write_f32(folder, sizeof folder) ||
        heddle_engine_open(&engine, folder, NULL)) {
        printf("not ok 1 - the golden model is there: %s\n", heddle_last_error());
        return 1;
    }
    snprintf(document_path, sizeof document_path, "%s/a.kv", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heddle_engine_close(engine);
    tiny_remove_folder(folder);
    return failed;
}
