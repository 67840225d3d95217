/* fuzz_file.h - gives a reader of files the fuzzer's bytes, through a file in memory. */
#ifndef FUZZ_FILE_H
#define FUZZ_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Fills path with the name of a file that holds the bytes; close(*fd) removes it. */
static inline int fuzz_file_make(const uint8_t *data, size_t size, int *fd, char path[64])
{
    *fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (*fd < 0) return 0;
    snprintf(path, 64, "/proc/self/fd/%d", *fd);
    if (write(*fd, data, size) == (ssize_t)size) return 1;
    close(*fd);
    return 0;
}

#endif
