/* route_impls.h - the implementations of a routing op that this processor can run. */
#ifndef HDL_TEST_ROUTE_IMPLS_H
#define HDL_TEST_ROUTE_IMPLS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/attend_cases.h"

enum { MAX_ROUTE_IMPLS = 8 };

/* The reference is the first. */
static inline int64_t route_impls(hdl_op op, const hdl_impl *impls[MAX_ROUTE_IMPLS])
{
    static const hdl_impl *const tables[] = {
        hdl_cpu_ref_attend,    hdl_cpu_ref_visit,      hdl_cpu_ref_route,     hdl_cpu_generic_route,
        hdl_cpu_generic_visit, hdl_cpu_generic_list,   hdl_cpu_generic_score, hdl_cpu_generic_summary,
        hdl_cpu_avx2_route,    hdl_cpu_avx2_visit,     hdl_cpu_avx2_list,     hdl_cpu_avx2_score,
        hdl_cpu_avx2_summary,  hdl_cpu_avx512_route,   hdl_cpu_avx512_visit,  hdl_cpu_avx512_list,
        hdl_cpu_avx512_score,  hdl_cpu_avx512_summary,
    };
    int64_t n = 0;
    for (int64_t t = 0; t < HDL_COUNT(tables); t++)
        for (const hdl_impl *impl = tables[t]; impl->name; impl++)
            if (impl->op == op && impl->isa <= hdl_cpu_isa()) impls[n++] = impl;
    return n;
}

#endif
