#!/usr/bin/env python3
"""Eviction by brute force: a whole forward of the tiny Llama in float64, every row's attention on its own.

    retain_oracle.py TINY_DIR OUT_DIR

Reads TINY_DIR/llama and writes OUT_DIR/NAME.txt for each case below: 64 prompt tokens read, rows evicted,
then generated tokens fed one by one. Nothing is shared with the engine: each (layer, KV head) is a plain
list of [position, key, value, mass] that rows are taken from. Lines of the output:

    list STEP LAYER HEAD POSITION...    what a head holds after an eviction (STEP: tokens read then)
    logits STEP VALUE...                the logits after so many tokens

A case is refused here when a choice is too close to call (the last row kept against the first one lost).
Needs numpy.
"""
import json
import pathlib
import struct
import sys

import numpy as np

N_PROMPT, N_GENERATED = 64, 16
CASES = {
    "snapkv": {"score": "mass_window", "keep": 24, "observe": 8, "window": 8, "pool": 7, "pool_by": "mean"},
    "snapkv-max": {"score": "mass_window", "keep": 20, "observe": 6, "window": 4, "sinks": 2, "pool": 5, "pool_by": "max"},
    "h2o": {"score": "mass_sum", "keep": 24, "window": 12, "every": 4},
}


def load(folder):
    raw = (folder / "model.safetensors").read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    weights = {}
    for name, at in header.items():
        assert at["dtype"] == "F32"
        begin, end = at["data_offsets"]
        weights[name] = np.frombuffer(raw[8 + n + begin:8 + n + end], "<f4").astype(np.float64).reshape(at["shape"])
    return json.loads((folder / "config.json").read_text()), weights


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def rotate(x, position, base):
    half = len(x) // 2
    angle = position * np.array([base ** (-2 * i / len(x)) for i in range(half)])
    first, second = x[:half], x[half:]
    return np.concatenate([first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)])


class Model:
    def __init__(self, folder, case):
        self.config, self.w = load(folder)
        self.case = case
        self.n_heads, self.n_kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.dim = self.config["hidden_size"] // self.n_heads
        self.n_layers = self.config["num_hidden_layers"]
        self.rows = [[[] for _ in range(self.n_kv)] for _ in range(self.n_layers)]  # [layer][head][row]
        self.n_seen = 0
        self.recent = []  # per token read lately: [layer][head] -> {position: mass}

    def step(self, token):
        """One token through the model; its logits."""
        c, w, position = self.config, self.w, self.n_seen
        x = w["model.embed_tokens.weight"][token]
        masses = []
        for layer in range(self.n_layers):
            p = f"model.layers.{layer}."
            h = norm(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
            q = (w[p + "self_attn.q_proj.weight"] @ h).reshape(self.n_heads, self.dim)
            k = (w[p + "self_attn.k_proj.weight"] @ h).reshape(self.n_kv, self.dim)
            v = (w[p + "self_attn.v_proj.weight"] @ h).reshape(self.n_kv, self.dim)
            out, of_head = [], []
            for head in range(self.n_kv):
                held = self.rows[layer][head]
                held.append([position, rotate(k[head], position, c["rope_theta"]), v[head], 0.0])
                group = range(head * self.n_heads // self.n_kv, (head + 1) * self.n_heads // self.n_kv)
                mass = np.zeros(len(held))
                for i in group:
                    query = rotate(q[i], position, c["rope_theta"])
                    s = np.array([query @ row[1] for row in held]) / np.sqrt(self.dim)
                    e = np.exp(s - s.max())
                    e /= e.sum()
                    out.append(sum(e[j] * held[j][2] for j in range(len(held))))
                    mass += e / len(group)
                for j, row in enumerate(held):
                    row[3] += mass[j]
                of_head.append({row[0]: mass[j] for j, row in enumerate(held)})
            masses.append(of_head)
            x = x + w[p + "self_attn.o_proj.weight"] @ np.concatenate(out)
            h = norm(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
            gate = w[p + "mlp.gate_proj.weight"] @ h
            x = x + w[p + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (w[p + "mlp.up_proj.weight"] @ h))
        self.n_seen += 1
        self.recent.append(masses)
        return w["model.embed_tokens.weight"] @ norm(x, w["model.norm.weight"], c["rms_norm_eps"])

    def scores(self, layer, head):
        held, case = self.rows[layer][head], self.case
        if case["score"] == "mass_sum":
            return [row[3] for row in held]
        raw = [sum(m[layer][head].get(row[0], 0.0) for m in self.recent[-case["observe"]:]) for row in held]
        raw = raw[:len(held) - case["window"]]  # neighbours are those that may go
        half, smooth = case["pool"] // 2, []
        for j in range(len(raw)):
            near = raw[max(j - half, 0):j + half + 1]
            smooth.append(sum(near) / case["pool"] if case["pool_by"] == "mean" else max(near))
        return smooth

    def evict(self, out):
        case = self.case
        n_sink, window = case.get("sinks", 0), case["window"]
        for layer in range(self.n_layers):
            for head in range(self.n_kv):
                held = self.rows[layer][head]
                score, top = self.scores(layer, head), case["keep"] - n_sink - window
                free = range(n_sink, len(held) - window)
                order = sorted(free, key=lambda j: (-score[j], j))
                gap = score[order[top - 1]] - score[order[top]]
                # neighbours under one maximum tie on purpose; then the lowest row stays
                is_tie = case.get("pool_by") == "max" and gap == 0
                if gap < 1e-5 * score[order[top]] and not is_tie:
                    sys.exit(f"{case}: layer {layer} head {head} at {self.n_seen}: too close to call ({gap})")
                stay = sorted(set(range(n_sink)) | set(order[:top]) | set(range(len(held) - window, len(held))))
                self.rows[layer][head] = [held[j] for j in stay]
                print("list", self.n_seen, layer, head, *[row[0] for row in self.rows[layer][head]], file=out)

    def run(self, ids, out):
        for i, token in enumerate(ids):
            logits = self.step(token)
            is_prompt_end = i == N_PROMPT - 1
            n_held, every = len(self.rows[0][0]), self.case.get("every", 0)
            if is_prompt_end or (i >= N_PROMPT and every and n_held >= self.case["keep"] + every):
                self.evict(out)
            if i >= N_PROMPT - 1 and (i - N_PROMPT + 1) % 4 == 0:
                print("logits", i + 1, *[f"{value:.7g}" for value in logits], file=out)


def main():
    tiny, to = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    ids = struct.unpack("<96i", (tiny / "llama/ids.i32").read_bytes())[:N_PROMPT + N_GENERATED]
    for name, case in CASES.items():
        with open(to / f"{name}.txt", "w", encoding="ascii") as out:
            Model(tiny / "llama", case).run(ids, out)


main()
