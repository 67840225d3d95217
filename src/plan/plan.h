/* plan.h - the four parts of a routing plan, as data, and what they compile to.
 *
 *   router    which KV tokens does this query row read?   score, then select -> a list
 *   sharing   whose list is used here?                    owner table over layers
 *   operator  how are the chosen tokens attended?         dense (the model's own window), token or block list
 *   fusion    how do several partials become one output?  one softmax: of a list and its complement
 *
 * A plan is the text of a plan file (docs/plan.md is the grammar). hdl_plan_resolve() fits it to a
 * model: one hdl_layer_plan per layer and route. Everything after that is arithmetic and pointers. */
#ifndef HDL_PLAN_H
#define HDL_PLAN_H

#include <jansson.h>

#include "backend/backend.h"
#include "kv/kv.h"
#include "model/facts.h"

enum { HDL_PLAN_VERSION = 1, HDL_MAX_MAPPED_HEADS = 64, HDL_ALL_UNITS = 1 << 28 };

/* Prompt rows take PREFILL, generated rows DECODE; REUSE is a decode step between two refreshes,
 * where the lists of the last refresh are read again. */
typedef enum hdl_route {
    HDL_ROUTE_PREFILL = 0,
    HDL_ROUTE_DECODE = 1,
    HDL_ROUTE_REUSE = 2,
    HDL_N_ROUTES
} hdl_route;

/* What a router scores. hdl_score_rows says for each what it reads and how. */
typedef enum hdl_score_kind {
    HDL_SCORE_NONE = 0,   /* only the forced set: sinks and window */
    HDL_SCORE_MASS,       /* attention mass of the layer's own dense pass */
    HDL_SCORE_RANDOM,     /* a control: a hash of (seed, position, unit) */
    HDL_SCORE_STRIDE,     /* every stride-th block */
    HDL_SCORE_POWERS,     /* blocks at distances 1, 2, 4, ... */
    HDL_SCORE_MEAN,       /* the query against each block's mean key */
    HDL_SCORE_PEAK,       /* the query against each block's largest key elements */
    HDL_SCORE_MIDDLE,     /* the query against the key in the middle of each block */
    HDL_SCORE_SAMPLED,    /* softmax over the middle keys of quarters of blocks, the largest of a block */
    HDL_SCORE_BOUNDS,     /* the largest score that a key of the block could have */
    HDL_SCORE_POOLED,     /* softmax over overlapping windows' mean keys, the largest of a block */
    HDL_SCORE_KEY_I8,     /* attention mass by 8-bit keys */
    HDL_SCORE_KEY_I4,     /* attention mass by 4-bit keys */
    HDL_SCORE_KEY_PQ2,    /* attention mass by keys coded two elements at a time */
    HDL_SCORE_KEY_PQ4,    /* the same, four elements at a time */
    HDL_SCORE_INDEX,      /* the model's own index */
    HDL_SCORE_GROUP,      /* the query against the mean key of groups of like keys */
    HDL_SCORE_INDEX_MEAN, /* the index's rule on the mean index key of each block */
    HDL_N_SCORE_KINDS
} hdl_score_kind;

typedef struct hdl_score_row {
    const char *name, *about;
    hdl_plane_kind plane;      /* the summary it reads; NONE for what needs none */
    hdl_score_rule rule;       /* of op SCORE; unused by NONE and MASS */
    hdl_measure measure;       /* default */
    bool is_scored;            /* by op SCORE */
    bool is_by_block;          /* entries are blocks (else tokens, which may be pooled to blocks) */
    int32_t entries_per_block; /* POOLED: windows that start in one block; SAMPLED: keys; else 1 */
    bool is_grouped; /* blocks of an order of their own: a list of them is resolved to their tokens */
} hdl_score_row;
extern const hdl_score_row hdl_score_rows[HDL_N_SCORE_KINDS];

/* Of which scores the list of a tile of query rows is made. */
typedef enum hdl_tile_by {
    HDL_TILE_BY_QUERY_MEAN = 0, /* those of the rows' mean query */
    HDL_TILE_BY_SUM,            /* the sum of every row's */
    HDL_TILE_BY_MAX             /* the largest of any row */
} hdl_tile_by;

typedef enum hdl_operator_kind {
    HDL_OPERATOR_DENSE = 0,
    HDL_OPERATOR_TOKEN_LIST,
    HDL_OPERATOR_BLOCK_LIST
} hdl_operator_kind;

typedef struct hdl_router_spec {
    hdl_score_kind score;
    hdl_measure measure;
    hdl_reduce heads; /* over the query heads that share the list */
    hdl_reduce pool;  /* tokens of a block: SUM or MAX */
    hdl_select_kind select;
    hdl_p_rule p_rule;
    float p, threshold;
    int64_t top_k; /* unforced tokens; sinks and window come on top; blocks: rounded up to whole ones */
    int32_t block; /* tokens of a unit that is chosen; 1 = tokens */
    int32_t n_sink, window;
    int32_t refresh; /* decode steps per new list; 1 = every step */
    int32_t tile;    /* query rows, by position, that share a list when they come in one call; 1 = none */
    hdl_tile_by tile_by;
    int32_t stride;       /* STRIDE: blocks */
    int64_t dense_below;  /* rows that see at most so many tokens read all of them */
    int32_t n_head_units; /* 0, or the KV heads, each with a top_k of its own: */
    int64_t head_units
        [HDL_MAX_MAPPED_HEADS]; /* units; HDL_ALL_UNITS = everything. top_k is the largest, in tokens */
    bool is_scaled_by_length;   /* scores of blocks times sqrt(tokens of an entry): see docs/plan.md, scale */
    bool is_per_kv_head;        /* one list per KV head instead of one for the layer */
    int32_t n_slashes; /* above 0: distances, at which every row of the tile reads a token beside the list */
    int32_t n_united;  /* above 0: each KV head chooses, and the layer's list is their union */
    int64_t seed;
} hdl_router_spec;

/* KV heads whose lists are made by another router than the layer's. */
enum { HDL_MAX_HEAD_ROUTERS = 3, HDL_MAX_ROUTE_HEAD_ROUTERS = 192 }; /* of a rule; of a route */
typedef struct hdl_head_router {
    uint64_t heads; /* a bit each */
    hdl_router_spec router;
} hdl_head_router;

typedef struct hdl_layer_plan {
    hdl_operator_kind op;
    bool has_router, has_candidates;
    hdl_router_spec router;
    int32_t n_head_routers;     /* beside `router`: those of the route's table */
    int32_t first_head_router;  /* from this one on */
    hdl_router_spec candidates; /* makes the list that `router` picks from; or */
    int32_t candidate_owner;    /* the layer whose list it picks from; -1 = none or `candidates` */
    bool is_of_pool;            /* not its list, but what that was picked from: the owner's `candidates` */
    int32_t owner; /* list operators: the layer whose list is read (may be the layer itself); else -1 */
    int32_t
        complement; /* list operators: what the list leaves out is read as means of so many tokens; 0 = not */
    hdl_stop_rule stop; /* list operators: lists are read by score until their rest does not matter */
    bool has_head_map;  /* KV head h reads the owner's list head_map[h] instead of list h */
    int16_t head_map[HDL_MAX_MAPPED_HEADS]; /* [n_kv_heads] */
} hdl_layer_plan;

typedef struct hdl_route_plan {
    hdl_layer_plan layers[HDL_MAX_LAYERS];
    int32_t n_head_routers;
    hdl_head_router head_routers[HDL_MAX_ROUTE_HEAD_ROUTERS]; /* each rule's once, for all its layers */
} hdl_route_plan;

/* The retain set: which rows of the layers without a window stay in the cache at all. */
typedef enum hdl_retain_score {
    HDL_RETAIN_ALL = 0,     /* nothing is evicted */
    HDL_RETAIN_MASS_WINDOW, /* attention mass of the last `observe` rows of a prompt */
    HDL_RETAIN_MASS_SUM,    /* attention mass of every row so far */
    HDL_RETAIN_RANDOM,      /* a control */
    HDL_RETAIN_NONE,        /* only sinks and window: a control */
    HDL_N_RETAIN_SCORES
} hdl_retain_score;
typedef struct hdl_retain_spec {
    hdl_retain_score score;
    int64_t keep;           /* rows after an eviction, sinks and window included */
    int32_t n_sink, window; /* rows that always stay */
    int32_t observe;        /* MASS_WINDOW */
    int32_t pool;           /* MASS_WINDOW: odd; scores are smoothed over so many rows */
    bool is_pool_max;       /* by their largest; else by their mean */
    int32_t every;          /* while generating: evict when so many rows came on top of keep; 0 = never */
    int64_t seed;
} hdl_retain_spec;

typedef struct hdl_plan {
    json_t *doc;      /* the validated document, overrides applied; owned */
    const char *name; /* inside doc */
    const char *about;
    char *source; /* the file, or the name with its overrides: what messages name; owned */
    /* A named plan is for reading by. One that a program parses may also make lists to be watched only
     * (heddle_lists, taps), which in a file is a slip. */
    bool is_named;
} hdl_plan;

heddle_status hdl_plan_parse(hdl_plan **out, const char *text, int64_t n_bytes, const char *name);
/* A preset's name, or a path; ":key=value,..." sets router members in every rule. */
heddle_status hdl_plan_named(hdl_plan **out, const char *spec);
void hdl_plan_free(hdl_plan *plan);
heddle_status hdl_plan_format(const hdl_plan *plan, hdl_buf *text);
/* Fits the plan to a model: the first variant whose `when` matches. route: PREFILL or DECODE. */
heddle_status hdl_plan_resolve(const hdl_plan *plan, const hdl_model_facts *facts, hdl_route route,
                               hdl_route_plan *out);
/* retain.c: the retain set of the variant that fits the model. */
heddle_status hdl_plan_retain(const hdl_plan *plan, const hdl_model_facts *facts, hdl_retain_spec *out);
/* Rows that a generated row reads only to observe their mass, of n_held before it. */
double hdl_retain_observed(const hdl_retain_spec *spec, int64_t n_held);
bool hdl_retain_equal(const hdl_retain_spec *a, const hdl_retain_spec *b);
bool hdl_route_plan_equal(const hdl_route_plan *a, const hdl_route_plan *b, int32_t n_layers);

/* share.c: whether any layer, itself among them, reads the layer's list or picks from it. */
bool hdl_list_is_read(const hdl_route_plan *route, int32_t n_layers, int32_t layer);
/* share.c: the router of the list that the layer picks from; NULL: it picks from everything. */
const hdl_router_spec *hdl_candidates_of(const hdl_route_plan *route, int32_t layer);
/* head_routers.c: the layer's head routers [n_head_routers]. */
const hdl_head_router *hdl_head_routers_of(const hdl_route_plan *route, int32_t layer);
/* What makes the list of a KV head in a layer that makes lists by KV head. */
const hdl_router_spec *hdl_router_of_head(const hdl_route_plan *route, int32_t layer, int32_t head);
/* The KV heads whose lists the layer's own router makes, a bit each. */
uint64_t hdl_heads_of_layer_router(const hdl_route_plan *route, int32_t layer, int32_t n_kv_heads);

/* cost.c: what one layer reads for a row at `position`: tokens whose K and V are attended to or observed,
 * and bytes of summaries. The second is dense's. */
typedef struct hdl_cost {
    double tokens, summary_bytes;
    double listed; /* of tokens: those that are read through a list, not in their order */
    double scores; /* of units that lists are chosen from */
} hdl_cost;
/* Why that is only the most that a layer's list may hold before it is made; NULL where it is what is read. */
const char *hdl_cost_is_bound(const hdl_route_plan *route, int32_t layer);
hdl_cost hdl_cost_of(const hdl_route_plan *route, const hdl_model_facts *facts, int32_t layer,
                     int64_t position);
double hdl_cost_tokens_dense(const hdl_model_facts *facts, int32_t layer, int64_t position);
/* Heads and width of a plane's entries for this model; {0, 0} where it cannot have the plane. */
typedef struct hdl_plane_shape {
    int32_t n_heads, dim;
} hdl_plane_shape;
hdl_plane_shape hdl_plane_shape_of(const hdl_model_facts *facts, hdl_plane_kind kind);
/* Tokens of a unit of a router's lists: 1 also where what it chooses is groups. */
int32_t hdl_router_list_block(const hdl_router_spec *router);
/* Units (tokens or blocks) that a router's list can hold at a context; groups that it can choose (room for one at
 * least). */
int64_t hdl_router_groups(const hdl_router_spec *router, int64_t n_tokens);
int64_t hdl_router_units(const hdl_router_spec *router, int64_t n_tokens);

#endif
