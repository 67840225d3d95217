"""Loader and reference forward of an exported folder, in plain PyTorch on any device.

    m = load("models/NAME")
    ids = m.encode("text")                      # starts with the document token
    logits = m.logits(ids)                      # [n, n_vocab], every position
    logits = m.logits(ids, reads="dense")       # the same weights read as dense YOCO
    text = m.generate(ids, 40)                  # prompt stops at the shared state
    kv = m.encode_document(ids); m.mount([kv, ...])

Written for clarity and as the cross-check of the C engine: float32 throughout, exact top-k
with ties to the lowest id, lists in ascending order.
"""
import dataclasses
import json
import os

import torch
import torch.nn.functional as F

import config


def dequantise_q8_0(raw, cols):
    """U8 [rows, cols/32*34] (f16 scale, 32 int8) -> float32 [rows, cols]"""
    rows = raw.shape[0]
    b = raw.view(rows, cols // 32, 34)
    scale = b[:, :, :2].contiguous().view(torch.float16).float()
    return (b[:, :, 2:].contiguous().view(torch.int8).float() * scale).view(rows, cols)


def quantise_q8_0(w):
    """float32 [rows, cols] -> U8 [rows, cols/32*34]; scale is absmax/127 rounded to f16."""
    rows, cols = w.shape
    b = w.float().view(rows, cols // 32, 32)
    scale = (b.abs().amax(-1, keepdim=True) / 127).to(torch.float16)
    inv = torch.where(scale > 0, 1 / scale.float(), torch.zeros_like(scale, dtype=torch.float32))
    q = (b * inv).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((scale.view(torch.uint8).view(rows, cols // 32, 2), q.view(torch.uint8)), -1).view(rows, -1).contiguous()


class Rows:
    """What the global path keeps per token: K, V [n_kv_heads, n, head_dim], K_idx [n, index_dim]."""

    def __init__(self, k, v, ki):
        self.k, self.v, self.ki = k, v, ki

    @staticmethod
    def join(parts):
        return Rows(torch.cat([p.k for p in parts], 1), torch.cat([p.v for p in parts], 1),
                    torch.cat([p.ki for p in parts], 0) if parts[0].ki is not None else None)


class Heddle:
    def __init__(self, cfg, weights, tokenizer=None):
        config.check(cfg)
        self.c = {**{f.name: f.default for f in dataclasses.fields(config.ModelConfig)}, **cfg}
        self.w, self.tok = weights, tokenizer
        self.mounted = []

    def encode(self, text, document=True):
        ids = self.tok.encode(text, add_special_tokens=False).ids
        return torch.tensor(([self.c["doc_token"]] if document else []) + ids)

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["norm_eps"]) * self.w[name]

    def rope(self, x, pos):
        half = self.c["head_dim"] // 2
        freq = self.c["rope_base"] ** (-torch.arange(half, dtype=torch.float32) / half)
        ang = pos.float()[:, None] * freq
        cos, sin = ang.cos()[:, None], ang.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def heads(self, x, name, norm=None):
        y = (x @ self.w[name].T).view(len(x), -1, self.c["head_dim"])
        return self.norm(y, norm) if norm else y

    def mlp(self, x, p):
        y = self.norm(x, p + "post_attention_layernorm.weight")
        y = F.silu(y @ self.w[p + "mlp.gate_proj.weight"].T) * (y @ self.w[p + "mlp.up_proj.weight"].T)
        return x + y @ self.w[p + "mlp.down_proj.weight"].T

    def positions(self, ids):
        """Positions and document numbers: both restart at the document token, or never (doc_reset false)."""
        i = torch.arange(len(ids))
        if not self.c["doc_reset"]:
            return i, torch.zeros_like(i)
        border = ids == self.c["doc_token"]
        start = torch.where(border, i, torch.zeros_like(i)).cummax(0).values
        return i - start, border.cumsum(0)

    def delta(self, y, p, pos):
        """A gated-delta layer, row by row; what it keeps does not outlive a document."""
        c, n, p = self.c, len(y), p + "delta."
        H, dk, dv = c["delta_n_heads"], c["delta_k_dim"], c["delta_v_dim"]
        x = y @ self.w[p + "qkv_proj.weight"].T
        if c["delta_conv"]:
            taps, raw, x = self.w[p + "conv.weight"], x, torch.zeros_like(x)
            for t in range(n):
                for back in range(min(c["delta_conv"], int(pos[t]) + 1)):
                    x[t] += raw[t - back] * taps[c["delta_conv"] - 1 - back]
            x = F.silu(x)
        q, k = (x[:, i * H * dk:(i + 1) * H * dk].view(n, H, dk) for i in (0, 1))
        v = x[:, 2 * H * dk:].view(n, H, dv)
        q, k = (u * torch.rsqrt(u.pow(2).sum(-1, keepdim=True) + c["delta_qk_eps"]) for u in (q, k))
        a, b = (y @ self.w[p + "ab_proj.weight"].T).view(n, 2, H).unbind(1)
        alpha = (-self.w[p + "a_log"].exp() * F.softplus(a + self.w[p + "dt_bias"])).exp()
        beta, s, o = b.sigmoid(), torch.zeros(H, dv, dk), torch.zeros(n, H, dv)
        for t in range(n):
            if pos[t] == 0:
                s = torch.zeros_like(s)
            for h in range(H):
                keep = torch.eye(dk) - beta[t, h] * torch.outer(k[t, h], k[t, h])
                s[h] = alpha[t, h] * s[h] @ keep + beta[t, h] * torch.outer(v[t, h], k[t, h])
                o[t, h] = c["delta_scale"] * s[h] @ q[t, h]
        o = self.norm(o, p + "norm.weight").reshape(n, -1) * F.silu(y @ self.w[p + "g_proj.weight"].T)
        return o @ self.w[p + "o_proj.weight"].T

    def self_decoder(self, ids):
        """H [n, hidden]: sliding windows and states that do not cross document borders, full layers that do."""
        c, n = self.c, len(ids)
        rep, W = c["n_heads"] // c["n_kv_heads"], c["window"]
        pos, doc = self.positions(ids)
        x = self.w["embed_tokens.weight"][ids] * c["embed_scale"]
        for l, kind in enumerate(c["layer_kinds"]):
            if kind == "cross":
                continue
            p = f"layers.{l}."
            y = self.norm(x, p + "input_layernorm.weight")
            if kind == "delta":
                x = self.mlp(x + self.delta(y, p, pos), p)
                continue
            qn, kn = (p + "self_attn.q_norm.weight", p + "self_attn.k_norm.weight") if c["qk_norm_self"] else (None, None)
            q, k = self.heads(y, p + "self_attn.q_proj.weight", qn), self.heads(y, p + "self_attn.k_proj.weight", kn)
            if kind == "window" or c["rope_on_full"]:
                q, k = self.rope(q, pos), self.rope(k, pos)
            q, k = q.transpose(0, 1), k.transpose(0, 1).repeat_interleave(rep, 0)
            v = self.heads(y, p + "self_attn.v_proj.weight").transpose(0, 1).repeat_interleave(rep, 0)
            o = torch.empty_like(q)
            for r in range(0, n, W):
                e, s = min(n, r + W), max(0, r - W + 1) if kind == "window" else 0
                t, j = torch.arange(r, e)[:, None], torch.arange(s, e)[None]
                m = (j <= t) & (doc[r:e, None] == doc[None, s:e]) if kind == "window" else j <= t
                if kind == "window":
                    m = m & (t - j < W)
                a = (q[:, r:e] @ k[:, s:e].transpose(1, 2) * c["attn_scale"]).masked_fill(~m, float("-inf")).softmax(-1)
                o[:, r:e] = a @ v[:, s:e]
            x = x + o.transpose(0, 1).reshape(n, -1) @ self.w[p + "self_attn.o_proj.weight"].T
            x = self.mlp(x, p)
        return x

    def shared(self, h):
        """-> Rows of these tokens, and their index queries (None without an index)."""
        c = self.c
        hn = self.norm(h, "shared.norm.weight")
        k = self.heads(hn, "shared.k_proj.weight", "shared.k_norm.weight" if c["qk_norm_cross"] else None).transpose(0, 1)
        v = self.heads(hn, "shared.v_proj.weight").transpose(0, 1)
        if "index.k_proj.weight" not in self.w:
            return Rows(k, v, None), None
        x = h if c["index_input"] == "state" else hn
        ki = x @ self.w["index.k_proj.weight"].T
        if c["index_k_norm"] == "rms":
            ki = self.norm(ki, "index.k_norm.weight")
        qi = [self.index_query(x, "index.q_proj.weight")]
        if c["index_group_query"] == "shared_state":
            qi += [self.index_query(x, self.group_query(l)) for l in self.later_leaders()]
        return Rows(k, v, ki), torch.cat(qi, -1)      # [n, groups from H * index_dim]

    def index_query(self, x, name):
        q = x @ self.w[name].T
        return self.norm(q, "index.q_norm.weight") if self.c["index_q_norm"] == "rms" else q

    def later_leaders(self):
        """First cross layers of the index groups after the first: c of n_cross is in group c * groups // n_cross."""
        cross = [l for l, kind in enumerate(self.c["layer_kinds"]) if kind == "cross"]
        group = [i * self.c["index_groups"] // len(cross) for i in range(len(cross))]
        return [l for i, l in enumerate(cross) if i and group[i] != group[i - 1]]

    @staticmethod
    def group_query(layer):
        return f"layers.{layer}.index.q_proj.weight"

    def select(self, qi, ki, n_before, top_k, never=None):
        """Lists of rows of queries: bool [rows, keys]; row i may read keys <= n_before + i: the index_sinks first tokens,
        the index_window last ones, and of the others the top_k best."""
        n, m = len(qi), len(ki)
        keys, row = torch.arange(m)[None], torch.arange(n)[:, None] + n_before
        ok = keys <= row
        if never is not None:
            ok = ok & ~never[None, :m]
        forced = ok & ((keys < self.c["index_sinks"]) | (row - keys < self.c["index_window"]))
        free = ok & ~forced
        s = (qi @ ki.T * self.c["index_scale"]).masked_fill(~free, float("-inf"))
        order = s.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        out = torch.zeros(n, m, dtype=torch.bool)
        out.scatter_(1, order, True)
        return out & free | forced

    def cross_decoder(self, x, qi, rows, n_before, top_k, reads, never=None):
        """x [n, hidden] at positions n_before.. over rows -> logits [n, n_vocab]."""
        c, m = self.c, rows.k.shape[1]
        rep = c["n_heads"] // c["n_kv_heads"]
        if reads == "list":
            sel = self.select(qi[:, :c["index_dim"]], rows.ki, n_before, top_k, never)
        else:
            sel = torch.arange(m)[None] <= torch.arange(len(x))[:, None] + n_before
            if never is not None:
                sel = sel & ~never[None, :m]
        later = self.later_leaders() if reads == "list" else []
        if len(x) == 1 and not later:                  # one query: really gather
            ids = sel[0].nonzero()[:, 0]
            k, v, mask = rows.k[:, ids], rows.v[:, ids], torch.ones(1, len(ids), dtype=torch.bool)
        else:
            k, v, mask = rows.k, rows.v, sel
        k, v = k.repeat_interleave(rep, 0), v.repeat_interleave(rep, 0)
        for l, kind in enumerate(c["layer_kinds"]):
            if kind != "cross":
                continue
            p = f"layers.{l}."
            y = self.norm(x, p + "input_layernorm.weight")
            if l in later:                             # another group: its own list
                g, d = later.index(l) + 1, c["index_dim"]
                q = qi[:, g * d:(g + 1) * d] if c["index_group_query"] == "shared_state" else \
                    self.index_query(x if c["index_input"] == "state" else y, self.group_query(l))
                mask = self.select(q, rows.ki, n_before, top_k, never)
            q = self.heads(y, p + "self_attn.q_proj.weight", p + "self_attn.q_norm.weight" if c["qk_norm_cross"] else None).transpose(0, 1)
            a = (q @ k.transpose(1, 2) * c["attn_scale"]).masked_fill(~mask, float("-inf")).softmax(-1)
            o = torch.where(mask[..., None].any(1)[None], a @ v, torch.zeros(())) if never is not None else a @ v
            x = x + o.transpose(0, 1).reshape(len(x), -1) @ self.w[p + "self_attn.o_proj.weight"].T
            x = self.mlp(x, p)
        return self.head(x)

    def head(self, x):
        return self.norm(x, "norm.weight") @ self.w["embed_tokens.weight" if self.c["tie_embeddings"] else "lm_head.weight"].T

    @torch.no_grad()
    def logits(self, ids, reads="list", top_k=None, chunk=256, last=False):
        """Full pass over ids; last=True: only the last position goes up (the prompt stops at H)."""
        h = self.self_decoder(ids)
        if "cross" not in self.c["layer_kinds"]:
            return self.head(h[-1:] if last else h)
        rows, qi = self.shared(h)
        top_k = top_k or self.c["top_k"]
        out = []
        for r in range(len(ids) - 1 if last else 0, len(ids), chunk):
            e = min(len(ids), r + chunk)
            part = Rows(rows.k[:, :e], rows.v[:, :e], rows.ki[:e] if rows.ki is not None else None)
            out.append(self.cross_decoder(h[r:e], qi[r:e] if qi is not None else None, part, r, top_k, reads))
        return torch.cat(out)

    @torch.no_grad()
    def encode_document(self, ids):
        """Rows of one document: a function of the document alone."""
        if int(ids[0]) != self.c["doc_token"]:
            raise ValueError("a document starts with the document token")
        return self.shared(self.self_decoder(ids))[0]

    def mount(self, documents):
        self.mounted = list(documents)

    @torch.no_grad()
    def generate(self, ids, n, reads="list", top_k=None, stop="\n", never=None, temperature=0.0, seed=0):
        """Greedy (or sampled) continuation of ids after the mounted documents. The last document is recomputed
        within its window at each token: simple, not fast."""
        top_k, out = top_k or self.c["top_k"], []
        dice = torch.Generator("cpu").manual_seed(seed)
        before = Rows.join(self.mounted) if self.mounted else None
        n0 = before.k.shape[1] if before else 0
        rows, h, qi, tail = None, None, None, ids
        reach = (self.c["window"] - 1) * self.c["layer_kinds"].count("window") + 1
        for _ in range(n):
            if rows is None:
                h = self.self_decoder(ids)
                rows, qi = self.shared(h)
            else:
                h1 = self.step(ids, reach)
                r1, qi = self.shared(h1)
                rows, h = Rows.join([rows, r1]), h1
            every = Rows.join([before, rows]) if before else rows
            logits = self.cross_decoder(h[-1:], qi[-1:] if qi is not None else None, every, n0 + len(ids) - 1, top_k, reads, never)
            if temperature:
                p = (logits[0] / temperature).softmax(-1)
                t = int(torch.multinomial(p.cpu(), 1, generator=dice))
            else:
                t = int(logits[0].argmax())
            out.append(t)
            ids = torch.cat((ids, torch.tensor([t])))
            if t <= 1 or (stop and stop in self.tok.decode(out)):
                break
        return self.tok.decode(out)

    def step(self, ids, reach):
        """H of the last token, from its receptive field; positions stay those of the document."""
        border = (ids == self.c["doc_token"]).nonzero()
        start = int(border[-1]) if len(border) and self.c["doc_reset"] else 0
        if "full" in self.c["layer_kinds"]:
            return self.self_decoder(ids)[-1:]
        s = start if "delta" in self.c["layer_kinds"] else max(start, len(ids) - reach)
        return self.self_decoder(ids[s:])[-1:]         # RoPE depends on differences only


def read_weights(folder):
    """{name: float32 tensor} of an exported folder, 8-bit blocks unpacked."""
    from safetensors import safe_open
    weights = {}
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as f:
        for name in f.keys():
            w = f.get_tensor(name)
            if w.dtype == torch.uint8:
                w = dequantise_q8_0(w, w.shape[1] // 34 * 32)
            weights[name] = w.float()
    return weights


def load(folder):
    """The model of a folder, on torch's default device. ValueError where config.json says what is not read here."""
    with open(os.path.join(folder, "config.json")) as f:
        text = f.read()
    cfg = json.loads(config.ModelConfig.from_json(text).to_json())
    tok = None
    path = os.path.join(folder, "tokenizer.json")
    if os.path.exists(path):
        from tokenizers import Tokenizer
        tok = Tokenizer.from_file(path)
    device = torch.zeros(()).device
    return Heddle(cfg, {n: w.to(device) for n, w in read_weights(folder).items()}, tok)
