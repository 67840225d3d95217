/* identity.c - one number that tells models apart: XXH3 over the facts and every byte of every weight.
 *
 * It reads all weights once, as a decode step does, so it is made only when it is asked for. */
#include "base/buf.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/pool.h"
#include "model/model.h"

/* The weights of a layer, and of the shared state, are tensors and nothing else: one that is added
 * there belongs to the identity. */
enum {
    PER_LAYER = sizeof(hdl_layer_weights) / sizeof(hdl_tensor),
    SHARED = sizeof(hdl_shared_weights) / sizeof(hdl_tensor),
    PER_DELTA = sizeof(hdl_delta_weights) / sizeof(hdl_tensor),
    OUTSIDE = 3
};
static_assert(sizeof(hdl_layer_weights) % sizeof(hdl_tensor) == 0 &&
                  sizeof(hdl_delta_weights) % sizeof(hdl_tensor) == 0 &&
                  sizeof(hdl_shared_weights) % sizeof(hdl_tensor) == 0,
              "weights are tensors only");

typedef struct weight_sums {
    const hdl_model *model;
    uint64_t *sums; /* [OUTSIDE + SHARED + n_layers * PER_LAYER], then [n_layers * PER_DELTA] of the deltas */
} weight_sums;

static const hdl_tensor *tensor_at(const hdl_model *model, int64_t i)
{
    const hdl_tensor *outside[OUTSIDE] = {&model->token_embd, &model->output_norm, &model->output};
    if (i < OUTSIDE) return outside[i];
    if (i < OUTSIDE + SHARED) return (const hdl_tensor *)(const void *)&model->shared + (i - OUTSIDE);
    i -= OUTSIDE + SHARED;
    int64_t n_of_layers = (int64_t)model->facts.n_layers * PER_LAYER;
    if (i >= n_of_layers) return (const hdl_tensor *)(const void *)model->deltas + (i - n_of_layers);
    return (const hdl_tensor *)(const void *)&model->layers[i / PER_LAYER] + i % PER_LAYER;
}

static void sum_tensor(void *arg, int64_t i, int thread)
{
    weight_sums *all = arg;
    const hdl_tensor *t = tensor_at(all->model, i);
    (void)thread;
    if (!t->data) return;
    int64_t shape[3] = {t->dtype, t->n_rows, t->n_cols};
    bool is_tied = t == &all->model->output && t->data == all->model->token_embd.data;
    uint64_t parts[2] = {hdl_hash(shape, sizeof shape)};
    if (!is_tied) parts[1] = hdl_hash(t->data, t->n_rows * t->row_bytes);
    all->sums[i] = hdl_hash(parts, sizeof parts);
}

static void describe(const hdl_model_facts *facts, hdl_buf *text)
{
    const hdl_index_facts *index = &facts->index;
    hdl_buf_printf(text, "%s %d %d %d %d %d %d %d %d", facts->arch, facts->n_layers, facts->hidden_size,
                   facts->n_heads, facts->n_kv_heads, facts->head_dim, facts->v_head_dim, facts->n_ff,
                   facts->n_vocab);
    hdl_buf_printf(text, "\n%a %a %a %a %a %a %d %d", (double)facts->norm_eps, (double)facts->attn_scale,
                   (double)facts->attn_soft_cap, (double)facts->logit_soft_cap, (double)facts->embed_scale,
                   (double)facts->norm_offset, facts->act, facts->has_post_norms);
    hdl_buf_printf(text, "\n%d %d %d %d", facts->doc_token, facts->has_doc_resets, facts->has_shared_k_norm,
                   facts->cross_from);
    hdl_buf_printf(text, "\n%d %d %a %a %d %d %d %d", index->dim, index->n_heads, (double)index->scale,
                   (double)index->norm_eps, index->is_of_layers, index->has_k_norm, index->has_q_norm,
                   index->is_from_norm);
    if (index->n_groups > 1) hdl_buf_printf(text, " %d %d", index->n_groups, index->has_own_queries);
    const hdl_delta_facts *delta = &facts->delta;
    if (delta->n_layers)
        hdl_buf_printf(text, " %d %d %d %d %a %a", delta->n_heads, delta->k_dim, delta->v_dim,
                       delta->conv_width, (double)delta->scale, (double)delta->eps);
    for (int32_t i = 0; i < facts->n_layers; i++) {
        const hdl_layer_facts *at = &facts->layers[i];
        if (at->is_delta) hdl_buf_puts(text, " delta");
        hdl_buf_printf(text, "\n%d %d", at->has_index, at->index_rope);
        hdl_buf_printf(text, " %d %d %d %d %d %d %d", at->window, at->kv_source, at->has_kv, at->has_qk_norm,
                       at->cache_group, at->rope, at->ffn);
    }
    for (int32_t r = 0; r < facts->n_ropes; r++) {
        const hdl_rope_facts *rope = &facts->ropes[r];
        hdl_buf_printf(text, "\n%d %d %a", rope->style, rope->dim, (double)rope->attn_factor);
        for (int32_t d = 0; d < rope->dim / 2; d++) hdl_buf_printf(text, " %a", (double)rope->inv_freq[d]);
    }
}

heddle_status hdl_model_identity(const hdl_model *model, int n_threads, uint64_t *identity)
{
    hdl_buf text = {0};
    int64_t n = OUTSIDE + SHARED +
                (int64_t)model->facts.n_layers * (PER_LAYER + (model->deltas ? PER_DELTA : 0));
    weight_sums all = {.model = model, .sums = hdl_calloc(n, sizeof *all.sums)};
    heddle_status status = HEDDLE_E_NOMEM;
    if (!all.sums) goto done;
    hdl_parallel_for(n_threads, n, sum_tensor, &all);
    describe(&model->facts, &text);
    hdl_buf_add(&text, all.sums, n * (int64_t)sizeof *all.sums);
    status = hdl_buf_status(&text);
    if (!status) *identity = hdl_hash(text.data, text.n);
done:
    hdl_buf_deinit(&text);
    hdl_free(all.sums);
    return status;
}
