/* kv.h - the paged KV store, and a sequence's page tables over it.
 *
 * A cache group is a set of layers whose rows live and die together (all global layers; all layers
 * of one sliding window). One page of a group holds page_tokens tokens of every layer in it:
 *
 *   page   = [layer 0][layer 1]...                           layer_bytes each
 *   layer  = token-major:  [slot][K of all heads | V of all heads]   then, for int8, scales
 *            head-major:   [head][slot][K | V]                        then, for int8, scales
 *   scales = f32 [slot][K heads] then f32 [slot][V heads]
 *
 * After the layers come the planes (backend/summary.h), each for the layers that keep it:
 *
 *   plane  = [layer that has it]...          entries of the page's blocks, then their scales
 *
 * Walk: token 700 of a sequence, layer 4, head 1, 256-token pages: table entry 700 >> 8 = 2 points
 * at a page; slot 700 & 255 = 188; K at page + 4 * layer_bytes + 188 * token_stride + 1 * head_stride.
 *
 * The store is one reserved address range: memory is committed by the first write to a page and
 * given back when its last reference goes, so bytes follow the live context, and taking a page
 * allocates nothing. Pages are reference-counted; a shared page is copied before it is written.
 * Ids are logical: a rolling group keeps its table entries and frees the pages behind them.
 *
 * State. Layers that keep a state in place of rows have it with the sequence: f32, as large from the first
 * token on as ever. A step reads it from one place and writes it to another, which the commit puts in its
 * stead: a step that is released leaves no trace, and forks copy what was committed. It is that of the last
 * token and of no other: a sequence cannot be cut back but to nothing, or to where the next token begins a
 * document.
 *
 * Eviction. A full group may hold fewer rows than the sequence has tokens: rows that a plan retains
 * are copied, in their order, to the front of new pages; the step's commit takes those for the old
 * ones, which go. Walk: 1,000 tokens, keep 300 in 256-token pages. reserve_retained takes 2 pages;
 * each layer and KV head writes its own 300 rows to rows 0..299 of them; commit drops the 4 old pages
 * and sets evicted = 700. Token 1,000 is then appended as row 1,000 - 700 = 300, page 1, slot 44, with
 * the position 1,000 in its K. Old pages are never written, so forks that share them see nothing. */
#ifndef HDL_KV_H
#define HDL_KV_H

#include "backend/op.h"

enum {
    HDL_KV_MAX_GROUPS = 4,
    HDL_KV_MAX_LAYERS = 512,
    HDL_KV_MAX_PLANES = 8,
    HDL_KV_PAGE_SHIFT = 8 /* 256 tokens == HDL_KV_STRIDE */
};

typedef struct hdl_kv_plane_spec {
    hdl_plane_kind kind;
    int32_t block_size;                      /* tokens of an entry; divides the page's tokens */
    int32_t n_heads, dim;                    /* of an entry */
    uint64_t layers[HDL_KV_MAX_LAYERS / 64]; /* bit l: layer l of the group keeps it */
} hdl_kv_plane_spec;

typedef struct hdl_kv_group_spec {
    int32_t n_layers;
    int32_t window; /* > 0: rolling, only the last `window` tokens before a row are read */
    int32_t rewind; /* rolling: tokens behind the window that stay, so that truncation may go back so far */
    int32_t n_kv_heads, head_dim, v_head_dim;
    hdl_dtype dtype; /* F32, F16, BF16, I8, Q4_1 (heads of whole blocks of 32) */
    bool is_head_major;
    int32_t page_shift; /* log2 tokens per page, 4..40 */
    int32_t n_planes;
    hdl_kv_plane_spec planes[HDL_KV_MAX_PLANES];
} hdl_kv_group_spec;

typedef struct hdl_kv_layout { /* derived; all in bytes but page_tokens */
    int64_t page_tokens, token_stride, head_stride, v_head_stride, k_offset, v_offset, k_scale_offset,
        v_scale_offset, layer_bytes, page_bytes;
    int64_t token_bytes; /* what one token of one layer costs, scales included, planes not */
    int64_t plane_offset[HDL_KV_MAX_PLANES];       /* of the plane's first layer */
    int64_t plane_scale_offset[HDL_KV_MAX_PLANES]; /* of the scales, from the layer's plane */
    int64_t plane_bytes[HDL_KV_MAX_PLANES];        /* of one layer */
} hdl_kv_layout;

/* Adds the plane for a layer, merging with a plane of the same kind and block size. */
heddle_status hdl_kv_spec_add_plane(hdl_kv_group_spec *spec, hdl_plane_kind kind, int32_t block_size,
                                    int32_t n_heads, int32_t dim, int32_t layer_in_group);
heddle_status hdl_kv_layout_of(hdl_kv_layout *out, const hdl_kv_group_spec *spec);
/* Pages that a sequence of n_tokens needs at most while chunks of chunk_rows are appended. */
int64_t hdl_kv_pages_for(const hdl_kv_group_spec *spec, int64_t n_tokens, int64_t chunk_rows);

typedef struct hdl_kv_store hdl_kv_store;
/* n_pages[g]: capacity of group g. Reserves address space only. */
heddle_status hdl_kv_store_new(hdl_kv_store **out, const hdl_kv_group_spec *specs, int32_t n_groups,
                               const int64_t *n_pages);
hdl_kv_store *hdl_kv_store_ref(hdl_kv_store *store);
void hdl_kv_store_unref(hdl_kv_store *store);               /* the last one frees it; NULL is fine */
int64_t hdl_kv_store_live_bytes(const hdl_kv_store *store); /* pages in use, shared ones once */
int64_t hdl_kv_store_peak_bytes(const hdl_kv_store *store);
const hdl_kv_group_spec *hdl_kv_store_spec(const hdl_kv_store *store, int32_t group);
const hdl_kv_layout *hdl_kv_store_layout(const hdl_kv_store *store, int32_t group);
int32_t hdl_kv_store_n_groups(const hdl_kv_store *store);

/* Before the first sequence: each sequence of the store keeps n_floats of state for each of n_layers. */
void hdl_kv_store_keep_state(hdl_kv_store *store, int32_t n_layers, int64_t n_floats);
/* Bytes that a sequence's states take: what is committed and what the next step writes. */
int64_t hdl_kv_state_bytes(int32_t n_layers, int64_t n_floats);

typedef struct hdl_kv_seq hdl_kv_seq;
/* max_tokens bounds the page tables, booked here once. */
heddle_status hdl_kv_seq_new(hdl_kv_seq **out, hdl_kv_store *store, int64_t max_tokens);
void hdl_kv_seq_free(hdl_kv_seq *seq);
int64_t hdl_kv_seq_len(const hdl_kv_seq *seq);
/* A number that no other sequence has, and another one whenever rows before the length may have changed:
 * by truncation, eviction, unmounting, or a step that was given up. Appending and committing keep it. */
uint64_t hdl_kv_seq_content(const hdl_kv_seq *seq);
const hdl_kv_store *hdl_kv_seq_store(const hdl_kv_seq *seq); /* borrowed */
/* Makes room for tokens kv_len .. kv_len + n_new - 1 in every group (copying a shared last page);
 * on failure (CAPACITY) nothing is changed. The length grows with hdl_kv_seq_commit. */
heddle_status hdl_kv_seq_reserve(hdl_kv_seq *seq, int64_t n_new);
/* Rows that the group will hold after n_new more tokens are appended. */
int64_t hdl_kv_seq_rows(const hdl_kv_seq *seq, int32_t group, int64_t n_new);
/* Takes the pages for n_rows retained rows of a full group, after hdl_kv_seq_reserve; CAPACITY. */
heddle_status hdl_kv_seq_reserve_retained(hdl_kv_seq *seq, int32_t group, int64_t n_rows);
/* Where the retained rows of a layer go: the pages that the next commit puts in place. */
hdl_kv_view hdl_kv_seq_retained_view(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group);
/* Gives back what was reserved and not committed: a step that failed for another sequence. */
void hdl_kv_seq_release(hdl_kv_seq *seq);
/* The n_new rows are written: the length grows, rolling pages wholly behind the window go. */
void hdl_kv_seq_commit(hdl_kv_seq *seq, int64_t n_new);
/* Keeps the first n tokens, or, where a group no longer holds what row n would read (a rolling one, or
 * one that evicted rows at a later token), those up to the end of the last mount before n, behind which a
 * document begins, or none; returns the length kept. */
int64_t hdl_kv_seq_truncate(hdl_kv_seq *seq, int64_t n);
/* A second sequence over the same pages, copied on write. */
heddle_status hdl_kv_seq_fork(hdl_kv_seq **out, const hdl_kv_seq *seq);
/* The cache of one layer (its index inside its group); borrowed until the next reserve. */
hdl_kv_view hdl_kv_seq_view(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group);
/* Points view->plane[at] (0 or 1) to a plane of that layer; false when the store keeps none such. */
bool hdl_kv_seq_plane(const hdl_kv_seq *seq, int32_t group, int32_t layer_in_group, hdl_plane_kind kind,
                      int32_t block_size, hdl_kv_view *view, int at);
/* A layer's state: read `before`, write `after` whole; 64-byte aligned where n_floats is a multiple of 16. */
typedef struct hdl_kv_state {
    const float *before;
    float *after; /* [n_floats] */
} hdl_kv_state;
hdl_kv_state hdl_kv_seq_state(const hdl_kv_seq *seq, int32_t layer);
/* All committed states, for snapshots: [hdl_kv_store_state_floats], NULL where that is 0. */
float *hdl_kv_seq_states(const hdl_kv_seq *seq);
int64_t hdl_kv_store_state_floats(const hdl_kv_store *store);
/* Bytes held by this sequence's tables, shared pages counted fully, and states. */
int64_t hdl_kv_seq_bytes(const hdl_kv_seq *seq);

/* ---- documents mounted from files (docfile.h), and tokens that no row may read: mount.c ---- */

enum { HDL_KV_MAX_MOUNTS = 256, HDL_KV_MAX_HIDDEN = 1024 };
typedef struct hdl_docfile hdl_docfile;
typedef struct hdl_kv_span { /* of tokens, or of pages */
    int64_t first, end;
} hdl_kv_span;
/* The file's rows become the next tokens of the group, from the next page on; *first is the number of
 * the first. The other groups, rolling ones, have no rows there: what follows must begin a document. The
 * length ends at a page; slots that hold no token are hidden. */
heddle_status hdl_kv_seq_mount(hdl_kv_seq *seq, int32_t group, hdl_docfile *file, int64_t *first);
/* Hides the document that was mounted at token `first` and gives its pages up. */
heddle_status hdl_kv_seq_unmount(hdl_kv_seq *seq, int64_t first);
int32_t hdl_kv_seq_n_mounts(const hdl_kv_seq *seq); /* unmounted ones included */
hdl_kv_span hdl_kv_seq_mounted_pages(const hdl_kv_seq *seq, int32_t i);
/* Pages of [first, end) that no mount holds: the sequence's own. */
int64_t hdl_kv_seq_own_pages(const hdl_kv_seq *seq, hdl_kv_span span);
bool hdl_kv_seq_is_own_page(const hdl_kv_seq *seq, int64_t page);
const hdl_docfile *hdl_kv_seq_mounted(const hdl_kv_seq *seq, int32_t i); /* borrowed; NULL: unmounted */
bool hdl_kv_seq_follows_mount(const hdl_kv_seq *seq, int64_t n); /* token n - 1 is a mount's last slot */
/* Tokens [first, end) are never read again by global attention. CAPACITY when there are too many spans. */
heddle_status hdl_kv_seq_hide(hdl_kv_seq *seq, int64_t first, int64_t end);
const hdl_kv_span *hdl_kv_seq_hidden(const hdl_kv_seq *seq, int32_t *n); /* ascending, disjoint */
/* Verify what is about to be read: all index keys; the rows of tokens ids [n], ascending. What does not
 * hold is remembered, by forks too, until its mount is gone; hdl_kv_seq_damage says it (FORMAT). */
void hdl_kv_seq_check_index(hdl_kv_seq *seq);
void hdl_kv_seq_check_rows(hdl_kv_seq *seq, const int32_t *ids, int64_t n);
heddle_status hdl_kv_seq_damage(const hdl_kv_seq *seq);

/* The pages that hold rows now, [first, end) of the group's table. */
hdl_kv_span hdl_kv_seq_span(const hdl_kv_seq *seq, int32_t group);
/* Rows that the group no longer holds, and how many tokens there were when they last went. */
typedef struct hdl_kv_evicted {
    int64_t n_rows, at_len;
} hdl_kv_evicted;
hdl_kv_evicted hdl_kv_seq_evicted(const hdl_kv_seq *seq, int32_t group);
/* Takes zeroed pages spans[g] for every group of an empty sequence, whose length becomes len; the
 * caller fills them (snapshot.h). Mounts and hidden tokens, and the pages of the former, are those of
 * `mounted`, a sequence of the same store. On failure (INVALID, CAPACITY, NOMEM) nothing is changed that
 * freeing the sequence does not undo. */
heddle_status hdl_kv_seq_restore(hdl_kv_seq *seq, int64_t len, const hdl_kv_span *spans,
                                 const hdl_kv_evicted *evicted, const hdl_kv_seq *mounted);

#endif
