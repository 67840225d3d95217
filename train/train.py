"""Trains one stage.

  train.py --stage dense_short --data DIR --out DIR [--init CKPT] [--deadline SECONDS | --steps N]
  torchrun --nproc-per-node 2 train.py ... [--shard]

Stages: dense_short, dense_long (language-model loss), sparse_index (frozen backbone, index
only, consensus loss; --cover adds the attention that its hard list leaves out), sparse_joint (language-model loss over the lists + 0.1 consensus).
A run ends with OUT/state.pt (exact resume: --resume, which reads OUT/state.pt unless --init names another) and
OUT/log.csv, also when SIGTERM or SIGINT stops it: the step is finished and saved, the exit status is 128 + the
signal's number; a second signal ends it at once. --deadline counts from the start of the process, compilation included.

Ranks take the rows of a step in turn, row r to rank r % ranks; the gradient is the sum over all rows, so that any number
of ranks takes the same steps. Where rows do not divide, some ranks have a row less (or none).
"""
import time
T0 = time.time()
import argparse
import csv
import json
import math
import os
import signal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import attention as att
import config
import data
import index_ops as ix
import model as mdl
import optim

STAGES = {
    # length, rows of each source a step, rows a micro-batch, Adam lr, Muon lr, warm-up steps, lr at the end / at the start
    "dense_short": dict(length=4096, mix=dict(nat=54, task=10), micro=32, lr=2e-3, muon_lr=6e-3, warmup=80, end=1.0, start=1.0),
    "dense_long": dict(length=32768, mix=dict(long=4, package=2, task=2), micro=4, lr=2e-3, muon_lr=6e-3, warmup=0, end=0.04, start=0.8),
    "sparse_index": dict(length=32768, mix=dict(long=2, package=1, task=1), micro=2, lr=2e-3, muon_lr=0.0, warmup=10, end=0.1, start=1.0),
    # control of sparse_joint: the same rows, steps and rates, dense
    "dense_more": dict(length=32768, mix=dict(long=2, package=1, task=1), micro=4, lr=2e-3, muon_lr=6e-3, warmup=0, end=0.02, start=0.06),
    "sparse_joint": dict(length=32768, mix=dict(long=2, package=1, task=1), micro=2, lr=2e-3, muon_lr=6e-3, warmup=0, end=0.02, start=0.06),
}


def arguments():
    ap = argparse.ArgumentParser()
    ap.add_argument("--stage", required=True, choices=STAGES)
    ap.add_argument("--preset", choices=config.PRESETS, help="default: small, or what --init is")
    ap.add_argument("--arch", help="default: clsa, or what --init is")
    ap.add_argument("--set", default="", help="configuration fields, as rope_base=500000,doc_reset=false; with --init they must be its own")
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--init", help="weights to start from (state.pt of an earlier stage, or of this one with --resume, or an exported folder)")
    ap.add_argument("--init-optimiser", action="store_true", help="take the optimiser state from --init too")
    ap.add_argument("--resume", action="store_true", help="go on with the step, optimiser and schedule of --init, or of OUT/state.pt")
    ap.add_argument("--steps", type=int, default=0)
    ap.add_argument("--stop-step", type=int, default=0, help="stop here but keep the schedule of --steps")
    ap.add_argument("--deadline", type=float, default=0)
    ap.add_argument("--until", type=float, default=0, help="the same as a time of day, in seconds since 1970")
    ap.add_argument("--wait-init", action="store_true", help="compile on a made-up step, then wait for --init to appear")
    ap.add_argument("--wait-file", default="", help="compile, then wait for this file before reading data")
    ap.add_argument("--length", type=int, default=0)
    ap.add_argument("--mix", default="", help="nat=54,task=10")
    ap.add_argument("--micro", type=int, default=0)
    ap.add_argument("--lr", type=float, default=0)
    ap.add_argument("--muon-lr", type=float, default=-1)
    ap.add_argument("--adam-only", action="store_true")
    ap.add_argument("--weight-decay", type=float, default=0.1)
    ap.add_argument("--lambda-kd", type=float, default=0.1)
    ap.add_argument("--cover", type=float, default=0, help="sparse_index: weight of the attention outside the list of k tokens (0: none)")
    ap.add_argument("--gate-width", type=float, default=0.5, help="of that term's gate, in the score's own unit")
    ap.add_argument("--kl-chunks", type=int, default=0, help="chunks of query rows scored a sequence (0: all)")
    ap.add_argument("--kl-chunk", type=int, default=1024)
    ap.add_argument("--k-min", type=int, default=256)
    ap.add_argument("--k-max", type=int, default=2048)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--shard", action="store_true", help="FSDP: weights, gradients and optimiser state dealt out over the ranks")
    ap.add_argument("--no-compile", action="store_true")
    ap.add_argument("--eval-rows", type=int, default=16)
    ap.add_argument("--eval-every", type=int, default=0)
    ap.add_argument("--log-every", type=int, default=10)
    ap.add_argument("--peak-tflops", type=float, default=989, help="of one GPU (bf16, dense): what end.json's share is of")
    args = ap.parse_args()
    if args.until:
        args.deadline = args.until - T0
    if args.resume and not args.init:
        args.init = os.path.join(args.out, "state.pt")
        if not os.path.exists(args.init):
            raise SystemExit(f"--resume: there is no {args.init}, and --init names no other")
    return args


def fields(text):
    """'a=1,b=false,c=rms' -> {"a": 1, "b": False, "c": "rms"}"""
    def value(v):
        try:
            return json.loads(v)
        except ValueError:
            return v
    return {k: value(v) for k, v in (x.split("=") for x in text.split(",") if x)}


def check_stated(cfg, args):
    """--preset, --arch and --set beside a checkpoint of configuration cfg must say what it is."""
    said = fields(args.set)
    config.check(said)
    wanted = dict(said)
    if args.arch:
        wanted["arch"] = args.arch
    if args.preset:                                    # the sizes that tell presets apart
        sizes = {k for p in config.PRESETS.values() for k in p} - {"top_k", "max_seq_len"}
        given = config.preset(args.preset)
        wanted = {**{k: v for k, v in vars(given).items() if k in sizes}, **wanted}
    for name, value in wanted.items():
        if getattr(cfg, name) != value:
            raise SystemExit(f"{args.init}: {name} is {getattr(cfg, name)!r} there, and --preset, --arch or --set says {value!r}")


def check_complete(there, model, path):
    """The weights of a checkpoint are those of the model, no more and no fewer."""
    names = set(model.state_dict())
    for what, odd in (("lacks", names - set(there)), ("has besides", set(there) - names)):
        if odd:
            raise SystemExit(f"{path}: {what} weights {', '.join(sorted(odd))}")


def fastest_sdpa(cfg, batch, length, dev):
    """Times the fused attention backends once at the training shape and keeps the faster one."""
    q = torch.randn(batch, cfg.n_heads, length, cfg.head_dim, device=dev, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(batch, cfg.n_kv_heads, length, cfg.head_dim, device=dev, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    times = {}
    for name in ("flash", "cudnn"):
        torch.backends.cuda.enable_flash_sdp(name == "flash")
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
        try:
            for i in range(4):
                if i == 1:
                    torch.cuda.synchronize()
                    t = time.time()
                F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
            torch.cuda.synchronize()
            times[name] = (time.time() - t) / 3 * 1e3
        except Exception as e:
            print("sdpa", name, "refused:", str(e)[:120].replace("\n", " "))
    best = min(times, key=times.get) if times else ""
    torch.backends.cuda.enable_flash_sdp(best != "cudnn")
    torch.backends.cuda.enable_cudnn_sdp(best == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(not best)
    torch.backends.cuda.enable_math_sdp(True)
    print("sdpa ms:", {n: round(x, 2) for n, x in times.items()}, "->", best, flush=True)


def lm_sum(x, w, target):
    """Summed cross entropy; target -100 is not counted."""
    return F.cross_entropy(F.linear(x, w).float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")


def targets_of(tokens):
    t = torch.full_like(tokens, -100)
    t[:, :-1] = tokens[:, 1:]
    return t


class Trainer:
    def __init__(self, args):
        self.args = args
        st = dict(STAGES[args.stage])
        st["length"] = args.length or st["length"]
        st["micro"] = args.micro or st["micro"]
        st["lr"] = args.lr or st["lr"]
        st["muon_lr"] = st["muon_lr"] if args.muon_lr < 0 else args.muon_lr
        if args.mix:
            st["mix"] = {k: int(v) for k, v in (x.split("=") for x in args.mix.split(","))}
        self.st = st
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.dev = torch.device(args.device)
        if self.world > 1:
            if self.dev.type == "cuda":
                self.dev = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.dev)
            dist.init_process_group("nccl" if self.dev.type == "cuda" else "gloo")
        self.gpu = self.dev.type == "cuda"
        torch.manual_seed(args.seed)
        if self.gpu:
            torch.set_float32_matmul_precision("high")
        wait = bool(args.init and args.wait_init and self.is_missing(args.init))
        saved = mdl.read_checkpoint(args.init) if args.init and not wait else None
        try:
            self.cfg = config.ModelConfig.from_json(saved["config"]) if saved else \
                config.preset(args.preset or "small", **{"arch": args.arch or "clsa", **fields(args.set)})
            if saved:
                check_stated(self.cfg, args)
            model = mdl.Model(self.cfg)
        except ValueError as e:
            raise SystemExit(f"{args.init if saved else '--preset, --arch, --set'}: {e}")
        if args.stage.startswith("sparse") and not self.cfg.has_index:
            raise SystemExit(f"--stage {args.stage}: arch {self.cfg.arch} has no index")
        if args.resume and (not saved or saved.get("stage") != args.stage):
            raise SystemExit(f"--resume: {args.init} is of stage {saved.get('stage', 'none') if saved else 'none'}, not {args.stage}")
        if args.resume:                                # another order of the data, or another mix, is another run
            then = saved.get("args") or {}
            for name in ("seed", "mix", "length"):
                if name in then and then[name] != getattr(args, name):
                    raise SystemExit(f"--resume: {args.init} was run with --{name} {then[name]}, not {getattr(args, name)}")
        self.model = model.to(self.dev)
        self.step, self.spent, self.tokens_seen, self.signal = 0, 0.0, 0, 0
        if saved:
            check_complete(saved["model"], self.model, args.init)
            self.model.load_state_dict(saved["model"])
        if args.stage == "sparse_index":
            for n, p in self.model.named_parameters():
                p.requires_grad_(n.startswith("index."))
        else:
            for n, p in self.model.named_parameters():
                p.requires_grad_(args.stage == "sparse_joint" or not n.startswith("index."))
        if args.shard:
            self.shard()
        self.opt = optim.Optimiser(self.model, muon=not args.adam_only, weight_decay=args.weight_decay)
        if saved and args.resume:
            self.step, self.spent, self.tokens_seen = saved["step"], saved["spent"], saved["tokens_seen"]
        if saved and (args.resume or args.init_optimiser):
            self.opt.load_state_dict(saved["optimiser"])
        if self.gpu and not args.no_compile:
            torch._dynamo.config.cache_size_limit = 64
            torch._dynamo.config.automatic_dynamic_shapes = False
            for layer in self.model.layers:
                layer.compile()
            self.lm_sum = torch.compile(lm_sum, dynamic=False)
            self.opt.compile()
            if args.stage.startswith("sparse"):
                ix.compile_kl()
        else:
            self.lm_sum = lm_sum
        self.masks = {}
        self.rows = sum(st["mix"].values())
        self.n_micro = math.ceil(math.ceil(self.rows / self.world) / st["micro"])        # of the ranks with the most rows
        if self.gpu:
            fastest_sdpa(self.cfg, st["micro"], st["length"], self.dev)
        if wait or (args.wait_file and self.is_missing(args.wait_file)):
            self.compile_then_wait(wait)
        self.sources = data.make_sources(args.data, st["length"], args.seed, st["mix"])

    def shard(self):
        """One group of weights a layer, gathered when it is used; the rest (embedding, shared, index) with the whole model."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh(self.dev.type, (self.world,))
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh, reshard_after_forward=False)

    def load_weights(self, saved):
        check_complete(saved, self.model, self.args.init)
        with torch.no_grad():
            for n, p in self.model.state_dict().items():
                optim.local(p).copy_(optim.part_of(saved[n], p))

    def compile_then_wait(self, weights):
        """One made-up step so that everything is compiled, then the data or weights when they are there."""
        a = self.args
        kept = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        tokens = torch.randint(1, self.cfg.n_vocab, (self.st["micro"], self.st["length"]), device=self.dev)
        with self.autocast():
            loss, _ = self.micro_loss(tokens, 0, range(len(tokens)))
        loss.backward()
        self.opt.step(0.0, 0.0)
        self.opt.zero_grad()
        for s in self.opt.state.values():
            for x in s:
                x.zero_()
        self.opt.step_no = 0
        with torch.no_grad():
            for n, p in self.model.named_parameters():
                p.copy_(kept[n])
        need = [f for f in (a.init if weights else None, a.wait_file) if f]
        print(f"compiled, {time.time() - T0:.0f} s; waiting for {need}", flush=True)
        while not all(map(os.path.exists, need)):
            if a.deadline and time.time() - T0 > a.deadline:
                raise SystemExit("what this stage starts from did not come in time")
            time.sleep(0.2)
        if not weights:
            return
        saved = torch.load(a.init, map_location="cpu", weights_only=False)
        if config.ModelConfig.from_json(saved["config"]) != self.cfg:
            raise SystemExit(f"{a.init}: another configuration than --preset, --arch and --set give, which --wait-init compiled for")
        self.load_weights(saved["model"])
        if a.init_optimiser:
            self.opt.load_state_dict(saved["optimiser"])

    def is_missing(self, path):
        """As rank 0 finds it, on every rank: a file may appear between two ranks' looks, and a rank that does not wait takes no made-up step,
        so that the others would stand in its collectives."""
        found = [not os.path.exists(path)]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0, device=self.dev)
        return found[0]

    def masks_for(self, tokens):
        key = tuple(tokens.shape)
        if key not in self.masks:
            self.masks[key] = att.Masks(*key, self.cfg, self.dev, "gpu" if self.gpu else "ref")
        return self.masks[key].update(tokens)

    def autocast(self):
        return torch.autocast(self.dev.type, dtype=torch.bfloat16, enabled=self.gpu)

    def top_k_of(self, step):
        """k log-uniform between k_min and k_max, a function of (seed, step)."""
        u = np.random.RandomState((self.args.seed * 7919 + step) % (1 << 31)).rand()
        k = self.args.k_min * (self.args.k_max / self.args.k_min) ** u
        return max(1, int(round(k / 32)) * 32) if k >= 64 else int(k)

    def chunks_of(self, step, row):
        """First query rows of the chunks that row `row` of the step is scored in, a function of (seed, step, row)."""
        a = self.args
        n = (self.st["length"] + a.kl_chunk - 1) // a.kl_chunk
        pick = np.random.RandomState((a.seed * 104729 + step * self.rows + row) % (1 << 31)).permutation(n)[:a.kl_chunks]
        return [int(c) * a.kl_chunk for c in sorted(pick)]

    def consensus(self, out, step, rows, bits=None, cover=None):
        """index_ops.consensus over the micro-batch that holds these rows of the step; with --kl-chunks each row has its own chunks."""
        a = self.args
        if not a.kl_chunks:
            return ix.consensus(out["qi"], out["ki"], out["qs"], out["k"], out["lses"], self.cfg, bits, None, a.kl_chunk, cover)
        parts = []
        for b, row in enumerate(rows):
            one = slice(b, b + 1)
            parts.append(ix.consensus(out["qi"][one], out["ki"][one], [q[one] for q in out["qs"]], out["k"][one], [x[one] for x in out["lses"]], self.cfg,
                                      None if bits is None else bits[one], self.chunks_of(step, row), a.kl_chunk,
                                      cover and (cover[0][one], *cover[1:])))
        return [sum(x) / len(parts) for x in zip(*parts)]

    def micro_loss(self, tokens, step, rows):
        """-> loss to back-propagate (sum over tokens / tokens of the whole step, all ranks), this part's share of the logged numbers;
        rows: which rows of the step `tokens` are."""
        a, n_all = self.args, self.rows * self.st["length"]
        masks = self.masks_for(tokens)
        share = tokens.numel() / n_all
        if a.stage.startswith("dense"):
            x = self.model(tokens, masks)["x"]
            with self.autocast():
                loss = self.lm_sum(x, self.model.head_weight(), targets_of(tokens)) / n_all
            return loss, {"lm": loss.detach()}
        if a.stage == "sparse_index":
            out = self.model(tokens, masks, "dense_lse")
            cover = None
            if a.cover:
                cover = masks.need_bits(), a.cover, a.gate_width
                ix.select_bits(out["qi"].detach(), out["ki"].detach(), self.cfg, cover[0], self.top_k_of(step))
            loss, kl, left = self.consensus(out, step, rows, None, cover)
            return loss * share, {"kl": kl.detach() * share, "left": left.detach() * share}
        bits, k = masks.need_bits(), self.top_k_of(step)
        out = self.model(tokens, masks, "sparse", select=lambda qi, ki: ix.select_bits(qi, ki, self.cfg, bits, k))
        with self.autocast():
            lm = self.lm_sum(out["x"], self.model.head_weight(), targets_of(tokens)) / n_all
        kl = self.consensus(out, step, rows, bits)[0]
        return lm + a.lambda_kd * kl * share, {"lm": lm.detach(), "kl": kl.detach() * share}

    def micro_batches(self, mine):
        """This rank's rows of a step as (tokens, their numbers in the step); the same count on every rank, as the ranks run their
        collectives together: a rank with fewer rows gets batches of one empty document and no numbers."""
        out = []
        for i in range(0, len(mine), self.st["micro"]):
            tokens = mine[i:i + self.st["micro"]]
            out.append((tokens, [self.rank + (i + j) * self.world for j in range(len(tokens))]))
        while len(out) < self.n_micro:
            out.append((torch.full((1, self.st["length"]), self.cfg.doc_token, device=self.dev), []))
        return out

    def agree(self, stop, progress):
        """The same words on every rank: stop where one of them has to, the first rank's progress."""
        if self.world == 1:
            return stop, progress
        x = torch.tensor([float(stop), progress if self.rank == 0 else 0.0], dtype=torch.float64, device=self.dev)
        dist.all_reduce(x)
        return bool(x[0] > 0), float(x[1])

    def on_signal(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def progress(self):
        done = self.step / self.args.steps if self.args.steps else 0.0
        if not self.args.deadline or self.args.stop_step:
            return done
        left = self.args.deadline - (time.time() - T0)
        if done and (self.step < 20 or left > self.spent * (1 / done - 1)):      # steps end the stage first
            return done
        return min(1.0, self.spent / max(1e-9, self.spent + left))

    def flops_per_token(self):
        a, n = self.args, self.st["length"]
        k = (a.k_max - a.k_min) / math.log(a.k_max / a.k_min) if a.k_max > a.k_min else a.k_max      # the mean of top_k_of
        return config.flops_per_token(self.cfg, a.stage, n, k, min(1.0, a.kl_chunks * a.kl_chunk / n) if a.kl_chunks else 1.0, a.cover > 0)

    def lr_factor(self, p):
        st = self.st
        f = st["start"] + (st["end"] - st["start"]) * p
        return f * min(1.0, (self.step + 1) / st["warmup"]) if st["warmup"] else f

    def save(self):
        weights = {n: optim.full(optim.local(p), p) for n, p in self.model.state_dict().items()}
        state = self.opt.state_dict()                            # gathered on every rank, written by one
        if self.rank:
            return
        os.makedirs(self.args.out, exist_ok=True)
        path = os.path.join(self.args.out, "state.pt")
        torch.save({"config": self.cfg.to_json(), "model": weights, "optimiser": state,
                    "step": self.step, "spent": self.spent, "tokens_seen": self.tokens_seen, "stage": self.args.stage,
                    "args": vars(self.args)}, path + ".part")
        os.replace(path + ".part", path)

    @torch.no_grad()
    def evaluate(self):
        """Mean held-out loss over the first rows of the held-out store, dense."""
        if not os.path.exists(os.path.join(self.args.data, "heldout.bin")):
            return float("nan")
        t = np.memmap(os.path.join(self.args.data, "heldout.bin"), dtype=np.uint16, mode="r")
        N = self.st["length"]
        rows = min(self.args.eval_rows * 4096 // N or 1, len(t) // N)
        at = np.linspace(0, len(t) - N, rows).astype(int)
        total = 0.0
        for s in at:
            tokens = torch.from_numpy(t[s:s + N].astype(np.int64))[None].to(self.dev)
            with self.autocast():
                x = self.model(tokens, self.masks_for(tokens))["x"]
                total += float(lm_sum(x, self.model.head_weight(), targets_of(tokens)))
        return total / (rows * (N - 1))

    def run(self):
        a = self.args
        os.makedirs(a.out, exist_ok=True)
        loader = data.Loader(self.sources, a.seed, self.step, self.rank, self.world, self.dev)
        if self.rank == 0:
            print(f"{a.stage}: {self.model.n_params() / 1e6:.2f}M parameters, {self.rows} x {self.st['length']} tokens a step, "
                  f"sources {[(type(s).__name__, s.rows) for s, _ in self.sources]}, start-up {time.time() - T0:.1f} s", flush=True)
        fresh = not (a.resume and os.path.exists(os.path.join(a.out, "log.csv")))
        log = open(os.path.join(a.out, "log.csv"), "w" if fresh else "a", newline="") if self.rank == 0 else None
        names = ["stage", "step", "tokens", "seconds", "lm", "kl", "heldout", "lr", "grad_norm", "tokens_per_s", "left"]
        w = csv.writer(log) if log else None
        if w and fresh:
            w.writerow(names)
        last, slowest, acc, seen, t_log = time.time(), 0.0, {}, 0, time.time()
        begin = self.step, last                          # of the rate: after the steps that compile
        end, first = a.stop_step or a.steps or (1 << 60), self.step
        weight = self.world if a.shard else 1            # FSDP takes the mean over ranks where the sum is meant
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        while self.step < end:
            late = a.deadline and time.time() - T0 + 1.5 * min(slowest, 5.0) > a.deadline
            stop, progress = self.agree(bool(self.signal or late), self.progress())
            if stop:
                break
            step, rows = loader.next()
            self.opt.zero_grad()
            f = self.lr_factor(progress)
            for tokens, which in self.micro_batches(rows):
                with self.autocast():
                    loss, nums = self.micro_loss(tokens, step, which or [0])
                (loss * (weight if which else 0)).backward()
                for k, v in nums.items():
                    acc[k] = acc.get(k, 0) + (v if which else 0)
            grads = [p.grad for p in self.opt.parameters()]
            if self.world > 1 and not a.shard:
                for g in grads:
                    dist.all_reduce(g)
            norm = torch.nn.utils.get_total_norm(grads)
            norm = norm.full_tensor() if a.shard else norm
            torch.nn.utils.clip_grads_with_norm_(self.opt.parameters(), 1.0, norm)
            self.opt.step(self.st["lr"] * f, self.st["muon_lr"] * f)
            self.step += 1
            self.tokens_seen += self.rows * self.st["length"]
            seen += 1
            if self.gpu and self.step % 4 == 0:
                torch.cuda.synchronize()
            now = time.time()
            self.spent += now - last
            slowest = max(slowest * 0.98, now - last)
            last = now
            if self.step - first == 5:
                begin = self.step, now
            logged = self.step % a.log_every == 0 or self.step == 1 or self.step == end
            held = self.evaluate() if logged and a.eval_every and self.step % a.eval_every == 0 else float("nan")
            if logged and self.world > 1:                # each rank has the share of its rows
                for k in sorted(acc):
                    acc[k] = torch.as_tensor(acc[k], dtype=torch.float64, device=self.dev)
                    dist.all_reduce(acc[k])
            if self.rank == 0 and logged:
                lm, kl, left = (float(acc.get(k, float("nan"))) / seen for k in ("lm", "kl", "left"))
                rate = seen * self.rows * self.st["length"] / (time.time() - t_log)
                w.writerow([a.stage, self.step, self.tokens_seen, f"{time.time() - T0:.1f}", f"{lm:.5f}", f"{kl:.5f}", f"{held:.5f}",
                            f"{self.st['lr'] * f:.3e}", f"{float(norm):.4f}", f"{rate:.0f}", f"{left:.5f}"])
                log.flush()
                if self.step % (5 * a.log_every) == 0 or self.step == 1:
                    print(f"{a.stage} step {self.step} {self.tokens_seen / 1e6:.0f}M tokens {time.time() - T0:.0f} s "
                          f"lm {lm:.4f} kl {kl:.4f} left {left:.4f} heldout {held:.4f} norm {float(norm):.3f} lr x{f:.3f} {rate / 1e6:.3f}M tokens/s", flush=True)
            if logged:
                acc, seen, t_log = {}, 0, time.time()
        loader.close()
        if self.gpu:
            torch.cuda.synchronize()
        rate = (self.step - begin[0]) * self.rows * self.st["length"] / max(1e-9, time.time() - begin[1])
        self.save()
        told, _ = self.agree(bool(self.signal), 0.0)
        held = float("nan") if told else self.evaluate()
        if self.rank == 0:
            peak = torch.cuda.max_memory_allocated() / 2**30 if self.gpu else 0
            print(f"{a.stage} ended at step {self.step}, {self.tokens_seen / 1e6:.1f}M tokens, held-out loss {held:.4f}, "
                  f"peak memory {peak:.1f} GiB, {time.time() - T0:.0f} s", flush=True)
            json.dump({"stage": a.stage, "steps": self.step, "tokens": self.tokens_seen, "heldout_loss": None if told else held, "peak_gib": peak,
                       "seconds": time.time() - T0, "stopped_by": self.signal, "tokens_per_s": rate, "flops_per_token": self.flops_per_token(),
                       "mfu": rate * self.flops_per_token() / (a.peak_tflops * 1e12 * self.world)}, open(os.path.join(a.out, "end.json"), "w"))
            log.close()
        if self.world > 1:
            dist.destroy_process_group()
        if told:
            raise SystemExit(128 + (self.signal or signal.SIGTERM))


if __name__ == "__main__":
    Trainer(arguments()).run()
