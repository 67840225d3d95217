/* env.h - the environment variables of the library, all of them, read once and only here. */
#ifndef HDL_ENV_H
#define HDL_ENV_H

#include "base/base.h"

typedef struct hdl_env_vars {
    int log_level;      /* HEDDLE_LOG: error warn info debug -> 0..3; default warn (1) */
    int64_t n_threads;  /* HEDDLE_THREADS; 0 = all processors */
    const char *device; /* HEDDLE_DEVICE: "cpu" or NULL */
    const char *impl;   /* HEDDLE_IMPL: "ref", or a comma list of names, "-name" forbids; NULL = all */
} hdl_env_vars;

const hdl_env_vars *hdl_env(void);
/* For tests: read them again. */
void hdl_env_reload(void);

#endif
