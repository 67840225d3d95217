"""Transformer, YOCO, CLSA, the window and the gated-delta hybrid as rows of one module.

Parameter names are the names in the exported safetensors file.
"""
import math
import os

import torch
import torch.nn as nn
import torch.nn.functional as F

import attention as att
import config
import delta_rule


def read_checkpoint(path):
    """state.pt, or an exported folder: its weights and configuration, no optimiser state."""
    if not os.path.isdir(path):
        return torch.load(path, map_location="cpu", weights_only=False)
    import modeling_heddle
    return {"config": open(os.path.join(path, "config.json")).read(), "model": modeling_heddle.read_weights(path)}


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def apply_rope(x, cos, sin):
    """x [B, N, heads, d]; cos, sin [B, N, 1, d/2] in float32; pairs (i, i + d/2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def rope_tables(pos, cfg):
    """pos [B, N] -> cos, sin [B, N, 1, head_dim/2]."""
    half = cfg.head_dim // 2
    freq = cfg.rope_base ** (-torch.arange(half, device=pos.device, dtype=torch.float32) / half)
    ang = pos.float()[..., None] * freq
    return ang.cos()[:, :, None, :], ang.sin()[:, :, None, :]


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Own Q and O; own K and V too unless the layer reads the shared ones."""

    def __init__(self, cfg, kind):
        super().__init__()
        self.kind = kind
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.rope = kind == "window" or (kind == "full" and cfg.rope_on_full)
        qk_norm = cfg.qk_norm_cross if kind == "cross" else cfg.qk_norm_self
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.n_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, bias=False)
        if kind != "cross":
            self.k_proj = nn.Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, bias=False)
            self.v_proj = nn.Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.q_norm = RMSNorm(cfg.head_dim, cfg.norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(cfg.head_dim, cfg.norm_eps) if qk_norm and kind != "cross" else None

    def query(self, x, cos, sin):
        B, N, _ = x.shape
        q = self.q_proj(x).view(B, N, self.n_heads, self.head_dim)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.rope:
            q = apply_rope(q, cos, sin)
        return q.transpose(1, 2)

    def key_value(self, x, cos, sin):
        B, N, _ = x.shape
        k = self.k_proj(x).view(B, N, self.n_kv_heads, self.head_dim)
        v = self.v_proj(x).view(B, N, self.n_kv_heads, self.head_dim)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if self.rope:
            k = apply_rope(k, cos, sin)
        return k.transpose(1, 2), v.transpose(1, 2)


class Taps(nn.Module):
    """The weight [width, channels] of a short causal convolution; the row's own tap is the last."""

    def __init__(self, width, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, channels))


class Delta(nn.Module):
    """A gated-delta layer: W_o (norm(o) * silu(g)), o of the gated delta rule."""

    def __init__(self, cfg):
        super().__init__()
        self.H, self.dk, self.dv = cfg.delta_n_heads, cfg.delta_k_dim, cfg.delta_v_dim
        self.scale, self.eps = cfg.delta_scale, cfg.delta_qk_eps
        channels = self.H * (2 * self.dk + self.dv)
        self.qkv_proj = nn.Linear(cfg.hidden_size, channels, bias=False)
        self.ab_proj = nn.Linear(cfg.hidden_size, 2 * self.H, bias=False)
        self.g_proj = nn.Linear(cfg.hidden_size, self.H * self.dv, bias=False)
        self.o_proj = nn.Linear(self.H * self.dv, cfg.hidden_size, bias=False)
        self.conv = Taps(cfg.delta_conv, channels) if cfg.delta_conv else None
        self.a_log = nn.Parameter(torch.empty(self.H).uniform_(1, 16).log())
        dt = torch.empty(self.H).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))     # softplus(dt_bias) = dt
        self.norm = RMSNorm(self.dv, cfg.norm_eps)

    def forward(self, y, masks):
        B, N, _ = y.shape
        x = self.qkv_proj(y)
        if self.conv is not None:
            x = F.silu(delta_rule.short_conv(x, self.conv.weight, masks.pos))
        n = self.H * self.dk
        q, k = (x[..., i * n:(i + 1) * n].view(B, N, self.H, self.dk) for i in (0, 1))
        v = x[..., 2 * n:].view(B, N, self.H, self.dv)
        a, b = self.ab_proj(y).float().view(B, N, 2, self.H).unbind(2)
        log_alpha = -self.a_log.float().exp() * F.softplus(a + self.dt_bias.float())
        o = delta_rule.chunked(delta_rule.unit(q, self.eps) * self.scale, delta_rule.unit(k, self.eps), v.float(), log_alpha,
                               b.sigmoid(), masks.doc).to(y.dtype)
        return self.o_proj(self.norm(o).reshape(B, N, -1) * F.silu(self.g_proj(y)))


class Block(nn.Module):
    def __init__(self, cfg, kind):
        super().__init__()
        self.kind = kind
        self.scale = cfg.attn_scale
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        if kind == "delta":
            self.delta = Delta(cfg)
        else:
            self.self_attn = Attention(cfg, kind)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x, cos, sin, k, v, masks, mode):
        """mode: 'dense' | 'sparse' (cross layers read masks' lists); -> x, q, lse or None."""
        B, N, _ = x.shape
        y = self.input_layernorm(x)
        if self.kind == "delta":
            x = x + self.delta(y, masks)
            return x + self.mlp(self.post_attention_layernorm(x))
        q = self.self_attn.query(y, cos, sin)
        if self.kind != "cross":
            k, v = self.self_attn.key_value(y, cos, sin)
        lse = None
        if self.kind == "window":
            o = att.window(q, k, v, self.scale, masks)
        elif mode == "dense":
            o = att.causal(q, k, v, self.scale, masks)
        else:                                    # 'dense_lse' | 'sparse'
            o, lse = att.listed(q, k, v, self.scale, masks, mode)
        x = x + self.self_attn.o_proj(o.transpose(1, 2).reshape(B, N, -1))
        x = x + self.mlp(self.post_attention_layernorm(x))
        if lse is None:
            return x
        return x, q, lse


class Shared(nn.Module):
    """K and V of all cross layers, from the self-decoder's output H."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.norm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.k_proj = nn.Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.k_norm = RMSNorm(cfg.head_dim, cfg.norm_eps) if cfg.qk_norm_cross else None

    def forward(self, h):
        B, N, _ = h.shape
        hn = self.norm(h)
        k = self.k_proj(hn).view(B, N, self.cfg.n_kv_heads, self.cfg.head_dim)
        v = self.v_proj(hn).view(B, N, self.cfg.n_kv_heads, self.cfg.head_dim)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return hn, k.transpose(1, 2), v.transpose(1, 2)


class Index(nn.Module):
    """One index query and one index key per token, from the normalised H or from H itself (index_input)."""

    def __init__(self, cfg):
        super().__init__()
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.index_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, cfg.index_dim, bias=False)
        self.q_norm = RMSNorm(cfg.index_dim, cfg.norm_eps) if cfg.index_q_norm == "rms" else None
        self.k_norm = RMSNorm(cfg.index_dim, cfg.norm_eps) if cfg.index_k_norm == "rms" else None

    def forward(self, x):
        q, k = self.q_proj(x), self.k_proj(x)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return q, k                               # [B, N, index_dim] each


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.index_groups != 1:
            raise ValueError(f"index_groups {cfg.index_groups}: must be 1 to be trained; modeling_heddle.py and the engine read more")
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.n_vocab, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg, kind) for kind in cfg.layer_kinds)
        self.shared = Shared(cfg) if cfg.has_shared else None
        self.index = Index(cfg) if cfg.has_index else None
        self.norm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.lm_head = None if cfg.tie_embeddings else nn.Linear(cfg.hidden_size, cfg.n_vocab, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        n = self.cfg.n_layers
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            if name.startswith("embed_tokens") or name.startswith("lm_head"):
                nn.init.normal_(p, std=0.02)
                continue
            std = 0.5 * p.shape[0 if name.endswith("conv.weight") else 1] ** -0.5
            if name.endswith("o_proj.weight") or name.endswith("down_proj.weight"):
                std /= math.sqrt(2 * n)
            nn.init.normal_(p, std=std)

    def head_weight(self):
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    def self_decoder(self, tokens, masks):
        """tokens [B, N] -> H [B, N, hidden] (all non-cross layers)."""
        cos, sin = rope_tables(masks.pos, self.cfg)
        x = self.embed_tokens(tokens) * self.cfg.embed_scale
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for layer in self.layers:
            if layer.kind != "cross":
                x = layer(x, cos, sin, None, None, masks, "dense")
        return x, cos, sin

    def forward(self, tokens, masks, mode="dense", select=None, observe=False):
        """-> dict with `x` (normed last state) and, for CLSA rows, hn, k, qi, ki; with mode
        'dense_lse' or 'sparse' also qs (list over cross layers) and lses.

        select(qi, ki): called once per forward in mode 'sparse', fills the masks' lists.
        """
        x, cos, sin = self.self_decoder(tokens, masks)
        out = {}
        if self.shared is not None:
            hn, k, v = self.shared(x)
            out.update(hn=hn, k=k, v=v)
            if self.index is not None and mode != "dense":
                read = x if self.cfg.index_input == "state" else hn
                qi, ki = self.index(read.detach() if self.cfg.index_detach else read)
                out.update(qi=qi, ki=ki)
                if mode == "sparse":
                    select(qi.detach(), ki.detach())
            qs, lses = [], []
            for layer in self.layers:
                if layer.kind != "cross":
                    continue
                if mode == "dense":
                    x = layer(x, cos, sin, k, v, masks, mode)
                else:
                    x, q, lse = layer(x, cos, sin, k, v, masks, mode)
                    qs.append(q.detach())
                    lses.append(lse.detach())
            out.update(qs=qs, lses=lses)
        out["x"] = self.norm(x)
        return out


def open_checkpoint(path, device):
    """-> ModelConfig and Model of read_checkpoint(path), on this torch.device, for reading. On a GPU attention is compiled, once a shape."""
    saved = read_checkpoint(path)
    cfg = config.ModelConfig.from_json(saved["config"])
    model = Model(cfg).to(device).eval()
    model.load_state_dict(saved["model"])
    if device.type == "cuda":
        torch._dynamo.config.cache_size_limit = 64
        torch._dynamo.config.automatic_dynamic_shapes = False
        att.flex_attention = torch.compile(att.flex_attention, dynamic=False)
    return cfg, model
