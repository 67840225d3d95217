/* plane_cases.h - a cache of one sequence with one plane beside it, for the tests of SUMMARISE and SCORE.
 *
 * Pages hold K and V rows token-major, then the plane. Everything starts as 0xff: a byte that no op wrote
 * reads as NaN (a scale, a half) or as -1. */
#ifndef HDL_TEST_PLANE_CASES_H
#define HDL_TEST_PLANE_CASES_H

#include "backend/cpu/attend_int.h"
#include "backend/route_impls.h"

typedef struct plane_cache {
    hdl_kv_view kv;
    uint8_t **pages;
    int64_t n_pages, page_bytes, plane_begin; /* plane_begin: where the planes lie in a page */
    int32_t n_heads, dim, v_dim;
} plane_cache;

static inline const hdl_impl *ref_impl(const hdl_impl *table, hdl_op op)
{
    while (table->op != op) table++;
    return table;
}

static inline void open_cache(plane_cache *cache, hdl_dtype dtype, int32_t page_shift, int32_t n_heads,
                              int32_t dim, int32_t v_dim, int64_t kv_len, hdl_plane_kind kind,
                              int32_t block_size)
{
    *cache = (plane_cache){.n_heads = n_heads, .dim = dim, .v_dim = v_dim};
    hdl_kv_view *kv = &cache->kv;
    attend_case shape = {.n_heads = n_heads,
                         .n_kv_heads = n_heads,
                         .head_dim = dim,
                         .v_head_dim = v_dim,
                         .dtype = dtype,
                         .page_shift = page_shift};
    int64_t at = HDL_ALIGN_UP(lay_out_page(kv, &shape), 64), slots = (int64_t)1 << page_shift;
    int64_t plane_dim = kind == HDL_PLANE_MEAN_V ? v_dim : dim;
    cache->plane_begin = at;
    kv->plane[0] = (hdl_kv_plane){.offset = at, .n_heads = n_heads, .dim = (int32_t)plane_dim};
    at += HDL_ALIGN_UP(slots / block_size * hdl_plane_entry_bytes(kind, n_heads, (int32_t)plane_dim), 16);
    kv->plane[0].scale_offset = at;
    at += slots / block_size *
          (hdl_plane_scale_bytes(kind, n_heads) + hdl_plane_member_bytes(kind, block_size));
    cache->page_bytes = at;
    cache->n_pages = (kv_len + slots - 1) / slots;
    cache->pages = must_alloc(cache->n_pages * (int64_t)sizeof *cache->pages);
    for (int64_t p = 0; p < cache->n_pages; p++) {
        cache->pages[p] = must_alloc(at);
        memset(cache->pages[p], 0xff, (size_t)at);
    }
    kv->pages = (uint8_t *const *)cache->pages;
}

static inline void close_cache(plane_cache *cache)
{
    for (int64_t p = 0; p < cache->n_pages; p++) free(cache->pages[p]);
    free(cache->pages);
}

/* Random rows [first, first + n) by the reference's APPEND. */
static inline void append_random(plane_cache *cache, int64_t first, int64_t n, uint64_t *random)
{
    int64_t k_n = (int64_t)cache->n_heads * cache->dim, v_n = (int64_t)cache->n_heads * cache->v_dim;
    float *k = must_alloc(n * k_n * 4), *v = must_alloc(n * v_n * 4);
    fill_random(k, n * k_n, random);
    fill_random(v, n * v_n, random);
    hdl_append_args args = {n, first, cache->n_heads, cache->dim, cache->v_dim, k, v, k_n, v_n, cache->kv};
    ref_impl(hdl_cpu_ref_attend, HDL_OP_APPEND)->launch(&(hdl_launch){.n_threads = 1}, &args);
    free(k);
    free(v);
}

static inline void summarise_with(const hdl_impl *impl, const plane_cache *cache, int64_t first, int64_t n,
                                  hdl_plane_kind kind, int32_t block_size)
{
    hdl_summarise_args args = {.n_rows = n,
                               .first_token = first,
                               .n_kv_heads = cache->n_heads,
                               .head_dim = cache->dim,
                               .v_head_dim = cache->v_dim,
                               .kind = kind,
                               .block_size = block_size,
                               .kv = cache->kv};
    int64_t scratch = impl->workspace ? impl->workspace(&args, 2) : 0;
    uint8_t *workspace = must_alloc(scratch + 64);
    memset(workspace, 0xff, (size_t)scratch + 64);
    impl->launch(&(hdl_launch){.n_threads = 2, .workspace = workspace}, &args);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[scratch + i], 0xff);
    free(workspace);
}

#endif
