"""TRITON_INTERPRET=1 python tests/test_list_attention.py  (or on a GPU): kernels against masked torch."""
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import attention as att
import list_attention as la

DEV = "cuda" if torch.cuda.is_available() else "cpu"


def rel(a, b):
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def main(N=200 if DEV == "cpu" else 1500, dtype=torch.float32, blocks=None):
    if DEV == "cpu":
        la.BLOCKS = {"fwd": (64, 64, 4, 1), "q": (64, 32, 4, 1), "kv": (32, 64, 4, 1)}
    g = torch.Generator().manual_seed(0)
    B, H, G, d = 2, 4, 2, 16 if DEV == "cpu" else 64
    q = torch.randn(B, N, H, d, generator=g).to(DEV, dtype).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(B, G, N, d, generator=g).to(DEV, dtype).requires_grad_() for _ in range(2))
    m = (torch.rand(B, N, N, generator=g) < 0.15).to(DEV).tril() | torch.eye(N, device=DEV, dtype=torch.bool)
    do = torch.randn(B, H, N, d, generator=g).to(DEV, dtype)
    o, lse = la.list_attention(q, k, v, att.pack_bits(m), 0.25)
    got = torch.autograd.grad(o, (q, k, v), do)
    o2, lse2 = att.masked_ref(q.float(), k.float(), v.float(), 0.25, m)
    want = torch.autograd.grad(o2, (q, k, v), do.float())
    errs = [rel(o, o2), rel(lse, lse2)] + [rel(a, b) for a, b in zip(got, want)]
    print(dtype, "o lse dq dk dv:", ["%.2e" % e for e in errs])
    tol = 1e-5 if dtype == torch.float32 else 1e-2
    assert all(e < tol for e in errs)


if __name__ == "__main__":
    main()
    if DEV == "cuda":
        main(dtype=torch.bfloat16)
    print("ok list attention")
