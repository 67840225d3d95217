/* cmd_report.c - `heddle report`: results as one HTML file with inline SVG; no network; a script for a record alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

typedef struct report_options {
    cli_common common;
    const char *out, *record;
} report_options;

static const cli_option report_rows[] = {
    {"out", 'o', CLI_TEXT, "FILE", "report.html", "the page", offsetof(report_options, out), 0, 0, 0},
    {"record", 0, CLI_TEXT, "FILE", NULL,
     "shows what each token read, of 'heddle run --record FILE' with -m MODEL",
     offsetof(report_options, record), 0, 0, 0},
    {0},
};

static const char page_head[] =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>heddle "
    "report</title>\n<style>\n"
    ":root{color-scheme:light dark;--paper:#fdfdfb;--ink:#1d2021;--soft:#63676b;--grid:#e4e4de;"
    "--heat:#1f6f8b;\n"
    "--c0:#1668a8;--c1:#c2410c;--c2:#2f7d32;--c3:#8e3b9e;--c4:#a16207;--c5:#0f766e;--c6:#be185d;"
    "--c7:#4d5bd1}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#16181a;--ink:#e6e6e1;--soft:#9a9fa3;"
    "--grid:#2c3033;--heat:#56b6d6;\n"
    "--c0:#6cb4ee;--c1:#fb923c;--c2:#7ccf80;--c3:#d08be0;--c4:#e3b341;--c5:#4fd1c0;--c6:#f472b6;"
    "--c7:#9aa5ff}}\n"
    "body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:88rem;background:var(--paper);color:var(--ink);\n"
    "font:16px/1.55 system-ui,-apple-system,'Segoe UI','Liberation Sans',sans-serif}\n"
    "h1{font-size:1.6rem;margin:0 0 .25rem;letter-spacing:-.01em}h2{font-size:1.15rem;margin:0 0 .25rem}\n"
    ".model{margin-top:3rem;border-top:2px solid var(--ink);padding-top:.75rem;font-size:1.35rem}\n"
    "section{margin:2.5rem 0 0}p{margin:.2rem 0 1rem;color:var(--soft);max-width:46rem}\n"
    "code{font:.92em ui-monospace,'DejaVu Sans Mono',monospace}\n"
    "svg{display:block;width:100%;height:auto;margin:0 0 1.25rem}\n"
    "svg text{font:13px system-ui,-apple-system,'Segoe UI','Liberation Sans',sans-serif;fill:var(--ink)}\n"
    "svg .tick{fill:var(--soft);font-variant-numeric:tabular-nums}svg .title,svg .note{fill:var(--soft)}\n"
    "svg .name{font-weight:600}svg .faint{fill:var(--soft)}svg .cell{font-size:11px}svg .on{"
    "fill:var(--paper)}\n"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.level{stroke:var(--soft);stroke-dasharray:5 4}\n"
    ".leader{stroke:var(--grid)}.frontier{fill:none;stroke:var(--soft);stroke-width:1.25;"
    "stroke-dasharray:1 3}\n"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke:var(--c)}.bar{stroke:var(--c);"
    "stroke-width:1.5}\n"
    ".dot{fill:var(--c);stroke:var(--paper);stroke-width:1.5}.open{fill:var(--paper);stroke:var(--c);"
    "stroke-width:2}\n"
    ".heat{fill:var(--heat)}.control{--c:var(--soft)}svg .t-control{fill:var(--soft)}\n"
    ".s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}\n"
    ".s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}\n"
    "svg .t-s0{fill:var(--c0)}svg .t-s1{fill:var(--c1)}svg .t-s2{fill:var(--c2)}svg .t-s3{fill:var(--c3)}\n"
    "svg .t-s4{fill:var(--c4)}svg .t-s5{fill:var(--c5)}svg .t-s6{fill:var(--c6)}svg .t-s7{fill:var(--c7)}\n"
    ".wide{overflow-x:auto}.wide+p{margin-top:.75rem}.wide th:first-child{position:sticky;left:0;"
    "background:var(--paper)}table{border-collapse:collapse;font-size:.9rem;"
    "font-variant-numeric:tabular-nums}\n"
    "th,td{padding:.3rem .7rem .3rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid "
    "var(--grid);\n"
    "font-weight:400}thead th{color:var(--soft)}th:first-child{text-align:left}small{color:var(--soft);"
    "font-size:.85em}\n"
    ".quiet{color:var(--soft)}.key{display:inline-block;width:.6rem;height:.6rem;border-radius:50%;"
    "margin-right:.5rem;\n"
    "background:var(--c)}.key.control0{--c:var(--soft)}\n"
    ".tasks td,.tasks th{padding-right:.7rem;line-height:1.25}.tasks thead th{white-space:normal;"
    "vertical-align:bottom}\n"
    ".maps{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem}.maps svg{flex:0 1 auto;width:auto}\n"
    ".read{font:13.5px/1.75 ui-serif,'Liberation Serif',Georgia,serif;max-width:46rem;white-space:pre-wrap;\n"
    "overflow-wrap:anywhere;border-left:3px solid var(--grid);padding-left:1rem}\n"
    ".read b{font-weight:400;border-radius:2px;background:color-mix(in srgb,var(--heat) "
    "var(--w),transparent)}\n"
    "#record .answer{cursor:pointer;text-decoration:underline;text-decoration-color:var(--soft);"
    "text-underline-offset:3px}\n"
    "#record .chosen{outline:2px solid var(--c1)}\n"
    "</style></head><body>\n<h1>What sparse reading costs, and what it gains</h1>\n";

static void write_card(eval_buf *out, const report *r, const report_card *card)
{
    eval_buf_text(out, "<h1 class=\"model\">");
    svg_escape(out, card->model);
    eval_buf_printf(out, " <small>%s keys and values%s%s</small></h1>\n", card->kv,
                    !strcmp(card->frame, "raw") ? "; questions without a chat template" : "",
                    card->is_invariant ? "; the invariant mode" : "");
    report_frontier(out, r, card);
    report_table(out, r, card);
    report_prompts(out, r, card);
    report_evictions(out, r, card);
    report_tasks(out, r, card);
    report_position(out, r, card);
    report_depths(out, r, card);
    report_needles(out, r, card);
    report_lists(out, r, card);
}

static void write_sources(eval_buf *out, const cli_texts *files)
{
    eval_buf_printf(out, "<p>heddle %s. Every figure is from ", heddle_version());
    for (int i = 0; i < files->n; i++) {
        const char *slash = strrchr(files->items[i], '/');
        eval_buf_text(out, !i ? "" : i + 1 < files->n ? ", " : " and ");
        svg_escape(out, slash ? slash + 1 : files->items[i]);
    }
    eval_buf_text(out, files->n ? ". Controls are grey.</p>\n" : "a record.</p>\n");
}

/* Pages begin as page_head does. */
static int check_page(const char *path)
{
    return strcmp(path, "-") ? cli_check_file(path, "page", cli_file_is(path, "<!doctype html>*")) : 0;
}

static int write_page(const eval_buf *page, const char *path)
{
    if (strcmp(path, "-")) return cli_write_file(path, page->data, page->n);
    if (fwrite(page->data, 1, (size_t)page->n, stdout) == (size_t)page->n) return 0;
    cli_note("heddle: standard output: could not all be written");
    return EXIT_RUNTIME;
}

static int add_record(eval_buf *page, const report_options *options)
{
    cli_setup setup = {0};
    int code = cli_open(&setup, &options->common);
    if (!code) code = report_record(page, setup.engine, options->record);
    cli_close(&setup);
    return code;
}

static int make_report(const void *command_options)
{
    const report_options *options = command_options;
    if (!options->common.words.n && !options->record)
        return cli_refuse(
            "report: no results are given: files of 'heddle eval' and of 'heddle bench depth --csv'");
    if (options->record && !options->common.model)
        return cli_refuse("report: --record needs the model that it was made with: -m MODEL");
    int code = check_page(options->out);
    if (code) return code;
    report *r = calloc(1, sizeof *r);
    eval_buf page = {0};
    if (!r) code = EXIT_RUNTIME;
    for (int i = 0; i < options->common.words.n && !code; i++)
        code = report_read(r, options->common.words.items[i]);
    if (!code) {
        report_sort(r);
        if (!r->n_cards && !options->record) code = cli_refuse("report: the files hold no whole result");
    }
    if (!code) {
        eval_buf_text(&page, page_head);
        write_sources(&page, &options->common.words);
        for (int c = 0; c < r->n_cards; c++) write_card(&page, r, &r->cards[c]);
        if (options->record) code = add_record(&page, options);
        eval_buf_text(&page, "</body></html>\n");
    }
    if (!code) {
        code = page.is_failed ? EXIT_RUNTIME : write_page(&page, options->out);
        if (page.is_failed) cli_note("heddle: report: no memory");
    }
    eval_buf_free(&page);
    if (r) report_free(r);
    return code;
}

const cli_command cmd_report = {
    .name = "report",
    .usage = "[RESULTS...] [--record FILE -m MODEL] [-o FILE]",
    .summary = "Results as one page: speed beside quality",
    .about =
        "Files of 'heddle eval', of 'heddle bench depth --csv', and of bench/results plan-quality.csv,\n"
        "prefill-quality.csv, eviction-quality.csv and plan-speed.csv, in any order. The page needs no network.",
    .groups = CLI_GROUP_MODEL,
    .options = report_rows,
    .options_size = sizeof(report_options),
    .max_words = CLI_MAX_TEXTS,
    .run = make_report,
};
