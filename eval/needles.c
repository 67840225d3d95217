/* needles.c - facts hidden in noise, in a real text and among lines of their own kind.
 *
 * A needle is "One of the {subject}s for {key} is: {value}." The answer's given beginning repeats its
 * wording up to the colon, without which a base model misses the first token whatever it has read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/document_int.h"
#include "eval/words.h"

enum {
    FACT_TOKENS = 24,   /* about, for the shares below */
    FACTS_SHARE = 6,    /* at most a sixth of a document is facts */
    VALUE_DIGITS = 7,   /* of a needle */
    VALUES = 4,         /* of one key, and keys of one question */
    HOPS = 4,           /* of a chain of variables */
    MAX_SINGLES = 16,   /* as there are subjects */
    PASSAGE_GIVEN = 19, /* words */
    PASSAGE_ASKED = 12,
    PASSAGES = 16
};

static const char noise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
static const char usual[] = "special magic number";

/* Facts of one document, in eighths of what may be facts. */
static int32_t facts_unit(const doc_builder *b)
{
    int64_t n = b->request->n_tokens / FACTS_SHARE / FACT_TOKENS / 8;
    return (int32_t)(n < 1 ? 1 : n > 8 ? 8 : n);
}

static bool is_key_taken(const doc_builder *b, const char *key)
{
    for (int32_t i = 0; i < b->n_facts; i++)
        if (!strcmp(b->facts[i].key, key)) return true;
    return false;
}

static void needle_line(char *line, size_t n, const char *what, const char *key, const char *value)
{
    snprintf(line, n, "One of the %ss for %s is: %s.", what, key, value);
}

/* n_values needles with one new key; they form one group. */
static void add_needles(doc_builder *b, eval_task task, const char *what, int n_values)
{
    char key[64], value[32], line[256];
    int32_t group = b->n_facts;
    do eval_word_key(&b->rng, key, sizeof key);
    while (is_key_taken(b, key));
    for (int i = 0; i < n_values; i++) {
        eval_word_digits(&b->rng, VALUE_DIGITS, value);
        needle_line(line, sizeof line, what, key, value);
        doc_fact *fact = doc_fact_add(b, task, line);
        if (!fact) return;
        snprintf(fact->key, sizeof fact->key, "%s", key);
        snprintf(fact->value, sizeof fact->value, "%s", value);
        fact->what = what;
        fact->group = group;
    }
}

static void add_singles(doc_builder *b, eval_task task, int32_t n)
{
    int32_t subjects[MAX_SINGLES];
    for (int32_t i = 0; i < MAX_SINGLES; i++) subjects[i] = i;
    eval_rng_shuffle(&b->rng, subjects, MAX_SINGLES);
    for (int32_t i = 0, n_added = 0; i < MAX_SINGLES && n_added < n; i++) {
        const char *what = eval_subjects.items[subjects[i]];
        if (!strcmp(what, usual)) continue; /* the needles with several keys have that one */
        add_needles(b, task, what, 1);
        n_added++;
    }
}

static int64_t facts_tokens(doc_builder *b)
{
    int64_t n = 0;
    for (int32_t i = 0; i < b->n_facts; i++)
        n += doc_count(b, b->facts[i].line, (int64_t)strlen(b->facts[i].line)) + 1;
    return n;
}

static void write_head(doc_builder *b, const char *singular)
{
    eval_buf_printf(&b->head,
                    "Some %ss are hidden within the following text. Make sure to memorize them. I will quiz "
                    "you about them afterwards.\n",
                    singular);
}

/* A question about facts [n], which may be values of one key or of several. */
static void ask_needles(doc_builder *b, eval_task task, const doc_fact *const *facts, int n)
{
    eval_buf keys = {0}, question = {0}, prefix = {0}, answer = {0};
    const char *what = facts[0]->what;
    bool is_one_key = !strcmp(facts[0]->key, facts[n - 1]->key), is_many = n > 1;
    for (int i = 0; i < (is_one_key ? 1 : n); i++)
        eval_buf_printf(&keys, "%s%s", !i ? "" : i == n - 1 ? ", and " : ", ", facts[i]->key);
    eval_buf_add(&keys, "", 0);
    if (keys.is_failed) {
        b->is_failed = true;
        return;
    }
    eval_buf_printf(&question, "\nWhat %s the %s%s for %s mentioned in the provided text?",
                    is_many ? "are all" : "is", what, is_many ? "s" : "", keys.data);
    eval_buf_printf(&prefix, "The %s%s for %s mentioned in the provided text %s:", what, is_many ? "s" : "",
                    keys.data, is_many ? "are" : "is");
    for (int i = 0; i < n; i++) eval_buf_printf(&answer, "%s %s", i ? "," : "", facts[i]->value);
    doc_ask(b, task, &question, &prefix, &answer, n == 1 ? doc_depth(b, facts[0]->at) : -1);
    eval_buf_free(&keys);
}

/* Every group of a task, its facts in the order in which they stand. */
static void ask_groups(doc_builder *b, eval_task task)
{
    for (int32_t g = 0; g < b->n_facts; g++) {
        const doc_fact *facts[VALUES];
        int n = 0;
        if (b->facts[g].task != task || b->facts[g].group != g || !b->facts[g].what) continue;
        for (int32_t i = 0; i < b->n_facts; i++) {
            const doc_fact *fact = &b->facts[b->order[i]];
            if (fact->group == g && fact->what && n < VALUES) facts[n++] = fact;
        }
        ask_needles(b, task, facts, n);
    }
}

/* ---- noise ---- */

/* "VAR ABCDE = 12345", "VAR FGHIJ = VAR ABCDE", ...: one chain. */
static void add_chain(doc_builder *b)
{
    char names[HOPS + 1][8], value[8], line[64];
    int32_t group = b->n_facts;
    eval_word_digits(&b->rng, 5, value);
    for (int i = 0; i <= HOPS; i++) {
        eval_word_letters(&b->rng, 5, true, names[i]);
        if (i)
            snprintf(line, sizeof line, "VAR %s = VAR %s", names[i], names[i - 1]);
        else
            snprintf(line, sizeof line, "VAR %s = %s", names[i], value);
        doc_fact *fact = doc_fact_add(b, EVAL_VARIABLES, line);
        if (!fact) return;
        snprintf(fact->key, sizeof fact->key, "%s", names[i]);
        snprintf(fact->value, sizeof fact->value, "%s", value);
        fact->group = group;
    }
}

static void ask_chain(doc_builder *b, int32_t group)
{
    eval_buf question = {0}, prefix = {0}, answer = {0};
    const char *value = b->facts[group].value;
    eval_buf_printf(
        &question, "\nQuestion: Find all variables that are assigned the value %s in the text above.", value);
    eval_buf_printf(
        &prefix,
        "Answer: According to the chain(s) of variable assignment in the text above, %d variables "
        "are assigned the value %s, they are:",
        HOPS + 1, value);
    for (int i = 0; i <= HOPS; i++) eval_buf_printf(&answer, " %s", b->facts[group + i].key);
    doc_ask(b, EVAL_VARIABLES, &question, &prefix, &answer, -1);
}

void doc_make_noise(doc_builder *b)
{
    int32_t u = facts_unit(b);
    eval_buf_text(&b->head,
                  "Memorize the numbers and track the chain(s) of variable assignment hidden in the "
                  "following text. I will quiz you about them afterwards.\n");
    if (doc_wants(b, EVAL_NEEDLE_NOISE)) add_singles(b, EVAL_NEEDLE_NOISE, 2 * u < 15 ? 2 * u : 15);
    for (int32_t i = 0; i < (u + 1) / 2 && doc_wants(b, EVAL_VARIABLES); i++) add_chain(b);
    int64_t budget = b->request->n_tokens - doc_count(b, b->head.data, b->head.n) - facts_tokens(b);
    while (b->units_tokens < budget && !b->is_failed) doc_unit(b, noise, (int64_t)sizeof noise - 1);
    doc_place(b);
    if (b->is_failed) return;
    ask_groups(b, EVAL_NEEDLE_NOISE);
    for (int32_t i = 0; i < b->n_facts; i++)
        if (b->facts[i].task == EVAL_VARIABLES && b->facts[i].group == i) ask_chain(b, i);
}

/* ---- a real text ---- */

/* The end of the unit at `from`: a line, or in a long line a sentence. */
static int64_t unit_end(const char *text, int64_t n, int64_t from)
{
    for (int64_t i = from; i < n; i++) {
        if (text[i] == '\n') return i + 1;
        if (i - from > 120 && text[i] == ' ' && strchr(".!?", text[i - 1])) return i + 1;
    }
    return n;
}

/* Units of the source from a drawn line on, until they fill the budget. */
static void take_text(doc_builder *b, int64_t budget)
{
    const char *text = b->request->source;
    int64_t n = b->request->source_bytes, at = 0;
    int64_t room = n - 8 * budget; /* more bytes than that many tokens have in most texts */
    if (room > 0) at = eval_rng_below(&b->rng, room);
    while (at > 0 && at < n && text[at - 1] != '\n') at++;
    while (b->units_tokens < budget && !b->is_failed) {
        if (at >= n) {
            b->why = "the text is shorter than the document that is to be made of it";
            return;
        }
        int64_t end = unit_end(text, n, at);
        doc_unit(b, text + at, end - at);
        at = end;
    }
}

/* Whether a fact stands in [from, to) of the body. */
static bool has_fact(const doc_builder *b, int64_t from, int64_t to)
{
    for (int32_t i = 0; i < b->n_facts; i++) {
        int64_t at = b->facts[i].at, end = at + (int64_t)strlen(b->facts[i].line);
        if (at < to && end > from) return true;
    }
    return false;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The offset after n_words words from `at` (which begins one), without the space behind; -1 = ends. */
static int64_t after_words(const eval_buf *body, int64_t at, int n_words)
{
    for (int i = 0; i < n_words; i++) {
        while (at < body->n && is_space(body->data[at])) at++;
        while (at < body->n && !is_space(body->data[at])) at++;
    }
    return at < body->n ? at : -1;
}

static void ask_passage(doc_builder *b)
{
    for (int attempt = 0; attempt < 64; attempt++) {
        int64_t at = eval_rng_below(&b->rng, b->body.n);
        while (at < b->body.n && !is_space(b->body.data[at])) at++;
        while (at < b->body.n && is_space(b->body.data[at])) at++;
        int64_t given = after_words(&b->body, at, PASSAGE_GIVEN);
        int64_t end = given < 0 ? -1 : after_words(&b->body, given, PASSAGE_ASKED);
        if (end < 0 || end - at > 400 || has_fact(b, at, end)) continue;
        eval_buf question = {0}, prefix = {0}, answer = {0};
        eval_buf_text(&question, "\nThe passage that begins with the words below goes on as follows.");
        eval_buf_add(&prefix, b->body.data + at, given - at);
        eval_buf_add(&answer, b->body.data + given, end - given);
        doc_ask(b, EVAL_PASSAGE, &question, &prefix, &answer, doc_depth(b, at));
        return;
    }
}

/* Four of the keys that have one value each, in a drawn order. */
static void ask_four(doc_builder *b)
{
    const doc_fact *facts[VALUES];
    int32_t candidates[64], n = 0;
    for (int32_t i = 0; i < b->n_facts && n < 64; i++)
        if (b->facts[i].task == EVAL_MULTI_KEY) candidates[n++] = i;
    if (n < VALUES) return;
    eval_rng_shuffle(&b->rng, candidates, n);
    for (int i = 0; i < VALUES; i++) facts[i] = &b->facts[candidates[i]];
    ask_needles(b, EVAL_MULTI_QUERY, facts, VALUES);
}

void doc_make_text(doc_builder *b)
{
    int32_t u = facts_unit(b), n_keys = 3 * u < VALUES ? VALUES : 3 * u;
    int32_t n_lists = u * 3 / 4 < 1 ? 1 : u * 3 / 4;
    bool wants_keys = doc_wants(b, EVAL_MULTI_KEY) || doc_wants(b, EVAL_MULTI_QUERY);
    if (!b->request->source) {
        b->why = "no real text is given: --text FILE";
        return;
    }
    write_head(b, "number");
    if (doc_wants(b, EVAL_NEEDLE_TEXT)) add_singles(b, EVAL_NEEDLE_TEXT, 2 * u < 15 ? 2 * u : 15);
    for (int32_t i = 0; i < n_keys && wants_keys; i++) add_needles(b, EVAL_MULTI_KEY, usual, 1);
    for (int32_t i = 0; i < n_lists && doc_wants(b, EVAL_MULTI_VALUE); i++)
        add_needles(b, EVAL_MULTI_VALUE, usual, VALUES);
    take_text(b, b->request->n_tokens - doc_count(b, b->head.data, b->head.n) - facts_tokens(b));
    if (b->why || b->is_failed) return;
    doc_place(b);
    if (b->is_failed) return;
    ask_groups(b, EVAL_NEEDLE_TEXT);
    if (doc_wants(b, EVAL_MULTI_KEY)) ask_groups(b, EVAL_MULTI_KEY);
    ask_groups(b, EVAL_MULTI_VALUE);
    for (int32_t i = 0; i < n_keys / 2 && doc_wants(b, EVAL_MULTI_QUERY); i++) ask_four(b);
    for (int32_t i = 0; i < PASSAGES && doc_wants(b, EVAL_PASSAGE); i++) ask_passage(b);
}

/* ---- nothing but needles ---- */

void doc_make_lines(doc_builder *b)
{
    char line[256];
    write_head(b, usual);
    int64_t budget = b->request->n_tokens - doc_count(b, b->head.data, b->head.n);
    /* keys repeat once all are taken; then a key has a number too, so that each stays unique */
    for (int64_t i = 0; b->units_tokens < budget && !b->is_failed; i++) {
        char key[64], value[32];
        do {
            eval_word_key(&b->rng, key, sizeof key);
            size_t used = strlen(key);
            if (i >= eval_adjectives.n * eval_nouns.n / 2)
                snprintf(key + used, sizeof key - used, "-%d", (int)eval_rng_below(&b->rng, 1000000));
        } while (is_key_taken(b, key));
        eval_word_digits(&b->rng, VALUE_DIGITS, value);
        needle_line(line, sizeof line, usual, key, value);
        doc_fact *fact = doc_fact_add(b, EVAL_NEEDLE_LINES, line);
        if (!fact) return;
        snprintf(fact->key, sizeof fact->key, "%s", key);
        snprintf(fact->value, sizeof fact->value, "%s", value);
        fact->what = usual;
        fact->at = b->body.n;
        eval_buf_printf(&b->body, "%s\n", line);
        b->units_tokens += doc_count(b, line, (int64_t)strlen(line)) + 1;
    }
    for (int32_t i = 0; i < b->n_facts && doc_wants(b, EVAL_NEEDLE_LINES); i++) {
        const doc_fact *fact = &b->facts[i];
        ask_needles(b, EVAL_NEEDLE_LINES, &fact, 1);
    }
}
