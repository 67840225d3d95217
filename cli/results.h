/* results.h - a file of results, one JSON object a line, that a run may be stopped at anywhere.
 *
 * A row names all that made it: model, plan, context, seed, text, document, task. Its key is made of
 * these members, so that a later run finds what is there and does the rest. A line without its
 * newline was cut off while it was written and is dropped. One writer at a time. */
#ifndef CLI_RESULTS_H
#define CLI_RESULTS_H

#include <jansson.h>
#include <stdio.h>

#include "cli.h"

typedef struct results {
    json_t *by_key; /* key -> row, owned */
    FILE *file;     /* NULL = read only */
    bool is_new;    /* the file was not there before */
    char *path;
} results;

/* 0 or an exit code. is_writer: the file is made where it is missing, and locked. */
int results_open(results *r, const char *path, bool is_writer);
/* Reads the rows of one more file into an open one. */
int results_also(results *r, const char *path);
void results_close(
    results *r); /* a file that was made and got no row is removed: of a refusal nothing is left */
/* The row with the same key members as `row`, borrowed; NULL = there is none. */
const json_t *results_find(const results *r, const json_t *row);
/* Writes the row at once and keeps it; takes the reference. 0 or an exit code. */
int results_add(results *r, json_t *row);

/* Keeps a row that is written nowhere, in an open file's rows or in none's; takes the reference. */
bool results_keep(results *r, json_t *row);

const char *row_text(const json_t *row, const char *member); /* "" where it is missing */
double row_number(const json_t *row, const char *member);    /* NaN */
double row_number_at(const json_t *row, const char *member, int64_t i);
/* A count of a file that anyone may have written: what is no number is 0, what is out of 0..most is
 * brought back. i < 0: the member itself. */
int64_t row_count(const json_t *row, const char *member, int64_t i, int64_t most);

#endif
