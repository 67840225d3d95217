/* simd_complement.c - attention over lists and, through the means of its blocks, over what they leave out.
 *
 * The sums that op.h names are never formed: with n_e unlisted tokens of B in entry e,
 *
 *   q . k_e = (B q . mean_e - sum of the listed q . k_j) / n_e
 *   p_e v_e = p_e B / n_e mean_v_e - sum of the listed p_e / n_e v_j
 *
 * and the list needs q . k_j and p_j v_j of the same rows. So a listed row is read once, for both; v_j's weight is
 * p_j - p_e / n_e. Rows go through attention's inner loops a group at a time: GROUP entries at most, and the listed
 * tokens that lie in them:
 *
 *   s_e [heads, GROUP] = B q . mean                    entries
 *   s_j [heads, tokens] = q . k                        tokens; their entries' s_e lose them
 *   p = e^(s - m)                                      both in one row, scaled, capped; s_j biased, masked; s_e + log n
 *   o += (p_j - p_e / n) v                             tokens
 *   o += (p_e B / n) mean_v                            entries
 *
 * Every entry that a row sees belongs to a group. One that may not be read as a mean, since it holds the row's own
 * token or reaches over what is visible, is as good as listed whole: n = 0, p_e = 0.
 *
 * Tasks are (row, list, split of entries); partials are merged in ascending order. Where splits and groups end
 * depends on the row's own tokens and list alone, and so do the bits.
 *
 * Bytes, operations, bound: L listed tokens and E entries of 9 heads and 3 KV heads of 64 in f16 are 768 (L + E)
 * bytes, about 120 (L + E) cycles with 16 lanes (simd_attend_row.c), and 9 subtractions of a float a token: bound by
 * memory on two threads. The list, its complement and their merge one after the other are 120 (2 L + E) and two joins
 * more. */
#include "backend/cpu/complement_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_unit.h"
#include "base/pool.h"

enum {
    GROUP = BLOCK,
    MAX_BLOCKS = 16, /* of a group's tokens */
    MAX_TOKENS = MAX_BLOCKS * BLOCK,
    ROW = GROUP + MAX_TOKENS,
    MAX_SPLITS = 32, /* of a list */
    MIN_TOKENS = 64, /* that a split's entries stand for */
    MAX_SLOTS = 256
};

/* Heads of one list of one query row. */
typedef struct rest_unit {
    const hdl_complement_args *args;
    row_unit row;
    row_entries entries;
    int64_t length; /* entries of a split */
    int shift;      /* block_size = 1 << shift */
} rest_unit;

/* Entries first .. first + n, the listed tokens in them, and what n_e unlisted ones make of scores and weights. */
typedef struct rest_group {
    int64_t first, n, next_step;
    token_block keys, values; /* rows of the two planes; n = 0: no entry may be read */
    int64_t n_tokens, n_blocks;
    unit_block blocks[MAX_BLOCKS]; /* each but the last is full */
    int32_t entry[MAX_TOKENS];     /* the token's in the group */
    /* scale / n_e, log n_e, B / n_e; 0, -inf, 0 where n_e = 0 */
    float scale[GROUP], log_left[GROUP], weight[GROUP];
} rest_group;

/* Scratch of a thread beside the unit's, whose s is of entries. */
typedef struct rest_scratch {
    unit_scratch unit;
    float *w; /* [n_heads, BLOCK] of a block's tokens */
    float *p; /* [n_heads, ROW] scores, then weights: of the entries, of the tokens */
} rest_scratch;

typedef struct rest_call {
    const hdl_complement_args *args;
    int64_t first_row, n_splits; /* of the longest row */
    int32_t n_lists;
    unit_slots slots;
    uint8_t *scratch;
    int64_t scratch_bytes;
} rest_call;

/* ---- groups ---- */

/* Puts the tokens from `step` on; stops before an entry whose tokens might not fit. */
static void put_tokens(const rest_unit *unit, int64_t step, rest_group *group)
{
    const kv_walk *walk = &unit->row.walk;
    int64_t block_size = unit->args->block_size, last = -1, run;
    group->n_tokens = 0;
    for (; step < walk->end; step += run) {
        int64_t token = walk_token(walk, step), e = (token >> unit->shift) - group->first;
        if (e >= group->n) break;
        if (e != last && group->n_tokens + block_size > MAX_TOKENS) {
            group->n = e;
            break;
        }
        last = e;
        int64_t at = group->n_tokens % BLOCK, room = HDL_MIN(BLOCK - at, walk->end - step);
        unit_block *block = &group->blocks[group->n_tokens / BLOCK];
        run = put_steps(&unit->row, block, at, step, HDL_MIN(room, block_size - (token & (block_size - 1))));
        block->tokens.n = at + run;
        for (int64_t i = 0; i < run; i++) group->entry[group->n_tokens + i] = (int32_t)e;
        group->n_tokens += run;
    }
    group->next_step = step;
    group->n_blocks = (group->n_tokens + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < group->n_blocks; b++) close_block(&unit->row, &group->blocks[b].tokens);
    for (int64_t i = group->n_tokens; i < group->n_blocks * BLOCK; i++) group->entry[i] = 0;
}

/* Entries from `first` on, before `end`; the listed tokens in them begin at `step`. */
static void fill_group(const rest_unit *unit, int64_t first, int64_t end, int64_t step, rest_group *group)
{
    const hdl_complement_args *args = unit->args;
    const row_entries *entries = &unit->entries;
    int32_t n_left[GROUP] = {0};
    group->first = first;
    group->n = HDL_MIN(end - first, (int64_t)GROUP);
    put_tokens(unit, step, group);
    int64_t from = HDL_MAX(first, entries->begin), to = HDL_MIN(first + group->n, entries->end);
    for (int64_t e = from; e < to; e++) n_left[e - first] = args->block_size;
    for (int64_t i = 0; i < group->n_tokens; i++) n_left[group->entry[i]] -= n_left[group->entry[i]] > 0;
    group->keys.n = group->values.n = from < to ? group->n : 0;
    for (int64_t i = 0; i < GROUP; i++) {
        float n = (float)n_left[i];
        group->scale[i] = n > 0 ? args->attend.scale / n : 0;
        group->log_left[i] = n > 0 ? logf(n) : -INFINITY;
        group->weight[i] = n > 0 ? (float)args->block_size / n : 0;
        if (from >= to) continue;
        int64_t e = HDL_MIN(HDL_MAX(first + i, from), to - 1); /* of the others any that may be read */
        group->keys.row[i] = mean_at(unit->row.walk.kv, 0, e, args->block_size);
        group->values.row[i] = mean_at(unit->row.walk.kv, 1, e, args->block_size);
    }
}

/* What is asked for while `block`, `offset` into its rows, is read: the rows of `next`, `to` into them. */
static const token_block *ask_for(const token_block *next, int64_t to, int64_t offset, token_block *space)
{
    for (int i = 0; i < BLOCK; i++) space->row[i] = next->row[i] + to - offset;
    return space;
}

/* ---- a group's arithmetic ---- */

static void score_entries(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch)
{
    const row_unit *row = &unit->row;
    float *s = scratch->unit.s;
    int64_t n = row->n_heads * (int64_t)BLOCK, dim = row->args->head_dim;
    int32_t of_kv_head = row->n_heads / row->n_kv_heads;
    memset(s, 0, (size_t)n * sizeof *s); /* past the last entry, too */
    if (!group->keys.n) return;
    token_block space;
    const token_block *next = group->n_tokens
                                  ? ask_for(&group->blocks[0].tokens, row->walk.kv->k_offset, 0, &space)
                                  : &group->values;
    for (int32_t i = 0; i < row->n_kv_heads; i++)
        score_heads(&group->keys, next, (row->first_kv_head + i) * dim * 2,
                    scratch->unit.q + i * of_kv_head * dim, dim, of_kv_head, s + i * of_kv_head * BLOCK,
                    HDL_F16);
    for (int64_t i = 0; i < n; i += VW)
        vf_store(s + i, vf_mul(vf_load(s + i), vf_set1((float)unit->args->block_size)));
}

/* Scores of block b's tokens; their entries' lose them. */
static void score_tokens(const rest_unit *unit, const rest_group *group, int64_t b, const token_block *next,
                         const rest_scratch *scratch)
{
    const row_unit *row = &unit->row;
    const hdl_kv_view *kv = row->walk.kv;
    const unit_block *block = &group->blocks[b];
    const int32_t *entry = group->entry + b * BLOCK;
    int64_t dim = row->args->head_dim;
    int32_t of_kv_head = row->n_heads / row->n_kv_heads;
    for (int32_t i = 0; i < row->n_kv_heads; i++) {
        int32_t kv_head = row->first_kv_head + i, first = i * of_kv_head;
        float *s = scratch->unit.s + first * BLOCK, k_scale[BLOCK];
        score_heads(&block->tokens, next, kv->k_offset + kv_head * kv->head_stride,
                    scratch->unit.q + first * dim, dim, of_kv_head, scratch->w, kv->dtype);
        for (int32_t g = 0; g < of_kv_head && kv->dtype == HDL_I8; g++) {
            if (!g)
                gather_scales(&block->tokens, kv->k_scale_offset + kv_head * (int64_t)sizeof(float), k_scale);
            for (int64_t t = 0; t < BLOCK; t += VW)
                vf_store(scratch->w + g * BLOCK + t,
                         vf_mul(vf_load(scratch->w + g * BLOCK + t), vf_load(k_scale + t)));
        }
        for (int64_t t = 0; t < block->tokens.n; t++)
            for (int32_t g = 0; g < of_kv_head; g++) s[g * BLOCK + entry[t]] -= scratch->w[g * BLOCK + t];
        for (int32_t g = 0; g < of_kv_head; g++) {
            float *w = scratch->w + g * BLOCK;
            shape_scores(row, block, NULL, w);
            memcpy(scratch->p + (first + g) * ROW + GROUP + b * BLOCK, w,
                   (size_t)block->tokens.n * sizeof *w);
        }
    }
}

/* The entries' scores and the tokens' become weights; s becomes p_e B / n. */
static void weigh_group(const rest_unit *unit, const rest_group *group, const rest_scratch *scratch,
                        const row_slot *slot)
{
    const hdl_attend_args *args = unit->row.args;
    int64_t dim = args->v_head_dim;
    for (int32_t head = 0; head < unit->row.n_heads; head++) {
        float *s = scratch->unit.s + head * BLOCK, *p = scratch->p + head * ROW;
        for (int64_t i = 0; i < GROUP; i += VW) {
            vf x = vf_mul(vf_load(s + i), vf_load(group->scale + i));
            if (args->soft_cap > 0) x = vf_soft_cap(x, args->soft_cap);
            vf_store(p + i, vf_add(x, vf_load(group->log_left + i)));
        }
        weigh_head(p, GROUP + group->n_tokens, &slot->max[head], scratch->unit.lanes + head * VW,
                   slot->o + head * dim, dim);
        for (int64_t i = 0; i < GROUP; i += VW)
            vf_store(s + i, vf_mul(vf_load(p + i), vf_load(group->weight + i)));
    }
}

/* o += (p_j - p_e / n) v of block b's tokens. */
static void mix_tokens(const rest_unit *unit, const rest_group *group, int64_t b, const token_block *next,
                       const rest_scratch *scratch, const row_slot *slot)
{
    const row_unit *row = &unit->row;
    const hdl_kv_view *kv = row->walk.kv;
    const token_block *block = &group->blocks[b].tokens;
    int64_t dim = row->args->v_head_dim;
    int32_t of_kv_head = row->n_heads / row->n_kv_heads;
    vf each = vf_set1(-1 / (float)unit->args->block_size);
    for (int32_t i = 0; i < row->n_kv_heads; i++) {
        int32_t kv_head = row->first_kv_head + i, first = i * of_kv_head;
        float v_scale[BLOCK];
        if (kv->dtype == HDL_I8)
            gather_scales(block, kv->v_scale_offset + kv_head * (int64_t)sizeof(float), v_scale);
        for (int32_t g = 0; g < of_kv_head; g++)
            for (int64_t t = 0; t < block->n; t += VW) {
                vf of_entry = vf_look_up(scratch->unit.s + (first + g) * BLOCK, group->entry + b * BLOCK + t);
                vf w = vf_fma(of_entry, each,
                              vf_load(scratch->p + (first + g) * ROW + GROUP + b * BLOCK + t));
                vf_store(scratch->w + g * BLOCK + t,
                         kv->dtype == HDL_I8 ? vf_mul(w, vf_load(v_scale + t)) : w);
            }
        mix_heads(block, next, kv->v_offset + kv_head * kv->v_head_stride, scratch->w, slot->o + first * dim,
                  dim, of_kv_head, kv->dtype);
    }
}

/* o += (p_e B / n) mean_v. */
static void mix_entries(const rest_unit *unit, const rest_group *group, const token_block *next,
                        const rest_scratch *scratch, const row_slot *slot)
{
    const row_unit *row = &unit->row;
    int64_t dim = row->args->v_head_dim;
    int32_t of_kv_head = row->n_heads / row->n_kv_heads;
    for (int32_t i = 0; i < row->n_kv_heads; i++)
        mix_heads(&group->values, next, (row->first_kv_head + i) * dim * 2,
                  scratch->unit.s + i * of_kv_head * BLOCK, slot->o + i * of_kv_head * dim, dim, of_kv_head,
                  HDL_F16);
}

/* Rows are asked for a block ahead: keys, K, V, values, then the keys of the group that comes next. */
static void attend_group(const rest_unit *unit, const rest_group *group, const rest_group *next,
                         const rest_scratch *scratch, const row_slot *slot)
{
    const hdl_kv_view *kv = unit->row.walk.kv;
    int64_t n = group->n_blocks;
    const unit_block *blocks = group->blocks;
    token_block space;
    score_entries(unit, group, scratch);
    for (int64_t b = 0; b < n; b++)
        score_tokens(unit, group, b,
                     b + 1 < n ? &blocks[b + 1].tokens
                               : ask_for(&blocks[0].tokens, kv->v_offset, kv->k_offset, &space),
                     scratch);
    weigh_group(unit, group, scratch, slot);
    for (int64_t b = 0; b < n; b++) {
        const token_block *later = &blocks[HDL_MIN(b + 1, n - 1)].tokens;
        if (b + 1 == n && group->values.n) later = ask_for(&group->values, 0, kv->v_offset, &space);
        mix_tokens(unit, group, b, later, scratch, slot);
    }
    if (group->values.n) mix_entries(unit, group, next->keys.n ? &next->keys : &group->values, scratch, slot);
}

/* ---- tasks ---- */

/* Entries of a split. */
static int64_t split_length(const hdl_complement_args *args, const row_entries *entries)
{
    int64_t n = entries->own + 1 - entries->seen, length = 1;
    while (length * MAX_SPLITS < n || length * args->block_size < MIN_TOKENS) length *= 2;
    return length;
}

static int64_t n_splits_of(const hdl_complement_args *args, const row_entries *entries)
{
    return (entries->own - entries->seen) / split_length(args, entries) + 1;
}

static rest_unit unit_at(const rest_call *call, int64_t row, int32_t list)
{
    const hdl_attend_args *attend = &call->args->attend;
    int32_t n_kv_heads = attend->n_kv_heads / call->n_lists;
    rest_unit unit = {.args = call->args,
                      .row = unit_of(attend, row, list * n_kv_heads, n_kv_heads),
                      .entries = complement_entries(call->args, row)};
    unit.length = split_length(call->args, &unit.entries);
    while (1 << unit.shift < call->args->block_size) unit.shift++;
    return unit;
}

static rest_scratch scratch_at(const rest_call *call, const row_unit *row, int thread)
{
    uint8_t *memory = call->scratch + thread * call->scratch_bytes;
    rest_scratch scratch = {.unit = unit_scratch_at(row, memory)};
    scratch.w = (float *)(void *)(memory + unit_scratch_bytes(row->args));
    scratch.p = scratch.w + row->n_heads * (int64_t)BLOCK;
    return scratch;
}

static void attend_split(void *arg, int64_t task, int thread)
{
    const rest_call *call = arg;
    int64_t of_row = call->n_lists * call->n_splits, split = task % call->n_splits;
    rest_unit unit = unit_at(call, call->first_row + task / of_row,
                             (int32_t)(task % of_row / call->n_splits));
    if (split >= n_splits_of(call->args, &unit.entries)) return;
    row_slot slot = unit_slot(&call->slots, &unit.row, task);
    rest_scratch scratch = scratch_at(call, &unit.row, thread);
    pack_queries(&unit.row, scratch.unit.q);
    begin_sums(&unit.row, &slot, scratch.unit.lanes);
    int64_t e = unit.entries.seen + split * unit.length, end = HDL_MIN(e + unit.length, unit.entries.own + 1);
    rest_group groups[2];
    const kv_walk *walk = &unit.row.walk;
    fill_group(&unit, e, end, HDL_MAX(walk_lower_bound(walk, walk->end, e << unit.shift), walk->begin),
               &groups[0]);
    for (int turn = 0; e < end; turn ^= 1) {
        const rest_group *group = &groups[turn], *next = group;
        e = group->first + group->n;
        if (e < end) {
            fill_group(&unit, e, end, group->next_step, &groups[turn ^ 1]);
            next = &groups[turn ^ 1];
        }
        attend_group(&unit, group, next, &scratch, &slot);
    }
    for (int32_t head = 0; head < unit.row.n_heads; head++)
        slot.sum[head] = vf_sum(vf_load(scratch.unit.lanes + head * VW));
}

static void finish_list(void *arg, int64_t task, int thread)
{
    (void)thread;
    const rest_call *call = arg;
    rest_unit unit = unit_at(call, call->first_row + task / call->n_lists, (int32_t)(task % call->n_lists));
    finish_unit(&call->slots, &unit.row, task * call->n_splits, n_splits_of(call->args, &unit.entries));
}

static const char *rest_why_not(const void *op)
{
    const hdl_complement_args *args = op;
    if (args->block_size & (args->block_size - 1)) return "block_size is not a power of two";
    if (args->block_size > MAX_TOKENS) return "a block has more tokens than a group";
    return unit_refusal(&args->attend);
}

static int64_t scratch_bytes_of(const hdl_attend_args *args)
{
    return unit_scratch_bytes(args) +
           HDL_ALIGN_UP(args->n_heads * (int64_t)(BLOCK + ROW) * (int64_t)sizeof(float), (int64_t)LINE);
}

static int64_t rest_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = &((const hdl_complement_args *)op)->attend;
    int64_t n_slots = HDL_MAX((int64_t)args->n_kv_heads * MAX_SPLITS, (int64_t)MAX_SLOTS);
    return n_slots * unit_slot_bytes(args) + n_threads * scratch_bytes_of(args);
}

static void complement(const hdl_launch *launch, const void *op)
{
    const hdl_complement_args *args = op;
    const hdl_attend_args *attend = &args->attend;
    rest_call call = {.args = args,
                      .n_lists = attend->selection->n_lists,
                      .scratch = launch->workspace,
                      .scratch_bytes = scratch_bytes_of(attend)};
    call.slots = (unit_slots){call.scratch + launch->n_threads * call.scratch_bytes, unit_slot_bytes(attend)};
    for (int64_t row = 0; row < attend->n_rows; row++) {
        row_entries entries = complement_entries(args, row);
        call.n_splits = HDL_MAX(call.n_splits, n_splits_of(args, &entries));
    }
    int64_t of_row = call.n_lists * call.n_splits, n_rows = HDL_MAX(MAX_SLOTS / of_row, 1);
    for (call.first_row = 0; call.first_row < attend->n_rows; call.first_row += n_rows) {
        int64_t n = HDL_MIN(n_rows, attend->n_rows - call.first_row);
        hdl_parallel_for(launch->n_threads, n * of_row, attend_split, &call);
        hdl_parallel_for(n > 1 ? launch->n_threads : 1, n * call.n_lists, finish_list, &call);
    }
}

const hdl_impl HDL_CPU_ROWS(complement)[] = {
    {"complement" HDL_ISA_SUFFIX, HDL_OP_COMPLEMENT, (hdl_isa)THIS_ISA, rest_why_not, rest_workspace,
     complement},
    {NULL, HDL_OP_COMPLEMENT, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
