/* backward_cases.h - a case of attention as plain arrays in double, for the tests of the ops that run
 * backwards. The plain form knows no walks: what a row sees is asked token by token. */
#ifndef HDL_TEST_BACKWARD_CASES_H
#define HDL_TEST_BACKWARD_CASES_H

#include "backend/attend_cases.h"
#include "backend/op_backward.h"

enum { GUARD = 64 };

static const double tolerance = 2e-5; /* share of the array's largest element: o and lse are f32 */

/* Everything of one call as arrays of double; sequences one after the other. */
typedef struct plain {
    const attend_setup *setup;
    int64_t first_kv[CASE_SEQS]; /* where the sequence's tokens begin in k and v */
    int64_t n_q, n_o, n_k, n_v, n_bias, n_sink;
    double *q, *d_o, *k, *v, *bias, *sink;
    double *dq, *dk, *dv, *d_bias, *d_sink;
} plain;

static inline double *new_doubles(int64_t n)
{
    double *x = must_alloc(n * 8);
    memset(x, 0, (size_t)n * 8);
    return x;
}

/* The place of the token in the row's list: the index into ids, 0 for dense; -1 where it is not seen. */
static inline int64_t place_of(const attend_setup *setup, const hdl_attend_seq *seq, int64_t i, int32_t list,
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

static inline void take_rows(const plain *p, int32_t s, bool is_v)
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

static inline plain new_plain(attend_setup *setup)
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

static inline void free_plain(plain *p)
{
    double *all[] = {p->q, p->d_o, p->k, p->v, p->bias, p->sink, p->dq, p->dk, p->dv, p->d_bias, p->d_sink};
    for (int64_t i = 0; i < HDL_COUNT(all); i++) free(all[i]);
}

static inline float *new_floats(int64_t n)
{
    float *x = must_alloc(n * 4);
    memset(x, 0, (size_t)n * 4);
    return x;
}

static inline const hdl_impl *reference_of(const hdl_impl *table, hdl_op op)
{
    while (table->op != op) table++;
    return table;
}

static inline void launch(const hdl_impl *impl, const void *args, int n_threads)
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

static inline void check_near(const char *name, const char *what, const float *got, const double *want,
                              int64_t n)
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

#endif
