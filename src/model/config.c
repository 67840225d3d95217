/* config.c - from GGUF metadata or config.json to hdl_stated.
 *
 * One table names every number in both formats, its bounds and its place; a second names the
 * keys whose value would make us compute something else than the model. What does not fit a
 * table (RoPE scaling, lists of layer types) has a function per format. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "model/model_int.h"

typedef struct fact_key {
    const char *gguf; /* after "<architecture>."; NULL = not in this format */
    const char *json;
    size_t at; /* offset in hdl_stated of an int64_t, or of a double */
    bool is_num;
    double min, max;
    bool is_required;
} fact_key;

#define AT(member) offsetof(hdl_stated, member)

static const fact_key fact_keys[] = {
    {"block_count", "num_hidden_layers", AT(n_layers), false, 1, HDL_MAX_LAYERS, true},
    {"embedding_length", "hidden_size", AT(hidden_size), false, 1, 1 << 20, true},
    {"feed_forward_length", "intermediate_size", AT(n_ff), false, 1, 1 << 24, true},
    {"attention.head_count", "num_attention_heads", AT(n_heads), false, 1, 1024, true},
    {"attention.head_count_kv", "num_key_value_heads", AT(n_kv_heads), false, 1, 1024, false},
    {"attention.key_length", "head_dim", AT(head_dim), false, 1, HDL_MAX_ROPE_DIM, false},
    {"attention.value_length", NULL, AT(v_head_dim), false, 1, HDL_MAX_ROPE_DIM, false},
    {NULL, "vocab_size", AT(n_vocab), false, 1, 1 << 28, true},
    {"context_length", "max_position_embeddings", AT(context), false, 0, INT32_MAX, false},
    {"attention.sliding_window", "sliding_window", AT(window), false, 0, INT32_MAX, false},
    {NULL, "sliding_window_pattern", AT(sliding_pattern), false, 1, HDL_MAX_LAYERS, false},
    {NULL, "_sliding_window_pattern", AT(sliding_pattern), false, 1, HDL_MAX_LAYERS, false},
    {"rope.dimension_count", NULL, AT(rope_dim), false, 2, HDL_MAX_ROPE_DIM, false},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps", AT(norm_eps), true, 1e-30, 1, true},
    {"rope.freq_base", "rope_theta", AT(rope.base), true, 1, 1e15, false},
    {"rope.freq_base_swa", "rope_local_base_freq", AT(local_rope.base), true, 1, 1e15, false},
    {"rope.scaling.attn_factor", NULL, AT(rope.attn_factor), true, 1e-6, 1e6, false},
    {NULL, "partial_rotary_factor", AT(rotary_share), true, 1e-6, 1, false},
    {NULL, "query_pre_attn_scalar", AT(query_scalar), true, 1e-6, 1e9, false},
    {"attention.scale", NULL, AT(attn_scale), true, 0, 1e9, false},
    {"attn_logit_softcapping", "attn_logit_softcapping", AT(attn_soft_cap), true, 0, 1e9, false},
    {"final_logit_softcapping", "final_logit_softcapping", AT(logit_soft_cap), true, 0, 1e9, false},
};

/* Keys that must hold `only` where they are present. */
static const struct {
    const char *gguf, *json;
    int64_t only;
    const char *what;
} refusals[] = {
    {"expert_count", "num_experts", 0, "routed experts are"},
    {NULL, "num_local_experts", 0, "routed experts are"},
    {"attention.causal", NULL, 1, "attention to later tokens is"},
    {NULL, "use_bidirectional_attention", 0, "attention to later tokens is"},
};

static bool is_within(double value, const fact_key *key)
{
    return value >= key->min && value <= key->max; /* false for NaN */
}

static heddle_status store(hdl_stated *stated, const fact_key *key, const char *name, int64_t whole,
                           double num)
{
    if (!is_within(key->is_num ? num : (double)whole, key))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s %.15g: must be in %.15g..%.15g", name,
                        key->is_num ? num : (double)whole, key->min, key->max);
    char *at = (char *)stated + key->at;
    if (key->is_num)
        memcpy(at, &num, sizeof num);
    else
        memcpy(at, &whole, sizeof whole);
    return HEDDLE_OK;
}

/* Required keys that have no value, stated or default. */
static heddle_status check_required(const hdl_stated *stated, bool is_gguf, const char *arch)
{
    for (int64_t i = 0; i < HDL_COUNT(fact_keys); i++) {
        const fact_key *key = &fact_keys[i];
        const char *name = is_gguf ? key->gguf : key->json;
        int64_t bits;
        memcpy(&bits, (const char *)stated + key->at, sizeof bits);
        if (key->is_required && name && !bits)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s%s%s: is missing", is_gguf ? arch : "", is_gguf ? "." : "",
                            name);
    }
    return HEDDLE_OK;
}

/* --- GGUF -------------------------------------------------------------------------------- */

typedef struct gguf_keys {
    const hdl_gguf *gguf;
    const char *arch;
    char key[128]; /* the last one looked up */
} gguf_keys;

static const char *full_key(gguf_keys *keys, const char *suffix)
{
    snprintf(keys->key, sizeof keys->key, "%s.%s", keys->arch, suffix);
    return keys->key;
}

/* Tells a key that is absent (OK, *is_there false) from one of the wrong type. */
static heddle_status look_up(gguf_keys *keys, const char *suffix, bool is_num, int64_t *whole, double *num,
                             bool *is_there)
{
    const char *key = full_key(keys, suffix);
    hdl_clear_error();
    *is_there = hdl_gguf_int(keys->gguf, key, whole);
    if (*is_there) *num = (double)*whole;
    if (!*is_there && is_num) {
        hdl_clear_error();
        *is_there = hdl_gguf_num(keys->gguf, key, num);
    }
    if (!*is_there && *hdl_last_error()) return HEDDLE_E_UNSUPPORTED;
    return HEDDLE_OK;
}

static heddle_status read_gguf_facts(hdl_stated *stated, gguf_keys *keys)
{
    int64_t whole = 0;
    double num = 0;
    bool is_there;
    for (int64_t i = 0; i < HDL_COUNT(fact_keys); i++) {
        const fact_key *key = &fact_keys[i];
        if (!key->gguf) continue;
        HDL_TRY(look_up(keys, key->gguf, key->is_num, &whole, &num, &is_there));
        if (is_there) HDL_TRY(store(stated, key, keys->key, whole, num));
    }
    for (int64_t i = 0; i < HDL_COUNT(refusals); i++) {
        if (!refusals[i].gguf) continue;
        HDL_TRY(look_up(keys, refusals[i].gguf, false, &whole, &num, &is_there));
        if (is_there && whole != refusals[i].only)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s %lld: %s not supported", keys->key, (long long)whole,
                            refusals[i].what);
    }
    return HEDDLE_OK;
}

static bool text_is(hdl_text text, const char *word)
{
    return text.n == (int64_t)strlen(word) && !memcmp(text.data, word, (size_t)text.n);
}

static heddle_status read_gguf_scaling(hdl_stated *stated, gguf_keys *keys)
{
    hdl_text type = {"linear", 6};
    hdl_gguf_str(keys->gguf, full_key(keys, "rope.scaling.type"), &type);
    if (text_is(type, "none")) return HEDDLE_OK;
    if (!text_is(type, "linear"))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s \"%.*s\": must be none or linear", keys->key,
                        (int)HDL_MIN(type.n, 64), type.data);
    int64_t whole;
    double factor = 0;
    bool is_there;
    HDL_TRY(look_up(keys, "rope.scaling.factor", true, &whole, &factor, &is_there));
    if (!is_there) HDL_TRY(look_up(keys, "rope.scale_linear", true, &whole, &factor, &is_there));
    if (!is_there || factor == 0 || factor == 1) return HEDDLE_OK;
    if (!(factor > 0 && factor < 1e9))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s %g: must be positive and below 1e9", keys->key, factor);
    stated->rope.scaling = HDL_ROPE_LINEAR;
    stated->rope.factor = factor;
    return HEDDLE_OK;
}

/* The pattern is one number, or a list with a boolean for each layer. */
static heddle_status read_gguf_pattern(hdl_stated *stated, gguf_keys *keys)
{
    const char *key = full_key(keys, "attention.sliding_window_pattern");
    int64_t n = hdl_gguf_array_n(keys->gguf, key), value;
    if (n < 0) {
        double num;
        bool is_there;
        HDL_TRY(look_up(keys, "attention.sliding_window_pattern", false, &value, &num, &is_there));
        if (is_there && (value < 1 || value > HDL_MAX_LAYERS))
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s %lld: must be in 1..%d", key, (long long)value,
                            HDL_MAX_LAYERS);
        if (is_there) stated->sliding_pattern = value;
        return HEDDLE_OK;
    }
    if (n < stated->n_layers)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: has %lld elements, must have %lld", key, (long long)n,
                        (long long)stated->n_layers);
    stated->has_layer_types = true;
    for (int64_t i = 0; i < stated->n_layers; i++) {
        if (!hdl_gguf_array_int(keys->gguf, key, i, &value)) return HEDDLE_E_FORMAT;
        stated->is_sliding[i] = value != 0;
    }
    return HEDDLE_OK;
}

static heddle_status read_gguf(hdl_stated *stated, const hdl_arch **arch, const hdl_gguf *gguf)
{
    hdl_text name;
    if (!hdl_gguf_str(gguf, "general.architecture", &name))
        return HDL_FAIL(HEDDLE_E_FORMAT, "key general.architecture: is missing or not a text");
    *arch = hdl_arch_of_gguf(name);
    if (!*arch) return HEDDLE_E_UNSUPPORTED;
    int64_t n_parts;
    if (hdl_gguf_int(gguf, "split.count", &n_parts) && n_parts > 1)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "is one of %lld parts of a model: join the parts into one file first",
                        (long long)n_parts);
    *stated = (*arch)->defaults;
    if (hdl_gguf_str(gguf, "general.name", &name))
        snprintf(stated->name, sizeof stated->name, "%.*s", (int)HDL_MIN(name.n, 127), name.data);
    gguf_keys keys = {.gguf = gguf, .arch = (*arch)->name};
    HDL_TRY(read_gguf_facts(stated, &keys));
    HDL_TRY(check_required(stated, true, (*arch)->name));
    HDL_TRY(read_gguf_scaling(stated, &keys));
    HDL_TRY(read_gguf_pattern(stated, &keys));
    hdl_tensor embd;
    if (!hdl_gguf_tensor(gguf, "token_embd.weight", &embd))
        return HDL_FAIL(HEDDLE_E_FORMAT, "tensor token_embd.weight: is missing");
    if (embd.n_rows > 1 << 28)
        return HDL_FAIL(HEDDLE_E_FORMAT, "tensor token_embd.weight: %lld rows: must be in 1..%d",
                        (long long)embd.n_rows, 1 << 28);
    stated->n_vocab = embd.n_rows;
    hdl_gguf_tensor(gguf, "rope_freqs.weight", &stated->rope_divisors);
    return HEDDLE_OK;
}

heddle_status hdl_stated_from_gguf(hdl_stated *stated, const hdl_arch **arch, const hdl_gguf *gguf,
                                   const char *path)
{
    heddle_status status = read_gguf(stated, arch, gguf);
    return status ? HDL_FAIL(status, "%s: %s", path, hdl_last_error()) : HEDDLE_OK;
}

/* --- config.json ------------------------------------------------------------------------- */

/* null means "not stated": such members are taken out, so that readers see them absent. */
static void drop_nulls(json_t *obj)
{
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(obj, next, key, value) if (json_is_null(value)) json_object_del(obj, key);
}

static heddle_status read_json_facts(hdl_stated *stated, const json_t *config)
{
    for (int64_t i = 0; i < HDL_COUNT(fact_keys); i++) {
        const fact_key *key = &fact_keys[i];
        if (!key->json || !json_object_get(config, key->json)) continue;
        int64_t whole = 0;
        double num = 0;
        if (key->is_num)
            HDL_TRY(hdl_json_num(config, "", key->json, &num));
        else
            HDL_TRY(hdl_json_int(config, "", key->json, (int64_t)key->min, (int64_t)key->max, &whole));
        HDL_TRY(store(stated, key, key->json, whole, num));
    }
    for (int64_t i = 0; i < HDL_COUNT(refusals); i++) {
        const json_t *value = refusals[i].json ? json_object_get(config, refusals[i].json) : NULL;
        int64_t held = json_is_integer(value) ? json_integer_value(value) : json_is_true(value);
        if (value && held != refusals[i].only)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: %s not supported", refusals[i].json, refusals[i].what);
    }
    return HEDDLE_OK;
}

/* One RoPE description: rope_scaling, or a value of the newer rope_parameters. */
static heddle_status read_json_rope(hdl_stated_rope *rope, json_t *obj, const char *name)
{
    if (!json_is_object(obj)) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: must be an object", name);
    drop_nulls(obj);
    const char *type = "default";
    HDL_TRY(hdl_json_str(obj, name, "type", &type));
    HDL_TRY(hdl_json_str(obj, name, "rope_type", &type));
    HDL_TRY(hdl_json_num(obj, name, "rope_theta", &rope->base));
    if (!(rope->base >= 1 && rope->base <= 1e15))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s.rope_theta %g: must be in 1..1e15", name, rope->base);
    if (!strcmp(type, "default")) return HEDDLE_OK;
    bool is_linear = !strcmp(type, "linear");
    if (!is_linear && strcmp(type, "llama3") != 0)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s.rope_type \"%s\" is not supported; supported are default, linear, llama3", name,
                        type);
    rope->scaling = is_linear ? HDL_ROPE_LINEAR : HDL_ROPE_LLAMA3;
    HDL_TRY(hdl_json_num(obj, name, "factor", &rope->factor));
    if (!(rope->factor > 0 && rope->factor < 1e9))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s.factor %g: must be positive and below 1e9", name, rope->factor);
    if (is_linear) return HEDDLE_OK;
    HDL_TRY(hdl_json_num(obj, name, "low_freq_factor", &rope->low_freq_factor));
    HDL_TRY(hdl_json_num(obj, name, "high_freq_factor", &rope->high_freq_factor));
    HDL_TRY(hdl_json_num(obj, name, "original_max_position_embeddings", &rope->original_context));
    if (!(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor &&
          rope->original_context >= 1))
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: low_freq_factor %g, high_freq_factor %g, "
                        "original_max_position_embeddings %g: must be positive "
                        "and the first below the second",
                        name, rope->low_freq_factor, rope->high_freq_factor, rope->original_context);
    return HEDDLE_OK;
}

static heddle_status read_json_ropes(hdl_stated *stated, const json_t *config)
{
    json_t *scaling = json_object_get(config, "rope_scaling"),
           *rope = json_object_get(config, "rope_parameters");
    json_t *global = json_object_get(rope, "full_attention"),
           *local = json_object_get(rope, "sliding_attention");
    if (scaling) HDL_TRY(read_json_rope(&stated->rope, scaling, "rope_scaling"));
    if (rope && !global && !local) {
        HDL_TRY(read_json_rope(&stated->rope, rope, "rope_parameters"));
        return hdl_json_num(rope, "rope_parameters", "partial_rotary_factor", &stated->rotary_share);
    }
    if (global) HDL_TRY(read_json_rope(&stated->rope, global, "rope_parameters.full_attention"));
    if (local) HDL_TRY(read_json_rope(&stated->local_rope, local, "rope_parameters.sliding_attention"));
    return HEDDLE_OK;
}

static heddle_status read_json_layer_types(hdl_stated *stated, const json_t *config)
{
    const json_t *types = json_object_get(config, "layer_types");
    if (types) {
        if (json_array_size(types) != (size_t)stated->n_layers)
            return HDL_FAIL(HEDDLE_E_FORMAT, "layer_types: must be a list of %lld texts",
                            (long long)stated->n_layers);
        stated->has_layer_types = true;
        for (int64_t i = 0; i < stated->n_layers; i++) {
            const char *type = json_string_value(json_array_get(types, (size_t)i));
            stated->is_sliding[i] = type && !strcmp(type, "sliding_attention");
            if (!stated->is_sliding[i] && !(type && !strcmp(type, "full_attention")))
                return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                                "layer_types[%lld] \"%s\" is not supported; supported are "
                                "full_attention, sliding_attention",
                                (long long)i, type ? type : "(not a text)");
        }
        return HEDDLE_OK;
    }
    /* the older way to say it; without a pattern of its own, use_sliding_window switches it on */
    if (stated->sliding_pattern) return HEDDLE_OK;
    bool is_used = false;
    int64_t n_full = 28;
    HDL_TRY(hdl_json_bool(config, "", "use_sliding_window", &is_used));
    HDL_TRY(hdl_json_int(config, "", "max_window_layers", 0, INT32_MAX, &n_full));
    if (json_object_get(config, "use_sliding_window") && !is_used) stated->window = 0;
    if (is_used && stated->window) {
        stated->has_layer_types = true;
        for (int64_t i = n_full; i < stated->n_layers; i++) stated->is_sliding[i] = true;
    }
    return HEDDLE_OK;
}

static heddle_status check_json_act(const hdl_arch *arch, const json_t *config)
{
    static const char *const keys[] = {"hidden_act", "hidden_activation"};
    for (int64_t i = 0; i < HDL_COUNT(keys); i++) {
        const char *act = arch->act_name;
        HDL_TRY(hdl_json_str(config, "", keys[i], &act));
        if (strcmp(act, arch->act_name) != 0)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s \"%s\" is not supported: must be %s", keys[i], act,
                            arch->act_name);
    }
    return HEDDLE_OK;
}

/* Fills what is 0 in `into` from `from`, member by member of the table. */
static void add_defaults(hdl_stated *into, const hdl_stated *from)
{
    for (int64_t i = 0; i < HDL_COUNT(fact_keys); i++) {
        int64_t have, otherwise;
        memcpy(&have, (char *)into + fact_keys[i].at, sizeof have);
        memcpy(&otherwise, (const char *)from + fact_keys[i].at, sizeof otherwise);
        if (!have) memcpy((char *)into + fact_keys[i].at, &otherwise, sizeof otherwise);
    }
}

/* The language model's members are in the root, or in text_config beside other modalities'. */
static heddle_status read_config(hdl_stated *stated, const hdl_arch **arch, json_t *root)
{
    drop_nulls(root);
    if (hdl_config_is_own(root)) return hdl_stated_from_own(stated, arch, root);
    json_t *config = json_object_get(root, "text_config");
    if (!config) config = root;
    drop_nulls(config);
    const char *type = NULL, *name = "";
    HDL_TRY(hdl_json_str(root, "", "model_type", &type));
    HDL_TRY(hdl_json_str(config, "", "model_type", &type));
    if (!type) return HDL_FAIL(HEDDLE_E_FORMAT, "model_type: is missing");
    *arch = hdl_arch_of_config(type);
    if (!*arch) return HEDDLE_E_UNSUPPORTED;
    *stated = (*arch)->defaults;
    add_defaults(stated, &(*arch)->config_defaults);
    HDL_TRY(read_json_facts(stated, config));
    HDL_TRY(check_required(stated, false, (*arch)->name));
    HDL_TRY(read_json_ropes(stated, config));
    HDL_TRY(read_json_layer_types(stated, config));
    HDL_TRY(check_json_act(*arch, config));
    if (json_object_get(root, "quantization_config"))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "quantization_config: quantised safetensors are not supported; use a GGUF file");
    const json_t *tie = json_object_get(config, "tie_word_embeddings");
    if (!tie) tie = json_object_get(root, "tie_word_embeddings");
    stated->has_tied_output = json_is_true(tie);
    stated->has_untied_output = json_is_false(tie);
    HDL_TRY(hdl_json_str(root, "", "_name_or_path", &name));
    const char *slash = strrchr(name, '/'); /* "owner/model", or a folder of whoever saved it */
    snprintf(stated->name, sizeof stated->name, "%s", slash ? slash + 1 : name);
    return HEDDLE_OK;
}

heddle_status hdl_stated_from_config(hdl_stated *stated, const hdl_arch **arch, const char *text,
                                     int64_t n_bytes, const char *path)
{
    json_t *root = NULL;
    heddle_status status = hdl_json_parse(&root, text, n_bytes, path);
    if (status) return status;
    status = read_config(stated, arch, root);
    json_decref(root);
    return status ? HDL_FAIL(status, "%s: %s", path, hdl_last_error()) : HEDDLE_OK;
}
