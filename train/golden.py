"""Writes a small random CLSA model with its answers, for checking another implementation.

  golden.py --out golden/clsa-tiny

config.json, model.safetensors (Q8_0 blocks, gains F32), and from modeling_heddle.py in float32:
tokens.txt      the input: three documents
lists.txt       one line a token: the ids it reads, ascending
logits_list.f32, logits_dense.f32   little-endian float32 [n_tokens, n_vocab]
The document tokens have equal rows, so their scores tie exactly: the lowest id wins.
h.f32           the shared state [n_tokens, hidden_size]
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch

import config
import model as mdl
import modeling_heddle as mh


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    torch.manual_seed(20260)
    cfg = config.preset("tiny", n_vocab=256, top_k=12)
    m = mdl.Model(cfg)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if p.ndim == 1:
                p.uniform_(0.6, 1.6)
            elif not n.startswith("embed"):
                p.mul_(2.0)
            else:
                p.mul_(8.0)
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "state.pt")
        torch.save({"config": cfg.to_json(), "model": m.state_dict()}, path)
        subprocess.run([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "export.py"), "--ckpt", path, "--out", args.out, "--format", "q8_0"], check=True)
    h = mh.load(args.out)
    tokens = torch.randint(1, 256, (96,))
    tokens[0] = tokens[40] = tokens[75] = 0
    with torch.no_grad():
        state = h.self_decoder(tokens)
        rows, qi = h.shared(state)
        sel = h.select(qi, rows.ki, 0, cfg.top_k)
        score = (qi @ rows.ki.T * cfg.index_scale).masked_fill(~torch.ones(96, 96).tril().bool(), float("-inf"))
        top = score.sort(-1, descending=True).values
        gaps = [float(top[t, cfg.top_k - 1] - top[t, cfg.top_k]) for t in range(cfg.top_k, 96)]
        margin, ties = min(g for g in gaps if g > 0), sum(g == 0 for g in gaps)
    with open(os.path.join(args.out, "tokens.txt"), "w") as f:
        f.write(" ".join(map(str, tokens.tolist())) + "\n")
    with open(os.path.join(args.out, "lists.txt"), "w") as f:
        for r in sel:
            f.write(" ".join(map(str, r.nonzero()[:, 0].tolist())) + "\n")
    for reads in ("list", "dense"):
        h.logits(tokens, reads=reads).numpy().astype("<f4").tofile(os.path.join(args.out, f"logits_{reads}.f32"))
    state.numpy().astype("<f4").tofile(os.path.join(args.out, "h.f32"))
    with open(os.path.join(args.out, "about.json"), "w") as f:
        json.dump({"smallest_margin_of_a_list": margin, "lists_decided_by_a_tie": ties}, f)
    print("smallest margin between the k-th and the next score:", margin, "; exact ties:", ties)


if __name__ == "__main__":
    main()
