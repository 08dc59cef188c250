import math

import pytest
import torch
from torch.distributions import AffineTransform, Independent, Normal, TransformedDistribution

from flowlib import Flow
from flowlib.bijections import Bijection, Chain, Flatten, Logit
from flowlib.dequantize import Dequantize
from flowlib.flow import standard_normal_log_prob
from flowlib.losses import bits_per_dim, importance_bits_per_dim, nll, reverse_kl
from flowlib.norms import ActNorm


@pytest.mark.parametrize("D", [1, 2, 7])
def test_standard_normal_log_prob_agrees_with_torch(D):
    z = 3 * torch.randn(50, D, dtype=torch.float64)
    expected = Independent(Normal(torch.zeros(D, dtype=torch.float64), 1.0), 1).log_prob(z)
    assert torch.allclose(standard_normal_log_prob(z), expected, rtol=0, atol=1e-12)


def test_nll_is_minus_the_mean_log_prob_of_a_transformed_normal():
    """x = 3 + 2 u with u normal, so z = (x - 3) / 2 and log |det dz/dx| = -D log 2."""
    base = Independent(Normal(torch.zeros(4, dtype=torch.float64), 1.0), 1)
    truth = TransformedDistribution(base, AffineTransform(3.0, 2.0, event_dim=1))
    x = 5 * torch.randn(50, 4, dtype=torch.float64)
    loss = nll((x - 3) / 2, torch.full((50,), 0.5, dtype=torch.float64).log() * 4)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-truth.log_prob(x).mean().item(), abs=1e-12)


# Bits per dimension


def test_bits_per_dim_are_nats_per_value_over_log_2():
    nats = torch.tensor([-12 * math.log(2), 0.0, -36 * math.log(2)])
    assert bits_per_dim(nats, (3, 2, 2)).tolist() == pytest.approx([1, 0, 3])
    assert bits_per_dim(-24 * math.log(2), (3, 2, 2)) == pytest.approx(2)


class Quantile(Bijection):
    """From the unit interval to a standard normal: the flow that begins with it is uniform."""

    def forward(self, x, context=None):
        z = torch.special.ndtri(x)
        return z, (z.square() / 2 + math.log(2 * math.pi) / 2).flatten(1).sum(1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_uniform_density_has_as_many_bits_per_dim_as_the_images(bits):
    flow = Flow(Chain(Dequantize(bits), Flatten((2, 3, 3)), Quantile()), shape=(2, 3, 3)).double()
    images = torch.randint(0, 2**bits, (7, 2, 3, 3), dtype=torch.uint8)
    exact = torch.full((7,), float(bits), dtype=torch.float64)
    for found in (
        bits_per_dim(flow.log_prob(images, seed=0), (2, 3, 3)),
        importance_bits_per_dim(flow, images, k=3, seed=0),
    ):
        assert torch.allclose(found, exact, rtol=0, atol=1e-12)


def one_pixel(bits):
    """A flow of images of one pixel, all the values that it can hold, and their probabilities."""
    norm = ActNorm(1)
    norm.initialise(torch.tensor([[0.5], [2.5]]))
    layers = Chain(Dequantize(bits), Logit(), Flatten((1, 1, 1)), norm)
    flow = Flow(layers, shape=(1, 1, 1)).double()
    edges = (torch.arange(2**bits + 1, dtype=torch.float64) / 2**bits).view(-1, 1, 1, 1)
    with torch.no_grad():
        probability = torch.special.ndtr(layers[1:](edges)[0][:, 0]).diff()
    return flow, torch.arange(2**bits).to(torch.uint8).view(-1, 1, 1, 1), probability


@pytest.mark.parametrize("bits", [1, 2])
def test_the_probability_of_an_integer_is_the_mean_density_over_its_bin(bits):
    flow, images, probability = one_pixel(bits)
    grid = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
    with torch.no_grad():
        for image, exact in zip(images, probability):
            z, log_det = flow(image.expand(4_000, 1, 1, 1), noise=grid.view(-1, 1, 1, 1))
            assert (standard_normal_log_prob(z) + log_det).exp().mean().item() == pytest.approx(
                exact.item(), rel=1e-6
            )


@pytest.mark.parametrize("bits", [1, 2])
def test_many_draws_approach_the_exact_probability(bits):
    flow, images, probability = one_pixel(bits)
    found = importance_bits_per_dim(flow, images.repeat(100, 1, 1, 1), k=300, seed=0)
    assert found.shape == (100 * 2**bits,)
    assert torch.allclose(found.view(100, -1).mean(0), -probability.log2(), rtol=0, atol=0.01)


def test_more_draws_give_a_tighter_bound_on_average():
    flow, images, probability = one_pixel(1)
    means = [
        importance_bits_per_dim(flow, images[1:].expand(4_000, 1, 1, 1), k, seed=k).mean().item()
        for k in (1, 2, 8, 64)
    ]
    assert means == sorted(means, reverse=True)
    assert means[-1] == pytest.approx(-math.log2(probability[1]), abs=0.01)
    assert means[0] > -math.log2(probability[1]) + 0.1


def test_one_draw_is_that_of_log_prob_and_the_seed_fixes_all_of_them():
    flow, images, _ = one_pixel(2)
    one = importance_bits_per_dim(flow, images, k=1, seed=5)
    assert torch.allclose(
        one, bits_per_dim(flow.log_prob(images, seed=5), (1, 1, 1)), rtol=0, atol=1e-12
    )
    assert torch.equal(
        importance_bits_per_dim(flow, images, k=3, seed=5),
        importance_bits_per_dim(flow, images, k=3, seed=5),
    )
    assert not torch.equal(one, importance_bits_per_dim(flow, images, k=1, seed=6))
    assert not one.requires_grad


def test_likelihoods_far_below_what_exp_can_hold_are_averaged_too():
    flow = Flow(Chain(Dequantize(), Logit(), Flatten((1, 40, 40))), shape=(1, 40, 40))
    images = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    assert flow.log_prob(images).max() < -1_000
    assert importance_bits_per_dim(flow, images, k=4, seed=0).isfinite().all()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_a_senseless_number_of_draws_is_refused(k):
    flow, images, _ = one_pixel(1)
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got"):
        importance_bits_per_dim(flow, images, k)


# The reverse KL divergence


def gaussian_flow(mean, std):
    """N(mean, std^2 I) in 3 dimensions: z = (x - mean) / std."""
    norm = ActNorm(3).double()
    torch.nn.init.constant_(norm.shift, mean)
    torch.nn.init.constant_(norm.log_scale, -math.log(std))
    norm.initialised.fill_(True)
    return Flow(Chain(norm), (3,))


@pytest.mark.parametrize("log_z", [0.0, 5.0])
def test_reverse_kl_of_gaussians_is_the_closed_form_less_the_log_normaliser(log_z):
    target = Independent(Normal(torch.full((3,), 1.0, dtype=torch.float64), 2.0), 1)
    q = Independent(Normal(torch.full((3,), 0.5, dtype=torch.float64), 1.5), 1)
    expected = torch.distributions.kl_divergence(q, target).item() - log_z
    estimate = reverse_kl(
        gaussian_flow(0.5, 1.5), lambda x: target.log_prob(x) + log_z, 100_000, seed=0
    )
    assert estimate.shape == ()
    assert estimate.item() == pytest.approx(expected, abs=0.01)


def test_reverse_kl_is_minus_the_log_normaliser_for_every_draw_where_flow_and_target_agree():
    target = Independent(Normal(torch.full((3,), -1.0, dtype=torch.float64), 0.3), 1)
    for seed in range(3):
        estimate = reverse_kl(
            gaussian_flow(-1.0, 0.3), lambda x: target.log_prob(x) + 2, 5, seed=seed
        )
        assert estimate.item() == pytest.approx(-2, abs=1e-12)


def test_gradients_of_reverse_kl_reach_the_flow_and_point_towards_the_target():
    flow = gaussian_flow(0.0, 1.0)
    reverse_kl(flow, lambda x: -0.5 * (x - 3).square().sum(1), 10_000, seed=0).backward()
    assert flow.bijection[0].shift.grad.tolist() == pytest.approx(
        [-3] * 3, abs=0.05
    )  # d/dm of (m - 3)^2 / 2 at 0


def test_reverse_kl_repeats_with_its_seed_and_refuses_what_it_cannot_use():
    flow = gaussian_flow(0.0, 1.0)
    log_target = lambda x: -x.square().sum(1)  # noqa: E731
    assert torch.equal(
        reverse_kl(flow, log_target, 7, seed=3), reverse_kl(flow, log_target, 7, seed=3)
    )
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        reverse_kl(flow, log_target, 0)
    with pytest.raises(ValueError, match=r"one value per sample, \(7,\), got \(\)"):
        reverse_kl(flow, lambda x: -x.square().sum(), 7)
    with pytest.raises(ValueError, match=r"one value per sample, \(7,\), got a ndarray"):
        reverse_kl(flow, lambda x: log_target(x).detach().numpy(), 7)
    with pytest.raises(ValueError, match="Dequantize"):
        reverse_kl(Flow(Chain(Dequantize(), Logit(), Flatten((1, 2, 2))), (1, 2, 2)), log_target, 7)
