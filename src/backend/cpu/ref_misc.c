/* ref_misc.c - EMBED, NORM, ROPE and GLU as op.h defines them: naive, in double. */
#include <math.h>

#include "backend/cpu/cpu.h"
#include "tensor/quant.h"

static void embed_launch(const hdl_launch *launch, const void *args)
{
    const hdl_embed_args *a = args;
    (void)launch;
    for (int64_t r = 0; r < a->n_rows; r++) {
        float *out = a->out + r * a->table.n_cols;
        const uint8_t *row = (const uint8_t *)a->table.data + a->ids[r] * a->table.row_bytes;
        hdl_dequant_row(a->table.dtype, row, out, a->table.n_cols);
        for (int64_t i = 0; i < a->table.n_cols; i++) out[i] *= a->scale;
    }
}

static void norm_launch(const hdl_launch *launch, const void *args)
{
    const hdl_norm_args *a = args;
    (void)launch;
    for (int64_t r = 0; r < a->n_rows; r++) {
        const float *x = a->x + r * a->x_stride;
        const float *residual = a->residual ? a->residual + r * a->out_stride : NULL;
        float *out = a->out + r * a->out_stride;
        double sum = 0;
        for (int64_t i = 0; i < a->n_cols; i++) sum += (double)x[i] * x[i];
        double factor = 1 / sqrt(sum / (double)a->n_cols + a->eps);
        for (int64_t i = 0; i < a->n_cols; i++) {
            double y = x[i] * factor * ((double)a->weight[i] + a->offset);
            out[i] = (float)((residual ? residual[i] : 0) + y);
        }
    }
}

static void rope_launch(const hdl_launch *launch, const void *args)
{
    const hdl_rope_args *a = args;
    int32_t half = a->dim / 2;
    (void)launch;
    for (int64_t r = 0; r < a->n_rows; r++) {
        const float *cos_sin = a->cos_sin + r * a->dim;
        for (int32_t h = 0; h < a->n_heads; h++) {
            float *x = a->x + r * a->x_stride + (int64_t)h * a->head_dim;
            for (int32_t i = 0; i < half; i++) {
                float *first = a->is_pairs ? &x[2 * i] : &x[i];
                float *second = a->is_pairs ? &x[2 * i + 1] : &x[i + half];
                double c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = *first, v = *second;
                *first = (float)(u * c - v * s);
                *second = (float)(u * s + v * c);
            }
        }
    }
}

static void glu_launch(const hdl_launch *launch, const void *args)
{
    const hdl_glu_args *a = args;
    (void)launch;
    for (int64_t r = 0; r < a->n_rows; r++) {
        float *gate = a->gate + r * a->stride;
        const float *up = a->up + r * a->stride;
        for (int64_t i = 0; i < a->n_cols; i++) {
            double x = gate[i];
            double y = 0.7978845608028654 * (x + 0.044715 * x * x * x); /* sqrt(2 / pi) */
            double act = a->is_gelu ? 0.5 * x * (1 + tanh(y)) : x / (1 + exp(-x));
            gate[i] = (float)(act * up[i]);
        }
    }
}

const hdl_impl hdl_cpu_ref_misc[] = {
    {"embed_ref", HDL_OP_EMBED, HDL_ISA_REF, NULL, NULL, embed_launch},
    {"norm_ref", HDL_OP_NORM, HDL_ISA_REF, NULL, NULL, norm_launch},
    {"rope_ref", HDL_OP_ROPE, HDL_ISA_REF, NULL, NULL, rope_launch},
    {"glu_ref", HDL_OP_GLU, HDL_ISA_REF, NULL, NULL, glu_launch},
    {0},
};
