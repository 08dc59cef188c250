"""Every planted bug is caught by a named row, and no healthy flow is flagged."""

import copy
import math
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import nn

from flowlib import Flow, checks, data, losses, models, training
from flowlib.bijections import Bijection, Chain, Diagonal, Flatten, Logit, Permute, SoftLog, Squeeze
from flowlib.checks import check_flow
from flowlib.coupling import AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.masks import alternating, checkerboard
from flowlib.networks import MLP
from flowlib.norms import ActNorm, BatchNorm

MOONS = data.TwoMoons(noise=0.05)
X = MOONS.sample(256, seed=0)
RNG = torch.Generator().manual_seed(0)
WIDE = torch.randn(256, 4, generator=RNG)
IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=RNG) // 2
PIXELS = (IMAGES.flatten(1) + torch.rand(64, 64, generator=RNG)) / 256


def coupling(flip=False, kind=AffineCoupling, D=2):
    torch.manual_seed(int(flip))
    return kind(alternating(D, flip=flip), MLP(D // 2, D, (16,)))


def flow_2d(*layers, flow=Flow):
    torch.manual_seed(0)
    return randomise(flow(Chain(*layers), shape=(2,)))


def pair(kind=AffineCoupling, flow=Flow):
    return flow_2d(coupling(kind=kind), coupling(flip=True, kind=kind), flow=flow)


def with_layer(layer):
    return flow_2d(coupling(), layer, coupling(flip=True))


def flow_4d(*layers):
    torch.manual_seed(0)
    first, last = coupling(D=4), coupling(flip=True, D=4)
    return randomise(Flow(Chain(first, *layers, last), shape=(4,)))


def of_images(dequantize=None, flow=Flow, logit=Logit):
    torch.manual_seed(0)
    boards = [checkerboard(8, 8, flip=flip).flatten() for flip in (False, True)]
    layers = [AffineCoupling(board, MLP(32, 64, (16,))) for board in boards]
    first = [dequantize or Dequantize(), logit(), Flatten((1, 8, 8))]
    return randomise(flow(Chain(*first, *layers), shape=(1, 8, 8)), size=0.05)


def continuous_images():
    layers = [coupling(flip, D=64) for flip in (False, True)]
    return randomise(Flow(Chain(*layers), shape=(64,)), size=0.05)


def changed(base, **methods):
    """A subclass of a layer or flow with other methods, which are given the original ones."""
    body = {
        name: lambda self, *args, _name=name, _method=method, **kwargs: _method(
            getattr(super(kind, self), _name), self, *args, **kwargs
        )
        for name, method in methods.items()
    }
    kind = type(f"Changed{base.__name__}", (base,), body)
    return kind


class Layer(Bijection):
    """z = x exp(s) + b, written out; the bugs of other people's layers are planted in it."""

    def __init__(self, D=2):
        super().__init__()
        self.log_scale, self.shift = nn.Parameter(torch.ones(D) / 3), nn.Parameter(torch.zeros(D))

    def forward(self, x, context=None):
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        return (z - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class Reordered(Bijection):
    """A permutation that is drawn when the layer is made, and kept by `keep`."""

    def __init__(self, D):
        super().__init__()
        self.keep(D)

    def keep(self, D):
        self.order = torch.randperm(D)

    def forward(self, x, context=None):
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z, context=None):
        return z[:, np.argsort(self.order)], z.new_zeros(len(z))


class ListedOrder(Reordered):
    def keep(self, D):
        self.order = random.sample(range(D), D)


class ArrayOrder(Reordered):
    def keep(self, D):
        self.order = np.random.permutation(D)


class UnsavedOrder(Reordered):
    def keep(self, D):
        self.register_buffer("order", torch.randperm(D), persistent=False)


class RandomBound(AffineCoupling):
    def __init__(self, mask, network):
        super().__init__(mask, network)
        self.bound = random.uniform(1, 3)

    def shift_and_log_scale(self, kept, context=None):
        shift, s = super().shift_and_log_scale(kept, context)
        return shift, self.bound * s


class FlipsOnLoad(Layer):
    """Its sign is turned whenever it is loaded."""

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.log_scale.data.neg_()


class Forgetful(Layer):
    """Remembers in a Python attribute that it has been initialised."""

    def __init__(self, D=2):
        super().__init__(D)
        self.ready = False

    def forward(self, x, context=None):
        if not self.ready:
            self.log_scale.data = -x.std(0).log().detach()
            self.shift.data = (-x.mean(0) / x.std(0)).detach()
            self.ready = True
        return super().forward(x)


class PlainStatistics(Layer):
    """Running statistics that are no buffers."""

    def __init__(self, D=2):
        super().__init__(D)
        self.mean = torch.zeros(D)

    def forward(self, x, context=None):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().forward(x - self.mean)

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x + self.mean, log_det


class StaleInverse(Layer):
    """A cached inverse scale that survives new weights."""

    cached = None

    def inverse(self, z, context=None):
        if self.cached is None:
            self.cached = (-self.log_scale).exp().detach()
        return (z - self.shift) * self.cached, -self.log_scale.sum().expand(len(z))


class HiddenWeights(Layer):
    """Its weights are in a plain list."""

    def __init__(self, D=2):
        super().__init__(D)
        self.more = [nn.Linear(D, D)]

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z + self.more[0].bias, log_det

    def inverse(self, z, context=None):
        return super().inverse(z - self.more[0].bias)


class OtherHalf(Bijection):
    """Scales the right half, and counts the other in the log-determinant."""

    def __init__(self, flip):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        self.register_buffer("m", alternating(2, flip=flip).float())

    def step(self, x):
        shift, s = self.network(self.m * x).chunk(2, 1)
        return shift, s.tanh()

    def forward(self, x, context=None):
        shift, s = self.step(x)
        return self.m * x + (1 - self.m) * (x * s.exp() + shift), (self.m * s).sum(1)

    def inverse(self, z, context=None):
        shift, s = self.step(z)
        return self.m * z + (1 - self.m) * (z - shift) * (-s).exp(), -(self.m * s).sum(1)


class NotComplementary(OtherHalf):
    """The scale acts on the half that decides on it."""

    def forward(self, x, context=None):
        shift, s = self.step(x)
        return x * (self.m * s).exp() + (1 - self.m) * shift, (self.m * s).sum(1)

    def inverse(self, z, context=None):
        shift, s = self.step(z)
        return (z - (1 - self.m) * shift) * (-self.m * s).exp(), -(self.m * s).sum(1)


def batch_norm_log_det(forward, self, x, context=None):
    return forward(x)[0], -0.5 * (self.running_var + self.eps).sum().expand(len(x))


def leaky(forward, self, x, context=None):
    self.training = True
    out = forward(x)
    self.training = False
    return out


def image_layer(*layers):
    torch.manual_seed(0)
    boards = [checkerboard(4, 4, flip=flip).flatten() for flip in (False, True)]
    couplings = [AffineCoupling(board, MLP(8, 16, (16,))) for board in boards]
    return randomise(Flow(Chain(*layers, *couplings), shape=(1, 4, 4)))


def dead_network():
    flow = pair()
    nn.init.constant_(flow.bijection[0].network[0].bias, -100.0)
    return flow


def zero_times_zero():
    flow = models.realnvp_2d(depth=2, hidden=(16,))
    for layer in flow.bijection[1:]:
        nn.init.zeros_(layer.rescale)
    return flow


def broken(value):
    flow = pair()
    nn.init.constant_(flow.bijection[1].rescale, value)
    return flow


def averaged(eps=1.0):
    """As after training with averaged weights: the running statistics are those of others."""
    flow = with_layer(BatchNorm(2))
    flow.bijection[1].running_var.fill_(40.0)
    return flow


def deep():
    torch.manual_seed(0)
    layers = [AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, (16,))) for i in range(16)]
    return randomise(Flow(Chain(*layers), shape=(2,)), size=0.5)


def replaced(out, i, change):
    """The output (y, log_det) with one of them changed."""
    return tuple(change(value) if k == i else value for k, value in enumerate(out))


negated = {"forward": lambda f, s, x, c=None: replaced(f(x, c), 1, torch.neg)}
IDENTITY = {"inverse": lambda z: z}


def scaled(factor):
    return lambda f, self, *args, **kwargs: factor * f(*args, **kwargs)


def seeded(f, self, n, temperature=1.0, seed=None, context=None):
    return f(n, temperature, None, context)


def cold(f, self, n, temperature=1.0, seed=None, context=None):
    return f(n, 1.0, seed, context)


def hot(f, self, n, temperature=1.0, seed=None, context=None):
    return f(n, 1.2 * temperature, seed, context)


def no_graph(f, self, *args, **kwargs):
    with torch.no_grad():
        return f(*args, **kwargs)


def single(f, self, x, c=None):
    return replaced(f(x.float().to(x.dtype), c), 0, lambda z: z.float().to(x.dtype))


def branch(f, self, x, c=None):
    z, log_det = f(x, c)
    return z, torch.where(x[:, 0] > 1.5, -log_det, log_det)


nll = losses.nll
L, A, D = Layer, AffineCoupling, Dequantize
BUGS = {  # name: (the check that must fail, the flow, data, further arguments)
    # the loss and what is reported
    "log_det alone": ("prior in the loss", pair, X, {"loss": lambda z, d: -d.mean()}),
    "wrong sign in the loss": ("log_det in the loss", pair, X, {"loss": lambda z, d: nll(z, -d)}),
    "no log_det in the loss": (
        "log_det in the loss",
        pair,
        X,
        {"loss": lambda z, d: nll(z, 0 * d)},
    ),
    "prior averaged over dimensions": (
        "prior in the loss",
        pair,
        X,
        {"loss": lambda z, d: z.square().mean() / 2 - d.mean()},
    ),
    "prior without its half": (
        "prior in the loss",
        pair,
        X,
        {"loss": lambda z, d: (z.square().sum(1) - d).mean()},
    ),
    "log_det over D": (
        "prior in the loss",
        pair,
        X,
        {"loss": lambda z, d: (z.square().sum(1) / 2 - d / 2).mean()},
    ),
    "no log 256": ("bits/dim", of_images, IMAGES, {"bits_per_dim": -3.0}),
    # shapes
    "log_det is a mean": (
        "shape of log_det",
        None,
        X,
        {"forward": lambda x: (x, x.mean())} | IDENTITY,
    ),
    "log_det is 0": ("shape of log_det", None, X, {"forward": lambda x: (x, 0)} | IDENTITY),
    "log_det is 0.0": ("shape of log_det", None, X, {"forward": lambda x: (x, 0.0)} | IDENTITY),
    "log_det is a column": (
        "shape of log_det",
        None,
        X,
        {"forward": lambda x: (x, x[:, :1])} | IDENTITY,
    ),
    "log_det is per dimension": (
        "shape of log_det",
        None,
        X,
        {"forward": lambda x: (x, 0 * x)} | IDENTITY,
    ),
    "log_det of integers": (
        "shape of log_det",
        None,
        X,
        {"forward": lambda x: (x, x[:, 0].long())} | IDENTITY,
    ),
    "z alone": ("shape of log_det", None, X, {"forward": lambda x: x} | IDENTITY),
    "a dimension lost": (
        "shape of log_det",
        None,
        X,
        {"forward": lambda x: (x[:, :1], x[:, 0])} | IDENTITY,
    ),
    "forward raises": ("shape of log_det", None, X, {"forward": lambda x: x @ x} | IDENTITY),
    "inverse raises": (
        "round trip of data",
        None,
        X,
        {
            "forward": lambda x: (x, 0 * x[:, 0]),
            "inverse": lambda z: z @ z,
        },
    ),
    "weights that are no numbers": ("finite", lambda: broken(math.nan), X, {}),
    # log_det of layers
    "wrong sign": ("log_det of forward", lambda: pair(changed(A, **negated)), X, {}),
    "mean over dimensions": (
        "log_det of forward",
        lambda: with_layer(
            changed(L, forward=lambda f, s, x, c=None: replaced(f(x), 1, lambda d: d / 2))()
        ),
        X,
        {},
    ),
    "the other half": (
        "log_det of forward",
        lambda: flow_2d(OtherHalf(False), OtherHalf(True)),
        X,
        {},
    ),
    "a branch": ("log_det of forward", lambda: pair(changed(A, forward=branch)), X, {}),
    "density of mass 1.4": (
        "integral of the density",
        lambda: with_layer(
            changed(L, forward=lambda f, s, x, c=None: replaced(f(x), 1, lambda d: d + 0.35))()
        ),
        X,
        {},
    ),
    "batch norm without its log": (
        "log_det of forward",
        lambda: with_layer(changed(BatchNorm, forward=batch_norm_log_det)(2)),
        X,
        {},
    ),
    "actnorm without positions": (
        "log_det of forward",
        lambda: image_layer(
            changed(ActNorm, forward=lambda f, s, x, c=None: replaced(f(x), 1, lambda d: d / 16))(
                1
            ),
            Flatten((1, 4, 4)),
        ),
        torch.randn(32, 1, 4, 4, generator=RNG),
        {},
    ),
    "logit's log_det left out": (
        "log_det of forward",
        lambda: of_images(
            logit=changed(
                Logit, forward=lambda f, s, x, c=None: replaced(f(x), 1, torch.zeros_like)
            )
        ),
        IMAGES,
        {},
    ),
    "SoftLog of the wrong sign": (
        "log_det of forward",
        lambda: with_layer(changed(SoftLog, **negated)(0.5)),
        X,
        {},
    ),
    "SoftLog's inverse log_det": (
        "log_det of inverse",
        lambda: with_layer(changed(SoftLog, inverse=negated["forward"])(0.5)),
        X,
        {},
    ),
    "no log_det of inverse": (
        "log_det of inverse",
        lambda: pair(
            changed(A, inverse=lambda f, s, z, c=None: replaced(f(z, c), 1, torch.zeros_like))
        ),
        X,
        {},
    ),
    # inverses
    "masks not complementary": (
        "round trip of data",
        lambda: flow_2d(NotComplementary(False), NotComplementary(True)),
        X,
        {},
    ),
    "joined in another order": (
        "round trip of data",
        lambda: pair(changed(A, join=lambda f, s, kept, changed: torch.cat([changed, kept], 1))),
        X,
        {},
    ),
    "un-squeezed in another order": (
        "round trip of data",
        lambda: image_layer(
            changed(
                Squeeze,
                inverse=lambda f, s, z, c=None: (
                    F.pixel_shuffle(z.flip(1), 2),
                    z.new_zeros(len(z)),
                ),
            )(),
            Flatten((4, 2, 2)),
        ),
        torch.randn(32, 1, 4, 4, generator=RNG),
        {},
    ),
    "a permutation not undone": (
        "round trip of data",
        lambda: flow_4d(changed(Permute, inverse=lambda f, s, z, c=None: s(z))([1, 2, 3, 0])),
        WIDE,
        {},
    ),
    "a clamp in inverse": (
        "round trip of latents",
        lambda: with_layer(changed(L, inverse=lambda f, s, z, c=None: f(z.clamp(-1, 1)))()),
        X,
        {},
    ),
    "a clamp in forward": (
        "round trip of data",
        lambda: with_layer(changed(L, forward=lambda f, s, x, c=None: f(x.clamp(-1, 1)))()),
        X,
        {},
    ),
    "a clamp beyond these data": (
        "log_det far from the data",
        lambda: with_layer(changed(L, forward=lambda f, s, x, c=None: f(x.clamp(-8, 8)))()),
        X,
        {},
    ),
    "a clamp far beyond these data": (
        "log_det far from the data",
        lambda: flow_4d(changed(L, forward=lambda f, s, x, c=None: f(x.clamp(-50, 50)))(4)),
        WIDE,
        {},
    ),
    "bfloat16 inside": (
        "round trip of data",
        lambda: with_layer(
            changed(
                L,
                forward=lambda f, s, x, c=None: replaced(
                    f(x), 0, lambda z: z.bfloat16().to(x.dtype)
                ),
            )()
        ),
        X,
        {},
    ),
    "rounding grows with depth": ("round trip of data", deep, X, {}),
    # the flow around its layers
    "the flow's forward negates": (
        "log_det of forward",
        lambda: pair(
            flow=changed(
                Flow,
                forward=lambda f, s, x, c=None, noise=None: replaced(f(x, c, noise), 1, torch.neg),
            )
        ),
        X,
        {},
    ),
    "the image flow's forward negates": (
        "log_det of forward",
        lambda: of_images(
            flow=changed(
                Flow,
                forward=lambda f, s, x, c=None, noise=None: replaced(f(x, c, noise), 1, torch.neg),
            )
        ),
        IMAGES,
        {},
    ),
    "the flow's inverse negates": (
        "log_det of inverse",
        lambda: pair(flow=changed(Flow, inverse=negated["forward"])),
        X,
        {},
    ),
    "the image flow's inverse negates": (
        "log_det of inverse",
        lambda: of_images(flow=changed(Flow, inverse=negated["forward"])),
        IMAGES,
        {},
    ),
    "log_prob without 2 pi": (
        "log_prob",
        lambda: pair(
            flow=changed(Flow, log_prob=lambda f, s, *a, **k: f(*a, **k) + math.log(2 * math.pi))
        ),
        X,
        {},
    ),
    "log_prob subtracts log_det": (
        "log_prob",
        lambda: pair(
            flow=changed(Flow, log_prob=lambda f, s, x, *a, **k: f(x, *a, **k) - 2 * s(x)[1])
        ),
        X,
        {},
    ),
    "log_prob of negative sign": (
        "log_prob",
        lambda: pair(flow=changed(Flow, log_prob=scaled(-1))),
        X,
        {},
    ),
    "log_prob is a mean": (
        "log_prob",
        lambda: pair(flow=changed(Flow, log_prob=lambda f, s, *a, **k: f(*a, **k).mean())),
        X,
        {},
    ),
    "log_prob per dimension": (
        "log_prob",
        lambda: of_images(flow=changed(Flow, log_prob=scaled(1 / 64))),
        IMAGES,
        {},
    ),
    "log_prob without a graph": (
        "log_prob",
        lambda: pair(flow=changed(Flow, log_prob=no_graph)),
        X,
        {},
    ),
    "samples too wide": ("samples", lambda: pair(flow=changed(Flow, sample=hot)), X, {}),
    "images too wide": ("samples", lambda: of_images(flow=changed(Flow, sample=hot)), IMAGES, {}),
    "latents too wide": (
        "samples",
        lambda: pair(flow=changed(Flow, draw_latents=scaled(1.1))),
        X,
        {},
    ),
    "uniform latents": (
        "samples",
        lambda: pair(
            flow=changed(Flow, draw_latents=lambda f, s, n, g=None: torch.rand(n, 2, generator=g))
        ),
        X,
        {},
    ),
    "temperature forgotten": ("samples", lambda: pair(flow=changed(Flow, sample=cold)), X, {}),
    "seed forgotten": ("samples", lambda: pair(flow=changed(Flow, sample=seeded)), X, {}),
    "samples by forward": (
        "samples",
        lambda: pair(
            flow=changed(
                Flow,
                sample=lambda f, s, n, temperature=1.0, seed=None, context=None: s(
                    f(n, temperature, seed)
                )[0],
            )
        ),
        X,
        {},
    ),
    # noise
    "log 255": (
        "log_det of forward",
        lambda: of_images(
            changed(
                D,
                forward=lambda f, s, x, c=None, noise=None: replaced(
                    f(x, c, noise), 1, lambda d: d * math.log(255) / math.log(256)
                ),
            )()
        ),
        IMAGES,
        {},
    ),
    "Dequantize of the wrong sign": (
        "log_det of forward",
        lambda: of_images(
            changed(
                D,
                forward=lambda f, s, x, c=None, noise=None: replaced(f(x, c, noise), 1, torch.neg),
            )()
        ),
        IMAGES,
        {},
    ),
    "Dequantize's inverse of the wrong sign": (
        "log_det of inverse",
        lambda: of_images(changed(D, inverse=negated["forward"])()),
        IMAGES,
        {},
    ),
    "rounded in place of floored": (
        "round trip of images",
        lambda: of_images(changed(D, inverse=lambda f, s, z, c=None: f(z + 0.6 / 256))()),
        IMAGES,
        {},
    ),
    "half of the noise": (
        "dequantisation noise",
        lambda: of_images(changed(D, draw_noise=scaled(0.5))()),
        IMAGES,
        {},
    ),
    "half of the noise in forward": (
        "dequantisation noise",
        lambda: of_images(
            changed(
                D,
                forward=lambda f, s, x, c=None, noise=None: f(
                    x, c, s.draw_noise(x.shape) / 2 if noise is None else noise
                ),
            )()
        ),
        IMAGES,
        {},
    ),
    "one noise for all pixels": (
        "dequantisation noise",
        lambda: of_images(
            changed(
                D, draw_noise=lambda f, s, shape, g=None: f((shape[0], 1, 1, 1), g).expand(shape)
            )()
        ),
        IMAGES,
        {},
    ),
    "one noise for all images": (
        "dequantisation noise",
        lambda: of_images(
            changed(D, draw_noise=lambda f, s, shape, g=None: f((1, *shape[1:]), g).expand(shape))()
        ),
        IMAGES,
        {},
    ),
    "half of the noise, outside": (
        "dequantisation noise",
        continuous_images,
        PIXELS - PIXELS % (1 / 256) / 2,
        {},
    ),
    "no noise": ("data are continuous", continuous_images, IMAGES.flatten(1) / 255, {}),
    # gradients
    "log_det detached": (
        "gradients through both directions",
        lambda: pair(
            changed(A, forward=lambda f, s, x, c=None: replaced(f(x, c), 1, torch.detach))
        ),
        X,
        {},
    ),
    "half of log_det detached": (
        "gradients through both directions",
        lambda: flow_2d(
            coupling(),
            coupling(
                True, changed(A, forward=lambda f, s, x, c=None: replaced(f(x, c), 1, torch.detach))
            ),
        ),
        X,
        {},
    ),
    "shift detached": (
        "gradients through both directions",
        lambda: pair(
            changed(A, shift_and_log_scale=lambda f, s, *a: replaced(f(*a), 0, torch.detach))
        ),
        X,
        {},
    ),
    "inverse under no_grad": (
        "gradients through both directions",
        lambda: pair(changed(A, inverse=no_graph)),
        X,
        {},
    ),
    "forward under no_grad": (
        "gradients through both directions",
        lambda: pair(changed(A, forward=no_graph)),
        X,
        {},
    ),
    "zero times zero": ("parameters without gradient", zero_times_zero, X, {}),
    "a dead network": ("dead networks", dead_network, X, {}),
    # scales, masks, precision
    "scales without a bound": (
        "bound on the scales",
        lambda: pair(
            changed(
                A, shift_and_log_scale=lambda f, s, kept, c=None: s.run_network(kept, c).chunk(2, 1)
            )
        ),
        X,
        {},
    ),
    "masks never alternate": (
        "dimensions never coupled",
        lambda: flow_2d(coupling(), ActNorm(2), coupling()),
        X,
        {},
    ),
    "float32 inside": (
        "arithmetic in float64",
        lambda: pair(changed(A, forward=single)).double(),
        X.double(),
        {},
    ),
    # modes
    "noise in a layer": (
        "determinism",
        lambda: pair(
            changed(A, forward=lambda f, s, x, c=None: f(x + 0.01 * torch.randn_like(x), c))
        ),
        X,
        {},
    ),
    "dropout left on": (
        "determinism",
        lambda: pair(changed(A, run_network=lambda f, s, *a: F.dropout(f(*a), 0.2))),
        X,
        {},
    ),
    "batch norm leaks": (
        "rows leak into one another",
        lambda: with_layer(changed(BatchNorm, forward=leaky)(2)),
        X,
        {},
    ),
    "the batch's mean in inverse": (
        "rows leak into one another",
        lambda: with_layer(changed(L, inverse=lambda f, s, z, c=None: f(z - z.mean(0)))()),
        X,
        {},
    ),
    "statistics of other weights": ("training and evaluation", averaged, X, {}),
    # state
    "ActNorm starts again": ("state lost by saving", lambda: with_layer(Forgetful()), X, {}),
    "a drawn order": ("state lost by saving", lambda: flow_4d(Reordered(4)), WIDE, {}),
    "a drawn list": ("state lost by saving", lambda: flow_4d(ListedOrder(4)), WIDE, {}),
    "a drawn array": ("state lost by saving", lambda: flow_4d(ArrayOrder(4)), WIDE, {}),
    "a buffer not saved": ("state lost by saving", lambda: flow_4d(UnsavedOrder(4)), WIDE, {}),
    "a random bound": ("state lost by saving", lambda: pair(RandomBound), X, {}),
    "turned when loaded": ("state lost by saving", lambda: with_layer(FlipsOnLoad()), X, {}),
    "statistics that are no buffers": (
        "state lost by saving",
        lambda: with_layer(PlainStatistics()),
        X,
        {},
    ),
    "a stale cache": ("state lost by saving", lambda: with_layer(StaleInverse()), X, {}),
    "weights in a list": ("state lost by saving", lambda: with_layer(HiddenWeights()), X, {}),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught_by_the_row_for_it(name):
    check, build, x, arguments = BUGS[name]
    report = check_flow(build and build(), x, **arguments)
    assert check in report.failed, str(report)
    assert len(report[check].meaning.split()) > 20  # what is wrong, how it shows, what to do


def test_the_first_wrong_layer_is_named():
    wrong = changed(AffineCoupling, **negated)
    report = check_flow(flow_2d(coupling(), ActNorm(2), coupling(flip=True, kind=wrong)), X)
    for row in ("log_det of forward", "log_det of inverse"):
        assert report[row].meaning.endswith("First in layer 2, ChangedAffineCoupling.")
    report = check_flow(pair(flow=BUGS["the flow's forward negates"][1]().__class__), X)
    assert "No layer is wrong alone" in report["log_det of forward"].meaning


def test_rounding_is_told_from_a_wrong_inverse():
    wrong = BUGS["joined in another order"][1]()
    assert "this is rounding" in check_flow(deep(), X)["round trip of data"].meaning
    assert "another function" in check_flow(wrong, X)["round trip of data"].meaning


@pytest.mark.parametrize(
    ("offset", "story"),
    [
        (lambda own, logit: own, None),
        (lambda own, logit: own - 8, "log 256 is missing"),
        (lambda own, logit: own - logit, "the logit's log_det is missing"),
        (lambda own, logit: own + 8, "log 256 was added twice"),
        (lambda own, logit: own - 1.0, None),
    ],
    ids=["right", "no log 256", "no logit", "twice", "anything"],
)
def test_a_reported_figure_is_held_to_the_flow_and_explained(offset, story):
    flow = of_images()
    own = losses.bits_per_dim(flow.log_prob(IMAGES, seed=0), (1, 8, 8)).mean().item()
    y = Dequantize()(IMAGES, noise=torch.rand(IMAGES.shape, generator=RNG))[0]
    given = offset(own, losses.bits_per_dim(Logit()(y)[1], (1, 8, 8)).mean().item())
    row = check_flow(flow, IMAGES, bits_per_dim=given)["bits/dim"]
    assert row.verdict == ("ok" if given == own else "FAIL")
    assert (story or "Measured here") in row.meaning
    assert (" is missing:" in row.meaning or "twice" in row.meaning) == (story is not None)


@pytest.mark.parametrize(("given", "ok"), [(3.5, True), (-4.5, False), (11.2, False)])
def test_without_dequantize_a_reported_figure_must_be_plausible(given, ok):
    x = torch.randn(64, 64, generator=RNG)
    assert ("bits/dim" in check_flow(continuous_images(), x, bits_per_dim=given).failed) == (not ok)


# Health


def trained(flow, x, steps=15):
    """Trained a little, and the running statistics are its own."""
    training.fit(
        flow, x, steps=steps, lr=2e-3, batch_size=32, seed=0, precision="float32", progress=False
    )
    if x is not MOONS:
        noise = flow.draw_noise(len(x), torch.Generator().manual_seed(0))
        training.reestimate_statistics(flow, [(x, None, noise)])
    return flow.eval()


SMALL = {"shape": (1, 8, 8), "width": 4, "blocks": 1, "doubling": False}
MLP_IMAGES = {"shape": (1, 8, 8), "depth": 4, "hidden": (32,)}
BUILDERS = {
    "nice": models.nice_2d,
    "realnvp": models.realnvp_2d,
    "mlp": lambda: models.realnvp_mlp(**MLP_IMAGES),
    "mlp, joint, softlog": lambda: models.realnvp_mlp(
        **MLP_IMAGES, separate=False, mask="random", norm="actnorm", tau=5.0
    ),
    "mlp, batch norm": lambda: models.realnvp_mlp(**MLP_IMAGES, norm="batchnorm"),
    "two scales": lambda: models.realnvp_image(**SMALL, scales=2),
    "no batch norm": lambda: models.realnvp_image(**SMALL, scales=1, batch_norm=False),
    "learned noise": lambda: models.realnvp_image(**SMALL, scales=1, dequant_couplings=2),
}


CASES = [(name, 15) for name in BUILDERS]
CASES += [(name, 0) for name in ("realnvp", "mlp, joint, softlog", "mlp, batch norm", "two scales")]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_flow_of_the_library_is_not_flagged(name, steps):
    torch.manual_seed(0)
    flow, x = BUILDERS[name](), X if name in ("nice", "realnvp") else IMAGES
    if steps:
        trained(flow, MOONS if x is X else x, steps)
    report = check_flow(flow, x, loss=losses.nll)
    assert report.ok, str(report)


class Frozen(Bijection):
    """A frozen permutation among the parameters, as FrEIA keeps it, with zeros in its matrix."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4)[[2, 0, 3, 1]], requires_grad=False)
        self.where = nn.Parameter(torch.tensor([2, 0, 3, 1]), requires_grad=False)

    def forward(self, x, context=None):
        return (x @ self.matrix)[:, self.where], x.new_zeros(len(x))

    def inverse(self, z, context=None):
        return z[:, self.where.argsort()] @ self.matrix.T, z.new_zeros(len(z))


class Derived(Layer):
    """Constants that follow from the arguments, unsaved, and a plain twin of a buffer."""

    def __init__(self, D=4):
        super().__init__(D)
        self.degrees = torch.arange(D) % 3
        self.flag_cpu = torch.tensor(1.0)
        self.register_buffer("flag", self.flag_cpu)
        self.register_buffer("even", (self.degrees % 2 == 0).float(), persistent=False)

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z + self.flag * self.even, log_det

    def inverse(self, z, context=None):
        return super().inverse(z - self.flag * self.even)


class Caching(Layer):
    """Keeps its last output, graph and all."""

    def forward(self, x, context=None):
        self.last = super().forward(x)
        return self.last


class InPlace(Layer):
    """Changes what it is given."""

    def forward(self, x, context=None):
        x.mul_(self.log_scale.exp().detach()).mul_(1.0)
        return super().forward(x / self.log_scale.exp().detach())


class PerPosition(Bijection):
    """Parameters of shape (C, H, W)."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, x, context=None):
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class SelfStarting(Layer):
    """Starts from its first training batch, and remembers that in a buffer."""

    def __init__(self, D=4):
        super().__init__(D)
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x, context=None):
        if self.training and not self.ready:
            self.log_scale.data, self.ready = -x.detach().std(0).log(), torch.tensor(True)
        return super().forward(x)


class Float64(nn.Module):
    """Computes in float64, and ends in float32."""

    def __init__(self):
        super().__init__()
        self.flow = pair().double()

    def forward(self, x):
        return tuple(out.float() for out in self.flow(x.double()))

    def inverse(self, z):
        return tuple(out.float() for out in self.flow.inverse(z.double()))


class Linear(nn.Module):
    """Not of this library: no log_det of inverse, and a base of its own in sample and log_prob."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, 1.0], [-0.5, 1.0]]))

    def forward(self, x):
        return x @ self.weight.T, torch.linalg.slogdet(self.weight).logabsdet.expand(len(x))

    def inverse(self, z):
        return z @ torch.linalg.inv(self.weight).T

    def log_prob(self, x):
        z, log_det = self(x)
        return torch.distributions.Normal(0, 1).log_prob(z).sum(1) + log_det

    def sample(self, n):
        return self.inverse(torch.randn(n, 2))


def extended():
    """A flow whose chain was extended after it was built."""
    flow = models.realnvp_2d(depth=2, hidden=(16,))
    flow.bijection.append(SoftLog(100.0)).append(Diagonal(2))
    return randomise(flow)


def frozen():
    flow = flow_4d()
    flow.bijection.insert(1, Frozen())
    return flow


def cached():
    flow = flow_4d(Caching(4))
    flow(WIDE)
    return flow


BOARD = torch.randn(32, 1, 4, 4, generator=RNG)
HEALTHY = {
    "a pair": (pair, X),
    "frozen permutations": (frozen, WIDE),
    "frozen flow": (lambda: pair().requires_grad_(False), X),
    "derived constants": (lambda: flow_4d(Derived()), WIDE),
    "kept activations": (cached, WIDE),
    "an in-place first layer": (
        lambda: randomise(Flow(Chain(InPlace(2), coupling(), coupling(True)), shape=(2,))),
        X,
    ),
    "parameters of (C, H, W)": (lambda: image_layer(PerPosition(), Flatten((1, 4, 4))), BOARD),
    "a self-starting layer": (lambda: flow_4d(SelfStarting()).train(), WIDE),
    "an extended chain": (extended, X),
    "float64": (lambda: pair().double(), X.double()),
    "float64, float32 data": (lambda: pair().double(), X),
    "float64 that ends in float32": (Float64, X),
    "another library's": (Linear, X),
    "an array": (pair, X.numpy()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_flow_is_not_flagged_nor_changed(name):
    build, x = HEALTHY[name]
    flow = build()
    before = copy.deepcopy(dict(flow.state_dict()))
    x_before, was_training = torch.as_tensor(x).clone(), flow.training
    report = check_flow(flow, x, loss=losses.nll)
    assert report.ok, str(report)
    assert all(torch.equal(before[key], value) for key, value in flow.state_dict().items())
    assert torch.equal(torch.as_tensor(x), x_before)
    assert flow.training == was_training


def test_it_changes_nothing():
    flow = models.realnvp_mlp((1, 8, 8), depth=2, hidden=(8,), norm="batchnorm").train()
    for parameter in flow.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, states = copy.deepcopy(flow.state_dict()), (random.getstate(), np.random.get_state()[1])
    seeds, x = torch.get_rng_state(), IMAGES.clone()
    check_flow(flow, IMAGES, loss=losses.nll, bits_per_dim=3.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())
    assert all((p.grad == 1).all() for p in flow.parameters())
    assert all(module.training for module in flow.modules())
    assert torch.equal(seeds, torch.get_rng_state())
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.equal(x, IMAGES)


def test_it_works_where_gradients_are_off():
    with torch.inference_mode():
        assert check_flow(pair(), X.clone()).ok


def test_a_context_without_effect_is_found():
    class Deaf(AffineCoupling):
        def run_network(self, kept, context):
            return super().run_network(kept, torch.zeros_like(context))

    torch.manual_seed(0)
    layers = [Deaf(alternating(2, flip=flip), MLP(1, 2, (16,), 3)) for flip in (False, True)]
    flow = randomise(Flow(Chain(*layers), (2,), context_features=3))
    assert check_flow(flow, X, context=torch.rand(256, 3)).failed == ["context"]


def test_a_conditional_flow_is_checked_with_its_context():
    torch.manual_seed(0)
    context = torch.rand(256, 3)
    flow = randomise(models.realnvp_2d(depth=4, hidden=(16,), context_features=3))
    report = check_flow(flow, X, context=context, loss=losses.nll)
    assert report.ok, str(report)
    assert "integral of the density" not in [row.check for row in report.rows]
    with pytest.raises(ValueError, match="context"):
        check_flow(flow, X)


# Other libraries' flows, and functions


class Wrapper(nn.Module):
    def __init__(self, flow, there, back):
        super().__init__()
        self.flow, self.there, self.back = flow, there, back

    def forward(self, x):
        return self.there(self.flow, x)

    def inverse(self, z):
        return self.back(self.flow, z)


WRAPPERS = {
    "nflows": (lambda f, x: f._transform(x), lambda f, z: f._transform.inverse(z)),
    "normflows": (lambda f, x: f.inverse_and_log_det(x), lambda f, z: f.forward_and_log_det(z)),
    "zuko": (
        lambda f, x: f().transform.call_and_ladj(x),
        lambda f, z: f().transform.inv.call_and_ladj(z),
    ),
    "FrEIA": (lambda f, x: f(x), lambda f, z: f(z, rev=True)),
}


def small_network(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, n_out))


def of_nflows(*kinds):
    from nflows import distributions, flows, nn, transforms

    network = lambda n_in, n_out: nn.nets.ResidualNet(n_in, n_out, hidden_features=16)  # noqa: E731
    every = {
        "actnorm": lambda i: transforms.ActNorm(4),
        "batch norm": lambda i: transforms.BatchNorm(4),
        "lu": lambda i: transforms.LULinear(4),
        "permutation": lambda i: transforms.RandomPermutation(4),
        "affine": lambda i: transforms.AffineCouplingTransform([0, 1, 0, 1], network),
        "maf": lambda i: transforms.MaskedAffineAutoregressiveTransform(4, 16),
        "spline": lambda i: transforms.PiecewiseRationalQuadraticCouplingTransform(
            [i % 2, 1 - i % 2] * 2, network, tails="linear", tail_bound=3.0
        ),
    }
    layers = [every[kind](i) for i in range(3) for kind in kinds]
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([4]))


def of_normflows(*kinds):
    import normflows

    every = {
        "spline": lambda i: normflows.flows.CoupledRationalQuadraticSpline(
            4, 1, 16, reverse_mask=i % 2 == 1
        ),
        "autoregressive": lambda i: normflows.flows.AutoregressiveRationalQuadraticSpline(4, 1, 16),
        "lu": lambda i: normflows.flows.LULinearPermute(4),
        "maf": lambda i: normflows.flows.MaskedAffineAutoregressive(4, 16),
        "permutation": lambda i: normflows.flows.Permute(4, mode="swap"),
        "masked": lambda i: normflows.flows.MaskedAffineFlow(
            torch.tensor([i % 2, 1 - i % 2] * 2).float(),
            normflows.nets.MLP([4, 16, 4], init_zeros=True),
            normflows.nets.MLP([4, 16, 4], init_zeros=True, output_fn="tanh"),
        ),
        "actnorm": lambda i: normflows.flows.ActNorm(4),
    }
    layers = [every[kind](i) for i in range(3) for kind in kinds]
    base = normflows.distributions.DiagGaussian(4, trainable=False)
    return normflows.NormalizingFlow(base, layers)


def of_zuko(kind, **arguments):
    import zuko

    return getattr(zuko.flows, kind)(4, transforms=3, hidden_features=(16,), **arguments)


def of_freia(*kinds):
    from FrEIA import framework, modules

    flow = framework.SequenceINN(4)
    every = {"subnet_constructor": small_network}
    for _ in range(3):
        for kind in kinds:
            needs = {} if kind in ("ActNorm", "PermuteRandom") else every
            flow.append(getattr(modules, kind), **needs)
    return flow


def graph_of_freia():
    from FrEIA import framework, modules

    nodes = [framework.InputNode(4, name="in")]
    for _ in range(3):
        nodes.append(
            framework.Node(
                nodes[-1], modules.GLOWCouplingBlock, {"subnet_constructor": small_network}
            )
        )
    return framework.GraphINN([*nodes, framework.OutputNode(nodes[-1])])


FOREIGN = {
    ("nflows", "Real NVP, LU, ActNorm"): lambda: of_nflows("actnorm", "lu", "affine"),
    ("nflows", "MAF, permutations, batch norm"): lambda: of_nflows(
        "permutation", "maf", "batch norm"
    ),
    ("nflows", "splines"): lambda: of_nflows("spline", "lu"),
    ("normflows", "Real NVP, ActNorm"): lambda: of_normflows("masked", "actnorm"),
    ("normflows", "splines"): lambda: of_normflows("spline"),
    ("normflows", "autoregressive splines"): lambda: of_normflows("autoregressive", "lu"),
    ("normflows", "MAF"): lambda: of_normflows("maf", "permutation"),
    ("zuko", "NICE"): lambda: of_zuko("NICE"),
    ("zuko", "MAF"): lambda: of_zuko("MAF", randperm=True),
    ("zuko", "NSF"): lambda: of_zuko("NSF"),
    ("FrEIA", "AllInOneBlock"): lambda: of_freia("AllInOneBlock"),
    ("FrEIA", "Glow"): lambda: of_freia("ActNorm", "GLOWCouplingBlock", "PermuteRandom"),
    ("FrEIA", "graph"): graph_of_freia,
}
STARTING = [which for which in FOREIGN if "orm" in which[1] or "AllInOne" in which[1]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("which", "steps"), [(which, 20) for which in FOREIGN] + [(which, 0) for which in STARTING]
)
def test_flows_of_other_libraries_pass_through_a_wrapper(which, steps):
    pytest.importorskip(which[0])
    torch.manual_seed(0)
    np.random.seed(0)
    x = WIDE @ torch.randn(4, 4)
    flow = Wrapper(FOREIGN[which](), *WRAPPERS[which[0]])
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        losses.nll(*flow(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    report = check_flow(flow, x, loss=losses.nll)
    assert report.ok, str(report)


@pytest.mark.filterwarnings("ignore")
def test_the_exponential_without_a_bound_of_another_library_is_found():
    flows = pytest.importorskip("normflows").flows
    nets = pytest.importorskip("normflows").nets
    layers = []
    for _ in range(4):
        network = nets.MLP([1, 16, 2], init_zeros=True)
        layers += [flows.AffineCouplingBlock(network), flows.Permute(2, mode="swap")]
    library = pytest.importorskip("normflows")
    base = library.distributions.DiagGaussian(2, trainable=False)
    flow = Wrapper(library.NormalizingFlow(base, layers), *WRAPPERS["normflows"])
    assert check_flow(flow, X).failed == ["bound on the scales"]


def test_two_functions_will_do():
    log_det = 2 * math.log(2)
    forward = lambda x: (2 * x, x.new_full((len(x),), log_det))  # noqa: E731
    assert check_flow(x=X, forward=forward, inverse=lambda z: z / 2).ok
    wrong = check_flow(x=X, forward=lambda x: (2 * x, x.new_zeros(len(x))), inverse=lambda z: z / 2)
    assert {"log_det of forward", "integral of the density"} <= set(wrong.failed)


def test_rows_that_are_not_finite_are_counted():
    x = X.clone()
    x[3] = 1e30
    report = check_flow(x=x, forward=lambda x: (x * x.abs(), x[:, 0]), inverse=lambda z: z)
    assert report["finite"].verdict == "FAIL"
    assert report["finite"].measured == "1 of 256"


def test_an_error_of_the_flow_is_a_row():
    def refuse(f, self, *args):
        raise RuntimeError("not today")

    report = check_flow(pair(changed(AffineCoupling, forward=refuse)), X)
    assert report.failed == ["shape of log_det"]
    assert len(report.rows) == 1
    assert report.rows[0].meaning.endswith("The error says: not today")
    assert report.rows[0].measured == "RuntimeError"


def test_an_inverse_that_was_never_written_is_a_note():
    report = check_flow(
        pair(changed(AffineCoupling, inverse=lambda *a: Bijection.inverse(*a[1:]))), X
    )
    assert report["round trip of data"].verdict == "note"
    assert report["log_det of forward"].verdict == "ok"


MNIST_SIZE = IMAGES.repeat(1, 1, 4, 4)[..., 2:30, 2:30]


@pytest.mark.parametrize(
    ("build", "x", "seconds"),
    [
        (models.realnvp_2d, X, 1.5),
        (lambda: models.realnvp_mlp(hidden=(64,)), MNIST_SIZE, 5),
        (lambda: models.realnvp_image((1, 8, 8), width=8, blocks=1), IMAGES, 10),
    ],
    ids=["plane", "MNIST", "small images"],
)
def test_it_takes_seconds(build, x, seconds):
    flow, start = randomise(build(), size=0.01), time.process_time()
    check_flow(flow, x, loss=losses.nll)
    assert time.process_time() - start < seconds


def test_a_flow_too_large_for_its_jacobian_says_so(monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 0)
    row = check_flow(pair(), X)["log_det of forward"]
    assert (row.verdict, row.measured) == ("note", "not checked")
    assert row.meaning.endswith("too long: check a smaller flow of its kind.")


# The report


def test_the_report_prints_as_a_table_with_sentences_for_what_failed():
    report = check_flow(pair(changed(AffineCoupling, **negated)), X)
    lines = str(report).splitlines()
    assert lines[0].split() == ["check", "verdict", "measured", "threshold"]
    assert max(map(len, lines)) <= 100
    assert lines[-1] == f"Failed: {', '.join(report.failed)}."
    flat = " ".join(str(report).split())
    assert all(row.meaning in flat for row in report.rows if row.verdict == "FAIL")
    assert all(row.check in flat and row.measured in flat for row in report.rows)
    assert str(check_flow(pair(), X)).endswith("Failed: nothing.")


def test_a_check_is_found_by_its_name():
    report = check_flow(pair(), X)
    assert report["finite"].measured == "0 of 256"
    with pytest.raises(KeyError, match="bits/dim"):
        report["bits/dim"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"x": X}, "give a flow, or both of forward= and inverse="),
        (
            {"flow": Diagonal(2), "x": X, "forward": lambda x: x, "inverse": lambda z: z},
            "give a flow, or both of forward= and inverse=",
        ),
        ({"flow": Diagonal(2)}, "x must be a tensor or an array of numbers, got a NoneType"),
        ({"flow": Diagonal(2), "x": X[:1]}, r"at least two data points, got \(1, 2\)"),
        ({"flow": nn.Linear(2, 2), "x": X}, r"needs a method inverse\(z\); this Linear has none"),
        ({"flow": pair(), "x": WIDE}, r"takes data of shape \(B, 2\)"),
    ],
)
def test_senseless_arguments_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_flow(**arguments)
