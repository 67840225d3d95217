/* Methods against golden lists (tests/oracle/methods.py): brute force from the papers' formulas on 64 tokens.
 *
 * One attention layer is compiled under the plan file of each method, with its small overrides; the case's keys are
 * appended, its queries laid into the schedule's buffer, and every list that is made must be the golden one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/buf.h"
#include "base/json.h"
#include "plan/schedule.h"

enum { N_LAYERS = 4 }; /* of which one runs: the first that makes a list */
static json_t *golden;

static int64_t number(const char *key)
{
    return json_integer_value(json_object_get(golden, key));
}

static hdl_model_facts one_layer(void)
{
    hdl_model_facts facts = {.n_layers = N_LAYERS, .norm_eps = 1e-5f};
    snprintf(facts.arch, sizeof facts.arch, "one");
    facts.n_heads = (int32_t)number("n_heads");
    facts.n_kv_heads = (int32_t)number("n_kv_heads");
    facts.head_dim = facts.v_head_dim = (int32_t)number("head_dim");
    facts.hidden_size = facts.n_heads * facts.head_dim;
    facts.attn_scale = (float)json_real_value(json_object_get(golden, "scale"));
    facts.doc_token = -1;
    facts.cross_from = N_LAYERS;
    for (int32_t i = 0; i < N_LAYERS; i++)
        facts.layers[i] = (hdl_layer_facts){.has_kv = true, .kv_source = i};
    facts.n_groups = 1;
    facts.groups[0] = (hdl_cache_group_facts){.n_layers = N_LAYERS};
    return facts;
}

typedef struct layer_run { /* one attention layer over the case's tokens */
    hdl_model_facts facts;
    hdl_plan *plan;
    hdl_schedule *schedule;
    hdl_kv_store *store;
    hdl_kv_seq *kv;
    const json_t *lists; /* [rows][lists][ids] */
    const char *name;
    hdl_route route;
    int64_t n_heard;
} layer_run;

static void compile_layer(layer_run *run, const char *plan)
{
    hdl_kv_group_spec spec = {.n_layers = N_LAYERS,
                              .n_kv_heads = run->facts.n_kv_heads,
                              .head_dim = run->facts.head_dim,
                              .v_head_dim = run->facts.v_head_dim,
                              .dtype = HDL_F16,
                              .page_shift = 5};
    int64_t n = number("n_tokens"), n_pages = 8, rows = n * 4;
    hdl_schedule_limits limits = {.max_rows = n,
                                  .max_list_rows = n,
                                  .max_context = n,
                                  .max_logit_rows = 1,
                                  .max_seqs = 1,
                                  .n_threads = 2,
                                  .kv_dtype = HDL_F16};
    char path[512]; /* a plan whose numbers no override sets stands beside the lists */
    snprintf(path, sizeof path, "%s/golden/methods/%s", HDL_TEST_DATA, plan);
    if (hdl_plan_named(&run->plan, strstr(plan, ".json") ? path : plan) ||
        hdl_schedule_new(&run->schedule, run->plan, &run->facts, &limits))
        fail_msg("%s", hdl_last_error());
    int32_t layer = 0;
    while (!run->schedule->routes[run->route].layers[layer].has_router) layer++;
    hdl_step append = {.op = HDL_OP_APPEND, .layer_in_group = layer, .in = HDL_BUF_K, .in2 = HDL_BUF_V};
    append.u.append = (hdl_append_args){.n_kv_heads = spec.n_kv_heads,
                                        .head_dim = spec.head_dim,
                                        .v_head_dim = spec.v_head_dim,
                                        .k_stride = (int64_t)spec.n_kv_heads * spec.head_dim,
                                        .v_stride = (int64_t)spec.n_kv_heads * spec.v_head_dim,
                                        .kv = {.dtype = HDL_F16}};
    if (hdl_schedule_add(run->schedule, &append) || hdl_lower_summaries(run->schedule, layer) ||
        hdl_lower_attention(run->schedule, layer))
        fail_msg("%s: %s", plan, hdl_last_error());
    run->schedule->n_lower_steps = run->schedule->n_steps;
    hdl_schedule_book(run->schedule, HDL_BUF_Q, rows * run->facts.hidden_size);
    hdl_schedule_book(run->schedule, HDL_BUF_ATTN, rows * run->facts.hidden_size);
    hdl_schedule_book(run->schedule, HDL_BUF_K, rows * append.u.append.k_stride);
    hdl_schedule_book(run->schedule, HDL_BUF_V, rows * append.u.append.v_stride);
    hdl_schedule_book(run->schedule, HDL_BUF_COS_SIN, 64);
    hdl_schedule_layout(run->schedule);
    if (hdl_schedule_bind(run->schedule) || hdl_schedule_planes(run->schedule, &spec) ||
        hdl_kv_store_new(&run->store, &spec, 1, &n_pages) || hdl_kv_seq_new(&run->kv, run->store, n))
        fail_msg("%s: %s", plan, hdl_last_error());
}

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

static void run_case(const json_t *at)
{
    layer_run run = {.facts = one_layer(),
                     .lists = json_object_get(at, "lists"),
                     .name = json_string_value(json_object_get(at, "plan"))};
    enum { MAX_TOKENS = 64 };
    const char *route = json_string_value(json_object_get(at, "route"));
    int64_t tile = json_integer_value(json_object_get(at, "tile")); /* rows that share a list; 0: none */
    int64_t n = number("n_tokens"), n_visible[MAX_TOKENS], doc_start[MAX_TOKENS] = {0};
    double n_listed[MAX_TOKENS] = {0};
    const json_t *reads = json_object_get(at, "reads"); /* tokens of lists that were read; or NULL */
    run.route = route && !strcmp(route, "prefill") ? HDL_ROUTE_PREFILL : HDL_ROUTE_DECODE;
    compile_layer(&run, run.name);
    fill(run.schedule, HDL_BUF_Q, "q");
    fill(run.schedule, HDL_BUF_K, "k");
    fill(run.schedule, HDL_BUF_V, "k");
    for (int64_t t = 0; t < n; t++) n_visible[t] = t + 1;
    hdl_exec_seq seq = {.kv = run.kv, .q_len = n, .kv_len = n, .route = run.route};
    hdl_attend_seq attend[2 * MAX_TOKENS];
    hdl_exec_batch batch = {.n_seqs = 1,
                            .n_rows = n,
                            .seqs = &seq,
                            .attend = attend,
                            .n_visible = n_visible,
                            .doc_start = doc_start,
                            .n_listed = n_listed,
                            .tap = {compare, &run}};
    assert_int_equal(hdl_kv_seq_reserve(run.kv, n), HEDDLE_OK);
    hdl_exec_lower(run.schedule, &batch);
    assert_int_equal(run.n_heard,
                     n / HDL_MAX(tile, 1) * (int64_t)json_array_size(json_array_get(run.lists, 0)));
    for (size_t t = 0; t < json_array_size(reads); t++)
        if (n_listed[t] != json_number_value(json_array_get(reads, t)))
            fail_msg("%s: row %zu reads %g tokens, must read %g", run.name, t, n_listed[t],
                     json_number_value(json_array_get(reads, t)));
    hdl_kv_seq_free(run.kv);
    hdl_kv_store_unref(run.store);
    hdl_schedule_free(run.schedule);
    hdl_plan_free(run.plan);
}

static void test_lists_are_the_golden_ones(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(golden, "cases");
    assert_true(json_array_size(cases) >= 10);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        printf("%s\n", json_string_value(json_object_get(json_array_get(cases, i), "plan")));
        run_case(json_array_get(cases, i));
    }
}

int main(void)
{
    hdl_buf text = {0};
    if (hdl_buf_read_file(&text, HDL_TEST_DATA "/golden/methods/lists.json", 1 << 20) ||
        hdl_json_parse(&golden, text.data, text.n, "lists.json")) {
        printf("%s\n", hdl_last_error());
        return 1;
    }
    hdl_buf_deinit(&text);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lists_are_the_golden_ones)};
    int code = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return code;
}
