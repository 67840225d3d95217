/* base.h - fixed-width types and every macro of the project.
 *
 * HDL_TRY returns early and so may be used only before anything is owned; after that a function
 * keeps its locals zeroed at the top and leaves through one label `done:`. */
#ifndef HDL_BASE_H
#define HDL_BASE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heddle_status.h"

#define HDL_TRY(expr)                                                                                        \
    do {                                                                                                     \
        heddle_status hdl_try_status_ = (expr);                                                              \
        if (hdl_try_status_) return hdl_try_status_;                                                         \
    } while (0)
#define HDL_FAIL(code, ...) hdl_fail((code), __VA_ARGS__)
/* At the head of a public function: each of these pointers is given, or INVALID names the one that is not. */
#define HDL_GIVEN(...)                                                                                       \
    HDL_TRY(hdl_given(__func__, #__VA_ARGS__, (const void *const[]){__VA_ARGS__},                            \
                      HDL_COUNT(((const void *const[]){__VA_ARGS__}))))
#define HDL_ASSERT(cond)            assert(cond) /* our own bugs only; user input is never asserted */
#define HDL_MIN(a, b)               ((a) < (b) ? (a) : (b))
#define HDL_MAX(a, b)               ((a) > (b) ? (a) : (b))
#define HDL_COUNT(array)            ((int64_t)(sizeof(array) / sizeof((array)[0])))
#define HDL_ALIGN_UP(n, a)          (((n) + (a)-1) / (a) * (a))
#define HDL_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))

/* Stores the sentence for this thread and returns `code`. */
heddle_status hdl_fail(heddle_status code, const char *fmt, ...) HDL_PRINTF(2, 3);
/* `names` are those of the pointers, ", " between them. */
heddle_status hdl_given(const char *function, const char *names, const void *const *pointers, int64_t n);
/* The last sentence of this thread; never NULL. Borrowed until the next failure on the thread. */
const char *hdl_last_error(void);
void hdl_clear_error(void);
const char *hdl_status_name(heddle_status status);

#endif
