/* mounts.h - `--mount`: documents whose rows are in files, in front of what is read. */
#ifndef CLI_MOUNTS_H
#define CLI_MOUNTS_H

#include "cli.h"

typedef struct cli_mounts {
    heddle_document *documents[CLI_MAX_TEXTS];
    int n;
    int64_t n_tokens; /* that they take of a context, each rounded up to whole pages */
    double open_s;
} cli_mounts;

/* Opens the files and sizes them. 0 or an exit code. */
int cli_mounts_open(cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths);
/* Mounts them all into setup's session, which is empty, and says what that took. */
int cli_mounts_mount(const cli_mounts *mounts, const cli_setup *setup);
void cli_mounts_close(cli_mounts *mounts);

#endif
