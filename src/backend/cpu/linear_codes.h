/* linear_codes.h - a quantised weight row as signed int16 codes and f32 scales; plain C.
 *
 *   w = scale[i / 16] * code[i] + min[i / 32]      (formats with blocks of 32 repeat their scale) */
#ifndef HDL_LINEAR_CODES_H
#define HDL_LINEAR_CODES_H

#include <string.h>

#include "tensor/tensor.h"

static inline float codes_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return hdl_f16_to_f32(h);
}

static inline void codes_simple(hdl_dtype dtype, const uint8_t *p, int16_t *code, float *scale, float *min)
{
    const bool has_min = dtype == HDL_Q4_1 || dtype == HDL_Q5_1,
               has_high = dtype == HDL_Q5_0 || dtype == HDL_Q5_1;
    const int zero = has_min ? 0 : has_high ? 16 : 8;
    const uint8_t *at = p + (has_min ? 4 : 2);
    uint32_t high = 0;
    scale[0] = scale[1] = codes_f16(p);
    min[0] = has_min ? codes_f16(p + 2) : 0;
    if (dtype == HDL_Q8_0) {
        for (int i = 0; i < 32; i++) code[i] = (int8_t)at[i];
        return;
    }
    if (!has_high) { /* two loops of its own, because compilers vectorise them */
        for (int i = 0; i < 16; i++) code[i] = (int16_t)((at[i] & 15) - zero);
        for (int i = 0; i < 16; i++) code[i + 16] = (int16_t)((at[i] >> 4) - zero);
        return;
    }
    memcpy(&high, at, 4);
    at += 4;
    for (int i = 0; i < 16; i++) {
        code[i] = (int16_t)(((at[i] & 15) | (high >> i & 1) << 4) - zero);
        code[i + 16] = (int16_t)(((at[i] >> 4) | (high >> (i + 16) & 1) << 4) - zero);
    }
}

static inline void codes_k(hdl_dtype dtype, const uint8_t *p, int16_t *code, float *scale, float *min)
{
    const uint8_t *s = p + 4, *high = p + 16, *at = p + (dtype == HDL_Q5_K ? 48 : 16);
    const float d = codes_f16(p), dmin = codes_f16(p + 2);
    for (int j = 0; j < 8; j++) {
        int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        int mn = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
        scale[2 * j] = scale[2 * j + 1] = d * (float)sc;
        min[j] = -dmin * (float)mn;
        for (int i = 0; i < 32; i++) {
            int q = at[32 * (j / 2) + i] >> 4 * (j & 1) & 15;
            if (dtype == HDL_Q5_K) q |= (high[i] >> j & 1) << 4;
            code[32 * j + i] = (int16_t)q;
        }
    }
}

static inline void codes_q6_k(const uint8_t *p, int16_t *code, float *scale, float *min)
{
    const float d = codes_f16(p + 208);
    for (int s = 0; s < 16; s++) scale[s] = d * (float)(int8_t)p[192 + s], min[s / 2] = 0;
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, n = i / 32 % 4, e = i % 32;
        int low = p[64 * half + 32 * (n & 1) + e] >> 4 * (n / 2) & 15;
        int high = p[128 + 32 * half + e] >> 2 * n & 3;
        code[i] = (int16_t)((low | high << 4) - 32);
    }
}

/* code [n], scale [n / 16], min [n / 32]. */
static inline void codes_row(hdl_dtype dtype, const uint8_t *p, int64_t n, int16_t *code, float *scale,
                             float *min)
{
    const hdl_dtype_traits *traits = hdl_dtype_of(dtype);
    for (int64_t i = 0; i < n; i += traits->block_elems, p += traits->block_bytes) {
        if (dtype == HDL_Q6_K)
            codes_q6_k(p, code + i, scale + i / 16, min + i / 32);
        else if (traits->block_elems == 256)
            codes_k(dtype, p, code + i, scale + i / 16, min + i / 32);
        else
            codes_simple(dtype, p, code + i, scale + i / 16, min + i / 32);
    }
}

#endif
