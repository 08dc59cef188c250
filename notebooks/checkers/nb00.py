"""Checkers for the exercises of notebook 00; an answer that is None is not answered yet."""

import torch

from flowlib import checkpoints, data


def check_exercise_1(draw):
    """`draw(flow, n, T)`: n samples at temperature T, by `flow.inverse` alone."""
    flow = checkpoints.load("moons")
    for T in [0.5, 1.5]:
        x = draw(flow, 10_000, T)
        if x is None:
            return print("Exercise 1: not answered yet")
        assert x.shape == (10_000, 2), f"10,000 samples have the shape (10000, 2), not {x.shape}"
        with torch.no_grad():
            z, _ = flow(x)
        assert z.mean(dim=0).abs().max() < 0.05 * T, "the latents are not centred at 0"
        spread = z.std(dim=0)
        assert (spread / T - 1).abs().max() < 0.05, (
            f"at T = {T} the latents should have the standard deviation {T}, "
            f"not {spread.mean():.2f}"
        )
        inner = (z.norm(dim=1) < T).float().mean().item()
        assert abs(inner - 0.393) < 0.03, "the latents have the right spread and are not Gaussian"
    print("Exercise 1: passed")


def check_exercise_2(walk):
    """`walk(flow, a, b, n)`: n points from a to b whose latents lie evenly on a straight line."""
    flow = checkpoints.load("moons")
    a, b = torch.tensor([-0.9, 0.45]), torch.tensor([1.9, 0.05])
    path = walk(flow, a, b, 11)
    if path is None:
        return print("Exercise 2: not answered yet")
    assert path.shape == (11, 2), f"11 points have the shape (11, 2), not {tuple(path.shape)}"
    with torch.no_grad():
        z, _ = flow(path)
        (z_a, z_b), _ = flow(torch.stack([a, b]))
    assert torch.allclose(path[[0, -1]], torch.stack([a, b]), atol=1e-3), (
        "the path must begin at a and end at b"
    )
    straight = z_a + torch.linspace(0, 1, 11)[:, None] * (z_b - z_a)
    assert torch.allclose(z, straight, atol=1e-2), (
        "the latents of the path are not evenly spaced on the straight line between the two ends"
    )
    print("Exercise 2: passed")


def check_exercise_3(measure_gap):
    """`measure_gap(flow, density, x)`: mean of log p_true - log p_flow over x, and its error."""
    moons, flow = data.TwoMoons(noise=0.05), checkpoints.load("moons")
    x = moons.sample(5_000, seed=3)
    answer = measure_gap(flow, moons, x)
    if answer is None:
        return print("Exercise 3: not answered yet")
    with torch.no_grad():
        difference = moons.log_prob(x) - flow.log_prob(x)
    mean, error = (float(value) for value in answer)
    assert abs(mean + difference.mean().item()) > 1e-3, (
        "the sign is wrong: the truth comes first, so that a perfect flow has 0 and a bad one more"
    )
    assert abs(mean - difference.mean().item()) < 1e-4, (
        f"the mean difference is not {mean:.4f} nats"
    )
    assert abs(error - difference.std().item() / len(x) ** 0.5) < 1e-4, (
        "the standard error is the standard deviation over the square root of n"
    )
    print("Exercise 3: passed")
