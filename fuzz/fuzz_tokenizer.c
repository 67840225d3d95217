/* fuzz_tokenizer.c - any bytes through encode and decode, which must give them back.
 *
 * Two vocabularies that can express every byte: byte-level with each published pattern in turn,
 * and characters with byte fallback, where U+2581 and a space are one. The text is also given in
 * two parts: plain parts joined must be the whole. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_EXTRA = 12 };

static const char *const extra[N_EXTRA] = {"th",
                                           "the",
                                           "\xe2\x96\x81t",
                                           "\xe2\x96\x81th",
                                           "\xe2\x96\x81the",
                                           "in",
                                           "ing",
                                           "\xe2\x96\x81\xe2\x96\x81",
                                           "\xc3\xa9",
                                           ">\xe2\x96\x81<",
                                           "aa",
                                           "aaaa"};
static char names[256][8];
static hdl_token_in rows[256 + 128 + N_EXTRA + 3];

static hdl_token_in row(const char *text, int64_t n, uint8_t type, float score)
{
    return (hdl_token_in){{text, n}, score, type, 0};
}

static hdl_tokenizer *make_spm(void)
{
    static char ascii[128];
    hdl_tokenizer *tok;
    int n = 0;
    for (int i = 0; i < 256; i++) {
        static const char digits[] = "0123456789ABCDEF";
        char name[8] = {'<', '0', 'x', digits[i >> 4], digits[i & 15], '>', 0};
        memcpy(names[i], name, 8);
        rows[n++] = row(names[i], 6, HDL_TOKEN_BYTE, 0);
    }
    for (int i = 33; i < 127; i++) {
        ascii[i] = (char)i;
        rows[n++] = row(&ascii[i], 1, HDL_TOKEN_NORMAL, (float)-i);
    }
    for (int i = 0; i < N_EXTRA; i++)
        rows[n++] = row(extra[i], (int64_t)strlen(extra[i]), HDL_TOKEN_NORMAL, (float)(i * 7 % 5));
    rows[n++] = row("\xe2\x96\x81", 3, HDL_TOKEN_NORMAL, -200);
    rows[n++] = row("\n\n", 2, HDL_TOKEN_USER, 0);
    rows[n++] = row("<s>", 3, HDL_TOKEN_CONTROL, 0);
    if (hdl_tok_new(&tok, false, true, rows, n)) abort();
    tok->replaces_spaces = true;
    hdl_tok_finish(tok);
    return tok;
}

static hdl_tokenizer *make_byte_level(const char *pre)
{
    static char texts[256][4];
    hdl_tokenizer *tok;
    int n = 0;
    for (int i = 0, next = 0x100; i < 256; i++) { /* GPT-2's printable alphabet */
        bool is_own = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i != 0xad);
        int cp = is_own ? i : next++, k = 0;
        if (cp >= 0x80) texts[i][k++] = (char)(0xc0 | cp >> 6);
        texts[i][k++] = (char)(cp >= 0x80 ? 0x80 | (cp & 0x3f) : cp);
        rows[n++] = row(texts[i], k, HDL_TOKEN_NORMAL, 0);
    }
    static const char *const more[] = {"th", "the", "\xc4\xa0t", "\xc4\xa0the", "in", "\xc4\xa0\xc4\xa0",
                                       "aa", "aaaa"};
    static const char *const merges[] = {"t h",          "th e", "\xc4\xa0 t",        "\xc4\xa0t he",
                                         "\xc4\xa0 the", "i n",  "\xc4\xa0 \xc4\xa0", "a a",
                                         "aa aa"};
    for (int64_t i = 0; i < HDL_COUNT(more); i++)
        rows[n++] = row(more[i], (int64_t)strlen(more[i]), HDL_TOKEN_NORMAL, 0);
    rows[n++] = row("he", 2, HDL_TOKEN_NORMAL, 0);
    rows[n++] = row("<s>", 3, HDL_TOKEN_CONTROL, 0);
    if (hdl_tok_new(&tok, true, false, rows, n) || hdl_tok_reserve_merges(tok, HDL_COUNT(merges))) abort();
    for (int32_t i = 0; i < HDL_COUNT(merges); i++)
        if (hdl_tok_add_merge_line(tok, (hdl_text){merges[i], (int64_t)strlen(merges[i])}, i)) abort();
    const hdl_pretok_row *found = hdl_pretok_find((hdl_text){pre, (int64_t)strlen(pre)});
    if (!found || hdl_pretok_add(&tok->pretok, found->pattern, false)) abort();
    hdl_tok_finish(tok);
    return tok;
}

/* U+2581 -> space, in place. */
static int64_t fold_marks(char *text, int64_t n)
{
    int64_t k = 0;
    for (int64_t i = 0; i < n; k++) {
        bool is_mark = n - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3);
        text[k] = is_mark ? ' ' : text[i];
        i += is_mark ? 3 : 1;
    }
    return k;
}

static void check(const hdl_tokenizer *tok, const char *text, int64_t n, bool parse_special)
{
    hdl_ids ids = {0}, joined = {0};
    hdl_buf out = {0}, want = {0};
    hdl_text_part parts[2] = {{text, n / 3, parse_special}, {text + n / 3, n - n / 3, parse_special}};
    if (hdl_tokenizer_encode(tok, text, n, parse_special, false, &ids)) abort();
    hdl_buf_add(&out, "", 0);
    if (hdl_tokenizer_decode(tok, ids.data, ids.n, true, &out)) abort();
    hdl_buf_add(&want, text, n);
    int64_t n_want = n, n_out = out.n;
    if (tok->replaces_spaces) {
        n_want = fold_marks(want.data, n);
        n_out = fold_marks(out.data, out.n);
    }
    if (n_out != n_want || memcmp(out.data, want.data, (size_t)n_want) != 0) abort();
    for (int64_t i = 0; i < ids.n && !parse_special; i++)
        if (hdl_tokenizer_is_special(tok, ids.data[i])) abort();
    if (hdl_tokenizer_encode_parts(tok, parts, 2, false, &joined)) abort();
    if (!parse_special && ids.n &&
        (joined.n != ids.n || memcmp(joined.data, ids.data, (size_t)ids.n * sizeof *ids.data) != 0))
        abort();
    hdl_ids_deinit(&ids);
    hdl_ids_deinit(&joined);
    hdl_buf_deinit(&out);
    hdl_buf_deinit(&want);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hdl_tokenizer *toks[5]; /* kept until the end of the process */
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    if (!toks[4]) {
        for (int i = 0; i < 4; i++) toks[i] = make_byte_level(pres[i]);
        toks[4] = make_spm();
    }
    for (int i = 0; i < 5; i++)
        for (int parse_special = 0; parse_special < 2; parse_special++)
            check(toks[i], (const char *)data, (int64_t)size, parse_special);
    return 0;
}
