#!/usr/bin/env python3
"""What a plan's prefill route costs: tokens that come after a prompt of 6,144 that was read by it.

    prefill_quality.py [--documents N] [--minutes M] [--check] [PLAN...]      (default: tiles)

On the documents of texts.py, SmolLM2, KV f16. Rows of a prompt that share a list have it from each other's
queries, so their own perplexity knows a little of what is to come; that of the 2,047 tokens after the prompt does
not. Two readings of a document under a plan: "prompt" takes the prompt by the prefill route and the rest densely,
"both" the rest by the plan's own decode route. They are set against dense and the window of 512, every row under
the plan ("all"), of the same run. R as in plan_quality.py. Goes on where it was stopped, as a run of its own.
"""
import argparse
import array
import collections
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
from intervals import bootstrap, sums, unexpected, verdict

CSV, SUMMARY = TOP + "/bench/results/prefill-quality.csv", TOP + "/bench/results/prefill-quality.md"
MODEL, PLANS, PARTS = "smollm2", ("tiles",), ("prompt", "both")
FIELDS = ("plan_hash", "text", "doc", "doc_sha256", "plan", "part", "quarter", "host", "run")
MISSED = ("tiles, both, prose, R at least 0.95",)  # bounds that do not hold, as docs/quality.md says


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
                              str(whole.QUARTER), "--prompt", "-1" if part == "all" else str(whole.QUARTER), "--plan", folder + "/plan.json",
                              "--nll", folder + "/nll.f32"], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        nll = array.array("f", open(folder + "/nll.f32", "rb").read())
    return whole.mean(nll[whole.QUARTER + 1:])


def load():
    """Rows of plans as they are now."""
    if not os.path.exists(CSV):
        return []
    with open(CSV) as file:
        return [r for r in csv.DictReader(file) if r["plan_hash"] == plan_hash(r["plan"])]


def fill(options, rows):
    deadline = time.time() + 60 * options.minutes if options.minutes else math.inf
    known = {(r["text"], int(r["doc"]), r["plan"], r["part"]) for r in rows}
    todo = [(t, d) for d in range(options.documents) for t in whole.TEXTS if any((t, d, p, q) not in known for p in options.plans or PLANS for q in PARTS)]
    of_run = whole.this_run()
    with tempfile.TemporaryDirectory() as folder, open(CSV, "a", newline="") as out:
        subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", "--documents", str(options.documents), folder], check=True, stdout=subprocess.DEVNULL)
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for text, doc in todo:
            path = f"{folder}/{text}-{doc}.txt"
            for plan, part in [(p, "all") for p in whole.FIRST] + [(p, q) for p in options.plans or PLANS for q in PARTS]:
                if time.time() > deadline:
                    return
                writer.writerow({"plan_hash": plan_hash(plan), "text": text, "doc": doc, "doc_sha256": whole.sha(path), "plan": plan,
                                 "part": part, "quarter": f"{measure(path, plan, part):.6f}", **of_run})
                out.flush()
                print(text, doc, plan, part, flush=True)


def figures(documents):
    """Percent of perplexity against dense, and R, of (plan, dense, window) losses of documents."""
    own, dense, window = sums(documents)
    return 100 * math.expm1((own - dense) / len(documents)), (window - own) / (window - dense)


def card(rows, plan, part):
    """{text: ((figure, interval) of `figures`, ...)} and documents a text, of the run that has most; None: no rows."""
    runs = collections.Counter(r["run"] for r in rows if (r["plan"], r["part"]) == (plan, part))
    run = max(runs, key=lambda name: (runs[name], name), default=None)
    loss = {(r["text"], r["doc"], r["plan"], r["part"]): float(r["quarter"]) for r in rows if r["run"] == run}
    cells, counts = {}, []
    for text in whole.TEXTS:
        docs = sorted(key[1] for key in loss if (key[0], *key[2:]) == (text, plan, part))
        own = [(loss[text, d, plan, part], *(loss[text, d, p, "all"] for p in whole.FIRST)) for d in docs]
        if not own:
            return None
        cells[text] = tuple(zip(figures(own), bootstrap(own, figures) or [None] * 2))
        counts.append(len(docs))
    return cells, min(counts)


def claims(rows):
    """{what is asked: (what came out, whether it holds)}"""
    made = {}
    for plan in PLANS:
        for part in PARTS:
            cells, n_documents = card(rows, plan, part) or ({}, 0)
            what = f"{plan}, {'the prompt' if part == 'prompt' else 'all'} read by it"
            if n_documents < 3:
                made[f"{plan}, {part}, documents"] = f"{what}: three documents a text and more", verdict(n_documents, None, 3, True)
            for text in cells:
                for which, name, limit, is_least in ((0, "within 1 % of dense", 1, False), (1, "R at least 0.95", 0.95, True)):
                    made[f"{plan}, {part}, {text}, {name}"] = (f"{what}, {text}: {name}: {whole.cell(cells[text], which)}",
                                                              verdict(*cells[text][which], limit, is_least))
    return made


def summarise(rows):
    lines = ["# Prompts read through lists", "", "tests/proofs/prefill_quality.py says what the figures are: tokens after a prompt of 6,144, "
             "SmolLM2-135M Q4_1, against dense of the same run. In brackets the 95 % interval, by bootstrap over the documents of a text.", "",
             "| plan | read by it | perplexity: prose | code | lexicon | R: prose | code | lexicon | documents a text |", "|" + "---|" * 9]
    for plan in sorted({r["plan"] for r in rows} - set(whole.FIRST)):
        for part in PARTS:
            if found := card(rows, plan, part):
                cells = [whole.cell(found[0][t], which) for which in (0, 1) for t in whole.TEXTS]
                lines.append(f"| `{plan}` | {'the prompt' if part == 'prompt' else 'all'} | {' | '.join(cells)} | {found[1]} |")
    runs = {r["run"]: r["host"] for r in rows}
    lines += ["", "Bounds:", ""] + [f"- {said}: {outcome}" for said, outcome in claims(rows).values()]
    return "\n".join(lines + ["", "Runs: " + "; ".join(f"{run} on {runs[run]}" for run in sorted(runs)) + ".", ""])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("plans", nargs="*")
    options = parser.parse_args()
    if not options.check:
        fill(options, load())
    rows = load()
    text = summarise(rows)
    if options.check and (not os.path.exists(SUMMARY) or open(SUMMARY).read() != text):
        print("bench/results/prefill-quality.md is not what prefill-quality.csv gives")
        return 1
    if not options.check:
        with open(SUMMARY, "w") as file:
            file.write(text)
    print(text)
    return unexpected({name: outcome for name, (_, outcome) in claims(rows).items()}, MISSED)


if __name__ == "__main__":
    sys.exit(main())
