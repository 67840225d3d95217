"""A small distilled index with what it makes of given inputs: the oracle of a loader in another language.

  golden_distill.py FOLDER      writes index.safetensors (a sidecar like any other) and golden.safetensors

golden.safetensors, per group j, N tokens of a made-up hidden size: y.j [N, hidden] F32, the leader's normed input;
key.j I8 [N, dim] with key_scale.j F32 [N]; query.j I8 [H, N, dim] with query_scale.j F32 [H, N]; bias.j F32 [H, N];
score.j F32 [N, N], meaningless above the diagonal; list.j I32 [N, sinks + window + top_k], ascending, -1 behind the
last one. A norm summed in another order may move an 8-bit value by one.
"""
import argparse
import os
import sys

import torch
from safetensors.torch import save_file

import distill

N, HIDDEN, HEADS, DIM, ROPE = 80, 48, 3, 16, 8


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(11)
    args = argparse.Namespace(gguf=__file__, sinks=2, window=4, top_k=8, length=N, seed=11, trained_tokens=0)
    teacher = argparse.Namespace(leaders=[0, 3], members=[[0, 1, 2], [3, 4]])
    index = torch.nn.ModuleList(distill.Index(HIDDEN, DIM, HEADS, ROPE, base) for base in (1e4, 5e5))
    for m in index:
        torch.nn.init.normal_(m.q_bias.weight, std=0.3)
        torch.nn.init.uniform_(m.k_norm, 0.5, 1.5)
        for p in (m.q_proj.weight, m.q_bias.weight, m.k_proj.weight):
            p.data.copy_(p.half().float())                       # what the file holds
    path = os.path.join(folder, "index.safetensors")
    distill.save(args, index, teacher, path)
    card = argparse.Namespace(a=args)
    out = {}
    with torch.no_grad():
        for j, m in enumerate(index):
            y = torch.randn(N, HIDDEN)
            q, b = m.queries(y)
            (qi, qs), (ki, ks) = distill.to_int8(q), distill.to_int8(m.keys(y))
            score = (qi @ ki.t() * (qs * ks[:, 0] * m.scale) + b[:, :, None]).amax(0)
            keep = distill.Card.keep(card, score[None], 0, args.top_k)[0]
            lists = torch.full((N, args.sinks + args.window + args.top_k), -1, dtype=torch.int32)
            for t in range(N):
                ids = keep[t].nonzero()[:, 0]
                lists[t, :len(ids)] = ids.int()
            out.update({f"y.{j}": y, f"key.{j}": ki.to(torch.int8), f"key_scale.{j}": ks[:, 0], f"query.{j}": qi.to(torch.int8), f"query_scale.{j}": qs[..., 0],
                        f"bias.{j}": b, f"score.{j}": score, f"list.{j}": lists})
    save_file({n: t.contiguous() for n, t in out.items()}, os.path.join(folder, "golden.safetensors"))
    print(f"{folder}: {len(out)} tensors")


if __name__ == "__main__":
    main()
