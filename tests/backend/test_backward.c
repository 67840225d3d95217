/* test_backward.c - ATTEND_BACKWARD against plain arrays in double, those against finite differences, and the
 * laws: a list of everything is dense, one token less has no gradient, parts of a list add up under the
 * merged lse, nothing visible gives zeroes, threads change no bit. Both ops against PyTorch's autograd. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/backward_cases.h"
#include "sanitized.h"

/* N <= 64, so that every element can be moved: heads in groups, each kind of visible set. */
static const attend_case small_cases[] = {
    {"small dense", 4, 2, 8, 8, HDL_F32, 3, .q_len = {20}, .kv_len = {20}},
    {"small cap and sink", 2, 1, 4, 6, HDL_F32, 6, .q_len = {9}, .kv_len = {17}, .soft_cap = 2,
     .has_sink = true},
    {"small window", 3, 3, 4, 4, HDL_F32, 6, .q_len = {30}, .kv_len = {64}, .window = 7},
    {"small list", 4, 2, 8, 4, HDL_F32, 4, .q_len = {12, 3}, .kv_len = {40, 3}, .lists = LIST_RANDOM,
     .n_ids = 9},
    {"small list one row", 4, 1, 4, 4, HDL_F32, 4, .q_len = {1}, .kv_len = {33}, .lists = LIST_RANDOM,
     .n_ids = 8},
    {"small list bias", 4, 2, 4, 4, HDL_F32, 4, .q_len = {6}, .kv_len = {30}, .lists = LIST_RANDOM,
     .n_lists = 2, .n_ids = 9, .has_bias = true, .soft_cap = 3},
    {"small blocks bias", 4, 2, 4, 4, HDL_F32, 4, .q_len = {6}, .kv_len = {61}, .lists = LIST_RANDOM,
     .n_ids = 5, .block_size = 8, .has_bias = true},
    {"small tree", 2, 1, 4, 4, HDL_F32, 4, .q_len = {8}, .kv_len = {20}, .has_mask = true},
    {"small document", 2, 2, 4, 4, HDL_F32, 4, .q_len = {10}, .kv_len = {30}, .first_token = {22}},
};

/* d_o . o of a row and head; with is_back its gradients are added to the arrays. */
static double plain_head(plain *p, int32_t s, int64_t i, int32_t head, bool is_back)
{
    const hdl_attend_args *a = &p->setup->args;
    const hdl_attend_seq *seq = &a->seqs[s];
    int64_t n = seq->kv_len, dim = a->head_dim, v_dim = a->v_head_dim, row = seq->first_row + i, bias0 = 0;
    int32_t kv_head = head / (a->n_heads / a->n_kv_heads), list = 0;
    if (a->selection) {
        list = kv_head / (a->n_kv_heads / a->selection->n_lists);
        bias0 = (list_row(a->selection, seq, i) * a->selection->n_lists + list) * a->selection->n_ids_max;
    }
    const double *q = p->q + (row * a->n_heads + head) * dim,
                 *d_o = p->d_o + (row * a->n_heads + head) * v_dim;
    double *x = new_doubles(n), *w = new_doubles(n), *d_p = new_doubles(n), sum = 0, loss = 0;
    int64_t *place = must_alloc(n * 8);
    if (a->sink) sum = exp(p->sink[head]);
    for (int64_t t = 0; t < n; t++) {
        if ((place[t] = place_of(p->setup, seq, i, list, t)) < 0) continue;
        int64_t at = (p->first_kv[s] + t) * a->n_kv_heads + kv_head;
        for (int64_t d = 0; d < dim; d++) x[t] += a->scale * q[d] * p->k[at * dim + d];
        if (a->soft_cap > 0) x[t] = a->soft_cap * tanh(x[t] / a->soft_cap);
        w[t] = exp(x[t] + (p->n_bias ? p->bias[bias0 + place[t]] : 0));
        sum += w[t];
        for (int64_t d = 0; d < v_dim; d++) d_p[t] += d_o[d] * p->v[at * v_dim + d];
    }
    for (int64_t t = 0; t < n && sum > 0; t++) loss += (w[t] /= sum) * d_p[t];
    for (int64_t t = 0; t < n && is_back && sum > 0; t++) {
        if (place[t] < 0) continue;
        int64_t at = (p->first_kv[s] + t) * a->n_kv_heads + kv_head;
        double g = w[t] * (d_p[t] - loss);
        if (p->n_bias) p->d_bias[bias0 + place[t]] += g;
        if (a->soft_cap > 0) g *= 1 - pow(x[t] / a->soft_cap, 2);
        for (int64_t d = 0; d < dim; d++) {
            p->dq[(row * a->n_heads + head) * dim + d] += a->scale * g * p->k[at * dim + d];
            p->dk[at * dim + d] += a->scale * g * q[d];
        }
        for (int64_t d = 0; d < v_dim; d++) p->dv[at * v_dim + d] += w[t] * d_o[d];
    }
    if (is_back && a->sink) p->d_sink[head] -= exp(p->sink[head]) / sum * loss;
    free(x), free(w), free(d_p), free(place);
    return loss;
}

static double plain_loss(plain *p, bool is_back)
{
    const hdl_attend_args *a = &p->setup->args;
    double loss = 0;
    for (int32_t s = 0; s < a->n_seqs; s++)
        for (int64_t i = 0; i < a->seqs[s].q_len; i++)
            for (int32_t head = 0; head < a->n_heads; head++) loss += plain_head(p, s, i, head, is_back);
    return loss;
}

/* The op's call and its outputs. */
typedef struct call {
    hdl_attend_backward_args args;
    hdl_attend_grad grad[CASE_SEQS];
    float *o, *lse, *d_o, *dq, *dk, *dv, *d_bias, *d_sink;
} call;

static void run_backward(call *c, int n_threads)
{
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_ATTEND_BACKWARD), &c->args, n_threads);
}

/* Runs forward; buffers of the gradients are zeroed. */
static call new_call(const plain *p)
{
    const hdl_attend_args *a = &p->setup->args;
    call c = {.args = {.forward = *a}};
    hdl_attend_args *fwd = &c.args.forward;
    fwd->has_mass = false, fwd->n_mass_lists = 0;
    c.o = new_floats(a->n_rows * a->o_stride), c.lse = new_floats(a->n_rows * a->n_heads);
    fwd->o = c.o, fwd->lse = c.lse;
    launch(reference_of(hdl_cpu_ref_attend, HDL_OP_ATTEND), fwd, 1);
    c.d_o = new_floats(p->n_o), c.dq = new_floats(p->n_q), c.dk = new_floats(p->n_k);
    c.dv = new_floats(p->n_v), c.d_bias = new_floats(p->n_bias), c.d_sink = new_floats(p->n_sink);
    for (int64_t i = 0; i < p->n_o; i++) c.d_o[i] = (float)p->d_o[i];
    for (int64_t i = 0; i < p->n_q; i++) c.dq[i] = NAN; /* written, not added to */
    return c;
}

static void backward_of(call *c, const plain *p, int n_threads)
{
    const hdl_attend_args *a = &p->setup->args;
    c->args.d_o = c->d_o, c->args.d_o_stride = (int64_t)a->n_heads * a->v_head_dim;
    c->args.dq = c->dq, c->args.dq_stride = (int64_t)a->n_heads * a->head_dim;
    c->args.d_bias = p->n_bias ? c->d_bias : NULL;
    c->args.d_sink = p->n_sink ? c->d_sink : NULL;
    c->args.grad = c->grad;
    for (int32_t s = 0; s < a->n_seqs; s++)
        c->grad[s] = (hdl_attend_grad){c->dk + p->first_kv[s] * a->n_kv_heads * a->head_dim,
                                       c->dv + p->first_kv[s] * a->n_kv_heads * a->v_head_dim};
    run_backward(c, n_threads);
}

static void free_call(call *c)
{
    float *all[] = {c->o, c->lse, c->d_o, c->dq, c->dk, c->dv, c->d_bias, c->d_sink};
    for (int64_t i = 0; i < HDL_COUNT(all); i++) free(all[i]);
}

static void check_call(const char *name, const call *c, const plain *p)
{
    check_near(name, "dq", c->dq, p->dq, p->n_q);
    check_near(name, "dk", c->dk, p->dk, p->n_k);
    check_near(name, "dv", c->dv, p->dv, p->n_v);
    check_near(name, "d_bias", c->d_bias, p->d_bias, p->n_bias);
    check_near(name, "d_sink", c->d_sink, p->d_sink, p->n_sink);
}

static void check_case(const attend_case *at, uint64_t seed)
{
    attend_setup setup;
    build_case(&setup, at, seed);
    plain p = new_plain(&setup);
    plain_loss(&p, true);
    call c = new_call(&p), d = new_call(&p);
    backward_of(&c, &p, 1);
    check_call(at->name, &c, &p);
    backward_of(&d, &p, 3); /* the same bits on other threads */
    assert_memory_equal(c.dq, d.dq, p.n_q * 4);
    assert_memory_equal(c.dk, d.dk, p.n_k * 4);
    assert_memory_equal(c.dv, d.dv, p.n_v * 4);
    assert_memory_equal(c.d_bias, d.d_bias, p.n_bias * 4);
    run_backward(&d, 2); /* dk and dv are added to: twice the gradient, exactly */
    for (int64_t i = 0; i < p.n_k; i++) assert_true(fabsf(d.dk[i] - 2 * c.dk[i]) <= 1e-6f * fabsf(c.dk[i]));
    assert_memory_equal(c.dq, d.dq, p.n_q * 4);
    free_call(&c), free_call(&d);
    free_plain(&p);
    free_case(&setup);
}

static void test_cases(void **state)
{
    (void)state;
    int64_t n = 0;
    for (int64_t i = 0; i < HDL_COUNT(small_cases); i++) check_case(&small_cases[i], 5 + (uint64_t)i);
    for (int64_t i = 0; i < HDL_COUNT(attend_cases); i++) {
        const attend_case *c = &attend_cases[i];
        if (c->kv_len[0] > (IS_SANITIZED ? 400 : 1100)) continue; /* quadratic and asked token by token */
        check_case(c, 11 + (uint64_t)i);
        n++;
    }
    print_message("%lld cases of attention and %lld small ones\n", (long long)n,
                  (long long)HDL_COUNT(small_cases));
    assert_true(n > (IS_SANITIZED ? 8 : 25));
}

/* Moves every element of x by h both ways. */
static void check_differences(const char *name, const char *what, plain *p, double *x, const double *d,
                              int64_t n)
{
    const double h = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double kept = x[i];
        x[i] = kept + h;
        double up = plain_loss(p, false);
        x[i] = kept - h;
        double slope = (up - plain_loss(p, false)) / (2 * h);
        x[i] = kept;
        if (fabs(slope - d[i]) <= 1e-7 * (1 + fabs(d[i]))) continue;
        print_error("%s: %s[%lld] is %.9g, by differences %.9g\n", name, what, (long long)i, d[i], slope);
        fail();
    }
}

static void test_finite_differences(void **state)
{
    (void)state;
    for (int64_t i = 0; i < HDL_COUNT(small_cases); i++) {
        attend_setup setup;
        build_case(&setup, &small_cases[i], 5 + (uint64_t)i);
        plain p = new_plain(&setup);
        plain_loss(&p, true);
        const char *name = small_cases[i].name;
        check_differences(name, "dq", &p, p.q, p.dq, p.n_q);
        check_differences(name, "dk", &p, p.k, p.dk, p.n_k);
        check_differences(name, "dv", &p, p.v, p.dv, p.n_v);
        if (p.n_bias) check_differences(name, "d_bias", &p, p.bias, p.d_bias, p.n_bias);
        if (p.n_sink) check_differences(name, "d_sink", &p, p.sink, p.d_sink, p.n_sink);
        free_plain(&p);
        free_case(&setup);
    }
}

static const attend_case list_of_all = {
    "list of all", 4, 2, 32, 32, HDL_F32, 10, .q_len = {512}, .kv_len = {512}, .lists = LIST_ALL};

/* Lists of every visible token: dense, bit for bit. */
static void test_a_list_of_everything_is_dense(void **state)
{
    (void)state;
    attend_setup setup;
    build_case(&setup, &list_of_all, 3);
    plain p = new_plain(&setup);
    call list = new_call(&p);
    backward_of(&list, &p, 2);
    setup.args.selection = NULL, setup.args.has_selection = false;
    call dense = new_call(&p);
    backward_of(&dense, &p, 2);
    assert_memory_equal(list.dq, dense.dq, p.n_q * 4);
    assert_memory_equal(list.dk, dense.dk, p.n_k * 4);
    assert_memory_equal(list.dv, dense.dv, p.n_v * 4);
    free_call(&list), free_call(&dense);
    free_plain(&p);
    free_case(&setup);
}

static void drop(hdl_selection *sel, int64_t row, int32_t id)
{
    int32_t *ids = hdl_selection_ids(sel, row, 0), *count = hdl_selection_count(sel, row, 0), n = 0;
    for (int32_t i = 0; i < *count; i++)
        if (ids[i] != id) ids[n++] = ids[i];
    *count = n;
}

/* k + 1 visible tokens and k listed: the one that is left out gets exactly nothing, the others change. */
static void test_one_token_less(void **state)
{
    (void)state;
    enum { OUT = 37 };
    attend_setup setup;
    attend_case at = list_of_all;
    at.q_len[0] = 1, at.kv_len[0] = 65;
    build_case(&setup, &at, 4);
    plain p = new_plain(&setup);
    call all = new_call(&p);
    backward_of(&all, &p, 1);
    drop(&setup.selection, 0, OUT);
    plain_loss(&p, true);
    call less = new_call(&p);
    backward_of(&less, &p, 1);
    check_call("one token less", &less, &p);
    int64_t k_n = setup.args.n_kv_heads * setup.args.head_dim, n_same = 0;
    for (int64_t i = 0; i < k_n; i++) {
        assert_true(less.dk[OUT * k_n + i] == 0 && less.dv[OUT * k_n + i] == 0);
        assert_true(all.dv[OUT * k_n + i] != 0);
    }
    for (int64_t i = 0; i < p.n_q; i++) n_same += less.dq[i] == all.dq[i];
    assert_true(n_same < p.n_q / 2);
    free_call(&all), free_call(&less);
    free_plain(&p);
    free_case(&setup);
}

/* Two halves of the lists, each given the merged o and lse: the gradients add up to the whole's. */
static void test_parts_under_the_merged_lse_add_up(void **state)
{
    (void)state;
    attend_setup setup;
    attend_case at = list_of_all;
    at.q_len[0] = at.kv_len[0] = 70;
    build_case(&setup, &at, 6);
    plain p = new_plain(&setup);
    plain_loss(&p, true);
    call whole = new_call(&p), part = new_call(&p);
    float *dq = new_floats(p.n_q);
    for (int odd = 0; odd < 2; odd++) {
        for (int64_t row = 0; row < 70; row++) {
            int32_t *ids = hdl_selection_ids(&setup.selection, row, 0), n = 0;
            for (int32_t t = odd; t <= row; t += 2) ids[n++] = t;
            *hdl_selection_count(&setup.selection, row, 0) = n;
        }
        backward_of(&part, &p, 1); /* o and lse stay the whole's */
        for (int64_t i = 0; i < p.n_q; i++) dq[i] += part.dq[i];
    }
    memcpy(part.dq, dq, (size_t)p.n_q * 4);
    check_call("two parts", &part, &p);
    free(dq);
    free_call(&whole), free_call(&part);
    free_plain(&p);
    free_case(&setup);
}

static void test_an_empty_list_has_no_gradient(void **state)
{
    (void)state;
    attend_setup setup;
    attend_case at = list_of_all;
    at.q_len[0] = 5, at.kv_len[0] = 40, at.lists = LIST_EMPTY;
    build_case(&setup, &at, 6);
    plain p = new_plain(&setup);
    call c = new_call(&p);
    backward_of(&c, &p, 1);
    for (int64_t i = 0; i < p.n_q; i++) assert_true(c.dq[i] == 0);
    for (int64_t i = 0; i < p.n_k; i++) assert_true(c.dk[i] == 0 && c.dv[i] == 0);
    free_call(&c);
    free_plain(&p);
    free_case(&setup);
}

/* ---- PyTorch's autograd (tests/golden/backward, made by train/golden_backward.py, which says what is in it) ---- */

enum {
    G_ROWS = 16,
    G_HEADS = 4,
    G_KV = 2,
    G_DIM = 4,
    G_BLOCK = 8,
    G_LAYERS = 3,
    G_INDEX_DIM = 8,
    G_WIDTH = G_HEADS * G_DIM
};

typedef struct golden {
    int64_t n;
    float *all, *at;
    const float *q, *d_o, *k, *v, *iq, *ik;
    uint8_t *page;
    hdl_attend_seq seq;
    hdl_selection selection;
    float o[G_ROWS * G_WIDTH], lse[G_ROWS * G_HEADS];
} golden;

static const float *next_array(golden *g, int64_t n)
{
    g->at += n;
    return g->at - n;
}

static void open_golden(golden *g, int64_t n)
{
    char path[512];
    int64_t n_kv = n * G_KV * G_DIM, row = G_KV * G_DIM * 4;
    int64_t n_floats = (G_LAYERS + 1) * G_ROWS * G_WIDTH + 2 * n_kv + (G_ROWS + n) * G_INDEX_DIM +
                       2 * (2 * G_ROWS * G_WIDTH + 2 * n_kv) + G_ROWS + (G_ROWS + n) * G_INDEX_DIM;
    *g = (golden){.n = n, .all = new_floats(n_floats + 1), .page = must_alloc(2 * n * row)};
    snprintf(path, sizeof path, HDL_TEST_DATA "/golden/backward/%d.f32", (int)n);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(g->all, 4, (size_t)n_floats + 1, file), n_floats);
    fclose(file);
    g->at = g->all;
    g->q = next_array(g, G_LAYERS * G_ROWS * G_WIDTH), g->d_o = next_array(g, G_ROWS * G_WIDTH);
    g->k = next_array(g, n_kv), g->v = next_array(g, n_kv);
    g->iq = next_array(g, G_ROWS * G_INDEX_DIM), g->ik = next_array(g, n * G_INDEX_DIM);
    for (int64_t t = 0; t < n; t++) {
        memcpy(g->page + 2 * t * row, (const uint8_t *)g->k + t * row, (size_t)row);
        memcpy(g->page + (2 * t + 1) * row, (const uint8_t *)g->v + t * row, (size_t)row);
    }
    g->seq = (hdl_attend_seq){.q_len = G_ROWS,
                              .kv_len = n,
                              .kv = {.pages = &g->page,
                                     .page_shift = 9,
                                     .dtype = HDL_F32,
                                     .v_offset = row,
                                     .token_stride = 2 * row,
                                     .head_stride = G_DIM * 4,
                                     .v_head_stride = G_DIM * 4}};
}

static void close_golden(golden *g)
{
    free(g->all), free(g->page);
}

/* The rule of golden_backward.py's `listed`. */
static void make_lists(golden *g, int32_t block, int32_t n_lists)
{
    hdl_selection *sel = &g->selection;
    *sel = (hdl_selection){.unit = block > 1 ? HDL_UNIT_BLOCK : HDL_UNIT_TOKEN,
                           .block_size = block,
                           .n_rows = G_ROWS,
                           .n_lists = n_lists,
                           .n_ids_max = g->n};
    sel->ids = must_alloc(G_ROWS * n_lists * g->n * 4), sel->counts = must_alloc(G_ROWS * n_lists * 4);
    for (int32_t r = 0; r < G_ROWS; r++)
        for (int32_t l = 0; l < n_lists; l++) {
            int32_t *ids = hdl_selection_ids(sel, r, l), count = 0;
            for (int32_t id = 0; id * block <= g->n - G_ROWS + r; id++)
                if (block > 1 ? (5 * id + r + 3 * l) % 3 == 0 : (7 * id + 3 * r + 5 * l) % 4 == 0)
                    ids[count++] = id;
            *hdl_selection_count(sel, r, l) = count;
        }
}

static hdl_attend_args golden_forward(golden *g, int layer)
{
    hdl_attend_args args = {.n_rows = G_ROWS,
                            .n_seqs = 1,
                            .n_heads = G_HEADS,
                            .n_kv_heads = G_KV,
                            .head_dim = G_DIM,
                            .v_head_dim = G_DIM,
                            .seqs = &g->seq,
                            .max_q_len = G_ROWS,
                            .max_kv_len = g->n,
                            .kv_dtype = HDL_F32,
                            .q = g->q + layer * G_ROWS * G_WIDTH,
                            .o = g->o,
                            .q_stride = G_WIDTH,
                            .o_stride = G_WIDTH,
                            .lse = g->lse,
                            .scale = 0.5f,
                            .has_selection = true,
                            .selection_unit = g->selection.unit,
                            .selection = &g->selection};
    launch(reference_of(hdl_cpu_ref_attend, HDL_OP_ATTEND), &args, 1);
    return args;
}

static void check_golden(golden *g, const char *what, const float *got, int64_t n)
{
    char name[32];
    snprintf(name, sizeof name, "autograd, N = %d", (int)g->n);
    double *want = new_doubles(n);
    const float *from = next_array(g, n);
    for (int64_t i = 0; i < n; i++) want[i] = from[i];
    check_near(name, what, got, want, n);
    free(want);
}

static void check_golden_attention(golden *g, int32_t block)
{
    int64_t n_q = G_ROWS * G_WIDTH, n_kv = g->n * G_KV * G_DIM;
    make_lists(g, block, G_KV);
    float *dq = new_floats(n_q), *dk = new_floats(n_kv), *dv = new_floats(n_kv);
    hdl_attend_grad grad = {dk, dv};
    hdl_attend_backward_args args = {.forward = golden_forward(g, 0),
                                     .d_o = g->d_o,
                                     .d_o_stride = G_WIDTH,
                                     .dq = dq,
                                     .dq_stride = G_WIDTH,
                                     .grad = &grad};
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_ATTEND_BACKWARD), &args, 2);
    check_golden(g, "o", g->o, n_q);
    check_golden(g, "dq", dq, n_q);
    check_golden(g, "dk", dk, n_kv);
    check_golden(g, "dv", dv, n_kv);
    free(dq), free(dk), free(dv);
    free(g->selection.ids), free(g->selection.counts);
}

static void check_golden_index(golden *g)
{
    hdl_attend_args layers[G_LAYERS];
    float lse[G_LAYERS][G_ROWS * G_HEADS], loss[G_ROWS], d_iq[G_ROWS * G_INDEX_DIM] = {0};
    float *d_ik = new_floats(g->n * G_INDEX_DIM);
    hdl_index_grad index = {g->ik, d_ik};
    make_lists(g, 1, 1);
    for (int l = 0; l < G_LAYERS; l++) {
        layers[l] = golden_forward(g, l);
        memcpy(lse[l], g->lse, sizeof g->lse);
        layers[l].lse = lse[l];
    }
    hdl_index_loss_args args = {G_LAYERS, G_INDEX_DIM, layers, g->iq, G_INDEX_DIM,
                                &index,   0.7f,        1,      loss,  d_iq};
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_INDEX_LOSS), &args, 2);
    check_golden(g, "loss", loss, G_ROWS);
    check_golden(g, "d_iq", d_iq, G_ROWS * G_INDEX_DIM);
    check_golden(g, "d_ik", d_ik, g->n * G_INDEX_DIM);
    free(d_ik);
    free(g->selection.ids), free(g->selection.counts);
}

static void test_against_autograd(void **state)
{
    (void)state;
    for (int64_t n = 64; n <= 512; n *= 8) {
        golden g;
        open_golden(&g, n);
        check_golden_attention(&g, 1);
        check_golden_attention(&g, G_BLOCK);
        check_golden_index(&g);
        close_golden(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_a_list_of_everything_is_dense),
        cmocka_unit_test(test_one_token_less),
        cmocka_unit_test(test_parts_under_the_merged_lse_add_up),
        cmocka_unit_test(test_an_empty_list_has_no_gradient),
        cmocka_unit_test(test_against_autograd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
