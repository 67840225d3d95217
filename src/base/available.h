/* available.h - how much memory this process can still get: the system's and its control groups'. */
#ifndef HDL_AVAILABLE_H
#define HDL_AVAILABLE_H

#include "base/base.h"

/* The least of MemAvailable and the room in every memory control group (v1 and v2) that the process
 * is in, file pages that can be dropped counted as free. INT64_MAX where nothing is known. `root` is
 * put before every path: "" for the machine, a folder for tests. */
int64_t hdl_available_bytes(const char *root);

#endif
