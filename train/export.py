"""state.pt -> a folder with config.json, model.safetensors, tokenizer.json.

  export.py --ckpt state.pt|FOLDER --out models/NAME --format bf16|q8_0 [--top-k 1024] [--pieces MIB]

q8_0 stores every matrix as U8 [rows, cols/32*34]: blocks of an f16 scale and 32 int8, the
layout of GGUF's Q8_0, so that it can be mapped and used as it is. Norm gains stay float32, as do the
short convolution and the gates of gated-delta layers.
--pieces splits the file for transport; join with `cat`.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

from modeling_heddle import quantise_q8_0


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--ckpt", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--tokenizer")
    ap.add_argument("--format", default="q8_0", choices=["bf16", "q8_0", "f32"])
    ap.add_argument("--top-k", type=int, default=0)
    ap.add_argument("--pieces", type=float, default=0)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    if os.path.isdir(args.ckpt):                       # an exported folder in bf16 or f32
        cfg, weights = json.load(open(os.path.join(args.ckpt, "config.json"))), load_file(os.path.join(args.ckpt, "model.safetensors"))
    else:
        saved = torch.load(args.ckpt, map_location="cpu", weights_only=False)
        cfg, weights = json.loads(saved["config"]), saved["model"]
    if args.top_k:
        cfg["top_k"] = args.top_k
    cfg.update(model_type="heddle_clsa", weight_format=args.format)
    out = {}
    for name, w in weights.items():
        small = name.endswith(("delta.conv.weight", "delta.ab_proj.weight"))      # they decide what a state keeps
        if w.ndim == 2 and args.format == "q8_0" and not small:
            out[name] = quantise_q8_0(w)
        elif w.ndim == 2 and args.format == "bf16" and not small:
            out[name] = w.to(torch.bfloat16).contiguous()
        else:
            out[name] = w.float().contiguous()
    path = os.path.join(args.out, "model.safetensors")
    save_file(out, path, metadata={"format": "pt", "heddle.weights": args.format})
    with open(os.path.join(args.out, "config.json"), "w") as f:
        f.write(json.dumps(cfg, indent=2) + "\n")
    if args.tokenizer:
        shutil.copy(args.tokenizer, os.path.join(args.out, "tokenizer.json"))
    print(f"{path}: {os.path.getsize(path) / 2**20:.2f} MiB, {len(out)} tensors")
    if args.pieces:
        n = int(args.pieces * 2**20)
        with open(path, "rb") as f:
            i = 0
            while part := f.read(n):
                open(f"{path}.{i:02d}", "wb").write(part)
                i += 1
        os.remove(path)


if __name__ == "__main__":
    main()
