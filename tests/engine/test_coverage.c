/* test_coverage.c - how much of the cross layers' mean attention the shipped model's lists hold: for every
 * row the list of largest mean attention holds at least as much as the index's, whatever was trained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "heddle.h"

enum { N_TOKENS = 4096, FIRST_ROW = 4000, N_ROWS = N_TOKENS - FIRST_ROW, TOP_K = N_TOKENS / 16 };

static const char observed[] =
    "{\"heddle_plan\": 1, \"name\": \"observed\", \"variants\": [{\"decode\": [{\"layers\": \"all\","
    " \"operator\": \"dense\", \"router\": {\"score\": \"attention_mass\", \"top_k\": 1}}]}]}";

static heddle_engine *engine;
static int32_t *ids;

typedef struct row_masses {
    float (*mean)[N_TOKENS]; /* [N_ROWS] over cross layers and heads; sums to 1 */
    int n_layers[N_ROWS];
} row_masses;

static void add_masses(const heddle_tap_row *row, void *user)
{
    row_masses *masses = user;
    int64_t at = row->position - FIRST_ROW;
    if (at < 0) return;
    assert_non_null(row->score);
    masses->n_layers[at]++;
    for (int64_t t = 0; t < row->n_units; t++) masses->mean[at][t] += row->score[t];
}

typedef struct row_lists {
    const row_masses *masses;
    double held[N_ROWS];
    int n_lists[N_ROWS];
} row_lists;

static void add_held(const heddle_tap_row *row, void *user)
{
    row_lists *lists = user;
    int64_t at = row->position - FIRST_ROW;
    if (at < 0) return;
    assert_int_equal(row->n_ids, TOP_K);
    lists->n_lists[at]++;
    for (int64_t i = 0; i < row->n_ids; i++) lists->held[at] += lists->masses->mean[at][row->ids[i]];
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

static void test_no_list_holds_more_than_the_oracles(void **state)
{
    (void)state;
    heddle_plan *plan;
    row_masses masses = {.mean = calloc(N_ROWS, sizeof *masses.mean)};
    assert_non_null(masses.mean);
    if (heddle_plan_parse(&plan, observed, (int64_t)strlen(observed), "test"))
        fail_msg("%s", heddle_last_error());
    read_under(plan, add_masses, &masses);
    row_lists learned = {.masses = &masses};
    if (heddle_plan_named(&plan, "clsa:top_k=256")) fail_msg("%s", heddle_last_error());
    read_under(plan, add_held, &learned);
    double of_learned = 0, of_oracle = 0, of_recent = 0;
    for (int64_t r = 0; r < N_ROWS; r++) {
        double total = 0, oracle = 0, recent = 0;
        float *mean = masses.mean[r];
        assert_true(masses.n_layers[r] == 6 && learned.n_lists[r] == 1);
        for (int64_t t = 0; t < N_TOKENS; t++) total += mean[t];
        assert_true(total > 5.999 && total < 6.001);
        for (int64_t t = FIRST_ROW + r; t > FIRST_ROW + r - TOP_K; t--) recent += mean[t];
        qsort(mean, N_TOKENS, sizeof *mean, larger_first);
        for (int64_t t = 0; t < TOP_K; t++) oracle += mean[t];
        assert_true(oracle >= learned.held[r] - 1e-6);
        of_learned += learned.held[r] / total;
        of_oracle += oracle / total;
        of_recent += recent / total;
    }
    print_message("coverage at k = n/16, the last %d of %d tokens: the index's lists %.3f, the oracle's %.3f "
                  "(%.1f %% of it), recent tokens %.3f\n",
                  N_ROWS, N_TOKENS, of_learned / N_ROWS, of_oracle / N_ROWS, 100 * of_learned / of_oracle,
                  of_recent / N_ROWS);
    assert_true(of_learned > 0.8 * of_oracle && of_learned > 1.5 * of_recent);
    free(masses.mean);
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
