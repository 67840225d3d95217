/* UTF-8 at its edges and NFC against utf8proc's own, with a hostile run of marks. */
#include "model/unicode.h"

#include <utf8proc.h>

#include "tokenizer_data.h"

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t n;
        int len;
        int32_t cp;
    } cases[] = {
        {"", 0, 0, 0},
        {"a", 1, 1, 'a'},
        {"\0", 1, 1, 0},
        {"\x80", 1, 0, 0},
        {"\xc1\xbf", 2, 0, 0},
        {"\xc2\x80", 2, 2, 0x80},
        {"\xdf\xbf", 2, 2, 0x7ff},
        {"\xe0\x9f\xbf", 3, 0, 0},
        {"\xe0\xa0\x80", 3, 3, 0x800},
        {"\xed\x9f\xbf", 3, 3, 0xd7ff},
        {"\xed\xa0\x80", 3, 0, 0},
        {"\xee\x80\x80", 3, 3, 0xe000},
        {"\xef\xbf\xbf", 3, 3, 0xffff},
        {"\xf0\x8f\xbf\xbf", 4, 0, 0},
        {"\xf0\x90\x80\x80", 4, 4, 0x10000},
        {"\xf4\x8f\xbf\xbf", 4, 4, 0x10ffff},
        {"\xf4\x90\x80\x80", 4, 0, 0},
        {"\xf5\x80\x80\x80", 4, 0, 0},
        {"\xe4\xb8", 2, 0, 0},
        {"\xe4\xb8\x41", 3, 0, 0},
        {"\xff", 1, 0, 0},
    };
    for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
        int32_t cp = -1;
        char back[4];
        assert_int_equal(hdl_utf8_next(cases[i].text, cases[i].n, &cp), cases[i].len);
        if (!cases[i].len) continue;
        assert_int_equal(cp, cases[i].cp);
        assert_int_equal(hdl_utf8_put(cp, back), cases[i].len);
        assert_memory_equal(back, cases[i].text, (size_t)cases[i].len);
    }
    assert_int_equal(hdl_utf8_valid_prefix("0123456789\xc3\xa9\xff", 13), 12);
    assert_int_equal(hdl_utf8_valid_prefix("01234567\x80zzzzzzz", 16), 8);
}

static void test_classes(void **state)
{
    (void)state;
    assert_true(hdl_unicode_is_space(0x85));
    assert_true(hdl_unicode_is_space(0x3000));
    assert_false(hdl_unicode_is_space(0x180e));
    assert_false(hdl_unicode_is_space(0x200b));
    assert_true(hdl_unicode_is_word('_'));
    assert_true(hdl_unicode_is_word(0x4e2d));
    assert_false(hdl_unicode_is_word(0xbd)); /* one half: a number, not a digit */
    assert_false(hdl_unicode_is_word('-'));
}

static void test_nfc(void **state)
{
    (void)state;
    static const int32_t pieces[] = {'a',    'e',    0x301,  0x323,  0x308,  0x5b0,  0x1100,  0x1161, 0x11a8,
                                     0xac00, 0x1e9b, 0x2126, 0x212b, 0x0344, 0xfb1d, 0x1d15e, 0x4e2d, 0x345};
    uint32_t x = 3;
    for (int round = 0; round < 3000; round++) {
        char text[256];
        int n = 0;
        for (int i = 0; i < round % 40; i++)
            n += hdl_utf8_put(pieces[((x = x * 1664525u + 1013904223u) >> 8) % HDL_COUNT(pieces)], text + n);
        text[n] = 0;
        utf8proc_uint8_t *want = NULL;
        utf8proc_map((const utf8proc_uint8_t *)text, n, &want,
                     UTF8PROC_NULLTERM | UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        hdl_buf got = {0};
        hdl_buf_add(&got, "", 0);
        assert_ok(hdl_unicode_nfc(text, n, &got));
        assert_string_equal(got.data, (const char *)want);
        hdl_buf_deinit(&got);
        free(want);
    }
}

static void test_nfc_of_broken_text(void **state)
{
    (void)state;
    hdl_buf out = {0};
    assert_ok(hdl_unicode_nfc("e\xff\xcc\x81 e\xcc\x81\xc3", 9, &out));
    assert_int_equal(out.n, 8);
    assert_memory_equal(out.data, "e\xff\xcc\x81 \xc3\xa9\xc3", 8);
    hdl_buf_deinit(&out);
}

/* Half a million marks in alternating classes: a sort by exchange would take minutes. */
static void test_nfc_of_many_marks(void **state)
{
    (void)state;
    enum { N = 1 << 18 };
    hdl_buf text = {0}, out = {0};
    hdl_buf_puts(&text, "x");
    for (int i = 0; i < N; i++) hdl_buf_puts(&text, "\xcc\x81\xcc\xa3");
    assert_ok(hdl_buf_status(&text));
    assert_ok(hdl_unicode_nfc(text.data, text.n, &out));
    /* the marks below come first, the first of them joins the x's nothing: x has no such form */
    assert_int_equal(out.n, text.n);
    assert_memory_equal(out.data + 1, "\xcc\xa3\xcc\xa3", 4);
    assert_memory_equal(out.data + out.n - 4, "\xcc\x81\xcc\x81", 4);
    hdl_buf_deinit(&text);
    hdl_buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_nfc_of_broken_text),
        cmocka_unit_test(test_nfc_of_many_marks),
    };
    return cmocka_run_group_tests_name("unicode", tests, NULL, NULL);
}
