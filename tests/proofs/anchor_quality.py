#!/usr/bin/env python3
"""What `anchor` costs: perplexity past position 2,048 of nine 8K documents, against dense.

    anchor_quality.py [--check]

Every row of every document is under the plan (`heddle perplexity` says so). Controls of the same
shape or share stand beside it: a window of 2,048, random lists, each layer's own list (oracle), and
the curve of k. Results go to bench/results/anchor-quality.csv, a row a run, so that it goes on where
it was stopped; the summary with its bounds is bench/results/anchor-quality.md. A row names the plan file
that it is of, and behaviour.csv what the program did with it then. --check: reads what is committed and
measures the behaviour again.
"""
import csv
import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile

from behaviour import MODELS, TOP, plan_hash, record, stale

CSV = TOP + "/bench/results/anchor-quality.csv"
SUMMARY = TOP + "/bench/results/anchor-quality.md"
TEXTS = ("prose", "code", "lexicon")
ALL = ("dense", "anchor")
FIRST = ("window", "anchor:top_k=16", "random", "oracle", "anchor:top_k=128", "anchor:top_k=256", "anchor:top_k=512",
         "anchor:top_k=2048")
FIELDS = ("version", "model", "text", "doc", "doc_sha256", "plan", "perplexity", "scored", "share_read")


def jobs():
    for doc in range(3):
        for model in MODELS:
            for text in TEXTS:
                for plan in ALL:
                    yield model, text, doc, plan
    for plan in FIRST:
        for model in MODELS:
            for text in TEXTS:
                yield model, text, 0, plan


def load():
    rows = {}
    if os.path.exists(CSV):
        for row in csv.DictReader(line for line in open(CSV) if not line.startswith("#")):
            rows[row["version"], row["model"], row["text"], int(row["doc"]), row["plan"]] = row
    return rows


def run(model, path, plan):
    heddle = os.environ.get("HEDDLE", TOP + "/build/heddle")
    folder = os.environ.get("HEDDLE_TEST_MODELS", os.path.expanduser("~/.cache/heddle"))
    out = subprocess.run([heddle, "perplexity", "-m", f"{folder}/{MODELS[model]}", "-f", path, "-c", "8192", "--chunks", "1",
                          "--from", "2048", "--plan", plan], check=True, capture_output=True, text=True)
    perplexity = re.search(r"^perplexity: (\S+)$", out.stdout, re.M).group(1)
    scored = re.search(r"([\d,]+) tokens scored", out.stderr).group(1).replace(",", "")
    share = re.search(r"reads ([\d.]+) %", out.stderr).group(1)
    return perplexity, scored, share


def geometric(rows, model, text, plan, docs):
    values = [float(rows[plan_hash(plan), model, text, d, plan]["perplexity"]) for d in docs]
    return math.exp(sum(map(math.log, values)) / len(values))


def summarise(rows):
    lines = ["# What `anchor` costs in perplexity", "", f"Plan file {plan_hash('anchor')}; behaviour: behaviour.csv. KV f16. Perplexity at 8,192 "
             "tokens, positions past 2,048, relative to dense; every row of the text under the plan.", "",
             "| model | plan | prose | code | lexicon | K, V bytes read | documents a text |", "|---|---|---|---|---|---|---|"]
    held, cost = True, {}
    for model in MODELS:
        for plan in ALL[1:] + FIRST:
            docs = range(3) if plan in ALL else range(1)
            if not all((plan_hash(p), model, t, d, p) in rows for t in TEXTS for d in docs for p in (plan, "dense")):
                continue
            for t in TEXTS:
                cost[model, plan, t] = geometric(rows, model, t, plan, docs) / geometric(rows, model, t, "dense", docs) - 1
            share = rows[plan_hash(plan), model, "prose", 0, plan]["share_read"]
            lines.append(f"| {MODELS[model]} | `{plan}` | " + " | ".join(f"{100 * cost[model, plan, t]:+.2f} %" for t in TEXTS)
                         + f" | {share} % | {len(docs)} |")
    lines += ["", "Bounds:", ""]
    for model, limit in (("smollm2", 40.0), ("gemma3", None)):
        for claim, is_met in claims(rows, cost, model, limit):
            lines.append(f"- {model}: {claim}: {'holds' if is_met else 'DOES NOT HOLD'}")
            held &= is_met
    return "\n".join(lines) + "\n", held


def claims(rows, cost, model, limit):
    if any((model, "anchor", t) not in cost for t in TEXTS):
        yield "anchor was measured on nine documents", False
        return
    worst = max(cost[model, "anchor", t] for t in TEXTS)
    yield f"anchor within 1 % of dense on each text (worst {100 * worst:+.2f} %)", worst <= 0.01
    if limit:
        share = float(rows[plan_hash("anchor"), model, "prose", 0, "anchor"]["share_read"])
        yield f"anchor reads at most {limit:.0f} % ({share:.2f} %)", share <= limit
    small = [cost[model, "anchor:top_k=16", t] for t in TEXTS if (model, "anchor:top_k=16", t) in cost]
    if small:
        yield f"k = 16 is at least 2 % worse than dense (least {100 * min(small):+.2f} %): the plan is in force", min(small) >= 0.02


def main():
    rows = load()
    if "--check" not in sys.argv:
        host = subprocess.run(["git", "-C", TOP, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        os.makedirs(os.path.dirname(CSV), exist_ok=True)
        is_new = not os.path.exists(CSV)
        with tempfile.TemporaryDirectory() as folder, open(CSV, "a", newline="") as out:
            subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", folder], check=True, stdout=subprocess.DEVNULL)
            writer = csv.DictWriter(out, FIELDS)
            if is_new:
                writer.writeheader()
            out.write(f"# commit {host}, {os.cpu_count()} processors\n")
            for model, text, doc, plan in jobs():
                if (plan_hash(plan), model, text, doc, plan) in rows:
                    continue
                path = f"{folder}/{text}-{doc}.txt"
                perplexity, scored, share = run(model, path, plan)
                row = dict(zip(FIELDS, (plan_hash(plan), model, text, doc, hashlib.sha256(open(path, "rb").read()).hexdigest()[:16], plan,
                                        perplexity, scored, share)))
                writer.writerow(row)
                out.flush()
                rows[plan_hash(plan), model, text, doc, plan] = {k: str(v) for k, v in row.items()}
                print(f"{model} {text} {doc} {plan}: {perplexity} ({share} % read)", flush=True)
    if "--check" in sys.argv:
        for why in filter(None, (stale(model, plan) for model in MODELS for plan in ALL)):
            print("stale:", why)
            return 1
    else:
        for model in MODELS:
            for plan in sorted({plan.split(":")[0] for plan in ALL + FIRST}):
                record(model, plan)
    text, held = summarise(rows)
    if "--check" not in sys.argv:
        open(SUMMARY, "w").write(text)
    elif not os.path.exists(SUMMARY) or open(SUMMARY).read() != text:
        print("bench/results/anchor-quality.md is not what bench/results/anchor-quality.csv gives")
        return 1
    print(text)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
