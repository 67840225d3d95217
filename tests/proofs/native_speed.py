#!/usr/bin/env python3
"""Speed of models/warp-21m beside a Transformer of its sizes, of mounting a million tokens, and of the demo.

    native_speed.py [--check] [decode] [prefill] [mount] [demo]        (default: all, about ten minutes)

Each part is one run on a machine with nothing else to do; its rows take the place of the part's older ones in
bench/results/native-speed.csv. A row names date, commit, the processor and what it did in the same minutes (reads from memory and
within 16 MiB in GB/s, GFLOP/s f32, GOP/s int8), so that times are read as shares of that, and ratios are of one run.
  decode   ms a step, rows made up (build/bench/bench_depth), the models by turns; bytes of K, V and index a step
  prefill  seconds to read 16,384 and 65,536 tokens (heddle bench depth)
  mount    a file of over a million tokens: seconds to mount it and to the end of the first prompt, its pages in the
           page cache and not (cold: only where /proc/sys/vm/drop_caches can be written)
  demo     seconds of scripts/demo in a fresh clone, its compilation included, and again; the packages are there
The Transformer is bench/same_size_transformer.py's. --check: whether the rows are there and in their bounds.
"""
import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from behaviour import TOP, heddle, model_path
from plan_quality import processor

CSV = TOP + "/bench/results/native-speed.csv"
FIELDS = ("part", "figure", "model", "plan", "kv", "depth", "turn", "value", "least", "most", "unit", "bytes", "host", "peaks", "run")
MODEL = model_path("warp-21m")
TURNS = 3
MILLION = 1 << 20


def run(*command, **options):
    out = subprocess.run(command, capture_output=True, text=True, **options)
    if out.returncode:
        raise RuntimeError(f"{' '.join(command)}: " + (out.stderr.strip() or out.stdout.strip() or "failed").splitlines()[-1])
    return out


def found(pattern, text):
    match = re.search(pattern, text, re.M)
    if not match:
        raise RuntimeError(f"nothing like '{pattern}' was printed")
    return match


def decode(other):
    """Both models by turns, so that what else the machine does falls on both."""
    steps = ((MODEL, "clsa,clsa_blocks,dense", "f16", (4096, 131072)), (MODEL, "clsa", "i8", (4096, 131072)), (other, "dense", "f16", (4096, 131072)),
             (other, "dense", "i8", (131072,)))
    for turn in range(TURNS):
        for model, plans, kv, depths in steps:
            out = run(TOP + "/build/bench/bench_depth", model, plans, kv, *map(str, depths)).stdout
            for row in csv.DictReader(out.splitlines()):
                yield {"figure": "step", "model": name_of(model), "plan": row["plan"], "kv": kv, "depth": row["depth"], "turn": turn, "value": row["step_ms"],
                       "least": row["p10_ms"], "most": row["p90_ms"], "unit": "ms", "bytes": row["kv_bytes_read"]}


def prefill(other):
    for model, plan in ((MODEL, "clsa"), (other, "dense")):
        with tempfile.NamedTemporaryFile(suffix=".csv") as file:
            run(heddle(), "bench", "depth", "-m", model, "--plans", plan, "--depths", "0,16384,65536", "--reps", "1", "--tokens", "8", "--csv", file.name)
            rows = list(csv.DictReader(line for line in open(file.name) if not line.startswith("#")))
        for row in rows[1:]:
            yield {"figure": "fill", "model": name_of(model), "plan": plan, "kv": "f16", "depth": row["depth"], "value": row["fill_s"], "unit": "s"}


def mount(_):
    with tempfile.TemporaryDirectory() as folder:
        text, rows = folder + "/text", folder + "/text.kv"
        run(TOP + "/scripts/demo-text", text, "The keeper of the northern lighthouse is Esther.")
        one = open(text, "rb").read()
        with open(text, "wb") as file:  # the demo's text of 72,000 tokens, again and again
            for _ in range(15):
                file.write(one)
        began = time.monotonic()
        run(heddle(), "encode", "-m", MODEL, text, "-o", rows)
        seconds, size = time.monotonic() - began, os.path.getsize(rows)
        n_tokens = found(r"([\d,]+) tokens", run(heddle(), "verify", rows).stdout).group(1).replace(",", "")
        both = {"model": name_of(MODEL), "plan": "clsa", "kv": "f16", "depth": n_tokens, "unit": "s", "bytes": size}
        yield {**both, "figure": "encode", "value": f"{seconds:.3f}"}
        prompt = "Question: What is the keeper of the northern lighthouse?\nAnswer: The keeper of the northern lighthouse is"
        for cache, turns in (("warm", TURNS), ("cold", 1)):
            for turn in range(turns):
                if cache == "cold" and not drop_caches():
                    continue
                out = run(heddle(), "run", "-m", MODEL, "--mount", rows, "-p", prompt, "-n", "8")
                yield {**both, "figure": f"mount {cache}", "turn": turn, "value": found(r"^mounted .* in (\S+) s$", out.stderr).group(1)}
                n, per_s = found(r"^prefill (\S+) tokens in .*, (\S+) tokens/s", out.stderr).groups()  # verifies all index keys
                yield {**both, "figure": f"first prompt {cache}", "turn": turn, "value": f"{float(n.replace(',', '')) / float(per_s.replace(',', '')):.3f}"}


def drop_caches():
    try:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3\n")
        return True
    except OSError as error:
        print(f"no cold times: {error}")
        return False


def demo(_):
    with tempfile.TemporaryDirectory() as clone:
        for figure in ("from a clone", "again"):
            began = time.monotonic()
            if figure != "again":
                run("git", "clone", "-q", TOP, clone)
            out = run(clone + "/scripts/demo", env={**os.environ, "CCACHE_DISABLE": "1"}).stdout
            yield {"figure": figure, "model": name_of(MODEL), "value": f"{time.monotonic() - began:.1f}", "unit": "s"}
    for figure, words in (("decode", "decode, tokens/s"), ("mount", "mounting, s")):
        dense, clsa = found(rf"^{words} +(\S+) +(\S+)$", out).groups()
        for plan, value in (("dense", dense), ("clsa", clsa)):
            yield {"figure": figure, "model": name_of(MODEL), "plan": plan, "kv": "f16", "value": value, "unit": words.split(", ")[1]}


PARTS = {"decode": decode, "prefill": prefill, "mount": mount, "demo": demo}


def name_of(model):
    return "warp-21m" if model == MODEL else "transformer"


def peaks():
    """What this machine does now, as `heddle bench depth` measures it."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        run(heddle(), "bench", "depth", "-m", MODEL, "--depths", "0", "--plans", "dense", "--reps", "1", "--tokens", "1", "--csv", file.name)
        numbers = found(r"^# read (\S+) GB/s.*, (\S+) GB/s \(16 MiB\); (\S+) GFLOP/s.*; (\S+) GOP/s", open(file.name).read())
    return " / ".join(numbers.groups())


def load():
    if not os.path.exists(CSV):
        return []
    with open(CSV) as file:
        return list(csv.DictReader(file))


def measure(parts):
    commit = run("git", "-C", TOP, "rev-parse", "--short", "HEAD").stdout.strip()
    of_run = {"host": processor(), "run": time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) + commit}
    with tempfile.TemporaryDirectory() as other:
        run(sys.executable, TOP + "/bench/same_size_transformer.py", MODEL, other)
        for part in parts:
            before = peaks()
            rows = [{"part": part, **of_run, **row} for row in PARTS[part](other)]
            for row in rows:
                row["peaks"] = f"{before}; {peaks()}" if row is rows[-1] else before
                print(f"{part}: {row['figure']} {row['model']} {row.get('plan', '')} {row.get('kv', '')} {row.get('depth', '')}: {row['value']} {row['unit']}", flush=True)
            kept = [row for row in load() if row["part"] != part] + rows
            with open(CSV + ".part", "w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(sorted(kept, key=lambda row: list(PARTS).index(row["part"])))
            os.replace(CSV + ".part", CSV)


def values(rows, **members):
    return [float(row["value"]) for row in rows if all(row[key] == value for key, value in members.items())]


def check():
    """Every bound of the issue that a time is asked of, from the rows: medians of turns of one run."""
    rows, missing = load(), []

    def median(**members):
        some = values(rows, **members)
        if not some:
            missing.append(" ".join(members.values()))
        return statistics.median(some) if some else float("nan")

    def step(model, plan, kv, depth):
        return median(figure="step", model=model, plan=plan, kv=kv, depth=str(depth))

    def fill(model, depth):
        return median(figure="fill", model=model, depth=str(depth))

    claims = [
        ("decode at 128K against the Transformer, f16", step("transformer", "dense", "f16", 131072) / step("warp-21m", "clsa", "f16", 131072), ">=", 12),
        ("decode at 128K against the Transformer, int8", step("transformer", "dense", "i8", 131072) / step("warp-21m", "clsa", "i8", 131072), ">=", 7),
        ("decode at 128K against its own at 4K", step("warp-21m", "clsa", "f16", 131072) / step("warp-21m", "clsa", "f16", 4096), "<=", 1.5),
        ("the same with block pre-selection", step("warp-21m", "clsa_blocks", "f16", 131072) / step("warp-21m", "clsa_blocks", "f16", 4096), "<=", 1.3),
        ("prefill of 16K against the Transformer", fill("transformer", 16384) / fill("warp-21m", 16384), ">=", 7),
        ("prefill of 64K against the Transformer", fill("transformer", 65536) / fill("warp-21m", 65536), ">=", 15),
        ("seconds to mount a million tokens, in the page cache", median(figure="mount warm"), "<=", 0.2),
        ("seconds of the demo, packages there", median(part="demo", figure="again"), "<=", 120),
        ("seconds of the demo from a clone, packages there", median(part="demo", figure="from a clone"), "<=", 240),
    ]
    missed = 0
    for name, value, way, bound in claims:
        if value != value:
            continue  # its rows are missing, which is said below
        holds = value >= bound if way == ">=" else value <= bound
        missed += not holds
        print(f"native speed: {name}: {value:.3g} (asked {way} {bound}){'' if holds else ': MISSED'}")
    if min((int(row["depth"]) for row in rows if row["part"] == "mount"), default=0) < MILLION:
        missing.append("a mounted file of a million tokens")
    for name in missing:
        print(f"native speed: no row: {name}")
    return 1 if missed or missing else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("parts", nargs="*", metavar="PART", help="decode, prefill, mount, demo")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is called '{unknown[0]}': there are {', '.join(PARTS)}")
    if options.check:
        return check()
    measure(options.parts or list(PARTS))
    return check()


if __name__ == "__main__":
    sys.exit(main())
