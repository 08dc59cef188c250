"""Flows of images: squeezing, masks on channels and positions, convolutional couplings, several
scales, learned noise."""

import copy
import math
import runpy
from pathlib import Path

import pytest
import torch
from helpers import assert_close

from flowlib import checkpoints, masks, models, training
from flowlib.bijections import Logit, Squeeze
from flowlib.coupling import AdditiveCoupling, AffineCoupling
from flowlib.flow import MultiScale
from flowlib.losses import nll
from flowlib.networks import MLP, ConvResNet
from flowlib.norms import BatchNorm

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "masks.py"
LearnedMaskCoupling = runpy.run_path(str(BENCHMARK))["LearnedMaskCoupling"]
BOARD, CHANNELS = masks.checkerboard(4, 4), masks.channels(4)
RNG = torch.Generator().manual_seed(0)


def shaken(module, size=0.1):
    """Weights away from their start, statistics of a past, float64, evaluation mode."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=rng)
        for layer in module.modules():
            if hasattr(layer, "running_mean"):
                layer.running_mean.copy_(0.3 * torch.randn(layer.running_mean.shape, generator=rng))
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=rng) + 0.5)
    return module.double().eval()


def log_det_by_autograd(function, x):
    D = x[0].numel()
    return torch.stack(
        [
            torch.linalg.slogdet(
                torch.autograd.functional.jacobian(lambda v: function(v)[0], row[None]).reshape(
                    D, D
                )
            ).logabsdet
            for row in x
        ]
    )


def images(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def integers(n, *shape, high=256):
    return torch.randint(
        0, high, (n, *shape), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )


LAYERS = {
    "affine, board": (
        lambda: AffineCoupling(BOARD, ConvResNet(4, 6, 8, 1, checkerboard=True)),
        (3, 4, 4),
    ),
    "affine, channels": (lambda: AffineCoupling(CHANNELS, ConvResNet(2, 4, 8, 1)), (4, 4, 4)),
    "affine, flipped channels": (
        lambda: AffineCoupling(~CHANNELS, ConvResNet(2, 4, 8, 1)),
        (4, 4, 4),
    ),
    "additive, board": (
        lambda: AdditiveCoupling(~BOARD, ConvResNet(2, 1, 8, 1, checkerboard=True)),
        (1, 4, 4),
    ),
    "additive, channels": (lambda: AdditiveCoupling(CHANNELS, ConvResNet(2, 2, 8, 1)), (4, 4, 4)),
    "learned mask, vector": (
        lambda: LearnedMaskCoupling(torch.randn(6, generator=RNG), MLP(6, 12, (8,))),
        (6,),
    ),
    "learned mask, board": (
        lambda: LearnedMaskCoupling(
            torch.randn(4, 4, generator=RNG), ConvResNet(4, 6, 8, 1, checkerboard=True)
        ),
        (3, 4, 4),
    ),
    "batch norm, board": (lambda: BatchNorm(3, BOARD), (3, 4, 4)),
    "batch norm, channels": (lambda: BatchNorm(4, CHANNELS), (4, 4, 4)),
    "squeeze, colour": (lambda: Squeeze("channel"), (2, 4, 4)),
    "squeeze, board": (lambda: Squeeze("checkerboard"), (3, 4, 4)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_a_layer_goes_there_and_back_with_the_log_det_of_its_jacobian(name):
    build, shape = LAYERS[name]
    layer, x = shaken(build()), images(3, *shape)
    z, log_det = layer(x)
    back, log_det_back = layer.inverse(z)
    assert_close(back, x, 1e-10)
    assert_close(log_det_back, -log_det, 1e-10)
    assert_close(log_det, log_det_by_autograd(layer, x), 1e-10)


@pytest.mark.parametrize(
    "name",
    [name for name in LAYERS if "affine" in name or "additive" in name or "batch norm" in name],
)
def test_what_passes_through_is_untouched_and_the_rest_is_not(name):
    build, shape = LAYERS[name]
    x = images(3, *shape)
    mask = {"affine, flipped channels": ~CHANNELS, "additive, board": ~BOARD}.get(
        name, BOARD if "board" in name else CHANNELS
    )
    kept = mask.expand(shape) if mask.dim() == 2 else mask[:, None, None].expand(shape)
    z, _ = shaken(build())(x)
    assert torch.equal(z[:, kept], x[:, kept])
    assert (z[:, ~kept] != x[:, ~kept]).all()


@pytest.mark.parametrize("mask", [BOARD, CHANNELS], ids=["board", "channels"])
def test_the_network_sees_nothing_of_what_is_transformed(mask):
    seen = []

    def network(x, context):
        seen.append(x)
        width = 4 if mask.dim() == 2 else 2
        return torch.zeros(len(x), 2 * width, 4, 4, dtype=x.dtype)

    x, other = images(2, 4, 4, 4), images(2, 4, 4, 4) + 5
    hidden = ~mask if mask.dim() == 2 else ~mask[:, None, None]
    for given in (x, torch.where(hidden, other, x)):
        AffineCoupling(mask, network)(given)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("mask", "shape"), [(BOARD, (3, 4, 5)), (BOARD, (4,)), (CHANNELS, (3, 4, 4))]
)
def test_input_that_does_not_fit_the_mask_is_refused(mask, shape):
    with pytest.raises(ValueError, match="this coupling takes"):
        AffineCoupling(mask, None)(torch.zeros(2, *shape))


def test_a_network_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"must return \(B, 6, 4, 4\), got \(2, 4, 4, 4\)"):
        AffineCoupling(BOARD, lambda x, context: torch.zeros(2, 4, 4, 4))(torch.zeros(2, 3, 4, 4))


# Squeeze


def test_squeeze_in_colour_order_keeps_the_pixels_of_a_colour_together():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    z, _ = Squeeze("channel")(x)
    assert z[0, :, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]


def test_squeeze_in_board_order_puts_one_colour_of_the_board_first():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    z, _ = Squeeze("checkerboard")(x)
    assert z[0, :, 0, 0].tolist() == [0, 16, 5, 21, 1, 17, 4, 20]
    first, second = z.chunk(2, dim=1)
    assert set(first.flatten().tolist()) == set(x[:, :, BOARD].flatten().tolist())
    assert set(second.flatten().tolist()) == set(x[:, :, ~BOARD].flatten().tolist())


def test_squeeze_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match=r"even H and W, got \(1, 3, 5, 4\)"):
        Squeeze()(torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match="un-squeezing takes"):
        Squeeze().inverse(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="unknown order 'rows'; there are channel, checkerboard"):
        Squeeze("rows")


# BatchNorm on what a coupling changed


@pytest.mark.parametrize("mask", [BOARD, CHANNELS], ids=["board", "channels"])
def test_batch_norm_takes_statistics_of_what_changed_only(mask):
    layer, x = BatchNorm(4, mask).double(), 3 + images(50, 4, 4, 4)
    z, _ = layer.train()(x)
    changed = z[:, :, ~BOARD] if mask.dim() == 2 else z[:, ~CHANNELS].flatten(2)
    assert_close(changed.mean((0, 2)), torch.zeros(changed.shape[1]).double(), 1e-10)
    assert_close(changed.var((0, 2), correction=0), torch.ones(changed.shape[1]).double(), 1e-3)


# Learned masks


@pytest.mark.parametrize("shape", [(7,), (6, 6)])
def test_a_learned_mask_is_always_binary_with_half_of_its_entries_passing(shape):
    for seed in range(20):
        scores = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        mask = LearnedMaskCoupling(scores, None).mask()
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert mask.sum() == scores.numel() // 2
        assert scores[mask.bool()].min() >= scores[~mask.bool()].max()


def test_gradients_reach_the_scores_of_a_learned_mask():
    layer = shaken(LAYERS["learned mask, board"][0]())
    z, log_det = layer(images(4, 3, 4, 4))
    (z.square().sum() - log_det.sum()).backward()
    assert (layer.scores.grad != 0).all()


# ConvResNet


@pytest.mark.parametrize("board", [False, True])
def test_a_conv_resnet_starts_at_zero(board):
    network = ConvResNet(4, 6, 8, 2, checkerboard=board)
    assert torch.equal(network(images(2, 4, 8, 8).float()), torch.zeros(2, 6, 8, 8))


def test_a_conv_resnet_sees_its_context():
    network = shaken(ConvResNet(4, 6, 8, 2, context_channels=3))
    x, context = images(2, 4, 8, 8), images(2, 3, 8, 8)
    assert not torch.equal(network(x, context), network(x, context + 1))


# Whole flows

FLOWS = {
    "two scales": {"shape": (3, 8, 8), "scales": 2, "width": 4, "blocks": 1},
    "three scales": {"shape": (1, 8, 8), "scales": 3, "width": 4, "blocks": 1},
    "one scale": {"shape": (2, 6, 6), "scales": 1, "width": 4, "blocks": 1},
    "constant width": {"shape": (1, 8, 4), "scales": 2, "width": 4, "blocks": 2, "doubling": False},
    "no batch norm": {
        "shape": (1, 8, 8),
        "scales": 2,
        "width": 4,
        "blocks": 1,
        "batch_norm": False,
    },
    "learned noise": {
        "shape": (1, 8, 8),
        "scales": 2,
        "width": 4,
        "blocks": 1,
        "dequant_couplings": 2,
    },
}
every_flow = pytest.mark.parametrize("name", FLOWS)


@every_flow
def test_a_flow_of_images_is_a_bijection_with_the_log_det_of_its_jacobian(name):
    continuous = shaken(models.realnvp_image(**FLOWS[name])).bijection[2]
    x = images(1, *FLOWS[name]["shape"])
    z, log_det = continuous(x)
    back, log_det_back = continuous.inverse(z)
    assert z.shape == (1, math.prod(FLOWS[name]["shape"]))
    assert_close(back, x, 1e-8)
    assert_close(log_det_back, -log_det, 1e-8)
    assert_close(log_det, log_det_by_autograd(continuous, x), 1e-8)


@every_flow
def test_encoded_images_come_back_exactly(name):
    flow = shaken(models.realnvp_image(**FLOWS[name])).float()
    x = integers(64, *FLOWS[name]["shape"])
    assert torch.equal(flow.inverse(flow.encode(x))[0], x)
    assert torch.equal(flow.log_prob(x, seed=1), flow.log_prob(x, seed=1))


@every_flow
def test_a_flow_of_images_survives_its_checkpoint(name, tmp_path):
    flow = shaken(models.realnvp_image(**FLOWS[name])).float()
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    loaded = checkpoints.load(tmp_path / "flow.safetensors")
    x = integers(5, *FLOWS[name]["shape"])
    assert torch.equal(loaded.log_prob(x, seed=0), flow.log_prob(x, seed=0))


@every_flow
def test_a_few_steps_of_training_reach_every_parameter(name):
    torch.manual_seed(0)
    flow = models.realnvp_image(**FLOWS[name])
    before = copy.deepcopy(flow.state_dict())
    training.fit(
        flow,
        integers(64, *FLOWS[name]["shape"]),
        steps=4,
        batch_size=32,
        lr=1e-2,
        seed=0,
        progress=False,
    )
    still = [
        name for name, parameter in flow.named_parameters() if torch.equal(parameter, before[name])
    ]
    assert not still


def test_a_flow_of_images_is_a_function_for_torch_func():
    flow = shaken(models.realnvp_image(**FLOWS["two scales"])).float()
    x, noise = integers(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    z, log_det = flow(x, noise=noise)
    one = lambda x, u: flow(x[None], noise=u[None])  # noqa: E731
    mapped_z, mapped_log_det = torch.func.vmap(one)(x, noise)
    assert_close(mapped_z[:, 0], z, 1e-4)
    assert_close(mapped_log_det[:, 0], log_det, 1e-4)
    assert torch.func.vmap(lambda x: flow.log_prob(x[None])[0], randomness="different")(
        x
    ).shape == (3,)
    continuous = flow.bijection[1:].double()
    y = noise[0].double()
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        found = jacobian(lambda y: continuous(y[None])[0][0])(y).reshape(192, 192)
        assert_close(torch.linalg.slogdet(found).logabsdet, continuous(y[None])[1][0], 1e-6)


def test_gradients_of_a_flow_of_images_can_be_taken_image_by_image():
    flow = shaken(models.realnvp_image(**FLOWS["one scale"])).float()
    x, noise = integers(3, 2, 6, 6), torch.rand(3, 2, 6, 6)
    parameters = dict(flow.named_parameters())

    def loss(parameters, x, u):
        return nll(*torch.func.functional_call(flow, parameters, (x[None], None, u[None])))

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, noise)
    nll(*flow(x, None, noise)).backward()
    for name, parameter in parameters.items():
        assert_close(each[name].mean(0), parameter.grad, 1e-3)


def test_a_flow_of_images_is_saved_whole(tmp_path):
    flow = shaken(models.realnvp_image(**FLOWS["learned noise"])).float()
    torch.save(flow, tmp_path / "flow.pt")
    loaded = torch.load(tmp_path / "flow.pt", weights_only=False)
    assert torch.equal(loaded.sample(2, seed=0), flow.sample(2, seed=0))
    assert flow.sample(0).shape == (0, 1, 8, 8)


def test_the_paper_s_sizes():
    def count(**settings):
        return sum(p.numel() for p in models.realnvp_image(**settings).parameters()) / 1e6

    assert count(width=64, blocks=8) == pytest.approx(19.6, rel=0.005)
    assert count(width=64, blocks=8, doubling=False) == pytest.approx(6.4, rel=0.005)


def test_the_layers_of_a_scale_are_those_of_the_paper():
    first, last = models.realnvp_image((3, 8, 8), scales=2, width=4, blocks=1).bijection[2].scales
    kinds = [type(layer).__name__ for layer in first]
    assert kinds == [
        *["AffineCoupling", "BatchNorm"] * 3,
        "Squeeze",
        *["AffineCoupling", "BatchNorm"] * 3,
        "Inverse",
        "Squeeze",
    ]
    assert [type(layer).__name__ for layer in last] == ["AffineCoupling", "BatchNorm"] * 4


def test_latents_split_into_scales_the_finest_first():
    flow = models.realnvp_image((3, 8, 8), scales=3, width=4, blocks=1)
    z = torch.randn(2, 192)
    parts = flow.bijection[2].split_latent(z)
    assert [part.shape[1:] for part in parts] == [(6, 4, 4), (12, 2, 2), (12, 2, 2)]
    assert torch.equal(flow.bijection[2].join_latent(parts), z)


def test_the_first_part_of_the_latents_is_factored_out_of_one_colour_of_the_board():
    """With squeezes as the only layers, the first latents are the odd fields, the last the even."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    z, _ = MultiScale((1, 4, 4), Squeeze("checkerboard"), Squeeze())(x)
    assert set(z[0, :8].tolist()) == set(x[0, 0][~BOARD].tolist())


def test_scales_that_do_not_divide_the_image_are_refused():
    with pytest.raises(
        ValueError, match="images of 28 x 28 cannot be halved 3 times, as 4 scales need"
    ):
        models.realnvp_image((1, 28, 28), scales=4, width=4, blocks=1)


# Learned noise


def test_learned_noise_gives_a_bound_of_probabilities_that_agree_with_the_samples():
    """All 16 images of 2 x 2 pixels of 1 bit: many draws of the noise average to P(x); samples
    clamp what leaves [0, 1]."""
    flow = shaken(
        models.realnvp_image(
            (1, 2, 2), scales=1, width=4, blocks=1, dequant_couplings=2, bits=1, batch_norm=False
        ),
        size=0.2,
    )
    x = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 2, 2).to(torch.uint8)
    with torch.no_grad():
        draws = torch.cat([flow.log_prob(x.repeat(200, 1, 1, 1)).view(200, 16) for _ in range(5)])
        P = (draws.logsumexp(0) - math.log(1_000)).exp()
        y = torch.cat([flow.bijection[1:].inverse(flow.draw_latents(20_000))[0] for _ in range(2)])
    inside = ((y >= 0) & (y < 1)).flatten(1).all(1)
    code = ((2 * y[inside]).floor().long().flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    frequency = torch.bincount(code, minlength=16) / len(y)
    assert (P - frequency).abs().max() < 0.012
    assert P.sum() <= 1.01


def test_noise_at_bin_centres_is_not_shaped():
    dequantize = models.realnvp_image(
        (1, 4, 4), scales=1, width=4, blocks=1, dequant_couplings=2
    ).bijection[0]
    x = integers(3, 1, 4, 4)
    assert torch.equal(dequantize(x, noise=0.5)[0], (x + 0.5) / 256)


def test_learned_noise_starts_as_uniform_noise():
    dequantize = (
        models.realnvp_image((1, 4, 4), scales=1, width=4, blocks=1, dequant_couplings=2)
        .bijection[0]
        .double()
    )
    x, noise = (
        integers(3, 1, 4, 4),
        torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    y, log_det = dequantize(x, noise=noise)
    assert_close(y, (x + noise) / 256, 1e-9)
    assert_close(log_det, torch.full((3,), -16 * math.log(256)).double(), 1e-6)


def test_learned_noise_stays_within_its_cell():
    dequantize = shaken(
        models.realnvp_image((1, 4, 4), scales=1, width=4, blocks=1, dequant_couplings=2).bijection[
            0
        ],
        size=0.5,
    )
    x = integers(200, 1, 4, 4)
    assert torch.equal(dequantize.inverse(dequantize(x)[0])[0], x)
    assert isinstance(dequantize.bijection[0], Logit)


# Precision


def test_bfloat16_networks_train_like_float32_ones_and_leave_float32_weights():
    losses = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        flow = models.realnvp_image((1, 8, 8), scales=2, width=8, blocks=1)
        history = training.fit(
            flow,
            integers(64, 1, 8, 8),
            steps=8,
            batch_size=32,
            lr=1e-3,
            seed=0,
            precision=precision,
            progress=False,
        )
        losses[precision] = history.loss[-1]
        assert all(parameter.dtype == torch.float32 for parameter in flow.parameters())
        assert flow.log_prob(integers(2, 1, 8, 8), seed=0).dtype == torch.float32
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
