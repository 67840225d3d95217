/* hash.c - xxHash, compiled in from its header: no library is needed to run. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/hash.h"

static_assert(sizeof(XXH3_state_t) <= HDL_HASHER_BYTES, "hdl_hasher holds the state of xxHash");

static XXH3_state_t *state_of(hdl_hasher *hasher)
{
    return (XXH3_state_t *)(void *)hasher->state;
}

uint64_t hdl_hash(const void *bytes, int64_t n)
{
    return XXH3_64bits(bytes, (size_t)n);
}

void hdl_hasher_init(hdl_hasher *hasher)
{
    XXH3_INITSTATE(state_of(hasher));
    XXH3_64bits_reset(state_of(hasher));
}

void hdl_hasher_add(hdl_hasher *hasher, const void *bytes, int64_t n)
{
    if (n > 0) XXH3_64bits_update(state_of(hasher), bytes, (size_t)n);
}

uint64_t hdl_hasher_sum(const hdl_hasher *hasher)
{
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)hasher->state);
}
