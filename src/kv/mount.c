/* mount.c - documents of files in a sequence's tables, and tokens that no row may read.
 *
 * A mount begins a page. Its pages are the file's own memory, read-only and outside the store. The slots
 * between its last token and the next page belong to nobody: they are hidden, like the tokens of an
 * unmounted document and those that a user may not read. Hidden tokens keep their numbers. */
#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

/* ---- hidden tokens: ascending, disjoint, not touching spans ---- */

static heddle_status book(hdl_kv_seq *seq)
{
    if (!seq->mounts) seq->mounts = hdl_calloc(HDL_KV_MAX_MOUNTS, sizeof *seq->mounts);
    if (!seq->hidden) seq->hidden = hdl_calloc(HDL_KV_MAX_HIDDEN, sizeof *seq->hidden);
    return seq->mounts && seq->hidden ? HEDDLE_OK : HEDDLE_E_NOMEM;
}

heddle_status hdl_kv_seq_hide(hdl_kv_seq *seq, int64_t first, int64_t end)
{
    HDL_TRY(book(seq));
    if (first >= end) return HEDDLE_OK;
    int32_t at = 0, last;
    while (at < seq->n_hidden && seq->hidden[at].end < first) at++;
    for (last = at; last < seq->n_hidden && seq->hidden[last].first <= end; last++) {
        first = HDL_MIN(first, seq->hidden[last].first);
        end = HDL_MAX(end, seq->hidden[last].end);
    }
    if (at == last && seq->n_hidden == HDL_KV_MAX_HIDDEN)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "hidden tokens are in %d stretches: one more is too many",
                        HDL_KV_MAX_HIDDEN);
    memmove(seq->hidden + at + 1, seq->hidden + last, (size_t)(seq->n_hidden - last) * sizeof *seq->hidden);
    seq->n_hidden += 1 - (last - at);
    seq->hidden[at] = (hdl_kv_span){first, end};
    return HEDDLE_OK;
}

const hdl_kv_span *hdl_kv_seq_hidden(const hdl_kv_seq *seq, int32_t *n)
{
    *n = seq->n_hidden;
    return seq->hidden;
}

static void cut_hidden(hdl_kv_seq *seq, int64_t n)
{
    while (seq->n_hidden && seq->hidden[seq->n_hidden - 1].first >= n) seq->n_hidden--;
    if (seq->n_hidden) {
        hdl_kv_span *last = &seq->hidden[seq->n_hidden - 1];
        last->end = HDL_MIN(last->end, n);
    }
}

/* ---- mounts ---- */

/* Gives a mount's file up, and what was found damaged in it: other mounts of it tell that again. */
static void let_go(hdl_kv_seq *seq, kv_mount *mount)
{
    if (mount->file && seq->damaged.file == mount->file) {
        hdl_docfile_unref(seq->damaged.file);
        seq->damaged = (kv_mount){0};
    }
    hdl_docfile_unref(mount->file);
    mount->file = NULL;
}

static int64_t first_token(const hdl_kv_seq *seq, const kv_mount *mount)
{
    return mount->first_page << seq->store->groups[mount->group].spec.page_shift;
}

static int64_t end_token(const hdl_kv_seq *seq, const kv_mount *mount)
{
    return (mount->first_page + mount->n_pages) << seq->store->groups[mount->group].spec.page_shift;
}

bool hdl_kv_seq_follows_mount(const hdl_kv_seq *seq, int64_t n)
{
    return n > 0 && hdl_kv_mounts_end(seq, n) == n;
}

int32_t hdl_kv_seq_n_mounts(const hdl_kv_seq *seq)
{
    return seq->n_mounts;
}

hdl_kv_span hdl_kv_seq_mounted_pages(const hdl_kv_seq *seq, int32_t i)
{
    return (hdl_kv_span){seq->mounts[i].first_page, seq->mounts[i].first_page + seq->mounts[i].n_pages};
}

int64_t hdl_kv_seq_own_pages(const hdl_kv_seq *seq, hdl_kv_span span)
{
    int64_t n = span.end - span.first;
    for (int32_t i = 0; i < seq->n_mounts; i++) {
        hdl_kv_span at = hdl_kv_seq_mounted_pages(seq, i);
        n -= HDL_MAX(HDL_MIN(at.end, span.end) - HDL_MAX(at.first, span.first), 0);
    }
    return n;
}

bool hdl_kv_seq_is_own_page(const hdl_kv_seq *seq, int64_t page)
{
    return hdl_kv_seq_own_pages(seq, (hdl_kv_span){page, page + 1}) == 1;
}

const hdl_docfile *hdl_kv_seq_mounted(const hdl_kv_seq *seq, int32_t i)
{
    return seq->mounts[i].file;
}

/* Index keys lie in the file's pages where this store's views look for them. */
static heddle_status check_index(const hdl_kv_seq *seq, int32_t group, const hdl_docfile *file)
{
    const page_pool *pool = &seq->store->groups[group];
    const hdl_kv_plane_spec *ours = &pool->spec.planes[0];
    const hdl_kv_group_spec *spec = &hdl_docfile_facts_of(file)->spec;
    const hdl_kv_plane_spec *its = spec->n_planes ? &spec->planes[0] : &(hdl_kv_plane_spec){0};
    const char *path = hdl_docfile_path(file);
    hdl_kv_layout layout;
    if (its->dim != ours->dim || its->n_heads != ours->n_heads)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s: holds index keys of %d x %d elements, the session needs %d x %d", path,
                        its->n_heads, its->dim, ours->n_heads, ours->dim);
    HDL_TRY(hdl_kv_layout_of(&layout, spec));
    if (layout.page_bytes != pool->layout.page_bytes ||
        layout.plane_offset[0] != pool->layout.plane_offset[0] ||
        layout.plane_scale_offset[0] != pool->layout.plane_scale_offset[0])
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: lays out pages of %lld bytes, the session pages of %lld", path,
                        (long long)layout.page_bytes, (long long)pool->layout.page_bytes);
    return HEDDLE_OK;
}

/* The file's pages must be this group's pages, as far as this store reads them. */
static heddle_status check_fit(const hdl_kv_seq *seq, int32_t group, const hdl_docfile *file)
{
    const hdl_kv_group_spec *ours = &seq->store->groups[group].spec, *its = &hdl_docfile_facts_of(file)->spec;
    const char *path = hdl_docfile_path(file);
    if (ours->dtype != its->dtype)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: holds %s rows; the session has %s rows", path,
                        hdl_dtype_of(its->dtype)->name, hdl_dtype_of(ours->dtype)->name);
    if (ours->is_head_major != its->is_head_major)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: its KV layout is \"%s\"; the session's is \"%s\"", path,
                        its->is_head_major ? "head" : "token", ours->is_head_major ? "head" : "token");
    if (ours->page_shift != its->page_shift)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: has pages of 2^%d tokens; the session of 2^%d", path,
                        its->page_shift, ours->page_shift);
    if (ours->n_layers != 1 || ours->n_kv_heads != its->n_kv_heads || ours->head_dim != its->head_dim ||
        ours->v_head_dim != its->v_head_dim)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: its rows are %d x (%d + %d), this model's %d x (%d + %d)",
                        path, its->n_kv_heads, its->head_dim, its->v_head_dim, ours->n_kv_heads,
                        ours->head_dim, ours->v_head_dim);
    for (int32_t i = 0; i < ours->n_planes; i++) {
        const hdl_kv_plane_spec *plane = &ours->planes[i];
        if (i || plane->kind != HDL_PLANE_INDEX)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "%s: this session keeps the summary %s of its rows, which the file does not hold",
                            path, hdl_plane_name(plane->kind));
    }
    if (ours->n_planes) HDL_TRY(check_index(seq, group, file));
    for (int32_t g = 0; g < seq->store->n_groups; g++)
        if (g != group &&
            (!seq->store->groups[g].spec.window || seq->store->groups[g].spec.page_shift != ours->page_shift))
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: this model reads all tokens below the shared rows",
                            path);
    return HEDDLE_OK;
}

heddle_status hdl_kv_seq_mount(hdl_kv_seq *seq, int32_t group, hdl_docfile *file, int64_t *first)
{
    const page_pool *pool = &seq->store->groups[group];
    int64_t page_tokens = pool->layout.page_tokens, n_pages = hdl_docfile_n_pages(file);
    int64_t start = (seq->len + page_tokens - 1) / page_tokens, end = start + n_pages;
    HDL_TRY(check_fit(seq, group, file));
    HDL_TRY(book(seq));
    if (end * page_tokens > seq->max_tokens)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "%s: ends at token %lld, the context holds %lld",
                        hdl_docfile_path(file), (long long)(end * page_tokens), (long long)seq->max_tokens);
    if (seq->n_mounts == HDL_KV_MAX_MOUNTS)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "%d documents are mounted: one more is too many",
                        HDL_KV_MAX_MOUNTS);
    int64_t n_tokens = hdl_docfile_facts_of(file)->n_tokens, from = seq->len;
    if (seq->n_hidden + 2 > HDL_KV_MAX_HIDDEN) /* the slots before it and those after it */
        return HDL_FAIL(HEDDLE_E_CAPACITY, "hidden tokens are in %d stretches: two more are too many",
                        seq->n_hidden);
    for (int32_t g = 0; g < seq->store->n_groups; g++) {
        page_table *table = &seq->tables[g];
        for (int64_t p = start; p < end; p++) {
            table->pages[p] = g == group ? hdl_docfile_page(file, p - start) : NULL;
            table->ids[p] = HDL_KV_FOREIGN;
        }
        table->n = end;
    }
    seq->mounts[seq->n_mounts++] = (kv_mount){
        .file = hdl_docfile_ref(file), .group = group, .first_page = start, .n_pages = n_pages};
    seq->len = end * page_tokens;
    hdl_kv_seq_commit(seq, 0);
    *first = start * page_tokens;
    HDL_TRY(hdl_kv_seq_hide(seq, from, *first));
    return hdl_kv_seq_hide(seq, *first + n_tokens, seq->len);
}

heddle_status hdl_kv_seq_unmount(hdl_kv_seq *seq, int64_t first)
{
    for (int32_t i = 0; i < seq->n_mounts; i++) {
        kv_mount *mount = &seq->mounts[i];
        if (first_token(seq, mount) != first) continue;
        page_pool *pool = &seq->store->groups[mount->group];
        if (!mount->file) break;
        if (!pool->blank) pool->blank = hdl_pages_alloc(pool->layout.page_bytes);
        if (!pool->blank) return HEDDLE_E_NOMEM;
        HDL_TRY(hdl_kv_seq_hide(seq, first, end_token(seq, mount)));
        page_table *table = &seq->tables[mount->group]; /* scores of these rows are made and thrown away */
        for (int64_t p = 0; p < mount->n_pages; p++) table->pages[mount->first_page + p] = pool->blank;
        hdl_kv_seq_renew(seq);
        let_go(seq, mount); /* its place stays: rows after it keep their numbers */
        return HEDDLE_OK;
    }
    return HDL_FAIL(HEDDLE_E_INVALID, "no document is mounted at token %lld", (long long)first);
}

/* ---- checksums, as pages are read ---- */

static void note_damage(hdl_kv_seq *seq, const kv_mount *mount, int64_t page, hdl_docfile_part part)
{
    if (seq->damaged.file) return;
    seq->damaged = (kv_mount){.file = hdl_docfile_ref(mount->file), .first_page = page};
    seq->damaged_part = part;
}

void hdl_kv_seq_check_index(hdl_kv_seq *seq)
{
    for (int32_t i = 0; i < seq->n_mounts; i++) {
        kv_mount *mount = &seq->mounts[i];
        if (!mount->file || mount->is_index_checked) continue;
        bool holds = true;
        for (int64_t p = 0; p < mount->n_pages; p++)
            if (!hdl_docfile_page_holds(mount->file, p, HDL_DOCFILE_INDEX)) {
                note_damage(seq, mount, p, HDL_DOCFILE_INDEX);
                holds = false;
            }
        mount->is_index_checked = holds;
    }
}

void hdl_kv_seq_check_rows(hdl_kv_seq *seq, const int32_t *ids, int64_t n)
{
    int64_t at = 0;
    for (int32_t i = 0; i < seq->n_mounts && at < n; i++) {
        kv_mount *mount = &seq->mounts[i];
        int32_t shift = seq->store->groups[mount->group].spec.page_shift;
        int64_t first = first_token(seq, mount), end = end_token(seq, mount), done = -1;
        while (at < n && ids[at] < first) at++;
        for (; at < n && ids[at] < end; at++) {
            int64_t page = (ids[at] >> shift) - mount->first_page;
            if (!mount->file || page == done) continue;
            done = page;
            if (!hdl_docfile_page_holds(mount->file, page, HDL_DOCFILE_ROWS))
                note_damage(seq, mount, page, HDL_DOCFILE_ROWS);
        }
    }
}

heddle_status hdl_kv_seq_damage(const hdl_kv_seq *seq)
{
    if (!seq->damaged.file) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_FORMAT, "%s: page %lld of %lld: its %s do not have their checksum",
                    hdl_docfile_path(seq->damaged.file), (long long)seq->damaged.first_page,
                    (long long)hdl_docfile_n_pages(seq->damaged.file),
                    seq->damaged_part == HDL_DOCFILE_ROWS ? "rows" : "index keys");
}

/* ---- for pages.c ---- */

int64_t hdl_kv_mounts_whole(const hdl_kv_seq *seq, int64_t n)
{
    for (int32_t i = 0; i < seq->n_mounts; i++)
        if (first_token(seq, &seq->mounts[i]) < n && n < end_token(seq, &seq->mounts[i]))
            n = first_token(seq, &seq->mounts[i]);
    return n;
}

int64_t hdl_kv_mounts_end(const hdl_kv_seq *seq, int64_t n)
{
    int64_t last = 0;
    for (int32_t i = 0; i < seq->n_mounts; i++) {
        int64_t end = end_token(seq, &seq->mounts[i]);
        if (end <= n) last = HDL_MAX(last, end);
    }
    return last;
}

void hdl_kv_mounts_cut(hdl_kv_seq *seq, int64_t n)
{
    while (seq->n_mounts && first_token(seq, &seq->mounts[seq->n_mounts - 1]) >= n)
        let_go(seq, &seq->mounts[--seq->n_mounts]);
    cut_hidden(seq, n);
}

heddle_status hdl_kv_mounts_copy(hdl_kv_seq *to, const hdl_kv_seq *from)
{
    if (!from->mounts) return HEDDLE_OK;
    HDL_TRY(book(to));
    for (int32_t i = 0; i < from->n_mounts; i++) {
        to->mounts[i] = from->mounts[i];
        if (to->mounts[i].file) hdl_docfile_ref(to->mounts[i].file);
    }
    to->n_mounts = from->n_mounts;
    memcpy(to->hidden, from->hidden, (size_t)from->n_hidden * sizeof *to->hidden);
    to->n_hidden = from->n_hidden;
    to->damaged = from->damaged;
    to->damaged_part = from->damaged_part;
    if (to->damaged.file) hdl_docfile_ref(to->damaged.file);
    return HEDDLE_OK;
}

void hdl_kv_mounts_deinit(hdl_kv_seq *seq)
{
    for (int32_t i = 0; i < seq->n_mounts; i++) hdl_docfile_unref(seq->mounts[i].file);
    hdl_docfile_unref(seq->damaged.file);
    hdl_free(seq->mounts);
    hdl_free(seq->hidden);
}
