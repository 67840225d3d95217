/* cmd_plan.c - `heddle plans` lists the plans of the build, `heddle explain` shows what one does. */
#include <stdio.h>

#include "cli.h"

typedef struct plan_options {
    cli_common common;
    bool is_text;
} plan_options;

static const cli_option explain_rows[] = {
    {"text", 0, CLI_FLAG, NULL, NULL, "print the plan itself as a plan file; needs no model",
     offsetof(plan_options, is_text), 0, 0, 0},
    {0},
};

static int plans(const void *command_options)
{
    (void)command_options;
    for (int32_t i = 0; i < heddle_preset_count(); i++) {
        heddle_plan *plan = NULL;
        heddle_status status = heddle_plan_named(&plan, heddle_preset_at(i));
        if (status) return cli_fail(status);
        printf("%-*s %s\n", cli_preset_width(), heddle_plan_name(plan), heddle_plan_about(plan));
        heddle_plan_free(plan);
    }
    return 0;
}

static int print_plan_text(const char *spec)
{
    heddle_plan *plan = NULL;
    char *text = NULL;
    heddle_status status = heddle_plan_named(&plan, spec);
    if (!status) status = heddle_plan_format(plan, &text);
    if (!status) printf("%s\n", text);
    heddle_string_free(text);
    heddle_plan_free(plan);
    return status ? cli_fail(status) : 0;
}

static int explain(const void *command_options)
{
    const plan_options *options = command_options;
    if (options->is_text && !options->common.plan) return cli_refuse("explain: --text needs --plan PLAN");
    if (options->is_text) return print_plan_text(options->common.plan);
    cli_setup setup = {0};
    char *text = NULL;
    int code = cli_open(&setup, &options->common);
    if (!code) {
        if (options->common.context) setup.session_options.context_tokens = options->common.context;
        heddle_status status = heddle_explain(setup.engine, setup.plan, &setup.session_options, &text);
        if (status)
            code = cli_fail(status);
        else
            fputs(text, stdout);
    }
    heddle_string_free(text);
    cli_close(&setup);
    return code;
}

const cli_command cmd_plans = {
    .name = "plans",
    .usage = "",
    .summary = "List the plans that --plan knows by name",
    .options_size = sizeof(plan_options),
    .run = plans,
};

const cli_command cmd_explain = {
    .name = "explain",
    .usage = "-m MODEL --plan PLAN [options]",
    .summary = "What a plan does on a model: schedule, implementations, bytes",
    .groups = CLI_GROUP_MODEL | CLI_GROUP_PLAN | CLI_GROUP_CONTEXT | CLI_GROUP_SESSION,
    .options = explain_rows,
    .options_size = sizeof(plan_options),
    .run = explain,
};
