/* bench_recall.c - what an approximate plan's lists hold of the exact plan's.
 *
 *   bench_recall MODEL TEXT TOKENS EXACT PLAN...
 *
 * The text's first TOKENS tokens are read once by the exact plan; the last ROWS of them go on from a fork
 * under each plan, one by one, so that all lists come from the same rows below them (of a model with a shared
 * state: the very same). Printed for each plan: the share of the exact list's tokens, mean and least row. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "heddle.h"

enum { ROWS = 64, MAX_IDS = 1 << 16 };

typedef struct lists {
    int32_t *ids[ROWS];
    int64_t n[ROWS], first;
    int32_t layer; /* the first that makes a list */
} lists;

static void keep(const heddle_tap_row *row, void *user)
{
    lists *to = user;
    int64_t at = row->position - to->first;
    if (to->layer < 0) to->layer = row->layer;
    if (at < 0 || at >= ROWS || row->layer != to->layer || row->block_size != 1) return;
    to->n[at] = row->n_ids;
    memcpy(to->ids[at], row->ids, (size_t)row->n_ids * sizeof *row->ids);
}

static int fail(void)
{
    fprintf(stderr, "bench_recall: %s\n", heddle_last_error());
    return 1;
}

static int run(heddle_session *base, const heddle_plan *plan, const int32_t *ids, lists *to)
{
    heddle_session *session;
    if (heddle_session_fork_as(&session, base, plan, 0)) return fail();
    to->layer = -1;
    heddle_session_set_tap(session, keep, to);
    for (int64_t i = 0; i < ROWS; i++)
        if (heddle_session_decode(session, ids + i, 1)) return fail();
    heddle_session_free(session);
    return 0;
}

static void print_recall(const char *plan, const lists *exact, const lists *got)
{
    double mean = 0, least = 1;
    for (int64_t r = 0; r < ROWS; r++) {
        int64_t n = 0, at = 0;
        for (int64_t i = 0; i < exact->n[r]; i++) {
            while (at < got->n[r] && got->ids[r][at] < exact->ids[r][i]) at++;
            n += at < got->n[r] && got->ids[r][at] == exact->ids[r][i];
        }
        double share = exact->n[r] ? (double)n / (double)exact->n[r] : 1;
        mean += share / ROWS;
        least = share < least ? share : least;
    }
    printf("%-40s %6.1f %% of the exact list's tokens, least row %.1f %%\n", plan, 100 * mean, 100 * least);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "bench_recall MODEL TEXT TOKENS EXACT PLAN...\n");
        return 2;
    }
    heddle_engine *engine;
    heddle_session *base;
    heddle_session_options options;
    hdl_buf text = {0};
    int32_t *ids;
    int64_t n = atoll(argv[3]), n_ids;
    static lists of[2];
    heddle_plan *plans[32];
    heddle_session_options_default(&options);
    options.context_tokens = n;
    int n_plans = argc - 4 < 32 ? argc - 4 : 32;
    for (int i = 0; i < n_plans; i++)
        if (heddle_plan_named(&plans[i], argv[4 + i])) return fail();
    options.kept_plans = (const heddle_plan *const *)plans;
    options.n_kept_plans = n_plans;
    if (heddle_engine_open(&engine, argv[1], NULL) || hdl_buf_read_file(&text, argv[2], 1 << 28) ||
        heddle_tokenize(engine, text.data, text.n, HEDDLE_TOKENIZE_BOS, &ids, &n_ids))
        return fail();
    if (n <= ROWS || n_ids < n) {
        fprintf(stderr, "bench_recall: %s: %lld tokens, %lld are asked\n", argv[2], (long long)n_ids,
                (long long)n);
        return 1;
    }
    for (int i = 0; i < 2; i++)
        for (int64_t r = 0; r < ROWS; r++) of[i].ids[r] = calloc(MAX_IDS, sizeof(int32_t));
    of[0].first = of[1].first = n - ROWS;
    if (heddle_session_new(&base, engine, plans[0], &options) ||
        heddle_session_extend(base, ids, n - ROWS, NULL, NULL) || run(base, plans[0], ids + n - ROWS, &of[0]))
        return fail();
    for (int i = 1; i < n_plans; i++) {
        if (run(base, plans[i], ids + n - ROWS, &of[1])) return 1;
        print_recall(argv[4 + i], &of[0], &of[1]);
    }
    heddle_session_free(base);
    heddle_ids_free(ids);
    return heddle_engine_close(engine) ? fail() : 0;
}
