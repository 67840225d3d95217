/* test_quant.c - conversions and block formats against values computed elsewhere. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "tensor/quant.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* From the definition, in double: 0.m * 2^-14 or 1.m * 2^(e - 15). */
static double f16_value(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h >> 15 ? -magnitude : magnitude;
}

static void test_f16_decodes_every_value(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = hdl_f16_to_f32((uint16_t)h);
        bool is_special = (h >> 10 & 31) == 31;
        if (is_special && (h & 1023)) assert_true(isnan(f));
        if (is_special && !(h & 1023)) assert_true(isinf(f) && !!signbit(f) == !!(h >> 15));
        if (!is_special) assert_true((double)f == f16_value((uint16_t)h) && !!signbit(f) == !!(h >> 15));
    }
}

static void test_f16_encodes_to_nearest_even(void **state)
{
    (void)state;
    /* every value gives itself; between two neighbours the halfway point goes to the even one */
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = f16_value((uint16_t)h);
        double high = h == 0x7bff ? 65536 : f16_value((uint16_t)(h + 1)); /* past the largest: inf */
        float half = (float)((low + high) / 2);
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        assert_int_equal(hdl_f32_to_f16((float)low), h);
        assert_int_equal(hdl_f32_to_f16(half), even);
        assert_int_equal(hdl_f32_to_f16(nextafterf(half, 0)), h);
        assert_int_equal(hdl_f32_to_f16(nextafterf(half, INFINITY)), h + 1);
        assert_int_equal(hdl_f32_to_f16(-half), even | 0x8000);
    }
    assert_int_equal(hdl_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(hdl_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(hdl_f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(hdl_f32_to_f16(float_of(1)), 0);
    assert_true(isnan(hdl_f16_to_f32(hdl_f32_to_f16(NAN))));
    assert_true(isnan(hdl_f16_to_f32(hdl_f32_to_f16(float_of(0x7f800001))))); /* payload in low bits */
}

static void test_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = hdl_bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(hdl_bf16_to_f32(hdl_f32_to_bf16(f))));
        else
            assert_int_equal(hdl_f32_to_bf16(f), h);
    }
    assert_int_equal(hdl_f32_to_bf16(float_of(0x3f808000)), 0x3f80); /* halfway: to even */
    assert_int_equal(hdl_f32_to_bf16(float_of(0x3f818000)), 0x3f82);
    assert_int_equal(hdl_f32_to_bf16(float_of(0x3f808001)), 0x3f81);
    assert_int_equal(hdl_f32_to_bf16(float_of(0x7f7fffff)), 0x7f80); /* rounds up to infinity */
    assert_true(isnan(hdl_bf16_to_f32(hdl_f32_to_bf16(float_of(0x7f800001)))));
}

static void test_dtype_table(void **state)
{
    (void)state;
    for (int d = 0; d < HDL_N_DTYPES; d++) {
        const hdl_dtype_traits *t = hdl_dtype_of((hdl_dtype)d);
        assert_non_null(t->name);
        assert_int_equal(hdl_dtype_named(t->name), d);
        assert_int_equal(hdl_row_bytes((hdl_dtype)d, 3 * t->block_elems), 3 * t->block_bytes);
    }
    assert_int_equal(hdl_dtype_named("Q4_k"), HDL_Q4_K);
    assert_int_equal(hdl_dtype_named("q3_K"), HDL_N_DTYPES);
    assert_int_equal(hdl_row_bytes(HDL_Q4_0, (int64_t)1 << 40), ((int64_t)1 << 35) * 18);
}

/* One golden file of tests/oracle/quant_oracle.py. */
static void check_golden(hdl_dtype dtype, const char *name)
{
    char path[1024];
    hdl_buf file = {0};
    snprintf(path, sizeof path, HDL_TEST_DATA "/golden/quant/%s.bin", name);
    assert_int_equal(hdl_buf_read_file(&file, path, 1 << 20), HEDDLE_OK);
    int32_t header[3];
    memcpy(header, file.data, sizeof header);
    int32_t n = header[0], n_bytes = header[1];
    assert_int_equal(hdl_row_bytes(dtype, n), n_bytes);
    assert_int_equal(file.n, 12 + 8 * n + n_bytes);
    float x[1024], want[1024], got[1024];
    uint8_t encoded[4096];
    const uint8_t *bytes = (const uint8_t *)file.data + 12 + 4 * n;
    memcpy(x, file.data + 12, 4 * (size_t)n);
    memcpy(want, bytes + n_bytes, 4 * (size_t)n);
    hdl_dequant_row(dtype, bytes, got, n);
    for (int i = 0; i < n; i++)
        if (bits_of(got[i]) != bits_of(want[i]) && got[i] != want[i])
            fail_msg("%s: element %d decodes to %.9g, must be %.9g", name, i, (double)got[i],
                     (double)want[i]);
    if (header[2]) {
        hdl_quant_row(dtype, x, encoded, n);
        for (int i = 0; i < n_bytes; i++)
            if (encoded[i] != bytes[i])
                fail_msg("%s: byte %d encodes to %u, must be %u", name, i, encoded[i], bytes[i]);
    }
    hdl_buf_deinit(&file);
}

static void test_golden(void **state)
{
    (void)state;
    static const struct {
        hdl_dtype dtype;
        const char *name;
    } cases[] = {{HDL_F32, "F32"},   {HDL_F16, "F16"},   {HDL_BF16, "BF16"}, {HDL_Q8_0, "Q8_0"},
                 {HDL_Q4_0, "Q4_0"}, {HDL_Q4_1, "Q4_1"}, {HDL_Q5_0, "Q5_0"}, {HDL_Q5_1, "Q5_1"},
                 {HDL_Q4_K, "Q4_K"}, {HDL_Q5_K, "Q5_K"}, {HDL_Q6_K, "Q6_K"}};
    for (int i = 0; i < HDL_COUNT(cases); i++) check_golden(cases[i].dtype, cases[i].name);
}

/* Encoding loses at most about one step of the block's span; decoding what was encoded is stable. */
static void test_round_trip(void **state)
{
    (void)state;
    static const struct {
        hdl_dtype dtype;
        double share; /* of the row's largest magnitude */
    } cases[] = {{HDL_Q8_0, 0.005}, {HDL_Q4_0, 0.13}, {HDL_Q4_1, 0.07}, {HDL_Q5_0, 0.07},
                 {HDL_Q5_1, 0.035}, {HDL_Q4_K, 0.1},  {HDL_Q5_K, 0.06}, {HDL_Q6_K, 0.025}};
    float x[1024], y[1024];
    uint8_t bytes[4096];
    uint32_t seed = 1;
    for (int i = 0; i < HDL_COUNT(x); i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ((float)(seed >> 8) * 0x1p-23f - 1) * (i / 256 == 2 ? 1e-4f : 1.0f); /* a faint super-block */
    }
    for (int c = 0; c < HDL_COUNT(cases); c++) {
        hdl_quant_row(cases[c].dtype, x, bytes, HDL_COUNT(x));
        hdl_dequant_row(cases[c].dtype, bytes, y, HDL_COUNT(x));
        for (int i = 0; i < HDL_COUNT(x); i++) {
            double scale = i / 256 == 2 ? 1e-4 : 1;
            /* f16 scales of the faint block are subnormal and coarse */
            double allowed = cases[c].share * scale + (scale < 1 ? 1e-4 : 0);
            if (!(fabs((double)x[i] - (double)y[i]) <= allowed))
                fail_msg("%s: element %d: %g became %g", hdl_dtype_of(cases[c].dtype)->name, i, (double)x[i],
                         (double)y[i]);
        }
    }
}

/* Values that no scale can hold must not crash, nor read or write outside. */
static void test_extreme_values(void **state)
{
    (void)state;
    static const float extremes[] = {0, -0.0f, NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-40f, 65504, 70000};
    float x[256], y[256];
    uint8_t bytes[1024];
    for (int d = 0; d < HDL_N_DTYPES; d++) {
        if (d == HDL_I8 || d == HDL_I32) continue;
        for (int e = 0; e < HDL_COUNT(extremes); e++) {
            for (int i = 0; i < 256; i++) x[i] = i % 3 ? extremes[e] : (float)i;
            hdl_quant_row((hdl_dtype)d, x, bytes, 256);
            hdl_dequant_row((hdl_dtype)d, bytes, y, 256);
        }
        memset(x, 0, sizeof x);
        hdl_quant_row((hdl_dtype)d, x, bytes, 256);
        hdl_dequant_row((hdl_dtype)d, bytes, y, 256);
        for (int i = 0; i < 256; i++) assert_true(y[i] == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_decodes_every_value),
        cmocka_unit_test(test_f16_encodes_to_nearest_even),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_dtype_table),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_extreme_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
