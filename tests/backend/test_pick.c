/* test_pick.c - a row cut into 1..8 shards gives the list of the whole row, in any order of merging. */
#include "backend/route_impls.h"

#include "backend/pick.h"

enum { MAX_N = 3000, SHARDS = 8 };

static float make_score(int kind, uint64_t *random)
{
    static const float special[] = {0.0f, -0.0f, -INFINITY, NAN, 1e-42f, 2.5f, -3};
    if (kind == 0) return next_unit(random);
    if (kind == 1) return (float)(next_random(random) % 7);
    if (kind == 3) return 0.25f;                              /* all equal */
    if (kind == 4) return expf(24 * (next_unit(random) - 1)); /* as masses fall */
    return special[next_random(random) % HDL_COUNT(special)];
}

/* A row of n units with its scores, and how it is selected from. Its last block is not full. */
typedef struct row {
    const float *score;
    int64_t n, n_tokens;
    hdl_select_args args; /* of the whole row */
} row;

static row make_row(const float *score, int64_t n, const hdl_select_args *args)
{
    int64_t block = HDL_MAX(args->block_size, 1);
    return (row){score, n, n * block - block / 2, *args};
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

static bool is_forced(const row *at, int64_t unit)
{
    int64_t block = HDL_MAX(at->args.block_size, 1);
    int64_t end = HDL_MIN((unit + 1) * block, at->n_tokens);
    return unit * block < at->args.n_sink || end > at->n_tokens - at->args.window;
}

/* Adds what units [first, first + n) have of the row's mass, whose largest is known. */
static void add_shard(const row *at, int64_t first, int64_t n, hdl_row_mass *mass)
{
    int64_t begin = 0, end = n;
    while (begin < n && is_forced(at, first + begin)) begin++;
    while (end > begin && is_forced(at, first + end - 1)) end--;
    hdl_add_mass(at->score + first, n, begin, end, mass);
}

/* What SELECT makes of units [first, first + n), forced ones among them. A shard knows which part of the sinks and the
 * window is its own. mass: the row's, for TOP_P; NULL: that of these units. */
static hdl_pick select_shard(const hdl_impl *impl, const row *at, int64_t first, int64_t n,
                             const hdl_row_mass *mass)
{
    hdl_pick pick = new_pick(n);
    int32_t count = 0;
    if (!n) return pick;
    int64_t block = HDL_MAX(at->args.block_size, 1), begin = first * block;
    int64_t end = HDL_MIN((first + n) * block, at->n_tokens), n_own = end - begin;
    hdl_selection out = {.block_size = (int32_t)block, .n_rows = 1, .n_lists = 1, .n_ids_max = n};
    out.ids = pick.ids;
    out.counts = &count;
    hdl_select_args args = at->args;
    args.n_rows = args.n_lists = 1;
    args.score = at->score + first;
    args.score_stride = n;
    args.n_visible = &n_own;
    args.max_visible = n_own;
    args.n_sink = (int32_t)HDL_MIN(HDL_MAX(at->args.n_sink - begin, 0), n_own);
    args.window = (int32_t)HDL_MIN(HDL_MAX(end - (at->n_tokens - at->args.window), 0), n_own);
    args.mass = mass;
    args.out = &out;
    void *workspace = must_alloc(impl->workspace ? impl->workspace(&args, 1) : 0);
    impl->launch(&(hdl_launch){.n_threads = 1, .workspace = workspace}, &args);
    free(workspace);
    pick.n = count;
    for (int64_t i = 0; i < pick.n; i++) {
        pick.ids[i] += (int32_t)first;
        pick.scores[i] = at->score[pick.ids[i]];
    }
    return pick;
}

/* The pick without its forced units, which are marked. */
static void take_forced(const row *at, hdl_pick *pick, bool *forced)
{
    int64_t n = 0;
    for (int64_t i = 0; i < pick->n; i++) {
        if (is_forced(at, pick->ids[i])) {
            forced[pick->ids[i]] = true;
            continue;
        }
        pick->ids[n] = pick->ids[i];
        pick->scores[n++] = pick->scores[i];
    }
    pick->n = n;
}

/* Merges two of the picks at random until one is left; mass: of TOP_P. */
static hdl_pick merge_all(hdl_pick *picks, int n_picks, const row *at, const hdl_row_mass *mass,
                          uint64_t *random)
{
    while (n_picks > 1) {
        int i = (int)(next_random(random) % n_picks);
        hdl_pick a = picks[i];
        picks[i] = picks[--n_picks];
        int j = (int)(next_random(random) % n_picks);
        hdl_pick merged = new_pick(a.n + picks[j].n);
        if (mass)
            hdl_merge_shares(&a, &picks[j], &at->args, mass, &merged);
        else
            hdl_merge_picks(&a, &picks[j], at->args.top_k ? at->args.top_k : at->n, &merged);
        free_pick(&a);
        free_pick(&picks[j]);
        picks[j] = merged;
    }
    return picks[0];
}

/* Borders of n_shards shards anywhere, empty shards too: firsts [n_shards + 1]. */
static void cut_row(int64_t n, int n_shards, uint64_t *random, int64_t *firsts)
{
    firsts[0] = 0;
    for (int s = 1; s < n_shards; s++)
        firsts[s] = firsts[s - 1] + (int64_t)(next_random(random) % (uint64_t)(n - firsts[s - 1] + 1));
    firsts[n_shards] = n;
}

/* The row's mass by two rounds over the shards, whichever comes first. */
static hdl_row_mass mass_of_shards(const row *at, int n_shards, const int64_t *firsts, uint64_t *random)
{
    hdl_row_mass mass = {0};
    int start = (int)(next_random(random) % (uint64_t)n_shards);
    for (int s = 0; s < n_shards; s++) {
        float own = hdl_largest_mass(at->score + firsts[s], firsts[s + 1] - firsts[s]);
        mass.largest = HDL_MAX(mass.largest, own);
    }
    for (int i = 0; i < n_shards; i++) {
        int s = (start + i) % n_shards;
        add_shard(at, firsts[s], firsts[s + 1] - firsts[s], &mass);
    }
    return mass;
}

/* The halves that begin in units [first, end), scored by these alone, the best top_k of them. */
static hdl_pick pick_halves(const row *at, const hdl_beam_node *halves, int64_t n, int64_t first, int64_t end)
{
    hdl_pick all = new_pick(n), none = {0}, best = new_pick(n);
    for (int64_t i = 0; i < n; i++) {
        if (halves[i].first < first || halves[i].first >= end) continue;
        all.ids[all.n] = halves[i].first;
        all.scores[all.n++] = at->score[halves[i].first];
    }
    hdl_merge_picks(&all, &none, at->args.top_k, &best);
    free_pick(&all);
    return best;
}

/* A beam: a merge of the shards' halves a level. */
static hdl_pick beam_of_shards(const row *at, int n_shards, const int64_t *firsts, bool *forced,
                               uint64_t *random)
{
    int64_t begin = 0, end = at->n;
    while (begin < at->n && is_forced(at, begin)) forced[begin++] = true;
    while (end > begin && is_forced(at, end - 1)) forced[--end] = true;
    int64_t n = end - begin, k = HDL_MIN(at->args.top_k, n);
    hdl_beam_node *nodes = must_alloc(3 * k * (int64_t)sizeof *nodes), *halves = nodes + k;
    for (int64_t longest = hdl_beam_tile(begin, n, k, nodes); longest > 1; longest = (longest + 1) / 2) {
        hdl_pick picks[SHARDS];
        int64_t m = hdl_beam_split(nodes, k, halves);
        for (int s = 0; s < n_shards; s++) picks[s] = pick_halves(at, halves, m, firsts[s], firsts[s + 1]);
        hdl_pick merged = merge_all(picks, n_shards, at, NULL, random);
        assert_int_equal(merged.n, k);
        assert_int_equal(hdl_beam_keep(halves, m, &merged, nodes), k);
        free_pick(&merged);
    }
    hdl_pick out = new_pick(k);
    for (int64_t i = 0; i < k; i++) {
        assert_int_equal(nodes[i].n, 1);
        out.ids[out.n++] = nodes[i].first;
    }
    free(nodes);
    return out;
}

/* The list of the row by n_shards shards; firsts [n_shards + 1] their borders, out. */
static int64_t list_of_shards(const hdl_impl *impl, const row *at, int n_shards, uint64_t *random,
                              int32_t *ids, int64_t *firsts)
{
    static bool is_in[MAX_N];
    hdl_pick picks[SHARDS], merged;
    int64_t n = 0;
    bool is_share = at->args.kind == HDL_SELECT_TOP_P;
    memset(is_in, 0, (size_t)at->n * sizeof *is_in);
    cut_row(at->n, n_shards, random, firsts);
    if (at->args.kind == HDL_SELECT_BEAM) {
        merged = beam_of_shards(at, n_shards, firsts, is_in, random);
    } else {
        hdl_row_mass mass = mass_of_shards(at, n_shards, firsts, random);
        row of_shards = *at;
        if (at->args.p_rule == HDL_P_EXCLUSIVE) of_shards.args.p_rule = HDL_P_INCLUSIVE;
        for (int s = 0; s < n_shards; s++) {
            picks[s] = select_shard(impl, &of_shards, firsts[s], firsts[s + 1] - firsts[s],
                                    is_share ? &mass : NULL);
            take_forced(at, &picks[s], is_in);
            if (at->args.top_k) assert_true(picks[s].n <= at->args.top_k);
        }
        merged = merge_all(picks, n_shards, &of_shards, is_share ? &mass : NULL, random);
        if (at->args.p_rule == HDL_P_EXCLUSIVE) {
            hdl_pick none = {0}, all = merged;
            merged = new_pick(all.n);
            hdl_merge_shares(&all, &none, &at->args, &mass, &merged);
            free_pick(&all);
        }
    }
    for (int64_t i = 0; i < merged.n; i++) is_in[merged.ids[i]] = true;
    free_pick(&merged);
    for (int64_t i = 0; i < at->n; i++)
        if (is_in[i]) ids[n++] = (int32_t)i;
    return n;
}

static void check_row(const hdl_impl *impl, const row *at, uint64_t *random)
{
    static int32_t ids[MAX_N];
    int64_t firsts[SHARDS + 1];
    hdl_pick whole = select_shard(impl, at, 0, at->n, NULL);
    for (int n_shards = 1; n_shards <= SHARDS; n_shards++) {
        int64_t n = list_of_shards(impl, at, n_shards, random, ids, firsts);
        if (n != whole.n || memcmp(ids, whole.ids, (size_t)n * 4) != 0)
            fail_msg("%s, select %d, n %d, top_k %d, sinks %d, window %d, block %d: other ids from %d shards",
                     impl->name, at->args.kind, (int)at->n, (int)at->args.top_k, at->args.n_sink,
                     at->args.window, at->args.block_size, n_shards);
    }
    free_pick(&whole);
}

/* Every implementation, selector, size and budget, with and without forced units. */
static void test_shards(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 17, 300, MAX_N}, top_ks[] = {1, 5, 100, 2999, 5000};
    static const hdl_select_args forms[] = {
        {.kind = HDL_SELECT_TOP_K},
        {.kind = HDL_SELECT_TOP_K, .n_sink = 5, .window = 40},
        {.kind = HDL_SELECT_TOP_K, .n_sink = 9, .window = 70, .block_size = 16},
        {.kind = HDL_SELECT_THRESHOLD, .threshold = 0.5f},
        {.kind = HDL_SELECT_THRESHOLD, .threshold = 0.5f, .n_sink = 9, .window = 70, .block_size = 16},
        {.kind = HDL_SELECT_TOP_P, .p = 0.9f, .p_rule = HDL_P_STRICT},
        {.kind = HDL_SELECT_TOP_P, .p = 0.5f, .p_rule = HDL_P_INCLUSIVE, .n_sink = 5, .window = 40},
        {.kind = HDL_SELECT_TOP_P, .p = 0.02f, .p_rule = HDL_P_PLUS_ONE, .n_sink = 5, .window = 40},
        {.kind = HDL_SELECT_TOP_P,
         .p = 0.7f,
         .p_rule = HDL_P_EXCLUSIVE,
         .n_sink = 9,
         .window = 70,
         .block_size = 16},
        {.kind = HDL_SELECT_TOP_P, .p = 1, .p_rule = HDL_P_STRICT},
        {.kind = HDL_SELECT_BEAM},
        {.kind = HDL_SELECT_BEAM, .n_sink = 5, .window = 40},
        {.kind = HDL_SELECT_BEAM, .n_sink = 9, .window = 70, .block_size = 16},
    };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    assert_true(n_impls >= 2);
    uint64_t random = 6;
    static float score[MAX_N];
    for (int kind = 0; kind < 5; kind++)
        for (int64_t i = 0; i < HDL_COUNT(sizes) * HDL_COUNT(top_ks); i++) {
            int64_t n = sizes[i / HDL_COUNT(top_ks)], top_k = top_ks[i % HDL_COUNT(top_ks)];
            for (int64_t j = 0; j < n; j++) score[j] = make_score(kind, &random);
            for (int64_t f = 0; f < HDL_COUNT(forms); f++) {
                row at = make_row(score, n, &forms[f]);
                /* 5000 is more than there are; of a threshold or a share no limit, then */
                bool has_limit = forms[f].kind == HDL_SELECT_TOP_K || forms[f].kind == HDL_SELECT_BEAM;
                at.args.top_k = !has_limit && top_k == 5000 ? 0 : top_k;
                for (int64_t k = 0; k < n_impls; k++)
                    if (!impls[k]->why_not || !impls[k]->why_not(&at.args)) check_row(impls[k], &at, &random);
            }
        }
}

/* Why shards need the row's mass: the first has nearly all of it, and its own share of 0.9 is less of it than the
 * row's. */
static void test_shares_of_shards_are_not_enough(void **state)
{
    (void)state;
    enum { N = 1000, BORDER = 900 };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    static float score[N];
    for (int i = 0; i < N; i++) score[i] = i < BORDER ? 1 : 0.5f;
    const hdl_select_args form = {.kind = HDL_SELECT_TOP_P, .p = 0.9f, .p_rule = HDL_P_STRICT};
    row at = make_row(score, N, &form);
    hdl_row_mass mass = {.largest = 1};
    hdl_add_mass(score, N, 0, N, &mass);
    for (int64_t k = 0; k < n_impls; k++) {
        hdl_pick whole = select_shard(impls[k], &at, 0, N, NULL);
        hdl_pick part = select_shard(impls[k], &at, 0, BORDER, NULL);
        hdl_pick known = select_shard(impls[k], &at, 0, BORDER, &mass);
        assert_int_equal(part.n, 810);  /* 0.9 of 900 */
        assert_int_equal(whole.n, 855); /* 0.9 of 950, all of it in the first shard */
        assert_int_equal(known.n, 855);
        assert_memory_equal(known.ids, whole.ids, 855 * 4);
        free_pick(&whole);
        free_pick(&part);
        free_pick(&known);
    }
}

typedef struct partial {
    float *o, *lse;
} partial;

/* Attends tokens [first, end) of the row's list. */
static partial attend_part(const hdl_attend_args *all, int32_t *ids, int64_t n, int64_t first, int64_t end)
{
    partial part = {must_alloc((int64_t)all->n_heads * all->v_head_dim * 4), must_alloc(all->n_heads * 4)};
    const hdl_impl *impl = hdl_cpu_ref_attend;
    int64_t from = 0, to = 0;
    while (impl->op != HDL_OP_ATTEND) impl++;
    for (int64_t i = 0; i < n; i++) {
        from += ids[i] < first;
        to += ids[i] < end;
    }
    int32_t count = (int32_t)(to - from);
    hdl_selection list = {.unit = HDL_UNIT_TOKEN, .block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = n};
    list.ids = ids + from;
    list.counts = &count;
    hdl_attend_args args = *all;
    args.selection = &list;
    args.has_selection = true;
    args.o = part.o;
    args.lse = part.lse;
    void *workspace = must_alloc(impl->workspace ? impl->workspace(&args, 1) : 0);
    impl->launch(&(hdl_launch){.n_threads = 1, .workspace = workspace}, &args);
    free(workspace);
    return part;
}

/* Each shard attends to its own part of the merged list; the partials merged are attention over the whole row's. */
static void test_attention_over_the_shards(void **state)
{
    (void)state;
    static const attend_case c = {"row", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1}, .kv_len = {MAX_N}};
    const hdl_select_args form = {.kind = HDL_SELECT_TOP_K, .top_k = 300, .n_sink = 4, .window = 128};
    const hdl_impl *impls[MAX_ROUTE_IMPLS], *merge = hdl_cpu_ref_attend;
    int64_t n_impls = route_impls(HDL_OP_SELECT, impls);
    while (merge->op != HDL_OP_MERGE) merge++;
    attend_setup setup;
    build_case(&setup, &c, 3);
    setup.args.o_stride = (int64_t)c.n_heads * c.v_head_dim;
    uint64_t random = 8;
    static float score[MAX_N];
    static int32_t ids[MAX_N];
    for (int i = 0; i < MAX_N; i++) score[i] = next_unit(&random);
    row at = make_row(score, MAX_N, &form);
    hdl_pick list = select_shard(impls[0], &at, 0, MAX_N, NULL);
    partial whole = attend_part(&setup.args, list.ids, list.n, 0, MAX_N);
    for (int n_shards = 1; n_shards <= SHARDS; n_shards++) {
        int64_t firsts[SHARDS + 1];
        int64_t n = list_of_shards(impls[n_shards % n_impls], &at, n_shards, &random, ids, firsts);
        partial parts[SHARDS];
        const float *o[SHARDS], *lse[SHARDS];
        for (int s = 0; s < n_shards; s++) {
            parts[s] = attend_part(&setup.args, ids, n, firsts[s], firsts[s + 1]);
            o[s] = parts[s].o;
            lse[s] = parts[s].lse;
        }
        hdl_merge_args args = {c.n_heads, n_shards, c.v_head_dim, o, lse, parts[0].o, parts[0].lse};
        merge->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        for (int i = 0; i < c.n_heads * c.v_head_dim; i++)
            assert_true(fabsf(parts[0].o[i] - whole.o[i]) <= 2e-6f);
        for (int h = 0; h < c.n_heads; h++) assert_true(fabsf(parts[0].lse[h] - whole.lse[h]) <= 4e-6f);
        for (int s = 0; s < n_shards; s++) {
            free(parts[s].o);
            free(parts[s].lse);
        }
    }
    free(whole.o);
    free(whole.lse);
    free_pick(&list);
    free_case(&setup);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shards),
                                       cmocka_unit_test(test_shares_of_shards_are_not_enough),
                                       cmocka_unit_test(test_attention_over_the_shards)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
