/* choose.c - walks an op's list and takes the first row that accepts.
 *
 * HEDDLE_IMPL is a comma list, read left to right, each item one of
 *   ref                  only the reference rows
 *   generic avx2 avx512 amx  a ceiling: no row that needs more (hdl_cpu_isa() applies it)
 *   -NAME                the row NAME is forbidden
 *   NAME                 preferred: where an op has a row of this name it is asked first
 * A refusal, whoever spoke it, becomes one line of `why`; nothing is chosen silently. */
#include <string.h>

#include "backend/backend.h"
#include "base/env.h"

static const char *const op_names[HDL_N_OPS] = {
    [HDL_OP_EMBED] = "embed",
    [HDL_OP_NORM] = "norm",
    [HDL_OP_LINEAR] = "linear",
    [HDL_OP_ROPE] = "rope",
    [HDL_OP_APPEND] = "append",
    [HDL_OP_ATTEND] = "attend",
    [HDL_OP_SELECT] = "select",
    [HDL_OP_UNION] = "union",
    [HDL_OP_RESOLVE] = "resolve",
    [HDL_OP_ORDER] = "order",
    [HDL_OP_VISIT] = "visit",
    [HDL_OP_MERGE] = "merge",
    [HDL_OP_GLU] = "glu",
    [HDL_OP_SUMMARISE] = "summarise",
    [HDL_OP_SCORE] = "score",
    [HDL_OP_POOL] = "pool",
    [HDL_OP_COMPLEMENT] = "complement",
    [HDL_OP_COMPACT] = "compact",
    [HDL_OP_CONV] = "conv",
    [HDL_OP_DELTA] = "delta",
    [HDL_OP_ATTEND_BACKWARD] = "attend_backward",
    [HDL_OP_INDEX_LOSS] = "index_loss",
};

const char *hdl_op_name(hdl_op op)
{
    return op >= 0 && op < HDL_N_OPS ? op_names[op] : "?";
}

/* True when `name` (with `sign` '-' before it, or bare for 0) is an item of HEDDLE_IMPL. */
static bool is_listed(const char *name, char sign)
{
    size_t n = strlen(name);
    for (const char *item = hdl_env()->impl; item && *item;) {
        const char *end = strchr(item, ',');
        size_t length = end ? (size_t)(end - item) : strlen(item);
        const char *bare = item;
        if (sign && length && *item == sign)
            bare++, length--;
        else if (sign)
            length = 0;
        if (length == n && !memcmp(bare, name, n)) return true;
        item = end ? end + 1 : NULL;
    }
    return false;
}

static bool is_known(const char *name, size_t n)
{
    for (int isa = 0; isa < HDL_N_ISAS; isa++)
        if (strlen(hdl_isa_name((hdl_isa)isa)) == n && !memcmp(hdl_isa_name((hdl_isa)isa), name, n))
            return true;
    if (n && *name == '-') name++, n--;
    for (int op = 0; op < HDL_N_OPS; op++)
        for (const hdl_impl *const *row = hdl_cpu_impls((hdl_op)op); *row; row++)
            if (strlen((*row)->name) == n && !memcmp((*row)->name, name, n)) return true;
    return false;
}

heddle_status hdl_choice_check(void)
{
    const char *device = hdl_env()->device;
    if (device && *device && strcmp(device, "cpu"))
        return HDL_FAIL(HEDDLE_E_INVALID, "HEDDLE_DEVICE \"%s\": must be cpu, the only device of this build",
                        device);
    for (const char *item = hdl_env()->impl; item && *item;) {
        size_t n = strcspn(item, ",");
        if (!is_known(item, n))
            return HDL_FAIL(
                HEDDLE_E_INVALID,
                "HEDDLE_IMPL \"%.*s\": must be ref, generic, avx2, avx512, amx, or NAME or -NAME of an "
                "implementation that 'heddle explain' shows",
                (int)n, item);
        item += n + (item[n] == ',');
    }
    return HEDDLE_OK;
}

/* NULL, or why this row is not for these arguments on this processor. */
static const char *refusal(const hdl_impl *impl, const void *args)
{
    static const char *const needs[HDL_N_ISAS] = {
        [HDL_ISA_REF] = "HEDDLE_IMPL excludes it",
        [HDL_ISA_GENERIC] = "HEDDLE_IMPL excludes it",
        [HDL_ISA_AVX2] = "needs AVX2, FMA and F16C, which the processor lacks or HEDDLE_IMPL excludes",
        [HDL_ISA_AVX512] = "needs AVX-512 F BW DQ VL VNNI, which the processor lacks or HEDDLE_IMPL excludes",
        [HDL_ISA_AMX] =
            "needs AMX and AVX512-BF16, which the processor or system lacks or HEDDLE_IMPL excludes",
    };
    if (impl->isa > hdl_cpu_isa()) return needs[impl->isa];
    if (is_listed(impl->name, '-')) return "HEDDLE_IMPL forbids it";
    return impl->why_not ? impl->why_not(args) : NULL;
}

const hdl_impl *hdl_choose(hdl_op op, const void *args, hdl_buf *why)
{
    const hdl_impl *const *list = hdl_cpu_impls(op);
    const char *last = "it has no implementation";
    for (int is_preferred = 1; is_preferred >= 0; is_preferred--) {
        for (int i = 0; list[i]; i++) {
            if (is_listed(list[i]->name, 0) != (bool)is_preferred) continue;
            const char *reason = refusal(list[i], args);
            if (!reason) return list[i];
            last = reason;
            if (why) hdl_buf_printf(why, "%s: %s\n", list[i]->name, reason);
        }
    }
    hdl_fail(HEDDLE_E_UNSUPPORTED, "%s: every implementation refuses; the last one: %s", hdl_op_name(op),
             last);
    return NULL;
}
