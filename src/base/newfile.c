#include "base/newfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

enum { N_TRIES = 8 };

static heddle_status io_fail(const char *path, const char *what)
{
    return HDL_FAIL(HEDDLE_E_IO, "%s: %s: %s", path, what, strerror(errno));
}

static void close_all(hdl_newfile *file)
{
    if (file->fd >= 0) close(file->fd);
    hdl_free(file->path);
    hdl_free(file->part);
    file->path = file->part = NULL;
    file->fd = -1;
}

/* Opens and locks PATH.part. Between the two another writer may have renamed the file that was
 * opened, so the lock counts only if the name still leads to it. */
static heddle_status open_part(hdl_newfile *file)
{
    struct stat opened, named;
    for (int i = 0; i < N_TRIES; i++) {
        file->fd = open(file->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (file->fd < 0) return io_fail(file->part, "cannot be written");
        if (flock(file->fd, LOCK_EX | LOCK_NB))
            return HDL_FAIL(HEDDLE_E_BUSY, "%s: is being written by another process", file->path);
        if (!fstat(file->fd, &opened) && !stat(file->part, &named) && opened.st_ino == named.st_ino &&
            opened.st_dev == named.st_dev) {
            if (!S_ISREG(opened.st_mode))
                return HDL_FAIL(HEDDLE_E_INVALID, "%s: is not a regular file", file->part);
            return ftruncate(file->fd, 0) ? io_fail(file->part, "cannot be written") : HEDDLE_OK;
        }
        close(file->fd);
        file->fd = -1;
    }
    return HDL_FAIL(HEDDLE_E_BUSY, "%s: is being written by other processes", file->path);
}

heddle_status hdl_newfile_check(const char *path, const char *magic)
{
    struct stat facts;
    if (!*path) return HDL_FAIL(HEDDLE_E_INVALID, "the file's path is empty");
    if (stat(path, &facts)) {
        if (!lstat(path, &facts) && S_ISLNK(facts.st_mode))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s: is a symbolic link that leads nowhere", path);
        return HEDDLE_OK;
    }
    if (!S_ISREG(facts.st_mode))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: is not a regular file, which alone can be replaced", path);
    char first[HDL_MAGIC_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_fail(path, "is there and cannot be read");
    ssize_t n = read(fd, first, sizeof first);
    close(fd);
    if (n < 0) return io_fail(path, "cannot be read");
    if (n && (n < (ssize_t)sizeof first || memcmp(first, magic, sizeof first) != 0))
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s: is there and is no file of the kind that would replace it: name another, or remove it",
            path);
    return HEDDLE_OK;
}

/* The file that a symbolic link leads to: it is replaced, the link stays. NULL: path is no link. */
static heddle_status follow_link(const char *path, char **target)
{
    struct stat facts;
    *target = NULL;
    if (lstat(path, &facts) || !S_ISLNK(facts.st_mode)) return HEDDLE_OK;
    char *resolved = realpath(path, NULL);
    if (!resolved) return io_fail(path, "cannot be followed");
    *target = hdl_strdup(resolved);
    free(resolved); /* not hdl_free: realpath made it */
    return *target ? HEDDLE_OK : HEDDLE_E_NOMEM;
}

heddle_status hdl_newfile_open(hdl_newfile *file, const char *path, const char *magic)
{
    *file = (hdl_newfile){.fd = -1};
    HDL_TRY(hdl_newfile_check(path, magic));
    char *target = NULL;
    HDL_TRY(follow_link(path, &target));
    file->path = target ? target : hdl_strdup(path);
    int64_t n = file->path ? (int64_t)strlen(file->path) : 0;
    file->part = hdl_calloc(n + (int64_t)sizeof ".part", 1);
    heddle_status status = HEDDLE_E_NOMEM;
    if (file->path && file->part) {
        memcpy(file->part, file->path, (size_t)n);
        memcpy(file->part + n, ".part", sizeof ".part");
        hdl_hasher_init(&file->hasher);
        status = open_part(file);
    }
    if (status) close_all(file);
    return status;
}

heddle_status hdl_newfile_write(hdl_newfile *file, const void *bytes, int64_t n)
{
    const char *at = bytes;
    hdl_hasher_add(&file->hasher, bytes, n);
    file->n_bytes += n;
    while (n > 0) {
        ssize_t done = write(file->fd, at, (size_t)HDL_MIN(n, (int64_t)1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return io_fail(file->part, "cannot be written");
        at += done;
        n -= done;
    }
    return HEDDLE_OK;
}

/* The rename itself is on the disk only when the folder is. */
static heddle_status sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? hdl_strndup(path, HDL_MAX(slash - path, 1)) : hdl_strdup(".");
    if (!folder) return HEDDLE_E_NOMEM;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    heddle_status status = HEDDLE_OK;
    /* some file systems cannot flush a folder (EINVAL); the rename is then as safe as they make it */
    if (fd < 0 || (fsync(fd) && errno != EINVAL)) status = io_fail(folder, "cannot be flushed");
    if (fd >= 0) close(fd);
    hdl_free(folder);
    return status;
}

heddle_status hdl_newfile_finish(hdl_newfile *file)
{
    heddle_status status = HEDDLE_OK;
    if (fsync(file->fd)) status = io_fail(file->part, "cannot be flushed to the disk");
    if (!status && rename(file->part, file->path)) status = io_fail(file->path, "cannot be replaced");
    if (status) {
        hdl_newfile_discard(file);
        return status;
    }
    status = sync_folder(file->path);
    close_all(file);
    return status;
}

void hdl_newfile_discard(hdl_newfile *file)
{
    if (file->fd >= 0) unlink(file->part);
    close_all(file);
}
