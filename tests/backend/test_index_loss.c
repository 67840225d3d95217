/* test_index_loss.c - INDEX_LOSS against plain arrays in double, those against finite differences, and the
 * whole matrix of one case; nothing visible costs nothing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/backward_cases.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index_finite_differences),
        cmocka_unit_test(test_index_against_the_matrix),
        cmocka_unit_test(test_index_of_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
