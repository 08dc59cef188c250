"""Coupling layers: one part of the input passes through and decides what happens to the other."""

import contextlib

import torch
from torch import nn

from .bijections import Bijection, per_channel, sum_dims

__all__ = ["AdditiveCoupling", "AffineCoupling"]


class Coupling(Bijection):
    """What coupling layers share: splitting the input by a mask, and joining it again.

    `mask` is boolean, True = passes through and is seen by the network: (D,) dimensions of a vector, (C,) channels of an
    image, or (H, W) positions of an image.
    `network(kept, context)` takes what passes through, (B, mask.sum(), ...), to the parameters of the step. For positions it
    sees the whole image with zeros in place of the others, and the mask as one more channel: (B, C + 1, H, W).
    Raises ValueError for a mask that is not boolean or leaves nothing to transform, for input that does not fit the mask,
    and for a network of the wrong output width.
    """

    parameters_per_dim = 1
    bfloat16 = False  # `fit` lets networks compute in it, in training

    def __init__(self, mask, network):
        super().__init__()
        if not torch.is_tensor(mask) or mask.dtype != torch.bool or mask.dim() not in (1, 2):
            given = (
                f"{mask.dtype} of shape {tuple(mask.shape)}"
                if torch.is_tensor(mask)
                else f"a {type(mask).__name__}"
            )
            raise ValueError(
                f"a coupling mask must be a boolean vector or a boolean board (H, W), got {given}"
            )
        if mask.all():
            raise ValueError(
                f"this mask leaves nothing to transform: all {mask.numel()} dimensions pass through"
            )
        self.network = network
        self.register_buffer("mask", mask)
        self.checkerboard = mask.dim() == 2
        if not self.checkerboard:
            self._group(mask)

    def _group(self, mask):
        """Group the dimensions by mask value; a mask that is already in two runs (any with D = 2) needs no gather."""
        order = torch.cat([(mask == mask[0]).nonzero()[:, 0], (mask != mask[0]).nonzero()[:, 0]])
        grouped = torch.equal(order, torch.arange(len(mask)))
        self.register_buffer("order", None if grouped else order, persistent=False)
        self.register_buffer("restore", None if grouped else order.argsort(), persistent=False)
        self.sizes = [int((mask == mask[0]).sum()), int((mask != mask[0]).sum())]
        self.kept_first = bool(mask[0])

    def split(self, x):
        """x -> what the network sees, and what is transformed: the other dimensions or channels; for a board, all of x."""
        fits = (
            x.dim() == 4 and x.shape[2:] == self.mask.shape
            if self.checkerboard
            else x.dim() in (2, 4) and x.shape[1] == len(self.mask)
        )
        if not fits:
            expected = (
                f"(B, C, {self.mask.shape[0]}, {self.mask.shape[1]})"
                if self.checkerboard
                else f"(B, {len(self.mask)})"
            )
            raise ValueError(f"this coupling takes {expected}, got {tuple(x.shape)}")
        if self.checkerboard:
            mask = self.mask.to(x.dtype).expand(len(x), 1, -1, -1)
            return torch.cat([torch.where(self.mask, x, 0), mask], dim=1), x
        if self.order is not None:
            x = x.index_select(1, self.order)
        first, second = x.split(self.sizes, dim=1)
        return (first, second) if self.kept_first else (second, first)

    def join(self, kept, changed):
        """The inverse of `split`."""
        if self.checkerboard:
            return changed
        x = torch.cat([kept, changed] if self.kept_first else [changed, kept], dim=1)
        return x if self.restore is None else x.index_select(1, self.restore)

    def run_network(self, kept, context):
        """The parameters of the step, side by side; on a board, those of positions that pass through are 0: no change."""
        low = self.bfloat16 and self.training
        with torch.autocast(kept.device.type, torch.bfloat16) if low else contextlib.nullcontext():
            out = self.network(kept, context).to(kept.dtype)
        width = kept.shape[1] - 1 if self.checkerboard else len(self.mask) - kept.shape[1]
        expected = (self.parameters_per_dim * width, *kept.shape[2:])
        if out.shape[1:] != expected:
            raise ValueError(
                f"this coupling's network must return (B, {', '.join(map(str, expected))}), got {tuple(out.shape)}"
            )
        return torch.where(self.mask, 0, out) if self.checkerboard else out

    def _load_from_state_dict(self, state_dict, prefix, *args):
        loaded = state_dict.get(prefix + "mask")
        if loaded is not None and not torch.equal(loaded.to(self.mask.device), self.mask):
            args[-1].append(
                f"{prefix}mask differs from this coupling's: {loaded.int().tolist()} against {self.mask.int().tolist()}"
            )
            state_dict = {
                **state_dict,
                prefix + "mask": self.mask,
            }  # never take a refused mask over
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f"mask={'/'.join(''.join('01'[int(m)] for m in row) for row in torch.atleast_2d(self.mask))}"


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

    `network` returns shift and raw log-scale side by side, (B, 2 (~mask).sum()), for a board (B, 2 C, H, W);
    s = rescale tanh(raw), so that |s| never exceeds |rescale|, learned from a start at 1: one per transformed dimension or
    channel, on a board one in all.
    """

    parameters_per_dim = 2

    def __init__(self, mask, network):
        super().__init__(mask, network)
        self.rescale = nn.Parameter(torch.ones(1 if self.checkerboard else int((~mask).sum())))

    def forward(self, x, context=None):
        kept, changed = self.split(x)
        shift, log_scale = self.shift_and_log_scale(kept, context)
        return self.join(kept, changed * log_scale.exp() + shift), sum_dims(log_scale)

    def inverse(self, z, context=None):
        kept, changed = self.split(z)
        shift, log_scale = self.shift_and_log_scale(kept, context)
        return self.join(kept, (changed - shift) * (-log_scale).exp()), -sum_dims(log_scale)

    def shift_and_log_scale(self, kept, context=None):
        """(B, mask.sum()) -> t and s, each (B, (~mask).sum())."""
        shift, raw = self.run_network(kept, context).chunk(2, dim=1)
        return shift, per_channel(self.rescale, raw) * torch.tanh(raw)
