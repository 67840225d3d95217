/* Laws that every router must keep, on a small random model: k >= n reads everything and equals dense;
 * chunks equal single steps; a fork and a truncation leave the summaries right; a small k matters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "engine/tiny_engine.h"

enum { N_IDS = 300, N_VOCAB = 300, CONTEXT = 320 };
static int32_t ids[N_IDS];

/* Layer 1 makes a list with this router; layers 2.. share it; K stands for the number of tokens. */
typedef struct router_case {
    const char *name, *op, *router;
    int complement; /* of every layer that reads the list; 0 = none */
} router_case;

static const router_case routers[] = {
    {"mean of blocks", "block_list", "\"score\": \"block_mean\", \"block\": 16, \"window\": 16, \"sinks\": 4",
     0},
    {"mean of blocks, mass", "block_list",
     "\"score\": \"block_mean\", \"measure\": \"mass\", \"heads\": \"max\", \"block\": 32, \"window\": 1", 0},
    {"mean of blocks, mass by length", "block_list",
     "\"score\": \"block_mean\", \"scale\": \"sqrt_length\", \"measure\": \"mass\", \"block\": 16, \"window\": 1",
     0},
    {"bounds", "block_list", "\"score\": \"block_bounds\", \"heads\": \"max\", \"block\": 16, \"window\": 8",
     0},
    {"pooled", "block_list", "\"score\": \"block_pooled\", \"heads\": \"sum\", \"block\": 32, \"window\": 40",
     0},
    {"peaks", "block_list", "\"score\": \"block_peak\", \"heads\": \"max\", \"block\": 16, \"window\": 8", 0},
    {"middle keys", "block_list",
     "\"score\": \"block_middle\", \"block\": 16, \"window\": 8, \"lists\": \"kv_head\"", 0},
    {"sampled keys", "block_list",
     "\"score\": \"block_sampled\", \"heads\": \"max\", \"block\": 16, \"window\": 8", 0},
    {"sampled keys and complement", "block_list",
     "\"score\": \"block_sampled\", \"block\": 16, \"window\": 16", 16},
    {"beam of middle keys", "block_list",
     "\"score\": \"block_middle\", \"select\": \"beam\", \"heads\": \"max\", \"block\": 4, \"window\": 8", 0},
    {"beam of 8-bit keys", "token_list",
     "\"score\": \"key_i8\", \"measure\": \"logit\", \"select\": \"beam\", \"sinks\": 2, \"window\": 4", 0},
    {"two levels by middle keys", "token_list",
     "\"score\": \"key_i8\", \"window\": 4, \"candidates\": {\"score\": \"block_middle\", \"block\": 16, "
     "\"window\": 4, \"top_k\": CANDIDATES}",
     0},
    {"8-bit keys", "token_list", "\"score\": \"key_i8\", \"window\": 4, \"sinks\": 2", 0},
    {"4-bit keys", "token_list", "\"score\": \"key_i4\", \"window\": 4, \"lists\": \"kv_head\"", 0},
    {"4-bit keys to blocks", "block_list",
     "\"score\": \"key_i4\", \"block\": 16, \"pool\": \"max\", \"window\": 4", 0},
    {"pairs by code", "token_list", "\"score\": \"key_pq2\", \"window\": 4, \"sinks\": 2", 0},
    {"pairs by code, lists", "token_list", "\"score\": \"key_pq2\", \"window\": 4, \"lists\": \"kv_head\"",
     0},
    {"fours by code to blocks", "block_list",
     "\"score\": \"key_pq4\", \"block\": 16, \"pool\": \"max\", \"window\": 4", 0},
    {"two levels by pairs", "token_list",
     "\"score\": \"key_pq2\", \"window\": 4, \"candidates\": {\"score\": \"block_mean\", \"block\": 16, "
     "\"window\": 4, \"top_k\": CANDIDATES}",
     0},
    {"mass to blocks", "block_list", "\"score\": \"attention_mass\", \"block\": 16, \"window\": 4", 0},
    {"random blocks", "block_list", "\"score\": \"random\", \"block\": 16, \"window\": 4, \"seed\": 3", 0},
    {"two levels", "token_list",
     "\"score\": \"key_i8\", \"window\": 4, \"candidates\": {\"score\": \"block_mean\", \"block\": 16, "
     "\"window\": 4, \"top_k\": CANDIDATES}",
     0},
    {"a share of bounded blocks", "token_list",
     "\"score\": \"key_i4\", \"select\": \"top_p\", \"p\": 1, \"window\": 4, \"lists\": \"kv_head\", \"candidates\": "
     "{\"score\": \"block_bounds\", \"heads\": \"max\", \"block\": 16, \"window\": 4, \"lists\": \"kv_head\", "
     "\"top_k\": CANDIDATES}",
     0},
    {"pooled blocks, dense below", "block_list",
     "\"score\": \"block_pooled\", \"heads\": \"sum\", \"block\": 16, \"window\": 4, \"dense_below\": 100",
     0},
    {"8-bit keys and complement", "token_list", "\"score\": \"key_i8\", \"window\": 16, \"sinks\": 2", 16},
    {"per KV head and complement", "token_list",
     "\"score\": \"key_i4\", \"window\": 32, \"lists\": \"kv_head\"", 32},
    {"mean of blocks and complement", "block_list", "\"score\": \"block_mean\", \"block\": 16, \"window\": 1",
     16},
    {"smaller blocks and complement", "block_list",
     "\"score\": \"block_bounds\", \"block\": 16, \"window\": 32", 32},
    {"union of 8-bit keys", "token_list",
     "\"score\": \"key_i8\", \"window\": 16, \"sinks\": 2, \"lists\": \"union\"", 16},
    {"union of blocks", "block_list",
     "\"score\": \"block_bounds\", \"heads\": \"max\", \"block\": 8, \"window\": 8, \"lists\": \"union\"", 0},
    {"union of masses", "token_list", "\"score\": \"attention_mass\", \"window\": 1, \"lists\": \"union\"",
     0},
    {"union among unions", "token_list",
     "\"score\": \"key_i8\", \"window\": 4, \"lists\": \"union\", \"candidates\": {\"score\": \"block_mean\", "
     "\"block\": 16, \"window\": 4, \"lists\": \"union\", \"top_k\": CANDIDATES}",
     0},
};

static heddle_plan *plan_with(const router_case *at, int top_k, const char *of_readers)
{
    char json[2048], router[1024], number[16], complement[128];
    snprintf(complement, sizeof complement, "%s", of_readers);
    snprintf(number, sizeof number, "%d", HDL_MAX(top_k, 64));
    const char *mark = strstr(at->router, "CANDIDATES");
    snprintf(router, sizeof router, "%.*s%s%s", mark ? (int)(mark - at->router) : (int)strlen(at->router),
             at->router, mark ? number : "", mark ? mark + strlen("CANDIDATES") : "");
    if (at->complement) snprintf(complement, sizeof complement, ", \"complement\": %d", at->complement);
    snprintf(json, sizeof json,
             "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": ["
             "{\"layers\": [1], \"operator\": \"%s\"%s, \"router\": {%s, \"top_k\": %d}},"
             "{\"layers\": \"rest\", \"operator\": \"%s\"%s, \"share\": 1}]}]}",
             at->op, complement, router, top_k, at->op, complement);
    /* layer 0 comes before the owner: give it its own dense rule */
    char *rest = strstr(json, "{\"layers\": \"rest\"");
    char tail[256];
    snprintf(tail, sizeof tail, "{\"layers\": [0]}, %s", rest);
    snprintf(rest, sizeof json - (size_t)(rest - json), "%s", tail);
    heddle_plan *plan;
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "test"))
        fail_msg("%s: %s", at->name, heddle_last_error());
    return plan;
}

static heddle_plan *plan_of(const router_case *at, int top_k)
{
    return plan_with(at, top_k, "");
}

static heddle_session *new_session(heddle_engine *engine, const heddle_plan *plan, int32_t chunk_rows)
{
    heddle_session_options options;
    heddle_session *session;
    heddle_session_options_default(&options);
    options.kv_type = "f32";
    options.context_tokens = CONTEXT;
    options.chunk_rows = chunk_rows;
    options.is_invariant = 1;
    options.page_shift = 5;
    options.plan_governs_all = 1;
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    return session;
}

static void nll_of(heddle_session *session, float *nll)
{
    if (heddle_session_score(session, ids, N_IDS, 0, nll, NULL, NULL)) fail_msg("%s", heddle_last_error());
}

static float dense[N_IDS], sparse[N_IDS], other[N_IDS];

/* What a list of everything may differ by from dense: its pieces end elsewhere, a complement's with its blocks. */
static double rounding_of(const router_case *at)
{
    return at->complement ? 5e-6 : 2e-6;
}

static void test_k_at_least_n_equals_dense(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    for (size_t i = 0; i < sizeof routers / sizeof *routers; i++)
        for (int top_k = 320; top_k >= 32; top_k -= 288) {
            heddle_plan *plan = plan_of(&routers[i], top_k);
            session = new_session(engine, plan, 64);
            nll_of(session, sparse);
            double worst = max_abs(dense + 1, sparse + 1, N_IDS - 1);
            printf("%s, top_k %d: max-abs %g\n", routers[i].name, top_k, worst);
            if (top_k == 320) assert_true(worst < rounding_of(&routers[i]));
            if (top_k == 32) assert_true(worst > 1e-4);
            heddle_session_free(session);
            heddle_plan_free(plan);
        }
    heddle_engine_close(engine);
}

/* It had been the outer router's alone: it read all of the few candidates. */
static void test_dense_below_reads_what_candidates_would_leave_out(void **state)
{
    (void)state;
    enum { BELOW = 120, FEW = 32 };
    static const router_case cases[] = {
        {"two levels, dense below", "token_list",
         "\"score\": \"key_i8\", \"window\": 4, \"dense_below\": 120, \"candidates\": {\"score\": "
         "\"block_mean\", \"block\": 16, \"window\": 4, \"top_k\": CANDIDATES}",
         0},
        {"of heads, dense below", "token_list",
         "\"score\": \"key_i4\", \"window\": 4, \"lists\": \"kv_head\", \"dense_below\": 120, \"candidates\": "
         "{\"score\": \"key_pq4\", \"window\": 4, \"dense_below\": 8, \"top_k\": CANDIDATES}",
         0},
    };
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        heddle_plan *plan = plan_of(&cases[i], FEW);
        session = new_session(engine, plan, 64);
        nll_of(session, sparse);
        assert_true(max_abs(dense + 1, sparse + 1, BELOW) < 2e-6);
        assert_true(max_abs(dense + 1, sparse + 1, N_IDS - 1) > 1e-4);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

static void test_chunks_equal_single_steps(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t i = 0; i < sizeof routers / sizeof *routers; i++) {
        heddle_plan *plan = plan_of(&routers[i], 48);
        const int32_t chunks[] = {1, 7, 64};
        for (int c = 0; c < 3; c++) {
            heddle_session *session = new_session(engine, plan, chunks[c]);
            nll_of(session, c ? other : sparse);
            heddle_session_free(session);
            if (c && memcmp(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse))
                fail_msg("%s: chunks of %d differ by %g", routers[i].name, chunks[c],
                         max_abs(sparse + 1, other + 1, N_IDS - 1));
        }
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* Lists for tiles of 32 rows: everything is dense; chunks of a tile and more do not matter, bit for bit; rows
 * that come alone have their own lists, as without tiles. */
static void test_tiles_of_rows_share_lists(void **state)
{
    (void)state;
    static const router_case tiled[] = {
        {"mean of blocks", "block_list", "\"score\": \"block_mean\", \"block\": 16, \"window\": 16", 0},
        {"8-bit keys", "token_list", "\"score\": \"key_i8\", \"window\": 4, \"lists\": \"kv_head\"", 0},
        {"pooled and complement", "block_list", "\"score\": \"block_pooled\", \"block\": 32, \"window\": 1",
         16},
        {"forced blocks", "block_list", "\"score\": \"random\", \"block\": 16, \"window\": 40", 0},
        {"4-bit keys, summed", "token_list", "\"score\": \"key_i4\", \"window\": 4, \"tile_by\": \"sum\"", 0},
        {"8-bit keys, the largest", "token_list",
         "\"score\": \"key_i8\", \"window\": 1, \"lists\": \"kv_head\", \"heads\": \"max\", \"tile_by\": \"max\"",
         0},
        {"union of blocks", "block_list",
         "\"score\": \"block_mean\", \"block\": 16, \"window\": 16, \"lists\": \"union\"", 0},
        {"tokens and distances", "token_list",
         "\"score\": \"key_i8\", \"window\": 4, \"sinks\": 1, \"lists\": \"kv_head\", \"tile_by\": \"sum\", "
         "\"slashes\": 2",
         0},
        {"blocks of keys, summed", "block_list",
         "\"score\": \"key_i8\", \"block\": 16, \"window\": 16, \"tile_by\": \"sum\"", 0},
    };
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    for (size_t i = 0; i < sizeof tiled / sizeof *tiled; i++) {
        router_case at = tiled[i];
        char router[512];
        snprintf(router, sizeof router, "%s, \"tile\": 32", tiled[i].router);
        at.router = router;
        router_case alone = tiled[i]; /* the same without tiles */
        char own[512];
        snprintf(own, sizeof own, "%s", tiled[i].router);
        if (strstr(own, ", \"tile_by")) *strstr(own, ", \"tile_by") = 0;
        alone.router = own;
        heddle_plan *all = plan_of(&at, 320), *few = plan_of(&at, 32), *single = plan_of(&alone, 32);
        const struct {
            const heddle_plan *plan;
            int32_t chunk;
        } runs[] = {{all, 64}, {few, 64}, {few, 128}, {few, 1}, {single, 1}, {few, 50}, {few, 33}};
        static float nll[7][N_IDS];
        for (int r = 0; r < 7; r++) {
            session = new_session(engine, runs[r].plan, runs[r].chunk);
            nll_of(session, nll[r]);
            heddle_session_free(session);
        }
        printf("%s in tiles: all %g, few %g\n", at.name, max_abs(dense + 1, nll[0] + 1, N_IDS - 1),
               max_abs(dense + 1, nll[1] + 1, N_IDS - 1));
        assert_true(max_abs(dense + 1, nll[0] + 1, N_IDS - 1) < rounding_of(&at));
        assert_true(max_abs(dense + 1, nll[1] + 1, N_IDS - 1) > 1e-4);
        assert_memory_equal(nll[1] + 1, nll[2] + 1, (N_IDS - 1) * sizeof(float));
        assert_memory_equal(nll[1] + 1, nll[5] + 1, (N_IDS - 1) * sizeof(float)); /* cut by position */
        assert_memory_equal(nll[1] + 1, nll[6] + 1, (N_IDS - 1) * sizeof(float));
        assert_memory_equal(nll[3] + 1, nll[4] + 1, (N_IDS - 1) * sizeof(float));
        assert_true(max_abs(nll[1] + 1, nll[3] + 1, N_IDS - 1) > 1e-6);
        heddle_plan_free(all);
        heddle_plan_free(few);
        heddle_plan_free(single);
    }
    heddle_engine_close(engine);
}

/* Cut back into the middle of a block, then on with other tokens; and a fork that goes another way. */
static void test_truncation_and_forks_keep_summaries(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t i = 0; i < sizeof routers / sizeof *routers; i++) {
        heddle_plan *plan = plan_of(&routers[i], 48);
        heddle_session *fresh = new_session(engine, plan, 64), *cut = new_session(engine, plan, 64), *fork;
        int64_t kept;
        assert_int_equal(heddle_session_extend(fresh, ids, 250, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(cut, ids, 203, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(cut, ids + 20, 60, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_truncate(cut, 203, &kept), HEDDLE_OK);
        assert_int_equal(kept, 203);
        assert_int_equal(heddle_session_fork(&fork, cut), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(fork, ids + 90, 30, NULL, NULL), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(cut, ids + 203, 47, NULL, NULL), HEDDLE_OK);
        if (memcmp(heddle_session_logits(fresh), heddle_session_logits(cut), N_VOCAB * sizeof(float)))
            fail_msg("%s: logits after a truncation differ", routers[i].name);
        heddle_session_free(fresh);
        heddle_session_free(cut);
        heddle_session_free(fork);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

static void test_a_fork_goes_on_under_a_kept_plan(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_plan *plan = plan_of(&routers[5], 48);
    const heddle_plan *kept[] = {plan};
    heddle_session_options options;
    heddle_session *session, *fork;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    assert_int_equal(heddle_session_new(&session, engine, NULL, &options), HEDDLE_OK);
    assert_int_equal(heddle_session_extend(session, ids, 200, NULL, NULL), HEDDLE_OK);
    assert_int_equal(heddle_session_fork_as(&fork, session, plan, 0), HEDDLE_E_UNSUPPORTED);
    assert_non_null(strstr(heddle_last_error(), "kept_plans"));
    heddle_session_free(session);
    options.kept_plans = kept;
    options.n_kept_plans = 1;
    assert_int_equal(heddle_session_new(&session, engine, NULL, &options), HEDDLE_OK);
    assert_int_equal(heddle_session_extend(session, ids, 200, NULL, NULL), HEDDLE_OK);
    assert_int_equal(heddle_session_fork_as(&fork, session, plan, 0), HEDDLE_OK);
    assert_int_equal(heddle_session_extend(fork, ids + 200, 1, NULL, NULL), HEDDLE_OK);
    heddle_session_free(fork);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* A step moved before what it needs is noticed, whichever it is. */
static void test_steps_out_of_order_are_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_plan *plan = plan_of(&routers[9], 48);
    heddle_session *session = new_session(engine, plan, 64);
    hdl_schedule *schedule = session->runner->schedule;
    assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_OK);
    const hdl_op ops[] = {HDL_OP_SUMMARISE, HDL_OP_APPEND, HDL_OP_ATTEND, HDL_OP_GLU, HDL_OP_LINEAR};
    for (size_t o = 0; o < sizeof ops / sizeof *ops; o++) {
        int32_t at = 0;
        while (schedule->steps[at].op != ops[o]) at++;
        hdl_step moved = schedule->steps[at];
        memmove(schedule->steps + 1, schedule->steps, (size_t)at * sizeof moved);
        schedule->steps[0] = moved;
        assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_E_INVALID);
        assert_non_null(strstr(heddle_last_error(), "before any step writes it"));
        memmove(schedule->steps, schedule->steps + 1, (size_t)at * sizeof moved);
        schedule->steps[at] = moved;
    }
    assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_OK);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* The steps of a session in the order of two queues, of which one goes first wherever nothing is waited for.
 * has_waits: false runs all copies last. Returns how many steps stand elsewhere. */
static int32_t requeue(hdl_schedule *schedule, hdl_queue first, bool has_waits)
{
    int32_t n = schedule->n_lower_steps, at[HDL_N_QUEUES] = {0}, n_moved = 0;
    hdl_step *old = malloc((size_t)n * sizeof *old);
    int32_t *place = malloc((size_t)n * sizeof *place); /* of an old step; -1: not yet */
    memcpy(old, schedule->steps, (size_t)n * sizeof *old);
    for (int32_t i = 0; i < n; i++) place[i] = -1;
    for (int32_t i = 0; i < n; i++) {
        int32_t next = -1;
        for (int q = 0; q < HDL_N_QUEUES && next < 0; q++) {
            int32_t *head = &at[q ? 1 - (int)first : (int)first];
            hdl_queue queue = (hdl_queue)(head - at);
            while (*head < n && old[*head].queue != queue) ++*head;
            if (*head < n && (!has_waits || old[*head].waits_for < 0 || place[old[*head].waits_for] >= 0))
                next = (*head)++;
        }
        assert_true(next >= 0);
        place[next] = i;
        n_moved += next != i;
        schedule->steps[i] = old[next];
    }
    free(place);
    free(old);
    return n_moved;
}

/* Each layer's rows are copied to its cache when they are there, and read when they are copied. */
static void check_waits(const hdl_schedule *schedule)
{
    int32_t n_copies = 0, copy = -1;
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        const hdl_step *step = &schedule->steps[i];
        assert_int_equal(step->queue == HDL_QUEUE_COPY, step->op == HDL_OP_APPEND);
        assert_true(step->waits_for < i);
        if (step->waits_for >= 0) assert_int_not_equal(schedule->steps[step->waits_for].queue, step->queue);
        if (step->op == HDL_OP_APPEND) {
            hdl_op before = schedule->steps[step->waits_for].op; /* the last that wrote K or V */
            assert_true(before == HDL_OP_ROPE || before == HDL_OP_LINEAR);
            n_copies++;
            copy = i;
        }
        if (step->op == HDL_OP_ATTEND || step->op == HDL_OP_SUMMARISE)
            assert_int_equal(step->waits_for, copy);
    }
    assert_int_equal(n_copies, schedule->facts->n_layers);
}

/* Copies run as early and as late as their waits let them: equal bits. All of them last: others. */
static void test_two_queues_give_the_same_bits(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t i = 9; i < 12; i++) {
        heddle_plan *plan = plan_of(&routers[i], 48);
        for (int order = 0; order < 4; order++) {
            heddle_session *session = new_session(engine, plan, 64);
            if (!order) check_waits(session->runner->schedule);
            int32_t n = order ? requeue(session->runner->schedule,
                                        order == 1 ? HDL_QUEUE_COPY : HDL_QUEUE_COMPUTE, order < 3)
                              : 0;
            nll_of(session, order ? other : sparse);
            bool is_same = !order || !memcmp(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse);
            assert_true(is_same == (order < 3));
            assert_true((order == 3) == (n > 0)); /* today every copy is waited for at once */
            heddle_session_free(session);
        }
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* The layer's attention, or what makes its list. */
static hdl_step *find_step(hdl_schedule *schedule, int32_t layer, hdl_route route, bool is_maker)
{
    for (int32_t i = 0; i < schedule->n_steps; i++) {
        hdl_step *step = &schedule->steps[i];
        if (step->op == HDL_OP_ATTEND && step->layer == layer && step->route == route &&
            step->u.attend.is_selecting == is_maker)
            return step;
    }
    fail_msg("layer %d has no such step", layer);
    return NULL;
}

/* It had counted as written: by the layer before, by the other route, or by the step that makes the list. */
static void test_a_layer_without_its_attention_is_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_plan *plan = plan_of(&routers[9], 48);
    heddle_session *session = new_session(engine, plan, 64);
    hdl_schedule *schedule = session->runner->schedule;
    for (hdl_route route = HDL_ROUTE_PREFILL; route <= HDL_ROUTE_DECODE; route++) {
        hdl_step *step = find_step(schedule, 1, route, false);
        step->out[0] = HDL_BUF_NONE;
        assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_E_INVALID);
        assert_non_null(strstr(heddle_last_error(),
                               "step linear of layer 1 reads attn of its layer before any step writes it"));
        step->out[0] = HDL_BUF_ATTN;
    }
    assert_int_equal(find_step(schedule, 1, HDL_ROUTE_DECODE, true)->out[0], HDL_BUF_NONE);
    assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_OK);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* Score rows, lists with their heads mapped and lists on the way to others lie where nothing else is. */
static void test_scratch_of_lists_is_declared(void **state)
{
    (void)state;
    static const char *const rules[] = {
        "{\"layers\": [0], \"router\": {\"lists\": \"kv_head\", \"top_k\": 16, \"window\": 4}}, {\"layers\": "
        "\"rest\", \"operator\": \"token_list\", \"share\": 0, \"head_map\": [1, 0]}",
        "{\"layers\": [0], \"router\": {\"score\": \"key_i8\", \"top_k\": 16, \"window\": 4}}, {\"layers\": [1], "
        "\"operator\": \"token_list\", \"router\": {\"score\": \"key_i8\", \"lists\": \"union\", \"top_k\": 8, "
        "\"window\": 4, \"candidates\": {\"share\": 0}}}"};
    heddle_engine *engine = tiny_engine("llama", 2);
    for (int i = 0; i < 2; i++) {
        char json[1024];
        heddle_plan *plan = NULL;
        snprintf(json, sizeof json,
                 "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [%s]}]}", rules[i]);
        if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "t")) fail_msg("%s", heddle_last_error());
        heddle_session *session = new_session(engine, plan, 64);
        hdl_schedule *schedule = session->runner->schedule;
        int32_t scratch = i ? schedule->united : schedule->mapped;
        int64_t place = schedule->slot_at[scratch], bytes = schedule->buffer_bytes[HDL_BUF_MASS];
        assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_OK);
        schedule->slot_at[scratch] = schedule->slot_at[schedule->slot_of_layer[HDL_ROUTE_DECODE][0]];
        assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_E_INVALID);
        assert_non_null(strstr(heddle_last_error(), i ? "layer 1 reads candidates before any step writes it"
                                                      : "layer 1 reads a list before any step writes it"));
        schedule->slot_at[scratch] = place;
        schedule->buffer_bytes[HDL_BUF_MASS] = 0;
        assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_E_INVALID);
        assert_non_null(strstr(heddle_last_error(), "writes mass, for which no memory is booked"));
        schedule->buffer_bytes[HDL_BUF_MASS] = bytes;
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* Lists of layers of their own lie in one place: reading one after the next was made is noticed. */
static void test_a_list_that_was_made_over_is_refused(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_plan *plan = NULL;
    const char json[] = "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": "
                        "\"all\", \"operator\": \"token_list\", \"router\": {\"score\": \"key_i8\", "
                        "\"top_k\": 16, \"window\": 4}}]}]}";
    assert_int_equal(heddle_plan_parse(&plan, json, (int64_t)strlen(json), "t"), HEDDLE_OK);
    heddle_session *session = new_session(engine, plan, 64);
    hdl_schedule *schedule = session->runner->schedule;
    assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_OK);
    find_step(schedule, 1, HDL_ROUTE_DECODE, false)->u.attend.slot = schedule
                                                                         ->slot_of_layer[HDL_ROUTE_DECODE][0];
    assert_int_equal(hdl_schedule_check_order(schedule), HEDDLE_E_INVALID);
    assert_non_null(strstr(heddle_last_error(), "reads a list before any step writes it"));
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* A list that was kept while it held everything grows until the next refresh: into its own room. */
static void check_kept_lists(const char *router)
{
    heddle_engine *engine = tiny_engine("llama", 2);
    const router_case kept = {.name = "kept", .op = "token_list", .router = router};
    heddle_plan *plan = plan_of(&kept, 4);
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = CONTEXT;
    options.kv_type = "f32";
    options.is_invariant = 1;
    heddle_batch *batch;
    heddle_session *a, *b, *alone;
    assert_int_equal(heddle_batch_new(&batch, engine, plan, &options, 2, 64), HEDDLE_OK);
    heddle_session **all[] = {&a, &b, &alone};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(heddle_session_new(all[i], engine, plan, &options), HEDDLE_OK);
        assert_int_equal(heddle_session_extend(*all[i], ids + (i == 1), 44, NULL, NULL), HEDDLE_OK);
    }
    for (int32_t i = 44; i < 80; i++) {
        heddle_batch_item items[] = {{.session = a, .ids = ids + i, .n_ids = 1},
                                     {.session = b, .ids = ids + i + 1, .n_ids = 1}};
        assert_int_equal(heddle_batch_step(batch, items, 2), HEDDLE_OK);
        assert_int_equal(heddle_session_decode(alone, ids + i, 1), HEDDLE_OK);
        if (memcmp(heddle_session_logits(a), heddle_session_logits(alone), N_VOCAB * sizeof(float)))
            fail_msg("token %d: differs from the session alone", i);
    }
    for (int i = 0; i < 3; i++) heddle_session_free(*all[i]);
    heddle_batch_free(batch);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

static void test_kept_lists_below_dense_below_have_room(void **state)
{
    (void)state;
    check_kept_lists("\"score\": \"key_i8\", \"window\": 2, \"dense_below\": 48, \"refresh\": 16");
    check_kept_lists("\"score\": \"key_i8\", \"window\": 2, \"dense_below\": 48, \"refresh\": 16, "
                     "\"lists\": \"union\"");
}

typedef struct heard {
    int64_t n_lists, n_last, n_ids;
    double mass_seen; /* of the last row */
} heard;

static void listen(const heddle_tap_row *row, void *user)
{
    heard *at = user;
    at->n_lists++;
    assert_int_equal(row->layer, 1);
    assert_true(row->n_ids >= 1 && row->n_ids <= row->n_units &&
                row->ids[row->n_ids - 1] == row->n_units - 1);
    if (row->position != N_IDS - 1) return;
    at->n_ids = row->n_ids;
    for (int64_t i = 0; i < row->n_units; i++) at->mass_seen += (double)row->score[i];
}

static void test_a_tap_hears_every_list(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    const router_case mass = {"mass", "token_list", "\"score\": \"attention_mass\", \"window\": 4", 0};
    heddle_plan *plan = plan_of(&mass, 48);
    heddle_session *session = new_session(engine, plan, 64);
    heard at = {0};
    heddle_session_set_tap(session, listen, &at);
    nll_of(session, sparse);
    assert_int_equal(at.n_lists, N_IDS);
    assert_int_equal(at.n_ids, 48 + 4);
    assert_true(fabs(at.mass_seen - 1) < 1e-5);
    heddle_session_set_tap(session, NULL, NULL);
    assert_int_equal(heddle_session_extend(session, ids, 3, NULL, NULL), HEDDLE_OK);
    assert_int_equal(at.n_lists, N_IDS);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

/* The first rows of a router that do not read everything leave out one unit each: of the unforced ones that
 * with the least score, of several the last. */
typedef struct boundary {
    const router_case *at;
    int64_t block, sinks, window, top_k, tile; /* of the router, in tokens */
    int64_t n_whole, n_first, n_checked; /* lists that hold everything; with one unit too many; scores seen */
} boundary;

static int64_t member(const char *router, const char *key, int64_t absent)
{
    char name[32];
    snprintf(name, sizeof name, "\"%s\": ", key);
    const char *end = strstr(router, "\"candidates\""), *found = strstr(router, name);
    return found && (!end || found < end) ? atoll(found + strlen(name)) : absent;
}

static void check_boundary(const heddle_tap_row *row, void *user)
{
    boundary *b = user;
    int64_t n = row->n_units, first = HDL_MIN((b->sinks + b->block - 1) / b->block, n);
    int64_t last = b->window ? HDL_MAX(row->position + 1 - b->window, 0) / b->block : n, missing = 0;
    int64_t k = (b->top_k + b->block - 1) / b->block, n_free = HDL_MAX(last - first, 0);
    if (n_free > k + 1) return;
    b->n_whole += n_free <= k;
    b->n_first += n_free == k + 1;
    if (row->n_ids != n - (n_free == k + 1))
        fail_msg("%s: row %lld reads %lld of %lld units, %lld of them unforced, top_k %lld", b->at->name,
                 (long long)row->position, (long long)row->n_ids, (long long)n, (long long)n_free,
                 (long long)k);
    if (row->n_ids == n || !row->score) return;
    while (missing < row->n_ids && row->ids[missing] == missing) missing++;
    assert_true(missing >= first && missing < last);
    for (int64_t u = first; u < last; u++)
        if (row->score[u] < row->score[missing] || (row->score[u] == row->score[missing] && u > missing))
            fail_msg("%s: row %lld leaves out unit %lld, but unit %lld has less", b->at->name,
                     (long long)row->position, (long long)missing, (long long)u);
    b->n_checked++;
}

static void test_one_unit_too_many_drops_the_least(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (size_t i = 0; i < sizeof routers / sizeof *routers; i++) {
        const router_case *at = &routers[i];
        bool has_pool = strstr(at->router, "candidates");
        if (has_pool) continue;                    /* what the candidates leave out is gone before */
        if (strstr(at->router, "union")) continue; /* what one head leaves out another may read: below */
        boundary b = {.at = at,
                      .block = member(at->router, "block", 1),
                      .sinks = member(at->router, "sinks", 0),
                      .window = member(at->router, "window", 0),
                      .top_k = 96};
        heddle_plan *plan = plan_of(at, (int)b.top_k);
        heddle_session *session = new_session(engine, plan, 64);
        heddle_session_set_tap(session, check_boundary, &b);
        nll_of(session, sparse);
        printf("%s: %lld lists hold everything, %lld leave one unit out\n", at->name, (long long)b.n_whole,
               (long long)b.n_first);
        assert_true(b.n_whole > 0 && b.n_first > 0 && b.n_checked == b.n_first);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* The same for the list of a tile: its window reaches back from the tile's first row, and what its last row sees
 * is what there is to choose from. */
static void check_tile_boundary(const heddle_tap_row *row, void *user)
{
    boundary *b = user;
    int64_t n_more = row->position % b->tile;
    b->window += n_more;
    check_boundary(row, b);
    b->window -= n_more;
}

static void test_one_token_too_many_of_a_tile_drops_the_least(void **state)
{
    (void)state;
    static const router_case summed = {
        "4-bit keys, summed", "token_list",
        "\"score\": \"key_i4\", \"sinks\": 2, \"window\": 5, \"tile\": 4, \"tile_by\": \"sum\"", 0};
    heddle_engine *engine = tiny_engine("llama", 2);
    int64_t n_first = 0;
    for (int top_k = 96; top_k < 100; top_k++) {
        boundary b = {.at = &summed, .block = 1, .sinks = 2, .window = 5, .top_k = top_k, .tile = 4};
        heddle_plan *plan = plan_of(&summed, top_k);
        heddle_session *session = new_session(engine, plan, 64);
        heddle_session_set_tap(session, check_tile_boundary, &b);
        nll_of(session, sparse);
        assert_true(b.n_whole > 0 && b.n_checked == b.n_first);
        n_first += b.n_first;
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    printf("%lld lists leave one token out\n", (long long)n_first);
    assert_int_equal(n_first, 1); /* of four neighbouring budgets one meets a tile's end */
    heddle_engine_close(engine);
}

#define STOP(below) ", \"stop\": {\"below\": " below ", \"tile\": 8}"

static double share_of(heddle_engine *engine, const heddle_plan *plan, int32_t chunk_rows, float *nll)
{
    heddle_stats stats = {.struct_size = sizeof stats};
    heddle_session *session = new_session(engine, plan, chunk_rows);
    nll_of(session, nll);
    heddle_session_stats(session, &stats);
    heddle_session_free(session);
    return stats.scored_kv_bytes_read / stats.scored_kv_bytes_dense;
}

/* Lists read by score: to their end they are what they are without a rule; stopped they read less, how much does
 * not depend on how rows come. */
static void test_stopped_lists(void **state)
{
    (void)state;
    static const router_case stopped[] = {
        {"tokens", "token_list", "\"score\": \"key_i8\", \"lists\": \"kv_head\", \"window\": 4, \"sinks\": 2",
         0},
        {"masses", "token_list", "\"score\": \"attention_mass\", \"window\": 4, \"dense_below\": 60", 0},
        {"blocks", "block_list",
         "\"score\": \"block_bounds\", \"heads\": \"max\", \"block\": 16, \"window\": 8", 0},
        {"blocks of keys", "block_list", "\"score\": \"key_i4\", \"block\": 4, \"window\": 1", 0},
        {"tokens of tiles", "token_list", "\"score\": \"key_i8\", \"window\": 4, \"sinks\": 2, \"tile\": 32",
         0},
    };
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    for (size_t i = 0; i < sizeof stopped / sizeof *stopped; i++)
        for (int top_k = 96; top_k <= 320; top_k += 224) {
            heddle_plan *all = plan_of(&stopped[i], top_k), *never = plan_with(&stopped[i], top_k, STOP("0")),
                        *soon = plan_with(&stopped[i], top_k, STOP("0.05"));
            double share = share_of(engine, all, 64, sparse);
            assert_true(fabs(share - share_of(engine, never, 64, other)) < 1e-9);
            printf("%s, top_k %d: max-abs %g", stopped[i].name, top_k,
                   max_abs(sparse + 1, other + 1, N_IDS - 1));
            assert_true(max_abs(sparse + 1, other + 1, N_IDS - 1) < 1e-5);
            if (top_k == 320) assert_true(max_abs(dense + 1, other + 1, N_IDS - 1) < 1e-5);
            double less = share_of(engine, soon, 64, sparse);
            printf("; reads %.3f, stopped %.3f\n", share, less);
            assert_true(less < share - 0.005);
            int32_t chunk = strstr(stopped[i].router, "tile") ? 32 : 7; /* not less than a tile */
            assert_true(share_of(engine, soon, chunk, other) == less);
            assert_memory_equal(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse);
            heddle_plan_free(all);
            heddle_plan_free(never);
            heddle_plan_free(soon);
        }
    heddle_engine_close(engine);
}

/* Which units of the first list layer the rows' lists hold, those of all heads together. */
typedef struct marked_units {
    bool is_read[N_IDS][N_IDS];
    int64_t n_lists, n_ids, n_marks; /* n_marks: units of the rows, once each */
} marked_units;

static void mark_units(const heddle_tap_row *row, void *user)
{
    marked_units *to = user;
    if (row->layer != 1) return;
    to->n_lists++;
    to->n_ids += row->n_ids;
    for (int64_t i = 0; i < row->n_ids; i++) {
        to->n_marks += !to->is_read[row->position][row->ids[i]];
        to->is_read[row->position][row->ids[i]] = true;
    }
}

static void test_a_union_reads_what_any_head_chose(void **state)
{
    (void)state;
    static const char *const of[] = {
        "\"score\": \"key_i8\", \"sinks\": 2, \"window\": 4", "\"score\": \"attention_mass\", \"window\": 1",
        "\"score\": \"key_i4\", \"select\": \"top_p\", \"p\": 0.3, \"window\": 1"};
    static marked_units heads, united;
    heddle_engine *engine = tiny_engine("llama", 2);
    for (int i = 0; i < 3; i++)
        for (int is_united = 0; is_united < 2; is_united++) {
            char router[256];
            marked_units *to = is_united ? &united : &heads;
            snprintf(router, sizeof router, "%s, \"lists\": \"%s\"", of[i], is_united ? "union" : "kv_head");
            const router_case at = {"heads", "token_list", router, 0};
            heddle_plan *plan = plan_of(&at, 32);
            heddle_session *session = new_session(engine, plan, 64);
            memset(to, 0, sizeof *to);
            heddle_session_set_tap(session, mark_units, to);
            nll_of(session, sparse);
            heddle_session_free(session);
            heddle_plan_free(plan);
            if (!is_united) continue;
            printf("%s: %lld ids in lists of heads, %lld in their unions\n", of[i], (long long)heads.n_ids,
                   (long long)united.n_ids);
            assert_int_equal(heads.n_lists, 2 * N_IDS);
            assert_int_equal(united.n_lists, N_IDS);
            assert_int_equal(united.n_ids, united.n_marks); /* each once */
            assert_true(united.n_ids < heads.n_ids && 2 * united.n_ids > heads.n_ids);
            assert_memory_equal(heads.is_read, united.is_read, sizeof heads.is_read);
        }
    heddle_engine_close(engine);
}

/* Distances alone: as many as there are read everything, a few do not; and what no list of them may be. */
static void test_distances_of_a_tile(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    for (int n = 320; n >= 2; n -= 318) {
        char router[256];
        snprintf(router, sizeof router,
                 "\"score\": \"key_i8\", \"window\": 1, \"tile\": 4, \"tile_by\": \"sum\", \"slashes\": %d",
                 n);
        const router_case at = {"distances", "token_list", router, 0};
        heddle_plan *plan = plan_of(&at, 0);
        session = new_session(engine, plan, 64);
        nll_of(session, sparse);
        printf("%d distances: max-abs %g\n", n, max_abs(dense + 1, sparse + 1, N_IDS - 1));
        assert_true(n == 320 ? max_abs(dense + 1, sparse + 1, N_IDS - 1) < 2e-6
                             : max_abs(dense + 1, sparse + 1, N_IDS - 1) > 1e-4);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    static const char *const bad[] = {
        "\"score\": \"key_i8\", \"top_k\": 4, \"window\": 1, \"slashes\": 2",
        "\"score\": \"key_i8\", \"top_k\": 4, \"window\": 1, \"tile\": 4, \"tile_by\": \"max\", \"slashes\": 2",
        "\"score\": \"key_i8\", \"top_k\": 4, \"window\": 4, \"block\": 4, \"tile\": 4, \"tile_by\": \"sum\", \"slashes\": 2",
        "\"score\": \"key_i8\", \"top_k\": 4, \"window\": 1, \"lists\": \"union\", \"tile\": 4, \"tile_by\": \"sum\", \"slashes\": 2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char json[512];
        snprintf(
            json, sizeof json,
            "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": \"all\", \"operator\": "
            "\"%s\", \"router\": {%s}}]}]}",
            i == 2 ? "block_list" : "token_list", bad[i]);
        heddle_plan *plan;
        heddle_session_options options;
        heddle_session_options_default(&options);
        heddle_status status = heddle_plan_parse(&plan, json, (int64_t)strlen(json), "bad");
        if (!status) { /* rules are read against a model */
            status = heddle_session_new(&session, engine, plan, &options);
            heddle_plan_free(plan);
        }
        assert_int_equal(status, HEDDLE_E_INVALID);
        assert_non_null(strstr(heddle_last_error(), "slashes 2: needs"));
    }
    heddle_engine_close(engine);
}

/* Blocks with one key above a threshold: below every mass all of them, at 0.004 some, above 1 none. */
static void test_a_threshold_reads_from_everything_to_nothing(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    static const char *const limits[] = {"-1", "0.004", "1"};
    double share[3];
    for (int i = 0; i < 3; i++) {
        char router[256];
        snprintf(
            router, sizeof router,
            "\"score\": \"key_i4\", \"heads\": \"max\", \"block\": 4, \"pool\": \"max\", \"lists\": \"kv_head\", "
            "\"select\": \"threshold\", \"threshold\": %s, \"sinks\": 4, \"window\": 8",
            limits[i]);
        const router_case at = {"threshold of blocks", "block_list", router, 0};
        heddle_plan *plan = plan_of(&at, 0);
        heddle_stats stats = {.struct_size = sizeof stats};
        session = new_session(engine, plan, 64);
        nll_of(session, sparse);
        heddle_session_stats(session, &stats);
        share[i] = stats.scored_kv_bytes_read / stats.scored_kv_bytes_dense;
        printf("above %s: %.3f read, max-abs %g\n", limits[i], share[i],
               max_abs(dense + 1, sparse + 1, N_IDS - 1));
        assert_true(i ? max_abs(dense + 1, sparse + 1, N_IDS - 1) > 1e-4
                      : max_abs(dense + 1, sparse + 1, N_IDS - 1) < 2e-6);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    assert_true(share[0] > share[1] && share[1] > share[2]);
    heddle_engine_close(engine);
}

/* What rows read is counted from their lists: as the arithmetic says where top_k bounds them, less where only
 * a threshold does, or a union of heads, and then as many as a tap sees. */
static void count_ids(const heddle_tap_row *row, void *user)
{
    double *n = user;
    if (row->position >= 100) *n += (double)row->n_ids;
}

static void test_lists_are_counted_as_they_are_made(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    static const router_case counted[] = {
        {"top_k", "token_list", "\"score\": \"attention_mass\", \"sinks\": 2, \"window\": 4", 0},
        {"threshold", "token_list",
         "\"score\": \"attention_mass\", \"select\": \"threshold\", \"threshold\": 0.01, \"window\": 1", 0},
        {"union", "token_list", "\"score\": \"attention_mass\", \"window\": 1, \"lists\": \"union\"", 0}};
    for (int i = 0; i < 3; i++) {
        heddle_plan *plan = plan_of(&counted[i], i == 1 ? 0 : 48);
        heddle_session *session = new_session(engine, plan, 64);
        heddle_model_info info = {.struct_size = sizeof info};
        heddle_stats stats = {.struct_size = sizeof stats};
        double bound, listed = 0, n_dense = 0;
        heddle_engine_model_info(engine, &info);
        heddle_session_set_tap(session, count_ids, &listed);
        if (heddle_session_score(session, ids, N_IDS, 101, sparse, NULL, NULL))
            fail_msg("%s", heddle_last_error());
        heddle_session_stats(session, &stats);
        assert_int_equal(heddle_plan_share_read(engine, plan, 100, N_IDS, &bound), HEDDLE_OK);
        double share = stats.scored_kv_bytes_read / stats.scored_kv_bytes_dense;
        /* layer 0 reads densely; layer 1 too, to see its masses; those from layer 1 on read its list */
        for (int64_t t = 100; t < N_IDS; t++) n_dense += (double)(t + 1);
        double want = (2 * n_dense + (info.n_layers - 1) * listed) / (info.n_layers * n_dense);
        printf("%s: %.4f, at most %.4f\n", counted[i].name, share, bound);
        assert_true(fabs(share - want) < 1e-9);
        assert_true(i ? share < bound - 0.02 : fabs(share - bound) < 1e-9);
        heddle_session_free(session);
        heddle_plan_free(plan);
    }
    heddle_engine_close(engine);
}

/* Budgets of KV heads: [layer][list] of one rule, and how many ids of each list a row was given. */
typedef struct budget_case {
    const char *name, *router, *budgets; /* of the two KV heads */
    int64_t top_k[2], forced;
} budget_case;

typedef struct budget_count {
    const budget_case *at;
    int64_t n_rows, n_partial;
} budget_count;

static void count_budget(const heddle_tap_row *row, void *user)
{
    budget_count *to = user;
    int64_t most = to->at->top_k[row->list] + to->at->forced;
    assert_int_equal(row->n_lists, 2);
    assert_int_equal(row->n_ids, HDL_MIN(row->position + 1, most)); /* at k + 1 one token is left out */
    to->n_rows++;
    to->n_partial += row->position + 1 > most;
}

static heddle_plan *budget_plan(const char *router, const char *budgets)
{
    char json[1024];
    snprintf(
        json, sizeof json,
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0]}, {\"layers\": [1], "
        "\"operator\": \"token_list\", \"router\": {%s, \"lists\": \"kv_head\", %s}}, {\"layers\": \"rest\", \"operator\": "
        "\"token_list\", \"share\": 1}]}]}",
        router, budgets);
    heddle_plan *plan;
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "budgets")) fail_msg("%s", heddle_last_error());
    return plan;
}

static void score_budgets(heddle_engine *engine, const budget_case *at, float *nll)
{
    heddle_plan *plan = budget_plan(at->router, at->budgets);
    heddle_session *session = new_session(engine, plan, 64);
    budget_count counts = {.at = at};
    if (at->forced) heddle_session_set_tap(session, count_budget, &counts);
    nll_of(session, nll);
    if (at->forced) assert_int_equal(counts.n_rows, 2 * N_IDS);
    int64_t n_partial = 0;
    for (int h = 0; h < 2; h++) n_partial += HDL_MAX(N_IDS - at->top_k[h] - at->forced, 0);
    if (at->forced) assert_int_equal(counts.n_partial, n_partial);
    heddle_session_free(session);
    heddle_plan_free(plan);
}

/* Every KV head its own top_k: everything is dense, equal ones are the common top_k bit for bit, each list is as
 * long as its own budget says (k + 1 included), unequal ones differ from either. */
static void test_budgets_of_heads(void **state)
{
    (void)state;
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_session *session = new_session(engine, NULL, 64);
    nll_of(session, dense);
    heddle_session_free(session);
    const char *keys = "\"score\": \"key_i8\", \"sinks\": 2, \"window\": 4",
               *mass = "\"score\": \"attention_mass\", \"sinks\": 2, \"window\": 4",
               *none = "\"score\": \"none\", \"sinks\": 2, \"window\": 4";
    const budget_case everything[] = {{"keys", keys, "\"head_top_k\": [300, \"all\"]", {300, 300}, 6},
                                      {"none", none, "\"head_top_k\": [\"all\", \"all\"]", {300, 300}, 6}};
    for (int i = 0; i < 2; i++) {
        score_budgets(engine, &everything[i], sparse);
        assert_true(max_abs(dense + 1, sparse + 1, N_IDS - 1) < 2e-6);
    }
    const char *const routers_of[] = {keys, mass};
    for (int i = 0; i < 2; i++) {
        const budget_case common = {"common", routers_of[i], "\"top_k\": 24", {24, 24}, 6},
                          equal = {"equal", routers_of[i], "\"head_top_k\": [24, 24]", {24, 24}, 6},
                          unequal = {"unequal", routers_of[i], "\"head_top_k\": [40, 8]", {40, 8}, 6},
                          one_less = {"one less", routers_of[i], "\"head_top_k\": [293, 294]", {293, 294}, 6};
        score_budgets(engine, &common, sparse);
        score_budgets(engine, &equal, other);
        assert_memory_equal(sparse + 1, other + 1, (N_IDS - 1) * sizeof *sparse);
        score_budgets(engine, &unequal, other);
        assert_true(max_abs(sparse + 1, other + 1, N_IDS - 1) > 1e-5);
        score_budgets(engine, &one_less, other); /* one head, one row, one token */
        assert_true(max_abs(dense + 1, other + 1, N_IDS - 2) < 2e-6);
        assert_true(max_abs(dense + N_IDS - 1, other + N_IDS - 1, 1) < 1e-2);
    }
    const budget_case mixed = {"mixed", none, "\"head_top_k\": [0, \"all\"]", {0, 300}, 6},
                      turned = {"turned", none, "\"head_top_k\": [\"all\", 0]", {300, 0}, 6};
    score_budgets(engine, &mixed, sparse);
    score_budgets(engine, &turned, other);
    assert_true(max_abs(dense + 1, sparse + 1, N_IDS - 1) > 1e-5);
    assert_true(max_abs(sparse + 1, other + 1, N_IDS - 1) > 1e-5);
    heddle_engine_close(engine);
}

/* A row's choice begins where the sequence's last one ended: the same lists, so the same bits as rows that come
 * together, which have no guess. */
static void test_guesses_change_nothing(void **state)
{
    (void)state;
    enum { LONG = 17000, N_STEPS = 8 };
    static int32_t text[LONG];
    static float together[N_VOCAB];
    const char *json =
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"prefill\": [{\"layers\": \"all\", \"operator\": \"token_list\", "
        "\"router\": {\"score\": \"none\", \"window\": 16}}], \"decode\": [{\"layers\": \"all\", \"operator\": \"token_list\", "
        "\"router\": {\"score\": \"key_i8\", \"top_k\": 64, \"sinks\": 2, \"window\": 4, \"lists\": \"kv_head\"}}]}]}";
    heddle_engine *engine = tiny_engine("llama", 2);
    heddle_plan *plan;
    heddle_session *session, *many, *steps;
    heddle_session_options options;
    for (int i = 0; i < LONG; i++) text[i] = ids[i % N_IDS];
    heddle_session_options_default(&options);
    options.context_tokens = LONG;
    options.is_invariant = 1;
    if (heddle_plan_parse(&plan, json, (int64_t)strlen(json), "guesses") ||
        heddle_session_new(&session, engine, plan, &options) ||
        heddle_session_extend(session, text, LONG - N_STEPS, NULL, NULL) ||
        heddle_session_fork(&many, session) || heddle_session_fork(&steps, session) ||
        heddle_session_decode(many, text + LONG - N_STEPS, N_STEPS))
        fail_msg("%s", heddle_last_error());
    memcpy(together, heddle_session_logits(many), sizeof together);
    for (int i = 0; i < N_STEPS; i++)
        assert_int_equal(heddle_session_decode(steps, text + LONG - N_STEPS + i, 1), HEDDLE_OK);
    assert_memory_equal(together, heddle_session_logits(steps), sizeof together);
    int n_guessed = 0;
    int64_t n_guesses = (int64_t)steps->runner->schedule->n_slots * 2;
    for (int64_t i = 0; i < n_guesses; i++) {
        n_guessed += steps->guesses[i] == steps->guesses[i];
        assert_true(many->guesses[i] != many->guesses[i]); /* NaN: rows that come together make none */
    }
    const char *impl = getenv("HEDDLE_IMPL"); /* the reference makes no guesses */
    assert_int_equal(n_guessed, impl && !strcmp(impl, "ref") ? 0 : 2 * 2);
    heddle_session_free(steps);
    heddle_session_free(many);
    heddle_session_free(session);
    heddle_plan_free(plan);
    heddle_engine_close(engine);
}

int main(void)
{
    uint32_t seed = 7;
    for (int i = 0; i < N_IDS; i++) {
        seed = seed * 1664525 + 1013904223;
        ids[i] = (int32_t)(seed >> 8) % N_VOCAB;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_k_at_least_n_equals_dense),
        cmocka_unit_test(test_dense_below_reads_what_candidates_would_leave_out),
        cmocka_unit_test(test_chunks_equal_single_steps),
        cmocka_unit_test(test_tiles_of_rows_share_lists),
        cmocka_unit_test(test_truncation_and_forks_keep_summaries),
        cmocka_unit_test(test_a_fork_goes_on_under_a_kept_plan),
        cmocka_unit_test(test_kept_lists_below_dense_below_have_room),
        cmocka_unit_test(test_a_tap_hears_every_list),
        cmocka_unit_test(test_one_unit_too_many_drops_the_least),
        cmocka_unit_test(test_distances_of_a_tile),
        cmocka_unit_test(test_one_token_too_many_of_a_tile_drops_the_least),
        cmocka_unit_test(test_stopped_lists),
        cmocka_unit_test(test_a_union_reads_what_any_head_chose),
        cmocka_unit_test(test_a_threshold_reads_from_everything_to_nothing),
        cmocka_unit_test(test_lists_are_counted_as_they_are_made),
        cmocka_unit_test(test_steps_out_of_order_are_refused),
        cmocka_unit_test(test_a_layer_without_its_attention_is_refused),
        cmocka_unit_test(test_scratch_of_lists_is_declared),
        cmocka_unit_test(test_two_queues_give_the_same_bits),
        cmocka_unit_test(test_a_list_that_was_made_over_is_refused),
        cmocka_unit_test(test_budgets_of_heads),
        cmocka_unit_test(test_guesses_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
