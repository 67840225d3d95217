/* tiny_model.c - writes the models of tiny_model.h.
 *
 * A weight's values are a hash of (seed, canonical name, index), so they do not depend on the
 * format, on the order of writing or on other weights. Canonical means safetensors' names and row
 * order, and norms as the factors they multiply by; each writer turns that into its format. */
#include "tiny_model.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "tensor/quant.h"

enum { N_BYTES = 256, MAX_TENSORS = 512, MAX_VOCAB = 400 };

/* --- sizes and weights ------------------------------------------------------------------- */

typedef enum kind { MATRIX, Q_ROWS, NORM, BIAS, Q_BIAS } kind;

typedef struct weight {
    char gguf[64], name[96];
    kind kind;
    int64_t n_rows, n_cols; /* a vector has one row */
    int32_t n_heads;        /* of Q_ROWS and Q_BIAS */
} weight;

typedef struct tiny {
    tiny_options o; /* completed */
    bool is_gemma, is_qwen2, has_qk_norm;
    int32_t n_vocab;
    const char *tokens[MAX_VOCAB];
    char token_text[MAX_VOCAB][32];
    int32_t token_type[MAX_VOCAB];
    float token_score[MAX_VOCAB];
    weight weights[MAX_TENSORS];
    int32_t n_weights;
} tiny;

static int32_t or_else(int32_t stated, int32_t otherwise)
{
    return stated ? stated : otherwise;
}

static void complete(tiny *t, const tiny_options *options)
{
    tiny_options *o = &t->o;
    *o = *options;
    if (!o->arch) o->arch = "llama";
    t->is_gemma = !strcmp(o->arch, "gemma3");
    t->is_qwen2 = !strcmp(o->arch, "qwen2");
    t->has_qk_norm = t->is_gemma || !strcmp(o->arch, "qwen3");
    bool is_wide = hdl_dtype_of(o->dtype)->block_elems > 32;
    o->n_layers = or_else(o->n_layers, t->is_gemma ? 6 : 2);
    o->n_heads = or_else(o->n_heads, 4);
    o->n_kv_heads = or_else(o->n_kv_heads, 2);
    o->head_dim = or_else(o->head_dim, is_wide ? 64 : 16);
    o->hidden_size = or_else(o->hidden_size, is_wide ? 256 : 64);
    o->n_ff = or_else(o->n_ff, is_wide ? 256 : 96);
    o->window = or_else(o->window, 8);
    o->n_shards = or_else(o->n_shards, 1);
    o->gguf_version = or_else(o->gguf_version, 3);
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_name(uint64_t seed, const char *name)
{
    uint64_t h = mix(seed);
    for (const char *c = name; *c; c++) h = mix(h ^ (uint8_t)*c);
    return h;
}

/* Uniform in (-1, 1). */
static float noise(uint64_t hash, int64_t i)
{
    return (float)((double)(mix(hash ^ (uint64_t)i) >> 11) * 0x1p-52 - 1);
}

/* Canonical values, wide enough that attention is peaked and every norm and bias matters. */
static float *make_values(const tiny *t, const weight *w)
{
    int64_t n = w->n_rows * w->n_cols;
    float *x = hdl_calloc(n, sizeof *x);
    float width = w->kind == MATRIX || w->kind == Q_ROWS ? 2 / sqrtf((float)w->n_cols) : 0.3f;
    if (strstr(w->name, "embed_tokens") || strstr(w->name, "lm_head")) width = 0.4f;
    uint64_t hash = hash_name(t->o.seed, w->name);
    for (int64_t i = 0; x && i < n; i++) x[i] = (w->kind == NORM ? 1 : 0) + width * noise(hash, i);
    return x;
}

static weight *add(tiny *t, kind of, int64_t n_rows, int64_t n_cols)
{
    weight *w = &t->weights[t->n_weights++];
    *w = (weight){.kind = of, .n_rows = n_rows, .n_cols = n_cols};
    return w;
}

static void add_layer_weight(tiny *t, int layer, const char *gguf, const char *name, weight like)
{
    weight *w = add(t, like.kind, like.n_rows, like.n_cols);
    w->n_heads = like.n_heads;
    snprintf(w->gguf, sizeof w->gguf, "blk.%d.%s", layer, gguf);
    snprintf(w->name, sizeof w->name, "model.layers.%d.%s", layer, name);
}

static void list_layer(tiny *t, int layer)
{
    const tiny_options *o = &t->o;
    int64_t hidden = o->hidden_size, q = (int64_t)o->n_heads * o->head_dim,
            k = (int64_t)o->n_kv_heads * o->head_dim;
    weight norm = {.kind = NORM, .n_rows = 1, .n_cols = hidden};
    weight head_norm = {.kind = NORM, .n_rows = 1, .n_cols = o->head_dim};
    add_layer_weight(t, layer, "attn_norm.weight", "input_layernorm.weight", norm);
    add_layer_weight(t, layer, "attn_q.weight", "self_attn.q_proj.weight",
                     (weight){.kind = Q_ROWS, .n_rows = q, .n_cols = hidden, .n_heads = o->n_heads});
    add_layer_weight(t, layer, "attn_k.weight", "self_attn.k_proj.weight",
                     (weight){.kind = Q_ROWS, .n_rows = k, .n_cols = hidden, .n_heads = o->n_kv_heads});
    add_layer_weight(t, layer, "attn_v.weight", "self_attn.v_proj.weight",
                     (weight){.kind = MATRIX, .n_rows = k, .n_cols = hidden});
    add_layer_weight(t, layer, "attn_output.weight", "self_attn.o_proj.weight",
                     (weight){.kind = MATRIX, .n_rows = hidden, .n_cols = q});
    if (t->is_qwen2 || o->has_attn_bias) {
        add_layer_weight(t, layer, "attn_q.bias", "self_attn.q_proj.bias",
                         (weight){.kind = Q_BIAS, .n_rows = 1, .n_cols = q, .n_heads = o->n_heads});
        add_layer_weight(t, layer, "attn_k.bias", "self_attn.k_proj.bias",
                         (weight){.kind = Q_BIAS, .n_rows = 1, .n_cols = k, .n_heads = o->n_kv_heads});
        add_layer_weight(t, layer, "attn_v.bias", "self_attn.v_proj.bias",
                         (weight){.kind = BIAS, .n_rows = 1, .n_cols = k});
    }
    if (o->has_attn_bias)
        add_layer_weight(t, layer, "attn_output.bias", "self_attn.o_proj.bias",
                         (weight){.kind = BIAS, .n_rows = 1, .n_cols = hidden});
    if (t->has_qk_norm) {
        add_layer_weight(t, layer, "attn_q_norm.weight", "self_attn.q_norm.weight", head_norm);
        add_layer_weight(t, layer, "attn_k_norm.weight", "self_attn.k_norm.weight", head_norm);
    }
    if (t->is_gemma) {
        add_layer_weight(t, layer, "post_attention_norm.weight", "post_attention_layernorm.weight", norm);
        add_layer_weight(t, layer, "post_ffw_norm.weight", "post_feedforward_layernorm.weight", norm);
    }
    add_layer_weight(t, layer, "ffn_norm.weight",
                     t->is_gemma ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight",
                     norm);
    weight wide = {.kind = MATRIX, .n_rows = o->n_ff, .n_cols = hidden};
    add_layer_weight(t, layer, "ffn_gate.weight", "mlp.gate_proj.weight", wide);
    add_layer_weight(t, layer, "ffn_up.weight", "mlp.up_proj.weight", wide);
    add_layer_weight(t, layer, "ffn_down.weight", "mlp.down_proj.weight",
                     (weight){.kind = MATRIX, .n_rows = hidden, .n_cols = o->n_ff});
}

static void list_weights(tiny *t)
{
    const struct {
        const char *gguf, *name;
    } names[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                 {"output_norm.weight", "model.norm.weight"},
                 {"output.weight", "lm_head.weight"}};
    for (int i = 0; i < 2 + t->o.has_untied_output; i++) {
        weight *w = add(t, i == 1 ? NORM : MATRIX, i == 1 ? 1 : t->n_vocab, t->o.hidden_size);
        snprintf(w->gguf, sizeof w->gguf, "%s", names[i].gguf);
        snprintf(w->name, sizeof w->name, "%s", names[i].name);
    }
    for (int layer = 0; layer < t->o.n_layers; layer++) list_layer(t, layer);
}

/* --- vocabulary -------------------------------------------------------------------------- */

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 };

static const char *const merges[] = {"\xc4\xa0 t", "h e", "\xc4\xa0t he", "i n",
                                     "\xc4\xa0 a", "e r", "o n",          "\xc4\xa0 \xc4\xa0"};
static const char chatml[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
static const char gemma[] =
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

static void add_token(tiny *t, const char *text, int32_t type, float score)
{
    int32_t i = t->n_vocab++;
    snprintf(t->token_text[i], sizeof t->token_text[i], "%s", text);
    t->tokens[i] = t->token_text[i];
    t->token_type[i] = type;
    t->token_score[i] = score;
}

/* GPT-2's spelling of a byte: itself where it prints, else the next code point from 256 on. */
static void spell_byte(int byte, char out[8])
{
    int code = byte, n_hidden = 0;
    for (int b = 0; b <= byte; b++) {
        bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (!prints && b == byte) code = 256 + n_hidden;
        n_hidden += !prints;
    }
    if (code < 0x80)
        snprintf(out, 8, "%c", code);
    else
        snprintf(out, 8, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 0x3f));
}

static void list_bpe(tiny *t)
{
    static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    for (int i = 0; i < HDL_COUNT(specials); i++) add_token(t, specials[i], CONTROL, 0);
    for (int byte = 0; byte < N_BYTES; byte++) {
        char text[8];
        spell_byte(byte, text);
        add_token(t, text, NORMAL, 0);
    }
    for (int i = 0; i < HDL_COUNT(merges); i++) {
        char text[16];
        const char *space = strchr(merges[i], ' ');
        snprintf(text, sizeof text, "%.*s%s", (int)(space - merges[i]), merges[i], space + 1);
        add_token(t, text, NORMAL, 0);
    }
}

static void list_spm(tiny *t)
{
    static const char *const specials[] = {"<pad>", "<eos>",           "<bos>",
                                           "<unk>", "<start_of_turn>", "<end_of_turn>"};
    static const char *const pieces[] = {"th", "he",          "\xe2\x96\x81t", "\xe2\x96\x81the",
                                         "in", "\xe2\x96\x81"};
    for (int i = 0; i < HDL_COUNT(specials); i++)
        add_token(t, specials[i], i == 3 ? UNKNOWN : CONTROL, -1000);
    for (int byte = 0; byte < N_BYTES; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        add_token(t, text, BYTE, -1000);
    }
    for (int i = 0; i < HDL_COUNT(pieces); i++) add_token(t, pieces[i], NORMAL, (float)-i);
    for (char c = '!'; c <= '~'; c++) add_token(t, (char[]){c, 0}, NORMAL, (float)-c);
}

static tiny *make(const tiny_options *options)
{
    tiny *t = hdl_calloc(1, sizeof *t);
    if (!t) return NULL;
    complete(t, options);
    if (t->o.has_spm)
        list_spm(t);
    else
        list_bpe(t);
    list_weights(t);
    return t;
}

/* --- GGUF -------------------------------------------------------------------------------- */

enum { T_U32 = 4, T_I32 = 5, T_F32 = 6, T_BOOL = 7, T_STRING = 8, T_ARRAY = 9 };

static void put_u32(hdl_buf *out, uint32_t x)
{
    hdl_buf_add(out, &x, sizeof x);
}

static void put_u64(hdl_buf *out, uint64_t x)
{
    hdl_buf_add(out, &x, sizeof x);
}

static void put_text(hdl_buf *out, const char *text)
{
    put_u64(out, strlen(text));
    hdl_buf_puts(out, text);
}

typedef struct kv_writer {
    hdl_buf bytes;
    uint64_t n;
    const char *arch;
} kv_writer;

/* A key that starts with a dot follows the architecture's name. */
static void put_key(kv_writer *w, const char *key, uint32_t type)
{
    char text[128];
    snprintf(text, sizeof text, "%s%s", *key == '.' ? w->arch : "", key);
    put_text(&w->bytes, text);
    put_u32(&w->bytes, type);
    w->n++;
}

static void kv_int(kv_writer *w, const char *key, int64_t value)
{
    put_key(w, key, T_U32);
    put_u32(&w->bytes, (uint32_t)value);
}

static void kv_num(kv_writer *w, const char *key, float value)
{
    put_key(w, key, T_F32);
    hdl_buf_add(&w->bytes, &value, sizeof value);
}

static void kv_bool(kv_writer *w, const char *key, bool value)
{
    put_key(w, key, T_BOOL);
    hdl_buf_add(&w->bytes, &(uint8_t){value}, 1);
}

static void kv_text(kv_writer *w, const char *key, const char *value)
{
    put_key(w, key, T_STRING);
    put_text(&w->bytes, value);
}

/* n elements of 4 bytes. */
static void kv_array(kv_writer *w, const char *key, uint32_t type, const void *values, int64_t n)
{
    put_key(w, key, T_ARRAY);
    put_u32(&w->bytes, type);
    put_u64(&w->bytes, (uint64_t)n);
    hdl_buf_add(&w->bytes, values, 4 * n);
}

static void kv_texts(kv_writer *w, const char *key, const char *const *values, int64_t n)
{
    put_key(w, key, T_ARRAY);
    put_u32(&w->bytes, T_STRING);
    put_u64(&w->bytes, (uint64_t)n);
    for (int64_t i = 0; i < n; i++) put_text(&w->bytes, values[i]);
}

static void put_vocabulary(kv_writer *w, const tiny *t)
{
    bool is_spm = t->o.has_spm;
    kv_text(w, "tokenizer.ggml.model", is_spm ? "llama" : "gpt2");
    kv_text(w, "tokenizer.ggml.pre", is_spm ? "default" : "gpt-2");
    kv_texts(w, "tokenizer.ggml.tokens", t->tokens, t->n_vocab);
    kv_array(w, "tokenizer.ggml.token_type", T_I32, t->token_type, t->n_vocab);
    if (is_spm)
        kv_array(w, "tokenizer.ggml.scores", T_F32, t->token_score, t->n_vocab);
    else
        kv_texts(w, "tokenizer.ggml.merges", merges, HDL_COUNT(merges));
    kv_int(w, "tokenizer.ggml.bos_token_id", is_spm ? 2 : 1);
    kv_int(w, "tokenizer.ggml.eos_token_id", is_spm ? 1 : 2);
    if (is_spm) kv_int(w, "tokenizer.ggml.unknown_token_id", 3);
    kv_bool(w, "tokenizer.ggml.add_bos_token", is_spm);
    kv_bool(w, "tokenizer.ggml.add_space_prefix", false);
    kv_text(w, "tokenizer.chat_template", is_spm ? gemma : chatml);
}

static void put_facts(kv_writer *w, const tiny *t)
{
    const tiny_options *o = &t->o;
    kv_text(w, "general.architecture", o->arch);
    kv_text(w, "general.name", "tiny");
    if (o->gguf_alignment) kv_int(w, "general.alignment", o->gguf_alignment);
    kv_int(w, ".block_count", o->n_layers);
    kv_int(w, ".context_length", 512);
    kv_int(w, ".embedding_length", o->hidden_size);
    kv_int(w, ".feed_forward_length", o->n_ff);
    kv_int(w, ".attention.head_count", o->n_heads);
    kv_int(w, ".attention.head_count_kv", o->n_kv_heads);
    kv_int(w, ".attention.key_length", o->head_dim);
    kv_int(w, ".attention.value_length", o->head_dim);
    kv_num(w, ".attention.layer_norm_rms_epsilon", 1e-6f);
    kv_num(w, ".rope.freq_base", t->is_gemma ? 1e6f : 1e4f);
    if (t->is_gemma) kv_int(w, ".attention.sliding_window", o->window);
}

static uint32_t gguf_type(hdl_dtype dtype)
{
    static const uint32_t types[HDL_N_DTYPES] = {
        [HDL_F32] = 0,  [HDL_F16] = 1,  [HDL_BF16] = 30, [HDL_Q4_0] = 2,  [HDL_Q4_1] = 3,  [HDL_Q5_0] = 6,
        [HDL_Q5_1] = 7, [HDL_Q8_0] = 8, [HDL_Q4_K] = 12, [HDL_Q5_K] = 13, [HDL_Q6_K] = 14,
    };
    return types[dtype];
}

static bool is_vector(const weight *w)
{
    return w->kind != MATRIX && w->kind != Q_ROWS;
}

/* GGUF's row of a head holds dimension pairs side by side: canonical row s * half + j at 2j + s. */
static int64_t canonical_row(const tiny *t, const weight *w, int64_t row)
{
    if (!w->n_heads || strcmp(t->o.arch, "llama") != 0) return row;
    int64_t n = w->kind == Q_BIAS ? w->n_cols : w->n_rows, dim = n / w->n_heads, at = row % dim;
    return row - at + at % 2 * (dim / 2) + at / 2;
}

static bool put_gguf_values(hdl_buf *out, const tiny *t, const weight *w, hdl_dtype dtype)
{
    int64_t row_bytes = hdl_row_bytes(dtype, w->n_cols);
    float *x = make_values(t, w), *row = hdl_calloc(w->n_cols, sizeof *row);
    uint8_t *bytes = hdl_calloc(row_bytes, 1);
    bool is_ok = x && row && bytes;
    for (int64_t i = 0; is_ok && i < w->n_rows; i++) {
        memcpy(row, x + canonical_row(t, w, i) * w->n_cols, (size_t)w->n_cols * sizeof *row);
        for (int64_t j = 0; w->kind == Q_BIAS && j < w->n_cols; j++) row[j] = x[canonical_row(t, w, j)];
        hdl_quant_row(dtype, row, bytes, w->n_cols);
        hdl_buf_add(out, bytes, row_bytes);
    }
    hdl_free(x);
    hdl_free(row);
    hdl_free(bytes);
    return is_ok;
}

static void pad_to(hdl_buf *out, int64_t alignment)
{
    while (out->n % alignment) hdl_buf_add(out, "", 1);
}

/* Llama 3's frequency divisors for factor 8, low 1, high 4, original context 32. */
static void put_divisors(hdl_buf *out, const tiny *t)
{
    for (int i = 0; i < t->o.head_dim / 2; i++) {
        float wavelength = 2 * (float)M_PI * powf(1e4f, 2.0f * (float)i / (float)t->o.head_dim), divisor = 1;
        if (wavelength > 32.0f)
            divisor = 8;
        else if (wavelength >= 8.0f)
            divisor = 1 / ((1 - (32 / wavelength - 1) / 3) / 8 + (32 / wavelength - 1) / 3);
        hdl_buf_add(out, &divisor, sizeof divisor);
    }
}

static void put_tensor_info(hdl_buf *out, const char *name, int64_t n_cols, int64_t n_rows, uint32_t type,
                            int64_t at)
{
    put_text(out, name);
    put_u32(out, n_rows > 1 ? 2 : 1);
    put_u64(out, (uint64_t)n_cols);
    if (n_rows > 1) put_u64(out, (uint64_t)n_rows);
    put_u32(out, type);
    put_u64(out, (uint64_t)at);
}

bool tiny_gguf_bytes(hdl_buf *out, const tiny_options *options)
{
    tiny *t = make(options);
    if (!t) return false;
    int64_t alignment = or_else(t->o.gguf_alignment, 32);
    bool is_ok = true;
    kv_writer kvs = {.arch = t->o.arch};
    hdl_buf infos = {0}, data = {0};
    put_facts(&kvs, t);
    if (!t->o.has_no_tokenizer) put_vocabulary(&kvs, t);
    if (t->o.extra_kvs) hdl_buf_add(&kvs.bytes, t->o.extra_kvs, t->o.extra_kvs_bytes);
    kvs.n += (uint64_t)t->o.n_extra_kvs;
    for (int32_t i = 0; i < t->n_weights; i++) {
        const weight *w = &t->weights[i];
        hdl_dtype dtype = is_vector(w) ? t->o.norm_dtype : t->o.dtype;
        put_tensor_info(&infos, w->gguf, w->n_cols, w->n_rows, gguf_type(dtype), data.n);
        is_ok &= put_gguf_values(&data, t, w, dtype);
        pad_to(&data, alignment);
    }
    if (t->o.has_llama3_scaling) {
        put_tensor_info(&infos, "rope_freqs.weight", t->o.head_dim / 2, 1, 0, data.n);
        put_divisors(&data, t);
        pad_to(&data, alignment);
    }
    hdl_buf_puts(out, "GGUF");
    put_u32(out, (uint32_t)t->o.gguf_version);
    put_u64(out, (uint64_t)(t->n_weights + t->o.has_llama3_scaling));
    put_u64(out, kvs.n);
    hdl_buf_add(out, kvs.bytes.data, kvs.bytes.n);
    hdl_buf_add(out, infos.data, infos.n);
    pad_to(out, alignment);
    hdl_buf_add(out, data.data, data.n);
    is_ok = is_ok && !hdl_buf_status(out) && !hdl_buf_status(&kvs.bytes) && !hdl_buf_status(&data);
    hdl_buf_deinit(&kvs.bytes);
    hdl_buf_deinit(&infos);
    hdl_buf_deinit(&data);
    hdl_free(t);
    return is_ok;
}

bool tiny_write_gguf(const char *path, const tiny_options *options)
{
    hdl_buf bytes = {0};
    bool is_ok = tiny_gguf_bytes(&bytes, options) && tiny_write_file(path, bytes.data, bytes.n);
    hdl_buf_deinit(&bytes);
    return is_ok;
}

/* --- safetensors ------------------------------------------------------------------------- */

static bool put_safetensors_values(hdl_buf *out, const tiny *t, const weight *w, hdl_dtype dtype)
{
    int64_t n = w->n_rows * w->n_cols, n_bytes = hdl_row_bytes(dtype, n);
    float *x = make_values(t, w);
    uint8_t *bytes = hdl_calloc(n_bytes, 1);
    bool is_ok = x && bytes;
    for (int64_t i = 0; is_ok && t->is_gemma && w->kind == NORM && i < n; i++) x[i] -= 1;
    if (is_ok) hdl_quant_row(dtype, x, bytes, n);
    if (is_ok) hdl_buf_add(out, bytes, n_bytes);
    hdl_free(x);
    hdl_free(bytes);
    return is_ok;
}

static const char *safetensors_type(hdl_dtype dtype)
{
    return dtype == HDL_F32 ? "F32" : dtype == HDL_F16 ? "F16" : "BF16";
}

/* Weights [first, last) as one file. */
static bool write_shard(const char *path, const tiny *t, int32_t first, int32_t last)
{
    hdl_buf header = {0}, data = {0}, file = {0};
    bool is_ok = true;
    hdl_buf_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int32_t i = first; i < last; i++) {
        const weight *w = &t->weights[i];
        hdl_dtype dtype = is_vector(w) ? t->o.norm_dtype : t->o.dtype;
        int64_t begin = data.n;
        is_ok &= put_safetensors_values(&data, t, w, dtype);
        hdl_buf_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", w->name, safetensors_type(dtype));
        if (!is_vector(w)) hdl_buf_printf(&header, "%lld,", (long long)w->n_rows);
        hdl_buf_printf(&header, "%lld],\"data_offsets\":[%lld,%lld]}", (long long)w->n_cols, (long long)begin,
                       (long long)data.n);
    }
    hdl_buf_puts(&header, "}");
    while (header.n % 8) hdl_buf_puts(&header, " ");
    put_u64(&file, (uint64_t)header.n);
    hdl_buf_add(&file, header.data, header.n);
    hdl_buf_add(&file, data.data, data.n);
    is_ok = is_ok && !hdl_buf_status(&file) && !hdl_buf_status(&header) &&
            tiny_write_file(path, file.data, file.n);
    hdl_buf_deinit(&header);
    hdl_buf_deinit(&data);
    hdl_buf_deinit(&file);
    return is_ok;
}

static bool write_weights(const char *dir, const tiny *t)
{
    char path[4096], name[64];
    int32_t n_shards = t->o.n_shards;
    bool is_ok = true;
    hdl_buf index = {0};
    hdl_buf_puts(&index, "{\"metadata\":{},\"weight_map\":{");
    for (int32_t s = 0; s < n_shards; s++) {
        int32_t first = t->n_weights * s / n_shards, last = t->n_weights * (s + 1) / n_shards;
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s + 1, n_shards);
        snprintf(path, sizeof path, "%s/%s", dir, n_shards > 1 ? name : "model.safetensors");
        is_ok &= write_shard(path, t, first, last);
        for (int32_t i = first; i < last; i++)
            hdl_buf_printf(&index, "%s\"%s\":\"%s\"", i ? "," : "", t->weights[i].name, name);
    }
    hdl_buf_puts(&index, "}}\n");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (n_shards > 1) is_ok = is_ok && !hdl_buf_status(&index) && tiny_write_file(path, index.data, index.n);
    hdl_buf_deinit(&index);
    return is_ok;
}

static bool write_config(const char *dir, const tiny *t)
{
    const tiny_options *o = &t->o;
    char path[4096];
    hdl_buf text = {0};
    hdl_buf_printf(&text, "{\"model_type\": \"%s\",\n", t->is_gemma ? "gemma3_text" : o->arch);
    hdl_buf_printf(&text, " \"num_hidden_layers\": %d, \"hidden_size\": %d, \"intermediate_size\": %d,\n",
                   o->n_layers, o->hidden_size, o->n_ff);
    hdl_buf_printf(&text, " \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d,\n",
                   o->n_heads, o->n_kv_heads, o->head_dim);
    hdl_buf_printf(&text, " \"vocab_size\": %d, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-6,\n",
                   t->n_vocab);
    if (t->is_gemma)
        hdl_buf_printf(&text,
                       " \"rope_theta\": 1e6, \"rope_local_base_freq\": 1e4, \"sliding_window\": %d,\n"
                       " \"sliding_window_pattern\": 6, \"query_pre_attn_scalar\": %d,\n",
                       o->window, o->head_dim);
    else
        hdl_buf_puts(&text, " \"rope_theta\": 10000,\n");
    if (o->has_llama3_scaling)
        hdl_buf_puts(&text,
                     " \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,\n"
                     "  \"high_freq_factor\": 4, \"original_max_position_embeddings\": 32},\n");
    hdl_buf_printf(&text, " \"tie_word_embeddings\": %s}\n", o->has_untied_output ? "false" : "true");
    snprintf(path, sizeof path, "%s/config.json", dir);
    bool is_ok = !hdl_buf_status(&text) && tiny_write_file(path, text.data, text.n);
    hdl_buf_deinit(&text);
    return is_ok;
}

/* A JSON text; all of ours is valid UTF-8. */
static void put_json_text(hdl_buf *out, const char *text)
{
    hdl_buf_puts(out, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') hdl_buf_puts(out, "\\");
        if (*text == '\n')
            hdl_buf_puts(out, "\\n");
        else
            hdl_buf_add(out, text, 1);
    }
    hdl_buf_puts(out, "\"");
}

static bool write_tokenizer(const char *dir, const tiny *t)
{
    char path[4096];
    hdl_buf text = {0};
    hdl_buf_puts(&text,
                 "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [");
    for (int32_t i = 0; i < t->n_vocab && t->token_type[i] == CONTROL; i++)
        hdl_buf_printf(&text,
                       "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false,\n"
                       " \"rstrip\": false, \"normalized\": false, \"special\": true}",
                       i ? ",\n" : "", i, t->tokens[i]);
    hdl_buf_puts(
        &text,
        "],\n \"normalizer\": null,\n"
        " \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
        "\"use_regex\": true},\n \"post_processor\": null,\n"
        " \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, "
        "\"use_regex\": true},\n"
        " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
        "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, "
        "\"byte_fallback\": false, \"ignore_merges\": false, \"vocab\": {");
    for (int32_t i = 0; i < t->n_vocab; i++) {
        hdl_buf_puts(&text, i ? ",\n" : "\n");
        put_json_text(&text, t->tokens[i]);
        hdl_buf_printf(&text, ": %d", i);
    }
    hdl_buf_puts(&text, "}, \"merges\": [");
    for (int i = 0; i < HDL_COUNT(merges); i++) {
        hdl_buf_puts(&text, i ? ", " : "");
        put_json_text(&text, merges[i]);
    }
    hdl_buf_puts(&text, "]}}\n");
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    bool is_ok = !hdl_buf_status(&text) && tiny_write_file(path, text.data, text.n);
    hdl_buf_deinit(&text);
    hdl_buf_puts(
        &text, "{\"bos_token\": \"<|im_start|>\", \"eos_token\": \"<|im_end|>\", \"add_bos_token\": false,\n"
               " \"chat_template\": ");
    put_json_text(&text, chatml);
    hdl_buf_puts(&text, "}\n");
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    is_ok = is_ok && !hdl_buf_status(&text) && tiny_write_file(path, text.data, text.n);
    hdl_buf_deinit(&text);
    return is_ok;
}

bool tiny_write_safetensors(const char *dir, const tiny_options *options)
{
    tiny_options byte_level = *options;
    byte_level.has_spm = false;
    tiny *t = make(&byte_level);
    if (!t) return false;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) perror(dir);
    bool is_ok = write_weights(dir, t) && write_config(dir, t);
    if (!t->o.has_no_tokenizer) is_ok = is_ok && write_tokenizer(dir, t);
    hdl_free(t);
    return is_ok;
}

/* --- files ------------------------------------------------------------------------------- */

bool tiny_write_file(const char *path, const void *bytes, int64_t n)
{
    FILE *file = fopen(path, "wb");
    bool is_ok = file && (!n || fwrite(bytes, 1, (size_t)n, file) == (size_t)n);
    if (file && fclose(file) != 0) is_ok = false;
    if (!is_ok) perror(path);
    return is_ok;
}

bool tiny_make_folder(char *path, int64_t path_bytes)
{
    const char *base = getenv("TMPDIR");
    snprintf(path, (size_t)path_bytes, "%s/heddle-test-XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(path)) return true;
    perror(path);
    return false;
}

void tiny_remove_folder(const char *path)
{
    char name[4096];
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (unlink(name) != 0) tiny_remove_folder(name); /* a folder in the folder */
    }
    if (dir) closedir(dir);
    rmdir(path);
}
