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
processor into each row: a plan is set against rows of its own run alone, and its line of the table is made of the one
run that has most of its documents. --documents: up to nine a text.
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
from intervals import bootstrap, sums, unexpected, verdict
from texts import STARTS

RESULTS = TOP + "/bench/results"
TEXTS = ("prose", "code", "lexicon")
N, FROM, QUARTER, GAIN = 8192, 2048, 6144, 0.5
FIRST = ("dense", "window512")
PROVED = "layered_pq"  # the plan whose bounds are claimed
CITED = ("dense", PROVED, "layered4")  # whose speeds README has: that they behave as they did is checked
FITTED = {PROVED: "layers and numbers of tokens", "layered4": "layers", "budgets4": "budgets", "budgets_pq": "budgets"}  # what was found, of plans on SmolLM2, on document FITTED_ON of each text
FITTED_ON = 2
ONE_LIST = ("layered4", "anchor", "anchor:top_k=2048")  # plans that share one list among Gemma's three global layers
LEAST_DOCUMENTS = 5  # a text, for what is claimed
LIMITS = ((0, 1, False), (1, 0.95, True))  # which of `figures`, and what it may not exceed or (True) not fall below
CONTROLS = ("dense", "oracle", "random", "window", "window512")
MISSED = ("Gemma R, layered4, prose", "Gemma R, layered4, code", "Gemma R, layered4, lexicon", "Gemma R, anchor, prose")  # bounds that do not hold, as docs/quality.md says
FIELDS = ("plan_hash", "model", "text", "doc", "doc_sha256", "plan", "nll", "quarter", "gain", "n_gain", "share", "host", "run")


def processor():
    """What /proc/cpuinfo calls the first processor, and how many there are."""
    with open("/proc/cpuinfo") as file:
        found = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", file.read().split("\n\n")[0], re.M))
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return "; ".join([found.get("model name", "no name"), *numbers, f"{os.cpu_count()} CPUs"])


def this_run():
    """The members of a row that say where and when it was made."""
    return {"host": processor(), "run": time.strftime("%Y-%m-%dT%H:%M:%SZ-", time.gmtime()) + secrets.token_hex(3)}


def score(model, path, plan, threads):
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        out = subprocess.run([heddle(), "perplexity", "-m", model_path(model), "-f", path, "-c", str(N), "--chunks", "1", "--from",
                              str(FROM), "--plan", plan, "--nll", file.name, "-t", str(threads)], capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(out.stderr.strip().splitlines()[-1])
        nll = array.array("f", open(file.name, "rb").read())
    return nll, re.search(r"reads ([\d.]+) %", out.stderr).group(1)


def sha(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]


class Documents:
    """Scores of the two measures of a document, which every plan's row needs; kept while this runs."""

    def __init__(self, folder, threads):
        self.folder, self.threads, self.kept = folder, threads, {}
        self.of_run = this_run()

    def path(self, text, doc):
        return f"{self.folder}/{text}-{doc}.txt"

    def base(self, model, text, doc):
        key = model, text, doc
        if key not in self.kept:
            self.kept[key] = tuple(score(model, self.path(text, doc), plan, self.threads) for plan in FIRST)
        return self.kept[key]

    def row(self, model, text, doc, plan):
        base = self.base(model, text, doc)
        nll, share = base[FIRST.index(plan)] if plan in FIRST else score(model, self.path(text, doc), plan, self.threads)
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


def run_of(rows, model, plan):
    """The run that has a plan on most documents, the newest of several; None: it has no row."""
    wanted = plan_hash(plan), model, plan
    runs = collections.Counter(r["run"] for (key, m, _, _, p), found in rows.items() if (key, m, p) == wanted for r in found)
    return max(runs, key=lambda run: (runs[run], run), default=None)


def of_one_run(rows, model, text, doc, plan, run):
    """Rows of dense, window512 and the plan on a document, of one run; None: the plan has no row there. A row whose run
    has no dense or window512 is refused: another run's, of another host perhaps, are not what it is set against."""
    own = [r for r in rows.get((plan_hash(plan), model, text, doc, plan), ()) if r["run"] == run]
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


def figures(documents):
    """Percent of perplexity against dense, R and R on gain tokens of documents: each the losses of the plan, dense and
    the window as `losses` has them."""
    nll, dense_nll, quarter, dense_quarter, window_quarter, gain, dense_gain, window_gain = sums(documents)
    return (100 * math.expm1((nll - dense_nll) / len(documents)), (window_quarter - quarter) / (window_quarter - dense_quarter),
            (window_gain - gain) / (window_gain - dense_gain))


def losses(found, plan):
    rows = [found[p] for p in (plan, *FIRST)]
    return tuple(float(r["nll"]) for r in rows[:2]) + tuple(float(r[f]) for f in ("quarter", "gain") for r in rows)


Card = collections.namedtuple("Card", "texts share n_least n_most run")  # texts: {text: ((figure, interval or None) of `figures`, ...)}


def card(rows, model, plan, of=range(len(STARTS))):
    """Figures of a plan from one run, on the documents among `of`; None: no row of each text."""
    run, cells, counts, share = run_of(rows, model, plan), {}, [], 0
    for text in TEXTS:
        docs = [found for d in of if (found := of_one_run(rows, model, text, d, plan, run))]
        if not docs:
            return None
        own = [losses(found, plan) for found in docs]
        cells[text] = tuple(zip(figures(own), bootstrap(own, figures) or [None] * 3))
        counts.append(len(docs))
        share = docs[0][plan]["share"]
    return Card(cells, float(share), min(counts), max(counts), run)


def count(n_least, n_most):
    return f"{n_least}" if n_least == n_most else f"{n_least} to {n_most}"


FORMS = ("{:+.2f}", "{:.3f}", "{:.3f}")  # of `figures`


def cell(found, which, has_interval=True):
    """One figure as text, with its interval."""
    value, interval = found[which]
    form = FORMS[which]
    unit = " %" if which == 0 else ""
    return form.format(value) + unit + (f" ({form.format(interval[0])} .. {form.format(interval[1])})" if interval and has_interval else "")


def all_texts(found, which):
    return ", ".join(f"{text} {cell(found.texts[text], which)}" for text in TEXTS)


def named(found, least):
    """The plans of which both bounds hold on each text: at "met", intervals may straddle them."""
    kept = [plan for _, plan, c in sorted(found) if plan not in CONTROLS and c.n_least >= LEAST_DOCUMENTS and all(
        outcome == "holds" or outcome.startswith(least) for text in TEXTS for which, limit, is_least in LIMITS
        for outcome in [verdict(*c.texts[text][which], limit, is_least)])]
    return ", ".join(f"`{plan}`" for plan in kept) or "none"


def summarise(rows):
    lines = ["# Quality cards of the plans", "", "tests/proofs/plan_quality.py says what the figures are; KV f16, every row of the text under the "
             "plan's decode route. Sorted by bytes read. In brackets the 95 % interval, by bootstrap over the documents of a text (intervals.py). "
             "Each line is of one run, which measured dense and window512 of the same documents on the same host.", ""]
    plans, runs = sorted({key[4] for key in rows}), collections.defaultdict(list)
    for model, file in MODELS.items():
        found = [(c.share, plan, c) for plan in plans if (c := card(rows, model, plan))]
        if not found:
            continue
        lines += [f"## {file}", "", "| plan | read | perplexity: prose | code | lexicon | R: prose | code | lexicon | R on gain tokens | documents a text |",
                  "|" + "---|" * 10]
        for share, plan, c in sorted(found):
            cells = [cell(c.texts[t], which) for which in (0, 1) for t in TEXTS]
            gains = " / ".join(cell(c.texts[t], 2, False) for t in TEXTS)
            lines.append(f"| `{plan}` | {share:.1f} % | {' | '.join(cells)} | {gains} | {count(c.n_least, c.n_most)} |")
            runs[c.run] += [c.n_least, c.n_most]
        lines.append("")
        if any(c.n_least >= LEAST_DOCUMENTS for _, _, c in found):
            lines += [f"Within {LIMITS[0][1]} % of dense and R at least {LIMITS[1][1]} on each text, on {LEAST_DOCUMENTS} documents and more, not counting controls: by the "
                      f"figures {named(found, 'met')}; with their whole intervals {named(found, 'holds')}.", ""]
    for plan, what in FITTED.items():
        if unseen := card(rows, "smollm2", plan, [d for d in range(len(STARTS)) if d != FITTED_ON]):
            lines += [f"The {what} of `{plan}` on SmolLM2 were found on document {FITTED_ON} of each text; on the others alone: perplexity "
                      f"{all_texts(unseen, 0)}; R {all_texts(unseen, 1)}.", ""]
    hosts = {r["run"]: r["host"] for found in rows.values() for r in found}
    lines += ["Bounds:", ""] + [f"- {said}: {outcome}" for said, outcome in claims(rows).values()]
    lines += ["", "Runs:", ""]
    for run in sorted(runs):
        whose = f"{run} on {hosts[run]}" if run else "older rows that name no run, of the host that plan-quality.csv says"
        lines.append(f"- {whose}: {len(runs[run]) // 2} lines of {count(min(runs[run]), max(runs[run]))} documents a text")
    return "\n".join(lines) + "\n"


def claims(rows):
    """{what is asked: (what came out, whether it holds)}, a text each time."""
    made, found = {}, card(rows, "smollm2", PROVED)
    if not found or found.n_least < LEAST_DOCUMENTS:
        return {"documents": (f"{PROVED} was measured on {LEAST_DOCUMENTS} documents a text and more", verdict(0, None, 1, True))}
    for name, asked, (which, limit, is_least) in zip(("perplexity", "R"), ("is within 1 % of dense", "has R of at least 0.95"), LIMITS):
        for text in TEXTS:
            made[f"{name}, {text}"] = f"{PROVED} on SmolLM2 {asked} on {text}: {cell(found.texts[text], which)}", verdict(*found.texts[text][which], limit, is_least)
    made["read"] = f"it reads at most 30 % at 8K: {found.share:.1f} %", verdict(found.share, None, 30, False)
    best = card(rows, "gemma3", "oracle")
    for plan in ONE_LIST:
        one_list = card(rows, "gemma3", plan)
        for text in TEXTS if one_list and best else ():
            made[f"Gemma R, {plan}, {text}"] = (
                f"`{plan}` on Gemma 3, one list for its three global layers, has R of at least 0.98 on {text}: {cell(one_list.texts[text], 1)}; "
                f"documents: {count(one_list.n_least, one_list.n_most)} (`oracle`, the best list of each layer: {cell(best.texts[text], 1)})",
                verdict(*one_list.texts[text][1], 0.98, True))
    return made


def measure(options, rows):
    deadline = time.time() + 60 * options.minutes if options.minutes else math.inf
    with tempfile.TemporaryDirectory() as made:
        folder = options.texts or made
        if not options.texts:
            subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", "--documents", str(options.documents), folder], check=True, stdout=subprocess.DEVNULL)
        documents = Documents(folder, max(1, (os.cpu_count() or 1) // options.jobs))
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
        for why in filter(None, (stale(model, name) for model, name in names if name in CITED)):
            print("stale:", why)
            return 1
        if not os.path.exists(summary) or open(summary).read() != text:
            print(f"{summary} is not what plan-quality.csv beside it gives")
            return 1
    else:
        if not options.no_behaviour:
            for model, name in names:
                if name in CITED:
                    record(model, name)
        open(summary, "w").write(text)
    print(text)
    return unexpected({name: outcome for name, (_, outcome) in claims(present).items()}, MISSED)


if __name__ == "__main__":
    sys.exit(main())
