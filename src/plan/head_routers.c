/* head_routers.c - KV heads of one layer whose lists are made in different ways.
 *
 * Each router scores its own heads alone, by its own score, selector and budget: those that no head router names are
 * the layer's router's. (Attention mass is observed for all heads at once; head routers then replace some of its
 * lists.) Each head reads exactly one list, so none is left out or read twice. */
#include <string.h>

#include "base/json.h"
#include "plan/parse.h"

enum { MAX_HEADS = 64 }; /* bits of `heads` */

static uint64_t all_heads(int32_t n_kv_heads)
{
    return n_kv_heads < MAX_HEADS ? ((uint64_t)1 << n_kv_heads) - 1 : UINT64_MAX;
}

static heddle_status read_heads(const json_t *obj, const char *path, hdl_head_router *out)
{
    const json_t *list = json_object_get(obj, "kv_heads");
    if (!json_array_size(list))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.kv_heads: must be a list of at least one KV head", path);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        int64_t head = json_is_integer(item) ? json_integer_value(item) : -1;
        if (head < 0 || head >= MAX_HEADS)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.kv_heads[%zu]: must be in 0..%d", path, i, MAX_HEADS - 1);
        if (out->heads >> head & 1)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.kv_heads[%zu] %lld: is named before", path, i,
                            (long long)head);
        out->heads |= (uint64_t)1 << head;
    }
    return HEDDLE_OK;
}

/* What a router may not be beside another one's lists; NULL: nothing. */
static const char *cannot_be_beside(const hdl_router_spec *at)
{
    return !at->is_per_kv_head                    ? "lists other than \"kv_head\""
           : at->tile > 1                         ? "lists for tiles of rows"
           : at->refresh > 1                      ? "a refresh"
           : hdl_score_rows[at->score].is_grouped ? "a score of groups"
                                                  : NULL;
}

heddle_status hdl_head_routers_read(const json_t *rule, const char *path, const hdl_router_spec *router,
                                    hdl_head_router *out, int32_t *n)
{
    static const char *const keys[] = {"kv_heads", "router", NULL};
    const json_t *list = json_object_get(rule, "head_routers");
    uint64_t named = 0;
    *n = 0;
    if (!list) return HEDDLE_OK;
    if (!router || json_object_get(json_object_get(rule, "router"), "candidates"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_routers: needs a router without candidates beside it",
                        path);
    if (!json_array_size(list) || json_array_size(list) > HDL_MAX_HEAD_ROUTERS)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_routers: must be a list of 1..%d routers", path,
                        HDL_MAX_HEAD_ROUTERS);
    const char *what = cannot_be_beside(router);
    if (what)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.router: has %s, which goes not with head_routers", path, what);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *obj = json_array_get(list, i);
        char at[256], inner[300];
        snprintf(at, sizeof at, "%s.head_routers[%zu]", path, i);
        snprintf(inner, sizeof inner, "%s.router", at);
        out[i] = (hdl_head_router){0};
        if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", at);
        HDL_TRY(hdl_json_only(obj, at, keys));
        HDL_TRY(read_heads(obj, at, &out[i]));
        if (named & out[i].heads)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.kv_heads: a head router before it names one of them", at);
        named |= out[i].heads;
        HDL_TRY(hdl_router_read(json_object_get(obj, "router"), inner, HDL_ROUTER_OF_HEADS, &out[i].router));
        what = out[i].router.score == HDL_SCORE_MASS
                   ? "score \"attention_mass\", which is observed for all heads"
                   : cannot_be_beside(&out[i].router);
        if (what) return HDL_FAIL(HEDDLE_E_INVALID, "%s: has %s; not in a head router", inner, what);
        if (hdl_router_list_block(&out[i].router) != hdl_router_list_block(router))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.block %d: the layer's router makes lists of units of %d",
                            inner, hdl_router_list_block(&out[i].router), hdl_router_list_block(router));
    }
    *n = (int32_t)json_array_size(list);
    return HEDDLE_OK;
}

heddle_status hdl_head_routers_fit(const hdl_head_router *routers, int32_t n, const hdl_model_facts *facts,
                                   const char *path)
{
    uint64_t named = 0, all = all_heads(facts->n_kv_heads);
    for (int32_t i = 0; i < n; i++) {
        const hdl_router_spec *router = &routers[i].router;
        named |= routers[i].heads;
        if (routers[i].heads & ~all || facts->n_kv_heads > MAX_HEADS)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_routers[%d].kv_heads: the model has KV heads 0..%d%s",
                            path, i, facts->n_kv_heads - 1,
                            facts->n_kv_heads > MAX_HEADS ? "; at most 64 can be named" : "");
        if (router->n_head_units && router->n_head_units != facts->n_kv_heads)
            return HDL_FAIL(
                HEDDLE_E_INVALID,
                "%s.head_routers[%d].router.head_top_k: has %d entries; the model has %d KV heads", path, i,
                router->n_head_units, facts->n_kv_heads);
    }
    if (n && named == all)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.head_routers: name every KV head; the layer's router would make a list for none",
                        path);
    return HEDDLE_OK;
}

heddle_status hdl_head_routers_add(hdl_route_plan *route, const hdl_head_router *routers, int32_t n,
                                   const char *path, int32_t *first)
{
    *first = route->n_head_routers;
    if (*first + n > HDL_MAX_ROUTE_HEAD_ROUTERS)
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "%s.head_routers: with those of the rules before them they are %d; must be at most %d", path,
            *first + n, HDL_MAX_ROUTE_HEAD_ROUTERS);
    memcpy(route->head_routers + *first, routers, (size_t)n * sizeof *routers);
    route->n_head_routers += n;
    return HEDDLE_OK;
}

const hdl_head_router *hdl_head_routers_of(const hdl_route_plan *route, int32_t layer)
{
    return route->head_routers + route->layers[layer].first_head_router;
}

const hdl_router_spec *hdl_router_of_head(const hdl_route_plan *route, int32_t layer, int32_t head)
{
    const hdl_layer_plan *at = &route->layers[layer];
    const hdl_head_router *routers = hdl_head_routers_of(route, layer);
    for (int32_t i = 0; i < at->n_head_routers; i++)
        if (routers[i].heads >> head & 1) return &routers[i].router;
    return &at->router;
}

uint64_t hdl_heads_of_layer_router(const hdl_route_plan *route, int32_t layer, int32_t n_kv_heads)
{
    uint64_t heads = all_heads(n_kv_heads);
    for (int32_t i = 0; i < route->layers[layer].n_head_routers; i++)
        heads &= ~hdl_head_routers_of(route, layer)[i].heads;
    return heads;
}
