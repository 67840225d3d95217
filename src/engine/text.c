/* text.c - tokens in and out, as the model's file defines them. */
#include <string.h>

#include "base/mem.h"
#include "engine/engine_int.h"

static heddle_status tokenizer_of(const heddle_engine *engine, const hdl_tokenizer **out)
{
    *out = engine->model->tokenizer;
    return *out ? HEDDLE_OK : HDL_FAIL(HEDDLE_E_UNSUPPORTED, "the model file holds no tokenizer");
}

static heddle_status check_text(const char *text, int64_t n_bytes)
{
    if (n_bytes < 0)
        return HDL_FAIL(HEDDLE_E_INVALID, "a text of %lld bytes: must be 0 or more", (long long)n_bytes);
    if (n_bytes && !text)
        return HDL_FAIL(HEDDLE_E_INVALID, "a text of %lld bytes: must not be NULL", (long long)n_bytes);
    return HEDDLE_OK;
}

static heddle_status give_ids(heddle_status status, hdl_ids *made, int32_t **ids, int64_t *n_ids)
{
    if (!status && !made->data && !(made->data = hdl_calloc(1, sizeof *made->data))) status = HEDDLE_E_NOMEM;
    if (status) {
        hdl_ids_deinit(made);
        return status;
    }
    *ids = made->data;
    *n_ids = made->n;
    return HEDDLE_OK;
}

heddle_status heddle_tokenize(const heddle_engine *engine, const char *text, int64_t n_bytes, uint32_t flags,
                              int32_t **ids, int64_t *n_ids)
{
    const hdl_tokenizer *tok;
    hdl_ids made = {0};
    HDL_GIVEN(ids, n_ids);
    *ids = NULL;
    *n_ids = 0;
    HDL_GIVEN(engine);
    HDL_TRY(check_text(text, n_bytes));
    HDL_TRY(tokenizer_of(engine, &tok));
    heddle_status status = hdl_tokenizer_encode(tok, text, n_bytes, (flags & HEDDLE_TOKENIZE_SPECIAL) != 0,
                                                (flags & HEDDLE_TOKENIZE_BOS) != 0, &made);
    return give_ids(status, &made, ids, n_ids);
}

void heddle_ids_free(int32_t *ids)
{
    hdl_free(ids);
}

heddle_status heddle_detokenize(const heddle_engine *engine, const int32_t *ids, int64_t n_ids,
                                int with_special, char **text, int64_t *n_bytes)
{
    const hdl_tokenizer *tok;
    hdl_buf buf = {0};
    HDL_GIVEN(text);
    *text = NULL;
    if (n_bytes) *n_bytes = 0;
    HDL_GIVEN(engine);
    if (n_ids) HDL_GIVEN(ids);
    HDL_TRY(tokenizer_of(engine, &tok));
    hdl_buf_puts(&buf, "");
    heddle_status status = hdl_tokenizer_decode(tok, ids, n_ids, with_special != 0, &buf);
    if (!status) status = hdl_buf_status(&buf);
    if (status) {
        hdl_buf_deinit(&buf);
        return status;
    }
    *text = buf.data;
    if (n_bytes) *n_bytes = buf.n;
    return HEDDLE_OK;
}

heddle_status heddle_chat_turn(const heddle_engine *engine, const char *previous_role, const char *role,
                               const char *content, int64_t n_bytes, int open_answer, int32_t **ids,
                               int64_t *n_ids)
{
    const hdl_tokenizer *tok;
    hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES + 1] = {{.is_markup = true}};
    hdl_ids made = {0};
    HDL_GIVEN(ids, n_ids);
    *ids = NULL;
    *n_ids = 0;
    HDL_GIVEN(engine, role);
    HDL_TRY(check_text(content, n_bytes));
    HDL_TRY(tokenizer_of(engine, &tok));
    const hdl_chat_template *chat = &engine->model->chat;
    if (chat->kind <= HDL_CHAT_UNKNOWN)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                        chat->kind == HDL_CHAT_NONE
                            ? "the model file holds no chat template"
                            : "the model's chat template is not one of ChatML, Llama 3, Gemma");
    if (strcmp(role, "system") && strcmp(role, "user") && strcmp(role, "assistant"))
        return HDL_FAIL(HEDDLE_E_INVALID, "role \"%s\": must be system, user or assistant", role);
    bool is_after_answer = previous_role && !strcmp(previous_role, "assistant");
    pieces[0].text = is_after_answer ? hdl_chat_close_answer(chat, false) : "";
    pieces[0].n = (int64_t)strlen(pieces[0].text);
    int n = hdl_chat_turn_after(chat, previous_role, role, (hdl_text){content, n_bytes}, open_answer != 0,
                                pieces + 1);
    return give_ids(hdl_chat_encode(tok, pieces, n + 1, !previous_role, &made), &made, ids, n_ids);
}

int heddle_token_is_end(const heddle_engine *engine, int32_t id)
{
    return engine && engine->model->tokenizer && hdl_tokenizer_is_end(engine->model->tokenizer, id);
}
