"""Coupling layers: one part of the input passes through and decides what happens to the other."""

import contextlib

import torch
from torch import Tensor, nn

from .bijections import Bijection, per_channel, sum_dims
from .common import holds

__all__ = ["AdditiveCoupling", "AffineCoupling"]


class Coupling(Bijection):
    """What couplings share: of x, x_a passes through, and x_b is transformed with the parameters
    that `network(x_a, context)` gives.

    `mask` is boolean, True = x_a: (D,) dimensions, (C,) channels, or (H, W) positions of an image,
    a checkerboard. For a checkerboard x_a is (B, C + 1, H, W), the image with zeros in place of the
    others, and the mask; x_b is all of x, of which the step leaves the masked part alone.
    """

    parameters_per_dim = 1
    bfloat16 = False  # `fit` lets networks compute in it, in training

    def __init__(self, mask: Tensor, network: nn.Module):
        super().__init__()
        if not torch.is_tensor(mask) or mask.dtype != torch.bool or mask.dim() not in (1, 2):
            got = f"{mask.dtype} {tuple(mask.shape)}" if torch.is_tensor(mask) else repr(mask)
            raise ValueError(f"a coupling mask must be a boolean vector or board, got {got}")
        if mask.all():
            all_pass = f"all {mask.numel()} dimensions pass"
            raise ValueError(f"this mask leaves nothing to transform: {all_pass}")
        self.network = network
        self.register_buffer("mask", mask)
        self.checkerboard = mask.dim() == 2
        if not self.checkerboard:  # group the dimensions; two runs, as of any D = 2, are grouped
            same = mask == mask[0]
            order = (~same).int().argsort(stable=True)
            grouped = torch.equal(order, torch.arange(len(mask)))
            self.register_buffer("order", None if grouped else order, persistent=False)
            self.register_buffer("restore", None if grouped else order.argsort(), persistent=False)
            self.sizes, self.a_first = [int(same.sum()), int((~same).sum())], bool(mask[0])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> x_a, x_b."""
        if self.checkerboard:
            if x.dim() != 4 or x.shape[2:] != self.mask.shape:
                H, W = self.mask.shape
                raise ValueError(f"this coupling takes (B, C, {H}, {W}), got {tuple(x.shape)}")
            mask = self.mask.to(x.dtype).expand(len(x), 1, -1, -1)
            return torch.cat([torch.where(self.mask, x, 0), mask], dim=1), x
        if x.dim() not in (2, 4) or x.shape[1] != len(self.mask):
            raise ValueError(f"this coupling takes (B, {len(self.mask)}), got {tuple(x.shape)}")
        if self.order is not None:
            x = x.index_select(1, self.order)
        first, second = x.split(self.sizes, dim=1)
        return (first, second) if self.a_first else (second, first)

    def join(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        """The inverse of `split`."""
        if self.checkerboard:
            return x_b
        x = torch.cat([x_a, x_b] if self.a_first else [x_b, x_a], dim=1)
        return x if self.restore is None else x.index_select(1, self.restore)

    def run_network(self, x_a: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of the step, side by side, in x_a's dtype whatever the network computes
        in; 0 where a checkerboard passes: no change."""
        low = self.bfloat16 and self.training
        with torch.autocast(x_a.device.type, torch.bfloat16) if low else contextlib.nullcontext():
            out = self.network(x_a, context).to(x_a.dtype)
        width = x_a.shape[1] - 1 if self.checkerboard else len(self.mask) - x_a.shape[1]
        expected = (self.parameters_per_dim * width, *x_a.shape[2:])
        if out.shape[1:] != expected:
            what = f"({', '.join(map(str, ('B', *expected)))})"
            raise ValueError(f"this coupling's network must return {what}, got {tuple(out.shape)}")
        return torch.where(self.mask, 0, out) if self.checkerboard else out

    def _load_from_state_dict(self, state_dict, prefix, *args):
        loaded = state_dict.get(prefix + "mask", self.mask).to(self.mask.device)
        if loaded.shape == self.mask.shape and not holds((loaded == self.mask).all()):
            theirs, mine = loaded.int().tolist(), self.mask.int().tolist()
            args[-1].append(f"{prefix}mask differs from this coupling's: {theirs} against {mine}")
            state_dict = {**state_dict, prefix + "mask": self.mask}  # a refused mask stays out
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        rows = torch.atleast_2d(self.mask).int().tolist()
        return f"mask={'/'.join(''.join(map(str, row)) for row in rows)}"


class AdditiveCoupling(Coupling):
    """NICE's coupling: shifts, so it preserves volume (arXiv 1410.8516, section 3.2).

    forward   z_a = x_a,  z_b = x_b + t(x_a)      log_det   0
    inverse   x_a = z_a,  x_b = z_b - t(z_a)      log_det   0

    `network` returns the shift t, (B, (~mask).sum()).
    >>> from flowlib.networks import MLP
    >>> AdditiveCoupling(torch.tensor([True, False]), MLP(1, 1))(torch.randn(3, 2))[1]
    tensor([0., 0., 0.])
    """

    def forward(self, x, context=None):
        x_a, x_b = self.split(x)
        return self.join(x_a, x_b + self.run_network(x_a, context)), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        z_a, z_b = self.split(z)
        return self.join(z_a, z_b - self.run_network(z_a, context)), z.new_zeros(len(z))


class AffineCoupling(Coupling):
    """Real NVP's coupling: scales and shifts (arXiv 1605.08803, equations 7 and 8).

    forward   z_a = x_a,  z_b = x_b exp(s(x_a)) + t(x_a)         log_det    sum s(x_a)
    inverse   x_a = z_a,  x_b = (z_b - t(z_a)) exp(-s(z_a))      log_det   -sum s(z_a)

    `network` returns t and a raw s side by side, (B, 2 (~mask).sum()), for a checkerboard
    (B, 2 C, H, W); s = rescale tanh(raw), bounded by |rescale|, which is learned from a start at 1:
    one per transformed dimension or channel, on a checkerboard one in all.
    >>> from flowlib.networks import MLP
    >>> AffineCoupling(torch.tensor([True, False]), MLP(1, 2))(torch.ones(1, 2))[0]  # the identity
    tensor([[1., 1.]], grad_fn=<CatBackward0>)
    """

    parameters_per_dim = 2

    def __init__(self, mask: Tensor, network: nn.Module):
        super().__init__(mask, network)
        self.rescale = nn.Parameter(torch.ones(1 if self.checkerboard else int((~mask).sum())))

    def forward(self, x, context=None):
        x_a, x_b = self.split(x)
        shift, log_scale = self.shift_and_log_scale(x_a, context)
        return self.join(x_a, x_b * log_scale.exp() + shift), sum_dims(log_scale)

    def inverse(self, z, context=None):
        z_a, z_b = self.split(z)
        shift, log_scale = self.shift_and_log_scale(z_a, context)
        return self.join(z_a, (z_b - shift) * (-log_scale).exp()), -sum_dims(log_scale)

    def shift_and_log_scale(self, x_a: Tensor, context: Tensor | None = None):
        """(B, mask.sum()) -> t and s, each (B, (~mask).sum())."""
        shift, raw = self.run_network(x_a, context).chunk(2, dim=1)
        rescale = self.rescale if self.checkerboard else per_channel(self.rescale, raw)
        return shift, rescale * torch.tanh(raw)
