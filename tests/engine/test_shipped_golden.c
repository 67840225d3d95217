/* The model that ships, models/warp-21m, against the answers that train/modeling_heddle.py gave in float32
 * (train/golden_shipped.py): every 128th logit of each row and the logarithm of the sum of all exponentials.
 * Matrices are Q8_0 there and here; here activations are rounded to int8 before each of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mapfile.h"
#include "base/sha256.h"
#include "heddle.h"

#define MODEL  HDL_TEST_DATA "/../models/warp-21m"
#define GOLDEN HDL_TEST_DATA "/../train/golden/warp-21m/"

enum { N_TOKENS = 148, N_VOCAB = 8192, STRIDE = 128, N_COLS = N_VOCAB / STRIDE + 1, TOP_K = 32 };

static int32_t tokens[N_TOKENS];
static float want[N_TOKENS][N_COLS], got[N_TOKENS][N_COLS];
static int32_t lists[N_TOKENS][TOP_K], n_listed[N_TOKENS], n_shared[N_TOKENS];

static int take(int64_t row, const float *logits, void *user)
{
    (void)user;
    float top = -INFINITY;
    double sum = 0;
    for (int i = 0; i < N_VOCAB; i++) top = fmaxf(top, logits[i]);
    for (int i = 0; i < N_VOCAB; i++) sum += exp((double)(logits[i] - top));
    for (int c = 0; c < N_COLS - 1; c++) got[row][c] = logits[c * STRIDE];
    got[row][N_COLS - 1] = (float)(log(sum) + (double)top);
    return 0;
}

/* How many of the golden list's tokens a layer's list has. */
static void hear(const heddle_tap_row *row, void *user)
{
    (void)user;
    int32_t n = 0, t = (int32_t)row->position;
    for (int64_t i = 0, j = 0; i < row->n_ids && j < n_listed[t];) {
        n += row->ids[i] == lists[t][j];
        if (row->ids[i] <= lists[t][j])
            i++;
        else
            j++;
    }
    n_shared[t] = n;
}

static void read_text(const char *name, hdl_buf *text)
{
    char path[1024];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    if (hdl_buf_read_file(text, path, 1 << 20)) fail_msg("%s", hdl_last_error());
}

static void read_rows(const char *name)
{
    hdl_buf bytes = {0};
    read_text(name, &bytes);
    assert_int_equal(bytes.n, sizeof want);
    memcpy(want, bytes.data, sizeof want);
    hdl_buf_deinit(&bytes);
}

static void read_all(const char *plan_name)
{
    heddle_engine *engine = NULL;
    heddle_plan *plan = NULL;
    heddle_session *session = NULL;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = N_TOKENS;
    options.kv_type = "f32";
    options.plan_governs_all = 1;
    if (heddle_engine_open(&engine, MODEL, NULL) || heddle_plan_named(&plan, plan_name) ||
        heddle_session_new(&session, engine, plan, &options))
        fail_msg("%s", heddle_last_error());
    heddle_session_set_tap(session, hear, NULL);
    if (heddle_session_each_logits(session, tokens, N_TOKENS, 0, take, NULL))
        fail_msg("%s", heddle_last_error());
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* Rows by their largest difference: the mean and the worst, and of the last column alone. */
static void compare(const char *what, double mean_bound, double worst_bound)
{
    double sum = 0, worst = 0, of_sums = 0;
    for (int t = 0; t < N_TOKENS; t++) {
        double row = 0;
        for (int c = 0; c < N_COLS; c++) row = fmax(row, fabs((double)got[t][c] - (double)want[t][c]));
        assert_false(isnan(row));
        sum += row;
        worst = fmax(worst, row);
        of_sums = fmax(of_sums, fabs((double)got[t][N_COLS - 1] - (double)want[t][N_COLS - 1]));
    }
    print_message("%s: largest difference of a row's logits, mean %.3f, worst %.3f; of the sum, worst %.3f\n",
                  what, sum / N_TOKENS, worst, of_sums);
    assert_true(sum / N_TOKENS <= mean_bound && worst <= worst_bound);
}

static void test_the_golden_is_of_this_model(void **state)
{
    (void)state;
    hdl_buf about = {0};
    hdl_mapfile map;
    char digest[HDL_SHA256_HEX];
    read_text("about.json", &about);
    if (hdl_mapfile_open(&map, MODEL "/model.safetensors")) fail_msg("%s", hdl_last_error());
    hdl_sha256(map.data, map.n_bytes, digest);
    hdl_mapfile_close(&map);
    if (!strstr(about.data, digest))
        fail_msg("model.safetensors has SHA-256 %s: run train/golden_shipped.py, which made %s", digest,
                 about.data);
    hdl_buf_deinit(&about);
}

static void test_dense_reading(void **state)
{
    (void)state;
    read_rows("rows_dense.f32");
    read_all("dense");
    compare("dense", 0.14, 0.45);
}

static void test_list_reading(void **state)
{
    (void)state;
    int n_same = 0, n_all = 0;
    read_rows("rows_list.f32");
    read_all("clsa:top_k=32");
    compare("lists", 0.15, 1);
    for (int t = TOP_K; t < N_TOKENS; t++) {
        n_same += n_shared[t];
        n_all += TOP_K;
    }
    print_message("%d of %d listed tokens are the golden ones\n", n_same, n_all);
    assert_true(n_same >= n_all * 0.95);
}

static int setup(void **state)
{
    (void)state;
    hdl_buf text = {0};
    read_text("tokens.txt", &text);
    char *at = text.data, *end;
    for (int t = 0; t < N_TOKENS; t++, at = end) tokens[t] = (int32_t)strtol(at, &end, 10);
    hdl_buf_deinit(&text);
    read_text("lists.txt", &text);
    at = text.data;
    for (int t = 0; t < N_TOKENS; t++) {
        while (*at != '\n' && n_listed[t] < TOP_K) {
            lists[t][n_listed[t]++] = (int32_t)strtol(at, &end, 10);
            at = end;
        }
        at = strchr(at, '\n') + 1;
    }
    hdl_buf_deinit(&text);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_golden_is_of_this_model),
        cmocka_unit_test(test_dense_reading),
        cmocka_unit_test(test_list_reading),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
