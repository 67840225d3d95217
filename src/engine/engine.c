/* engine.c - opening a model, and what can be asked of it. */
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/pool.h"
#include "engine/engine_int.h"
#include "model/index_file.h"
#include "plan/presets.h"

const char *heddle_version(void)
{
    return "0.1.0";
}

const char *heddle_status_name(heddle_status status)
{
    return hdl_status_name(status);
}

const char *heddle_last_error(void)
{
    return hdl_last_error();
}

void heddle_string_free(char *text)
{
    hdl_free(text);
}

void heddle_set_log(heddle_log_fn fn, void *user)
{
    hdl_set_log(fn, user);
}

void heddle_engine_options_default(heddle_engine_options *options)
{
    if (options) *options = (heddle_engine_options){.struct_size = sizeof *options};
}

/* ---- what the weights are ---- */

typedef struct weight_census {
    int64_t n_of[HDL_N_DTYPES], n_params;
} weight_census;

static void count(weight_census *census, const hdl_tensor *w)
{
    if (!w->data) return;
    census->n_of[w->dtype]++;
    census->n_params += w->n_rows * w->n_cols;
}

static heddle_status take_census(heddle_engine *engine)
{
    const hdl_model *model = engine->model;
    weight_census census = {0};
    count(&census, &model->token_embd);
    count(&census, &model->output_norm);
    if (model->output.data != model->token_embd.data) count(&census, &model->output);
    const hdl_shared_weights *shared = &model->shared;
    const hdl_tensor *of_shared[] = {&shared->norm,         &shared->wk,          &shared->wv,
                                     &shared->k_norm,       &shared->index_q,     &shared->index_k,
                                     &shared->index_q_norm, &shared->index_k_norm};
    for (int64_t t = 0; t < HDL_COUNT(of_shared); t++) count(&census, of_shared[t]);
    for (int32_t i = 0; i < model->facts.n_layers; i++) {
        const hdl_layer_weights *w = &model->layers[i];
        const hdl_tensor *all[] = {&w->attn_norm,
                                   &w->wq,
                                   &w->wk,
                                   &w->wv,
                                   &w->wo,
                                   &w->bq,
                                   &w->bk,
                                   &w->bv,
                                   &w->bo,
                                   &w->q_norm,
                                   &w->k_norm,
                                   &w->post_attn_norm,
                                   &w->post_ffn_norm,
                                   &w->ffn_norm,
                                   &w->w_gate,
                                   &w->w_up,
                                   &w->w_down,
                                   &w->index_q};
        for (int64_t t = 0; t < HDL_COUNT(all); t++) count(&census, all[t]);
    }
    engine->n_params = census.n_params;
    for (int d = 0; d < HDL_N_DTYPES; d++)
        if (census.n_of[d])
            hdl_buf_printf(&engine->formats, "%s%s (%lld)", engine->formats.n ? ", " : "",
                           hdl_dtype_of((hdl_dtype)d)->name, (long long)census.n_of[d]);
    return hdl_buf_status(&engine->formats);
}

heddle_status heddle_engine_open(heddle_engine **out, const char *model_path,
                                 const heddle_engine_options *options)
{
    HDL_GIVEN(out);
    *out = NULL;
    if (!model_path || !*model_path) return HDL_FAIL(HEDDLE_E_INVALID, "model path: is empty");
    HDL_TRY(hdl_choice_check());
    int32_t n_threads = options ? options->n_threads : 0;
    if (n_threads < 0 || n_threads > HDL_MAX_THREADS)
        return HDL_FAIL(HEDDLE_E_INVALID, "threads %d: must be in 1..%d", n_threads, HDL_MAX_THREADS);
    heddle_engine *engine = hdl_calloc(1, sizeof *engine);
    if (!engine) return HEDDLE_E_NOMEM;
    engine->n_threads = n_threads ? n_threads : hdl_default_threads();
    heddle_status status = hdl_model_open(&engine->model, model_path);
    const char *index_path = options && options->struct_size >= sizeof *options ? options->index_path : NULL;
    if (!status && index_path) status = hdl_model_attach_index(engine->model, model_path, index_path);
    if (!status) status = take_census(engine);
    if (status) {
        heddle_engine_close(engine);
        return status;
    }
    *out = engine;
    return HEDDLE_OK;
}

heddle_status heddle_engine_close(heddle_engine *engine)
{
    if (!engine) return HEDDLE_OK;
    int n_users = atomic_load(&engine->n_users);
    if (n_users)
        return HDL_FAIL(HEDDLE_E_BUSY, "the engine is still used by %d sessions or batches", n_users);
    hdl_model_close(engine->model);
    hdl_buf_deinit(&engine->formats);
    hdl_free(engine);
    return HEDDLE_OK;
}

void hdl_give(void *to, const void *from, size_t n_bytes)
{
    uint32_t given;
    memcpy(&given, to, sizeof given);
    given = (uint32_t)HDL_MIN((size_t)given, n_bytes);
    if (given < sizeof given) return;
    memcpy(to, from, given);
    memcpy(to, &given, sizeof given);
}

void heddle_engine_model_info(const heddle_engine *engine, heddle_model_info *info)
{
    if (!info) return;
    if (!engine) {
        hdl_give(info, &(heddle_model_info){0}, sizeof *info);
        return;
    }
    const hdl_model *model = engine->model;
    const hdl_model_facts *facts = &model->facts;
    heddle_model_info out = {.arch = facts->arch,
                             .name = facts->name,
                             .chat = hdl_chat_kind_name(model->chat.kind),
                             .n_layers = facts->n_layers,
                             .hidden_size = facts->hidden_size,
                             .n_heads = facts->n_heads,
                             .n_kv_heads = facts->n_kv_heads,
                             .head_dim = facts->head_dim,
                             .v_head_dim = facts->v_head_dim,
                             .n_ff = facts->n_ff,
                             .n_vocab = facts->n_vocab,
                             .train_context = facts->train_context,
                             .n_state_layers = facts->delta.n_layers,
                             .weight_bytes = model->weight_bytes,
                             .file_bytes = model->file_bytes,
                             .n_params = engine->n_params,
                             .formats = engine->formats.data};
    for (int32_t layer = 0; layer < facts->n_layers; layer++)
        if (facts->layers[layer].window) {
            out.n_windowed_layers++;
            out.window = facts->layers[layer].window;
        }
    hdl_give(info, &out, sizeof out);
}

/* ---- plans ---- */

static heddle_status wrap_plan(heddle_plan **out, hdl_plan *inner)
{
    *out = hdl_calloc(1, sizeof **out);
    if (!*out) {
        hdl_plan_free(inner);
        return HEDDLE_E_NOMEM;
    }
    (*out)->plan = inner;
    return HEDDLE_OK;
}

int32_t heddle_preset_count(void)
{
    int32_t n = 0;
    while (hdl_embedded_plans[n].name) n++;
    return n;
}

const char *heddle_preset_at(int32_t i)
{
    return i >= 0 && i < heddle_preset_count() ? hdl_embedded_plans[i].name : NULL;
}

heddle_status heddle_plan_parse(heddle_plan **out, const char *json, int64_t n_bytes, const char *name)
{
    hdl_plan *inner;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(json);
    if (n_bytes < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "a plan of %lld bytes: must be 0 or more", (long long)n_bytes);
    HDL_TRY(hdl_plan_parse(&inner, json, n_bytes, name ? name : "plan"));
    return wrap_plan(out, inner);
}

heddle_status heddle_plan_named(heddle_plan **out, const char *spec)
{
    hdl_plan *inner;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(spec);
    HDL_TRY(hdl_plan_named(&inner, spec));
    return wrap_plan(out, inner);
}

void heddle_plan_free(heddle_plan *plan)
{
    if (!plan) return;
    hdl_plan_free(plan->plan);
    hdl_free(plan);
}

const char *heddle_plan_name(const heddle_plan *plan)
{
    return plan ? plan->plan->name : "";
}

const char *heddle_plan_about(const heddle_plan *plan)
{
    return plan ? plan->plan->about : "";
}

heddle_status heddle_plan_format(const heddle_plan *plan, char **json)
{
    hdl_buf text = {0};
    HDL_GIVEN(json);
    *json = NULL;
    HDL_GIVEN(plan);
    heddle_status status = hdl_plan_format(plan->plan, &text);
    if (status)
        hdl_buf_deinit(&text);
    else
        *json = text.data;
    return status;
}

heddle_status hdl_engine_identity(const heddle_engine *engine, uint64_t *identity)
{
    heddle_engine *kept = (heddle_engine *)(uintptr_t)engine; /* what is kept changes no answer */
    *identity = atomic_load(&kept->identity);
    if (*identity) return HEDDLE_OK;
    HDL_TRY(hdl_model_identity(engine->model, engine->n_threads, identity));
    atomic_store(&kept->identity, *identity);
    return HEDDLE_OK;
}

/* Both routes resolved on the heap: a route plan is too large for a stack we do not own. */
static heddle_status resolve_both(const heddle_plan *plan, const heddle_engine *engine, hdl_route_plan **out)
{
    *out = hdl_calloc(2, sizeof **out);
    if (!*out) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_OK;
    for (int r = 0; r < 2 && !status; r++)
        status = hdl_plan_resolve(plan->plan, &engine->model->facts, (hdl_route)r, &(*out)[r]);
    if (status) {
        hdl_free(*out);
        *out = NULL;
    }
    return status;
}

heddle_status heddle_plan_check(const heddle_plan *plan, const heddle_engine *engine)
{
    hdl_route_plan *routes;
    HDL_GIVEN(plan, engine);
    HDL_TRY(resolve_both(plan, engine, &routes));
    hdl_free(routes);
    /* what a plan's routers need of the model is known when it is compiled */
    hdl_schedule *schedule;
    heddle_session_options options;
    HDL_TRY(hdl_options_check(NULL, &options));
    HDL_TRY(hdl_compile(&schedule, engine, plan->plan, &options, 1, options.chunk_rows));
    hdl_schedule_free(schedule);
    return HEDDLE_OK;
}

heddle_status heddle_plan_default(heddle_plan **out, const heddle_engine *engine)
{
    char spec[128];
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    const hdl_model_facts *facts = &engine->model->facts;
    const hdl_index_facts *index = &facts->index;
    if (!facts->plan[0]) return heddle_plan_named(out, "dense");
    snprintf(spec, sizeof spec, "%s:top_k=%lld,sinks=%d,window=%d", facts->plan, (long long)index->top_k,
             index->n_sink, index->window);
    return heddle_plan_named(out, spec);
}

heddle_status hdl_plan_or_own(const heddle_engine *engine, const heddle_plan *given, heddle_plan **own,
                              const hdl_plan **used)
{
    *own = NULL;
    if (!given) HDL_TRY(heddle_plan_default(own, engine));
    *used = given ? given->plan : (*own)->plan;
    return HEDDLE_OK;
}

heddle_status heddle_plan_route(const heddle_plan *plan, const heddle_engine *engine, int is_decode,
                                char **text)
{
    hdl_route_plan *routes = NULL;
    heddle_plan *own;
    const hdl_plan *used;
    hdl_buf buf = {0};
    int32_t n_dense = 0, n_window = 0, n_lists = 0, n_states = 0;
    HDL_GIVEN(text);
    *text = NULL;
    HDL_GIVEN(engine);
    const hdl_model_facts *facts = &engine->model->facts;
    HDL_TRY(hdl_plan_or_own(engine, plan, &own, &used));
    heddle_status status = resolve_both(plan ? plan : own, engine, &routes);
    heddle_plan_free(own);
    if (status) return status;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        bool is_dense = routes[is_decode ? HDL_ROUTE_DECODE : HDL_ROUTE_PREFILL].layers[layer].op ==
                        HDL_OPERATOR_DENSE;
        bool has_window = facts->layers[layer].window > 0, has_state = facts->layers[layer].is_delta;
        n_lists += !is_dense;
        n_window += is_dense && has_window;
        n_dense += is_dense && !has_window && !has_state;
        n_states += has_state;
    }
    if (!n_lists)
        hdl_buf_puts(&buf, "dense");
    else
        hdl_buf_printf(&buf, "dense in %d of %d layers, ", n_dense, facts->n_layers);
    if (n_lists && n_window) hdl_buf_printf(&buf, "the model's window in %d, ", n_window);
    if (n_lists && n_states) hdl_buf_printf(&buf, "its gated-delta states in %d, ", n_states);
    if (n_lists) hdl_buf_printf(&buf, "lists in %d", n_lists);
    hdl_free(routes);
    status = hdl_buf_status(&buf);
    if (status)
        hdl_buf_deinit(&buf);
    else
        *text = buf.data;
    return status;
}

/* What a row reads in a layer; where the plan evicts, as if it came after a prompt's end. */
static hdl_cost row_cost(const hdl_route_plan *route, const hdl_retain_spec *retain,
                         const hdl_model_facts *facts, int32_t layer, int64_t row)
{
    bool is_retained = retain->score && hdl_layer_is_open(facts, layer);
    int64_t held = is_retained ? HDL_MIN(row, retain->keep + retain->every / 2) : row;
    hdl_cost cost = hdl_cost_of(route, facts, layer, held);
    if (is_retained) cost.tokens += hdl_retain_observed(retain, held);
    return cost;
}

/* Bytes of one token's keys and values in one layer, scales included. */
static double token_bytes_of(const hdl_model_facts *facts, hdl_dtype dtype)
{
    int64_t n_values = (int64_t)facts->n_kv_heads * (facts->head_dim + facts->v_head_dim);
    return (double)hdl_row_bytes(dtype, n_values) + (dtype == HDL_I8 ? 8.0 * facts->n_kv_heads : 0);
}

heddle_status heddle_plan_share_read(const heddle_engine *engine, const heddle_plan *plan, int64_t first_row,
                                     int64_t last_row, double *share)
{
    hdl_route_plan *routes;
    HDL_GIVEN(share);
    *share = 0;
    HDL_GIVEN(engine, plan);
    const hdl_model_facts *facts = &engine->model->facts;
    double read = 0, dense = 0, token_bytes = token_bytes_of(facts, HDL_F16);
    if (first_row < 0 || last_row <= first_row)
        return HDL_FAIL(HEDDLE_E_INVALID, "rows %lld..%lld: must be a non-empty range", (long long)first_row,
                        (long long)last_row);
    hdl_retain_spec retain;
    HDL_TRY(resolve_both(plan, engine, &routes));
    heddle_status status = hdl_plan_retain(plan->plan, facts, &retain);
    for (int64_t row = first_row; row < last_row && !status; row++)
        for (int32_t layer = 0; layer < facts->n_layers; layer++) {
            hdl_cost cost = row_cost(&routes[HDL_ROUTE_DECODE], &retain, facts, layer, row);
            read += cost.tokens + cost.summary_bytes / token_bytes;
            dense += hdl_cost_tokens_dense(facts, layer, row);
        }
    if (!status) *share = read / dense;
    hdl_free(routes);
    return status;
}

heddle_status heddle_plan_evicts(const heddle_engine *engine, const heddle_plan *plan, int *evicts)
{
    hdl_retain_spec retain;
    HDL_GIVEN(evicts);
    *evicts = 0;
    HDL_GIVEN(engine, plan);
    HDL_TRY(hdl_plan_retain(plan->plan, &engine->model->facts, &retain));
    *evicts = retain.score != HDL_RETAIN_ALL;
    return HEDDLE_OK;
}

heddle_status heddle_plan_count_reads(const heddle_engine *engine, const heddle_plan *plan,
                                      const char *kv_type, int64_t position, heddle_plan_reads *reads)
{
    HDL_GIVEN(engine, plan, reads);
    hdl_route_plan *routes;
    hdl_retain_spec retain;
    heddle_plan_reads sum = {.struct_size = sizeof sum};
    heddle_session_options options, checked;
    heddle_session_options_default(&options);
    options.kv_type = kv_type;
    if (position < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "position %lld: must not be negative", (long long)position);
    HDL_TRY(hdl_options_check(&options, &checked));
    HDL_TRY(resolve_both(plan, engine, &routes));
    const hdl_model_facts *facts = &engine->model->facts;
    double bytes = token_bytes_of(facts, hdl_dtype_named(checked.kv_type));
    heddle_status status = hdl_plan_retain(plan->plan, facts, &retain);
    for (int32_t layer = 0; layer < facts->n_layers && !status; layer++) {
        hdl_cost cost = row_cost(&routes[HDL_ROUTE_DECODE], &retain, facts, layer, position);
        sum.dense_bytes += (cost.tokens - cost.listed) * bytes;
        sum.listed_bytes += cost.listed * bytes;
        sum.summary_bytes += cost.summary_bytes;
        sum.scores += cost.scores;
    }
    hdl_free(routes);
    if (!status) memcpy(reads, &sum, HDL_MIN(reads->struct_size, sizeof sum));
    return status;
}

heddle_status heddle_plan_lists_read(const heddle_engine *engine, const heddle_plan *plan, int32_t *owners,
                                     int32_t *lists)
{
    hdl_route_plan *routes;
    HDL_GIVEN(engine, plan, owners, lists);
    HDL_TRY(resolve_both(plan, engine, &routes));
    const hdl_model_facts *facts = &engine->model->facts;
    const hdl_layer_plan *layers = routes[HDL_ROUTE_DECODE].layers;
    for (int32_t layer = 0; layer < facts->n_layers; layer++)
        for (int32_t h = 0; h < facts->n_kv_heads; h++) {
            const hdl_layer_plan *at = &layers[layer];
            bool has_list = at->op != HDL_OPERATOR_DENSE;
            bool is_by_head = has_list && layers[at->owner].router.is_per_kv_head;
            int32_t list = !is_by_head ? 0 : at->has_head_map ? at->head_map[h] : h;
            owners[layer * facts->n_kv_heads + h] = has_list ? at->owner : -1;
            lists[layer * facts->n_kv_heads + h] = has_list ? list : -1;
        }
    hdl_free(routes);
    return HEDDLE_OK;
}
