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
RNG = torch.Generator().manual_seed(0)
X = MOONS.sample(128, seed=0)
WIDE = torch.randn(128, 4, generator=RNG)
BOARD = torch.randn(32, 1, 4, 4, generator=RNG)
IMAGES = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=RNG) // 2
PIXELS = (IMAGES.flatten(1) + torch.rand(64, 64, generator=RNG)) / 256
DATA = {(2,): X, (4,): WIDE, (1, 4, 4): BOARD, (1, 8, 8): IMAGES}


def coupling(flip=False, kind=AffineCoupling, D=2):
    torch.manual_seed(int(flip))
    return kind(alternating(D, flip=flip), MLP(D // 2, D, (16,)))


def flow_of(*layers, D=2, flow=Flow):
    torch.manual_seed(0)
    return randomise(flow(Chain(*layers), shape=(D,)))


def pair(kind=AffineCoupling, flow=Flow):
    return flow_of(coupling(kind=kind), coupling(flip=True, kind=kind), flow=flow)


def between(*layers, D=2):
    """A flow of layers between two couplings."""
    return flow_of(coupling(D=D), *layers, coupling(flip=True, D=D), D=D)


def of_boards(*layers):
    """A flow of images (1, 4, 4), two couplings after these layers."""
    torch.manual_seed(0)
    boards = [checkerboard(4, 4, flip=flip).flatten() for flip in (False, True)]
    couplings = [AffineCoupling(board, MLP(8, 16, (16,))) for board in boards]
    return randomise(Flow(Chain(*layers, *couplings), shape=(1, 4, 4)))


def of_images(dequantize=Dequantize, flow=Flow, logit=Logit):
    torch.manual_seed(0)
    boards = [checkerboard(8, 8, flip=flip).flatten() for flip in (False, True)]
    layers = [AffineCoupling(board, MLP(32, 64, (16,))) for board in boards]
    first = [dequantize(), logit(), Flatten((1, 8, 8))]
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


def in_couplings(**methods):
    return lambda: pair(changed(AffineCoupling, **methods))


def in_flow(**methods):
    return lambda: pair(flow=changed(Flow, **methods))


def in_image_flow(**methods):
    return lambda: of_images(flow=changed(Flow, **methods))


def in_noise(**methods):
    return lambda: of_images(changed(Dequantize, **methods))


def in_layer(**methods):
    return lambda: between(changed(Layer, **methods)())


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


class UnsavedOrder(Reordered):
    def keep(self, D):
        self.register_buffer("order", torch.randperm(D), persistent=False)


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


def batch_norm_log_det(forward, self, x, context=None):
    return forward(x)[0], -0.5 * (self.running_var + self.eps).sum().expand(len(x))


def leaky(forward, self, x, context=None):
    self.training = True
    out = forward(x)
    self.training = False
    return out


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


def averaged():
    """As after training with averaged weights: the running statistics are those of others."""
    flow = between(BatchNorm(2))
    flow.bijection[1].running_var.fill_(40.0)
    return flow


def deep():
    torch.manual_seed(0)
    layers = [AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, (16,))) for i in range(16)]
    return randomise(Flow(Chain(*layers), shape=(2,)), size=0.5)


def output(change, i=0):
    """A method whose output, or log_det for i = 1, is changed."""

    def method(original, self, *args, **kwargs):
        out = list(original(*args, **kwargs))
        out[i] = change(out[i])
        return tuple(out)

    return method


def log_det(change):
    return output(change, 1)


def result(change):
    return lambda original, self, *args, **kwargs: change(original(*args, **kwargs))


def argument(change):
    """A method whose first argument is changed."""
    return lambda original, self, x, *args, **kwargs: original(change(x), *args, **kwargs)


def no_graph(original, self, *args, **kwargs):
    with torch.no_grad():
        return original(*args, **kwargs)


def sampling(T=None, factor=1.0, keep_seed=True, after=None):
    """A method sample of a fixed temperature, another deviation, no seed, or a step after it."""

    def sample(original, self, n, temperature=1.0, seed=None, context=None):
        x = original(n, factor * (T or temperature), seed if keep_seed else None, context)
        return after(self, x) if after else x

    return sample


def branch(original, self, x, context=None):
    z, log_det = original(x, context)
    return z, torch.where(x[:, 0] > 1.5, -log_det, log_det)


def unbounded(original, self, x_a, context=None):
    return self.run_network(x_a, context).chunk(2, 1)


def half_noise(original, self, x, context=None, noise=None):
    return original(x, context, self.draw_noise(x.shape) / 2 if noise is None else noise)


def one_noise(*kept):
    """draw_noise with one draw along all other dimensions."""

    def draw(original, self, shape, generator=None):
        few = [size if i in kept else 1 for i, size in enumerate(shape)]
        return original(few, generator).expand(shape)

    return draw


def uniform(original, self, n, generator=None):
    return torch.rand(n, 2, generator=generator)


negated, detached = log_det(torch.neg), log_det(torch.detach)
BUGS = {  # the check that must fail: {the bug: a flow with it}
    "finite": {"weights that are no numbers": lambda: broken(math.nan)},
    "determinism": {
        "noise in a layer": in_couplings(forward=argument(lambda x: x + torch.rand_like(x) / 100)),
        "dropout left on": in_couplings(run_network=result(lambda out: F.dropout(out, 0.2))),
    },
    "rows leak into one another": {
        "batch norm leaks": lambda: between(changed(BatchNorm, forward=leaky)(2)),
        "the batch's mean in inverse": in_layer(inverse=argument(lambda z: z - z.mean(0))),
    },
    "round trip of data": {
        "joined in another order": in_couplings(
            join=lambda original, self, x_a, x_b: torch.cat([x_b, x_a], 1)
        ),
        "un-squeezed in another order": lambda: of_boards(
            changed(
                Squeeze,
                inverse=lambda original, self, z, c=None: (F.pixel_shuffle(z.flip(1), 2), z[:, 0]),
            )(),
            Flatten((4, 2, 2)),
        ),
        "a permutation not undone": lambda: between(
            changed(Permute, inverse=lambda original, self, z, c=None: self(z))([1, 2, 3, 0]), D=4
        ),
        "a clamp in forward": in_layer(forward=argument(lambda x: x.clamp(-1, 1))),
        "bfloat16 inside": in_layer(forward=output(lambda z: z.bfloat16().to(z.dtype))),
        "rounding grows with depth": deep,
    },
    "round trip of latents": {
        "a clamp in inverse": in_layer(inverse=argument(lambda z: z.clamp(-1, 1)))
    },
    "round trip of images": {
        "rounded in place of floored": in_noise(inverse=argument(lambda z: z + 0.6 / 256))
    },
    "log_det of forward": {
        "wrong sign": in_couplings(forward=negated),
        "mean over dimensions": in_layer(forward=log_det(lambda d: d / 2)),
        "the other half": lambda: flow_of(OtherHalf(False), OtherHalf(True)),
        "a branch": in_couplings(forward=branch),
        "batch norm without its log": lambda: between(
            changed(BatchNorm, forward=batch_norm_log_det)(2)
        ),
        "actnorm without positions": lambda: of_boards(
            changed(ActNorm, forward=log_det(lambda d: d / 16))(1), Flatten((1, 4, 4))
        ),
        "logit's log_det left out": lambda: of_images(
            logit=changed(Logit, forward=log_det(torch.zeros_like))
        ),
        "SoftLog of the wrong sign": lambda: between(changed(SoftLog, forward=negated)(0.5)),
        "the flow's forward negates": in_flow(forward=negated),
        "the image flow's forward negates": in_image_flow(forward=negated),
        "log 255": in_noise(forward=log_det(lambda d: d * math.log(255) / math.log(256))),
        "Dequantize of the wrong sign": in_noise(forward=negated),
    },
    "dimensions never coupled": {
        "masks never alternate": lambda: flow_of(coupling(), ActNorm(2), coupling())
    },
    "log_det far from the data": {
        "a clamp beyond these data": in_layer(forward=argument(lambda x: x.clamp(-8, 8))),
        "a clamp far beyond these data": lambda: between(
            changed(Layer, forward=argument(lambda x: x.clamp(-50, 50)))(4), D=4
        ),
    },
    "log_det of inverse": {
        "SoftLog's inverse log_det": lambda: between(changed(SoftLog, inverse=negated)(0.5)),
        "no log_det of inverse": in_couplings(inverse=log_det(torch.zeros_like)),
        "the flow's inverse negates": in_flow(inverse=negated),
        "the image flow's inverse negates": in_image_flow(inverse=negated),
        "Dequantize's inverse of the wrong sign": in_noise(inverse=negated),
    },
    "log_prob": {
        "without 2 pi": in_flow(log_prob=result(lambda p: p + math.log(2 * math.pi))),
        "log_det subtracted": in_flow(
            log_prob=lambda original, self, x, *args, **kwargs: (
                original(x, *args, **kwargs) - 2 * self(x)[1]
            )
        ),
        "of negative sign": in_flow(log_prob=result(torch.neg)),
        "a mean": in_flow(log_prob=result(torch.mean)),
        "per dimension": in_image_flow(log_prob=result(lambda p: p / 64)),
        "without a graph": in_flow(log_prob=no_graph),
    },
    "samples": {
        "samples too wide": in_flow(sample=sampling(factor=1.2)),
        "images too wide": in_image_flow(sample=sampling(factor=1.2)),
        "latents too wide": in_flow(draw_latents=result(lambda z: 1.1 * z)),
        "uniform latents": in_flow(draw_latents=uniform),
        "temperature forgotten": in_flow(sample=sampling(T=1.0)),
        "seed forgotten": in_flow(sample=sampling(keep_seed=False)),
        "samples by forward": in_flow(sample=sampling(after=lambda flow, x: flow(x)[0])),
    },
    "gradients through both directions": {
        "log_det detached": in_couplings(forward=detached),
        "half of log_det detached": lambda: flow_of(
            coupling(), coupling(True, changed(AffineCoupling, forward=detached))
        ),
        "inverse under no_grad": in_couplings(inverse=no_graph),
        "forward under no_grad": in_couplings(forward=no_graph),
    },
    "parameters without gradient": {"zero times zero": zero_times_zero},
    "dead networks": {"a dead network": dead_network},
    "bound on the scales": {"scales without a bound": in_couplings(shift_and_log_scale=unbounded)},
    "training and evaluation": {"statistics of other weights": averaged},
    "state lost by saving": {
        "ActNorm starts again": lambda: between(Forgetful()),
        "a drawn order": lambda: between(Reordered(4), D=4),
        "a drawn list": lambda: between(ListedOrder(4), D=4),
        "a buffer not saved": lambda: between(UnsavedOrder(4), D=4),
        "turned when loaded": lambda: between(FlipsOnLoad()),
        "statistics that are no buffers": lambda: between(PlainStatistics()),
        "a stale cache": lambda: between(StaleInverse()),
        "weights in a list": lambda: between(HiddenWeights()),
    },
    "dequantisation noise": {
        "half of the noise": in_noise(draw_noise=result(lambda u: u / 2)),
        "half of the noise in forward": in_noise(forward=half_noise),
        "one noise for all pixels": in_noise(draw_noise=one_noise(0)),
        "one noise for all images": in_noise(draw_noise=one_noise(1, 2, 3)),
    },
    "integral of the density": {
        "density of mass 1.4": in_layer(forward=log_det(lambda d: d + 0.35))
    },
}


@pytest.mark.parametrize(
    ("check", "name"), [(check, name) for check in BUGS for name in BUGS[check]]
)
def test_a_planted_bug_is_caught_by_the_row_for_it(check, name):
    flow = BUGS[check][name]()
    report = check_flow(flow, DATA[flow.shape])
    assert check in report.failed, str(report)
    assert len(report[check].meaning.split()) > 20  # what is wrong, how it shows, what to do


LOSSES = {  # the check that must fail, and the loss
    "log_det alone": ("prior in the loss", lambda z, d: -d.mean()),
    "wrong sign": ("log_det in the loss", lambda z, d: losses.nll(z, -d)),
    "no log_det": ("log_det in the loss", lambda z, d: losses.nll(z, 0 * d)),
    "prior averaged over dimensions": (
        "prior in the loss",
        lambda z, d: z.square().mean() / 2 - d.mean(),
    ),
    "prior without its half": ("prior in the loss", lambda z, d: (z.square().sum(1) - d).mean()),
    "log_det over D": ("prior in the loss", lambda z, d: (z.square().sum(1) / 2 - d / 2).mean()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_wrong_loss_is_caught(name):
    check, loss = LOSSES[name]
    assert check_flow(pair(), X, loss=loss).failed == [check]


FUNCTIONS = {  # forward for which the row on the shape must fail
    "log_det is a mean": lambda x: (x, x.mean()),
    "log_det is 0": lambda x: (x, 0),
    "log_det is a column": lambda x: (x, x[:, :1]),
    "log_det is per dimension": lambda x: (x, 0 * x),
    "log_det of integers": lambda x: (x, x[:, 0].long()),
    "z alone": lambda x: x,
    "a dimension lost": lambda x: (x[:, :1], x[:, 0]),
    "forward raises": lambda x: x @ x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_shape_is_caught(name):
    report = check_flow(x=X, forward=FUNCTIONS[name], inverse=lambda z: z)
    assert report.failed == ["shape of log_det"]


def test_an_inverse_that_raises_is_caught():
    report = check_flow(x=X, forward=lambda x: (x, 0 * x[:, 0]), inverse=lambda z: z @ z)
    assert "round trip of data" in report.failed


def test_data_without_noise_or_with_half_of_it_are_caught():
    half = PIXELS - PIXELS % (1 / 256) / 2
    assert "dequantisation noise" in check_flow(continuous_images(), half).failed
    integers = IMAGES.flatten(1) / 255
    assert "data are continuous" in check_flow(continuous_images(), integers).failed


def test_the_first_wrong_layer_is_named():
    wrong = changed(AffineCoupling, forward=negated)
    report = check_flow(flow_of(coupling(), ActNorm(2), coupling(flip=True, kind=wrong)), X)
    for row in ("log_det of forward", "log_det of inverse"):
        assert report[row].meaning.endswith("It starts in layer 2, ChangedAffineCoupling.")
    report = check_flow(in_flow(forward=negated)(), X)
    assert "No layer is wrong alone" in report["log_det of forward"].meaning


def test_rounding_is_told_from_a_wrong_inverse():
    wrong = BUGS["round trip of data"]["joined in another order"]()
    assert "this is rounding" in check_flow(deep(), X)["round trip of data"].meaning
    assert "another function" in check_flow(wrong, X)["round trip of data"].meaning


@pytest.mark.parametrize("missing", [None, "log 256", "logit", "anything"])
def test_a_reported_figure_is_held_to_the_flow(missing):
    flow = of_images()
    own = losses.bits_per_dim(flow.log_prob(IMAGES, seed=0), (1, 8, 8)).mean().item()
    y = Dequantize()(IMAGES, noise=torch.rand(IMAGES.shape, generator=RNG))[0]
    logit = losses.bits_per_dim(Logit()(y)[1], (1, 8, 8)).mean().item()
    given = own - {None: 0, "log 256": 8, "logit": logit, "anything": 1}[missing]
    row = check_flow(flow, IMAGES, bits_per_dim=given)["bits/dim"]
    assert row.verdict == ("FAIL" if missing else "ok")
    assert ("log 256, 8.000; the logit's log_det, -2" in row.meaning) == bool(missing)


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


SMALL = {"shape": (1, 4, 4), "width": 4, "blocks": 1, "doubling": False}
VECTORS = {"shape": (1, 4, 4), "depth": 4, "hidden": (32,)}
JOINT = {"separate": False, "mask": "random", "norm": "actnorm", "tau": 5.0}
BUILDERS = {  # a flow, and how many steps to train it
    "nice": (lambda: models.nice_2d(hidden=(32,)), 15),
    "realnvp": (lambda: models.realnvp_2d(depth=6, hidden=(32,)), 15),
    "realnvp, new": (lambda: models.realnvp_2d(depth=4), 0),
    "mlp": (lambda: models.realnvp_mlp(**VECTORS), 15),
    "mlp, joint, softlog, new": (lambda: models.realnvp_mlp(**VECTORS, **JOINT), 0),
    "mlp, batch norm": (lambda: models.realnvp_mlp(**VECTORS, norm="batchnorm"), 15),
    "two scales": (lambda: models.realnvp_image(**SMALL, scales=2), 15),
    "two scales, new": (lambda: models.realnvp_image(**SMALL, scales=2), 0),
    "no batch norm": (lambda: models.realnvp_image(**SMALL, scales=1, batch_norm=False), 15),
    "learned noise": (lambda: models.realnvp_image(**SMALL, scales=1, dequant_couplings=2), 15),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_flow_of_the_library_is_not_flagged(name):
    torch.manual_seed(0)
    build, steps = BUILDERS[name]
    flow = build()
    x = X if flow.shape == (2,) else IMAGES[..., :4, :4].contiguous()
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
    """Not of this library: no log_det of inverse, and a base of its own in log_prob."""

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


def extended():
    """A flow whose chain was extended after it was built."""
    flow = models.realnvp_2d(depth=2, hidden=(16,))
    flow.bijection.append(SoftLog(100.0)).append(Diagonal(2))
    return randomise(flow)


def frozen():
    flow = between(D=4)
    flow.bijection.insert(1, Frozen())
    return flow


def cached():
    flow = between(Caching(4), D=4)
    flow(WIDE)
    return flow


HEALTHY = {
    "a pair": (pair, X),
    "frozen permutations": (frozen, WIDE),
    "frozen flow": (lambda: pair().requires_grad_(False), X),
    "derived constants": (lambda: between(Derived(), D=4), WIDE),
    "kept activations": (cached, WIDE),
    "an in-place first layer": (
        lambda: randomise(Flow(Chain(InPlace(2), coupling(), coupling(True)), shape=(2,))),
        X,
    ),
    "parameters of (C, H, W)": (lambda: of_boards(PerPosition(), Flatten((1, 4, 4))), BOARD),
    "a self-starting layer": (lambda: between(SelfStarting(), D=4).train(), WIDE),
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
    assert check_flow(flow, X, context=torch.rand(128, 3)).failed == ["context"]


def test_a_conditional_flow_is_checked_with_its_context():
    torch.manual_seed(0)
    context = torch.rand(128, 3)
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
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", FOREIGN, ids=", ".join)
@pytest.mark.parametrize("steps", [20, 0])
def test_flows_of_other_libraries_pass_through_a_wrapper(which, steps):
    if steps == 0 and "orm" not in which[1] and "AllInOne" not in which[1]:
        pytest.skip("nothing in it starts from a first batch")
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


def test_rows_that_are_not_finite_are_counted():
    x = X.clone()
    x[3] = 1e30
    report = check_flow(x=x, forward=lambda x: (x * x.abs(), x[:, 0]), inverse=lambda z: z)
    assert report["finite"].verdict == "FAIL"
    assert report["finite"].measured == "1 of 128"


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


def test_it_takes_seconds():
    flow = randomise(models.realnvp_mlp(depth=2, hidden=(16,)), size=0.01)
    start = time.process_time()
    check_flow(flow, IMAGES.repeat(1, 1, 4, 4)[..., 2:30, 2:30])
    assert time.process_time() - start < 5


def test_a_flow_too_large_for_its_jacobian_says_so(monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 0)
    row = check_flow(continuous_images(), PIXELS)["log_det of forward"]
    assert (row.verdict, row.measured) == ("note", "not checked")
    assert row.meaning.endswith("too long: check a smaller flow of its kind.")


# The report


def test_the_report_prints_as_a_table_with_sentences_for_what_failed():
    report = check_flow(pair(changed(AffineCoupling, forward=negated)), X)
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
    assert report["finite"].measured == "0 of 128"
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


@pytest.mark.parametrize(("D", "clamped"), [(2, 1), (2, 2), (16, 4)])
def test_a_clamp_between_rotations_is_found_far_from_the_data(D, clamped):
    rng = torch.Generator().manual_seed(0)
    first, second = torch.linalg.qr(torch.randn(2, D, D, generator=rng)).Q

    def forward(x):
        turned = x @ first.to(x)
        cut = torch.cat([turned[:, :clamped].clamp(-5, 5), turned[:, clamped:]], 1)
        return cut @ second.to(x), torch.zeros_like(x[:, 0])

    def inverse(z):
        return z @ second.to(z).T @ first.to(z).T

    x = torch.randn(64, D, generator=rng)
    report = check_flow(x=x, forward=forward, inverse=inverse)
    assert report["log_det of forward"].verdict == "ok"
    assert report["log_det far from the data"].verdict == "FAIL"


def test_a_map_too_steep_for_float64_far_from_the_data_is_no_false_alarm():
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5

    def forward(x):
        a, b = (x @ turn.to(x)).unbind(1)
        s = 38 * torch.tanh(a / 50)
        return torch.stack([a, b * s.exp()], 1) @ turn.to(x), s

    def inverse(z):
        a, b = (z @ turn.to(z).T).unbind(1)
        return torch.stack([a, b * (-38 * torch.tanh(a / 50)).exp()], 1) @ turn.to(z).T

    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    assert (
        check_flow(x=x, forward=forward, inverse=inverse)["log_det far from the data"].verdict
        == "ok"
    )
