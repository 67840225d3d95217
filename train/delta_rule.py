"""The gated delta rule (Gated Delta Networks, arXiv 2412.06464) over documents, and its short convolution.

    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T;   o_t = S_t q_t

Shapes: q, k [B, N, H, dk] (k of length 1), v [B, N, H, dv], log_alpha, beta [B, N, H], doc [B, N] the number of
the row's document: a state does not outlive its document. All in float32.
"""
import torch
import torch.nn.functional as F

CHUNK = 64


def unit(x, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


def short_conv(x, weight, pos):
    """x [B, N, channels], weight [width, channels], pos [B, N] the row's place in its document."""
    width, y = weight.shape[0], x * weight[-1].to(x.dtype)
    for back in range(1, width):
        above = F.pad(x, (0, 0, back, 0))[:, :x.shape[1]]
        y = y + above * (pos >= back)[..., None] * weight[width - 1 - back].to(x.dtype)
    return y


def recurrent(q, k, v, log_alpha, beta, doc):
    """Row by row, as it is written above."""
    s, out = v.new_zeros(*v.shape[:1], *v.shape[2:], k.shape[-1]), []
    for t in range(q.shape[1]):
        keep = log_alpha[:, t].exp() * (doc[:, t] == doc[:, max(t - 1, 0)])[:, None]
        s = s * keep[..., None, None]
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhvk,bhk->bhv", s, k[:, t]))
        s = s + torch.einsum("bhv,bhk->bhvk", u, k[:, t])
        out.append(torch.einsum("bhvk,bhk->bhv", s, q[:, t]))
    return torch.stack(out, 1)


def chunked(q, k, v, log_alpha, beta, doc):
    """The same, CHUNK rows at a time: with gates multiplied up from the chunk's start, g_t = prod alpha, and
    A_ti = beta_t g_t / g_i <k_t, k_i> below the diagonal (0 between documents), U = (I + A)^-1 (beta V - W S0^T)."""
    with torch.autocast(q.device.type, enabled=False):
        return scan(q, k, v, log_alpha, beta, doc)


def scan(q, k, v, log_alpha, beta, doc):
    B, N, H, dk = q.shape
    pad = -N % CHUNK
    fold = lambda x: F.pad(x, (0, 0) * (x.ndim - 2) + (0, pad)).view(B, -1, CHUNK, *x.shape[2:])
    q, k, v = (fold(x).permute(1, 0, 3, 2, 4) for x in (q, k, v))                       # [chunks, B, H, CHUNK, d]
    log_alpha, beta = (fold(x).permute(1, 0, 3, 2) for x in (log_alpha, beta))          # [chunks, B, H, CHUNK]
    doc = fold(doc).transpose(0, 1)[:, :, None]                                         # [chunks, B, 1, CHUNK]
    before = torch.cat((doc[:1, ..., :1], doc[:-1, ..., -1:]))                          # of the row above the chunk
    g = log_alpha.cumsum(-1)
    same = (doc[..., :, None] == doc[..., None, :]).tril()
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(~same, 0).exp() * same
    lower = (beta[..., None] * decay * (k @ k.transpose(-1, -2))).tril(-1) + torch.eye(CHUNK, device=q.device, dtype=q.dtype)
    carry = g.exp() * (doc == before)                                                   # of S0, to each row
    solved = torch.linalg.solve_triangular(lower, beta[..., None] * torch.cat((v, carry[..., None] * k), -1), upper=False,
                                           unitriangular=True)
    own, w = solved.split((v.shape[-1], dk), -1)
    inside = decay * (q @ k.transpose(-1, -2))
    to_end = decay[..., -1, :, None] * k
    s, out = v.new_zeros(B, H, v.shape[-1], dk), []
    for c in range(q.shape[0]):
        u = own[c] - w[c] @ s.transpose(-1, -2)
        out.append(carry[c][..., None] * (q[c] @ s.transpose(-1, -2)) + inside[c] @ u)
        s = carry[c][..., -1, None, None] * s + u.transpose(-1, -2) @ to_end[c]
    return torch.stack(out, 1).permute(0, 1, 3, 2, 4).reshape(B, -1, H, v.shape[-1])[:, :N]
