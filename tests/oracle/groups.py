#!/usr/bin/env python3
"""Golden groups of like keys (plane GROUP): the rule of src/backend/cpu/groups.h in exact sums, without the engine.

    groups.py > tests/golden/methods/groups.json

Keys of two heads of 16 are drawn by integer hashes, which the test repeats. Of every full segment of 256 tokens: its
tokens, group after group, and the groups' mean keys. No decision is closer than rounding: checked.
"""
import json
import math

SEGMENT, WIDTH = 256, 32


def mix(x, factor):
    x &= 0xFFFFFFFF
    for _ in range(3):
        x = (x ^ x >> 15) * factor & 0xFFFFFFFF
    return x


def key(t, n_centres):
    at = mix(t * 7919 + 17, 0x297A2D39)
    row = []
    for i in range(WIDTH):
        noise = mix(t * 40503 + i * 9973 + 12345, 0x2C1B3C6D)
        centre = mix((at >> 8) % n_centres * 613 + i * 104729 + 1, 0x2C1B3C6D)
        row.append(((noise >> 8 & 127) - 64 + 4 * ((centre >> 8 & 127) - 64)) / 64)
    return row


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def halve(keys, tokens):
    """The half of the tokens that lies least along the direction of the largest spread, and the other."""
    mean = [math.fsum(keys[t][i] for t in tokens) / len(tokens) for i in range(WIDTH)]
    rows = [[x - m for x, m in zip(keys[t], mean)] for t in tokens]
    lengths = [dot(r, r) for r in rows]
    best = max(range(len(rows)), key=lambda i: lengths[i])
    near = sorted(lengths)[-2:]
    assert len(near) < 2 or near[1] - near[0] > 1e-5 * near[1]
    v = rows[best]
    for _ in range(2):
        along = [dot(r, v) for r in rows]
        v = [math.fsum(a * r[i] for a, r in zip(along, rows)) for i in range(WIDTH)]
        most = max(abs(x) for x in v)
        v = [x / most for x in v]
    order = sorted(range(len(rows)), key=lambda i: dot(rows[i], v))
    half = len(rows) // 2
    low, high = dot(rows[order[half - 1]], v), dot(rows[order[half]], v)
    assert high - low > 1e-5 * math.sqrt(max(lengths)), (high, low)
    return sorted(tokens[i] for i in order[:half]), sorted(tokens[i] for i in order[half:])


def groups(keys, tokens, block):
    if len(tokens) == block:
        return [tokens]
    first, second = halve(keys, tokens)
    return groups(keys, first, block) + groups(keys, second, block)


def case(n, n_centres, block):
    keys = [key(t, n_centres) for t in range(n)]
    members, means = [], []
    for first in range(0, n - n % SEGMENT, SEGMENT):
        for group in groups(keys, list(range(first, first + SEGMENT)), block):
            members += [t - first for t in group]
            means += [round(math.fsum(keys[t][i] for t in group) / block, 6) for i in range(WIDTH)]
    return {"tokens": n, "centres": n_centres, "block": block, "members": members, "means": means}


print(json.dumps([case(300, 5, 16), case(512, 1000003, 64), case(256, 16, 16)], separators=(",", ":")))
