"""Probes of an exported folder in float32: samples, stability of the list (E8), mounted documents
(E10), planted facts past the trained length (part of E7).

  probe.py --model models/NAME --data DIR --out probe.json --samples samples.md [--sections ...] [--device cuda]
"""
import time
T0 = time.time()
import argparse
import json
import os

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
        ids = torch.tensor(np.asarray(held.tokens[held.start[i]:held.start[i] + N]).astype(np.int64))
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
            ids = torch.tensor(row.astype(np.int64))
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


def document_rows(maker, hay, rng, family, n_docs, length, n_statements, n_questions):
    """A row of n_docs documents and the questions as one more -> ids, answers, borders (the end too)."""
    while True:
        row, answers = maker.row(rng, hay, length, family, n_statements=n_statements, n_questions=n_questions, split_docs=n_docs)
        borders = np.flatnonzero(row == maker.doc_token)
        if len(borders) == n_docs + 1:
            return torch.tensor(row.astype(np.int64)), answers, borders.tolist() + [len(row)]


def one_by_one(m, ids, cut):
    """Each document encoded alone: rows joined, states and index queries one after another."""
    parts, hs, qs = [], [], []
    for s, e in zip(cut[:-1], cut[1:]):
        hs.append(m.self_decoder(ids[s:e]))
        rows, q = m.shared(hs[-1])
        parts.append(rows)
        qs.append(q)
    return parts, torch.cat(hs), torch.cat(qs) if qs[0] is not None else None


def answer_logits(m, h, qi, rows, a, b, plan, never=None):
    """Logits that decide the tokens a .. b - 1; plan: 0 reads densely, k by lists of k."""
    s, e = a - 1, b - 1
    held = mh.Rows(rows.k[:, :e], rows.v[:, :e], rows.ki[:e] if rows.ki is not None else None)
    return m.cross_decoder(h[s:e], qi[s:e] if qi is not None else None, held, s, plan, "list" if plan else "dense", never)


def far_off(a, b):
    """Root of the mean square of a - b over that of a."""
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt())


MOUNT = [f"{family} {way}" for family in ("facts", "keyvalue") for way in ("4x1500", "4x8000")]


class Readings:
    """One row of documents, read jointly and mounted; a forbidden first document as it is and full of NaN."""

    def __init__(self, m, ids, cut):
        self.m, self.ids = m, ids
        self.h = m.self_decoder(ids)
        self.joint, self.qi = m.shared(self.h)
        parts, self.h2, self.q2 = one_by_one(m, ids, cut)
        self.mounted = mh.Rows.join(parts)
        first = parts[0]
        parts[0] = mh.Rows(*(None if x is None else torch.full_like(x, float("nan")) for x in (first.k, first.v, first.ki)))
        self.bad = mh.Rows.join(parts)
        self.never = torch.arange(len(ids)) < cut[1]
        pairs = ((self.joint.k, self.mounted.k), (self.joint.v, self.mounted.v))
        self.apart = {"rows_rms": max(far_off(a, b) for a, b in pairs), "rows_max": max(float((a - b).abs().max()) for a, b in pairs)}

    def differences(self, a, b, plan):
        """One answer a .. b - 1 -> {column: number}, the last token being the line's end"""
        x, y = answer_logits(self.m, self.h, self.qi, self.joint, a, b, plan), answer_logits(self.m, self.h2, self.q2, self.mounted, a, b, plan)
        want, one, two = self.ids[a:b], x.argmax(-1), y.argmax(-1)
        p, q = x.log_softmax(-1), y.log_softmax(-1)
        alone = [answer_logits(self.m, self.h2, self.q2, rows, a, a + 1, plan, self.never) for rows in (self.mounted, self.bad)]
        whole = [bool((t == want)[:-1].all()) for t in (one, two)]
        return {"questions": 1, "tokens": b - a, "joint_whole": whole[0], "mounted_whole": whole[1], "same_whole": whole[0] == whole[1],
                "joint_tokens": (one == want).sum(), "mounted_tokens": (two == want).sum(), "same_argmax": (one == two).sum(), "same_first": one[0] == two[0],
                "same_answer": (one == two)[:-1].all(), "kl": (p.exp() * (p - q)).sum(), "nll_mounted_less_joint": (p - q).gather(1, want[:, None]).sum(),
                "logits_max": (x - y).abs().max(), "logits_mean": (x - y).abs().mean(-1).sum(), "nan_changes": not torch.equal(*alone), **self.apart}


def mount(m, held, sets, plans=(0, 1024), cells=MOUNT):
    """Planted facts over documents encoded one by one against joint prefill, teacher-forced. Documents share a row's length unevenly;
    the questions are a document of their own, encoded alone as well in the mounted reading. Kept by row, columns as COLUMNS."""
    hay, maker, out = prepare.haystack(held.tokens, held.start), tasks.TaskMaker(m.tok, m.c["doc_token"]), {}
    for cell in cells:
        family, n_docs, length = cell.split()[0], *map(int, cell.split()[1].split("x"))
        rng = np.random.RandomState(3 + length)
        for _ in range(sets):
            ids, answers, cut = document_rows(maker, hay, rng, family, n_docs, n_docs * length, 8 if length < 4000 else 24, 6)
            with torch.no_grad():
                r = Readings(m, ids, cut)
                for plan in plans if r.qi is not None else (0,):
                    got = [r.differences(a, b, plan) for a, b, _, _ in answers]
                    per = [(max if c in LARGEST else sum)(float(g[c]) for g in got) for c in COLUMNS]
                    out.setdefault(f"{cell} {'k=%d' % plan if plan else 'dense'}", []).append([round(x, 7) for x in per])
        print("mount", cell, f"{time.time() - T0:.0f} s", flush=True)
    return {"columns": COLUMNS, "rows": out, "summary": {name: mount_summary(np.array(rows)) for name, rows in out.items()}}


COLUMNS = ["questions", "tokens", "joint_whole", "mounted_whole", "same_whole", "joint_tokens", "mounted_tokens", "same_argmax", "same_first", "same_answer", "kl",
           "nll_mounted_less_joint", "logits_mean", "nan_changes", "logits_max", "rows_rms", "rows_max"]
LARGEST = COLUMNS[-3:]


def mount_summary(rows):
    """rows [sets, COLUMNS] -> shares with 95 % bootstrap intervals over sets, means and largest values"""
    col = {c: rows[:, i] for i, c in enumerate(COLUMNS)}
    draw = np.random.RandomState(0).randint(len(rows), size=(2000, len(rows)))

    def share(a, b):
        d = a[draw].sum(1) / b[draw].sum(1)
        return [round(float(x), 6) for x in (a.sum() / b.sum(), np.quantile(d, 0.025), np.quantile(d, 0.975))]
    out = {"sets": len(rows), "questions": int(col["questions"].sum()), "answer_tokens": int(col["tokens"].sum())}
    for name in ("joint_whole", "mounted_whole", "same_whole", "same_first", "same_answer"):
        out[name] = share(col[name], col["questions"])
    out["mounted_less_joint_whole"] = share(col["mounted_whole"] - col["joint_whole"], col["questions"])
    for name in ("joint_tokens", "mounted_tokens", "same_argmax", "kl", "nll_mounted_less_joint", "logits_mean"):
        out[name] = share(col[name], col["tokens"])
    out.update({name: float(col[name].max()) for name in ("logits_max", "rows_max")}, rows_rms=float(col["rows_rms"].mean()), nan_changes=int(col["nan_changes"].sum()))
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--samples", default="samples.md")
    ap.add_argument("--sections", default="samples,mount,stability,far64")
    ap.add_argument("--mount-sets", type=int, default=100, help="rows of six questions a cell")
    ap.add_argument("--mount-cells", default=",".join(MOUNT))
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = ap.parse_args()
    torch.set_default_device(args.device)
    m = mh.load(args.model)
    held = data.Store(args.data, "heldout")
    out = json.load(open(args.out)) if os.path.exists(args.out) else {}
    for s in args.sections.split(","):
        t = time.time()
        if s == "samples":
            samples(m, args.samples)
        elif s == "mount":
            out[s] = mount(m, held, args.mount_sets, cells=args.mount_cells.split(","))
        elif s == "stability":
            out[s] = {f"N={N} k={k}": stability(m, held, N, k) for N, k in ((16384, 1024), (16384, 512))}
        elif s.startswith("far"):
            out[s] = far(m, held, int(s[3:]) * 1024, 2, 11)
        out["torch"], out["device"] = torch.__version__, torch.cuda.get_device_name() if args.device == "cuda" else args.device
        json.dump(out, open(args.out, "w"))
        print(s, f"{time.time() - t:.0f} s", flush=True)


if __name__ == "__main__":
    main()
