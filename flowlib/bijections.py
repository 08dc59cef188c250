"""The protocol of a bijection, and the bijections that need no network.

Direction: `forward` takes data x to latent z, `inverse` takes z back to x. Both return `(output, log_det)`,
where log_det, shape (B,), is log |det| of the Jacobian of the direction that was asked for, in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .common import integer

__all__ = [
    "Bijection",
    "Chain",
    "Inverse",
    "Logit",
    "Flatten",
    "SoftLog",
    "Diagonal",
    "Permute",
    "Squeeze",
]


class Bijection(nn.Module):
    """An invertible map with a tractable Jacobian determinant.

    Shapes: x and z (B, ...), context (B, C) or None, log_det (B,).
    """

    def forward(self, x, context=None):
        """x -> (z, log |det dz/dx|)"""
        raise NotImplementedError

    def inverse(self, z, context=None):
        """z -> (x, log |det dx/dz|)"""
        raise NotImplementedError


def sum_dims(values):
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return values.flatten(1).sum(1)


def per_channel(parameter, x):
    """Shape a (C,) parameter so that it broadcasts over x of shape (B, C) or (B, C, H, W)."""
    return parameter.view(-1, *[1] * (x.dim() - 2))


def check_width(x, width):
    """Refuse x unless it is (B, width, ...): a wrong width would broadcast or lose dimensions without a word."""
    if x.dim() < 2 or x.shape[1] != width:
        raise ValueError(
            f"this layer takes (B, {width}) or (B, {width}, H, W), got {tuple(x.shape)}"
        )


def positions(x):
    """How many positions share one channel: 1 for (B, C), H * W for (B, C, H, W)."""
    return x.shape[2:].numel()


class Chain(nn.Sequential, Bijection):
    """Bijections one after the other; a chain can be indexed, sliced and iterated like any `nn.Sequential`.

    forward   z = f_K( ... f_1(x))
    log_det   sum of log |det df_k|, each taken where it acts
    inverse   x = f_1^-1( ... f_K^-1(z))
    log_det   sum of log |det df_k^-1|
    """

    def __init__(self, *bijections):
        super().__init__(*bijections)
        if len(self) == 0:
            raise ValueError("a Chain needs at least one bijection")

    def forward(self, x, context=None):
        total = 0.0
        for bijection in self:
            x, log_det = bijection(x, context)
            total = total + log_det
        return x, total

    def inverse(self, z, context=None):
        total = 0.0
        for bijection in reversed(self):
            z, log_det = bijection.inverse(z, context)
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """A bijection run backwards: its `inverse` becomes `forward`, and the other way round."""

    def __init__(self, bijection):
        super().__init__()
        self.bijection = bijection

    def forward(self, x, context=None):
        return self.bijection.inverse(x, context)

    def inverse(self, z, context=None):
        return self.bijection(z, context)


class Logit(Bijection):
    """From the unit interval to the real line, squashed a little so that 0 and 1 stay finite (Real NVP, section 4.1).

    forward   z = logit(p),  p = alpha + (1 - 2 alpha) x,  x in [0, 1]
    log_det   sum -log p - log(1 - p) + log(1 - 2 alpha)
    inverse   x = (sigmoid(z) - alpha) / (1 - 2 alpha)
    log_det   minus the above; in terms of z, -log p - log(1 - p) = softplus(z) + softplus(-z)

    The formula is the authors' code's; the paper prints alpha + (1 - alpha) x, which diverges at x = 1.
    Values of x outside [0, 1] by more than alpha / (1 - 2 alpha) give NaN.
    Raises ValueError unless 0 <= alpha < 0.5.
    """

    def __init__(self, alpha=0.05):
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

    def extra_repr(self):
        return f"alpha={self.alpha}"


class Flatten(Bijection):
    """Images (B, *shape) as vectors (B, D), row by row; log_det is 0 both ways. Raises ValueError for another shape.

    forward   z_i = x_{c,h,w},  i = (c H + h) W + w
    inverse   the same, backwards
    """

    def __init__(self, shape):
        super().__init__()
        self.shape = torch.Size(shape)

    def forward(self, x, context=None):
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"this layer takes (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        check_width(z, self.shape.numel())
        return z.view(-1, *self.shape), z.new_zeros(len(z))

    def extra_repr(self):
        return f"{tuple(self.shape)}"


class SoftLog(Bijection):
    """The identity up to |x| = tau, logarithmic beyond, so that no latent value runs away (Andrade, arXiv 2402.16408).

    With the excess e = max(|x| - tau, 0), or e' = max(|z| - tau, 0) on the other side:

    forward   z = sign(x) (min(|x|, tau) + log(1 + e))
    log_det   -sum log(1 + e)
    inverse   x = sign(z) (min(|z|, tau) + exp(e') - 1)
    log_det   +sum e'

    Raises ValueError unless tau > 0.
    """

    def __init__(self, tau=100.0):
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
        return torch.where(
            size <= self.tau, z, z.sign() * (self.tau + torch.expm1(excess))
        ), sum_dims(excess)

    def extra_repr(self):
        return f"tau={self.tau}"


class Diagonal(Bijection):
    """One learned scale per dimension: the only place where NICE changes volume (Dinh et al., arXiv 1410.8516, section 3.3).

    forward   z = x exp(s)
    log_det   sum s
    inverse   x = z exp(-s)
    log_det   -sum s

    Shapes: x (B, D), s (D,), starting at 0.
    """

    def __init__(self, D):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(integer("D", D, at_least=1)))

    def forward(self, x, context=None):
        check_width(x, len(self.log_scale))
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        check_width(z, len(self.log_scale))
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class Permute(Bijection):
    """A fixed reordering of the dimensions; log_det is 0 both ways.

    forward   z_i = x_order[i]
    inverse   x_order[i] = z_i

    Shapes: x (B, D), order D distinct indices.
    Raises ValueError unless `order` holds each of 0 ... D-1 once.
    """

    def __init__(self, order):
        super().__init__()
        order = torch.as_tensor(order)
        if (
            order.dim() != 1
            or order.dtype != torch.long
            or not torch.equal(order.sort().values, torch.arange(len(order)))
        ):
            raise ValueError(f"order must hold each of 0 ... D-1 once, got {order.tolist()}")
        self.register_buffer("order", order)

    def forward(self, x, context=None):
        check_width(x, len(self.order))
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z, context=None):
        check_width(z, len(self.order))
        return z[:, self.order.argsort()], z.new_zeros(len(z))

    def extra_repr(self):
        return f"{self.order.tolist()}"


class Squeeze(Bijection):
    """Blocks of 2 x 2 pixels into 4 channels; a reordering, so log_det is 0 both ways (Real NVP, section 3.6).

    forward   (B, C, H, W) -> (B, 4 C, H / 2, W / 2)

    order "channel"   channel 4 c + 2 row + column: the four pixels of a colour stay together (for channel couplings)
    order "checkerboard"    channel k C + c, k = top left, bottom right, top right, bottom left: the first half of the channels is
                     one colour of the checkerboard, the second half the other (before half of them is factored out)

    Raises ValueError for an odd height or width, and for another order.
    """

    def __init__(self, order="channel"):
        super().__init__()
        if order not in ("channel", "checkerboard"):
            raise ValueError(f"unknown order {order!r}; there are channel, checkerboard")
        self.order = order

    def forward(self, x, context=None):
        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"Squeeze takes (B, C, H, W) with even H and W, got {tuple(x.shape)}")
        z = F.pixel_unshuffle(x, 2)
        if self.order == "checkerboard":
            top_left, top_right, bottom_left, bottom_right = z.unflatten(1, (-1, 4)).unbind(2)
            z = torch.cat([top_left, bottom_right, top_right, bottom_left], dim=1)
        return z, x.new_zeros(len(x))

    def inverse(self, z, context=None):
        if z.dim() != 4 or z.shape[1] % 4:
            raise ValueError(f"un-squeezing takes (B, 4 C, H, W), got {tuple(z.shape)}")
        x = z
        if self.order == "checkerboard":
            top_left, bottom_right, top_right, bottom_left = z.chunk(4, dim=1)
            x = torch.stack([top_left, top_right, bottom_left, bottom_right], dim=2).flatten(1, 2)
        return F.pixel_shuffle(x, 2), z.new_zeros(len(z))

    def extra_repr(self):
        return f"order={self.order!r}"
