#!/usr/bin/env python3
"""How many of dense's greedy tokens a plan would have written: 256 after each 8K document, SmolLM2.

    agreement.py [--documents N] [--jobs N] [--texts DIR] [--check]

`heddle eval --tasks agreement` on documents of texts.py (up to nine a text, KV f16): dense writes, and each plan, in its
decode route over the same rows, says which token it would have written. Dense read in the same way shows what rounding
alone does. Rows go to bench/results/agreement-smollm2.jsonl; the run goes on where it was stopped. It has no bound.
--check: whether the page is what the rows give, of the plans as they are now.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile

from behaviour import TOP, eval_hash, heddle, model_path
from intervals import bootstrap, sums
from shards import share

MODEL, ROWS, PAGE = "smollm2", TOP + "/bench/results/agreement-smollm2.jsonl", TOP + "/bench/results/agreement.md"
TEXTS = ("prose", "code", "lexicon")
PLANS = ("layered4", "keys4", "keys4_complement", "union4", "indexcache", "anchor", "pqkeys", "budgets4", "delta:sinks=4", "oracle", "random", "window")


def run(options, folder):
    def one(item, out):
        subprocess.run([heddle(), "eval", "-m", model_path(MODEL), "-c", "8192", "-t", str(max(1, (os.cpu_count() or 1) // options.jobs)), "--plans",
                        ";".join(PLANS) + ";", "--tasks", "agreement", "--documents", "1", "--out", out, f"--text={folder}/{item}.txt"],
                       check=True, stdout=subprocess.DEVNULL)
    share(ROWS, [f"{TOP}/build/agreement-{job}.jsonl" for job in range(options.jobs)],
          [f"{text}-{document}" for document in range(options.documents) for text in TEXTS], one)


def load():
    """{plan: {text: [(same, tokens) of a document]}}, and the plans whose rows are of another plan than there is now."""
    found, stale = collections.defaultdict(lambda: collections.defaultdict(list)), set()
    if os.path.exists(ROWS):
        for row in map(json.loads, open(ROWS)):
            if row["plan_hash"] != eval_hash(row["plan"]):
                stale.add(row["plan"])
            found[row["plan"]][row["source"].split("-")[0]].append((row["same"], row["tokens"]))
    return found, sorted(stale)


def percent(documents):
    same, tokens = sums(documents)
    return (100 * same / tokens,)


def cell(documents):
    (value,), interval = percent(documents), bootstrap(documents, percent)
    return f"{value:.1f}" + (f" ({interval[0][0]:.1f} .. {interval[0][1]:.1f})" if interval else "")


def summarise(found):
    lines = ["# Agreement with dense, SmolLM2 at 8K", "", "tests/proofs/agreement.py says how: of 255 greedy tokens of dense after a document, those that the plan "
             "would have written, in %; in brackets the 95 % interval, by bootstrap over documents (intervals.py).", "",
             "| plan | prose | code | lexicon | all | documents |", "|---|---|---|---|---|---|"]
    whole = {plan: [d for some in texts.values() for d in some] for plan, texts in found.items()}
    for plan in sorted(found, key=lambda plan: (-percent(whole[plan])[0], plan)):
        cells = [cell(found[plan][text]) for text in TEXTS] + [cell(whole[plan])]
        lines.append(f"| `{plan}` | {' | '.join(cells)} | {len(whole[plan])} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--texts", help="a folder that texts.py filled, where it cannot run (no network)")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not options.check:
        with tempfile.TemporaryDirectory() as folder:
            if not options.texts:
                subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", "--documents", str(options.documents), folder], check=True,
                               stdout=subprocess.DEVNULL)
            run(options, options.texts or folder)
    found, stale = load()
    text = summarise(found)
    if options.check:
        if stale or not os.path.exists(PAGE) or open(PAGE).read() != text:
            print(f"bench/results/agreement.md is not what its rows give, or they are of other plans than there are now: {', '.join(stale) or 'none'}")
            return 1
    else:
        with open(PAGE, "w") as out:
            out.write(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
