/* test_union.c - UNION against a table of marks; cut into ranges of tokens it is the same; every kernel, over contexts of
 * many windows and with the runs before slashes, lists what the reference lists and writes nothing behind it. */
#include "backend/route_impls.h"

enum { ROWS = 3, UNITS = 500, LISTS = 6, SHARDS = 8 };

typedef struct set_of_lists {
    int32_t ids[ROWS * LISTS * UNITS], counts[ROWS * LISTS];
    hdl_selection view;
} set_of_lists;

/* Random lists, `dense` of 16 units chosen; list 0 of row 1 is empty, the last of row 2 holds everything. */
static void draw(set_of_lists *set, uint32_t dense, uint64_t *random)
{
    set->view = (hdl_selection){.block_size = 1,
                                .n_rows = ROWS,
                                .n_lists = LISTS,
                                .n_ids_max = UNITS,
                                .ids = set->ids,
                                .counts = set->counts};
    for (int r = 0; r < ROWS; r++)
        for (int32_t l = 0; l < LISTS; l++) {
            int32_t *ids = hdl_selection_ids(&set->view, r, l), n = 0;
            bool is_empty = r == 1 && l == 0, is_full = r == 2 && l == LISTS - 1;
            for (int32_t u = 0; u < UNITS; u++)
                if (!is_empty && (is_full || next_random(random) % 16 < dense)) ids[n++] = u;
            *hdl_selection_count(&set->view, r, l) = n;
        }
}

static void unite(const hdl_impl *impl, set_of_lists *from, int32_t n_out, set_of_lists *out)
{
    out->view = from->view;
    out->view.n_lists = n_out;
    out->view.ids = out->ids;
    out->view.counts = out->counts;
    memset(out->ids, 0xee, sizeof out->ids);
    hdl_union_args args = {.n_rows = ROWS, .lists = &from->view, .out = &out->view};
    assert_true(!impl->why_not || !impl->why_not(&args));
    impl->launch(&(hdl_launch){.n_threads = 2}, &args);
}

static void check_marks(const set_of_lists *from, const set_of_lists *out)
{
    int32_t g = from->view.n_lists / out->view.n_lists;
    for (int r = 0; r < ROWS; r++)
        for (int32_t o = 0; o < out->view.n_lists; o++) {
            bool marks[UNITS] = {false};
            int32_t n = 0;
            for (int32_t l = o * g; l < (o + 1) * g; l++)
                for (int32_t i = 0; i < *hdl_selection_count(&from->view, r, l); i++)
                    marks[hdl_selection_ids(&from->view, r, l)[i]] = true;
            for (int32_t u = 0; u < UNITS; u++)
                if (marks[u]) assert_int_equal(hdl_selection_ids(&out->view, r, o)[n++], u);
            assert_int_equal(*hdl_selection_count(&out->view, r, o), n);
        }
}

static void test_union_is_the_marked_units(void **state)
{
    (void)state;
    static set_of_lists from, out;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_UNION, impls);
    uint64_t random = 5;
    assert_true(n >= 1);
    for (int64_t k = 0; k < n; k++)
        for (uint32_t dense = 0; dense <= 16; dense += 2)
            for (int32_t n_out = 1; n_out <= LISTS; n_out++) {
                if (LISTS % n_out) continue;
                draw(&from, dense, &random);
                unite(impls[k], &from, n_out, &out);
                check_marks(&from, &out);
            }
}

/* What the heads chose in each of 1..8 ranges of tokens, united range by range and laid end to end. */
static void test_ranges_of_tokens(void **state)
{
    (void)state;
    static set_of_lists whole, part, out, of_part, joined;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_UNION, impls);
    uint64_t random = 9;
    for (int64_t k = 0; k < n; k++)
        for (int32_t n_shards = 1; n_shards <= SHARDS; n_shards++) {
            draw(&whole, 3, &random);
            unite(impls[k], &whole, 1, &out);
            memset(joined.counts, 0, sizeof joined.counts);
            joined.view = out.view;
            joined.view.ids = joined.ids;
            joined.view.counts = joined.counts;
            for (int32_t s = 0, from = 0, to; s < n_shards; s++, from = to) {
                to = s + 1 == n_shards
                         ? UNITS
                         : from + (int32_t)(next_random(&random) % (uint32_t)(UNITS - from + 1));
                part.view = whole.view;
                part.view.ids = part.ids;
                part.view.counts = part.counts;
                for (int r = 0; r < ROWS; r++)
                    for (int32_t l = 0; l < LISTS; l++) {
                        int32_t m = 0, count = *hdl_selection_count(&whole.view, r, l);
                        for (int32_t i = 0; i < count; i++) {
                            int32_t id = hdl_selection_ids(&whole.view, r, l)[i];
                            if (id >= from && id < to) hdl_selection_ids(&part.view, r, l)[m++] = id;
                        }
                        *hdl_selection_count(&part.view, r, l) = m;
                    }
                unite(impls[k], &part, 1, &of_part);
                for (int r = 0; r < ROWS; r++) {
                    int32_t *at = hdl_selection_count(&joined.view, r, 0), m = of_part.counts[r];
                    memcpy(hdl_selection_ids(&joined.view, r, 0) + *at,
                           hdl_selection_ids(&of_part.view, r, 0), (size_t)m * sizeof *joined.ids);
                    *at += m;
                }
            }
            for (int r = 0; r < ROWS; r++) {
                assert_int_equal(joined.counts[r], out.counts[r]);
                assert_memory_equal(hdl_selection_ids(&joined.view, r, 0), hdl_selection_ids(&out.view, r, 0),
                                    (size_t)out.counts[r] * sizeof *out.ids);
            }
        }
}

enum { WIDE = 300000, FEW = 3000 };

/* Ascending ids whose gaps are mostly small, so that there are dense words, sparse ones and empty windows. */
static int32_t draw_wide(int32_t *ids, int32_t most, uint64_t *random)
{
    int32_t n = 0;
    for (int64_t id = next_random(random) % 500; id < WIDE && n < most; n++) {
        uint32_t draw = next_random(random);
        ids[n] = (int32_t)id;
        id += draw % 200 == 0 ? draw / 256 % 60000 : draw % 3 ? 1 : draw / 256 % 60;
    }
    return n;
}

static void test_kernels_list_what_the_reference_lists(void **state)
{
    (void)state;
    static int32_t ids[LISTS * FEW], slash_ids[2 * FEW], counts[LISTS], slash_counts[2];
    static const int32_t before[] = {0, 1, 63, 700, 40000};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_UNION, impls);
    uint64_t random = 21;
    int32_t *out = must_alloc((2 * WIDE + 1) * 4), *same = must_alloc((2 * WIDE + 1) * 4), out_counts[2];
    hdl_selection lists = {.block_size = 1, .n_rows = 1, .n_lists = LISTS, .n_ids_max = FEW};
    hdl_selection slashes = lists, to = lists;
    lists.ids = ids;
    lists.counts = counts;
    slashes.n_lists = to.n_lists = 2;
    slashes.ids = slash_ids;
    slashes.counts = slash_counts;
    to.n_ids_max = WIDE;
    to.ids = out;
    to.counts = out_counts;
    for (int round = 0; round < 40; round++) {
        int32_t n_before = before[round % HDL_COUNT(before)], most = round < 20 ? FEW : 40;
        for (int l = 0; l < LISTS; l++) counts[l] = draw_wide(ids + (ptrdiff_t)l * FEW, most, &random);
        for (int l = 0; l < 2; l++) slash_counts[l] = draw_wide(slash_ids + (ptrdiff_t)l * FEW, 20, &random);
        hdl_union_args args = {.n_rows = 1, .lists = &lists, .n_before = n_before, .out = &to};
        if (round % 3) args.slashes = &slashes;
        to.n_ids_max = WIDE;
        impls[0]->launch(&(hdl_launch){.n_threads = 2}, &args);
        int32_t n[2] = {out_counts[0], out_counts[1]};
        memcpy(same, out, (size_t)n[0] * 4);
        memcpy(same + WIDE, out + WIDE, (size_t)n[1] * 4);
        to.n_ids_max = HDL_MAX(n[0], n[1]); /* no room to spare */
        for (int64_t k = 1; k < n_impls; k++) {
            memset(out, 0xee, (2 * WIDE + 1) * 4);
            impls[k]->launch(&(hdl_launch){.n_threads = 2}, &args);
            for (int l = 0; l < 2; l++) {
                assert_int_equal(out_counts[l], n[l]);
                assert_memory_equal(out + l * to.n_ids_max, same + (ptrdiff_t)l * WIDE, (size_t)n[l] * 4);
            }
            assert_int_equal((uint32_t)out[2 * to.n_ids_max], 0xeeeeeeee);
        }
    }
    free(out);
    free(same);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_union_is_the_marked_units),
                                       cmocka_unit_test(test_ranges_of_tokens),
                                       cmocka_unit_test(test_kernels_list_what_the_reference_lists)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
