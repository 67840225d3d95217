/* pool.h - threads: one parallel_for over a pool of workers.
 *
 * Every thread has a share of the tasks, a contiguous run, and takes them in ascending order; a thread
 * that has finished its own takes the last ones of others. A task must write only what is its own, so
 * results do not depend on the number of threads. */
#ifndef HDL_POOL_H
#define HDL_POOL_H

#include "base/base.h"

enum { HDL_MAX_THREADS = 256 };

/* Runs fn(arg, task, thread) for task = 0..n_tasks-1 on at most n_threads threads; `thread` is
 * 0..n_threads-1 and selects per-thread scratch. Runs inline when n_tasks or n_threads is 1. */
void hdl_parallel_for(int n_threads, int64_t n_tasks, void (*fn)(void *arg, int64_t task, int thread),
                      void *arg);
/* The first task of a thread's share of a call; that of thread n_threads is n_tasks. */
int64_t hdl_pool_share(int thread, int n_threads, int64_t n_tasks);
/* From inside a task: this thread will read these bytes early in the next call. It fetches them into
 * its cache while it waits. A hint that holds until the next one; the bytes need not be mapped. */
void hdl_pool_ahead(int thread, const void *data, int64_t n_bytes);
/* Threads to use by default: HEDDLE_THREADS, else the processors this process may run on. */
int hdl_default_threads(void);

#endif
