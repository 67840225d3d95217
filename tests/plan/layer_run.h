/* layer_run.h - attention layers of a plan by themselves, over the tokens of a golden case: their steps are compiled
 * (append, summaries, attention), the case's q, k and v laid into the schedule's buffers, one layer run at a time. */
#ifndef HDL_TEST_LAYER_RUN_H
#define HDL_TEST_LAYER_RUN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/buf.h"
#include "base/json.h"
#include "plan/schedule.h"

enum { MAX_TOKENS = 64, RUN_LAYERS = 32 };

/* What golden file `name` of tests/golden/methods holds; the caller decrefs it. */
static json_t *read_golden(const char *name)
{
    hdl_buf text = {0};
    json_t *golden = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s/golden/methods/%s", HDL_TEST_DATA, name);
    if (hdl_buf_read_file(&text, path, 1 << 20) || hdl_json_parse(&golden, text.data, text.n, name))
        printf("%s\n", hdl_last_error());
    hdl_buf_deinit(&text);
    return golden;
}

static int64_t number(const json_t *golden, const char *key)
{
    return json_integer_value(json_object_get(golden, key));
}

typedef struct layer_run {
    const json_t *golden; /* the shape */
    hdl_model_facts facts;
    hdl_plan *plan;
    hdl_schedule *schedule;
    hdl_kv_store *store;
    hdl_kv_seq *kv;
    const json_t *lists; /* what the tap compares with */
    const char *name;    /* the plan's */
    hdl_route route;
    int64_t n_tokens, n_heard;
    int32_t first_step[RUN_LAYERS + 1]; /* of layer i; i + 1: behind its last */
} layer_run;

static hdl_model_facts facts_of(const json_t *golden, const char *arch, int32_t n_layers)
{
    hdl_model_facts facts = {.n_layers = n_layers, .norm_eps = 1e-5f};
    snprintf(facts.arch, sizeof facts.arch, "%s", arch);
    facts.n_heads = (int32_t)number(golden, "n_heads");
    facts.n_kv_heads = (int32_t)number(golden, "n_kv_heads");
    facts.head_dim = facts.v_head_dim = (int32_t)number(golden, "head_dim");
    facts.hidden_size = facts.n_heads * facts.head_dim;
    facts.attn_scale = (float)json_real_value(json_object_get(golden, "scale"));
    facts.doc_token = -1;
    facts.cross_from = n_layers;
    for (int32_t i = 0; i < n_layers; i++)
        facts.layers[i] = (hdl_layer_facts){.has_kv = true, .kv_source = i};
    facts.n_groups = 1;
    facts.groups[0] = (hdl_cache_group_facts){.n_layers = n_layers};
    return facts;
}

static void add_layer(layer_run *run, const hdl_kv_group_spec *spec, int32_t layer)
{
    hdl_step append = {.op = HDL_OP_APPEND, .layer_in_group = layer, .in = HDL_BUF_K, .in2 = HDL_BUF_V};
    append.u.append = (hdl_append_args){.n_kv_heads = spec->n_kv_heads,
                                        .head_dim = spec->head_dim,
                                        .v_head_dim = spec->v_head_dim,
                                        .k_stride = (int64_t)spec->n_kv_heads * spec->head_dim,
                                        .v_stride = (int64_t)spec->n_kv_heads * spec->v_head_dim,
                                        .kv = {.dtype = HDL_F16}};
    run->first_step[layer] = run->schedule->n_steps;
    if (hdl_schedule_add(run->schedule, &append) || hdl_lower_summaries(run->schedule, layer) ||
        hdl_lower_attention(run->schedule, layer))
        fail_msg("%s: %s", run->name, hdl_last_error());
    run->first_step[layer + 1] = run->schedule->n_steps;
}

/* Layers [first, end) of the plan; first -1: the first that makes a list, alone. A plan whose numbers no override
 * sets stands beside the golden files. */
static void compile_layers(layer_run *run, int32_t first, int32_t end)
{
    hdl_kv_group_spec spec = {.n_layers = run->facts.n_layers,
                              .n_kv_heads = run->facts.n_kv_heads,
                              .head_dim = run->facts.head_dim,
                              .v_head_dim = run->facts.v_head_dim,
                              .dtype = HDL_F16,
                              .page_shift = 5};
    int64_t n = run->n_tokens = number(run->golden, "n_tokens"), n_pages = 8, rows = n * 4;
    int64_t kv_width = (int64_t)spec.n_kv_heads * spec.head_dim;
    hdl_schedule_limits limits = {.max_rows = n,
                                  .max_list_rows = n,
                                  .max_context = n,
                                  .max_logit_rows = 1,
                                  .max_seqs = 1,
                                  .n_threads = 2,
                                  .kv_dtype = HDL_F16};
    char path[512];
    snprintf(path, sizeof path, "%s/golden/methods/%s", HDL_TEST_DATA, run->name);
    if (hdl_plan_named(&run->plan, strstr(run->name, ".json") ? path : run->name) ||
        hdl_schedule_new(&run->schedule, run->plan, &run->facts, &limits))
        fail_msg("%s", hdl_last_error());
    for (int32_t i = 0; first < 0; i++)
        if (run->schedule->routes[run->route].layers[i].has_router) end = (first = i) + 1;
    for (int32_t layer = first; layer < end; layer++) add_layer(run, &spec, layer);
    run->schedule->n_lower_steps = run->schedule->n_steps;
    hdl_schedule_book(run->schedule, HDL_BUF_Q, rows * run->facts.hidden_size);
    hdl_schedule_book(run->schedule, HDL_BUF_ATTN, rows * run->facts.hidden_size);
    hdl_schedule_book(run->schedule, HDL_BUF_K, rows * kv_width);
    hdl_schedule_book(run->schedule, HDL_BUF_V, rows * kv_width);
    hdl_schedule_book(run->schedule, HDL_BUF_COS_SIN, 64);
    hdl_schedule_layout(run->schedule);
    if (hdl_schedule_bind(run->schedule) || hdl_schedule_planes(run->schedule, &spec) ||
        hdl_kv_store_new(&run->store, &spec, 1, &n_pages) || hdl_kv_seq_new(&run->kv, run->store, n) ||
        hdl_kv_seq_reserve(run->kv, n))
        fail_msg("%s: %s", run->name, hdl_last_error());
}

/* All rows of the case through steps [first, end). n_listed [n_tokens], or NULL: tokens of lists that were read. */
static void run_steps(layer_run *run, int32_t first, int32_t end, void (*tap)(const hdl_tap_row *, void *),
                      double *n_listed)
{
    int64_t n = run->n_tokens, n_visible[MAX_TOKENS], doc_start[MAX_TOKENS] = {0};
    double listed[MAX_TOKENS] = {0};
    hdl_exec_seq seq = {.kv = run->kv, .q_len = n, .kv_len = n, .route = run->route};
    hdl_attend_seq attend[2 * MAX_TOKENS];
    hdl_schedule part = *run->schedule;
    int64_t kept_ints = part.n_kept * (part.kept_ids_max + part.facts->n_kv_heads); /* ids, then counts */
    int32_t *kept = calloc((size_t)(kept_ints + 1), sizeof *kept);
    assert_non_null(kept);
    seq.kept_ids = kept;
    seq.kept_counts = kept + part.n_kept * part.kept_ids_max;
    for (int64_t t = 0; t < n; t++) n_visible[t] = t + 1;
    hdl_exec_batch batch = {.n_seqs = 1,
                            .n_rows = n,
                            .seqs = &seq,
                            .attend = attend,
                            .n_visible = n_visible,
                            .doc_start = doc_start,
                            .n_listed = n_listed ? n_listed : listed,
                            .tap = {tap, run}};
    part.steps += first;
    part.n_lower_steps = end - first;
    hdl_exec_lower(&part, &batch);
    free(kept);
}

static void free_layers(layer_run *run)
{
    hdl_kv_seq_free(run->kv);
    hdl_kv_store_unref(run->store);
    hdl_schedule_free(run->schedule);
    hdl_plan_free(run->plan);
}

#endif
