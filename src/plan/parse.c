/* parse.c - plan text to a validated document, and a document fitted to a model.
 *
 * The document is the plan: overrides change it, format prints it, resolve reads it. Everything that
 * can be checked without a model is checked when it is parsed, with the path of the member
 * ("variants[0].decode[1].router.top_k"); what needs the model (layer numbers, sliding layers) in
 * resolve. The grammar is docs/plan.md. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "plan/parse.h"
#include "plan/presets.h"

enum { MAX_PLAN_BYTES = 1 << 20 };

typedef struct rule {
    const json_t *layers; /* array, a text, or an object that counts */
    hdl_operator_kind op;
    bool has_router;
    hdl_router_spec router;
    hdl_candidates candidates;
    int32_t n_head_routers, first_head_router; /* in the route's table, once it is there */
    hdl_head_router head_routers[HDL_MAX_HEAD_ROUTERS];
    int32_t share;    /* HDL_SHARE_NONE, HDL_SHARE_PREVIOUS, else a layer */
    int32_t n_mapped; /* 0 = no head_map */
    int16_t head_map[HDL_MAX_MAPPED_HEADS];
    int32_t complement; /* 0 = none */
    hdl_stop_rule stop; /* patience 0 = none */
} rule;

static heddle_status read_head_map(const json_t *map, const char *path, rule *out)
{
    size_t n = json_array_size(map);
    if (!map) return HEDDLE_OK;
    if (out->share == HDL_SHARE_NONE) return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_map: needs \"share\"", path);
    if (!n || n > HDL_MAX_MAPPED_HEADS)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_map: must be a list of 1..%d list numbers", path,
                        HDL_MAX_MAPPED_HEADS);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(map, i);
        int64_t list = json_is_integer(item) ? json_integer_value(item) : -1;
        if (list < 0 || list >= HDL_MAX_MAPPED_HEADS)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_map[%zu]: must be a list number", path, i);
        out->head_map[i] = (int16_t)list;
    }
    out->n_mapped = (int32_t)n;
    return HEDDLE_OK;
}

static const char *const operator_names[] = {"dense", "token_list", "block_list"};

static heddle_status read_operator(const json_t *obj, const char *path, rule *out)
{
    const char *op = "dense";
    HDL_TRY(hdl_json_str(obj, path, "operator", &op));
    for (int i = 0; i < HDL_COUNT(operator_names); i++)
        if (!strcmp(op, operator_names[i])) {
            out->op = (hdl_operator_kind)i;
            return HEDDLE_OK;
        }
    return HDL_FAIL(HEDDLE_E_INVALID,
                    "%s.operator \"%s\": must be \"dense\", \"token_list\" or \"block_list\"", path, op);
}

static heddle_status read_complement(const json_t *obj, const char *path, rule *out)
{
    int64_t block = 0;
    if (!json_object_get(obj, "complement")) return HEDDLE_OK;
    HDL_TRY(hdl_json_int(obj, path, "complement", 16, 256, &block));
    if (out->op == HDL_OPERATOR_DENSE)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.complement: a dense layer leaves nothing out", path);
    if (block & (block - 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.complement %lld: must be a power of two", path,
                        (long long)block);
    out->complement = (int32_t)block;
    return HEDDLE_OK;
}

static heddle_status read_stop(const json_t *obj, const char *path, rule *out)
{
    static const char *const keys[] = {"below", "tile", "patience", NULL};
    char at[256];
    double below = 0;
    int64_t tile = 64, patience = 1;
    if (!obj) return HEDDLE_OK;
    snprintf(at, sizeof at, "%s.stop", path);
    if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", at);
    HDL_TRY(hdl_json_only(obj, at, keys));
    HDL_TRY(hdl_json_num(obj, at, "below", &below));
    HDL_TRY(hdl_json_int(obj, at, "tile", 1, 1 << 16, &tile));
    HDL_TRY(hdl_json_int(obj, at, "patience", 1, 1 << 16, &patience));
    if (!(below >= 0 && (float)below < 1))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.below %.15g: must be at least 0 and, as a float, below 1", at,
                        below);
    if (out->op == HDL_OPERATOR_DENSE)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: a dense layer reads no list", at);
    if (out->complement || out->n_mapped)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: goes not with %s", at,
                        out->complement ? "complement" : "head_map");
    out->stop = (hdl_stop_rule){(float)below, (int32_t)tile, (int32_t)patience};
    return HEDDLE_OK;
}

/* {"first": n} or {"last": n}: one of the two, n from 1. */
static heddle_status check_count(const json_t *layers, const char *path)
{
    static const char *const keys[] = {"first", "last", NULL};
    char at[256];
    int64_t n = 0;
    snprintf(at, sizeof at, "%s.layers", path);
    HDL_TRY(hdl_json_only(layers, at, keys));
    if (json_object_size(layers) != 1)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: must have either \"first\" or \"last\"", at);
    HDL_TRY(hdl_json_int(layers, at, "first", 1, HDL_MAX_LAYERS, &n));
    return hdl_json_int(layers, at, "last", 1, HDL_MAX_LAYERS, &n);
}

static heddle_status read_rule(const json_t *obj, const char *path, rule *out)
{
    static const char *const keys[] = {"layers",   "operator",   "router", "share", "head_routers",
                                       "head_map", "complement", "stop",   NULL};
    *out = (rule){.share = HDL_SHARE_NONE, .candidates = {.share = HDL_SHARE_NONE}};
    if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", path);
    HDL_TRY(hdl_json_only(obj, path, keys));
    HDL_TRY(read_operator(obj, path, out));
    out->layers = json_object_get(obj, "layers");
    const char *word = json_string_value(out->layers);
    for (size_t i = 0; i < json_array_size(out->layers); i++)
        if (!json_is_integer(json_array_get(out->layers, i)))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.layers[%zu]: must be a whole number", path, i);
    if (json_is_array(out->layers) && !json_array_size(out->layers))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.layers: is an empty list; must name at least one layer", path);
    if (json_is_object(out->layers))
        HDL_TRY(check_count(out->layers, path));
    else if (!json_is_array(out->layers) && (!word || (strcmp(word, "all") && strcmp(word, "rest") &&
                                                       strcmp(word, "first") && strcmp(word, "leaders"))))
        return HDL_FAIL(
            HEDDLE_E_INVALID,
            "%s.layers: must be \"all\", \"first\", \"leaders\", \"rest\", a list of layer numbers, "
            "{\"first\": n} or {\"last\": n}",
            path);
    const json_t *share = json_object_get(obj, "share"), *router = json_object_get(obj, "router");
    if (router) {
        char router_path[256];
        snprintf(router_path, sizeof router_path, "%s.router", path);
        out->has_router = true;
        HDL_TRY(hdl_router_read(router, router_path, HDL_ROUTER_OF_LAYER, &out->router));
        HDL_TRY(hdl_candidates_read(router, router_path, &out->candidates));
        hdl_router_spec *from = &out->candidates.router; /* what the router reads all of, they hold all of */
        if (out->candidates.has_router)
            from->dense_below = HDL_MAX(from->dense_below, out->router.dense_below);
    }
    HDL_TRY(hdl_head_routers_read(obj, path, router ? &out->router : NULL, out->head_routers,
                                  &out->n_head_routers));
    if (share) HDL_TRY(hdl_share_read(share, path, &out->share));
    if (out->op != HDL_OPERATOR_DENSE && out->has_router == (out->share != HDL_SHARE_NONE))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: %s needs either a router of its own or \"share\"; it has %s",
                        path, operator_names[out->op], out->has_router ? "both" : "neither");
    if (out->op == HDL_OPERATOR_DENSE && out->share != HDL_SHARE_NONE)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.share: a dense layer reads no list", path);
    HDL_TRY(read_complement(obj, path, out));
    HDL_TRY(read_head_map(json_object_get(obj, "head_map"), path, out));
    return read_stop(json_object_get(obj, "stop"), path, out);
}

static const char *layers_word(const json_t *rules, size_t i)
{
    const char *word = json_string_value(json_object_get(json_array_get(rules, i), "layers"));
    return word ? word : "";
}

/* "rest" may be nothing in some models, but behind a rule that takes all that are left it is so in every one. */
static heddle_status check_rest(const json_t *rules, size_t i, const char *path)
{
    if (strcmp(layers_word(rules, i), "rest")) return HEDDLE_OK;
    for (size_t j = 0; j < i; j++)
        if (!strcmp(layers_word(rules, j), "all") || !strcmp(layers_word(rules, j), "rest"))
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.layers \"rest\": names no layer: rule %zu before it names \"%s\"", path, j,
                            layers_word(rules, j));
    return HEDDLE_OK;
}

static const char *const route_keys[] = {"prefill", "decode"};

static heddle_status check_variant(const json_t *variant, const char *path)
{
    static const char *const keys[] = {"when", "prefill", "decode", "retain", NULL};
    static const char *const when_keys[] = {"arch", "n_layers", "hidden_size", NULL};
    char at[256];
    if (!json_is_object(variant)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", path);
    HDL_TRY(hdl_json_only(variant, path, keys));
    const json_t *when = json_object_get(variant, "when");
    snprintf(at, sizeof at, "%s.when", path);
    if (when && !json_is_object(when)) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be an object", at);
    if (when) {
        const char *arch = NULL;
        int64_t n = 0;
        HDL_TRY(hdl_json_only(when, at, when_keys));
        HDL_TRY(hdl_json_str(when, at, "arch", &arch));
        HDL_TRY(hdl_json_int(when, at, "n_layers", 1, HDL_MAX_LAYERS, &n));
        HDL_TRY(hdl_json_int(when, at, "hidden_size", 1, 1 << 24, &n));
    }
    for (int r = 0; r < 2; r++) {
        const json_t *rules = json_object_get(variant, route_keys[r]);
        if (rules && !json_is_array(rules))
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.%s: must be a list of rules", path, route_keys[r]);
        for (size_t i = 0; rules && i < json_array_size(rules); i++) {
            rule one;
            snprintf(at, sizeof at, "%s.%s[%zu]", path, route_keys[r], i);
            HDL_TRY(read_rule(json_array_get(rules, i), at, &one));
            HDL_TRY(check_rest(rules, i, at));
        }
    }
    hdl_retain_spec retain;
    snprintf(at, sizeof at, "%s.retain", path);
    return hdl_retain_read(json_object_get(variant, "retain"), at, &retain);
}

/* Whether every model that `later` fits is fitted by `earlier`, which comes first and is taken. */
static bool is_shadowed(const json_t *earlier, const json_t *later)
{
    const json_t *asked = json_object_get(earlier, "when"), *given = json_object_get(later, "when");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)asked, key,
                        value) if (!json_equal(value, json_object_get(given, key))) return false;
    return true;
}

static heddle_status check_variants(const json_t *variants)
{
    if (!json_is_array(variants) || !json_array_size(variants))
        return HDL_FAIL(HEDDLE_E_INVALID, "variants: must be a list of at least one variant");
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *variant = json_array_get(variants, i);
        char path[64];
        snprintf(path, sizeof path, "variants[%zu]", i);
        HDL_TRY(check_variant(variant, path));
        for (size_t j = 0; j < i; j++)
            if (is_shadowed(json_array_get(variants, j), variant))
                return HDL_FAIL(HEDDLE_E_INVALID,
                                "%s.when: variants[%zu], which comes first, fits every model that this fits",
                                path, j);
    }
    return HEDDLE_OK;
}

/* A line for people. */
static heddle_status check_text(const char *text, const char *path)
{
    if (!text) return HDL_FAIL(HEDDLE_E_INVALID, "%s: must be a text", path);
    if (!*text) return HDL_FAIL(HEDDLE_E_INVALID, "%s \"\": must have at least one character", path);
    for (int64_t i = 0; text[i]; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 127)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s: has control character %d at byte %lld; must have none",
                            path, text[i], (long long)i);
    return HEDDLE_OK;
}

static heddle_status check_cites(const json_t *cites)
{
    if (cites && !json_is_array(cites)) return HDL_FAIL(HEDDLE_E_INVALID, "cites: must be a list of texts");
    for (size_t i = 0; i < json_array_size(cites); i++) {
        char path[64];
        snprintf(path, sizeof path, "cites[%zu]", i);
        HDL_TRY(check_text(json_string_value(json_array_get(cites, i)), path));
    }
    return HEDDLE_OK;
}

static heddle_status check_doc(const json_t *doc)
{
    static const char *const keys[] = {"heddle_plan", "name", "about", "cites", "variants", NULL};
    int64_t version = 0;
    const char *name = NULL, *about = NULL;
    if (!json_is_object(doc)) return HDL_FAIL(HEDDLE_E_INVALID, "a plan must be a JSON object");
    HDL_TRY(hdl_json_only(doc, "", keys));
    HDL_TRY(hdl_json_int(doc, "", "heddle_plan", HDL_PLAN_VERSION, HDL_PLAN_VERSION, &version));
    if (!version) return HDL_FAIL(HEDDLE_E_INVALID, "heddle_plan: is missing; must be %d", HDL_PLAN_VERSION);
    HDL_TRY(hdl_json_str(doc, "", "name", &name));
    HDL_TRY(hdl_json_str(doc, "", "about", &about));
    if (!name) return HDL_FAIL(HEDDLE_E_INVALID, "name: is missing");
    HDL_TRY(check_text(name, "name"));
    if (about && *about) HDL_TRY(check_text(about, "about"));
    HDL_TRY(check_cites(json_object_get(doc, "cites")));
    return check_variants(json_object_get(doc, "variants"));
}

/* Prefixes the thread's sentence with the plan's source, so that it names the file. */
static heddle_status blame(heddle_status status, const char *source)
{
    return HDL_FAIL(status, "plan %s: %s", source, hdl_last_error());
}

static heddle_status adopt(hdl_plan **out, json_t *doc, const char *source)
{
    *out = NULL;
    heddle_status status = check_doc(doc);
    hdl_plan *plan = status ? NULL : hdl_calloc(1, sizeof *plan);
    char *kept_source = plan ? hdl_strdup(source) : NULL;
    if (!kept_source) {
        hdl_free(plan);
        json_decref(doc);
        return status ? blame(status, source) : HEDDLE_E_NOMEM;
    }
    const char *about = json_string_value(json_object_get(doc, "about"));
    *plan = (hdl_plan){.doc = doc,
                       .name = json_string_value(json_object_get(doc, "name")),
                       .about = about ? about : "",
                       .source = kept_source};
    *out = plan;
    return HEDDLE_OK;
}

heddle_status hdl_plan_parse(hdl_plan **out, const char *text, int64_t n_bytes, const char *name)
{
    *out = NULL;
    json_t *doc;
    heddle_status status = hdl_json_parse(&doc, text, n_bytes, name);
    if (status) return HDL_FAIL(status, "plan %s", hdl_last_error());
    return adopt(out, doc, name);
}

/* Members that are not what they should be are passed over: check_doc names them afterwards. */
static heddle_status override_one(json_t *router, const char *key, int64_t value, bool is_anywhere,
                                  int64_t *n_set)
{
    if (!json_is_object(router) || (!is_anywhere && !json_object_get(router, key))) return HEDDLE_OK;
    if (json_object_set_new(router, key, json_integer(value)))
        return HDL_FAIL(HEDDLE_E_NOMEM, "out of memory while setting %s", key);
    ++*n_set;
    return HEDDLE_OK;
}

/* Sets the member in every router of the document (candidates too) that states it, or anywhere. */
static heddle_status override_routers(json_t *doc, const char *key, int64_t value, bool is_anywhere,
                                      int64_t *n_set)
{
    const json_t *variants = json_object_get(doc, "variants");
    for (size_t i = 0; i < json_array_size(variants); i++)
        for (int r = 0; r < 2; r++) {
            const json_t *rules = json_object_get(json_array_get(variants, i), route_keys[r]);
            for (size_t j = 0; j < json_array_size(rules); j++) {
                json_t *rule_at = json_array_get(rules, j), *router = json_object_get(rule_at, "router"),
                       *of_heads = json_object_get(rule_at, "head_routers");
                HDL_TRY(override_one(router, key, value, is_anywhere, n_set));
                HDL_TRY(override_one(json_object_get(router, "candidates"), key, value, false, n_set));
                for (size_t h = 0; h < json_array_size(of_heads); h++)
                    HDL_TRY(override_one(json_object_get(json_array_get(of_heads, h), "router"), key, value,
                                         is_anywhere, n_set));
            }
        }
    return HEDDLE_OK;
}

/* The same for the retain sets. */
static heddle_status override_retain(json_t *doc, const char *key, int64_t value, int64_t *n_set)
{
    const json_t *variants = json_object_get(doc, "variants");
    for (size_t i = 0; i < json_array_size(variants); i++)
        HDL_TRY(
            override_one(json_object_get(json_array_get(variants, i), "retain"), key, value, true, n_set));
    return HEDDLE_OK;
}

static const hdl_int_member *find_int(const hdl_int_member *rows, const char *key, size_t n)
{
    for (; rows->key; rows++)
        if (n == strlen(rows->key) && !strncmp(key, rows->key, n)) return rows;
    return NULL;
}

/* "did you mean" of an override, or what there is. */
static heddle_status unknown_override(const char *text, size_t n_key, size_t n)
{
    const char *keys[64];
    size_t n_keys = 0;
    hdl_buf all = {0};
    for (const hdl_int_member *row = hdl_router_ints; row->key; row++) keys[n_keys++] = row->key;
    for (const hdl_int_member *row = hdl_retain_ints; row->key; row++)
        if (!find_int(hdl_router_ints, row->key, strlen(row->key))) keys[n_keys++] = row->key;
    HDL_ASSERT(n_keys < HDL_COUNT(keys));
    keys[n_keys] = NULL;
    const char *nearest = hdl_nearest_word(text, (int64_t)n_key, keys);
    if (nearest)
        return HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": is not known here; did you mean \"%s\"?",
                        (int)n, text, nearest);
    for (size_t i = 0; i < n_keys; i++) hdl_buf_printf(&all, "%s%s", i ? ", " : "", keys[i]);
    heddle_status status = hdl_buf_status(&all);
    if (!status)
        status = HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": must be one of %s", (int)n, text, all.data);
    hdl_buf_deinit(&all);
    return status;
}

/* Whether the key [n bytes] at `text` is set by an override before it. */
static bool is_given_before(const char *first, const char *text, size_t n)
{
    for (; first < text; first += strcspn(first, ",") + 1)
        if (!strncmp(first, text, n) && first[n] == '=') return true;
    return false;
}

/* The number of "key=number" [n bytes], without blanks or a plus. Numbers that its row does not allow are refused with
 * the whole document, which names the member, but not those that no integer holds. */
static heddle_status read_override(const char *text, size_t n, const hdl_int_member *row, int64_t *value)
{
    const char *equals = memchr(text, '=', n), *digits = equals ? equals + 1 : text;
    char *end = NULL;
    errno = 0;
    *value = strtoll(digits, &end, 10);
    if (!equals || end != text + n || !strchr("-0123456789", *digits) || end == digits)
        return HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": must be key=whole number", (int)n, text);
    if (errno == ERANGE)
        return HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": must be in %lld..%lld", (int)n, text,
                        (long long)row->min, (long long)row->max);
    return HEDDLE_OK;
}

/* "key=value,key=value" into every router, or where the plan has none, into every retain set. */
static heddle_status override_doc(json_t *doc, const char *text)
{
    const char *first = text;
    if (!*text) return HDL_FAIL(HEDDLE_E_INVALID, "the colon before overrides is followed by none");
    for (bool is_last = false; !is_last;) {
        int64_t n_set = 0, value = 0;
        size_t n = strcspn(text, ",");
        const char *equals = memchr(text, '=', n);
        size_t n_key = equals ? (size_t)(equals - text) : n;
        const hdl_int_member *in_router = find_int(hdl_router_ints, text, n_key),
                             *in_retain = find_int(hdl_retain_ints, text, n_key);
        if (!in_router && !in_retain) return unknown_override(text, n_key, n);
        if (is_given_before(first, text, n_key))
            return HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": %.*s is given before", (int)n, text,
                            (int)n_key, text);
        HDL_TRY(read_override(text, n, in_router ? in_router : in_retain, &value));
        if (in_router) HDL_TRY(override_routers(doc, in_router->key, value, false, &n_set));
        if (in_router && !n_set) HDL_TRY(override_routers(doc, in_router->key, value, true, &n_set));
        if (in_retain && !n_set) HDL_TRY(override_retain(doc, in_retain->key, value, &n_set));
        if (!n_set && !check_doc(doc))
            return HDL_FAIL(HEDDLE_E_INVALID, "override \"%.*s\": the plan has no %s", (int)n, text,
                            in_router ? "router" : "retain set");
        is_last = !text[n];
        text += n + 1;
    }
    return HEDDLE_OK;
}

static heddle_status load_text(hdl_buf *text, const char *spec, int64_t n_name)
{
    for (const hdl_embedded_plan *p = hdl_embedded_plans; p->name; p++)
        if (n_name == (int64_t)strlen(p->name) && !strncmp(spec, p->name, (size_t)n_name)) {
            hdl_buf_add(text, p->text, p->n_bytes);
            return hdl_buf_status(text);
        }
    char *path = hdl_strndup(spec, n_name);
    if (!path) return HEDDLE_E_NOMEM;
    heddle_status status;
    if (strchr(path, '/') || strstr(path, ".json")) {
        status = hdl_buf_read_file(text, path, MAX_PLAN_BYTES);
        if (status) status = HDL_FAIL(status, "plan %s", hdl_last_error());
    } else if (strchr(path, ':')) {
        status = HDL_FAIL(HEDDLE_E_INVALID,
                          "plan \"%s\": overrides follow one colon and are separated by commas, as in "
                          "anchor:top_k=256,window=64",
                          spec);
    } else {
        const char *words[128];
        size_t n_words = 0;
        hdl_buf names = {0};
        for (const hdl_embedded_plan *p = hdl_embedded_plans; p->name && n_words + 1 < HDL_COUNT(words);
             p++) {
            words[n_words++] = p->name;
            hdl_buf_printf(&names, "%s%s", p == hdl_embedded_plans ? "" : ", ", p->name);
        }
        words[n_words] = NULL;
        const char *nearest = hdl_nearest_word(path, n_name, words);
        status = HDL_FAIL(HEDDLE_E_INVALID,
                          "plan \"%s\": %s%s%sis neither a file (name it with / or .json) nor one of: %s",
                          path, nearest ? "did you mean \"" : "", nearest ? nearest : "",
                          nearest ? "\"? It " : "", names.data ? names.data : "");
        hdl_buf_deinit(&names);
    }
    hdl_free(path);
    return status;
}

/* The colon before the overrides. A path may hold colons: what follows the last one is part of the
 * path when it has a slash or ends the name of a JSON file. */
static const char *override_colon(const char *spec)
{
    const char *colon = strrchr(spec, ':');
    size_t n = strlen(spec);
    bool is_path = colon && (strchr(colon, '/') || (n >= 5 && !strcmp(spec + n - 5, ".json")));
    return is_path ? NULL : colon;
}

heddle_status hdl_plan_named(hdl_plan **out, const char *spec)
{
    *out = NULL;
    hdl_buf text = {0};
    const char *colon = override_colon(spec);
    int64_t n_name = colon ? colon - spec : (int64_t)strlen(spec);
    json_t *doc = NULL;
    heddle_status status = load_text(&text, spec, n_name);
    if (!status) status = hdl_json_parse(&doc, text.data ? text.data : "", text.n, spec);
    if (!status && colon && (status = override_doc(doc, colon + 1))) {
        json_decref(doc);
        status = blame(status, spec);
    }
    if (!status) status = adopt(out, doc, spec);
    if (!status) (*out)->is_named = true;
    hdl_buf_deinit(&text);
    return status;
}

void hdl_plan_free(hdl_plan *plan)
{
    if (!plan) return;
    json_decref(plan->doc);
    hdl_free(plan->source);
    hdl_free(plan);
}

heddle_status hdl_plan_format(const hdl_plan *plan, hdl_buf *text)
{
    char *dump = json_dumps(plan->doc, JSON_INDENT(2));
    if (!dump) return HDL_FAIL(HEDDLE_E_NOMEM, "out of memory while printing plan %s", plan->source);
    hdl_buf_puts(text, dump);
    free(dump);
    return hdl_buf_status(text);
}

static bool variant_fits(const json_t *variant, const hdl_model_facts *facts)
{
    const json_t *when = json_object_get(variant, "when");
    const char *arch = json_string_value(json_object_get(when, "arch"));
    const json_t *n_layers = json_object_get(when, "n_layers"),
                 *hidden = json_object_get(when, "hidden_size");
    return (!arch || !strcmp(arch, facts->arch)) &&
           (!n_layers || json_integer_value(n_layers) == facts->n_layers) &&
           (!hidden || json_integer_value(hidden) == facts->hidden_size);
}

/* Applies one rule to a layer that a list or a word named. */
static void apply(const rule *one, int32_t layer, const hdl_model_facts *facts, hdl_route_plan *out,
                  hdl_wishes *wanted)
{
    hdl_layer_plan *at = &out->layers[layer];
    *at = (hdl_layer_plan){.op = one->op,
                           .has_router = one->has_router,
                           .router = one->router,
                           .n_head_routers = one->n_head_routers,
                           .first_head_router = one->first_head_router,
                           .has_candidates = one->candidates.has_router,
                           .candidates = one->candidates.router,
                           .candidate_owner = -1,
                           .owner = -1,
                           .complement = one->complement,
                           .stop = one->stop,
                           .has_head_map = one->n_mapped > 0};
    memcpy(at->head_map, one->head_map, sizeof at->head_map);
    if (at->router.n_united) at->router.n_united = facts->n_kv_heads;
    if (at->candidates.n_united) at->candidates.n_united = facts->n_kv_heads;
    wanted->share[layer] = one->share;
    wanted->pool[layer] = one->candidates.share;
    wanted->is_pool[layer] = one->candidates.is_pool;
}

/* The first or last n of the layers without a window, whatever rules named before: these must not be among
 * them. */
static heddle_status apply_count(const rule *one, const char *path, const hdl_model_facts *facts,
                                 hdl_route_plan *out, hdl_wishes *wanted, int32_t index)
{
    const json_t *last = json_object_get(one->layers, "last");
    const char *end = last ? "last" : "first";
    int64_t n = json_integer_value(last ? last : json_object_get(one->layers, "first"));
    int32_t n_open = 0, at = 0;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) n_open += hdl_layer_is_open(facts, layer);
    if (n > n_open)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s.layers.%s %lld: the model has %d layers without a window or state", path, end,
                        (long long)n, n_open);
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        if (!hdl_layer_is_open(facts, layer)) continue;
        int32_t place = at++;
        if (last ? place < n_open - n : place >= n) continue;
        if (wanted->rule[layer] >= 0)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.layers.%s %lld: a rule before it names layer %d", path, end,
                            (long long)n, layer);
        apply(one, layer, facts, out, wanted);
        wanted->rule[layer] = index;
    }
    return HEDDLE_OK;
}

/* The layers without a window that no rule named yet, or some of them. */
static heddle_status apply_word(const rule *one, const char *path, const hdl_model_facts *facts,
                                hdl_route_plan *out, hdl_wishes *wanted, int32_t index)
{
    bool is_one = !strcmp(json_string_value(one->layers), "first");
    bool is_leading = !strcmp(json_string_value(one->layers), "leaders");
    int32_t n_named = 0;
    for (int32_t layer = 0; layer < facts->n_layers && !(is_one && n_named); layer++)
        if (wanted->rule[layer] < 0 && hdl_layer_is_open(facts, layer) &&
            (!is_leading || facts->layers[layer].leads_group)) {
            apply(one, layer, facts, out, wanted);
            wanted->rule[layer] = index;
            n_named++;
        }
    /* "rest" may be nothing: the rules before name every layer of some models */
    if (!n_named && strcmp(json_string_value(one->layers), "rest"))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s.layers \"%s\": names no layer of this model: %s", path,
                        json_string_value(one->layers),
                        is_leading ? "it has no index whose groups have leaders"
                                   : "rules before name those without a window or state, or it has none");
    return HEDDLE_OK;
}

static heddle_status apply_rule(rule *one, const char *path, const hdl_model_facts *facts,
                                hdl_route_plan *out, hdl_wishes *wanted, int32_t index)
{
    if (one->n_mapped && one->n_mapped != facts->n_kv_heads)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_map: has %d entries; the model has %d KV heads", path,
                        one->n_mapped, facts->n_kv_heads);
    const hdl_router_spec *routers[] = {&one->router, &one->candidates.router};
    for (int r = 0; r < 2; r++)
        if (routers[r]->n_head_units && routers[r]->n_head_units != facts->n_kv_heads)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.router%s.head_top_k: has %d entries; the model has %d KV heads", path,
                            r ? ".candidates" : "", routers[r]->n_head_units, facts->n_kv_heads);
    for (int r = 0; r < 2; r++)
        if (routers[r]->n_united && facts->n_kv_heads > HDL_MAX_UNITED)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "%s.router%s.lists \"union\": the model has %d KV heads; at most %d", path,
                            r ? ".candidates" : "", facts->n_kv_heads, HDL_MAX_UNITED);
    HDL_TRY(hdl_head_routers_fit(one->head_routers, one->n_head_routers, facts, path));
    HDL_TRY(hdl_head_routers_add(out, one->head_routers, one->n_head_routers, path, &one->first_head_router));
    for (int32_t i = 0; i < one->n_mapped; i++)
        if (one->head_map[i] >= facts->n_kv_heads)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.head_map[%d] %d: must be in 0..%d", path, i,
                            one->head_map[i], facts->n_kv_heads - 1);
    if (json_is_object(one->layers)) return apply_count(one, path, facts, out, wanted, index);
    if (!json_is_array(one->layers)) return apply_word(one, path, facts, out, wanted, index);
    for (size_t i = 0; i < json_array_size(one->layers); i++) {
        const json_t *item = json_array_get(one->layers, i);
        int64_t layer = json_is_integer(item) ? json_integer_value(item) : -1;
        if (layer < 0 || layer >= facts->n_layers)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.layers[%zu] %lld: the model has layers 0..%d", path, i,
                            (long long)layer, facts->n_layers - 1);
        if (wanted->rule[layer] >= 0)
            return HDL_FAIL(HEDDLE_E_INVALID, "%s.layers[%zu] %lld: a rule before it names this layer", path,
                            i, (long long)layer);
        bool wants_list = one->op != HDL_OPERATOR_DENSE || one->has_router;
        if (facts->layers[layer].is_delta && wants_list)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.layers[%zu] %lld: this layer keeps a gated-delta state in place of rows; "
                            "it can neither make nor read a list",
                            path, i, (long long)layer);
        if (facts->layers[layer].window && wants_list)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s.layers[%zu] %lld: the model gives this layer a window of %d tokens; "
                            "it can neither make nor read a list",
                            path, i, (long long)layer, facts->layers[layer].window);
        apply(one, (int32_t)layer, facts, out, wanted);
        wanted->rule[layer] = index;
    }
    return HEDDLE_OK;
}

heddle_status hdl_plan_variant(const hdl_plan *plan, const hdl_model_facts *facts, const json_t **variant,
                               int *number)
{
    const json_t *variants = json_object_get(plan->doc, "variants");
    for (size_t i = 0; i < json_array_size(variants); i++)
        if (variant_fits(json_array_get(variants, i), facts)) {
            *variant = json_array_get(variants, i);
            *number = (int)i;
            return HEDDLE_OK;
        }
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                    "plan %s: has no variant for architecture %s with %d layers and hidden size %d",
                    plan->source, facts->arch, facts->n_layers, facts->hidden_size);
}

heddle_status hdl_plan_resolve(const hdl_plan *plan, const hdl_model_facts *facts, hdl_route route,
                               hdl_route_plan *out)
{
    const json_t *variant = NULL;
    int number = 0;
    HDL_TRY(hdl_plan_variant(plan, facts, &variant, &number));
    hdl_wishes wanted;
    out->n_head_routers = 0;
    for (int32_t layer = 0; layer < facts->n_layers; layer++) {
        out->layers[layer] = (hdl_layer_plan){.owner = -1, .candidate_owner = -1};
        wanted.share[layer] = wanted.pool[layer] = HDL_SHARE_NONE;
        wanted.rule[layer] = -1;
    }
    char path[64];
    const json_t *rules = json_object_get(variant, route_keys[route]);
    for (size_t i = 0; i < json_array_size(rules); i++) {
        rule one;
        snprintf(path, sizeof path, "variants[%d].%s[%zu]", number, route_keys[route], i);
        HDL_TRY(read_rule(json_array_get(rules, i), path, &one));
        heddle_status status = apply_rule(&one, path, facts, out, &wanted, (int32_t)i);
        if (status) return blame(status, plan->source);
    }
    snprintf(path, sizeof path, "variants[%d].%s", number, route_keys[route]);
    heddle_status status = hdl_share_owners(out, facts, &wanted, path);
    if (!status && plan->is_named) status = hdl_share_unread(out, facts, &wanted, path);
    return status ? blame(status, plan->source) : HEDDLE_OK;
}
