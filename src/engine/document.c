/* document.c - documents whose rows are in files: written once, mounted into any session of the model.
 *
 * The rows of a document in the shared cache depend on its own tokens alone, because windows and
 * positions restart at its first. So they can be made once and read in any company. */
#include <string.h>

#include "base/mem.h"
#include "base/newfile.h"
#include "engine/engine_int.h"
#include "kv/docfile.h"

struct heddle_document {
    hdl_docfile *file;
};

/* The KV group of the shared rows. */
static heddle_status shared_group(const heddle_engine *engine, int32_t *group)
{
    const hdl_model_facts *facts = &engine->model->facts;
    HDL_TRY(hdl_facts_can_hide(facts));
    *group = facts->layers[facts->cross_from].cache_group;
    return HEDDLE_OK;
}

static heddle_status write_rows(const heddle_session *session, int32_t group, const int32_t *ids,
                                int64_t n_ids, const char *path)
{
    hdl_docfile_facts facts = {.spec = *hdl_kv_store_spec(session->store, group), .n_tokens = n_ids};
    HDL_TRY(hdl_engine_identity(session->runner->engine, &facts.model));
    const uint8_t *const *pages = (const uint8_t *const *)hdl_kv_seq_view(session->kv, group, 0).pages;
    return hdl_docfile_write(path, &facts, ids, pages);
}

heddle_status heddle_document_encode(heddle_engine *engine, const heddle_session_options *options,
                                     const int32_t *ids, int64_t n_ids, const char *path,
                                     heddle_progress_fn progress, void *user)
{
    heddle_session_options used;
    heddle_session *session = NULL;
    int32_t group = 0;
    HDL_GIVEN(engine, ids);
    int32_t doc_token = engine->model->facts.doc_token;
    HDL_TRY(shared_group(engine, &group));
    if (!path || !*path) return HDL_FAIL(HEDDLE_E_INVALID, "a document's path: is missing");
    if (n_ids < 1 || ids[0] != doc_token)
        return HDL_FAIL(HEDDLE_E_INVALID, "a document of %lld tokens: must begin with token %d",
                        (long long)n_ids, doc_token);
    HDL_TRY(hdl_newfile_check(path, hdl_docfile_magic)); /* before the reading, not after it */
    heddle_session_options_default(&used);
    if (options) memcpy(&used, options, HDL_MIN(options->struct_size, sizeof used));
    used.struct_size = sizeof used;
    used.context_tokens = n_ids;
    used.kept_plans = NULL;
    used.n_kept_plans = 0;
    HDL_TRY(heddle_session_new(&session, engine, NULL, &used)); /* the model's own plan keeps the index */
    heddle_status status = heddle_session_extend(session, ids, n_ids, progress, user);
    if (!status) status = write_rows(session, group, ids, n_ids, path);
    heddle_session_free(session);
    return status;
}

heddle_status heddle_document_open(heddle_document **out, const heddle_engine *engine, const char *path)
{
    int32_t group = 0;
    uint64_t identity;
    HDL_GIVEN(out);
    *out = NULL;
    HDL_GIVEN(engine, path);
    HDL_TRY(shared_group(engine, &group));
    heddle_document *document = hdl_calloc(1, sizeof *document);
    if (!document) return HEDDLE_E_NOMEM;
    heddle_status status = hdl_docfile_open(&document->file, path);
    if (!status) status = hdl_engine_identity(engine, &identity);
    if (!status && identity != hdl_docfile_facts_of(document->file)->model)
        status = HDL_FAIL(HEDDLE_E_INVALID, "%s: was written with another model", path);
    if (status) {
        heddle_document_close(document);
        return status;
    }
    *out = document;
    return HEDDLE_OK;
}

void heddle_document_close(heddle_document *document)
{
    if (!document) return;
    hdl_docfile_unref(document->file);
    hdl_free(document);
}

int64_t heddle_document_len(const heddle_document *document)
{
    return document ? hdl_docfile_facts_of(document->file)->n_tokens : 0;
}

uint64_t heddle_document_sum(const heddle_document *document)
{
    return document ? hdl_docfile_ids_sum(document->file) : 0;
}

heddle_status heddle_document_verify(const char *path, int64_t *n_tokens, int64_t *n_pages)
{
    hdl_docfile *file;
    HDL_GIVEN(n_tokens, n_pages);
    *n_tokens = *n_pages = 0;
    HDL_GIVEN(path);
    HDL_TRY(hdl_docfile_open(&file, path));
    heddle_status status = hdl_docfile_verify(file);
    if (!status) {
        *n_tokens = hdl_docfile_facts_of(file)->n_tokens;
        *n_pages = hdl_docfile_n_pages(file);
    }
    hdl_docfile_unref(file);
    return status;
}

/* ---- sessions ---- */

hdl_mounts_count hdl_session_count_mounts(const heddle_session *session)
{
    hdl_mounts_count count = {.n_mounts = hdl_kv_seq_n_mounts(session->kv)};
    hdl_kv_seq_hidden(session->kv, &count.n_hidden);
    return count;
}

void hdl_session_add_mounts(const heddle_session *session, hdl_buf *out)
{
    hdl_mounts_count count = hdl_session_count_mounts(session);
    const hdl_kv_span *hidden = hdl_kv_seq_hidden(session->kv, &count.n_hidden);
    for (int32_t i = 0; i < count.n_mounts; i++) {
        const hdl_docfile *file = hdl_kv_seq_mounted(session->kv, i);
        uint64_t sum = file ? hdl_docfile_sum(file) : 0;
        hdl_buf_add(out, &sum, sizeof sum);
    }
    for (int32_t i = 0; i < count.n_hidden; i++) {
        int64_t span[2] = {hidden[i].first, hidden[i].end};
        hdl_buf_add(out, span, sizeof span);
    }
}

int64_t hdl_mounts_bytes(hdl_mounts_count count)
{
    if (count.n_mounts < 0 || count.n_mounts > HDL_KV_MAX_MOUNTS || count.n_hidden < 0 ||
        count.n_hidden > HDL_KV_MAX_HIDDEN)
        return -1;
    return count.n_mounts * (int64_t)8 + count.n_hidden * (int64_t)16;
}

heddle_status hdl_session_check_mounts(const heddle_session *session, const void *bytes,
                                       hdl_mounts_count count, const char *path, const char *written)
{
    hdl_buf own = {0};
    hdl_mounts_count now = hdl_session_count_mounts(session);
    const char *was_at = bytes;
    int64_t n_sums = count.n_mounts * (int64_t)8, n_hidden = count.n_hidden * (int64_t)16;
    if (count.n_mounts != now.n_mounts)
        return HDL_FAIL(HEDDLE_E_INVALID, "%s: was %s over %d mounted documents: the session has %d", path,
                        written, count.n_mounts, now.n_mounts);
    hdl_session_add_mounts(session, &own);
    heddle_status status = hdl_buf_status(&own);
    for (int32_t i = 0; i < count.n_mounts && !status; i++)
        if (memcmp(was_at + i * 8, own.data + i * 8, 8) != 0)
            status = HDL_FAIL(HEDDLE_E_INVALID,
                              "%s: was %s over other mounted documents: number %d of %d is not the session's",
                              path, written, i + 1, count.n_mounts);
    bool is_another = count.n_hidden != now.n_hidden;
    if (!status && !is_another && n_hidden)
        is_another = memcmp(was_at + n_sums, own.data + n_sums, (size_t)n_hidden) != 0;
    if (!status && is_another)
        status = HDL_FAIL(HEDDLE_E_INVALID, "%s: was %s with other tokens forbidden than the session's", path,
                          written);
    hdl_buf_deinit(&own);
    return status;
}

heddle_status heddle_session_mount(heddle_session *session, const heddle_document *document,
                                   int64_t *first_token)
{
    HDL_GIVEN(first_token);
    *first_token = 0;
    HDL_GIVEN(session, document);
    int32_t group = 0, doc_token = session->runner->schedule->facts->doc_token;
    int64_t before = hdl_kv_seq_len(session->kv), n = heddle_document_len(document), first;
    HDL_TRY(shared_group(session->runner->engine, &group));
    HDL_TRY(hdl_schedule_can_hide(session->runner->schedule));
    HDL_TRY(hdl_kv_seq_mount(session->kv, group, document->file, &first));
    int64_t after = hdl_kv_seq_len(session->kv);
    for (int64_t t = before; t < after; t++) session->ids[t] = doc_token; /* slots that hold no token */
    memcpy(session->ids + first, hdl_docfile_ids(document->file), (size_t)n * sizeof *session->ids);
    session->doc_start = hdl_doc_start(session, after);
    session->has_logits = false;
    *first_token = first;
    return HEDDLE_OK;
}

heddle_status heddle_session_unmount(heddle_session *session, int64_t first_token)
{
    HDL_GIVEN(session);
    HDL_TRY(hdl_kv_seq_unmount(session->kv, first_token));
    session->has_logits = false;
    return HEDDLE_OK;
}

heddle_status heddle_session_forbid(heddle_session *session, int64_t first_token, int64_t n_tokens)
{
    HDL_GIVEN(session);
    int64_t len = hdl_kv_seq_len(session->kv);
    if (first_token < 0 || n_tokens < 0 || n_tokens > len - first_token)
        return HDL_FAIL(HEDDLE_E_INVALID, "tokens %lld..%lld: must be among the %lld of the session",
                        (long long)first_token, (long long)(first_token + n_tokens - 1), (long long)len);
    HDL_TRY(hdl_schedule_can_hide(session->runner->schedule));
    HDL_TRY(hdl_kv_seq_hide(session->kv, first_token, first_token + n_tokens));
    session->has_logits = false;
    return HEDDLE_OK;
}
