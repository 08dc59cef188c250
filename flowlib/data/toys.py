"""Densities in the plane whose truth is known: a flow can be measured against them in nats, not only looked at."""

import math
from functools import cached_property

import numpy as np
import torch

from ..common import generator, integer

__all__ = ["Density", "TwoMoons", "Sinusoid", "Checkerboard", "TwoSpirals", "Rings", "Banana"]


class Density:
    """A known density in the plane.

    `box` is ((left, right), (bottom, top)), a rectangle that holds all but a negligible part of the mass.
    """

    box: tuple

    def sample(self, n, seed=None):
        """Draw n points: (n, 2) float32. seed: an integer, a torch.Generator, or None for torch's global generator."""
        return self._sample(integer("n", n, at_least=0), generator(seed)).float()

    def log_prob(self, x):
        """The exact log-density in nats, computed in float64 and returned in x's dtype: (n, 2) -> (n,)."""
        if not x.is_floating_point():
            raise ValueError(f"this density takes floating-point points, got {x.dtype}")
        if x.shape[1:] != (2,):
            raise ValueError(f"this density takes points of shape (n, 2), got {tuple(x.shape)}")
        return self._log_prob(x.double()).to(x.dtype)

    @cached_property
    def entropy(self):
        """-E[log p] in nats, in closed form where there is one, else by quadrature over `box`."""
        return self._grid_sums[1]

    @cached_property
    def mass(self):
        """The integral of the density over `box`, by the same quadrature: 1 up to its error."""
        return self._grid_sums[0]

    @cached_property
    def _grid_sums(self):
        """The sums of p and of -p log p over the midpoints of a grid with two cells per `noise`."""
        counts = [math.ceil(2 * (high - low) / self.noise) for low, high in self.box]
        steps = [(high - low) / n for (low, high), n in zip(self.box, counts)]
        xs, ys = (
            low + step * (torch.arange(n) + 0.5).double()
            for (low, _), step, n in zip(self.box, steps, counts)
        )
        mass = entropy = 0.0
        for column in xs.split(64):  # a strip at a time keeps the memory small
            p = self._log_prob(torch.cartesian_prod(column, ys)).exp()
            mass += p.sum().item() * math.prod(steps)
            entropy -= torch.special.xlogy(p, p).sum().item() * math.prod(steps)
        return mass, entropy

    def __repr__(self):
        return f"{type(self).__name__}(noise={self.noise})"


def positive(name, value):
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def normal(rows, columns, generator):
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def uniform(n, low, high, generator):
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def panels_of_gauss_legendre(low, high, count, order=16):
    """Nodes and weights of `count` equal panels between low and high, each with a Gauss-Legendre rule: (count * order,) twice."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(order))
    half = (high - low) / (2 * count)
    centres = low + half * (2 * torch.arange(count, dtype=torch.float64) + 1)
    return (centres[:, None] + half * nodes).flatten(), (half * weights).repeat(count)


class NoisyCurves(Density):
    """Points spread evenly (in t) along one of several curves, plus Gaussian noise.

    p(x) = mean over curves of the integral of N(x; curve(t), noise^2 I) dt / (t1 - t0): a one-dimensional quadrature.
    """

    def __init__(self, noise, t_range, speed, box):
        """`speed` is the largest |d curve / dt|: panels are at most four noise widths long."""
        self.noise = positive("noise", noise)
        self.t_range = t_range
        (left, right), (bottom, top) = box
        margin = 7 * self.noise
        self.box = ((left - margin, right + margin), (bottom - margin, top + margin))
        nodes, weights = panels_of_gauss_legendre(
            *t_range, count=math.ceil(speed * (t_range[1] - t_range[0]) / (4 * self.noise))
        )
        self._curve_points = self._curves(nodes)  # (curves, nodes, 2)
        self._log_weights = (weights / weights.sum()).log() - math.log(len(self._curve_points))

    def _curves(self, t):
        """t (T,) -> points on every curve (curves, T, 2)."""
        raise NotImplementedError

    def _sample(self, n, generator):
        curves = self._curves(uniform(n, *self.t_range, generator))
        choice = torch.randint(len(curves), (n,), generator=generator)
        return curves[choice, torch.arange(n)] + self.noise * normal(n, 2, generator)

    def _log_prob(self, x):
        nodes = self._curve_points.flatten(0, 1)
        log_weights = self._log_weights.repeat(len(self._curve_points)) - math.log(
            2 * math.pi * self.noise**2
        )
        chunks = []
        for rows in x.split(
            500
        ):  # explicit differences: exact far from the curve, where log p is very negative
            squared = (rows[:, :1] - nodes[:, 0]).square_() + (rows[:, 1:] - nodes[:, 1]).square_()
            chunks.append(torch.logsumexp(log_weights - squared / (2 * self.noise**2), dim=1))
        return torch.cat(chunks) if chunks else x.new_zeros(0)


class TwoMoons(NoisyCurves):
    """The two half circles of scikit-learn's `make_moons` with Gaussian noise: (cos t, sin t) and (1 - cos t, 1/2 - sin t).

    t is drawn uniformly from (0, pi), where scikit-learn spaces it evenly. At noise 0.05 the entropy is 0.2892 nats.
    """

    def __init__(self, noise=0.05):
        super().__init__(noise, t_range=(0.0, math.pi), speed=1.0, box=((-1.0, 2.0), (-0.5, 1.0)))

    def _curves(self, t):
        upper = torch.stack([t.cos(), t.sin()], dim=1)
        return torch.stack([upper, torch.tensor([1.0, 0.5]) - upper])


class TwoSpirals(NoisyCurves):
    """Two interleaved spirals of one and a half turns, growing from radius 0.3 to 3: +-(0.3 + 0.9 t / pi) (cos t, sin t)."""

    def __init__(self, noise=0.1):
        super().__init__(
            noise, t_range=(0.0, 3 * math.pi), speed=3.1, box=((-3.0, 3.0), (-3.0, 3.0))
        )

    def _curves(self, t):
        arm = (0.3 + 0.9 * t / math.pi)[:, None] * torch.stack([t.cos(), t.sin()], dim=1)
        return torch.stack([arm, -arm])


class Sinusoid(Density):
    """y = sin x + noise with x uniform on (-pi, pi).

    log p(x, y) = -log 2 pi + log N(y; sin x, noise^2) inside, -infinity outside; entropy log 2 pi + 1/2 log(2 pi e noise^2).
    """

    def __init__(self, noise=0.1):
        self.noise = positive("noise", noise)
        self.box = ((-math.pi, math.pi), (-1 - 7 * self.noise, 1 + 7 * self.noise))

    @property
    def entropy(self):
        return math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi * math.e * self.noise**2)

    def _sample(self, n, generator):
        x = uniform(n, -math.pi, math.pi, generator)
        return torch.stack([x, x.sin() + self.noise * normal(n, 1, generator)[:, 0]], dim=1)

    def _log_prob(self, x):
        x, y = x.unbind(1)
        residual = (y - x.sin()) / self.noise
        log_p = -0.5 * residual.square() - math.log(self.noise) - 1.5 * math.log(2 * math.pi)
        return log_p.masked_fill(
            x.abs() > float(np.float32(math.pi)), -math.inf
        )  # samples are float32, and may round up to the edge


class Checkerboard(Density):
    """Uniform on the eight dark unit squares of a 4 x 4 board over (-2, 2)^2; entropy log 8."""

    box = ((-2.0, 2.0), (-2.0, 2.0))
    noise = 0.125  # the edges are sharp: this is only the width that the quadrature resolves
    entropy = math.log(8)

    def _sample(self, n, generator):
        column = torch.randint(4, (n,), generator=generator)
        row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
        within = torch.rand(n, 2, generator=generator, dtype=torch.float64).clamp(
            max=1 - 2**-22
        )  # stays inside in float32
        return torch.stack([column, row], dim=1) - 2 + within

    def __repr__(self):
        return "Checkerboard()"

    def _log_prob(self, x):
        column, row = (x.floor() + 2).unbind(1)
        inside = ((x >= -2) & (x < 2)).all(1) & ((column + row) % 2 == 0)
        return x.new_full((len(x),), -math.log(8)).masked_fill(~inside, -math.inf)


class Rings(Density):
    """Three concentric circles of radius 1, 2 and 3, equally likely, with Gaussian noise.

    A circle of radius R convolved with N(0, noise^2 I) has the closed form
    exp(-(r - R)^2 / (2 noise^2)) I0e(r R / noise^2) / (2 pi noise^2), I0e the scaled Bessel function.
    """

    radii = (1.0, 2.0, 3.0)

    def __init__(self, noise=0.08):
        self.noise = positive("noise", noise)
        reach = max(self.radii) + 7 * self.noise
        self.box = ((-reach, reach), (-reach, reach))

    def _sample(self, n, generator):
        radius = torch.tensor(self.radii, dtype=torch.float64)[
            torch.randint(len(self.radii), (n,), generator=generator)
        ]
        angle = uniform(n, 0, 2 * math.pi, generator)
        circle = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return circle + self.noise * normal(n, 2, generator)

    def _log_prob(self, x):
        r, radii = x.norm(dim=1, keepdim=True), torch.tensor(self.radii, dtype=torch.float64)
        bessel = torch.special.i0e(r * radii / self.noise**2).log()
        log_ring = (
            -0.5 * ((r - radii) / self.noise).square()
            + bessel
            - math.log(2 * math.pi * self.noise**2)
        )
        return torch.logsumexp(log_ring, dim=1) - math.log(len(self.radii))


class Banana(Density):
    """A bent Gaussian: x ~ N(0, 1), y = x^2 - 1 + noise. Bending preserves volume, so the entropy is the Gaussian's."""

    def __init__(self, noise=0.3):
        self.noise = positive("noise", noise)
        self.box = ((-5.0, 5.0), (-1 - 7 * self.noise, 24 + 7 * self.noise))

    @property
    def entropy(self):
        return math.log(2 * math.pi * math.e) + math.log(self.noise)

    def _sample(self, n, generator):
        x, e = normal(n, 2, generator).unbind(1)
        return torch.stack([x, x.square() - 1 + self.noise * e], dim=1)

    def _log_prob(self, x):
        x, y = x.unbind(1)
        residual = (y - x.square() + 1) / self.noise
        return -0.5 * (x.square() + residual.square()) - math.log(2 * math.pi * self.noise)
