/* cmd_tokenize.c - `heddle tokenize`: the ids of a text and what each stands for. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct tokenize_options {
    cli_common common;
    cli_texts files;
    bool is_ids_only, is_special, has_bos;
} tokenize_options;

#define AT(field) offsetof(tokenize_options, field)
static const cli_option tokenize_rows[] = {
    {"file", 'f', CLI_TEXTS, "FILE", NULL, "take the text from a file, - = standard input", AT(files), 0, 0,
     0},
    {"ids", 0, CLI_FLAG, NULL, NULL, "print the ids alone, on one line", AT(is_ids_only), 0, 0, 0},
    {"special", 0, CLI_FLAG, NULL, NULL, "special tokens spelled in the text count", AT(is_special), 0, 0, 0},
    {"bos", 0, CLI_FLAG, NULL, NULL, "begin- and end-of-text as the model file says", AT(has_bos), 0, 0, 0},
    {0},
};
#undef AT

/* Printable on one line: control bytes and the backslash as escapes. */
static void print_piece(const char *text, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n')
            fputs("\\n", stdout);
        else if (c == '\t')
            fputs("\\t", stdout);
        else if (c == '\\')
            fputs("\\\\", stdout);
        else if (c < 0x20 || c == 0x7f)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

static heddle_status print_ids(const heddle_engine *engine, const int32_t *ids, int64_t n, bool is_ids_only)
{
    for (int64_t i = 0; i < n; i++) {
        if (is_ids_only) {
            printf("%s%" PRId32, i ? " " : "", ids[i]);
            continue;
        }
        char *text = NULL;
        int64_t n_bytes = 0;
        heddle_status status = heddle_detokenize(engine, &ids[i], 1, 1, &text, &n_bytes);
        if (status) return status;
        printf("%7" PRId32 "  ", ids[i]);
        print_piece(text, n_bytes);
        printf("\n");
        heddle_string_free(text);
    }
    if (is_ids_only) printf("\n");
    return HEDDLE_OK;
}

static int read_text(const tokenize_options *options, cli_text *text)
{
    const cli_texts *words = &options->common.words;
    if (options->files.n + words->n == 0) return cli_refuse("tokenize: no text is given: TEXT or -f FILE");
    if (options->files.n + words->n > 1) return cli_refuse("tokenize: one text at a time: TEXT or -f FILE");
    if (options->files.n) return cli_read_file(text, options->files.items[0]);
    if (cli_text_add(text, words->items[0], (int64_t)strlen(words->items[0]))) return 0;
    cli_note("heddle: no memory for the text");
    return EXIT_RUNTIME;
}

static int tokenize(const void *command_options)
{
    const tokenize_options *options = command_options;
    cli_setup setup = {0};
    cli_text text = {0};
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    int code = read_text(options, &text);
    if (!code) code = cli_open(&setup, &options->common);
    if (code) goto done;
    uint32_t flags = (options->is_special ? HEDDLE_TOKENIZE_SPECIAL : 0) |
                     (options->has_bos ? HEDDLE_TOKENIZE_BOS : 0);
    heddle_status status = heddle_tokenize(setup.engine, text.data ? text.data : "", text.n, flags, &ids,
                                           &n_ids);
    if (!status) status = print_ids(setup.engine, ids, n_ids, options->is_ids_only);
    if (status)
        code = cli_fail(status);
    else
        cli_note("%" PRId64 " tokens, %" PRId64 " bytes", n_ids, text.n);
done:
    heddle_ids_free(ids);
    cli_close(&setup);
    cli_text_free(&text);
    return code;
}

const cli_command cmd_tokenize = {
    .name = "tokenize",
    .usage = "-m MODEL [-f FILE | TEXT] [options]",
    .summary = "The tokens of a text",
    .groups = CLI_GROUP_MODEL,
    .options = tokenize_rows,
    .options_size = sizeof(tokenize_options),
    .max_words = 1,
    .run = tokenize,
};
