#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A 64-byte header before each block holds its size, so that live bytes can be counted. */
enum { HEADER_BYTES = 64 };

static atomic_llong n_allocs, live_bytes, fail_at;

static void *allocate(int64_t n_bytes)
{
    atomic_fetch_add(&n_allocs, 1);
    if (atomic_load(&fail_at) > 0 && atomic_fetch_sub(&fail_at, 1) == 1) return NULL;
    char *raw = aligned_alloc(64, (size_t)HDL_ALIGN_UP(n_bytes + HEADER_BYTES, 64));
    if (!raw) return NULL;
    memcpy(raw, &n_bytes, sizeof n_bytes);
    atomic_fetch_add(&live_bytes, n_bytes);
    return raw + HEADER_BYTES;
}

void *hdl_calloc(int64_t n, int64_t size)
{
    int64_t n_bytes;
    void *ptr = NULL;
    if (n >= 0 && size >= 0 && !__builtin_mul_overflow(n, size, &n_bytes) && n_bytes <= INT64_MAX - 4096)
        ptr = allocate(n_bytes);
    if (ptr)
        memset(ptr, 0, (size_t)n_bytes);
    else
        hdl_fail(HEDDLE_E_NOMEM, "out of memory: %lld elements of %lld bytes", (long long)n, (long long)size);
    return ptr;
}

void *hdl_realloc(void *ptr, int64_t old_n, int64_t new_n, int64_t size)
{
    void *grown = hdl_calloc(new_n, size);
    if (!grown) return NULL;
    if (ptr) memcpy(grown, ptr, (size_t)(HDL_MIN(old_n, new_n) * size));
    hdl_free(ptr);
    return grown;
}

void hdl_free(void *ptr)
{
    if (!ptr) return;
    char *raw = (char *)ptr - HEADER_BYTES;
    int64_t n_bytes;
    memcpy(&n_bytes, raw, sizeof n_bytes);
    atomic_fetch_sub(&live_bytes, n_bytes);
    free(raw);
}

void *hdl_pages_alloc(int64_t n_bytes)
{
    atomic_fetch_add(&n_allocs, 1);
    void *ptr = MAP_FAILED;
    if (atomic_load(&fail_at) <= 0 || atomic_fetch_sub(&fail_at, 1) != 1)
        ptr = mmap(NULL, (size_t)HDL_MAX(n_bytes, 1), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ptr == MAP_FAILED) {
        hdl_fail(
            HEDDLE_E_NOMEM,
            "out of memory: %lld bytes of address space: a limit on it (ulimit -v) counts what is reserved and "
            "not yet used, too",
            (long long)n_bytes);
        return NULL;
    }
    atomic_fetch_add(&live_bytes, n_bytes);
    return ptr;
}

void hdl_pages_free(void *ptr, int64_t n_bytes)
{
    if (!ptr) return;
    munmap(ptr, (size_t)HDL_MAX(n_bytes, 1));
    atomic_fetch_sub(&live_bytes, n_bytes);
}

char *hdl_strndup(const char *text, int64_t n_bytes)
{
    char *copy = hdl_calloc(n_bytes + 1, 1);
    if (copy) memcpy(copy, text, (size_t)n_bytes);
    return copy;
}

char *hdl_strdup(const char *text)
{
    return hdl_strndup(text, (int64_t)strlen(text));
}

int64_t hdl_mem_n_allocs(void)
{
    return atomic_load(&n_allocs);
}

int64_t hdl_mem_live_bytes(void)
{
    return atomic_load(&live_bytes);
}

void hdl_mem_fail_at(int64_t n)
{
    atomic_store(&fail_at, n);
}
