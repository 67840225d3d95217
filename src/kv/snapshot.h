/* snapshot.h - the KV state of a sequence as bytes, and back.
 *
 *   header   len, n_groups, has_state
 *   groups   per group: what its pages look like, which pages follow
 *   pages    group by group, page by page: whole pages with every plane they hold, but those of mounted
 *            documents, which are in files of their own
 *   states   f32 of every layer that keeps one, where the header says so
 *
 * Rows behind the last token are part of the last page and mean nothing. Numbers are little-endian
 * (as the machine is). The reader checks every number; whether the bytes are the ones that were
 * written is the caller's business (a checksum over the file). */
#ifndef HDL_SNAPSHOT_H
#define HDL_SNAPSHOT_H

#include "base/newfile.h"
#include "kv/kv.h"

int64_t hdl_kv_snapshot_bytes(const hdl_kv_seq *seq);
heddle_status hdl_kv_snapshot_write(const hdl_kv_seq *seq, hdl_newfile *file);
/* A new sequence over `store` with what bytes[n_bytes] hold; all of them must belong to it. What is mounted
 * and hidden in it is as in `mounted`, which must be as it was in the sequence that was written. `name`
 * starts the sentence: INVALID, naming both, where the store's pages are others than the file's; CAPACITY
 * where they do not fit; FORMAT where the numbers contradict themselves. */
heddle_status hdl_kv_snapshot_read(hdl_kv_seq **out, hdl_kv_store *store, int64_t max_tokens,
                                   const uint8_t *bytes, int64_t n_bytes, const hdl_kv_seq *mounted,
                                   const char *name);

#endif
