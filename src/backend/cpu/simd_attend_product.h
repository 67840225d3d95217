/* simd_attend_product.h - the matrix products of attention's many rows: MR x NR vectors at a time.
 *
 * Every element is one chain of multiply-adds in ascending order, whatever block it stands in. */
#ifndef HDL_SIMD_ATTEND_PRODUCT_H
#define HDL_SIMD_ATTEND_PRODUCT_H

#include "backend/cpu/simd_attend_walk.h"

enum {
    MR = VW == 4 ? 4 : 6,
    NR = VW == 16 ? 4 : 2,
    PANEL = NR * VW,
};

/* c = sums, or with alpha c = c alpha + sums beta. */
ALWAYS_INLINE void store_product(vf sum[MR][NR], float *c, int64_t c_stride, const float *alpha,
                                 const float *beta, const int mr, const int nr)
{
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) {
            float *at = c + i * c_stride + j * VW;
            if (!alpha)
                vf_store(at, sum[i][j]);
            else
                vf_store(at, vf_fma(sum[i][j], vf_set1(beta[i]), vf_mul(vf_load(at), vf_set1(alpha[i]))));
        }
}

/* c[i][j] = sum over k of a[i][k] b[k][j] for mr rows and nr vectors; with alpha, c = c alpha + ... beta. */
ALWAYS_INLINE void product(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t n,
                           float *c, int64_t c_stride, const float *alpha, const float *beta, const int mr,
                           const int nr)
{
    vf sum[MR][NR];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) sum[i][j] = vf_set1(0);
    for (int64_t k = 0; k < n; k++) {
        vf y[NR];
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) y[j] = vf_load(b + k * b_stride + j * VW);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf x = vf_set1(a[i * a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < nr; j++) sum[i][j] = vf_fma(x, y[j], sum[i][j]);
        }
    }
    store_product(sum, c, c_stride, alpha, beta, mr, nr);
}

ALWAYS_INLINE void product_wide(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t n,
                                float *c, int64_t c_stride, const float *alpha, const float *beta, int mr,
                                const int nr)
{
    switch (mr) {
        case 1: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 1, nr); break;
        case 2: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 2, nr); break;
        case 3: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 3, nr); break;
        case 4: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 4, nr); break;
#if !defined(HDL_ISA_generic)
        case 5: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 5, nr); break;
        default: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 6, nr); break;
#endif
    }
}

/* A panel of NR vectors: scores, stored as they are. */
static void product_scores(const float *q, int64_t dim, const float *panel, float *s, int mr)
{
    product_wide(q, dim, panel, PANEL, dim, s, STRIDE, NULL, NULL, mr, NR);
}

/* p V of steps [begin, end) for all of v_head_dim; stored where alpha is NULL, else merged into o. */
static void product_values(const float *p, const float *v, int64_t begin, int64_t end, float *o, int64_t dim,
                           const float *alpha, const float *beta, int mr)
{
    int64_t i = 0, n = end - begin;
    for (; i + PANEL <= dim; i += PANEL)
        product_wide(p + begin, STRIDE, v + i * STRIDE + begin * PANEL, PANEL, n, o + i, dim, alpha, beta, mr,
                     NR);
    for (; i < dim; i += VW)
        product_wide(p + begin, STRIDE, v + i * STRIDE + begin * VW, VW, n, o + i, dim, alpha, beta, mr, 1);
}

#endif
