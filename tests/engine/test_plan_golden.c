/* What a plan means, pinned: the loss of every row of one text on small random F32 models under plans
 * of each kind. The golden file was written by the build (5e636a4) that the first quality proof ran
 * with. A change of messages or of speed leaves it alone; a change of what is selected, shared or
 * attended does not.
 *
 *   test_plan_golden --write    writes the golden file anew: then quality figures must be taken again */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "heddle.h"

enum { N_IDS = 400, N_VOCAB = 300 };
static const char golden_path[] = HDL_TEST_DATA "/golden/plans/nll.f32";

#define PLAN(rules) "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [" rules "]}]}"
#define MASS                                                                                                 \
    "\"score\": \"attention_mass\", \"select\": \"top_k\", \"top_k\": 16, \"sinks\": 2, \"window\": 8"

static const struct plan_case {
    const char *model, *plan;
} cases[] = {
    {"llama", PLAN("{\"layers\": [0], \"operator\": \"dense\", \"router\": {" MASS "}}, "
                   "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}")},
    {"qwen3",
     PLAN("{\"layers\": [0], \"operator\": \"dense\", \"router\": {" MASS ", \"lists\": \"kv_head\"}}, "
          "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}")},
    {"llama", PLAN("{\"layers\": [0], \"operator\": \"dense\", \"router\": {" MASS ", \"refresh\": 4}}, "
                   "{\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}")},
    {"gemma3", PLAN("{\"layers\": \"all\", \"operator\": \"token_list\", \"router\": {" MASS "}}")},
    {"llama",
     PLAN(
         "{\"layers\": \"all\", \"operator\": \"token_list\", \"router\": {\"score\": \"none\", \"sinks\": 2, "
         "\"window\": 20}}")},
    {"llama",
     PLAN(
         "{\"layers\": \"all\", \"operator\": \"token_list\", \"router\": {\"score\": \"random\", \"top_k\": 20, "
         "\"seed\": 5, \"window\": 4}}")},
    {"llama", PLAN("")},
    {"gemma3", PLAN("")},
};
enum { N_CASES = sizeof cases / sizeof *cases };
static float present[N_CASES][N_IDS];

static void measure(const struct plan_case *at, float *nll)
{
    char path[512];
    int32_t ids[N_IDS];
    uint32_t random = 7;
    heddle_engine *engine = NULL;
    heddle_plan *plan = NULL;
    heddle_session *session = NULL;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = N_IDS;
    options.kv_type = "f32";
    options.is_invariant = options.plan_governs_all = 1;
    for (int i = 0; i < N_IDS; i++) {
        random = random * 1664525u + 1013904223u;
        ids[i] = (int32_t)((random >> 8) % N_VOCAB);
    }
    snprintf(path, sizeof path, "%s/golden/tiny/%s", HDL_TEST_DATA, at->model);
    if (heddle_engine_open(&engine, path, NULL) ||
        heddle_plan_parse(&plan, at->plan, (int64_t)strlen(at->plan), "golden") ||
        heddle_session_new(&session, engine, plan, &options) ||
        heddle_session_score(session, ids, N_IDS, 0, nll, NULL, NULL)) {
        fprintf(stderr, "%s: %s\n", at->model, heddle_last_error());
        exit(1);
    }
    nll[0] = 0; /* of nothing */
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_plans_mean_what_they_meant(void **state)
{
    (void)state;
    static float golden[N_CASES][N_IDS];
    FILE *file = fopen(golden_path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(golden, sizeof golden, 1, file), 1);
    fclose(file);
    for (int c = 0; c < N_CASES; c++) {
        double worst = 0;
        for (int i = 0; i < N_IDS; i++) {
            double d = fabs((double)present[c][i] - golden[c][i]);
            worst = !(d <= worst) ? d : worst;
        }
        print_message("case %d, %s: max-abs %.2g of 1e-3\n", c, cases[c].model, worst);
        assert_true(worst <= 1e-3);
    }
}

/* The pin would notice: the cases on one model differ by far more than the tolerance. */
static void test_plans_differ(void **state)
{
    (void)state;
    static const int on_llama[] = {0, 2, 4, 5, 6};
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < a; b++) {
            double worst = 0;
            for (int i = 0; i < N_IDS; i++)
                worst = fmax(worst, fabs((double)present[on_llama[a]][i] - present[on_llama[b]][i]));
            assert_true(worst > 1e-2);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plans_mean_what_they_meant),
                                       cmocka_unit_test(test_plans_differ)};
    for (int c = 0; c < N_CASES; c++) measure(&cases[c], present[c]);
    if (argc == 2 && !strcmp(argv[1], "--write")) {
        FILE *file = fopen(golden_path, "wb");
        bool is_ok = file && fwrite(present, sizeof present, 1, file) == 1;
        return !file || fclose(file) || !is_ok;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
