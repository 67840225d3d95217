/* heddle.h - the public API: an engine for long contexts whose layers share the decision of which
 * tokens are read.
 *
 * Objects and who owns them
 *   heddle_engine   a model, mapped and immutable. Outlives everything made from it.
 *   heddle_plan     which layers route, share and read what; immutable. Outlives its sessions.
 *   heddle_session  one sequence of tokens with its KV state; one thread at a time.
 *   heddle_batch    steps several sessions of one engine, plan and options together.
 *
 * The shape of a program
 *   heddle_engine_open(&engine, "model.gguf", NULL);
 *   heddle_plan_named(&plan, "anchor");
 *   heddle_session_new(&session, engine, plan, NULL);
 *   heddle_tokenize(engine, text, n, 0, &ids, &n_ids);
 *   heddle_session_extend(session, ids, n_ids, progress, user);     // prefill
 *   while (...) { heddle_sample(sampler, session, NULL, &id); heddle_session_decode(session, &id, 1); }
 *
 * Rules
 *   Functions return a heddle_status; 0 is success. heddle_last_error() gives the sentence of the
 *   last failure on this thread: it names the object, the value and the limit. On failure results
 *   are NULL or zero and the objects are unchanged.
 *   A pointer that is NULL where that is not said to be allowed is INVALID; functions without a status
 *   then do nothing, or give NULL, 0 or "".
 *   Texts returned through char ** are freed with heddle_string_free. Every *_free accepts NULL.
 *   Option structs come from their _default function and carry their size, so that they may grow.
 *   Structs that are filled in (peaks, info, memory, stats) are given with struct_size set; no byte
 *   behind that is written, and after the call it says how many were.
 *   Token ids are int32, counts and offsets int64. Sizes are in bytes where the name says so.
 *   The library prints nothing, never exits and reads four environment variables: HEDDLE_LOG
 *   (error, warn, info, debug), HEDDLE_THREADS, HEDDLE_DEVICE, HEDDLE_IMPL. */
#ifndef HEDDLE_H
#define HEDDLE_H

#include <stddef.h>
#include <stdint.h>

#include "heddle_status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version, status, log -------------------------------------------------------------------- */

const char *heddle_version(void); /* "0.1.0" */
const char *heddle_status_name(heddle_status status);
const char *heddle_last_error(void); /* never NULL; until the next failure on this thread */
void heddle_string_free(char *text);

/* level: 0 error, 1 warn, 2 info, 3 debug. NULL (the default) = silence. */
typedef void (*heddle_log_fn)(int level, const char *text, void *user);
void heddle_set_log(heddle_log_fn fn, void *user);

/* The instruction set in use and the machine's measured peaks, as text for people: read bandwidth
 * by working set, f32 FMA and int8 peaks. Takes about a second. */
heddle_status heddle_device_describe(char **text);
typedef struct heddle_device_peaks {
    uint32_t struct_size;
    char isa[16]; /* "avx512" */
    int32_t n_threads;
    double read_bytes_per_s;       /* from memory, a working set of 256 MiB */
    double read_small_bytes_per_s; /* 16 MiB */
    double fma_flops_per_s;        /* f32, multiply and add counted */
    double int8_ops_per_s;
} heddle_device_peaks;
heddle_status heddle_device_measure(heddle_device_peaks *peaks);

/* ---- engine ---------------------------------------------------------------------------------- */

typedef struct heddle_engine heddle_engine;
typedef struct heddle_engine_options {
    uint32_t struct_size;
    int32_t n_threads; /* 0 = HEDDLE_THREADS, else all processors */
    /* a learned index for a model that has none (docs/training.md, "The sidecar"), for plans that route by
     * "index"; refused unless it was made for this very model file. NULL = none */
    const char *index_path;
} heddle_engine_options;
void heddle_engine_options_default(heddle_engine_options *options);

/* model_path: a .gguf file, or a folder with config.json and safetensors. options may be NULL. */
heddle_status heddle_engine_open(heddle_engine **out, const char *model_path,
                                 const heddle_engine_options *options);
heddle_status heddle_engine_close(heddle_engine *engine); /* BUSY while sessions exist; NULL is fine */

typedef struct heddle_model_info { /* strings live as long as the engine */
    uint32_t struct_size;
    const char *arch, *name;
    const char *chat; /* "none", "unknown", "chatml", "llama3", "gemma" */
    int32_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, v_head_dim, n_ff, n_vocab;
    int32_t train_context;             /* tokens; 0 = the file does not say */
    int32_t n_windowed_layers, window; /* layers that read only the last `window` tokens */
    int64_t weight_bytes, file_bytes, n_params;
    const char *formats;    /* "q4_1 (210), f32 (61)" */
    int32_t n_state_layers; /* layers that keep a state of fixed size in place of keys and values */
} heddle_model_info;
void heddle_engine_model_info(const heddle_engine *engine, heddle_model_info *info);

/* ---- tokens ---------------------------------------------------------------------------------- */

enum heddle_tokenize_flags {
    HEDDLE_TOKENIZE_SPECIAL = 1, /* spellings of special tokens in the text become these tokens */
    HEDDLE_TOKENIZE_BOS = 2      /* begin-of-text and end-of-text as the model file says */
};
/* *ids is freed with heddle_ids_free. text: any bytes; broken UTF-8 does not fail, and no byte is
 * replaced by U+FFFD. A vocabulary with byte fallback gives such a byte its <0xNN> token, a byte-level
 * one its byte's token. Where the vocabulary has no token for a byte, the byte is dropped, as Hugging
 * Face's tokenizers drop it: SmolLM2 has none for 04 06 13 14 16 1d c0 c1 f1 f2 and f5..ff (hex), so
 * a text with them does not come back from heddle_detokenize. */
heddle_status heddle_tokenize(const heddle_engine *engine, const char *text, int64_t n_bytes, uint32_t flags,
                              int32_t **ids, int64_t *n_ids);
void heddle_ids_free(int32_t *ids);
/* *text is NUL-terminated, n_bytes (may be NULL) does not count that. */
heddle_status heddle_detokenize(const heddle_engine *engine, const int32_t *ids, int64_t n_ids,
                                int with_special, char **text, int64_t *n_bytes);
/* One chat turn ("system", "user", "assistant") as tokens, in the model's own template; content is
 * never parsed for special tokens. previous_role: the turn before it, NULL = none (BOS as the file
 * says). After "assistant" the ids begin with what closes that answer: its end token, which was
 * sampled, is not to be appended to the session. open_answer: end with the header that makes the
 * model answer next. UNSUPPORTED when the file has no template or an unknown one. */
heddle_status heddle_chat_turn(const heddle_engine *engine, const char *previous_role, const char *role,
                               const char *content, int64_t n_bytes, int open_answer, int32_t **ids,
                               int64_t *n_ids);
int heddle_token_is_end(const heddle_engine *engine, int32_t id); /* ends an answer */

/* ---- plans ----------------------------------------------------------------------------------- */

typedef struct heddle_plan heddle_plan;
int32_t heddle_preset_count(void);
const char *heddle_preset_at(int32_t i); /* its name */
/* JSON text of a plan file (docs/plan.md); `name` stands in messages. */
heddle_status heddle_plan_parse(heddle_plan **out, const char *json, int64_t n_bytes, const char *name);
/* "anchor", "path/to/plan.json", either with overrides: "anchor:top_k=256,window=64". */
heddle_status heddle_plan_named(heddle_plan **out, const char *spec);
/* The plan that the model was made for: "dense", or its own index at its own budget. */
heddle_status heddle_plan_default(heddle_plan **out, const heddle_engine *engine);
void heddle_plan_free(heddle_plan *plan);
const char *heddle_plan_name(const heddle_plan *plan);
const char *heddle_plan_about(const heddle_plan *plan);
heddle_status heddle_plan_format(const heddle_plan *plan, char **json); /* parse(format(p)) == p */
/* What the plan makes of this model's layers, for people: "dense", "dense in 5 of 30 layers, lists in 25".
 * plan NULL = the model's own; is_decode: the route of generated tokens, else that of prompts. */
heddle_status heddle_plan_route(const heddle_plan *plan, const heddle_engine *engine, int is_decode,
                                char **text);
/* HEDDLE_OK if the plan fits the model; else the sentence says what does not. */
heddle_status heddle_plan_check(const heddle_plan *plan, const heddle_engine *engine);

/* ---- sessions -------------------------------------------------------------------------------- */

typedef struct heddle_session heddle_session;
/* Where layers share K, V and list, the listed rows can be copied together once a token, to be read from there. */
typedef enum heddle_gathering {
    HEDDLE_GATHERING_AUTO = 0, /* where it saves more than it costs: on a CPU nowhere */
    HEDDLE_GATHERING_ALWAYS,   /* wherever layers share */
    HEDDLE_GATHERING_NEVER
} heddle_gathering;

typedef struct heddle_session_options {
    uint32_t struct_size;
    int64_t context_tokens;   /* most tokens the session can hold; memory follows what is used */
    const char *kv_type;      /* "f16" (default), "bf16", "f32", "i8", "q4_1" */
    const char *kv_layout;    /* "token" (default) or "head": order inside a page */
    int32_t page_shift;       /* log2 tokens of a KV page; default 8 */
    int32_t chunk_rows;       /* rows of a prefill step; default 512 */
    int32_t is_invariant;     /* results do not depend on batch, chunk or thread count; slower */
    int32_t plan_governs_all; /* prompt rows too take the plan's decode route (for quality figures) */
    int32_t rewind_tokens;    /* what sliding caches keep behind their window, so that sync and truncate
                                 can go back so far without reading all again; default 0 */
    /* [n_kept_plans] plans that a fork may go on under: the session keeps their summaries too. Read
     * while the session is made, not kept. */
    const heddle_plan *const *kept_plans;
    int32_t n_kept_plans;
    int32_t gathering; /* heddle_gathering: changes speed and memory, no result */
} heddle_session_options;
void heddle_session_options_default(heddle_session_options *options);

/* What a session will take at most when it holds n_tokens. */
typedef struct heddle_memory {
    uint32_t struct_size;
    int64_t weight_bytes, kv_bytes, workspace_bytes, total_bytes; /* kv: layers' states included */
    int64_t available_bytes; /* what the system and its control groups can give now; INT64_MAX: unknown */
} heddle_memory;
heddle_status heddle_memory_plan(const heddle_engine *engine, const heddle_plan *plan,
                                 const heddle_session_options *options, int64_t n_tokens,
                                 heddle_memory *memory);
/* plan, compiled schedule, chosen and refused implementations, and every byte, as text. */
heddle_status heddle_explain(const heddle_engine *engine, const heddle_plan *plan,
                             const heddle_session_options *options, char **text);

/* plan NULL = the model's own; options NULL = defaults (context_tokens 4096). CAPACITY, with the largest
 * context that fits, when the machine's memory cannot hold it. */
heddle_status heddle_session_new(heddle_session **out, heddle_engine *engine, const heddle_plan *plan,
                                 const heddle_session_options *options);
void heddle_session_free(heddle_session *session);

/* Called between chunks with the tokens done; return non-zero to stop (CANCELLED, done ones kept). */
typedef int (*heddle_progress_fn)(int64_t n_done, int64_t n_total, void *user);
/* Appends n_ids >= 1 tokens of a prompt, by the plan's prefill route; afterwards
 * heddle_session_logits is that of the last one. Stopped or failed in a later chunk: the tokens read
 * so far stay, and there are no logits until the next token is read. */
heddle_status heddle_session_extend(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                    heddle_progress_fn progress, void *user);
/* The same for generated tokens: the plan's decode route. */
heddle_status heddle_session_decode(heddle_session *session, const int32_t *ids, int64_t n_ids);
/* Makes the session hold exactly ids: keeps the common prefix, reads the rest as a prompt. *n_kept
 * may be NULL. */
heddle_status heddle_session_sync(heddle_session *session, const int32_t *ids, int64_t n_ids, int64_t *n_kept,
                                  heddle_progress_fn progress, void *user);
/* Appends ids and gives nll[i] = -log p(ids[i] | before), natural logarithm, f32; for the first
 * token of an empty session NaN. first_scored: entries before it are not computed (NaN). */
heddle_status heddle_session_score(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                   int64_t first_scored, float *nll, heddle_progress_fn progress, void *user);
/* Appends ids and hands the logits [n_vocab] of each row from first_row on to fn, in order. */
typedef int (*heddle_logits_fn)(int64_t row, const float *logits, void *user);
heddle_status heddle_session_each_logits(heddle_session *session, const int32_t *ids, int64_t n_ids,
                                         int64_t first_row, heddle_logits_fn fn, void *user);
/* [n_vocab] of the last token, f32; NULL before the first. Until the session changes. */
const float *heddle_session_logits(const heddle_session *session);
int64_t heddle_session_len(const heddle_session *session);
const int32_t *heddle_session_ids(const heddle_session *session); /* [len], until it changes */
/* Keeps the first n tokens, or fewer where a sliding cache, or a plan that evicts, no longer holds what
 * they need, and none where layers keep a state, which is that of the last token only (a warning of the log
 * says so, unless a mounted document ends at n); what ends with a mounted document is kept rather than none.
 * *n_kept says. */
heddle_status heddle_session_truncate(heddle_session *session, int64_t n, int64_t *n_kept);
/* A second session over the same KV pages, copied when written. */
heddle_status heddle_session_fork(heddle_session **out, const heddle_session *session);
/* The same, but what comes after is read under another plan (NULL = the model's own) of the same engine: one
 * document, read once, for many plans. Other options stay the session's. Forks of the new session
 * share its compiled plan, so ask for it once and fork that. */
heddle_status heddle_session_fork_as(heddle_session **out, const heddle_session *session,
                                     const heddle_plan *plan, int plan_governs_all);

/* A session as a file (it begins with "heddle\x1a\n"): tokens, KV state, last logits and lists, with
 * the identity of the model (every byte of its weights; the first call reads them all, like one
 * decode step), the plan's text and the options that shape the state. Of mounted documents it holds the
 * checksums, not the rows. The file is written beside and renamed, so that a crash or a full disk leaves
 * the old one; on failure the old one is untouched. */
heddle_status heddle_session_save(const heddle_session *session, const char *path);
/* The session then holds what the file holds, in place of what it held; going on from there equals
 * never having stopped. The whole file is verified first. Refused, with the session and the file
 * unchanged: a file that is cut or damaged (FORMAT) or of another format (UNSUPPORTED); another
 * model, plan, KV type, KV layout, page_shift, invariant mode or plan_governs_all (INVALID); other documents
 * mounted, or at other tokens, or other tokens forbidden, than in the session: mount and forbid first, then load
 * (INVALID); more tokens than context_tokens (CAPACITY). */
heddle_status heddle_session_load(heddle_session *session, const char *path);
typedef struct heddle_session_file_info {
    uint32_t struct_size, format;
    int64_t n_tokens, file_bytes;
    char model[128], plan[128], kv_type[8], kv_layout[8];
    int32_t page_shift, is_invariant, plan_governs_all;
    int32_t n_mounts; /* documents that must be mounted before it is loaded, in their order */
} heddle_session_file_info;
/* Verifies the whole file, too. */
heddle_status heddle_session_file_inspect(const char *path, heddle_session_file_info *info);

/* What one layer's router chose for one row; borrowed for the call. */
typedef struct heddle_tap_row {
    uint32_t struct_size;
    int32_t layer, list, n_lists; /* list: which of the layer's lists (one, or one per KV head) */
    int64_t position;             /* of the row, from 0 */
    int32_t block_size;           /* tokens of a unit */
    int64_t n_units;              /* visible units */
    const int32_t *ids;           /* [n_ids] chosen units, ascending */
    int64_t n_ids;
    const float *score; /* [n_units] what was scored; attention mass, where the router observes that. NULL:
                           nothing was scored, or only candidates were */
} heddle_tap_row;
typedef void (*heddle_tap_fn)(const heddle_tap_row *row, void *user);
/* fn is called for every list that this session's routers make; NULL ends it. Forks do not inherit it;
 * batches of several sessions do not call it. */
void heddle_session_set_tap(heddle_session *session, heddle_tap_fn fn, void *user);

/* ---- lists ----------------------------------------------------------------------------------- */

/* Which tokens each row read, wherever a plan makes one token list for all heads of a layer. With a shared
 * index that is everything global that influenced a row. */
typedef struct heddle_lists heddle_lists;
heddle_status heddle_lists_new(heddle_lists **out, const heddle_engine *engine); /* empty */
void heddle_lists_free(heddle_lists *lists);
/* Truncation of the session takes the lists of the rows that go out of its record. */
int64_t heddle_lists_count(const heddle_lists *lists);
heddle_status heddle_lists_save(const heddle_lists *lists, const char *path);
heddle_status heddle_lists_load(heddle_lists **out, const heddle_engine *engine, const char *path);
/* The session's tokens go with its lists into their file, and of which plan, mounted documents and forbidden
 * tokens they are. */
heddle_status heddle_lists_set_tokens(heddle_lists *lists, const heddle_session *session);
/* How many, borrowed in *ids (may be NULL); 0: none were set, or the file is of version 1. */
int64_t heddle_lists_tokens(const heddle_lists *lists, const int32_t **ids);
/* OK when loaded lists are those that this session would make of ids [n_ids]: recorded under its plan, over its
 * mounted documents and forbidden tokens, and of tokens that begin with ids. Else INVALID says what is another;
 * UNSUPPORTED: the file does not say (it is of version 1 or 2, or no tokens were set). */
heddle_status heddle_lists_check(const heddle_lists *lists, const heddle_session *session, const int32_t *ids,
                                 int64_t n_ids);
/* The i-th loaded list, by row and layer; *row and *layer (may be NULL) are of whom. How many tokens it has; they
 * are in ids [n_max] where they fit and ids is given. -1: there is no such list. */
int64_t heddle_lists_at(const heddle_lists *lists, int64_t i, int64_t *row, int32_t *layer, int32_t *ids,
                        int64_t n_max);
/* Adds every list that the session makes; NULL stops. `lists` must outlive that, and records one session at a
 * time. Forks record nothing. UNSUPPORTED: the plan makes no such list. */
heddle_status heddle_session_record(heddle_session *session, heddle_lists *lists);
/* Reads the loaded lists in place of scoring; rows that they lack make their own. NULL stops. Whether they are
 * this session's is not looked at: heddle_lists_check does. UNSUPPORTED: the plan makes no list. */
heddle_status heddle_session_replay(heddle_session *session, const heddle_lists *lists);

/* ---- documents as files ---------------------------------------------------------------------- */

/* In models with a shared state whose windows and positions restart at documents, the rows of a document
 * depend on its own tokens alone. They are written once and mounted into any session, in any company,
 * without reading the document again; answers equal those after reading it there, up to rounding. */
typedef struct heddle_document heddle_document;
/* Reads ids, which begin with the model's document token, and writes their rows. options (may be NULL): KV
 * type, layout and page_shift, which must be those of the sessions that mount the file. A file that is there is
 * replaced if it is a document's (INVALID: something else). */
heddle_status heddle_document_encode(heddle_engine *engine, const heddle_session_options *options,
                                     const int32_t *ids, int64_t n_ids, const char *path,
                                     heddle_progress_fn progress, void *user);
/* Maps the file; header, tokens and the table of checksums are verified now, index keys and rows page by
 * page when they are first read: a step that finds one damaged takes no token (FORMAT), and so every later
 * one until the document is unmounted. INVALID when another model wrote it. */
heddle_status heddle_document_open(heddle_document **out, const heddle_engine *engine, const char *path);
void heddle_document_close(heddle_document *document);        /* sessions that mounted it keep the mapping */
int64_t heddle_document_len(const heddle_document *document); /* tokens */
/* Of its tokens: equal for all files of one text, whatever they are called and whichever machine or mode made their
 * rows. 0: NULL. */
uint64_t heddle_document_sum(const heddle_document *document);
/* Every checksum of the file; needs no model. */
heddle_status heddle_document_verify(const char *path, int64_t *n_tokens, int64_t *n_pages);
/* The document's tokens follow the session's, from the next KV page on; *first_token is the first's number.
 * What is read next must begin a document. There are no logits until then. A document may be mounted several times, and
 * then counts so often in every softmax; to unmount or forbid one of them leaves the others. */
heddle_status heddle_session_mount(heddle_session *session, const heddle_document *document,
                                   int64_t *first_token);
/* No row reads the document again; tokens after it keep their numbers, and what they are made of never
 * depended on it. */
heddle_status heddle_session_unmount(heddle_session *session, int64_t first_token);
/* No row reads these tokens again (global attention; a document's own window still does). */
heddle_status heddle_session_forbid(heddle_session *session, int64_t first_token, int64_t n_tokens);

void heddle_session_cancel(heddle_session *session); /* from any thread: the call in flight stops */

typedef struct heddle_stats {
    uint32_t struct_size;
    int64_t n_prefill_tokens, n_decode_tokens; /* by route: of extend and sync, of decode */
    double prefill_s, decode_s;
    int64_t kv_bytes, kv_peak_bytes, workspace_bytes;
    /* K, V bytes read by decode steps, and what a dense plan would have read for the same rows. */
    double decode_kv_bytes_read, decode_kv_bytes_dense;
    double decode_tokens_read; /* mean over layers and steps of the tokens a layer attended to */
    /* The same of rows that were read under plan_governs_all and whose logits were wanted. Both count the
     * lists as they were made, where a share or a threshold bounds them too. */
    double scored_kv_bytes_read, scored_kv_bytes_dense;
} heddle_stats;
void heddle_session_stats(const heddle_session *session, heddle_stats *stats);
void heddle_session_stats_reset(heddle_session *session);
/* The share of dense's K, V (and summary) bytes that the plan's decode route reads for the rows
 * first..last-1 of a sequence, summed over layers and rows; bytes read twice count twice. Where the plan
 * evicts, as if every row came after a prompt's end. */
heddle_status heddle_plan_share_read(const heddle_engine *engine, const heddle_plan *plan, int64_t first_row,
                                     int64_t last_row, double *share);
/* *evicts: 1 where the plan's retain set drops rows of this model's global layers, else 0. */
heddle_status heddle_plan_evicts(const heddle_engine *engine, const heddle_plan *plan, int *evicts);
/* What the plan's decode route reads for the row at `position` (it sees position + 1 tokens), summed over
 * layers; kv_type NULL = "f16". For cost models: each has a price of its own. */
typedef struct heddle_plan_reads {
    uint32_t struct_size;
    double dense_bytes;   /* K and V in their order: dense passes, windows of the model, observing passes */
    double listed_bytes;  /* K and V through a list */
    double summary_bytes; /* of which scores are made, and means that stand for what a list leaves out */
    double scores;        /* that lists are chosen from */
} heddle_plan_reads;
heddle_status heddle_plan_count_reads(const heddle_engine *engine, const heddle_plan *plan,
                                      const char *kv_type, int64_t position, heddle_plan_reads *reads);

/* Whose list each KV head of each layer reads in the plan's decode route: owners, lists [n_layers, n_kv_heads] are
 * the layer that makes it and which of that layer's lists it is (heddle_tap_row.list); -1 and -1 where it reads
 * none: everything, the model's own window, or a state. */
heddle_status heddle_plan_lists_read(const heddle_engine *engine, const heddle_plan *plan, int32_t *owners,
                                     int32_t *lists);

/* ---- batches --------------------------------------------------------------------------------- */

typedef struct heddle_batch heddle_batch;
typedef struct heddle_batch_item {
    /* made with the same engine, plan and options as the batch; chunk_rows may differ, and the
     * context may be smaller where the plan's refresh is 1 */
    heddle_session *session;
    const int32_t *ids; /* [n_ids >= 1] to append in this step */
    int64_t n_ids;
    /* [n_ids] for token trees: 1 = row i sees new row j ([n_ids, n_ids]); NULL = causal. UNSUPPORTED where
     * layers keep a state */
    const uint8_t *mask;
    /* 0: generated tokens, by the decode route; 1: a prompt's end, 2: a prompt's part before its end, by
     * the prefill route (the difference matters to plans that evict at the end of a prompt) */
    int is_prompt;
} heddle_batch_item;
/* At most max_rows rows and max_sessions sessions a step. */
heddle_status heddle_batch_new(heddle_batch **out, heddle_engine *engine, const heddle_plan *plan,
                               const heddle_session_options *options, int32_t max_sessions, int64_t max_rows);
void heddle_batch_free(heddle_batch *batch);
/* One forward over all items; each session's logits are then those of its last new token. On failure no session
 * took a token; where a mounted document proved damaged (FORMAT), none has logits. */
heddle_status heddle_batch_step(heddle_batch *batch, const heddle_batch_item *items, int32_t n_items);

/* ---- sampling -------------------------------------------------------------------------------- */

typedef struct heddle_sampler heddle_sampler;
typedef struct heddle_logit_bias {
    int32_t id;
    float bias; /* added to the logit; -inf forbids */
} heddle_logit_bias;
typedef struct heddle_sampler_options {
    uint32_t struct_size;
    float temperature;         /* 0 = greedy, the default */
    int32_t sample_top_k;      /* 0 = all */
    float top_p;               /* 1 = all */
    float min_p;               /* 0 = all */
    float repetition_penalty;  /* 1 = none */
    int32_t repetition_window; /* last tokens looked at; default 64 */
    uint64_t seed;
    const heddle_logit_bias *bias; /* [n_bias], copied */
    int64_t n_bias;
} heddle_sampler_options;
void heddle_sampler_options_default(heddle_sampler_options *options);
heddle_status heddle_sampler_new(heddle_sampler **out, const heddle_engine *engine,
                                 const heddle_sampler_options *options);
void heddle_sampler_free(heddle_sampler *sampler);
/* From the session's last logits; the repetition penalty looks at the session's last tokens.
 * mask: bit i % 64 of mask[i / 64] set = token i allowed; NULL = all. */
heddle_status heddle_sample(heddle_sampler *sampler, const heddle_session *session, const uint64_t *mask,
                            int32_t *id);

/* ---- streaming text -------------------------------------------------------------------------- */

/* Turns sampled ids into text: holds back incomplete UTF-8 and what may become a stop string. */
typedef struct heddle_stream heddle_stream;
heddle_status heddle_stream_new(heddle_stream **out, const heddle_engine *engine, const char *const *stops,
                                int32_t n_stops);
void heddle_stream_free(heddle_stream *stream);
/* *text [*n_bytes]: what may be shown now (borrowed until the next call); *is_stopped: a stop string
 * was met (it is not part of the text) or the id ends the answer. */
heddle_status heddle_stream_push(heddle_stream *stream, int32_t id, const char **text, int64_t *n_bytes,
                                 int *is_stopped);
/* What was held back, at the end of an answer. */
heddle_status heddle_stream_flush(heddle_stream *stream, const char **text, int64_t *n_bytes);

#ifdef __cplusplus
}
#endif
#endif
