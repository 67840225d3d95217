/* facts.h - what a model is: sizes, and per layer its window, cache, rotation and FFN. No weights.
 *
 * Where cross_from < n_layers, the residual stream before layer cross_from is the shared state: its
 * norm feeds one K and V for all layers from there on, kept once in the cache of layer cross_from, and
 * the index keys and queries, where the model has an index.
 *
 * This is all that plans may know of a model. */
#ifndef HDL_FACTS_H
#define HDL_FACTS_H

#include "base/base.h"

typedef enum hdl_ffn_kind { HDL_FFN_GLU = 0 /* down(act(gate) * up) */ } hdl_ffn_kind; /* experts later */
typedef enum hdl_act { HDL_ACT_SILU = 0, HDL_ACT_GELU_TANH = 1 } hdl_act;
typedef enum hdl_rope_style {
    HDL_ROPE_HALF = 0,  /* pairs (i, i + dim/2) */
    HDL_ROPE_PAIRS = 1, /* pairs (2i, 2i + 1): GGUF files of the llama architecture are permuted so */
    HDL_ROPE_NONE = 2
} hdl_rope_style;

typedef enum hdl_cache_kind { HDL_CACHE_FULL = 0, HDL_CACHE_ROLLING = 1 } hdl_cache_kind;

typedef struct hdl_layer_facts {
    bool is_delta;       /* a gated-delta layer: a state in place of K and V; window 0, no cache group */
    int32_t window;      /* a query at p reads keys p - window + 1 .. p; 0 = all before it */
    int32_t kv_source;   /* the layer whose K, V rows are read */
    bool has_kv;         /* K, V come from this layer's input; else from kv_source, or the shared state */
    bool has_qk_norm;    /* RMS norm of each q head (and k head, where it has K) before RoPE */
    int32_t cache_group; /* index into hdl_model_facts.groups of the cache that kv_source lives in; or -1 */
    int32_t rope;        /* index into hdl_model_facts.ropes */
    bool has_index;      /* an index file gives this layer keys and queries (facts.index.is_of_layers) */
    int32_t index_rope;  /* their rotation */
    int32_t index_group; /* of a cross layer: which of the shared state's index queries chooses for it */
    bool leads_group;    /* the first cross layer of its index group */
    hdl_ffn_kind ffn;
} hdl_layer_facts;

typedef struct hdl_cache_group_facts { /* layers whose KV rows share one page table */
    hdl_cache_kind kind;
    int32_t window;   /* ROLLING: pages wholly out of it may be freed */
    int32_t n_layers; /* that own rows in this group */
} hdl_cache_group_facts;

enum { HDL_MAX_LAYERS = 512, HDL_MAX_GROUPS = 4, HDL_MAX_ROPES = 4, HDL_MAX_ROPE_DIM = 512 };

typedef struct hdl_rope_facts {
    hdl_rope_style style;
    int32_t dim;                          /* rotated elements of a head; <= head_dim */
    float inv_freq[HDL_MAX_ROPE_DIM / 2]; /* [dim / 2], scaling (linear, Llama 3) already applied */
    float attn_factor;                    /* multiplies cos and sin; 1 normally */
} hdl_rope_facts;

/* A learned index, of the shared state or of single layers: the score of key s for query t is the largest over
 * heads h of scale * (q_th . k_s) + b_th; the index of a shared state has no b, and may have several groups of
 * queries over the same keys, each choosing for cross layers of its own. */
typedef struct hdl_index_facts {
    int32_t dim;                 /* elements of an index key; 0 = the model has no index */
    float scale;                 /* moves no list; the temperature of its training */
    bool has_k_norm, has_q_norm; /* RMS norms */
    int32_t n_heads;             /* queries of a token; 0 counts as 1 */
    int32_t n_groups;            /* of queries, of a shared state; 0 counts as 1 */
    bool has_own_queries;   /* groups after the first: from their first layer's input, not the shared state */
    bool is_of_layers;      /* from an index file: layers with has_index; their queries have a bias */
    float norm_eps;         /* of the key norm, for indexes of layers */
    bool is_from_norm;      /* fed by the shared norm's output; else by the shared state itself */
    int32_t n_sink, window; /* always read */
    int64_t top_k;          /* tokens the model was trained to read */
} hdl_index_facts;

/* Layers whose heads keep a state [v_dim, k_dim] of the document so far (ops CONV and DELTA), and the rows
 * that their short convolution reaches back to. No position encoding. */
typedef struct hdl_delta_facts {
    int32_t n_layers; /* 0 = the model has none */
    int32_t n_heads, k_dim, v_dim;
    int32_t conv_width; /* rows of the convolution over q, k and v; 0 = none */
    float scale, eps;   /* of queries; in the norms of q and k */
} hdl_delta_facts;

typedef struct hdl_model_facts {
    char arch[32];  /* row of the architecture table: "llama", "qwen2", "qwen3", "gemma3" */
    char name[128]; /* as the file says; may be "" */
    char plan[32];  /* the plan that the model was made for; "" = it reads densely */
    int32_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, v_head_dim, n_ff, n_vocab;
    int32_t train_context; /* tokens the model was trained to; 0 = unknown */
    float norm_eps;
    float attn_scale;     /* multiplies q . k */
    float attn_soft_cap;  /* 0 = none: s = cap * tanh(s / cap) */
    float logit_soft_cap; /* 0 = none */
    float embed_scale;    /* multiplies embeddings */
    float norm_offset;    /* RMS norm multiplies by (weight + norm_offset); 0, or 1 for Gemma safetensors */
    hdl_act act;
    int32_t doc_token;      /* starts a document; -1 = none */
    bool has_doc_resets;    /* windows and positions restart at doc_token */
    bool has_shared_k_norm; /* RMS norm of each head of the shared K */
    int32_t cross_from;     /* first layer that reads the shared K, V; n_layers = none does */
    hdl_index_facts index;
    hdl_delta_facts delta;
    bool has_post_norms; /* norms after attention and after the FFN, before the residual add */
    hdl_layer_facts layers[HDL_MAX_LAYERS];
    int32_t n_groups, n_ropes;
    hdl_cache_group_facts groups[HDL_MAX_GROUPS];
    hdl_rope_facts ropes[HDL_MAX_ROPES];
} hdl_model_facts;

/* Whether the model itself leaves it to a plan what the layer reads. */
static inline bool hdl_layer_is_open(const hdl_model_facts *facts, int32_t layer)
{
    return !facts->layers[layer].window && !facts->layers[layer].is_delta;
}
/* q, k and v of all heads of a gated-delta layer. */
static inline int64_t hdl_delta_cols(const hdl_delta_facts *delta)
{
    return (int64_t)delta->n_heads * (2 * delta->k_dim + delta->v_dim);
}
/* Floats that such a layer keeps of a sequence: rows of the convolution, then states; lines of 16. */
static inline int64_t hdl_delta_conv_floats(const hdl_delta_facts *delta)
{
    return HDL_ALIGN_UP((delta->conv_width ? delta->conv_width - 1 : 0) * hdl_delta_cols(delta), 16);
}
static inline int64_t hdl_delta_state_floats(const hdl_delta_facts *delta)
{
    return hdl_delta_conv_floats(delta) +
           HDL_ALIGN_UP((int64_t)delta->n_heads * delta->k_dim * delta->v_dim, 16);
}

#endif
