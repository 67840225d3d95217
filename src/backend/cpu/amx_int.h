/* amx_int.h - the matrix unit's configuration and what its kernels share. For amx_*.c only. */
#ifndef HDL_AMX_INT_H
#define HDL_AMX_INT_H

#include <immintrin.h>

#include "backend/cpu/simd_attend_int.h"

enum {
    AMX_EDGE = 16, /* rows of a tile, and columns of its 32-bit sums */
    AMX_LINE = 64  /* bytes of a whole row */
};

typedef struct amx_config { /* Intel SDM, LDTILECFG */
    uint8_t palette, start_row, reserved[14];
    uint16_t n_bytes[16]; /* of a tile's row */
    uint8_t n_rows[16];
} __attribute__((aligned(64))) amx_config;

/* 32-bit elements: rows become columns, in place. */
ALWAYS_INLINE void amx_transpose(__m512i r[AMX_EDGE])
{
    vf x[AMX_EDGE];
#pragma GCC unroll 16
    for (int i = 0; i < AMX_EDGE; i++) x[i] = _mm512_castsi512_ps(r[i]);
    vf_transpose(x);
#pragma GCC unroll 16
    for (int i = 0; i < AMX_EDGE; i++) r[i] = _mm512_castps_si512(x[i]);
}

#endif
