/* cmd_eval.c - `heddle eval`: what plans cost in quality, each beside dense and a window.
 *
 * Results go to a file, a row as soon as it is known; the same command later does what is missing.
 * The tables are made from the file at the end. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "eval_int.h"
#include "term.h"

enum { DEFAULT_CONTEXT = 4096, LEAST_CONTEXT = 1024 };
static const char *const controls[EVAL_CONTROLS] = {"dense", "window:window=512"};

#define AT(field) offsetof(eval_options, field)
static const cli_option eval_rows[] = {
    {"plans", 0, CLI_TEXT, "LIST", "anchor",
     "plans to judge beside dense and a window of 512; ';' separates where one has a ','; no file's name "
     "can have a ';'",
     AT(plans), 0, 0, 0},
    {"tasks", 0, CLI_TEXT, "LIST", "tasks",
     "names below, or tasks (all twelve), loss, agreement, lists, all, none", AT(tasks), 0, 0, 0},
    {"text", 0, CLI_TEXTS, "FILE", NULL,
     "a real text, for tasks in one, loss, agreement and lists; may be given several times", AT(texts), 0, 0,
     0},
    {"documents", 0, CLI_INT, "N", "4", "documents of each kind", AT(documents), 1, 1 << 20, 0},
    {"first", 0, CLI_INT, "N", "0",
     "begin with document N of each kind, so that several processes share a run", AT(first), 0, 1 << 20, 0},
    {"answers", 0, CLI_INT, "N", "64",
     "at most so many questions of a document; all tasks of its kind take turns, those not in --tasks too",
     AT(answers), 1, 4096, 0},
    {"seed", 0, CLI_INT, "N", "1", "other documents", AT(seed), 0, 1 << 30, 0},
    {"last", 0, CLI_FLAG, NULL, NULL,
     "loss: only the last quarter under the plan, the rest read once, densely", AT(is_last), 0, 0, 0},
    {"ruler", 0, CLI_TEXTS, "FILE", NULL, "samples of RULER (JSON lines); may be given several times",
     AT(rulers), 0, 0, 0},
    {"raw", 0, CLI_FLAG, NULL, NULL, "no chat template around questions", AT(is_raw), 0, 0, 0},
    {"show", 0, CLI_FLAG, NULL, NULL, "print the documents and their questions instead", AT(is_shown), 0, 0,
     0},
    {"out", 0, CLI_TEXT, "FILE", "eval.jsonl", "the results; a later run goes on from them", AT(out), 0, 0,
     0},
    {0},
};
#undef AT

int eval_no_memory(void)
{
    cli_note("heddle: eval: no memory");
    return EXIT_RUNTIME;
}

void eval_base_name(const char *path, char *name, size_t n)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    snprintf(name, n, "%.*s", (int)(dot && dot != base ? dot - base : (long)strlen(base)), base);
}

json_t *eval_row(const eval_run *run, const char *what, const eval_plan *plan)
{
    bool is_task = !strcmp(what, "task");
    json_t *row = json_object();
    json_object_set_new(row, "what", json_string(what));
    json_object_set_new(row, "model", json_string(run->setup.info.name));
    json_object_set_new(row, "model_hash", json_string(run->model_hash));
    json_object_set_new(row, "kv", json_string(run->options->common.kv_type));
    json_object_set_new(row, "plan", json_string(plan->spec));
    json_object_set_new(row, "plan_hash", json_string(plan->hash));
    json_object_set_new(row, "context", json_integer(run->context));
    if (run->options->common.is_invariant) json_object_set_new(row, "invariant", json_true());
    if (is_task) json_object_set_new(row, "frame", json_string(run->frame));
    if (is_task) json_object_set_new(row, "seed", json_integer(run->options->seed));
    return row;
}

/* ---- hashes ---- */

static void write_hash(char text[20], uint64_t hash)
{
    snprintf(text, 20, "%016" PRIx64, hash);
}

static int hash_file(const char *path, uint64_t *hash)
{
    static char block[1 << 20];
    FILE *file = fopen(path, "rb");
    if (!file) return cli_refuse("%s: cannot be read", path);
    for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;)
        *hash = eval_hash(*hash, block, (int64_t)n);
    fclose(file);
    return 0;
}

static int is_model_file(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && (!strcmp(dot, ".json") || !strcmp(dot, ".safetensors"));
}

/* Of the file, or of the model files of a folder by their names. */
static int hash_model(eval_run *run)
{
    const char *path = run->options->common.model;
    struct stat facts;
    uint64_t hash = EVAL_HASH_START;
    int code = 0;
    if (stat(path, &facts) || !S_ISDIR(facts.st_mode)) {
        code = hash_file(path, &hash);
    } else {
        struct dirent **entries = NULL;
        int n = scandir(path, &entries, is_model_file, alphasort);
        for (int i = 0; i < n; i++) {
            char name[4096];
            snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
            if (!code) code = hash_file(name, &hash);
            free(entries[i]);
        }
        free(entries);
    }
    write_hash(run->model_hash, hash);
    return code;
}

/* ---- what is wanted ---- */

static int want(eval_run *run, const char *name)
{
    bool is_all = !strcmp(name, "all"), is_tasks = is_all || !strcmp(name, "tasks");
    if (is_all || !strcmp(name, "loss")) run->wants_loss = true;
    if (is_all || !strcmp(name, "agreement")) run->wants_agreement = true;
    if (is_all || !strcmp(name, "lists")) run->wants_lists = true;
    bool is_known = is_tasks || !strcmp(name, "lists") || !strcmp(name, "loss") ||
                    !strcmp(name, "agreement") || !strcmp(name, "none");
    const char *best = NULL;
    int best_distance = 4;
    for (int task = 0; task < EVAL_N_TASKS; task++) {
        int distance = cli_distance(name, eval_tasks[task].name);
        if (is_tasks || !distance) run->wants_task[task] = is_known = true;
        if (distance < best_distance) {
            best_distance = distance;
            best = eval_tasks[task].name;
        }
    }
    if (is_known) return 0;
    if (best) return cli_refuse("eval: --tasks: unknown task '%s'; did you mean %s?", name, best);
    return cli_refuse("eval: --tasks: unknown task '%s'; 'heddle help eval' lists them", name);
}

static int read_tasks(eval_run *run)
{
    char list[512];
    if (strlen(run->options->tasks) >= sizeof list) return cli_refuse("eval: --tasks is too long");
    snprintf(list, sizeof list, "%s", run->options->tasks);
    int code = 0;
    char *rest = NULL, *name = strtok_r(list, ",", &rest);
    if (!name)
        return cli_refuse("eval: --tasks '%s' names no task; 'heddle help eval' lists them",
                          run->options->tasks);
    for (; name && !code; name = strtok_r(NULL, ",", &rest)) code = want(run, name);
    return code;
}

/* One plan; the same plan twice is kept once. */
static int add_plan(eval_run *run, const char *spec)
{
    heddle_plan *plan = NULL;
    char *text = NULL;
    if (run->n_plans == EVAL_MAX_PLANS)
        return cli_refuse("eval: --plans: at most %d", EVAL_MAX_PLANS - EVAL_CONTROLS);
    eval_plan *added = &run->plans[run->n_plans];
    heddle_status status = heddle_plan_named(&plan, spec);
    if (!status) status = heddle_plan_format(plan, &text);
    if (status) {
        heddle_plan_free(plan);
        return cli_fail(status);
    }
    *added = (eval_plan){.spec = spec, .plan = plan};
    write_hash(added->hash, eval_hash(EVAL_HASH_START, text, (int64_t)strlen(text)));
    heddle_string_free(text);
    for (int p = 0; p < run->n_plans; p++) {
        if (strcmp(run->plans[p].hash, added->hash) != 0) continue;
        heddle_plan_free(plan);
        return 0;
    }
    run->n_plans++;
    return 0;
}

static int read_plans(eval_run *run)
{
    const char *separator = strchr(run->options->plans, ';') ? ";" : ",";
    int code = 0, n_named = 0;
    for (int i = 0; i < EVAL_CONTROLS && !code; i++) code = add_plan(run, controls[i]);
    run->plan_text = strdup(run->options->plans);
    if (!run->plan_text) return eval_no_memory();
    char *rest = NULL;
    for (char *spec = strtok_r(run->plan_text, separator, &rest); spec && !code;
         spec = strtok_r(NULL, separator, &rest), n_named++)
        code = add_plan(run, spec);
    if (!code && !n_named)
        return cli_refuse("eval: --plans '%s' names no plan; 'heddle plans' lists them", run->options->plans);
    return code;
}

static int check_plans(eval_run *run)
{
    for (int p = 0; p < run->n_plans; p++) {
        eval_plan *plan = &run->plans[p];
        heddle_status status = heddle_plan_check(plan->plan, run->setup.engine);
        if (!status) status = heddle_plan_evicts(run->setup.engine, plan->plan, &plan->evicts);
        if (status) return cli_fail(status);
        if (!plan->evicts)
            run->kept[run->n_kept++] = plan->plan;
        else if (run->wants_loss || run->wants_lists)
            cli_note(
                "heddle: plan %s evicts rows at the end of a prompt: no loss and no lists of it, as no prompt row "
                "sees an eviction",
                plan->spec);
    }
    return 0;
}

heddle_session_options eval_document_options(const eval_run *run, int64_t context_tokens)
{
    heddle_session_options options = run->setup.session_options;
    options.context_tokens = context_tokens;
    options.kept_plans = run->kept;
    options.n_kept_plans = run->n_kept;
    return options;
}

static int read_sources(eval_run *run)
{
    run->sources = calloc((size_t)run->options->texts.n + 1, sizeof *run->sources);
    if (!run->sources) return eval_no_memory();
    for (int i = 0; i < run->options->texts.n; i++) {
        eval_source *source = &run->sources[i];
        int code = cli_read_file(&source->text, run->options->texts.items[i]);
        if (!code && !source->text.n) code = cli_refuse("%s: is empty", run->options->texts.items[i]);
        if (code) return code;
        eval_base_name(run->options->texts.items[i], source->name, sizeof source->name);
        write_hash(source->hash, eval_hash(EVAL_HASH_START, source->text.data, source->text.n));
        run->n_sources++;
    }
    return 0;
}

/* The ids of a user's turn before and after its content: what two turns have in common. */
static int read_frame(eval_run *run)
{
    int32_t *ids[2] = {NULL}, bos = -1;
    int64_t n[2] = {0}, n_same = 0, n_tail = 0;
    int code = cli_bos(run->setup.engine, &bos);
    bool is_chat = !run->options->is_raw && strcmp(run->setup.info.chat, "none") &&
                   strcmp(run->setup.info.chat, "unknown");
    run->frame = is_chat ? "chat" : "raw";
    if (code || !is_chat) {
        if (bos >= 0 && (run->opening = malloc(sizeof *run->opening))) run->opening[run->n_opening++] = bos;
        return code;
    }
    heddle_status status = HEDDLE_OK;
    for (int i = 0; i < 2 && !status; i++)
        status = heddle_chat_turn(run->setup.engine, NULL, "user", i ? "B" : "A", 1, 1, &ids[i], &n[i]);
    if (status) return cli_fail(status);
    while (n_same < n[0] && n_same < n[1] && ids[0][n_same] == ids[1][n_same]) n_same++;
    while (n_tail < n[0] - n_same && n_tail < n[1] - n_same &&
           ids[0][n[0] - 1 - n_tail] == ids[1][n[1] - 1 - n_tail])
        n_tail++;
    run->n_opening = n_same;
    run->n_turn = n_tail;
    run->opening = malloc((size_t)(n_same + 1) * sizeof *run->opening);
    run->turn = malloc((size_t)(n_tail + 1) * sizeof *run->turn);
    if (run->opening && run->turn) {
        memcpy(run->opening, ids[0], (size_t)n_same * sizeof *run->opening);
        memcpy(run->turn, ids[0] + n[0] - n_tail, (size_t)n_tail * sizeof *run->turn);
    }
    for (int i = 0; i < 2; i++) heddle_ids_free(ids[i]);
    return run->opening && run->turn ? 0 : eval_no_memory();
}

/* ---- the run ---- */

static void free_run(eval_run *run)
{
    results_close(&run->results);
    for (int p = 0; p < run->n_plans; p++) heddle_plan_free(run->plans[p].plan);
    for (int i = 0; i < run->n_sources; i++) cli_text_free(&run->sources[i].text);
    free(run->sources);
    free(run->plan_text);
    free(run->opening);
    free(run->turn);
    cli_close(&run->setup);
    free(run);
}

static int open_run(eval_run *run)
{
    const eval_options *options = run->options;
    run->context = options->common.context ? options->common.context : DEFAULT_CONTEXT;
    if (!options->common.model) return cli_refuse("eval: no model is given: -m MODEL");
    if (run->context < LEAST_CONTEXT)
        return cli_refuse("eval: -c %" PRId64 ": must be at least %d", run->context, LEAST_CONTEXT);
    int code = read_tasks(run);
    if (!code) code = read_plans(run);
    if (!code) code = read_sources(run);
    bool needs_text = run->wants_loss || run->wants_agreement || run->wants_lists;
    if (!code && needs_text && !run->n_sources)
        code = cli_refuse("eval: loss, agreement and lists need a real text: --text FILE");
    if (!code) code = eval_check_tasks(run);
    if (!code) code = eval_check_rulers(run);
    if (!code) code = cli_open(&run->setup, &options->common);
    if (!code) code = check_plans(run);
    if (!code) code = hash_model(run);
    if (!code) code = read_frame(run);
    if (!code && !options->is_shown) code = results_open(&run->results, options->out, true);
    if (!code) cli_warn_trained(&run->setup, run->context);
    return code;
}

static int eval(const void *command_options)
{
    eval_run *run = calloc(1, sizeof *run);
    if (!run) return eval_no_memory();
    run->options = command_options;
    int code = open_run(run);
    if (!code) code = eval_run_tasks(run);
    if (!code && run->options->is_shown) goto done;
    if (!code) code = eval_run_rulers(run);
    if (!code && (run->wants_loss || run->wants_agreement)) code = eval_run_loss(run);
    if (!code && run->wants_lists) code = eval_run_lists(run);
    if (!code) eval_print_tables(run);
done:
    free_run(run);
    return code;
}

const cli_command cmd_eval = {
    .name = "eval",
    .usage = "-m MODEL [--plans LIST] [--tasks LIST] [--text FILE]... [-c TOKENS] [options]",
    .summary = "What plans cost in quality, beside dense and a window",
    .about =
        "A document of -c tokens (default 4096) is read once, densely; every plan then reads questions and\n"
        "right answers in its decode route, and each answer token is scored. A task decides where dense has\n"
        "60 % right and stands 20 points above a window of 512.\n\n"
        "Tasks: needle_noise variables needle_text multi_key multi_value multi_query passage needle_lines\n"
        "table common_words frequent_words story; loss (by position, and what a plan keeps of dense's gain\n"
        "over the window); agreement (with 256 greedy tokens of dense); lists (what share of dense's attention\n"
        "the chosen tokens hold, how lists overlap from step to step and layer to layer).",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_CONTEXT | CLI_GROUP_SESSION,
    .options = eval_rows,
    .options_size = sizeof(eval_options),
    .run = eval,
};
