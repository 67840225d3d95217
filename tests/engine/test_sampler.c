/* The sampler: order of its steps, ties, hostile logits, distributions, no allocation. */
#include "engine/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static hdl_sampler *make(const hdl_sampler_options *options, int32_t n_vocab)
{
    hdl_sampler *s = NULL;
    if (hdl_sampler_new(&s, options, n_vocab)) fail_msg("%s", hdl_last_error());
    return s;
}

static int32_t pick(hdl_sampler *s, const float *logits)
{
    int32_t id = -2;
    if (hdl_sampler_pick(s, logits, NULL, &id)) fail_msg("%s", hdl_last_error());
    return id;
}

/* How often each of n ids is drawn in 20,000 draws. */
static void count(const hdl_sampler_options *options, const float *logits, int32_t n, int *counts)
{
    hdl_sampler *s = make(options, n);
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (int i = 0; i < 20000; i++) counts[pick(s, logits)]++;
    hdl_sampler_free(s);
}

static void test_greedy(void **state)
{
    (void)state;
    hdl_sampler_options options = hdl_sampler_options_default();
    hdl_sampler *s = make(&options, 5);
    assert_int_equal(pick(s, (float[]){1, 3, 2, 3, -1}), 1); /* ties to the lowest id */
    assert_int_equal(pick(s, (float[]){NAN, -INFINITY, -7, NAN, -8}), 2);
    assert_int_equal(pick(s, (float[]){1, 3, 2, INFINITY, INFINITY}), 3);
    int32_t id;
    assert_int_equal(hdl_sampler_pick(s, (float[]){NAN, -INFINITY, NAN, NAN, NAN}, NULL, &id),
                     HEDDLE_E_INVALID);
    assert_int_equal(id, -1);
    hdl_sampler_free(s);
}

static void test_mask_and_bias(void **state)
{
    (void)state;
    enum { N = 130 };
    float logits[N] = {[3] = 9, [64] = 8, [129] = 7};
    uint64_t allowed[3] = {0, 1, 2};
    hdl_logit_bias bias[] = {{129, 2}, {5, -INFINITY}};
    hdl_sampler_options options = hdl_sampler_options_default();
    hdl_sampler *s = make(&options, N);
    int32_t id;
    assert_int_equal(hdl_sampler_pick(s, logits, allowed, &id), HEDDLE_OK);
    assert_int_equal(id, 64);
    allowed[1] = allowed[2] = 0;
    assert_int_equal(hdl_sampler_pick(s, logits, allowed, &id), HEDDLE_E_INVALID);
    hdl_sampler_free(s);
    options.bias = bias;
    options.n_bias = 2;
    s = make(&options, N);
    allowed[1] = 1;
    allowed[2] = 2;
    assert_int_equal(hdl_sampler_pick(s, logits, allowed, &id), HEDDLE_OK);
    assert_int_equal(id, 129);
    logits[5] = 100;
    assert_int_equal(pick(s, logits), 3); /* 9 + 0 and 7 + 2 tie: the lower id; 5 is forbidden */
    hdl_sampler_free(s);
}

static void test_repetition_penalty(void **state)
{
    (void)state;
    hdl_sampler_options options = hdl_sampler_options_default();
    options.repeat_penalty = 2;
    options.repeat_window = 2;
    hdl_sampler *s = make(&options, 4);
    float logits[4] = {4, 3, -1, -1.5f};
    hdl_sampler_accept(s, 0);
    hdl_sampler_accept(s, 0); /* counted once: 4 / 2 */
    assert_int_equal(pick(s, logits), 1);
    hdl_sampler_accept(s, 2);
    hdl_sampler_accept(s, 3); /* 0 has left the window */
    assert_int_equal(pick(s, logits), 0);
    float negative[4] = {-9, -9, -1, -1.5f};
    hdl_sampler_accept(s, 2);
    hdl_sampler_accept(s, 1); /* -1 * 2 < -1.5 */
    assert_int_equal(pick(s, negative), 3);
    hdl_sampler_reset(s, 0);
    assert_int_equal(pick(s, negative), 2);
    hdl_sampler_accept(s, -5);
    hdl_sampler_accept(s, 99);
    assert_int_equal(pick(s, negative), 2);
    hdl_sampler_free(s);
}

static void test_distribution(void **state)
{
    (void)state;
    float logits[4] = {logf(0.1f), logf(0.2f), logf(0.3f), logf(0.4f)};
    int counts[4];
    hdl_sampler_options options = hdl_sampler_options_default();
    options.temperature = 1;
    options.seed = 7;
    count(&options, logits, 4, counts);
    for (int i = 0; i < 4; i++) assert_in_range(counts[i], 2000 * (i + 1) - 250, 2000 * (i + 1) + 250);
    options.temperature = 0.5f; /* squares: 1 4 9 16 of 30 */
    count(&options, logits, 4, counts);
    assert_in_range(counts[3], 20000 * 16 / 30 - 300, 20000 * 16 / 30 + 300);
    options.temperature = 1e-6f;
    count(&options, logits, 4, counts);
    assert_int_equal(counts[3], 20000);
    options.temperature = 1e30f;
    count(&options, logits, 4, counts);
    for (int i = 0; i < 4; i++) assert_in_range(counts[i], 4700, 5300);
}

static void test_filters(void **state)
{
    (void)state;
    float logits[6] = {logf(0.05f), logf(0.4f), logf(0.2f), logf(0.2f), logf(0.1f), logf(0.05f)};
    int counts[6];
    hdl_sampler_options options = hdl_sampler_options_default();
    options.temperature = 1;
    options.sample_top_k = 2; /* 2 and 3 tie: the lower id stays */
    count(&options, logits, 6, counts);
    assert_in_range(counts[1], 13333 - 300, 13333 + 300);
    assert_int_equal(counts[1] + counts[2], 20000);
    options.sample_top_k = 0;
    options.top_p = 0.7f; /* 0.4 + 0.2 < 0.7: three ids */
    count(&options, logits, 6, counts);
    assert_int_equal(counts[1] + counts[2] + counts[3], 20000);
    assert_in_range(counts[3], 4700, 5300);
    options.sample_top_k = 3; /* then 0.5 + 0.25 >= 0.7: two */
    count(&options, logits, 6, counts);
    assert_int_equal(counts[1] + counts[2], 20000);
    options = hdl_sampler_options_default();
    options.temperature = 1;
    options.min_p = 0.25f; /* of 0.4: at least 0.1, rounded below by the float logarithms */
    logits[4] = logf(0.11f);
    count(&options, logits, 6, counts);
    assert_int_equal(counts[0] + counts[5], 0);
    assert_true(counts[4] > 1000);
    options.min_p = 1;
    count(&options, logits, 6, counts);
    assert_int_equal(counts[1], 20000);
    options.min_p = 0;
    options.top_p = 1e-9f;
    count(&options, logits, 6, counts);
    assert_int_equal(counts[1], 20000);
    options.top_p = 1;
    options.sample_top_k = 100; /* more than there are */
    count(&options, logits, 6, counts);
    assert_in_range(counts[0], 850, 1150);
}

/* Top-p by heap gives what a full sort gives, on ragged logits. */
static void test_top_p_against_sort(void **state)
{
    (void)state;
    enum { N = 1000 };
    float logits[N];
    int counts[N];
    uint32_t x = 1;
    for (int i = 0; i < N; i++) logits[i] = (float)((x = x * 1664525u + 1013904223u) >> 20) / 512.0f;
    hdl_sampler_options options = hdl_sampler_options_default();
    options.temperature = 0.7f;
    options.top_p = 0.5f;
    count(&options, logits, N, counts);
    double total = 0;
    for (int i = 0; i < N; i++) total += exp(logits[i] / 0.7);
    for (int i = 0; i < N; i++) {
        double before = 0; /* mass of the ids ahead of i */
        for (int k = 0; k < N; k++)
            if (logits[k] > logits[i] || (logits[k] == logits[i] && k < i)) before += exp(logits[k] / 0.7);
        if (before >= 0.5 * total * 1.000001) assert_int_equal(counts[i], 0);
    }
}

static void test_seed(void **state)
{
    (void)state;
    float logits[50];
    for (int i = 0; i < 50; i++) logits[i] = (float)(i % 7);
    hdl_sampler_options options = hdl_sampler_options_default();
    options.temperature = 1.5f;
    options.seed = 42;
    hdl_sampler *a = make(&options, 50), *b = make(&options, 50);
    options.seed = 43;
    hdl_sampler *c = make(&options, 50);
    int32_t first[20];
    int n_equal = 0;
    for (int i = 0; i < 20; i++) {
        first[i] = pick(a, logits);
        assert_int_equal(first[i], pick(b, logits));
        n_equal += first[i] == pick(c, logits);
    }
    assert_true(n_equal < 15);
    hdl_sampler_reset(a, 42);
    for (int i = 0; i < 20; i++) assert_int_equal(first[i], pick(a, logits));
    /* these very ids, on every machine */
    assert_memory_equal(
        first, ((int32_t[]){6, 20, 34, 47, 48, 40, 37, 41, 40, 31, 34, 16, 41, 18, 34, 46, 33, 41, 34, 34}),
        sizeof first);
    hdl_sampler_free(a);
    hdl_sampler_free(b);
    hdl_sampler_free(c);
}

static void test_refusals(void **state)
{
    (void)state;
    hdl_logit_bias far = {10, 1}, nan_bias = {1, NAN};
    hdl_sampler_options ok = hdl_sampler_options_default(), bad[12];
    for (int i = 0; i < 12; i++) bad[i] = ok;
    bad[0].temperature = -1;
    bad[1].temperature = NAN;
    bad[2].sample_top_k = -1;
    bad[3].top_p = 0;
    bad[4].top_p = 1.5f;
    bad[5].min_p = -0.1f;
    bad[6].min_p = NAN;
    bad[7].repeat_penalty = 0;
    bad[8].repeat_window = -1;
    bad[9].bias = &far;
    bad[9].n_bias = 1;
    bad[10].bias = &nan_bias;
    bad[10].n_bias = 1;
    bad[11].temperature = INFINITY;
    for (int i = 0; i < 12; i++) {
        hdl_sampler *s = (hdl_sampler *)1;
        hdl_clear_error();
        assert_int_equal(hdl_sampler_new(&s, &bad[i], 10), HEDDLE_E_INVALID);
        assert_null(s);
        assert_true(strlen(hdl_last_error()) > 0);
    }
    hdl_sampler *s = NULL;
    assert_int_equal(hdl_sampler_new(&s, &ok, 0), HEDDLE_E_INVALID);
    hdl_sampler_free(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    hdl_logit_bias bias[2] = {{0, 1}, {1, 1}};
    hdl_sampler_options options = hdl_sampler_options_default();
    options.temperature = 1;
    options.top_p = 0.9f;
    options.min_p = 0.01f;
    options.sample_top_k = 20;
    options.repeat_penalty = 1.1f;
    options.repeat_window = 8;
    options.bias = bias;
    options.n_bias = 2;
    int64_t live = hdl_mem_live_bytes();
    hdl_sampler *s = NULL;
    for (int64_t at = 1; !s; at++) {
        hdl_mem_fail_at(at);
        heddle_status status = hdl_sampler_new(&s, &options, 40);
        hdl_mem_fail_at(0);
        if (status) {
            assert_int_equal(status, HEDDLE_E_NOMEM);
            assert_int_equal(hdl_mem_live_bytes(), live);
        }
    }
    float logits[40] = {0};
    int64_t n_allocs = hdl_mem_n_allocs();
    for (int i = 0; i < 1000; i++) hdl_sampler_accept(s, pick(s, logits));
    assert_int_equal(hdl_mem_n_allocs(), n_allocs);
    hdl_sampler_free(s);
    assert_int_equal(hdl_mem_live_bytes(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_mask_and_bias),
        cmocka_unit_test(test_repetition_penalty),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_top_p_against_sort),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
