/* model_int.h - what the files of this folder share.
 *
 *   gguf.c, safetensors.c   bytes -> checked tensors and metadata
 *   config.c                metadata or config.json -> hdl_stated, the numbers as a file states them
 *   config_own.c            config.json of the folders that train/ writes -> hdl_stated
 *   arch.c                  the table of architectures; hdl_stated + row -> hdl_model_facts
 *   weights.c               the table of weights; tensors + facts -> checked hdl_model weights
 *   model.c                 open and close */
#ifndef HDL_MODEL_INT_H
#define HDL_MODEL_INT_H

#include <jansson.h>

#include "model/model.h"
#include "model/safetensors.h"

/* Traits of an architecture that decide which weights it has and how they are used. */
enum {
    HDL_ARCH_ANY = 1,            /* set in every row */
    HDL_ARCH_QKV_BIAS = 2,       /* q, k and v have biases (elsewhere they may have) */
    HDL_ARCH_QK_NORM = 4,        /* RMS norm of each q and k head */
    HDL_ARCH_PRE_NORMS = 8,      /* one norm before attention, one before the FFN */
    HDL_ARCH_POST_NORMS = 16,    /* those two, and one after each */
    HDL_ARCH_EMBED_SCALE = 32,   /* embeddings are multiplied by sqrt(hidden_size) */
    HDL_ARCH_NORM_PLUS_ONE = 64, /* safetensors hold norm weights less one */
    HDL_ARCH_LLAMA_ROPE = 128,   /* GGUF files hold q and k permuted for pairwise RoPE */
    HDL_ARCH_OWN_FORMAT = 256,   /* a folder that train/ wrote: config_own.c reads it */
    HDL_ARCH_INDEX = 512         /* the shared state feeds an index */
};

/* Bits that weights.c adds for a layer, or for the shared state, from the facts. */
enum {
    HDL_ARCH_OWN_KV = 1 << 16,
    HDL_ARCH_LAYER_Q_NORM = 1 << 17,
    HDL_ARCH_LAYER_K_NORM = 1 << 22,
    HDL_ARCH_SHARED = 1 << 18,
    HDL_ARCH_SHARED_K_NORM = 1 << 19,
    HDL_ARCH_INDEX_Q_NORM = 1 << 20,
    HDL_ARCH_INDEX_K_NORM = 1 << 21,
    HDL_ARCH_INDEX_LEADER = 1 << 23, /* the layer begins a later group of the index */
    HDL_ARCH_LAYER_ATTENDS = 1 << 24,
    HDL_ARCH_LAYER_DELTA = 1 << 25,
    HDL_ARCH_LAYER_CONV = 1 << 26 /* a gated-delta layer with a short convolution */
};

typedef enum hdl_rope_scaling {
    HDL_ROPE_UNSCALED = 0,
    HDL_ROPE_LINEAR = 1, /* every frequency divided by factor */
    HDL_ROPE_LLAMA3 = 2  /* low frequencies divided, high ones kept, a ramp between */
} hdl_rope_scaling;

typedef struct hdl_stated_rope {
    hdl_rope_scaling scaling;
    double base, factor, attn_factor;
    double low_freq_factor, high_freq_factor, original_context; /* llama3 */
} hdl_stated_rope;

typedef enum hdl_layer_kind {
    HDL_LAYER_FULL = 0,
    HDL_LAYER_WINDOW,
    HDL_LAYER_CROSS,
    HDL_LAYER_DELTA
} hdl_layer_kind;

/* What the config.json of a folder in our own format states beside hdl_stated. */
typedef struct hdl_stated_own {
    bool is_set;
    hdl_layer_kind kinds[HDL_MAX_LAYERS];
    bool has_self_qk_norm, has_cross_qk_norm, has_rope_on_full, has_paired_rope;
    bool has_doc_resets;
    bool has_weight_dtype; /* stated: the matrices are of weight_dtype, but for gates of gated-delta layers */
    hdl_dtype weight_dtype;
    int64_t doc_token;
    double embed_scale;
    hdl_index_facts index;
    hdl_delta_facts delta;
} hdl_stated_own;

/* What a model's file states; 0 = not stated. */
typedef struct hdl_stated {
    char name[128];
    int64_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, v_head_dim, n_ff, n_vocab;
    int64_t context, window, rope_dim;
    int64_t sliding_pattern; /* layers are sliding but every sliding_pattern-th */
    bool has_layer_types;    /* is_sliding is the file's list, which counts more than the pattern */
    bool is_sliding[HDL_MAX_LAYERS];
    double norm_eps, attn_soft_cap, logit_soft_cap;
    double attn_scale;          /* itself, or: */
    double query_scalar;        /* attn_scale = 1 / sqrt(query_scalar) */
    double rotary_share;        /* rope_dim = head_dim * rotary_share */
    hdl_stated_rope rope;       /* of all layers, or of the global ones */
    hdl_stated_rope local_rope; /* of sliding layers; base 0 = the same rope */
    hdl_tensor rope_divisors;   /* GGUF rope_freqs.weight: inv_freq[i] is divided by element i */
    bool has_untied_output;     /* stated: the output matrix is a tensor of its own */
    bool has_tied_output;       /* stated: it is the embedding */
    hdl_stated_own own;
} hdl_stated;

typedef struct hdl_arch {
    const char *name;           /* GGUF's general.architecture */
    const char *model_types[2]; /* config.json's model_type; unused ones NULL */
    const char *act_name;       /* as config.json spells it */
    const char *plan;           /* the plan its models were made for; NULL = dense */
    hdl_act act;
    uint32_t traits;            /* HDL_ARCH_* */
    int32_t wide_scale_layers;  /* with so many layers a GGUF model, which cannot state it, has
                                   attn_scale 1 / sqrt(hidden_size / n_heads); 0 = never */
    hdl_stated defaults;        /* where the file is silent: GGUF and config.json */
    hdl_stated config_defaults; /* where config.json is silent: the defaults of its class */
} hdl_arch;

/* arch.c. NULL and the thread's sentence when there is no such row. */
const hdl_arch *hdl_arch_of_gguf(hdl_text name);
const hdl_arch *hdl_arch_of_config(const char *model_type);
const hdl_arch *hdl_arch_of_own(const char *name); /* rows of our own format, by their name */
/* Checks and completes what was stated. is_gguf decides the layout of q and k rows and of norms. */
heddle_status hdl_facts_build(hdl_model_facts *facts, const hdl_arch *arch, const hdl_stated *stated,
                              bool is_gguf, const char *path);

/* config.c */
heddle_status hdl_stated_from_gguf(hdl_stated *stated, const hdl_arch **arch, const hdl_gguf *gguf,
                                   const char *path);
heddle_status hdl_stated_from_config(hdl_stated *stated, const hdl_arch **arch, const char *text,
                                     int64_t n_bytes, const char *path);

/* config_own.c: config.json of our own format; `root` is the parsed document. */
bool hdl_config_is_own(const json_t *root);
heddle_status hdl_stated_from_own(hdl_stated *stated, const hdl_arch **arch, const json_t *root);

/* weights.c */
typedef struct hdl_model_owner { /* hdl_model.owner */
    hdl_gguf *gguf;              /* one of the two */
    hdl_safetensors *safetensors;
    hdl_safetensors *index; /* of an index file, may be NULL */
    float **vectors;        /* [n_vectors] converted norms and biases */
    int64_t n_vectors, vector_capacity;
} hdl_model_owner;

/* Finds, checks and links every weight; model->facts and model->owner are set. */
heddle_status hdl_weights_load(hdl_model *model, const hdl_arch *arch, const hdl_stated *stated,
                               const char *path);

/* model.c: out = dir + "/" + name; a longer path than the system allows is refused. */
enum { HDL_MAX_PATH = 4096 };
heddle_status hdl_join_path(char out[HDL_MAX_PATH], const char *dir, const char *name);

#endif
