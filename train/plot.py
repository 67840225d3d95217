"""Draws what the runs wrote: loss curves, recovery, coverage, planted facts by depth.

  plot.py --logs DIR (with STAGE/log.csv or RUN_STAGE/log.csv) --eval NAME=eval.json ... --out DIR
"""
import argparse
import csv
import glob
import json
import os

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def curve(path):
    rows = list(csv.DictReader(open(path)))
    return {k: np.array([float(r[k]) if k != "stage" else 0 for r in rows]) for k in rows[0]} if rows else None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--logs", required=True)
    ap.add_argument("--eval", action="append", default=[])
    ap.add_argument("--out", required=True)
    ap.add_argument("--smooth", type=int, default=1, help="logged rows averaged in the loss curves")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    titles = {"short": "dense, 4K", "long": "dense, 32K", "index": "index only, 32K", "joint": "sparse, 32K", "more": "dense again, 32K"}
    runs = sorted(os.path.basename(os.path.dirname(p)) for p in glob.glob(os.path.join(args.logs, "*", "log.csv")))
    stages = [s for s in titles if any(r.split("_")[-1] == s for r in runs)]
    fig, ax = plt.subplots(1, max(1, len(stages)), figsize=(4.2 * max(1, len(stages)), 3.4), squeeze=False)
    for a, s in zip(ax[0], stages):
        for r in runs:
            if r.split("_")[-1] != s:
                continue
            c = curve(os.path.join(args.logs, r, "log.csv"))
            y = c["kl" if s == "index" else "lm"]
            n = args.smooth if len(y) > 4 * args.smooth else 1
            a.plot(np.convolve(c["tokens"], np.ones(n) / n, "valid") / 1e6, np.convolve(y, np.ones(n) / n, "valid"), lw=1, label=r[:-len(s) - 1])
        a.set_title(titles[s])
        a.set_xlabel("million tokens")
        a.set_ylabel("KL to mean attention, nats" if s == "index" else "training loss, nats a token")
        a.grid(alpha=0.3)
        if any("_" in r for r in runs):
            a.legend()
        if s == "short" and args.smooth > 1:
            a.set_ylim(1.6, 2.6)
    fig.tight_layout()
    fig.savefig(os.path.join(args.out, "loss.png"), dpi=110)
    for spec in args.eval:
        name, path = spec.split("=")
        e = json.load(open(path))
        for part in ("recovery_long", "recovery_mid"):
            if part not in e or "plans" not in e[part]:
                continue
            p, n = e[part]["plans"], e[part]["N"]
            lw, ld = np.mean(p["window"]["last"]), np.mean(p["dense"]["last"])
            fig, ax = plt.subplots(figsize=(5, 3.6))
            for plan in ("oracle", "learned", "recency", "random"):
                ks = sorted(int(k.split("k=")[1]) for k in p if k.startswith(plan + " k="))
                if ks:
                    ax.plot([n / k for k in ks], [(lw - np.mean(p[f"{plan} k={k}"]["last"])) / (lw - ld) for k in ks], marker="o", label=plan)
            ax.axhline(0.95, color="grey", lw=0.8, ls="--")
            ax.set_xlabel(f"context / keys read, {n} tokens")
            ax.set_xscale("log", base=2)
            ax.set_ylabel("long-range recovery R")
            ax.legend()
            ax.grid(alpha=0.3)
            fig.tight_layout()
            fig.savefig(os.path.join(args.out, f"{part}_{name}.png"), dpi=110)
        needles = e.get("needles")
        if isinstance(needles, list):
            fig, ax = plt.subplots(1, len(needles), figsize=(4.2 * len(needles), 3.4), sharey=True, squeeze=False)
            for a, d in zip(ax[0], needles):
                for plan in ("dense", "window", "learned k=512", "learned k=2048"):
                    x = d["tasks"].get(f"facts {plan}")
                    if x:
                        a.plot(range(5), [100 * r / max(1, n) for r, n in x["depth"]], marker="o", label=plan)
                a.set_title(f"planted facts, {d['N']} tokens")
                a.set_xticks(range(5), ["start", "", "middle", "", "end"])
                a.grid(alpha=0.3)
            ax[0][0].set_ylabel("answers exactly right, %")
            ax[0][0].legend()
            fig.tight_layout()
            fig.savefig(os.path.join(args.out, f"facts_{name}.png"), dpi=110)


if __name__ == "__main__":
    main()
