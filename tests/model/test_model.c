/* test_model.c - a model of every architecture row opened from both formats: facts, weights and
 * refusals. tests/engine checks what is computed with them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/model_int.h"
#include "tensor/quant.h"
#include "tiny_model.h"

static char folder[512], gguf_path[600];

static int set_up(void **state)
{
    (void)state;
    bool is_ok = tiny_make_folder(folder, sizeof folder);
    snprintf(gguf_path, sizeof gguf_path, "%s/tiny.gguf", folder);
    return is_ok ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return 0;
}

static hdl_model *open_model(const char *path)
{
    hdl_model *model;
    if (hdl_model_open(&model, path)) fail_msg("%s", hdl_last_error());
    return model;
}

static hdl_model *open_gguf(const tiny_options *options)
{
    assert_true(tiny_write_gguf(gguf_path, options));
    return open_model(gguf_path);
}

static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma3"};

/* --- facts --------------------------------------------------------------------------------- */

static void test_facts_of_every_row(void **state)
{
    (void)state;
    for (int a = 0; a < HDL_COUNT(archs); a++) {
        hdl_model *model = open_gguf(&(tiny_options){.arch = archs[a], .seed = 1});
        const hdl_model_facts *f = &model->facts;
        bool is_llama = a == 0, is_qwen3 = a == 2, is_gemma = a == 3;
        assert_string_equal(f->arch, archs[a]);
        assert_string_equal(f->name, "tiny");
        assert_true(f->hidden_size == 64 && f->n_heads == 4 && f->n_kv_heads == 2 && f->n_ff == 96);
        assert_true(f->head_dim == 16 && f->v_head_dim == 16 && f->train_context == 512);
        assert_true(f->n_layers == (is_gemma ? 6 : 2) && f->n_vocab == 267);
        assert_true(f->norm_eps == 1e-6f && f->attn_scale == 0.25f && f->norm_offset == 0);
        assert_true(f->embed_scale == (is_gemma ? 8 : 1));
        assert_true(f->act == (is_gemma ? HDL_ACT_GELU_TANH : HDL_ACT_SILU));
        assert_true(f->layers[0].has_qk_norm == (is_gemma || is_qwen3) && f->has_post_norms == is_gemma);
        assert_true(f->ropes[0].style == (is_llama ? HDL_ROPE_PAIRS : HDL_ROPE_HALF) &&
                    f->ropes[0].dim == 16);
        assert_true(f->n_ropes == (is_gemma ? 2 : 1) && f->n_groups == (is_gemma ? 2 : 1));
        assert_true((model->layers[0].bq.data != NULL) == !strcmp(archs[a], "qwen2"));
        assert_true((model->layers[0].q_norm.data != NULL) == f->layers[0].has_qk_norm);
        assert_true((model->layers[0].post_attn_norm.data != NULL) == is_gemma);
        assert_ptr_equal(model->output.data, model->token_embd.data);
        hdl_model_close(model);
    }
}

static void test_sliding_layers(void **state)
{
    (void)state;
    hdl_model *model = open_gguf(&(tiny_options){.arch = "gemma3", .n_layers = 13, .window = 40});
    const hdl_model_facts *f = &model->facts;
    for (int i = 0; i < 13; i++) {
        const hdl_layer_facts *layer = &f->layers[i];
        const hdl_cache_group_facts *group = &f->groups[layer->cache_group];
        bool is_global = i == 5 || i == 11;
        assert_int_equal(layer->window, is_global ? 0 : 40);
        assert_int_equal(layer->kv_source, i);
        assert_int_equal(layer->rope, is_global ? 0 : 1);
        assert_int_equal(group->kind, is_global ? HDL_CACHE_FULL : HDL_CACHE_ROLLING);
        assert_int_equal(group->window, is_global ? 0 : 40);
        assert_int_equal(group->n_layers, is_global ? 2 : 11);
    }
    float expected = 1 / powf(1e6f, 2.0f / 16), local = 1 / powf(1e4f, 2.0f / 16);
    assert_true(f->ropes[0].inv_freq[1] == expected && f->ropes[1].inv_freq[1] == local);
    hdl_model_close(model);
}

/* A metadata entry as it stands in a GGUF file. */
static void put_kv(hdl_buf *b, const char *key, uint32_t type, const void *value, int64_t n)
{
    uint64_t key_n = strlen(key);
    hdl_buf_add(b, &key_n, sizeof key_n);
    hdl_buf_puts(b, key);
    hdl_buf_add(b, &type, sizeof type);
    hdl_buf_add(b, value, n);
}

enum { U32 = 4, F32 = 6, BOOL = 7, STRING = 8, ARRAY = 9 };

/* Opens a tiny GGUF with one more entry; frees it. */
static heddle_status open_with(hdl_model **model, const char *arch, hdl_buf *kv)
{
    tiny_options options = {.arch = arch, .extra_kvs = kv->data, .extra_kvs_bytes = kv->n, .n_extra_kvs = 1};
    assert_true(tiny_write_gguf(gguf_path, &options));
    hdl_buf_deinit(kv);
    return hdl_model_open(model, gguf_path);
}

static void put_text_kv(hdl_buf *b, const char *key, const char *value)
{
    uint64_t n = strlen(value);
    put_kv(b, key, STRING, &n, sizeof n);
    hdl_buf_puts(b, value);
}

static void test_gguf_options(void **state)
{
    (void)state;
    hdl_buf b = {0};
    hdl_model *model;
    put_kv(&b, "gemma3.attention.sliding_window_pattern", U32, &(uint32_t){2}, 4);
    assert_int_equal(open_with(&model, "gemma3", &b), HEDDLE_OK);
    assert_true(model->facts.layers[0].window == 8 && model->facts.layers[1].window == 0);
    hdl_model_close(model);
    put_kv(&b, "gemma3.attention.sliding_window_pattern", ARRAY, "\7\0\0\0\6\0\0\0\0\0\0\0\0\1\1\0\0\1", 18);
    assert_int_equal(open_with(&model, "gemma3", &b), HEDDLE_OK);
    for (int i = 0; i < 6; i++) assert_int_equal(model->facts.layers[i].window, "\0\1\1\0\0\1"[i] ? 8 : 0);
    hdl_model_close(model);
    put_kv(&b, "gemma3.rope.scaling.factor", F32, &(float){8}, 4);
    assert_int_equal(open_with(&model, "gemma3", &b), HEDDLE_OK); /* global layers only */
    assert_true(model->facts.ropes[0].inv_freq[0] == 0.125f && model->facts.ropes[1].inv_freq[0] == 1);
    hdl_model_close(model);
    put_kv(&b, "gemma3.rope.freq_base_swa", F32, &(float){100}, 4);
    assert_int_equal(open_with(&model, "gemma3", &b), HEDDLE_OK);
    assert_true(model->facts.ropes[1].inv_freq[1] == 1 / powf(100, 0.125f));
    hdl_model_close(model);
    put_kv(&b, "llama.rope.dimension_count", U32, &(uint32_t){8}, 4);
    assert_int_equal(open_with(&model, "llama", &b), HEDDLE_OK);
    assert_int_equal(model->facts.ropes[0].dim, 8);
    hdl_model_close(model);
    put_kv(&b, "llama.attention.scale", F32, &(float){0.5f}, 4);
    assert_int_equal(open_with(&model, "llama", &b), HEDDLE_OK);
    assert_true(model->facts.attn_scale == 0.5f);
    hdl_model_close(model);
}

/* The 62-layer row of this family scales by its width; a GGUF file cannot say so. */
static void test_wide_scale(void **state)
{
    (void)state;
    hdl_model *model = open_gguf(&(tiny_options){.arch = "gemma3", .n_layers = 30, .n_heads = 2});
    assert_true(model->facts.attn_scale == 0.25f);
    hdl_model_close(model);
    hdl_stated stated = {.n_layers = 62,
                         .hidden_size = 5376,
                         .n_heads = 32,
                         .head_dim = 128,
                         .n_ff = 64,
                         .n_vocab = 9,
                         .window = 8,
                         .sliding_pattern = 6,
                         .norm_eps = 1e-6,
                         .rope = {.base = 1e6}};
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    const hdl_arch *arch = hdl_arch_of_gguf((hdl_text){"gemma3", 6});
    assert_int_equal(hdl_facts_build(f, arch, &stated, true, "x"), HEDDLE_OK);
    assert_true(f->attn_scale == (float)(1 / sqrt(168)));
    hdl_free(f);
}

/* --- both formats hold the same model ------------------------------------------------------ */

/* GGUF rows of a permuted head: canonical row s * half + j stands at 2j + s. */
static void compare_matrix(const hdl_tensor *gguf, const hdl_tensor *st, int32_t head_dim)
{
    float x[512], y[512];
    assert_true(gguf->n_rows == st->n_rows && gguf->n_cols == st->n_cols && gguf->n_cols <= 512);
    for (int64_t row = 0; row < gguf->n_rows; row++) {
        int64_t at = head_dim ? row % head_dim : 0, from = row;
        if (head_dim) from = row - at + at % 2 * (head_dim / 2) + at / 2;
        hdl_dequant_row(gguf->dtype, (const char *)gguf->data + row * gguf->row_bytes, x, gguf->n_cols);
        hdl_dequant_row(st->dtype, (const char *)st->data + from * st->row_bytes, y, st->n_cols);
        assert_memory_equal(x, y, (size_t)gguf->n_cols * sizeof *x);
    }
}

static void compare_vector(const hdl_tensor *gguf, const hdl_tensor *st, float offset)
{
    assert_true(!gguf->data == !st->data);
    if (!gguf->data) return;
    assert_true(gguf->dtype == HDL_F32 && st->dtype == HDL_F32 && gguf->n_cols == st->n_cols);
    const float *x = gguf->data, *y = st->data;
    for (int64_t i = 0; i < gguf->n_cols; i++) assert_true(fabsf(x[i] - (y[i] + offset)) < 1e-6f);
}

static void compare_models(const hdl_model *a, const hdl_model *b)
{
    float offset = b->facts.norm_offset;
    int32_t head_dim = a->facts.ropes[0].style == HDL_ROPE_PAIRS ? a->facts.head_dim : 0;
    assert_int_equal(a->facts.n_layers, b->facts.n_layers);
    assert_memory_equal(a->facts.layers, b->facts.layers, sizeof a->facts.layers);
    compare_matrix(&a->token_embd, &b->token_embd, 0);
    compare_matrix(&a->output, &b->output, 0);
    compare_vector(&a->output_norm, &b->output_norm, offset);
    for (int i = 0; i < a->facts.n_layers; i++) {
        const hdl_layer_weights *x = &a->layers[i], *y = &b->layers[i];
        compare_matrix(&x->wq, &y->wq, head_dim);
        compare_matrix(&x->wk, &y->wk, head_dim);
        compare_matrix(&x->wv, &y->wv, 0);
        compare_matrix(&x->wo, &y->wo, 0);
        compare_matrix(&x->w_gate, &y->w_gate, 0);
        compare_matrix(&x->w_up, &y->w_up, 0);
        compare_matrix(&x->w_down, &y->w_down, 0);
        compare_vector(&x->attn_norm, &y->attn_norm, offset);
        compare_vector(&x->ffn_norm, &y->ffn_norm, offset);
        compare_vector(&x->post_attn_norm, &y->post_attn_norm, offset);
        compare_vector(&x->post_ffn_norm, &y->post_ffn_norm, offset);
        compare_vector(&x->q_norm, &y->q_norm, offset);
        compare_vector(&x->k_norm, &y->k_norm, offset);
        compare_vector(&x->bv, &y->bv, 0);
        compare_vector(&x->bo, &y->bo, 0);
    }
    for (int r = 0; r < a->facts.n_ropes; r++)
        for (int i = 0; i < a->facts.ropes[r].dim / 2; i++) {
            double x = (double)a->facts.ropes[r].inv_freq[i], y = (double)b->facts.ropes[r].inv_freq[i];
            assert_true(fabs(x - y) <= 1e-6 * y);
        }
    assert_true(a->facts.attn_scale == b->facts.attn_scale && a->facts.embed_scale == b->facts.embed_scale);
}

static void test_formats_agree(void **state)
{
    (void)state;
    for (int a = 0; a < HDL_COUNT(archs); a++) {
        for (int variant = 0; variant < 4; variant++) {
            tiny_options o = {.arch = archs[a], .seed = 7 + (uint64_t)a};
            o.has_untied_output = variant == 1;
            o.has_llama3_scaling = variant == 1 && a == 0;
            o.has_attn_bias = variant == 2;
            o.n_shards = 1 + variant;
            o.dtype = variant == 3 ? HDL_F16 : variant == 2 ? HDL_BF16 : HDL_F32;
            char dir[600];
            snprintf(dir, sizeof dir, "%s/st", folder);
            hdl_model *x = open_gguf(&o);
            assert_true(tiny_write_safetensors(dir, &o));
            hdl_model *y = open_model(dir);
            compare_models(x, y);
            assert_true((x->output.data == x->token_embd.data) == !o.has_untied_output);
            assert_true(x->weight_bytes == y->weight_bytes && x->weight_bytes < x->file_bytes);
            hdl_model_close(x);
            hdl_model_close(y);
            tiny_remove_folder(dir);
        }
    }
}

static void test_every_matrix_type(void **state)
{
    (void)state;
    for (int d = 0; d < HDL_N_DTYPES; d++) {
        if (d == HDL_I8 || d == HDL_I32) continue;
        hdl_model *model = open_gguf(&(tiny_options){.dtype = (hdl_dtype)d, .seed = 3});
        hdl_model *exact;
        assert_int_equal(model->layers[1].w_down.dtype, d);
        assert_int_equal(model->layers[1].ffn_norm.dtype, HDL_F32);
        hdl_model_close(model);
        /* norms in half precision are converted once, matrices are not */
        tiny_options half = {.dtype = (hdl_dtype)d, .norm_dtype = HDL_F16, .arch = "gemma3"};
        exact = open_gguf(&half);
        const hdl_model_owner *owner = exact->owner;
        assert_int_equal(owner->n_vectors, 6 * 6 + 1);
        assert_int_equal(exact->layers[5].q_norm.dtype, HDL_F32);
        assert_int_equal(exact->layers[5].wq.dtype, d);
        hdl_model_close(exact);
    }
}

static void test_tokenizer_and_chat(void **state)
{
    (void)state;
    hdl_model *model = open_gguf(&(tiny_options){.seed = 1});
    assert_int_equal(hdl_tokenizer_n_vocab(model->tokenizer), model->facts.n_vocab);
    assert_int_equal(model->chat.kind, HDL_CHAT_CHATML);
    hdl_ids ids = {0};
    hdl_buf text = {0};
    assert_int_equal(hdl_tokenizer_encode(model->tokenizer, "the then", 8, false, false, &ids), HEDDLE_OK);
    assert_true(ids.n < 8); /* merges are in force */
    assert_int_equal(hdl_tokenizer_decode(model->tokenizer, ids.data, ids.n, false, &text), HEDDLE_OK);
    assert_string_equal(text.data, "the then");
    hdl_ids_deinit(&ids);
    hdl_buf_deinit(&text);
    hdl_model_close(model);
    model = open_gguf(&(tiny_options){.has_spm = true});
    assert_int_equal(model->chat.kind, HDL_CHAT_GEMMA);
    assert_true(hdl_tokenizer_special(model->tokenizer)->add_bos);
    hdl_model_close(model);
    model = open_gguf(&(tiny_options){.has_no_tokenizer = true});
    assert_null(model->tokenizer);
    assert_int_equal(model->chat.kind, HDL_CHAT_NONE);
    hdl_model_close(model);
}

static void test_path_forms(void **state)
{
    (void)state;
    char dir[600], file[700], was[1024];
    snprintf(dir, sizeof dir, "%s/forms", folder);
    snprintf(file, sizeof file, "%s/model.safetensors", dir);
    assert_true(tiny_write_safetensors(dir, &(tiny_options){.seed = 1}));
    hdl_model_close(open_model(dir));
    hdl_model_close(open_model(file));
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(chdir(dir), 0);
    hdl_model_close(open_model("model.safetensors"));
    hdl_model_close(open_model("."));
    assert_int_equal(chdir(was), 0);
}

/* --- refusals of GGUF files ---------------------------------------------------------------- */

static void check_refused(heddle_status got, const hdl_model *model, heddle_status status, const char *part)
{
    if (got != status || !strstr(hdl_last_error(), part) || !strstr(hdl_last_error(), folder))
        fail_msg("%s, \"%s\": must be %s and hold \"%s\"", hdl_status_name(got), hdl_last_error(),
                 hdl_status_name(status), part);
    assert_null(model);
}

static void test_bad_gguf_metadata(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
        const char *part;
    } ints[] = {
        {"llama.expert_count", 8, "llama.expert_count 8: routed experts"},
        {"llama.attention.causal", 0, "attention to later tokens"},
        {"llama.attention.sliding_window", 64, "sliding window 64 with a context of 512"},
        {"split.count", 3, "is one of 3 parts"},
    };
    hdl_buf b = {0};
    hdl_model *model;
    for (int i = 0; i < HDL_COUNT(ints); i++) {
        put_kv(&b, ints[i].key, U32, &ints[i].value, 4);
        heddle_status got = open_with(&model, "llama", &b);
        check_refused(got, model, HEDDLE_E_UNSUPPORTED, ints[i].part);
    }
    put_kv(&b, "llama.rope.scaling.factor", F32, &(float){-2}, 4);
    check_refused(open_with(&model, "llama", &b), NULL, HEDDLE_E_FORMAT,
                  "rope.scaling.factor -2: must be positive");
    put_text_kv(&b, "llama.rope.scaling.factor", "8");
    check_refused(open_with(&model, "llama", &b), NULL, HEDDLE_E_UNSUPPORTED,
                  "key llama.rope.scaling.factor: is text");
    put_kv(&b, "gemma3.attention.sliding_window_pattern", U32, &(uint32_t){0}, 4);
    check_refused(open_with(&model, "gemma3", &b), NULL, HEDDLE_E_FORMAT,
                  "sliding_window_pattern 0: must be in 1..512");
    put_kv(&b, "gemma3.attention.sliding_window_pattern", F32, &(float){6}, 4);
    check_refused(open_with(&model, "gemma3", &b), NULL, HEDDLE_E_UNSUPPORTED,
                  "sliding_window_pattern: is f32");
    put_kv(&b, "gemma3.attention.sliding_window_pattern", ARRAY, "\7\0\0\0\2\0\0\0\0\0\0\0\0\1", 14);
    check_refused(open_with(&model, "gemma3", &b), NULL, HEDDLE_E_FORMAT, "has 2 elements, must have 6");
    put_text_kv(&b, "llama.rope.scaling.type", "yarn");
    heddle_status got = open_with(&model, "llama", &b);
    check_refused(got, model, HEDDLE_E_UNSUPPORTED,
                  "llama.rope.scaling.type \"yarn\": must be none or linear");
    put_kv(&b, "llama.rope.dimension_count", F32, &(float){8}, 4);
    got = open_with(&model, "llama", &b);
    check_refused(got, model, HEDDLE_E_UNSUPPORTED, "key llama.rope.dimension_count: is f32");
}

/* Replaces every `from` in the file by `to` of the same length. */
static heddle_status open_patched(hdl_model **model, const tiny_options *options, const char *from,
                                  const char *to)
{
    hdl_buf b = {0};
    size_t n = strlen(from);
    int64_t n_found = 0;
    assert_int_equal(n, strlen(to));
    assert_true(tiny_gguf_bytes(&b, options));
    for (int64_t i = 0; i + (int64_t)n <= b.n; i++)
        if (!memcmp(b.data + i, from, n)) {
            memcpy(b.data + i, to, n);
            n_found++;
        }
    assert_true(n_found > 0);
    assert_true(tiny_write_file(gguf_path, b.data, b.n));
    hdl_buf_deinit(&b);
    return hdl_model_open(model, gguf_path);
}

static void test_bad_gguf_models(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *part;
        heddle_status status;
    } cases[] = {
        {"llama", "lhama",
         "architecture \"lhama\" is not supported; supported are llama, qwen2, qwen3, gemma3",
         HEDDLE_E_UNSUPPORTED},
        {"general.architecture", "general.architektur.", "general.architecture: is missing", HEDDLE_E_FORMAT},
        {"llama.block_count", "llama.block_kount", "llama.block_count: is missing", HEDDLE_E_FORMAT},
        {"token_embd.weight", "token_embt.weight", "tensor token_embd.weight: is missing", HEDDLE_E_FORMAT},
        {"blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "tensor blk.1.ffn_up.weight: is missing",
         HEDDLE_E_FORMAT},
        {"gpt-2", "gpt-9", "gpt-9", HEDDLE_E_UNSUPPORTED},
    };
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        hdl_model *model;
        heddle_status got = open_patched(&model, &(tiny_options){.seed = 1}, cases[i].from, cases[i].to);
        check_refused(got, model, cases[i].status, cases[i].part);
    }
}

static void test_bad_shapes(void **state)
{
    (void)state;
    /* what the metadata says against what the tensors are: change one number of the metadata */
    static const struct {
        const char *key;
        uint32_t value;
        const char *part;
    } cases[] = {
        {"llama.embedding_length", 96, "tensor token_embd.weight: shape is [267, 64], must be [267, 96]"},
        {"llama.attention.head_count", 8, "tensor blk.0.attn_q.weight: shape is [64, 64], must be [128, 64]"},
        {"llama.attention.head_count_kv", 4,
         "tensor blk.0.attn_k.weight: shape is [32, 64], must be [64, 64]"},
        {"llama.feed_forward_length", 64,
         "tensor blk.0.ffn_gate.weight: shape is [96, 64], must be [64, 64]"},
        {"llama.block_count", 3, "tensor blk.2.attn_norm.weight: is missing"},
        {"llama.block_count", 1, "tensor blk.1.attn_norm.weight: is not a weight of a 1-layer llama model"},
        {"llama.block_count", 513, "llama.block_count 513: must be in 1..512"},
        {"llama.block_count", 0, "llama.block_count 0: must be in 1..512"},
        {"llama.attention.value_length", 32,
         "tensor blk.0.attn_v.weight: shape is [32, 64], must be [64, 64]"},
    };
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        hdl_buf b = {0};
        hdl_model *model;
        assert_true(tiny_gguf_bytes(&b, &(tiny_options){.seed = 1}));
        size_t n = strlen(cases[i].key);
        char *at = b.data; /* the key followed by its type, so not the beginning of a longer key */
        while (memcmp(at, cases[i].key, n) != 0 || memcmp(at + n, "\4\0\0\0", 4) != 0) at++;
        memcpy(at + n + 4, &cases[i].value, 4);
        assert_true(tiny_write_file(gguf_path, b.data, b.n));
        hdl_buf_deinit(&b);
        heddle_status got = hdl_model_open(&model, gguf_path);
        bool is_extra = strstr(cases[i].part, "is not a weight");
        check_refused(got, model, is_extra ? HEDDLE_E_UNSUPPORTED : HEDDLE_E_FORMAT, cases[i].part);
    }
}

static void check_path_refused(const char *path, heddle_status status, const char *part)
{
    hdl_model *model = (hdl_model *)1;
    heddle_status got = hdl_model_open(&model, path);
    check_refused(got, model, status, part);
}

static void test_missing_files(void **state)
{
    (void)state;
    hdl_model *model;
    char dir[600], file[700];
    check_path_refused(folder, HEDDLE_E_IO, "config.json");
    snprintf(file, sizeof file, "%s/none.gguf", folder);
    check_path_refused(file, HEDDLE_E_IO, "none.gguf: cannot be opened");
    snprintf(dir, sizeof dir, "%s/partly", folder);
    snprintf(file, sizeof file, "%s/model.safetensors", dir);
    assert_true(tiny_write_safetensors(dir, &(tiny_options){.seed = 1}));
    unlink(file);
    check_path_refused(dir, HEDDLE_E_IO, "holds neither");
    snprintf(file, sizeof file, "%s/config.json", dir);
    unlink(file);
    check_path_refused(dir, HEDDLE_E_IO, "holds no config.json");
    char *long_path = hdl_calloc(6000, 1);
    memset(long_path, 'x', 5999);
    assert_int_not_equal(hdl_model_open(&model, long_path), HEDDLE_OK);
    assert_null(model);
    hdl_free(long_path);
}

/* A header of odd length puts every number at an odd address: norms are copied, matrices refused. */
static void test_misaligned_data(void **state)
{
    (void)state;
    char dir[600], file[700];
    hdl_buf b = {0}, odd = {0};
    snprintf(dir, sizeof dir, "%s/odd", folder);
    snprintf(file, sizeof file, "%s/model.safetensors", dir);
    assert_true(tiny_write_safetensors(dir, &(tiny_options){.seed = 1, .has_no_tokenizer = true}));
    assert_int_equal(hdl_buf_read_file(&b, file, 1 << 24), HEDDLE_OK);
    uint64_t n;
    memcpy(&n, b.data, sizeof n);
    n++;
    hdl_buf_add(&odd, &n, sizeof n);
    hdl_buf_add(&odd, b.data + 8, (int64_t)n - 1);
    hdl_buf_puts(&odd, " ");
    hdl_buf_add(&odd, b.data + 8 + n - 1, b.n - 8 - (int64_t)n + 1);
    assert_true(tiny_write_file(file, odd.data, odd.n));
    check_path_refused(dir, HEDDLE_E_UNSUPPORTED, "embed_tokens.weight: its data are not aligned to 4 bytes");
    hdl_buf_deinit(&b);
    hdl_buf_deinit(&odd);
}

/* --- faults -------------------------------------------------------------------------------- */

static void fail_every_allocation(const char *path)
{
    int64_t live = hdl_mem_live_bytes(), n = 1;
    hdl_model *model;
    for (;; n++) {
        hdl_mem_fail_at(n);
        heddle_status status = hdl_model_open(&model, path);
        hdl_mem_fail_at(0);
        if (!status) break;
        if (status != HEDDLE_E_NOMEM) fail_msg("allocation %lld: %s", (long long)n, hdl_last_error());
        assert_null(model);
        assert_int_equal(hdl_mem_live_bytes(), live);
    }
    assert_true(n > 10);
    hdl_model_close(model);
    assert_int_equal(hdl_mem_live_bytes(), live);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    char dir[600];
    snprintf(dir, sizeof dir, "%s/faults", folder);
    tiny_options o = {
        .arch = "gemma3", .n_layers = 2, .dtype = HDL_BF16, .norm_dtype = HDL_BF16, .n_shards = 2};
    assert_true(tiny_write_gguf(gguf_path, &o));
    assert_true(tiny_write_safetensors(dir, &o));
    fail_every_allocation(gguf_path);
    fail_every_allocation(dir);
}

/* A damaged byte before the data gives a sentence, or another valid model. */
static void test_damaged_gguf(void **state)
{
    (void)state;
    hdl_buf b = {0};
    assert_true(tiny_gguf_bytes(
        &b, &(tiny_options){
                .arch = "gemma3", .n_layers = 2, .has_llama3_scaling = true, .has_no_tokenizer = true}));
    assert_true(tiny_write_file(gguf_path, b.data, b.n));
    const char *last = "rope_freqs.weight";
    const char *end = b.data;
    while (memcmp(end, last, strlen(last)) != 0) end++;
    int64_t live = hdl_mem_live_bytes(), n_header = end - b.data + 48;
    FILE *file = fopen(gguf_path, "r+b");
    assert_non_null(file);
    for (int64_t i = 0; i < n_header; i++) {
        const int flips[] = {1 << i % 8, 128, 255};
        for (int j = 0; j < HDL_COUNT(flips); j++) {
            hdl_model *model;
            char damaged = (char)(b.data[i] ^ flips[j]);
            assert_int_equal(pwrite(fileno(file), &damaged, 1, i), 1);
            if (hdl_model_open(&model, gguf_path)) assert_non_null(strstr(hdl_last_error(), gguf_path));
            hdl_model_close(model);
        }
        assert_int_equal(pwrite(fileno(file), &b.data[i], 1, i), 1);
    }
    fclose(file);
    assert_int_equal(hdl_mem_live_bytes(), live);
    hdl_buf_deinit(&b);
}

/* --- real files ---------------------------------------------------------------------------- */

static hdl_model *open_real(const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", getenv("HEDDLE_TEST_MODELS"), file);
    return open_model(path);
}

static void test_real_smollm2(void **state)
{
    (void)state;
    hdl_model *model = open_real("SmolLM2-135M-Instruct.Q4_1.gguf");
    const hdl_model_facts *f = &model->facts;
    assert_true(f->n_layers == 30 && f->hidden_size == 576 && f->n_heads == 9 && f->n_kv_heads == 3);
    assert_true(f->head_dim == 64 && f->n_ff == 1536 && f->n_vocab == 49152 && f->train_context == 8192);
    assert_true(f->attn_scale == 0.125f && f->ropes[0].style == HDL_ROPE_PAIRS && f->n_groups == 1);
    assert_true(model->token_embd.dtype == HDL_Q8_0 && model->layers[29].w_down.dtype == HDL_Q4_1);
    assert_ptr_equal(model->output.data, model->token_embd.data);
    assert_int_equal(hdl_tokenizer_n_vocab(model->tokenizer), 49152);
    assert_int_equal(model->chat.kind, HDL_CHAT_CHATML);
    assert_int_equal(model->weight_bytes, 96576768);
    hdl_model_close(model);
}

static void test_real_gemma3(void **state)
{
    (void)state;
    hdl_model *model = open_real("gemma-3-270m-q4_k_m.gguf");
    const hdl_model_facts *f = &model->facts;
    assert_true(f->n_layers == 18 && f->hidden_size == 640 && f->n_heads == 4 && f->n_kv_heads == 1);
    assert_true(f->head_dim == 256 && f->n_ff == 2048 && f->n_vocab == 262144 && f->train_context == 32768);
    assert_true(f->attn_scale == 0.0625f && f->embed_scale == sqrtf(640) && f->norm_offset == 0);
    for (int i = 0; i < 18; i++) assert_int_equal(f->layers[i].window, i % 6 == 5 ? 0 : 512);
    assert_true(model->layers[0].wq.dtype == HDL_Q5_0 && model->layers[0].wo.dtype == HDL_Q4_K);
    assert_int_equal(model->chat.kind, HDL_CHAT_NONE);
    hdl_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts_of_every_row), cmocka_unit_test(test_sliding_layers),
        cmocka_unit_test(test_gguf_options),       cmocka_unit_test(test_wide_scale),
        cmocka_unit_test(test_formats_agree),      cmocka_unit_test(test_every_matrix_type),
        cmocka_unit_test(test_tokenizer_and_chat), cmocka_unit_test(test_path_forms),
        cmocka_unit_test(test_bad_gguf_metadata),  cmocka_unit_test(test_bad_gguf_models),
        cmocka_unit_test(test_bad_shapes),         cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_misaligned_data),    cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_damaged_gguf),
    };
    const struct CMUnitTest real_tests[] = {
        cmocka_unit_test(test_real_smollm2),
        cmocka_unit_test(test_real_gemma3),
    };
    int failed = cmocka_run_group_tests_name("model", tests, set_up, tear_down);
    if (!getenv("HEDDLE_TEST_MODELS")) {
        printf("SKIP: HEDDLE_TEST_MODELS names no folder with real models\n");
        return failed ? 1 : 77;
    }
    failed += cmocka_run_group_tests_name("model, real files", real_tests, NULL, NULL);
    return failed ? 1 : 0;
}
