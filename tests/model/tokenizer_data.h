/* tokenizer_data.h - golden files and model files for the tests of tokenizers and chat forms.
 * Formats: tests/golden/tokenizer/README.md. */
#ifndef HDL_TOKENIZER_DATA_H
#define HDL_TOKENIZER_DATA_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/tokenizer.h"

#define GOLDEN HDL_TEST_DATA "/golden/tokenizer/"
#define assert_ok(expr)                                                                                      \
    do {                                                                                                     \
        heddle_status status_ = (expr);                                                                      \
        if (status_) fail_msg("%s: %s", hdl_status_name(status_), hdl_last_error());                         \
    } while (0)

/* A whole file; the caller deinits. */
static inline hdl_buf read_file(const char *path)
{
    hdl_buf buf = {0};
    assert_ok(hdl_buf_read_file(&buf, path, INT64_C(1) << 30));
    return buf;
}

static inline hdl_buf read_golden(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", GOLDEN, name);
    return read_file(path);
}

/* Path of a model whose name contains `word`, "" if there is none. */
static inline const char *model_path(const char *file)
{
    static char path[4096];
    const char *dir = getenv("HEDDLE_TEST_MODELS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (dir)
        snprintf(path, sizeof path, "%s/%s", dir, file);
    else if (cache && *cache)
        snprintf(path, sizeof path, "%s/heddle/%s", cache, file);
    else
        snprintf(path, sizeof path, "%s/.cache/heddle/%s", home ? home : "", file);
    return access(path, R_OK) == 0 ? path : "";
}

#define SMOLLM2_FILE "SmolLM2-135M-Instruct.Q4_1.gguf"
#define GEMMA3_FILE  "gemma-3-270m-q4_k_m.gguf"

static inline hdl_tokenizer *open_tokenizer(const char *file)
{
    hdl_gguf *gguf = NULL;
    hdl_tokenizer *tok = NULL;
    const char *path = model_path(file);
    if (!*path) return NULL;
    assert_ok(hdl_gguf_open(&gguf, path));
    assert_ok(hdl_tokenizer_from_gguf(&tok, gguf));
    hdl_gguf_close(gguf);
    return tok;
}

/* Next column of a tab-separated row, NUL-terminated in place; *row moves behind it. */
static inline char *next_column(char **row)
{
    char *column = *row, *tab = strchr(column, '\t');
    *row = tab ? tab + 1 : column + strlen(column);
    if (tab) *tab = 0;
    return column;
}

/* Next line, NUL-terminated in place, comments skipped; NULL at the end. */
static inline char *next_row(char **text)
{
    while (**text) {
        char *line = *text, *end = strchr(line, '\n');
        *text = end ? end + 1 : line + strlen(line);
        if (end) *end = 0;
        if (*line && *line != '#') return line;
    }
    return NULL;
}

static inline hdl_buf from_hex(const char *hex, size_t n)
{
    hdl_buf buf = {0};
    hdl_buf_add(&buf, "", 0);
    if (n == 1 && *hex == '-') return buf;
    for (size_t i = 0; i + 1 < n; i += 2) {
        char two[3] = {hex[i], hex[i + 1], 0}, byte = (char)strtol(two, NULL, 16);
        hdl_buf_add(&buf, &byte, 1);
    }
    return buf;
}

static inline hdl_ids from_list(char *list)
{
    hdl_ids ids = {0};
    if (strcmp(list, "-") != 0)
        for (char *at = list; *at;) {
            int32_t id = (int32_t)strtol(at, &at, 10);
            assert_ok(hdl_ids_add(&ids, &id, 1));
        }
    return ids;
}

static inline void assert_ids(const hdl_ids *got, const int32_t *want, int64_t n, const char *what)
{
    for (int64_t i = 0; i < got->n && i < n; i++)
        if (got->data[i] != want[i])
            fail_msg("%s: id %lld is %d, must be %d", what, (long long)i, got->data[i], want[i]);
    if (got->n != n) fail_msg("%s: %lld ids, must be %lld", what, (long long)got->n, (long long)n);
}

static inline uint64_t fnv(const hdl_ids *ids)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    const uint8_t *bytes = (const uint8_t *)ids->data;
    for (int64_t i = 0; i < ids->n * 4; i++) h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
    return h;
}

#endif
