/* words.h - the words that generated documents are made of. */
#ifndef EVAL_WORDS_H
#define EVAL_WORDS_H

#include "eval/basics.h"

typedef struct eval_words {
    const char *const *items;
    int32_t n;
} eval_words;
extern const eval_words eval_adjectives, eval_nouns; /* of keys: "amber-anchor" */
extern const eval_words eval_subjects;               /* of single needles: "special magic number" */
extern const eval_words eval_places, eval_names, eval_roles, eval_materials, eval_things, eval_events;

const char *eval_word(eval_rng *rng, const eval_words *words);
void eval_word_key(eval_rng *rng, char *key, int64_t n_bytes);         /* "amber-anchor" */
void eval_word_digits(eval_rng *rng, int n_digits, char *digits);      /* n_digits, then NUL */
void eval_word_letters(eval_rng *rng, int n, bool is_upper, char *to); /* n letters, then NUL */

#endif
