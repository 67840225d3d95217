/* pages.c - the store and the tables of kv.h.
 *
 * Free pages form a stack per group, lowest id on top, so that a fixed order of calls gives fixed
 * addresses. Freed pages are given back to the system with madvise(DONTNEED). */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "kv/kv_int.h"

heddle_status hdl_kv_spec_add_plane(hdl_kv_group_spec *spec, hdl_plane_kind kind, int32_t block_size,
                                    int32_t n_heads, int32_t dim, int32_t layer_in_group)
{
    hdl_kv_plane_spec *plane = spec->planes;
    HDL_ASSERT(layer_in_group < HDL_KV_MAX_LAYERS);
    for (int32_t i = 0; i < spec->n_planes; i++, plane++)
        if (plane->kind == kind && plane->block_size == block_size) break;
    if (plane == spec->planes + spec->n_planes) {
        if (spec->n_planes == HDL_KV_MAX_PLANES)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "a KV page keeps at most %d kinds of summaries; %s of %d is one more",
                            HDL_KV_MAX_PLANES, hdl_plane_name(kind), block_size);
        *plane = (hdl_kv_plane_spec){.kind = kind, .block_size = block_size, .n_heads = n_heads, .dim = dim};
        spec->n_planes++;
    }
    plane->layers[layer_in_group / 64] |= (uint64_t)1 << layer_in_group % 64;
    return HEDDLE_OK;
}

/* How many layers before `layer` keep the plane: the layer's place in it. */
static int32_t plane_rank(const hdl_kv_plane_spec *plane, int32_t layer)
{
    int32_t n = 0;
    for (int32_t i = 0; i < layer; i++) n += plane->layers[i / 64] >> i % 64 & 1;
    return n;
}

/* a * b, which must not be more than a page may have; its sums with others then fit 64 bits. */
static bool product(int64_t a, int64_t b, int64_t *bytes)
{
    return !__builtin_mul_overflow(a, b, bytes) && *bytes >= 0 && *bytes <= (int64_t)1 << 46;
}

/* Places the planes behind the layers; returns the page's bytes. */
static heddle_status layout_planes(hdl_kv_layout *out, const hdl_kv_group_spec *spec)
{
    for (int32_t i = 0; i < spec->n_planes; i++) {
        const hdl_kv_plane_spec *plane = &spec->planes[i];
        if (plane->block_size < 1 || out->page_tokens % plane->block_size)
            return HDL_FAIL(HEDDLE_E_INVALID, "summary %s of %d tokens: must divide a KV page of %lld tokens",
                            hdl_plane_name(plane->kind), plane->block_size, (long long)out->page_tokens);
        int64_t members = hdl_plane_member_bytes(plane->kind, plane->block_size);
        if (members && out->page_tokens % HDL_SEGMENT_TOKENS)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "summary %s orders %d tokens: must divide a KV page of %lld tokens",
                            hdl_plane_name(plane->kind), HDL_SEGMENT_TOKENS, (long long)out->page_tokens);
        int64_t entries = out->page_tokens / plane->block_size, rows, scales, bytes;
        int32_t n_layers = plane_rank(plane, HDL_KV_MAX_LAYERS);
        if (!product(entries, hdl_plane_entry_bytes(plane->kind, plane->n_heads, plane->dim), &rows) ||
            !product(entries, hdl_plane_scale_bytes(plane->kind, plane->n_heads) + members, &scales) ||
            !product(HDL_ALIGN_UP(HDL_ALIGN_UP(rows, 64) + scales, 64), n_layers, &bytes))
            return HDL_FAIL(HEDDLE_E_CAPACITY, "summary %s of %d layers is too large for a KV page",
                            hdl_plane_name(plane->kind), n_layers);
        out->plane_offset[i] = out->page_bytes;
        out->plane_scale_offset[i] = HDL_ALIGN_UP(rows, 64);
        out->plane_bytes[i] = HDL_ALIGN_UP(out->plane_scale_offset[i] + scales, 64);
        out->page_bytes += bytes;
    }
    return HEDDLE_OK;
}

heddle_status hdl_kv_layout_of(hdl_kv_layout *out, const hdl_kv_group_spec *spec)
{
    *out = (hdl_kv_layout){0};
    if (spec->page_shift < 4 || spec->page_shift > 40)
        return HDL_FAIL(HEDDLE_E_INVALID, "KV page_shift %d: must be in 4..40", spec->page_shift);
    if (spec->dtype != HDL_F32 && spec->dtype != HDL_F16 && spec->dtype != HDL_BF16 &&
        spec->dtype != HDL_I8 && spec->dtype != HDL_Q4_1)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "KV type %s: must be f32, f16, bf16, i8 or q4_1",
                        hdl_dtype_of(spec->dtype)->name);
    int32_t block = hdl_dtype_of(spec->dtype)->block_elems;
    if (spec->head_dim % block || spec->v_head_dim % block)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "KV type %s: heads of %d and %d elements are not whole blocks of %d; use i8",
                        hdl_dtype_of(spec->dtype)->name, spec->head_dim, spec->v_head_dim, block);
    int64_t k = hdl_row_bytes(spec->dtype, spec->head_dim), v = hdl_row_bytes(spec->dtype, spec->v_head_dim);
    int64_t heads = spec->n_kv_heads, scales = spec->dtype == HDL_I8 ? 2 * heads * 4 : 0;
    out->page_tokens = (int64_t)1 << spec->page_shift;
    if (!product(heads, k + v, &out->token_bytes) ||
        !product(out->page_tokens, out->token_bytes + scales, &out->layer_bytes))
        return HDL_FAIL(HEDDLE_E_CAPACITY,
                        "a KV page of 2^%d tokens, %d heads of %d + %d elements, is too large",
                        spec->page_shift, spec->n_kv_heads, spec->head_dim, spec->v_head_dim);
    out->token_bytes += scales;
    if (spec->is_head_major) {
        out->token_stride = k + v;
        out->head_stride = out->v_head_stride = out->page_tokens * (k + v);
        out->v_offset = k;
    } else {
        out->token_stride = heads * (k + v);
        out->head_stride = k;
        out->v_head_stride = v;
        out->v_offset = heads * k;
    }
    out->k_scale_offset = out->page_tokens * heads * (k + v);
    out->v_scale_offset = out->k_scale_offset + out->page_tokens * heads * 4;
    out->layer_bytes = HDL_ALIGN_UP(out->layer_bytes, 64);
    if (!product(out->layer_bytes, spec->n_layers, &out->page_bytes))
        return HDL_FAIL(HEDDLE_E_CAPACITY, "a KV page of 2^%d tokens of %d layers is too large",
                        spec->page_shift, spec->n_layers);
    HDL_TRY(layout_planes(out, spec));
    out->page_bytes = HDL_ALIGN_UP(out->page_bytes, 4096);
    return HEDDLE_OK;
}

int64_t hdl_kv_pages_for(const hdl_kv_group_spec *spec, int64_t n_tokens, int64_t chunk_rows)
{
    int64_t page_tokens = (int64_t)1 << spec->page_shift;
    int64_t whole = (n_tokens + page_tokens - 1) / page_tokens;
    if (!spec->window) return whole;
    return HDL_MIN(whole,
                   ((int64_t)spec->window + spec->rewind + chunk_rows + page_tokens - 1) / page_tokens + 2);
}

static heddle_status pool_init(page_pool *pool, const hdl_kv_group_spec *spec, int64_t n_pages)
{
    pool->spec = *spec;
    pool->n_pages = pool->n_free = n_pages;
    HDL_TRY(hdl_kv_layout_of(&pool->layout, spec));
    if (n_pages > INT32_MAX || __builtin_mul_overflow(n_pages, pool->layout.page_bytes, &pool->mapped_bytes))
        return HDL_FAIL(HEDDLE_E_CAPACITY, "%lld KV pages of %lld bytes are too many", (long long)n_pages,
                        (long long)pool->layout.page_bytes);
    if (!(pool->free_ids = hdl_calloc(n_pages, 4)) || !(pool->n_refs = hdl_calloc(n_pages, 4)))
        return HEDDLE_E_NOMEM;
    for (int64_t i = 0; i < n_pages; i++) pool->free_ids[i] = (int32_t)(n_pages - 1 - i);
    if (!pool->mapped_bytes) return HEDDLE_OK;
    pool->base = hdl_pages_alloc(pool->mapped_bytes);
    if (!pool->base) return HEDDLE_E_NOMEM;
    /* A decode step walks the whole cache: with 4 KiB pages its address look-ups cost a quarter of it. */
    madvise(pool->base, (size_t)pool->mapped_bytes, MADV_HUGEPAGE); /* a wish; refusal is fine */
    return HEDDLE_OK;
}

static void store_free(hdl_kv_store *store)
{
    for (int32_t g = 0; g < store->n_groups; g++) {
        page_pool *pool = &store->groups[g];
        hdl_pages_free(pool->base, pool->mapped_bytes);
        hdl_free(pool->free_ids);
        hdl_free(pool->n_refs);
        hdl_pages_free(pool->blank, pool->layout.page_bytes);
    }
    hdl_free(store);
}

heddle_status hdl_kv_store_new(hdl_kv_store **out, const hdl_kv_group_spec *specs, int32_t n_groups,
                               const int64_t *n_pages)
{
    *out = NULL;
    HDL_ASSERT(n_groups <= HDL_KV_MAX_GROUPS);
    hdl_kv_store *store = hdl_calloc(1, sizeof *store);
    if (!store) return HEDDLE_E_NOMEM;
    store->n_refs = 1;
    store->n_groups = n_groups;
    for (int32_t g = 0; g < n_groups; g++) {
        heddle_status status = pool_init(&store->groups[g], &specs[g], n_pages[g]);
        if (status) {
            store_free(store);
            return status;
        }
    }
    *out = store;
    return HEDDLE_OK;
}

hdl_kv_store *hdl_kv_store_ref(hdl_kv_store *store)
{
    store->n_refs++;
    return store;
}

void hdl_kv_store_unref(hdl_kv_store *store)
{
    if (store && --store->n_refs == 0) store_free(store);
}

int64_t hdl_kv_store_live_bytes(const hdl_kv_store *store)
{
    return store->live_bytes;
}

int64_t hdl_kv_store_peak_bytes(const hdl_kv_store *store)
{
    return store->peak_bytes;
}

const hdl_kv_group_spec *hdl_kv_store_spec(const hdl_kv_store *store, int32_t group)
{
    return &store->groups[group].spec;
}

const hdl_kv_layout *hdl_kv_store_layout(const hdl_kv_store *store, int32_t group)
{
    return &store->groups[group].layout;
}

int32_t hdl_kv_store_n_groups(const hdl_kv_store *store)
{
    return store->n_groups;
}

/* The caller has checked n_free. */
static void page_take(hdl_kv_store *store, int32_t group, page_table *table, int64_t slot)
{
    page_pool *pool = &store->groups[group];
    int32_t id = pool->free_ids[--pool->n_free];
    pool->n_refs[id] = 1;
    table->ids[slot] = id;
    table->pages[slot] = pool->base + (int64_t)id * pool->layout.page_bytes;
    store->live_bytes += pool->layout.page_bytes;
    store->peak_bytes = HDL_MAX(store->peak_bytes, store->live_bytes);
}

static void page_drop(hdl_kv_store *store, int32_t group, page_table *table, int64_t slot)
{
    page_pool *pool = &store->groups[group];
    int32_t id = table->ids[slot];
    if (!table->pages[slot]) return;
    table->pages[slot] = NULL;
    if (id == HDL_KV_FOREIGN) return;
    if (--pool->n_refs[id] > 0) return;
    madvise(pool->base + (int64_t)id * pool->layout.page_bytes, (size_t)pool->layout.page_bytes,
            MADV_DONTNEED);
    pool->free_ids[pool->n_free++] = id;
    store->live_bytes -= pool->layout.page_bytes;
}

void hdl_kv_seq_renew(hdl_kv_seq *seq)
{
    static _Atomic uint64_t last;
    seq->content = atomic_fetch_add(&last, 1) + 1;
}

uint64_t hdl_kv_seq_content(const hdl_kv_seq *seq)
{
    return seq->content;
}

heddle_status hdl_kv_seq_new(hdl_kv_seq **out, hdl_kv_store *store, int64_t max_tokens)
{
    *out = NULL;
    hdl_kv_seq *seq = hdl_calloc(1, sizeof *seq);
    if (!seq) return HEDDLE_E_NOMEM;
    seq->store = hdl_kv_store_ref(store);
    seq->max_tokens = max_tokens;
    hdl_kv_seq_renew(seq);
    for (int32_t g = 0; g < store->n_groups; g++) {
        page_table *table = &seq->tables[g];
        int64_t page_tokens = store->groups[g].layout.page_tokens;
        table->capacity = (max_tokens + page_tokens - 1) / page_tokens;
        table->pages = hdl_calloc(table->capacity, sizeof *table->pages);
        table->ids = hdl_calloc(table->capacity, sizeof *table->ids);
        bool is_made = table->pages && table->ids;
        if (is_made && !store->groups[g].spec.window)
            is_made = (table->next_pages = hdl_calloc(table->capacity, sizeof *table->pages)) &&
                      (table->next_ids = hdl_calloc(table->capacity, sizeof *table->ids));
        if (!is_made) {
            hdl_kv_seq_free(seq);
            return HEDDLE_E_NOMEM;
        }
    }
    heddle_status status = hdl_kv_state_init(seq);
    if (status) {
        hdl_kv_seq_free(seq);
        return status;
    }
    *out = seq;
    return HEDDLE_OK;
}

void hdl_kv_seq_free(hdl_kv_seq *seq)
{
    if (!seq) return;
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        page_table *table = &seq->tables[g];
        for (int64_t i = table->first_live; i < table->n; i++) page_drop(seq->store, g, table, i);
        hdl_free(table->pages);
        hdl_free(table->ids);
        hdl_free(table->next_pages);
        hdl_free(table->next_ids);
    }
    hdl_kv_mounts_deinit(seq);
    hdl_kv_state_deinit(seq);
    hdl_kv_store_unref(seq->store);
    hdl_free(seq);
}

int64_t hdl_kv_seq_len(const hdl_kv_seq *seq)
{
    return seq->len;
}

const hdl_kv_store *hdl_kv_seq_store(const hdl_kv_seq *seq)
{
    return seq->store;
}

int64_t hdl_kv_seq_rows(const hdl_kv_seq *seq, int32_t group, int64_t n_new)
{
    return seq->len + n_new - seq->tables[group].evicted.n_rows;
}

/* Pages that the group's rows of `len` tokens reach into. */
static int64_t pages_of(const hdl_kv_seq *seq, int32_t group, int64_t len)
{
    const page_pool *pool = &seq->store->groups[group];
    int64_t n_rows = len - seq->tables[group].evicted.n_rows;
    return (n_rows + pool->layout.page_tokens - 1) >> pool->spec.page_shift;
}

/* True when the page that the next row goes into holds rows already and others read it too. */
static bool last_page_is_shared(const hdl_kv_seq *seq, int32_t group)
{
    const page_pool *pool = &seq->store->groups[group];
    int64_t slot = hdl_kv_seq_rows(seq, group, 0) >> pool->spec.page_shift;
    const page_table *table = &seq->tables[group];
    if (slot >= table->n || !table->pages[slot]) return false;
    HDL_ASSERT(table->ids[slot] != HDL_KV_FOREIGN); /* what follows a mount begins a page */
    return pool->n_refs[table->ids[slot]] > 1;
}

heddle_status hdl_kv_seq_reserve(hdl_kv_seq *seq, int64_t n_new)
{
    hdl_kv_store *store = seq->store;
    int64_t len = seq->len + n_new;
    if (len > seq->max_tokens)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "the context is full: %lld tokens and %lld more, of %lld",
                        (long long)seq->len, (long long)n_new, (long long)seq->max_tokens);
    for (int32_t g = 0; g < store->n_groups; g++) {
        page_pool *pool = &store->groups[g];
        int64_t need = pages_of(seq, g, len) - seq->tables[g].n;
        need = HDL_MAX(need, 0) + last_page_is_shared(seq, g);
        if (need > pool->n_free)
            return HDL_FAIL(HEDDLE_E_CAPACITY,
                            "the KV store is full: %lld pages of group %d wanted, %lld free", (long long)need,
                            g, (long long)pool->n_free);
    }
    for (int32_t g = 0; n_new > 0 && g < store->n_groups; g++) {
        page_pool *pool = &store->groups[g];
        page_table *table = &seq->tables[g];
        if (last_page_is_shared(seq, g)) {
            int64_t slot = hdl_kv_seq_rows(seq, g, 0) >> pool->spec.page_shift;
            uint8_t *from = table->pages[slot];
            int32_t from_id = table->ids[slot];
            page_take(store, g, table, slot);
            memcpy(table->pages[slot], from, (size_t)pool->layout.page_bytes);
            pool->n_refs[from_id]--;
        }
        for (int64_t n_pages = pages_of(seq, g, len); table->n < n_pages; table->n++)
            page_take(store, g, table, table->n);
    }
    return HEDDLE_OK;
}

heddle_status hdl_kv_seq_reserve_retained(hdl_kv_seq *seq, int32_t group, int64_t n_rows)
{
    page_pool *pool = &seq->store->groups[group];
    page_table *table = &seq->tables[group], next = {.pages = table->next_pages, .ids = table->next_ids};
    int64_t n_pages = (n_rows + pool->layout.page_tokens - 1) >> pool->spec.page_shift;
    HDL_ASSERT(table->next_pages && !table->n_next && n_pages <= table->capacity);
    if (n_pages > pool->n_free)
        return HDL_FAIL(HEDDLE_E_CAPACITY,
                        "the KV store is full: %lld pages of group %d wanted for retained rows, %lld free",
                        (long long)n_pages, group, (long long)pool->n_free);
    for (int64_t i = 0; i < n_pages; i++) page_take(seq->store, group, &next, i);
    table->n_next = n_pages;
    table->n_next_rows = n_rows;
    return HEDDLE_OK;
}

/* The pages of the retained rows become the group's pages. */
static void adopt_retained(hdl_kv_seq *seq, int32_t group)
{
    page_table *table = &seq->tables[group];
    uint8_t **pages = table->pages;
    int32_t *ids = table->ids;
    for (int64_t i = 0; i < table->n; i++) page_drop(seq->store, group, table, i);
    table->pages = table->next_pages;
    table->ids = table->next_ids;
    table->next_pages = pages;
    table->next_ids = ids;
    table->n = table->n_next;
    table->evicted = (hdl_kv_evicted){seq->len - table->n_next_rows, seq->len};
    table->n_next = 0;
}

/* Drops the pages that the first n tokens do not reach. */
static void drop_behind(hdl_kv_seq *seq, int64_t n)
{
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        page_table *table = &seq->tables[g];
        int64_t n_pages = pages_of(seq, g, n);
        while (table->n > n_pages) page_drop(seq->store, g, table, --table->n);
        table->first_live = HDL_MIN(table->first_live, table->n);
    }
}

void hdl_kv_seq_release(hdl_kv_seq *seq)
{
    drop_behind(seq, seq->len);
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        page_table *table = &seq->tables[g], next = {.pages = table->next_pages, .ids = table->next_ids};
        while (table->n_next) page_drop(seq->store, g, &next, --table->n_next);
    }
    hdl_kv_seq_renew(seq);
}

void hdl_kv_seq_commit(hdl_kv_seq *seq, int64_t n_new)
{
    seq->len += n_new;
    if (n_new) seq->state ^= 1;
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        const page_pool *pool = &seq->store->groups[g];
        page_table *table = &seq->tables[g];
        if (table->n_next) {
            adopt_retained(seq, g);
            hdl_kv_seq_renew(seq);
        }
        if (!pool->spec.window) continue;
        /* what the next row reads, or a row after going back */
        int64_t first_token = HDL_MAX(seq->len - pool->spec.window - pool->spec.rewind + 1, 0);
        int64_t first_page = first_token >> pool->spec.page_shift;
        for (; table->first_live < first_page; table->first_live++)
            page_drop(seq->store, g, table, table->first_live);
    }
}

int64_t hdl_kv_seq_truncate(hdl_kv_seq *seq, int64_t n)
{
    if (n >= seq->len) return seq->len;
    n = hdl_kv_mounts_whole(seq, n);
    int64_t least = hdl_kv_mounts_end(seq, n);
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        const hdl_kv_group_spec *spec = &seq->store->groups[g].spec;
        int64_t first_token = HDL_MAX(n - spec->window + 1, 0);
        if (hdl_kv_seq_follows_mount(seq, n)) break; /* a document begins: no window reaches back */
        if (spec->window && first_token < seq->tables[g].first_live << spec->page_shift) n = least;
        if (n < seq->tables[g].evicted.at_len) n = 0;
    }
    if (seq->states && n != least) n = least;
    for (int32_t g = 0; !n && g < seq->store->n_groups; g++) seq->tables[g].evicted = (hdl_kv_evicted){0};
    drop_behind(seq, n);
    hdl_kv_mounts_cut(seq, n);
    hdl_kv_seq_renew(seq);
    seq->len = n;
    return n;
}

heddle_status hdl_kv_seq_fork(hdl_kv_seq **out, const hdl_kv_seq *seq)
{
    HDL_TRY(hdl_kv_seq_new(out, seq->store, seq->max_tokens));
    hdl_kv_seq *copy = *out;
    heddle_status status = hdl_kv_mounts_copy(copy, seq);
    if (status) {
        hdl_kv_seq_free(copy);
        *out = NULL;
        return status;
    }
    copy->len = seq->len;
    hdl_kv_state_copy(copy, seq);
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        const page_table *from = &seq->tables[g];
        page_table *to = &copy->tables[g];
        to->n = from->n;
        to->first_live = from->first_live;
        to->evicted = from->evicted;
        for (int64_t i = from->first_live; i < from->n; i++) {
            to->pages[i] = from->pages[i];
            to->ids[i] = from->ids[i];
            if (to->pages[i] && to->ids[i] != HDL_KV_FOREIGN) seq->store->groups[g].n_refs[to->ids[i]]++;
        }
    }
    return HEDDLE_OK;
}

static hdl_kv_view view_of(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group,
                           uint8_t *const *pages)
{
    const page_pool *pool = &seq->store->groups[group];
    const hdl_kv_layout *at = &pool->layout;
    int64_t base = layer_in_group * at->layer_bytes;
    return (hdl_kv_view){.pages = pages,
                         .page_shift = pool->spec.page_shift,
                         .dtype = pool->spec.dtype,
                         .k_offset = base + at->k_offset,
                         .v_offset = base + at->v_offset,
                         .token_stride = at->token_stride,
                         .head_stride = at->head_stride,
                         .v_head_stride = at->v_head_stride,
                         .k_scale_offset = base + at->k_scale_offset,
                         .v_scale_offset = base + at->v_scale_offset};
}

hdl_kv_view hdl_kv_seq_view(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group)
{
    return view_of(seq, group, layer_in_group, seq->tables[group].pages);
}

hdl_kv_view hdl_kv_seq_retained_view(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group)
{
    return view_of(seq, group, layer_in_group, seq->tables[group].next_pages);
}

bool hdl_kv_seq_plane(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group, hdl_plane_kind kind,
                      int32_t block_size, hdl_kv_view *view, int at)
{
    const page_pool *pool = &seq->store->groups[group];
    for (int32_t i = 0; i < pool->spec.n_planes; i++) {
        const hdl_kv_plane_spec *plane = &pool->spec.planes[i];
        bool is_kept = plane->layers[layer_in_group / 64] >> layer_in_group % 64 & 1;
        if (plane->kind != kind || plane->block_size != block_size || !is_kept) continue;
        int64_t offset = pool->layout.plane_offset[i] +
                         plane_rank(plane, layer_in_group) * pool->layout.plane_bytes[i];
        view->plane[at] = (hdl_kv_plane){.offset = offset,
                                         .scale_offset = offset + pool->layout.plane_scale_offset[i],
                                         .n_heads = plane->n_heads,
                                         .dim = plane->dim};
        return true;
    }
    return false;
}

int64_t hdl_kv_seq_bytes(const hdl_kv_seq *seq)
{
    int64_t bytes = hdl_kv_state_bytes(seq->store->n_state_layers, seq->store->n_state_floats);
    for (int32_t g = 0; g < seq->store->n_groups; g++)
        bytes += (seq->tables[g].n - seq->tables[g].first_live) * seq->store->groups[g].layout.page_bytes;
    return bytes;
}

hdl_kv_span hdl_kv_seq_span(const hdl_kv_seq *seq, int32_t group)
{
    return (hdl_kv_span){seq->tables[group].first_live, pages_of(seq, group, seq->len)};
}

hdl_kv_evicted hdl_kv_seq_evicted(const hdl_kv_seq *seq, int32_t group)
{
    return seq->tables[group].evicted;
}

static heddle_status check_restored(const hdl_kv_seq *seq, int32_t group, int64_t len, hdl_kv_span span,
                                    hdl_kv_evicted evicted)
{
    const page_pool *pool = &seq->store->groups[group];
    int32_t window = pool->spec.window, shift = pool->spec.page_shift;
    int64_t first_read = window ? HDL_MAX(len - window + 1, 0) : 0;
    bool is_sound = evicted.at_len >= 0 && evicted.at_len <= len && evicted.n_rows >= 0 &&
                    evicted.n_rows <= evicted.at_len && !(window && evicted.n_rows);
    int64_t end = is_sound ? (len - evicted.n_rows + pool->layout.page_tokens - 1) >> shift : -1;
    if (span.end != end || span.first < 0 || span.first > HDL_MIN(first_read >> shift, end))
        return HDL_FAIL(HEDDLE_E_INVALID, "KV group %d: pages %lld..%lld do not hold %lld tokens", group,
                        (long long)span.first, (long long)span.end, (long long)len);
    if (end - span.first > pool->n_free)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "the KV store is full: %lld pages of group %d wanted, %lld free",
                        (long long)(end - span.first), group, (long long)pool->n_free);
    return HEDDLE_OK;
}

heddle_status hdl_kv_seq_restore(hdl_kv_seq *seq, int64_t len, const hdl_kv_span *spans,
                                 const hdl_kv_evicted *evicted, const hdl_kv_seq *mounted)
{
    HDL_ASSERT(!seq->len);
    if (len < 0 || len > seq->max_tokens)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "%lld tokens are to be restored: the context holds %lld",
                        (long long)len, (long long)seq->max_tokens);
    for (int32_t g = 0; g < seq->store->n_groups; g++)
        HDL_TRY(check_restored(seq, g, len, spans[g], evicted[g]));
    if (hdl_kv_mounts_end(mounted, len) != hdl_kv_mounts_end(mounted, INT64_MAX))
        return HDL_FAIL(HEDDLE_E_INVALID, "%lld tokens are to be restored: the mounts end at token %lld",
                        (long long)len, (long long)hdl_kv_mounts_end(mounted, INT64_MAX));
    HDL_TRY(hdl_kv_mounts_copy(seq, mounted));
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        page_table *table = &seq->tables[g];
        table->first_live = spans[g].first;
        table->evicted = evicted[g];
        for (table->n = spans[g].first; table->n < spans[g].end; table->n++) {
            if (hdl_kv_seq_is_own_page(seq, table->n)) {
                page_take(seq->store, g, table, table->n);
            } else { /* rolling groups have no rows there */
                table->pages[table->n] = mounted->tables[g].pages[table->n];
                table->ids[table->n] = HDL_KV_FOREIGN;
            }
        }
    }
    seq->len = len;
    return HEDDLE_OK;
}
