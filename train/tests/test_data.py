"""What of train/ needs no PyTorch: configuration, generated tasks, corpus filters, the n-gram floor.

  python tests/test_data.py          (numpy alone)
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
import config
import corpus
import tasks


class Letters:
    """A tokenizer of single characters: id = code point + 1, 0 begins a document."""

    class Ids:
        def __init__(self, text):
            self.ids = [ord(c) + 1 for c in text]

    def get_vocab_size(self):
        return 257

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(int(i) - 1) for i in ids if i)

    def encode_batch(self, texts, add_special_tokens=True):
        return [Letters.Ids(t) for t in texts]


def hay(rng, n):
    return np.where(rng.rand(n) < 0.02, ord("\n") + 1, rng.randint(ord("a") + 1, ord("z") + 2, n)).astype(np.uint16)


def test_rows_are_as_long_as_asked_and_hold_their_answers():
    tok = Letters()
    maker = tasks.TaskMaker(tok)
    for family in ("facts", "keyvalue", "chain", "copy"):
        for held in (False, True):
            row, answers = maker.row(np.random.RandomState(7), hay, 12000, family, held, n_statements=12, n_questions=6)
            again, _ = maker.row(np.random.RandomState(7), hay, 12000, family, held, n_statements=12, n_questions=6)
            assert len(row) == 12000 and row[0] == 0 and (row == again).all() and answers
            for start, end, back, fam in answers:
                said = tok.decode(row[start:end]).strip().rstrip(".")
                assert fam == family and 0 < back <= start and said, (family, said)
                before = tok.decode(row[start - back:start])
                if family == "copy":                       # the passage itself, from its 13th token on
                    assert (row[start - back:start - back + end - start] == row[start:end]).all()
                else:                                      # a chain's statement holds what it names next
                    assert said.split(" = ")[0] in before or family == "chain", (said, before[:80])


def test_kinds_follow_from_the_architecture():
    c = config.preset("small")
    assert c.layer_kinds == ["window"] * 6 + ["cross"] * 6 and c.has_index and c.has_shared
    assert config.preset("small", arch="transformer").layer_kinds == ["full"] * 12
    assert config.preset("tiny", arch="window_hybrid").layer_kinds == ["window", "window", "window", "full"]
    assert config.preset("tiny", arch="gated_delta_hybrid").layer_kinds.count("delta") == 3
    assert config.ModelConfig.from_json(c.to_json()) == c
    given = config.preset("tiny", layer_kinds=["delta", "window", "delta", "cross", "cross"])
    assert (given.n_self, given.n_cross) == (3, 2)         # the counts are the kinds'
    for wrong in (dict(arch="gru"), dict(index_groups=7), dict(index_group_query="mine"), dict(delta_gate="gelu"),
                  dict(delta_conv=17), dict(head_dim=63), dict(n_heads=5)):
        try:
            config.preset("small", **wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong} was taken")


def test_flops_by_hand():
    """Against sums over layers written out, and the shares of a card in docs/training.md."""
    c, d = config.preset("small"), 384
    layer = 3 * d * 1024 + 2 * d * d
    elements = 6 * (layer + 2 * d * 128) + 6 * layer + 2 * d * 128 + d * 8192
    assert sum(config.matrix_elements(c).values()) == elements + 2 * d * 64
    seen = sum(min(t + 1, 512) for t in range(4096)) / 4096
    assert abs(config.mean_keys(4096, 512) - seen) < 1e-9 and config.mean_keys(4096) == 2048.5
    want = 6 * elements + 12 * d * 6 * (seen + 2048.5)
    assert abs(config.flops_per_token(c, "dense_short", 4096) - want) < 1 and abs(1.24e6 * want / 1e12 - 246) < 1
    t = config.preset("small", arch="transformer", intermediate_size=992)
    assert round(0.341e6 * config.flops_per_token(t, "dense_long", 32768) / 1e12) == 353
    index = config.flops_per_token(c, "sparse_index", 32768)
    body = 2 * (elements - d * 8192) + 4 * d * 6 * (config.mean_keys(32768, 512) + 16384.5)
    assert abs(index - body - 4 * 2 * d * 64 - 16384.5 * (2 * d * 6 + 6 * 64)) < 1
    assert config.flops_per_token(c, "sparse_index", 32768, has_cover=True) - index == 2 * 64 * 16384.5
    joint = [config.flops_per_token(c, "sparse_joint", 32768, k, share) for k, share in ((800, 1), (800, 0.25), (32768, 1))]
    assert joint[1] < joint[0] < joint[2]
    assert abs(joint[2] - config.flops_per_token(c, "dense_more", 32768) - 4 * 2 * d * 64 - 16384.5 * (2 * d * 6 + 8 * 64)) < 1


def test_every_field_is_checked():
    for wrong in (dict(index_n_heads=2), dict(index_rope=True), dict(rope_style="pairs"), dict(global_scope="document"), dict(doc_reset=1), dict(top_k=2.5),
                  dict(index_input="h"), dict(index_k_norm="l2"), dict(index_sinks=-1), dict(attn_scale=0), dict(layer_kinds=["window", "cross", "window"]),
                  dict(layer_kinds=["window", "full"]), dict(layer_kinds=["gru"])):
        try:
            config.preset("small", **wrong)
        except ValueError as e:
            assert next(iter(wrong)) in str(e), (wrong, e)
            continue
        raise AssertionError(f"{wrong} was taken")
    c = config.preset("small", head_dim=32, index_dim=16)
    assert c.attn_scale == 32 ** -0.5 and c.index_scale == 0.25 and config.preset("small", index_dim=16, index_scale=0.3).index_scale == 0.3
    d = json.loads(c.to_json())
    for text, word in ((dict(d, window_size=3), "window_size"), ({k: v for k, v in d.items() if k != "doc_reset"}, "doc_reset"), (dict(d, n_layers=3), "n_layers")):
        try:
            config.ModelConfig.from_json(json.dumps(text))
        except ValueError as e:
            assert word in str(e), e
            continue
        raise AssertionError(f"{word} was taken")


def test_the_shipped_configuration_is_the_preset():
    with open(os.path.join(HERE, "..", "..", "models", "warp-21m", "config.json")) as f:
        text = f.read()
    stated, c = json.loads(text), config.ModelConfig.from_json(text)
    assert c == config.preset("small", top_k=stated["top_k"])
    assert stated["n_layers"] == c.n_layers and set(stated) - set(json.loads(c.to_json())) == {"model_type", "weight_format"}


def test_filters_of_the_corpus():
    assert corpus.strip_licence("/* Copyright 2001 A. Licence: none */\nint x;\n") == "int x;\n"
    assert corpus.strip_licence("/* counts */\nint x;\n") == "/* counts */\nint x;\n"
    page = corpus.strip_html("<html><head><title>t</title></head><body><script>no()</script><p>a &lt; b</p><pre>x\n  y</pre></body>")
    assert "a < b" in page and "x\n  y" in page and "no()" not in page and "<" not in page.replace("a < b", "")
    text = "\n".join(f"line number {i} of a text that is long enough" for i in range(40))
    assert len(set(corpus.line_hashes(text)) & set(corpus.line_hashes(text + "\nmore of it that is new here"))) >= 39


def test_the_ngram_floor_by_hand():
    """Order 2, Witten-Bell: p(w | c) = (count + kinds p(w)) / (total + kinds), and order 1 over 1/8192."""
    rng = np.random.RandomState(3)
    train, held = rng.randint(0, 6, 500).astype(np.uint16), rng.randint(0, 7, 200).astype(np.uint16)
    with tempfile.TemporaryDirectory() as d:
        train.tofile(os.path.join(d, "train.bin"))
        held.tofile(os.path.join(d, "heldout.bin"))
        np.save(os.path.join(d, "heldout.docs.npy"), np.array([0, 120]))
        json.dump([["doc", "one", "p", 300], ["doc", "two", "q", 200]], open(os.path.join(d, "heldout.meta.json"), "w"))
        out = os.path.join(d, "out.json")
        subprocess.run([sys.executable, os.path.join(HERE, "..", "ngram.py"), "--data", d, "--out", out, "--rows", "4",
                        "--length", "50", "--order", "2"], check=True, stdout=subprocess.DEVNULL)
        got = json.load(open(out))
    count = {w: int((train == w).sum()) for w in range(7)}
    one = lambda w: (count[w] + 6 / 8192) / (500 + 6)
    want = {"one": [], "two": []}
    for s in (0, 50, 100, 150):
        for t in range(max(s + 1, 2), s + 50):
            c, w = int(held[t - 1]), int(held[t])
            after = train[1:][train[:-1] == c]
            p = one(w) if not len(after) else ((after == w).sum() + len(set(after)) * one(w)) / (len(after) + len(set(after)))
            want["one" if t < 120 else "two"].append(-np.log(p))
    for name in want:
        assert got[name]["tokens"] == len(want[name]) and abs(got[name]["nats_a_token"] - np.mean(want[name])) < 1e-6, (name, got[name])


if __name__ == "__main__":
    for name, fn in list(globals().items()):
        if name.startswith("test_"):
            fn()
            print(f"ok - {name}")
