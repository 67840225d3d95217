/* Memory that can be had: made-up /proc and /sys trees, one a case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/available.h"

static char root[] = "/tmp/heddle-available-XXXXXX";

static void write_at(const char *path, const char *text)
{
    char whole[512];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    for (int i = (int)strlen(root) + 1; i < n; i++)
        if (whole[i] == '/') {
            whole[i] = 0;
            mkdir(whole, 0700);
            whole[i] = '/';
        }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void clear(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s/proc %s/sys", root, root);
    assert_int_equal(system(command), 0);
    write_at("/proc/meminfo", "MemTotal: 100 kB\nMemAvailable:   8000 kB\n");
}

#define KIB(n) ((int64_t)(n) << 10)

static void test_without_groups_it_is_what_the_system_says(void **state)
{
    (void)state;
    clear();
    assert_int_equal(hdl_available_bytes(root), KIB(8000));
    assert_true(hdl_available_bytes("/no/such/root") == INT64_MAX);
    assert_true(hdl_available_bytes("") > 0);
}

/* v2: the limit of a parent counts; file pages are not in the way; "max" is no limit. */
static void test_groups_of_version_2(void **state)
{
    (void)state;
    clear();
    write_at("/proc/self/cgroup", "0::/user/app\n");
    write_at("/proc/self/mountinfo",
             "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
    write_at("/sys/fs/cgroup/user/app/memory.max", "max\n");
    assert_int_equal(hdl_available_bytes(root), KIB(8000));
    write_at("/sys/fs/cgroup/user/memory.max", "4096000\n"); /* 4000 KiB */
    write_at("/sys/fs/cgroup/user/memory.current", "3072000\n");
    assert_int_equal(hdl_available_bytes(root), KIB(1000));
    write_at("/sys/fs/cgroup/user/memory.stat",
             "anon 1\nfile 2048000\ninactive_file 1024000\nactive_file 512000\nshmem 512000\n");
    assert_int_equal(hdl_available_bytes(root), KIB(2500));
    write_at("/sys/fs/cgroup/user/app/memory.max", "1024\n");
    write_at("/sys/fs/cgroup/user/app/memory.current", "2048\n"); /* over its limit: nothing is left */
    assert_int_equal(hdl_available_bytes(root), 0);
}

/* v1 in a container: /proc names the host's group, the mount shows it as its root. */
static void test_groups_of_version_1(void **state)
{
    (void)state;
    clear();
    write_at("/proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc/inner\n0::/\n");
    write_at("/proc/self/mountinfo",
             "33 20 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
             "34 20 0:31 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    write_at("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(hdl_available_bytes(root), KIB(8000));
    write_at("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "3072000\n");
    write_at("/sys/fs/cgroup/memory/inner/memory.usage_in_bytes", "1024000\n");
    write_at("/sys/fs/cgroup/memory/inner/memory.stat",
             "inactive_file 999999999\ntotal_inactive_file 102400\ntotal_active_file 0\n");
    assert_int_equal(hdl_available_bytes(root), KIB(2100));
    write_at("/proc/self/cgroup", "4:memory:/elsewhere\n"); /* not below the mount: its root is ours */
    write_at("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1024000\n");
    assert_int_equal(hdl_available_bytes(root), KIB(1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_groups_it_is_what_the_system_says),
        cmocka_unit_test(test_groups_of_version_2),
        cmocka_unit_test(test_groups_of_version_1),
    };
    if (!mkdtemp(root)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command) || failed;
}
