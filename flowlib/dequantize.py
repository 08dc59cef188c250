"""From integers to real numbers: uniform noise, and noise that is learned."""

import math

import torch
from torch import Tensor, nn

from .bijections import Bijection
from .common import integer, rand

__all__ = ["Dequantize", "VariationalDequantize"]


class Dequantize(Bijection):
    """From integers to the unit interval by uniform noise: the stochastic layer, only ever first.

    forward   y = (x + u) / L,  u ~ U[0, 1),  L = 2^bits     log_det   -D log L
    inverse   x = floor(L y), kept within 0 ... L - 1        log_det   +D log L

    log p(y) of the noisy image, less D log L, is on average a lower bound of log P(x) of the
    integers (Theis et al., arXiv 1511.01844, section 3.1). Rounding never takes y out of its bin.
    Shapes: x (B, ...) uint8, y the same in floating point. `noise` is drawn unless given: (B, ...)
    in [0, 1), or 0.5 for the bin centres. Raises ValueError unless bits is 1 ... 8.
    >>> Dequantize(bits=1)(torch.tensor([[0, 1]], dtype=torch.uint8), noise=0.5)
    (tensor([[0.2500, 0.7500]]), tensor([-1.3863]))
    """

    def __init__(self, bits: int = 8):
        super().__init__()
        if integer("bits", bits, at_least=1) > 8:
            raise ValueError(f"uint8 images hold at most 8 bits, got bits={bits}")
        self.bits = bits
        self.register_buffer("levels", torch.tensor(2.0**bits), persistent=False)  # noise is alike

    def forward(self, x, context=None, noise: Tensor | float | None = None):
        noise = self.draw_noise(x.shape) if noise is None else noise
        x = x.to(self.levels.dtype)
        y = torch.minimum(x + noise, torch.nextafter(x + 1, x)) / self.levels
        return y, -self._log_volume(y)

    def inverse(self, z, context=None):
        x = (z * self.levels).floor().clamp(0, 2**self.bits - 1).to(torch.uint8)
        return x, self._log_volume(z)

    def draw_noise(self, shape, generator: torch.Generator | None = None) -> Tensor:
        """Uniform noise on this layer's device, never exactly 0, where a logit is infinite."""
        return rand(shape, generator, self.levels).clamp(min=2**-25)

    def _log_volume(self, y):
        return y.new_full((len(y),), y.shape[1:].numel() * self.bits * math.log(2))


class VariationalDequantize(Dequantize):
    """`Dequantize` with noise that a flow shapes (Flow++, arXiv 1902.00275, section 3.1).

    forward   y = (x + u) / L,  u = g(v; x),  v ~ U(0, 1)    log_det   -D log L + log |det du/dv|
    inverse   x = floor(L y), as in `Dequantize`             log_det   +D log L

    The bijection g takes v to u, both in (0, 1), with the image in [-1, 1] as its context; as the
    identity, where its couplings start, it leaves `Dequantize`. `noise` is v, or 0.5 as there.
    >>> from flowlib.bijections import Permute
    >>> VariationalDequantize(Permute([1, 0]))(torch.zeros(3, 2, dtype=torch.uint8))[0].shape
    torch.Size([3, 2])
    """

    def __init__(self, bijection: nn.Module, bits: int = 8):
        super().__init__(bits)
        self.bijection = bijection

    def forward(self, x, context=None, noise: Tensor | float | None = None):
        if isinstance(noise, float):
            return super().forward(x, context, noise)
        v = self.draw_noise(x.shape) if noise is None else noise
        v = v.clamp(1e-6, 1 - 1e-6)  # the logit of 0 is infinite
        u, log_det = self.bijection(v, 2 * (x.to(v.dtype) + 0.5) / self.levels - 1)
        y, log_volume = super().forward(x, context, u)
        return y, log_volume + log_det
