/* memory.c - what a session will take, known before it starts. */
#include <string.h>

#include "base/available.h"
#include "engine/engine_int.h"

void heddle_session_options_default(heddle_session_options *options)
{
    if (!options) return;
    *options = (heddle_session_options){.struct_size = sizeof *options,
                                        .context_tokens = 4096,
                                        .kv_type = "f16",
                                        .kv_layout = "token",
                                        .page_shift = HDL_KV_PAGE_SHIFT,
                                        .chunk_rows = 512};
}

enum { MAX_CONTEXT_TOKENS = 1 << 28, MAX_CHUNK_ROWS = 1 << 16, MAX_REWIND_TOKENS = 1 << 20 };

heddle_status hdl_options_check(const heddle_session_options *given, heddle_session_options *out)
{
    heddle_session_options_default(out);
    if (given) memcpy(out, given, HDL_MIN(given->struct_size, sizeof *out));
    out->struct_size = sizeof *out;
    for (int32_t i = 0; i < out->n_kept_plans; i++)
        if (!out->kept_plans || !out->kept_plans[i])
            return HDL_FAIL(HEDDLE_E_INVALID, "kept plan %d of %d: must not be NULL", i, out->n_kept_plans);
    if (!out->kv_type) out->kv_type = "f16";
    if (!out->kv_layout) out->kv_layout = "token";
    hdl_dtype dtype = hdl_dtype_named(out->kv_type);
    if (dtype != HDL_F32 && dtype != HDL_F16 && dtype != HDL_BF16 && dtype != HDL_I8 && dtype != HDL_Q4_1)
        return HDL_FAIL(HEDDLE_E_INVALID, "KV type \"%s\": must be f16, bf16, f32, i8 or q4_1", out->kv_type);
    if (out->gathering < HEDDLE_GATHERING_AUTO || out->gathering > HEDDLE_GATHERING_NEVER)
        return HDL_FAIL(HEDDLE_E_INVALID, "gathering %d: must be in %d..%d", out->gathering,
                        HEDDLE_GATHERING_AUTO, HEDDLE_GATHERING_NEVER);
    if (strcmp(out->kv_layout, "token") && strcmp(out->kv_layout, "head"))
        return HDL_FAIL(HEDDLE_E_INVALID, "KV layout \"%s\": must be token or head", out->kv_layout);
    out->kv_type = hdl_dtype_of(dtype)->name; /* the caller's strings need not live on */
    out->kv_layout = strcmp(out->kv_layout, "head") ? "token" : "head";
    if (out->context_tokens < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "context of %lld tokens: must be 1 or more",
                        (long long)out->context_tokens);
    if (out->page_shift < 4 || out->page_shift > 28)
        return HDL_FAIL(HEDDLE_E_INVALID, "page_shift %d: must be in 4..28", out->page_shift);
    if (out->rewind_tokens < 0 || out->rewind_tokens > MAX_REWIND_TOKENS)
        return HDL_FAIL(HEDDLE_E_INVALID, "rewind_tokens %d: must be in 0..%d", out->rewind_tokens,
                        MAX_REWIND_TOKENS);
    if (out->chunk_rows < 1 || out->chunk_rows > MAX_CHUNK_ROWS)
        return HDL_FAIL(HEDDLE_E_INVALID, "chunk_rows %d: must be in 1..%d", out->chunk_rows, MAX_CHUNK_ROWS);
    out->chunk_rows = (int32_t)HDL_MIN((int64_t)out->chunk_rows, out->context_tokens);
    return HEDDLE_OK;
}

heddle_status hdl_context_check(int64_t n_tokens)
{
    if (n_tokens >= 1 && n_tokens <= MAX_CONTEXT_TOKENS) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_INVALID, "context of %lld tokens: must be in 1..%d", (long long)n_tokens,
                    MAX_CONTEXT_TOKENS);
}

heddle_status hdl_group_specs(const heddle_engine *engine, const heddle_session_options *options,
                              const hdl_schedule *schedule, hdl_kv_group_spec specs[HDL_MAX_GROUPS])
{
    const hdl_model_facts *facts = &engine->model->facts;
    hdl_kv_layout layout;
    for (int32_t g = 0; g < facts->n_groups; g++) {
        specs[g] = (hdl_kv_group_spec){
            .n_layers = facts->groups[g].n_layers,
            .window = facts->groups[g].kind == HDL_CACHE_ROLLING ? facts->groups[g].window : 0,
            .rewind = facts->groups[g].kind == HDL_CACHE_ROLLING ? options->rewind_tokens : 0,
            .n_kv_heads = facts->n_kv_heads,
            .head_dim = facts->head_dim,
            .v_head_dim = facts->v_head_dim,
            .dtype = hdl_dtype_named(options->kv_type),
            .is_head_major = !strcmp(options->kv_layout, "head"),
            .page_shift = options->page_shift};
    }
    HDL_TRY(hdl_schedule_planes(schedule, specs));
    for (int32_t g = 0; g < facts->n_groups; g++) HDL_TRY(hdl_kv_layout_of(&layout, &specs[g]));
    return HEDDLE_OK;
}

static int64_t state_bytes(const heddle_engine *engine)
{
    const hdl_delta_facts *delta = &engine->model->facts.delta;
    return hdl_kv_state_bytes(delta->n_layers, hdl_delta_state_floats(delta));
}

static int64_t kv_bytes(const heddle_engine *engine, const heddle_session_options *options,
                        const hdl_schedule *schedule, int64_t n_tokens)
{
    hdl_kv_group_spec specs[HDL_MAX_GROUPS];
    int64_t bytes = 0;
    if (hdl_group_specs(engine, options, schedule, specs)) return 0;
    bytes += state_bytes(engine);
    for (int32_t g = 0; g < engine->model->facts.n_groups; g++) {
        hdl_kv_layout layout;
        hdl_kv_layout_of(&layout, &specs[g]);
        bytes += hdl_kv_pages_for(&specs[g], n_tokens, options->chunk_rows) * layout.page_bytes;
    }
    return bytes;
}

/* Pages that a session gathers listed rows in. */
static int64_t gather_bytes(const heddle_engine *engine, const heddle_session_options *options,
                            const hdl_schedule *schedule)
{
    hdl_kv_group_spec specs[HDL_MAX_GROUPS];
    int64_t bytes = 0;
    if (hdl_group_specs(engine, options, schedule, specs)) return 0;
    for (int32_t i = 0; i < schedule->n_gathers; i++) {
        int32_t group = schedule->facts->layers[schedule->gathers[i].kv_source].cache_group;
        bytes += hdl_gather_bytes(&specs[group], schedule->gathers[i].n_max);
    }
    return bytes;
}

static heddle_status fill(const heddle_engine *engine, const hdl_plan *plan, heddle_session_options options,
                          int64_t n_tokens, heddle_memory *memory)
{
    hdl_schedule *schedule;
    options.context_tokens = n_tokens;
    options.chunk_rows = (int32_t)HDL_MIN((int64_t)options.chunk_rows, n_tokens);
    HDL_TRY(hdl_compile(&schedule, engine, plan, &options, 1, options.chunk_rows));
    *memory = (heddle_memory){.struct_size = sizeof *memory,
                              .weight_bytes = engine->model->weight_bytes,
                              .kv_bytes = kv_bytes(engine, &options, schedule, n_tokens),
                              .workspace_bytes = schedule->arena_bytes + n_tokens * 4 +
                                                 engine->model->facts.n_vocab * 4 +
                                                 gather_bytes(engine, &options, schedule),
                              .available_bytes = hdl_available_bytes("")};
    memory->total_bytes = memory->weight_bytes + memory->kv_bytes + memory->workspace_bytes;
    hdl_schedule_free(schedule);
    return HEDDLE_OK;
}

heddle_status heddle_memory_plan(const heddle_engine *engine, const heddle_plan *plan,
                                 const heddle_session_options *options, int64_t n_tokens,
                                 heddle_memory *memory)
{
    heddle_session_options checked;
    heddle_plan *own = NULL;
    const hdl_plan *used;
    heddle_memory out = {0};
    HDL_GIVEN(memory);
    heddle_status status = hdl_given(__func__, "engine", (const void *const[]){engine}, 1);
    if (!status) status = hdl_options_check(options, &checked);
    if (!status) status = hdl_context_check(n_tokens);
    if (!status) status = hdl_plan_or_own(engine, plan, &own, &used);
    if (!status) status = fill(engine, used, checked, n_tokens, &out);
    heddle_plan_free(own);
    hdl_give(memory, &out, sizeof out);
    return status;
}

/* The most tokens, below `limit`, that fit into what is available; 0 = not one. */
static int64_t largest_context(const heddle_engine *engine, const hdl_plan *plan,
                               const heddle_session_options *options, int64_t limit)
{
    heddle_memory probe;
    int64_t fits = 0;
    for (int64_t step = MAX_CONTEXT_TOKENS; step; step /= 2)
        if (fits + step <= MAX_CONTEXT_TOKENS && fits + step < limit &&
            !fill(engine, plan, *options, fits + step, &probe) && probe.total_bytes <= probe.available_bytes)
            fits += step;
    return fits;
}

heddle_status hdl_memory_check(const heddle_engine *engine, const hdl_plan *plan,
                               const heddle_session_options *options)
{
    heddle_memory memory;
    int64_t asked = options->context_tokens;
    bool is_countable = asked <= MAX_CONTEXT_TOKENS;
    HDL_TRY(fill(engine, plan, *options, is_countable ? asked : 1, &memory));
    if (is_countable && memory.total_bytes <= memory.available_bytes) return HEDDLE_OK;
    long long fits = largest_context(engine, plan, options, asked);
    if (!is_countable)
        return HDL_FAIL(
            HEDDLE_E_CAPACITY,
            "a context of %lld tokens: at most %d are possible, and the largest context that fits "
            "into the %.1f GiB that are available is %lld tokens",
            (long long)asked, MAX_CONTEXT_TOKENS, memory.available_bytes / 0x1p30, fits);
    return HDL_FAIL(HEDDLE_E_CAPACITY,
                    "a context of %lld tokens takes %.1f GiB (weights %.2f, KV %.2f, workspace %.2f) "
                    "and %.1f GiB are available; the largest context that fits is %lld tokens",
                    (long long)asked, memory.total_bytes / 0x1p30, memory.weight_bytes / 0x1p30,
                    memory.kv_bytes / 0x1p30, memory.workspace_bytes / 0x1p30,
                    memory.available_bytes / 0x1p30, fits);
}

heddle_status heddle_explain(const heddle_engine *engine, const heddle_plan *plan,
                             const heddle_session_options *options, char **text)
{
    heddle_session_options checked;
    heddle_plan *own;
    const hdl_plan *used;
    heddle_memory memory;
    hdl_schedule *schedule = NULL;
    hdl_buf buf = {0};
    HDL_GIVEN(text);
    *text = NULL;
    HDL_GIVEN(engine);
    HDL_TRY(hdl_options_check(options, &checked));
    HDL_TRY(hdl_context_check(checked.context_tokens));
    HDL_TRY(hdl_plan_or_own(engine, plan, &own, &used));
    heddle_status status = hdl_compile(&schedule, engine, used, &checked, 1, checked.chunk_rows);
    if (!status) status = hdl_explain(schedule, used, &buf);
    if (!status) status = fill(engine, used, checked, checked.context_tokens, &memory);
    if (!status) {
        hdl_buf_printf(
            &buf, "\nmemory at %lld tokens, KV %s: weights %lld + KV %lld + workspace %lld = %lld bytes\n",
            (long long)checked.context_tokens, checked.kv_type, (long long)memory.weight_bytes,
            (long long)memory.kv_bytes, (long long)memory.workspace_bytes, (long long)memory.total_bytes);
        if (engine->model->facts.delta.n_layers)
            hdl_buf_printf(&buf, "  of KV %lld bytes are states of gated-delta layers, at any length\n",
                           (long long)state_bytes(engine));
        status = hdl_buf_status(&buf);
    }
    hdl_schedule_free(schedule);
    heddle_plan_free(own);
    if (status) hdl_buf_deinit(&buf);
    *text = buf.data;
    return status;
}
