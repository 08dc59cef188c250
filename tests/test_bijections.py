"""The laws that every bijection keeps, over one dictionary of constructors; then what each one
promises by itself."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers import assert_close, log_slope, randomise

from flowlib import masks, models
from flowlib.bijections import (
    Bijection,
    Chain,
    Diagonal,
    Flatten,
    Inverse,
    Logit,
    Permute,
    SoftLog,
    Squeeze,
)
from flowlib.coupling import AdditiveCoupling, AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.networks import MLP
from flowlib.norms import ActNorm, BatchNorm, initialising

N, CONTEXT = 12, 3  # points per test, context features


def wide(n, D):
    return 2 * torch.randn(n, D)


def logit_range(n, D):
    return (2 * torch.rand(n, D) - 1) * math.log(0.95 / 0.05)


def beyond(tau):
    """Points well inside, around and far beyond tau."""
    return lambda n, D: tau * (torch.rand(n, D) - 0.5) * 10 ** (torch.rand(n, D) * 3 - 1)


def a_little_beyond(tau):
    return lambda n, D: (2 * torch.rand(n, D) - 1) * (tau + 5)


class Case(NamedTuple):
    """How to build a bijection of D dimensions, and where its data and its latents live."""

    build: Callable
    data: Callable = wide
    latents: Callable = wide
    context_features: int = 0
    dimensions: tuple = tuple(range(2, 10))


def any_mask(D):
    """Any number of dimensions passes through, but for none and all."""
    rng = torch.Generator().manual_seed(D)
    passing = torch.randint(1, D, (1,), generator=rng)
    return torch.randperm(D, generator=rng) < passing


MASKS = {
    "alternating": masks.alternating,
    "alternating flipped": lambda D: masks.alternating(D, flip=True),
    "halves": masks.halves,
    "halves flipped": lambda D: masks.halves(D, flip=True),
    "random": lambda D: masks.random(D, seed=D),
    "any": any_mask,
}


def coupling(kind, mask, context_features=0, hidden=(8,)):
    return kind(
        mask,
        MLP(
            int(mask.sum()), kind.parameters_per_dim * int((~mask).sum()), hidden, context_features
        ),
    )


def mixed_chain(D):
    return Chain(
        ActNorm(D),
        coupling(AffineCoupling, masks.halves(D), CONTEXT),
        Permute([*range(1, D), 0]),
        BatchNorm(D),
        Inverse(Chain(coupling(AdditiveCoupling, masks.alternating(D), CONTEXT), Diagonal(D))),
        SoftLog(2.0),
    )


CASES = {
    "Logit": Case(lambda D: Logit(), torch.rand, logit_range),
    "Logit alpha=0.2": Case(lambda D: Logit(0.2), torch.rand, lambda n, D: logit_range(n, D) / 3),
    "Inverse Logit": Case(lambda D: Inverse(Logit()), logit_range, torch.rand),
    "SoftLog tau=1.5": Case(lambda D: SoftLog(1.5), beyond(1.5), a_little_beyond(1.5)),
    "SoftLog tau=100": Case(lambda D: SoftLog(), beyond(100.0), a_little_beyond(100.0)),
    "Inverse SoftLog": Case(lambda D: Inverse(SoftLog(1.5)), a_little_beyond(1.5), beyond(1.5)),
    "Diagonal": Case(Diagonal),
    "BatchNorm": Case(BatchNorm),
    "ActNorm": Case(ActNorm),
    "Flatten": Case(lambda D: Flatten((D,))),
    "Permute": Case(lambda D: Permute(torch.randperm(D))),
    "Chain": Case(mixed_chain, context_features=CONTEXT),
    "Inverse Chain": Case(lambda D: Inverse(Chain(*mixed_chain(D)[:-1])), context_features=CONTEXT),
}
for mask_name, mask in MASKS.items():
    for kind in (AdditiveCoupling, AffineCoupling):
        for features in (0, CONTEXT):
            name = f"{kind.__name__} {mask_name}{' with context' if features else ''}"
            CASES[name] = Case(
                lambda D, k=kind, m=mask, f=features: coupling(k, m(D), f),
                context_features=features,
            )
for builder in (models.nice_2d, models.realnvp_2d):
    for features in (0, CONTEXT):
        name = f"{builder.__name__}{' with context' if features else ''}"
        build = lambda D, b=builder, f=features: b(context_features=f).bijection  # noqa: E731
        CASES[name] = Case(build, context_features=features, dimensions=(2,))

every_case = pytest.mark.parametrize("name", CASES)
both_directions = pytest.mark.parametrize("direction", ["forward", "inverse"])


def there_and_back(name, D, direction, dtype):
    """The map asked for, its way back, and points of its domain."""
    torch.manual_seed(D)
    case = CASES[name]
    bijection = randomise(case.build(D)).to(dtype)
    context = torch.randn(N, case.context_features, dtype=dtype) if case.context_features else None
    maps = [lambda x: bijection(x, context), lambda z: bijection.inverse(z, context)]
    there, back = maps if direction == "forward" else maps[::-1]
    return there, back, (case.data if direction == "forward" else case.latents)(N, D).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-10)],
    ids=["float32", "float64"],
)
@both_directions
@every_case
def test_there_and_back_again(name, direction, dtype, tolerance):
    for D in CASES[name].dimensions:
        there, back, x = there_and_back(name, D, direction, dtype)
        with torch.no_grad():
            y, log_det = there(x)
            returned, log_det_back = back(y)
        assert_close(returned, x, tolerance)
        assert_close(log_det_back, -log_det, 10 * tolerance)
        assert y.dtype == log_det.dtype == dtype
        assert log_det.shape == (N,)


@both_directions
@every_case
def test_log_det_is_that_of_the_jacobian(name, direction):
    for D in CASES[name].dimensions:
        there, _, x = there_and_back(name, D, direction, torch.float64)
        assert_close(there(x)[1].detach(), log_slope(lambda rows, f=there: f(rows)[0], x), 1e-9)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.context_features])
def test_the_context_matters(name):
    case = CASES[name]
    bijection = randomise(case.build(2))
    x = wide(N, 2)
    first, second = (bijection(x, torch.randn(N, CONTEXT))[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "name", [name for name in CASES if "Coupling" in name or "nice" in name or "realnvp" in name]
)
def test_identity_at_start(name):
    case = CASES[name]
    D = max(case.dimensions)
    bijection = randomise(case.build(D), size=0)
    x = wide(N, D)
    context = torch.randn(N, case.context_features) if case.context_features else None
    z, log_det = bijection(x, context)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(N))


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if list(case.build(2).parameters())]
)
def test_three_adam_steps_reach_every_parameter(name):
    torch.manual_seed(0)
    case = CASES[name]
    D = max(case.dimensions)
    bijection = randomise(case.build(D), size=0)
    optimizer = torch.optim.Adam(bijection.parameters(), lr=0.01)
    reached = set()
    for _ in range(3):
        context = torch.randn(N, case.context_features) if case.context_features else None
        z, log_det = bijection(case.data(N, D), context)
        optimizer.zero_grad()
        (z.square().sum(1) / 2 - log_det).mean().backward()
        optimizer.step()
        reached |= {
            name for name, parameter in bijection.named_parameters() if parameter.grad.any()
        }
    assert reached == {name for name, _ in bijection.named_parameters()}


def test_the_protocol_leaves_both_directions_to_its_heirs():
    for method in (Bijection().forward, Bijection().inverse):
        with pytest.raises(NotImplementedError):
            method(torch.zeros(1, 2))


WIDTH_3 = {
    "Diagonal": Diagonal,
    "BatchNorm": BatchNorm,
    "ActNorm": ActNorm,
    "Permute": lambda D: Permute(range(D)),
}


@both_directions
@pytest.mark.parametrize("name", WIDTH_3)
def test_input_of_another_width_is_refused(name, direction):
    bijection = randomise(WIDTH_3[name](3))
    for width in (
        1,
        2,
        4,
    ):  # a width of 1 would broadcast, a width of 4 would lose a dimension to Permute
        with pytest.raises(ValueError, match=r"takes \(B, 3"):
            (bijection if direction == "forward" else bijection.inverse)(torch.zeros(5, width))


@pytest.mark.parametrize("shape", [(0, 2), (0, 2, 4, 4)])
@pytest.mark.parametrize("kind", [BatchNorm, ActNorm])
def test_a_norm_maps_an_empty_batch_to_an_empty_batch(kind, shape):
    norm = randomise(kind(2))
    for map_ in (norm, norm.inverse):
        out, log_det = map_(torch.zeros(shape))
        assert out.shape == shape
        assert log_det.shape == (0,)


IMAGE_LAYERS = {
    "Diagonal": lambda C: Diagonal(C),
    "BatchNorm": lambda C: BatchNorm(C),
    "BatchNorm after a checkerboard": lambda C: BatchNorm(C, masks.checkerboard(2, 2)),
    "ActNorm": lambda C: ActNorm(C),
    "Permute": lambda C: Permute(torch.arange(C).flip(0)),
    "Flatten": lambda C: Flatten((C, 2, 2)),
    "Logit": lambda C: Inverse(Logit()),
    "SoftLog": lambda C: SoftLog(0.5),
    "Squeeze": lambda C: Squeeze(),
    "Squeeze checkerboard": lambda C: Squeeze("checkerboard"),
    "Inverse": lambda C: Inverse(ActNorm(C)),
    "Chain": lambda C: Chain(ActNorm(C), Squeeze(), Diagonal(4 * C)),
}


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_a_layer_of_images_has_the_log_det_of_its_jacobian(name, C):
    layer = randomise(IMAGE_LAYERS[name](C), size=0.5).double()
    x = torch.randn(4, C, 2, 2, dtype=torch.float64)
    z, log_det = layer(x)
    back, log_det_back = layer.inverse(z.detach())
    flat = lambda rows: layer(rows.view(-1, C, 2, 2))[0].flatten(1)  # noqa: E731
    assert_close(log_det.detach(), log_slope(flat, x.flatten(1)), 1e-9)
    assert_close(back.detach(), x, 1e-9)
    assert_close(log_det_back.detach(), -log_det.detach(), 1e-9)


@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_a_layer_maps_an_empty_batch_there_and_back(name):
    layer = randomise(IMAGE_LAYERS[name](3))
    z, log_det = layer(torch.zeros(0, 3, 2, 2))
    assert layer.inverse(z)[0].shape == (0, 3, 2, 2)
    assert log_det.shape == (0,)


@pytest.mark.parametrize("kind", [Diagonal, BatchNorm, ActNorm])
def test_a_senseless_width_is_refused(kind):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got -3"):
        kind(-3)


# Chain and Inverse


def test_a_chain_is_indexed_sliced_and_iterated():
    chain = Chain(Diagonal(2), SoftLog(), Permute([1, 0]))
    assert isinstance(chain[1], SoftLog)
    assert isinstance(chain[:2], Chain)
    assert [type(layer) for layer in chain] == [Diagonal, SoftLog, Permute]


def test_chains_add_up_to_a_chain_and_nothing_else_is_added():
    first, second = Chain(Diagonal(2), SoftLog()), Chain(Permute([1, 0]))
    both, x = first + second, torch.randn(3, 2)
    assert isinstance(both, Chain) and [*both] == [*first, *second]
    assert torch.equal(both.inverse(both(x)[0])[0], x)
    with pytest.raises(TypeError, match="unsupported operand"):
        first + SoftLog()


def test_an_empty_chain_is_refused():
    with pytest.raises(ValueError, match="at least one bijection"):
        Chain()


# Dequantize

every_bits = pytest.mark.parametrize("bits", range(1, 9))


def all_values(bits):
    """Every value that images of so many bits hold, one in each image of one pixel."""
    return torch.arange(2**bits).to(torch.uint8).view(-1, 1, 1, 1)


@every_bits
def test_dequantize_adds_its_noise_and_divides_by_the_number_of_levels(bits):
    x = torch.randint(0, 2**bits, (5, 3, 2, 4), dtype=torch.uint8)
    noise = torch.rand(5, 3, 2, 4)
    y, log_det = Dequantize(bits)(x, noise=noise)
    assert_close(y, (x.float() + noise) / 2**bits, 1e-7)
    assert_close(log_det, torch.full((5,), -24 * math.log(2**bits)), 1e-6)
    assert y.dtype == log_det.dtype == torch.float32


@every_bits
def test_dequantize_at_bin_centres_is_undone_exactly(bits):
    dequantize, x = Dequantize(bits), all_values(bits)
    y, log_det = dequantize(x, noise=0.5)
    returned, log_det_back = dequantize.inverse(y)
    assert returned.dtype == torch.uint8
    assert torch.equal(returned, x)
    assert torch.equal(log_det_back, -log_det)
    assert_close(y.flatten().double(), (torch.arange(2**bits) + 0.5).double() / 2**bits, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantize_draws_uniform_noise_that_stays_within_the_bin(dtype):
    dequantize, x = Dequantize().to(dtype), torch.randint(0, 256, (20_000, 1), dtype=torch.uint8)
    y, log_det = dequantize(x)
    noise = 256 * y - x
    assert y.dtype == log_det.dtype == dtype
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert abs(noise.mean() - 1 / 2) < 5 / (12 * 20_000) ** 0.5
    assert noise.unique().numel() > 10_000
    assert ((noise * 2**24) % 1).any() == (dtype == torch.float64)
    torch.manual_seed(3)
    first, second = dequantize(x)[0], dequantize(x)[0]
    torch.manual_seed(3)
    assert torch.equal(dequantize(x)[0], first)
    assert not torch.equal(first, second)


def test_dequantize_in_float64_keeps_what_float32_rounds_away():
    noise = torch.full((1, 1), 1e-9, dtype=torch.float64)
    y, log_det = Dequantize().double()(torch.tensor([[200]], dtype=torch.uint8), noise=noise)
    assert (256 * y - 200).item() == pytest.approx(1e-9, rel=1e-3)
    assert log_det.item() == pytest.approx(-math.log(256), abs=1e-14)


@every_bits
def test_dequantize_keeps_what_lies_outside_the_unit_interval_within_its_levels(bits):
    top = 2**bits - 1
    y = torch.tensor([[-7.0], [-1e-6], [0.0], [1 - 2**-24], [1.0], [1.5], [1e9]])
    assert Dequantize(bits).inverse(y)[0].flatten().tolist() == [0, 0, 0, top, top, top, top]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_bits
def test_the_largest_noise_there_is_stays_in_its_bin(bits, dtype):
    x = all_values(bits)
    noise = torch.nextafter(torch.ones(x.shape, dtype=dtype), torch.zeros((), dtype=dtype))
    dequantize = Dequantize(bits).to(dtype)
    y, _ = dequantize(x, noise=noise)
    assert (y < (x.to(dtype) + 1) / 2**bits).all()
    assert torch.equal(dequantize.inverse(y)[0], x)
    assert Logit(0.0)(y)[0].isfinite().all()


def test_noise_is_never_exactly_zero_where_the_logit_is_infinite(monkeypatch):
    dequantize, black = Dequantize(), torch.zeros(2, 3, dtype=torch.uint8)
    monkeypatch.setattr(
        "flowlib.dequantize.rand", lambda shape, generator, like: like.new_zeros(shape)
    )
    assert Logit(0.0)(dequantize(black)[0])[0].isfinite().all()


@pytest.mark.parametrize("bits", [0, -1, 2.5, True, "8", None])
def test_dequantize_refuses_senseless_bits(bits):
    with pytest.raises(ValueError, match="bits must be an integer of at least 1, got"):
        Dequantize(bits)


@pytest.mark.parametrize("bits", [9, 16])
def test_dequantize_refuses_more_bits_than_uint8_has(bits):
    with pytest.raises(ValueError, match=f"uint8 images hold at most 8 bits, got bits={bits}"):
        Dequantize(bits)


def test_dequantize_has_nothing_to_store():
    assert Dequantize().state_dict() == {}


# Flatten


def test_flatten_reads_row_by_row_and_back():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    flatten = Flatten((3, 2, 2))
    z, log_det = flatten(x)
    assert z.tolist() == [list(range(12)), list(range(12, 24))]
    assert torch.equal(log_det, torch.zeros(2))
    assert torch.equal(flatten.inverse(z)[0], x)


@pytest.mark.parametrize("shape", [(5, 2, 2, 3), (5, 12), (5, 3, 2, 2, 1), (3, 2, 2)])
def test_flatten_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"this layer takes \(B, 3, 2, 2\), got"):
        Flatten((3, 2, 2))(torch.zeros(shape))


def test_flatten_refuses_vectors_of_another_width_on_the_way_back():
    with pytest.raises(ValueError, match=r"takes \(B, 12\)"):
        Flatten((3, 2, 2)).inverse(torch.zeros(4, 11))


# Logit


def test_logit_is_the_authors_formula():
    x = torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64)
    expected = [math.log(p / (1 - p)) for p in (0.05, 0.275, 0.95)]
    assert Logit()(x)[0].tolist()[0] == pytest.approx(expected, abs=1e-12)


def test_logit_gives_nan_outside_its_domain():
    inside, outside = (
        Logit()(torch.tensor([[-0.05, 1.05]]))[0],
        Logit()(torch.tensor([[-0.06, 1.06]]))[0],
    )
    assert inside.isfinite().all()
    assert outside.isnan().all()


@pytest.mark.parametrize("alpha", [-0.01, 0.5, 1.0, float("nan")])
def test_logit_refuses_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 0.5\), got"):
        Logit(alpha)


# SoftLog


def test_softlog_is_the_identity_up_to_tau_and_logarithmic_beyond():
    x = torch.tensor([[-3.0, -2.0, 0.0, 1.9, 2.0, 2.0 + math.e - 1]], dtype=torch.float64)
    z, log_det = SoftLog(2.0)(x)
    assert z.tolist()[0] == pytest.approx([-2 - math.log(2), -2, 0, 1.9, 2, 3], abs=1e-12)
    assert log_det.item() == pytest.approx(-math.log(2) - 1, abs=1e-12)


@both_directions
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5])
def test_softlog_has_slope_one_at_zero_and_where_it_bends(value, direction):
    softlog = SoftLog(1.5)
    map_ = softlog if direction == "forward" else softlog.inverse
    slope = torch.autograd.functional.jacobian(lambda x: map_(x)[0], torch.tensor([[value]]))
    assert slope.item() == 1


def test_softlog_keeps_huge_values_and_their_gradient_finite():
    x = torch.tensor([[1e30, -1e30]], requires_grad=True)
    z, log_det = SoftLog()(x)
    (z.sum() + log_det.sum()).backward()
    assert z.abs().max() < 200
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_softlog_refuses_tau_that_is_not_positive(tau):
    with pytest.raises(ValueError, match="tau must be positive, got"):
        SoftLog(tau)


# BatchNorm


def test_batchnorm_in_training_mode_uses_the_batch_and_its_log_det_holds_the_statistics_fixed():
    norm = BatchNorm(3).double()
    x = 5 + 2 * torch.randn(40, 3, dtype=torch.float64)
    z, log_det = norm.train()(x)
    mean, scale = x.mean(0), (x.var(0, correction=0) + norm.eps).sqrt()
    assert_close(z, (x - mean) / scale, 1e-12)
    assert_close(log_det, log_slope(lambda rows: (rows - mean) / scale, x), 1e-12)


def test_batchnorm_running_statistics_move_by_momentum_in_training_mode_only():
    norm, x = BatchNorm(2, momentum=0.25), torch.randn(50, 2) * 3 + 1
    norm.train()(x)
    assert_close(norm.running_mean, 0.25 * x.mean(0), 1e-5)
    assert_close(norm.running_var, 0.75 + 0.25 * x.var(0, correction=0), 1e-5)
    before = norm.running_mean.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_mean, before)


def test_batchnorm_has_no_inverse_in_training_mode():
    with pytest.raises(ValueError, match=r"no inverse in training mode: call flow.eval\(\)"):
        BatchNorm(2).train().inverse(torch.zeros(4, 2))


def test_batchnorm_refuses_to_train_on_a_batch_of_one():
    with pytest.raises(ValueError, match=r"one value per channel \(input of shape \(1, 2\)\)"):
        BatchNorm(2).train()(torch.zeros(1, 2))


# ActNorm


@pytest.mark.parametrize("shape", [(200, 3), (20, 3, 4, 4)])
def test_actnorm_standardises_the_batch_it_is_initialised_from(shape):
    norm, x = ActNorm(3).double(), 7 + 5 * torch.randn(shape, dtype=torch.float64)
    norm.initialise(x)
    channels = norm(x)[0].detach().transpose(0, 1).flatten(1)
    assert_close(channels.mean(1), torch.zeros(3, dtype=torch.float64), 1e-12)
    assert_close(channels.var(1, correction=0), torch.ones(3, dtype=torch.float64), 1e-12)


@both_directions
def test_actnorm_refuses_to_run_before_it_is_initialised(direction):
    norm = ActNorm(2)
    with pytest.raises(
        ValueError, match=r"ActNorm is not initialised: train with flowlib\.training\.fit"
    ):
        (norm if direction == "forward" else norm.inverse)(torch.zeros(4, 2))


NO_START = {
    "a constant channel": (torch.eye(3)[:, :2] * torch.tensor([1.0, 0.0]), "channel 1 is constant"),
    "one row": (torch.randn(1, 2), "1 rows: use a larger batch"),
    "no rows": (torch.randn(0, 2), "0 rows: use a larger batch"),
    "NaN": (torch.full((64, 2), math.nan), "hold NaN or infinity"),
    "huge": (1e200 * torch.randn(64, 2).double(), "e[+]200 are too large to square"),
}


@pytest.mark.parametrize(("x", "reason"), NO_START.values(), ids=NO_START)
def test_actnorm_names_why_a_batch_cannot_start_it(x, reason):
    with pytest.raises(ValueError, match=f"ActNorm cannot be initialised from .*{reason}"):
        ActNorm(2).initialise(x)


def test_every_new_actnorm_starts_in_the_direction_in_which_it_is_run_and_the_others_stay():
    old, x = randomise(ActNorm(2)), 7 + 5 * torch.randn(100, 2)
    flow = Chain(old, ActNorm(2), Inverse(Chain(ActNorm(2), Inverse(ActNorm(2)))))
    before = copy.deepcopy(old.state_dict())
    states = []
    with initialising(flow):
        for layer in flow:
            states.append(layer(states[-1] if states else x)[0].detach())
    for state in states[1:]:
        assert_close(state.mean(0), torch.zeros(2), 1e-5)
        assert_close(state.std(0, correction=0), torch.ones(2), 1e-5)
    assert all(m.initialised for m in flow.modules() if isinstance(m, ActNorm))
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in before.items())
    assert_close(flow(x)[0].detach(), states[-1], 1e-5)


def loaded_actnorm():
    source, norm = randomise(ActNorm(2)), ActNorm(2)
    norm.load_state_dict(source.state_dict())
    return norm


def test_a_loaded_actnorm_is_ready_before_its_first_call():
    x = torch.randn(4, 2)
    expected = loaded_actnorm()(x)[0]
    compiled = torch.compile(loaded_actnorm(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)[0], expected)
    assert torch.equal(torch.export.export(loaded_actnorm(), (x,)).module()(x)[0], expected)
    assert loaded_actnorm().to("meta")(x.to("meta"))[0].shape == (4, 2)
    norms = [loaded_actnorm() for _ in range(3)]
    state = torch.func.stack_module_state(norms)
    run = lambda *state: torch.func.functional_call(norms[0], state, (x,))[0]  # noqa: E731
    assert torch.equal(torch.func.vmap(run)(*state), expected.expand(3, 4, 2))


def test_actnorm_takes_its_state_from_what_is_loaded_even_if_it_has_run_before():
    fresh, used = ActNorm(2), ActNorm(2)
    used.initialise(torch.randn(10, 2))
    used(torch.zeros(1, 2))
    used.load_state_dict(fresh.state_dict())
    with pytest.raises(ValueError, match="not initialised"):
        used(torch.zeros(1, 2))


# Permute


def test_permute_reads_its_order_as_an_index():
    assert Permute([2, 0, 1])(torch.tensor([[10.0, 20.0, 30.0]]))[0].tolist() == [
        [30.0, 10.0, 20.0]
    ]


@pytest.mark.parametrize(
    "order", [[0, 0], [1, 2], [0, 2, 1, 4], [-1, 0], [[0, 1]], [0.0, 1.0], []], ids=str
)
def test_permute_refuses_a_bad_order(order):
    with pytest.raises(ValueError, match=r"order must hold each of 0 ... D-1 once, got"):
        Permute(order)
