/* schedule.h - what a plan, a model and a device compile to: a flat array of steps.
 *
 * A step is an op with its arguments. Pointers into the activations are fixed when the schedule is
 * bound to its arena; a run sets only row counts, positions and page tables. Steps say which rows
 * they are for (`where`): exec skips a step when a batch has none.
 *
 * Sequences of a batch are ordered by (route, class) so that each group's rows are contiguous; the
 * class is ONE (every sequence brings one row) or MANY. An implementation is chosen for each.
 *
 * Booked memory: every buffer is sized here for max_rows rows and max_context tokens, at 64-byte
 * boundaries, before anything runs. exec allocates nothing and decides nothing. */
#ifndef HDL_SCHEDULE_H
#define HDL_SCHEDULE_H

#include "plan/gather.h"
#include "plan/plan.h"

enum {
    HDL_MAX_SEQS = 256,
    HDL_MAX_SLOTS = 4 * HDL_MAX_LAYERS + 2,
    HDL_MAX_TILE_ROWS = 64,    /* query rows whose scores are held at once, */
    HDL_TILE_BYTES = 16 << 20, /* and how large they may be (one row always fits) */
    HDL_MAX_GATHERS = 16,      /* lists whose rows are gathered */
    HDL_FEW_ROWS = 8           /* up to here a linear layer streams its weights */
};
typedef enum hdl_class { HDL_CLASS_ONE = 0, HDL_CLASS_MANY = 1, HDL_N_CLASSES } hdl_class;
typedef enum hdl_where {
    HDL_WHERE_ALL = 0, /* every row of the batch */
    HDL_WHERE_ROUTE,   /* the rows of step.route */
    HDL_WHERE_LOGITS   /* the gathered rows whose logits are wanted: in HDL_BUF_LAST */
} hdl_where;
typedef enum hdl_buffer { /* activations; names as in `explain` */
                          HDL_BUF_NONE = 0,
                          HDL_BUF_X,        /* [rows, hidden] residual stream */
                          HDL_BUF_NORMED,   /* [rows, hidden] */
                          HDL_BUF_Q,        /* [rows, n_heads, head_dim] */
                          HDL_BUF_K,        /* [rows, n_kv_heads, head_dim] */
                          HDL_BUF_V,        /* [rows, n_kv_heads, v_head_dim] */
                          HDL_BUF_ATTN,     /* [rows, n_heads, v_head_dim] */
                          HDL_BUF_GATE,     /* [rows, n_ff] */
                          HDL_BUF_UP,       /* [rows, n_ff] */
                          HDL_BUF_DELTA,    /* [rows, hdl_delta_cols] q, k, v of a gated-delta layer */
                          HDL_BUF_DELTA_AB, /* [rows, 2, delta heads] what its gates are made of */
                          HDL_BUF_LAST,     /* [logit rows, hidden] */
                          HDL_BUF_LOGITS,   /* [logit rows, n_vocab] */
                          HDL_BUF_COS_SIN,  /* [ropes, rows, dim/2, 2] */
                          HDL_BUF_MASS,     /* [tile rows, lists, context] */
                          HDL_BUF_SPARE,    /* [rows, n_heads, v_head_dim] of a pass that only observes */
                          HDL_BUF_Q_TILE,   /* [tile rows, n_heads, head_dim] mean queries of tiles of rows */
                          HDL_BUF_Q_INDEX, /* [rows, index groups, heads, index_dim] queries of the model's index */
                          HDL_BUF_INDEX_BIAS, /* [rows, index heads] added to their scores */
                          HDL_BUF_K_INDEX,    /* [rows, index_dim] its keys */
                          HDL_BUF_N_READ, /* [rows, n_kv_heads] tokens that visits read before they stopped */
                          HDL_BUF_ALLOWED, /* [context] tokens that are not hidden, [logit rows] counts */
                          HDL_BUF_LISTS,   /* the slots: ids and counts */
                          HDL_BUF_RETAIN,  /* scores [2, n_kv_heads, context] and lists of one eviction */
                          HDL_BUF_WORK,    /* scratch of the implementations */
                          HDL_N_BUFFERS
} hdl_buffer;
const char *hdl_buffer_name(hdl_buffer buffer);

/* A step of op ATTEND is what one layer does for one route and group of rows, in this order: attend
 * (perhaps observing; perhaps to the list's complement as well), score a summary, pool, select, unite, order. What
 * it does is set by compile. */
typedef struct hdl_attend_step {
    hdl_attend_args args;
    bool is_attending;
    bool
        is_scoring; /* SCORE fills the score row (else the pass observes it, or only the forced set counts) */
    bool is_pooling;                   /* the score row becomes one of blocks */
    bool is_selecting;                 /* makes list `slot` */
    bool is_uniting;                   /* from several lists, chosen in slot `united` */
    bool is_resolving;                 /* from lists of groups, chosen in slot `united` */
    int32_t n_slashes;                 /* of the router */
    bool is_ordering;                  /* says how list `slot` is visited */
    bool is_partial;                   /* a step after it makes more of the layer's lists */
    int32_t first_kv_head, n_kv_heads; /* n above 0: scores and makes the lists of these KV heads only; */
    bool is_replacing;                 /* a step before it made lists for all, which they replace */
    bool is_kept;                      /* REUSE: list `slot` is first loaded from the sequence's kept list */
    hdl_stop_rule stop;                /* patience above 0: attends by VISIT */
    int32_t complement;                /* tokens of a mean: attends by COMPLEMENT; 0 = not */
    hdl_score_args score;
    hdl_pool_args pool;
    hdl_select_args select;
    hdl_resolve_args resolve;
    const hdl_impl *complement_impl[HDL_N_CLASSES];
    const hdl_impl *score_impl[HDL_N_CLASSES], *pool_impl, *select_impl, *union_impl, *resolve_impl,
        *order_impl, *visit_impl;
    const hdl_impl *listed_impl[HDL_N_CLASSES]; /* of a dense pass that must leave tokens out; or NULL */
    int32_t group, layer_in_group;              /* whose KV rows */
    int32_t slot;                               /* list made or read; -1 = none */
    int32_t candidate_slot;                     /* list that is picked from; -1 = none */
    int64_t q_offset;                           /* floats of a row of Q_INDEX before the query that scores */
    int64_t all_below;       /* rows that see at most so many tokens take everything: no scores needed */
    const int16_t *head_map; /* [n_kv_heads] list of each KV head, through slot `mapped`; NULL = its own */
    int32_t gather;          /* rows that one sequence's step reads come from this gathered page; -1 = not */
    bool is_gathering;       /* the first of its readers, which brings it up to date */
    int32_t kept;            /* index of the sequence's kept list (refresh > 1); -1 = none */
} hdl_attend_step;

/* A step of op COMPACT is what one layer does for the retain set, after its attention: observe the mass
 * of rows, and where a sequence evicts in this step (hdl_exec_seq.n_retained), select the rows that stay
 * and copy them to the pages that the commit puts in place. */
typedef struct hdl_retain_step {
    hdl_compact_args compact; /* first: the step's implementations are of this op */
    hdl_attend_args args;     /* observing, into SPARE */
    const hdl_impl *attend_impl[HDL_N_CLASSES], *select_impl;
    hdl_select_args select;
    int32_t group, layer_in_group;
    int32_t first_summary, n_summaries; /* the layer's SUMMARISE steps: again over the rows that stay */
} hdl_retain_step;

/* Who runs a step, one after the other each: a device may copy rows while it computes. */
typedef enum hdl_queue { HDL_QUEUE_COMPUTE = 0, HDL_QUEUE_COPY, HDL_N_QUEUES } hdl_queue;

/* One step. Buffers are named, pointers are filled in by bind: `in` is x, q, k or gate; `in2` is
 * residual, v or up. */
typedef struct hdl_step {
    hdl_op op;
    hdl_where where;
    hdl_route route;
    int32_t layer;     /* -1 outside layers */
    hdl_queue queue;   /* order.c: of its op, */
    int32_t waits_for; /* and the step of the other queue that must be over before it begins; -1 = none */
    const hdl_impl *impl[HDL_N_CLASSES]; /* few rows / one row per sequence; many */
    hdl_buffer in, in2, out[HDL_LINEAR_MAX_PARTS];
    int64_t offset;              /* LINEAR, NORM: floats from a row's start to what is written (and normed) */
    const hdl_linear_args *next; /* LINEAR: that of the next LINEAR step; of the last, the first */
    int32_t rope;                /* ROPE: which table */
    int32_t group, layer_in_group; /* APPEND, SUMMARISE: whose KV rows; CONV, DELTA: whose state (group -1) */
    int64_t state_offset;          /* CONV, DELTA: floats from the layer's state to what the op keeps there */
    union {
        hdl_embed_args embed;
        hdl_norm_args norm;
        hdl_linear_args linear;
        hdl_rope_args rope;
        hdl_append_args append;
        hdl_summarise_args summarise;
        hdl_glu_args glu;
        hdl_conv_args conv;
        hdl_delta_args delta;
        hdl_attend_step attend;
        hdl_retain_step retain;
    } u;
} hdl_step;

/* Where layers share K, V and list: whether the listed rows are copied together once a token (gather.h). */
typedef enum hdl_gathering {
    HDL_GATHERING_AUTO = 0, /* where it pays: on a CPU nowhere */
    HDL_GATHERING_ALWAYS,
    HDL_GATHERING_NEVER
} hdl_gathering;

typedef struct hdl_schedule_limits {
    int64_t max_rows;      /* rows of one forward */
    int64_t max_list_rows; /* rows that may take the decode route in one forward */
    int64_t max_context;
    int64_t max_logit_rows; /* logits held at once */
    int32_t max_seqs;
    int n_threads;
    bool is_invariant;
    hdl_gathering gathering;
    hdl_dtype kv_dtype;
    const hdl_plan *const
        *kept_plans; /* [n_kept_plans] whose summaries are kept too; borrowed by schedule_new */
    int32_t n_kept_plans;
} hdl_schedule_limits;

/* A summary that a layer's rows are given as they are appended. */
typedef struct hdl_plane_need {
    hdl_plane_kind kind;
    int32_t block_size;
} hdl_plane_need;

typedef struct hdl_schedule {
    hdl_schedule_limits limits;
    const hdl_model_facts *facts; /* borrowed */
    hdl_route_plan routes[2];     /* PREFILL, DECODE */
    int32_t refresh;              /* 1, or the plan's */
    hdl_step *steps;              /* owned */
    int32_t n_steps, capacity;
    int32_t n_lower_steps; /* steps for every row; those after them for rows whose logits are wanted */
    int32_t layer_in_group[HDL_MAX_LAYERS]; /* among the gated-delta layers for these */
    /* summaries of the rows that each layer owns, for its readers and for the kept plans */
    hdl_plane_need planes[HDL_MAX_LAYERS][HDL_KV_MAX_PLANES];
    int32_t n_planes[HDL_MAX_LAYERS];
    /* list slots: of each route one for every layer's list and one for every layer's own candidates; `mapped` and
     * `united`, where they are needed, serve all of them */
    int32_t n_slots, n_kept;
    int32_t mapped; /* the slot that holds a list with its heads mapped; -1 = no layer maps heads */
    int32_t
        united; /* the slot of lists on the way: the KV heads', a list and its distances, groups; -1 = none */
    int64_t tile_rows;     /* query rows whose scores are held at once: HDL_TILE_BYTES bounds them */
    int32_t rows_per_list; /* of the largest tile of query rows that share a list; 1 = none do */
    int64_t slot_rows;     /* rows of a slot: those of the decode route, or all where prefill routes too */
    bool has_prefill_lists;
    int32_t slot_of_layer[2][HDL_MAX_LAYERS];
    int32_t candidates_of_layer[2][HDL_MAX_LAYERS]; /* slot of the layer's own candidates; -1 = none */
    hdl_selection slots[HDL_MAX_SLOTS];
    int64_t
        slot_at[HDL_MAX_SLOTS]; /* bytes into LISTS; slots that are never needed at once may share a place */
    int64_t kept_ids_max;
    int32_t n_gathers;
    struct {
        int32_t owner, kv_source; /* the layer that makes the list; whose rows they are */
        int64_t n_max;            /* rows of the longest list */
    } gathers[HDL_MAX_GATHERS];
    hdl_retain_spec retain;    /* score ALL: the plan evicts nothing */
    int32_t retain_group;      /* the KV group whose rows it is about; -1 = none */
    int64_t retain_tile;       /* rows observed at once */
    hdl_selection retain_list; /* of one eviction: one row, a list per KV head */
    /* the arena */
    int64_t buffer_bytes[HDL_N_BUFFERS], buffer_offset[HDL_N_BUFFERS];
    int64_t arena_bytes;
    uint8_t *arena;   /* owned once bound */
    hdl_buf refusals; /* "layer 0 attend: attend_rows_avx512: reason\n" once per distinct line */
} hdl_schedule;

/* An empty schedule with the plan resolved for both routes. */
heddle_status hdl_schedule_new(hdl_schedule **out, const hdl_plan *plan, const hdl_model_facts *facts,
                               const hdl_schedule_limits *limits);
void hdl_schedule_free(hdl_schedule *schedule);
/* Appends a step with its implementation chosen (class ONE and MANY where the op knows classes). */
heddle_status hdl_schedule_add(hdl_schedule *schedule, const hdl_step *step);
/* Appends the steps that bring the layer's summaries up to date, right after its rows were appended. */
heddle_status hdl_schedule_find_planes(hdl_schedule *schedule, const hdl_plan *plan);
heddle_status hdl_lower_summaries(hdl_schedule *schedule, int32_t layer);
/* Likewise of its index keys, right after these were written. */
heddle_status hdl_lower_index_means(hdl_schedule *schedule, int32_t layer);
/* Whether the rows of `layer` carry this summary. */
bool hdl_schedule_keeps(const hdl_schedule *schedule, int32_t layer, hdl_plane_kind kind);
/* The summaries that this schedule writes, added to the KV groups' specs [n_groups]. */
heddle_status hdl_schedule_planes(const hdl_schedule *schedule, hdl_kv_group_spec *specs);
/* UNSUPPORTED, with a sentence, when the sequence's store lacks a summary that the schedule writes. */
heddle_status hdl_schedule_fits_store(const hdl_schedule *schedule, const hdl_plan *plan,
                                      const hdl_kv_seq *kv);
/* UNSUPPORTED, with a sentence, when rows of this model hold what a document before them said. */
heddle_status hdl_facts_can_hide(const hdl_model_facts *facts);
/* UNSUPPORTED, with a sentence, when some step could not leave hidden tokens out. */
heddle_status hdl_schedule_can_hide(const hdl_schedule *schedule);
/* Appends the attention steps of one layer, all routes: the plan's part of the forward. */
heddle_status hdl_lower_attention(hdl_schedule *schedule, int32_t layer);
/* gather.c: the gathered page that the layer's decode step reads, found or added; -1: it reads the cache. */
int32_t hdl_gather_of(hdl_schedule *schedule, int32_t layer, bool *is_first);
/* A step that attends densely in `layer`. */
hdl_step hdl_attend_step_of(const hdl_schedule *schedule, int32_t layer, hdl_route route);
/* The first implementation that accepts; its refusals and scratch are booked. */
heddle_status hdl_schedule_choose(hdl_schedule *schedule, hdl_op op, const void *args, const hdl_impl **out);
/* retain.c: finds the retain set and its group, or says why it does not fit; then a layer's step. */
heddle_status hdl_retain_prepare(hdl_schedule *schedule, const hdl_plan *plan);
heddle_status hdl_lower_retain(hdl_schedule *schedule, int32_t layer);
/* Rows of the retained group that n tokens of a sequence come to in one eviction now; 0 = none is due.
 * n_held: rows after this step. is_prompt_end: its last row is the last of a prompt. */
int64_t hdl_retain_due(const hdl_schedule *schedule, int64_t n_held, bool is_prompt, bool is_prompt_end);
/* Floats of a sequence's accumulated mass [layers of the group, n_kv_heads, max_context]; 0 = none. */
int64_t hdl_retain_mass_size(const hdl_schedule *schedule);
/* Floats between the scores of two KV heads of one eviction. */
int64_t hdl_retain_stride(const hdl_schedule *schedule);
void hdl_retain_bind(hdl_schedule *schedule);
void hdl_explain_retain(const hdl_schedule *schedule, hdl_buf *text);
/* Sizes a buffer; the largest wish counts. */
void hdl_schedule_book(hdl_schedule *schedule, hdl_buffer buffer, int64_t n_bytes);
/* order.c: fills queue and waits_for of every step. INVALID, with a sentence, when a step reads what no step before it
 * wrote. */
heddle_status hdl_schedule_check_order(hdl_schedule *schedule);
/* slots.c: a place for every slot, once all steps are there; returns the bytes of LISTS. Then its pointers. */
int64_t hdl_schedule_place_slots(hdl_schedule *schedule);
void hdl_schedule_bind_slots(hdl_schedule *schedule);
int64_t hdl_slot_bytes(const hdl_schedule *schedule, int32_t slot);
/* Whether writing one of two slots writes over the other. */
bool hdl_slots_meet(const hdl_schedule *schedule, int32_t one, int32_t other);
/* Computes offsets (arena_bytes). Then bind allocates the arena and fixes every pointer. */
void hdl_schedule_layout(hdl_schedule *schedule);
heddle_status hdl_schedule_bind(hdl_schedule *schedule);
/* The address of a buffer; after bind. */
float *hdl_schedule_at(const hdl_schedule *schedule, hdl_buffer buffer);
/* plan, steps, chosen and refused implementations, every byte. */
heddle_status hdl_explain(const hdl_schedule *schedule, const hdl_plan *plan, hdl_buf *text);

/* ---- running ---- */
/* Sees, or gives, the token lists of one sequence's rows, made in `layer`; row: its token's number. */
typedef struct hdl_list_hook {
    void (*made)(void *user, int32_t layer, int64_t row, const int32_t *ids, int32_t n);
    /* How many ids it wrote; -1 = it has none for this row, or more than n_max. */
    int32_t (*wanted)(void *user, int32_t layer, int64_t row, int32_t *ids, int64_t n_max);
    void *made_user, *wanted_user; /* NULL functions are not called */
} hdl_list_hook;

typedef struct hdl_exec_seq {
    hdl_kv_seq *kv;
    const hdl_list_hook *hook; /* NULL = none */
    int64_t q_len, kv_len;     /* kv_len counts the new rows */
    hdl_route route;
    const uint8_t *mask;        /* [q_len, q_len] or NULL */
    int32_t *kept_ids;          /* [n_kept, kept_ids_max] lists of the last refresh; NULL when n_kept == 0 */
    int32_t *kept_counts;       /* [n_kept] */
    int64_t kept_visible;       /* tokens visible at the last refresh */
    int64_t n_evicted;          /* rows of the retained group that went before this step */
    int64_t n_retained;         /* > 0: after this step the retained group holds so many rows */
    int64_t n_observed;         /* last rows of this step whose mass counts for the retain set */
    float *mass;                /* accumulated mass (hdl_retain_mass_size), or NULL */
    hdl_gather *const *gathers; /* [n_gathers] the sequence's own */
    float *guesses;             /* [n_slots, n_kv_heads] for select: what its last row's choice ended at */
} hdl_exec_seq;

typedef struct hdl_tap_row {
    int32_t layer, list;
    int64_t n_visible;         /* tokens that the row sees */
    const hdl_selection *made; /* the layer's lists; row `row` of it */
    int64_t row;
    const float *score; /* [units]; NULL = none, or of candidates */
} hdl_tap_row;

/* Told of every list that is made; fn NULL = nobody listens. */
typedef struct hdl_tap {
    void (*fn)(const hdl_tap_row *row, void *user);
    void *user;
} hdl_tap;

/* Sequences ordered by (route, class): those with q_len 1 first inside a route. */
typedef struct hdl_exec_batch {
    int32_t n_seqs;
    int64_t n_rows;
    const int32_t *ids;     /* [n_rows] */
    hdl_exec_seq *seqs;     /* [n_seqs] */
    hdl_attend_seq *attend; /* [n_seqs + n_rows + 1] scratch */
    int64_t *n_visible;     /* [n_rows] tokens of the sequence up to and with each row */
    int64_t *n_held;        /* [n_rows] rows of the retained group up to and with each row */
    double
        *n_listed; /* [n_rows] tokens that a row read through lists, summed over layers; NULL = not counted */
    int64_t *doc_start;    /* [n_rows] where the row's document begins; positions count from there */
    hdl_state_seq *states; /* [n_seqs] scratch */
    hdl_tap tap;
} hdl_exec_batch;

/* gather.c: a row of each sequence attends through its gathered page, where its list is one of slots. */
void hdl_attend_gathered(const hdl_launch *launch, const hdl_step *step, hdl_class cls,
                         const hdl_exec_seq *seqs, const hdl_attend_args *args);
/* retain_exec.c */
void hdl_exec_retain(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch);
/* state_exec.c */
void hdl_exec_state(const hdl_schedule *schedule, const hdl_step *step, hdl_exec_batch *batch);
/* What every row passes: embeddings to the residual stream HDL_BUF_X below the final norm or, in a model
 * with a shared state, to that state and its rows in the cache. */
void hdl_exec_lower(const hdl_schedule *schedule, hdl_exec_batch *batch);
/* What only rows whose logits are wanted pass: `rows` [n_rows <= max_logit_rows] of HDL_BUF_X go through
 * the cross layers, the final norm and the head into HDL_BUF_LOGITS. `batch` describes these rows. */
void hdl_exec_upper(const hdl_schedule *schedule, hdl_exec_batch *batch, const int64_t *rows);

#endif
