/* test_visit.c - ORDER and VISIT by their definitions: an order is the forced places and then those of falling score;
 * a rule that never stops is ATTEND over the list; one that stops has read a prefix of the order, is ATTEND over that
 * prefix, and stopped where its tiles' gains say. Every kernel; and it reads what the reference reads. */
#include "backend/route_impls.h"

enum { TILE = 32 };

typedef struct visited { /* a case whose lists have orders */
    attend_setup setup;
    int32_t *n_read;
    float *o;
} visited;

static const attend_case cases[] = {
    {"tokens", 9, 3, 64, 64, HDL_F16, 8, .q_len = {1, 1}, .kv_len = {1500, 3}, .lists = LIST_RANDOM,
     .n_ids = 400},
    {"per KV head i8", 9, 3, 64, 64, HDL_I8, 6, .q_len = {5}, .kv_len = {900}, .lists = LIST_RANDOM,
     .n_lists = 3, .n_ids = 300},
    {"blocks", 8, 2, 64, 48, HDL_F32, 6, .q_len = {3, 1}, .kv_len = {1003, 200}, .lists = LIST_RANDOM,
     .n_ids = 30, .block_size = 16, .soft_cap = 15},
    {"blocks larger than a tile", 4, 1, 64, 64, HDL_BF16, 8, .q_len = {2}, .kv_len = {2003},
     .lists = LIST_RANDOM, .n_ids = 14, .block_size = 64},
    {"tiles of rows", 8, 4, 64, 64, HDL_Q4_1, 6, .q_len = {40}, .kv_len = {333}, .lists = LIST_RANDOM,
     .n_lists = 4, .n_ids = 150, .rows_per_list = 32},
    {"mask, window and bias", 4, 2, 64, 64, HDL_F16, 8, .q_len = {12}, .kv_len = {290}, .lists = LIST_RANDOM,
     .n_ids = 200, .has_mask = true, .window = 250, .has_bias = true},
    {"nothing", 4, 2, 64, 64, HDL_F16, 8, .q_len = {2}, .kv_len = {90}, .lists = LIST_EMPTY},
};

static const hdl_impl *reference_of(hdl_op op)
{
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    assert_true(route_impls(op, impls) >= 1);
    return impls[0];
}

static void launch(const hdl_impl *impl, const void *args, int n_threads)
{
    void *space = must_alloc(impl->workspace ? impl->workspace(args, n_threads) : 0);
    impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = space}, args);
    free(space);
}

static bool owns_list(const attend_setup *setup, int64_t row)
{
    const hdl_attend_seq *seq = setup->seqs;
    while (row >= seq->first_row + seq->q_len) seq++;
    return list_row(&setup->selection, seq, row - seq->first_row) == row;
}

/* Random permutations of the places of each list, of which a random part is first. */
static void draw_orders(attend_setup *setup)
{
    hdl_selection *sel = &setup->selection;
    int64_t n_lists = sel->n_rows * sel->n_lists;
    sel->has_order = true;
    sel->order = must_alloc(n_lists * sel->n_ids_max * 4);
    sel->n_first = must_alloc(n_lists * 4);
    for (int64_t l = 0; l < n_lists; l++) {
        int32_t *order = sel->order + l * sel->n_ids_max, n = sel->counts[l];
        if (!owns_list(setup, l / sel->n_lists)) continue;
        for (int32_t i = 0; i < n; i++) {
            int32_t j = (int32_t)(next_random(&setup->random) % (uint32_t)(i + 1));
            order[i] = order[j];
            order[j] = i;
        }
        sel->n_first[l] = (int32_t)(next_random(&setup->random) % (uint32_t)(n / 4 + 1));
    }
}

static void begin(visited *at, const attend_case *c)
{
    build_case(&at->setup, c, 77);
    draw_orders(&at->setup);
    at->n_read = must_alloc(at->setup.args.n_rows * c->n_kv_heads * 4);
    at->o = must_alloc(at->setup.args.n_rows * at->setup.args.o_stride * 4);
}

static void end(visited *at)
{
    free(at->setup.selection.order);
    free(at->setup.selection.n_first);
    free(at->n_read);
    free(at->o);
    free_case(&at->setup);
}

static void visit(const hdl_impl *impl, visited *at, float below, int32_t patience, int n_threads)
{
    hdl_visit_args args = {.attend = at->setup.args, .stop = {below, TILE, patience}, .n_read = at->n_read};
    args.attend.o = at->o;
    assert_true(!impl->why_not || !impl->why_not(&args));
    launch(impl, &args, n_threads);
}

static double worst(const hdl_attend_args *args, const float *a, const float *b)
{
    double most = 0;
    for (int64_t r = 0; r < args->n_rows; r++)
        for (int64_t i = 0; i < (int64_t)args->n_heads * args->v_head_dim; i++)
            most = HDL_MAX(most, fabs((double)a[r * args->o_stride + i] - b[r * args->o_stride + i]));
    return most;
}

static void test_never_stopping_is_the_whole_list(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_VISIT, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        visited at;
        begin(&at, &cases[i]);
        hdl_attend_args args = at.setup.args;
        args.o = must_alloc(args.n_rows * args.o_stride * 4);
        launch(reference_of(HDL_OP_ATTEND), &args, 2);
        for (int64_t k = 0; k < n; k++) {
            visit(impls[k], &at, 0, 1, 2);
            printf("%s: %s %g\n", cases[i].name, impls[k]->name, worst(&args, args.o, at.o));
            assert_true(worst(&args, args.o, at.o) < 2e-6);
        }
        free(args.o);
        end(&at);
    }
}

/* The prefix of the order with `n` places, as an ascending list of one (row, KV head), the others empty. */
static void take_prefix(const visited *at, int64_t row, int32_t kv_head, int64_t n, hdl_selection *prefix)
{
    const hdl_selection *sel = &at->setup.selection;
    int64_t l = row * sel->n_lists + (int64_t)kv_head * sel->n_lists / at->setup.args.n_kv_heads;
    int32_t count = 0;
    for (int32_t place = 0; place < sel->counts[l]; place++)
        for (int64_t i = 0; i < n; i++)
            if (sel->order[l * sel->n_ids_max + i] == place) {
                if (sel->bias)
                    ((float *)(uintptr_t)
                         prefix->bias)[l * sel->n_ids_max + count] = sel->bias[l * sel->n_ids_max + place];
                prefix->ids[l * sel->n_ids_max + count++] = sel->ids[l * sel->n_ids_max + place];
            }
    prefix->counts[l] = count;
}

static int64_t n_seen(const hdl_attend_args *args, const hdl_attend_seq *seq, int64_t row, int32_t list)
{
    kv_walk walk = row_walk(args, seq, row - seq->first_row, list);
    int64_t n = 0;
    for (int64_t step = walk.begin; step < walk.end; step++) n += walk_sees(&walk, walk_token(&walk, step));
    return n;
}

/* ATTEND over every prefix that ends with a tile gives each tile's gain, 1 - exp(lse before - lse after); what VISIT
 * read must be the prefix at which these say stop. */
static int64_t check_row(const visited *at, int64_t row, int32_t kv_head, float below, int32_t patience)
{
    const hdl_attend_args *full = &at->setup.args;
    const hdl_selection *sel = &at->setup.selection;
    hdl_selection prefix = *sel;
    int64_t total = sel->n_rows * sel->n_lists * sel->n_ids_max, n_weak = 0;
    int32_t group = full->n_heads / full->n_kv_heads;
    int64_t l = row * sel->n_lists + (int64_t)kv_head * sel->n_lists / full->n_kv_heads;
    prefix.ids = must_alloc(total * 4);
    prefix.counts = must_alloc(sel->n_rows * sel->n_lists * 4);
    prefix.bias = sel->bias ? must_alloc(total * 4) : NULL;
    memset(prefix.counts, 0, (size_t)(sel->n_rows * sel->n_lists) * 4);
    hdl_attend_args args = *full;
    args.selection = &prefix;
    args.o = must_alloc(args.n_rows * args.o_stride * 4);
    args.lse = must_alloc(args.n_rows * args.n_heads * 4);
    const hdl_attend_seq *seq = full->seqs;
    while (row >= seq->first_row + seq->q_len) seq++;
    double before[16];
    int64_t n = sel->n_first[l], tile = HDL_MAX(TILE / sel->block_size, 1);
    for (int64_t t = 0;; t++) {
        take_prefix(at, row, kv_head, n, &prefix);
        launch(reference_of(HDL_OP_ATTEND), &args, 2);
        double gain = 0;
        for (int32_t h = 0; h < group; h++) {
            double lse = args.lse[row * args.n_heads + kv_head * group + h];
            if (t && lse > -INFINITY) gain = HDL_MAX(gain, 1 - exp(before[h] - lse));
            before[h] = lse;
        }
        assert_true(!t || fabs(gain - (double)below) > 1e-6);
        n_weak = t && gain < (double)below ? n_weak + 1 : 0;
        if (n == sel->counts[l] || n_weak == patience) break;
        n = HDL_MIN(n + tile, (int64_t)sel->counts[l]);
    }
    assert_int_equal(at->n_read[row * full->n_kv_heads + kv_head],
                     n_seen(&args, seq, row, (int32_t)(l % sel->n_lists)));
    for (int64_t i = (int64_t)kv_head * group * args.v_head_dim;
         i < (int64_t)(kv_head + 1) * group * args.v_head_dim; i++)
        assert_true(fabs((double)args.o[row * args.o_stride + i] - at->o[row * args.o_stride + i]) < 2e-6);
    free(prefix.ids);
    free(prefix.counts);
    free((void *)(uintptr_t)prefix.bias);
    free(args.o);
    free(args.lse);
    return n < sel->counts[l];
}

static void test_what_was_read_is_a_prefix_that_the_gains_end(void **state)
{
    (void)state;
    static const hdl_stop_rule rules[] = {{0.05f, TILE, 1}, {0.3f, TILE, 2}};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_VISIT, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases) * HDL_COUNT(rules) * n_impls; i++) {
        const hdl_impl *impl = impls[i % n_impls];
        const hdl_stop_rule *rule = &rules[i / n_impls % HDL_COUNT(rules)];
        const attend_case *c = &cases[i / n_impls / HDL_COUNT(rules)];
        visited at;
        int64_t n_stopped = 0, n_rows = 0;
        begin(&at, c);
        visit(impl, &at, rule->below, rule->patience, 2);
        for (int64_t row = 0; row < at.setup.args.n_rows; row++)
            for (int32_t h = 0; h < c->n_kv_heads && owns_list(&at.setup, row); h++, n_rows++)
                n_stopped += check_row(&at, row, h, rule->below, rule->patience);
        printf("%s %s below %g: %lld of %lld stop\n", c->name, impl->name, (double)rule->below,
               (long long)n_stopped, (long long)n_rows);
        if (c - cases < 2) assert_true(n_stopped > 0);
        end(&at);
    }
}

/* Rows that share a list, too, and rules whose tiles are no whole blocks of a kernel. */
static void test_kernels_read_what_the_reference_reads(void **state)
{
    (void)state;
    static const hdl_stop_rule rules[] = {{0, 64, 1}, {0.02f, 1, 3}, {0.05f, 33, 1}, {0.001f, 64, 1}};
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_VISIT, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases) * HDL_COUNT(rules); i++) {
        const hdl_stop_rule *rule = &rules[i % HDL_COUNT(rules)];
        const attend_case *c = &cases[i / HDL_COUNT(rules)];
        visited at, other;
        begin(&at, c);
        begin(&other, c);
        hdl_visit_args args = {.attend = at.setup.args, .stop = *rule, .n_read = at.n_read};
        args.attend.o = at.o;
        launch(impls[0], &args, 2);
        args.n_read = other.n_read;
        args.attend.o = other.o;
        for (int64_t k = 1; k < n_impls; k++) {
            launch(impls[k], &args, 2);
            assert_memory_equal(at.n_read, other.n_read,
                                (size_t)(args.attend.n_rows * c->n_kv_heads) * sizeof *at.n_read);
            assert_true(worst(&at.setup.args, at.o, other.o) < 2e-6);
        }
        end(&at);
        end(&other);
    }
}

static void test_threads_do_not_matter(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_VISIT, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases) * n_impls; i++) {
        visited at, other;
        const attend_case *c = &cases[i / n_impls];
        begin(&at, c);
        begin(&other, c);
        visit(impls[i % n_impls], &at, 0.05f, 1, 1);
        visit(impls[i % n_impls], &other, 0.05f, 1, 3);
        assert_true(worst(&at.setup.args, at.o, other.o) == 0);
        assert_memory_equal(at.n_read, other.n_read, (size_t)(at.setup.args.n_rows * c->n_kv_heads) * 4);
        end(&at);
        end(&other);
    }
}

/* By the definition: of two neighbours in the order the first is forced, or of larger score, or of a lower id. */
static void check_order(const hdl_order_args *args, int64_t l)
{
    const hdl_selection *sel = args->list;
    const int32_t *order = sel->order + l * sel->n_ids_max, *ids = sel->ids + l * sel->n_ids_max;
    int64_t visible = args->n_visible[l / sel->n_lists], n_forced = 0;
    bool is_there[1000] = {false};
    for (int32_t i = 0; i < sel->counts[l]; i++) {
        int64_t first = (int64_t)ids[order[i]] * sel->block_size;
        bool is_forced = !args->score || first < args->n_sink ||
                         (args->window && first + sel->block_size > visible - args->window);
        n_forced += is_forced;
        assert_false(is_there[order[i]]);
        is_there[order[i]] = true;
        assert_int_equal(is_forced, i < sel->n_first[l]);
        if (i == 0 || i == sel->n_first[l]) continue;
        float a = is_forced ? 0 : args->score[l * args->score_stride + ids[order[i - 1]]],
              b = is_forced ? 0 : args->score[l * args->score_stride + ids[order[i]]];
        a = isnan(a) ? -INFINITY : a;
        b = isnan(b) ? -INFINITY : b;
        assert_true(a > b || (a == b && order[i - 1] < order[i]));
    }
    assert_int_equal(n_forced, sel->n_first[l]);
}

static void test_orders_fall(void **state)
{
    (void)state;
    enum { UNITS = 700, ROWS = 4, LISTS = 3 };
    static int32_t ids[ROWS * LISTS * UNITS], counts[ROWS * LISTS], order[ROWS * LISTS * UNITS],
        firsts[ROWS * LISTS];
    static float score[ROWS * LISTS * UNITS];
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_ORDER, impls);
    uint64_t random = 3;
    for (int32_t block = 1; block <= 16; block *= 16)
        for (int kind = 0; kind < 3; kind++) { /* few values, many, none */
            int64_t n_visible[ROWS] = {1, UNITS * block, UNITS * block - block / 2, 40 * block};
            hdl_selection list = {.block_size = block,
                                  .n_rows = ROWS,
                                  .n_lists = LISTS,
                                  .n_ids_max = UNITS,
                                  .ids = ids,
                                  .counts = counts,
                                  .has_order = true,
                                  .order = order,
                                  .n_first = firsts};
            for (int32_t l = 0; l < ROWS * LISTS; l++) {
                counts[l] = 0;
                for (int64_t u = 0; u * block < n_visible[l / LISTS]; u++) {
                    uint32_t draw = next_random(&random);
                    score[l * UNITS + u] = kind ? next_unit(&random) : (float)(draw >> 8 & 3) - 1;
                    if (draw % 7 == 0 && !kind) score[l * UNITS + u] = -0.0f;
                    if (draw % 50 == 0) score[l * UNITS + u] = draw % 100 ? NAN : -INFINITY;
                    if (draw % 3) ids[l * UNITS + counts[l]++] = (int32_t)u;
                }
            }
            hdl_order_args args = {.n_rows = ROWS,
                                   .score = kind < 2 ? score : NULL,
                                   .score_stride = UNITS,
                                   .n_visible = n_visible,
                                   .n_sink = 5,
                                   .window = block > 1 ? 17 : 0,
                                   .list = &list};
            for (int64_t k = 0; k < n_impls; k++) {
                memset(order, 0xee, sizeof order);
                launch(impls[k], &args, 2);
                for (int64_t l = 0; l < ROWS * LISTS; l++) check_order(&args, l);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_orders_fall),
                                       cmocka_unit_test(test_never_stopping_is_the_whole_list),
                                       cmocka_unit_test(test_what_was_read_is_a_prefix_that_the_gains_end),
                                       cmocka_unit_test(test_kernels_read_what_the_reference_reads),
                                       cmocka_unit_test(test_threads_do_not_matter)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
