"""Text -> token rows for distill.py, with the engine's own tokenizer.

  distill_rows.py --model MODEL.gguf --heddle build/heddle --records DATA/train.rec --rows 640 --out rows.bin
  distill_rows.py --model MODEL.gguf --heddle build/heddle --texts FOLDER --out docs.bin

A row is the beginning or a middle part of one document, --length tokens, the model's
begin-of-text token first where it has one. --records takes documents that are long enough,
spread evenly over the file; --texts cuts eight documents from each of FOLDER/{prose,code,lexicon}.txt,
held-out text, and writes a name a row to OUT.names. --often prose=8,docs=0.35 takes documents of
a kind several times, or some of them (1 where a kind is not named).
"""
import argparse
import os
import subprocess
import tempfile

import numpy as np

from tokenizer_train import records


def tokens(args, text):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        ids = subprocess.run([args.heddle, "tokenize", "-m", args.model, "-f", f.name, "--ids"], capture_output=True, text=True, check=True).stdout
    out = np.array(ids.split(), dtype=np.int32)
    if args.bos >= 0 and (not len(out) or out[0] != args.bos):
        out = np.append(np.int32(args.bos), out)
    return out[:args.length] if len(out) >= args.length else None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--heddle", required=True)
    ap.add_argument("--records")
    ap.add_argument("--texts")
    ap.add_argument("--often", default="")
    ap.add_argument("--rows", type=int, default=640)
    ap.add_argument("--length", type=int, default=8192)
    ap.add_argument("--bos", type=int, default=-1)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    size, rows, names = 7 * args.length, [], []
    if args.records:
        rng = np.random.RandomState(11)
        often = {k: float(n) for k, n in (x.split("=") for x in args.often.split(",") if x)}
        long = [t for kind, _, _, t in records(args.records) if len(t) >= size for _ in range(int(often.get(kind, 1.0) + rng.rand()))]
        for j in range(2 * args.rows):
            if len(rows) == args.rows:
                break
            t = long[int(j * 7919 % len(long))]
            at = 0 if j % 2 else int(rng.randint(len(t) - size + 1))
            at = t.find("\n", at) + 1 if at else 0
            row = tokens(args, t[at:at + size])
            if row is not None:
                rows.append(row)
    else:
        for name in ("prose", "code", "lexicon"):
            t = open(os.path.join(args.texts, name + ".txt"), encoding="utf-8", errors="replace").read()
            for j in range(8):
                at = t.index("\n", len(t) * (2 * j + 1) // 17) + 1
                row = tokens(args, t[at:at + size])
                if row is not None:
                    rows.append(row)
                    names.append(name)
        open(args.out + ".names", "w").write("\n".join(names) + "\n")
    np.stack(rows).astype(np.int32).tofile(args.out)
    print(f"{args.out}: {len(rows)} rows of {args.length} tokens")


if __name__ == "__main__":
    main()
