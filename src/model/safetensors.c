/* safetensors.c - the safetensors reader.
 *
 * A shard is mapped, its JSON header parsed and thrown away again; what stays is one entry per
 * tensor. After all shards are read the entries are sorted by name. The invariant, checked shard
 * by shard: tensors tile the data without gap or overlap, so none can reach outside the file. */
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/mapfile.h"
#include "base/mem.h"
#include "model/model_int.h"

/* The format's own bound on a header, and ours on an index, which holds the same names. */
enum { MAX_HEADER_BYTES = 100000000, MAX_INDEX_BYTES = 100000000, MAX_SHARDS = 1024 };
enum { MAX_DIMS = 8 };

typedef struct entry {
    char *name; /* owned */
    hdl_tensor view;
} entry;

struct hdl_safetensors {
    hdl_mapfile *shards; /* [n_shards] */
    int64_t n_shards;
    entry *entries; /* [n_entries], sorted by name once all shards are read */
    int64_t n_entries, capacity;
};

/* One shard while it is read. */
typedef struct shard_reader {
    hdl_safetensors *file;
    const hdl_mapfile *map;
    const char *path;
    int64_t data_at, data_bytes;
    bool has_q8_blocks; /* the metadata says that U8 rows are blocks of 32 weights in 34 bytes */
} shard_reader;

static const struct {
    const char *name;
    hdl_dtype dtype;
} dtypes[] = {{"F32", HDL_F32}, {"F16", HDL_F16}, {"BF16", HDL_BF16}};

static heddle_status read_dtype(const shard_reader *r, const char *name, const json_t *value, hdl_dtype *out)
{
    const char *text = json_string_value(value);
    if (text && r->has_q8_blocks && !strcmp(text, "U8")) {
        *out = HDL_Q8_0;
        return HEDDLE_OK;
    }
    for (int64_t i = 0; text && i < HDL_COUNT(dtypes); i++) {
        *out = dtypes[i].dtype;
        if (!strcmp(text, dtypes[i].name)) return HEDDLE_OK;
    }
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                    "%s: tensor %s: dtype %.32s is not supported; supported are F32, F16, BF16", r->path,
                    name, text ? text : "(none)");
}

/* A whole number of a list in the header; -1 when it is none. */
static int64_t int_at(const json_t *list, size_t i)
{
    const json_t *value = json_array_get(list, i);
    return json_is_integer(value) ? json_integer_value(value) : -1;
}

static heddle_status read_shape(const shard_reader *r, const char *name, const json_t *shape,
                                hdl_tensor *view)
{
    size_t n_dims = json_array_size(shape);
    if (!json_is_array(shape) || n_dims > MAX_DIMS)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: shape: must be a list of at most %d numbers",
                        r->path, name, MAX_DIMS);
    view->n_rows = 1;
    view->n_cols = n_dims ? int_at(shape, n_dims - 1) : 1;
    bool is_bad = view->n_cols < 0;
    for (size_t i = 0; i + 1 < n_dims && !is_bad; i++) {
        int64_t dim = int_at(shape, i);
        is_bad = dim < 0 || __builtin_mul_overflow(view->n_rows, dim, &view->n_rows);
    }
    int64_t total;
    is_bad = is_bad || __builtin_mul_overflow(view->n_cols, 4, &total) ||
             __builtin_mul_overflow(view->n_rows, total, &total);
    if (is_bad)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: tensor %s: shape: its sizes must be whole, positive and below 2^63 bytes",
                        r->path, name);
    if (view->dtype == HDL_Q8_0) {
        const hdl_dtype_traits *traits = hdl_dtype_of(HDL_Q8_0);
        if (view->n_cols % traits->block_bytes)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: rows of %lld bytes: must be blocks of %d bytes",
                            r->path, name, (long long)view->n_cols, traits->block_bytes);
        view->n_cols = view->n_cols / traits->block_bytes * traits->block_elems;
    }
    view->row_bytes = hdl_row_bytes(view->dtype, view->n_cols);
    return HEDDLE_OK;
}

static heddle_status read_entry(const shard_reader *r, const char *name, const json_t *value)
{
    hdl_safetensors *file = r->file;
    hdl_tensor view = {0};
    HDL_TRY(read_dtype(r, name, json_object_get(value, "dtype"), &view.dtype));
    HDL_TRY(read_shape(r, name, json_object_get(value, "shape"), &view));
    const json_t *offsets = json_object_get(value, "data_offsets");
    int64_t begin = int_at(offsets, 0), end = int_at(offsets, 1), n_bytes = view.n_rows * view.row_bytes;
    if (json_array_size(offsets) != 2 || begin < 0 || end < begin || end > r->data_bytes)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: tensor %s: data_offsets %lld, %lld: must ascend within the %lld bytes "
                        "of data that the "
                        "file has",
                        r->path, name, (long long)begin, (long long)end, (long long)r->data_bytes);
    if (end - begin != n_bytes)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: has %lld bytes of data, its shape needs %lld",
                        r->path, name, (long long)(end - begin), (long long)n_bytes);
    view.data = r->map->data + r->data_at + begin;
    if (file->n_entries == file->capacity) {
        int64_t capacity = HDL_MAX(2 * file->capacity, 64);
        entry *grown = hdl_realloc(file->entries, file->n_entries, capacity, sizeof *grown);
        if (!grown) return HEDDLE_E_NOMEM;
        file->entries = grown;
        file->capacity = capacity;
    }
    char *copy = hdl_strdup(name);
    if (!copy) return HEDDLE_E_NOMEM;
    file->entries[file->n_entries++] = (entry){copy, view};
    return HEDDLE_OK;
}

static int64_t entry_bytes(const entry *e)
{
    return e->view.n_rows * e->view.row_bytes;
}

/* By place in the data; an empty tensor comes before the one that starts where it does. */
static int place_compare(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    const char *p = x->view.data, *q = y->view.data;
    if (p != q) return p < q ? -1 : 1;
    return (entry_bytes(x) > entry_bytes(y)) - (entry_bytes(x) < entry_bytes(y));
}

/* The shard's entries, from `first` on, must tile its data. */
static heddle_status check_tiling(const shard_reader *r, int64_t first)
{
    entry *entries = r->file->entries;
    const uint8_t *data = r->map->data + r->data_at;
    int64_t at = 0;
    if (r->file->n_entries > first)
        qsort(entries + first, (size_t)(r->file->n_entries - first), sizeof *entries, place_compare);
    for (int64_t i = first; i < r->file->n_entries; i++) {
        int64_t begin = (const uint8_t *)entries[i].view.data - data;
        if (begin != at)
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: tensor %s: begins at byte %lld of the data, must begin at %lld", r->path,
                            entries[i].name, (long long)begin, (long long)at);
        at += entry_bytes(&entries[i]);
    }
    if (at != r->data_bytes)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: has %lld bytes of data, its tensors have %lld", r->path,
                        (long long)r->data_bytes, (long long)at);
    return HEDDLE_OK;
}

static heddle_status read_shard(hdl_safetensors *file, const char *path)
{
    hdl_mapfile *map = &file->shards[file->n_shards];
    HDL_TRY(hdl_mapfile_open(map, path));
    file->n_shards++;
    uint64_t n = 0;
    if (map->n_bytes < 8)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: has %lld bytes, too few for a safetensors file", path,
                        (long long)map->n_bytes);
    memcpy(&n, map->data, sizeof n);
    if (n < 2 || n > MAX_HEADER_BYTES || (int64_t)n > map->n_bytes - 8)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: header of %llu bytes: must be in 2..%lld, or this is not a safetensors file",
                        path, (unsigned long long)n,
                        (long long)HDL_MIN(map->n_bytes - 8, (int64_t)MAX_HEADER_BYTES));
    shard_reader r = {.file = file,
                      .map = map,
                      .path = path,
                      .data_at = 8 + (int64_t)n,
                      .data_bytes = map->n_bytes - 8 - (int64_t)n};
    int64_t first = file->n_entries;
    json_t *root = NULL, *value;
    heddle_status status = hdl_json_parse(&root, (const char *)map->data + 8, (int64_t)n, path);
    if (status) return status;
    if (!json_is_object(root)) status = HDL_FAIL(HEDDLE_E_FORMAT, "%s: header: must be an object", path);
    const char *name,
        *blocks = json_string_value(json_object_get(json_object_get(root, "__metadata__"), "heddle.weights"));
    r.has_q8_blocks = blocks && !strcmp(blocks, "q8_0");
    json_object_foreach(root, name, value)
    {
        if (!status && strcmp(name, "__metadata__") != 0) status = read_entry(&r, name, value);
    }
    json_decref(root);
    return status ? status : check_tiling(&r, first);
}

/* --- folders ----------------------------------------------------------------------------- */

static int text_compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of the index's weight_map, sorted; borrowed from it. A name must stay in
 * the folder: nobody's index may make us read another file. */
static heddle_status list_shards(const json_t *map, const char *path, const char **names, int64_t *n_names)
{
    const char *tensor;
    json_t *value;
    int64_t n = 0;
    json_object_foreach((json_t *)map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!name || !*name || *name == '.' || strchr(name, '/'))
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: weight_map.%s: must name a file of the same folder", path,
                            tensor);
        names[n++] = name;
    }
    if (n) qsort(names, (size_t)n, sizeof *names, text_compare);
    *n_names = 0;
    for (int64_t i = 0; i < n; i++)
        if (!i || strcmp(names[i], names[i - 1]) != 0) names[(*n_names)++] = names[i];
    if (*n_names < 1 || *n_names > MAX_SHARDS)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %lld files: must be in 1..%d", path, (long long)*n_names,
                        MAX_SHARDS);
    return HEDDLE_OK;
}

static heddle_status read_index(hdl_safetensors *file, const json_t *root, const char *dir, const char *path)
{
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: weight_map: must be an object", path);
    int64_t n = 0;
    heddle_status status = HEDDLE_E_NOMEM;
    const char **names = hdl_calloc((int64_t)json_object_size(map), sizeof *names);
    if (!names) goto done;
    if ((status = list_shards(map, path, names, &n))) goto done;
    file->shards = hdl_calloc(n, sizeof *file->shards);
    if (!file->shards) {
        status = HEDDLE_E_NOMEM;
        goto done;
    }
    for (int64_t i = 0; i < n && !status; i++) {
        char shard[HDL_MAX_PATH];
        status = hdl_join_path(shard, dir, names[i]);
        if (!status) status = read_shard(file, shard);
    }
done:
    hdl_free(names);
    return status;
}

static heddle_status read_single(hdl_safetensors *file, const char *path)
{
    file->shards = hdl_calloc(1, sizeof *file->shards);
    return file->shards ? read_shard(file, path) : HEDDLE_E_NOMEM;
}

static heddle_status read_folder(hdl_safetensors *file, const char *dir)
{
    char path[HDL_MAX_PATH];
    struct stat st;
    HDL_TRY(hdl_join_path(path, dir, "model.safetensors"));
    if (stat(path, &st) == 0) return read_single(file, path);
    HDL_TRY(hdl_join_path(path, dir, "model.safetensors.index.json"));
    if (stat(path, &st) != 0)
        return HDL_FAIL(HEDDLE_E_IO, "%s: holds neither model.safetensors nor model.safetensors.index.json",
                        dir);
    hdl_buf text = {0};
    json_t *root = NULL;
    heddle_status status = hdl_buf_read_file(&text, path, MAX_INDEX_BYTES);
    if (!status) status = hdl_json_parse(&root, text.data ? text.data : "", text.n, path);
    if (!status) status = read_index(file, root, dir, path);
    json_decref(root);
    hdl_buf_deinit(&text);
    return status;
}

static int name_compare(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static heddle_status sort_by_name(hdl_safetensors *file, const char *path)
{
    if (file->n_entries) qsort(file->entries, (size_t)file->n_entries, sizeof *file->entries, name_compare);
    for (int64_t i = 1; i < file->n_entries; i++)
        if (!strcmp(file->entries[i].name, file->entries[i - 1].name))
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: is there twice", path, file->entries[i].name);
    return HEDDLE_OK;
}

heddle_status hdl_safetensors_open(hdl_safetensors **out, const char *path)
{
    *out = NULL;
    struct stat st;
    hdl_safetensors *file = hdl_calloc(1, sizeof *file);
    if (!file) return HEDDLE_E_NOMEM;
    bool is_folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    heddle_status status = is_folder ? read_folder(file, path) : read_single(file, path);
    if (!status) status = sort_by_name(file, path);
    if (status)
        hdl_safetensors_close(file);
    else
        *out = file;
    return status;
}

void hdl_safetensors_close(hdl_safetensors *file)
{
    if (!file) return;
    for (int64_t i = 0; i < file->n_shards; i++) hdl_mapfile_close(&file->shards[i]);
    for (int64_t i = 0; i < file->n_entries; i++) hdl_free(file->entries[i].name);
    hdl_free(file->shards);
    hdl_free(file->entries);
    hdl_free(file);
}

int64_t hdl_safetensors_file_bytes(const hdl_safetensors *file)
{
    int64_t total = 0;
    for (int64_t i = 0; i < file->n_shards; i++) total += file->shards[i].n_bytes;
    return total;
}

int64_t hdl_safetensors_n_tensors(const hdl_safetensors *file)
{
    return file->n_entries;
}

int64_t hdl_safetensors_find_tensor(const hdl_safetensors *file, const char *name)
{
    int64_t low = 0, high = file->n_entries;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->entries[middle].name);
        if (!order) return middle;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

const char *hdl_safetensors_tensor_at(const hdl_safetensors *file, int64_t i, hdl_tensor *out)
{
    *out = file->entries[i].view;
    return file->entries[i].name;
}
