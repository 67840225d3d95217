/* explain.c - everything compile decided, as text: plan, layers, steps, implementations, bytes. */
#include <string.h>

#include "plan/schedule.h"

static void explain_head_top_k(const hdl_router_spec *router, hdl_buf *text)
{
    for (int32_t h = 0; h < router->n_head_units; h++) {
        hdl_buf_puts(text, h ? ", " : ": top_k ");
        if (router->head_units[h] == HDL_ALL_UNITS)
            hdl_buf_puts(text, "all");
        else
            hdl_buf_printf(text, "%lld", (long long)(router->head_units[h] * router->block));
    }
    hdl_buf_puts(text, " by KV head");
}

/* "(mass, mean of heads)": what the scores are, and how those of several heads, or queries of an index, become one. */
static void explain_measure(const hdl_router_spec *router, const hdl_model_facts *facts, hdl_buf *text)
{
    static const char *const reduces[] = {"mean", "sum", "largest"};
    bool is_index = hdl_score_rows[router->score].rule == HDL_RULE_INDEX;
    hdl_buf_printf(text, " (%s", router->measure == HDL_MEASURE_MASS ? "mass" : "logit");
    if (!is_index || facts->index.n_heads > 1)
        hdl_buf_printf(text, ", %s of %s",
                       reduces[is_index && facts->index.is_of_layers ? HDL_REDUCE_MAX : router->heads],
                       is_index ? "queries" : "heads");
    hdl_buf_puts(text, ")");
}

static void explain_router(const hdl_router_spec *router, const hdl_model_facts *facts, hdl_buf *text)
{
    static const char *const tiles[] = {"their mean query", "their scores summed",
                                        "the largest of their scores"};
    hdl_buf_printf(text, "; makes a list by %s", hdl_score_rows[router->score].about);
    if (hdl_score_rows[router->score].plane) explain_measure(router, facts, text);
    if (router->is_scaled_by_length) hdl_buf_puts(text, " times sqrt(length)");
    if (router->select == HDL_SELECT_TOP_P) hdl_buf_printf(text, ": top_p %g", (double)router->p);
    if (router->select == HDL_SELECT_BEAM) hdl_buf_printf(text, ": beam");
    if (router->select == HDL_SELECT_THRESHOLD) hdl_buf_printf(text, ": above %g", (double)router->threshold);
    if (router->n_head_units) explain_head_top_k(router, text);
    bool has_no_limit = (router->select == HDL_SELECT_TOP_P || router->select == HDL_SELECT_THRESHOLD) &&
                        !router->top_k;
    if (has_no_limit) hdl_buf_puts(text, ", however many");
    if (!router->n_head_units && !has_no_limit)
        hdl_buf_printf(text, ": top_k %lld", (long long)router->top_k);
    hdl_buf_printf(text, " + sinks %d + window %d", router->n_sink, router->window);
    if (router->block > 1)
        hdl_buf_printf(text, " in %s of %d", hdl_score_rows[router->score].is_grouped ? "groups" : "blocks",
                       router->block);
    if (router->is_per_kv_head) hdl_buf_puts(text, ", one per KV head");
    if (router->n_united) hdl_buf_printf(text, ", the union of %d KV heads' (top_k each)", router->n_united);
    if (router->n_slashes) hdl_buf_printf(text, " + %d distances", router->n_slashes);
    if (router->tile > 1)
        hdl_buf_printf(text, ", one for %d rows (%s)", router->tile, tiles[router->tile_by]);
    if (router->refresh > 1) hdl_buf_printf(text, ", every %d steps", router->refresh);
    if (router->dense_below)
        hdl_buf_printf(text, ", everything up to %lld tokens", (long long)router->dense_below);
}

static void explain_heads(uint64_t heads, hdl_buf *text)
{
    hdl_buf_puts(text, "; of KV heads");
    for (int32_t h = 0; h < 64; h++)
        if (heads >> h & 1) hdl_buf_printf(text, " %d", h);
}

static void explain_layers(const hdl_schedule *schedule, hdl_route route, const char *title, hdl_buf *text)
{
    static const char *const operators[] = {"dense", "token_list", "block_list"};
    const hdl_model_facts *facts = schedule->facts;
    hdl_buf_printf(text, "%s route\n", title);
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        const hdl_layer_plan *at = &schedule->routes[route].layers[layer];
        hdl_buf_printf(text, "  layer %2d  ", layer);
        if (facts->layers[layer].is_delta)
            hdl_buf_printf(text, "gated-delta state, %d heads of %d x %d (the model's own)",
                           facts->delta.n_heads, facts->delta.v_dim, facts->delta.k_dim);
        else if (facts->layers[layer].window)
            hdl_buf_printf(text, "window %d (the model's own)", facts->layers[layer].window);
        else if (at->op == HDL_OPERATOR_DENSE)
            hdl_buf_puts(text, "dense");
        else if (at->owner == layer)
            hdl_buf_printf(text, "%s, its own", operators[at->op]);
        else
            hdl_buf_printf(text, "%s of layer %d%s", operators[at->op], at->owner,
                           at->has_head_map ? ", heads mapped" : "");
        if (at->complement) hdl_buf_printf(text, " and its complement by means of %d tokens", at->complement);
        if (at->stop.patience)
            hdl_buf_printf(text, ", by score until %d tiles of %d gain less than %g", at->stop.patience,
                           at->stop.tile, (double)at->stop.below);
        if (at->has_router) explain_router(&at->router, facts, text);
        if (at->has_router && !hdl_list_is_read(&schedule->routes[route], facts->n_layers, layer))
            hdl_buf_puts(text, ", which no layer reads");
        for (int32_t i = 0; i < at->n_head_routers; i++) {
            const hdl_head_router *of_heads = &hdl_head_routers_of(&schedule->routes[route], layer)[i];
            explain_heads(of_heads->heads, text);
            explain_router(&of_heads->router, facts, text);
        }
        if (at->has_candidates) {
            hdl_buf_puts(text, ", picked from");
            explain_router(&at->candidates, facts, text);
        }
        if (at->candidate_owner >= 0)
            hdl_buf_printf(text, ", picked from the %s of layer %d", at->is_of_pool ? "candidates" : "list",
                           at->candidate_owner);
        hdl_buf_puts(text, "\n");
    }
}

/* Where what is known before running is only a bound of what is read. */
static void explain_bounds(const hdl_schedule *schedule, hdl_route route, hdl_buf *text)
{
    const hdl_route_plan *plan = &schedule->routes[route];
    int32_t n = 0, first = 0;
    for (int32_t layer = 0; layer < schedule->facts->n_layers; layer++)
        if (hdl_cost_is_bound(plan, layer) && !n++) first = layer;
    if (n)
        hdl_buf_printf(
            text,
            "  %d layers read lists of which only an upper bound is known before they are made: %s; run, "
            "perplexity and eval count what was read\n",
            n, hdl_cost_is_bound(plan, first));
}

/* Which kernel scores, and what it reads of a plane: of its heads those that the call is about. */
static void explain_score(const hdl_attend_step *step, const hdl_model_facts *facts, hdl_buf *text)
{
    const hdl_score_args *args = &step->score;
    hdl_buf_printf(text, " + %s", step->score_impl[0]->name);
    if (!args->plane) return;
    hdl_plane_shape shape = hdl_plane_shape_of(facts, args->plane);
    int64_t bytes = hdl_plane_entry_bytes(args->plane, shape.n_heads, shape.dim) +
                    hdl_plane_scale_bytes(args->plane, shape.n_heads);
    hdl_buf_printf(text, " (%lld bytes for %d token%s)",
                   (long long)(bytes * args->n_kv_heads / shape.n_heads), args->block_size,
                   args->block_size > 1 ? "s" : "");
}

static void explain_step(const hdl_step *step, const hdl_model_facts *facts, hdl_buf *text)
{
    static const char *const routes[] = {"prefill", "decode", "reuse"};
    hdl_buf_printf(text, "  %-7s", hdl_op_name(step->op));
    if (step->where == HDL_WHERE_ROUTE) hdl_buf_printf(text, " [%s]", routes[step->route]);
    if (step->queue == HDL_QUEUE_COPY) hdl_buf_puts(text, " (copies)");
    hdl_buf_printf(text, " %s", hdl_buffer_name(step->in));
    if (step->in2) hdl_buf_printf(text, ",%s", hdl_buffer_name(step->in2));
    hdl_buf_puts(text, " ->");
    for (int i = 0; i < HDL_LINEAR_MAX_PARTS && step->out[i]; i++)
        hdl_buf_printf(text, "%s%s", i ? "," : " ", hdl_buffer_name(step->out[i]));
    if (step->op == HDL_OP_LINEAR)
        for (int32_t i = 0; i < step->u.linear.n_parts; i++) {
            const hdl_tensor *w = &step->u.linear.part[i].w;
            hdl_buf_printf(text, " %s[%lld,%lld]", hdl_dtype_of(w->dtype)->name, (long long)w->n_rows,
                           (long long)w->n_cols);
        }
    if (step->op == HDL_OP_ATTEND && step->u.attend.slot >= 0)
        hdl_buf_printf(text, " %s list %d", step->u.attend.is_selecting ? "makes" : "reads",
                       step->u.attend.slot);
    if (step->op == HDL_OP_ATTEND && step->u.attend.n_kv_heads)
        hdl_buf_printf(text, " of KV heads %d..%d", step->u.attend.first_kv_head,
                       step->u.attend.first_kv_head + step->u.attend.n_kv_heads - 1);
    for (int cls = 0; cls < HDL_N_CLASSES; cls++)
        if (step->impl[cls] && (!cls || step->impl[1] != step->impl[0]))
            hdl_buf_printf(text, "%s%s", cls ? " | " : "  ", step->impl[cls]->name);
    if (step->op == HDL_OP_SUMMARISE)
        hdl_buf_printf(text, " %s of %d", hdl_plane_name(step->u.summarise.kind),
                       step->u.summarise.block_size);
    if (step->op == HDL_OP_ATTEND && step->u.attend.gather >= 0)
        hdl_buf_printf(text, "%s gathered page %d", step->u.attend.is_gathering ? " to and from" : " from",
                       step->u.attend.gather);
    if (step->op == HDL_OP_ATTEND && step->u.attend.stop.patience)
        hdl_buf_printf(text, "  %s", step->u.attend.visit_impl->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.complement)
        hdl_buf_printf(text, "  %s", step->u.attend.complement_impl[0]->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_scoring) explain_score(&step->u.attend, facts, text);
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_pooling)
        hdl_buf_printf(text, " + %s", step->u.attend.pool_impl->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.select_impl)
        hdl_buf_printf(text, " + %s", step->u.attend.select_impl->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_uniting)
        hdl_buf_printf(text, " + %s", step->u.attend.union_impl->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_resolving)
        hdl_buf_printf(text, " + %s", step->u.attend.resolve_impl->name);
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_ordering)
        hdl_buf_printf(text, " + %s", step->u.attend.order_impl->name);
    hdl_buf_puts(text, "\n");
}

/* Layers whose steps look alike are printed once. */
static void explain_steps(const hdl_schedule *schedule, hdl_buf *text)
{
    hdl_buf previous = {0}, current = {0};
    int32_t first = -1, i = 0;
    while (i <= schedule->n_steps) {
        int32_t layer = i < schedule->n_steps ? schedule->steps[i].layer : -2, begin = i;
        current.n = 0;
        for (; i < schedule->n_steps && schedule->steps[i].layer == layer; i++)
            explain_step(&schedule->steps[i], schedule->facts, &current);
        bool is_same = previous.n == current.n && previous.n &&
                       !memcmp(previous.data, current.data, (size_t)current.n);
        if (previous.n && !is_same) {
            int32_t last = begin ? schedule->steps[begin - 1].layer : -1;
            if (first >= 0)
                hdl_buf_printf(text, first == last ? "layer %d\n" : "layers %d..%d\n", first, last);
            hdl_buf_add(text, previous.data, previous.n);
        }
        if (!is_same) first = layer;
        previous.n = 0;
        hdl_buf_add(&previous, current.data ? current.data : "", current.n);
        if (layer == -2) break;
    }
    hdl_buf_deinit(&previous);
    hdl_buf_deinit(&current);
}

heddle_status hdl_explain(const hdl_schedule *schedule, const hdl_plan *plan, hdl_buf *text)
{
    const hdl_schedule_limits *limits = &schedule->limits;
    hdl_buf_printf(text, "plan %s: %s\n\n", plan->name, plan->about);
    explain_layers(schedule, HDL_ROUTE_PREFILL, "prefill", text);
    explain_bounds(schedule, HDL_ROUTE_PREFILL, text);
    explain_layers(schedule, HDL_ROUTE_DECODE, "decode", text);
    explain_bounds(schedule, HDL_ROUTE_DECODE, text);
    hdl_explain_retain(schedule, text);
    hdl_buf_printf(
        text,
        "\nschedule: %d steps; \"a | b\": a for one row a sequence (linear layers: up to %d rows), b for "
        "more\n",
        schedule->n_steps, HDL_FEW_ROWS);
    explain_steps(schedule, text);
    hdl_buf_printf(text, "\nrefused implementations\n%s",
                   schedule->refusals.n ? schedule->refusals.data : "  none\n");
    hdl_buf_printf(text, "\nbooked for %lld rows a step, %lld that may route, context %lld, %d threads%s\n",
                   (long long)limits->max_rows, (long long)schedule->slot_rows,
                   (long long)limits->max_context, limits->n_threads,
                   limits->is_invariant ? ", invariant" : "");
    for (int b = 1; b < HDL_N_BUFFERS; b++)
        if (schedule->buffer_bytes[b])
            hdl_buf_printf(text, "  %-8s %12lld bytes\n", hdl_buffer_name((hdl_buffer)b),
                           (long long)schedule->buffer_bytes[b]);
    hdl_buf_printf(text, "  %-8s %12lld bytes\n", "total", (long long)schedule->arena_bytes);
    return hdl_buf_status(text);
}
