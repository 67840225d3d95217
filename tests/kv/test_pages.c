/* The page store: bytes follow use, forks share until they write, rolling groups free what is behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "kv/kv.h"

static const hdl_kv_group_spec full = {
    .n_layers = 2, .n_kv_heads = 3, .head_dim = 16, .v_head_dim = 8, .dtype = HDL_F16, .page_shift = 4};
static const hdl_kv_group_spec rolling = {.n_layers = 1,
                                          .window = 20,
                                          .n_kv_heads = 1,
                                          .head_dim = 16,
                                          .v_head_dim = 16,
                                          .dtype = HDL_I8,
                                          .page_shift = 4};

static hdl_kv_store *new_store(int64_t n_full, int64_t n_rolling)
{
    hdl_kv_store *store;
    const hdl_kv_group_spec specs[] = {full, rolling};
    const int64_t n_pages[] = {n_full, n_rolling};
    assert_int_equal(hdl_kv_store_new(&store, specs, 2, n_pages), HEDDLE_OK);
    return store;
}

static uint8_t *k_row(const hdl_kv_seq *seq, int32_t group, int32_t layer, int64_t token)
{
    hdl_kv_view view = hdl_kv_seq_view(seq, group, layer);
    uint8_t *page = view.pages[token >> view.page_shift];
    return page ? page + view.k_offset + (token & ((1 << view.page_shift) - 1)) * view.token_stride : NULL;
}

static void test_layouts_hold_every_row_once(void **state)
{
    (void)state;
    for (int is_head_major = 0; is_head_major < 2; is_head_major++)
        for (int d = 0; d < 2; d++) {
            hdl_kv_group_spec spec = full;
            hdl_kv_layout at;
            static uint8_t seen[1 << 16];
            spec.is_head_major = is_head_major;
            spec.dtype = d ? HDL_I8 : HDL_F16;
            assert_int_equal(hdl_kv_layout_of(&at, &spec), HEDDLE_OK);
            memset(seen, 0, sizeof seen);
            int64_t k_bytes = hdl_row_bytes(spec.dtype, 16), v_bytes = hdl_row_bytes(spec.dtype, 8);
            for (int64_t t = 0; t < 16; t++)
                for (int64_t h = 0; h < 3; h++) {
                    for (int64_t b = 0; b < k_bytes; b++)
                        seen[at.k_offset + t * at.token_stride + h * at.head_stride + b]++;
                    for (int64_t b = 0; b < v_bytes; b++)
                        seen[at.v_offset + t * at.token_stride + h * at.v_head_stride + b]++;
                    for (int64_t b = 0; d && b < 4; b++) {
                        seen[at.k_scale_offset + (t * 3 + h) * 4 + b]++;
                        seen[at.v_scale_offset + (t * 3 + h) * 4 + b]++;
                    }
                }
            for (int64_t b = 0; b < 16 * at.token_bytes; b++) assert_int_equal(seen[b], 1);
            assert_true(at.layer_bytes >= 16 * at.token_bytes && at.page_bytes >= 2 * at.layer_bytes);
        }
}

/* Sizes whose products do not fit 64 bits, as a file may state them. */
static void test_layouts_too_large_are_refused(void **state)
{
    (void)state;
    hdl_kv_layout at;
    hdl_kv_group_spec rows = {.n_layers = 1,
                              .n_kv_heads = 1024,
                              .head_dim = 1 << 16,
                              .v_head_dim = 1 << 16,
                              .dtype = HDL_F32,
                              .page_shift = 40};
    assert_int_equal(hdl_kv_layout_of(&at, &rows), HEDDLE_E_CAPACITY);
    hdl_kv_group_spec summary = {
        .n_layers = 1, .n_kv_heads = 1, .head_dim = 1, .v_head_dim = 1, .dtype = HDL_F16, .page_shift = 40};
    assert_int_equal(hdl_kv_layout_of(&at, &summary), HEDDLE_OK);
    assert_int_equal(hdl_kv_spec_add_plane(&summary, HDL_PLANE_INDEX, 1, 1024, 1 << 16, 0), HEDDLE_OK);
    assert_int_equal(hdl_kv_layout_of(&at, &summary), HEDDLE_E_CAPACITY);
}

static void test_bytes_follow_use(void **state)
{
    (void)state;
    hdl_kv_store *store = new_store(10, 10);
    hdl_kv_seq *seq;
    int64_t page0 = hdl_kv_store_layout(store, 0)->page_bytes,
            page1 = hdl_kv_store_layout(store, 1)->page_bytes;
    assert_int_equal(hdl_kv_seq_new(&seq, store, 160), HEDDLE_OK);
    assert_int_equal(hdl_kv_store_live_bytes(store), 0);
    for (int64_t len = 0; len < 100; len++) {
        assert_int_equal(hdl_kv_seq_reserve(seq, 1), HEDDLE_OK);
        hdl_kv_seq_commit(seq, 1);
        int64_t first = len + 1 - 19 > 0 ? (len + 1 - 19) / 16
                                         : 0; /* the next row reads 19 tokens before it */
        assert_int_equal(hdl_kv_store_live_bytes(store),
                         (len / 16 + 1) * page0 + (len / 16 + 1 - first) * page1);
    }
    assert_null(k_row(seq, 1, 0, 3));
    assert_non_null(k_row(seq, 1, 0, 90));
    assert_int_equal(hdl_kv_seq_truncate(seq, 99), 99);
    assert_int_equal(hdl_kv_seq_truncate(seq, 40), 0); /* the window before row 40 is gone */
    assert_int_equal(hdl_kv_store_live_bytes(store), 0);
    assert_int_equal(hdl_kv_seq_reserve(seq, 161), HEDDLE_E_CAPACITY);
    hdl_kv_seq_free(seq);
    hdl_kv_store_unref(store);
}

static void test_a_fork_copies_what_it_writes(void **state)
{
    (void)state;
    hdl_kv_store *store = new_store(10, 10);
    hdl_kv_seq *seq, *fork;
    assert_int_equal(hdl_kv_seq_new(&seq, store, 160), HEDDLE_OK);
    assert_int_equal(hdl_kv_seq_reserve(seq, 40), HEDDLE_OK);
    for (int64_t t = 0; t < 40; t++) k_row(seq, 0, 1, t)[0] = (uint8_t)t;
    hdl_kv_seq_commit(seq, 40);
    int64_t live = hdl_kv_store_live_bytes(store);
    assert_int_equal(hdl_kv_seq_fork(&fork, seq), HEDDLE_OK);
    assert_int_equal(hdl_kv_store_live_bytes(store), live);
    assert_ptr_equal(k_row(fork, 0, 1, 35), k_row(seq, 0, 1, 35));
    assert_int_equal(hdl_kv_seq_reserve(fork, 1), HEDDLE_OK); /* its last page becomes its own, rows kept */
    assert_ptr_not_equal(k_row(fork, 0, 1, 35), k_row(seq, 0, 1, 35));
    assert_ptr_equal(k_row(fork, 0, 1, 31), k_row(seq, 0, 1, 31));
    assert_int_equal(k_row(fork, 0, 1, 35)[0], 35);
    k_row(fork, 0, 1, 40)[0] = 200;
    hdl_kv_seq_commit(fork, 1);
    assert_int_equal(hdl_kv_seq_reserve(seq, 1), HEDDLE_OK); /* now the only one: no copy */
    assert_int_not_equal(k_row(seq, 0, 1, 40)[0], 200);
    hdl_kv_seq_free(seq);
    assert_int_equal(k_row(fork, 0, 1, 5)[0], 5); /* shared pages outlive the parent */
    hdl_kv_seq_free(fork);
    assert_int_equal(hdl_kv_store_live_bytes(store), 0);
    hdl_kv_store_unref(store);
}

static void test_a_full_store_changes_nothing(void **state)
{
    (void)state;
    hdl_kv_store *store = new_store(3, 3);
    hdl_kv_seq *seq;
    assert_int_equal(hdl_kv_seq_new(&seq, store, 160), HEDDLE_OK);
    assert_int_equal(hdl_kv_seq_reserve(seq, 40), HEDDLE_OK);
    hdl_kv_seq_commit(seq, 40);
    int64_t live = hdl_kv_store_live_bytes(store);
    assert_int_equal(hdl_kv_seq_reserve(seq, 20), HEDDLE_E_CAPACITY);
    assert_int_equal(hdl_kv_store_live_bytes(store), live);
    assert_int_equal(hdl_kv_seq_len(seq), 40);
    assert_int_equal(hdl_kv_seq_reserve(seq, 8), HEDDLE_OK);
    hdl_kv_seq_free(seq);
    hdl_kv_store_unref(store);
}

static void test_reserved_pages_can_be_given_back(void **state)
{
    (void)state;
    hdl_kv_store *store = new_store(20, 20);
    hdl_kv_seq *seq, *fork;
    assert_int_equal(hdl_kv_seq_new(&seq, store, 160), HEDDLE_OK);
    assert_int_equal(hdl_kv_seq_reserve(seq, 40), HEDDLE_OK);
    hdl_kv_seq_commit(seq, 40);
    int64_t live = hdl_kv_store_live_bytes(store), own = hdl_kv_seq_bytes(seq);
    assert_int_equal(hdl_kv_seq_reserve(seq, 60), HEDDLE_OK);
    assert_true(hdl_kv_store_live_bytes(store) > live);
    hdl_kv_seq_release(seq);
    assert_int_equal(hdl_kv_store_live_bytes(store), live);
    assert_int_equal(hdl_kv_seq_bytes(seq), own);
    assert_int_equal(hdl_kv_seq_fork(&fork, seq), HEDDLE_OK);
    assert_int_equal(hdl_kv_seq_reserve(seq, 60), HEDDLE_OK); /* rows 48.. of both lie apart */
    assert_int_equal(hdl_kv_seq_reserve(fork, 60), HEDDLE_OK);
    for (int64_t t = 40; t < 100; t++) assert_ptr_not_equal(k_row(fork, 0, 1, t), k_row(seq, 0, 1, t));
    hdl_kv_seq_free(seq);
    hdl_kv_seq_free(fork);
    assert_int_equal(hdl_kv_store_live_bytes(store), 0);
    hdl_kv_store_unref(store);
}

static void test_pages_are_not_allocated(void **state)
{
    (void)state;
    hdl_kv_store *store = new_store(100, 100);
    hdl_kv_seq *seq;
    assert_int_equal(hdl_kv_seq_new(&seq, store, 1600), HEDDLE_OK);
    int64_t before = hdl_mem_n_allocs();
    for (int i = 0; i < 1500; i++) {
        assert_int_equal(hdl_kv_seq_reserve(seq, 1), HEDDLE_OK);
        hdl_kv_seq_commit(seq, 1);
    }
    assert_int_equal(hdl_mem_n_allocs(), before);
    hdl_kv_seq_free(seq);
    hdl_kv_store_unref(store);
}

/* A step that is released leaves the states as they were; a fork has its own; nothing else than all can be kept. */
static void test_states_go_with_the_commit(void **state)
{
    (void)state;
    enum { LAYERS = 3, FLOATS = 32 };
    hdl_kv_store *store = new_store(100, 100);
    hdl_kv_seq *seq, *fork;
    int64_t pages = hdl_kv_store_live_bytes(store);
    hdl_kv_store_keep_state(store, LAYERS, FLOATS);
    assert_int_equal(hdl_kv_seq_new(&seq, store, 1600), HEDDLE_OK);
    assert_int_equal(hdl_kv_store_live_bytes(store) - pages, 2 * LAYERS * FLOATS * 4);
    for (int i = 1; i < 4; i++) { /* the last step is released */
        assert_int_equal(hdl_kv_seq_reserve(seq, 5), HEDDLE_OK);
        for (int32_t layer = 0; layer < LAYERS; layer++)
            for (int f = 0; f < FLOATS; f++)
                hdl_kv_seq_state(seq, layer).after[f] = (float)(100 * i + 10 * layer);
        if (i < 3)
            hdl_kv_seq_commit(seq, 5);
        else
            hdl_kv_seq_release(seq);
    }
    for (int32_t layer = 0; layer < LAYERS; layer++)
        assert_true(hdl_kv_seq_state(seq, layer).before[FLOATS - 1] == (float)(200 + 10 * layer));
    assert_int_equal(hdl_kv_seq_fork(&fork, seq), HEDDLE_OK);
    assert_int_equal(hdl_kv_seq_reserve(seq, 1), HEDDLE_OK);
    hdl_kv_seq_state(seq, 1).after[0] = 5;
    hdl_kv_seq_commit(seq, 1);
    assert_true(hdl_kv_seq_state(seq, 1).before[0] == 5 && hdl_kv_seq_state(fork, 1).before[0] == 210);
    assert_int_equal(hdl_kv_seq_truncate(seq, 11), 11);
    assert_int_equal(hdl_kv_seq_truncate(seq, 10), 0);
    hdl_kv_seq_free(seq);
    hdl_kv_seq_free(fork);
    assert_int_equal(hdl_kv_store_live_bytes(store), pages);
    hdl_kv_store_unref(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts_hold_every_row_once),
        cmocka_unit_test(test_layouts_too_large_are_refused),
        cmocka_unit_test(test_bytes_follow_use),
        cmocka_unit_test(test_a_fork_copies_what_it_writes),
        cmocka_unit_test(test_a_full_store_changes_nothing),
        cmocka_unit_test(test_reserved_pages_can_be_given_back),
        cmocka_unit_test(test_pages_are_not_allocated),
        cmocka_unit_test(test_states_go_with_the_commit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
