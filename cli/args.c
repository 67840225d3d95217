/* args.c - reads a command line by a table of options and prints the table as help. */
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option common_options[] = {
    {"model", 'm', CLI_TEXT, "MODEL", NULL, "a .gguf file, or a folder with config.json and safetensors",
     offsetof(cli_common, model), 0, 0, CLI_GROUP_MODEL},
    {"index", 0, CLI_TEXT, "FILE", NULL, "a learned index for the model, which --plan distilled routes by",
     offsetof(cli_common, index), 0, 0, CLI_GROUP_MODEL},
    {"plan", 0, CLI_TEXT, "PLAN", NULL,
     "a plan's name or file ('heddle plans' lists them), with changes: anchor:top_k=256,window=64 "
     "(default: the model's own, mostly dense)",
     offsetof(cli_common, plan), 0, 0, CLI_GROUP_PLAN},
    {"context", 'c', CLI_INT, "TOKENS", NULL, "the most tokens to hold, such as 8192 or 32K",
     offsetof(cli_common, context), 1, 9007199254740992.0, CLI_GROUP_CONTEXT},
    {"kv", 0, CLI_TEXT, "TYPE", "f16", "how keys and values are stored: f16, bf16, i8, q4_1 or f32",
     offsetof(cli_common, kv_type), 0, 0, CLI_GROUP_SESSION},
    {"gathering", 0, CLI_TEXT, "WHEN", "auto",
     "copy the rows of a list that several layers read together once a token: always, never or auto "
     "(where it pays: on a CPU nowhere)",
     offsetof(cli_common, gathering), 0, 0, CLI_GROUP_SESSION},
    {"invariant", 0, CLI_FLAG, NULL, NULL, "the same bits for every batch, chunk and thread count; slower",
     offsetof(cli_common, is_invariant), 0, 0, CLI_GROUP_SESSION},
    {"threads", 't', CLI_INT, "N", NULL, "threads to use (default: all processors)",
     offsetof(cli_common, n_threads), 1, 256, CLI_GROUP_MODEL},
    {0},
};

int cli_distance(const char *a, const char *b)
{
    enum { MAX = 40 };
    int n = (int)strnlen(a, MAX), m = (int)strnlen(b, MAX);
    int row[MAX + 1];
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

/* The rows of a command: its own, then the common ones of its groups. NULL after the last. */
static const cli_option *next_row(const cli_command *command, const cli_option *row)
{
    if (!row && command->options && command->options->name) return command->options;
    bool is_own = row && !row->group;
    if (is_own && row[1].name) return row + 1;
    row = row && row->group ? row + 1 : common_options;
    while (row->name && !(row->group & command->groups)) row++;
    return row->name ? row : NULL;
}

static const cli_option *row_named(const cli_command *command, const char *name, size_t n, char letter)
{
    for (const cli_option *row = next_row(command, NULL); row; row = next_row(command, row)) {
        if (letter ? row->letter == letter : strlen(row->name) == n && !memcmp(row->name, name, n))
            return row;
    }
    return NULL;
}

static int unknown_option(const cli_command *command, const char *arg)
{
    const cli_option *best = NULL;
    int best_distance = 4; /* farther than three letters is not a slip of the finger */
    for (const cli_option *row = next_row(command, NULL); row && arg[1] == '-';
         row = next_row(command, row)) {
        char name[41];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
        int distance = cli_distance(name, row->name);
        if (distance < best_distance) {
            best_distance = distance;
            best = row;
        }
    }
    if (best) return cli_refuse("%s: unknown option %s; did you mean --%s?", command->name, arg, best->name);
    return cli_refuse("%s: unknown option %s; 'heddle help %s' lists them", command->name, arg,
                      command->name);
}

/* "4096", "32K", "1M", "-0.5". A whole number that is too large for int64 is left to the bounds. */
static bool read_number(const char *text, bool is_int, double *out)
{
    char *end = NULL;
    errno = 0;
    double value = is_int ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    if (end == text || (errno == ERANGE && !is_int)) return false;
    static const char units[] = "KMGT";
    const char *unit = is_int && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit) {
        value = ldexp(value, 10 * (int)(unit - units + 1));
        end++;
    }
    *out = value;
    return !*end && isfinite(value);
}

static int store(const cli_command *command, const cli_option *row, const char *value, void *options)
{
    void *field = (char *)options + row->at;
    double number = 0;
    switch (row->kind) {
        case CLI_FLAG: *(bool *)field = true; return 0;
        case CLI_TEXT: *(const char **)field = value; return 0;
        case CLI_TEXTS: {
            cli_texts *texts = field;
            if (texts->n == CLI_MAX_TEXTS) {
                return cli_refuse("%s: --%s is given more than %d times", command->name, row->name,
                                  CLI_MAX_TEXTS);
            }
            texts->items[texts->n++] = value;
            return 0;
        }
        case CLI_INT:
        case CLI_NUM:
            if (!read_number(value, row->kind == CLI_INT, &number)) {
                return cli_refuse("%s: --%s '%s': must be a %s", command->name, row->name, value,
                                  row->kind == CLI_INT ? "whole number" : "number");
            }
            if (number < row->min || number > row->max) {
                return cli_refuse("%s: --%s %s: must be in %.16g..%.16g", command->name, row->name, value,
                                  row->min, row->max);
            }
            if (row->kind == CLI_INT)
                *(int64_t *)field = (int64_t)number;
            else
                *(double *)field = number;
            return 0;
    }
    return 0;
}

static int add_word(const cli_command *command, const char *word, void *options)
{
    cli_common *common = options;
    if (common->words.n >= command->max_words) {
        return cli_refuse("%s: unexpected argument '%s'; 'heddle help %s' shows how it is used",
                          command->name, word, command->name);
    }
    common->words.items[common->words.n++] = word;
    return 0;
}

enum { MAX_GIVEN = 128 }; /* more than any command has options */

/* The options with one value that the line gave: a second value would silently replace the first. */
typedef struct given_rows {
    const cli_option *rows[MAX_GIVEN];
    int n;
} given_rows;

static int note_given(const cli_command *command, const cli_option *row, given_rows *given)
{
    if (row->kind == CLI_FLAG || row->kind == CLI_TEXTS) return 0;
    for (int i = 0; i < given->n; i++)
        if (given->rows[i] == row)
            return cli_refuse("%s: --%s is given twice; it takes one value", command->name, row->name);
    if (given->n < MAX_GIVEN) given->rows[given->n++] = row;
    return 0;
}

/* One option at argv[*i]; advances *i over its argument. */
static int parse_option(const cli_command *command, int argc, char **argv, int *i, given_rows *given,
                        void *options)
{
    const char *arg = argv[*i], *value = NULL;
    const cli_option *row;
    if (arg[1] == '-') {
        size_t n = strcspn(arg + 2, "=");
        row = row_named(command, arg + 2, n, 0);
        if (arg[2 + n] == '=') value = arg + 2 + n + 1;
    } else {
        row = row_named(command, NULL, 0, arg[1]);
        if (arg[2]) value = arg + 2;
    }
    if (!row) return unknown_option(command, arg);
    if (row->kind == CLI_FLAG && value) return cli_refuse("%s: %s takes no value", command->name, arg);
    if (row->kind != CLI_FLAG && !value) {
        if (*i + 1 == argc) return cli_refuse("%s: %s needs a value: %s", command->name, arg, row->argument);
        value = argv[++*i];
    }
    int code = note_given(command, row, given);
    return code ? code : store(command, row, value, options);
}

int cli_parse(const cli_command *command, int argc, char **argv, void *options, bool *wants_help)
{
    *wants_help = false;
    for (const cli_option *row = next_row(command, NULL); row; row = next_row(command, row)) {
        if (row->initial && row->kind != CLI_TEXTS) store(command, row, row->initial, options);
    }
    given_rows given = {.n = 0};
    bool is_option = true;
    for (int i = 0; i < argc; i++) {
        int code;
        if (is_option && !strcmp(argv[i], "--")) {
            is_option = false;
            continue;
        }
        if (is_option && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))) {
            *wants_help = true;
            return 0;
        }
        if (is_option && argv[i][0] == '-' && argv[i][1])
            code = parse_option(command, argc, argv, &i, &given, options);
        else
            code = add_word(command, argv[i], options);
        if (code) return code;
    }
    return 0;
}

void cli_print_help(const cli_command *command)
{
    printf("heddle %s %s\n\n%s.\n", command->name, command->usage, command->summary);
    if (command->about) printf("\n%s\n", command->about);
    if (!next_row(command, NULL)) return;
    printf("\nOptions\n");
    for (const cli_option *row = next_row(command, NULL); row; row = next_row(command, row)) {
        char left[64], letter[8] = "    ";
        if (row->letter) snprintf(letter, sizeof letter, "-%c, ", row->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, row->name, row->argument ? " " : "",
                 row->argument ? row->argument : "");
        printf("  %-28s %s", left, row->help);
        if (row->initial && row->kind != CLI_TEXTS) printf(" (default: %s)", row->initial);
        printf("\n");
    }
}
