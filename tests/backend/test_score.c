/* test_score.c - SCORE of every instruction set against the reference, and what must not change a bit. */
#include "backend/plane_cases.h"
#include "sanitized.h"

typedef struct score_case {
    const char *name;
    hdl_score_rule rule;
    hdl_plane_kind plane;
    hdl_measure measure;
    hdl_reduce reduce;
    int32_t n_heads, n_kv_heads, head_dim, n_lists, block_size, page_shift;
    int64_t q_len, kv_len;
    int32_t candidate_block; /* 0 = all entries; 1 = tokens; else blocks */
    bool has_lists;          /* candidates by list */
    bool has_bias;
    int32_t tile; /* shared score rows of so many query rows each, by position; 0 = each row its own */
    hdl_reduce rows;
} score_case;

#define KEYS4      HDL_RULE_DOT, HDL_PLANE_KEY_I4
#define PAIRS2     HDL_RULE_DOT, HDL_PLANE_KEY_PQ2
#define FOURS      HDL_RULE_DOT, HDL_PLANE_KEY_PQ4
#define KEYS8      HDL_RULE_DOT, HDL_PLANE_KEY_I8
#define GROUPS     HDL_RULE_DOT, HDL_PLANE_GROUP
#define MASS_MEAN  HDL_MEASURE_MASS, HDL_REDUCE_MEAN
#define MASS_MAX   HDL_MEASURE_MASS, HDL_REDUCE_MAX
#define LOGIT_SUM  HDL_MEASURE_LOGIT, HDL_REDUCE_SUM
#define LOGIT_MAX  HDL_MEASURE_LOGIT, HDL_REDUCE_MAX
#define LOGIT_MEAN HDL_MEASURE_LOGIT, HDL_REDUCE_MEAN

static const score_case cases[] = {
    {"keys4 one token", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1},
    {"keys4 decode", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1000},
    {"keys4 decode small pages", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 4, .q_len = 1, .kv_len = 777},
    {"keys4 lists", KEYS4, MASS_MEAN, 9, 3, 64, 3, 1, 6, .q_len = 1, .kv_len = 515},
    {"keys4 max", KEYS4, MASS_MAX, 4, 1, 256, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"keys4 ragged rows", KEYS4, LOGIT_SUM, 6, 2, 80, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"keys4 many rows", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 37, .kv_len = 600},
    {"keys4 many rows lists", KEYS4, MASS_MAX, 8, 4, 48, 2, 1, 5, .q_len = 6, .kv_len = 257},
    {"keys4 rows from the first", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 20, .kv_len = 20},
    {"keys4 logits one head", KEYS4, LOGIT_MEAN, 1, 1, 64, 1, 1, 8, .q_len = 3, .kv_len = 400},
    {"keys8 decode", KEYS8, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1000},
    {"keys8 eight to one", KEYS8, MASS_MEAN, 8, 1, 128, 1, 1, 8, .q_len = 1, .kv_len = 512},
    {"keys8 logits", KEYS8, LOGIT_MAX, 4, 4, 16, 4, 1, 8, .q_len = 9, .kv_len = 270},
    {"keys8 ragged rows", KEYS8, LOGIT_SUM, 2, 1, 112, 1, 1, 4, .q_len = 5, .kv_len = 33},
    {"keys8 head of 1024", KEYS8, LOGIT_MEAN, 1, 1, 1024, 1, 1, 4, .q_len = 2, .kv_len = 40},
    {"pairs by code, one token", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1},
    {"pairs by code, decode", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1000},
    {"pairs by code, small pages", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 4, .q_len = 1, .kv_len = 777},
    {"pairs by code, lists", PAIRS2, MASS_MEAN, 9, 3, 64, 3, 1, 6, .q_len = 1, .kv_len = 515},
    {"pairs by code, wide", PAIRS2, MASS_MAX, 4, 1, 256, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"pairs by code, ragged rows", PAIRS2, LOGIT_SUM, 6, 2, 80, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"pairs by code, many rows", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 37, .kv_len = 600},
    {"pairs by code, whole numbers", PAIRS2, LOGIT_MAX, 4, 4, 16, 4, 1, 8, .q_len = 9, .kv_len = 270},
    {"pairs by code, head of 1024", PAIRS2, LOGIT_MEAN, 1, 1, 1024, 1, 1, 4, .q_len = 2, .kv_len = 40},
    {"pairs by code, candidates", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 2003,
     .candidate_block = 16},
    {"pairs by code, tiles", PAIRS2, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 70, .kv_len = 700, .tile = 32,
     .rows = HDL_REDUCE_SUM},
    {"fours by code, one token", FOURS, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1},
    {"fours by code, decode", FOURS, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 1000},
    {"fours by code, small pages", FOURS, MASS_MEAN, 9, 3, 64, 1, 1, 4, .q_len = 1, .kv_len = 777},
    {"fours by code, wide", FOURS, MASS_MAX, 4, 1, 256, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"fours by code, ragged rows", FOURS, LOGIT_SUM, 6, 2, 96, 1, 1, 8, .q_len = 1, .kv_len = 300},
    {"fours by code, many rows", FOURS, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 37, .kv_len = 600},
    {"fours by code, whole numbers", FOURS, LOGIT_MAX, 4, 4, 32, 4, 1, 8, .q_len = 9, .kv_len = 270},
    {"fours by code, head of 1024", FOURS, LOGIT_MEAN, 1, 1, 1024, 1, 1, 4, .q_len = 2, .kv_len = 40},
    {"keys4 head of 1024", KEYS4, LOGIT_MEAN, 1, 1, 1024, 1, 1, 4, .q_len = 2, .kv_len = 40},
    {"index", HDL_RULE_INDEX, HDL_PLANE_INDEX, LOGIT_MEAN, 1, 1, 64, 1, 1, 8, .q_len = 1, .kv_len = 1500},
    {"index rows", HDL_RULE_INDEX, HDL_PLANE_INDEX, LOGIT_MEAN, 1, 1, 64, 1, 1, 8, .q_len = 11,
     .kv_len = 300},
    {"index of a layer", HDL_RULE_DOT, HDL_PLANE_INDEX, LOGIT_MAX, 4, 1, 64, 1, 1, 8, .q_len = 1,
     .kv_len = 1500, .has_bias = true},
    {"index of a layer, rows", HDL_RULE_DOT, HDL_PLANE_INDEX, LOGIT_MAX, 4, 1, 64, 1, 1, 8, .q_len = 37,
     .kv_len = 600, .has_bias = true},
    {"index of a layer, eight queries", HDL_RULE_DOT, HDL_PLANE_INDEX, LOGIT_MAX, 8, 1, 64, 1, 1, 6,
     .q_len = 5, .kv_len = 300, .has_bias = true},
    {"keys8 with bias by list", KEYS8, MASS_MAX, 6, 3, 64, 3, 1, 6, .q_len = 9, .kv_len = 300,
     .has_bias = true},
    {"means", HDL_RULE_DOT, HDL_PLANE_MEAN, LOGIT_SUM, 9, 3, 64, 1, 16, 8, .q_len = 1, .kv_len = 5003},
    {"means by list", HDL_RULE_DOT, HDL_PLANE_MEAN, LOGIT_MEAN, 9, 3, 64, 3, 64, 6, .q_len = 5,
     .kv_len = 800},
    {"means as masses", HDL_RULE_DOT, HDL_PLANE_MEAN, MASS_MEAN, 4, 1, 256, 1, 16, 4, .q_len = 1,
     .kv_len = 900},
    {"peaks", HDL_RULE_DOT, HDL_PLANE_PEAK, LOGIT_MAX, 9, 3, 64, 3, 16, 8, .q_len = 1, .kv_len = 5003},
    {"middle keys in rows", HDL_RULE_DOT, HDL_PLANE_MIDDLE, MASS_MEAN, 4, 2, 80, 1, 32, 5, .q_len = 7,
     .kv_len = 400},
    {"groups", GROUPS, MASS_MEAN, 9, 3, 64, 1, 16, 8, .q_len = 1, .kv_len = 5003},
    {"groups by list, in rows", GROUPS, LOGIT_MEAN, 9, 3, 64, 3, 8, 9, .q_len = 40, .kv_len = 1040},
    {"groups, whole numbers", GROUPS, LOGIT_MAX, 4, 4, 16, 4, 32, 8, .q_len = 9, .kv_len = 770},
    {"groups, no segment is full", GROUPS, MASS_MEAN, 9, 3, 64, 1, 16, 8, .q_len = 3, .kv_len = 255},
    {"groups, the first full segment", GROUPS, MASS_MAX, 4, 1, 256, 1, 16, 8, .q_len = 3, .kv_len = 257},
    {"means, less than a block", HDL_RULE_DOT, HDL_PLANE_MEAN, LOGIT_SUM, 9, 3, 64, 1, 64, 8, .q_len = 1,
     .kv_len = 63},
    {"pairs", HDL_RULE_PAIRS, HDL_PLANE_MEAN, MASS_MEAN, 9, 3, 64, 1, 16, 8, .q_len = 1, .kv_len = 9000},
    {"pairs in rows", HDL_RULE_PAIRS, HDL_PLANE_MEAN, MASS_MAX, 6, 2, 32, 2, 4, 4, .q_len = 9,
     .kv_len = 2055},
    {"pairs, one entry", HDL_RULE_PAIRS, HDL_PLANE_MEAN, MASS_MEAN, 9, 3, 64, 1, 16, 8, .q_len = 1,
     .kv_len = 31},
    {"pairs of 256", HDL_RULE_PAIRS, HDL_PLANE_MEAN, MASS_MEAN, 3, 3, 64, 1, 4, 8, .q_len = 3,
     .kv_len = 1026},
    {"bounds", HDL_RULE_BOUND, HDL_PLANE_BOUNDS, LOGIT_MAX, 9, 3, 64, 3, 16, 8, .q_len = 1, .kv_len = 5003},
    {"bounds in rows", HDL_RULE_BOUND, HDL_PLANE_BOUNDS, LOGIT_MAX, 4, 2, 80, 1, 32, 5, .q_len = 7,
     .kv_len = 400},
    {"hash", HDL_RULE_HASH, HDL_PLANE_NONE, LOGIT_MEAN, 9, 3, 64, 3, 1, 8, .q_len = 5, .kv_len = 300},
    {"stride", HDL_RULE_STRIDE, HDL_PLANE_NONE, LOGIT_MEAN, 9, 3, 64, 3, 16, 8, .q_len = 5, .kv_len = 3000},
    {"powers", HDL_RULE_POWERS, HDL_PLANE_NONE, LOGIT_MEAN, 9, 3, 64, 1, 16, 8, .q_len = 5, .kv_len = 3000},
    {"candidate tokens", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 2000,
     .candidate_block = 1},
    {"candidate blocks", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 2003,
     .candidate_block = 16},
    {"candidates by list", KEYS8, MASS_MEAN, 9, 3, 64, 3, 1, 8, .q_len = 2, .kv_len = 900,
     .candidate_block = 16, .has_lists = true},
    {"candidates by list, one row", KEYS8, MASS_MAX, 8, 4, 64, 2, 1, 8, .q_len = 1, .kv_len = 900,
     .candidate_block = 1, .has_lists = true},
    {"candidates of rows", HDL_RULE_INDEX, HDL_PLANE_INDEX, LOGIT_MEAN, 1, 1, 64, 1, 1, 5, .q_len = 6,
     .kv_len = 500, .candidate_block = 4},
    {"tiles, summed", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 70, .kv_len = 700, .tile = 32,
     .rows = HDL_REDUCE_SUM},
    {"tiles by list, summed", KEYS8, HDL_MEASURE_MASS, HDL_REDUCE_SUM, 9, 3, 64, 3, 1, 5, .q_len = 37,
     .kv_len = 301, .tile = 16, .rows = HDL_REDUCE_SUM},
    {"tiles, the largest", KEYS4, MASS_MAX, 8, 4, 48, 2, 1, 5, .q_len = 20, .kv_len = 20, .tile = 8,
     .rows = HDL_REDUCE_MAX},
    {"tiles, the largest of means", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 33, .kv_len = 600,
     .tile = 64, .rows = HDL_REDUCE_MAX},
    {"tiles of one row", KEYS4, MASS_MEAN, 9, 3, 64, 1, 1, 8, .q_len = 1, .kv_len = 300, .tile = 32,
     .rows = HDL_REDUCE_SUM},
    {"tiles, means of blocks", HDL_RULE_DOT, HDL_PLANE_MEAN, LOGIT_SUM, 9, 3, 64, 1, 16, 8, .q_len = 40,
     .kv_len = 1003, .tile = 32, .rows = HDL_REDUCE_MAX},
    {"tiles, pairs", HDL_RULE_PAIRS, HDL_PLANE_MEAN, MASS_MAX, 6, 2, 32, 2, 4, 4, .q_len = 21, .kv_len = 2055,
     .tile = 16, .rows = HDL_REDUCE_SUM},
    {"tiles, bounds", HDL_RULE_BOUND, HDL_PLANE_BOUNDS, LOGIT_MAX, 4, 2, 80, 1, 32, 5, .q_len = 19,
     .kv_len = 400, .tile = 8, .rows = HDL_REDUCE_MAX},
    {"not a multiple of 16", KEYS4, MASS_MEAN, 3, 3, 20, 1, 1, 8, .q_len = 2, .kv_len = 50},
};

typedef struct score_setup {
    plane_cache cache;
    hdl_attend_seq seq, tiles[8];
    hdl_selection candidates;
    hdl_score_args args;
    float *q, *bias;
} score_setup;

/* Ascending ids, about a third of the units, the last one always; past the row's end too. */
static void make_candidates(score_setup *setup, const score_case *c, uint64_t *random)
{
    hdl_selection *sel = &setup->candidates;
    int64_t n_units = (c->kv_len + c->candidate_block - 1) / c->candidate_block;
    *sel = (hdl_selection){.unit = c->candidate_block > 1 ? HDL_UNIT_BLOCK : HDL_UNIT_TOKEN,
                           .block_size = c->candidate_block,
                           .n_rows = c->q_len,
                           .n_lists = c->has_lists ? c->n_lists : 1,
                           .n_ids_max = n_units};
    sel->ids = must_alloc(sel->n_rows * sel->n_lists * n_units * 4);
    sel->counts = must_alloc(sel->n_rows * sel->n_lists * 4);
    for (int64_t row = 0; row < sel->n_rows; row++)
        for (int32_t list = 0; list < sel->n_lists; list++) {
            int64_t visible = c->kv_len - c->q_len + row + 1;
            int32_t n = 0, *ids = hdl_selection_ids(sel, row, list);
            for (int64_t u = 0; u * c->candidate_block < visible; u++)
                if (next_random(random) % 3 == 0 || (u + 1) * c->candidate_block >= visible)
                    ids[n++] = (int32_t)u;
            *hdl_selection_count(sel, row, list) = n;
        }
}

/* The rows of the sequence in tiles that begin at multiples of c->tile by position. */
static void make_tiles(score_setup *setup, const score_case *c)
{
    int64_t before = c->kv_len - c->q_len;
    setup->args.is_shared = true;
    setup->args.rows = c->rows;
    setup->args.seqs = setup->tiles;
    setup->args.n_seqs = 0;
    setup->args.max_q_len = c->tile;
    for (int64_t row = 0, end; row < c->q_len; row = end) {
        end = HDL_MIN((before + row) / c->tile * c->tile + c->tile - before, c->q_len);
        assert_true(setup->args.n_seqs < (int32_t)HDL_COUNT(setup->tiles));
        hdl_attend_seq *tile = &setup->tiles[setup->args.n_seqs++];
        *tile = setup->seq;
        tile->first_row = row;
        tile->q_len = end - row;
        tile->kv_len = before + end;
    }
}

static void open_setup(score_setup *setup, const score_case *c)
{
    uint64_t random = 5;
    hdl_plane_kind written = c->plane == HDL_PLANE_INDEX ? HDL_PLANE_KEY_I8 : c->plane;
    *setup = (score_setup){0};
    open_cache(&setup->cache, HDL_F16, c->page_shift, c->n_kv_heads, c->head_dim, c->head_dim, c->kv_len,
               c->plane, c->block_size);
    append_random(&setup->cache, 0, c->kv_len, &random);
    if (c->plane)
        summarise_with(ref_impl(hdl_cpu_ref_route, HDL_OP_SUMMARISE), &setup->cache, 0, c->kv_len, written,
                       c->block_size);
    setup->seq = (hdl_attend_seq){.q_len = c->q_len, .kv_len = c->kv_len, .kv = setup->cache.kv};
    if (c->candidate_block) make_candidates(setup, c, &random);
    int64_t stride = (int64_t)c->n_heads * c->head_dim + 7;
    setup->q = must_alloc(c->q_len * stride * 4);
    fill_random(setup->q, c->q_len * stride, &random);
    setup->bias = must_alloc(c->q_len * c->n_heads * 4);
    fill_random(setup->bias, c->q_len * c->n_heads, &random);
    setup->args = (hdl_score_args){.n_rows = c->q_len,
                                   .n_seqs = 1,
                                   .n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .n_lists = c->n_lists,
                                   .seqs = &setup->seq,
                                   .max_q_len = c->q_len,
                                   .max_kv_len = c->kv_len,
                                   .q = setup->q,
                                   .q_stride = stride,
                                   .has_bias = c->has_bias,
                                   .bias = c->has_bias ? setup->bias : NULL,
                                   .scale = 0.4f,
                                   .rule = c->rule,
                                   .plane = c->plane,
                                   .measure = c->measure,
                                   .reduce = c->reduce,
                                   .block_size = c->block_size,
                                   .stride = 3,
                                   .seed = 77,
                                   .has_candidates = c->candidate_block > 0,
                                   .candidates = c->candidate_block ? &setup->candidates : NULL};
    setup->args.score_stride = c->kv_len / (c->candidate_block ? 1 : c->block_size) + 3;
    if (c->tile) make_tiles(setup, c);
}

static void close_setup(score_setup *setup)
{
    close_cache(&setup->cache);
    free(setup->candidates.ids);
    free(setup->candidates.counts);
    free(setup->q);
    free(setup->bias);
}

/* Floats of all score rows; where the rows of tiles of tokens are summed, those along distances follow. */
static int64_t n_scores(const hdl_score_args *args)
{
    bool has_slash = args->is_shared && args->rows == HDL_REDUCE_SUM && args->block_size == 1;
    return args->n_rows * args->n_lists * args->score_stride * (has_slash ? 2 : 1);
}

/* Scores [n_rows, n_lists, stride], 0xff where nothing was written; scratch is 0xff before, and of exactly
 * the size that was asked for. */
static float *scores_of(const score_setup *setup, const hdl_impl *impl, int n_threads)
{
    hdl_score_args args = setup->args;
    int64_t n_bytes = n_scores(&args) * 4, n_own = args.n_rows * args.n_lists * args.score_stride;
    int64_t scratch = impl->workspace ? impl->workspace(&args, n_threads) : 0;
    uint8_t *workspace = must_alloc(scratch + 64);
    memset(workspace, 0xff, (size_t)scratch + 64);
    args.score = must_alloc(n_bytes);
    memset(args.score, 0xff, (size_t)n_bytes);
    if (n_scores(&args) > n_own) args.slash = args.score + n_own;
    impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = workspace}, &args);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[scratch + i], 0xff);
    free(workspace);
    return args.score;
}

static bool is_close(const score_case *c, float x, float want)
{
    if (isnan(want) || isinf(want)) return isnan(want) ? isnan(x) : x == want;
    /* whole numbers and one rounding: the same bits everywhere */
    bool is_exact = c->plane == HDL_PLANE_NONE ||
                    (c->n_heads == c->n_lists && c->measure == HDL_MEASURE_LOGIT &&
                     (c->plane >= HDL_PLANE_KEY_I8));
    if (is_exact) return x == want;
    if (c->measure == HDL_MEASURE_MASS) return fabsf(x - want) <= 1e-5f * want; /* masses of tiles, too */
    return fabsf(x - want) <= 2e-5f + 2e-6f * fabsf(want);
}

/* Against the reference's scores, `want`. */
static void check_case(const score_setup *setup, const score_case *c, const hdl_impl *impl, const float *want)
{
    const hdl_score_args *args = &setup->args;
    bool is_refused = impl->why_not && impl->why_not(args);
    bool is_of_others = c->rule == HDL_RULE_INDEX && c->candidate_block; /* test_index.c */
    assert_int_equal(is_refused, c->head_dim % 16 != 0 || is_of_others);
    if (is_refused) return;
    float *got = scores_of(setup, impl, 2);
    for (int64_t i = 0; i < n_scores(args); i++)
        if (!is_close(c, got[i], want[i])) {
            print_error("%s, %s: [%d][%d] is %.9g, wanted %.9g\n", c->name, impl->name,
                        (int)(i / args->score_stride), (int)(i % args->score_stride), (double)got[i],
                        (double)want[i]);
            fail();
        }
    free(got);
}

static void test_against_reference(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_SCORE, impls);
    assert_true(n >= 2);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        score_setup setup;
        open_setup(&setup, &cases[i]);
        float *want = scores_of(&setup, impls[0], 1);
        for (int64_t k = 1; k < n; k++) check_case(&setup, &cases[i], impls[k], want);
        free(want);
        close_setup(&setup);
    }
}

/* A row has the same bits alone as among others, and with any number of threads. */
static void test_same_bits(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_SCORE, impls);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
            if (IS_SANITIZED && (i + k) % 2) continue;
            score_setup setup;
            open_setup(&setup, &cases[i]);
            hdl_score_args args = setup.args;
            int64_t row_floats = args.n_lists * args.score_stride, last = args.n_rows - 1;
            if (impls[k]->why_not && impls[k]->why_not(&args)) {
                close_setup(&setup);
                continue;
            }
            float *all = scores_of(&setup, impls[k], 1), *again = scores_of(&setup, impls[k], 3);
            assert_memory_equal(all, again, (size_t)(args.n_rows * row_floats) * 4);
            if (args.is_shared) { /* it is the tile that stands alone */
                hdl_attend_seq *tile = &setup.tiles[args.n_seqs - 1];
                setup.args.seqs = tile;
                setup.args.n_seqs = 1;
                setup.args.n_rows = setup.args.max_q_len = tile->q_len;
                setup.args.q += tile->first_row * args.q_stride;
                tile->first_row = 0;
                float *alone = scores_of(&setup, impls[k], 2);
                assert_memory_equal(all + (args.n_seqs - 1) * row_floats, alone, (size_t)row_floats * 4);
                setup.args.q = setup.q; /* freed by its own name below */
                free(all);
                free(again);
                free(alone);
                close_setup(&setup);
                continue;
            }
            setup.seq.q_len = setup.args.n_rows = setup.args.max_q_len = 1; /* the last row */
            setup.args.q += last * args.q_stride;
            if (setup.args.bias) setup.args.bias += last * args.n_heads;
            setup.candidates.ids += last * setup.candidates.n_lists * setup.candidates.n_ids_max;
            setup.candidates.counts += last * setup.candidates.n_lists;
            float *alone = scores_of(&setup, impls[k], 2);
            assert_memory_equal(all + last * row_floats, alone, (size_t)row_floats * 4);
            setup.candidates.ids -= last * setup.candidates.n_lists * setup.candidates.n_ids_max;
            setup.candidates.counts -= last * setup.candidates.n_lists;
            free(all);
            free(again);
            free(alone);
            close_setup(&setup);
        }
}

enum { LONG_ENTRIES = 40000 }; /* more than a thread keeps scores of for itself */

/* Where rows are long, threads score them together: the same bits, but for sums along distances, to which rows come
 * in another order. */
static void test_long_rows_have_the_same_bits(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SCORE, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        const score_case *c = &cases[i];
        score_setup setup;
        open_setup(&setup, c);
        hdl_score_args *args = &setup.args;
        int64_t n_own = args->n_rows * args->n_lists * args->score_stride;
        for (int64_t k = 0; k < n_impls; k++) {
            if (IS_SANITIZED && (i + k + 1) % 2) continue;
            if (impls[k]->why_not && impls[k]->why_not(args)) continue;
            args->max_kv_len = c->kv_len;
            float *want = scores_of(&setup, impls[k], 1);
            args->max_kv_len = (int64_t)LONG_ENTRIES * c->block_size;
            float *got = scores_of(&setup, impls[k], 3);
            if (memcmp(got, want, (size_t)n_own * 4) != 0)
                fail_msg("%s, %s: other bits where rows are long", c->name, impls[k]->name);
            for (int64_t e = n_own; e < n_scores(args); e++) assert_true(is_close(c, got[e], want[e]));
            free(want);
            free(got);
        }
        close_setup(&setup);
    }
}

/* Masses need one score row [n_heads, kv_len], however many threads there are; what a thread keeps for itself does
 * not grow. It had been 16 heads' rows a thread: 1 GB for 1M tokens and 16 threads. */
static void test_scratch_is_one_score_row(void **state)
{
    (void)state;
    enum { K = 1024, PER_THREAD = 3 << 20, FIXED = 1 << 16 };
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SCORE, impls);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        const score_case *c = &cases[i];
        score_setup setup;
        open_setup(&setup, c);
        hdl_score_args *args = &setup.args;
        for (int64_t k = 1; k < n_impls; k++) /* the reference takes the room that it likes */
            for (int n_threads = 1; n_threads <= 16 && impls[k]->workspace; n_threads += 15)
                for (int64_t n = 8 * K; n <= K * K; n *= 128) {
                    args->max_kv_len = n;
                    int64_t entries = n / (c->candidate_block ? 1 : c->block_size);
                    int64_t row = args->measure == HDL_MEASURE_MASS ? entries * args->n_heads * 4 : 0;
                    int64_t most = HDL_MAX(row + row / 8 + entries / 2, (int64_t)n_threads * PER_THREAD) +
                                   FIXED;
                    int64_t has = impls[k]->workspace(args, n_threads);
                    if (has > most)
                        fail_msg("%s, %s: %lld bytes for %lld tokens and %d threads, more than %lld", c->name,
                                 impls[k]->name, (long long)has, (long long)n, n_threads, (long long)most);
                }
        close_setup(&setup);
    }
}

/* The candidates of lists [first, first + n), as many as there were or one list for all; the caller frees both. */
static hdl_selection some_candidates(const hdl_selection *all, int32_t first, int32_t n)
{
    hdl_selection some = *all;
    if (all->n_lists == 1) n = 1, first = 0;
    some.n_lists = n;
    some.ids = must_alloc(some.n_rows * n * some.n_ids_max * 4 + 4);
    some.counts = must_alloc(some.n_rows * n * 4 + 4);
    for (int64_t row = 0; row < some.n_rows; row++)
        for (int32_t l = 0; l < n; l++) {
            *hdl_selection_count(&some, row, l) = *hdl_selection_count(all, row, first + l);
            memcpy(hdl_selection_ids(&some, row, l), hdl_selection_ids(all, row, first + l),
                   (size_t)some.n_ids_max * 4);
        }
    return some;
}

/* Lists [first, first + n) scored by themselves, compared with what they are among all: `want`. */
static void check_range(const score_setup *setup, const score_case *c, const hdl_impl *impl, int32_t first,
                        int32_t n, const float *want)
{
    const hdl_score_args *all = &setup->args;
    int32_t heads = c->n_heads / c->n_lists, kv_heads = c->n_kv_heads / c->n_lists;
    float *bias = must_alloc(all->n_rows * n * heads * 4);
    score_setup range = *setup;
    range.candidates = some_candidates(&setup->candidates, first, n);
    range.args.candidates = all->candidates ? &range.candidates : NULL;
    range.args.first_kv_head = first * kv_heads;
    range.args.n_kv_heads = n * kv_heads;
    range.args.n_heads = n * heads;
    range.args.n_lists = n;
    range.args.q += (int64_t)first * heads * c->head_dim;
    for (int64_t row = 0; row < all->n_rows; row++)
        memcpy(bias + row * n * heads, setup->bias + row * c->n_heads + first * heads,
               (size_t)(n * heads) * 4);
    if (all->bias) range.args.bias = bias;
    float *got = scores_of(&range, impl, 2);
    int64_t n_parts = n_scores(all) / (all->n_rows * all->n_lists * all->score_stride);
    for (int64_t row = 0; row < all->n_rows * n_parts; row++)
        if (memcmp(got + row * n * all->score_stride, want + (row * all->n_lists + first) * all->score_stride,
                   (size_t)(n * all->score_stride) * 4) != 0)
            fail_msg("%s, %s: lists %d..%d are others alone in row %d", c->name, impl->name, first,
                     first + n - 1, (int)row);
    free(got);
    free(bias);
    free(range.candidates.ids);
    free(range.candidates.counts);
}

/* A range of KV heads has the bits that its lists have among all. */
static void test_ranges_of_heads(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n_impls = route_impls(HDL_OP_SCORE, impls), n_checked = 0;
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        const score_case *c = &cases[i];
        score_setup setup;
        if (c->n_lists == 1) continue;
        open_setup(&setup, c);
        for (int64_t k = 0; k < n_impls; k++) {
            if (impls[k]->why_not && impls[k]->why_not(&setup.args)) continue;
            float *want = scores_of(&setup, impls[k], 2);
            for (int32_t first = 0; first < c->n_lists; first++)
                for (int32_t n = 1; first + n <= c->n_lists; n++, n_checked++)
                    check_range(&setup, c, impls[k], first, n, want);
            free(want);
        }
        close_setup(&setup);
    }
    assert_true(n_checked > 60 * (n_impls - 1));
}

/* The rule BOUND: no token of the block has a larger product, beyond the rounding of the sum. */
static void test_bound_holds(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_ROUTE_IMPLS];
    int64_t n = route_impls(HDL_OP_SCORE, impls);
    enum { DIM = 64, LEN = 517, BLOCK_SIZE = 4 };
    score_case c = {"bound", HDL_RULE_BOUND, HDL_PLANE_BOUNDS, LOGIT_MAX, 1, 1, DIM, 1, BLOCK_SIZE,
                    6,       .q_len = 1,     .kv_len = LEN};
    score_setup setup;
    open_setup(&setup, &c);
    for (int64_t k = 0; k < n; k++) {
        float *bound = scores_of(&setup, impls[k], 2);
        for (int64_t t = 0; t < LEN / BLOCK_SIZE * BLOCK_SIZE; t++) {
            const uint16_t *key = (const uint16_t *)(const void *)kv_token_at(&setup.cache.kv, t);
            double dot = 0, size = 0;
            for (int d = 0; d < DIM; d++) {
                double x = (double)setup.q[d] * hdl_f16_to_f32(key[d]);
                dot += x;
                size += fabs(x);
            }
            double scale = (double)setup.args.scale;
            assert_true((double)bound[t / BLOCK_SIZE] >= scale * dot - 4e-7 * scale * size);
        }
        free(bound);
    }
    close_setup(&setup);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_reference),
                                       cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_long_rows_have_the_same_bits),
                                       cmocka_unit_test(test_scratch_is_one_score_row),
                                       cmocka_unit_test(test_ranges_of_heads),
                                       cmocka_unit_test(test_bound_holds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
