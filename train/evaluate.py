"""Measures a checkpoint: bits per byte, long-range recovery R against controls, coverage,
planted-fact accuracy by depth, stability of the list.

  evaluate.py --ckpt state.pt --data DIR --tokenizer tokenizer.json --out results.json [--deadline S]

Every reading plan is a set of lists given to the same weights: dense (all keys), window
(4 sinks + 512 recent), recency-k, random-k, learned (the index), oracle (top-k of the mean
attention over cross layers and heads), oracle per layer. Results are written after every
section, so a run that is stopped leaves what it has.
"""
import time
T0 = time.time()
import argparse
import json
import os

import numpy as np
import torch
import torch.nn.functional as F

import attention as att
import data
import index_ops as ix
import model as mdl
import prepare
import tasks


class Evaluator:
    def __init__(self, args):
        self.args = args
        self.dev = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gpu = self.dev.type == "cuda"
        self.cfg, self.model = mdl.open_checkpoint(args.ckpt, self.dev)
        self.held = data.Store(args.data, "heldout")
        self.masks = {}
        self.chunk = 1024

    def mask(self, tokens):
        key = tuple(tokens.shape)
        if key not in self.masks:
            self.masks[key] = att.Masks(*key, self.cfg, self.dev, "gpu" if self.gpu else "ref")
        return self.masks[key].update(tokens)

    def chunks(self, N):
        return [(r, min(self.chunk, N - r)) for r in range(0, N, self.chunk)]

    def nll(self, x, tokens):
        """[B, N-1] float32 loss of every next token, and whether it was the arg-max."""
        w = self.model.head_weight()
        out, hit = [], []
        for r in range(0, tokens.shape[1] - 1, 8192):
            e = min(r + 8192, tokens.shape[1] - 1)
            logits = F.linear(x[:, r:e], w.to(x.dtype)).float()
            t = tokens[:, r + 1:e + 1]
            out.append(F.cross_entropy(logits.flatten(0, 1), t.flatten(), reduction="none").view(t.shape))
            hit.append(logits.argmax(-1) == t)
        return torch.cat(out, 1), torch.cat(hit, 1)

    def static_bits(self, masks, sinks, recent):
        """Lists of sinks + recent tokens."""
        bits = masks.need_bits()
        s = torch.arange(bits.shape[2] * 32, device=self.dev)[None]
        for r, n in self.chunks(masks.N):
            t = torch.arange(r, r + n, device=self.dev)[:, None]
            bits[:, r:r + n] = att.pack_bits((s <= t) & ((s < sinks) | (t - s < recent)))

    def scored_bits(self, masks, fn, k):
        bits = masks.need_bits()
        for r, n in self.chunks(masks.N):
            ix.topk_bits(fn(r, n), bits, r, k, self.cfg.index_sinks, self.cfg.index_window)

    def forward(self, tokens, plan, k=0, dense_out=None, seed=0):
        """-> nll, hit, out of one plan."""
        masks = self.mask(tokens)
        with torch.no_grad(), torch.autocast(self.dev.type, dtype=torch.bfloat16, enabled=self.gpu):
            if plan == "dense":
                out = self.model(tokens, masks, "dense_lse")
            elif plan == "oracle_layer":
                out = self.oracle_per_layer(tokens, masks, k)
            else:
                def select(qi, ki):
                    with torch.autocast(self.dev.type, enabled=False):
                        if plan == "learned":
                            ix.select_bits(qi, ki, self.cfg, masks.need_bits(), k, self.chunk)
                        elif plan == "window":
                            self.static_bits(masks, 4, 512)
                        elif plan == "recency":
                            self.static_bits(masks, 4, k - 4)
                        elif plan == "random":
                            g = torch.Generator(device=self.dev).manual_seed(seed)
                            self.scored_bits(masks, lambda r, n: torch.rand(tokens.shape[0], n, r + n, device=self.dev, generator=g), k)
                        elif plan == "oracle":
                            d = dense_out
                            qs, lse = torch.stack(d["qs"]), torch.stack(d["lses"]).float()
                            self.scored_bits(masks, lambda r, n: ix.abar_chunk(qs, d["k"], lse, self.cfg.attn_scale, r, n, r + n), k)
                        else:
                            raise ValueError(plan)
                out = self.model(tokens, masks, "sparse", select=select)
            nll, hit = self.nll(out["x"], tokens)
        return nll, hit, out

    def oracle_per_layer(self, tokens, masks, k):
        m = self.model
        x, cos, sin = m.self_decoder(tokens, masks)
        hn, key, v = m.shared(x)
        for layer in m.layers:
            if layer.kind == "cross":
                _, q, lse = layer(x, cos, sin, key, v, masks, "dense_lse")
                qs, ls = q[None], lse[None].float()
                with torch.autocast(self.dev.type, enabled=False):
                    self.scored_bits(masks, lambda r, n: ix.abar_chunk(qs, key, ls, self.cfg.attn_scale, r, n, r + n), k)
                x, _, _ = layer(x, cos, sin, key, v, masks, "sparse")
        return {"x": m.norm(x)}

    def coverage(self, dense_out, bits, rows):
        """Mean attention mass of the dense model inside the lists, over the given rows."""
        qs, lse = torch.stack(dense_out["qs"]), torch.stack(dense_out["lses"]).float()
        total, n = 0.0, 0
        for r, c in rows:
            a = ix.abar_chunk(qs, dense_out["k"], lse, self.cfg.attn_scale, r, c, r + c)
            m = att.unpack_bits(bits[:, r:r + c], bits.shape[2] * 32)[:, :, :r + c]
            total += float((a * m).sum())
            n += a.shape[0] * c
        return total / n

    def long_rows(self, N, limit):
        """Windows of N tokens of held-out documents at least that long, spread over packages."""
        by = {}
        for i in np.flatnonzero(self.held.end - self.held.start >= N):
            by.setdefault(self.held.meta[i][1], []).append(i)
        rows = []
        for package in sorted(by):
            w = [(package, int(self.held.start[i]) + j * N) for i in by[package] for j in range(int((self.held.end[i] - self.held.start[i]) // N))]
            w = [w[j] for j in np.unique(np.linspace(0, len(w) - 1, min(limit, len(w))).astype(int))]
            rows += w
        return rows

    def tokens_at(self, s, N):
        t = torch.from_numpy(np.asarray(self.held.tokens[s:s + N]).astype(np.int64))[None].to(self.dev)
        t[0, 0] = self.cfg.doc_token
        return t

    def recovery(self, N, ks, limit, controls=True, per_layer_ks=()):
        """R on the last quarter, and on tokens where dense gains > 0.5 nat over the window."""
        acc, packages = {}, []
        late = [(r, c) for r, c in self.chunks(N) if r >= max(4096, N // 2)][::2] or [(N - self.chunk, self.chunk)]
        for package, s in self.long_rows(N, limit):
            tokens = self.tokens_at(s, N)
            q0 = 3 * N // 4
            dense, _, d_out = self.forward(tokens, "dense")
            win, _, _ = self.forward(tokens, "window")
            gain = (win - dense)[:, q0:] > 0.5
            packages.append(package)

            def note(name, nll, cov=None):
                x = acc.setdefault(name, {"last": [], "gain": [], "n_gain": [], "coverage": []})
                x["last"].append(float(nll[:, q0:].mean()))
                x["gain"].append(float(nll[:, q0:][gain].sum()))
                x["n_gain"].append(int(gain.sum()))
                if cov is not None:
                    x["coverage"].append(cov)
            note("dense", dense)
            note("window", win)
            for k in ks:
                plans = ["learned", "oracle"] + (["recency", "random"] if controls else [])
                for plan in plans:
                    nll, _, _ = self.forward(tokens, plan, k, d_out, seed=s)
                    cov = self.coverage(d_out, self.mask(tokens).bits, late) if plan in ("learned", "oracle") else None
                    note(f"{plan} k={k}", nll, cov)
                if k in per_layer_ks:
                    note(f"oracle_layer k={k}", self.forward(tokens, "oracle_layer", k)[0])
            if self.late():
                break
        return {"N": N, "rows": len(packages), "packages": packages, "plans": acc}

    def plans_here(self, plans):
        """Without a shared cache there are no lists to make; an untrained index makes none worth measuring."""
        if self.args.dense_only or not self.cfg.has_index:
            return [p for p in plans if (p if isinstance(p, str) else p[0]) == "dense"]
        return list(plans)

    def late(self):
        return self.args.deadline and time.time() - T0 > self.args.deadline

    def needles(self, N, plans, rows, families, seed=5):
        tok = prepare.Tokenizer.from_file(self.args.tokenizer)
        maker = tasks.TaskMaker(tok, self.cfg.doc_token)
        hay = prepare.haystack(self.held.tokens, self.held.start)
        res = {}
        for fam, held in families:
            rng = np.random.RandomState(seed + N + 17 * held)
            for _ in range(rows):
                row, answers = maker.row(rng, hay, N, fam, held=held)
                tokens = torch.from_numpy(row.astype(np.int64))[None].to(self.dev)
                for plan, k in plans:
                    nll, hit, _ = self.forward(tokens, plan, k)
                    nll, hit = nll[0].cpu().numpy(), hit[0].cpu().numpy()
                    x = res.setdefault(f"{fam}{'_held' if held else ''} {plan}{' k=%d' % k if k else ''}",
                                       {"tokens": 0, "right": 0, "nll": 0.0, "answers": 0, "exact": 0, "depth": [[0, 0] for _ in range(5)]})
                    for a, b, dist, _ in answers:
                        h = hit[a - 1:b - 1]
                        x["tokens"] += b - a
                        x["right"] += int(h.sum())
                        x["nll"] += float(nll[a - 1:b - 1].sum())
                        x["answers"] += 1
                        ok = int(h[:-1].all()) if fam != "copy" else int(h.mean() > 0.95)
                        x["exact"] += ok
                        d = x["depth"][min(4, int(5 * (1 - dist / N)))] if dist < N else x["depth"][0]
                        d[0] += ok
                        d[1] += 1
            if self.late():
                break
        return {"N": N, "tasks": res}

    def asks(self, plans, families, lengths, max_answers):
        """Planted facts on the rows that prepare.py --ask made: the same for every model, results kept by row."""
        res = {}
        for N in lengths:
            for fam in families:
                path = os.path.join(self.args.data, f"ask-{fam}-{N}.npz")
                if not os.path.exists(path) or self.late():
                    continue
                z = np.load(path)
                answers = z["answers"][:max_answers]
                rows = int(answers[-1, 0]) + 1
                B = max(1, 32768 // N)
                for plan, k in plans:
                    per = np.zeros((rows, 5))                     # answers, exact, tokens, right, nll
                    for r in range(0, rows - rows % B if rows >= B else rows, B):
                        tokens = torch.from_numpy(z["rows"][r:r + B].astype(np.int64)).to(self.dev)
                        nll, hit, _ = self.forward(tokens, plan, k)
                        nll, hit = nll.cpu().numpy(), hit.cpu().numpy()
                        for row, a, b, _ in answers[(answers[:, 0] >= r) & (answers[:, 0] < r + B)]:
                            h = hit[row - r, a - 1:b - 1]
                            exact = h.mean() > 0.95 if fam == "copy" else h[:-1].all()
                            per[row] += (1, exact, b - a, h.sum(), nll[row - r, a - 1:b - 1].sum())
                    per = per[per[:, 0] > 0]
                    name = f"{fam} {N} {plan}{' k=%d' % k if k else ''}"
                    s = per.sum(0)
                    res[name] = {"answers": int(s[0]), "exact": s[1] / s[0], "right": s[3] / s[2], "nll": s[4] / s[2],
                                 "by_row": per.round(3).tolist()}
                    print(f"{name}: {int(s[0])} answers, tokens {100 * s[3] / s[2]:.1f} %, whole {100 * s[1] / s[0]:.1f} %, {time.time() - T0:.0f} s", flush=True)
        return res

    def tail(self, N, plans, limit):
        """Loss on the last quarter of long held-out windows, by window, so that models can be paired."""
        res, packages = {}, []
        for package, s in self.long_rows(N, limit):
            tokens = self.tokens_at(s, N)
            packages.append(f"{package} {s}")
            for plan, k in plans:
                nll = self.forward(tokens, plan, k)[0]
                res.setdefault(f"{plan}{' k=%d' % k if k else ''}", []).append(float(nll[:, 3 * N // 4:].mean()))
            if self.late():
                break
        return {"N": N, "windows": packages, "loss": res}

    def bits_per_byte(self, N, k, max_rows):
        """Held-out store as it lies, in rows of N; dense and learned lists."""
        by_row = {}
        rows = min(max_rows, len(self.held.tokens) // N)
        at = np.unique(np.linspace(0, len(self.held.tokens) - N, rows).astype(int))
        doc_of = np.searchsorted(self.held.start, np.arange(len(self.held.tokens)), side="right") - 1
        per_byte = np.array([m[3] for m in self.held.meta], dtype=np.float64) / (self.held.end - self.held.start)
        package = np.array([m[1] for m in self.held.meta])
        sums = {}
        for s in at:
            tokens = self.tokens_at(int(s), N)
            for plan in self.plans_here(("dense", "learned", "window")):
                nll = self.forward(tokens, plan, k)[0][0].cpu().numpy()
                by_row.setdefault(plan, []).append(round(float(nll.mean()), 5))
                d = doc_of[s + 1:s + N]
                for p in np.unique(package[d]):
                    m = package[d] == p
                    a = sums.setdefault(f"{p} {plan}", [0.0, 0.0, 0])
                    a[0] += float(nll[m].sum())
                    a[1] += float(per_byte[d[m]].sum())
                    a[2] += int(m.sum())
            if self.late():
                break
        return {"N": N, "k": k, "by_row": by_row, "packages": {p: {"bpb": a[0] / a[1] / np.log(2), "nats_a_token": a[0] / a[2], "tokens": a[2]} for p, a in sums.items()}}

    def stability(self, N, k, limit):
        """Share of S_t that is in S_{t-1}, t > N/2, and of a list made of the k most recent."""
        res = {}
        for package, s in self.long_rows(N, limit):
            tokens = self.tokens_at(s, N)
            self.forward(tokens, "learned", k)
            b = self.mask(tokens).bits
            both, rec, n = 0, 0, 0
            for r, c in [x for x in self.chunks(N) if x[0] >= N // 2]:
                m = att.unpack_bits(b[:, r - 1:r + c], b.shape[2] * 32)
                both += int((m[:, 1:] & m[:, :-1]).sum())
                t = torch.arange(r, r + c, device=self.dev)[:, None]
                ids = torch.arange(m.shape[2], device=self.dev)[None]
                rec += int((m[0, 1:] & (t - ids < k)).sum())
                n += c * k
            x = res.setdefault(package, [])
            x.append((both / n, rec / n))
        return {"N": N, "k": k, "packages": {p: {"kept": float(np.mean([a for a, _ in x])), "recency_hit": float(np.mean([b for _, b in x])),
                                                 "rows": len(x)} for p, x in res.items()}}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--ckpt", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--deadline", type=float, default=0)
    ap.add_argument("--long", type=int, default=32768)
    ap.add_argument("--mid", type=int, default=8192)
    ap.add_argument("--limit", type=int, default=6)
    ap.add_argument("--needle-rows", type=int, default=12)
    ap.add_argument("--dense-only", action="store_true")
    ap.add_argument("--no-controls", action="store_true", help="recovery without recency, random and the oracle per layer")
    ap.add_argument("--ask-plans", default="dense,learned:512,learned:1024")
    ap.add_argument("--ask-families", default="facts,facts-held,keyvalue,keyvalue-held")
    ap.add_argument("--ask-answers", type=int, default=1 << 30)
    ap.add_argument("--ask-lengths", default="32768,8192,4096")
    ap.add_argument("--sections", default="bpb,recovery_long,needles,recovery_mid,stability,needles_far")
    args = ap.parse_args()
    ev = Evaluator(args)
    L, M = args.long, args.mid
    fams = [("facts", False), ("facts", True), ("keyvalue", False), ("keyvalue", True), ("chain", False), ("copy", False)]
    plans = [("dense", 0), ("window", 0), ("learned", 512), ("learned", 1024), ("learned", 2048)]
    ask_plans = ev.plans_here([(p.split(":")[0], int((p + ":0").split(":")[1])) for p in args.ask_plans.split(",")])
    todo = {
        "asks": lambda: ev.asks(ask_plans, args.ask_families.split(","), [int(n) for n in args.ask_lengths.split(",")], args.ask_answers),
        "tail": lambda: ev.tail(L, ev.plans_here([("dense", 0), ("learned", L // 64), ("learned", L // 32), ("learned", L // 16)]), 12),
        "bpb": lambda: ev.bits_per_byte(L, L // 16, 96),
        "recovery_long": lambda: ev.recovery(L, [L // 64, L // 32, L // 16, L // 8], args.limit, not args.no_controls, () if args.no_controls else (L // 16,)),
        "needles": lambda: [ev.needles(n, plans, args.needle_rows, fams) for n in (M // 2, M, L)],
        "recovery_mid": lambda: ev.recovery(M, [M // 64, M // 32, M // 16, M // 8], args.limit * 2, per_layer_ks=(M // 16,)),
        "stability": lambda: [ev.stability(L, k, 3) for k in (512, 2048)],
        "needles_far": lambda: ev.needles(2 * L, [("dense", 0), ("window", 0), ("learned", 1024), ("learned", 2048)],
                                          max(1, args.needle_rows // 2), fams[:4]),
    }
    out = {"ckpt": os.path.basename(args.ckpt)}
    for name in args.sections.split(","):
        if ev.late():
            print("no time left for", name)
            continue
        t = time.time()
        try:
            out[name] = todo[name]()
        except Exception as e:                        # one section failing must not lose the others
            out[name] = {"error": repr(e)}
        print(f"{name}: {time.time() - t:.1f} s {out[name].get('error', '') if isinstance(out[name], dict) else ''}", flush=True)
        json.dump(out, open(args.out, "w"), default=float)


if __name__ == "__main__":
    main()
