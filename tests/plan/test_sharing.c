/* test_sharing.c - plans whose layers share lists against golden lists and outputs (tests/oracle/sharing.py).
 *
 * The thirty layers of the plan files' variant run one after the other, each over q, k and v of its own: the lists that
 * layers make must be the golden ones, and so must what every head of every layer puts out, which depends on whose
 * list it reads. */
#include <math.h>

#include "plan/layer_run.h"

static json_t *golden;

/* The numbers of sharing.py. */
static uint32_t murmur(uint32_t h)
{
    h = (h ^ h >> 16) * 0x85EBCA6Bu;
    h = (h ^ h >> 13) * 0xC2B2AE35u;
    return h ^ h >> 16;
}

static float element(int64_t layer, int64_t kind, int64_t token, int64_t i)
{
    int64_t n = number(golden, "n_tokens"), dim = number(golden, "head_dim");
    int64_t plane = (number(golden, "seed") * number(golden, "n_layers") + layer) * 4 + kind;
    uint32_t at = (uint32_t)(plane * n * 1024 + token * 1024), h = murmur(at + (uint32_t)i);
    bool is_largest = i % dim == murmur(at + 1000 + (uint32_t)(i / dim)) % (uint32_t)dim;
    int64_t value = is_largest ? 1021 : (int64_t)((h >> 1) % 2001) - 1000;
    return (float)((h & 1 ? value : -value) * (kind == 1 && token % 11 == 3 ? 2 : 1)) / 512;
}

static void fill(const layer_run *run, hdl_buffer buffer, int32_t layer, int64_t kind, int64_t n_heads)
{
    float *to = hdl_schedule_at(run->schedule, buffer);
    int64_t width = n_heads * run->facts.head_dim;
    for (int64_t i = 0; i < run->n_tokens * width; i++) to[i] = element(layer, kind, i / width, i % width);
}

/* A row's lists are 16 digits each, bit j of which stands for token j. */
static void compare(const hdl_tap_row *row, void *user)
{
    layer_run *run = user;
    char layer[16], digits[17] = {0};
    snprintf(layer, sizeof layer, "%d", row->layer);
    const json_t *of_row = json_array_get(json_object_get(run->lists, layer), (size_t)row->n_visible - 1);
    const int32_t *ids = hdl_selection_ids(row->made, row->row, row->list);
    uint64_t made = 0;
    run->n_heard++;
    assert_int_equal(json_string_length(of_row), 16 * (size_t)row->made->n_lists);
    memcpy(digits, json_string_value(of_row) + (ptrdiff_t)16 * row->list, 16);
    for (int32_t i = 0; i < *hdl_selection_count(row->made, row->row, row->list); i++)
        made |= (uint64_t)1 << ids[i];
    if (made != strtoull(digits, NULL, 16))
        fail_msg("%s: layer %d, row %lld, list %d: is %016llx, must be %s", run->name, row->layer,
                 (long long)row->n_visible - 1, row->list, (unsigned long long)made, digits);
}

/* Of each golden row and head the elements of the layer's output, summed with the signs of a hash. */
static double worst_output(const layer_run *run, const json_t *at, int32_t layer)
{
    const float *o = hdl_schedule_at(run->schedule, HDL_BUF_ATTN);
    const json_t *rows = json_object_get(at, "rows");
    int32_t n_heads = run->facts.n_heads, dim = run->facts.head_dim;
    double worst = 0;
    for (size_t r = 0; r < json_array_size(rows); r++) {
        const json_t *want = json_array_get(json_object_get(at, "o"), r);
        const float *row = o + json_integer_value(json_array_get(rows, r)) * n_heads * dim;
        for (int32_t h = 0; h < n_heads; h++, row += dim) {
            double sum = 0;
            for (int32_t d = 0; d < dim; d++) sum += murmur((uint32_t)d + 1) & 1 ? row[d] : -row[d];
            sum -= json_number_value(json_array_get(want, (size_t)(layer * n_heads + h)));
            worst = sum == sum ? HDL_MAX(worst, fabs(sum)) : INFINITY;
        }
    }
    return worst;
}

static void run_case(const json_t *at)
{
    int32_t n_layers = (int32_t)number(golden, "n_layers");
    const char *arch = json_string_value(json_object_get(golden, "arch")), *key;
    layer_run run = {.golden = golden,
                     .facts = facts_of(golden, arch, n_layers),
                     .lists = json_object_get(at, "lists"),
                     .name = json_string_value(json_object_get(at, "plan")),
                     .route = HDL_ROUTE_DECODE};
    json_t *lists;
    int64_t n_made = 0;
    double worst = 0;
    compile_layers(&run, 0, n_layers);
    for (int32_t layer = 0; layer < n_layers; layer++) {
        fill(&run, HDL_BUF_Q, layer, 0, run.facts.n_heads);
        fill(&run, HDL_BUF_K, layer, 1, run.facts.n_kv_heads);
        fill(&run, HDL_BUF_V, layer, 2, run.facts.n_kv_heads);
        run_steps(&run, run.first_step[layer], run.first_step[layer + 1], compare, NULL);
        worst = HDL_MAX(worst, worst_output(&run, at, layer));
        if (!(worst < 1e-4)) fail_msg("%s: layer %d: outputs differ by %g", run.name, layer, worst);
    }
    json_object_foreach((json_t *)(uintptr_t)run.lists, key, lists) for (size_t t = 0;
                                                                         t < json_array_size(lists); t++)
        n_made += (int64_t)json_string_length(json_array_get(lists, t)) / 16;
    printf("%s: %lld lists, outputs within %.2g\n", run.name, (long long)n_made, worst);
    assert_int_equal(run.n_heard, n_made);
    free_layers(&run);
}

static void test_lists_and_outputs_are_the_golden_ones(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(golden, "cases");
    assert_int_equal(json_array_size(cases), 10);
    for (size_t i = 0; i < json_array_size(cases); i++) run_case(json_array_get(cases, i));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lists_and_outputs_are_the_golden_ones)};
    golden = read_golden("sharing.json");
    if (!golden) return 1;
    int code = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return code;
}
