/* simd_complement.c - what a list leaves out, through the means of its blocks.
 *
 * The sums that op.h names are never formed: with n_e unlisted tokens of B in entry e,
 *
 *   q . k_e = (B q . mean_e - sum of the listed q . k_j) / n_e
 *   p_e v_e = p_e B / n_e mean_v_e - sum of the listed p_e / n_e v_j
 *
 * so entries and listed tokens are rows for attention's inner loops, GROUP entries at a time:
 *
 *   s [heads, GROUP] = B q . mean      less q . k of the listed tokens, scaled, capped, + log n
 *   p = e^(s - m)                      o += (p B / n) mean_v,  o -= (p / n) v of the listed tokens
 *
 * Entries that are listed whole have p = 0 and their tokens are not read: for blocks of the means' own
 * size that is all of them. Listed tokens of the others were read by ATTEND just before, from the cache.
 *
 * Tasks are (row, list, SPLIT entries); partials are merged in ascending order, so the bits depend on
 * neither threads nor rows. Scratch: slots for as many rows as MAX_SLOTS allows, one at least. */
#include "backend/cpu/complement_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_tile.h"
#include "base/pool.h"

enum { GROUP = BLOCK, SPLIT = 64, MAX_SLOTS = 128 };

/* Heads of one list of one query row. */
typedef struct rest_unit {
    const hdl_complement_args *args;
    complement_walk at;
    int shift; /* block_size = 1 << shift */
    int32_t first_kv_head, n_kv_heads, n_heads, group;
} rest_unit;

/* GROUP entries: their rows, how many tokens of each are unlisted, what that makes of scores and weights. */
typedef struct rest_group {
    token_block keys, values; /* rows of the two planes */
    int64_t first;
    int64_t step_begin, step_end; /* the listed tokens of these entries */
    int32_t n_left[GROUP];
    float scale[GROUP], log_left[GROUP], weight[GROUP]; /* scale / n, log n, B / n; 0, -inf, 0 where n = 0 */
} rest_group;

/* Scratch of a thread; o, max and sum are the slot's. */
typedef struct rest_scratch {
    float *s, *w; /* [n_heads, BLOCK] of entries, of tokens */
    float *lanes; /* [n_heads, VW] */
    float *q;     /* packed [n_heads, head_dim] */
    float *o, *max, *sum;
} rest_scratch;

typedef struct rest_call {
    const hdl_complement_args *args;
    int64_t first_row, n_splits;
    int32_t n_lists;
    uint8_t *slots, *scratch;
    int64_t slot_bytes, scratch_bytes;
} rest_call;

/* Steps from `step` on that lie in one block of the list and one entry. */
ALWAYS_INLINE int64_t run_of(const rest_unit *unit, int64_t step, int64_t token)
{
    const kv_walk *walk = &unit->at.walk;
    int64_t block = (int64_t)1 << unit->shift;
    if (walk->size == 1) return 1;
    return HDL_MIN(HDL_MIN(walk->size - step % walk->size, block - (token & (block - 1))), walk->end - step);
}

static void fill_group(const rest_unit *unit, int64_t first, int64_t n, int64_t step, rest_group *group)
{
    const hdl_complement_args *args = unit->args;
    const kv_walk *walk = &unit->at.walk;
    int32_t block = args->block_size;
    group->first = first;
    group->keys.n = group->values.n = n;
    for (int64_t i = 0; i < GROUP; i++) {
        group->keys.row[i] = mean_at(walk->kv, 0, first + HDL_MIN(i, n - 1), block);
        group->values.row[i] = mean_at(walk->kv, 1, first + HDL_MIN(i, n - 1), block);
        group->n_left[i] = block;
    }
    group->step_begin = step;
    for (int64_t run; step < walk->end; step += run) {
        int64_t token = walk_token(walk, step), e = (token >> unit->shift) - first;
        if (e >= n) break;
        run = run_of(unit, step, token);
        group->n_left[e] -= (int32_t)run;
    }
    group->step_end = step;
    for (int64_t i = 0; i < GROUP; i++) {
        float n_left = (float)group->n_left[i];
        group->scale[i] = n_left > 0 ? args->scale / n_left : 0;
        group->log_left[i] = n_left > 0 ? logf(n_left) : -INFINITY;
        group->weight[i] = n_left > 0 ? (float)block / n_left : 0;
    }
}

/* The next listed tokens, BLOCK at most, of entries that are not listed whole; false: there are none.
 * entry[i]: the token's in the group. */
static bool next_tokens(const rest_unit *unit, const rest_group *group, int64_t *step, token_block *block,
                        int32_t entry[BLOCK])
{
    const kv_walk *walk = &unit->at.walk;
    bool is_i8 = walk->kv->dtype == HDL_I8;
    int64_t n = 0;
    while (*step < group->step_end && n < BLOCK) {
        int64_t token = walk_token(walk, *step), e = (token >> unit->shift) - group->first;
        if (!group->n_left[e]) {
            *step += run_of(unit, *step, token);
            continue;
        }
        entry[n] = (int32_t)e;
        block->row[n] = kv_token_at(walk->kv, token);
        if (is_i8) block->scale[n] = kv_scale_at(walk->kv, token, unit->args->n_kv_heads);
        n++;
        ++*step;
    }
    block->n = n;
    for (int64_t i = n; i < BLOCK && n; i++) {
        block->row[i] = block->row[n - 1];
        if (is_i8) block->scale[i] = block->scale[n - 1];
    }
    return n > 0;
}

/* s -= q . k of the listed tokens, each from its entry's. */
static void take_scores(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch)
{
    const hdl_kv_view *kv = unit->at.walk.kv;
    int64_t dim = unit->args->head_dim;
    token_block block;
    int32_t entry[BLOCK];
    for (int64_t step = group->step_begin; next_tokens(unit, group, &step, &block, entry);)
        for (int32_t i = 0; i < unit->n_kv_heads; i++) {
            int32_t kv_head = unit->first_kv_head + i, head = i * unit->group;
            float k_scale[BLOCK];
            score_heads(&block, &block, kv->k_offset + kv_head * kv->head_stride, scratch->q + head * dim,
                        dim, unit->group, scratch->w, kv->dtype);
            for (int t = 0; t < BLOCK; t++) k_scale[t] = 1;
            if (kv->dtype == HDL_I8)
                gather_scales(&block, kv->k_scale_offset + kv_head * (int64_t)sizeof(float), k_scale);
            for (int32_t g = 0; g < unit->group; g++)
                for (int64_t t = 0; t < block.n; t++)
                    scratch->s[(head + g) * BLOCK + entry[t]] -= scratch->w[g * BLOCK + t] * k_scale[t];
        }
}

/* o -= (p / n) v of the listed tokens; s holds p. */
static void take_values(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch)
{
    const hdl_kv_view *kv = unit->at.walk.kv;
    int64_t dim = unit->args->v_head_dim;
    float each = -1 / (float)unit->args->block_size;
    token_block block;
    int32_t entry[BLOCK];
    for (int64_t step = group->step_begin; next_tokens(unit, group, &step, &block, entry);)
        for (int32_t i = 0; i < unit->n_kv_heads; i++) {
            int32_t kv_head = unit->first_kv_head + i, head = i * unit->group;
            float factor[BLOCK], v_scale[BLOCK];
            if (kv->dtype == HDL_I8)
                gather_scales(&block, kv->v_scale_offset + kv_head * (int64_t)sizeof(float), v_scale);
            for (int64_t t = 0; t < block.n; t++) factor[t] = kv->dtype == HDL_I8 ? each * v_scale[t] : each;
            for (int32_t g = 0; g < unit->group; g++)
                for (int64_t t = 0; t < block.n; t++)
                    scratch->w[g * BLOCK + t] = scratch->s[(head + g) * BLOCK + entry[t]] * factor[t];
            mix_heads(&block, &block, kv->v_offset + kv_head * kv->v_head_stride, scratch->w,
                      scratch->o + head * dim, dim, unit->group, kv->dtype);
        }
}

/* s becomes p B / n; the slot's state moves on. */
static void weigh_group(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch)
{
    const hdl_complement_args *args = unit->args;
    int64_t n = group->keys.n, dim = args->v_head_dim;
    for (int32_t head = 0; head < unit->n_heads; head++) {
        float *s = scratch->s + head * BLOCK;
        for (int64_t i = 0; i < n; i += VW) {
            vf x = vf_mul(vf_load(s + i), vf_load(group->scale + i));
            if (args->soft_cap > 0) x = vf_soft_cap(x, args->soft_cap);
            vf_store(s + i, vf_add(x, vf_load(group->log_left + i)));
        }
        weigh_head(s, n, &scratch->max[head], scratch->lanes + head * VW, scratch->o + head * dim, dim);
        for (int64_t i = 0; i < n; i += VW)
            vf_store(s + i, vf_mul(vf_load(s + i), vf_load(group->weight + i)));
    }
}

static void attend_group(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch)
{
    const hdl_complement_args *args = unit->args;
    int64_t k_dim = args->head_dim, v_dim = args->v_head_dim;
    vf block = vf_set1((float)args->block_size);
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        score_heads(&group->keys, &group->keys, (unit->first_kv_head + i) * k_dim * 2,
                    scratch->q + i * unit->group * k_dim, k_dim, unit->group,
                    scratch->s + i * unit->group * BLOCK, HDL_F16);
    for (int64_t i = 0; i < unit->n_heads * (int64_t)BLOCK; i += VW)
        vf_store(scratch->s + i, vf_mul(vf_load(scratch->s + i), block));
    take_scores(unit, group, scratch);
    weigh_group(unit, group, scratch);
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        mix_heads(&group->values, &group->values, (unit->first_kv_head + i) * v_dim * 2,
                  scratch->s + i * unit->group * BLOCK, scratch->o + i * unit->group * v_dim, v_dim,
                  unit->group, HDL_F16);
    take_values(unit, group, scratch);
}

static rest_unit unit_at(const rest_call *call, int64_t row, int32_t list)
{
    const hdl_complement_args *args = call->args;
    rest_unit unit = {.args = args, .at = complement_of(args, complement_seq_of(args, row), row, list)};
    while (1 << unit.shift < args->block_size) unit.shift++;
    unit.n_kv_heads = args->n_kv_heads / call->n_lists;
    unit.n_heads = args->n_heads / call->n_lists;
    unit.group = args->n_heads / args->n_kv_heads;
    unit.first_kv_head = list * unit.n_kv_heads;
    return unit;
}

/* Slot of (row of the wave, list, split): o, max, sum of the list's heads. */
static rest_scratch slot_at(const rest_call *call, int64_t index, int32_t n_heads)
{
    rest_scratch slot = {.o = (float *)(void *)(call->slots + index * call->slot_bytes)};
    slot.max = slot.o + n_heads * (int64_t)call->args->v_head_dim;
    slot.sum = slot.max + n_heads;
    return slot;
}

static void attend_split(void *arg, int64_t task, int thread)
{
    const rest_call *call = arg;
    const hdl_complement_args *args = call->args;
    int64_t of_row = call->n_lists * call->n_splits, row = call->first_row + task / of_row;
    rest_unit unit = unit_at(call, row, (int32_t)(task % of_row / call->n_splits));
    int64_t first = task % call->n_splits * SPLIT, begin = HDL_MAX(first, unit.at.begin);
    int64_t end = HDL_MIN(first + SPLIT, unit.at.end), n_heads = unit.n_heads, dim = args->head_dim;
    if (begin >= end) return;
    rest_scratch scratch = slot_at(call, task, unit.n_heads);
    scratch.s = (float *)(void *)(call->scratch + thread * call->scratch_bytes);
    scratch.w = scratch.s + n_heads * BLOCK;
    scratch.lanes = scratch.w + n_heads * BLOCK;
    scratch.q = scratch.lanes + n_heads * VW;
    const float *q = args->q + row * args->q_stride + (int64_t)unit.first_kv_head * unit.group * dim;
    for (int32_t i = 0; i < unit.n_kv_heads; i++)
        pack_query(q + i * unit.group * dim, dim, unit.group, scratch.q + i * unit.group * dim);
    memset(scratch.o, 0, (size_t)(n_heads * args->v_head_dim) * sizeof(float));
    memset(scratch.lanes, 0, (size_t)n_heads * VW * sizeof(float));
    for (int32_t head = 0; head < unit.n_heads; head++) scratch.max[head] = -INFINITY;
    int64_t step = walk_lower_bound(&unit.at.walk, unit.at.walk.end, begin << unit.shift);
    rest_group group;
    for (int64_t e = begin; e < end; e += GROUP, step = group.step_end) {
        fill_group(&unit, e, HDL_MIN(end - e, (int64_t)GROUP), step, &group);
        attend_group(&unit, &group, &scratch);
    }
    for (int32_t head = 0; head < unit.n_heads; head++)
        scratch.sum[head] = vf_sum(vf_load(scratch.lanes + head * VW));
}

/* The row's splits in ascending order into o and lse. */
static void finish_list(const rest_call *call, int64_t row, int32_t list)
{
    const hdl_complement_args *args = call->args;
    rest_unit unit = unit_at(call, row, list);
    int64_t dim = args->v_head_dim, slot = ((row - call->first_row) * call->n_lists + list) * call->n_splits;
    int64_t first = unit.at.begin / SPLIT, last = (unit.at.end + SPLIT - 1) / SPLIT;
    if (unit.at.begin >= unit.at.end) last = first;
    for (int32_t h = 0; h < unit.n_heads; h++) {
        int32_t head = unit.first_kv_head * unit.group + h;
        float max = -INFINITY, sum = 0, *o = args->o + row * args->o_stride + head * dim;
        for (int64_t i = first; i < last; i++)
            max = HDL_MAX(max, slot_at(call, slot + i, unit.n_heads).max[h]);
        memset(o, 0, (size_t)dim * sizeof *o);
        for (int64_t i = first; i < last; i++) {
            rest_scratch part = slot_at(call, slot + i, unit.n_heads);
            if (part.max[h] == -INFINITY) continue;
            float weight = expf(part.max[h] - max);
            sum += part.sum[h] * weight;
            for (int64_t d = 0; d < dim; d += VW)
                vf_store(o + d, vf_fma(vf_load(part.o + h * dim + d), vf_set1(weight), vf_load(o + d)));
        }
        vf share = vf_set1(sum > 0 ? 1 / sum : 0);
        for (int64_t d = 0; d < dim; d += VW) vf_store(o + d, vf_mul(vf_load(o + d), share));
        args->lse[row * args->n_heads + head] = sum > 0 ? max + logf(sum) : -INFINITY;
    }
}

static const char *rest_why_not(const void *op)
{
    const hdl_complement_args *args = op;
    if (args->head_dim % 16 || args->v_head_dim % 16) return "head_dim or v_head_dim is not a multiple of 16";
    if (args->n_heads % args->n_kv_heads) return "n_heads is not a multiple of n_kv_heads";
    if (args->block_size & (args->block_size - 1)) return "block_size is not a power of two";
    return NULL;
}

static int64_t slot_bytes_of(const hdl_complement_args *args)
{
    return HDL_ALIGN_UP((args->v_head_dim + 2) * (int64_t)args->n_heads * (int64_t)sizeof(float), LINE);
}

static int64_t scratch_bytes_of(const hdl_complement_args *args)
{
    return HDL_ALIGN_UP(args->n_heads * (int64_t)(2 * BLOCK + VW + args->head_dim) * (int64_t)sizeof(float),
                        LINE);
}

static int64_t n_splits_of(const hdl_complement_args *args)
{
    return args->max_kv_len / args->block_size / SPLIT + 1;
}

static int64_t rest_workspace(const void *op, int n_threads)
{
    const hdl_complement_args *args = op;
    int64_t n_slots = HDL_MAX(n_splits_of(args) * args->n_kv_heads, (int64_t)MAX_SLOTS);
    return n_slots * slot_bytes_of(args) + n_threads * scratch_bytes_of(args);
}

static void complement(const hdl_launch *launch, const void *op)
{
    const hdl_complement_args *args = op;
    rest_call call = {.args = args,
                      .n_splits = n_splits_of(args),
                      .n_lists = args->selection->n_lists,
                      .scratch = launch->workspace,
                      .slot_bytes = slot_bytes_of(args),
                      .scratch_bytes = scratch_bytes_of(args)};
    call.slots = call.scratch + launch->n_threads * call.scratch_bytes;
    int64_t of_row = call.n_lists * call.n_splits, n_rows = HDL_MAX(MAX_SLOTS / of_row, 1);
    for (call.first_row = 0; call.first_row < args->n_rows; call.first_row += n_rows) {
        int64_t n = HDL_MIN(n_rows, args->n_rows - call.first_row);
        hdl_parallel_for(launch->n_threads, n * of_row, attend_split, &call);
        for (int64_t row = call.first_row; row < call.first_row + n; row++)
            for (int32_t list = 0; list < call.n_lists; list++) finish_list(&call, row, list);
    }
}

const hdl_impl HDL_CPU_ROWS(complement)[] = {
    {"complement" HDL_ISA_SUFFIX, HDL_OP_COMPLEMENT, (hdl_isa)THIS_ISA, rest_why_not, rest_workspace,
     complement},
    {NULL, HDL_OP_COMPLEMENT, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
