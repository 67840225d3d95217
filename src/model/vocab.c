/* vocab.c - the tables of a tokenizer: token texts, their index, merges, the trie of added tokens.
 *
 * Everything is built once from borrowed rows and never changes afterwards. Where two tokens have
 * the same spelling the later one is found, as in the engines these files were made for. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "model/tokenizer_int.h"
#include "model/unicode.h"

static uint64_t hash_bytes(const char *text, int64_t n)
{
    const uint64_t k = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t h = (uint64_t)n * k, word;
    for (; n >= 8; n -= 8, text += 8) {
        memcpy(&word, text, 8);
        h = (h ^ word) * k;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, text, (size_t)n);
    h = (h ^ word) * k;
    return h ^ h >> 29;
}

static uint64_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 32;
}

static int64_t slots_for(int64_t n)
{
    int64_t slots = 16;
    while (slots < n * 2) slots *= 2;
    return slots;
}

/* --- GPT-2's printable alphabet -------------------------------------------------------------- */

/* The alphabet gives each byte a printable character: itself in ! .. ~, U+00A1..AC, AE..FF; the
 * other 68 bytes, in order, U+0100 and up. */
static bool is_printable(int byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static int byte_of_char(int32_t cp)
{
    if (cp < 0x100) return is_printable(cp) ? cp : -1;
    int32_t next = 0x100;
    for (int byte = 0; byte < 256; byte++)
        if (!is_printable(byte) && next++ == cp) return byte;
    return -1;
}

void hdl_tok_unmap_bytes(hdl_text text, hdl_buf *out)
{
    for (int64_t i = 0; i < text.n;) {
        int32_t cp = (uint8_t)text.data[i];
        int len = 1, byte = cp;
        if (cp >= 0x80) {
            len = HDL_MAX(hdl_utf8_next(text.data + i, text.n - i, &cp), 1);
            byte = byte_of_char(cp);
        }
        if (byte >= 0) {
            char c = (char)byte;
            hdl_buf_add(out, &c, 1);
        } else {
            hdl_buf_add(out, text.data + i, len);
        }
        i += len;
    }
}

/* --- texts and their index ------------------------------------------------------------------- */

static bool is_added(uint8_t type)
{
    return type == HDL_TOKEN_CONTROL || type == HDL_TOKEN_USER || type == HDL_TOKEN_UNKNOWN;
}

static bool spells(const hdl_tokenizer *tok, int32_t id, const char *text, int64_t n)
{
    return tok->at[id + 1] - tok->at[id] == n && !memcmp(tok->text + tok->at[id], text, (size_t)n);
}

int32_t hdl_tok_find(const hdl_tokenizer *tok, const char *text, int64_t n, unsigned type_mask)
{
    uint64_t hash = hash_bytes(text, n);
    int64_t mask = tok->n_slots - 1;
    for (int64_t i = (int64_t)hash & mask;; i = (i + 1) & mask) {
        hdl_vocab_slot slot = tok->slots[i];
        if (slot.id < 0) return -1;
        if (slot.tag != (uint32_t)(hash >> 32)) continue;
        if (type_mask >> tok->type[slot.id] & 1 && spells(tok, slot.id, text, n)) return slot.id;
    }
}

static void index_token(hdl_tokenizer *tok, int32_t id)
{
    int64_t mask = tok->n_slots - 1, n = tok->at[id + 1] - tok->at[id];
    const char *text = tok->text + tok->at[id];
    uint64_t hash = hash_bytes(text, n);
    uint32_t tag = (uint32_t)(hash >> 32);
    int64_t i = (int64_t)hash & mask;
    for (; tok->slots[i].id >= 0; i = (i + 1) & mask) {
        int32_t other = tok->slots[i].id;
        if (tok->slots[i].tag == tag && tok->type[other] == tok->type[id] && spells(tok, other, text, n))
            break;
    }
    tok->slots[i] = (hdl_vocab_slot){tag, id};
}

/* "<0x0A>" -> 10, anything else -> -1. */
static int byte_token_value(hdl_text text)
{
    if (text.n != 6 || memcmp(text.data, "<0x", 3) || text.data[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text.data[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static heddle_status copy_tokens(hdl_tokenizer *tok, const hdl_token_in *tokens)
{
    hdl_buf text = {0};
    heddle_status status = HEDDLE_OK;
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const hdl_token_in *in = &tokens[id];
        tok->at[id] = (uint32_t)text.n;
        tok->type[id] = in->type;
        tok->flags[id] = in->flags;
        if (in->type > HDL_TOKEN_BYTE) {
            status = HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: token %d has type %d: must be in 1..6", id,
                              in->type);
            goto done;
        }
        if (tok->score) tok->score[id] = isnan(in->score) ? -INFINITY : in->score + 0.0f;
        if (tok->is_byte_level && !is_added(in->type))
            hdl_tok_unmap_bytes(in->text, &text);
        else
            hdl_buf_add(&text, in->text.data, in->text.n);
        if (text.n > INT32_MAX) {
            status = HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: the vocabulary has more than 2 GiB of text");
            goto done;
        }
    }
    hdl_buf_add(&text, "\0\0\0\0\0\0\0", 8); /* never empty, so that data is never NULL */
    status = hdl_buf_status(&text);
    if (status) goto done;
    tok->at[tok->n_vocab] = (uint32_t)text.n - 8;
    tok->text = text.data;
    text.data = NULL;
done:
    hdl_free(text.data);
    return status;
}

/* --- added tokens ---------------------------------------------------------------------------- */

static int32_t trie_new(hdl_tokenizer *tok, uint8_t byte)
{
    if (tok->n_trie == tok->trie_capacity) {
        int64_t capacity = tok->trie_capacity * 2 + 64;
        hdl_trie_node *grown = hdl_realloc(tok->trie, tok->n_trie, capacity, sizeof *grown);
        if (!grown) return -1;
        tok->trie = grown;
        tok->trie_capacity = capacity;
    }
    tok->trie[tok->n_trie] = (hdl_trie_node){.child = -1, .sibling = -1, .id = -1, .byte = byte};
    return (int32_t)tok->n_trie++;
}

static heddle_status trie_add(hdl_tokenizer *tok, int32_t id)
{
    const char *text = tok->text + tok->at[id];
    int64_t n = tok->at[id + 1] - tok->at[id];
    if (!n) return HEDDLE_OK;
    if (n > HDL_TOK_MAX_ADDED_BYTES)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "tokenizer: added token %d has %lld bytes: at most %d", id,
                        (long long)n, HDL_TOK_MAX_ADDED_BYTES);
    int32_t node = tok->trie_root[(uint8_t)text[0]];
    if (node < 0) {
        node = trie_new(tok, (uint8_t)text[0]);
        if (node < 0) return HEDDLE_E_NOMEM;
        tok->trie_root[(uint8_t)text[0]] = node;
    }
    for (int64_t i = 1; i < n; i++) {
        int32_t next = tok->trie[node].child;
        while (next >= 0 && tok->trie[next].byte != (uint8_t)text[i]) next = tok->trie[next].sibling;
        if (next < 0) {
            next = trie_new(tok, (uint8_t)text[i]);
            if (next < 0) return HEDDLE_E_NOMEM;
            tok->trie[next].sibling = tok->trie[node].child;
            tok->trie[node].child = next;
        }
        node = next;
    }
    tok->trie[node].id = id;
    return HEDDLE_OK;
}

int32_t hdl_tok_match_added(const hdl_tokenizer *tok, const char *text, int64_t n, int64_t n_control)
{
    int32_t best = -1, node = n > 0 ? tok->trie_root[(uint8_t)text[0]] : -1;
    for (int64_t i = 1; node >= 0; i++) {
        int32_t id = tok->trie[node].id;
        if (id >= 0 && (i <= n_control || tok->type[id] == HDL_TOKEN_USER)) best = id;
        node = i < n ? tok->trie[node].child : -1;
        while (node >= 0 && tok->trie[node].byte != (uint8_t)text[i]) node = tok->trie[node].sibling;
    }
    return best;
}

/* --- the object ------------------------------------------------------------------------------ */

static heddle_status index_all(hdl_tokenizer *tok)
{
    for (int i = 0; i < 256; i++) tok->byte_ids[i] = tok->trie_root[i] = -1;
    for (int64_t i = 0; i < tok->n_slots; i++) tok->slots[i].id = -1;
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        if (!tok->type[id]) continue;
        hdl_text text = {tok->text + tok->at[id], tok->at[id + 1] - tok->at[id]};
        tok->max_piece_bytes = HDL_MAX(tok->max_piece_bytes, (int32_t)text.n);
        index_token(tok, id);
        if (is_added(tok->type[id])) {
            HDL_TRY(trie_add(tok, id));
        } else if (tok->is_byte_level) {
            if (text.n == 1) tok->byte_ids[(uint8_t)text.data[0]] = id;
        } else if (tok->type[id] == HDL_TOKEN_BYTE) {
            int value = byte_token_value(text);
            if (value < 0)
                return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: token %d is a byte token but not spelled <0xNN>",
                                id);
            tok->byte_ids[value] = id;
        }
    }
    for (int c = 0; c < 128; c++) {
        char text = (char)c;
        tok->char_ids[c] = hdl_tok_find(tok, &text, 1, HDL_TOKENS_PLAIN);
    }
    return HEDDLE_OK;
}

heddle_status hdl_tok_new(hdl_tokenizer **out, bool is_byte_level, bool uses_scores,
                          const hdl_token_in *tokens, int64_t n_vocab)
{
    *out = NULL;
    if (n_vocab < 1 || n_vocab > HDL_TOK_MAX_VOCAB)
        return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: a vocabulary of %lld tokens: must be in 1..%d",
                        (long long)n_vocab, HDL_TOK_MAX_VOCAB);
    hdl_tokenizer *tok = hdl_calloc(1, sizeof *tok);
    if (!tok) return HEDDLE_E_NOMEM;
    heddle_status status = HEDDLE_E_NOMEM;
    tok->is_byte_level = is_byte_level;
    tok->uses_scores = uses_scores;
    tok->n_vocab = (int32_t)n_vocab;
    tok->special = (hdl_special_ids){.bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    tok->n_slots = slots_for(n_vocab);
    tok->at = hdl_calloc(n_vocab + 1, sizeof *tok->at);
    tok->type = hdl_calloc(n_vocab, 1);
    tok->flags = hdl_calloc(n_vocab, 1);
    tok->slots = hdl_calloc(tok->n_slots, sizeof *tok->slots);
    if (uses_scores) tok->score = hdl_calloc(n_vocab, sizeof *tok->score);
    if (!tok->at || !tok->type || !tok->flags || !tok->slots || (uses_scores && !tok->score)) goto done;
    status = copy_tokens(tok, tokens);
    if (status) goto done;
    status = index_all(tok);
    if (status) goto done;
    *out = tok;
    tok = NULL;
done:
    hdl_tokenizer_free(tok);
    return status;
}

void hdl_tokenizer_free(hdl_tokenizer *tok)
{
    if (!tok) return;
    hdl_pretok_deinit(&tok->pretok);
    hdl_free(tok->text);
    hdl_free(tok->at);
    hdl_free(tok->type);
    hdl_free(tok->flags);
    hdl_free(tok->score);
    hdl_free(tok->slots);
    hdl_free(tok->merges);
    hdl_free(tok->trie);
    hdl_free(tok);
}

/* --- merges ---------------------------------------------------------------------------------- */

heddle_status hdl_tok_reserve_merges(hdl_tokenizer *tok, int64_t n_merges)
{
    if (n_merges < 0 || n_merges > INT32_MAX / 4)
        return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: %lld merges: must be in 0..%d", (long long)n_merges,
                        INT32_MAX / 4);
    int64_t n_slots = slots_for(n_merges);
    tok->merges = hdl_calloc(n_slots, sizeof *tok->merges);
    if (!tok->merges) return HEDDLE_E_NOMEM;
    tok->n_merge_slots = n_slots;
    for (int64_t i = 0; i < n_slots; i++) tok->merges[i].left = -1;
    return HEDDLE_OK;
}

const hdl_merge_slot *hdl_tok_merge_of(const hdl_tokenizer *tok, int32_t left, int32_t right)
{
    int64_t mask = tok->n_merge_slots - 1;
    for (int64_t i = (int64_t)hash_pair(left, right) & mask;; i = (i + 1) & mask) {
        const hdl_merge_slot *slot = &tok->merges[i];
        if (slot->left < 0) return NULL;
        if (slot->left == left && slot->right == right) return slot;
    }
}

heddle_status hdl_tok_add_merge(hdl_tokenizer *tok, hdl_text left, hdl_text right, int32_t rank)
{
    unsigned plain = 1u << HDL_TOKEN_NORMAL | 1u << HDL_TOKEN_UNUSED;
    unsigned any = plain | 1u << HDL_TOKEN_USER | 1u << HDL_TOKEN_CONTROL | 1u << HDL_TOKEN_UNKNOWN |
                   1u << HDL_TOKEN_BYTE;
    hdl_buf joined = {0};
    if (tok->is_byte_level)
        hdl_tok_unmap_bytes(left, &joined);
    else
        hdl_buf_add(&joined, left.data, left.n);
    int64_t n_left = joined.n;
    if (tok->is_byte_level)
        hdl_tok_unmap_bytes(right, &joined);
    else
        hdl_buf_add(&joined, right.data, right.n);
    heddle_status status = hdl_buf_status(&joined);
    if (status) goto done;
    int32_t ids[3];
    const char *texts[3] = {joined.data, joined.data + n_left, joined.data};
    int64_t n[3] = {n_left, joined.n - n_left, joined.n};
    for (int i = 0; i < 3; i++) {
        ids[i] = hdl_tok_find(tok, texts[i], n[i], plain);
        if (ids[i] < 0) ids[i] = hdl_tok_find(tok, texts[i], n[i], any);
        if (ids[i] < 0) {
            status = HDL_FAIL(HEDDLE_E_FORMAT,
                              "tokenizer: merge %d names the token \"%.*s\", which is not in the vocabulary",
                              rank, (int)HDL_MIN(n[i], 64), texts[i]);
            goto done;
        }
    }
    /* plain text never becomes a control token, whatever the file's merges say */
    if (tok->type[ids[2]] == HDL_TOKEN_CONTROL || tok->type[ids[2]] == HDL_TOKEN_UNKNOWN) goto done;
    if (hdl_tok_merge_of(tok, ids[0], ids[1])) goto done; /* the first rank counts */
    int64_t mask = tok->n_merge_slots - 1, i = (int64_t)hash_pair(ids[0], ids[1]) & mask;
    while (tok->merges[i].left >= 0) i = (i + 1) & mask;
    tok->merges[i] = (hdl_merge_slot){ids[0], ids[1], rank, ids[2]};
done:
    hdl_buf_deinit(&joined);
    return status;
}

heddle_status hdl_tok_add_merge_line(hdl_tokenizer *tok, hdl_text line, int32_t rank)
{
    const char *space = line.n > 1 ? memchr(line.data + 1, ' ', (size_t)line.n - 1) : NULL;
    if (!space || space + 1 == line.data + line.n)
        return HDL_FAIL(HEDDLE_E_FORMAT, "tokenizer: merge %d is not two tokens with a space between them",
                        rank);
    int64_t n_left = space - line.data;
    return hdl_tok_add_merge(tok, (hdl_text){line.data, n_left}, (hdl_text){space + 1, line.n - n_left - 1},
                             rank);
}

/* --- ends of an answer ----------------------------------------------------------------------- */

void hdl_tok_finish(hdl_tokenizer *tok)
{
    static const char *const ends[] = {
        "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>",   "<|end_of_text|>",
        "<|end|>",    "<EOT>",         "<|eot|>",    "<turn|>",    "<|end_of_turn|>",
    };
    for (int64_t i = 0; i < HDL_COUNT(ends); i++) {
        int32_t id = hdl_tok_find(tok, ends[i], (int64_t)strlen(ends[i]),
                                  1u << HDL_TOKEN_CONTROL | 1u << HDL_TOKEN_USER);
        if (id >= 0) tok->flags[id] |= HDL_TOKEN_IS_END;
    }
    if (tok->special.eos >= 0) tok->flags[tok->special.eos] |= HDL_TOKEN_IS_END;
    if (tok->special.eot >= 0) tok->flags[tok->special.eot] |= HDL_TOKEN_IS_END;
    if (!tok->is_byte_level) hdl_spm_inspect(tok);
}

void hdl_tokenizer_set_document(hdl_tokenizer *tok, int32_t id)
{
    tok->special.bos = id;
    tok->special.add_bos = true;
    tok->flags[id] |= HDL_TOKEN_IS_END;
}
