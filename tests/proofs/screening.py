#!/usr/bin/env python3
"""Every plan on both demo models: the screening that decides which plans get the full counts.

    screening.py [--models smollm2,gemma3] [--documents 20] [--context 4096] [--plans a;b;c] [--texts DIR]

`heddle eval` on the texts of texts.py: the tasks, then what routers choose, then the loss of the last
quarter (--last: after one dense reading). Rows go to bench/results/screening-MODEL.jsonl as they are
known; run it again and it goes on where it was stopped. The tables stand beside it as text, the page
of all results as build/screening.html. Screening: 20 documents of 4K tokens. It has no bound to hold:
it exits 0 when every row is there.
"""
import argparse
import glob
import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
TEXTS = ("prose", "code", "lexicon")


def fits(heddle, model, plan):
    """Whether a plan is for this model at all."""
    return subprocess.run([heddle, "explain", "-m", model, "--plan", plan], capture_output=True).returncode == 0


def all_plans():
    names = sorted(os.path.basename(p)[:-5] for p in glob.glob(TOP + "/plans/*.json"))
    return [name for name in names if name not in ("dense", "window")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="smollm2,gemma3")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--plans", default=";".join(all_plans()))
    parser.add_argument("--tasks", default="tasks,lists,loss")
    parser.add_argument("--texts", help="a folder that texts.py filled, where it cannot run (no network)")
    options = parser.parse_args()
    heddle = os.environ.get("HEDDLE", TOP + "/build/heddle")
    folder = os.environ.get("HEDDLE_TEST_MODELS", os.path.expanduser("~/.cache/heddle"))
    made = []
    with tempfile.TemporaryDirectory() as work:
        if options.texts:
            work = options.texts
        else:
            subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", work], check=True, stdout=subprocess.DEVNULL)
        texts = [f"--text={work}/{text}-{i}.txt" for i in range(3) for text in TEXTS]
        for name in options.models.split(","):
            model = f"{folder}/{MODELS[name]}"
            rows = f"{TOP}/bench/results/screening-{name}.jsonl"
            plans = [p for p in options.plans.split(";") if fits(heddle, model, p)]
            made.append(rows)
            for tasks in options.tasks.split(","):  # the cheap and telling ones of every plan first
                out = subprocess.run([heddle, "eval", "-m", model, "-c", str(options.context), "--plans", ";".join(plans) + ";",
                                      "--tasks", tasks, "--documents", str(options.documents), "--answers",
                                      str(options.answers), "--last", "--out", rows, *texts], stdout=subprocess.PIPE, text=True)
                if out.returncode:
                    return out.returncode
                with open(f"{TOP}/bench/results/screening-{name}-{tasks}.txt", "w") as table:
                    table.write(out.stdout)
                print(out.stdout, flush=True)
    speeds = sorted(glob.glob(TOP + "/bench/results/*ours*.csv"))
    return subprocess.run([heddle, "report", *made, *speeds, "-o", TOP + "/build/screening.html"]).returncode


if __name__ == "__main__":
    sys.exit(main())
