/* peaks.h - what this host can do at best, measured now: the yardstick of every figure we print.
 *
 * Hosts of one kind differ twofold, and a shared host differs from itself, so that a bound is only
 * worth something when it was measured in the same run. Each figure is the best of several short
 * runs; the whole takes about a second. */
#ifndef HDL_PEAKS_H
#define HDL_PEAKS_H

#include "backend/backend.h"

enum { HDL_N_READ_SIZES = 4 };

typedef struct hdl_read_peak {
    int64_t bytes;           /* working set of all threads together */
    double gbs_one, gbs_all; /* 1e9 bytes per second, one thread and n_threads */
} hdl_read_peak;

typedef struct hdl_peaks {
    hdl_isa isa; /* widest instructions used, as hdl_cpu_isa() says */
    int n_threads;
    hdl_read_peak read[HDL_N_READ_SIZES];  /* ascending: inner caches, last-level cache, memory (last) */
    double fma_gflops_one, fma_gflops_all; /* f32, a multiply-add is 2 operations */
    double int8_gops_one, int8_gops_all;   /* u8 x s8 into s32, a multiply-add is 2 operations */
} hdl_peaks;

/* n_threads 0 = hdl_default_threads(). NOMEM when the read buffer (192 MiB) cannot be had. */
heddle_status hdl_measure_peaks(hdl_peaks *peaks, int n_threads);

#endif
