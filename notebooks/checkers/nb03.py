"""Checkers for the exercises of notebook 03."""

import math

import torch

from flowlib import Flow, budget, checkpoints, data, plotting
from flowlib.bijections import Chain, SoftLog

WAVE = data.Sinusoid(noise=0.1)


def gap(flow, density, points):
    with torch.no_grad():
        return (density.log_prob(points) - flow.log_prob(points)).mean().item()


def check_exercise_1(density, floor, gap_nice):
    """Noise of width 0.1 exp(cos x): the density, the floor for constant log_det, NICE's gap."""
    if density is None:
        return print("Exercise 1: not answered yet")
    p, cell = plotting.evaluate_on_grid(density.log_prob, density.box, resolution=1_000)
    assert abs(p.sum().item() * cell - 1) < 0.01, (
        f"the density should integrate to 1 over its box, got {p.sum().item() * cell:.4f}"
    )
    x, y = density.sample(20_000, seed=5).unbind(1)
    spread = (y - x.sin()) / (0.1 * x.cos().exp())
    message = (
        "samples should scatter with width 0.1 exp(cos x) around sin x; divided by it "
        f"their deviation is {spread.std():.3f}, not 1"
    )
    assert abs(spread.std() - 1) < 0.03, message
    entropy = math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi * math.e * 0.01)
    message = (
        "the entropy is that of the plain sinusoid, as log sigma(x) averages to log 0.1; "
        f"got {density.entropy:.4f}"
    )
    assert abs(density.entropy - entropy) < 1e-3, message
    measured = -density.log_prob(density.sample(20_000, seed=6)).mean().item()
    message = (
        f"-log_prob averages {measured:.4f} over samples, but the entropy is {entropy:.4f}: "
        "sample and log_prob disagree"
    )
    assert abs(measured - entropy) < 0.03, message
    p = p.flatten().double().sort(descending=True).values
    mu = (p * cell * (torch.arange(len(p)) + 0.5)).sum().item() * cell / (2 * math.pi)
    right = math.log(2 * math.pi) + 1 + math.log(mu) - entropy
    assert abs(floor - right) < 0.01, (
        f"the floor for a constant log_det should be {right:.3f} nats (second value of "
        f"volume_floors), got {floor:.3f}"
    )
    assert gap_nice > right - 0.005, (
        f"NICE has a constant log_det, so its gap cannot be {gap_nice:.3f}, below {right:.3f}: "
        "check how it is measured, and that it is NICE's"
    )
    assert gap_nice < budget(0.3, math.inf), (
        f"a gap of {gap_nice:.3f} nats is that of a flow that has hardly been trained"
    )
    print("Exercise 1: passed")


def check_exercise_2(flow, predicted_floor):
    """A mask that never alternates: x passes through every coupling."""
    if flow is None:
        return print("Exercise 2: not answered yet")
    kept = [module.mask.tolist() for module in flow.modules() if hasattr(module, "mask")]
    assert kept, "the flow should contain coupling layers"
    assert all(mask == [True, False] for mask in kept), (
        f"every mask should pass x through and change y, got {kept}"
    )
    right = 0.5 * math.log(2 * math.pi * math.e * math.pi**2 / 3) - math.log(2 * math.pi)
    message = (
        f"the floor is the gap of a Gaussian with the variance of the uniform, {right:.4f} "
        f"nats, got {predicted_floor:.4f}"
    )
    assert abs(predicted_floor - right) < 1e-3, message
    measured = gap(flow, WAVE, WAVE.sample(20_000, seed=99))
    assert measured > right - 0.02, (
        f"a gap of {measured:.4f} is below the floor {right:.4f}: check the masks and the layers"
    )
    x, y = torch.linspace(-2.5, 2.5, 11), torch.linspace(-4, 4, 1_601)
    with torch.no_grad():
        joint = flow.log_prob(torch.cartesian_prod(x, y)).exp().view(len(x), len(y))
    conditional = joint / (joint.sum(1, keepdim=True) * 0.005)
    truth = torch.exp(-0.5 * ((y - x.sin()[:, None]) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    distance = (conditional - truth).abs().sum(1).mean().item() * 0.005 / 2
    assert distance < 0.2, (
        "the slices q(y | x) should be close to the truth; their mean total variation distance "
        f"is {distance:.2f}: train longer"
    )
    print("Exercise 2: passed")


def check_exercise_3(flow, floor):
    """A flow trained on data.Rings to a gap that affine couplings do not reach so soon."""
    if flow is None or floor is None:
        return print("Exercise 3: not answered yet")
    rings = data.Rings()
    measured = gap(flow, rings, rings.sample(20_000, seed=99))
    assert measured > 0, (
        f"no model beats the truth, but the gap is {measured:.4f}: check what the flow was "
        "trained on"
    )
    target = budget(0.2, 1.26)  # in tests on a short budget: the gap of the best Gaussian
    assert measured < target, (
        f"the gap is {measured:.3f} nats, the target {target}: train longer, or take a coupling "
        "that can bend more"
    )
    p, cell = plotting.evaluate_on_grid(rings.log_prob, rings.box, resolution=500)
    p = p.flatten().double().sort(descending=True).values
    mu = (p * cell * (torch.arange(len(p)) + 0.5)).sum().item() * cell / (2 * math.pi)
    entropy = -torch.special.xlogy(p, p).sum().item() * cell
    right = math.log(2 * math.pi) + 1 + math.log(mu) - entropy
    assert abs(floor - right) < 0.005, (
        f"the floor for a constant log_det is the second value of volume_floors, {right:.3f} nats "
        f"here, got {floor:.3f}"
    )
    print("Exercise 3: passed")


def check_exercise_4(share, gaps, thrown):
    """SoftLog with tau = 2 and tau = 100 behind the shipped flow."""
    if share is None:
        return print("Exercise 4: not answered yet")
    assert set(share) == set(gaps) == {2.0, 100.0}, (
        f"both dictionaries need the keys 2.0 and 100.0, got {sorted(share)} and {sorted(gaps)}"
    )
    shipped = checkpoints.load("sinusoid")
    points = WAVE.sample(20_000, seed=99)
    with torch.no_grad():
        largest = shipped(points)[0].abs().amax(1)
    assert share[100.0] == 0, f"no test point reaches 100, got a share of {share[100.0]}"
    expected = (largest >= 2).float().mean().item()
    assert abs(share[2.0] - expected) < 0.002, (
        f"the share should be {expected:.3f}, got {share[2.0]:.3f}: count points with at least one "
        "coordinate beyond 2"
    )
    for tau, given in gaps.items():
        flow = Flow(Chain(*shipped.bijection, SoftLog(tau)), (2,)).eval()
        assert abs(given - gap(flow, WAVE, points)) < 5e-4, (
            f"for tau = {tau:.0f} the gap on the 20,000 points is not {given:.4f}: let SoftLog be "
            "the last layer, and measure with its log_det"
        )
    assert abs(float(thrown) - (1 + math.exp(3))) < 0.01, (
        f"the inverse is tau + exp(|z| - tau) - 1 beyond tau, got {float(thrown):.3f}"
    )
    print("Exercise 4: passed")
