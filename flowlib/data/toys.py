"""Densities in the plane whose truth is known: a flow is measured against them in nats."""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..common import as_tensor, generator, integer, on_cpu, positive, rand, randn

DOUBLE = torch.empty(0, dtype=torch.float64)


class Density:
    """A known density in the plane; subclasses give `_sample` and `_log_prob`, both in float64.

    `box`, ((left, right), (bottom, top)), holds all but a negligible part of the mass.
    """

    def sample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw n points: (n, 2) float32, on the CPU or on the device of the generator given.

        None means torch's global generator. Raises ValueError for a negative n.

        >>> TwoMoons().sample(3, seed=0).shape
        torch.Size([3, 2])
        """
        n, rng = integer("n", n, at_least=0), generator(seed)
        points = self._sample(n, on_cpu(rng)).float()
        return points if rng is None else points.to(rng.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density in nats, (n, 2) -> (n,), computed in float64, given as x is.

        >>> Sinusoid().log_prob(torch.zeros(1, 2))
        tensor([-0.4542])
        """
        x = as_tensor(x, "points")
        if not x.is_floating_point():
            raise ValueError(f"this density takes floating-point points, got {x.dtype}")
        if x.shape[1:] != (2,):
            raise ValueError(f"this density takes points of shape (n, 2), got {tuple(x.shape)}")
        exact = x.cpu() if x.device.type == "mps" else x  # which has no float64
        return self._log_prob(exact.double()).to(x)

    @cached_property
    def entropy(self) -> float:
        """-E[log p] in nats, in closed form, or by the midpoint rule, two cells per `noise`.

        >>> round(TwoMoons(noise=0.05).entropy, 4)
        0.2892
        """
        axes, area = [], 1.0
        for low, high in self.box:
            n = math.ceil(2 * (high - low) / self.noise)
            axes.append(low + (high - low) / n * (torch.arange(n, dtype=torch.float64) + 0.5))
            area *= (high - low) / n
        p = self._log_prob(torch.cartesian_prod(*axes)).exp()
        return -torch.special.xlogy(p, p).sum().item() * area

    def __repr__(self):
        return f"{type(self).__name__}(noise={self.noise})"


def uniform(n, low, high, rng):
    return low + (high - low) * rand((n,), rng, like=DOUBLE)


class NoisyCurves(Density):
    """Points spread evenly (in t) along one of several curves, plus Gaussian noise.

    p(x) = mean over curves of the integral of N(x; curve(t), noise^2 I) dt / (t1 - t0), by the
    Gauss-Legendre rule. Subclasses give `_curves(t)`: t (T,) -> their points (curves, T, 2).
    """

    def __init__(self, noise, t_range, speed, box):
        """`speed` is the largest |d curve / dt|: panels are at most four noise widths long."""
        self.noise, self.t_range, (low, high) = positive("noise", noise), t_range, t_range
        self.box = tuple((start - 7 * self.noise, end + 7 * self.noise) for start, end in box)
        nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
        panels = math.ceil(speed * (high - low) / (4 * self.noise))
        half = (high - low) / (2 * panels)
        centres = low + half * (2 * torch.arange(panels, dtype=torch.float64) + 1)
        curves = self._curves((centres[:, None] + half * nodes).flatten())
        weights = weights.repeat(len(curves) * panels) / (2 * len(curves) * panels)
        self._nodes = curves.flatten(0, 1)
        self._log_weights = weights.log() - math.log(2 * math.pi * self.noise**2)

    def _sample(self, n, rng):
        curves = self._curves(uniform(n, *self.t_range, rng))
        choice = torch.randint(len(curves), (n,), generator=rng)
        return curves[choice, torch.arange(n)] + self.noise * randn((n, 2), rng, like=DOUBLE)

    def _log_prob(self, x):
        nodes, log_weights = self._nodes.to(x.device), self._log_weights.to(x.device)
        pieces = [x.new_zeros(0)]
        for rows in x.split(100):  # which fit into a processor's cache
            # Explicit differences are exact far from the curve, where log p is very negative.
            squared = (rows[:, :1] - nodes[:, 0]).square() + (rows[:, 1:] - nodes[:, 1]).square()
            pieces.append(torch.logsumexp(log_weights - squared / (2 * self.noise**2), dim=1))
        return torch.cat(pieces)


class TwoMoons(NoisyCurves):
    """The half circles (cos t, sin t) and (1 - cos t, 1/2 - sin t) with Gaussian noise.

    scikit-learn's `make_moons` spaces t evenly over (0, pi); here it is drawn uniformly.
    """

    def __init__(self, noise: float = 0.05):
        super().__init__(noise, t_range=(0.0, math.pi), speed=1.0, box=((-1.0, 2.0), (-0.5, 1.0)))

    def _curves(self, t):
        upper = torch.stack([t.cos(), t.sin()], dim=1)
        return torch.stack([upper, upper.new_tensor([1.0, 0.5]) - upper])


class TwoSpirals(NoisyCurves):
    """Two interleaved spirals of one and a half turns, +-(0.3 + 0.9 t / pi) (cos t, sin t)."""

    def __init__(self, noise: float = 0.1):
        box = ((-3.0, 3.0), (-3.0, 3.0))
        super().__init__(noise, t_range=(0.0, 3 * math.pi), speed=3.1, box=box)

    def _curves(self, t):
        arm = (0.3 + 0.9 * t / math.pi)[:, None] * torch.stack([t.cos(), t.sin()], dim=1)
        return torch.stack([arm, -arm])


class Sinusoid(Density):
    """y = sin x + noise with x uniform on (-pi, pi); log p is -infinity outside.

    >>> round(Sinusoid(noise=0.1).entropy, 4)
    0.9542
    """

    def __init__(self, noise: float = 0.1):
        self.noise = positive("noise", noise)
        self.box = ((-math.pi, math.pi), (-1 - 7 * self.noise, 1 + 7 * self.noise))
        self.entropy = math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi * math.e * self.noise**2)

    def _sample(self, n, rng):
        x = uniform(n, -math.pi, math.pi, rng)
        return torch.stack([x, x.sin() + self.noise * randn((n, 1), rng, like=DOUBLE)[:, 0]], dim=1)

    def _log_prob(self, x):
        x, y = x.unbind(1)
        residual = (y - x.sin()) / self.noise
        log_p = -0.5 * residual.square() - math.log(self.noise) - 1.5 * math.log(2 * math.pi)
        edge = float(np.float32(math.pi))  # samples are float32, and may round up to it
        return log_p.masked_fill(x.abs() > edge, -math.inf)


class Checkerboard(Density):
    """Uniform on the eight dark unit squares of a 4 x 4 board over (-2, 2)^2: entropy log 8.

    >>> Checkerboard().log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]])).exp()
    tensor([0.1250, 0.0000])
    """

    box = ((-2.0, 2.0), (-2.0, 2.0))
    noise = 0.125  # the edges are sharp: this is only the width that the quadrature resolves
    entropy = math.log(8)

    def _sample(self, n, rng):
        column = torch.randint(4, (n,), generator=rng)
        row = 2 * torch.randint(2, (n,), generator=rng) + column % 2
        within = rand((n, 2), rng, like=DOUBLE).clamp(max=1 - 2**-22)  # below 1 in float32, too
        return torch.stack([column, row], dim=1) - 2 + within

    def __repr__(self):
        return "Checkerboard()"

    def _log_prob(self, x):
        column, row = (x.floor() + 2).unbind(1)
        inside = ((x >= -2) & (x < 2)).all(1) & ((column + row) % 2 == 0)
        return x.new_full((len(x),), -math.log(8)).masked_fill(~inside, -math.inf)


class Rings(Density):
    """Three concentric circles of radius 1, 2 and 3, equally likely, with Gaussian noise.

    A circle of radius R convolved with N(0, noise^2 I) has the closed form exp(-(r - R)^2 /
    (2 noise^2)) I0e(r R / noise^2) / (2 pi noise^2), I0e the scaled Bessel function.

    >>> Rings().sample(1_000, seed=0).norm(dim=1).round().unique()
    tensor([1., 2., 3.])
    """

    radii = (1.0, 2.0, 3.0)

    def __init__(self, noise: float = 0.08):
        self.noise = positive("noise", noise)
        reach = max(self.radii) + 7 * self.noise
        self.box = ((-reach, reach), (-reach, reach))

    def _sample(self, n, rng):
        choice = torch.randint(len(self.radii), (n,), generator=rng)
        radius = torch.tensor(self.radii, dtype=torch.float64)[choice]
        angle = uniform(n, 0, 2 * math.pi, rng)
        circle = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return circle + self.noise * randn((n, 2), rng, like=DOUBLE)

    def _log_prob(self, x):
        r, radii = x.norm(dim=1, keepdim=True), x.new_tensor(self.radii)
        bessel = torch.special.i0e(r * radii / self.noise**2).log()
        log_rings = -0.5 * ((r - radii) / self.noise).square() + bessel
        return torch.logsumexp(log_rings, dim=1) - math.log(3 * 2 * math.pi * self.noise**2)
