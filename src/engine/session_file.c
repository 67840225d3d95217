/* session_file.c - a session as a file, and back.
 *
 *   header    file_header below
 *   texts     name of the model, name of the plan, text of the plan
 *   ids       i32 [n_tokens]
 *   logits    f32 [n_vocab], with FLAG_LOGITS
 *   mounts    formats 3 and 4: i32 n_mounts, n_hidden; what hdl_session_add_mounts gives; per mount i64 first
 *             page. The documents' rows are not in the file: who loads it has mounted them
 *   lists     per list kept since the last refresh: i32 count, i32 ids[count]
 *   mass      under a plan that retains by mass: f32 [layers of its group, n_kv_heads, n_mass_rows]
 *   KV        snapshot.h; with the states of layers that keep one, formats 2 and 4
 *   checksum  u64, XXH3 of everything before it
 *
 * Numbers are little-endian. A reader first proves that the file is whole (size and checksum), then
 * that it belongs to this session (model, plan, options), then that its numbers agree with each
 * other; the session changes only after the last check. */
#include <string.h>

#include "base/mapfile.h"
#include "base/mem.h"
#include "engine/engine_int.h"
#include "kv/snapshot.h"

/* FORMAT, and one more where layers keep states, two more where documents are mounted or tokens forbidden */
enum { FORMAT = 1, WITH_STATES = 1, WITH_MOUNTS = 2, LAST_FORMAT = 4, CHECKSUM_BYTES = 8 };
enum { FLAG_LOGITS = 1, FLAG_INVARIANT = 2, FLAG_GOVERNS_ALL = 4 };
static const char file_magic[8] = "heddle\x1a\n";

typedef struct file_header {
    char magic[8];
    uint32_t format, header_bytes;
    int64_t file_bytes;
    uint64_t model_identity;
    int64_t n_tokens, kept_visible;
    int64_t model_name_bytes, plan_name_bytes, plan_text_bytes;
    int64_t n_mass_rows; /* rows held of the retained group */
    int32_t n_vocab, n_kept, page_shift;
    uint32_t flags;
    char kv_type[8], kv_layout[8]; /* padded with zeros */
} file_header;
static_assert(sizeof(file_header) == 112, "the header has no padding");

/* The list numbered `kept`: its slot in the schedule. */
static const hdl_selection *kept_slot(const hdl_schedule *schedule, int32_t kept)
{
    int32_t layer = 0;
    for (; layer < schedule->facts->n_layers; layer++)
        if (schedule->routes[HDL_ROUTE_DECODE].layers[layer].has_router && kept-- == 0) break;
    HDL_ASSERT(layer < schedule->facts->n_layers);
    return &schedule->slots[schedule->slot_of_layer[HDL_ROUTE_DECODE][layer]];
}

static int32_t *kept_count(const heddle_session *session, int32_t kept, int32_t list)
{
    return session->kept_counts + kept * session->runner->schedule->facts->n_kv_heads + list;
}

static int32_t *kept_list(const heddle_session *session, int32_t kept, int32_t list)
{
    const hdl_schedule *schedule = session->runner->schedule;
    return session->kept_ids + kept * schedule->kept_ids_max + list * kept_slot(schedule, kept)->n_ids_max;
}

/* Accumulated mass is [n_mass_lists, max_context] in the session; 0 lists where the plan needs none. */
static int64_t n_mass_lists(const hdl_schedule *schedule)
{
    return hdl_retain_mass_size(schedule) / schedule->limits.max_context;
}

/* ---- writing ---- */

static bool has_mounts(const file_header *header)
{
    return (header->format - FORMAT) & WITH_MOUNTS;
}

static heddle_status header_of(const heddle_session *session, file_header *header)
{
    const hdl_runner *runner = session->runner;
    const heddle_session_options *options = &runner->options;
    hdl_mounts_count mounts = hdl_session_count_mounts(session);
    uint32_t format = FORMAT + (runner->schedule->facts->delta.n_layers ? WITH_STATES : 0) +
                      (mounts.n_mounts || mounts.n_hidden ? WITH_MOUNTS : 0);
    *header = (file_header){.format = format,
                            .header_bytes = sizeof *header,
                            .n_tokens = hdl_kv_seq_len(session->kv),
                            .kept_visible = session->kept_visible,
                            .model_name_bytes = (int64_t)strlen(runner->engine->model->facts.name),
                            .plan_name_bytes = (int64_t)strlen(runner->plan_name),
                            .plan_text_bytes = runner->plan_text.n,
                            .n_vocab = runner->schedule->facts->n_vocab,
                            .n_kept = session->kept_visible ? runner->schedule->n_kept : 0,
                            .page_shift = options->page_shift,
                            .flags = (session->has_logits ? FLAG_LOGITS : 0) |
                                     (options->is_invariant ? FLAG_INVARIANT : 0) |
                                     (options->plan_governs_all ? FLAG_GOVERNS_ALL : 0)};
    memcpy(header->magic, file_magic, sizeof file_magic);
    memcpy(header->kv_type, options->kv_type, strlen(options->kv_type));
    memcpy(header->kv_layout, options->kv_layout, strlen(options->kv_layout));
    int64_t n = (int64_t)sizeof *header + header->model_name_bytes + header->plan_name_bytes +
                header->plan_text_bytes + header->n_tokens * 4 + CHECKSUM_BYTES;
    if (session->has_logits) n += header->n_vocab * (int64_t)4;
    if (has_mounts(header))
        n += (int64_t)sizeof mounts + hdl_mounts_bytes(mounts) + mounts.n_mounts * (int64_t)8;
    for (int32_t k = 0; k < header->n_kept; k++)
        for (int32_t l = 0; l < kept_slot(runner->schedule, k)->n_lists; l++)
            n += 4 + 4 * (int64_t)*kept_count(session, k, l);
    if (session->retain_mass)
        header->n_mass_rows = hdl_kv_seq_rows(session->kv, runner->schedule->retain_group, 0);
    n += n_mass_lists(runner->schedule) * header->n_mass_rows * 4;
    header->file_bytes = n + hdl_kv_snapshot_bytes(session->kv);
    return hdl_engine_identity(runner->engine, &header->model_identity);
}

static heddle_status write_mounts(const heddle_session *session, hdl_newfile *file)
{
    hdl_buf bytes = {0};
    hdl_mounts_count count = hdl_session_count_mounts(session);
    hdl_buf_add(&bytes, &count, sizeof count);
    hdl_session_add_mounts(session, &bytes);
    for (int32_t i = 0; i < count.n_mounts; i++) {
        int64_t first = hdl_kv_seq_mounted_pages(session->kv, i).first;
        hdl_buf_add(&bytes, &first, sizeof first);
    }
    heddle_status status = hdl_buf_status(&bytes);
    if (!status) status = hdl_newfile_write(file, bytes.data, bytes.n);
    hdl_buf_deinit(&bytes);
    return status;
}

static heddle_status write_all(const heddle_session *session, const file_header *header, hdl_newfile *file)
{
    const hdl_runner *runner = session->runner;
    HDL_TRY(hdl_newfile_write(file, header, sizeof *header));
    HDL_TRY(hdl_newfile_write(file, runner->engine->model->facts.name, header->model_name_bytes));
    HDL_TRY(hdl_newfile_write(file, runner->plan_name, header->plan_name_bytes));
    HDL_TRY(hdl_newfile_write(file, runner->plan_text.data, header->plan_text_bytes));
    HDL_TRY(hdl_newfile_write(file, session->ids, header->n_tokens * 4));
    if (header->flags & FLAG_LOGITS)
        HDL_TRY(hdl_newfile_write(file, session->logits, header->n_vocab * (int64_t)4));
    if (has_mounts(header)) HDL_TRY(write_mounts(session, file));
    for (int32_t k = 0; k < header->n_kept; k++)
        for (int32_t l = 0; l < kept_slot(runner->schedule, k)->n_lists; l++) {
            const int32_t *count = kept_count(session, k, l);
            HDL_TRY(hdl_newfile_write(file, count, 4));
            HDL_TRY(hdl_newfile_write(file, kept_list(session, k, l), 4 * (int64_t)*count));
        }
    for (int64_t i = 0; i < n_mass_lists(runner->schedule); i++)
        HDL_TRY(hdl_newfile_write(file, session->retain_mass + i * runner->schedule->limits.max_context,
                                  header->n_mass_rows * 4));
    HDL_TRY(hdl_kv_snapshot_write(session->kv, file));
    uint64_t sum = hdl_hasher_sum(&file->hasher);
    HDL_TRY(hdl_newfile_write(file, &sum, sizeof sum));
    HDL_ASSERT(file->n_bytes == header->file_bytes);
    return HEDDLE_OK;
}

heddle_status heddle_session_save(const heddle_session *session, const char *path)
{
    file_header header;
    hdl_newfile file;
    HDL_GIVEN(session, path);
    HDL_TRY(header_of(session, &header));
    HDL_TRY(hdl_newfile_open(&file, path, file_magic));
    heddle_status status = write_all(session, &header, &file);
    if (!status) return hdl_newfile_finish(&file);
    hdl_newfile_discard(&file);
    return status;
}

/* ---- reading ---- */

typedef struct session_file {
    hdl_mapfile map;
    file_header header;
    hdl_mounts_count mounts;
    const uint8_t *model_name, *plan_name, *plan_text, *ids, *logits, *mounted, *mounted_at, *lists, *mass,
        *kv; /* in the map */
    int64_t kv_bytes;
    int64_t at; /* bytes taken so far */
} session_file;

static const uint8_t *take(session_file *file, int64_t n)
{
    int64_t left = file->map.n_bytes - CHECKSUM_BYTES - file->at;
    if (n < 0 || n > left) return NULL;
    file->at += n;
    return file->map.data + file->at - n;
}

/* Is it a session file of this format, and all of it? */
static heddle_status check_whole(session_file *file, const char *path)
{
    const file_header *header = &file->header;
    int64_t n = file->map.n_bytes;
    uint64_t sum;
    if (n >= (int64_t)sizeof file_magic && memcmp(file->map.data, file_magic, sizeof file_magic))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is not a heddle session file", path);
    if (n < (int64_t)sizeof *header + CHECKSUM_BYTES)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: is cut or is no session file: %lld bytes, the header alone has %d", path,
                        (long long)n, (int)sizeof *header);
    memcpy(&file->header, file->map.data, sizeof file->header);
    if (header->format < FORMAT || header->format > LAST_FORMAT)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        "%s: has session format %u; this build reads and writes formats %d to %d", path,
                        header->format, FORMAT, LAST_FORMAT);
    if (header->header_bytes != sizeof *header)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is damaged: its header has %d bytes and says %u", path,
                        (int)sizeof *header, header->header_bytes);
    if (header->file_bytes != n)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is cut or damaged: it has %lld bytes and says %lld", path,
                        (long long)n, (long long)header->file_bytes);
    memcpy(&sum, file->map.data + n - CHECKSUM_BYTES, sizeof sum);
    if (hdl_hash(file->map.data, n - CHECKSUM_BYTES) != sum)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: is damaged: its checksum does not hold", path);
    return HEDDLE_OK;
}

/* Counts, sums and spans, first pages. */
static bool take_mounts(session_file *file)
{
    const uint8_t *count = take(file, sizeof file->mounts);
    if (!count) return false;
    memcpy(&file->mounts, count, sizeof file->mounts);
    file->mounted = take(file, hdl_mounts_bytes(file->mounts));
    return file->mounted && (file->mounted_at = take(file, file->mounts.n_mounts * (int64_t)8));
}

/* Maps the file, proves it whole and finds its parts up to the lists. */
static heddle_status open_file(session_file *file, const char *path)
{
    *file = (session_file){0};
    if (!path) return HDL_FAIL(HEDDLE_E_INVALID, "a session's path: is missing");
    HDL_TRY(hdl_mapfile_open(&file->map, path));
    heddle_status status = check_whole(file, path);
    const file_header *header = &file->header;
    if (!status) {
        bool is_sound = header->n_tokens >= 0 && header->n_tokens < INT64_MAX / 4 && header->n_vocab > 0 &&
                        header->n_kept >= 0 && header->kept_visible >= 0 &&
                        header->kept_visible <= header->n_tokens &&
                        !header->kv_type[sizeof header->kv_type - 1] &&
                        !header->kv_layout[sizeof header->kv_layout - 1];
        file->at = sizeof *header;
        is_sound = is_sound && (file->model_name = take(file, header->model_name_bytes)) &&
                   (file->plan_name = take(file, header->plan_name_bytes)) &&
                   (file->plan_text = take(file, header->plan_text_bytes)) &&
                   (file->ids = take(file, header->n_tokens * 4));
        if (is_sound && header->flags & FLAG_LOGITS)
            is_sound = (file->logits = take(file, header->n_vocab * (int64_t)4)) != NULL;
        if (is_sound && has_mounts(header)) is_sound = take_mounts(file);
        if (!is_sound) status = HDL_FAIL(HEDDLE_E_FORMAT, "%s: the numbers of its header contradict", path);
    }
    if (status) hdl_mapfile_close(&file->map);
    return status;
}

static heddle_status check_plan(const session_file *file, const hdl_runner *runner, const char *path)
{
    const file_header *header = &file->header;
    if (header->plan_text_bytes == runner->plan_text.n &&
        !memcmp(file->plan_text, runner->plan_text.data, (size_t)runner->plan_text.n))
        return HEDDLE_OK;
    bool is_namesake = header->plan_name_bytes == (int64_t)strlen(runner->plan_name) &&
                       !memcmp(file->plan_name, runner->plan_name, (size_t)header->plan_name_bytes);
    if (is_namesake)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: was written under another wording of plan \"%s\"", path,
                        runner->plan_name);
    return HDL_FAIL(HEDDLE_E_INVALID, "%s: was written under plan \"%.*s\", this session has plan \"%s\"",
                    path, (int)HDL_MIN(header->plan_name_bytes, 64), (const char *)file->plan_name,
                    runner->plan_name);
}

static heddle_status check_options(const file_header *header, const heddle_session_options *options,
                                   const char *path)
{
    if (strcmp(header->kv_type, options->kv_type))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: has KV type %s, this session %s", path, header->kv_type,
                        options->kv_type);
    if (strcmp(header->kv_layout, options->kv_layout))
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: has KV layout \"%s\", this session \"%s\"", path,
                        header->kv_layout, options->kv_layout);
    if (header->page_shift != options->page_shift)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: has KV pages of 2^%d tokens, this session of 2^%d", path,
                        header->page_shift, options->page_shift);
    if (!(header->flags & FLAG_INVARIANT) != !options->is_invariant)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: was written %s the invariant mode, this session is %s it",
                        path, header->flags & FLAG_INVARIANT ? "in" : "outside",
                        options->is_invariant ? "in" : "outside");
    if (!(header->flags & FLAG_GOVERNS_ALL) != !options->plan_governs_all)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s: its prompt rows took the %s route, this session's take the %s one", path,
                        header->flags & FLAG_GOVERNS_ALL ? "decode" : "prefill",
                        options->plan_governs_all ? "decode" : "prefill");
    if (header->n_tokens > options->context_tokens)
        return HDL_FAIL(HEDDLE_E_CAPACITY, "%s: holds %lld tokens, the context of this session %lld", path,
                        (long long)header->n_tokens, (long long)options->context_tokens);
    return HEDDLE_OK;
}

/* Counts and ids of the kept lists: what load_kept relies on. The file's position ends at the KV. */
static heddle_status check_lists(session_file *file, const hdl_schedule *schedule, const char *path)
{
    const file_header *header = &file->header;
    bool is_sound = header->n_kept == (header->kept_visible ? schedule->n_kept : 0);
    file->lists = file->map.data + file->at;
    for (int32_t k = 0; k < header->n_kept && is_sound; k++) {
        const hdl_selection *slot = kept_slot(schedule, k);
        /* units that load_kept may append before the next refresh */
        int64_t block = slot->block_size,
                last = HDL_MIN(header->kept_visible + schedule->refresh - 1, schedule->limits.max_context);
        int64_t grown = HDL_MAX((last + block - 1) / block - (header->kept_visible + block - 1) / block, 0);
        for (int32_t l = 0; l < slot->n_lists && is_sound; l++) {
            int32_t n = 0, id, before = -1;
            const uint8_t *count = take(file, 4);
            if (count) memcpy(&n, count, sizeof n);
            const uint8_t *ids = count && n >= 0 && n + grown <= slot->n_ids_max ? take(file, n * (int64_t)4)
                                                                                 : NULL;
            is_sound = ids != NULL;
            for (int32_t i = 0; i < n && is_sound; i++, before = id) {
                memcpy(&id, ids + i * 4, sizeof id);
                is_sound = id > before && (int64_t)id * slot->block_size < header->kept_visible;
            }
        }
    }
    if (!is_sound) return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its kept lists do not fit the plan", path);
    int64_t n_mass = n_mass_lists(schedule);
    if (header->n_mass_rows < 0 || header->n_mass_rows > header->n_tokens ||
        !(file->mass = take(file, n_mass * header->n_mass_rows * 4)))
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its accumulated mass does not fit the plan", path);
    file->kv = file->map.data + file->at;
    file->kv_bytes = file->map.n_bytes - CHECKSUM_BYTES - file->at;
    return HEDDLE_OK;
}

/* The session has what the file has mounted, where the file has it. */
static heddle_status check_mounted(const session_file *file, const heddle_session *session, const char *path)
{
    HDL_TRY(hdl_session_check_mounts(session, file->mounted, file->mounts, path, "written"));
    for (int32_t i = 0; i < file->mounts.n_mounts; i++) {
        int64_t first, own = hdl_kv_seq_mounted_pages(session->kv, i).first;
        memcpy(&first, file->mounted_at + (size_t)i * 8, sizeof first);
        if (first != own)
            return HDL_FAIL(HEDDLE_E_INVALID,
                            "%s: mounted document %d of %d begins at page %lld, in the session at page %lld",
                            path, i + 1, file->mounts.n_mounts, (long long)first, (long long)own);
    }
    return HEDDLE_OK;
}

static heddle_status check_belongs(session_file *file, const heddle_session *session, const char *path)
{
    const hdl_runner *runner = session->runner;
    const file_header *header = &file->header;
    uint64_t identity;
    int32_t id;
    HDL_TRY(hdl_engine_identity(runner->engine, &identity));
    if (header->model_identity != identity || header->n_vocab != runner->schedule->facts->n_vocab)
        return HDL_FAIL(HEDDLE_E_INVALID,
                        "%s: was written with another model (\"%.*s\"): its weights are not those of \"%s\"",
                        path, (int)HDL_MIN(header->model_name_bytes, 127), (const char *)file->model_name,
                        runner->engine->model->facts.name);
    if (!((header->format - FORMAT) & WITH_STATES) != !runner->schedule->facts->delta.n_layers)
        return HDL_FAIL(HEDDLE_E_FORMAT,
                        "%s: its format %u is not that of a model with %d layers that keep states", path,
                        header->format, runner->schedule->facts->delta.n_layers);
    HDL_TRY(check_plan(file, runner, path));
    HDL_TRY(check_options(header, &runner->options, path));
    HDL_TRY(check_mounted(file, session, path));
    for (int64_t i = 0; i < header->n_tokens; i++) {
        memcpy(&id, file->ids + i * 4, sizeof id);
        if (id < 0 || id >= header->n_vocab)
            return HDL_FAIL(HEDDLE_E_FORMAT, "%s: token %lld is %d: must be in 0..%d", path, (long long)i, id,
                            header->n_vocab - 1);
    }
    return check_lists(file, runner->schedule, path);
}

/* Everything is checked: nothing here fails. */
static void adopt(heddle_session *session, const session_file *file, hdl_kv_seq *kv)
{
    const file_header *header = &file->header;
    const uint8_t *at = file->lists;
    hdl_kv_seq_free(session->kv);
    session->kv = kv;
    memcpy(session->ids, file->ids, (size_t)header->n_tokens * 4);
    session->has_logits = file->logits != NULL;
    if (file->logits) memcpy(session->logits, file->logits, (size_t)header->n_vocab * 4);
    session->doc_start = hdl_doc_start(session, header->n_tokens);
    session->kept_visible = header->kept_visible;
    for (int32_t k = 0; k < header->n_kept; k++)
        for (int32_t l = 0; l < kept_slot(session->runner->schedule, k)->n_lists; l++) {
            int32_t *count = kept_count(session, k, l);
            memcpy(count, at, 4);
            memcpy(kept_list(session, k, l), at + 4, (size_t)*count * 4);
            at += 4 + (int64_t)*count * 4;
        }
    int64_t stride = session->runner->schedule->limits.max_context, n_rows = header->n_mass_rows;
    for (int64_t i = 0; i < n_mass_lists(session->runner->schedule); i++) {
        memset(session->retain_mass + i * stride, 0, (size_t)stride * sizeof(float));
        memcpy(session->retain_mass + i * stride, file->mass + i * n_rows * 4,
               (size_t)n_rows * sizeof(float));
    }
}

/* The restored KV state against the rest of the file and the plan's retain set. */
static heddle_status check_kv(const session_file *file, const hdl_schedule *schedule, const hdl_kv_seq *kv,
                              const char *path)
{
    if (hdl_kv_seq_len(kv) != file->header.n_tokens)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its tokens and its KV state differ in length", path);
    for (int32_t g = 0; g < schedule->facts->n_groups; g++)
        if (g != schedule->retain_group && hdl_kv_seq_evicted(kv, g).n_rows)
            return HDL_FAIL(HEDDLE_E_FORMAT,
                            "%s: lacks rows of KV group %d, which its plan evicts nothing from", path, g);
    if (n_mass_lists(schedule) && hdl_kv_seq_rows(kv, schedule->retain_group, 0) != file->header.n_mass_rows)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s: its rows and their accumulated mass differ in number", path);
    return HEDDLE_OK;
}

heddle_status heddle_session_load(heddle_session *session, const char *path)
{
    session_file file;
    hdl_kv_seq *kv = NULL;
    HDL_GIVEN(session, path);
    HDL_TRY(open_file(&file, path));
    heddle_status status = check_belongs(&file, session, path);
    if (!status)
        status = hdl_kv_snapshot_read(&kv, session->store, session->context_tokens, file.kv, file.kv_bytes,
                                      session->kv, path);
    if (!status) status = check_kv(&file, session->runner->schedule, kv, path);
    if (status)
        hdl_kv_seq_free(kv);
    else
        adopt(session, &file, kv);
    hdl_mapfile_close(&file.map);
    return status;
}

/* What does not fit is cut off, between two characters. */
static void copy_text(char *to, int64_t n_to, const uint8_t *from, int64_t n)
{
    if (n >= n_to)
        for (n = n_to - 1; n && (from[n] & 0xc0) == 0x80;) n--;
    memcpy(to, from, (size_t)n);
    to[n] = 0;
}

heddle_status heddle_session_file_inspect(const char *path, heddle_session_file_info *info)
{
    session_file file;
    heddle_session_file_info out = {0};
    HDL_GIVEN(info);
    heddle_status status = hdl_given(__func__, "path", (const void *const[]){path}, 1);
    if (!status) status = open_file(&file, path);
    if (!status) {
        const file_header *header = &file.header;
        out.format = header->format;
        out.n_tokens = header->n_tokens;
        out.file_bytes = header->file_bytes;
        out.page_shift = header->page_shift;
        out.is_invariant = (header->flags & FLAG_INVARIANT) != 0;
        out.plan_governs_all = (header->flags & FLAG_GOVERNS_ALL) != 0;
        out.n_mounts = file.mounts.n_mounts;
        copy_text(out.model, sizeof out.model, file.model_name, header->model_name_bytes);
        copy_text(out.plan, sizeof out.plan, file.plan_name, header->plan_name_bytes);
        copy_text(out.kv_type, sizeof out.kv_type, (const uint8_t *)header->kv_type, sizeof header->kv_type);
        copy_text(out.kv_layout, sizeof out.kv_layout, (const uint8_t *)header->kv_layout,
                  sizeof header->kv_layout);
        hdl_mapfile_close(&file.map);
    }
    hdl_give(info, &out, sizeof out);
    return status;
}
