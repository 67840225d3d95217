/* tiny_engine.h - what tests of sessions share: a small random model of tests/golden/tiny, and how far apart rows are. */
#ifndef HDL_TEST_TINY_ENGINE_H
#define HDL_TEST_TINY_ENGINE_H

#include <math.h>
#include <stdio.h>

#include "engine/engine_int.h"

/* The caller closes it; the test fails where it cannot be opened. */
static inline heddle_engine *tiny_engine(const char *folder, int32_t n_threads)
{
    char path[512];
    heddle_engine *engine;
    heddle_engine_options options;
    heddle_engine_options_default(&options);
    options.n_threads = n_threads;
    snprintf(path, sizeof path, "%s/golden/tiny/%s", HDL_TEST_DATA, folder);
    if (heddle_engine_open(&engine, path, &options)) fail_msg("%s", heddle_last_error());
    return engine;
}

static inline double max_abs(const float *a, const float *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        worst = !(d <= worst) ? d : worst; /* NaN stays */
    }
    return worst;
}

#endif
