/* ref_linear.c - LINEAR as op.h defines it, one output at a time, accumulated in double.
 *
 * Weights are decoded by quant.h's normative decoder; for quantised weights the activations are
 * first rounded to int8 blocks exactly as the fast kernels do, so the two differ by nothing but the
 * rounding of f32 sums. The weight row is decoded once and used for all rows of x. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/quantise.h"
#include "tensor/quant.h"

/* x rounded to int8 blocks and back, in double. */
static void round_row(const float *x, int64_t n, double *out)
{
    for (int64_t i = 0; i < n; i += HDL_QBLOCK) {
        int8_t q[HDL_QBLOCK];
        float d = hdl_quantise_block(x + i, q);
        for (int j = 0; j < HDL_QBLOCK; j++) out[i + j] = (double)d * q[j];
    }
}

static int64_t linear_workspace(const void *args, int n_threads)
{
    const hdl_linear_args *a = args;
    (void)n_threads;
    return a->n_in * 12;
}

static void linear_launch(const hdl_launch *launch, const void *args)
{
    const hdl_linear_args *a = args;
    double *row = launch->workspace;
    float *weights = (float *)(row + a->n_in);
    for (int32_t p = 0; p < a->n_parts; p++) {
        const hdl_linear_part *part = &a->part[p];
        bool is_quantised = hdl_dtype_of(part->w.dtype)->is_quantised;
        for (int64_t j = 0; j < part->w.n_rows; j++) {
            hdl_dequant_row(part->w.dtype, (const uint8_t *)part->w.data + j * part->w.row_bytes, weights,
                            a->n_in);
            for (int64_t r = 0; r < a->n_rows; r++) {
                const float *x = a->x + r * a->x_stride;
                float *out = part->out + r * part->out_stride + j;
                double sum = 0;
                if (is_quantised) round_row(x, a->n_in, row);
                for (int64_t i = 0; i < a->n_in; i++)
                    sum += (is_quantised ? row[i] : (double)x[i]) * weights[i];
                if (part->bias) sum += part->bias[j];
                *out = (float)((part->accumulate ? (double)*out : 0) + sum);
            }
        }
    }
}

const hdl_impl hdl_cpu_ref_linear[] = {
    {"linear_ref", HDL_OP_LINEAR, HDL_ISA_REF, NULL, linear_workspace, linear_launch},
    {0},
};
