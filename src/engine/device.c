/* device.c - what this machine can do: its instruction set and measured peaks. */
#include <stdio.h>
#include <string.h>

#include "backend/cpu/peaks.h"
#include "engine/engine_int.h"

heddle_status heddle_device_measure(heddle_device_peaks *peaks)
{
    hdl_peaks measured;
    HDL_GIVEN(peaks);
    heddle_device_peaks out = {0};
    heddle_status status = hdl_measure_peaks(&measured, 0);
    if (!status) {
        snprintf(out.isa, sizeof out.isa, "%s", hdl_isa_name(measured.isa));
        out.n_threads = measured.n_threads;
        out.read_bytes_per_s = measured.read[HDL_N_READ_SIZES - 1].gbs_all * 1e9;
        out.read_small_bytes_per_s = measured.read[HDL_N_READ_SIZES - 2].gbs_all * 1e9;
        out.fma_flops_per_s = measured.fma_gflops_all * 1e9;
        out.int8_ops_per_s = measured.int8_gops_all * 1e9;
    }
    hdl_give(peaks, &out, sizeof out);
    return status;
}

heddle_status heddle_device_describe(char **text)
{
    hdl_peaks peaks;
    hdl_buf buf = {0};
    HDL_GIVEN(text);
    *text = NULL;
    HDL_TRY(hdl_measure_peaks(&peaks, 0));
    hdl_buf_printf(&buf, "instructions %s, %d threads\n", hdl_isa_name(peaks.isa), peaks.n_threads);
    for (int i = 0; i < HDL_N_READ_SIZES; i++)
        hdl_buf_printf(&buf, "read, working set %6.1f MiB: %6.1f GB/s, one thread %6.1f\n",
                       (double)peaks.read[i].bytes / 0x1p20, peaks.read[i].gbs_all, peaks.read[i].gbs_one);
    hdl_buf_printf(&buf, "f32 multiply-add: %.0f GFLOP/s, one thread %.0f\n", peaks.fma_gflops_all,
                   peaks.fma_gflops_one);
    hdl_buf_printf(&buf, "int8 dot: %.0f GOP/s, one thread %.0f\n", peaks.int8_gops_all, peaks.int8_gops_one);
    heddle_status status = hdl_buf_status(&buf);
    if (status) hdl_buf_deinit(&buf);
    *text = buf.data;
    return status;
}
