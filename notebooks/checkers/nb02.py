"""Checkers for the exercises of notebook 02: each says what is wrong, or that it passed. Below
them, two measures of what a model puts between the moons.

An answer that is still None, as the stubs in the notebook leave it, counts as not answered yet.
"""

import math

import torch
from scipy import ndimage

from flowlib import Flow, checkpoints, data, masks, plotting
from flowlib.coupling import AffineCoupling, Coupling
from flowlib.flow import standard_normal_log_prob
from flowlib.norms import ActNorm

MOONS = data.TwoMoons(noise=0.05)
BOX = ((-1.5, 2.5), (-1.1, 1.6))
TOPS = [(0.0, 1.0), (1.0, -0.5)]  # the middles of the two arcs


def check_exercise_1(make_coupling):
    """Exercise 1: any dimension, any mask; inverse, log-det, and what passes through."""
    for mask in [
        masks.alternating(2),
        masks.alternating(5, flip=True),
        masks.halves(6),
        masks.random(7, seed=0),
    ]:
        torch.manual_seed(0)
        layer = make_coupling(mask)
        if layer is None:
            return print("Exercise 1: not answered yet")
        assert not any(isinstance(m, Coupling) for m in layer.modules()), (
            "write the coupling yourself, without flowlib's"
        )
        layer = layer.double()
        x = torch.randn(
            8, len(mask), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        z, log_det = layer(x)
        assert z.shape == x.shape, (
            f"forward must keep the shape {tuple(x.shape)}, got {tuple(z.shape)}"
        )
        assert log_det.shape == (8,), f"log_det must have shape (8,), got {tuple(log_det.shape)}"
        assert torch.equal(z[:, mask], x[:, mask]), (
            "where the mask is True, values must pass through unchanged"
        )
        assert not torch.allclose(z[:, ~mask], x[:, ~mask]), (
            "where the mask is False, values must change"
        )
        jacobian = torch.stack(
            [
                torch.autograd.functional.jacobian(
                    lambda p, layer=layer: layer(p[None])[0][0], point
                )
                for point in x
            ]
        )
        truth = torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(log_det, truth, atol=1e-8), (
            "log_det is not log |det| of the Jacobian dz/dx"
        )
        assert log_det.std() > 0, "the log-scale does not depend on x: is the network constant?"
        back, inverse_log_det = layer.inverse(z)
        assert torch.allclose(back, x, atol=1e-8), "inverse(forward(x)) is not x"
        assert torch.allclose(inverse_log_det, -log_det, atol=1e-8), (
            "the inverse's log_det must be minus the forward's"
        )
    print("Exercise 1: passed")


def check_exercise_2(flow, unlearned_coordinate):
    """Exercise 2: the marginal that a chain of equal masks cannot learn."""
    if flow is None:
        return print("Exercise 2: not answered yet")
    couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling)]
    assert len(couplings) == 8, (
        f"the flow should have eight affine couplings, found {len(couplings)}"
    )
    assert all(m.mask.tolist() == [True, False] for m in couplings), (
        "every mask should be (True, False)"
    )
    assert any(isinstance(m, ActNorm) for m in flow.modules()), "an ActNorm should come first"
    assert unlearned_coordinate in (0, 1), "give the index of the coordinate, 0 or 1"
    x = MOONS.sample(20_000, seed=0)
    z = flow(x)[0]
    kept, changed = (
        torch.corrcoef(torch.stack([x[:, i], z[:, i]]))[0, 1].abs().item()
        for i in (unlearned_coordinate, 1 - unlearned_coordinate)
    )
    assert min(kept, changed) < 0.999, "this flow only centres and scales: train it first"
    assert kept > 0.999, (
        "look again: which coordinate reaches the latent side only centred and scaled?"
    )
    print("Exercise 2: passed")


def check_exercise_3(log_prob_at):
    """Exercise 3: the density of samples at another temperature."""
    flow = checkpoints.load("moons")
    x = MOONS.sample(500, seed=0)
    if log_prob_at(flow, x, 1.0) is None:
        return print("Exercise 3: not answered yet")
    with torch.no_grad():
        assert torch.allclose(log_prob_at(flow, x, 1.0), flow.log_prob(x), atol=1e-4), (
            "at T = 1 it must be flow.log_prob"
        )
        for T in (0.5, 0.8):
            p, cell = plotting.evaluate_on_grid(lambda x, T=T: log_prob_at(flow, x, T), BOX)
            mass = (p.sum() * cell).item()
            assert abs(mass - 1) < 0.03, (
                f"at T = {T} your density integrates to {mass:.3f}: how does the base's "
                "normalisation depend on T?"
            )
            z, log_det = flow(x)
            base = torch.distributions.Normal(0.0, T).log_prob(z).sum(dim=1)
            assert torch.allclose(log_prob_at(flow, x, T), base + log_det, atol=1e-3), (
                f"at T = {T} your density integrates to 1, but it is not that of T z sent through "
                "the inverse: which factors of p(x) does the temperature change, and which not?"
            )
    print("Exercise 3: passed")


def check_exercise_4(density, flow):
    """Exercise 4: the gap to the truth on another toy density."""
    if flow is None:
        return print("Exercise 4: not answered yet")
    allowed = (data.TwoSpirals, data.Rings, data.Checkerboard)
    assert isinstance(density, allowed), (
        f"choose one of {', '.join(kind.__name__ for kind in allowed)}"
    )
    assert isinstance(flow, Flow), f"hand over the flow that you fitted, got {type(flow).__name__}"
    x = density.sample(10_000, seed=99)
    with torch.no_grad():
        gap = (density.log_prob(x) - flow.log_prob(x)).mean().item()
    assert gap < 0.4, (
        f"the gap is {gap:.3f} nats; train longer, take more couplings, or choose another density"
    )
    print(f"Exercise 4: passed, {density} with a gap of {gap:.3f} nats")


def check_exercise_5(flow, mixture_log_prob):
    """Exercise 5: the formula on a flow of the checker's own, then a flow trained with it."""
    if flow is None or mixture_log_prob(flow, MOONS.sample(2, seed=0)) is None:
        return print("Exercise 5: not answered yet")
    x = MOONS.sample(5_000, seed=0)
    other = checkpoints.load("moons")
    with torch.no_grad():
        z, log_det = other(x)
        bumps = [standard_normal_log_prob(z - z.new_tensor([c, 0.0])) for c in (-3.0, 3.0)]
        right = torch.logaddexp(*bumps) - math.log(2) + log_det
        assert torch.allclose(mixture_log_prob(other, x), right, atol=1e-3), (
            "mixture_log_prob(flow, x) must be log (N(z; (-3, 0), I) / 2 + N(z; (3, 0), I) / 2) "
            "+ log_det for whatever flow it is given, with z, log_det = flow(x)"
        )
        gap = (MOONS.log_prob(x) - mixture_log_prob(flow, x)).mean().item()
    assert gap < 0.3, (
        f"with two bumps this flow is {gap:.2f} nats from the truth: it must be trained with the "
        "loss -mixture_log_prob(flow, x).mean(), at least 300 steps"
    )
    print(f"Exercise 5: passed, with two bumps the flow is {gap:.3f} nats from the truth")


def desert_mass(log_prob):
    """The mass that a density puts where that of the two moons is below 0.001."""
    p_true, cell = plotting.evaluate_on_grid(MOONS.log_prob, BOX, resolution=300)
    p_model, _ = plotting.evaluate_on_grid(log_prob, BOX, resolution=300)
    return (p_model[p_true < 1e-3].sum() * cell).item()


def bridge_level(log_prob, resolution=500):
    """The highest level at which both moons lie in one piece of {x: density above the level}."""
    p = plotting.evaluate_on_grid(log_prob, BOX, resolution)[0].numpy()
    (left, right), (bottom, top) = BOX
    on_moons = [((y - bottom) / (top - bottom), (x - left) / (right - left)) for x, y in TOPS]
    low, high = -8.0, 0.0  # powers of ten, halved until they meet
    for _ in range(16):
        middle = (low + high) / 2
        pieces, _ = ndimage.label(p > 10**middle, structure=[[1, 1, 1]] * 3)
        upper, lower = (pieces[int(i * resolution), int(j * resolution)] for i, j in on_moons)
        low, high = (middle, high) if upper == lower != 0 else (low, middle)
    return 10**low
