/* planes.c - which summaries a schedule keeps beside the KV rows, and the steps that write them.
 *
 * A layer's rows carry what the routers of its readers score, in both routes, for this plan and for
 * those that a fork may go on under (kept_plans). */
#include <string.h>

#include "base/mem.h"
#include "plan/schedule.h"

/* The plane that a router scores; kind NONE when it needs none. */
static hdl_plane_need need_of(const hdl_router_spec *router)
{
    const hdl_score_row *row = &hdl_score_rows[router->score];
    int32_t block = row->is_by_block ? router->block / row->entries_per_block : 1;
    return (hdl_plane_need){row->plane, block};
}

static heddle_status add_need(hdl_schedule *schedule, const hdl_plan *plan, int32_t layer,
                              hdl_plane_need need)
{
    int32_t owner = schedule->facts->layers[layer].kv_source, *n = &schedule->n_planes[owner];
    hdl_plane_need *planes = schedule->planes[owner];
    if (!need.kind) return HEDDLE_OK;
    int32_t dim = hdl_plane_shape_of(schedule->facts, need.kind).dim;
    if (!dim) /* of an index file, layers have keys of their own: those of a shared state have none */
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s: layer %d is routed by a learned index, which this model does not have: %s",
                        plan->source, layer,
                        schedule->facts->layers[layer].has_kv
                            ? "--index FILE names one that was made for it"
                            : "an index file gives none to layers that read a shared state");
    if (dim % hdl_plane_elements_per_byte(need.kind))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s: layer %d reads the summary %s, whose bytes stand for %d elements: keys of "
                        "%d cannot be cut so",
                        plan->source, layer, hdl_plane_name(need.kind),
                        hdl_plane_elements_per_byte(need.kind), dim);
    bool is_index = need.kind == HDL_PLANE_INDEX || need.kind == HDL_PLANE_INDEX_MEAN;
    if (is_index && schedule->facts->index.is_of_layers && !schedule->facts->layers[layer].has_index)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s: layer %d routes by an index, which the index file does not give it",
                        plan->source, layer);
    if (need.kind == HDL_PLANE_INDEX_MEAN) /* what the means are of */
        HDL_TRY(add_need(schedule, plan, layer, (hdl_plane_need){HDL_PLANE_INDEX, 1}));
    for (int32_t i = 0; i < *n; i++)
        if (planes[i].kind == need.kind && planes[i].block_size == need.block_size) return HEDDLE_OK;
    if (*n == HDL_KV_MAX_PLANES)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "plan %s: the rows of layer %d would carry more than %d summaries", plan->source,
                        owner, HDL_KV_MAX_PLANES);
    planes[(*n)++] = need;
    return HEDDLE_OK;
}

static heddle_status add_route(hdl_schedule *schedule, const hdl_plan *plan, const hdl_route_plan *route)
{
    for (int32_t layer = 0; layer < schedule->facts->n_layers; layer++) {
        const hdl_layer_plan *at = &route->layers[layer];
        if (at->has_router) HDL_TRY(add_need(schedule, plan, layer, need_of(&at->router)));
        if (at->has_candidates) HDL_TRY(add_need(schedule, plan, layer, need_of(&at->candidates)));
        for (int32_t i = 0; i < at->n_head_routers; i++)
            HDL_TRY(add_need(schedule, plan, layer, need_of(&hdl_head_routers_of(route, layer)[i].router)));
        if (!at->complement) continue;
        HDL_TRY(add_need(schedule, plan, layer, (hdl_plane_need){HDL_PLANE_MEAN, at->complement}));
        HDL_TRY(add_need(schedule, plan, layer, (hdl_plane_need){HDL_PLANE_MEAN_V, at->complement}));
    }
    return HEDDLE_OK;
}

heddle_status hdl_schedule_find_planes(hdl_schedule *schedule, const hdl_plan *plan)
{
    const hdl_schedule_limits *limits = &schedule->limits;
    for (int r = 0; r < 2; r++) HDL_TRY(add_route(schedule, plan, &schedule->routes[r]));
    if (!limits->n_kept_plans) return HEDDLE_OK;
    hdl_route_plan *route = hdl_calloc(1, sizeof *route);
    if (!route) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_OK;
    for (int32_t i = 0; i < limits->n_kept_plans && !status; i++)
        for (int r = 0; r < 2 && !status; r++) {
            status = hdl_plan_resolve(limits->kept_plans[i], schedule->facts, (hdl_route)r, route);
            if (!status) status = add_route(schedule, limits->kept_plans[i], route);
        }
    hdl_free(route);
    return status;
}

bool hdl_schedule_keeps(const hdl_schedule *schedule, int32_t layer, hdl_plane_kind kind)
{
    bool is_kept = false;
    for (int32_t i = 0; i < schedule->n_planes[layer]; i++)
        is_kept |= schedule->planes[layer][i].kind == kind;
    return is_kept;
}

heddle_status hdl_schedule_planes(const hdl_schedule *schedule, hdl_kv_group_spec *specs)
{
    const hdl_model_facts *facts = schedule->facts;
    for (int32_t layer = 0; layer < facts->n_layers; layer++)
        for (int32_t i = 0; i < schedule->n_planes[layer]; i++) {
            hdl_plane_need need = schedule->planes[layer][i];
            hdl_plane_shape shape = hdl_plane_shape_of(facts, need.kind);
            HDL_TRY(hdl_kv_spec_add_plane(&specs[facts->layers[layer].cache_group], need.kind,
                                          need.block_size, shape.n_heads, shape.dim,
                                          schedule->layer_in_group[layer]));
        }
    return HEDDLE_OK;
}

heddle_status hdl_schedule_fits_store(const hdl_schedule *schedule, const hdl_plan *plan,
                                      const hdl_kv_seq *kv)
{
    const hdl_model_facts *facts = schedule->facts;
    for (int32_t layer = 0; layer < facts->n_layers; layer++)
        for (int32_t i = 0; i < schedule->n_planes[layer]; i++) {
            hdl_plane_need need = schedule->planes[layer][i];
            hdl_kv_view view;
            if (!hdl_kv_seq_plane(kv, facts->layers[layer].cache_group, schedule->layer_in_group[layer],
                                  need.kind, need.block_size, &view, 0))
                return HDL_FAIL(
                    HEDDLE_E_UNSUPPORTED,
                    "plan %s reads the summary %s of %d tokens in layer %d, which this session does not "
                    "keep: name the plan among its kept_plans",
                    plan->source, hdl_plane_name(need.kind), need.block_size, layer);
        }
    return HEDDLE_OK;
}

/* Index keys are written by the model's own steps, and their means after them: they are asked for apart. */
static heddle_status lower_planes(hdl_schedule *schedule, int32_t layer, bool is_of_index)
{
    const hdl_model_facts *facts = schedule->facts;
    for (int32_t i = 0; i < schedule->n_planes[layer]; i++) {
        hdl_plane_need need = schedule->planes[layer][i];
        hdl_plane_shape shape = hdl_plane_shape_of(facts, need.kind);
        if (need.kind == HDL_PLANE_INDEX || (need.kind == HDL_PLANE_INDEX_MEAN) != is_of_index) continue;
        hdl_step step = {.op = HDL_OP_SUMMARISE,
                         .layer = layer,
                         .group = facts->layers[layer].cache_group,
                         .layer_in_group = schedule->layer_in_group[layer]};
        step.u.summarise = (hdl_summarise_args){
            .n_kv_heads = facts->n_kv_heads,
            .head_dim = facts->head_dim,
            .v_head_dim = facts->v_head_dim,
            .kind = need.kind,
            .block_size = need.block_size,
            .kv = {.dtype = schedule->limits.kv_dtype,
                   .plane = {{.n_heads = shape.n_heads, .dim = shape.dim}}}};
        HDL_TRY(hdl_schedule_add(schedule, &step));
    }
    return HEDDLE_OK;
}

heddle_status hdl_lower_summaries(hdl_schedule *schedule, int32_t layer)
{
    return lower_planes(schedule, layer, false);
}

heddle_status hdl_lower_index_means(hdl_schedule *schedule, int32_t layer)
{
    return lower_planes(schedule, layer, true);
}
