/* Stop strings: found whatever the pieces, nothing shown that should be held back. */
#include "engine/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static hdl_stop *make(const char *const *strings, int64_t n)
{
    hdl_stop *stop = NULL;
    if (hdl_stop_new(&stop, strings, n)) fail_msg("%s", hdl_last_error());
    return stop;
}

/* Feeds text in pieces of `step` bytes; the shown text, NUL-terminated, is the caller's. */
static hdl_buf run(hdl_stop *stop, const char *text, int64_t n, int64_t step, bool *is_stopped)
{
    hdl_buf out = {0};
    hdl_buf_add(&out, "", 0);
    *is_stopped = false;
    hdl_stop_reset(stop);
    for (int64_t i = 0; i < n && !*is_stopped; i += step)
        *is_stopped = hdl_stop_feed(stop, text + i, HDL_MIN(step, n - i), &out);
    hdl_stop_flush(stop, &out);
    return out;
}

/* Cut where the first stop string ends; of several that end there the longest. */
static int64_t naive(const char *text, int64_t n, const char *const *strings, int64_t n_strings,
                     bool *is_stopped)
{
    *is_stopped = false;
    for (int64_t end = 1; end <= n; end++) {
        int64_t longest = 0;
        for (int64_t s = 0; s < n_strings; s++) {
            int64_t len = (int64_t)strlen(strings[s]);
            if (len <= end && len > longest && !memcmp(text + end - len, strings[s], (size_t)len))
                longest = len;
        }
        *is_stopped = longest > 0;
        if (longest) return end - longest;
    }
    return n;
}

static void test_against_naive(void **state)
{
    (void)state;
    static const char *const sets[][4] = {
        {"ab", "abab", "ba", "aab"},
        {"aaa", "aab", "b", "abb"},
        {"abcabd", "bcab", "cabx", "d"},
        {"\xc3\xa9", "a\xc3", "bb", "c"},
    };
    uint32_t x = 5;
    for (int64_t round = 0; round < 4000; round++) {
        const char *const *strings = sets[round % 4];
        int64_t n_strings = round / 4 % 5;
        char text[41];
        int64_t n = (x = x * 1664525u + 1013904223u) >> 27;
        for (int64_t i = 0; i < n; i++)
            text[i] = "abcd\xc3\xa9xab"[(x = x * 1664525u + 1013904223u) >> 16 & 7];
        bool want_stop, got_stop;
        int64_t want = naive(text, n, strings, n_strings, &want_stop);
        hdl_stop *stop = make(strings, n_strings);
        for (int64_t step = 1; step <= 7; step += 2) {
            hdl_buf out = run(stop, text, n, step, &got_stop);
            assert_int_equal(got_stop, want_stop);
            assert_int_equal(out.n, want);
            assert_memory_equal(out.data, text, (size_t)want);
            hdl_buf_deinit(&out);
        }
        hdl_stop_free(stop);
    }
}

static void test_holds_back(void **state)
{
    (void)state;
    hdl_stop *stop = make((const char *const[]){"</answer>", "\n\nUser:"}, 2);
    hdl_buf out = {0};
    assert_false(hdl_stop_feed(stop, "42\n", 3, &out));
    assert_string_equal(out.data, "42");
    assert_false(hdl_stop_feed(stop, "\nUse", 4, &out));
    assert_string_equal(out.data, "42");
    assert_false(hdl_stop_feed(stop, "d </", 4, &out));
    assert_string_equal(out.data, "42\n\nUsed ");
    assert_true(hdl_stop_feed(stop, "answer> more", 12, &out));
    assert_true(hdl_stop_feed(stop, "and more", 8, &out));
    hdl_stop_flush(stop, &out);
    assert_string_equal(out.data, "42\n\nUsed ");
    hdl_buf_deinit(&out);
    hdl_stop_free(stop);
}

static void test_utf8(void **state)
{
    (void)state;
    hdl_stop *stop = make(NULL, 0);
    const char text[] = "a\xf0\x9f\xa7\xb5 \xc3\xa9\xe4\xb8\xad\xff\xe4z";
    hdl_buf out = {0};
    for (int64_t i = 0; i < (int64_t)sizeof text - 1; i++) {
        int64_t before = out.n;
        hdl_stop_feed(stop, text + i, 1, &out);
        /* never the first part of a character alone */
        if (out.n > before) assert_true(((uint8_t)out.data[before] & 0xc0) != 0x80);
    }
    assert_string_equal(out.data, text);
    hdl_stop_feed(stop, "\xf0\x9f", 2, &out);
    assert_string_equal(out.data, text);
    hdl_stop_flush(stop, &out);
    assert_int_equal(out.n, sizeof text - 1 + 2);
    hdl_buf_deinit(&out);
    hdl_stop_free(stop);
}

static void test_longest(void **state)
{
    (void)state;
    char text[HDL_MAX_STOP_BYTES + 2];
    memset(text, 'a', sizeof text);
    text[HDL_MAX_STOP_BYTES] = 0;
    hdl_stop *stop = make((const char *const[]){text}, 1);
    hdl_buf out = {0};
    assert_false(hdl_stop_feed(stop, text, HDL_MAX_STOP_BYTES - 1, &out));
    assert_int_equal(out.n, 0);
    assert_false(hdl_stop_feed(stop, "\xf0\x9f\xa7", 3, &out));
    assert_false(hdl_stop_feed(stop, text, HDL_MAX_STOP_BYTES - 1, &out));
    assert_true(hdl_stop_feed(stop, "a", 1, &out));
    assert_int_equal(out.n, HDL_MAX_STOP_BYTES - 1 + 3);
    hdl_buf_deinit(&out);
    hdl_stop_free(stop);
    text[HDL_MAX_STOP_BYTES] = 'a';
    text[HDL_MAX_STOP_BYTES + 1] = 0;
    assert_int_equal(hdl_stop_new(&stop, (const char *const[]){text}, 1), HEDDLE_E_INVALID);
    assert_int_equal(hdl_stop_new(&stop, (const char *const[]){""}, 1), HEDDLE_E_INVALID);
    assert_int_equal(hdl_stop_new(&stop, NULL, HDL_MAX_STOPS + 1), HEDDLE_E_INVALID);
    assert_null(stop);
    hdl_stop_free(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    int64_t live = hdl_mem_live_bytes();
    hdl_stop *stop = NULL;
    for (int64_t at = 1; !stop; at++) {
        hdl_mem_fail_at(at);
        heddle_status status = hdl_stop_new(&stop, (const char *const[]){"one", "two"}, 2);
        hdl_mem_fail_at(0);
        if (status) assert_int_equal(hdl_mem_live_bytes(), live);
    }
    hdl_stop_free(stop);
    assert_int_equal(hdl_mem_live_bytes(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_naive), cmocka_unit_test(test_holds_back), cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_longest),       cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
