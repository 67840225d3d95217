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
plans with full counts (task_quality.py) among them.
"""
import argparse
import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

from behaviour import MODELS, TOP, eval_hash, fits, heddle
from shards import share
from task_quality import METHODS

TEXTS = ("prose", "code", "lexicon")
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


def points_of_all(path):
    """Points against dense of every plan on the tasks that decide, each over the documents that both answered."""
    found = collections.defaultdict(dict)
    for line in open(path):
        row = json.loads(line)
        if row.get("what") == "task":
            found[row["task"], row["document"]].setdefault(row["plan"], row)

    def documents(task, plan):
        return [plans for (name, _), plans in found.items() if name == task and "dense" in plans and plan in plans]

    def right(some, plan):
        return 100 * sum(d[plan]["right"] for d in some) / sum(d[plan]["tokens"] for d in some)
    deciding = [t for t in sorted({t for t, _ in found}) if (d := documents(t, WINDOW)) and right(d, "dense") >= 60
                and right(d, "dense") - right(d, WINDOW) >= 20]
    lines = []
    for plan in {p for plans in found.values() for p in plans} - {"dense", "window512"}:
        on = {t: documents(t, plan) for t in deciding}
        if all(on.values()):
            delta = {t: right(d, plan) - right(d, "dense") for t, d in on.items()}
            worst = min(delta, key=delta.get)
            n = [len(d) for d in on.values()]
            lines.append((-delta[worst], f"| `{plan}` | {sum(delta.values()) / len(delta):+.2f} | {delta[worst]:+.2f} ({worst}) | {min(n)}-{max(n)} |"))
    return f"Deciding: {', '.join(deciding)}.\n\n| plan | mean | worst | documents a task |\n|---|---|---|---|\n" + "\n".join(l for _, l in sorted(lines))


def check(options):
    """Whether the committed table is there and of the plans as they are."""
    path, page = (f"{TOP}/bench/results/{options.out}{ending}" for ending in ("-smollm2.jsonl", ".md"))
    if not os.path.exists(path) or not os.path.exists(page):
        print(f"{options.out}: {path} or {page} is not there")
        return 1
    bad, hashes, table = [], collections.defaultdict(set), points_of_all(path)
    for line in open(path):
        row = json.loads(line)
        hashes[row["plan"]].add(row["plan_hash"])
    if table not in open(page).read():
        bad.append(f"{page[len(TOP) + 1:]} does not have the table that its rows give (--table)")
    listed = re.findall(r"^\| `(.+?)` \|", table, re.M)
    bad += [f"{plan}: the rows are of another plan than there is now" for plan in ["dense", *listed] if hashes[plan] != {eval_hash(plan)}]
    bad += [f"{plan} has full counts and no row here" for plan in METHODS["smollm2"] if plan not in listed]
    print("\n".join(f"screening: {why}" for why in bad) or f"screening: {len(listed)} plans, as they are now")
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
            if os.path.exists(path := f"{TOP}/bench/results/{options.out}-{name}.jsonl"):
                print(points_of_all(path))
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
