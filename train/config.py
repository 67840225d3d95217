"""Model configuration: every choice the method leaves open is a named field here.

The same fields are written to config.json by export.py and read by modeling_heddle.py
and by the C engine. Sister rows (Transformer, YOCO, CLSA, the window and gated-delta hybrids)
differ in `layer_kinds`, the index and the delta fields only, so that a comparison changes one thing.
"""
import dataclasses
import json


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
    attn_scale: float = 0.125          # head_dim ** -0.5
    embed_scale: float = 16.0
    tie_embeddings: bool = True
    doc_token: int = 0                 # starts every document; window and positions restart at it
    doc_reset: bool = True
    global_scope: str = "sequence"     # cross layers see all earlier documents (a mounted set)
    # index (arch clsa)
    index_dim: int = 64
    index_n_heads: int = 1
    index_scale: float = 0.125         # index_dim ** -0.5; rank-neutral, sets the softmax temperature
    index_input: str = "kv_norm"       # the same normalised H that feeds the shared K and V
    index_k_norm: str = "rms"          # rms | none
    index_q_norm: str = "none"
    index_rope: bool = False
    index_sinks: int = 0               # always-set: first tokens of the sequence
    index_window: int = 0              # always-set: most recent tokens
    index_groups: int = 1              # lists per token over the cross layers
    index_group_query: str = "shared_state"
    index_detach: bool = True          # the index does not send gradients into H
    top_k: int = 2048                  # keys read per token by the shipped model
    # gated-delta layers (arXiv 2412.06464): no position encoding; as many parameters as the attention they replace
    delta_n_heads: int = 2
    delta_k_dim: int = 64
    delta_v_dim: int = 128
    delta_conv: int = 4                # rows of the causal convolution over q, k, v; 0 = none
    delta_conv_act: str = "silu"
    delta_scale: float = 0.125         # delta_k_dim ** -0.5
    delta_qk_norm: str = "l2"
    delta_qk_eps: float = 1e-6
    delta_out_norm: str = "rms"        # of each head, with a gain, before the gate
    delta_gate: str = "silu"
    max_seq_len: int = 32768           # longest sequence seen in training

    def __post_init__(self):
        if self.layer_kinds is None:
            n = self.n_self + self.n_cross
            if self.arch in ("clsa", "yoco"):
                self.layer_kinds = ["window"] * self.n_self + ["cross"] * self.n_cross
            elif self.arch == "transformer":
                self.layer_kinds = ["full"] * n
            elif self.arch == "window_hybrid":
                self.layer_kinds = ["full" if i % 4 == 3 else "window" for i in range(n)]
            elif self.arch == "gated_delta_hybrid":
                self.layer_kinds = ["full" if i % 4 == 3 else "delta" for i in range(n)]
            else:
                raise ValueError(f"unknown arch '{self.arch}'")
        n_cross = self.layer_kinds.count("cross")
        if n_cross:
            self.n_self, self.n_cross = len(self.layer_kinds) - n_cross, n_cross
        if not 1 <= self.index_groups <= max(n_cross, 1):
            raise ValueError(f"index_groups {self.index_groups}: must be in 1..{n_cross}, the cross layers")
        if self.index_group_query not in ("shared_state", "own_input"):
            raise ValueError(f"index_group_query '{self.index_group_query}': must be shared_state or own_input")
        for name, only in (("delta_conv_act", "silu"), ("delta_qk_norm", "l2"), ("delta_out_norm", "rms"), ("delta_gate", "silu")):
            if getattr(self, name) != only:
                raise ValueError(f"{name} '{getattr(self, name)}': must be {only}")
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
        d = json.loads(text)
        names = {f.name for f in dataclasses.fields(ModelConfig)}
        return ModelConfig(**{k: v for k, v in d.items() if k in names})


PRESETS = {
    # the shipped size: about 21.5M parameters, 22.9 MB in 8-bit blocks
    "small": dict(),
    # CPU tests
    "tiny": dict(hidden_size=64, intermediate_size=96, n_heads=4, n_kv_heads=2,
                 head_dim=16, n_self=2, n_cross=2, window=16, attn_scale=0.25,
                 index_dim=16, index_scale=0.25, top_k=16, max_seq_len=512,
                 delta_n_heads=2, delta_k_dim=16, delta_v_dim=32, delta_scale=0.25),
}


def preset(name, **over):
    d = dict(PRESETS[name])
    d.update(over)
    return ModelConfig(**d)
