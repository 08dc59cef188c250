"""Toy densities against scipy, brute-force quadrature, and their own samples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from sklearn.datasets import make_moons
from torch._subclasses.fake_tensor import FakeTensorMode

from flowlib import data
from flowlib.data import toys

DENSITIES = {
    "TwoMoons": data.TwoMoons,
    "Sinusoid": data.Sinusoid,
    "Checkerboard": data.Checkerboard,
    "TwoSpirals": data.TwoSpirals,
    "Rings": data.Rings,
}
NOISY = [name for name in DENSITIES if name != "Checkerboard"]
every_density = pytest.mark.parametrize("name", DENSITIES)
every_noisy_density = pytest.mark.parametrize("name", NOISY)


def coarse(name):
    """The density with noise large enough for a grid of a few hundred cells a side."""
    return data.Checkerboard() if name == "Checkerboard" else DENSITIES[name](noise=0.3)


def along(curve, t_range, noise):
    """(x, y) -> the mean of N((x, y); curve(t), noise^2 I) over t, by scipy's quadrature."""
    low, high = t_range

    def p(x, y):
        def at(t):
            squared = (x - curve(t)[0]) ** 2 + (y - curve(t)[1]) ** 2
            return math.exp(-squared / (2 * noise**2)) / (2 * math.pi * noise**2)

        return quad(
            at, low, high, limit=400, epsabs=0, epsrel=1e-9, points=np.linspace(low, high, 12)[1:-1]
        )[0] / (high - low)

    return p


def moons(x, y, noise):
    upper = along(lambda t: (math.cos(t), math.sin(t)), (0, math.pi), noise)(x, y)
    lower = along(lambda t: (1 - math.cos(t), 0.5 - math.sin(t)), (0, math.pi), noise)(x, y)
    return math.log((upper + lower) / 2)


def spirals(x, y, noise):
    def arm(t):
        radius = 0.3 + 0.9 * t / math.pi
        return radius * math.cos(t), radius * math.sin(t)

    p = along(arm, (0, 3 * math.pi), noise)
    return math.log((p(x, y) + p(-x, -y)) / 2)


def rings(x, y, noise):
    circles = [
        along(lambda t, r=r: (r * math.cos(t), r * math.sin(t)), (0, 2 * math.pi), noise)(x, y)
        for r in (1, 2, 3)
    ]
    return math.log(sum(circles) / 3)


def sinusoid(x, y, noise):
    return stats.uniform(-math.pi, 2 * math.pi).logpdf(x) + stats.norm(math.sin(x), noise).logpdf(y)


REFERENCES = {
    "TwoMoons": moons,
    "TwoSpirals": spirals,
    "Rings": rings,
    "Sinusoid": sinusoid,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_log_prob_agrees_with_scipy(name):
    density = DENSITIES[name](noise=0.2)
    x = torch.cat(
        [
            density.sample(6, seed=0).double(),
            torch.tensor([[0.0, 0.0], [0.7, -0.4], [-1.3, 1.6]], dtype=torch.float64),
        ]
    )
    expected = torch.tensor(
        [REFERENCES[name](*point.tolist(), noise=0.2) for point in x], dtype=torch.float64
    )
    assert torch.allclose(density.log_prob(x), expected, rtol=1e-7, atol=1e-7)


def test_checkerboard_is_uniform_on_eight_squares():
    centres = torch.cartesian_prod(torch.arange(-3, 3) + 0.5, torch.arange(-3, 3) + 0.5)
    log_p = data.Checkerboard().log_prob(centres)
    dark = (centres.abs() < 2).all(1) & ((centres - 0.5).sum(1) % 2 == 0)
    assert dark.sum() == 8
    assert torch.allclose(log_p[dark], torch.tensor(-math.log(8)))
    assert (log_p[~dark] == -math.inf).all()


def test_moon_curves_are_those_of_scikit_learn():
    curves = data.TwoMoons()._curves(torch.linspace(0, math.pi, 50, dtype=torch.float64))
    points, label = make_moons(100, shuffle=False, noise=0)
    for moon in (0, 1):
        assert np.allclose(curves[moon].numpy(), points[label == moon], atol=1e-12)


@every_density
def test_mass_and_entropy_are_those_of_a_plain_sum_over_a_grid(name):
    density, n = coarse(name), 160
    axes = [
        np.linspace(low, high, n, endpoint=False) + (high - low) / n / 2
        for low, high in density.box
    ]
    area = math.prod(high - low for low, high in density.box) / n**2
    log_p = density.log_prob(torch.cartesian_prod(*map(torch.from_numpy, axes))).numpy()
    p = np.exp(log_p)
    assert p.sum() * area == pytest.approx(1, abs=1e-4)
    assert -(p[p > 0] * log_p[p > 0]).sum() * area == pytest.approx(density.entropy, abs=1e-3)


def test_the_entropy_of_two_moons_is_the_known_one():
    assert data.TwoMoons(noise=0.05).entropy == pytest.approx(0.2892, abs=5e-5)


def test_the_entropy_of_two_moons_is_that_of_a_finer_grid():
    moons, n = data.TwoMoons(), 300
    axes = [
        low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        for low, high in moons.box
    ]
    area = math.prod(high - low for low, high in moons.box) / n**2
    p = moons.log_prob(torch.cartesian_prod(*axes)).exp()
    assert p.sum() * area == pytest.approx(1, abs=1e-6)
    assert -torch.special.xlogy(p, p).sum() * area == pytest.approx(moons.entropy, abs=1e-6)


@every_density
def test_entropy_is_minus_the_mean_log_prob_of_samples_within_five_standard_errors(name):
    density = coarse(name)
    log_p = density.log_prob(density.sample(4_000, seed=0).double())
    assert -log_p.mean().item() == pytest.approx(
        density.entropy, abs=5 * log_p.std().item() / 4_000**0.5 + 1e-9
    )


@every_density
def test_samples_fill_cells_as_often_as_log_prob_says(name):
    """Chi-squared over a grid of cells, each cell's probability by a fine midpoint rule."""
    density, cells, fine, n = coarse(name), 12, 12, 20_000
    counts = np.histogram2d(
        *density.sample(n, seed=1).double().numpy().T, bins=cells, range=density.box
    )[0]
    axes = [
        low + (high - low) * (torch.arange(cells * fine).double() + 0.5) / (cells * fine)
        for low, high in density.box
    ]
    area = math.prod(high - low for low, high in density.box) / (cells * fine) ** 2
    p = (
        density.log_prob(torch.cartesian_prod(*axes))
        .exp()
        .view(cells, fine, cells, fine)
        .sum((1, 3))
        .numpy()
        * area
    )
    kept = n * p >= 5
    observed, expected = (
        np.append(counts[kept], n - counts[kept].sum()),
        np.append(n * p[kept], n - n * p[kept].sum()),
    )
    used = expected > 1
    chi2 = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(chi2, used.sum() - 1) > 1e-4


@every_density
def test_samples_obey_their_seed_and_are_float32(name):
    density = DENSITIES[name]()
    first, again, other = (density.sample(20, seed=seed) for seed in (0, 0, 1))
    assert first.dtype == torch.float32
    assert first.shape == (20, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert density.sample(0, seed=0).shape == (0, 2)


@every_density
def test_log_prob_comes_in_the_dtype_of_its_points(name):
    density = DENSITIES[name]()
    x = density.sample(20, seed=0)
    single, double = density.log_prob(x), density.log_prob(x.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(single, double.float())
    assert density.log_prob(torch.zeros(0, 2)).shape == (0,)


@every_density
def test_box_holds_the_samples(name):
    density = DENSITIES[name]()
    (left, right), (bottom, top) = density.box
    x, y = density.sample(10_000, seed=0).unbind(1)
    assert left <= x.min() < x.max() <= right
    assert bottom <= y.min() < y.max() <= top


@pytest.mark.parametrize("name", ["TwoMoons", "TwoSpirals", "Rings"])
def test_far_away_points_are_finite_and_fall_off_as_they_should(name):
    density = DENSITIES[name]()
    near, far = density.log_prob(torch.tensor([[30.0, -40.0], [3_000.0, -4_000.0]]))
    assert far.isfinite()
    assert far < 1e3 * near < 0


def test_rings_at_the_centre_and_far_out_follow_their_closed_form():
    noise = 0.08
    centre, far = data.Rings(noise).log_prob(
        torch.tensor([[0.0, 0.0], [1e4, 0.0]], dtype=torch.float64)
    )
    assert centre.item() == pytest.approx(
        -0.5 / noise**2 - math.log(2 * math.pi * noise**2 * 3), rel=1e-9
    )
    assert far.item() == pytest.approx(-0.5 * ((1e4 - 3) / noise) ** 2, rel=1e-6)


def test_sinusoid_has_no_density_outside_its_interval_and_one_inside():
    outside, inside = data.Sinusoid().log_prob(torch.tensor([[-3.2, 0.0], [3.1, 50.0]]))
    assert outside == -math.inf
    assert inside.isfinite()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", ["Sinusoid", "Checkerboard"])
def test_samples_at_the_very_edge_still_have_a_density(monkeypatch, name, draw):
    """One sample that float32 rounds over a sharp edge would make a mean log-density infinite."""
    monkeypatch.setattr(toys, "rand", lambda shape, rng, like: like.new_full(shape, draw))
    density = DENSITIES[name]()
    assert density.log_prob(density.sample(20, seed=0)).isfinite().all()


@every_noisy_density
def test_repr_shows_the_noise(name):
    assert repr(DENSITIES[name](noise=0.5)) == f"{name}(noise=0.5)"


@every_density
def test_log_prob_follows_the_device_of_its_points(name):
    """On a GPU that torch only imagines: it refuses to mix devices."""
    density = DENSITIES[name]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(5, 2, device="cuda")
        log_p = density.log_prob(x)
        assert (log_p.device.type, log_p.dtype, log_p.shape) == ("cuda", torch.float32, (5,))


@every_density
def test_log_prob_has_the_gradient_that_finite_differences_show(name):
    density = DENSITIES[name]() if name == "Checkerboard" else DENSITIES[name](noise=0.3)
    x = density.sample(5, seed=0).double().requires_grad_()
    assert torch.autograd.gradcheck(density.log_prob, x)


@every_density
def test_arrays_are_taken_as_points(name):
    density = DENSITIES[name]()
    x = density.sample(6, seed=0)
    assert torch.equal(density.log_prob(x.numpy()[::-1]), density.log_prob(x.flip(0)))


@every_density
def test_torchs_default_dtype_does_not_matter(name):
    before = DENSITIES[name]()
    x = before.sample(6, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        density = DENSITIES[name]()
        assert torch.equal(density.sample(6, seed=0), x)
        assert torch.equal(density.log_prob(x), before.log_prob(x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_generator_of_another_device_seeds_one_of_the_cpu(monkeypatch):
    """Whose draws stand in here for those of a GPU's generator."""

    class Elsewhere:
        device = torch.device("meta")

    randint = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(5))
    rng = toys.on_cpu(Elsewhere())
    monkeypatch.setattr(torch, "randint", randint)
    points = data.TwoMoons().sample(4, seed=rng)
    assert torch.equal(points, data.TwoMoons().sample(4, seed=5))


@every_noisy_density
@pytest.mark.parametrize("noise", [0, -0.1, math.nan, math.inf, "0.1", None])
def test_bad_noise_is_refused(name, noise):
    with pytest.raises(ValueError, match="noise must be positive and finite, got"):
        DENSITIES[name](noise)


@every_density
@pytest.mark.parametrize("shape", [(), (2,), (5, 3), (5, 2, 1)], ids=str)
def test_points_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"takes points of shape \(n, 2\), got"):
        DENSITIES[name]().log_prob(torch.zeros(shape))


@every_density
def test_integer_points_are_refused(name):
    """Their log-density would be cut to integers, or be no number where it is -infinity."""
    with pytest.raises(ValueError, match=r"floating-point.*got torch.int64"):
        DENSITIES[name]().log_prob(torch.zeros(3, 2, dtype=torch.int64))


@every_density
@pytest.mark.parametrize("n", [-1, 2.0, None])
def test_a_senseless_number_of_points_is_refused(name, n):
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got"):
        DENSITIES[name]().sample(n)


@pytest.mark.parametrize("seed", ["0", 1.5, True])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        data.TwoMoons().sample(3, seed=seed)
