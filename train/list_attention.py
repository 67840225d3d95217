"""Attention over token lists as Triton kernels, forward and backward.

The lists are packed bits shared by every head: bits [B, N, words]. Every causal tile is
computed and masked, which suits training (many query rows, dense tiles of rows); the work
saved by sparsity is decode's. Backward: one kernel for dQ, one for dK and dV, no atomics,
so gradients are the same at every run.
"""
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = 1.4426950408889634

if triton is not None:
    @triton.jit
    def _forward(q_ptr, k_ptr, v_ptr, bits_ptr, o_ptr, lse_ptr, N, words, scale_log2,
                 sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
                 H: tl.constexpr, REP: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
        pid_m = tl.num_programs(0) - 1 - tl.program_id(0)             # longest rows first
        bh = tl.program_id(1)
        b, h = (bh // H).to(tl.int64), bh % H
        m = pid_m * BM + tl.arange(0, BM)
        d = tl.arange(0, D)
        m_ok = m < N
        q = tl.load(q_ptr + b * sq_b + h * sq_h + m[:, None].to(tl.int64) * sq_n + d[None, :], mask=m_ok[:, None], other=0.0)
        kb, vb = k_ptr + b * sk_b + (h // REP) * sk_h, v_ptr + b * sv_b + (h // REP) * sv_h
        top = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        j32 = tl.arange(0, 32)
        for n0 in range(0, (pid_m + 1) * BM, BN):
            n = n0 + tl.arange(0, BN)
            n_ok = n < N
            iw = n0 // 32 + tl.arange(0, BN // 32)
            w = tl.load(bits_ptr + (b * N + m[:, None]) * words + iw[None, :], mask=m_ok[:, None] & (iw < words)[None, :], other=0)
            keep = tl.reshape((w[:, :, None] >> j32[None, None, :]) & 1, (BM, BN)) != 0
            k = tl.load(kb + n[:, None].to(tl.int64) * sk_n + d[None, :], mask=n_ok[:, None], other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            s = tl.where(keep, s, float("-inf"))
            new = tl.maximum(top, tl.max(s, 1))
            safe = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2(s - safe[:, None])
            shrink = tl.exp2(top - safe)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(vb + n[:, None].to(tl.int64) * sv_n + d[None, :], mask=n_ok[:, None], other=0.0)
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = new
        some = total > 0.0
        acc = acc / tl.where(some, total, 1.0)[:, None]
        tl.store(o_ptr + b * so_b + h * so_h + m[:, None].to(tl.int64) * so_n + d[None, :], acc.to(o_ptr.dtype.element_ty), mask=m_ok[:, None])
        lse = tl.where(some, (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453, float("-inf"))
        tl.store(lse_ptr + (b * H + h) * N + m, lse, mask=m_ok)

    @triton.jit
    def _backward_q(q_ptr, k_ptr, v_ptr, bits_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, N, words, scale_log2, scale,
                    sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, sd_b, sd_h, sd_n, so_b, so_h, so_n,
                    H: tl.constexpr, REP: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
        pid_m = tl.num_programs(0) - 1 - tl.program_id(0)
        bh = tl.program_id(1)
        b, h = (bh // H).to(tl.int64), bh % H
        m = pid_m * BM + tl.arange(0, BM)
        d = tl.arange(0, D)
        m_ok = m < N
        q = tl.load(q_ptr + b * sq_b + h * sq_h + m[:, None].to(tl.int64) * sq_n + d[None, :], mask=m_ok[:, None], other=0.0)
        do = tl.load(do_ptr + b * sd_b + h * sd_h + m[:, None].to(tl.int64) * sd_n + d[None, :], mask=m_ok[:, None], other=0.0)
        lse = tl.load(lse_ptr + (b * H + h) * N + m, mask=m_ok, other=0.0) * 1.4426950408889634
        delta = tl.load(delta_ptr + (b * H + h) * N + m, mask=m_ok, other=0.0)
        kb, vb = k_ptr + b * sk_b + (h // REP) * sk_h, v_ptr + b * sv_b + (h // REP) * sv_h
        acc = tl.zeros((BM, D), tl.float32)
        j32 = tl.arange(0, 32)
        for n0 in range(0, (pid_m + 1) * BM, BN):
            n = n0 + tl.arange(0, BN)
            n_ok = n < N
            iw = n0 // 32 + tl.arange(0, BN // 32)
            w = tl.load(bits_ptr + (b * N + m[:, None]) * words + iw[None, :], mask=m_ok[:, None] & (iw < words)[None, :], other=0)
            keep = tl.reshape((w[:, :, None] >> j32[None, None, :]) & 1, (BM, BN)) != 0
            k = tl.load(kb + n[:, None].to(tl.int64) * sk_n + d[None, :], mask=n_ok[:, None], other=0.0)
            v = tl.load(vb + n[:, None].to(tl.int64) * sv_n + d[None, :], mask=n_ok[:, None], other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            p = tl.where(keep, tl.exp2(s - lse[:, None]), 0.0)
            dp = tl.dot(do, tl.trans(v), input_precision="ieee")
            ds = p * (dp - delta[:, None])
            acc += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
        tl.store(dq_ptr + b * so_b + h * so_h + m[:, None].to(tl.int64) * so_n + d[None, :], (acc * scale).to(dq_ptr.dtype.element_ty), mask=m_ok[:, None])

    @triton.jit
    def _backward_kv(q_ptr, k_ptr, v_ptr, bits_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, N, words, scale_log2, scale,
                     sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, sd_b, sd_h, sd_n, so_b, so_h, so_n,
                     H: tl.constexpr, REP: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
        pid_n = tl.program_id(0)                                       # longest columns first
        bg = tl.program_id(1)
        G: tl.constexpr = H // REP
        b, g = (bg // G).to(tl.int64), bg % G
        n = pid_n * BN + tl.arange(0, BN)
        d = tl.arange(0, D)
        n_ok = n < N
        k = tl.load(k_ptr + b * sk_b + g * sk_h + n[:, None].to(tl.int64) * sk_n + d[None, :], mask=n_ok[:, None], other=0.0)
        v = tl.load(v_ptr + b * sv_b + g * sv_h + n[:, None].to(tl.int64) * sv_n + d[None, :], mask=n_ok[:, None], other=0.0)
        iw = pid_n * (BN // 32) + tl.arange(0, BN // 32)
        j32 = tl.arange(0, 32)
        dk = tl.zeros((BN, D), tl.float32)
        dv = tl.zeros((BN, D), tl.float32)
        for r in range(REP):
            h = g * REP + r
            for m0 in range((pid_n * BN // BM) * BM, N, BM):
                m = m0 + tl.arange(0, BM)
                m_ok = m < N
                w = tl.load(bits_ptr + (b * N + m[None, :]) * words + iw[:, None], mask=m_ok[None, :] & (iw < words)[:, None], other=0)
                keep = tl.reshape((w[:, None, :] >> j32[None, :, None]) & 1, (BN, BM)) != 0
                q = tl.load(q_ptr + b * sq_b + h * sq_h + m[:, None].to(tl.int64) * sq_n + d[None, :], mask=m_ok[:, None], other=0.0)
                do = tl.load(do_ptr + b * sd_b + h * sd_h + m[:, None].to(tl.int64) * sd_n + d[None, :], mask=m_ok[:, None], other=0.0)
                lse = tl.load(lse_ptr + (b * H + h) * N + m, mask=m_ok, other=0.0) * 1.4426950408889634
                delta = tl.load(delta_ptr + (b * H + h) * N + m, mask=m_ok, other=0.0)
                s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2
                p = tl.where(keep, tl.exp2(s - lse[None, :]), 0.0)
                dv += tl.dot(p.to(do.dtype), do, input_precision="ieee")
                dp = tl.dot(v, tl.trans(do), input_precision="ieee")
                ds = p * (dp - delta[None, :])
                dk += tl.dot(ds.to(q.dtype), q, input_precision="ieee")
        at = b * so_b + g * so_h + n[:, None].to(tl.int64) * so_n + d[None, :]
        tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=n_ok[:, None])
        tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=n_ok[:, None])


BLOCKS = {"fwd": (128, 64, 4, 3), "q": (128, 64, 4, 2), "kv": (64, 128, 8, 2)}     # BM, BN, warps, stages


class ListAttention(torch.autograd.Function):
    """q [B,H,N,d], k, v [B,G,N,d], bits [B,N,words] -> o [B,H,N,d], lse [B,H,N] (no gradient through lse)."""

    @staticmethod
    def forward(ctx, q, k, v, bits, scale):
        B, H, N, D = q.shape
        o = torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
        lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
        BM, BN, warps, stages = BLOCKS["fwd"]
        _forward[(triton.cdiv(N, BM), B * H)](
            q, k, v, bits, o, lse, N, bits.shape[2], scale * LOG2E, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            H=H, REP=H // k.shape[1], D=D, BM=BM, BN=BN, num_warps=warps, num_stages=stages)
        ctx.save_for_backward(q, k, v, bits, o, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    def backward(ctx, do, _):
        q, k, v, bits, o, lse = ctx.saved_tensors
        B, H, N, D = q.shape
        G, words, scale = k.shape[1], bits.shape[2], ctx.scale
        if do.stride(3) != 1:
            do = do.contiguous()
        delta = (do.float() * o.float()).sum(-1).contiguous()
        dq = torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
        dk = torch.empty(B, G, N, D, dtype=k.dtype, device=q.device)
        dv = torch.empty(B, G, N, D, dtype=v.dtype, device=q.device)
        common = (N, words, scale * LOG2E, scale, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3])
        BM, BN, warps, stages = BLOCKS["q"]
        _backward_q[(triton.cdiv(N, BM), B * H)](q, k, v, bits, do, lse, delta, dq, *common, *dq.stride()[:3],
                                                 H=H, REP=H // G, D=D, BM=BM, BN=BN, num_warps=warps, num_stages=stages)
        BM, BN, warps, stages = BLOCKS["kv"]
        _backward_kv[(triton.cdiv(N, BN), B * G)](q, k, v, bits, do, lse, delta, dk, dv, *common, *dk.stride()[:3],
                                                  H=H, REP=H // G, D=D, BM=BM, BN=BN, num_warps=warps, num_stages=stages)
        return dq, dk, dv, None, None


def list_attention(q, k, v, bits, scale):
    return ListAttention.apply(q, k, v, bits, scale)
