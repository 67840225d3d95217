/* test_summarise.c - the bytes of every plane: one set for all instruction sets and all ways to append. */
#include "backend/plane_cases.h"
#include "sanitized.h"

typedef struct plane_case {
    const char *name;
    hdl_plane_kind kind;
    int32_t block_size, n_heads, dim, v_dim, page_shift;
    int64_t kv_len;
} plane_case;

static const plane_case cases[] = {
    {"mean", HDL_PLANE_MEAN, 16, 3, 64, 64, 8, 1003},
    {"mean, one token", HDL_PLANE_MEAN, 64, 3, 64, 64, 8, 1},
    {"mean, block is a page", HDL_PLANE_MEAN, 16, 1, 256, 256, 4, 100},
    {"mean of values", HDL_PLANE_MEAN_V, 32, 2, 64, 48, 6, 333},
    {"bounds", HDL_PLANE_BOUNDS, 16, 3, 64, 64, 8, 1003},
    {"bounds of tokens", HDL_PLANE_BOUNDS, 1, 2, 80, 80, 5, 77},
    {"peaks", HDL_PLANE_PEAK, 16, 3, 64, 64, 8, 1003},
    {"peaks, block is a page", HDL_PLANE_PEAK, 16, 1, 256, 256, 4, 100},
    {"middle keys", HDL_PLANE_MIDDLE, 16, 3, 64, 48, 8, 1003},
    {"middle keys, one token", HDL_PLANE_MIDDLE, 64, 1, 80, 80, 8, 1},
    {"8 bits", HDL_PLANE_KEY_I8, 1, 3, 64, 64, 8, 515},
    {"8 bits, small pages", HDL_PLANE_KEY_I8, 1, 1, 112, 16, 4, 61},
    {"4 bits", HDL_PLANE_KEY_I4, 1, 3, 64, 64, 8, 515},
    {"4 bits, wide", HDL_PLANE_KEY_I4, 1, 1, 256, 256, 6, 130},
    {"4 bits, ragged", HDL_PLANE_KEY_I4, 1, 2, 48, 48, 4, 33},
    {"pairs by code", HDL_PLANE_KEY_PQ2, 1, 3, 64, 64, 8, 515},
    {"pairs by code, wide", HDL_PLANE_KEY_PQ2, 1, 1, 256, 256, 6, 130},
    {"pairs by code, ragged", HDL_PLANE_KEY_PQ2, 1, 2, 48, 48, 4, 33},
    {"fours by code", HDL_PLANE_KEY_PQ4, 1, 3, 64, 64, 8, 515},
    {"fours by code, wide", HDL_PLANE_KEY_PQ4, 1, 1, 256, 256, 6, 130},
    {"fours by code, ragged", HDL_PLANE_KEY_PQ4, 1, 2, 80, 48, 4, 33},
    {"groups", HDL_PLANE_GROUP, 16, 3, 64, 64, 8, 1003},
    {"groups of pairs", HDL_PLANE_GROUP, 2, 1, 48, 48, 9, 1536},
    {"one group a segment", HDL_PLANE_GROUP, 256, 2, 80, 80, 8, 515},
    {"groups, not a multiple of 16", HDL_PLANE_GROUP, 64, 2, 20, 20, 8, 300},
    {"codes, not a multiple of 16", HDL_PLANE_KEY_PQ2, 1, 3, 20, 20, 6, 30},
    {"not a multiple of 16", HDL_PLANE_KEY_I4, 1, 3, 20, 20, 6, 30},
};

static const hdl_dtype dtypes[] = {HDL_F32, HDL_F16, HDL_BF16, HDL_I8, HDL_Q4_1};

/* Rows that a quantiser may trip over, in place of some random ones. */
static void add_odd_rows(plane_cache *cache, const plane_case *c, hdl_dtype dtype)
{
    int64_t n = (int64_t)c->n_heads * c->dim, v_n = (int64_t)c->n_heads * c->v_dim;
    float *k = must_alloc(n * 4), *v = must_alloc(v_n * 4);
    static const float odd[] = {0, -0.0f, 1e-31f, 3.5f, -7, 2.5f, 6e4f, -1e-8f};
    uint64_t random = 3;
    for (int64_t t = 5; t < c->kv_len; t += 11) {
        float size = odd[next_random(&random) % HDL_COUNT(odd)];
        for (int64_t i = 0; i < n; i++) k[i] = size * (float)(next_random(&random) % 15 - 7.0) / 7;
        for (int64_t i = 0; i < v_n; i++) v[i] = size;
        if (t == 16 && dtype != HDL_I8) k[1] = INFINITY;
        if (t == 27 && dtype != HDL_I8) k[0] = NAN;
        hdl_append_args args = {1, t, c->n_heads, c->dim, c->v_dim, k, v, n, v_n, cache->kv};
        ref_impl(hdl_cpu_ref_attend, HDL_OP_APPEND)->launch(&(hdl_launch){.n_threads = 1}, &args);
    }
    free(k);
    free(v);
}

/* A cache whose rows are appended and summarised `chunk` at a time. Rows are the same for every chunk. */
static void fill_cache(plane_cache *cache, const plane_case *c, hdl_dtype dtype, const hdl_impl *impl,
                       int64_t chunk)
{
    uint64_t random = 9;
    open_cache(cache, dtype, c->page_shift, c->n_heads, c->dim, c->v_dim, c->kv_len, c->kind, c->block_size);
    append_random(cache, 0, c->kv_len, &random);
    add_odd_rows(cache, c, dtype);
    for (int64_t first = 0; first < c->kv_len; first += chunk)
        summarise_with(impl, cache, first, HDL_MIN(chunk, c->kv_len - first), c->kind, c->block_size);
}

static void check_same(const plane_cache *a, const plane_cache *b, const char *name, const char *impl,
                       hdl_dtype dtype)
{
    for (int64_t p = 0; p < a->n_pages; p++)
        for (int64_t i = 0; i < a->page_bytes; i++)
            if (a->pages[p][i] != b->pages[p][i]) {
                print_error("%s, %s, kv type %d: page %d byte %d of the plane: %d, wanted %d\n", name, impl,
                            (int)dtype, (int)p, (int)(i - a->plane_begin), b->pages[p][i], a->pages[p][i]);
                fail();
            }
}

static void test_same_bytes(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    static const int64_t chunks[] = {1 << 20, 1, 7, 16};
    int64_t n = route_impls(HDL_OP_SUMMARISE, impls);
    assert_true(n >= 2);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++)
        for (int64_t d = 0; d < HDL_COUNT(dtypes); d++) {
            const plane_case *c = &cases[i];
            plane_cache want, got;
            if (dtypes[d] == HDL_Q4_1 && (c->dim % 32 || c->v_dim % 32)) continue; /* no whole blocks */
            fill_cache(&want, c, dtypes[d], impls[0], c->kv_len);
            for (int64_t k = 0; k < n; k++)
                for (int64_t j = 0; j < HDL_COUNT(chunks); j += 1 + IS_SANITIZED) {
                    hdl_summarise_args args = {.kind = c->kind, .head_dim = c->dim, .v_head_dim = c->v_dim};
                    bool is_refused = impls[k]->why_not && impls[k]->why_not(&args);
                    assert_int_equal(is_refused, k > 0 && c->dim % 16 != 0);
                    if (is_refused) continue;
                    fill_cache(&got, c, dtypes[d], impls[k], chunks[j]);
                    check_same(&want, &got, c->name, impls[k]->name, dtypes[d]);
                    close_cache(&got);
                }
            close_cache(&want);
        }
}

/* Bounds hold and are no wider than a half's step; a mean lies within them. */
static void test_bounds_hold(void **state)
{
    (void)state;
    enum { DIM = 64, BLOCK_SIZE = 8, LEN = 203 };
    const plane_case c = {"", HDL_PLANE_BOUNDS, BLOCK_SIZE, 1, DIM, DIM, 8, LEN};
    const hdl_impl *ref = ref_impl(hdl_cpu_ref_route, HDL_OP_SUMMARISE);
    plane_cache cache;
    uint64_t random = 9;
    open_cache(&cache, HDL_F32, c.page_shift, 1, DIM, DIM, LEN, c.kind, BLOCK_SIZE);
    append_random(&cache, 0, LEN, &random);
    summarise_with(ref, &cache, 0, LEN, c.kind, BLOCK_SIZE);
    for (int64_t t = 0; t < LEN; t++) {
        const float *key = (const float *)(const void *)kv_token_at(&cache.kv, t);
        const uint16_t *bound = (const uint16_t *)(const void *)(cache.pages[0] + cache.plane_begin);
        bound += t / BLOCK_SIZE * 2 * DIM;
        for (int d = 0; d < DIM; d++) {
            assert_true(hdl_f16_to_f32(bound[d]) <= key[d]);
            assert_true(hdl_f16_to_f32(bound[DIM + d]) >= key[d]);
        }
    }
    close_cache(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_bounds_hold)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
