"""Writes small random models with gated-delta layers and their answers, for checking another implementation.

  golden_delta.py --out golden        writes golden/delta-tiny (the hybrid) and golden/delta-cross-tiny

delta-tiny: gated-delta layers and a full one; delta-cross-tiny: gated-delta layers below a shared state with an index.
config.json and model.safetensors in BF16 (gains, taps and gates F32), and from modeling_heddle.py in float32, row by row
with the matrices written out: tokens.txt, three documents of 97 tokens together; logits.f32, little-endian float32
[n_tokens, n_vocab], dense reading. model.py, which takes 64 rows at a time, must give the same logits from the same
weights before anything is written.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import torch

import attention as att
import config
import model as mdl
import modeling_heddle as mh

N = 97
MODELS = {
    "delta-tiny": dict(arch="gated_delta_hybrid", n_self=4, n_cross=0),
    "delta-cross-tiny": dict(arch="clsa", layer_kinds=["delta", "window", "delta", "cross", "cross"]),
}


def write(folder, over, seed):
    torch.manual_seed(seed)
    cfg = config.preset("tiny", n_vocab=128, intermediate_size=64, top_k=12, **over)
    m = mdl.Model(cfg)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if n.endswith("a_log"):
                p.uniform_(-2, 1)
            elif n.endswith("dt_bias"):
                p.uniform_(-3, 1)
            elif p.ndim == 1:
                p.uniform_(0.6, 1.6)
            elif n.endswith("conv.weight"):
                p.normal_(0, 0.7)
            elif n.endswith("ab_proj.weight"):
                p.mul_(3)
            else:
                p.mul_(8 if n.startswith("embed") else 2)
            if p.ndim == 2 and not n.endswith(("conv.weight", "ab_proj.weight")):
                p.copy_(p.bfloat16().float())
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "state.pt")
        torch.save({"config": cfg.to_json(), "model": m.state_dict()}, path)
        here = os.path.dirname(os.path.abspath(__file__))
        subprocess.run([sys.executable, os.path.join(here, "export.py"), "--ckpt", path, "--out", folder, "--format", "bf16"], check=True)
    tokens = torch.randint(1, 128, (N,))
    tokens[0] = tokens[41] = tokens[78] = 0
    logits = mh.load(folder).logits(tokens, reads="dense")
    with torch.no_grad():
        masks = att.Masks(1, N, cfg, torch.device("cpu"), "ref").update(tokens[None])
        other = (m(tokens[None], masks)["x"] @ m.head_weight().T)[0]
    worst = float((other - logits).abs().max())
    print(f"{folder}: 64 rows at a time against row by row: largest difference {worst:.1e} of {float(logits.abs().max()):.1f}")
    assert worst < 1e-4
    with open(os.path.join(folder, "tokens.txt"), "w") as f:
        f.write(" ".join(map(str, tokens.tolist())) + "\n")
    logits.numpy().astype("<f4").tofile(os.path.join(folder, "logits.f32"))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    for i, (name, over) in enumerate(MODELS.items()):
        write(os.path.join(args.out, name), over, 300 + i)


if __name__ == "__main__":
    main()
