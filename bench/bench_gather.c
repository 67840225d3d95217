/* bench_gather.c - a decode step that reads listed rows from the cache, and from a gathered page.
 *
 *   bench_gather MODEL TOKENS [STEPS]
 *
 * Two sessions of one engine (one thread) hold the same TOKENS; steps alternate between them, in a new order
 * each pair. Time is the thread's own, so that a shared machine disturbs less; medians of the steps and of
 * the pairs' ratios. The tokens are a byte text repeated with other numbers, so that lists move as in text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine_int.h"

enum { MAX_STEPS = 4096 };

static double thread_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, int64_t n, double q)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return values[(int64_t)((double)(n - 1) * q)];
}

/* Words by a small generator, some of them rare. */
static int32_t *make_tokens(int64_t n, int32_t n_vocab, int32_t doc_token)
{
    int32_t *ids = calloc((size_t)n, sizeof *ids);
    uint64_t state = 1;
    for (int64_t i = 0; ids && i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t range = i % 7 ? 300 : (uint64_t)n_vocab - 300;
        ids[i] = (int32_t)(256 + (state >> 33) % range % (uint64_t)(n_vocab - 256));
        if (ids[i] == doc_token) ids[i]++;
    }
    if (ids && doc_token >= 0) ids[0] = doc_token;
    return ids;
}

static int fail(void)
{
    fprintf(stderr, "bench_gather: %s\n", heddle_last_error());
    return 1;
}

int main(int argc, char **argv)
{
    static double took[2][MAX_STEPS], ratio[MAX_STEPS];
    if (argc < 3) {
        fprintf(stderr, "bench_gather MODEL TOKENS [STEPS]\n");
        return 2;
    }
    int64_t n = atoll(argv[2]), n_steps = argc > 3 ? atoll(argv[3]) : 201;
    heddle_engine *engine;
    heddle_session *sessions[2];
    heddle_engine_options on;
    heddle_engine_options_default(&on);
    on.n_threads = 1;
    if (n < 1 || n_steps < 1 || n_steps > MAX_STEPS) return 2;
    if (heddle_engine_open(&engine, argv[1], &on)) return fail();
    const hdl_model_facts *facts = &engine->model->facts;
    int32_t *ids = make_tokens(n + n_steps, facts->n_vocab, facts->doc_token);
    for (int s = 0; s < 2; s++) {
        heddle_session_options options;
        heddle_session_options_default(&options);
        options.context_tokens = n + n_steps;
        options.gathering = s ? HEDDLE_GATHERING_ALWAYS : HEDDLE_GATHERING_NEVER;
        if (heddle_session_new(&sessions[s], engine, NULL, &options) ||
            heddle_session_extend(sessions[s], ids, n, NULL, NULL))
            return fail();
    }
    for (int64_t i = 0; i < n_steps; i++) {
        for (int k = 0; k < 2; k++) {
            int s = (int)((i + k) & 1);
            double start = thread_s();
            if (heddle_session_decode(sessions[s], ids + n + i, 1)) return fail();
            took[s][i] = thread_s() - start;
        }
        ratio[i] = took[1][i] / took[0][i];
        if (memcmp(heddle_session_logits(sessions[0]), heddle_session_logits(sessions[1]),
                   (size_t)facts->n_vocab * sizeof(float)) != 0) {
            fprintf(stderr, "bench_gather: step %lld: other logits\n", (long long)i);
            return 1;
        }
    }
    const hdl_gather *gather = sessions[1]->gathers[0];
    printf(
        "%lld tokens, %lld steps, one thread, KV f16: through the list %.3f ms, gathered %.3f ms, ratio of pairs %.3f "
        "(quarters %.3f, %.3f); copied %.1f %% of the listed rows\n",
        (long long)n, (long long)n_steps, 1e3 * quantile(took[0], n_steps, 0.5),
        1e3 * quantile(took[1], n_steps, 0.5), quantile(ratio, n_steps, 0.5), quantile(ratio, n_steps, 0.25),
        quantile(ratio, n_steps, 0.75),
        gather ? 100.0 * (double)gather->n_copied / (double)gather->n_listed : 0);
    free(ids);
    for (int s = 0; s < 2; s++) heddle_session_free(sessions[s]);
    return heddle_engine_close(engine) ? fail() : 0;
}
