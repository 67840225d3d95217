#!/usr/bin/env python3
"""Golden lists and outputs of plans whose layers share lists, on a 64-token case: brute force, without the engine.

    sharing.py > tests/golden/methods/sharing.json

Thirty layers of 9 query heads over 3 KV heads of width 64, as the plans' variant says; q, k, v of every layer are whole
numbers of a hash, so that the test makes the same ones. For every plan: the tokens of each list that a layer makes, a
bit a token, for every row; and of two rows what every head of every layer puts out, as one number a head (the elements
summed with the signs of a hash). The layers, their operators and head maps are read from the plan file, of which the
rest is written down here: 4-bit and exact masses, what a hash draws, the mean of a list's heads, top_k, forced tokens,
whose list is read.
Ties cannot occur (checked): no key has a quotient that rounds either way, no two masses are nearly equal.
"""
import json
import math
import os

from methods import dot, draw, in_levels, murmur, pick, reduce_heads, softmax

PLANS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "plans")
N, LAYERS, HEADS, KV, DIM = 64, 30, 9, 3, 64
GROUP, SCALE, SEED = HEADS // KV, 0.125, 3
NUMBERS = {"top_k": 12, "sinks": 2, "window": 5}
ROWS = (40, 63)
LARGEST = 1021  # a prime, once in every row of a head: no other element times 7 or 127 over it ends in a half


def element(layer, kind, token, i):
    at = ((SEED * LAYERS + layer) * 4 + kind) * N * 1024 + token * 1024
    h = murmur(at + i)
    value = LARGEST if i % DIM == murmur(at + 1000 + i // DIM) % DIM else (h >> 1) % 2001 - 1000
    loud = 2 if kind == 1 and token % 11 == 3 else 1
    return (value if h & 1 else -value) * loud / 512


def rows(layer, kind, heads):
    return [[[element(layer, kind, t, h * DIM + d) for d in range(DIM)] for h in range(heads)] for t in range(N)]


SIGNS = [1 if murmur(d + 1) & 1 else -1 for d in range(DIM)]
INPUT = [(rows(layer, 0, HEADS), rows(layer, 1, KV), rows(layer, 2, KV)) for layer in range(LAYERS)]


def masses(layer, score):
    """[row][head] the softmax over what the row sees."""
    q, k, _ = INPUT[layer]
    if score == "attention_mass":
        return [[softmax([SCALE * dot(q[t][h], k[j][h // GROUP]) for j in range(t + 1)]) for h in range(HEADS)] for t in range(N)]
    assert score == "key_i4", score
    low = [[in_levels(k[t][h], 7) for h in range(KV)] for t in range(N)]
    out = []
    for t in range(N):
        queries = [in_levels(q[t][h], 127) for h in range(HEADS)]
        out.append([softmax([SCALE * sum(a * b for a, b in zip(x, low[j][h // GROUP][0])) * s * low[j][h // GROUP][1]
                             for j in range(t + 1)]) for h, (x, s) in enumerate(queries)])
    return out


def lists_of(layer, router):
    """[row][list] tokens."""
    n = {"layer": 1, "kv_head": KV}[router.get("lists", "layer")]
    assert not set(router) - {"score", "select", "lists", "top_k", "sinks", "window", "seed"}, router
    assert router.get("select", "top_k") == "top_k", router
    if router["score"] == "random":
        return [[pick([draw(router["seed"], t, j, g) for j in range(t + 1)], t, block=1, **NUMBERS) for g in range(n)]
                for t in range(N)]
    return [[pick(reduce_heads(mass[g * HEADS // n:(g + 1) * HEADS // n], "mean"), t, block=1, **NUMBERS) for g in range(n)]
            for t, mass in enumerate(masses(layer, router["score"]))]


def output(layer, t, h, tokens):
    q, k, v = INPUT[layer]
    p = softmax([SCALE * dot(q[t][h], k[j][h // GROUP]) for j in tokens])
    return math.fsum(w * math.fsum(s * x for s, x in zip(SIGNS, v[j][h // GROUP])) for w, j in zip(p, tokens))


def rules_of(decode):
    named = {layer: rule for rule in decode if isinstance(rule["layers"], list) for layer in rule["layers"]}
    rest = [rule for rule in decode if rule["layers"] == "rest"]
    return [named.get(layer) or rest[0] for layer in range(LAYERS)]


def case(name):
    plan = json.load(open(os.path.join(PLANS, name + ".json")))
    made, puts_out, last = {}, {row: [] for row in ROWS}, None
    for layer, rule in enumerate(rules_of(plan["variants"][0]["decode"])):
        if "router" in rule:
            made[layer] = lists_of(layer, rule["router"])
            last = layer
        owner = layer if "router" in rule else last if rule.get("share") == "previous" else rule.get("share")
        for t in ROWS:
            for h in range(HEADS):
                tokens = range(t + 1)
                if rule.get("operator", "dense") == "token_list":
                    own = made[owner][t]
                    kv = rule["head_map"][h // GROUP] if "head_map" in rule else h // GROUP
                    tokens = own[kv * len(own) // KV]
                puts_out[t].append(round(output(layer, t, h, tokens), 7))
    bits = {layer: ["".join(f"{sum(1 << j for j in one):016x}" for one in row) for row in lists] for layer, lists in made.items()}
    settings = ",".join(f"{key}={value}" for key, value in NUMBERS.items())
    return {"plan": f"{name}:{settings}", "lists": bits, "rows": list(ROWS), "o": [puts_out[t] for t in ROWS]}


if __name__ == "__main__":
    print(json.dumps({"arch": "llama", "n_tokens": N, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "head_dim": DIM,
                      "scale": SCALE, "seed": SEED, "cases": [case(name) for name in ("indexcache", "hylra", "kascade", "tidal", "random", "anchor", "layered4")]},
                     separators=(",", ":")))
