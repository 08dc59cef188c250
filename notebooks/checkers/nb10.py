"""Checkers for the exercises of notebook 10."""

import math

import torch

from flowlib import Flow


def bump(x, centre, width):
    return -0.5 * ((x - centre) / width) ** 2


def funnel(points):
    v, y = points.unbind(1)
    return bump(v, 0, 3) - math.log(3) + bump(y, 0, (v / 2).exp()) - v / 2 - math.log(2 * math.pi)


def log_u1(x):
    return bump(x.norm(dim=1), 2, 0.4) + torch.logaddexp(
        bump(x[:, 0], 2, 0.6), bump(x[:, 0], -2, 0.6)
    )


def check_exercise_1(flow):
    """A flow that is the funnel."""
    if flow is None:
        return print("Exercise 1: not answered yet")
    assert isinstance(flow, Flow) and flow.shape == (2,), (
        "hand over a Flow of shape (2,): Flow(YourBijection(), (2,))"
    )
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        x, inverse_log_det = flow.inverse(z)
        back, log_det = flow(x)
        assert log_det.shape == inverse_log_det.shape == (500,), (
            f"log_det should have shape (500,), got {tuple(log_det.shape)}"
        )
        assert torch.allclose(back, z, atol=1e-6), (
            f"forward(inverse(z)) should be z, but differs by {(back - z).abs().max():.1e}"
        )
        assert torch.allclose(log_det, -inverse_log_det, atol=1e-6), (
            "the log_dets of forward and inverse should cancel: check their signs"
        )
        wrong = -0.5 * z.square().sum(1) - math.log(2 * math.pi) - inverse_log_det - funnel(x)
    message = (
        f"log q - log p should be 0 at every point, but reaches {wrong.abs().max():.3f}: is "
        "the width of y exp(v / 2), and v's 3?"
    )
    assert wrong.abs().max() < 1e-6, message
    print("Exercise 1: passed")


def check_exercise_2(log_z, standard_error):
    """log Z of U1 from a mixture proposal."""
    if log_z is None or standard_error is None:
        return print("Exercise 2: not answered yet")
    axis = (2 * (torch.arange(400, dtype=torch.float64) + 0.5) / 400 - 1) * 6
    truth = log_u1(torch.cartesian_prod(axis, axis)).logsumexp(0).item() + 2 * math.log(12 / 400)
    assert 0.01 < standard_error < 0.05, (
        "with 20,000 points of this mixture the error should be between 0.01 and 0.05, got "
        f"{standard_error:.4f}"
    )
    message = (
        f"quadrature says {truth:.3f}, you {log_z:.3f} ± {standard_error:.3f}; the weights "
        "need the density of the mixture, not of q"
    )
    assert abs(log_z - truth) < 4 * standard_error, message
    print("Exercise 2: passed")


def check_exercise_3(clamp, couplings):
    """The asymmetric clamp where s is of data -> latent; the depth that a growth of 20 needs."""
    if clamp is None or couplings is None:
        return print("Exercise 3: not answered yet")
    s = torch.linspace(-200, 200, 4_001, dtype=torch.float64)
    c = clamp(s)
    assert c.shape == s.shape, f"the clamp should keep the shape, got {tuple(c.shape)}"
    assert (c.diff() > 0).all(), (
        "the clamp should increase everywhere, or information about s is lost"
    )
    message = (
        "samples are multiplied by exp(-s) here, so s may reach 2 and -0.1; yours reaches "
        f"{c.max():.2f} and {c.min():.2f}"
    )
    assert 1.9 < c.max() < 2 and -0.1 < c.min() < -0.09, message
    tiny = torch.tensor([-1e-4, 1e-4], dtype=torch.float64)
    assert torch.allclose(clamp(tiny), tiny * 2 / math.pi, rtol=1e-3), (
        "the slope at 0 should be 2 / pi on both sides"
    )

    changes = math.floor(math.log(20) / 0.1) + 1  # each gives less than exp(0.1)
    assert couplings == 2 * changes - 1, (
        "count again: each change gives less than exp(0.1), and the changes happen in couplings "
        f"1, 3, 5, …; got {couplings}"
    )
    print("Exercise 3: passed")


def check_exercise_4(flow):
    """q(x | y) with two answers."""
    if flow is None:
        return print("Exercise 4: not answered yet")
    assert flow.shape == (2,) and flow.context_features == 1, (
        "hand over a Flow of shape (2,) with context_features=1"
    )
    for y, name in [(0.5, "pi/6"), (-0.5, "-pi/6")]:
        x = flow.sample(4_000, seed=0, context=torch.full((4_000, 1), y))[:, 0]
        answers = math.asin(y), math.copysign(math.pi, y) - math.asin(y)
        shares = [((x - answer).abs() < 0.5).float().mean().item() for answer in answers]
        message = (
            "at y = {} the answers are {} and five times that; their neighbourhoods get {:.0%} "
            "and {:.0%} of your samples"
        ).format(y, name, *shares)
        assert min(shares) > 0.25 and sum(shares) > 0.75, message
    print("Exercise 4: passed")
