/* The tokenizer's core on vocabularies made here: merges against a naive reference, segments,
 * decoding, facts from GGUF metadata, threads. No file is needed. */
#include "base/pool.h"
#include "model/tokenizer_int.h"
#include "tokenizer_data.h"

static uint32_t seed = 1;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)seed * below >> 32);
}

/* --- merges against a naive reference -------------------------------------------------------- */

enum { N_LETTERS = 3, MAX_TOKENS = 200 };

typedef struct toy { /* tokens over the letters a, b, c */
    char texts[MAX_TOKENS][24];
    hdl_token_in rows[MAX_TOKENS];
    int n;
    int left[MAX_TOKENS * 4], right[MAX_TOKENS * 4]; /* merges by rank */
    int n_merges;
} toy;

static int toy_find(const toy *t, const char *text)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->texts[i], text)) return i;
    return -1;
}

static void make_toy(toy *t, int n)
{
    memset(t, 0, sizeof *t);
    for (; t->n < N_LETTERS; t->n++) t->texts[t->n][0] = (char)('a' + t->n);
    for (int tries = 0; t->n < n && tries < 10000; tries++) {
        int l = (int)next_random((uint32_t)t->n), r = (int)next_random((uint32_t)t->n);
        char text[48];
        snprintf(text, sizeof text, "%s%s", t->texts[l], t->texts[r]);
        bool is_new = toy_find(t, text) < 0;
        if (strlen(text) > 12 || t->n_merges == MAX_TOKENS * 4) continue;
        if (is_new) memcpy(t->texts[t->n++], text, strlen(text) + 1);
        t->left[t->n_merges] = l;
        t->right[t->n_merges++] = r;
    }
    for (int i = 0; i < t->n; i++) {
        t->rows[i].text = (hdl_text){t->texts[i], (int64_t)strlen(t->texts[i])};
        t->rows[i].type = HDL_TOKEN_NORMAL;
        t->rows[i].score = -(float)next_random(50); /* with ties */
    }
}

/* Rank of joining a and b (lower first), -1 = none; *id is what they become. */
static double toy_rank(const toy *t, bool by_score, int a, int b, int *id)
{
    char text[48];
    snprintf(text, sizeof text, "%s%s", t->texts[a], t->texts[b]);
    *id = toy_find(t, text);
    if (by_score)
        return *id < 0 ? -1
                       : -(double)t->rows[*id].score * 1e6 + 1e4 - 100.0 * (double)strlen(t->texts[a]) -
                             (double)strlen(t->texts[b]) + 1;
    for (int i = 0; i < t->n_merges; i++)
        if (t->left[i] == a && t->right[i] == b) return i;
    return -1;
}

static int toy_encode(const toy *t, bool by_score, const char *text, int n, int *ids)
{
    for (int i = 0; i < n; i++) ids[i] = text[i] - 'a';
    for (;;) {
        int best = -1, best_id = 0, id;
        double best_rank = 0;
        for (int i = 0; i + 1 < n; i++) {
            double rank = toy_rank(t, by_score, ids[i], ids[i + 1], &id);
            if (rank < 0 || (best >= 0 && rank >= best_rank)) continue;
            best = i;
            best_rank = rank;
            best_id = id;
        }
        if (best < 0) return n;
        ids[best] = best_id;
        memmove(&ids[best + 1], &ids[best + 2], (size_t)(n - best - 2) * sizeof *ids);
        n--;
    }
}

static void check_toy(bool by_score)
{
    static toy t;
    for (int round = 0; round < 40; round++) {
        make_toy(&t, 10 + round * 4);
        hdl_tokenizer *tok = NULL;
        assert_ok(hdl_tok_new(&tok, !by_score, by_score, t.rows, t.n));
        if (!by_score) {
            assert_ok(hdl_tok_reserve_merges(tok, t.n_merges));
            for (int i = 0; i < t.n_merges; i++)
                assert_ok(hdl_tok_add_merge(tok, t.rows[t.left[i]].text, t.rows[t.right[i]].text, i));
        }
        hdl_tok_finish(tok);
        for (int i = 0; i < 12; i++) { /* both sides of the border between the two algorithms */
            char text[300];
            int n = (int)next_random(i % 2 ? 60 : 300), ids[300];
            for (int k = 0; k < n; k++) text[k] = (char)('a' + next_random(round % 3 + 1));
            int n_ids = toy_encode(&t, by_score, text, n, ids);
            hdl_ids got = {0};
            assert_ok(hdl_tokenizer_encode(tok, text, n, false, false, &got));
            assert_ids(&got, ids, n_ids, "toy");
            hdl_ids_deinit(&got);
        }
        hdl_tokenizer_free(tok);
    }
}

static void test_merges_by_rank(void **state)
{
    (void)state;
    check_toy(false);
}

static void test_merges_by_score(void **state)
{
    (void)state;
    check_toy(true);
}

/* --- a small SentencePiece vocabulary -------------------------------------------------------- */

#define ROW(text, type, score)                                                                               \
    {                                                                                                        \
        {text, sizeof text - 1}, score, type, 0                                                              \
    }
static const hdl_token_in spm_rows[] = {
    ROW("<unk>", HDL_TOKEN_UNKNOWN, 0),
    ROW("<s>", HDL_TOKEN_CONTROL, 0),
    ROW("</s>", HDL_TOKEN_CONTROL, 0),
    ROW("<0xC3>", HDL_TOKEN_BYTE, 0),
    ROW("<0xA9>", HDL_TOKEN_BYTE, 0),
    ROW("\xe2\x96\x81", HDL_TOKEN_NORMAL, -3),
    ROW("a", HDL_TOKEN_NORMAL, -4),
    ROW("b", HDL_TOKEN_NORMAL, -5),
    ROW("\xe2\x96\x81"
        "a",
        HDL_TOKEN_NORMAL, -1),
    ROW("ab", HDL_TOKEN_NORMAL, -2),
    ROW("b\xe2\x96\x81"
        "a",
        HDL_TOKEN_NORMAL, -0.5f),
    ROW("\n", HDL_TOKEN_USER, -1000),
    ROW("\n\n", HDL_TOKEN_USER, -1000),
    ROW("<", HDL_TOKEN_NORMAL, -6),
    ROW("s", HDL_TOKEN_NORMAL, -7),
    ROW(">", HDL_TOKEN_NORMAL, -8),
    ROW("<s", HDL_TOKEN_NORMAL, -9),
    ROW("<end_of_turn>", HDL_TOKEN_CONTROL, 0),
};

static hdl_tokenizer *make_spm(void)
{
    hdl_tokenizer *tok = NULL;
    assert_ok(hdl_tok_new(&tok, false, true, spm_rows, HDL_COUNT(spm_rows)));
    tok->replaces_spaces = true;
    tok->special.unk = 0;
    tok->special.bos = 1;
    tok->special.eos = 2;
    tok->special.add_bos = true;
    hdl_tok_finish(tok);
    return tok;
}

static void assert_encodes(const hdl_tokenizer *tok, const char *text, bool parse_special,
                           const char *want_list)
{
    char list[256];
    snprintf(list, sizeof list, "%s", want_list);
    hdl_ids want = from_list(list), got = {0};
    assert_ok(hdl_tokenizer_encode(tok, text, (int64_t)strlen(text), parse_special, false, &got));
    assert_ids(&got, want.data, want.n, text);
    hdl_ids_deinit(&want);
    hdl_ids_deinit(&got);
}

static void test_spm(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make_spm();
    assert_encodes(tok, "", false, "-");
    assert_encodes(tok, "ab a", false, "6 10"); /* the pair across the border has the best score */
    assert_encodes(tok, "aba  a", false, "9 6 5 8");
    assert_encodes(tok, "a\n\n\nb", false, "6 12 11 7"); /* user-defined tokens: longest first, always */
    assert_encodes(tok, "\xc3\xa9", false, "3 4");
    assert_encodes(tok, "\xc3", false, "3");
    assert_encodes(tok, "x", false, "0");
    assert_encodes(tok, "a<s>b", true, "6 1 7");
    assert_encodes(tok, "a<s>b", false, "6 16 15 7"); /* never the control token */
    assert_true(hdl_tokenizer_is_end(tok, 2));
    assert_true(hdl_tokenizer_is_end(tok, 17));
    assert_false(hdl_tokenizer_is_end(tok, 1));
    assert_true(hdl_tokenizer_is_special(tok, 0));
    tok->add_prefix_space = true;
    assert_encodes(tok, "a<s>ab", true, "8 1 8 7");
    hdl_tokenizer_free(tok);
}

static void test_parts(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make_spm();
    hdl_text_part parts[] = {{"<s>a\n", 5, true}, {"\nb a<s", 6, false}, {"", 0, true}, {"><s>", 4, true}};
    hdl_ids ids = {0};
    assert_ok(hdl_tokenizer_encode_parts(tok, parts, 4, true, &ids));
    /* BOS, <s>, a, the two line feeds as one, "b a", "<s" ">" stay text, <s> */
    assert_ids(&ids, (int32_t[]){1, 1, 6, 12, 10, 16, 15, 1}, 8, "parts");
    ids.n = 0;
    assert_ok(hdl_tokenizer_encode_parts(tok, NULL, 0, false, &ids));
    assert_int_equal(ids.n, 0);
    parts[0].n = INT64_MAX;
    assert_int_equal(hdl_tokenizer_encode_parts(tok, parts, 2, false, &ids), HEDDLE_E_CAPACITY);
    assert_int_equal(hdl_tokenizer_encode(tok, "", -1, false, false, &ids), HEDDLE_E_CAPACITY);
    hdl_ids_deinit(&ids);
    hdl_tokenizer_free(tok);
}

static void test_decode(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make_spm();
    const int32_t ids[] = {1, 8, 9, 3, 4, 12, 10, 2};
    hdl_buf whole = {0}, pieces = {0}, special = {0};
    assert_ok(hdl_tokenizer_decode(tok, ids, 8, false, &whole));
    for (int i = 0; i < 8; i++) assert_ok(hdl_tokenizer_decode(tok, &ids[i], 1, false, &pieces));
    assert_string_equal(whole.data, " aab\xc3\xa9\n\nb a");
    assert_string_equal(pieces.data, whole.data);
    assert_ok(hdl_tokenizer_decode(tok, ids, 8, true, &special));
    assert_string_equal(special.data, "<s> aab\xc3\xa9\n\nb a</s>");
    assert_int_equal(hdl_tokenizer_decode(tok, (int32_t[]){-1}, 1, false, &whole), HEDDLE_E_INVALID);
    hdl_buf_deinit(&whole);
    hdl_buf_deinit(&pieces);
    hdl_buf_deinit(&special);
    hdl_tokenizer_free(tok);
}

/* A long text of repeated words, so that remembered words are used, equals its parts. */
static void test_remembered_words(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make_spm();
    hdl_buf text = {0};
    for (int i = 0; i < 20000; i++)
        hdl_buf_puts(&text, (const char *[]){" ab", " b a", "\n", "  abba", "\xc3\xa9 "}[next_random(5)]);
    assert_ok(hdl_buf_status(&text));
    hdl_ids whole = {0}, lines = {0};
    assert_ok(hdl_tokenizer_encode(tok, text.data, text.n, false, false, &whole));
    for (int64_t i = 0, end; i < text.n; i = end) { /* segments between line feeds are independent */
        bool is_feed = text.data[i] == '\n';
        for (end = i; end < text.n && (text.data[end] == '\n') == is_feed; end++) continue;
        assert_ok(hdl_tokenizer_encode(tok, text.data + i, end - i, false, false, &lines));
    }
    assert_ids(&whole, lines.data, lines.n, "whole against lines");
    hdl_ids_deinit(&whole);
    hdl_ids_deinit(&lines);
    hdl_buf_deinit(&text);
    hdl_tokenizer_free(tok);
}

/* 2 MB without a border: a quadratic algorithm would take hours. */
static void test_long_run(void **state)
{
    (void)state;
    enum { N = 1 << 21 };
    hdl_tokenizer *tok = make_spm();
    char *text = malloc(N);
    for (int i = 0; i < N; i++) text[i] = i % 2 ? 'b' : 'a';
    hdl_ids ids = {0};
    assert_ok(hdl_tokenizer_encode(tok, text, N, false, false, &ids));
    assert_int_equal(ids.n, N / 2);
    hdl_ids_deinit(&ids);
    free(text);
    hdl_tokenizer_free(tok);
}

static void encode_one(void *arg, int64_t task, int thread)
{
    (void)task;
    (void)thread;
    assert_encodes(arg, "ab a\n\nab<s>", true, "6 10 12 9 1");
}

static void test_threads(void **state)
{
    (void)state;
    hdl_tokenizer *tok = make_spm();
    hdl_parallel_for(4, 400, encode_one, tok);
    hdl_tokenizer_free(tok);
}

static void test_refused_rows(void **state)
{
    (void)state;
    hdl_tokenizer *tok = NULL;
    char longest[HDL_TOK_MAX_ADDED_BYTES + 2];
    memset(longest, 'x', sizeof longest);
    hdl_token_in bad_byte = ROW("<0xZZ>", HDL_TOKEN_BYTE, 0), bad_type = ROW("x", 9, 0);
    hdl_token_in too_long = {{longest, HDL_TOK_MAX_ADDED_BYTES + 1}, 0, HDL_TOKEN_USER, 0};
    assert_int_equal(hdl_tok_new(&tok, false, true, &bad_byte, 1), HEDDLE_E_FORMAT);
    assert_int_equal(hdl_tok_new(&tok, false, true, &bad_type, 1), HEDDLE_E_FORMAT);
    assert_int_equal(hdl_tok_new(&tok, false, true, &too_long, 1), HEDDLE_E_UNSUPPORTED);
    assert_int_equal(hdl_tok_new(&tok, false, true, spm_rows, 0), HEDDLE_E_FORMAT);
    assert_null(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges_by_rank),
        cmocka_unit_test(test_merges_by_score),
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_remembered_words),
        cmocka_unit_test(test_long_run),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_refused_rows),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
