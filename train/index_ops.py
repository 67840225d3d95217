"""Index operations: exact top-k lists and the consensus loss, both streamed over query rows.

consensus loss (one list for all cross layers and heads):
    A_t^(l,h) = softmax over s <= t of scale * q_t^(l,h) . k_s          (dense, or over the list)
    Abar_t    = mean over layers and heads, without gradient
    P_t       = softmax over the same s of index_scale * qi_t . ki_s
    loss      = mean over t of KL(Abar_t || P_t)

left out (optional): the mean over t of the share of Abar_t outside the hard list of t, the k best of the
same scores. Its gradient goes through a gate on every token, see gate_pull.

A chunk of query rows is held at a time, [B, rows, keys]: memory is linear in the length.
The teacher's tile sums come from a Triton kernel on the GPU, from torch elsewhere.
"""
import torch

import attention as att

try:
    import triton
    import triton.language as tl
except ImportError:                                   # CPU-only installs
    triton = None


if triton is not None:
    @triton.jit
    def _abar_kernel(q_ptr, k_ptr, lse_ptr, bits_ptr, out_ptr, N, C, row0, n_keys, words,
                     scale_log2, inv_heads,
                     sq_l, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sl_l, sl_b, sl_h,
                     so_b, so_c, L: tl.constexpr, G: tl.constexpr, REP: tl.constexpr, D: tl.constexpr,
                     HAS_BITS: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr):
        # one tile of the mean attention: rows row0 + pid_t*BT .., keys pid_s*BS ..
        pid_s, pid_t, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        rt = pid_t * BT + tl.arange(0, BT)
        t = row0 + rt
        s = pid_s * BS + tl.arange(0, BS)
        d = tl.arange(0, D)
        t_ok = (rt < C) & (t < N)
        s_ok = s < n_keys
        out = out_ptr + b.to(tl.int64) * so_b + rt[:, None].to(tl.int64) * so_c + s[None, :]
        acc = tl.zeros((BT, BS), dtype=tl.float32)
        if pid_s * BS <= row0 + pid_t * BT + BT - 1:
            for g in range(G):
                kk = tl.load(k_ptr + b.to(tl.int64) * sk_b + g * sk_h + s[None, :].to(tl.int64) * sk_n + d[:, None],
                             mask=s_ok[None, :], other=0.0)
                for l in range(L):
                    for r in range(REP):
                        h = g * REP + r
                        qq = tl.load(q_ptr + l * sq_l + b.to(tl.int64) * sq_b + h * sq_h + t[:, None].to(tl.int64) * sq_n + d[None, :],
                                     mask=t_ok[:, None], other=0.0)
                        ls = tl.load(lse_ptr + l * sl_l + b.to(tl.int64) * sl_b + h * sl_h + t, mask=t_ok, other=0.0)
                        x = tl.dot(qq, kk, out_dtype=tl.float32, input_precision="ieee")
                        acc += tl.exp2(x * scale_log2 - (ls * 1.4426950408889634)[:, None])
            keep = (s[None, :] <= t[:, None]) & s_ok[None, :]
            if HAS_BITS:
                w = tl.load(bits_ptr + (b.to(tl.int64) * N + t[:, None]) * words + (s[None, :] >> 5),
                            mask=keep & t_ok[:, None], other=0)
                keep = keep & (((w >> (s[None, :] & 31)) & 1) == 1)
            acc = tl.where(keep, acc * inv_heads, 0.0)
        tl.store(out, acc, mask=t_ok[:, None] & s_ok[None, :])

    @triton.jit
    def _topk_bits_kernel(score_ptr, bits_ptr, row0, n_keys, k, sinks, recent, words,
                          ss_b, ss_c, N, BLOCK: tl.constexpr):
        # one query row: the first `sinks` and the last `recent` tokens, and of the others the k best: the k-th largest
        # score by bisection on ordered integers, ties to low ids
        c, b = tl.program_id(0), tl.program_id(1)
        t = row0 + c
        i = tl.arange(0, BLOCK)
        ok = (i < n_keys) & (i <= t)
        x = tl.load(score_ptr + b.to(tl.int64) * ss_b + c.to(tl.int64) * ss_c + i, mask=ok, other=0.0)
        x = x + 0.0                                     # -0.0 and 0.0 order alike
        u = x.to(tl.int32, bitcast=True)
        key = u ^ ((u >> 31) & 0x7FFFFFFF)
        forced = ((i < sinks) | (t - i < recent)) & ok
        free = ok & (forced == 0)
        key = tl.where(free, key, -2147483647 - 1)
        lo = tl.full((), -2147483647 - 1, tl.int64)
        hi = tl.full((), 2147483647, tl.int64)
        for _ in range(32):
            mid = (lo + hi + 1) >> 1
            n = tl.sum((key >= mid.to(tl.int32)).to(tl.int32), axis=0)
            good = n >= k
            lo = tl.where(good, mid, lo)
            hi = tl.where(good, hi, mid - 1)
        thr = lo.to(tl.int32)
        above = key > thr
        tie = (key == thr) & free
        room = k - tl.sum(above.to(tl.int32), axis=0)
        rank = tl.cumsum(tie.to(tl.int32), axis=0)
        sel = (above | (tie & (rank <= room))) & free
        sel = sel | forced
        sel = tl.where(t + 1 <= k, ok, sel)
        j = tl.arange(0, 32)
        m = tl.reshape(sel.to(tl.int32), (BLOCK // 32, 32))
        w = tl.sum(m << j[None, :], axis=1)
        iw = tl.arange(0, BLOCK // 32)
        tl.store(bits_ptr + (b.to(tl.int64) * N + t) * words + iw, w, mask=iw < words)


def use_triton(x):
    import os
    return triton is not None and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def abar_chunk(qs, k, lse, scale, row0, rows, n_keys, bits=None):
    """Mean attention of rows row0..row0+rows over keys 0..n_keys.

    qs [L,B,H,N,d], k [B,G,N,d], lse [L,B,H,N] -> [B, rows, n_keys] float32
    """
    L, B, H, N, d = qs.shape
    G = k.shape[1]
    if use_triton(k):
        out = torch.empty(B, rows, n_keys, dtype=torch.float32, device=k.device)
        BT, BS = (128, 64) if d <= 64 else (64, 64)
        grid = (triton.cdiv(n_keys, BS), triton.cdiv(rows, BT), B)
        _abar_kernel[grid](qs, k, lse, bits if bits is not None else out, out, N, rows, row0, n_keys,
                           bits.shape[-1] if bits is not None else 0, scale * 1.4426950408889634, 1.0 / (L * H),
                           qs.stride(0), qs.stride(1), qs.stride(2), qs.stride(3), k.stride(0), k.stride(1), k.stride(2),
                           lse.stride(0), lse.stride(1), lse.stride(2), out.stride(0), out.stride(1),
                           L=L, G=G, REP=H // G, D=d, HAS_BITS=bits is not None, BT=BT, BS=BS, num_warps=4)
        return out
    t = torch.arange(row0, row0 + rows, device=k.device)
    s = torch.arange(n_keys, device=k.device)
    keep = (s[None, :] <= t[:, None])[None]
    if bits is not None:
        keep = keep & att.unpack_bits(bits[:, row0:row0 + rows], N)[:, :, :n_keys]
    kk = k[:, :, :n_keys].repeat_interleave(H // G, 1).float()
    out = 0
    for l in range(L):
        x = qs[l, :, :, row0:row0 + rows].float() @ kk.transpose(-1, -2) * scale
        out = out + (x - lse[l, :, :, row0:row0 + rows, None]).exp().sum(1)
    return torch.where(keep, out / (L * H), torch.zeros((), device=k.device))


def score_chunk(qi, ki, scale, row0, rows, n_keys):
    """[B, rows, n_keys] float32 index scores, not masked."""
    a, b = qi[:, row0:row0 + rows], ki[:, :n_keys]
    if a.is_cuda and a.dtype == torch.bfloat16:
        return torch.bmm(a, b.transpose(1, 2), out_dtype=torch.float32) * scale
    return a.float() @ b.float().transpose(1, 2) * scale


def topk_bits(score, bits, row0, k, sinks=0, recent=0):
    """Writes rows row0.. of bits [B, N, words] from score [B, rows, n_keys] (keys s <= t only): the first `sinks` and the
    last `recent` tokens, and of the others the k best, ties to the lowest id."""
    B, rows, n_keys = score.shape
    N, words = bits.shape[1], bits.shape[2]
    if use_triton(score):
        block = max(32 * words, triton.next_power_of_2(n_keys))
        block = triton.next_power_of_2(block)
        _topk_bits_kernel[(rows, B)](score, bits, row0, n_keys, k, sinks, recent, words,
                                     score.stride(0), score.stride(1), N, BLOCK=block,
                                     num_warps=16 if block >= 16384 else 8)
        return
    t = torch.arange(row0, row0 + rows, device=score.device)
    s = torch.arange(n_keys, device=score.device)
    ok = s[None, :] <= t[:, None]
    forced = ok & ((s[None, :] < sinks) | (t[:, None] - s[None, :] < recent))
    free = ok & ~forced
    x = (score + 0.0).masked_fill(~free, float("-inf"))
    order = x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    m = torch.zeros(B, rows, words * 32, dtype=torch.bool, device=score.device)
    m.scatter_(2, order, True)
    m[..., :n_keys] = m[..., :n_keys] & free | forced
    bits[:, row0:row0 + rows] = att.pack_bits(m)


def select_bits(qi, ki, cfg, bits, top_k, chunk=2048):
    """One list per token for the whole batch, written into bits."""
    N = qi.shape[1]
    with torch.no_grad(), torch.autocast(qi.device.type, enabled=False):
        for row0 in range(0, N, chunk):
            rows = min(chunk, N - row0)
            score = score_chunk(qi, ki, cfg.index_scale, row0, rows, row0 + rows)
            topk_bits(score, bits, row0, top_k, cfg.index_sinks, cfg.index_window)


def gate_pull(score, low, free, width, go):
    """Gradient towards the scores of a loss of the gates, go = dloss/dgate. A gate is 1 in the list and 0 outside; backwards it is
    sigmoid((score - low) / width), low the list's smallest score (-inf: all tokens are in it), over free tokens, and low moves so
    that the sum of the gates stays what it is: a token enters as another leaves. [.., S], low [.., 1]"""
    z = torch.sigmoid((score - low) / width)
    slope = torch.where(free & (low > float("-inf")), z * (1 - z), torch.zeros_like(score))
    held = (slope * go).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=1e-12)
    return slope * (go - held) / width


class ConsensusKL(torch.autograd.Function):
    """-> kl + weight * left out, kl, left out (the last two for the log); the teacher is (qs, k, lse), constant. Gradients are
    formed in forward. cover: None, or (bits of the lists that these scores make, weight, width of the gate, sinks and recent tokens
    that those lists hold in any case)."""

    @staticmethod
    def forward(ctx, qi, ki, qs, k, lse, scale, scale_i, bits, chunks, chunk, cover):
        B, N, _ = qi.shape
        dq = torch.zeros(qi.shape, dtype=torch.float32, device=qi.device)
        dk = torch.zeros(ki.shape, dtype=torch.float32, device=qi.device)
        loss = torch.zeros((), dtype=torch.float64, device=qi.device)
        left = torch.zeros_like(loss)
        n = 0
        starts = list(range(0, N, chunk)) if chunks is None else chunks
        for row0 in starts:
            rows = min(chunk, N - row0)
            n_keys = row0 + rows
            n += B * rows
            abar = abar_chunk(qs, k, lse, scale, row0, rows, n_keys, bits)
            score = score_chunk(qi, ki, scale_i, row0, rows, n_keys)
            l, g = kl_rows(abar, score, row0, None if bits is None else bits[:, row0:row0 + rows])
            loss += l.double()
            if cover:
                l, g_left = left_rows(abar, score, row0, cover[0][:, row0:row0 + rows], *cover[2:])
                left += l.double()
                g = g + cover[1] * g_left
            if qi.dtype == torch.bfloat16:
                g = g.to(torch.bfloat16)
            dq[:, row0:row0 + rows] += torch.bmm(g, ki[:, :n_keys].to(g.dtype)).float() * scale_i
            dk[:, :n_keys] += torch.bmm(g.transpose(1, 2), qi[:, row0:row0 + rows].to(g.dtype)).float() * scale_i
        ctx.save_for_backward(dq / n, dk / n)
        ctx.dtypes = qi.dtype, ki.dtype
        kl, left = (loss / n).float(), (left / n).float()
        out = kl + cover[1] * left if cover else kl.clone()
        ctx.mark_non_differentiable(kl, left)
        return out, kl, left

    @staticmethod
    def backward(ctx, go, *_):
        dq, dk = ctx.saved_tensors
        return (dq * go).to(ctx.dtypes[0]), (dk * go).to(ctx.dtypes[1]), None, None, None, None, None, None, None, None, None


def _kl_rows(abar, score, row0, bits):
    """-> summed KL of the rows, and dLoss/dscore = P - Abar (not yet divided by the row count)."""
    B, rows, n_keys = score.shape
    t = torch.arange(rows, device=score.device)[:, None] + row0
    s = torch.arange(n_keys, device=score.device)[None, :]
    keep = (s <= t)[None]
    if bits is not None:
        keep = keep & (((bits[:, :, s[0] >> 5] >> (s & 31)) & 1) == 1)
    x = score.masked_fill(~keep, float("-inf"))
    logp = x - x.logsumexp(-1, keepdim=True)
    logp = torch.where(keep, logp, torch.zeros_like(logp))
    ent = torch.where(abar > 0, abar * abar.clamp(min=1e-30).log(), torch.zeros_like(abar))
    loss = (ent - abar * logp).sum()
    g = torch.where(keep, logp.exp() - abar, torch.zeros_like(abar))
    return loss, g


def _left_rows(abar, score, row0, bits, width, sinks, recent):
    """-> summed mass outside the lists `bits` [B, rows, words], and its gradient towards the scores. Tokens that a list holds
    in any case set no threshold and have no gate."""
    B, rows, n_keys = score.shape
    t = torch.arange(rows, device=score.device)[:, None] + row0
    s = torch.arange(n_keys, device=score.device)[None, :]
    keep = (s <= t)[None]
    listed = keep & (((bits[:, :, s[0] >> 5] >> (s & 31)) & 1) == 1)
    free = keep & ~((s < sinks) | (t - s < recent))[None]
    low = score.masked_fill(~(listed & free), float("inf")).amin(-1, keepdim=True)
    low = torch.where(listed.sum(-1, keepdim=True) < keep.sum(-1, keepdim=True), low, torch.full_like(low, float("-inf")))
    return torch.where(keep & ~listed, abar, torch.zeros_like(abar)).sum(), gate_pull(score, low, free, width, -abar)


kl_rows, left_rows = _kl_rows, _left_rows


def compile_kl():
    """On the GPU: fuse the row passes."""
    global kl_rows, left_rows
    kl_rows, left_rows = torch.compile(_kl_rows, dynamic=True), torch.compile(_left_rows, dynamic=True)


def consensus(qi, ki, qs, k, lse, cfg, bits=None, chunks=None, chunk=2048, cover=None):
    """-> loss, kl, left out: see ConsensusKL; cover: None or (bits, weight, width)"""
    cover = (*cover, cfg.index_sinks, cfg.index_window) if cover else None
    qs = torch.stack(list(qs)) if isinstance(qs, (list, tuple)) else qs
    lse = torch.stack(list(lse)) if isinstance(lse, (list, tuple)) else lse
    with torch.autocast(qi.device.type, enabled=False):
        return ConsensusKL.apply(qi, ki, qs, k.detach(), lse.float(), cfg.attn_scale, cfg.index_scale, bits, chunks, chunk, cover)


def consensus_kl(*args, **kw):
    return consensus(*args, **kw)[0]
