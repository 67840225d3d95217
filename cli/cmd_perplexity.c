/* cmd_perplexity.c - `heddle perplexity`: how well a text is predicted, by llama.cpp's protocol.
 *
 * The text is tokenised once, with begin-of-text as the model file says, and cut into chunks of -c
 * tokens (an incomplete last one is left out). In each chunk the first token is replaced by
 * begin-of-text where the model adds one. Row r is the position whose logits predict token r + 1:
 *
 *     rows  0 ........ from ............... c-2   c-1
 *           not scored |  scored: -log p(r+1)  |  predicts nothing
 *
 * `from` is c / 2, or --from. Perplexity is exp(mean). Every row takes the plan's decode route; with --prompt P
 * the first P tokens of a chunk are a prompt, by the prefill route, and the others are generated one by one, by
 * the decode route. Rows of a prompt that share a list saw it made of each other's queries, those of later
 * tokens too: what tokens after a prompt cost is the figure without that.
 * --against: another file of the same model reads the same rows densely; beside the perplexity stand
 * the mean of KL(its distribution || ours) and how often both find the same token the likeliest. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "term.h"

enum { DEFAULT_CONTEXT = 512 };

typedef struct perplexity_options {
    cli_common common;
    const char *file, *nll_file, *against;
    int64_t from, n_chunks, n_prompt;
} perplexity_options;

#define AT(field) offsetof(perplexity_options, field)
static const cli_option perplexity_rows[] = {
    {"file", 'f', CLI_TEXT, "FILE", NULL, "the text, - = standard input", AT(file), 0, 0, 0},
    {"from", 0, CLI_INT, "POSITION", "-1", "score rows from here on in each chunk; -1 = the second half",
     AT(from), -1, 1 << 30, 0},
    {"prompt", 0, CLI_INT, "TOKENS", "-1",
     "the first TOKENS of each chunk take the plan's prefill route; -1 = every row its decode route",
     AT(n_prompt), -1, 1 << 30, 0},
    {"nll", 0, CLI_TEXT, "FILE", NULL,
     "write each row's -log p as float32, chunk after chunk; NaN: not scored", AT(nll_file), 0, 0, 0},
    {"against", 0, CLI_TEXT, "MODEL", NULL,
     "another file of the same model, say the unquantised one: the mean KL from it", AT(against), 0, 0, 0},
    {"chunks", 0, CLI_INT, "N", "0", "stop after N chunks; 0 = all", AT(n_chunks), 0, 1 << 30, 0},
    {0},
};
#undef AT

typedef struct running_mean {
    double sum, sum_of_squares;
    int64_t n;
} running_mean;

static double perplexity_of(const running_mean *mean)
{
    return exp(mean->sum / (double)mean->n);
}

/* The standard error of the perplexity, tokens taken as independent. */
static double error_of(const running_mean *mean)
{
    double n = (double)mean->n, m = mean->sum / n;
    double variance = mean->n > 1 ? (mean->sum_of_squares / n - m * m) / (n - 1) : 0;
    return perplexity_of(mean) * sqrt(variance > 0 ? variance : 0);
}

static void add_nll(running_mean *mean, double nll)
{
    mean->sum += nll;
    mean->sum_of_squares += nll * nll;
    mean->n++;
}

static double log_sum_exp(const float *x, int32_t n, int32_t *best)
{
    double sum = 0;
    *best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[*best]) *best = i;
    for (int32_t i = 0; i < n; i++) sum += exp((double)x[i] - x[*best]);
    return x[*best] + log(sum);
}

/* Tokens [first, n) one by one, by the decode route. */
static heddle_status score_generated(heddle_session *session, const int32_t *ids, int64_t first, int64_t n,
                                     int32_t n_vocab, float *nll, term_progress *progress)
{
    heddle_status status = HEDDLE_OK;
    int32_t best;
    for (int64_t i = first; i < n && !status; i++) {
        const float *logits = heddle_session_logits(session);
        nll[i] = i ? (float)(log_sum_exp(logits, n_vocab, &best) - logits[ids[i]]) : NAN;
        if (i + 1 < n) status = heddle_session_decode(session, ids + i, 1);
        if (i % 64 == 0) term_progress_show(progress, i, n);
    }
    return status;
}

/* n_prompt -1: every row by the decode route. */
static int score_chunk(heddle_session *session, const int32_t *ids, int64_t n, int64_t from, int64_t n_prompt,
                       int32_t n_vocab, running_mean *mean, cli_text *out)
{
    float *nll = malloc((size_t)n * sizeof *nll);
    if (!nll) {
        cli_note("heddle: no memory for the scores of %" PRId64 " tokens", n);
        return EXIT_RUNTIME;
    }
    term_progress progress;
    int64_t n_kept = 0;
    term_progress_start(&progress, "scoring");
    heddle_status status = HEDDLE_OK;
    if (heddle_session_len(session)) status = heddle_session_truncate(session, 0, &n_kept);
    int64_t n_read = n_prompt < 0 || n_prompt > n ? n : n_prompt;
    if (!status)
        status = heddle_session_score(session, ids, n_read, from + 1, nll, term_on_progress, &progress);
    if (!status && n_read < n) status = score_generated(session, ids, n_read, n, n_vocab, nll, &progress);
    term_clear_progress();
    for (int64_t i = from + 1; i < n && !status; i++) add_nll(mean, nll[i]);
    bool is_kept = !out || status || cli_text_add(out, nll, n * (int64_t)sizeof *nll);
    free(nll);
    if (status) return cli_fail(status);
    if (is_kept) return 0;
    cli_note("heddle: no memory for the scores of %" PRId64 " tokens", n);
    return EXIT_RUNTIME;
}

/* ---- against another file ---- */

enum { BLOCK_ROWS = 64 }; /* rows of reference logits held at once */

typedef struct comparison {
    heddle_engine *engine;
    heddle_session *session; /* of the reference; NULL = nothing to compare with */
    int32_t n_vocab;
    float *logits;      /* [BLOCK_ROWS, n_vocab] the reference's */
    const int32_t *ids; /* of the chunk, from the block's first row on */
    int64_t n_left;     /* of them */
    double kl;
    int64_t n_equal, n;
    running_mean *mean;
} comparison;

static int keep_row(int64_t row, const float *logits, void *user)
{
    comparison *at = user;
    memcpy(at->logits + row * at->n_vocab, logits, (size_t)at->n_vocab * sizeof *logits);
    return 0;
}

static int compare_row(int64_t row, const float *logits, void *user)
{
    comparison *at = user;
    const float *reference = at->logits + row * at->n_vocab;
    int32_t best, best_reference;
    if (row + 1 >= at->n_left) return 0; /* the last row predicts nothing */
    double lse = log_sum_exp(logits, at->n_vocab, &best), kl = 0;
    double lse_reference = log_sum_exp(reference, at->n_vocab, &best_reference);
    for (int32_t i = 0; i < at->n_vocab; i++) {
        double log_p = reference[i] - lse_reference;
        kl += exp(log_p) * (log_p - (logits[i] - lse));
    }
    add_nll(at->mean, lse - logits[at->ids[row + 1]]);
    at->kl += kl;
    at->n_equal += best == best_reference;
    at->n++;
    return 0;
}

static int compare_chunk(heddle_session *session, comparison *at, const int32_t *ids, int64_t n, int64_t from,
                         running_mean *mean)
{
    term_progress progress;
    int64_t n_kept;
    heddle_status status = heddle_session_truncate(session, 0, &n_kept);
    if (!status) status = heddle_session_truncate(at->session, 0, &n_kept);
    at->mean = mean;
    term_progress_start(&progress, "comparing");
    for (int64_t row = 0; row < n && !status; row += BLOCK_ROWS) {
        int64_t n_rows = n - row < BLOCK_ROWS ? n - row : BLOCK_ROWS, first = from > row ? from - row : 0;
        at->ids = ids + row;
        at->n_left = n - row;
        status = heddle_session_each_logits(at->session, ids + row, n_rows, first, keep_row, at);
        if (!status) status = heddle_session_each_logits(session, ids + row, n_rows, first, compare_row, at);
        term_progress_show(&progress, row + n_rows, n);
    }
    term_clear_progress();
    return status ? cli_fail(status) : 0;
}

static int open_comparison(comparison *at, const cli_setup *setup, const perplexity_options *options,
                           int64_t context)
{
    heddle_engine_options engine_options;
    heddle_session_options session_options = setup->session_options;
    heddle_model_info info = {.struct_size = sizeof info};
    heddle_engine_options_default(&engine_options);
    engine_options.n_threads = (int32_t)options->common.n_threads;
    session_options.context_tokens = context;
    heddle_status status = heddle_engine_open(&at->engine, options->against, &engine_options);
    if (status) return cli_fail(status);
    heddle_engine_model_info(at->engine, &info);
    if (info.n_vocab != setup->info.n_vocab)
        return cli_refuse("%s: has %d tokens and %s %d; --against needs the same model", options->against,
                          info.n_vocab, options->common.model, setup->info.n_vocab);
    at->n_vocab = info.n_vocab;
    at->logits = malloc((size_t)BLOCK_ROWS * (size_t)info.n_vocab * sizeof *at->logits);
    if (!at->logits) {
        cli_note("heddle: no memory for the logits of %d rows", BLOCK_ROWS);
        return EXIT_RUNTIME;
    }
    status = heddle_session_new(&at->session, at->engine, NULL, &session_options);
    return status ? cli_fail(status) : 0;
}

static void close_comparison(comparison *at)
{
    heddle_session_free(at->session);
    heddle_engine_close(at->engine);
    free(at->logits);
}

/* Reads and tokenises the text; 0 or an exit code. */
static int load_ids(const cli_setup *setup, const cli_text *text, int32_t **ids, int64_t *n_ids)
{
    int64_t n = text->n;
    if (n && text->data[n - 1] == '\n') n--; /* as llama.cpp reads a prompt file */
    heddle_status status = heddle_tokenize(setup->engine, n ? text->data : "", n, HEDDLE_TOKENIZE_BOS, ids,
                                           n_ids);
    return status ? cli_fail(status) : 0;
}

/* What score_text writes to and compares with, where asked. */
typedef struct score_extras {
    cli_text nll; /* float32 of every row so far; used with --nll */
    comparison against;
} score_extras;

/* Which route made the figure, and what that reads. */
static void tell_route(const cli_setup *setup, const perplexity_options *options, int64_t from,
                       int64_t context)
{
    const char *plan = heddle_plan_name(setup->plan);
    int64_t n_prompt = options->n_prompt;
    heddle_stats stats = {.struct_size = sizeof stats};
    char rows[64] = "every row took";
    if (n_prompt >= context) {
        cli_note("every row took the prefill route of plan %s", plan);
        return;
    }
    heddle_session_stats(setup->session, &stats);
    double read = n_prompt > 0 ? stats.decode_kv_bytes_read : stats.scored_kv_bytes_read;
    double dense = n_prompt > 0 ? stats.decode_kv_bytes_dense : stats.scored_kv_bytes_dense;
    if (n_prompt > 0) {
        cli_note("rows before %" PRId64 " took the prefill route of plan %s", n_prompt, plan);
        snprintf(rows, sizeof rows, "rows from %" PRId64 " on took", n_prompt);
    }
    cli_note("%s the decode route of plan %s, which reads %.2f %% of dense's K and V for rows %" PRId64
             "..%" PRId64 " (lists as they were made)",
             rows, plan, 100 * (dense > 0 ? read / dense : 1), n_prompt > 0 ? n_prompt : from, context - 1);
}

static int score_text(cli_setup *setup, const perplexity_options *options, score_extras *extras, int32_t *ids,
                      int64_t n_ids, int64_t context)
{
    int64_t from = options->from >= 0 ? options->from : context / 2;
    int64_t n_chunks = n_ids / context;
    char have[TERM_COUNT], needed[TERM_COUNT];
    int32_t bos = -1;
    if (from > context - 2) {
        return cli_refuse("perplexity: --from %" PRId64 ": must be below %" PRId64 " with -c %" PRId64, from,
                          context - 1, context);
    }
    if (!n_chunks) {
        return cli_refuse("perplexity: the text has %s tokens, one chunk needs %s (-c)",
                          term_count(have, n_ids), term_count(needed, context));
    }
    if (options->n_chunks && options->n_chunks < n_chunks) n_chunks = options->n_chunks;
    int code = cli_bos(setup->engine, &bos);
    running_mean mean = {0};
    for (int64_t i = 0; i < n_chunks && !code; i++) {
        int32_t *chunk = ids + i * context;
        if (bos >= 0) chunk[0] = bos;
        code = extras->against.session
                   ? compare_chunk(setup->session, &extras->against, chunk, context, from, &mean)
                   : score_chunk(setup->session, chunk, context, from, options->n_prompt, setup->info.n_vocab,
                                 &mean, options->nll_file ? &extras->nll : NULL);
        if (!code) cli_note("[%" PRId64 "/%" PRId64 "] %.4f", i + 1, n_chunks, perplexity_of(&mean));
    }
    if (code) return code;
    cli_note("%s tokens scored in %" PRId64 " chunks of %" PRId64 ", rows %" PRId64 "..%" PRId64 "; +- %.4f",
             term_count(have, mean.n), n_chunks, context, from, context - 2, error_of(&mean));
    tell_route(setup, options, from, context);
    const comparison *against = &extras->against;
    if (against->session)
        printf("mean KL from %s: %.8f, equal likeliest tokens: %.6f\n", options->against,
               against->kl / (double)against->n, (double)against->n_equal / (double)against->n);
    printf("perplexity: %.6f\n", perplexity_of(&mean));
    return 0;
}

/* Losses have no beginning of their own: the first are NaN or what a loss can be, which letters, spaces and line ends
 * are not as a float32. */
static bool holds_losses(const char *path)
{
    float first[64];
    size_t n_bytes = cli_read_first(path, first, sizeof first);
    for (size_t i = 0; i < n_bytes / sizeof *first; i++)
        if (!isnan(first[i]) && first[i] != 0 && !(first[i] > 1e-12F && first[i] < 1e3F)) return false;
    return n_bytes % sizeof *first == 0;
}

static int check_losses(const char *path, const char *text)
{
    if (cli_is_same_file(path, text))
        return cli_refuse("perplexity: --nll %s: is the text that is read: name another", path);
    return cli_check_file(path, "file of losses", holds_losses(path));
}

static int perplexity(const void *command_options)
{
    const perplexity_options *options = command_options;
    int64_t context = options->common.context ? options->common.context : DEFAULT_CONTEXT;
    cli_setup setup = {0};
    score_extras extras = {0};
    cli_text text = {0};
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    if (!options->file) return cli_refuse("perplexity: no text is given: -f FILE");
    if (options->nll_file && options->against) return cli_refuse("perplexity: --nll goes without --against");
    if (!options->n_prompt) return cli_refuse("perplexity: --prompt 0: must be 1 or more, or -1");
    if (options->n_prompt > 0 && options->against)
        return cli_refuse("perplexity: --prompt goes without --against");
    if (context < 4) return cli_refuse("perplexity: -c %" PRId64 ": must be at least 4", context);
    if (options->n_prompt > context)
        return cli_refuse("perplexity: --prompt %" PRId64 ": must be at most the %" PRId64
                          " tokens of a chunk (-c)",
                          options->n_prompt, context);
    int code = options->nll_file ? check_losses(options->nll_file, options->file) : 0;
    if (!code) code = cli_read_file(&text, options->file);
    if (!code) code = cli_open(&setup, &options->common);
    if (code) goto done;
    setup.session_options.plan_governs_all = options->n_prompt < 0;
    cli_warn_trained(&setup, context);
    if (!code) code = load_ids(&setup, &text, &ids, &n_ids);
    if (!code) code = cli_open_session(&setup, context);
    if (!code && options->against) code = open_comparison(&extras.against, &setup, options, context);
    if (!code) code = score_text(&setup, options, &extras, ids, n_ids, context);
    if (!code && options->nll_file) code = cli_write_file(options->nll_file, extras.nll.data, extras.nll.n);
done:
    cli_text_free(&extras.nll);
    close_comparison(&extras.against);
    heddle_ids_free(ids);
    cli_close(&setup);
    cli_text_free(&text);
    return code;
}

const cli_command cmd_perplexity = {
    .name = "perplexity",
    .usage = "-m MODEL -f FILE [-c TOKENS] [options]",
    .summary = "How well a text is predicted, under any plan",
    .about = "Chunks of -c tokens (default 512), the second half of each scored: llama.cpp's protocol. The\n"
             "plan's decode route governs every row, or with --prompt those after a prompt. The last\n"
             "line of standard output is 'perplexity: X'.",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_PLAN | CLI_GROUP_CONTEXT | CLI_GROUP_SESSION,
    .options = perplexity_rows,
    .options_size = sizeof(perplexity_options),
    .run = perplexity,
};
