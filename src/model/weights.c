/* weights.c - finds every weight by the table below, checks its shape, links it into the model.
 *
 * Matrices stay where they are mapped. Norms and biases, a few KB a layer, are made F32 once. A
 * tensor of the file that no row accounts for is refused: ignoring a weight means computing
 * another model than the file describes. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/model_int.h"
#include "tensor/quant.h"

typedef enum dim {
    ONE,
    HIDDEN,
    Q_DIM,
    K_DIM,
    V_DIM,
    O_DIM,
    HEAD,
    FF,
    VOCAB,
    INDEX,
    INDEX_Q,
    TAPS,
    DELTA_COLS,
    DELTA_AB,
    DELTA_V,
    DELTA_HEADS,
    DELTA_HEAD_V
} dim;

typedef struct weight_row {
    const char *gguf, *safetensors; /* names after "blk.N." and "layers.N.", or whole ones */
    size_t at;                      /* offset of the hdl_tensor in the weights' struct */
    dim rows, cols;                 /* rows ONE: a vector, which becomes F32; so do TAPS of them */
    uint32_t must, may;             /* traits with which it must or may be there */
} weight_row;

enum { ANY = HDL_ARCH_ANY, PRE = HDL_ARCH_PRE_NORMS, POST = HDL_ARCH_POST_NORMS };
enum { BIAS = HDL_ARCH_QKV_BIAS, KV = HDL_ARCH_OWN_KV };
enum { ATTENDS = HDL_ARCH_LAYER_ATTENDS, DELTA = HDL_ARCH_LAYER_DELTA };
enum { Q_NORM = HDL_ARCH_LAYER_Q_NORM, K_NORM = HDL_ARCH_LAYER_K_NORM };
enum { SHARED = HDL_ARCH_SHARED, SHARED_K_NORM = HDL_ARCH_SHARED_K_NORM, WITH_INDEX = HDL_ARCH_INDEX };
#define LAYER(member)    offsetof(hdl_layer_weights, member)
#define DELTA_OF(member) offsetof(hdl_delta_weights, member)
#define MODEL(member)    offsetof(hdl_model, member)

/* clang-format off */
static const weight_row layer_rows[] = {
    {"attn_norm.weight",   "input_layernorm.weight",  LAYER(attn_norm), ONE, HIDDEN, ANY, 0},
    {"attn_q.weight",      "self_attn.q_proj.weight", LAYER(wq), Q_DIM, HIDDEN, ATTENDS, 0},
    {"attn_k.weight",      "self_attn.k_proj.weight", LAYER(wk), K_DIM, HIDDEN, KV, 0},
    {"attn_v.weight",      "self_attn.v_proj.weight", LAYER(wv), V_DIM, HIDDEN, KV, 0},
    {"attn_output.weight", "self_attn.o_proj.weight", LAYER(wo), HIDDEN, O_DIM, ATTENDS, 0},
    {"attn_q.bias",        "self_attn.q_proj.bias",   LAYER(bq), ONE, Q_DIM, BIAS, ANY},
    {"attn_k.bias",        "self_attn.k_proj.bias",   LAYER(bk), ONE, K_DIM, BIAS, ANY},
    {"attn_v.bias",        "self_attn.v_proj.bias",   LAYER(bv), ONE, V_DIM, BIAS, ANY},
    {"attn_output.bias",   "self_attn.o_proj.bias",   LAYER(bo), ONE, HIDDEN, 0, ANY},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", LAYER(q_norm), ONE, HEAD, Q_NORM, 0},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", LAYER(k_norm), ONE, HEAD, K_NORM, 0},
    {"ffn_norm.weight", "post_attention_layernorm.weight",  LAYER(ffn_norm), ONE, HIDDEN, PRE, 0},
    {"ffn_norm.weight", "pre_feedforward_layernorm.weight", LAYER(ffn_norm), ONE, HIDDEN, POST, 0},
    {"post_attention_norm.weight", "post_attention_layernorm.weight",
     LAYER(post_attn_norm), ONE, HIDDEN, POST, 0},
    {"post_ffw_norm.weight", "post_feedforward_layernorm.weight",
     LAYER(post_ffn_norm), ONE, HIDDEN, POST, 0},
    {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER(w_gate), FF, HIDDEN, ANY, 0},
    {"ffn_up.weight",   "mlp.up_proj.weight",   LAYER(w_up), FF, HIDDEN, ANY, 0},
    {"ffn_down.weight", "mlp.down_proj.weight", LAYER(w_down), HIDDEN, FF, ANY, 0},
    {NULL, "index.q_proj.weight", LAYER(index_q), INDEX_Q, HIDDEN, HDL_ARCH_INDEX_LEADER, 0},
};
static const weight_row delta_rows[] = {
    {NULL, "delta.qkv_proj.weight", DELTA_OF(wqkv), DELTA_COLS, HIDDEN, DELTA, 0},
    {NULL, "delta.ab_proj.weight",  DELTA_OF(wab), DELTA_AB, HIDDEN, DELTA, 0},
    {NULL, "delta.g_proj.weight",   DELTA_OF(wg), DELTA_V, HIDDEN, DELTA, 0},
    {NULL, "delta.o_proj.weight",   DELTA_OF(wo), HIDDEN, DELTA_V, DELTA, 0},
    {NULL, "delta.conv.weight",     DELTA_OF(conv), TAPS, DELTA_COLS, HDL_ARCH_LAYER_CONV, 0},
    {NULL, "delta.a_log",           DELTA_OF(a_log), ONE, DELTA_HEADS, DELTA, 0},
    {NULL, "delta.dt_bias",         DELTA_OF(dt_bias), ONE, DELTA_HEADS, DELTA, 0},
    {NULL, "delta.norm.weight",     DELTA_OF(norm), ONE, DELTA_HEAD_V, DELTA, 0},
};
static const weight_row model_rows[] = {
    {"token_embd.weight",  "embed_tokens.weight", MODEL(token_embd), VOCAB, HIDDEN, ANY, 0},
    {"output_norm.weight", "norm.weight",         MODEL(output_norm), ONE, HIDDEN, ANY, 0},
};
static const weight_row shared_rows[] = {
    {NULL, "shared.norm.weight",   MODEL(shared.norm), ONE, HIDDEN, SHARED, 0},
    {NULL, "shared.k_proj.weight", MODEL(shared.wk), K_DIM, HIDDEN, SHARED, 0},
    {NULL, "shared.v_proj.weight", MODEL(shared.wv), V_DIM, HIDDEN, SHARED, 0},
    {NULL, "shared.k_norm.weight", MODEL(shared.k_norm), ONE, HEAD, SHARED_K_NORM, 0},
    {NULL, "index.q_proj.weight",  MODEL(shared.index_q), INDEX_Q, HIDDEN, WITH_INDEX, 0},
    {NULL, "index.k_proj.weight",  MODEL(shared.index_k), INDEX, HIDDEN, WITH_INDEX, 0},
    {NULL, "index.q_norm.weight",  MODEL(shared.index_q_norm), ONE, INDEX, HDL_ARCH_INDEX_Q_NORM, 0},
    {NULL, "index.k_norm.weight",  MODEL(shared.index_k_norm), ONE, INDEX, HDL_ARCH_INDEX_K_NORM, 0},
};
/* clang-format on */
static const weight_row output_row = {"output.weight", NULL, MODEL(output), VOCAB, HIDDEN, 0, ANY};

/* Where safetensors files keep the language model, by who wrote them. */
static const char *const prefixes[] = {"model.", "language_model.model.", "model.language_model.", ""};
static const char *const output_names[] = {"lm_head.weight", "language_model.lm_head.weight"};

/* Tensors that may be passed over: beginnings, then endings of names. */
static const char *const other_parts[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                          "model.multi_modal_projector.", "rope_freqs.weight"};
static const char *const derived_parts[] = {".rotary_emb.inv_freq"};

typedef struct loader {
    hdl_model *model;
    hdl_model_owner *owner;
    uint32_t traits;
    const char *path, *prefix;
    const hdl_stated_own *own; /* what config.json says of the format */
    bool *is_used;             /* [n_tensors] of the file */
    char name[256];            /* the last one looked up */
} loader;

static int64_t n_tensors(const loader *l)
{
    return l->owner->gguf ? hdl_gguf_n_tensors(l->owner->gguf)
                          : hdl_safetensors_n_tensors(l->owner->safetensors);
}

static const char *tensor_at(const loader *l, int64_t i, hdl_tensor *out)
{
    return l->owner->gguf ? hdl_gguf_tensor_at(l->owner->gguf, i, out)
                          : hdl_safetensors_tensor_at(l->owner->safetensors, i, out);
}

static int64_t find_tensor(const loader *l, const char *name)
{
    return l->owner->gguf ? hdl_gguf_find_tensor(l->owner->gguf, name)
                          : hdl_safetensors_find_tensor(l->owner->safetensors, name);
}

static int64_t dim_size(const hdl_model_facts *f, dim d)
{
    switch (d) {
        case ONE: return 1;
        case HIDDEN: return f->hidden_size;
        case Q_DIM: return (int64_t)f->n_heads * f->head_dim;
        case K_DIM: return (int64_t)f->n_kv_heads * f->head_dim;
        case V_DIM: return (int64_t)f->n_kv_heads * f->v_head_dim;
        case O_DIM: return (int64_t)f->n_heads * f->v_head_dim;
        case HEAD: return f->head_dim;
        case FF: return f->n_ff;
        case VOCAB: return f->n_vocab;
        case INDEX: return f->index.dim;
        case INDEX_Q: return (int64_t)HDL_MAX(f->index.n_heads, 1) * f->index.dim;
        case TAPS: return f->delta.conv_width;
        case DELTA_COLS: return hdl_delta_cols(&f->delta);
        case DELTA_AB: return 2 * (int64_t)f->delta.n_heads;
        case DELTA_V: return (int64_t)f->delta.n_heads * f->delta.v_dim;
        case DELTA_HEADS: return f->delta.n_heads;
        case DELTA_HEAD_V: return f->delta.v_dim;
    }
    return -1;
}

/* A vector, or a few, become F32, in place where it is already and its address allows. */
static heddle_status make_f32(loader *l, hdl_tensor *t)
{
    hdl_model_owner *owner = l->owner;
    if (t->dtype == HDL_F32 && (uintptr_t)t->data % sizeof(float) == 0) return HEDDLE_OK;
    HDL_ASSERT(owner->n_vectors < owner->vector_capacity);
    float *values = hdl_calloc(t->n_rows * t->n_cols, sizeof *values);
    if (!values) return HEDDLE_E_NOMEM;
    owner->vectors[owner->n_vectors++] = values;
    for (int64_t r = 0; r < t->n_rows; r++)
        hdl_dequant_row(t->dtype, (const uint8_t *)t->data + r * t->row_bytes, values + r * t->n_cols,
                        t->n_cols);
    *t = (hdl_tensor){values, HDL_F32, t->n_rows, t->n_cols, t->n_cols * (int64_t)sizeof *values};
    return HEDDLE_OK;
}

/* Links tensor i of the file, called l->name, as `row` says. */
static heddle_status link_tensor(loader *l, const weight_row *row, int64_t i, hdl_tensor *out)
{
    int64_t rows = dim_size(&l->model->facts, row->rows), cols = dim_size(&l->model->facts, row->cols);
    hdl_tensor t;
    tensor_at(l, i, &t);
    if (t.n_rows != rows || t.n_cols != cols)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: shape is [%lld, %lld], must be [%lld, %lld]",
                        l->path, l->name, (long long)t.n_rows, (long long)t.n_cols, (long long)rows,
                        (long long)cols);
    const hdl_dtype_traits *traits = hdl_dtype_of(t.dtype);
    int alignment = traits->is_quantised ? 2 : traits->block_bytes;
    bool is_vector = row->rows == ONE || row->rows == TAPS;
    if (!is_vector && (uintptr_t)t.data % (unsigned)alignment)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s: tensor %s: its data are not aligned to %d bytes: save the file again "
                        "with a current library",
                        l->path, l->name, alignment);
    if (!is_vector && row->rows != DELTA_AB && l->own->has_weight_dtype && t.dtype != l->own->weight_dtype)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: is %s, and weight_format of config.json says %s",
                        l->path, l->name, hdl_dtype_of(t.dtype)->name,
                        hdl_dtype_of(l->own->weight_dtype)->name);
    if (!l->is_used[i]) l->model->weight_bytes += t.row_bytes * t.n_rows;
    l->is_used[i] = true;
    if (is_vector) HDL_TRY(make_f32(l, &t));
    *out = t;
    return HEDDLE_OK;
}

/* Bits of the layer (-1: of the model itself) beside those of the architecture. */
static uint32_t bits_of(const hdl_model_facts *f, int32_t layer)
{
    bool is_shared = f->cross_from < f->n_layers;
    if (layer >= 0) {
        const hdl_layer_facts *at = &f->layers[layer];
        if (at->is_delta) return DELTA | (f->delta.conv_width ? HDL_ARCH_LAYER_CONV : 0u);
        return ATTENDS | (at->has_kv ? HDL_ARCH_OWN_KV : 0u) |
               (at->has_qk_norm ? HDL_ARCH_LAYER_Q_NORM : 0u) |
               (at->has_kv && at->has_qk_norm ? HDL_ARCH_LAYER_K_NORM : 0u) |
               (at->leads_group && at->index_group ? HDL_ARCH_INDEX_LEADER : 0u);
    }
    return (is_shared ? HDL_ARCH_SHARED : 0u) | (f->has_shared_k_norm ? HDL_ARCH_SHARED_K_NORM : 0u) |
           (f->index.has_q_norm ? HDL_ARCH_INDEX_Q_NORM : 0u) |
           (f->index.has_k_norm ? HDL_ARCH_INDEX_K_NORM : 0u);
}

/* layer -1: a weight of the model itself, with a whole name. */
static heddle_status load_row(loader *l, const weight_row *row, int32_t layer, void *weights)
{
    uint32_t traits = l->traits | bits_of(&l->model->facts, layer);
    if (!((row->must | row->may) & traits)) return HEDDLE_OK;
    bool is_gguf = l->owner->gguf;
    char place[32] = "";
    if (layer >= 0) snprintf(place, sizeof place, is_gguf ? "blk.%d." : "layers.%d.", layer);
    snprintf(l->name, sizeof l->name, "%s%s%s", is_gguf ? "" : l->prefix, place,
             is_gguf ? row->gguf : row->safetensors);
    int64_t i = find_tensor(l, l->name);
    if (i >= 0) return link_tensor(l, row, i, (hdl_tensor *)((char *)weights + row->at));
    if (row->must & traits) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: is missing", l->path, l->name);
    return HEDDLE_OK;
}

/* The output matrix, or the embedding where there is none or the configuration says so. */
static heddle_status load_output(loader *l, const hdl_stated *stated)
{
    hdl_model *model = l->model;
    int64_t i = -1, n_names = l->owner->gguf ? 1 : HDL_COUNT(output_names);
    for (int64_t j = 0; j < n_names && i < 0; j++) {
        snprintf(l->name, sizeof l->name, "%s", l->owner->gguf ? output_row.gguf : output_names[j]);
        i = find_tensor(l, l->name);
    }
    if (i >= 0 && !stated->has_tied_output) return link_tensor(l, &output_row, i, &model->output);
    if (i >= 0) l->is_used[i] = true; /* a copy of the embedding */
    if (stated->has_untied_output)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: is missing, and tie_word_embeddings is false",
                        l->path, output_names[0]);
    model->output = model->token_embd;
    return HEDDLE_OK;
}

static bool is_passed_over(const char *name)
{
    for (int64_t i = 0; i < HDL_COUNT(other_parts); i++)
        if (!strncmp(name, other_parts[i], strlen(other_parts[i]))) return true;
    for (int64_t i = 0; i < HDL_COUNT(derived_parts); i++) {
        size_t n = strlen(name), end = strlen(derived_parts[i]);
        if (n >= end && !strcmp(name + n - end, derived_parts[i])) return true;
    }
    return false;
}

static heddle_status check_all_used(const loader *l)
{
    for (int64_t i = 0; i < n_tensors(l); i++) {
        hdl_tensor t;
        const char *name = tensor_at(l, i, &t);
        if (!l->is_used[i] && !is_passed_over(name))
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "%s: tensor %s: is not a weight of a %d-layer %s model; without it the "
                            "answers would be wrong",
                            l->path, name, l->model->facts.n_layers, l->model->facts.arch);
    }
    return HEDDLE_OK;
}

static const char *find_prefix(const hdl_safetensors *file)
{
    for (int64_t i = 0; file && i < HDL_COUNT(prefixes); i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefixes[i], model_rows[0].safetensors);
        if (hdl_safetensors_find_tensor(file, name) >= 0) return prefixes[i];
    }
    return prefixes[0];
}

static heddle_status load_all(loader *l, const hdl_stated *stated)
{
    for (int64_t r = 0; r < HDL_COUNT(model_rows); r++) HDL_TRY(load_row(l, &model_rows[r], -1, l->model));
    for (int64_t r = 0; r < HDL_COUNT(shared_rows); r++) HDL_TRY(load_row(l, &shared_rows[r], -1, l->model));
    HDL_TRY(load_output(l, stated));
    for (int32_t i = 0; i < l->model->facts.n_layers; i++) {
        for (int64_t r = 0; r < HDL_COUNT(layer_rows); r++)
            HDL_TRY(load_row(l, &layer_rows[r], i, &l->model->layers[i]));
        for (int64_t r = 0; r < HDL_COUNT(delta_rows) && l->model->deltas; r++)
            HDL_TRY(load_row(l, &delta_rows[r], i, &l->model->deltas[i]));
    }
    return check_all_used(l);
}

heddle_status hdl_weights_load(hdl_model *model, const hdl_arch *arch, const hdl_stated *stated,
                               const char *path)
{
    loader l = {
        .model = model, .owner = model->owner, .traits = arch->traits, .path = path, .own = &stated->own};
    heddle_status status = HEDDLE_E_NOMEM;
    int64_t n_layers = model->facts.n_layers;
    l.prefix = find_prefix(l.owner->safetensors);
    l.owner->vector_capacity = n_layers * (HDL_COUNT(layer_rows) + HDL_COUNT(delta_rows)) +
                               HDL_COUNT(model_rows) + HDL_COUNT(shared_rows);
    l.owner->vectors = hdl_calloc(l.owner->vector_capacity, sizeof *l.owner->vectors);
    l.is_used = hdl_calloc(n_tensors(&l), sizeof *l.is_used);
    model->layers = hdl_calloc(n_layers, sizeof *model->layers);
    bool has_delta = model->facts.delta.n_layers > 0;
    if (has_delta) model->deltas = hdl_calloc(n_layers, sizeof *model->deltas);
    if (l.owner->vectors && l.is_used && model->layers && !model->deltas == !has_delta)
        status = load_all(&l, stated);
    hdl_free(l.is_used);
    return status;
}
