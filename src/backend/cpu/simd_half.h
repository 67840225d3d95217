/* simd_half.h - f32 to f16, nearest even, as hdl_f32_to_f16 does. */
#ifndef HDL_SIMD_HALF_H
#define HDL_SIMD_HALF_H

#include "backend/cpu/simd_attend_int.h"
#include "tensor/dtype.h"

ALWAYS_INLINE void store_f16(const float *x, uint16_t *to, int64_t n)
{
    int64_t i = 0;
#if defined(HDL_ISA_avx512)
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + i),
                            _mm512_cvtps_ph(vf_load(x + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(HDL_ISA_avx2)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i),
                         _mm256_cvtps_ph(vf_load(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) to[i] = hdl_f32_to_f16(x[i]);
}

#endif
