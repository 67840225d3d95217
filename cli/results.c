/* results.c - a file of results, one JSON object a line, that a run may be stopped at anywhere. */
#include "results.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const char *const key_members[] = {"what",     "model_hash", "kv",       "frame",   "plan_hash",
                                          "context",  "seed",       "haystack", "source",  "source_hash",
                                          "document", "task",       "answers",  "governs", "invariant"};

static char *key_of(const json_t *row)
{
    cli_text key = {0};
    for (size_t i = 0; i < sizeof key_members / sizeof *key_members; i++) {
        char *text = json_dumps(json_object_get(row, key_members[i]), JSON_ENCODE_ANY | JSON_COMPACT);
        const char *shown = text ? text : "null";
        bool is_added = cli_text_add(&key, shown, (int64_t)strlen(shown)) && cli_text_add(&key, "|", 1);
        free(text);
        if (!is_added) {
            cli_text_free(&key);
            return NULL;
        }
    }
    return key.data;
}

static bool keep(results *r, json_t *row)
{
    char *key = key_of(row);
    bool is_kept = key && !json_object_set(r->by_key, key, row);
    free(key);
    return is_kept;
}

/* A count that the row has, but not as a number from 0 on or beyond that of which it is a part; NULL: none. */
static const char *wrong_count(const json_t *row)
{
    static const char *const counts[][2] = {
        {"right", "tokens"},   {"exact", "questions"}, {"same", "tokens"},  {"first", "tokens"},
        {"nll", NULL},         {"tokens", NULL},       {"questions", NULL}, {"last_nll", NULL},
        {"last_tokens", NULL}, {"gain_tokens", NULL}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        double n = row_number(row, counts[i][0]),
               most = counts[i][1] ? row_number(row, counts[i][1]) : INFINITY;
        if (json_object_get(row, counts[i][0]) && (!(n >= 0) || n > most)) return counts[i][0];
    }
    return NULL;
}

/* All whole lines of the text; *n_whole: the bytes they take. */
static int read_lines(results *r, const char *path, const cli_text *text, int64_t *n_whole)
{
    int64_t at = 0;
    for (int64_t line = 1; at < text->n; line++) {
        const char *end = memchr(text->data + at, '\n', (size_t)(text->n - at));
        if (!end) break;
        int64_t n = end - (text->data + at);
        json_error_t error;
        json_t *row = n ? json_loadb(text->data + at, (size_t)n, JSON_REJECT_DUPLICATES, &error) : NULL;
        bool is_kept = row && json_is_object(row) && json_object_get(row, "what") && keep(r, row);
        const char *wrong = is_kept ? wrong_count(row) : NULL;
        json_decref(row);
        if (!is_kept) return cli_refuse("%s: line %lld is no result of 'heddle eval'", path, (long long)line);
        if (wrong)
            return cli_refuse(
                "%s: line %lld: %s: must be a number, at least 0 and at most of what it is a part", path,
                (long long)line, wrong);
        at += n + 1;
    }
    *n_whole = at;
    return 0;
}

static int open_for_writing(results *r, const cli_text *text, int64_t n_whole)
{
    r->file = fopen(r->path, "ab");
    if (!r->file) return cli_refuse("%s: %s", r->path, strerror(errno));
    if (flock(fileno(r->file), LOCK_EX | LOCK_NB))
        return cli_refuse("%s: another 'heddle eval' is writing to it", r->path);
    if (n_whole < text->n && ftruncate(fileno(r->file), n_whole)) {
        cli_note("heddle: %s: %s", r->path, strerror(errno));
        return EXIT_RUNTIME;
    }
    if (n_whole < text->n) cli_note("heddle: %s: the last line was cut off; it is done again", r->path);
    return 0;
}

int results_open(results *r, const char *path, bool is_writer)
{
    cli_text text = {0};
    int64_t n_whole = 0;
    *r = (results){.by_key = json_object(), .path = strdup(path)};
    int code = 0;
    if (!r->by_key || !r->path) {
        cli_note("heddle: no memory for the results");
        code = EXIT_RUNTIME;
    }
    r->is_new = is_writer && access(path, F_OK);
    if (!code && !r->is_new) code = cli_read_file(&text, path);
    if (!code) code = read_lines(r, path, &text, &n_whole);
    if (!code && is_writer) code = open_for_writing(r, &text, n_whole);
    cli_text_free(&text);
    return code;
}

int results_also(results *r, const char *path)
{
    cli_text text = {0};
    int64_t n_whole = 0;
    int code = cli_read_file(&text, path);
    if (!code) code = read_lines(r, path, &text, &n_whole);
    cli_text_free(&text);
    return code;
}

void results_close(results *r)
{
    if (r->is_new && r->file && !json_object_size(r->by_key)) remove(r->path);
    if (r->file) fclose(r->file);
    json_decref(r->by_key);
    free(r->path);
    *r = (results){0};
}

const json_t *results_find(const results *r, const json_t *row)
{
    char *key = key_of(row);
    const json_t *found = key ? json_object_get(r->by_key, key) : NULL;
    free(key);
    return found;
}

int results_add(results *r, json_t *row)
{
    char *line = row ? json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    /* kept as it will be read again, so that the figures of a run do not depend on when it was stopped */
    json_t *read = line ? json_loads(line, 0, NULL) : NULL;
    bool is_written = read && fprintf(r->file, "%s\n", line) > 0 && !fflush(r->file) && keep(r, read);
    free(line);
    json_decref(read);
    json_decref(row);
    if (is_written) return 0;
    cli_note("heddle: %s: a result could not be written", r->path);
    return EXIT_RUNTIME;
}

bool results_keep(results *r, json_t *row)
{
    if (!r->by_key) r->by_key = json_object();
    bool is_kept = r->by_key && row && keep(r, row);
    json_decref(row);
    return is_kept;
}

const char *row_text(const json_t *row, const char *member)
{
    const char *text = json_string_value(json_object_get(row, member));
    return text ? text : "";
}

double row_number(const json_t *row, const char *member)
{
    const json_t *value = json_object_get(row, member);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

double row_number_at(const json_t *row, const char *member, int64_t i)
{
    const json_t *value = json_array_get(json_object_get(row, member), (size_t)i);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

int64_t row_count(const json_t *row, const char *member, int64_t i, int64_t most)
{
    double value = i < 0 ? row_number(row, member) : row_number_at(row, member, i);
    return !(value > 0) ? 0 : value > (double)most ? most : (int64_t)value;
}
