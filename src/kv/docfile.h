/* docfile.h - the rows of documents in a file, written once and mapped where they are read.
 *
 *   header   4,096 bytes: what the rows are, where the parts lie, sums of the next two and of itself
 *   ids      int32 [n_tokens]: the tokens, the first of which begins a document
 *   sums     u64 [n_pages][2]: XXH3 of a page's K and V rows, of its index keys
 *   pages    [n_pages][page_bytes] from a multiple of 4,096 on: pages of the shared cache, as kv.h draws
 *            them (K and V of one layer, then the index plane), slots behind the last token zero
 *
 * Bytes between the parts are zero.
 *
 * Opening reads and verifies header, ids and sums. A page's rows and its index keys are verified when they
 * are first asked for; what is not read costs nothing. Numbers are little-endian. */
#ifndef HDL_DOCFILE_H
#define HDL_DOCFILE_H

#include "kv/kv.h"

enum { HDL_DOCFILE_VERSION = 1 };

typedef enum hdl_docfile_part { HDL_DOCFILE_ROWS = 0, HDL_DOCFILE_INDEX = 1 } hdl_docfile_part;

typedef struct hdl_docfile_facts {
    uint64_t model;         /* identity of the model that made the rows */
    hdl_kv_group_spec spec; /* of the shared cache; at most one plane, the index */
    int64_t n_tokens;
} hdl_docfile_facts;

extern const char hdl_docfile_magic[8]; /* how the files begin */

/* pages [ceil(n_tokens / page tokens)], each of the spec's page_bytes, zero behind the layer and the plane. */
heddle_status hdl_docfile_write(const char *path, const hdl_docfile_facts *facts, const int32_t *ids,
                                const uint8_t *const *pages);

/* Reference-counted; page checks of several threads may only repeat work. */
heddle_status hdl_docfile_open(hdl_docfile **out, const char *path);
hdl_docfile *hdl_docfile_ref(hdl_docfile *file);
void hdl_docfile_unref(hdl_docfile *file); /* the last one unmaps; NULL is fine */
const hdl_docfile_facts *hdl_docfile_facts_of(const hdl_docfile *file);
const char *hdl_docfile_path(const hdl_docfile *file);
/* Of the whole document: tokens, rows, index keys and the model that made them, through their sums. Not 0. */
uint64_t hdl_docfile_sum(const hdl_docfile *file);
/* Of its tokens alone: of one text whatever made the rows. Not 0. */
uint64_t hdl_docfile_ids_sum(const hdl_docfile *file);
const int32_t *hdl_docfile_ids(const hdl_docfile *file); /* [n_tokens] */
int64_t hdl_docfile_n_pages(const hdl_docfile *file);
/* Read-only memory; writing to it ends the program. */
uint8_t *hdl_docfile_page(const hdl_docfile *file, int64_t page);
/* True when the part of the page has its sum; the first call computes it, later ones look it up. */
bool hdl_docfile_page_holds(hdl_docfile *file, int64_t page, hdl_docfile_part part);
/* Every byte, those between the parts too; FORMAT names the first page, or byte, that does not hold. */
heddle_status hdl_docfile_verify(hdl_docfile *file);

#endif
