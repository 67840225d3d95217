"""Tables with intervals from evaluate.py's results, models paired by seed and by row.

  tables.py FOLDER          FOLDER/eval_<model><seed>_<stage>.json and cover_*.json, as jobs/chains.sh and jobs/cover.sh leave them

Intervals: 95 % bootstrap over rows (or windows), seeds taken together; 2,000 draws, the same for equal counts, so that a table does not
move when another is added.
"""
import glob
import json
import os
import re
import sys

import numpy as np


ROWS = [(n, "dense") for n in ("transformer long", "transformer more", "clsa long", "clsa more", "clsa joint")] + [("clsa joint", "learned")]
# the seeds: what is set beside what, (model, plan)
PAIRS = [(("clsa long", "dense"), ("transformer long", "dense")), (("clsa more", "dense"), ("transformer more", "dense")),
         (("clsa joint", "learned"), ("transformer more", "dense")), (("clsa joint", "learned"), ("clsa more", "dense")), (("clsa joint", "learned"), ("clsa long", "dense")),
         (("clsa more", "dense"), ("clsa long", "dense")), (("clsa joint", "dense"), ("clsa more", "dense"))]
TAIL_PAIRS = [("clsa long", "dense", "transformer long"), ("clsa more", "dense", "transformer more"), ("clsa joint", "learned k=512", "clsa more"), ("clsa joint", "learned k=1024", "clsa more"),
              ("clsa joint", "learned k=2048", "clsa more"), ("clsa joint", "dense", "clsa more"), ("clsa joint", "learned k=1024", "clsa long"), ("clsa more", "dense", "clsa long"),
              ("clsa joint", "learned k=1024", "transformer more")]
ASK_PAIRS = [(("clsa long", "dense"), ("transformer long", "dense")), (("clsa joint", "learned k=1024"), ("transformer more", "dense")),
             (("clsa joint", "learned k=512"), ("clsa joint", "dense")), (("clsa joint", "learned k=1024"), ("clsa joint", "dense")),
             (("clsa joint", "learned k=1024"), ("clsa more", "dense"))]
# the other rows, a seed at a time
SISTER_ROWS = [(f"{n} {stage}", "dense") for n in ("hybrid", "yoco") for stage in ("long", "more")]
SISTERS = [((f"{a} {stage}", "dense"), (f"{b} {stage}", "dense")) for stage in ("long", "more")
           for a, b in (("hybrid", "transformer"), ("yoco", "transformer"), ("clsa", "yoco"), ("clsa", "hybrid"), ("yoco", "hybrid"))]
SISTERS += [(("clsa joint", "learned"), (n, "dense")) for n in ("yoco more", "hybrid more")]
SISTER_TAILS = [(a, plan, b) for (a, plan), (b, _) in SISTERS[:-2]] + [("clsa joint", "learned k=1024", n) for n in ("yoco more", "hybrid more")]
SISTER_ASKS = [(("clsa joint", "learned k=1024"), ("transformer more", "dense")), (("hybrid more", "dense"), ("transformer more", "dense")), (("yoco more", "dense"), ("transformer more", "dense")),
               (("clsa joint", "learned k=1024"), ("hybrid more", "dense")), (("clsa joint", "learned k=1024"), ("yoco more", "dense"))]
# changes of one thing, chains.sh's `wide` and `deep`, and YOCO without resets run again
VARIANT_ROWS = [(f"{n} {stage}", plan) for n in ("wide", "deep", "plain") for stage, plan in (("long", "dense"), ("joint", "learned"))]
VARIANTS = [((f"{a} {stage}", plan), (f"{b} {stage if b == 'clsa' else stage.replace('joint', 'more')}", plan if b == "clsa" else "dense"))
            for stage, plan in (("long", "dense"), ("joint", "learned")) for a in ("wide", "deep") for b in ("transformer", "clsa")]
VARIANTS += [(("plain long", "dense"), (n, "dense")) for n in ("transformer long", "yoco long")]
VARIANT_TAILS = [(a, plan.replace("learned", "learned k=1024"), b) for (a, plan), (b, _) in VARIANTS if b != "clsa joint"]
VARIANT_ASKS = [((a, pa.replace("learned", "learned k=1024")), (b, pb.replace("learned", "learned k=1024"))) for (a, pa), (b, pb) in VARIANTS]
OTHER_TEXT = {2}                    # seeds whose other rows read another build of the corpus than their Transformer and CLSA, see docs/training.md


def load(folder):
    out = {}
    for path in sorted(glob.glob(os.path.join(folder, "eval_*.json"))):
        m = re.fullmatch(r"eval_([a-z]+)(\d)_(\w+)\.json", os.path.basename(path))
        if m and m[1] != "seed":
            out[f"{m[1]} {m[3]}", int(m[2])] = json.load(open(path))
    return out


def draws(n):
    return np.random.RandomState(0).randint(n, size=(2000, n))


def interval(x):
    x = np.asarray(x)
    d = x[draws(len(x))].mean(1)
    return f"{x.mean():+.4f} [{np.quantile(d, 0.025):+.4f}, {np.quantile(d, 0.975):+.4f}]"


def ratio(per, col):
    """per [rows, 5]: share right of column col over answers (exact) or tokens (right), in %, with its half-width."""
    per = np.asarray(per)
    den = {1: 0, 3: 2}[col]
    i = draws(len(per))
    d = per[i, col].sum(1) / per[i, den].sum(1)
    return 100 * per[:, col].sum() / per[:, den].sum(), 100 * (np.quantile(d, 0.975) - np.quantile(d, 0.025)) / 2


def seeds_of(e, name):
    return sorted(s for n, s in e if n == name)


def bits(e, names, pairs):
    packages = ["anarchism", "jargon-text", "git-doc", "libpython3.11-stdlib", "libpython3.11-minimal"]
    print("\nbits per byte\n| model | " + " | ".join(packages) + " | nats a token, all |")
    for n, plan in names:
        for s in seeds_of(e, n):
            p = e[n, s]["bpb"]["packages"]
            print(f"| {n}, {plan}, seed {s} | " + " | ".join(f"{p[f'{q} {plan}']['bpb']:.3f}" for q in packages) + f" | {np.mean(e[n, s]['bpb']['by_row'][plan]):.4f} |")
    print("\ndifference in nats a token, 96 rows of 32K a seed")
    for (a, pa), (b, pb) in pairs:
        d = {s: np.array(e[a, s]["bpb"]["by_row"][pa]) - np.array(e[b, s]["bpb"]["by_row"][pb]) for s in seeds_of(e, a) if (b, s) in e}
        if not d:
            continue
        print(f"| {a} {pa} - {b} {pb} | " + " | ".join(f"seed {s}: {interval(x)}" for s, x in d.items()) + f" | all: {interval(np.concatenate(list(d.values())))} |")


def tails(e, names, pairs):
    print("\nlast quarter of 32K windows: mean loss")
    for n in names:
        for s in seeds_of(e, n):
            t = e[n, s]["tail"]
            print(f"| {n} seed {s} ({len(t['windows'])} windows) | " + " | ".join(f"{p} {np.mean(x):.4f}" for p, x in t["loss"].items()) + " |")
    for a, plan, b in pairs:
        d = {s: np.array(e[a, s]["tail"]["loss"][plan]) - np.array(e[b, s]["tail"]["loss"]["dense"]) for s in seeds_of(e, a) if (b, s) in e}
        if not d:
            continue
        print(f"| {a} {plan} - {b} dense | " + " | ".join(f"seed {s}: {interval(x)}" for s, x in d.items()) + f" | all: {interval(np.concatenate(list(d.values())))} |")


def asks(e, names, pairs):
    print("\nanswer tokens / whole answers right, %, half-width of the interval in brackets")
    for n in names:
        cells = {}
        for s in seeds_of(e, n):
            for key, x in e[n, s].get("asks", {}).items():
                cells.setdefault(key, []).append((s, x))
        for key in sorted(cells, key=lambda k: (k.split()[2:], k.split()[0], int(k.split()[1]))):
            per = np.concatenate([np.array(x["by_row"]) for _, x in cells[key]])
            (t, ht), (w, hw) = ratio(per, 3), ratio(per, 1)
            one = "; ".join(f"seed {s} {100 * x['right']:.1f} / {100 * x['exact']:.1f}" for s, x in cells[key])
            print(f"| {n} | {key} | {int(per[:, 0].sum())} answers | {t:.1f} ({ht:.1f}) / {w:.1f} ({hw:.1f}) | {one} |")
    print("\nwhole answers, paired by row, in points")
    for (a, pa), (b, pb) in pairs:
        for task in ("facts", "facts-held", "keyvalue", "keyvalue-held"):
            for n in (4096, 8192, 32768):
                x, y = [], []
                for s in seeds_of(e, a):
                    u, v = (e.get((m, s), {}).get("asks", {}).get(f"{task} {n} {p}") for m, p in ((a, pa), (b, pb)))
                    if u and v and len(u["by_row"]) == len(v["by_row"]):
                        x.append(np.array(u["by_row"]))
                        y.append(np.array(v["by_row"]))
                if x:
                    x, y = np.concatenate(x), np.concatenate(y)
                    i = draws(len(x))
                    out = []
                    for col, den in ((3, 2), (1, 0)):
                        d = 100 * (x[i, col].sum(1) / x[i, den].sum(1) - y[i, col].sum(1) / y[i, den].sum(1))
                        m = 100 * (x[:, col].sum() / x[:, den].sum() - y[:, col].sum() / y[:, den].sum())
                        out.append(f"{m:+.1f} [{np.quantile(d, 0.025):+.1f}, {np.quantile(d, 0.975):+.1f}]")
                    print(f"| {a} {pa} - {b} {pb} | {task} {n} | tokens {out[0]} | whole {out[1]} |")


def recovery(e):
    for n in ("clsa index", "clsa joint"):
        for s in seeds_of(e, n):
            r = e[n, s].get("recovery_long")
            if not r or "plans" not in r:
                continue
            p = r["plans"]
            w, d = np.array(p["window"]["last"]), np.array(p["dense"]["last"])
            i = draws(len(w))
            print(f"\n{n} seed {s}: {r['rows']} windows, dense {d.mean():.4f}, window {w.mean():.4f}")
            for name, x in p.items():
                y = np.array(x["last"])
                b = (w - y)[i].sum(1) / (w - d)[i].sum(1)
                c = np.mean(x["coverage"]) if x["coverage"] else float("nan")
                g = (sum(p["window"]["gain"]) - sum(x["gain"])) / (sum(p["window"]["gain"]) - sum(p["dense"]["gain"]))
                print(f"| {name} | R {(w - y).sum() / (w - d).sum():.3f} [{np.quantile(b, 0.025):.3f}, {np.quantile(b, 0.975):.3f}] | gain tokens {g:.3f} | coverage {c:.3f} | loss {y.mean():.4f} |")
            k = r["N"] // 16
            cl, co = (np.array(p[f"{q} k={k}"]["coverage"]) for q in ("learned", "oracle"))
            by = {}
            for q, a, b in zip(r["packages"], cl, co):
                by.setdefault(q, []).append((a, b))
            print("learned / oracle coverage at n/16:", ", ".join(f"{q} {100 * np.sum([a for a, _ in v]) / np.sum([b for _, b in v]):.1f} %" for q, v in by.items()), f"all {100 * cl.sum() / co.sum():.1f} %")


def share(a, b):
    """Sum of a over sum of b, in %, with its interval over windows."""
    i = draws(len(a))
    d = 100 * a[i].sum(1) / b[i].sum(1)
    return f"{100 * a.sum() / b.sum():.2f} [{np.quantile(d, 0.025):.2f}, {np.quantile(d, 0.975):.2f}]"


def cover(folder):
    """jobs/cover.sh: learned over oracle coverage by package, and what the new index changes on the same windows and rows."""
    names = [n for n in ("shipped", "kl", "cover") if os.path.exists(os.path.join(folder, f"cover_{n}_wide.json"))]
    r = {n: json.load(open(os.path.join(folder, f"cover_{n}_wide.json")))["recovery_long"] for n in names}
    for k in (512, 1024, 2048, 4096) if names else ():
        print(f"\nindex trained again, {r['shipped']['rows']} windows, k = {k}: learned / oracle coverage in %, R, loss - shipped in nats")
        for n in names:
            p, package = r[n]["plans"], np.array(r[n]["packages"])
            c, o, y, w, d = (np.array(p[q][f]) for q, f in ((f"learned k={k}", "coverage"), (f"oracle k={k}", "coverage"), (f"learned k={k}", "last"), ("window", "last"), ("dense", "last")))
            base = np.array(r["shipped"]["plans"][f"learned k={k}"]["last"])
            print(f"| {n} | " + " | ".join(f"{q} {share(c[package == q], o[package == q])}" for q in dict.fromkeys(package.tolist())) + f" | R {share(w - y, w - d)} % | {interval(y - base)} |")
    loss = {n: json.load(open(p)) for n in names if os.path.exists(p := os.path.join(folder, f"cover_{n}_loss.json"))}
    for n in loss:
        rows = [np.array(loss[m]["bpb"]["by_row"]["learned"]) for m in (n, "shipped")]
        print(f"| {n} | 96 rows, k = 2,048: {rows[0].mean():.4f}, - shipped {interval(rows[0] - rows[1])} |")


def whole(e, rows, pairs, tail_pairs, ask_pairs, recovered=False):
    names = list(dict.fromkeys(n for n, _ in rows))
    bits(e, rows, pairs)
    tails(e, names, tail_pairs)
    if recovered:
        recovery(e)
    asks(e, names, ask_pairs)


if __name__ == "__main__":
    results = load(sys.argv[1])
    whole(results, ROWS, PAIRS, TAIL_PAIRS, ASK_PAIRS, True)
    for seed in sorted({s for n, s in results if n.startswith(("hybrid", "yoco"))}):
        print(f"\nother rows of seed {seed}" + (" (trained on another build of the corpus: text and architecture both differ)" if seed in OTHER_TEXT else ", trained on the text of its Transformer and CLSA"))
        whole({k: x for k, x in results.items() if k[1] == seed}, SISTER_ROWS, SISTERS, SISTER_TAILS, SISTER_ASKS)
    for seed in sorted({s for n, s in results if n.startswith(("wide", "deep", "plain"))}):
        print(f"\nvariants of seed {seed}")
        whole({k: x for k, x in results.items() if k[1] == seed}, VARIANT_ROWS, VARIANTS, VARIANT_TAILS, VARIANT_ASKS)
    cover(sys.argv[1])
