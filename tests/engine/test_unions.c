/* test_unions.c - plan union4 where budgets end: with one unforced token more than `top_k` every KV head leaves one
 * out, and the union is everything where two leave out different ones (equal to dense), and one token short of it
 * where all leave out the same (not equal). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "heddle.h"

enum { N_MAX = 48, N_VOCAB = 300, N_TEXTS = 4 };

typedef struct union_count {
    int64_t n_lists, n_short; /* tokens that the lists of the layers leave out, all told */
} union_count;

static void count(const heddle_tap_row *row, void *user)
{
    union_count *at = user;
    assert_int_equal(row->n_lists, 1);
    at->n_lists++;
    at->n_short += row->n_units - row->n_ids;
    assert_in_range(row->n_units - row->n_ids, 0, 1);
}

/* Logits of the last of n ids, read alone after the others were read densely. */
static void last_row(heddle_engine *engine, const char *plan_name, const int32_t *ids, int64_t n,
                     union_count *lists, float *logits)
{
    heddle_plan *plan;
    heddle_session *session = NULL;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = N_MAX;
    options.kv_type = "f32";
    if (heddle_plan_named(&plan, plan_name) || heddle_session_new(&session, engine, plan, &options) ||
        heddle_session_extend(session, ids, n - 1, NULL, NULL))
        fail_msg("%s: %s", plan_name, heddle_last_error());
    if (lists) heddle_session_set_tap(session, count, lists);
    if (heddle_session_decode(session, ids + n - 1, 1)) fail_msg("%s: %s", plan_name, heddle_last_error());
    memcpy(logits, heddle_session_logits(session), N_VOCAB * sizeof *logits);
    heddle_session_free(session);
    heddle_plan_free(plan);
}

static double max_abs(const float *a, const float *b)
{
    double worst = 0;
    for (int i = 0; i < N_VOCAB; i++) worst = HDL_MAX(worst, fabs((double)a[i] - b[i]));
    return worst;
}

static void test_a_union_one_token_short_is_not_dense(void **state)
{
    (void)state;
    heddle_engine *engine;
    int32_t ids[N_MAX];
    uint32_t random = 11;
    int64_t n_whole = 0, n_short = 0, n_rescued = 0;
    if (heddle_engine_open(&engine, HDL_TEST_DATA "/golden/tiny/llama", NULL))
        fail_msg("%s", heddle_last_error());
    double least = INFINITY, worst = 0;
    for (int text = 0; text < N_TEXTS; text++) {
        for (int i = 0; i < N_MAX; i++) {
            random = random * 1664525u + 1013904223u;
            ids[i] = (int32_t)((random >> 8) % N_VOCAB);
        }
        for (int top_k = 1; top_k + 2 <= N_MAX; top_k += top_k < 16 ? 1 : 5)
            for (int more = 0; more < 2; more++) { /* unforced tokens beyond top_k; one is the row's own */
                float dense[N_VOCAB], united[N_VOCAB];
                union_count lists = {0};
                char plan[64];
                snprintf(plan, sizeof plan, "union4:top_k=%d,sinks=0,window=1", top_k);
                last_row(engine, "dense", ids, top_k + 1 + more, NULL, dense);
                last_row(engine, plan, ids, top_k + 1 + more, &lists, united);
                double d = max_abs(dense, united);
                assert_true(lists.n_lists > 0);
                if (!more) assert_int_equal(lists.n_short, 0);
                if (lists.n_short)
                    least = HDL_MIN(least, d);
                else
                    worst = HDL_MAX(worst, d);
                n_whole += !more;
                n_short += lists.n_short > 0;
                n_rescued += more && !lists.n_short;
            }
    }
    printf(
        "%lld of everything, %lld at k + 1 whole through the other head: within %.2g of dense; %lld short: "
        "at least %.2g\n",
        (long long)n_whole, (long long)n_rescued, worst, (long long)n_short, least);
    assert_true(n_short > 4 && n_rescued > 4);
    assert_true(worst < 2e-6 && least > 1e-5);
    heddle_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_union_one_token_short_is_not_dense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
