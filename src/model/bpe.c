/* bpe.c - the merge engine: symbols of one chunk, joined best pair first, left-most on ties.
 *
 * Short chunks are merged in arrays on the stack by looking for the least order again and again;
 * long ones through a heap over a linked list, O(n log n). Both give the same ids. The order of a
 * pair is its rank; with scores it is (score of what they spell, longer left part, longer right
 * part), which is how Hugging Face turns a SentencePiece model's scores into ranks.
 *
 * Words come back: a direct-mapped table remembers where in the text a chunk stood and where its
 * ids went, so that a repeated word is a copy inside the output. */
#include <string.h>

#include "base/mem.h"
#include "model/tokenizer_int.h"
#include "model/unicode.h"

enum { SMALL = 48 };

#define NO_ORDER UINT64_MAX

/* A score as an integer that sorts the other way round: the best score is the least. */
static uint32_t descending(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | UINT32_C(0x80000000);
    return ~bits;
}

/* Order and resulting id of joining two neighbours; NO_ORDER = they do not join. */
static uint64_t pair_order(const hdl_tokenizer *tok, const char *base, const hdl_sym *a, const hdl_sym *b,
                           int32_t *id)
{
    if (!tok->uses_scores) {
        const hdl_merge_slot *slot = hdl_tok_merge_of(tok, a->id, b->id);
        if (!slot) return NO_ORDER;
        *id = slot->id;
        return (uint64_t)slot->rank;
    }
    if (!a->n_chars || !b->n_chars || a->len + b->len > tok->max_piece_bytes) return NO_ORDER;
    *id = hdl_tok_find(tok, base + a->at, a->len + b->len, HDL_TOKENS_PLAIN);
    if (*id < 0) return NO_ORDER;
    return (uint64_t)descending(tok->score[*id]) << 32 | (uint64_t)(0xffff - (a->n_chars & 0xffff)) << 16 |
           (uint64_t)(0xffff - (b->n_chars & 0xffff));
}

static int64_t merge_small(const hdl_tokenizer *tok, const char *base, hdl_sym *syms, int64_t n)
{
    uint64_t order[SMALL];
    int32_t id[SMALL];
    for (int64_t i = 0; i + 1 < n; i++) order[i] = pair_order(tok, base, &syms[i], &syms[i + 1], &id[i]);
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++)
            if (order[i] < order[best]) best = i;
        if (order[best] == NO_ORDER) break;
        syms[best].id = id[best];
        syms[best].len += syms[best + 1].len;
        syms[best].n_chars += syms[best + 1].n_chars;
        size_t tail = (size_t)(n - best - 2);
        memmove(&syms[best + 1], &syms[best + 2], tail * sizeof *syms);
        memmove(&order[best], &order[best + 1], tail * sizeof *order);
        memmove(&id[best], &id[best + 1], tail * sizeof *id);
        n--;
        if (best > 0) order[best - 1] = pair_order(tok, base, &syms[best - 1], &syms[best], &id[best - 1]);
        if (best + 1 < n) order[best] = pair_order(tok, base, &syms[best], &syms[best + 1], &id[best]);
    }
    return n;
}

/* --- the heap -------------------------------------------------------------------------------- */

static bool is_before(const hdl_merge_item *a, const hdl_merge_item *b)
{
    return a->order != b->order ? a->order < b->order : a->left < b->left;
}

static void sift_down(hdl_merge_item *heap, int64_t n, int64_t i)
{
    hdl_merge_item item = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_before(&heap[child + 1], &heap[child])) child++;
        if (!is_before(&heap[child], &item)) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static heddle_status push(hdl_tok_work *work, int64_t *n, const char *base, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return HEDDLE_OK;
    const hdl_sym *a = &work->syms[left], *b = &work->syms[right];
    hdl_merge_item item = {.left = left, .right = right, .len = a->len + b->len};
    item.order = pair_order(work->tok, base, a, b, &item.id);
    if (item.order == NO_ORDER) return HEDDLE_OK;
    if (*n == work->heap_capacity) {
        int64_t capacity = work->heap_capacity * 2 + 256;
        hdl_merge_item *grown = hdl_realloc(work->heap, *n, capacity, sizeof *grown);
        if (!grown) return HEDDLE_E_NOMEM;
        work->heap = grown;
        work->heap_capacity = capacity;
    }
    int64_t i = (*n)++;
    for (int64_t parent; i > 0 && (parent = (i - 1) / 2, is_before(&item, &work->heap[parent])); i = parent)
        work->heap[i] = work->heap[parent];
    work->heap[i] = item;
    return HEDDLE_OK;
}

static heddle_status merge_heap(hdl_tok_work *work, const char *base, int64_t n_syms, int64_t *n_left)
{
    hdl_sym *syms = work->syms;
    int64_t n = 0;
    for (int64_t i = 0; i < n_syms; i++) {
        syms[i].prev = (int32_t)i - 1;
        syms[i].next = i + 1 < n_syms ? (int32_t)i + 1 : -1;
    }
    for (int64_t i = 0; i + 1 < n_syms; i++) HDL_TRY(push(work, &n, base, (int32_t)i, (int32_t)i + 1));
    while (n > 0) {
        hdl_merge_item item = work->heap[0];
        work->heap[0] = work->heap[--n];
        if (n > 1) sift_down(work->heap, n, 0);
        hdl_sym *a = &syms[item.left], *b = &syms[item.right];
        /* stale: one of the two was merged away or has grown since */
        if (!a->len || !b->len || a->next != item.right || a->len + b->len != item.len) continue;
        a->id = item.id;
        a->len = item.len;
        a->n_chars += b->n_chars;
        a->next = b->next;
        if (b->next >= 0) syms[b->next].prev = item.left;
        b->len = 0;
        HDL_TRY(push(work, &n, base, a->prev, item.left));
        HDL_TRY(push(work, &n, base, item.left, a->next));
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n_syms; i++)
        if (syms[i].len) syms[kept++] = syms[i];
    *n_left = kept;
    return HEDDLE_OK;
}

/* --- symbols --------------------------------------------------------------------------------- */

static int64_t byte_symbols(const hdl_tokenizer *tok, const char *base, int64_t at, int64_t n, hdl_sym *syms)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = tok->byte_ids[(uint8_t)base[at + i]];
        if (id < 0) id = tok->special.unk;
        if (id < 0) continue; /* a byte that the vocabulary cannot express is left out, as by HF */
        syms[count++] = (hdl_sym){.id = id, .at = (int32_t)(at + i), .len = 1, .n_chars = 1};
    }
    return count;
}

/* A character's token, else its bytes' tokens, else the unknown token. */
static int64_t char_symbols(const hdl_tokenizer *tok, const char *base, int64_t at, int64_t n, hdl_sym *syms)
{
    int64_t count = 0;
    for (int64_t i = at; i < at + n;) {
        int32_t cp, id = -1;
        int len = hdl_utf8_next(base + i, at + n - i, &cp);
        if (len) id = len == 1 ? tok->char_ids[cp] : hdl_tok_find(tok, base + i, len, HDL_TOKENS_PLAIN);
        len = HDL_MAX(len, 1);
        if (id >= 0) {
            syms[count++] = (hdl_sym){.id = id, .at = (int32_t)i, .len = len, .n_chars = 1};
            i += len;
            continue;
        }
        bool has_bytes = true;
        for (int k = 0; k < len; k++) has_bytes &= tok->byte_ids[(uint8_t)base[i + k]] >= 0;
        hdl_sym *last = count ? &syms[count - 1] : NULL;
        if (has_bytes) {
            for (int k = 0; k < len; k++)
                syms[count++] = (hdl_sym){
                    .id = tok->byte_ids[(uint8_t)base[i + k]], .at = (int32_t)(i + k), .len = 1};
        } else if (tok->fuses_unknown && last && last->id == tok->special.unk && !last->n_chars) {
            last->len += len;
        } else if (tok->special.unk >= 0) {
            syms[count++] = (hdl_sym){.id = tok->special.unk, .at = (int32_t)i, .len = len};
        }
        i += len;
    }
    return count;
}

static heddle_status add_symbols(hdl_tok_work *work, const hdl_sym *syms, int64_t n)
{
    int32_t ids[SMALL];
    for (int64_t i = 0; i < n;) {
        int64_t part = HDL_MIN(n - i, SMALL);
        for (int64_t k = 0; k < part; k++) ids[k] = syms[i + k].id;
        HDL_TRY(hdl_ids_add(work->ids, ids, part));
        i += part;
    }
    return HEDDLE_OK;
}

static heddle_status encode_chunk(hdl_tok_work *work, const char *base, int64_t at, int64_t n)
{
    const hdl_tokenizer *tok = work->tok;
    hdl_sym small[SMALL], *syms = small;
    if (tok->ignore_merges) {
        int32_t id = hdl_tok_find(tok, base + at, n, HDL_TOKENS_PLAIN);
        if (id >= 0) return hdl_ids_add(work->ids, &id, 1);
    }
    if (n > SMALL) {
        if (n > work->sym_capacity) {
            hdl_free(work->syms);
            work->sym_capacity = 0;
            work->syms = hdl_calloc(n, sizeof *work->syms);
            if (!work->syms) return HEDDLE_E_NOMEM;
            work->sym_capacity = n;
        }
        syms = work->syms;
    }
    int64_t count = tok->is_byte_level ? byte_symbols(tok, base, at, n, syms)
                                       : char_symbols(tok, base, at, n, syms);
    if (count <= SMALL)
        count = merge_small(tok, base, syms, count);
    else
        HDL_TRY(merge_heap(work, base, count, &count));
    return add_symbols(work, syms, count);
}

static uint32_t word_hash(const char *text, int64_t n)
{
    uint64_t h = (uint64_t)n, word;
    for (; n >= 8; n -= 8, text += 8) {
        memcpy(&word, text, 8);
        h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, text, (size_t)n);
    h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(h >> 40);
}

heddle_status hdl_bpe_chunk(hdl_tok_work *work, const char *base, int64_t at, int64_t n)
{
    if (n <= 0) return HEDDLE_OK;
    if (!work->words || n > HDL_WORD_MAX_BYTES) return encode_chunk(work, base, at, n);
    hdl_word_slot *slot = &work->words[word_hash(base + at, n) & (HDL_WORD_SLOTS - 1)];
    hdl_ids *ids = work->ids;
    if (slot->n_bytes == n && !memcmp(base + slot->at, base + at, (size_t)n)) {
        int32_t copy[HDL_WORD_MAX_BYTES];
        memcpy(copy, ids->data + slot->ids_at, (size_t)slot->n_ids * sizeof *copy);
        return hdl_ids_add(ids, copy, slot->n_ids);
    }
    int64_t ids_at = ids->n;
    HDL_TRY(encode_chunk(work, base, at, n));
    *slot = (hdl_word_slot){(int32_t)at, (int32_t)n, ids_at, (int32_t)(ids->n - ids_at)};
    return HEDDLE_OK;
}
