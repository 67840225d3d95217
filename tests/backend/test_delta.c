/* CONV and DELTA: the reference against tests/oracle/delta_oracle.py (float64, matrices written out), every
 * implementation against the reference, and the laws: no cut between calls, no other sequence and no thread
 * changes a bit; a document knows nothing of what was before it; what lies beside the rows is neither read
 * nor written.
 *
 * Bounds: 2e-5 of the largest element (f32 sums of up to 128 terms, over 70 rows). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cases_linear.h"
#include "base/buf.h"

enum { MAX_SEQS = 3, PAD = 3 };
static const double bound = 2e-5;
static const float untouched = 12345.0f;

typedef struct delta_case {
    const char *name;
    int32_t n_heads, k_dim, v_dim, width, n_seqs;
    int64_t q_len[MAX_SEQS];
    int64_t n_before[MAX_SEQS]; /* rows of the first row's document before it */
    int64_t border[MAX_SEQS];   /* a document begins at this row; 0 = nowhere */
} delta_case;

static const delta_case cases[] = {
    {"one row", 1, 16, 16, 4, 1, {1}, {9}, {0}},
    {"first row", 2, 16, 16, 4, 1, {1}, {0}, {0}},
    {"odd keys", 2, 7, 48, 2, 1, {19}, {1}, {5}},
    {"no divisor of the vector", 2, 12, 6, 4, 2, {9, 4}, {0, 2}, {3, 0}},
    {"two rows back", 3, 16, 64, 4, 2, {2, 5}, {2, 1}, {1, 0}},
    {"one column a row", 1, 1, 16, 1, 1, {12}, {0}, {0}},
    {"the size that is trained", 6, 64, 64, 4, 2, {70, 1}, {3, 30}, {33, 0}},
    {"wide values", 2, 32, 80, 3, 1, {21}, {0}, {20}},
    {"several parts", 1, 128, 144, 4, 3, {3, 11, 2}, {5, 0, 1}, {0, 6, 1}},
};

/* One case with its arrays; what is written stands in x, o and after. */
typedef struct rig {
    const delta_case *c;
    int64_t n_rows, n_cols, stride, n_conv, n_state;
    int64_t n_visible[256], doc_start[256];
    float *x, *weight, *ab, *gates, *o;
    float *conv_before, *conv_after, *before, *after; /* [n_seqs, ...] */
} rig;

static float *noise(int64_t n, float size, uint64_t seed)
{
    float *x = malloc((size_t)n * 4 + 64);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = size * linear_noise(&seed);
    return x;
}

static void rig_init(rig *g, const delta_case *c)
{
    *g = (rig){.c = c};
    for (int32_t s = 0; s < c->n_seqs; s++)
        for (int64_t i = 0; i < c->q_len[s]; i++, g->n_rows++) {
            bool is_new = c->border[s] && i >= c->border[s];
            g->n_visible[g->n_rows] = 1000 + i + 1;
            g->doc_start[g->n_rows] = is_new ? 1000 + c->border[s] : 1000 - c->n_before[s];
        }
    g->n_cols = c->n_heads * (2 * c->k_dim + c->v_dim);
    g->stride = g->n_cols + PAD;
    g->n_conv = (c->width - 1) * g->n_cols;
    g->n_state = (int64_t)c->n_heads * c->k_dim * c->v_dim;
    g->x = noise(g->n_rows * g->stride, 1, 1);
    for (int64_t i = 0; i < g->n_rows * PAD; i++) g->x[i / PAD * g->stride + g->n_cols + i % PAD] = untouched;
    g->weight = noise(c->width * g->n_cols, 0.7f, 2);
    g->ab = noise(g->n_rows * 2 * c->n_heads, 1, 3);
    g->gates = noise(2 * c->n_heads, 1, 4);
    g->o = noise(g->n_rows * c->n_heads * c->v_dim, 1, 5);
    g->conv_before = noise(c->n_seqs * g->n_conv, 1, 6);
    g->conv_after = noise(c->n_seqs * g->n_conv, 1, 7);
    g->before = noise(c->n_seqs * g->n_state, 0.3f, 8);
    g->after = noise(c->n_seqs * g->n_state, 1, 9);
}

static void rig_deinit(rig *g)
{
    free(g->x);
    free(g->weight);
    free(g->ab);
    free(g->gates);
    free(g->o);
    free(g->conv_before);
    free(g->conv_after);
    free(g->before);
    free(g->after);
}

static hdl_conv_args conv_of(const rig *g, hdl_state_seq *seqs)
{
    int64_t row = 0;
    for (int32_t s = 0; s < g->c->n_seqs; row += g->c->q_len[s++])
        seqs[s] = (hdl_state_seq){row, g->c->q_len[s], g->conv_before + s * g->n_conv,
                                  g->conv_after + s * g->n_conv};
    return (hdl_conv_args){.n_rows = g->n_rows,
                           .n_cols = g->n_cols,
                           .n_seqs = g->c->n_seqs,
                           .width = g->c->width,
                           .seqs = seqs,
                           .n_visible = g->n_visible,
                           .doc_start = g->doc_start,
                           .weight = g->weight,
                           .x = g->x,
                           .x_stride = g->stride};
}

static hdl_delta_args delta_of(const rig *g, hdl_state_seq *seqs)
{
    int64_t row = 0;
    for (int32_t s = 0; s < g->c->n_seqs; row += g->c->q_len[s++])
        seqs[s] = (hdl_state_seq){row, g->c->q_len[s], g->before + s * g->n_state, g->after + s * g->n_state};
    return (hdl_delta_args){.n_rows = g->n_rows,
                            .n_seqs = g->c->n_seqs,
                            .n_heads = g->c->n_heads,
                            .k_dim = g->c->k_dim,
                            .v_dim = g->c->v_dim,
                            .seqs = seqs,
                            .n_visible = g->n_visible,
                            .doc_start = g->doc_start,
                            .qkv = g->x,
                            .qkv_stride = g->stride,
                            .ab = g->ab,
                            .ab_stride = 2 * g->c->n_heads,
                            .a_log = g->gates,
                            .dt_bias = g->gates + g->c->n_heads,
                            .scale = 0.25f,
                            .eps = 1e-6f,
                            .o = g->o,
                            .o_stride = (int64_t)g->c->n_heads * g->c->v_dim};
}

static void run(const hdl_impl *impl, const void *args, int n_threads)
{
    impl->launch(&(hdl_launch){.n_threads = n_threads}, args);
}

static void assert_near(const char *name, const char *what, const float *got, const float *want, int64_t n)
{
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) largest = HDL_MAX(largest, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        worst = d <= worst ? worst : d; /* a NaN is kept */
    }
    if (!(worst <= bound * largest))
        fail_msg("%s: %s differs by %g, its largest element is %g", name, what, worst, largest);
}

/* Calls check(impl, reference) for every implementation that runs here and takes the case. */
static void for_each(hdl_op op, const void *args,
                     void (*check)(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c),
                     const delta_case *c)
{
    const hdl_impl *const *list = hdl_cpu_impls(op), *const *last = list;
    while (last[1]) last++;
    for (; list <= last; list++)
        if ((*list)->isa <= hdl_cpu_isa() && (!(*list)->why_not || !(*list)->why_not(args)))
            check(*list, *last, c);
}

static void over_cases(hdl_op op,
                       void (*check)(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c))
{
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        rig g;
        hdl_state_seq seqs[MAX_SEQS];
        rig_init(&g, &cases[i]);
        hdl_conv_args conv = conv_of(&g, seqs);
        hdl_delta_args delta = delta_of(&g, seqs);
        for_each(op, op == HDL_OP_CONV ? (const void *)&conv : &delta, check, &cases[i]);
        rig_deinit(&g);
    }
}

/* ---- against the oracle ---- */

static void check_oracle(const hdl_impl *conv_impl, const hdl_impl *delta_impl)
{
    enum { ROWS = 40, HEADS = 2, K = 8, V = 16, COLS = HEADS * (2 * K + V), WIDTH = 4, BORDER = 23 };
    static float conv_state[2][(WIDTH - 1) * COLS], state[2][HEADS * K * V], o[ROWS * HEADS * V];
    int64_t n_visible[ROWS], doc_start[ROWS];
    hdl_buf file = {0};
    assert_int_equal(hdl_buf_read_file(&file, HDL_TEST_DATA "/golden/delta/small.f32", 1 << 20), HEDDLE_OK);
    float *x = (float *)(void *)file.data, *w = x + ROWS * COLS, *ab = w + WIDTH * COLS,
          *gates = ab + ROWS * 2 * HEADS, *mixed = gates + 2 * HEADS, *want_o = mixed + ROWS * COLS,
          *want_state = want_o + ROWS * HEADS * V;
    assert_int_equal(file.n, ((char *)(want_state + HEADS * K * V) - file.data));
    for (int64_t r = 0; r < ROWS; r++) {
        n_visible[r] = r + 1;
        doc_start[r] = r < BORDER ? 0 : BORDER;
    }
    hdl_state_seq rows = {0, ROWS, conv_state[0], conv_state[1]}, states = {0, ROWS, state[0], state[1]};
    hdl_conv_args conv = {ROWS, COLS, 1, WIDTH, &rows, n_visible, doc_start, w, x, COLS};
    run(conv_impl, &conv, 2);
    assert_near(conv_impl->name, "a convolved row", x, mixed, ROWS * COLS);
    hdl_delta_args delta = {ROWS, 1,    HEADS,     K,         V,     &states,       n_visible, doc_start, x,
                            ab,   COLS, 2 * HEADS, HEADS * V, gates, gates + HEADS, 0.35f,     1e-6f,     o};
    run(delta_impl, &delta, 2);
    assert_near(delta_impl->name, "an output", o, want_o, ROWS * HEADS * V);
    assert_near(delta_impl->name, "the state", state[1], want_state, HEADS * K * V);
    hdl_buf_deinit(&file);
}

static void test_oracle(void **unused)
{
    (void)unused;
    const hdl_impl *const *conv = hdl_cpu_impls(HDL_OP_CONV), *const *delta = hdl_cpu_impls(HDL_OP_DELTA);
    for (; *conv; conv++, delta++)
        if ((*conv)->isa <= hdl_cpu_isa()) check_oracle(*conv, *delta);
}

/* ---- against the reference ---- */

static void check_conv(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c)
{
    rig a, b;
    hdl_state_seq seqs[MAX_SEQS];
    rig_init(&a, c);
    rig_init(&b, c);
    run(impl, &(hdl_conv_args[]){conv_of(&a, seqs)}, 2);
    run(reference, &(hdl_conv_args[]){conv_of(&b, seqs)}, 1);
    assert_near(impl->name, c->name, a.x, b.x, a.n_rows * a.stride);
    for (int64_t i = 0; i < a.n_rows * PAD; i++)
        assert_true(a.x[i / PAD * a.stride + a.n_cols + i % PAD] == untouched);
    assert_memory_equal(a.conv_after, b.conv_after, (size_t)(c->n_seqs * a.n_conv) * 4);
    rig_deinit(&a);
    rig_deinit(&b);
}

static void check_delta(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c)
{
    rig a, b;
    hdl_state_seq seqs[MAX_SEQS];
    rig_init(&a, c);
    rig_init(&b, c);
    run(impl, &(hdl_delta_args[]){delta_of(&a, seqs)}, 2);
    run(reference, &(hdl_delta_args[]){delta_of(&b, seqs)}, 1);
    assert_near(impl->name, c->name, a.o, b.o, a.n_rows * c->n_heads * c->v_dim);
    assert_near(impl->name, c->name, a.after, b.after, c->n_seqs * a.n_state);
    rig_deinit(&a);
    rig_deinit(&b);
}

static void test_conv_equals_reference(void **unused)
{
    (void)unused;
    over_cases(HDL_OP_CONV, check_conv);
}

static void test_delta_equals_reference(void **unused)
{
    (void)unused;
    over_cases(HDL_OP_DELTA, check_delta);
}

/* ---- laws ---- */

/* Sequence s alone, in calls of `step` rows that hand the state on. */
static void in_steps(const hdl_impl *impl, const rig *g, int32_t s, int64_t step)
{
    hdl_state_seq seqs[MAX_SEQS], one;
    hdl_conv_args conv = conv_of(g, seqs);
    hdl_delta_args delta = delta_of(g, seqs);
    bool is_conv = impl->op == HDL_OP_CONV;
    if (is_conv) conv_of(g, seqs);
    int64_t first = seqs[s].first_row, n = seqs[s].q_len, n_floats = is_conv ? g->n_conv : g->n_state;
    float *from = noise(n_floats, 1, 1);
    memcpy(from, seqs[s].before, (size_t)n_floats * 4);
    conv.n_seqs = delta.n_seqs = 1;
    conv.seqs = delta.seqs = &one;
    for (int64_t at = 0; at < n; at += step) {
        one = (hdl_state_seq){first + at, HDL_MIN(step, n - at), from, seqs[s].after};
        conv.n_rows = delta.n_rows = one.q_len;
        run(impl, is_conv ? (const void *)&conv : &delta, 1);
        memcpy(from, seqs[s].after, (size_t)n_floats * 4);
    }
    free(from);
}

static void check_cuts(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c)
{
    (void)reference;
    for (int64_t step = 1; step <= 8; step += step < 3 ? 1 : 5) {
        rig a, b;
        hdl_state_seq seqs[MAX_SEQS];
        rig_init(&a, c);
        rig_init(&b, c);
        hdl_conv_args conv = conv_of(&a, seqs);
        if (impl->op == HDL_OP_CONV) run(impl, &conv, 2);
        hdl_delta_args delta = delta_of(&a, seqs);
        if (impl->op == HDL_OP_DELTA) run(impl, &delta, 3);
        for (int32_t s = 0; s < c->n_seqs; s++) in_steps(impl, &b, s, step);
        assert_memory_equal(a.x, b.x, (size_t)(a.n_rows * a.stride) * 4);
        assert_memory_equal(a.o, b.o, (size_t)(a.n_rows * c->n_heads * c->v_dim) * 4);
        if (impl->op == HDL_OP_CONV)
            assert_memory_equal(a.conv_after, b.conv_after, (size_t)(c->n_seqs * a.n_conv) * 4);
        else
            assert_memory_equal(a.after, b.after, (size_t)(c->n_seqs * a.n_state) * 4);
        rig_deinit(&a);
        rig_deinit(&b);
    }
}

static void test_cuts_change_no_bit(void **unused)
{
    (void)unused;
    over_cases(HDL_OP_CONV, check_cuts);
    over_cases(HDL_OP_DELTA, check_cuts);
}

/* The rows of the first sequence's second document say the same after a document of NaN. */
static void check_border(const hdl_impl *impl, const hdl_impl *reference, const delta_case *c)
{
    (void)reference;
    rig a, b;
    hdl_state_seq seqs[MAX_SEQS];
    int64_t border = c->border[0], left = c->q_len[0] - border, o_cols = (int64_t)c->n_heads * c->v_dim;
    if (!border) return;
    rig_init(&a, c);
    rig_init(&b, c);
    for (int64_t i = 0; i < border * b.stride; i++) b.x[i] = NAN;
    for (int64_t i = 0; i < border * 2 * c->n_heads; i++) b.ab[i] = NAN;
    for (int64_t i = 0; i < b.n_conv; i++) b.conv_before[i] = NAN;
    for (int64_t i = 0; i < b.n_state; i++) b.before[i] = NAN;
    for (int i = 0; i < 2; i++) {
        rig *g = i ? &b : &a;
        hdl_conv_args conv = conv_of(g, seqs);
        if (impl->op == HDL_OP_CONV) run(impl, &conv, 2);
        hdl_delta_args delta = delta_of(g, seqs);
        if (impl->op == HDL_OP_DELTA) run(impl, &delta, 2);
    }
    for (int64_t r = border; r < c->q_len[0]; r++)
        assert_memory_equal(a.x + r * a.stride, b.x + r * b.stride, (size_t)a.n_cols * 4);
    assert_memory_equal(a.o + border * o_cols, b.o + border * o_cols, (size_t)(left * o_cols) * 4);
    if (impl->op == HDL_OP_DELTA) assert_memory_equal(a.after, b.after, (size_t)a.n_state * 4);
    rig_deinit(&a);
    rig_deinit(&b);
}

static void test_documents_do_not_mix(void **unused)
{
    (void)unused;
    over_cases(HDL_OP_CONV, check_border);
    over_cases(HDL_OP_DELTA, check_border);
}

/* The least and largest gates stay finite: a state that is kept whole, and one that is forgotten. */
static void test_extreme_gates(void **unused)
{
    (void)unused;
    const hdl_impl *const *list = hdl_cpu_impls(HDL_OP_DELTA);
    for (; *list; list++) {
        if ((*list)->isa > hdl_cpu_isa()) continue;
        rig g;
        hdl_state_seq seqs[MAX_SEQS];
        rig_init(&g, &cases[6]);
        for (int64_t i = 0; i < g.n_rows * 12; i++) g.ab[i] = i % 2 ? 200 : -200;
        for (int64_t i = 0; i < 12; i++) g.gates[i] = i % 3 ? 4 : -90;
        memset(g.x + 5 * g.stride, 0, (size_t)g.n_cols * 4); /* keys and queries of length 0 */
        run(*list, &(hdl_delta_args[]){delta_of(&g, seqs)}, 2);
        for (int64_t i = 0; i < g.n_rows * 6 * 64; i++) assert_true(isfinite(g.o[i]));
        for (int64_t i = 0; i < 2 * g.n_state; i++) assert_true(isfinite(g.after[i]));
        rig_deinit(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle),
        cmocka_unit_test(test_conv_equals_reference),
        cmocka_unit_test(test_delta_equals_reference),
        cmocka_unit_test(test_cuts_change_no_bit),
        cmocka_unit_test(test_documents_do_not_mix),
        cmocka_unit_test(test_extreme_gates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
