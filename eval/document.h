/* document.h - generated long documents and the questions that can be asked of them.
 *
 * A document has one haystack and carries the facts of every task that lives in it, so that it is
 * read once and asked many times:
 *
 *   noise   five short sentences, repeated     needle_noise, variables
 *   text    a real text                        needle_text, multi_key, multi_value, multi_query, passage
 *   lines   needle-like lines                  needle_lines
 *   table   rows "key: value"                  table
 *   words   lists of words                     common_words, frequent_words
 *   story   chapters                           story
 *
 * The same request gives the same bytes on every machine; only the number of haystack units follows
 * the token counter it is given. Tasks in the manner of RULER (needles, variables, words) and The
 * Sparse Frontier (story), with our own words. What differs: a document holds several needles, and a
 * single needle is alone with its subject ("lucky ticket number") where RULER's is alone at all. */
#ifndef EVAL_DOCUMENT_H
#define EVAL_DOCUMENT_H

#include "eval/basics.h"

typedef enum eval_haystack {
    EVAL_NOISE = 0,
    EVAL_TEXT,
    EVAL_LINES,
    EVAL_TABLE,
    EVAL_WORDS,
    EVAL_STORY,
    EVAL_N_HAYSTACKS
} eval_haystack;
extern const char *const eval_haystack_names[EVAL_N_HAYSTACKS];

typedef enum eval_task {
    EVAL_NEEDLE_NOISE = 0,
    EVAL_VARIABLES,
    EVAL_NEEDLE_TEXT,
    EVAL_MULTI_KEY,
    EVAL_MULTI_VALUE,
    EVAL_MULTI_QUERY,
    EVAL_PASSAGE,
    EVAL_NEEDLE_LINES,
    EVAL_TABLE_ROW,
    EVAL_COMMON_WORDS,
    EVAL_FREQUENT_WORDS,
    EVAL_STORY_FACT,
    EVAL_N_TASKS
} eval_task;
typedef struct eval_task_row {
    const char *name, *about;
    eval_haystack haystack;
} eval_task_row;
extern const eval_task_row eval_tasks[EVAL_N_TASKS];

typedef struct eval_question {
    eval_task task;
    char *question; /* follows the document: "\nWhat is ... ?" */
    char *prefix;   /* the answer's first words, given: "The ... is:" */
    char *answer;   /* what is scored, with its leading space */
    double depth;   /* 0..1, where in the document the answer stands; -1 = in several places */
} eval_question;

typedef struct eval_document {
    char *text; /* instruction and haystack */
    eval_question *questions;
    int32_t n_questions;
} eval_document;

typedef int64_t (*eval_count_fn)(const char *text, int64_t n_bytes, void *user); /* tokens of a text */
typedef struct eval_request {
    eval_haystack haystack;
    uint64_t seed;
    int64_t index;         /* of the document; every index is another document */
    int64_t n_tokens;      /* about so long; at least EVAL_LEAST_TOKENS */
    int32_t max_questions; /* the tasks in `wants` take turns */
    bool wants
        [EVAL_N_TASKS]; /* tasks of other haystacks are passed over; `heddle eval` wants all, whatever it asks */
    const char *source; /* EVAL_TEXT: the real text [source_bytes] */
    int64_t source_bytes;
    eval_count_fn count;
    void *count_user;
} eval_request;
enum { EVAL_LEAST_TOKENS = 512 };

/* NULL, or a sentence that says what is missing; then *out is empty. */
const char *eval_document_make(eval_document *out, const eval_request *request);
void eval_document_free(eval_document *document);

#endif
