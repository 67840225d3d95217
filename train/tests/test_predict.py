"""Prediction of lists at small size: a ridge map from H itself is the query, shares by hand, a token's own row is left out, training lowers
the loss; and probe.py's table of mounted documents.   python tests/test_predict.py"""
import argparse
import os
import sys

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), HERE]
import predict
import probe
from test_train import setup


def frozen_tiny():
    cfg, m, _ = setup(8)
    f = predict.Frozen.__new__(predict.Frozen)
    f.cfg, f.model, f.dev, f.gpu, f.masks = cfg, m.eval(), torch.device("cpu"), False, {}
    return f


def test_streams_end_in_the_state_that_the_index_reads():
    f = frozen_tiny()
    tokens = torch.randint(8, 8192, (60,))
    tokens[0] = tokens[33] = 0
    streams, hn, qi, ki = f.read(tokens)
    assert len(streams) == 3 and torch.allclose(hn, streams[-1] * f.model.shared.norm.weight, atol=1e-4)
    assert torch.allclose(qi, hn @ f.model.index.q_proj.weight.T, atol=1e-5) and ki.shape == (60, f.cfg.index_dim)
    assert torch.equal(predict.shifted(hn)[1:], hn[:-1]) and not predict.shifted(hn)[0].any()
    ridge = predict.Ridge(3, f.cfg.hidden_size, f.cfg.index_dim, f.dev)
    for s in range(4):
        torch.manual_seed(s)
        streams, hn, qi, ki = f.read(torch.randint(8, 8192, (60,)))
        ridge.add(streams, qi)
    got = predict.Map("linear", ridge.solve(1e-7)[2])(streams[2], None)
    assert torch.allclose(got, qi, atol=1e-2 * float(qi.abs().max())), float((got - qi).abs().max())


def test_shares():
    true = torch.tensor([[1, 2], [4, 0]])
    order = torch.tensor([[2, 3, 1, 0], [3, 2, 1, 0]])
    assert predict.shares(true, order, [1, 2, 3, 4], 5) == [0.25, 0.25, 0.5, 0.75]


def test_a_token_does_not_see_itself():
    q, k = torch.randn(4, 8), torch.randn(10, 8)
    s = predict.scores(q, k, 5, 9, 0.5)
    assert s.shape == (4, 9) and all(bool((s[i, 5 + i:] == float("-inf")).all()) and bool(torch.isfinite(s[i, :5 + i]).all()) for i in range(4))
    same = predict.kl_of(s, s)
    assert abs(float(same)) < 1e-6 and float(predict.kl_of(s, s.flip(0).masked_fill(s == float("-inf"), float("-inf")).clamp(min=-50))) > 0


def test_training_lowers_the_loss_and_the_shares_are_shares():
    f, report = frozen_tiny(), {"log": []}
    rng = np.random.RandomState(0)

    class Source:
        def row(self, r):
            a = rng.randint(8, 400, 128)
            a[0] = 0
            return a
    args = argparse.Namespace(seed=1, ridge_rows=4, lr=3e-3, deadline=0, steps=40, chunk=64, chunks=2, length=128, log_every=20, rows=16, limit=2)
    maps = predict.train(args, f, [(Source(), 2)], report)
    assert report["log"][-1]["kl"]["linear 0"] < report["log"][0]["kl"]["linear 0"]
    held = argparse.Namespace(start=np.array([0, 300]), end=np.array([300, 500]), meta=[("x", "a"), ("x", "b")], tokens=rng.randint(8, 400, 500).astype(np.uint16))
    out = predict.measure(args, f, maps, held, 128, [8, 16])
    assert out["windows"] == ["a 0", "a 128", "b 300"]
    for name, x in out["summary"].items():
        assert all(0 <= a <= b <= c <= 1 for a, b, c in zip(x["low"], x["mean"], x["high"])) and x["mean"] == sorted(x["mean"]), name
    assert out["summary"]["ridge 2 k=16"]["mean"][0] > 0.95 > out["summary"]["newest k=16"]["mean"][0]


def test_mounting_is_exact_with_resets_alone():
    """Columns of probe.py's mount: nothing differs where documents reset; without resets rows and logits do."""
    import modeling_heddle as mh
    import tempfile
    from safetensors.torch import save_file
    import json
    for reset in (True, False):
        torch.manual_seed(5)
        cfg, m, _ = setup(8, arch="yoco", doc_reset=reset)
        with tempfile.TemporaryDirectory() as d:
            save_file({n: p.contiguous() for n, p in m.state_dict().items()}, os.path.join(d, "model.safetensors"))
            open(os.path.join(d, "config.json"), "w").write(cfg.to_json())
            h = mh.load(d)
        ids = torch.randint(8, 8192, (90,))
        ids[0] = ids[30] = ids[70] = 0
        with torch.no_grad():
            r = probe.Readings(h, ids, [0, 30, 70, 90])
            x = r.differences(80, 85, 0)
        assert x["nan_changes"] is False and (float(x["logits_max"]) < 1e-4) == reset and (x["rows_max"] < 1e-4) == reset, x
        assert set(probe.COLUMNS) == set(x)


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print("ok", name, flush=True)
