/* cases_linear.h - the cases of LINEAR, written once for the test and the bench.
 *
 * A case is a shape and the types of its parts. Tolerances are a row per kind of weight: largest
 * |fast - ref| over the row's largest |ref|, and the relative L2 distance of the whole output. */
#ifndef HDL_CASES_LINEAR_H
#define HDL_CASES_LINEAR_H

#include <math.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"
#include "tensor/quant.h"

typedef struct linear_case {
    const char *name;
    int64_t n_in;
    int32_t n_parts;
    int64_t n_out[HDL_LINEAR_MAX_PARTS];
    hdl_dtype dtype[HDL_LINEAR_MAX_PARTS];
    bool has_bias, accumulate;
} linear_case;

/* Shapes for correctness; each runs with every number of rows below and, where one part stands
 * alone, with every type whose block divides n_in. */
static const int64_t linear_test_rows[] = {1, 2, 3, 5, 8, 16, 17, 64, 130};
static const hdl_dtype linear_dtypes[] = {HDL_Q8_0, HDL_Q4_0, HDL_Q4_1, HDL_Q5_0, HDL_Q5_1, HDL_Q4_K,
                                          HDL_Q5_K, HDL_Q6_K, HDL_F32,  HDL_F16,  HDL_BF16};
static const linear_case linear_shapes[] = {
    {"one_block", 32, 1, {16}, {0}, false, false},  {"one_output", 64, 1, {1}, {0}, true, false},
    {"seven", 96, 1, {7}, {0}, false, true},        {"ragged_33", 256, 1, {33}, {0}, true, true},
    {"ragged_49", 512, 1, {49}, {0}, false, false}, {"hidden_576", 576, 1, {48}, {0}, false, false},
    {"hidden_640", 640, 1, {40}, {0}, false, true}, {"n_ff_1536", 1536, 1, {31}, {0}, true, false},
};
static const linear_case linear_mixed[] = {
    {"qkv_mixed", 256, 3, {49, 17, 33}, {HDL_Q4_K, HDL_Q4_K, HDL_Q6_K}, true, false},
    {"qkv_simple", 576, 3, {64, 24, 24}, {HDL_Q5_0, HDL_Q8_0, HDL_Q4_1}, false, false},
    {"pair", 320, 2, {40, 16}, {HDL_Q4_0, HDL_Q5_1}, false, true},
    {"float_and_q", 256, 3, {20, 20, 20}, {HDL_F16, HDL_Q8_0, HDL_F32}, true, false},
    {"tiny_part", 64, 2, {33, 3}, {HDL_BF16, HDL_Q8_0}, false, false},
};

/* Shapes for speed: the linear layers of the two demo models. */
static const linear_case linear_bench[] = {
    {"smol_qkv", 576, 3, {576, 192, 192}, {0}, false, false},
    {"smol_o", 576, 1, {576}, {0}, false, true},
    {"smol_gate_up", 576, 2, {1536, 1536}, {0}, false, false},
    {"smol_down", 1536, 1, {576}, {0}, false, true},
    {"smol_head", 576, 1, {49152}, {0}, false, false},
    {"gemma_gate_up", 640, 2, {2048, 2048}, {0}, false, false},
    {"gemma_down", 2048, 1, {640}, {0}, false, true},
};

typedef struct linear_tolerance {
    double max_abs, relative_l2;
} linear_tolerance;

/* f32 sums of n_in / 32 (quantised) or n_in terms; the rows' types are all f32 sums. */
static inline linear_tolerance linear_tolerance_of(hdl_dtype dtype)
{
    if (hdl_dtype_of(dtype)->is_quantised) return (linear_tolerance){3e-6, 1e-6};
    return (linear_tolerance){1e-5, 2e-6};
}

/* Deterministic noise, roughly normal; a few large values as activations have them. */
static inline float linear_noise(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) / 16777216.0f - 0.5f;
    }
    return (*state >> 33) % 97 == 0 ? 8 * sum : sum;
}

/* A weight [n_out, n_in] in memory of exactly its size; free(data). */
static inline hdl_tensor linear_weight(hdl_dtype dtype, int64_t n_out, int64_t n_in, uint64_t seed)
{
    hdl_tensor w = {NULL, dtype, n_out, n_in, hdl_row_bytes(dtype, n_in)};
    uint8_t *data = malloc((size_t)(n_out * w.row_bytes));
    float *row = malloc((size_t)n_in * 4);
    for (int64_t j = 0; data && row && j < n_out; j++) {
        for (int64_t i = 0; i < n_in; i++) row[i] = 0.1f * linear_noise(&seed) + 0.01f;
        hdl_quant_row(dtype, row, data + j * w.row_bytes, n_in);
    }
    free(row);
    w.data = data;
    return w;
}

#endif
