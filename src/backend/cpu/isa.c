/* isa.c - which instruction sets the processor has and the operating system saves.
 *
 * cpuid says what the processor can decode; XCR0 (xgetbv) says which registers survive a context
 * switch. A kernel may run only where both agree, so both are asked, once. */
#include <pthread.h>
#include <string.h>

#include "backend/backend.h"
#include "base/env.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    AVX512_BF16 = 1 << 5,
    AMX_BITS = 1 << 22 | 1 << 24 | 1 << 25
}; /* leaf 7.1 eax; 7.0 edx: bf16, tile, int8 */

static bool has_bits(unsigned value, unsigned bits)
{
    return (value & bits) == bits;
}

static unsigned saved_state(void)
{
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

/* Tiles are 8 KiB of state a thread, which Linux saves for processes that ask for it. */
static bool may_use_tiles(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* of asm/prctl.h, Linux 5.16 */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static hdl_isa probe(void)
{
    unsigned a, b, c, d, b7 = 0, c7 = 0, d7 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return HDL_ISA_GENERIC;
    if (!has_bits(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return HDL_ISA_GENERIC;
    unsigned state = saved_state();
    if (!has_bits(state, 0x6)) return HDL_ISA_GENERIC; /* XMM and YMM */
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) b7 = b, c7 = c, d7 = d;
    if (!has_bits(b7, bit_AVX2)) return HDL_ISA_GENERIC;
    /* opmask, the upper halves of ZMM0-15, ZMM16-31 */
    if (!has_bits(state, 0xe6)) return HDL_ISA_AVX2;
    if (!has_bits(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) return HDL_ISA_AVX2;
    if (!has_bits(c7, bit_AVX512VNNI)) return HDL_ISA_AVX2;
    bool has_bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && has_bits(a, AVX512_BF16);
    return has_bf16 && has_bits(d7, AMX_BITS) && may_use_tiles() ? HDL_ISA_AMX : HDL_ISA_AVX512;
}
#else
static hdl_isa probe(void)
{
    return HDL_ISA_GENERIC;
}
#endif

static hdl_isa found;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void probe_once(void)
{
    found = probe();
}

const char *hdl_isa_name(hdl_isa isa)
{
    static const char *const names[HDL_N_ISAS] = {"ref", "generic", "avx2", "avx512", "amx"};
    return isa >= 0 && isa < HDL_N_ISAS ? names[isa] : "?";
}

/* The lowest ceiling that HEDDLE_IMPL names. */
static hdl_isa ceiling(void)
{
    hdl_isa lowest = HDL_N_ISAS;
    for (const char *item = hdl_env()->impl; item && *item;) {
        size_t length = strcspn(item, ",");
        for (int isa = HDL_ISA_REF; isa < HDL_N_ISAS; isa++) {
            const char *name = hdl_isa_name((hdl_isa)isa);
            if (strlen(name) == length && !memcmp(item, name, length)) lowest = HDL_MIN(lowest, (hdl_isa)isa);
        }
        item += length;
        if (*item == ',') item++;
    }
    return lowest;
}

hdl_isa hdl_cpu_isa(void)
{
    pthread_once(&once, probe_once);
    return HDL_MIN(found, ceiling());
}
