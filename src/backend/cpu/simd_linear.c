/* simd_linear.c - the LINEAR row of each instruction set.
 *
 * generic: linear_plain.h. AVX2 and AVX-512: linear_vector.h (tasks), linear_quant.h and
 * linear_float.h (kernels), linear_unpack.h (formats), linear_act.h (rounded activations),
 * linear_vec.h (vectors). The same bits for a row whatever the number of rows and threads, always:
 * is_invariant costs nothing. */
#if defined(HDL_ISA_generic)
#include "backend/cpu/linear_plain.h"
#else
#include "backend/cpu/linear_vector.h"
#endif

#if defined(HDL_ISA_avx512)
enum { THIS_ISA = HDL_ISA_AVX512 };
#elif defined(HDL_ISA_avx2)
enum { THIS_ISA = HDL_ISA_AVX2 };
#else
enum { THIS_ISA = HDL_ISA_GENERIC };
#endif

const hdl_impl HDL_CPU_ROWS(linear)[] = {
    {"linear" HDL_ISA_SUFFIX, HDL_OP_LINEAR, (hdl_isa)THIS_ISA, linear_why_not, linear_workspace,
     linear_launch},
    {0},
};
