/* `heddle eval` as a program, on a small random model: stopped anywhere and gone on with, laws of its
 * figures, bad input. Figures of random weights mean nothing; what must be equal is compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "sanitized.h"
#include "tiny_model.h"

static char folder[512], model[600], text[600], program[1024];

static int make_files(void **state)
{
    (void)state;
    const char *given = getenv("HEDDLE");
    tiny_options options = {.seed = 5};
    if (!tiny_make_folder(folder, sizeof folder)) return 1;
    snprintf(program, sizeof program, "%s", given ? given : "build/heddle");
    snprintf(model, sizeof model, "%s/tiny.gguf", folder);
    snprintf(text, sizeof text, "%s/prose.txt", folder);
    FILE *file = fopen(text, "w");
    for (int i = 0; file && i < 4000; i++) fprintf(file, "word%d goes on%s", i, i % 7 ? " " : ".\n");
    return !file || fclose(file) || !tiny_write_gguf(model, &options);
}

static int remove_files(void **state)
{
    (void)state;
    tiny_remove_folder(folder);
    return 0;
}

/* Runs heddle with these arguments; its exit code. Output in folder/out, messages in folder/err. */
static int run(const char *fmt, ...)
{
    char arguments[2048], command[5120];
    va_list args;
    va_start(args, fmt);
    vsnprintf(arguments, sizeof arguments, fmt, args);
    va_end(args);
    snprintf(command, sizeof command, "%s %s >%s/out 2>%s/err </dev/null", program, arguments, folder,
             folder);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static char *read_all(const char *name, long *n_bytes)
{
    static char empty[1];
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) return empty;
    fseek(file, 0, SEEK_END);
    long n = ftell(file);
    rewind(file);
    char *bytes = calloc((size_t)n + 1, 1);
    if (n_bytes)
        *n_bytes = (long)fread(bytes, 1, (size_t)n, file);
    else if (fread(bytes, 1, (size_t)n, file) != (size_t)n)
        bytes[0] = 0;
    fclose(file);
    return bytes;
}

static void write_all(const char *name, const char *bytes, long n)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_true(tiny_write_file(path, bytes, n));
}

static void assert_says(const char *name, const char *what)
{
    char *said = read_all(name, NULL);
    if (!strstr(said, what)) fail_msg("'%s' is not in: %s", what, said);
    free(said);
}

/* 6 haystacks x 1 document, 12 tasks, 5 questions at most, 3 plans. */
/* An option takes one value: `more` replaces those of these that it names. */
static int run_eval(const char *out, const char *more)
{
    static const char *const usual[][2] = {
        {"-c ", "1536"}, {"--documents ", "1"}, {"--plans ", "oracle:top_k=16384"}};
    char line[256] = "";
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (!strstr(more, usual[i][0]))
            snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s ", usual[i][0], usual[i][1]);
    return run("eval -m %s -t 1 --invariant --answers 5 --text %s --out %s/%s %s%s", model, text, folder, out,
               line, more);
}

static void test_stopped_anywhere(void **state)
{
    (void)state;
    long n_whole, n_again;
    assert_int_equal(run_eval("whole.jsonl", "--tasks all"), 0);
    char *table = read_all("out", NULL), *whole = read_all("whole.jsonl", &n_whole);
    assert_true(n_whole > 10000);
    for (int cut = 1; cut < 5; cut += 1 + IS_SANITIZED) { /* in the middle of a line, mostly */
        long n = n_whole * cut / 5;
        write_all("cut.jsonl", whole, n);
        assert_int_equal(run_eval("cut.jsonl", "--tasks all"), 0);
        char *again = read_all("cut.jsonl", &n_again), *second = read_all("out", NULL);
        assert_int_equal(n_again, n_whole);
        assert_memory_equal(again, whole, n_whole);
        assert_string_equal(second, table);
        free(again);
        free(second);
    }
    assert_int_equal(run_eval("whole.jsonl", "--tasks all"), 0); /* nothing is left to do */
    char *again = read_all("whole.jsonl", &n_again);
    assert_int_equal(n_again, n_whole);
    assert_int_equal(run_eval("part.jsonl", "--tasks passage,needle_lines"), 0); /* a part is the same rows */
    char *part = read_all("part.jsonl", NULL);
    for (char *rest = NULL, *line = strtok_r(part, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        assert_non_null(strstr(whole, line));
    free(part);
    free(again);
    free(table);
    free(whole);
}

/* Two processes with half of the documents each make the rows of one with all. */
static void test_a_run_in_two_parts(void **state)
{
    (void)state;
    const char *common = "-t 1 --invariant -c 1024 --answers 3 --tasks story,loss --plans dense";
    assert_int_equal(
        run("eval -m %s %s --text %s --documents 2 --out %s/one.jsonl", model, common, text, folder), 0);
    assert_int_equal(
        run("eval -m %s %s --text %s --documents 1 --out %s/a.jsonl", model, common, text, folder), 0);
    assert_int_equal(
        run("eval -m %s %s --text %s --documents 1 --first 1 --out %s/b.jsonl", model, common, text, folder),
        0);
    char *one = read_all("one.jsonl", NULL),
         *parts[] = {read_all("a.jsonl", NULL), read_all("b.jsonl", NULL)};
    int n_lines = 0, n_found = 0;
    for (const char *at = one; (at = strchr(at, '\n')); at++) n_lines++;
    for (int p = 0; p < 2; p++)
        for (char *rest = NULL, *line = strtok_r(parts[p], "\n", &rest); line;
             line = strtok_r(NULL, "\n", &rest))
            n_found += strstr(one, line) != NULL;
    assert_int_equal(n_lines, 2 * (2 + 3)); /* stories and losses of dense and window, and their gains */
    assert_int_equal(n_found, n_lines);
    free(one);
    free(parts[0]);
    free(parts[1]);
}

/* How many of dense's rows the plan has as dense has them, to the last digit: all, or the test fails. */
static int rows_as_dense(const char *name, const char *spec)
{
    char *rows = read_all(name, NULL), *copy = strdup(rows), mark[128];
    int n_pairs = 0;
    snprintf(mark, sizeof mark, "\"plan\":\"%s\"", spec);
    for (char *rest = NULL, *line = strtok_r(rows, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *plan = strstr(line, "\"plan\":\"dense\",\"plan_hash\":\"");
        if (!plan || strstr(line, "\"what\":\"overlap\"")) continue;
        char wanted[16384]; /* the row of the plan, but for its name, hash and share */
        const char *after = plan + strlen("\"plan\":\"dense\",\"plan_hash\":\"") + 16;
        const char *end = strstr(after, ",\"share_read\"");
        snprintf(wanted, sizeof wanted, "%.*s", (int)(end ? end - after : (long)strlen(after)), after);
        const char *other = strstr(copy, mark);
        bool is_found = false;
        for (; other && !is_found; other = strstr(other + 1, mark)) {
            const char *tail = strstr(other, "\"plan_hash\":\"") + strlen("\"plan_hash\":\"") + 16;
            is_found = !strncmp(tail, wanted, strlen(wanted));
        }
        if (!is_found) fail_msg("no row of %s equals %s", spec, line);
        n_pairs++;
    }
    free(rows);
    free(copy);
    return n_pairs;
}

/* Member `key` of the first row of `what` under the plan; NAN where it is not there. */
static double figure_of(const char *rows, const char *what, const char *spec, const char *key)
{
    char first[64], plan[700], name[64];
    snprintf(first, sizeof first, "{\"what\":\"%s\"", what);
    snprintf(plan, sizeof plan, "\"plan\":\"%s\"", spec);
    snprintf(name, sizeof name, "\"%s\":", key);
    for (const char *row = rows; (row = strstr(row, first)); row++) {
        const char *end = strchr(row, '\n'), *of_plan = strstr(row, plan), *at = strstr(row, name);
        if (of_plan && of_plan < end) return at && at < end ? atof(at + strlen(name)) : NAN;
    }
    return NAN;
}

/* Lists as long as their scores say: what eval prints was counted and is less than what was known before; explain
 * says that this is a bound. A list of fixed length reads what it says, dense everything. */
static void test_shares_are_counted(void **state)
{
    (void)state;
    static const char loud[] =
        "{\"heddle_plan\": 1, \"name\": \"loud\", \"variants\": [{\"decode\": [{\"layers\": \"all\", "
        "\"operator\": \"token_list\", \"router\": {\"score\": \"key_i4\", \"select\": \"threshold\", "
        "\"threshold\": 0.002, \"window\": 8}}]}]}";
    const char *names[] = {"loss", "task"};
    char spec[600];
    snprintf(spec, sizeof spec, "%s/loud.json", folder);
    write_all("loud.json", loud, (long)strlen(loud));
    assert_int_equal(
        run("eval -m %s -t 1 --invariant -c 1024 --documents 1 --answers 2 --text %s --tasks story,loss "
            "--plans %s,window:window=100 --out %s/shares.jsonl",
            model, text, spec, folder),
        0);
    assert_says("out", "R ");
    assert_says("out", "  reads ");
    char *rows = read_all("shares.jsonl", NULL);
    for (int i = 0; i < 2; i++) {
        double most = figure_of(rows, names[i], spec, "share_read"),
               counted = figure_of(rows, names[i], spec, "share_counted"),
               window = figure_of(rows, names[i], "window:window=100", "share_read");
        printf("%s: at most %.4f, counted %.4f; a window %.4f\n", names[i], most, counted, window);
        assert_true(counted > 0 && counted < most);
        if (!i) /* a question's rows stand elsewhere than the context's last */
            assert_true(fabs(figure_of(rows, names[i], "window:window=100", "share_counted") - window) <
                        2e-3);
        assert_true(figure_of(rows, names[i], "dense", "share_counted") == 1);
    }
    free(rows);
    assert_int_equal(run("explain -m %s --plan %s", model, spec), 0);
    assert_says("out",
                "only an upper bound is known before they are made: they are as long as their scores say");
}

/* A plan that keeps everything is dense, to the last digit that is written. */
static void test_keeping_everything_is_dense(void **state)
{
    (void)state;
    assert_int_equal(run_eval("laws.jsonl", "--tasks all"), 0);
    assert_int_equal(rows_as_dense("laws.jsonl", "oracle:top_k=16384"), 12 + 1 + 1);
}

/* A plan that evicts reads the document itself: with room for all it is dense; without, it is not; it has no
 * losses and no lists, and a run that asks for them says so and goes on. */
static void test_plans_that_evict(void **state)
{
    (void)state;
    static const char command[] =
        "eval -m %s -t 1 --invariant -c 1536 --documents 1 --answers 5 --text %s --plans '%s;' --tasks %s "
        "--out %s/%s";
    assert_int_equal(run(command, model, text, "snapkv:keep=16384;h2o:keep=16384", "tasks,agreement", folder,
                         "evicting.jsonl"),
                     0);
    assert_int_equal(rows_as_dense("evicting.jsonl", "snapkv:keep=16384"), 12 + 1);
    assert_int_equal(rows_as_dense("evicting.jsonl", "h2o:keep=16384"), 12 + 1);
    assert_int_equal(
        run(command, model, text, "snapkv:keep=64", "story,agreement,loss,lists", folder, "evicted.jsonl"),
        0);
    assert_says("err", "plan snapkv:keep=64 evicts rows at the end of a prompt: no loss and no lists of it");
    char *rows = read_all("evicted.jsonl", NULL), *nll[2];
    const char *plans[] = {"\"plan\":\"dense\"", "\"plan\":\"snapkv:keep=64\""};
    int n = 0;
    for (int p = 0; p < 2; p++) {
        nll[p] = strstr(strstr(rows, plans[p]), "\"nll\":");
        assert_non_null(nll[p]);
    }
    assert_true(strtod(nll[0] + 6, NULL) != strtod(nll[1] + 6, NULL));
    for (const char *at = rows; (at = strstr(at, plans[1])); at++) n++;
    assert_int_equal(n, 2); /* story and agreement */
    free(rows);
}

/* A list of everything holds what the best list of its length holds: all of it. */
static void test_a_list_of_everything_holds_everything(void **state)
{
    (void)state;
    assert_int_equal(run_eval("lists.jsonl", "--tasks lists"), 0);
    char *rows = read_all("lists.jsonl", NULL), *at = strstr(rows, "\"what\":\"lists\"");
    while (at && strncmp(strstr(at, "\"plan\":"), "\"plan\":\"oracle", 14) != 0)
        at = strstr(at + 1, "\"what\":\"lists\"");
    assert_non_null(at);
    const char *captured = strstr(at, "\"captured\":") + 11, *best = strstr(at, "\"oracle\":[") + 9;
    assert_int_equal(strncmp(captured, "[[1.0,1.0],[1.0,1.0]]", 21), 0);
    assert_int_equal(strncmp(best, "[[1.0,1.0],[1.0,1.0]]", 21), 0);
    at = strstr(rows, "\"what\":\"overlap\"");
    assert_non_null(strstr(at, "\"layers\":[0,1],\"overlap\":[[1.0,"));
    free(rows);
}

/* The "captured" or "oracle" of a plan's row of lists, up to its end; the caller frees it. */
static char *list_masses(const char *rows, const char *plan)
{
    char name[128];
    snprintf(name, sizeof name, "\"what\":\"lists\"");
    for (const char *at = rows; (at = strstr(at, name)); at++) {
        const char *own = strstr(at, "\"plan\":\""), *from = strstr(at, "\"layers\":");
        if (!own || !from || !strstr(own, plan) || strstr(own, plan) > from) continue;
        return strndup(from, (size_t)(strstr(from, ",\"makers\"") - from));
    }
    fail_msg("no lists of %s in: %s", plan, rows);
    return NULL;
}

/* What a layer reads is by its share and its head map, not the list of the nearest layer below. */
static void test_lists_are_those_that_are_read(void **state)
{
    (void)state;
    static const char *const readers[] = {
        "{\"layers\": [1], \"operator\": \"token_list\", \"share\": 0, \"head_map\": [0, 1]}",
        "{\"layers\": [1], \"operator\": \"token_list\", \"share\": 0, \"head_map\": [1, 1]}",
        "{\"layers\": [1], \"operator\": \"dense\"}"};
    char *masses[3], plans[2048] = "", more[3200];
    for (int i = 0; i < 3; i++) {
        char name[32], file[1024];
        int n = snprintf(
            file, sizeof file,
            "{\"heddle_plan\": 1, \"name\": \"readers%d\", \"variants\": [{\"decode\": [{\"layers\": "
            "[0], \"operator\": \"%s\", \"router\": {\"score\": \"attention_mass\", \"lists\": "
            "\"kv_head\", \"top_k\": 16, \"sinks\": 0, \"window\": 1}}, %s]}]}",
            i, i == 2 ? "token_list" : "dense", readers[i]); /* some layer has to read a list that is made */
        snprintf(name, sizeof name, "readers%d.json", i);
        write_all(name, file, n);
        snprintf(plans + strlen(plans), sizeof plans - strlen(plans), "%s/%s;", folder, name);
    }
    snprintf(more, sizeof more, "--tasks lists --plans '%s'", plans);
    assert_int_equal(run_eval("readers.jsonl", more), 0);
    char *rows = read_all("readers.jsonl", NULL);
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "readers%d.json", i);
        masses[i] = list_masses(rows, name);
    }
    double first[2][2], best[2][2]; /* of the maps: layer 1's two heads */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(sscanf(masses[i], "\"layers\":[1],\"captured\":[[%lf,%lf]],\"oracle\":[[%lf,%lf]]",
                                &first[i][0], &first[i][1], &best[i][0], &best[i][1]),
                         4);
        for (int h = 0; h < 2; h++) assert_true(first[i][h] > 0 && first[i][h] < best[i][h]);
    }
    assert_true(first[0][0] != first[1][0]); /* head 0 reads list 0 of the one plan, list 1 of the other */
    assert_true(first[0][1] == first[1][1]); /* head 1 reads list 1 of both */
    if (strncmp(masses[2], "\"layers\":[0],", 13) != 0)
        fail_msg("%s", masses[2]); /* layer 1 reads everything */
    for (int i = 0; i < 3; i++) free(masses[i]);
    free(rows);
}

/* The loss of the last quarter is what `heddle perplexity` says of these tokens. */
static void test_loss_is_perplexity(void **state)
{
    (void)state;
    double perplexity, nll = NAN, tokens = NAN;
    assert_int_equal(run_eval("loss.jsonl", "--tasks loss"), 0);
    char *rows = read_all("loss.jsonl", NULL), *row = strstr(rows, "\"plan\":\"dense\"");
    assert_int_equal(
        sscanf(strstr(row, "\"last_nll\":"), "\"last_nll\":%lf,\"last_tokens\":%lf", &nll, &tokens), 2);
    assert_int_equal(
        run("perplexity -m %s -t 1 --invariant -c 1536 --chunks 1 --from 1151 -f %s", model, text), 0);
    char *said = read_all("out", NULL);
    assert_int_equal(sscanf(said, "perplexity: %lf", &perplexity), 1);
    assert_true(fabs(exp(nll / tokens) / perplexity - 1) < 1e-6);
    assert_int_equal((int)tokens, 384);
    free(rows);
    free(said);
    assert_int_equal(run_eval("loss.jsonl", "--tasks loss --last"), 0); /* dense is dense either way */
    rows = read_all("loss.jsonl", NULL);
    char last[64];
    snprintf(last, sizeof last, "%s", strstr(rows, "\"last_nll\":"));
    *strchr(last, ',') = 0;
    assert_non_null(strstr(strstr(rows, "\"governs\":\"last\""), last));
    free(rows);
}

static void test_rulers_own_samples(void **state)
{
    (void)state;
    char path[700];
    snprintf(path, sizeof path, "%s/niah_single_1.jsonl", folder);
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 2; i++) {
        fprintf(file, "{\"index\": %d, \"input\": \"A special magic number is hidden.\\n", i);
        for (int j = 0; j < 25; j++) fputs("The grass is green. The sky is blue.\\n", file);
        fprintf(
            file,
            "One of the special magic numbers for a-b is: 12%d.\\nWhat is the special magic number for a-b "
            "mentioned in the provided text? The special magic number for a-b mentioned in the provided "
            "text is\", \"outputs\": [\"12%d\"], \"length\": 700}\n",
            i, i);
    }
    fclose(file);
    assert_int_equal(run_eval("ruler.jsonl", "--tasks none --documents 2 --ruler %s") == 2,
                     1); /* no such file */
    char more[800];
    snprintf(more, sizeof more, "--tasks none --documents 2 --ruler %s", path);
    assert_int_equal(run_eval("ruler.jsonl", more), 0);
    assert_says("out", "niah_single_1    dense");
    char *rows = read_all("ruler.jsonl", NULL);
    int n = 0;
    for (const char *at = rows; (at = strstr(at, "\"haystack\":\"ruler\"")); at++) n++;
    assert_int_equal(n, 2 * 3);
    assert_non_null(
        strstr(rows, "\"tokens\":4,")); /* a space and three digits, as this tokenizer has no longer ones */
    /* made to decide: the table names the worst task and what was read */
    for (char *row = rows; row && *row; row = strchr(row, '\n') + 1) {
        char *right = strstr(row, "\"right\":") + 8;
        *right = strstr(row, "\"plan\":\"dense\"") && strstr(row, "\"plan\":\"dense\"") < right ? '4' : '0';
    }
    write_all("decided.jsonl", rows, (long)strlen(rows));
    assert_int_equal(run_eval("decided.jsonl", more), 0);
    assert_says("out", "mean of 1 deciding tasks -100.00, worst -100.00 (niah_single_1); reads 200.0 %");
    free(rows);
    file = fopen(path, "a");
    fputs("{\"input\": \"no answer\"}\n", file);
    fclose(file);
    snprintf(more, sizeof more, "--tasks none --documents 9 --ruler %s", path);
    assert_int_equal(run_eval("ruler.jsonl", more), 2);
    assert_says("err", "line 3 is no sample of RULER");
}

/* The number behind a member, in the first row of this plan. */
static double number_in(const char *rows, const char *plan, const char *member)
{
    const char *row = strstr(rows, plan), *at = row ? strstr(row, member) : NULL;
    if (!at) fail_msg("no %s of %s in: %s", member, plan, rows);
    return strtod(at + strlen(member), NULL);
}

/* eval --ruler on a file `name` of one sample, its rows in rows_`name`; `input` and `outputs` as JSON has them. */
static int run_sample(const char *name, const char *input, const char *outputs, const char *options)
{
    char bytes[8192], file[64], rows[80], more[1024];
    int n = snprintf(bytes, sizeof bytes, "{\"input\": \"%s\", \"outputs\": %s}\n", input, outputs);
    snprintf(file, sizeof file, "%s.jsonl", name);
    snprintf(rows, sizeof rows, "rows_%s.jsonl", name);
    write_all(file, bytes, n);
    snprintf(more, sizeof more, "%s --ruler %s/%s", options, folder, file);
    return run_eval(rows, more);
}

/* `first`, a sentence n times, `last`; the caller frees it. */
static char *long_input(const char *first, int n, const char *last)
{
    static const char sentence[] = "The grass is green. ";
    char *input = malloc(strlen(first) + (size_t)n * (sizeof sentence - 1) + strlen(last) + 1);
    assert_non_null(input);
    strcpy(input, first);
    for (int i = 0; i < n; i++) strcat(input, sentence);
    return strcat(input, last);
}

/* A short question is read under the plan, not the line before it; the share is that of the sample's length. */
static void test_rulers_short_question(void **state)
{
    (void)state;
    static const char outputs[] = "[\"ab\", \"c\"]";
    char *input = long_input("First line.\\n", 40, "\\nWho?\\n");
    assert_int_equal(run_sample("short", input, outputs, "--tasks none"), 0);
    char *rows = read_all("rows_short.jsonl", NULL);
    assert_true(number_in(rows, "\"plan\":\"dense\"", "\"document_tokens\":") > 400); /* the long line too */
    double share = number_in(rows, "\"plan\":\"window:", "\"share_read\":");
    assert_int_equal(run_sample("long", input, outputs, "--tasks none -c 4096"), 0);
    char *again = read_all("rows_long.jsonl", NULL);
    assert_true(fabs(number_in(again, "\"plan\":\"window:", "\"share_read\":") - share) < 1e-9);
    free(input);
    free(rows);
    free(again);
}

/* -c is the most tokens that are held, of a sample too. */
static void test_rulers_sample_beyond_the_context(void **state)
{
    (void)state;
    char *input = long_input("", 200, "\\nWho?");
    assert_int_equal(run_sample("beyond", input, "[\"ab\"]", "--tasks none -c 1024"), 2);
    assert_says("err", "eval: beyond: sample 1 has ");
    assert_says("err", " tokens with its answer, more than the context of 1024 (-c)");
    free(input);
}

/* A file named after a task of eval's own has a column of its own. */
static void test_rulers_name_of_a_task(void **state)
{
    (void)state;
    assert_int_equal(run_sample("passage", "The grass is green.\\nWho?", "[\"ab\"]", "--tasks passage"), 0);
    assert_says("out", "passage          dense");
    assert_says("out", "passage.ruler    dense");
    char *rows = read_all("rows_passage.jsonl", NULL);
    assert_non_null(strstr(rows, "\"task\":\"passage.ruler\""));
    free(rows);
}

/* Lines that cannot be asked, each refused with its number before anything is read. */
static void test_rulers_bad_lines(void **state)
{
    (void)state;
    static const char *const lines[][2] = {
        {"{\"input\": \"one line, and a question?\", \"outputs\": [\"a\"]}", "line 2: input: has one line"},
        {"{\"input\": \"\\n \\nand a question?\", \"outputs\": [\"a\"]}", "line 2: input: has one line"},
        {"{\"input\": \"a\\nb\", \"outputs\": [4711]}", "line 2: outputs[0]: must be a text"},
        {"{\"input\": \"a\\nb\", \"outputs\": [\"a\", null]}", "line 2: outputs[1]: must be a text"},
        {"{\"input\": \"a\\nb\", \"outputs\": [\"\"]}", "line 2: outputs[0]: must be a text"},
        {"{\"input\": \"a\\nb\", \"outputs\": []}", "line 2: outputs: must be a list of one text or more"},
        {"{\"input\": \"a\\nb\", \"outputs\": \"1000\"}", "line 2: outputs: must be a list of one text"},
        {"{\"input\": 3, \"outputs\": [\"a\"]}", "line 2: input: must be a text that is not empty"},
        {"{\"input\": \"\", \"outputs\": [\"a\"]}", "line 2: input: must be a text that is not empty"},
        {"{\"input\": \"a\\nb\"}", "line 2 is no sample of RULER"},
        {"[1]", "line 2 is no sample of RULER"},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char path[700], bytes[512], more[800];
        int n = snprintf(bytes, sizeof bytes, "{\"input\": \"a\\nb\", \"outputs\": [\"c\"]}\n%s\n",
                         lines[i][0]);
        write_all("bad.jsonl", bytes, n);
        snprintf(path, sizeof path, "%s/bad.jsonl", folder);
        snprintf(more, sizeof more, "--tasks none --documents 2 --ruler %s", path);
        assert_int_equal(run_eval("bad_rows.jsonl", more), 2);
        assert_says("err", lines[i][1]);
        char *rows = read_all("bad_rows.jsonl", NULL);
        assert_string_equal(rows, "");
    }
}

/* All tasks of a haystack take turns, whatever --tasks says: which of them are left out is said. */
static void test_tasks_without_a_question(void **state)
{
    (void)state;
    assert_int_equal(run("eval -m %s -t 1 --invariant -c 1024 --documents 1 --answers 4 --text %s --tasks "
                         "needle_text,multi_query,passage --plans dense --out %s/unasked.jsonl",
                         model, text, folder),
                     0);
    assert_says("err",
                "text document 1 has no question of passage: its 5 tasks take turns, those not in --tasks "
                "too, and --answers is 4\n");
    char *rows = read_all("unasked.jsonl", NULL);
    assert_non_null(strstr(rows, "\"task\":\"multi_query\""));
    assert_null(strstr(rows, "\"task\":\"passage\""));
    free(rows);
}

/* Another --answers asks the same document again: the table counts it once, with this run's questions. */
static void test_a_document_counts_once(void **state)
{
    (void)state;
    for (int answers = 4; answers >= 2; answers -= 2) {
        assert_int_equal(run("eval -m %s -t 1 -c 1024 --documents 1 --answers %d --tasks needle_noise "
                             "--plans dense --out %s/answers.jsonl",
                             model, answers, folder),
                         0);
        assert_says("out", answers == 4 ? "(1 documents, 16 " : "(1 documents, 8 ");
    }
}

/* Seed 0 is a seed like others: its table has no documents of another. */
static void test_seed_0_is_one_seed(void **state)
{
    (void)state;
    for (int seed = 1; seed >= 0; seed--)
        assert_int_equal(run("eval -m %s -t 1 -c 1024 --documents 1 --answers 2 --seed %d --tasks "
                             "needle_noise --plans dense --out %s/seeds.jsonl",
                             model, seed, folder),
                         0);
    assert_says("out", "(1 documents, ");
}

/* The mode is a part of what a row is of: the other one's rows are not taken for it. */
static void test_modes_have_rows_of_their_own(void **state)
{
    (void)state;
    static const char *const modes[] = {"", "--invariant", ""};
    long n_bytes[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(run("eval -m %s -t 1 -c 1024 --documents 1 --answers 2 --tasks needle_noise,loss "
                             "--text %s --plans dense --out %s/modes.jsonl %s",
                             model, text, folder, modes[i]),
                         0);
        char *rows = read_all("modes.jsonl", &n_bytes[i]);
        assert_true(!strstr(rows, "\"invariant\":true") == !i);
        free(rows);
        assert_says("out", "(1 documents, ");
    }
    assert_true(n_bytes[1] > 2 * n_bytes[0] && n_bytes[2] == n_bytes[1]);
}

/* A KV type is looked at when the first session opens, after the results. */
static void test_a_refused_run_leaves_no_file(void **state)
{
    (void)state;
    char path[600];
    struct stat facts;
    snprintf(path, sizeof path, "%s/refused.jsonl", folder);
    assert_int_equal(run_eval("refused.jsonl", "--tasks story --kv i4"), 2);
    assert_says("err", "KV type \"i4\": must be");
    assert_int_not_equal(stat(path, &facts), 0);
    write_all("refused.jsonl", "", 0);
    assert_int_equal(run_eval("refused.jsonl", "--tasks story --kv i4"), 2);
    assert_int_equal(stat(path, &facts), 0); /* one that was there stays */
}

static void test_bad_input(void **state)
{
    (void)state;
    static const char broken[] = "{\"what\":\"task\"}\nnot json\n";
    assert_int_equal(run_eval("x.jsonl", "--tasks needle_nois"), 2);
    assert_says("err", "did you mean needle_noise?");
    assert_int_equal(run_eval("x.jsonl", "--tasks zzzzzzzzz"), 2);
    assert_says("err", "unknown task 'zzzzzzzzz'");
    assert_int_equal(run_eval("x.jsonl", "--tasks ''"), 2);
    assert_says("err", "--tasks '' names no task");
    assert_int_equal(run_eval("x.jsonl", "--tasks ,"), 2);
    write_all("broken.jsonl", broken, (long)strlen(broken));
    assert_int_equal(run_eval("broken.jsonl", "--tasks table"), 2);
    assert_says("err", "broken.jsonl: line 2 is no result of 'heddle eval'");
    char *kept = read_all("broken.jsonl", NULL);
    assert_string_equal(kept, broken); /* untouched */
    free(kept);
    assert_int_equal(run("eval -m %s --tasks loss -c 1536 --out %s/x.jsonl --plans dense", model, folder), 2);
    assert_says("err", "need a real text");
    assert_int_equal(
        run("eval -m %s --tasks loss -c 1M --text %s --out %s/x.jsonl --plans dense", model, text, folder),
        2);
    assert_says("err", "one document needs 1048576");
    assert_int_equal(run("eval -m %s -t 1 --tasks loss -c 1024 --first 900 --text %s --out %s/x.jsonl "
                         "--plans dense",
                         model, text, folder),
                     0);
    assert_says("err", "eval: the texts have no document of 1024 tokens from --first 900 on");
    assert_int_equal(run("eval -m %s -c 100 --plans dense", model), 2);
    assert_says("err", "must be at least 1024");
    assert_int_equal(run("eval --plans dense"), 2);
    assert_says("err", "no model is given");
    assert_int_equal(run("eval -m %s --plans anchor --out %s/x.jsonl", model, folder),
                     2); /* not for this model */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stopped_anywhere),
        cmocka_unit_test(test_a_run_in_two_parts),
        cmocka_unit_test(test_shares_are_counted),
        cmocka_unit_test(test_keeping_everything_is_dense),
        cmocka_unit_test(test_plans_that_evict),
        cmocka_unit_test(test_a_list_of_everything_holds_everything),
        cmocka_unit_test(test_lists_are_those_that_are_read),
        cmocka_unit_test(test_loss_is_perplexity),
        cmocka_unit_test(test_rulers_own_samples),
        cmocka_unit_test(test_rulers_short_question),
        cmocka_unit_test(test_rulers_sample_beyond_the_context),
        cmocka_unit_test(test_rulers_name_of_a_task),
        cmocka_unit_test(test_rulers_bad_lines),
        cmocka_unit_test(test_tasks_without_a_question),
        cmocka_unit_test(test_a_document_counts_once),
        cmocka_unit_test(test_seed_0_is_one_seed),
        cmocka_unit_test(test_modes_have_rows_of_their_own),
        cmocka_unit_test(test_a_refused_run_leaves_no_file),
        cmocka_unit_test(test_bad_input),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
