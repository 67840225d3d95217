/* Index files: SHA-256 by the standard's examples, and everything that a sidecar can get wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sha256.h"
#include "engine/engine_int.h"
#include "model/index_file.h"

static void test_sha256(void **state)
{
    (void)state;
    static const struct {
        const char *text, *hex;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char hex[HDL_SHA256_HEX];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hdl_sha256((const uint8_t *)cases[i].text, (int64_t)strlen(cases[i].text), hex);
        assert_string_equal(hex, cases[i].hex);
    }
    uint8_t *million = malloc(1000000);
    memset(million, 'a', 1000000);
    hdl_sha256(million, 1000000, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

enum { HIDDEN = 64, MAX_HEADER = 8192 };

/* What a sidecar says; tests change one field at a time. */
typedef struct sidecar_case {
    const char *kind, *combine, *sha256, *leaders, *bases, *dim, *bias_dtype, *rope_dims;
} sidecar_case;

/* A sidecar of one group for the tiny model: dim 16, 2 queries; the tensors are zeros. */
static void write_sidecar(const char *path, const sidecar_case *at)
{
    char header[MAX_HEADER];
    int bias_bytes = 2 * HIDDEN * (strcmp(at->bias_dtype, "F16") ? 4 : 2), offset = 0;
    int n = snprintf(
        header, sizeof header,
        "{\"__metadata__\": {\"kind\": \"%s\", \"version\": \"1\", \"index_combine\": \"%s\", \"model_sha256\": \"%s\", "
        "\"leaders\": \"%s\", \"index_rope_base\": \"%s\", \"index_dim\": \"%s\", \"index_n_heads\": \"2\", "
        "\"index_scale\": \"0.125\", \"index_norm_eps\": \"1e-6\", \"index_rope_dims\": \"%s\", "
        "\"index_sinks\": \"4\", \"index_window\": \"16\", \"top_k\": \"32\"}",
        at->kind, at->combine, at->sha256, at->leaders, at->bases, at->dim, at->rope_dims);
    const struct {
        const char *name, *dtype, *shape;
        int bytes;
    } tensors[] = {{"k_norm", "F32", "[16]", 64},
                   {"k_proj", "F16", "[16, 64]", 16 * HIDDEN * 2},
                   {"q_bias", at->bias_dtype, "[2, 64]", bias_bytes},
                   {"q_proj", "F16", "[32, 64]", 32 * HIDDEN * 2}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        n += snprintf(
            header + n, sizeof header - (size_t)n,
            ", \"index.0.%s.weight\": {\"dtype\": \"%s\", \"shape\": %s, \"data_offsets\": [%d, %d]}",
            tensors[i].name, tensors[i].dtype, tensors[i].shape, offset, offset + tensors[i].bytes);
        offset += tensors[i].bytes;
    }
    n += snprintf(header + n, sizeof header - (size_t)n, "}");
    while (n % 8) header[n++] = ' ';
    uint64_t length = (uint64_t)n;
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(&length, 8, 1, file), 1);
    assert_int_equal(fwrite(header, (size_t)n, 1, file), 1);
    for (int i = 0; i < offset; i++) fputc(0, file);
    assert_int_equal(fclose(file), 0);
}

static char folder[512], model_file[600], sidecar[] = "/tmp/heddle-sidecar-XXXXXX";

static void refused(const sidecar_case *at, const char *why)
{
    hdl_model *model;
    write_sidecar(sidecar, at);
    assert_int_equal(hdl_model_open(&model, folder), HEDDLE_OK);
    assert_int_not_equal(hdl_model_attach_index(model, model_file, sidecar), HEDDLE_OK);
    if (!strstr(hdl_last_error(), why)) fail_msg("gave: %s\nwanted: %s", hdl_last_error(), why);
    assert_int_equal(model->facts.index.dim, 0); /* as it was */
    assert_false(model->facts.layers[0].has_index);
    hdl_model_close(model);
}

static sidecar_case sound(void)
{
    static char hex[HDL_SHA256_HEX];
    char *data = malloc(1 << 24);
    FILE *file = fopen(model_file, "rb");
    assert_non_null(file);
    size_t n = fread(data, 1, 1 << 24, file);
    fclose(file);
    hdl_sha256((const uint8_t *)data, (int64_t)n, hex);
    free(data);
    return (sidecar_case){"distilled_index", "max", hex, "1", "10000", "16", "F16", "8"};
}

static void test_refusals(void **state)
{
    (void)state;
    sidecar_case at = sound();
    at.kind = "something";
    refused(&at, "is a something of version 1");
    at = sound(), at.combine = "mean";
    refused(&at, "combines by mean");
    at = sound(), at.sha256 = "00ff";
    refused(&at, "was made for a model file of SHA-256 00ff");
    at = sound(), at.leaders = "99";
    refused(&at, "99 is not a layer that reads everything");
    at = sound(), at.leaders = "1,1", at.bases = "10000,10000";
    refused(&at, "or stands twice");
    at = sound(), at.bases = "x";
    refused(&at, "as many numbers");
    at = sound(), at.dim = "8";
    refused(&at, "must be f16 [16, 64]");
    at = sound(), at.dim = "0";
    refused(&at, "\"index_dim\" \"0\": must be in");
    at = sound(), at.dim = "1024", at.rope_dims = "1024"; /* once wrote past its rotation table */
    refused(&at, "\"index_rope_dims\" \"1024\": must be in 0..512");
    at = sound(), at.dim = "16.5";
    refused(&at, "must be a whole number");
    at = sound(), at.bias_dtype = "F32";
    refused(&at, "tensor index.0.q_bias.weight: is f32 [2, 64]; must be f16 [2, 64]");
}

/* Zero queries score every key alike: the lowest ids win, and a list of everything equals dense. */
static void test_a_plan_routes_by_it(void **state)
{
    (void)state;
    sidecar_case at = sound();
    write_sidecar(sidecar, &at);
    hdl_model *model;
    assert_int_equal(hdl_model_open(&model, folder), HEDDLE_OK);
    if (hdl_model_attach_index(model, model_file, sidecar)) fail_msg("%s", hdl_last_error());
    assert_int_equal(model->facts.index.n_heads, 2);
    assert_true(model->facts.layers[1].has_index && !model->facts.layers[0].has_index);
    assert_int_not_equal(hdl_model_attach_index(model, model_file, sidecar), HEDDLE_OK); /* it has one now */
    hdl_model_close(model);
}

int main(void)
{
    snprintf(folder, sizeof folder, "%s/golden/tiny/llama", HDL_TEST_DATA);
    snprintf(model_file, sizeof model_file, "%s/model.safetensors", folder);
    int file = mkstemp(sidecar);
    if (file < 0) return 1;
    close(file);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sha256), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_a_plan_routes_by_it)};
    int code = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(sidecar);
    return code;
}
