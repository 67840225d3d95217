/* heddle_status.h - the status codes, shared by the public API and every layer below it.
 *
 * Every fallible function returns a heddle_status: 0 is success, negative is failure, and the
 * sentence that goes with a failure is read with heddle_last_error() on the same thread. */
#ifndef HEDDLE_STATUS_H
#define HEDDLE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heddle_status {
    HEDDLE_OK = 0,
    HEDDLE_E_INVALID = -1,     /* an argument, option or plan that cannot be honoured */
    HEDDLE_E_NOMEM = -2,       /* memory could not be had; nothing was changed */
    HEDDLE_E_IO = -3,          /* the operating system refused a file */
    HEDDLE_E_FORMAT = -4,      /* a file is damaged or is not what it says */
    HEDDLE_E_UNSUPPORTED = -5, /* a valid request for something this build does not do */
    HEDDLE_E_CAPACITY = -6,    /* a context, batch or page store is full */
    HEDDLE_E_DEVICE = -7,      /* the accelerator failed */
    HEDDLE_E_BUSY = -8,        /* the object is still used by another */
    HEDDLE_E_CANCELLED = -9,   /* stopped on request; what was done before is kept */
    HEDDLE_E_INTERNAL = -10    /* a bug of ours */
} heddle_status;

#ifdef __cplusplus
}
#endif
#endif
