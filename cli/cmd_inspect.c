/* cmd_inspect.c - `heddle inspect`: what a model file is, and the memory it will take per plan. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "term.h"

typedef struct inspect_options {
    cli_common common;
} inspect_options;

static void print_count(const char *label, int64_t n, const char *unit)
{
    char text[TERM_COUNT];
    printf("%-16s %s%s\n", label, term_count(text, n), unit);
}

static void print_model(const heddle_model_info *info)
{
    char bytes[TERM_COUNT];
    printf("%-16s %s\n", "name", info->name && *info->name ? info->name : "(none in the file)");
    printf("%-16s %s\n", "architecture", info->arch);
    print_count("parameters", info->n_params, "");
    printf("%-16s %s\n", "formats", info->formats);
    printf("%-16s %s\n", "weights", term_bytes(bytes, (double)info->weight_bytes));
    printf("%-16s %d", "layers", info->n_layers);
    if (info->n_windowed_layers) {
        printf(", of which %d read only the last %d tokens", info->n_windowed_layers, info->window);
    }
    if (info->n_state_layers)
        printf(", of which %d keep a gated-delta state of fixed size", info->n_state_layers);
    printf("\n");
    printf("%-16s %d query heads, %d KV heads, K %d and V %d wide\n", "attention", info->n_heads,
           info->n_kv_heads, info->head_dim, info->v_head_dim);
    printf("%-16s hidden %d, feed-forward %d, vocabulary %d\n", "sizes", info->hidden_size, info->n_ff,
           info->n_vocab);
    if (info->train_context) print_count("trained on", info->train_context, " tokens");
    printf("%-16s %s\n", "chat template", info->chat);
}

/* One line a plan: the memory at each context, "-" where the machine has less. */
static heddle_status print_memory_row(const cli_setup *setup, const char *name, const int64_t *contexts,
                                      int n_contexts)
{
    heddle_plan *plan = NULL;
    heddle_status status = heddle_plan_named(&plan, name);
    if (!status) status = heddle_plan_check(plan, setup->engine);
    if (status) {
        printf("  %-*s %s\n", cli_preset_width(), name, heddle_last_error());
        heddle_plan_free(plan);
        return HEDDLE_OK;
    }
    printf("  %-*s", cli_preset_width(), name);
    for (int i = 0; i < n_contexts && !status; i++) {
        heddle_memory memory = {.struct_size = sizeof memory};
        status = heddle_memory_plan(setup->engine, plan, &setup->session_options, contexts[i], &memory);
        if (status) break;
        char bytes[TERM_COUNT];
        printf("%11s%s", term_bytes(bytes, (double)memory.total_bytes),
               memory.total_bytes > memory.available_bytes ? "*" : " ");
    }
    printf("\n");
    heddle_plan_free(plan);
    return status;
}

static heddle_status print_memory(const cli_setup *setup)
{
    static const int64_t contexts[] = {4096, 16384, 65536, 262144, 1048576};
    static const char *const names[] = {"4K", "16K", "64K", "256K", "1M"};
    enum { N = 5 };
    heddle_status status = HEDDLE_OK;
    heddle_memory memory = {.struct_size = sizeof memory};
    printf("\nMemory with %s KV: weights, KV and workspace at a context of\n  %-*s",
           setup->session_options.kv_type, cli_preset_width(), "plan");
    for (int i = 0; i < N; i++) printf("%11s ", names[i]);
    printf("\n");
    for (int32_t i = 0; i < heddle_preset_count() && !status; i++) {
        status = print_memory_row(setup, heddle_preset_at(i), contexts, N);
    }
    if (!status)
        status = heddle_memory_plan(setup->engine, NULL, &setup->session_options, contexts[0], &memory);
    char bytes[TERM_COUNT];
    if (!status && memory.available_bytes < INT64_MAX)
        printf("* more than the %s that are free here\n", term_bytes(bytes, (double)memory.available_bytes));
    return status;
}

static int inspect_document(const char *path)
{
    int64_t n_tokens, n_pages;
    heddle_status status = heddle_document_verify(path, &n_tokens, &n_pages);
    if (status) return cli_fail(status);
    printf("%-16s a document's rows, for run --mount; whole: every checksum holds\n", "kind");
    print_count("tokens", n_tokens, "");
    print_count("pages", n_pages, "");
    return cli_finish_output();
}

static int inspect_session(const char *path)
{
    heddle_session_file_info info = {.struct_size = sizeof info};
    heddle_status status = heddle_session_file_inspect(path, &info);
    if (status) return cli_fail(status);
    char bytes[TERM_COUNT];
    printf("%-16s session, format %u; whole: its checksum holds\n", "kind", info.format);
    print_count("tokens", info.n_tokens, "");
    printf("%-16s %s\n", "size", term_bytes(bytes, (double)info.file_bytes));
    printf("%-16s %s\n", "model", *info.model ? info.model : "(has no name)");
    if (info.n_mounts) printf("%-16s %d documents\n", "mounted", info.n_mounts);
    printf("%-16s %s%s\n", "plan", info.plan, info.plan_governs_all ? ", its decode route for all rows" : "");
    printf("%-16s %s, %s-major, pages of %lld tokens%s\n", "KV", info.kv_type, info.kv_layout,
           1LL << info.page_shift, info.is_invariant ? ", invariant mode" : "");
    return cli_finish_output();
}

static int inspect(const void *command_options)
{
    inspect_options options = *(const inspect_options *)command_options;
    cli_setup setup = {0};
    if (options.common.words.n && options.common.model) return cli_refuse("inspect: one model at a time");
    if (options.common.words.n) options.common.model = options.common.words.items[0];
    const char *path = options.common.model;
    if (path && cli_file_is(path, CLI_SESSION_BEGINS)) return inspect_session(path);
    if (path && cli_file_is(path, CLI_DOCUMENT_BEGINS)) return inspect_document(path);
    if (path && cli_file_is(path, CLI_LISTS_BEGINS))
        return cli_refuse(
            "inspect: %s: holds the lists of a run: heddle report --record %s -m MODEL shows them", path,
            path);
    int code = cli_open(&setup, &options.common);
    if (!code) {
        print_model(&setup.info);
        heddle_status status = print_memory(&setup);
        if (status) code = cli_fail(status);
    }
    cli_close(&setup);
    return code;
}

const cli_command cmd_inspect = {
    .name = "inspect",
    .usage = "MODEL [options]  |  SESSION  |  DOCUMENT.kv",
    .summary =
        "What a model file is, and the memory it takes under each plan; what a session or a document's file holds",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_SESSION,
    .options_size = sizeof(inspect_options),
    .max_words = 1,
    .run = inspect,
};
