/* A new file is there whole or not at all; its sum is XXH3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mapfile.h"
#include "base/newfile.h"
#include "tiny_model.h"

static char folder[512], path[600], part[640];

static void assert_holds(const char *text)
{
    hdl_mapfile map;
    assert_int_equal(hdl_mapfile_open(&map, path), HEDDLE_OK);
    assert_int_equal(map.n_bytes, strlen(text));
    assert_memory_equal(map.data, text, strlen(text));
    hdl_mapfile_close(&map);
}

#define KIND "HDLTESTS" /* how its files begin */

static void write_whole(const char *text)
{
    hdl_newfile file;
    assert_int_equal(hdl_newfile_open(&file, path, KIND), HEDDLE_OK);
    assert_int_equal(hdl_newfile_write(&file, text, (int64_t)strlen(text)), HEDDLE_OK);
    assert_int_equal(file.n_bytes, strlen(text));
    assert_int_equal(hdl_newfile_finish(&file), HEDDLE_OK);
}

/* The sums of xxHash's own tool: `printf heddle | xxhsum -H3`. */
static void test_sums_are_xxh3(void **state)
{
    (void)state;
    assert_true(hdl_hash("", 0) == 0x2D06800538D394C2u);
    assert_true(hdl_hash("heddle", 6) == 0xC9FCBD7FE1CF1FD8u);
    static uint8_t bytes[5000];
    for (int i = 0; i < 5000; i++) bytes[i] = (uint8_t)(i * 7 + i / 256);
    for (int step = 1; step < 5000; step = step * 3 + 1) { /* in pieces as at once */
        hdl_hasher hasher;
        hdl_hasher_init(&hasher);
        for (int at = 0; at < 5000; at += step)
            hdl_hasher_add(&hasher, bytes + at, at + step > 5000 ? 5000 - at : step);
        assert_true(hdl_hasher_sum(&hasher) == hdl_hash(bytes, 5000));
    }
}

static void test_a_file_is_replaced_only_when_finished(void **state)
{
    hdl_newfile file;
    (void)state;
    write_whole(KIND "first");
    assert_int_equal(hdl_newfile_open(&file, path, KIND), HEDDLE_OK);
    assert_int_equal(hdl_newfile_write(&file, KIND "second", 14), HEDDLE_OK);
    assert_holds(KIND "first");
    hdl_newfile_discard(&file);
    assert_holds(KIND "first");
    assert_int_equal(access(part, F_OK), -1);
    write_whole(KIND "second");
    assert_holds(KIND "second");
    assert_int_equal(access(part, F_OK), -1);
}

/* Through a link the file that it leads to is written beside and replaced; a link to nothing is refused. */
static void test_a_link_stays(void **state)
{
    char link[700], target[640];
    hdl_newfile file;
    struct stat facts;
    (void)state;
    snprintf(target, sizeof target, "%s/aim", folder);
    snprintf(link, sizeof link, "%s", path);
    unlink(path);
    assert_int_equal(symlink("aim", link), 0); /* relative, as ln -s makes them */
    assert_int_equal(hdl_newfile_open(&file, path, KIND), HEDDLE_E_INVALID);
    assert_non_null(strstr(hdl_last_error(), "is a symbolic link that leads nowhere"));
    assert_int_equal(access(target, F_OK), -1);
    fclose(fopen(target, "w"));
    write_whole(KIND "through");
    assert_holds(KIND "through");
    assert_int_equal(lstat(link, &facts), 0);
    assert_true(S_ISLNK(facts.st_mode));
    assert_int_equal(lstat(target, &facts), 0);
    assert_true(S_ISREG(facts.st_mode) && facts.st_size == (int64_t)strlen(KIND "through"));
    unlink(link);
    unlink(target);
}

static void test_two_writers_exclude_each_other(void **state)
{
    hdl_newfile a, b;
    (void)state;
    assert_int_equal(hdl_newfile_open(&a, path, KIND), HEDDLE_OK);
    assert_int_equal(hdl_newfile_open(&b, path, KIND), HEDDLE_E_BUSY);
    assert_int_equal(hdl_newfile_write(&a, KIND "third", 13), HEDDLE_OK);
    assert_int_equal(hdl_newfile_finish(&a), HEDDLE_OK);
    assert_holds(KIND "third");
    write_whole(KIND "fourth");
    assert_holds(KIND "fourth");
}

/* A child dies in the middle of writing (a file size limit kills it); then the same limit as an
 * error, like a full disk. */
static void test_a_crash_or_a_full_disk_leaves_the_old_file(void **state)
{
    (void)state;
    write_whole(KIND "old");
    for (int is_killed = 1; is_killed >= 0; is_killed--) {
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            struct rlimit limit = {4096, 4096};
            static char bytes[20000];
            hdl_newfile file;
            setrlimit(RLIMIT_FSIZE, &limit);
            signal(SIGXFSZ, is_killed ? SIG_DFL : SIG_IGN);
            if (hdl_newfile_open(&file, path, KIND)) _exit(2);
            heddle_status status = hdl_newfile_write(&file, bytes, sizeof bytes);
            hdl_newfile_discard(&file);
            _exit(status == HEDDLE_E_IO ? 0 : 3);
        }
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(is_killed ? WIFSIGNALED(how) && WTERMSIG(how) == SIGXFSZ
                              : WIFEXITED(how) && WEXITSTATUS(how) == 0);
        assert_holds(KIND "old");
        assert_int_equal(access(part, F_OK), is_killed ? 0 : -1);
    }
    write_whole(KIND "new"); /* what the crash left behind is in nobody's way */
    assert_holds(KIND "new");
    assert_int_equal(access(part, F_OK), -1);
}

/* A text named by mistake, one cut before its magic ends; an empty file may go. */
static void test_only_files_of_its_kind_are_replaced(void **state)
{
    static const struct {
        const char *text;
        heddle_status status;
    } cases[] = {{"The user's own text.", HEDDLE_E_INVALID}, {"HDLTEST", HEDDLE_E_INVALID}, {"", HEDDLE_OK}};
    hdl_newfile file;
    (void)state;
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        FILE *out = fopen(path, "wb");
        assert_non_null(out);
        assert_true(fputs(cases[i].text, out) >= 0);
        assert_int_equal(fclose(out), 0);
        assert_int_equal(hdl_newfile_open(&file, path, KIND), cases[i].status);
        if (!cases[i].status) hdl_newfile_discard(&file);
        assert_holds(cases[i].text);
    }
    assert_int_equal(unlink(path), 0);
}

/* A new file has the modes that the user's umask leaves, like what other programs write. */
static void test_modes_are_the_users(void **state)
{
    struct stat facts;
    (void)state;
    mode_t before = umask(027);
    write_whole(KIND "modes");
    umask(before);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0640);
    assert_int_equal(unlink(path), 0);
}

static void test_only_regular_files_are_replaced(void **state)
{
    hdl_newfile file;
    (void)state;
    assert_int_equal(hdl_newfile_open(&file, folder, KIND), HEDDLE_E_INVALID);
    assert_int_equal(hdl_newfile_open(&file, "/dev/null", KIND), HEDDLE_E_INVALID);
    assert_int_equal(hdl_newfile_open(&file, "", KIND), HEDDLE_E_INVALID);
    assert_int_equal(hdl_newfile_open(&file, "/no/such/folder/file", KIND), HEDDLE_E_IO);
    assert_int_equal(symlink("elsewhere", part), 0); /* a part file is never written through a link */
    assert_int_equal(hdl_newfile_open(&file, path, KIND), HEDDLE_E_IO);
    assert_int_equal(unlink(part), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_are_xxh3),
        cmocka_unit_test(test_a_file_is_replaced_only_when_finished),
        cmocka_unit_test(test_a_link_stays),
        cmocka_unit_test(test_two_writers_exclude_each_other),
        cmocka_unit_test(test_a_crash_or_a_full_disk_leaves_the_old_file),
        cmocka_unit_test(test_only_files_of_its_kind_are_replaced),
        cmocka_unit_test(test_modes_are_the_users),
        cmocka_unit_test(test_only_regular_files_are_replaced),
    };
    if (!tiny_make_folder(folder, sizeof folder)) return 1;
    snprintf(path, sizeof path, "%s/file", folder);
    snprintf(part, sizeof part, "%s.part", path);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tiny_remove_folder(folder);
    return failed;
}
