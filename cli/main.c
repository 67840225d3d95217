/* main.c - the program: finds the command, parses its options by its table, runs it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

const cli_command *const cli_commands[] = {
    &cmd_run,         &cmd_encode,    &cmd_verify,   &cmd_inspect,
    &cmd_plans,       &cmd_explain,   &cmd_tokenize, &cmd_perplexity,
    &cmd_bench_depth, &cmd_calibrate, &cmd_eval,     &cmd_report,
    &cmd_plan_search, NULL,
};

static void print_overview(FILE *out)
{
    fprintf(out,
            "heddle %s: answers from long documents on an ordinary machine.\n\n"
            "  heddle run -m MODEL -f BOOK.txt -p \"Who wove the tapestry?\"\n\nCommands\n",
            heddle_version());
    for (int i = 0; cli_commands[i]; i++)
        fprintf(out, "  %-12s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fprintf(out, "  %-12s %s\n\n%s\n", "help", "this page, or a command's options: heddle help run",
            "Results go to standard output, all else to standard error.\n"
            "Exit codes: 0 done, 1 a failure while running, 2 bad input.");
}

/* The command that argv[0..] names; *n_words of them. NULL: none. */
static const cli_command *find_command(int argc, char **argv, int *n_words)
{
    for (int i = 0; cli_commands[i]; i++) {
        const char *name = cli_commands[i]->name, *space = strchr(name, ' ');
        size_t n = space ? (size_t)(space - name) : strlen(name);
        if (argc < 1 || strlen(argv[0]) != n || memcmp(argv[0], name, n) != 0) continue;
        if (space && (argc < 2 || strcmp(argv[1], space + 1) != 0)) continue;
        *n_words = space ? 2 : 1;
        return cli_commands[i];
    }
    return NULL;
}

/* The commands of two words that begin with this one [n bytes], quoted. */
static void list_second_words(const char *first, size_t n, char *out, size_t n_out)
{
    size_t at = 0;
    *out = 0;
    for (int i = 0; cli_commands[i] && at < n_out; i++) {
        const char *name = cli_commands[i]->name;
        if (strncmp(name, first, n) != 0 || name[n] != ' ') continue;
        at += (size_t)snprintf(out + at, n_out - at, "%s'heddle %s'", at ? ", " : "", name);
    }
}

static int unknown_command(int argc, char **argv)
{
    const char *best = NULL;
    int best_distance = 4;
    for (int i = 0; cli_commands[i]; i++) {
        const char *name = cli_commands[i]->name;
        size_t n = strcspn(name, " ");
        if (name[n] && strlen(argv[0]) == n && !memcmp(name, argv[0], n)) {
            char known[256];
            list_second_words(name, n, known, sizeof known);
            if (argc < 2) return cli_refuse("%s needs a second word: %s", argv[0], known);
            return cli_refuse("unknown command '%s %s'; known: %s", argv[0], argv[1], known);
        }
        int distance = cli_distance(argv[0], name);
        if (distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
    if (best) return cli_refuse("unknown command '%s'; did you mean '%s'?", argv[0], best);
    return cli_refuse("unknown command '%s'; 'heddle help' lists them", argv[0]);
}

static int help(int argc, char **argv)
{
    int n_words = 0;
    if (!argc) {
        print_overview(stdout);
        return cli_finish_output();
    }
    const cli_command *command = find_command(argc, argv, &n_words);
    if (!command) return unknown_command(argc, argv);
    cli_print_help(command);
    return cli_finish_output();
}

static int run_command(const cli_command *command, int argc, char **argv)
{
    void *options = calloc(1, command->options_size);
    if (!options) {
        cli_note("heddle: no memory for the options");
        return EXIT_RUNTIME;
    }
    bool wants_help = false;
    int code = cli_parse(command, argc, argv, options, &wants_help);
    if (!code && wants_help)
        cli_print_help(command);
    else if (!code)
        code = command->run(options);
    free(options);
    int output_code = cli_finish_output();
    return code ? code : output_code;
}

/* The library's log: only what went wrong reaches people unless HEDDLE_LOG asks for more. */
static void show_log(int level, const char *text, void *user)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    (void)user;
    cli_note("heddle: %s%s", names[level < 0 || level > 3 ? 2 : level], text);
}

int main(int argc, char **argv)
{
    heddle_set_log(show_log, NULL);
    if (argc < 2) {
        print_overview(stderr);
        return EXIT_INPUT;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
        printf("heddle %s\n", heddle_version());
        return cli_finish_output();
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return help(0, NULL);
    if (!strcmp(argv[1], "help")) return help(argc - 2, argv + 2);
    int n_words = 0;
    const cli_command *command = find_command(argc - 1, argv + 1, &n_words);
    if (!command) return unknown_command(argc - 1, argv + 1);
    return run_command(command, argc - 1 - n_words, argv + 1 + n_words);
}
