/* test_pick.c - a row cut into 1..8 shards gives the list of the whole row, in any order of merging. */
#include "backend/route_impls.h"

#include "backend/pick.h"

enum { MAX_N = 3000, SHARDS = 8 };

static float make_score(int kind, uint64_t *random)
{
    static const float special[] = {0.0f, -0.0f, -INFINITY, NAN, 1e-42f, 2.5f, -3};
    if (kind == 0) return next_unit(random);
    if (kind == 1) return (float)(next_random(random) % 7);
    return special[next_random(random) % HDL_COUNT(special)];
}

static hdl_pick new_pick(int64_t n)
{
    return (hdl_pick){.ids = must_alloc(n * 4), .scores = must_alloc(n * 4)};
}

static void free_pick(hdl_pick *pick)
{
    free(pick->ids);
    free(pick->scores);
}

/* The top_k of units [first, first + n), by SELECT. */
static hdl_pick select_shard(const hdl_impl *impl, const float *score, int64_t first, int64_t n,
                             int64_t top_k)
{
    hdl_pick pick = new_pick(n);
    int32_t count = 0;
    if (!n) return pick;
    hdl_selection out = {.block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = n};
    out.ids = pick.ids;
    out.counts = &count;
    hdl_select_args args = {.n_rows = 1,
                            .n_lists = 1,
                            .score = score + first,
                            .score_stride = n,
                            .n_visible = &n,
                            .max_visible = n,
                            .top_k = top_k,
                            .out = &out};
    void *workspace = must_alloc(impl->workspace ? impl->workspace(&args, 1) : 0);
    impl->launch(&(hdl_launch){.n_threads = 1, .workspace = workspace}, &args);
    free(workspace);
    pick.n = count;
    for (int64_t i = 0; i < pick.n; i++) {
        pick.ids[i] += (int32_t)first;
        pick.scores[i] = score[pick.ids[i]];
    }
    return pick;
}

/* Merges two of the picks at random until one is left. */
static hdl_pick merge_all(hdl_pick *picks, int n_picks, int64_t top_k, uint64_t *random)
{
    while (n_picks > 1) {
        int i = (int)(next_random(random) % n_picks);
        hdl_pick a = picks[i];
        picks[i] = picks[--n_picks];
        int j = (int)(next_random(random) % n_picks);
        hdl_pick merged = new_pick(a.n + picks[j].n);
        hdl_merge_picks(&a, &picks[j], top_k, &merged);
        free_pick(&a);
        free_pick(&picks[j]);
        picks[j] = merged;
    }
    return picks[0];
}

static void check_row(const hdl_impl *impl, const float *score, int64_t n, int64_t top_k, uint64_t *random)
{
    hdl_pick whole = select_shard(impl, score, 0, n, top_k);
    for (int n_shards = 1; n_shards <= SHARDS; n_shards++) {
        hdl_pick picks[SHARDS];
        int64_t first = 0;
        for (int s = 0; s < n_shards; s++) { /* borders anywhere, empty shards too */
            int64_t rest = n - first,
                    size = s + 1 == n_shards ? rest : (int64_t)(next_random(random) % (rest + 1));
            picks[s] = select_shard(impl, score, first, size, top_k);
            first += size;
        }
        hdl_pick merged = merge_all(picks, n_shards, top_k, random);
        assert_int_equal(merged.n, whole.n);
        assert_memory_equal(merged.ids, whole.ids, (size_t)whole.n * 4);
        free_pick(&merged);
    }
    free_pick(&whole);
}

static void test_shards(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 17, 300, MAX_N}, top_ks[] = {1, 5, 100, 2999, 5000};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    uint64_t random = 6;
    float score[MAX_N];
    for (int kind = 0; kind < 3; kind++)
        for (int64_t i = 0; i < HDL_COUNT(sizes) * HDL_COUNT(top_ks); i++) {
            int64_t n = sizes[i / HDL_COUNT(top_ks)];
            for (int64_t j = 0; j < n; j++) score[j] = make_score(kind, &random);
            check_row(impls[i % n_impls], score, n, top_ks[i % HDL_COUNT(top_ks)], &random);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shards)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
