/* plan.h - the four parts of a routing plan, as data, and what they compile to.
 *
 *   router    which KV tokens does this query row read?   score, then select -> a list
 *   sharing   whose list is used here?                    owner table over layers
 *   operator  how are the chosen tokens attended?         dense (the model's own window), token_list
 *   fusion    how do several partials become one output?  lse-merge (inside the operators so far)
 *
 * A plan is the text of a plan file (docs/plan.md is the grammar). hdl_plan_resolve() fits it to a
 * model: one hdl_layer_plan per layer and route. Everything after that is arithmetic and pointers. */
#ifndef HDL_PLAN_H
#define HDL_PLAN_H

#include <jansson.h>

#include "backend/backend.h"
#include "kv/kv.h"
#include "model/facts.h"

enum { HDL_PLAN_VERSION = 1, HDL_MAX_MAPPED_HEADS = 64 };

/* Prompt rows take PREFILL, generated rows DECODE; REUSE is a decode step between two refreshes,
 * where the lists of the last refresh are read again. */
typedef enum hdl_route {
    HDL_ROUTE_PREFILL = 0,
    HDL_ROUTE_DECODE = 1,
    HDL_ROUTE_REUSE = 2,
    HDL_N_ROUTES
} hdl_route;

typedef enum hdl_score_kind {
    HDL_SCORE_NONE = 0, /* only the forced set: sinks and window */
    HDL_SCORE_MASS,     /* attention mass of the layer's own dense pass, averaged over heads */
    HDL_SCORE_RANDOM    /* a control: a hash of (seed, position, token) */
} hdl_score_kind;

typedef enum hdl_operator_kind { HDL_OPERATOR_DENSE = 0, HDL_OPERATOR_TOKEN_LIST } hdl_operator_kind;

typedef struct hdl_router_spec {
    hdl_score_kind score;
    int64_t top_k; /* unforced tokens; sinks and window come on top */
    int32_t n_sink, window;
    int32_t refresh;     /* decode steps per new list; 1 = every step */
    bool is_per_kv_head; /* one list per KV head instead of one for the layer */
    int64_t seed;
} hdl_router_spec;

typedef struct hdl_layer_plan {
    hdl_operator_kind op;
    bool has_router;
    hdl_router_spec router;
    int32_t owner;     /* token_list: the layer whose list is read (may be the layer itself); else -1 */
    bool has_head_map; /* KV head h reads the owner's list head_map[h] instead of list h */
    int16_t head_map[HDL_MAX_MAPPED_HEADS]; /* [n_kv_heads] */
} hdl_layer_plan;

typedef struct hdl_route_plan {
    hdl_layer_plan layers[HDL_MAX_LAYERS];
} hdl_route_plan;

typedef struct hdl_plan {
    json_t *doc;      /* the validated document, overrides applied; owned */
    const char *name; /* inside doc */
    const char *about;
} hdl_plan;

heddle_status hdl_plan_parse(hdl_plan **out, const char *text, int64_t n_bytes, const char *name);
/* A preset's name, or a path; ":key=value,..." sets router members in every rule. */
heddle_status hdl_plan_named(hdl_plan **out, const char *spec);
void hdl_plan_free(hdl_plan *plan);
heddle_status hdl_plan_format(const hdl_plan *plan, hdl_buf *text);
/* Fits the plan to a model: the first variant whose `when` matches. route: PREFILL or DECODE. */
heddle_status hdl_plan_resolve(const hdl_plan *plan, const hdl_model_facts *facts, hdl_route route,
                               hdl_route_plan *out);
/* share.c: fills the owners of token_list layers that say "share": "previous" or a layer. rule_of: the
 * rule that named each layer, and path, the list of rules, stand in messages. */
heddle_status hdl_share_owners(hdl_route_plan *route, const hdl_model_facts *facts, const int32_t *wanted,
                               const int32_t *rule_of, const char *path);
bool hdl_route_plan_equal(const hdl_route_plan *a, const hdl_route_plan *b, int32_t n_layers);

/* cost.c: K and V rows (tokens) that one layer reads for a row at `position`, and dense's. */
double hdl_cost_tokens(const hdl_route_plan *route, const hdl_model_facts *facts, int32_t layer,
                       int64_t position);
double hdl_cost_tokens_dense(const hdl_model_facts *facts, int32_t layer, int64_t position);

#endif
