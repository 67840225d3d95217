"""On the GPU: kernels against references, and times of the pieces at training shapes."""
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import attention as att
import config
import index_ops as ix

DEV = torch.device("cuda")
RES = {}


def timed(name, fn, reps=5, flops=0):
    try:
        fn()
        torch.cuda.synchronize()
        t = []
        for _ in range(reps):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            fn()
            b.record()
            torch.cuda.synchronize()
            t.append(a.elapsed_time(b))
        ms = sorted(t)[len(t) // 2]
        RES[name] = ms
        print(f"{name}: {ms:.3f} ms" + (f", {flops / ms / 1e9:.0f} TFLOP/s" if flops else ""), flush=True)
    except Exception as e:
        print(f"{name}: failed: {repr(e)[:300]}", flush=True)


def rel(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def main():
    cfg = config.preset("small")
    H, G, d = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    flex_raw = att.flex_attention
    att.flex_attention = torch.compile(flex_raw, dynamic=False)
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch.manual_seed(0)
    # flex against plain torch
    N = 1024
    tokens = torch.randint(1, 8000, (2, N), device=DEV)
    tokens[:, 0] = 0
    tokens[1, 300] = 0
    q, k, v = (torch.randn(2, h, N, d, device=DEV, dtype=torch.bfloat16) for h in (H, G, G))
    mg = att.Masks(2, N, cfg, DEV, "gpu").update(tokens)
    mr = att.Masks(2, N, cfg, DEV, "ref").update(tokens)
    bits = mg.need_bits()
    qi, ki = (torch.randn(2, N, 64, device=DEV, dtype=torch.bfloat16) for _ in range(2))
    ix.select_bits(qi, ki, cfg, bits, 100)
    mr.bits = bits
    print("list sizes", att.unpack_bits(bits, N).sum(-1)[:, [0, 50, 99, 100, 500, 1023]].tolist())
    print("window flex vs torch", rel(att.window(q, k, v, .125, mg), att.window(q, k, v, .125, mr)))
    for mode in ("dense_lse", "sparse"):
        a, b = att.listed(q, k, v, .125, mg, mode), att.listed(q, k, v, .125, mr, mode)
        print(mode, "flex vs torch", rel(a[0], b[0]), "lse", float((a[1] - b[1]).abs().max()))
    # bf16 kernel of the mean attention against dense torch, N = 512
    N = 512
    L = 6
    qs = torch.randn(L, 1, H, N, d, device=DEV).bfloat16()
    k1 = torch.randn(1, G, N, d, device=DEV).bfloat16()
    m = torch.ones(N, N, device=DEV).tril().bool()
    s = (qs.float() @ k1.float().repeat_interleave(H // G, 1)[None].transpose(-1, -2) * .125).masked_fill(~m, float("-inf"))
    want = s.softmax(-1).mean((0, 2))
    print("abar kernel bf16 vs torch", rel(ix.abar_chunk(qs, k1, s.logsumexp(-1), .125, 0, N, N), want))
    ix.compile_kl()
    qi, ki = (torch.randn(1, N, 64, device=DEV, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    loss = ix.consensus_kl(qi, ki, qs, k1, s.logsumexp(-1), cfg, None, None, 256)
    gq, gk = torch.autograd.grad(loss, (qi, ki))
    q32, k32 = qi.detach().float().requires_grad_(), ki.detach().float().requires_grad_()
    x = (q32 @ k32.transpose(1, 2) * cfg.index_scale).masked_fill(~m, float("-inf"))
    lp = x.log_softmax(-1)
    ref = torch.where(want > 0, want * (want.clamp(min=1e-30).log() - lp), torch.zeros_like(want)).sum(-1).mean()
    rq, rk = torch.autograd.grad(ref, (q32, k32))
    print("streamed KL bf16 vs dense float32, N=512: loss", float(loss), float(ref), "grads", rel(gq, rq), rel(gk, rk), flush=True)
    # times
    for B, N in ((16, 4096), (2, 32768)):
        q = torch.randn(B, H, N, d, device=DEV, dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(B, G, N, d, device=DEV, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        fl = 4 * B * H * N * N / 2 * d
        for name, be in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
            def f():
                with sdpa_kernel(be):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            timed(f"sdpa {name} fwd {B}x{N}", f, flops=fl)
            timed(f"sdpa {name} fwd+bwd {B}x{N}", lambda: f().sum().backward(), flops=3.5 * fl)
        timed(f"sdpa default fwd+bwd {B}x{N}", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward(), flops=3.5 * fl)
        mg = att.Masks(B, N, cfg, DEV, "gpu").update(torch.ones(B, N, dtype=torch.long, device=DEV))
        timed(f"flex window fwd+bwd {B}x{N}", lambda: att.window(q, k, v, .125, mg).sum().backward())
        if N == 32768:
            qi, ki = (torch.randn(B, N, 64, device=DEV, dtype=torch.bfloat16) for _ in range(2))
            bits = mg.need_bits()
            timed("select_bits k=2048 2x32K", lambda: ix.select_bits(qi, ki, cfg, bits, 2048), 3)
            timed("score chunk", lambda: ix.score_chunk(qi, ki, .125, N - 1024, 1024, N), 3)
            timed("flex dense_lse fwd 2x32K", lambda: att.listed(q.detach(), k.detach(), v.detach(), .125, mg, "dense_lse"), 3, flops=fl)
            timed("flex list fwd 2x32K", lambda: att.listed(q.detach(), k.detach(), v.detach(), .125, mg, "sparse"), 3, flops=fl)
            timed("flex list fwd+bwd 2x32K", lambda: att.listed(q, k, v, .125, mg, "sparse")[0].sum().backward(), 3, flops=3.5 * fl)
            qs = torch.randn(6, B, H, N, d, device=DEV, dtype=torch.bfloat16)
            lse = torch.full((6, B, H, N), 12.0, device=DEV)
            kk = k.detach()
            timed("abar 1024 rows 2x32K", lambda: ix.abar_chunk(qs, kk, lse, .125, N - 1024, 1024, N), 3, flops=6 * H * B * 2 * d * 1024 * N)
            qi.requires_grad_(), ki.requires_grad_()
            for chunk in (1024, 2048):
                timed(f"consensus KL 2x32K chunk {chunk}", lambda: ix.consensus_kl(qi, ki, qs, kk, lse, cfg, None, None, chunk).backward(), 2)
    print("peak GiB", torch.cuda.max_memory_allocated() / 2**30)
    if len(sys.argv) > 1:
        json.dump(RES, open(sys.argv[1], "w"))


if __name__ == "__main__":
    main()
