/* args.h - options as tables: one row names an option, its argument, its default and its help.
 *
 * The same rows parse the command line and print the help, so they cannot drift apart. A row stores
 * its value at an offset of the command's option struct. Every such struct begins with a
 * cli_common; the rows of the common options are shared, and a command says which groups it has. */
#ifndef CLI_ARGS_H
#define CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CLI_MAX_TEXTS = 256 };

typedef enum cli_kind {
    CLI_FLAG,  /* bool, no argument */
    CLI_INT,   /* int64_t; 4K, 1M, 1G and 1T are understood */
    CLI_NUM,   /* double */
    CLI_TEXT,  /* const char *, borrowed from argv */
    CLI_TEXTS, /* cli_texts: may be given several times */
} cli_kind;

typedef struct cli_texts {
    const char *items[CLI_MAX_TEXTS];
    int n;
} cli_texts;

typedef struct cli_option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* 0 = it has none */
    cli_kind kind;
    const char *argument; /* "TOKENS", for the help; NULL for a flag */
    const char *initial;  /* the default, parsed like an argument; NULL = zero, unset */
    const char *help;
    size_t at;       /* offset of the field */
    double min, max; /* bounds of a number */
    unsigned group;  /* of a common option */
} cli_option;

enum {
    CLI_GROUP_MODEL = 1,   /* -m, --threads */
    CLI_GROUP_PLAN = 2,    /* --plan */
    CLI_GROUP_SESSION = 4, /* --kv, --invariant */
    CLI_GROUP_CONTEXT = 8, /* -c */
};

typedef struct cli_common {
    const char *model, *index, *plan, *kv_type, *gathering;
    int64_t n_threads, context;
    bool is_invariant;
    cli_texts words; /* what is not an option */
} cli_common;

typedef struct cli_command {
    const char *name;    /* may be two words: "bench depth" */
    const char *usage;   /* what follows "heddle NAME" */
    const char *summary; /* one line */
    const char *about;   /* more, for its own help; may be NULL */
    unsigned groups;
    const cli_option *options; /* its own rows; may be NULL */
    size_t options_size;
    int max_words; /* arguments that are not options */
    int (*run)(const void *options);
} cli_command;

/* Fills `options` (command->options_size zeroed bytes) from argv. 0, or the exit code 2 after one
 * sentence on stderr. *wants_help: --help was met. */
int cli_parse(const cli_command *command, int argc, char **argv, void *options, bool *wants_help);
void cli_print_help(const cli_command *command);
/* The edit distance of two words, for "did you mean". */
int cli_distance(const char *a, const char *b);

#endif
