/* test_model_config.c - config.json: both styles of transformers, defaults, scalings, refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/model_int.h"

static heddle_status facts_of_text(hdl_model_facts *facts, const char *text, int64_t n)
{
    hdl_stated stated;
    const hdl_arch *arch;
    HDL_TRY(hdl_stated_from_config(&stated, &arch, text, n, "config.json"));
    return hdl_facts_build(facts, arch, &stated, false, "config.json");
}

static void facts_of_file(hdl_model_facts *facts, const char *name, const char *file)
{
    char path[1024];
    hdl_buf text = {0};
    snprintf(path, sizeof path, HDL_TEST_DATA "/golden/tiny/%s/%s", name, file);
    if (hdl_buf_read_file(&text, path, 1 << 20)) fail_msg("%s", hdl_last_error());
    if (facts_of_text(facts, text.data, text.n)) fail_msg("%s: %s", path, hdl_last_error());
    hdl_buf_deinit(&text);
    memset(facts->name, 0, sizeof facts->name);
}

/* The older and the newer way of transformers to write a configuration mean the same. */
static void test_both_config_styles(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "llama3-scaled", "llama-sharded", "qwen2",
                                        "qwen3", "gemma3",        "gemma3-f32"};
    hdl_model_facts *a = hdl_calloc(1, sizeof *a), *b = hdl_calloc(1, sizeof *b);
    for (int i = 0; i < HDL_COUNT(names); i++) {
        facts_of_file(a, names[i], "config.json");
        facts_of_file(b, names[i], "config-v5.json");
        assert_memory_equal(a, b, sizeof *a);
    }
    hdl_free(a);
    hdl_free(b);
}

#define LLAMA                                                                                                \
    "\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_size\":96,"          \
    "\"num_attention_heads\":4,\"vocab_size\":300"

/* Frequencies of Llama 3.1's scaling, computed in float32 by its published code for head size 16,
 * base 500000, factor 8, low 1, high 4, original context 8192. */
static void test_llama3_scaling(void **state)
{
    (void)state;
    static const float want[8] = {1.000000000e+00f, 1.939227581e-01f, 3.760603070e-02f, 7.292665076e-03f,
                                  5.248460220e-04f, 3.428102355e-05f, 6.647869668e-06f, 1.289173156e-06f};
    static const char text[] =
        "{" LLAMA ",\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
        "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}";
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    assert_int_equal(facts_of_text(f, text, sizeof text - 1), HEDDLE_OK);
    for (int i = 0; i < 8; i++)
        if (fabsf(f->ropes[0].inv_freq[i] - want[i]) > 2e-7f * want[i])
            fail_msg("frequency %d is %.9g, must be %.9g", i, (double)f->ropes[0].inv_freq[i],
                     (double)want[i]);
    hdl_free(f);
}

static void test_config_defaults(void **state)
{
    (void)state;
    /* a multimodal model's text part, silent where its class has defaults */
    static const char gemma[] =
        "{\"model_type\":\"gemma3\",\"text_config\":{\"model_type\":\"gemma3_text\",\"hidden_size\":2560,"
        "\"intermediate_size\":10240,\"num_hidden_layers\":34,\"sliding_window\":1024,"
        "\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"}},"
        "\"vision_config\":{\"hidden_size\":1152}}";
    static const char qwen[] =
        "{\"model_type\":\"qwen2\",\"num_hidden_layers\":4,\"hidden_size\":64,\"intermediate_size\":96,"
        "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":300,\"use_sliding_window\":true,"
        "\"sliding_window\":32,\"max_window_layers\":3,\"max_position_embeddings\":512,\"head_dim\":null}";
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    assert_int_equal(facts_of_text(f, gemma, sizeof gemma - 1), HEDDLE_OK);
    assert_true(f->n_heads == 8 && f->n_kv_heads == 4 && f->head_dim == 256 && f->n_vocab == 262208);
    assert_true(f->attn_scale == 0.0625f && f->norm_offset == 1 && f->layers[4].window == 1024);
    assert_true(f->layers[5].window == 0 && f->ropes[0].inv_freq[0] == 0.125f &&
                f->ropes[1].inv_freq[0] == 1);
    assert_int_equal(facts_of_text(f, qwen, sizeof qwen - 1), HEDDLE_OK);
    assert_true(f->layers[2].window == 0 && f->layers[3].window == 32 && f->layers[3].rope == 0);
    assert_true(f->n_groups == 2 && f->n_ropes == 1 && f->head_dim == 16);
    hdl_free(f);
}

static void test_bad_configs(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
        heddle_status status;
    } cases[] = {
        {"", "is empty", HEDDLE_E_FORMAT},
        {"[]", "model_type: is missing", HEDDLE_E_FORMAT},
        {"{\"model_type\":7}", "model_type: must be a text", HEDDLE_E_INVALID},
        {"{\"model_type\":\"mamba\"}",
         "\"mamba\" is not supported; supported are llama, qwen2, qwen3, gemma3", HEDDLE_E_UNSUPPORTED},
        {"{\"model_type\":\"llama\"}", "num_hidden_layers: is missing", HEDDLE_E_FORMAT},
        {"{\"model_type\":\"llama\",\"text_config\":7}", "num_hidden_layers: is missing", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"num_key_value_heads\":3}", "4 attention heads: must be a multiple of the 3",
         HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"num_key_value_heads\":-1}", "num_key_value_heads -1: must be in 1..",
         HEDDLE_E_INVALID},
        {"{" LLAMA ",\"head_dim\":1024}", "head_dim 1024: must be in 1..512", HEDDLE_E_INVALID},
        {"{" LLAMA ",\"head_dim\":17}", "head size 17: must be even", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"head_dim\":\"16\"}", "head_dim: must be a whole number", HEDDLE_E_INVALID},
        {"{" LLAMA ",\"rms_norm_eps\":2}", "rms_norm_eps 2: must be in 1e-30..1", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"rope_theta\":0}", "rope_theta 0: must be in 1..", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act \"gelu\"", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"num_local_experts\":8}", "num_local_experts: routed experts", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"use_bidirectional_attention\":true}", "attention to later tokens",
         HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"quantization_config\":{}}", "quantization_config", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"rope_scaling\":7}", "rope_scaling: must be an object", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}",
         "rope_type \"yarn\" is not supported", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":4}}", "rope_type \"dynamic\"",
         HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\"}}", "rope_scaling.factor 0", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor 0",
         HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"partial_rotary_factor\":0.1}", "1 rotated elements", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"layer_types\":[\"full_attention\"]}", "layer_types: must be a list of 2",
         HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"layer_types\":[\"full_attention\",\"linear_attention\"]}",
         "layer_types[1] \"linear_attention\"", HEDDLE_E_UNSUPPORTED},
        {"{" LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         "no sliding window is stated", HEDDLE_E_FORMAT},
        {"{" LLAMA ",\"sliding_window\":64,\"max_position_embeddings\":512}", "sliding window 64",
         HEDDLE_E_UNSUPPORTED},
    };
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        heddle_status got = facts_of_text(f, cases[i].text, (int64_t)strlen(cases[i].text));
        if (got != cases[i].status || !strstr(hdl_last_error(), cases[i].part) ||
            strncmp(hdl_last_error(), "config.json: ", 13) != 0)
            fail_msg("%s: %s, \"%s\": must be %s and hold \"%s\"", cases[i].text, hdl_status_name(got),
                     hdl_last_error(), hdl_status_name(cases[i].status), cases[i].part);
    }
    hdl_free(f);
}

/* A damaged or cut configuration gives a sentence, or is another valid one. */
static void test_damaged_config(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3-scaled/config.json", "gemma3/config-v5.json"};
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    for (int c = 0; c < HDL_COUNT(names); c++) {
        char path[1024];
        hdl_buf text = {0};
        snprintf(path, sizeof path, HDL_TEST_DATA "/golden/tiny/%s", names[c]);
        assert_int_equal(hdl_buf_read_file(&text, path, 1 << 20), HEDDLE_OK);
        int64_t live = hdl_mem_live_bytes();
        for (int64_t i = 0; i < text.n * 8; i++) {
            text.data[i / 8] ^= (char)(1 << i % 8);
            if (facts_of_text(f, text.data, text.n))
                assert_non_null(strstr(hdl_last_error(), "config.json: "));
            text.data[i / 8] ^= (char)(1 << i % 8);
        }
        while (text.data[text.n - 1] != '}') text.n--;
        for (int64_t n = 0; n < text.n; n++)
            assert_int_equal(facts_of_text(f, text.data, n), HEDDLE_E_FORMAT);
        assert_int_equal(hdl_mem_live_bytes(), live);
        hdl_buf_deinit(&text);
    }
    hdl_free(f);
}

/* A folder of our own format with members replaced: "key": value, ... go in front of the file's. */
static heddle_status own_facts(hdl_model_facts *facts, const char *change)
{
    hdl_buf text = {0};
    json_t *root = NULL, *changes = NULL, *value;
    const char *key;
    if (hdl_buf_read_file(&text, HDL_TEST_DATA "/../train/golden/clsa-tiny/config.json", 1 << 16) ||
        hdl_json_parse(&root, text.data, text.n, "config.json") ||
        hdl_json_parse(&changes, change, (int64_t)strlen(change), "changes"))
        fail_msg("%s", hdl_last_error());
    json_object_foreach(changes, key, value)
    {
        if (json_is_null(value))
            json_object_del(root, key);
        else
            json_object_set(root, key, value);
    }
    char *dump = json_dumps(root, 0);
    heddle_status status = facts_of_text(facts, dump, (int64_t)strlen(dump));
    free(dump);
    json_decref(root);
    json_decref(changes);
    hdl_buf_deinit(&text);
    return status;
}

static void test_own_format(void **state)
{
    (void)state;
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    assert_int_equal(own_facts(f, "{}"), HEDDLE_OK);
    assert_true(f->n_layers == 4 && f->cross_from == 2 && f->n_groups == 2 && f->doc_token == 0);
    assert_true(f->has_doc_resets && f->has_shared_k_norm && f->embed_scale == 16 && f->attn_scale == 0.25f);
    assert_true(f->layers[0].window == 16 && f->layers[0].has_kv && f->layers[1].kv_source == 1);
    assert_true(!f->layers[2].window && !f->layers[2].has_kv && f->layers[3].kv_source == 2);
    assert_true(f->groups[f->layers[0].cache_group].n_layers == 2);
    assert_true(f->groups[f->layers[2].cache_group].n_layers == 1); /* once for all cross layers */
    assert_int_equal(f->ropes[f->layers[0].rope].style, HDL_ROPE_HALF);
    assert_int_equal(f->ropes[f->layers[2].rope].style, HDL_ROPE_NONE);
    assert_true(f->index.dim == 16 && f->index.top_k == 12 && f->index.has_k_norm && !f->index.has_q_norm);
    assert_true(f->index.is_from_norm && f->index.scale == 0.25f);
    /* the defaults of members that may be absent */
    assert_int_equal(own_facts(f, "{\"index_k_norm\":null,\"index_input\":null,\"rope_style\":null}"),
                     HEDDLE_OK);
    assert_true(f->index.has_k_norm && f->index.is_from_norm && f->ropes[0].style == HDL_ROPE_HALF);
    assert_int_equal(own_facts(f, "{\"index_k_norm\":\"none\",\"index_q_norm\":\"rms\",\"index_sinks\":4,"
                                  "\"index_window\":64,\"qk_norm_cross\":false,\"index_input\":\"state\"}"),
                     HEDDLE_OK);
    assert_true(!f->index.has_k_norm && f->index.has_q_norm && f->index.n_sink == 4 && f->index.window == 64);
    assert_true(!f->has_shared_k_norm && !f->layers[2].has_qk_norm && f->layers[0].has_qk_norm);
    assert_true(!f->index.is_from_norm);
    hdl_free(f);
}

/* The sister rows come through the same reader. */
static void test_own_format_sisters(void **state)
{
    (void)state;
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    assert_int_equal(own_facts(f, "{\"arch\":\"yoco\"}"), HEDDLE_OK);
    assert_true(f->cross_from == 2 && !f->index.dim);
    assert_int_equal(
        own_facts(f, "{\"arch\":\"transformer\",\"layer_kinds\":[\"full\",\"full\",\"full\",\"full\"]}"),
        HEDDLE_OK);
    assert_true(f->cross_from == 4 && f->n_groups == 1 && f->layers[3].has_kv && !f->layers[3].rope);
    assert_int_equal(own_facts(f, "{\"arch\":\"window_hybrid\",\"rope_on_full\":false,"
                                  "\"layer_kinds\":[\"window\",\"window\",\"window\",\"full\"]}"),
                     HEDDLE_OK);
    assert_true(f->n_groups == 2 && !f->layers[3].window && f->layers[3].rope == 1 && f->layers[3].has_kv);
    assert_int_equal(
        own_facts(f, "{\"arch\":\"gated_delta_hybrid\",\"delta_n_heads\":3,\"delta_k_dim\":16,"
                     "\"delta_v_dim\":24,\"layer_kinds\":[\"delta\",\"delta\",\"delta\",\"full\"]}"),
        HEDDLE_OK);
    assert_true(f->n_groups == 1 && f->delta.n_layers == 3 && f->layers[2].is_delta && !f->layers[2].has_kv);
    assert_true(f->delta.n_heads == 3 && f->delta.v_dim == 24 && f->delta.conv_width == 4 &&
                f->delta.scale == 0.25f);
    assert_true(hdl_layer_is_open(f, 3) && !hdl_layer_is_open(f, 0));
    assert_int_equal(
        own_facts(f, "{\"delta_conv\":0,\"delta_n_heads\":1,\"delta_k_dim\":16,\"delta_v_dim\":16,"
                     "\"delta_scale\":0.5,\"layer_kinds\":[\"delta\",\"window\",\"cross\",\"cross\"]}"),
        HEDDLE_OK);
    assert_true(f->cross_from == 2 && f->n_groups == 2 && !f->delta.conv_width && f->delta.scale == 0.5f);
    hdl_free(f);
}

static void test_own_format_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *change, *message;
    } rows[] = {
        {"{\"arch\":\"llama\"}", "arch \"llama\" is not supported"},
        {"{\"index_groups\":3}", "index_groups 3: must be at most 2, the cross layers"},
        {"{\"index_group_query\":\"own\"}", "index_group_query \"own\": must be shared_state or own_input"},
        {"{\"index_rope\":true}", "index_rope true: must be false: the positions"},
        {"{\"index_rope\":\"no\"}", "index_rope"},
        {"{\"index_n_heads\":4}", "index_n_heads 4: must be 1: no rule"},
        {"{\"index_n_heads\":\"1\"}", "index_n_heads"},
        {"{\"n_cross\":3}", "n_cross 3: layer_kinds has 2 cross layers"},
        {"{\"n_self\":3}", "n_self 3: layer_kinds has 2 layers below the cross layers"},
        {"{\"arch\":\"transformer\",\"n_self\":3,\"layer_kinds\":[\"full\",\"full\",\"full\",\"full\"]}",
         "n_self 3 and n_cross 2: layer_kinds has 4 layers"},
        {"{\"weight_format\":\"q3_k\"}", "weight_format \"q3_k\": must be f32, bf16, f16 or q8_0"},
        {"{\"global_scope\":\"document\"}", "global_scope \"document\": must be sequence"},
        {"{\"index_k_norm\":\"layer\"}", "index_k_norm \"layer\": must be none or rms"},
        {"{\"index_gate\":1}", "index_gate"},
        {"{\"delta_conv\":17}", "delta_conv 17: must be in 0..16"},
        {"{\"delta_gate\":\"gelu\"}", "delta_gate \"gelu\": must be silu"},
        {"{\"delta_qk_norm\":\"rms\"}", "delta_qk_norm \"rms\": must be l2"},
        {"{\"layer_kinds\":[\"delta\",\"window\",\"cross\",\"cross\"]}",
         "delta_n_heads, delta_k_dim, delta_v_dim"},
        {"{\"arch\":\"gated_delta_hybrid\",\"layer_kinds\":[\"delta\",\"delta\",\"delta\",\"delta\"],\"delta_n_heads\":1,"
         "\"delta_k_dim\":8,\"delta_v_dim\":8}",
         "gated-delta layers alone"},
        {"{\"n_layers\":5}", "layer_kinds: must be a list of n_layers = 5 words"},
        {"{\"layer_kinds\":[\"cross\",\"cross\",\"cross\",\"cross\"]}", "layer_kinds[0]"},
        {"{\"layer_kinds\":[\"window\",\"cross\",\"window\",\"cross\"]}", "layer_kinds[2] \"window\""},
        {"{\"layer_kinds\":[\"window\",\"linear\",\"cross\",\"cross\"]}", "layer_kinds[1] \"linear\""},
        {"{\"layer_kinds\":[\"window\",\"window\",\"full\",\"full\"]}", "needs cross layers"},
        {"{\"window\":null}", "no window is stated"},
        {"{\"doc_token\":256}", "doc_token 256: must be below n_vocab 256"},
        {"{\"index_dim\":null}", "index_dim, index_scale, top_k: must be stated"},
        {"{\"hidden_size\":0}", "hidden_size"},
        {"{\"attn_scale\":0}", "attn_scale 0: must be in"},
    };
    hdl_model_facts *f = hdl_calloc(1, sizeof *f);
    for (int i = 0; i < HDL_COUNT(rows); i++) {
        assert_int_not_equal(own_facts(f, rows[i].change), HEDDLE_OK);
        if (!strstr(hdl_last_error(), rows[i].message))
            fail_msg("\"%s\" does not say \"%s\"", hdl_last_error(), rows[i].message);
    }
    hdl_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_format),          cmocka_unit_test(test_own_format_sisters),
        cmocka_unit_test(test_own_format_refusals), cmocka_unit_test(test_both_config_styles),
        cmocka_unit_test(test_llama3_scaling),      cmocka_unit_test(test_config_defaults),
        cmocka_unit_test(test_bad_configs),         cmocka_unit_test(test_damaged_config),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
