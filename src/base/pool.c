#include "base/pool.h"

#include <omp.h>

#include "base/env.h"

void hdl_parallel_for(int n_threads, int64_t n_tasks, void (*fn)(void *arg, int64_t task, int thread), void *arg)
{
    if (n_threads <= 1 || n_tasks <= 1) {
        for (int64_t task = 0; task < n_tasks; task++) fn(arg, task, 0);
        return;
    }
    int team = (int)HDL_MIN((int64_t)n_threads, n_tasks);
#pragma omp parallel num_threads(team)
    {
        int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < n_tasks; task++) fn(arg, task, thread);
    }
}

int hdl_default_threads(void)
{
    int64_t n = hdl_env()->n_threads;
    if (n <= 0) n = omp_get_num_procs();
    return (int)HDL_MIN(HDL_MAX(n, 1), (int64_t)HDL_MAX_THREADS);
}
