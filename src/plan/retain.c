/* retain.c - the retain set of a plan: which rows of the layers without a window stay in the cache.
 *
 * It stands beside the read set (rules): a row that is not retained is gone for every later row. Each
 * layer and KV head keeps rows of its own, all of them equally many, so that one page table serves; the
 * positions of the rows are in their keys already. This file reads the spec, fits it to model and
 * schedule, and adds each layer's step; retain_exec.c runs it. */
#include <string.h>

#include "base/json.h"
#include "plan/parse.h"
#include "plan/schedule.h"

static const char *const scores[] = {"all", "mass_window", "mass_sum", "random", "none", NULL};

const hdl_int_member hdl_retain_ints[] = {
    {"keep", 1, 1 << 24, offsetof(hdl_retain_spec, keep), true},
    {"sinks", 0, 1 << 16, offsetof(hdl_retain_spec, n_sink), false},
    {"window", 0, 1 << 24, offsetof(hdl_retain_spec, window), false},
    {"observe", 1, 1 << 16, offsetof(hdl_retain_spec, observe), false},
    {"pool", 1, 255, offsetof(hdl_retain_spec, pool), false},
    {"every", 0, 1 << 24, offsetof(hdl_retain_spec, every), false},
    {"seed", 0, INT32_MAX, offsetof(hdl_retain_spec, seed), true},
    {NULL, 0, 0, 0, false},
};

static heddle_status check(const json_t *obj, const char *path, const hdl_retain_spec *at)
{
    static const char *const of_window[] = {"observe", "pool", "pool_by"};
    int64_t forced = (int64_t)at->n_sink + at->window;
    for (int i = 0; i < HDL_COUNT(of_window); i++)
        if (at->score != HDL_RETAIN_MASS_WINDOW && json_object_get(obj, of_window[i]))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s: belongs to score \"mass_window\"", path, of_window[i]);
    if (at->score != HDL_RETAIN_RANDOM && json_object_get(obj, "seed"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.seed %lld: belongs to score \"random\"", path,
                        (long long)at->seed);
    if (!at->keep) return HDL_FAIL(HEDDLE_E_INVALID, "%s.keep: is missing; must be at least 1 row", path);
    if (at->score == HDL_RETAIN_NONE && at->keep != forced)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.keep %lld: with score \"none\" it is sinks + window, %lld",
                        path, (long long)at->keep, (long long)forced);
    if (at->score != HDL_RETAIN_NONE && at->keep <= forced)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.keep %lld: must be above sinks + window, %lld", path,
                        (long long)at->keep, (long long)forced);
    if (at->window < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.window %d: must be at least 1, so that the last row stays",
                        path, at->window);
    if (!(at->pool % 2))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.pool %d: must be odd, a row and its neighbours", path,
                        at->pool);
    if (at->score == HDL_RETAIN_MASS_WINDOW && at->every)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.every %d: score \"mass_window\" evicts at the end of a prompt only; must be 0",
                        path, at->every);
    return HEDDLE_OK;
}

heddle_status hdl_retain_read(const json_t *obj, const char *path, hdl_retain_spec *out)
{
    static const char *const keys[] = {"score", "keep",    "sinks", "window", "observe",
                                       "pool",  "pool_by", "every", "seed",   NULL};
    static const char *const pools[] = {"mean", "max", NULL};
    int score = HDL_RETAIN_ALL, is_max = 0;
    *out = (hdl_retain_spec){.observe = 32, .pool = 1, .window = 1};
    if (!obj) return HEDDLE_OK;
    if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", path);
    HDL_TRY(hdl_json_only(obj, path, keys));
    if (!json_object_get(obj, "score"))
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.score: is missing; must be \"mass_window\", \"mass_sum\", "
                        "\"random\" or \"none\"",
                        path);
    HDL_TRY(hdl_word_read(obj, path, "score", scores + 1, &score));
    HDL_TRY(hdl_word_read(obj, path, "pool_by", pools, &is_max));
    out->score = (hdl_retain_score)(score + 1);
    out->is_pool_max = is_max != 0;
    HDL_TRY(hdl_ints_read(obj, path, hdl_retain_ints, out));
    return check(obj, path, out);
}

heddle_status hdl_plan_retain(const hdl_plan *plan, const hdl_model_facts *facts, hdl_retain_spec *out)
{
    const json_t *variant;
    int number;
    char path[64];
    *out = (hdl_retain_spec){0};
    HDL_TRY(hdl_plan_variant(plan, facts, &variant, &number));
    snprintf(path, sizeof path, "variants[%d].retain", number);
    return hdl_retain_read(json_object_get(variant, "retain"), path, out);
}

double hdl_retain_observed(const hdl_retain_spec *spec, int64_t n_held)
{
    return spec->score == HDL_RETAIN_MASS_SUM ? (double)(n_held + 1) : 0;
}

bool hdl_retain_equal(const hdl_retain_spec *a, const hdl_retain_spec *b)
{
    return a->score == b->score && a->keep == b->keep && a->n_sink == b->n_sink && a->window == b->window &&
           a->observe == b->observe && a->pool == b->pool && a->is_pool_max == b->is_pool_max &&
           a->every == b->every && a->seed == b->seed;
}

/* ---- compile ---- */

heddle_status hdl_retain_prepare(hdl_schedule *schedule, const hdl_plan *plan)
{
    const hdl_model_facts *facts = schedule->facts;
    const hdl_schedule_limits *limits = &schedule->limits;
    hdl_retain_spec *spec = &schedule->retain;
    schedule->retain_group = -1;
    HDL_TRY(hdl_plan_retain(plan, facts, spec));
    if (spec->score == HDL_RETAIN_ALL) return HEDDLE_OK;
    for (int32_t g = 0; g < facts->n_groups; g++)
        if (facts->groups[g].kind == HDL_CACHE_FULL) schedule->retain_group = g;
    if (schedule->retain_group < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "plan %s: retain: every layer of the model has a window",
                        plan->source);
    if (facts->cross_from < facts->n_layers || facts->has_doc_resets)
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "plan %s: retain: rows of a shared state, or of documents with positions of their own, "
            "are not evicted",
            plan->source);
    if (schedule->refresh > 1)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "plan %s: retain: lists kept over %d steps name rows that go",
                        plan->source, schedule->refresh);
    if (spec->score == HDL_RETAIN_MASS_WINDOW && spec->observe > limits->max_rows &&
        limits->max_rows < limits->max_context)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "plan %s: retain.observe %d: is more than the %lld rows of a step (chunk_rows)",
                        plan->source, spec->observe, (long long)limits->max_rows);
    int64_t row_bytes = facts->n_kv_heads * (limits->max_context + 16) * 4;
    schedule->retain_tile = HDL_MIN(HDL_MAX(HDL_TILE_BYTES / row_bytes, 1),
                                    HDL_MIN((int64_t)HDL_MAX_TILE_ROWS, limits->max_rows));
    schedule->retain_list = (hdl_selection){.block_size = 1,
                                            .n_rows = 1,
                                            .n_lists = facts->n_kv_heads,
                                            .n_ids_max = HDL_MIN(spec->keep, limits->max_context)};
    return HEDDLE_OK;
}

int64_t hdl_retain_stride(const hdl_schedule *schedule)
{
    return schedule->limits.max_context + 16;
}

static bool is_observed(const hdl_retain_spec *spec)
{
    return spec->score == HDL_RETAIN_MASS_WINDOW || spec->score == HDL_RETAIN_MASS_SUM;
}

static void book(hdl_schedule *schedule, const hdl_step *step)
{
    int64_t heads = schedule->facts->n_kv_heads, stride = hdl_retain_stride(schedule);
    const hdl_selection *list = &schedule->retain_list;
    hdl_schedule_book(schedule, HDL_BUF_RETAIN,
                      2 * heads * stride * 4 + HDL_ALIGN_UP(heads * list->n_ids_max * 4, 64) + heads * 4);
    if (!is_observed(&schedule->retain)) return;
    hdl_schedule_book(schedule, HDL_BUF_MASS, schedule->retain_tile * heads * stride * 4);
    hdl_schedule_book(schedule, HDL_BUF_SPARE, schedule->retain_tile * step->u.retain.args.o_stride * 4);
}

static heddle_status choose_observer(hdl_schedule *schedule, hdl_retain_step *at)
{
    for (int cls = 0; cls < HDL_N_CLASSES; cls++) {
        hdl_attend_args sized = at->args;
        sized.n_seqs = 1;
        sized.n_rows = sized.max_q_len = cls == HDL_CLASS_ONE ? 1 : schedule->retain_tile;
        sized.max_kv_len = sized.mass_stride = schedule->limits.max_context;
        HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_ATTEND, &sized, &at->attend_impl[cls]));
    }
    return HEDDLE_OK;
}

heddle_status hdl_lower_retain(hdl_schedule *schedule, int32_t layer)
{
    const hdl_model_facts *facts = schedule->facts;
    const hdl_retain_spec *spec = &schedule->retain;
    if (facts->layers[layer].cache_group != schedule->retain_group || facts->layers[layer].kv_source != layer)
        return HEDDLE_OK;
    hdl_attend_step attend = hdl_attend_step_of(schedule, layer, HDL_ROUTE_PREFILL).u.attend;
    hdl_step step = {.op = HDL_OP_COMPACT,
                     .layer = layer,
                     .in = HDL_BUF_Q,
                     .out = {is_observed(spec) ? HDL_BUF_SPARE : HDL_BUF_RETAIN}};
    step.u.retain = (hdl_retain_step){.compact = {.n_kv_heads = facts->n_kv_heads,
                                                  .head_dim = facts->head_dim,
                                                  .v_head_dim = facts->v_head_dim},
                                      .args = attend.args,
                                      .group = attend.group,
                                      .layer_in_group = attend.layer_in_group};
    hdl_retain_step *at = &step.u.retain;
    at->args.has_mass = true;
    at->args.n_mass_lists = facts->n_kv_heads;
    at->select = (hdl_select_args){.n_rows = 1,
                                   .n_lists = facts->n_kv_heads,
                                   .score_stride = hdl_retain_stride(schedule),
                                   .max_visible = schedule->limits.max_context,
                                   .top_k = spec->keep - spec->n_sink - spec->window,
                                   .n_sink = spec->n_sink,
                                   .window = spec->window,
                                   .block_size = 1,
                                   .out = &schedule->retain_list};
    for (int32_t i = schedule->n_steps - 1; i >= 0 && schedule->steps[i].layer == layer; i--)
        if (schedule->steps[i].op == HDL_OP_SUMMARISE) {
            at->first_summary = i;
            at->n_summaries++;
        }
    book(schedule, &step);
    if (is_observed(spec)) HDL_TRY(choose_observer(schedule, at));
    HDL_TRY(hdl_schedule_choose(schedule, HDL_OP_SELECT, &at->select, &at->select_impl));
    return hdl_schedule_add(schedule, &step);
}

void hdl_retain_bind(hdl_schedule *schedule)
{
    hdl_selection *list = &schedule->retain_list;
    if (schedule->retain_group < 0) return;
    float *at = hdl_schedule_at(schedule, HDL_BUF_RETAIN) + 2 * list->n_lists * hdl_retain_stride(schedule);
    list->ids = (int32_t *)(void *)at;
    list->counts = list->ids + HDL_ALIGN_UP(list->n_lists * list->n_ids_max * 4, 64) / 4;
}

int64_t hdl_retain_due(const hdl_schedule *schedule, int64_t n_held, bool is_prompt, bool is_prompt_end)
{
    const hdl_retain_spec *spec = &schedule->retain;
    if (schedule->retain_group < 0 || n_held <= spec->keep) return 0;
    if (is_prompt) return is_prompt_end ? spec->keep : 0;
    return spec->every && n_held >= spec->keep + spec->every ? spec->keep : 0;
}

int64_t hdl_retain_mass_size(const hdl_schedule *schedule)
{
    if (schedule->retain_group < 0 || schedule->retain.score != HDL_RETAIN_MASS_SUM) return 0;
    return schedule->facts->groups[schedule->retain_group].n_layers * (int64_t)schedule->facts->n_kv_heads *
           schedule->limits.max_context;
}

void hdl_explain_retain(const hdl_schedule *schedule, hdl_buf *text)
{
    static const char *const by[] = {"", "the mass of the last rows of a prompt",
                                     "the mass of every row so far", "chance", "nothing"};
    const hdl_retain_spec *spec = &schedule->retain;
    if (schedule->retain_group < 0) return;
    hdl_buf_printf(text,
                   "retain set\n  layers without a window keep %lld rows a KV head: sinks %d, window %d, "
                   "the rest by %s",
                   (long long)spec->keep, spec->n_sink, spec->window, by[spec->score]);
    if (spec->score == HDL_RETAIN_MASS_WINDOW)
        hdl_buf_printf(text, " (%d rows, %s of %d neighbours)", spec->observe,
                       spec->is_pool_max ? "largest" : "mean", spec->pool);
    hdl_buf_puts(text, "; at the end of a prompt");
    if (spec->every) hdl_buf_printf(text, ", and while generating when %d more are held", spec->every);
    if (hdl_retain_mass_size(schedule))
        hdl_buf_printf(text, "; a session books %lld bytes for the mass",
                       (long long)hdl_retain_mass_size(schedule) * 4);
    hdl_buf_puts(text, "\n");
}
