"""What a quality figure is a figure of: the plan file, and how the program behaves under it.

A committed figure names a hash of its plan file and stands beside the *behaviour* that it was measured with: the
perplexity of one short committed text under the plan with a small top_k, computed with the generic kernels, which give
the same digits on every machine. A change of code that changes what a plan does moves the behaviour and makes the
figure stale; a change that does not, does not (docs/decisions/0004-figures-name-behaviour.md).
"""
import csv
import ctypes
import hashlib
import os
import re
import subprocess

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TEXT = TOP + "/tests/golden/llama/jargon.txt"
CSV = TOP + "/bench/results/behaviour.csv"
MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
TOLERANCE = 5e-4  # relative: compilers round differently; 0.05 %
SMALL = {"top_k": 48, "window": 32}  # whichever the plan file sets


def plan_hash(plan):
    """Of the file behind `name` or `name:overrides`, and of the overrides."""
    name = plan.split(":")[0]
    data = open(f"{TOP}/plans/{name}.json", "rb").read() + plan[len(name):].encode()
    return hashlib.sha256(data).hexdigest()[:12]


def heddle():
    return os.environ.get("HEDDLE", TOP + "/build/heddle")


def model_path(model):
    folder = os.path.join(TOP, "models") if model == "warp-21m" else os.environ.get("HEDDLE_TEST_MODELS", os.path.expanduser("~/.cache/heddle"))
    return os.path.join(folder, MODELS.get(model, model))


def eval_hash(plan):
    """The plan_hash of rows of `heddle eval`: FNV-1a of the plan's text with its overrides."""
    lib, own, text = ctypes.CDLL(TOP + "/build/libheddle.so"), ctypes.c_void_p(), ctypes.c_char_p()
    if lib.heddle_plan_named(ctypes.byref(own), plan.encode()) or lib.heddle_plan_format(own, ctypes.byref(text)):
        return None
    value = 0xCBF29CE484222325
    for byte in text.value:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    lib.heddle_string_free(text)
    lib.heddle_plan_free(own)
    return f"{value:016x}"


def fits(path, plan):
    """Whether a plan is for the model file at all."""
    return subprocess.run([heddle(), "explain", "-m", path, "--plan", plan], capture_output=True).returncode == 0


def measure(model, plan):
    name = plan.split(":")[0]
    text = open(f"{TOP}/plans/{name}.json").read()
    values = SMALL | {"window": max([SMALL["window"], *map(int, re.findall(r'"complement": (\d+)', text))])}  # a complement's block has to be in the window
    small = ",".join(f"{key}={value}" for key, value in values.items() if f'"{key}"' in text)
    spec = f"{name}:{small}" if small else name
    out = subprocess.run([heddle(), "perplexity", "-m", model_path(model), "-f", TEXT, "-c", "768", "--chunks", "1",
                          "--plan", spec], check=True, capture_output=True, text=True, env={**os.environ, "HEDDLE_IMPL": "generic"})
    return float(re.search(r"^perplexity: (\S+)$", out.stdout, re.M).group(1))


def load():
    if not os.path.exists(CSV):
        return {}
    with open(CSV) as file:
        return {(r["model"], r["plan"]): r for r in csv.DictReader(file)}


def record(model, plan):
    """Writes the present behaviour of a plan's file beside the figures that are measured with it."""
    name, rows = plan.split(":")[0], load()
    rows[model, name] = {"model": model, "plan": name, "plan_hash": plan_hash(name), "perplexity": f"{measure(model, name):.6f}"}
    with open(CSV, "w", newline="") as file:
        writer = csv.DictWriter(file, ("model", "plan", "plan_hash", "perplexity"))
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def stale(model, plan):
    """None, or why figures of this plan are not of the present program."""
    name = plan.split(":")[0]
    row = load().get((model, name))
    if not row:
        return f"{name} on {model}: no behaviour is recorded"
    if row["plan_hash"] != plan_hash(name):
        return f"{name} on {model}: the plan file is another one"
    now, then = measure(model, name), float(row["perplexity"])
    if abs(now / then - 1) > TOLERANCE:
        return f"{name} on {model}: behaves otherwise now: {now:.6f} instead of {then:.6f} (tests/proofs/behaviour.py)"
    return None
