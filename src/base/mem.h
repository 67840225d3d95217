/* mem.h - the one door to the heap: counted, and breakable on purpose.
 *
 * Everything in src/ allocates here, so that a test can assert "a decode step allocates nothing"
 * and can make the n-th allocation fail for every n. Sizes are checked for overflow here. */
#ifndef HDL_MEM_H
#define HDL_MEM_H

#include "base/base.h"

/* Zeroed memory for n elements of `size` bytes, 64-byte aligned. NULL (and the thread's error
 * sentence set) when it cannot be had or n * size overflows. n = 0 gives a valid pointer. */
void *hdl_calloc(int64_t n, int64_t size);
/* Grows or shrinks; the new tail is zeroed. On failure NULL, and `ptr` is still valid. */
void *hdl_realloc(void *ptr, int64_t old_n, int64_t new_n, int64_t size);
void hdl_free(void *ptr); /* NULL is fine */
/* Zeroed pages straight from the system, committed by the first touch: for arenas sized by a limit
 * rather than by use. Free with the same n_bytes. Counted and breakable like hdl_calloc. */
void *hdl_pages_alloc(int64_t n_bytes);
void hdl_pages_free(void *ptr, int64_t n_bytes);
char *hdl_strdup(const char *text);
char *hdl_strndup(const char *text, int64_t n_bytes);

/* Counters since the process started. */
int64_t hdl_mem_n_allocs(void);
int64_t hdl_mem_live_bytes(void);
/* For tests: the n-th allocation from now (1 = the next) fails once; 0 switches it off. */
void hdl_mem_fail_at(int64_t n);

#endif
