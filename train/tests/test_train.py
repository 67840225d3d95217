"""Small-size checks of the whole trainer on a CPU: exact resume, also after a signal, every stage, every row,
document borders, every choice read as it is trained, sparse equal to dense when k covers the context.

  python tests/test_train.py        (writes its own tiny data under a temporary folder)
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

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


def command(folder, out, *extra):
    """Arguments of Python for a run of the trainer at small size."""
    return [os.path.join(HERE, "..", "train.py"), "--preset", "tiny", "--device", "cpu", "--data", folder,
            "--length", "128", "--log-every", "1", "--eval-rows", "1", "--micro", "2", "--out", os.path.join(folder, out),
            "--k-min", "8", "--k-max", "40", "--kl-chunk", "48", *extra]


def state(folder, out):
    return torch.load(os.path.join(folder, out, "state.pt"), weights_only=False)


def train(folder, out, *extra):
    r = subprocess.run([sys.executable, *command(folder, out, *extra)], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    return state(folder, out)


def refused(folder, words, *extra):
    r = subprocess.run([sys.executable, *command(folder, "refused", "--stage", "dense_short", "--steps", "1", "--mix", "nat=3,task=1", *extra)],
                       capture_output=True, text=True)
    assert r.returncode == 1 and words in r.stderr and "Traceback" not in r.stderr, (words, r.returncode, r.stderr[-2000:])
    assert not os.path.exists(os.path.join(folder, "refused", "state.pt"))


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
            cut = train(d, stage + "_b", "--stage", stage, "--steps", "4", "--resume", *mix)
            assert whole["step"] == cut["step"] == 4 and same(whole, cut), stage
            init = os.path.join(d, stage + "_a", "state.pt")
            print("resume is exact:", stage, flush=True)
        for arch in ("transformer", "yoco", "window_hybrid", "gated_delta_hybrid"):
            train(d, arch, "--stage", "dense_short", "--steps", "2", "--arch", arch, *mix)
            print("trains:", arch, flush=True)


def test_what_init_and_resume_refuse():
    with tempfile.TemporaryDirectory() as d:
        tiny_data(d)
        train(d, "a", "--stage", "dense_short", "--steps", "1", "--mix", "nat=3,task=1", "--set", "rope_base=5000")
        path = os.path.join(d, "a", "state.pt")
        refused(d, "there is no " + os.path.join(d, "refused", "state.pt"), "--resume")
        refused(d, "is of stage dense_short, not dense_long", "--resume", "--init", path, "--stage", "dense_long")
        refused(d, "window is 16 there, and --preset, --arch or --set says 8", "--init", path, "--set", "window=8")
        refused(d, "arch is 'clsa' there", "--init", path, "--arch", "yoco")
        refused(d, "hidden_size is 64 there, and --preset, --arch or --set says 384", "--init", path, "--preset", "small")
        refused(d, "windows: not a field", "--init", path, "--set", "windows=8")
        refused(d, "index_rope True: must be False here", "--set", "index_rope=true")
        refused(d, "index_groups 2: must be 1 to be trained", "--set", "index_groups=2")
        refused(d, "arch yoco has no index", "--arch", "yoco", "--stage", "sparse_index")
        train(d, "b", "--stage", "dense_short", "--steps", "1", "--mix", "nat=3,task=1", "--init", path, "--arch", "clsa", "--set", "rope_base=5000,window=16")
        saved = torch.load(path, weights_only=False)
        weight = saved["model"].pop("index.q_proj.weight")
        torch.save(saved, path)
        refused(d, "lacks weights index.q_proj.weight", "--init", path)
        saved["model"].update({"index.q_proj.weight": weight, "index.bias": weight})
        torch.save(saved, path)
        refused(d, "has besides weights index.bias", "--init", path)


def test_a_stopped_run_goes_on():
    """SIGTERM and SIGINT: the step is finished and saved, and the run goes on as if nothing had been."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with tempfile.TemporaryDirectory() as d:
            tiny_data(d)
            mix = ("--stage", "dense_short", "--steps", "5000", "--mix", "nat=3,task=1")
            run = subprocess.Popen([sys.executable, *command(d, "cut", *mix)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            log, until = os.path.join(d, "cut", "log.csv"), time.time() + 120
            while time.time() < until and not (os.path.exists(log) and open(log).read().count("\n") > 3):
                time.sleep(0.05)
            run.send_signal(number)
            _, err = run.communicate(timeout=60)
            assert run.returncode == 128 + number, (run.returncode, err[-2000:])
            at = state(d, "cut")["step"]
            assert 2 < at < 5000 and json.load(open(os.path.join(d, "cut", "end.json")))["stopped_by"] == number
            whole = train(d, "whole", *mix, "--stop-step", str(at + 2))
            cut = train(d, "cut", *mix, "--stop-step", str(at + 2), "--resume")
            assert whole["step"] == cut["step"] == at + 2 and same(whole, cut)
            print(f"stopped by {signal.Signals(number).name} at step {at}, resume is exact", flush=True)


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


CHOICES = [dict(index_input="state"), dict(index_q_norm="rms"), dict(index_k_norm="none"), dict(index_sinks=2), dict(index_window=5),
           dict(qk_norm_cross=False, qk_norm_self=False), dict(doc_reset=False), dict(attn_scale=0.4), dict(tie_embeddings=False),
           dict(layer_kinds=["window", "full", "cross", "cross"], rope_on_full=False), dict(arch="window_hybrid", n_self=4, n_cross=0, rope_on_full=False)]


def test_choices_are_read_as_they_are_trained():
    """modeling_heddle.py gives the trainer's logits under every choice, and other ones where the choice is taken back."""
    import modeling_heddle as mh
    for over in CHOICES:
        cfg, m, tokens = setup(120, **over)
        tokens[0, 70] = 0
        masks = att.Masks(1, 120, cfg, torch.device("cpu"), "ref").update(tokens)
        with torch.no_grad():
            mode = ("sparse", lambda qi, ki: ix.select_bits(qi, ki, cfg, masks.need_bits(), 12)) if cfg.has_index else ("dense", None)
            masks.need_bits()
            want = (m(tokens, masks, *mode)["x"] @ m.head_weight().T)[0]
        weights, c = {n: p.detach() for n, p in m.state_dict().items()}, json.loads(cfg.to_json())
        got = mh.Heddle(c, weights).logits(tokens[0], top_k=12, chunk=50)
        far = float((got - want).abs().max())
        assert far < 1e-4, (over, far)
        back = {k: getattr(config.preset("tiny"), k) for k in over if k in ("index_input", "index_sinks", "index_window", "doc_reset", "attn_scale", "rope_on_full")}
        if back:
            other = mh.Heddle({**c, **back}, weights).logits(tokens[0], top_k=12, chunk=50)
            moved = float((other - want).abs().max())
            assert moved > max(1e-4, 10 * far), (back, moved, far)
    for over in (dict(rope_style="pairs"), dict(index_n_heads=2), dict(index_rope=True), dict(global_scope="document"), dict(index_norm="rms"), dict(doc_reset=0)):
        try:
            mh.Heddle({**json.loads(config.preset("tiny").to_json()), **over}, {})
        except ValueError as e:
            name, value = next(iter(over.items()))
            assert name in str(e) and (repr(value) in str(e) or name == "index_norm"), e
            continue
        raise AssertionError(f"{over} was taken")


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
