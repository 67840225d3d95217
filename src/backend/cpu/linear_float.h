/* linear_float.h - a tile of LANES outputs of an F32, F16 or BF16 weight.
 *
 * One f32 fma chain per output, k ascending, whatever the number of rows. One row reads the weights
 * in place and transposes 16-byte pieces in registers (two tiles side by side hide the latency of
 * the chains); many rows use the tile transposed to f32 [n_in][LANES] in scratch. */
#ifndef HDL_LINEAR_FLOAT_H
#define HDL_LINEAR_FLOAT_H

#include "backend/cpu/linear_vec.h"
#include "tensor/tensor.h"

/* Elements of 16 bytes of a row. */
ALWAYS_INLINE int float_step(hdl_dtype dtype) { return dtype == HDL_F32 ? 4 : 8; }

/* w[i] = element i of each row, for the float_step elements at p. */
ALWAYS_INLINE void unpack_floats(hdl_dtype dtype, const uint8_t *p, int64_t stride, vf *w)
{
    vi c[4];
    load_cols(p, stride, c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        if (dtype == HDL_F32) {
            w[i] = (vf)c[i];
        } else if (dtype == HDL_BF16) {
            w[2 * i] = (vf)(c[i] << 16);
            w[2 * i + 1] = (vf)(c[i] & vi_set1((int32_t)0xffff0000u));
        } else {
            w[2 * i] = f16_low(c[i]);
            w[2 * i + 1] = f16_low(shr(c[i], 16));
        }
    }
}

/* One row of x times n_tiles (constant, 1 or 2) tiles that follow each other. */
ALWAYS_INLINE void dot_float_as(hdl_dtype dtype, const uint8_t *p, int64_t stride, const float *x, int64_t n_in,
                                int n_tiles, vf *out)
{
    const int step = float_step(dtype);
    vf acc[2] = {vf_set1(0), vf_set1(0)};
    const uint8_t *next = p + n_tiles * LANES * stride;
    for (int64_t k = 0; k < n_in; k += step, p += 16, next += n_tiles * LANES * 16) {
        vf w[2][8];
#pragma GCC unroll 2
        for (int t = 0; t < n_tiles; t++) unpack_floats(dtype, p + t * LANES * stride, stride, w[t]);
#pragma GCC unroll 8
        for (int i = 0; i < n_tiles * LANES * 16; i += 64) __builtin_prefetch(next + i, 0, 3);
#pragma GCC unroll 8
        for (int i = 0; i < step; i++) {
            vf xi = vf_set1(x[k + i]);
#pragma GCC unroll 2
            for (int t = 0; t < n_tiles; t++) acc[t] = vf_fma(w[t][i], xi, acc[t]);
        }
    }
#pragma GCC unroll 2
    for (int t = 0; t < n_tiles; t++) out[t] = acc[t];
}

static __attribute__((noinline)) void dot_float(hdl_dtype dtype, const uint8_t *p, int64_t stride, const float *x,
                                                int64_t n_in, int n_tiles, vf *out)
{
    switch (dtype) {
    case HDL_F32:
        if (n_tiles == 2) dot_float_as(HDL_F32, p, stride, x, n_in, 2, out);
        else dot_float_as(HDL_F32, p, stride, x, n_in, 1, out);
        break;
    case HDL_F16:
        if (n_tiles == 2) dot_float_as(HDL_F16, p, stride, x, n_in, 2, out);
        else dot_float_as(HDL_F16, p, stride, x, n_in, 1, out);
        break;
    default:
        if (n_tiles == 2) dot_float_as(HDL_BF16, p, stride, x, n_in, 2, out);
        else dot_float_as(HDL_BF16, p, stride, x, n_in, 1, out);
        break;
    }
}

ALWAYS_INLINE void pack_floats_as(hdl_dtype dtype, const uint8_t *p, int64_t stride, int64_t n_in, vf *out)
{
    for (int64_t k = 0; k < n_in; k += float_step(dtype), p += 16) unpack_floats(dtype, p, stride, out + k);
}

static __attribute__((noinline)) void pack_floats(hdl_dtype dtype, const uint8_t *p, int64_t stride, int64_t n_in,
                                                  vf *out)
{
    switch (dtype) {
    case HDL_F32: pack_floats_as(HDL_F32, p, stride, n_in, out); break;
    case HDL_F16: pack_floats_as(HDL_F16, p, stride, n_in, out); break;
    default: pack_floats_as(HDL_BF16, p, stride, n_in, out); break;
    }
}

/* n_rows (constant) rows of x times the packed tile. */
ALWAYS_INLINE void dot_float_rows(const vf *w, const float *x, int64_t x_stride, int64_t n_in, int n_rows, vf *out)
{
    vf acc[12];
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) acc[r] = vf_set1(0);
    for (int64_t k = 0; k < n_in; k++)
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) acc[r] = vf_fma(w[k], vf_set1(x[r * x_stride + k]), acc[r]);
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) out[r] = acc[r];
}

#endif
