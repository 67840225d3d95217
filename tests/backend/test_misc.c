/* test_misc.c - EMBED, NORM, ROPE and GLU of every instruction set against the reference: ragged
 * widths, strides wider than rows, in place, threads, NaN, and the error bounds of exp. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cases_linear.h"

enum { N_ROWS = 21 };
static const int64_t widths[] = {1, 3, 16, 33, 64, 130, 576, 640, 2050};
static const float untouched = 12345.0f;

static float *noise(int64_t n, uint64_t seed)
{
    float *x = malloc((size_t)n * 4);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = 3 * linear_noise(&seed);
    return x;
}

static float *copy_of(const float *x, int64_t n)
{
    float *y = malloc((size_t)n * 4);
    assert_non_null(y);
    memcpy(y, x, (size_t)n * 4);
    return y;
}

/* |got - want| <= relative |want| + absolute, everywhere; NaN only where NaN. */
static void assert_near(const char *name, const float *got, const float *want, int64_t n, double relative,
                        double absolute)
{
    for (int64_t i = 0; i < n; i++) {
        if (isnan(want[i]) && isnan(got[i])) continue;
        double error = fabs((double)got[i] - want[i]);
        if (!(error <= relative * fabs((double)want[i]) + absolute))
            fail_msg("%s: element %lld is %.9g, not %.9g", name, (long long)i, (double)got[i],
                     (double)want[i]);
    }
}

/* Calls check(impl, reference) for every implementation that runs here. */
static void for_each(hdl_op op, void (*check)(const hdl_impl *impl, const hdl_impl *reference))
{
    const hdl_impl *const *list = hdl_cpu_impls(op), *const *last = list;
    while (last[1]) last++;
    for (; list < last; list++)
        if ((*list)->isa <= hdl_cpu_isa()) check(*list, *last);
}

static void check_norm(const hdl_impl *impl, const hdl_impl *reference)
{
    for (int64_t w = 0; w < HDL_COUNT(widths); w++) {
        const int64_t n = widths[w], stride = n + 3, size = N_ROWS * stride;
        float *x = noise(size, 1), *weight = noise(n, 2), *residual = noise(size, 3);
        for (int mode = 0; mode < 3; mode++) { /* apart, in place of x, in place of the residual */
            float *a = copy_of(mode == 1 ? x : residual, size), *b = copy_of(a, size);
            hdl_norm_args args = {N_ROWS,
                                  n,
                                  mode == 1 ? a : x,
                                  stride,
                                  weight,
                                  mode == 1 ? 1.0f : 0,
                                  1e-5f,
                                  mode == 2 ? a : NULL,
                                  a,
                                  stride};
            impl->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
            args.out = b;
            if (mode == 1) args.x = b;
            if (mode == 2) args.residual = b;
            reference->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
            assert_near(impl->name, a, b, size, 1e-6, 3e-6);
            free(a);
            free(b);
        }
        free(x);
        free(weight);
        free(residual);
    }
}

static void check_rope(const hdl_impl *impl, const hdl_impl *reference)
{
    for (int c = 0; c < 8; c++) {
        const int32_t head_dim = c & 1 ? 96 : 64, dim = c & 2 ? 48 : head_dim, n_heads = 3;
        const int64_t stride = n_heads * head_dim + 5, size = N_ROWS * stride;
        float *cos_sin = noise(N_ROWS * dim, 4), *a = noise(size, 5), *b = copy_of(a, size);
        hdl_rope_args args = {N_ROWS, n_heads, head_dim, dim, (c & 4) != 0, cos_sin, a, stride};
        impl->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
        args.x = b;
        reference->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        assert_near(impl->name, a, b, size, 1e-6, 1e-5);
        free(cos_sin);
        free(a);
        free(b);
    }
}

static void check_glu(const hdl_impl *impl, const hdl_impl *reference)
{
    for (int64_t w = 0; w < HDL_COUNT(widths); w++) {
        const int64_t n = widths[w], stride = n + 1, size = N_ROWS * stride;
        for (int is_gelu = 0; is_gelu < 2; is_gelu++) {
            float *up = noise(size, 6), *a = noise(size, 7);
            a[0] = NAN;
            if (n > 2) a[1] = 0, a[2] = -60;
            float *b = copy_of(a, size);
            for (int64_t r = 0; r < N_ROWS; r++) a[r * stride + n] = b[r * stride + n] = untouched;
            hdl_glu_args args = {N_ROWS, n, a, up, stride, is_gelu != 0};
            impl->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
            args.gate = b;
            reference->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
            assert_near(impl->name, a, b, size, 1e-6, 1e-6);
            free(up);
            free(a);
            free(b);
        }
    }
}

/* SiLU over its whole range, relative: gate = x, up = 1. */
static void check_silu_bound(const hdl_impl *impl, const hdl_impl *reference)
{
    enum { N = 40000 };
    float *a = malloc(N * 4), *up = malloc(N * 4);
    assert_true(a && up);
    for (int i = 0; i < N; i++) a[i] = (float)i * 0.00425f - 85, up[i] = 1;
    float *b = copy_of(a, N);
    hdl_glu_args args = {1, N, a, up, N, false};
    impl->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
    args.gate = b;
    reference->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
    assert_near(impl->name, a, b, N, 4e-7, 1e-44);
    free(a);
    free(b);
    free(up);
}

static void check_embed(const hdl_impl *impl, const hdl_impl *reference)
{
    static const int32_t ids[N_ROWS] = {0, 9, 3, 3, 1};
    for (int64_t d = 0; d < HDL_COUNT(linear_dtypes); d++) {
        hdl_tensor table = linear_weight(linear_dtypes[d], 10, 512, 8);
        float *a = noise(N_ROWS * 512, 9), *b = noise(N_ROWS * 512, 10);
        hdl_embed_args args = {N_ROWS, ids, table, 1.5f, a};
        impl->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
        args.out = b;
        reference->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        assert_memory_equal(a, b, N_ROWS * 512 * 4);
        free((void *)table.data);
        free(a);
        free(b);
    }
}

static void test_norm(void **state)
{
    (void)state;
    for_each(HDL_OP_NORM, check_norm);
}
static void test_rope(void **state)
{
    (void)state;
    for_each(HDL_OP_ROPE, check_rope);
}
static void test_glu(void **state)
{
    (void)state;
    for_each(HDL_OP_GLU, check_glu);
}
static void test_silu_bound(void **state)
{
    (void)state;
    for_each(HDL_OP_GLU, check_silu_bound);
}
static void test_embed(void **state)
{
    (void)state;
    for_each(HDL_OP_EMBED, check_embed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),       cmocka_unit_test(test_rope),  cmocka_unit_test(test_glu),
        cmocka_unit_test(test_silu_bound), cmocka_unit_test(test_embed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
