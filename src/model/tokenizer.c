/* tokenizer.c - the tokenizer's public face: whole texts to ids, ids to bytes.
 *
 * Added tokens are taken out of the text first, longest match at the left-most place; what lies
 * between them is a segment, put into normal form and encoded alone. Decoding looks at one id at
 * a time, so pieces can be shown as they come; the space that some SentencePiece models put in
 * front of a text therefore stays in front of it. */
#include "model/tokenizer.h"

#include <string.h>

#include "base/mem.h"
#include "model/tokenizer_int.h"
#include "model/unicode.h"

enum {
    MAX_TEXT_BYTES = INT32_MAX / 4, /* offsets are 32 bits; a space becomes three bytes */
    WORDS_FROM_BYTES = 2048         /* below this the table of seen words is not worth clearing */
};

heddle_status hdl_ids_add(hdl_ids *ids, const int32_t *data, int64_t n)
{
    if (ids->n + n > ids->capacity) {
        int64_t capacity = HDL_MAX(ids->capacity * 2, ids->n + n + 32);
        int32_t *grown = hdl_realloc(ids->data, ids->n, capacity, sizeof *grown);
        if (!grown) return HEDDLE_E_NOMEM;
        ids->data = grown;
        ids->capacity = capacity;
    }
    if (n) memcpy(ids->data + ids->n, data, (size_t)n * sizeof *data);
    ids->n += n;
    return HEDDLE_OK;
}

void hdl_ids_deinit(hdl_ids *ids)
{
    hdl_free(ids->data);
    *ids = (hdl_ids){0};
}

/* --- encode ---------------------------------------------------------------------------------- */

static bool needs_copy(const hdl_tokenizer *tok)
{
    return tok->replaces_spaces || tok->is_nfc || tok->add_prefix_space;
}

/* Appends the normal form of a segment to work->norm. */
static heddle_status normalise(hdl_tok_work *work, const char *text, int64_t n)
{
    const hdl_tokenizer *tok = work->tok;
    const char *space = tok->replaces_spaces ? "\xe2\x96\x81" : " ";
    hdl_buf *out = &work->norm;
    if (tok->add_prefix_space && (work->is_first_segment || !tok->prefix_first_only)) {
        bool has_space = text[0] == ' ' || (tok->replaces_spaces && n >= 3 && !memcmp(text, space, 3));
        if (!has_space || !tok->prefix_unless_space) hdl_buf_puts(out, space);
    }
    if (tok->is_nfc) return hdl_unicode_nfc(text, n, out);
    for (int64_t i = 0; i < n;) {
        const char *hit = tok->replaces_spaces ? memchr(text + i, ' ', (size_t)(n - i)) : NULL;
        int64_t stop = hit ? hit - text : n;
        hdl_buf_add(out, text + i, stop - i);
        if (hit) hdl_buf_puts(out, space);
        i = stop + (hit != NULL);
    }
    return hdl_buf_status(out);
}

static heddle_status encode_segment(hdl_tok_work *work, const char *text, int64_t at, int64_t n)
{
    if (n <= 0) return HEDDLE_OK;
    const char *base = text;
    if (needs_copy(work->tok)) {
        int64_t norm_at = work->norm.n;
        HDL_TRY(normalise(work, text + at, n));
        base = work->norm.data;
        at = norm_at;
        n = work->norm.n - norm_at;
    }
    work->is_first_segment = false;
    return work->tok->is_byte_level ? hdl_pretok_segment(work, base, at, n)
                                    : hdl_spm_segment(work, base, at, n);
}

static bool is_word_before(const char *text, int64_t at)
{
    int64_t start = at - 1;
    int32_t cp;
    while (start > 0 && at - start < 4 && ((uint8_t)text[start] & 0xc0) == 0x80) start--;
    return at > 0 && hdl_utf8_next(text + start, at - start, &cp) == at - start && hdl_unicode_is_word(cp);
}

static bool is_word_after(const char *text, int64_t at, int64_t n)
{
    int32_t cp;
    return hdl_utf8_next(text + at, n - at, &cp) > 0 && hdl_unicode_is_word(cp);
}

/* Widens [*start, *stop) over white space as the added token asks; not before `floor`. */
static void strip_around(uint8_t flags, const char *text, int64_t floor, int64_t n, int64_t *start,
                         int64_t *stop)
{
    int32_t cp;
    if (flags & HDL_TOKEN_RSTRIP)
        for (int len; (len = hdl_utf8_next(text + *stop, n - *stop, &cp)) && hdl_unicode_is_space(cp);)
            *stop += len;
    while (flags & HDL_TOKEN_LSTRIP && *start > floor) {
        int64_t from = *start - 1;
        while (from > floor && *start - from < 4 && ((uint8_t)text[from] & 0xc0) == 0x80) from--;
        if (hdl_utf8_next(text + from, *start - from, &cp) != *start - from || !hdl_unicode_is_space(cp))
            break;
        *start = from;
    }
}

/* Bytes from `at` to the end of the part that holds it, if that part may hold control tokens.
 * *part and *part_end move along with `at`. */
static int64_t control_bytes(const hdl_text_part *parts, int64_t at, int64_t *part, int64_t *part_end)
{
    while (at >= *part_end) *part_end += parts[++*part].n;
    return parts[*part].parse_special ? *part_end - at : 0;
}

/* `text` is the parts joined, n > 0 bytes. */
static heddle_status encode_text(hdl_tok_work *work, const char *text, int64_t n, const hdl_text_part *parts)
{
    const hdl_tokenizer *tok = work->tok;
    int64_t done = 0, part = 0, part_end = parts[0].n;
    for (int64_t i = 0; i < n;) {
        int32_t id = -1;
        if (tok->trie_root[(uint8_t)text[i]] >= 0)
            id = hdl_tok_match_added(tok, text + i, n - i, control_bytes(parts, i, &part, &part_end));
        if (id < 0) {
            i++;
            continue;
        }
        int64_t start = i, stop = i + tok->at[id + 1] - tok->at[id];
        uint8_t flags = tok->flags[id];
        if (flags & HDL_TOKEN_WHOLE_WORD && (is_word_before(text, start) || is_word_after(text, stop, n))) {
            i = stop;
            continue;
        }
        strip_around(flags, text, done, n, &start, &stop);
        HDL_TRY(encode_segment(work, text, done, start - done));
        HDL_TRY(hdl_ids_add(work->ids, &id, 1));
        work->is_first_segment = false;
        done = i = stop;
    }
    return encode_segment(work, text, done, n - done);
}

static heddle_status join_parts(const hdl_text_part *parts, int64_t n_parts, hdl_buf *joined, hdl_text *text)
{
    int64_t n = 0;
    for (int64_t i = 0; i < n_parts; i++) {
        if (parts[i].n < 0 || parts[i].n > MAX_TEXT_BYTES - n)
            return HDL_FAIL(HEDDLE_E_CAPACITY, "a text of %lld bytes: at most %d can be tokenised at once",
                            (long long)(n + parts[i].n), MAX_TEXT_BYTES);
        n += parts[i].n;
        if (n_parts > 1) hdl_buf_add(joined, parts[i].text, parts[i].n);
    }
    *text = (hdl_text){n_parts == 1 ? parts[0].text : joined->data, n};
    return hdl_buf_status(joined);
}

heddle_status hdl_tokenizer_encode_parts(const hdl_tokenizer *tok, const hdl_text_part *parts,
                                         int64_t n_parts, bool add_bos_eos, hdl_ids *ids)
{
    const hdl_special_ids *special = &tok->special;
    int64_t n_before = ids->n;
    hdl_tok_work work = {.tok = tok, .ids = ids, .is_first_segment = true};
    hdl_buf joined = {0};
    hdl_text text = {0};
    heddle_status status = join_parts(parts, n_parts, &joined, &text);
    if (status) goto done;
    if (text.n >= WORDS_FROM_BYTES) {
        work.words = hdl_calloc(HDL_WORD_SLOTS, sizeof *work.words);
        status = work.words ? HEDDLE_OK : HEDDLE_E_NOMEM;
    }
    if (!status) status = hdl_pretok_work_init(&work, text.n);
    if (!status && add_bos_eos && special->add_bos && special->bos >= 0)
        status = hdl_ids_add(ids, &special->bos, 1);
    if (!status && text.n) status = encode_text(&work, text.data, text.n, parts);
    if (!status && add_bos_eos && special->add_eos && special->eos >= 0)
        status = hdl_ids_add(ids, &special->eos, 1);
done:
    if (status) ids->n = n_before;
    hdl_pretok_work_deinit(&work);
    hdl_buf_deinit(&joined);
    hdl_buf_deinit(&work.norm);
    hdl_buf_deinit(&work.clean);
    hdl_free(work.syms);
    hdl_free(work.heap);
    hdl_free(work.words);
    return status;
}

heddle_status hdl_tokenizer_encode(const hdl_tokenizer *tok, const char *text, int64_t n, bool parse_special,
                                   bool add_bos_eos, hdl_ids *ids)
{
    return hdl_tokenizer_encode_parts(tok, &(hdl_text_part){text, n, parse_special}, 1, add_bos_eos, ids);
}

/* --- decode ---------------------------------------------------------------------------------- */

static int byte_of(const hdl_tokenizer *tok, int32_t id)
{
    const char *text = tok->text + tok->at[id]; /* "<0xNN>", checked when the file was read */
    static const char digits[] = "0123456789ABCDEF";
    return (int)((strchr(digits, text[3]) - digits) * 16 + (strchr(digits, text[4]) - digits));
}

heddle_status hdl_tokenizer_decode(const hdl_tokenizer *tok, const int32_t *ids, int64_t n, bool with_special,
                                   hdl_buf *text)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t id = ids[i];
        if (id < 0 || id >= tok->n_vocab)
            return HDL_FAIL(HEDDLE_E_INVALID, "token id %d: must be in 0..%d", id, tok->n_vocab - 1);
        if (hdl_tokenizer_is_special(tok, id) && !with_special) continue;
        const char *piece = tok->text + tok->at[id];
        int64_t n_bytes = tok->at[id + 1] - tok->at[id];
        if (!tok->is_byte_level && tok->type[id] == HDL_TOKEN_BYTE) {
            char byte = (char)byte_of(tok, id);
            hdl_buf_add(text, &byte, 1);
            continue;
        }
        for (int64_t k = 0; k < n_bytes;) {
            const char *mark = tok->replaces_spaces ? memchr(piece + k, 0xe2, (size_t)(n_bytes - k)) : NULL;
            int64_t stop = mark ? mark - piece : n_bytes;
            hdl_buf_add(text, piece + k, stop - k);
            k = stop;
            if (!mark) continue;
            bool is_space = n_bytes - k >= 3 && !memcmp(mark, "\xe2\x96\x81", 3);
            hdl_buf_add(text, is_space ? " " : mark, 1);
            k += is_space ? 3 : 1;
        }
    }
    return hdl_buf_status(text);
}

/* --- facts ----------------------------------------------------------------------------------- */

int32_t hdl_tokenizer_n_vocab(const hdl_tokenizer *tok)
{
    return tok->n_vocab;
}

const hdl_special_ids *hdl_tokenizer_special(const hdl_tokenizer *tok)
{
    return &tok->special;
}

int32_t hdl_tokenizer_id_of(const hdl_tokenizer *tok, const char *piece)
{
    int64_t n = (int64_t)strlen(piece);
    int32_t id = hdl_tok_find(tok, piece, n,
                              1u << HDL_TOKEN_CONTROL | 1u << HDL_TOKEN_USER | 1u << HDL_TOKEN_UNKNOWN);
    return id >= 0 ? id : hdl_tok_find(tok, piece, n, ~0u);
}

bool hdl_tokenizer_is_special(const hdl_tokenizer *tok, int32_t id)
{
    if (id < 0 || id >= tok->n_vocab) return false;
    return tok->type[id] == HDL_TOKEN_CONTROL || tok->type[id] == HDL_TOKEN_UNKNOWN;
}

bool hdl_tokenizer_is_end(const hdl_tokenizer *tok, int32_t id)
{
    return id >= 0 && id < tok->n_vocab && tok->flags[id] & HDL_TOKEN_IS_END;
}
