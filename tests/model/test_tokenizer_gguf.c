/* A tokenizer from GGUF metadata: what is read, and what is refused, each with a sentence. */
#include "model/tokenizer_int.h"
#include "tiny_model.h"
#include "tokenizer_data.h"

enum { U32 = 4, I32 = 5, F32 = 6, BOOL = 7, STRING = 8, ARRAY = 9 };

static char folder[512];

static int set_up(void **state)
{
    (void)state;
    return tiny_make_folder(folder, sizeof folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return 0;
}

typedef struct meta { /* metadata entries as they stand in the file */
    hdl_buf bytes;
    uint64_t n;
} meta;

static void put32(hdl_buf *b, uint32_t x)
{
    hdl_buf_add(b, &x, 4);
}

static void put_text(hdl_buf *b, const char *text)
{
    uint64_t n = strlen(text);
    hdl_buf_add(b, &n, 8);
    hdl_buf_puts(b, text);
}

static void start(meta *m, const char *key, uint32_t type)
{
    char whole[128];
    snprintf(whole, sizeof whole, "tokenizer.ggml.%s", key);
    put_text(&m->bytes, whole);
    put32(&m->bytes, type);
    m->n++;
}

static void add_text(meta *m, const char *key, const char *text)
{
    start(m, key, STRING);
    put_text(&m->bytes, text);
}

static void add_int(meta *m, const char *key, int32_t value)
{
    start(m, key, I32);
    put32(&m->bytes, (uint32_t)value);
}

static void add_bool(meta *m, const char *key, bool value)
{
    char byte = value;
    start(m, key, BOOL);
    hdl_buf_add(&m->bytes, &byte, 1);
}

/* Values separated by '|'. */
static void add_list(meta *m, const char *key, uint32_t type, const char *list)
{
    char copy[512];
    uint64_t n = *list ? 1 : 0;
    for (const char *c = list; *c; c++) n += *c == '|';
    start(m, key, ARRAY);
    put32(&m->bytes, type);
    hdl_buf_add(&m->bytes, &n, 8);
    snprintf(copy, sizeof copy, "%s", list);
    for (char *item = copy, *end; n > 0; n--, item = end + 1) {
        end = item + strcspn(item, "|");
        *end = 0;
        float number = strtof(item, NULL);
        if (type == STRING)
            put_text(&m->bytes, item);
        else if (type == F32)
            hdl_buf_add(&m->bytes, &number, 4);
        else
            put32(&m->bytes, (uint32_t)atoi(item));
    }
}

/* Writes the file, reads the tokenizer, frees the entries. */
static heddle_status read_meta(hdl_tokenizer **tok, meta *m)
{
    hdl_buf file = {0};
    hdl_gguf *gguf = NULL;
    char path[600];
    uint64_t n_tensors = 0;
    snprintf(path, sizeof path, "%s/tok.gguf", folder);
    hdl_buf_puts(&file, "GGUF");
    put32(&file, 3);
    hdl_buf_add(&file, &n_tensors, 8);
    hdl_buf_add(&file, &m->n, 8);
    hdl_buf_add(&file, m->bytes.data, m->bytes.n);
    assert_ok(hdl_buf_status(&file));
    assert_true(tiny_write_file(path, file.data, file.n));
    assert_ok(hdl_gguf_open(&gguf, path));
    heddle_status status = hdl_tokenizer_from_gguf(tok, gguf);
    hdl_gguf_close(gguf);
    hdl_buf_deinit(&file);
    hdl_buf_deinit(&m->bytes);
    return status;
}

static meta byte_level(const char *pre, const char *merges)
{
    meta m = {0};
    add_text(&m, "model", "gpt2");
    if (pre) add_text(&m, "pre", pre);
    add_list(&m, "tokens", STRING,
             "a|b|ab|\xc4\xa0|\xc4\xa0"
             "a|1|<s>|<x>");
    add_list(&m, "token_type", I32, "1|1|1|1|1|1|3|4");
    if (merges) add_list(&m, "merges", STRING, merges);
    return m;
}

static meta spm(void)
{
    meta m = {0};
    add_text(&m, "model", "llama");
    add_list(&m, "tokens", STRING,
             "<unk>|<s>|\xe2\x96\x81|a|\xe2\x96\x81"
             "a|<0x41>|<end_of_turn>");
    add_list(&m, "token_type", I32, "2|3|1|1|1|6|3");
    add_list(&m, "scores", F32, "0|0|-2|-3|-1|0|0");
    return m;
}

static void assert_encodes(hdl_tokenizer *tok, const char *text, const char *want_list)
{
    char list[256];
    snprintf(list, sizeof list, "%s", want_list);
    hdl_ids want = from_list(list), got = {0};
    assert_ok(hdl_tokenizer_encode(tok, text, (int64_t)strlen(text), true, true, &got));
    assert_ids(&got, want.data, want.n, text);
    hdl_ids_deinit(&want);
    hdl_ids_deinit(&got);
}

static void test_byte_level(void **state)
{
    (void)state;
    hdl_tokenizer *tok;
    meta m = byte_level("smollm", "a b|\xc4\xa0 a");
    add_int(&m, "bos_token_id", 0);
    add_int(&m, "eos_token_id", 1);
    add_int(&m, "padding_token_id", -1);
    assert_ok(read_meta(&tok, &m));
    assert_encodes(tok, "ab a1a", "2 4 5 0");
    assert_false(hdl_tokenizer_special(tok)->add_bos);
    assert_int_equal(hdl_tokenizer_special(tok)->pad, -1);
    assert_true(hdl_tokenizer_is_end(tok, 1));
    hdl_tokenizer_free(tok);
    m = byte_level("llama-bpe", "a b");
    add_int(&m, "bos_token_id", 0);
    assert_ok(read_meta(&tok, &m));
    assert_encodes(tok, "\xc2\xa0 a", "0 4"); /* adds BOS; " a" is a token, so needs no merge */
    hdl_tokenizer_free(tok);
    m = byte_level(NULL, "a b");
    add_bool(&m, "add_bos_token", true);
    add_bool(&m, "add_eos_token", true);
    add_int(&m, "bos_token_id", 0);
    add_int(&m, "eos_token_id", 1);
    assert_ok(read_meta(&tok, &m));
    assert_encodes(tok, "ab", "0 2 1");
    hdl_tokenizer_free(tok);
}

static void test_spm(void **state)
{
    (void)state;
    hdl_tokenizer *tok;
    meta m = spm();
    add_int(&m, "bos_token_id", 1);
    add_int(&m, "unknown_token_id", 0);
    assert_ok(read_meta(&tok, &m));
    assert_encodes(tok, "a aAxy", "1 4 4 5 0"); /* BOS, prefix space, bytes, unknown ones fused */
    assert_true(hdl_tokenizer_is_end(tok, 6));
    hdl_tokenizer_free(tok);
    m = spm();
    add_bool(&m, "add_bos_token", false);
    add_bool(&m, "add_space_prefix", false);
    assert_ok(read_meta(&tok, &m));
    assert_encodes(tok, "a a", "3 4");
    hdl_tokenizer_free(tok);
}

static void assert_refused(meta *m, heddle_status status, const char *part)
{
    hdl_tokenizer *tok = (hdl_tokenizer *)1;
    hdl_clear_error();
    assert_int_equal(read_meta(&tok, m), status);
    assert_null(tok);
    if (!strstr(hdl_last_error(), part)) fail_msg("\"%s\" does not name \"%s\"", hdl_last_error(), part);
}

static void test_refusals(void **state)
{
    (void)state;
    meta m = {0};
    add_text(&m, "x", "y");
    assert_refused(&m, HEDDLE_E_FORMAT, "no tokenizer");
    m = (meta){0};
    add_text(&m, "model", "bert");
    assert_refused(&m, HEDDLE_E_UNSUPPORTED, "bert");
    m = (meta){0};
    add_text(&m, "model", "gpt2");
    assert_refused(&m, HEDDLE_E_FORMAT, "vocabulary");
    m = byte_level("chatglm-bpe", "a b");
    assert_refused(&m, HEDDLE_E_UNSUPPORTED, "chatglm-bpe");
    m = byte_level("gpt-2", NULL);
    assert_refused(&m, HEDDLE_E_FORMAT, "merges");
    m = byte_level("gpt-2", "a q");
    assert_refused(&m, HEDDLE_E_FORMAT, "\"q\"");
    m = byte_level("gpt-2", "a");
    assert_refused(&m, HEDDLE_E_FORMAT, "merge 0");
    m = byte_level("gpt-2", "a b");
    add_int(&m, "eos_token_id", 99);
    assert_refused(&m, HEDDLE_E_FORMAT, "eos_token_id 99");
    m = spm();
    add_bool(&m, "remove_extra_whitespaces", true);
    assert_refused(&m, HEDDLE_E_UNSUPPORTED, "remove_extra_whitespaces");
    m = (meta){0};
    add_text(&m, "model", "llama");
    add_list(&m, "tokens", STRING, "a|b");
    add_list(&m, "scores", F32, "0");
    assert_refused(&m, HEDDLE_E_FORMAT, "scores 1");
    m = (meta){0};
    add_text(&m, "model", "gpt2");
    add_list(&m, "tokens", STRING, "a|b");
    add_list(&m, "token_type", I32, "1|77");
    add_list(&m, "merges", STRING, "");
    assert_refused(&m, HEDDLE_E_FORMAT, "entry 1 is 77");
}

static void test_faults(void **state)
{
    (void)state;
    char path[600];
    hdl_gguf *gguf = NULL;
    snprintf(path, sizeof path, "%s/tiny.gguf", folder);
    for (int has_spm = 0; has_spm < 2; has_spm++) {
        assert_true(tiny_write_gguf(path, &(tiny_options){.has_spm = has_spm}));
        assert_ok(hdl_gguf_open(&gguf, path));
        int64_t live = hdl_mem_live_bytes();
        hdl_tokenizer *tok = NULL;
        for (int64_t at = 1; !tok; at++) {
            hdl_mem_fail_at(at);
            heddle_status status = hdl_tokenizer_from_gguf(&tok, gguf);
            hdl_mem_fail_at(0);
            if (status) {
                assert_int_equal(status, HEDDLE_E_NOMEM);
                assert_int_equal(hdl_mem_live_bytes(), live);
            }
        }
        hdl_tokenizer_free(tok);
        hdl_gguf_close(gguf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("tokenizer of a GGUF file", tests, set_up, tear_down);
}
