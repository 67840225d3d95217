/* common.c - messages, texts and the opening of model, plan and session, for every command. */
#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "term.h"

enum { MAX_TEXT_BYTES = (1 << 30) - 1 };

static void say(const char *prefix, const char *fmt, va_list args)
{
    term_clear_progress();
    fputs(prefix, stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
}

int cli_refuse(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say("heddle: ", fmt, args);
    va_end(args);
    return EXIT_INPUT;
}

void cli_note(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say("", fmt, args);
    va_end(args);
}

int cli_fail(heddle_status status)
{
    const char *sentence = heddle_last_error();
    cli_refuse("%s", *sentence ? sentence : heddle_status_name(status));
    switch (status) {
        case HEDDLE_E_INVALID:
        case HEDDLE_E_IO:
        case HEDDLE_E_FORMAT:
        case HEDDLE_E_UNSUPPORTED:
        case HEDDLE_E_CAPACITY: return EXIT_INPUT;
        default: return EXIT_RUNTIME;
    }
}

int cli_finish_output(void)
{
    static bool is_told;
    if (!fflush(stdout) && !ferror(stdout)) return 0;
    if (is_told) return EXIT_RUNTIME;
    is_told = true;
    cli_note("heddle: standard output cannot be written: %s", strerror(errno));
    return EXIT_RUNTIME;
}

bool cli_text_add(cli_text *text, const void *bytes, int64_t n)
{
    if (n >= text->capacity - text->n) {
        int64_t capacity = text->capacity ? text->capacity * 2 : 65536;
        while (capacity <= text->n + n) capacity *= 2;
        char *data = realloc(text->data, (size_t)capacity);
        if (!data) return false;
        text->data = data;
        text->capacity = capacity;
    }
    memcpy(text->data + text->n, bytes, (size_t)n);
    text->n += n;
    text->data[text->n] = 0;
    return true;
}

void cli_text_free(cli_text *text)
{
    free(text->data);
    *text = (cli_text){0};
}

int cli_ids_add(cli_ids *to, const int32_t *ids, int64_t n)
{
    if (to->n + n > to->capacity) {
        int64_t capacity = to->capacity ? to->capacity : 256;
        while (capacity < to->n + n) capacity *= 2;
        int32_t *grown = realloc(to->ids, (size_t)capacity * sizeof *grown);
        if (!grown) {
            cli_note("heddle: no memory for %lld tokens", (long long)capacity);
            return EXIT_RUNTIME;
        }
        to->ids = grown;
        to->capacity = capacity;
    }
    if (n) memcpy(to->ids + to->n, ids, (size_t)n * sizeof *ids);
    to->n += n;
    return 0;
}

int cli_ids_take(cli_ids *to, heddle_status status, int32_t *ids, int64_t n)
{
    int code = status ? cli_fail(status) : cli_ids_add(to, ids, n);
    heddle_ids_free(ids);
    return code;
}

void cli_ids_free(cli_ids *ids)
{
    free(ids->ids);
    *ids = (cli_ids){0};
}

size_t cli_read_first(const char *path, void *first, size_t n_most)
{
    struct stat facts;
    FILE *file = !stat(path, &facts) && S_ISREG(facts.st_mode) ? fopen(path, "rb")
                                                               : NULL; /* a pipe may wait */
    size_t n = file ? fread(first, 1, n_most, file) : 0;
    if (file) fclose(file);
    return n;
}

bool cli_file_is(const char *path, const char *pattern)
{
    char first[256];
    first[cli_read_first(path, first, sizeof first - 1)] = 0;
    return !fnmatch(pattern, first, 0);
}

bool cli_is_same_file(const char *path, const char *other)
{
    struct stat one, two;
    return !stat(path, &one) && !stat(other, &two) && one.st_dev == two.st_dev && one.st_ino == two.st_ino;
}

int cli_check_kind(const char *path, const char *kind, bool is_kind)
{
    struct stat facts;
    if (is_kind || stat(path, &facts) ||
        !(S_ISDIR(facts.st_mode) || (S_ISREG(facts.st_mode) && facts.st_size)))
        return 0;
    return cli_refuse("%s: is there and is no %s: name another, or remove it", path, kind);
}

typedef struct new_file {
    char *target, *part; /* NULL: it is no file, and written to itself */
    FILE *to;
} new_file;

static void close_new(new_file *file)
{
    if (file->to) fclose(file->to);
    if (file->to && file->part) remove(file->part);
    free(file->target);
    free(file->part);
}

/* A file that is a link stays one: what it names is replaced, with its permissions. */
static int open_new(new_file *file, const char *path)
{
    struct stat facts;
    bool is_there = !stat(path, &facts);
    *file = (new_file){0};
    if (is_there && !S_ISREG(facts.st_mode)) {
        file->to = fopen(path, "wb");
    } else {
        file->target = is_there ? realpath(path, NULL) : strdup(path);
        if (file->target && asprintf(&file->part, "%s.part", file->target) < 0) file->part = NULL;
        if (file->part) file->to = fopen(file->part, "wb");
        if (file->to && is_there && fchmod(fileno(file->to), facts.st_mode & 07777))
            errno = 0; /* its own, then */
    }
    if (file->to) return 0;
    int code = cli_refuse("%s: cannot be written: %s", path, strerror(errno));
    close_new(file);
    return code;
}

int cli_write_file(const char *path, const void *bytes, int64_t n)
{
    new_file file;
    int code = open_new(&file, path);
    if (code) return code;
    bool is_written = fwrite(bytes, 1, (size_t)n, file.to) == (size_t)n && !fflush(file.to) &&
                      (!file.part || (!fsync(fileno(file.to)) && !rename(file.part, file.target)));
    if (!is_written) {
        cli_note("heddle: %s: could not all be written: %s", path, strerror(errno));
        code = EXIT_RUNTIME;
    } else {
        free(file.part); /* it has the file's name now */
        file.part = NULL;
    }
    close_new(&file);
    return code;
}

int cli_check_file(const char *path, const char *kind, bool is_kind)
{
    struct stat facts;
    new_file file;
    int code = cli_check_kind(path, kind, is_kind);
    if (code) return code;
    if (!stat(path, &facts) && !S_ISREG(facts.st_mode) && !S_ISDIR(facts.st_mode)) /* a pipe may wait */
        return access(path, W_OK) ? cli_refuse("%s: cannot be written: %s", path, strerror(errno)) : 0;
    code = open_new(&file, path);
    if (!code) close_new(&file);
    return code;
}

int cli_read_file(cli_text *text, const char *path)
{
    bool is_stdin = !strcmp(path, "-");
    const char *shown = is_stdin ? "standard input" : path;
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    if (!file) return cli_refuse("%s: %s", shown, strerror(errno));
    struct stat facts;
    int code = 0;
    if (!fstat(fileno(file), &facts) && S_ISDIR(facts.st_mode)) {
        code = cli_refuse("%s: is a folder, not a text", shown);
        goto done;
    }
    for (;;) {
        char chunk[65536];
        size_t n = fread(chunk, 1, sizeof chunk, file);
        if (text->n + (int64_t)n > MAX_TEXT_BYTES) { /* of /dev/zero, say */
            code = cli_refuse("%s: is larger than the limit of %lld bytes", shown, (long long)MAX_TEXT_BYTES);
            goto done;
        }
        if (n && !cli_text_add(text, chunk, (int64_t)n)) {
            cli_note("heddle: %s: no memory for a text of %lld bytes", shown, (long long)text->n);
            code = EXIT_RUNTIME;
            goto done;
        }
        if (n < sizeof chunk && ferror(file)) {
            code = cli_refuse("%s: %s", shown, strerror(errno));
            goto done;
        }
        if (n < sizeof chunk) break;
    }
done:
    if (!is_stdin) fclose(file);
    return code;
}

static const char *const gatherings[] = {[HEDDLE_GATHERING_AUTO] = "auto",
                                         [HEDDLE_GATHERING_ALWAYS] = "always",
                                         [HEDDLE_GATHERING_NEVER] = "never"};

static bool find_gathering(const char *word, int32_t *out)
{
    for (int32_t i = 0; i <= HEDDLE_GATHERING_NEVER; i++)
        if (!strcmp(gatherings[i], word)) {
            *out = i;
            return true;
        }
    return false;
}

int cli_open(cli_setup *setup, const cli_common *common)
{
    *setup = (cli_setup){.info.struct_size = sizeof setup->info};
    heddle_session_options_default(&setup->session_options);
    if (common->kv_type) setup->session_options.kv_type = common->kv_type;
    setup->session_options.is_invariant = common->is_invariant;
    if (common->gathering && !find_gathering(common->gathering, &setup->session_options.gathering))
        return cli_refuse("--gathering %s: must be auto, always or never", common->gathering);
    if (!common->model) return cli_refuse("no model is given: -m MODEL (scripts/get-model fetches one)");
    heddle_engine_options options;
    heddle_engine_options_default(&options);
    options.n_threads = (int32_t)common->n_threads;
    options.index_path = common->index;
    heddle_status status = common->plan ? heddle_plan_named(&setup->plan, common->plan) : HEDDLE_OK;
    if (!status) status = heddle_engine_open(&setup->engine, common->model, &options);
    if (!status && !setup->plan) status = heddle_plan_default(&setup->plan, setup->engine);
    if (!status) status = heddle_plan_check(setup->plan, setup->engine);
    if (status) return cli_fail(status);
    heddle_engine_model_info(setup->engine, &setup->info);
    return 0;
}

int cli_open_session(cli_setup *setup, int64_t context)
{
    setup->session_options.context_tokens = context;
    heddle_status status = heddle_session_new(&setup->session, setup->engine, setup->plan,
                                              &setup->session_options);
    return status ? cli_fail(status) : 0;
}

void cli_close(cli_setup *setup)
{
    heddle_session_free(setup->session);
    heddle_plan_free(setup->plan);
    heddle_engine_close(setup->engine);
    *setup = (cli_setup){0};
}

void cli_warn_trained(const cli_setup *setup, int64_t n_tokens)
{
    int64_t trained = setup->info.train_context;
    if (!trained || n_tokens <= trained) return;
    char have[TERM_COUNT], limit[TERM_COUNT];
    cli_note(
        "heddle: warning: %s tokens are more than the %s that this model was trained on; beyond those only its "
        "speed means something, its words may not",
        term_count(have, n_tokens), term_count(limit, trained));
}

int cli_preset_width(void)
{
    int widest = 0;
    for (int32_t i = 0; i < heddle_preset_count(); i++) {
        int n = (int)strlen(heddle_preset_at(i));
        if (n > widest) widest = n;
    }
    return widest;
}

int cli_bos(const heddle_engine *engine, int32_t *bos)
{
    int32_t *plain = NULL, *whole = NULL;
    int64_t n_plain = 0, n_whole = 0;
    *bos = -1;
    heddle_status status = heddle_tokenize(engine, "a", 1, 0, &plain, &n_plain);
    if (!status) status = heddle_tokenize(engine, "a", 1, HEDDLE_TOKENIZE_BOS, &whole, &n_whole);
    if (!status && n_whole > n_plain && n_plain && whole[0] != plain[0]) *bos = whole[0];
    heddle_ids_free(plain);
    heddle_ids_free(whole);
    return status ? cli_fail(status) : 0;
}
