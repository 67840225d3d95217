/* fuzz_plan.c - plan text of any bytes, up to the steps and bookings of two models' layers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/schedule.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A model of 30 layers that read everything, or of 18 of which every sixth does. */
static hdl_model_facts plan_facts(bool is_sliding)
{
    hdl_model_facts facts = {.n_layers = is_sliding ? 18 : 30,
                             .hidden_size = is_sliding ? 640 : 576,
                             .n_heads = is_sliding ? 4 : 9,
                             .n_kv_heads = is_sliding ? 1 : 3,
                             .head_dim = is_sliding ? 256 : 64,
                             .v_head_dim = is_sliding ? 256 : 64,
                             .attn_scale = 0.125f,
                             .norm_eps = 1e-5f,
                             .doc_token = -1,
                             .n_groups = 1};
    snprintf(facts.arch, sizeof facts.arch, "%s", is_sliding ? "gemma3" : "llama");
    facts.cross_from = facts.groups[0].n_layers = facts.n_layers;
    for (int32_t i = 0; i < facts.n_layers; i++)
        facts.layers[i] = (hdl_layer_facts){
            .window = is_sliding && (i + 1) % 6 ? 512 : 0, .has_kv = true, .kv_source = i};
    return facts;
}

/* What compile relies on. */
static void check_owners(const hdl_route_plan *route, const hdl_model_facts *facts)
{
    for (int32_t i = 0; i < facts->n_layers; i++) {
        const hdl_layer_plan *at = &route->layers[i];
        bool is_list = at->op != HDL_OPERATOR_DENSE;
        if (is_list != (at->owner >= 0) || at->owner > i) abort();
        if (is_list && (facts->layers[i].window || !route->layers[at->owner].has_router)) abort();
        double tokens = hdl_cost_of(route, facts, i, 4095).tokens;
        if (!(tokens >= 1 && tokens <= 2 * 4096)) abort();
    }
}

/* Whether every layer's steps can be made: each has an implementation and its memory is booked. Nothing is run. */
static bool compile_plan(const hdl_plan *plan, const hdl_model_facts *facts)
{
    hdl_schedule_limits limits = {.max_rows = 64,
                                  .max_list_rows = 64,
                                  .max_context = 4096,
                                  .max_logit_rows = 1,
                                  .max_seqs = 1,
                                  .n_threads = 2,
                                  .kv_dtype = HDL_F16};
    hdl_kv_group_spec spec = {.n_layers = facts->n_layers,
                              .n_kv_heads = facts->n_kv_heads,
                              .head_dim = facts->head_dim,
                              .v_head_dim = facts->v_head_dim,
                              .dtype = HDL_F16,
                              .page_shift = 8};
    hdl_schedule *schedule = NULL;
    heddle_status status = hdl_schedule_new(&schedule, plan, facts, &limits);
    for (int32_t i = 0; i < facts->n_layers && !status; i++) {
        status = hdl_lower_summaries(schedule, i);
        if (!status) status = hdl_lower_attention(schedule, i);
    }
    if (!status) {
        hdl_schedule_layout(schedule);
        if (schedule->arena_bytes < 0 || schedule->arena_bytes > (int64_t)1 << 34) abort();
        status = hdl_schedule_planes(schedule, &spec);
    }
    hdl_schedule_free(schedule);
    return !status;
}

/* Whether some model takes the plan, all of it. */
static bool try_plan(const hdl_plan *plan)
{
    static hdl_model_facts facts;
    static hdl_route_plan route;
    bool is_taken = false;
    for (int sliding = 0; sliding < 2; sliding++) {
        facts = plan_facts(sliding);
        int n_resolved = 0;
        for (int r = 0; r < 2; r++) {
            if (hdl_plan_resolve(plan, &facts, (hdl_route)r, &route)) continue;
            n_resolved++;
            check_owners(&route, &facts);
        }
        bool is_compiled = compile_plan(plan, &facts);
        if (is_compiled && n_resolved < 2) abort();
        is_taken |= is_compiled;
    }
    return is_taken;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hdl_plan *plan, *again;
    if (hdl_plan_parse(&plan, (const char *)data, (int64_t)size, "fuzz")) return 0;
    try_plan(plan);
    hdl_buf text = {0};
    if (!hdl_plan_format(plan, &text)) {
        if (hdl_plan_parse(&again, text.data, text.n, "again") || !json_equal(plan->doc, again->doc)) abort();
        hdl_plan_free(again);
    }
    hdl_buf_deinit(&text);
    hdl_plan_free(plan);
    return 0;
}
