"""Three small random models with the choices of config.json that the golden model of golden.py leaves at their defaults, and their answers.

  golden_choices.py --out ../tests/golden/choices

Per model a folder: config.json, model.safetensors (Q8_0 blocks, gains F32), and from modeling_heddle.py in float32
tokens.txt     the input: three documents
lists.txt      clsa: one line a token, the ids it reads, ascending: sinks, the TOP_K best of the others, the window
logits.f32     little-endian float32 [n_tokens, n_vocab / STRIDE]: the logits of every STRIDE-th id; clsa by its lists, the others dense
about.json     the largest logit, how far the trainer's logits are, and per choice how far the logits move where it is taken back; clsa: the
               smallest margin of a list
model.py, the trainer's own reading, must give the same lists and logits from the same weights before anything is written.
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

import attention as att
import config
import golden_groups as gg
import index_ops as ix
import model as mdl
import modeling_heddle as mh

TOP_K, N, STRIDE = gg.TOP_K, gg.N, gg.STRIDE
SIZE = dict(n_vocab=128, hidden_size=64, intermediate_size=32, n_heads=2, n_kv_heads=1, top_k=TOP_K)
MODELS = {
    "clsa": dict(index_input="state", index_q_norm="rms", index_k_norm="none", index_sinks=2,
                 index_window=5, qk_norm_self=False, qk_norm_cross=False, attn_scale=0.3, index_scale=0.2, tie_embeddings=False),
    "yoco": dict(arch="yoco", doc_reset=False, rope_base=500.0, norm_eps=1e-5, embed_scale=4.0),
    "window_hybrid": dict(arch="window_hybrid", n_self=4, n_cross=0, window=11, rope_on_full=False, qk_norm_self=False),
}
# choices that change no shape: taken back one at a time, the logits move
BACK = {"clsa": dict(index_input="kv_norm", index_sinks=0, index_window=0, attn_scale=0.25),
        "yoco": dict(doc_reset=True, rope_base=10000.0, embed_scale=16.0), "window_hybrid": dict(rope_on_full=True, window=16, doc_reset=False)}


def trained_reading(cfg, weights, tokens):
    """-> lists as bool [N, N] or None, logits [N, n_vocab], from the trainer's model."""
    m = mdl.Model(cfg)
    m.load_state_dict(weights)
    masks = att.Masks(1, N, cfg, torch.device("cpu"), "ref").update(tokens[None])
    with torch.no_grad():
        if not cfg.has_index:
            return None, (m(tokens[None], masks)["x"] @ m.head_weight().T)[0]
        bits = masks.need_bits()
        x = m(tokens[None], masks, "sparse", select=lambda qi, ki: ix.select_bits(qi, ki, cfg, bits, TOP_K))["x"]
        return masks.list_bool()[0], (x @ m.head_weight().T)[0]


def reading(c, weights, tokens):
    """-> the same from modeling_heddle.py."""
    h = mh.Heddle(c, weights)
    if c["arch"] != "clsa":
        return None, h.logits(tokens, reads="dense")
    lists, logits = gg.lists_of(h, tokens)
    return lists[0], logits


def margin(c, weights, tokens):
    """The smallest distance between the last score that enters a list and the best that does not, ties aside."""
    h = mh.Heddle(c, weights)
    with torch.no_grad():
        rows, qi = h.shared(h.self_decoder(tokens))
        s = qi @ rows.ki.T * c["index_scale"]
    t = torch.arange(N)
    free = (t[None] <= t[:, None] - c["index_window"]) & (t[None] >= c["index_sinks"])
    top = s.masked_fill(~free, float("-inf")).sort(-1, descending=True).values
    gap = (top[:, TOP_K - 1] - top[:, TOP_K])[free.sum(-1) > TOP_K]
    return float(gap[gap > 0].min())


def write(folder, over, back, seed):
    torch.manual_seed(seed)
    os.makedirs(folder, exist_ok=True)
    cfg = config.preset("tiny", **{**SIZE, **over})
    save_file(gg.weights(cfg, []), os.path.join(folder, "model.safetensors"), metadata={"format": "pt", "heddle.weights": "q8_0"})
    weights = mh.read_weights(folder)
    c = json.loads(cfg.to_json())
    c.update(model_type="heddle_clsa", weight_format="q8_0")
    tokens = torch.randint(1, cfg.n_vocab, (N,))
    tokens[0] = tokens[40] = tokens[75] = 0
    lists, logits = reading(c, weights, tokens)
    trained_lists, trained = trained_reading(cfg, weights, tokens)
    far = float((logits - trained).abs().max())
    assert far < 1e-3, far
    assert lists is None or torch.equal(lists, trained_lists), (lists != trained_lists).any(-1).sum()
    about = {"torch": torch.__version__, "largest_logit": float(logits.abs().max()), "trainer_differs_by": far, "taken_back": {}}
    for name, value in back.items():
        about["taken_back"][name] = float((reading({**c, name: value}, weights, tokens)[1] - logits).abs().max())
    if lists is not None:
        about["smallest_margin_of_a_list"] = margin(c, weights, tokens)
        with open(os.path.join(folder, "lists.txt"), "w") as f:
            for row in lists:
                f.write(" ".join(map(str, row.nonzero()[:, 0].tolist())) + "\n")
    with open(os.path.join(folder, "config.json"), "w") as f:
        f.write(json.dumps(c, indent=2) + "\n")
    with open(os.path.join(folder, "tokens.txt"), "w") as f:
        f.write(" ".join(map(str, tokens.tolist())) + "\n")
    logits[:, ::STRIDE].contiguous().numpy().astype("<f4").tofile(os.path.join(folder, "logits.f32"))
    with open(os.path.join(folder, "about.json"), "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")
    print(folder, about)
    return [f"{folder}: {name} moves no logit by 0.01" for name, moved in about["taken_back"].items() if moved < 0.01]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    blind = [x for i, (name, over) in enumerate(MODELS.items()) for x in write(os.path.join(args.out, name), over, BACK[name], 20270 + i)]
    if blind:
        raise SystemExit("\n".join(blind))


if __name__ == "__main__":
    main()
