"""The few calls of llama.cpp that the oracles use, through the llama_cpp package's public API."""
import ctypes

import numpy as np


def library():
    """The llama_cpp module, silent; ImportError if it is not installed."""
    import llama_cpp
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    library.keep = silent
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    return llama_cpp


class Model:
    def __init__(self, path, vocab_only=False):
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise OSError(f"llama.cpp cannot load {path}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text, add_special=False, parse_special=False):
        ids = (ctypes.c_int32 * (len(text) + 16))()
        n = self.lib.llama_tokenize(self.vocab, text, len(text), ids, len(ids), add_special, parse_special)
        assert n >= 0
        return list(ids[:n])

    def context(self, n_ctx, n_batch=512, n_threads=2):
        """F32 KV cache, flash attention off: the setting of every golden file."""
        lib = self.lib
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.swa_full = True
        return Context(self, lib.llama_init_from_model(self.model, params), n_batch)


class Context:
    def __init__(self, model, context, n_batch):
        if not context:
            raise MemoryError("llama.cpp cannot make a context")
        self.model, self.context, self.n_batch = model, context, n_batch
        self.lib = model.lib
        self.batch = self.lib.llama_batch_init(n_batch, 0, 1)

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, ids, first_position, wanted):
        """Append ids; yield (position, logits copy) for every position p with wanted(p)."""
        for start in range(0, len(ids), self.n_batch):
            part = ids[start:start + self.n_batch]
            batch = self.batch
            batch.n_tokens = len(part)
            rows = []
            for i, token in enumerate(part):
                position = first_position + start + i
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = bool(wanted(position))
                if batch.logits[i]:
                    rows.append((i, position))
            if self.lib.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            for i, position in rows:
                logits = self.lib.llama_get_logits_ith(self.context, i)
                yield position, np.ctypeslib.as_array(logits, shape=(self.model.n_vocab,)).copy()

    def close(self):
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
