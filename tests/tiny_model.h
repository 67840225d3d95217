/* tiny_model.h - small valid models made from a seed, so that tests need no download.
 *
 * The same options give the same weights in both formats: a GGUF file of F32 matrices and a
 * safetensors folder of F32 hold one model (q and k rows permuted and norms shifted where a format
 * wants it), and their logits may be compared. Default sizes: hidden 64, 4 heads, 2 KV heads, head
 * size 16, FFN 96, 2 layers (gemma3: 6, of which the last is global, window 8); types with blocks
 * of 256 get hidden 256, head size 64, FFN 256. The vocabulary has about 300 tokens and is usable:
 * byte-level BPE with ChatML specials, or SentencePiece with byte fallback and Gemma's. */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include "base/buf.h"
#include "tensor/dtype.h"

typedef struct tiny_options {
    const char *arch;     /* a row of the architecture table; NULL = "llama" */
    hdl_dtype dtype;      /* of the matrices; safetensors: F32, F16 or BF16 */
    hdl_dtype norm_dtype; /* of norms and biases: F32, F16 or BF16 */
    uint64_t seed;
    int32_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, n_ff, window; /* 0 = the default */
    int32_t n_shards;       /* safetensors: files; 0 = 1 */
    int32_t gguf_version;   /* 0 = 3 */
    int32_t gguf_alignment; /* 0 = 32, not stated */
    bool has_untied_output;
    bool has_attn_bias; /* where the architecture does not ask for it (qwen2 always has it) */
    bool has_llama3_scaling;
    bool has_spm; /* GGUF: SentencePiece in place of byte-level BPE */
    bool has_no_tokenizer;
    const void *extra_kvs; /* GGUF: further metadata entries, as in the file; NULL = none */
    int64_t extra_kvs_bytes;
    int32_t n_extra_kvs;
} tiny_options;

/* Each returns false after a message on stderr. The folder is made if it is not there. */
bool tiny_write_gguf(const char *path, const tiny_options *options);
bool tiny_write_safetensors(const char *dir, const tiny_options *options);
/* The bytes of the GGUF file; the caller deinits them. */
bool tiny_gguf_bytes(hdl_buf *out, const tiny_options *options);
bool tiny_write_file(const char *path, const void *bytes, int64_t n);

/* A new folder for a test's files (under TMPDIR or /tmp) and its removal, files included. */
bool tiny_make_folder(char *path, int64_t path_bytes);
void tiny_remove_folder(const char *path);

#endif
