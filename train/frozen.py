"""A dense model from a GGUF file, frozen, in plain PyTorch: what distill.py learns from.

Two tensor layouts are known, told apart by general.architecture: `llama` (adjacent rotary
pairs) and `gemma3` (half-split pairs, QK-norm, sandwich norms, five window layers to a
global one). One sequence at a time. The caller gives `attend`, which serves the global
layers, and may look at their normed input, q, k and v.
"""
import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F


@dataclasses.dataclass
class Shape:
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    n_vocab: int
    rope_base: list                  # per layer
    window: list                     # per layer, 0 = all keys
    rope_adjacent: bool              # pairs (2i, 2i + 1), else (i, i + head_dim / 2)
    embed_scale: float
    gelu: bool
    sandwich: bool
    qk_norm: bool
    bos: int                         # -1: none

    @property
    def attn_scale(self):
        return self.head_dim ** -0.5

    def global_layers(self):
        return [i for i in range(self.n_layers) if not self.window[i]]


def read_gguf(path):
    """-> Shape, {name: float32 array}"""
    import gguf
    r = gguf.GGUFReader(path)
    arch = r.fields["general.architecture"].contents()

    def get(key, default=None):
        f = r.fields.get(f"{arch}.{key}")
        return default if f is None else f.contents()
    tensors = {t.name: np.ascontiguousarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32) for t in r.tensors}
    n, hidden, heads = get("block_count"), get("embedding_length"), get("attention.head_count")
    base, window = get("rope.freq_base"), get("attention.sliding_window", 0)
    if arch == "llama":
        kind = dict(rope_base=[base] * n, window=[0] * n, rope_adjacent=True, embed_scale=1.0, gelu=False, sandwich=False, qk_norm=False, bos=-1)
    elif arch == "gemma3":
        wide = [(i + 1) % 6 == 0 for i in range(n)]
        kind = dict(rope_base=[base if g else 1e4 for g in wide], window=[0 if g else window for g in wide], rope_adjacent=False,
                    embed_scale=math.sqrt(hidden), gelu=True, sandwich=True, qk_norm=True, bos=r.fields["tokenizer.ggml.bos_token_id"].contents())
    else:
        raise SystemExit(f"{path}: general.architecture '{arch}': known are llama and gemma3")
    return Shape(n_layers=n, hidden_size=hidden, n_heads=heads, n_kv_heads=get("attention.head_count_kv", heads),
                 head_dim=get("attention.key_length", hidden // heads), eps=get("attention.layer_norm_rms_epsilon"),
                 n_vocab=len(tensors["token_embd.weight"]), **kind), tensors


def rms(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rope(x, base, adjacent, dims=0):
    """x [N, heads, d], positions 0..N-1; the first `dims` channels turn (0: all)."""
    d = dims or x.shape[-1]
    pos = torch.arange(x.shape[0], device=x.device, dtype=torch.float32)
    ang = pos[:, None] * base ** (-torch.arange(d // 2, device=x.device, dtype=torch.float32) / (d // 2))
    cos, sin = ang.cos()[:, None], ang.sin()[:, None]
    y = x[..., :d].float()
    if adjacent:
        a, b = y[..., 0::2], y[..., 1::2]
        y = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = y.chunk(2, -1)
        y = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return y.to(x.dtype) if d == x.shape[-1] else torch.cat((y.to(x.dtype), x[..., d:]), -1)


def dense_attention(q, k, v, scale):
    """q [H, N, d], k, v [G, N, d] -> o [H, N, d], natural log-sum-exp [H, N] in float32"""
    rep = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(rep, 0), v.repeat_interleave(rep, 0)
    if q.is_cuda:
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention(q[None], k[None], v[None], 0.0, True, False, scale=scale)[:2]
        return o[0], lse[0].float()
    n = q.shape[1]
    s = (q.float() @ k.float().transpose(1, 2)) * scale
    s = s.masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    lse = s.logsumexp(-1)
    return ((s - lse[..., None]).exp() @ v.float()).to(q.dtype), lse


def window_attention(q, k, v, scale, window):
    """The same over the `window` newest keys, the token itself included, in blocks of `window` rows."""
    H, N, d = q.shape
    rep = H // k.shape[0]
    n = (N + window - 1) // window
    pad = n * window - N
    qb = F.pad(q, (0, 0, 0, pad)).view(H, n, window, d).transpose(0, 1)
    kv = []
    for x in (k, v):
        x = F.pad(x, (0, 0, window, pad)).view(x.shape[0], n + 1, window, d)
        kv.append(torch.cat((x[:, :-1], x[:, 1:]), 2).transpose(0, 1).repeat_interleave(rep, 1))
    t = torch.arange(window, device=q.device)[:, None] + window
    s = torch.arange(2 * window, device=q.device)[None]
    near = (s <= t) & (t - s < window)
    real = torch.arange(n, device=q.device)[:, None] * window + s - window >= 0
    o = F.scaled_dot_product_attention(qb, *kv, attn_mask=(near[None] & real[:, None])[:, None], scale=scale)
    return o.transpose(0, 1).reshape(H, n * window, d)[:, :N]


class Frozen:
    def __init__(self, shape, tensors, device, dtype):
        self.shape, self.dev = shape, device
        self.w = {n: torch.tensor(a).to(device, dtype if a.ndim == 2 else torch.float32) for n, a in tensors.items()}

    def embed(self, tokens):
        return self.w["token_embd.weight"][tokens] * self.shape.embed_scale

    def head(self, x):
        return F.linear(x, self.w.get("output.weight", self.w["token_embd.weight"])).float()

    @torch.no_grad()
    def forward(self, tokens, attend):
        """tokens [N]; attend(layer, y, q, k, v) -> o [H, N, d] for the global layers -> last normed state [N, hidden]"""
        return self.layers(self.embed(tokens), attend)

    def layers(self, x, attend, first=0, seen=None):
        """forward from layer `first` on, x the state before it; gradients reach x and what attend made. seen(layer, x): called before each."""
        s, w, N = self.shape, self.w, len(x)
        for i in range(first, s.n_layers):
            if seen:
                seen(i, x)
            p = f"blk.{i}."
            y = rms(x, w[p + "attn_norm.weight"], s.eps)
            q = F.linear(y, w[p + "attn_q.weight"]).view(N, s.n_heads, s.head_dim)
            k = F.linear(y, w[p + "attn_k.weight"]).view(N, s.n_kv_heads, s.head_dim)
            v = F.linear(y, w[p + "attn_v.weight"]).view(N, s.n_kv_heads, s.head_dim).transpose(0, 1)
            if s.qk_norm:
                q, k = rms(q, w[p + "attn_q_norm.weight"], s.eps), rms(k, w[p + "attn_k_norm.weight"], s.eps)
            q, k = (rope(a, s.rope_base[i], s.rope_adjacent).transpose(0, 1) for a in (q, k))
            o = window_attention(q, k, v, s.attn_scale, s.window[i]) if s.window[i] else attend(i, y, q, k, v)
            o = F.linear(o.transpose(0, 1).reshape(N, -1), w[p + "attn_output.weight"])
            x = x + (rms(o, w[p + "post_attention_norm.weight"], s.eps) if s.sandwich else o)
            y = rms(x, w[p + "ffn_norm.weight"], s.eps)
            g = F.linear(y, w[p + "ffn_gate.weight"])
            y = F.linear((F.gelu(g, approximate="tanh") if s.gelu else F.silu(g)) * F.linear(y, w[p + "ffn_up.weight"]), w[p + "ffn_down.weight"])
            x = x + (rms(y, w[p + "post_ffw_norm.weight"], s.eps) if s.sandwich else y)
        return rms(x, w["output_norm.weight"], s.eps)

    @torch.no_grad()
    def nll(self, x, tokens):
        """[N - 1] loss of every next token."""
        out = []
        for r in range(0, len(tokens) - 1, 1024):
            t = tokens[r + 1:r + 1025]
            out.append(F.cross_entropy(self.head(x[r:r + len(t)]), t, reduction="none"))
        return torch.cat(out)
