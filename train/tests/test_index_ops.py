"""Run: python tests/test_index_ops.py   (TRITON_INTERPRET=1 also checks the Triton kernels on a CPU)"""
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import attention as att
import config
import index_ops as ix

DEV = "cuda" if torch.cuda.is_available() else "cpu"


def teacher(B, N, L=3, H=4, G=2, d=16, seed=0, dtype=torch.float32, bits=None, scale=0.25):
    g = torch.Generator().manual_seed(seed)
    qs = torch.randn(L, B, H, N, d, generator=g).to(DEV, dtype)
    k = torch.randn(B, G, N, d, generator=g).to(DEV, dtype)
    t = torch.arange(N, device=DEV)
    m = (t[:, None] >= t[None, :]).expand(B, -1, -1)
    if bits is not None:
        m = att.unpack_bits(bits, N)
    kk = k.repeat_interleave(H // G, 1).float()
    s = (qs.float() @ kk[None].transpose(-1, -2)) * scale
    s = s.masked_fill(~m[None, :, None], float("-inf"))
    return qs, k, s.logsumexp(-1), s.softmax(-1).mean((0, 2)), m


def dense_loss(qi, ki, abar, mask, scale_i):
    x = (qi.float() @ ki.float().transpose(1, 2) * scale_i).masked_fill(~mask, float("-inf"))
    logp = x.log_softmax(-1)
    term = torch.where(abar > 0, abar * (abar.clamp(min=1e-30).log() - logp), torch.zeros_like(abar))
    return term.sum(-1).mean()


def rel(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_bits():
    m = torch.rand(2, 5, 70, device=DEV) < 0.3
    assert torch.equal(att.unpack_bits(att.pack_bits(m), 70), m)


def test_topk(N=300, B=2):
    g = torch.Generator().manual_seed(1)
    score = torch.randn(B, N, N, generator=g).mul(4).round().div(4).to(DEV)      # many ties, and -0.0
    for k in (1, 7, 64, 299, 300, 500):
        for sinks, recent in ((0, 0), (2, 3)):
            bits = torch.zeros(B, N, (N + 31) // 32, dtype=torch.int32, device=DEV)
            for r0 in range(0, N, 128):
                rows = min(128, N - r0)
                ix.topk_bits(score[:, r0:r0 + rows, :r0 + rows].contiguous(), bits, r0, k, sinks, recent)
            got = att.unpack_bits(bits, N)
            for b in range(B):
                for t in (0, 1, 5, 63, 64, 100, 255, 256, N - 1):
                    x = (score[b, t, :t + 1] + 0.0).tolist()
                    forced = [s for s in range(t + 1) if s < sinks or t - s < recent]
                    rest = sorted((s for s in range(t + 1) if s not in forced), key=lambda s: (-x[s], s))
                    want = sorted(forced + rest[:k])                              # forced ones beside the k
                    have = got[b, t].nonzero()[:, 0].tolist()
                    assert have == want, (k, t, have[:10], want[:10])


def test_loss_against_dense(N=512, chunk=160):
    scale = 0.25
    for sparse in (False, True):
        B, d_i = 2, 16
        g = torch.Generator().manual_seed(3)
        qi = torch.randn(B, N, d_i, generator=g).to(DEV).requires_grad_()
        ki = torch.randn(B, N, d_i, generator=g).to(DEV).requires_grad_()
        bits = None
        if sparse:
            cfg = config.preset("tiny")
            bits = torch.zeros(B, N, (N + 31) // 32, dtype=torch.int32, device=DEV)
            ix.select_bits(qi.detach(), ki.detach(), cfg, bits, 48, chunk=chunk)
        qs, k, lse, abar, m = teacher(B, N, bits=bits)
        a = torch.cat([torch.nn.functional.pad(ix.abar_chunk(qs, k, lse, scale, r, min(chunk, N - r), min(N, r + chunk), bits),
                                               (0, N - min(N, r + chunk))) for r in range(0, N, chunk)], 1)
        assert rel(a, abar) < 1e-5, rel(a, abar)
        want = dense_loss(qi, ki, abar, m, 0.25)
        wq, wk = torch.autograd.grad(want, (qi, ki))
        got = ix.ConsensusKL.apply(qi, ki, qs, k, lse, scale, 0.25, bits, None, chunk, None)[0]
        gq, gk = torch.autograd.grad(got, (qi, ki))
        print("sparse" if sparse else "dense", "loss", float(got), float(want), "rel grad", rel(gq, wq), rel(gk, wk))
        assert abs(float(got - want)) < 1e-5 * abs(float(want)) + 1e-6
        assert rel(gq, wq) < 1e-5 and rel(gk, wk) < 1e-5
        # the gradient of the mean of KLs equals the gradient of the KL to the mean
        if not sparse:
            kk = k.repeat_interleave(2, 1).float()
            s = (qs.float() @ kk[None].transpose(-1, -2) * scale).masked_fill(~m[None, :, None], float("-inf"))
            per = s.softmax(-1).permute(0, 2, 1, 3, 4).flatten(0, 1)
            mean_kl = sum(dense_loss(qi, ki, p, m, 0.25) for p in per) / len(per)
            mq, = torch.autograd.grad(mean_kl, qi)
            assert rel(mq, wq) < 1e-5, rel(mq, wq)


def test_finite_differences(N=48):
    qs, k, lse, abar, m = teacher(1, N)
    g = torch.Generator().manual_seed(5)
    h = torch.randn(1, N, 24, generator=g, dtype=torch.float64).to(DEV)
    w = torch.randn(24, 8, generator=g, dtype=torch.float64).to(DEV)
    wk = torch.randn(24, 8, generator=g, dtype=torch.float64).to(DEV)

    def loss(w):
        return dense_loss_64(h @ w, h @ wk, abar.double(), m)

    def dense_loss_64(qi, ki, abar, mask):
        x = (qi @ ki.transpose(1, 2) * 0.25).masked_fill(~mask, float("-inf"))
        logp = x.log_softmax(-1)
        return torch.where(abar > 0, abar * (abar.clamp(min=1e-300).log() - logp), torch.zeros_like(abar)).sum(-1).mean()

    w32 = w.float().requires_grad_()
    got, = torch.autograd.grad(ix.ConsensusKL.apply(h.float() @ w32, (h @ wk).float(), qs, k, lse, 0.25, 0.25, None, None, 16, None)[0], w32)
    num, e = torch.zeros_like(w), 1e-5
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            d = torch.zeros_like(w)
            d[i, j] = e
            num[i, j] = (loss(w + d) - loss(w - d)) / (2 * e)
    print("finite differences on W_idx", rel(got, num))
    assert rel(got, num) < 1e-4


def test_left_out():
    for forced in ((0, 0), (2, 5)):
        check_left_out(*forced)


def check_left_out(sinks, recent, N=160, B=2, d=16, k=24, width=0.5, weight=3.0):
    """The mass outside the hard lists, and its gradient: autograd through sigmoid gates whose threshold holds their sum;
    tokens that are read in any case have no gate."""
    qs, key, lse, abar, mask = teacher(B, N)
    g = torch.Generator().manual_seed(5)
    qi, ki = (torch.randn(B, N, d, generator=g).to(DEV).requires_grad_() for _ in range(2))
    cfg = config.ModelConfig(attn_scale=0.25, index_scale=0.25, index_sinks=sinks, index_window=recent)
    bits = torch.zeros(B, N, (N + 31) // 32, dtype=torch.int32, device=DEV)
    ix.select_bits(qi.detach(), ki.detach(), cfg, bits, k, 64)
    loss, kl, left = ix.consensus(qi, ki, qs, key, lse, cfg, None, None, 64, (bits, weight, width))
    got = torch.autograd.grad(loss, (qi, ki))

    score = qi @ ki.transpose(1, 2) * 0.25
    s = torch.arange(N, device=DEV)
    always = (s[None] < sinks) | (s[:, None] - s[None] < recent)
    free, listed = mask & ~always, mask & always
    for b in range(B):
        for t in range(N):
            x = score[b, t].detach().masked_fill(~free[b, t], float("-inf"))
            n = min(k, int(free[b, t].sum()))
            listed[b, t, x.sort(descending=True, stable=True).indices[:n]] = True
    assert torch.equal(att.unpack_bits(bits, N) & mask, listed)
    assert abs(float(left) - float((abar * ~listed).sum(-1).mean())) < 1e-6
    want = weight * left + dense_loss(qi, ki, abar, mask, 0.25)
    assert abs(float(loss) - float(want)) < 1e-5 and abs(float(kl) - float(want - weight * left)) < 1e-5
    low = score.detach().masked_fill(~(listed & free), float("inf")).amin(-1, keepdim=True)
    z = torch.sigmoid((score - low) / width)
    slope = (z * (1 - z)).detach() * free
    moved = ((score * slope).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=1e-30)) / width       # the threshold's part: its value cancels the sum
    soft = (slope * (score / width - moved) * abar)[:, k + sinks + recent:].sum() / (B * N)      # rows that leave something out
    want = torch.autograd.grad(dense_loss(qi, ki, abar, mask, 0.25) - weight * soft, (qi, ki))
    err = [rel(a, b) for a, b in zip(got, want)]
    assert max(err) < 1e-4, err
    print("left out: gradient against autograd", ["%.0e" % e for e in err])


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print("ok", name, flush=True)
