/* mounts.c - opens and mounts the files of `--mount`. */
#include "mounts.h"

#include <time.h>

#include "term.h"

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int cli_mounts_open(cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths)
{
    double start = now_s();
    int64_t page = (int64_t)1 << setup->session_options.page_shift;
    for (int i = 0; i < paths->n; i++) {
        heddle_status status = heddle_document_open(&mounts->documents[i], setup->engine, paths->items[i]);
        if (status) return cli_fail(status);
        mounts->n++;
        mounts->n_tokens += (heddle_document_len(mounts->documents[i]) + page - 1) / page * page;
    }
    mounts->open_s = now_s() - start;
    return 0;
}

int cli_mounts_mount(const cli_mounts *mounts, const cli_setup *setup)
{
    double start = now_s();
    int64_t first, n_tokens = 0;
    for (int i = 0; i < mounts->n; i++) {
        heddle_status status = heddle_session_mount(setup->session, mounts->documents[i], &first);
        if (status) return cli_fail(status);
        n_tokens += heddle_document_len(mounts->documents[i]);
    }
    char count[TERM_COUNT];
    if (mounts->n)
        cli_note("mounted %d documents of %s tokens in %.3f s", mounts->n, term_count(count, n_tokens),
                 mounts->open_s + now_s() - start);
    return 0;
}

void cli_mounts_close(cli_mounts *mounts)
{
    for (int i = 0; i < mounts->n; i++) heddle_document_close(mounts->documents[i]);
    mounts->n = 0;
}
