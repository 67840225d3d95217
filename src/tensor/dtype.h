/* dtype.h - element types: the plain ones and the block-quantised ones of GGUF.
 *
 * A quantised type stores `block_elems` consecutive elements of a row in `block_bytes` bytes; a row
 * always holds a whole number of blocks. Layouts: the GGUF specification; they are written out,
 * byte by byte, in quant.h. */
#ifndef HDL_DTYPE_H
#define HDL_DTYPE_H

#include "base/base.h"

typedef enum hdl_dtype {
    HDL_F32 = 0,
    HDL_F16,
    HDL_BF16,
    HDL_I8, /* KV rows and index keys; the scales live beside it */
    HDL_I32,
    HDL_Q8_0,
    HDL_Q4_0,
    HDL_Q4_1,
    HDL_Q5_0,
    HDL_Q5_1,
    HDL_Q4_K,
    HDL_Q5_K,
    HDL_Q6_K,
    HDL_N_DTYPES
} hdl_dtype;

typedef struct hdl_dtype_traits {
    const char *name; /* as users see it: "q4_1" */
    int32_t block_elems;
    int32_t block_bytes;
    bool is_quantised;
} hdl_dtype_traits;

const hdl_dtype_traits *hdl_dtype_of(hdl_dtype dtype);
/* Bytes of a row of n elements; n must be a multiple of block_elems. */
int64_t hdl_row_bytes(hdl_dtype dtype, int64_t n);
/* The dtype called `name`, or HDL_N_DTYPES. */
hdl_dtype hdl_dtype_named(const char *name);

/* Scalar conversions, round to nearest even; NaN and infinities survive. */
float hdl_f16_to_f32(uint16_t h);
uint16_t hdl_f32_to_f16(float f);
static inline float hdl_bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } bits = {(uint32_t)h << 16};
    return bits.f;
}
uint16_t hdl_f32_to_bf16(float f);

#endif
