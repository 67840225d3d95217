/* test_index.c - SCORE and SUMMARISE by index keys: every implementation gives the reference's bits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/attend_cases.h"

typedef struct index_case {
    int32_t dim, page_shift;
    int64_t q_len[2], kv_len[2]; /* of up to two sequences; 0 ends them */
    int64_t n_candidates;        /* 0 = all tokens */
    int32_t block;               /* tokens of a candidate; of an entry of means; 0 = 1 and none */
} index_case;

static const index_case cases[] = {
    {64, 8, {1}, {1}, 0, 0},           {64, 8, {1}, {5000}, 0, 0},
    {16, 4, {1}, {77}, 0, 0},          {128, 8, {1, 1}, {300, 257}, 0, 0},
    {64, 8, {40}, {1100}, 0, 0},       {80, 6, {3, 17}, {500, 17}, 0, 0},
    {1000, 5, {2}, {100}, 0, 0},       {33, 5, {1}, {100}, 0, 0},
    {64, 20, {1}, {3000}, 0, 0},       {64, 8, {1, 5}, {900, 400}, 60, 0},
    {96, 6, {9}, {200}, 200, 0},       {64, 4, {1}, {4099}, 0, 0},
    {128, 8, {70}, {2100}, 0, 0},      {1024, 5, {1, 2}, {61, 90}, 0, 0},
    {64, 5, {15, 3}, {2050, 3}, 0, 0},
};

/* Blocks: cut by the row, whole, of a page and more than one (those have no means). */
static const index_case block_cases[] = {
    {64, 8, {1}, {5000}, 40, 64},    {64, 8, {40}, {1100}, 9, 64},       {64, 6, {1, 5}, {900, 64}, 7, 64},
    {64, 4, {3}, {700}, 20, 64},     {64, 8, {1}, {63}, 1, 64},          {64, 8, {1}, {65}, 1, 64},
    {33, 5, {1, 2}, {100, 3}, 9, 8}, {80, 6, {3, 17}, {500, 17}, 30, 4}, {1000, 5, {2}, {100}, 3, 16},
    {1024, 5, {1}, {77}, 2, 32},     {128, 8, {20}, {2100}, 70, 16},
};

typedef struct setup {
    hdl_score_args args;
    hdl_attend_seq seqs[2];
    hdl_selection candidates;
    uint8_t **pages[2];
    float *x; /* index keys of the longest sequence */
    int64_t page_bytes, n_pages[2];
    hdl_kv_plane means; /* of c->block tokens; dim 0: none */
} setup;

static int64_t impls_of(hdl_op op, const hdl_impl *found[16])
{
    static const hdl_impl *const tables[] = {
        hdl_cpu_ref_route, hdl_cpu_generic_index, hdl_cpu_avx2_index, hdl_cpu_avx512_index,
        hdl_cpu_amx_index, hdl_cpu_generic_score, hdl_cpu_avx2_score, hdl_cpu_avx512_score};
    int64_t n = 0;
    for (int64_t t = 0; t < HDL_COUNT(tables); t++)
        for (const hdl_impl *impl = tables[t]; impl->name; impl++)
            if (impl->op == op && impl->isa <= hdl_cpu_isa()) found[n++] = impl;
    return n;
}

static void launch(const hdl_impl *impl, const void *args)
{
    int n_threads = 2;
    hdl_launch with = {.n_threads = n_threads};
    if (impl->workspace) with.workspace = must_alloc(impl->workspace(args, n_threads));
    impl->launch(&with, args);
    free(with.workspace);
}

/* Pages that hold index keys, their means and scales alone; what nothing owns is filled with 0x7f. */
static void build(setup *s, const index_case *c, uint64_t *random)
{
    *s = (setup){0};
    int64_t page_tokens = (int64_t)1 << c->page_shift, most = 0;
    if (c->page_shift > 12) page_tokens = HDL_MAX(c->kv_len[0], c->kv_len[1]);
    int64_t scale_at = HDL_ALIGN_UP(page_tokens * c->dim, 64);
    s->page_bytes = HDL_ALIGN_UP(scale_at + page_tokens * 4, 64);
    if (c->block && c->block <= page_tokens) {
        int64_t n = page_tokens / c->block, at = s->page_bytes,
                mean_scale_at = HDL_ALIGN_UP(at + n * c->dim, 64);
        s->means = (hdl_kv_plane){.offset = at, .scale_offset = mean_scale_at, .n_heads = 1, .dim = c->dim};
        s->page_bytes = mean_scale_at + n * 4;
    }
    s->args = (hdl_score_args){.n_heads = 1,
                               .n_kv_heads = 1,
                               .head_dim = c->dim,
                               .n_lists = 1,
                               .seqs = s->seqs,
                               .q_stride = c->dim + 3,
                               .scale = 1,
                               .rule = HDL_RULE_INDEX,
                               .plane = HDL_PLANE_INDEX,
                               .block_size = 1,
                               .has_candidates = c->n_candidates > 0};
    for (int i = 0; i < 2 && c->q_len[i]; i++, s->args.n_seqs++) {
        hdl_attend_seq *seq = &s->seqs[i];
        *seq = (hdl_attend_seq){.first_row = s->args.n_rows, .q_len = c->q_len[i], .kv_len = c->kv_len[i]};
        s->args.n_rows += seq->q_len;
        most = HDL_MAX(most, seq->kv_len);
        s->n_pages[i] = (seq->kv_len + page_tokens - 1) / page_tokens;
        s->pages[i] = must_alloc(s->n_pages[i] * (int64_t)sizeof(uint8_t *));
        for (int64_t p = 0; p < s->n_pages[i]; p++) {
            s->pages[i][p] = must_alloc(s->page_bytes);
            memset(s->pages[i][p], 0x7f, (size_t)s->page_bytes);
        }
        seq->kv = (hdl_kv_view){
            .pages = s->pages[i],
            .page_shift = c->page_shift,
            .plane = {{.offset = 0, .scale_offset = scale_at, .n_heads = 1, .dim = c->dim}}};
    }
    s->args.max_kv_len = most;
    s->args.max_q_len = HDL_MAX(c->q_len[0], c->q_len[1]);
    s->args.score_stride = most + 5;
    s->x = must_alloc(most * c->dim * 4);
    fill_random(s->x, most * c->dim, random);
    for (int64_t t = 3; t < most; t += 7) /* rows that tie, a row of zeroes */
        memcpy(s->x + t * c->dim, s->x, (size_t)c->dim * 4);
    if (most > 4) memset(s->x + 4 * c->dim, 0, (size_t)c->dim * 4);
    float *q = must_alloc(s->args.n_rows * s->args.q_stride * 4);
    fill_random(q, s->args.n_rows * s->args.q_stride, random);
    s->args.q = q;
}

static void add_candidates(setup *s, const index_case *c, uint64_t *random)
{
    int64_t n_rows = s->args.n_rows, block = HDL_MAX(c->block, 1);
    int64_t n_max = (s->args.max_kv_len + block - 1) / block;
    if (!c->n_candidates) return;
    s->candidates = (hdl_selection){
        .block_size = (int32_t)block, .n_rows = n_rows, .n_lists = 1, .n_ids_max = n_max};
    s->candidates.ids = must_alloc(n_rows * n_max * 4);
    s->candidates.counts = must_alloc(n_rows * 4);
    for (int64_t r = 0; r < n_rows; r++) {
        int32_t n = 0;
        for (int64_t t = 0; t < n_max; t++)
            if ((int64_t)(next_random(random) % (uint32_t)n_max) < c->n_candidates)
                hdl_selection_ids(&s->candidates, r, 0)[n++] = (int32_t)t;
        s->candidates.counts[r] = n;
    }
    s->args.candidates = &s->candidates;
}

static void deinit(setup *s)
{
    for (int i = 0; i < 2; i++) {
        for (int64_t p = 0; p < s->n_pages[i]; p++) free(s->pages[i][p]);
        free(s->pages[i]);
    }
    free(s->candidates.ids);
    free(s->candidates.counts);
    free(s->x);
    free((void *)(uintptr_t)s->args.q);
}

static void append_keys(setup *s, const hdl_impl *impl, int32_t dim)
{
    for (int32_t i = 0; i < s->args.n_seqs; i++) { /* in two calls, the second from the middle of a page */
        int64_t n = s->seqs[i].kv_len, first = n / 3;
        hdl_summarise_args args = {.n_rows = first,
                                   .x = s->x,
                                   .x_stride = dim,
                                   .kind = HDL_PLANE_INDEX,
                                   .block_size = 1,
                                   .kv = s->seqs[i].kv};
        if (first) launch(impl, &args);
        args.first_token = first;
        args.n_rows = n - first;
        args.x += first * dim;
        launch(impl, &args);
    }
}

/* The means of the keys that are there, likewise; false where the implementation refuses. */
static bool append_means(setup *s, const hdl_impl *impl, int32_t block)
{
    for (int32_t i = 0; i < s->args.n_seqs; i++) {
        int64_t n = s->seqs[i].kv_len, first = n / 3;
        hdl_summarise_args args = {
            .n_rows = first, .kind = HDL_PLANE_INDEX_MEAN, .block_size = block, .kv = s->seqs[i].kv};
        args.kv.plane[1] = args.kv.plane[0];
        args.kv.plane[0] = s->means;
        if (impl->why_not && impl->why_not(&args)) return false;
        if (first) launch(impl, &args);
        args.first_token = first;
        args.n_rows = n - first;
        launch(impl, &args);
    }
    return true;
}

static void check_pages(const setup *want, const setup *got)
{
    for (int s = 0; s < 2; s++)
        for (int64_t p = 0; p < want->n_pages[s]; p++)
            assert_memory_equal(want->pages[s][p], got->pages[s][p], want->page_bytes);
}

static void test_keys_are_the_same_bytes(void **state)
{
    (void)state;
    const hdl_impl *impls[16];
    int64_t n = impls_of(HDL_OP_SUMMARISE, impls);
    assert_true(n >= 2);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++)
        for (int64_t j = 1; j < n; j++) {
            uint64_t random = 5 + (uint64_t)i, again = random;
            setup want, got;
            build(&want, &cases[i], &random);
            build(&got, &cases[i], &again);
            append_keys(&want, impls[0], cases[i].dim);
            append_keys(&got, impls[j], cases[i].dim);
            check_pages(&want, &got);
            deinit(&want);
            deinit(&got);
        }
}

static void test_means_are_the_same_bytes(void **state)
{
    (void)state;
    const hdl_impl *impls[16];
    int64_t n = impls_of(HDL_OP_SUMMARISE, impls);
    for (int64_t i = 0; i < HDL_COUNT(block_cases); i++)
        for (int64_t j = 1; j < n; j++) {
            const index_case *c = &block_cases[i];
            uint64_t random = 5 + (uint64_t)i, again = random;
            setup want, got;
            build(&want, c, &random);
            build(&got, c, &again);
            append_keys(&want, impls[0], c->dim);
            append_keys(&got, impls[0], c->dim);
            if (want.means.dim) {
                assert_true(append_means(&want, impls[0], c->block));
                assert_true(append_means(&got, impls[j], c->block));
            }
            check_pages(&want, &got);
            deinit(&want);
            deinit(&got);
        }
}

typedef struct score_counts {
    int refused, amx;
} score_counts;

/* Every implementation of the setup's call against the reference; those of any score may refuse. */
static void check_scores(setup *s, score_counts *counts)
{
    const hdl_impl *impls[16];
    int64_t n = impls_of(HDL_OP_SCORE, impls), n_scores = s->args.n_rows * s->args.score_stride;
    float *want = must_alloc(n_scores * 4), *got = must_alloc(n_scores * 4);
    assert_true(n >= 2);
    memset(want, 0x11, (size_t)n_scores * 4);
    s->args.score = want;
    launch(impls[0], &s->args);
    for (int64_t j = 1; j < n; j++) {
        if (impls[j]->why_not(&s->args)) {
            /* of the index's own kernels only the matrix unit's may refuse */
            assert_true(impls[j]->isa == HDL_ISA_AMX || strncmp(impls[j]->name, "score_index", 11) != 0);
            counts->refused++;
            continue;
        }
        counts->amx += impls[j]->isa == HDL_ISA_AMX;
        memset(got, 0x11, (size_t)n_scores * 4);
        s->args.score = got;
        launch(impls[j], &s->args);
        assert_memory_equal(want, got, n_scores * 4); /* what must not be written included */
    }
    free(want);
    free(got);
}

static void test_scores_are_the_same_bits(void **state)
{
    (void)state;
    const hdl_impl *keys[16];
    score_counts counts = {0};
    assert_true(impls_of(HDL_OP_SUMMARISE, keys) >= 2);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        uint64_t random = 99 + (uint64_t)i;
        setup s;
        build(&s, &cases[i], &random);
        append_keys(&s, keys[0], cases[i].dim);
        add_candidates(&s, &cases[i], &random);
        check_scores(&s, &counts);
        deinit(&s);
    }
    if (hdl_cpu_isa() >= HDL_ISA_AMX) assert_true(counts.amx >= 8 && counts.refused >= 5);
}

/* Both levels: means of blocks, then the tokens of chosen blocks. */
static void test_two_levels_are_the_same_bits(void **state)
{
    (void)state;
    const hdl_impl *keys[16];
    score_counts counts = {0};
    impls_of(HDL_OP_SUMMARISE, keys);
    for (int64_t i = 0; i < HDL_COUNT(block_cases); i++) {
        const index_case *c = &block_cases[i];
        uint64_t random = 7 + (uint64_t)i;
        setup s, means;
        build(&s, c, &random);
        append_keys(&s, keys[0], c->dim);
        if (s.means.dim) {
            append_means(&s, keys[0], c->block);
            means = s;
            means.args.seqs = means.seqs;
            for (int j = 0; j < 2; j++) means.seqs[j].kv.plane[0] = s.means;
            means.args.block_size = c->block;
            means.args.plane = HDL_PLANE_INDEX_MEAN;
            means.args.has_candidates = false;
            check_scores(&means, &counts);
        }
        add_candidates(&s, c, &random);
        check_scores(&s, &counts);
        deinit(&s);
    }
    assert_int_equal(counts.amx, 0); /* the matrix unit takes neither */
}

/* By hand: dim 2, keys (1, 0.5), (-2, 0), query (3, -3) -> q8 (127, -127). */
static void test_a_score_by_hand(void **state)
{
    (void)state;
    const hdl_impl *impls[16], *keys[16];
    int64_t n = impls_of(HDL_OP_SCORE, impls);
    impls_of(HDL_OP_SUMMARISE, keys);
    float x[4] = {1, 0.5f, -2, 0}, q[2] = {3, -3}, score[2];
    uint8_t page[64] = {0}, *pages[1] = {page};
    hdl_attend_seq seq = {.q_len = 1, .kv_len = 2};
    seq.kv = (hdl_kv_view){
        .pages = pages, .page_shift = 4, .plane = {{.scale_offset = 32, .n_heads = 1, .dim = 2}}};
    hdl_summarise_args append = {
        .n_rows = 2, .x = x, .x_stride = 2, .kind = HDL_PLANE_INDEX, .block_size = 1, .kv = seq.kv};
    launch(keys[0], &append);
    hdl_score_args args = {.n_rows = 1,
                           .n_seqs = 1,
                           .n_heads = 1,
                           .n_kv_heads = 1,
                           .head_dim = 2,
                           .n_lists = 1,
                           .seqs = &seq,
                           .max_q_len = 1,
                           .max_kv_len = 2,
                           .q = q,
                           .q_stride = 2,
                           .scale = 1,
                           .rule = HDL_RULE_INDEX,
                           .plane = HDL_PLANE_INDEX,
                           .block_size = 1,
                           .score = score,
                           .score_stride = 2};
    for (int64_t j = 0; j < n; j++) {
        if (impls[j]->why_not && impls[j]->why_not(&args)) continue;
        launch(impls[j], &args);
        assert_true(score[0] == (float)(127 * 127 - 127 * 64) * (1 / 127.0f)); /* 63.5 rounds to even: 64 */
        assert_true(score[1] == (float)(-127 * 127) * (2 / 127.0f));
    }
}

/* Means of blocks of 4 of 139 keys in 18 pages, written in two calls that cut a block, by a formula of their own;
 * every implementation's scores of two rows by them, the rows' own blocks -inf. */
static void test_means_of_blocks(void **state)
{
    (void)state;
    enum { N = 139, DIM = 64, BLOCK = 4, WHOLE = N / BLOCK, PAGE = 1024, N_PAGES = (N + 7) / 8 };
    const hdl_impl *impls[16], *writers[16];
    int64_t n_impls = impls_of(HDL_OP_SCORE, impls), n_writers = impls_of(HDL_OP_SUMMARISE, writers),
            n_run = 0;
    float x[N * DIM], q[2 * DIM], got[2][WHOLE + 2];
    _Alignas(64) uint8_t page[N_PAGES][PAGE] = {{0}};
    uint8_t *pages[N_PAGES];
    for (int p = 0; p < N_PAGES; p++) pages[p] = page[p];
    uint64_t random = 5;
    fill_random(x, N * DIM, &random);
    fill_random(q, 2 * DIM, &random);
    hdl_attend_seq seq = {.q_len = 2, .kv_len = N}; /* pages of 8: the last holds a part of a block */
    seq.kv = (hdl_kv_view){.pages = pages,
                           .page_shift = 3,
                           .plane = {{.offset = 576, .scale_offset = 704, .n_heads = 1, .dim = DIM},
                                     {.scale_offset = 512, .n_heads = 1, .dim = DIM}}};
    for (int64_t first = 0, n = 70; first < N; first += n, n = N - n) {
        hdl_summarise_args keys = {.n_rows = n,
                                   .first_token = first,
                                   .x = x + first * DIM,
                                   .x_stride = DIM,
                                   .kind = HDL_PLANE_INDEX,
                                   .block_size = 1,
                                   .kv = seq.kv};
        keys.kv.plane[0] = seq.kv.plane[1];
        launch(writers[0], &keys);
        hdl_summarise_args means = {.n_rows = n,
                                    .first_token = first,
                                    .kind = HDL_PLANE_INDEX_MEAN,
                                    .block_size = BLOCK,
                                    .kv = seq.kv};
        int64_t taken = 0;
        for (int64_t j = 0; j < n_writers; j++) {
            if (writers[j]->why_not && writers[j]->why_not(&means)) continue;
            launch(writers[j], &means);
            taken++;
        }
        assert_true(taken >= 2);
    }
    float scale[WHOLE + 1];
    int8_t mean[WHOLE + 1][DIM];
    for (int e = 0; e <= WHOLE; e++) {
        int n = HDL_MIN(N - e * BLOCK, BLOCK);
        float most = 0, sum[DIM] = {0};
        for (int d = 0; d < DIM; d++) {
            for (int t = e * BLOCK; t < e * BLOCK + n; t++) {
                const uint8_t *at = page[t / 8];
                float s;
                memcpy(&s, at + 512 + t % 8 * 4, 4);
                sum[d] += (float)((const int8_t *)at)[t % 8 * DIM + d] * s;
            }
            sum[d] /= (float)n;
            most = fmaxf(most, fabsf(sum[d]));
        }
        const uint8_t *entry = page[e / 2] + 576 + e % 2 * DIM;
        memcpy(&scale[e], page[e / 2] + 704 + e % 2 * 4, 4);
        memcpy(mean[e], entry, DIM);
        assert_true(fabsf(scale[e] - most / 127) <= 1e-6f * most);
        for (int d = 0; d < DIM; d++) assert_true(fabsf(mean[e][d] * scale[e] - sum[d]) <= 0.51f * scale[e]);
    }
    for (int64_t j = 0; j < n_impls; j++) {
        hdl_score_args args = {.n_rows = 2,
                               .n_seqs = 1,
                               .n_heads = 1,
                               .n_kv_heads = 1,
                               .head_dim = DIM,
                               .n_lists = 1,
                               .seqs = &seq,
                               .max_q_len = 2,
                               .max_kv_len = N,
                               .q = q,
                               .q_stride = DIM,
                               .scale = 1,
                               .rule = HDL_RULE_INDEX,
                               .plane = HDL_PLANE_INDEX_MEAN,
                               .block_size = BLOCK,
                               .score = got[0],
                               .score_stride = WHOLE + 2};
        if (impls[j]->why_not && impls[j]->why_not(&args)) continue;
        n_run++;
        memset(got, 0x11, sizeof got);
        launch(impls[j], &args);
        for (int r = 0; r < 2; r++) {
            int8_t q8[DIM];
            float most = 0;
            for (int d = 0; d < DIM; d++) most = fmaxf(most, fabsf(q[r * DIM + d]));
            for (int d = 0; d < DIM; d++) q8[d] = (int8_t)rintf(q[r * DIM + d] * (127 / most));
            for (int e = 0; e < WHOLE; e++) {
                int32_t dot = 0;
                for (int d = 0; d < DIM; d++) dot += q8[d] * mean[e][d];
                assert_true(got[r][e] == (float)dot * scale[e]);
            }
            assert_true(got[r][WHOLE] == -INFINITY);
        }
    }
    assert_true(n_run >= 2); /* the reference and one that is fast */
}

/* The matrix unit's kernel is about all keys of tokens; means of blocks and candidates lie otherwise. */
static void test_amx_leaves_blocks_to_others(void **state)
{
    (void)state;
    hdl_score_args args = {
        .n_heads = 1, .n_kv_heads = 1, .n_lists = 1, .head_dim = 64, .rule = HDL_RULE_INDEX, .block_size = 1};
    assert_null(hdl_cpu_amx_index[0].why_not(&args));
    args.has_candidates = true;
    assert_non_null(hdl_cpu_amx_index[0].why_not(&args));
    args.has_candidates = false;
    args.block_size = 64;
    assert_non_null(hdl_cpu_amx_index[0].why_not(&args));
}

/* Rows that share a score, masses: no kernel of index keys knows them. */
static void test_what_index_kernels_refuse(void **state)
{
    (void)state;
    const hdl_impl *const impls[] = {hdl_cpu_generic_index, hdl_cpu_avx2_index, hdl_cpu_avx512_index,
                                     hdl_cpu_amx_index};
    for (int64_t i = 0; i < HDL_COUNT(impls); i++) {
        const hdl_impl *impl = impls[i];
        while (impl->op != HDL_OP_SCORE) impl++;
        hdl_score_args args = {.n_heads = 1,
                               .n_kv_heads = 1,
                               .n_lists = 1,
                               .head_dim = 64,
                               .rule = HDL_RULE_INDEX,
                               .block_size = 1};
        assert_null(impl->why_not(&args));
        args.is_shared = true;
        assert_string_equal(impl->why_not(&args), "rows share a score");
        args.is_shared = false;
        args.measure = HDL_MEASURE_MASS;
        assert_string_equal(impl->why_not(&args), "masses by index keys");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_are_the_same_bytes),
        cmocka_unit_test(test_means_are_the_same_bytes),
        cmocka_unit_test(test_scores_are_the_same_bits),
        cmocka_unit_test(test_two_levels_are_the_same_bits),
        cmocka_unit_test(test_a_score_by_hand),
        cmocka_unit_test(test_means_of_blocks),
        cmocka_unit_test(test_amx_leaves_blocks_to_others),
        cmocka_unit_test(test_what_index_kernels_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
