/* test_safetensors.c - the safetensors reader: single files, shards, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/safetensors.h"
#include "tensor/quant.h"
#include "tiny_model.h"

static char folder[512], path[600];

static int set_up(void **state)
{
    (void)state;
    bool is_ok = tiny_make_folder(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    return is_ok ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return 0;
}

static void write_file(const char *name, const char *header, int64_t n_data)
{
    char at[1024];
    static const char data[4096];
    hdl_buf b = {0};
    uint64_t n = strlen(header);
    hdl_buf_add(&b, &n, sizeof n);
    hdl_buf_puts(&b, header);
    hdl_buf_add(&b, data, n_data);
    snprintf(at, sizeof at, "%s/%s", folder, name);
    assert_true(tiny_write_file(at, b.data, b.n));
    hdl_buf_deinit(&b);
}

static void test_reads_tensors(void **state)
{
    (void)state;
    hdl_safetensors *file;
    hdl_tensor t;
    write_file("model.safetensors",
               "{\"__metadata__\":{\"format\":\"pt\"},"
               "\"zeta\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
               "\"alpha\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[24,34]},"
               "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[34,34]},"
               "\"deep\":{\"dtype\":\"F16\",\"shape\":[2,2,3],\"data_offsets\":[38,62]},"
               "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[34,38]}}",
               62);
    assert_int_equal(hdl_safetensors_open(&file, path), HEDDLE_OK);
    assert_int_equal(hdl_safetensors_n_tensors(file), 5);
    assert_string_equal(hdl_safetensors_tensor_at(file, 0, &t), "alpha"); /* sorted */
    assert_true(t.dtype == HDL_BF16 && t.n_rows == 1 && t.n_cols == 5 && t.row_bytes == 10);
    assert_int_equal(hdl_safetensors_find_tensor(file, "zeta"), 4);
    hdl_safetensors_tensor_at(file, 4, &t);
    assert_true(t.dtype == HDL_F32 && t.n_rows == 2 && t.n_cols == 3 && t.row_bytes == 12);
    hdl_safetensors_tensor_at(file, 1, &t);
    assert_true(t.dtype == HDL_F16 && t.n_rows == 4 && t.n_cols == 3);
    assert_int_equal(hdl_safetensors_find_tensor(file, "beta"), -1);
    hdl_safetensors_close(file);
}

static void check_refused(const char *where, heddle_status status, const char *part)
{
    hdl_safetensors *file = (hdl_safetensors *)1;
    int64_t live = hdl_mem_live_bytes();
    heddle_status got = hdl_safetensors_open(&file, where);
    if (got != status || !strstr(hdl_last_error(), part) || !strstr(hdl_last_error(), folder))
        fail_msg("status %s, sentence \"%s\": must be %s and hold \"%s\"", hdl_status_name(got),
                 hdl_last_error(), hdl_status_name(status), part);
    assert_null(file);
    assert_int_equal(hdl_mem_live_bytes(), live);
}

static void test_bad_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        int64_t n_data;
        heddle_status status;
        const char *part;
    } cases[] = {
        {"{", 0, HEDDLE_E_FORMAT, "header of 1 bytes"},
        {"{,}", 0, HEDDLE_E_FORMAT, "line 1, column"},
        {"[]", 0, HEDDLE_E_FORMAT, "must be an object"},
        {"{}", 4, HEDDLE_E_FORMAT, "has 4 bytes of data, its tensors have 0"},
        {"{\"t\":7}", 0, HEDDLE_E_UNSUPPORTED, "tensor t: dtype (none)"},
        {"{\"t\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, HEDDLE_E_UNSUPPORTED,
         "tensor t: dtype F64 is not supported; supported are F32, F16, BF16"},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, HEDDLE_E_FORMAT, "tensor t: shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, HEDDLE_E_FORMAT,
         "tensor t: shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, HEDDLE_E_FORMAT,
         "tensor t: shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         HEDDLE_E_FORMAT, "at most 8"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
         HEDDLE_E_FORMAT, "below 2^63"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, HEDDLE_E_FORMAT,
         "data_offsets 0, -1"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, HEDDLE_E_FORMAT,
         "data_offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, HEDDLE_E_FORMAT,
         "data_offsets 4, 0"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, HEDDLE_E_FORMAT,
         "within the 4 bytes of data"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, HEDDLE_E_FORMAT,
         "has 4 bytes of data, its shape needs 8"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,4]}}", 4,
         HEDDLE_E_FORMAT, "line 1"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         8, HEDDLE_E_FORMAT, "begins at byte 0 of the data, must begin at 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
         12, HEDDLE_E_FORMAT, "tensor b: begins at byte 8 of the data, must begin at 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, HEDDLE_E_FORMAT, "duplicate"},
    };
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        write_file("model.safetensors", cases[i].header, cases[i].n_data);
        check_refused(path, cases[i].status, cases[i].part);
    }
    assert_true(tiny_write_file(path, "", 0));
    check_refused(path, HEDDLE_E_FORMAT, "has 0 bytes");
    assert_true(tiny_write_file(path, "\377\377\377\377\377\377\377\377{}", 10));
    check_refused(path, HEDDLE_E_FORMAT, "header of 18446744073709551615 bytes");
    unlink(path);
    check_refused(path, HEDDLE_E_IO, "cannot be opened");
    check_refused(folder, HEDDLE_E_IO, "holds neither");
}

static void write_text(const char *name, const char *text)
{
    char at[1024];
    snprintf(at, sizeof at, "%s/%s", folder, name);
    assert_true(tiny_write_file(at, text, (int64_t)strlen(text)));
}

static void test_shards(void **state)
{
    (void)state;
    static const char index_name[] = "model.safetensors.index.json";
    char at[1024];
    hdl_safetensors *file;
    unlink(path);
    write_file("a.safetensors", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    write_file("b.safetensors", "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    write_text(index_name, "{\"weight_map\":{\"b\":\"b.safetensors\",\"a\":\"a.safetensors\"}}");
    assert_int_equal(hdl_safetensors_open(&file, folder), HEDDLE_OK);
    assert_int_equal(hdl_safetensors_n_tensors(file), 2);
    struct stat st;
    snprintf(at, sizeof at, "%s/a.safetensors", folder);
    assert_int_equal(stat(at, &st), 0);
    assert_int_equal(hdl_safetensors_file_bytes(file), 2 * st.st_size);
    hdl_safetensors_close(file);
    static const struct {
        const char *index;
        heddle_status status;
        const char *part;
    } cases[] = {
        {"{}", HEDDLE_E_FORMAT, "weight_map: must be an object"},
        {"{\"weight_map\":{}}", HEDDLE_E_FORMAT, "0 files: must be in 1..1024"},
        {"{\"weight_map\":{\"a\":7}}", HEDDLE_E_FORMAT, "weight_map.a: must name a file of the same folder"},
        {"{\"weight_map\":{\"a\":\"../a.safetensors\"}}", HEDDLE_E_FORMAT, "weight_map.a"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", HEDDLE_E_FORMAT, "weight_map.a"},
        {"{\"weight_map\":{\"a\":\"..\"}}", HEDDLE_E_FORMAT, "weight_map.a"},
        {"{\"weight_map\":{\"a\":\"none.safetensors\"}}", HEDDLE_E_IO, "none.safetensors"},
        {"{\"weight_map\":", HEDDLE_E_FORMAT, "line 1"},
        {"", HEDDLE_E_FORMAT, "is empty"},
    };
    for (int i = 0; i < HDL_COUNT(cases); i++) {
        write_text(index_name, cases[i].index);
        check_refused(folder, cases[i].status, cases[i].part);
    }
    write_file("b.safetensors", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    write_text(index_name, "{\"weight_map\":{\"b\":\"b.safetensors\",\"a\":\"a.safetensors\"}}");
    check_refused(folder, HEDDLE_E_FORMAT, "tensor a: is there twice");
    snprintf(at, sizeof at, "%s/%s", folder, index_name);
    unlink(at);
}

static const tiny_options small = {.dtype = HDL_F16,
                                   .n_layers = 1,
                                   .hidden_size = 16,
                                   .n_heads = 1,
                                   .n_kv_heads = 1,
                                   .n_ff = 32,
                                   .has_no_tokenizer = true};

static void test_truncation_at_every_byte(void **state)
{
    (void)state;
    hdl_safetensors *file;
    struct stat st;
    assert_true(tiny_write_safetensors(folder, &small));
    assert_int_equal(hdl_safetensors_open(&file, path), HEDDLE_OK);
    hdl_safetensors_close(file);
    assert_int_equal(stat(path, &st), 0);
    for (int64_t n = st.st_size - 1; n >= 0; n--) {
        assert_int_equal(truncate(path, n), 0);
        check_refused(path, HEDDLE_E_FORMAT, path);
    }
}

static void test_allocation_failures(void **state)
{
    (void)state;
    tiny_options sharded = small;
    sharded.n_shards = 2;
    unlink(path);
    assert_true(tiny_write_safetensors(folder, &sharded));
    int64_t live = hdl_mem_live_bytes(), n = 1;
    hdl_safetensors *file;
    for (;; n++) {
        hdl_mem_fail_at(n);
        heddle_status status = hdl_safetensors_open(&file, folder);
        hdl_mem_fail_at(0);
        if (!status) break;
        assert_int_equal(status, HEDDLE_E_NOMEM);
        assert_null(file);
        assert_int_equal(hdl_mem_live_bytes(), live);
    }
    assert_true(n > 10);
    hdl_safetensors_close(file);
}

static void test_damaged_bytes(void **state)
{
    (void)state;
    hdl_buf b = {0};
    assert_true(tiny_write_safetensors(folder, &small));
    assert_int_equal(hdl_buf_read_file(&b, path, 1 << 24), HEDDLE_OK);
    int64_t live = hdl_mem_live_bytes();
    FILE *disk = fopen(path, "r+b");
    assert_non_null(disk);
    for (int64_t i = 0; i < HDL_MIN(b.n, 4096); i++) {
        hdl_safetensors *file;
        char damaged = (char)(b.data[i] ^ (1 << i % 8));
        assert_int_equal(pwrite(fileno(disk), &damaged, 1, i), 1);
        hdl_clear_error();
        if (hdl_safetensors_open(&file, path)) assert_non_null(strstr(hdl_last_error(), path));
        for (int64_t j = 0; file && j < hdl_safetensors_n_tensors(file); j++) {
            hdl_tensor t;
            float row[256];
            hdl_safetensors_tensor_at(file, j, &t);
            if (t.n_cols <= 256 && t.n_rows)
                hdl_dequant_row(t.dtype, (const char *)t.data + (t.n_rows - 1) * t.row_bytes, row, t.n_cols);
        }
        hdl_safetensors_close(file);
        assert_int_equal(pwrite(fileno(disk), &b.data[i], 1, i), 1);
    }
    fclose(disk);
    assert_int_equal(hdl_mem_live_bytes(), live);
    hdl_buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_tensors),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_truncation_at_every_byte),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_damaged_bytes),
    };
    return cmocka_run_group_tests_name("safetensors", tests, set_up, tear_down);
}
