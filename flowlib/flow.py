"""A flow: a bijection and a standard normal base density, which make a density over data."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from .bijections import Bijection, Chain, check_width
from .common import Seed, as_tensor, generator, holds, integer, randn
from .dequantize import Dequantize

__all__ = ["Flow", "MultiScale", "standard_normal_log_prob"]


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats: (B, D) -> (B,).

    >>> standard_normal_log_prob(torch.zeros(1, 2))
    tensor([-1.8379])
    """
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


class Flow(nn.Module):
    """A density p(x) = N(f(x); 0, I) |det df/dx| over data of one shape (Real NVP, equations 2, 3).

    `bijection` maps data to latents (B, D); `shape` is that of one data point, (2,) say. A flow
    that begins with `Dequantize` takes and gives uint8: `log_prob` is a lower bound of log P(x).
    Conditional densities p(x | context) have a context of vectors (B, context_features), or with
    `classes` of labels, integers 0 ... classes - 1, (B,) or one for all rows; the layers see them
    as one-hot rows (B, classes), which may be given as well.

    Every method takes arrays and tensors of any floating-point dtype, on any device, and raises
    ValueError for a wrong shape, floats in place of uint8 or uint8 in place of floats, a context
    missing or not asked for, and, but for `forward` and `inverse`, the hot path, NaN and infinity.
    >>> from flowlib import data, models, training
    >>> flow = models.realnvp_2d(depth=2, hidden=(8,))
    >>> history = training.fit(flow, data.TwoMoons(), steps=20, seed=0, progress=False)
    >>> flow.log_prob(flow.sample(16, temperature=0.7, seed=0)).shape  # nats
    torch.Size([16])
    """

    def __init__(self, bijection: nn.Module, shape: tuple, context_features=0, classes: int = 0):
        super().__init__()
        if classes and context_features:
            raise ValueError("the context is labels or vectors: give classes or context_features")
        self.bijection, self.shape, self.classes = bijection, torch.Size(shape), classes
        self.context_features = classes or context_features
        if any(isinstance(m, Dequantize) and m is not self.dequantize for m in bijection.modules()):
            raise ValueError("Dequantize is only ever the first layer of a flow")

    @property
    def dequantize(self) -> Dequantize | None:
        """The `Dequantize` layer that this flow begins with, or None."""
        first = self.bijection
        while isinstance(first, Chain):
            first = first[0]
        return first if isinstance(first, Dequantize) else None

    def forward(self, x, context=None, noise=None) -> tuple[Tensor, Tensor]:
        """Data to latent: x (B, *shape) -> z (B, D), log |det dz/dx| (B,). `noise` (B, *shape) for
        `Dequantize` is in [0, 1), or 0.5 for bin centres; drawn if None."""
        x, context = self._fit(x, self.shape, "data", context)
        if noise is not None and self.dequantize is None:
            raise ValueError("noise is for a flow that begins with Dequantize; this one does not")
        if not (noise is None or isinstance(noise, float)):
            noise = as_tensor(noise, "noise").to(self._like())
        z, log_det = self.bijection(x, context, *([] if noise is None else [noise]))
        if z.dim() != 2:
            raise ValueError(f"a flow's latents are (B, D), got {tuple(z.shape)}: add a Flatten")
        return z, log_det

    def inverse(self, z, context=None) -> tuple[Tensor, Tensor]:
        """Latent to data: z (B, D) -> x (B, *shape), log |det dx/dz| (B,)."""
        z, context = self._fit(z, (self.shape.numel(),), "latents", context)
        return self.bijection.inverse(z, context)

    def log_prob(self, x, context=None, seed: Seed = None) -> Tensor:
        """log p(x), or log p(x | context), in nats: (B, *shape) -> (B,). `seed` fixes the noise of
        `Dequantize`. Raises ValueError for an empty batch, NaN, infinity and values too large to
        square; `torch.compile` and `torch.func.vmap` cannot look at values."""
        x, context = self.as_input(x, context)
        z, log_det = self(x, context, self.draw_noise(len(x), generator(seed)))
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def encode(self, x, context=None) -> Tensor:
        """The latents of x, (B, D), the noise at bin centres: `inverse` gives x back exactly."""
        x, context = self.as_input(x, context)
        return self(x, context, None if self.dequantize is None else 0.5)[0]

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, seed: Seed = None, context=None) -> Tensor:
        """Draw n points, (n, *shape); with a context of n rows, one for each; with one label, all
        of that class. Below a `temperature` (the base's deviation) of 1, samples crowd towards the
        likely."""
        integer("n", n, at_least=0)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, got {temperature}")
        context = self.check_context(context, n)
        return self.inverse(temperature * self.draw_latents(n, generator(seed)), context)[0]

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from the base, (n, D), in the flow's dtype and on its device."""
        return randn((n, self.shape.numel()), generator, self._like())

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise for `Dequantize`, (n, *shape); None for a flow of continuous data."""
        dequantize = self.dequantize
        return dequantize and dequantize.draw_noise((n, *self.shape), generator)

    @torch.no_grad()
    def intermediates(self, x, context=None) -> list[Tensor]:
        """The states on the way, [x, after layer 1, ..., z], the noise at bin centres."""
        x, context = self.as_input(x, context)
        states, noise = [x], [] if self.dequantize is None else [0.5]
        for layer in self.bijection if isinstance(self.bijection, Chain) else [self.bijection]:
            states.append(layer(states[-1], context, *noise)[0])
            noise = []
        return states

    def distribution(self, context=None) -> "FlowDistribution":
        """This flow as a `torch.distributions.Distribution`; context: one row or label."""
        if self.dequantize is not None:
            raise ValueError("a flow that begins with Dequantize gives integers: it is no density")
        context = None if context is None else as_tensor(context, "context")[None]
        return FlowDistribution(self, self.check_context(context, 1))

    def as_input(self, x, context=None) -> tuple[Tensor, Tensor | None]:
        """x and context as tensors of this flow's dtype and device, checked as by `log_prob`."""
        x, _ = self._fit(x, self.shape, "data", context)
        if len(x) == 0:
            raise ValueError(f"the batch is empty: got data of shape {tuple(x.shape)}")
        if self.dequantize is None:
            _check_values(x, "data points")
        elif (bits := self.dequantize.bits) < 8 and not holds((x < 2**bits).all()):
            what = f"it takes 0 ... {2**bits - 1}, got {int(x.max())}"
            raise ValueError(f"this flow begins with Dequantize(bits={bits}), so {what}")
        return x, self.check_context(context, len(x))

    def check_context(self, context, rows: int, values: bool = True) -> Tensor | None:
        """The context as the layers take it, (rows, context_features), or a ValueError."""
        n, classes, given = self.context_features, self.classes, "none"
        if context is None and not n:
            return None
        takes = f"a context of shape ({rows}, {n})" if n else "no context"
        if classes:
            takes = f"labels 0 ... {n - 1} as context, integers of shape ({rows},) or one for all"
        if context is not None:
            context = as_tensor(context, "context").to(self._like().device)
            given = f"{tuple(context.shape)} of {context.dtype}"
            if classes and context.dim() < 2 and not context.is_floating_point():
                if values and not holds(((context >= 0) & (context < n)).all()):
                    given = f"{context.min()} ... {context.max()}"
                    raise ValueError(f"this flow takes {takes}, got {given}")
                context = context if context.dim() else context.expand(rows)
                context = context[:, None] == torch.arange(n, device=context.device)
        if context is None or context.shape != (rows, n):
            raise ValueError(f"this flow takes {takes}, got {given}")
        context = context.to(self._like())
        if values:
            _check_values(context, "rows of the context")
        return context

    def _fit(self, values, shape, what, context):
        """Values and context as tensors in this flow's dtype, on its device; not a look at them."""
        values = as_tensor(values, what)
        like = self._like(values)
        if like.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"a flow in {like.dtype} is too coarse: use flow.float()")
        if values.dim() == 0 or values.shape[1:] != shape:
            expected = ", ".join(map(str, ("B", *shape)))
            what = f"{what} of shape ({expected}), got {tuple(values.shape)}"
            raise ValueError(f"this flow takes {what}")
        if what == "data" and self.dequantize is not None:
            if values.dtype != torch.uint8:
                what = f"uint8 images, got {values.dtype}"
                raise ValueError(f"this flow begins with Dequantize, so it takes {what}")
            like = values.new_empty(0, device=like.device)
        elif not values.is_floating_point():
            raise ValueError(f"this flow takes floating-point {what}, got {values.dtype}")
        return values.to(like), self.check_context(context, len(values), values=False)

    def _like(self, *values):
        """A tensor of the dtype and on the device that this flow computes in and on; without
        parameters and buffers, those of the values that it is given."""
        tensors = itertools.chain(self.parameters(), self.buffers(), values)
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def _usable(values):
    """Which rows hold no NaN, no infinity, and nothing too large to square: (B,) bool."""
    limit = math.sqrt(torch.finfo(values.dtype).max)
    return (values.abs() <= limit).flatten(1).all(1)


def _check_values(values, what):
    usable = _usable(values)
    if not holds(usable.all()):
        kind = "numbers too large to square" if values.isfinite().all() else "NaN or infinity"
        bad = (~usable).nonzero()[:, 0].tolist()
        which = f"{len(bad)} of {len(values)} {what}"
        raise ValueError(f"{which} hold {kind}, the first in row {bad[0]}")


class MultiScale(Bijection):
    """At every scale half of the channels are factored out as latents (Real NVP, section 3.6).

    Each of `scales` but the last takes (B, C, H, W) to (B, 4 C, H / 2, W / 2), whose second half is
    factored out; the last keeps the shape. z holds the scales, flattened, the finest first.

    forward   x (B, *shape) -> z (B, D)     log_det   the sum over the scales
    inverse   z -> x                        log_det   the sum over their inverses

    >>> from flowlib.bijections import Permute, Squeeze
    >>> multi = MultiScale((1, 4, 4), Squeeze("checkerboard"), Permute([1, 0]))
    >>> [part.numel() for part in multi.split_latent(torch.zeros(3, 16))]
    [24, 24]
    """

    def __init__(self, shape: tuple[int, ...], *scales: nn.Module):
        super().__init__()
        C, H, W = shape
        halvings = len(scales) - 1
        if not scales or H % 2**halvings or W % 2**halvings:
            need = f"{halvings} times, as {len(scales)} scales need"
            raise ValueError(f"images of {H} x {W} cannot be halved {need}")
        self.scales = nn.ModuleList(scales)
        factors = [2**k for k in [*range(1, len(scales)), halvings]]
        self.shapes = [torch.Size((f * C, H // f, W // f)) for f in factors]

    def forward(self, x, context=None):
        parts, total = [], 0.0
        for scale, (C, _, _) in zip(self.scales, self.shapes):
            x, log_det = scale(x, context)
            parts.append(x[:, -C:])
            x, total = x[:, :-C], total + log_det
        return self.join_latent(parts), total

    def inverse(self, z, context=None):
        parts = self.split_latent(z)
        x, total = parts[-1][:, :0], 0.0
        for scale, part in zip(reversed(self.scales), reversed(parts)):
            x, log_det = scale.inverse(torch.cat([x, part], dim=1), context)
            total = total + log_det
        return x, total

    def split_latent(self, z: Tensor) -> list[Tensor]:
        """z (B, D) -> one view (B, C, H, W) per scale, the first factored out first."""
        sizes = [shape.numel() for shape in self.shapes]
        check_width(z, sum(sizes))
        return [p.reshape(len(z), *s) for p, s in zip(z.split(sizes, dim=1), self.shapes)]

    def join_latent(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split_latent`."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class FlowDistribution(Distribution):
    """A flow behind torch's interface; log_prob is -inf at infinity, and if a square would be."""

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
        value, n_dims = as_tensor(value, "values"), len(self.event_shape)
        lead, rows = value.shape[: value.dim() - n_dims], value.reshape(-1, *value.shape[-n_dims:])
        rows, context = self.flow._fit(rows, self.event_shape, "values", self._rows(len(rows)))
        usable = _usable(rows)
        z, log_det = self.flow(torch.where(usable.view(-1, *[1] * n_dims), rows, 0), context)
        beyond = torch.where(rows.isnan().flatten(1).any(1), math.nan, -math.inf)
        return torch.where(usable, standard_normal_log_prob(z) + log_det, beyond).reshape(lead)

    def _rows(self, n):
        return None if self.context is None else self.context.expand(n, -1)
