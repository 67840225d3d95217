/* quant.h - the block formats, byte by byte, and their plain (normative) decoders.
 *
 *   q8_0  34 B / 32: f16 d | int8 q[32]                          x = d q
 *   q4_0  18 B / 32: f16 d | u8 qs[16]                           x = d (q - 8)
 *   q4_1  20 B / 32: f16 d, f16 m | u8 qs[16]                    x = d q + m
 *   q5_0  22 B / 32: f16 d | u32 qh (bytes 2..5) | u8 qs[16]      x = d (q - 16)
 *   q5_1  24 B / 32: f16 d, f16 m | u32 qh | u8 qs[16]           x = d q + m
 *         q of element i < 16: qs[i] & 15, of i >= 16: qs[i - 16] >> 4; bit 4 of q is bit i of qh
 *   q4_K 144 B / 256: f16 d, f16 dmin | u8 scales[12] | u8 qs[128]
 *   q5_K 176 B / 256: f16 d, f16 dmin | u8 scales[12] | u8 qh[32] | u8 qs[128]
 *         8 sub-blocks of 32 with 6-bit scale sc and min mn packed in `scales`:
 *         j < 4: sc = s[j] & 63, mn = s[j+4] & 63
 *         j >= 4: sc = (s[j+4] & 15) | (s[j-4] >> 6) << 4, mn = (s[j+4] >> 4) | (s[j] >> 6) << 4
 *         sub-block j = 2c + h: q = nibble h of qs[32c + i]; q5_K adds bit j of qh[i] as bit 4
 *         x = d sc q - dmin mn
 *   q6_K 210 B / 256: u8 ql[128] | u8 qh[64] | int8 scales[16] | f16 d
 *         halves of 128 (ql 64, qh 32, scales 8 each); i in 0..31:
 *         x[i]      : (ql[i] & 15)      | (qh[i] & 3) << 4          scale i/16
 *         x[i + 32] : (ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4     scale 2 + i/16
 *         x[i + 64] : (ql[i] >> 4)      | (qh[i] >> 4 & 3) << 4     scale 4 + i/16
 *         x[i + 96] : (ql[i + 32] >> 4) | (qh[i] >> 6) << 4         scale 6 + i/16
 *         x = d sc (q - 32)
 * Source: the GGUF specification and ggml's published block definitions (format facts). */
#ifndef HDL_QUANT_H
#define HDL_QUANT_H

#include "tensor/tensor.h"

/* dst f32 [n]; n a multiple of the type's block_elems. Any dtype but HDL_I8 / HDL_I32. */
void hdl_dequant_row(hdl_dtype dtype, const void *src, float *dst, int64_t n);
/* Nearest encoding, for tests, tools and KV snapshots: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0,
 * Q5_1 (round to nearest); the K formats by a plain min/max fit. */
void hdl_quant_row(hdl_dtype dtype, const float *src, void *dst, int64_t n);

#endif
