"""Token stores and the order in which rows are read.

A row is a pure function of (seed, stage mixture, row number), so resuming needs the step
number only. Sources of one step are fixed counts of rows, not random draws.
"""
import json
import os
import threading
import queue

import numpy as np
import torch


class Store:
    """tokens.bin uint16, docs.npy: offsets (each document starts with the document token)."""

    def __init__(self, folder, name):
        self.tokens = np.memmap(os.path.join(folder, name + ".bin"), dtype=np.uint16, mode="r")
        start = np.load(os.path.join(folder, name + ".docs.npy"))
        self.start = start[start < len(self.tokens)]           # a store may be cut short
        self.end = np.append(self.start[1:], len(self.tokens))
        meta = os.path.join(folder, name + ".meta.json")
        self.meta = json.load(open(meta)) if os.path.exists(meta) else None


class ShuffledPieces:
    """Documents cut into pieces of at most `length`, shuffled per epoch, laid end to end."""

    def __init__(self, store, length, seed):
        self.t, self.length, self.seed = store.tokens, length, seed
        n = (store.end - store.start + length - 1) // length
        first = np.repeat(np.cumsum(n) - n, n)
        k = np.arange(n.sum()) - first
        self.p_start = np.repeat(store.start, n) + k * length
        self.p_end = np.minimum(self.p_start + length, np.repeat(store.end, n))
        self.rows = int((self.p_end - self.p_start).sum() // length)
        self.epoch = None

    def row(self, r):
        epoch, r = divmod(r, self.rows)
        if epoch != self.epoch:
            self.order = np.random.RandomState(self.seed + 1000 * epoch).permutation(len(self.p_start))
            self.cum = np.cumsum((self.p_end - self.p_start)[self.order])
            self.epoch = epoch
        lo, hi = r * self.length, (r + 1) * self.length
        i = int(np.searchsorted(self.cum, lo, side="right"))
        out = []
        while lo < hi:
            p = self.order[i]
            begin = self.cum[i] - (self.p_end[p] - self.p_start[p])
            a, b = self.p_start[p] + lo - begin, self.p_start[p] + min(hi, self.cum[i]) - begin
            out.append(self.t[a:b])
            lo += b - a
            i += 1
        return np.concatenate(out)


class LongWindows:
    """Consecutive windows of documents of at least `length` tokens (of one kind, if named), shuffled per epoch."""

    def __init__(self, store, length, seed, kind=None):
        self.t, self.length, self.seed = store.tokens, length, seed
        size = store.end - store.start
        if kind:
            size = np.where([m[0] == kind for m in store.meta[:len(size)]], size, 0)
        ok = np.flatnonzero(size >= length)
        self.base = np.concatenate([np.arange(store.start[d], store.end[d] - length + 1, length) for d in ok]) if len(ok) else np.zeros(0, int)
        self.slack = np.concatenate([np.full(int(size[d] // length), size[d] % length) for d in ok]) if len(ok) else np.zeros(0, int)
        self.rows = len(self.base)

    def row(self, r):
        epoch, r = divmod(r, self.rows)
        rng = np.random.RandomState(self.seed + 7000 + 1000 * epoch)
        p = int(rng.permutation(self.rows)[r])
        s = int(self.base[p]) + (int(np.random.RandomState(self.seed + 31 * epoch + p).randint(self.slack[p] + 1)) if epoch else 0)
        return self.t[s:s + self.length]


class PackageOrder:
    """Windows of the store as it lies: files of one package in order."""

    def __init__(self, store, length, seed):
        self.t, self.length, self.seed = store.tokens, length, seed
        self.rows = len(store.tokens) // length - 1

    def row(self, r):
        epoch, r = divmod(r, self.rows)
        rng = np.random.RandomState(self.seed + 9000 + epoch)
        off = int(rng.randint(self.length))
        s = off + int(rng.permutation(self.rows)[r]) * self.length
        return self.t[s:s + self.length]


class TaskRows:
    def __init__(self, folder, length):
        t = np.memmap(os.path.join(folder, f"task{length}.bin"), dtype=np.uint16, mode="r")
        self.t = t.reshape(-1, length)
        self.rows = len(self.t)

    def row(self, r):
        return self.t[r % self.rows]


def make_sources(folder, length, seed, mix):
    """mix: dict source -> rows per step."""
    nat = Store(folder, "train")
    kinds = {"nat": lambda: ShuffledPieces(nat, length, seed), "long": lambda: LongWindows(nat, length, seed),
             "prose": lambda: LongWindows(nat, length, seed, "prose"), "package": lambda: PackageOrder(nat, length, seed), "task": lambda: TaskRows(folder, length)}
    return [(kinds[k](), n) for k, n in mix.items() if n]


def step_rows(sources, step, seed):
    """All rows of one step, in a fixed shuffled order: int64 [rows, length]."""
    rows = [src.row(step * n + i) for src, n in sources for i in range(n)]
    order = np.random.RandomState((seed * 1000003 + step) % (1 << 31)).permutation(len(rows))
    return np.stack([np.asarray(rows[i]) for i in order])


class Loader:
    """Prefetches steps on a thread. rank r of w takes rows r, r + w, ..."""

    def __init__(self, sources, seed, first_step, rank, world, device, depth=4):
        self.q = queue.Queue(depth)
        self.dev, self.stop = device, False

        def work():
            step = first_step
            while not self.stop:
                a = step_rows(sources, step, seed)[rank::world].astype(np.int32)
                t = torch.from_numpy(a)
                if device.type == "cuda" and len(t):
                    t = t.pin_memory()
                while not self.stop:
                    try:
                        self.q.put((step, t), timeout=0.5)
                        break
                    except queue.Full:
                        pass
                step += 1
        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def next(self):
        step, t = self.q.get()
        return step, t.to(self.dev, non_blocking=True).long()

    def close(self):
        self.stop = True
