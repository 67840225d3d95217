#!/usr/bin/env python3
"""The quality card of every plan: perplexity and long-range recovery on 8K documents of three texts.

    plan_quality.py [--jobs N] [--texts FOLDER] [--results FOLDER] [--minutes M] [--documents D] [--check] [PLAN...]

Every row of a document is under the plan (its decode route). Rows of 8,192 tokens; figures:
  perplexity   past position 2,048, relative to dense, in percent
  R            (L_window - L_plan) / (L_window - L_dense) on the last quarter; window: 512 recent tokens + 4
  R gain       the same on those tokens of it where dense gains more than 0.5 nat over the window
  read         bytes of K, V and summaries over dense's, rows 2,048..8,191
Controls of equal budget stand among the plans: oracle, random, window. A row of plan-quality.csv is one document
under one plan; it names the plan file (behaviour.py says why) and the run goes on where it was stopped.

A run measures dense and window512 of every document that it measures a plan on, and writes its name and the host's
processor into each row: a plan is set against rows of its own run alone. Rows without them are older: the comments
above them say whose they are.
"""
import argparse
import array
import collections
import concurrent.futures
import csv
import hashlib
import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time

from behaviour import MODELS, TOP, heddle, model_path, plan_hash, record, stale

RESULTS = TOP + "/bench/results"
TEXTS = ("prose", "code", "lexicon")
N, FROM, QUARTER, GAIN = 8192, 2048, 6144, 0.5
FIRST = ("dense", "window512")
PROVED = "layered4"  # the plan whose bounds are claimed
FIELDS = ("plan_hash", "model", "text", "doc", "doc_sha256", "plan", "nll", "quarter", "gain", "n_gain", "share", "host", "run")


def processor():
    """What /proc/cpuinfo calls the first processor, and how many there are."""
    with open("/proc/cpuinfo") as file:
        found = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", file.read().split("\n\n")[0], re.M))
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return "; ".join([found.get("model name", "no name"), *numbers, f"{os.cpu_count()} CPUs"])


def score(model, path, plan):
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        out = subprocess.run([heddle(), "perplexity", "-m", model_path(model), "-f", path, "-c", str(N), "--chunks", "1", "--from",
                              str(FROM), "--plan", plan, "--nll", file.name], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        nll = array.array("f", open(file.name, "rb").read())
    return nll, re.search(r"reads ([\d.]+) %", out.stderr).group(1)


def sha(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]


class Documents:
    """Scores of the two measures of a document, which every plan's row needs; kept while this runs."""

    def __init__(self, folder):
        self.folder, self.kept = folder, {}
        self.of_run = {"host": processor(), "run": time.strftime("%Y-%m-%dT%H:%M:%SZ-", time.gmtime()) + secrets.token_hex(3)}

    def path(self, text, doc):
        return f"{self.folder}/{text}-{doc}.txt"

    def base(self, model, text, doc):
        key = model, text, doc
        if key not in self.kept:
            self.kept[key] = tuple(score(model, self.path(text, doc), plan) for plan in FIRST)
        return self.kept[key]

    def row(self, model, text, doc, plan):
        base = self.base(model, text, doc)
        nll, share = base[FIRST.index(plan)] if plan in FIRST else score(model, self.path(text, doc), plan)
        (dense, _), (window, _) = base
        gains = [i for i in range(QUARTER + 1, N) if window[i] - dense[i] > GAIN]
        return {"plan_hash": plan_hash(plan), "model": model, "text": text, "doc": doc,
                "doc_sha256": sha(self.path(text, doc)), "plan": plan,
                "nll": f"{sum(nll[FROM + 1:]) / (N - FROM - 1):.6f}", "quarter": f"{sum(nll[QUARTER + 1:]) / (N - QUARTER - 1):.6f}",
                "gain": f"{sum(nll[i] for i in gains) / max(len(gains), 1):.6f}", "n_gain": len(gains), "share": share, **self.of_run}


def load(folder=RESULTS):
    """{(plan hash, model, text, document, plan): its rows, one a run, the newest first}"""
    rows = collections.defaultdict(list)
    if os.path.exists(folder + "/plan-quality.csv"):
        with open(folder + "/plan-quality.csv") as file:
            for r in csv.DictReader((line for line in file if not line.startswith("#")), restval=""):
                rows[r["plan_hash"], r["model"], r["text"], int(r["doc"]), r["plan"]].insert(0, r)
    return dict(rows)


def of_one_run(rows, model, text, doc, plan):
    """Rows of dense, window512 and the plan on a document, of the plan's newest run; None: it has no row. A row whose
    run has no dense or window512 is refused: another run's, of another host perhaps, are not what it is set against."""
    own = rows.get((plan_hash(plan), model, text, doc, plan))
    if not own:
        return None
    found = {plan: own[0]}
    for base in FIRST:
        same = [r for r in rows.get((plan_hash(base), model, text, doc, base), ()) if all(r[f] == own[0][f] for f in ("run", "host", "doc_sha256"))]
        if not same:
            raise ValueError(f"{plan} on {model}, {text} {doc}: its run ({own[0]['run'] or 'older'}, {own[0]['host'] or 'no host'}) has no row of {base}; "
                             "measure the plan again")
        found[base] = same[0]
    return found


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def card(rows, model, plan, of=range(3)):
    """Figures of a plan, {text: (percent, R, R gain)}, its share and the number of documents (among `of`) a text; None: no row yet."""
    cells, n_docs, share = {}, [], None
    for text in TEXTS:
        docs = [found for d in of if (found := of_one_run(rows, model, text, d, plan))]
        if not docs:
            return None
        at = {p: [found[p] for found in docs] for p in FIRST + (plan,)}
        value = {p: {f: mean(float(r[f]) for r in at[p]) for f in ("nll", "quarter", "gain")} for p in at}
        dense, window, own = (value[p] for p in FIRST + (plan,))
        recovery = [(window[f] - own[f]) / (window[f] - dense[f]) for f in ("quarter", "gain")]
        cells[text] = (100 * (math.exp(own["nll"] - dense["nll"]) - 1), *recovery)
        n_docs.append(len(docs))
        share = at[plan][0]["share"]
    return cells, share, min(n_docs)


def summarise(rows):
    lines = ["# Quality cards of the plans", "", "tests/proofs/plan_quality.py says what the figures are; KV f16, every row of the text under the "
             "plan's decode route. Sorted by bytes read. A plan is set against dense and window512 of its own run; rows that name no run are older "
             "than this rule, and those they are set against were measured on the hosts that plan-quality.csv names, not always on theirs.", ""]
    plans = sorted({key[4] for key in rows})
    for model, file in MODELS.items():
        found = [(float(c[1]), plan, c) for plan in plans if (c := card(rows, model, plan))]
        if not found:
            continue
        lines += [f"## {file}", "", "| plan | read | perplexity, prose / code / lexicon | R | R on gain tokens | documents a text |",
                  "|---|---|---|---|---|---|"]
        for share, plan, (cells, _, n_docs) in sorted(found):
            column = [" / ".join(form.format(cells[t][i]) for t in TEXTS) for i, form in enumerate(("{:+.2f} %", "{:.3f}", "{:.3f}"))]
            lines.append(f"| `{plan}` | {share:.1f} % | {column[0]} | {column[1]} | {column[2]} | {n_docs} |")
        lines.append("")
    unseen = card(rows, "smollm2", PROVED, range(2))
    if unseen:
        column = [" / ".join(form.format(unseen[0][t][i]) for t in TEXTS) for i, form in enumerate(("{:+.2f} %", "{:.3f}"))]
        lines += [f"The layers of `{PROVED}` on SmolLM2 were found on document 2 of each text; on documents 0 and 1 alone: {column[0]}, R {column[1]}.", ""]
    lines += ["Bounds:", ""]
    for claim, is_met in claims(rows):
        lines.append(f"- {claim}: {'holds' if is_met else 'DOES NOT HOLD'}")
    return "\n".join(lines) + "\n"


def claims(rows):
    """What is asked of the best plan on SmolLM2, on nine documents."""
    found = card(rows, "smollm2", PROVED)
    if not found or found[2] < 3:
        yield f"{PROVED} was measured on nine documents", False
        return
    cells, share, _ = found
    worst, recovery = max(c[0] for c in cells.values()), min(c[1] for c in cells.values())
    yield f"{PROVED} is within 1 % of dense on each text (worst {worst:+.2f} %)", worst <= 1
    yield f"its long-range recovery R is at least 0.95 on each text (least {recovery:.3f})", recovery >= 0.95
    yield f"it reads at most 30 % at 8K ({float(share):.1f} %)", float(share) <= 30


def measure(options, rows):
    deadline = time.time() + 60 * options.minutes if options.minutes else math.inf
    with tempfile.TemporaryDirectory() as made:
        folder = options.texts or made
        if not options.texts:
            subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", folder], check=True, stdout=subprocess.DEVNULL)
        documents = Documents(folder)
        plans = tuple(options.plans) or tuple(sorted(f[:-5] for f in os.listdir(TOP + "/plans")))
        todo = [(m, t, d, p) for d in range(options.documents) for m in options.models.split(",") for t in TEXTS
                for p in plans if (plan_hash(p), m, t, d, p) not in rows]
        keys = sorted({job[:3] for job in todo})
        todo = [(*key, p) for key in keys for p in FIRST] + [job for job in todo if job[3] not in FIRST]
        table = options.results + "/plan-quality.csv"
        is_new = not os.path.exists(table)
        with open(table, "a", newline="") as out, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            list(pool.map(lambda key: documents.base(*key) if time.time() < deadline else None, keys))

            def one(job):
                if time.time() > deadline:
                    return None
                try:
                    return documents.row(*job)
                except RuntimeError as why:
                    print(f"{job[3]} on {job[0]}: {why}", flush=True)
                    return None

            for row in filter(None, pool.map(one, todo)):
                writer.writerow(row)
                out.flush()
                print(row["model"], row["text"], row["doc"], row["plan"], row["nll"], row["share"], flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--texts")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--results", default=RESULTS, help="the folder of plan-quality.csv and plan-quality.md")
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-behaviour", action="store_true", help="of a run whose rows are merged elsewhere")
    parser.add_argument("plans", nargs="*")
    options = parser.parse_args()
    if not options.check:
        measure(options, load(options.results))
    rows, summary = load(options.results), options.results + "/plan-quality.md"
    present = {key: row for key, row in rows.items() if key[0] == plan_hash(key[4])} if rows else {}
    names = sorted({(key[1], key[4].split(":")[0]) for key in present})
    try:
        text = summarise(present)
    except ValueError as why:
        print("refused:", why)
        return 1
    if options.check:
        for why in filter(None, (stale(model, name) for model, name in names if name in ("dense", PROVED))):
            print("stale:", why)
            return 1
        if not os.path.exists(summary) or open(summary).read() != text:
            print(f"{summary} is not what plan-quality.csv beside it gives")
            return 1
    else:
        if not options.no_behaviour:
            for model, name in names:
                if name in ("dense", PROVED):
                    record(model, name)
        open(summary, "w").write(text)
    print(text)
    return 1 if "DOES NOT HOLD" in text else 0


if __name__ == "__main__":
    sys.exit(main())
