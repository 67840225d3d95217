/* spm.c - chunks of character-level vocabularies (SentencePiece models).
 *
 * SentencePiece merges the whole text as one sequence. Where no token of the vocabulary holds
 * U+2581 after another character, no merge can cross the border before a run of them, so the text
 * is cut there and each word is merged alone (and remembered). The ids are the same. */
#include <string.h>

#include "model/tokenizer_int.h"

static const char space_mark[] = "\xe2\x96\x81"; /* U+2581 */

static bool is_mark(const char *text, int64_t n)
{
    return n >= 3 && !memcmp(text, space_mark, 3);
}

void hdl_spm_inspect(hdl_tokenizer *tok)
{
    tok->splits_at_space = true;
    for (int32_t id = 0; id < tok->n_vocab && tok->splits_at_space; id++) {
        if (tok->type[id] == HDL_TOKEN_CONTROL || tok->type[id] == HDL_TOKEN_UNKNOWN) continue;
        const char *text = tok->text + tok->at[id];
        int64_t n = tok->at[id + 1] - tok->at[id], i = 0;
        while (is_mark(text + i, n - i)) i += 3;
        for (; i < n; i++) tok->splits_at_space &= !is_mark(text + i, n - i);
    }
}

heddle_status hdl_spm_segment(hdl_tok_work *work, const char *base, int64_t at, int64_t n)
{
    int64_t end = at + n;
    if (!work->tok->splits_at_space) return hdl_bpe_chunk(work, base, at, n);
    for (int64_t i = at; i < end;) {
        int64_t stop = i;
        while (is_mark(base + stop, end - stop)) stop += 3;
        while (stop < end) {
            const char *mark = memchr(base + stop, space_mark[0], (size_t)(end - stop));
            stop = mark ? mark - base : end;
            if (stop == end || is_mark(base + stop, end - stop)) break;
            stop++;
        }
        HDL_TRY(hdl_bpe_chunk(work, base, i, stop - i));
        i = stop;
    }
    return HEDDLE_OK;
}
