/* cpu.h - what the CPU's kernel files export to cpu.c: NULL-name-terminated rows, best first.
 *
 * simd_*.c files are compiled once per instruction set with -DHDL_ISA=generic|avx2|avx512 and the
 * flags for it, and export exactly one symbol each through HDL_CPU_ROWS: a table of hdl_impl. No
 * function that is not `static` may stand in a header they share (the linker would keep one copy,
 * perhaps the AVX-512 one, for everybody). */
#ifndef HDL_CPU_H
#define HDL_CPU_H

#include "backend/backend.h"

#define HDL_PASTE3_(a, b, c) a##b##_##c
#define HDL_PASTE3(a, b, c)  HDL_PASTE3_(a, b, c)
#define HDL_CPU_ROWS(part)   HDL_PASTE3(hdl_cpu_, HDL_ISA, part)
#define HDL_STR_(x)          #x
#define HDL_STR(x)           HDL_STR_(x)
#define HDL_ISA_SUFFIX       "_" HDL_STR(HDL_ISA)

/* The reference: naive, normative, accepts everything, never optimised. */
extern const hdl_impl hdl_cpu_ref_linear[];     /* ref_linear.c: LINEAR */
extern const hdl_impl hdl_cpu_ref_misc[];       /* ref_misc.c: EMBED NORM ROPE GLU */
extern const hdl_impl hdl_cpu_ref_attend[];     /* ref_attend.c: APPEND ATTEND MERGE */
extern const hdl_impl hdl_cpu_ref_complement[]; /* ref_complement.c: COMPLEMENT */
extern const hdl_impl hdl_cpu_ref_visit[];      /* ref_visit.c: ORDER VISIT */
extern const hdl_impl hdl_cpu_ref_route[];      /* ref_route.c: SUMMARISE SCORE POOL SELECT UNION */
extern const hdl_impl hdl_cpu_ref_backward[];   /* ref_backward.c: ATTEND_BACKWARD INDEX_LOSS */
extern const hdl_impl hdl_cpu_ref_delta[];      /* ref_delta.c: CONV DELTA */
extern const hdl_impl hdl_cpu_compact[];        /* compact.c: COMPACT */
extern const hdl_impl hdl_cpu_generic_linear[], hdl_cpu_avx2_linear[], hdl_cpu_avx512_linear[];
/* ATTEND, in this order: attend_row (one row per sequence, lists), then attend_rows (many rows). */
extern const hdl_impl hdl_cpu_generic_attend_row[], hdl_cpu_avx2_attend_row[], hdl_cpu_avx512_attend_row[];
extern const hdl_impl hdl_cpu_generic_attend_rows[], hdl_cpu_avx2_attend_rows[], hdl_cpu_avx512_attend_rows[];
/* ATTEND, before both: many rows on the matrix unit. */
extern const hdl_impl hdl_cpu_amx_attend[];
extern const hdl_impl hdl_cpu_generic_complement[], hdl_cpu_avx2_complement[], hdl_cpu_avx512_complement[];
/* VISIT */
extern const hdl_impl hdl_cpu_generic_visit[], hdl_cpu_avx2_visit[], hdl_cpu_avx512_visit[];
/* UNION ORDER */
extern const hdl_impl hdl_cpu_generic_list[], hdl_cpu_avx2_list[], hdl_cpu_avx512_list[];
/* APPEND SELECT MERGE */
extern const hdl_impl hdl_cpu_generic_route[], hdl_cpu_avx2_route[], hdl_cpu_avx512_route[];
/* SCORE and SUMMARISE of a model's own index */
extern const hdl_impl hdl_cpu_amx_index[];
extern const hdl_impl hdl_cpu_generic_index[], hdl_cpu_avx2_index[], hdl_cpu_avx512_index[];
/* SCORE */
extern const hdl_impl hdl_cpu_generic_score[], hdl_cpu_avx2_score[], hdl_cpu_avx512_score[];
/* SUMMARISE of stored rows, POOL */
extern const hdl_impl hdl_cpu_generic_summary[], hdl_cpu_avx2_summary[], hdl_cpu_avx512_summary[];
/* CONV DELTA */
extern const hdl_impl hdl_cpu_generic_delta[], hdl_cpu_avx2_delta[], hdl_cpu_avx512_delta[];
extern const hdl_impl hdl_cpu_generic_misc[], hdl_cpu_avx2_misc[], hdl_cpu_avx512_misc[];

#endif
