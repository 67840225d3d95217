/* cross_model.c - reads the golden answers, and writes the golden model again in F32. */
#include "cross_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/safetensors.h"
#include "tensor/quant.h"

bool cross_read_floats(float *out, int64_t n, const char *path)
{
    FILE *file = fopen(path, "rb");
    bool is_read = file && fread(out, sizeof *out, (size_t)n, file) == (size_t)n;
    if (file) fclose(file);
    if (!is_read) fprintf(stderr, "%s: cannot be read\n", path);
    return is_read;
}

int64_t cross_read_line(FILE *file, int32_t *out, int64_t most)
{
    char line[8192], *at = line, *end;
    int64_t n = 0;
    if (!fgets(line, sizeof line, file)) return -1;
    for (; n < most; n++, at = end) {
        long value = strtol(at, &end, 10);
        if (end == at) break;
        out[n] = (int32_t)value;
    }
    return n;
}

bool cross_golden_read(cross_golden *out)
{
    FILE *file = fopen(CROSS_GOLDEN "/tokens.txt", "r");
    bool is_read = file && cross_read_line(file, out->tokens, CROSS_TOKENS) == CROSS_TOKENS;
    if (file) fclose(file);
    file = fopen(CROSS_GOLDEN "/lists.txt", "r");
    for (int64_t t = 0; file && is_read && t < CROSS_TOKENS; t++) {
        out->counts[t] = (int32_t)cross_read_line(file, out->lists[t], CROSS_TOP_K);
        is_read = out->counts[t] == HDL_MIN(t + 1, CROSS_TOP_K);
    }
    is_read = is_read && file;
    if (file) fclose(file);
    if (!is_read) fprintf(stderr, CROSS_GOLDEN ": tokens.txt or lists.txt cannot be read\n");
    return is_read &&
           cross_read_floats(out->logits_dense[0], (int64_t)CROSS_TOKENS * CROSS_VOCAB,
                             CROSS_GOLDEN "/logits_dense.f32") &&
           cross_read_floats(out->logits_list[0], (int64_t)CROSS_TOKENS * CROSS_VOCAB,
                             CROSS_GOLDEN "/logits_list.f32");
}

static void add_tensor(hdl_buf *header, hdl_buf *data, const char *name, const hdl_tensor *t, float factor)
{
    float *row = hdl_calloc(t->n_cols, sizeof *row);
    int64_t begin = data->n;
    for (int64_t r = 0; row && r < t->n_rows; r++) {
        hdl_dequant_row(t->dtype, (const char *)t->data + r * t->row_bytes, row, t->n_cols);
        for (int64_t i = 0; i < t->n_cols; i++) row[i] *= factor;
        hdl_buf_add(data, row, t->n_cols * (int64_t)sizeof *row);
    }
    hdl_buf_printf(header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", header->n > 1 ? "," : "", name);
    if (t->n_rows > 1) hdl_buf_printf(header, "%lld,", (long long)t->n_rows);
    hdl_buf_printf(header, "%lld],\"data_offsets\":[%lld,%lld]}", (long long)t->n_cols, (long long)begin,
                   (long long)data->n);
    hdl_free(row);
}

static bool replace_text(hdl_buf *text, const char *from, const char *to)
{
    hdl_buf out = {0};
    hdl_buf_add(text, "", 1); /* a terminated copy to search in */
    const char *at = strstr(text->data, from);
    if (at) {
        hdl_buf_add(&out, text->data, at - text->data);
        hdl_buf_puts(&out, to);
        hdl_buf_puts(&out, at + strlen(from));
    }
    hdl_buf_deinit(text);
    *text = out;
    return at;
}

static bool change_config(hdl_buf *config, const cross_groups *groups)
{
    char count[32];
    snprintf(count, sizeof count, "\"index_groups\": %d", groups->n);
    return replace_text(config, "\"weight_format\": \"q8_0\"", "\"weight_format\": \"f32\"") &&
           replace_text(config, "\"index_groups\": 1", count) &&
           (!groups->is_own_input || replace_text(config, "\"index_group_query\": \"shared_state\"",
                                                  "\"index_group_query\": \"own_input\""));
}

static bool adds_to_stream(const char *name)
{
    return !strcmp(name, "layers.2.self_attn.o_proj.weight") ||
           !strcmp(name, "layers.2.mlp.down_proj.weight");
}

/* Writes the folder's model.safetensors of these tensors and its config.json. Frees all three buffers. */
static bool finish_model(const char *folder, hdl_buf *header, hdl_buf *data, hdl_buf *config)
{
    hdl_buf all = {0};
    char path[1024];
    hdl_buf_puts(header, "}");
    while (header->n % 8) hdl_buf_puts(header, " ");
    uint64_t n = (uint64_t)header->n;
    hdl_buf_add(&all, &n, sizeof n);
    hdl_buf_add(&all, header->data, header->n);
    hdl_buf_add(&all, data->data, data->n);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    bool is_written = !hdl_buf_status(&all) && tiny_write_file(path, all.data, all.n);
    snprintf(path, sizeof path, "%s/config.json", folder);
    is_written = is_written && tiny_write_file(path, config->data, config->n);
    hdl_buf_deinit(header);
    hdl_buf_deinit(data);
    hdl_buf_deinit(config);
    hdl_buf_deinit(&all);
    return is_written;
}

static bool write_model(const char *folder, const hdl_safetensors *from, const cross_groups *groups)
{
    hdl_buf header = {0}, data = {0}, config = {0};
    hdl_buf_puts(&header, "{");
    for (int64_t i = 0; i < hdl_safetensors_n_tensors(from); i++) {
        hdl_tensor t;
        const char *name = hdl_safetensors_tensor_at(from, i, &t);
        hdl_tensor *norm = !strcmp(name, "layers.3.input_layernorm.weight") && groups->is_flat ? &t : NULL;
        if (norm)
            hdl_safetensors_tensor_at(from, hdl_safetensors_find_tensor(from, "shared.norm.weight"), norm);
        add_tensor(&header, &data, name, &t, groups->is_flat && adds_to_stream(name) ? 0 : 1);
    }
    if (groups->n > 1) {
        hdl_tensor t;
        hdl_safetensors_tensor_at(from, hdl_safetensors_find_tensor(from, "index.q_proj.weight"), &t);
        add_tensor(&header, &data, "layers.3.index.q_proj.weight", &t, groups->is_opposite ? -1 : 1);
    }
    bool is_read = !hdl_buf_read_file(&config, CROSS_GOLDEN "/config.json", 1 << 16) &&
                   change_config(&config, groups);
    return finish_model(folder, &header, &data, &config) && is_read;
}

/* Whether it is the index query of a layer that leads none of these groups. */
static bool is_idle_query(const char *name, const int32_t *leaders, int64_t n_leaders)
{
    int layer, end = 0;
    if (sscanf(name, "layers.%d.index.q_proj.weight%n", &layer, &end) != 1 || !end) return false;
    for (int64_t i = 0; i < n_leaders; i++)
        if (leaders[i] == layer) return false;
    return true;
}

/* Puts channels (i, i + dim/2) of every head at (2i, 2i + 1) in x [n_rows, n_cols], where that is a matrix or gain of
 * attention's queries or keys; leaves others. False where its channels are no whole heads. */
static bool pair_channels(const char *name, float *x, int64_t n_rows, int64_t n_cols, int64_t dim)
{
    bool is_gain = strstr(name, "q_norm.weight") || strstr(name, "k_norm.weight");
    bool is_matrix = strstr(name, "q_proj.weight") || strstr(name, "k_proj.weight");
    bool is_of_index = strstr(name, "index.");
    if (is_of_index || (!is_gain && !is_matrix)) return true;
    int64_t n = is_gain ? 1 : n_cols, n_channels = n_rows * n_cols / n;
    float *old = n_channels % dim ? NULL : hdl_calloc(n_rows * n_cols, sizeof *old);
    if (!old) return false;
    memcpy(old, x, (size_t)(n_rows * n_cols) * sizeof *old);
    for (int64_t c = 0; c < n_channels; c++) {
        int64_t at = c % dim, to = c - at + (at < dim / 2 ? 2 * at : 2 * (at - dim / 2) + 1);
        memcpy(x + to * n, old + c * n, (size_t)n * sizeof *x);
    }
    hdl_free(old);
    return true;
}

bool cross_write_as_f32(char *folder, int64_t folder_bytes, const char *from, const char *config_path,
                        const int32_t *leaders, int64_t n_leaders, int64_t paired_head_dim)
{
    hdl_safetensors *tensors;
    hdl_buf header = {0}, data = {0}, config = {0};
    bool is_paired = true;
    if (hdl_safetensors_open(&tensors, from) || !tiny_make_folder(folder, folder_bytes)) return false;
    hdl_buf_puts(&header, "{");
    for (int64_t i = 0; i < hdl_safetensors_n_tensors(tensors); i++) {
        hdl_tensor t;
        const char *name = hdl_safetensors_tensor_at(tensors, i, &t);
        int64_t begin = data.n;
        if (is_idle_query(name, leaders, n_leaders)) continue;
        add_tensor(&header, &data, name, &t, 1);
        if (paired_head_dim && !hdl_buf_status(&data))
            is_paired &= pair_channels(name, (float *)(void *)(data.data + begin), t.n_rows, t.n_cols,
                                       paired_head_dim);
    }
    bool is_read = !hdl_buf_read_file(&config, config_path, 1 << 16) &&
                   replace_text(&config, "\"weight_format\": \"q8_0\"", "\"weight_format\": \"f32\"");
    if (paired_head_dim)
        is_read = is_read && is_paired &&
                  replace_text(&config, "\"rope_style\": \"half\"", "\"rope_style\": \"pairs\"");
    hdl_safetensors_close(tensors);
    return finish_model(folder, &header, &data, &config) && is_read;
}

bool cross_write_f32(char *folder, int64_t folder_bytes)
{
    return cross_write_groups(folder, folder_bytes, &(cross_groups){.n = 1});
}

bool cross_write_groups(char *folder, int64_t folder_bytes, const cross_groups *groups)
{
    hdl_safetensors *from;
    if (hdl_safetensors_open(&from, CROSS_GOLDEN) || !tiny_make_folder(folder, folder_bytes)) return false;
    bool is_written = write_model(folder, from, groups);
    hdl_safetensors_close(from);
    return is_written;
}
