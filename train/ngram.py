"""5-gram with Witten-Bell interpolation on the same tokens, as a floor for bits per byte.

  ngram.py --data DIR --out ngram.json [--rows 96 --length 32768]      same held-out rows as evaluate.py
"""
import argparse
import json
import os
import time

import numpy as np

BITS = 13                                     # n_vocab <= 8192


def grams(t, n):
    """Key of every n-gram ending at position n-1.. of t; the 65-bit keys of n = 5 lose their top bit."""
    m = len(t) - n + 1
    key = np.zeros(m, dtype=np.uint64)
    for i in range(n):
        key = (key << np.uint64(BITS)) | t[i:i + m].astype(np.uint64)
    return key


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--rows", type=int, default=96)
    ap.add_argument("--length", type=int, default=32768)
    ap.add_argument("--order", type=int, default=5)
    args = ap.parse_args()
    t0 = time.time()
    train = np.fromfile(os.path.join(args.data, "train.bin"), dtype=np.uint16)
    held = np.fromfile(os.path.join(args.data, "heldout.bin"), dtype=np.uint16)
    start = np.load(os.path.join(args.data, "heldout.docs.npy"))
    meta = json.load(open(os.path.join(args.data, "heldout.meta.json")))
    N = args.length
    at = np.unique(np.linspace(0, len(held) - N, min(args.rows, len(held) // N)).astype(int))
    use = np.zeros(len(held), bool)
    for s in at:
        use[s + 1:s + N] = True
    use[:args.order] = False
    pos = np.flatnonzero(use)
    p = np.full(len(pos), 1.0 / 8192)
    for n in range(1, args.order + 1):
        key, count = np.unique(grams(train, n), return_counts=True)
        ctx = key >> np.uint64(BITS)
        first = np.flatnonzero(np.concatenate(([True], ctx[1:] != ctx[:-1])))
        c_key, c_sum = ctx[first], np.add.reduceat(count, first)
        c_kind = np.diff(np.append(first, len(ctx)))
        q = grams(held, n)[pos - n + 1]
        i = np.minimum(np.searchsorted(key, q), len(key) - 1)
        c = np.where(key[i] == q, count[i], 0)
        qc = q >> np.uint64(BITS)
        j = np.minimum(np.searchsorted(c_key, qc), len(c_key) - 1)
        seen = c_key[j] == qc
        total, kinds = np.where(seen, c_sum[j], 0), np.where(seen, c_kind[j], 1)
        p = (c + kinds * p) / (total + kinds)
        print(f"order {n}: {-np.log(p).mean():.4f} nats a token, {time.time() - t0:.0f} s", flush=True)
    doc = np.searchsorted(start, pos, side="right") - 1
    size = np.append(start[1:], len(held)) - start
    per_byte = np.array([m[3] for m in meta], dtype=np.float64) / size
    package = np.array([m[1] for m in meta])
    out = {}
    for name in sorted(set(package)):
        m = package[doc] == name
        if m.any():
            out[name] = {"bpb": float(-np.log2(p[m]).sum() / per_byte[doc[m]].sum()), "nats_a_token": float(-np.log(p[m]).mean()), "tokens": int(m.sum())}
    json.dump(out, open(args.out, "w"), indent=1)


if __name__ == "__main__":
    main()
