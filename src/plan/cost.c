/* cost.c - tokens and bytes read, by arithmetic: what a layer's operator and router read for one row.
 *
 * A dense pass that also observes keeps its score row, so K is read once. A layer that scores by a
 * dense pass and then attends to its list reads both. A router that scores a summary reads the
 * summary's entries of all visible tokens, or of its candidates only. A complement reads the means of
 * keys and values of all visible tokens; the listed rows that it takes from them were read just before. */
#include <math.h>

#include "plan/plan.h"

double hdl_cost_tokens_dense(const hdl_model_facts *facts, int32_t layer, int64_t position)
{
    int64_t visible = position + 1, window = facts->layers[layer].window;
    if (facts->layers[layer].is_delta) return 0;
    return (double)(window ? HDL_MIN(visible, window) : visible);
}

int32_t hdl_router_list_block(const hdl_router_spec *router)
{
    return hdl_score_rows[router->score].is_grouped ? 1 : router->block;
}

int64_t hdl_router_groups(const hdl_router_spec *router, int64_t n_tokens)
{
    int64_t block = router->block, all = HDL_MAX((n_tokens + block - 1) / block, 1);
    if (router->select != HDL_SELECT_TOP_K && !router->top_k) return all;
    return HDL_MAX(HDL_MIN((HDL_MAX(router->top_k, router->dense_below) + block - 1) / block, all), 1);
}

int64_t hdl_router_units(const hdl_router_spec *router, int64_t n_tokens)
{
    int64_t block = hdl_router_list_block(router), unit = router->block, all = (n_tokens + block - 1) / block;
    bool is_bounded = router->select == HDL_SELECT_TOP_K || router->top_k > 0;
    if (!is_bounded || n_tokens <= router->dense_below) return HDL_MAX(all, 1);
    int64_t n = (router->top_k + unit - 1) / unit * (unit / block) * HDL_MAX(router->n_united, 1) +
                router->n_slashes * (int64_t)router->tile + (router->n_sink + block - 1) / block +
                (router->window ? (router->window + router->tile - 1 + block - 2) / block + 1 : 0) +
                (router->refresh - 1 + block - 1) / block;
    if (router->dense_below > 0) /* such a list may be kept and grow until the next refresh, as any other */
        n = HDL_MAX(n, (HDL_MIN(router->dense_below, n_tokens) + block - 1) / block +
                           (router->refresh - 1 + block - 1) / block);
    return HDL_MAX(HDL_MIN(n, all), 1);
}

/* Scores that a row's lists are chosen from, of `scored` tokens; n_kv_heads: those whose lists the router makes. */
static double scores_of(const hdl_router_spec *router, int32_t n_kv_heads, double scored)
{
    if (router->score == HDL_SCORE_NONE || scored <= (double)router->dense_below) return 0;
    return scored / router->block * (router->n_slashes ? 2 : 1) *
           (router->is_per_kv_head ? n_kv_heads : HDL_MAX(router->n_united, 1));
}

/* Tokens of a list that a row with `visible` tokens reads; of a union the most. */
static double list_tokens(const hdl_router_spec *router, double visible)
{
    int64_t block = router->block;
    if (visible <= (double)router->dense_below) return visible;
    double chosen = (double)((router->top_k + block - 1) / block * block * HDL_MAX(router->n_united, 1));
    if (router->select != HDL_SELECT_TOP_K &&
        !router->top_k) { /* patterns are known, the rest is not bounded */
        if (router->score == HDL_SCORE_STRIDE)
            chosen = visible / router->stride;
        else if (router->score == HDL_SCORE_POWERS)
            chosen = (double)block * HDL_MAX(log2(HDL_MAX(visible / (double)block, 1)), 0);
        else
            return visible;
    }
    if (router->n_head_units) { /* each head reads its own list: the mean over them */
        chosen = 0;
        for (int32_t h = 0; h < router->n_head_units; h++)
            chosen += HDL_MIN((double)(router->head_units[h] * block), visible) / router->n_head_units;
    }
    chosen += (double)router->n_slashes * router->tile; /* at most: neighbouring distances share tokens */
    block = hdl_router_list_block(router);
    double n = chosen + (double)((router->n_sink + block - 1) / block * block) + router->window +
               (double)(router->tile - 1 + block - 1) / 2; /* the window begins inside a block */
    return HDL_MIN(n, visible);
}

/* Tokens of its list that a row reads, the mean over the KV heads. */
static double layer_list_tokens(const hdl_route_plan *route, int32_t owner, const hdl_model_facts *facts,
                                double visible)
{
    double sum = 0;
    if (!route->layers[owner].n_head_routers) return list_tokens(&route->layers[owner].router, visible);
    for (int32_t h = 0; h < facts->n_kv_heads; h++) {
        hdl_router_spec of_head = *hdl_router_of_head(route, owner, h);
        of_head.head_units[0] = of_head.head_units[HDL_MIN(h, HDL_MAX_MAPPED_HEADS - 1)];
        of_head.n_head_units = of_head.n_head_units > 0;
        sum += list_tokens(&of_head, visible);
    }
    return sum / facts->n_kv_heads;
}

static const char *router_bound(const hdl_router_spec *router)
{
    if (router->score == HDL_SCORE_STRIDE || router->score == HDL_SCORE_POWERS)
        return "units of the pattern may be sinks or window";
    if (router->select == HDL_SELECT_TOP_P || router->select == HDL_SELECT_THRESHOLD)
        return "they are as long as their scores say";
    if (router->n_united) return "heads may choose the same units";
    if (hdl_score_rows[router->score].is_grouped) return "members of groups may be sinks or window";
    return router->n_slashes ? "distances of neighbouring rows share tokens" : NULL;
}

const char *hdl_cost_is_bound(const hdl_route_plan *route, int32_t layer)
{
    const hdl_layer_plan *at = &route->layers[layer];
    if (at->op == HDL_OPERATOR_DENSE) return NULL;
    const hdl_layer_plan *owner = &route->layers[at->owner];
    if (at->stop.patience) return "they are read until a stop rule ends it";
    const char *why = router_bound(&owner->router);
    for (int32_t i = 0; i < owner->n_head_routers && !why; i++)
        why = router_bound(&hdl_head_routers_of(route, at->owner)[i].router);
    return why;
}

hdl_plane_shape hdl_plane_shape_of(const hdl_model_facts *facts, hdl_plane_kind kind)
{
    if (kind == HDL_PLANE_INDEX || kind == HDL_PLANE_INDEX_MEAN)
        return (hdl_plane_shape){facts->index.dim > 0, facts->index.dim};
    return (hdl_plane_shape){facts->n_kv_heads,
                             kind == HDL_PLANE_MEAN_V ? facts->v_head_dim : facts->head_dim};
}

static double entry_bytes(hdl_plane_kind kind, const hdl_model_facts *facts)
{
    hdl_plane_shape shape = hdl_plane_shape_of(facts, kind);
    return (double)(hdl_plane_entry_bytes(kind, shape.n_heads, shape.dim) +
                    hdl_plane_scale_bytes(kind, shape.n_heads));
}

static double complement_bytes(const hdl_layer_plan *at, const hdl_model_facts *facts, double visible)
{
    if (!at->complement) return 0;
    return visible / at->complement *
           (entry_bytes(HDL_PLANE_MEAN, facts) + entry_bytes(HDL_PLANE_MEAN_V, facts));
}

static double summary_bytes(const hdl_router_spec *router, const hdl_model_facts *facts, double visible)
{
    const hdl_score_row *row = &hdl_score_rows[router->score];
    if (!row->plane) return 0;
    int64_t block = row->is_by_block ? router->block / row->entries_per_block : 1;
    double members = row->is_grouped ? list_tokens(router, visible) : 0; /* a byte each */
    return visible / (double)block * entry_bytes(row->plane, facts) + members;
}

/* Adds what a router of lists by KV head reads and scores that makes those of some heads only. */
static void add_heads(const hdl_router_spec *router, const hdl_model_facts *facts, uint64_t heads,
                      double visible, hdl_cost *cost)
{
    int32_t n = __builtin_popcountll(heads);
    cost->summary_bytes += summary_bytes(router, facts, visible) * n / facts->n_kv_heads;
    cost->scores += scores_of(router, n, visible);
}

hdl_cost hdl_cost_of(const hdl_route_plan *route, const hdl_model_facts *facts, int32_t layer,
                     int64_t position)
{
    const hdl_layer_plan *at = &route->layers[layer];
    double dense = hdl_cost_tokens_dense(facts, layer, position);
    bool is_dense = at->op == HDL_OPERATOR_DENSE;
    const hdl_router_spec *own = at->has_router ? &at->router : NULL;
    double listed = !is_dense || own ? layer_list_tokens(route, is_dense ? layer : at->owner, facts, dense)
                                     : dense;
    double rest_bytes = complement_bytes(at, facts, dense);
    hdl_cost fresh = {.tokens = is_dense ? dense : listed, .listed = is_dense ? 0 : listed};
    if (!own) return (hdl_cost){fresh.tokens, rest_bytes, fresh.listed, 0};
    if (own->score == HDL_SCORE_MASS && !is_dense) fresh.tokens += dense;
    double scored = dense;
    if (at->has_candidates) {
        fresh.summary_bytes += summary_bytes(&at->candidates, facts, dense);
        fresh.scores += scores_of(&at->candidates, facts->n_kv_heads, dense);
    }
    if (hdl_candidates_of(route, layer)) scored = list_tokens(hdl_candidates_of(route, layer), dense);
    if (own->score == HDL_SCORE_MASS || !at->n_head_routers) { /* observed mass is that of all heads */
        fresh.summary_bytes += summary_bytes(own, facts, scored);
        fresh.scores += scores_of(own, facts->n_kv_heads, scored);
    } else {
        add_heads(own, facts, hdl_heads_of_layer_router(route, layer, facts->n_kv_heads), dense, &fresh);
    }
    for (int32_t i = 0; i < at->n_head_routers; i++)
        add_heads(&hdl_head_routers_of(route, layer)[i].router, facts,
                  hdl_head_routers_of(route, layer)[i].heads, dense, &fresh);
    int32_t n_reused = own->refresh - 1; /* steps between two refreshes read the kept list */
    return (hdl_cost){.tokens = (fresh.tokens + n_reused * listed) / own->refresh,
                      .summary_bytes = fresh.summary_bytes / own->refresh + rest_bytes,
                      .listed = (fresh.listed + n_reused * listed) / own->refresh,
                      .scores = fresh.scores / own->refresh};
}
