/* test_gguf.c - the GGUF reader: what it reads, and what it must refuse, each with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/gguf.h"
#include "tensor/quant.h"
#include "tiny_model.h"

enum {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    BOOL = 7,
    STRING = 8,
    ARRAY = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12
};

static char folder[512], path[600];

static int set_up(void **state)
{
    (void)state;
    bool is_ok = tiny_make_folder(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/test.gguf", folder);
    return is_ok ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return 0;
}

/* --- files made by hand -------------------------------------------------------------------- */

static void put(hdl_buf *b, const void *bytes, int64_t n)
{
    hdl_buf_add(b, bytes, n);
}

static void put32(hdl_buf *b, uint32_t x)
{
    put(b, &x, 4);
}

static void put64(hdl_buf *b, uint64_t x)
{
    put(b, &x, 8);
}

static void put_text(hdl_buf *b, const char *text)
{
    put64(b, strlen(text));
    hdl_buf_puts(b, text);
}

static void put_header(hdl_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_kvs)
{
    hdl_buf_puts(b, "GGUF");
    put32(b, version);
    put64(b, n_tensors);
    put64(b, n_kvs);
}

static void put_kv(hdl_buf *b, const char *key, uint32_t type, const void *value, int64_t n)
{
    put_text(b, key);
    put32(b, type);
    put(b, value, n);
}

static void put_array(hdl_buf *b, const char *key, uint32_t type, uint64_t n, const void *values,
                      int64_t n_bytes)
{
    put_text(b, key);
    put32(b, ARRAY);
    put32(b, type);
    put64(b, n);
    put(b, values, n_bytes);
}

static void put_tensor(hdl_buf *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t at)
{
    put_text(b, name);
    put32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) put64(b, dims[i]);
    put32(b, type);
    put64(b, at);
}

static void pad(hdl_buf *b, int64_t alignment)
{
    while (b->n % alignment) put(b, "", 1);
}

/* Writes b, opens it, frees b. */
static heddle_status open_bytes(hdl_gguf **gguf, hdl_buf *b)
{
    assert_int_equal(hdl_buf_status(b), HEDDLE_OK);
    assert_true(tiny_write_file(path, b->data, b->n));
    hdl_buf_deinit(b);
    return hdl_gguf_open(gguf, path);
}

/* The file must be refused so, with a sentence that names the file and holds `part`. */
static void check_refused(hdl_buf *b, heddle_status status, const char *part)
{
    hdl_gguf *gguf = (hdl_gguf *)1;
    heddle_status got = open_bytes(&gguf, b);
    if (got != status || !strstr(hdl_last_error(), part) || !strstr(hdl_last_error(), path))
        fail_msg("status %s, sentence \"%s\": must be %s and hold \"%s\"", hdl_status_name(got),
                 hdl_last_error(), hdl_status_name(status), part);
    assert_null(gguf);
}

/* --- what is read -------------------------------------------------------------------------- */

static void put_scalars(hdl_buf *b)
{
    put_kv(b, "a.u8", U8, &(uint8_t){200}, 1);
    put_kv(b, "a.i8", I8, &(int8_t){-100}, 1);
    put_kv(b, "a.u16", U16, &(uint16_t){60000}, 2);
    put_kv(b, "a.i16", I16, &(int16_t){-30000}, 2);
    put_kv(b, "a.u32", U32, &(uint32_t){4000000000u}, 4);
    put_kv(b, "a.i32", I32, &(int32_t){-2000000000}, 4);
    put_kv(b, "a.u64", U64, &(uint64_t){1ull << 40}, 8);
    put_kv(b, "a.i64", I64, &(int64_t){-(1ll << 40)}, 8);
    put_kv(b, "a.huge", U64, &(uint64_t){1ull << 63}, 8);
    put_kv(b, "a.f32", F32, &(float){0.25f}, 4);
    put_kv(b, "a.f64", F64, &(double){-1e300}, 8);
    put_kv(b, "a.bool", BOOL, &(uint8_t){1}, 1);
    put_text(b, "a.text");
    put32(b, STRING);
    put_text(b, "word");
    put_text(b, "a.empty");
    put32(b, STRING);
    put_text(b, "");
}

static void test_scalars(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"a.u8", 200},        {"a.i8", -100},          {"a.u16", 60000},
                {"a.i16", -30000},    {"a.u32", 4000000000},   {"a.i32", -2000000000},
                {"a.u64", 1ll << 40}, {"a.i64", -(1ll << 40)}, {"a.bool", 1}};
    for (uint32_t version = 2; version <= 3; version++) {
        hdl_buf b = {0};
        hdl_gguf *gguf;
        hdl_text text;
        int64_t whole;
        double num;
        put_header(&b, version, 0, 14);
        put_scalars(&b);
        assert_int_equal(open_bytes(&gguf, &b), HEDDLE_OK);
        for (int i = 0; i < HDL_COUNT(ints); i++) {
            assert_true(hdl_gguf_int(gguf, ints[i].key, &whole));
            assert_true(whole == ints[i].value);
        }
        assert_true(hdl_gguf_num(gguf, "a.f32", &num) && num == 0.25);
        assert_true(hdl_gguf_num(gguf, "a.f64", &num) && num == -1e300);
        assert_true(hdl_gguf_str(gguf, "a.text", &text) && text.n == 4 && !memcmp(text.data, "word", 4));
        assert_true(hdl_gguf_str(gguf, "a.empty", &text) && text.n == 0);
        assert_false(hdl_gguf_int(gguf, "a.huge", &whole));
        hdl_clear_error();
        assert_false(hdl_gguf_int(gguf, "a.none", &whole)); /* absent: no sentence */
        assert_string_equal(hdl_last_error(), "");
        assert_false(hdl_gguf_int(gguf, "a.text", &whole)); /* of another type: a sentence */
        assert_non_null(strstr(hdl_last_error(), "a.text"));
        assert_false(hdl_gguf_num(gguf, "a.u8", &num));
        assert_false(hdl_gguf_str(gguf, "a.bool", &text));
        assert_int_equal(hdl_gguf_array_n(gguf, "a.text"), -1);
        assert_int_equal(hdl_gguf_n_tensors(gguf), 0);
        hdl_gguf_close(gguf);
    }
}

static void test_arrays(void **state)
{
    (void)state;
    hdl_buf b = {0}, texts = {0};
    hdl_gguf *gguf;
    int64_t whole, cursor = 0;
    double num;
    hdl_text text;
    put_text(&texts, "one");
    put_text(&texts, "");
    put_text(&texts, "three");
    put_header(&b, 3, 0, 5);
    put_array(&b, "z.ints", I16, 3, (int16_t[]){-1, 0, 7}, 6);
    put_array(&b, "z.nums", F32, 2, (float[]){0.5f, -2}, 8);
    put_array(&b, "z.bools", BOOL, 2, (uint8_t[]){1, 0}, 2);
    put_array(&b, "z.texts", STRING, 3, texts.data, texts.n);
    put_array(&b, "z.none", STRING, 0, "", 0);
    hdl_buf_deinit(&texts);
    assert_int_equal(open_bytes(&gguf, &b), HEDDLE_OK);
    assert_int_equal(hdl_gguf_array_n(gguf, "z.ints"), 3);
    assert_true(hdl_gguf_array_int(gguf, "z.ints", 0, &whole) && whole == -1);
    assert_true(hdl_gguf_array_int(gguf, "z.ints", 2, &whole) && whole == 7);
    assert_false(hdl_gguf_array_int(gguf, "z.ints", 3, &whole));
    assert_false(hdl_gguf_array_int(gguf, "z.ints", -1, &whole));
    assert_false(hdl_gguf_array_num(gguf, "z.ints", 0, &num));
    assert_true(hdl_gguf_array_num(gguf, "z.nums", 1, &num) && num == -2);
    assert_true(hdl_gguf_array_int(gguf, "z.bools", 0, &whole) && whole == 1);
    static const char *const want[] = {"one", "", "three"};
    for (int i = 0; i < 3; i++) {
        assert_true(hdl_gguf_array_next_str(gguf, "z.texts", &cursor, &text));
        assert_true(text.n == (int64_t)strlen(want[i]) && !memcmp(text.data, want[i], (size_t)text.n));
    }
    assert_false(hdl_gguf_array_next_str(gguf, "z.texts", &cursor, &text));
    cursor = 0;
    assert_false(hdl_gguf_array_next_str(gguf, "z.none", &cursor, &text));
    assert_int_equal(hdl_gguf_array_n(gguf, "z.none"), 0);
    for (cursor = -1; cursor < 40; cursor++) { /* a cursor that is not ours stays inside */
        int64_t at = cursor;
        if (hdl_gguf_array_next_str(gguf, "z.texts", &at, &text)) assert_true(at <= 3 * 8 + 8);
    }
    hdl_gguf_close(gguf);
}

static void test_tensors(void **state)
{
    (void)state;
    hdl_buf b = {0};
    hdl_gguf *gguf;
    hdl_tensor t;
    float x[24], y[24];
    for (int i = 0; i < 24; i++) x[i] = (float)i;
    put_header(&b, 3, 3, 1);
    put_kv(&b, "general.alignment", U32, &(uint32_t){64}, 4);
    put_tensor(&b, "zeta", 3, (uint64_t[]){4, 3, 2}, 0, 0);
    put_tensor(&b, "alpha", 1, (uint64_t[]){32}, 8, 128);
    put_tensor(&b, "mid", 4, (uint64_t[]){2, 1, 1, 1}, 30, 192);
    pad(&b, 64);
    put(&b, x, sizeof x);
    pad(&b, 64);
    for (int i = 0; i < 68; i++) put(&b, "\x3c", 1);
    int64_t size = b.n;
    assert_int_equal(open_bytes(&gguf, &b), HEDDLE_OK);
    assert_int_equal(hdl_gguf_file_bytes(gguf), size);
    assert_int_equal(hdl_gguf_n_tensors(gguf), 3);
    assert_string_equal(hdl_gguf_tensor_at(gguf, 0, &t), "zeta"); /* the file's order */
    assert_true(t.dtype == HDL_F32 && t.n_cols == 4 && t.n_rows == 6 && t.row_bytes == 16);
    hdl_dequant_row(HDL_F32, t.data, y, 24);
    assert_memory_equal(x, y, sizeof x);
    assert_true(hdl_gguf_tensor(gguf, "alpha", &t));
    assert_true(t.dtype == HDL_Q8_0 && t.n_cols == 32 && t.n_rows == 1 && t.row_bytes == 34);
    assert_int_equal(hdl_gguf_find_tensor(gguf, "mid"), 2);
    assert_false(hdl_gguf_tensor(gguf, "beta", &t));
    assert_null(t.data);
    hdl_gguf_close(gguf);
}

/* --- what is refused ----------------------------------------------------------------------- */

static void test_bad_headers(void **state)
{
    (void)state;
    hdl_buf b = {0};
    hdl_gguf *gguf;
    assert_int_equal(hdl_gguf_open(&gguf, "/nonexistent/model.gguf"), HEDDLE_E_IO);
    assert_non_null(strstr(hdl_last_error(), "/nonexistent/model.gguf"));
    assert_int_equal(hdl_gguf_open(&gguf, folder), HEDDLE_E_IO);
    check_refused(&b, HEDDLE_E_FORMAT, "magic");
    hdl_buf_puts(&b, "GGML0000000000000000000000000000");
    check_refused(&b, HEDDLE_E_FORMAT, "not a GGUF file");
    put_header(&b, 1, 0, 0);
    check_refused(&b, HEDDLE_E_UNSUPPORTED, "version 1: must be in 2..3");
    put_header(&b, 4, 0, 0);
    check_refused(&b, HEDDLE_E_UNSUPPORTED, "version 4");
    put_header(&b, 3u << 24, 0, 0);
    check_refused(&b, HEDDLE_E_UNSUPPORTED, "big-endian");
    put_header(&b, 3, 1ull << 60, 0);
    check_refused(&b, HEDDLE_E_FORMAT, "number of tensors 1152921504606846976");
    put_header(&b, 3, 0, UINT64_MAX);
    check_refused(&b, HEDDLE_E_FORMAT, "number of metadata entries 18446744073709551615");
}

static void start_kv(hdl_buf *b, uint64_t n_kvs)
{
    put_header(b, 3, 0, n_kvs);
}

static void test_bad_metadata(void **state)
{
    (void)state;
    static const char zeros[256];
    hdl_buf b = {0};
    start_kv(&b, 1);
    put64(&b, 1ull << 40); /* key length */
    put(&b, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "key length 1099511627776");
    start_kv(&b, 1);
    put64(&b, 0);
    put(&b, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "key length 0");
    start_kv(&b, 1);
    put_kv(&b, "bad\x1bkey", U32, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "0x1b");
    start_kv(&b, 1);
    put_kv(&b, "key", 13, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "value type 13");
    start_kv(&b, 1);
    put_kv(&b, "key", BOOL, "\2", 1);
    check_refused(&b, HEDDLE_E_FORMAT, "not a boolean");
    start_kv(&b, 1);
    put_text(&b, "key");
    put32(&b, STRING);
    put64(&b, UINT64_MAX);
    check_refused(&b, HEDDLE_E_FORMAT, "18446744073709551615");
    start_kv(&b, 1);
    put_array(&b, "key", ARRAY, 1, zeros, 64);
    check_refused(&b, HEDDLE_E_UNSUPPORTED, "array of arrays");
    start_kv(&b, 1);
    put_array(&b, "key", U64, 9, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "9 elements of 8 bytes");
    start_kv(&b, 1);
    put_array(&b, "key", STRING, 60, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "key");
    start_kv(&b, 1);
    put_array(&b, "key", F64, 1ull << 61, zeros, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "array length 2305843009213693952");
    start_kv(&b, 2);
    put_kv(&b, "same.key", U32, zeros, 4);
    put_kv(&b, "same.key", U8, zeros, 1);
    check_refused(&b, HEDDLE_E_FORMAT, "same.key: is there twice");
}

static void test_bad_alignment(void **state)
{
    (void)state;
    static const struct {
        uint32_t value;
        const char *part;
    } cases[] = {
        {0, "alignment 0"}, {4, "alignment 4"}, {48, "alignment 48"}, {1u << 31, "alignment 2147483648"}};
    hdl_buf b = {0};
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        start_kv(&b, 1);
        put_kv(&b, "general.alignment", U32, &cases[i].value, 4);
        check_refused(&b, HEDDLE_E_FORMAT, cases[i].part);
    }
    start_kv(&b, 1);
    put_kv(&b, "general.alignment", F32, &(float){32}, 4);
    check_refused(&b, HEDDLE_E_FORMAT, "general.alignment");
}

/* One tensor of these dimensions, type and offset, with 128 bytes of data. */
static void put_one(hdl_buf *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                    uint64_t at)
{
    static const char zeros[128];
    put_header(b, 3, 1, 0);
    put_tensor(b, name, n_dims, dims, type, at);
    pad(b, 32);
    put(b, zeros, sizeof zeros);
}

static void test_bad_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t n_dims;
        uint64_t dims[5];
        uint32_t type;
        uint64_t at;
        heddle_status status;
        const char *part;
    } cases[] = {
        {"t", 0, {0}, 0, 0, HEDDLE_E_FORMAT, "0 dimensions: must be in 1..4"},
        {"t", 5, {1, 1, 1, 1, 1}, 0, 0, HEDDLE_E_FORMAT, "5 dimensions"},
        {"t", 2, {4, 0}, 0, 0, HEDDLE_E_FORMAT, "dimension 1 is 0"},
        {"t", 1, {UINT64_MAX}, 0, 0, HEDDLE_E_FORMAT, "dimension 0 is -1"},
        {"t", 3, {2, 1ull << 32, 1ull << 32}, 0, 0, HEDDLE_E_FORMAT, "below 2^63"},
        {"t", 2, {1ull << 32, 1ull << 32}, 0, 0, HEDDLE_E_FORMAT, "below 2^63"},
        {"t", 1, {1ull << 62}, 0, 0, HEDDLE_E_FORMAT, "2^63"},
        {"t", 1, {33}, 0, 0, HEDDLE_E_FORMAT, "needs 132 bytes"},
        {"t", 1, {4}, 0, 128, HEDDLE_E_FORMAT, "needs 16 bytes"},
        {"t", 1, {4}, 0, 8, HEDDLE_E_FORMAT, "offset 8: must be a multiple of 32"},
        {"t", 1, {4}, 0, 1ull << 63, HEDDLE_E_FORMAT, "offset"},
        {"t", 1, {4}, 0, INT64_MAX - 31, HEDDLE_E_FORMAT, "needs 16 bytes"},
        {"t", 1, {31}, 2, 0, HEDDLE_E_FORMAT, "q4_0 needs a multiple of 32"},
        {"t", 1, {32}, 12, 0, HEDDLE_E_FORMAT, "q4_K needs a multiple of 256"},
        {"tensor.odd", 1, {32}, 20, 0, HEDDLE_E_UNSUPPORTED, "tensor.odd: type 20 (IQ4_NL) is not supported"},
        {"t", 1, {32}, 39, 0, HEDDLE_E_UNSUPPORTED, "type 39 (MXFP4)"},
        {"t", 1, {32}, 4, 0, HEDDLE_E_UNSUPPORTED, "type 4 (unknown)"},
        {"t", 1, {32}, UINT32_MAX, 0, HEDDLE_E_UNSUPPORTED, "type 4294967295 (unknown)"},
        {"", 1, {32}, 0, 0, HEDDLE_E_FORMAT, "tensor name length 0"},
        {"caf\xc3\xa9", 1, {32}, 0, 0, HEDDLE_E_FORMAT, "printable ASCII"},
    };
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        hdl_buf b = {0};
        put_one(&b, cases[i].name, cases[i].n_dims, cases[i].dims, cases[i].type, cases[i].at);
        check_refused(&b, cases[i].status, cases[i].part);
    }
    hdl_buf b = {0};
    put_header(&b, 3, 2, 0);
    put_tensor(&b, "twin", 1, (uint64_t[]){4}, 0, 0);
    put_tensor(&b, "twin", 1, (uint64_t[]){4}, 0, 32);
    pad(&b, 32);
    put(&b, (char[64]){0}, 64);
    check_refused(&b, HEDDLE_E_FORMAT, "twin: is there twice");
}

/* --- faults -------------------------------------------------------------------------------- */

static const tiny_options small = {
    .dtype = HDL_Q4_0, .n_layers = 1, .hidden_size = 32, .n_heads = 2, .n_kv_heads = 1, .n_ff = 32};

/* A file cut at any byte is refused with a sentence, never read past its end. */
static void test_truncation_at_every_byte(void **state)
{
    (void)state;
    hdl_buf b = {0};
    assert_true(tiny_gguf_bytes(&b, &small));
    int64_t size = b.n, live = hdl_mem_live_bytes();
    hdl_gguf *gguf;
    assert_true(tiny_write_file(path, b.data, b.n));
    assert_int_equal(hdl_gguf_open(&gguf, path), HEDDLE_OK);
    hdl_gguf_close(gguf);
    for (int64_t n = size - 1; n >= 0; n--) {
        assert_int_equal(truncate(path, n), 0);
        hdl_clear_error();
        if (hdl_gguf_open(&gguf, path) != HEDDLE_E_FORMAT || !strstr(hdl_last_error(), path))
            fail_msg("cut at byte %lld of %lld: \"%s\"", (long long)n, (long long)size, hdl_last_error());
        assert_null(gguf);
    }
    assert_int_equal(hdl_mem_live_bytes(), live);
    hdl_buf_deinit(&b);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    assert_true(tiny_write_gguf(path, &small));
    int64_t live = hdl_mem_live_bytes(), n = 1;
    hdl_gguf *gguf;
    for (;; n++) {
        hdl_mem_fail_at(n);
        heddle_status status = hdl_gguf_open(&gguf, path);
        hdl_mem_fail_at(0);
        if (!status) break;
        assert_int_equal(status, HEDDLE_E_NOMEM);
        assert_null(gguf);
        assert_int_equal(hdl_mem_live_bytes(), live);
    }
    assert_true(n > 3);
    hdl_gguf_close(gguf);
}

/* Reads everything a reader can. */
static void read_all(const hdl_gguf *gguf)
{
    hdl_tensor t;
    float row[256];
    for (int64_t i = 0; i < hdl_gguf_n_tensors(gguf); i++) {
        assert_non_null(hdl_gguf_tensor_at(gguf, i, &t));
        const char *last = (const char *)t.data + (t.n_rows - 1) * t.row_bytes;
        if (t.n_cols <= HDL_COUNT(row)) hdl_dequant_row(t.dtype, last, row, t.n_cols);
    }
    hdl_text text;
    for (int64_t cursor = 0; hdl_gguf_array_next_str(gguf, "tokenizer.ggml.tokens", &cursor, &text);)
        if (text.n) assert_true(text.data[text.n - 1] || true);
}

/* A damaged byte anywhere before the data gives a sentence or another valid file. */
static void test_damaged_bytes(void **state)
{
    (void)state;
    hdl_buf b = {0};
    hdl_gguf *gguf;
    assert_true(tiny_gguf_bytes(&b, &small));
    assert_true(tiny_write_file(path, b.data, b.n));
    int64_t live = hdl_mem_live_bytes();
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    for (int64_t i = 0; i < HDL_MIN(b.n, 16384); i++) {
        char damaged = (char)(b.data[i] ^ (1 << i % 8));
        assert_int_equal(pwrite(fileno(file), &damaged, 1, i), 1);
        hdl_clear_error();
        if (hdl_gguf_open(&gguf, path))
            assert_non_null(strstr(hdl_last_error(), path));
        else
            read_all(gguf);
        hdl_gguf_close(gguf);
        assert_int_equal(pwrite(fileno(file), &b.data[i], 1, i), 1);
    }
    fclose(file);
    assert_int_equal(hdl_mem_live_bytes(), live);
    hdl_buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_bad_metadata),
        cmocka_unit_test(test_bad_alignment),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_truncation_at_every_byte),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_damaged_bytes),
    };
    return cmocka_run_group_tests_name("gguf", tests, set_up, tear_down);
}
