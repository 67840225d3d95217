/* test_choose.c - the lists of the CPU and what HEDDLE_IMPL does to them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cases_linear.h"
#include "base/env.h"

static const hdl_linear_args wide = {
    .n_rows = 1, .n_in = 256, .n_parts = 1, .part = {{.w = {NULL, HDL_Q8_0, 64, 256, 272}}}};
static const hdl_linear_args narrow = {
    .n_rows = 1, .n_in = 256, .n_parts = 1, .part = {{.w = {NULL, HDL_Q8_0, 3, 256, 272}}}};

static const hdl_impl *choose_with(const char *setting, const hdl_linear_args *args, hdl_buf *why)
{
    if (setting)
        setenv("HEDDLE_IMPL", setting, 1);
    else
        unsetenv("HEDDLE_IMPL");
    hdl_env_reload();
    return hdl_choose(HDL_OP_LINEAR, args, why);
}

static int restore(void **state)
{
    (void)state;
    unsetenv("HEDDLE_IMPL");
    hdl_env_reload();
    return 0;
}

static void test_every_op_ends_with_the_reference(void **state)
{
    (void)state;
    for (int op = 0; op < HDL_N_OPS; op++) {
        const hdl_impl *const *list = hdl_cpu_impls((hdl_op)op), *last = NULL;
        for (; *list; list++) {
            assert_int_equal((*list)->op, op);
            if (last) assert_true((*list)->isa <= last->isa);
            last = *list;
        }
        if (!last) continue; /* an op that no file of this build implements */
        assert_int_equal(last->isa, HDL_ISA_REF);
        assert_null(last->why_not);
    }
}

static void test_ceilings(void **state)
{
    (void)state;
    assert_string_equal(choose_with("ref", &wide, NULL)->name, "linear_ref");
    assert_string_equal(choose_with("generic", &wide, NULL)->name, "linear_generic");
    assert_int_equal(hdl_cpu_isa(), HDL_ISA_GENERIC);
    assert_true(choose_with("avx2", &wide, NULL)->isa <= HDL_ISA_AVX2);
    choose_with(NULL, &wide, NULL);
    assert_true(hdl_cpu_isa() >= HDL_ISA_GENERIC);
}

static void test_forbidden_and_preferred(void **state)
{
    (void)state;
    hdl_buf why = {0};
    assert_string_equal(choose_with("-linear_avx512,-linear_avx2", &wide, &why)->name, "linear_generic");
    if (strstr(why.data ? why.data : "", "linear_avx512")) assert_non_null(strstr(why.data, "forbids"));
    assert_string_equal(choose_with("linear_generic", &wide, NULL)->name, "linear_generic");
    assert_string_equal(choose_with("linear_ref", &wide, NULL)->name, "linear_ref");
    assert_string_equal(choose_with("generic,-linear_generic", &wide, NULL)->name, "linear_ref");
    hdl_clear_error();
    assert_null(choose_with("ref,-linear_ref", &wide, NULL));
    assert_non_null(strstr(hdl_last_error(), "linear"));
    hdl_buf_deinit(&why);
}

static void test_refusals_are_spoken(void **state)
{
    (void)state;
    hdl_buf why = {0};
    const hdl_impl *impl = choose_with(NULL, &narrow, &why);
    assert_string_equal(impl->name, "linear_generic");
    if (hdl_cpu_isa() >= HDL_ISA_AVX2) assert_non_null(strstr(why.data, "fewer outputs"));
    hdl_buf_deinit(&why);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_every_op_ends_with_the_reference, restore),
        cmocka_unit_test_teardown(test_ceilings, restore),
        cmocka_unit_test_teardown(test_forbidden_and_preferred, restore),
        cmocka_unit_test_teardown(test_refusals_are_spoken, restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
