"""What the shipped model says to a short text, by modeling_heddle.py in float32: the tie between the committed
weights and PyTorch that needs no PyTorch to be checked (tests/engine/test_shipped_golden.c).

  golden_shipped.py [--model models/warp-21m] [--out train/golden/warp-21m]

tokens.txt      the input: two documents and a question
rows_dense.f32, rows_list.f32
                little-endian float32 [n_tokens, n_vocab / STRIDE + 1]: the logits of every STRIDE-th id, then the
                logarithm of the sum of all logits' exponentials; lists hold TOP_K tokens
lists.txt       one line a token: the ids it reads, ascending, by float scores
about.json      SHA-256 of model.safetensors, STRIDE, TOP_K
Needs torch (1.13 or later), safetensors, tokenizers, numpy.
"""
import argparse
import hashlib
import json
import os

import torch

import modeling_heddle as mh

STRIDE, TOP_K = 128, 32
HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENTS = [
    "The mill stood where two streams met. Its wheel turned slowly in summer and not at all in August, when the "
    "miller mended sacks and wrote letters. The access code of the old granary is 70316.\n",
    "/* Returns the number of set bits of x. */\nstatic int count_bits(unsigned x)\n{\n    int n = 0;\n"
    "    for (; x; x &= x - 1) n++;\n    return n;\n}\n",
    "Question: What is the access code of the old granary?\nAnswer: The access code of the old granary is 70316.\n",
]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--model", default=os.path.join(HERE, "..", "models", "warp-21m"))
    ap.add_argument("--out", default=os.path.join(HERE, "golden", "warp-21m"))
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    h = mh.load(args.model)
    tokens = torch.cat([h.encode(text) for text in DOCUMENTS])
    with open(os.path.join(args.out, "tokens.txt"), "w") as f:
        f.write(" ".join(map(str, tokens.tolist())) + "\n")
    for reads in ("dense", "list"):
        logits = h.logits(tokens, reads=reads, top_k=TOP_K)
        rows = torch.cat((logits[:, ::STRIDE], logits.logsumexp(-1, keepdim=True)), 1)
        rows.numpy().astype("<f4").tofile(os.path.join(args.out, f"rows_{reads}.f32"))
        nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])
        print(f"{reads}: {len(tokens)} tokens, {float(nll):.4f} nat a token, logits up to {float(logits.abs().max()):.1f}")
    with torch.no_grad():
        rows, qi = h.shared(h.self_decoder(tokens))
        lists = h.select(qi, rows.ki, 0, TOP_K)
    with open(os.path.join(args.out, "lists.txt"), "w") as f:
        for row in lists:
            f.write(" ".join(map(str, row.nonzero()[:, 0].tolist())) + "\n")
    with open(os.path.join(args.model, "model.safetensors"), "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    with open(os.path.join(args.out, "about.json"), "w") as f:
        json.dump({"model_sha256": digest, "stride": STRIDE, "top_k": TOP_K}, f)
        f.write("\n")


if __name__ == "__main__":
    main()
