#!/usr/bin/env python3
"""Compare the golden files of the forward pass with `transformers`: a third opinion.

    check_llama.py GOLDEN_DIR NAME MODEL-F32.gguf CASE...

Prints per case the largest difference of any golden logit and the greedy tokens that differ when the
golden ones are fed. Needs numpy, torch, transformers, gguf, accelerate.
"""
import pathlib
import sys

import numpy as np
import torch
import transformers


def read_rows(path):
    data = path.read_bytes()
    _, n_top, stride, n_strided = np.frombuffer(data[:16], "<i4")
    row = np.dtype([("position", "<i4"), ("ids", "<i4", n_top), ("top", "<f4", n_top), ("strided", "<f4", n_strided)])
    return np.frombuffer(data[16:], row), stride


def check(golden, name, model, case):
    prompt = np.fromfile(golden / f"{name}.{case}.prompt.i32", "<i4")
    greedy = np.fromfile(golden / f"{name}.{case}.greedy.i32", "<i4")
    lead = np.fromfile(golden / f"{name}.{case}.lead.f32", "<f4")
    rows, stride = read_rows(golden / f"{name}.{case}.logits")
    ids = np.concatenate([prompt, greedy[:-1]]).astype(np.int64)
    wanted = list(rows["position"]) + list(range(len(prompt) - 1, len(ids)))
    with torch.no_grad():
        logits = model.lm_head(model.model(torch.from_numpy(ids)[None]).last_hidden_state[0, wanted]).numpy()
    top = max(np.abs(l[r["ids"]] - r["top"]).max() for l, r in zip(logits, rows))
    strided = max(np.abs(l[::stride] - r["strided"]).max() for l, r in zip(logits, rows))
    chosen = logits[len(rows):].argmax(axis=1)
    differ = [(i, float(lead[i])) for i in range(len(greedy)) if chosen[i] != greedy[i]]
    print(f"{name}.{case}: {len(prompt)} tokens, top {top:.5f}, strided {strided:.5f}, greedy tokens that differ (step, lead): {differ}",
          flush=True)


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__.strip())
    golden, name, path = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                              attn_implementation="eager").eval()
    for case in sys.argv[4:]:
        check(golden, name, model, case)


if __name__ == "__main__":
    main()
