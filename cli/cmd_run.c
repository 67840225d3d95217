/* cmd_run.c - `heddle run`: reads documents, answers, and says what the answer cost.
 *
 * A turn is: ids of the documents and the prompt -> session holds them -> ids sampled one by one.
 * `history` is the truth of a conversation; the session is made to hold it (heddle_session_sync),
 * so a turn that was stopped while reading is simply taken out of the history again. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "mounts.h"
#include "term.h"

enum { DEFAULT_ANSWER_TOKENS = 512, CHAT_TOKENS = 8192, REWIND_TOKENS = 1024 };

typedef struct run_options {
    cli_common common;
    cli_texts files, mounts, never, prompts, stops, bias;
    const char *session_path, *record_path, *replay_path;
    bool is_chat, is_raw, is_special, shows_lead;
    int64_t n_answer, sample_top_k, repeat_window, seed;
    double temperature, top_p, min_p, repeat_penalty;
} run_options;

#define AT(field) offsetof(run_options, field)
static const cli_option run_rows[] = {
    {"file", 'f', CLI_TEXTS, "FILE", NULL, "a document to read, - = standard input; may be repeated",
     AT(files), 0, 0, 0},
    {"mount", 0, CLI_TEXTS, "FILE.kv", NULL,
     "a document that 'heddle encode' read, before all others; may be repeated", AT(mounts), 0, 0, 0},
    {"never", 0, CLI_TEXTS, "FILE.kv[:A-B]", NULL,
     "no answer reads this mounted document, or its tokens A to B; may be repeated", AT(never), 0, 0, 0},
    {"record", 0, CLI_TEXT, "FILE", NULL, "writes which tokens each row read", AT(record_path), 0, 0, 0},
    {"replay", 0, CLI_TEXT, "FILE", NULL, "reads the lists of such a file in place of scoring",
     AT(replay_path), 0, 0, 0},
    {"prompt", 'p', CLI_TEXTS, "TEXT", NULL,
     "the question, after the documents; several are asked one by one", AT(prompts), 0, 0, 0},
    {"chat", 0, CLI_FLAG, NULL, NULL, "go on with turns read from standard input, one a line", AT(is_chat), 0,
     0, 0},
    {"session", 0, CLI_TEXT, "FILE", NULL,
     "keeps what was read in FILE, written after reading and after each answer; a later run with the "
     "same model, plan and mounts reads only what is new, or the whole prompt again where its plan evicts rows",
     AT(session_path), 0, 0, 0},
    {"raw", 0, CLI_FLAG, NULL, NULL, "no chat template: the model continues the text", AT(is_raw), 0, 0, 0},
    {"special", 0, CLI_FLAG, NULL, NULL, "with --raw: special tokens spelled in the text count",
     AT(is_special), 0, 0, 0},
    {"tokens", 'n', CLI_INT, "TOKENS", NULL, "the longest answer (default: 512, or what -c leaves)",
     AT(n_answer), 1, 1 << 30, 0},
    {"temp", 0, CLI_NUM, "T", "0", "temperature; 0 takes the likeliest token", AT(temperature), 0, 100, 0},
    {"sample-top-k", 0, CLI_INT, "K", "0", "sample among the K likeliest; 0 = all", AT(sample_top_k), 0,
     1 << 30, 0},
    {"top-p", 0, CLI_NUM, "P", "1", "sample among the likeliest that hold P together", AT(top_p), 0, 1, 0},
    {"min-p", 0, CLI_NUM, "P", "0", "drop tokens under P times the likeliest", AT(min_p), 0, 1, 0},
    {"repeat-penalty", 0, CLI_NUM, "X", "1", "divides what was said lately; 1 = off", AT(repeat_penalty),
     0.01, 100, 0},
    {"repeat-window", 0, CLI_INT, "N", "64", "how many tokens back 'lately' is", AT(repeat_window), 0,
     1 << 30, 0},
    {"bias", 0, CLI_TEXTS, "ID=X", NULL, "adds X to the logit of a token; -inf forbids it; may be repeated",
     AT(bias), 0, 0, 0},
    {"stop", 0, CLI_TEXTS, "TEXT", NULL, "ends the answer before this text; may be repeated", AT(stops), 0, 0,
     0},
    {"show-lead", 0, CLI_FLAG, NULL, NULL, "each token's lead over the second likeliest, on standard error",
     AT(shows_lead), 0, 0, 0},
    {"seed", 0, CLI_INT, "N", "0", "of the random numbers", AT(seed), 0, 9007199254740992.0, 0},
    {0},
};
#undef AT

typedef struct run_state {
    const run_options *options;
    cli_setup setup;
    heddle_sampler *sampler;
    heddle_stream *stream;
    term_progress progress;
    heddle_lists *record, *replay;
    int64_t n_replayed; /* tokens of the history that are those of `replay` */
    cli_mounts mounts;
    cli_ids mounted; /* tokens of the session that mounts fill; history begins with them */
    cli_ids history;
    bool has_template, is_read; /* is_read: the last question was read to its end */
    bool is_unsaved;            /* the file of --session lacks what was read last: EXIT_RUNTIME, at the end */
    int64_t context, session_tokens; /* session_tokens: of --session's file; 0 = there is none yet */
} run_state;

/* ---- Ctrl-C ---- */

/* is_answering: there is something to stop, from the first question's texts to the last answer. */
static volatile sig_atomic_t is_answering, is_interrupted;

static void on_interrupt(int number)
{
    if (!is_answering || is_interrupted) { /* nothing to stop, or asked twice: end as usual */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    is_interrupted = 1;
}

static const char stopped_reading[] = "stopped by Ctrl-C while reading: there is no answer";
static const char stopped_turn[] =
    "stopped by Ctrl-C while reading: this turn, with its documents, is not part of the conversation";

static int on_progress(int64_t n_done, int64_t n_total, void *user)
{
    term_progress_show(user, n_done, n_total);
    return is_interrupted;
}

/* ---- texts to ids ---- */

static int add_turn(run_state *state, const cli_text *text)
{
    heddle_engine *engine = state->setup.engine;
    int32_t *ids = NULL;
    int64_t n = 0;
    heddle_status status;
    if (state->has_template) {
        const char *previous = state->history.n > state->mounted.n ? "assistant" : NULL;
        status = heddle_chat_turn(engine, previous, "user", text->data, text->n, 1, &ids, &n);
    } else {
        uint32_t flags = (state->history.n > state->mounted.n ? 0 : HEDDLE_TOKENIZE_BOS) |
                         (state->options->is_special ? HEDDLE_TOKENIZE_SPECIAL : 0);
        status = heddle_tokenize(engine, text->data, text->n, flags, &ids, &n);
    }
    return cli_ids_take(&state->history, status, ids, n);
}

/* Documents and prompt, a blank line between them. */
static int add_part(cli_text *text, const char *part, int64_t n)
{
    static const char blank_line[] = "\n\n";
    int64_t n_kept = text->n;
    while (n_kept && text->data[n_kept - 1] == '\n') n_kept--;
    bool is_ok = true;
    if (text->n) {
        text->n = n_kept;
        is_ok = cli_text_add(text, blank_line, 2);
    }
    if (is_ok && cli_text_add(text, part, n)) return 0;
    cli_note("heddle: no memory for the documents");
    return EXIT_RUNTIME;
}

static int read_documents(const run_options *options, cli_text *text)
{
    for (int i = 0; i < options->files.n; i++) {
        const char *path = options->files.items[i];
        cli_text file = {0};
        int code = cli_read_file(&file, path);
        if (!code && !file.n) code = cli_refuse("%s: is empty", strcmp(path, "-") ? path : "standard input");
        if (!code) code = add_part(text, file.data, file.n);
        cli_text_free(&file);
        if (code) return code;
    }
    return 0;
}

/* The history becomes the first turn: the documents, then question `i` of -p. */
static int ask(run_state *state, const cli_text *documents, int i)
{
    const cli_texts *prompts = &state->options->prompts;
    cli_text text = {0};
    int code = documents->n ? add_part(&text, documents->data, documents->n) : 0;
    if (!code && i < prompts->n)
        code = add_part(&text, prompts->items[i], (int64_t)strlen(prompts->items[i]));
    state->history.n = 0;
    if (!code) code = cli_ids_add(&state->history, state->mounted.ids, state->mounted.n);
    if (!code) code = add_turn(state, &text);
    if (!code && state->history.n == state->mounted.n) code = cli_refuse("the prompt is empty");
    cli_text_free(&text);
    return code;
}

/* ---- sampler, context ---- */

static int make_sampler(run_state *state)
{
    const run_options *options = state->options;
    heddle_sampler_options sampler;
    heddle_logit_bias bias[CLI_MAX_TEXTS];
    heddle_sampler_options_default(&sampler);
    for (int i = 0; i < options->bias.n; i++) {
        const char *text = options->bias.items[i];
        char *end = NULL;
        long id = strtol(text, &end, 10);
        if (end == text || *end != '=' || id < 0 || id >= state->setup.info.n_vocab) {
            return cli_refuse("run: --bias '%s': must be ID=X with an id in 0..%d", text,
                              state->setup.info.n_vocab - 1);
        }
        const char *number = end + 1;
        bias[i] = (heddle_logit_bias){.id = (int32_t)id, .bias = strtof(number, &end)};
        if (end == number || *end) return cli_refuse("run: --bias '%s': '%s' is not a number", text, number);
    }
    sampler.temperature = (float)options->temperature;
    sampler.sample_top_k = (int32_t)options->sample_top_k;
    sampler.top_p = (float)options->top_p;
    sampler.min_p = (float)options->min_p;
    sampler.repetition_penalty = (float)options->repeat_penalty;
    sampler.repetition_window = (int32_t)options->repeat_window;
    sampler.seed = (uint64_t)options->seed;
    sampler.bias = bias;
    sampler.n_bias = options->bias.n;
    heddle_status status = heddle_sampler_new(&state->sampler, state->setup.engine, &sampler);
    return status ? cli_fail(status) : 0;
}

/* -c, or what the first turn needs; an open chat gets what the model was trained on. */
static int choose_context(run_state *state, int64_t n_longest)
{
    const run_options *options = state->options;
    int64_t needed = n_longest + (options->n_answer ? options->n_answer : DEFAULT_ANSWER_TOKENS);
    char have[TERM_COUNT], limit[TERM_COUNT];
    state->context = options->common.context;
    if (state->context && n_longest > state->context) {
        return cli_refuse("the prompt has %s tokens, the context (-c) holds %s", term_count(have, n_longest),
                          term_count(limit, state->context));
    }
    if (state->context) return 0;
    state->context = needed > state->session_tokens ? needed : state->session_tokens;
    needed = state->context;
    if (!options->is_chat) return 0;
    int64_t trained = state->setup.info.train_context;
    int64_t chat = trained ? trained : CHAT_TOKENS;
    heddle_memory memory = {.struct_size = sizeof memory};
    for (; chat > needed; chat /= 2) {
        heddle_status status = heddle_memory_plan(state->setup.engine, state->setup.plan,
                                                  &state->setup.session_options, chat, &memory);
        if (!status && memory.total_bytes <= memory.available_bytes) break;
    }
    if (chat > needed) state->context = chat;
    return 0;
}

static void show_memory(const run_state *state)
{
    heddle_memory memory = {.struct_size = sizeof memory};
    if (heddle_memory_plan(state->setup.engine, state->setup.plan, &state->setup.session_options,
                           state->context, &memory)) {
        return;
    }
    char weights[TERM_COUNT], kv[TERM_COUNT], work[TERM_COUNT], free_now[TERM_COUNT], context[TERM_COUNT];
    const char *available = memory.available_bytes == INT64_MAX
                                ? "the system does not say what"
                                : term_bytes(free_now, (double)memory.available_bytes);
    cli_note("context %s tokens: weights %s, KV up to %s, workspace %s; %s %s free",
             term_count(context, state->context), term_bytes(weights, (double)memory.weight_bytes),
             term_bytes(kv, (double)memory.kv_bytes), term_bytes(work, (double)memory.workspace_bytes),
             available, memory.available_bytes == INT64_MAX ? "is" : "are");
}

/* ---- --session: what was read, in a file ---- */

/* Before memory is planned: is there a file, whole, and how much does it hold? */
static int find_session(run_state *state)
{
    const char *path = state->options->session_path;
    heddle_session_file_info info = {.struct_size = sizeof info};
    if (!path) return 0;
    state->setup.session_options.rewind_tokens = REWIND_TOKENS;
    if (access(path, F_OK)) return 0; /* the first run makes it */
    heddle_status status = heddle_session_file_inspect(path, &info);
    state->session_tokens = info.n_tokens;
    return status ? cli_fail(status) : 0;
}

static int load_session(run_state *state)
{
    const char *path = state->options->session_path;
    char count[TERM_COUNT];
    if (!state->session_tokens) return 0;
    heddle_status status = heddle_session_load(state->setup.session, path);
    if (status) return cli_fail(status);
    cli_note("session %s: %s tokens", path, term_count(count, state->session_tokens));
    return 0;
}

/* False after a message: a full disk, say, which costs nobody the answer to what was read. */
static bool save_session(run_state *state)
{
    const char *path = state->options->session_path;
    heddle_status status = path ? heddle_session_save(state->setup.session, path) : HEDDLE_OK;
    state->is_unsaved = status != HEDDLE_OK;
    if (status) (void)cli_fail(status);
    return !state->is_unsaved;
}

/* The session holds `ids`; what was new to it is in the file unless *is_unsaved, also when Ctrl-C stopped the
 * reading. (One token is always read, for its logits.) */
static heddle_status read_ids(run_state *state, const cli_ids *ids, bool *is_unsaved)
{
    int64_t n_kept = 0;
    char kept[TERM_COUNT], all[TERM_COUNT];
    term_progress_start(&state->progress, "reading");
    heddle_status status = heddle_session_sync(state->setup.session, ids->ids, ids->n, &n_kept, on_progress,
                                               &state->progress);
    term_clear_progress();
    if (status && status != HEDDLE_E_CANCELLED) return status;
    if (state->options->session_path && n_kept)
        cli_note("session: %s of the prompt's %s tokens were read before", term_count(kept, n_kept),
                 term_count(all, ids->n));
    *is_unsaved = heddle_session_len(state->setup.session) > n_kept + 1 && !save_session(state);
    return status;
}

/* ---- the answer ---- */

static void write_text(const char *text, int64_t n, bool *ends_line)
{
    if (n <= 0) return;
    term_clear_progress();
    fwrite(text, 1, (size_t)n, stdout);
    fflush(stdout);
    *ends_line = text[n - 1] == '\n';
}

/* How far the best logit stands above the second: how sure a greedy token is. */
static void show_lead(const run_state *state)
{
    const float *logits = heddle_session_logits(state->setup.session);
    int32_t best = 0;
    float second = -INFINITY;
    for (int32_t i = 1; i < state->setup.info.n_vocab; i++) {
        if (logits[i] > logits[best]) {
            second = logits[best];
            best = i;
        } else if (logits[i] > second) {
            second = logits[i];
        }
    }
    char *text = NULL;
    if (heddle_detokenize(state->setup.engine, &best, 1, 1, &text, NULL)) return;
    for (char *c = text; *c; c++) {
        if (*c == '\n') *c = ' ';
    }
    cli_note("lead %.3f of token %d '%s'", logits[best] - second, best, text);
    heddle_string_free(text);
}

/* Lists are of the tokens that they were made of: where the history leaves these, replaying ends. */
static void follow_replay(run_state *state)
{
    const int32_t *ids;
    if (!state->replay) return;
    int64_t n = heddle_lists_tokens(state->replay, &ids), at = state->n_replayed;
    if (at > state->history.n) at = state->history.n; /* a turn that did not happen */
    while (at < n && at < state->history.n && ids[at] == state->history.ids[at]) at++;
    state->n_replayed = at;
    if (at == n || at == state->history.n) return; /* rows behind the record's end make their own */
    char place[TERM_COUNT];
    cli_note("%s: token %s is not the recorded one: from here lists are made anew",
             state->options->replay_path, term_count(place, at));
    (void)heddle_session_replay(state->setup.session, NULL);
    heddle_lists_free(state->replay);
    state->replay = NULL;
}

/* Samples and shows tokens until something ends the answer; *why says what. 0 or an exit code. */
static int generate(run_state *state, const char **why, bool *ends_line)
{
    heddle_session *session = state->setup.session;
    int64_t limit = state->options->n_answer ? state->options->n_answer : DEFAULT_ANSWER_TOKENS;
    if (state->options->common.context && !state->options->n_answer) limit = INT64_MAX;
    *why = NULL;
    for (int64_t n = 0;; n++) {
        int32_t id;
        const char *text;
        int64_t n_bytes;
        int is_stopped;
        if (is_interrupted)
            *why = "stopped by Ctrl-C";
        else if (n == limit)
            *why = "the answer is longer than -n allows";
        if (*why) return 0;
        if (state->options->shows_lead) show_lead(state);
        heddle_status status = heddle_sample(state->sampler, session, NULL, &id);
        if (!status) status = heddle_stream_push(state->stream, id, &text, &n_bytes, &is_stopped);
        if (status) return cli_fail(status);
        write_text(text, n_bytes, ends_line);
        bool is_end = heddle_token_is_end(state->setup.engine, id);
        int code = is_end ? 0 : cli_ids_add(&state->history, &id, 1);
        if (code || is_stopped) return code;
        follow_replay(state);
        if (heddle_session_len(session) >= state->context) {
            *why = "the context is full; a larger one is asked for with -c";
            return 0;
        }
        if (n + 1 == limit) continue;
        status = heddle_session_decode(session, &id, 1);
        if (status) return cli_fail(status);
    }
}

static double per_second(int64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

/* "prefill 6,912 tokens in 3 s, 2000.0 tokens/s (prefill route of plan anchor: dense)" */
static void show_speed(const run_state *state, int is_decode, int64_t n, double seconds)
{
    const char *word = is_decode ? "decode" : "prefill";
    const char *plan = state->setup.plan ? heddle_plan_name(state->setup.plan) : "dense";
    char count[TERM_COUNT], took[TERM_COUNT], *route = NULL;
    heddle_status status = heddle_plan_route(state->setup.plan, state->setup.engine, is_decode, &route);
    if (n && !status)
        cli_note("%s %s tokens in %s, %.1f tokens/s (%s route of plan %s: %s)", word, term_count(count, n),
                 term_seconds(took, seconds), per_second(n, seconds), word, plan, route);
    heddle_string_free(route);
}

static void show_figures(const run_state *state)
{
    heddle_stats stats = {.struct_size = sizeof stats};
    heddle_session_stats(state->setup.session, &stats);
    char kv[TERM_COUNT], peak[TERM_COUNT];
    show_speed(state, 0, stats.n_prefill_tokens, stats.prefill_s);
    show_speed(state, 1, stats.n_decode_tokens, stats.decode_s);
    cli_note("KV %s, peak memory %s", term_bytes(kv, (double)stats.kv_bytes),
             term_bytes(peak, (double)term_peak_bytes()));
    if (!stats.n_decode_tokens) return;
    char tokens[TERM_COUNT], length[TERM_COUNT], bytes[TERM_COUNT];
    double dense = stats.decode_kv_bytes_dense;
    cli_note("a decode step read %s of %s tokens in the mean layer: %s of KV, %.1f %% of what dense reads",
             term_count(tokens, (int64_t)(stats.decode_tokens_read + 0.5)),
             term_count(length, heddle_session_len(state->setup.session)),
             term_bytes(bytes, stats.decode_kv_bytes_read / (double)stats.n_decode_tokens),
             dense > 0 ? 100 * stats.decode_kv_bytes_read / dense : 100.0);
}

/* Reads history into the session and answers. Ctrl-C ends either, not the program: is_read says
 * whether it came to an answer. 0 or an exit code. */
static int answer(run_state *state)
{
    const char *why = NULL, *text;
    bool ends_line = true, is_unsaved = false;
    int64_t n_bytes;
    heddle_session_stats_reset(state->setup.session);
    int code = 0;
    heddle_stream_free(state->stream);
    heddle_status status = heddle_stream_new(&state->stream, state->setup.engine, state->options->stops.items,
                                             state->options->stops.n);
    if (!status) status = read_ids(state, &state->history, &is_unsaved);
    state->is_read = !status;
    if (status && status != HEDDLE_E_CANCELLED) return cli_fail(status);
    if (status)
        why = state->options->is_chat ? stopped_turn : stopped_reading;
    else
        code = generate(state, &why, &ends_line);
    if (!heddle_stream_flush(state->stream, &text, &n_bytes)) write_text(text, n_bytes, &ends_line);
    if (!ends_line) write_text("\n", 1, &ends_line);
    if (why) cli_note("heddle: %s", why);
    show_figures(state);
    is_interrupted = 0; /* it has done its work */
    if (!code && state->is_read && !is_unsaved) (void)save_session(state);
    if (!code && ferror(stdout)) code = cli_finish_output();
    return code;
}

/* ---- turns ---- */

static int attach_lists(run_state *state)
{
    const run_options *options = state->options;
    heddle_status status = HEDDLE_OK;
    if (options->record_path) {
        status = heddle_lists_new(&state->record, state->setup.engine);
        if (!status) status = heddle_session_record(state->setup.session, state->record);
    }
    if (!status && options->replay_path) {
        status = heddle_lists_load(&state->replay, state->setup.engine, options->replay_path);
        if (!status) status = heddle_session_replay(state->setup.session, state->replay);
    }
    return status ? cli_fail(status) : 0;
}

/* Before the first question is read: the lists to be replayed are of this very one. */
static int check_replay(run_state *state)
{
    if (!state->replay) return 0;
    heddle_status status = heddle_lists_check(state->replay, state->setup.session, state->history.ids,
                                              state->history.n);
    state->n_replayed = state->history.n;
    return status ? cli_fail(status) : 0;
}

static int save_record(const run_state *state)
{
    if (!state->record) return 0;
    heddle_status status = heddle_lists_set_tokens(state->record, state->setup.session);
    if (!status) status = heddle_lists_save(state->record, state->options->record_path);
    char count[TERM_COUNT];
    if (status) {
        (void)cli_fail(status);
        return EXIT_RUNTIME; /* the input was good */
    }
    cli_note("%s: %s lists", state->options->record_path,
             term_count(count, heddle_lists_count(state->record)));
    return 0;
}

/* The mounts' tokens: so many at first, what they are once they are mounted. */
static int note_mounted(run_state *state)
{
    state->mounted.n = 0;
    if (state->setup.session)
        return cli_ids_add(&state->mounted, heddle_session_ids(state->setup.session),
                           heddle_session_len(state->setup.session));
    static const int32_t unknown[256];
    int code = 0;
    for (int64_t n = state->mounts.n_tokens; n > 0 && !code; n -= 256)
        code = cli_ids_add(&state->mounted, unknown, n < 256 ? n : 256);
    return code;
}

/* Sizes the context by the longest question, then makes session, sampler and stream. */
static int prepare(run_state *state, const cli_text *documents)
{
    const run_options *options = state->options;
    int64_t n_longest = 0;
    int code = cli_mounts_open(&state->mounts, &state->setup, &options->mounts);
    if (!code) code = note_mounted(state);
    for (int i = 0; (!i || i < options->prompts.n) && !code; i++) {
        code = ask(state, documents, i);
        if (state->history.n > n_longest) n_longest = state->history.n;
    }
    if (!code) code = find_session(state);
    if (!code) code = choose_context(state, n_longest);
    if (code) return code;
    cli_warn_trained(&state->setup, n_longest);
    show_memory(state);
    code = cli_open_session(&state->setup, state->context);
    if (!code) code = cli_mounts_mount(&state->mounts, &state->setup);
    if (!code && state->mounts.n) code = note_mounted(state);
    if (!code) code = cli_mounts_never(&state->mounts, &state->setup, &options->mounts, &options->never);
    if (!code) code = load_session(state); /* over the same mounts */
    if (!code) code = attach_lists(state);
    return code ? code : make_sampler(state);
}

/* The next line of standard input without its end; false at the end of input. */
static bool read_turn(cli_text *text)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    bool is_read = false;
    do {
        if (isatty(STDIN_FILENO)) fputs("> ", stderr);
        n = getline(&line, &capacity, stdin);
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
    } while (n == 0);
    text->n = 0;
    if (n > 0) is_read = cli_text_add(text, line, n);
    free(line);
    return is_read;
}

static int chat(run_state *state)
{
    int code = 0;
    cli_text text = {0};
    while (!code) {
        is_answering = 0; /* at the prompt Ctrl-C ends the program, as usual */
        if (!read_turn(&text)) break;
        is_answering = 1;
        int64_t n_before = state->history.n;
        code = add_turn(state, &text);
        if (code) break;
        if (state->history.n > state->context) {
            char limit[TERM_COUNT];
            state->history.n = n_before;
            cli_note("heddle: this turn does not fit into the context of %s tokens; -c asks for more",
                     term_count(limit, state->context));
            continue;
        }
        follow_replay(state);
        code = answer(state);
        if (!code && !state->is_read) state->history.n = n_before; /* the turn did not happen */
    }
    cli_text_free(&text);
    return code;
}

static int check_options(const run_options *options)
{
    if (!options->files.n && !options->prompts.n && !options->is_chat) {
        return cli_refuse("run: nothing to answer: -f FILE, -p TEXT or --chat");
    }
    if ((options->record_path || options->replay_path) && options->prompts.n > 1)
        return cli_refuse("run: --record and --replay go with one -p");
    if (options->never.n && !options->mounts.n)
        return cli_refuse("run: --never: names tokens of documents that --mount reads, and there is none");
    if (options->is_special && !options->is_raw) return cli_refuse("run: --special goes with --raw");
    if (options->is_chat && options->prompts.n > 1)
        return cli_refuse("run: --chat begins with one -p at most");
    int n_stdin = 0;
    for (int i = 0; i < options->files.n; i++) n_stdin += !strcmp(options->files.items[i], "-");
    if (n_stdin > 1) return cli_refuse("run: -f - is given twice; standard input can be read once");
    if (n_stdin && options->is_chat)
        return cli_refuse("run: standard input is read for --chat, not for -f -");
    return 0;
}

/* A file that is written at the end: its folder is there and takes files, which is better said before all the work. */
static int check_writable(const char *path)
{
    if (!path) return 0;
    const char *slash = strrchr(path, '/');
    size_t n = slash == path ? 1 : slash ? (size_t)(slash - path) : 0;
    char *folder = n ? strndup(path, n) : strdup(".");
    if (!folder) return cli_fail(HEDDLE_E_NOMEM);
    int code = access(folder, W_OK | X_OK) ? cli_refuse("%s: cannot be written: %s", path, strerror(errno))
                                           : 0;
    free(folder);
    return code;
}

static int check_template(run_state *state)
{
    const char *chat_kind = state->setup.info.chat;
    state->has_template = !state->options->is_raw && strcmp(chat_kind, "none") != 0;
    if (state->has_template && !strcmp(chat_kind, "unknown")) {
        return cli_refuse(
            "%s: its chat template is not one that is known; --raw continues the text without one",
            state->options->common.model);
    }
    return 0;
}

static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* Reads what all questions begin with into a session of its own; each question then goes on from a
 * fork of it, so that the documents are read once whatever a sliding cache has dropped since. */
static int read_common(run_state *state, const cli_text *documents)
{
    cli_ids common = {0};
    bool is_unsaved;
    int code = ask(state, documents, 0);
    if (!code) code = cli_ids_add(&common, state->history.ids, state->history.n);
    for (int i = 1; i < state->options->prompts.n && !code; i++) {
        code = ask(state, documents, i);
        int64_t n = 0, n_most = common.n < state->history.n ? common.n : state->history.n;
        while (n < n_most && common.ids[n] == state->history.ids[n]) n++;
        common.n = n;
    }
    if (!code && common.n > state->mounted.n) {
        heddle_status status = read_ids(state, &common, &is_unsaved);
        if (status == HEDDLE_E_CANCELLED) {
            cli_note("heddle: %s", stopped_reading);
            code = EXIT_RUNTIME;
        } else if (status) {
            code = cli_fail(status);
        }
        show_figures(state);
    }
    cli_ids_free(&common);
    return code;
}

/* The questions of -p one by one, each after the documents alone; then, with --chat, turns. A question
 * that Ctrl-C kept from being read has no answer: EXIT_RUNTIME, once the others have theirs. */
static int converse(run_state *state, const cli_text *documents)
{
    const cli_texts *prompts = &state->options->prompts;
    heddle_session *base = NULL;
    bool is_any_unread = false;
    is_answering = 1;
    int code = prompts->n > 1 ? read_common(state, documents) : 0;
    if (prompts->n > 1) base = state->setup.session;
    for (int i = 0; (!i || i < prompts->n) && !code; i++) {
        if (base) {
            cli_note("question %d of %d: %s", i + 1, prompts->n, prompts->items[i]);
            if (state->setup.session != base) heddle_session_free(state->setup.session);
            heddle_status status = heddle_session_fork(&state->setup.session, base);
            if (status) code = cli_fail(status);
        }
        if (!code) code = ask(state, documents, i);
        if (!code) code = check_replay(state);
        if (!code) code = answer(state);
        is_any_unread |= !state->is_read;
    }
    if (!code && state->options->is_chat) {
        if (is_any_unread) state->history.n = state->mounted.n; /* the first turn did not happen */
        code = chat(state);
    } else if (!code && is_any_unread) {
        code = EXIT_RUNTIME;
    }
    is_answering = 0;
    if (base && state->setup.session != base) heddle_session_free(base);
    return code;
}

static int run(const void *command_options)
{
    run_state state = {.options = command_options};
    const char *record_path = state.options->record_path;
    cli_text documents = {0};
    int code = check_options(state.options);
    if (!code) code = check_writable(state.options->session_path);
    if (!code) code = check_writable(record_path);
    if (!code && record_path)
        code = cli_check_kind(record_path, "record of lists", cli_file_is(record_path, CLI_LISTS_BEGINS));
    if (!code) code = read_documents(state.options, &documents);
    if (!code) code = cli_open(&state.setup, &state.options->common);
    if (!code) code = check_template(&state);
    if (code) goto done;
    char bytes[TERM_COUNT];
    const char *name = state.setup.info.name;
    cli_note("%s: %s, %d layers, %s mapped", name && *name ? name : state.options->common.model,
             state.setup.info.arch, state.setup.info.n_layers,
             term_bytes(bytes, (double)state.setup.info.file_bytes));
    catch_interrupts();
    if (state.options->is_chat && !state.options->prompts.n) { /* the first turn is typed */
        cli_text line = {0};
        bool is_read = read_turn(&line);
        if (is_read) code = add_part(&documents, line.data, line.n);
        cli_text_free(&line);
        if (!is_read) goto done;
    }
    if (!code) code = prepare(&state, &documents);
    if (!code) code = converse(&state, &documents);
    if (!code) code = save_record(&state);
    if (!code && state.is_unsaved) code = EXIT_RUNTIME;
done:
    heddle_stream_free(state.stream);
    heddle_sampler_free(state.sampler);
    cli_close(&state.setup);
    cli_text_free(&documents);
    heddle_lists_free(state.record);
    heddle_lists_free(state.replay);
    cli_mounts_close(&state.mounts);
    cli_ids_free(&state.mounted);
    cli_ids_free(&state.history);
    return code;
}

const cli_command cmd_run = {
    .name = "run",
    .usage = "-m MODEL [-f FILE]... [-p TEXT] [options]",
    .summary = "Answer from documents, or continue a text",
    .about =
        "The documents in the order given, then the prompt, are one turn of the user in the model's own\n"
        "chat template; a model without one continues the text. The answer alone goes to standard output.\n"
        "Ctrl-C stops the answer, not the program; while the prompt is still read, it stops the question: exit\n"
        "code 1 without --chat.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_PLAN | CLI_GROUP_CONTEXT | CLI_GROUP_SESSION,
    .options = run_rows,
    .options_size = sizeof(run_options),
    .max_words = 0,
    .run = run,
};
