/* test_append.c - every APPEND writes the same bytes, and no others. */
#include "backend/route_impls.h"

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
        {"i8 head-major", HEADS, HEADS, 64, 32, HDL_I8, 5, .is_head_major = true},
    };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_APPEND, impls);
    for (int64_t k = 1; k < n; k++)
        for (int64_t i = 0; i < HDL_COUNT(layouts); i++) check_layout(impls[k], impls[0], &layouts[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
