/* fuzz_saved.h - the tiny model that files of sessions and lists belong to, and checksums mended, so that a fuzzer
 * gets past them. */
#ifndef FUZZ_SAVED_H
#define FUZZ_SAVED_H

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fuzz_file.h"
#include "heddle.h"

/* Opened by the first call and kept. */
static inline heddle_engine *fuzz_engine(void)
{
    static heddle_engine *engine;
    heddle_engine_options options;
    heddle_engine_options_default(&options);
    options.n_threads = 1;
    if (!engine && heddle_engine_open(&engine, HDL_TEST_DATA "/golden/tiny/llama", &options)) abort();
    return engine;
}

/* Layer 0 makes a list of 6 tokens and more every 4 tokens, the other layer reads it. */
static inline heddle_session *fuzz_session_new(heddle_engine *engine)
{
    static const char plan_text[] =
        "{\"heddle_plan\": 1, \"name\": \"t\", \"variants\": [{\"decode\": [{\"layers\": [0], \"router\": "
        "{\"top_k\": 6, \"window\": 2, \"refresh\": 4}}, {\"layers\": \"rest\", \"operator\": "
        "\"token_list\", \"share\": \"previous\"}]}]}";
    heddle_plan *plan;
    heddle_session *session;
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 48;
    options.page_shift = 4;
    options.chunk_rows = 16;
    if (heddle_plan_parse(&plan, plan_text, sizeof plan_text - 1, "fuzz") ||
        heddle_session_new(&session, engine, plan, &options))
        abort();
    heddle_plan_free(plan);
    return session;
}

/* A copy of the bytes whose last 8 are the checksum of those before. NULL where there are too few. */
static inline uint8_t *fuzz_mend(const uint8_t *data, size_t size)
{
    uint8_t *copy = size >= 8 ? malloc(size) : NULL;
    if (!copy) return NULL;
    memcpy(copy, data, size);
    uint64_t sum = hdl_hash(copy, (int64_t)size - 8);
    memcpy(copy + size - 8, &sum, sizeof sum);
    return copy;
}

#endif
