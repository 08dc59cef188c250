"""Every planted bug is caught by the check that is meant for it, and no healthy flow is flagged."""

import copy

import pytest
import torch
from helpers import randomise
from torch import nn

from flowlib import Flow, checks, data, losses, models, training
from flowlib.bijections import ActNorm, BatchNorm, Bijection, Chain, Dequantize, Diagonal, Flatten, Logit, SoftLog
from flowlib.checks import check_flow
from flowlib.coupling import AffineCoupling
from flowlib.masks import alternating, checkerboard
from flowlib.networks import MLP

MOONS = data.TwoMoons(noise=0.05)
X = MOONS.sample(256, seed=0)
IMAGES = torch.randint(0, 256, (128, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) // 2


def flow_2d(*layers):
    torch.manual_seed(0)
    return randomise(Flow(Chain(*layers), shape=(2,)))


def coupling(flip=False, kind=AffineCoupling):
    torch.manual_seed(int(flip))
    return kind(alternating(2, flip=flip), MLP(1, 2, (16,)))


def pair(kind):
    return flow_2d(coupling(kind=kind), coupling(flip=True, kind=kind))


# Bugs


class WrongSign(AffineCoupling):
    def forward(self, x, context=None):
        z, log_det = super().forward(x, context)
        return z, -log_det


class MaskTimesScale(Bijection):
    """Masks by multiplication, with the scale on the wrong side."""

    def __init__(self, flip):
        super().__init__()
        self.network = MLP(2, 4, (16,))
        self.register_buffer("m", alternating(2, flip=flip).float())

    def step(self, x):
        shift, raw = self.network(self.m * x).chunk(2, 1)
        return (1 - self.m) * shift, self.m * torch.tanh(raw)

    def forward(self, x, context=None):
        shift, s = self.step(x)
        return x * s.exp() + shift, s.sum(1)

    def inverse(self, z, context=None):
        shift, s = self.step(z)
        return (z - shift) * (-s).exp(), -s.sum(1)


class Unbounded(AffineCoupling):
    def shift_and_log_scale(self, kept, context=None):
        return self.run_network(kept, context).chunk(2, dim=1)


class WrongOrder(AffineCoupling):
    """Takes even and odd places apart, and puts them together as halves."""

    def join(self, kept, changed):
        return torch.cat([changed, kept], dim=1)


class BadSoftLog(SoftLog):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x, -log_det


class HalfNoise(Dequantize):
    def draw_noise(self, shape, generator=None):
        return 0.5 * super().draw_noise(shape, generator)


class LeakyNorm(BatchNorm):
    """Takes the statistics of the batch in evaluation mode too."""

    def forward(self, x, context=None):
        self.training = True
        out = super().forward(x)
        self.training = False
        return out


class ForgetfulActNorm(nn.Module):
    """Remembers in a Python attribute that it has been initialised."""

    def __init__(self, D):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.ready = False

    def forward(self, x, context=None):
        if not self.ready:
            with torch.no_grad():
                self.log_scale.copy_(-x.std(0).log())
                self.shift.copy_(-x.mean(0) * self.log_scale.exp())
            self.ready = True
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum().expand(len(x))

    def inverse(self, z, context=None):
        return (z - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


def zero_times_zero():
    flow = models.realnvp_2d(depth=2, hidden=(16,))
    training.fit(flow, MOONS, steps=1, seed=0, progress=False)
    flow = models.realnvp_2d(depth=2, hidden=(16,))
    flow.bijection[0].initialise(X)
    with torch.no_grad():
        for layer in flow.bijection[1:]:
            layer.rescale.zero_()
            layer.network[-1].bias[1].zero_()
    return flow


def forgetful():
    flow = flow_2d(ForgetfulActNorm(2), coupling(), coupling(flip=True))
    flow(X)
    return flow


def foreign_statistics():
    flow = flow_2d(coupling(), BatchNorm(2), coupling(flip=True))
    flow.bijection[1].running_var.fill_(40.0)
    return flow


def deep():
    torch.manual_seed(0)
    layers = [AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, (16,))) for i in range(60)]
    return randomise(Flow(Chain(*layers), shape=(2,)), size=0.2)


def of_images(dequantize=None, norm=()):
    torch.manual_seed(0)
    layers = [AffineCoupling(checkerboard(8, 8, flip=flip).flatten(), MLP(32, 64, (16,))) for flip in (False, True)]
    return randomise(Flow(Chain(dequantize or Dequantize(), Logit(), Flatten((1, 8, 8)), *norm, *layers), shape=(1, 8, 8)), size=0.05)


def continuous_images():
    layers = [AffineCoupling(alternating(64, flip=flip), MLP(32, 64, (16,))) for flip in (False, True)]
    return randomise(Flow(Chain(*layers), shape=(64,)), size=0.05)


BUGS = {  # name: the flow, the data, further arguments, the check that must fail
    "log-det alone": (lambda: pair(AffineCoupling), X, {"loss": lambda z, log_det: -log_det.mean()}, "prior in the loss"),
    "wrong sign in the loss": (lambda: pair(AffineCoupling), X, {"loss": lambda z, d: losses.nll(z, -d)}, "log_det in the loss"),
    "wrong sign of log_det": (lambda: pair(WrongSign), X, {}, "log_det of forward"),
    "mask times s": (lambda: flow_2d(MaskTimesScale(False), MaskTimesScale(True)), X, {}, "round trip of data"),
    "masks never alternate": (lambda: flow_2d(coupling(), ActNorm(2), coupling()), X, {}, "dimensions never coupled"),
    "unbounded scale": (lambda: pair(Unbounded), X, {}, "bound on the scales"),
    "no dequantisation": (continuous_images, IMAGES.flatten(1) / 255, {}, "data are continuous"),
    "half of the noise": (lambda: of_images(HalfNoise()), IMAGES, {}, "dequantisation noise"),
    "batch norm leaks": (lambda: flow_2d(coupling(), LeakyNorm(2), coupling(flip=True)), X, {}, "rows leak into one another"),
    "statistics of other weights": (foreign_statistics, X, {}, "training and evaluation"),
    "ActNorm starts again": (forgetful, X, {}, "state lost by saving"),
    "joined in the wrong order": (lambda: pair(WrongOrder), X, {}, "round trip of data"),
    "SoftLog's inverse log_det": (lambda: flow_2d(BadSoftLog(0.5), coupling(), coupling(flip=True)), X, {}, "log_det of inverse"),
    "zero times zero": (zero_times_zero, X, {}, "parameters without gradient"),
    "rounding grows with depth": (deep, X, {}, "round trip of data"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught_by_the_check_for_it(name):
    build, x, arguments, check = BUGS[name]
    report = check_flow(build(), x, **arguments)
    assert check in report.failed
    assert not report.ok


def test_without_its_bug_the_small_flow_is_healthy():
    assert check_flow(pair(AffineCoupling), X, loss=losses.nll).ok


def test_rounding_is_told_from_a_wrong_inverse():
    rounding, wrong = check_flow(deep(), X)["round trip of data"], check_flow(pair(WrongOrder), X)["round trip of data"]
    assert "this is rounding, which grows with depth" in rounding.meaning
    assert "after 60 layers" in rounding.meaning
    assert "the inverse is another function" in wrong.meaning


@pytest.mark.parametrize(
    ("offset", "story"),
    [
        (lambda own, logit: own, None),
        (lambda own, logit: own - 8, "log 256 (8 bits) is missing"),
        (lambda own, logit: own - logit, "the logit's log_det is missing"),
        (lambda own, logit: own + 8, "log 256 was added twice"),
        (lambda own, logit: own - 1.0, None),
    ],
    ids=["right", "no log 256", "no logit", "twice", "anything"],
)
def test_a_reported_figure_is_held_to_the_flow_and_explained(offset, story):
    flow = of_images()
    own = losses.bits_per_dim(flow.log_prob(IMAGES, seed=0), (1, 8, 8)).mean().item()
    y = Dequantize()(IMAGES, noise=torch.rand(IMAGES.shape))[0]
    logit = losses.bits_per_dim(Logit()(y)[1], (1, 8, 8)).mean().item()
    given = offset(own, logit)
    row = check_flow(flow, IMAGES, bits_per_dim=given)["bits/dim"]
    assert row.verdict == ("ok" if given == own else "FAIL")
    assert (story or "measured here") in row.meaning
    assert (" is missing:" in row.meaning or "twice" in row.meaning) == (story is not None)


@pytest.mark.parametrize(("given", "ok"), [(3.5, True), (-4.5, False), (11.2, False)])
def test_without_dequantize_a_reported_figure_must_be_plausible(given, ok):
    assert ("bits/dim" in check_flow(continuous_images(), torch.rand(64, 64), bits_per_dim=given).failed) == (not ok)


# Health


def initialised(flow, x):
    """As after the first step of `fit`: ActNorms and running statistics have seen data."""
    training.fit(flow, x, steps=1, lr=1e-9, batch_size=128, seed=0, progress=False)
    training.reestimate_statistics(flow, [(x[:128], None, flow.draw_noise(len(x[:128]), torch.Generator().manual_seed(0)))])
    return flow.eval()


def trained(flow, x):
    training.fit(flow, x, steps=60, lr=2e-3, batch_size=64, ema=None, seed=0, progress=False)
    training.reestimate_statistics(flow, [(x[:128], None, flow.draw_noise(len(x[:128]), torch.Generator().manual_seed(0)))])
    return flow.eval()


PLANE = {"nice": models.nice_2d, "realnvp": models.realnvp_2d, "shallow": lambda: models.realnvp_2d(depth=2, hidden=(32,))}
SMALL = {"shape": (1, 8, 8), "width": 8, "blocks": 1}
BOARDS = {
    "mlp": lambda: models.realnvp_mlp((1, 8, 8), depth=4, hidden=(32,)),
    "mlp, joint, softlog": lambda: models.realnvp_mlp((1, 8, 8), depth=4, hidden=(32,), separate=False, mask="checkerboard", norm="actnorm", tau=5.0),
    "mlp, batch norm": lambda: models.realnvp_mlp((1, 8, 8), depth=4, hidden=(32,), norm="batchnorm"),
    "two scales": lambda: models.realnvp_image(**SMALL, scales=2),
    "three scales": lambda: models.realnvp_image(**SMALL, scales=3),
    "no batch norm": lambda: models.realnvp_image(**SMALL, scales=2, batch_norm=False),
    "learned noise": lambda: models.realnvp_image(**SMALL, scales=2, variational=2),
}
HEALTHY = [(name, build, X) for name, build in PLANE.items()] + [(name, build, IMAGES) for name, build in BOARDS.items()]


@pytest.mark.parametrize("prepare", [initialised, trained])
@pytest.mark.parametrize(("name", "build", "x"), HEALTHY, ids=[name for name, _, _ in HEALTHY])
def test_a_healthy_flow_is_not_flagged(name, build, x, prepare):
    torch.manual_seed(0)
    flow = prepare(build(), MOONS.sample(2_000, seed=1) if x is X else x)
    report = check_flow(flow, x, loss=losses.nll)
    assert report.ok, str(report)


def test_it_changes_nothing():
    flow = models.realnvp_mlp((1, 8, 8), depth=2, hidden=(8,), norm="batchnorm").train()
    flow.bijection[4].network[0][-1].weight.grad = torch.ones_like(flow.bijection[4].network[0][-1].weight)
    before, grads = copy.deepcopy(flow.state_dict()), [None if p.grad is None else p.grad.clone() for p in flow.parameters()]
    random, x = torch.get_rng_state(), IMAGES.clone()
    check_flow(flow, IMAGES, loss=losses.nll, bits_per_dim=3.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())
    assert all(a is p.grad or torch.equal(a, p.grad) for a, p in zip(grads, flow.parameters()))
    assert flow.training
    assert all(module.training for module in flow.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, IMAGES)


# Other libraries' flows, and functions


class Spline(nn.Module):
    """Not of flowlib: an inverse without a log_det."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))

    def forward(self, x):
        return x @ self.weight.T, torch.linalg.slogdet(self.weight).logabsdet.expand(len(x))

    def inverse(self, z):
        return z @ torch.linalg.inv(self.weight).T


def test_any_module_with_forward_and_inverse_will_do():
    report = check_flow(Spline(), X)
    assert "log_det of inverse" not in [row.check for row in report.rows]
    assert report.failed in ([], ["dimensions never coupled"])


def test_two_functions_will_do():
    linear = lambda x: (2 * x, x.new_full((len(x),), 2 * torch.tensor(2.0).log().item()))  # noqa: E731
    assert check_flow(x=X, forward=linear, inverse=lambda z: z / 2).ok
    wrong = check_flow(x=X, forward=lambda x: (2 * x, x.new_zeros(len(x))), inverse=lambda z: z / 2)
    assert {"log_det of forward", "integral of the density"} <= set(wrong.failed)


def test_a_log_det_of_the_wrong_shape_is_named():
    report = check_flow(x=X, forward=lambda x: (x, torch.zeros(len(x), 1)), inverse=lambda z: z)
    assert "shape of log_det" in report.failed


# The report


def test_the_report_prints_as_a_table_and_as_html():
    report = check_flow(pair(WrongSign), X)
    text, page = str(report), report._repr_html_()
    assert text.splitlines()[-1].startswith("Failed: ")
    assert all(row.check in text and row.meaning in text for row in report.rows)
    assert page.count("<tr") == len(report.rows) + 1
    assert page.count("bold") == len(report.failed)
    assert str(check_flow(pair(AffineCoupling), X)).endswith("No check failed.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"x": X}, "give a flow, or both of forward= and inverse="),
        ({"flow": Diagonal(2), "x": X, "forward": lambda x: x, "inverse": lambda z: z}, "give a flow, or both of forward= and inverse="),
        ({"flow": Diagonal(2)}, "x must be a tensor .* of at least two data points, got NoneType"),
        ({"flow": Diagonal(2), "x": X[:1]}, r"x must be a tensor .* of at least two data points, got \(1, 2\)"),
        ({"flow": nn.Linear(2, 2), "x": X}, r"a flow needs a method inverse\(z\); this Linear has none"),
    ],
)
def test_senseless_arguments_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_flow(**arguments)


def test_above_the_largest_jacobian_the_same_weights_are_checked_on_a_small_board(monkeypatch):
    monkeypatch.setattr(checks, "LARGEST_JACOBIAN", 64)
    torch.manual_seed(0)
    flow = initialised(models.realnvp_image((3, 16, 16), scales=2, width=8, blocks=1), torch.randint(0, 256, (128, 3, 16, 16), dtype=torch.uint8))
    monkeypatch.setattr(checks, "LARGEST_JACOBIAN", 256)
    row = check_flow(flow, torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8))["log_det of forward"]
    assert row.verdict == "ok"
    assert "e-1" in row.measured
