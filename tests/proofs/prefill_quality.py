#!/usr/bin/env python3
"""What a plan's prefill route costs: tokens that come after a prompt of 6,144 that was read by it.

    prefill_quality.py [--minutes M] [--check] [PLAN...]      (default: tiles)

On the nine documents of texts.py, SmolLM2, KV f16. Rows of a prompt that share a list have it from each other's
queries, so their own perplexity knows a little of what is to come; that of the 2,047 tokens after the prompt does
not. Two readings of a document under a plan: "prompt" takes the prompt by the prefill route and the rest densely,
"both" the rest by the plan's own decode route. Beside dense and the window of 512 over the same tokens, from
plan-quality.csv, where all rows are under the plan. R as there. Goes on where it was stopped.
"""
import argparse
import array
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time

import plan_quality as whole
from behaviour import TOP, heddle, model_path, plan_hash

CSV, SUMMARY = TOP + "/bench/results/prefill-quality.csv", TOP + "/bench/results/prefill-quality.md"
MODEL, PLANS, PARTS = "smollm2", ("tiles",), ("prompt", "both")
FIELDS = ("plan_hash", "text", "doc", "doc_sha256", "plan", "part", "quarter")


def measure(path, plan, part):
    """Mean loss of the tokens after the prompt."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{TOP}/plans/{plan}.json") as file:
            document = json.load(file)
        for variant in document["variants"] if part == "prompt" else ():
            variant["decode"] = []
        with open(folder + "/plan.json", "w") as file:
            json.dump(document, file)
        out = subprocess.run([heddle(), "perplexity", "-m", model_path(MODEL), "-f", path, "-c", str(whole.N), "--chunks", "1", "--from",
                              str(whole.QUARTER), "--prompt", str(whole.QUARTER), "--plan", folder + "/plan.json", "--nll",
                              folder + "/nll.f32"], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        nll = array.array("f", open(folder + "/nll.f32", "rb").read())
    return whole.mean(nll[whole.QUARTER + 1:])


def load():
    if not os.path.exists(CSV):
        return {}
    with open(CSV) as file:
        return {(r["plan_hash"], r["text"], int(r["doc"]), r["plan"], r["part"]): r for r in csv.DictReader(file)}


def fill(options, rows):
    deadline = time.time() + 60 * options.minutes if options.minutes else math.inf
    with tempfile.TemporaryDirectory() as folder, open(CSV, "a", newline="") as out:
        subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", folder], check=True, stdout=subprocess.DEVNULL)
        writer = csv.DictWriter(out, FIELDS)
        if not rows:
            writer.writeheader()
        for doc in range(3):
            for text in whole.TEXTS:
                for plan, part in ((p, q) for p in options.plans or PLANS for q in PARTS):
                    key = plan_hash(plan), text, doc, plan, part
                    if key in rows or time.time() > deadline:
                        continue
                    path = f"{folder}/{text}-{doc}.txt"
                    writer.writerow({"plan_hash": key[0], "text": text, "doc": doc, "doc_sha256": whole.sha(path), "plan": plan,
                                     "part": part, "quarter": f"{measure(path, plan, part):.6f}"})
                    out.flush()
                    print(*key[1:], flush=True)


def summarise(rows):
    lines = ["# Prompts read through lists", "", "tests/proofs/prefill_quality.py says what the figures are: tokens after a prompt of 6,144, "
             "SmolLM2-135M Q4_1, against dense.", "", "| plan | read by it | perplexity, prose / code / lexicon | R | documents a text |",
             "|---|---|---|---|---|"]
    base, bad = whole.load(), []
    for plan in sorted({key[3] for key in rows}):
        for part in PARTS:
            cells, counts = [], []
            for text in whole.TEXTS:
                docs = [d for d in range(3) if (plan_hash(plan), text, d, plan, part) in rows]
                if not docs:
                    break
                own = whole.mean(float(rows[plan_hash(plan), text, d, plan, part]["quarter"]) for d in docs)
                dense, window = (whole.mean(float(base[plan_hash(p), MODEL, text, d, p][-1]["quarter"]) for d in docs) for p in whole.FIRST)
                cells.append((100 * (math.exp(own - dense) - 1), (window - own) / (window - dense)))
                counts.append(len(docs))
            else:
                lines.append(f"| `{plan}` | {'the prompt' if part == 'prompt' else 'all'} | {' / '.join(f'{c[0]:+.2f} %' for c in cells)} | "
                             f"{' / '.join(f'{c[1]:.3f}' for c in cells)} | {min(counts)} |")
                if plan in PLANS and (min(counts) < 3 or max(c[0] for c in cells) > 1 or min(c[1] for c in cells) < 0.95):
                    bad.append(f"{plan}, {part}")
    held = f"DOES NOT HOLD for {'; '.join(bad)}" if bad else "holds"
    return "\n".join(lines + ["", f"Within 1 % of dense and R at least 0.95 on each text, three documents each: {held}.", ""])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("plans", nargs="*")
    options = parser.parse_args()
    if not options.check:
        fill(options, load())
    rows = {key: row for key, row in load().items() if key[0] == plan_hash(key[3])}
    text = summarise(rows)
    if options.check and (not os.path.exists(SUMMARY) or open(SUMMARY).read() != text):
        print("bench/results/prefill-quality.md is not what prefill-quality.csv gives")
        return 1
    if not options.check:
        with open(SUMMARY, "w") as file:
            file.write(text)
    print(text)
    return 1 if not rows or "DOES NOT HOLD" in text else 0


if __name__ == "__main__":
    sys.exit(main())
