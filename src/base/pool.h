/* pool.h - threads: one parallel_for over a pool of workers.
 *
 * Tasks are handed out in order, one at a time, to whichever thread is free; a task must write
 * only what is its own, so results do not depend on the number of threads. */
#ifndef HDL_POOL_H
#define HDL_POOL_H

#include "base/base.h"

enum { HDL_MAX_THREADS = 256 };

/* Runs fn(arg, task, thread) for task = 0..n_tasks-1 on at most n_threads threads; `thread` is
 * 0..n_threads-1 and selects per-thread scratch. Runs inline when n_tasks or n_threads is 1. */
void hdl_parallel_for(int n_threads, int64_t n_tasks, void (*fn)(void *arg, int64_t task, int thread),
                      void *arg);
/* Threads to use by default: HEDDLE_THREADS, else the processors this process may run on. */
int hdl_default_threads(void);

#endif
