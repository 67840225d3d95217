/* cmd_document.c - `heddle encode` writes a document's rows to a file, `heddle verify` checks such files. */
#include <inttypes.h>
#include <stdio.h>

#include "cli.h"
#include "term.h"

typedef struct encode_options {
    cli_common common;
    const char *out;
} encode_options;

static const cli_option encode_rows[] = {
    {"output", 'o', CLI_TEXT, "FILE.kv", NULL, "where the rows go", offsetof(encode_options, out), 0, 0, 0},
    {0},
};

static int encode(const void *command_options)
{
    const encode_options *options = command_options;
    cli_setup setup = {0};
    cli_text text = {0};
    term_progress progress;
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    if (options->common.words.n != 1)
        return cli_refuse("encode: one document at a time: encode FILE -o FILE.kv");
    if (!options->out) return cli_refuse("encode: -o FILE.kv is missing");
    int code = cli_read_file(&text, options->common.words.items[0]);
    if (!code && !text.n)
        code = cli_refuse("encode: %s: is empty: there is nothing to read", options->common.words.items[0]);
    if (!code) code = cli_open(&setup, &options->common);
    if (code) goto done;
    heddle_status status = heddle_tokenize(setup.engine, text.data ? text.data : "", text.n,
                                           HEDDLE_TOKENIZE_BOS, &ids, &n_ids);
    term_progress_start(&progress, "reading");
    double start = term_now();
    if (!status)
        status = heddle_document_encode(setup.engine, &setup.session_options, ids, n_ids, options->out,
                                        term_on_progress, &progress);
    term_clear_progress();
    double seconds = term_now() - start;
    char count[TERM_COUNT], took[TERM_COUNT];
    if (status)
        code = cli_fail(status);
    else
        cli_note("%s: %s tokens read in %s, %.1f tokens/s", options->out, term_count(count, n_ids),
                 term_seconds(took, seconds), seconds > 0 ? (double)n_ids / seconds : 0);
done:
    heddle_ids_free(ids);
    cli_close(&setup);
    cli_text_free(&text);
    return code;
}

static int verify(const void *command_options)
{
    const cli_common *common = command_options;
    if (!common->words.n) return cli_refuse("verify: no file is given");
    int code = 0;
    for (int i = 0; i < common->words.n; i++) { /* all of them, also behind a bad one */
        int64_t n_tokens, n_pages;
        heddle_status status = heddle_document_verify(common->words.items[i], &n_tokens, &n_pages);
        if (status) {
            code = cli_fail(status);
            continue;
        }
        printf("%s: %" PRId64 " tokens, %" PRId64 " pages, every checksum holds\n", common->words.items[i],
               n_tokens, n_pages);
    }
    return code;
}

const cli_command cmd_encode = {
    .name = "encode",
    .usage = "-m MODEL FILE -o FILE.kv [options]",
    .summary = "Read a document once, for run --mount",
    .about =
        "Writes the rows that global attention reads of the document. They depend on the document alone, so\n"
        "they can be mounted beside any others. Needs a model whose windows restart at documents.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_SESSION,
    .options = encode_rows,
    .options_size = sizeof(encode_options),
    .max_words = 1,
    .run = encode,
};

const cli_command cmd_verify = {
    .name = "verify",
    .usage = "FILE.kv...",
    .summary = "Check every checksum of documents' files",
    .options_size = sizeof(cli_common),
    .max_words = CLI_MAX_TEXTS,
    .run = verify,
};
