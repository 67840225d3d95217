/* tokenizer.json: golden ids, refusals with their sentences, faults, truncation at every byte. */
#include "model/tokenizer_int.h"
#include "tokenizer_data.h"

static heddle_status from_text(hdl_tokenizer **out, const char *json, const char *config)
{
    return hdl_tokenizer_from_json_text(out, (hdl_text){json, (int64_t)strlen(json)},
                                        (hdl_text){config, config ? (int64_t)strlen(config) : 0});
}

static hdl_tokenizer *make(const char *json, const char *config)
{
    hdl_tokenizer *tok = NULL;
    assert_ok(from_text(&tok, json, config));
    return tok;
}

/* Ids as text: "3 1 2". */
static const char *ids_of(const hdl_tokenizer *tok, const char *text, bool parse_special, bool add_bos_eos)
{
    static char list[4096];
    hdl_ids ids = {0};
    assert_ok(hdl_tokenizer_encode(tok, text, (int64_t)strlen(text), parse_special, add_bos_eos, &ids));
    size_t at = 0;
    list[0] = 0;
    for (int64_t i = 0; i < ids.n; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, i ? " %d" : "%d", ids.data[i]);
    hdl_ids_deinit(&ids);
    return list;
}

static void test_golden_files(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "smollm2", "llama3", "qwen2", "gemma"};
    hdl_buf text = read_golden("short.txt");
    for (int64_t i = 0; i < HDL_COUNT(names); i++) {
        char name[64];
        snprintf(name, sizeof name, "json-%s.json", names[i]);
        hdl_buf json = read_golden(name), back = {0};
        snprintf(name, sizeof name, "json-%s.short.i32", names[i]);
        hdl_buf want = read_golden(name);
        hdl_tokenizer *tok = make(json.data, NULL);
        hdl_ids ids = {0};
        assert_ok(hdl_tokenizer_encode(tok, text.data, text.n, false, false, &ids));
        assert_ids(&ids, (const int32_t *)want.data, want.n / 4, name);
        assert_ok(hdl_tokenizer_decode(tok, ids.data, ids.n, true, &back));
        if (i < 3) { /* NFC changes the text, space marks stand for spaces */
            assert_int_equal(back.n, text.n);
            assert_memory_equal(back.data, text.data, (size_t)text.n);
        }
        hdl_tokenizer_free(tok);
        hdl_ids_deinit(&ids);
        hdl_buf_deinit(&json);
        hdl_buf_deinit(&want);
        hdl_buf_deinit(&back);
    }
    hdl_buf_deinit(&text);
}

#define VOCAB      "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"\\u0120\":5,\"\\u0120a\":6"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define SPLIT(regex, behavior)                                                                               \
    ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","                      \
    "\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"" behavior "\"},{\"type\":\"ByteLevel\","          \
    "\"add_prefix_space\":false,\"use_regex\":false}]}"
#define MODEL(merges) "\"model\":{\"type\":\"BPE\",\"vocab\":{" VOCAB "},\"merges\":" merges "}"
#define MERGES        "[\"a b\",\"ab c\",\"\\u0120 a\"]"
#define ADDED(flags)                                                                                         \
    "\"added_tokens\":[{\"id\":7,\"content\":\"<s>\",\"special\":true" flags                                 \
    "},{\"id\":8,\"content\":\"<u>\",\"special\":false" flags "}]"
#define FILE_WITH(extra) "{" ADDED("") "," MODEL(MERGES) ",\"pre_tokenizer\":" BYTE_LEVEL extra "}"

static void test_small_file(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make(FILE_WITH(""), NULL);
    assert_string_equal(ids_of(tok, "abc aab", false, true), "4 6 3");
    assert_string_equal(ids_of(tok, "ab<s>c<u>", true, true), "3 7 2 8");
    assert_string_equal(ids_of(tok, "ab<s>c<u>", false, true), "3 2 8"); /* no token for < s > */
    assert_int_equal(hdl_tokenizer_n_vocab(tok), 9);
    assert_true(hdl_tokenizer_is_special(tok, 7));
    assert_false(hdl_tokenizer_is_special(tok, 8));
    hdl_tokenizer_free(tok);
    tok = make("{" ADDED("") "," MODEL(
                   "[[\"a\",\"b\"],[\"ab\",\"c\"],[\"\\u0120\",\"a\"]]") ",\"pre_tokenizer\":" BYTE_LEVEL "}",
               NULL);
    assert_string_equal(ids_of(tok, "abc aab", false, true), "4 6 3"); /* merges as pairs */
    hdl_tokenizer_free(tok);
}

static void test_stripping(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make(
        "{" ADDED(",\"lstrip\":true") "," MODEL(MERGES) ",\"pre_tokenizer\":" BYTE_LEVEL "}", NULL);
    assert_string_equal(ids_of(tok, "a  <s> a", true, false), "0 7 6");
    assert_string_equal(ids_of(tok, " <u> <s>", true, false), "8 7");
    hdl_tokenizer_free(tok);
    tok = make("{" ADDED(",\"rstrip\":true") "," MODEL(MERGES) ",\"pre_tokenizer\":" BYTE_LEVEL "}", NULL);
    assert_string_equal(ids_of(tok, "a <s>\xe3\x80\x80 a", true, false), "0 5 7 0");
    hdl_tokenizer_free(tok);
    tok = make("{" ADDED(",\"single_word\":true") "," MODEL(MERGES) ",\"pre_tokenizer\":" BYTE_LEVEL "}",
               NULL);
    assert_string_equal(ids_of(tok, "a<s> <s>a <s>", true, false), "0 5 0 5 7");
    hdl_tokenizer_free(tok);
}

static void test_bos_and_eos(void **state)
{
    (void)state;
    const char *json = FILE_WITH(
        ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
        "{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
        "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[7],\"tokens\":[\"<s>\"]}}}]}");
    hdl_tokenizer *tok = make(json, NULL);
    assert_string_equal(ids_of(tok, "ab", false, true), "7 3");
    assert_string_equal(ids_of(tok, "ab", false, false), "3");
    hdl_tokenizer_free(tok);
    tok = make(json, "{\"add_bos_token\":false,\"eos_token\":{\"content\":\"<u>\"},\"add_eos_token\":true,"
                     "\"bos_token\":null}");
    assert_string_equal(ids_of(tok, "ab", false, true), "3 8");
    assert_true(hdl_tokenizer_is_end(tok, 8));
    assert_false(hdl_tokenizer_is_end(tok, 7));
    hdl_tokenizer_free(tok);
}

#define FALLBACK(normalizer, pre)                                                                            \
    "{\"normalizer\":" normalizer ",\"pre_tokenizer\":" pre                                                  \
    ",\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"                                                   \
    "\"unk_token\":\"?\",\"fuse_unk\":true,\"vocab\":{\"a\":0,\"\xe2\x96\x81\":1,\"\xe2\x96\x81"             \
    "a\":2,\"<0xC3>\":3,\"<0xA9>\":4,\"?\":5},\"merges\":[\"\xe2\x96\x81 a\"]}}"
#define PREPEND                                                                                              \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},"                \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]}"

static void test_byte_fallback(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make(FALLBACK(PREPEND, "null"), NULL);
    assert_string_equal(ids_of(tok, "a a\xc3\xa9xya", false, false), "2 2 3 4 5 0"); /* unknown ones fused */
    hdl_buf out = {0};
    assert_ok(hdl_tokenizer_decode(tok, (int32_t[]){2, 3, 4, 1}, 4, false, &out));
    assert_string_equal(out.data, " a\xc3\xa9 ");
    assert_int_equal(hdl_tokenizer_decode(tok, (int32_t[]){6}, 1, false, &out), HEDDLE_E_INVALID);
    hdl_buf_deinit(&out);
    hdl_tokenizer_free(tok);
    const char *first = FALLBACK(
        "null",
        "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"first\",\"split\":false}");
    tok = make(first, NULL);
    assert_string_equal(ids_of(tok, " a a", false, false), "2 2"); /* has its space already */
    assert_string_equal(ids_of(tok, "a", false, false), "2");
    hdl_tokenizer_free(tok);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"[]", "must be an object"},
        {"{\"model\":", "line 1"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "Unigram"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":[]}}", "vocab"},
        {"{" MODEL("[]") "}", "byte_fallback"},
        {"{" MODEL("[\"ab\"]") ",\"pre_tokenizer\":" BYTE_LEVEL "}", "merge 0"},
        {"{" MODEL("[\"a zz\"]") ",\"pre_tokenizer\":" BYTE_LEVEL "}", "zz"},
        {"{" MODEL("[[\"a\"]]") ",\"pre_tokenizer\":" BYTE_LEVEL "}", "model.merges[0]"},
        {FILE_WITH(",\"normalizer\":{\"type\":\"Lowercase\"}"), "Lowercase"},
        {FILE_WITH(",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x\"},\"content\":\"\"}"),
         "Replace"},
        {FILE_WITH(",\"post_processor\":{\"type\":\"BertProcessing\"}"), "BertProcessing"},
        {"{" MODEL("[]") ",\"pre_tokenizer\":{\"type\":\"Whitespace\"}}", "Whitespace"},
        {"{" MODEL("[]") SPLIT("(", "Isolated") "}", "pattern \"(\""},
        {"{" MODEL("[]") SPLIT("x", "Removed") "}", "Removed"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"zz\"}]," MODEL("[]") ",\"pre_tokenizer\":" BYTE_LEVEL
                                                                          "}",
         "belongs to another"},
        {"{\"added_tokens\":[{\"id\":-1,\"content\":\"zz\"}]," MODEL("[]") ",\"pre_tokenizer\":" BYTE_LEVEL
                                                                           "}",
         "added_tokens[0]"},
        {"{\"added_tokens\":[{\"id\":9000000,\"content\":\"zz\"}]," MODEL(
             "[]") ",\"pre_tokenizer\":" BYTE_LEVEL "}",
         "9000000"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]},\"pre_tokenizer\":" BYTE_LEVEL "}",
         "given twice"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"},"
         "\"pre_tokenizer\":" BYTE_LEVEL "}",
         "</w>"},
    };
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        hdl_tokenizer *tok = (hdl_tokenizer *)1;
        hdl_clear_error();
        if (!from_text(&tok, cases[i][0], NULL)) fail_msg("accepted: %s", cases[i][0]);
        assert_null(tok);
        if (!strstr(hdl_last_error(), cases[i][1]))
            fail_msg("\"%s\" does not name \"%s\"", hdl_last_error(), cases[i][1]);
    }
    hdl_tokenizer *tok;
    assert_int_equal(hdl_tokenizer_from_json(&tok, "/nonexistent"), HEDDLE_E_IO);
    assert_null(tok);
}

/* A pattern with exponential backtracking fails with a sentence, in bounded time. */
static void test_hostile_pattern(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make("{" MODEL("[]") SPLIT("(a|aa)+$|b", "Isolated") "}", NULL);
    char text[512];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'c';
    hdl_ids ids = {0};
    assert_int_equal(hdl_tokenizer_encode(tok, text, sizeof text, false, false, &ids), HEDDLE_E_UNSUPPORTED);
    assert_int_equal(ids.n, 0);
    hdl_ids_deinit(&ids);
    hdl_tokenizer_free(tok);
}

static void test_truncation(void **state)
{
    (void)state;
    const char *json = FILE_WITH(",\"normalizer\":{\"type\":\"NFC\"}");
    char *copy = hdl_strdup(json);
    for (size_t n = 0; n < strlen(json); n++) {
        hdl_tokenizer *tok;
        char *part = malloc(n + 1); /* its own block, so that a read past the end is seen */
        memcpy(part, copy, n);
        hdl_text text = {part, (int64_t)n};
        if (!hdl_tokenizer_from_json_text(&tok, text, (hdl_text){0})) fail_msg("accepted after %zu bytes", n);
        free(part);
    }
    hdl_free(copy);
}

static void test_faults(void **state)
{
    (void)state;
    const char *json = FILE_WITH(",\"normalizer\":{\"type\":\"NFC\"}");
    const char *text = "ab<s> e\xcc\x81\xff\xcc\xa3\xcc\x81 abc abc";
    hdl_tokenizer *tok = NULL;
    int64_t live = hdl_mem_live_bytes();
    for (int64_t at = 1; !tok; at++) {
        hdl_mem_fail_at(at);
        heddle_status status = from_text(&tok, json, "{\"bos_token\":\"<s>\"}");
        hdl_mem_fail_at(0);
        if (status) assert_int_equal(hdl_mem_live_bytes(), live);
    }
    int64_t live_tok = hdl_mem_live_bytes();
    for (int64_t at = 1;; at++) {
        hdl_ids ids = {0};
        hdl_mem_fail_at(at);
        heddle_status status = hdl_tokenizer_encode(tok, text, (int64_t)strlen(text), true, true, &ids);
        hdl_mem_fail_at(0);
        if (status) {
            assert_int_equal(status, HEDDLE_E_NOMEM);
            assert_int_equal(ids.n, 0);
        }
        hdl_ids_deinit(&ids);
        assert_int_equal(hdl_mem_live_bytes(), live_tok);
        if (!status) break;
    }
    hdl_tokenizer_free(tok);
    assert_int_equal(hdl_mem_live_bytes(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_files),    cmocka_unit_test(test_small_file),
        cmocka_unit_test(test_stripping),       cmocka_unit_test(test_bos_and_eos),
        cmocka_unit_test(test_byte_fallback),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hostile_pattern), cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("tokenizer.json", tests, NULL, NULL);
}
