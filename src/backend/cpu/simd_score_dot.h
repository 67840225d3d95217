/* simd_score_dot.h - dot products of a tile of entries with a few query heads, one lane an entry.
 *
 * Integer keys are turned round in registers (8 dwords of VW rows a chunk), so that each lane adds up its
 * own entry and nothing is summed across lanes. The turned keys of a tile stay in a small buffer which every
 * query head that shares them reads: a chunk costs its loads, 24 shuffles and 8 stores once, then per head
 * 8 (int8) or 16 (4 bits) multiply-adds. Codes of a book are looked up, a shuffle for each element of each half
 * of the bytes, once for the heads of a batch: 32 lookups a chunk and 32 multiply-adds a head for pairs, 64 and 64
 * for fours, as many multiply-adds an element as of 4 bits. Integers are exact, so all instruction sets give the
 * same bits.
 *
 * Rows may be of any length that is a multiple of 4 bytes; queries are padded with zeros to whole chunks.
 * Only `static` functions may stand here: see cpu.h. */
#ifndef HDL_SIMD_SCORE_DOT_H
#define HDL_SIMD_SCORE_DOT_H

#include "backend/cpu/codebook.h"
#include "backend/cpu/simd_attend_int.h"
#include "backend/summary.h"

enum {
    SCORE_MAX_DIM = 1024,
    CHUNK_BYTES = 32, /* of a key row */
    BATCH = 4,        /* query heads at once */
#if defined(HDL_ISA_avx512)
    VECTORS = 4,     /* of entries in a tile: each part of a query is loaded once for all */
    I8_OFFSET = 128, /* keys become unsigned */
#else
    VECTORS = 1,
    I8_OFFSET = 0, /* |k| times the sign of k moved to q */
#endif
    TILE = VECTORS * VW,
    KEY_BUFFER_BYTES = SCORE_MAX_DIM * TILE * (VW == 4 ? 2 : 1)
};

/* Where the entries of a tile lie: stride bytes apart, or each at its own place. */
typedef struct tile_rows {
    const uint8_t *first;
    int64_t stride;           /* 0 = not side by side */
    const uint8_t *row[TILE]; /* then these */
} tile_rows;

/* Bytes of a key's row of this kind in the plane. A byte holds `parts` elements, 1 (int8), 2 (4 bits), 4 or 8
 * (codes of pairs and of fours): element p of byte i is element p * bytes + i of the row. */
static inline int64_t key_row_bytes(hdl_plane_kind kind, int64_t dim)
{
    return dim / hdl_plane_elements_per_byte(kind);
}

#if defined(HDL_ISA_avx512) || defined(HDL_ISA_avx2)
#if defined(HDL_ISA_avx512)
typedef __m512i vi;

ALWAYS_INLINE vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
ALWAYS_INLINE vi vi_load(const void *p)
{
    return _mm512_load_si512(p);
}
ALWAYS_INLINE void vi_store(void *p, vi v)
{
    _mm512_store_si512(p, v);
}
ALWAYS_INLINE vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
ALWAYS_INLINE vf vi_float(vi a)
{
    return _mm512_cvtepi32_ps(a);
}
/* The halves of the bytes, 0..15 each. */
ALWAYS_INLINE vi vi_low4(vi a)
{
    return _mm512_and_si512(a, _mm512_set1_epi8(15));
}
ALWAYS_INLINE vi vi_high4(vi a)
{
    return vi_low4(_mm512_srli_epi16(a, 4));
}
/* table[x] of each byte x in 0..15, the table 16 bytes repeated. */
ALWAYS_INLINE vi vi_table(const uint8_t *table)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
}
ALWAYS_INLINE vi vi_lookup(vi table, vi x)
{
    return _mm512_shuffle_epi8(table, x);
}
ALWAYS_INLINE vi vi_unpack(vi a, vi b, const bool is_high)
{
    return is_high ? _mm512_unpackhi_epi32(a, b) : _mm512_unpacklo_epi32(a, b);
}
ALWAYS_INLINE vi vi_unpack2(vi a, vi b, const bool is_high)
{
    return is_high ? _mm512_unpackhi_epi64(a, b) : _mm512_unpacklo_epi64(a, b);
}
ALWAYS_INLINE vi vi_lanes(vi a, vi b, const bool is_high)
{
    return is_high ? _mm512_shuffle_i32x4(a, b, 0xdd) : _mm512_shuffle_i32x4(a, b, 0x88);
}
/* `n` bytes of rows i and i + ROW_OF_HALF (i in 0..3 or 8..11) side by side. */
enum { ROW_OF_HALF = 4 };
ALWAYS_INLINE vi vi_rows(const uint8_t *a, const uint8_t *b, uint32_t n)
{
    if (n == CHUNK_BYTES)
        return _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a)),
            _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
    __mmask8 mask = (__mmask8)((1u << n / 4) - 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi32(mask, a)),
                              _mm256_maskz_loadu_epi32(mask, b), 1);
}
/* 16 bytes of rows i, i + 4, .. side by side. */
enum { QUARTERS = 4 };
ALWAYS_INLINE vi vi_quarters(const uint8_t *const row[QUARTERS])
{
    vi x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)row[0]));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, _mm_loadu_si128((const __m128i *)(const void *)row[1]));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, _mm_loadu_si128((const __m128i *)(const void *)row[2]));
    return _mm512_mask_broadcast_i32x4(x, 0xf000, _mm_loadu_si128((const __m128i *)(const void *)row[3]));
}
#else
typedef __m256i vi;

ALWAYS_INLINE vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
ALWAYS_INLINE vi vi_load(const void *p)
{
    return _mm256_load_si256(p);
}
ALWAYS_INLINE void vi_store(void *p, vi v)
{
    _mm256_store_si256(p, v);
}
ALWAYS_INLINE vi vi_add(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
ALWAYS_INLINE vf vi_float(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
ALWAYS_INLINE vi vi_low4(vi a)
{
    return _mm256_and_si256(a, _mm256_set1_epi8(15));
}
ALWAYS_INLINE vi vi_high4(vi a)
{
    return vi_low4(_mm256_srli_epi16(a, 4));
}
ALWAYS_INLINE vi vi_table(const uint8_t *table)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
}
ALWAYS_INLINE vi vi_lookup(vi table, vi x)
{
    return _mm256_shuffle_epi8(table, x);
}
ALWAYS_INLINE vi vi_unpack(vi a, vi b, const bool is_high)
{
    return is_high ? _mm256_unpackhi_epi32(a, b) : _mm256_unpacklo_epi32(a, b);
}
ALWAYS_INLINE vi vi_unpack2(vi a, vi b, const bool is_high)
{
    return is_high ? _mm256_unpackhi_epi64(a, b) : _mm256_unpacklo_epi64(a, b);
}
ALWAYS_INLINE vi vi_lanes(vi a, vi b, const bool is_high)
{
    return is_high ? _mm256_permute2x128_si256(a, b, 0x31) : _mm256_permute2x128_si256(a, b, 0x20);
}
enum { ROW_OF_HALF = 0 };
ALWAYS_INLINE vi vi_rows(const uint8_t *a, const uint8_t *b, uint32_t n)
{
    (void)b;
    if (n == CHUNK_BYTES) return _mm256_loadu_si256((const __m256i *)(const void *)a);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32((const int *)(const void *)a,
                                 _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n / 4), lane));
}
enum { QUARTERS = 2 };
ALWAYS_INLINE vi vi_quarters(const uint8_t *const row[QUARTERS])
{
    __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)row[0]));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i *)(const void *)row[1]), 1);
}
#endif

/* Row i of the tile from entry `from`. */
ALWAYS_INLINE const uint8_t *row_at(const tile_rows *rows, int i, const bool is_run)
{
    return is_run ? rows->first + i * rows->stride : rows->row[i];
}

/* out[d] = dword d of n bytes `at` bytes into VW rows from row `from`, lane i from row from + i. */
ALWAYS_INLINE void turn_chunk(const tile_rows *rows, int from, int64_t at, uint32_t n, vi out[8],
                              const bool is_run)
{
    vi r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        int a = from + (ROW_OF_HALF != 0 && i >= 4 ? i + 4 : i);
        r[i] = vi_rows(row_at(rows, a, is_run) + at, row_at(rows, a + ROW_OF_HALF, is_run) + at, n);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = vi_unpack(r[i], r[i + 1], false);
        t[i + 1] = vi_unpack(r[i], r[i + 1], true);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = vi_unpack2(t[i], t[i + 2], false);
        r[i + 1] = vi_unpack2(t[i], t[i + 2], true);
        r[i + 2] = vi_unpack2(t[i + 1], t[i + 3], false);
        r[i + 3] = vi_unpack2(t[i + 1], t[i + 3], true);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[i] = vi_lanes(r[i], r[i + 4], false);
        out[i + 4] = vi_lanes(r[i], r[i + 4], true);
    }
}

/* The same of half a chunk, its 4 dwords. */
enum { NARROW_BYTES = CHUNK_BYTES / 2 };
ALWAYS_INLINE void turn_narrow(const tile_rows *rows, int from, int64_t at, vi out[4], const bool is_run)
{
    vi r[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const uint8_t *row[QUARTERS];
#pragma GCC unroll 4
        for (int j = 0; j < QUARTERS; j++) row[j] = row_at(rows, from + 4 * j + i, is_run) + at;
        r[i] = vi_quarters(row);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
        t[i] = vi_unpack(r[i], r[i + 1], false);
        t[i + 1] = vi_unpack(r[i], r[i + 1], true);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) out[i] = vi_unpack2(t[i / 2], t[i / 2 + 2], i & 1);
}

ALWAYS_INLINE void gather_chunk(const tile_rows *rows, int64_t at, uint32_t n, bool is_signed,
                                uint8_t *buffer, const bool is_run, const bool is_narrow)
{
    for (int v = 0; v < VECTORS; v++) {
        vi key[8];
        if (is_narrow)
            turn_narrow(rows, v * VW, at, key, is_run);
        else
            turn_chunk(rows, v * VW, at, n, key, is_run);
        const int n_dwords = is_narrow ? 4 : 8;
#pragma GCC unroll 8
        for (int i = 0; i < n_dwords; i++) {
#if defined(HDL_ISA_avx512)
            if (is_signed) key[i] = _mm512_xor_si512(key[i], _mm512_set1_epi8((char)0x80));
#endif
            vi_store(buffer + (i * VECTORS + v) * (int64_t)sizeof(vi), key[i]);
        }
    }
    (void)is_signed;
}

/* Keys of a tile, n_bytes at `offset` of each row, into the buffer in the order dot_batch reads. */
static void gather_keys(const tile_rows *rows, int64_t offset, int64_t n_bytes, int32_t parts,
                        uint8_t *buffer)
{
    bool is_signed = parts == 1;
    for (int64_t at = 0; at < n_bytes; at += CHUNK_BYTES, buffer += 8 * VECTORS * sizeof(vi)) {
        uint32_t n = (uint32_t)HDL_MIN(n_bytes - at, (int64_t)CHUNK_BYTES);
        if (n == NARROW_BYTES && parts > 2 && rows->stride) /* dot_as reads no more of codes */
            gather_chunk(rows, offset + at, NARROW_BYTES, false, buffer, true, true);
        else if (n < CHUNK_BYTES)
            gather_chunk(rows, offset + at, n, is_signed, buffer, rows->stride > 0, false);
        else if (rows->stride)
            gather_chunk(rows, offset + at, CHUNK_BYTES, is_signed, buffer, true, false);
        else
            gather_chunk(rows, offset + at, CHUNK_BYTES, is_signed, buffer, false, false);
    }
}

static inline int64_t query_bytes(hdl_plane_kind kind, int64_t dim)
{
    return HDL_ALIGN_UP(key_row_bytes(kind, dim), CHUNK_BYTES) * hdl_plane_elements_per_byte(kind);
}

/* q8 [dim] in the order of the keys: chunk by chunk, one part of its bytes after the other. */
static void pack_query(const int8_t *q8, hdl_plane_kind kind, int64_t dim, uint8_t *to)
{
    int64_t n = key_row_bytes(kind, dim);
    memset(to, 0, (size_t)query_bytes(kind, dim));
    for (int64_t at = 0; at < n; at += CHUNK_BYTES)
        for (int32_t part = 0; part < hdl_plane_elements_per_byte(kind); part++, to += CHUNK_BYTES)
            memcpy(to, q8 + part * n + at, (size_t)HDL_MIN(n - at, (int64_t)CHUNK_BYTES));
}

ALWAYS_INLINE vi query_dword(const uint8_t *q)
{
    int32_t x;
    memcpy(&x, q, sizeof x);
    return vi_set1(x);
}

/* The books of pairs and fours, as unsigned bytes. */
enum { MAX_GROUP = 4 };
ALWAYS_INLINE void load_book(const int parts, vi book[MAX_GROUP])
{
    for (int j = 0; j < parts / 2 && parts > 2; j++) {
        uint8_t entry[HDL_BOOK_CODES];
        for (int i = 0; i < HDL_BOOK_CODES; i++)
            entry[i] = (uint8_t)(hdl_book(parts / 2)[j][i] + HDL_BOOK_MOST);
        book[j] = vi_table(entry);
    }
}

/* Element p of the bytes x, not signed: 0..15, or an entry of the book. */
ALWAYS_INLINE vi key_part(vi x, int p, const vi *book, const int parts)
{
    if (parts == 1) return x;
    vi half = p < parts / 2 ? vi_low4(x) : vi_high4(x);
    return parts == 2 ? half : vi_lookup(book[p % (parts / 2)], half);
}

/* sum [group][N_SUMS] += the products of n dwords of a chunk: a sum for each vector of entries, or two that are
 * added up in the end. */
enum { N_SUMS = HDL_MAX(VECTORS, 2) };
#if defined(HDL_ISA_avx512)
ALWAYS_INLINE void dot_chunk(const uint8_t *key, const uint8_t *q, int64_t q_bytes, vi (*sum)[N_SUMS], int n,
                             const vi *book, const int parts, const int group)
{
    for (int i = 0; i < n; i++, q += 4) {
        vi x[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++, key += sizeof(vi)) x[v] = vi_load(key);
#pragma GCC unroll 8
        for (int p = 0; p < parts; p++) {
            vi k[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) k[v] = key_part(x[v], p, book, parts);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) {
                vi y = query_dword(q + g * q_bytes + p * CHUNK_BYTES);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) sum[g][v] = _mm512_dpbusd_epi32(sum[g][v], k[v], y);
            }
        }
    }
}
#else
/* 4 bits: 8 products of 15 * 127 * 2 fit 16 bits. */
ALWAYS_INLINE void dot_chunk_i4(const uint8_t *key, const uint8_t *q, int64_t q_bytes, vi (*sum)[N_SUMS],
                                const int group)
{
    const vi ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
    for (int half = 0; half < 8; half += 4) {
        vi s[BATCH];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) s[g] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = half; i < half + 4; i++) {
            vi x = vi_load(key + i * (int64_t)sizeof(vi));
            vi low = vi_low4(x), high = vi_high4(x);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) {
                vi y = query_dword(q + g * q_bytes + 4 * i);
                vi z = query_dword(q + g * q_bytes + 4 * i + CHUNK_BYTES);
                s[g] = _mm256_add_epi16(s[g], _mm256_maddubs_epi16(low, y));
                s[g] = _mm256_add_epi16(s[g], _mm256_maddubs_epi16(high, z));
            }
        }
        for (int g = 0; g < group; g++)
            sum[g][half / 4] = vi_add(sum[g][half / 4], _mm256_madd_epi16(s[g], ones));
    }
}

/* int8: 2 * 127 * 127 fits 16 bits alone; of a book's entries 2 * 121 * 127. */
ALWAYS_INLINE void dot_chunk(const uint8_t *key, const uint8_t *q, int64_t q_bytes, vi (*sum)[N_SUMS], int n,
                             const vi *book, const int parts, const int group)
{
    const vi ones = _mm256_set1_epi16(1);
    if (parts == 2) {
        dot_chunk_i4(key, q, q_bytes, sum, group);
        return;
    }
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        vi x = vi_load(key + i * (int64_t)sizeof(vi));
#pragma GCC unroll 8
        for (int p = 0; p < parts; p++) {
            vi k = parts == 1 ? _mm256_abs_epi8(x) : key_part(x, p, book, parts);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) {
                vi y = query_dword(q + g * q_bytes + 4 * i + p * CHUNK_BYTES);
                vi product = _mm256_maddubs_epi16(k, parts == 1 ? _mm256_sign_epi8(y, x) : y);
                sum[g][i & 1] = vi_add(sum[g][i & 1], _mm256_madd_epi16(product, ones));
            }
        }
    }
}
#endif

ALWAYS_INLINE void dot_as(const uint8_t *key, int64_t n_bytes, const uint8_t *q, int64_t q_bytes,
                          const int32_t *bias, float *dots, int64_t stride, const int parts, const int group)
{
    vi sum[BATCH][N_SUMS], book[MAX_GROUP];
    load_book(parts, book);
#pragma GCC unroll 4
    for (int g = 0; g < group; g++)
#pragma GCC unroll 4
        for (int i = 0; i < N_SUMS; i++) sum[g][i] = vi_set1(i < VECTORS ? bias[g] : 0);
    for (int64_t at = 0; at < n_bytes; at += CHUNK_BYTES) {
        int n = parts > 2 ? (int)HDL_MIN((n_bytes - at) / 4, (int64_t)8) : 8; /* the rest is zeros */
        dot_chunk(key, q, q_bytes, sum, n, book, parts, group);
        key += 8 * VECTORS * sizeof(vi);
        q += parts * CHUNK_BYTES;
    }
#pragma GCC unroll 4
    for (int g = 0; g < group; g++) {
        if (VECTORS == 1) sum[g][0] = vi_add(sum[g][0], sum[g][1]);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) vf_store(dots + g * stride + i * VW, vi_float(sum[g][i]));
    }
}

/* out[i] = from[i * stride + which], i < n. */
static void take_every(const float *from, int64_t which, int64_t stride, int64_t n, float *out)
{
    int64_t i = 0;
#if defined(HDL_ISA_avx512)
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    at = vi_add(_mm512_mullo_epi32(at, vi_set1((int32_t)stride)), vi_set1((int32_t)which));
    __mmask16 is_here[8];
    for (int j = 0; j < 8; j++) is_here[j] = _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(at, 4), vi_set1(j));
    for (; i + VW <= n && stride <= 8; i += VW) {
        vf x = vf_set1(0);
        for (int64_t j = 0; j < stride; j++)
            x = _mm512_mask_permutexvar_ps(x, is_here[j], at, vf_load(from + i * stride + j * VW));
        vf_store(out + i, x);
    }
#endif
    for (; i < n; i++) out[i] = from[i * stride + which];
}

#else

/* out[i] = from[i * stride + which], i < n. */
static void take_every(const float *from, int64_t which, int64_t stride, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = from[i * stride + which];
}

/* Plain: keys and queries as int16, products in the form that compilers turn into vectors. */
static void gather_keys(const tile_rows *rows, int64_t offset, int64_t n_bytes, int32_t parts,
                        uint8_t *buffer)
{
    int16_t *to = (int16_t *)(void *)buffer;
    int32_t group = HDL_MAX(parts / 2, 1);
    for (int t = 0; t < VW; t++) {
        const uint8_t *key = (rows->stride ? rows->first + t * rows->stride : rows->row[t]) + offset;
        for (int32_t p = 0; p < parts; p++, to += n_bytes)
            for (int64_t i = 0; i < n_bytes; i++) {
                int code = p < group ? key[i] & 15 : key[i] >> 4;
                to[i] = (int16_t)(parts == 1 ? (int8_t)key[i]
                                  : parts == 2 ? code - 8
                                               : hdl_book(group)[p % group][code]);
            }
    }
}

static inline int64_t query_bytes(hdl_plane_kind kind, int64_t dim)
{
    (void)kind;
    return 2 * dim;
}

static void pack_query(const int8_t *q8, hdl_plane_kind kind, int64_t dim, uint8_t *to)
{
    (void)kind;
    for (int64_t i = 0; i < dim; i++) ((int16_t *)(void *)to)[i] = q8[i];
}

ALWAYS_INLINE void dot_as(const uint8_t *key, int64_t n_bytes, const uint8_t *q, int64_t q_bytes,
                          const int32_t *bias, float *dots, int64_t stride, const int parts, const int group)
{
    int64_t dim = parts * n_bytes;
    (void)bias;
    for (int g = 0; g < group; g++)
        for (int t = 0; t < VW; t++) {
            const int16_t *x = (const int16_t *)(const void *)key + t * dim;
            const int16_t *y = (const int16_t *)(const void *)(q + g * q_bytes);
            int32_t sum = 0;
            for (int64_t i = 0; i < dim; i++) sum += x[i] * y[i];
            dots[g * stride + t] = (float)sum;
        }
}
#endif

ALWAYS_INLINE void dot_parts(const uint8_t *key, int64_t n_bytes, const uint8_t *q, int64_t q_bytes,
                             const int32_t *bias, float *dots, int64_t stride, const int parts, int group)
{
    switch (group) {
        case 1: dot_as(key, n_bytes, q, q_bytes, bias, dots, stride, parts, 1); break;
        case 2: dot_as(key, n_bytes, q, q_bytes, bias, dots, stride, parts, 2); break;
        case 3: dot_as(key, n_bytes, q, q_bytes, bias, dots, stride, parts, 3); break;
        default: dot_as(key, n_bytes, q, q_bytes, bias, dots, stride, parts, 4); break;
    }
}

/* dots[g * stride + 0..TILE) of up to BATCH queries with the gathered keys; bias is -offset * sum of q. */
static void dot_batch(const uint8_t *key, int64_t n_bytes, const uint8_t *q, int64_t q_bytes,
                      const int32_t *bias, float *dots, int64_t stride, int32_t parts, int group)
{
    switch (parts) {
        case 1: dot_parts(key, n_bytes, q, q_bytes, bias, dots, stride, 1, group); break;
        case 2: dot_parts(key, n_bytes, q, q_bytes, bias, dots, stride, 2, group); break;
        case 4: dot_parts(key, n_bytes, q, q_bytes, bias, dots, stride, 4, group); break;
        default: dot_parts(key, n_bytes, q, q_bytes, bias, dots, stride, 8, group); break;
    }
}

/* The same for f16 at `offset` of each row, lanes being elements: dim is a multiple of 16. */
ALWAYS_INLINE void dot_f16_as(const uint8_t *const *row, int64_t offset, int64_t dim, const uint8_t *q,
                              int64_t q_bytes, float *dots, int64_t stride, const int group)
{
    vf part[BATCH][VW / 4];
    for (int i = 0; i < VW / 4; i++, row += FOLD_STRIDE) {
        vf sum[BATCH][4];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++)
#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) sum[g][t] = vf_set1(0);
        for (int64_t d = 0; d < dim; d += VW) {
            vf x[4];
#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) x[t] = vf_load_f16(row[FOLD_TOKEN[t]] + offset + 2 * d);
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) {
                vf z = vf_load((const float *)(const void *)(q + g * q_bytes) + d);
#pragma GCC unroll 4
                for (int t = 0; t < 4; t++) sum[g][t] = vf_fma(x[t], z, sum[g][t]);
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) part[g][i] = vf_fold4(sum[g][0], sum[g][1], sum[g][2], sum[g][3]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < group; g++) vf_store(dots + g * stride, vf_fold_last(part[g]));
}

static void dot_f16(const uint8_t *const *row, int64_t offset, int64_t dim, const uint8_t *q, int64_t q_bytes,
                    float *dots, int64_t stride, int group)
{
    switch (group) {
        case 1: dot_f16_as(row, offset, dim, q, q_bytes, dots, stride, 1); break;
        case 2: dot_f16_as(row, offset, dim, q, q_bytes, dots, stride, 2); break;
        case 3: dot_f16_as(row, offset, dim, q, q_bytes, dots, stride, 3); break;
        default: dot_f16_as(row, offset, dim, q, q_bytes, dots, stride, 4); break;
    }
}

#endif
