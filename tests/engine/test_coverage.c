/* test_coverage.c - how much of the cross layers' attention the shipped model's lists hold. The first cross layer's
 * queries and keys are a function of the layers below it, so its attention is the same under every plan: the list that
 * plan oracle makes for it holds what its largest entries sum to, and for every row at least as much as the index's,
 * whatever was trained. The index's share of the mean over all cross layers is held to what it has. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "heddle.h"

enum {
    N_TOKENS = 4096,
    FIRST_ROW = 4000,
    N_ROWS = N_TOKENS - FIRST_ROW,
    TOP_K = N_TOKENS / 16,
    FIRST_CROSS = 6,
    N_CROSS = 6
};

static const char observed[] =
    "{\"heddle_plan\": 1, \"name\": \"observed\", \"variants\": [{\"decode\": [{\"layers\": \"all\","
    " \"operator\": \"dense\", \"router\": {\"score\": \"attention_mass\", \"top_k\": 1}}]}]}";

static heddle_engine *engine;
static int32_t *ids;

typedef struct row_masses {
    float (
        *sum)[N_TOKENS]; /* [N_ROWS] over the cross layers, each the mean over its heads: N_CROSS together */
    float (*first)[N_TOKENS]; /* of the first of them: 1 together */
    int n_layers[N_ROWS];
} row_masses;

static void add_masses(const heddle_tap_row *row, void *user)
{
    row_masses *masses = user;
    int64_t at = row->position - FIRST_ROW;
    if (at < 0) return;
    assert_non_null(row->score);
    masses->n_layers[at]++;
    for (int64_t t = 0; t < row->n_units; t++) masses->sum[at][t] += row->score[t];
    if (row->layer == FIRST_CROSS)
        memcpy(masses->first[at], row->score, (size_t)row->n_units * sizeof *row->score);
}

/* What the first cross layer's list of each row holds. */
typedef struct row_lists {
    const row_masses *masses;
    double of_sum[N_ROWS], of_first[N_ROWS];
    int n_lists[N_ROWS];
} row_lists;

static void add_held(const heddle_tap_row *row, void *user)
{
    row_lists *lists = user;
    int64_t at = row->position - FIRST_ROW;
    if (at < 0 || row->layer != FIRST_CROSS) return;
    assert_int_equal(row->n_ids, TOP_K);
    lists->n_lists[at]++;
    for (int64_t i = 0; i < row->n_ids; i++) {
        lists->of_sum[at] += lists->masses->sum[at][row->ids[i]];
        lists->of_first[at] += lists->masses->first[at][row->ids[i]];
    }
}

static void read_under(heddle_plan *plan, heddle_tap_fn tap, void *user)
{
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = N_TOKENS;
    options.kv_type = "f32";
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    if (heddle_session_extend(session, ids, FIRST_ROW, NULL, NULL)) fail_msg("%s", heddle_last_error());
    heddle_session_set_tap(session, tap, user);
    for (int64_t t = FIRST_ROW; t < N_TOKENS; t++)
        if (heddle_session_decode(session, ids + t, 1)) fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
    heddle_plan_free(plan);
}

static int larger_first(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static double sum_of_largest(float *mass)
{
    double sum = 0;
    qsort(mass, N_TOKENS, sizeof *mass, larger_first);
    for (int64_t t = 0; t < TOP_K; t++) sum += mass[t];
    return sum;
}

static void read_named(const char *name, row_lists *lists)
{
    heddle_plan *plan;
    if (heddle_plan_named(&plan, name)) fail_msg("%s", heddle_last_error());
    read_under(plan, add_held, lists);
}

static void test_no_list_holds_more_than_the_oracles(void **state)
{
    (void)state;
    heddle_plan *plan;
    row_masses masses = {.sum = calloc(N_ROWS, sizeof *masses.sum),
                         .first = calloc(N_ROWS, sizeof *masses.first)};
    assert_true(masses.sum && masses.first);
    if (heddle_plan_parse(&plan, observed, (int64_t)strlen(observed), "test"))
        fail_msg("%s", heddle_last_error());
    read_under(plan, add_masses, &masses);
    row_lists learned = {.masses = &masses}, oracle = learned;
    read_named("clsa:top_k=256", &learned);
    read_named("oracle:top_k=256,sinks=0,window=0", &oracle);
    double of_learned = 0, of_largest = 0, of_recent = 0, least_lead = 1;
    for (int64_t r = 0; r < N_ROWS; r++) {
        double total = 0, recent = 0;
        assert_true(masses.n_layers[r] == N_CROSS && learned.n_lists[r] == 1 && oracle.n_lists[r] == 1);
        for (int64_t t = 0; t < N_TOKENS; t++) total += masses.sum[r][t];
        assert_true(total > N_CROSS - 0.001 && total < N_CROSS + 0.001);
        for (int64_t t = FIRST_ROW + r; t > FIRST_ROW + r - TOP_K; t--) recent += masses.sum[r][t];
        assert_true(fabs(oracle.of_first[r] - sum_of_largest(masses.first[r])) <= 1e-5);
        double lead = oracle.of_first[r] - learned.of_first[r];
        assert_true(lead >= -1e-5);
        least_lead = lead < least_lead ? lead : least_lead;
        of_learned += learned.of_sum[r] / total;
        of_largest += sum_of_largest(masses.sum[r]) / total;
        of_recent += recent / total;
    }
    print_message(
        "coverage at k = n/16, the last %d of %d tokens: the index's lists %.3f, the largest entries %.3f "
        "(%.1f %% of it), recent tokens %.3f; in the first cross layer the oracle's lists lead by at "
        "least %.3f\n",
        N_ROWS, N_TOKENS, of_learned / N_ROWS, of_largest / N_ROWS, 100 * of_learned / of_largest,
        of_recent / N_ROWS, least_lead);
    assert_true(of_learned > 0.88 * of_largest && of_learned > 1.5 * of_recent);
    free(masses.sum);
    free(masses.first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_list_holds_more_than_the_oracles)};
    hdl_buf text = {0};
    int64_t n_ids;
    heddle_engine_options options;
    heddle_engine_options_default(&options);
    if (heddle_engine_open(&engine, "models/warp-21m", &options) ||
        hdl_buf_read_file(&text, "tests/golden/llama/jargon.txt", 1 << 20) ||
        heddle_tokenize(engine, (const char *)text.data, text.n, HEDDLE_TOKENIZE_BOS, &ids, &n_ids) ||
        n_ids < N_TOKENS) {
        printf("not ok 1 - the model and the text are there: %s\n", heddle_last_error());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heddle_ids_free(ids);
    hdl_buf_deinit(&text);
    heddle_engine_close(engine);
    return failed;
}
