/* gguf.c - the GGUF reader.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kvs
 *   n_kvs x     string key | u32 type | value         string: u64 length | bytes
 *                                                     array:  u32 element type | u64 n | elements
 *   n_tensors x string name | u32 n_dims | u64 dims[n_dims], fastest first | u32 type | u64 offset
 *   padding to general.alignment | tensor data, offsets counted from here
 *
 * open() walks all of it once through `reader`, which never passes the end of the mapping, and
 * keeps one entry per key and per tensor; array elements are stepped over, not indexed, so that a
 * vocabulary of 262,144 strings costs one pass over its lengths. Everything is little-endian.
 * Keys and tensor names are printable ASCII (the specification says ASCII for keys), so messages
 * may show them as they are. */
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/mapfile.h"
#include "base/mem.h"

enum { MIN_VERSION = 2, MAX_VERSION = 3, MAX_DIMS = 4, MAX_NAME = 255, MAX_KEY = 65535 };
enum { DEFAULT_ALIGNMENT = 32, MIN_ALIGNMENT = 8, MAX_ALIGNMENT = 1 << 24 };
enum { MIN_KV_BYTES = 8 + 1 + 4 + 1, MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };

typedef enum value_type {
    V_U8,
    V_I8,
    V_U16,
    V_I16,
    V_U32,
    V_I32,
    V_F32,
    V_BOOL,
    V_STRING,
    V_ARRAY,
    V_U64,
    V_I64,
    V_F64,
    N_VALUE_TYPES
} value_type;

static const struct {
    const char *name;
    int size; /* bytes; 0 = variable */
} value_types[N_VALUE_TYPES] = {
    {"u8", 1},   {"i8", 1},   {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
    {"bool", 1}, {"text", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8},
};

typedef struct kv {
    hdl_text key;
    value_type type; /* of the value, or of the elements */
    bool is_array;
    int64_t n;           /* elements; 1 for a scalar */
    const uint8_t *data; /* the value, or the first element */
    int64_t n_bytes;     /* of all elements */
} kv;

typedef struct tensor_entry {
    char *name; /* in hdl_gguf.names */
    hdl_tensor view;
} tensor_entry;

struct hdl_gguf {
    hdl_mapfile map;
    kv *kvs; /* [n_kvs], sorted by key */
    int64_t n_kvs;
    tensor_entry *tensors;        /* [n_tensors], in the file's order */
    const tensor_entry **by_name; /* [n_tensors], sorted by name */
    int64_t n_tensors;
    char *names; /* all tensor names, NUL-terminated, one after another */
};

/* --- tensor types ------------------------------------------------------------------------ */

/* Type numbers of the specification; what has no dtype here is known by name only. */
static const struct {
    const char *name;
    hdl_dtype dtype;
} tensor_types[] = {
    [0] = {"F32", HDL_F32},          [1] = {"F16", HDL_F16},           [2] = {"Q4_0", HDL_Q4_0},
    [3] = {"Q4_1", HDL_Q4_1},        [6] = {"Q5_0", HDL_Q5_0},         [7] = {"Q5_1", HDL_Q5_1},
    [8] = {"Q8_0", HDL_Q8_0},        [9] = {"Q8_1", HDL_N_DTYPES},     [10] = {"Q2_K", HDL_N_DTYPES},
    [11] = {"Q3_K", HDL_N_DTYPES},   [12] = {"Q4_K", HDL_Q4_K},        [13] = {"Q5_K", HDL_Q5_K},
    [14] = {"Q6_K", HDL_Q6_K},       [15] = {"Q8_K", HDL_N_DTYPES},    [16] = {"IQ2_XXS", HDL_N_DTYPES},
    [17] = {"IQ2_XS", HDL_N_DTYPES}, [18] = {"IQ3_XXS", HDL_N_DTYPES}, [19] = {"IQ1_S", HDL_N_DTYPES},
    [20] = {"IQ4_NL", HDL_N_DTYPES}, [21] = {"IQ3_S", HDL_N_DTYPES},   [22] = {"IQ2_S", HDL_N_DTYPES},
    [23] = {"IQ4_XS", HDL_N_DTYPES}, [24] = {"I8", HDL_N_DTYPES},      [25] = {"I16", HDL_N_DTYPES},
    [26] = {"I32", HDL_N_DTYPES},    [27] = {"I64", HDL_N_DTYPES},     [28] = {"F64", HDL_N_DTYPES},
    [29] = {"IQ1_M", HDL_N_DTYPES},  [30] = {"BF16", HDL_BF16},        [34] = {"TQ1_0", HDL_N_DTYPES},
    [35] = {"TQ2_0", HDL_N_DTYPES},  [39] = {"MXFP4", HDL_N_DTYPES},   [40] = {"NVFP4", HDL_N_DTYPES},
    [41] = {"Q1_0", HDL_N_DTYPES},
};
static const char supported_types[] = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K";

/* --- reader ------------------------------------------------------------------------------ */

typedef struct reader {
    const hdl_mapfile *map;
    const char *path;
    int64_t pos;
} reader;

static int64_t bytes_left(const reader *r)
{
    return r->map->n_bytes - r->pos;
}

/* Copies n bytes to `out`; `what` names them in the message. */
static heddle_status read_bytes(reader *r, void *out, int64_t n, const char *what)
{
    if (n > bytes_left(r))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: ends inside %s at byte %lld: the file is cut short or damaged",
                        r->path, what, (long long)r->pos);
    memcpy(out, r->map->data + r->pos, (size_t)n);
    r->pos += n;
    return HEDDLE_OK;
}

/* A u64 length or count that must leave room for `unit` bytes each. */
static heddle_status read_count(reader *r, int64_t unit, const char *what, int64_t *out)
{
    uint64_t n = 0;
    HDL_TRY(read_bytes(r, &n, sizeof n, what));
    if (n > (uint64_t)(bytes_left(r) / unit))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %s %llu at byte %lld: the file has only %lld bytes left",
                        r->path, what, (unsigned long long)n, (long long)(r->pos - 8),
                        (long long)bytes_left(r));
    *out = (int64_t)n;
    return HEDDLE_OK;
}

static heddle_status read_text(reader *r, const char *what, hdl_text *out)
{
    HDL_TRY(read_count(r, 1, what, &out->n));
    out->data = (const char *)r->map->data + r->pos;
    r->pos += out->n;
    return HEDDLE_OK;
}

/* A key or tensor name: 1..max printable ASCII characters. */
static heddle_status read_name(reader *r, int64_t max, const char *what, hdl_text *out)
{
    int64_t at = r->pos;
    HDL_TRY(read_text(r, what, out));
    if (out->n < 1 || out->n > max)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %s %lld at byte %lld: must be in 1..%lld", r->path, what,
                        (long long)out->n, (long long)at, (long long)max);
    for (int64_t i = 0; i < out->n; i++)
        if (out->data[i] < 0x20 || out->data[i] > 0x7e)
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: the name at byte %lld: holds byte 0x%02x: must be printable ASCII", r->path,
                            (long long)at, (unsigned)(uint8_t)out->data[i]);
    return HEDDLE_OK;
}

/* --- metadata ---------------------------------------------------------------------------- */

/* Steps over the elements of entry->type and notes where they lie. */
static heddle_status read_elements(reader *r, kv *entry)
{
    int64_t start = r->pos;
    int size = value_types[entry->type].size;
    if (size) {
        if (entry->n > bytes_left(r) / size)
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: key %.*s: %lld elements of %d bytes, but the file has %lld bytes left",
                            r->path, (int)entry->key.n, entry->key.data, (long long)entry->n, size,
                            (long long)bytes_left(r));
        r->pos += entry->n * size;
    } else {
        heddle_status status = HEDDLE_OK;
        hdl_text text;
        for (int64_t i = 0; i < entry->n && !status; i++) status = read_text(r, "text length", &text);
        if (status)
            return HDL_FAIL(status, "%s, in key %.*s", hdl_last_error(), (int)entry->key.n, entry->key.data);
    }
    entry->data = r->map->data + start;
    entry->n_bytes = r->pos - start;
    for (int64_t i = 0; entry->type == V_BOOL && i < entry->n; i++)
        if (entry->data[i] > 1)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: key %.*s: byte %u is not a boolean: must be 0 or 1",
                            r->path, (int)entry->key.n, entry->key.data, entry->data[i]);
    return HEDDLE_OK;
}

static heddle_status read_kv(reader *r, kv *entry)
{
    uint32_t type;
    HDL_TRY(read_name(r, MAX_KEY, "key length", &entry->key));
    HDL_TRY(read_bytes(r, &type, sizeof type, "a value type"));
    entry->n = 1;
    entry->is_array = type == V_ARRAY;
    if (entry->is_array) {
        HDL_TRY(read_bytes(r, &type, sizeof type, "an element type"));
        if (type == V_ARRAY)
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "%s: key %.*s: is an array of arrays, which is not supported", r->path,
                            (int)entry->key.n, entry->key.data);
    }
    if (type >= N_VALUE_TYPES)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: key %.*s: value type %u: must be in 0..%d", r->path,
                        (int)entry->key.n, entry->key.data, type, N_VALUE_TYPES - 1);
    entry->type = (value_type)type;
    if (entry->is_array) HDL_TRY(read_count(r, 1, "array length", &entry->n));
    return read_elements(r, entry);
}

static int text_compare(hdl_text a, hdl_text b)
{
    int order = memcmp(a.data, b.data, (size_t)HDL_MIN(a.n, b.n));
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

static int kv_compare(const void *a, const void *b)
{
    return text_compare(((const kv *)a)->key, ((const kv *)b)->key);
}

static heddle_status read_metadata(hdl_gguf *gguf, reader *r)
{
    for (int64_t i = 0; i < gguf->n_kvs; i++) HDL_TRY(read_kv(r, &gguf->kvs[i]));
    qsort(gguf->kvs, (size_t)gguf->n_kvs, sizeof *gguf->kvs, kv_compare);
    for (int64_t i = 1; i < gguf->n_kvs; i++)
        if (kv_compare(&gguf->kvs[i - 1], &gguf->kvs[i]) == 0)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: key %.*s: is there twice", r->path, (int)gguf->kvs[i].key.n,
                            gguf->kvs[i].key.data);
    return HEDDLE_OK;
}

static const kv *find(const hdl_gguf *gguf, const char *key)
{
    kv wanted = {.key = {key, (int64_t)strlen(key)}};
    if (!gguf->n_kvs) return NULL;
    return bsearch(&wanted, gguf->kvs, (size_t)gguf->n_kvs, sizeof *gguf->kvs, kv_compare);
}

/* --- tensors ----------------------------------------------------------------------------- */

/* Resolves the type number of the tensor called name. */
static heddle_status resolve_type(const reader *r, const char *name, uint32_t type, hdl_dtype *out)
{
    bool is_known = type < (uint32_t)HDL_COUNT(tensor_types) && tensor_types[type].name;
    *out = is_known ? tensor_types[type].dtype : HDL_N_DTYPES;
    if (*out != HDL_N_DTYPES) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: tensor %s: type %u (%s) is not supported; supported are %s",
                    r->path, name, type, is_known ? tensor_types[type].name : "unknown", supported_types);
}

/* Reads dims, folds those above the first into rows; the data pointer is set later. */
static heddle_status read_shape(reader *r, const char *name, hdl_tensor *view)
{
    uint32_t n_dims;
    HDL_TRY(read_bytes(r, &n_dims, sizeof n_dims, "a tensor's number of dimensions"));
    if (n_dims < 1 || n_dims > MAX_DIMS)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: %u dimensions: must be in 1..%d", r->path, name,
                        n_dims, MAX_DIMS);
    view->n_cols = view->n_rows = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        int64_t dim, total;
        HDL_TRY(read_bytes(r, &dim, sizeof dim, "a tensor's dimensions"));
        bool is_bad = dim < 1 ||
                      __builtin_mul_overflow(i ? view->n_rows : 1, dim, i ? &view->n_rows : &view->n_cols);
        if (is_bad || __builtin_mul_overflow(view->n_rows, view->n_cols, &total))
            return HDL_FAIL(
                HEDDLE_E_FORMAT,
                "%s: tensor %s: dimension %u is %lld: must be at least 1 and the whole below 2^63", r->path,
                name, i, (long long)dim);
    }
    return HEDDLE_OK;
}

/* One tensor's entry; view.data gets its place in the data section as an offset for now. */
static heddle_status read_tensor(reader *r, tensor_entry *entry, char **names, int64_t *offset)
{
    hdl_text name;
    HDL_TRY(read_name(r, MAX_NAME, "tensor name length", &name));
    entry->name = *names;
    memcpy(entry->name, name.data, (size_t)name.n);
    *names += name.n + 1;
    hdl_tensor *view = &entry->view;
    HDL_TRY(read_shape(r, entry->name, view));
    uint32_t type;
    HDL_TRY(read_bytes(r, &type, sizeof type, "a tensor's type"));
    HDL_TRY(resolve_type(r, entry->name, type, &view->dtype));
    const hdl_dtype_traits *traits = hdl_dtype_of(view->dtype);
    if (view->n_cols % traits->block_elems)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: rows of %lld elements: %s needs a multiple of %d",
                        r->path, entry->name, (long long)view->n_cols, traits->name, traits->block_elems);
    int64_t total;
    if (__builtin_mul_overflow(view->n_cols / traits->block_elems, traits->block_bytes, &view->row_bytes) ||
        __builtin_mul_overflow(view->row_bytes, view->n_rows, &total))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: %lld x %lld elements: more than 2^63 bytes", r->path,
                        entry->name, (long long)view->n_rows, (long long)view->n_cols);
    return read_bytes(r, offset, sizeof *offset, "a tensor's offset");
}

static int tensor_compare(const void *a, const void *b)
{
    return strcmp((*(const tensor_entry *const *)a)->name, (*(const tensor_entry *const *)b)->name);
}

static heddle_status index_tensors(hdl_gguf *gguf, const char *path)
{
    for (int64_t i = 0; i < gguf->n_tensors; i++) gguf->by_name[i] = &gguf->tensors[i];
    qsort(gguf->by_name, (size_t)gguf->n_tensors, sizeof *gguf->by_name, tensor_compare);
    for (int64_t i = 1; i < gguf->n_tensors; i++)
        if (tensor_compare(&gguf->by_name[i - 1], &gguf->by_name[i]) == 0)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: is there twice", path, gguf->by_name[i]->name);
    return HEDDLE_OK;
}

static heddle_status read_alignment(const hdl_gguf *gguf, const char *path, int64_t *out)
{
    *out = DEFAULT_ALIGNMENT;
    if (!find(gguf, "general.alignment")) return HEDDLE_OK;
    if (!hdl_gguf_int(gguf, "general.alignment", out))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %s", path, hdl_last_error());
    if (*out < MIN_ALIGNMENT || *out > MAX_ALIGNMENT || (*out & (*out - 1)))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: general.alignment %lld: must be a power of two in %d..%d", path,
                        (long long)*out, MIN_ALIGNMENT, MAX_ALIGNMENT);
    return HEDDLE_OK;
}

/* Puts every tensor's data pointer after checking that its bytes are in the file. */
static heddle_status place_tensors(hdl_gguf *gguf, const reader *r, const int64_t *offsets, int64_t alignment)
{
    int64_t start = HDL_ALIGN_UP(r->pos, alignment);
    for (int64_t i = 0; i < gguf->n_tensors; i++) {
        tensor_entry *entry = &gguf->tensors[i];
        int64_t n_bytes = entry->view.row_bytes * entry->view.n_rows, at = offsets[i];
        if (at < 0 || at % alignment)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: tensor %s: offset %lld: must be a multiple of %lld",
                            r->path, entry->name, (long long)at, (long long)alignment);
        if (at > INT64_MAX - start || !hdl_mapfile_holds(&gguf->map, start + at, n_bytes))
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: tensor %s: needs %lld bytes at byte %lld + %lld, but the file "
                            "ends at %lld: it is cut "
                            "short or damaged",
                            r->path, entry->name, (long long)n_bytes, (long long)start, (long long)at,
                            (long long)gguf->map.n_bytes);
        entry->view.data = gguf->map.data + start + at;
    }
    return HEDDLE_OK;
}

static heddle_status read_tensors(hdl_gguf *gguf, reader *r)
{
    /* a name and its NUL are shorter than its entry in the file, which bounds the block of names */
    int64_t names_bytes = HDL_MIN(gguf->n_tensors * (MAX_NAME + 1), bytes_left(r));
    heddle_status status = HEDDLE_E_NOMEM;
    int64_t alignment;
    int64_t *offsets = hdl_calloc(gguf->n_tensors, sizeof *offsets);
    gguf->tensors = hdl_calloc(gguf->n_tensors, sizeof *gguf->tensors);
    gguf->by_name = hdl_calloc(gguf->n_tensors, sizeof *gguf->by_name);
    gguf->names = hdl_calloc(names_bytes, 1);
    if (!offsets || !gguf->tensors || !gguf->by_name || !gguf->names) goto done;
    char *names = gguf->names;
    for (int64_t i = 0; i < gguf->n_tensors; i++)
        if ((status = read_tensor(r, &gguf->tensors[i], &names, &offsets[i]))) goto done;
    if ((status = index_tensors(gguf, r->path))) goto done;
    if ((status = read_alignment(gguf, r->path, &alignment))) goto done;
    status = place_tensors(gguf, r, offsets, alignment);
done:
    hdl_free(offsets);
    return status;
}

/* --- open -------------------------------------------------------------------------------- */

static heddle_status read_header(hdl_gguf *gguf, reader *r)
{
    char magic[4];
    uint32_t version;
    HDL_TRY(read_bytes(r, magic, sizeof magic, "the magic number"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is not a GGUF file: its first bytes are not \"GGUF\"", r->path);
    HDL_TRY(read_bytes(r, &version, sizeof version, "the version"));
    if (version >= 1u << 24)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s: is a big-endian GGUF file; only little-endian ones can be read", r->path);
    if (version < MIN_VERSION || version > MAX_VERSION)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: GGUF version %u: must be in %d..%d", r->path, version,
                        MIN_VERSION, MAX_VERSION);
    HDL_TRY(read_count(r, MIN_TENSOR_BYTES, "number of tensors", &gguf->n_tensors));
    return read_count(r, MIN_KV_BYTES, "number of metadata entries", &gguf->n_kvs);
}

heddle_status hdl_gguf_open(hdl_gguf **out, const char *path)
{
    *out = NULL;
    hdl_gguf *gguf = hdl_calloc(1, sizeof *gguf);
    if (!gguf) return HEDDLE_E_NOMEM;
    reader r = {.map = &gguf->map, .path = path};
    heddle_status status = hdl_mapfile_open(&gguf->map, path);
    if (status) goto done;
    if ((status = read_header(gguf, &r))) goto done;
    gguf->kvs = hdl_calloc(gguf->n_kvs, sizeof *gguf->kvs);
    if (!gguf->kvs) {
        status = HEDDLE_E_NOMEM;
        goto done;
    }
    if ((status = read_metadata(gguf, &r))) goto done;
    if ((status = read_tensors(gguf, &r))) goto done;
    *out = gguf;
    gguf = NULL;
done:
    hdl_gguf_close(gguf);
    return status;
}

void hdl_gguf_close(hdl_gguf *gguf)
{
    if (!gguf) return;
    hdl_mapfile_close(&gguf->map);
    hdl_free(gguf->kvs);
    hdl_free(gguf->tensors);
    hdl_free(gguf->by_name);
    hdl_free(gguf->names);
    hdl_free(gguf);
}

int64_t hdl_gguf_file_bytes(const hdl_gguf *gguf)
{
    return gguf->map.n_bytes;
}

/* --- metadata getters -------------------------------------------------------------------- */

static bool refuse(const kv *entry, const char *wanted)
{
    hdl_fail(HEDDLE_E_FORMAT, "key %.*s: is %s%s, must be %s", (int)entry->key.n, entry->key.data,
             entry->is_array ? "an array of " : "", value_types[entry->type].name, wanted);
    return false;
}

/* Element i as an integer; false for floats, texts and what exceeds int64. */
static bool int_at(const kv *entry, int64_t i, int64_t *out)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        int64_t i64;
    } v = {0};
    int size = value_types[entry->type].size;
    memcpy(&v, entry->data + i * size, (size_t)size);
    switch (entry->type) {
        case V_BOOL:
        case V_U8: *out = v.u8; return true;
        case V_I8: *out = v.i8; return true;
        case V_U16: *out = v.u16; return true;
        case V_I16: *out = v.i16; return true;
        case V_U32: *out = v.u32; return true;
        case V_I32: *out = v.i32; return true;
        case V_I64: *out = v.i64; return true;
        case V_U64: *out = v.i64; return v.i64 >= 0;
        default: return false;
    }
}

static bool num_at(const kv *entry, int64_t i, double *out)
{
    if (entry->type == V_F64) {
        memcpy(out, entry->data + i * 8, sizeof *out);
    } else if (entry->type == V_F32) {
        float f;
        memcpy(&f, entry->data + i * 4, sizeof f);
        *out = (double)f;
    } else {
        return false;
    }
    return true;
}

bool hdl_gguf_int(const hdl_gguf *gguf, const char *key, int64_t *out)
{
    const kv *entry = find(gguf, key);
    if (!entry) return false;
    return (!entry->is_array && int_at(entry, 0, out)) || refuse(entry, "a whole number below 2^63");
}

bool hdl_gguf_num(const hdl_gguf *gguf, const char *key, double *out)
{
    const kv *entry = find(gguf, key);
    if (!entry) return false;
    return (!entry->is_array && num_at(entry, 0, out)) || refuse(entry, "a floating-point number");
}

bool hdl_gguf_str(const hdl_gguf *gguf, const char *key, hdl_text *out)
{
    const kv *entry = find(gguf, key);
    if (!entry) return false;
    if (entry->is_array || entry->type != V_STRING) return refuse(entry, "a text");
    *out = (hdl_text){(const char *)entry->data + 8, entry->n_bytes - 8};
    return true;
}

int64_t hdl_gguf_array_n(const hdl_gguf *gguf, const char *key)
{
    const kv *entry = find(gguf, key);
    return entry && entry->is_array ? entry->n : -1;
}

bool hdl_gguf_array_int(const hdl_gguf *gguf, const char *key, int64_t i, int64_t *out)
{
    const kv *entry = find(gguf, key);
    if (!entry || (entry->is_array && (i < 0 || i >= entry->n))) return false;
    return (entry->is_array && int_at(entry, i, out)) || refuse(entry, "an array of whole numbers");
}

bool hdl_gguf_array_num(const hdl_gguf *gguf, const char *key, int64_t i, double *out)
{
    const kv *entry = find(gguf, key);
    if (!entry || (entry->is_array && (i < 0 || i >= entry->n))) return false;
    return (entry->is_array && num_at(entry, i, out)) || refuse(entry, "an array of floating-point numbers");
}

bool hdl_gguf_array_next_str(const hdl_gguf *gguf, const char *key, int64_t *cursor, hdl_text *out)
{
    const kv *entry = find(gguf, key);
    if (!entry) return false;
    if (!entry->is_array || entry->type != V_STRING) return refuse(entry, "an array of texts");
    if (*cursor < 0 || *cursor > entry->n_bytes - 8) return false;
    /* lengths were checked at open; a cursor that is not ours could still point anywhere */
    memcpy(&out->n, entry->data + *cursor, sizeof out->n);
    if (out->n < 0 || out->n > entry->n_bytes - *cursor - 8) return false;
    out->data = (const char *)entry->data + *cursor + 8;
    *cursor += 8 + out->n;
    return true;
}

/* --- tensor getters ---------------------------------------------------------------------- */

int64_t hdl_gguf_find_tensor(const hdl_gguf *gguf, const char *name)
{
    int64_t low = 0, high = gguf->n_tensors;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(name, gguf->by_name[middle]->name);
        if (!order) return gguf->by_name[middle] - gguf->tensors;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

bool hdl_gguf_tensor(const hdl_gguf *gguf, const char *name, hdl_tensor *out)
{
    int64_t i = hdl_gguf_find_tensor(gguf, name);
    *out = i >= 0 ? gguf->tensors[i].view : (hdl_tensor){0};
    return i >= 0;
}

int64_t hdl_gguf_n_tensors(const hdl_gguf *gguf)
{
    return gguf->n_tensors;
}

const char *hdl_gguf_tensor_at(const hdl_gguf *gguf, int64_t i, hdl_tensor *out)
{
    *out = gguf->tensors[i].view;
    return gguf->tensors[i].name;
}
