#include "base/json.h"

#include <stdio.h>
#include <string.h>

#include "base/buf.h"

heddle_status hdl_json_parse(json_t **root, const char *text, int64_t n_bytes, const char *name)
{
    json_error_t error;
    *root = NULL;
    for (int64_t i = 0; i <= n_bytes; i++) {
        if (i == n_bytes) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is empty", name);
        if (!strchr(" \t\r\n", text[i]) || !text[i]) break;
    }
    *root = json_loadb(text, (size_t)n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (*root) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_FORMAT, "%s: line %d, column %d: %s", name, error.line, error.column,
                    error.text);
}

static const char *dot(const char *path)
{
    return *path ? "." : "";
}

heddle_status hdl_json_int(const json_t *obj, const char *path, const char *key, int64_t min, int64_t max,
                           int64_t *out)
{
    const json_t *value = json_object_get(obj, key);
    if (!value) return HEDDLE_OK;
    if (!json_is_integer(value))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: must be a whole number", path, dot(path), key);
    int64_t n = json_integer_value(value);
    if (n < min || n > max)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s %lld: must be in %lld..%lld", path, dot(path), key,
                        (long long)n, (long long)min, (long long)max);
    *out = n;
    return HEDDLE_OK;
}

heddle_status hdl_json_num(const json_t *obj, const char *path, const char *key, double *out)
{
    const json_t *value = json_object_get(obj, key);
    if (!value) return HEDDLE_OK;
    if (!json_is_number(value))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: must be a number", path, dot(path), key);
    *out = json_number_value(value);
    return HEDDLE_OK;
}

heddle_status hdl_json_bool(const json_t *obj, const char *path, const char *key, bool *out)
{
    const json_t *value = json_object_get(obj, key);
    if (!value) return HEDDLE_OK;
    if (!json_is_boolean(value))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: must be true or false", path, dot(path), key);
    *out = json_is_true(value);
    return HEDDLE_OK;
}

heddle_status hdl_json_str(const json_t *obj, const char *path, const char *key, const char **out)
{
    const json_t *value = json_object_get(obj, key);
    if (!value) return HEDDLE_OK;
    if (!json_is_string(value))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: must be a text", path, dot(path), key);
    *out = json_string_value(value);
    return HEDDLE_OK;
}

/* Edit distance; longer words are compared by their first MAX_WORD bytes. */
static int distance(const char *a, const char *b)
{
    enum { MAX_WORD = 40 };
    int n = (int)strnlen(a, MAX_WORD), m = (int)strnlen(b, MAX_WORD);
    int row[MAX_WORD + 1];
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = HDL_MIN(diagonal + (a[i - 1] != b[j - 1]), HDL_MIN(row[j], row[j - 1]) + 1);
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

const char *hdl_nearest_word(const char *word, int64_t n, const char *const *words)
{
    enum { MAX_SLIP = 3, MAX_WORD = 40 };
    const char *nearest = NULL;
    char own[MAX_WORD + 1];
    int least = MAX_SLIP + 1;
    snprintf(own, sizeof own, "%.*s", (int)HDL_MIN(n, (int64_t)MAX_WORD), word);
    for (const char *const *w = words; *w; w++) {
        int d = distance(own, *w);
        if (d >= least || d >= (int)strlen(*w)) continue;
        least = d;
        nearest = *w;
    }
    return nearest;
}

/* A slip of the finger is named; a word that resembles nothing gets the whole list. */
static heddle_status unknown_member(const char *path, const char *key, const char *const *keys)
{
    const char *nearest = hdl_nearest_word(key, (int64_t)strlen(key), keys);
    if (nearest)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: is not a member known here; did you mean \"%s\"?", path,
                        dot(path), key, nearest);
    hdl_buf all = {0};
    for (const char *const *k = keys; *k; k++) hdl_buf_printf(&all, "%s%s", k == keys ? "" : ", ", *k);
    heddle_status status = hdl_buf_status(&all);
    if (!status)
        status = HDL_FAIL(HEDDLE_E_INVALID, "%s%s%s: is not a member known here: %s", path, dot(path), key,
                          all.data);
    hdl_buf_deinit(&all);
    return status;
}

heddle_status hdl_json_only(const json_t *obj, const char *path, const char *const *keys)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)obj, key, value)
    {
        bool is_known = false;
        for (const char *const *k = keys; *k; k++) is_known |= !strcmp(*k, key);
        if (!is_known) return unknown_member(path, key, keys);
    }
    return HEDDLE_OK;
}
