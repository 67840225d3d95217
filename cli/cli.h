/* cli.h - what the commands share: exit codes, reading texts, opening model, plan and session.
 *
 * The program sees only include/. Results go to stdout; progress, figures and messages to stderr.
 * Exit codes: 0 done; 1 a failure while running; 2 bad input (one sentence says which). */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stdint.h>

#include "args.h"
#include "heddle.h"

enum { EXIT_RUNTIME = 1, EXIT_INPUT = 2 };

extern const cli_command *const cli_commands[]; /* main.c; NULL-terminated */
extern const cli_command cmd_run, cmd_inspect, cmd_tokenize, cmd_perplexity, cmd_bench_depth, cmd_plans,
    cmd_explain, cmd_eval, cmd_report, cmd_plan_search, cmd_calibrate, cmd_encode, cmd_verify;

/* One sentence on stderr; returns EXIT_INPUT. */
int cli_refuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints the library's sentence for `status`; returns EXIT_INPUT or EXIT_RUNTIME by its kind. */
int cli_fail(heddle_status status);
/* A sentence on stderr that is no failure. */
void cli_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Flushes stdout; EXIT_RUNTIME with a sentence when it could not all be written. */
int cli_finish_output(void);

typedef struct cli_text { /* a growable string; freed by cli_text_free */
    char *data;           /* NUL-terminated once anything was added */
    int64_t n, capacity;
} cli_text;
/* False when memory ran out. */
bool cli_text_add(cli_text *text, const void *bytes, int64_t n);
void cli_text_free(cli_text *text);

typedef struct cli_ids { /* growing token ids; freed by cli_ids_free */
    int32_t *ids;
    int64_t n, capacity;
} cli_ids;
/* 0, or EXIT_RUNTIME after a message. */
int cli_ids_add(cli_ids *to, const int32_t *ids, int64_t n);
/* Adds what the library tokenised, and frees it; or the message of `status`. */
int cli_ids_take(cli_ids *to, heddle_status status, int32_t *ids, int64_t n);
void cli_ids_free(cli_ids *ids);

/* Reads a whole file below 1 GiB, "-" = standard input; 0 or an exit code after its sentence. */
int cli_read_file(cli_text *text, const char *path);
/* A file of n bytes, all of it or the one that was there: they go to "PATH.part" beside it, which is then renamed. What
 * is no file (a pipe, /dev/stdout) takes them itself. 0, or an exit code after a message. */
int cli_write_file(const char *path, const void *bytes, int64_t n);
/* A file with something in it is replaced only by one of its own kind, "page" or the like, so that a user's text named
 * by mistake is not. 0, or an exit code after a message. */
int cli_check_kind(const char *path, const char *kind, bool is_kind);
/* Whether the file can be written and is nothing else's, before long work; leaves everything as it was. */
int cli_check_file(const char *path, const char *kind, bool is_kind);
/* How files that heddle writes begin, as fnmatch has it; whether a file begins so. */
#define CLI_SESSION_BEGINS  "heddle\x1a\n*"
#define CLI_DOCUMENT_BEGINS "HDLDOCKV*"
#define CLI_LISTS_BEGINS    "HDLLISTS*"
bool cli_file_is(const char *path, const char *pattern);
/* The first bytes of a regular file, n_most at most; how many there are, 0 of anything else. */
size_t cli_read_first(const char *path, void *first, size_t n_most);
bool cli_is_same_file(const char *path, const char *other);

/* What most commands open, in the order in which failures are cheap to find. */
typedef struct cli_setup {
    heddle_engine *engine;
    heddle_plan *plan;
    heddle_session *session;
    heddle_model_info info;
    heddle_session_options session_options;
} cli_setup;
/* Plan, then model. 0 or an exit code. */
int cli_open(cli_setup *setup, const cli_common *common);
/* Makes the session for `context` tokens. */
int cli_open_session(cli_setup *setup, int64_t context);
void cli_close(cli_setup *setup);
/* Warns when n_tokens is more than the model was trained on. */
void cli_warn_trained(const cli_setup *setup, int64_t n_tokens);

/* n_ids tokens of a text, repeated as needed; path NULL: a built-in one. malloc'd. 0 or an exit code. */
int cli_sample_ids(const heddle_engine *engine, const char *path, int64_t n_ids, int32_t **out);

/* Of the longest preset's name. */
int cli_preset_width(void);

/* The id that begins a text in this model, where its file says so; else -1. */
int cli_bos(const heddle_engine *engine, int32_t *bos);

#endif
