/* share.c - sharing as data: which layer's list a layer reads.
 *
 * "previous" is the nearest layer below that makes a list. An owner must come before its readers:
 * lists are made and read within one pass over the layers. */
#include <string.h>

#include "plan/plan.h"

heddle_status hdl_share_owners(hdl_route_plan *route, const hdl_model_facts *facts, const int32_t *wanted,
                               const int32_t *rule_of, const char *path)
{
    int32_t previous = -1;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        hdl_layer_plan *at = &route->layers[layer];
        if (at->op == HDL_OPERATOR_TOKEN_LIST) {
            at->owner = at->has_router ? layer : wanted[layer] == -1 ? previous : wanted[layer];
            if (at->owner < 0)
                return HDL_FAIL(
                    HEDDLE_E_INVALID,
                    "%s[%d].share: layer %d shares the previous list, but no layer before it makes one", path,
                    rule_of[layer], layer);
            if (at->owner > layer || !route->layers[at->owner].has_router)
                return HDL_FAIL(
                    HEDDLE_E_INVALID,
                    "%s[%d].share: layer %d shares the list of layer %d, which makes none before it", path,
                    rule_of[layer], layer, at->owner);
            if (at->has_head_map && !route->layers[at->owner].router.is_per_kv_head)
                return HDL_FAIL(
                    HEDDLE_E_INVALID,
                    "%s[%d].head_map: layer %d has one, but layer %d makes one list for all heads "
                    "(\"lists\": \"kv_head\" makes one each)",
                    path, rule_of[layer], layer, at->owner);
        }
        if (at->has_router) previous = layer;
    }
    return HEDDLE_OK;
}

bool hdl_route_plan_equal(const hdl_route_plan *a, const hdl_route_plan *b, int32_t n_layers)
{
    for (int32_t layer = 0; layer < n_layers; layer++) {
        const hdl_layer_plan *x = &a->layers[layer], *y = &b->layers[layer];
        const hdl_router_spec *p = &x->router, *q = &y->router;
        if (x->op != y->op || x->has_router != y->has_router || x->owner != y->owner) return false;
        if (x->has_head_map != y->has_head_map || memcmp(x->head_map, y->head_map, sizeof x->head_map))
            return false;
        if (x->has_router && (p->score != q->score || p->top_k != q->top_k || p->n_sink != q->n_sink ||
                              p->window != q->window || p->refresh != q->refresh ||
                              p->is_per_kv_head != q->is_per_kv_head || p->seed != q->seed))
            return false;
    }
    return true;
}
