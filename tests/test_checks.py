"""Every planted bug is caught by the check that is meant for it, and no healthy flow is flagged."""

import copy
import math
import re
import time

import pytest
import torch
from helpers import randomise
from torch import nn

from flowlib import Flow, checks, data, losses, models, training
from flowlib.bijections import Bijection, Chain, Diagonal, Flatten, Logit, SoftLog
from flowlib.checks import check_flow
from flowlib.coupling import AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.masks import alternating, checkerboard
from flowlib.networks import MLP
from flowlib.norms import ActNorm, BatchNorm

MOONS = data.TwoMoons(noise=0.05)
X = MOONS.sample(256, seed=0)
IMAGES = (
    torch.randint(
        0, 256, (128, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    // 2
)


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


class OtherHalf(Bijection):
    """Scales the right half, and counts the other in the log-determinant."""

    def __init__(self, flip):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        self.register_buffer("m", alternating(2, flip=flip).float())

    def forward(self, x, context=None):
        shift, s = self.network(self.m * x).chunk(2, 1)
        return self.m * x + (1 - self.m) * (x * s.tanh().exp() + shift), (self.m * s.tanh()).sum(1)

    def inverse(self, z, context=None):
        shift, s = self.network(self.m * z).chunk(2, 1)
        return self.m * z + (1 - self.m) * (z - shift) * (-s.tanh()).exp(), -(
            self.m * s.tanh()
        ).sum(1)


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


class Doubled(AffineCoupling):
    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z, log_det + 0.35


def broken(value):
    flow = pair(AffineCoupling)
    torch.nn.init.constant_(flow.bijection[1].rescale, value)
    return flow


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
    flow.bijection[0].initialise(X)
    with torch.no_grad():
        for layer in flow.bijection[1:]:
            layer.rescale.zero_()
    return flow


def dead_network():
    flow = pair(AffineCoupling)
    with torch.no_grad():
        flow.bijection[0].network[0].bias.fill_(-100.0)
    return flow


def averaged_weights_with_the_statistics_of_others():
    """As after training with an average of the weights: it has the running statistics of the first step's weights."""
    flow = flow_2d(coupling(), BatchNorm(2), coupling(flip=True))
    training.fit(flow, MOONS, steps=20, lr=2e-2, batch_size=64, seed=0, progress=False)
    flow.bijection[1].running_mean.zero_()
    flow.bijection[1].running_var.fill_(1.0)
    return flow


class MaskedArray(AffineCoupling):
    """Keeps a constant that belongs to the model as a plain tensor, as `.cuda()` on a mask would."""

    def __init__(self, mask, network):
        super().__init__(mask, network)
        self.order_of_learning = torch.randperm(2)


class Noisy(AffineCoupling):
    def forward(self, x, context=None):
        return super().forward(x + 1e-2 * torch.randn_like(x), context)


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
    layers = [AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, (16,))) for i in range(16)]
    return randomise(Flow(Chain(*layers), shape=(2,)), size=0.5)


def of_images(dequantize=None, norm=()):
    torch.manual_seed(0)
    layers = [
        AffineCoupling(checkerboard(8, 8, flip=flip).flatten(), MLP(32, 64, (16,)))
        for flip in (False, True)
    ]
    return randomise(
        Flow(
            Chain(dequantize or Dequantize(), Logit(), Flatten((1, 8, 8)), *norm, *layers),
            shape=(1, 8, 8),
        ),
        size=0.05,
    )


def continuous_images():
    layers = [
        AffineCoupling(alternating(64, flip=flip), MLP(32, 64, (16,))) for flip in (False, True)
    ]
    return randomise(Flow(Chain(*layers), shape=(64,)), size=0.05)


BUGS = {  # name: the flow, the data, further arguments, the check that must fail
    "log-det alone": (
        lambda: pair(AffineCoupling),
        X,
        {"loss": lambda z, log_det: -log_det.mean()},
        "prior in the loss",
    ),
    "wrong sign in the loss": (
        lambda: pair(AffineCoupling),
        X,
        {"loss": lambda z, d: losses.nll(z, -d)},
        "log_det in the loss",
    ),
    "wrong sign of log_det": (lambda: pair(WrongSign), X, {}, "log_det of forward"),
    "mask times s": (
        lambda: flow_2d(MaskTimesScale(False), MaskTimesScale(True)),
        X,
        {},
        "round trip of data",
    ),
    "mask times s in the determinant": (
        lambda: flow_2d(OtherHalf(False), OtherHalf(True)),
        X,
        {},
        "log_det of forward",
    ),
    "masks never alternate": (
        lambda: flow_2d(coupling(), ActNorm(2), coupling()),
        X,
        {},
        "dimensions never coupled",
    ),
    "unbounded scale": (lambda: pair(Unbounded), X, {}, "bound on the scales"),
    "no dequantisation": (continuous_images, IMAGES.flatten(1) / 255, {}, "data are continuous"),
    "half of the noise": (lambda: of_images(HalfNoise()), IMAGES, {}, "dequantisation noise"),
    "batch norm leaks": (
        lambda: flow_2d(coupling(), LeakyNorm(2), coupling(flip=True)),
        X,
        {},
        "rows leak into one another",
    ),
    "statistics of other weights": (foreign_statistics, X, {}, "training and evaluation"),
    "ActNorm starts again": (forgetful, X, {}, "state lost by saving"),
    "joined in the wrong order": (lambda: pair(WrongOrder), X, {}, "round trip of data"),
    "SoftLog's inverse log_det": (
        lambda: flow_2d(BadSoftLog(0.5), coupling(), coupling(flip=True)),
        X,
        {},
        "log_det of inverse",
    ),
    "zero times zero": (zero_times_zero, X, {}, "parameters without gradient"),
    "a dead network": (dead_network, X, {}, "dead networks"),
    "averaged weights": (
        averaged_weights_with_the_statistics_of_others,
        X,
        {},
        "training and evaluation",
    ),
    "a plain tensor as state": (lambda: pair(MaskedArray), X, {}, "state lost by saving"),
    "noise where none is expected": (lambda: pair(Noisy), X, {}, "determinism"),
    "prior averaged over dimensions": (
        lambda: pair(AffineCoupling),
        X,
        {"loss": lambda z, d: z.square().mean() / 2 - d.mean()},
        "prior in the loss",
    ),
    "no log 256": (of_images, IMAGES, {"bits_per_dim": -3.0}, "bits/dim"),
    "half of the noise, outside": (
        continuous_images,
        (IMAGES.flatten(1) + torch.rand(128, 64) / 2) / 256,
        {},
        "dequantisation noise",
    ),
    "weights that are no numbers": (lambda: broken(math.nan), X, {}, "finite"),
    "density of mass 2": (lambda: pair(Doubled), X, {}, "integral of the density"),
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
    rounding, wrong = (
        check_flow(deep(), X)["round trip of data"],
        check_flow(pair(WrongOrder), X)["round trip of data"],
    )
    assert "in float64: this is rounding" in rounding.meaning
    assert "after 16 layers" in rounding.meaning
    assert "the inverse is another function" in wrong.meaning


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
    y = Dequantize()(IMAGES, noise=torch.rand(IMAGES.shape))[0]
    logit = losses.bits_per_dim(Logit()(y)[1], (1, 8, 8)).mean().item()
    given = offset(own, logit)
    row = check_flow(flow, IMAGES, bits_per_dim=given)["bits/dim"]
    assert row.verdict == ("ok" if given == own else "FAIL")
    assert (story or "measured here") in row.meaning
    assert (" is missing:" in row.meaning or "twice" in row.meaning) == (story is not None)


@pytest.mark.parametrize(("given", "ok"), [(3.5, True), (-4.5, False), (11.2, False)])
def test_without_dequantize_a_reported_figure_must_be_plausible(given, ok):
    assert (
        "bits/dim"
        in check_flow(continuous_images(), torch.randn(64, 64), bits_per_dim=given).failed
    ) == (not ok)


# Health


def prepared(flow, x, steps, lr):
    """Trained a little; with one step at no learning rate ActNorms and running statistics have seen data, and no more."""
    training.fit(
        flow, x, steps=steps, lr=lr, batch_size=32, seed=0, precision="float32", progress=False
    )
    if x is not MOONS:
        training.reestimate_statistics(
            flow, [(x, None, flow.draw_noise(len(x), torch.Generator().manual_seed(0)))]
        )
    return flow.eval()


PLANE = {
    "nice": models.nice_2d,
    "realnvp": models.realnvp_2d,
    "shallow": lambda: models.realnvp_2d(depth=2, hidden=(32,)),
}
SMALL = {"shape": (1, 8, 8), "width": 4, "blocks": 1, "doubling": False}
BOARDS = {
    "mlp": lambda: models.realnvp_mlp((1, 8, 8), depth=4, hidden=(32,)),
    "mlp, joint, softlog": lambda: models.realnvp_mlp(
        (1, 8, 8),
        depth=4,
        hidden=(32,),
        separate=False,
        mask="checkerboard",
        norm="actnorm",
        tau=5.0,
    ),
    "mlp, batch norm": lambda: models.realnvp_mlp(
        (1, 8, 8), depth=4, hidden=(32,), norm="batchnorm"
    ),
    "two scales": lambda: models.realnvp_image(**SMALL, scales=2),
    "three scales": lambda: models.realnvp_image(**SMALL, scales=3),
    "no batch norm": lambda: models.realnvp_image(**SMALL, scales=2, batch_norm=False),
    "learned noise": lambda: models.realnvp_image(**SMALL, scales=2, dequant_couplings=2),
}
HEALTHY = [(name, build, X) for name, build in PLANE.items()] + [
    (name, build, IMAGES) for name, build in BOARDS.items()
]


@pytest.mark.parametrize(("steps", "lr"), [(1, 1e-12), (15, 2e-3)], ids=["initialised", "trained"])
@pytest.mark.parametrize(("name", "build", "x"), HEALTHY, ids=[name for name, _, _ in HEALTHY])
def test_a_healthy_flow_is_not_flagged(name, build, x, steps, lr):
    flow = prepared(build(), MOONS if x is X else x, steps, lr)
    report = check_flow(flow, x, loss=losses.nll)
    assert report.ok, str(report)


def test_it_changes_nothing():
    flow = models.realnvp_mlp((1, 8, 8), depth=2, hidden=(8,), norm="batchnorm").train()
    flow.bijection[4].network[0][-1].weight.grad = torch.ones_like(
        flow.bijection[4].network[0][-1].weight
    )
    before, grads = (
        copy.deepcopy(flow.state_dict()),
        [None if p.grad is None else p.grad.clone() for p in flow.parameters()],
    )
    random, x = torch.get_rng_state(), IMAGES.clone()
    check_flow(flow, IMAGES, loss=losses.nll, bits_per_dim=3.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())
    assert all(a is p.grad or torch.equal(a, p.grad) for a, p in zip(grads, flow.parameters()))
    assert flow.training
    assert all(module.training for module in flow.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, IMAGES)


# Other libraries' flows, and functions


class Linear(nn.Module):
    """Not of flowlib: an inverse without a log_det."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, 1.0], [-0.5, 1.0]]))

    def forward(self, x):
        return x @ self.weight.T, torch.linalg.slogdet(self.weight).logabsdet.expand(len(x))

    def inverse(self, z):
        return z @ torch.linalg.inv(self.weight).T


def test_any_module_with_forward_and_inverse_will_do():
    report = check_flow(Linear(), X, loss=losses.nll)
    assert report.ok, str(report)
    assert "log_det of inverse" not in [row.check for row in report.rows]


class Wrapper(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow


class OfNflows(Wrapper):
    def forward(self, x):
        return self.flow._transform(x)

    def inverse(self, z):
        return self.flow._transform.inverse(z)


class OfNormflows(Wrapper):
    def forward(self, x):
        return self.flow.inverse_and_log_det(x)

    def inverse(self, z):
        return self.flow.forward_and_log_det(z)


class OfZuko(Wrapper):
    def forward(self, x):
        return self.flow().transform.call_and_ladj(x)

    def inverse(self, z):
        return self.flow().transform.inv.call_and_ladj(z)


class OfFrEIA(Wrapper):
    def forward(self, x):
        return self.flow(x)

    def inverse(self, z):
        return self.flow(z, rev=True)


def small_network(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, n_out))


def flow_of_nflows(library):
    from nflows import distributions, flows, nn, transforms

    network = lambda n_in, n_out: nn.nets.ResidualNet(n_in, n_out, hidden_features=16)  # noqa: E731
    layers = [transforms.AffineCouplingTransform([i % 2, 1 - i % 2], network) for i in range(4)]
    return OfNflows(
        flows.Flow(
            transforms.CompositeTransform([transforms.ActNorm(2), *layers]),
            distributions.StandardNormal([2]),
        )
    )


def flow_of_normflows(library):
    layers = [
        library.flows.CoupledRationalQuadraticSpline(2, 1, 16, reverse_mask=i % 2 == 1)
        for i in range(4)
    ]
    return OfNormflows(
        library.NormalizingFlow(library.distributions.DiagGaussian(2, trainable=False), layers)
    )


def flow_of_zuko(library):
    return OfZuko(library.flows.NICE(2, transforms=4, hidden_features=(16,)))


def flow_of_freia(library):
    from FrEIA.modules import ActNorm, GLOWCouplingBlock

    flow = library.framework.SequenceINN(2)
    flow.append(ActNorm)
    for _ in range(3):
        flow.append(GLOWCouplingBlock, subnet_constructor=small_network)
    return OfFrEIA(flow)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "build"),
    [
        ("nflows", flow_of_nflows),
        ("normflows", flow_of_normflows),
        ("zuko", flow_of_zuko),
        ("FrEIA", flow_of_freia),
    ],
)
def test_flows_of_other_libraries_pass_through_a_wrapper(library, build):
    flow = build(pytest.importorskip(library))
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=1e-3)
    for step in range(20):
        losses.nll(*flow(MOONS.sample(64, seed=step))).backward()
        optimizer.step()
        optimizer.zero_grad()
    report = check_flow(flow, X, loss=losses.nll)
    assert report.ok, str(report)


@pytest.mark.filterwarnings("ignore")
def test_the_exponential_without_a_bound_of_another_library_is_found():
    library = pytest.importorskip("normflows")
    layers = []
    for _ in range(4):
        layers += [
            library.flows.AffineCouplingBlock(library.nets.MLP([1, 16, 2], init_zeros=True)),
            library.flows.Permute(2, mode="swap"),
        ]
    flow = OfNormflows(
        library.NormalizingFlow(library.distributions.DiagGaussian(2, trainable=False), layers)
    )
    assert check_flow(flow, X).failed == ["bound on the scales"]


def test_two_functions_will_do():
    linear = lambda x: (2 * x, x.new_full((len(x),), 2 * torch.tensor(2.0).log().item()))  # noqa: E731
    assert check_flow(x=X, forward=linear, inverse=lambda z: z / 2).ok
    wrong = check_flow(x=X, forward=lambda x: (2 * x, x.new_zeros(len(x))), inverse=lambda z: z / 2)
    assert {"log_det of forward", "integral of the density"} <= set(wrong.failed)


@pytest.mark.parametrize(
    "log_det",
    [
        lambda x: torch.zeros(len(x), 1),
        lambda x: torch.zeros(()),
        lambda x: torch.zeros(len(x), dtype=torch.long),
    ],
)
def test_a_log_det_of_the_wrong_shape_or_dtype_ends_the_report(log_det):
    report = check_flow(x=X, forward=lambda x: (x, log_det(x)), inverse=lambda z: z)
    assert report.failed == ["shape of log_det"]
    assert len(report.rows) == 1


def test_a_z_of_another_size_is_named():
    report = check_flow(x=X, forward=lambda x: (x[:, :1], x[:, 0]), inverse=lambda z: z)
    assert report.failed == ["shape of log_det"]
    assert report.rows[0].meaning.endswith("not (256, 1) for (256, 2)")


def test_rows_that_are_not_finite_are_counted():
    x = X.clone()
    x[3] = 1e30
    report = check_flow(x=x, forward=lambda x: (x * x.abs(), x[:, 0]), inverse=lambda z: z)
    assert report.failed == ["finite"]
    assert report["finite"].measured == "1 of 256"


MNIST_SIZE = IMAGES.repeat(1, 1, 4, 4)[..., 2:30, 2:30]


@pytest.mark.parametrize(
    ("build", "x"),
    [(models.nice_2d, X), (lambda: models.realnvp_mlp(hidden=(64,)), MNIST_SIZE)],
    ids=["plane", "image"],
)
def test_it_takes_seconds(build, x):
    flow, start = randomise(build(), size=0.01), time.process_time()
    check_flow(flow, x, loss=losses.nll)
    assert time.process_time() - start < 5


# The report


def test_the_report_prints_as_a_table_and_as_html():
    report = check_flow(pair(WrongSign), X)
    text, page = str(report), report._repr_html_()
    lines = text.splitlines()
    assert lines[0].split() == ["check", "verdict", "measured", "threshold", "meaning"]
    assert len({line.index("  ok  ") for line in lines if "  ok  " in line}) == 1
    assert max(map(len, lines[:-1])) < 170
    assert lines[-1] == f"Failed: {', '.join(report.failed)}."
    assert all(row.check in text and row.measured in text for row in report.rows)
    assert repr(report) == text
    assert page.count("<tr") == len(report.rows) + 1
    assert page.count("bold") == len(report.failed)
    assert "N(0, I)" in page
    assert str(check_flow(pair(AffineCoupling), X)).endswith("No check failed.")


def test_html_is_escaped():
    page = checks.Report([checks.Row("a < b", "ok", "<b>", "&", "x")])._repr_html_()
    assert "a &lt; b" in page
    assert "<b>" not in page


def test_a_check_is_found_by_its_name():
    report = check_flow(pair(AffineCoupling), X)
    assert report["finite"].measured == "0 of 256"
    with pytest.raises(KeyError, match="bits/dim"):
        report["bits/dim"]


def test_the_first_wrong_layer_is_named():
    report = check_flow(flow_2d(coupling(), ActNorm(2), coupling(flip=True, kind=WrongSign)), X)
    assert report["log_det of forward"].meaning.endswith("first in layer 2, WrongSign")
    assert report["log_det of inverse"].meaning.endswith("first in layer 2, WrongSign")


def test_scales_layer_by_layer_and_values_beyond_tau():
    report = check_flow(flow_2d(coupling(), coupling(flip=True), SoftLog(1.0)), X)
    assert re.search(r"largest \|s\| is \d\.\d\d \d\.\d\d$", report["log-scales"].meaning)
    assert re.fullmatch(r"\d+\.\d\d% of values", report["beyond SoftLog's tau"].measured)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"x": X}, "give a flow, or both of forward= and inverse="),
        (
            {"flow": Diagonal(2), "x": X, "forward": lambda x: x, "inverse": lambda z: z},
            "give a flow, or both of forward= and inverse=",
        ),
        (
            {"flow": Diagonal(2)},
            "x must be a tensor .* of at least two data points, got a NoneType",
        ),
        (
            {"flow": Diagonal(2), "x": X[:1]},
            r"x must be a tensor .* of at least two data points, got one of shape \(1, 2\)",
        ),
        (
            {"flow": nn.Linear(2, 2), "x": X},
            r"a flow needs a method inverse\(z\); this Linear has none",
        ),
    ],
)
def test_senseless_arguments_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_flow(**arguments)


def test_large_images_are_checked_on_boards_cut_out_of_them():
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    flow = prepared(
        models.realnvp_image((3, 16, 16), scales=2, width=8, blocks=1), images, 1, 1e-12
    )
    report = check_flow(flow, images)
    assert report.ok, str(report)
    assert report["log_det of forward"].meaning.endswith("boards cut out of the images, D = 48")
    assert report["dimensions never coupled"].measured == "0 of 48"


def test_what_is_planted_in_a_large_image_flow_is_found_on_the_boards():
    flow = models.realnvp_image((1, 32, 32), scales=2, width=8, blocks=1, batch_norm=False)
    flow.bijection[2].scales[0][1].__class__ = WrongSign
    assert (
        "log_det of forward"
        in check_flow(flow, torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)).failed
    )


def test_a_large_flow_that_cannot_be_cut_says_what_was_not_checked():
    flow = models.realnvp_mlp((3, 20, 20), depth=2, hidden=(8,))
    row = check_flow(flow, torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8))[
        "log_det of forward"
    ]
    assert (row.verdict, row.measured) == ("note", "not checked")
    assert "D = 1,200 is above 1,024" in row.meaning


def test_a_conditional_flow_is_checked_with_its_context():
    torch.manual_seed(0)
    context = torch.rand(256, 3)
    flow = randomise(models.realnvp_2d(depth=4, hidden=(16,), context_features=3))
    report = check_flow(flow, X, context=context, loss=losses.nll)
    assert report.ok, str(report)
    assert "integral of the density" not in [row.check for row in report.rows]
    with pytest.raises(ValueError, match="built for a context of 3 features"):
        check_flow(flow, X)


def test_a_flow_of_four_scales_is_cut_as_small_as_it_can_be(monkeypatch):
    monkeypatch.setattr(
        checks, "LARGEST_JACOBIAN", 200
    )  # even the smallest board, 16 x 16, is above it
    torch.manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 32, 32), dtype=torch.uint8)
    flow = models.realnvp_image((1, 32, 32), scales=4, width=4, blocks=1)
    training.fit(flow, images, steps=1, batch_size=32, seed=0, progress=False)
    row = check_flow(flow, images)["log_det of forward"]
    assert (row.verdict, row.measured) == ("note", "not checked")
    assert "D = 256 is above 200" in row.meaning
