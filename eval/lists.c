/* lists.c - documents that are one table of keys and values, or lists of words to be counted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/document_int.h"
#include "eval/words.h"

enum { LIST_TOKENS = 1024, N_COMMON = 10, N_ASKED = 3, WORD_BYTES = 16, SAMPLE = 64 };

/* ---- the table ---- */

void doc_make_table(doc_builder *b)
{
    char line[96];
    eval_buf_text(&b->head, "Below is a table of keys and values.\n");
    int64_t budget = b->request->n_tokens - doc_count(b, b->head.data, b->head.n);
    for (int64_t row = 0; b->units_tokens < budget && !b->is_failed; row++) {
        char key[64], value[8];
        eval_word_key(&b->rng, key, sizeof key);
        size_t used = strlen(key); /* the row's number in it makes the key unique */
        snprintf(key + used, sizeof key - used, "-%d%d", (int)(row % 1000), (int)eval_rng_below(&b->rng, 10));
        eval_word_digits(&b->rng, 7, value);
        snprintf(line, sizeof line, "%s: %s", key, value);
        doc_fact *fact = doc_fact_add(b, EVAL_TABLE_ROW, line);
        if (!fact) return;
        snprintf(fact->key, sizeof fact->key, "%s", key);
        snprintf(fact->value, sizeof fact->value, "%s", value);
        fact->at = b->body.n;
        eval_buf_printf(&b->body, "%s\n", line);
        b->units_tokens += doc_count(b, line, (int64_t)strlen(line)) + 1;
    }
    for (int32_t i = 0; i < b->n_facts && doc_wants(b, EVAL_TABLE_ROW); i++) {
        eval_buf question = {0}, prefix = {0}, answer = {0};
        const doc_fact *fact = &b->facts[i];
        eval_buf_printf(&question, "\nWhat is the value of the key %s?", fact->key);
        eval_buf_printf(&prefix, "The value of the key %s is:", fact->key);
        eval_buf_printf(&answer, " %s", fact->value);
        doc_ask(b, EVAL_TABLE_ROW, &question, &prefix, &answer, doc_depth(b, fact->at));
    }
}

/* ---- lists of words ---- */

/* The words of one list: word[i] stands counts[i] times; entries in a drawn order. */
typedef struct word_list {
    char (*words)[WORD_BYTES];
    int32_t *counts, *entries;
    int32_t n_words, n_entries;
} word_list;

static void list_free(word_list *list)
{
    free(list->words);
    free(list->counts);
    free(list->entries);
    *list = (word_list){0};
}

static bool list_new(doc_builder *b, word_list *list, int32_t n_words)
{
    *list = (word_list){.n_words = n_words};
    list->words = calloc((size_t)n_words, sizeof *list->words);
    list->counts = calloc((size_t)n_words, sizeof *list->counts);
    if (!list->words || !list->counts) b->is_failed = true;
    return !b->is_failed;
}

static bool list_shuffle(doc_builder *b, word_list *list)
{
    for (int32_t w = 0; w < list->n_words; w++) list->n_entries += list->counts[w];
    list->entries = calloc((size_t)list->n_entries + 1, sizeof *list->entries);
    if (!list->entries) {
        b->is_failed = true;
        return false;
    }
    for (int32_t w = 0, n = 0; w < list->n_words; w++)
        for (int32_t i = 0; i < list->counts[w]; i++) list->entries[n++] = w;
    eval_rng_shuffle(&b->rng, list->entries, list->n_entries);
    return true;
}

static bool is_word_new(const word_list *list, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (!strcmp(list->words[i], list->words[n])) return false;
    return true;
}

/* How many entries make n_tokens, by a sample of such entries that draws nothing from the document. */
static int32_t entries_of(doc_builder *b, bool is_coded, int64_t n_tokens)
{
    eval_buf sample = {0};
    eval_rng rng = eval_rng_of(b->request->seed, "sample", 0);
    for (int i = 0; i < SAMPLE; i++) {
        char word[WORD_BYTES];
        eval_word_letters(&rng, 6, false, word);
        if (is_coded)
            eval_buf_printf(&sample, " %s", word);
        else
            eval_buf_printf(&sample, " %d. %s", i + 100, eval_word(&rng, &eval_nouns));
    }
    int64_t n = sample.is_failed ? SAMPLE : doc_count(b, sample.data, sample.n);
    eval_buf_free(&sample);
    return (int32_t)(n_tokens * SAMPLE / (n > 0 ? n : 1));
}

/* Ten words that stand often, the others seldom; the answer names them as they first appear. */
static void common_words(doc_builder *b, int32_t number, int64_t n_tokens)
{
    word_list list;
    int32_t n_entries = entries_of(b, false, n_tokens), often = n_entries * 3 / 8 / N_COMMON;
    if (often > 30) often = 30;
    int32_t seldom = often / 10 < 1 ? 1 : often / 10, n_rare = (n_entries - often * N_COMMON) / seldom;
    int32_t most = eval_nouns.n + eval_adjectives.n - N_COMMON;
    if (n_rare > most) { /* there are only so many words: each a few times more */
        n_rare = most;
        seldom = (n_entries - often * N_COMMON) / n_rare;
    }
    if (list_new(b, &list, N_COMMON + n_rare)) {
        for (int32_t w = 0; w < list.n_words; w++) {
            do {
                bool is_noun = eval_rng_below(&b->rng, 2);
                snprintf(list.words[w], WORD_BYTES, "%s",
                         eval_word(&b->rng, is_noun ? &eval_nouns : &eval_adjectives));
            } while (!is_word_new(&list, w));
            list.counts[w] = w < N_COMMON ? often : seldom;
        }
    }
    if (!b->is_failed && list_shuffle(b, &list)) {
        eval_buf question = {0}, prefix = {0}, answer = {0};
        bool is_seen[N_COMMON] = {false};
        eval_buf_printf(&b->body,
                        "\nList %d: a numbered list of words. Memorize the ones that appear most often.\n",
                        number);
        for (int32_t i = 0, n = 0; i < list.n_entries; i++) {
            int32_t w = list.entries[i];
            eval_buf_printf(&b->body, "%s%d. %s", i ? " " : "", i + 1, list.words[w]);
            if (w >= N_COMMON || is_seen[w]) continue;
            is_seen[w] = true;
            eval_buf_printf(&answer, "%s %s", n++ ? "," : "", list.words[w]);
        }
        eval_buf_text(&b->body, "\n");
        eval_buf_printf(&question, "\nQuestion: What are the %d most common words in list %d?", N_COMMON,
                        number);
        eval_buf_printf(&prefix, "Answer: The %d words that appear most often in list %d are:", N_COMMON,
                        number);
        doc_ask(b, EVAL_COMMON_WORDS, &question, &prefix, &answer, -1);
    }
    list_free(&list);
}

/* Coded words whose counts fall with the square of the rank; the first rank is dots, to be ignored. */
static void frequent_words(doc_builder *b, int32_t number, int64_t n_tokens)
{
    word_list list;
    int32_t n_entries = entries_of(b, true, n_tokens), n_words = n_entries / 12 + N_ASKED + 1;
    if (list_new(b, &list, n_words)) {
        for (int32_t w = 0; w < n_words; w++) {
            do eval_word_letters(&b->rng, 6, false, list.words[w]);
            while (!is_word_new(&list, w));
            double share = 1 / (1.6449340668482264 * (w + 1.0) * (w + 1.0)); /* 1 / zeta(2) */
            int32_t count = (int32_t)(share * n_entries + 0.5);
            list.counts[w] = count < 1 ? 1 : count;
        }
        snprintf(list.words[0], WORD_BYTES, "...");
    }
    if (!b->is_failed && list_shuffle(b, &list)) {
        eval_buf question = {0}, prefix = {0}, answer = {0};
        eval_buf_printf(&b->body,
                        "\nList %d: a coded text. Track the frequency of each coded word, ignoring the dots "
                        "'....'.\n",
                        number);
        for (int32_t i = 0; i < list.n_entries; i++)
            eval_buf_printf(&b->body, "%s%s", i ? " " : "", list.words[list.entries[i]]);
        eval_buf_text(&b->body, "\n");
        eval_buf_printf(&question,
                        "\nQuestion: Do not provide any explanation. What are the three most frequently "
                        "appearing words in the coded text of list %d?",
                        number);
        eval_buf_printf(
            &prefix, "Answer: According to list %d, the three most frequently appearing words are:", number);
        for (int i = 1; i <= N_ASKED; i++) eval_buf_printf(&answer, " %s", list.words[i]);
        doc_ask(b, EVAL_FREQUENT_WORDS, &question, &prefix, &answer, -1);
    }
    list_free(&list);
}

void doc_make_words(doc_builder *b)
{
    bool has_common = doc_wants(b, EVAL_COMMON_WORDS), has_frequent = doc_wants(b, EVAL_FREQUENT_WORDS);
    int32_t n_lists = (int32_t)(b->request->n_tokens / LIST_TOKENS),
            least = has_common && has_frequent ? 2 : 1;
    if (n_lists < least) n_lists = least;
    eval_buf_printf(&b->head, "Below are %d lists of words.\n", n_lists);
    int64_t n_tokens = (b->request->n_tokens - doc_count(b, b->head.data, b->head.n)) / n_lists - 24;
    for (int32_t i = 0; i < n_lists && !b->is_failed; i++) {
        bool is_common = has_common && (!has_frequent || i % 2 == 0);
        if (is_common)
            common_words(b, i + 1, n_tokens);
        else
            frequent_words(b, i + 1, n_tokens);
    }
}
