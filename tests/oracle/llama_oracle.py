#!/usr/bin/env python3
"""Make the golden files of the forward pass: tests/golden/llama (formats: its README).

    llama_oracle.py goldens    OUT_DIR NAME MODEL-F32.gguf
    llama_oracle.py perplexity TEXT CONTEXT MODEL-F32.gguf [QUANTISED.gguf]

goldens: prompts, 64 greedy tokens with the lead of the best over the second, and logits at some
positions, by llama.cpp with F32 weights (dequantize.py), F32 KV cache and flash attention off.
perplexity: llama-perplexity's protocol (chunks of CONTEXT, BOS in place of a chunk's first token where
the model adds one, second half scored), and for a second file of the same model the mean of
KL(first || second) over the scored positions and the share of equal arg-maxes; one TSV row a file.
Needs llama_cpp and numpy (requirements.txt).
"""
import pathlib
import struct
import sys

import numpy as np

import llama_lib

N_GREEDY = 64
N_TOP = 32
STRIDE = 499

CODE = b'''#include <stdio.h>

/* Print the first n Fibonacci numbers, one a line. */
static void print_fibonacci(int n)
{
    unsigned long a = 0, b = 1;
    for (int i = 0; i < n; i++) {
        printf("%lu\\n", a);
'''
TABLE = b'''| n | n squared | n cubed |
|---|---|---|
| 1 | 1 | 1 |
| 2 | 4 | 8 |
| 3 | 9 | 27 |
| 4 | 16 | 64 |
| 5 | 25 |'''
STORY = b'''The lighthouse keeper climbed the stairs every evening at six. He trimmed the lamp, wound the clock and wrote one
line in the ledger. On the last day of November the line was longer than usual, because a ship without a name had
anchored in the harbour. The keeper wrote: "'''
MIXED = "La capitale de la France est Paris. Die Hauptstadt von Deutschland ist Berlin. 日本の首都は".encode()


def prompts_of(model, name, out):
    text = (out / "jargon.txt").read_bytes()
    bos = model.tokenize(b"", add_special=True)
    plain = lambda data: bos + model.tokenize(data)
    prompts = {
        "short": plain(b"The capital of France is"),
        "story": plain(STORY),
        "code": plain(CODE),
        "table": plain(TABLE),
        "mixed": plain(MIXED),
        "prose": plain(text[20000:21500]),
        "long": plain(text)[:4000],
    }
    if name == "smollm2":
        chat = (b"<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                b"<|im_start|>user\nName three rivers of Europe.<|im_end|>\n<|im_start|>assistant\n")
        prompts["chat"] = bos + model.tokenize(chat, parse_special=True)
    return prompts


def positions_of(n):
    wanted = {0, 1, 2, n // 4, n // 2, 3 * n // 4, n - 2, n - 1}
    if n > 1500:  # both sides of Gemma's window of 512, and of a batch of 512
        wanted |= {510, 511, 512, 513, 1023, 1024, n - 500}
    return {p for p in wanted if 0 <= p < n}


def best_two(logits):
    top = np.argpartition(-logits, 1)[:2]
    first, second = sorted(top, key=lambda i: (-logits[i], i))
    return int(first), float(logits[first] - logits[second])


def write_rows(path, rows, n_vocab):
    strided = list(range(0, n_vocab, STRIDE))
    with open(path, "wb") as out:
        out.write(struct.pack("<4i", len(rows), N_TOP, STRIDE, len(strided)))
        for position, logits in rows:
            top = np.argsort(-logits, kind="stable")[:N_TOP]
            out.write(struct.pack("<i", position))
            out.write(top.astype("<i4").tobytes())
            out.write(logits[top].astype("<f4").tobytes())
            out.write(logits[strided].astype("<f4").tobytes())


def goldens(out, name, path):
    model = llama_lib.Model(path)
    context = model.context(4096)
    for case, ids in prompts_of(model, name, out).items():
        context.clear()
        wanted = positions_of(len(ids))
        rows = list(context.decode(ids, 0, wanted.__contains__))
        write_rows(out / f"{name}.{case}.logits", rows, model.n_vocab)
        logits, greedy, leads = rows[-1][1], [], []
        for step in range(N_GREEDY):
            token, lead = best_two(logits)
            greedy.append(token)
            leads.append(lead)
            (_, logits), = context.decode([token], len(ids) + step, lambda p: True)
        (out / f"{name}.{case}.prompt.i32").write_bytes(np.array(ids, "<i4").tobytes())
        (out / f"{name}.{case}.greedy.i32").write_bytes(np.array(greedy, "<i4").tobytes())
        (out / f"{name}.{case}.lead.f32").write_bytes(np.array(leads, "<f4").tobytes())
        print(f"{name}.{case}: {len(ids)} prompt tokens, least lead {min(leads):.4f}, "
              f"{sum(lead < 0.1 for lead in leads)} of {N_GREEDY} under 0.1", flush=True)
    context.close()


def scored(context, ids, n_ctx, bos):
    """Yield (chunk, target id, logits) for every scored position."""
    for chunk in range(len(ids) // n_ctx):
        part = list(ids[chunk * n_ctx:(chunk + 1) * n_ctx])
        targets = list(part)
        if bos:
            part[0] = bos[0]
        context.clear()
        for position, logits in context.decode(part, 0, lambda p: n_ctx // 2 <= p < n_ctx - 1):
            yield chunk, targets[position + 1], logits


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def perplexity(text_path, n_ctx, paths):
    text = pathlib.Path(text_path).read_bytes()
    models = [llama_lib.Model(path) for path in paths]
    contexts = [model.context(n_ctx) for model in models]
    ids = models[0].tokenize(text, add_special=True)
    bos = models[0].tokenize(b"", add_special=True)
    nll, kl, same, n = [0.0] * len(paths), 0.0, 0, 0
    for rows in zip(*[scored(context, ids, n_ctx, bos) for context in contexts]):
        logs = [log_softmax(logits) for _, _, logits in rows]
        for i, (_, target, _) in enumerate(rows):
            nll[i] -= logs[i][target]
        if len(rows) == 2:
            kl += float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())
            same += int(logs[0].argmax() == logs[1].argmax())
        n += 1
    for i, path in enumerate(paths):
        row = [pathlib.Path(path).name, pathlib.Path(text_path).name, n_ctx, len(ids), n, f"{np.exp(nll[i] / n):.6f}"]
        row += [f"{kl / n:.8f}", f"{same / n:.6f}"] if i == 1 else ["-", "-"]
        print("\t".join(map(str, row)), flush=True)


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "goldens":
        goldens(pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    elif len(sys.argv) in (5, 6) and sys.argv[1] == "perplexity":
        perplexity(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main()
