/* The forward pass against llama.cpp's on the two demo models (tests/golden/llama, which says how the
 * golden files were made): logits at chosen positions, and 64 greedy tokens by teacher forcing.
 *
 *   F32 files (tests/oracle/dequantize.py)   logits within 0.05; a greedy token may differ only where
 *                                            llama.cpp's own lead is under 0.1
 *   quantised files (scripts/get-model)      arg-max equal at 9 of 10 steps or more, and the median
 *                                            difference of a logit at most 0.7 (llama.cpp's own: 0.5-0.7)
 *
 * Files are looked for in $HEDDLE_TEST_MODELS, else in the cache that get-model fills; with none of
 * them this is a counted skip. The 4,000-token case runs with the argument "all".
 *
 *   test_llama_golden [all | CASE FILE]    one case of one file: tests/proofs/llama_golden.py */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "heddle.h"

enum { N_GREEDY = 64, MAX_DIFFS = 1 << 16 };

typedef struct model_file {
    const char *golden, *file;
    bool is_f32;
} model_file;
static const model_file files[] = {{"smollm2", "smollm2-f32.gguf", true},
                                   {"gemma3", "gemma3-f32.gguf", true},
                                   {"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", false},
                                   {"gemma3", "gemma-3-270m-q4_k_m.gguf", false}};
static const char *const cases[] = {"short", "story", "code", "table", "mixed", "prose", "chat", "long"};

typedef struct check {
    const uint8_t *rows; /* the golden file's rows */
    int32_t n_rows, n_top, stride, n_strided;
    const int32_t *greedy;
    const float *lead;
    int64_t n_prompt;
    int32_t n_vocab, next_row;
    double worst;
    float diffs[MAX_DIFFS];
    int64_t n_diffs;
    int n_differ, n_unexcused;
} check;
static check now;

static bool read_file(hdl_buf *buf, const char *golden, const char *name, const char *what)
{
    char path[512];
    snprintf(path, sizeof path, "%s/golden/llama/%s.%s.%s", HDL_TEST_DATA, golden, name, what);
    return access(path, R_OK) == 0 && hdl_buf_read_file(buf, path, 1 << 24) == HEDDLE_OK;
}

static void note(float ours, float golden)
{
    double d = fabs((double)ours - golden);
    now.worst = !(d <= now.worst) ? d : now.worst;
    if (now.n_diffs < MAX_DIFFS) now.diffs[now.n_diffs++] = (float)d;
}

static int on_logits(int64_t row, const float *logits, void *user)
{
    (void)user;
    int64_t row_bytes = 4 + 8L * now.n_top + 4L * now.n_strided;
    while (now.next_row < now.n_rows) {
        const int32_t *at = (const int32_t *)(now.rows + now.next_row * row_bytes);
        if (at[0] != row) break;
        const float *top = (const float *)(at + 1 + now.n_top), *strided = top + now.n_top;
        for (int32_t i = 0; i < now.n_top; i++) note(logits[at[1 + i]], top[i]);
        for (int32_t i = 0; i < now.n_strided; i++) note(logits[i * now.stride], strided[i]);
        now.next_row++;
    }
    int64_t step = row - (now.n_prompt - 1);
    if (step < 0 || step >= N_GREEDY) return 0;
    int32_t best = 0;
    for (int32_t i = 1; i < now.n_vocab; i++) best = logits[i] > logits[best] ? i : best;
    if (best == now.greedy[step]) return 0;
    now.n_differ++;
    now.n_unexcused += now.lead[step] >= 0.1f;
    return 0;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void run_case(heddle_engine *engine, const model_file *file, const char *name)
{
    hdl_buf prompt = {0}, greedy = {0}, lead = {0}, rows = {0}, text = {0};
    if (!read_file(&prompt, file->golden, name, "prompt.i32")) return;
    assert_true(read_file(&greedy, file->golden, name, "greedy.i32") &&
                read_file(&lead, file->golden, name, "lead.f32") &&
                read_file(&rows, file->golden, name, "logits"));
    const int32_t *head = (const int32_t *)rows.data;
    heddle_model_info info = {.struct_size = sizeof info};
    heddle_engine_model_info(engine, &info);
    now = (check){.rows = (const uint8_t *)(head + 4),
                  .n_rows = head[0],
                  .n_top = head[1],
                  .stride = head[2],
                  .n_strided = head[3],
                  .greedy = (const int32_t *)greedy.data,
                  .lead = (const float *)lead.data,
                  .n_prompt = prompt.n / 4,
                  .n_vocab = info.n_vocab};
    hdl_buf_add(&text, prompt.data, prompt.n);
    hdl_buf_add(&text, greedy.data, greedy.n - 4);
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = text.n / 4;
    options.kv_type = "f32";
    if (heddle_session_new(&session, engine, NULL, &options)) fail_msg("%s", heddle_last_error());
    const int32_t *first = (const int32_t *)now.rows;
    assert_int_equal(
        heddle_session_each_logits(session, (int32_t *)text.data, text.n / 4, 0, on_logits, NULL), HEDDLE_OK);
    assert_true(first[0] >= 0 && now.next_row == now.n_rows);
    qsort(now.diffs, (size_t)now.n_diffs, sizeof *now.diffs, by_size);
    double median = now.diffs[now.n_diffs / 2];
    print_message(
        "%-34s %-6s max %.4f median %.4f of %lld logits; %d of %d greedy tokens differ, %d of them led by 0.1\n",
        file->file, name, now.worst, median, (long long)now.n_diffs, now.n_differ, N_GREEDY, now.n_unexcused);
    if (file->is_f32) {
        assert_true(now.worst <= 0.05);
        assert_int_equal(now.n_unexcused, 0);
    } else {
        assert_true(median <= 0.7);
        assert_true(now.n_differ <= N_GREEDY / 10);
    }
    heddle_session_free(session);
    hdl_buf_deinit(&prompt);
    hdl_buf_deinit(&greedy);
    hdl_buf_deinit(&lead);
    hdl_buf_deinit(&rows);
    hdl_buf_deinit(&text);
}

static bool is_fast, is_met;
static const char *only_case, *only_file; /* NULL = all */

static bool is_wanted(const char *name)
{
    if (only_case) return !strcmp(name, only_case);
    return !is_fast || strcmp(name, "long");
}

static void test_files(void **state)
{
    (void)state;
    const char *given = getenv("HEDDLE_TEST_MODELS"), *cache = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char path[600];
        heddle_engine *engine;
        if (given)
            snprintf(path, sizeof path, "%s/%s", given, files[f].file);
        else
            snprintf(path, sizeof path, "%s%s/heddle/%s", cache ? cache : home, cache ? "" : "/.cache",
                     files[f].file);
        if (access(path, R_OK) || (only_file && strcmp(files[f].file, only_file))) continue;
        is_met = true;
        if (heddle_engine_open(&engine, path, NULL)) fail_msg("%s", heddle_last_error());
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            if (is_wanted(cases[c])) run_case(engine, &files[f], cases[c]);
        heddle_engine_close(engine);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_files)};
    is_fast = argc != 2 || strcmp(argv[1], "all");
    if (argc == 3) {
        only_case = argv[1];
        only_file = argv[2];
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (!failed && !is_met) {
        printf("SKIP: no model file; scripts/get-model fetches them\n");
        return 77;
    }
    return failed;
}
