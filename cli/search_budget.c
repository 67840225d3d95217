/* search_budget.c - plan search under a cost model: what fits a budget, and what it then costs indeed. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "search.h"
#include "eval/stats.h"
#include "term.h"

static int terms_of(const search *at, const search_set *set, const search_router *router,
                    const search_budget *budget, int64_t depth, double *terms)
{
    heddle_plan *plan = NULL;
    int code = search_plan(at, set, router, &plan);
    if (code) return code;
    heddle_status status = cost_terms(at->engine, plan, budget->kv_type, depth, terms);
    heddle_plan_free(plan);
    return status ? cli_fail(status) : 0;
}

int search_is_within(const search *at, const search_set *set, const search_router *router,
                     const search_budget *budget, bool *is_within, char *cost, size_t size)
{
    double terms[COST_N_TERMS];
    int code = terms_of(at, set, router, budget, budget->depth, terms);
    if (code) return code;
    *is_within = (!budget->ms || cost_of_terms(&budget->model, terms) <= budget->ms) &&
                 (!budget->bytes || cost_bytes(terms) <= (double)budget->bytes);
    char ms[64] = "";
    if (budget->model.weight_bytes)
        snprintf(ms, sizeof ms, "%.2f ms and ", cost_of_terms(&budget->model, terms));
    if (cost)
        snprintf(cost, size, "take %s%.2f MB after %" PRId64 " tokens", ms, cost_bytes(terms) / 1e6,
                 budget->depth);
    return 0;
}

/* The largest top_k (a multiple of 32, at most `depth`) with which the set is within the budget; 0 = none is. */
static int largest_top_k(const search *at, const search_set *set, const search_budget *budget, int64_t *top_k)
{
    enum { STEP = 32 };
    search_router router = at->router;
    int64_t fits = 0, too_many = budget->depth / STEP + 1; /* in steps */
    while (too_many - fits > 1) {
        int64_t middle = (fits + too_many) / 2;
        bool is_within;
        router.top_k = middle * STEP;
        int code = search_is_within(at, set, &router, budget, &is_within, NULL, 0);
        if (code) return code;
        if (is_within)
            fits = middle;
        else
            too_many = middle;
    }
    *top_k = fits * STEP;
    return 0;
}

int search_find_crossover(const search *at, const search_set *set, const search_budget *budget,
                          search_router *router)
{
    int64_t dense_to = 0, plan_from = budget->depth;
    heddle_plan *dense = NULL;
    router->dense_below = 0;
    heddle_status status = heddle_plan_named(&dense, "dense");
    if (status) return cli_fail(status);
    int code = 0;
    while (plan_from - dense_to > 16 && !code) {
        int64_t depth = (dense_to + plan_from) / 2;
        double own[COST_N_TERMS], all[COST_N_TERMS];
        code = terms_of(at, set, router, budget, depth, own);
        status = cost_terms(at->engine, dense, budget->kv_type, depth, all);
        if (status && !code) code = cli_fail(status);
        if (cost_of_terms(&budget->model, all) <= cost_of_terms(&budget->model, own))
            dense_to = depth;
        else
            plan_from = depth;
    }
    heddle_plan_free(dense);
    router->dense_below = dense_to;
    return code;
}

int search_within_budget(search *at, int n_fit, const search_set *smallest, const int32_t *dropped,
                         const search_budget *budget, search_set *set, search_router *router)
{
    search_set *now = malloc(sizeof *now);
    double least = INFINITY;
    int code = 0;
    if (!now) return cli_refuse("plan search: no memory for a set of layers");
    *now = *smallest;
    for (;;) {
        search_router tried = at->router;
        double loss;
        code = largest_top_k(at, now, budget, &tried.top_k);
        if (!code && tried.top_k) {
            code = search_loss(at, now, &tried, 0, n_fit, &loss);
            if (!code)
                cli_note("%2d lists within the budget: top_k %" PRId64 ", loss %.4f", now->n, tried.top_k,
                         loss);
            if (!code && loss < least) {
                least = loss;
                *set = *now;
                *router = tried;
            }
        }
        if (code || !dropped || now->n == at->n_open) break;
        now->has[dropped[now->n]] = true;
        now->n++;
    }
    free(now);
    if (!code && least == INFINITY) {
        search_router tried = at->router;
        bool is_within;
        char cost[160];
        tried.top_k = 32;
        code = search_is_within(at, smallest, &tried, budget, &is_within, cost, sizeof cost);
        if (!code)
            code = cli_refuse("plan search: no plan is within the budget: %d lists and top_k 32 %s",
                              smallest->n, cost);
    }
    return code;
}

/* The lower quartile of a decode step on the first text, in ms, under `plan`. */
static int time_decode(const search *at, const heddle_plan *plan, double *ms)
{
    enum { N_WARM = 2, N_TIMED = 24 };
    const search_text *text = &at->texts[0];
    double steps[N_TIMED];
    heddle_session *fork = NULL;
    heddle_status status = heddle_session_fork_as(&fork, text->session, plan, 0);
    int64_t first = text->n_ids - at->n_rows;
    int n = at->n_rows < N_WARM + N_TIMED ? (int)at->n_rows - N_WARM : N_TIMED;
    for (int64_t i = 0; i < N_WARM + n && !status; i++) {
        double start_s = term_now();
        status = heddle_session_decode(fork, text->ids + first + i, 1);
        if (i >= N_WARM) steps[i - N_WARM] = 1e3 * (term_now() - start_s);
    }
    heddle_session_free(fork);
    if (status) return cli_fail(status);
    eval_sort(steps, n);
    *ms = steps[n / 4];
    return 0;
}

int search_say_cost(search *at, const search_set *set, const search_router *router,
                    const search_budget *budget)
{
    const int64_t depths[2] = {budget->depth, at->texts[0].n_ids - at->n_rows};
    heddle_plan *plans[2] = {NULL, NULL};
    int code = search_plan(at, set, router, &plans[0]);
    heddle_status status = heddle_plan_named(&plans[1], "dense");
    if (status && !code) code = cli_fail(status);
    for (int p = 0; p < 2 && !code; p++)
        for (int d = 0; d < 2 && !code; d++) {
            double terms[COST_N_TERMS], ms = 0;
            status = cost_terms(at->engine, plans[p], budget->kv_type, depths[d], terms);
            if (status) code = cli_fail(status);
            if (!code && d == 1) code = time_decode(at, plans[p], &ms);
            if (code) break;
            char expected[64] = "", measured[64] = "";
            if (budget->model.weight_bytes)
                snprintf(expected, sizeof expected, ", %.2f ms", cost_of_terms(&budget->model, terms));
            if (d == 1) snprintf(measured, sizeof measured, "; measured: %.2f ms", ms);
            cli_note("%s after %" PRId64 " tokens: expected %.2f MB a step%s%s", p ? "dense" : "the plan",
                     depths[d], cost_bytes(terms) / 1e6, expected, measured);
        }
    if (!code && router->dense_below)
        cli_note("the plan reads all of up to %" PRId64
                 " tokens (dense_below): below that dense is no slower",
                 router->dense_below);
    heddle_plan_free(plans[0]);
    heddle_plan_free(plans[1]);
    return code;
}
