#!/usr/bin/env python3
"""Golden lists and outputs of plans whose layers share lists, on a 64-token case: brute force, without the engine.

    sharing.py > tests/golden/methods/sharing.json

Thirty layers of 9 query heads over 3 KV heads of width 64, as the plans' variant says; q, k, v of every layer are whole
numbers of a hash, so that the test makes the same ones. For every plan: the tokens of each list that a layer makes, a
bit a token, for every row; and of two rows what every head of every layer puts out, as one number a head (the elements
summed with the signs of a hash). The layers, their operators and head maps are read from the plan file, of which the
rest is written down here: 4-bit, coded and exact masses, what a hash draws, the mean or the largest of a list's heads,
pages that sum their tokens, top_k, forced tokens, whose list is read, and what it leaves out. Any other word of a plan
stops this with its name. A plan whose numbers no override sets stands beside the golden file, in small.
Ties cannot occur (checked): no key has a quotient that rounds either way, no two masses are nearly equal.
"""
import json
import math
import os

from methods import check_small, coded, dot, draw, f16, in_levels, murmur, pick, reduce_heads, softmax, stepped

HERE = os.path.dirname(os.path.abspath(__file__))
PLANS, SMALL = os.path.join(HERE, "..", "..", "plans"), os.path.join(HERE, "..", "golden", "methods")
N, LAYERS, HEADS, KV, DIM = 64, 30, 9, 3, 64
GROUP, SCALE, SEED = HEADS // KV, 0.125, 3
NUMBERS = {"top_k": 12, "sinks": 2, "window": 5}
PAGES = {"block": 4}  # of plans that choose pages
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
    if score == "key_pq2":
        keys = [[coded(x, 2) for x in k[t]] for t in range(N)]
        return [[softmax([SCALE * dot(x, keys[j][h // GROUP]) for j in range(t + 1)]) for h, x in enumerate(map(stepped, q[t]))] for t in range(N)]
    if score != "key_i4":
        raise NotImplementedError(f"score {score}")
    low = [[in_levels(k[t][h], 7) for h in range(KV)] for t in range(N)]
    out = []
    for t in range(N):
        queries = [in_levels(q[t][h], 127) for h in range(HEADS)]
        out.append([softmax([SCALE * sum(a * b for a, b in zip(x, low[j][h // GROUP][0])) * s * low[j][h // GROUP][1]
                             for j in range(t + 1)]) for h, (x, s) in enumerate(queries)])
    return out


def lists_of(layer, router):
    """[row][list] units."""
    known = {"score", "select", "lists", "heads", "pool", "block", "top_k", "head_top_k", "sinks", "window", "seed", "dense_below"}
    if set(router) - known or router.get("select", "top_k") != "top_k" or router.get("pool", "sum") != "sum" or router.get("dense_below", 0):
        raise NotImplementedError(f"router {router}")
    n, block = {"layer": 1, "kv_head": KV}[router.get("lists", "layer")], router.get("block", 1)
    budgets = router.get("head_top_k") or [router["top_k"]] * n
    chosen = [{"block": block, "top_k": budget, "sinks": router.get("sinks", 0), "window": router["window"]} for budget in budgets]
    if router["score"] == "random":
        return [[pick([draw(router["seed"], t, j, g) for j in range(t + 1)], t, **chosen[g]) for g in range(n)] for t in range(N)]

    def units(score):
        return [math.fsum(score[b:b + block]) for b in range(0, len(score), block)]
    return [[pick(units(reduce_heads(mass[g * HEADS // n:(g + 1) * HEADS // n], router.get("heads", "mean"))), t, **chosen[g]) for g in range(n)]
            for t, mass in enumerate(masses(layer, router["score"]))]


def rest_of(layer, t, kv, tokens, block):
    """[key, value, how many] of what a list leaves out of blocks that end before the row's own; means of whole blocks in f16."""
    for b in range(t // block if block else 0):
        out = [j for j in range(b * block, (b + 1) * block) if j not in tokens]
        if out:
            yield *[[(block * f16(math.fsum(x[j][kv][d] for j in range(b * block, (b + 1) * block)) / block)
                      - math.fsum(x[j][kv][d] for j in range(b * block, (b + 1) * block) if j in tokens)) / len(out) for d in range(DIM)]
                    for x in INPUT[layer][1:]], len(out)


def output(layer, t, h, tokens, complement):
    q, k, v = INPUT[layer]
    read = [(k[j][h // GROUP], v[j][h // GROUP], 1) for j in tokens] + list(rest_of(layer, t, h // GROUP, tokens, complement))
    p = softmax([SCALE * dot(q[t][h], key) + math.log(n) for key, _, n in read])
    return math.fsum(w * math.fsum(s * x for s, x in zip(SIGNS, value)) for w, (_, value, _) in zip(p, read))


def rules_of(decode):
    named = {layer: rule for rule in decode if isinstance(rule["layers"], list) for layer in rule["layers"]}
    rest = [rule for rule in decode if rule["layers"] == "rest"]
    return [named.get(layer) or rest[0] for layer in range(LAYERS)]


def case(name, numbers=NUMBERS):
    """A plan of plans/ under these numbers, or one in small as it is."""
    is_small = name.endswith("_small")
    if is_small:
        check_small(name + ".json", name.replace("_small", ".json"))
    plan = json.load(open(os.path.join(SMALL if is_small else PLANS, name + ".json")))
    made, puts_out, last = {}, {row: [] for row in ROWS}, None
    for layer, rule in enumerate(rules_of(plan["variants"][0]["decode"])):
        if set(rule) - {"layers", "operator", "router", "share", "head_map", "complement"}:
            raise NotImplementedError(f"{name}, layer {layer}: {rule}")
        if "router" in rule:
            router = rule["router"] if is_small else {**rule["router"], **numbers}
            made[layer] = lists_of(layer, router)
            last = layer, router.get("block", 1)
        owner, block = (layer, last[1]) if "router" in rule else last if rule.get("share") == "previous" else (rule.get("share"), 1)
        for t in ROWS:
            for h in range(HEADS):
                tokens, operator = range(t + 1), rule.get("operator", "dense")
                if operator != "dense":
                    assert operator == {1: "token_list"}.get(block, "block_list"), (name, layer, operator)
                    own = made[owner][t]
                    kv = rule["head_map"][h // GROUP] if "head_map" in rule else h // GROUP
                    tokens = [j for unit in own[kv * len(own) // KV] for j in range(unit * block, min((unit + 1) * block, t + 1))]
                puts_out[t].append(round(output(layer, t, h, tokens, rule.get("complement", 0)), 7))
    bits = {layer: ["".join(f"{sum(1 << j for j in one):016x}" for one in row) for row in lists] for layer, lists in made.items()}
    settings = ",".join(f"{key}={value}" for key, value in numbers.items())
    return {"plan": name + (".json" if is_small else f":{settings}"), "lists": bits, "rows": list(ROWS), "o": [puts_out[t] for t in ROWS]}


CASES = [*[(name,) for name in ("indexcache", "hylra", "kascade", "tidal", "random", "anchor", "layered4")],
         ("delta", {**PAGES, **NUMBERS}), ("layered_pq_small",), ("budgets_pq_small",)]

if __name__ == "__main__":
    text = json.dumps({"arch": "llama", "n_tokens": N, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "head_dim": DIM,
                       "scale": SCALE, "seed": SEED, "cases": [case(*each) for each in CASES]}, separators=(",", ":"))
    print(text)
