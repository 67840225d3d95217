/* share.c - sharing as data: which layer's list a layer reads.
 *
 * "previous" is the nearest layer below that makes a list. An owner must come before its readers:
 * lists are made and read within one pass over the layers. */
#include "plan/plan.h"

heddle_status hdl_share_owners(hdl_route_plan *route, const hdl_model_facts *facts, const int32_t *wanted,
                               const char *path)
{
    int32_t previous = -1;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        hdl_layer_plan *at = &route->layers[layer];
        if (at->op == HDL_OPERATOR_TOKEN_LIST) {
            at->owner = at->has_router ? layer : wanted[layer] == -1 ? previous : wanted[layer];
            if (at->owner < 0)
                return HDL_FAIL(HEDDLE_E_INVALID, "%s: layer %d shares the previous list, but no layer before it makes "
                                "one", path, layer);
            if (at->owner > layer || !route->layers[at->owner].has_router)
                return HDL_FAIL(HEDDLE_E_INVALID, "%s: layer %d shares the list of layer %d, which makes none before it",
                                path, layer, at->owner);
        }
        if (at->has_router) previous = layer;
    }
    return HEDDLE_OK;
}
