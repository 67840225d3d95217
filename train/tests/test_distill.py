"""Distilled indexes at small size, on a CPU: loss against a plain one and finite differences, lists,
k >= n equals dense, bounds are bounds, the sidecar keeps what was trained."""
import argparse
import os
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import distill
import frozen

N, CPU = 96, torch.device("cpu")


def tiny(gemma=False, layers=4, hidden=32, heads=4, kv=2, d=16, vocab=50):
    torch.manual_seed(3)
    window = [0 if not gemma or i % 2 else 8 for i in range(layers)]
    s = frozen.Shape(n_layers=layers, hidden_size=hidden, n_heads=heads, n_kv_heads=kv, head_dim=d, eps=1e-6, n_vocab=vocab,
                     rope_base=[1e4] * layers, window=window, rope_adjacent=not gemma, embed_scale=1.0, gelu=gemma, sandwich=gemma,
                     qk_norm=gemma, bos=-1)
    w = {"token_embd.weight": torch.randn(vocab, hidden), "output_norm.weight": torch.ones(hidden)}
    for i in range(layers):
        for n, shape in (("attn_q", (heads * d, hidden)), ("attn_k", (kv * d, hidden)), ("attn_v", (kv * d, hidden)), ("attn_output", (hidden, heads * d)),
                         ("ffn_gate", (64, hidden)), ("ffn_up", (64, hidden)), ("ffn_down", (hidden, 64))):
            w[f"blk.{i}.{n}.weight"] = torch.randn(shape) * shape[1] ** -0.5 * (3 if n in ("attn_q", "attn_k") else 1)
        for n, k in (("attn_norm", hidden), ("ffn_norm", hidden), ("post_attention_norm", hidden), ("post_ffw_norm", hidden), ("attn_q_norm", d), ("attn_k_norm", d)):
            w[f"blk.{i}.{n}.weight"] = torch.ones(k) + 0.1 * torch.randn(k)
    return frozen.Frozen(s, {n: t.numpy() for n, t in w.items()}, CPU, torch.float32)


def options(out, **over):
    d = dict(out=out, gguf=__file__, length=N, index_dim=16, index_heads=2, rope_dims=8, sinks=2, window=4, top_k=16, lr=0.1, batch=2, chunks=2, kd=0.0, kl_share=0.3,
             gate_width=1.0, init=None, steps=60, deadline=0, stop=0, log_every=30, seed=1)
    d.update(over)
    return argparse.Namespace(**d)


def parts(gemma=False):
    model = tiny(gemma)
    t = distill.Teacher(model, [0, 2] if not gemma else [1], model.shape.global_layers())
    tokens = torch.randint(0, 50, (N,), generator=torch.Generator().manual_seed(5))
    t.dense(tokens)
    return model, t, tokens


def test_window_attention_equals_a_mask():
    q, k, v = torch.randn(4, N, 16), torch.randn(2, N, 16), torch.randn(2, N, 16)
    t = torch.arange(N)
    near = (t[:, None] >= t[None]) & (t[:, None] - t[None] < 10)
    s = (q @ k.repeat_interleave(2, 0).transpose(1, 2) * 0.25).masked_fill(~near, float("-inf")).softmax(-1)
    torch.testing.assert_close(frozen.window_attention(q, k, v, 0.25, 10), s @ v.repeat_interleave(2, 0))


def test_abar_is_the_mean_attention():
    model, t, _ = parts()
    a = t.abar([0, 1], 0, N, N)
    want = 0
    for i in (0, 1):
        q, k, _ = t.qk[i]
        s = q @ k.repeat_interleave(2, 0).transpose(1, 2) * model.shape.attn_scale
        want = want + s.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), float("-inf")).softmax(-1).mean(0) / 2
    torch.testing.assert_close(a, want, atol=1e-6, rtol=1e-5)


def test_loss_is_the_weighted_kl_and_its_gradient():
    model, t, _ = parts()
    m = distill.make_indexes(options(""), model, t)[0].double()
    y = t.y[0].double()
    abar = t.abar([0, 1], 0, N, N).double()
    free = distill.free_mask(0, N, N, 2, 4, CPU)
    rows = torch.arange(N) >= 8
    abar, free = abar[rows], free[rows]

    def loss():
        q, b = m.queries(y)
        return distill.chunk_loss(m.score(q[:, rows], b[:, rows], m.keys(y)), abar, free)[0]
    q, b = m.queries(y)
    x = m.score(q[:, rows], b[:, rows], m.keys(y)).logsumexp(0)
    want = 0
    for r in range(len(abar)):
        a, p = abar[r][free[r]], x[r][free[r]].softmax(0)
        want = want + (a * (a / a.sum() / p).log()).sum()
    torch.testing.assert_close(loss(), want)
    loss().backward()
    for p in m.parameters():
        for at in np.random.RandomState(0).randint(p.numel(), size=3):
            flat, eps = p.data.view(-1), 3e-3                # norms and rotation are float32
            old = float(flat[at])
            flat[at] = old + eps
            hi = float(loss().detach())
            flat[at] = old - eps
            lo = float(loss().detach())
            flat[at] = old
            want = float(p.grad.view(-1)[at])
            assert abs((hi - lo) / (2 * eps) - want) < 2e-3 * (1 + abs(want)), ((hi - lo) / (2 * eps), want)


def test_lists_hold_what_they_must():
    model, t, _ = parts()
    c = distill.Card(options(""), model, t, distill.make_indexes(options(""), model, t))
    m = c.keep(torch.randn(1, N, N), 0, 16)[0]
    r, s = torch.arange(N)[:, None], torch.arange(N)[None]
    assert not m[s > r].any()
    assert m[(s <= r) & ((s < 2) | (r - s < 4))].all()
    assert (m.sum(1) == torch.minimum(r[:, 0] + 1, torch.tensor(2 + 4 + 16))).all()


def test_k_of_everything_is_dense():
    for gemma in (False, True):
        model, t, tokens = parts(gemma)
        old, distill.CHUNK = distill.CHUNK, 32
        c = distill.Card(options(""), model, t, distill.make_indexes(options(""), model, t))
        dense = model.nll(t.dense(tokens), tokens)
        for plan in ("learned", "oracle", "leader", "random", "recency"):
            torch.testing.assert_close(c.run(tokens, plan, N)[0], dense, atol=1e-4, rtol=1e-4)
        c.equal_k = lambda plan, k: N
        for plan in ("bounds", "bounds 1"):
            torch.testing.assert_close(c.run(tokens, plan, N)[0], dense, atol=1e-4, rtol=1e-4)
        assert float((c.run(tokens, "random", 8)[0] - dense).abs().max()) > 1e-3
        distill.CHUNK = old


def test_oracle_covers_most_and_bounds_are_bounds():
    model, t, tokens = parts()
    c = distill.Card(options(""), model, t, distill.make_indexes(options(""), model, t))
    old, distill.CHUNK = distill.CHUNK, 32
    cover = {p: c.run(tokens, p, 16)[1] for p in ("oracle", "learned")}
    assert cover["oracle"] >= cover["learned"]
    distill.CHUNK = old
    q, k, _ = t.qk[0]
    kb = k.view(2, N // 16, 16, 16).repeat_interleave(2, 0)
    hi = (q.clamp(min=0)[:, :, None] * kb.amax(2)[:, None]).sum(-1) + (q.clamp(max=0)[:, :, None] * kb.amin(2)[:, None]).sum(-1)
    true = (q @ k.repeat_interleave(2, 0).transpose(1, 2)).view(4, N, N // 16, 16).amax(-1)
    assert (hi >= true - 1e-4).all()
    free = torch.cat(c.block_lists(q, k, True, 32), 1)[0].sum(1) - torch.minimum(torch.arange(N) + 1, torch.tensor(6))
    assert int(free.max()) <= 32                        # never more than whole blocks allow


def test_equal_bytes():
    model, t, _ = parts()
    a = options("")
    a.length = 8192
    c = distill.Card(a, model, t, distill.make_indexes(a, model, t))
    for plan in ("bounds", "bounds 1"):
        k = c.equal_k(plan, 1024)
        step = distill.Card.BLOCK * c.row_bytes * 4
        assert 0 <= c.bytes_of("learned", 1024) - c.bytes_of(plan, k) < step + 6 * c.row_bytes * 4, plan


def test_training_lowers_the_loss_and_the_sidecar_keeps_it():
    with tempfile.TemporaryDirectory() as out:
        model, t, tokens = parts()
        args = options(out)
        old, distill.CHUNK = distill.CHUNK, 32
        index = distill.train(args, model, t, np.random.RandomState(0).randint(0, 50, size=(16, N)))
        kl = [float(x.split(",")[3]) for x in open(os.path.join(out, "log.csv")).read().split("\n")[1:] if x]
        assert kl[-1] < 0.8 * kl[0], kl
        path = os.path.join(out, "index.safetensors")
        distill.save(args, index, t, path)
        again, leaders = distill.load(args, model, path)
        assert leaders == t.leaders
        t.dense(tokens)
        for a, b, l in zip(index, again, leaders):
            torch.testing.assert_close(a.keys(t.y[l]), b.keys(t.y[l]), atol=5e-3, rtol=5e-3)
            assert a.rope_dims == b.rope_dims and a.rope_base == b.rope_base and a.heads == b.heads
        distill.CHUNK = old


def test_gradient_of_gated_attention():
    """By finite differences in the gates, of tokens in the list and outside."""
    torch.manual_seed(2)
    q, k, v = torch.randn(4, 12, 8).double(), torch.randn(2, 20, 8).double(), torch.randn(2, 20, 8).double()
    gate, way = (torch.rand(12, 20) < 0.6).double(), torch.randn(4, 12, 8).double()
    gate[:, 0] = 1

    def value(g):                                            # in double: gated_attention's softmax is float32
        s = (q @ k.repeat_interleave(2, 0).transpose(1, 2)) * 0.3
        past = torch.arange(20)[None] <= 8 + torch.arange(12)[:, None]
        e = s.exp() * past * g
        return ((e / e.sum(-1, keepdim=True)) @ v.repeat_interleave(2, 0) * way).sum()
    g = gate.clone().requires_grad_()
    got = (distill.gated_attention(q, k, v, g, 0.3, 8) * way).sum()
    torch.testing.assert_close(got.detach(), value(gate), atol=1e-5, rtol=1e-5)
    got.backward()
    for r, j in ((0, 3), (5, 7), (11, 19), (11, 1), (3, 19)):
        up, down = gate.clone(), gate.clone()
        up[r, j] += 1e-6
        down[r, j] -= 1e-6
        want = float((value(up) - value(down)) / 2e-6)
        assert abs(float(g.grad[r, j]) - want) < 1e-4 * (1 + abs(want)), (r, j)


def test_gradient_of_the_gate():
    """That of sigmoids whose sum is held; a row that reads all it may has none."""
    torch.manual_seed(4)
    score, way = torch.randn(N, N, dtype=torch.float64), torch.randn(N, N, dtype=torch.float64)
    free, past = distill.free_mask(0, N, N, 2, 4, CPU), torch.ones(N, N).tril().bool()
    x = score.clone().requires_grad_()
    gate = distill.Gate.apply(x, free, past, 16, 0.7)
    assert (gate.sum(1) == torch.minimum(torch.arange(N) + 1, torch.tensor(2 + 4 + 16))).all()
    (gate * way).sum().backward()
    assert (x.grad[:22] == 0).all() and (x.grad.sum(1).abs() < 1e-6).all() and not x.grad[~free].any()

    def held(y, target):                                     # the threshold that keeps the sum, by bisection
        lo, hi = -20.0, 20.0
        for _ in range(200):
            mid = (lo + hi) / 2
            lo, hi = (mid, hi) if float(torch.sigmoid((y - mid) / 0.7).sum()) > target else (lo, mid)
        return torch.sigmoid((y - lo) / 0.7)
    for r in (30, 95):
        y, w = score[r][free[r]], way[r][free[r]]
        target = float(torch.sigmoid((y - y.topk(16).values[-1]) / 0.7).sum())
        for j in (0, 5, 11):
            up, down = y.clone(), y.clone()
            up[j] += 1e-5
            down[j] -= 1e-5
            want = float(((held(up, target) - held(down, target)) * w).sum() / 2e-5)
            assert abs(float(x.grad[r][free[r]][j]) - want) < 1e-4, (r, j)


def test_the_loss_through_the_lists():
    """No loss where lists hold everything; the card's own loss lies behind it elsewhere; it falls in training."""
    old, distill.CHUNK = distill.CHUNK, 32
    for gemma in (False, True):
        model, t, tokens = parts(gemma)
        a = options("")
        index = distill.make_indexes(a, model, t)
        x = t.dense(tokens)
        gated = distill.Gated(a, model, t, index)
        assert gated.starts(N) == [0, 32, 64]
        loss = float(gated.loss(x, gated.starts(N)).detach())
        assert loss > 1e-4
        a.top_k = N
        assert gated.starts(N) == [] and abs(float(gated.loss(x, range(0, N, 32)).detach())) < 1e-6
        a.top_k = 16
        c = distill.Card(a, model, t, index)
        seen = []

        def attend(i, y, q, key, v):                         # the card's way, lists from scores that are not rounded
            if i in t.leaders:
                m = index[t.leaders.index(i)]
                qi, b = m.queries(y)
                seen[:] = [c.keep(m.score(qi[:, r:r + 32], b[:, r:r + 32], m.keys(y)[:r + 32]).amax(0)[None], r, 16) for r in range(0, N, 32)]
            return c.attention(q, key, v, seen)
        with torch.no_grad():
            h = model.layers(model.embed(tokens), attend)
            want = sum(float(distill.kd_rows(h[r:r + 32], x[r:r + 32], model.w["token_embd.weight"])) for r in range(0, N, 32) if r + 32 > 22) / N
        assert abs(loss - want) < 1e-4 * (1 + want), (loss, want)
    with tempfile.TemporaryDirectory() as out:
        model, t, _ = parts(True)
        distill.train(options(out, kd=20.0, steps=120, log_every=10), model, t, np.random.RandomState(0).randint(0, 50, size=(4, N)))
        kd = [float(x.split(",")[-1]) for x in open(os.path.join(out, "log.csv")).read().split("\n")[1:] if x]
        kd = [x for x in kd if x]
        assert kd[-1] < 0.9 * kd[0], kd
    distill.CHUNK = old


def test_golden_follows_from_the_sidecar_alone():
    """Keys, queries, scores and lists again from the file's tensors and metadata, in float64 and one token at a time."""
    from safetensors import safe_open
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "distilled-tiny")
    with safe_open(os.path.join(here, "index.safetensors"), "np") as f, safe_open(os.path.join(here, "golden.safetensors"), "np") as g:
        m = f.metadata()
        dim, heads, turn, k = (int(m[x]) for x in ("index_dim", "index_n_heads", "index_rope_dims", "top_k"))
        sinks, window = int(m["index_sinks"]), int(m["index_window"])

        def rotate(x, t, base):
            ang = t * float(base) ** (-np.arange(turn // 2) / (turn // 2))
            a, b = x[:turn // 2].copy(), x[turn // 2:turn].copy()
            return np.concatenate((a * np.cos(ang) - b * np.sin(ang), b * np.cos(ang) + a * np.sin(ang), x[turn:]))

        def round8(x):
            s = np.abs(x).max() / 127
            return np.rint(x / s), s
        for j, base in enumerate(m["index_rope_base"].split(",")):
            w = {n: f.get_tensor(f"index.{j}.{n}").astype(np.float64) for n in ("q_proj.weight", "q_bias.weight", "k_proj.weight", "k_norm.weight")}
            y = g.get_tensor(f"y.{j}").astype(np.float64)
            keys = []
            for t in range(len(y)):
                x = w["k_proj.weight"] @ y[t]
                keys.append(round8(rotate(x / np.sqrt((x * x).mean() + float(m["index_norm_eps"])) * w["k_norm.weight"], t, base)))
                assert np.abs(keys[t][0] - g.get_tensor(f"key.{j}")[t]).max() <= 1
                score = np.full(t + 1, -np.inf)
                for h in range(heads):
                    q, s = round8(rotate(w["q_proj.weight"][h * dim:(h + 1) * dim] @ y[t], t, base))
                    b = w["q_bias.weight"][h] @ y[t]
                    score = np.maximum(score, [float(m["index_scale"]) * s * ks * (q @ kq) + b for kq, ks in keys])
                assert np.abs(score - g.get_tensor(f"score.{j}")[t, :t + 1]).max() < 0.05
                free = [i for i in range(t + 1) if i >= sinks and t - i >= window]
                ids = sorted(set(range(t + 1)) - set(free) | set(sorted(free, key=lambda i: (-score[i], i))[:k]))
                want = [i for i in g.get_tensor(f"list.{j}")[t] if i >= 0]
                assert len(ids) == len(want) and len(set(ids) ^ set(want)) <= 2, (j, t)


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print("ok", name, flush=True)
