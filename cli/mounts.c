/* mounts.c - opens and mounts the files of `--mount`, and forbids what `--never` names. */
#include "mounts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "term.h"

/* A document that is mounted twice, be it from files of two machines, counts twice in every softmax, and --never
 * would leave one of the two. */
static int refuse_twice(const cli_mounts *mounts, const cli_texts *paths)
{
    int last = mounts->n - 1;
    uint64_t sum = heddle_document_sum(mounts->documents[last]);
    for (int i = 0; i < last; i++)
        if (heddle_document_sum(mounts->documents[i]) == sum)
            return cli_refuse("run: --mount %s: holds the document that --mount %s mounts already",
                              paths->items[last], paths->items[i]);
    return 0;
}

int cli_mounts_open(cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths)
{
    double start = term_now();
    int64_t page = (int64_t)1 << setup->session_options.page_shift;
    for (int i = 0; i < paths->n; i++) {
        heddle_status status = heddle_document_open(&mounts->documents[i], setup->engine, paths->items[i]);
        if (status) return cli_fail(status);
        mounts->n++;
        int code = refuse_twice(mounts, paths);
        if (code) return code;
        mounts->n_tokens += (heddle_document_len(mounts->documents[i]) + page - 1) / page * page;
    }
    mounts->open_s = term_now() - start;
    return 0;
}

int cli_mounts_mount(cli_mounts *mounts, const cli_setup *setup)
{
    double start = term_now();
    int64_t n_tokens = 0;
    for (int i = 0; i < mounts->n; i++) {
        heddle_status status = heddle_session_mount(setup->session, mounts->documents[i], &mounts->first[i]);
        if (status) return cli_fail(status);
        n_tokens += heddle_document_len(mounts->documents[i]);
    }
    char count[TERM_COUNT];
    if (mounts->n)
        cli_note("mounted %d documents of %s tokens in %.3f s", mounts->n, term_count(count, n_tokens),
                 mounts->open_s + term_now() - start);
    return 0;
}

/* "A-B", whole numbers, and nothing else. */
static bool read_range(const char *text, int64_t *first, int64_t *last)
{
    char *end;
    if (*text < '0' || *text > '9') return false;
    *first = strtoll(text, &end, 10);
    if (*end != '-' || end[1] < '0' || end[1] > '9') return false;
    *last = strtoll(end + 1, &end, 10);
    return !*end;
}

/* The mount of the file that the first n bytes of `text` name, in whatever words (./a.kv is a.kv); -1 = none. */
static int find_mount(const cli_texts *paths, const char *text, size_t n)
{
    struct stat named, mounted;
    char *path = strndup(text, n);
    int found = -1;
    bool is_there = path && !stat(path, &named);
    for (int i = 0; i < paths->n && found < 0; i++) {
        bool is_same = path && !strcmp(path, paths->items[i]);
        if (!is_same && is_there && !stat(paths->items[i], &mounted))
            is_same = mounted.st_ino == named.st_ino && mounted.st_dev == named.st_dev;
        if (is_same) found = i;
    }
    free(path);
    return found;
}

int cli_mounts_never(const cli_mounts *mounts, const cli_setup *setup, const cli_texts *paths,
                     const cli_texts *never)
{
    for (int i = 0; i < never->n; i++) {
        const char *text = never->items[i], *colon = strrchr(text, ':');
        int64_t first = 0, last = 0, begin = 0, n = heddle_session_len(setup->session);
        int at = find_mount(paths, text, strlen(text));
        bool is_range = at < 0 && read_range(colon ? colon + 1 : text, &first, &last);
        if (is_range && colon) at = find_mount(paths, text, (size_t)(colon - text));
        if (at < 0 && (colon || !is_range))
            return cli_refuse(
                "run: --never %s: must be a file that --mount names, FILE.kv:A-B of its tokens, or "
                "A-B of all mounted ones",
                text);
        if (is_range && first > last)
            return cli_refuse(
                "run: --never %s: token %lld stands behind %lld: the first goes before the last", text,
                (long long)first, (long long)last);
        if (at >= 0) {
            begin = mounts->first[at];
            n = heddle_document_len(mounts->documents[at]);
        }
        if (!is_range) last = n - 1;
        if (last >= n)
            return cli_refuse("run: --never %s: token %lld: must be below %lld, the tokens of %s", text,
                              (long long)last, (long long)n, at < 0 ? "the mounts" : paths->items[at]);
        heddle_status status = heddle_session_forbid(setup->session, begin + first, last - first + 1);
        if (status) return cli_fail(status);
    }
    return 0;
}

void cli_mounts_close(cli_mounts *mounts)
{
    for (int i = 0; i < mounts->n; i++) heddle_document_close(mounts->documents[i]);
    mounts->n = 0;
}
