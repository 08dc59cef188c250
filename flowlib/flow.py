"""A flow: a bijection and a standard normal base density, which together are a density over data."""

import math

import torch
from torch import nn
from torch.distributions import Distribution, constraints

from .bijections import Bijection, Chain
from .common import as_tensor, generator, integer
from .dequantize import Dequantize

__all__ = ["Flow", "MultiScale", "standard_normal_log_prob"]


def standard_normal_log_prob(z):
    """log N(z; 0, I) in nats: (B, D) -> (B,)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


class Flow(nn.Module):
    """A density p(x) = N(f(x); 0, I) |det df/dx| over data of one shape (Real NVP, equations 2 and 3).

    `bijection` maps data to latent; `shape` is that of one data point, (2,) say; `context_features` is the width of
    the context if this is a conditional density p(x | context). A flow whose first layer is `Dequantize` takes and gives
    uint8 images: its `log_prob` is a lower bound of the discrete log-likelihood, preprocessing and all.

    >>> flow = models.realnvp_2d()
    >>> training.fit(flow, data.TwoMoons(), seed=0)
    >>> flow.log_prob(x)                       # (B, 2) -> (B,), nats, in the data's own coordinates
    >>> flow.sample(16, temperature=0.7, seed=0)
    """

    def __init__(self, bijection, shape, context_features=0):
        super().__init__()
        self.bijection = bijection
        self.shape = torch.Size(shape)
        self.context_features = context_features

    @property
    def dequantize(self):
        """The `Dequantize` layer that this flow begins with, or None."""
        first = self.bijection[0] if isinstance(self.bijection, Chain) else self.bijection
        return first if isinstance(first, Dequantize) else None

    def forward(self, x, context=None, noise=None):
        """Data to latent: x (B, *shape) -> z (B, D), log |det dz/dx| (B,). `noise` is for `Dequantize`, drawn if None."""
        self._check_shape(x, self.shape, "data")
        self.check_context(context, len(x))
        if noise is None:
            return self.bijection(x, context)
        y, first = self.dequantize(x, context, noise)
        z, rest = self.bijection[1:](y, context)
        return z, first + rest

    def inverse(self, z, context=None):
        """Latent to data: z (B, D) -> x (B, *shape), log |det dx/dz| (B,)."""
        self._check_shape(z, (self.shape.numel(),), "latents")
        self.check_context(context, len(z))
        return self.bijection.inverse(z, context)

    def log_prob(self, x, context=None, seed=None):
        """log p(x), or log p(x | context), in nats: (B, *shape) -> (B,). `seed` fixes the noise of `Dequantize`.

        Raises ValueError for an empty batch, a wrong shape, values that are not finite, and for integers in place of floats
        or floats in place of uint8.
        """
        self.check_input(x, context)
        z, log_det = self(x, context, self.draw_noise(len(x), generator(seed)))
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def encode(self, x, context=None):
        """The latents of x, (B, *shape) -> (B, D), with the noise of `Dequantize` at bin centres: `inverse` gives x back exactly."""
        return self(x, context, noise=None if self.dequantize is None else 0.5)[0]

    @torch.no_grad()
    def sample(self, n, temperature=1.0, seed=None, context=None):
        """Draw n points, (n, *shape); with a context (n, C), one for each of its rows.

        The base's standard deviation is multiplied by `temperature`: below 1, samples crowd towards the likely.
        Raises ValueError for a negative n or temperature.
        """
        integer("n", n, at_least=0)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, got {temperature}")
        return self.inverse(temperature * self.draw_latents(n, generator(seed)), context)[0]

    def draw_latents(self, n, generator=None):
        """n draws from the base, (n, D), in the dtype and on the device of the flow's parameters."""
        z = torch.randn(n, self.shape.numel(), generator=generator)
        return z.to(next(self.parameters(), z))

    def draw_noise(self, n, generator=None):
        """Noise for `Dequantize`, (n, *shape), on the flow's device; None for a flow of continuous data."""
        return (
            None
            if self.dequantize is None
            else self.dequantize.draw_noise((n, *self.shape), generator)
        )

    @torch.no_grad()
    def intermediates(self, x, context=None):
        """The states on the way from data to latent: [x, after layer 1, ..., z], one longer than the chain.

        The noise of `Dequantize` is at bin centres, as in `encode`.
        """
        self._check_shape(x, self.shape, "data")
        self.check_context(context, len(x))
        layers = self.bijection if isinstance(self.bijection, Chain) else [self.bijection]
        states = [x]
        for layer in layers:
            centre = {"noise": 0.5} if isinstance(layer, Dequantize) else {}
            states.append(layer(states[-1], context, **centre)[0])
        return states

    def distribution(self, context=None):
        """This flow as a `torch.distributions.Distribution`, for Pyro and friends; context: one row, (C,).

        Raises ValueError for a flow of integers: torch's interface is for densities, whose samples carry gradients.
        """
        if self.dequantize is not None:
            raise ValueError(
                "a flow that begins with Dequantize gives integers, which torch's densities cannot stand for"
            )
        return FlowDistribution(self, context)

    def _check_shape(self, x, shape, what):
        if x.shape[1:] != shape or x.dim() == 0:
            raise ValueError(
                f"this flow takes {what} of shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}"
            )

    def check_context(self, context, rows):
        """Refuse a context that is missing, misshapen, or not asked for."""
        if not self.context_features and context is None:
            return
        if not torch.is_tensor(context) or context.shape != (rows, self.context_features):
            expected = (
                f"a context of shape ({rows}, {self.context_features})"
                if self.context_features
                else "no context"
            )
            given = (
                "none"
                if context is None
                else tuple(context.shape)
                if torch.is_tensor(context)
                else f"a {type(context).__name__}"
            )
            raise ValueError(f"this flow takes {expected}, got {given}")

    def _check_dtype(self, x):
        dtype = next(self.parameters(), x).dtype
        if self.dequantize is not None:
            if x.dtype != torch.uint8:
                raise ValueError(
                    f"this flow begins with Dequantize, so it takes uint8 images, got {x.dtype}"
                )
        elif not x.is_floating_point():
            raise ValueError(
                f"this flow has no Dequantize layer, so it takes floating-point data, got {x.dtype}"
            )
        elif x.dtype != dtype:
            raise ValueError(
                f"this flow's weights are {dtype}, so it takes data of that dtype, got {x.dtype}: use x.to({dtype})"
            )

    def as_input(self, x, context=None):
        """Data and context as this flow takes them: tensors in its dtype, on its device, checked as `log_prob` says."""
        like = next(self.parameters(), None)
        x = as_tensor(x)
        if like is not None:
            x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
            if context is not None:
                context = as_tensor(context, "context").to(like)
        self.check_input(x, context)
        return x, context

    def check_input(self, x, context=None):
        """Refuse data and context that would fail deep inside, or give NaN: see `log_prob`. One pass over the data."""
        if not torch.is_tensor(x):
            raise ValueError(f"this flow takes a torch tensor, got {type(x).__name__}")
        self._check_dtype(x)
        self._check_shape(x, self.shape, "data")
        if len(x) == 0:
            raise ValueError(f"the batch is empty: got data of shape {tuple(x.shape)}")
        if (
            self.dequantize is not None
            and self.dequantize.bits < 8
            and x.max() >= self.dequantize.levels
        ):
            bits = self.dequantize.bits
            raise ValueError(
                f"this flow begins with Dequantize(bits={bits}), so it takes 0 ... {2**bits - 1}, got {int(x.max())}"
            )
        if self.dequantize is None and not x.isfinite().all():
            bad = (~x.isfinite()).flatten(1).any(1)
            raise ValueError(
                f"{int(bad.sum())} of {len(x)} data points hold NaN or infinity, the first in row {int(bad.nonzero()[0])}"
            )
        self.check_context(context, len(x))
        if context is not None and not context.isfinite().all():
            raise ValueError("the context holds NaN or infinity")


class MultiScale(Bijection):
    """Scale after scale, half of the channels are factored out as latents, and the other half go on (Real NVP, section 3.6).

    Each of `scales` but the last takes (B, C, H, W) to (B, 4 C, H / 2, W / 2), whose second half is factored out; the last
    keeps the shape. z holds the scales one after the other, flattened, the first factored out (the finest) first.

    forward   x (B, *shape) -> z (B, D), the sum of the log_dets of the scales
    inverse   z -> x, the sum of the log_dets of their inverses

    Raises ValueError for a shape whose height or width cannot be halved len(scales) - 1 times.
    """

    def __init__(self, shape, *scales):
        super().__init__()
        C, H, W = shape
        halvings = len(scales) - 1
        if not scales or H % 2**halvings or W % 2**halvings:
            raise ValueError(
                f"images of {H} x {W} cannot be halved {halvings} times, as {len(scales)} scales need"
            )
        self.scales = nn.ModuleList(scales)
        self.shapes = [torch.Size((2**k * C, H // 2**k, W // 2**k)) for k in range(1, len(scales))]
        self.shapes.append(torch.Size((2**halvings * C, H // 2**halvings, W // 2**halvings)))

    def forward(self, x, context=None):
        parts, total = [], 0.0
        for scale in self.scales[:-1]:
            x, log_det = scale(x, context)
            x, out = x.chunk(2, dim=1)
            parts.append(out)
            total = total + log_det
        x, log_det = self.scales[-1](x, context)
        return self.join_latent([*parts, x]), total + log_det

    def inverse(self, z, context=None):
        *parts, x = self.split_latent(z)
        x, total = self.scales[-1].inverse(x, context)
        for scale, out in zip(reversed(self.scales[:-1]), reversed(parts)):
            x, log_det = scale.inverse(torch.cat([x, out], dim=1), context)
            total = total + log_det
        return x, total

    def split_latent(self, z):
        """z (B, D) -> one view (B, C, H, W) per scale, the first factored out first."""
        return [
            part.view(-1, *shape)
            for part, shape in zip(
                z.split([shape.numel() for shape in self.shapes], dim=1), self.shapes
            )
        ]

    def join_latent(self, parts):
        """The inverse of `split_latent`."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class FlowDistribution(Distribution):
    """A flow behind torch's interface: sample shapes go in front, `rsample` carries gradients to the flow."""

    arg_constraints = {}
    has_rsample = True

    def __init__(self, flow, context=None, batch_shape=()):
        self.flow, self.context = flow, context
        super().__init__(torch.Size(batch_shape), flow.shape, validate_args=False)

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape, _instance=None):
        return FlowDistribution(self.flow, self.context, batch_shape)

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        z = self.flow.draw_latents(shape.numel() // self.event_shape.numel())
        return self.flow.inverse(z, self._rows(len(z)))[0].reshape(shape)

    def log_prob(self, value):
        lead = value.dim() - len(self.event_shape)
        if value.shape[max(lead, 0) :] != self.event_shape:
            raise ValueError(
                f"this flow takes values of shape (..., {', '.join(map(str, self.event_shape))}), got {tuple(value.shape)}"
            )
        rows = value.reshape(-1, *self.event_shape)
        return self.flow.log_prob(rows, self._rows(len(rows))).reshape(value.shape[:lead])

    def _rows(self, n):
        return None if self.context is None else self.context.expand(n, -1)
