"""The gated delta rule 64 rows at a time against row by row, its gradients against finite differences, and the exported
hybrid read by modeling_heddle.py.   python tests/test_delta.py"""
import os
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), HERE]
import attention as att
import config
import delta_rule
import model as mdl
import modeling_heddle as mh


def given(n, dtype=torch.float32):
    torch.manual_seed(n)
    B, H, dk, dv = 2, 2, 8, 12
    q, k = (delta_rule.unit(torch.randn(B, n, H, dk), 1e-6).to(dtype) for _ in range(2))
    doc = (torch.rand(B, n) < 0.03).cumsum(1)
    return [q, k, torch.randn(B, n, H, dv, dtype=dtype), -torch.rand(B, n, H, dtype=dtype) ** 3 * 8,
            torch.rand(B, n, H, dtype=dtype)], doc


def test_chunks_equal_rows():
    for n in (1, 5, 64, 65, 300):
        x, doc = given(n, torch.float64)
        a, b = delta_rule.chunked(*x, doc), delta_rule.recurrent(*x, doc)
        print(n, "rows: largest difference", float((a - b).abs().max()))
        assert torch.allclose(a, b, atol=1e-10)


def test_gradients():
    x, doc = given(70, torch.float64)
    x = [y[:1, ].clone().requires_grad_() for y in x]
    weight = torch.randn(1, 70, 2, 12, dtype=torch.float64)
    loss = lambda: (delta_rule.chunked(*x, doc[:1]) * weight).sum()
    got = torch.autograd.grad(loss(), x)
    for y, g in zip(x, got):
        for _ in range(12):
            i = int(torch.randint(y.numel(), ()))
            with torch.no_grad():
                flat, old = y.view(-1), float(y.view(-1)[i])
                flat[i] = old + 1e-5
                up = float(loss())
                flat[i] = old - 1e-5
                down = float(loss())
                flat[i] = old
            assert abs((up - down) / 2e-5 - float(g.view(-1)[i])) < 1e-6 * max(1, abs(float(g.view(-1)[i])))


def test_export():
    torch.manual_seed(1)
    cfg = config.preset("tiny", arch="gated_delta_hybrid", n_vocab=96)
    m = mdl.Model(cfg)
    tokens = torch.randint(1, 96, (1, 150))
    tokens[0, 0] = tokens[0, 83] = 0
    with torch.no_grad():
        masks = att.Masks(1, 150, cfg, torch.device("cpu"), "ref").update(tokens)
        want = (m(tokens, masks)["x"] @ m.head_weight().T)[0]
        alone = m(tokens[:, 83:], att.Masks(1, 67, cfg, torch.device("cpu"), "ref").update(tokens[:, 83:]))["x"]
    assert alone.shape == (1, 67, cfg.hidden_size)
    with tempfile.TemporaryDirectory() as d:
        torch.save({"config": cfg.to_json(), "model": m.state_dict()}, os.path.join(d, "state.pt"))
        for fmt, tol in (("f32", 1e-4), ("bf16", 0.2), ("q8_0", 0.2)):
            out = os.path.join(d, fmt)
            subprocess.run([sys.executable, os.path.join(HERE, "..", "export.py"), "--ckpt", os.path.join(d, "state.pt"), "--out", out, "--format", fmt],
                           check=True, capture_output=True)
            got = mh.load(out).logits(tokens[0])
            print(fmt, "largest difference of logits", float((got - want).abs().max()), "of", float(want.abs().max()))
            assert torch.allclose(got, want, atol=tol)


if __name__ == "__main__":
    test_chunks_equal_rows()
    test_gradients()
    test_export()
    print("ok delta")
