"""Any number of processes takes the steps of one: dense and sparse stages, whole and sharded weights, rows that do not divide over the
ranks, ranks without a row, and a resume.   python tests/test_ranks.py"""
import os
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), HERE]
from test_train import command, state, tiny_data, train

MIX = ("--mix", "nat=3,task=1")                        # four rows a step


def ranks(n, folder, out, *extra):
    r = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *command(folder, out, *MIX, *extra)],
                       capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert r.returncode == 0, r.stderr[-3000:]
    return state(folder, out)


def log(folder, out):
    """Columns lm, kl, left and grad_norm of a run's log."""
    with open(os.path.join(folder, out, "log.csv")) as f:
        rows = [line.strip().split(",") for line in f]
    return torch.tensor([[float(r[rows[0].index(c)]) for c in ("lm", "kl", "left", "grad_norm")] for r in rows[1:]])


def check(folder, one, n, *extra):
    name = f"{one}_{n}{'_shard' if '--shard' in extra else ''}"
    got, want = ranks(n, folder, name, *extra), state(folder, one)
    far = max(float((want["model"][k] - got["model"][k]).abs().max()) for k in want["model"])
    print(f"{name}: weights differ by at most {far:.1e}", flush=True)
    assert far < 2e-5 and got["tokens_seen"] == want["tokens_seen"], name
    for k, s in want["optimiser"]["state"].items():
        assert all(torch.allclose(x, y, atol=2e-5) for x, y in zip(s, got["optimiser"]["state"][k])), (name, k)
    assert torch.allclose(log(folder, one), log(folder, name), atol=1e-3, equal_nan=True), name


def test_ranks():
    with tempfile.TemporaryDirectory() as d:
        tiny_data(d)
        stage = ("--stage", "dense_short", "--steps", "3")
        train(d, "dense", *stage, *MIX)
        for n, extra in ((2, ()), (2, ("--shard",)), (3, ()), (3, ("--shard",)), (5, ())):
            check(d, "dense", n, *stage, *extra)
        begin = ("--init", os.path.join(d, "dense", "state.pt"), "--kl-chunks", "2", "--steps", "3")
        stage = ("--stage", "sparse_index", "--cover", "3", *begin)
        train(d, "index", *stage, *MIX)
        for n, extra in ((2, ()), (2, ("--shard",)), (3, ()), (5, ("--shard",))):
            check(d, "index", n, *stage, *extra)
        stage = ("--stage", "sparse_joint", *begin)
        train(d, "joint", *stage, *MIX)
        for n, extra in ((2, ()), (2, ("--shard",)), (3, ("--shard",))):
            check(d, "joint", n, *stage, *extra)


def test_resume_under_two_ranks():
    with tempfile.TemporaryDirectory() as d:
        tiny_data(d)
        train(d, "dense", "--stage", "dense_short", "--steps", "1", *MIX)
        begin = ("--init", os.path.join(d, "dense", "state.pt"))
        stage = ("--stage", "sparse_joint", "--steps", "4", "--kl-chunks", "2")
        train(d, "joint", *stage, *MIX, *begin)
        for extra in ((), ("--shard",)):
            name = f"joint_2{'_shard' if extra else ''}"
            assert ranks(2, d, name, *stage, *begin, "--stop-step", "2", *extra)["step"] == 2
            check(d, "joint", 2, *stage, "--resume", *extra)


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print("ok", name, flush=True)
