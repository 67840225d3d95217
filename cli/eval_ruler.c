/* eval_ruler.c - samples of RULER's own files: one JSON object a line with `input` and `outputs`.
 *
 * The file's name is the task's. A sample's text is split before its last line: what stands there is
 * the document, read densely, the last line is read in the plan's decode route. The answer is the
 * outputs, joined by ", ". Samples carry the template they were prepared with, so no chat template is
 * put around them. All samples that are asked for are checked before anything is read. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "eval_int.h"
#include "term.h"

typedef struct ruler_sample {
    eval_run *run;
    const char *task, *file_hash;
    int64_t index;
    json_t *sample;
} ruler_sample;

static json_t *ruler_row(const ruler_sample *s, const eval_plan *plan)
{
    json_t *row = eval_row(s->run, "task", plan);
    if (!row) return NULL;
    json_object_set_new(row, "frame", json_string("raw"));
    json_object_set_new(row, "haystack", json_string("ruler"));
    json_object_set_new(row, "source", json_string(s->task));
    json_object_set_new(row, "source_hash", json_string(s->file_hash));
    json_object_set_new(row, "document", json_integer(s->index));
    json_object_set_new(row, "task", json_string(s->task));
    json_object_set_new(row, "answers", json_integer(1));
    return row;
}

static int answer_text(const ruler_sample *s, eval_buf *answer)
{
    const json_t *outputs = json_object_get(s->sample, "outputs"), *item;
    size_t i;
    json_array_foreach(outputs, i, item)
    {
        eval_buf_printf(answer, "%s %s", i ? "," : "", json_string_value(item));
    }
    return answer->is_failed ? eval_no_memory() : 0;
}

/* Where the last line that says something begins, with the line end before it; 0: before it nothing is said. */
static int64_t split_at(const char *input)
{
    int64_t at = (int64_t)strlen(input), first = 0;
    while (isspace((unsigned char)input[first])) first++;
    while (at > 0 && isspace((unsigned char)input[at - 1])) at--;
    while (at > first && input[at] != '\n') at--;
    return at > first ? at : 0;
}

static int ask_sample(ruler_sample *s, const heddle_session *dense, const cli_ids *document,
                      const cli_ids *ids, int64_t n_answer, const eval_plan *plan)
{
    heddle_session *session = NULL;
    eval_score score = {0};
    int code = eval_under_plan(s->run, dense, document, plan, &session);
    if (!code) code = eval_ask(s->run, plan, session, ids, n_answer, &score);
    heddle_session_free(session);
    if (code) return code;
    json_t *row = ruler_row(s, plan);
    json_object_set_new(row, "questions", json_integer(1));
    json_object_set_new(row, "exact", json_integer(score.n_right == score.n));
    json_object_set_new(row, "tokens", json_integer(score.n));
    json_object_set_new(row, "right", json_integer(score.n_right));
    json_object_set_new(row, "nll", json_real(score.nll));
    json_object_set_new(row, "document_tokens", json_integer(document->n));
    int64_t n = document->n + ids->n; /* the share is that of the sample's last row, whatever -c says */
    code = eval_add_share(s->run, plan, n - 1, n, &score.reads, row);
    if (!code) return results_add(&s->run->results, row);
    json_decref(row);
    return code;
}

/* The document's ids and what follows it. */
static int sample_ids(const ruler_sample *s, cli_ids *document, cli_ids *question, int64_t *n_answer)
{
    const char *input = row_text(s->sample, "input"), *prefix = row_text(s->sample, "answer_prefix");
    int64_t n = (int64_t)strlen(input), at = split_at(input);
    int32_t bos = -1;
    eval_buf answer = {0};
    int code = cli_bos(s->run->setup.engine, &bos);
    if (!code && bos >= 0) code = cli_ids_add(document, &bos, 1);
    if (!code) code = eval_ids_text(s->run, document, input, at);
    if (!code) code = eval_ids_text(s->run, question, input + at, n - at);
    if (!code) code = eval_ids_text(s->run, question, prefix, (int64_t)strlen(prefix));
    int64_t before = question->n;
    if (!code) code = answer_text(s, &answer);
    if (!code) code = eval_ids_text(s->run, question, answer.data, answer.n);
    *n_answer = question->n - before;
    eval_buf_free(&answer);
    return code;
}

/* 0, or a refusal of this line of the file. */
static int check_sample(const char *path, int64_t line, const json_t *sample)
{
    const json_t *outputs = json_object_get(sample, "outputs"), *item;
    size_t i;
    if (!json_object_get(sample, "input") || !outputs)
        return cli_refuse("%s: line %" PRId64 " is no sample of RULER: it needs \"input\" and \"outputs\"",
                          path, line);
    if (!*row_text(sample, "input"))
        return cli_refuse("%s: line %" PRId64 ": input: must be a text that is not empty", path, line);
    if (!json_array_size(outputs))
        return cli_refuse("%s: line %" PRId64 ": outputs: must be a list of one text or more", path, line);
    json_array_foreach(outputs, i, item)
    {
        if (!json_string_length(item))
            return cli_refuse("%s: line %" PRId64 ": outputs[%zu]: must be a text that is not empty", path,
                              line, i);
    }
    if (!split_at(row_text(sample, "input")))
        return cli_refuse("%s: line %" PRId64
                          ": input: has one line; what stands before the last line is read "
                          "densely, and must be something",
                          path, line);
    return 0;
}

static int run_sample(ruler_sample *s)
{
    heddle_session *session = NULL;
    cli_ids document = {0}, question = {0};
    int64_t n_answer = 0;
    int code = 0;
    for (int p = 0; p < s->run->n_plans && !code; p++) {
        json_t *row = ruler_row(s, &s->run->plans[p]);
        bool is_there = row && results_find(&s->run->results, row);
        json_decref(row);
        if (is_there) continue;
        if (!session) {
            code = sample_ids(s, &document, &question, &n_answer);
            if (!code && document.n + question.n > s->run->context)
                code = cli_refuse("eval: %s: sample %" PRId64 " has %" PRId64
                                  " tokens with its answer, more than the context of %" PRId64 " (-c)",
                                  s->task, s->index + 1, document.n + question.n, s->run->context);
            heddle_session_options options = eval_document_options(s->run, document.n + question.n);
            heddle_status status = HEDDLE_OK;
            if (!code) status = heddle_session_new(&session, s->run->setup.engine, NULL, &options);
            if (!code && !status)
                status = heddle_session_extend(session, document.ids, document.n, NULL, NULL);
            if (status) code = cli_fail(status);
        }
        if (!code) code = ask_sample(s, session, &document, &question, n_answer, &s->run->plans[p]);
    }
    heddle_session_free(session);
    cli_ids_free(&document);
    cli_ids_free(&question);
    return code;
}

void eval_ruler_task(const char *path, char *task, size_t n)
{
    eval_base_name(path, task, n);
    for (int i = 0; i < EVAL_N_TASKS; i++)
        if (!strcmp(task, eval_tasks[i].name)) snprintf(task, n, "%s.ruler", eval_tasks[i].name);
}

/* Checks every line of a file, or runs the samples that are wanted. */
static int each_sample(eval_run *run, const char *path, bool is_check)
{
    cli_text text = {0};
    char task[64], hash[20];
    int code = cli_read_file(&text, path);
    eval_ruler_task(path, task, sizeof task);
    snprintf(hash, sizeof hash, "%016" PRIx64, eval_hash(EVAL_HASH_START, text.data, text.n));
    int64_t index = 0;
    for (int64_t at = 0, line = 1;
         at < text.n && !code && index < run->options->first + run->options->documents; line++) {
        const char *end = memchr(text.data + at, '\n', (size_t)(text.n - at));
        int64_t n = end ? end - (text.data + at) : text.n - at;
        json_error_t error;
        json_t *sample = n ? json_loadb(text.data + at, (size_t)n, 0, &error) : NULL;
        ruler_sample s = {.run = run, .task = task, .file_hash = hash, .index = index, .sample = sample};
        if (n) {
            bool is_run = !is_check && index >= run->options->first;
            if (is_check) code = check_sample(path, line, sample);
            if (is_run) code = run_sample(&s);
            if (is_run && !code) cli_note("%s sample %" PRId64, task, index + 1);
            index++;
        }
        json_decref(sample);
        at += n + 1;
    }
    cli_text_free(&text);
    return code;
}

int eval_check_rulers(eval_run *run)
{
    int code = 0;
    for (int i = 0; i < run->options->rulers.n && !code; i++) {
        const char *path = run->options->rulers.items[i];
        FILE *file = fopen(path, "rb");
        int first = file ? fgetc(file) : EOF;
        if (!file) return cli_refuse("eval: --ruler %s: cannot be read: %s", path, strerror(errno));
        fclose(file);
        if (first == EOF) return cli_refuse("eval: --ruler %s: is empty", path);
        code = each_sample(run, path, true);
    }
    return code;
}

int eval_run_rulers(eval_run *run)
{
    int code = 0;
    for (int i = 0; i < run->options->rulers.n && !code; i++)
        code = each_sample(run, run->options->rulers.items[i], false);
    return code;
}
