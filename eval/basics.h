/* basics.h - a growable text, and numbers drawn from a seed. */
#ifndef EVAL_BASICS_H
#define EVAL_BASICS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct eval_buf {
    char *data; /* NUL-terminated once anything was added */
    int64_t n, capacity;
    bool is_failed; /* memory ran out; everything after is dropped */
} eval_buf;
void eval_buf_add(eval_buf *buf, const void *bytes, int64_t n);
void eval_buf_text(eval_buf *buf, const char *text);
void eval_buf_printf(eval_buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void eval_buf_free(eval_buf *buf);
/* The text as a string of its own, the buffer empty again; NULL when memory ran out. */
char *eval_buf_take(eval_buf *buf);

/* FNV-1a, 64 bits; start with EVAL_HASH_START and go on with what came out. */
#define EVAL_HASH_START 0xcbf29ce484222325u
uint64_t eval_hash(uint64_t hash, const void *bytes, int64_t n);

/* SplitMix64: the same numbers on every machine. */
typedef struct eval_rng {
    uint64_t state;
} eval_rng;
/* From a seed and a name, so that tasks and documents draw independently. */
eval_rng eval_rng_of(uint64_t seed, const char *name, int64_t index);
uint64_t eval_rng_next(eval_rng *rng);
int64_t eval_rng_below(eval_rng *rng, int64_t n); /* 0..n-1, each equally often; n >= 1 */
void eval_rng_shuffle(eval_rng *rng, int32_t *items, int64_t n);

#endif
