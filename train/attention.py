"""Attention of the training model: window layers, causal layers, cross layers over lists.

Two backends behind the same three functions. `ref` is plain torch with boolean masks
(any device, small lengths). `gpu` uses FlexAttention for windows and lists and the
library's fused kernel for dense causal attention.

A selection is held as packed bits: bits[b, t, s >> 5] >> (s & 31) & 1 says whether
token t reads token s. One set of bits serves every cross layer and head.
"""
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
# the packed lists are one more tile in shared memory: smaller tiles than the library's defaults
LIST_OPTIONS = {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 2, "fwd_num_warps": 4,
                "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64,
                "bwd_num_stages": 2, "bwd_num_warps": 4}


class Masks:
    """What attention needs to know about a batch: documents, positions, lists.

    One object per (batch, length); `update` refills its buffers in place, so compiled
    code sees the same tensors at every step.
    """

    def __init__(self, batch, length, cfg, device, backend):
        self.B, self.N, self.cfg, self.device, self.backend = batch, length, cfg, device, backend
        self.doc = torch.zeros(batch, length, dtype=torch.int32, device=device)
        self.pos = torch.zeros(batch, length, dtype=torch.int32, device=device)
        self.bits = None
        self.iota = torch.arange(length, dtype=torch.int32, device=device)
        self.flex_window = self.flex_list = self.flex_causal = None
        if backend == "gpu":
            self.flex_window = self._window_mask()
            self.flex_causal = self._causal_mask(None)

    def update(self, tokens):
        if not self.cfg.doc_reset:
            self.pos.copy_(self.iota.expand(self.B, -1))
            return self
        border = tokens == self.cfg.doc_token
        self.doc.copy_(border.cumsum(1, dtype=torch.int32))
        start = torch.where(border, self.iota, torch.zeros_like(self.iota)).cummax(1).values
        self.pos.copy_(self.iota - start)
        return self

    def need_bits(self):
        if self.bits is None:
            words = (self.N + 31) // 32
            self.bits = torch.zeros(self.B, self.N, words, dtype=torch.int32, device=self.device)
            if self.backend == "gpu":
                self.flex_list = self._causal_mask(self.bits)
        return self.bits

    def _blocks(self, low):
        """Blocks low[i]..i for query block i, none of them known to be full."""
        n = (self.N + BLOCK - 1) // BLOCK
        i = torch.arange(n, device=self.device, dtype=torch.int32)
        num = (i - low(i) + 1).to(torch.int32)[None, None]
        idx = (low(i)[:, None] + i[None, :]).clamp(max=n - 1).to(torch.int32)[None, None]
        return lambda fn: BlockMask.from_kv_blocks(num.contiguous(), idx.contiguous(), BLOCK_SIZE=BLOCK,
                                                   mask_mod=fn, seq_lengths=(self.N, self.N))

    def _window_mask(self):
        doc, W = self.doc, self.cfg.window
        reach = (W - 1 + BLOCK - 1) // BLOCK

        def fn(b, h, q, k):
            return (q >= k) & (q - k < W) & (doc[b, q] == doc[b, k])
        return self._blocks(lambda i: (i - reach).clamp(min=0))(fn)

    def _causal_mask(self, bits):
        def causal_fn(b, h, q, k):
            return q >= k

        def list_fn(b, h, q, k):
            return ((bits[b, q, k >> 5] >> (k & 31)) & 1) == 1
        return self._blocks(lambda i: i * 0)(causal_fn if bits is None else list_fn)

    def window_bool(self):
        t = torch.arange(self.N, device=self.device)
        d = t[:, None] - t[None, :]
        near = (d >= 0) & (d < self.cfg.window)
        return near[None] & (self.doc[:, :, None] == self.doc[:, None, :])

    def list_bool(self):
        return unpack_bits(self.bits, self.N)


def pack_bits(mask):
    """bool [..., N] -> int32 [..., ceil(N / 32)]"""
    n = mask.shape[-1]
    pad = -n % 32
    if pad:
        mask = F.pad(mask, (0, pad))
    m = mask.view(*mask.shape[:-1], -1, 32).to(torch.int64)
    w = (m << torch.arange(32, device=mask.device)).sum(-1)
    return torch.where(w >= 1 << 31, w - (1 << 32), w).to(torch.int32)


def unpack_bits(bits, n):
    m = (bits[..., None] >> torch.arange(32, device=bits.device, dtype=torch.int32)) & 1
    return m.flatten(-2)[..., :n].bool()


def masked_ref(q, k, v, scale, mask):
    """q [B,H,N,d], k, v [B,G,N,d], mask [B,N,N] bool -> o, lse [B,H,N]; plain softmax."""
    rep = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    s = (q.float() @ k.float().transpose(-1, -2)) * scale
    s = s.masked_fill(~mask[:, None], float("-inf"))
    lse = s.logsumexp(-1)
    return ((s - lse[..., None]).exp() @ v.float()).to(q.dtype), lse


def window(q, k, v, scale, masks):
    if masks.backend == "ref":
        return masked_ref(q, k, v, scale, masks.window_bool())[0]
    return flex_attention(q, k, v, scale=scale, block_mask=masks.flex_window, enable_gqa=True)


def causal(q, k, v, scale, masks):
    if masks.backend == "ref":
        t = torch.arange(q.shape[2], device=q.device)
        return masked_ref(q, k, v, scale, (t[:, None] >= t[None, :]).expand(q.shape[0], -1, -1))[0]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


LIST_KERNEL = {}


@torch._dynamo.disable
def run_list_kernel(q, k, v, bits, scale):
    import list_attention
    return list_attention.list_attention(q, k, v, bits, scale)


@torch._dynamo.disable
def list_kernel(q):
    """Checks the Triton kernels against masked torch once per process; False: FlexAttention serves lists."""
    if "ok" not in LIST_KERNEL:
        LIST_KERNEL["ok"] = False
        try:
            import list_attention
            import time
            with torch.enable_grad(), torch.autocast("cuda", enabled=False):
                B, H, G, N, d = 1, q.shape[1], 2, 640, q.shape[3]
                a = [torch.randn(B, n, N, d, device=q.device, dtype=torch.bfloat16).requires_grad_() for n in (H, G, G)]
                m = (torch.rand(B, N, N, device=q.device) < 0.1).tril() | torch.eye(N, device=q.device, dtype=torch.bool)
                do = torch.randn(B, H, N, d, device=q.device, dtype=torch.bfloat16)
                o, lse = list_attention.list_attention(*a, pack_bits(m), 0.125)
                got = [o, lse] + list(torch.autograd.grad(o, a, do))
                o, lse = masked_ref(a[0].float(), a[1].float(), a[2].float(), 0.125, m)
                want = [o, lse] + list(torch.autograd.grad(o, a, do.float()))
                err = [float((x.double() - y.double()).norm() / y.double().norm()) for x, y in zip(got, want)]
                LIST_KERNEL["ok"] = max(err) < 1e-2
                N = 32768
                a = [torch.randn(1, n, N, d, device=q.device, dtype=torch.bfloat16).requires_grad_() for n in (H, G, G)]
                bits = torch.randint(-2**31, 2**31 - 1, (1, N, N // 32), device=q.device, dtype=torch.int32)
                for i in range(3):
                    torch.cuda.synchronize()
                    t0 = time.time()
                    o, _ = list_attention.list_attention(*a, bits, 0.125)
                    torch.cuda.synchronize()
                    t1 = time.time()
                    torch.autograd.grad(o, a, o.detach())
                    torch.cuda.synchronize()
                print(f"list kernels against torch {['%.1e' % e for e in err]}; 1 x 32768: forward {(t1 - t0) * 1e3:.1f} ms, "
                      f"backward {(time.time() - t1) * 1e3:.1f} ms", flush=True)
        except Exception as e:
            print("list kernels refused, FlexAttention serves lists:", repr(e)[:300], flush=True)
    return LIST_KERNEL["ok"]


def listed(q, k, v, scale, masks, mode):
    """Attention with its log-sum-exp: over the lists in `masks`, or dense ('dense_lse')."""
    if masks.backend == "ref":
        if mode == "sparse":
            m = masks.list_bool()
        else:
            t = torch.arange(q.shape[2], device=q.device)
            m = (t[:, None] >= t[None, :]).expand(q.shape[0], -1, -1)
        return masked_ref(q, k, v, scale, m)
    if mode == "sparse" and list_kernel(q):
        return run_list_kernel(q, k, v, masks.bits, scale)
    if mode == "sparse":
        return flex_attention(q, k, v, scale=scale, block_mask=masks.flex_list, enable_gqa=True, return_lse=True,
                              kernel_options=LIST_OPTIONS)
    return flex_attention(q, k, v, scale=scale, block_mask=masks.flex_causal, enable_gqa=True, return_lse=True)
