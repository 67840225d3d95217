"""The exported folder read by modeling_heddle.py gives the trainer's logits; mounted documents
give joint prefill's; rows that are never read may hold NaN.   python tests/test_export.py"""
import os
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), HERE]
import attention as att
import index_ops as ix
import modeling_heddle as mh
from test_train import setup


def main():
    cfg, m, tokens = setup(120)
    tokens[0, 70] = 0
    masks = att.Masks(1, 120, cfg, torch.device("cpu"), "ref").update(tokens)
    bits = masks.need_bits()
    with torch.no_grad():
        want = m(tokens, masks, "sparse", select=lambda qi, ki: ix.select_bits(qi, ki, cfg, bits, 16))["x"] @ m.head_weight().T
        dense = m(tokens, masks)["x"] @ m.head_weight().T
    with tempfile.TemporaryDirectory() as d:
        torch.save({"config": cfg.to_json(), "model": m.state_dict()}, os.path.join(d, "state.pt"))
        for fmt, tol in (("f32", 1e-4), ("bf16", 0.2), ("q8_0", 0.2)):
            out = os.path.join(d, fmt)
            subprocess.run([sys.executable, os.path.join(HERE, "..", "export.py"), "--ckpt", os.path.join(d, "state.pt"), "--out", out, "--format", fmt],
                           check=True, capture_output=True)
            h = mh.load(out)
            got = h.logits(tokens[0], chunk=50)
            print(fmt, "largest difference of logits", float((got - want[0]).abs().max()), "of", float(want.abs().max()))
            if fmt == "f32":
                assert torch.allclose(got, want[0], atol=tol)
                assert torch.allclose(h.logits(tokens[0], reads="dense"), dense[0], atol=tol)
                assert torch.allclose(h.logits(tokens[0], last=True)[0], want[0, -1], atol=tol)
                # mounted documents against joint prefill; a forbidden document full of NaN
                a, b = tokens[0, :70], tokens[0, 70:]
                ra, rb = h.encode_document(a), h.encode_document(b)
                x = h.self_decoder(b)
                _, qi = h.shared(x)
                rows = mh.Rows.join([ra, rb])
                y = h.cross_decoder(x[-1:], qi[-1:], rows, len(a) + len(b) - 1, 16, "list")
                assert torch.allclose(y[0], want[0, -1], atol=tol)
                never = torch.zeros(120, dtype=torch.bool)
                never[:70] = True
                alone = h.cross_decoder(x[-1:], qi[-1:], rows, 119, 16, "list", never)
                bad = mh.Rows(torch.full_like(ra.k, float("nan")), torch.full_like(ra.v, float("nan")), torch.full_like(ra.ki, float("nan")))
                got = h.cross_decoder(x[-1:], qi[-1:], mh.Rows.join([bad, rb]), 119, 16, "list", never)
                assert torch.equal(got, alone)


if __name__ == "__main__":
    main()
    print("ok export")
