/* document.c - a document from its parts, and which of its questions are asked. */
#include "eval/document_int.h"

#include <stdlib.h>
#include <string.h>

const char *const eval_haystack_names[EVAL_N_HAYSTACKS] = {"noise", "text",  "lines",
                                                           "table", "words", "story"};

const eval_task_row eval_tasks[EVAL_N_TASKS] = {
    [EVAL_NEEDLE_NOISE] = {"needle_noise", "one number in repeated noise", EVAL_NOISE},
    [EVAL_VARIABLES] = {"variables", "a chain of assignments, four hops", EVAL_NOISE},
    [EVAL_NEEDLE_TEXT] = {"needle_text", "one number in a real text", EVAL_TEXT},
    [EVAL_MULTI_KEY] = {"multi_key", "one number among several of its kind", EVAL_TEXT},
    [EVAL_MULTI_VALUE] = {"multi_value", "the four numbers of one key", EVAL_TEXT},
    [EVAL_MULTI_QUERY] = {"multi_query", "the numbers of four keys", EVAL_TEXT},
    [EVAL_PASSAGE] = {"passage", "how a passage goes on, word for word", EVAL_TEXT},
    [EVAL_NEEDLE_LINES] = {"needle_lines", "one number among nothing but such lines", EVAL_LINES},
    [EVAL_TABLE_ROW] = {"table", "one row of a key-value table", EVAL_TABLE},
    [EVAL_COMMON_WORDS] = {"common_words", "the ten most common words of a list", EVAL_WORDS},
    [EVAL_FREQUENT_WORDS] = {"frequent_words", "the three most frequent coded words", EVAL_WORDS},
    [EVAL_STORY_FACT] = {"story", "place, person or purchase of a chapter", EVAL_STORY},
};

int64_t doc_count(doc_builder *b, const char *text, int64_t n)
{
    return b->request->count(text, n, b->request->count_user);
}

/* Room for one more element of `size` bytes in a growing array. */
static bool grow(doc_builder *b, void *items, int64_t n, int64_t *capacity, size_t size)
{
    void **array = items;
    if (b->is_failed) return false;
    if (n < *capacity) return true;
    int64_t wanted = *capacity ? *capacity * 2 : 64;
    void *grown = realloc(*array, (size_t)wanted * size);
    if (!grown) {
        b->is_failed = true;
        return false;
    }
    *array = grown;
    *capacity = wanted;
    return true;
}

void doc_unit(doc_builder *b, const char *text, int64_t n)
{
    if (!grow(b, &b->units, b->n_units, &b->units_capacity, sizeof *b->units)) return;
    char *unit = strndup(text, (size_t)n);
    if (!unit) {
        b->is_failed = true;
        return;
    }
    b->units[b->n_units++] = unit;
    if (b->last_counted != text) b->last_tokens = doc_count(b, text, n);
    b->last_counted = text;
    b->units_tokens += b->last_tokens;
}

doc_fact *doc_fact_add(doc_builder *b, eval_task task, const char *line)
{
    int64_t capacity = b->facts_capacity;
    if (!grow(b, &b->facts, b->n_facts, &capacity, sizeof *b->facts)) return NULL;
    b->facts_capacity = (int32_t)capacity;
    doc_fact *fact = &b->facts[b->n_facts];
    *fact = (doc_fact){.task = task, .line = strdup(line)};
    if (!fact->line) {
        b->is_failed = true;
        return NULL;
    }
    b->n_facts++;
    return fact;
}

static int compare_int32(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

void doc_place(doc_builder *b)
{
    int32_t n = b->n_facts, *places = calloc((size_t)n + 1, sizeof *places);
    b->order = calloc((size_t)n + 1, sizeof *b->order);
    if (!places || !b->order) b->is_failed = true;
    for (int32_t i = 0; i < n && !b->is_failed; i++) {
        places[i] = (int32_t)eval_rng_below(&b->rng, b->n_units + 1);
        b->order[i] = i;
    }
    if (!b->is_failed) {
        qsort(places, (size_t)n, sizeof *places, compare_int32);
        eval_rng_shuffle(&b->rng, b->order, n);
    }
    int32_t next = 0;
    for (int64_t u = 0; u <= b->n_units && !b->is_failed; u++) {
        for (; next < n && places[next] == u; next++) {
            doc_fact *fact = &b->facts[b->order[next]];
            bool is_inline = b->body.n && b->body.data[b->body.n - 1] != '\n';
            fact->at = b->body.n;
            eval_buf_text(&b->body, fact->line);
            eval_buf_text(&b->body, is_inline ? " " : "\n");
        }
        if (u < b->n_units) eval_buf_text(&b->body, b->units[u]);
    }
    if (b->body.n && b->body.data[b->body.n - 1] != '\n') eval_buf_text(&b->body, "\n");
    free(places);
}

void doc_ask(doc_builder *b, eval_task task, eval_buf *question, eval_buf *prefix, eval_buf *answer,
             double depth)
{
    int64_t capacity = b->questions_capacity;
    eval_question asked = {task, eval_buf_take(question), eval_buf_take(prefix), eval_buf_take(answer),
                           depth};
    bool is_whole = asked.question && asked.prefix && asked.answer;
    if (is_whole && grow(b, &b->questions, b->n_questions, &capacity, sizeof *b->questions)) {
        b->questions_capacity = (int32_t)capacity;
        b->questions[b->n_questions++] = asked;
        return;
    }
    b->is_failed = true;
    free(asked.question);
    free(asked.prefix);
    free(asked.answer);
}

double doc_depth(const doc_builder *b, int64_t at)
{
    return b->body.n ? (double)at / (double)b->body.n : 0;
}

bool doc_wants(const doc_builder *b, eval_task task)
{
    return b->request->wants[task];
}

static void free_question(eval_question *question)
{
    free(question->question);
    free(question->prefix);
    free(question->answer);
    *question = (eval_question){0};
}

/* Keeps max_questions: each task's are shuffled, then the tasks take turns. */
static void choose_questions(doc_builder *b)
{
    int32_t n = b->n_questions, n_kept = 0, max = b->request->max_questions;
    int32_t *order = calloc((size_t)n + 1, sizeof *order);
    eval_question *kept = calloc((size_t)n + 1, sizeof *kept);
    if (!order || !kept) {
        b->is_failed = true;
        free(order);
        free(kept);
        return;
    }
    for (int32_t i = 0; i < n; i++) order[i] = i;
    eval_rng_shuffle(&b->rng, order, n);
    for (bool is_more = true; is_more && n_kept < max;) {
        is_more = false;
        for (int task = 0; task < EVAL_N_TASKS && n_kept < max; task++) {
            int32_t at = 0;
            while (at < n &&
                   (!b->questions[order[at]].answer || b->questions[order[at]].task != (eval_task)task))
                at++;
            if (at == n) continue;
            kept[n_kept++] = b->questions[order[at]];
            b->questions[order[at]] = (eval_question){0};
            is_more = true;
        }
    }
    for (int32_t i = 0; i < n; i++) free_question(&b->questions[i]);
    free(b->questions);
    free(order);
    b->questions = kept;
    b->n_questions = n_kept;
}

static void builder_free(doc_builder *b)
{
    for (int64_t i = 0; i < b->n_units; i++) free(b->units[i]);
    for (int32_t i = 0; i < b->n_facts; i++) free(b->facts[i].line);
    free(b->units);
    free(b->facts);
    free(b->order);
    eval_buf_free(&b->head);
    eval_buf_free(&b->body);
}

const char *eval_document_make(eval_document *out, const eval_request *request)
{
    static void (*const makers[EVAL_N_HAYSTACKS])(doc_builder *) = {
        doc_make_noise, doc_make_text, doc_make_lines, doc_make_table, doc_make_words, doc_make_story};
    doc_builder b = {.request = request};
    *out = (eval_document){0};
    if (request->n_tokens < EVAL_LEAST_TOKENS) return "a document of fewer than 512 tokens holds no haystack";
    b.rng = eval_rng_of(request->seed, eval_haystack_names[request->haystack], request->index);
    makers[request->haystack](&b);
    if (!b.why && !b.is_failed) choose_questions(&b);
    eval_buf_add(&b.head, b.body.data, b.body.n);
    *out = (eval_document){eval_buf_take(&b.head), b.questions, b.n_questions};
    if (!out->text || b.body.is_failed) b.is_failed = true;
    builder_free(&b);
    if (b.why || b.is_failed) eval_document_free(out);
    return b.why ? b.why : b.is_failed ? "no memory for a document" : NULL;
}

void eval_document_free(eval_document *document)
{
    for (int32_t i = 0; i < document->n_questions; i++) free_question(&document->questions[i]);
    free(document->questions);
    free(document->text);
    *document = (eval_document){0};
}
