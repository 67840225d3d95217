#!/usr/bin/env python3
"""Make small random safetensors models, one or more per architecture row, and their logits.

    tiny_models.py OUT_DIR [NAME...]

Each OUT_DIR/NAME holds config.json (as published models have it), config-v5.json (the same model as
transformers 5 writes it), the weights (one file, or two and an index), ids.i32 and logits.f32 (formats:
tests/golden/tiny/README.md). The logits are those of `transformers` in float32, eager attention,
weights rounded to the stored type first. Needs torch, transformers, safetensors (requirements.txt).
"""
import json
import pathlib
import shutil
import struct
import sys

import torch
import transformers
from safetensors.torch import save_file

N_TOKENS = 96
N_VOCAB = 300
LOGIT_ROWS = range(3, N_TOKENS, 4)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

COMMON = {"vocab_size": N_VOCAB, "max_position_embeddings": 512, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
          "initializer_range": 0.02, "use_cache": True, "transformers_version": "4.51.0"}
LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
         "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True}
QWEN2 = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
         "sliding_window": 512, "max_window_layers": 2, "use_sliding_window": False, "tie_word_embeddings": False}
QWEN3 = {**COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": False, "hidden_size": 64,
         "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "rope_scaling": None, "sliding_window": None, "max_window_layers": 2, "use_sliding_window": False,
         "tie_word_embeddings": True}
GEMMA3 = {**COMMON, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
          "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 7, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
          "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None, "sliding_window": 16,
          "sliding_window_pattern": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": None, "final_logit_softcapping": None,
          "pad_token_id": 0, "tie_word_embeddings": True}

# name: (config.json, stored type, number of weight files)
MODELS = {
    "llama": (LLAMA, "F32", 1),
    "llama3-scaled": ({**LLAMA, "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, "F32", 1),
    "llama-sharded": ({**LLAMA, "hidden_size": 96, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2,
                       "tie_word_embeddings": False}, "F16", 2),
    "qwen2": (QWEN2, "BF16", 1),
    "qwen3": (QWEN3, "F32", 1),
    "gemma3": (GEMMA3, "BF16", 2),
    "gemma3-f32": ({**GEMMA3, "num_hidden_layers": 4, "sliding_window_pattern": 3, "head_dim": 16, "query_pre_attn_scalar": 16}, "F32", 1),
}


def randomise(model, dtype, seed):
    """Weights wide enough that attention is peaked and every norm and bias matters."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 0.2 * noise + (0.0 if gemma else 1.0)
            elif name.endswith(".bias"):
                value = 0.5 * noise
            elif "embed_tokens" in name or "lm_head" in name:
                value = 0.25 * noise
            else:
                value = noise * (1.6 if "q_proj" in name or "k_proj" in name else 1.0) / parameter.shape[-1] ** 0.5
            parameter.copy_(value.to(dtype).to(torch.float32))


def save_weights(folder, tensors, n_files):
    if n_files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, shards, weight_map = list(tensors), [{} for _ in range(n_files)], {}
    for i, name in enumerate(names):
        number = i * n_files // len(names)
        shards[number][name] = tensors[name]
        weight_map[name] = f"model-{number + 1:05d}-of-{n_files:05d}.safetensors"
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number + 1:05d}-of-{n_files:05d}.safetensors", metadata={"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make(folder, name, config, dtype, n_files):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {**config, "torch_dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    loaded = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(loaded, attn_implementation="eager", dtype=torch.float32)
    randomise(model, DTYPES[dtype], seed=sorted(MODELS).index(name) + 1)
    tied = config["tie_word_embeddings"]
    tensors = {n: t.detach().to(DTYPES[dtype]).contiguous().clone() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    save_weights(folder, tensors, n_files)
    loaded.dtype = DTYPES[dtype]
    loaded.architectures = config["architectures"]
    written = json.loads(loaded.to_json_string(use_diff=False))
    written.pop("_name_or_path", None)
    (folder / "config-v5.json").write_text(json.dumps(written, indent=1) + "\n")

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids = [(i * i * 7 + i * 31 + 5) % N_VOCAB for i in range(N_TOKENS)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, list(LOGIT_ROWS)].float()
    assert torch.isfinite(logits).all()
    (folder / "ids.i32").write_bytes(struct.pack(f"<{N_TOKENS}i", *ids))
    (folder / "logits.f32").write_bytes(logits.contiguous().numpy().astype("<f4").tobytes())
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    print(f"{name}: {dtype}, {n_files} file(s), {weights} bytes of weights; logits {tuple(logits.shape)}, std {logits.std():.2f}, "
          f"max {logits.abs().max():.2f}; layer types {getattr(loaded, 'layer_types', None)}; rope {loaded.rope_parameters}")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for name in sys.argv[2:] or MODELS:
        make(pathlib.Path(sys.argv[1]) / name, name, *MODELS[name])


if __name__ == "__main__":
    main()
