/* hash.h - XXH3 of 64 bits, at once and piece by piece: checksums of files and identities.
 *
 * The sum of a file's bytes is what `xxhsum -H3` prints. */
#ifndef HDL_HASH_H
#define HDL_HASH_H

#include <stdalign.h>

#include "base/base.h"

uint64_t hdl_hash(const void *bytes, int64_t n);

enum { HDL_HASHER_BYTES = 640 };
typedef struct hdl_hasher { /* on the stack; nothing to free */
    alignas(64) uint8_t state[HDL_HASHER_BYTES];
} hdl_hasher;
void hdl_hasher_init(hdl_hasher *hasher);
void hdl_hasher_add(hdl_hasher *hasher, const void *bytes, int64_t n);
uint64_t hdl_hasher_sum(const hdl_hasher *hasher);

#endif
