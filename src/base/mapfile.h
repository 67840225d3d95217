/* mapfile.h - a file mapped read-only. Weights are used in place and never copied. */
#ifndef HDL_MAPFILE_H
#define HDL_MAPFILE_H

#include "base/base.h"

typedef struct hdl_mapfile {
    const uint8_t *data; /* [n_bytes], page aligned; NULL for an empty file */
    int64_t n_bytes;
} hdl_mapfile;

heddle_status hdl_mapfile_open(hdl_mapfile *map, const char *path);
void hdl_mapfile_close(hdl_mapfile *map);
/* True when [offset, offset + n) lies inside the file; safe for any int64 values. */
bool hdl_mapfile_holds(const hdl_mapfile *map, int64_t offset, int64_t n);

#endif
