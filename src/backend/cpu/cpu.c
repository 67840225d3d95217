/* cpu.c - the CPU's rows of every op, best first: AMX, AVX-512, AVX2, generic, reference.
 *
 * The tables of the kernel files are sorted into one list per op, once. A row of a later table never
 * stands before one of an earlier table, so the order inside each file is the only order to know. */
#include "backend/cpu/cpu.h"

#include <pthread.h>

enum { MAX_ROWS_PER_OP = 24 };

static const hdl_impl *lists[HDL_N_OPS][MAX_ROWS_PER_OP + 1];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void build_lists(void)
{
    static const hdl_impl *const tables[] = {
        hdl_cpu_amx_attend,          hdl_cpu_amx_index,          hdl_cpu_avx512_linear,
        hdl_cpu_avx512_attend_row,   hdl_cpu_avx512_attend_rows, hdl_cpu_avx512_route,
        hdl_cpu_avx512_score,        hdl_cpu_avx512_index,       hdl_cpu_avx512_summary,
        hdl_cpu_avx512_misc,         hdl_cpu_avx512_visit,       hdl_cpu_avx512_list,
        hdl_cpu_avx2_linear,         hdl_cpu_avx2_attend_row,    hdl_cpu_avx2_attend_rows,
        hdl_cpu_avx2_route,          hdl_cpu_avx2_score,         hdl_cpu_avx2_index,
        hdl_cpu_avx2_summary,        hdl_cpu_avx2_misc,          hdl_cpu_avx2_visit,
        hdl_cpu_avx2_list,           hdl_cpu_generic_linear,     hdl_cpu_generic_attend_row,
        hdl_cpu_generic_attend_rows, hdl_cpu_generic_route,      hdl_cpu_generic_score,
        hdl_cpu_generic_index,       hdl_cpu_generic_summary,    hdl_cpu_generic_misc,
        hdl_cpu_generic_visit,       hdl_cpu_generic_list,       hdl_cpu_ref_linear,
        hdl_cpu_ref_attend,          hdl_cpu_ref_route,          hdl_cpu_ref_visit,
        hdl_cpu_avx512_complement,   hdl_cpu_avx2_complement,    hdl_cpu_generic_complement,
        hdl_cpu_ref_complement,      hdl_cpu_ref_misc,           hdl_cpu_compact,
        hdl_cpu_ref_backward,        hdl_cpu_avx512_delta,       hdl_cpu_avx2_delta,
        hdl_cpu_generic_delta,       hdl_cpu_ref_delta,
    };
    int n[HDL_N_OPS] = {0};
    for (int64_t t = 0; t < HDL_COUNT(tables); t++) {
        for (const hdl_impl *row = tables[t]; row->name; row++) {
            HDL_ASSERT(n[row->op] < MAX_ROWS_PER_OP);
            lists[row->op][n[row->op]++] = row;
        }
    }
}

const hdl_impl *const *hdl_cpu_impls(hdl_op op)
{
    pthread_once(&once, build_lists);
    return lists[op];
}
