"""Checkers for the exercises of notebook 07."""

import math

import torch

from flowlib import checkpoints, losses, models
from flowlib.flow import standard_normal_log_prob
from flowlib.norms import BatchNorm


def check_exercise_1(by_hand, images):
    """Bits/dim of each image as the log-determinant's part and one base term per scale."""
    small = checkpoints.load("cifar10_small")
    deeper = models.realnvp_image((3, 32, 32), scales=3, width=4, blocks=1).eval()
    for flow in (small, deeper):
        x = images.test[:5]
        noise = flow.draw_noise(len(x), torch.Generator().manual_seed(7))
        with torch.no_grad():
            parts = by_hand(flow, x, noise)
            if parts is None:
                return print("Exercise 1: not answered yet")
            z, log_det = flow(x, noise=noise)
        scales = flow.bijection[-1].split_latent(z)
        assert len(parts) == 1 + len(scales), (
            f"expected the log-determinant's part and {len(scales)} scales, got {len(parts)} parts"
        )
        assert all(part.shape == (5,) for part in parts), (
            "each part should have one value per image, got "
            f"{[tuple(part.shape) for part in parts]}"
        )
        expected = [
            losses.bits_per_dim(nats, flow.shape)
            for nats in (log_det, *(standard_normal_log_prob(part.flatten(1)) for part in scales))
        ]
        for name, mine, right in zip(
            ["log-determinant", *(f"scale {k}" for k in range(1, 9))], parts, expected
        ):
            message = (
                f"the {name} of the first image should add {right[0]:.3f} bits/dim, you "
                f"have {mine[0]:.3f}"
            )
            assert torch.allclose(mine, right, atol=1e-3), message
    print("Exercise 1: passed")


def check_exercise_2(base_bits, measured, typical):
    """The base term as a function of temperature, and the cost of the shipped flow's samples."""
    if base_bits is None:
        return print("Exercise 2: not answered yet")
    for T in (0.0, 0.5, 1.0, 1.3):
        right = T**2 / (2 * math.log(2)) + 0.5 * math.log2(2 * math.pi)
        message = (
            f"at T = {T} expected {right:.3f}, got {float(base_bits(T)):.3f}: the mean of "
            "z² is T² there, and the density is that of T = 1"
        )
        assert abs(float(base_bits(T)) - right) < 1e-3, message
    assert sorted(measured) == [0.5, 0.75, 1.0], (
        f"the temperatures should be 0.5, 0.75 and 1, got {sorted(measured)}"
    )
    small = checkpoints.load("cifar10_small")
    with torch.no_grad():
        cost = (
            losses.bits_per_dim(
                small.log_prob(small.sample(8, temperature=0.5, seed=11), seed=0), small.shape
            )
            .mean()
            .item()
        )
    assert abs(measured[0.5] - cost) < 0.5, (
        f"8 other samples at T = 0.5 cost {cost:.2f} bits/dim, you gave {measured[0.5]:.2f}"
    )
    assert measured[0.5] < measured[0.75] < measured[1.0], (
        "samples should be the cheaper the lower the temperature"
    )
    message = (
        "the model's own samples, those at T = 1, cost much more; hardly one of them is as "
        "cheap as those at T = 0.5"
    )
    assert typical is False, message
    print("Exercise 2: passed")


@torch.no_grad()
def _reports(images):
    """What is reported if one term is left out, in bits/dim, and the right figure."""
    small, x = checkpoints.load("cifar10_small"), images.test[:20]
    noise = small.draw_noise(len(x), torch.Generator().manual_seed(0))
    z, log_det = small(x, noise=noise)
    y, first = small.dequantize(x, noise=noise)
    norms, hooks = [], []
    for module in small.modules():
        if isinstance(module, BatchNorm):
            hooks.append(
                module.register_forward_hook(lambda module, inputs, output: norms.append(output[1]))
            )
    small(x, noise=noise)
    for hook in hooks:
        hook.remove()
    scales = [
        standard_normal_log_prob(part.flatten(1)) for part in small.bijection[-1].split_latent(z)
    ]
    terms = {
        "dequantise": first,
        "logit": small.bijection[1](y)[1],
        "batch norms": sum(norms),
        "base of scale 1": scales[0],
        "base of scale 2": scales[1],
    }
    right = standard_normal_log_prob(z) + log_det
    return {
        name: losses.bits_per_dim(right - nats, small.shape).mean().item()
        for name, nats in terms.items()
    }


COLLEAGUES = {"Ada": "base of scale 1", "Ben": "logit", "Cleo": "batch norms", "Dan": "dequantise"}


def broken_reports(images):
    """Four figures in bits/dim, each without one term: {"Ada": ..., "Ben": ..., "Cleo": ..., …}."""
    without = _reports(images)
    return {name: round(without[term], 4) for name, term in COLLEAGUES.items()}


def check_exercise_3(forgotten, images):
    """Who forgot which term of the ledger."""
    if forgotten is None:
        return print("Exercise 3: not answered yet")
    assert sorted(forgotten) == sorted(COLLEAGUES), (
        f"the colleagues are {', '.join(COLLEAGUES)}, got {', '.join(forgotten)}"
    )
    without = _reports(images)
    for name, term in forgotten.items():
        assert term in without, (
            f"{name}: {term!r} is none of the terms; they are {', '.join(without)}"
        )
        report = without[COLLEAGUES[name]]
        assert term == COLLEAGUES[name], (
            f"{name} reports {report:.3f}; without {term} it would have been {without[term]:.3f}"
        )
    print("Exercise 3: passed")
