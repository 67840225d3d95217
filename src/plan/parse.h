/* parse.h - members of a plan file as C: what the readers (parse.c, router.c, head_routers.c, retain.c) and share.c,
 * which fits owners to a model, have of each other. */
#ifndef HDL_PLAN_PARSE_H
#define HDL_PLAN_PARSE_H

#include "plan/plan.h"

enum { HDL_SHARE_NONE = -2, HDL_SHARE_PREVIOUS = -1 }; /* else a layer's number */

typedef struct hdl_int_member { /* a whole-number member of a router or a retain set */
    const char *key;
    int64_t min, max;
    size_t offset; /* in hdl_router_spec or hdl_retain_spec */
    bool is_wide;  /* int64_t, else int32_t */
} hdl_int_member;
extern const hdl_int_member hdl_router_ints[], hdl_retain_ints[]; /* NULL-key terminated */

/* Whose lists a router makes: what it may be depends on it. */
typedef enum hdl_router_role {
    HDL_ROUTER_OF_LAYER = 0,
    HDL_ROUTER_OF_HEADS,      /* of some KV heads, beside the layer's */
    HDL_ROUTER_OF_CANDIDATES, /* that another router picks from */
} hdl_router_role;

typedef struct hdl_candidates { /* whose tokens a router picks from */
    bool has_router;
    hdl_router_spec router;
    int32_t share;
    bool is_pool; /* of the layer shared: the tokens that it picked from, not the list that it reads */
} hdl_candidates;

/* What the rules want of each layer, before owners are found. */
typedef struct hdl_wishes {
    int32_t share[HDL_MAX_LAYERS]; /* whose list it reads: HDL_SHARE_NONE (its own), PREVIOUS or a layer */
    int32_t pool[HDL_MAX_LAYERS];  /* whose list it picks candidates from, or */
    bool is_pool[HDL_MAX_LAYERS];  /* whose candidates */
    int32_t rule[HDL_MAX_LAYERS];  /* the rule that named it, for messages; -1 = none */
} hdl_wishes;
/* share.c: fills owners and candidate owners; path: the list of rules, for messages. */
heddle_status hdl_share_owners(hdl_route_plan *route, const hdl_model_facts *facts, const hdl_wishes *wanted,
                               const char *path);
/* share.c: INVALID where a rule makes lists of which none is read. */
heddle_status hdl_share_unread(const hdl_route_plan *route, const hdl_model_facts *facts,
                               const hdl_wishes *wanted, const char *path);

/* retain.c */
heddle_status hdl_retain_read(const json_t *obj, const char *path, hdl_retain_spec *out);
/* parse.c: the first variant whose `when` fits, and its number; UNSUPPORTED where none does. */
heddle_status hdl_plan_variant(const hdl_plan *plan, const hdl_model_facts *facts, const json_t **variant,
                               int *number);
/* router.c: a member whose value is one of a few words (NULL-terminated); its number goes to *out. */
heddle_status hdl_word_read(const json_t *obj, const char *path, const char *key, const char *const *words,
                            int *out);
/* router.c: the members of obj that `rows` name into `spec`, which keeps its value where obj has none. */
heddle_status hdl_ints_read(const json_t *obj, const char *path, const hdl_int_member *rows, void *spec);
heddle_status hdl_router_read(const json_t *obj, const char *path, hdl_router_role role,
                              hdl_router_spec *out);
/* head_routers.c: the member "head_routers" of a rule whose own router is `router` (NULL: it has none) into
 * out [HDL_MAX_HEAD_ROUTERS] and their number; then whether they fit the model. INVALID, with a sentence. */
heddle_status hdl_head_routers_read(const json_t *rule, const char *path, const hdl_router_spec *router,
                                    hdl_head_router *out, int32_t *n);
heddle_status hdl_head_routers_fit(const hdl_head_router *routers, int32_t n, const hdl_model_facts *facts,
                                   const char *path);
/* Into the route's table; *first: where they stand. INVALID when it is full. */
heddle_status hdl_head_routers_add(hdl_route_plan *route, const hdl_head_router *routers, int32_t n,
                                   const char *path, int32_t *first);
heddle_status hdl_candidates_read(const json_t *router, const char *path, hdl_candidates *out);
heddle_status hdl_share_read(const json_t *share, const char *path, int32_t *out);

#endif
