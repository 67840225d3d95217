/* document_int.h - how a document comes together: units of haystack, facts between them, questions. */
#ifndef EVAL_DOCUMENT_INT_H
#define EVAL_DOCUMENT_INT_H

#include "eval/document.h"

typedef struct doc_fact {
    char *line;       /* a whole sentence, owned */
    char key[64];     /* what is asked for */
    char value[32];   /* the answer */
    const char *what; /* the subject of its sentence; NULL = not a needle */
    eval_task task;   /* the task that asks for it */
    int32_t group;    /* facts that one question asks together */
    int64_t at;       /* byte offset in the body once it is placed */
} doc_fact;

typedef struct doc_builder {
    const eval_request *request;
    eval_rng rng;
    eval_buf head, body;
    char **units; /* haystack, each with its trailing separator; owned */
    int64_t n_units, units_capacity, units_tokens;
    doc_fact *facts;
    int32_t n_facts, facts_capacity;
    int32_t *order; /* facts as they stand in the body; after placing */
    eval_question *questions;
    int32_t n_questions, questions_capacity;
    int64_t last_tokens; /* of the last unit counted, as repeated noise is one text */
    const char *last_counted;
    const char *why; /* the sentence of a refusal */
    bool is_failed;  /* memory ran out */
} doc_builder;

int64_t doc_count(doc_builder *b, const char *text, int64_t n);
void doc_unit(doc_builder *b, const char *text, int64_t n); /* appends a unit and counts it */
/* A fact with a formatted line; NULL when memory ran out. */
doc_fact *doc_fact_add(doc_builder *b, eval_task task, const char *line);
/* Mixes the facts among the units, in a drawn order at drawn places; fills body, at and order. */
void doc_place(doc_builder *b);
/* Takes the three texts over. depth as in eval_question. */
void doc_ask(doc_builder *b, eval_task task, eval_buf *question, eval_buf *prefix, eval_buf *answer,
             double depth);
double doc_depth(const doc_builder *b, int64_t at);
bool doc_wants(const doc_builder *b, eval_task task);

/* One each for the haystacks: head, body and questions. */
void doc_make_noise(doc_builder *b);
void doc_make_text(doc_builder *b);
void doc_make_lines(doc_builder *b);
void doc_make_table(doc_builder *b);
void doc_make_words(doc_builder *b);
void doc_make_story(doc_builder *b);

#endif
