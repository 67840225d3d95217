/* test_linear.c - every implementation of LINEAR against the reference over the case table; the same
 * bits for a row whatever the rows and threads of its call; activations that are zero, NaN or
 * infinite. Every buffer ends at an unreadable page: the kernels are outside the sanitizers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "backend/cases_linear.h"

enum { MAX_IMPLS = 8, PAD = 3, PAGE = 4096 };
static const float untouched = 12345.0f;

typedef struct problem {
    hdl_linear_args args;
    float *x;
    float *bias[HDL_LINEAR_MAX_PARTS];
} problem;

/* `bytes` of memory whose end is the end of the readable pages. */
static void *guarded(int64_t bytes)
{
    size_t n = (size_t)HDL_ALIGN_UP(bytes, PAGE);
    uint8_t *base = mmap(NULL, n + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(base, MAP_FAILED);
    assert_int_equal(mprotect(base + n, PAGE, PROT_NONE), 0);
    return base + n - bytes;
}

static void free_guarded(void *p, int64_t bytes)
{
    size_t n = (size_t)HDL_ALIGN_UP(bytes, PAGE);
    if (p) munmap((uint8_t *)p + bytes - n, n + PAGE);
}

/* The implementations that this processor can run, the reference not among them. */
static int64_t linear_impls(const hdl_impl *impls[MAX_IMPLS])
{
    int64_t n = 0;
    const hdl_impl *const *list = hdl_cpu_impls(HDL_OP_LINEAR);
    for (; *list; list++)
        if ((*list)->isa <= hdl_cpu_isa() && (*list)->isa != HDL_ISA_REF) impls[n++] = *list;
    return n;
}

static const hdl_impl *reference(void)
{
    const hdl_impl *const *list = hdl_cpu_impls(HDL_OP_LINEAR);
    while ((*list)->isa != HDL_ISA_REF) list++;
    return *list;
}

/* Row strides are wider than rows; the gaps of x are NaN and must not matter. */
static problem new_problem(const linear_case *c, int64_t n_rows)
{
    problem p = {
        .args = {.n_rows = n_rows, .n_in = c->n_in, .x_stride = c->n_in + PAD, .n_parts = c->n_parts}};
    uint64_t seed = 7;
    int64_t n = (n_rows - 1) * p.args.x_stride + c->n_in;
    p.x = guarded(n * 4);
    for (int64_t i = 0; i < n; i++) p.x[i] = i % p.args.x_stride < c->n_in ? linear_noise(&seed) : NAN;
    p.args.x = p.x;
    for (int32_t i = 0; i < c->n_parts; i++) {
        hdl_linear_part *part = &p.args.part[i];
        part->w = linear_weight(c->dtype[i], c->n_out[i], c->n_in, 100 + (uint64_t)i);
        const int64_t bytes = c->n_out[i] * part->w.row_bytes;
        void *weights = guarded(bytes);
        memcpy(weights, part->w.data, (size_t)bytes);
        free((void *)part->w.data);
        part->w.data = weights;
        part->out_stride = c->n_out[i] + PAD;
        part->accumulate = c->accumulate;
        if (!c->has_bias) continue;
        p.bias[i] = guarded(c->n_out[i] * 4);
        for (int64_t j = 0; j < c->n_out[i]; j++) p.bias[i][j] = linear_noise(&seed);
        part->bias = p.bias[i];
    }
    return p;
}

static void free_problem(problem *p)
{
    const hdl_linear_args *a = &p->args;
    free_guarded(p->x, ((a->n_rows - 1) * a->x_stride + a->n_in) * 4);
    for (int32_t i = 0; i < a->n_parts; i++) {
        free_guarded((void *)a->part[i].w.data, a->part[i].w.n_rows * a->part[i].w.row_bytes);
        free_guarded(p->bias[i], a->part[i].w.n_rows * 4);
    }
}

static int64_t out_bytes(const hdl_linear_args *a)
{
    int64_t n = 0;
    for (int32_t p = 0; p < a->n_parts; p++) n += a->n_rows * a->part[p].out_stride;
    return n * 4;
}

/* Runs on fresh outputs (part after part in one allocation of exact size) and a workspace of
 * exactly the size asked for, filled with NaN. Returns the outputs; gaps stay `untouched`. */
static float *run(const hdl_impl *impl, const hdl_linear_args *args, int n_threads)
{
    hdl_linear_args a = *args;
    int64_t n = out_bytes(args) / 4, at = 0, bytes = impl->workspace ? impl->workspace(args, n_threads) : 0;
    float *out = guarded(n * 4);
    for (int64_t i = 0; i < n; i++) out[i] = untouched;
    for (int32_t p = 0; p < a.n_parts; p++) {
        a.part[p].out = out + at;
        for (int64_t r = 0; r < a.n_rows; r++)
            for (int64_t j = 0; a.part[p].accumulate && j < a.part[p].w.n_rows; j++)
                out[at + r * a.part[p].out_stride + j] = (float)(r + j) * 0.01f;
        at += a.n_rows * a.part[p].out_stride;
    }
    bytes = HDL_ALIGN_UP(HDL_MAX(bytes, 1), 64);
    void *workspace = guarded(bytes);
    memset(workspace, 0xff, (size_t)bytes);
    impl->launch(&(hdl_launch){n_threads, workspace, args}, &a);
    free_guarded(workspace, bytes);
    return out;
}

static void assert_close(const char *what, const hdl_impl *impl, const hdl_linear_args *a, const float *got,
                         const float *want)
{
    for (int32_t p = 0; p < a->n_parts; p++) {
        const int64_t stride = a->part[p].out_stride, n_out = a->part[p].w.n_rows;
        linear_tolerance allowed = linear_tolerance_of(a->part[p].w.dtype);
        double top = 0, worst = 0, error = 0, norm = 0;
        for (int64_t r = 0; r < a->n_rows; r++, got += stride, want += stride) {
            for (int64_t j = 0; j < stride; j++) {
                if (j >= n_out && got[j] != untouched) fail_msg("%s %s: gap written", what, impl->name);
                if (j >= n_out) continue;
                double e = fabs((double)got[j] - want[j]);
                if (isnan(e)) e = INFINITY;
                worst = HDL_MAX(worst, e);
                top = HDL_MAX(top, fabs((double)want[j]));
                error += e * e;
                norm += (double)want[j] * want[j];
            }
        }
        double l2 = sqrt(error / norm);
        if (worst > allowed.max_abs * top || l2 > allowed.relative_l2)
            fail_msg("%s %s %s rows %lld: max %.3g of %.3g (allowed %.3g), l2 %.3g (allowed %.3g)", what,
                     impl->name, hdl_dtype_of(a->part[p].w.dtype)->name, (long long)a->n_rows, worst, top,
                     allowed.max_abs * top, l2, allowed.relative_l2);
    }
}

static void check_case(const linear_case *c)
{
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = linear_impls(impls);
    for (int64_t i = 0; i < HDL_COUNT(linear_test_rows); i++) {
        problem p = new_problem(c, linear_test_rows[i]);
        float *want = run(reference(), &p.args, 1);
        for (int64_t m = 0; m < n_impls; m++) {
            if (impls[m]->why_not && impls[m]->why_not(&p.args)) continue;
            float *got = run(impls[m], &p.args, 1 + (int)(i % 3));
            assert_close(c->name, impls[m], &p.args, got, want);
            free_guarded(got, out_bytes(&p.args));
        }
        free_guarded(want, out_bytes(&p.args));
        free_problem(&p);
    }
}

static void test_every_type_and_shape(void **state)
{
    (void)state;
    for (int64_t s = 0; s < HDL_COUNT(linear_shapes); s++) {
        for (int64_t d = 0; d < HDL_COUNT(linear_dtypes); d++) {
            linear_case c = linear_shapes[s];
            c.dtype[0] = linear_dtypes[d];
            if (c.n_in % hdl_dtype_of(c.dtype[0])->block_elems == 0) check_case(&c);
        }
    }
}

static void test_mixed_parts(void **state)
{
    (void)state;
    for (int64_t s = 0; s < HDL_COUNT(linear_mixed); s++) check_case(&linear_mixed[s]);
}

/* Row r of a call of 130 rows on three threads has the bits of row r alone on one. */
static void test_a_row_does_not_depend_on_its_call(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = linear_impls(impls);
    for (int64_t d = 0; d < HDL_COUNT(linear_dtypes); d++) {
        linear_case c = {"invariant", 512, 1, {49}, {linear_dtypes[d]}, true, false};
        problem p = new_problem(&c, 130);
        p.args.is_invariant = true;
        for (int64_t m = 0; m < n_impls; m++) {
            if (impls[m]->why_not && impls[m]->why_not(&p.args)) continue;
            float *all = run(impls[m], &p.args, 3);
            for (int64_t r = 0; r < 130; r += r < 14 ? 1 : 23) {
                for (int64_t n = 1; n <= 7 && r + n <= 130; n += 3) {
                    hdl_linear_args some = p.args;
                    some.x += r * some.x_stride;
                    some.n_rows = n;
                    float *few = run(impls[m], &some, 1);
                    if (memcmp(few, all + r * some.part[0].out_stride,
                               (size_t)(n * some.part[0].out_stride) * 4))
                        fail_msg("%s %s: row %lld differs in a call of %lld rows", impls[m]->name,
                                 hdl_dtype_of(c.dtype[0])->name, (long long)r, (long long)n);
                    free_guarded(few, out_bytes(&some));
                }
            }
            free_guarded(all, out_bytes(&p.args));
        }
        free_problem(&p);
    }
}

/* Rows: zero, tiny, one NaN, one infinity, ordinary. Zero and tiny give the bias; NaN and infinity
 * make their own row NaN (quantised weights) and no other. */
static void test_special_activations(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = linear_impls(impls);
    impls[n_impls++] = reference();
    for (int64_t d = 0; d < HDL_COUNT(linear_dtypes); d++) {
        linear_case c = {"special", 256, 1, {19}, {linear_dtypes[d]}, true, false};
        bool is_quantised = hdl_dtype_of(c.dtype[0])->is_quantised;
        problem p = new_problem(&c, 5);
        for (int64_t i = 0; i < c.n_in; i++) p.x[i] = 0, p.x[p.args.x_stride + i] = is_quantised ? 1e-38f : 0;
        p.x[2 * p.args.x_stride + 200] = NAN;
        p.x[3 * p.args.x_stride + 33] = -INFINITY;
        for (int64_t m = 0; m < n_impls; m++) {
            if (impls[m]->why_not && impls[m]->why_not(&p.args)) continue;
            float *got = run(impls[m], &p.args, 1);
            for (int64_t r = 0; r < 5; r++) {
                for (int64_t j = 0; j < 19; j++) {
                    float v = got[r * p.args.part[0].out_stride + j];
                    bool is_right = r < 2    ? v == p.bias[0][j]
                                    : r == 2 ? isnan(v)
                                    : r == 3 ? !isfinite(v)
                                             : isfinite(v);
                    if (!is_right)
                        fail_msg("%s %s: row %d output %d is %g", impls[m]->name,
                                 hdl_dtype_of(c.dtype[0])->name, (int)r, (int)j, (double)v);
                }
            }
            free_guarded(got, out_bytes(&p.args));
        }
        free_problem(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_and_shape),
        cmocka_unit_test(test_mixed_parts),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_call),
        cmocka_unit_test(test_special_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
