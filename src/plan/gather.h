/* gather.h - the rows of a list that several layers read, copied together once a token.
 *
 * A layer's rows are read through its list, one here and one there in the cache. Where layers share K, V
 * and list, the rows can be copied once to the slots of one small page, which all of them read. Slots are
 * stable: a row that was listed at the step before stays where it is, so that a step copies only the rows
 * that are new to the list. Slots are visited by ascending token, through a permutation (`slots`): the
 * result is that of reading through the list, bit for bit, whatever steps went before.
 *
 * Walk: token 5000 is listed at steps 7, 8 and 9. Step 7 copies its K and V (512 bytes) from page 19 of the
 * cache to slot 3; six layers read slot 3; step 8 finds 5000 among its `ids` and copies nothing; step 10 no
 * longer lists it, and slot 3 is given to another token.
 *
 * A copy is good while the cache's rows are: hdl_kv_seq_content() tells when rows that were there may have
 * become others. */
#ifndef HDL_GATHER_H
#define HDL_GATHER_H

#include "backend/backend.h"
#include "kv/kv.h"

typedef struct hdl_gather {
    hdl_kv_layout layout; /* of a page with slots for all */
    int32_t n_kv_heads, page_shift;
    bool is_head_major;
    hdl_dtype dtype;
    uint8_t *page;   /* owned, */
    int32_t *memory; /* owned: [n_max] of each of */
    int32_t *ids, *slots, *next_ids, *next_slots, *free_slots;
    int32_t n, n_max;
    int32_t n_used,
        n_free;       /* slots that held a row since the page was empty; of these, those that hold none */
    uint64_t content; /* of the cache when rows were copied; 0 = none were */
    int64_t n_copied, n_listed; /* rows since the session began, for figures */
} hdl_gather;

/* `group`: of the rows that are copied. Bytes that _new() will take. */
int64_t hdl_gather_bytes(const hdl_kv_group_spec *group, int64_t n_max);
heddle_status hdl_gather_new(hdl_gather **out, const hdl_kv_group_spec *group, int64_t n_max);
void hdl_gather_free(hdl_gather *gather); /* NULL is fine */
/* Brings the page to the rows of ids [n <= n_max] (ascending) of `from`, whose content is numbered so. */
void hdl_gather_update(hdl_gather *gather, const hdl_kv_view *from, uint64_t content, const int32_t *ids,
                       int32_t n);
/* The page as a cache in which token s is slot s. */
hdl_kv_view hdl_gather_view(const hdl_gather *gather);

#endif
