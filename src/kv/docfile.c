/* docfile.c - writes and maps the files that docfile.h draws. */
#include "kv/docfile.h"

#include <stdatomic.h>
#include <string.h>

#include "base/hash.h"
#include "base/mapfile.h"
#include "base/mem.h"
#include "base/newfile.h"

enum { HEADER_BYTES = 4096, PAGE_ALIGNMENT = 4096, N_PARTS = 2, MAX_PAGE_SHIFT = 28 };
const char hdl_docfile_magic[8] = {'H', 'D', 'L', 'D', 'O', 'C', 'K', 'V'};

typedef struct doc_header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t model;
    int64_t n_tokens, n_pages, page_bytes;
    int64_t ids_at, sums_at, pages_at, file_bytes;
    int32_t n_kv_heads, head_dim, v_head_dim, dtype, is_head_major, page_shift;
    int32_t index_heads, index_dim; /* 0 = no index keys */
    uint64_t ids_sum, sums_sum;
    uint64_t header_sum; /* of everything before it */
} doc_header;

struct hdl_docfile {
    atomic_int n_refs;
    hdl_mapfile map;
    char *path;
    doc_header header;
    hdl_docfile_facts facts;
    hdl_kv_layout layout;
    _Atomic uint8_t *states; /* [n_pages][N_PARTS] 0 = not looked at, 1 = holds, 2 = does not */
};

static heddle_status spec_of(hdl_kv_group_spec *spec, const doc_header *h)
{
    *spec = (hdl_kv_group_spec){.n_layers = 1,
                                .n_kv_heads = h->n_kv_heads,
                                .head_dim = h->head_dim,
                                .v_head_dim = h->v_head_dim,
                                .dtype = (hdl_dtype)h->dtype,
                                .is_head_major = h->is_head_major != 0,
                                .page_shift = h->page_shift};
    if (!h->index_dim) return HEDDLE_OK;
    return hdl_kv_spec_add_plane(spec, HDL_PLANE_INDEX, 1, h->index_heads, h->index_dim, 0);
}

/* The bytes of a page that a part's sum covers. */
static hdl_kv_span part_of(const hdl_kv_layout *layout, const hdl_kv_group_spec *spec, hdl_docfile_part part)
{
    if (part == HDL_DOCFILE_ROWS) return (hdl_kv_span){0, layout->layer_bytes};
    if (!spec->n_planes) return (hdl_kv_span){0, 0};
    return (hdl_kv_span){layout->plane_offset[0], layout->plane_offset[0] + layout->plane_bytes[0]};
}

static uint64_t part_sum(const uint8_t *page, hdl_kv_span part)
{
    return hdl_hash(page + part.first, part.end - part.first);
}

/* ---- writing ---- */

static void fill_header(doc_header *h, const hdl_docfile_facts *facts, const hdl_kv_layout *layout)
{
    const hdl_kv_group_spec *spec = &facts->spec;
    memset(h, 0, sizeof *h);
    memcpy(h->magic, hdl_docfile_magic, sizeof h->magic);
    h->version = HDL_DOCFILE_VERSION;
    h->header_bytes = HEADER_BYTES;
    h->model = facts->model;
    h->n_tokens = facts->n_tokens;
    h->n_pages = (facts->n_tokens + layout->page_tokens - 1) / layout->page_tokens;
    h->page_bytes = layout->page_bytes;
    h->ids_at = HEADER_BYTES;
    h->sums_at = HDL_ALIGN_UP(h->ids_at + h->n_tokens * 4, 64);
    h->pages_at = HDL_ALIGN_UP(h->sums_at + h->n_pages * N_PARTS * 8, PAGE_ALIGNMENT);
    h->file_bytes = h->pages_at + h->n_pages * h->page_bytes;
    h->n_kv_heads = spec->n_kv_heads;
    h->head_dim = spec->head_dim;
    h->v_head_dim = spec->v_head_dim;
    h->dtype = (int32_t)spec->dtype;
    h->is_head_major = spec->is_head_major;
    h->page_shift = spec->page_shift;
    if (spec->n_planes) {
        h->index_heads = spec->planes[0].n_heads;
        h->index_dim = spec->planes[0].dim;
    }
}

static heddle_status pad_to(hdl_newfile *file, int64_t at)
{
    static const uint8_t zeroes[PAGE_ALIGNMENT];
    return hdl_newfile_write(file, zeroes, at - file->n_bytes);
}

static heddle_status write_parts(hdl_newfile *file, const doc_header *h, const int32_t *ids,
                                 const uint64_t *sums, const uint8_t *const *pages)
{
    HDL_TRY(hdl_newfile_write(file, h, sizeof *h));
    HDL_TRY(pad_to(file, h->ids_at));
    HDL_TRY(hdl_newfile_write(file, ids, h->n_tokens * 4));
    HDL_TRY(pad_to(file, h->sums_at));
    HDL_TRY(hdl_newfile_write(file, sums, h->n_pages * N_PARTS * 8));
    HDL_TRY(pad_to(file, h->pages_at));
    for (int64_t p = 0; p < h->n_pages; p++) HDL_TRY(hdl_newfile_write(file, pages[p], h->page_bytes));
    return HEDDLE_OK;
}

heddle_status hdl_docfile_write(const char *path, const hdl_docfile_facts *facts, const int32_t *ids,
                                const uint8_t *const *pages)
{
    doc_header h;
    hdl_kv_layout layout;
    hdl_newfile file;
    HDL_TRY(hdl_kv_layout_of(&layout, &facts->spec));
    fill_header(&h, facts, &layout);
    uint64_t *sums = hdl_calloc(h.n_pages * N_PARTS, sizeof *sums);
    if (!sums) return HEDDLE_E_NOMEM;
    for (int64_t p = 0; p < h.n_pages; p++)
        for (int part = 0; part < N_PARTS; part++)
            sums[p * N_PARTS + part] = part_sum(pages[p],
                                                part_of(&layout, &facts->spec, (hdl_docfile_part)part));
    h.ids_sum = hdl_hash(ids, h.n_tokens * 4);
    h.sums_sum = hdl_hash(sums, h.n_pages * N_PARTS * 8);
    h.header_sum = hdl_hash(&h, offsetof(doc_header, header_sum));
    heddle_status status = hdl_newfile_open(&file, path, hdl_docfile_magic);
    if (!status) {
        status = write_parts(&file, &h, ids, sums, pages);
        if (status)
            hdl_newfile_discard(&file);
        else
            status = hdl_newfile_finish(&file);
    }
    hdl_free(sums);
    return status;
}

/* ---- reading ---- */

static heddle_status refuse(const hdl_docfile *file, const char *what)
{
    return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %s", file->path, what);
}

/* Header numbers must be those that writing would have computed from the first few. */
static heddle_status check_header(hdl_docfile *file)
{
    doc_header *h = &file->header, want;
    if (file->map.n_bytes < HEADER_BYTES) return refuse(file, "is too short for a document's rows");
    memcpy(h, file->map.data, sizeof *h);
    if (memcmp(h->magic, hdl_docfile_magic, sizeof h->magic) != 0)
        return refuse(file, "does not hold a document's rows");
    if (h->version != HDL_DOCFILE_VERSION)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: version %u of the format: must be %d", file->path,
                        h->version, HDL_DOCFILE_VERSION);
    if (h->header_sum != hdl_hash(h, offsetof(doc_header, header_sum)))
        return refuse(file, "the header does not have its checksum");
    if (h->n_tokens < 1 || h->n_tokens > (int64_t)1 << 31 || h->n_kv_heads < 1 || h->n_kv_heads > 1024 ||
        h->head_dim < 1 || h->head_dim > 1 << 16 || h->v_head_dim < 1 || h->v_head_dim > 1 << 16 ||
        h->dtype < 0 || h->dtype >= HDL_N_DTYPES || h->index_dim < 0 || h->index_dim > 1 << 16 ||
        h->index_heads < 0 || h->index_heads > 1024 || !h->index_heads != !h->index_dim ||
        h->page_shift < 4 || h->page_shift > MAX_PAGE_SHIFT)
        return refuse(file, "the header states impossible sizes");
    HDL_TRY(spec_of(&file->facts.spec, h));
    HDL_TRY(hdl_kv_layout_of(&file->layout, &file->facts.spec));
    int64_t page_bytes = file->layout.page_bytes;
    if (page_bytes <= 0 || h->n_pages < 0 || h->n_pages > (INT64_MAX / 2) / page_bytes)
        return refuse(file, "the header states impossible sizes");
    file->facts.model = h->model;
    file->facts.n_tokens = h->n_tokens;
    fill_header(&want, &file->facts, &file->layout);
    want.ids_sum = h->ids_sum;
    want.sums_sum = h->sums_sum;
    want.header_sum = h->header_sum;
    if (memcmp(&want, h, sizeof want) != 0) return refuse(file, "the header contradicts itself");
    if (h->file_bytes != file->map.n_bytes)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: has %lld bytes, its header says %lld", file->path,
                        (long long)file->map.n_bytes, (long long)h->file_bytes);
    return HEDDLE_OK;
}

static heddle_status check_tables(hdl_docfile *file)
{
    const doc_header *h = &file->header;
    const uint8_t *data = file->map.data;
    if (hdl_hash(data + h->ids_at, h->n_tokens * 4) != h->ids_sum)
        return refuse(file, "the tokens do not have their checksum");
    if (hdl_hash(data + h->sums_at, h->n_pages * N_PARTS * 8) != h->sums_sum)
        return refuse(file, "the table of checksums does not have its own");
    file->states = hdl_calloc(h->n_pages * N_PARTS, 1);
    return file->states ? HEDDLE_OK : HEDDLE_E_NOMEM;
}

heddle_status hdl_docfile_open(hdl_docfile **out, const char *path)
{
    *out = NULL;
    hdl_docfile *file = hdl_calloc(1, sizeof *file);
    if (!file) return HEDDLE_E_NOMEM;
    atomic_store(&file->n_refs, 1);
    heddle_status status = HEDDLE_E_NOMEM;
    file->path = hdl_strdup(path);
    if (file->path) status = hdl_mapfile_open(&file->map, path);
    if (!status) status = check_header(file);
    if (!status) status = check_tables(file);
    if (status) {
        hdl_docfile_unref(file);
        return status;
    }
    *out = file;
    return HEDDLE_OK;
}

hdl_docfile *hdl_docfile_ref(hdl_docfile *file)
{
    atomic_fetch_add(&file->n_refs, 1);
    return file;
}

void hdl_docfile_unref(hdl_docfile *file)
{
    if (!file || atomic_fetch_sub(&file->n_refs, 1) > 1) return;
    hdl_mapfile_close(&file->map);
    hdl_free(file->path);
    hdl_free((void *)file->states);
    hdl_free(file);
}

const hdl_docfile_facts *hdl_docfile_facts_of(const hdl_docfile *file)
{
    return &file->facts;
}

const char *hdl_docfile_path(const hdl_docfile *file)
{
    return file->path;
}

uint64_t hdl_docfile_ids_sum(const hdl_docfile *file)
{
    return file->header.ids_sum | !file->header.ids_sum;
}

uint64_t hdl_docfile_sum(const hdl_docfile *file)
{
    return file->header.header_sum | !file->header.header_sum;
}

const int32_t *hdl_docfile_ids(const hdl_docfile *file)
{
    return (const int32_t *)(const void *)(file->map.data + file->header.ids_at);
}

int64_t hdl_docfile_n_pages(const hdl_docfile *file)
{
    return file->header.n_pages;
}

uint8_t *hdl_docfile_page(const hdl_docfile *file, int64_t page)
{
    return (uint8_t *)(uintptr_t)file->map.data + file->header.pages_at + page * file->header.page_bytes;
}

bool hdl_docfile_page_holds(hdl_docfile *file, int64_t page, hdl_docfile_part part)
{
    _Atomic uint8_t *state = &file->states[page * N_PARTS + part];
    uint8_t known = atomic_load_explicit(state, memory_order_relaxed);
    if (known) return known == 1;
    uint64_t want;
    memcpy(&want, file->map.data + file->header.sums_at + (page * N_PARTS + part) * 8, sizeof want);
    bool holds = part_sum(hdl_docfile_page(file, page), part_of(&file->layout, &file->facts.spec, part)) ==
                 want;
    atomic_store_explicit(state, holds ? 1 : 2, memory_order_relaxed);
    return holds;
}

/* Bytes [first, end) belong to no part: they are as they were written. */
static heddle_status check_padding(const hdl_docfile *file, int64_t first, int64_t end)
{
    for (int64_t at = first; at < end; at++)
        if (file->map.data[at])
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: byte %lld belongs to no part and is %d: must be 0",
                            file->path, (long long)at, file->map.data[at]);
    return HEDDLE_OK;
}

/* Between header, ids, sums and pages, and behind what the sums of a page cover. */
static heddle_status check_paddings(const hdl_docfile *file)
{
    const doc_header *h = &file->header;
    HDL_TRY(check_padding(file, sizeof *h, h->ids_at));
    HDL_TRY(check_padding(file, h->ids_at + h->n_tokens * 4, h->sums_at));
    HDL_TRY(check_padding(file, h->sums_at + h->n_pages * N_PARTS * 8, h->pages_at));
    for (int64_t p = 0; p < h->n_pages; p++) {
        int64_t page = h->pages_at + p * h->page_bytes, at = 0;
        for (int part = 0; part < N_PARTS; part++) {
            hdl_kv_span span = part_of(&file->layout, &file->facts.spec, (hdl_docfile_part)part);
            if (span.first == span.end) continue;
            HDL_TRY(check_padding(file, page + at, page + span.first));
            at = span.end;
        }
        HDL_TRY(check_padding(file, page + at, page + h->page_bytes));
    }
    return HEDDLE_OK;
}

heddle_status hdl_docfile_verify(hdl_docfile *file)
{
    HDL_TRY(check_paddings(file));
    for (int64_t p = 0; p < file->header.n_pages; p++)
        for (int part = 0; part < N_PARTS; part++)
            if (!hdl_docfile_page_holds(file, p, (hdl_docfile_part)part))
                return HDL_FAIL(HEDDLE_E_FORMAT, "%s: page %lld of %lld: its %s do not have their checksum",
                                file->path, (long long)p, (long long)file->header.n_pages,
                                part == HDL_DOCFILE_ROWS ? "rows" : "index keys");
    return HEDDLE_OK;
}
