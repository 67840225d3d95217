/* lower.c - one transformer, as steps: the model's layers around the plan's attention.
 *
 *   embed -> x
 *   layer: norm x -> normed; q,k,v; [norm q, k]; rotate q, k; append; attend (the plan);
 *          o into x, or into normed and through a norm; norm; gate, up; act; down the same way
 *   gated-delta layer: in place of q to attend: q, k, v and the gates; short convolution; delta rule; norm of
 *          each head, times silu of a gate of its own
 *   shared state (where the model has one): norm x -> normed; k,v; [norm k]; append, once for all layers
 *          above; index keys, where the plan reads them. The layers above run for the gathered rows only,
 *          whose residual stream is `last`: first their index queries.
 *   head:  norm of the gathered rows; logits */
#include "engine/engine_int.h"

typedef struct lowering {
    hdl_schedule *schedule;
    const hdl_model *model;
    const hdl_model_facts *facts;
    int32_t layer;
    hdl_buffer x; /* the residual stream: of all rows, or of the gathered ones */
} lowering;

static hdl_step new_step(const lowering *at, hdl_op op, hdl_buffer in, hdl_buffer out)
{
    return (hdl_step){.op = op,
                      .where = at->x == HDL_BUF_LAST ? HDL_WHERE_LOGITS : HDL_WHERE_ALL,
                      .layer = at->layer == HDL_MAX_LAYERS ? -1 : at->layer,
                      .in = in,
                      .out = {out}};
}

/* n_per_row: norms per row (heads of a QK norm), each of n_cols. */
static heddle_status add_norm(const lowering *at, hdl_buffer in, hdl_buffer residual, hdl_buffer out,
                              const hdl_tensor *weight, int64_t n_per_row, int64_t n_cols)
{
    hdl_step step = new_step(at, HDL_OP_NORM, in, out);
    step.in2 = residual;
    step.u.norm = (hdl_norm_args){.n_rows = n_per_row,
                                  .n_cols = n_cols,
                                  .x_stride = n_cols,
                                  .weight = weight->data,
                                  .offset = at->facts->norm_offset,
                                  .eps = at->facts->norm_eps,
                                  .out_stride = n_cols};
    return hdl_schedule_add(at->schedule, &step);
}

typedef struct part {
    const hdl_tensor *w, *bias;
    hdl_buffer out;
    bool accumulate;
} part;

static heddle_status add_linear(const lowering *at, hdl_buffer in, const part *parts, int32_t n_parts)
{
    hdl_step step = new_step(at, HDL_OP_LINEAR, in, HDL_BUF_NONE);
    hdl_linear_args *args = &step.u.linear;
    args->n_in = args->x_stride = parts[0].w->n_cols;
    args->n_parts = n_parts;
    args->is_invariant = at->schedule->limits.is_invariant;
    for (int32_t i = 0; i < n_parts; i++) {
        step.out[i] = parts[i].out;
        args->part[i] = (hdl_linear_part){.w = *parts[i].w,
                                          .bias = parts[i].bias ? parts[i].bias->data : NULL,
                                          .out_stride = parts[i].w->n_rows,
                                          .accumulate = parts[i].accumulate};
    }
    return hdl_schedule_add(at->schedule, &step);
}

/* A projection back to the residual stream: added to x, or through a norm of its own first. */
static heddle_status add_output(const lowering *at, hdl_buffer in, const hdl_tensor *w,
                                const hdl_tensor *bias, const hdl_tensor *post_norm)
{
    if (!at->facts->has_post_norms) return add_linear(at, in, &(part){w, bias, at->x, true}, 1);
    HDL_TRY(add_linear(at, in, &(part){w, bias, HDL_BUF_NORMED, false}, 1));
    return add_norm(at, HDL_BUF_NORMED, at->x, at->x, post_norm, 1, at->facts->hidden_size);
}

static heddle_status add_rope_table(const lowering *at, int32_t table, hdl_buffer buffer, int32_t n_heads,
                                    int32_t head_dim)
{
    const hdl_rope_facts *rope = &at->facts->ropes[table];
    if (rope->style == HDL_ROPE_NONE) return HEDDLE_OK;
    hdl_step step = new_step(at, HDL_OP_ROPE, buffer, buffer);
    step.rope = table;
    step.u.rope = (hdl_rope_args){.n_heads = n_heads,
                                  .head_dim = head_dim,
                                  .dim = rope->dim,
                                  .is_pairs = rope->style == HDL_ROPE_PAIRS,
                                  .x_stride = (int64_t)n_heads * head_dim};
    return hdl_schedule_add(at->schedule, &step);
}

static heddle_status add_rope(const lowering *at, hdl_buffer buffer, int32_t n_heads)
{
    return add_rope_table(at, at->facts->layers[at->layer].rope, buffer, n_heads, at->facts->head_dim);
}

static heddle_status add_append(const lowering *at)
{
    const hdl_model_facts *facts = at->facts;
    hdl_step step = new_step(at, HDL_OP_APPEND, HDL_BUF_K, HDL_BUF_NONE);
    step.in2 = HDL_BUF_V;
    step.group = facts->layers[at->layer].cache_group;
    step.layer_in_group = at->schedule->layer_in_group[at->layer];
    step.u.append = (hdl_append_args){.n_kv_heads = facts->n_kv_heads,
                                      .head_dim = facts->head_dim,
                                      .v_head_dim = facts->v_head_dim,
                                      .k_stride = (int64_t)facts->n_kv_heads * facts->head_dim,
                                      .v_stride = (int64_t)facts->n_kv_heads * facts->v_head_dim,
                                      .kv = {.dtype = at->schedule->limits.kv_dtype}};
    return hdl_schedule_add(at->schedule, &step);
}

/* The rows of K_INDEX into the plane of index keys of the layer's cache. */
static heddle_status add_index_plane(const lowering *at)
{
    int32_t dim = at->facts->index.dim;
    hdl_step step = new_step(at, HDL_OP_SUMMARISE, HDL_BUF_K_INDEX, HDL_BUF_NONE);
    step.group = at->facts->layers[at->layer].cache_group;
    step.layer_in_group = at->schedule->layer_in_group[at->layer];
    step.u.summarise = (hdl_summarise_args){
        .kind = HDL_PLANE_INDEX,
        .block_size = 1,
        .x_stride = dim,
        .kv = {.dtype = at->schedule->limits.kv_dtype, .plane = {{.n_heads = 1, .dim = dim}}}};
    HDL_TRY(hdl_schedule_add(at->schedule, &step));
    return hdl_lower_index_means(at->schedule, at->layer);
}

/* An index file's queries, their bias and keys, from what the layer's projections read (still in NORMED). */
static heddle_status lower_layer_index(const lowering *at, const hdl_layer_weights *w)
{
    const hdl_index_facts *index = &at->facts->index;
    int32_t rope = at->facts->layers[at->layer].index_rope;
    part parts[3] = {{&w->index_q, NULL, HDL_BUF_Q_INDEX, false},
                     {&w->index_bias, NULL, HDL_BUF_INDEX_BIAS, false},
                     {&w->index_k, NULL, HDL_BUF_K_INDEX, false}};
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, parts, 3));
    hdl_step norm = new_step(at, HDL_OP_NORM, HDL_BUF_K_INDEX, HDL_BUF_K_INDEX);
    norm.u.norm = (hdl_norm_args){.n_rows = 1,
                                  .n_cols = index->dim,
                                  .x_stride = index->dim,
                                  .weight = w->index_k_norm.data,
                                  .eps = index->norm_eps,
                                  .out_stride = index->dim};
    HDL_TRY(hdl_schedule_add(at->schedule, &norm));
    HDL_TRY(add_rope_table(at, rope, HDL_BUF_Q_INDEX, index->n_heads, index->dim));
    HDL_TRY(add_rope_table(at, rope, HDL_BUF_K_INDEX, 1, index->dim));
    return add_index_plane(at);
}

/* The queries of one group of the shared state's index into their place in Q_INDEX, from what is in NORMED, or
 * from the residual stream itself. */
static heddle_status add_index_queries(const lowering *at, const hdl_tensor *w, int32_t group)
{
    const hdl_index_facts *index = &at->facts->index;
    const hdl_tensor *norm = &at->model->shared.index_q_norm;
    int32_t n_heads = HDL_MAX(index->n_heads, 1);
    int64_t first = (int64_t)group * n_heads * index->dim,
            stride = (int64_t)HDL_MAX(index->n_groups, 1) * n_heads * index->dim;
    hdl_step step = new_step(at, HDL_OP_LINEAR, index->is_from_norm ? HDL_BUF_NORMED : at->x,
                             HDL_BUF_Q_INDEX);
    step.offset = first;
    step.u.linear = (hdl_linear_args){.n_in = w->n_cols,
                                      .x_stride = w->n_cols,
                                      .n_parts = 1,
                                      .is_invariant = at->schedule->limits.is_invariant,
                                      .part = {{.w = *w, .out_stride = stride}}};
    HDL_TRY(hdl_schedule_add(at->schedule, &step));
    for (int32_t h = 0; norm->data && h < n_heads; h++) {
        hdl_step scaled = new_step(at, HDL_OP_NORM, HDL_BUF_Q_INDEX, HDL_BUF_Q_INDEX);
        scaled.offset = first + (int64_t)h * index->dim;
        scaled.u.norm = (hdl_norm_args){.n_rows = 1,
                                        .n_cols = index->dim,
                                        .x_stride = stride,
                                        .weight = norm->data,
                                        .offset = at->facts->norm_offset,
                                        .eps = at->facts->norm_eps,
                                        .out_stride = stride};
        HDL_TRY(hdl_schedule_add(at->schedule, &scaled));
    }
    return HEDDLE_OK;
}

/* Whether this layer's input makes the queries of the group that it leads. */
static bool has_own_queries(const lowering *at)
{
    const hdl_layer_facts *layer = &at->facts->layers[at->layer];
    return at->facts->index.has_own_queries && layer->leads_group && layer->index_group &&
           hdl_schedule_keeps(at->schedule, at->facts->cross_from, HDL_PLANE_INDEX);
}

static hdl_step new_state_step(const lowering *at, hdl_op op, hdl_buffer in, hdl_buffer out)
{
    hdl_step step = new_step(at, op, in, out);
    step.group = -1;
    step.layer_in_group = at->schedule->layer_in_group[at->layer];
    return step;
}

/* Short convolution, then the recurrence; what the layer keeps of a sequence is hdl_delta_state_floats. */
static heddle_status add_recurrence(const lowering *at, const hdl_delta_weights *w)
{
    const hdl_delta_facts *delta = &at->facts->delta;
    int64_t n_cols = hdl_delta_cols(delta);
    hdl_step conv = new_state_step(at, HDL_OP_CONV, HDL_BUF_DELTA, HDL_BUF_DELTA);
    conv.u.conv = (hdl_conv_args){
        .n_cols = n_cols, .width = delta->conv_width, .weight = w->conv.data, .x_stride = n_cols};
    if (delta->conv_width) HDL_TRY(hdl_schedule_add(at->schedule, &conv));
    hdl_step rule = new_state_step(at, HDL_OP_DELTA, HDL_BUF_DELTA, HDL_BUF_ATTN);
    rule.in2 = HDL_BUF_DELTA_AB;
    rule.state_offset = hdl_delta_conv_floats(delta);
    rule.u.delta = (hdl_delta_args){.n_heads = delta->n_heads,
                                    .k_dim = delta->k_dim,
                                    .v_dim = delta->v_dim,
                                    .qkv_stride = n_cols,
                                    .ab_stride = 2 * delta->n_heads,
                                    .o_stride = (int64_t)delta->n_heads * delta->v_dim,
                                    .a_log = w->a_log.data,
                                    .dt_bias = w->dt_bias.data,
                                    .scale = delta->scale,
                                    .eps = delta->eps};
    return hdl_schedule_add(at->schedule, &rule);
}

/* W_o (norm(o) * silu(g)) of a gated-delta layer, added to the residual stream. */
static heddle_status lower_delta(const lowering *at)
{
    const hdl_delta_facts *delta = &at->facts->delta;
    const hdl_delta_weights *w = &at->model->deltas[at->layer];
    int64_t n_out = (int64_t)delta->n_heads * delta->v_dim;
    part parts[2] = {{&w->wqkv, NULL, HDL_BUF_DELTA, false}, {&w->wg, NULL, HDL_BUF_GATE, false}};
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, parts, 2));
    /* alone: with so few outputs it is not for every kernel */
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, &(part){&w->wab, NULL, HDL_BUF_DELTA_AB, false}, 1));
    HDL_TRY(add_recurrence(at, w));
    HDL_TRY(add_norm(at, HDL_BUF_ATTN, HDL_BUF_NONE, HDL_BUF_ATTN, &w->norm, delta->n_heads, delta->v_dim));
    hdl_step glu = new_step(at, HDL_OP_GLU, HDL_BUF_GATE, HDL_BUF_GATE);
    glu.in2 = HDL_BUF_ATTN;
    glu.u.glu = (hdl_glu_args){.n_cols = n_out, .stride = n_out};
    HDL_TRY(hdl_schedule_add(at->schedule, &glu));
    return add_output(at, HDL_BUF_GATE, &w->wo, NULL, NULL);
}

/* q, k, v, rotated; rows appended; what the plan makes of them; W_o into the residual stream. */
static heddle_status lower_attending(const lowering *at)
{
    const hdl_model_facts *facts = at->facts;
    const hdl_layer_weights *w = &at->model->layers[at->layer];
    bool has_kv = facts->layers[at->layer].has_kv;
    part qkv[3] = {{&w->wq, &w->bq, HDL_BUF_Q, false},
                   {&w->wk, &w->bk, HDL_BUF_K, false},
                   {&w->wv, &w->bv, HDL_BUF_V, false}};
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, qkv, has_kv ? 3 : 1));
    if (facts->layers[at->layer].has_qk_norm) {
        HDL_TRY(
            add_norm(at, HDL_BUF_Q, HDL_BUF_NONE, HDL_BUF_Q, &w->q_norm, facts->n_heads, facts->head_dim));
        if (has_kv)
            HDL_TRY(add_norm(at, HDL_BUF_K, HDL_BUF_NONE, HDL_BUF_K, &w->k_norm, facts->n_kv_heads,
                             facts->head_dim));
    }
    HDL_TRY(add_rope(at, HDL_BUF_Q, facts->n_heads));
    if (has_kv) {
        HDL_TRY(add_rope(at, HDL_BUF_K, facts->n_kv_heads));
        HDL_TRY(add_append(at));
        HDL_TRY(hdl_lower_summaries(at->schedule, at->layer));
    }
    if (facts->layers[at->layer].has_index && hdl_schedule_keeps(at->schedule, at->layer, HDL_PLANE_INDEX))
        HDL_TRY(lower_layer_index(at, w));
    if (has_own_queries(at))
        HDL_TRY(add_index_queries(at, &w->index_q, facts->layers[at->layer].index_group));
    HDL_TRY(hdl_lower_attention(at->schedule, at->layer));
    return add_output(at, HDL_BUF_ATTN, &w->wo, &w->bo, &w->post_attn_norm);
}

static heddle_status lower_layer(const lowering *at)
{
    const hdl_model_facts *facts = at->facts;
    const hdl_layer_weights *w = &at->model->layers[at->layer];
    HDL_TRY(add_norm(at, at->x, HDL_BUF_NONE, HDL_BUF_NORMED, &w->attn_norm, 1, facts->hidden_size));
    HDL_TRY(facts->layers[at->layer].is_delta ? lower_delta(at) : lower_attending(at));
    HDL_TRY(add_norm(at, at->x, HDL_BUF_NONE, HDL_BUF_NORMED, &w->ffn_norm, 1, facts->hidden_size));
    part ffn[2] = {{&w->w_gate, NULL, HDL_BUF_GATE, false}, {&w->w_up, NULL, HDL_BUF_UP, false}};
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, ffn, 2));
    hdl_step glu = new_step(at, HDL_OP_GLU, HDL_BUF_GATE, HDL_BUF_GATE);
    glu.in2 = HDL_BUF_UP;
    glu.u.glu = (hdl_glu_args){
        .n_cols = facts->n_ff, .stride = facts->n_ff, .is_gelu = facts->act == HDL_ACT_GELU_TANH};
    HDL_TRY(hdl_schedule_add(at->schedule, &glu));
    return add_output(at, HDL_BUF_GATE, &w->w_down, NULL, &w->post_ffn_norm);
}

/* Index keys, from the normed shared state or from the state itself. */
static heddle_status lower_index_keys(const lowering *at)
{
    const hdl_shared_weights *w = &at->model->shared;
    const hdl_index_facts *index = &at->facts->index;
    part keys = {&w->index_k, NULL, HDL_BUF_K_INDEX, false};
    HDL_TRY(add_linear(at, index->is_from_norm ? HDL_BUF_NORMED : at->x, &keys, 1));
    if (w->index_k_norm.data)
        HDL_TRY(
            add_norm(at, HDL_BUF_K_INDEX, HDL_BUF_NONE, HDL_BUF_K_INDEX, &w->index_k_norm, 1, index->dim));
    return add_index_plane(at);
}

/* K and V of the shared state into the cache of the first cross layer; from here on rows are gathered. */
static heddle_status lower_shared(lowering *at)
{
    const hdl_model_facts *facts = at->facts;
    const hdl_shared_weights *w = &at->model->shared;
    HDL_TRY(add_norm(at, at->x, HDL_BUF_NONE, HDL_BUF_NORMED, &w->norm, 1, facts->hidden_size));
    part kv[2] = {{&w->wk, NULL, HDL_BUF_K, false}, {&w->wv, NULL, HDL_BUF_V, false}};
    HDL_TRY(add_linear(at, HDL_BUF_NORMED, kv, 2));
    if (facts->has_shared_k_norm)
        HDL_TRY(
            add_norm(at, HDL_BUF_K, HDL_BUF_NONE, HDL_BUF_K, &w->k_norm, facts->n_kv_heads, facts->head_dim));
    HDL_TRY(add_append(at));
    HDL_TRY(hdl_lower_summaries(at->schedule, at->layer));
    bool has_index = hdl_schedule_keeps(at->schedule, at->layer, HDL_PLANE_INDEX);
    if (has_index) HDL_TRY(lower_index_keys(at));
    at->schedule->n_lower_steps = at->schedule->n_steps;
    at->x = HDL_BUF_LAST;
    if (!has_index) return HEDDLE_OK;
    HDL_TRY(add_norm(at, at->x, HDL_BUF_NONE, HDL_BUF_NORMED, &w->norm, 1, facts->hidden_size));
    HDL_TRY(add_index_queries(at, &w->index_q, 0));
    for (int32_t layer = facts->cross_from; layer < facts->n_layers && !facts->index.has_own_queries; layer++)
        if (facts->layers[layer].leads_group && facts->layers[layer].index_group)
            HDL_TRY(
                add_index_queries(at, &at->model->layers[layer].index_q, facts->layers[layer].index_group));
    return HEDDLE_OK;
}

static void book_buffers(hdl_schedule *schedule)
{
    const hdl_model_facts *facts = schedule->facts;
    int64_t rows = schedule->limits.max_rows * 4, last = schedule->limits.max_logit_rows * 4;
    hdl_schedule_book(schedule, HDL_BUF_X, rows * facts->hidden_size);
    hdl_schedule_book(schedule, HDL_BUF_NORMED, rows * facts->hidden_size);
    hdl_schedule_book(schedule, HDL_BUF_Q, rows * facts->n_heads * facts->head_dim);
    hdl_schedule_book(schedule, HDL_BUF_K, rows * facts->n_kv_heads * facts->head_dim);
    hdl_schedule_book(schedule, HDL_BUF_V, rows * facts->n_kv_heads * facts->v_head_dim);
    const hdl_delta_facts *delta = &facts->delta;
    int64_t delta_out = (int64_t)delta->n_heads * delta->v_dim;
    hdl_schedule_book(schedule, HDL_BUF_DELTA, rows * hdl_delta_cols(delta));
    hdl_schedule_book(schedule, HDL_BUF_DELTA_AB, rows * 2 * delta->n_heads);
    hdl_schedule_book(schedule, HDL_BUF_ATTN, rows * delta_out);
    hdl_schedule_book(schedule, HDL_BUF_GATE, rows * delta_out);
    hdl_schedule_book(schedule, HDL_BUF_ATTN, rows * facts->n_heads * facts->v_head_dim);
    hdl_schedule_book(schedule, HDL_BUF_GATE, rows * facts->n_ff);
    hdl_schedule_book(schedule, HDL_BUF_UP, rows * facts->n_ff);
    bool has_index = false;
    for (int32_t layer = 0; layer < facts->n_layers; layer++)
        has_index |= hdl_schedule_keeps(schedule, layer, HDL_PLANE_INDEX);
    if (has_index) {
        hdl_schedule_book(schedule, HDL_BUF_K_INDEX, rows * facts->index.dim);
        int64_t n_queries = (int64_t)HDL_MAX(facts->index.n_heads, 1) * HDL_MAX(facts->index.n_groups, 1),
                q_rows = facts->index.is_of_layers ? rows : last;
        hdl_schedule_book(schedule, HDL_BUF_Q_INDEX, q_rows * n_queries * facts->index.dim);
        hdl_schedule_book(schedule, HDL_BUF_INDEX_BIAS, facts->index.is_of_layers ? rows * n_queries : 0);
    }
    hdl_schedule_book(schedule, HDL_BUF_LAST, last * facts->hidden_size);
    hdl_schedule_book(schedule, HDL_BUF_LOGITS, last * facts->n_vocab);
    hdl_schedule_book(schedule, HDL_BUF_COS_SIN, rows * facts->n_ropes * HDL_MAX_ROPE_DIM);
}

static heddle_status lower_model(hdl_schedule *schedule, const hdl_model *model)
{
    const hdl_model_facts *facts = &model->facts;
    lowering at = {.schedule = schedule, .model = model, .facts = facts, .layer = -1, .x = HDL_BUF_X};
    hdl_step embed = new_step(&at, HDL_OP_EMBED, HDL_BUF_NONE, HDL_BUF_X);
    embed.u.embed = (hdl_embed_args){.table = model->token_embd, .scale = facts->embed_scale};
    HDL_TRY(hdl_schedule_add(schedule, &embed));
    for (at.layer = 0; at.layer < facts->n_layers; at.layer++) {
        if (at.layer == facts->cross_from) HDL_TRY(lower_shared(&at));
        HDL_TRY(lower_layer(&at));
    }
    if (at.x == HDL_BUF_X) schedule->n_lower_steps = schedule->n_steps;
    at.layer = HDL_MAX_LAYERS;
    at.x = HDL_BUF_LAST;
    HDL_TRY(
        add_norm(&at, HDL_BUF_LAST, HDL_BUF_NONE, HDL_BUF_LAST, &model->output_norm, 1, facts->hidden_size));
    HDL_TRY(add_linear(&at, HDL_BUF_LAST, &(part){&model->output, NULL, HDL_BUF_LOGITS, false}, 1));
    book_buffers(schedule);
    hdl_schedule_layout(schedule);
    return hdl_schedule_check_order(schedule);
}

enum { LOGIT_TILE_BYTES = 8 << 20, MAX_LOGIT_ROWS = 64, SPECULATIVE_ROWS = 8 };

static_assert((int)HDL_GATHERING_AUTO == HEDDLE_GATHERING_AUTO &&
                  (int)HDL_GATHERING_ALWAYS == HEDDLE_GATHERING_ALWAYS &&
                  (int)HDL_GATHERING_NEVER == HEDDLE_GATHERING_NEVER,
              "the public numbers");

heddle_status hdl_compile(hdl_schedule **out, const heddle_engine *engine, const hdl_plan *plan,
                          const heddle_session_options *options, int32_t max_seqs, int64_t max_rows)
{
    const hdl_model_facts *facts = &engine->model->facts;
    int64_t logit_rows = LOGIT_TILE_BYTES / ((int64_t)facts->n_vocab * 4);
    hdl_schedule_limits limits = {
        .max_rows = max_rows,
        .max_list_rows = options->plan_governs_all ? max_rows : HDL_MAX(max_seqs, SPECULATIVE_ROWS),
        .max_context = options->context_tokens,
        .max_logit_rows = HDL_MIN(HDL_MAX(logit_rows, 1), (int64_t)MAX_LOGIT_ROWS),
        .max_seqs = max_seqs,
        .n_threads = engine->n_threads,
        .is_invariant = options->is_invariant != 0,
        .gathering = (hdl_gathering)options->gathering,
        .kv_dtype = hdl_dtype_named(options->kv_type)};
    if (options->n_kept_plans < 0 || options->n_kept_plans > HDL_MAX_KEPT_PLANS)
        return HDL_FAIL(HEDDLE_E_INVALID, "%d kept plans: must be in 0..%d", options->n_kept_plans,
                        HDL_MAX_KEPT_PLANS);
    const hdl_plan *kept[HDL_MAX_KEPT_PLANS];
    for (int32_t i = 0; i < options->n_kept_plans; i++) kept[i] = options->kept_plans[i]->plan;
    limits.kept_plans = kept;
    limits.n_kept_plans = options->n_kept_plans;
    limits.max_list_rows = HDL_MIN(limits.max_list_rows, max_rows);
    HDL_TRY(hdl_schedule_new(out, plan, facts, &limits));
    heddle_status status = HEDDLE_OK;
    if (options->plan_governs_all && (*out)->retain_group >= 0)
        status = HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                          "plan %s evicts rows at the end of a prompt: its decode route cannot govern the "
                          "prompt's own rows (plan_governs_all); judge it by what comes after a prompt",
                          plan->name);
    if (!status) status = lower_model(*out, engine->model);
    if (status) {
        hdl_schedule_free(*out);
        *out = NULL;
    }
    return status;
}
