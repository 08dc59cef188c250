"""Normalisation as flow layers: from batch statistics, or learned."""

import contextlib

import torch
from torch import Tensor, nn

from .bijections import Bijection, Diagonal, check_width, per_channel, shared_log_det
from .common import holds, integer

__all__ = ["ActNorm", "BatchNorm"]


class BatchNorm(Bijection):
    """Batch normalisation as a flow layer, without gain and offset (Real NVP, section 3.7).

    forward   z = (x - mean) / sqrt(var + eps)    log_det   -1/2 sum log(var + eps)
    inverse   x = z sqrt(var + eps) + mean        log_det   +1/2 sum log(var + eps)

    In training mode mean and (biased) var are the batch's, per channel of (B, C) or (B, C, H, W),
    and the running statistics, which evaluation uses, are updated; the log_det holds them fixed.
    What `mask`, that of the coupling before it, let pass is left alone: (C,) channels or (H, W)
    positions. Raises ValueError for one value per channel, and for `inverse` in training mode.
    >>> BatchNorm(1, eps=0.0)(torch.tensor([[1.0], [3.0]]))[0].flatten()
    tensor([-1.,  1.])
    """

    def __init__(self, C: int, mask: Tensor | None = None, eps=1e-4, momentum=0.1):
        super().__init__()
        integer("C", C, at_least=1)
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(C))
        self.register_buffer("running_var", torch.ones(C))
        changed = None if mask is None else ~mask.view(-1, 1, 1) if mask.dim() == 1 else ~mask
        self.register_buffer("changed", changed, persistent=False)
        fields = None if mask is None or mask.dim() == 1 else (~mask).flatten().nonzero()[:, 0]
        self.register_buffer("fields", fields, persistent=False)

    def forward(self, x, context=None):
        running = self.running_mean, self.running_var
        mean, var = self._batch_statistics(x) if self.training else running
        shift, log_scale = self._where_changed(x, mean, -0.5 * torch.log(var + self.eps))
        return (x - shift) * log_scale.exp(), shared_log_det(log_scale, x)

    def inverse(self, z, context=None):
        if self.training:
            raise ValueError("BatchNorm has no inverse in training mode: call flow.eval() first")
        log_scale = 0.5 * torch.log(self.running_var + self.eps)
        shift, log_scale = self._where_changed(z, self.running_mean, log_scale)
        return z * log_scale.exp() + shift, shared_log_det(log_scale, z)

    def _where_changed(self, x, shift, log_scale):
        """Shift and log-scale per channel, shaped to broadcast over x, and 0 where x passes."""
        shift, log_scale = per_channel(shift, x), per_channel(log_scale, x)
        if self.changed is None:
            return shift, log_scale
        return torch.where(self.changed, shift, 0), torch.where(self.changed, log_scale, 0)

    def _batch_statistics(self, x):
        """Mean and biased variance of every channel over the batch and the fields that changed."""
        check_width(x, len(self.running_mean))
        if x.numel() == x.shape[1]:
            given = f"(input of shape {tuple(x.shape)}): use a larger batch"
            raise ValueError(f"BatchNorm cannot train on one value per channel {given}")
        if self.fields is not None:  # x[:, :, changed] would wait for the device
            x = x.flatten(2).index_select(2, self.fields)
        var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], unbiased=False)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return mean, var


class ActNorm(Diagonal):
    """A learned shift and scale per channel that starts by standardising data (Glow, section 3.1).

    forward   z = (x - b) exp(s)     log_det    H W sum s
    inverse   x = z exp(-s) + b      log_det   -H W sum s

    Shapes: x (B, C) or (B, C, H, W), b and s (C,). `flowlib.training.fit` initialises it; used
    before, it raises ValueError.
    >>> norm = ActNorm(2)
    >>> norm.initialise(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
    >>> norm(torch.tensor([[1.0, 9.0]]))[0]
    tensor([[-1.,  1.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, C: int):
        super().__init__(integer("C", C, at_least=1))
        self.shift = nn.Parameter(torch.zeros(C))
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = self._awaits_data = False

    @torch.no_grad()
    def initialise(self, x: Tensor, inverse: bool = False) -> None:
        """Set b and s so that forward(x), or with `inverse` inverse(x), has mean 0 and variance 1.
        Raises ValueError for a batch that does not tell them."""
        check_width(x, len(self.shift))
        refused = f"ActNorm cannot be initialised from {len(x)} rows: "
        if x.numel() <= x.shape[1]:
            raise ValueError(f"{refused}use a larger batch")
        if not x.isfinite().all():
            raise ValueError(f"{refused}they hold NaN or infinity")
        std, mean = torch.std_mean(x, dim=[0, *range(2, x.dim())], unbiased=False)
        if not std.isfinite().all():
            raise ValueError(f"{refused}values up to {x.abs().max():.0e} are too large to square")
        if not (std > 0).all():
            why = f"channel {std.argmin()} is constant in the batch given"
            raise ValueError(f"{refused}{why}: remove it, or, if it does vary, use a larger batch")
        self.shift.copy_(-mean / std if inverse else mean)
        self.log_scale.copy_(std.log() if inverse else -std.log())
        self.initialised.fill_(True)
        self._ready = True

    def forward(self, x, context=None):
        self._check_ready(x)
        return super().forward(x - per_channel(self.shift, x))

    def inverse(self, z, context=None):
        self._check_ready(z, inverse=True)
        x, log_det = super().inverse(z)
        return x + per_channel(self.shift, x), log_det

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._ready = holds(self.initialised)

    def _check_ready(self, x, inverse=False):
        """The buffer is read only if need be: on a GPU that would wait for the device."""
        if self._awaits_data and not self._ready:
            self.initialise(x, inverse)
        if not self._ready and not holds(self.initialised):
            what = "train with flowlib.training.fit, or call initialise(x) on a batch of its input"
            raise ValueError(f"ActNorm is not initialised: {what}")


@contextlib.contextmanager
def initialising(flow: nn.Module):
    """Within it, every new `ActNorm` starts from the first batch that reaches it, either way."""
    new = [m for m in flow.modules() if isinstance(m, ActNorm) and not m.initialised]
    for norm in new:
        norm._awaits_data = True
    try:
        yield
    finally:
        for norm in new:
            norm._awaits_data = False
