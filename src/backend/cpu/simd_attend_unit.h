/* simd_attend_unit.h - one query row and the heads that read one list for it, a block of tokens at a time: shared by
 * the kernels whose rows are read as they lie, in the order of the walk (simd_attend_row.c, with the means
 * of the rest simd_complement.c) or of a list's visits (simd_visit.c).
 *
 *   put_steps, close_block    which rows a block holds: addresses, steps of the walk, scales
 *   pack_queries              the order of elements that score_heads reads
 *   attend_block              scores, weights and o of one block; `next` is the block asked for meanwhile
 *   unit_slot, finish_unit    partials of a unit, and its output from them */
#ifndef HDL_SIMD_ATTEND_UNIT_H
#define HDL_SIMD_ATTEND_UNIT_H

#include "backend/cpu/attend_int.h"
#include "backend/cpu/simd_attend_tile.h"

typedef struct row_unit {
    const hdl_attend_args *args;
    kv_walk walk;
    int64_t row;
    int32_t first_kv_head, n_kv_heads, n_heads; /* of the list; group = n_heads / n_kv_heads */
    float *kept;                                /* [n_heads, kept_stride] scores by step, or NULL */
    int64_t kept_stride;
} row_unit;

/* What a unit summed up: o [n_heads, v_head_dim], max [n_heads], sum [n_heads]. */
typedef struct row_slot {
    float *o, *max, *sum;
} row_slot;

/* Memory of slots. */
typedef struct unit_slots {
    uint8_t *memory;
    int64_t bytes; /* of one */
} unit_slots;

/* Rows of a walk's steps. */
typedef struct unit_block {
    token_block tokens;
    int64_t step[BLOCK]; /* of the walk */
} unit_block;

/* Scratch of a unit: s [n_heads, BLOCK], lanes [n_heads, VW], the packed q [n_heads, head_dim]. */
typedef struct unit_scratch {
    float *s, *lanes, *q;
} unit_scratch;

static inline int64_t unit_scratch_bytes(const hdl_attend_args *args)
{
    return HDL_ALIGN_UP((int64_t)args->n_heads * (BLOCK + VW + args->head_dim) * (int64_t)sizeof(float),
                        (int64_t)LINE);
}

static inline unit_scratch unit_scratch_at(const row_unit *unit, void *memory)
{
    float *s = memory, *lanes = s + unit->n_heads * BLOCK;
    return (unit_scratch){s, lanes, lanes + unit->n_heads * VW};
}

/* Puts steps step.. of the walk at place `at` of the block: at most n that lie one after the other in one page, as runs
 * of blocks and of dense walks do, so that the page table is looked at once. Returns how many. */
ALWAYS_INLINE int64_t put_steps(const row_unit *unit, unit_block *block, int64_t at, int64_t step, int64_t n)
{
    const kv_walk *walk = &unit->walk;
    const hdl_kv_view *kv = walk->kv;
    token_block *to = &block->tokens;
    int64_t scale_stride = kv_scale_stride(kv, unit->args->n_kv_heads), slot;
    const uint8_t *page = kv_page_of(kv, walk_token(walk, step), &slot);
    to->row[at] = page + slot * kv->token_stride;
    if (kv->dtype == HDL_I8) to->scale[at] = page + slot * scale_stride;
    block->step[at] = step;
    if (walk->ids && walk->size == 1) return 1; /* no loops for one */
    if (walk->ids) n = HDL_MIN(n, walk->size - step % walk->size);
    n = HDL_MIN(n, ((int64_t)1 << kv->page_shift) - slot);
    for (int64_t j = 1; j < n; j++) to->row[at + j] = page + (slot + j) * kv->token_stride;
    for (int64_t j = 1; j < n; j++) block->step[at + j] = step + j;
    for (int64_t j = 1; j < n && kv->dtype == HDL_I8; j++)
        to->scale[at + j] = page + (slot + j) * scale_stride;
    return n;
}

/* Past the last row the last again; asks for the scales. The block holds a row. */
ALWAYS_INLINE void close_block(const row_unit *unit, token_block *block)
{
    const hdl_kv_view *kv = unit->walk.kv;
    for (int64_t i = block->n; i < BLOCK; i++) block->row[i] = block->row[block->n - 1];
    if (kv->dtype != HDL_I8) return;
    for (int64_t i = 0; i < block->n; i++) {
        __builtin_prefetch(block->scale[i] + kv->k_scale_offset, 0, 2);
        __builtin_prefetch(block->scale[i] + kv->v_scale_offset, 0, 2);
    }
    for (int64_t i = block->n; i < BLOCK; i++) block->scale[i] = block->scale[block->n - 1];
}

/* Scaled, capped, biased and masked scores in place. `scales` are K's, or NULL. */
static void shape_scores(const row_unit *unit, const unit_block *block, const float *scales, float *s)
{
    const hdl_attend_args *args = unit->args;
    const kv_walk *walk = &unit->walk;
    int64_t n = block->tokens.n;
    for (int64_t t = 0; t < n; t += VW) {
        vf x = vf_mul(vf_load(s + t), vf_set1(args->scale));
        if (scales) x = vf_mul(x, vf_load(scales + t));
        if (args->soft_cap > 0) x = vf_soft_cap(x, args->soft_cap);
        vf_store(s + t, x);
    }
    if (walk->bias)
        for (int64_t t = 0; t < n; t++) s[t] += walk->bias[block->step[t] / walk->size];
    if (walk->mask)
        for (int64_t t = 0; t < n; t++)
            if (!walk_sees(walk, walk_token(walk, block->step[t]))) s[t] = -INFINITY;
}

/* The scores of a KV head's heads become weights; o and the lane sums are rescaled where they have to be. */
static void weigh_kv_head(const row_unit *unit, const unit_block *block, int32_t index, float *s,
                          float *lanes, const row_slot *slot)
{
    const hdl_attend_args *args = unit->args;
    const hdl_kv_view *kv = unit->walk.kv;
    const token_block *tokens = &block->tokens;
    bool is_i8 = kv->dtype == HDL_I8;
    float k_scale[BLOCK], v_scale[BLOCK];
    int64_t head_at = (int64_t)(unit->first_kv_head + index) * (int64_t)sizeof(float), dim = args->v_head_dim;
    if (is_i8) {
        gather_scales(tokens, kv->k_scale_offset + head_at, k_scale);
        gather_scales(tokens, kv->v_scale_offset + head_at, v_scale);
    }
    int32_t group = unit->n_heads / unit->n_kv_heads;
    for (int32_t head = index * group; head < (index + 1) * group; head++) {
        float *x = s + head * BLOCK;
        shape_scores(unit, block, is_i8 ? k_scale : NULL, x);
        if (unit->kept)
            memcpy(unit->kept + head * unit->kept_stride + block->step[0] - unit->walk.begin, x,
                   (size_t)tokens->n * sizeof(float));
        weigh_head(x, tokens->n, &slot->max[head], lanes + head * VW, slot->o + head * dim, dim);
        if (is_i8)
            for (int64_t t = 0; t < tokens->n; t += VW)
                vf_store(x + t, vf_mul(vf_load(x + t), vf_load(v_scale + t)));
    }
}

static void pack_queries(const row_unit *unit, float *to)
{
    const hdl_attend_args *args = unit->args;
    int32_t group = unit->n_heads / unit->n_kv_heads;
    int64_t dim = args->head_dim;
    const float *from = args->q + unit->row * args->q_stride + (int64_t)unit->first_kv_head * group * dim;
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        pack_query(from + i * group * dim, dim, group, to + i * group * dim);
}

/* Every head's o, max and lane sums, as yet of nothing. */
static void begin_sums(const row_unit *unit, const row_slot *slot, float *lanes)
{
    memset(slot->o, 0, (size_t)(unit->n_heads * unit->args->v_head_dim) * sizeof(float));
    memset(lanes, 0, (size_t)unit->n_heads * VW * sizeof(float));
    for (int32_t head = 0; head < unit->n_heads; head++) slot->max[head] = -INFINITY;
}

/* Adds a block of at least one row. */
static inline void attend_block(const row_unit *unit, const unit_block *block, const unit_block *next,
                                const row_slot *slot, const unit_scratch *scratch)
{
    const hdl_kv_view *kv = unit->walk.kv;
    const token_block *now = &block->tokens, *later = &next->tokens;
    int32_t group = unit->n_heads / unit->n_kv_heads;
    int64_t k_dim = unit->args->head_dim, v_dim = unit->args->v_head_dim;
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        score_heads(now, later, kv->k_offset + (unit->first_kv_head + i) * kv->head_stride,
                    scratch->q + i * group * k_dim, k_dim, group, scratch->s + i * group * BLOCK, kv->dtype);
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        weigh_kv_head(unit, block, i, scratch->s, scratch->lanes, slot);
    for (int32_t i = 0; i < unit->n_kv_heads; i++)
        mix_heads(now, later, kv->v_offset + (unit->first_kv_head + i) * kv->v_head_stride,
                  scratch->s + i * group * BLOCK, slot->o + i * group * v_dim, v_dim, group, kv->dtype);
}

/* KV heads first_kv_head .. + n_kv_heads of a row, which read one list. */
static inline row_unit unit_of(const hdl_attend_args *args, int64_t row, int32_t first_kv_head,
                               int32_t n_kv_heads)
{
    row_unit unit = {.args = args, .row = row, .first_kv_head = first_kv_head, .n_kv_heads = n_kv_heads};
    const hdl_attend_seq *seq = attend_seq_of(args, row);
    unit.walk = row_walk(args, seq, row - seq->first_row, attend_list_of(args, first_kv_head));
    unit.n_heads = n_kv_heads * (args->n_heads / args->n_kv_heads);
    return unit;
}

static inline int64_t unit_slot_bytes(const hdl_attend_args *args)
{
    return HDL_ALIGN_UP((args->v_head_dim + 2) * (int64_t)args->n_heads * (int64_t)sizeof(float), LINE);
}

static inline row_slot unit_slot(const unit_slots *slots, const row_unit *unit, int64_t index)
{
    float *at = (float *)(void *)(slots->memory + index * slots->bytes);
    row_slot slot = {at, at + unit->n_heads * (int64_t)unit->args->v_head_dim, NULL};
    slot.sum = slot.max + unit->n_heads;
    return slot;
}

/* Partials first.. of the unit in ascending order into o and lse. */
static inline void finish_unit(const unit_slots *slots, const row_unit *unit, int64_t first, int64_t n)
{
    const hdl_attend_args *args = unit->args;
    int64_t dim = args->v_head_dim;
    int32_t first_head = unit->first_kv_head * (unit->n_heads / unit->n_kv_heads);
    row_slot into = unit_slot(slots, unit, first);
    for (int32_t head = 0; head < unit->n_heads; head++) {
        float max = into.max[head], sum = 0;
        for (int64_t i = 1; i < n; i++) max = HDL_MAX(max, unit_slot(slots, unit, first + i).max[head]);
        float *o = into.o + head * dim;
        for (int64_t i = 0; i < n; i++) {
            row_slot slot = unit_slot(slots, unit, first + i);
            float weight = slot.max[head] == -INFINITY ? 0 : expf(slot.max[head] - max);
            sum += slot.sum[head] * weight;
            for (int64_t d = 0; d < dim; d += VW) {
                vf part = vf_mul(vf_load(slot.o + head * dim + d), vf_set1(weight));
                vf_store(o + d, i ? vf_add(vf_load(o + d), part) : part);
            }
        }
        vf share = vf_set1(finish_head(args, unit->row, first_head + head, max, sum));
        float *out = args->o + unit->row * args->o_stride + (first_head + head) * dim;
        for (int64_t d = 0; d < dim; d += VW) vf_store(out + d, vf_mul(vf_load(o + d), share));
    }
}

static inline const char *unit_refusal(const hdl_attend_args *args)
{
    if (args->head_dim % 16 || args->v_head_dim % 16) return "head_dim or v_head_dim is not a multiple of 16";
    if (args->n_heads % args->n_kv_heads) return "n_heads is not a multiple of n_kv_heads";
    if (!is_kv_dtype(args->kv_dtype)) return "the KV type is not f32, f16, bf16, i8 or q4_1";
    if (args->kv_dtype == HDL_Q4_1 && (args->head_dim % 32 || args->v_head_dim % 32))
        return "q4_1 rows: head_dim or v_head_dim is not a multiple of 32";
    return NULL;
}

#endif
