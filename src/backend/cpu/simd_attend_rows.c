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
#include "backend/cpu/simd_attend_int.h"
#include "base/pool.h"

enum {
    STRIDE = HDL_KV_STRIDE,
    MR = VW == 4 ? 4 : 6,
    NR = VW == 16 ? 4 : 2,
    PANEL = NR * VW,
    TILE_M = 192,      /* rows x heads of a tile, at most, for heads up to 128 wide */
    TILE_M_WIDE = 128, /* for wider ones */
    TILE_SHARED = 64,  /* rows of a tile that share a list, at most */
    WAVE = 64,         /* strides in flight for few rows */
    WAVE_RUN = 4,      /* strides of a task of a wave */
    WAVE_M = 32,       /* the most rows x heads that waves are used for */
    LINE = 64
};

/* Per-thread scratch. */
typedef struct tile_scratch {
    float *q;             /* [m_max, head_dim], scaled */
    float *o, *max, *sum; /* [m_max, v_head_dim], [m_max], [m_max] */
    float *k, *v;         /* KT and V of a stride, in panels */
    float *s;             /* [MR, STRIDE] */
} tile_scratch;

/* Rows [first, first + n_rows) of a sequence with KV heads that share a walk: one, or, for few rows,
 * all, so that a token's row is read at once. The rows of its products are (KV head, row, head). */
typedef struct row_tile {
    const hdl_attend_args *args;
    const hdl_attend_seq *seq;
    int64_t first, n_rows;
    int32_t first_kv_head, n_kv_heads, group;
    int32_t kv_head; /* the one at work */
    bool is_short;   /* few rows: the next stride is fetched while V is converted */
    kv_walk walk;    /* of the first row; end is that of the last: steps that some row sees */
    struct {
        int64_t begin, end;
    } seen[TILE_SHARED]; /* lists: steps that each row sees */
    const float *q;      /* [n_kv_heads, n_rows group, head_dim] scaled */
} row_tile;

/* One stride of a tile: steps [base + begin, base + end) of the walk are converted. */
typedef struct tile_stride {
    int64_t base, begin, end;
} tile_stride;

/* A short tile's rows of a stride (KV slots), for V. */
typedef struct short_rows {
    const uint8_t *row[STRIDE];
    float v_scale[STRIDE]; /* I8: of the head at work */
    int64_t v_offset;
} short_rows;

typedef struct rows_call {
    const hdl_attend_args *args;
    int64_t tile_rows, m_max, n_tiles;
    int32_t tile_kv_heads; /* KV heads of a tile */
    uint8_t *scratch, *slots;
    int64_t scratch_bytes, slot_bytes;
    const row_tile *tile; /* waves: the tile at work and the wave's strides */
    int64_t first_stride, n_strides;
} rows_call;

/* c = sums, or with alpha c = c alpha + sums beta. */
ALWAYS_INLINE void store_product(vf sum[MR][NR], float *c, int64_t c_stride, const float *alpha,
                                 const float *beta, const int mr, const int nr)
{
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) {
            float *at = c + i * c_stride + j * VW;
            if (!alpha)
                vf_store(at, sum[i][j]);
            else
                vf_store(at, vf_fma(sum[i][j], vf_set1(beta[i]), vf_mul(vf_load(at), vf_set1(alpha[i]))));
        }
}

/* c[i][j] = sum over k of a[i][k] b[k][j] for mr rows and nr vectors; with alpha, c = c alpha + ... beta. */
ALWAYS_INLINE void product(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t n,
                           float *c, int64_t c_stride, const float *alpha, const float *beta, const int mr,
                           const int nr)
{
    vf sum[MR][NR];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) sum[i][j] = vf_set1(0);
    for (int64_t k = 0; k < n; k++) {
        vf y[NR];
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) y[j] = vf_load(b + k * b_stride + j * VW);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf x = vf_set1(a[i * a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < nr; j++) sum[i][j] = vf_fma(x, y[j], sum[i][j]);
        }
    }
    store_product(sum, c, c_stride, alpha, beta, mr, nr);
}

ALWAYS_INLINE void product_wide(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t n,
                                float *c, int64_t c_stride, const float *alpha, const float *beta, int mr,
                                const int nr)
{
    switch (mr) {
        case 1: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 1, nr); break;
        case 2: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 2, nr); break;
        case 3: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 3, nr); break;
        case 4: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 4, nr); break;
#if !defined(HDL_ISA_generic)
        case 5: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 5, nr); break;
        default: product(a, a_stride, b, b_stride, n, c, c_stride, alpha, beta, 6, nr); break;
#endif
    }
}

/* A panel of NR vectors: scores, stored as they are. */
static void product_scores(const float *q, int64_t dim, const float *panel, float *s, int mr)
{
    product_wide(q, dim, panel, PANEL, dim, s, STRIDE, NULL, NULL, mr, NR);
}

/* p V of steps [begin, end) for all of v_head_dim; stored where alpha is NULL, else merged into o. */
static void product_values(const float *p, const float *v, int64_t begin, int64_t end, float *o, int64_t dim,
                           const float *alpha, const float *beta, int mr)
{
    int64_t i = 0, n = end - begin;
    for (; i + PANEL <= dim; i += PANEL)
        product_wide(p + begin, STRIDE, v + i * STRIDE + begin * PANEL, PANEL, n, o + i, dim, alpha, beta, mr,
                     NR);
    for (; i < dim; i += VW)
        product_wide(p + begin, STRIDE, v + i * STRIDE + begin * VW, VW, n, o + i, dim, alpha, beta, mr, 1);
}

static const uint8_t *step_row(const row_tile *tile, const tile_stride *at, int64_t i, int64_t offset)
{
    i = HDL_MIN(HDL_MAX(i, at->begin), at->end - 1); /* lanes outside repeat a row: hidden, but readable */
    return kv_token_at(tile->walk.kv, walk_token(&tile->walk, at->base + i)) + offset;
}

static float step_scale(const row_tile *tile, const tile_stride *at, int64_t i, bool is_v)
{
    const hdl_kv_view *kv = tile->walk.kv;
    if (kv->dtype != HDL_I8) return 1;
    i = HDL_MIN(HDL_MAX(i, at->begin), at->end - 1);
    const uint8_t *scales = kv_scale_at(kv, walk_token(&tile->walk, at->base + i), tile->args->n_kv_heads);
    float scale;
    memcpy(&scale, scales + (is_v ? kv->v_scale_offset : kv->k_scale_offset) + tile->kv_head * 4,
           sizeof scale);
    return scale;
}

/* p V straight from the cache's rows, with the sums of product(): for tiles too small to share V. */
ALWAYS_INLINE void product_rows(const float *p, const short_rows *rows, int64_t begin, int64_t end, int64_t d,
                                float *o, int64_t dim, const float *alpha, const float *beta,
                                const hdl_dtype dtype, const int mr, const int nr)
{
    vf sum[MR][NR];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) sum[i][j] = vf_set1(0);
    for (int64_t k = begin; k < end; k++) {
        const uint8_t *row = rows->row[k] + rows->v_offset;
        vf y[NR];
#pragma GCC unroll 4
        for (int j = 0; j < nr; j++) {
            y[j] = vf_load_as(dtype, row, d + j * VW);
            if (dtype == HDL_I8) y[j] = vf_mul(y[j], vf_set1(rows->v_scale[k]));
        }
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf x = vf_set1(p[i * STRIDE + k]);
#pragma GCC unroll 4
            for (int j = 0; j < nr; j++) sum[i][j] = vf_fma(x, y[j], sum[i][j]);
        }
    }
    store_product(sum, o + d, dim, alpha, beta, mr, nr);
}

ALWAYS_INLINE void product_rows_as(const float *p, const short_rows *rows, int64_t begin, int64_t end,
                                   float *o, int64_t dim, const float *alpha, const float *beta, int mr,
                                   const hdl_dtype dtype)
{
    int64_t d = 0;
    for (; d + PANEL <= dim && mr <= 4; d += PANEL) switch (mr) {
            case 1: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 1, NR); break;
            case 2: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 2, NR); break;
            case 3: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 3, NR); break;
            default: product_rows(p, rows, begin, end, d, o, dim, alpha, beta, dtype, 4, NR); break;
        }
    for (; d < dim; d += VW) /* the rest, and groups of five and six heads */
        for (int i = 0; i < mr; i++)
            product_rows(p + i * STRIDE, rows, begin, end, d, o + i * dim, dim, alpha ? alpha + i : NULL,
                         beta + i, dtype, 1, 1);
}

static void product_short_values(const float *p, const short_rows *rows, int64_t begin, int64_t end, float *o,
                                 int64_t dim, const float *alpha, const float *beta, int mr, hdl_dtype dtype)
{
    switch (dtype) {
        case HDL_F16: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_F16); break;
        case HDL_BF16: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_BF16); break;
        case HDL_I8: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_I8); break;
        default: product_rows_as(p, rows, begin, end, o, dim, alpha, beta, mr, HDL_F32); break;
    }
}

/* Asks for K and V of steps [begin, end) of the walk with this head. */
static void prefetch_steps(const row_tile *tile, int64_t begin, int64_t end)
{
    const hdl_kv_view *kv = tile->walk.kv;
    int64_t size = kv->dtype == HDL_F32 ? 4 : kv->dtype == HDL_I8 ? 1 : 2;
    int64_t k_bytes = tile->args->head_dim * size, v_bytes = tile->args->v_head_dim * size;
    end = HDL_MIN(end, tile->walk.end);
    for (int64_t step = begin; step < end; step++) {
        const uint8_t *row = kv_token_at(kv, walk_token(&tile->walk, step));
        const uint8_t *k = row + kv->k_offset + tile->kv_head * kv->head_stride;
        const uint8_t *v = row + kv->v_offset + tile->kv_head * kv->v_head_stride;
        for (int64_t b = 0; b < k_bytes; b += LINE) __builtin_prefetch(k + b, 0, 2);
        for (int64_t b = 0; b < v_bytes; b += LINE) __builtin_prefetch(v + b, 0, 2);
    }
}

/* K of the stride, transposed, into panels [][head_dim][PANEL], the first of which begins at step
 * `first`. A short tile fetches the next stride meanwhile. */
ALWAYS_INLINE void convert_k_as(const row_tile *tile, const tile_stride *at, int64_t first, float *k,
                                const hdl_dtype dtype)
{
    int64_t dim = tile->args->head_dim;
    int64_t offset = tile->walk.kv->k_offset + tile->kv_head * tile->walk.kv->head_stride;
    for (int64_t i = at->begin / VW * VW; i < at->end; i += VW) {
        const uint8_t *row[VW];
        float scale[VW];
        for (int t = 0; t < VW; t++) {
            row[t] = step_row(tile, at, i + t, offset);
            if (dtype == HDL_I8) scale[t] = step_scale(tile, at, i + t, false);
        }
        float *to = k + (i - first) / PANEL * PANEL * dim + i % PANEL;
        if (tile->is_short) prefetch_steps(tile, at->base + i + STRIDE, at->base + i + STRIDE + VW);
        for (int64_t d = 0; d < dim; d += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int t = 0; t < VW; t++) x[t] = vf_load_as(dtype, row[t], d);
            vf_transpose(x);
            vf lanes = dtype == HDL_I8 ? vf_load(scale) : vf_set1(0);
#pragma GCC unroll 16
            for (int t = 0; t < VW; t++)
                vf_store(to + (d + t) * PANEL, dtype == HDL_I8 ? vf_mul(x[t], lanes) : x[t]);
        }
    }
}

/* V of the stride into panels [v_head_dim / PANEL][STRIDE][PANEL], the rest in panels of one vector. */
ALWAYS_INLINE void convert_v_as(const row_tile *tile, const tile_stride *at, float *v, const hdl_dtype dtype)
{
    int64_t dim = tile->args->v_head_dim, wide = dim / PANEL * PANEL;
    int64_t offset = tile->walk.kv->v_offset + tile->kv_head * tile->walk.kv->v_head_stride;
    for (int64_t i = at->begin; i < at->end; i++) {
        const uint8_t *row = step_row(tile, at, i, offset);
        vf scale = vf_set1(step_scale(tile, at, i, true));
        for (int64_t d = 0; d < dim; d += VW) {
            vf x = vf_load_as(dtype, row, d);
            if (dtype == HDL_I8) x = vf_mul(x, scale);
            float *to = d < wide ? v + d / PANEL * PANEL * STRIDE + i * PANEL + d % PANEL
                                 : v + d * STRIDE + i * VW;
            vf_store(to, x);
        }
    }
}

static void convert_k(const row_tile *tile, const tile_stride *at, int64_t first, float *k)
{
    switch (tile->walk.kv->dtype) {
        case HDL_F16: convert_k_as(tile, at, first, k, HDL_F16); break;
        case HDL_BF16: convert_k_as(tile, at, first, k, HDL_BF16); break;
        case HDL_I8: convert_k_as(tile, at, first, k, HDL_I8); break;
        default: convert_k_as(tile, at, first, k, HDL_F32); break;
    }
}

static void convert_v(const row_tile *tile, const tile_stride *at, float *v)
{
    switch (tile->walk.kv->dtype) {
        case HDL_F16: convert_v_as(tile, at, v, HDL_F16); break;
        case HDL_BF16: convert_v_as(tile, at, v, HDL_BF16); break;
        case HDL_I8: convert_v_as(tile, at, v, HDL_I8); break;
        default: convert_v_as(tile, at, v, HDL_F32); break;
    }
}

/* Steps of the stride that row i of the tile sees, relative to its base. */
static void row_range(const row_tile *tile, const tile_stride *at, int64_t i, int64_t *begin, int64_t *end)
{
    int64_t first, last;
    if (tile->walk.ids) {
        first = tile->seen[i].begin;
        last = tile->seen[i].end;
    } else {
        int64_t position = tile->seq->kv_len - tile->seq->q_len + tile->first + i;
        first = first_visible(tile->seq, position, tile->args->window);
        last = position + 1;
    }
    *begin = HDL_MIN(HDL_MAX(first - at->base, 0), (int64_t)STRIDE);
    *end = HDL_MAX(HDL_MIN(last - at->base, (int64_t)STRIDE), *begin);
}

/* Products' rows of one KV head, and where those of the head at work begin. */
static int64_t rows_of_head(const row_tile *tile)
{
    return tile->n_rows * tile->group;
}

static int64_t first_of_head(const row_tile *tile)
{
    return (tile->kv_head - tile->first_kv_head) * rows_of_head(tile);
}

/* Scores of the head's rows [m, m + mr), for panels that steps [begin, end) touch. */
static void score_block(const row_tile *tile, int64_t m, int mr, int64_t begin, int64_t end, const float *k,
                        float *s)
{
    int64_t dim = tile->args->head_dim;
    const float *q = tile->q + (first_of_head(tile) + m) * dim;
    for (int64_t i = begin / PANEL * PANEL; i < end; i += PANEL)
        product_scores(q, dim, k + i * dim, s + i, mr);
}

/* The same for a short tile, whose rows are one block: K is converted a panel at a time. */
static void score_short(const row_tile *tile, const tile_stride *at, int mr, int64_t begin, int64_t end,
                        const tile_scratch *scratch)
{
    int64_t dim = tile->args->head_dim;
    const float *q = tile->q + first_of_head(tile) * dim;
    for (int64_t i = begin / PANEL * PANEL; i < end; i += PANEL) {
        tile_stride panel = {at->base, HDL_MAX(at->begin, i), HDL_MIN(at->end, i + PANEL)};
        convert_k(tile, &panel, i, scratch->k);
        product_scores(q, dim, scratch->k, scratch->s + i, mr);
    }
}

static tile_stride stride_at(const row_tile *tile, int64_t stride)
{
    tile_stride at = {.base = stride * STRIDE};
    at.begin = HDL_MAX(tile->walk.begin - at.base, 0);
    at.end = HDL_MIN(tile->walk.end - at.base, (int64_t)STRIDE);
    return at;
}

/* Caps, biases and hides scores of one row in vectors [v_begin, v_end). */
static void shape_row(const row_tile *tile, const tile_stride *at, int64_t row, int64_t v_begin,
                      int64_t v_end, float *s)
{
    const hdl_attend_args *args = tile->args;
    const kv_walk *walk = &tile->walk;
    int64_t begin, end;
    row_range(tile, at, row, &begin, &end);
    if (args->soft_cap > 0)
        for (int64_t i = v_begin; i < v_end; i += VW)
            vf_store(s + i, vf_soft_cap(vf_load(s + i), args->soft_cap));
    if (walk->bias)
        for (int64_t i = begin; i < end; i++) s[i] += walk->bias[(at->base + i) / walk->size];
    if (begin > v_begin || end < v_end)
        for (int64_t i = v_begin; i < v_end; i += VW)
            vf_store(s + i, vf_keep(vf_load(s + i), begin - i, end - i));
    if (!walk->mask) return;
    kv_walk own = *walk;
    own.mask = tile->seq->mask + (tile->first + row) * tile->seq->q_len;
    for (int64_t i = begin; i < end; i++)
        if (!walk_sees(&own, walk_token(walk, at->base + i))) s[i] = -INFINITY;
}

/* s becomes e^(s - max) in the vectors; all hidden: max -inf, s 0. */
static void weigh_row(float *s, int64_t v_begin, int64_t v_end, float *max, float *sum)
{
    vf top = vf_set1(-INFINITY), total = vf_set1(0);
    for (int64_t i = v_begin; i < v_end; i += VW) top = vf_max(vf_load(s + i), top);
    *max = vf_top(top);
    vf m = vf_set1(*max == -INFINITY ? 0 : *max);
    for (int64_t i = v_begin; i < v_end; i += VW) {
        vf p = vf_exp(vf_sub(vf_load(s + i), m));
        vf_store(s + i, p);
        total = vf_add(total, p);
    }
    *sum = vf_sum(total);
}

/* Takes a partial (max, sum) into the row's; alpha scales the row's o, beta the partial's. */
static void merge_state(float part_max, float part_sum, float *max, float *sum, float *alpha, float *beta)
{
    *alpha = 1;
    *beta = 0;
    if (part_max == -INFINITY) return;
    float top = HDL_MAX(*max, part_max),
          factor[2 * VW] = {*max == -INFINITY ? -INFINITY : *max - top, part_max - top};
    vf_store(factor, vf_exp(vf_load(factor)));
    *alpha = factor[0];
    *beta = factor[1];
    *sum = *sum * *alpha + part_sum * *beta;
    *max = top;
}

/* The head's rows [m, m + mr) against a stride, which is converted, or (short tiles) in `rows`.
 * to: the tile's state; is_merged false: the stride's partial alone is stored there. */
static void attend_block(const row_tile *tile, const tile_stride *at, int64_t m, int mr,
                         const short_rows *rows, const tile_scratch *scratch, const tile_scratch *to,
                         bool is_merged)
{
    int64_t first_row = m / tile->group, last_row = (m + mr - 1) / tile->group, begin, end, unused;
    int64_t at_m = first_of_head(tile) + m, dim = tile->args->v_head_dim;
    row_range(tile, at, first_row, &begin, &unused);
    row_range(tile, at, last_row, &unused, &end);
    float alpha[MR], beta[MR];
    if (begin < end) {
        int64_t v_begin = begin / VW * VW, v_end = HDL_ALIGN_UP(end, VW);
        if (rows)
            score_short(tile, at, mr, begin, end, scratch);
        else
            score_block(tile, m, mr, begin, end, scratch->k, scratch->s);
        for (int i = 0; i < mr; i++) {
            float max, sum, *s = scratch->s + i * STRIDE;
            shape_row(tile, at, (m + i) / tile->group, v_begin, v_end, s);
            weigh_row(s, v_begin, v_end, &max, &sum);
            if (is_merged) {
                merge_state(max, sum, &to->max[at_m + i], &to->sum[at_m + i], &alpha[i], &beta[i]);
            } else {
                to->max[at_m + i] = max;
                to->sum[at_m + i] = sum;
            }
        }
    } else if (!is_merged) {
        for (int i = 0; i < mr; i++) {
            to->max[at_m + i] = -INFINITY;
            to->sum[at_m + i] = 0;
        }
    }
    if (begin >= end && is_merged) return;
    const float *shrink = is_merged ? alpha : NULL;
    float *o = to->o + at_m * dim;
    if (rows)
        product_short_values(scratch->s, rows, begin, end, o, dim, shrink, beta, mr, tile->walk.kv->dtype);
    else
        product_values(scratch->s, scratch->v, begin, end, o, dim, shrink, beta, mr);
}

/* Where the rows of a stride begin; for I8 the scales of V of the head at work. */
static void find_rows(const row_tile *tile, const tile_stride *at, short_rows *rows)
{
    const hdl_kv_view *kv = tile->walk.kv;
    rows->v_offset = kv->v_offset + tile->kv_head * kv->v_head_stride;
    for (int64_t i = at->begin; i < at->end; i++) {
        if (tile->kv_head == tile->first_kv_head) rows->row[i] = step_row(tile, at, i, 0);
        if (kv->dtype == HDL_I8) rows->v_scale[i] = step_scale(tile, at, i, true);
    }
}

static void attend_stride(row_tile *tile, int64_t stride, const tile_scratch *scratch, const tile_scratch *to,
                          bool is_merged)
{
    tile_stride at = stride_at(tile, stride);
    int64_t n = rows_of_head(tile), next = at.base + STRIDE;
    int32_t end = tile->first_kv_head + tile->n_kv_heads;
    short_rows rows;
    for (tile->kv_head = tile->first_kv_head; tile->kv_head < end; tile->kv_head++) {
        if (tile->is_short) {
            find_rows(tile, &at, &rows);
            attend_block(tile, &at, 0, (int)n, &rows, scratch, to, is_merged);
            continue;
        }
        convert_k(tile, &at, 0, scratch->k);
        convert_v(tile, &at, scratch->v);
        for (int64_t m = 0; m < n; m += MR) {
            int64_t mr = HDL_MIN(n - m, (int64_t)MR);
            prefetch_steps(tile, next + m * STRIDE / n, next + (m + mr) * STRIDE / n);
            attend_block(tile, &at, m, (int)mr, NULL, scratch, to, is_merged);
        }
    }
}

/* Rows by which the sequence's first tile is cut: tiles of shared lists begin at multiples of their rows
 * by position, which no list crosses. */
static int64_t rows_cut(const rows_call *call, const hdl_attend_seq *seq)
{
    const hdl_selection *sel = call->args->selection;
    return sel && sel->rows_per_list > 1 ? (seq->kv_len - seq->q_len) % call->tile_rows : 0;
}

static int64_t n_tiles_of(const rows_call *call, const hdl_attend_seq *seq)
{
    return (rows_cut(call, seq) + seq->q_len + call->tile_rows - 1) / call->tile_rows;
}

/* Rows of tile `index` of the call, last rows of a sequence first. */
static row_tile tile_at(const rows_call *call, int64_t index)
{
    const hdl_attend_args *args = call->args;
    const hdl_attend_seq *seq = args->seqs;
    for (; index >= n_tiles_of(call, seq); seq++) index -= n_tiles_of(call, seq);
    int64_t begin = (n_tiles_of(call, seq) - 1 - index) * call->tile_rows - rows_cut(call, seq);
    row_tile tile = {.args = args, .seq = seq, .first = HDL_MAX(begin, 0)};
    tile.n_rows = HDL_MIN(begin + call->tile_rows, seq->q_len) - tile.first;
    tile.group = args->n_heads / args->n_kv_heads;
    return tile;
}

/* The tile's walk, and what each of its rows sees of it. */
static void tile_walk(row_tile *tile, int32_t list)
{
    tile->walk = row_walk(tile->args, tile->seq, tile->first, list);
    if (!tile->walk.ids) {
        tile->walk.end += tile->n_rows - 1; /* one token more a row */
        return;
    }
    for (int64_t i = 0; i < tile->n_rows; i++) {
        kv_walk own = i ? row_walk(tile->args, tile->seq, tile->first + i, list) : tile->walk;
        tile->seen[i].begin = own.begin;
        tile->seen[i].end = tile->walk.end = own.end;
    }
}

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
    row_tile tile = tile_at(call, task / n);
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
    row_tile tile = tile_at(call, task);
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
    if (args->kv_dtype != HDL_F32 && args->kv_dtype != HDL_F16 && args->kv_dtype != HDL_BF16 &&
        args->kv_dtype != HDL_I8)
        return "the KV type is not f32, f16, bf16 or i8";
    return NULL;
}

/* Rows of a tile, at most: the conversion of a stride is shared by them. */
static int64_t tile_rows_of(const hdl_attend_args *args)
{
    int64_t m = HDL_MAX(args->head_dim, args->v_head_dim) > 128 ? TILE_M_WIDE : TILE_M, rows = 1;
    int64_t most = HDL_MAX(HDL_MIN(m / (args->n_heads / args->n_kv_heads), args->max_q_len), 1);
    if (!args->has_selection) return most;
    /* a power of two that divides the rows of a list */
    while (2 * rows <= HDL_MIN(most, (int64_t)TILE_SHARED) && args->rows_per_list % (2 * rows) == 0 &&
           args->rows_per_list > 1)
        rows *= 2;
    return rows;
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
        call->n_tiles = 0;
        for (int32_t i = 0; i < args->n_seqs; i++) call->n_tiles += n_tiles_of(call, &args->seqs[i]);
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
