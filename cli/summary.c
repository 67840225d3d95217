/* summary.c - figures from rows of results: sums aligned by document, plans paired. */
#include "summary.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool fits_text(const char *wanted, const json_t *row, const char *member)
{
    return !wanted || !strcmp(wanted, row_text(row, member));
}

void summary_text_of(const char *source, char *text, size_t n)
{
    size_t length = strlen(source), end = length;
    while (end > 0 && source[end - 1] >= '0' && source[end - 1] <= '9') end--;
    bool is_numbered = end > 1 && end < length && source[end - 1] == '-';
    snprintf(text, n, "%.*s", (int)(is_numbered ? end - 1 : length), source);
}

bool summary_fits(const summary_filter *filter, const json_t *row)
{
    char text[64];
    summary_text_of(row_text(row, "source"), text, sizeof text);
    return (!filter->text || !strcmp(filter->text, text)) && fits_text(filter->what, row, "what") &&
           fits_text(filter->model_hash, row, "model_hash") && fits_text(filter->kv, row, "kv") &&
           fits_text(filter->frame, row, "frame") && fits_text(filter->task, row, "task") &&
           fits_text(filter->governs, row, "governs") &&
           (!filter->context || row_number(row, "context") == (double)filter->context) &&
           json_is_true(json_object_get(row, "invariant")) == filter->is_invariant &&
           (!filter->answers || row_number(row, "answers") == (double)filter->answers) &&
           (filter->seed < 0 || row_number(row, "seed") == (double)filter->seed);
}

/* What makes a document: rows of two plans with the same are a pair where they were asked as many answers. */
static void document_key(const json_t *row, char *key, size_t n)
{
    snprintf(key, n, "%s|%s|%s|%.0f|%.0f|%.0f", row_text(row, "haystack"), row_text(row, "source_hash"),
             row_text(row, "task"), row_number(row, "context"), row_number(row, "document"),
             row_number(row, "seed"));
}

/* Rows of one plan: document and answers -> row. */
static json_t *rows_of(const results *r, const summary_filter *filter, const char *plan_hash)
{
    json_t *rows = json_object(), *row;
    const char *name;
    char document[512], key[544];
    json_object_foreach(r->by_key, name, row)
    {
        if (strcmp(row_text(row, "plan_hash"), plan_hash) != 0 || !summary_fits(filter, row)) continue;
        document_key(row, document, sizeof document);
        snprintf(key, sizeof key, "%s|%.0f", document, row_number(row, "answers"));
        json_object_set(rows, key, row);
    }
    return rows;
}

json_t *summary_documents(const results *r, const summary_filter *filter, const char *const *plan_hashes,
                          int n_plans)
{
    json_t *rows[SUMMARY_MAX_PLANS] = {NULL}, *documents = json_object(), *row;
    const char *key;
    char document[512];
    for (int p = 0; p < n_plans; p++) rows[p] = rows_of(r, filter, plan_hashes[p]);
    json_object_foreach(rows[0], key, row)
    {
        document_key(row, document, sizeof document);
        json_t *known = json_object_get(documents, document), *of_plans = json_array();
        if (known && row_number(json_array_get(known, 0), "answers") > row_number(row, "answers")) {
            json_decref(of_plans);
            continue;
        }
        for (int p = 0; p < n_plans; p++) json_array_append(of_plans, json_object_get(rows[p], key));
        if (json_array_size(of_plans) == (size_t)n_plans) json_object_set(documents, document, of_plans);
        json_decref(of_plans);
    }
    for (int p = 0; p < n_plans; p++) json_decref(rows[p]);
    return documents;
}

int summary_align(summary *out, const results *r, const summary_filter *filter,
                  const char *const *plan_hashes, int n_plans, const char *num, const char *den)
{
    json_t *documents = summary_documents(r, filter, plan_hashes, n_plans), *rows;
    const char *key;
    bool is_failed = !documents;
    *out = (summary){0};
    for (int p = 0; p < n_plans; p++) {
        size_t n = documents ? json_object_size(documents) + 1 : 1;
        out->num[p] = calloc(n, sizeof **out->num);
        out->den[p] = calloc(n, sizeof **out->den);
        is_failed |= !out->num[p] || !out->den[p];
    }
    if (!is_failed) json_object_foreach(documents, key, rows)
        {
            bool is_whole = true;
            for (int p = 0; p < n_plans && is_whole; p++) {
                const json_t *row = json_array_get(rows, (size_t)p);
                out->num[p][out->n] = row_number(row, num);
                out->den[p][out->n] = den ? row_number(row, den) : 1;
                is_whole = !isnan(out->num[p][out->n]) && !isnan(out->den[p][out->n]);
            }
            out->n += is_whole;
        }
    json_decref(documents);
    if (!is_failed) return 0;
    cli_note("heddle: no memory for the figures");
    return EXIT_RUNTIME;
}

void summary_free(summary *s)
{
    for (int p = 0; p < SUMMARY_MAX_PLANS; p++) {
        free(s->num[p]);
        free(s->den[p]);
    }
    *s = (summary){0};
}

double summary_share(const results *r, const summary_filter *filter, const char *plan_hash, bool *is_counted)
{
    static const char *const members[] = {"share_counted", "share_read"};
    double share = NAN;
    for (int i = 0; i < 2 && isnan(share); i++) {
        summary s;
        if (!summary_align(&s, r, filter, &plan_hash, 1, members[i], NULL) && s.n)
            share = eval_ratio(s.num[0], s.den[0], s.n);
        summary_free(&s);
        if (is_counted) *is_counted = i == 0;
    }
    return share;
}

bool summary_decides(double dense, double window)
{
    return dense >= 0.60 && dense - window >= 0.20;
}
