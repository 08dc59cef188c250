"""Normalisation as flow layers: from batch statistics, or learned."""

import torch
from torch import nn

from .bijections import Bijection, check_width, per_channel, positions
from .common import integer

__all__ = ["ActNorm", "BatchNorm"]


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
        integer("C", C, at_least=1)
        self.eps, self.momentum, self.moving_average = eps, momentum, moving_average
        self.register_buffer("running_mean", torch.zeros(C))
        self.register_buffer("running_var", torch.ones(C))
        changed = None if mask is None else ~mask.view(-1, 1, 1) if mask.dim() == 1 else ~mask
        self.register_buffer("changed", changed, persistent=False)
        board = changed is not None and changed.dim() == 2
        self.register_buffer(
            "positions", changed.flatten().nonzero()[:, 0] if board else None, persistent=False
        )

    def forward(self, x, context=None):
        check_width(x, len(self.running_mean))
        mean, var = (
            self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        )
        shift, log_scale = self._where_changed(x, mean, -0.5 * torch.log(var + self.eps))
        return (x - shift) * log_scale.exp(), self._log_det(x, log_scale)

    def inverse(self, z, context=None):
        if self.training:
            raise ValueError(
                "BatchNorm has no inverse in training mode: call flow.eval() before sampling or inverting"
            )
        check_width(z, len(self.running_mean))
        shift, log_scale = self._where_changed(
            z, self.running_mean, 0.5 * torch.log(self.running_var + self.eps)
        )
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
            raise ValueError(
                f"BatchNorm cannot train on one value per channel (input of shape {tuple(x.shape)}): use a larger batch"
            )
        if self.positions is not None:
            x = x.flatten(2).index_select(
                2, self.positions
            )  # x[:, :, changed] would wait for the device
        var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], unbiased=False)
        if self.moving_average:
            mean, var = (
                torch.lerp(self.running_mean, mean, self.momentum),
                torch.lerp(self.running_var, var, self.momentum),
            )
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
        integer("C", C, at_least=1)
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
            raise ValueError(
                "ActNorm cannot be initialised: the batch given is empty or holds NaN or infinity"
            )
        if not (std > 0).all():
            raise ValueError(
                f"ActNorm cannot be initialised: channel {int((~(std > 0)).nonzero()[0])} is constant in the batch given"
            )
        self.shift.copy_(mean)
        self.log_scale.copy_(-std.log())
        self.initialised.fill_(True)

    def forward(self, x, context=None):
        self._check_ready(x)
        return (x - per_channel(self.shift, x)) * per_channel(
            self.log_scale.exp(), x
        ), self._log_det(x)

    def inverse(self, z, context=None):
        self._check_ready(z)
        return z * per_channel((-self.log_scale).exp(), z) + per_channel(
            self.shift, z
        ), -self._log_det(z)

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
            raise ValueError(
                "ActNorm is not initialised: train with flowlib.training.fit, or call initialise(x) on a batch of its input"
            )

    def extra_repr(self):
        return f"{len(self.shift)}"
