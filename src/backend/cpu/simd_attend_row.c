/* simd_attend_row.c - attention of one query row at a time: decoding, and token lists.
 *
 * Lanes are the elements of a head: K and V rows are used as they lie, each read once for all heads of
 * its group, all KV heads of a token together (in a token-major page that is one contiguous row).
 *
 *   for each block of BLOCK tokens of the walk                       (addresses: two blocks in turn)
 *       scores   [heads, BLOCK] = q . K            prefetching K of the next block
 *       weights  p = e^(s - m), s scaled, capped, biased, masked;    sums by lanes
 *       o        [heads, v_head_dim] += p V        prefetching V of the next block
 *
 * Tasks are splits of each row's walk at multiples of SPLIT tokens; their partials are merged in
 * ascending order. Blocks are simd_attend_unit.h's.
 *
 * Bytes, operations, bound for one token of 9 heads and 3 KV heads of 64 in f16, with 16 lanes:
 * 768 bytes; 72 fused multiply-adds, 24 conversions, 9/16 exponentials of 12 operations, additions and
 * shuffles for 9 sums. Where one 512-bit FMA is issued per cycle (Zen 4) that is 72 cycles at least;
 * measured 118 from the first-level cache, 134 from the second: 21 GB/s a core at 3.6 GHz. One thread is
 * bound by the core where memory gives it more than that, several threads by memory. Measured against
 * the read bandwidth of the same minute: 65-70 % with 4 KiB pages, 83-88 % with huge ones.
 * Prefetch goes to the second-level cache: into the first it evicts the block at work (2x slower).
 *
 * Scratch: slots for the partials, bounded by MAX_SLOTS, and one score row for the mass. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_unit.h"
#include "base/pool.h"

enum { SPLIT = 64, MAX_SLOTS = 256, MASS_TOKENS = 2048 };

typedef struct row_call {
    const hdl_attend_args *args;
    int64_t n_units, first_unit;
    int64_t n_splits, length; /* splits of the longest walk, and their tokens: a multiple of SPLIT */
    int32_t n_lists;
    unit_slots slots;
    uint8_t *scratch, *kept;
    int64_t scratch_bytes;
} row_call;

/* Rows of steps [step, end), as many as a block holds. */
static void fill_block(const row_unit *unit, int64_t step, int64_t end, unit_block *block)
{
    int64_t n = HDL_MIN(end - step, (int64_t)BLOCK);
    block->tokens.n = n;
    for (int64_t i = 0; i < n;) i += put_steps(unit, block, i, step + i, n - i);
    close_block(unit, &block->tokens);
}

/* Attends steps [begin, end) into the slot. */
static void attend_steps(const row_unit *unit, int64_t begin, int64_t end, const row_slot *slot, void *memory)
{
    unit_scratch scratch = unit_scratch_at(unit, memory);
    pack_queries(unit, scratch.q);
    begin_sums(unit, slot, scratch.lanes);
    unit_block blocks[2];
    if (begin < end) fill_block(unit, begin, end, &blocks[0]);
    for (int64_t step = begin, turn = 0; step < end; step += BLOCK, turn ^= 1) {
        const unit_block *block = &blocks[turn], *next = block;
        if (step + BLOCK < end) {
            fill_block(unit, step + BLOCK, end, &blocks[turn ^ 1]);
            next = &blocks[turn ^ 1];
        }
        attend_block(unit, block, next, slot, &scratch);
    }
    for (int32_t head = 0; head < unit->n_heads; head++)
        slot->sum[head] = vf_sum(vf_load(scratch.lanes + head * VW));
}

static row_unit unit_at(const row_call *call, int64_t index)
{
    int32_t n_kv_heads = call->args->n_kv_heads / call->n_lists, list = (int32_t)(index % call->n_lists);
    row_unit unit = unit_of(call->args, index / call->n_lists, list * n_kv_heads, n_kv_heads);
    unit.kept = (float *)(void *)call->kept;
    unit.kept_stride = call->args->max_kv_len;
    return unit;
}

/* Splits begin at multiples of the length, counted from the multiple of SPLIT before the walk. */
static int64_t first_split_of(const row_unit *unit)
{
    return unit->walk.begin / SPLIT * SPLIT;
}

static int64_t n_splits_of(const row_call *call, const row_unit *unit)
{
    int64_t n = unit->walk.end - first_split_of(unit);
    return HDL_MAX((n + call->length - 1) / call->length, 1);
}

static void attend_split(void *arg, int64_t task, int thread)
{
    const row_call *call = arg;
    row_unit unit = unit_at(call, call->first_unit + task / call->n_splits);
    int64_t split = task % call->n_splits, from = first_split_of(&unit) + split * call->length;
    if (split >= n_splits_of(call, &unit)) return;
    int64_t begin = HDL_MAX(from, unit.walk.begin), end = HDL_MIN(from + call->length, unit.walk.end);
    int64_t index = call->n_splits > 1 ? task : thread;
    row_slot slot = unit_slot(&call->slots, &unit, index);
    attend_steps(&unit, begin, end, &slot, call->scratch + thread * call->scratch_bytes);
    if (call->n_splits == 1) finish_unit(&call->slots, &unit, index, 1);
}

/* mass of MASS_TOKENS tokens of every list, from the kept scores. */
static void mass_chunk(void *arg, int64_t task, int thread)
{
    (void)thread;
    const row_call *call = arg;
    const hdl_attend_args *args = call->args;
    row_unit unit = unit_at(call, call->first_unit);
    int64_t begin = task * MASS_TOKENS, end = HDL_MIN(begin + MASS_TOKENS, unit.walk.end);
    int64_t first = HDL_MIN(HDL_MAX(begin, unit.walk.begin), end);
    int32_t n = args->n_heads / args->n_mass_lists;
    bool is_max = args->mass_reduce == HDL_REDUCE_MAX;
    float weight = args->mass_reduce == HDL_REDUCE_MEAN ? 1.0f / (float)n : 1;
    for (int32_t list = 0; list < args->n_mass_lists; list++) {
        float *mass = args->mass + (unit.row * args->n_mass_lists + list) * args->mass_stride;
        memset(mass + begin, 0, (size_t)(end - begin) * sizeof *mass);
        for (int32_t head = list * n; head < (list + 1) * n; head++) {
            const float *kept = unit.kept + head * unit.kept_stride - unit.walk.begin;
            float lse = args->lse[unit.row * args->n_heads + head];
            if (lse == -INFINITY) continue;
            int64_t j = first;
            for (; j + VW <= end; j += VW) {
                vf p = vf_mul(vf_exp(vf_sub(vf_load(kept + j), vf_set1(lse))), vf_set1(weight));
                vf_store(mass + j, is_max ? vf_max(vf_load(mass + j), p) : vf_add(vf_load(mass + j), p));
            }
            for (; j < end; j++) {
                float p = expf(kept[j] - lse) * weight;
                mass[j] = is_max ? HDL_MAX(mass[j], p) : mass[j] + p;
            }
        }
    }
}

static const char *shape_refusal(const hdl_attend_args *args)
{
    if (args->is_invariant) return "invariant mode: the many-row kernel's order is used";
    return unit_refusal(args);
}

static const char *row_why_not(const void *op)
{
    const hdl_attend_args *args = op;
    if (args->has_selection) return "lists: attend_list is for them";
    if (args->max_q_len > 1) return "several rows of a sequence: attend_rows is for them";
    return shape_refusal(args);
}

static const char *list_why_not(const void *op)
{
    const hdl_attend_args *args = op;
    if (!args->has_selection) return "no lists";
    if (args->rows_per_list > 1 && args->max_q_len > 1)
        return "lists shared by rows: attend_rows is for them";
    if (args->has_mass) return "mass over lists is left to the reference";
    return shape_refusal(args);
}

/* The most splits of a unit: enough for the threads, few enough for the slots. */
static int64_t max_splits_of(int64_t n_units, int n_threads)
{
    int64_t wanted = HDL_MIN(HDL_MAX(2 * (int64_t)n_threads, 18), (int64_t)MAX_SLOTS);
    return HDL_MAX(HDL_MIN((int64_t)MAX_SLOTS / HDL_MAX(n_units, 1), wanted), 1);
}

/* Never less for fewer rows than booked: n max_splits_of(n) <= min(MAX_SLOTS, n max_splits_of(1)). */
static int64_t n_slots_of(const hdl_attend_args *args, int n_threads)
{
    int64_t n_units = args->n_rows * (args->has_selection ? args->n_kv_heads : 1);
    return HDL_MAX(HDL_MIN((int64_t)MAX_SLOTS, n_units * max_splits_of(1, n_threads)), (int64_t)n_threads);
}

/* Slots, then scratch of each thread, then the lse and the score row where mass is wanted. */

static int64_t row_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = op;
    int64_t bytes = n_slots_of(args, n_threads) * unit_slot_bytes(args) +
                    n_threads * unit_scratch_bytes(args);
    if (!args->has_mass) return bytes;
    bytes += HDL_ALIGN_UP(args->n_rows * args->n_heads * (int64_t)sizeof(float), LINE);
    return bytes + args->n_heads * args->max_kv_len * (int64_t)sizeof(float);
}

/* Cuts the units from first_unit on and runs them. */
static void run_units(row_call *call, int n_threads)
{
    int64_t longest = 0, max_splits = max_splits_of(call->n_units, n_threads);
    for (int64_t i = 0; i < call->n_units; i++) {
        row_unit unit = unit_at(call, call->first_unit + i);
        longest = HDL_MAX(longest, unit.walk.end - first_split_of(&unit));
    }
    call->length = HDL_MAX(HDL_ALIGN_UP((longest + max_splits - 1) / max_splits, SPLIT), SPLIT);
    call->n_splits = HDL_MAX((longest + call->length - 1) / call->length, 1);
    hdl_parallel_for(n_threads, call->n_units * call->n_splits, attend_split, call);
    for (int64_t i = 0; i < call->n_units && call->n_splits > 1; i++) {
        row_unit unit = unit_at(call, call->first_unit + i);
        finish_unit(&call->slots, &unit, i * call->n_splits, n_splits_of(call, &unit));
    }
}

static void attend(const hdl_launch *launch, const void *op)
{
    hdl_attend_args args = *(const hdl_attend_args *)op;
    row_call call = {.args = &args, .n_lists = args.selection ? args.selection->n_lists : 1};
    call.scratch_bytes = unit_scratch_bytes(&args);
    call.slots = (unit_slots){launch->workspace, unit_slot_bytes(&args)};
    call.scratch = call.slots.memory + n_slots_of(&args, launch->n_threads) * call.slots.bytes;
    call.n_units = args.n_rows * call.n_lists;
    if (!args.mass) {
        run_units(&call, launch->n_threads);
        return;
    }
    /* one score row: sequences one after the other, each on all threads */
    uint8_t *after = call.scratch + launch->n_threads * call.scratch_bytes;
    if (!args.lse) args.lse = (float *)(void *)after;
    call.kept = after + HDL_ALIGN_UP(args.n_rows * args.n_heads * (int64_t)sizeof(float), LINE);
    call.n_units = 1;
    for (call.first_unit = 0; call.first_unit < args.n_rows; call.first_unit++) {
        run_units(&call, launch->n_threads);
        int64_t n = attend_seq_of(&args, call.first_unit)->kv_len;
        hdl_parallel_for(launch->n_threads, (n + MASS_TOKENS - 1) / MASS_TOKENS, mass_chunk, &call);
    }
}

const hdl_impl HDL_CPU_ROWS(attend_row)[] = {
    {"attend_row" HDL_ISA_SUFFIX, HDL_OP_ATTEND, (hdl_isa)THIS_ISA, row_why_not, row_workspace, attend},
    {"attend_list" HDL_ISA_SUFFIX, HDL_OP_ATTEND, (hdl_isa)THIS_ISA, list_why_not, row_workspace, attend},
    {NULL, HDL_OP_ATTEND, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
