/* test_backward.c - ATTEND_BACKWARD and INDEX_LOSS against plain arrays in double, those against finite
 * differences, and the laws: a list of everything is dense, one token less has no gradient, parts of a list
 * add up under the merged lse, nothing visible gives zeroes, threads change no bit.
 *
 * The plain form knows no walks: what a row sees is asked token by token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/attend_cases.h"
#include "backend/op_backward.h"

enum { GUARD = 64 };

static const double tolerance = 2e-5; /* share of the array's largest element: o and lse are f32 */

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

/* Everything of one call as arrays of double; sequences one after the other. */
typedef struct plain {
    const attend_setup *setup;
    int64_t first_kv[CASE_SEQS]; /* where the sequence's tokens begin in k and v */
    int64_t n_q, n_o, n_k, n_v, n_bias, n_sink;
    double *q, *d_o, *k, *v, *bias, *sink;
    double *dq, *dk, *dv, *d_bias, *d_sink;
} plain;

static double *new_doubles(int64_t n)
{
    double *x = must_alloc(n * 8);
    memset(x, 0, (size_t)n * 8);
    return x;
}

/* The place of the token in the row's list: the index into ids, 0 for dense; -1 where it is not seen. */
static int64_t place_of(const attend_setup *setup, const hdl_attend_seq *seq, int64_t i, int32_t list,
                        int64_t token)
{
    const hdl_attend_args *args = &setup->args;
    int64_t at = seq->kv_len - seq->q_len + i, first_new = seq->kv_len - seq->q_len;
    const int32_t *pos = seq->kv.positions;
    if (token > at || token < seq->first_token) return -1;
    if (args->window && (pos ? pos[at] - pos[token] : at - token) >= args->window) return -1;
    if (seq->mask && token >= first_new && !seq->mask[i * seq->q_len + token - first_new]) return -1;
    if (!args->selection) return 0;
    int64_t row = list_row(args->selection, seq, i);
    const int32_t *ids = hdl_selection_ids(args->selection, row, list);
    for (int64_t n = 0; n < *hdl_selection_count(args->selection, row, list); n++)
        if (ids[n] == token / args->selection->block_size) return n;
    return -1;
}

static void take_rows(const plain *p, int32_t s, bool is_v)
{
    const hdl_attend_args *args = &p->setup->args;
    const hdl_kv_view *kv = &args->seqs[s].kv;
    int64_t dim = is_v ? args->v_head_dim : args->head_dim;
    for (int64_t t = 0; t < args->seqs[s].kv_len; t++) {
        if (!is_token_seen(p->setup, &args->seqs[s], t)) continue;
        for (int32_t h = 0; h < args->n_kv_heads; h++) {
            float scale = 1;
            if (kv->dtype == HDL_I8)
                memcpy(&scale,
                       kv_scale_at(kv, t, args->n_kv_heads) +
                           (is_v ? kv->v_scale_offset : kv->k_scale_offset) + h * 4,
                       4);
            const uint8_t *row = kv_token_at(kv, t) + (is_v ? kv->v_offset + h * kv->v_head_stride
                                                            : kv->k_offset + h * kv->head_stride);
            double *to = (is_v ? p->v : p->k) + ((p->first_kv[s] + t) * args->n_kv_heads + h) * dim;
            for (int64_t i = 0; i < dim; i++) to[i] = stored_element(kv->dtype, row, i, scale);
        }
    }
}

static plain new_plain(attend_setup *setup)
{
    const hdl_attend_args *a = &setup->args;
    plain p = {.setup = setup};
    int64_t n_kv = 0;
    for (int32_t s = 0; s < a->n_seqs; s++) p.first_kv[s] = n_kv, n_kv += a->seqs[s].kv_len;
    p.n_q = a->n_rows * a->n_heads * a->head_dim;
    p.n_o = a->n_rows * a->n_heads * a->v_head_dim;
    p.n_k = n_kv * a->n_kv_heads * a->head_dim;
    p.n_v = n_kv * a->n_kv_heads * a->v_head_dim;
    p.n_bias = setup->bias ? a->n_rows * a->selection->n_lists * a->selection->n_ids_max : 0;
    p.n_sink = a->sink ? a->n_heads : 0;
    p.q = new_doubles(p.n_q), p.dq = new_doubles(p.n_q), p.d_o = new_doubles(p.n_o);
    p.k = new_doubles(p.n_k), p.dk = new_doubles(p.n_k);
    p.v = new_doubles(p.n_v), p.dv = new_doubles(p.n_v);
    p.bias = new_doubles(p.n_bias), p.d_bias = new_doubles(p.n_bias);
    p.sink = new_doubles(p.n_sink), p.d_sink = new_doubles(p.n_sink);
    int64_t width = (int64_t)a->n_heads * a->head_dim;
    for (int64_t i = 0; i < p.n_q; i++) p.q[i] = a->q[i / width * a->q_stride + i % width];
    for (int64_t i = 0; i < p.n_o; i++) p.d_o[i] = next_unit(&setup->random);
    for (int64_t i = 0; i < p.n_o; i++) p.d_o[i] = (float)p.d_o[i];
    for (int64_t i = 0; i < p.n_bias; i++) p.bias[i] = setup->bias[i];
    for (int64_t i = 0; i < p.n_sink; i++) p.sink[i] = a->sink[i];
    for (int32_t s = 0; s < a->n_seqs; s++) take_rows(&p, s, false), take_rows(&p, s, true);
    return p;
}

static void free_plain(plain *p)
{
    double *all[] = {p->q, p->d_o, p->k, p->v, p->bias, p->sink, p->dq, p->dk, p->dv, p->d_bias, p->d_sink};
    for (int64_t i = 0; i < HDL_COUNT(all); i++) free(all[i]);
}

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

static float *new_floats(int64_t n)
{
    float *x = must_alloc(n * 4);
    memset(x, 0, (size_t)n * 4);
    return x;
}

static const hdl_impl *reference_of(const hdl_impl *table, hdl_op op)
{
    while (table->op != op) table++;
    return table;
}

static void launch(const hdl_impl *impl, const void *args, int n_threads)
{
    int64_t bytes = impl->workspace ? impl->workspace(args, n_threads) : 0;
    uint8_t *memory = must_alloc(bytes + 2 * GUARD);
    memset(memory, 0xff, (size_t)(bytes + 2 * GUARD));
    impl->launch(&(hdl_launch){.n_threads = n_threads, .workspace = memory + GUARD}, args);
    for (int64_t i = 0; i < GUARD; i++) {
        assert_int_equal(memory[i], 0xff);
        assert_int_equal(memory[GUARD + bytes + i], 0xff);
    }
    free(memory);
}

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

static void check_near(const char *name, const char *what, const float *got, const double *want, int64_t n)
{
    double largest = 1e-3, worst = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n; i++) {
        double error = fabs(got[i] - want[i]) / largest;
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
    }
    if (worst <= tolerance) return;
    print_error("%s: %s is off by %.3g, allowed %.3g\n", name, what, worst, tolerance);
    fail();
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
        if (c->kv_len[0] > 1100) continue; /* quadratic and asked token by token */
        check_case(c, 11 + (uint64_t)i);
        n++;
    }
    print_message("%lld cases of attention and %lld small ones\n", (long long)n,
                  (long long)HDL_COUNT(small_cases));
    assert_true(n > 25);
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

/* ---- the index's loss ---- */

enum { N_LAYERS = 3, INDEX_DIM = 8 };

/* Layers are one setup with other queries. */
typedef struct index_setup {
    attend_setup base;
    hdl_attend_args layers[N_LAYERS];
    hdl_index_grad index[CASE_SEQS];
    hdl_index_loss_args args;
    int64_t n_iq, n_ik, first_kv[CASE_SEQS];
    float *iq, *ik, *d_iq, *d_ik, *loss, *q[N_LAYERS], *o, *lse[N_LAYERS];
} index_setup;

static void build_index(index_setup *x, const attend_case *c, uint64_t seed)
{
    *x = (index_setup){0};
    build_case(&x->base, c, seed);
    hdl_attend_args *a = &x->base.args;
    int64_t n_kv = 0;
    x->o = new_floats(a->n_rows * a->o_stride);
    for (int l = 0; l < N_LAYERS; l++) {
        x->q[l] = new_floats(a->n_rows * a->q_stride), x->lse[l] = new_floats(a->n_rows * a->n_heads);
        fill_random(x->q[l], a->n_rows * a->q_stride, &x->base.random);
        x->layers[l] = *a;
        x->layers[l].q = x->q[l], x->layers[l].o = x->o, x->layers[l].lse = x->lse[l];
        launch(reference_of(hdl_cpu_ref_attend, HDL_OP_ATTEND), &x->layers[l], 1);
    }
    for (int32_t s = 0; s < a->n_seqs; s++) x->first_kv[s] = n_kv, n_kv += a->seqs[s].kv_len;
    x->n_iq = a->n_rows * INDEX_DIM, x->n_ik = n_kv * INDEX_DIM;
    x->iq = new_floats(x->n_iq), x->d_iq = new_floats(x->n_iq), x->loss = new_floats(a->n_rows);
    x->ik = new_floats(x->n_ik), x->d_ik = new_floats(x->n_ik);
    fill_random(x->iq, x->n_iq, &x->base.random);
    fill_random(x->ik, x->n_ik, &x->base.random);
    for (int32_t s = 0; s < a->n_seqs; s++)
        x->index[s] = (hdl_index_grad){x->ik + x->first_kv[s] * INDEX_DIM,
                                       x->d_ik + x->first_kv[s] * INDEX_DIM};
    x->args = (hdl_index_loss_args){N_LAYERS, INDEX_DIM, x->layers, x->iq,   INDEX_DIM,
                                    x->index, 0.7f,      0.25f,     x->loss, x->d_iq};
}

static void free_index(index_setup *x)
{
    float *all[] = {x->iq, x->ik, x->d_iq, x->d_ik, x->loss, x->o};
    for (int64_t i = 0; i < HDL_COUNT(all); i++) free(all[i]);
    for (int l = 0; l < N_LAYERS; l++) free(x->q[l]), free(x->lse[l]);
    free_case(&x->base);
}

/* Attention of a layer and head as a row of n probabilities, from the plain arrays. */
static void attention_row(const index_setup *x, const plain *p, int layer, int32_t s, int64_t i, int32_t head,
                          double *to)
{
    const hdl_attend_args *a = &x->layers[layer];
    const hdl_attend_seq *seq = &a->seqs[s];
    int32_t kv_head = head / (a->n_heads / a->n_kv_heads);
    const float *q = a->q + (seq->first_row + i) * a->q_stride + head * a->head_dim;
    double sum = 0;
    for (int64_t t = 0; t < seq->kv_len; t++) {
        const double *k = p->k + ((p->first_kv[s] + t) * a->n_kv_heads + kv_head) * a->head_dim;
        double dot = 0;
        for (int32_t d = 0; d < a->head_dim; d++) dot += q[d] * k[d];
        to[t] = place_of(&x->base, seq, i, 0, t) < 0 ? 0 : exp(a->scale * dot);
        sum += to[t];
    }
    for (int64_t t = 0; t < seq->kv_len && sum > 0; t++) to[t] /= sum;
}

/* KL of one row's target to the index's softmax. */
static double row_kl(const index_setup *x, int32_t s, int64_t i, const double *target, const double *iq,
                     const double *ik)
{
    const hdl_attend_seq *seq = &x->base.args.seqs[s];
    double sum = 0, loss = 0, *score = new_doubles(seq->kv_len);
    for (int64_t t = 0; t < seq->kv_len; t++) {
        if (place_of(&x->base, seq, i, 0, t) < 0) continue;
        for (int d = 0; d < INDEX_DIM; d++)
            score[t] += x->args.index_scale * iq[d] * ik[(x->first_kv[s] + t) * INDEX_DIM + d];
        sum += exp(score[t]);
    }
    for (int64_t t = 0; t < seq->kv_len; t++)
        if (target[t] > 0) loss += target[t] * (log(target[t]) - score[t] + log(sum));
    free(score);
    return loss;
}

/* The loss of row i: to the mean of all layers' and heads' attention, or the mean of the losses to each. */
static double plain_index_row(const index_setup *x, const plain *p, int32_t s, int64_t i, const double *iq,
                              const double *ik, bool is_mean_of_losses)
{
    const hdl_attend_args *a = &x->base.args;
    const hdl_attend_seq *seq = &a->seqs[s];
    double *one = new_doubles(seq->kv_len), *mean = new_doubles(seq->kv_len), loss = 0;
    double n = (double)N_LAYERS * a->n_heads;
    iq += (seq->first_row + i) * INDEX_DIM;
    for (int l = 0; l < N_LAYERS; l++)
        for (int32_t head = 0; head < a->n_heads; head++) {
            attention_row(x, p, l, s, i, head, one);
            if (is_mean_of_losses) loss += row_kl(x, s, i, one, iq, ik) / n;
            for (int64_t t = 0; t < seq->kv_len; t++) mean[t] += one[t] / n;
        }
    if (!is_mean_of_losses) loss = row_kl(x, s, i, mean, iq, ik);
    free(one), free(mean);
    return loss;
}

static double plain_index_loss(const index_setup *x, const plain *p, const double *iq, const double *ik,
                               bool is_mean_of_losses)
{
    double loss = 0;
    for (int32_t s = 0; s < x->base.args.n_seqs; s++)
        for (int64_t i = 0; i < x->base.args.seqs[s].q_len; i++)
            loss += plain_index_row(x, p, s, i, iq, ik, is_mean_of_losses);
    return loss;
}

static const attend_case index_cases[] = {
    {"index dense", 4, 2, 8, 8, HDL_F32, 6, .q_len = {24}, .kv_len = {24}},
    {"index dense late", 2, 1, 8, 8, HDL_F32, 4, .q_len = {5, 3}, .kv_len = {30, 3}},
    {"index list", 4, 2, 8, 8, HDL_F32, 4, .q_len = {8}, .kv_len = {40}, .lists = LIST_RANDOM, .n_ids = 9},
    {"index list one row", 4, 1, 8, 8, HDL_F32, 4, .q_len = {1}, .kv_len = {33}, .lists = LIST_RANDOM,
     .n_ids = 9},
    {"index document", 2, 2, 8, 8, HDL_F32, 4, .q_len = {9}, .kv_len = {30}, .first_token = {22}},
    {"index blocks", 2, 1, 8, 8, HDL_F32, 6, .q_len = {6}, .kv_len = {61}, .lists = LIST_RANDOM, .n_ids = 5,
     .block_size = 8},
};

/* The op against differences of the plain loss; and of the mean of losses, whose gradient is the same. */
static void check_index_differences(const index_setup *x, const plain *p, bool is_mean_of_losses)
{
    const double h = 1e-5;
    double *at[2] = {new_doubles(x->n_iq), new_doubles(x->n_ik)};
    const float *from[2] = {x->iq, x->ik}, *got[2] = {x->d_iq, x->d_ik};
    int64_t n[2] = {x->n_iq, x->n_ik};
    for (int which = 0; which < 2; which++)
        for (int64_t i = 0; i < n[which]; i++) at[which][i] = from[which][i];
    for (int which = 0; which < 2; which++)
        for (int64_t i = 0; i < n[which]; i++) {
            double kept = at[which][i];
            at[which][i] = kept + h;
            double up = plain_index_loss(x, p, at[0], at[1], is_mean_of_losses);
            at[which][i] = kept - h;
            double slope = (up - plain_index_loss(x, p, at[0], at[1], is_mean_of_losses)) / (2 * h);
            at[which][i] = kept;
            assert_true(fabs(slope * x->args.weight - got[which][i]) <= 2e-6);
        }
    free(at[0]), free(at[1]);
}

static void test_index_finite_differences(void **state)
{
    (void)state;
    const hdl_impl *impl = reference_of(hdl_cpu_ref_backward, HDL_OP_INDEX_LOSS);
    for (int64_t i = 0; i < HDL_COUNT(index_cases); i++) {
        index_setup x;
        build_index(&x, &index_cases[i], 21 + (uint64_t)i);
        plain p = new_plain(&x.base);
        launch(impl, &x.args, 2);
        double sum = 0, *iq = new_doubles(x.n_iq), *ik = new_doubles(x.n_ik);
        for (int64_t j = 0; j < x.n_iq; j++) iq[j] = x.iq[j];
        for (int64_t j = 0; j < x.n_ik; j++) ik[j] = x.ik[j];
        for (int64_t row = 0; row < x.base.args.n_rows; row++) {
            assert_true(x.loss[row] >= -1e-6f);
            sum += x.loss[row];
        }
        assert_true(fabs(sum - plain_index_loss(&x, &p, iq, ik, false)) <= 1e-5 * (1 + sum));
        check_index_differences(&x, &p, false);
        if (i == 0 || i == 2) check_index_differences(&x, &p, true);
        free(iq), free(ik);
        free_plain(&p);
        free_index(&x);
    }
}

/* N = 512, the whole matrix of one (row, token) after the other: g = P - A. */
static void test_index_against_the_matrix(void **state)
{
    (void)state;
    index_setup x;
    attend_case at = {"index 512", 2, 1, 16, 16, HDL_F32, 10, .q_len = {512}, .kv_len = {512}};
    build_index(&x, &at, 9);
    plain p = new_plain(&x.base);
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_INDEX_LOSS), &x.args, 1);
    double *d_iq = new_doubles(x.n_iq), *d_ik = new_doubles(x.n_ik), *one = new_doubles(512);
    for (int64_t i = 0; i < 512; i++) {
        double mean[512] = {0}, score[512] = {0}, sum = 0;
        for (int l = 0; l < N_LAYERS; l++)
            for (int32_t head = 0; head < 2; head++) {
                attention_row(&x, &p, l, 0, i, head, one);
                for (int64_t t = 0; t <= i; t++) mean[t] += one[t] / (N_LAYERS * 2);
            }
        for (int64_t t = 0; t <= i; t++) {
            for (int d = 0; d < INDEX_DIM; d++)
                score[t] += x.args.index_scale * (double)x.iq[i * INDEX_DIM + d] * x.ik[t * INDEX_DIM + d];
            sum += exp(score[t]);
        }
        for (int64_t t = 0; t <= i; t++) {
            double g = (exp(score[t]) / sum - mean[t]) * x.args.weight * x.args.index_scale;
            for (int d = 0; d < INDEX_DIM; d++) {
                d_iq[i * INDEX_DIM + d] += g * x.ik[t * INDEX_DIM + d];
                d_ik[t * INDEX_DIM + d] += g * x.iq[i * INDEX_DIM + d];
            }
        }
    }
    check_near("index 512", "d_iq", x.d_iq, d_iq, x.n_iq);
    check_near("index 512", "d_ik", x.d_ik, d_ik, x.n_ik);
    free(d_iq), free(d_ik), free(one);
    free_plain(&p);
    free_index(&x);
}

static void test_index_of_nothing(void **state)
{
    (void)state;
    index_setup x;
    attend_case at = index_cases[2];
    at.lists = LIST_EMPTY;
    build_index(&x, &at, 9);
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_INDEX_LOSS), &x.args, 1);
    for (int64_t i = 0; i < x.base.args.n_rows; i++) assert_true(x.loss[i] == 0);
    for (int64_t i = 0; i < x.n_iq; i++) assert_true(x.d_iq[i] == 0);
    for (int64_t i = 0; i < x.n_ik; i++) assert_true(x.d_ik[i] == 0);
    free_index(&x);
}

/* ---- PyTorch's autograd (tests/golden/backward, made by train/golden_backward.py, which says what is in it) ---- */

enum { G_ROWS = 16, G_HEADS = 4, G_KV = 2, G_DIM = 4, G_BLOCK = 8, G_WIDTH = G_HEADS * G_DIM };

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
    int64_t n_floats = (N_LAYERS + 1) * G_ROWS * G_WIDTH + 2 * n_kv + (G_ROWS + n) * INDEX_DIM +
                       2 * (2 * G_ROWS * G_WIDTH + 2 * n_kv) + G_ROWS + (G_ROWS + n) * INDEX_DIM;
    *g = (golden){.n = n, .all = new_floats(n_floats + 1), .page = must_alloc(2 * n * row)};
    snprintf(path, sizeof path, HDL_TEST_DATA "/golden/backward/%d.f32", (int)n);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(g->all, 4, (size_t)n_floats + 1, file), n_floats);
    fclose(file);
    g->at = g->all;
    g->q = next_array(g, N_LAYERS * G_ROWS * G_WIDTH), g->d_o = next_array(g, G_ROWS * G_WIDTH);
    g->k = next_array(g, n_kv), g->v = next_array(g, n_kv);
    g->iq = next_array(g, G_ROWS * INDEX_DIM), g->ik = next_array(g, n * INDEX_DIM);
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
    hdl_attend_args layers[N_LAYERS];
    float lse[N_LAYERS][G_ROWS * G_HEADS], loss[G_ROWS], d_iq[G_ROWS * INDEX_DIM] = {0};
    float *d_ik = new_floats(g->n * INDEX_DIM);
    hdl_index_grad index = {g->ik, d_ik};
    make_lists(g, 1, 1);
    for (int l = 0; l < N_LAYERS; l++) {
        layers[l] = golden_forward(g, l);
        memcpy(lse[l], g->lse, sizeof g->lse);
        layers[l].lse = lse[l];
    }
    hdl_index_loss_args args = {N_LAYERS, INDEX_DIM, layers, g->iq, INDEX_DIM, &index, 0.7f, 1, loss, d_iq};
    launch(reference_of(hdl_cpu_ref_backward, HDL_OP_INDEX_LOSS), &args, 2);
    check_golden(g, "loss", loss, G_ROWS);
    check_golden(g, "d_iq", d_iq, G_ROWS * INDEX_DIM);
    check_golden(g, "d_ik", d_ik, g->n * INDEX_DIM);
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
        cmocka_unit_test(test_index_finite_differences),
        cmocka_unit_test(test_index_against_the_matrix),
        cmocka_unit_test(test_index_of_nothing),
        cmocka_unit_test(test_against_autograd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
