/* engine_int.h - the engine's own structs: engine, runner, session, and one forward over a batch. */
#ifndef HDL_ENGINE_INT_H
#define HDL_ENGINE_INT_H

#include <stdatomic.h>

#include "heddle.h"
#include "model/model.h"
#include "plan/schedule.h"

struct heddle_engine {
    hdl_model *model;
    int n_threads;
    atomic_int n_users; /* sessions and batches alive */
    hdl_buf formats;    /* "q4_1 (210), f32 (61)" */
    int64_t n_params;
    _Atomic uint64_t identity; /* for hdl_engine_identity; 0 = not yet */
};

enum { HDL_MAX_KEPT_PLANS = 64 };

struct heddle_plan {
    hdl_plan *plan;
};

/* A bound schedule and what one forward needs beside it; shared by a session and its forks, which
 * are used by one thread at a time. The arena is bound at first use. */
typedef struct hdl_runner {
    int32_t n_refs;
    heddle_engine *engine;
    hdl_schedule *schedule;
    heddle_session_options options;
    char *plan_name;               /* owned */
    hdl_buf plan_text;             /* canonical, overrides applied */
    hdl_exec_batch batch;          /* arrays owned here */
    int32_t *ids;                  /* [max_rows] */
    hdl_exec_batch upper;          /* the rows of one tile whose logits are wanted; arrays owned here */
    struct hdl_wanted_row *wanted; /* [max_logit_rows] whose they are */
    int64_t *rows;                 /* [max_logit_rows] where they lie in the batch */
    int32_t *order;                /* [max_seqs] items by (route, class) */
} hdl_runner;

struct heddle_session {
    hdl_runner *runner;
    hdl_kv_store *store; /* owned reference */
    hdl_kv_seq *kv;
    int32_t *ids; /* [context_tokens] */
    int64_t context_tokens;
    float *logits;               /* [n_vocab] of the last token */
    bool has_logits, had_logits; /* had: before the step that runs */
    int64_t doc_start;           /* where the document of the next token begins, if that token begins none */
    int32_t *kept_ids, *kept_counts; /* lists of the last refresh; NULL where the plan keeps none */
    int64_t kept_visible;            /* 0 = none kept */
    hdl_list_hook hook;
    hdl_gather *gathers[HDL_MAX_GATHERS]; /* of the schedule's; rows copied: no fork or file has them */
    float *guesses; /* [slots, n_kv_heads] hdl_exec_seq.guesses; only saves time, so no fork or file has it */
    float *retain_mass; /* hdl_retain_mass_size floats of the plan's retain set, or NULL */
    atomic_bool is_cancelled;
    heddle_tap_fn tap;
    void *tap_user;
    heddle_stats stats;
    double n_layer_rows; /* decode rows times layers, for the mean of tokens read */
    double tokens_read;
};

/* session.c: where the document of token n - 1 begins. */
int64_t hdl_doc_start(const heddle_session *session, int64_t n);

/* document.c: what is mounted and forbidden, as files keep it: u64 [n_mounts] sums of the documents (0: unmounted),
 * then i64 [n_hidden, 2] first and end of the spans of tokens that no row may read. */
typedef struct hdl_mounts_count {
    int32_t n_mounts, n_hidden;
} hdl_mounts_count;
hdl_mounts_count hdl_session_count_mounts(const heddle_session *session);
void hdl_session_add_mounts(const heddle_session *session, hdl_buf *out);
/* < 0: such counts are none that a session can have. */
int64_t hdl_mounts_bytes(hdl_mounts_count count);
/* INVALID where the session's are others than these; `written` is the verb of the sentence, path its beginning. */
heddle_status hdl_session_check_mounts(const heddle_session *session, const void *bytes,
                                       hdl_mounts_count count, const char *path, const char *written);

/* lists.c: what is being recorded loses the lists of the rows from n_tokens on, which the session gave up. */
void hdl_session_forget_lists(heddle_session *session, int64_t n_tokens);

/* lower.c: the model's layers as steps, the plan's part through hdl_lower_attention. */
heddle_status hdl_compile(hdl_schedule **out, const heddle_engine *engine, const hdl_plan *plan,
                          const heddle_session_options *options, int32_t max_seqs, int64_t max_rows);

/* runner.c */
heddle_status hdl_runner_new(hdl_runner **out, heddle_engine *engine, const hdl_plan *plan,
                             const heddle_session_options *options, int32_t max_seqs, int64_t max_rows);
void hdl_runner_unref(hdl_runner *runner);

typedef struct hdl_forward_item {
    heddle_session *session;
    const int32_t *ids; /* [n_ids] */
    int64_t n_ids;
    const uint8_t *mask;
    bool is_prompt;          /* prompt rows: the prefill route unless the plan governs all */
    bool is_prompt_end;      /* and the last of them is the last of the prompt: where a plan evicts */
    int64_t first_logit_row; /* rows from here on are handed to the sink; n_ids = none */
} hdl_forward_item;
typedef void (*hdl_logit_sink)(const hdl_forward_item *item, int64_t row, const float *logits, void *user);
/* Appends every item's tokens. All or nothing: on failure no session is changed. */
heddle_status hdl_forward(hdl_runner *runner, const hdl_forward_item *items, int32_t n_items,
                          hdl_logit_sink sink, void *user);

/* engine.c: hdl_model_identity, which reads every weight, asked for once. */
heddle_status hdl_engine_identity(const heddle_engine *engine, uint64_t *identity);
/* engine.c: `given`, or where it is NULL the model's own plan, made in *own (freed by the caller). */
heddle_status hdl_plan_or_own(const heddle_engine *engine, const heddle_plan *given, heddle_plan **own,
                              const hdl_plan **used);

/* engine.c: into a struct of the caller that begins with its struct_size: as much of `from` as that holds. */
void hdl_give(void *to, const void *from, size_t n_bytes);

/* memory.c */
/* The KV groups of a session with this schedule: the model's caches and the plan's summaries. */
heddle_status hdl_group_specs(const heddle_engine *engine, const heddle_session_options *options,
                              const hdl_schedule *schedule, hdl_kv_group_spec specs[HDL_MAX_GROUPS]);
/* CAPACITY with the largest context that fits, when the system cannot give what is asked. */
heddle_status hdl_memory_check(const heddle_engine *engine, const hdl_plan *plan,
                               const heddle_session_options *options);
/* All options but the upper bound of context_tokens, which hdl_memory_check or hdl_context_check
 * looks at. */
heddle_status hdl_options_check(const heddle_session_options *given, heddle_session_options *out);
heddle_status hdl_context_check(int64_t n_tokens);

#endif
