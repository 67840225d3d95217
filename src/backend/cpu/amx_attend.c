/* amx_attend.c - attention of many query rows on the matrix unit (AMX): prefill, and tiles that share a list.
 *
 * The same two products as simd_attend_rows.c, a stride of HDL_KV_STRIDE steps at a time, but out of
 * bf16 tiles of 16 x 32. One bf16 has 8 significant bits, so every factor is two of them, x = hi + lo:
 *
 *   q . k = q_hi . k_hi + q_lo . k_hi + q_hi . k_lo        p V likewise; sums in f32
 *
 * f16 and bf16 rows are hi + lo exactly, int8 rows are hi alone (their scales multiply scores and shares
 * instead). q and p lose what is below 2^-17 of them, and lo . lo is left out: 2^-16 of a product, the
 * order of the rounding of f32 sums of some hundred terms.
 *
 * Operations a score, heads of 64: 6 + 6 tile products of 16 x 16 x 32 for 256 scores, 0.75 cycles, and
 * some 20 vector operations for 16 of them, 0.7 cycles; f32 multiply-adds alone would take 4. Beside them
 * the conversion of a stride, shared by the TILE_M rows x heads of a tile.
 *
 * Tasks are (tile, KV head), the last rows first. Scratch does not depend on kv_len. */
#include <immintrin.h>

#include "backend/cpu/amx_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_walk.h"
#include "base/pool.h"

enum {
    EDGE = AMX_EDGE,
    DEPTH = 32,         /* bf16 elements of a tile's row */
    TILE_BYTES = 1024,  /* EDGE rows of 64 bytes */
    BLOCK_M = 2 * EDGE, /* rows of a block: two tiles of sums high, two wide */
    TILE_M = 384,       /* rows x heads of a task, at most, for heads up to 128 wide */
    TILE_M_WIDE = 128,  /* for wider ones */
    LEAST_M = EDGE      /* calls with fewer rows x heads a tile are left to the vector kernel */
};

/* bf16 halves of a matrix: lo stands `half` bytes behind hi. */
typedef struct split {
    uint8_t *hi;
    int64_t half;
} split;

typedef struct amx_scratch {
    int64_t dim, v_dim;       /* in whole tiles */
    split q;                  /* [m_max][dim] rows */
    split k;                  /* [STRIDE / 16][dim / 32] tiles: pairs of elements x 16 tokens */
    split v;                  /* [STRIDE / 32][v_dim / 16] tiles: pairs of tokens x 16 elements */
    split p;                  /* [BLOCK_M][STRIDE] rows */
    float *s;                 /* [BLOCK_M][STRIDE] */
    float *o, *max, *sum;     /* [m_max][v_dim], [m_max], [m_max] */
    float *k_scale, *v_scale; /* [STRIDE], I8 */
} amx_scratch;

typedef struct amx_call {
    const hdl_attend_args *args;
    int64_t tile_rows, m_max, n_tiles;
    uint8_t *scratch;
    int64_t scratch_bytes;
} amx_call;

/* ---- to bf16 ---- */

/* 32 floats as bf16, and what they leave. */
ALWAYS_INLINE void split_32(vf a, vf b, __m512i *hi, __m512i *lo)
{
    __m512i h = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    vf ha = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16));
    vf hb = _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16));
    *hi = h;
    *lo = (__m512i)_mm512_cvtne2ps_pbh(vf_sub(b, hb), vf_sub(a, ha));
}

/* Elements d..d+31 of a row that has `dim`, a multiple of 16: 0 behind it. */
ALWAYS_INLINE void load_32(hdl_dtype dtype, const uint8_t *row, int64_t d, int64_t dim, vf *a, vf *b)
{
    *a = vf_load_as(dtype, row, d);
    *b = d + VW < dim ? vf_load_as(dtype, row, d + VW) : vf_set1(0);
}

static const uint8_t *row_of_step(const row_tile *tile, int64_t step)
{
    return kv_token_at(tile->walk.kv, walk_token(&tile->walk, step));
}

/* K of steps in whole tiles: tokens outside the span are 0. */
ALWAYS_INLINE void convert_k_as(const row_tile *tile, const tile_stride *at, const amx_scratch *to,
                                const hdl_dtype dtype)
{
    int64_t dim = tile->args->head_dim, padded = to->dim;
    int64_t offset = tile->walk.kv->k_offset + tile->kv_head * tile->walk.kv->head_stride;
    for (int64_t i = at->begin / DEPTH * DEPTH; i < HDL_ALIGN_UP(at->end, DEPTH); i += EDGE) {
        const uint8_t *row[EDGE];
        for (int t = 0; t < EDGE; t++)
            row[t] = i + t >= at->begin && i + t < at->end ? row_of_step(tile, at->base + i + t) + offset
                                                           : NULL;
        uint8_t *out = to->k.hi + i / EDGE * (padded / DEPTH) * TILE_BYTES;
        for (int64_t d = 0; d < padded; d += DEPTH, out += TILE_BYTES) {
            __m512i hi[EDGE], lo[EDGE];
            for (int t = 0; t < EDGE; t++) {
                vf a = vf_set1(0), b = a;
                if (row[t]) load_32(dtype, row[t], d, dim, &a, &b);
                split_32(a, b, &hi[t], &lo[t]);
            }
            amx_transpose(hi);
            for (int t = 0; t < EDGE; t++) _mm512_store_si512(out + t * LINE, hi[t]);
            if (dtype == HDL_I8) continue;
            amx_transpose(lo);
            for (int t = 0; t < EDGE; t++) _mm512_store_si512(out + to->k.half + t * LINE, lo[t]);
        }
    }
}

/* V in pairs of tokens. */
ALWAYS_INLINE void convert_v_as(const row_tile *tile, const tile_stride *at, const amx_scratch *to,
                                const hdl_dtype dtype)
{
    int64_t dim = tile->args->v_head_dim, padded = to->v_dim;
    int64_t offset = tile->walk.kv->v_offset + tile->kv_head * tile->walk.kv->v_head_stride;
    /* 16 elements of the first token in the even places of a tile's row, of the second in the odd ones */
    const __m512i even = _mm512_set_epi32(0x2f000f, 0x2e000e, 0x2d000d, 0x2c000c, 0x2b000b, 0x2a000a,
                                          0x290009, 0x280008, 0x270007, 0x260006, 0x250005, 0x240004,
                                          0x230003, 0x220002, 0x210001, 0x200000);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(16));
    for (int64_t i = at->begin / DEPTH * DEPTH; i < HDL_ALIGN_UP(at->end, DEPTH); i += 2) {
        const uint8_t *row[2];
        for (int t = 0; t < 2; t++)
            row[t] = i + t >= at->begin && i + t < at->end ? row_of_step(tile, at->base + i + t) + offset
                                                           : NULL;
        uint8_t *out = to->v.hi + i / DEPTH * (padded / EDGE) * TILE_BYTES + i % DEPTH / 2 * LINE;
        for (int64_t d = 0; d < padded; d += DEPTH, out += 2 * TILE_BYTES) {
            __m512i hi[2], lo[2];
            for (int t = 0; t < 2; t++) {
                vf a = vf_set1(0), b = a;
                if (row[t]) load_32(dtype, row[t], d, dim, &a, &b);
                split_32(a, b, &hi[t], &lo[t]);
            }
            _mm512_store_si512(out, _mm512_permutex2var_epi16(hi[0], even, hi[1]));
            _mm512_store_si512(out + TILE_BYTES, _mm512_permutex2var_epi16(hi[0], odd, hi[1]));
            if (dtype == HDL_I8) continue;
            uint8_t *low = out + to->v.half;
            _mm512_store_si512(low, _mm512_permutex2var_epi16(lo[0], even, lo[1]));
            _mm512_store_si512(low + TILE_BYTES, _mm512_permutex2var_epi16(lo[0], odd, lo[1]));
        }
    }
}

static void load_scales(const row_tile *tile, const tile_stride *at, const amx_scratch *to)
{
    const hdl_kv_view *kv = tile->walk.kv;
    for (int64_t i = at->begin / DEPTH * DEPTH; i < HDL_ALIGN_UP(at->end, DEPTH); i++) {
        to->k_scale[i] = to->v_scale[i] = 0;
        if (i < at->begin || i >= at->end) continue;
        const uint8_t *scales = kv_scale_at(kv, walk_token(&tile->walk, at->base + i),
                                            tile->args->n_kv_heads);
        memcpy(&to->k_scale[i], scales + kv->k_scale_offset + tile->kv_head * 4, sizeof(float));
        memcpy(&to->v_scale[i], scales + kv->v_scale_offset + tile->kv_head * 4, sizeof(float));
    }
}

static void convert_stride(const row_tile *tile, const tile_stride *at, const amx_scratch *to)
{
    switch (tile->walk.kv->dtype) {
        case HDL_F16:
            convert_k_as(tile, at, to, HDL_F16);
            convert_v_as(tile, at, to, HDL_F16);
            break;
        case HDL_BF16:
            convert_k_as(tile, at, to, HDL_BF16);
            convert_v_as(tile, at, to, HDL_BF16);
            break;
        case HDL_I8:
            convert_k_as(tile, at, to, HDL_I8);
            convert_v_as(tile, at, to, HDL_I8);
            load_scales(tile, at, to);
            break;
        default: HDL_ASSERT(false); /* refused */
    }
}

/* ---- products; tiles 0..3 are sums, 4 and 5 rows of the left factor, 6 and 7 of the right one ---- */

static void configure_tiles(void)
{
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.n_bytes[i] = LINE;
        config.n_rows[i] = EDGE;
    }
    _tile_loadconfig(&config);
}

ALWAYS_INLINE void multiply(const bool is_tall)
{
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (!is_tall) return;
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

ALWAYS_INLINE void load_left(const uint8_t *at, int64_t stride, const bool is_tall)
{
    _tile_loadd(4, at, stride);
    if (is_tall) _tile_loadd(5, at + EDGE * stride, stride);
}

ALWAYS_INLINE void load_right(const uint8_t *at, int64_t next)
{
    _tile_loadd(6, at, LINE);
    _tile_loadd(7, at + next, LINE);
}

/* The sums of both halves of a [left rows, DEPTH] by b [DEPTH, two tiles]; b_lo 0: b is hi alone. */
ALWAYS_INLINE void multiply_split(const uint8_t *a, int64_t a_stride, int64_t a_lo, const uint8_t *b,
                                  int64_t b_next, int64_t b_lo, const bool is_tall)
{
    load_right(b, b_next);
    load_left(a + a_lo, a_stride, is_tall);
    multiply(is_tall);
    load_left(a, a_stride, is_tall);
    multiply(is_tall);
    if (!b_lo) return;
    load_right(b + b_lo, b_next);
    multiply(is_tall);
}

/* s = q K for steps [begin, end), multiples of DEPTH, of the block's rows. */
ALWAYS_INLINE void product_scores(const amx_scratch *at, int64_t m, int64_t begin, int64_t end, int64_t k_lo,
                                  const bool is_tall)
{
    int64_t row = at->dim * 2, chunks = at->dim / DEPTH;
    for (int64_t i = begin; i < end; i += 2 * EDGE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const uint8_t *k = at->k.hi + i / EDGE * chunks * TILE_BYTES;
        for (int64_t c = 0; c < chunks; c++)
            multiply_split(at->q.hi + m * row + c * LINE, row, at->q.half, k + c * TILE_BYTES,
                           chunks * TILE_BYTES, k_lo, is_tall);
        _tile_stored(0, at->s + i, STRIDE * 4);
        _tile_stored(1, at->s + i + EDGE, STRIDE * 4);
        if (!is_tall) continue;
        _tile_stored(2, at->s + EDGE * STRIDE + i, STRIDE * 4);
        _tile_stored(3, at->s + EDGE * STRIDE + i + EDGE, STRIDE * 4);
    }
}

/* o += p V over steps [begin, end). */
ALWAYS_INLINE void product_values(const amx_scratch *at, int64_t m, int64_t begin, int64_t end, int64_t v_lo,
                                  const bool is_tall)
{
    int64_t n_across = at->v_dim / EDGE, o_row = at->v_dim * 4;
    for (int64_t j = 0; j < n_across; j += 2) {
        float *o = at->o + m * at->v_dim + j * EDGE;
        _tile_loadd(0, o, o_row);
        _tile_loadd(1, o + EDGE, o_row);
        if (is_tall) {
            _tile_loadd(2, o + EDGE * at->v_dim, o_row);
            _tile_loadd(3, o + EDGE * at->v_dim + EDGE, o_row);
        }
        for (int64_t i = begin; i < end; i += DEPTH)
            multiply_split(at->p.hi + i * 2, STRIDE * 2, at->p.half,
                           at->v.hi + (i / DEPTH * n_across + j) * TILE_BYTES, TILE_BYTES, v_lo, is_tall);
        _tile_stored(0, o, o_row);
        _tile_stored(1, o + EDGE, o_row);
        if (!is_tall) continue;
        _tile_stored(2, o + EDGE * at->v_dim, o_row);
        _tile_stored(3, o + EDGE * at->v_dim + EDGE, o_row);
    }
}

/* ---- softmax ---- */

/* Scales (I8) and shapes the scores of one row in steps [begin, end); returns the largest. */
static float largest_score(const row_tile *tile, const tile_stride *at, const amx_scratch *scratch,
                           int64_t row, int64_t begin, int64_t end, float *s)
{
    if (tile->walk.kv->dtype == HDL_I8)
        for (int64_t i = begin; i < end; i += VW)
            vf_store(s + i, vf_mul(vf_load(s + i), vf_load(scratch->k_scale + i)));
    shape_row(tile, at, row, begin, end, s);
    vf top = vf_set1(-INFINITY), other = top;
    for (int64_t i = begin; i < end; i += DEPTH) {
        top = vf_max(vf_load(s + i), top);
        other = vf_max(vf_load(s + i + VW), other);
    }
    return vf_top(vf_max(top, other));
}

/* e^(s - max) for s <= max, -inf among them: 2^n 2^r, |r| <= 1/2, the polynomial to 2^-22. */
ALWAYS_INLINE vf share_of(vf s, vf minus_max)
{
    vf x = vf_fma(s, vf_set1(0x1.715476p+0f), minus_max);
    vf r = _mm512_reduce_ps(x, 0), n = vf_sub(x, r);
    vf y = vf_fma(r, vf_set1(0x1.5eb6dcp-10f), vf_set1(0x1.3d1a0ep-7f));
    y = vf_fma(y, r, vf_set1(0x1.c6af84p-5f));
    y = vf_fma(y, r, vf_set1(0x1.ebfae0p-3f));
    y = vf_fma(y, r, vf_set1(0x1.62e430p-1f));
    y = vf_fma(y, r, vf_set1(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* Shares of one row in halves; returns their sum. v_scale: of I8, else NULL. */
ALWAYS_INLINE float weigh_row(const float *s, float max, int64_t begin, int64_t end, const float *v_scale,
                              uint8_t *p, int64_t lo)
{
    vf total = vf_set1(0), other = total, minus_max = vf_set1(max == -INFINITY ? 0 : max * -0x1.715476p+0f);
    for (int64_t i = begin; i < end; i += DEPTH) {
        __m512i high, low;
        vf a = share_of(vf_load(s + i), minus_max), b = share_of(vf_load(s + i + VW), minus_max);
        total = vf_add(total, a);
        other = vf_add(other, b);
        if (v_scale) {
            a = vf_mul(a, vf_load(v_scale + i));
            b = vf_mul(b, vf_load(v_scale + i + VW));
        }
        split_32(a, b, &high, &low);
        _mm512_store_si512(p + i * 2, high);
        _mm512_store_si512(p + i * 2 + lo, low);
    }
    return vf_sum(vf_add(total, other));
}

/* Rows [m, m + n) of the tile, at most BLOCK_M, against a converted stride. */
static void attend_block(const row_tile *tile, const tile_stride *at, int64_t m, int64_t n,
                         const amx_scratch *scratch)
{
    bool is_i8 = tile->walk.kv->dtype == HDL_I8;
    int64_t begin, end, unused, k_lo = is_i8 ? 0 : scratch->k.half, v_lo = is_i8 ? 0 : scratch->v.half;
    row_range(tile, at, m / tile->group, &begin, &unused);
    row_range(tile, at, (m + n - 1) / tile->group, &unused, &end);
    if (begin >= end) return;
    begin = begin / DEPTH * DEPTH;
    end = HDL_ALIGN_UP(end, DEPTH);
    if (n > EDGE)
        product_scores(scratch, m, begin, end, k_lo, true);
    else
        product_scores(scratch, m, begin, end, k_lo, false);
    for (int64_t i = 0; i < n; i++) {
        float *s = scratch->s + i * STRIDE, *o = scratch->o + (m + i) * scratch->v_dim;
        float old = scratch->max[m + i],
              max = largest_score(tile, at, scratch, (m + i) / tile->group, begin, end, s);
        max = HDL_MAX(max, old);
        float sum = weigh_row(s, max, begin, end, is_i8 ? scratch->v_scale : NULL,
                              scratch->p.hi + i * STRIDE * 2, scratch->p.half);
        if (max == old) {
            scratch->sum[m + i] += sum;
            continue;
        }
        float alpha = old == -INFINITY ? 0 : expf(old - max);
        scratch->max[m + i] = max;
        scratch->sum[m + i] = scratch->sum[m + i] * alpha + sum;
        for (int64_t d = 0; d < scratch->v_dim; d += VW)
            vf_store(o + d, vf_mul(vf_load(o + d), vf_set1(alpha)));
    }
    if (n > EDGE)
        product_values(scratch, m, begin, end, v_lo, true);
    else
        product_values(scratch, m, begin, end, v_lo, false);
}

/* ---- tiles ---- */

static int64_t padded(int64_t dim)
{
    return HDL_ALIGN_UP(dim, DEPTH);
}

/* Bytes of a thread's scratch; with a base, where its parts are. */
static int64_t lay_scratch(const hdl_attend_args *args, int64_t m_max, uint8_t *base, amx_scratch *out)
{
    int64_t dim = padded(args->head_dim), v_dim = padded(args->v_head_dim), at = 0;
    int64_t q_half = m_max * dim * 2, k_half = STRIDE * dim * 2, v_half = STRIDE * v_dim * 2;
    int64_t p_half = BLOCK_M * STRIDE * 2;
    amx_scratch lay = {.dim = dim, .v_dim = v_dim};
    uintptr_t from = (uintptr_t)base;
    lay.q = (split){(uint8_t *)from, q_half}, at += 2 * q_half;
    lay.k = (split){(uint8_t *)(from + (uintptr_t)at), k_half}, at += 2 * k_half;
    lay.v = (split){(uint8_t *)(from + (uintptr_t)at), v_half}, at += 2 * v_half;
    lay.p = (split){(uint8_t *)(from + (uintptr_t)at), p_half}, at += 2 * p_half;
    float *floats = (float *)(from + (uintptr_t)at);
    lay.s = floats, floats += BLOCK_M * STRIDE;
    lay.k_scale = floats, floats += STRIDE;
    lay.v_scale = floats, floats += STRIDE;
    lay.o = floats, floats += m_max * v_dim;
    lay.max = floats, floats += m_max;
    lay.sum = floats, floats += m_max;
    if (out) *out = lay;
    return HDL_ALIGN_UP((int64_t)((uintptr_t)floats - from), LINE);
}

/* Scaled queries in halves; rows behind the last one of a block are 0. */
static void load_queries(const row_tile *tile, const amx_scratch *to)
{
    const hdl_attend_args *args = tile->args;
    int64_t dim = to->dim;
    for (int64_t m = 0; m < HDL_ALIGN_UP(rows_of_head(tile), BLOCK_M); m++) {
        int64_t row = tile->seq->first_row + tile->first + m / tile->group;
        int64_t head = tile->kv_head * tile->group + m % tile->group;
        const float *q = args->q + row * args->q_stride + head * args->head_dim;
        for (int64_t d = 0; d < dim; d += DEPTH) {
            __m512i hi, lo;
            vf a = vf_set1(0), b = a;
            if (m < rows_of_head(tile)) load_32(HDL_F32, (const uint8_t *)q, d, args->head_dim, &a, &b);
            split_32(vf_mul(a, vf_set1(args->scale)), vf_mul(b, vf_set1(args->scale)), &hi, &lo);
            _mm512_store_si512(to->q.hi + (m * dim + d) * 2, hi);
            _mm512_store_si512(to->q.hi + (m * dim + d) * 2 + to->q.half, lo);
        }
    }
}

static void attend_tile(void *arg, int64_t task, int thread)
{
    const amx_call *call = arg;
    const hdl_attend_args *args = call->args;
    amx_scratch scratch;
    row_tile tile = tile_at(args, call->tile_rows, task / args->n_kv_heads);
    const hdl_selection *sel = args->selection;
    int64_t n_m = rows_of_head(&tile);
    tile.kv_head = tile.first_kv_head = (int32_t)(task % args->n_kv_heads);
    tile_walk(&tile, sel ? (int32_t)((int64_t)tile.kv_head * sel->n_lists / args->n_kv_heads) : 0);
    lay_scratch(args, call->m_max, call->scratch + thread * call->scratch_bytes, &scratch);
    load_queries(&tile, &scratch);
    memset(scratch.o, 0, (size_t)(HDL_ALIGN_UP(n_m, BLOCK_M) * scratch.v_dim) * sizeof(float));
    memset(scratch.p.hi, 0,
           (size_t)(2 * scratch.p.half)); /* rows of a short block: read, their sums unused */
    for (int64_t m = 0; m < n_m; m++) {
        scratch.max[m] = -INFINITY;
        scratch.sum[m] = 0;
    }
    configure_tiles();
    for (int64_t stride = tile.walk.begin / STRIDE; stride * STRIDE < tile.walk.end; stride++) {
        tile_stride at = stride_at(&tile, stride);
        convert_stride(&tile, &at, &scratch);
        for (int64_t m = 0; m < n_m; m += BLOCK_M)
            attend_block(&tile, &at, m, HDL_MIN(n_m - m, (int64_t)BLOCK_M), &scratch);
    }
    _tile_release();
    for (int64_t m = 0; m < n_m; m++) {
        int64_t row = tile.seq->first_row + tile.first + m / tile.group;
        int32_t head = tile.kv_head * tile.group + (int32_t)(m % tile.group);
        vf share = vf_set1(finish_head(args, row, head, scratch.max[m], scratch.sum[m]));
        float *out = args->o + row * args->o_stride + head * (int64_t)args->v_head_dim;
        for (int64_t d = 0; d < args->v_head_dim; d += VW)
            vf_store(out + d, vf_mul(vf_load(scratch.o + m * scratch.v_dim + d), share));
    }
}

static const char *amx_why_not(const void *op)
{
    const hdl_attend_args *args = op;
    if (args->head_dim % 16 || args->v_head_dim % 16) return "head_dim or v_head_dim is not a multiple of 16";
    if (args->head_dim > 512 || args->v_head_dim > 512) return "head_dim or v_head_dim is above 512";
    if (args->n_heads % args->n_kv_heads) return "n_heads is not a multiple of n_kv_heads";
    if (args->is_invariant) return "the invariant order is that of attend_rows";
    if (args->has_mass) return "it does not observe mass";
    if (args->max_q_len <= 1) return "it is for several rows of a sequence";
    if (args->has_selection && args->rows_per_list <= 1) return "it is for lists that several rows share";
    if (args->kv_dtype == HDL_F32) return "f32 rows are read in f32";
    if (args->kv_dtype != HDL_F16 && args->kv_dtype != HDL_BF16 && args->kv_dtype != HDL_I8)
        return "the KV type is not f16, bf16 or i8";
    return NULL;
}

static int64_t tile_rows_of(const hdl_attend_args *args)
{
    bool is_wide = HDL_MAX(args->head_dim, args->v_head_dim) > 128;
    return tile_rows_within(args, is_wide ? TILE_M_WIDE : TILE_M);
}

static int64_t amx_workspace(const void *op, int n_threads)
{
    const hdl_attend_args *args = op;
    int64_t m = HDL_ALIGN_UP(tile_rows_of(args) * (args->n_heads / args->n_kv_heads), BLOCK_M);
    int64_t bytes = n_threads * lay_scratch(args, m, NULL, NULL);
    return HDL_MAX(bytes, hdl_cpu_avx512_attend_rows[0].workspace(op, n_threads));
}

static void attend(const hdl_launch *launch, const void *op)
{
    const hdl_attend_args *args = op;
    int64_t longest = 1, group = args->n_heads / args->n_kv_heads;
    for (int32_t i = 0; i < args->n_seqs; i++) longest = HDL_MAX(longest, args->seqs[i].q_len);
    amx_call call = {.args = args,
                     .m_max = HDL_ALIGN_UP(tile_rows_of(args) * group, BLOCK_M),
                     .scratch = launch->workspace};
    if (HDL_MIN(longest, tile_rows_of(args)) * group < LEAST_M) {
        hdl_cpu_avx512_attend_rows[0].launch(launch, op); /* tiles would be mostly empty */
        return;
    }
    call.scratch_bytes = lay_scratch(args, call.m_max, NULL, NULL);
    call.tile_rows = args->selection ? tile_rows_of(args) : HDL_MIN(tile_rows_of(args), longest);
    for (;; call.tile_rows = (call.tile_rows + 1) / 2) { /* shorter while that leaves threads idle */
        call.n_tiles = n_tiles_of_all(args, call.tile_rows);
        if (call.n_tiles * args->n_kv_heads >= 2 * launch->n_threads || launch->n_threads == 1) break;
        if (args->selection || call.tile_rows * group <= BLOCK_M) break;
    }
    hdl_parallel_for(launch->n_threads, call.n_tiles * args->n_kv_heads, attend_tile, &call);
}

const hdl_impl hdl_cpu_amx_attend[] = {
    {"attend_amx", HDL_OP_ATTEND, HDL_ISA_AMX, amx_why_not, amx_workspace, attend},
    {NULL, HDL_OP_ATTEND, HDL_ISA_AMX, NULL, NULL, NULL},
};
