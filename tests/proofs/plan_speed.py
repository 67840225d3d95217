#!/usr/bin/env python3
"""Decode speed of every plan beside dense, at a depth whose rows are made up.

    plan_speed.py [--depth TOKENS] [--note WORDS] [--check] [PLAN...]

One run of build/bench/bench_depth for all plans that have no row yet, dense first and last; on SmolLM2, f16 rows. Rows go
to bench/results/plan-speed.csv; each names its plan file, so that a plan whose file changed is timed again, its run and
the host's processor: a plan is set against dense of its run alone, as other runs may be of other hosts. Left out:
plans that evict (made-up rows are no prompt), and plans whose lists are as long as the rows' masses say (made-up rows
have none): time those with `heddle bench depth -f TEXT`. `heddle report plan-quality.csv plan-speed.csv` draws both.
--check: whether every plan for the model has a row of its present file, and every run is of one host, between rows of dense.
"""
import argparse
import csv
import json
import os
import subprocess
import sys

from behaviour import TOP, fits, model_path, plan_hash
from plan_quality import this_run

CSV = TOP + "/bench/results/plan-speed.csv"
FIELDS = ("plan_hash", "model", "depth", "plan", "kv", "step_ms", "p10_ms", "p90_ms", "kv_bytes_read", "share_of_dense", "kv_bytes",
          "host", "run")
MODEL = "smollm2"
UNREAD = ("powers", "none", "stride", "random")  # scores that are the same whatever the rows hold


def routers(value):
    if isinstance(value, dict):
        if "select" in value:
            yield value
        for member in value.values():
            yield from routers(member)
    elif isinstance(value, list):
        for member in value:
            yield from routers(member)


def why_not(plan):
    """None, or why made-up rows say nothing of this plan."""
    described = json.load(open(f"{TOP}/plans/{plan.split(':')[0]}.json"))
    if any("retain" in variant for variant in described["variants"]):
        return "evicts at the end of a prompt"
    if any(r["select"] in ("top_p", "threshold") and r.get("score") not in UNREAD for r in routers(described)):
        return "its lists are as long as the masses say"
    return None


def load():
    if not os.path.exists(CSV):
        return []
    with open(CSV) as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def bad_runs(rows):
    """Why rows, in their order, could not be set against dense: sentences."""
    runs = {}
    for row in rows:
        if row.get("run") and row.get("host"):
            runs.setdefault((row["run"], row["depth"]), []).append(row)
        else:
            yield f"{row['plan']}: its row names no run or no host"
    for (run, depth), own in runs.items():
        if own[0]["plan"] != "dense" or own[-1]["plan"] != "dense" or len(own) < 2:
            yield f"run {run} at {depth} tokens: does not begin and end with dense"
        if len(hosts := sorted({row["host"] for row in own})) > 1:
            yield f"run {run}: is of {len(hosts)} hosts: {', '.join(hosts)}"


def check(depth):
    """Whether the committed rows are whole: of every plan that made-up rows say something of, as it is now."""
    rows, bad = [row for row in load() if int(row["depth"]) == depth], list(bad_runs(load()))
    now = {row["plan"] for row in rows if row["plan_hash"] == plan_hash(row["plan"])}
    for plan in sorted(f[:-5] for f in os.listdir(TOP + "/plans")):
        if plan not in now and not why_not(plan) and fits(model_path(MODEL), plan):
            bad.append(f"{plan} at {depth} tokens has no row, or one of another plan file")
    for row in rows:
        step, low, high = (float(row[key]) for key in ("step_ms", "p10_ms", "p90_ms"))
        if not 0 < low <= step <= high:
            bad.append(f"{row['plan']}: a step of {step} ms between {low} and {high}")
    print("\n".join(f"plan speed: {why}" for why in bad) or f"plan speed: {len(now)} plans at {depth} tokens, as they are now")
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=32768)
    parser.add_argument("--note", default="", help="what a comment above the rows says of the run")
    parser.add_argument("plans", nargs="*")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        return check(options.depth)
    done = {(row["plan_hash"], row["plan"], int(row["depth"])) for row in load()}
    plans = []
    for plan in options.plans or sorted(f[:-5] for f in os.listdir(TOP + "/plans")):
        why = why_not(plan)
        if why:
            print(f"{plan}: left out: {why}")
        elif plan != "dense" and (plan_hash(plan), plan, options.depth) not in done:
            plans.append(plan)
    if not plans:
        print("every plan has its row")
        return 0
    out = subprocess.run([TOP + "/build/bench/bench_depth", model_path(MODEL), ",".join(["dense"] + plans + ["dense"]), "f16",
                          str(options.depth)], stdout=subprocess.PIPE, text=True)
    rows = list(csv.DictReader(out.stdout.splitlines()))
    is_new = not os.path.exists(CSV)
    with open(CSV, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        of_run = this_run()
        if options.note:
            file.write(f"# {of_run['run']}: {options.note}\n")
        for row in rows:
            writer.writerow({**row, "model": MODEL, "plan_hash": plan_hash(row["plan"]), **of_run})
            print(f"{row['plan']:18s} {float(row['step_ms']):8.3f} ms, {100 * float(row['share_of_dense']):.1f} % of dense's bytes")
    return 0 if len(rows) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
