/* basics.c - a growable text, and numbers drawn from a seed. */
#include "eval/basics.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(eval_buf *buf, int64_t n)
{
    if (buf->is_failed) return false;
    if (buf->n + n + 1 <= buf->capacity) return true;
    int64_t capacity = buf->capacity ? buf->capacity : 256;
    while (capacity < buf->n + n + 1) capacity *= 2;
    char *data = realloc(buf->data, (size_t)capacity);
    if (!data) {
        buf->is_failed = true;
        return false;
    }
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

void eval_buf_add(eval_buf *buf, const void *bytes, int64_t n)
{
    if (!reserve(buf, n)) return;
    if (n) memcpy(buf->data + buf->n, bytes, (size_t)n);
    buf->n += n;
    buf->data[buf->n] = 0;
}

void eval_buf_text(eval_buf *buf, const char *text)
{
    eval_buf_add(buf, text, (int64_t)strlen(text));
}

void eval_buf_printf(eval_buf *buf, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    if (n >= 0 && reserve(buf, n)) {
        vsnprintf(buf->data + buf->n, (size_t)n + 1, fmt, again);
        buf->n += n;
    }
    va_end(again);
    va_end(args);
}

void eval_buf_free(eval_buf *buf)
{
    free(buf->data);
    *buf = (eval_buf){0};
}

char *eval_buf_take(eval_buf *buf)
{
    eval_buf_add(buf, "", 0); /* an empty text is a string too */
    char *text = buf->is_failed ? NULL : buf->data;
    if (!text) free(buf->data);
    *buf = (eval_buf){0};
    return text;
}

uint64_t eval_hash(uint64_t hash, const void *bytes, int64_t n)
{
    const unsigned char *p = bytes;
    for (int64_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

eval_rng eval_rng_of(uint64_t seed, const char *name, int64_t index)
{
    uint64_t hash = eval_hash(EVAL_HASH_START, &seed, sizeof seed);
    hash = eval_hash(hash, name, (int64_t)strlen(name));
    hash = eval_hash(hash, &index, sizeof index);
    return (eval_rng){hash};
}

uint64_t eval_rng_next(eval_rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int64_t eval_rng_below(eval_rng *rng, int64_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % (uint64_t)n, drawn;
    do drawn = eval_rng_next(rng);
    while (drawn >= limit);
    return (int64_t)(drawn % (uint64_t)n);
}

void eval_rng_shuffle(eval_rng *rng, int32_t *items, int64_t n)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = eval_rng_below(rng, i + 1);
        int32_t kept = items[i];
        items[i] = items[j];
        items[j] = kept;
    }
}
