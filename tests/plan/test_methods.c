/* Methods against golden lists (tests/oracle/methods.py): brute force from the papers' formulas on 64 tokens.
 *
 * One attention layer is compiled under the plan file of each method, with its small overrides; the case's keys are
 * appended, its queries laid into the schedule's buffer, and every list that is made must be the golden one; where the
 * case says what rows put out, that too. */
#include <math.h>

#include "plan/layer_run.h"

enum {
    N_LAYERS = 5, /* of which one runs: the first that makes a list */
    N_CASES = 31
}; /* of tests/oracle/methods.py: one that is lost is missed */
static json_t *golden;

static void fill(const hdl_schedule *schedule, hdl_buffer buffer, const char *key)
{
    const json_t *from = json_object_get(golden, key);
    float *to = hdl_schedule_at(schedule, buffer);
    for (size_t i = 0; i < json_array_size(from); i++)
        to[i] = (float)json_real_value(json_array_get(from, i));
}

static void compare(const hdl_tap_row *row, void *user)
{
    layer_run *run = user;
    const json_t *lists = json_array_get(run->lists, (size_t)row->n_visible - 1);
    const json_t *want = json_array_get(lists, (size_t)row->list);
    const int32_t *ids = hdl_selection_ids(row->made, row->row, row->list);
    int64_t n = *hdl_selection_count(row->made, row->row, row->list);
    run->n_heard++;
    assert_int_equal(json_array_size(lists), row->made->n_lists);
    for (size_t i = 0; i < json_array_size(want); i++)
        if ((int64_t)i >= n || json_integer_value(json_array_get(want, i)) != ids[i])
            fail_msg("%s: row %lld, list %d, unit %zu: is %d, must be %lld", run->name,
                     (long long)row->n_visible - 1, row->list, i, (int64_t)i < n ? ids[i] : -1,
                     (long long)json_integer_value(json_array_get(want, i)));
    assert_int_equal(n, json_array_size(want));
}

/* puts_out: a row's number -> [n_heads, head_dim]; NULL: any. */
static void check_outputs(const layer_run *run, const json_t *puts_out)
{
    const float *o = hdl_schedule_at(run->schedule, HDL_BUF_ATTN);
    const char *row;
    json_t *want;
    double worst = 0;
    json_object_foreach((json_t *)(uintptr_t)puts_out, row, want)
    {
        assert_int_equal(json_array_size(want), run->facts.hidden_size);
        for (size_t i = 0; i < json_array_size(want); i++) {
            double is = o[atoll(row) * run->facts.hidden_size + (int64_t)i];
            double off = fabs(is - json_number_value(json_array_get(want, i)));
            if (!(off < 1e-5))
                fail_msg("%s: row %s, element %zu: puts out %g, must %g", run->name, row, i, is,
                         json_number_value(json_array_get(want, i)));
            worst = HDL_MAX(worst, off);
        }
    }
    if (puts_out) printf("  %zu rows' outputs within %.2g\n", json_object_size(puts_out), worst);
}

static void run_case(const json_t *at)
{
    layer_run run = {.golden = golden,
                     .facts = facts_of(golden, "one", N_LAYERS),
                     .lists = json_object_get(at, "lists"),
                     .name = json_string_value(json_object_get(at, "plan"))};
    const char *route = json_string_value(json_object_get(at, "route"));
    int64_t tile = json_integer_value(json_object_get(at, "tile")); /* rows that share a list; 0: none */
    double n_listed[MAX_TOKENS] = {0};
    const json_t *reads = json_object_get(at, "reads"); /* tokens of lists that were read; or NULL */
    run.route = route && !strcmp(route, "prefill") ? HDL_ROUTE_PREFILL : HDL_ROUTE_DECODE;
    compile_layers(&run, -1, 0);
    fill(run.schedule, HDL_BUF_Q, "q");
    fill(run.schedule, HDL_BUF_K, "k");
    fill(run.schedule, HDL_BUF_V, "k");
    run_steps(&run, 0, run.schedule->n_steps, compare, n_listed);
    assert_int_equal(run.n_heard, run.n_tokens / HDL_MAX(tile, 1) *
                                      (int64_t)json_array_size(json_array_get(run.lists, 0)));
    for (size_t t = 0; t < json_array_size(reads); t++)
        if (n_listed[t] != json_number_value(json_array_get(reads, t)))
            fail_msg("%s: row %zu reads %g tokens, must read %g", run.name, t, n_listed[t],
                     json_number_value(json_array_get(reads, t)));
    check_outputs(&run, json_object_get(at, "puts_out"));
    free_layers(&run);
}

static void test_lists_are_the_golden_ones(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(golden, "cases");
    assert_int_equal(json_array_size(cases), N_CASES);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        printf("%s\n", json_string_value(json_object_get(json_array_get(cases, i), "plan")));
        run_case(json_array_get(cases, i));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lists_are_the_golden_ones)};
    golden = read_golden("lists.json");
    if (!golden) return 1;
    int code = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return code;
}
