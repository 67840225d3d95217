"""A small random CLSA model whose six cross layers read by two or three lists, with its answers: the golden model of index groups.

  golden_groups.py --out ../tests/golden/groups

One file of weights, model.safetensors (Q8_0 blocks, gains F32), with an index query for every cross layer that leads a group in one of
the configurations; from modeling_heddle.py in float32, for each CASE config.CASE.json and
lists.CASE.txt        one line a token and group, tokens first: the ids it reads, ascending
logits.CASE.f32       little-endian float32 [n_tokens, n_vocab / STRIDE]: the logits of every STRIDE-th id, every list of TOP_K
tokens.txt            the input: three documents
about.json            per case the smallest margin of a list, and how many rows another case or group would read otherwise
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

import config
import model as mdl
import modeling_heddle as mh

TOP_K, N, STRIDE = 12, 96, 4
CASES = {f"{groups}-{query}": dict(index_groups=groups, index_group_query=query) for groups in (2, 3) for query in ("shared_state", "own_input")}


def weights(cfg, leaders):
    """The trainer's tensors with wide gains and queries, and an index query for each leader; Q8_0 as read back"""
    m = mdl.Model(cfg)
    out = {}
    for n, p in m.state_dict().items():
        out[n] = torch.empty_like(p).uniform_(0.6, 1.6) if p.ndim == 1 else p * (8.0 if n.startswith("embed") else 2.0)
    for l in leaders:
        out[mh.Heddle.group_query(l)] = torch.randn(cfg.index_dim, cfg.hidden_size) * cfg.hidden_size ** -0.5
    return {n: mh.quantise_q8_0(w) if w.ndim == 2 else w.contiguous() for n, w in out.items()}


def lists_of(h, tokens):
    """As the full pass makes them -> bool [groups, n, n]"""
    seen, select = [], h.select

    def keep(*args):
        seen.append(select(*args))
        return seen[-1]
    h.select = keep
    logits = h.logits(tokens, top_k=TOP_K)
    h.select = select
    return torch.stack(seen), logits


def smallest_margin(h, tokens):
    """Between the last score that enters a list and the best that does not, over tokens and groups."""
    margins, select = [], h.select

    def keep(qi, ki, n_before, top_k, never=None):
        s = (qi @ ki.T * h.c["index_scale"]).masked_fill(torch.ones(len(qi), len(ki)).triu(1 + n_before).bool(), float("-inf")).sort(-1, descending=True).values
        gap = (s[top_k:, top_k - 1] - s[top_k:, top_k])
        margins.append(float(gap[gap > 0].min()))
        return select(qi, ki, n_before, top_k, never)
    h.select = keep
    h.logits(tokens, top_k=TOP_K)
    h.select = select
    return min(margins)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(20261)
    base = dict(n_vocab=256, top_k=TOP_K, n_cross=6, hidden_size=64)
    cfg = config.preset("tiny", **base)
    later = sorted({l for case in CASES.values() for l in mh.Heddle(dict(layer_kinds=cfg.layer_kinds, **case), {}).later_leaders()})
    every = weights(cfg, later)
    save_file(every, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt", "heddle.weights": "q8_0"})
    tokens = torch.randint(1, 256, (N,))
    tokens[0] = tokens[40] = tokens[75] = 0
    with open(os.path.join(args.out, "tokens.txt"), "w") as f:
        f.write(" ".join(map(str, tokens.tolist())) + "\n")
    about, kept = {"top_k": TOP_K, "torch": torch.__version__}, {}
    for name, case in CASES.items():
        c = json.loads(config.preset("tiny", **base, **case).to_json())
        c.update(model_type="heddle_clsa", weight_format="q8_0")
        with open(os.path.join(args.out, f"config.{name}.json"), "w") as f:
            f.write(json.dumps(c, indent=2) + "\n")
        h = mh.Heddle(c, mh.read_weights(args.out))
        kept[name], logits = lists_of(h, tokens)
        with open(os.path.join(args.out, f"lists.{name}.txt"), "w") as f:
            for row in kept[name].transpose(0, 1).flatten(0, 1):
                f.write(" ".join(map(str, row.nonzero()[:, 0].tolist())) + "\n")
        logits[:, ::STRIDE].contiguous().numpy().astype("<f4").tofile(os.path.join(args.out, f"logits.{name}.f32"))
        differ = [int((kept[name][0] != g).any(-1).sum()) for g in kept[name][1:]]
        about[name] = {"smallest_margin_of_a_list": smallest_margin(h, tokens), "rows_unlike_the_first_group": differ, "largest_logit": float(logits.abs().max())}
        print(name, about[name])
    for groups in (2, 3):
        a, b = (kept[f"{groups}-{q}"] for q in ("shared_state", "own_input"))
        about[f"{groups} rows that the two queries read otherwise"] = [int((x != y).any(-1).sum()) for x, y in zip(a, b)]
    with open(os.path.join(args.out, "about.json"), "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
