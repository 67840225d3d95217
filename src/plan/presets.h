/* presets.h - the plan files of plans/, embedded in the build by tools/embed_plans. */
#ifndef HDL_PRESETS_H
#define HDL_PRESETS_H

#include "base/base.h"

typedef struct hdl_embedded_plan {
    const char *name; /* file name without .json */
    const char *text;
    int64_t n_bytes;
} hdl_embedded_plan;

extern const hdl_embedded_plan hdl_embedded_plans[]; /* sorted by name, NULL-name terminated */

#endif
