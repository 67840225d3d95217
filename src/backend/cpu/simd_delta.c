/* simd_delta.c - CONV and DELTA, the same source for every instruction set.
 *
 * DELTA. The rows of a head's state S^T [k_dim, v_dim] are read by broadcasting k and q, so lanes are
 * elements of v and no sum crosses lanes. Elements of v do not know of each other: a task is one head's
 * LANES of them over all rows of a sequence, whose part of the state, k_dim * LANES * 4 bytes (16 KiB for 64
 * x 64 in AVX-512), stays in L1.
 *
 *   pass 1   p = S k, s = S q         2 fma a state vector
 *   pass 2   S = alpha S + u k^T      1 mul, 1 fma, 1 store;  o = alpha s + u (k . q): S is not read a third time
 *
 * k and q are used as they come; the factors of their norms multiply p, s and u.
 *
 * Bytes of a row and head: 8 k_dim v_dim of state from L1 (from memory once a call: a decode step reads and
 * writes 4 k_dim v_dim each), 4 (2 k_dim + 2 v_dim) of q, k, v, o. Operations: 7 k_dim v_dim. With LANES of
 * 4 vectors: pass 1 8 fma and 6 loads, pass 2 8 operations and 4 stores, so 8 cycles a row of S and 64
 * elements of v at two vectors and one store a cycle: 512 cycles for 64 x 64, twice that where a 512-bit
 * vector takes two cycles. Beside them the gates, four scalar exponentials a row and head.
 *
 * CONV moves each element once and does 2 width operations with it: bound by reading and writing the rows.
 * Tasks are stretches of columns; rows go from the last to the first, so that a row is written after all
 * have read it. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/simd_attend_int.h"
#include "base/pool.h"

enum { N_VECTORS = VW == 16 ? 4 : 2, LANES = N_VECTORS * VW, CHAINS = 8 };
enum { CONV_COLS = 256, INLINE_ELEMS = 1 << 16 };

ALWAYS_INLINE float lane_sum(vf v)
{
    float lane[VW], sum = 0;
    vf_store(lane, v);
    for (int i = 0; i < VW; i++) sum += lane[i];
    return sum;
}

static float dot(const float *x, const float *y, int64_t n)
{
    vf sums = vf_set1(0);
    int64_t i = 0;
    for (; i + VW <= n; i += VW) sums = vf_fma(vf_load(x + i), vf_load(y + i), sums);
    float sum = lane_sum(sums);
    for (; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* ---- DELTA ---- */

typedef struct delta_gate { /* of one row and head; factors of the norms of k and q are in */
    float alpha, beta, k_factor, q_factor, kq;
} delta_gate;

static delta_gate gate_of(const hdl_delta_args *a, int32_t head, const float *q, const float *k,
                          const float *ab)
{
    float x = ab[head] + a->dt_bias[head];
    float softplus = fmaxf(x, 0) + log1pf(expf(-fabsf(x)));
    delta_gate g = {.alpha = expf(-expf(a->a_log[head]) * softplus),
                    .beta = 1 / (1 + expf(-ab[a->n_heads + head])),
                    .k_factor = 1 / sqrtf(dot(k, k, a->k_dim) + a->eps),
                    .q_factor = 1 / sqrtf(dot(q, q, a->k_dim) + a->eps)};
    g.kq = dot(k, q, a->k_dim) * g.k_factor * g.q_factor;
    return g;
}

/* One row: n vectors of v and of S^T [k_dim, stride], state and o at the lanes' first. */
ALWAYS_INLINE void delta_row(const hdl_delta_args *a, const delta_gate *g, const float *q, const float *k,
                             const float *v, float *state, float *o, const int n)
{
    const int64_t stride = a->v_dim, n_k = a->k_dim;
    const int turns = CHAINS /
                      (2 * n); /* rows of S with sums of their own: enough chains to hide the latency */
    vf p[CHAINS], s[CHAINS], u[N_VECTORS];
    int64_t j = 0;
    for (int i = 0; i < turns * n; i++) p[i] = s[i] = vf_set1(0);
    for (; j + turns <= n_k; j += turns)
        for (int t = 0; t < turns; t++) {
            vf kj = vf_set1(k[j + t]), qj = vf_set1(q[j + t]);
            for (int i = 0; i < n; i++) {
                vf x = vf_load(state + (j + t) * stride + i * VW);
                p[t * n + i] = vf_fma(x, kj, p[t * n + i]);
                s[t * n + i] = vf_fma(x, qj, s[t * n + i]);
            }
        }
    for (; j < n_k; j++)
        for (int i = 0; i < n; i++) {
            vf x = vf_load(state + j * stride + i * VW);
            p[i] = vf_fma(x, vf_set1(k[j]), p[i]);
            s[i] = vf_fma(x, vf_set1(q[j]), s[i]);
        }
    for (int i = 0; i < n; i++) {
        for (int t = 1; t < turns; t++) {
            p[i] = vf_add(p[i], p[t * n + i]);
            s[i] = vf_add(s[i], s[t * n + i]);
        }
        vf seen = vf_mul(vf_set1(g->alpha * g->k_factor), p[i]);
        u[i] = vf_mul(vf_set1(g->beta), vf_sub(vf_load(v + i * VW), seen));
        vf out = vf_fma(u[i], vf_set1(g->kq), vf_mul(vf_set1(g->alpha * g->q_factor), s[i]));
        vf_store(o + i * VW, vf_mul(vf_set1(a->scale), out));
        u[i] = vf_mul(u[i], vf_set1(g->k_factor));
    }
    const vf alpha = vf_set1(g->alpha);
    for (j = 0; j < n_k; j++)
        for (int i = 0; i < n; i++) {
            float *at = state + j * stride + i * VW;
            vf_store(at, vf_fma(u[i], vf_set1(k[j]), vf_mul(alpha, vf_load(at))));
        }
}

/* The state of n lanes of one head: that of before, or nothing. */
static void delta_begin(const hdl_delta_args *a, const float *before, float *state, int64_t n)
{
    for (int64_t j = 0; j < a->k_dim; j++) {
        if (before)
            memcpy(state + j * a->v_dim, before + j * a->v_dim, (size_t)n * sizeof *state);
        else
            memset(state + j * a->v_dim, 0, (size_t)n * sizeof *state);
    }
}

ALWAYS_INLINE void delta_lanes(const hdl_delta_args *a, const hdl_state_seq *seq, int32_t head, int64_t lane,
                               const int n)
{
    int64_t n_heads = a->n_heads, at = head * (int64_t)a->k_dim * a->v_dim + lane;
    for (int64_t i = 0; i < seq->q_len; i++) {
        int64_t r = seq->first_row + i;
        const float *qkv = a->qkv + r * a->qkv_stride, *q = qkv + (int64_t)head * a->k_dim,
                    *k = q + n_heads * a->k_dim,
                    *v = qkv + 2 * n_heads * a->k_dim + (int64_t)head * a->v_dim + lane;
        bool begins = a->n_visible[r] - 1 == a->doc_start[r];
        if (begins || !i) delta_begin(a, begins ? NULL : seq->before + at, seq->after + at, n * VW);
        delta_gate g = gate_of(a, head, q, k, a->ab + r * a->ab_stride);
        delta_row(a, &g, q, k, v, seq->after + at, a->o + r * a->o_stride + (int64_t)head * a->v_dim + lane,
                  n);
    }
}

static int64_t parts_of_head(const hdl_delta_args *a)
{
    return (a->v_dim + LANES - 1) / LANES;
}

static void delta_task(void *arg, int64_t task, int thread)
{
    const hdl_delta_args *a = arg;
    int64_t n_parts = parts_of_head(a), lane = task % n_parts * LANES;
    int32_t head = (int32_t)(task / n_parts % a->n_heads);
    const hdl_state_seq *seq = &a->seqs[task / n_parts / a->n_heads];
    (void)thread;
    if (lane + LANES <= a->v_dim) {
        delta_lanes(a, seq, head, lane, N_VECTORS);
        return;
    }
    for (; lane + 2 * VW <= a->v_dim && N_VECTORS > 2; lane += 2 * VW) delta_lanes(a, seq, head, lane, 2);
    for (; lane < a->v_dim; lane += VW) delta_lanes(a, seq, head, lane, 1);
}

static void delta_launch(const hdl_launch *launch, const void *args)
{
    const hdl_delta_args *a = args;
    int64_t elems = a->n_rows * a->n_heads * a->k_dim * a->v_dim;
    hdl_parallel_for(elems < INLINE_ELEMS ? 1 : launch->n_threads, a->n_seqs * a->n_heads * parts_of_head(a),
                     delta_task, (void *)a);
}

static const char *delta_why_not(const void *args)
{
    const hdl_delta_args *a = args;
    return a->v_dim % VW ? "v_dim is not a multiple of the vector" : NULL;
}

/* ---- CONV ---- */

/* y / (1 + e^-y) = max(y, 0) - |y| e / (1 + e) with e = e^-|y|: no exponential of what is above 0. */
ALWAYS_INLINE vf silu(vf y)
{
    vf size = vf_abs(y), zero = vf_set1(0), e = vf_exp(vf_sub(zero, size));
    return vf_sub(vf_max(y, zero), vf_mul(size, vf_div(e, vf_add(vf_set1(1), e))));
}

/* Columns first.. of the row `back` above row `row` of the sequence. */
static const float *row_above(const hdl_conv_args *a, const hdl_state_seq *seq, int64_t row, int64_t back)
{
    int64_t at = row - back;
    return at >= 0 ? a->x + (seq->first_row + at) * a->x_stride
                   : seq->before + (a->width - 1 + at) * a->n_cols;
}

static void conv_task(void *arg, int64_t task, int thread)
{
    const hdl_conv_args *a = arg;
    int64_t n_parts = (a->n_cols + CONV_COLS - 1) / CONV_COLS, first = task % n_parts * CONV_COLS;
    int64_t end = HDL_MIN(first + CONV_COLS, a->n_cols), n_kept = a->width - 1;
    const hdl_state_seq *seq = &a->seqs[task / n_parts];
    (void)thread;
    for (int64_t i = 0; i < n_kept; i++)
        memcpy(seq->after + i * a->n_cols + first, row_above(a, seq, seq->q_len, n_kept - i) + first,
               (size_t)(end - first) * sizeof(float));
    for (int64_t row = seq->q_len - 1; row >= 0; row--) {
        int64_t r = seq->first_row + row, reach = HDL_MIN(n_kept, a->n_visible[r] - 1 - a->doc_start[r]);
        float *x = a->x + r * a->x_stride;
        for (int64_t c = first; c < end; c += VW) {
            vf y = vf_set1(0);
            for (int64_t back = reach; back >= 0; back--)
                y = vf_fma(vf_load(a->weight + (n_kept - back) * a->n_cols + c),
                           vf_load(row_above(a, seq, row, back) + c), y);
            vf_store(x + c, silu(y));
        }
    }
}

static void conv_launch(const hdl_launch *launch, const void *args)
{
    const hdl_conv_args *a = args;
    int64_t n_parts = (a->n_cols + CONV_COLS - 1) / CONV_COLS;
    hdl_parallel_for(a->n_rows * a->n_cols < INLINE_ELEMS ? 1 : launch->n_threads, a->n_seqs * n_parts,
                     conv_task, (void *)a);
}

static const char *conv_why_not(const void *args)
{
    const hdl_conv_args *a = args;
    return a->n_cols % VW ? "the columns are not a multiple of the vector" : NULL;
}

const hdl_impl HDL_CPU_ROWS(delta)[] = {
    {"conv" HDL_ISA_SUFFIX, HDL_OP_CONV, (hdl_isa)THIS_ISA, conv_why_not, NULL, conv_launch},
    {"delta" HDL_ISA_SUFFIX, HDL_OP_DELTA, (hdl_isa)THIS_ISA, delta_why_not, NULL, delta_launch},
    {0},
};
