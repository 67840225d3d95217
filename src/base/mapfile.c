#include "base/mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

heddle_status hdl_mapfile_open(hdl_mapfile *map, const char *path)
{
    *map = (hdl_mapfile){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return HDL_FAIL(HEDDLE_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    heddle_status status = HEDDLE_OK;
    struct stat st;
    void *data;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        status = HDL_FAIL(HEDDLE_E_IO, "%s: is not a regular file", path);
        goto done;
    }
    if (st.st_size == 0) goto done;
    data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        status = HDL_FAIL(HEDDLE_E_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        goto done;
    }
    map->data = data;
    map->n_bytes = st.st_size;
done:
    close(fd);
    return status;
}

void hdl_mapfile_close(hdl_mapfile *map)
{
    if (map->data) munmap((void *)map->data, (size_t)map->n_bytes);
    *map = (hdl_mapfile){0};
}

bool hdl_mapfile_holds(const hdl_mapfile *map, int64_t offset, int64_t n)
{
    return offset >= 0 && n >= 0 && offset <= map->n_bytes && n <= map->n_bytes - offset;
}
