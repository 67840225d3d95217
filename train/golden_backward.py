"""Gradients by PyTorch's autograd, for the engine's ops ATTEND_BACKWARD and INDEX_LOSS.

  golden_backward.py tests/golden/backward        writes 64.f32 and 512.f32

A file holds, in float32, one after another and in this order (N keys, the 16 newest rows query):
  q [3 layers, 16, 4 heads, 4], d_o [16, 4, 4], k, v [N, 2 heads, 4], iq [16, 8], ik [N, 8]
  layer 0 over lists of tokens:              o, dq, dk, dv
  layer 0 over lists of blocks of 8 tokens:  o, dq, dk, dv
  the index's loss over the lists of tokens of KV head 0, all three layers:  loss [16], d_iq, d_ik
The loss of attention is the sum of d_o times o; that of the index the sum over rows of KL(mean of layers
and heads || softmax of 0.7 iq . ik). What a row sees is `listed`; the test in C has the same rule. All is
computed in float64 from the float32 inputs, in whole matrices with a mask.
"""
import os
import sys

import torch

LAYERS, ROWS, HEADS, KV_HEADS, DIM, INDEX_DIM, BLOCK, SCALE, INDEX_SCALE = 3, 16, 4, 2, 4, 8, 8, 0.5, 0.7


def listed(n, block):
    """[KV heads, rows, n] bool"""
    g, r, t = torch.arange(KV_HEADS)[:, None, None], torch.arange(ROWS)[None, :, None], torch.arange(n)[None, None]
    rule = (5 * (t // block) + r + 3 * g) % 3 == 0 if block > 1 else (7 * t + 3 * r + 5 * g) % 4 == 0
    return rule & (t <= n - ROWS + r)


def scores(q, k, seen):
    s = torch.einsum("rhd,thd->hrt", q, k.repeat_interleave(HEADS // KV_HEADS, 1)) * SCALE
    return s.masked_fill(~seen.repeat_interleave(HEADS // len(seen), 0), float("-inf"))


def attention(q, k, v, d_o, seen):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    o = torch.einsum("hrt,thd->rhd", scores(q, k, seen).softmax(-1), v.repeat_interleave(HEADS // KV_HEADS, 1))
    (o * d_o).sum().backward()
    return [o.detach(), q.grad, k.grad, v.grad]


def index(q, k, iq, ik, seen):
    iq, ik = (x.clone().requires_grad_() for x in (iq, ik))
    mean = torch.stack([scores(x, k, seen).softmax(-1).mean(0) for x in q]).mean(0)
    logp = (INDEX_SCALE * iq @ ik.T).masked_fill(~seen[0], float("-inf")).log_softmax(-1)
    loss = torch.where(seen[0], mean * (mean.clamp(min=1e-300).log() - logp), torch.zeros_like(mean)).sum(-1)
    loss.sum().backward()
    return [loss.detach(), iq.grad, ik.grad]


def main():
    for n in (64, 512):
        torch.manual_seed(n)
        shapes = (LAYERS, ROWS, HEADS, DIM), (ROWS, HEADS, DIM), (n, KV_HEADS, DIM), (n, KV_HEADS, DIM), (ROWS, INDEX_DIM), (n, INDEX_DIM)
        given = [torch.randn(*s) for s in shapes]
        q, d_o, k, v, iq, ik = (x.double() for x in given)
        out = given + attention(q[0], k, v, d_o, listed(n, 1)) + attention(q[0], k, v, d_o, listed(n, BLOCK))
        out += index(q, k, iq, ik, listed(n, 1)[:1])
        path = os.path.join(sys.argv[1], f"{n}.f32")
        torch.cat([x.flatten().float() for x in out]).numpy().astype("<f4").tofile(path)
        print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
