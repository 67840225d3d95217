/* arch.c - the table of architectures, the only place of the library that knows their names.
 *
 * A row says by traits, defaults and numbers how a family differs from "pre-norm transformer with
 * GQA, RoPE, RMS norm and a gated FFN". hdl_facts_build() turns a row and what a file states into
 * facts that need no name: per layer its window, cache group and RoPE. Sources: the models'
 * published configurations, the GGUF specification, RoPE scaling as in the Llama 3.1 release. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "model/model_int.h"

enum { OWN_FORMAT = HDL_ARCH_ANY | HDL_ARCH_PRE_NORMS | HDL_ARCH_OWN_FORMAT };

static const hdl_arch archs[] = {
    {
        .name = "llama",
        .model_types = {"llama"},
        .act_name = "silu",
        .traits = HDL_ARCH_ANY | HDL_ARCH_PRE_NORMS | HDL_ARCH_LLAMA_ROPE,
        .defaults = {.rope = {.base = 10000}},
        .config_defaults = {.norm_eps = 1e-6},
    },
    {
        .name = "qwen2",
        .model_types = {"qwen2"},
        .act_name = "silu",
        .traits = HDL_ARCH_ANY | HDL_ARCH_PRE_NORMS | HDL_ARCH_QKV_BIAS,
        .defaults = {.rope = {.base = 10000}},
        .config_defaults = {.norm_eps = 1e-6},
    },
    {
        .name = "qwen3",
        .model_types = {"qwen3"},
        .act_name = "silu",
        .traits = HDL_ARCH_ANY | HDL_ARCH_PRE_NORMS | HDL_ARCH_QK_NORM,
        .defaults = {.rope = {.base = 10000}},
        .config_defaults = {.norm_eps = 1e-6, .head_dim = 128},
    },
    {
        .name = "gemma3",
        .model_types = {"gemma3_text", "gemma3"},
        .act_name = "gelu_pytorch_tanh",
        .act = HDL_ACT_GELU_TANH,
        .traits = HDL_ARCH_ANY | HDL_ARCH_POST_NORMS | HDL_ARCH_QK_NORM | HDL_ARCH_EMBED_SCALE |
                  HDL_ARCH_NORM_PLUS_ONE,
        .wide_scale_layers = 62, /* the 27B model */
        .defaults = {.rope = {.base = 1e6}, .local_rope = {.base = 1e4}, .sliding_pattern = 6},
        .config_defaults = {.norm_eps = 1e-6,
                            .n_heads = 8,
                            .n_kv_heads = 4,
                            .head_dim = 256,
                            .hidden_size = 2304,
                            .n_ff = 9216,
                            .n_layers = 26,
                            .n_vocab = 262208,
                            .window = 4096,
                            .query_scalar = 256,
                            .context = 131072},
    },
    /* Folders that train/ writes. config.json states every difference per layer; the rows differ in
     * whether an index may choose what cross layers read. */
    {.name = "clsa", .plan = "clsa", .act_name = "silu", .traits = OWN_FORMAT | HDL_ARCH_INDEX},
    {.name = "yoco", .act_name = "silu", .traits = OWN_FORMAT},
    {.name = "transformer", .act_name = "silu", .traits = OWN_FORMAT},
    {.name = "window_hybrid", .act_name = "silu", .traits = OWN_FORMAT},
    {.name = "gated_delta_hybrid", .act_name = "silu", .traits = OWN_FORMAT},
};

static const hdl_arch *refuse_arch(const char *kind, const char *name, int64_t n)
{
    char known[256] = "";
    for (int64_t i = 0; i < HDL_COUNT(archs); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", archs[i].name);
    }
    hdl_fail(HEDDLE_E_UNSUPPORTED, "%s \"%.*s\" is not supported; supported are %s", kind,
             (int)HDL_MIN(n, 64), name, known);
    return NULL;
}

const hdl_arch *hdl_arch_of_gguf(hdl_text name)
{
    for (int64_t i = 0; i < HDL_COUNT(archs); i++)
        if (!(archs[i].traits & HDL_ARCH_OWN_FORMAT) && (int64_t)strlen(archs[i].name) == name.n &&
            !memcmp(archs[i].name, name.data, (size_t)name.n))
            return &archs[i];
    return refuse_arch("architecture", name.data, name.n);
}

const hdl_arch *hdl_arch_of_config(const char *model_type)
{
    for (int64_t i = 0; i < HDL_COUNT(archs); i++)
        for (int64_t j = 0; j < HDL_COUNT(archs[i].model_types); j++)
            if (archs[i].model_types[j] && !strcmp(archs[i].model_types[j], model_type)) return &archs[i];
    return refuse_arch("model_type", model_type, (int64_t)strlen(model_type));
}

const hdl_arch *hdl_arch_of_own(const char *name)
{
    for (int64_t i = 0; i < HDL_COUNT(archs); i++)
        if (archs[i].traits & HDL_ARCH_OWN_FORMAT && !strcmp(archs[i].name, name)) return &archs[i];
    return refuse_arch("arch", name, (int64_t)strlen(name));
}

/* --- sizes ------------------------------------------------------------------------------- */

static int64_t or_else(int64_t stated, int64_t otherwise)
{
    return stated ? stated : otherwise;
}

static heddle_status build_sizes(hdl_model_facts *facts, const hdl_stated *s, const char *path)
{
    facts->n_layers = (int32_t)s->n_layers;
    facts->hidden_size = (int32_t)s->hidden_size;
    facts->n_heads = (int32_t)s->n_heads;
    facts->n_kv_heads = (int32_t)or_else(s->n_kv_heads, s->n_heads);
    facts->n_ff = (int32_t)s->n_ff;
    facts->n_vocab = (int32_t)s->n_vocab;
    facts->train_context = (int32_t)s->context;
    facts->norm_eps = (float)s->norm_eps;
    facts->attn_soft_cap = (float)s->attn_soft_cap;
    facts->logit_soft_cap = (float)s->logit_soft_cap;
    if (facts->n_heads % facts->n_kv_heads)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %d attention heads: must be a multiple of the %d KV heads",
                        path, facts->n_heads, facts->n_kv_heads);
    if (!s->head_dim && s->hidden_size % s->n_heads)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: hidden size %d: must be a multiple of the %d heads where no head size is stated",
                        path, facts->hidden_size, facts->n_heads);
    facts->head_dim = (int32_t)or_else(s->head_dim, s->hidden_size / s->n_heads);
    facts->v_head_dim = (int32_t)or_else(s->v_head_dim, facts->head_dim);
    if (facts->head_dim > HDL_MAX_ROPE_DIM || facts->head_dim % 2)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: head size %d: must be even and at most %d", path,
                        facts->head_dim, HDL_MAX_ROPE_DIM);
    return HEDDLE_OK;
}

static float attn_scale(const hdl_model_facts *facts, const hdl_arch *arch, const hdl_stated *s)
{
    if ((float)s->attn_scale > 0) return (float)s->attn_scale;
    double width = facts->head_dim;
    if (s->query_scalar > 0)
        width = s->query_scalar;
    else if (arch->wide_scale_layers == facts->n_layers)
        width = (double)facts->hidden_size / facts->n_heads;
    return (float)(1.0 / sqrt(width));
}

/* --- RoPE -------------------------------------------------------------------------------- */

/* In float and in this order, as the models' published code computes it. */
static float scaled_freq(float freq, const hdl_stated_rope *rope)
{
    float factor = (float)rope->factor;
    if (rope->scaling == HDL_ROPE_LINEAR) return freq / factor;
    if (rope->scaling != HDL_ROPE_LLAMA3) return freq;
    double low = rope->low_freq_factor, high = rope->high_freq_factor;
    float wavelength = (float)(2.0 * M_PI) / freq;
    if (wavelength < (float)(rope->original_context / high)) return freq;
    if (wavelength > (float)(rope->original_context / low)) return freq / factor;
    float smooth = ((float)rope->original_context / wavelength - (float)low) / (float)(high - low);
    return (1 - smooth) * freq / factor + smooth * freq;
}

static heddle_status build_rope(hdl_rope_facts *out, const hdl_stated_rope *rope, const hdl_stated *s,
                                const hdl_model_facts *facts, const char *path)
{
    int64_t dim = or_else(s->rope_dim, facts->head_dim);
    if (s->rotary_share > 0) dim = (int64_t)((double)facts->head_dim * s->rotary_share);
    if (dim < 2 || dim % 2 || dim > facts->head_dim)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %lld rotated elements a head: must be even and in 2..%d", path,
                        (long long)dim, facts->head_dim);
    const hdl_tensor *divisors = rope == &s->rope && s->rope_divisors.data ? &s->rope_divisors : NULL;
    if (divisors && (divisors->dtype != HDL_F32 || divisors->n_rows != 1 || divisors->n_cols != dim / 2))
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: tensor rope_freqs.weight: is %s [%lld, %lld], must be f32 [1, %lld]", path,
                        hdl_dtype_of(divisors->dtype)->name, (long long)divisors->n_rows,
                        (long long)divisors->n_cols, (long long)dim / 2);
    out->dim = (int32_t)dim;
    out->attn_factor = rope->attn_factor > 0 ? (float)rope->attn_factor : 1;
    for (int64_t i = 0; i < dim / 2; i++) {
        float freq = 1.0f / powf((float)rope->base, (float)(2 * i) / (float)dim);
        float divisor = 1;
        if (divisors) memcpy(&divisor, (const char *)divisors->data + 4 * i, sizeof divisor);
        out->inv_freq[i] = scaled_freq(freq, rope) / divisor;
        if (!isfinite(out->inv_freq[i]) || out->inv_freq[i] < 0)
            return HDL_FAIL(
                HEDDLE_E_FORMAT,
                "%s: RoPE frequency %lld is %g (base %g, divisor %g): must be finite and positive", path,
                (long long)i, (double)out->inv_freq[i], rope->base, (double)divisor);
    }
    return HEDDLE_OK;
}

/* --- layers ------------------------------------------------------------------------------ */

static bool is_sliding(const hdl_stated *s, int64_t layer)
{
    if (s->has_layer_types) return s->is_sliding[layer];
    return s->sliding_pattern > 0 && (layer + 1) % s->sliding_pattern != 0;
}

/* The group of layers with this window (0 = global), made at its first layer. */
static int32_t cache_group(hdl_model_facts *facts, int32_t *group, int32_t window)
{
    if (*group < 0) {
        *group = facts->n_groups++;
        facts->groups[*group] = (hdl_cache_group_facts){.kind = window ? HDL_CACHE_ROLLING : HDL_CACHE_FULL,
                                                        .window = window};
    }
    return *group;
}

/* Our own format: RoPE 0 turns, RoPE 1 does not; cross layers read the rows of the first of them. */
static heddle_status build_own_layers(hdl_model_facts *facts, const hdl_stated *s, const char *path)
{
    const hdl_stated_own *own = &s->own;
    int32_t group_of[2] = {-1, -1};
    for (int32_t i = 0; i < facts->n_layers; i++) {
        bool is_cross = own->kinds[i] == HDL_LAYER_CROSS, slides = own->kinds[i] == HDL_LAYER_WINDOW;
        if (own->kinds[i] == HDL_LAYER_DELTA) {
            facts->layers[i] = (hdl_layer_facts){
                .is_delta = true, .kv_source = i, .cache_group = -1, .rope = 1};
            facts->delta.n_layers++;
            continue;
        }
        if (slides && s->window < 1)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: layer %d: is a window layer, but no window is stated", path,
                            i);
        if (is_cross) facts->cross_from = HDL_MIN(facts->cross_from, i);
        facts->layers[i] = (hdl_layer_facts){.window = slides ? (int32_t)s->window : 0,
                                             .kv_source = is_cross ? facts->cross_from : i,
                                             .has_kv = !is_cross,
                                             .has_qk_norm = is_cross ? own->has_cross_qk_norm
                                                                     : own->has_self_qk_norm,
                                             .rope = is_cross || (!slides && !own->has_rope_on_full)};
        facts->layers[i].cache_group = cache_group(facts, &group_of[slides], facts->layers[i].window);
        facts->groups[facts->layers[i].cache_group].n_layers += facts->layers[i].kv_source == i;
    }
    if (!facts->n_groups)
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "%s: layer_kinds: gated-delta layers alone; a model needs a full, window or cross layer", path);
    return HEDDLE_OK;
}

/* Global layers share one cache group and one RoPE, sliding ones another. */
static heddle_status build_layers(hdl_model_facts *facts, const hdl_stated *s, bool has_qk_norm,
                                  const char *path)
{
    int32_t group_of[2] = {-1, -1}, rope_of[2] = {0, s->local_rope.base > 0};
    for (int32_t i = 0; i < facts->n_layers; i++) {
        bool slides = is_sliding(s, i);
        if (slides && s->window < 1)
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: layer %d: is a sliding layer, but no sliding window is stated", path, i);
        facts->layers[i] = (hdl_layer_facts){.window = slides ? (int32_t)s->window : 0,
                                             .kv_source = i,
                                             .has_kv = true,
                                             .has_qk_norm = has_qk_norm,
                                             .rope = rope_of[slides]};
        facts->layers[i].cache_group = cache_group(facts, &group_of[slides], facts->layers[i].window);
        facts->groups[facts->layers[i].cache_group].n_layers++;
    }
    return HEDDLE_OK;
}

/* A window that no layer uses must be one that hides nothing within the trained context. */
static heddle_status check_unused_window(const hdl_stated *s, const char *path)
{
    bool is_unused = !s->has_layer_types && !s->sliding_pattern;
    if (is_unused && s->window > 0 && s->window < s->context)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s: sliding window %lld with a context of %lld: this architecture's "
                        "layers are read as global "
                        "ones",
                        path, (long long)s->window, (long long)s->context);
    return HEDDLE_OK;
}

/* Group g of an index with G has the cross layers c with floor(c G / n_cross) = g. */
static void build_index_groups(hdl_model_facts *facts)
{
    int32_t n_cross = facts->n_layers - facts->cross_from, n_groups = HDL_MAX(facts->index.n_groups, 1);
    for (int32_t c = 0; facts->index.dim && c < n_cross; c++) {
        hdl_layer_facts *at = &facts->layers[facts->cross_from + c];
        at->index_group = (int32_t)((int64_t)c * n_groups / n_cross);
        at->leads_group = !c || at->index_group != at[-1].index_group;
    }
}

/* What is left of the facts for a folder in our own format. */
static heddle_status build_own(hdl_model_facts *facts, const hdl_stated *stated, const char *path)
{
    const hdl_stated_own *own = &stated->own;
    facts->embed_scale = (float)own->embed_scale;
    facts->doc_token = (int32_t)own->doc_token;
    facts->has_doc_resets = own->has_doc_resets;
    facts->delta = own->delta;
    HDL_TRY(build_own_layers(facts, stated, path));
    if (!facts->delta.n_layers) facts->delta = (hdl_delta_facts){0};
    if (facts->cross_from < facts->n_layers) {
        facts->has_shared_k_norm = own->has_cross_qk_norm;
        facts->index = own->index;
        build_index_groups(facts);
    }
    facts->n_ropes = 2;
    HDL_TRY(build_rope(&facts->ropes[0], &stated->rope, stated, facts, path));
    facts->ropes[0].style = own->has_paired_rope ? HDL_ROPE_PAIRS : HDL_ROPE_HALF;
    facts->ropes[1].style = HDL_ROPE_NONE;
    return HEDDLE_OK;
}

heddle_status hdl_facts_build(hdl_model_facts *facts, const hdl_arch *arch, const hdl_stated *stated,
                              bool is_gguf, const char *path)
{
    *facts = (hdl_model_facts){0};
    snprintf(facts->arch, sizeof facts->arch, "%s", arch->name);
    snprintf(facts->name, sizeof facts->name, "%s", stated->name);
    snprintf(facts->plan, sizeof facts->plan, "%s", arch->plan ? arch->plan : "");
    HDL_TRY(build_sizes(facts, stated, path));
    facts->attn_scale = attn_scale(facts, arch, stated);
    facts->embed_scale = arch->traits & HDL_ARCH_EMBED_SCALE ? sqrtf((float)facts->hidden_size) : 1;
    facts->norm_offset = arch->traits & HDL_ARCH_NORM_PLUS_ONE && !is_gguf ? 1 : 0;
    facts->act = arch->act;
    facts->has_post_norms = arch->traits & HDL_ARCH_POST_NORMS;
    facts->doc_token = -1;
    facts->cross_from = facts->n_layers;
    if (stated->own.is_set) return build_own(facts, stated, path);
    HDL_TRY(check_unused_window(stated, path));
    HDL_TRY(build_layers(facts, stated, arch->traits & HDL_ARCH_QK_NORM, path));
    const hdl_stated_rope *ropes[2] = {&stated->rope, &stated->local_rope};
    facts->n_ropes = stated->local_rope.base > 0 ? 2 : 1;
    for (int32_t i = 0; i < facts->n_ropes; i++) {
        HDL_TRY(build_rope(&facts->ropes[i], ropes[i], stated, facts, path));
        bool is_paired = is_gguf && arch->traits & HDL_ARCH_LLAMA_ROPE;
        facts->ropes[i].style = is_paired ? HDL_ROPE_PAIRS : HDL_ROPE_HALF;
    }
    return HEDDLE_OK;
}
