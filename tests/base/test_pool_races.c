/* The thread pool: every task runs once, whatever the thread counts, sleepers and callers.
 * `make tsan` runs this under the thread sanitizer. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/pool.h"

enum { MAX_TASKS = 300 };

typedef struct call {
    int32_t n_runs[MAX_TASKS]; /* plain: a task that ran twice at once is a data race */
    int n_threads;
    _Atomic int n_bad_threads;
    int64_t first;
} call;

static void count(void *arg, int64_t task, int thread)
{
    call *at = arg;
    at->n_runs[task] += 1 + (int32_t)at->first;
    if (thread < 0 || thread >= at->n_threads) atomic_fetch_add(&at->n_bad_threads, 1);
}

static int n_wrong(call *at, int n_threads, int64_t n_tasks, int32_t first)
{
    int n = 0;
    memset(at, 0, sizeof *at);
    at->n_threads = n_threads;
    at->first = first; /* written here, read by every worker: must be seen */
    hdl_parallel_for(n_threads, n_tasks, count, at);
    for (int64_t i = 0; i < MAX_TASKS; i++) n += at->n_runs[i] != (i < n_tasks ? 1 + first : 0);
    return n + at->n_bad_threads;
}

static void test_every_task_runs_once(void **state)
{
    (void)state;
    static call at;
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 64, MAX_TASKS};
    for (int32_t round = 0; round < 300; round++)
        for (int n_threads = 1; n_threads <= 5; n_threads++)
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                assert_int_equal(n_wrong(&at, n_threads, sizes[s], round), 0);
}

/* Pauses let the workers fall asleep; a call for few threads must wake those, not others. */
static void test_sleepers_are_woken(void **state)
{
    (void)state;
    static call at;
    static const struct timespec pause = {.tv_nsec = 3000000};
    for (int32_t round = 0; round < 40; round++) {
        assert_int_equal(n_wrong(&at, 5, 64, round), 0);
        nanosleep(&pause, NULL);
        assert_int_equal(n_wrong(&at, 2, 64, round), 0);
        nanosleep(&pause, NULL);
    }
}

static void nested(void *arg, int64_t task, int thread)
{
    call *all = arg;
    (void)thread;
    all[task].first = n_wrong(&all[task], 3, 50, (int32_t)task);
}

static void test_nested_calls(void **state)
{
    (void)state;
    static call all[6];
    for (int round = 0; round < 50; round++) {
        hdl_parallel_for(3, 6, nested, all);
        for (int i = 0; i < 6; i++) assert_int_equal(all[i].first, 0);
    }
}

static void *caller(void *arg)
{
    call *at = arg;
    int64_t n = 0;
    for (int32_t round = 0; round < 400; round++) n += n_wrong(at, 3, 20 + round % 50, round);
    at->first = n;
    return NULL;
}

static void test_several_callers(void **state)
{
    (void)state;
    static call all[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, caller, &all[i]), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) assert_int_equal(all[i].first, 0);
}

static void test_a_child_has_workers_of_its_own(void **state)
{
    (void)state;
    static call at;
    assert_int_equal(n_wrong(&at, 3, 64, 0), 0);
    pid_t pid = fork();
    if (!pid) _exit(n_wrong(&at, 3, 64, 1) != 0);
    int result = -1;
    assert_int_equal(waitpid(pid, &result, 0), pid);
    assert_int_equal(result, 0);
    assert_int_equal(n_wrong(&at, 3, 64, 2), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_runs_once),
        cmocka_unit_test(test_sleepers_are_woken),
        cmocka_unit_test(test_nested_calls),
        cmocka_unit_test(test_several_callers),
        cmocka_unit_test(test_a_child_has_workers_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
