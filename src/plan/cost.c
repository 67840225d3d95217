/* cost.c - tokens read, by arithmetic: what a layer's operator and router read for one row.
 *
 * A dense pass that also observes keeps its score row, so K is read once. A layer that scores by a
 * dense pass and then attends to its list reads both. */
#include "plan/plan.h"

double hdl_cost_tokens_dense(const hdl_model_facts *facts, int32_t layer, int64_t position)
{
    int64_t visible = position + 1, window = facts->layers[layer].window;
    return (double)(window ? HDL_MIN(visible, window) : visible);
}

double hdl_cost_tokens(const hdl_route_plan *route, const hdl_model_facts *facts, int32_t layer,
                       int64_t position)
{
    const hdl_layer_plan *at = &route->layers[layer];
    double dense = hdl_cost_tokens_dense(facts, layer, position), tokens = 0;
    bool is_dense = at->op == HDL_OPERATOR_DENSE;
    const hdl_router_spec *own = at->has_router ? &at->router : NULL;
    const hdl_router_spec *list = is_dense ? NULL : &route->layers[at->owner].router;
    /* a step between two refreshes reads the kept list instead of the dense pass */
    double list_tokens = 0;
    const hdl_router_spec *any = list ? list : own;
    if (any) list_tokens = HDL_MIN((double)(any->top_k + any->n_sink + any->window), dense);
    double full = is_dense ? dense : list_tokens;
    if (own && own->score == HDL_SCORE_MASS && !is_dense) full += dense;
    if (own && own->refresh > 1)
        tokens = (full + (own->refresh - 1) * list_tokens) / own->refresh;
    else
        tokens = full;
    return tokens;
}
