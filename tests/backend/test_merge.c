/* test_merge.c - lse-merge: reference against fast, one partial, empty partials, in place. */
#include "backend/route_impls.h"

enum { ROWS = 131, MAX_PARTS = 5, MAX_DIM = 256 };

typedef struct merge_data {
    float o[MAX_PARTS][ROWS * MAX_DIM], lse[MAX_PARTS][ROWS];
    const float *o_at[MAX_PARTS], *lse_at[MAX_PARTS];
} merge_data;

static merge_data *make_data(int32_t dim, uint64_t seed)
{
    merge_data *data = must_alloc(sizeof *data);
    for (int p = 0; p < MAX_PARTS; p++) {
        fill_random(data->o[p], ROWS * (int64_t)dim, &seed);
        for (int row = 0; row < ROWS; row++) {
            bool is_empty = row % 7 == 3 || next_random(&seed) % 4 == 0;
            data->lse[p][row] = is_empty ? -INFINITY : 40 * next_unit(&seed);
            if (is_empty) /* what an empty partial holds does not matter */
                for (int i = 0; i < dim; i++) data->o[p][row * dim + i] = NAN;
        }
        data->o_at[p] = data->o[p];
        data->lse_at[p] = data->lse[p];
    }
    return data;
}

static void test_against_reference(void **state)
{
    (void)state;
    static const int32_t dims[] = {16, 64, 256};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_MERGE, impls);
    for (int64_t k = 0; k < n_impls; k++)
        for (int64_t d = 0; d < HDL_COUNT(dims); d++)
            for (int32_t n = 1; n <= MAX_PARTS; n++) {
                int32_t dim = dims[d];
                merge_data *data = make_data(dim, 17);
                float *want = must_alloc(ROWS * (int64_t)dim * 4), want_lse[ROWS];
                hdl_merge_args args = {ROWS, n, dim, data->o_at, data->lse_at, want, want_lse};
                impls[0]->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
                args.o_out = data->o[0]; /* in place */
                args.lse_out = data->lse[0];
                impls[k]->launch(&(hdl_launch){.n_threads = 3, .workspace = NULL}, &args);
                for (int row = 0; row < ROWS; row++) {
                    if (want_lse[row] == -INFINITY)
                        assert_true(data->lse[0][row] == -INFINITY);
                    else
                        assert_true(fabsf(data->lse[0][row] - want_lse[row]) <=
                                    1e-5f * (1 + fabsf(want_lse[row])));
                    for (int i = 0; i < dim; i++)
                        assert_true(fabsf(data->o[0][row * dim + i] - want[row * dim + i]) <= 2e-6f);
                }
                free(want);
                free(data);
            }
}

static void test_one_partial_is_itself(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_MERGE, impls);
    for (int64_t k = 0; k < n_impls; k++) {
        merge_data *data = make_data(64, 23);
        float *out = must_alloc(ROWS * 64 * 4), lse[ROWS];
        hdl_merge_args args = {ROWS, 1, 64, data->o_at, data->lse_at, out, lse};
        impls[k]->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        assert_memory_equal(lse, data->lse[0], sizeof lse);
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < 64; i++)
                assert_true(out[row * 64 + i] == (lse[row] == -INFINITY ? 0 : data->o[0][row * 64 + i]));
        args.lse_out = NULL;
        impls[k]->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        free(out);
        free(data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_reference),
                                       cmocka_unit_test(test_one_partial_is_itself)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
