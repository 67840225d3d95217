#!/usr/bin/env python3
"""The forward pass against llama.cpp's on F32 weights: logits and 64 greedy tokens of every prompt.

    llama_golden.py [--check]

Runs build/tests/engine/test_llama_golden on each prompt of tests/golden/llama (one a model has 4,000 tokens)
with the demo models dequantised to F32 (tests/oracle/dequantize.py; needs numpy and gguf). Bounds: every logit within
0.05; a greedy token may differ only where llama.cpp's own best two lie within 0.1. Results:
bench/results/llama-golden.csv, a row a prompt, so that it goes on where it was stopped, and
bench/results/llama-golden.md. A row names the version of what it proves: a hash over the golden files and over
tests/golden/plans/nll.f32, in which tests/engine/test_plan_golden pins the forward of small models.
--check: only read what is committed.
"""
import csv
import glob
import hashlib
import os
import re
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CSV = TOP + "/bench/results/llama-golden.csv"
SUMMARY = TOP + "/bench/results/llama-golden.md"
MODELS = {"smollm2-f32.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3-f32.gguf": "gemma-3-270m-q4_k_m.gguf"}
CASES = ("short", "story", "code", "table", "mixed", "prose", "chat", "long")
FIELDS = ("version", "commit", "model", "prompt", "tokens", "max_abs", "median", "logits", "differ", "unexcused")


def golden(model, case, what):
    return f"{TOP}/tests/golden/llama/{model.split('-')[0]}.{case}.{what}"


def version():
    h = hashlib.sha256()
    names = glob.glob(TOP + "/tests/golden/llama/*.logits") + glob.glob(TOP + "/tests/golden/llama/*.i32")
    for path in sorted(names) + [TOP + "/tests/golden/plans/nll.f32"]:
        h.update(os.path.basename(path).encode() + b"\0" + open(path, "rb").read())
    return h.hexdigest()[:12]


def jobs():
    for model in MODELS:
        for case in CASES:
            if os.path.exists(golden(model, case, "prompt.i32")):
                yield model, case


def load():
    rows = {}
    if os.path.exists(CSV):
        for row in csv.DictReader(open(CSV)):
            rows[row["version"], row["model"], row["prompt"]] = row
    return rows


def measure(at, folder, model, case, commit):
    if not os.path.exists(f"{folder}/{model}"):
        subprocess.run([sys.executable, TOP + "/tests/oracle/dequantize.py", f"{folder}/{MODELS[model]}", f"{folder}/{model}"],
                       check=True)
    test = os.environ.get("HEDDLE_GOLDEN_TEST", TOP + "/build/tests/engine/test_llama_golden")
    out = subprocess.run([test, case, model], capture_output=True, text=True, env={**os.environ, "HEDDLE_TEST_MODELS": folder})
    found = re.search(r"max (\S+) median (\S+) of (\d+) logits; (\d+) of \d+ greedy tokens differ, (\d+) of them", out.stdout + out.stderr)
    if not found:
        sys.exit(f"llama_golden.py: {test} {case} {model}: {out.stdout}{out.stderr}")
    n_tokens = os.path.getsize(golden(model, case, "prompt.i32")) // 4
    return dict(zip(FIELDS, (at, commit, model, case, n_tokens) + found.groups()))


def summarise(rows, at):
    lines = ["# Logits and greedy tokens against llama.cpp, F32 weights", "", f"Version {at} (tests/proofs/llama_golden.py says of "
             "what). F32 KV on both sides; 64 greedy tokens a prompt, by teacher forcing.", "",
             "| model | prompt | tokens | largest difference of a logit | greedy tokens that differ | of them where llama.cpp leads by 0.1 |",
             "|---|---|---|---|---|---|"]
    held = True
    for model, case in jobs():
        row = rows.get((at, model, case))
        if not row:
            lines.append(f"| {model} | {case} | not measured | | | DOES NOT HOLD |")
            held = False
            continue
        is_met = float(row["max_abs"]) <= 0.05 and int(row["unexcused"]) == 0
        lines.append(f"| {model} | {case} | {row['tokens']} | {row['max_abs']} of 0.05 | {row['differ']} | {row['unexcused']} of 0"
                     f"{'' if is_met else ' DOES NOT HOLD'} |")
        held &= is_met
    return "\n".join(lines) + "\n", held


def main():
    at, rows = version(), load()
    if "--check" not in sys.argv:
        folder = os.environ.get("HEDDLE_TEST_MODELS", os.path.expanduser("~/.cache/heddle"))
        commit = subprocess.run(["git", "-C", TOP, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        is_new = not os.path.exists(CSV)
        with open(CSV, "a", newline="") as out:
            writer = csv.DictWriter(out, FIELDS)
            if is_new:
                writer.writeheader()
            for model, case in jobs():
                if (at, model, case) not in rows:
                    rows[at, model, case] = measure(at, folder, model, case, commit)
                    writer.writerow(rows[at, model, case])
                    out.flush()
    text, held = summarise(rows, at)
    if "--check" not in sys.argv:
        open(SUMMARY, "w").write(text)
    elif not os.path.exists(SUMMARY) or open(SUMMARY).read() != text:
        print("bench/results/llama-golden.md is not what bench/results/llama-golden.csv gives at version", at)
        return 1
    print(text)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
