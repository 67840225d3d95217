/* test_documents.c - documents written to files and mounted: equal to reading them where they stand; what
 * is forbidden or unmounted is not read; what is damaged is told. The golden model's three documents. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/mem.h"
#include "cross_model.h"
#include "engine/engine_int.h"
#include "heddle.h"
#include "kv/docfile.h"

enum { N_VOCAB = CROSS_VOCAB, BORDER_1 = 40, BORDER_2 = 75, N_TOKENS = CROSS_TOKENS };
enum { N_QUESTION = N_TOKENS - BORDER_2 };

static cross_golden golden;
static char folder[256], path_a[300], path_b[300], path_bad[300], path_tied[300];
static heddle_engine *engine;
static float want[N_QUESTION][N_VOCAB], got[N_QUESTION][N_VOCAB];

static const int32_t *question(void)
{
    return golden.tokens + BORDER_2;
}

static heddle_session_options options_of(const char *kv_type)
{
    heddle_session_options options;
    heddle_session_options_default(&options);
    options.context_tokens = 160;
    options.kv_type = kv_type;
    options.page_shift = 4;
    return options;
}

static heddle_plan *plan_of(const char *name_or_json)
{
    heddle_plan *plan;
    heddle_status status = name_or_json[0] == '{'
                               ? heddle_plan_parse(&plan, name_or_json, (int64_t)strlen(name_or_json), "test")
                               : heddle_plan_named(&plan, name_or_json);
    if (status) fail_msg("%s", heddle_last_error());
    return plan;
}

static heddle_session *new_session(const char *plan_name)
{
    heddle_session *session;
    heddle_session_options options = options_of("f32");
    heddle_plan *plan = plan_of(plan_name);
    if (heddle_session_new(&session, engine, plan, &options)) fail_msg("%s", heddle_last_error());
    heddle_plan_free(plan);
    return session;
}

static int64_t mount(heddle_session *session, const char *path)
{
    heddle_document *document;
    int64_t first;
    if (heddle_document_open(&document, engine, path)) fail_msg("%s", heddle_last_error());
    if (heddle_session_mount(session, document, &first)) fail_msg("%s", heddle_last_error());
    heddle_document_close(document); /* the session keeps it */
    return first;
}

/* The question's tokens one by one as generated ones, logits of each. */
static void ask(heddle_session *session, float (*out)[N_VOCAB])
{
    for (int64_t t = 0; t < N_QUESTION; t++) {
        if (heddle_session_decode(session, question() + t, 1)) fail_msg("%s", heddle_last_error());
        memcpy(out[t], heddle_session_logits(session), sizeof out[t]);
    }
}

static void extend(heddle_session *session, int64_t first, int64_t end)
{
    if (heddle_session_extend(session, golden.tokens + first, end - first, NULL, NULL))
        fail_msg("%s", heddle_last_error());
}

static double worst_difference(void)
{
    double worst = 0;
    for (int64_t t = 0; t < N_QUESTION; t++)
        for (int64_t i = 0; i < N_VOCAB; i++) {
            double d = fabs((double)want[t][i] - (double)got[t][i]);
            worst = d <= worst ? worst : d;
        }
    return worst;
}

static const char *const plans[] = {"dense", "clsa:top_k=12", "clsa:top_k=160"};

static void test_mounted_equals_joint(void **state)
{
    (void)state;
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *joint = new_session(plans[p]), *mounted = new_session(plans[p]);
        extend(joint, 0, BORDER_2);
        ask(joint, want);
        assert_int_equal(mount(mounted, path_a), 0);
        assert_int_equal(mount(mounted, path_b), 48); /* 40 tokens end in the third page of 16 */
        assert_int_equal(heddle_session_len(mounted), 96);
        assert_null(heddle_session_logits(mounted));
        assert_memory_equal(heddle_session_ids(mounted) + 48, golden.tokens + BORDER_1,
                            (BORDER_2 - BORDER_1) * 4);
        ask(mounted, got);
        print_message("mounted, plan %s: worst difference %g\n", plans[p], worst_difference());
        assert_true(worst_difference() <= 1e-4);
        heddle_session_free(joint);
        heddle_session_free(mounted);
    }
}

/* Mounted behind what was read, in the other order; and the question as a prompt. */
static void test_order_and_company(void **state)
{
    (void)state;
    heddle_session *joint = new_session("dense"), *mounted = new_session("dense");
    extend(joint, BORDER_1, BORDER_2);
    extend(joint, 0, BORDER_1);
    ask(joint, want);
    extend(mounted, BORDER_1, BORDER_2);
    assert_int_equal(mount(mounted, path_a), 48);
    heddle_session *fork;
    assert_int_equal(heddle_session_fork(&fork, mounted), HEDDLE_OK);
    ask(mounted, got);
    assert_true(worst_difference() <= 1e-4);
    extend(fork, BORDER_2, N_TOKENS);
    memcpy(got[N_QUESTION - 1], heddle_session_logits(fork), sizeof got[0]);
    assert_true(worst_difference() <= 1e-4);
    int64_t kept; /* back to the end of the document, and once more */
    assert_int_equal(heddle_session_truncate(fork, 96, &kept), HEDDLE_OK);
    assert_int_equal(kept, 96);
    extend(fork, BORDER_2, N_TOKENS);
    memcpy(got[N_QUESTION - 1], heddle_session_logits(fork), sizeof got[0]);
    assert_true(worst_difference() <= 1e-4);
    assert_int_equal(heddle_session_truncate(fork, 60, &kept), HEDDLE_OK); /* a document goes whole */
    assert_true(kept <= 48);
    heddle_session_free(fork);
    heddle_session_free(joint);
    heddle_session_free(mounted);
}

static void test_unmounting_removes_exactly(void **state)
{
    (void)state;
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *without = new_session(plans[p]), *mounted = new_session(plans[p]);
        extend(without, BORDER_1, BORDER_2);
        ask(without, want);
        mount(mounted, path_a);
        mount(mounted, path_b);
        assert_int_equal(heddle_session_unmount(mounted, 16), HEDDLE_E_INVALID);
        assert_int_equal(heddle_session_unmount(mounted, 0), HEDDLE_OK);
        ask(mounted, got);
        assert_true(worst_difference() <= 1e-4);
        heddle_session_free(without);
        heddle_session_free(mounted);
    }
}

/* A file of the same shape as path_a with every byte of rows and index keys 0xff: NaN, with right sums. */
static void write_poison(void)
{
    hdl_docfile *a;
    if (hdl_docfile_open(&a, path_a)) fail_msg("%s", hdl_last_error());
    hdl_kv_layout layout;
    assert_int_equal(hdl_kv_layout_of(&layout, &hdl_docfile_facts_of(a)->spec), HEDDLE_OK);
    uint8_t *page = malloc((size_t)layout.page_bytes);
    memset(page, 0xff, (size_t)layout.page_bytes);
    const uint8_t *pages[8];
    for (int64_t p = 0; p < hdl_docfile_n_pages(a); p++) pages[p] = page;
    if (hdl_docfile_write(path_bad, hdl_docfile_facts_of(a), hdl_docfile_ids(a), pages))
        fail_msg("%s", hdl_last_error());
    free(page);
    hdl_docfile_unref(a);
}

static void test_forbidden_rows_may_be_nan(void **state)
{
    (void)state;
    write_poison();
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *clean = new_session(plans[p]), *poisoned = new_session(plans[p]);
        int64_t first = mount(clean, path_a);
        mount(clean, path_b);
        assert_int_equal(heddle_session_forbid(clean, first, BORDER_1), HEDDLE_OK);
        ask(clean, want);
        first = mount(poisoned, path_bad);
        mount(poisoned, path_b);
        assert_int_equal(heddle_session_forbid(poisoned, first, BORDER_1), HEDDLE_OK);
        ask(poisoned, got);
        assert_memory_equal(want, got, sizeof want);
        assert_true(worst_difference() == 0);
        heddle_session_free(clean);
        heddle_session_free(poisoned);
    }
    heddle_session *read = new_session("dense"); /* and without the never-set it is read */
    mount(read, path_bad);
    ask(read, got);
    assert_true(isnan(got[0][0]));
    heddle_session_free(read);
}

static int32_t moved(int32_t token) /* 17 and 40 share no factor */
{
    return token < BORDER_1 ? (token * 17 + 5) % BORDER_1 : token;
}

/* Rows move from slot to slot of a file: K, V, index key and its scale together; n_alike tokens after one
 * another have the index key of the first of them. */
static void write_rows(const char *path, bool is_moved, int32_t n_alike)
{
    hdl_docfile *a;
    hdl_kv_layout layout;
    if (hdl_docfile_open(&a, path_a)) fail_msg("%s", hdl_last_error());
    const hdl_docfile_facts *facts = hdl_docfile_facts_of(a);
    assert_int_equal(hdl_kv_layout_of(&layout, &facts->spec), HEDDLE_OK);
    int64_t n_pages = hdl_docfile_n_pages(a), dim = facts->spec.planes[0].dim;
    uint8_t *copy = calloc((size_t)n_pages, (size_t)layout.page_bytes);
    const uint8_t *pages[8];
    for (int64_t p = 0; p < n_pages; p++) pages[p] = copy + p * layout.page_bytes;
    for (int32_t t = 0; t < BORDER_1; t++) {
        int32_t to = is_moved ? moved(t) : t, like = t - t % n_alike;
        uint8_t *at = copy + to / 16 * layout.page_bytes;
        const uint8_t *from = hdl_docfile_page(a, t / 16), *key_from = hdl_docfile_page(a, like / 16);
        int64_t keys = layout.plane_offset[0], scales = keys + layout.plane_scale_offset[0];
        memcpy(at + to % 16 * layout.token_stride, from + t % 16 * layout.token_stride,
               (size_t)layout.token_stride);
        memcpy(at + keys + to % 16 * dim, key_from + keys + like % 16 * dim, (size_t)dim);
        memcpy(at + scales + to % 16 * 4, key_from + scales + like % 16 * 4, 4);
    }
    if (hdl_docfile_write(path, facts, hdl_docfile_ids(a), pages)) fail_msg("%s", hdl_last_error());
    free(copy);
    hdl_docfile_unref(a);
}

/* The global path knows no positions: rows may stand in any order. Ties go to the lowest id, so a list may
 * differ where two scores are equal; these have none at its end. */
static void test_rows_in_any_order(void **state)
{
    (void)state;
    write_rows(path_bad, true, 1);
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *straight = new_session(plans[p]), *permuted = new_session(plans[p]);
        mount(straight, path_a);
        ask(straight, want);
        mount(permuted, path_bad);
        ask(permuted, got);
        print_message("permuted rows, plan %s: worst difference %g\n", plans[p], worst_difference());
        assert_true(worst_difference() <= 1e-4);
        assert_true(worst_difference() > 0 || p == 1); /* sums are taken in another order */
        heddle_session_free(straight);
        heddle_session_free(permuted);
    }
}

/* Lists of the question's rows as the straight session makes them. */
typedef struct kept_lists {
    int32_t ids[N_QUESTION][160], n[N_QUESTION];
} kept_lists;

static void keep_list(void *user, int32_t layer, int64_t row, const int32_t *ids, int32_t n)
{
    kept_lists *kept = user;
    (void)layer;
    memcpy(kept->ids[row - 48], ids, (size_t)n * sizeof *ids); /* the mount ends with its third page of 16 */
    kept->n[row - 48] = n;
}

static int id_compare(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static int32_t give_moved_list(void *user, int32_t layer, int64_t row, int32_t *ids, int64_t n_max)
{
    const kept_lists *kept = user;
    int32_t n = kept->n[row - 48];
    (void)layer;
    assert_true(n > 0 && n <= n_max);
    for (int32_t i = 0; i < n; i++) ids[i] = moved(kept->ids[row - 48][i]);
    qsort(ids, (size_t)n, sizeof *ids, id_compare);
    return n;
}

/* With ties at the ends of lists: what stays when rows move is the list that breaks them by the ids that the
 * rows had at first. Each index key stands four times, so that a list of 10 has such a tie; the rows by their
 * new ids read other tokens, the lists by the old ones give the same sums in another order. */
static void test_ties_go_by_the_ids_that_rows_had(void **state)
{
    (void)state;
    static kept_lists kept;
    write_rows(path_tied, false, 4);
    write_rows(path_bad, true, 4);
    heddle_session *straight = new_session("clsa:top_k=10"), *by_new = new_session("clsa:top_k=10"),
                   *by_old = new_session("clsa:top_k=10");
    mount(straight, path_tied);
    straight->hook.made = keep_list;
    straight->hook.made_user = &kept;
    ask(straight, want);
    mount(by_new, path_bad);
    ask(by_new, got);
    double of_new = worst_difference();
    mount(by_old, path_bad);
    by_old->hook.wanted = give_moved_list;
    by_old->hook.wanted_user = &kept;
    ask(by_old, got);
    print_message("ties by new ids: worst difference %g; by those that rows had: %g\n", of_new,
                  worst_difference());
    assert_true(of_new > 1e-2);
    assert_true(worst_difference() <= 1e-4);
    heddle_session_free(straight);
    heddle_session_free(by_new);
    heddle_session_free(by_old);
}

static void flip(const char *from, int64_t at)
{
    hdl_buf bytes = {0};
    if (hdl_buf_read_file(&bytes, from, 1 << 24)) fail_msg("%s", hdl_last_error());
    if (at < 0) at += bytes.n;
    bytes.data[at] ^= 0x10;
    assert_true(tiny_write_file(path_bad, bytes.data, bytes.n));
    hdl_buf_deinit(&bytes);
}

static void expect_refusal(heddle_status status, heddle_status code, const char *words)
{
    assert_int_equal(status, code);
    if (!strstr(heddle_last_error(), words))
        fail_msg("\"%s\" does not say \"%s\"", heddle_last_error(), words);
}

/* No byte can change unseen: header and what follows it, tokens, table, pages, and the zeroes between them. */
static void test_verify_finds_a_flip_of_any_byte(void **state)
{
    (void)state;
    hdl_buf bytes = {0};
    int64_t n_tokens, n_pages, n_found[3] = {0}; /* by the sentence: sums, sizes and magic, zeroes */
    static const int32_t ids[7] = {0, 5, 6, 7, 8, 9, 10};
    heddle_session_options options = options_of("i8"); /* scales, and rows that end before the page does */
    if (heddle_document_encode(engine, &options, ids, 7, path_bad, NULL, NULL) ||
        heddle_document_verify(path_bad, &n_tokens, &n_pages))
        fail_msg("%s", heddle_last_error());
    if (hdl_buf_read_file(&bytes, path_bad, 1 << 24)) fail_msg("%s", hdl_last_error());
    FILE *file = fopen(path_bad, "r+b");
    assert_non_null(file);
    setvbuf(file, NULL, _IONBF, 0);
    for (int64_t at = 0; at < bytes.n; at++) {
        bool is_put = !fseek(file, (long)at, SEEK_SET) && fputc(bytes.data[at] ^ 1 << at % 8, file) != EOF;
        if (!is_put || !heddle_document_verify(path_bad, &n_tokens, &n_pages))
            fail_msg("byte %lld of %lld is flipped, and verify says nothing", (long long)at,
                     (long long)bytes.n);
        n_found[strstr(heddle_last_error(), "checksum")    ? 0
                : strstr(heddle_last_error(), "must be 0") ? 2
                                                           : 1]++;
        assert_true(!fseek(file, (long)at, SEEK_SET) && fputc(bytes.data[at], file) != EOF);
    }
    fclose(file);
    assert_int_equal(heddle_document_verify(path_bad, &n_tokens, &n_pages), HEDDLE_OK);
    print_message("of %lld flips sums found %lld, the zeroes between the parts %lld\n", (long long)bytes.n,
                  (long long)n_found[0], (long long)n_found[2]);
    assert_true(n_found[0] > 1000 && n_found[2] > 7000);
    hdl_buf_deinit(&bytes);
}

static void test_damage_is_told(void **state)
{
    (void)state;
    heddle_document *document;
    int64_t n_tokens, n_pages, first;
    assert_int_equal(heddle_document_verify(path_a, &n_tokens, &n_pages), HEDDLE_OK);
    assert_true(n_tokens == BORDER_1 && n_pages == 3);
    static const struct {
        int64_t at;
        const char *words;
    } at_open[] = {{3, "does not hold"},
                   {20, "header does not have"},
                   {4096 + 5, "tokens do not have"},
                   {4096 + 192 + 3, "table of checksums"}};
    for (int i = 0; i < HDL_COUNT(at_open); i++) {
        flip(path_a, at_open[i].at);
        expect_refusal(heddle_document_open(&document, engine, path_bad), HEDDLE_E_FORMAT, at_open[i].words);
    }
    flip(path_a, 8192 + 100); /* a K row of the first page */
    expect_refusal(heddle_document_verify(path_bad, &n_tokens, &n_pages), HEDDLE_E_FORMAT,
                   "page 0 of 3: its rows");
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *session = new_session(plans[p]);
        if (heddle_document_open(&document, engine, path_bad)) fail_msg("%s", heddle_last_error());
        assert_int_equal(heddle_session_mount(session, document, &first), HEDDLE_OK);
        heddle_document_close(document);
        heddle_status status = HEDDLE_OK;
        int64_t len = 0;
        bool had_logits = false;
        for (int64_t t = 0; t < N_QUESTION && !status; t++) {
            len = heddle_session_len(session);
            had_logits = heddle_session_logits(session) != NULL;
            if (had_logits) memcpy(want[0], heddle_session_logits(session), sizeof want[0]);
            status = heddle_session_decode(session, question() + t, 1);
        }
        expect_refusal(status, HEDDLE_E_FORMAT, "page 0 of 3: its rows");
        /* the step that found it took no token; the logits are those of the step before */
        assert_int_equal(heddle_session_len(session), len);
        assert_true((heddle_session_logits(session) != NULL) == had_logits);
        if (had_logits) assert_memory_equal(want[0], heddle_session_logits(session), sizeof want[0]);
        heddle_session_free(session);
    }
}

/* A step is all or nothing: a prompt of several chunks keeps the chunks before; once the document is gone, the
 * session goes on as one that never tried. */
static void test_a_step_that_finds_damage_takes_no_token(void **state)
{
    (void)state;
    flip(path_a, 8192 + 100);
    heddle_session *tried = new_session("dense"), *never = new_session("dense"),
                   *other = new_session("dense");
    heddle_batch *batch;
    heddle_session_options options = options_of("f32");
    heddle_plan *plan = plan_of("dense");
    if (heddle_batch_new(&batch, engine, plan, &options, 2, 16)) fail_msg("%s", heddle_last_error());
    int64_t first = mount(tried, path_bad), len = heddle_session_len(tried);
    assert_int_equal(mount(never, path_bad), first);
    extend(other, 0, BORDER_1);
    memcpy(want[0], heddle_session_logits(other), sizeof want[0]);
    heddle_batch_item items[2] = {
        {.session = tried, .ids = question(), .n_ids = 3, .is_prompt = 1},
        {.session = other, .ids = golden.tokens + BORDER_1, .n_ids = 2, .is_prompt = 1}};
    expect_refusal(heddle_batch_step(batch, items, 2), HEDDLE_E_FORMAT, "page 0 of 3: its rows");
    assert_int_equal(heddle_session_len(tried), len);
    assert_int_equal(heddle_session_len(other), BORDER_1);
    expect_refusal(heddle_session_extend(tried, question(), N_QUESTION, NULL, NULL), HEDDLE_E_FORMAT,
                   "page 0 of 3: its rows");
    assert_int_equal(heddle_session_len(tried), len);
    assert_int_equal(heddle_session_unmount(tried, first), HEDDLE_OK);
    assert_int_equal(heddle_session_unmount(never, first), HEDDLE_OK);
    ask(tried, want);
    ask(never, got);
    assert_memory_equal(want, got, sizeof want);
    extend(other, BORDER_1, BORDER_2); /* the other session of the step was not damaged: it goes on */
    heddle_batch_free(batch);
    heddle_plan_free(plan);
    heddle_session_free(tried);
    heddle_session_free(never);
    heddle_session_free(other);
}

/* Told again by every step and by forks, until the document is gone. */
static void test_damaged_index_keys_are_told_until_the_document_goes(void **state)
{
    (void)state;
    hdl_docfile *a;
    hdl_kv_layout layout;
    if (hdl_docfile_open(&a, path_a)) fail_msg("%s", hdl_last_error());
    assert_int_equal(hdl_kv_layout_of(&layout, &hdl_docfile_facts_of(a)->spec), HEDDLE_OK);
    flip(path_a, layout.plane_offset[0] + 3 - hdl_docfile_n_pages(a) * layout.page_bytes);
    hdl_docfile_unref(a);
    heddle_session *session = new_session("clsa:top_k=12"), *fork, *emptied;
    int64_t first = mount(session, path_bad), kept;
    for (int i = 0; i < 2; i++)
        expect_refusal(heddle_session_decode(session, question(), 1), HEDDLE_E_FORMAT,
                       "page 0 of 3: its index keys");
    assert_int_equal(heddle_session_fork(&fork, session), HEDDLE_OK);
    assert_int_equal(heddle_session_fork(&emptied, session), HEDDLE_OK);
    expect_refusal(heddle_session_decode(fork, question(), 1), HEDDLE_E_FORMAT,
                   "page 0 of 3: its index keys");
    assert_int_equal(heddle_session_unmount(fork, first), HEDDLE_OK);
    assert_int_equal(heddle_session_decode(fork, question(), 1), HEDDLE_OK);
    assert_int_equal(heddle_session_truncate(emptied, 0, &kept), HEDDLE_OK);
    assert_int_equal(heddle_session_decode(emptied, question(), 1), HEDDLE_OK);
    expect_refusal(heddle_session_decode(session, question(), 1), HEDDLE_E_FORMAT,
                   "page 0 of 3: its index keys");
    heddle_session_free(emptied);
    heddle_session_free(fork);
    heddle_session_free(session);
}

/* A file of this model whose index keys are shaped otherwise. */
static void test_index_keys_of_other_heads_are_refused(void **state)
{
    (void)state;
    hdl_docfile *a;
    hdl_kv_layout layout;
    const uint8_t *pages[8];
    int64_t first;
    if (hdl_docfile_open(&a, path_a)) fail_msg("%s", hdl_last_error());
    hdl_docfile_facts facts = *hdl_docfile_facts_of(a);
    for (int32_t n_heads = 0; n_heads <= 2; n_heads += 2) {
        heddle_document *document;
        facts.spec.planes[0].n_heads = n_heads;
        assert_int_equal(hdl_kv_layout_of(&layout, &facts.spec), HEDDLE_OK);
        uint8_t *page = calloc(1, (size_t)layout.page_bytes);
        for (int64_t p = 0; p < hdl_docfile_n_pages(a); p++) pages[p] = page;
        assert_int_equal(hdl_docfile_write(path_bad, &facts, hdl_docfile_ids(a), pages), HEDDLE_OK);
        free(page);
        heddle_status status = heddle_document_open(&document, engine, path_bad);
        if (!n_heads) {
            expect_refusal(status, HEDDLE_E_FORMAT, "impossible sizes");
            continue;
        }
        assert_int_equal(status, HEDDLE_OK);
        heddle_session *session = new_session("clsa:top_k=12");
        expect_refusal(heddle_session_mount(session, document, &first), HEDDLE_E_INVALID,
                       "holds index keys of 2 x");
        assert_int_equal(heddle_session_len(session), 0);
        heddle_session_free(session);
        heddle_document_close(document);
    }
    hdl_docfile_unref(a);
}

/* Pages whose bytes overflow to none, under a header whose sum is right. */
static void test_headers_that_overflow_are_refused(void **state)
{
    (void)state;
    enum { N_PAGES = 32, FILE_BYTES = 72, HEADS = 80, SHIFT = 100, INDEX = 104, SUM = 128 };
    hdl_buf bytes = {0};
    hdl_docfile *file;
    if (hdl_buf_read_file(&bytes, path_a, 1 << 24)) fail_msg("%s", hdl_last_error());
    const int64_t pages[2] = {1, 0}, file_bytes = 8192;
    const int32_t rows[3] = {1024, 1 << 16, 1 << 16}, shift = 40, no_index[2] = {0, 0};
    assert_memory_equal(bytes.data + FILE_BYTES, &(int64_t){bytes.n}, 8); /* the offsets are right */
    memcpy(bytes.data + N_PAGES, pages, sizeof pages);
    memcpy(bytes.data + FILE_BYTES, &file_bytes, 8);
    memcpy(bytes.data + HEADS, rows, sizeof rows);
    memcpy(bytes.data + SHIFT, &shift, 4);
    memcpy(bytes.data + INDEX, no_index, sizeof no_index);
    uint64_t sum = hdl_hash(bytes.data, SUM);
    memcpy(bytes.data + SUM, &sum, 8);
    assert_true(tiny_write_file(path_bad, bytes.data, file_bytes));
    hdl_buf_deinit(&bytes);
    expect_refusal(hdl_docfile_open(&file, path_bad), HEDDLE_E_FORMAT, "impossible sizes");
}

static const char observing[] =
    "{\"heddle_plan\": 1, \"name\": \"observing\", \"variants\": [{\"decode\": [{\"layers\": \"first\","
    " \"operator\": \"dense\", \"router\": {\"top_k\": 8, \"window\": 2}},"
    " {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}";
static const char by_mass[] =
    "{\"heddle_plan\": 1, \"name\": \"by_mass\", \"variants\": [{\"decode\": [{\"layers\": \"first\","
    " \"operator\": \"token_list\", \"router\": {\"score\": \"index\", \"measure\": \"mass\","
    " \"top_k\": 12}}, {\"layers\": \"rest\", \"operator\": \"token_list\", \"share\": \"previous\"}]}]}";

/* A fork may not go on under a plan that would read what the session may not. */
static void test_forks_keep_what_is_forbidden(void **state)
{
    (void)state;
    heddle_plan *dense = plan_of("dense"), *plan = plan_of(observing);
    for (int i = 0; i < 3; i++) {
        heddle_session *session = new_session("dense"), *fork;
        int64_t first = mount(session, path_a);
        if (i == 1) assert_int_equal(heddle_session_forbid(session, first, 3), HEDDLE_OK);
        if (i == 2) assert_int_equal(heddle_session_unmount(session, first), HEDDLE_OK);
        expect_refusal(heddle_session_fork_as(&fork, session, plan, 0), HEDDLE_E_UNSUPPORTED,
                       "layer 2 observes the attention mass of a dense pass: documents");
        assert_null(fork);
        assert_int_equal(heddle_session_fork_as(&fork, session, dense, 0), HEDDLE_OK);
        heddle_session_free(fork);
        heddle_session_free(session);
    }
    heddle_plan_free(plan);
    heddle_plan_free(dense);
}

/* A softmax over all tokens has weighed hidden ones before they could be taken out. */
static void test_shares_of_mass_cannot_hide(void **state)
{
    (void)state;
    heddle_session *session = new_session(by_mass);
    extend(session, 0, BORDER_1);
    expect_refusal(heddle_session_forbid(session, 0, 3), HEDDLE_E_UNSUPPORTED, "shares of attention mass");
    heddle_session_free(session);
}

/* A model that reads all tokens in a layer below the shared state: its rows hold what others said. */
static void test_full_layers_below_the_shared_state_cannot_hide(void **state)
{
    (void)state;
    heddle_document *document;
    heddle_session *session = new_session("dense");
    extend(session, 0, BORDER_1);
    int32_t *window = &engine->model->facts.layers[0].window, old = *window;
    *window = 0;
    heddle_session_options options = options_of("f32");
    heddle_status forbidden = heddle_session_forbid(session, 0, 3);
    heddle_status opened = heddle_document_open(&document, engine, path_a);
    heddle_status written = heddle_document_encode(engine, &options, golden.tokens, 9, path_bad, NULL, NULL);
    *window = old;
    expect_refusal(forbidden, HEDDLE_E_UNSUPPORTED, "layer 0, below the shared state, reads all tokens");
    assert_int_equal(opened, HEDDLE_E_UNSUPPORTED);
    assert_int_equal(written, HEDDLE_E_UNSUPPORTED);
    heddle_session_free(session);
}

/* The identity reads every weight: one engine asks for it once. */
static void test_the_identity_is_computed_once(void **state)
{
    (void)state;
    heddle_document *document;
    heddle_lists *lists;
    uint64_t identity = engine->identity;
    assert_true(identity != 0); /* encode asked for it */
    engine->identity = identity ^ 1;
    heddle_status changed = heddle_document_open(&document, engine, path_a);
    engine->identity = 0;
    assert_int_equal(heddle_lists_new(&lists, engine), HEDDLE_OK);
    heddle_lists_free(lists);
    assert_int_equal(engine->identity, identity);
    assert_int_equal(changed, HEDDLE_E_INVALID);
}

static void test_refusals(void **state)
{
    (void)state;
    heddle_document *document;
    int64_t first;
    heddle_session *session = new_session("dense");
    if (heddle_document_open(&document, engine, path_a)) fail_msg("%s", heddle_last_error());
    expect_refusal(heddle_document_encode(engine, NULL, golden.tokens + 1, 9, path_bad, NULL, NULL),
                   HEDDLE_E_INVALID, "must begin with token 0");
    assert_int_equal(heddle_session_mount(session, document, &first), HEDDLE_OK);
    expect_refusal(heddle_session_extend(session, golden.tokens + 1, 3, NULL, NULL), HEDDLE_E_INVALID,
                   "follows a mounted document");
    expect_refusal(heddle_session_forbid(session, 40, 20), HEDDLE_E_INVALID, "must be among the 48");
    assert_int_equal(heddle_session_mount(session, document, &first), HEDDLE_OK);
    assert_int_equal(heddle_session_mount(session, document, &first), HEDDLE_OK);
    expect_refusal(heddle_session_mount(session, document, &first), HEDDLE_E_CAPACITY,
                   "the context holds 160");
    heddle_session_free(session);
    heddle_session_options options = options_of("f16");
    assert_int_equal(heddle_session_new(&session, engine, NULL, &options), HEDDLE_OK);
    expect_refusal(heddle_session_mount(session, document, &first), HEDDLE_E_INVALID,
                   "holds f32 rows; the session has f16 rows");
    heddle_session_free(session);
    heddle_engine *other;
    char f32[256];
    assert_true(cross_write_f32(f32, sizeof f32));
    if (heddle_engine_open(&other, f32, NULL)) fail_msg("%s", heddle_last_error());
    heddle_document *foreign;
    expect_refusal(heddle_document_open(&foreign, other, path_a), HEDDLE_E_INVALID, "another model");
    heddle_engine_close(other);
    tiny_remove_folder(f32);
    heddle_document_close(document);
}

enum { N_ASKED = 4, N_REST = N_QUESTION - N_ASKED };

/* A document read here, one from a file behind it, three of its tokens forbidden. */
static heddle_session *session_to_keep(const char *plan)
{
    heddle_session *session = new_session(plan);
    extend(session, BORDER_1, BORDER_2);
    int64_t first = mount(session, path_a);
    assert_int_equal(first, 48);
    assert_int_equal(heddle_session_forbid(session, first + 5, 3), HEDDLE_OK);
    return session;
}

static void ask_rest(heddle_session *session, float (*out)[N_VOCAB])
{
    for (int64_t t = N_ASKED; t < N_QUESTION; t++) {
        if (heddle_session_decode(session, question() + t, 1)) fail_msg("%s", heddle_last_error());
        memcpy(out[t - N_ASKED], heddle_session_logits(session), sizeof out[0]);
    }
}

/* Written and loaded in the middle of a question, over the same mounts: not a bit differs. The loading
 * session's own rows do not matter, nor what it read behind the mounts. */
static void test_a_session_over_mounts_is_kept_in_a_file(void **state)
{
    (void)state;
    char path[300];
    heddle_session_file_info info = {.struct_size = sizeof info};
    snprintf(path, sizeof path, "%s/session", folder);
    for (int p = 0; p < HDL_COUNT(plans); p++) {
        heddle_session *kept = session_to_keep(plans[p]), *other = new_session(plans[p]);
        if (heddle_session_extend(kept, question(), N_ASKED, NULL, NULL)) fail_msg("%s", heddle_last_error());
        if (heddle_session_save(kept, path)) fail_msg("%s", heddle_last_error());
        ask_rest(kept, want);
        extend(other, 0, BORDER_2 - BORDER_1); /* as many other tokens */
        mount(other, path_a);
        assert_int_equal(heddle_session_forbid(other, 48 + 5, 3), HEDDLE_OK);
        extend(other, BORDER_2, BORDER_2 + 9);
        if (heddle_session_load(other, path)) fail_msg("%s", heddle_last_error());
        assert_int_equal(heddle_session_len(other), 96 + N_ASKED);
        assert_memory_equal(heddle_session_ids(other), golden.tokens + BORDER_1, (BORDER_2 - BORDER_1) * 4);
        ask_rest(other, got);
        assert_memory_equal(got, want, N_REST * sizeof want[0]);
        heddle_session_free(kept);
        heddle_session_free(other);
    }
    assert_int_equal(heddle_session_file_inspect(path, &info), HEDDLE_OK);
    assert_true(info.n_mounts == 1 && info.format == 3);
}

static void test_a_session_over_other_mounts_is_refused(void **state)
{
    (void)state;
    char path[300];
    snprintf(path, sizeof path, "%s/session", folder);
    heddle_session *kept = session_to_keep("dense"), *other = new_session("dense");
    if (heddle_session_save(kept, path)) fail_msg("%s", heddle_last_error());
    expect_refusal(heddle_session_load(other, path), HEDDLE_E_INVALID,
                   "written over 1 mounted documents: the session has 0");
    mount(other, path_a);
    assert_int_equal(heddle_session_forbid(other, 48 + 5, 3), HEDDLE_E_INVALID); /* it ends at 48 */
    expect_refusal(heddle_session_load(other, path), HEDDLE_E_INVALID, "other tokens forbidden");
    heddle_session_free(other);
    other = new_session("dense");
    extend(other, BORDER_1, BORDER_2);
    mount(other, path_b);
    expect_refusal(heddle_session_load(other, path), HEDDLE_E_INVALID, "number 1 of 1 is not the session's");
    assert_int_equal(heddle_session_len(other), 96);
    heddle_session_free(other);
    other = new_session("dense"); /* the same document at another token */
    mount(other, path_a);
    heddle_session *without = new_session("dense");
    unlink(path_bad); /* a document's file, which no session replaces */
    if (heddle_session_save(without, path_bad)) fail_msg("%s", heddle_last_error());
    expect_refusal(heddle_session_load(other, path_bad), HEDDLE_E_INVALID,
                   "written over 0 mounted documents: the session has 1");
    heddle_session_free(without);
    heddle_session_free(other);
    heddle_session_free(kept);
}

/* The window's rows of a cut are gone: what is mounted stays all the same, and a document begins there. */
static void test_a_cut_behind_mounts_keeps_them(void **state)
{
    (void)state;
    int64_t kept;
    heddle_session *session = new_session("clsa:top_k=12"), *fresh = new_session("clsa:top_k=12");
    mount(session, path_a);
    mount(fresh, path_a);
    ask(fresh, want);
    extend(session, 0, BORDER_1 + 20);
    assert_int_equal(heddle_session_truncate(session, 51, &kept), HEDDLE_OK);
    assert_int_equal(kept, 48);
    assert_int_equal(hdl_kv_seq_n_mounts(session->kv), 1);
    ask(session, got);
    assert_memory_equal(got, want, sizeof want);
    heddle_session_free(session);
    heddle_session_free(fresh);
}

static int setup(void **state)
{
    (void)state;
    if (!cross_golden_read(&golden) || !tiny_make_folder(folder, sizeof folder)) return -1;
    snprintf(path_a, sizeof path_a, "%s/a.kv", folder);
    snprintf(path_b, sizeof path_b, "%s/b.kv", folder);
    snprintf(path_bad, sizeof path_bad, "%s/bad.kv", folder);
    snprintf(path_tied, sizeof path_tied, "%s/tied.kv", folder);
    heddle_session_options options = options_of("f32");
    if (heddle_engine_open(&engine, CROSS_GOLDEN, NULL) ||
        heddle_document_encode(engine, &options, golden.tokens, BORDER_1, path_a, NULL, NULL) ||
        heddle_document_encode(engine, &options, golden.tokens + BORDER_1, BORDER_2 - BORDER_1, path_b, NULL,
                               NULL)) {
        fprintf(stderr, "%s\n", heddle_last_error());
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    heddle_status status = heddle_engine_close(engine);
    tiny_remove_folder(folder);
    return status == HEDDLE_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mounted_equals_joint),
        cmocka_unit_test(test_order_and_company),
        cmocka_unit_test(test_unmounting_removes_exactly),
        cmocka_unit_test(test_forbidden_rows_may_be_nan),
        cmocka_unit_test(test_rows_in_any_order),
        cmocka_unit_test(test_ties_go_by_the_ids_that_rows_had),
        cmocka_unit_test(test_verify_finds_a_flip_of_any_byte),
        cmocka_unit_test(test_damage_is_told),
        cmocka_unit_test(test_a_step_that_finds_damage_takes_no_token),
        cmocka_unit_test(test_damaged_index_keys_are_told_until_the_document_goes),
        cmocka_unit_test(test_index_keys_of_other_heads_are_refused),
        cmocka_unit_test(test_headers_that_overflow_are_refused),
        cmocka_unit_test(test_forks_keep_what_is_forbidden),
        cmocka_unit_test(test_shares_of_mass_cannot_hide),
        cmocka_unit_test(test_full_layers_below_the_shared_state_cannot_hide),
        cmocka_unit_test(test_the_identity_is_computed_once),
        cmocka_unit_test(test_a_session_over_mounts_is_kept_in_a_file),
        cmocka_unit_test(test_a_session_over_other_mounts_is_refused),
        cmocka_unit_test(test_a_cut_behind_mounts_keeps_them),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
