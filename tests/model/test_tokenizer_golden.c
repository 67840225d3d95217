/* Both demo models' vocabularies against the golden ids; skipped where the model files are not
 * there. The mixed text is made by tests/oracle/make_text.py, which needs Python 3 only. */
#include "tokenizer_data.h"

static hdl_tokenizer *tok;
static const char *label; /* "smollm2" or "gemma3" */

static hdl_buf golden_of(const char *suffix)
{
    char name[256];
    snprintf(name, sizeof name, "%s.%s", label, suffix);
    return read_golden(name);
}

static void test_short_text(void **state)
{
    (void)state;
    hdl_buf text = read_golden("short.txt"), want = golden_of("short.i32");
    hdl_ids ids = {0};
    assert_ok(hdl_tokenizer_encode(tok, text.data, text.n, false, false, &ids));
    assert_ids(&ids, (const int32_t *)want.data, want.n / 4, "short.txt");
    hdl_ids_deinit(&ids);
    hdl_buf_deinit(&text);
    hdl_buf_deinit(&want);
}

static void test_special_tokens(void **state)
{
    (void)state;
    hdl_buf file = golden_of("special.tsv");
    char *rest = file.data;
    for (char *row; (row = next_row(&rest));) {
        char *hex = next_column(&row);
        hdl_buf text = from_hex(hex, strlen(hex));
        for (int parse_special = 1; parse_special >= 0; parse_special--) {
            hdl_ids want = from_list(next_column(&row)), got = {0};
            assert_ok(hdl_tokenizer_encode(tok, text.data, text.n, parse_special, false, &got));
            assert_ids(&got, want.data, want.n, text.data);
            hdl_ids_deinit(&want);
            hdl_ids_deinit(&got);
        }
        hdl_buf_deinit(&text);
    }
    hdl_buf_deinit(&file);
}

static void test_broken_utf8(void **state)
{
    (void)state;
    hdl_buf file = golden_of("broken.tsv");
    char *rest = file.data;
    for (char *row; (row = next_row(&rest));) {
        char *name = next_column(&row), *hex = next_column(&row);
        hdl_buf text = from_hex(hex, strlen(hex)), back = {0};
        hdl_ids want = from_list(next_column(&row)), got = {0};
        assert_ok(hdl_tokenizer_encode(tok, text.data, text.n, false, false, &got));
        assert_ids(&got, want.data, want.n, name);
        assert_ok(hdl_tokenizer_decode(tok, got.data, got.n, false, &back));
        if (!strcmp(label, "gemma3")) { /* SmolLM2 has no token for 21 of the bytes */
            assert_int_equal(back.n, text.n);
            assert_memory_equal(back.data, text.data, (size_t)text.n);
        }
        hdl_buf_deinit(&text);
        hdl_buf_deinit(&back);
        hdl_ids_deinit(&want);
        hdl_ids_deinit(&got);
    }
    hdl_buf_deinit(&file);
}

/* The mixed text, or n = 0 where it cannot be made. */
static hdl_buf mixed_text(void)
{
    hdl_buf text = {0};
    char path[] = "/tmp/heddle-mixed-XXXXXX", command[8192];
    int fd = mkstemp(path);
    if (fd < 0) return text;
    close(fd);
    snprintf(command, sizeof command, "python3 '%s/oracle/make_text.py' '%s' >/dev/null 2>&1", HDL_TEST_DATA,
             path);
    if (system(command) == 0) assert_ok(hdl_buf_read_file(&text, path, 1 << 26));
    unlink(path);
    return text;
}

static void test_mixed_text(void **state)
{
    (void)state;
    hdl_buf text = mixed_text(), file = golden_of("chunks.tsv");
    if (!text.n) {
        printf("mixed text not made (python3 is missing): not compared\n");
        hdl_buf_deinit(&file);
        return;
    }
    char *rest = file.data;
    hdl_ids ids = {0};
    for (char *row; (row = next_row(&rest));) {
        int64_t offset = atoll(next_column(&row)), n = atoll(next_column(&row)),
                n_ids = atoll(next_column(&row));
        uint64_t want = strtoull(next_column(&row), NULL, 16);
        assert_true(offset >= 0 && offset + n <= text.n);
        ids.n = 0;
        assert_ok(hdl_tokenizer_encode(tok, text.data + offset, n, false, false, &ids));
        if (ids.n != n_ids || fnv(&ids) != want)
            fail_msg("bytes %lld + %lld: %lld ids, must be %lld, or others", (long long)offset, (long long)n,
                     (long long)ids.n, (long long)n_ids);
    }
    hdl_ids_deinit(&ids);
    hdl_buf_deinit(&text);
    hdl_buf_deinit(&file);
}

static void test_facts(void **state)
{
    (void)state;
    const hdl_special_ids *special = hdl_tokenizer_special(tok);
    bool is_gemma = !strcmp(label, "gemma3");
    const char *end = is_gemma ? "<end_of_turn>" : "<|im_end|>";
    assert_int_equal(hdl_tokenizer_n_vocab(tok), is_gemma ? 262144 : 49152);
    assert_int_equal(special->add_bos, is_gemma);
    assert_false(special->add_eos);
    assert_int_equal(special->bos, is_gemma ? 2 : 1);
    assert_true(hdl_tokenizer_is_end(tok, hdl_tokenizer_id_of(tok, end)));
    assert_true(hdl_tokenizer_is_end(tok, special->eos));
    assert_true(hdl_tokenizer_is_special(tok, special->eos));
    assert_false(hdl_tokenizer_is_end(tok, 1000));
    assert_false(hdl_tokenizer_is_special(tok, -1));
    assert_int_equal(hdl_tokenizer_id_of(tok, "<|no such token|>"), -1);
    hdl_ids ids = {0};
    assert_ok(hdl_tokenizer_encode(tok, "", 0, false, true, &ids));
    assert_int_equal(ids.n, is_gemma);
    hdl_ids_deinit(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_text),  cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_broken_utf8), cmocka_unit_test(test_mixed_text),
        cmocka_unit_test(test_facts),
    };
    static const char *const models[][2] = {{"smollm2", SMOLLM2_FILE}, {"gemma3", GEMMA3_FILE}};
    int failed = 0, n_run = 0;
    for (int i = 0; i < 2; i++) {
        label = models[i][0];
        tok = open_tokenizer(models[i][1]);
        if (!tok) {
            printf("SKIP: %s is not there (scripts/get-model %s)\n", models[i][1], label);
            continue;
        }
        failed += cmocka_run_group_tests_name(label, tests, NULL, NULL);
        hdl_tokenizer_free(tok);
        n_run++;
    }
    return failed ? 1 : n_run == 2 ? 0 : 77;
}
