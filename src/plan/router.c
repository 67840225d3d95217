/* router.c - the table of scores, and a router object of a plan file read against it.
 *
 * A new way to score is a row here (and, when no rule of op SCORE computes it, one in the backend). */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "plan/parse.h"

const hdl_score_row hdl_score_rows[HDL_N_SCORE_KINDS] = {
    [HDL_SCORE_NONE] = {.name = "none", .about = "forced tokens only"},
    [HDL_SCORE_MASS] = {.name = "attention_mass", .about = "attention mass"},
    [HDL_SCORE_RANDOM] = {"random", "random", HDL_PLANE_NONE, HDL_RULE_HASH, .is_scored = true},
    [HDL_SCORE_STRIDE] = {"stride", "strides", HDL_PLANE_NONE, HDL_RULE_STRIDE, .is_scored = true},
    [HDL_SCORE_POWERS] = {"powers", "power-of-two distances", HDL_PLANE_NONE, HDL_RULE_POWERS,
                          .is_scored = true},
    [HDL_SCORE_MEAN] = {"block_mean", "mean keys of blocks", HDL_PLANE_MEAN, HDL_RULE_DOT, HDL_MEASURE_LOGIT,
                        true, true, .entries_per_block = 1},
    [HDL_SCORE_PEAK] = {"block_peak", "largest key elements of blocks", HDL_PLANE_PEAK, HDL_RULE_DOT,
                        HDL_MEASURE_LOGIT, true, true, .entries_per_block = 1},
    [HDL_SCORE_MIDDLE] = {"block_middle", "middle keys of blocks", HDL_PLANE_MIDDLE, HDL_RULE_DOT,
                          HDL_MEASURE_LOGIT, true, true, .entries_per_block = 1},
    [HDL_SCORE_SAMPLED] = {"block_sampled", "four keys sampled from each block", HDL_PLANE_MIDDLE,
                           HDL_RULE_DOT, HDL_MEASURE_MASS, true, true, .entries_per_block = 4},
    [HDL_SCORE_BOUNDS] = {"block_bounds", "least and largest keys of blocks", HDL_PLANE_BOUNDS,
                          HDL_RULE_BOUND, HDL_MEASURE_LOGIT, true, true, .entries_per_block = 1},
    [HDL_SCORE_POOLED] = {"block_pooled", "overlapping windows of mean keys", HDL_PLANE_MEAN, HDL_RULE_PAIRS,
                          HDL_MEASURE_MASS, true, true, .entries_per_block = 4},
    [HDL_SCORE_KEY_I8] = {"key_i8", "8-bit keys", HDL_PLANE_KEY_I8, HDL_RULE_DOT, HDL_MEASURE_MASS, true,
                          .entries_per_block = 1},
    [HDL_SCORE_KEY_I4] = {"key_i4", "4-bit keys", HDL_PLANE_KEY_I4, HDL_RULE_DOT, HDL_MEASURE_MASS, true,
                          .entries_per_block = 1},
    [HDL_SCORE_KEY_PQ2] = {"key_pq2", "product-quantised keys, 2 bits an element", HDL_PLANE_KEY_PQ2,
                           HDL_RULE_DOT, HDL_MEASURE_MASS, true, .entries_per_block = 1},
    [HDL_SCORE_KEY_PQ4] = {"key_pq4", "product-quantised keys, 1 bit an element", HDL_PLANE_KEY_PQ4,
                           HDL_RULE_DOT, HDL_MEASURE_MASS, true, .entries_per_block = 1},
    [HDL_SCORE_GROUP] = {"group_mean", "mean keys of groups of like keys", HDL_PLANE_GROUP, HDL_RULE_DOT,
                         HDL_MEASURE_MASS, true, true, 1, .is_grouped = true},
    [HDL_SCORE_INDEX] = {"index", "the model's index", HDL_PLANE_INDEX, HDL_RULE_INDEX, HDL_MEASURE_LOGIT,
                         true, .entries_per_block = 1},
    [HDL_SCORE_INDEX_MEAN] = {"index_mean", "mean index keys of blocks", HDL_PLANE_INDEX_MEAN, HDL_RULE_INDEX,
                              HDL_MEASURE_LOGIT, true, true, .entries_per_block = 1},
};

static const char *const selects[] = {"top_k", "top_p", "threshold", "beam", NULL}; /* hdl_select_kind */

/* The integer members of a router: one table for parse, overrides and messages. */
const hdl_int_member hdl_router_ints[] = {
    {"top_k", 0, 1 << 24, offsetof(hdl_router_spec, top_k), true},
    {"sinks", 0, 1 << 16, offsetof(hdl_router_spec, n_sink), false},
    {"window", 0, 1 << 24, offsetof(hdl_router_spec, window), false},
    {"refresh", 1, 1024, offsetof(hdl_router_spec, refresh), false},
    {"block", 1, 1 << 16, offsetof(hdl_router_spec, block), false},
    {"tile", 1, 256, offsetof(hdl_router_spec, tile), false},
    {"slashes", 0, 1 << 20, offsetof(hdl_router_spec, n_slashes), false},
    {"stride", 1, 1 << 16, offsetof(hdl_router_spec, stride), false},
    {"dense_below", 0, 1 << 24, offsetof(hdl_router_spec, dense_below), true},
    {"seed", 0, INT32_MAX, offsetof(hdl_router_spec, seed), true},
    {NULL, 0, 0, 0, false},
};

heddle_status hdl_word_read(const json_t *obj, const char *path, const char *key, const char *const *words,
                            int *out)
{
    const char *word = NULL;
    HDL_TRY(hdl_json_str(obj, path, key, &word));
    if (!word) return HEDDLE_OK;
    char known[256] = "";
    for (int i = 0; words[i]; i++) {
        if (!strcmp(word, words[i])) {
            *out = i;
            return HEDDLE_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s\"%s\"", i ? words[i + 1] ? ", " : " or " : "", words[i]);
    }
    const char *nearest = hdl_nearest_word(word, (int64_t)strlen(word), words);
    if (nearest)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s \"%s\": must be %s; did you mean \"%s\"?", path, key, word,
                        known, nearest);
    return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s \"%s\": must be %s", path, key, word, known);
}

heddle_status hdl_ints_read(const json_t *obj, const char *path, const hdl_int_member *rows, void *spec)
{
    for (const hdl_int_member *row = rows; row->key; row++) {
        char *at = (char *)spec + row->offset;
        int64_t value = row->is_wide ? *(int64_t *)(void *)at : *(int32_t *)(void *)at;
        HDL_TRY(hdl_json_int(obj, path, row->key, row->min, row->max, &value));
        if (row->is_wide)
            *(int64_t *)(void *)at = value;
        else
            *(int32_t *)(void *)at = (int32_t)value;
    }
    return HEDDLE_OK;
}

static heddle_status read_numbers(const json_t *obj, const char *path, hdl_router_spec *out)
{
    HDL_TRY(hdl_ints_read(obj, path, hdl_router_ints, out));
    double p = out->p, threshold = out->threshold;
    HDL_TRY(hdl_json_num(obj, path, "p", &p));
    HDL_TRY(hdl_json_num(obj, path, "threshold", &threshold));
    if (!((float)p > 0 && p <= 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.p %.15g: must be above 0 and at most 1", path, p);
    if (!(fabs(threshold) <= (double)FLT_MAX))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.threshold %g: must be in -%g..%g", path, threshold,
                        (double)FLT_MAX, (double)FLT_MAX);
    out->p = (float)p;
    out->threshold = (float)threshold;
    return HEDDLE_OK;
}

/* A top_k for each KV head, or "all": heads of one layer that read in different ways. */
static heddle_status read_head_top_k(const json_t *obj, const char *path, hdl_router_spec *out)
{
    const json_t *list = json_object_get(obj, "head_top_k");
    size_t n = json_array_size(list);
    if (!list) return HEDDLE_OK;
    if (!out->is_per_kv_head || out->select != HDL_SELECT_TOP_K)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_top_k: needs \"lists\": \"kv_head\" and select \"top_k\"",
                        path);
    if (json_object_get(obj, "top_k"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_top_k: goes not with top_k", path);
    if (!n || n > HDL_MAX_MAPPED_HEADS)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_top_k: must be a list of 1..%d numbers, one a KV head",
                        path, HDL_MAX_MAPPED_HEADS);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(list, i);
        const char *word = json_string_value(item);
        bool is_all = word && !strcmp(word, "all");
        int64_t top_k = json_is_integer(item) ? json_integer_value(item) : -1;
        if (!is_all && (top_k < 0 || top_k > 1 << 24))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_top_k[%zu]: must be \"all\" or in 0..%d", path, i,
                            1 << 24);
        if (out->score == HDL_SCORE_NONE && top_k > 0)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.head_top_k[%zu] %lld: must be 0 or \"all\" when score is \"none\"", path, i,
                            (long long)top_k);
        if (!is_all && top_k + out->n_sink + out->window < 1)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.head_top_k[%zu]: sinks + window + top_k is 0: a head could read nothing",
                            path, i);
        out->head_units[i] = is_all ? HDL_ALL_UNITS : (top_k + out->block - 1) / out->block;
        out->top_k = HDL_MAX(out->top_k, out->head_units[i] * out->block);
    }
    out->n_head_units = (int32_t)n;
    return HEDDLE_OK;
}

/* Forced tokens are all that a row reads where no score is chosen, by intent or because none is high enough. */
static heddle_status check_forced(const char *path, hdl_router_role role, const hdl_router_spec *at)
{
    bool is_exclusive = at->select == HDL_SELECT_TOP_P && at->p_rule == HDL_P_EXCLUSIVE;
    bool reads_all = at->n_head_units > 0;
    for (int32_t i = 0; i < at->n_head_units; i++) reads_all &= at->head_units[i] == HDL_ALL_UNITS;
    if ((at->select == HDL_SELECT_THRESHOLD || is_exclusive) && at->n_sink + at->window < 1)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s: sinks + window is 0 and select \"%s\"%s may choose nothing: a row could read "
                        "nothing",
                        path, selects[at->select], is_exclusive ? " with p_rule \"exclusive\"" : "");
    if (at->score == HDL_SCORE_NONE && at->window < 1 && !reads_all && role != HDL_ROUTER_OF_CANDIDATES)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.window 0: score \"none\" needs a window of at least 1 token, so that a row reads "
                        "its own",
                        path);
    return HEDDLE_OK;
}

/* Sums over heads or over the rows of a tile may exceed the mass of one. */
static heddle_status check_threshold(const char *path, const hdl_router_spec *at)
{
    bool has_mass = at->score == HDL_SCORE_MASS ||
                    (hdl_score_rows[at->score].plane && at->measure == HDL_MEASURE_MASS);
    bool is_sum = at->heads == HDL_REDUCE_SUM || at->tile_by == HDL_TILE_BY_SUM;
    if (at->select == HDL_SELECT_THRESHOLD && has_mass && !is_sum && at->threshold > 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.threshold %.9g: no mass exceeds 1; must be at most that", path,
                        (double)at->threshold);
    return HEDDLE_OK;
}

static heddle_status check_router(const json_t *obj, const char *path, const hdl_router_spec *at)
{
    const hdl_score_row *row = &hdl_score_rows[at->score];
    if (at->score == HDL_SCORE_NONE && at->top_k && !at->n_head_units)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.top_k %lld: must be 0 when score is \"none\"", path,
                        (long long)at->top_k);
    if (at->score == HDL_SCORE_NONE && at->select != HDL_SELECT_TOP_K)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.select: must be \"top_k\" when score is \"none\"", path);
    if (at->select == HDL_SELECT_TOP_K && at->top_k + at->n_sink + at->window < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: sinks + window + top_k is 0: a row could read nothing", path);
    if (at->select == HDL_SELECT_TOP_K && at->score != HDL_SCORE_NONE && !at->top_k && !at->n_slashes)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.%s 0%s: score \"%s\" would score everything and choose nothing; must be at "
                        "least 1%s (forced tokens alone: score \"none\")",
                        path, at->n_head_units ? "head_top_k" : "top_k",
                        at->n_head_units ? " of every KV head" : "", row->name,
                        at->n_head_units ? " of some" : "");
    if (at->select == HDL_SELECT_BEAM && at->top_k < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.top_k 0: a beam needs a width of at least 1", path);
    if (at->refresh > 1 && at->window < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.refresh %d: needs a window of at least 1 token", path,
                        at->refresh);
    if (at->block > 1 && at->window < 1)
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.window %d: blocks need a window of at least 1 token, so that a row reads its own block", path,
            at->window);
    if (at->block & (at->block - 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.block %d: must be a power of two", path, at->block);
    if (row->is_by_block && at->block < 2 * row->entries_per_block)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.block %d: score \"%s\" is by block; must be at least %d", path,
                        at->block, row->name, 2 * row->entries_per_block);
    if (at->score == HDL_SCORE_STRIDE && at->stride < 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.stride: is missing; must be at least 1 block", path);
    if (at->select == HDL_SELECT_THRESHOLD && !json_object_get(obj, "threshold") &&
        (row->plane || at->score == HDL_SCORE_MASS)) /* what a pattern names is above 0 */
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.threshold: is missing; select \"threshold\" needs one", path);
    if (at->select == HDL_SELECT_TOP_P && at->score != HDL_SCORE_MASS && at->measure != HDL_MEASURE_MASS)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.select \"top_p\": needs a measure of mass; score \"%s\" has logits", path,
                        row->name);
    if (row->is_grouped && at->block > HDL_SEGMENT_TOKENS)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.block %d: score \"%s\" groups %d tokens at a time; must be at most that", path,
                        at->block, row->name, HDL_SEGMENT_TOKENS);
    if (row->is_grouped && at->window < HDL_SEGMENT_TOKENS)
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.window %d: score \"%s\" groups tokens when %d of them are there; must be at least "
            "that, so that a row reads those before",
            path, at->window, row->name, HDL_SEGMENT_TOKENS);
    if (row->is_grouped && (at->n_united || at->tile_by != HDL_TILE_BY_QUERY_MEAN))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s: goes not with score \"%s\"", path,
                        at->n_united ? "lists \"union\"" : "tile_by", row->name);
    if (at->is_scaled_by_length && !row->is_by_block)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.scale \"sqrt_length\": score \"%s\" is not by block", path,
                        row->name);
    bool is_index = row->is_scored && row->rule == HDL_RULE_INDEX;
    if ((at->n_united && at->score != HDL_SCORE_MASS && (!row->plane || is_index)) ||
        (at->is_per_kv_head && is_index))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.lists \"%s\": score \"%s\" is not by head; it makes one list",
                        path, at->n_united ? "union" : "kv_head", row->name);
    if (at->score == HDL_SCORE_MASS && json_object_get(obj, "measure"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.measure: score \"attention_mass\" is mass already", path);
    return HEDDLE_OK;
}

/* Members that the chosen score or select does not read: they would be passed over without a word. */
static heddle_status check_unread(const json_t *obj, const char *path, const hdl_router_spec *at)
{
    const hdl_score_row *row = &hdl_score_rows[at->score];
    bool has_heads = row->plane || at->score == HDL_SCORE_MASS;
    const struct {
        const char *key;
        bool is_read, is_of_select;
        const char *reader;
    } members[] = {
        {"p", at->select == HDL_SELECT_TOP_P, true, "select \"top_p\""},
        {"p_rule", at->select == HDL_SELECT_TOP_P, true, "select \"top_p\""},
        {"threshold", at->select == HDL_SELECT_THRESHOLD, true, "select \"threshold\""},
        {"stride", at->score == HDL_SCORE_STRIDE, false, "score \"stride\""},
        {"seed", at->score == HDL_SCORE_RANDOM, false, "score \"random\""},
        {"measure", has_heads, false, "scores that read a summary"},
        {"heads", has_heads, false, "scores of heads"},
        {"pool", has_heads && !row->is_by_block && at->block > 1, false,
         "scores of tokens where \"block\" is above 1"},
    };
    for (size_t i = 0; i < HDL_COUNT(members); i++) {
        const json_t *value = json_object_get(obj, members[i].key);
        char shown[64] = "";
        if (!value || members[i].is_read) continue;
        size_t n = json_dumpb(value, shown, sizeof shown - 1, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        shown[n < sizeof shown ? n : 0] = 0;
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s %s: is read by %s only, but %s is \"%s\"", path,
                        members[i].key, shown, members[i].reader,
                        members[i].is_of_select ? "select" : "score",
                        members[i].is_of_select ? selects[at->select] : row->name);
    }
    return HEDDLE_OK;
}

/* One list for the rows of a tile is scored by summaries: a dense pass has its mass row by row. */
static heddle_status check_tile(const json_t *obj, const char *path, const hdl_router_spec *at)
{
    const char *name = hdl_score_rows[at->score].name;
    if (at->tile == 1 && json_object_get(obj, "tile_by"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.tile_by: needs a tile above 1", path);
    if (at->tile == 1) return HEDDLE_OK;
    if (at->tile_by != HDL_TILE_BY_QUERY_MEAN && !hdl_score_rows[at->score].plane)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.tile_by: score \"%s\" is the same for all rows of a tile", path,
                        name);
    if (at->tile_by != HDL_TILE_BY_QUERY_MEAN && at->window < 1)
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.window %d: rows scored together need a window of at least 1 token, so that they read "
            "each other",
            path, at->window);
    if (at->tile & (at->tile - 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.tile %d: must be a power of two", path, at->tile);
    if (at->score == HDL_SCORE_MASS ||
        (hdl_score_rows[at->score].is_scored && hdl_score_rows[at->score].rule == HDL_RULE_INDEX))
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.tile %d: score \"%s\" is of single rows; a tile needs another score", path,
                        at->tile, name);
    if (at->refresh > 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.tile %d: goes not with refresh %d", path, at->tile,
                        at->refresh);
    if (json_object_get(obj, "candidates"))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.tile %d: goes not with candidates", path, at->tile);
    return HEDDLE_OK;
}

/* Distances are of the rows of a tile, summed; each head's or the layer's own, and tokens. */
static heddle_status check_slashes(const char *path, const hdl_router_spec *at)
{
    const char *why = at->tile == 1 || at->tile_by != HDL_TILE_BY_SUM ? "a tile above 1 and tile_by \"sum\""
                      : at->block > 1 || hdl_score_rows[at->score].is_by_block ? "lists of tokens"
                      : at->select != HDL_SELECT_TOP_K || at->n_head_units ? "select \"top_k\" with one top_k"
                      : at->n_united                                       ? "lists \"layer\" or \"kv_head\""
                                                                           : NULL;
    if (!at->n_slashes || !why) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_INVALID, "%s.slashes %d: needs %s", path, at->n_slashes, why);
}

/* A member whose value is one of a few words; its number goes to *value. */
typedef struct word_member {
    const char *key;
    const char *const *words;
    int *value;
} word_member;

/* Refuses what is no member: neither a word, nor a whole number, nor one that is read by itself. */
static heddle_status check_keys(const json_t *obj, const char *path, const word_member *words)
{
    static const char *const others[] = {"candidates", "head_top_k", "p", "threshold"};
    const char *keys[64];
    size_t n = 0;
    for (; words->key; words++) keys[n++] = words->key;
    for (const hdl_int_member *row = hdl_router_ints; row->key; row++) keys[n++] = row->key;
    for (size_t i = 0; i < HDL_COUNT(others); i++) keys[n++] = others[i];
    HDL_ASSERT(n < HDL_COUNT(keys));
    keys[n] = NULL;
    return hdl_json_only(obj, path, keys);
}

heddle_status hdl_router_read(const json_t *obj, const char *path, hdl_router_role role, hdl_router_spec *out)
{
    static const char *const measures[] = {"logit", "mass", NULL};
    static const char *const reduces[] = {"mean", "sum", "max", NULL};
    static const char *const p_rules[] = {"inclusive", "strict", "plus_one", "exclusive", NULL};
    static const char *const scales[] = {"none", "sqrt_length", NULL};
    static const char *const lists[] = {"layer", "kv_head", "union", NULL};
    static const char *const tile_bys[] = {"query_mean", "sum", "max", NULL};
    const char *scores[HDL_N_SCORE_KINDS + 1] = {NULL};
    int score = HDL_SCORE_MASS, heads = HDL_REDUCE_MEAN, pool = HDL_REDUCE_SUM, select = HDL_SELECT_TOP_K,
        p_rule = HDL_P_STRICT, list = 0, scale = 0, tile_by = HDL_TILE_BY_QUERY_MEAN, measure = -1;
    const word_member words[] = {{"score", scores, &score},       {"measure", measures, &measure},
                                 {"heads", reduces, &heads},      {"pool", reduces, &pool},
                                 {"select", selects, &select},    {"p_rule", p_rules, &p_rule},
                                 {"lists", lists, &list},         {"scale", scales, &scale},
                                 {"tile_by", tile_bys, &tile_by}, {NULL, NULL, NULL}};
    for (int i = 0; i < HDL_N_SCORE_KINDS; i++) scores[i] = hdl_score_rows[i].name;
    *out = (hdl_router_spec){.refresh = 1, .block = 1, .p = 1, .tile = 1};
    if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", path);
    HDL_TRY(check_keys(obj, path, words));
    for (const word_member *row = words; row->key; row++)
        HDL_TRY(hdl_word_read(obj, path, row->key, row->words, row->value));
    if (measure < 0) measure = hdl_score_rows[score].measure;
    if (pool == HDL_REDUCE_MEAN)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.pool \"mean\": must be \"sum\" or \"max\"", path);
    out->score = (hdl_score_kind)score;
    out->measure = (hdl_measure)measure;
    out->heads = (hdl_reduce)heads;
    out->pool = hdl_score_rows[score].entries_per_block > 1 ? HDL_REDUCE_MAX : (hdl_reduce)pool;
    out->select = (hdl_select_kind)select;
    out->p_rule = (hdl_p_rule)p_rule;
    out->is_per_kv_head = list == 1;
    out->n_united = list == 2; /* the KV heads, once the model is known */
    out->is_scaled_by_length = scale == 1;
    out->tile_by = (hdl_tile_by)tile_by;
    HDL_TRY(read_numbers(obj, path, out));
    HDL_TRY(read_head_top_k(obj, path, out));
    bool is_plain = !json_object_get(obj, "candidates") && out->refresh == 1;
    if (role != HDL_ROUTER_OF_LAYER && !is_plain)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: %s neither candidates nor a refresh of their own", path,
                        role == HDL_ROUTER_OF_HEADS ? "head routers have" : "candidates have");
    HDL_TRY(check_tile(obj, path, out));
    HDL_TRY(check_slashes(path, out));
    HDL_TRY(check_unread(obj, path, out));
    HDL_TRY(check_router(obj, path, out));
    HDL_TRY(check_threshold(path, out));
    return check_forced(path, role, out);
}

heddle_status hdl_candidates_read(const json_t *router, const char *path, hdl_candidates *out)
{
    const json_t *obj = json_object_get(router, "candidates"), *share = json_object_get(obj, "share");
    char at[256];
    *out = (hdl_candidates){.share = HDL_SHARE_NONE};
    if (!obj) return HEDDLE_OK;
    snprintf(at, sizeof at, "%s.candidates", path);
    if (!share) {
        out->has_router = true;
        return hdl_router_read(obj, at, HDL_ROUTER_OF_CANDIDATES, &out->router);
    }
    static const char *const keys[] = {"share", "of", NULL}, *const of[] = {"list", "candidates", NULL};
    int word = 0;
    HDL_TRY(hdl_json_only(obj, at, keys));
    HDL_TRY(hdl_word_read(obj, at, "of", of, &word));
    out->is_pool = word == 1;
    return hdl_share_read(share, at, &out->share);
}

heddle_status hdl_share_read(const json_t *share, const char *path, int32_t *out)
{
    if (json_is_integer(share) && json_integer_value(share) >= 0 &&
        json_integer_value(share) < HDL_MAX_LAYERS)
        *out = (int32_t)json_integer_value(share);
    else if (json_is_string(share) && !strcmp(json_string_value(share), "previous"))
        *out = HDL_SHARE_PREVIOUS;
    else
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.share: must be \"previous\" or a layer number", path);
    return HEDDLE_OK;
}
