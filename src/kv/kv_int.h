/* kv_int.h - the structs of the store, its sequences and what is mounted: for this folder's files. */
#ifndef HDL_KV_INT_H
#define HDL_KV_INT_H

#include "kv/docfile.h"
#include "kv/kv.h"

enum { HDL_KV_FOREIGN = -1 };

typedef struct page_pool {
    hdl_kv_group_spec spec;
    hdl_kv_layout layout;
    uint8_t *base; /* reserved range of n_pages * page_bytes */
    int64_t n_pages, n_free, mapped_bytes;
    int32_t *free_ids; /* [n_pages] stack */
    int32_t *n_refs;   /* [n_pages] */
    uint8_t *blank;    /* a page of zeroes in place of what was unmounted; NULL before the first time */
} page_pool;

struct hdl_kv_store {
    int32_t n_groups, n_refs;
    int64_t live_bytes, peak_bytes;
    int32_t n_state_layers;
    int64_t n_state_floats; /* of a layer */
    page_pool groups[HDL_KV_MAX_GROUPS];
};

typedef struct page_table {
    uint8_t **pages; /* [capacity] NULL where freed */
    int32_t *ids;    /* [capacity] of the store; HDL_KV_FOREIGN where the page is a file's */
    int64_t n, capacity, first_live;
    hdl_kv_evicted evicted;
    uint8_t **next_pages; /* [capacity] retained rows of the step that is running; full groups only */
    int32_t *next_ids;    /* [capacity] */
    int64_t n_next, n_next_rows;
} page_table;

typedef struct kv_mount {
    hdl_docfile *file; /* a reference */
    int32_t group;
    int64_t first_page, n_pages;
    bool is_index_checked; /* all its index keys have their checksums */
} kv_mount;

struct hdl_kv_seq {
    hdl_kv_store *store;
    int64_t len, max_tokens;
    float *states;    /* [2, n_state_layers, n_state_floats], or NULL */
    int32_t state;    /* which of the two is committed */
    uint64_t content; /* hdl_kv_seq_content */
    page_table tables[HDL_KV_MAX_GROUPS];
    kv_mount *mounts;    /* [HDL_KV_MAX_MOUNTS] ascending; NULL before the first */
    hdl_kv_span *hidden; /* [HDL_KV_MAX_HIDDEN] tokens; ascending, disjoint; NULL before the first */
    int32_t n_mounts, n_hidden;
    kv_mount damaged; /* file, and in first_page the page, that did not hold its checksum; file NULL = none */
    hdl_docfile_part damaged_part;
};

/* state.c, for pages.c: every sequence's own, counted with the store's live bytes. */
heddle_status hdl_kv_state_init(hdl_kv_seq *seq);
void hdl_kv_state_copy(hdl_kv_seq *to, const hdl_kv_seq *from);
void hdl_kv_state_deinit(hdl_kv_seq *seq);

/* Rows that were there may be others now. */
void hdl_kv_seq_renew(hdl_kv_seq *seq);

/* mount.c, for pages.c: what forks, truncation and the end of a sequence do to mounts and hidden tokens. */
heddle_status hdl_kv_mounts_copy(hdl_kv_seq *to, const hdl_kv_seq *from);
void hdl_kv_mounts_cut(hdl_kv_seq *seq, int64_t n);
void hdl_kv_mounts_deinit(hdl_kv_seq *seq);
/* Where the last mount that ends at n or before ends; 0 = there is none. */
int64_t hdl_kv_mounts_end(const hdl_kv_seq *seq, int64_t n);
/* The length that truncation to n keeps of mounts: a document is there whole or not at all. */
int64_t hdl_kv_mounts_whole(const hdl_kv_seq *seq, int64_t n);

#endif
