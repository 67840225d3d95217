#!/usr/bin/env python3
"""Every plan on both demo models: the screening that decides which plans get the full counts.

    screening.py [--models smollm2,gemma3] [--documents 20] [--context 4096] [--plans 'a;b;c']
                 [--tasks tasks,lists,loss] [--rows last|all] [--jobs N] [--texts DIR] [--out NAME] [--table] [--check]

`heddle eval` on the texts of texts.py: the tasks, then what routers choose, then the loss (--rows last:
of the last quarter, after one dense reading). Rows go to bench/results/NAME-MODEL.jsonl; run it again
and it goes on where it was stopped. --jobs N: N processes share the documents; their files (in build/)
are put together at the end of each part, and nothing of a stopped part is lost. The tables stand beside
it as text, the page of all results is build/NAME.html. It has no bound to hold: it exits 0 when every
row is there. --check: whether screening.md has the table that the rows give, of the plans as they are now, and the
plans with full counts (task_quality.py) among them. Rows of a later
session may stand in a file of their own, NAME-MODEL-2.jsonl: it is a run, and its plans are set against its dense.
"""
import argparse
import collections
import glob
import json
import math
import os
import re
import subprocess
import sys
import tempfile

from behaviour import MODELS, TOP, eval_hash, fits, heddle
from intervals import bootstrap
from shards import share
from task_quality import METHODS, cell, in_points

TEXTS = ("prose", "code", "lexicon")
NO_METHOD = ("oracle", "minference", "tiles", "window:window=512")  # a control that reads everything; prompts only; the window
WINDOW = "window:window=512"
AT_ONCE = 4  # plans over one reading of a document: its rows carry no more than eight summaries


def all_plans():
    names = sorted(os.path.basename(p)[:-5] for p in glob.glob(TOP + "/plans/*.json"))
    return [name for name in names if name not in ("dense", "window")]


def run_part(command, plans, rows, documents, shards):
    """One part of the run, a few plans and a document at a time; then once more over the whole, for the table."""
    def eval_of(some, first, n, out):
        return subprocess.run(command + ["--plans", ";".join(some) + ";", "--first", str(first), "--documents", str(n), "--out", out],
                              stdout=subprocess.PIPE, text=True)
    items = [(plans[at:at + AT_ONCE], document) for document in range(documents) for at in range(0, len(plans), AT_ONCE)]
    codes = share(rows, shards, items, lambda item, shard: eval_of(*item, 1, shard).returncode) if shards else []
    if any(codes):
        return max(codes), ""
    out = eval_of(plans, 0, documents, rows)
    return out.returncode, out.stdout


def right(documents, plan):
    return 100 * sum(d[plan]["right"] for d in documents) / sum(d[plan]["tokens"] for d in documents)


class Run:
    """The task rows of one file: {(task, document): {plan: row}}."""

    def __init__(self, path):
        self.found = collections.defaultdict(dict)
        for line in open(path):
            row = json.loads(line)
            if row.get("what") == "task":
                self.found[row["task"], row["document"]].setdefault(row["plan"], row)
        tasks = sorted({task for task, _ in self.found})
        self.deciding = [t for t in tasks if (d := self.documents(t, WINDOW)) and right(d, "dense") >= 60 and right(d, "dense") - right(d, WINDOW) >= 20]
        self.plans = {plan for plans in self.found.values() for plan in plans} - {"dense", "window512"}

    def documents(self, task, plan):
        return [plans for (name, _), plans in self.found.items() if name == task and "dense" in plans and plan in plans]


def runs_of(options, model):
    """The files of a model's rows, the newest last; each is a run, which asked dense and the window beside its plans."""
    name = f"{TOP}/bench/results/{options.out}-{model}"
    return [Run(path) for path in glob.glob(name + ".jsonl") + sorted(glob.glob(name + "-*.jsonl"))]


Points = collections.namedtuple("Points", "worst plan task interval mean share n_least n_most")


def points_of_all(runs):
    """Points of each plan against dense of the newest run that has it, on tasks that decide in the first run; worst last."""
    deciding, found = runs[0].deciding, {}
    for run in runs:
        for plan in run.plans:
            on = {task: run.documents(task, plan) for task in deciding}
            if not all(on.values()):
                continue
            delta = {task: right(d, plan) - right(d, "dense") for task, d in on.items()}
            shares = [d[plan]["share_read"] for some in on.values() for d in some if "share_read" in d[plan]]
            worst, n = min(delta, key=delta.get), [len(d) for d in on.values()]
            (interval,) = bootstrap([(d[plan]["right"] - d["dense"]["right"], d["dense"]["tokens"]) for d in on[worst]], in_points) or [(math.nan, math.nan)]
            found[plan] = Points(delta[worst], plan, worst, interval, sum(delta.values()) / len(delta), 100 * sum(shares) / max(len(shares), 1), min(n), max(n))
    return sorted(found.values(), key=lambda points: (-points.worst, points.plan))


def best_of(points):
    """The five that lose least on their worst task, of plans to use: they choose what decoding reads, and read less than half."""
    return [p.plan for p in points if p.plan not in NO_METHOD and p.share < 50][:5]


def table_of(runs):
    points = points_of_all(runs)
    lines = [f"Deciding: {', '.join(runs[0].deciding)}.", "", "| plan | reads | mean | worst task | documents a task |", "|---|---|---|---|---|"]
    lines += [f"| `{p.plan}` | {p.share:.0f} % | {p.mean:+.2f} | {cell(p.worst, p.interval)} {p.task} | {p.n_least}-{p.n_most} |" for p in points]
    best, full = best_of(points), METHODS["smollm2"]
    lines += ["", "The best five by their worst task, of plans that choose what decoding reads and read less than half: "
              f"{', '.join(f'`{plan}`' for plan in best)}. At 8K (tasks-8k-smollm2.md) {', '.join(f'`{plan}`' for plan in best if plan in full) or 'none'} "
              f"of them were asked, and {', '.join(f'`{plan}`' for plan in full if plan not in best)}.", ""]
    return "\n".join(lines)


def check(options):
    """Whether the committed table is there and of the plans as they are."""
    page = f"{TOP}/bench/results/{options.out}.md"
    runs = runs_of(options, "smollm2")
    if not runs or not os.path.exists(page):
        print(f"{options.out}: its rows or {page} are not there")
        return 1
    bad, points = [], points_of_all(runs)
    if table_of(runs) not in open(page).read():
        bad.append(f"{page[len(TOP) + 1:]} does not have the table that its rows give (--table)")
    for plan in ["dense"] + [p.plan for p in points]:
        hashes = {plans[plan]["plan_hash"] for run in runs for plans in run.found.values() if plan in plans}
        if hashes != {eval_hash(plan)}:
            bad.append(f"{plan}: the rows are of another plan than there is now")
    bad += [f"{plan} has full counts and no row here" for plan in METHODS["smollm2"] if plan not in [p.plan for p in points]]
    print("\n".join(f"screening: {why}" for why in bad) or f"screening: {len(points)} plans, as they are now")
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="smollm2,gemma3")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--plans", default=";".join(all_plans()))
    parser.add_argument("--tasks", default="tasks,lists,loss")
    parser.add_argument("--rows", default="last", choices=("last", "all"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of each process; default: all processors over the jobs")
    parser.add_argument("--texts", help="a folder that texts.py filled, where it cannot run (no network)")
    parser.add_argument("--out", default="screening")
    parser.add_argument("--table", action="store_true", help="only print the points of all plans, from the rows that are there")
    parser.add_argument("--check", action="store_true", help="only look at what is committed")
    options = parser.parse_args()
    if options.check:
        return check(options)
    if options.table:
        for name in options.models.split(","):
            if runs := runs_of(options, name):
                print(table_of(runs))
        return 0
    folder = os.environ.get("HEDDLE_TEST_MODELS", os.path.expanduser("~/.cache/heddle"))
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    os.makedirs(TOP + "/bench/results", exist_ok=True)
    os.makedirs(TOP + "/build", exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as work:
        if options.texts:
            work = options.texts
        else:
            subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", work], check=True, stdout=subprocess.DEVNULL)
        texts = [f"--text={work}/{text}-{i}.txt" for i in range(3) for text in TEXTS]
        for name in options.models.split(","):
            model = f"{folder}/{MODELS[name]}"
            rows = f"{TOP}/bench/results/{options.out}-{name}.jsonl"
            shards = [f"{TOP}/build/{options.out}-{name}-{job}.jsonl" for job in range(options.jobs)]
            plans = [p for p in options.plans.split(";") if p and fits(model, p)]
            made.append(rows)
            for tasks in options.tasks.split(","):
                command = [heddle(), "eval", "-m", model, "-t", str(threads), "-c", str(options.context), "--tasks", tasks,
                           "--answers", str(options.answers), *texts]
                command += ["--last"] if options.rows == "last" else []
                code, table = run_part(command, plans, rows, options.documents, shards if options.jobs > 1 else [])
                if code:
                    return code
                with open(f"{TOP}/bench/results/{options.out}-{name}-{tasks}.txt", "w") as out:
                    out.write(table)
                print(table, flush=True)
    speeds = sorted(glob.glob(TOP + "/bench/results/*ours*.csv"))
    return subprocess.run([heddle(), "report", *made, *speeds, "-o", f"{TOP}/build/{options.out}.html"]).returncode


if __name__ == "__main__":
    sys.exit(main())
