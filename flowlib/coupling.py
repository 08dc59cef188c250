"""Coupling layers: one part of the input passes through and decides what happens to the other."""

import torch
from torch import nn

from .bijections import Bijection

__all__ = ["AdditiveCoupling", "AffineCoupling"]


class Coupling(Bijection):
    """What coupling layers share: splitting a vector by its mask, and joining it again.

    `mask` is boolean, shape (D,): True = passes through and is seen by the network.
    `network(kept, context)` takes the (B, mask.sum()) values that pass through to the parameters of the step.
    Raises ValueError for a mask that is not a boolean vector or leaves nothing to transform, for input that is not
    (B, D), and for a network of the wrong output width.
    """

    parameters_per_dim = 1

    def __init__(self, mask, network):
        super().__init__()
        if not torch.is_tensor(mask) or mask.dtype != torch.bool or mask.dim() != 1:
            given = f"{mask.dtype} of shape {tuple(mask.shape)}" if torch.is_tensor(mask) else f"a {type(mask).__name__}"
            raise ValueError(f"a coupling mask must be a boolean vector, got {given}")
        if mask.all():
            raise ValueError(f"this mask leaves nothing to transform: all {len(mask)} dimensions pass through")
        self.network = network
        self.register_buffer("mask", mask)
        # Group the dimensions by mask value; a mask that is already in two runs (any with D = 2) needs no gather.
        order = torch.cat([(mask == mask[0]).nonzero()[:, 0], (mask != mask[0]).nonzero()[:, 0]])
        grouped = torch.equal(order, torch.arange(len(mask)))
        self.register_buffer("order", None if grouped else order, persistent=False)
        self.register_buffer("restore", None if grouped else order.argsort(), persistent=False)
        self.sizes = [int((mask == mask[0]).sum()), int((mask != mask[0]).sum())]
        self.kept_first = bool(mask[0])

    def split(self, x):
        """(B, D) -> the (B, mask.sum()) values that pass through, and the others."""
        if x.shape[1:] != self.mask.shape:
            raise ValueError(f"this coupling takes (B, {len(self.mask)}), got {tuple(x.shape)}")
        if self.order is not None:
            x = x.index_select(1, self.order)
        first, second = x.split(self.sizes, dim=1)
        return (first, second) if self.kept_first else (second, first)

    def join(self, kept, changed):
        """The inverse of `split`."""
        x = torch.cat([kept, changed] if self.kept_first else [changed, kept], dim=1)
        return x if self.restore is None else x.index_select(1, self.restore)

    def run_network(self, kept, context):
        out = self.network(kept, context)
        expected = self.parameters_per_dim * (len(self.mask) - kept.shape[1])
        if out.shape[1:] != (expected,):
            raise ValueError(f"this coupling's network must return (B, {expected}), got {tuple(out.shape)}")
        return out

    def _load_from_state_dict(self, state_dict, prefix, *args):
        loaded = state_dict.get(prefix + "mask")
        if loaded is not None and not torch.equal(loaded.to(self.mask.device), self.mask):
            args[-1].append(f"{prefix}mask differs from this coupling's: {loaded.int().tolist()} against {self.mask.int().tolist()}")
            state_dict = {**state_dict, prefix + "mask": self.mask}  # never take a refused mask over
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f"mask={''.join('01'[int(m)] for m in self.mask)}"


class AdditiveCoupling(Coupling):
    """NICE's coupling: shifts, so it preserves volume (Dinh et al., arXiv 1410.8516, section 3.2).

    With a = the values that pass through and b = the others:

    forward   z_a = x_a,  z_b = x_b + t(x_a)
    log_det   0
    inverse   x_a = z_a,  x_b = z_b - t(z_a)
    log_det   0

    `network` returns the shift, (B, (~mask).sum()).
    """

    def forward(self, x, context=None):
        kept, changed = self.split(x)
        return self.join(kept, changed + self.run_network(kept, context)), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        kept, changed = self.split(z)
        return self.join(kept, changed - self.run_network(kept, context)), z.new_zeros(len(z))


class AffineCoupling(Coupling):
    """Real NVP's coupling: scales and shifts (Dinh et al., arXiv 1605.08803, equations 7 and 8).

    With a = the values that pass through and b = the others:

    forward   z_a = x_a,  z_b = x_b exp(s(x_a)) + t(x_a)
    log_det   sum s(x_a)
    inverse   x_a = z_a,  x_b = (z_b - t(z_a)) exp(-s(z_a))
    log_det   -sum s(z_a)

    `network` returns shift and raw log-scale side by side, (B, 2 (~mask).sum()); s = rescale tanh(raw) with one learned
    rescale per transformed dimension, starting at 1, so that |s| never exceeds |rescale|.
    """

    parameters_per_dim = 2

    def __init__(self, mask, network):
        super().__init__(mask, network)
        self.rescale = nn.Parameter(torch.ones(int((~mask).sum())))

    def forward(self, x, context=None):
        kept, changed = self.split(x)
        shift, log_scale = self.shift_and_log_scale(kept, context)
        return self.join(kept, changed * log_scale.exp() + shift), log_scale.sum(1)

    def inverse(self, z, context=None):
        kept, changed = self.split(z)
        shift, log_scale = self.shift_and_log_scale(kept, context)
        return self.join(kept, (changed - shift) * (-log_scale).exp()), -log_scale.sum(1)

    def shift_and_log_scale(self, kept, context=None):
        """(B, mask.sum()) -> t and s, each (B, (~mask).sum())."""
        shift, raw = self.run_network(kept, context).chunk(2, dim=1)
        return shift, self.rescale * torch.tanh(raw)
