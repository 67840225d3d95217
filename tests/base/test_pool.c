/* test_pool.c - every task once, whoever runs it; shares cover the tasks; nested and second callers. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/pool.h"

typedef struct counts {
    _Atomic int *done; /* [n_tasks] */
    int n_threads;
    _Atomic int wrong_threads;
    int64_t n_nested; /* tasks of a call inside each task */
} counts;

static void add_one(void *arg, int64_t task, int thread)
{
    counts *c = arg;
    (void)thread;
    atomic_fetch_add(&c->done[task], 1);
}

static void count_task(void *arg, int64_t task, int thread)
{
    counts *c = arg;
    if (thread < 0 || thread >= c->n_threads) atomic_fetch_add(&c->wrong_threads, 1);
    hdl_pool_ahead(thread, &c->done[task], 1 << 20); /* beyond the end: a hint is never read */
    if (!c->n_nested) {
        atomic_fetch_add(&c->done[task], 1);
        return;
    }
    counts inner = {.done = c->done + task * c->n_nested, .n_threads = c->n_threads};
    hdl_parallel_for(c->n_threads, c->n_nested, add_one, &inner);
}

static void check(int n_threads, int64_t n_tasks, int64_t n_nested)
{
    int64_t n = n_tasks * HDL_MAX(n_nested, 1);
    counts c = {.done = calloc((size_t)n + 1, sizeof *c.done), .n_threads = n_threads, .n_nested = n_nested};
    hdl_parallel_for(n_threads, n_tasks, count_task, &c);
    for (int64_t i = 0; i < n; i++)
        if (c.done[i] != 1)
            fail_msg("%d threads, %lld tasks: task %lld ran %d times", n_threads, (long long)n_tasks,
                     (long long)i, c.done[i]);
    assert_int_equal(c.done[n], 0);
    assert_int_equal(c.wrong_threads, 0);
    free(c.done);
}

static void test_every_task_runs_once(void **state)
{
    (void)state;
    const int threads[] = {1, 2, 3, 8, 61};
    const int64_t tasks[] = {0, 1, 2, 3, 7, 64, 1000};
    for (int64_t t = 0; t < HDL_COUNT(threads); t++)
        for (int64_t n = 0; n < HDL_COUNT(tasks); n++)
            for (int again = 0; again < 20; again++) check(threads[t], tasks[n], 0);
}

/* A share's word counts units of 16 bits: above 65535 tasks a unit is several tasks. */
static void test_more_tasks_than_a_word_counts(void **state)
{
    (void)state;
    const int64_t tasks[] = {65534, 65535, 65536, 131070, 131071, 500001};
    for (int64_t n = 0; n < HDL_COUNT(tasks); n++) check(3, tasks[n], 0);
}

static void test_shares_cover_the_tasks(void **state)
{
    (void)state;
    const int64_t tasks[] = {0, 1, 5, 64, 65535, 65536, 1000001};
    for (int n_threads = 1; n_threads <= 9; n_threads++)
        for (int64_t n = 0; n < HDL_COUNT(tasks); n++) {
            assert_int_equal(hdl_pool_share(0, n_threads, tasks[n]), 0);
            assert_int_equal(hdl_pool_share(n_threads, n_threads, tasks[n]), tasks[n]);
            for (int t = 0; t < n_threads; t++)
                assert_true(hdl_pool_share(t, n_threads, tasks[n]) <=
                            hdl_pool_share(t + 1, n_threads, tasks[n]));
        }
}

static void test_a_call_inside_a_task(void **state)
{
    (void)state;
    for (int again = 0; again < 20; again++) check(4, 20, 30);
}

static void *call_again(void *arg)
{
    (void)arg;
    for (int again = 0; again < 200; again++) check(3, 40, 0);
    return NULL;
}

static void test_two_callers(void **state)
{
    (void)state;
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, call_again, NULL), 0);
    call_again(NULL);
    pthread_join(other, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_runs_once),
        cmocka_unit_test(test_more_tasks_than_a_word_counts),
        cmocka_unit_test(test_shares_cover_the_tasks),
        cmocka_unit_test(test_a_call_inside_a_task),
        cmocka_unit_test(test_two_callers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
