#include "kv/snapshot.h"

#include <string.h>

#include "base/hash.h"

typedef struct seq_record {
    int64_t len;
    int32_t n_groups, has_state;
} seq_record;

typedef struct group_record {
    int32_t n_layers, window, n_kv_heads, head_dim, v_head_dim, dtype, is_head_major, page_shift;
    int64_t page_bytes, first_page, end_page;
    uint64_t planes; /* a hash of the planes' specs: what lies behind the rows of a page */
    int64_t n_evicted, evicted_at_len;
} group_record;

static_assert(sizeof(seq_record) == 16 && sizeof(group_record) == 80, "records have no padding");

static group_record record_of(const hdl_kv_store *store, int32_t group, hdl_kv_span span)
{
    const hdl_kv_group_spec *spec = hdl_kv_store_spec(store, group);
    return (group_record){.n_layers = spec->n_layers,
                          .window = spec->window,
                          .n_kv_heads = spec->n_kv_heads,
                          .head_dim = spec->head_dim,
                          .v_head_dim = spec->v_head_dim,
                          .dtype = (int32_t)spec->dtype,
                          .is_head_major = spec->is_head_major,
                          .page_shift = spec->page_shift,
                          .page_bytes = hdl_kv_store_layout(store, group)->page_bytes,
                          .first_page = span.first,
                          .end_page = span.end,
                          .planes = hdl_hash(spec->planes, spec->n_planes * (int64_t)sizeof *spec->planes)};
}

static int64_t state_bytes(const hdl_kv_store *store)
{
    return hdl_kv_store_state_floats(store) * (int64_t)sizeof(float);
}

int64_t hdl_kv_snapshot_bytes(const hdl_kv_seq *seq)
{
    const hdl_kv_store *store = hdl_kv_seq_store(seq);
    int64_t n = (int64_t)sizeof(seq_record) + state_bytes(store);
    for (int32_t g = 0; g < hdl_kv_store_n_groups(store); g++) {
        hdl_kv_span span = hdl_kv_seq_span(seq, g);
        n += (int64_t)sizeof(group_record) +
             hdl_kv_seq_own_pages(seq, span) * hdl_kv_store_layout(store, g)->page_bytes;
    }
    return n;
}

heddle_status hdl_kv_snapshot_write(const hdl_kv_seq *seq, hdl_newfile *file)
{
    const hdl_kv_store *store = hdl_kv_seq_store(seq);
    const float *states = hdl_kv_seq_states(seq);
    seq_record head = {
        .len = hdl_kv_seq_len(seq), .n_groups = hdl_kv_store_n_groups(store), .has_state = states != NULL};
    HDL_TRY(hdl_newfile_write(file, &head, sizeof head));
    for (int32_t g = 0; g < head.n_groups; g++) {
        group_record record = record_of(store, g, hdl_kv_seq_span(seq, g));
        hdl_kv_evicted evicted = hdl_kv_seq_evicted(seq, g);
        record.n_evicted = evicted.n_rows;
        record.evicted_at_len = evicted.at_len;
        HDL_TRY(hdl_newfile_write(file, &record, sizeof record));
    }
    for (int32_t g = 0; g < head.n_groups; g++) {
        hdl_kv_span span = hdl_kv_seq_span(seq, g);
        uint8_t *const *pages = hdl_kv_seq_view(seq, g, 0).pages;
        for (int64_t p = span.first; p < span.end; p++)
            if (hdl_kv_seq_is_own_page(seq, p))
                HDL_TRY(hdl_newfile_write(file, pages[p], hdl_kv_store_layout(store, g)->page_bytes));
    }
    return states ? hdl_newfile_write(file, states, state_bytes(store)) : HEDDLE_OK;
}

static bool is_same_kind(const group_record *a, const group_record *b)
{
    return a->n_layers == b->n_layers && a->window == b->window && a->n_kv_heads == b->n_kv_heads &&
           a->head_dim == b->head_dim && a->v_head_dim == b->v_head_dim && a->dtype == b->dtype &&
           a->is_head_major == b->is_head_major && a->page_shift == b->page_shift &&
           a->page_bytes == b->page_bytes && a->planes == b->planes;
}

/* The records, checked against the store and against the bytes that follow them. */
static heddle_status read_records(const hdl_kv_seq *mounted, const uint8_t *bytes, int64_t n_bytes,
                                  const char *name, seq_record *head, hdl_kv_span *spans,
                                  hdl_kv_evicted *evicted)
{
    const hdl_kv_store *store = hdl_kv_seq_store(mounted);
    if (n_bytes < (int64_t)sizeof *head) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: holds no KV state", name);
    memcpy(head, bytes, sizeof *head);
    if (head->n_groups != hdl_kv_store_n_groups(store))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: has %d KV groups, this session %d", name, head->n_groups,
                        hdl_kv_store_n_groups(store));
    if (!head->has_state != !state_bytes(store))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: %s states of layers, which this session's model %s", name,
                        head->has_state ? "holds" : "lacks", head->has_state ? "has not" : "has");
    int64_t left = n_bytes - (int64_t)sizeof *head - state_bytes(store) -
                   head->n_groups * (int64_t)sizeof(group_record);
    for (int32_t g = 0; g < head->n_groups && left >= 0; g++) {
        group_record record, own;
        memcpy(&record, bytes + sizeof *head + (size_t)g * sizeof record, sizeof record);
        spans[g] = (hdl_kv_span){record.first_page, record.end_page};
        evicted[g] = (hdl_kv_evicted){record.n_evicted, record.evicted_at_len};
        own = record_of(store, g, spans[g]);
        if (!is_same_kind(&record, &own))
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s: KV group %d has pages of %lld bytes and 2^%d tokens, which this session's "
                            "pages (%lld bytes, 2^%d tokens) cannot hold",
                            name, g, (long long)record.page_bytes, record.page_shift,
                            (long long)own.page_bytes, own.page_shift);
        bool is_sound = spans[g].first >= 0 && spans[g].end >= spans[g].first;
        int64_t n_own = is_sound ? hdl_kv_seq_own_pages(mounted, spans[g]) : 0;
        is_sound = is_sound && n_own <= left / own.page_bytes;
        left = is_sound ? left - n_own * own.page_bytes : -1;
    }
    if (left != 0) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its KV pages and its size contradict", name);
    return HEDDLE_OK;
}

heddle_status hdl_kv_snapshot_read(hdl_kv_seq **out, hdl_kv_store *store, int64_t max_tokens,
                                   const uint8_t *bytes, int64_t n_bytes, const hdl_kv_seq *mounted,
                                   const char *name)
{
    seq_record head;
    hdl_kv_span spans[HDL_KV_MAX_GROUPS];
    hdl_kv_evicted evicted[HDL_KV_MAX_GROUPS];
    *out = NULL;
    HDL_TRY(read_records(mounted, bytes, n_bytes, name, &head, spans, evicted));
    HDL_TRY(hdl_kv_seq_new(out, store, max_tokens));
    heddle_status status = hdl_kv_seq_restore(*out, head.len, spans, evicted, mounted);
    if (status) {
        hdl_kv_seq_free(*out);
        *out = NULL;
        return status;
    }
    const uint8_t *at = bytes + sizeof head + (size_t)head.n_groups * sizeof(group_record);
    for (int32_t g = 0; g < head.n_groups; g++) {
        int64_t page_bytes = hdl_kv_store_layout(store, g)->page_bytes;
        uint8_t *const *pages = hdl_kv_seq_view(*out, g, 0).pages;
        for (int64_t p = spans[g].first; p < spans[g].end; p++) {
            if (!hdl_kv_seq_is_own_page(*out, p)) continue;
            memcpy(pages[p], at, (size_t)page_bytes);
            at += page_bytes;
        }
    }
    if (head.has_state) memcpy(hdl_kv_seq_states(*out), at, (size_t)state_bytes(store));
    return HEDDLE_OK;
}
