/* codebook.h - keys as codes of a fixed book, once for every kernel and the reference (normative).
 *
 * Product quantisation (Jegou et al., 2011) without training: a row x [D] is rotated, y = R x, R being signs
 * and then a Walsh-Hadamard transform, not scaled, of each run of m elements, m the largest power of two that
 * divides D. So R q . R k = m (q . k), and elements of y are near to Gaussian whatever x is. Of u = y * 32 /
 * (root mean square of y), G elements at a time take the nearest of 16 book entries c, ties to the lowest.
 * Row scale: |y|^2 / (y . c) / m, so that scale * c has y's own length along y; 0 codes and
 *   scale 0     where |y|^2 < 2^-100, or no entry leans towards y
 *   scale NaN   where |y|^2 is not finite
 * Sums over a row (|y|^2, y . c) are of 16 partial sums, see hdl_dot16. A row has n = D / (2 G) bytes; the low half
 * of byte i is the code of the elements i + j n, the high half that of i + (G + j) n, j < G. Queries are rotated by
 * the same R and then rounded to int8 (quantise_i8): a score is a dot product of whole numbers.
 *
 * The books are in 32nds of the root mean square: Lloyd's algorithm (k-means) on a unit Gaussian of G elements. */
#ifndef HDL_CODEBOOK_H
#define HDL_CODEBOOK_H

#include <math.h>

#include "base/base.h"

enum { HDL_BOOK_CODES = 16, HDL_BOOK_UNITS = 32, HDL_BOOK_MOST = 64 /* largest |entry element| */ };

/* hdl_book<G>[element of the group][code] */
static const int8_t hdl_book2[2][HDL_BOOK_CODES] = {
    {-64, -47, -46, -31, -14, -14, -12, -9, 0, 15, 15, 29, 30, 32, 55, 56},
    {-1, 36, -39, -1, -25, 25, 59, -59, 0, -26, 26, 0, 57, -55, 23, -21},
};
static const int8_t hdl_book4[4][HDL_BOOK_CODES] = {
    {-43, -39, -37, -23, -15, -8, -7, 0, 3, 8, 15, 15, 21, 21, 41, 48},
    {-3, -27, 31, 21, -20, 42, -21, 0, -7, -53, -11, 31, -19, 41, 14, -14},
    {-32, 24, 18, 16, -3, -32, -27, 0, 49, -4, -49, -12, 31, 29, -17, 7},
    {6, -9, 19, -42, 48, -13, -41, 0, 22, 1, 14, 40, -35, -5, -29, 21},
};

static inline const int8_t (*hdl_book(int32_t group))[HDL_BOOK_CODES]
{
    return group == 2 ? hdl_book2 : hdl_book4;
}

static inline int64_t hdl_rotation_size(int64_t n)
{
    return n & -n;
}

/* -1 or 1, for element i of a row: a bit of MurmurHash3's last step over i + 1. */
static inline float hdl_rotation_sign(int64_t i)
{
    uint32_t h = (uint32_t)i + 1;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return (h ^ h >> 16) & 1 ? -1.0f : 1.0f;
}

/* y = R x, [n] each. */
static inline void hdl_rotate(const float *x, float *y, int64_t n)
{
    int64_t m = hdl_rotation_size(n);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * hdl_rotation_sign(i);
    for (int64_t half = 1; half < m; half *= 2)
        for (int64_t i = 0; i < n; i += 2 * half)
            for (int64_t j = i; j < i + half; j++) {
                float a = y[j], b = y[j + half];
                y[j] = a + b;
                y[j + half] = a - b;
            }
}

/* Partial sum i of 16 takes the products i, i + 16, ...; then halves are added up: 8 + 8, 4 + 4, 2 + 2, 1 + 1. */
static inline float hdl_dot16(const float *x, const float *y, int64_t n)
{
    float part[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += x[i + j] * y[i + j];
    for (; i < n; i++) part[i % 16] += x[i] * y[i];
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++) part[j] += part[j + half];
    return part[0];
}

/* The scale of a row from |y|^2 and y . c; rows that have none have codes 0. */
static inline float hdl_book_scale(float norm, float along, int64_t n)
{
    return along > 0 ? norm / along / (float)hdl_rotation_size(n) : 0;
}

/* The factor that makes u of y; 0 where the row's scale is `*scale`, 0 or NaN. */
static inline float hdl_book_factor(float norm, int64_t n, float *scale)
{
    *scale = norm <= 3.4e38f ? 0 : NAN;
    if (!(norm >= 0x1p-100f) || !(norm <= 3.4e38f)) return 0;
    return HDL_BOOK_UNITS / sqrtf(norm / (float)n);
}

#endif
