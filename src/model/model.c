/* model.c - opens a model: file -> what it states -> facts -> weights -> tokenizer. */
#include "model/model.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

enum { MAX_CONFIG_BYTES = 1 << 24 };

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

heddle_status hdl_join_path(char out[HDL_MAX_PATH], const char *dir, const char *name)
{
    int n = snprintf(out, HDL_MAX_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= HDL_MAX_PATH)
        return HDL_FAIL(HEDDLE_E_INVALID, "%.64s...: path of %d bytes: must be below %d", dir, n,
                        HDL_MAX_PATH);
    return HEDDLE_OK;
}

static heddle_status open_gguf(hdl_model *model, const char *path)
{
    hdl_model_owner *owner = model->owner;
    const hdl_arch *arch;
    hdl_stated stated;
    HDL_TRY(hdl_gguf_open(&owner->gguf, path)); /* owned by the model, closed with it */
    model->file_bytes = hdl_gguf_file_bytes(owner->gguf);
    HDL_TRY(hdl_stated_from_gguf(&stated, &arch, owner->gguf, path));
    HDL_TRY(hdl_facts_build(&model->facts, arch, &stated, true, path));
    HDL_TRY(hdl_weights_load(model, arch, &stated, path));
    hdl_text text = {0};
    hdl_gguf_str(owner->gguf, "tokenizer.chat_template", &text);
    model->chat = hdl_chat_recognise(text);
    if (hdl_gguf_array_n(owner->gguf, "tokenizer.ggml.tokens") < 0) return HEDDLE_OK;
    heddle_status status = hdl_tokenizer_from_gguf(&model->tokenizer, owner->gguf);
    if (status) return HDL_FAIL(status, "%s: %s", path, hdl_last_error());
    int32_t n = hdl_tokenizer_n_vocab(model->tokenizer);
    if (n > model->facts.n_vocab)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: the vocabulary has %d tokens, but token_embd.weight has %d rows", path, n,
                        model->facts.n_vocab);
    return HEDDLE_OK;
}

/* The template is a file of its own, or a member of tokenizer_config.json; there may be none. */
static heddle_status read_chat(hdl_model *model, const char *dir)
{
    char path[HDL_MAX_PATH];
    hdl_buf text = {0};
    json_t *root = NULL;
    heddle_status status = hdl_join_path(path, dir, "chat_template.jinja");
    if (status) return status;
    if (access(path, R_OK) == 0) {
        status = hdl_buf_read_file(&text, path, MAX_CONFIG_BYTES);
        if (!status) model->chat = hdl_chat_recognise((hdl_text){text.data, text.n});
        goto done;
    }
    if ((status = hdl_join_path(path, dir, "tokenizer_config.json")) || access(path, R_OK) != 0) goto done;
    if ((status = hdl_buf_read_file(&text, path, MAX_CONFIG_BYTES))) goto done;
    if ((status = hdl_json_parse(&root, text.data ? text.data : "", text.n, path))) goto done;
    const json_t *member = json_object_get(root, "chat_template");
    if (json_is_string(member))
        model->chat = hdl_chat_recognise(
            (hdl_text){json_string_value(member), (int64_t)json_string_length(member)});
done:
    json_decref(root);
    hdl_buf_deinit(&text);
    return status;
}

/* A config that states no name has its folder's: for people only. */
static void name_by_folder(hdl_stated *stated, const char *dir)
{
    int64_t end = (int64_t)strlen(dir), from;
    while (end > 0 && dir[end - 1] == '/') end--;
    for (from = end; from > 0 && dir[from - 1] != '/'; from--) {
    }
    if (!*stated->name)
        snprintf(stated->name, sizeof stated->name, "%.*s", (int)HDL_MIN(end - from, 127), dir + from);
}

static heddle_status read_stated(hdl_stated *stated, const hdl_arch **arch, const char *dir)
{
    char path[HDL_MAX_PATH];
    hdl_buf text = {0};
    HDL_TRY(hdl_join_path(path, dir, "config.json"));
    if (access(path, F_OK) != 0)
        return HDL_FAIL(
            HEDDLE_E_IO,
            "%s: holds no config.json: a model is a .gguf file, or safetensors with their config.json", dir);
    heddle_status status = hdl_buf_read_file(&text, path, MAX_CONFIG_BYTES);
    if (!status) status = hdl_stated_from_config(stated, arch, text.data ? text.data : "", text.n, path);
    hdl_buf_deinit(&text);
    if (!status) name_by_folder(stated, dir);
    return status;
}

/* `files`: what holds the tensors, `dir`: its folder, with config.json. */
static heddle_status open_safetensors(hdl_model *model, const char *files, const char *dir)
{
    hdl_model_owner *owner = model->owner;
    const hdl_arch *arch;
    hdl_stated stated;
    char path[HDL_MAX_PATH];
    HDL_TRY(read_stated(&stated, &arch, dir));
    HDL_TRY(hdl_safetensors_open(&owner->safetensors, files));
    model->file_bytes = hdl_safetensors_file_bytes(owner->safetensors);
    HDL_TRY(hdl_facts_build(&model->facts, arch, &stated, false, dir));
    HDL_TRY(hdl_weights_load(model, arch, &stated, files));
    HDL_TRY(read_chat(model, dir));
    HDL_TRY(hdl_join_path(path, dir, "tokenizer.json"));
    if (access(path, R_OK) != 0) return HEDDLE_OK;
    HDL_TRY(hdl_tokenizer_from_json(&model->tokenizer, dir));
    int32_t n = hdl_tokenizer_n_vocab(model->tokenizer), doc = model->facts.doc_token;
    if (doc >= n)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: doc_token %d: must be below the %d tokens of tokenizer.json",
                        dir, doc, n);
    if (doc >= 0) hdl_tokenizer_set_document(model->tokenizer, doc);
    return HEDDLE_OK;
}

static heddle_status open_path(hdl_model *model, const char *path)
{
    if (is_folder(path)) return open_safetensors(model, path, path);
    if (!ends_with(path, ".safetensors")) return open_gguf(model, path);
    const char *slash = strrchr(path, '/');
    if (!slash) return open_safetensors(model, path, ".");
    char *dir = hdl_strndup(path, HDL_MAX(slash - path, (ptrdiff_t)1));
    if (!dir) return HEDDLE_E_NOMEM;
    heddle_status status = open_safetensors(model, path, dir);
    hdl_free(dir);
    return status;
}

heddle_status hdl_model_open(hdl_model **out, const char *path)
{
    *out = NULL;
    hdl_model *model = hdl_calloc(1, sizeof *model);
    if (!model) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_E_NOMEM;
    model->owner = hdl_calloc(1, sizeof(hdl_model_owner));
    if (!model->owner) goto done;
    if ((status = open_path(model, path))) goto done;
    *out = model;
    model = NULL;
done:
    hdl_model_close(model);
    return status;
}

void hdl_model_close(hdl_model *model)
{
    if (!model) return;
    hdl_model_owner *owner = model->owner;
    hdl_tokenizer_free(model->tokenizer);
    if (owner) {
        for (int64_t i = 0; i < owner->n_vectors; i++) hdl_free(owner->vectors[i]);
        hdl_free(owner->vectors);
        hdl_safetensors_close(owner->safetensors);
        hdl_safetensors_close(owner->index);
        hdl_gguf_close(owner->gguf);
        hdl_free(owner);
    }
    hdl_free(model->layers);
    hdl_free(model->deltas);
    hdl_free(model);
}
