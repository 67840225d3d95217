"""CPU probes of an exported folder: samples, stability of the list (E8), mounted documents
(E10), planted facts past the trained length (part of E7).

  probe.py --model models/NAME --data DIR --out probe.json --samples samples.md [--sections ...]
"""
import argparse
import json
import os
import time

import numpy as np
import torch

import data
import modeling_heddle as mh
import prepare
import tasks

PROMPTS = ["The history of the city begins", "It is a truth universally acknowledged, that", "In the beginning", "The following options are available:\n",
           "static int __init ", "def main(argv=None):\n", "#include <stdio.h>\n\nint main(", "class Node(object):\n    \"\"\"", "The purpose of this chapter is",
           "SYNOPSIS\n\n", "Note that the kernel ", "Copyright law ", "To install the package, ", "public final class ", "Love, n. ",
           "package main\n\nimport (", "Return the number of ", "HAMLET\n", "If the socket is closed, ", "A graph is said to be "]


def samples(m, path):
    out = ["# Samples\n\nTwenty prompts, 64 tokens each, temperature 0.7, seed = number of the sample, every list of at most "
           f"{m.c['top_k']} keys. Nothing was picked or left out.\n"]
    for i, p in enumerate(PROMPTS):
        text = m.generate(m.encode(p), 64, stop=None, temperature=0.7, seed=i)
        out.append(f"## {i + 1}\n\n```text\n{p}{text}\n```\n")
        open(path, "w").write("\n".join(out))


def stability(m, held, N, k, back=1024):
    res = {}
    seen = {}
    for i in np.flatnonzero(held.end - held.start >= N):
        package = held.meta[i][1]
        if seen.get(package, 0) >= 2:
            continue
        seen[package] = seen.get(package, 0) + 1
        ids = torch.from_numpy(np.asarray(held.tokens[held.start[i]:held.start[i] + N]).astype(np.int64))
        with torch.no_grad():
            rows, qi = m.shared(m.self_decoder(ids))
            sel = torch.cat([torch.nn.functional.pad(m.select(qi[r:r + 128], rows.ki[:r + 128], r, k), (0, N - r - 128))
                             for r in range(N - back, N, 128)])
        kept = (sel[1:] & sel[:-1]).sum(-1).float() / k
        t = torch.arange(N - back, N)[:, None]
        recent = (sel & (t - torch.arange(N)[None] < k)).sum(-1).float() / k
        union = sel.any(0).sum().item()
        res.setdefault(package, []).append((float(kept.mean()), float(recent.mean()), union / k))
    return {p: {"kept_from_previous_token": float(np.mean([a for a, _, _ in x])), "in_k_most_recent": float(np.mean([b for _, b, _ in x])),
                f"distinct_rows_over_{back}_tokens_in_k": float(np.mean([c for _, _, c in x])), "documents": len(x)} for p, x in res.items()}


def tail_answers(m, h, rows, qi, ids, answers, n_first, reads, top_k):
    """Teacher-forced answers that lie past n_first: tokens right, answers exact."""
    right = total = exact = n = 0
    for a, b, _, _ in answers:
        s = a - 1
        logits = m.cross_decoder(h[s:b - 1], qi[s:b - 1], mh.Rows(rows.k[:, :b - 1], rows.v[:, :b - 1], rows.ki[:b - 1]), s, top_k, reads)
        hit = logits.argmax(-1) == ids[a:b]
        right += int(hit.sum())
        total += len(hit)
        exact += int(hit[:-1].all())
        n += 1
    return {"tokens_right": right / total, "exact": exact / n, "answers": n}


def far(m, held, N, rows_n, seed):
    maker = tasks.TaskMaker(m.tok, m.c["doc_token"])
    hay = prepare.haystack(held.tokens, held.start)
    res = {}
    for fam in ("facts", "keyvalue"):
        rng = np.random.RandomState(seed)
        for _ in range(rows_n):
            row, answers = maker.row(rng, hay, N, fam)
            ids = torch.from_numpy(row.astype(np.int64))
            t = time.time()
            with torch.no_grad():
                h = m.self_decoder(ids)
                rows, qi = m.shared(h)
                for name, reads, k in (("dense", "dense", 0), ("list 512", "list", 512), ("list 1024", "list", 1024), ("list 2048", "list", 2048)):
                    x = tail_answers(m, h, rows, qi, ids, answers, 0, reads, k)
                    y = res.setdefault(f"{fam} {name}", {"tokens_right": [], "exact": [], "answers": 0})
                    y["tokens_right"].append(x["tokens_right"] * x["answers"])
                    y["exact"].append(x["exact"] * x["answers"])
                    y["answers"] += x["answers"]
            print(fam, N, f"{time.time() - t:.0f} s", flush=True)
    return {k: {"tokens_right": sum(v["tokens_right"]) / v["answers"], "exact": sum(v["exact"]) / v["answers"], "answers": v["answers"]} for k, v in res.items()}


def mount(m, held, n_docs=4, length=1500, sets=6):
    """Planted facts over documents encoded one by one against joint prefill; a forbidden document of NaN."""
    maker = tasks.TaskMaker(m.tok, m.c["doc_token"])
    hay = prepare.haystack(held.tokens, held.start)
    rng = np.random.RandomState(3)
    out = {"row_difference": 0.0, "logit_difference": 0.0, "questions": 0, "same_argmax": 0, "joint_right": 0, "mounted_right": 0, "nan_changes_bits": 0}
    for _ in range(sets):
        row, answers = maker.row(rng, hay, n_docs * length, "facts", n_statements=8, n_questions=6, split_docs=n_docs)
        ids = torch.from_numpy(row.astype(np.int64))
        if (ids == 0).sum() < n_docs + 1:              # the questions must be a document of their own
            first = min(a for a, _, _, _ in answers)
            q = first - 1
            while q and "Question" not in m.tok.decode(ids[q:first].tolist()):
                q -= 1
            ids = torch.cat((ids[:q], torch.tensor([0]), ids[q:]))
            answers = [(a + 1, b + 1, d, f) for a, b, d, f in answers]
        cut = (ids == 0).nonzero()[:, 0].tolist() + [len(ids)]
        with torch.no_grad():
            h = m.self_decoder(ids)
            joint, qi = m.shared(h)
            parts, hs, qs = [], [], []
            for s, e in zip(cut[:-1], cut[1:]):
                hd = m.self_decoder(ids[s:e])
                r, q = m.shared(hd)
                parts.append(r)
                hs.append(hd)
                qs.append(q)
            mounted, h2, q2 = mh.Rows.join(parts), torch.cat(hs), torch.cat(qs)
            out["row_difference"] = max(out["row_difference"], float((mounted.k - joint.k).abs().max()), float((mounted.v - joint.v).abs().max()))
            never = torch.zeros(len(ids), dtype=torch.bool)
            never[cut[0]:cut[1]] = True
            bad = [mh.Rows(*(torch.full_like(x, float("nan")) for x in (parts[0].k, parts[0].v, parts[0].ki)))] + parts[1:]
            bad = mh.Rows.join(bad)
            for a, b, _, _ in answers:
                at = a - 1

                def up(hh, qq, rr, nv=None):
                    return m.cross_decoder(hh[at:at + 1], qq[at:at + 1], mh.Rows(rr.k[:, :a], rr.v[:, :a], rr.ki[:a]), at, 1024, "list", nv)[0]
                x, y = up(h, qi, joint), up(h2, q2, mounted)
                out["questions"] += 1
                out["logit_difference"] = max(out["logit_difference"], float((x - y).abs().max()))
                out["same_argmax"] += int(x.argmax() == y.argmax())
                out["joint_right"] += int(x.argmax() == ids[a])
                out["mounted_right"] += int(y.argmax() == ids[a])
                out["nan_changes_bits"] += int(not torch.equal(up(h2, q2, mounted, never), up(h2, q2, bad, never)))
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--samples", default="samples.md")
    ap.add_argument("--sections", default="samples,mount,stability,far64")
    args = ap.parse_args()
    m = mh.load(args.model)
    held = data.Store(args.data, "heldout")
    out = json.load(open(args.out)) if os.path.exists(args.out) else {}
    for s in args.sections.split(","):
        t = time.time()
        if s == "samples":
            samples(m, args.samples)
        elif s == "mount":
            out[s] = mount(m, held)
        elif s == "stability":
            out[s] = {f"N={N} k={k}": stability(m, held, N, k) for N, k in ((16384, 1024), (16384, 512))}
        elif s.startswith("far"):
            out[s] = far(m, held, int(s[3:]) * 1024, 2, 11)
        json.dump(out, open(args.out, "w"), indent=1)
        print(s, f"{time.time() - t:.0f} s", flush=True)


if __name__ == "__main__":
    main()
