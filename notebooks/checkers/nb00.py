"""Checker for the third exercise of notebook 00; an answer that is None is not answered yet."""

import torch

from flowlib import checkpoints, data


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
