/* test_attend.c - every implementation of ATTEND against the reference over the case table, the laws
 * of partials and lists, the invariant order, and offsets of 16M tokens. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <sys/mman.h>

#include "backend/attend_cases.h"
#include "backend/route_impls.h"
#include "sanitized.h"

static const hdl_impl *const tables[] = {
    hdl_cpu_ref_attend,         hdl_cpu_generic_attend_row, hdl_cpu_generic_attend_rows,
    hdl_cpu_avx2_attend_row,    hdl_cpu_avx2_attend_rows,   hdl_cpu_avx512_attend_row,
    hdl_cpu_avx512_attend_rows, hdl_cpu_amx_attend,
};
enum { GUARD = 64, MAX_IMPLS = 16 };

/* Largest error allowed, as a share of 1 + |reference|: f32 sums of up to 5,000 terms. */
static const double tolerance_o = 4e-5, tolerance_lse = 2e-5, tolerance_mass = 2e-5;
/* On the matrix unit a factor has 16 significant bits: sums of terms that are off by 2^-17 of themselves. */
static const double tolerance_amx = 1e-4;

static double tolerance_of(const hdl_impl *impl)
{
    return impl->isa == HDL_ISA_AMX ? tolerance_amx : tolerance_o;
}

static int64_t attend_impls(const hdl_impl *impls[MAX_IMPLS])
{
    int64_t n = 0;
    for (int64_t t = 0; t < HDL_COUNT(tables); t++)
        for (const hdl_impl *impl = tables[t]; impl->name; impl++)
            if (impl->op == HDL_OP_ATTEND && impl->isa <= hdl_cpu_isa()) impls[n++] = impl;
    return n;
}

typedef struct outputs {
    float *o, *lse, *mass;
    int64_t n_o, n_lse, n_mass;
} outputs;

static outputs new_outputs(const hdl_attend_args *args)
{
    outputs out = {.n_o = args->n_rows * args->o_stride,
                   .n_lse = args->n_rows * args->n_heads,
                   .n_mass = args->n_rows * args->n_mass_lists * args->mass_stride};
    out.o = must_alloc(out.n_o * 4);
    out.lse = must_alloc(out.n_lse * 4);
    out.mass = must_alloc(out.n_mass * 4);
    for (int64_t i = 0; i < out.n_o; i++) out.o[i] = 12345;
    for (int64_t i = 0; i < out.n_lse; i++) out.lse[i] = 12345;
    for (int64_t i = 0; i < out.n_mass; i++) out.mass[i] = 12345;
    return out;
}

static void free_outputs(outputs *out)
{
    free(out->o);
    free(out->lse);
    free(out->mass);
}

/* Runs with a workspace of exactly the size asked for, between guard bytes. */
static void run_impl(const hdl_impl *impl, const hdl_attend_args *args, int n_threads, outputs *out)
{
    int64_t bytes = impl->workspace ? impl->workspace(args, n_threads) : 0;
    uint8_t *memory = must_alloc(bytes + 2 * GUARD);
    memset(memory, 0xff, (size_t)(bytes + 2 * GUARD));
    hdl_attend_args call = *args;
    call.o = out->o;
    call.lse = out->lse;
    call.mass = args->has_mass ? out->mass : NULL;
    impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = memory + GUARD}, &call);
    for (int64_t i = 0; i < GUARD; i++) {
        assert_int_equal(memory[i], 0xff);
        assert_int_equal(memory[GUARD + bytes + i], 0xff);
    }
    free(memory);
}

static double worst_error(const float *got, const float *want, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        if (got[i] == want[i]) continue;
        double error = fabs((double)got[i] - want[i]) / (1 + fabs((double)want[i]));
        if (!(error <= worst)) worst = error; /* NaN stays */
        if (isnan(error)) return INFINITY;
    }
    return worst;
}

static void check_error(const char *what, const char *name, const char *impl, double error, double allowed)
{
    if (error <= allowed) return;
    print_error("%s, %s: %s is off by %.3g, allowed %.3g\n", name, impl, what, error, allowed);
    fail();
}

static void test_cases(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = attend_impls(impls), n_runs[MAX_IMPLS] = {0};
    double worst = 0;
    for (int64_t i = 0; i < HDL_COUNT(attend_cases); i++) {
        const attend_case *c = &attend_cases[i];
        attend_setup setup;
        build_case(&setup, c, 7 + (uint64_t)i);
        outputs want = new_outputs(&setup.args);
        run_impl(impls[0], &setup.args, 1, &want);
        for (int64_t k = 1; k < 2 * n_impls; k++) { /* each also with is_invariant */
            const hdl_impl *impl = impls[k % n_impls];
            setup.args.is_invariant = k >= n_impls;
            if (IS_SANITIZED && (i + k / n_impls) % 2) continue;
            if (impl->why_not && impl->why_not(&setup.args)) continue;
            n_runs[k % n_impls]++;
            outputs got = new_outputs(&setup.args);
            run_impl(impl, &setup.args, 1 + (int)(k % 3), &got);
            double error = worst_error(got.o, want.o, want.n_o);
            worst = fmax(worst, error);
            check_error("o", c->name, impl->name, error, tolerance_of(impl));
            check_error("lse", c->name, impl->name, worst_error(got.lse, want.lse, want.n_lse),
                        impl->isa == HDL_ISA_AMX ? tolerance_amx : tolerance_lse);
            check_error("mass", c->name, impl->name, worst_error(got.mass, want.mass, want.n_mass),
                        tolerance_mass);
            free_outputs(&got);
        }
        free_outputs(&want);
        free_case(&setup);
    }
    for (int64_t k = 1; k < n_impls; k++) {
        print_message("%s ran %lld of %lld cases\n", impls[k]->name, (long long)n_runs[k],
                      2 * (long long)HDL_COUNT(attend_cases));
        assert_true(n_runs[k] > 0);
    }
    print_message("largest error of o: %.3g of %.3g allowed\n", worst, tolerance_o);
}

/* A prompt of n rows in one call, then in chunks, on other numbers of threads: equal bits. */
static void check_chunks(const hdl_impl *impl, const attend_case *c)
{
    static const int64_t chunks[] = {1, 2, 7, 64, 1000};
    attend_setup setup;
    build_case(&setup, c, 99);
    hdl_attend_args whole = setup.args;
    outputs want = new_outputs(&whole);
    run_impl(impl, &whole, 1, &want);
    for (int64_t i = 0; i < HDL_COUNT(chunks); i++) {
        outputs got = new_outputs(&whole);
        int64_t n = whole.seqs[0].q_len, before = whole.seqs[0].kv_len - n;
        for (int64_t first = 0; first < n; first += chunks[i]) {
            int64_t q_len = HDL_MIN(chunks[i], n - first);
            hdl_attend_seq seq = whole.seqs[0];
            hdl_attend_args part = whole;
            hdl_selection sel = setup.selection;
            sel.ids += first * sel.n_lists * sel.n_ids_max;
            sel.counts += first * sel.n_lists;
            seq.q_len = q_len;
            seq.kv_len = before + first + q_len;
            part.seqs = &seq;
            part.n_rows = part.max_q_len = q_len;
            part.max_kv_len = seq.kv_len;
            part.q += first * part.q_stride;
            if (part.selection) part.selection = &sel;
            outputs at = {got.o + first * part.o_stride,
                          got.lse + first * part.n_heads,
                          got.mass + first * part.n_mass_lists * part.mass_stride,
                          0,
                          0,
                          0};
            run_impl(impl, &part, 1 + (int)((first + i) % 3), &at);
        }
        assert_memory_equal(got.o, want.o, (size_t)want.n_o * 4);
        assert_memory_equal(got.lse, want.lse, (size_t)want.n_lse * 4);
        assert_memory_equal(got.mass, want.mass, (size_t)want.n_mass * 4);
        free_outputs(&got);
    }
    free_outputs(&want);
    free_case(&setup);
}

static void test_invariant_chunks(void **state)
{
    (void)state;
    static const attend_case cases[] = {
        {"dense", 9, 3, 64, 64, HDL_F16, 4, .q_len = {150}, .kv_len = {700}, .n_mass_lists = 1,
         .is_invariant = true},
        {"from 0", 9, 3, 64, 64, HDL_F16, 9, .q_len = {300}, .kv_len = {300}, .is_invariant = true},
        {"window", 4, 1, 256, 256, HDL_BF16, 6, .q_len = {70}, .kv_len = {700}, .window = 130,
         .has_sink = true, .soft_cap = 9, .is_invariant = true},
        {"blocks", 9, 3, 64, 64, HDL_F16, 8, .q_len = {40}, .kv_len = {700}, .lists = LIST_RANDOM, .n_ids = 7,
         .block_size = 64, .is_invariant = true},
        {"lists", 8, 4, 48, 64, HDL_I8, 6, .q_len = {40}, .kv_len = {700}, .lists = LIST_RANDOM, .n_lists = 2,
         .n_ids = 300, .is_invariant = true},
    };
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = attend_impls(impls);
    for (int64_t k = 1; k < n_impls; k++)
        for (int64_t i = 0; i < HDL_COUNT(cases); i++) {
            hdl_attend_args args = {
                .n_rows = 1, .n_heads = cases[i].n_heads, .n_kv_heads = cases[i].n_kv_heads};
            args.head_dim = args.v_head_dim = 64;
            args.kv_dtype = cases[i].dtype;
            args.is_invariant = true;
            args.has_selection = cases[i].lists != LIST_NONE;
            if (!impls[k]->why_not(&args)) check_chunks(impls[k], &cases[i]);
        }
}

/* A mixed batch equals each of its sequences alone. */
static void test_invariant_batch(void **state)
{
    (void)state;
    static const attend_case c = {"batch",
                                  9,
                                  3,
                                  64,
                                  64,
                                  HDL_F16,
                                  6,
                                  .q_len = {1, 30, 1, 9},
                                  .kv_len = {600, 30, 1, 300},
                                  .n_mass_lists = 1,
                                  .is_invariant = true};
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = attend_impls(impls);
    for (int64_t k = 1; k < n_impls; k++) {
        attend_setup setup;
        build_case(&setup, &c, 5);
        if (!impls[k]->why_not(&setup.args)) {
            outputs want = new_outputs(&setup.args), got = new_outputs(&setup.args);
            run_impl(impls[k], &setup.args, 2, &want);
            for (int32_t s = 0; s < setup.args.n_seqs; s++) {
                hdl_attend_args one = setup.args;
                hdl_attend_seq seq = setup.seqs[s];
                one.seqs = &seq;
                one.n_seqs = 1;
                one.n_rows = one.max_q_len = seq.q_len;
                one.max_kv_len = seq.kv_len;
                one.q += seq.first_row * one.q_stride;
                outputs at = {got.o + seq.first_row * one.o_stride,
                              got.lse + seq.first_row * one.n_heads,
                              got.mass + seq.first_row * one.mass_stride,
                              0,
                              0,
                              0};
                seq.first_row = 0;
                run_impl(impls[k], &one, 3, &at);
            }
            assert_memory_equal(got.o, want.o, (size_t)want.n_o * 4);
            assert_memory_equal(got.lse, want.lse, (size_t)want.n_lse * 4);
            assert_memory_equal(got.mass, want.mass, (size_t)want.n_mass * 4);
            free_outputs(&want);
            free_outputs(&got);
        }
        free_case(&setup);
    }
}

/* A list of all tokens or blocks: the dense bits in the invariant order, within tolerance elsewhere. */
static void check_all_ids(int32_t block_size, int32_t rows_per_list)
{
    const attend_case c = {"all",
                           9,
                           3,
                           64,
                           64,
                           HDL_F16,
                           6,
                           .q_len = {40},
                           .kv_len = {700},
                           .window = 280,
                           .lists = LIST_ALL,
                           .block_size = block_size,
                           .is_invariant = true,
                           .rows_per_list = rows_per_list};
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = attend_impls(impls);
    attend_setup setup;
    build_case(&setup, &c, 5);
    hdl_attend_args dense = setup.args;
    dense.selection = NULL;
    dense.has_selection = false;
    outputs reference = new_outputs(&dense);
    run_impl(impls[0], &dense, 1, &reference);
    for (int64_t k = 0; k < n_impls; k++) {
        outputs got = new_outputs(&dense), want = new_outputs(&dense);
        if (!impls[k]->why_not || !impls[k]->why_not(&setup.args)) {
            run_impl(impls[k], &setup.args, 2, &got);
            run_impl(impls[k], &dense, 2, &want);
            assert_memory_equal(got.o, want.o, (size_t)want.n_o * 4);
            assert_memory_equal(got.lse, want.lse, (size_t)want.n_lse * 4);
        } else {
            hdl_attend_args free_order = setup.args;
            free_order.is_invariant = false;
            if (!impls[k]->why_not(&free_order)) {
                run_impl(impls[k], &free_order, 2, &got);
                check_error("o", c.name, impls[k]->name, worst_error(got.o, reference.o, got.n_o),
                            tolerance_o);
            }
        }
        free_outputs(&got);
        free_outputs(&want);
    }
    free_outputs(&reference);
    free_case(&setup);
}

static void test_all_ids_equal_dense(void **state)
{
    (void)state;
    check_all_ids(1, 1);
    check_all_ids(16, 1);
    check_all_ids(256, 1);
    check_all_ids(64, 16);
    check_all_ids(1, 64);
}

/* Any split of the tokens into two lists, merged, equals the whole; a superset holds more mass. */
static void test_split_and_merge(void **state)
{
    (void)state;
    static const attend_case c = {"split",          4, 2, 64, 64, HDL_F16, 6, .q_len = {6}, .kv_len = {400},
                                  .lists = LIST_ALL};
    const hdl_impl *impls[MAX_IMPLS], *merge = hdl_cpu_ref_attend;
    while (merge->op != HDL_OP_MERGE) merge++;
    int64_t n_impls = attend_impls(impls);
    for (int64_t k = 0; k < n_impls; k++) {
        attend_setup setup;
        build_case(&setup, &c, 31);
        setup.args.o_stride = (int64_t)c.n_heads * c.v_head_dim;
        if (impls[k]->why_not && impls[k]->why_not(&setup.args)) {
            free_case(&setup);
            continue;
        }
        hdl_selection *sel = &setup.selection;
        outputs whole = new_outputs(&setup.args), odd = new_outputs(&setup.args),
                even = new_outputs(&setup.args);
        run_impl(impls[k], &setup.args, 1, &whole);
        for (int half = 0; half < 2; half++) {
            for (int64_t row = 0; row < sel->n_rows; row++) {
                int32_t n = 0, n_visible = (int32_t)(400 - 6 + row + 1),
                        *ids = hdl_selection_ids(sel, row, 0);
                for (int32_t t = 0; t < n_visible; t++)
                    if ((t * 7919 / 13) % 2 == half) ids[n++] = t;
                *hdl_selection_count(sel, row, 0) = n;
            }
            run_impl(impls[k], &setup.args, 1, half ? &odd : &even);
        }
        for (int64_t i = 0; i < whole.n_lse; i++) assert_true(odd.lse[i] <= whole.lse[i] + 1e-5f);
        hdl_merge_args args = {whole.n_lse,
                               2,
                               c.v_head_dim,
                               (const float *const[]){odd.o, even.o},
                               (const float *const[]){odd.lse, even.lse},
                               odd.o,
                               odd.lse};
        merge->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &args);
        check_error("o", c.name, impls[k]->name, worst_error(odd.o, whole.o, whole.n_o), tolerance_o);
        check_error("lse", c.name, impls[k]->name, worst_error(odd.lse, whole.lse, whole.n_lse),
                    tolerance_lse);
        free_outputs(&whole);
        free_outputs(&odd);
        free_outputs(&even);
        free_case(&setup);
    }
}

/* softmax(scale q . k) of one head in double precision over the tokens but `without` (-1 = all), from the
 * stored rows: p [n] and o [v_head_dim]. */
static void softmax_of_head(const attend_setup *setup, int32_t head, int64_t without, double *p, double *o)
{
    const hdl_attend_args *args = &setup->args;
    const hdl_kv_view *kv = &setup->seqs[0].kv;
    int64_t n = setup->seqs[0].kv_len, slots = (int64_t)1 << kv->page_shift;
    int32_t kv_head = head / (args->n_heads / args->n_kv_heads);
    const float *q = args->q + (int64_t)head * args->head_dim;
    double sum = 0;
    memset(o, 0, (size_t)args->v_head_dim * sizeof *o);
    for (int64_t t = 0; t < n; t++) {
        const uint8_t *row = kv->pages[t / slots] + t % slots * kv->token_stride;
        const float *key = (const float *)(const void *)(row + kv_head * kv->head_stride),
                    *value = (const float *)(const void *)(row + kv->v_offset + kv_head * kv->v_head_stride);
        double dot = 0;
        for (int32_t d = 0; d < args->head_dim; d++) dot += (double)q[d] * key[d];
        p[t] = t == without ? 0 : exp(args->scale * dot);
        sum += p[t];
        for (int32_t d = 0; d < args->v_head_dim; d++) o[d] += p[t] * value[d];
    }
    for (int64_t t = 0; t < n; t++) p[t] /= sum;
    for (int32_t d = 0; d < args->v_head_dim; d++) o[d] /= sum;
}

enum { LAW_SINK = 4, LAW_WINDOW = 16, LAW_DIM = 48, LAW_MAX = 400 };

/* The unforced token of least mean mass over the heads, in double precision. */
static int32_t lowest_unforced(const attend_setup *setup, bool *has_lower_forced)
{
    double p[LAW_MAX], o[LAW_DIM], mass[LAW_MAX] = {0};
    int32_t n = (int32_t)setup->seqs[0].kv_len, lowest = LAW_SINK;
    for (int32_t head = 0; head < setup->args.n_heads; head++) {
        softmax_of_head(setup, head, -1, p, o);
        for (int32_t t = 0; t < n; t++) mass[t] += p[t];
    }
    for (int32_t t = LAW_SINK; t < n - LAW_WINDOW; t++)
        if (mass[t] < mass[lowest]) lowest = t;
    for (int32_t t = 0; t < n; t++)
        *has_lower_forced |= (t < LAW_SINK || t >= n - LAW_WINDOW) && mass[t] < mass[lowest];
    return lowest;
}

/* Layer inputs fixed and n = k + forced + 1: ATTEND's masses, SELECT and ATTEND over the list drop exactly
 * `lowest`, and the output is dense renormalised without it. */
static void check_law(attend_setup *setup, const hdl_impl *attend, const hdl_impl *select, int32_t lowest)
{
    int64_t n = setup->seqs[0].kv_len;
    int32_t ids[LAW_MAX], count = 0;
    outputs dense = new_outputs(&setup->args);
    run_impl(attend, &setup->args, 2, &dense);
    hdl_selection list = {
        .block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = n, .ids = ids, .counts = &count};
    hdl_select_args args = {.n_rows = 1,
                            .n_lists = 1,
                            .score = dense.mass,
                            .score_stride = setup->args.mass_stride,
                            .n_visible = &n,
                            .max_visible = n,
                            .top_k = n - LAW_SINK - LAW_WINDOW - 1,
                            .n_sink = LAW_SINK,
                            .window = LAW_WINDOW,
                            .out = &list};
    void *workspace = must_alloc(select->workspace ? select->workspace(&args, 2) : 0);
    select->launch(&(hdl_launch){.n_threads = 2, .workspace = workspace}, &args);
    free(workspace);
    assert_int_equal(count, n - 1);
    for (int32_t i = 0; i < count; i++) assert_int_equal(ids[i], i + (i >= lowest));
    hdl_attend_args call = setup->args;
    call.has_mass = false;
    call.n_mass_lists = 0;
    call.has_selection = true;
    call.selection = &list;
    outputs sparse = new_outputs(&call);
    if (!attend->why_not || !attend->why_not(&call)) {
        run_impl(attend, &call, 2, &sparse);
        for (int32_t head = 0; head < call.n_heads; head++) {
            double p[LAW_MAX], o[LAW_DIM];
            softmax_of_head(setup, head, lowest, p, o);
            for (int32_t d = 0; d < LAW_DIM; d++)
                assert_true(fabs(sparse.o[head * LAW_DIM + d] - o[d]) < tolerance_o);
        }
    }
    free_outputs(&sparse);
    free_outputs(&dense);
}

static void test_one_too_many_drops_the_lowest_mass(void **state)
{
    (void)state;
    static const attend_case c = {
        "law", 4, 2, 32, LAW_DIM, HDL_F32, 5, .q_len = {1}, .kv_len = {200}, .n_mass_lists = 1};
    const hdl_impl *impls[MAX_IMPLS], *selects[MAX_ROUTE_IMPLS];
    int64_t n_impls = attend_impls(impls), n_selects = route_impls(HDL_OP_SELECT, selects), n_checked = 0;
    bool has_lower_forced = false;
    for (uint64_t seed = 1; seed <= 20; seed += 1 + 3 * IS_SANITIZED) {
        attend_setup setup;
        build_case(&setup, &c, seed);
        int32_t lowest = lowest_unforced(&setup, &has_lower_forced);
        for (int64_t k = 0; k < n_impls * n_selects; k++) {
            const hdl_impl *attend = impls[k / n_selects], *select = selects[k % n_selects];
            if (attend->why_not && attend->why_not(&setup.args)) continue;
            check_law(&setup, attend, select, lowest);
            n_checked++;
        }
        free_case(&setup);
    }
    assert_true(n_checked >= 20 && has_lower_forced); /* a forced token of less mass stayed, somewhere */
}

/* 16M tokens in one sparse mapping: the list names the first and the last. */
static void test_16m_tokens(void **state)
{
    (void)state;
    enum { N_TOKENS = 16 << 20, DIM = 64, KV_HEADS = 3, HEADS = 9 };
    int64_t row_bytes = 2 * KV_HEADS * DIM * 2, bytes = N_TOKENS * row_bytes;
    uint8_t *cache = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache == MAP_FAILED) skip();
    uint64_t random = 3;
    float q[HEADS * DIM], row[2 * KV_HEADS * DIM], o[HEADS * DIM], want[HEADS * DIM], lse[HEADS],
        want_lse[HEADS];
    fill_random(q, HEADS * DIM, &random);
    hdl_attend_seq seq = {.q_len = 1, .kv_len = N_TOKENS};
    seq.kv = (hdl_kv_view){.pages = &cache, .page_shift = 40, .dtype = HDL_F16, .v_offset = row_bytes / 2};
    seq.kv.token_stride = row_bytes;
    seq.kv.head_stride = seq.kv.v_head_stride = DIM * 2;
    static const int32_t tokens[] = {0, N_TOKENS / 2, N_TOKENS - 1};
    int32_t ids[3], count = 3;
    memcpy(ids, tokens, sizeof ids);
    const hdl_impl *append = hdl_cpu_ref_attend, *impls[MAX_IMPLS];
    while (append->op != HDL_OP_APPEND) append++;
    for (int i = 0; i < 3; i++) {
        fill_random(row, 2 * KV_HEADS * DIM, &random);
        hdl_append_args one = {1, tokens[i], KV_HEADS, DIM, DIM, row, row + KV_HEADS * DIM, 0, 0, seq.kv};
        append->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &one);
    }
    hdl_selection sel = {
        .block_size = 1, .n_rows = 1, .n_lists = 1, .n_ids_max = 3, .ids = ids, .counts = &count};
    hdl_attend_args args = {
        .n_rows = 1, .n_seqs = 1, .n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM};
    args.v_head_dim = DIM;
    args.seqs = &seq;
    args.max_q_len = 1;
    args.max_kv_len = N_TOKENS;
    args.kv_dtype = HDL_F16;
    args.q = q;
    args.scale = 0.125f;
    args.has_selection = true;
    args.selection = &sel;
    int64_t n_impls = attend_impls(impls);
    for (int64_t k = 0; k < n_impls; k++)
        for (int dense_window = 0; dense_window < 2; dense_window++) { /* the last token alone: window 1 */
            hdl_attend_args call = args;
            if (dense_window) {
                call.selection = NULL;
                call.has_selection = false;
                call.window = 1;
            }
            if (impls[k]->why_not && impls[k]->why_not(&call)) continue;
            outputs out = {o, lse, NULL, 0, 0, 0};
            run_impl(impls[k], &call, 2, &out);
            if (dense_window == 1) continue;
            if (k == 0) {
                memcpy(want, o, sizeof o);
                memcpy(want_lse, lse, sizeof lse);
            }
            check_error("o", "16M tokens", impls[k]->name, worst_error(o, want, HEADS * DIM), tolerance_o);
            check_error("lse", "16M tokens", impls[k]->name, worst_error(lse, want_lse, HEADS),
                        tolerance_lse);
        }
    munmap(cache, (size_t)bytes);
}

/* Each KV head by itself, from a view of its own, has the bits that it has among all. */
static void test_head_ranges(void **state)
{
    (void)state;
    const hdl_impl *impls[MAX_IMPLS];
    int64_t n_impls = attend_impls(impls), n_checked = 0;
    for (int64_t i = 0; i < HDL_COUNT(attend_cases); i++) {
        const attend_case *c = &attend_cases[i];
        if (c->n_lists > 1 || c->n_mass_lists || c->has_bias || c->n_kv_heads == 1) continue;
        if (IS_SANITIZED && i % 3) continue;
        attend_setup setup;
        build_case(&setup, c, 55 + (uint64_t)i);
        setup.args.is_invariant = true;
        int32_t n_kv = c->n_kv_heads, n = c->n_heads / n_kv;
        for (int64_t k = 0; k < n_impls; k++) {
            if (impls[k]->why_not && impls[k]->why_not(&setup.args)) continue;
            outputs want = new_outputs(&setup.args);
            run_impl(impls[k], &setup.args, 2, &want);
            for (int32_t h = 0; h < n_kv; h++) {
                hdl_attend_args part = setup.args;
                hdl_attend_seq seqs[CASE_SEQS];
                for (int32_t s = 0; s < part.n_seqs; s++) {
                    seqs[s] = part.seqs[s];
                    seqs[s].kv = hdl_kv_heads(&part.seqs[s].kv, h, n_kv);
                }
                part.seqs = seqs;
                part.n_heads = n;
                part.n_kv_heads = 1;
                part.q += h * n * part.head_dim;
                if (part.sink) part.sink += h * n;
                outputs got = new_outputs(&part);
                run_impl(impls[k], &part, 1, &got);
                for (int64_t row = 0; row < part.n_rows; row++) {
                    assert_memory_equal(got.o + row * part.o_stride,
                                        want.o + row * part.o_stride + h * n * part.v_head_dim,
                                        (size_t)(n * part.v_head_dim) * 4);
                    assert_memory_equal(got.lse + row * n, want.lse + row * c->n_heads + h * n,
                                        (size_t)n * 4);
                }
                free_outputs(&got);
            }
            n_checked++;
            free_outputs(&want);
        }
        free_case(&setup);
    }
    print_message("%lld cases and implementations\n", (long long)n_checked);
    assert_true(n_checked > (IS_SANITIZED ? 15 : 50));
}

/* The tokens of a row cut into 1..8 ranges, their partials merged, are the whole. */
static void test_token_ranges(void **state)
{
    (void)state;
    static const attend_case cases[] = {
        {"dense", 9, 3, 64, 64, HDL_F16, 4, .q_len = {1}, .kv_len = {777}},
        {"int8", 8, 2, 128, 64, HDL_I8, 6, .q_len = {1}, .kv_len = {777}, .soft_cap = 20},
        {"list", 9, 3, 64, 64, HDL_BF16, 8, .q_len = {1}, .kv_len = {777}, .lists = LIST_RANDOM, .n_ids = 90},
        {"blocks", 9, 3, 64, 64, HDL_F16, 6, .q_len = {1}, .kv_len = {768}, .lists = LIST_RANDOM, .n_ids = 5,
         .block_size = 16},
    };
    const hdl_impl *impls[MAX_IMPLS], *merge = hdl_cpu_ref_attend;
    while (merge->op != HDL_OP_MERGE) merge++;
    int64_t n_impls = attend_impls(impls);
    for (int64_t i = 0; i < HDL_COUNT(cases); i++)
        for (int64_t k = 0; k < n_impls; k++) {
            attend_setup setup;
            build_case(&setup, &cases[i], 77);
            hdl_attend_args *args = &setup.args;
            args->o_stride = (int64_t)args->n_heads * args->v_head_dim;
            for (int32_t n = 1; n <= 8 && !(impls[k]->why_not && impls[k]->why_not(args)); n++) {
                outputs whole = new_outputs(args), part[8];
                const float *o[8], *lse[8];
                run_impl(impls[k], args, 1, &whole);
                for (int32_t r = 0; r < n; r++) {
                    hdl_attend_seq seq = args->seqs[0];
                    hdl_attend_args range = *args;
                    seq.first_token = args->max_kv_len * r / n / 16 * 16; /* whole blocks */
                    if (r < n - 1) seq.kv_len = args->max_kv_len * (r + 1) / n / 16 * 16;
                    range.seqs = &seq;
                    part[r] = new_outputs(args);
                    run_impl(impls[k], &range, 1, &part[r]);
                    o[r] = part[r].o;
                    lse[r] = part[r].lse;
                }
                hdl_merge_args all = {whole.n_lse, n, args->v_head_dim, o, lse, part[0].o, part[0].lse};
                merge->launch(&(hdl_launch){.n_threads = 1, .workspace = NULL}, &all);
                check_error("o", cases[i].name, impls[k]->name, worst_error(part[0].o, whole.o, whole.n_o),
                            tolerance_of(impls[k]));
                check_error("lse", cases[i].name, impls[k]->name,
                            worst_error(part[0].lse, whole.lse, whole.n_lse), tolerance_of(impls[k]));
                for (int32_t r = 0; r < n; r++) free_outputs(&part[r]);
                free_outputs(&whole);
            }
            free_case(&setup);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),           cmocka_unit_test(test_invariant_chunks),
        cmocka_unit_test(test_invariant_batch), cmocka_unit_test(test_all_ids_equal_dense),
        cmocka_unit_test(test_split_and_merge), cmocka_unit_test(test_one_too_many_drops_the_lowest_mass),
        cmocka_unit_test(test_head_ranges),     cmocka_unit_test(test_token_ranges),
        cmocka_unit_test(test_16m_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
