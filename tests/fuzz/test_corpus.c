/* test_corpus.c - fuzz targets over their committed corpus, without a fuzzer. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"

#define LLVMFuzzerTestOneInput fuzz_config
#include "../../fuzz/fuzz_config.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_gguf
#include "../../fuzz/fuzz_gguf.c"
#undef LLVMFuzzerTestOneInput
int fuzz_safetensors(const uint8_t *data, size_t size);
#define LLVMFuzzerTestOneInput fuzz_safetensors
#include "../../fuzz/fuzz_safetensors.c"
#undef LLVMFuzzerTestOneInput
int fuzz_plan(const uint8_t *data, size_t size);
#define LLVMFuzzerTestOneInput fuzz_plan
#include "../../fuzz/fuzz_plan.c"

#undef LLVMFuzzerTestOneInput
int fuzz_session(const uint8_t *data, size_t size), fuzz_lists(const uint8_t *data, size_t size);
int fuzz_docfile(const uint8_t *data, size_t size);
#define LLVMFuzzerTestOneInput fuzz_session
#include "../../fuzz/fuzz_session.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_lists
#include "../../fuzz/fuzz_lists.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_docfile
#include "../../fuzz/fuzz_docfile.c"

/* Every file of fuzz/corpus/NAME; each must leave no memory behind. */
static void replay(const char *name, int (*target)(const uint8_t *data, size_t size))
{
    char folder[1024], path[2048];
    int n = 0;
    snprintf(folder, sizeof folder, HDL_TEST_DATA "/../fuzz/corpus/%s", name);
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        hdl_buf file = {0};
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        assert_int_equal(hdl_buf_read_file(&file, path, 1 << 24), HEDDLE_OK);
        int64_t live = hdl_mem_live_bytes();
        target((const uint8_t *)(file.data ? file.data : ""), (size_t)file.n);
        if (hdl_mem_live_bytes() != live) fail_msg("%s: leaves memory behind", path);
        hdl_buf_deinit(&file);
        n++;
    }
    closedir(dir);
    assert_true(n > 0);
}

static void test_gguf(void **state)
{
    (void)state;
    replay("gguf", fuzz_gguf);
}

static void test_safetensors(void **state)
{
    (void)state;
    replay("safetensors", fuzz_safetensors);
}

static void test_plan(void **state)
{
    (void)state;
    replay("plan", fuzz_plan);
}

/* The seeds are whole plans: a feature whose seed is refused would be fuzzed no further than its refusal. */
static int is_taken(const uint8_t *data, size_t size)
{
    hdl_plan *plan;
    if (hdl_plan_parse(&plan, (const char *)data, (int64_t)size, "seed") || !try_plan(plan))
        fail_msg("%.*s: %s", (int)size, (const char *)data, hdl_last_error());
    hdl_plan_free(plan);
    return 0;
}

static void test_seeds_of_plans_are_plans(void **state)
{
    (void)state;
    replay("plan", is_taken);
}

static void test_config(void **state)
{
    (void)state;
    replay("config", fuzz_config);
}

static void test_session(void **state)
{
    (void)state;
    fuzz_session((const uint8_t *)"nothing.", 8); /* opens the model */
    replay("session", fuzz_session);
}

static void test_lists(void **state)
{
    (void)state;
    fuzz_lists((const uint8_t *)"nothing.", 8);
    replay("lists", fuzz_lists);
}

static void test_docfile(void **state)
{
    (void)state;
    replay("docfile", fuzz_docfile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),    cmocka_unit_test(test_safetensors),
        cmocka_unit_test(test_config),  cmocka_unit_test(test_plan),
        cmocka_unit_test(test_session), cmocka_unit_test(test_lists),
        cmocka_unit_test(test_docfile), cmocka_unit_test(test_seeds_of_plans_are_plans),
    };
    return cmocka_run_group_tests_name("corpus", tests, NULL, NULL);
}
