"""Checkers for the exercises of notebook 07."""

import math

import torch

from flowlib import checkpoints, losses, models
from flowlib.flow import standard_normal_log_prob
from flowlib.norms import BatchNorm


def check_exercise_1(by_hand, images):
    """Bits/dim of each image as the log-determinant's part and one base term per scale."""
    flow = checkpoints.load("cifar10")
    deeper = models.realnvp_image((3, 32, 32), scales=3, width=4, blocks=1).eval()
    for model in (flow, deeper):
        x = images.test[:3]
        noise = model.draw_noise(len(x), torch.Generator().manual_seed(7))
        with torch.no_grad():
            parts = by_hand(model, x, noise)
            if parts is None:
                return print("Exercise 1: not answered yet")
            z, log_det = model(x, noise=noise)
        scales = model.bijection[-1].split_latent(z)
        assert len(parts) == 1 + len(scales), (
            f"expected the log-determinant's part and {len(scales)} scales, got {len(parts)} parts"
        )
        assert all(part.shape == (len(x),) for part in parts), (
            "each part should have one value per image, got "
            f"{[tuple(part.shape) for part in parts]}"
        )
        nats = [log_det, *(standard_normal_log_prob(part.flatten(1)) for part in scales)]
        names = ["log-determinant", *(f"scale {k}" for k in range(1, 1 + len(scales)))]
        for name, mine, expected in zip(names, parts, nats):
            right = losses.bits_per_dim(expected, model.shape)
            assert torch.allclose(mine, right, atol=1e-3), (
                f"the {name} of the first image should add {right[0]:.3f} bits/dim, you "
                f"have {mine[0]:.3f}"
            )
    print("Exercise 1: passed")


@torch.no_grad()
def _reports(images):
    """What is reported if one term is left out, in bits/dim, by term."""
    flow, x, norms = checkpoints.load("cifar10"), images.test[:8], []
    noise = flow.draw_noise(len(x), torch.Generator().manual_seed(0))
    for module in flow.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda module, inputs, output: norms.append(output[1]))
    z, log_det = flow(x, noise=noise)
    y, first = flow.dequantize(x, noise=noise)
    integers = torch.full_like(first, -flow.shape.numel() * math.log(256))
    terms = {"integers": integers, "learned noise": first - integers}
    terms |= {"logit": flow.bijection[1](y)[1], "batch norms": sum(norms)}
    for k, part in enumerate(flow.bijection[-1].split_latent(z), start=1):
        terms[f"base of scale {k}"] = standard_normal_log_prob(part.flatten(1))
    right = standard_normal_log_prob(z) + log_det
    return {
        name: losses.bits_per_dim(right - nats, flow.shape).mean().item()
        for name, nats in terms.items()
    }


def _colleagues(terms):
    """Who forgot which term: drawn by lot, so that no list of answers stands here."""
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2718)).tolist()
    return {name: list(terms)[i] for name, i in zip(["Ada", "Ben", "Cleo", "Dan"], order)}


def broken_reports(images):
    """Four figures in bits/dim, each without one term: {"Ada": ..., "Ben": ..., "Cleo": ..., …}."""
    without = _reports(images)
    return {name: round(without[term], 4) for name, term in _colleagues(without).items()}


def check_exercise_2(forgotten, images):
    """Who forgot which term of the ledger."""
    if forgotten is None:
        return print("Exercise 2: not answered yet")
    without = _reports(images)
    answers = _colleagues(without)
    assert sorted(forgotten) == sorted(answers), (
        f"the colleagues are {', '.join(answers)}, got {', '.join(forgotten)}"
    )
    for name, term in forgotten.items():
        assert term in without, (
            f"{name}: {term!r} is none of the terms; they are {', '.join(without)}"
        )
        assert term == answers[name], (
            f"{name} reports {without[answers[name]]:.3f}; without {term} it would have been "
            f"{without[term]:.3f}"
        )
    print("Exercise 2: passed")


@torch.no_grad()
def check_exercise_3(base_bits, measured, shortest):
    """The base term as a function of temperature, the cost of samples, and the shortest latent."""
    if base_bits is None:
        return print("Exercise 3: not answered yet")
    for T in (0.0, 0.5, 1.0, 1.3):
        right = T**2 / (2 * math.log(2)) + 0.5 * math.log2(2 * math.pi)
        assert abs(float(base_bits(T)) - right) < 1e-3, (
            f"at T = {T} expected {right:.3f}, got {float(base_bits(T)):.3f}: the mean of "
            "z² is T² there, and the density is that of T = 1"
        )
    assert sorted(measured) == [0.5, 0.75, 1.0], (
        f"the temperatures should be 0.5, 0.75 and 1, got {sorted(measured)}"
    )
    flow = checkpoints.load("cifar10")
    for T, given in measured.items():
        samples = flow.sample(6, temperature=T, seed=11)
        costs = losses.bits_per_dim(flow.log_prob(samples, seed=0), flow.shape)
        assert abs(given - costs.mean()) < 0.3, (
            f"6 other samples at T = {T} cost {costs.mean():.2f} ± {costs.std() / 6**0.5:.2f} "
            f"bits/dim, you gave {given:.2f}"
        )
    assert shortest is not None and 0.92 < float(shortest) < 0.98, (
        "the smallest of 1,000 values of |z| / √D is close to 1: the latents of D = 3072 lie in "
        f"a thin shell; got {shortest}"
    )
    print("Exercise 3: passed")
