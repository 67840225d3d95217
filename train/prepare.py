"""Records -> token stores and generated task rows, in parallel and seeded.

  prepare.py --data DIR --tokenizer tokenizer.json [--task 4096:20000 --task 32768:1600] [--ask 2000]

DIR holds train.rec and heldout.rec; written there: train.bin/.docs.npy/.meta.json, the same
for heldout, and task<N>.bin. Task haystacks are training documents. --ask writes the rows of
the planted-fact evaluation, ask-<family>-<length>.npz, the same for every model.
"""
import argparse
import json
import multiprocessing
import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
from tokenizers import Tokenizer

import tasks
from tokenizer_train import records

G = {}


def load(tokenizer, folder=None):
    if "tok" not in G:
        G["tok"] = Tokenizer.from_file(tokenizer)
        G["maker"] = tasks.TaskMaker(G["tok"])
    if folder and "t" not in G:
        G["t"] = np.memmap(os.path.join(folder, "train.bin"), dtype=np.uint16, mode="r")
        start = np.load(os.path.join(folder, "train.docs.npy"))
        G["start"] = start[start < len(G["t"])]


def encode(job):
    tokenizer, texts = job
    load(tokenizer)
    return [np.array([0] + e.ids, dtype=np.uint16) for e in G["tok"].encode_batch(texts, add_special_tokens=False)]


def haystack(store_tokens, start):
    """hay(rng, n): n tokens from the beginning or the middle of documents, run on in store order, no borders."""
    def hay(rng, n):
        s = int(start[rng.randint(len(start))]) + 1
        s = max(0, min(s, len(store_tokens) - 3 * n - 8))
        a = np.asarray(store_tokens[s:s + 3 * n + 8])
        return a[a != 0][:n]
    return hay


def task_rows(job):
    tokenizer, folder, length, seed, count = job
    load(tokenizer, folder)
    rng = np.random.RandomState(seed)
    hay = haystack(G["t"], G["start"])
    return np.stack([G["maker"].row(rng, hay, length)[0] for _ in range(count)])


def ask_rows(job):
    """One cell of the planted-fact evaluation: rows of held-out haystacks until `count` answers are asked."""
    tokenizer, folder, family, held, length, count = job
    tok = Tokenizer.from_file(tokenizer)
    maker = tasks.TaskMaker(tok)
    t = np.memmap(os.path.join(folder, "heldout.bin"), dtype=np.uint16, mode="r")
    hay = haystack(t, np.load(os.path.join(folder, "heldout.docs.npy")))
    rng = np.random.RandomState(2026 + length + 17 * held + sum(map(ord, family)))
    rows, answers = [], []
    while len(answers) < count:
        row, got = maker.row(rng, hay, length, family, held=held)
        answers += [(len(rows), a, b, dist) for a, b, dist, _ in got]
        rows.append(row)
    name = f"ask-{family}{'-held' if held else ''}-{length}.npz"
    np.savez(os.path.join(folder, name), rows=np.stack(rows).astype(np.uint16), answers=np.array(answers, dtype=np.int32))
    return f"{name}: {len(answers)} answers in {len(rows)} rows"


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--task", action="append", default=[])
    ap.add_argument("--ask", type=int, default=0, help="evaluation rows with this many answers a family and length, from the held-out store")
    ap.add_argument("--ask-lengths", default="4096,8192,32768")
    ap.add_argument("--procs", type=int, default=os.cpu_count())
    ap.add_argument("--tasks-only", action="store_true", help="the stores are there already")
    ap.add_argument("--splits", default="train,heldout")
    ap.add_argument("--limit-mb", type=float, default=1e9)
    args = ap.parse_args()
    t0 = time.time()
    with multiprocessing.Pool(args.procs) as pool:
        for split in () if args.tasks_only else args.splits.split(","):
            path = os.path.join(args.data, split + ".rec")
            meta, size = [], 0

            def jobs():
                nonlocal size
                batch, n = [], 0
                for kind, package, p, text in records(path):
                    if size > args.limit_mb * 1e6:
                        break
                    nb = len(text.encode())
                    meta.append((kind, package, p, nb))
                    size += nb
                    batch.append(text)
                    n += nb
                    if n > 1000000:
                        yield args.tokenizer, batch
                        batch, n = [], 0
                if batch:
                    yield args.tokenizer, batch
            docs = [d for part in pool.imap(encode, jobs(), chunksize=1) for d in part]
            lens = np.array([len(d) for d in docs], dtype=np.int64)
            np.concatenate(docs).tofile(os.path.join(args.data, split + ".bin"))
            np.save(os.path.join(args.data, split + ".docs.npy"), np.cumsum(lens) - lens)
            json.dump(meta, open(os.path.join(args.data, split + ".meta.json"), "w"))
            print(f"{split}: {len(docs)} documents, {lens.sum() / 1e6:.2f}M tokens, {size / lens.sum():.3f} bytes a token; "
                  f">=32K tokens: {(lens >= 32768).sum()} documents, {lens[lens >= 32768].sum() / 1e6:.1f}M tokens; "
                  f">=8K: {lens[lens >= 8192].sum() / 1e6:.1f}M; {time.time() - t0:.1f} s", flush=True)
    with multiprocessing.Pool(args.procs) as pool:
        jobs = [(args.tokenizer, args.data, f, h, int(n), args.ask) for n in args.ask_lengths.split(",")[::-1] for f in ("facts", "keyvalue", "chain", "copy")
                for h in ((False, True) if f in ("facts", "keyvalue") else (False,)) if args.ask]
        for line in pool.imap(ask_rows, jobs):
            print(line, f"{time.time() - t0:.1f} s", flush=True)
        for spec in args.task:
            length, count = map(int, spec.split(":"))
            per = max(1, count // (args.procs * 8))
            jobs = [(args.tokenizer, args.data, length, 12345 + 7919 * i + length, per) for i in range((count + per - 1) // per)]
            with open(os.path.join(args.data, f"task{length}.bin"), "wb") as f:
                n = 0
                for a in pool.imap(task_rows, jobs):
                    a.tofile(f)
                    n += len(a)
            print(f"task rows of {length}: {n}, {n * length / 1e6:.1f}M tokens, {time.time() - t0:.1f} s", flush=True)


if __name__ == "__main__":
    main()
