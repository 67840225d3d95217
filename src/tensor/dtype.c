#include "tensor/dtype.h"

#include <string.h>
#include <strings.h>

static const hdl_dtype_traits traits[HDL_N_DTYPES] = {
    [HDL_F32] = {"f32", 1, 4, false},      [HDL_F16] = {"f16", 1, 2, false},
    [HDL_BF16] = {"bf16", 1, 2, false},    [HDL_I8] = {"i8", 1, 1, false},
    [HDL_I32] = {"i32", 1, 4, false},      [HDL_Q8_0] = {"q8_0", 32, 34, true},
    [HDL_Q4_0] = {"q4_0", 32, 18, true},   [HDL_Q4_1] = {"q4_1", 32, 20, true},
    [HDL_Q5_0] = {"q5_0", 32, 22, true},   [HDL_Q5_1] = {"q5_1", 32, 24, true},
    [HDL_Q4_K] = {"q4_K", 256, 144, true}, [HDL_Q5_K] = {"q5_K", 256, 176, true},
    [HDL_Q6_K] = {"q6_K", 256, 210, true},
};

const hdl_dtype_traits *hdl_dtype_of(hdl_dtype dtype)
{
    HDL_ASSERT((unsigned)dtype < HDL_N_DTYPES);
    return &traits[dtype];
}

int64_t hdl_row_bytes(hdl_dtype dtype, int64_t n)
{
    const hdl_dtype_traits *t = hdl_dtype_of(dtype);
    HDL_ASSERT(n % t->block_elems == 0);
    return n / t->block_elems * t->block_bytes;
}

hdl_dtype hdl_dtype_named(const char *name)
{
    int dtype = 0;
    while (dtype < HDL_N_DTYPES && strcasecmp(name, traits[dtype].name) != 0) dtype++;
    return (hdl_dtype)dtype;
}

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

float hdl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    /* zero or subnormal: mantissa * 2^-24, exact in f32 */
    return float_of(sign | bits_of((float)mantissa * 0x1p-24f));
}

/* Drops `shift` low bits of x, rounding to nearest even. */
static uint32_t round_shift(uint32_t x, int shift)
{
    uint32_t half = 1u << (shift - 1), rest = x & (2 * half - 1);
    uint32_t kept = x >> shift;
    return kept + (rest > half || (rest == half && (kept & 1)));
}

uint16_t hdl_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x1ff)); /* NaN */
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* >= 65520 rounds to inf */
    if (magnitude >= 0x38800000) /* >= 2^-14: normal; a carry moves into the exponent */
        return (uint16_t)(sign | (round_shift(magnitude, 13) - (112u << 10)));
    if (magnitude < 0x33000000) return (uint16_t)sign; /* < 2^-25 */
    uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    return (uint16_t)(sign | round_shift(mantissa, 126 - (int)(magnitude >> 23)));
}

uint16_t hdl_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* keep NaN a NaN */
    return (uint16_t)round_shift(u, 16);
}
