#include "base/env.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static hdl_env_vars vars;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void hdl_env_reload(void)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    const char *level = getenv("HEDDLE_LOG"), *threads = getenv("HEDDLE_THREADS");
    vars = (hdl_env_vars){.log_level = 1, .device = getenv("HEDDLE_DEVICE"), .impl = getenv("HEDDLE_IMPL")};
    for (int i = 0; level && i < HDL_COUNT(levels); i++)
        if (!strcmp(level, levels[i])) vars.log_level = i;
    if (threads) vars.n_threads = strtoll(threads, NULL, 10);
    if (vars.impl && !*vars.impl) vars.impl = NULL;
}

const hdl_env_vars *hdl_env(void)
{
    pthread_once(&once, hdl_env_reload);
    return &vars;
}
