/* cost.h - what a decode step costs on this host, as a linear model of what the plan reads.
 *
 *   ms = step + dense * MB read in order + listed * MB read through lists
 *             + summary * MB of summaries + select * million scores that lists are chosen from
 *
 * In the manner of Kinetics (2025), which prices memory traffic beside arithmetic; here every price is measured:
 * `heddle bench calibrate` times probe plans at a few depths and fits the terms by least squares of the relative
 * error, none below zero. `step` is what does not depend on the context: the matrix products of all layers. */
#ifndef CLI_COST_H
#define CLI_COST_H

#include "cli.h"

typedef enum cost_term {
    COST_STEP = 0,
    COST_DENSE,
    COST_LISTED,
    COST_SUMMARY,
    COST_SELECT,
    COST_N_TERMS
} cost_term;

typedef struct cost_model {
    double ms[COST_N_TERMS]; /* per step, MB (10^6 bytes) or million scores */
    char model[128], kv_type[8], isa[16];
    int64_t weight_bytes;
    int32_t n_threads;
    double worst_error; /* largest |fitted - measured| / measured over the points fitted to */
} cost_model;

typedef struct cost_point { /* one probe at one depth */
    const char *plan;
    int64_t depth;
    double terms[COST_N_TERMS]; /* 1, MB, MB, MB, million scores */
    double ms;                  /* measured */
    bool is_check;              /* not fitted to: the model is judged on it */
} cost_point;

/* The terms of a decode step after `depth` tokens. */
heddle_status cost_terms(const heddle_engine *engine, const heddle_plan *plan, const char *kv_type,
                         int64_t depth, double *terms);
double cost_of_terms(const cost_model *model, const double *terms);
/* Bytes of keys, values and summaries in the terms. */
double cost_bytes(const double *terms);
/* Fits ms[] to the points that are no checks; false when they do not determine anything. */
bool cost_fit(cost_model *model, const cost_point *points, int n);
/* Exit codes, after a sentence. */
int cost_save(const cost_model *model, const cost_point *points, int n, const char *path);
/* Refused when it was measured for another model, KV type or number of threads (0 = any). */
int cost_load(cost_model *model, const char *path, const heddle_model_info *info, const char *kv_type,
              int64_t n_threads);

#endif
