"""Learned indexes on a frozen dense model: the second way to a shared list.

  distill.py --gguf MODEL --groups 5 --rows rows.bin --out DIR --deadline SECONDS [--docs docs.bin]
  distill.py --gguf MODEL --sidecar DIR/index.safetensors --docs docs.bin --out DIR      (the card alone)

Global layers are cut into groups of consecutive ones; --groups names each group's first
layer, its leader. A group's index reads the vector that the leader's q, k and v projections
read (the normed state before the leader), and makes one key of `index_dim` and a few queries
a token:

    key_s     = rotary(rms_norm(W_k y_s) * gain)              the first rope_dims channels turn
    score_t,s = max over h of  scale * rotary(W_q^h y_t) . key_s + w_b^h . y_t

The list of a token: `sinks` first tokens, `window` newest ones, and the top_k other tokens of
highest score; all layers and heads of the group read it. Training holds the model still and
lowers KL(mean attention of the group's layers and heads || softmax of the scores) over the
tokens that are not in every list anyway, with the max replaced by log-sum-exp; each row
weighs as much as the attention that falls on those tokens. Rows and documents are int32
tokens, one row of --length after another.

--kd W adds, after the share --kl-share of the time, W times a second loss through the lists
themselves: the model reads every global layer by the hard list of its group, as in use, and
KL(dense model's next-token distribution || this one's) goes back to the scores through a gate
on each token. The gate is 1 in the list and 0 outside; its gradient is that of
sigmoid((score - threshold) / --gate-width), held to lists of k (a token enters as another
leaves): see Gated.

The card compares lists at equal bytes on held-out documents: see `card`.
"""
import time
T0 = time.time()
import argparse
import csv
import hashlib
import json
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.utils.checkpoint

import frozen
import index_ops as ix

CHUNK = 1024


class Index(nn.Module):
    def __init__(self, hidden, dim, heads, rope_dims, rope_base, rms_of_input=1.0):
        super().__init__()
        self.dim, self.heads, self.rope_dims, self.rope_base = dim, heads, rope_dims, rope_base
        self.scale = dim ** -0.5
        self.q_proj = nn.Linear(hidden, heads * dim, bias=False)
        self.q_bias = nn.Linear(hidden, heads, bias=False)
        self.k_proj = nn.Linear(hidden, dim, bias=False)
        self.k_norm = nn.Parameter(torch.ones(dim))
        self.std = hidden ** -0.5 / rms_of_input
        nn.init.normal_(self.q_proj.weight, std=self.std)
        nn.init.normal_(self.k_proj.weight, std=self.std)
        nn.init.zeros_(self.q_bias.weight)

    def turn(self, x):
        return frozen.rope(x, self.rope_base, False, self.rope_dims) if self.rope_dims else x

    def keys(self, y):
        """y [N, hidden] -> [N, dim]"""
        return self.turn(frozen.rms(self.k_proj(y), self.k_norm, 1e-6)[:, None])[:, 0]

    def queries(self, y):
        """-> [heads, N, dim], [heads, N]"""
        q = self.turn(self.q_proj(y).view(len(y), self.heads, self.dim))
        return q.transpose(0, 1), self.q_bias(y).t()

    def score(self, q, b, k):
        """q [heads, R, dim], b [heads, R], k [S, dim] -> [heads, R, S]"""
        return torch.baddbmm(b[:, :, None], q, k.t().expand(self.heads, -1, -1), alpha=self.scale)


def to_int8(x):
    """Rows rounded to 8 bits with a scale each: what a stored key and a query are in use."""
    s = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / s).round(), s


def free_mask(row0, rows, n, sinks, window, device):
    """[rows, n] bool: the tokens that a list may or may not hold (neither sink, nor recent, nor to come)."""
    t = torch.arange(row0, row0 + rows, device=device)[:, None]
    s = torch.arange(n, device=device)[None]
    return (s >= sinks) & (t - s >= window)


def chunk_loss(score, abar, free):
    """score [heads, R, S], abar [R, S] -> summed KL weighted by the mass on free tokens, that mass"""
    x = score.logsumexp(0).masked_fill(~free, float("-inf"))
    logp = torch.where(free, x - x.logsumexp(-1, keepdim=True), torch.zeros_like(abar))
    a = torch.where(free, abar, torch.zeros_like(abar))
    m = a.sum(-1)
    ent = torch.where(a > 0, a * a.clamp(min=1e-30).log(), torch.zeros_like(a)).sum()
    return ent - (m * m.clamp(min=1e-30).log()).sum() - (a * logp).sum(), m.sum()


class Gate(torch.autograd.Function):
    """score [R, S], free [R, S] -> [R, S]: 1 in the list, 0 outside. Backward: index_ops.gate_pull."""

    @staticmethod
    def forward(ctx, score, free, past, k, width):
        x = score.masked_fill(~free, float("-inf"))
        low = x.topk(min(k, x.shape[1]), -1).values[:, -1:]
        low = torch.where(free.sum(-1, keepdim=True) > k, low, float("-inf"))       # -inf: all are in the list
        ctx.save_for_backward(score, low, free)
        ctx.width = width
        return ((past & ~free) | (free & (x >= low))).float()

    @staticmethod
    def backward(ctx, go):
        score, low, free = ctx.saved_tensors
        return ix.gate_pull(score, low, free, ctx.width, go), None, None, None, None


def gated_attention(q, k, v, gate, scale, row0):
    """q [H, R, d], k, v [G, S, d], gate [R, S] -> o [H, R, d]. The gate multiplies the exponentials, so a token outside the list
    has a gradient too: what letting it in would change."""
    rep = q.shape[0] // k.shape[0]
    s = (q.view(k.shape[0], rep * q.shape[1], -1) @ k.transpose(1, 2)).float().view(q.shape[0], q.shape[1], -1) * scale
    past = torch.arange(s.shape[2], device=s.device)[None] <= row0 + torch.arange(s.shape[1], device=s.device)[:, None]
    s = s.masked_fill(~past, float("-inf"))
    top = s.detach().masked_fill(gate == 0, float("-inf")).amax(-1, keepdim=True)
    e = (s - top).clamp(max=20.0).exp()                           # outside the list nothing bounds it
    p = e * gate
    p = p / p.sum(-1, keepdim=True)
    return (p.to(v.dtype).view(k.shape[0], rep * q.shape[1], -1) @ v).view(q.shape)


def kd_rows(x, x_dense, head):
    """Summed KL(dense || list) of the next-token distributions of these rows."""
    a, b = F.linear(x_dense, head).float(), F.linear(x, head).float()
    a, b = a - a.logsumexp(-1, keepdim=True), b - b.logsumexp(-1, keepdim=True)
    return (a.exp() * (a - b)).sum()


class Gated:
    """The loss through the lists: the model again from the first leader on, every global layer by the hard lists, with gradients."""

    def __init__(self, args, model, teacher, index):
        self.a, self.m, self.t, self.index = args, model, teacher, index
        self.head = model.w.get("output.weight", model.w["token_embd.weight"])
        self.kd = torch.compile(kd_rows, dynamic=False) if model.dev.type == "cuda" else kd_rows

    def gates(self, j, y):
        m, N, out = self.index[j], len(y), []
        q, b = m.queries(y.detach().float())
        key = m.keys(y.detach().float())
        for row0 in range(0, N, CHUNK):
            r = min(CHUNK, N - row0)
            free = free_mask(row0, r, row0 + r, self.a.sinks, self.a.window, y.device)
            past = torch.arange(row0 + r, device=y.device)[None] <= row0 + torch.arange(r, device=y.device)[:, None]
            score = m.score(q[:, row0:row0 + r], b[:, row0:row0 + r], key[:row0 + r]).amax(0)
            out.append(Gate.apply(score, free, past, self.a.top_k, self.a.gate_width))
        return out

    def starts(self, n):
        """Chunks with rows whose list leaves something out."""
        return [r for r in range(0, n, CHUNK) if r + CHUNK > self.a.sinks + self.a.window + self.a.top_k]

    def loss(self, x_dense, starts):
        """After teacher.dense(tokens), which gave x_dense -> mean KL a row over these chunks of rows"""
        held, again = {}, torch.utils.checkpoint.checkpoint

        def attend(i, y, q, k, v):
            if i in self.t.leaders:
                held["gates"] = self.gates(self.t.leaders.index(i), y)
            out = []
            for c, gate in enumerate(held["gates"]):
                row0, n = c * CHUNK, gate.shape[1]
                out.append(again(gated_attention, q[:, row0:n].contiguous(), k[:, :n], v[:, :n], gate, self.m.shape.attn_scale, row0, use_reentrant=False))
            return torch.cat(out, 1)
        x = self.m.layers(self.t.start, attend, self.t.leaders[0])
        total, rows = 0.0, 0
        for row0 in map(int, starts):
            total = total + again(self.kd, x[row0:row0 + CHUNK], x_dense[row0:row0 + CHUNK], self.head, use_reentrant=False)
            rows += len(x[row0:row0 + CHUNK])
        return total / rows


class Teacher:
    """The frozen model's dense pass, and what the groups learn from."""

    def __init__(self, model, leaders, layers):
        self.model, self.leaders, self.layers = model, leaders, layers
        self.members = [[i for i in layers if a <= i < b] for a, b in zip(leaders, leaders[1:] + [1 << 30])]

    def dense(self, tokens):
        """-> last state; fills y (per leader), qk (per layer: q, k, lse)"""
        self.y, self.qk = {}, {}
        scale = self.model.shape.attn_scale

        def attend(i, y, q, k, v):
            o, lse = frozen.dense_attention(q, k, v, scale)
            self.qk[i] = (q, k, lse)
            if i in self.leaders:
                self.y[i] = y
            return o

        def seen(i, x):
            if i == self.leaders[0]:
                self.start = x
        with torch.no_grad():
            return self.model.layers(self.model.embed(tokens), attend, seen=seen)

    def abar(self, layers, row0, rows, n):
        """Mean attention of these layers and all their heads: [rows, n] float32"""
        out = 0
        for i in layers:
            q, k, lse = self.qk[i]
            out = out + ix.abar_chunk(q[None, None], k[None], lse[None, None], self.model.shape.attn_scale, row0, rows, n)[0]
        return out / len(layers)


def make_indexes(args, model, teacher):
    s = model.shape
    out = nn.ModuleList()
    for a in teacher.leaders:
        y = teacher.y[a].float()
        out.append(Index(s.hidden_size, args.index_dim, args.index_heads, args.rope_dims, s.rope_base[a], float(y.pow(2).mean().sqrt())))
    return out.to(model.dev)


def train(args, model, teacher, rows):
    dev, N = model.dev, args.length
    torch.manual_seed(args.seed)
    teacher.dense(torch.from_numpy(rows[0].astype(np.int64)).to(dev))
    index = make_indexes(args, model, teacher)
    if args.init:
        index.load_state_dict(load(args, model, args.init)[0].state_dict())
    loss_fn = torch.compile(chunk_loss, dynamic=False) if dev.type == "cuda" else chunk_loss
    groups = [{"params": list(m.parameters()), "lr": args.lr * m.std, "base": args.lr * m.std} for m in index]
    opt = torch.optim.Adam(groups, betas=(0.9, 0.95))
    log = csv.writer(open(os.path.join(args.out, "log.csv"), "w", newline=""))
    log.writerow(["step", "tokens", "seconds"] + [f"kl_{a}" for a in teacher.leaders] + (["kd"] if args.kd else []))
    starts = list(range(0, N, CHUNK))[1:] or [0]
    rng = np.random.RandomState(args.seed)
    gated = Gated(args, model, teacher, index)
    order, step, began = [], 0, time.time()
    while not (args.steps and step >= args.steps):
        p = (time.time() - began) / max(1e-9, args.deadline - (began - T0)) if args.deadline else step / args.steps
        if p >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = g["base"] * min(1.0, (step + 1) / 20) * (1 - 0.95 * p)
        with_kd = args.kd > 0 and p >= args.kl_share
        opt.zero_grad()
        stat, kd = torch.zeros(len(index), 2, device=dev), 0.0
        for _ in range(args.batch):
            if not order:
                order = list(rng.permutation(len(rows)))
            x = teacher.dense(torch.from_numpy(rows[order.pop()].astype(np.int64)).to(dev))
            if with_kd:
                some = gated.starts(N)
                loss = gated.loss(x, rng.choice(some, min(args.chunks, len(some)), replace=False))
                (args.kd * loss / args.batch).backward()
                kd = kd + loss.detach() / args.batch
            for row0 in rng.choice(starts, min(args.chunks, len(starts)), replace=False):
                row0 = int(row0)
                r = min(CHUNK, N - row0)
                free = free_mask(row0, r, N, args.sinks, args.window, dev)
                for j, m in enumerate(index):
                    y = teacher.y[teacher.leaders[j]].float()
                    q, b = m.queries(y)
                    score = m.score(q[:, row0:row0 + r], b[:, row0:row0 + r], m.keys(y))
                    kl, mass = loss_fn(score, teacher.abar(teacher.members[j], row0, r, N), free)
                    (kl / (r * args.batch * args.chunks)).backward()
                    stat[j] += torch.stack((kl.detach(), mass))
        nn.utils.clip_grad_norm_(index.parameters(), 1.0)
        opt.step()
        step += 1
        if step % args.log_every == 0 or step == 1:
            kl = (stat[:, 0] / stat[:, 1]).tolist()
            log.writerow([step, step * args.batch * N, f"{time.time() - T0:.1f}"] + [f"{x:.4f}" for x in kl] + ([f"{float(kd):.5f}"] if args.kd else []))
            print(f"step {step} {step * args.batch * N / 1e6:.1f}M tokens {time.time() - T0:.0f} s  kl a unit of mass", " ".join(f"{x:.3f}" for x in kl), f" kd {float(kd):.5f}" if with_kd else "", flush=True)
    args.trained_tokens = step * args.batch * N
    return index


def save(args, index, teacher, path):
    from safetensors.torch import save_file
    out = {}
    for j, m in enumerate(index):
        for n, p in (("q_proj", m.q_proj.weight), ("q_bias", m.q_bias.weight), ("k_proj", m.k_proj.weight)):
            out[f"index.{j}.{n}.weight"] = p.detach().half().contiguous().cpu()
        out[f"index.{j}.k_norm.weight"] = m.k_norm.detach().float().contiguous().cpu()
    meta = {"format": "pt", "kind": "distilled_index", "version": "1", "model_sha256": sha256(args.gguf),
            "index_dim": index[0].dim, "index_n_heads": index[0].heads, "index_scale": index[0].scale, "index_combine": "max",
            "index_rope_dims": index[0].rope_dims, "index_rope_base": ",".join(f"{m.rope_base:g}" for m in index), "index_norm_eps": 1e-6,
            "index_sinks": args.sinks, "index_window": args.window, "top_k": args.top_k,
            "leaders": ",".join(map(str, teacher.leaders)), "layers": ";".join(",".join(map(str, m)) for m in teacher.members),
            "trained_length": args.length, "trained_tokens": getattr(args, "trained_tokens", 0), "seed": args.seed}
    save_file(out, path, metadata={k: str(v) for k, v in meta.items()})


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 24):
            h.update(part)
    return h.hexdigest()


def load(args, model, path):
    from safetensors import safe_open
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        if meta["model_sha256"] != sha256(args.gguf):
            raise SystemExit(f"{path}: made for another model file than {args.gguf}")
        args.sinks, args.window = int(meta["index_sinks"]), int(meta["index_window"])
        leaders = [int(x) for x in meta["leaders"].split(",")]
        index = nn.ModuleList()
        for j in range(len(leaders)):
            m = Index(model.shape.hidden_size, int(meta["index_dim"]), int(meta["index_n_heads"]), int(meta["index_rope_dims"]),
                      float(meta["index_rope_base"].split(",")[j]))
            for n, p in (("q_proj", m.q_proj.weight), ("q_bias", m.q_bias.weight), ("k_proj", m.k_proj.weight), ("k_norm", m.k_norm)):
                p.data.copy_(f.get_tensor(f"index.{j}.{n}.weight").float())
            index.append(m)
    return index.to(model.dev), leaders


class Card:
    """Held-out loss and captured attention of several ways to make the lists, all global layers sparse.

    window    sinks + 512 newest tokens: what R counts from
    recency   sinks + as many newest tokens as the other lists hold
    random    the lists' free part drawn at random, one draw a group
    learned   the distilled index, keys and queries rounded to 8 bits
    oracle    top_k of the group's mean attention in the dense pass
    leader    top_k of the leader's own mean attention: no training, but it reads all its keys
    bounds    blocks of 16 by the upper bound of q . k from each block's smallest and largest key, a
              list for every layer and KV head, as many tokens as leave its bytes equal to learned's
    bounds 1  the same from the leader alone, one list a group
    """
    BLOCK = 16

    def __init__(self, args, model, teacher, index):
        self.a, self.m, self.t, self.index = args, model, teacher, index
        self.s, self.N = model.shape, args.length
        self.group_of = {i: j for j, m in enumerate(teacher.members) for i in m}
        self.row_bytes = 2 * self.s.n_kv_heads * self.s.head_dim * 2
        self.meta_bytes = self.N // self.BLOCK * 2 * self.s.n_kv_heads * self.s.head_dim * 2

    def bytes_of(self, plan, k):
        """Bytes of cache read by one decode step at N: 16-bit K and V, 8-bit index keys with a 4-byte scale."""
        n_layers, n_groups = len(self.group_of), len(self.index)
        held = (min(self.N, k + self.a.sinks + self.a.window)) * self.row_bytes * n_layers
        return held + {"learned": n_groups * self.N * (self.index[0].dim + 4), "bounds": n_layers * self.meta_bytes,
                       "bounds 1": n_groups * self.meta_bytes, "leader": n_groups * self.N * self.row_bytes // 2}.get(plan, 0)

    def equal_k(self, plan, k):
        """Free tokens, in whole blocks, that leave this plan's bytes at learned's with top_k k."""
        room = self.bytes_of("learned", k) - self.bytes_of(plan, 0)
        return max(0, int(room // (self.row_bytes * len(self.group_of)) // self.BLOCK * self.BLOCK))

    def keep(self, score, row0, k):
        """score [M, R, S] -> bool: sinks, window and the k best free tokens"""
        M, R, S = score.shape
        free = free_mask(row0, R, S, self.a.sinks, self.a.window, score.device)
        past = torch.arange(S, device=score.device)[None] <= torch.arange(row0, row0 + R, device=score.device)[:, None]
        out = (past & ~free).expand(M, -1, -1).clone()
        if k:
            top = score.masked_fill(~free, float("-inf")).topk(min(k, S), -1).indices
            out |= torch.zeros_like(out).scatter_(-1, top, True) & free
        return out

    def recent(self, row0, rows, n):
        t = torch.arange(row0, row0 + rows, device=self.m.dev)[:, None]
        s = torch.arange(row0 + rows, device=self.m.dev)[None]
        return ((s <= t) & ((s < self.a.sinks) | (t - s < n)))[None]

    def block_scores(self, q, k, one):
        """Upper bounds as a probability over blocks, mean over the heads that share a list: [M, N, blocks]"""
        G, N, d = k.shape
        kb = k.float().view(G, N // self.BLOCK, self.BLOCK, d)
        hi, lo = (x.repeat_interleave(q.shape[0] // G, 0).transpose(1, 2) for x in (kb.amax(2), kb.amin(2)))
        qf = q.float()
        x = (qf.clamp(min=0) @ hi + qf.clamp(max=0) @ lo) * self.s.attn_scale
        t, b = torch.arange(N, device=q.device)[:, None], torch.arange(N // self.BLOCK, device=q.device)[None]
        p = x.masked_fill(b * self.BLOCK + self.BLOCK > t + 1, float("-inf")).softmax(-1).nan_to_num(0.0)
        return p.mean(0, keepdim=True) if one else p.view(G, -1, N, N // self.BLOCK).mean(1)

    def block_lists(self, q, k, one, n_free):
        p = self.block_scores(q, k, one)
        out = []
        for row0 in range(0, self.N, CHUNK):
            r = min(CHUNK, self.N - row0)
            x = p[:, row0:row0 + r, :(row0 + r) // self.BLOCK]
            first = torch.arange(x.shape[2], device=x.device)[None] * self.BLOCK
            t = torch.arange(row0, row0 + r, device=x.device)[:, None]
            ok = t - first >= self.a.window                       # some of its tokens are neither recent nor to come
            top = x.masked_fill(~ok, -1.0).topk(min(n_free // self.BLOCK, x.shape[2]), -1).indices
            blocks = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, top, True) & ok
            past = torch.arange(row0 + r, device=x.device)[None] <= t
            out.append((blocks.repeat_interleave(self.BLOCK, 2) & past) | self.recent(row0, r, self.a.window))
        return out

    def lists(self, plan, k, i, y, q, key):
        """One group's (or, for `bounds`, one layer's) lists: per chunk of rows a bool [M, R, keys]"""
        j = self.group_of[i]
        if plan.startswith("bounds"):
            return self.block_lists(q, key, plan == "bounds 1", self.equal_k(plan, k))
        if plan == "learned":
            m = self.index[j]
            qi, b = m.queries(y.float())
            (qi, sq), (ki, sk) = to_int8(qi), to_int8(m.keys(y.float()))
        if plan == "leader":
            lse = frozen.dense_attention(q, key, key, self.s.attn_scale)[1]
        if plan == "random":
            gen = torch.Generator(device=self.m.dev).manual_seed(1000 * j + k)
        out = []
        for row0 in range(0, self.N, CHUNK):
            r = min(CHUNK, self.N - row0)
            n = row0 + r
            if plan == "window":
                out.append(self.recent(row0, r, 512))
                continue
            if plan == "recency":
                out.append(self.recent(row0, r, self.a.window + k))
                continue
            if plan == "learned":
                dot = qi[:, row0:n] @ ki[:n].t() * (sq[:, row0:n] * sk[:n, 0] * m.scale)
                x = (dot + b[:, row0:n, None]).amax(0, keepdim=True)
            elif plan == "oracle":
                x = self.t.abar(self.t.members[j], row0, r, n)[None]
            elif plan == "leader":
                x = ix.abar_chunk(q[None, None], key[None], lse[None, None], self.s.attn_scale, row0, r, n)
            else:
                x = torch.rand(1, r, n, device=self.m.dev, generator=gen)
            out.append(self.keep(x, row0, k))
        return out

    def attention(self, q, k, v, masks):
        rep = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(rep, 0), v.repeat_interleave(rep, 0)
        out = []
        for c, m in enumerate(masks):
            row0, n = c * CHUNK, m.shape[2]
            m = m if len(m) == 1 else m.repeat_interleave(rep, 0)
            out.append(F.scaled_dot_product_attention(q[None, :, row0:n], k[None, :, :n], v[None, :, :n], attn_mask=m[None], scale=self.s.attn_scale)[0])
        return torch.cat(out, 1)

    @torch.no_grad()
    def run(self, tokens, plan, k):
        """-> loss of every next token, share of the dense attention in the lists (None for `bounds`)"""
        held, cover = {}, []

        def attend(i, y, q, key, v):
            if plan == "bounds" or i in self.t.leaders:
                held["m"] = self.lists(plan, k, i, y, q, key)
                if plan in ("learned", "oracle", "leader", "bounds 1"):
                    for c, m in enumerate(held["m"]):
                        if c * CHUNK >= self.N // 2:
                            a = self.t.abar(self.t.members[self.group_of[i]], c * CHUNK, m.shape[1], m.shape[2])
                            cover.append((len(self.t.members[self.group_of[i]]), float((a * m[0]).sum() / m.shape[1])))
            return self.attention(q, key, v, held["m"])
        nll = self.m.nll(self.m.forward(tokens, attend), tokens)
        return nll, sum(w * c for w, c in cover) / sum(w for w, _ in cover) if cover else None

    def document(self, tokens, plans):
        dense = self.m.nll(self.t.dense(tokens), tokens)
        N, out = self.N, {}
        win = None
        for plan, k in [("window", 0)] + plans:
            nll, cover = self.run(tokens, plan, k)
            if plan == "window":
                win = nll
                gain = (win - dense)[3 * N // 4:] > 0.5
            out[f"{plan} {k}" if k else plan] = dict(past=float(nll[N // 4:].mean()), last=float(nll[3 * N // 4:].mean()),
                                                     gain=float(nll[3 * N // 4:][gain].sum()), coverage=cover)
        out["dense"] = dict(past=float(dense[N // 4:].mean()), last=float(dense[3 * N // 4:].mean()), gain=float(dense[3 * N // 4:][gain].sum()), coverage=None)
        out["n_gain"] = int(gain.sum())
        return out


def summary(docs, names):
    """Per plan: perplexity past N/4 against dense in %, R with a 95 % bootstrap over documents, coverage."""
    rng = np.random.RandomState(0)
    draw = rng.randint(len(docs), size=(2000, len(docs)))
    col = {p: np.array([d[p]["last"] for d in docs]) for p in docs[0] if p != "n_gain"}
    out = {}
    for p in col:
        r = (col["window"] - col[p])[draw].sum(1) / (col["window"] - col["dense"])[draw].sum(1)
        ppl = {n: 100 * (np.exp(np.mean([d[p]["past"] - d["dense"]["past"] for d, m in zip(docs, names) if m == n])) - 1) for n in dict.fromkeys(names)}
        gain = sum(d["window"]["gain"] - d[p]["gain"] for d in docs) / max(1e-9, sum(d["window"]["gain"] - d["dense"]["gain"] for d in docs))
        cover = [d[p]["coverage"] for d in docs]
        out[p] = dict(R=float((col["window"] - col[p]).sum() / (col["window"] - col["dense"]).sum()), R_low=float(np.quantile(r, 0.025)), R_high=float(np.quantile(r, 0.975)),
                      R_gain=gain, ppl_percent={n: float(x) for n, x in ppl.items()}, coverage=None if cover[0] is None else float(np.mean(cover)))
    return out


def card(args, model, teacher, index):
    docs = np.fromfile(args.docs, dtype=np.int32).reshape(-1, args.length)
    names = open(args.docs + ".names").read().split()
    c = Card(args, model, teacher, index)
    plans = [(p, args.top_k) for p in ("learned", "oracle", "leader", "bounds", "bounds 1", "recency", "random")]
    if args.card == "short":
        plans = plans[:2]
    else:
        plans += [(p, args.top_k // 2) for p in ("learned", "oracle", "bounds")] + [(p, args.top_k // 4) for p in ("learned", "oracle", "bounds")]
    out, done = [], []
    head = dict(length=args.length, sinks=args.sinks, window=args.window, leaders=teacher.leaders,
                bytes={f"{p} {k}": c.bytes_of(p, c.equal_k(p, k) if p.startswith("bounds") else k) for p, k in plans},
                free={f"{p} {k}": c.equal_k(p, k) if p.startswith("bounds") else k for p, k in plans})
    for j in range(0, len(docs)):
        if args.stop and time.time() - T0 > args.stop:
            break
        out.append(c.document(torch.from_numpy(docs[j].astype(np.int64)).to(model.dev), plans))
        done.append(names[j])
        print(f"document {j} {names[j]} {time.time() - T0:.0f} s", {p: round(x["past"], 4) for p, x in out[-1].items() if p != "n_gain"}, flush=True)
        json.dump(dict(head, names=done, documents=out, summary=summary(out, done)), open(os.path.join(args.out, "card.json"), "w"))
    for p, x in summary(out, done).items() if out else ():
        print(f"{p:16s} R {x['R']:.3f} [{x['R_low']:.3f}, {x['R_high']:.3f}]  gain {x['R_gain']:.3f}  ppl "
              + " / ".join(f"{n} {v:+.2f} %" for n, v in x["ppl_percent"].items()) + ("" if x["coverage"] is None else f"  coverage {x['coverage']:.3f}"), flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--gguf", required=True)
    ap.add_argument("--groups", help="first layer of every group, as 0,2,7")
    ap.add_argument("--rows", help="training rows, int32")
    ap.add_argument("--docs", help="held-out documents, int32; FILE.names: a word a document")
    ap.add_argument("--sidecar", help="make the card of this one, train nothing")
    ap.add_argument("--out", required=True)
    ap.add_argument("--length", type=int, default=8192)
    ap.add_argument("--index-dim", type=int, default=64)
    ap.add_argument("--index-heads", type=int, default=4)
    ap.add_argument("--rope-dims", type=int, default=32)
    ap.add_argument("--sinks", type=int, default=4)
    ap.add_argument("--window", type=int, default=128)
    ap.add_argument("--top-k", type=int, default=1024)
    ap.add_argument("--lr", type=float, default=0.08, help="Adam's, in units of the initial weights' deviation")
    ap.add_argument("--batch", type=int, default=4, help="rows a step")
    ap.add_argument("--chunks", type=int, default=2, help="chunks of query rows a row")
    ap.add_argument("--kd", type=float, default=0, help="weight of the loss through the lists (0: none)")
    ap.add_argument("--kl-share", type=float, default=0.3, help="share of the training before that loss is added")
    ap.add_argument("--gate-width", type=float, default=1.0, help="in the score's own unit, nats")
    ap.add_argument("--init", help="start from this sidecar")
    ap.add_argument("--steps", type=int, default=0)
    ap.add_argument("--deadline", type=float, default=0, help="end of training, seconds after the start of the process")
    ap.add_argument("--card", choices=("whole", "short"), default="whole", help="short: learned and oracle at top_k only")
    ap.add_argument("--stop", type=float, default=0, help="no new document of the card after this")
    ap.add_argument("--log-every", type=int, default=10)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    dev = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dev.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = frozen.Frozen(*frozen.read_gguf(args.gguf), dev, torch.bfloat16 if dev.type == "cuda" else torch.float32)
    print(f"{args.gguf}: {model.shape.n_layers} layers, global {model.shape.global_layers()}, {time.time() - T0:.0f} s", flush=True)
    if args.sidecar:
        index, leaders = load(args, model, args.sidecar)
        teacher = Teacher(model, leaders, model.shape.global_layers())
    else:
        teacher = Teacher(model, [int(x) for x in args.groups.split(",")], model.shape.global_layers())
        index = train(args, model, teacher, np.fromfile(args.rows, dtype=np.int32).reshape(-1, args.length))
        save(args, index, teacher, os.path.join(args.out, "index.safetensors"))
        index, _ = load(args, model, os.path.join(args.out, "index.safetensors"))
    if args.docs:
        card(args, model, teacher, index)


if __name__ == "__main__":
    main()
