/* test_groups.c - the groups of plane GROUP against an oracle's (tests/oracle/groups.py), and RESOLVE of every
 * instruction set against the reference, and the reference against marks. */
#include <jansson.h>

#include "backend/cpu/route_int.h"
#include "backend/plane_cases.h"

enum { SEGMENT = HDL_SEGMENT_TOKENS, HEADS = 2, DIM = 16, MAX_TOKENS = 4 * SEGMENT };

/* ---- the oracle's keys ---- */

/* As tests/oracle/groups.py draws them: whole 64ths around one of `n_centres` centres. */
static float key_at(int64_t t, int64_t i, int64_t n_centres)
{
    uint32_t noise = (uint32_t)(t * 40503 + i * 9973 + 12345), centre, at;
    for (int r = 0; r < 3; r++) noise = (noise ^ noise >> 15) * 0x2c1b3c6du;
    at = (uint32_t)(t * 7919 + 17);
    for (int r = 0; r < 3; r++) at = (at ^ at >> 15) * 0x297a2d39u;
    centre = (uint32_t)((at >> 8) % (uint32_t)n_centres * 613 + i * 104729 + 1);
    for (int r = 0; r < 3; r++) centre = (centre ^ centre >> 15) * 0x2c1b3c6du;
    return (float)((int32_t)(noise >> 8 & 127) - 64 + 4 * ((int32_t)(centre >> 8 & 127) - 64)) / 64;
}

static void append_keys(const plane_cache *cache, int64_t n, int64_t n_centres)
{
    float k[HEADS * DIM], v[HEADS * DIM] = {0};
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < HEADS * DIM; i++) k[i] = key_at(t, i, n_centres);
        hdl_append_args args = {1, t, HEADS, DIM, DIM, k, v, HEADS * DIM, HEADS * DIM, cache->kv};
        ref_impl(hdl_cpu_ref_attend, HDL_OP_APPEND)->launch(&(hdl_launch){.n_threads = 1}, &args);
    }
}

static void check_golden(const json_t *at)
{
    int64_t n = json_integer_value(json_object_get(at, "tokens")),
            n_centres = json_integer_value(json_object_get(at, "centres"));
    int32_t block = (int32_t)json_integer_value(json_object_get(at, "block"));
    const json_t *members = json_object_get(at, "members"), *means = json_object_get(at, "means");
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SUMMARISE, impls);
    for (int64_t k = 0; k < n_impls; k++) {
        plane_cache cache;
        open_cache(&cache, HDL_F16, 8, HEADS, DIM, DIM, n, HDL_PLANE_GROUP, block);
        append_keys(&cache, n, n_centres);
        summarise_with(impls[k], &cache, 0, n, HDL_PLANE_GROUP, block);
        assert_int_equal(json_array_size(members), n / SEGMENT * SEGMENT);
        for (int64_t t = 0; t < n / SEGMENT * SEGMENT; t++)
            if (*group_members(&cache.kv, block, t) != json_integer_value(json_array_get(members, (size_t)t)))
                fail_msg("%s, groups of %d: place %d is token %d of its segment, wanted %d", impls[k]->name,
                         block, (int)t, *group_members(&cache.kv, block, t),
                         (int)json_integer_value(json_array_get(members, (size_t)t)));
        for (int64_t g = 0; g < n / SEGMENT * SEGMENT / block; g++)
            for (int64_t i = 0; i < HEADS * DIM; i++) {
                const hdl_kv_plane *plane = &cache.kv.plane[0];
                const int8_t *mean = (int8_t *)plane_at(&cache.kv, plane->offset, g, block, HEADS * DIM);
                const float *scale = (float *)(void *)plane_at(&cache.kv, plane->scale_offset, g, block,
                                                               HEADS * 4);
                double want = json_number_value(json_array_get(means, (size_t)(g * HEADS * DIM + i)));
                assert_true(fabs((double)mean[i] * (double)scale[i / DIM] - want) <=
                            0.5001 * (double)scale[i / DIM]);
            }
        close_cache(&cache);
    }
}

static void test_groups_are_the_oracles(void **state)
{
    (void)state;
    json_error_t error;
    json_t *golden = json_load_file(HDL_TEST_DATA "/golden/methods/groups.json", 0, &error);
    if (!golden) fail_msg("%s", error.text);
    assert_true(json_array_size(golden) >= 3);
    for (size_t i = 0; i < json_array_size(golden); i++) check_golden(json_array_get(golden, i));
    json_decref(golden);
}

/* ---- RESOLVE ---- */

typedef struct resolve_setup {
    plane_cache cache;
    hdl_attend_seq seqs[2];
    int64_t n_visible[4];
    int32_t groups[4 * 2 * MAX_TOKENS], group_counts[4 * 2];
    hdl_selection lists;
} resolve_setup;

enum { ROWS = 4, LISTS = 2 };

/* Rows 0..2 are the last of a sequence of kv_len tokens, row 3 is of another with the same rows. */
static void open_resolve(resolve_setup *at, int64_t kv_len, int32_t block, int32_t n_of_8, uint64_t *random)
{
    open_cache(&at->cache, HDL_F16, 9, HEADS, DIM, DIM, kv_len, HDL_PLANE_GROUP, block);
    append_random(&at->cache, 0, kv_len, random);
    summarise_with(ref_impl(hdl_cpu_ref_route, HDL_OP_SUMMARISE), &at->cache, 0, kv_len, HDL_PLANE_GROUP,
                   block);
    at->seqs[0] = (hdl_attend_seq){.first_row = 0, .q_len = 3, .kv_len = kv_len, .kv = at->cache.kv};
    at->seqs[1] = (hdl_attend_seq){.first_row = 3, .q_len = 1, .kv_len = kv_len, .kv = at->cache.kv};
    at->lists = (hdl_selection){.unit = HDL_UNIT_BLOCK,
                                .block_size = block,
                                .n_rows = ROWS,
                                .n_lists = LISTS,
                                .n_ids_max = MAX_TOKENS,
                                .ids = at->groups,
                                .counts = at->group_counts};
    for (int64_t r = 0; r < ROWS; r++) {
        at->n_visible[r] = r < 3 ? kv_len - 2 + r : kv_len;
        for (int32_t l = 0; l < LISTS; l++) {
            int32_t n = 0;
            for (int32_t u = 0; u * (int64_t)block < at->n_visible[r]; u++)
                if ((int32_t)(next_random(random) % 8) < n_of_8) hdl_selection_ids(&at->lists, r, l)[n++] = u;
            *hdl_selection_count(&at->lists, r, l) = n;
        }
    }
}

/* Marks of the tokens that a list must hold. */
static void mark(const resolve_setup *at, int64_t r, int32_t l, int32_t n_sink, int32_t window, bool *marks)
{
    int64_t visible = at->n_visible[r], block = at->lists.block_size;
    memset(marks, 0, MAX_TOKENS * sizeof *marks);
    for (int64_t t = 0; t < visible; t++) marks[t] = t < n_sink || t >= visible - window;
    for (int32_t i = 0; i < *hdl_selection_count(&at->lists, r, l); i++)
        for (int64_t j = 0; j < block; j++) {
            int64_t place = hdl_selection_ids(&at->lists, r, l)[i] * block + j,
                    first = place / SEGMENT * SEGMENT;
            int64_t t = first + SEGMENT <= visible
                            ? first + *group_members(&at->cache.kv, (int32_t)block, place)
                            : place;
            if (t < visible) marks[t] = true;
        }
}

static void test_lists_are_the_marked_tokens(void **state)
{
    (void)state;
    static resolve_setup at;
    static int32_t ids[ROWS * LISTS * MAX_TOKENS + 1], counts[ROWS * LISTS];
    static bool marks[MAX_TOKENS];
    static const int32_t blocks[] = {2, 16, 256}, forced[][2] = {{0, 0}, {4, 256}, {300, 1}, {3, 700}};
    static const int64_t lens[] = {3, 255, 256, 258, 512, 700, 1000};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_RESOLVE, impls);
    uint64_t random = 3;
    assert_true(n_impls >= 2);
    for (size_t b = 0; b < HDL_COUNT(blocks); b++)
        for (size_t len = 0; len < HDL_COUNT(lens); len++)
            for (int32_t n_of_8 = 0; n_of_8 <= 8; n_of_8 += 2) {
                open_resolve(&at, lens[len], blocks[b], n_of_8, &random);
                for (size_t f = 0; f < HDL_COUNT(forced); f++)
                    for (int64_t k = 0; k < n_impls; k++) {
                        hdl_selection out = {.block_size = 1,
                                             .n_rows = ROWS,
                                             .n_lists = LISTS,
                                             .n_ids_max = lens[len], /* no room to spare */
                                             .ids = ids,
                                             .counts = counts};
                        hdl_resolve_args args = {.n_rows = ROWS,
                                                 .n_seqs = 2,
                                                 .block_size = blocks[b],
                                                 .seqs = at.seqs,
                                                 .n_visible = at.n_visible,
                                                 .n_sink = forced[f][0],
                                                 .window = forced[f][1],
                                                 .lists = &at.lists,
                                                 .out = &out};
                        memset(ids, 0xee, sizeof ids);
                        impls[k]->launch(&(hdl_launch){.n_threads = 2}, &args);
                        assert_int_equal((uint32_t)ids[ROWS * LISTS * lens[len]], 0xeeeeeeee);
                        assert_int_equal(hdl_selection_check(&out, at.n_visible), HEDDLE_OK);
                        for (int64_t r = 0; r < ROWS; r++)
                            for (int32_t l = 0; l < LISTS; l++) {
                                int32_t n = 0;
                                mark(&at, r, l, args.n_sink, args.window, marks);
                                for (int32_t t = 0; t < at.n_visible[r]; t++)
                                    if (marks[t]) assert_int_equal(hdl_selection_ids(&out, r, l)[n++], t);
                                assert_int_equal(*hdl_selection_count(&out, r, l), n);
                            }
                    }
                close_cache(&at.cache);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_groups_are_the_oracles),
                                       cmocka_unit_test(test_lists_are_the_marked_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
