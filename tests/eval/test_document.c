/* Generated documents: the same bytes for ever, true facts, a length as asked, fair questions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <stdio.h>

#include "eval/document.h"
#include "eval/words.h"

/* A token counter that needs no model: a token is four bytes. */
static int64_t count_bytes(const char *text, int64_t n, void *user)
{
    (void)text;
    (void)user;
    return (n + 3) / 4;
}

/* A text in which every word is another, so that a passage has one continuation. */
static eval_buf source;

static int make_source(void **state)
{
    (void)state;
    for (int i = 0; i < 60000; i++) eval_buf_printf(&source, "w%05d%s", i, i % 11 == 10 ? ".\n" : " ");
    return source.is_failed;
}

static int free_source(void **state)
{
    (void)state;
    eval_buf_free(&source);
    return 0;
}

static eval_request request_of(eval_haystack haystack, int64_t n_tokens, int64_t index)
{
    eval_request request = {.haystack = haystack,
                            .seed = 1,
                            .index = index,
                            .n_tokens = n_tokens,
                            .max_questions = 64,
                            .source = source.data,
                            .source_bytes = source.n,
                            .count = count_bytes};
    for (int t = 0; t < EVAL_N_TASKS; t++) request.wants[t] = true;
    return request;
}

static eval_document make(const eval_request *request)
{
    eval_document document;
    const char *why = eval_document_make(&document, request);
    if (why) fail_msg("%s", why);
    return document;
}

/* Of the text and the questions of one task. */
static uint64_t hash_of(const eval_document *document, eval_task task)
{
    uint64_t hash = eval_hash(EVAL_HASH_START, document->text, (int64_t)strlen(document->text));
    for (int32_t i = 0; i < document->n_questions; i++) {
        const eval_question *q = &document->questions[i];
        if (q->task != task) continue;
        hash = eval_hash(hash, q->question, (int64_t)strlen(q->question));
        hash = eval_hash(hash, q->prefix, (int64_t)strlen(q->prefix));
        hash = eval_hash(hash, q->answer, (int64_t)strlen(q->answer));
    }
    return hash;
}

/* A change of these numbers makes every committed result another experiment's. */
static const uint64_t golden[EVAL_N_TASKS] = {
    0xba7a0c2710777e31u, /* needle_noise */
    0x66f70bcd00d8592bu, /* variables */
    0x4d2ec07f6ee8e216u, /* needle_text */
    0xd85144b68d4ee174u, /* multi_key */
    0xc19d24d0af1cc2b5u, /* multi_value */
    0x78a8e0ae053de02fu, /* multi_query */
    0x6556e74ae4000474u, /* passage */
    0xb52dd29266f16a34u, /* needle_lines */
    0x707cca0f6f2dcc18u, /* table */
    0xca9d4f3aea1a3322u, /* common_words */
    0x62575dd4e4578afau, /* frequent_words */
    0x8abc67f08d33e5b5u, /* story */
};

static void test_golden_hashes(void **state)
{
    (void)state;
    int n_wrong = 0;
    for (int t = 0; t < EVAL_N_TASKS; t++) {
        eval_request request = request_of(eval_tasks[t].haystack, 4096, 3);
        eval_document document = make(&request);
        uint64_t hash = hash_of(&document, (eval_task)t);
        if (hash != golden[t]) {
            print_message("%s: 0x%016llx, not 0x%016llx\n", eval_tasks[t].name, (unsigned long long)hash,
                          (unsigned long long)golden[t]);
            n_wrong++;
        }
        eval_document_free(&document);
    }
    assert_int_equal(n_wrong, 0);
}

static void test_the_same_again_and_another_index(void **state)
{
    (void)state;
    for (int h = 0; h < EVAL_N_HAYSTACKS; h++) {
        eval_request request = request_of((eval_haystack)h, 2048, 0);
        eval_document a = make(&request), b = make(&request);
        assert_string_equal(a.text, b.text);
        assert_int_equal(a.n_questions, b.n_questions);
        request.index = 1;
        eval_document c = make(&request);
        assert_string_not_equal(a.text, c.text);
        request.index = 0;
        request.seed = 2;
        eval_document d = make(&request);
        assert_string_not_equal(a.text, d.text);
        eval_document_free(&a);
        eval_document_free(&b);
        eval_document_free(&c);
        eval_document_free(&d);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    static const int64_t lengths[] = {512, 2048, 4096, 32768};
    for (int h = 0; h < EVAL_N_HAYSTACKS; h++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            eval_request request = request_of((eval_haystack)h, lengths[l], 0);
            eval_document document = make(&request);
            int64_t n = count_bytes(NULL, (int64_t)strlen(document.text), NULL);
            double off = (double)(n - lengths[l]) / (double)lengths[l];
            if (off < -0.30 || off > 0.12)
                fail_msg("%s: %lld tokens asked, %lld made", eval_haystack_names[h], (long long)lengths[l],
                         (long long)n);
            assert_true(document.n_questions > 0 && document.n_questions <= 64);
            eval_document_free(&document);
        }
}

static int count_of(const char *text, const char *what)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

/* "The lucky ticket number for amber-anchor mentioned in the provided text is:" and " 1234567":
 * the document says so, and says so once. */
static void test_single_needles_are_there_once(void **state)
{
    (void)state;
    static const eval_task tasks[] = {EVAL_NEEDLE_NOISE, EVAL_NEEDLE_TEXT, EVAL_MULTI_KEY, EVAL_NEEDLE_LINES};
    for (size_t t = 0; t < sizeof tasks / sizeof *tasks; t++) {
        eval_request request = request_of(eval_tasks[tasks[t]].haystack, 4096, 5);
        eval_document document = make(&request);
        int n_asked = 0;
        for (int32_t i = 0; i < document.n_questions; i++) {
            const eval_question *q = &document.questions[i];
            char subject[64], key[64], line[256], part[160];
            if (q->task != tasks[t]) continue;
            const char *at = strstr(q->prefix, " for ");
            assert_non_null(at);
            snprintf(subject, sizeof subject, "%.*s", (int)(at - q->prefix - 4), q->prefix + 4);
            snprintf(key, sizeof key, "%.*s", (int)strcspn(at + 5, " "), at + 5);
            snprintf(line, sizeof line, "One of the %ss for %s is:%s.", subject, key, q->answer);
            assert_int_equal(count_of(document.text, line), 1);
            snprintf(part, sizeof part, "%ss for %s is", subject, key);
            assert_int_equal(count_of(document.text, part), 1);
            double at_bytes = (double)(strstr(document.text, line) - document.text);
            assert_true(q->depth >= 0 && q->depth <= 1);
            assert_true(at_bytes / (double)strlen(document.text) - q->depth < 0.05);
            n_asked++;
        }
        assert_true(n_asked >= 4);
        eval_document_free(&document);
    }
}

/* All values of a key, in the order of the text; those of four keys in the order of the question. */
static void test_many_values(void **state)
{
    (void)state;
    eval_request request = request_of(EVAL_TEXT, 8192, 2);
    eval_document document = make(&request);
    int n_values = 0, n_queries = 0;
    for (int32_t i = 0; i < document.n_questions; i++) {
        const eval_question *q = &document.questions[i];
        char answer[128];
        if (q->task != EVAL_MULTI_VALUE && q->task != EVAL_MULTI_QUERY) continue;
        snprintf(answer, sizeof answer, "%s", q->answer);
        const char *before = document.text;
        int n = 0;
        for (char *rest = NULL, *value = strtok_r(answer, ", ", &rest); value;
             value = strtok_r(NULL, ", ", &rest), n++) {
            char sentence[64];
            snprintf(sentence, sizeof sentence, " is: %s.", value);
            const char *at = strstr(document.text, sentence);
            assert_non_null(at);
            assert_int_equal(count_of(document.text, sentence), 1);
            if (q->task == EVAL_MULTI_VALUE) assert_true(at > before);
            before = at;
        }
        assert_int_equal(n, 4);
        n_values += q->task == EVAL_MULTI_VALUE;
        n_queries += q->task == EVAL_MULTI_QUERY;
    }
    assert_true(n_values >= 2 && n_queries >= 2);
    eval_document_free(&document);
}

static void test_passages_go_on_as_the_text_does(void **state)
{
    (void)state;
    eval_request request = request_of(EVAL_TEXT, 4096, 7);
    eval_document document = make(&request);
    int n = 0;
    for (int32_t i = 0; i < document.n_questions; i++) {
        const eval_question *q = &document.questions[i];
        if (q->task != EVAL_PASSAGE) continue;
        char whole[1024];
        snprintf(whole, sizeof whole, "%s%s", q->prefix, q->answer);
        assert_int_equal(count_of(document.text, whole), 1);
        assert_null(strstr(whole, "One of the"));
        n++;
    }
    assert_true(n >= 8);
    eval_document_free(&document);
}

static void test_chains_hold(void **state)
{
    (void)state;
    eval_request request = request_of(EVAL_NOISE, 8192, 1);
    eval_document document = make(&request);
    int n_chains = 0;
    for (int32_t i = 0; i < document.n_questions; i++) {
        const eval_question *q = &document.questions[i];
        char names[5][8], value[8], line[64];
        if (q->task != EVAL_VARIABLES) continue;
        assert_int_equal(sscanf(strstr(q->prefix, "the value ") + 10, "%5s", value), 1);
        assert_int_equal(
            sscanf(q->answer, " %5s %5s %5s %5s %5s", names[0], names[1], names[2], names[3], names[4]), 5);
        snprintf(line, sizeof line, "VAR %s = %s\n", names[0], value);
        assert_int_equal(count_of(document.text, line), 1);
        for (int h = 1; h < 5; h++) {
            snprintf(line, sizeof line, "VAR %s = VAR %s\n", names[h], names[h - 1]);
            assert_int_equal(count_of(document.text, line), 1);
        }
        n_chains++;
    }
    assert_true(n_chains >= 3);
    eval_document_free(&document);
}

static void test_tables_and_stories_answer_their_questions(void **state)
{
    (void)state;
    static const eval_haystack haystacks[] = {EVAL_TABLE, EVAL_STORY};
    for (int h = 0; h < 2; h++) {
        eval_request request = request_of(haystacks[h], 4096, 4);
        eval_document document = make(&request);
        assert_int_equal(document.n_questions, 64);
        for (int32_t i = 0; i < document.n_questions; i++) {
            const eval_question *q = &document.questions[i];
            char line[128], heading[32], next[32];
            int number = 0;
            if (haystacks[h] == EVAL_TABLE) {
                const char *key = q->prefix + strlen("The value of the key ");
                snprintf(line, sizeof line, "%.*s:%s\n", (int)strcspn(key, " "), key, q->answer);
                assert_int_equal(count_of(document.text, line), 1);
                continue;
            }
            assert_int_equal(sscanf(q->prefix, "In chapter %d,", &number), 1);
            snprintf(heading, sizeof heading, "Chapter %d\n", number);
            snprintf(next, sizeof next, "Chapter %d\n", number + 1);
            const char *from = strstr(document.text, heading), *to = strstr(document.text, next);
            const char *at = strstr(from, q->answer + 1);
            assert_true(at && (!to || at < to));
        }
        eval_document_free(&document);
    }
}

static void test_counted_words(void **state)
{
    (void)state;
    eval_request request = request_of(EVAL_WORDS, 4096, 0);
    eval_document document = make(&request);
    int n_common = 0, n_frequent = 0;
    for (int32_t i = 0; i < document.n_questions; i++) {
        const eval_question *q = &document.questions[i];
        const char *number = strstr(q->question, "list ");
        char heading[24], next[24], answer[512];
        int list = 0, least = 1 << 30, n = 0;
        assert_int_equal(sscanf(number, "list %d", &list), 1);
        snprintf(heading, sizeof heading, "List %d:", list);
        snprintf(next, sizeof next, "List %d:", list + 1);
        const char *from = strstr(document.text, heading), *to = strstr(from, next);
        char *part = strndup(from, to ? (size_t)(to - from) : strlen(from));
        snprintf(answer, sizeof answer, "%s", q->answer);
        for (char *rest = NULL, *w = strtok_r(answer, ", ", &rest); w; w = strtok_r(NULL, ", ", &rest), n++) {
            int count = count_of(part, w);
            if (q->task == EVAL_FREQUENT_WORDS) assert_true(count <= least); /* the most frequent first */
            least = count < least ? count : least;
        }
        assert_int_equal(n, q->task == EVAL_COMMON_WORDS ? 10 : 3);
        assert_true(least >= 4);
        n_common += q->task == EVAL_COMMON_WORDS;
        n_frequent += q->task == EVAL_FREQUENT_WORDS;
        free(part);
    }
    assert_int_equal(n_common, 2);
    assert_int_equal(n_frequent, 2);
    eval_document_free(&document);
}

static void test_questions_are_shared_fairly(void **state)
{
    (void)state;
    eval_request request = request_of(EVAL_TEXT, 8192, 0);
    request.max_questions = 10;
    eval_document document = make(&request);
    int n[EVAL_N_TASKS] = {0};
    assert_int_equal(document.n_questions, 10);
    for (int32_t i = 0; i < 10; i++) n[document.questions[i].task]++;
    for (int t = EVAL_NEEDLE_TEXT; t <= EVAL_PASSAGE; t++) assert_int_equal(n[t], 2);
    eval_document_free(&document);
    for (int t = 0; t < EVAL_N_TASKS; t++) request.wants[t] = t == EVAL_MULTI_QUERY;
    document = make(&request);
    for (int32_t i = 0; i < document.n_questions; i++)
        assert_int_equal(document.questions[i].task, EVAL_MULTI_QUERY);
    assert_int_equal(document.n_questions, 10);
    eval_document_free(&document);
}

static void test_refusals(void **state)
{
    (void)state;
    eval_document document;
    eval_request request = request_of(EVAL_TEXT, 4096, 0);
    request.source = NULL;
    assert_string_equal(eval_document_make(&document, &request), "no real text is given: --text FILE");
    assert_null(document.text);
    request = request_of(EVAL_TEXT, 4096, 0);
    request.source_bytes = 2000;
    assert_non_null(strstr(eval_document_make(&document, &request), "shorter than the document"));
    request = request_of(EVAL_NOISE, 100, 0);
    assert_non_null(strstr(eval_document_make(&document, &request), "fewer than 512"));
}

static void test_draws_are_even(void **state)
{
    (void)state;
    int n[7] = {0};
    eval_rng rng = eval_rng_of(9, "even", 0);
    for (int i = 0; i < 70000; i++) n[eval_rng_below(&rng, 7)]++;
    for (int i = 0; i < 7; i++) assert_true(n[i] > 9600 && n[i] < 10400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_hashes),
        cmocka_unit_test(test_the_same_again_and_another_index),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_single_needles_are_there_once),
        cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_passages_go_on_as_the_text_does),
        cmocka_unit_test(test_chains_hold),
        cmocka_unit_test(test_tables_and_stories_answer_their_questions),
        cmocka_unit_test(test_counted_words),
        cmocka_unit_test(test_questions_are_shared_fairly),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_draws_are_even),
    };
    return cmocka_run_group_tests(tests, make_source, free_source);
}
