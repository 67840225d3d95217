/* fuzz_safetensors.c - a safetensors file of any bytes. */
#include "fuzz_file.h"

#include <stdlib.h>

#include "model/safetensors.h"
#include "tensor/quant.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd;
    char path[64];
    if (!fuzz_file_make(data, size, &fd, path)) return 0;
    hdl_safetensors *file;
    hdl_safetensors_open(&file, path);
    for (int64_t i = 0; file && i < hdl_safetensors_n_tensors(file); i++) {
        hdl_tensor t;
        float first, last;
        const char *name = hdl_safetensors_tensor_at(file, i, &t);
        if (hdl_safetensors_find_tensor(file, name) != i) abort();
        if (!t.n_rows || !t.n_cols) continue;
        hdl_dequant_row(t.dtype, t.data, &first, 1);
        hdl_dequant_row(t.dtype, (const char *)t.data + t.n_rows * t.row_bytes - hdl_row_bytes(t.dtype, 1),
                        &last, 1);
    }
    hdl_safetensors_close(file);
    close(fd);
    return 0;
}
