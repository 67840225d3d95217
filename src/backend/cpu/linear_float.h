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
ALWAYS_INLINE int float_step(hdl_dtype dtype)
{
    return dtype == HDL_F32 ? 4 : 8;
}

/* w[i] = element i of each row, for the float_step elements at p. */
ALWAYS_INLINE void unpack_floats(hdl_dtype dtype, const uint8_t *p, int64_t stride, vf *w)
{
    vi c[4];
    load_cols(p, stride, c);
    UNROLL
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

/* One row of x times n_tiles (constant, 1 or 2) tiles. */
ALWAYS_INLINE void dot_float_as(hdl_dtype dtype, const uint8_t *const rows[2], int64_t stride, const float *x,
                                int64_t n_in, int n_tiles, stream *ahead, vf *out)
{
    const int step = float_step(dtype);
    vf acc[2] = {vf_set1(0), vf_set1(0)};
    for (int64_t k = 0, at = 0; k < n_in; k += step, at += 16) {
        vf w[2][8];
        UNROLL
        for (int t = 0; t < n_tiles; t++) unpack_floats(dtype, rows[t] + at, stride, w[t]);
        prefetch_stream(ahead, n_tiles * LANES * 16);
        UNROLL
        for (int i = 0; i < step; i++) {
            vf xi = vf_set1(x[k + i]);
            UNROLL
            for (int t = 0; t < n_tiles; t++) acc[t] = vf_fma(w[t][i], xi, acc[t]);
        }
    }
    UNROLL
    for (int t = 0; t < n_tiles; t++) out[t] = acc[t];
}

NEVER_INLINE void dot_float(hdl_dtype dtype, const uint8_t *const rows[2], int64_t stride, const float *x,
                            int64_t n_in, int n_tiles, stream *ahead, vf *out)
{
    switch (dtype) {
        case HDL_F32:
            if (n_tiles == 2)
                dot_float_as(HDL_F32, rows, stride, x, n_in, 2, ahead, out);
            else
                dot_float_as(HDL_F32, rows, stride, x, n_in, 1, ahead, out);
            break;
        case HDL_F16:
            if (n_tiles == 2)
                dot_float_as(HDL_F16, rows, stride, x, n_in, 2, ahead, out);
            else
                dot_float_as(HDL_F16, rows, stride, x, n_in, 1, ahead, out);
            break;
        default:
            if (n_tiles == 2)
                dot_float_as(HDL_BF16, rows, stride, x, n_in, 2, ahead, out);
            else
                dot_float_as(HDL_BF16, rows, stride, x, n_in, 1, ahead, out);
            break;
    }
}

ALWAYS_INLINE void pack_floats_as(hdl_dtype dtype, const uint8_t *p, int64_t stride, int64_t n_in, vf *out,
                                  int n_tiles)
{
    const int step = float_step(dtype);
    for (int64_t k = 0; k < n_in; k += step, p += 16) {
        vf w[8];
        unpack_floats(dtype, p, stride, w);
        UNROLL
        for (int i = 0; i < step; i++) out[(k + i) * n_tiles] = w[i];
    }
}

/* A tile as f32 [n_in][n_tiles][LANES]; `out` is where its first vector goes. */
NEVER_INLINE void pack_floats(hdl_dtype dtype, const uint8_t *p, int64_t stride, int64_t n_in, vf *out,
                              int n_tiles)
{
    switch (dtype) {
        case HDL_F32: pack_floats_as(HDL_F32, p, stride, n_in, out, n_tiles); break;
        case HDL_F16: pack_floats_as(HDL_F16, p, stride, n_in, out, n_tiles); break;
        default: pack_floats_as(HDL_BF16, p, stride, n_in, out, n_tiles); break;
    }
}

/* n_rows rows of x times n_tiles packed tiles, a constant number of each. */
ALWAYS_INLINE void dot_float_rows(const vf *w, const float *x, int64_t x_stride, int64_t n_in, int n_rows,
                                  int n_tiles, vf *out)
{
    vf acc[12];
    UNROLL
    for (int i = 0; i < n_rows * n_tiles; i++) acc[i] = vf_set1(0);
    for (int64_t k = 0; k < n_in; k++, w += n_tiles) {
        UNROLL
        for (int i = 0; i < n_rows * n_tiles; i++)
            acc[i] = vf_fma(w[i % n_tiles], vf_set1(x[i / n_tiles * x_stride + k]), acc[i]);
    }
    UNROLL
    for (int i = 0; i < n_rows * n_tiles; i++) out[i] = acc[i];
}

#endif
