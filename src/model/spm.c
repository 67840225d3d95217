/* spm.c - chunks of character-level vocabularies (SentencePiece models).
 *
 * SentencePiece merges the whole text as one sequence. A merge can cross the border between a
 * character and a run of U+2581 behind it only if some token holds that pair. Few vocabularies have
 * such tokens (Gemma 3 has one, ">\u2581</"), so the text is cut before every run that follows
 * another byte, and each word is merged alone and remembered. The ids are the same. */
#include <string.h>

#include "model/tokenizer_int.h"

static const char space_mark[] = "\xe2\x96\x81"; /* U+2581 */

static bool is_mark(const char *text, int64_t n)
{
    return n >= 3 && !memcmp(text, space_mark, 3);
}

void hdl_spm_inspect(hdl_tokenizer *tok)
{
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        if (tok->type[id] == HDL_TOKEN_CONTROL || tok->type[id] == HDL_TOKEN_UNKNOWN) continue;
        const char *text = tok->text + tok->at[id];
        int64_t n = tok->at[id + 1] - tok->at[id], i = 0;
        while (is_mark(text + i, n - i)) i += 3;
        for (i++; i < n; i++) {
            if (!is_mark(text + i, n - i)) continue;
            tok->joins_space[(uint8_t)text[i - 1]] = true;
            while (is_mark(text + i, n - i)) i += 3;
        }
    }
}

heddle_status hdl_spm_segment(hdl_tok_work *work, const char *base, int64_t at, int64_t n)
{
    const bool *joins_space = work->tok->joins_space;
    int64_t end = at + n;
    for (int64_t i = at; i < end;) {
        int64_t stop = i;
        while (is_mark(base + stop, end - stop)) stop += 3;
        while (stop < end) {
            const char *mark = memchr(base + stop, space_mark[0], (size_t)(end - stop));
            stop = mark ? mark - base : end;
            if (!is_mark(base + stop, end - stop)) {
                stop += stop < end;
                continue;
            }
            if (!joins_space[(uint8_t)base[stop - 1]]) break;
            while (is_mark(base + stop, end - stop)) stop += 3;
        }
        HDL_TRY(hdl_bpe_chunk(work, base, i, stop - i));
        i = stop;
    }
    return HEDDLE_OK;
}
