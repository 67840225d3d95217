"""Model configuration: every choice the method leaves open is a named field here.

The same fields are written to config.json by export.py and read by modeling_heddle.py
and by the C engine. Sister rows (Transformer, YOCO, CLSA, the window and gated-delta hybrids)
differ in `layer_kinds`, the index and the delta fields only, so that a comparison changes one thing.
"""
import dataclasses
import json

# what the trainer and modeling_heddle.py cannot do otherwise: one value each
ONLY = {"rope_style": "half", "global_scope": "sequence", "index_n_heads": 1, "index_rope": False, "delta_conv_act": "silu",
        "delta_qk_norm": "l2", "delta_out_norm": "rms", "delta_gate": "silu"}
CHOICES = {"arch": ("clsa", "yoco", "transformer", "window_hybrid", "gated_delta_hybrid"), "index_input": ("kv_norm", "state"),
           "index_k_norm": ("rms", "none"), "index_q_norm": ("none", "rms"), "index_group_query": ("shared_state", "own_input")}
KINDS = ("window", "full", "cross", "delta")
LEAST = {"n_vocab": 1, "hidden_size": 1, "intermediate_size": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "n_self": 0, "n_cross": 0, "window": 1,
         "doc_token": 0, "index_dim": 1, "index_sinks": 0, "index_window": 0, "index_groups": 1, "top_k": 1, "max_seq_len": 1}
OF_FILES = ("n_layers", "model_type", "weight_format")       # members of config.json beside the fields
STATED = ("arch", "layer_kinds", "doc_reset", "qk_norm_self", "qk_norm_cross")     # a file says them: readers differ in what they would take


def check(members):
    """Members of a config.json, all or some: ValueError with the name and value of one that is unknown, of another type, or not run here."""
    known = {f.name: f for f in dataclasses.fields(ModelConfig)}
    for name, value in members.items():
        if name in OF_FILES:
            continue
        if name not in known:
            raise ValueError(f"{name}: not a field of the configuration")
        kind = known[name].type
        if value is None and known[name].default is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and (kind is float or isinstance(value, int)) if kind in (int, float) else isinstance(value, kind)):
            raise ValueError(f"{name} {value!r}: must be of type {kind.__name__}")
        if name in ONLY and value != ONLY[name]:
            raise ValueError(f"{name} {value!r}: must be {ONLY[name]!r} here")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} {value!r}: must be one of {', '.join(CHOICES[name])}")
        if name in LEAST and value < LEAST[name]:
            raise ValueError(f"{name} {value}: must be at least {LEAST[name]}")
        if name in ("attn_scale", "index_scale", "delta_scale", "rope_base", "norm_eps", "embed_scale", "delta_qk_eps") and not value > 0:
            raise ValueError(f"{name} {value}: must be above 0")
    for kind in members.get("layer_kinds") or ():
        if kind not in KINDS:
            raise ValueError(f"layer_kinds has {kind!r}: must be of {', '.join(KINDS)}")


@dataclasses.dataclass
class ModelConfig:
    arch: str = "clsa"                 # clsa | yoco | transformer | window_hybrid | gated_delta_hybrid
    n_vocab: int = 8192
    hidden_size: int = 384
    intermediate_size: int = 1024
    n_heads: int = 6
    n_kv_heads: int = 2
    head_dim: int = 64
    n_self: int = 6                    # layers below the shared state H
    n_cross: int = 6                   # layers that read the shared K, V
    layer_kinds: list = None           # per layer: window | full | cross | delta (filled from arch)
    window: int = 512                  # keys seen by a window layer, the token itself included
    rope_base: float = 10000.0
    rope_style: str = "half"           # pairs are (i, i + head_dim/2)
    rope_on_full: bool = True          # `full` layers of the sister rows use RoPE
    norm_eps: float = 1e-6
    qk_norm_self: bool = True          # RMSNorm with a gain on q and k heads, before RoPE
    qk_norm_cross: bool = True         # same on every cross layer's q and, once, on the shared K
    attn_scale: float = None           # None: head_dim ** -0.5
    embed_scale: float = 16.0
    tie_embeddings: bool = True
    doc_token: int = 0                 # starts every document; window and positions restart at it
    doc_reset: bool = True
    global_scope: str = "sequence"     # cross layers see all earlier documents (a mounted set)
    # index (arch clsa)
    index_dim: int = 64
    index_n_heads: int = 1
    index_scale: float = None          # None: index_dim ** -0.5; rank-neutral, sets the softmax temperature
    index_input: str = "kv_norm"       # the same normalised H that feeds the shared K and V | state: H itself
    index_k_norm: str = "rms"          # rms | none
    index_q_norm: str = "none"         # none | rms
    index_rope: bool = False
    index_sinks: int = 0               # first tokens of the sequence, read beside the top_k
    index_window: int = 0              # most recent tokens, the row's own included, read beside the top_k
    index_groups: int = 1              # lists per token over the cross layers
    index_group_query: str = "shared_state"
    index_detach: bool = True          # the index does not send gradients into H
    top_k: int = 2048                  # keys chosen per token (export.py --top-k: 1,024 in the shipped model); sinks and window come on top
    # gated-delta layers (arXiv 2412.06464): no position encoding; as many parameters as the attention they replace
    delta_n_heads: int = 2
    delta_k_dim: int = 64
    delta_v_dim: int = 128
    delta_conv: int = 4                # rows of the causal convolution over q, k, v; 0 = none
    delta_conv_act: str = "silu"
    delta_scale: float = None          # None: delta_k_dim ** -0.5
    delta_qk_norm: str = "l2"
    delta_qk_eps: float = 1e-6
    delta_out_norm: str = "rms"        # of each head, with a gain, before the gate
    delta_gate: str = "silu"
    max_seq_len: int = 32768           # longest sequence seen in training

    def __post_init__(self):
        check(vars(self))
        for scale, width in (("attn_scale", "head_dim"), ("index_scale", "index_dim"), ("delta_scale", "delta_k_dim")):
            if getattr(self, scale) is None:
                setattr(self, scale, getattr(self, width) ** -0.5)
        if self.layer_kinds is None:
            n = self.n_self + self.n_cross
            if self.arch in ("clsa", "yoco"):
                self.layer_kinds = ["window"] * self.n_self + ["cross"] * self.n_cross
            elif self.arch == "transformer":
                self.layer_kinds = ["full"] * n
            elif self.arch == "window_hybrid":
                self.layer_kinds = ["full" if i % 4 == 3 else "window" for i in range(n)]
            else:
                self.layer_kinds = ["full" if i % 4 == 3 else "delta" for i in range(n)]
        n_cross = self.layer_kinds.count("cross")
        if n_cross:
            self.n_self, self.n_cross = len(self.layer_kinds) - n_cross, n_cross
        if not 1 <= self.index_groups <= max(n_cross, 1):
            raise ValueError(f"index_groups {self.index_groups}: must be in 1..{n_cross}, the cross layers")
        if self.arch == "clsa" and not n_cross or "cross" in self.layer_kinds[:len(self.layer_kinds) - n_cross] or n_cross == len(self.layer_kinds):
            raise ValueError(f"layer_kinds {self.layer_kinds}: cross layers come last, above another layer, and arch clsa has some")
        if not 0 <= self.delta_conv <= 16:
            raise ValueError(f"delta_conv {self.delta_conv}: must be in 0..16")
        if self.head_dim % 2 or self.n_heads % self.n_kv_heads:
            raise ValueError("head_dim must be even and n_heads a multiple of n_kv_heads")

    @property
    def n_layers(self):
        return len(self.layer_kinds)

    @property
    def has_index(self):
        return self.arch == "clsa"

    @property
    def has_shared(self):
        return "cross" in self.layer_kinds

    def to_json(self):
        d = dataclasses.asdict(self)
        d["n_layers"] = self.n_layers
        return json.dumps(d, indent=2) + "\n"

    @staticmethod
    def from_json(text):
        """Of a config.json or a checkpoint. ValueError with the name of a member that is unknown, not run here, or missing and not to be guessed."""
        d = json.loads(text)
        check(d)
        missing = [name for name in STATED if name not in d]
        if missing:
            raise ValueError(f"{', '.join(missing)}: must be stated")
        c = ModelConfig(**{k: v for k, v in d.items() if k not in OF_FILES})
        if d.get("n_layers", c.n_layers) != c.n_layers:
            raise ValueError(f"n_layers {d['n_layers']}: layer_kinds has {c.n_layers}")
        return c


PRESETS = {
    # the shipped size: about 21.5M parameters, 22.9 MB in 8-bit blocks
    "small": dict(),
    # CPU tests
    "tiny": dict(hidden_size=64, intermediate_size=96, n_heads=4, n_kv_heads=2,
                 head_dim=16, n_self=2, n_cross=2, window=16,
                 index_dim=16, top_k=16, max_seq_len=512, delta_n_heads=2, delta_k_dim=16, delta_v_dim=32),
}


def matrix_elements(cfg):
    """-> dict part -> elements of its matrices: each is one multiplication and one addition a token forward."""
    h, q, kv = cfg.hidden_size, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    key, value = cfg.delta_n_heads * cfg.delta_k_dim, cfg.delta_n_heads * cfg.delta_v_dim
    layer = {"window": h * (2 * q + 2 * kv), "cross": h * 2 * q, "delta": h * (2 * key + 3 * value + 2 * cfg.delta_n_heads) + cfg.delta_conv * (2 * key + value)}
    layer["full"] = layer["window"]
    return {"layers": sum(layer[k] + 3 * h * cfg.intermediate_size for k in cfg.layer_kinds), "shared": h * 2 * kv if cfg.has_shared else 0,
            "index": 2 * h * cfg.index_dim if cfg.has_index else 0, "head": h * cfg.n_vocab}


def mean_keys(length, most=None):
    """Keys that a row of a causal sequence sees on average, `most` at most; what documents cut off is not known here and counted."""
    most = min(most or length, length)
    return (most * (most + 1) / 2 + (length - most) * most) / length


def flops_per_token(cfg, stage, length, k=0, kl_share=1.0, has_cover=False):
    """Model FLOP of one token in a stage of train.py: what the mathematics asks for, a multiplication and an addition being two. A kernel that
    computes pairs and masks them does more; recomputation, norms, softmax and the optimiser are not counted.

    dense_*        6 an element of the matrices (forward 2, backward 4), and 12 x heads x width a key that a row reads (QK and PV 4, backward 8):
                   `window` keys in window layers, the causal mean in full and cross layers; a gated-delta state 18 an element
    sparse_index   the backbone forward only and without the head; the teacher's attention 2 x heads x width a key and cross layer once more, index
                   scores 6 x index_dim a key (forward, both gradients), its matrices 4 an element (nothing goes into H); `has_cover`: scores of the lists
    sparse_joint   as dense_* with lists of k + sinks + window keys in cross layers; scores of all keys for the lists; teacher and index loss on the lists
    kl_share is the share of query rows in the index loss (--kl-chunks); k the mean list."""
    n, width = matrix_elements(cfg), cfg.n_heads * cfg.head_dim
    causal = mean_keys(length)
    listed = mean_keys(length, k + cfg.index_sinks + cfg.index_window) if stage == "sparse_joint" else causal
    keys = {"window": mean_keys(length, cfg.window), "full": causal, "cross": listed, "delta": 0}
    state = 6 * cfg.delta_n_heads * cfg.delta_k_dim * cfg.delta_v_dim * cfg.layer_kinds.count("delta")      # S k, the update, S q
    forward = 2 * (n["layers"] + n["shared"]) + 4 * width * sum(keys[kind] for kind in cfg.layer_kinds) + state
    if stage.startswith("dense"):
        return 3 * (forward + 2 * n["head"])
    loss = 4 * n["index"] + kl_share * listed * (2 * width * cfg.layer_kinds.count("cross") + 6 * cfg.index_dim)
    choice = 2 * cfg.index_dim * causal
    if stage == "sparse_index":
        return forward + loss + (choice if has_cover else 0)
    return 3 * (forward + 2 * n["head"]) + loss + choice


def preset(name, **over):
    d = dict(PRESETS[name])
    d.update(over)
    return ModelConfig(**d)
