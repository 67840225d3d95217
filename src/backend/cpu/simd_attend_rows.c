/* simd_attend_rows.c - attention of many query rows: prefill, batches, and everything invariant.
 *
 * The rows of a tile x the heads of one KV head are the M rows of two matrix products with a stride of
 * HDL_KV_STRIDE tokens, converted to f32 once for all of them:
 *
 *   S [M, stride] = Q [M, head_dim] . KT [head_dim, stride]      K transposed: lanes are tokens
 *   p = e^(S - m), m the row's maximum in this stride            scaled, capped, biased, masked
 *   O [M, v_head_dim] = O alpha + (p V) beta                     lanes are elements of V
 *
 * Both use one micro-kernel of MR x NR vectors; KT and V lie in panels as wide as it. Every element
 * of S and of p V is one chain of multiply-adds in ascending order, so it does not matter in which
 * tile, micro-tile or call a row stands: the partial of a stride depends on the row's visible tokens
 * alone, and partials are merged in ascending order. Hidden tokens have p = 0 exactly, which leaves
 * every sum as it is, so strides, panels and tokens that no row of a block sees are skipped. This is
 * the invariant order; the dense operator and a list of all tokens give the same bits.
 *
 * Operations: 2 (head_dim + v_head_dim) per visible (row, head, token). Bytes: K and V once per tile
 * of 64 rows, 192 operations a byte for f16 heads of 64: bound by FMA. Beside the products stand the
 * exponentials (12 operations of 16 scores against 128 FMA), the conversion (1 / M) and the diagonal.
 *
 * Measured (Zen 4, one FMA per cycle, shared host): 61-63 % of the FMA peak for heads of 64, 73 % of 256.
 *
 * Tasks: (tile, KV head), the last rows, which see the most, first. Few rows (invariant decoding) are
 * cut into waves of strides instead, whose partials are merged afterwards, with the same bits.
 * Short tiles (MR products' rows or fewer) hold all KV heads of a walk, so that a token is read at
 * once; they convert K a panel at a time and V not at all, or scratch would cost more than memory.
 * Lists: a tile is one row, whose tokens are gathered, or rows that share a list: it is read once for
 * them, and each row stops at its own position. Scratch does not depend on kv_len. */
#include "backend/cpu/attend_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_stride.h"
#include "base/pool.h"

enum {
    TILE_M = 192,      /* rows x heads of a tile, at most, for heads up to 128 wide */
    TILE_M_WIDE = 128, /* for wider ones */
    WAVE = 64,         /* strides in flight for few rows */
    WAVE_RUN = 4,      /* strides of a task of a wave */
    WAVE_M = 32        /* the most rows x heads that waves are used for */
};

typedef struct rows_call {
    const hdl_attend_args *args;
    int64_t tile_rows, m_max, n_tiles;
    int32_t tile_kv_heads; /* KV heads of a tile */
    uint8_t *scratch, *slots;
    int64_t scratch_bytes, slot_bytes;
    const row_tile *tile; /* waves: the tile at work and the wave's strides */
    int64_t first_stride, n_strides;
} rows_call;

/* Gives the tile its KV heads, their walk and their q, packed at `q`. */
static void tile_heads(row_tile *tile, int32_t first_kv_head, int32_t n_kv_heads, float *q)
{
    const hdl_attend_args *args = tile->args;
    const hdl_selection *sel = args->selection;
    int64_t n = tile->group * (int64_t)args->head_dim;
    tile->first_kv_head = tile->kv_head = first_kv_head;
    tile->n_kv_heads = n_kv_heads;
    tile->is_short = rows_of_head(tile) <= MR;
    tile_walk(tile, sel ? (int32_t)((int64_t)first_kv_head * sel->n_lists / args->n_kv_heads) : 0);
    tile->q = q;
    for (int32_t head = first_kv_head; head < first_kv_head + n_kv_heads; head++)
        for (int64_t row = 0; row < tile->n_rows; row++, q += n) {
            const float *from = args->q + (tile->seq->first_row + tile->first + row) * args->q_stride +
                                head * n;
            for (int64_t i = 0; i < n; i += VW)
                vf_store(q + i, vf_mul(vf_load(from + i), vf_set1(args->scale)));
        }
}

/* Task (tile, KV heads of a tile) of the call. */
static row_tile task_tile(const rows_call *call, int64_t task, float *q)
{
    int64_t n = call->args->n_kv_heads / call->tile_kv_heads;
    row_tile tile = tile_at(call->args, call->tile_rows, task / n);
    tile_heads(&tile, (int32_t)(task % n) * call->tile_kv_heads, call->tile_kv_heads, q);
    return tile;
}

static tile_scratch scratch_at(const rows_call *call, int thread)
{
    const hdl_attend_args *args = call->args;
    tile_scratch scratch = {.q = (float *)(void *)(call->scratch + thread * call->scratch_bytes)};
    scratch.k = scratch.q + call->m_max * args->head_dim;
    scratch.v = scratch.k + (int64_t)STRIDE * args->head_dim;
    scratch.s = scratch.v + (int64_t)STRIDE * args->v_head_dim;
    scratch.o = scratch.s + MR * STRIDE;
    scratch.max = scratch.o + call->m_max * args->v_head_dim;
    scratch.sum = scratch.max + call->m_max;
    return scratch;
}

static void clear_state(const row_tile *tile, const tile_scratch *state)
{
    int64_t n = tile->n_kv_heads * rows_of_head(tile);
    memset(state->o, 0, (size_t)(n * tile->args->v_head_dim) * sizeof(float));
    for (int64_t m = 0; m < n; m++) {
        state->max[m] = -INFINITY;
        state->sum[m] = 0;
    }
}

static void finish_tile(const row_tile *tile, const tile_scratch *state)
{
    const hdl_attend_args *args = tile->args;
    int64_t dim = args->v_head_dim;
    int64_t n = rows_of_head(tile);
    for (int64_t m = 0; m < tile->n_kv_heads * n; m++) {
        int64_t row = tile->seq->first_row + tile->first + m % n / tile->group;
        int32_t head = (tile->first_kv_head + (int32_t)(m / n)) * tile->group + (int32_t)(m % tile->group);
        vf share = vf_set1(finish_head(args, row, head, state->max[m], state->sum[m]));
        float *out = args->o + row * args->o_stride + head * dim;
        for (int64_t d = 0; d < dim; d += VW)
            vf_store(out + d, vf_mul(vf_load(state->o + m * dim + d), share));
    }
}

static void attend_tile(void *arg, int64_t task, int thread)
{
    const rows_call *call = arg;
    tile_scratch scratch = scratch_at(call, thread);
    row_tile tile = task_tile(call, task, scratch.q);
    clear_state(&tile, &scratch);
    for (int64_t stride = tile.walk.begin / STRIDE; stride * STRIDE < tile.walk.end; stride++)
        attend_stride(&tile, stride, &scratch, &scratch, true);
    finish_tile(&tile, &scratch);
}

static tile_scratch slot_at(const rows_call *call, int64_t index)
{
    tile_scratch slot = {.o = (float *)(void *)(call->slots + index * call->slot_bytes)};
    slot.max = slot.o + WAVE_M * (int64_t)call->args->v_head_dim;
    slot.sum = slot.max + WAVE_M;
    return slot;
}

/* WAVE_RUN strides one after the other, so that each fetches the next. */
static void attend_wave(void *arg, int64_t task, int thread)
{
    const rows_call *call = arg;
    tile_scratch scratch = scratch_at(call, thread);
    row_tile tile = *call->tile;
    int64_t end = HDL_MIN((task + 1) * WAVE_RUN, call->n_strides);
    for (int64_t i = task * WAVE_RUN; i < end; i++) {
        tile_scratch slot = slot_at(call, i);
        attend_stride(&tile, call->first_stride + i, &scratch, &slot, false);
    }
}

/* A tile of few rows: WAVE strides at a time on all threads, merged here. */
static void attend_by_waves(rows_call *call, int64_t task, int n_threads)
{
    tile_scratch state = scratch_at(call, n_threads); /* one more than the threads': q and the state */
    row_tile tile = task_tile(call, task, state.q);
    clear_state(&tile, &state);
    int64_t dim = tile.args->v_head_dim, last = (tile.walk.end + STRIDE - 1) / STRIDE;
    call->tile = &tile;
    for (call->first_stride = tile.walk.begin / STRIDE; call->first_stride < last;
         call->first_stride += WAVE) {
        int64_t n = call->n_strides = HDL_MIN(last - call->first_stride, (int64_t)WAVE);
        hdl_parallel_for(n_threads, (n + WAVE_RUN - 1) / WAVE_RUN, attend_wave, call);
        for (int64_t i = 0; i < n; i++) {
            tile_scratch slot = slot_at(call, i);
            for (int64_t m = 0; m < tile.n_kv_heads * rows_of_head(&tile); m++) {
                float alpha, beta, *o = state.o + m * dim;
                merge_state(slot.max[m], slot.sum[m], &state.max[m], &state.sum[m], &alpha, &beta);
                for (int64_t d = 0; d < dim && beta != 0; d += VW) {
                    vf part = vf_load(slot.o + m * dim + d);
                    vf_store(o + d, vf_fma(part, vf_set1(beta), vf_mul(vf_load(o + d), vf_set1(alpha))));
                }
            }
        }
    }
    finish_tile(&tile, &state);
}

/* Adds the shares of one row block of a stride to the mass of their rows. */
static void mass_block(const row_tile *tile, const tile_stride *at, int64_t m, int mr,
                       const tile_scratch *scratch)
{
    const hdl_attend_args *args = tile->args;
    int32_t n_heads = args->n_heads / args->n_mass_lists;
    bool is_max = args->mass_reduce == HDL_REDUCE_MAX;
    float weight = args->mass_reduce == HDL_REDUCE_MEAN ? 1.0f / (float)n_heads : 1;
    int64_t begin, end, unused;
    row_range(tile, at, m / tile->group, &begin, &unused);
    row_range(tile, at, (m + mr - 1) / tile->group, &unused, &end);
    if (begin >= end) return;
    int64_t v_begin = begin / VW * VW, v_end = HDL_ALIGN_UP(end, VW);
    score_block(tile, m, mr, begin, end, scratch->k, scratch->s);
    for (int i = 0; i < mr; i++) {
        int64_t in_tile = (m + i) / tile->group, row = tile->seq->first_row + tile->first + in_tile;
        int32_t head = tile->kv_head * tile->group + (int32_t)((m + i) % tile->group);
        float lse = args->lse[row * args->n_heads + head], *s = scratch->s + i * STRIDE;
        if (lse == -INFINITY) continue;
        shape_row(tile, at, in_tile, v_begin, v_end, s);
        for (int64_t j = v_begin; j < v_end; j += VW)
            vf_store(s + j, vf_mul(vf_exp(vf_sub(vf_load(s + j), vf_set1(lse))), vf_set1(weight)));
        int64_t own_begin, own_end;
        row_range(tile, at, in_tile, &own_begin, &own_end);
        float *mass = args->mass + (row * args->n_mass_lists + head / n_heads) * args->mass_stride + at->base;
        int64_t j = own_begin;
        for (; j + VW <= own_end; j += VW) {
            vf old = vf_load(mass + j), p = vf_load(s + j);
            vf_store(mass + j, is_max ? vf_max(old, p) : vf_add(old, p));
        }
        for (; j < own_end; j++) mass[j] = is_max ? HDL_MAX(mass[j], s[j]) : mass[j] + s[j];
    }
}

/* The second pass: all heads of a tile, KV heads ascending. */
static void mass_tile(void *arg, int64_t task, int thread)
{
    const rows_call *call = arg;
    const hdl_attend_args *args = call->args;
    tile_scratch scratch = scratch_at(call, thread);
    row_tile tile = tile_at(args, call->tile_rows, task);
    for (int64_t i = 0; i < tile.n_rows; i++) {
        int64_t row = tile.seq->first_row + tile.first + i;
        int64_t n_visible = tile.seq->kv_len - tile.seq->q_len + tile.first + i + 1;
        for (int32_t list = 0; list < args->n_mass_lists; list++)
            memset(args->mass + (row * args->n_mass_lists + list) * args->mass_stride, 0,
                   (size_t)n_visible * sizeof(float));
    }
    for (int32_t kv_head = 0; kv_head < args->n_kv_heads; kv_head++) {
        tile_heads(&tile, kv_head, 1, scratch.q);
        for (int64_t stride = tile.walk.begin / STRIDE; stride * STRIDE < tile.walk.end; stride++) {
            tile_stride at = stride_at(&tile, stride);
            convert_k(&tile, &at, 0, scratch.k);
            int64_t n = rows_of_head(&tile);
            for (int64_t m = 0; m < n; m += MR)
                mass_block(&tile, &at, m, (int)HDL_MIN(n - m, (int64_t)MR), &scratch);
        }
    }
}

static const char *rows_why_not(const void *op)
{
    const hdl_attend_args *args = op;
    if (args->head_dim % 16 || args->v_head_dim % 16) return "head_dim or v_head_dim is not a multiple of 16";
    if (args->head_dim > 512 || args->v_head_dim > 512) return "head_dim or v_head_dim is above 512";
    if (args->n_heads % args->n_kv_heads) return "n_heads is not a multiple of n_kv_heads";
    if (args->has_selection && args->has_mass) return "mass over lists is left to the reference";
    if (!is_kv_dtype(args->kv_dtype)) return "the KV type is not f32, f16, bf16, i8 or q4_1";
    if (args->kv_dtype == HDL_Q4_1 && (args->head_dim % 32 || args->v_head_dim % 32))
        return "q4_1 rows: head_dim or v_head_dim is not a multiple of 32";
    return NULL;
}

static int64_t tile_rows_of(const hdl_attend_args *args)
{
    bool is_wide = HDL_MAX(args->head_dim, args->v_head_dim) > 128;
    return tile_rows_within(args, is_wide ? TILE_M_WIDE : TILE_M);
}

/* Products' rows of a tile, at most: one KV head, or all of few rows. */
static int64_t tile_m_of(const hdl_attend_args *args)
{
    int64_t one = tile_rows_of(args) * (args->n_heads / args->n_kv_heads);
    return HDL_MAX(one, HDL_MAX((int64_t)WAVE_M, (int64_t)args->n_heads));
}

static int64_t scratch_bytes_of(const hdl_attend_args *args)
{
    int64_t m = tile_m_of(args);
    int64_t floats = m * (args->head_dim + args->v_head_dim + 2) +
                     (int64_t)STRIDE * (args->head_dim + args->v_head_dim) + MR * STRIDE;
    return HDL_ALIGN_UP(floats * (int64_t)sizeof(float), LINE);
}

static int64_t slot_bytes_of(const hdl_attend_args *args)
{
    return HDL_ALIGN_UP(WAVE_M * (args->v_head_dim + 2) * (int64_t)sizeof(float), LINE);
}

/* Scratch of the threads and of the waves' state, the waves' slots, the lse where mass is wanted. */
static int64_t rows_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = op;
    int64_t bytes = (n_threads + 1) * scratch_bytes_of(args) + WAVE * slot_bytes_of(args);
    return bytes + (args->has_mass ? args->n_rows * args->n_heads * (int64_t)sizeof(float) : 0);
}

/* Rows and KV heads of a tile for this call; a row's bits do not depend on them. */
static int64_t shape_tiles(rows_call *call, int n_threads)
{
    const hdl_attend_args *args = call->args;
    int32_t group = args->n_heads / args->n_kv_heads;
    int64_t longest = 1;
    for (int32_t i = 0; i < args->n_seqs; i++) longest = HDL_MAX(longest, args->seqs[i].q_len);
    call->tile_rows = args->rows_per_list > 1 ? tile_rows_of(args) : HDL_MIN(tile_rows_of(args), longest);
    call->tile_kv_heads = 1;
    if (args->selection && call->tile_rows == 1)
        call->tile_kv_heads = args->n_kv_heads / args->selection->n_lists;
    else if (!args->selection && call->tile_rows * args->n_heads <= WAVE_M)
        call->tile_kv_heads = args->n_kv_heads;
    for (;; call->tile_rows = (call->tile_rows + 1) / 2) { /* shorter while that leaves threads idle */
        call->n_tiles = n_tiles_of_all(args, call->tile_rows);
        int64_t n_tasks = call->n_tiles * (args->n_kv_heads / call->tile_kv_heads);
        if (n_tasks >= 4 * n_threads || n_threads == 1) return n_tasks;
        if (call->tile_rows == 1 || call->tile_rows * group <= WAVE_M) return n_tasks;
    }
}

static void attend(const hdl_launch *launch, const void *op)
{
    hdl_attend_args args = *(const hdl_attend_args *)op;
    int n_threads = launch->n_threads;
    rows_call call = {.args = &args, .m_max = tile_m_of(&args)};
    call.scratch_bytes = scratch_bytes_of(&args);
    call.slot_bytes = slot_bytes_of(&args);
    call.scratch = launch->workspace;
    call.slots = call.scratch + (n_threads + 1) * call.scratch_bytes;
    if (args.mass && !args.lse) args.lse = (float *)(void *)(call.slots + WAVE * call.slot_bytes);
    int64_t n_tasks = shape_tiles(&call, n_threads);
    int64_t m = call.tile_rows * (args.n_heads / args.n_kv_heads) * call.tile_kv_heads;
    if (n_threads > 1 && n_tasks < 2 * n_threads && m <= WAVE_M)
        for (int64_t task = 0; task < n_tasks; task++) attend_by_waves(&call, task, n_threads);
    else
        hdl_parallel_for(n_threads, n_tasks, attend_tile, &call);
    if (args.mass) hdl_parallel_for(n_threads, call.n_tiles, mass_tile, &call);
}

const hdl_impl HDL_CPU_ROWS(attend_rows)[] = {
    {"attend_rows" HDL_ISA_SUFFIX, HDL_OP_ATTEND, (hdl_isa)THIS_ISA, rows_why_not, rows_workspace, attend},
    {NULL, HDL_OP_ATTEND, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
