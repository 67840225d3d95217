#!/usr/bin/env python3
"""Golden lists of the methods on a 64-token case: brute force, from the papers' formulas, without the engine.

    methods.py > tests/golden/methods/lists.json

One layer of 4 query heads over 2 KV heads of width 16; q, k are f16-exact random numbers with a few loud keys. For
every plan (with small overrides, or a small plan file beside the lists) and every row t the chosen units in ascending order;
of a plan that reads what its lists leave out, also what some rows put out, the keys being the values too. Nothing here
is shared with the C code; ties cannot occur (scores differ by more than rounding: checked).
"""
import json
import math
import pathlib
import random
import struct

N, HEADS, KV, DIM = 64, 4, 2, 16
SCALE = 0.25
GROUP = HEADS // KV


def f16(x):
    return struct.unpack("<e", struct.pack("<e", x))[0]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def make():
    rng = random.Random(20261125)
    q = [[[f16(rng.gauss(0, 1)) for _ in range(DIM)] for _ in range(HEADS)] for _ in range(N)]
    k = [[[f16(rng.gauss(0, 1) * (2.5 if t % 11 == 3 else 1)) for _ in range(DIM)] for _ in range(KV)] for t in range(N)]
    return q, k


Q, K = make()


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def softmax(s):
    top = max(s)
    e = [math.exp(x - top) for x in s]
    total = math.fsum(e)
    return [x / total for x in e]


def reduce_heads(rows, how):
    columns = list(zip(*rows))
    if how == "max":
        return [max(c) for c in columns]
    total = [math.fsum(c) for c in columns]
    return total if how == "sum" else [x / len(rows) for x in total]


def heads_of(lst, n_lists):
    return range(lst * HEADS // n_lists, (lst + 1) * HEADS // n_lists)


def pick(score, t, block, top_k, sinks, window):
    """top_k tokens (in whole blocks, rounded up) beside the forced; score[unit] for units wholly visible."""
    visible = t + 1
    units = -(-visible // block)
    forced = set(range(min(-(-sinks // block), units)))
    if window:
        forced |= set(range(max(visible - window, 0) // block, units))
    free = [u for u in range(units) if u not in forced]
    n = -(-top_k // block)
    order = sorted(free, key=lambda u: (-score[u], u))
    if 0 < n < len(order):
        a, b = score[order[n - 1]], score[order[n]]
        assert a == b or abs(a - b) > 1e-5 * max(1e-3, abs(a)), (t, a, b)  # equal: neighbours share a window
    return sorted(forced | set(order[:n]))


def mean_key(h, first, last):
    return [math.fsum(K[t][h][d] for t in range(first, last)) / (last - first) for d in range(DIM)]


def in_levels(row, levels):
    scale = max(abs(x) for x in row) / levels
    return [max(-levels, min(levels, round(x / scale))) for x in row], scale


def quantised(h, t, levels):
    return in_levels(K[t][h], levels)


def quantised_query(t, h):
    return in_levels(Q[t][h], 127)


# ---- scores of one head: a list over units (blocks wholly visible, or tokens) ----

def block_mean(t, h, block):
    return [SCALE * dot(Q[t][h], [f16(x) for x in mean_key(h // GROUP, b * block, (b + 1) * block)]) for b in range((t + 1) // block)]


def block_bounds(t, h, block):
    out = []
    for b in range((t + 1) // block):
        rows = [K[j][h // GROUP] for j in range(b * block, (b + 1) * block)]
        low, high = [min(c) for c in zip(*rows)], [max(c) for c in zip(*rows)]
        out.append(SCALE * math.fsum(max(x * a, x * c) for x, a, c in zip(Q[t][h], low, high)))
    return out


def low_bit_mass(t, h, levels):
    q, qs = quantised_query(t, h)
    scores = []
    for j in range(t + 1):
        k, ks = quantised(h // GROUP, j, levels)
        scores.append(sum(a * b for a, b in zip(q, k)) * ks * qs * SCALE)
    return softmax(scores)


BOOKS = {  # 32nds of the root mean square
    2: [(-64, -1), (-47, 36), (-46, -39), (-31, -1), (-14, -25), (-14, 25), (-12, 59), (-9, -59), (0, 0), (15, -26), (15, 26),
        (29, 0), (30, 57), (32, -55), (55, 23), (56, -21)],
    4: [(-43, -3, -32, 6), (-39, -27, 24, -9), (-37, 31, 18, 19), (-23, 21, 16, -42), (-15, -20, -3, 48), (-8, 42, -32, -13),
        (-7, -21, -27, -41), (0, 0, 0, 0), (3, -7, 49, 22), (8, -53, -4, 1), (15, -11, -49, 14), (15, 31, -12, 40),
        (21, -19, 31, -35), (21, 41, 29, -5), (41, 14, -17, -29), (48, -14, 7, 21)],
}


def murmur(h):
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def rotated(x):
    """Signs, then the orthonormal Walsh-Hadamard matrix, element by element; as many as a power of two."""
    x = [-v if murmur(i + 1) & 1 else v for i, v in enumerate(x)]
    return [math.fsum(-v if bin(i & j).count("1") & 1 else v for j, v in enumerate(x)) / math.sqrt(len(x)) for i in range(len(x))]


def coded(x, group):
    """The key that the codes of a key stand for, rotated: groups take every DIM / (2 group)-th element of a half."""
    y, dim = rotated(x), len(x)
    rms, n, out = math.sqrt(dot(y, y) / dim), dim // (2 * group), [0] * dim
    for first in [half * dim // 2 + i for half in range(2) for i in range(n)]:
        places = [first + j * n for j in range(group)]
        far = sorted((math.dist(entry, [32 * y[p] / rms for p in places]), entry) for entry in BOOKS[group])
        assert far[1][0] - far[0][0] > 5e-6, far[:2]
        near = far[0][1]
        for p, c in zip(places, near):
            out[p] = c
    scale = dot(y, y) / dot(y, out)
    return [scale * c for c in out]


CODED = {(group, j, kv): coded(K[j][kv], group) for group in BOOKS for j in range(N) for kv in range(KV)}


def stepped(x):
    """The query that is multiplied with codes: rotated, in 127 steps."""
    q = rotated(x)
    step = max(abs(x) for x in q) / 127
    return [round(x / step) * step for x in q]


def coded_mass(t, h, group):
    q = stepped(Q[t][h])
    return softmax([SCALE * dot(q, CODED[group, j, h // GROUP]) for j in range(t + 1)])


def attention_mass(t, h):
    return softmax([SCALE * dot(Q[t][h], K[j][h // GROUP]) for j in range(t + 1)])


def pooled_windows(t, h, block):
    """Softmax over windows of 2 x (block / 4) tokens, a quarter apart, wholly visible; the best window of a block."""
    step = block // 4
    n = max((t + 1) // step - 1, 0)
    if not n:
        return [-math.inf] * ((t + 1) // block)
    means = [[f16(x) for x in mean_key(h // GROUP, m * step, (m + 1) * step)] for m in range(n + 1)]
    return softmax([SCALE * dot(Q[t][h], [(a + b) / 2 for a, b in zip(means[m], means[m + 1])]) for m in range(n)])


def best_window(p, t, block):
    out = []
    for b in range((t + 1) // block):
        windows = [p[m] for m in range(max(4 * b - 1, 0), 4 * b + 4) if m < len(p)]
        out.append(max(windows) if windows else -math.inf)
    return out


def lists(n_lists, row):
    return [[row(t, lst) for lst in range(n_lists)] for t in range(N)]


def case(plan, n_lists, score, how, **select):
    def row(t, lst):
        heads = [score(t, h) for h in heads_of(lst, n_lists)]
        return pick(reduce_heads(heads, how), t, **select)
    return {"plan": plan, "lists": lists(n_lists, row)}


def united(plan, n_lists, score, how, **select):
    """One list: every unit that the list of some KV head holds."""
    def row(t, lst):
        own = [pick(reduce_heads([score(t, h) for h in heads_of(kv, n_lists)], how), t, **select) for kv in range(n_lists)]
        return sorted(set().union(*own))
    return {"plan": plan, "lists": lists(1, row)}


def key_logits(t, h, levels):
    q, qs = quantised_query(t, h)
    return [sum(a * b for a, b in zip(q, k)) * ks * qs * SCALE for k, ks in (quantised(h // GROUP, j, levels) for j in range(t + 1))]


def s2o(plan, below, tile, top_k, sinks, window):
    """Own tokens first, then the others from the best on, `tile` at a time, until a tile's share of the sum of exp(s)
    so far is small for every head; reads: tokens that were visited, the mean of the KV heads."""
    orders = {}

    def row(t, kv):
        score = reduce_heads([key_logits(t, h, 127) for h in heads_of(kv, KV)], "mean")
        ids = pick(score, t, block=1, top_k=top_k, sinks=sinks, window=window)
        first = [j for j in ids if j < sinks or j > t - window]
        rest = sorted((j for j in ids if j not in first), key=lambda j: (-score[j], j))
        weight = [[math.exp(SCALE * dot(Q[t][h], K[j][kv])) for j in range(t + 1)] for h in heads_of(kv, KV)]
        read = list(first)
        while rest:
            part, rest = rest[:tile], rest[tile:]
            read += part
            gain = max(math.fsum(w[j] for j in part) / math.fsum(w[j] for j in read) for w in weight)
            assert abs(gain - below) > 1e-5, (t, gain)
            if gain < below:
                break
        orders[t, kv] = len(read)
        return ids
    golden = lists(KV, row)
    return {"plan": plan, "lists": golden, "reads": [sum(orders[t, kv] for kv in range(KV)) / KV for t in range(N)]}


def mean_mass(t, h, block):
    """Softmax over mean keys times the root of their length; every block stands for as many tokens."""
    return softmax([x * math.sqrt(block) for x in block_mean(t, h, block)]) if t + 1 >= block else []


def block_peak(t, h, block):
    out = []
    for b in range((t + 1) // block):
        peak = [max(c) for c in zip(*(K[j][h // GROUP] for j in range(b * block, (b + 1) * block)))]
        out.append(SCALE * dot(Q[t][h], peak))
    return out


def block_middle(t, h, block):
    return [SCALE * dot(Q[t][h], K[b * block + block // 2][h // GROUP]) for b in range((t + 1) // block)]


def block_sampled(t, h, block):
    """Four keys a block; the logit of each plus the log of the tokens it stands for, softmax over all, the largest."""
    part = block // 4
    keys = [SCALE * dot(Q[t][h], K[e * part + part // 2][h // GROUP]) + math.log(part) for e in range((t + 1) // part)]
    mass = softmax(keys) if keys else []
    return [max(mass[b * 4:b * 4 + 4]) for b in range(-(-len(mass) // 4))]


def sale(plan, n_lists, block, limit, top_k, sinks, window):
    """Blocks with one key whose 4-bit mass under some head is above the limit; of them the largest (0: all)."""
    def row(t, lst):
        mass = reduce_heads([low_bit_mass(t, h, 7) for h in heads_of(lst, n_lists)], "max")
        assert all(abs(x - limit) > 1e-6 for x in mass), t
        units = -(-(t + 1) // block)
        forced = set(range(min(-(-sinks // block), units))) | set(range(max(t + 1 - window, 0) // block, units))
        best = {b: max(mass[b * block:(b + 1) * block]) for b in range(units) if b not in forced}
        above = sorted((b for b in best if best[b] > limit), key=lambda b: (-best[b], b))
        return sorted(forced | set(above[:top_k // block] if top_k else above))
    return {"plan": plan, "lists": lists(n_lists, row)}


def hip(plan, n_lists, block, top_k, sinks, window):
    """HiP: groups that tile the blocks between sinks and window are halved; a half counts as its first block's
    largest key, the best so many stay."""
    def row(t, lst):
        units = -(-(t + 1) // block)
        first, last = min(-(-sinks // block), units), max(t + 1 - window, 0) // block
        n = max(last - first, 0)
        width = min(top_k // block, n)
        scores = []
        for h in heads_of(lst, n_lists):
            q, qs = quantised_query(t, h)
            keys = [quantised(h // GROUP, j, 127) for j in range(t + 1)]
            scores.append([sum(a * b for a, b in zip(q, k)) * ks * qs * SCALE for k, ks in keys])
        best = reduce_heads(scores, "max")
        groups = [(first + i * n // width, (i + 1) * n // width - i * n // width) for i in range(width)]
        while any(size > 1 for _, size in groups):
            halves = [c for s, size in groups for c in ((s, size // 2), (s + size // 2, size - size // 2)) if c[1]]
            by_score = sorted(halves, key=lambda c: (-max(best[c[0] * block:(c[0] + 1) * block]), c[0]))
            groups = sorted(by_score[:width])
        return sorted(set(range(first)) | {s for s, _ in groups} | set(range(max(last, 0), units)))
    return {"plan": plan, "lists": lists(n_lists, row)}


def tiles(plan, tile, top_k, sinks, window):
    """Tiles of prompt rows, one list each: 4-bit masses, each row's over what it sees, summed; every row's window is
    forced. The list stands at the tile's last row, the others have none."""
    def row(t, lst):
        if (t + 1) % tile:
            return []
        rows = [reduce_heads([low_bit_mass(r, h, 7) for h in range(HEADS)], "mean") for r in range(t + 1 - tile, t + 1)]
        total = [math.fsum(r[j] for r in rows if j < len(r)) for j in range(t + 1)]
        return pick(total, t, block=1, top_k=top_k, sinks=sinks, window=window + tile - 1)
    return {"plan": plan, "route": "prefill", "tile": tile, "lists": lists(1, row)}


def vertical_slash(plan, n_lists, tile, top_k, slashes, sinks, window):
    """MInference on tiles of rows: the tokens of most mass, summed over the rows, and the distances of most, at each
    of which every row of the tile reads its token; 8-bit keys."""
    def row(t, lst):
        if (t + 1) % tile:
            return []
        rows = {r: reduce_heads([low_bit_mass(r, h, 127) for h in heads_of(lst, n_lists)], "mean") for r in range(t + 1 - tile, t + 1)}
        vertical = [math.fsum(m[j] for m in rows.values() if j < len(m)) for j in range(t + 1)]
        far = [math.fsum(rows[r][r - d] for r in rows if r - d >= 0) for d in range(t + 1)]
        free = sorted((d for d in range(window, t + 1)), key=lambda d: (-far[d], -d))
        if 0 < slashes < len(free):
            assert abs(far[free[slashes - 1]] - far[free[slashes]]) > 1e-6, t
        distances = list(range(min(window, t + 1))) + free[:slashes]
        tokens = {r - d for r in rows for d in distances if r - d >= 0}
        return sorted(tokens | set(pick(vertical, t, block=1, top_k=top_k, sinks=sinks, window=window + tile - 1)))
    return {"plan": plan, "route": "prefill", "tile": tile, "lists": lists(n_lists, row)}


def infllm(plan, n_lists, block, **select):
    def row(t, lst):
        p = [pooled_windows(t, h, block) for h in heads_of(lst, n_lists)]
        if any(x == -math.inf for x in p[0]):
            return pick([-math.inf] * ((t + 1) // block), t, block=block, **select)
        return pick(best_window(reduce_heads(p, "sum"), t, block), t, block=block, **select)
    return {"plan": plan, "lists": lists(n_lists, row)}


def delta(plan, block, how, **select):
    """DELTA's page score: the largest mass over all heads, summed over the page's tokens."""
    def row(t, lst):
        mass = reduce_heads([attention_mass(t, h) for h in range(HEADS)], how)
        pages = [math.fsum(mass[b * block:(b + 1) * block]) for b in range(-(-(t + 1) // block))]
        return pick(pages, t, block=block, **select)
    return {"plan": plan, "lists": lists(1, row)}


def staged(plan, n_lists, coarse, block, candidate_k, fine, n_of, sinks, window):
    """Blocks by the largest head's coarse score, then tokens inside them by the fine one: n_of says how many."""
    def row(t, lst):
        heads = heads_of(lst, n_lists)
        best = reduce_heads([coarse(t, h, block) for h in heads], "max")
        blocks = pick(best, t, block=block, top_k=candidate_k, sinks=sinks, window=window)
        tokens = [j for b in blocks for j in range(b * block, min((b + 1) * block, t + 1))]
        score = dict(zip(tokens, fine(t, heads, tokens)))
        forced = set(tokens[:sinks]) | set(tokens[len(tokens) - window:] if window else [])
        order = sorted((j for j in tokens if j not in forced), key=lambda j: (-score[j], j))
        n = n_of(score, forced, order)
        assert not 0 < n < len(order) or score[order[n - 1]] - score[order[n]] > 1e-6, t
        return sorted(forced | set(order[:n]))
    return {"plan": plan, "lists": lists(n_lists, row)}


def mass_inside(t, heads, tokens):
    """4-bit mass over these tokens, the mean of the heads."""
    rows = [key_logits(t, h, 7) for h in heads]
    return reduce_heads([softmax([row[j] for j in tokens]) for row in rows], "mean")


def loudest_inside(t, heads, tokens):
    rows = [key_logits(t, h, 127) for h in heads]
    return [max(row[j] for row in rows) for j in tokens]


def until_share(p):
    """The fewest that hold a share p together with the forced ones."""
    def n_of(score, forced, order):
        total, share, n = math.fsum(score.values()), math.fsum(score[j] for j in forced), 0
        while n < len(order) and share / total < p:
            share += score[order[n]]
            n += 1
            assert abs(share / total - p) > 1e-6
        return n
    return n_of


def hisa(plan, block, candidate_k, top_k, sinks, window):
    return staged(plan, 1, block_mean, block, candidate_k, mass_inside, lambda *_: top_k, sinks, window)


def dense_to(dense_below, block, golden):
    """The case, but a row that sees at most so many tokens reads all blocks."""
    for t in range(dense_below):
        golden["lists"][t] = [list(range(t // block + 1)) for _ in golden["lists"][t]]
    return golden


def static(plan, n_lists, keeps, block, sinks, window):
    def row(t, lst):
        own = t // block
        units = own + 1
        forced = set(range(min(-(-sinks // block), units))) | set(range(max(t + 1 - window, 0) // block, units))
        whole = (t + 1) // block
        return sorted(forced | {b for b in range(whole) if keeps(own, b, lst)})
    return {"plan": plan, "lists": lists(n_lists, row)}


def draw(seed, own, unit, lst):
    """Uniform in [0, 1): a hash of (seed, the row's own unit, unit, list)."""
    def mixed(h, shift, factor):
        return (h ^ h >> shift) * factor % 2**64

    h = seed * 0x9E3779B97F4A7C15 ^ (own + 1) * 0xD1B54A32D192ED03 ^ (unit * 131 + lst) * 0x2545F4914F6CDD1D
    return (mixed(mixed(h % 2**64, 31, 0xBF58476D1CE4E5B9), 27, 0x94D049BB133111EB) >> 40) / 2**24


def drawn(plan, seed, block, **select):
    """BigBird: beside the forced blocks some that a hash draws."""
    def row(t, lst):
        return pick([draw(seed, t // block, b, lst) for b in range((t + 1) // block)], t, block=block, **select)
    return {"plan": plan, "lists": lists(KV, row)}


def check_small(small, plan):
    """A small plan is the plan of plans/, or its first variant, with other numbers; its layers are the plan's."""
    tests = pathlib.Path(__file__).parent.parent
    texts = [tests.joinpath("golden/methods", small).read_text(), tests.parent.joinpath("plans", plan).read_text()]
    first, second = [json.loads(text, parse_int=lambda _: 0)["variants"] for text in texts]
    assert first == second[:len(first)], small
    first, second = [[rule["layers"] for rule in json.loads(text)["variants"][0]["decode"]] for text in texts]
    assert first == second, small


def completed(plan, n_lists, block, rows, **select):
    """Lists by 4-bit mass; the tokens that a row's list leaves out of a block that ends before the row's own are read as
    one: the mean of their keys and values, its weight times their number. Means of whole blocks are kept in f16."""
    check_small(plan, "keys4_complement.json")
    golden = case(plan, n_lists, lambda t, h: low_bit_mass(t, h, 7), "mean", block=1, **select)

    def mean_of_rest(h, b, out):
        whole = [block * f16(x) for x in mean_key(h, b * block, (b + 1) * block)]
        listed = [K[j][h] for j in range(b * block, (b + 1) * block) if j not in out]
        return [(x - math.fsum(key[d] for key in listed)) / len(out) for d, x in enumerate(whole)]

    def put_out(t, h):
        listed = golden["lists"][t][h * n_lists // HEADS]
        read = [(K[j][h // GROUP], 1) for j in listed]
        for b in range(t // block):
            out = [j for j in range(b * block, (b + 1) * block) if j not in listed]
            if out:
                read.append((mean_of_rest(h // GROUP, b, out), len(out)))
        mass = softmax([SCALE * dot(Q[t][h], key) + math.log(n) for key, n in read])
        return [round(math.fsum(p * key[d] for p, (key, _) in zip(mass, read)), 7) for d in range(DIM)]

    outputs = {str(t): [x for h in range(HEADS) for x in put_out(t, h)] for t in rows}
    return {**golden, "puts_out": outputs}


def by_head(plan, *of_heads):
    """KV head h's list is that of the h-th case, which has a list for each KV head."""
    return {"plan": plan, "lists": [[at["lists"][t][h] for h, at in enumerate(of_heads)] for t in range(N)]}


def is_power(x):
    return x > 0 and x & (x - 1) == 0


CASES = [
    case("quest:block=4,top_k=12,sinks=2,window=5", KV, lambda t, h: block_bounds(t, h, 4), "max", block=4, top_k=12, sinks=2, window=5),
    case("moba:block=8,top_k=16,window=1", KV, lambda t, h: block_mean(t, h, 8), "max", block=8, top_k=16, sinks=0, window=1),
    case("keys4:top_k=12,sinks=2,window=5", 1, lambda t, h: low_bit_mass(t, h, 7), "mean", block=1, top_k=12, sinks=2, window=5),
    case("pqkeys:top_k=12,sinks=2,window=5", 1, lambda t, h: coded_mass(t, h, 2), "mean", block=1, top_k=12, sinks=2, window=5),
    case("fours_small.json", KV, lambda t, h: coded_mass(t, h, 4), "max", block=1, top_k=12, sinks=2, window=5),
    case("oracle:top_k=12,sinks=2,window=5", 1, attention_mass, "mean", block=1, top_k=12, sinks=2, window=5),
    united("union4:top_k=12,sinks=2,window=5", KV, lambda t, h: low_bit_mass(t, h, 7), "mean", block=1, top_k=12, sinks=2, window=5),
    s2o("s2o_small.json", 0.1, 4, 24, 2, 5),
    case("peaks:block=4,top_k=12,sinks=2,window=5", KV, lambda t, h: block_peak(t, h, 4), "max", block=4, top_k=12, sinks=2, window=5),
    case("midkeys:block=4,top_k=12,sinks=2,window=5", KV, lambda t, h: block_middle(t, h, 4), "max", block=4, top_k=12, sinks=2, window=5),
    case("samples:block=8,top_k=16,sinks=2,window=5", KV, lambda t, h: block_sampled(t, h, 8), "max", block=8, top_k=16, sinks=2, window=5),
    case("sqrtmeans:block=4,top_k=12,sinks=2,window=5", KV, lambda t, h: mean_mass(t, h, 4), "mean", block=4, top_k=12, sinks=2, window=5),
    sale("sale:block=2,sinks=2,window=1", KV, 2, 0.004, 0, 2, 1),
    sale("sale:block=4,top_k=12,sinks=2,window=5", KV, 4, 0.004, 12, 2, 5),
    hip("hip:block=2,top_k=12,sinks=2,window=5", KV, 2, 12, 2, 5),
    infllm("infllm:block=8,top_k=16,sinks=8,window=9", KV, 8, top_k=16, sinks=8, window=9),
    hisa("hisa:block=8,top_k=10,sinks=2,window=5", 8, 10, 10, 2, 5),
    staged("twilight:block=4,top_k=24,sinks=2,window=5", KV, block_bounds, 4, 24, mass_inside, until_share(f32(0.95)), 2, 5),
    staged("infinitehip_small.json", 1, block_middle, 4, 24, loudest_inside, lambda *_: 12, 2, 5),
    dense_to(40, 8, infllm("infllm_switch:block=8,top_k=16,sinks=8,window=9,dense_below=40", KV, 8, top_k=16, sinks=8, window=9)),
    delta("delta:block=4,top_k=12,window=8", 4, "max", top_k=12, sinks=0, window=8),
    tiles("tiles:tile=8,top_k=12,sinks=2,window=5", 8, 12, 2, 5),
    vertical_slash("minference:tile=8,top_k=5,slashes=2,sinks=2,window=3", KV, 8, 5, 2, 2, 3),
    static("window:sinks=3,window=9", 1, lambda own, b, lst: False, 1, 3, 9),
    static("strided:block=4,stride=3,sinks=4,window=7", KV, lambda own, b, lst: (b + lst) % 3 == 0, 4, 4, 7),
    static("powers:block=4,sinks=4,window=5", 1, lambda own, b, lst: is_power(own - b), 4, 4, 5),
    drawn("bigbird:block=4,top_k=8,sinks=4,window=7", 1, 4, top_k=8, sinks=4, window=7),
    by_head("budgets_small.json",
            *[case("", KV, lambda t, h: low_bit_mass(t, h, 7), "mean", block=1, top_k=k, sinks=2, window=5) for k in (12, 3)]),
    by_head("duo_small.json",
            static("", KV, lambda own, b, lst: True, 1, 3, 9), static("", KV, lambda own, b, lst: False, 1, 3, 9)),
    by_head("heads_small.json",
            case("", KV, lambda t, h: low_bit_mass(t, h, 7), "mean", block=1, top_k=12, sinks=2, window=5),
            case("", KV, lambda t, h: coded_mass(t, h, 2), "mean", block=1, top_k=7, sinks=1, window=9)),
    completed("complement_small.json", 1, 16, (15, 16, 40, 63), top_k=12, sinks=2, window=16),
]

if __name__ == "__main__":
    check_small("infinitehip_small.json", "infinitehip.json")
    print(json.dumps({"n_tokens": N, "n_heads": HEADS, "n_kv_heads": KV, "head_dim": DIM, "scale": SCALE,
                      "q": [x for row in Q for h in row for x in h], "k": [x for row in K for h in row for x in h],
                      "cases": CASES}, separators=(",", ":")))
