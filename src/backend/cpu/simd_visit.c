/* simd_visit.c - VISIT: a row and KV head attends to its list from the loudest token on, until the rest is quiet.
 *
 *   for each block of the order, cut where tiles end              (addresses: one block ahead, over tiles' ends)
 *       scores, weights, o                                        as in simd_attend_row.c
 *       at a tile's end: sum = sum e^(old m - m) + the tile's sum; gain = the tile's sum / sum
 *
 * A tile's sum has lanes of its own, so that its gain is a quotient of two sums and not a difference of
 * two that are nearly equal: a gain of 0.001 is right to a few units of the last place. A task is a row and KV head,
 * cut nowhere: its bits depend on its own list and order alone.
 *
 * Bytes, operations, bound for one visited token of a KV head of 64 in f16 with 3 query heads, 16 lanes: 256 bytes
 * in four lines of their own (the order jumps: no two tokens share a line or a page); 24 multiply-adds, 8
 * conversions, 3/16 exponentials: 40 cycles from a cache (118 for 3 KV heads in simd_attend_row.c), 11 ns at 3.6 GHz.
 * With rows all over the context it is bound by the latency of lines, of which a block asks for 128 at once:
 * measured 79 ns over 32K tokens on a host at work, attend_list over the same tokens in their order 78. What is
 * asked for past the end of a visit is one block at most. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_unit.h"
#include "base/pool.h"

typedef struct visit_call {
    const hdl_visit_args *args;
    uint8_t *memory; /* of each thread: scratch; o, max and sum of a KV head's heads */
    int64_t scratch_bytes, thread_bytes;
} visit_call;

/* How far the blocks of a visit were filled. */
typedef struct visit_cursor {
    const int32_t *order;
    int64_t n, n_tile; /* places of the list, and of a tile */
    int64_t place, tile_end;
    int64_t done; /* steps of `place` that are in blocks */
} visit_cursor;

typedef struct visit_block {
    unit_block rows;
    bool ends_tile;
} visit_block;

/* Puts what the row sees of the place's steps; false when the block is full before they end. */
static bool put_place(const row_unit *unit, visit_cursor *at, unit_block *block)
{
    const kv_walk *walk = &unit->walk;
    int64_t first = at->order[at->place] * walk->size, end = HDL_MIN(first + walk->size, walk->end);
    int64_t step = HDL_MAX(first, walk->begin) + at->done;
    while (step < end) {
        int64_t room = BLOCK - block->tokens.n, n = 1;
        if (!room) return false;
        if (walk_sees(walk, walk_token(walk, step))) {
            n = put_steps(unit, block, block->tokens.n, step, walk->mask ? 1 : HDL_MIN(room, end - step));
            block->tokens.n += n;
        }
        step += n;
        at->done += n;
    }
    at->done = 0;
    at->place++;
    return true;
}

/* The next block of the order: not past its tile's end, perhaps of no row. */
static void fill_visit(const row_unit *unit, visit_cursor *at, visit_block *block)
{
    block->rows.tokens.n = 0;
    while (at->place < at->tile_end && put_place(unit, at, &block->rows)) {
    }
    block->ends_tile = at->place == at->tile_end;
    if (block->ends_tile) at->tile_end = HDL_MIN(at->tile_end + at->n_tile, at->n);
    if (block->rows.tokens.n) close_block(unit, &block->rows.tokens);
}

/* Adds the tile's lanes to the sums and begins the next; returns the largest gain. */
static float end_tile(const row_unit *unit, const row_slot *slot, float *tile_max, float *lanes)
{
    float largest = 0;
    for (int32_t head = 0; head < unit->n_heads; head++, lanes += VW) {
        float gained = vf_sum(vf_load(lanes)), old = tile_max[head], max = slot->max[head];
        if (max > old) slot->sum[head] *= expf(old - max);
        slot->sum[head] += gained;
        if (slot->sum[head] > 0) largest = HDL_MAX(largest, gained / slot->sum[head]);
        tile_max[head] = max;
        vf_store(lanes, vf_set1(0));
    }
    return largest;
}

/* Visits until the rule says stop; returns how many tokens were read. */
static int64_t visit_order(const row_unit *unit, const hdl_stop_rule *stop, visit_cursor at,
                           const row_slot *slot, float *tile_max, const unit_scratch *scratch)
{
    visit_block blocks[2];
    int64_t n_read = 0, n_weak = 0;
    bool is_forced = true;
    fill_visit(unit, &at, &blocks[0]);
    for (int turn = 0;; turn ^= 1) {
        const visit_block *block = &blocks[turn], *next = block;
        bool is_last = at.place == at.n && block->ends_tile;
        if (!is_last) {
            fill_visit(unit, &at, &blocks[turn ^ 1]);
            if (blocks[turn ^ 1].rows.tokens.n) next = &blocks[turn ^ 1];
        }
        if (block->rows.tokens.n) attend_block(unit, &block->rows, &next->rows, slot, scratch);
        n_read += block->rows.tokens.n;
        if (block->ends_tile) {
            bool is_weak = end_tile(unit, slot, tile_max, scratch->lanes) < stop->below;
            n_weak = is_weak && !is_forced ? n_weak + 1 : 0;
            is_forced = false;
            if (n_weak >= stop->patience) break;
        }
        if (is_last) break;
    }
    return n_read;
}

static void visit_head(void *arg, int64_t task, int thread)
{
    const visit_call *call = arg;
    const hdl_attend_args *args = &call->args->attend;
    const hdl_selection *sel = args->selection;
    int64_t row = task / args->n_kv_heads, dim = args->v_head_dim;
    int32_t kv_head = (int32_t)(task % args->n_kv_heads);
    row_unit unit = unit_of(args, row, kv_head, 1);
    const hdl_attend_seq *seq = attend_seq_of(args, row);
    int64_t list = list_row(sel, seq, row - seq->first_row) * sel->n_lists + attend_list_of(args, kv_head);
    uint8_t *memory = call->memory + thread * call->thread_bytes;
    unit_scratch scratch = unit_scratch_at(&unit, memory);
    row_slot slot = {.o = (float *)(void *)(memory + call->scratch_bytes)};
    slot.max = slot.o + unit.n_heads * dim;
    slot.sum = slot.max + unit.n_heads;
    float *tile_max = slot.sum + unit.n_heads;
    visit_cursor at = {.order = sel->order + list * sel->n_ids_max,
                       .n = sel->counts[list],
                       .n_tile = HDL_MAX(call->args->stop.tile / sel->block_size, 1),
                       .tile_end = sel->n_first[list]};
    pack_queries(&unit, scratch.q);
    begin_sums(&unit, &slot, scratch.lanes);
    for (int32_t head = 0; head < unit.n_heads; head++) {
        tile_max[head] = -INFINITY;
        slot.sum[head] = 0;
    }
    call->args->n_read[task] = (int32_t)visit_order(&unit, &call->args->stop, at, &slot, tile_max, &scratch);
    for (int32_t head = 0; head < unit.n_heads; head++) {
        vf share = vf_set1(slot.sum[head] > 0 ? 1 / slot.sum[head] : 0);
        float *out = args->o + row * args->o_stride + (kv_head * unit.n_heads + head) * dim;
        for (int64_t d = 0; d < dim; d += VW)
            vf_store(out + d, vf_mul(vf_load(slot.o + head * dim + d), share));
    }
}

static const char *visit_why_not(const void *op)
{
    return unit_refusal(&((const hdl_visit_args *)op)->attend);
}

static int64_t thread_bytes(const hdl_attend_args *args)
{
    int64_t group = args->n_heads / args->n_kv_heads;
    return unit_scratch_bytes(args) +
           HDL_ALIGN_UP(group * (args->v_head_dim + 3) * (int64_t)sizeof(float), (int64_t)LINE);
}

static int64_t visit_workspace(const void *op, int n_threads)
{
    return n_threads * thread_bytes(&((const hdl_visit_args *)op)->attend);
}

static void visit(const hdl_launch *launch, const void *op)
{
    const hdl_visit_args *args = op;
    visit_call call = {args, launch->workspace, unit_scratch_bytes(&args->attend),
                       thread_bytes(&args->attend)};
    hdl_parallel_for(launch->n_threads, args->attend.n_rows * args->attend.n_kv_heads, visit_head, &call);
}

const hdl_impl HDL_CPU_ROWS(visit)[] = {
    {"visit" HDL_ISA_SUFFIX, HDL_OP_VISIT, (hdl_isa)THIS_ISA, visit_why_not, visit_workspace, visit},
    {NULL, HDL_OP_VISIT, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
