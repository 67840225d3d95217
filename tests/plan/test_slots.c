/* Lists that are never needed at once share memory, those that are do not (src/plan/slots.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "plan/schedule.h"

enum { N_LAYERS = 4 };
static hdl_model_facts facts;

#define LIST "\"operator\": \"token_list\", \"router\": {\"score\": \"key_i4\", \"top_k\": 16, \"window\": 4}"

static hdl_schedule *compile(const char *rules, int32_t cross_from)
{
    char text[1024];
    hdl_plan *plan;
    hdl_schedule *schedule;
    hdl_schedule_limits limits = {.max_rows = 8,
                                  .max_list_rows = 8,
                                  .max_context = 256,
                                  .max_logit_rows = 1,
                                  .max_seqs = 1,
                                  .n_threads = 1,
                                  .kv_dtype = HDL_F16};
    facts = (hdl_model_facts){.n_layers = N_LAYERS,
                              .n_heads = 4,
                              .n_kv_heads = 2,
                              .head_dim = 16,
                              .v_head_dim = 16,
                              .hidden_size = 64,
                              .attn_scale = 0.25f,
                              .norm_eps = 1e-5f,
                              .doc_token = -1,
                              .cross_from = cross_from,
                              .n_groups = 1,
                              .groups = {{.n_layers = N_LAYERS}}};
    snprintf(facts.arch, sizeof facts.arch, "one");
    for (int32_t i = 0; i < N_LAYERS; i++)
        facts.layers[i] = (hdl_layer_facts){.has_kv = true, .kv_source = i};
    snprintf(text, sizeof text, "{\"heddle_plan\": 1, \"name\": \"x\", \"variants\": [{\"decode\": [%s]}]}",
             rules);
    if (hdl_plan_parse(&plan, text, (int64_t)strlen(text), "x") ||
        hdl_schedule_new(&schedule, plan, &facts, &limits))
        fail_msg("%s", hdl_last_error());
    for (int32_t i = 0; i < N_LAYERS; i++)
        if (hdl_lower_summaries(schedule, i) || hdl_lower_attention(schedule, i))
            fail_msg("%s", hdl_last_error());
    hdl_schedule_layout(schedule);
    hdl_plan_free(plan);
    return schedule;
}

static bool layers_meet(const hdl_schedule *schedule, int32_t one, int32_t other)
{
    const int32_t *slots = schedule->slot_of_layer[HDL_ROUTE_DECODE];
    assert_true(slots[one] >= 0 && slots[other] >= 0);
    return hdl_slots_meet(schedule, slots[one], slots[other]);
}

static void test_lists_of_layers_of_their_own_share_one_place(void **state)
{
    (void)state;
    hdl_schedule *schedule = compile("{\"layers\": \"all\", " LIST "}", N_LAYERS);
    for (int32_t layer = 1; layer < N_LAYERS; layer++) assert_true(layers_meet(schedule, 0, layer));
    assert_int_equal(schedule->buffer_bytes[HDL_BUF_LISTS], hdl_slot_bytes(schedule, 0));
    hdl_schedule_free(schedule);
}

static void test_a_list_that_is_still_read_keeps_its_place(void **state)
{
    (void)state;
    hdl_schedule *schedule = compile(
        "{\"layers\": [0], " LIST "}, {\"layers\": [1], " LIST "}, {\"layers\": [2], "
        "\"operator\": \"token_list\", \"share\": 0}, {\"layers\": [3], " LIST "}",
        N_LAYERS);
    assert_false(layers_meet(schedule, 0, 1));
    assert_true(layers_meet(schedule, 0, 3) || layers_meet(schedule, 1, 3));
    assert_int_equal(schedule->buffer_bytes[HDL_BUF_LISTS], 2 * hdl_slot_bytes(schedule, 0));
    hdl_schedule_free(schedule);
}

static void test_candidates_and_their_list_are_needed_at_once(void **state)
{
    (void)state;
    hdl_schedule *schedule = compile(
        "{\"layers\": \"all\", \"operator\": \"token_list\", \"router\": {\"score\": \"key_i4\", "
        "\"top_k\": 16, \"window\": 4, \"candidates\": {\"score\": \"key_i8\", \"top_k\": 64, "
        "\"window\": 4}}}",
        N_LAYERS);
    const int32_t *candidates = schedule->candidates_of_layer[HDL_ROUTE_DECODE],
                  *lists = schedule->slot_of_layer[HDL_ROUTE_DECODE];
    for (int32_t layer = 0; layer < N_LAYERS; layer++)
        assert_false(hdl_slots_meet(schedule, candidates[layer], lists[layer]));
    assert_true(schedule->buffer_bytes[HDL_BUF_LISTS] <= 2 * hdl_slot_bytes(schedule, candidates[0]));
    hdl_schedule_free(schedule);
}

/* Upper layers that are walked once for each tile of rows read lists that were made before the first. */
static void test_steps_that_run_more_than_once_have_a_place_each(void **state)
{
    (void)state;
    hdl_schedule *schedule = compile("{\"layers\": \"all\", " LIST "}", 2);
    assert_false(layers_meet(schedule, 0, 1) || layers_meet(schedule, 1, 2) || layers_meet(schedule, 2, 3));
    hdl_schedule_free(schedule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists_of_layers_of_their_own_share_one_place),
        cmocka_unit_test(test_a_list_that_is_still_read_keeps_its_place),
        cmocka_unit_test(test_candidates_and_their_list_are_needed_at_once),
        cmocka_unit_test(test_steps_that_run_more_than_once_have_a_place_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
