"""The protocol of a bijection, and the bijections that need no network.

Direction: `forward` takes data x to latent z, `inverse` takes z back to x. Both return `(output, log_det)`,
where log_det, shape (B,), is log |det| of the Jacobian of the direction that was asked for, in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .common import whole_number

__all__ = ["Bijection", "Chain", "Inverse", "Dequantize", "Logit", "Flatten", "SoftLog", "Diagonal", "BatchNorm", "ActNorm", "Permute", "Squeeze"]


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
        raise ValueError(f"this layer takes (B, {width}) or (B, {width}, H, W), got {tuple(x.shape)}")


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


class Dequantize(Bijection):
    """From integers to the unit interval by adding uniform noise; the one stochastic layer, and only ever the first.

    forward   y = (x + u) / L,  u ~ U[0, 1),  L = 2^bits levels
    log_det   -D log L
    inverse   x = floor(L y), kept within 0 ... L - 1
    log_det   +D log L

    log p(y) of the noisy image, less D log L, is on average a lower bound of log P(x) of the integers (Theis et al.,
    arXiv 1511.01844, section 3.1). Shapes: x (B, ...) uint8, y the same in floating point.
    Raises ValueError unless bits is 1 ... 8. `Flow.log_prob` refuses images that are not uint8, or hold L and more.
    """

    def __init__(self, bits=8):
        super().__init__()
        if whole_number("bits", bits, at_least=1) > 8:
            raise ValueError(f"uint8 images hold at most 8 bits, got bits={bits}")
        self.bits = bits
        self.register_buffer("levels", torch.tensor(2.0**bits), persistent=False)  # its dtype is that of the noise

    def forward(self, x, context=None, noise=None):
        """x -> (y, log_det); `noise` is drawn unless given: values in [0, 1) shaped like x, or 0.5 for the bin centres."""
        noise = self.draw_noise(x.shape) if noise is None else noise
        y = (x.to(self.levels.dtype) + noise) / self.levels
        return y, -self._log_volume(y)

    def inverse(self, z, context=None):
        x = (z * self.levels).floor().clamp(0, 2**self.bits - 1).to(torch.uint8)
        return x, self._log_volume(z)

    def draw_noise(self, shape, generator=None):
        """What `forward` draws if it is given none: uniform noise, on this layer's device."""
        device = self.levels.device if generator is None else generator.device
        return torch.rand(shape, generator=generator, dtype=self.levels.dtype, device=device).to(self.levels.device)

    def _log_volume(self, y):
        return y.new_full((len(y),), y.shape[1:].numel() * self.bits * math.log(2))

    def extra_repr(self):
        return f"bits={self.bits}"


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
            raise ValueError(f"this layer takes (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
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
        return torch.where(size <= self.tau, z, z.sign() * (self.tau + torch.expm1(excess))), sum_dims(excess)

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
        self.log_scale = nn.Parameter(torch.zeros(whole_number("D", D, at_least=1)))

    def forward(self, x, context=None):
        check_width(x, len(self.log_scale))
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        check_width(z, len(self.log_scale))
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class BatchNorm(Bijection):
    """Batch normalisation as a flow layer, without gain and offset (Real NVP, section 3.7).

    forward   z = (x - mean) / sqrt(var + eps)
    log_det   -1/2 sum log(var + eps)
    inverse   x = z sqrt(var + eps) + mean
    log_det   +1/2 sum log(var + eps)

    In training mode mean and (biased) var are the batch's own and the running statistics are updated; in evaluation
    mode they are the running statistics. The log_det is exact with the statistics held fixed.
    `mask`, that of the coupling before it, says what passed through there and is left alone here: (C,) channels or
    (H, W) positions. `moving_average` also trains with the running statistics, into which the batch's enter with weight
    `momentum` (the paper's appendix E), which steadies small batches.

    Shapes: x (B, C) or (B, C, H, W), one mean and variance per channel.
    Raises ValueError for a training batch with one value per channel, and for `inverse` in training mode: samples have
    no data batch to take statistics from.
    """

    def __init__(self, C, mask=None, eps=1e-4, momentum=0.1, moving_average=False):
        super().__init__()
        whole_number("C", C, at_least=1)
        self.eps, self.momentum, self.moving_average = eps, momentum, moving_average
        self.register_buffer("running_mean", torch.zeros(C))
        self.register_buffer("running_var", torch.ones(C))
        changed = None if mask is None else ~mask.view(-1, 1, 1) if mask.dim() == 1 else ~mask
        self.register_buffer("changed", changed, persistent=False)
        board = changed is not None and changed.dim() == 2
        self.register_buffer("positions", changed.flatten().nonzero()[:, 0] if board else None, persistent=False)

    def forward(self, x, context=None):
        check_width(x, len(self.running_mean))
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        shift, log_scale = self._where_changed(x, mean, -0.5 * torch.log(var + self.eps))
        return (x - shift) * log_scale.exp(), self._log_det(x, log_scale)

    def inverse(self, z, context=None):
        if self.training:
            raise ValueError("BatchNorm has no inverse in training mode: call flow.eval() before sampling or inverting")
        check_width(z, len(self.running_mean))
        shift, log_scale = self._where_changed(z, self.running_mean, 0.5 * torch.log(self.running_var + self.eps))
        return z * log_scale.exp() + shift, self._log_det(z, log_scale)

    def _where_changed(self, x, shift, log_scale):
        """Shift and log-scale per channel, shaped to broadcast over x, and 0 where x passes through."""
        shift, log_scale = per_channel(shift, x), per_channel(log_scale, x)
        if self.changed is None:
            return shift, log_scale
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        return torch.where(self.changed, shift, zero), torch.where(self.changed, log_scale, zero)

    def _log_det(self, x, log_scale):
        return log_scale.expand(1, *x.shape[1:]).sum().expand(len(x))

    def _batch_statistics(self, x):
        """Mean and biased variance of every channel over the batch and the positions that changed."""
        if x.numel() == x.shape[1]:
            raise ValueError(f"BatchNorm cannot train on one value per channel (input of shape {tuple(x.shape)}): use a larger batch")
        if self.positions is not None:
            x = x.flatten(2).index_select(2, self.positions)  # x[:, :, changed] would wait for the device
        var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], unbiased=False)
        if self.moving_average:
            mean, var = torch.lerp(self.running_mean, mean, self.momentum), torch.lerp(self.running_var, var, self.momentum)
        with torch.no_grad():
            weight = 1.0 if self.moving_average else self.momentum
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(var, weight)
        return mean, var

    def extra_repr(self):
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}"


class ActNorm(Bijection):
    """A learned shift and scale per channel, started from data so that its output has mean 0 and variance 1 (Glow, section 3.1).

    forward   z = (x - b) exp(s)
    log_det   H W sum s
    inverse   x = z exp(-s) + b
    log_det   -H W sum s

    Shapes: x (B, C) or (B, C, H, W), b and s (C,).
    `flowlib.training.fit` calls `initialise`; whether that has happened is a buffer, so a reloaded layer knows it.
    Raises ValueError when used before `initialise`.
    """

    def __init__(self, C):
        super().__init__()
        whole_number("C", C, at_least=1)
        self.shift = nn.Parameter(torch.zeros(C))
        self.log_scale = nn.Parameter(torch.zeros(C))
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = False

    @torch.no_grad()
    def initialise(self, x):
        """Set shift and scale from a batch x, so that forward(x) has mean 0 and variance 1 per channel."""
        dims = [0, *range(2, x.dim())]
        std, mean = torch.std_mean(x, dim=dims, unbiased=False)
        if not std.isfinite().all():
            raise ValueError("ActNorm cannot be initialised: the batch given is empty or holds NaN or infinity")
        if not (std > 0).all():
            raise ValueError(f"ActNorm cannot be initialised: channel {int((~(std > 0)).nonzero()[0])} is constant in the batch given")
        self.shift.copy_(mean)
        self.log_scale.copy_(-std.log())
        self.initialised.fill_(True)

    def forward(self, x, context=None):
        self._check_ready(x)
        return (x - per_channel(self.shift, x)) * per_channel(self.log_scale.exp(), x), self._log_det(x)

    def inverse(self, z, context=None):
        self._check_ready(z)
        return z * per_channel((-self.log_scale).exp(), z) + per_channel(self.shift, z), -self._log_det(z)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._ready = False

    def _log_det(self, x):
        return (positions(x) * self.log_scale.sum()).expand(len(x))

    def _check_ready(self, x):
        """Read the buffer until it says yes once: on a GPU every read would wait for the device."""
        check_width(x, len(self.shift))
        self._ready = self._ready or bool(self.initialised)
        if not self._ready:
            raise ValueError("ActNorm is not initialised: train with flowlib.training.fit, or call initialise(x) on a batch of its input")

    def extra_repr(self):
        return f"{len(self.shift)}"


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
        if order.dim() != 1 or order.dtype != torch.long or not torch.equal(order.sort().values, torch.arange(len(order))):
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

    order "colour"   channel 4 c + 2 row + column: the four pixels of a colour stay together (for channel couplings)
    order "board"    channel k C + c, k = top left, bottom right, top right, bottom left: the first half of the channels is
                     one colour of the checkerboard, the second half the other (before half of them is factored out)

    Raises ValueError for an odd height or width, and for another order.
    """

    def __init__(self, order="colour"):
        super().__init__()
        if order not in ("colour", "board"):
            raise ValueError(f"unknown order {order!r}; there are colour, board")
        self.order = order

    def forward(self, x, context=None):
        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"Squeeze takes (B, C, H, W) with even H and W, got {tuple(x.shape)}")
        z = F.pixel_unshuffle(x, 2)
        if self.order == "board":
            top_left, top_right, bottom_left, bottom_right = z.unflatten(1, (-1, 4)).unbind(2)
            z = torch.cat([top_left, bottom_right, top_right, bottom_left], dim=1)
        return z, x.new_zeros(len(x))

    def inverse(self, z, context=None):
        if z.dim() != 4 or z.shape[1] % 4:
            raise ValueError(f"un-squeezing takes (B, 4 C, H, W), got {tuple(z.shape)}")
        x = z
        if self.order == "board":
            top_left, bottom_right, top_right, bottom_left = z.chunk(4, dim=1)
            x = torch.stack([top_left, top_right, bottom_left, bottom_right], dim=2).flatten(1, 2)
        return F.pixel_shuffle(x, 2), z.new_zeros(len(z))

    def extra_repr(self):
        return f"order={self.order!r}"
