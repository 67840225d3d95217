/* Chat forms: rendered as the templates do (golden files), recognised, and tokenised safely. */
#include "model/chat.h"

#include "tokenizer_data.h"

static const char smollm2_jinja[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\\n' }}{% endif %}";
static const char chatml_jinja[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
    "}}{% endif %}";
static const char llama3_jinja[] =
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}";
static const char gemma_jinja[] =
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}";

static hdl_text text_of(const char *text)
{
    return (hdl_text){text, (int64_t)strlen(text)};
}

static void render(const hdl_chat_template *tmpl, char *turns, bool open_answer, hdl_buf *out)
{
    char previous[64] = "";
    hdl_buf_add(out, "", 0);
    for (char *turn = strtok(turns, " "), *next; turn; turn = next) {
        next = strtok(NULL, " ");
        char *hex = strchr(turn, ':');
        *hex++ = 0;
        hdl_buf content = from_hex(hex, strlen(hex));
        hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES];
        int n = hdl_chat_turn_after(tmpl, *previous ? previous : NULL, turn,
                                    (hdl_text){content.data, content.n}, open_answer && !next, pieces);
        assert_in_range(n, 1, HDL_CHAT_MAX_PIECES);
        for (int i = 0; i < n; i++) hdl_buf_add(out, pieces[i].text, pieces[i].n);
        snprintf(previous, sizeof previous, "%s", turn);
        hdl_buf_deinit(&content);
    }
}

static void check_golden(const char *name, const char *jinja, hdl_chat_kind kind)
{
    hdl_chat_template tmpl = hdl_chat_recognise(text_of(jinja));
    assert_int_equal(tmpl.kind, kind);
    hdl_buf file = read_golden(name);
    char *rest = file.data;
    int n_rows = 0;
    for (char *row; (row = next_row(&rest)); n_rows++) {
        char *title = next_column(&row);
        bool open_answer = atoi(next_column(&row)) != 0;
        char *turns = next_column(&row);
        char *hex = next_column(&row);
        hdl_buf want = from_hex(hex, strlen(hex)), got = {0};
        render(&tmpl, turns, open_answer, &got);
        if (got.n != want.n || memcmp(got.data, want.data, (size_t)got.n) != 0)
            fail_msg("%s, %s: got \"%s\", must be \"%s\"", name, title, got.data, want.data);
        hdl_buf_deinit(&want);
        hdl_buf_deinit(&got);
    }
    assert_true(n_rows >= 8);
    hdl_buf_deinit(&file);
}

static void test_golden_renderings(void **state)
{
    (void)state;
    check_golden("chat-smollm2.tsv", smollm2_jinja, HDL_CHAT_CHATML);
    check_golden("chat-chatml.tsv", chatml_jinja, HDL_CHAT_CHATML);
    check_golden("chat-llama3.tsv", llama3_jinja, HDL_CHAT_LLAMA3);
    check_golden("chat-gemma.tsv", gemma_jinja, HDL_CHAT_GEMMA);
}

static void test_recognition(void **state)
{
    (void)state;
    assert_int_equal(hdl_chat_recognise((hdl_text){NULL, 0}).kind, HDL_CHAT_NONE);
    assert_int_equal(hdl_chat_recognise(text_of("{{ bos_token }}[INST] x [/INST]")).kind, HDL_CHAT_UNKNOWN);
    assert_int_equal(hdl_chat_recognise(text_of("<|im_start|>")).kind, HDL_CHAT_UNKNOWN);
    assert_int_equal(hdl_chat_recognise(text_of("<|im_start|><|im_end|><start_of_turn><end_of_turn>")).kind,
                     HDL_CHAT_UNKNOWN);
    assert_int_equal(hdl_chat_recognise(text_of("<|im_start|>user<|im_sep|><|im_end|>")).kind,
                     HDL_CHAT_UNKNOWN);
    hdl_chat_template tmpl = hdl_chat_recognise(text_of(smollm2_jinja));
    assert_string_equal(tmpl.default_system,
                        "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
    /* Qwen2.5's first occurrence is not a whole literal, its second is */
    tmpl = hdl_chat_recognise(text_of("{{- '<|im_start|>system\\n' }}{{ m }}{{- '<|im_end|>' }}"
                                      "{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}"));
    assert_string_equal(tmpl.default_system, "You are Qwen.");
    assert_string_equal(hdl_chat_recognise(text_of(chatml_jinja)).default_system, "");
    for (int kind = HDL_CHAT_NONE; kind <= HDL_CHAT_GEMMA; kind++)
        assert_true(strlen(hdl_chat_kind_name((hdl_chat_kind)kind)) > 0);
}

static void test_default_system_too_long(void **state)
{
    (void)state;
    char jinja[1024] = "<|im_start|>system\\n";
    memset(jinja + strlen(jinja), 'x', 400);
    strcat(jinja, "<|im_end|>");
    hdl_chat_template tmpl = hdl_chat_recognise(text_of(jinja));
    assert_int_equal(tmpl.kind, HDL_CHAT_CHATML);
    assert_string_equal(tmpl.default_system, "");
}

static void join(const hdl_chat_template *tmpl, const char *previous, const char *role, const char *text,
                 hdl_buf *out)
{
    hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES];
    int n = hdl_chat_turn_after(tmpl, previous, role, text_of(text), false, pieces);
    for (int i = 0; i < n; i++) hdl_buf_add(out, pieces[i].text, pieces[i].n);
}

static void test_dated_llama3(void **state)
{
    (void)state;
    char jinja[2048];
    snprintf(jinja, sizeof jinja, "%s{{- \"Cutting Knowledge Date: December 2023\\n\" }}", llama3_jinja);
    hdl_chat_template tmpl = hdl_chat_recognise(text_of(jinja));
    hdl_buf out = {0};
    join(&tmpl, NULL, "user", " hi ", &out);
    assert_string_equal(
        out.data,
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>");
    out.n = 0;
    join(&tmpl, NULL, "system", "Be brief.", &out);
    assert_string_equal(
        out.data, "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
                  "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|>");
    hdl_buf_deinit(&out);
}

static void test_answers_are_closed(void **state)
{
    (void)state;
    hdl_chat_template chatml = hdl_chat_recognise(text_of(chatml_jinja));
    hdl_chat_template llama3 = hdl_chat_recognise(text_of(llama3_jinja));
    hdl_chat_template gemma = hdl_chat_recognise(text_of(gemma_jinja));
    assert_string_equal(hdl_chat_close_answer(&chatml, true), "\n");
    assert_string_equal(hdl_chat_close_answer(&chatml, false), "<|im_end|>\n");
    assert_string_equal(hdl_chat_close_answer(&llama3, true), "");
    assert_string_equal(hdl_chat_close_answer(&llama3, false), "<|eot_id|>");
    assert_string_equal(hdl_chat_close_answer(&gemma, true), "\n");
}

static void test_raw_has_one_piece(void **state)
{
    (void)state;
    hdl_chat_template none = {0};
    hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES];
    assert_int_equal(hdl_chat_turn(&none, "user", text_of("text"), true, true, pieces), 1);
    assert_false(pieces[0].is_markup);
}

/* The turn by turn ids are those of the whole; a user's markup is text, and text at the borders is
 * tokenised as in the rendered whole. */
static void test_encoded_as_one_text(void **state)
{
    hdl_tokenizer *tok = *state;
    hdl_chat_template tmpl = hdl_chat_recognise(text_of(smollm2_jinja));
    hdl_chat_piece pieces[2 * HDL_CHAT_MAX_PIECES];
    hdl_buf whole = {0};
    hdl_ids once = {0}, turns = {0}, plain = {0};
    int n = hdl_chat_turn(&tmpl, "user", text_of("\n  a <ledger>  \n"), true, false, pieces);
    n += hdl_chat_turn(&tmpl, "assistant", text_of(" Yes."), false, true, pieces + n);
    for (int i = 0; i < n; i++) hdl_buf_add(&whole, pieces[i].text, pieces[i].n);
    assert_ok(hdl_tokenizer_encode(tok, whole.data, whole.n, true, false, &once));
    assert_ok(hdl_chat_encode(tok, pieces, n, true, &turns));
    assert_ids(&turns, once.data, once.n, "whole against pieces");
    turns.n = 0;
    n = hdl_chat_turn(&tmpl, "user", text_of("a<|im_end|>b"), true, false, pieces);
    assert_ok(hdl_chat_encode(tok, pieces, n, true, &turns));
    int n_ends = 0, n_starts = 0;
    for (int64_t i = 0; i < turns.n; i++) {
        n_ends += turns.data[i] == hdl_tokenizer_id_of(tok, "<|im_end|>");
        n_starts += turns.data[i] == hdl_tokenizer_id_of(tok, "<|im_start|>");
    }
    assert_int_equal(n_starts, 2); /* default system, user */
    assert_int_equal(n_ends, 2);
    hdl_buf_deinit(&whole);
    hdl_ids_deinit(&once);
    hdl_ids_deinit(&turns);
    hdl_ids_deinit(&plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_renderings),       cmocka_unit_test(test_recognition),
        cmocka_unit_test(test_default_system_too_long), cmocka_unit_test(test_dated_llama3),
        cmocka_unit_test(test_answers_are_closed),      cmocka_unit_test(test_raw_has_one_piece),
    };
    int failed = cmocka_run_group_tests_name("chat", tests, NULL, NULL);
    hdl_tokenizer *tok = open_tokenizer(SMOLLM2_FILE);
    if (!tok) {
        printf("SKIP: %s is not there (scripts/get-model smollm2)\n", SMOLLM2_FILE);
        return failed ? 1 : 77;
    }
    const struct CMUnitTest model_tests[] = {cmocka_unit_test_prestate(test_encoded_as_one_text, tok)};
    failed += cmocka_run_group_tests_name("chat with a model", model_tests, NULL, NULL);
    hdl_tokenizer_free(tok);
    return failed ? 1 : 0;
}
