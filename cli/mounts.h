/* mounts.h - `--mount`: documents whose rows are in files, in front of what is read. */
#ifndef CLI_MOUNTS_H
#define CLI_MOUNTS_H

#include "cli.h"

typedef struct cli_mounts {
    heddle_document *documents[CLI_MAX_TEXTS];
    int64_t first[CLI_MAX_TEXTS]; /* number of each one's first token, once mounted */
    int n;
    int64_t n_tokens; /* that they take of a context, each rounded up to whole pages */
    double open_s;
} cli_mounts;

/* Opens the files and sizes them. 0 or an exit code. */
int cli_mounts_open(cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths);
/* Mounts them all into setup's session, which is empty, and says what that took. */
int cli_mounts_mount(cli_mounts *mounts, const cli_setup *setup);
/* `--never`: a mounted file as --mount names it, FILE.kv:A-B of its tokens, or A-B of the session's (both
 * ends included): no row reads them. After cli_mounts_mount. 0 or an exit code. */
int cli_mounts_never(const cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths,
                     const cli_texts *never);
void cli_mounts_close(cli_mounts *mounts);

#endif
