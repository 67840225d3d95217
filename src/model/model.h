/* model.h - a model's facts and weights, read from GGUF or safetensors. No execution.
 *
 * Facts come from one table of architectures (arch.c); nothing above this layer knows a model's
 * name. A layer's row says where its keys and values come from, so that layers that share a cache,
 * slide a window or read another layer's KV need no special case later. */
#ifndef HDL_MODEL_H
#define HDL_MODEL_H

#include "model/chat.h"
#include "model/facts.h"
#include "model/tokenizer.h"
#include "tensor/tensor.h"

typedef struct hdl_layer_weights { /* absent ones have data == NULL; norms and biases are F32 rows */
    hdl_tensor attn_norm;          /* [1, hidden_size] */
    hdl_tensor wq, wk, wv, wo;     /* [n_heads*head_dim, hidden] [n_kv_heads*head_dim, hidden]
                                                  [n_kv_heads*v_head_dim, hidden] [hidden, n_heads*v_head_dim] */
    hdl_tensor bq, bk, bv, bo;     /* may be absent */
    hdl_tensor q_norm, k_norm;     /* [1, head_dim], may be absent */
    hdl_tensor post_attn_norm, post_ffn_norm; /* [1, hidden_size], may be absent */
    /* of an index file: [n_heads * dim, hidden] [n_heads, hidden] [dim, hidden] [1, dim]; else absent, but for
     * index_q of a layer that leads a later group of the shared state's index */
    hdl_tensor index_q, index_bias, index_k, index_k_norm;
    hdl_tensor ffn_norm, w_gate, w_up, w_down; /* [n_ff, hidden] [n_ff, hidden] [hidden, n_ff] */
} hdl_layer_weights;

typedef struct hdl_delta_weights { /* of a gated-delta layer */
    hdl_tensor wqkv;               /* [n_heads*(2*k_dim+v_dim), hidden]: q of all heads, k, v */
    hdl_tensor wab, wg, wo;        /* [2*n_heads, hidden] [n_heads*v_dim, hidden] [hidden, n_heads*v_dim] */
    hdl_tensor conv;           /* [conv_width, n_heads*(2*k_dim+v_dim)] f32; absent where the width is 0 */
    hdl_tensor a_log, dt_bias; /* [1, n_heads] */
    hdl_tensor norm;           /* [1, v_dim] */
} hdl_delta_weights;

typedef struct hdl_shared_weights {        /* what is made of the shared state; absent without cross layers */
    hdl_tensor norm;                       /* [1, hidden_size] */
    hdl_tensor wk, wv;                     /* [n_kv_heads*head_dim, hidden] [n_kv_heads*v_head_dim, hidden] */
    hdl_tensor k_norm;                     /* [1, head_dim], may be absent */
    hdl_tensor index_q, index_k;           /* [index heads * dim, hidden] [index dim, hidden], or absent */
    hdl_tensor index_q_norm, index_k_norm; /* [1, index dim], may be absent; the first is every group's */
} hdl_shared_weights;

typedef struct hdl_model {
    hdl_model_facts facts;
    hdl_tensor token_embd;  /* [n_vocab, hidden_size] */
    hdl_tensor output_norm; /* [1, hidden_size] */
    hdl_tensor output;      /* [n_vocab, hidden_size]; == token_embd where tied */
    hdl_shared_weights shared;
    hdl_layer_weights *layers; /* [n_layers], owned */
    hdl_delta_weights *deltas; /* [n_layers], owned; NULL where no layer is one */
    hdl_tokenizer *tokenizer;  /* owned; NULL if the file has none */
    hdl_chat_template chat;
    int64_t weight_bytes; /* bytes of all tensors that are used, shared ones once */
    int64_t file_bytes;
    void *owner; /* mapped files and converted norms; model.c's */
} hdl_model;

/* path: a .gguf file, a folder with config.json and safetensors, or a .safetensors file in one.
 * Norm weights and biases that are not F32 in the file are converted once (they are tiny);
 * matrices are used where they are mapped. Shapes are all checked against the facts. */
heddle_status hdl_model_open(hdl_model **out, const char *path);
void hdl_model_close(hdl_model *model);
/* Equal only for the same facts and weights, byte for byte; the file's name and metadata do not
 * count. Reads every weight once. */
heddle_status hdl_model_identity(const hdl_model *model, int n_threads, uint64_t *identity);

#endif
