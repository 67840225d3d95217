/* quantise.h - how activations become int8, once for every kernel and the reference (normative).
 *
 * A block is 32 consecutive elements of a row. amax = max |x|, d = amax / 127, q = x * (127 / amax)
 * rounded to nearest even. Two blocks are special, and the same everywhere:
 *   amax < 2^-100 (zero included)   d = 0, q = 0
 *   a NaN or an infinity inside     d = NaN, q = 0, so that every output of the row is NaN
 * |x| is compared as an integer, which orders NaN > inf > finite on every instruction set. */
#ifndef HDL_QUANTISE_H
#define HDL_QUANTISE_H

#include <math.h>
#include <string.h>

#include "base/base.h"

enum { HDL_QBLOCK = 32, HDL_QINF_BITS = 0x7f800000, HDL_QTINY_BITS = 27 << 23 /* 2^-100 */ };

/* The factor 127 / amax and the scale d of a block whose largest |x| has these bits. */
static inline float hdl_qscale(int32_t amax_bits, float *d)
{
    float amax;
    memcpy(&amax, &amax_bits, 4);
    if (amax_bits >= HDL_QINF_BITS) {
        *d = NAN;
        return 0;
    }
    if (amax_bits < HDL_QTINY_BITS) {
        *d = 0;
        return 0;
    }
    *d = amax / 127.0f;
    return 127.0f / amax;
}

/* Plain form: q [32], returns d. */
static inline float hdl_quantise_block(const float *x, int8_t *q)
{
    int32_t amax_bits = 0;
    float d;
    for (int i = 0; i < HDL_QBLOCK; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], 4);
        bits &= 0x7fffffff;
        amax_bits = HDL_MAX(amax_bits, bits);
    }
    float factor = hdl_qscale(amax_bits, &d);
    for (int i = 0; i < HDL_QBLOCK; i++) q[i] = factor == 0 ? 0 : (int8_t)nearbyintf(x[i] * factor);
    return d;
}

#endif
