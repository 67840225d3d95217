"""Small-size checks of the whole trainer on a CPU: exact resume, every stage, every row,
document borders, sparse equal to dense when k covers the context.

  python tests/test_train.py        (writes its own tiny data under a temporary folder)
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
import attention as att
import config
import index_ops as ix
import model as mdl


def tiny_data(folder):
    rng = np.random.RandomState(0)
    lens = rng.randint(20, 700, size=60)
    docs = [np.concatenate(([0], rng.randint(8, 8192, n))).astype(np.uint16) for n in lens]
    for split in ("train", "heldout"):
        np.concatenate(docs).tofile(os.path.join(folder, split + ".bin"))
        n = np.array([len(d) for d in docs], dtype=np.int64)
        np.save(os.path.join(folder, split + ".docs.npy"), np.cumsum(n) - n)
    rng.randint(8, 8192, (16, 128)).astype(np.uint16).tofile(os.path.join(folder, "task128.bin"))


def train(folder, out, *extra):
    cmd = [sys.executable, os.path.join(HERE, "..", "train.py"), "--preset", "tiny", "--device", "cpu", "--data", folder,
           "--length", "128", "--log-every", "1", "--eval-rows", "1", "--micro", "2", "--out", os.path.join(folder, out),
           "--k-min", "8", "--k-max", "40", "--kl-chunk", "48", *extra]
    r = subprocess.run(cmd, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    return torch.load(os.path.join(folder, out, "state.pt"), weights_only=False)


def same(a, b):
    return all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"]) and \
        all(torch.equal(x, y) for k in a["optimiser"]["state"] for x, y in zip(a["optimiser"]["state"][k], b["optimiser"]["state"][k]))


def test_resume_and_stages():
    with tempfile.TemporaryDirectory() as d:
        tiny_data(d)
        init, mix = None, ("--mix", "nat=3,task=1")
        for stage in ("dense_short", "dense_long", "sparse_index", "sparse_joint"):
            begin = ("--init", init) if init else ()
            whole = train(d, stage + "_a", "--stage", stage, "--steps", "4", *mix, *begin)
            train(d, stage + "_b", "--stage", stage, "--steps", "4", "--stop-step", "2", *mix, *begin)
            cut = train(d, stage + "_b", "--stage", stage, "--steps", "4", "--resume", "--init", os.path.join(d, stage + "_b", "state.pt"), *mix)
            assert whole["step"] == cut["step"] == 4 and same(whole, cut), stage
            init = os.path.join(d, stage + "_a", "state.pt")
            print("resume is exact:", stage, flush=True)
        for arch in ("transformer", "yoco", "window_hybrid"):
            train(d, arch, "--stage", "dense_short", "--steps", "2", "--arch", arch, *mix)
            print("trains:", arch, flush=True)


def test_two_ranks():
    """Two processes on the rows of one step end where one process ends, whole or sharded weights."""
    with tempfile.TemporaryDirectory() as d:
        tiny_data(d)
        mix = ("--stage", "dense_short", "--steps", "3", "--mix", "nat=3,task=1")
        one = train(d, "one", *mix)
        cmd = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", os.path.join(HERE, "..", "train.py"), "--preset", "tiny",
               "--device", "cpu", "--data", d, "--length", "128", "--eval-rows", "1", "--micro", "2", "--out", os.path.join(d, "two"), *mix]
        for extra in ([], ["--shard"]):
            r = subprocess.run(cmd + extra, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
            assert r.returncode == 0, r.stderr[-3000:]
            two = torch.load(os.path.join(d, "two", "state.pt"), weights_only=False)
            assert all(torch.allclose(one["model"][k], two["model"][k], atol=1e-6) for k in one["model"]), extra
            assert all(torch.allclose(x, y, atol=1e-6) for k in one["optimiser"]["state"]
                       for x, y in zip(one["optimiser"]["state"][k], two["optimiser"]["state"][k])), extra
            print("two ranks:", extra, max(float((one["model"][k] - two["model"][k]).abs().max()) for k in one["model"]), flush=True)
            os.remove(os.path.join(d, "two", "state.pt"))


def setup(N, seed=0, **over):
    torch.manual_seed(seed)
    cfg = config.preset("tiny", **over)
    m = mdl.Model(cfg)
    for p in m.parameters():
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    tokens = torch.randint(8, 8192, (1, N))
    tokens[0, 0] = 0
    return cfg, m, tokens


def test_border_resets():
    """Rows of a document do not depend on what was read before it."""
    cfg, m, tokens = setup(160)
    tokens[0, 70] = 0
    with torch.no_grad():
        a = m(tokens, att.Masks(1, 160, cfg, torch.device("cpu"), "ref").update(tokens))
        alone = tokens[:, 70:]
        b = m(alone, att.Masks(1, 90, cfg, torch.device("cpu"), "ref").update(alone))
    assert torch.allclose(a["k"][:, :, 70:], b["k"], atol=1e-5) and torch.allclose(a["hn"][:, 70:], b["hn"], atol=1e-5)


def test_no_reset_runs_positions_on():
    cfg = config.preset("tiny", arch="transformer", doc_reset=False)
    tokens = torch.tensor([[0, 5, 6, 0, 7, 8]])
    assert att.Masks(1, 6, cfg, torch.device("cpu"), "ref").update(tokens).pos.tolist() == [[0, 1, 2, 3, 4, 5]]
    cfg.doc_reset = True
    assert att.Masks(1, 6, cfg, torch.device("cpu"), "ref").update(tokens).pos.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_the_exported_reading_runs_on_without_resets():
    """modeling_heddle.py reads a YOCO without document resets as the trainer does."""
    import modeling_heddle as mh
    cfg, m, tokens = setup(120, arch="yoco", doc_reset=False)
    tokens[0, 70] = 0
    with torch.no_grad():
        want = m(tokens, att.Masks(1, 120, cfg, torch.device("cpu"), "ref").update(tokens))["x"][0] @ m.head_weight().T
    h = mh.Heddle(json.loads(cfg.to_json()), {n: p.detach() for n, p in m.state_dict().items()})
    assert torch.allclose(h.logits(tokens[0], reads="dense"), want, atol=1e-4)


def test_the_dense_control_sees_the_same_rows_and_rates():
    import train as tr
    a, b = tr.STAGES["dense_more"], tr.STAGES["sparse_joint"]
    assert all(a[k] == b[k] for k in a if k != "micro")
    assert tr.fields("rope_base=500000,doc_reset=false") == {"rope_base": 500000, "doc_reset": False}


def test_all_of_it_is_dense():
    cfg, m, tokens = setup(100)
    masks = att.Masks(1, 100, cfg, torch.device("cpu"), "ref").update(tokens)
    with torch.no_grad():
        dense = m(tokens, masks)["x"]
        for k, equal in ((100, True), (12, False)):
            bits = masks.need_bits()
            got = m(tokens, masks, "sparse", select=lambda qi, ki: ix.select_bits(qi, ki, cfg, bits, k))["x"]
            assert torch.allclose(got, dense, atol=1e-5) == equal
            assert torch.allclose(got[:, :12], dense[:, :12], atol=1e-5)


def test_model_finite_differences():
    """The language-model gradient of a sparse CLSA model, N = 48, in float64."""
    torch.set_default_dtype(torch.float64)
    mdl_float, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    try:
        cfg, m, tokens = setup(48, top_k=12)
        masks = att.Masks(1, 48, cfg, torch.device("cpu"), "ref").update(tokens)
        bits = masks.need_bits()
        with torch.no_grad():
            m(tokens, masks, "sparse", select=lambda qi, ki: ix.select_bits(qi, ki, cfg, bits, 12))

        def loss():
            x = m(tokens, masks, "sparse", select=lambda qi, ki: None)["x"]
            return torch.nn.functional.cross_entropy((x @ m.head_weight().T)[0, :-1], tokens[0, 1:])
        loss().backward()
        rng = np.random.RandomState(0)
        for name, p in m.named_parameters():
            if name.startswith("index."):
                assert p.grad is None
                continue
            i = tuple(rng.randint(s) for s in p.shape) if not name.startswith("embed") else (int(tokens[0, 5]), 3)
            e = 1e-6
            with torch.no_grad():
                v = float(p[i])
                p[i] = v + e
                up = float(loss())
                p[i] = v - e
                down = float(loss())
                p[i] = v
            num = (up - down) / (2 * e)
            assert abs(num - float(p.grad[i])) < 1e-6 + 1e-4 * abs(num), (name, num, float(p.grad[i]))
    finally:
        torch.Tensor.float = mdl_float
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print("ok", name, flush=True)
