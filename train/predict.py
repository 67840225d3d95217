"""E8: can a token's list be predicted before H is there? A map from the residual stream of an early window layer to the index query.

  predict.py --model models/NAME --data DIR --out predict.json [--deadline S]

All weights of the model are held still. Input of a map is the residual stream after l = 0 .. n_self window layers (0: the embedding;
n_self: H itself, a check that the maps can reach the query at all), divided by its root mean square. Keys are the model's own index
keys, which exist for every earlier token. A token's own row is left out on both sides: it needs no fetching.

  ridge   linear, least squares against the true index query
  linear  the same weights trained on: KL(softmax of the true index scores || softmax of the predicted ones) over all earlier tokens
  mlp     the same linear map and one hidden layer
  prev    mlp, its input being the stream and the normed H of the token before, which is there when a token is decoded

Measured on windows of held-out documents, query rows spread over each window's second half: the share of S_t (the k tokens of highest
true score) that is among the k, 1.5k and 2k of highest predicted score. Controls: scores by the true query of the token before
(its list, and the same with more ids), and the newest tokens.
"""
import time
T0 = time.time()
import argparse
import json

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import attention as att
import data
import model as mdl

FACTORS = (1.0, 1.5, 2.0)
TRAINED = ("linear", "mlp", "prev")


def rms(x):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Frozen:
    """The model's self layers and index; gives the streams, index queries and index keys of a row of tokens."""

    def __init__(self, folder, device):
        self.dev, self.masks = torch.device(device), {}
        self.gpu = self.dev.type == "cuda"
        self.cfg, self.model = mdl.open_checkpoint(folder, self.dev)

    @torch.no_grad()
    def read(self, tokens):
        """tokens [N] -> streams [n_self + 1][N, hidden] of mean square 1, normed H [N, hidden], qi, ki [N, index_dim]; float32"""
        tokens, N = tokens[None].to(self.dev), len(tokens)
        if N not in self.masks:
            self.masks[N] = att.Masks(1, N, self.cfg, self.dev, "gpu" if self.gpu else "ref")
        masks = self.masks[N].update(tokens)
        with torch.autocast(self.dev.type, dtype=torch.bfloat16, enabled=self.gpu):
            cos, sin = mdl.rope_tables(masks.pos, self.cfg)
            x = self.model.embed_tokens(tokens) * self.cfg.embed_scale
            x = x.bfloat16() if self.gpu else x
            streams = [x]
            for layer in self.model.layers:
                if layer.kind != "cross":
                    x = layer(x, cos, sin, None, None, masks, "dense")
                    streams.append(x)
            hn, _, _ = self.model.shared(x)
            qi, ki = self.model.index(x if self.cfg.index_input == "state" else hn)
        return [rms(s[0]) for s in streams], hn[0].float(), qi[0].float(), ki[0].float()


class Map(nn.Module):
    """stream [R, hidden] (and the H before it) -> index query [R, index_dim]; begins as the ridge solution"""

    def __init__(self, kind, ridge, hidden=512):
        super().__init__()
        d_out, d_in = ridge.shape
        self.kind = kind
        self.linear = nn.Linear(d_in, d_out, bias=False)
        self.linear.weight.data.copy_(ridge)
        if kind != "linear":
            self.up = nn.Linear(d_in * (2 if kind == "prev" else 1), hidden)
            self.down = nn.Linear(hidden, d_out, bias=False)
            nn.init.zeros_(self.down.weight)

    def forward(self, x, before):
        q = self.linear(x)
        if self.kind != "linear":
            q = q + self.down(F.silu(self.up(torch.cat((x, before), -1) if self.kind == "prev" else x)))
        return q


def shifted(hn):
    """Row t: the normed H of token t - 1; zeros before the first."""
    return F.pad(hn, (0, 0, 1, 0))[:-1]


class Ridge:
    """Least squares of the index query on each stream, summed over rows."""

    def __init__(self, n, hidden, dim, device):
        self.xx, self.xq = torch.zeros(n, hidden, hidden, device=device), torch.zeros(n, hidden, dim, device=device)

    def add(self, streams, qi):
        for i, x in enumerate(streams):
            self.xx[i] += x.t() @ x / len(x)
            self.xq[i] += x.t() @ qi / len(x)

    def solve(self, weight=1e-4):
        """-> [n, index_dim, hidden]; the penalty is `weight` of the mean diagonal"""
        eye = torch.eye(self.xx.shape[1], device=self.xx.device)
        penalty = weight * self.xx.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
        return torch.linalg.solve(self.xx.double() + penalty.double(), self.xq.double()).float().transpose(1, 2).contiguous()


def scores(q, ki, row0, n_keys, scale):
    """q [R, dim] of tokens row0 .. -> [R, n_keys], -inf for the token itself and later ones"""
    t = torch.arange(row0, row0 + len(q), device=q.device)[:, None]
    return (q @ ki[:n_keys].t() * scale).masked_fill(torch.arange(n_keys, device=q.device)[None] >= t, float("-inf"))


def kl_of(true, got):
    """Summed KL(softmax(true) || softmax(got)); rows with nothing to see count nothing."""
    ok = true > float("-inf")
    p, q = true - true.logsumexp(-1, keepdim=True), got - got.logsumexp(-1, keepdim=True)
    return torch.where(ok, p.exp() * (p - q), torch.zeros_like(p)).sum()


def train(args, frozen, sources, report):
    """-> {(kind, l): function (streams[l], before) -> query}; report gets losses"""
    c, dev = frozen.cfg, frozen.dev
    rows = (torch.from_numpy(np.asarray(a).astype(np.int64)) for step in range(1 << 30) for a in data.step_rows(sources, step, args.seed))
    layers = range(c.layer_kinds.index("cross") + 1)
    ridge = Ridge(len(layers), c.hidden_size, c.index_dim, dev)
    for _ in range(args.ridge_rows):
        streams, _, qi, _ = frozen.read(next(rows))
        ridge.add(streams, qi)
    weights = ridge.solve()
    torch.manual_seed(args.seed)
    maps = {(kind, l): Map(kind, weights[l]).to(dev) for kind in TRAINED for l in layers}
    opt = torch.optim.Adam([p for m in maps.values() for p in m.parameters()], lr=args.lr, betas=(0.9, 0.98))
    loss_of = torch.compile(kl_of, dynamic=True) if frozen.gpu else kl_of
    rng, chunk, began, step, seen = np.random.RandomState(args.seed), args.chunk, time.time(), 0, {}
    while step < args.steps:
        p = max(step / args.steps, (time.time() - T0) / args.deadline if args.deadline else 0)
        if p >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = args.lr * min(1, (step + 1) / 20) * (1 - 0.98 * p)
        streams, hn, qi, ki = frozen.read(next(rows))
        before, N = shifted(hn), len(qi)
        opt.zero_grad()
        for row0 in rng.choice(range(0, N, chunk), min(args.chunks, N // chunk), replace=False):
            row0 = int(row0)
            r, n = slice(row0, row0 + chunk), row0 + chunk
            true = scores(qi[r], ki, row0, n, c.index_scale)
            skip = 1 if row0 == 0 else 0                     # the first token sees nothing
            for (kind, l), m in maps.items():
                kl = loss_of(true[skip:], scores(m(streams[l][r], before[r]), ki, row0, n, c.index_scale)[skip:]) / chunk
                (kl / args.chunks).backward()
                x = seen.setdefault((kind, l), torch.zeros(2, device=dev))
                x += torch.stack((kl.detach(), torch.ones_like(kl)))
        nn.utils.clip_grad_norm_([p for m in maps.values() for p in m.parameters()], 10.0)
        opt.step()
        step += 1
        if step % args.log_every == 0 or step == 1 or step == args.steps:
            line = {f"{kind} {l}": round(float(a / b), 4) for (kind, l), (a, b) in seen.items()}
            report["log"].append({"step": step, "seconds": round(time.time() - began, 1), "kl": line})
            print(f"step {step} {time.time() - T0:.0f} s", line, flush=True)
            seen = {}
    report.update(steps=step, ridge_tokens=args.ridge_rows * args.length, tokens=step * args.length, query_rows=step * args.chunks * chunk,
                  train_seconds=round(time.time() - began, 1))
    maps.update({("ridge", l): Map("linear", weights[l]).to(dev) for l in layers})
    return maps


def windows(held, N, limit):
    """(package, first token) of windows of held-out documents of at least N tokens, at most `limit` a package, spread."""
    by = {}
    for i in np.flatnonzero(held.end - held.start >= N):
        by.setdefault(held.meta[i][1], []).extend(range(held.start[i], held.end[i] - N + 1, N))
    return [(p, by[p][j]) for p in sorted(by) for j in np.unique(np.linspace(0, len(by[p]) - 1, min(limit, len(by[p]))).astype(int))]


def shares(true_ids, order, sizes, n):
    """true_ids [R, k], order [R, m] by falling predicted score -> share of true_ids among the first `size`, each size"""
    inside = torch.zeros(len(true_ids), n, dtype=torch.bool, device=true_ids.device).scatter_(1, true_ids, True)
    found = inside.gather(1, order).cumsum(1)
    return [float(found[:, s - 1].float().mean()) / true_ids.shape[1] for s in sizes]


@torch.no_grad()
def measure(args, frozen, maps, held, N, ks):
    """-> {"windows", "share": {name: {k: [window][factor]}}}"""
    c, dev = frozen.cfg, frozen.dev
    out = {"N": N, "windows": [], "factors": FACTORS, "share": {}}
    step = max(1, N // 2 // args.rows)
    t = torch.arange(N // 2, N, step, device=dev) + step // 2
    longest = [int(f * max(ks)) for f in FACTORS][-1]
    for package, s in windows(held, N, args.limit):
        tokens = torch.from_numpy(np.asarray(held.tokens[s:s + N]).astype(np.int64))
        tokens[0] = c.doc_token
        streams, hn, qi, ki = frozen.read(tokens)
        before = shifted(hn)
        out["windows"].append(f"{package} {s}")
        past = torch.arange(N, device=dev)[None] < t[:, None]

        def ranked(q, m):
            return (q @ ki.t()).masked_fill(~past, float("-inf")).topk(m, -1).indices
        true = ranked(qi[t], max(ks))
        orders = {"previous query": ranked(qi[t - 1], longest), "newest": t[:, None] - 1 - torch.arange(longest, device=dev)[None]}
        orders.update({f"{kind} {l}": ranked(m(streams[l][t], before[t]), longest) for (kind, l), m in maps.items()})
        for name, order in orders.items():
            for k in ks:
                got = shares(true[:, :k], order, [int(f * k) for f in FACTORS], N)
                out["share"].setdefault(name, {}).setdefault(str(k), []).append([round(x, 4) for x in got])
    out["summary"] = summary(out)
    return out


def summary(out):
    """Mean share of every package's windows, packages alike; and the interval by window within packages."""
    package = np.array([w.split()[0] for w in out["windows"]])
    names, rng = sorted(set(package)), np.random.RandomState(0)
    picks = [np.concatenate([rng.choice(np.flatnonzero(package == p), (package == p).sum()) for p in names]) for _ in range(1000)]
    weight = np.array([1 / (package == p).sum() / len(names) for p in package])
    res = {}
    for name, by_k in out["share"].items():
        for k, rows in by_k.items():
            x = np.array(rows)
            d = np.stack([(x[i] * weight[i][:, None]).sum(0) for i in picks])
            res[f"{name} k={k}"] = {"mean": (x * weight[:, None]).sum(0).round(4).tolist(), "low": np.quantile(d, 0.025, axis=0).round(4).tolist(),
                                    "high": np.quantile(d, 0.975, axis=0).round(4).tolist(), "packages": {p: x[package == p].mean(0).round(4).tolist() for p in names}}
    return res


def arguments(words=None):
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--deadline", type=float, default=0, help="training ends by then, in seconds from the start")
    ap.add_argument("--steps", type=int, default=1500)
    ap.add_argument("--length", type=int, default=32768)
    ap.add_argument("--mix", default="long=2,package=1", help="rows of each source, as in train.py")
    ap.add_argument("--ridge-rows", type=int, default=96)
    ap.add_argument("--chunk", type=int, default=512, help="query rows scored together")
    ap.add_argument("--chunks", type=int, default=4, help="such chunks of a row, at random")
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--lengths", default="8192,32768", help="of the held-out windows")
    ap.add_argument("--ks", default="512,1024,2048")
    ap.add_argument("--limit", type=int, default=4, help="windows a package")
    ap.add_argument("--rows", type=int, default=256, help="query rows a window")
    ap.add_argument("--log-every", type=int, default=50)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return ap.parse_args(words)


def main():
    args = arguments()
    frozen = Frozen(args.model, args.device)
    held = data.Store(args.data, "heldout")
    report = {"model": args.model, "torch": torch.__version__, "device": torch.cuda.get_device_name() if frozen.gpu else "cpu", "options": vars(args), "log": []}
    mix = {k: int(n) for k, n in (x.split("=") for x in args.mix.split(","))}
    maps = train(args, frozen, data.make_sources(args.data, args.length, args.seed, mix), report)
    for N in map(int, args.lengths.split(",")):
        report[str(N)] = measure(args, frozen, maps, held, N, [int(k) for k in args.ks.split(",")])
        json.dump(report, open(args.out, "w"))
        for name, x in report[str(N)]["summary"].items():
            print(N, name, *(f"{a:.3f}" for a in x["mean"]), f"{time.time() - T0:.0f} s", flush=True)


if __name__ == "__main__":
    main()
