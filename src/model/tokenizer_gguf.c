/* tokenizer_gguf.c - a tokenizer from the metadata of a GGUF file (keys tokenizer.ggml.*).
 *
 * Rules for absent keys are llama.cpp's, which writes and reads these files: a SentencePiece
 * vocabulary adds BOS and a space in front unless the file says no; a byte-level one adds nothing,
 * except in the Llama 3 family. */
#include <string.h>

#include "base/mem.h"
#include "model/tokenizer_int.h"

#define KEY(name) "tokenizer.ggml." name

static bool equals(hdl_text text, const char *word)
{
    return text.n == (int64_t)strlen(word) && !memcmp(text.data, word, (size_t)text.n);
}

/* Fills rows for every token; *rows is the caller's to free. */
static heddle_status read_rows(const hdl_gguf *gguf, bool with_scores, hdl_token_in **rows, int64_t *n_rows)
{
    int64_t n = hdl_gguf_array_n(gguf, KEY("tokens")), cursor = 0;
    if (n < 1) return HDL_FAIL(HEDDLE_E_FORMAT, KEY("tokens") ": the file has no vocabulary");
    int64_t n_types = hdl_gguf_array_n(gguf, KEY("token_type"));
    int64_t n_scores = with_scores ? hdl_gguf_array_n(gguf, KEY("scores")) : -1;
    if (n > HDL_TOK_MAX_VOCAB || (n_types >= 0 && n_types != n) || (with_scores && n_scores != n))
        return HDL_FAIL(
            HEDDLE_E_FORMAT,
            KEY("tokens") " has %lld entries (at most %d), token_type %lld, scores %lld: must be equal",
            (long long)n, HDL_TOK_MAX_VOCAB, (long long)n_types, (long long)n_scores);
    *rows = hdl_calloc(n, sizeof **rows);
    if (!*rows) return HEDDLE_E_NOMEM;
    *n_rows = n;
    for (int64_t i = 0; i < n; i++) {
        hdl_token_in *row = &(*rows)[i];
        int64_t type = HDL_TOKEN_NORMAL;
        double score = 0;
        if (!hdl_gguf_array_next_str(gguf, KEY("tokens"), &cursor, &row->text))
            return HDL_FAIL(HEDDLE_E_FORMAT, KEY("tokens") ": entry %lld is not a text", (long long)i);
        if (n_types >= 0 && !hdl_gguf_array_int(gguf, KEY("token_type"), i, &type))
            return HDL_FAIL(HEDDLE_E_FORMAT, KEY("token_type") ": entry %lld is not a whole number",
                            (long long)i);
        if (type < HDL_TOKEN_NORMAL || type > HDL_TOKEN_BYTE)
            return HDL_FAIL(HEDDLE_E_FORMAT, KEY("token_type") ": entry %lld is %lld: must be in 1..6",
                            (long long)i, (long long)type);
        if (with_scores && !hdl_gguf_array_num(gguf, KEY("scores"), i, &score))
            return HDL_FAIL(HEDDLE_E_FORMAT, KEY("scores") ": entry %lld is not a number", (long long)i);
        row->type = (uint8_t)type;
        row->score = (float)score;
    }
    return HEDDLE_OK;
}

static heddle_status read_id(const hdl_gguf *gguf, const char *key, int32_t n_vocab, int32_t *out)
{
    int64_t id;
    if (!hdl_gguf_int(gguf, key, &id)) return HEDDLE_OK;
    /* files write -1 (as u32 too) for "none" */
    if (id == -1 || id == UINT32_MAX) return HEDDLE_OK;
    if (id < 0 || id >= n_vocab)
        return HDL_FAIL(HEDDLE_E_FORMAT, "%s %lld: must be in 0..%d", key, (long long)id, n_vocab - 1);
    *out = (int32_t)id;
    return HEDDLE_OK;
}

static heddle_status read_special(const hdl_gguf *gguf, hdl_tokenizer *tok)
{
    hdl_special_ids *special = &tok->special;
    HDL_TRY(read_id(gguf, KEY("bos_token_id"), tok->n_vocab, &special->bos));
    HDL_TRY(read_id(gguf, KEY("eos_token_id"), tok->n_vocab, &special->eos));
    HDL_TRY(read_id(gguf, KEY("eot_token_id"), tok->n_vocab, &special->eot));
    HDL_TRY(read_id(gguf, KEY("padding_token_id"), tok->n_vocab, &special->pad));
    /* a byte-level vocabulary has no use for one: HF leaves such bytes out */
    int32_t unk = -1;
    HDL_TRY(read_id(gguf, KEY("unknown_token_id"), tok->n_vocab, &unk));
    if (!tok->is_byte_level) special->unk = unk;
    int64_t flag;
    if (hdl_gguf_int(gguf, KEY("add_bos_token"), &flag)) special->add_bos = flag != 0;
    if (hdl_gguf_int(gguf, KEY("add_eos_token"), &flag)) special->add_eos = flag != 0;
    return HEDDLE_OK;
}

static heddle_status read_byte_level(const hdl_gguf *gguf, hdl_tokenizer *tok)
{
    hdl_text pre = {"default", 7}, line;
    hdl_gguf_str(gguf, KEY("pre"), &pre);
    const hdl_pretok_row *row = hdl_pretok_find(pre);
    if (!row)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, KEY("pre") " \"%.*s\": this pretokeniser is not supported",
                        (int)HDL_MIN(pre.n, 64), pre.data);
    HDL_TRY(hdl_pretok_add(&tok->pretok, row->pattern, false));
    tok->ignore_merges = row->ignore_merges;
    tok->special.add_bos = row->add_bos;
    int64_t n = hdl_gguf_array_n(gguf, KEY("merges")), cursor = 0, flag;
    if (n < 0) return HDL_FAIL(HEDDLE_E_FORMAT, KEY("merges") ": the file has none");
    HDL_TRY(hdl_tok_reserve_merges(tok, n));
    for (int64_t i = 0; i < n; i++) {
        if (!hdl_gguf_array_next_str(gguf, KEY("merges"), &cursor, &line))
            return HDL_FAIL(HEDDLE_E_FORMAT, KEY("merges") ": entry %lld is not a text", (long long)i);
        HDL_TRY(hdl_tok_add_merge_line(tok, line, (int32_t)i));
    }
    if (hdl_gguf_int(gguf, KEY("add_space_prefix"), &flag)) tok->add_prefix_space = flag != 0;
    tok->prefix_unless_space = true;
    return HEDDLE_OK;
}

static heddle_status read_spm(const hdl_gguf *gguf, hdl_tokenizer *tok)
{
    int64_t flag;
    if (hdl_gguf_int(gguf, KEY("remove_extra_whitespaces"), &flag) && flag)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, KEY("remove_extra_whitespaces") ": true is not supported");
    tok->replaces_spaces = true;
    tok->fuses_unknown = true;
    tok->special.add_bos = true;
    tok->add_prefix_space = true;
    if (hdl_gguf_int(gguf, KEY("add_space_prefix"), &flag)) tok->add_prefix_space = flag != 0;
    return HEDDLE_OK;
}

heddle_status hdl_tokenizer_from_gguf(hdl_tokenizer **out, const hdl_gguf *gguf)
{
    *out = NULL;
    hdl_tokenizer *tok = NULL;
    hdl_token_in *rows = NULL;
    int64_t n_rows = 0;
    hdl_text model;
    if (!hdl_gguf_str(gguf, KEY("model"), &model))
        return HDL_FAIL(HEDDLE_E_FORMAT, KEY("model") ": the file has no tokenizer");
    bool is_byte_level = equals(model, "gpt2");
    if (!is_byte_level && !equals(model, "llama"))
        return HDL_FAIL(
            HEDDLE_E_UNSUPPORTED,
            KEY("model") " \"%.*s\": only gpt2 (byte-level BPE) and llama (SentencePiece BPE) are supported",
            (int)HDL_MIN(model.n, 64), model.data);
    heddle_status status = read_rows(gguf, !is_byte_level, &rows, &n_rows);
    if (!status) status = hdl_tok_new(&tok, is_byte_level, !is_byte_level, rows, n_rows);
    if (!status) status = is_byte_level ? read_byte_level(gguf, tok) : read_spm(gguf, tok);
    if (!status) status = read_special(gguf, tok);
    if (status) goto done;
    hdl_tok_finish(tok);
    *out = tok;
    tok = NULL;
done:
    hdl_free(rows);
    hdl_tokenizer_free(tok);
    return status;
}
