/* Logits of a small random model of every architecture row against transformers' (tests/golden/tiny:
 * f32 arithmetic there and here; the bound is 1e-3, max-abs), from config.json of both styles, whole
 * and in chunks, and with every implementation forbidden but the reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/env.h"
#include "heddle.h"

enum { N_IDS = 96, N_ROWS = 24, N_VOCAB = 300 };
static const char *const folders[] = {"llama", "llama3-scaled", "llama-sharded", "qwen2",
                                      "qwen3", "gemma3",        "gemma3-f32"};

typedef struct golden {
    heddle_engine *engine;
    int32_t ids[N_IDS];
    float logits[N_ROWS][N_VOCAB];
    double worst;
} golden;

static void read_exact(const char *folder, const char *name, void *out, size_t n_bytes)
{
    char path[512];
    hdl_buf buf = {0};
    snprintf(path, sizeof path, "%s/golden/tiny/%s/%s", HDL_TEST_DATA, folder, name);
    assert_int_equal(hdl_buf_read_file(&buf, path, 1 << 20), HEDDLE_OK);
    assert_int_equal(buf.n, n_bytes);
    memcpy(out, buf.data, n_bytes);
    hdl_buf_deinit(&buf);
}

static void open_golden(golden *g, const char *folder)
{
    char path[512];
    snprintf(path, sizeof path, "%s/golden/tiny/%s", HDL_TEST_DATA, folder);
    read_exact(folder, "ids.i32", g->ids, sizeof g->ids);
    read_exact(folder, "logits.f32", g->logits, sizeof g->logits);
    if (heddle_engine_open(&g->engine, path, NULL)) fail_msg("%s: %s", folder, heddle_last_error());
}

static int compare(int64_t row, const float *logits, void *user)
{
    golden *g = user;
    if (row % 4 != 3) return 0;
    for (int i = 0; i < N_VOCAB; i++) {
        double d = fabs((double)logits[i] - g->logits[row / 4][i]);
        g->worst = !(d <= g->worst) ? d : g->worst; /* a NaN is kept */
    }
    return 0;
}

static double worst_of(golden *g, int32_t chunk_rows)
{
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.chunk_rows = chunk_rows;
    options.context_tokens = 128;
    g->worst = 0;
    if (heddle_session_new(&session, g->engine, NULL, &options)) fail_msg("%s", heddle_last_error());
    assert_int_equal(heddle_session_each_logits(session, g->ids, N_IDS, 0, compare, g), HEDDLE_OK);
    heddle_session_free(session);
    return g->worst;
}

static void check_all(const char *impl)
{
    if (impl) setenv("HEDDLE_IMPL", impl, 1);
    hdl_env_reload();
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        golden g = {0};
        open_golden(&g, folders[i]);
        for (int32_t chunk = 1; chunk <= 128; chunk = chunk * 5 + 2) {
            double worst = worst_of(&g, chunk);
            print_message("%-14s %-8s chunk %3d  max-abs %.2e of 1e-3\n", folders[i], impl ? impl : "best",
                          chunk, worst);
            assert_true(worst <= 1e-3);
        }
        assert_int_equal(heddle_engine_close(g.engine), HEDDLE_OK);
    }
    unsetenv("HEDDLE_IMPL");
    hdl_env_reload();
}

static void test_best(void **state)
{
    (void)state;
    check_all(NULL);
}

static void test_reference(void **state)
{
    (void)state;
    check_all("ref");
}

static void test_generic(void **state)
{
    (void)state;
    check_all("generic");
}

static void test_avx2(void **state)
{
    (void)state;
    check_all("avx2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_best), cmocka_unit_test(test_reference),
                                       cmocka_unit_test(test_generic), cmocka_unit_test(test_avx2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
