#!/usr/bin/env python3
"""What arithmetic on quantised weights costs: mean KL and perplexity gap to the F32 file, ours and llama.cpp's.

    quantised.py [--check]

Both engines read tests/golden/llama/jargon.txt by the same protocol (chunks of 2,048, second half scored),
with F32 KV, from the demo models' files and from the same weights dequantised to F32
(tests/oracle/dequantize.py; needs numpy and gguf). llama.cpp's figures are those of
tests/golden/llama/perplexity.tsv. Bounds: our mean KL and our perplexity gap are at most 1.1 times
llama.cpp's, and the perplexities of the F32 files within 0.05 %. Results: bench/results/quantised.csv, a row a run, so that it goes on where it was stopped,
and bench/results/quantised.md. A row names the version of what it proves: a hash over the block formats
and the reference of the linear layer, to which tests/backend/test_linear ties every fast kernel.
--check: only read what is committed.
"""
import csv
import hashlib
import os
import re
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CSV = TOP + "/bench/results/quantised.csv"
SUMMARY = TOP + "/bench/results/quantised.md"
TEXT = TOP + "/tests/golden/llama/jargon.txt"
MODELS = {"SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2-f32.gguf", "gemma-3-270m-q4_k_m.gguf": "gemma3-f32.gguf"}
FIELDS = ("version", "commit", "model", "kv", "perplexity_f32", "perplexity", "mean_kl", "equal")


def version():
    h = hashlib.sha256()
    for name in ("src/tensor/quant.c", "src/tensor/quant.h", "src/backend/cpu/ref_linear.c"):
        h.update(name.encode() + b"\0" + open(f"{TOP}/{name}", "rb").read())
    return h.hexdigest()[:12]


def load():
    rows = {}
    if os.path.exists(CSV):
        for row in csv.DictReader(open(CSV)):
            rows[row["version"], row["model"], row["kv"]] = row
    return rows


def peer():
    rows = {}
    for line in open(TOP + "/tests/golden/llama/perplexity.tsv"):
        if not line.startswith("#"):
            file, _, _, _, _, perplexity, kl, equal = line.rstrip("\n").split("\t")
            rows[file] = {"perplexity": float(perplexity), "mean_kl": kl, "equal": equal}
    return rows


def perplexity(model, kv, *more):
    heddle = os.environ.get("HEDDLE", TOP + "/build/heddle")
    out = subprocess.run([heddle, "perplexity", "-m", model, "-f", TEXT, "-c", "2048", "--kv", kv, *more], check=True,
                         capture_output=True, text=True).stdout
    found = re.search(r"mean KL from .*: (\S+), equal likeliest tokens: (\S+)$", out, re.M)
    return re.search(r"^perplexity: (\S+)$", out, re.M).group(1), found.groups() if found else ("", "")


def measure(at, folder, model, kv, commit):
    f32 = f"{folder}/{MODELS[model]}"
    if not os.path.exists(f32):
        subprocess.run([sys.executable, TOP + "/tests/oracle/dequantize.py", f"{folder}/{model}", f32], check=True)
    exact, _ = perplexity(f32, kv)
    quantised, (kl, equal) = perplexity(f"{folder}/{model}", kv, "--against", f32)
    return dict(zip(FIELDS, (at, commit, model, kv, exact, quantised, kl, equal)))


def summarise(rows, at):
    llama, held, bounds = peer(), True, []
    lines = ["# What arithmetic on quantised weights costs", "",
             f"Version {at} (tests/proofs/quantised.py says of what). tests/golden/llama/jargon.txt in chunks of 2,048, F32 KV "
             "on both sides, relative to the same weights as F32.", "",
             "| model | engine | perplexity F32 | perplexity | gap | mean KL, nat | equal likeliest tokens |", "|---|---|---|---|---|---|---|"]
    for model, f32 in MODELS.items():
        row = rows.get((at, model, "f32"))
        if not row:
            bounds.append(f"- {model}: was measured: DOES NOT HOLD")
            held = False
            continue
        theirs = llama[model]
        our_gap = abs(float(row["perplexity"]) - float(row["perplexity_f32"]))
        their_gap = abs(theirs["perplexity"] - llama[f32]["perplexity"])
        lines.append(f"| {model} | heddle | {row['perplexity_f32']} | {row['perplexity']} | {our_gap:.4f} | {row['mean_kl']} | "
                     f"{100 * float(row['equal']):.2f} % |")
        lines.append(f"| | llama.cpp | {llama[f32]['perplexity']} | {theirs['perplexity']} | {their_gap:.4f} | {theirs['mean_kl']} | "
                     f"{100 * float(theirs['equal']):.2f} % |")
        exact = abs(float(row["perplexity_f32"]) / llama[f32]["perplexity"] - 1)
        bounds.append(f"- {f32}: perplexity within 0.05 % of llama.cpp's ({100 * exact:.4f} %): {'holds' if exact <= 5e-4 else 'DOES NOT HOLD'}")
        held &= exact <= 5e-4
        for claim, ours, bound in ((f"mean KL {row['mean_kl']}", float(row["mean_kl"]), 1.1 * float(theirs["mean_kl"])),
                                   (f"perplexity gap {our_gap:.4f}", our_gap, 1.1 * their_gap)):
            bounds.append(f"- {model}: {claim} at most 1.1 times llama.cpp's, {bound:.6f}: {'holds' if ours <= bound else 'DOES NOT HOLD'}")
            held &= ours <= bound
    return "\n".join(lines + ["", "Bounds:", ""] + bounds) + "\n", held


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
            for model in MODELS:
                if (at, model, "f32") not in rows:
                    rows[at, model, "f32"] = measure(at, folder, model, "f32", commit)
                    writer.writerow(rows[at, model, "f32"])
                    out.flush()
    text, held = summarise(rows, at)
    if "--check" not in sys.argv:
        open(SUMMARY, "w").write(text)
    elif not os.path.exists(SUMMARY) or open(SUMMARY).read() != text:
        print("bench/results/quantised.md is not what bench/results/quantised.csv gives at version", at)
        return 1
    print(text)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
