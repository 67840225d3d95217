/* ref_visit.c - the reference of ORDER and VISIT: naive and normative; VISIT in double, as ATTEND's. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/ref_attend_int.h"
#include "base/pool.h"

/* ---- ORDER ---- */

typedef struct ordered_place {
    float score;
    int32_t place; /* of the list's ids */
} ordered_place;

typedef struct order_call {
    const hdl_order_args *args;
    ordered_place *space; /* [n_threads, 2, n_ids_max] */
} order_call;

/* Places ascend before they are sorted, and a stable sort leaves ties in that order. */
static void sort_by_score(ordered_place *a, ordered_place *spare, int64_t n)
{
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t from = 0; from < n; from += 2 * width) {
            int64_t middle = HDL_MIN(from + width, n), end = HDL_MIN(from + 2 * width, n), i = from,
                    j = middle;
            for (int64_t at = from; at < end; at++)
                spare[at] = i < middle && (j == end || a[i].score >= a[j].score) ? a[i++] : a[j++];
        }
        memcpy(a, spare, (size_t)n * sizeof *a);
    }
}

static void order_list(void *arg, int64_t task, int thread)
{
    const order_call *call = arg;
    const hdl_order_args *args = call->args;
    hdl_selection *sel = args->list;
    int64_t row = task / sel->n_lists, block = sel->block_size, visible = args->n_visible[row];
    int32_t list = (int32_t)(task % sel->n_lists), n = *hdl_selection_count(sel, row, list), n_first = 0;
    const int32_t *ids = hdl_selection_ids(sel, row, list);
    int32_t *order = sel->order + task * sel->n_ids_max;
    const float *score = args->score ? args->score + task * args->score_stride : NULL;
    ordered_place *rest = call->space + thread * 2 * sel->n_ids_max;
    int64_t n_rest = 0;
    for (int32_t i = 0; i < n; i++) {
        int64_t first = ids[i] * block, end = first + block;
        bool is_forced = first < args->n_sink || (args->window > 0 && end > visible - args->window);
        if (!score || is_forced)
            order[n_first++] = i;
        else
            rest[n_rest++] = (ordered_place){isnan(score[ids[i]]) ? -INFINITY : score[ids[i]], i};
    }
    sort_by_score(rest, rest + sel->n_ids_max, n_rest);
    for (int64_t i = 0; i < n_rest; i++) order[n_first + i] = rest[i].place;
    sel->n_first[task] = n_first;
}

static int64_t order_workspace(const void *op, int n_threads)
{
    const hdl_order_args *args = op;
    return 2 * n_threads * args->list->n_ids_max * (int64_t)sizeof(ordered_place);
}

static void order(const hdl_launch *launch, const void *op)
{
    const hdl_order_args *args = op;
    order_call call = {args, launch->workspace};
    hdl_parallel_for(launch->n_threads, args->n_rows * args->list->n_lists, order_list, &call);
}

/* ---- VISIT ---- */

typedef struct visit_call {
    const hdl_visit_args *args;
    double *space; /* [n_threads, heads of a KV head, v_head_dim + 3] */
} visit_call;

typedef struct head_sum {    /* a streaming softmax */
    double max, sum, gained; /* gained: of `sum`, by what was visited since it was last looked at */
    double o[];
} head_sum;

static head_sum *sum_of(const visit_call *call, int thread, int32_t head)
{
    const hdl_attend_args *args = &call->args->attend;
    int64_t size = args->v_head_dim + 3, group = args->n_heads / args->n_kv_heads;
    return (head_sum *)(void *)(call->space + (thread * group + head) * size);
}

static void add_token(const hdl_attend_args *args, head_sum *to, const kv_walk *walk, int64_t step,
                      const float *q, int32_t kv_head)
{
    double s = ref_score(args, walk, step, q, kv_head);
    if (s == -INFINITY) return;
    double old = s > to->max ? exp(to->max - s) : 1;
    to->max = HDL_MAX(to->max, s);
    double p = exp(s - to->max);
    float v_scale;
    const uint8_t *v = ref_kv_row(args, walk->kv, walk_token(walk, step), kv_head, true, &v_scale);
    to->sum = to->sum * old + p;
    to->gained = to->gained * old + p;
    for (int64_t i = 0; i < args->v_head_dim; i++)
        to->o[i] = to->o[i] * old + p * (double)stored_element(walk->kv->dtype, v, i, v_scale);
}

/* All heads of the KV head, over places [from, to) of the order; returns the tokens that they saw. */
static int64_t visit_places(const visit_call *call, int64_t row, int32_t kv_head, const int32_t *order,
                            int64_t from, int64_t to, int thread)
{
    const hdl_attend_args *args = &call->args->attend;
    int32_t group = args->n_heads / args->n_kv_heads, same;
    kv_walk walk = ref_head_walk(args, row, kv_head * group, &same);
    int64_t n = 0;
    for (int64_t i = from; i < to; i++) {
        int64_t first = HDL_MAX(order[i] * walk.size, walk.begin),
                end = HDL_MIN((order[i] + 1) * walk.size, walk.end);
        for (int64_t step = first; step < end; step++) {
            if (!walk_sees(&walk, walk_token(&walk, step))) continue;
            for (int32_t h = 0; h < group; h++) {
                const float *q = args->q + row * args->q_stride +
                                 (int64_t)(kv_head * group + h) * args->head_dim;
                add_token(args, sum_of(call, thread, h), &walk, step, q, kv_head);
            }
            n++;
        }
    }
    return n;
}

/* The largest share that the heads' last tile has in what they summed up so far; begins the next tile. */
static double largest_gain(const visit_call *call, int thread)
{
    const hdl_attend_args *args = &call->args->attend;
    double largest = 0;
    for (int32_t h = 0; h < args->n_heads / args->n_kv_heads; h++) {
        head_sum *at = sum_of(call, thread, h);
        if (at->sum > 0) largest = HDL_MAX(largest, at->gained / at->sum);
        at->gained = 0;
    }
    return largest;
}

static void visit_group(void *arg, int64_t task, int thread)
{
    const visit_call *call = arg;
    const hdl_attend_args *args = &call->args->attend;
    const hdl_stop_rule *stop = &call->args->stop;
    const hdl_selection *sel = args->selection;
    int64_t row = task / args->n_kv_heads, v_dim = args->v_head_dim, n_weak = 0;
    int32_t kv_head = (int32_t)(task % args->n_kv_heads), group = args->n_heads / args->n_kv_heads;
    const hdl_attend_seq *seq = attend_seq_of(args, row);
    int64_t list = list_row(sel, seq, row - seq->first_row) * sel->n_lists + attend_list_of(args, kv_head);
    const int32_t *order = sel->order + list * sel->n_ids_max;
    int64_t n = sel->counts[list], at = sel->n_first[list], tile = HDL_MAX(stop->tile / sel->block_size, 1);
    for (int32_t h = 0; h < group; h++) {
        head_sum *sum = sum_of(call, thread, h);
        sum->max = -INFINITY;
        sum->sum = sum->gained = 0;
        memset(sum->o, 0, (size_t)v_dim * sizeof *sum->o);
    }
    int64_t n_read = visit_places(call, row, kv_head, order, 0, at, thread);
    largest_gain(call, thread);
    while (at < n && n_weak < stop->patience) {
        int64_t end = HDL_MIN(at + tile, n);
        n_read += visit_places(call, row, kv_head, order, at, end, thread);
        n_weak = largest_gain(call, thread) < (double)stop->below ? n_weak + 1 : 0;
        at = end;
    }
    call->args->n_read[task] = (int32_t)n_read;
    for (int32_t h = 0; h < group; h++) {
        const head_sum *sum = sum_of(call, thread, h);
        float *out = args->o + row * args->o_stride + (kv_head * group + h) * v_dim;
        for (int64_t i = 0; i < v_dim; i++) out[i] = sum->sum > 0 ? (float)(sum->o[i] / sum->sum) : 0;
    }
}

static int64_t visit_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = &((const hdl_visit_args *)op)->attend;
    int64_t group = args->n_heads / args->n_kv_heads;
    return n_threads * group * (args->v_head_dim + 3) * (int64_t)sizeof(double);
}

static void visit(const hdl_launch *launch, const void *op)
{
    const hdl_visit_args *args = op;
    visit_call call = {args, launch->workspace};
    hdl_parallel_for(launch->n_threads, args->attend.n_rows * args->attend.n_kv_heads, visit_group, &call);
}

const hdl_impl hdl_cpu_ref_visit[] = {
    {"order_ref", HDL_OP_ORDER, HDL_ISA_REF, NULL, order_workspace, order},
    {"visit_ref", HDL_OP_VISIT, HDL_ISA_REF, NULL, visit_workspace, visit},
    {NULL, HDL_OP_VISIT, HDL_ISA_REF, NULL, NULL, NULL},
};
