"""The protocol of a bijection, and the bijections that need no network.

`forward` takes data x to latent z, `inverse` takes z back to x. Both return `(output, log_det)`,
where log_det, shape (B,), is log |det| of the Jacobian of the direction asked for, in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import integer

__all__ = ["Bijection", "Chain", "Inverse"]
__all__ += ["Logit", "Flatten", "SoftLog", "Diagonal", "Permute", "Squeeze"]


class Bijection(nn.Module):
    """An invertible map with a tractable Jacobian determinant.

    Shapes: x and z (B, ...), context (B, C) or None, log_det (B,).
    >>> class Mirror(Bijection):
    ...     def forward(self, x, context=None):
    ...         return -x, x.new_zeros(len(x))
    ...     inverse = forward
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x -> (z, log |det dz/dx|)"""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z -> (x, log |det dx/dz|)"""
        raise NotImplementedError

    def extra_repr(self) -> str:
        settings = {k: v for k, v in vars(self).items() if type(v) in (int, float, str, torch.Size)}
        return ", ".join(f"{name}={value}" for name, value in settings.items())


def sum_dims(values: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return values.flatten(1).sum(1)


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Shape a (C,) parameter so that it broadcasts over x (B, C) or (B, C, H, W), and no other."""
    check_width(x, len(parameter))
    return parameter.view(-1, *[1] * (x.dim() - 2))


def check_width(x: Tensor, C: int) -> None:
    """Refuse all but (B, C, ...): it would broadcast, or lose dimensions, without a word."""
    if x.dim() < 2 or x.shape[1] != C:
        raise ValueError(f"this layer takes (B, {C}) or (B, {C}, H, W), got {tuple(x.shape)}")


def shared_log_det(log_scale: Tensor, x: Tensor) -> Tensor:
    """The log_det (B,) of a log-scale that every row of x shares, shaped by `per_channel`."""
    return log_scale.expand(1, *x.shape[1:]).sum().expand(len(x))


class Chain(nn.Sequential, Bijection):
    """Bijections one after the other, indexed, sliced and added like an `nn.Sequential`.

    forward   z = f_K( ... f_1(x))            log_det   sum log |det df_k|, each where it acts
    inverse   x = f_1^-1( ... f_K^-1(z))      log_det   sum log |det df_k^-1|

    `noise` is for a `Dequantize` in the first place. Raises ValueError for an empty chain.
    >>> Chain(Logit(), Flatten((1, 4, 4)))(torch.rand(3, 1, 4, 4))[0].shape
    torch.Size([3, 16])
    """

    def __init__(self, *bijections: nn.Module):
        super().__init__(*bijections)
        if len(self) == 0:
            raise ValueError("a Chain needs at least one bijection")

    def __add__(self, other: "Chain") -> "Chain":
        return Chain(*self, *other) if isinstance(other, Chain) else NotImplemented

    def forward(self, x, context=None, noise=None):
        total, first = 0.0, [] if noise is None else [noise]
        for bijection in self:
            x, log_det = bijection(x, context, *first)
            total, first = total + log_det, []
        return x, total

    def inverse(self, z, context=None):
        total = 0.0
        for bijection in reversed(self):
            z, log_det = bijection.inverse(z, context)
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """A bijection run backwards: its `inverse` becomes `forward`, and the other way round.

    >>> Inverse(Logit())(torch.zeros(1, 2))[0]
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, bijection: nn.Module):
        super().__init__()
        self.bijection = bijection

    def forward(self, x, context=None):
        return self.bijection.inverse(x, context)

    def inverse(self, z, context=None):
        return self.bijection(z, context)


class Logit(Bijection):
    """From the unit interval to the real line, 0 and 1 kept finite (Real NVP, section 4.1).

    forward   z = logit(p),  p = alpha + (1 - 2 alpha) x,  x in [0, 1]
    log_det   sum -log p - log(1 - p) + log(1 - 2 alpha)
    inverse   x = (sigmoid(z) - alpha) / (1 - 2 alpha)
    log_det   minus the above; in terms of z, -log p - log(1 - p) = softplus(z) + softplus(-z)

    The formula is the authors' code's; the paper prints alpha + (1 - alpha) x, which diverges at 1.
    NaN for x outside [0, 1] by more than alpha / (1 - 2 alpha), where 0 <= alpha < 0.5.
    >>> Logit()(torch.tensor([[0.0, 0.5, 1.0]]))[0]
    tensor([[-2.9444,  0.0000,  2.9444]])
    """

    def __init__(self, alpha: float = 0.05):
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(self, x, context=None):
        p = self.alpha + (1 - 2 * self.alpha) * x
        return torch.logit(p), sum_dims(math.log(1 - 2 * self.alpha) - torch.log(p * (1 - p)))

    def inverse(self, z, context=None):
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return x, -sum_dims(F.softplus(z) + F.softplus(-z) + math.log(1 - 2 * self.alpha))


class Flatten(Bijection):
    """Images (B, *shape) as vectors (B, D), row by row.

    forward   z_i = x_{c,h,w},  i = (c H + h) W + w      log_det   0
    inverse   the same, backwards                        log_det   0

    >>> Flatten((1, 4, 4))(torch.rand(3, 1, 4, 4))[0].shape
    torch.Size([3, 16])
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = torch.Size(shape)

    def forward(self, x, context=None):
        if x.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"this layer takes (B, {expected}), got {tuple(x.shape)}")
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        check_width(z, self.shape.numel())
        return z.reshape(len(z), *self.shape), z.new_zeros(len(z))


class SoftLog(Bijection):
    """The identity up to |x| = tau > 0, then logarithmic: no value runs away (arXiv 2402.16408).
    With the excess e = max(|x| - tau, 0), and e' = max(|z| - tau, 0):

    forward   z = sign(x) (min(|x|, tau) + log(1 + e))      log_det   -sum log(1 + e)
    inverse   x = sign(z) (min(|z|, tau) + exp(e') - 1)     log_det   +sum e'

    >>> SoftLog(tau=2.0)(torch.tensor([[1.0, 1_000.0]]))[0]
    tensor([[1.0000, 8.9068]])
    """

    def __init__(self, tau: float = 100.0):
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        self.tau = tau

    def forward(self, x, context=None):
        size = x.abs()
        bend = torch.log1p((size - self.tau).clamp(min=0))
        return torch.where(size <= self.tau, x, x.sign() * (self.tau + bend)), -sum_dims(bend)

    def inverse(self, z, context=None):
        size = z.abs()
        excess = (size - self.tau).clamp(min=0)
        bent = z.sign() * (self.tau + torch.expm1(excess))
        return torch.where(size <= self.tau, z, bent), sum_dims(excess)


class Diagonal(Bijection):
    """One learned scale per dimension, where NICE changes volume (arXiv 1410.8516, section 3.3).

    forward   z = x exp(s)      log_det    H W sum s
    inverse   x = z exp(-s)     log_det   -H W sum s

    Shapes: x (B, D), or (B, D, H, W) with one scale per channel; s (D,), starting at 0.
    >>> Diagonal(2)(torch.ones(1, 2))[1]
    tensor([0.], grad_fn=<ExpandBackward0>)
    """

    def __init__(self, D: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(integer("D", D, at_least=1)))

    def forward(self, x, context=None):
        log_scale = per_channel(self.log_scale, x)
        return x * log_scale.exp(), shared_log_det(log_scale, x)

    def inverse(self, z, context=None):
        log_scale = -per_channel(self.log_scale, z)
        return z * log_scale.exp(), shared_log_det(log_scale, z)


class Permute(Bijection):
    """A fixed reordering of dimensions (B, D) or channels (B, D, H, W).

    forward   z_i = x_order[i]      log_det   0
    inverse   x_order[i] = z_i      log_det   0

    >>> Permute([2, 0, 1])(torch.tensor([[10.0, 20.0, 30.0]]))[0]
    tensor([[30., 10., 20.]])
    """

    def __init__(self, order: list[int] | Tensor):
        super().__init__()
        order = torch.as_tensor(order)
        fits = order.dim() == 1 and order.dtype == torch.long
        if not (fits and torch.equal(order.sort().values, torch.arange(len(order)))):
            raise ValueError(f"order must hold each of 0 ... D-1 once, got {order.tolist()}")
        self.register_buffer("order", order)

    def forward(self, x, context=None):
        check_width(x, len(self.order))
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        check_width(z, len(self.order))
        return z.index_select(1, self.order.argsort()), z.new_zeros(len(z))


class Squeeze(Bijection):
    """Blocks of 2 x 2 pixels into 4 channels (Real NVP, section 3.6).

    forward   x (B, C, H, W) -> z (B, 4 C, H / 2, W / 2)      log_det   0
    inverse   the same, backwards                             log_det   0

    order "channel": channel 4 c + 2 row + column, the four pixels of a colour stay together;
    "checkerboard": channel k C + c, k = top left, bottom right, top right, bottom left: the two
    halves of the channels are the two colours of the checkerboard, of which one is factored out.
    >>> Squeeze()(torch.rand(2, 3, 8, 8))[0].shape
    torch.Size([2, 12, 4, 4])
    """

    def __init__(self, order: str = "channel"):
        super().__init__()
        if order not in ("channel", "checkerboard"):
            raise ValueError(f"unknown order {order!r}; there are channel, checkerboard")
        self.order = order

    def forward(self, x, context=None):
        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"Squeeze takes (B, C, H, W) with even H and W, got {tuple(x.shape)}")
        B, C, H, W = x.shape
        blocks = x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
        if self.order == "channel":
            return blocks.flatten(1, 2), x.new_zeros(B)
        top_left, top_right, bottom_left, bottom_right = blocks.unbind(2)
        return torch.cat([top_left, bottom_right, top_right, bottom_left], dim=1), x.new_zeros(B)

    def inverse(self, z, context=None):
        if z.dim() != 4 or z.shape[1] % 4:
            raise ValueError(f"un-squeezing takes (B, 4 C, H, W), got {tuple(z.shape)}")
        B, C, H, W = z.shape
        if self.order == "checkerboard":
            top_left, bottom_right, top_right, bottom_left = z.chunk(4, dim=1)
            z = torch.stack([top_left, top_right, bottom_left, bottom_right], dim=2)
        blocks = z.reshape(B, C // 4, 2, 2, H, W).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(B, C // 4, 2 * H, 2 * W), z.new_zeros(B)
