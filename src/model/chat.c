/* chat.c - the three chat forms we know, by the marks their Jinja texts must contain.
 *
 *     ChatML    <|im_start|>ROLE\n TEXT <|im_end|>\n
 *     Llama 3   <|start_header_id|>ROLE<|end_header_id|>\n\n TEXT <|eot_id|>
 *     Gemma     <start_of_turn>ROLE\n TEXT <end_of_turn>\n      "assistant" is written "model"
 *
 * A template is not run. What differs between files of one form is read off the text: a default
 * system prompt (ChatML files state it between their own marks), the dated one of Llama 3.1 and
 * later (with the template's fixed date: ours may not depend on the day), and whether texts are
 * trimmed. Two forms in one text, or a separator that is not the form's, is "unknown". */
#include "model/chat.h"

#include <string.h>

#include "base/mem.h"
#include "model/unicode.h"

static const char llama31_system[] = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

static const char *find(hdl_text text, const char *word)
{
    int64_t n = (int64_t)strlen(word);
    for (const char *end = text.data + text.n; text.n >= n; text.n = end - text.data) {
        const char *at = memchr(text.data, word[0], (size_t)(text.n - n + 1));
        if (!at || !memcmp(at, word, (size_t)n)) return at;
        text.data = at + 1;
    }
    return NULL;
}

/* Text of a Jinja literal: undoes \n, \t, \', \", \\. False if it is not one literal or too long. */
static bool unquote(hdl_text text, char *out, int64_t out_bytes)
{
    int64_t n = 0;
    for (int64_t i = 0; i < text.n; i++) {
        char c = text.data[i];
        if (c == '\'' || c == '"' || c == '{' || c == '}' || n + 1 >= out_bytes) return false;
        if (c == '\\' && i + 1 < text.n) {
            c = text.data[++i];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

/* The first system turn that the template states word for word. */
static void read_default_system(hdl_text jinja, hdl_chat_template *tmpl)
{
    static const char *const heads[] = {"<|im_start|>system\\n", "<|im_start|>system\n"};
    for (int64_t i = 0; i < HDL_COUNT(heads); i++) {
        hdl_text rest = jinja;
        for (const char *at; (at = find(rest, heads[i]));) {
            at += strlen(heads[i]);
            rest = (hdl_text){at, jinja.data + jinja.n - at};
            const char *end = find(rest, "<|im_end|>");
            if (end && unquote((hdl_text){at, end - at}, tmpl->default_system, sizeof tmpl->default_system))
                return;
            tmpl->default_system[0] = 0;
        }
    }
}

hdl_chat_template hdl_chat_recognise(hdl_text jinja)
{
    hdl_chat_template tmpl = {.kind = HDL_CHAT_NONE};
    if (jinja.n <= 0) return tmpl;
    bool is_chatml = find(jinja, "<|im_start|>") && find(jinja, "<|im_end|>");
    bool is_llama3 = find(jinja, "<|start_header_id|>") && find(jinja, "<|end_header_id|>") &&
                     find(jinja, "<|eot_id|>");
    bool is_gemma = find(jinja, "<start_of_turn>") && find(jinja, "<end_of_turn>");
    tmpl.kind = HDL_CHAT_UNKNOWN;
    if (is_chatml + is_llama3 + is_gemma != 1 || find(jinja, "<|im_sep|>") || find(jinja, "<|channel|>"))
        return tmpl;
    if (is_chatml) {
        tmpl.kind = HDL_CHAT_CHATML;
        tmpl.trims = find(jinja, "| trim") || find(jinja, "|trim");
        read_default_system(jinja, &tmpl);
    } else if (is_llama3) {
        tmpl.kind = HDL_CHAT_LLAMA3;
        tmpl.trims = true;
        if (find(jinja, "Cutting Knowledge Date")) {
            memcpy(tmpl.default_system, llama31_system, sizeof llama31_system);
            tmpl.default_precedes = true;
        }
    } else {
        tmpl.kind = HDL_CHAT_GEMMA;
        tmpl.trims = true;
    }
    return tmpl;
}

const char *hdl_chat_kind_name(hdl_chat_kind kind)
{
    static const char *const names[] = {"none", "unknown", "ChatML", "Llama 3", "Gemma"};
    return kind >= 0 && kind < HDL_COUNT(names) ? names[kind] : "unknown";
}

/* --- one turn -------------------------------------------------------------------------------- */

typedef struct chat_form {
    const char *open, *after_role, *close, *close_and_answer;
} chat_form;

static const chat_form forms[] = {
    [HDL_CHAT_CHATML] = {"<|im_start|>", "\n", "<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n"},
    [HDL_CHAT_LLAMA3] = {"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>",
                         "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    [HDL_CHAT_GEMMA] = {"<start_of_turn>", "\n", "<end_of_turn>\n", "<end_of_turn>\n<start_of_turn>model\n"},
};

/* Python's str.strip(), which Jinja's trim is: White_Space and the four separators 1c..1f. */
static bool is_trimmed(int32_t cp)
{
    return hdl_unicode_is_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

static hdl_text trim(hdl_text text)
{
    int32_t cp;
    for (int len; (len = hdl_utf8_next(text.data, text.n, &cp)) && is_trimmed(cp);) {
        text.data += len;
        text.n -= len;
    }
    while (text.n > 0) {
        int64_t from = text.n - 1;
        while (from > 0 && text.n - from < 4 && ((uint8_t)text.data[from] & 0xc0) == 0x80) from--;
        if (hdl_utf8_next(text.data + from, text.n - from, &cp) != text.n - from || !is_trimmed(cp)) break;
        text.n = from;
    }
    return text;
}

typedef struct piece_list {
    hdl_chat_piece *pieces;
    int n;
} piece_list;

static void add(piece_list *list, bool is_markup, const char *text, int64_t n)
{
    if (n <= 0) return;
    HDL_ASSERT(list->n < HDL_CHAT_MAX_PIECES);
    list->pieces[list->n++] = (hdl_chat_piece){is_markup, text, n};
}

static void add_markup(piece_list *list, const char *text)
{
    add(list, true, text, (int64_t)strlen(text));
}

static void add_plain(piece_list *list, const char *text)
{
    add(list, false, text, (int64_t)strlen(text));
}

/* At most: <open>system<after> DEFAULT <close><open> ROLE <after> TEXT <close and answer> = 8. */
int hdl_chat_turn_after(const hdl_chat_template *tmpl, const char *previous_role, const char *role,
                        hdl_text content, bool open_answer, hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES])
{
    piece_list list = {.pieces = pieces};
    bool is_gemma = tmpl->kind == HDL_CHAT_GEMMA;
    bool is_system = !strcmp(role, "system");
    if (tmpl->kind < HDL_CHAT_CHATML) {
        add(&list, false, content.data, content.n);
        return list.n;
    }
    const chat_form *form = &forms[tmpl->kind];
    bool has_default = tmpl->default_system[0] && !previous_role;
    if (has_default && !is_system) {
        bool is_chatml = tmpl->kind == HDL_CHAT_CHATML;
        add_markup(&list,
                   is_chatml ? "<|im_start|>system\n" : "<|start_header_id|>system<|end_header_id|>\n\n");
        add_plain(&list, tmpl->default_system);
        add_markup(&list, is_chatml ? "<|im_end|>\n<|im_start|>" : "<|eot_id|><|start_header_id|>");
    }
    /* after Gemma's system text the user's turn is open already */
    if (!is_gemma || !previous_role || strcmp(previous_role, "system") != 0) {
        if (!has_default || is_system) add_markup(&list, form->open);
        add_plain(&list, !is_gemma ? role : is_system ? "user" : strcmp(role, "assistant") ? role : "model");
        add_markup(&list, form->after_role);
    }
    if (has_default && is_system && tmpl->default_precedes) add_plain(&list, tmpl->default_system);
    if (tmpl->trims && !(is_gemma && is_system)) content = trim(content);
    add(&list, false, content.data, content.n);
    if (is_gemma && is_system) {
        add_plain(&list, "\n\n");
        return list.n;
    }
    add_markup(&list, open_answer ? form->close_and_answer : form->close);
    return list.n;
}

int hdl_chat_turn(const hdl_chat_template *tmpl, const char *role, hdl_text content, bool is_first,
                  bool open_answer, hdl_chat_piece pieces[HDL_CHAT_MAX_PIECES])
{
    return hdl_chat_turn_after(tmpl, is_first ? NULL : "assistant", role, content, open_answer, pieces);
}

const char *hdl_chat_close_answer(const hdl_chat_template *tmpl, bool has_end)
{
    if (tmpl->kind < HDL_CHAT_CHATML) return "";
    if (!has_end) return forms[tmpl->kind].close;
    return tmpl->kind == HDL_CHAT_LLAMA3 ? "" : "\n";
}

heddle_status hdl_chat_encode(const hdl_tokenizer *tok, const hdl_chat_piece *pieces, int64_t n_pieces,
                              bool add_bos, hdl_ids *ids)
{
    hdl_text_part few[4 * HDL_CHAT_MAX_PIECES], *parts = few;
    if (n_pieces > HDL_COUNT(few)) {
        parts = hdl_calloc(n_pieces, sizeof *parts);
        if (!parts) return HEDDLE_E_NOMEM;
    }
    for (int64_t i = 0; i < n_pieces; i++)
        parts[i] = (hdl_text_part){pieces[i].text, pieces[i].n, pieces[i].is_markup};
    const hdl_special_ids *special = hdl_tokenizer_special(tok);
    int64_t n_before = ids->n;
    heddle_status status = HEDDLE_OK;
    if (add_bos && special->add_bos && special->bos >= 0) status = hdl_ids_add(ids, &special->bos, 1);
    if (!status) status = hdl_tokenizer_encode_parts(tok, parts, n_pieces, false, ids);
    if (status) ids->n = n_before;
    if (parts != few) hdl_free(parts);
    return status;
}
