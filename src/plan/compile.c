/* compile.c - plan x model x device to a schedule: every check, choice and size happens here.
 *
 * The engine walks the model's layers and adds the steps that do not depend on the plan; this file
 * adds the plan's part of each layer (hdl_lower_attention), chooses implementations, books memory
 * and binds pointers. A layer's plan lowers, for each route, to a step for every list that is made and one that
 * attends to a list, or to a dense pass, which may make one as well:
 *
 *   dense                         attend
 *   dense + router                attend, observing, then select
 *   token_list + own mass router  attend into SPARE, observing, then select; attend the list
 *   token_list + other router     score a summary, [pool], select; attend the list
 *   a router of groups            score a summary, select; resolve the groups to their tokens
 *   a router and head routers     score and select for the KV heads of each, a range of them at a time
 *   a router with candidates      score and select the candidates first, then among them
 *   token_list, shared            attend the owner's list
 *   a list with its complement    attend the list and, by means of blocks, what it leaves out
 *   between two refreshes         an owner loads its kept list, then everybody attends lists */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "plan/schedule.h"

const char *hdl_buffer_name(hdl_buffer buffer)
{
    static const char *const names[HDL_N_BUFFERS] = {
        "-",          "x",        "normed", "q",       "k",       "v",      "attn",  "gate",   "up",
        "delta",      "delta_ab", "last",   "logits",  "cos_sin", "mass",   "spare", "q_tile", "q_index",
        "index_bias", "k_index",  "n_read", "allowed", "lists",   "retain", "work"};
    return names[buffer];
}

/* One more slot, as large as the largest, where a layer reads lists with its heads mapped. */
static void add_mapped_slot(hdl_schedule *schedule)
{
    bool is_needed = false;
    int64_t n_ids_max = 0;
    for (int r = 0; r < 2; r++)
        for (int32_t layer = 0; layer < schedule->facts->n_layers; layer++)
            is_needed |= schedule->routes[r].layers[layer].has_head_map;
    for (int32_t i = 0; i < schedule->n_slots; i++)
        n_ids_max = HDL_MAX(n_ids_max, schedule->slots[i].n_ids_max);
    schedule->mapped = is_needed ? schedule->n_slots++ : -1;
    if (is_needed)
        schedule->slots[schedule->mapped] = (hdl_selection){
            .block_size = 1, .n_lists = schedule->facts->n_kv_heads, .n_ids_max = n_ids_max};
}

/* KV heads that follow each other; n 0: all of them. */
typedef struct head_range {
    int32_t first, n;
} head_range;

/* Takes the first range out of a set of heads that is not empty. */
static head_range take_range(uint64_t *heads)
{
    head_range range = {.first = __builtin_ctzll(*heads)};
    for (int32_t h = range.first; h < 64 && *heads >> h & 1; h++) {
        *heads &= ~((uint64_t)1 << h);
        range.n++;
    }
    return range;
}

/* Lists of heads on the way to the layer's: those of the longest range of one router's. */
static void size_ranges(const hdl_schedule *schedule, const hdl_route_plan *route, int32_t layer,
                        int32_t *n_lists, int64_t *n_ids_max)
{
    const hdl_layer_plan *at = &route->layers[layer];
    int64_t context = schedule->limits.max_context;
    bool is_cut = at->n_head_routers && at->router.score != HDL_SCORE_MASS;
    for (int32_t i = is_cut ? -1 : 0; i < at->n_head_routers; i++) {
        const hdl_head_router *of_heads = &hdl_head_routers_of(route, layer)[HDL_MAX(i, 0)];
        uint64_t heads = i < 0 ? hdl_heads_of_layer_router(route, layer, schedule->facts->n_kv_heads)
                               : of_heads->heads;
        *n_ids_max = HDL_MAX(*n_ids_max, hdl_router_units(i < 0 ? &at->router : &of_heads->router, context));
        while (heads) {
            head_range range = take_range(&heads);
            *n_lists = HDL_MAX(*n_lists, range.n);
        }
    }
}

/* One more slot for lists on the way to others, of some KV heads, or a list and its distances, or groups: as large as
 * the largest. */
static void add_united_slot(hdl_schedule *schedule)
{
    int64_t n_ids_max = 0;
    int32_t n_lists = 0;
    for (int r = 0; r < 2; r++)
        for (int32_t layer = 0; layer < schedule->facts->n_layers; layer++) {
            const hdl_layer_plan *at = &schedule->routes[r].layers[layer];
            size_ranges(schedule, &schedule->routes[r], layer, &n_lists, &n_ids_max);
            const hdl_router_spec *routers[] = {at->has_router ? &at->router : NULL,
                                                at->has_candidates ? &at->candidates : NULL};
            for (int i = 0; i < 2; i++) {
                if (!routers[i]) continue;
                bool is_grouped = hdl_score_rows[routers[i]->score].is_grouped;
                if (is_grouped)
                    n_ids_max = HDL_MAX(n_ids_max,
                                        hdl_router_groups(routers[i], schedule->limits.max_context));
                if (is_grouped || routers[i]->n_united)
                    n_lists = HDL_MAX(n_lists, schedule->facts->n_kv_heads);
                if (!routers[i]->n_united && !routers[i]->n_slashes) continue;
                hdl_router_spec head = *routers[i];
                head.n_united = 0;
                if (head.n_slashes) n_lists = 2 * schedule->facts->n_kv_heads;
                head.top_k = HDL_MAX(head.top_k, head.n_slashes);
                head.n_slashes = 0;
                n_ids_max = HDL_MAX(n_ids_max, hdl_router_units(&head, schedule->limits.max_context));
            }
        }
    schedule->united = n_ids_max ? schedule->n_slots++ : -1;
    if (n_ids_max)
        schedule->slots[schedule->united] = (hdl_selection){
            .block_size = 1, .n_lists = n_lists, .n_ids_max = n_ids_max};
}

static int32_t add_slot(hdl_schedule *schedule, const hdl_router_spec *router)
{
    hdl_selection *slot = &schedule->slots[schedule->n_slots];
    int32_t block = hdl_router_list_block(router);
    *slot = (hdl_selection){.unit = block > 1 ? HDL_UNIT_BLOCK : HDL_UNIT_TOKEN,
                            .block_size = block,
                            .rows_per_list = router->tile,
                            .n_lists = router->is_per_kv_head ? schedule->facts->n_kv_heads : 1,
                            .n_ids_max = hdl_router_units(router, schedule->limits.max_context)};
    return schedule->n_slots++;
}

static void assign_slots(hdl_schedule *schedule)
{
    const hdl_model_facts *facts = schedule->facts;
    int32_t first_list = facts->n_layers;
    for (int r = 0; r < 2; r++)
        for (int32_t layer = 0; layer < facts->n_layers; layer++) {
            const hdl_layer_plan *at = &schedule->routes[r].layers[layer];
            schedule->slot_of_layer[r][layer] = schedule->candidates_of_layer[r][layer] = -1;
            if (!at->has_router) continue;
            first_list = HDL_MIN(first_list, layer);
            if (at->has_candidates)
                schedule->candidates_of_layer[r][layer] = add_slot(schedule, &at->candidates);
            schedule->slot_of_layer[r][layer] = add_slot(schedule, &at->router);
            hdl_selection *slot = &schedule->slots[schedule->slot_of_layer[r][layer]];
            const hdl_head_router *of_heads = hdl_head_routers_of(&schedule->routes[r], layer);
            for (int32_t i = 0; i < at->n_head_routers; i++)
                slot->n_ids_max = HDL_MAX(
                    slot->n_ids_max, hdl_router_units(&of_heads[i].router, schedule->limits.max_context));
            if (r == HDL_ROUTE_PREFILL) schedule->has_prefill_lists = true;
            if (r == HDL_ROUTE_DECODE && schedule->refresh > 1) {
                schedule->n_kept++;
                schedule->kept_ids_max = HDL_MAX(schedule->kept_ids_max, slot->n_ids_max * slot->n_lists);
            }
        }
    for (int r = 0; r < 2; r++)
        for (int32_t layer = 0; layer < facts->n_layers; layer++) {
            const hdl_layer_plan *at = &schedule->routes[r].layers[layer];
            if (at->stop.patience) schedule->slots[schedule->slot_of_layer[r][at->owner]].has_order = true;
        }
    add_mapped_slot(schedule);
    add_united_slot(schedule);
    int64_t row_bytes = (schedule->limits.max_context + 16) * 4;
    schedule->rows_per_list = 1;
    for (int32_t i = 0; i < schedule->n_slots; i++)
        schedule->rows_per_list = HDL_MAX(schedule->rows_per_list, schedule->slots[i].rows_per_list);
    for (int32_t i = 0; i < schedule->n_slots; i++)
        row_bytes = HDL_MAX(row_bytes, schedule->slots[i].n_lists * (schedule->limits.max_context + 16) * 4);
    schedule->tile_rows = HDL_MIN(HDL_MAX(HDL_TILE_BYTES / row_bytes, 1), (int64_t)HDL_MAX_TILE_ROWS);
    schedule->slot_rows = schedule->has_prefill_lists ? schedule->limits.max_rows
                                                      : schedule->limits.max_list_rows;
    if (first_list >= facts->cross_from) /* such rows come in tiles */
        schedule->slot_rows = HDL_MIN(schedule->limits.max_rows, schedule->limits.max_logit_rows);
    schedule->tile_rows = HDL_MIN(schedule->tile_rows, schedule->slot_rows);
}

heddle_status hdl_schedule_new(hdl_schedule **out, const hdl_plan *plan, const hdl_model_facts *facts,
                               const hdl_schedule_limits *limits)
{
    *out = NULL;
    hdl_schedule *schedule = hdl_calloc(1, sizeof *schedule);
    if (!schedule) return HEDDLE_E_NOMEM;
    schedule->limits = *limits;
    schedule->facts = facts;
    schedule->refresh = 1;
    heddle_status status = HEDDLE_OK;
    for (int r = 0; r < 2 && !status; r++)
        status = hdl_plan_resolve(plan, facts, (hdl_route)r, &schedule->routes[r]);
    int32_t n_in_group[HDL_MAX_GROUPS] = {0}, n_delta = 0;
    for (int32_t layer = 0; layer < facts->n_layers && !status; layer++) {
        const hdl_layer_facts *at = &facts->layers[layer];
        if (at->is_delta)
            schedule->layer_in_group[layer] = n_delta++;
        else if (at->kv_source == layer)
            schedule->layer_in_group[layer] = n_in_group[at->cache_group]++;
        else
            schedule->layer_in_group[layer] = schedule->layer_in_group[at->kv_source];
        const hdl_layer_plan *decode = &schedule->routes[HDL_ROUTE_DECODE].layers[layer];
        if (!decode->has_router) continue;
        if (schedule->refresh > 1 && decode->router.refresh != schedule->refresh)
            status = HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                              "plan %s: routers refresh every %d and every %d steps; one interval "
                              "a plan is supported",
                              plan->source, schedule->refresh, decode->router.refresh);
        schedule->refresh = decode->router.refresh;
    }
    if (status) {
        hdl_schedule_free(schedule);
        return status;
    }
    assign_slots(schedule);
    status = hdl_schedule_find_planes(schedule, plan);
    if (!status) status = hdl_retain_prepare(schedule, plan);
    schedule->limits.kept_plans = NULL;
    if (status)
        hdl_schedule_free(schedule);
    else
        *out = schedule;
    return status;
}

void hdl_schedule_free(hdl_schedule *schedule)
{
    if (!schedule) return;
    hdl_free(schedule->steps);
    hdl_pages_free(schedule->arena, schedule->arena_bytes);
    hdl_buf_deinit(&schedule->refusals);
    hdl_free(schedule);
}

void hdl_schedule_book(hdl_schedule *schedule, hdl_buffer buffer, int64_t n_bytes)
{
    schedule->buffer_bytes[buffer] = HDL_MAX(schedule->buffer_bytes[buffer], HDL_ALIGN_UP(n_bytes, 64));
}

/* Arguments as large as a class will ever pass, for why_not and workspace. */
static void size_args(const hdl_schedule *schedule, const hdl_step *step, hdl_class cls, hdl_step *sized)
{
    const hdl_schedule_limits *limits = &schedule->limits;
    int64_t rows = step->where == HDL_WHERE_LOGITS ? limits->max_logit_rows : limits->max_rows;
    if (cls == HDL_CLASS_ONE) rows = HDL_MIN(rows, HDL_FEW_ROWS);
    *sized = *step;
    switch (step->op) {
        case HDL_OP_EMBED: sized->u.embed.n_rows = rows; break;
        case HDL_OP_NORM: sized->u.norm.n_rows *= rows; break; /* rows per row: heads of a QK norm */
        case HDL_OP_LINEAR: sized->u.linear.n_rows = rows; break;
        case HDL_OP_ROPE: sized->u.rope.n_rows = rows; break;
        case HDL_OP_APPEND: sized->u.append.n_rows = rows; break;
        case HDL_OP_SUMMARISE: sized->u.summarise.n_rows = rows; break;
        case HDL_OP_GLU: sized->u.glu.n_rows = rows; break;
        case HDL_OP_CONV: sized->u.conv.n_rows = rows; break;
        case HDL_OP_DELTA: sized->u.delta.n_rows = rows; break;
        case HDL_OP_ATTEND: {
            hdl_attend_args *args = &sized->u.attend.args;
            bool is_upper = step->layer >= schedule->facts->cross_from;
            rows = is_upper ? HDL_MIN(limits->max_rows, limits->max_logit_rows) : limits->max_rows;
            args->n_seqs = limits->max_seqs;
            args->n_rows = cls == HDL_CLASS_ONE ? limits->max_seqs : rows;
            args->max_q_len = cls == HDL_CLASS_ONE ? 1 : rows;
            if (step->u.attend.is_selecting && cls == HDL_CLASS_MANY)
                args->n_rows = args->max_q_len = schedule->tile_rows;
            args->max_kv_len = args->mass_stride = limits->max_context;
            hdl_score_args *score = &sized->u.attend.score;
            score->n_seqs = args->n_seqs;
            score->n_rows = HDL_MIN(args->n_rows, schedule->tile_rows);
            score->max_q_len = args->max_q_len;
            score->max_kv_len = limits->max_context;
            int32_t rows_per_list = step->u.attend.slot < 0
                                        ? 1
                                        : schedule->slots[step->u.attend.slot].rows_per_list;
            if (step->u.attend.is_selecting && rows_per_list > 1) {
                /* a tile's mean query is a row of its own */
                score->max_q_len = score->is_shared ? rows_per_list : 1;
                score->n_seqs = (int32_t)HDL_MAX(schedule->tile_rows, (int64_t)score->n_seqs);
            }
            break;
        }
        default: break;
    }
}

/* A refusal is told once, however many layers met it. */
static void note_refusals(hdl_schedule *schedule, const hdl_buf *why)
{
    const char *line = why->data;
    while (line && *line) {
        int64_t n = (int64_t)strcspn(line, "\n") + 1;
        char text[256];
        snprintf(text, sizeof text, "%.*s", (int)n, line);
        if (!schedule->refusals.data || !strstr(schedule->refusals.data, text))
            hdl_buf_puts(&schedule->refusals, text);
        line += HDL_MIN(n, (int64_t)strlen(line));
    }
}

heddle_status hdl_schedule_choose(hdl_schedule *schedule, hdl_op op, const void *args, const hdl_impl **out)
{
    hdl_buf why = {0};
    *out = hdl_choose(op, args, &why);
    note_refusals(schedule, &why);
    hdl_buf_deinit(&why);
    if (!*out) return HEDDLE_E_UNSUPPORTED;
    if ((*out)->workspace)
        hdl_schedule_book(schedule, HDL_BUF_WORK, (*out)->workspace(args, schedule->limits.n_threads));
    return HEDDLE_OK;
}

static const void *args_of(const hdl_step *step)
{
    return step->op == HDL_OP_ATTEND ? (const void *)&step->u.attend.args : (const void *)&step->u;
}

static heddle_status choose_router(hdl_schedule *schedule, const hdl_step *step, hdl_attend_step *added)
{
    const hdl_attend_step *attend = &step->u.attend;
    hdl_step sized;
    for (int cls = 0; cls < HDL_N_CLASSES && attend->is_scoring; cls++) {
        size_args(schedule, step, (hdl_class)cls, &sized);
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_SCORE, &sized.u.attend.score, &added->score_impl[cls]));
    }
    if (attend->is_pooling)
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_POOL, &attend->pool, &added->pool_impl));
    if (attend->is_selecting)
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_SELECT, &attend->select, &added->select_impl));
    hdl_union_args unite = {.lists = attend->select.out, .out = &schedule->slots[HDL_MAX(attend->slot, 0)]};
    if (attend->is_uniting) HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_UNION, &unite, &added->union_impl));
    if (attend->is_resolving)
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_RESOLVE, &attend->resolve, &added->resolve_impl));
    hdl_order_args order = {.list = attend->select.out};
    if (attend->is_ordering) HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_ORDER, &order, &added->order_impl));
    return HEDDLE_OK;
}

/* An attention that reads what its list leaves out as well. */
static heddle_status choose_complement(hdl_schedule *schedule, const hdl_step *step, hdl_attend_step *added)
{
    for (int cls = 0; cls < HDL_N_CLASSES; cls++) {
        hdl_step sized;
        size_args(schedule, step, (hdl_class)cls, &sized);
        hdl_complement_args args = {.attend = sized.u.attend.args, .block_size = added->complement};
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_COMPLEMENT, &args, &added->complement_impl[cls]));
    }
    return HEDDLE_OK;
}

/* An attention that stops where the rest of its list does not matter. */
static heddle_status choose_visit(hdl_schedule *schedule, const hdl_step *step, hdl_attend_step *added)
{
    hdl_step sized;
    size_args(schedule, step, HDL_CLASS_MANY, &sized);
    hdl_visit_args args = {.attend = sized.u.attend.args, .stop = added->stop};
    hdl_schedule_book(schedule, HDL_BUF_N_READ, schedule->limits.max_rows * args.attend.n_kv_heads * 4);
    return hdl_schedule_choose(schedule, HDL_OP_VISIT, &args, &added->visit_impl);
}

/* A dense pass over shared rows may have to leave tokens out: it then reads a list of the others. */
static heddle_status choose_listed(hdl_schedule *schedule, const hdl_step *step, hdl_attend_step *added)
{
    const hdl_schedule_limits *limits = &schedule->limits;
    if (step->layer < schedule->facts->cross_from || added->args.has_selection || added->args.has_mass)
        return HEDDLE_OK;
    for (int cls = 0; cls < HDL_N_CLASSES; cls++) {
        hdl_step sized;
        size_args(schedule, step, (hdl_class)cls, &sized);
        sized.u.attend.args.has_selection = true;
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_ATTEND, &sized.u.attend.args, &added->listed_impl[cls]));
    }
    hdl_schedule_book(schedule, HDL_BUF_ALLOWED, (limits->max_context + limits->max_logit_rows) * 4);
    return HEDDLE_OK;
}

heddle_status hdl_schedule_add(hdl_schedule *schedule, const hdl_step *step)
{
    if (schedule->n_steps == schedule->capacity) {
        int32_t capacity = HDL_MAX(64, schedule->capacity * 2);
        hdl_step *grown = hdl_realloc(schedule->steps, schedule->n_steps, capacity, sizeof *grown);
        if (!grown) return HEDDLE_E_NOMEM;
        schedule->steps = grown;
        schedule->capacity = capacity;
    }
    hdl_step *added = &schedule->steps[schedule->n_steps], sized;
    *added = *step;
    bool is_visiting = step->op == HDL_OP_ATTEND && step->u.attend.stop.patience > 0;
    bool is_completing = step->op == HDL_OP_ATTEND && step->u.attend.complement > 0;
    if (is_visiting) HDL_TRY(choose_visit(schedule, step, &added->u.attend));
    if (is_completing) HDL_TRY(choose_complement(schedule, step, &added->u.attend));
    if (step->op != HDL_OP_ATTEND || (step->u.attend.is_attending && !is_visiting && !is_completing))
        for (int cls = 0; cls < HDL_N_CLASSES; cls++) {
            size_args(schedule, step, (hdl_class)cls, &sized);
            HDL_TRY(hdl_schedule_choose(schedule, step->op, args_of(&sized), &added->impl[cls]));
        }
    if (step->op == HDL_OP_ATTEND) HDL_TRY(choose_router(schedule, step, &added->u.attend));
    if (step->op == HDL_OP_ATTEND && step->u.attend.is_attending)
        HDL_TRY(choose_listed(schedule, step, &added->u.attend));
    schedule->n_steps++;
    return HEDDLE_OK;
}

/* The step that attends in `layer`; the caller adds what makes or reads a list. */
hdl_step hdl_attend_step_of(const hdl_schedule *schedule, int32_t layer, hdl_route route)
{
    const hdl_model_facts *facts = schedule->facts;
    const hdl_layer_facts *at = &facts->layers[layer];
    hdl_step step = {.op = HDL_OP_ATTEND,
                     .where = HDL_WHERE_ROUTE,
                     .route = route,
                     .layer = layer,
                     .in = HDL_BUF_Q,
                     .out = {HDL_BUF_ATTN}};
    step.u.attend = (hdl_attend_step){.is_attending = true,
                                      .group = at->cache_group,
                                      .layer_in_group = schedule->layer_in_group[layer],
                                      .slot = -1,
                                      .candidate_slot = -1,
                                      .gather = -1,
                                      .kept = -1};
    step.u.attend.args = (hdl_attend_args){.n_heads = facts->n_heads,
                                           .n_kv_heads = facts->n_kv_heads,
                                           .head_dim = facts->head_dim,
                                           .v_head_dim = facts->v_head_dim,
                                           .kv_dtype = schedule->limits.kv_dtype,
                                           .q_stride = (int64_t)facts->n_heads * facts->head_dim,
                                           .o_stride = (int64_t)facts->n_heads * facts->v_head_dim,
                                           .scale = facts->attn_scale,
                                           .soft_cap = facts->attn_soft_cap,
                                           .window = at->window,
                                           .n_mass_lists = 1,
                                           .is_invariant = schedule->limits.is_invariant};
    return step;
}

/* What a router asks its scores to be multiplied by, against the shrinking of means of `entry` tokens. */
static float length_scale(const hdl_router_spec *router, int32_t entry)
{
    return router->is_scaled_by_length ? sqrtf((float)entry) : 1;
}

/* The score row: its source, and from tokens or small blocks to the units that are chosen. */
static void add_score(hdl_schedule *schedule, int32_t layer, hdl_attend_step *attend,
                      const hdl_router_spec *router, int32_t n_lists)
{
    const hdl_score_row *row = &hdl_score_rows[router->score];
    const hdl_model_facts *facts = schedule->facts;
    int64_t stride = schedule->limits.max_context + 16;
    /* patterns and blocks come by unit, tokens are pooled to units where blocks are chosen */
    int32_t entry = row->is_by_block                ? router->block / row->entries_per_block
                    : row->plane || !row->is_scored ? 1
                                                    : router->block;
    bool is_index = row->rule == HDL_RULE_INDEX && row->is_scored,
         is_of_layer = is_index && facts->index.is_of_layers;
    int32_t n_queries = HDL_MAX(facts->index.n_heads, 1), n_groups = HDL_MAX(facts->index.n_groups, 1);
    int64_t group_floats = (int64_t)n_queries * facts->index.dim;
    int32_t first = attend->first_kv_head, n_kv_heads = attend->n_kv_heads ? n_lists : facts->n_kv_heads,
            gqa_group = facts->n_heads / facts->n_kv_heads;
    attend->q_offset = is_index ? facts->layers[layer].index_group * group_floats
                                : (int64_t)first * gqa_group * facts->head_dim;
    attend->is_scoring = row->is_scored;
    attend->score = (hdl_score_args){.n_heads = is_index ? n_queries : n_kv_heads * gqa_group,
                                     .n_kv_heads = is_index ? 1 : n_kv_heads,
                                     .first_kv_head = first,
                                     .head_dim = is_index ? facts->index.dim : facts->head_dim,
                                     .n_lists = n_lists,
                                     .q_stride = is_index ? n_groups * group_floats : attend->args.q_stride,
                                     .scale = is_of_layer ? facts->index.scale
                                              : is_index  ? 1
                                                          : facts->attn_scale * length_scale(router, entry),
                                     .rule = is_of_layer ? HDL_RULE_DOT : row->rule,
                                     .has_bias = is_of_layer,
                                     .plane = row->plane,
                                     .measure = router->measure,
                                     .reduce = is_of_layer ? HDL_REDUCE_MAX : router->heads,
                                     .block_size = entry,
                                     .stride = router->stride,
                                     .seed = router->seed,
                                     .has_candidates = attend->candidate_slot >= 0,
                                     .is_shared = router->tile_by != HDL_TILE_BY_QUERY_MEAN,
                                     .rows = router->tile_by == HDL_TILE_BY_MAX ? HDL_REDUCE_MAX
                                                                                : HDL_REDUCE_SUM,
                                     .score_stride = stride,
                                     .is_invariant = schedule->limits.is_invariant};
    attend->is_pooling = entry < router->block && router->score != HDL_SCORE_NONE;
    attend->pool = (hdl_pool_args){.n_lists = n_lists,
                                   .n = router->block / entry,
                                   .pad = row->rule == HDL_RULE_PAIRS && row->is_scored,
                                   .entry_size = entry,
                                   .reduce = router->pool};
    hdl_schedule_book(schedule, HDL_BUF_MASS,
                      schedule->tile_rows * n_lists * stride * (router->n_slashes ? 8 : 4));
}

/* Rows that see at most so many tokens take all of them, whatever their scores are. */
static int64_t all_below(const hdl_router_spec *router, const head_range *range)
{
    int64_t least = router->top_k; /* of the heads */
    if (router->n_slashes) least = HDL_MIN(least, router->n_slashes);
    for (int32_t h = 0; h < router->n_head_units; h++)
        if (!range->n || (h >= range->first && h < range->first + range->n))
            least = HDL_MIN(least, router->head_units[h] * router->block);
    int64_t all = router->block > 1 ? least : least + router->n_sink + router->window;
    bool has_width = router->select == HDL_SELECT_TOP_K || router->select == HDL_SELECT_BEAM;
    return has_width ? HDL_MAX(all, router->dense_below) : router->dense_below;
}

/* Turns a step into one that makes a list, or those of a range of KV heads. */
static void add_router(hdl_schedule *schedule, hdl_step *step, const hdl_router_spec *router, int32_t slot,
                       int32_t candidate_slot, head_range range)
{
    const hdl_schedule_limits *limits = &schedule->limits;
    hdl_attend_step *attend = &step->u.attend;
    hdl_selection *list = &schedule->slots[router->n_united ? schedule->united : slot];
    int32_t n_lists = range.n ? range.n : list->n_lists;
    attend->first_kv_head = range.first;
    attend->n_kv_heads = range.n;
    attend->is_selecting = true;
    attend->is_uniting = router->n_united > 0 || router->n_slashes > 0;
    attend->is_resolving = hdl_score_rows[router->score].is_grouped;
    attend->n_slashes = router->n_slashes;
    attend->is_ordering = list->has_order;
    attend->slot = slot;
    attend->candidate_slot = candidate_slot;
    attend->args.has_mass = router->score == HDL_SCORE_MASS;
    attend->args.n_mass_lists = n_lists;
    attend->args.mass_reduce = router->heads;
    add_score(schedule, step->layer, attend, router, n_lists);
    attend->select = (hdl_select_args){.n_rows = schedule->tile_rows,
                                       .n_lists = n_lists,
                                       .score_stride = limits->max_context,
                                       .max_visible = limits->max_context,
                                       .kind = router->select,
                                       .p_rule = router->p_rule,
                                       .p = router->p,
                                       .threshold = router->threshold,
                                       .top_k = (router->top_k + router->block - 1) / router->block,
                                       .list_top_k = router->n_head_units ? router->head_units + range.first
                                                                          : NULL,
                                       .n_sink = router->n_sink,
                                       .window = router->window,
                                       .block_size = router->block,
                                       .dense_below = router->dense_below,
                                       .has_candidates = candidate_slot >= 0,
                                       .out = list};
    if (attend->is_resolving) { /* what is forced is named by tokens, behind the choice of groups */
        attend->resolve = (hdl_resolve_args){
            .block_size = router->block, .n_sink = router->n_sink, .window = router->window};
        attend->select.n_sink = attend->select.window = 0;
    }
    attend->all_below = attend->is_ordering
                            ? 0
                            : all_below(router, &range); /* all of it in an order needs scores */
    if (router->tile > 1 && router->tile_by == HDL_TILE_BY_QUERY_MEAN)
        hdl_schedule_book(schedule, HDL_BUF_Q_TILE, schedule->tile_rows * attend->score.q_stride * 4);
    if (hdl_score_rows[router->score].rule == HDL_RULE_INDEX && attend->is_scoring)
        step->in = HDL_BUF_Q_INDEX;
}

static heddle_status add_list_attend(hdl_schedule *schedule, int32_t layer, hdl_route route, int32_t slot,
                                     int32_t kept)
{
    hdl_step step = hdl_attend_step_of(schedule, layer, route);
    const hdl_layer_plan *at = &schedule->routes[HDL_MIN(route, HDL_ROUTE_DECODE)].layers[layer];
    if (at->has_head_map) step.u.attend.head_map = at->head_map;
    step.u.attend.args.has_selection = true;
    step.u.attend.args.selection_unit = schedule->slots[slot].unit;
    step.u.attend.args.rows_per_list = schedule->slots[slot].rows_per_list;
    step.u.attend.slot = slot;
    step.u.attend.kept = kept;
    step.u.attend.is_kept = kept >= 0;
    step.u.attend.stop = at->stop;
    step.u.attend.complement = at->complement;
    if (route == HDL_ROUTE_DECODE)
        step.u.attend.gather = hdl_gather_of(schedule, layer, &step.u.attend.is_gathering);
    return hdl_schedule_add(schedule, &step);
}

/* A step that only makes a list, from a summary or a pattern. */
static hdl_step list_maker(hdl_schedule *schedule, int32_t layer, hdl_route route,
                           const hdl_router_spec *router, int32_t slot, int32_t candidate_slot, int32_t kept,
                           head_range range)
{
    hdl_step step = hdl_attend_step_of(schedule, layer, route);
    step.out[0] = HDL_BUF_NONE;
    step.u.attend.kept = kept;
    step.u.attend.is_attending = false;
    add_router(schedule, &step, router, slot, candidate_slot, range);
    return step;
}

/* A router's lists of some KV heads, a range of them a step; is_last: they complete the layer's. */
static heddle_status add_heads(hdl_schedule *schedule, int32_t layer, hdl_route route,
                               const hdl_router_spec *router, uint64_t heads, bool is_last)
{
    bool is_observed = schedule->routes[route].layers[layer].router.score == HDL_SCORE_MASS;
    while (heads) {
        head_range range = take_range(&heads);
        hdl_step step = list_maker(schedule, layer, route, router, schedule->slot_of_layer[route][layer], -1,
                                   -1, range);
        step.u.attend.is_replacing = is_observed;
        step.u.attend.is_partial = heads || !is_last;
        HDL_TRY(hdl_schedule_add(schedule, &step));
    }
    return HEDDLE_OK;
}

/* The lists of the head routers' heads, each router's after the one before. */
static heddle_status add_head_routers(hdl_schedule *schedule, int32_t layer, hdl_route route)
{
    const hdl_route_plan *plan = &schedule->routes[route];
    int32_t n = plan->layers[layer].n_head_routers;
    for (int32_t i = 0; i < n; i++) {
        const hdl_head_router *of_heads = &hdl_head_routers_of(plan, layer)[i];
        HDL_TRY(add_heads(schedule, layer, route, &of_heads->router, of_heads->heads, i + 1 == n));
    }
    return HEDDLE_OK;
}

/* The steps that make the layer's list by its router; *is_done: its dense pass attended on the way. */
static heddle_status lower_router(hdl_schedule *schedule, int32_t layer, hdl_route route, int32_t kept,
                                  bool *is_done)
{
    const hdl_layer_plan *at = &schedule->routes[route].layers[layer];
    const int32_t *slots = schedule->slot_of_layer[route];
    int32_t candidates = schedule->candidates_of_layer[route][layer];
    bool is_dense = at->op == HDL_OPERATOR_DENSE;
    const head_range all = {0};
    *is_done = false;
    if (at->has_candidates) {
        hdl_step step = list_maker(schedule, layer, route, &at->candidates, candidates, -1, -1, all);
        HDL_TRY(hdl_schedule_add(schedule, &step));
    }
    if (at->candidate_owner >= 0)
        candidates = at->is_of_pool ? schedule->candidates_of_layer[route][at->candidate_owner]
                                    : slots[at->candidate_owner];
    if (at->router.score != HDL_SCORE_MASS && at->n_head_routers)
        return add_heads(
            schedule, layer, route, &at->router,
            hdl_heads_of_layer_router(&schedule->routes[route], layer, schedule->facts->n_kv_heads), false);
    if (at->router.score != HDL_SCORE_MASS) {
        hdl_step step = list_maker(schedule, layer, route, &at->router, slots[layer], candidates, kept, all);
        return hdl_schedule_add(schedule, &step);
    }
    hdl_step step = hdl_attend_step_of(schedule, layer, route);
    step.u.attend.kept = kept;
    add_router(schedule, &step, &at->router, slots[layer], -1, all);
    step.u.attend.is_partial = at->n_head_routers > 0;
    if (!is_dense) {
        step.out[0] = HDL_BUF_SPARE;
        hdl_schedule_book(schedule, HDL_BUF_SPARE, schedule->tile_rows * step.u.attend.args.o_stride * 4);
    }
    *is_done = is_dense;
    return hdl_schedule_add(schedule, &step);
}

/* kept: this owner's number among the plan's list makers, -1 without refresh. */
static heddle_status lower_fresh(hdl_schedule *schedule, int32_t layer, hdl_route route, int32_t kept)
{
    const hdl_layer_plan *at = &schedule->routes[route].layers[layer];
    bool is_done = false;
    if (at->has_router) HDL_TRY(lower_router(schedule, layer, route, kept, &is_done));
    HDL_TRY(add_head_routers(schedule, layer, route));
    if (is_done) return HEDDLE_OK;
    if (at->op != HDL_OPERATOR_DENSE)
        return add_list_attend(schedule, layer, route, schedule->slot_of_layer[route][at->owner], -1);
    hdl_step step = hdl_attend_step_of(schedule, layer, route);
    return hdl_schedule_add(schedule, &step);
}

static heddle_status lower_routes(hdl_schedule *schedule, int32_t layer)
{
    const hdl_layer_plan *decode = &schedule->routes[HDL_ROUTE_DECODE].layers[layer];
    const int32_t *slots = schedule->slot_of_layer[HDL_ROUTE_DECODE];
    int32_t kept = -1;
    if (schedule->refresh > 1 && decode->has_router) {
        kept = 0;
        for (int32_t below = 0; below < layer; below++)
            kept += schedule->routes[HDL_ROUTE_DECODE].layers[below].has_router;
    }
    HDL_TRY(lower_fresh(schedule, layer, HDL_ROUTE_PREFILL, -1));
    HDL_TRY(lower_fresh(schedule, layer, HDL_ROUTE_DECODE, kept));
    if (schedule->refresh <= 1) return HEDDLE_OK;
    if (decode->has_router) return add_list_attend(schedule, layer, HDL_ROUTE_REUSE, slots[layer], kept);
    if (decode->op != HDL_OPERATOR_DENSE)
        return add_list_attend(schedule, layer, HDL_ROUTE_REUSE, slots[decode->owner], -1);
    hdl_step step = hdl_attend_step_of(schedule, layer, HDL_ROUTE_REUSE);
    return hdl_schedule_add(schedule, &step);
}

heddle_status hdl_lower_attention(hdl_schedule *schedule, int32_t layer)
{
    HDL_TRY(lower_routes(schedule, layer));
    return hdl_lower_retain(schedule, layer);
}

void hdl_schedule_layout(hdl_schedule *schedule)
{
    int64_t at = 0;
    hdl_schedule_book(schedule, HDL_BUF_LISTS, hdl_schedule_place_slots(schedule));
    for (int b = 0; b < HDL_N_BUFFERS; b++) {
        schedule->buffer_offset[b] = at;
        at += schedule->buffer_bytes[b] ? schedule->buffer_bytes[b] + 64 : 0; /* a line between two buffers */
    }
    schedule->arena_bytes = at;
}

float *hdl_schedule_at(const hdl_schedule *schedule, hdl_buffer buffer)
{
    return buffer == HDL_BUF_NONE ? NULL : (float *)(schedule->arena + schedule->buffer_offset[buffer]);
}

static void bind_step(const hdl_schedule *schedule, hdl_step *step)
{
    float *in = hdl_schedule_at(schedule, step->in), *in2 = hdl_schedule_at(schedule, step->in2);
    float *out = hdl_schedule_at(schedule, step->out[0]);
    switch (step->op) {
        case HDL_OP_EMBED: step->u.embed.out = out; break;
        case HDL_OP_NORM:
            step->u.norm.x = in + step->offset;
            step->u.norm.residual = in2;
            step->u.norm.out = out + step->offset;
            break;
        case HDL_OP_LINEAR:
            step->u.linear.x = in;
            for (int32_t i = 0; i < step->u.linear.n_parts; i++)
                step->u.linear.part[i].out = hdl_schedule_at(schedule, step->out[i]) + step->offset;
            break;
        case HDL_OP_ROPE: step->u.rope.x = in; break;
        case HDL_OP_APPEND:
            step->u.append.k = in;
            step->u.append.v = in2;
            break;
        case HDL_OP_GLU:
            step->u.glu.gate = in;
            step->u.glu.up = in2;
            break;
        case HDL_OP_SUMMARISE: step->u.summarise.x = in; break;
        case HDL_OP_CONV: step->u.conv.x = in; break;
        case HDL_OP_DELTA:
            step->u.delta.qkv = in;
            step->u.delta.ab = in2;
            step->u.delta.o = out;
            break;
        case HDL_OP_ATTEND:
            step->u.attend.args.q = in;
            step->u.attend.score.q = in + step->u.attend.q_offset;
            step->u.attend.args.o = out;
            break;
        case HDL_OP_COMPACT:
            step->u.retain.args.q = in;
            step->u.retain.args.o = out;
            break;
        default: HDL_ASSERT(false);
    }
}

heddle_status hdl_schedule_bind(hdl_schedule *schedule)
{
    HDL_ASSERT(!schedule->arena);
    schedule->arena = hdl_pages_alloc(schedule->arena_bytes);
    if (!schedule->arena) return HEDDLE_E_NOMEM;
    hdl_schedule_bind_slots(schedule);
    hdl_retain_bind(schedule);
    const hdl_linear_args *next = NULL;
    for (int32_t i = 2 * schedule->n_steps - 1; i >= 0; i--) { /* twice: the last one's next is the first */
        hdl_step *step = &schedule->steps[i % schedule->n_steps];
        step->next = next;
        if (step->op == HDL_OP_LINEAR) next = &step->u.linear;
    }
    for (int32_t i = 0; i < schedule->n_steps; i++) bind_step(schedule, &schedule->steps[i]);
    return HEDDLE_OK;
}
