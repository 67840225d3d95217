/* index_int.h - how SCORE by index keys is cut into tasks: plain C, shared by its files.
 *
 * A task is a run of entries for a few rows, so that rows of a chunk find its keys in the cache. Rows of
 * one sequence come together. */
#ifndef HDL_INDEX_INT_H
#define HDL_INDEX_INT_H

#include "backend/cpu/route_int.h"
#include "base/pool.h"

enum { INDEX_MAX_DIM = 1024, INDEX_RUN = 1024, INDEX_ROWS = 16 };

/* Entries [begin, begin + INDEX_RUN), as far as they are seen, for rows row .. row + n - 1 of seq. */
typedef void (*index_rows_fn)(const hdl_score_args *args, const hdl_attend_seq *seq, int64_t row, int32_t n,
                              int64_t begin);

typedef struct index_call {
    const hdl_score_args *args;
    index_rows_fn score;
    int64_t n_runs; /* of the longest row */
} index_call;

/* Tokens that a row of the call sees. */
static inline int64_t index_visible(const hdl_attend_seq *seq, int64_t row)
{
    return seq->kv_len - seq->q_len + row - seq->first_row + 1;
}

static inline void index_task(void *arg, int64_t task, int thread)
{
    (void)thread;
    const index_call *call = arg;
    const hdl_score_args *args = call->args;
    int64_t row = task / call->n_runs * INDEX_ROWS, last = HDL_MIN(row + INDEX_ROWS, args->n_rows);
    while (row < last) {
        const hdl_attend_seq *seq = seq_of_row(args->seqs, row);
        int64_t n = HDL_MIN(last, seq->first_row + seq->q_len) - row;
        call->score(args, seq, row, (int32_t)n, task % call->n_runs * INDEX_RUN);
        row += n;
    }
}

/* What no kernel of these files scores. */
static inline const char *index_refusal(const hdl_score_args *args)
{
    if (args->rule != HDL_RULE_INDEX) return "not a score by index keys";
    if (args->head_dim > INDEX_MAX_DIM) return "index keys wider than 1024";
    if (args->n_lists != 1 || args->n_heads != 1) return "more than one index head";
    if (args->is_shared) return "rows share a score";
    return args->measure == HDL_MEASURE_LOGIT ? NULL : "masses by index keys";
}

static inline void index_score(const hdl_launch *launch, const hdl_score_args *args, index_rows_fn score)
{
    int64_t most = args->max_kv_len / HDL_MAX(args->block_size, 1);
    index_call call = {args, score, HDL_MAX((most + INDEX_RUN - 1) / INDEX_RUN, 1)};
    hdl_parallel_for(launch->n_threads, (args->n_rows + INDEX_ROWS - 1) / INDEX_ROWS * call.n_runs,
                     index_task, &call);
}

#endif
