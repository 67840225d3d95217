/* newfile.h - a file that is there whole or not at all.
 *
 * The bytes go to "PATH.part" beside it; finish flushes them to the disk, renames, and flushes the
 * folder. A crash or a full disk at any time leaves the old PATH as it was; a left-over PATH.part is
 * used up by the next writer. Where PATH is a symbolic link, all this is of the file that it leads to
 * and the link stays. Two writers of one PATH exclude each other (BUSY). The sum of the bytes written
 * so far is at hand, for a trailer. */
#ifndef HDL_NEWFILE_H
#define HDL_NEWFILE_H

#include "base/hash.h"

typedef struct hdl_newfile {
    char *path, *part; /* owned */
    int fd;
    int64_t n_bytes;
    hdl_hasher hasher;
} hdl_newfile;

enum { HDL_MAGIC_BYTES = 8 };

/* Refuses a path that is something else than nothing, an empty regular file or one that begins with magic
 * [HDL_MAGIC_BYTES]: a user's text named by mistake is not replaced (INVALID). So is a link to nothing. */
heddle_status hdl_newfile_check(const char *path, const char *magic);
/* Checks the path in this way and begins; the caller writes the magic as the rest. */
heddle_status hdl_newfile_open(hdl_newfile *file, const char *path, const char *magic);
heddle_status hdl_newfile_write(hdl_newfile *file, const void *bytes, int64_t n);
/* Either of the two closes it; a failed finish discards. */
heddle_status hdl_newfile_finish(hdl_newfile *file);
void hdl_newfile_discard(hdl_newfile *file);

#endif
