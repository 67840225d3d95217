/* pool.c - worker threads that are never waited for unless they hold a task.
 *
 * Each thread of a call has a share of the tasks, a contiguous run, in one 64-bit word:
 *
 *     generation (32 bits) | first task left (16) | end (16)        in units of `unit` tasks
 *
 * Its owner takes tasks from the front, so that it walks memory forwards; whoever has finished its
 * own takes from the end of another's. Both by compare-and-swap; the caller does the same and returns
 * when every task is done. A worker that the system does not run therefore delays nobody: a barrier,
 * as OpenMP's, makes each of the ~150 short regions of a decode step wait for the slowest thread to
 * be scheduled (docs/decisions/0001-thread-pool.md has the measurement).
 *
 * Why the generation is in the word: a late worker may still look at the call before. It either sees
 * that nothing is left or loses its compare-and-swap; fn and arg are read only after a task is held,
 * and cannot change until that task is done.
 *
 * Workers spin briefly (decode regions follow each other within microseconds) and then sleep on a
 * futex. Before that they fetch what the caller said they will read next (hdl_pool_ahead), so that
 * memory is busy between the calls too. One caller at a time uses the workers; a second caller, or a
 * nested call, runs its tasks itself. After fork() the child starts its own workers. */
#include "base/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/env.h"

enum { SPINS_BEFORE_SLEEP = 4000, SPINS_BEFORE_YIELD = 2000, LINE = 64, MAX_UNITS = 0xffff };

typedef struct share {
    _Alignas(2 * LINE) _Atomic uint64_t word; /* apart: the hardware fetches lines in pairs */
    _Atomic(const uint8_t *) ahead;           /* what this thread reads in the next call */
    _Atomic int64_t ahead_bytes;
} share;

static struct pool {
    _Atomic uint32_t generation; /* what sleepers sleep on */
    _Atomic uint32_t n_sleeping;
    int64_t n_tasks, unit; /* tasks of the call; tasks taken together */
    _Atomic int n_wanted;  /* threads of this call; workers from n_wanted on stay out */
    void (*fn)(void *arg, int64_t task, int thread);
    void *arg;
    atomic_flag is_busy;
    int n_workers; /* started; worker i has thread number i + 1 */
    pid_t owner;
    _Alignas(2 * LINE) _Atomic int64_t n_done; /* units */
    share shares[HDL_MAX_THREADS];
} pool = {.is_busy = ATOMIC_FLAG_INIT};

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Takes a unit of a share, the first or the last; -1 when none is left. */
static int64_t take(share *from, uint32_t generation, bool is_own)
{
    uint64_t word = atomic_load_explicit(&from->word, memory_order_acquire);
    for (;;) {
        uint32_t first = (uint32_t)word >> 16, end = (uint32_t)word & MAX_UNITS;
        if ((uint32_t)(word >> 32) != generation || first == end) return -1;
        uint64_t less = is_own ? word + (1u << 16) : word - 1;
        if (atomic_compare_exchange_weak_explicit(&from->word, &word, less, memory_order_acq_rel,
                                                  memory_order_acquire))
            return is_own ? first : end - 1;
    }
}

static void run_tasks(int thread, uint32_t generation)
{
    const int n = atomic_load(&pool.n_wanted);
    for (int i = 0; i < n; i++) {
        int owner = (thread + i) % n;
        for (int64_t at; (at = take(&pool.shares[owner], generation, i == 0)) >= 0;) {
            int64_t task = at * pool.unit, end = HDL_MIN(task + pool.unit, pool.n_tasks);
            for (; task < end; task++) pool.fn(pool.arg, task, thread);
            atomic_fetch_add_explicit(&pool.n_done, 1, memory_order_release);
        }
    }
}

/* Fetches what this thread reads next, until a call begins. */
static void fetch_ahead(int thread, uint32_t seen)
{
    const share *own = &pool.shares[thread];
    const uint8_t *p = atomic_load_explicit(&own->ahead, memory_order_relaxed);
    int64_t n = atomic_load_explicit(&own->ahead_bytes, memory_order_relaxed);
    for (int64_t i = 0; i < n; i += 4 * LINE) {
        if (atomic_load_explicit(&pool.generation, memory_order_relaxed) != seen) return;
        for (int line = 0; line < 4; line++) __builtin_prefetch(p + i + line * LINE, 0, 2);
    }
}

/* Sleepers are told apart by a bit each, so that a call wakes those that it has work for. */
static uint32_t bit_of(int thread)
{
    return UINT32_C(1) << (thread & 31);
}

static void sleep_until_not(uint32_t seen, int thread)
{
    atomic_fetch_add(&pool.n_sleeping, 1);
    syscall(SYS_futex, &pool.generation, FUTEX_WAIT_BITSET_PRIVATE, seen, NULL, NULL, bit_of(thread));
    atomic_fetch_sub(&pool.n_sleeping, 1);
}

static void *worker_main(void *arg)
{
    int thread = (int)(intptr_t)arg;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = atomic_load_explicit(&pool.generation, memory_order_acquire);
        if (now == seen) fetch_ahead(thread, seen);
        for (int spin = 0; now == seen && spin < SPINS_BEFORE_SLEEP; spin++) {
            cpu_pause();
            now = atomic_load_explicit(&pool.generation, memory_order_acquire);
        }
        if (now == seen) {
            sleep_until_not(seen, thread);
            continue;
        }
        seen = now;
        if (thread < atomic_load(&pool.n_wanted)) run_tasks(thread, seen);
    }
    return NULL;
}

/* Called with is_busy held. Fewer workers than wanted is not an error: the caller does their share. */
static void start_workers(int n_wanted)
{
    if (pool.owner != getpid()) { /* the first call, or the first after fork() */
        pool.owner = getpid();
        pool.n_workers = 0;
        atomic_store(&pool.n_sleeping, 0);
    }
    while (pool.n_workers < n_wanted - 1) {
        pthread_t thread;
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &attr, worker_main, (void *)(intptr_t)(pool.n_workers + 1));
        pthread_attr_destroy(&attr);
        if (failed) break;
        pool.n_workers++;
    }
}

static int64_t unit_of(int64_t n_tasks)
{
    return n_tasks / MAX_UNITS + 1;
}

int64_t hdl_pool_share(int thread, int n_threads, int64_t n_tasks)
{
    const int64_t unit = unit_of(n_tasks), n_units = (n_tasks + unit - 1) / unit;
    return HDL_MIN(thread * n_units / n_threads * unit, n_tasks);
}

void hdl_pool_ahead(int thread, const void *data, int64_t n_bytes)
{
    atomic_store_explicit(&pool.shares[thread].ahead, data, memory_order_relaxed);
    atomic_store_explicit(&pool.shares[thread].ahead_bytes, n_bytes, memory_order_relaxed);
}

static void run_shared(int n_threads, int64_t n_tasks, void (*fn)(void *, int64_t, int), void *arg)
{
    start_workers(n_threads);
    uint32_t generation = atomic_load(&pool.generation) + 1;
    const int64_t unit = unit_of(n_tasks), n_units = (n_tasks + unit - 1) / unit;
    pool.fn = fn;
    pool.arg = arg;
    pool.n_tasks = n_tasks;
    pool.unit = unit;
    atomic_store(&pool.n_done, 0);
    atomic_store(&pool.n_wanted, n_threads);
    for (int i = 0; i < n_threads; i++) {
        uint64_t first = (uint64_t)(i * n_units / n_threads), end = (uint64_t)((i + 1) * n_units / n_threads);
        atomic_store_explicit(&pool.shares[i].word, (uint64_t)generation << 32 | first << 16 | end,
                              memory_order_release);
    }
    atomic_store(&pool.generation, generation);
    uint32_t wanted = n_threads >= 32 ? UINT32_MAX : (bit_of(n_threads) - 1) & ~bit_of(0);
    if (atomic_load(&pool.n_sleeping))
        syscall(SYS_futex, &pool.generation, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, NULL, NULL, wanted);
    run_tasks(0, generation);
    for (int spin = 0; atomic_load_explicit(&pool.n_done, memory_order_acquire) < n_units; spin++) {
        if (spin < SPINS_BEFORE_YIELD)
            cpu_pause();
        else
            sched_yield();
    }
}

void hdl_parallel_for(int n_threads, int64_t n_tasks, void (*fn)(void *arg, int64_t task, int thread),
                      void *arg)
{
    n_threads = (int)HDL_MIN((int64_t)n_threads, n_tasks);
    bool is_shared = n_threads > 1 && !atomic_flag_test_and_set(&pool.is_busy);
    if (!is_shared) {
        for (int64_t task = 0; task < n_tasks; task++) fn(arg, task, 0);
        return;
    }
    run_shared(n_threads, n_tasks, fn, arg);
    atomic_flag_clear(&pool.is_busy);
}

int hdl_default_threads(void)
{
    int64_t n = hdl_env()->n_threads;
    cpu_set_t set;
    if (n <= 0) n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return (int)HDL_MIN(HDL_MAX(n, 1), (int64_t)HDL_MAX_THREADS);
}
