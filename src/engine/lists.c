/* lists.c - which tokens each row read, kept and given again.
 *
 *   file     "HDLLISTS", u32 version, u32 n_tokens, u64 identity of the model, i64 n_lists, i64 n_bytes,
 *            the lists, n_tokens i32 ids, the origin, u64 XXH3 of everything before it; version 1 had no
 *            tokens, version 2 no origin
 *   origin   u64 XXH3 of the plan's text, i32 bytes of its name, i32 mounts, i32 spans of tokens that no row
 *            may read, i32 0; the name; per mount the u64 sum of its document (0: unmounted); per span i64
 *            first, i64 end. No byte at all: heddle_lists_set_tokens was not called
 *   list     row, layer, n, then n ids as differences: whole numbers of 7 bits a byte, low ones first
 *
 * A record is a buffer that grows as rows go by; rows that a session gives up leave it again. One file may
 * name a row twice all the same: then the last time counts. A loaded one has an index sorted by (row,
 * layer). */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/newfile.h"
#include "engine/engine_int.h"

enum { LISTS_VERSION = 3, MAX_LISTS_BYTES = 1 << 30 };
static const char magic[8] = {'H', 'D', 'L', 'L', 'I', 'S', 'T', 'S'};

typedef struct list_entry {
    int64_t row, at; /* at: of the first id's byte */
    int32_t layer, n;
} list_entry;

struct heddle_lists {
    uint64_t model;
    hdl_buf bytes;
    int64_t n_lists;     /* in bytes */
    list_entry *entries; /* [n_entries] sorted, each (row, layer) once; NULL while recording */
    int64_t n_entries;
    int32_t *tokens; /* [n_tokens] ids of the rows, or NULL */
    int64_t n_tokens;
    hdl_buf origin;   /* as in the file; empty = not known */
    uint32_t version; /* of the file that it was loaded from */
    char *path;       /* of that file; NULL while recording */
};

typedef struct lists_origin {
    uint64_t plan;
    int32_t n_name;
    hdl_mounts_count mounts;
    int32_t zero;
} lists_origin;
static_assert(sizeof(lists_origin) == 24, "the origin has no padding");

typedef struct lists_header {
    char magic[8];
    uint32_t version, n_tokens;
    uint64_t model;
    int64_t n_lists, n_bytes;
} lists_header;

/* ---- recording ---- */

static void put(hdl_buf *bytes, uint64_t value)
{
    uint8_t out[10];
    int64_t n = 0;
    do {
        out[n++] = (uint8_t)((value & 127) | (value > 127 ? 128 : 0));
        value >>= 7;
    } while (value);
    hdl_buf_add(bytes, out, n);
}

static void on_made(void *user, int32_t layer, int64_t row, const int32_t *ids, int32_t n)
{
    heddle_lists *lists = user;
    int32_t previous = -1;
    put(&lists->bytes, (uint64_t)row);
    put(&lists->bytes, (uint64_t)layer);
    put(&lists->bytes, (uint64_t)n);
    for (int32_t i = 0; i < n; i++) {
        put(&lists->bytes, (uint64_t)(ids[i] - previous - 1));
        previous = ids[i];
    }
    lists->n_lists++;
}

heddle_status heddle_lists_new(heddle_lists **out, const heddle_engine *engine)
{
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine);
    heddle_lists *lists = hdl_calloc(1, sizeof *lists);
    if (!lists) return HEDDLE_E_NOMEM;
    heddle_status status = hdl_engine_identity(engine, &lists->model);
    if (status) {
        heddle_lists_free(lists);
        return status;
    }
    *out = lists;
    return HEDDLE_OK;
}

void heddle_lists_free(heddle_lists *lists)
{
    if (!lists) return;
    hdl_buf_deinit(&lists->bytes);
    hdl_free(lists->entries);
    hdl_free(lists->tokens);
    hdl_buf_deinit(&lists->origin);
    hdl_free(lists->path);
    hdl_free(lists);
}

int64_t heddle_lists_count(const heddle_lists *lists)
{
    if (!lists) return 0;
    return lists->entries ? lists->n_entries : lists->n_lists;
}

heddle_status heddle_lists_save(const heddle_lists *lists, const char *path)
{
    hdl_newfile file;
    HDL_GIVEN(lists, path);
    HDL_TRY(hdl_buf_status(&lists->bytes)); /* out of memory on the way: the record is not whole */
    HDL_TRY(hdl_buf_status(&lists->origin));
    lists_header header = {.version = LISTS_VERSION,
                           .n_tokens = (uint32_t)lists->n_tokens,
                           .model = lists->model,
                           .n_lists = lists->n_lists,
                           .n_bytes = lists->bytes.n};
    memcpy(header.magic, magic, sizeof magic);
    HDL_TRY(hdl_newfile_open(&file, path, magic));
    heddle_status status = hdl_newfile_write(&file, &header, sizeof header);
    if (!status && lists->bytes.n) status = hdl_newfile_write(&file, lists->bytes.data, lists->bytes.n);
    if (!status && lists->n_tokens)
        status = hdl_newfile_write(&file, lists->tokens, lists->n_tokens * (int64_t)sizeof *lists->tokens);
    if (!status && lists->origin.n) status = hdl_newfile_write(&file, lists->origin.data, lists->origin.n);
    uint64_t sum = hdl_hasher_sum(&file.hasher);
    if (!status) status = hdl_newfile_write(&file, &sum, sizeof sum);
    if (!status) return hdl_newfile_finish(&file);
    hdl_newfile_discard(&file);
    return status;
}

/* ---- reading ---- */

/* False at the end of the bytes, or for a number that is none. */
static bool take(const hdl_buf *bytes, int64_t *at, int64_t most, int64_t *value)
{
    uint64_t sum = 0;
    for (int shift = 0; shift < 63 && *at < bytes->n; shift += 7) {
        uint8_t byte = (uint8_t)bytes->data[(*at)++];
        sum |= (uint64_t)(byte & 127) << shift;
        if (byte & 128) continue;
        *value = (int64_t)sum;
        return sum <= (uint64_t)most;
    }
    return false;
}

static int entry_compare(const void *a, const void *b)
{
    const list_entry *x = a, *y = b;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

static int entry_and_place_compare(const void *a, const void *b)
{
    const list_entry *x = a, *y = b;
    int order = entry_compare(a, b);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

static void sort_entries(heddle_lists *lists)
{
    list_entry *entries = lists->entries;
    if (!lists->n_lists) return;
    qsort(entries, (size_t)lists->n_lists, sizeof *entries, entry_and_place_compare);
    for (int64_t i = 0; i < lists->n_lists; i++) {
        bool is_last = i + 1 == lists->n_lists || entry_compare(&entries[i], &entries[i + 1]);
        if (is_last) entries[lists->n_entries++] = entries[i];
    }
}

/* Walks all lists once: ids ascend and lie before their row's end. */
static heddle_status build_index(heddle_lists *lists, const char *path)
{
    int64_t at = 0, row = 0, layer = 0, n = 0, step = 0;
    lists->entries = hdl_calloc(lists->n_lists, sizeof *lists->entries);
    if (!lists->entries) return HEDDLE_E_NOMEM;
    for (int64_t i = 0; i < lists->n_lists; i++) {
        bool is_good = take(&lists->bytes, &at, INT32_MAX - 1, &row) &&
                       take(&lists->bytes, &at, HDL_MAX_LAYERS - 1, &layer) &&
                       take(&lists->bytes, &at, row + 1, &n);
        lists->entries[i] = (list_entry){row, at, (int32_t)layer, (int32_t)n};
        for (int64_t j = 0, id = -1; is_good && j < n; j++) {
            is_good = take(&lists->bytes, &at, row, &step);
            id += step + 1;
            is_good = is_good && id <= row;
        }
        if (!is_good)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: list %lld of %lld: is not one", path, (long long)i,
                            (long long)lists->n_lists);
    }
    if (at != lists->bytes.n)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: %lld bytes behind the last list", path,
                        (long long)(lists->bytes.n - at));
    sort_entries(lists);
    return HEDDLE_OK;
}

static heddle_status keep_tokens(heddle_lists *lists, const void *ids, int64_t n)
{
    int32_t *tokens = n ? hdl_calloc(n, sizeof *tokens) : NULL;
    if (n && !tokens) return HEDDLE_E_NOMEM;
    if (n) memcpy(tokens, ids, (size_t)n * sizeof *tokens);
    hdl_free(lists->tokens);
    lists->tokens = tokens;
    lists->n_tokens = n;
    return HEDDLE_OK;
}

/* What a session's lists depend on beside its tokens, as the file has it. */
static void origin_of(hdl_buf *out, const heddle_session *session)
{
    const hdl_runner *runner = session->runner;
    lists_origin head = {.plan = hdl_hash(runner->plan_text.data, runner->plan_text.n),
                         .n_name = (int32_t)strlen(runner->plan_name),
                         .mounts = hdl_session_count_mounts(session)};
    hdl_buf_add(out, &head, sizeof head);
    hdl_buf_add(out, runner->plan_name, head.n_name);
    hdl_session_add_mounts(session, out);
}

heddle_status heddle_lists_set_tokens(heddle_lists *lists, const heddle_session *session)
{
    HDL_GIVEN(lists, session);
    HDL_TRY(keep_tokens(lists, session->ids, heddle_session_len(session)));
    lists->origin.n = 0;
    origin_of(&lists->origin, session);
    return hdl_buf_status(&lists->origin);
}

int64_t heddle_lists_tokens(const heddle_lists *lists, const int32_t **ids)
{
    if (ids) *ids = lists ? lists->tokens : NULL;
    return lists ? lists->n_tokens : 0;
}

/* What lies behind the tokens: nothing, or an origin of exactly that size. */
static heddle_status keep_origin(heddle_lists *lists, const char *bytes, int64_t n, const char *path)
{
    lists_origin head = {0};
    bool is_sound = n >= (int64_t)sizeof head && lists->version > 2;
    if (!n) return HEDDLE_OK;
    if (is_sound) {
        memcpy(&head, bytes, sizeof head);
        int64_t n_mounts = hdl_mounts_bytes(head.mounts);
        is_sound = head.n_name >= 0 && n_mounts >= 0 && !head.zero &&
                   n == (int64_t)sizeof head + head.n_name + n_mounts;
    }
    if (!is_sound)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: what it says of its plan and mounts contradicts its size",
                        path);
    hdl_buf_add(&lists->origin, bytes, n);
    return hdl_buf_status(&lists->origin);
}

static heddle_status parse(heddle_lists *lists, const hdl_buf *file, const char *path, uint64_t model)
{
    lists_header header;
    uint64_t sum;
    if (file->n < (int64_t)(sizeof header + sizeof sum) || memcmp(file->data, magic, sizeof magic) != 0)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: does not hold lists", path);
    memcpy(&header, file->data, sizeof header);
    memcpy(&sum, file->data + file->n - sizeof sum, sizeof sum);
    if (hdl_hash(file->data, file->n - (int64_t)sizeof sum) != sum)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: does not have its checksum", path);
    if (header.version < 1 || header.version > LISTS_VERSION)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "%s: version %u of the format: must be 1..%d", path,
                        header.version, LISTS_VERSION);
    if (header.model != model) return HDL_FAIL(HEDDLE_E_INVALID, "%s: was recorded with another model", path);
    int64_t n_tokens = header.version > 1 ? header.n_tokens : 0,
            token_bytes = n_tokens * (int64_t)sizeof(int32_t), n_bytes = header.n_bytes;
    int64_t n_rest = file->n - (int64_t)sizeof header - token_bytes - (int64_t)sizeof sum;
    if (n_bytes < 0 || n_bytes > n_rest || header.n_lists < 0 || header.n_lists > n_bytes)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its header contradicts its size", path);
    const char *lists_at = file->data + sizeof header, *tokens_at = lists_at + n_bytes;
    lists->version = header.version;
    lists->n_lists = header.n_lists;
    hdl_buf_add(&lists->bytes, lists_at, n_bytes);
    HDL_TRY(hdl_buf_status(&lists->bytes));
    HDL_TRY(keep_tokens(lists, tokens_at, n_tokens));
    HDL_TRY(keep_origin(lists, tokens_at + token_bytes, n_rest - n_bytes, path));
    return build_index(lists, path);
}

heddle_status heddle_lists_load(heddle_lists **out, const heddle_engine *engine, const char *path)
{
    hdl_buf file = {0};
    heddle_lists *lists;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine, path);
    HDL_TRY(heddle_lists_new(&lists, engine));
    heddle_status status = hdl_buf_read_file(&file, path, MAX_LISTS_BYTES);
    if (!status && !(lists->path = hdl_strdup(path))) status = HEDDLE_E_NOMEM;
    if (!status) status = parse(lists, &file, path, lists->model);
    hdl_buf_deinit(&file);
    if (status)
        heddle_lists_free(lists);
    else
        *out = lists;
    return status;
}

static int32_t ids_of(const heddle_lists *lists, const list_entry *entry, int32_t *ids)
{
    int64_t at = entry->at, id = -1, step = 0;
    for (int32_t i = 0; i < entry->n; i++) {
        take(&lists->bytes, &at, INT32_MAX, &step);
        id += step + 1;
        ids[i] = (int32_t)id;
    }
    return entry->n;
}

static int32_t on_wanted(void *user, int32_t layer, int64_t row, int32_t *ids, int64_t n_max)
{
    const heddle_lists *lists = user;
    list_entry key = {.row = row, .layer = layer};
    const list_entry *entry = lists->n_entries ? bsearch(&key, lists->entries, (size_t)lists->n_entries,
                                                         sizeof key, entry_compare)
                                               : NULL;
    return entry && entry->n <= n_max ? ids_of(lists, entry, ids) : -1;
}

int64_t heddle_lists_at(const heddle_lists *lists, int64_t i, int64_t *row, int32_t *layer, int32_t *ids,
                        int64_t n_max)
{
    if (!lists || i < 0 || i >= lists->n_entries) return -1;
    const list_entry *entry = &lists->entries[i];
    if (row) *row = entry->row;
    if (layer) *layer = entry->layer;
    return ids && entry->n <= n_max ? ids_of(lists, entry, ids) : entry->n;
}

/* ---- sessions ---- */

/* Keeps the lists of rows before `end`, in their order. Truncations are rare: one pass over all bytes. */
static void forget_from(heddle_lists *lists, int64_t end)
{
    int64_t at = 0, n_bytes = 0, n_lists = 0, row = 0, layer = 0, n = 0, step = 0;
    if (lists->bytes.is_failed) return; /* the save says so */
    for (int64_t i = 0; i < lists->n_lists; i++) {
        int64_t start = at;
        take(&lists->bytes, &at, INT64_MAX, &row);
        take(&lists->bytes, &at, INT64_MAX, &layer);
        take(&lists->bytes, &at, INT64_MAX, &n);
        for (int64_t j = 0; j < n; j++) take(&lists->bytes, &at, INT64_MAX, &step);
        if (row >= end) continue;
        memmove(lists->bytes.data + n_bytes, lists->bytes.data + start, (size_t)(at - start));
        n_bytes += at - start;
        n_lists++;
    }
    lists->bytes.n = n_bytes;
    lists->n_lists = n_lists;
}

void hdl_session_forget_lists(heddle_session *session, int64_t n_tokens)
{
    if (session->hook.made == on_made) forget_from(session->hook.made_user, n_tokens);
}

/* Lists are kept by the position of their row; after an eviction a row's place is no position. */
static heddle_status check_positions(const heddle_session *session)
{
    if (session->runner->schedule->retain_group < 0) return HEDDLE_OK;
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                    "plan %s evicts rows: its lists name rows and not tokens, and are neither recorded nor "
                    "replayed",
                    session->runner->plan_name);
}

/* A list is kept where it is one of tokens, for all heads of its layer. */
static heddle_status check_makes_lists(const heddle_session *session)
{
    const hdl_schedule *schedule = session->runner->schedule;
    for (int route = 0; route < 2; route++)
        for (int32_t layer = 0; layer < schedule->facts->n_layers; layer++) {
            int32_t slot = schedule->slot_of_layer[route][layer];
            if (slot >= 0 && schedule->slots[slot].n_lists == 1 && schedule->slots[slot].block_size == 1)
                return HEDDLE_OK;
        }
    return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                    "plan %s makes no list of tokens for all heads of a layer: there are none to record or "
                    "replay",
                    session->runner->plan_name);
}

static heddle_status check_origin(const heddle_lists *lists, const heddle_session *session)
{
    lists_origin was;
    const hdl_runner *runner = session->runner;
    memcpy(&was, lists->origin.data, sizeof was);
    const char *name = lists->origin.data + sizeof was;
    bool is_namesake = was.n_name == (int64_t)strlen(runner->plan_name) &&
                       !memcmp(name, runner->plan_name, (size_t)was.n_name);
    if (was.plan == hdl_hash(runner->plan_text.data, runner->plan_text.n) && is_namesake)
        return hdl_session_check_mounts(session, name + was.n_name, was.mounts, lists->path, "recorded");
    if (is_namesake)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: was recorded under another wording of plan \"%s\"",
                        lists->path, runner->plan_name);
    return HDL_FAIL(HEDDLE_E_INVALID, "%s: was recorded under plan \"%.*s\": the session has plan \"%s\"",
                    lists->path, HDL_MIN(was.n_name, 64), name, runner->plan_name);
}

heddle_status heddle_lists_check(const heddle_lists *lists, const heddle_session *session, const int32_t *ids,
                                 int64_t n_ids)
{
    HDL_GIVEN(lists, session, ids);
    if (!lists->entries)
        return HDL_FAIL(HEDDLE_E_INVALID, "lists that are being recorded: save and load them");
    if (!lists->origin.n)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s: does not say of which plan and mounted documents its lists are (version %u of "
                        "the format; since version 3 files do): record it again",
                        lists->path, lists->version);
    HDL_TRY(check_origin(lists, session));
    int64_t n_same = 0;
    while (n_same < n_ids && n_same < lists->n_tokens && ids[n_same] == lists->tokens[n_same]) n_same++;
    if (n_same == n_ids) return HEDDLE_OK;
    return HDL_FAIL(
        HEDDLE_E_INVALID,
        "%s: was recorded of another prompt: of this one's %lld tokens the first %lld are the same",
        lists->path, (long long)n_ids, (long long)n_same);
}

heddle_status heddle_session_record(heddle_session *session, heddle_lists *lists)
{
    HDL_GIVEN(session);
    if (lists && lists->entries)
        return HDL_FAIL(HEDDLE_E_INVALID, "lists that were loaded cannot be recorded into");
    if (lists) HDL_TRY(check_positions(session));
    if (lists) HDL_TRY(check_makes_lists(session));
    session->hook.made = lists ? on_made : NULL;
    session->hook.made_user = lists;
    return HEDDLE_OK;
}

heddle_status heddle_session_replay(heddle_session *session, const heddle_lists *lists)
{
    HDL_GIVEN(session);
    if (lists && !lists->entries)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "lists that are being recorded cannot be replayed: save and load them");
    if (lists) HDL_TRY(check_positions(session));
    if (lists) HDL_TRY(check_makes_lists(session));
    session->hook.wanted = lists ? on_wanted : NULL;
    session->hook.wanted_user = (void *)(uintptr_t)lists;
    return HEDDLE_OK;
}
