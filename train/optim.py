"""Muon for the matrices inside the blocks, Adam for the rest. State is plain tensors, so a
checkpoint is exact."""
import torch


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
        mats = [(n, p) for n, p in named if muon and p.ndim == 2 and n.startswith("layers.") or (muon and n.startswith("shared.") and p.ndim == 2)]
        names = {n for n, _ in mats}
        self.groups = {}
        for n, p in mats:
            self.groups.setdefault(tuple(p.shape), []).append((n, p))
        self.adam = [(n, p) for n, p in named if n not in names]
        self.state = {}
        for n, p in mats:
            self.state[n] = [torch.zeros_like(p)]
        for n, p in self.adam:
            self.state[n] = [torch.zeros_like(p), torch.zeros_like(p)]
        self.ortho = orthogonalise

    def compile(self):
        self.ortho = torch.compile(orthogonalise, dynamic=False)

    def parameters(self):
        return [p for g in self.groups.values() for _, p in g] + [p for _, p in self.adam]

    @torch.no_grad()
    def step(self, lr, muon_lr, momentum=0.95):
        self.step_no += 1
        for shape, group in self.groups.items():
            ps = [p for _, p in group]
            gs = [p.grad for p in ps]
            ms = [self.state[n][0] for n, _ in group]
            torch._foreach_lerp_(ms, gs, 1 - momentum)
            u = torch._foreach_lerp(gs, ms, momentum)
            o = self.ortho(torch.stack(u)).to(ps[0].dtype)
            torch._foreach_mul_(ps, 1 - muon_lr * self.wd)
            torch._foreach_add_(ps, list(o.unbind(0)), alpha=-muon_lr * 0.2 * max(shape) ** 0.5)
        b1, b2 = self.betas
        ps = [p for _, p in self.adam]
        if not ps:
            return
        gs = [p.grad for p in ps]
        m = [self.state[n][0] for n, _ in self.adam]
        v = [self.state[n][1] for n, _ in self.adam]
        torch._foreach_lerp_(m, gs, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, gs, gs, 1 - b2)
        c1, c2 = 1 - b1 ** self.step_no, 1 - b2 ** self.step_no
        den = torch._foreach_sqrt(v)
        torch._foreach_div_(den, c2 ** 0.5)
        torch._foreach_add_(den, self.eps)
        decay = [p for _, p in self.adam if p.ndim >= 2]
        if decay:
            torch._foreach_mul_(decay, 1 - lr * self.wd)
        torch._foreach_addcdiv_(ps, m, den, value=-lr / c1)

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def state_dict(self):
        return {"step": self.step_no, "state": self.state}

    def load_state_dict(self, d):
        self.step_no = d["step"]
        for n, s in d["state"].items():
            for a, b in zip(self.state[n], s):
                a.copy_(b)
