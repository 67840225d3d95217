#include "model/index_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/mapfile.h"
#include "base/sha256.h"
#include "model/model_int.h"

typedef struct sidecar {
    const char *path;
    json_t *root; /* the header; its metadata is a member */
    const json_t *metadata;
    hdl_safetensors *tensors;
} sidecar;

static heddle_status text_of(const sidecar *at, const char *key, const char **out)
{
    *out = json_string_value(json_object_get(at->metadata, key));
    if (*out) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_FORMAT, "index %s: metadata \"%s\": is missing", at->path, key);
}

static heddle_status number_of(const sidecar *at, const char *key, double min, double max, double *out)
{
    const char *text;
    char *end;
    HDL_TRY(text_of(at, key, &text));
    *out = strtod(text, &end);
    if (end == text || *end || !(*out >= min && *out <= max))
        return HDL_FAIL(HEDDLE_E_FORMAT, "index %s: metadata \"%s\" \"%.40s\": must be in %g..%g", at->path,
                        key, text, min, max);
    return HEDDLE_OK;
}

static heddle_status read_header(sidecar *at)
{
    hdl_mapfile map;
    uint64_t n;
    HDL_TRY(hdl_mapfile_open(&map, at->path));
    memcpy(&n, map.data, sizeof n); /* the safetensors reader has accepted the file */
    heddle_status status = hdl_json_parse(&at->root, (const char *)map.data + 8, (int64_t)n, at->path);
    hdl_mapfile_close(&map);
    at->metadata = json_object_get(at->root, "__metadata__");
    return status;
}

static heddle_status check_model(const sidecar *at, const char *model_path)
{
    const char *kind, *version, *combine, *want;
    char have[HDL_SHA256_HEX];
    hdl_mapfile map;
    HDL_TRY(text_of(at, "kind", &kind));
    HDL_TRY(text_of(at, "version", &version));
    HDL_TRY(text_of(at, "index_combine", &combine));
    HDL_TRY(text_of(at, "model_sha256", &want));
    if (strcmp(kind, "distilled_index") || strcmp(version, "1") || strcmp(combine, "max"))
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            "index %s: is a %.40s of version %.20s that combines by %.20s; read are distilled_index, 1, max",
            at->path, kind, version, combine);
    HDL_TRY(hdl_mapfile_open(&map, model_path));
    hdl_sha256(map.data, map.n_bytes, have);
    hdl_mapfile_close(&map);
    if (strcmp(have, want))
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "index %s: was made for a model file of SHA-256 %.12s..., %s has %.12s...", at->path,
                        want, model_path, have);
    return HEDDLE_OK;
}

/* As number_of, without a fraction. */
static heddle_status whole_of(const sidecar *at, const char *key, double min, double max, double *out)
{
    HDL_TRY(number_of(at, key, min, max, out));
    if (*out == floor(*out)) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_FORMAT, "index %s: metadata \"%s\" %g: must be a whole number", at->path, key,
                    *out);
}

/* The rotation of an index: its first dims turn by the leader's base; as a table of the model's. */
static heddle_status rope_of(const sidecar *at, hdl_model_facts *facts, int32_t dims, double base,
                             int32_t *table)
{
    hdl_rope_facts rope = {.style = dims ? HDL_ROPE_HALF : HDL_ROPE_NONE, .dim = dims, .attn_factor = 1};
    for (int32_t i = 0; i < dims / 2; i++) rope.inv_freq[i] = (float)pow(base, -2.0 * i / dims);
    for (*table = 0; *table < facts->n_ropes; ++*table)
        if (!memcmp(&facts->ropes[*table], &rope, sizeof rope)) return HEDDLE_OK;
    if (facts->n_ropes == HDL_MAX_ROPES)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "index %s: needs one more rotation table than %d", at->path,
                        HDL_MAX_ROPES);
    facts->ropes[facts->n_ropes++] = rope;
    return HEDDLE_OK;
}

static heddle_status find(const sidecar *at, int32_t group, const char *name, int64_t n_rows, int64_t n_cols,
                          hdl_dtype dtype, hdl_tensor *out)
{
    char full[64];
    snprintf(full, sizeof full, "index.%d.%s.weight", group, name);
    int64_t i = hdl_safetensors_find_tensor(at->tensors, full);
    if (i < 0) return HDL_FAIL(HEDDLE_E_FORMAT, "index %s: tensor %s: is missing", at->path, full);
    hdl_safetensors_tensor_at(at->tensors, i, out);
    if (out->n_rows != n_rows || out->n_cols != n_cols || out->dtype != dtype)
        return HDL_FAIL(HEDDLE_E_FORMAT, "index %s: tensor %s: is %s [%lld, %lld]; must be %s [%lld, %lld]",
                        at->path, full, hdl_dtype_of(out->dtype)->name, (long long)out->n_rows,
                        (long long)out->n_cols, hdl_dtype_of(dtype)->name, (long long)n_rows,
                        (long long)n_cols);
    return HEDDLE_OK;
}

static heddle_status read_group(const sidecar *at, hdl_model_facts *facts, int32_t group, int64_t layer,
                                double base, int32_t rope_dims, hdl_layer_weights *out)
{
    const hdl_index_facts *index = &facts->index;
    int64_t hidden = facts->hidden_size;
    if (layer < 0 || layer >= facts->n_layers || !facts->layers[layer].has_kv ||
        facts->layers[layer].window || facts->layers[layer].has_index)
        return HDL_FAIL(
            HEDDLE_E_FORMAT,
            "index %s: metadata \"leaders\": %lld is not a layer that reads everything, or stands twice",
            at->path, (long long)layer);
    hdl_layer_facts *facts_at = &facts->layers[layer];
    facts_at->has_index = true;
    HDL_TRY(rope_of(at, facts, rope_dims, base, &facts_at->index_rope));
    HDL_TRY(find(at, group, "q_proj", (int64_t)index->n_heads * index->dim, hidden, HDL_F16, &out->index_q));
    HDL_TRY(find(at, group, "q_bias", index->n_heads, hidden, HDL_F16, &out->index_bias));
    HDL_TRY(find(at, group, "k_proj", index->dim, hidden, HDL_F16, &out->index_k));
    return find(at, group, "k_norm", 1, index->dim, HDL_F32, &out->index_k_norm);
}

static heddle_status read_groups(const sidecar *at, hdl_model_facts *facts, hdl_layer_weights *weights)
{
    const char *leaders, *bases;
    double dim, heads, scale, eps, rope_dims, sinks, window, top_k;
    HDL_TRY(whole_of(at, "index_dim", 2, 1024, &dim));
    HDL_TRY(whole_of(at, "index_n_heads", 1, 64, &heads));
    HDL_TRY(number_of(at, "index_scale", 1e-6, 1e6, &scale));
    HDL_TRY(number_of(at, "index_norm_eps", 0, 1, &eps));
    HDL_TRY(whole_of(at, "index_rope_dims", 0, HDL_MIN(dim, (double)HDL_MAX_ROPE_DIM), &rope_dims));
    HDL_TRY(whole_of(at, "index_sinks", 0, 1 << 16, &sinks));
    HDL_TRY(whole_of(at, "index_window", 0, 1 << 24, &window));
    HDL_TRY(whole_of(at, "top_k", 0, 1 << 24, &top_k));
    HDL_TRY(text_of(at, "leaders", &leaders));
    HDL_TRY(text_of(at, "index_rope_base", &bases));
    facts->index = (hdl_index_facts){.dim = (int32_t)dim,
                                     .n_heads = (int32_t)heads,
                                     .scale = (float)scale,
                                     .norm_eps = (float)eps,
                                     .has_k_norm = true,
                                     .is_of_layers = true,
                                     .n_sink = (int32_t)sinks,
                                     .window = (int32_t)window,
                                     .top_k = (int64_t)top_k};
    for (int32_t group = 0; *leaders; group++) {
        char *end, *base_end;
        long layer = strtol(leaders, &end, 10);
        double base = strtod(bases, &base_end);
        if (end == leaders || (*end && *end != ',') || base_end == bases || !(base > 1) ||
            (*base_end && *base_end != ','))
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "index %s: metadata \"leaders\" and \"index_rope_base\": must be as many numbers "
                            "with commas between",
                            at->path);
        HDL_TRY(read_group(at, facts, group, layer, base, (int32_t)rope_dims / 2 * 2,
                           &weights[HDL_MIN(HDL_MAX(layer, 0), facts->n_layers - 1)]));
        leaders = *end ? end + 1 : end;
        bases = *base_end ? base_end + 1 : base_end;
    }
    return HEDDLE_OK;
}

heddle_status hdl_model_attach_index(hdl_model *model, const char *model_path, const char *index_path)
{
    hdl_model_owner *owner = model->owner;
    sidecar at = {.path = index_path};
    if (model->facts.index.dim)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "index %s: the model has an index of its own", index_path);
    hdl_model_facts *facts = hdl_calloc(1, sizeof *facts);
    hdl_layer_weights *weights = hdl_calloc(model->facts.n_layers, sizeof *weights);
    heddle_status status = facts && weights ? hdl_safetensors_open(&at.tensors, index_path) : HEDDLE_E_NOMEM;
    if (!status) *facts = model->facts;
    if (!status) memcpy(weights, model->layers, (size_t)model->facts.n_layers * sizeof *weights);
    if (!status) status = read_header(&at);
    if (!status) status = check_model(&at, model_path);
    if (!status) status = read_groups(&at, facts, weights);
    json_decref(at.root);
    if (status) {
        hdl_safetensors_close(at.tensors);
    } else {
        owner->index = at.tensors;
        model->facts = *facts;
        memcpy(model->layers, weights, (size_t)model->facts.n_layers * sizeof *weights);
        model->weight_bytes += hdl_safetensors_file_bytes(at.tensors);
    }
    hdl_free(weights);
    hdl_free(facts);
    return status;
}
