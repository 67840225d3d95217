/* amx_index.c - SCORE by a model's own index on the matrix unit (AMX): int8 queries x int8 keys, one head.
 *
 * Bytes: a token costs dim + 4 read and 4 written, as in simd_index.c. There 64 shuffles turn the sums of 16
 * keys round so that a lane has one token's; here a tile is 16 keys as they lie in the plane, the other factor
 * is one query as a column of 16 x 4 bytes, and the sums of 16 tokens come out side by side. 16 queries cost
 * the same tile products as one, which is what rows of a prompt use. For keys 64 wide: one tile load, one
 * product and one store of 16 tokens, some 24 cycles for 1 KiB, under what memory takes.
 *
 * Sums are exact in integers and rounded once: the reference's bits. */
#include <immintrin.h>

#include "backend/cpu/amx_int.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/index_int.h"
#include "backend/cpu/simd_attend_int.h"

enum { MAX_CHUNKS = INDEX_MAX_DIM / AMX_LINE };

_Static_assert((int)INDEX_ROWS == (int)AMX_EDGE, "a task's rows are the columns of a tile");

/* Tiles: 0..3 sums, 4 and 5 keys, 6 queries. A column of queries is 4 elements wide: `n_columns` of them. */
static void configure(int32_t n_columns)
{
    amx_config config = {.palette = 1};
    for (int i = 0; i < 7; i++) {
        bool is_key = i == 4 || i == 5;
        config.n_bytes[i] = (uint16_t)(is_key ? AMX_LINE : 4 * n_columns);
        config.n_rows[i] = AMX_EDGE;
    }
    _tile_loadconfig(&config);
}

/* [dim / 64] tiles of 16 rows x n_columns x 4 elements: column r is the int8 form of row first + r. */
typedef struct index_queries {
    int8_t tile[MAX_CHUNKS][AMX_EDGE * AMX_LINE] __attribute__((aligned(AMX_LINE)));
    int32_t n, n_columns; /* rows; 1 or AMX_EDGE, those behind the last row are 0 */
} index_queries;

static void quantise_rows(const hdl_score_args *args, int64_t first, int32_t n, index_queries *to)
{
    int64_t dim = args->head_dim;
    int8_t q8[INDEX_MAX_DIM];
    to->n = n;
    to->n_columns = n == 1 ? 1 : AMX_EDGE;
    if (n > 1) memset(to->tile, 0, (size_t)(dim / AMX_LINE) * sizeof to->tile[0]);
    for (int32_t r = 0; r < n; r++) {
        quantise_i8(args->q + (first + r) * args->q_stride, q8, dim);
        for (int64_t d = 0; d < dim; d += 4)
            memcpy(to->tile[d / AMX_LINE] + (d % AMX_LINE / 4 * to->n_columns + r) * 4, q8 + d, 4);
    }
}

/* sums[i] of one query and 16-token groups of keys; n a multiple of 16. */
ALWAYS_INLINE void sum_run(const index_queries *q, const int8_t *k, int64_t dim, int64_t n, int32_t *sums)
{
    if (dim == AMX_LINE) _tile_loadd(6, q->tile[0], 4);
    int64_t i = 0;
    for (; i + 2 * AMX_EDGE <= n; i += 2 * AMX_EDGE) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t d = 0; d < dim; d += AMX_LINE) {
            if (dim > AMX_LINE) _tile_loadd(6, q->tile[d / AMX_LINE], 4);
            _tile_loadd(4, k + i * dim + d, dim);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(5, k + (i + AMX_EDGE) * dim + d, dim);
            _tile_dpbssd(1, 5, 6);
        }
        _tile_stored(0, sums + i, 4);
        _tile_stored(1, sums + i + AMX_EDGE, 4);
    }
    for (; i < n; i += AMX_EDGE) {
        _tile_zero(0);
        for (int64_t d = 0; d < dim; d += AMX_LINE) {
            if (dim > AMX_LINE) _tile_loadd(6, q->tile[d / AMX_LINE], 4);
            _tile_loadd(4, k + i * dim + d, dim);
            _tile_dpbssd(0, 4, 6);
        }
        _tile_stored(0, sums + i, 4);
    }
}

/* The same of 16 queries and one group: sums [16 tokens][16 queries]. */
ALWAYS_INLINE void sum_square(const index_queries *q, const int8_t *k, int64_t dim, int32_t *sums)
{
    _tile_zero(0);
    for (int64_t d = 0; d < dim; d += AMX_LINE) {
        _tile_loadd(6, q->tile[d / AMX_LINE], AMX_LINE);
        _tile_loadd(4, k + d, dim);
        _tile_dpbssd(0, 4, 6);
    }
    _tile_stored(0, sums, AMX_LINE);
}

static float one_score(const index_queries *q, int32_t r, const int8_t *k, int64_t dim, float scale)
{
    int32_t dot = 0;
    for (int64_t d = 0; d < dim; d++)
        dot += (int32_t)q->tile[d / AMX_LINE][(d % AMX_LINE / 4 * q->n_columns + r) * 4 + d % 4] * k[d];
    return (float)dot * scale;
}

ALWAYS_INLINE void to_scores(__m512i sums, const float *scale, float *out)
{
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scale)));
}

/* n neighbouring keys of one page, at most INDEX_RUN: row r's scores at out + r * stride, the first n_seen[r]. */
static void score_keys(const index_queries *q, const int8_t *k, const float *scale, int64_t dim, int64_t n,
                       const int64_t *n_seen, float *out, int64_t stride)
{
    int32_t sums[INDEX_RUN] __attribute__((aligned(AMX_LINE)));
    int64_t whole = HDL_MIN(n, n_seen[q->n - 1]) / AMX_EDGE * AMX_EDGE;
    if (q->n == 1) {
        sum_run(q, k, dim, whole, sums);
        for (int64_t i = 0; i < whole; i += AMX_EDGE)
            to_scores(_mm512_load_si512(sums + i), scale + i, out + i);
    }
    for (int64_t i = 0; i < whole && q->n > 1; i += AMX_EDGE) {
        __m512i of[AMX_EDGE];
        sum_square(q, k + i * dim, dim, sums);
        for (int t = 0; t < AMX_EDGE; t++) of[t] = _mm512_load_si512(sums + t * AMX_EDGE);
        amx_transpose(of);
        for (int32_t r = 0; r < q->n; r++)
            if (i + AMX_EDGE <= n_seen[r]) to_scores(of[r], scale + i, out + r * stride + i);
    }
    for (int32_t r = 0; r < q->n; r++)
        for (int64_t i = HDL_MIN(whole, n_seen[r] / AMX_EDGE * AMX_EDGE); i < HDL_MIN(n, n_seen[r]); i++)
            out[r * stride + i] = one_score(q, r, k + i * dim, dim, scale[i]);
}

static void score_rows(const hdl_score_args *args, const hdl_attend_seq *seq, int64_t row, int32_t n,
                       int64_t begin)
{
    int64_t first_sees = index_visible(seq, row), end = HDL_MIN(begin + INDEX_RUN, first_sees + n - 1);
    if (begin >= end) return;
    const hdl_kv_plane *plane = &seq->kv.plane[0];
    int64_t page_tokens = (int64_t)1 << seq->kv.page_shift, dim = plane->dim;
    index_queries q;
    quantise_rows(args, row, n, &q);
    configure(q.n_columns);
    for (int64_t at = begin; at < end;) {
        int64_t n_keys = HDL_MIN(end, (at / page_tokens + 1) * page_tokens) - at, n_seen[AMX_EDGE];
        for (int32_t r = 0; r < n; r++) n_seen[r] = HDL_MAX(first_sees + r - at, 0);
        score_keys(&q, (const int8_t *)plane_at(&seq->kv, plane->offset, at, 1, dim),
                   (const float *)(const void *)plane_at(&seq->kv, plane->scale_offset, at, 1, 4), dim,
                   n_keys, n_seen, args->score + row * args->score_stride + at, args->score_stride);
        at += n_keys;
    }
    _tile_release();
}

static const char *index_why_not(const void *op)
{
    const hdl_score_args *args = op;
    const char *refusal = index_refusal(args);
    if (refusal) return refusal;
    if (args->block_size > 1) return "entries of more than one token";
    if (args->has_candidates) return "candidates do not lie side by side";
    return args->head_dim % AMX_LINE ? "index keys not 64, 128, .. 1024 wide" : NULL;
}

static void score_index(const hdl_launch *launch, const void *op)
{
    index_score(launch, op, score_rows);
}

const hdl_impl hdl_cpu_amx_index[] = {
    {"score_index_amx", HDL_OP_SCORE, HDL_ISA_AMX, index_why_not, NULL, score_index},
    {NULL, HDL_OP_SCORE, HDL_ISA_AMX, NULL, NULL, NULL},
};
