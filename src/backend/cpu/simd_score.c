/* simd_score.c - SCORE: query heads against the entries of a plane.
 *
 * The entries of a row are cut into pieces of HDL_KV_STRIDE. A piece is scored for all heads at once (keys
 * are read once and shared by their heads), and where masses are wanted its scores become e^(s - m) under
 * the piece's own maximum m while they are still in the first-level cache. When all pieces are there their
 * maxima and sums give each (piece, head) a factor, and a second pass adds up head after head. A row's bits
 * depend on its own entries alone: not on threads, nor on the other rows of the call.
 *
 *   one row per sequence    threads take pieces; scratch [pieces][n_heads][PIECE], the score row of op.h
 *   many rows               threads take a few rows, a KV head at a time, so that the turned keys serve
 *                           about MANY_QUERIES heads; scratch [pieces][rows * group][PIECE] a thread, which
 *                           masses of rows of at most KEPT_PIECES have. Longer ones are scored as one row is, by
 *                           all threads together, with as many rows at a time as the score row has room for
 *
 * Bytes and operations for one token of 9 heads and 3 KV heads of 64 in 4 bits: 108 bytes; with 16 lanes
 * and VNNI 9 multiply-adds, 8 loads and shuffles and 3 masks to turn, 7 for the exponentials: about 30. As codes
 * of pairs 60 bytes and of fours 36, with as many multiply-adds, 3 lookups in place of the masks and no fewer
 * exponentials: bound by operations where 4 bits wait for memory. One Zen 4 thread, 32K tokens: 0.63 and 0.59 of
 * the time of 4 bits; with AVX2, where each product of a code fills 16 bits and is widened by itself, 1.07 and 1.03. */
#include <float.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/index_int.h"
#include "backend/cpu/simd_score_dot.h"
#include "base/pool.h"

enum {
    PIECE = HDL_KV_STRIDE,
    PITCH = PIECE + 16,
    ROWS = 8,
    MANY_QUERIES = 16,
    TASK_PIECES = 4,
    KEPT_PIECES = 128, /* of which a thread keeps the scores for itself */
    LANES = 16,
    LINE = 64
};

/* Rows (several only without candidates) and heads that share key rows. Query (i, r, g) is
 * head g of the call's KV head first_kv_head + i in row r: number (i * n_rows + r) * group + g. */
typedef struct score_unit {
    const hdl_score_args *args;
    const hdl_kv_view *kv;
    kv_walk walk;         /* with candidates: entries are its steps */
    int64_t row, out_row; /* the first of its query rows, and of its score rows */
    int32_t n_rows, first_kv_head, n_kv_heads, group, n_queries;
    int64_t n[ROWS], n_most;                             /* scored entries */
    int64_t n_visible;                                   /* tokens, of the sequence's last row */
    int64_t entry_bytes, head_bytes, q_bytes, key_bytes; /* key_bytes: of a head (halves: elements) */
    bool is_integer;
    int32_t parts;      /* elements of a byte */
    int32_t page_shift; /* of entries: a page's tokens are whole blocks of a power of two */
    uint8_t *q;
    int32_t *bias;  /* [queries] */
    float *q_scale; /* [queries] */
    float *s;       /* [slots][n_queries][PITCH]; a slot a piece for masses, a thread else */
    float *max;     /* [pieces][queries] maxima, then factors */
    float *sum;     /* [pieces][queries] */
} score_unit;

static bool is_mass(const hdl_score_args *args)
{
    return args->measure == HDL_MEASURE_MASS;
}

static bool is_integer(const hdl_score_args *args)
{
    return hdl_plane_scale_bytes(args->plane, 1) > 0;
}

/* Elements of a head's row in the plane. */
static int64_t row_dim(const hdl_score_args *args)
{
    return args->rule == HDL_RULE_BOUND ? 2 * (int64_t)args->head_dim : args->head_dim;
}

static int64_t packed_bytes(const hdl_score_args *args)
{
    int64_t dim = row_dim(args);
    return HDL_ALIGN_UP(is_integer(args) ? query_bytes(args->plane, dim) : dim * (int64_t)sizeof(float), 64);
}

static int64_t count_pieces(int64_t n)
{
    return (n + PIECE - 1) / PIECE;
}

/* ---- scratch ---- */

typedef struct unit_layout {
    int64_t bias, q_scale, s, max, sum, bytes;
} unit_layout;

static unit_layout lay_out(const hdl_score_args *args, int64_t n_queries, int64_t n_slots, int64_t n_pieces)
{
    int64_t padded = HDL_ALIGN_UP(n_queries, LANES), word = (int64_t)sizeof(float);
    unit_layout at = {.bias = n_queries * packed_bytes(args)};
    at.q_scale = at.bias + padded * word;
    at.max = at.q_scale + padded * word;
    at.sum = at.max + n_pieces * padded * word;
    at.s = at.sum + n_pieces * padded * word;
    at.bytes = HDL_ALIGN_UP(at.s + n_slots * n_queries * PITCH * word, 64);
    return at;
}

static unit_layout one_layout(const hdl_score_args *args, int n_threads, int64_t n_pieces)
{
    return lay_out(args, args->n_heads, is_mass(args) ? n_pieces : n_threads, n_pieces);
}

/* KV heads of a unit where there are many rows: a shared score row takes all heads of a row at once. */
static int32_t heads_at_once(const hdl_score_args *args)
{
    return args->is_shared ? args->n_kv_heads / args->n_lists : 1;
}

/* Rows of a unit where there are many. */
static int32_t rows_at_once(const hdl_score_args *args)
{
    int32_t rows = MANY_QUERIES / (args->n_heads / args->n_kv_heads * heads_at_once(args));
    return args->has_candidates ? 1 : HDL_MIN(HDL_MAX(rows, 1), (int32_t)ROWS);
}

static unit_layout many_layout(const hdl_score_args *args, int64_t n_pieces)
{
    int64_t group = args->n_heads / args->n_kv_heads;
    return lay_out(args, rows_at_once(args) * heads_at_once(args) * group, is_mass(args) ? n_pieces : 1,
                   n_pieces);
}

/* Pieces of the longest row whose maxima and sums are kept, at least 1: logits need none. */
static int64_t most_pieces(const hdl_score_args *args)
{
    int64_t size = args->has_candidates ? 1 : args->block_size;
    return is_mass(args) ? HDL_MAX(count_pieces((args->max_kv_len + size - 1) / size), 1) : 1;
}

/* Of rows that a thread scores for itself. */
static int64_t own_pieces(const hdl_score_args *args)
{
    return HDL_MIN(most_pieces(args), (int64_t)KEPT_PIECES);
}

/* Whether the longest of many rows are too long for that. */
static bool are_rows_long(const hdl_score_args *args)
{
    return most_pieces(args) > KEPT_PIECES;
}

static int64_t score_workspace(const void *op, int n_threads)
{
    const hdl_score_args *args = op;
    int64_t n_pieces = most_pieces(args);
    int64_t one = one_layout(args, n_threads, n_pieces).bytes;
    if (args->plane == HDL_PLANE_NONE) return 0;
    return args->max_q_len == 1 && !args->is_shared
               ? one
               : HDL_MAX(one, n_threads * many_layout(args, own_pieces(args)).bytes);
}

static void place_unit(score_unit *unit, const unit_layout *at, uint8_t *memory)
{
    unit->q = memory;
    unit->bias = (int32_t *)(void *)(memory + at->bias);
    unit->q_scale = (float *)(void *)(memory + at->q_scale);
    unit->max = (float *)(void *)(memory + at->max);
    unit->sum = (float *)(void *)(memory + at->sum);
    unit->s = (float *)(void *)(memory + at->s);
}

/* ---- queries ---- */

static void prepare_query(score_unit *unit, int32_t query, const float *x)
{
    const hdl_score_args *args = unit->args;
    int64_t dim = args->head_dim;
    uint8_t *to = unit->q + query * unit->q_bytes;
    if (is_integer(args)) {
        int8_t q8[SCORE_MAX_DIM];
        float y[SCORE_MAX_DIM];
        int32_t sum = 0, parts = hdl_plane_elements_per_byte(args->plane);
        if (parts > 2) hdl_rotate(x, y, dim);
        float scale = quantise_i8(parts > 2 ? y : x, q8, dim);
        for (int64_t i = 0; i < dim; i++) sum += q8[i];
        pack_query(q8, args->plane, dim, to);
        unit->bias[query] = -sum * (parts == 1 ? I8_OFFSET : parts == 2 ? 8 : HDL_BOOK_MOST);
        unit->q_scale[query] = args->rule == HDL_RULE_INDEX ? 1 : scale * args->scale;
        return;
    }
    float *y = (float *)(void *)to;
    unit->q_scale[query] = args->rule == HDL_RULE_PAIRS ? 0.5f * args->scale : args->scale;
    if (args->rule != HDL_RULE_BOUND) {
        memcpy(y, x, (size_t)dim * sizeof *x);
        return;
    }
    /* max(q least, q largest) is least times the negative part plus largest times the positive part */
    for (int64_t i = 0; i < dim; i++) {
        y[i] = HDL_MIN(x[i], 0.0f);
        y[dim + i] = HDL_MAX(x[i], 0.0f);
    }
}

/* The list of a KV head. */
static int32_t list_of(const hdl_score_args *args, int32_t kv_head)
{
    return (int32_t)((int64_t)kv_head * args->n_lists / args->n_kv_heads);
}

static void open_unit(score_unit *unit, const hdl_score_args *args, const hdl_attend_seq *seq)
{
    int64_t visible = seq->kv_len - seq->q_len + unit->row - seq->first_row + 1, dim = args->head_dim;
    unit->args = args;
    unit->kv = &seq->kv;
    unit->n_visible = seq->kv_len;
    unit->group = args->n_heads / args->n_kv_heads;
    unit->n_queries = unit->n_kv_heads * unit->n_rows * unit->group;
    unit->entry_bytes = hdl_plane_entry_bytes(args->plane, seq->kv.plane[0].n_heads, args->head_dim);
    unit->head_bytes = unit->entry_bytes / seq->kv.plane[0].n_heads;
    unit->q_bytes = packed_bytes(args);
    unit->is_integer = is_integer(args);
    unit->parts = hdl_plane_elements_per_byte(args->plane);
    unit->key_bytes = row_dim(args) / unit->parts;
    unit->page_shift = seq->kv.page_shift - __builtin_ctz((uint32_t)args->block_size);
    unit->n_most = 0;
    unit->walk = (kv_walk){0};
    if (args->has_candidates)
        unit->walk = candidate_walk(args->candidates, &seq->kv, unit->row, list_of(args, unit->first_kv_head),
                                    visible);
    for (int32_t r = 0; r < unit->n_rows; r++) {
        int64_t n = args->has_candidates ? unit->walk.end
                                         : whole_entries(args->plane, visible + r, args->block_size);
        unit->n[r] = HDL_MAX(n - (args->rule == HDL_RULE_PAIRS), 0);
        unit->n_most = HDL_MAX(unit->n_most, unit->n[r]);
    }
    for (int32_t query = 0; query < unit->n_queries; query++) {
        int32_t g = query % unit->group, r = query / unit->group % unit->n_rows;
        int32_t kv_head = unit->first_kv_head + query / unit->group / unit->n_rows;
        prepare_query(unit, query,
                      args->q + (unit->row + r) * args->q_stride + (kv_head * unit->group + g) * dim);
    }
    /* logits: one factor for all */
    float factor = args->reduce == HDL_REDUCE_MEAN ? 1 / ((float)args->n_heads / (float)args->n_lists) : 1;
    for (int32_t query = 0; query < unit->n_queries; query++) unit->max[query] = factor;
}

/* ---- a piece ---- */

/* Where an entry lies. */
static const uint8_t *entry_at(const score_unit *unit, int64_t entry)
{
    const hdl_kv_view *kv = unit->kv;
    if (unit->walk.ids) entry = walk_token(&unit->walk, entry);
    int64_t slot = entry & (((int64_t)1 << unit->page_shift) - 1);
    const uint8_t *page = kv->pages[entry >> unit->page_shift];
    return page + kv->plane[0].offset + slot * unit->entry_bytes;
}

/* Entries of a tile: rows of halves are multiplied a vector at a time, and asked for in small portions. */
static int64_t tile_entries(const score_unit *unit)
{
    return unit->is_integer ? TILE : VW;
}

/* What the next piece reads, line by line: its rows, then its scales. It is fetched all along the work on a piece,
 * since requests that come all at once wait for each other and memory that is not asked rests; the processor's own
 * prefetcher does not follow rows in this order. */
typedef struct lines_ahead {
    const uint8_t *at, *then;
    int64_t n, n_then;     /* lines */
    int64_t a_head, a_row; /* of them with each head of a tile, and with each query's weights */
} lines_ahead;

/* Those of the piece from `entry` on, where it lies in one page. */
static lines_ahead find_ahead(const score_unit *unit, int64_t entry)
{
    const hdl_score_args *args = unit->args;
    lines_ahead to = {0};
    int64_t page_entries = (int64_t)1 << unit->page_shift, slot = entry & (page_entries - 1),
            n = HDL_MIN((int64_t)PIECE, unit->n_most - entry);
    if (!unit->is_integer || unit->walk.ids || n <= 0 || slot + n > page_entries) return to;
    int64_t scale_bytes = hdl_plane_scale_bytes(args->plane, unit->kv->plane[0].n_heads);
    const uint8_t *page = unit->kv->pages[entry >> unit->page_shift];
    to.at = entry_at(unit, entry);
    to.n = (n * unit->entry_bytes + LINE - 1) / LINE;
    to.then = page + unit->kv->plane[0].scale_offset + slot * scale_bytes;
    to.n_then = (n * scale_bytes + LINE - 1) / LINE;
    int64_t n_lines = to.n + to.n_then, n_tiles = PIECE / TILE * (int64_t)unit->n_kv_heads;
    int64_t n_early = is_mass(args) ? n_lines / 2 : n_lines;
    to.a_head = (n_early + n_tiles - 1) / n_tiles;
    to.a_row = (n_lines - n_early + unit->n_queries - 1) / unit->n_queries;
    return to;
}

ALWAYS_INLINE void fetch_line(lines_ahead *ahead)
{
    if (!ahead->n) {
        ahead->at = ahead->then;
        ahead->n = ahead->n_then;
        ahead->n_then = 0;
        if (!ahead->n) return;
    }
    __builtin_prefetch(ahead->at, 0, 3);
    ahead->at += LINE;
    ahead->n--;
}

/* Where the next entries lie, n of them; past n the last one again, or what follows it in the page. */
static void find_rows(const score_unit *unit, int64_t entry, int64_t n, tile_rows *rows)
{
    int64_t page_entries = (int64_t)1 << unit->page_shift;
    bool is_run = !unit->walk.ids && (entry & (page_entries - 1)) + TILE <= page_entries;
    rows->stride = 0;
    if (is_run && unit->is_integer) {
        rows->first = entry_at(unit, entry);
        rows->stride = unit->entry_bytes;
        return;
    }
    for (int64_t i = 0; i < n; i++) rows->row[i] = entry_at(unit, entry + i);
    for (int64_t i = n; i < tile_entries(unit); i++) rows->row[i] = rows->row[n - 1];
}

/* The keys' scales of one head. */
static void find_scales(const score_unit *unit, int64_t entry, int64_t n, int32_t kv_head, float *scale)
{
    const hdl_kv_view *kv = unit->kv;
    int32_t n_heads = kv->plane[0].n_heads;
    int64_t offset = kv->plane[0].scale_offset;
    int64_t page_entries = (int64_t)1 << unit->page_shift, slot;
    if (unit->walk.ids) {
        for (int64_t i = 0; i < n; i++) {
            const uint8_t *page = kv_page_of(kv, walk_token(&unit->walk, entry + i), &slot);
            scale[i] = 0;
            if (!page) continue;
            memcpy(&scale[i], page + offset + (slot * n_heads + kv_head) * (int64_t)sizeof(float),
                   sizeof *scale);
        }
        return;
    }
    for (int64_t i = 0, end; i < n; i = end) {
        const uint8_t *page = kv->pages[(entry + i) >> unit->page_shift];
        slot = (entry + i) & (page_entries - 1);
        end = HDL_MIN(i + page_entries - slot, n);
        if (!page) {
            memset(scale + i, 0, (size_t)(end - i) * sizeof *scale);
            continue;
        }
        take_every((const float *)(const void *)(page + offset) + slot * n_heads, kv_head, n_heads, end - i,
                   scale + i);
    }
}

/* Rows of the next tile that lie here and there: `n` bytes at `offset` of each. */
static void fetch_rows(const tile_rows *rows, int64_t n_rows, int64_t offset, int64_t n)
{
    for (int64_t i = 0; i < n_rows && !rows->stride; i++)
        for (int64_t b = 0; b < n; b += LINE) __builtin_prefetch(rows->row[i] + offset + b, 0, 3);
}

/* Raw products of a tile with the unit's queries: to s [n_queries][PITCH]. */
static void multiply_tile(const score_unit *unit, const tile_rows *rows, const tile_rows *next, int64_t n,
                          lines_ahead *ahead, float *s)
{
    const hdl_score_args *args = unit->args;
    uint8_t keys[KEY_BUFFER_BYTES] __attribute__((aligned(64)));
    int64_t n_bytes = unit->key_bytes;
    int32_t per_head = unit->n_rows * unit->group;
    bool is_turned = unit->is_integer;
    for (int32_t head = 0; head < unit->n_kv_heads; head++) {
        int64_t offset = (args->first_kv_head + unit->first_kv_head + head) * unit->head_bytes;
        if (next) fetch_rows(next, tile_entries(unit), offset, unit->head_bytes);
        for (int64_t i = 0; i < ahead->a_head; i++) fetch_line(ahead);
        if (is_turned) gather_keys(rows, offset, n_bytes, unit->parts, keys);
        for (int32_t j = 0; j < per_head; j += BATCH) {
            int32_t query = head * per_head + j;
            int group = HDL_MIN(per_head - j, (int)BATCH);
            const uint8_t *q = unit->q + query * unit->q_bytes;
            float *to = s + query * PITCH;
            if (is_turned)
                dot_batch(keys, n_bytes, q, unit->q_bytes, unit->bias + query, to, PITCH, unit->parts, group);
            else
                for (int64_t i = 0; i < n; i += VW)
                    dot_f16(rows->row + i, offset, n_bytes, q, unit->q_bytes, to + i, PITCH, group);
        }
    }
}

static void multiply_piece(const score_unit *unit, int64_t begin, int64_t n, lines_ahead *ahead, float *s)
{
    tile_rows rows[2];
    int64_t tile = tile_entries(unit);
    find_rows(unit, begin, HDL_MIN(n, tile), &rows[0]);
    for (int64_t i = 0, turn = 0; i < n; i += tile, turn ^= 1) {
        tile_rows *next = i + tile < n ? &rows[turn ^ 1] : NULL;
        if (next) find_rows(unit, begin + i + tile, HDL_MIN(n - i - tile, tile), next);
        multiply_tile(unit, &rows[turn], next, HDL_MIN(n - i, tile), ahead, s + i);
    }
}

/* Products become scores; the largest of the first n_own is returned, and the rest of their last vector
 * is -inf. */
static float shape_scores(const score_unit *unit, int64_t n, int64_t n_own, const float *k_scale,
                          float q_scale, float bias, float *s)
{
    bool is_pairs = unit->args->rule == HDL_RULE_PAIRS;
    vf top = vf_set1(-INFINITY);
    for (int64_t i = 0; i < n; i += VW) {
        vf x = vf_load(s + i), scale = vf_set1(q_scale);
        if (is_pairs) x = vf_add(x, vf_load(s + i + 1));
        if (k_scale) scale = vf_mul(vf_load(k_scale + i), scale);
        x = vf_add(vf_mul(x, scale), vf_set1(bias));
        if (i + VW > n_own) x = vf_keep(x, 0, n_own - i);
        vf_store(s + i, x);
        top = vf_max(x, top);
    }
    return vf_top(top);
}

/* Scores become e^(s - max); returns their sum. */
static float weigh_scores(float *s, int64_t n, float max, lines_ahead *ahead)
{
    int64_t n_vectors = (n + VW - 1) / VW, n_lines = (ahead->a_row + n_vectors - 1) / HDL_MAX(n_vectors, 1);
    vf m = vf_set1(HDL_MAX(max, -FLT_MAX)), total = vf_set1(0);
    for (int64_t i = 0; i < n; i += VW) {
        for (int64_t line = 0; line < n_lines; line++) fetch_line(ahead);
        vf p = vf_exp(vf_sub(vf_load(s + i), m));
        vf_store(s + i, p);
        total = vf_add(total, p);
    }
    return vf_sum(total);
}

static int64_t padded_queries(const score_unit *unit)
{
    return HDL_ALIGN_UP((int64_t)unit->n_queries, LANES);
}

/* Entries of row r in the piece. */
static int64_t n_in_piece(const score_unit *unit, int64_t piece, int32_t r)
{
    return HDL_MIN(HDL_MAX(unit->n[r] - piece * PIECE, 0), (int64_t)PIECE);
}

static void score_piece(const score_unit *unit, int64_t piece, int64_t slot)
{
    const hdl_score_args *args = unit->args;
    int64_t begin = piece * PIECE, n = HDL_MIN(unit->n_most - begin, (int64_t)PIECE);
    float *s = unit->s + slot * unit->n_queries * PITCH, k_scale[PIECE + LANES] = {0};
    int32_t per_head = unit->n_rows * unit->group;
    lines_ahead ahead = find_ahead(unit, begin + PIECE);
    multiply_piece(unit, begin, n + (args->rule == HDL_RULE_PAIRS), &ahead, s);
    float *max = unit->max + piece * padded_queries(unit), *sum = unit->sum + piece * padded_queries(unit);
    for (int32_t query = 0; query < unit->n_queries; query++) {
        int32_t head = query / per_head, r = query / unit->group % unit->n_rows;
        if (unit->is_integer && query % per_head == 0)
            find_scales(unit, begin, n, args->first_kv_head + unit->first_kv_head + head, k_scale);
        int64_t q_head = (unit->first_kv_head + head) * (int64_t)unit->group + query % unit->group;
        float bias = args->bias ? args->bias[(unit->row + r) * args->n_heads + q_head] : 0;
        float top = shape_scores(unit, n, n_in_piece(unit, piece, r), unit->is_integer ? k_scale : NULL,
                                 unit->q_scale[query], bias, s + query * PITCH);
        if (is_mass(args)) max[query] = top;
    }
    /* apart, since no weight can begin before its row's maximum is known */
    for (int32_t query = 0; query < unit->n_queries && is_mass(args); query++)
        sum[query] = weigh_scores(s + query * PITCH,
                                  n_in_piece(unit, piece, query / unit->group % unit->n_rows), max[query],
                                  &ahead);
    for (int64_t query = unit->n_queries; query < padded_queries(unit) && is_mass(args); query++) {
        max[query] = -INFINITY;
        sum[query] = 0;
    }
}

/* Maxima and sums of the pieces become the factors of their weights. */
static void merge_pieces(const score_unit *unit)
{
    const hdl_score_args *args = unit->args;
    int64_t n_pieces = count_pieces(unit->n_most), stride = padded_queries(unit);
    float n_heads = args->reduce == HDL_REDUCE_MEAN ? (float)(args->n_heads / args->n_lists) : 1;
    for (int64_t q = 0; q < stride; q += VW) {
        vf top = vf_set1(-FLT_MAX), total = vf_set1(0);
        float share[VW];
        for (int64_t p = 0; p < n_pieces; p++) top = vf_max(vf_load(unit->max + p * stride + q), top);
        for (int64_t p = 0; p < n_pieces; p++) {
            float *factor = unit->max + p * stride + q;
            vf shrink = vf_exp(vf_sub(vf_load(factor), top));
            vf_store(factor, shrink);
            total = vf_fma(vf_load(unit->sum + p * stride + q), shrink, total);
        }
        vf_store(share, total);
        for (int i = 0; i < VW; i++) share[i] = share[i] > 0 ? 1 / (share[i] * n_heads) : 0;
        for (int64_t p = 0; p < n_pieces; p++) {
            float *factor = unit->max + p * stride + q;
            vf_store(factor, vf_mul(vf_load(factor), vf_load(share)));
        }
    }
}

/* Adds KV heads [from, to) of the unit, all of one list, into the list's scores of row r: head after head,
 * so that a list made of several units has the same bits. */
static void reduce_heads(const score_unit *unit, int64_t piece, const float *s, int32_t r, int32_t from,
                         int32_t to)
{
    const hdl_score_args *args = unit->args;
    int32_t kv_head = unit->first_kv_head + from, per_head = unit->n_rows * unit->group;
    bool is_first = kv_head % (args->n_kv_heads / args->n_lists) == 0;
    bool is_max = args->reduce == HDL_REDUCE_MAX;
    int64_t n = n_in_piece(unit, piece, r);
    float *out = args->score +
                 ((unit->out_row + r) * args->n_lists + list_of(args, kv_head)) * args->score_stride +
                 piece * PIECE;
    const float *factor = unit->max + (is_mass(args) ? piece * padded_queries(unit) : 0);
    /* weights of all pieces do not stay in the first-level cache: to those of the next */
    int64_t ahead = is_mass(args) && (piece + 1) * PIECE < unit->n_most ? unit->n_queries * (int64_t)PITCH
                                                                        : 0;
    for (int64_t i = 0; i < n; i += VW) {
        float last[VW] = {0}, *at = out + i;
        bool is_part = i + VW > n;
        if (is_part) at = memcpy(last, at, (size_t)(n - i) * sizeof *at);
        vf x = is_first ? vf_set1(is_max ? -INFINITY : 0) : vf_load(at);
        for (int32_t head = from; head < to; head++)
            for (int32_t g = 0; g < unit->group; g++) {
                int32_t query = head * per_head + r * unit->group + g;
                vf y = vf_load(s + query * PITCH + i), f = vf_set1(factor[query]);
                __builtin_prefetch(s + query * PITCH + i + ahead, 0, 3);
                x = is_max ? vf_max(vf_mul(y, f), x) : vf_fma(y, f, x);
            }
        vf_store(at, x);
        if (is_part) memcpy(out + i, last, (size_t)(n - i) * sizeof *at);
    }
}

/* at[0..n) += x's first n, n at most VW. */
ALWAYS_INLINE void add_part(float *at, vf x, int64_t n)
{
    float part[VW] = {0};
    if (n >= VW) {
        vf_store(at, vf_add(x, vf_load(at)));
        return;
    }
    memcpy(part, at, (size_t)n * sizeof *at);
    vf_store(part, vf_add(x, vf_load(part)));
    memcpy(at, part, (size_t)n * sizeof *at);
}

/* Adds the unit's rows, with all heads of a list, into their shared score row, and where there are slashes
 * into that of distances. */
static void reduce_shared(const score_unit *unit, int64_t piece, const float *s)
{
    const hdl_score_args *args = unit->args;
    int32_t per_head = unit->n_rows * unit->group;
    bool is_max = args->reduce == HDL_REDUCE_MAX;
    int64_t at_row = (unit->out_row * args->n_lists + list_of(args, unit->first_kv_head)) *
                         args->score_stride +
                     piece * PIECE;
    float *out = args->score + at_row;
    const float *factor = unit->max + (is_mass(args) ? piece * padded_queries(unit) : 0);
    for (int32_t r = 0; r < unit->n_rows; r++) {
        int64_t n = n_in_piece(unit, piece, r);
        int64_t shift = unit->n_visible - unit->n[r]; /* entries are tokens */
        for (int64_t i = 0; i < n; i += VW) {
            float last[VW] = {0}, *at = out + i;
            bool is_part = i + VW > n;
            if (is_part) at = memcpy(last, at, (size_t)(n - i) * sizeof *at);
            vf x = vf_set1(is_max ? -INFINITY : 0);
            for (int32_t head = 0; head < unit->n_kv_heads; head++)
                for (int32_t g = 0; g < unit->group; g++) {
                    int32_t query = head * per_head + r * unit->group + g;
                    vf y = vf_load(s + query * PITCH + i), f = vf_set1(factor[query]);
                    x = is_max ? vf_max(vf_mul(y, f), x) : vf_fma(y, f, x);
                }
            vf old = vf_load(at);
            vf_store(at, args->rows == HDL_REDUCE_MAX ? vf_max(x, old) : vf_add(x, old));
            if (is_part) memcpy(out + i, last, (size_t)(n - i) * sizeof *at);
            if (args->slash) add_part(args->slash + at_row + shift + i, x, n - i);
        }
    }
}

static void reduce_piece(const score_unit *unit, int64_t piece, int64_t slot)
{
    const float *s = unit->s + slot * unit->n_queries * PITCH;
    int32_t in_list = unit->args->n_kv_heads / unit->args->n_lists;
    for (int32_t r = 0; r < unit->n_rows; r++)
        for (int32_t from = 0, to; from < unit->n_kv_heads; from = to) {
            int32_t kv_head = unit->first_kv_head + from;
            to = HDL_MIN(from + in_list - kv_head % in_list, unit->n_kv_heads);
            reduce_heads(unit, piece, s, r, from, to);
        }
}

/* The entry that the row sees in part, and in a rule over pairs the last one. */
static void close_row(const hdl_score_args *args, int64_t row, int32_t list, int64_t visible, int64_t n)
{
    float *out = args->score + (row * args->n_lists + list) * args->score_stride;
    for (int64_t e = n; e < (visible + args->block_size - 1) / args->block_size; e++) out[e] = -INFINITY;
}

static void close_unit(const score_unit *unit, const hdl_attend_seq *seq)
{
    int32_t in_list = unit->args->n_kv_heads / unit->args->n_lists;
    for (int32_t r = 0; r < unit->n_rows && !unit->args->has_candidates; r++)
        for (int32_t head = unit->first_kv_head; head < unit->first_kv_head + unit->n_kv_heads;
             head += in_list)
            close_row(unit->args, unit->row + r, list_of(unit->args, head),
                      seq->kv_len - seq->q_len + unit->row + r - seq->first_row + 1, unit->n[r]);
}

/* ---- one row per sequence ---- */

static void score_task(void *arg, int64_t task, int thread)
{
    const score_unit *unit = arg;
    int64_t n_pieces = count_pieces(unit->n_most), end = HDL_MIN((task + 1) * TASK_PIECES, n_pieces);
    bool is_kept = is_mass(unit->args);
    for (int64_t piece = task * TASK_PIECES; piece < end; piece++) {
        score_piece(unit, piece, is_kept ? piece : thread);
        if (!is_kept) reduce_piece(unit, piece, thread);
    }
}

static void reduce_task(void *arg, int64_t task, int thread)
{
    (void)thread;
    const score_unit *unit = arg;
    int64_t n_pieces = count_pieces(unit->n_most), end = HDL_MIN((task + 1) * TASK_PIECES, n_pieces);
    for (int64_t piece = task * TASK_PIECES; piece < end; piece++) reduce_piece(unit, piece, piece);
}

static void reduce_shared_task(void *arg, int64_t task, int thread)
{
    (void)thread;
    const score_unit *unit = arg;
    int64_t n_pieces = count_pieces(unit->n_most), end = HDL_MIN((task + 1) * TASK_PIECES, n_pieces);
    for (int64_t piece = task * TASK_PIECES; piece < end; piece++)
        reduce_shared(unit, piece, unit->s + piece * unit->n_queries * PITCH);
}

/* The unit's rows and heads, at most n_heads queries, by all threads. */
static void score_together(const hdl_launch *launch, const hdl_score_args *args, const hdl_attend_seq *seq,
                           score_unit *unit)
{
    unit_layout at = one_layout(args, launch->n_threads, most_pieces(args));
    place_unit(unit, &at, launch->workspace);
    open_unit(unit, args, seq);
    int64_t n_tasks = (count_pieces(unit->n_most) + TASK_PIECES - 1) / TASK_PIECES;
    hdl_parallel_for(launch->n_threads, n_tasks, score_task, unit);
    if (!is_mass(args)) return;
    merge_pieces(unit);
    /* rows of other places in the sequence share distances */
    hdl_parallel_for(args->slash ? 1 : launch->n_threads, n_tasks,
                     args->is_shared ? reduce_shared_task : reduce_task, unit);
}

/* Row `row` alone, KV heads [first, first + n). */
static void score_one(const hdl_launch *launch, const hdl_score_args *args, int64_t row, int32_t first,
                      int32_t n)
{
    const hdl_attend_seq *seq = seq_of_row(args->seqs, row);
    score_unit unit = {.row = row, .out_row = row, .n_rows = 1, .first_kv_head = first, .n_kv_heads = n};
    score_together(launch, args, seq, &unit);
    close_unit(&unit, seq);
}

static void score_ones(const hdl_launch *launch, const hdl_score_args *args)
{
    int32_t n = args->n_kv_heads; /* candidates may differ by list */
    if (args->has_candidates && args->candidates->n_lists > 1) n /= args->n_lists;
    for (int64_t row = 0; row < args->n_rows; row++)
        for (int32_t head = 0; head < args->n_kv_heads; head += n) score_one(launch, args, row, head, n);
}

/* ---- many rows ---- */

typedef struct many_call {
    const hdl_score_args *args;
    uint8_t *memory;
    unit_layout at;
    int32_t rows; /* of a task */
} many_call;

static int64_t count_tasks(const many_call *call, const hdl_attend_seq *seq)
{
    return (seq->q_len + call->rows - 1) / call->rows;
}

static void score_rows(void *arg, int64_t task, int thread)
{
    const many_call *call = arg;
    const hdl_score_args *args = call->args;
    const hdl_attend_seq *seq = args->seqs;
    for (; task >= count_tasks(call, seq); seq++) task -= count_tasks(call, seq);
    score_unit unit = {.row = seq->first_row + task * call->rows, .n_kv_heads = 1};
    unit.n_rows = (int32_t)HDL_MIN((int64_t)call->rows, seq->q_len - task * call->rows);
    unit.out_row = unit.row;
    place_unit(&unit, &call->at, call->memory + thread * call->at.bytes);
    for (int32_t head = 0; head < args->n_kv_heads; head++) {
        unit.first_kv_head = head;
        open_unit(&unit, args, seq);
        int64_t n_pieces = count_pieces(unit.n_most);
        for (int64_t piece = 0; piece < n_pieces; piece++) {
            score_piece(&unit, piece, is_mass(args) ? piece : 0);
            if (!is_mass(args)) reduce_piece(&unit, piece, 0);
        }
        if (is_mass(args)) {
            merge_pieces(&unit);
            for (int64_t piece = 0; piece < n_pieces; piece++) reduce_piece(&unit, piece, piece);
        }
        close_unit(&unit, seq);
    }
}

/* The score row of (sequence, list) `task` before its rows are added. */
static void open_shared(const hdl_score_args *args, int64_t task)
{
    const hdl_attend_seq *seq = &args->seqs[task / args->n_lists];
    float *out = args->score + task * args->score_stride, none = args->rows == HDL_REDUCE_MAX ? -INFINITY : 0;
    int64_t n = HDL_MAX(
        whole_entries(args->plane, seq->kv_len, args->block_size) - (args->rule == HDL_RULE_PAIRS), 0);
    for (int64_t e = 0; e < n; e++) out[e] = none;
    if (args->slash) memset(args->slash + task * args->score_stride, 0, (size_t)n * sizeof(float));
    close_row(args, task / args->n_lists, (int32_t)(task % args->n_lists), seq->kv_len, n);
}

/* Task (sequence, list): its rows a few at a time. */
static void score_shared(void *arg, int64_t task, int thread)
{
    const many_call *call = arg;
    const hdl_score_args *args = call->args;
    const hdl_attend_seq *seq = &args->seqs[task / args->n_lists];
    int32_t list = (int32_t)(task % args->n_lists);
    open_shared(args, task);
    score_unit unit = {.out_row = task / args->n_lists, .n_kv_heads = heads_at_once(args)};
    unit.first_kv_head = list * unit.n_kv_heads;
    place_unit(&unit, &call->at, call->memory + thread * call->at.bytes);
    for (int64_t row = 0; row < seq->q_len; row += call->rows) {
        unit.row = seq->first_row + row;
        unit.n_rows = (int32_t)HDL_MIN((int64_t)call->rows, seq->q_len - row);
        open_unit(&unit, args, seq);
        int64_t n_pieces = count_pieces(unit.n_most);
        for (int64_t piece = 0; piece < n_pieces; piece++) {
            score_piece(&unit, piece, is_mass(args) ? piece : 0);
            if (!is_mass(args)) reduce_shared(&unit, piece, unit.s);
        }
        if (!is_mass(args)) continue;
        merge_pieces(&unit);
        for (int64_t piece = 0; piece < n_pieces; piece++)
            reduce_shared(&unit, piece, unit.s + piece * unit.n_queries * PITCH);
    }
}

/* Masses of long rows. A row's bits are those that it has where a thread scores it; of distances, to which fewer rows
 * come at a time, nearly. */
static void score_long(const hdl_launch *launch, const hdl_score_args *args)
{
    int32_t n_heads = heads_at_once(args), group = args->n_heads / args->n_kv_heads;
    int32_t rows = HDL_MIN(rows_at_once(args), args->n_heads / (n_heads * group));
    for (int64_t task = 0; task < args->n_seqs * (int64_t)args->n_lists && args->is_shared; task++)
        open_shared(args, task);
    for (int32_t s = 0; s < args->n_seqs; s++)
        for (int32_t head = 0; head < args->n_kv_heads; head += n_heads) {
            const hdl_attend_seq *seq = &args->seqs[s];
            score_unit unit = {.first_kv_head = head, .n_kv_heads = n_heads};
            for (int64_t row = 0; row < seq->q_len; row += rows) {
                unit.row = seq->first_row + row;
                unit.out_row = args->is_shared ? s : unit.row;
                unit.n_rows = (int32_t)HDL_MIN((int64_t)rows, seq->q_len - row);
                score_together(launch, args, seq, &unit);
                if (!args->is_shared) close_unit(&unit, seq);
            }
        }
}

static void score_many(const hdl_launch *launch, const hdl_score_args *args)
{
    many_call call = {args, launch->workspace, many_layout(args, own_pieces(args)), rows_at_once(args)};
    int64_t n_tasks = 0;
    if (are_rows_long(args)) {
        score_long(launch, args);
        return;
    }
    if (args->is_shared) {
        hdl_parallel_for(launch->n_threads, args->n_seqs * (int64_t)args->n_lists, score_shared, &call);
        return;
    }
    for (int32_t s = 0; s < args->n_seqs; s++) n_tasks += count_tasks(&call, &args->seqs[s]);
    hdl_parallel_for(launch->n_threads, n_tasks, score_rows, &call);
}

/* ---- patterns ---- */

static void score_pattern(void *arg, int64_t task, int thread)
{
    (void)thread;
    const hdl_score_args *args = arg;
    int64_t row = task / args->n_lists;
    int32_t list = (int32_t)(task % args->n_lists);
    const hdl_attend_seq *seq = seq_of_row(args->seqs, row);
    int64_t visible = seq->kv_len - seq->q_len + row - seq->first_row + 1;
    int64_t n = whole_entries(args->plane, visible, args->block_size), own = (visible - 1) / args->block_size;
    float *out = args->score + task * args->score_stride;
    if (args->has_candidates) n = candidate_walk(args->candidates, &seq->kv, row, list, visible).end;
    for (int64_t e = 0; e < n; e++) out[e] = pattern_score(args, own, e, list);
    if (!args->has_candidates) close_row(args, row, list, visible, n);
}

/* ---- the row ---- */

static const char *score_why_not(const void *op)
{
    const hdl_score_args *args = op;
    if (args->plane == HDL_PLANE_NONE) return NULL;
    if (args->has_candidates && !index_refusal(args)) return "index keys of candidates lie in runs";
    if (args->head_dim % 16) return "head_dim is not a multiple of 16";
    if (args->head_dim % (4 * hdl_plane_elements_per_byte(args->plane)))
        return "codes of a key are not whole words";
    return args->head_dim > SCORE_MAX_DIM ? "head_dim is more than 1024" : NULL;
}

static void score(const hdl_launch *launch, const void *op)
{
    hdl_score_args args = *(const hdl_score_args *)op;
    if (args.plane == HDL_PLANE_NONE)
        hdl_parallel_for(launch->n_threads, args.n_rows * args.n_lists, score_pattern, &args);
    else if (args.max_q_len == 1 && !args.is_shared)
        score_ones(launch, &args);
    else
        score_many(launch, &args);
}

const hdl_impl HDL_CPU_ROWS(score)[] = {
    {"score" HDL_ISA_SUFFIX, HDL_OP_SCORE, (hdl_isa)THIS_ISA, score_why_not, score_workspace, score},
    {NULL, HDL_OP_SCORE, (hdl_isa)THIS_ISA, NULL, NULL, NULL},
};
