/* config_own.c - config.json of the folders that train/ writes, to hdl_stated.
 *
 * Every choice that the method leaves open is a member of its own here (docs/training.md names them). A
 * member this file does not know is refused: passing over one could mean another model. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "model/model_int.h"

enum { MAX_INDEX_DIM = 1024, MAX_OWN_TOP_K = 1 << 24, MAX_DELTA_DIM = 1024, MAX_CONV_WIDTH = 16 };

typedef enum member_kind { MEMBER_INT, MEMBER_INT32, MEMBER_NUM, MEMBER_F32, MEMBER_BOOL } member_kind;

/* Where a member goes; offset -1 = checked and dropped. */
typedef struct member {
    const char *key;
    member_kind kind;
    bool is_required;
    double min, max;
    int64_t at;
} member;

#define STATED(name) (int64_t) offsetof(hdl_stated, name)

static const member members[] = {
    {"n_vocab", MEMBER_INT, true, 1, 1 << 28, STATED(n_vocab)},
    {"hidden_size", MEMBER_INT, true, 1, 1 << 20, STATED(hidden_size)},
    {"intermediate_size", MEMBER_INT, true, 1, 1 << 24, STATED(n_ff)},
    {"n_heads", MEMBER_INT, true, 1, 1024, STATED(n_heads)},
    {"n_kv_heads", MEMBER_INT, true, 1, 1024, STATED(n_kv_heads)},
    {"head_dim", MEMBER_INT, true, 2, HDL_MAX_ROPE_DIM, STATED(head_dim)},
    {"n_layers", MEMBER_INT, true, 1, HDL_MAX_LAYERS, STATED(n_layers)},
    {"n_self", MEMBER_INT, false, 0, HDL_MAX_LAYERS, -1},  /* layer_kinds says it: check_counts */
    {"n_cross", MEMBER_INT, false, 0, HDL_MAX_LAYERS, -1}, /* likewise */
    {"window", MEMBER_INT, false, 1, INT32_MAX, STATED(window)},
    {"rope_base", MEMBER_NUM, true, 1, 1e15, STATED(rope.base)},
    {"rope_on_full", MEMBER_BOOL, false, 0, 0, STATED(own.has_rope_on_full)},
    {"norm_eps", MEMBER_NUM, true, 1e-30, 1, STATED(norm_eps)},
    {"qk_norm_self", MEMBER_BOOL, false, 0, 0, STATED(own.has_self_qk_norm)},
    {"qk_norm_cross", MEMBER_BOOL, false, 0, 0, STATED(own.has_cross_qk_norm)},
    {"attn_scale", MEMBER_NUM, true, 1e-9, 1e9, STATED(attn_scale)},
    {"embed_scale", MEMBER_NUM, true, 1e-9, 1e9, STATED(own.embed_scale)},
    {"tie_embeddings", MEMBER_BOOL, true, 0, 0, STATED(has_tied_output)},
    {"doc_token", MEMBER_INT, false, -1, INT32_MAX, STATED(own.doc_token)},
    {"doc_reset", MEMBER_BOOL, true, 0, 0, STATED(own.has_doc_resets)},
    {"index_dim", MEMBER_INT32, false, 1, MAX_INDEX_DIM, STATED(own.index.dim)},
    {"index_groups", MEMBER_INT32, false, 1, HDL_MAX_LAYERS, STATED(own.index.n_groups)},
    {"index_scale", MEMBER_F32, false, 1e-9, 1e9, STATED(own.index.scale)},
    {"index_sinks", MEMBER_INT32, false, 0, 1 << 16, STATED(own.index.n_sink)},
    {"index_window", MEMBER_INT32, false, 0, 1 << 24, STATED(own.index.window)},
    {"index_detach", MEMBER_BOOL, false, 0, 0, -1}, /* of training */
    {"top_k", MEMBER_INT, false, 1, MAX_OWN_TOP_K, STATED(own.index.top_k)},
    {"delta_n_heads", MEMBER_INT32, false, 1, 1024, STATED(own.delta.n_heads)},
    {"delta_k_dim", MEMBER_INT32, false, 1, MAX_DELTA_DIM, STATED(own.delta.k_dim)},
    {"delta_v_dim", MEMBER_INT32, false, 1, MAX_DELTA_DIM, STATED(own.delta.v_dim)},
    {"delta_conv", MEMBER_INT32, false, 0, MAX_CONV_WIDTH, STATED(own.delta.conv_width)},
    {"delta_scale", MEMBER_F32, false, 1e-9, 1e9, STATED(own.delta.scale)},
    {"delta_qk_eps", MEMBER_F32, false, 1e-30, 1, STATED(own.delta.eps)},
    {"max_seq_len", MEMBER_INT, false, 1, INT32_MAX, STATED(context)},
};

/* Members with words for values; `at` is the bool that words[1] sets. */
static const struct {
    const char *key, *words[2];
    int at_default;
    int64_t at;
} choices[] = {
    {"rope_style", {"half", "pairs"}, 0, STATED(own.has_paired_rope)},
    {"global_scope", {"sequence", NULL}, 0, -1},
    {"index_input", {"state", "kv_norm"}, 1, STATED(own.index.is_from_norm)},
    {"index_k_norm", {"none", "rms"}, 1, STATED(own.index.has_k_norm)},
    {"index_q_norm", {"none", "rms"}, 0, STATED(own.index.has_q_norm)},
    {"index_group_query", {"shared_state", "own_input"}, 0, STATED(own.index.has_own_queries)},
    {"delta_qk_norm", {"l2", NULL}, 0, -1},
    {"delta_conv_act", {"silu", NULL}, 0, -1},
    {"delta_gate", {"silu", NULL}, 0, -1},
    {"delta_out_norm", {"rms", NULL}, 0, -1},
    {"weight_format", {NULL, NULL}, 0, -1}, /* read_weight_format */
    {"model_type", {NULL, NULL}, 0, -1},
    {"arch", {NULL, NULL}, 0, -1},
};

/* Members of choices of the method that this engine does not run: a whole number or a flag that must be `only`. */
static const struct {
    const char *key, *why;
    int64_t only;
    bool is_flag;
} onlys[] = {
    {"index_n_heads", "no rule combines the scores of several heads", 1, false},
    {"index_rope", "the positions of a mounted document mean nothing to a query of another", 0, true}};

bool hdl_config_is_own(const json_t *root)
{
    const char *type = json_string_value(json_object_get(root, "model_type"));
    return type && !strncmp(type, "heddle_", 7) && json_object_get(root, "layer_kinds");
}

static heddle_status read_member(hdl_stated *stated, const json_t *root, const member *m)
{
    char *at = m->at < 0 ? NULL : (char *)stated + m->at;
    double num = 0;
    int64_t whole = 0;
    bool flag = false;
    if (!json_object_get(root, m->key))
        return m->is_required ? HDL_FAIL(HEDDLE_E_FORMAT, "%s: is missing", m->key) : HEDDLE_OK;
    switch (m->kind) {
        case MEMBER_BOOL:
            HDL_TRY(hdl_json_bool(root, "", m->key, &flag));
            if (at) memcpy(at, &flag, sizeof flag);
            return HEDDLE_OK;
        case MEMBER_INT:
        case MEMBER_INT32:
            HDL_TRY(hdl_json_int(root, "", m->key, (int64_t)m->min, (int64_t)m->max, &whole));
            if (at && m->kind == MEMBER_INT) memcpy(at, &whole, sizeof whole);
            if (at && m->kind == MEMBER_INT32) memcpy(at, &(int32_t){(int32_t)whole}, 4);
            return HEDDLE_OK;
        default: break;
    }
    HDL_TRY(hdl_json_num(root, "", m->key, &num));
    if (!(num >= m->min && num <= m->max))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s %g: must be in %g..%g", m->key, num, m->min, m->max);
    if (m->kind == MEMBER_NUM)
        memcpy(at, &num, sizeof num);
    else
        memcpy(at, &(float){(float)num}, sizeof(float));
    return HEDDLE_OK;
}

static heddle_status read_choices(hdl_stated *stated, const json_t *root)
{
    for (int64_t i = 0; i < HDL_COUNT(choices); i++) {
        const char *word = choices[i].words[choices[i].at_default];
        if (!word) continue;
        HDL_TRY(hdl_json_str(root, "", choices[i].key, &word));
        bool is_first = !strcmp(word, choices[i].words[0]);
        bool is_second = choices[i].words[1] && !strcmp(word, choices[i].words[1]);
        if (!is_first && !is_second)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s \"%.32s\": must be %s%s%s", choices[i].key, word,
                            choices[i].words[0], choices[i].words[1] ? " or " : "",
                            choices[i].words[1] ? choices[i].words[1] : "");
        if (choices[i].at >= 0) memcpy((char *)stated + choices[i].at, &is_second, sizeof is_second);
    }
    return HEDDLE_OK;
}

static heddle_status check_onlys(const json_t *root)
{
    for (int64_t i = 0; i < HDL_COUNT(onlys); i++) {
        int64_t held = onlys[i].only;
        bool flag = held;
        if (onlys[i].is_flag) {
            HDL_TRY(hdl_json_bool(root, "", onlys[i].key, &flag));
            if (flag != onlys[i].only)
                return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s %s: must be %s: %s", onlys[i].key,
                                flag ? "true" : "false", flag ? "false" : "true", onlys[i].why);
            continue;
        }
        HDL_TRY(hdl_json_int(root, "", onlys[i].key, 0, INT32_MAX, &held));
        if (held != onlys[i].only)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s %lld: must be %lld: %s", onlys[i].key, (long long)held,
                            (long long)onlys[i].only, onlys[i].why);
    }
    return HEDDLE_OK;
}

/* What the matrices are stored as; weights.c holds them to it. */
static heddle_status read_weight_format(hdl_stated *stated, const json_t *root)
{
    static const hdl_dtype known[] = {HDL_F32, HDL_BF16, HDL_F16, HDL_Q8_0};
    const char *word = NULL;
    HDL_TRY(hdl_json_str(root, "", "weight_format", &word));
    if (!word) return HEDDLE_OK;
    for (int64_t i = 0; i < HDL_COUNT(known); i++)
        if (!strcmp(word, hdl_dtype_of(known[i])->name)) {
            stated->own.weight_dtype = known[i];
            stated->own.has_weight_dtype = true;
            return HEDDLE_OK;
        }
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "weight_format \"%.32s\": must be f32, bf16, f16 or q8_0", word);
}

/* n_self and n_cross are all layers together and, where there are cross layers, those below them and they. */
static heddle_status check_counts(const hdl_stated *stated, const json_t *root)
{
    int64_t n_cross = 0, n_layers = stated->n_layers, self = -1, cross = -1;
    for (int64_t i = 0; i < n_layers; i++) n_cross += stated->own.kinds[i] == HDL_LAYER_CROSS;
    HDL_TRY(hdl_json_int(root, "", "n_self", 0, HDL_MAX_LAYERS, &self));
    HDL_TRY(hdl_json_int(root, "", "n_cross", 0, HDL_MAX_LAYERS, &cross));
    if (n_cross && cross >= 0 && cross != n_cross)
        return HDL_FAIL(HEDDLE_E_FORMAT, "n_cross %lld: layer_kinds has %lld cross layers", (long long)cross,
                        (long long)n_cross);
    if (n_cross && self >= 0 && self != n_layers - n_cross)
        return HDL_FAIL(HEDDLE_E_FORMAT, "n_self %lld: layer_kinds has %lld layers below the cross layers",
                        (long long)self, (long long)(n_layers - n_cross));
    if (self >= 0 && cross >= 0 && self + cross != n_layers)
        return HDL_FAIL(HEDDLE_E_FORMAT, "n_self %lld and n_cross %lld: layer_kinds has %lld layers",
                        (long long)self, (long long)cross, (long long)n_layers);
    return HEDDLE_OK;
}

static heddle_status read_kinds(hdl_stated *stated, const json_t *root)
{
    static const char *const words[] = {"full", "window", "cross", "delta"};
    const json_t *list = json_object_get(root, "layer_kinds");
    if (!json_is_array(list) || (int64_t)json_array_size(list) != stated->n_layers)
        return HDL_FAIL(HEDDLE_E_FORMAT, "layer_kinds: must be a list of n_layers = %lld words",
                        (long long)stated->n_layers);
    for (int64_t i = 0; i < stated->n_layers; i++) {
        const char *word = json_string_value(json_array_get(list, (size_t)i));
        int kind = -1;
        for (int k = 0; word && k < HDL_COUNT(words); k++)
            if (!strcmp(word, words[k])) kind = k;
        if (kind < 0)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "layer_kinds[%lld] \"%.32s\": must be full, window, cross or delta", (long long)i,
                            word ? word : "(not a text)");
        if (i && stated->own.kinds[i - 1] == HDL_LAYER_CROSS && kind != HDL_LAYER_CROSS)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "layer_kinds[%lld] \"%s\": stands above a cross layer; cross layers come last",
                            (long long)i, word);
        stated->own.kinds[i] = (hdl_layer_kind)kind;
    }
    if (stated->own.kinds[0] == HDL_LAYER_CROSS)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "layer_kinds[0]: a cross layer needs a layer below it");
    return HEDDLE_OK;
}

/* Sizes of gated-delta layers, where there are any. */
static heddle_status check_delta(hdl_stated *stated)
{
    hdl_delta_facts *delta = &stated->own.delta;
    bool has_delta = false;
    for (int64_t i = 0; i < stated->n_layers; i++) has_delta |= stated->own.kinds[i] == HDL_LAYER_DELTA;
    if (has_delta && (!delta->n_heads || !delta->k_dim || !delta->v_dim))
        return HDL_FAIL(
            HEDDLE_E_FORMAT,
            "delta_n_heads, delta_k_dim, delta_v_dim: must be stated where layer_kinds has delta layers");
    if (has_delta && delta->scale <= 0) delta->scale = 1 / sqrtf((float)delta->k_dim);
    return HEDDLE_OK;
}

static heddle_status refuse_others(const json_t *root)
{
    const char *keys[HDL_COUNT(members) + HDL_COUNT(choices) + HDL_COUNT(onlys) + 2] = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < HDL_COUNT(members); i++) keys[n++] = members[i].key;
    for (int64_t i = 0; i < HDL_COUNT(choices); i++) keys[n++] = choices[i].key;
    for (int64_t i = 0; i < HDL_COUNT(onlys); i++) keys[n++] = onlys[i].key;
    keys[n++] = "layer_kinds";
    return hdl_json_only(root, "", keys);
}

heddle_status hdl_stated_from_own(hdl_stated *stated, const hdl_arch **arch, const json_t *root)
{
    const char *name = NULL;
    HDL_TRY(refuse_others(root));
    HDL_TRY(hdl_json_str(root, "", "arch", &name));
    if (!name) return HDL_FAIL(HEDDLE_E_FORMAT, "arch: is missing");
    *arch = hdl_arch_of_own(name);
    if (!*arch) return HEDDLE_E_UNSUPPORTED;
    *stated = (hdl_stated){0};
    stated->own = (hdl_stated_own){
        .is_set = true, .has_rope_on_full = true, .doc_token = -1, .delta = {.conv_width = 4, .eps = 1e-6f}};
    for (int64_t i = 0; i < HDL_COUNT(members); i++) HDL_TRY(read_member(stated, root, &members[i]));
    HDL_TRY(read_choices(stated, root));
    HDL_TRY(check_onlys(root));
    HDL_TRY(read_weight_format(stated, root));
    HDL_TRY(read_kinds(stated, root));
    HDL_TRY(check_counts(stated, root));
    HDL_TRY(check_delta(stated));
    hdl_index_facts *index = &stated->own.index;
    if (!((*arch)->traits & HDL_ARCH_INDEX)) *index = (hdl_index_facts){0};
    if (index->n_groups == 1) index->n_groups = 0; /* as where it is not stated */
    index->has_own_queries = index->has_own_queries && index->n_groups;
    if ((*arch)->traits & HDL_ARCH_INDEX && (!index->dim || !index->top_k || index->scale <= 0))
        return HDL_FAIL(HEDDLE_E_FORMAT, "index_dim, index_scale, top_k: must be stated for arch \"%s\"",
                        name);
    if ((*arch)->traits & HDL_ARCH_INDEX && stated->own.kinds[stated->n_layers - 1] != HDL_LAYER_CROSS)
        return HDL_FAIL(HEDDLE_E_FORMAT, "layer_kinds: arch \"%s\" needs cross layers", name);
    int64_t n_cross = 0;
    for (int64_t i = 0; i < stated->n_layers; i++) n_cross += stated->own.kinds[i] == HDL_LAYER_CROSS;
    if (index->n_groups > n_cross)
        return HDL_FAIL(HEDDLE_E_FORMAT, "index_groups %d: must be at most %lld, the cross layers",
                        index->n_groups, (long long)n_cross);
    stated->has_untied_output = !stated->has_tied_output;
    if (stated->own.has_doc_resets && stated->own.doc_token < 0)
        return HDL_FAIL(HEDDLE_E_FORMAT, "doc_token: must be stated where doc_reset is true");
    if (stated->own.doc_token >= stated->n_vocab)
        return HDL_FAIL(HEDDLE_E_FORMAT, "doc_token %lld: must be below n_vocab %lld",
                        (long long)stated->own.doc_token, (long long)stated->n_vocab);
    return HEDDLE_OK;
}
