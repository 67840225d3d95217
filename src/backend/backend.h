/* backend.h - implementations of ops: rows with a name, a refusal and a launch.
 *
 * For each op a device holds an ordered list; the first row that does not refuse is used, the
 * reference is last and accepts everything. The choice is made by compile, never while running. */
#ifndef HDL_BACKEND_H
#define HDL_BACKEND_H

#include "backend/op.h"
#include "base/buf.h"

/* What a launch may use besides its arguments. */
typedef struct hdl_launch {
    int n_threads;
    void *workspace; /* 64-byte aligned, at least what workspace() said; contents undefined */
    const hdl_linear_args
        *next; /* the LINEAR call that comes next, whose weights may be fetched early; or NULL */
} hdl_launch;

typedef enum hdl_isa {
    HDL_ISA_REF = 0,
    HDL_ISA_GENERIC,
    HDL_ISA_AVX2,
    HDL_ISA_AVX512,
    HDL_ISA_AMX,
    HDL_N_ISAS
} hdl_isa;

typedef struct hdl_impl {
    const char *name; /* "attend_rows_avx512" */
    hdl_op op;
    hdl_isa isa; /* the least that the processor must have */
    /* NULL, or why these arguments are not for this row (a static sentence). */
    const char *(*why_not)(const void *args);
    /* Scratch bytes for arguments up to these sizes on n_threads threads; NULL = none. */
    int64_t (*workspace)(const void *args, int n_threads);
    void (*launch)(const hdl_launch *launch, const void *args);
} hdl_impl;

/* AVX2 means AVX2 + FMA + F16C; AVX-512 means F, BW, DQ, VL and VNNI; AMX means these, AVX512-BF16, and tiles
 * of int8 and bf16 that the system lets this process use. */
/* INVALID where HEDDLE_IMPL or HEDDLE_DEVICE names what this build does not have. */
heddle_status hdl_choice_check(void);
hdl_isa hdl_cpu_isa(void); /* of this processor, lowered by HEDDLE_IMPL=generic|avx2|avx512|amx */
const char *hdl_isa_name(hdl_isa isa);

/* The list of an op, best first, the reference last; NULL-name terminated. */
const hdl_impl *const *hdl_cpu_impls(hdl_op op);

/* The first row of the op's list that accepts; the refusals of the rows before it are appended to
 * `why` (may be NULL), a line each. Honours HEDDLE_IMPL. NULL and the thread's sentence when
 * everything refuses. */
const hdl_impl *hdl_choose(hdl_op op, const void *args, hdl_buf *why);
const char *hdl_op_name(hdl_op op);

#endif
