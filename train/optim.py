"""Muon for the matrices inside the blocks, Adam for the rest. State is plain tensors, so a
checkpoint is exact. Sharded parameters (FSDP: rows dealt out over the ranks) keep the state
of their own rows; a matrix is gathered for its Newton-Schulz iteration only."""
import torch
from torch.distributed.tensor import DTensor


def local(t):
    """This rank's part of a tensor; the tensor itself where nothing is sharded."""
    return t.to_local() if isinstance(t, DTensor) else t


def full(part, like):
    """The whole tensor whose part on this rank is `part`, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def part_of(whole, like):
    """This rank's rows of a whole tensor."""
    if not isinstance(like, DTensor):
        return whole
    n = -(-whole.shape[0] // like.device_mesh.size())
    at = like.device_mesh.get_local_rank() * n
    return whole[min(at, len(whole)):at + n]


def orthogonalise(g, steps=5):
    """Newton-Schulz iteration of [n, rows, cols] matrices in bf16 (float32 on a CPU)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g.float()
    flip = x.shape[1] > x.shape[2]
    if flip:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(1, 2)
        x = a * x + (b * s + c * (s @ s)) @ x
    if flip:
        x = x.transpose(1, 2)
    return x


class Optimiser:
    """lr: Adam's; muon_lr: the matrices'. A Muon step has root-mean-square size muon_lr * 0.2 at any shape."""

    def __init__(self, model, muon, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8):
        self.wd, self.betas, self.eps, self.step_no = weight_decay, betas, eps, 0
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        small = ("delta.conv.weight", "delta.ab_proj.weight")         # taps and gates, not maps between spaces
        mats = [(n, p) for n, p in named if not n.endswith(small) and muon and p.ndim == 2 and n.startswith("layers.") or (muon and n.startswith("shared.") and p.ndim == 2)]
        names = {n for n, _ in mats}
        self.groups = {}
        for n, p in mats:
            self.groups.setdefault(tuple(p.shape), []).append((n, p))
        self.adam = [(n, p) for n, p in named if n not in names]
        self.state = {}
        for n, p in mats:
            self.state[n] = [torch.zeros_like(local(p))]
        for n, p in self.adam:
            self.state[n] = [torch.zeros_like(local(p)), torch.zeros_like(local(p))]
        self.ortho = orthogonalise

    def compile(self):
        self.ortho = torch.compile(orthogonalise, dynamic=False)

    def named(self):
        return [x for g in self.groups.values() for x in g] + self.adam

    def parameters(self):
        return [p for _, p in self.named()]

    @torch.no_grad()
    def step(self, lr, muon_lr, momentum=0.95):
        self.step_no += 1
        for shape, group in self.groups.items():
            ps = [local(p) for _, p in group]
            gs = [local(p.grad) for _, p in group]
            ms = [self.state[n][0] for n, _ in group]
            torch._foreach_lerp_(ms, gs, 1 - momentum)
            u = torch._foreach_lerp(gs, ms, momentum)
            o = self.ortho(torch.stack([full(x, p) for x, (_, p) in zip(u, group)])).to(ps[0].dtype)
            o = [part_of(x, p) for x, (_, p) in zip(o.unbind(0), group)]
            torch._foreach_mul_(ps, 1 - muon_lr * self.wd)
            torch._foreach_add_(ps, o, alpha=-muon_lr * 0.2 * max(shape) ** 0.5)
        b1, b2 = self.betas
        ps = [local(p) for _, p in self.adam]
        if not ps:
            return
        gs = [local(p.grad) for _, p in self.adam]
        m = [self.state[n][0] for n, _ in self.adam]
        v = [self.state[n][1] for n, _ in self.adam]
        torch._foreach_lerp_(m, gs, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, gs, gs, 1 - b2)
        c1, c2 = 1 - b1 ** self.step_no, 1 - b2 ** self.step_no
        den = torch._foreach_sqrt(v)
        torch._foreach_div_(den, c2 ** 0.5)
        torch._foreach_add_(den, self.eps)
        decay = [p for p in ps if p.ndim >= 2]
        if decay:
            torch._foreach_mul_(decay, 1 - lr * self.wd)
        torch._foreach_addcdiv_(ps, m, den, value=-lr / c1)

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def state_dict(self):
        """Whole tensors, on every rank."""
        like = dict((n, p) for n, p in self.named())
        return {"step": self.step_no, "state": {n: [full(x, like[n]) for x in s] for n, s in self.state.items()}}

    def load_state_dict(self, d):
        self.step_no = d["step"]
        like = dict((n, p) for n, p in self.named())
        for n, s in d["state"].items():
            for a, b in zip(self.state[n], s):
                a.copy_(part_of(b, like[n]))
