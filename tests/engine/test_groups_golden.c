/* Six cross layers that read by two or three lists (tests/golden/groups, train/golden_groups.py) against the lists and
 * logits that train/modeling_heddle.py gave in float32, matrices made F32, K and V in f32.
 *
 * Lists by int8 keys are those of float keys but where two scores are closer than the rounding of the keys. A row's
 * logits are a function of its own lists: equal lists, logits within 1e-3. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cross_model.h"
#include "heddle.h"

#define FOLDER HDL_TEST_DATA "/golden/groups"

enum { N_TOKENS = 96, N_VOCAB = 256, STRIDE = 4, KEPT = N_VOCAB / STRIDE, TOP_K = 12, MOST_GROUPS = 3 };

typedef struct list {
    int32_t ids[TOP_K];
    int64_t n;
} list;

typedef struct golden_case {
    const char *name;
    int64_t n_groups;
    int32_t leaders[MOST_GROUPS];
} golden_case;

static const golden_case cases[] = {
    {"2-shared_state", 2, {2, 5, -1}},
    {"2-own_input", 2, {2, 5, -1}},
    {"3-shared_state", 3, {2, 4, 6}},
    {"3-own_input", 3, {2, 4, 6}},
};

static int32_t tokens[N_TOKENS];
static list want[N_TOKENS][MOST_GROUPS], got[N_TOKENS][MOST_GROUPS];
static float want_logits[N_TOKENS][KEPT], got_logits[N_TOKENS][N_VOCAB];

static void read_case(const golden_case *c)
{
    char path[512];
    FILE *file = fopen(FOLDER "/tokens.txt", "r");
    assert_non_null(file);
    assert_int_equal(cross_read_line(file, tokens, N_TOKENS), N_TOKENS);
    fclose(file);
    snprintf(path, sizeof path, FOLDER "/lists.%s.txt", c->name);
    file = fopen(path, "r");
    assert_non_null(file);
    for (int64_t t = 0; t < N_TOKENS; t++)
        for (int64_t g = 0; g < c->n_groups; g++) {
            want[t][g].n = cross_read_line(file, want[t][g].ids, TOP_K);
            assert_int_equal(want[t][g].n, HDL_MIN(t + 1, TOP_K));
        }
    fclose(file);
    snprintf(path, sizeof path, FOLDER "/logits.%s.f32", c->name);
    assert_true(cross_read_floats(want_logits[0], (int64_t)N_TOKENS * KEPT, path));
}

static void hear(const heddle_tap_row *row, void *user)
{
    const golden_case *c = user;
    for (int64_t g = 0; g < c->n_groups; g++) {
        if (row->layer != c->leaders[g]) continue;
        assert_true(row->n_ids <= TOP_K);
        list *to = &got[row->position][g];
        to->n = row->n_ids;
        memcpy(to->ids, row->ids, (size_t)row->n_ids * sizeof *row->ids);
    }
}

static void read_tokens(const char *model, const golden_case *c)
{
    heddle_engine *engine;
    heddle_plan *plan;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.kv_type = "f32";
    options.plan_governs_all = 1;
    if (heddle_engine_open(&engine, model, NULL)) fail_msg("%s", heddle_last_error());
    if (heddle_plan_named(&plan, "clsa:top_k=12")) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    heddle_session_set_tap(session, hear, (void *)(uintptr_t)c);
    for (int64_t t = 0; t < N_TOKENS; t++) {
        if (heddle_session_decode(session, tokens + t, 1)) fail_msg("%s", heddle_last_error());
        memcpy(got_logits[t], heddle_session_logits(session), sizeof got_logits[t]);
    }
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static double worst_of_row(int64_t t)
{
    double worst = 0;
    for (int64_t i = 0; i < KEPT; i++) {
        double d = fabs((double)got_logits[t][i * STRIDE] - (double)want_logits[t][i]);
        worst = d <= worst ? worst : d; /* a NaN stays */
    }
    return worst;
}

/* Every group's lists, and the logits of the rows whose lists are equal. */
static void check_case(const golden_case *c)
{
    char folder[256], config[512];
    double worst = 0;
    int64_t n_other = 0;
    read_case(c);
    snprintf(config, sizeof config, FOLDER "/config.%s.json", c->name);
    assert_true(cross_write_as_f32(folder, sizeof folder, FOLDER, config, c->leaders, c->n_groups));
    memset(got, 0, sizeof got);
    read_tokens(folder, c);
    tiny_remove_folder(folder);
    for (int64_t t = 0; t < N_TOKENS; t++) {
        bool is_equal = true;
        for (int64_t g = 0; g < c->n_groups; g++) {
            assert_int_equal(got[t][g].n, want[t][g].n);
            is_equal = is_equal &&
                       !memcmp(got[t][g].ids, want[t][g].ids, (size_t)want[t][g].n * sizeof(int32_t));
        }
        n_other += !is_equal;
        double of_row = is_equal ? worst_of_row(t) : 0;
        worst = of_row <= worst ? worst : of_row;
    }
    print_message("%s: %d of %d rows have another list; logits of the others differ by at most %g\n", c->name,
                  (int)n_other, N_TOKENS, worst);
    assert_true(n_other <= N_TOKENS / 16 * c->n_groups);
    assert_true(worst <= 1e-3);
}

static void test_two_groups_by_the_shared_state(void **state)
{
    (void)state;
    check_case(&cases[0]);
}

static void test_two_groups_by_their_own_input(void **state)
{
    (void)state;
    check_case(&cases[1]);
}

static void test_three_groups_by_the_shared_state(void **state)
{
    (void)state;
    check_case(&cases[2]);
}

static void test_three_groups_by_their_own_input(void **state)
{
    (void)state;
    check_case(&cases[3]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_groups_by_the_shared_state),
        cmocka_unit_test(test_two_groups_by_their_own_input),
        cmocka_unit_test(test_three_groups_by_the_shared_state),
        cmocka_unit_test(test_three_groups_by_their_own_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
