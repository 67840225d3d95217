/* Small random models under choices of config.json that the golden model leaves at their defaults, against the lists and logits
 * that train/modeling_heddle.py gave in float32: six cross layers that read by two or three lists (tests/golden/groups,
 * train/golden_groups.py); a CLSA whose index reads the state itself and forces sinks and a window, a YOCO without document
 * resets, a window hybrid without rotation in its full layer (tests/golden/choices, train/golden_choices.py). Matrices
 * made F32, K and V in f32. The same models with their heads' channels in pairs, as rope_style says then: the same answers.
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

enum { N_TOKENS = 96, MOST_VOCAB = 256, STRIDE = 4, TOP_K = 12, MOST_FORCED = 7, MOST_GROUPS = 3 };

typedef struct list {
    int32_t ids[TOP_K + MOST_FORCED];
    int64_t n;
} list;

typedef struct golden_case {
    const char *folder, *suffix; /* under tests/golden; of the names config, lists and logits */
    const char *plan;            /* NULL = the model's own */
    int64_t n_vocab, n_forced, n_groups;
    int32_t leaders[MOST_GROUPS];
    int64_t
        paired_head_dim; /* 0 = as the file is; else channels (i, i + dim/2) of a head stand at (2i, 2i + 1) */
} golden_case;

static int32_t tokens[N_TOKENS];
static list want[N_TOKENS][MOST_GROUPS], got[N_TOKENS][MOST_GROUPS];
static float want_logits[N_TOKENS * MOST_VOCAB / STRIDE], got_logits[N_TOKENS][MOST_VOCAB];

static void path_of(char path[512], const golden_case *c, const char *name, const char *suffix,
                    const char *type)
{
    snprintf(path, 512, HDL_TEST_DATA "/golden/%s/%s%s%s", c->folder, name, suffix, type);
}

static void read_case(const golden_case *c)
{
    char path[512];
    path_of(path, c, "tokens", "", ".txt");
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(cross_read_line(file, tokens, N_TOKENS), N_TOKENS);
    fclose(file);
    path_of(path, c, "lists", c->suffix, ".txt");
    file = c->n_groups ? fopen(path, "r") : NULL;
    assert_true(file || !c->n_groups);
    for (int64_t t = 0; t < N_TOKENS; t++)
        for (int64_t g = 0; g < c->n_groups; g++) {
            want[t][g].n = cross_read_line(file, want[t][g].ids, TOP_K + MOST_FORCED);
            assert_int_equal(want[t][g].n, HDL_MIN(t + 1, TOP_K + c->n_forced));
        }
    if (file) fclose(file);
    path_of(path, c, "logits", c->suffix, ".f32");
    assert_true(cross_read_floats(want_logits, N_TOKENS * c->n_vocab / STRIDE, path));
}

static void hear(const heddle_tap_row *row, void *user)
{
    const golden_case *c = user;
    for (int64_t g = 0; g < c->n_groups; g++) {
        if (row->layer != c->leaders[g]) continue;
        assert_true(row->n_ids <= TOP_K + MOST_FORCED);
        list *to = &got[row->position][g];
        to->n = row->n_ids;
        memcpy(to->ids, row->ids, (size_t)row->n_ids * sizeof *row->ids);
    }
}

static void read_tokens(const char *model, const golden_case *c)
{
    heddle_engine *engine;
    heddle_plan *plan = NULL;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 128;
    options.kv_type = "f32";
    options.plan_governs_all = 1;
    if (heddle_engine_open(&engine, model, NULL)) fail_msg("%s", heddle_last_error());
    if (c->plan && heddle_plan_named(&plan, c->plan)) fail_msg("%s", heddle_last_error());
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    if (c->n_groups) heddle_session_set_tap(session, hear, (void *)(uintptr_t)c);
    for (int64_t t = 0; t < N_TOKENS; t++) {
        if (heddle_session_decode(session, tokens + t, 1)) fail_msg("%s", heddle_last_error());
        memcpy(got_logits[t], heddle_session_logits(session), (size_t)c->n_vocab * sizeof(float));
    }
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static double worst_of_row(const golden_case *c, int64_t t)
{
    double worst = 0;
    for (int64_t i = 0; i < c->n_vocab / STRIDE; i++) {
        double d = fabs((double)got_logits[t][i * STRIDE] - (double)want_logits[t * c->n_vocab / STRIDE + i]);
        worst = d <= worst ? worst : d; /* a NaN stays */
    }
    return worst;
}

/* Every group's lists, and the logits of the rows whose lists are equal. */
static void check_case(const golden_case *c)
{
    char folder[256], path[512], from[512];
    double worst = 0;
    int64_t n_other = 0;
    read_case(c);
    snprintf(from, sizeof from, HDL_TEST_DATA "/golden/%s", c->folder);
    path_of(path, c, "config", c->suffix, ".json");
    assert_true(
        cross_write_as_f32(folder, sizeof folder, from, path, c->leaders, c->n_groups, c->paired_head_dim));
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
        double of_row = is_equal ? worst_of_row(c, t) : 0;
        worst = of_row <= worst ? worst : of_row;
    }
    print_message("%s%s: %d of %d rows have another list; logits of the others differ by at most %g\n",
                  c->folder, c->suffix, (int)n_other, N_TOKENS, worst);
    assert_true(n_other <= N_TOKENS / 16 * c->n_groups);
    assert_true(worst <= 1e-3);
}

static void test_two_groups_by_the_shared_state(void **state)
{
    (void)state;
    check_case(&(golden_case){"groups", ".2-shared_state", "clsa:top_k=12", 256, 0, 2, {2, 5}, 0});
}

static void test_two_groups_by_their_own_input(void **state)
{
    (void)state;
    check_case(&(golden_case){"groups", ".2-own_input", "clsa:top_k=12", 256, 0, 2, {2, 5}, 0});
}

static void test_three_groups_by_the_shared_state(void **state)
{
    (void)state;
    check_case(&(golden_case){"groups", ".3-shared_state", "clsa:top_k=12", 256, 0, 3, {2, 4, 6}, 0});
}

static void test_three_groups_by_their_own_input(void **state)
{
    (void)state;
    check_case(&(golden_case){"groups", ".3-own_input", "clsa:top_k=12", 256, 0, 3, {2, 4, 6}, 0});
}

/* Its own plan: top_k, sinks and window are config.json's. */
static void test_an_index_of_the_state_with_forced_tokens(void **state)
{
    (void)state;
    check_case(&(golden_case){"choices/clsa", "", NULL, 128, 7, 1, {2}, 0});
}

static void test_a_yoco_without_document_resets(void **state)
{
    (void)state;
    check_case(&(golden_case){"choices/yoco", "", "dense", 128, 0, 0, {0}, 0});
}

static void test_a_hybrid_with_a_full_layer_that_does_not_turn(void **state)
{
    (void)state;
    check_case(&(golden_case){"choices/window_hybrid", "", "dense", 128, 0, 0, {0}, 0});
}

static void test_an_index_model_that_turns_neighbouring_channels(void **state)
{
    (void)state;
    check_case(&(golden_case){"choices/clsa", "", NULL, 128, 7, 1, {2}, 16});
}

/* With gains of queries and keys, which stand in the new order too. */
static void test_a_yoco_that_turns_neighbouring_channels(void **state)
{
    (void)state;
    check_case(&(golden_case){"choices/yoco", "", "dense", 128, 0, 0, {0}, 16});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_groups_by_the_shared_state),
        cmocka_unit_test(test_two_groups_by_their_own_input),
        cmocka_unit_test(test_three_groups_by_the_shared_state),
        cmocka_unit_test(test_three_groups_by_their_own_input),
        cmocka_unit_test(test_an_index_of_the_state_with_forced_tokens),
        cmocka_unit_test(test_a_yoco_without_document_resets),
        cmocka_unit_test(test_a_hybrid_with_a_full_layer_that_does_not_turn),
        cmocka_unit_test(test_an_index_model_that_turns_neighbouring_channels),
        cmocka_unit_test(test_a_yoco_that_turns_neighbouring_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
