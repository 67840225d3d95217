/* share.c - sharing as data: which layer's list a layer reads.
 *
 * "previous" is the nearest layer below that makes a list. An owner must come before its readers:
 * lists are made and read within one pass over the layers. */
#include <string.h>

#include "plan/parse.h"

static bool is_list(const hdl_layer_plan *at)
{
    return at->op != HDL_OPERATOR_DENSE;
}

/* Says which layer is the first that makes a list: "rest" also names layers below those of a shared cache. */
static heddle_status refuse_first(const hdl_route_plan *route, int32_t layer, int32_t n_layers,
                                  const char *path)
{
    int32_t first = layer;
    while (first < n_layers && !route->layers[first].has_router) first++;
    if (first == n_layers)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.share: layer %d shares the previous list, but no layer makes one", path, layer);
    return HDL_FAIL(HEDDLE_E_INVALID,
                    "%s.share: layer %d shares the previous list, but the first that makes one is layer %d: "
                    "give layer %d a rule of its own before, a router or \"operator\": \"dense\"",
                    path, layer, first, layer);
}

/* The layer whose list `layer` reads or picks from: `wanted`, or the nearest that made one. */
static heddle_status find_owner(const hdl_route_plan *route, int32_t layer, int32_t n_layers, int32_t wanted,
                                int32_t previous, const char *path, int32_t *owner)
{
    *owner = wanted == HDL_SHARE_PREVIOUS ? previous : wanted;
    if (*owner < 0) return refuse_first(route, layer, n_layers, path);
    if (*owner > layer || !route->layers[*owner].has_router)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.share: layer %d shares the list of layer %d, which makes none before it", path,
                        layer, *owner);
    return HEDDLE_OK;
}

static heddle_status check_units(const hdl_route_plan *route, int32_t layer, const char *path)
{
    const hdl_layer_plan *at = &route->layers[layer];
    const hdl_router_spec *list = &route->layers[at->owner].router;
    int32_t block = hdl_router_list_block(list);
    bool is_blocks = block > 1;
    if (is_blocks != (at->op == HDL_OPERATOR_BLOCK_LIST))
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.operator: layer %d is a %s, but the list of layer %d holds %s (block %d)", path,
                        layer, at->op == HDL_OPERATOR_BLOCK_LIST ? "block_list" : "token_list", at->owner,
                        is_blocks ? "blocks" : "tokens", block);
    if (at->has_head_map && list->tile > 1)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.head_map: layer %d has one, but layer %d makes lists for tiles of %d rows", path,
                        layer, at->owner, list->tile);
    if (at->has_head_map && !list->is_per_kv_head)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.head_map: layer %d has one, but layer %d makes one list for all heads "
                        "(\"lists\": \"kv_head\" makes one each)",
                        path, layer, at->owner);
    return HEDDLE_OK;
}

/* A complement leaves out the row's own block of means, so the list must hold it: by its window, or as
 * one of its blocks. Sizes are powers of two, so that a block lies in one mean or holds whole ones. */
static heddle_status check_complement(const hdl_route_plan *route, int32_t layer, const char *path)
{
    const hdl_layer_plan *at = &route->layers[layer];
    const hdl_router_spec *list = &route->layers[at->owner].router;
    int32_t window = list->window;
    for (int32_t i = 0; i < route->layers[at->owner].n_head_routers; i++)
        window = HDL_MIN(window, hdl_head_routers_of(route, at->owner)[i].router.window);
    if (!at->complement || hdl_router_list_block(list) >= at->complement || window >= at->complement)
        return HEDDLE_OK;
    return HDL_FAIL(
        HEDDLE_E_INVALID,
        "%s.complement %d: the list of layer %d must hold each row's own block of so many tokens; "
        "its window is %d",
        path, at->complement, at->owner, window);
}

/* A list that is read by score until a rule stops it was made by scores of its own units. */
static heddle_status check_stop(const hdl_route_plan *route, int32_t layer, const char *path)
{
    const hdl_layer_plan *at = &route->layers[layer], *owner = &route->layers[at->owner];
    if (!at->stop.patience) return HEDDLE_OK;
    const char *what = owner->has_candidates || owner->candidate_owner >= 0 ? "picks from candidates"
                       : owner->router.score == HDL_SCORE_NONE              ? "scores nothing"
                       : owner->router.n_united || owner->router.n_slashes  ? "unites lists of several scores"
                       : hdl_score_rows[owner->router.score].is_grouped     ? "scores groups of tokens"
                       : owner->n_head_routers                              ? "makes lists by several routers"
                       : owner->router.refresh > 1 ? "keeps its lists between refreshes"
                                                   : NULL;
    if (!what) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_INVALID,
                    "%s.stop: layer %d reads the list of layer %d by score, but that layer %s", path, layer,
                    at->owner, what);
}

const hdl_router_spec *hdl_candidates_of(const hdl_route_plan *route, int32_t layer)
{
    const hdl_layer_plan *at = &route->layers[layer];
    if (at->has_candidates) return &at->candidates;
    if (at->candidate_owner < 0) return NULL;
    const hdl_layer_plan *owner = &route->layers[at->candidate_owner];
    return at->is_of_pool ? &owner->candidates : &owner->router;
}

/* Whose list or candidates the layer's router picks from. The candidates of a layer that shares them are
 * their owner's. */
static heddle_status find_candidates(hdl_route_plan *route, int32_t layer, int32_t n_layers,
                                     const hdl_wishes *wanted, int32_t previous, const char *path)
{
    hdl_layer_plan *at = &route->layers[layer];
    HDL_TRY(find_owner(route, layer, n_layers, wanted->pool[layer], previous, path, &at->candidate_owner));
    if (at->candidate_owner == layer)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.router.candidates: layer %d picks from its own list", path,
                        layer);
    at->is_of_pool = wanted->is_pool[layer];
    const hdl_layer_plan *owner = &route->layers[at->candidate_owner];
    if (owner->n_head_routers)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router.candidates: layer %d, whose list layer %d picks from, has head_routers",
                        path, at->candidate_owner, layer);
    if (!at->is_of_pool) return HEDDLE_OK;
    if (owner->is_of_pool)
        at->candidate_owner = owner->candidate_owner;
    else if (!owner->has_candidates)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router.candidates.of \"candidates\": layer %d, whose candidates layer %d picks "
                        "from, has none of its own",
                        path, at->candidate_owner, layer);
    return HEDDLE_OK;
}

/* Tokens of the candidates that the router does not force itself; as many as there are where only scores limit
 * them. */
static int64_t most_candidates(const hdl_router_spec *router, const hdl_router_spec *from)
{
    bool is_limited = from->select == HDL_SELECT_TOP_K || from->select == HDL_SELECT_BEAM || from->top_k;
    if (!is_limited || router->n_head_units) return INT64_MAX;
    int64_t block = HDL_MAX(from->block, 1);
    int64_t chosen = HDL_ALIGN_UP(from->top_k, block) * HDL_MAX(from->n_united, 1);
    /* whole blocks are forced where the sinks or the window touch them */
    int64_t forced = HDL_ALIGN_UP((int64_t)from->n_sink, block) + HDL_ALIGN_UP((int64_t)from->window, block) +
                     (block > 1 ? block : 0);
    return chosen + HDL_MAX(forced - router->n_sink - router->window, 0);
}

/* A router that picks from candidates: tokens out of a list of tokens or blocks, scored by a summary. */
static heddle_status check_candidates(const hdl_route_plan *route, int32_t layer, const char *path)
{
    const hdl_layer_plan *at = &route->layers[layer];
    const hdl_router_spec *from = hdl_candidates_of(route, layer);
    const hdl_score_row *row = &hdl_score_rows[at->router.score];
    if (at->router.block > 1 || !row->is_scored || row->is_by_block || !row->plane)
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.router: layer %d picks tokens from candidates: its score must be one by token from a summary "
            "(key_i8, key_i4, key_pq2, key_pq4, index)",
            path, layer);
    if (from->tile > 1 || at->router.tile > 1)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router: layer %d picks from candidates; neither may be for tiles of rows", path,
                        layer);
    if (from->is_per_kv_head && !at->router.is_per_kv_head)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router.lists: layer %d makes one list from candidates that are per KV head", path,
                        layer);
    if (at->router.top_k > most_candidates(&at->router, from))
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.router.top_k %lld: layer %d picks from candidates that hold at most %lld tokens which "
            "it does not force",
            path, (long long)at->router.top_k, layer, (long long)most_candidates(&at->router, from));
    if (from->n_sink < at->router.n_sink || from->window < at->router.window)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router: layer %d forces sinks %d and window %d, its candidates only %d and %d",
                        path, layer, at->router.n_sink, at->router.window, from->n_sink, from->window);
    if (from->dense_below < at->router.dense_below)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.router.dense_below %lld: layer %d picks from candidates of layer %d, which hold "
                        "everything only up to %lld tokens",
                        path, (long long)at->router.dense_below, layer, at->candidate_owner,
                        (long long)from->dense_below);
    return HEDDLE_OK;
}

bool hdl_list_is_read(const hdl_route_plan *route, int32_t n_layers, int32_t layer)
{
    for (int32_t i = 0; i < n_layers; i++)
        if (route->layers[i].owner == layer || route->layers[i].candidate_owner == layer) return true;
    return false;
}

/* Of a rule of many layers some may make a list in vain, where the next makes one as well. */
heddle_status hdl_share_unread(const hdl_route_plan *route, const hdl_model_facts *facts,
                               const hdl_wishes *wanted, const char *path)
{
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        bool is_read = !route->layers[layer].has_router;
        for (int32_t i = 0; i < facts->n_layers && !is_read; i++)
            is_read = wanted->rule[i] == wanted->rule[layer] && hdl_list_is_read(route, facts->n_layers, i);
        if (!is_read)
            return HDL_FAIL(
                HEDDLE_E_INVALID,
                "%s[%d].router: no layer reads or picks from the list of layer %d, nor from another of "
                "this rule",
                path, wanted->rule[layer], layer);
    }
    return HEDDLE_OK;
}

heddle_status hdl_share_owners(hdl_route_plan *route, const hdl_model_facts *facts, const hdl_wishes *wanted,
                               const char *path)
{
    int32_t previous = -1;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        hdl_layer_plan *at = &route->layers[layer];
        char rule[256];
        snprintf(rule, sizeof rule, "%s[%d]", path, wanted->rule[layer]);
        if (wanted->pool[layer] != HDL_SHARE_NONE)
            HDL_TRY(find_candidates(route, layer, facts->n_layers, wanted, previous, rule));
        if (hdl_candidates_of(route, layer)) HDL_TRY(check_candidates(route, layer, rule));
        if (is_list(at)) {
            if (at->has_router)
                at->owner = layer;
            else
                HDL_TRY(find_owner(route, layer, facts->n_layers, wanted->share[layer], previous, rule,
                                   &at->owner));
            HDL_TRY(check_units(route, layer, rule));
            HDL_TRY(check_complement(route, layer, rule));
            HDL_TRY(check_stop(route, layer, rule));
        }
        if (at->has_router) previous = layer;
    }
    return HEDDLE_OK;
}

static bool routers_equal(const hdl_router_spec *p, const hdl_router_spec *q)
{
    return p->score == q->score && p->measure == q->measure &&
           p->is_scaled_by_length == q->is_scaled_by_length && p->heads == q->heads && p->pool == q->pool &&
           p->select == q->select && p->p_rule == q->p_rule && p->p == q->p && p->threshold == q->threshold &&
           p->top_k == q->top_k && p->block == q->block && p->n_sink == q->n_sink && p->window == q->window &&
           p->refresh == q->refresh && p->tile == q->tile && p->tile_by == q->tile_by &&
           p->stride == q->stride && p->dense_below == q->dense_below &&
           p->is_per_kv_head == q->is_per_kv_head && p->n_united == q->n_united &&
           p->n_slashes == q->n_slashes && p->seed == q->seed && p->n_head_units == q->n_head_units &&
           !memcmp(p->head_units, q->head_units, (size_t)p->n_head_units * sizeof *p->head_units);
}

bool hdl_route_plan_equal(const hdl_route_plan *a, const hdl_route_plan *b, int32_t n_layers)
{
    for (int32_t layer = 0; layer < n_layers; layer++) {
        const hdl_layer_plan *x = &a->layers[layer], *y = &b->layers[layer];
        if (x->op != y->op || x->has_router != y->has_router || x->owner != y->owner) return false;
        if (x->complement != y->complement) return false;
        if (memcmp(&x->stop, &y->stop, sizeof x->stop)) return false;
        if (x->has_head_map != y->has_head_map || memcmp(x->head_map, y->head_map, sizeof x->head_map))
            return false;
        if (x->has_candidates != y->has_candidates || x->candidate_owner != y->candidate_owner ||
            x->is_of_pool != y->is_of_pool)
            return false;
        if (x->has_router && !routers_equal(&x->router, &y->router)) return false;
        if (x->n_head_routers != y->n_head_routers) return false;
        const hdl_head_router *p = hdl_head_routers_of(a, layer), *q = hdl_head_routers_of(b, layer);
        for (int32_t i = 0; i < x->n_head_routers; i++)
            if (p[i].heads != q[i].heads || !routers_equal(&p[i].router, &q[i].router)) return false;
        if (x->has_candidates && !routers_equal(&x->candidates, &y->candidates)) return false;
    }
    return true;
}
