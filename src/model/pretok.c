/* pretok.c - cuts a segment into the chunks inside which a byte-level BPE may merge.
 *
 * The published patterns run in PCRE2 with two changes that do not change what they match: `\s` is
 * written out (PCRE2's own also takes U+180E), and a first step that isolates numbers is folded
 * into GPT-2's pattern: a digit ends the run of spaces before it, and stands alone.
 *
 * Letters and numbers are those of PCRE2's Unicode version (14 in PCRE2 10.42): a character assigned
 * later is neither, and may be cut off its word where a newer library would keep it.
 *
 * Broken bytes are shown to the pattern as U+FFFD, one each, and keep their place in the text.
 * Steps are limited in proportion to the text; a pattern that exceeds them (only a hostile file
 * has one) fails with a sentence, because other chunks would silently give other ids. When the
 * compiled code runs out of its small stack that chunk is matched by the interpreter instead. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "base/mem.h"
#include "model/tokenizer_int.h"
#include "model/unicode.h"

/* the White_Space property, for use inside a class */
#define SPACE                                                                                                \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define OTHERS       " ?[^" SPACE "\\p{L}\\p{N}]+"

const char hdl_pretok_gpt2[] = CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+|" OTHERS "|[" SPACE "]+(?![^" SPACE
                                            "])|[" SPACE "]+";
/* Digits(individual_digits) before GPT-2 */
const char hdl_pretok_digits[] = "\\p{N}|" CONTRACTIONS "| ?\\p{L}+|" OTHERS "|[" SPACE "]+(?![^" SPACE
                                 "\\p{N}])|[" SPACE "]+";
/* Digits, whole numbers, before GPT-2 */
const char hdl_pretok_numbers[] = "\\p{N}+|" CONTRACTIONS "| ?\\p{L}+|" OTHERS "|[" SPACE "]+(?![^" SPACE
                                  "\\p{N}])|[" SPACE "]+";

#define CL100K(digits)                                                                                       \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "|" OTHERS "[\\r\\n]*|[" SPACE             \
    "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

static const char llama3_pattern[] = CL100K("\\p{N}{1,3}");
static const char qwen2_pattern[] = CL100K("\\p{N}");

static const hdl_pretok_row rows[] = {
    {"default", hdl_pretok_gpt2, false, false},        {"gpt-2", hdl_pretok_gpt2, false, false},
    {"gpt2", hdl_pretok_gpt2, false, false},           {"mpt", hdl_pretok_gpt2, false, false},
    {"olmo", hdl_pretok_gpt2, false, false},           {"phi-2", hdl_pretok_gpt2, false, false},
    {"smollm", hdl_pretok_digits, false, false},       {"starcoder", hdl_pretok_digits, false, false},
    {"refact", hdl_pretok_digits, false, false},       {"command-r", hdl_pretok_digits, false, false},
    {"llama-bpe", llama3_pattern, true, true},         {"llama3", llama3_pattern, true, true},
    {"llama-v3", llama3_pattern, true, true},          {"qwen2", qwen2_pattern, false, false},
    {"deepseek-r1-qwen", qwen2_pattern, false, false},
};

const hdl_pretok_row *hdl_pretok_find(hdl_text name)
{
    for (int64_t i = 0; i < HDL_COUNT(rows); i++)
        if ((int64_t)strlen(rows[i].name) == name.n && !memcmp(rows[i].name, name.data, (size_t)name.n))
            return &rows[i];
    return NULL;
}

static void *pcre_alloc(size_t n, void *user)
{
    (void)user;
    return hdl_calloc((int64_t)n, 1);
}

static void pcre_free(void *ptr, void *user)
{
    (void)user;
    hdl_free(ptr);
}

/* Writes `\s` out, inside and outside classes; everything else is copied. */
static heddle_status write_spaces_out(const char *pattern, hdl_buf *out)
{
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        if (*p == '\\' && p[1]) {
            p++;
            if (*p == 's')
                hdl_buf_puts(out, in_class ? SPACE : "[" SPACE "]");
            else if (*p == 'S' && !in_class)
                hdl_buf_puts(out, "[^" SPACE "]");
            else
                hdl_buf_add(out, p - 1, 2);
            continue;
        }
        if (*p == '[' && !in_class) {
            in_class = true;
            hdl_buf_add(out, p, 1);
            if (p[1] == '^') hdl_buf_add(out, ++p, 1);
            if (p[1] == ']') hdl_buf_add(out, ++p, 1);
            continue;
        }
        if (in_class && (*p == '[' || (*p == '&' && p[1] == '&')))
            return HDL_FAIL(HEDDLE_E_UNSUPPORTED,
                            "pretokeniser pattern \"%.200s\": classes inside classes are not supported",
                            pattern);
        if (*p == ']') in_class = false;
        hdl_buf_add(out, p, 1);
    }
    return hdl_buf_status(out);
}

heddle_status hdl_pretok_add(hdl_pretok *pretok, const char *pattern, bool drops_gaps)
{
    if (pretok->n_stages == HDL_TOK_MAX_STAGES)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "tokenizer: more than %d pretokeniser steps",
                        HDL_TOK_MAX_STAGES);
    if (strlen(pattern) > HDL_TOK_MAX_PATTERN_BYTES)
        return HDL_FAIL(HEDDLE_E_UNSUPPORTED, "tokenizer: a pretokeniser pattern of more than %d bytes",
                        HDL_TOK_MAX_PATTERN_BYTES);
    hdl_buf text = {0};
    pcre2_compile_context *context = NULL;
    heddle_status status = write_spaces_out(pattern, &text);
    if (status) goto done;
    pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    context = general ? pcre2_compile_context_create(general) : NULL;
    pcre2_general_context_free(general);
    if (!context) {
        status = HEDDLE_E_NOMEM;
        goto done;
    }
    int error = 0;
    PCRE2_SIZE where = 0;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text.data, (PCRE2_SIZE)text.n,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &where,
                                     context);
    if (!code) {
        char why[160] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        status = error == PCRE2_ERROR_HEAP_FAILED
                     ? HDL_FAIL(HEDDLE_E_NOMEM, "out of memory for a pretokeniser pattern")
                     : HDL_FAIL(HEDDLE_E_UNSUPPORTED, "pretokeniser pattern \"%.200s\": %s", pattern, why);
        goto done;
    }
    hdl_pretok_stage *stage = &pretok->stages[pretok->n_stages++];
    *stage = (hdl_pretok_stage){.code = code, .drops_gaps = drops_gaps};
    stage->has_jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
done:
    pcre2_compile_context_free(context);
    hdl_buf_deinit(&text);
    return status;
}

void hdl_pretok_deinit(hdl_pretok *pretok)
{
    for (int i = 0; i < pretok->n_stages; i++) pcre2_code_free(pretok->stages[i].code);
    *pretok = (hdl_pretok){0};
}

heddle_status hdl_pretok_work_init(hdl_tok_work *work, int64_t n)
{
    if (!work->tok->pretok.n_stages) return HEDDLE_OK;
    pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    if (!general) return HEDDLE_E_NOMEM;
    work->match_data = pcre2_match_data_create(1, general);
    work->match_context = pcre2_match_context_create(general);
    pcre2_general_context_free(general);
    if (!work->match_data || !work->match_context) return HEDDLE_E_NOMEM;
    /* one chunk of the published patterns takes a few steps for each of its characters */
    pcre2_set_match_limit(work->match_context, (uint32_t)HDL_MIN(10000000 + 8 * n, UINT32_MAX));
    pcre2_set_heap_limit(work->match_context, 256 * 1024); /* KiB */
    return HEDDLE_OK;
}

void hdl_pretok_work_deinit(hdl_tok_work *work)
{
    pcre2_match_data_free(work->match_data);
    pcre2_match_context_free(work->match_context);
}

/* --- running --------------------------------------------------------------------------------- */

typedef struct pass { /* one segment: what the pattern sees and where that stands in the text */
    hdl_tok_work *work;
    const char *base;     /* the text */
    const char *seen;     /* what the pattern sees: base + at, or the cleaned copy */
    int64_t raw, raw_end; /* position in base of `seen_at` in seen */
    int64_t seen_at;
    bool is_clean_copy;
} pass;

/* Moves the cursor to position `to` of what the pattern sees, `to` >= seen_at. */
static int64_t raw_position(pass *p, int64_t to)
{
    if (!p->is_clean_copy) {
        p->raw += to - p->seen_at;
        p->seen_at = to;
    }
    while (p->seen_at < to) {
        int32_t cp;
        int len = hdl_utf8_next(p->base + p->raw, p->raw_end - p->raw, &cp);
        p->raw += len ? len : 1;
        p->seen_at += len ? len : 3;
    }
    return p->raw;
}

static int match(pass *p, const hdl_pretok_stage *stage, const char *text, int64_t n, int64_t from)
{
    hdl_tok_work *work = p->work;
    int got = PCRE2_ERROR_JIT_STACKLIMIT;
    if (stage->has_jit)
        got = pcre2_jit_match(stage->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)from, 0,
                              work->match_data, work->match_context);
    if (got == PCRE2_ERROR_JIT_STACKLIMIT)
        got = pcre2_match(stage->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)from,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, work->match_data, work->match_context);
    return got;
}

static heddle_status run_stage(pass *p, int stage_index, int64_t at, int64_t n);

static heddle_status emit(pass *p, int next_stage, int64_t at, int64_t n)
{
    if (n <= 0) return HEDDLE_OK;
    if (next_stage < p->work->tok->pretok.n_stages) return run_stage(p, next_stage, at, n);
    int64_t from = raw_position(p, at);
    int64_t to = raw_position(p, at + n);
    return hdl_bpe_chunk(p->work, p->base, from, to - from);
}

/* Each match and each gap between matches is a piece for the next stage, which sees that piece
 * alone: its look-aheads end where the piece ends. At most HDL_TOK_MAX_STAGES deep. */
static heddle_status run_stage(pass *p, int stage_index, int64_t at, int64_t n)
{
    const hdl_pretok_stage *stage = &p->work->tok->pretok.stages[stage_index];
    const char *text = p->seen + at;
    int64_t done = 0, from = 0;
    while (from < n) {
        int got = match(p, stage, text, n, from);
        if (got == PCRE2_ERROR_NOMATCH) break;
        if (got < 0) {
            char why[160] = "";
            pcre2_get_error_message(got, (PCRE2_UCHAR *)why, sizeof why);
            return HDL_FAIL(got == PCRE2_ERROR_NOMEMORY ? HEDDLE_E_NOMEM : HEDDLE_E_UNSUPPORTED,
                            "tokenizer: its pretokeniser pattern fails on this text: %s", why);
        }
        const PCRE2_SIZE *where = pcre2_get_ovector_pointer(p->work->match_data);
        int64_t start = (int64_t)where[0], stop = (int64_t)where[1];
        if (stop <= start) { /* an empty match: go on behind the next character */
            int32_t cp;
            from = HDL_MAX(start, from);
            from += HDL_MAX(hdl_utf8_next(text + from, n - from, &cp), 1);
            continue;
        }
        if (!stage->drops_gaps) HDL_TRY(emit(p, stage_index + 1, at + done, start - done));
        HDL_TRY(emit(p, stage_index + 1, at + start, stop - start));
        done = from = stop;
    }
    if (!stage->drops_gaps) return emit(p, stage_index + 1, at + done, n - done);
    return HEDDLE_OK;
}

heddle_status hdl_pretok_segment(hdl_tok_work *work, const char *base, int64_t at, int64_t n)
{
    if (!work->tok->pretok.n_stages) return hdl_bpe_chunk(work, base, at, n);
    pass p = {.work = work, .base = base, .seen = base + at, .raw = at, .raw_end = at + n};
    int64_t valid = hdl_utf8_valid_prefix(base + at, n);
    if (valid == n) return run_stage(&p, 0, 0, n);
    work->clean.n = 0;
    for (int64_t i = 0; i < n;) {
        valid = hdl_utf8_valid_prefix(base + at + i, n - i);
        hdl_buf_add(&work->clean, base + at + i, valid);
        i += valid;
        if (i < n) {
            hdl_buf_add(&work->clean, "\xef\xbf\xbd", 3);
            i++;
        }
    }
    HDL_TRY(hdl_buf_status(&work->clean));
    p.seen = work->clean.data;
    p.is_clean_copy = true;
    return run_stage(&p, 0, 0, work->clean.n);
}
