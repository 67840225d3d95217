/* report_record.c - what each token of an answer read: the lists of `heddle run --record` over their text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { MAX_ROWS = 256 }; /* the last rows that have lists are shown */

static const char script[] =
    "<script>\n"
    "const box=document.getElementById('record'),spans=box.querySelectorAll('b'),all=[...spans].map(s=>"
    "s.style.getPropertyValue('--w')),say=document.getElementById('chosen');let chosen=null;\n"
    "box.addEventListener('click',event=>{const token=event.target.closest('b.answer');\n"
    "spans.forEach(s=>s.classList.remove('chosen'));\n"
    "if(!token||token===chosen){chosen=null;spans.forEach((s,i)=>s.style.setProperty('--w',all[i]));"
    "say.textContent='';return}\n"
    "chosen=token;token.classList.add('chosen');const [row,layers,read]=lists[token.dataset.row];\n"
    "spans.forEach(s=>s.style.setProperty('--w','0%'));let at=-1;\n"
    "for(let i=0;i<read.length;i+=2){at+=read[i]+1;if(spans[at])"
    "spans[at].style.setProperty('--w',Math.round(60*read[i+1]/layers)+'%')}\n"
    "say.textContent=`before token ${row+1}: ${read.length/2} tokens in ${layers} lists`});\n"
    "</script>\n";

typedef struct record_view {
    const heddle_lists *lists;
    const int32_t *tokens;
    int64_t n_tokens, first; /* first: the list with which the shown rows begin */
    int32_t *reads;          /* [n_tokens] shown rows that read it */
    int32_t *here;           /* [n_tokens] lists of the present row that hold it */
    int32_t *ids;            /* [n_tokens] */
    int32_t *place;          /* [n_tokens + 1] of the shown row that chose a token, or -1 */
    int64_t n_rows;
} record_view;

/* The list with which the last MAX_ROWS rows begin. */
static int64_t first_shown(const heddle_lists *lists)
{
    int64_t row = -1, n_rows = 0, i = heddle_lists_count(lists);
    for (; i > 0; i--) {
        int64_t own;
        heddle_lists_at(lists, i - 1, &own, NULL, NULL, 0);
        if (own != row && n_rows++ == MAX_ROWS) break;
        row = own;
    }
    return i;
}

/* One row's tokens as [row, lists, [difference, lists that hold it, ...]]. */
static void write_row(eval_buf *out, record_view *v, int64_t row, int n_lists)
{
    int64_t previous = -1;
    eval_buf_printf(out, "%s[%lld,%d,[", v->n_rows ? ",\n" : "", (long long)row, n_lists);
    for (int64_t t = 0; t < v->n_tokens; t++) {
        if (!v->here[t]) continue;
        eval_buf_printf(out, "%s%lld,%d", previous < 0 ? "" : ",", (long long)(t - previous - 1), v->here[t]);
        previous = t;
        v->reads[t]++;
        v->here[t] = 0;
    }
    eval_buf_text(out, "]]");
    v->place[row + 1] = (int32_t)v->n_rows++;
}

static int write_lists(eval_buf *out, record_view *v, const char *path)
{
    int64_t n = heddle_lists_count(v->lists), row = -1;
    int n_lists = 0;
    eval_buf_text(out, "<script>const lists=[");
    for (int64_t i = v->first; i < n; i++) {
        int64_t own, n_ids = heddle_lists_at(v->lists, i, &own, NULL, v->ids, v->n_tokens);
        if (own >= v->n_tokens)
            return cli_refuse("report: %s: a list of row %lld, but %lld tokens", path, (long long)own,
                              (long long)v->n_tokens);
        if (own != row && row >= 0) write_row(out, v, row, n_lists);
        if (own != row) n_lists = 0;
        row = own;
        n_lists++;
        for (int64_t j = 0; j < n_ids; j++) v->here[v->ids[j]]++;
    }
    if (row >= 0) write_row(out, v, row, n_lists);
    eval_buf_text(out, "]</script>\n");
    return 0;
}

/* A token's text; bytes that are no whole characters wait in `pending` for the next tokens'. */
static int write_text(eval_buf *out, const record_view *v, const heddle_engine *engine)
{
    cli_text pending = {0};
    int code = 0;
    for (int64_t t = 0; t < v->n_tokens && !code; t++) {
        char *text = NULL;
        int64_t n = 0;
        heddle_status status = heddle_detokenize(engine, &v->tokens[t], 1, 1, &text, &n);
        if (status)
            code = cli_fail(status);
        else if (!cli_text_add(&pending, text, n))
            code = EXIT_RUNTIME;
        heddle_string_free(text);
        json_t *whole = pending.n ? json_stringn(pending.data, (size_t)pending.n) : NULL;
        bool is_shown = whole || pending.n > 16 || t + 1 == v->n_tokens;
        int width = v->n_rows ? (int)(60 * (int64_t)v->reads[t] / v->n_rows) : 0;
        if (v->place[t] >= 0)
            eval_buf_printf(out, "<b class=\"answer\" data-row=\"%d\" style=\"--w:%d%%\">", v->place[t],
                            width);
        else
            eval_buf_printf(out, "<b style=\"--w:%d%%\">", width);
        const char *broken = is_shown && pending.n ? "\xef\xbf\xbd" : "";
        svg_escape(out, whole ? json_string_value(whole) : broken);
        eval_buf_text(out, "</b>");
        if (is_shown) pending.n = 0;
        json_decref(whole);
    }
    cli_text_free(&pending);
    return code;
}

static int draw(eval_buf *out, record_view *v, const heddle_engine *engine, const char *path)
{
    eval_buf_text(
        out,
        "<section><h2>What each token of the answer read</h2>\n<p>The darker, the more of the shown rows "
        "read it. Underlined tokens were chosen by a row that has lists: press one to see what was read "
        "before it, the darker in the more lists (layers); press it again for all. <span "
        "id=\"chosen\"></span></p>\n");
    int code = write_lists(out, v, path);
    eval_buf_text(out, "<div class=\"read\" id=\"record\">");
    if (!code) code = write_text(out, v, engine);
    eval_buf_text(out, "</div>\n");
    eval_buf_text(out, script);
    eval_buf_text(out, "</section>\n");
    return code;
}

int report_record(eval_buf *out, const heddle_engine *engine, const char *path)
{
    heddle_lists *lists = NULL;
    heddle_status status = heddle_lists_load(&lists, engine, path);
    if (status) return cli_fail(status);
    record_view v = {.lists = lists, .first = first_shown(lists)};
    v.n_tokens = heddle_lists_tokens(lists, &v.tokens);
    size_t n = (size_t)v.n_tokens + 1;
    v.reads = calloc(n, sizeof *v.reads);
    v.here = calloc(n, sizeof *v.here);
    v.ids = calloc(n, sizeof *v.ids);
    v.place = malloc(n * sizeof *v.place);
    int code = 0;
    if (!v.n_tokens)
        code = cli_refuse("report: %s: was recorded without its tokens: record it again", path);
    else if (!v.reads || !v.here || !v.ids || !v.place)
        code = EXIT_RUNTIME;
    else {
        memset(v.place, -1, n * sizeof *v.place);
        code = draw(out, &v, engine, path);
    }
    free(v.reads);
    free(v.here);
    free(v.ids);
    free(v.place);
    heddle_lists_free(lists);
    return code;
}
