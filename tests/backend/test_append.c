/* test_append.c - every APPEND writes the same bytes, and no others. */
#include "backend/route_impls.h"
#include "tensor/quant.h"

enum { ROWS = 70, FIRST = 37, HEADS = 3 };

static float odd_value(uint64_t *random)
{
    static const float odd[] = {0,     -0.0f,   65504, 65519.99f, 65520,      -1e6f,
                                6e-8f, 2.9e-8f, 3e-8f, 1e-40f,    1.00048828f};
    return next_random(random) % 9 ? next_unit(random) : odd[next_random(random) % HDL_COUNT(odd)];
}

static void check_layout(const hdl_impl *impl, const hdl_impl *reference, const attend_case *c)
{
    hdl_append_args args = {ROWS, FIRST, HEADS, c->head_dim, c->v_head_dim, NULL, NULL, 0, 0, {0}};
    int64_t bytes = lay_out_page(&args.kv, c), slots = (int64_t)1 << c->page_shift;
    int64_t n_pages = (FIRST + ROWS + slots - 1) / slots;
    args.k_stride = HEADS * c->head_dim + 1;
    args.v_stride = HEADS * c->v_head_dim;
    float *k = must_alloc(ROWS * args.k_stride * 4), *v = must_alloc(ROWS * args.v_stride * 4);
    uint64_t random = 41;
    for (int64_t i = 0; i < ROWS * args.k_stride; i++) k[i] = odd_value(&random);
    for (int64_t i = 0; i < ROWS * args.v_stride; i++) v[i] = i < 300 ? 0 : odd_value(&random);
    args.k = k;
    args.v = v;
    uint8_t *memory[2], *pages[256];
    for (int turn = 0; turn < 2; turn++) {
        memory[turn] = must_alloc(n_pages * bytes);
        memset(memory[turn], 0xa5, (size_t)(n_pages * bytes));
        for (int64_t p = 0; p < n_pages; p++) pages[p] = memory[turn] + p * bytes;
        args.kv.pages = pages;
        (turn ? impl : reference)->launch(&(hdl_launch){.n_threads = 2, .workspace = NULL}, &args);
    }
    if (memcmp(memory[0], memory[1], (size_t)(n_pages * bytes)) != 0) {
        print_error("%s, %s: other bytes than the reference's\n", c->name, impl->name);
        fail();
    }
    free(memory[0]);
    free(memory[1]);
    free(k);
    free(v);
}

static void test_same_bytes(void **state)
{
    (void)state;
    static const attend_case layouts[] = {
        {"f32", HEADS, HEADS, 64, 64, HDL_F32, 4, .is_head_major = false},
        {"f16", HEADS, HEADS, 64, 80, HDL_F16, 4, .is_head_major = false},
        {"f16 head-major", HEADS, HEADS, 20, 12, HDL_F16, 5, .is_head_major = true},
        {"bf16", HEADS, HEADS, 48, 64, HDL_BF16, 8, .is_head_major = false},
        {"i8", HEADS, HEADS, 64, 64, HDL_I8, 4, .is_head_major = false},
        {"i8 odd", HEADS, HEADS, 33, 7, HDL_I8, 5, .is_head_major = false},
        {"q4_1", HEADS, HEADS, 64, 96, HDL_Q4_1, 4, .is_head_major = false},
        {"q4_1 head-major", HEADS, HEADS, 32, 64, HDL_Q4_1, 5, .is_head_major = true},
        {"i8 head-major", HEADS, HEADS, 64, 32, HDL_I8, 5, .is_head_major = true},
    };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_APPEND, impls);
    for (int64_t k = 1; k < n; k++)
        for (int64_t i = 0; i < HDL_COUNT(layouts); i++) check_layout(impls[k], impls[0], &layouts[i]);
}

/* Stored rows of q4_1: an element is off by half a step of its block at most, and what rounding the step
 * and the minimum to halves moves; what tensor/quant.h decodes is what attention reads. */
static void test_q4_1_rows(void **state)
{
    (void)state;
    uint64_t random = 7;
    float x[96], decoded[96];
    uint8_t row[60];
    for (int turn = 0; turn < 500; turn++) {
        float size = ldexpf(1, turn % 24 - 15), offset = turn % 3 ? size * next_unit(&random) * 20 : 0;
        for (int i = 0; i < 96; i++) x[i] = turn % 7 ? size * next_unit(&random) + offset : offset;
        quantise_q4_1(x, row, 96);
        hdl_dequant_row(HDL_Q4_1, row, decoded, 96);
        for (int b = 0; b < 96; b += 32) {
            float least = INFINITY, most = -INFINITY;
            for (int i = b; i < b + 32; i++) {
                least = fminf(least, x[i]);
                most = fmaxf(most, x[i]);
            }
            float step = (most - least) / 15;
            float bound = step * (0.5f + 15 * 0x1p-11f) + fabsf(least) * 0x1p-11f + 16 * 0x1p-24f;
            for (int i = b; i < b + 32; i++) {
                assert_true(decoded[i] == stored_element(HDL_Q4_1, row, i, 0));
                if (fabsf(decoded[i] - x[i]) <= bound) continue;
                print_error("element %d: %g became %g, bound %g\n", i, x[i], decoded[i], bound);
                fail();
            }
        }
    }
}

static void test_q4_1_keeps_nan_and_infinity_visible(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f};
    uint8_t row[40];
    for (int i = 0; i < HDL_COUNT(odd); i++) {
        float x[64] = {1, 2, 3};
        x[32 + 7 * i] = odd[i];
        quantise_q4_1(x, row, 64);
        for (int j = 0; j < 32; j++) assert_true(isfinite(stored_element(HDL_Q4_1, row, j, 0)));
        assert_false(isfinite(stored_element(HDL_Q4_1, row, 32 + 7 * i, 0)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_q4_1_rows),
                                       cmocka_unit_test(test_q4_1_keeps_nan_and_infinity_visible)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
