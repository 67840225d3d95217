/* ref_complement.c - the reference of COMPLEMENT: naive and normative, a streaming softmax in double over the listed
 * tokens, as ATTEND's, and then over the entries. */
#include <math.h>
#include <string.h>

#include "backend/cpu/complement_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/ref_attend_int.h"

enum { MAX_DIM = 1024 };

typedef struct head_sum { /* a streaming softmax */
    double max, sum, o[MAX_DIM];
} head_sum;

static void add_value(head_sum *to, double s, const double *value, int32_t dim)
{
    if (s == -INFINITY) return;
    double old = s > to->max ? exp(to->max - s) : 1;
    to->max = HDL_MAX(to->max, s);
    double p = exp(s - to->max);
    to->sum = to->sum * old + p;
    for (int32_t i = 0; i < dim; i++) to->o[i] = to->o[i] * old + p * value[i];
}

/* sum [dim] += weight times the K or V row of a step. */
static void add_row(const hdl_attend_args *args, const kv_walk *walk, int64_t step, int32_t kv_head,
                    bool is_v, double weight, double *sum)
{
    float scale;
    const uint8_t *row = ref_kv_row(args, walk->kv, walk_token(walk, step), kv_head, is_v, &scale);
    int32_t dim = is_v ? args->v_head_dim : args->head_dim;
    for (int32_t i = 0; i < dim; i++)
        sum[i] += weight * (double)stored_element(walk->kv->dtype, row, i, scale);
}

/* The mean of the entry's K or V rows that stand at none of steps [from, to), of which there are n. */
static void mean_of_rest(const hdl_complement_args *args, const kv_walk *walk, int64_t e, int64_t from,
                         int64_t to, int32_t kv_head, bool is_v, double *mean)
{
    int32_t dim = is_v ? args->attend.v_head_dim : args->attend.head_dim;
    int64_t n = args->block_size - (to - from);
    const uint16_t *stored_mean = (const uint16_t *)(const void *)mean_at(walk->kv, is_v, e,
                                                                          args->block_size) +
                                  (int64_t)kv_head * dim;
    for (int32_t i = 0; i < dim; i++) mean[i] = (double)args->block_size * hdl_f16_to_f32(stored_mean[i]);
    for (int64_t step = from; step < to; step++) add_row(&args->attend, walk, step, kv_head, is_v, -1, mean);
    for (int32_t i = 0; i < dim; i++) mean[i] /= (double)n;
}

static void complement_head(const hdl_complement_args *args, int64_t row, int32_t head)
{
    const hdl_attend_args *attend = &args->attend;
    int32_t kv_head, dim = attend->v_head_dim;
    kv_walk walk = ref_head_walk(attend, row, head, &kv_head);
    row_entries entries = complement_entries(args, row);
    const float *q = attend->q + row * attend->q_stride + (int64_t)head * attend->head_dim;
    head_sum sum = {.max = -INFINITY};
    for (int64_t step = walk.begin; step < walk.end; step++) {
        double value[MAX_DIM] = {0};
        if (!walk_sees(&walk, walk_token(&walk, step))) continue;
        add_row(attend, &walk, step, kv_head, true, 1, value);
        add_value(&sum, ref_score(attend, &walk, step, q, kv_head), value, dim);
    }
    int64_t from = walk_lower_bound(&walk, walk.end, entries.begin * args->block_size);
    for (int64_t e = entries.begin, to; e < entries.end; e++, from = to) {
        double key[MAX_DIM], value[MAX_DIM], s = 0;
        for (to = from; to < walk.end && walk_token(&walk, to) < (e + 1) * args->block_size;) to++;
        int64_t n = args->block_size - (to - from);
        if (!n) continue;
        mean_of_rest(args, &walk, e, from, to, kv_head, false, key);
        mean_of_rest(args, &walk, e, from, to, kv_head, true, value);
        for (int32_t i = 0; i < attend->head_dim; i++) s += q[i] * key[i];
        s *= attend->scale;
        if (attend->soft_cap > 0) s = attend->soft_cap * tanh(s / attend->soft_cap);
        add_value(&sum, s + log((double)n), value, dim);
    }
    ref_finish_head(attend, row, head, sum.o, sum.max, sum.sum);
}

static void complement(const hdl_launch *launch, const void *op)
{
    (void)launch;
    const hdl_complement_args *args = op;
    HDL_ASSERT(args->attend.head_dim <= MAX_DIM && args->attend.v_head_dim <= MAX_DIM);
    HDL_ASSERT(!args->attend.mass);
    for (int64_t row = 0; row < args->attend.n_rows; row++)
        for (int32_t head = 0; head < args->attend.n_heads; head++) complement_head(args, row, head);
}

const hdl_impl hdl_cpu_ref_complement[] = {
    {"complement_ref", HDL_OP_COMPLEMENT, HDL_ISA_REF, NULL, NULL, complement},
    {NULL, HDL_OP_COMPLEMENT, HDL_ISA_REF, NULL, NULL, NULL},
};
