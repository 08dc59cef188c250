import math
import pickle

import pytest
import torch
from helpers import assert_close, log_slope, randomise
from torch.distributions import Independent, Normal

from flowlib import Flow, models
from flowlib.bijections import Chain, Diagonal, Flatten, Inverse, Logit, SoftLog
from flowlib.dequantize import Dequantize, VariationalDequantize
from flowlib.flow import standard_normal_log_prob
from flowlib.losses import reverse_kl
from flowlib.models import NORMS, VECTOR_MASKS
from flowlib.norms import ActNorm

SMALL = {"depth": 4, "hidden": (16, 16)}
FLOWS = {
    "nice_2d": lambda: randomise(models.nice_2d(**SMALL), size=0.1),
    "realnvp_2d": lambda: randomise(models.realnvp_2d(**SMALL), size=0.1),
    "conditional": lambda: randomise(models.realnvp_2d(**SMALL, context_features=3), size=0.1),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def context_for(flow, n):
    return torch.randn(n, flow.context_features) if flow.context_features else None


def gaussian(mean=(3.0, -1.0), std=(2.0, 0.5)):
    """A flow whose density is N(mean, diag(std^2))."""
    norm = ActNorm(2)
    with torch.no_grad():
        norm.shift.copy_(torch.tensor(mean))
        norm.log_scale.copy_(-torch.tensor(std).log())
    norm.initialised.fill_(True)
    return Flow(Chain(norm), shape=(2,)), Independent(
        Normal(torch.tensor(mean), torch.tensor(std)), 1
    )


# Densities


def test_log_prob_of_a_gaussian_flow_agrees_with_torch():
    flow, truth = gaussian()
    x = 3 * torch.randn(50, 2)
    assert_close(flow.log_prob(x), truth.log_prob(x), 1e-5)


def test_log_prob_works_in_float64():
    flow = randomise(models.realnvp_2d(), size=0.05)
    x = torch.randn(20, 2)
    precise = flow.log_prob(x)
    wide = flow.double().log_prob(x.double())
    assert wide.dtype == torch.float64
    assert_close(wide.float(), precise, 1e-4)


@every_flow
def test_log_prob_integrates_to_one(name):
    flow = FLOWS[name]()
    half, n = 12.0, 240
    axis = (torch.arange(n) + 0.5) * (2 * half / n) - half
    grid = torch.cartesian_prod(axis, axis)
    context = (
        torch.ones(1, flow.context_features).expand(len(grid), -1)
        if flow.context_features
        else None
    )
    with torch.no_grad():
        mass = flow.log_prob(grid, context).double().exp().sum() * (2 * half / n) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-4)


@every_flow
def test_log_prob_is_a_function_of_each_row_alone(name):
    flow = FLOWS[name]()
    x, context = torch.randn(9, 2), context_for(flow, 9)
    alone = flow.log_prob(x[4:5], None if context is None else context[4:5])
    assert_close(flow.log_prob(x, context)[4:5], alone, 1e-5)


# Samples


@every_flow
def test_the_same_seed_draws_the_same_samples_and_another_does_not(name):
    flow = FLOWS[name]()
    context = context_for(flow, 5)
    first, again, other = (flow.sample(5, seed=seed, context=context) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_without_a_seed_the_global_generator_governs():
    flow = FLOWS["realnvp_2d"]()
    draws = [(torch.manual_seed(5), flow.sample(4))[1] for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], flow.sample(4))


def test_a_generator_is_drawn_on():
    flow, rng = FLOWS["realnvp_2d"](), torch.Generator().manual_seed(3)
    first, second = flow.sample(4, seed=rng), flow.sample(4, seed=rng)
    assert torch.equal(first, flow.sample(4, seed=3))
    assert not torch.equal(first, second)


@every_flow
def test_temperature_zero_gives_the_image_of_the_latent_mode(name):
    flow = FLOWS[name]()
    context = context_for(flow, 4)
    with torch.no_grad():
        expected = flow.inverse(torch.zeros(4, 2), context)[0]
    assert torch.equal(flow.sample(4, temperature=0, seed=0, context=context), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sample_moments_of_a_gaussian_flow_within_five_standard_errors(temperature):
    flow, truth = gaussian()
    n = 40_000
    x, std = flow.sample(n, temperature=temperature, seed=0), temperature * truth.stddev
    assert ((x.mean(0) - truth.mean).abs() <= 5 * std / n**0.5).all()
    assert ((x.std(0) - std).abs() <= 5 * std / (2 * n) ** 0.5).all()


@every_flow
def test_no_samples_are_an_empty_batch(name):
    flow = FLOWS[name]()
    assert flow.sample(0, context=context_for(flow, 0)).shape == (0, 2)


def test_a_flow_without_parameters_samples_too():
    flow = Flow(SoftLog(), shape=(2,))
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow.sample(6, seed=0), z)


# The way from data to latent


@every_flow
def test_intermediates_starts_at_the_data_and_ends_at_the_latent(name):
    flow = FLOWS[name]()
    x, context = torch.randn(6, 2), context_for(flow, 6)
    states = flow.intermediates(x, context)
    assert len(states) == len(flow.bijection) + 1
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], flow(x, context)[0])
    for layer, before, after in zip(flow.bijection, states, states[1:]):
        assert torch.equal(layer(before, context)[0], after)


def test_intermediates_of_a_flow_that_is_one_layer():
    assert len(Flow(Diagonal(2), shape=(2,)).intermediates(torch.zeros(1, 2))) == 2


# torch.distributions


def test_distribution_agrees_with_the_flow():
    flow = FLOWS["realnvp_2d"]()
    distribution = flow.distribution()
    assert distribution.event_shape == (2,)
    assert distribution.batch_shape == ()
    x = torch.randn(4, 3, 2)
    assert torch.equal(distribution.log_prob(x), flow.log_prob(x.view(12, 2)).view(4, 3))
    assert distribution.log_prob(x[0, 0]).shape == ()


@pytest.mark.parametrize("sample_shape", [(), (5,), (4, 3), (0,)])
def test_distribution_draws_what_the_flow_draws(sample_shape):
    flow = FLOWS["realnvp_2d"]()
    torch.manual_seed(0)
    drawn = flow.distribution().sample(sample_shape)
    assert drawn.shape == (*sample_shape, 2)
    assert torch.allclose(drawn.view(-1, 2), flow.sample(math.prod(sample_shape), seed=0))


def test_rsample_carries_gradients_to_the_flow():
    flow = FLOWS["realnvp_2d"]()
    flow.distribution().rsample((8,)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in flow.parameters())


def test_a_conditional_distribution_holds_one_row_of_context():
    flow, context, x = FLOWS["conditional"](), torch.randn(3), torch.randn(5, 2)
    distribution = flow.distribution(context)
    assert torch.equal(distribution.log_prob(x), flow.log_prob(x, context.expand(5, 3)))
    assert distribution.sample((4,)).shape == (4, 2)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 2, 1)])
def test_distribution_refuses_values_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(.*2\), got"):
        FLOWS["realnvp_2d"]().distribution().log_prob(torch.zeros(shape))


# What is refused


@pytest.mark.parametrize("shape", [(), (2,), (4,), (4, 3), (4, 2, 1), (1, 4, 2)], ids=str)
@pytest.mark.parametrize(
    ("method", "what"),
    [("log_prob", "data"), ("forward", "data"), ("inverse", "latents"), ("intermediates", "data")],
)
def test_another_shape_is_refused(method, what, shape):
    with pytest.raises(
        ValueError, match=rf"takes {what} of shape \(B, 2\), got \({', '.join(map(str, shape))}"
    ):
        getattr(FLOWS["realnvp_2d"](), method)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_data_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"takes floating-point data, got {dtype}"):
        FLOWS["realnvp_2d"]().log_prob(torch.zeros(4, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "method",
    ["log_prob", "forward", "inverse", "encode", "intermediates", "sample", "distribution"],
)
def test_a_flow_in_half_precision_is_refused(method, dtype):
    flow, x = FLOWS["realnvp_2d"]().to(dtype), torch.zeros(4, 2, dtype=dtype)
    with pytest.raises(ValueError, match=rf"a flow in {dtype} is too coarse.* flow.float\(\)"):
        if method == "distribution":
            flow.distribution().log_prob(x)
        else:
            getattr(flow, method)(4 if method == "sample" else x)


def test_an_empty_batch_has_no_log_prob():
    with pytest.raises(ValueError, match=r"the batch is empty: got data of shape \(0, 2\)"):
        FLOWS["realnvp_2d"]().log_prob(torch.zeros(0, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_located(value):
    x = torch.zeros(6, 2)
    x[3], x[5, 1] = value, value
    with pytest.raises(
        ValueError, match="2 of 6 data points hold NaN or infinity, the first in row 3"
    ):
        FLOWS["realnvp_2d"]().log_prob(x)


DOORS = {  # what each door of a flow gives for data (or latents) x and a context
    "log_prob": lambda flow, x, context: flow.log_prob(x, context),
    "forward": lambda flow, x, context: flow(x, context)[0],
    "inverse": lambda flow, x, context: flow.inverse(x, context)[0],
    "encode": lambda flow, x, context: flow.encode(x, context),
    "intermediates": lambda flow, x, context: torch.stack(flow.intermediates(x, context)),
    "sample": lambda flow, x, context: flow.sample(len(x), seed=0, context=context),
    "reverse_kl": lambda flow, x, context: reverse_kl(
        flow, standard_normal_log_prob, len(x), context, seed=0
    ),
    "distribution": lambda flow, x, context: flow.distribution(
        None if context is None else context[0]
    ).log_prob(x),
}
every_door = pytest.mark.parametrize("door", DOORS)
GIVEN = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "view with negative strides": lambda x: x.flip(0, 1).numpy()[::-1, ::-1],
    "list": lambda x: x.tolist(),
    "with a graph": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["realnvp_2d", "conditional"])
@every_door
def test_every_door_takes_what_a_user_has(door, name, given):
    flow, rng = FLOWS[name](), torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (6, 2), generator=rng) / 4  # also float16 holds these exactly
    context = torch.randint(-4, 5, (6, 3), generator=rng) / 4 if flow.context_features else None
    expected = DOORS[door](flow, x, context)
    convert = GIVEN[given]
    found = DOORS[door](flow, convert(x), None if context is None else convert(context))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("x", [None, "x", [[1.0], [1.0, 2.0]]], ids=repr)
@pytest.mark.parametrize("door", ["log_prob", "forward", "encode", "intermediates"])
def test_what_holds_no_numbers_is_refused(door, x):
    with pytest.raises(ValueError, match="data must be a tensor or an array of numbers, got a "):
        DOORS[door](FLOWS["realnvp_2d"](), x, None)


@pytest.mark.parametrize("door", ["forward", "inverse", "encode", "intermediates", "distribution"])
def test_integers_are_refused_at_every_door(door):
    with pytest.raises(ValueError, match=r"takes floating-point .*, got torch.int64"):
        DOORS[door](FLOWS["realnvp_2d"](), torch.zeros(4, 2, dtype=torch.int64), None)


BAD_CONTEXTS = {
    "none": None,
    "too few rows": torch.zeros(3, 3),
    "too narrow": torch.zeros(4, 2),
    "one row": torch.zeros(3),
}
every_method = pytest.mark.parametrize("method", [door for door in DOORS if door != "distribution"])


@pytest.mark.parametrize("context", BAD_CONTEXTS.values(), ids=BAD_CONTEXTS)
@every_method
def test_a_missing_or_misshapen_context_is_refused(method, context):
    with pytest.raises(ValueError, match=r"takes a context of shape \(4, 3\), got"):
        DOORS[method](FLOWS["conditional"](), torch.zeros(4, 2), context)


@every_method
def test_an_unexpected_context_is_refused(method):
    with pytest.raises(ValueError, match=r"takes no context, got \(4, 3\)"):
        DOORS[method](FLOWS["realnvp_2d"](), torch.zeros(4, 2), torch.zeros(4, 3))


@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("forward", "inverse")])
def test_a_context_that_is_not_finite_is_refused(door):
    context = torch.zeros(4, 3)
    context[[0, 2]] = math.nan
    with pytest.raises(ValueError, match="of the context hold NaN or infinity, the first in row 0"):
        DOORS[door](FLOWS["conditional"](), torch.zeros(4, 2), context)


def test_numbers_whose_squares_are_infinite_are_refused_and_smaller_ones_have_a_density():
    flow = FLOWS["realnvp_2d"]()
    with pytest.raises(ValueError, match="1 of 2 data points hold numbers too large to square"):
        flow.log_prob(torch.tensor([[0.0, 0.0], [3.4e38, 0.0]]))
    assert not flow.log_prob(torch.full((1, 2), 1e18)).isnan()


def test_a_distribution_has_no_density_at_infinity_and_nan_stays_nan():
    flow = FLOWS["realnvp_2d"]()
    x = torch.zeros(6, 2)
    x[1, 0], x[2], x[3, 1], x[4, 0] = math.inf, -math.inf, 3.4e38, math.nan
    found = flow.distribution().log_prob(x)
    assert found[1:4].tolist() == [-math.inf] * 3
    assert found[4].isnan()
    assert_close(found[[0, 5]], flow.log_prob(x[[0, 5]]), 1e-5)
    assert flow.distribution().log_prob(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize("n", [-1, 2.0, "3", None, True])
def test_a_senseless_number_of_samples_is_refused(n):
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got"):
        FLOWS["realnvp_2d"]().sample(n)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_senseless_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and not negative, got"):
        FLOWS["realnvp_2d"]().sample(3, temperature=temperature)


@pytest.mark.parametrize("seed", ["0", 1.5, True])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        FLOWS["realnvp_2d"]().sample(3, seed=seed)


def test_log_prob_before_actnorm_is_initialised_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"ActNorm is not initialised: train with flowlib\.training\.fit"
    ):
        models.realnvp_2d().log_prob(torch.zeros(4, 2))


# Named models


def test_a_model_is_built_by_name_with_its_arguments():
    flow = models.build("realnvp_2d", depth=3, hidden=(5,))
    assert len(flow.bijection) == 4
    assert flow.built_by == {
        "builder": "realnvp_2d",
        "arguments": {"depth": 3, "hidden": (5,), "context_features": 0},
    }


def test_an_unknown_model_is_refused_by_naming_those_there_are():
    with pytest.raises(ValueError, match="unknown model 'glow_2d'; there are nice_2d, realnvp_2d"):
        models.build("glow_2d")


@pytest.mark.parametrize("builder", [models.nice_2d, models.realnvp_2d])
@pytest.mark.parametrize("depth", [0, -1, 2.5])
def test_a_senseless_depth_is_refused(builder, depth):
    with pytest.raises(ValueError, match="depth must be an integer of at least 1, got"):
        builder(depth=depth)


def test_a_flow_of_unit_interval_data_has_all_its_mass_there():
    """Logit alone: the density is the latent normal's between the ends of the squashed interval."""
    flow = Flow(Logit(), shape=(1,))
    x = ((torch.arange(2_000) + 0.5) / 2_000)[:, None]
    end = torch.tensor(0.95).logit()
    assert flow.log_prob(x).exp().mean().item() == pytest.approx(
        (2 * Normal(0.0, 1.0).cdf(end) - 1).item(), abs=1e-5
    )


# Flows of images

SHAPE = (1, 4, 4)
ALL_VALUES = torch.arange(256).to(torch.uint8).view(16, *SHAPE)
every_mask = pytest.mark.parametrize("mask", VECTOR_MASKS)
every_norm = pytest.mark.parametrize("norm", NORMS)
separate_or_joint = pytest.mark.parametrize("separate", [True, False], ids=["separate", "joint"])


def image_flow(shape=SHAPE, **arguments):
    torch.manual_seed(0)
    return randomise(models.realnvp_mlp(shape, **{"depth": 3, "hidden": (8,), **arguments}))


@separate_or_joint
@every_norm
@every_mask
def test_log_det_of_an_image_flow_is_that_of_the_jacobian(mask, norm, separate):
    flow = image_flow(mask=mask, norm=norm, separate=separate).double()
    y = torch.rand(3, 16, dtype=torch.float64)
    z, log_det = flow.bijection[1:](y.view(3, *SHAPE))
    assert_close(
        log_det.detach(),
        log_slope(lambda rows: flow.bijection[1:](rows.view(-1, *SHAPE))[0], y),
        1e-9,
    )
    x, back = flow.bijection[1:].inverse(z)
    assert_close(x.detach().flatten(1), y, 1e-9)
    assert_close(back.detach(), -log_det.detach(), 1e-9)


@separate_or_joint
@every_norm
@every_mask
def test_an_image_is_encoded_and_decoded_to_the_same_values(mask, norm, separate):
    flow = image_flow(mask=mask, norm=norm, separate=separate)
    z = flow.encode(ALL_VALUES)
    assert z.shape == (16, 16)
    assert torch.equal(flow.inverse(z)[0], ALL_VALUES)
    assert torch.equal(z, flow.encode(ALL_VALUES))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3, 3), (1, 1, 2)])
def test_image_flows_of_any_shape_and_bits_encode_and_decode(shape, bits):
    flow = image_flow(shape, bits=bits)
    images = torch.randint(0, 2**bits, (20, *shape), dtype=torch.uint8)
    assert torch.equal(flow.inverse(flow.encode(images))[0], images)
    assert int(flow.sample(50, seed=0).max()) < 2**bits


def test_samples_of_an_image_flow_are_images_that_its_seed_reproduces():
    flow = image_flow()
    first, again, other = (flow.sample(30, seed=seed) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8
    assert first.shape == (30, *SHAPE)
    assert first.unique().numel() > 100
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seed_fixes_the_noise_of_log_prob_and_without_one_the_global_generator_governs():
    flow = image_flow()
    with torch.no_grad():
        assert torch.equal(flow.log_prob(ALL_VALUES, seed=4), flow.log_prob(ALL_VALUES, seed=4))
        assert not torch.equal(flow.log_prob(ALL_VALUES, seed=4), flow.log_prob(ALL_VALUES, seed=5))
        draws = [(torch.manual_seed(5), flow.log_prob(ALL_VALUES))[1] for _ in range(2)]
        assert torch.equal(*draws)
        assert not torch.equal(draws[0], flow.log_prob(ALL_VALUES))
        state = torch.get_rng_state()
        flow.log_prob(ALL_VALUES, seed=4)
        assert torch.equal(torch.get_rng_state(), state)


def test_log_prob_of_images_is_that_of_the_noisy_image_less_its_bins():
    flow = image_flow(norm="actnorm")
    noise = flow.draw_noise(16, torch.Generator().manual_seed(9))
    z, log_det = flow.bijection[1:]((ALL_VALUES + noise) / 256)
    expected = (
        Independent(Normal(torch.zeros(16), 1.0), 1).log_prob(z) + log_det - 16 * math.log(256)
    )
    assert_close(flow.log_prob(ALL_VALUES, seed=9), expected, 1e-6)
    assert noise.shape == (16, *SHAPE)
    assert noise.min() >= 0 and noise.max() < 1


def test_image_flows_work_in_float64():
    flow = image_flow()
    with torch.no_grad():
        narrow = (
            torch.stack([flow.log_prob(ALL_VALUES, seed=seed) for seed in range(200)])
            .double()
            .mean(0)
        )
        wide = torch.stack([flow.double().log_prob(ALL_VALUES, seed=seed) for seed in range(200)])
    assert wide.dtype == flow.draw_noise(1).dtype == torch.float64
    assert ((wide.mean(0) - narrow).abs() < 10 * wide.std(0) / 200**0.5).all()
    assert torch.equal(flow.inverse(flow.encode(ALL_VALUES))[0], ALL_VALUES)


def test_intermediates_of_an_image_flow_goes_through_bin_centres():
    flow = image_flow(norm="actnorm")
    states = flow.intermediates(ALL_VALUES)
    assert len(states) == len(flow.bijection) + 1
    assert torch.equal(states[0], ALL_VALUES)
    assert torch.equal(states[1], (ALL_VALUES + 0.5) / 256)
    assert torch.equal(states[-1], flow.encode(ALL_VALUES))


def test_temperature_zero_gives_one_image():
    assert image_flow().sample(9, temperature=0.0).unique(dim=0).shape == (1, *SHAPE)


def test_an_image_flow_starts_as_its_preprocessing():
    flow = models.realnvp_mlp(SHAPE, depth=2, hidden=(8,)).eval()
    expected = ((ALL_VALUES + 0.5) / 256 * 0.9 + 0.05).logit().flatten(1)
    assert_close(flow.encode(ALL_VALUES), expected, 1e-5)


@pytest.mark.parametrize("mask", ["alternating", "halves", "checkerboard", "random"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 3, 3)])
def test_couplings_take_turns_so_that_every_value_is_changed(mask, shape):
    flow = models.realnvp_mlp(shape, depth=4, hidden=(4,), mask=mask)
    kept = [layer.mask for layer in flow.bijection if hasattr(layer, "mask")]
    assert len(kept) == 4
    assert torch.equal(kept[0], ~kept[1])
    assert torch.equal(kept[2], ~kept[3])
    if mask == "random":
        assert not torch.equal(kept[0], kept[2])


def test_a_checkerboard_of_images_is_the_same_in_every_channel():
    mask = models.realnvp_mlp((2, 2, 3), depth=1, mask="checkerboard").bijection[-1].mask
    assert mask.view(2, 2, 3).int().tolist() == [[[1, 0, 1], [0, 1, 0]]] * 2


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int64, torch.int8, torch.bool]
)
def test_images_that_are_not_uint8_are_refused(dtype):
    with pytest.raises(
        ValueError, match=rf"begins with Dequantize, so it takes uint8 images, got {dtype}"
    ):
        image_flow().log_prob(torch.zeros(2, *SHAPE, dtype=dtype))


@pytest.mark.parametrize("bits", range(1, 8))
def test_values_too_large_for_the_bits_are_refused(bits):
    images = torch.full((2, *SHAPE), 2**bits - 1, dtype=torch.uint8)
    flow = image_flow(bits=bits)
    assert flow.log_prob(images).isfinite().all()
    images[1, 0, 3, 3] += 1
    with pytest.raises(
        ValueError,
        match=rf"Dequantize\(bits={bits}\), so it takes 0 \.\.\. {2**bits - 1}, got {2**bits}",
    ):
        flow.log_prob(images)


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 4), (2, 1, 4, 3), (2, 3, 4, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes data of shape \(B, 1, 4, 4\), got"):
        image_flow().log_prob(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mask": "stripes"},
            "unknown mask 'stripes'; there are alternating, halves, checkerboard, random",
        ),
        ({"norm": "layernorm"}, "unknown norm 'layernorm'; there are None, actnorm, batchnorm"),
        ({"bits": 9}, "uint8 images hold at most 8 bits, got bits=9"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"hidden": 8}, "hidden must list the widths of the hidden layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_image_flow_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.realnvp_mlp(SHAPE, **arguments)


def test_a_flow_of_images_has_no_torch_distribution():
    with pytest.raises(ValueError, match="begins with Dequantize gives integers"):
        image_flow().distribution()


def test_dequantize_is_found_in_the_first_place():
    assert Flow(Chain(Diagonal(2)), shape=(2,)).dequantize is None
    assert Flow(Diagonal(2), shape=(2,)).draw_noise(3) is None
    for chain in (
        Chain(Dequantize(3), Flatten(SHAPE)),
        Chain(Chain(Dequantize(3)), Flatten(SHAPE)),
    ):
        flow, images = Flow(chain, SHAPE), ALL_VALUES % 8
        assert isinstance(flow.dequantize, Dequantize)
        assert torch.equal(flow.inverse(flow.encode(images))[0], images)
        assert torch.equal(flow.intermediates(images)[-1], flow.encode(images))
        assert torch.equal(flow.log_prob(images, seed=0), flow.log_prob(images, seed=0))


@pytest.mark.parametrize(
    "bijection",
    [
        Chain(Flatten(SHAPE), Dequantize()),
        Chain(Dequantize(), Dequantize()),
        Inverse(Dequantize()),
        Chain(Logit(), Chain(Dequantize(), Flatten(SHAPE))),
        VariationalDequantize(Chain(Dequantize())),
    ],
    ids=repr,
)
def test_dequantize_anywhere_else_is_refused(bijection):
    with pytest.raises(ValueError, match="Dequantize is only ever the first layer"):
        Flow(bijection, SHAPE)


@pytest.mark.parametrize("bijection", [Dequantize(), Chain(Dequantize())], ids=["alone", "chain"])
def test_a_flow_that_only_dequantizes_is_a_density_of_vectors_and_refused_for_images(bijection):
    integers = torch.tensor([[0, 255], [7, 8]], dtype=torch.uint8)
    flow = Flow(bijection, (2,))
    expected = standard_normal_log_prob((integers + 0.5) / 256) - 2 * math.log(256)
    assert_close(flow.log_prob(integers, seed=0), expected, 1e-2)
    with pytest.raises(
        ValueError, match=r"latents are \(B, D\), got \(16, 1, 4, 4\): add a Flatten"
    ):
        Flow(bijection, SHAPE).log_prob(ALL_VALUES)


def test_noise_for_a_flow_without_dequantize_is_refused():
    with pytest.raises(ValueError, match="noise is for a flow that begins with Dequantize"):
        FLOWS["realnvp_2d"]()(torch.zeros(4, 2), noise=torch.rand(4, 2))


def test_noise_is_taken_in_whatever_form():
    flow, noise = image_flow(), torch.rand(16, *SHAPE)
    expected = flow(ALL_VALUES, noise=noise)[0]
    for given in (noise.double(), noise.numpy(), noise.tolist()):
        assert torch.equal(flow(ALL_VALUES, noise=given)[0], expected)


# A function, and an object to keep


def test_gradients_of_log_prob_can_be_taken_row_by_row():
    flow, x = FLOWS["realnvp_2d"](), torch.randn(5, 2)
    rows = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(rows).sum(), rows)
    one_row = lambda row: flow.log_prob(row[None])[0]  # noqa: E731
    for function in (one_row, flow.distribution().log_prob):
        assert_close(torch.func.vmap(torch.func.grad(function))(x), expected, 1e-5)


@pytest.mark.parametrize("build", [FLOWS["realnvp_2d"], lambda: image_flow()], ids=["2d", "image"])
def test_log_prob_compiles_in_one_piece(build):
    flow = build()
    x = torch.randn(5, 2) if flow.dequantize is None else ALL_VALUES
    compiled = torch.compile(flow.log_prob, fullgraph=True, dynamic=True, backend="eager")
    found = [(torch.manual_seed(0), f(x))[1].detach() for f in (compiled, flow.log_prob)]
    assert_close(*found, 1e-5)


@pytest.mark.parametrize(
    "build", [FLOWS["realnvp_2d"], lambda: image_flow(norm="batchnorm")], ids=["2d", "image"]
)
def test_a_flow_is_pickled(build):
    flow = build()
    copied = pickle.loads(pickle.dumps(flow))
    assert copied.built_by == flow.built_by
    assert torch.equal(copied.sample(3, seed=0), flow.sample(3, seed=0))


# Precision and defaults


def test_a_float64_flow_draws_samples_that_float32_does_not_hold():
    x = FLOWS["realnvp_2d"]().double().sample(50, seed=0)
    z = FLOWS["realnvp_2d"]().double().draw_latents(50)
    assert x.dtype == z.dtype == torch.float64
    assert (z != z.float().double()).any()


@pytest.mark.parametrize("build", [FLOWS["realnvp_2d"], lambda: image_flow()], ids=["2d", "image"])
def test_a_flow_keeps_to_its_dtype_whatever_the_default_is(build):
    flow = build()
    x = torch.randn(16, 2) if flow.dequantize is None else ALL_VALUES
    expected = flow.log_prob(x, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(flow.log_prob(x, seed=0), expected)
        assert flow.encode(x).dtype == flow.draw_latents(2).dtype == torch.float32
        assert build().log_prob(x, seed=0).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_flow_without_parameters_computes_in_the_dtype_that_it_is_given():
    flow = Flow(Logit(), shape=(2,))
    x = torch.rand(3, 2, dtype=torch.float64)
    assert flow.log_prob(x).dtype == flow(x)[0].dtype == torch.float64
    assert flow.sample(3, seed=0).dtype == torch.float32
