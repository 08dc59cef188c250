"""Checkers for the exercises of notebook 04, and the small digits that it uses too."""

import math

import torch
import torch.nn.functional as F

from flowlib import Flow, checks, data, losses
from flowlib.bijections import Chain
from flowlib.flow import standard_normal_log_prob


def miniatures(images):
    """uint8 (N, 1, 28, 28) -> (N, 1, 8, 8): the middle 24 x 24 pixels, averaged 3 by 3, rounded."""
    return F.avg_pool2d(images[:, :, 2:26, 2:26].float(), 3).round().to(torch.uint8)


def random_points(D):
    return torch.randn(128, D, generator=torch.Generator().manual_seed(0))


def check_exercise_1(row, Repaired):
    """A learned scale per dimension, whose log_det is summed."""
    if row is None or Repaired is None:
        return print("Exercise 1: not answered yet")
    assert row == "log_det of forward", (
        "run check_flow on Flow(Chain(Patient1(4)), shape=(4,)) and read report.failed; you gave "
        f"{row!r}"
    )
    layer = Repaired(3)
    assert {"log_scale", "shift"} <= dict(layer.named_parameters()).keys(), (
        "the layer should still learn log_scale and shift"
    )
    with torch.no_grad():
        layer.log_scale += torch.tensor([-1.0, 0.0, 1.0])
        z = layer(torch.ones(5, 3))[0] - layer(torch.zeros(5, 3))[0]
    assert torch.allclose(z, layer.log_scale.exp().expand(5, 3), atol=1e-5), (
        "forward should still multiply by exp(log_scale)"
    )
    for D in (1, 4, 64):
        report = checks.check_flow(Flow(Chain(Repaired(D)), shape=(D,)), random_points(D))
        left = set(report.failed) - {"dimensions never coupled"}  # that is what such a layer is
        assert not left, f"with D = {D} your layer still fails: {', '.join(sorted(left))}"
    print("Exercise 1: passed")


def check_exercise_2(deviation, repaired):
    """A prior averaged over dimensions beside a log_det that is summed."""
    if deviation is None or repaired is None:
        return print("Exercise 2: not answered yet")
    for D in (2, 64):
        given = float(deviation(D))
        hint = (
            "scale all latents by a: log_det gains D log a, and the mean of z^2 / 2 over "
            "rows and dimensions becomes a^2 / 2"
        )
        assert abs(given - math.sqrt(D)) < 1e-3 * D, (
            f"in {D} dimensions you gave {given:.3f}. {hint}; where is the minimum?"
        )
        z, log_det = random_points(D), torch.linspace(-1, 2, 128)
        change = repaired(z, log_det) - repaired(0 * z, 0 * log_det)
        expected = losses.nll(z, log_det) - losses.nll(0 * z, 0 * log_det)
        assert torch.allclose(change, expected, rtol=1e-3), (
            "z^2 / 2 is summed over dimensions, then averaged over rows, minus the mean log_det"
        )
    print("Exercise 2: passed")


def check_exercise_3(repaired, averaged):
    """Averaged weights with statistics of their own."""
    if repaired is None:
        return print("Exercise 3: not answered yet")
    same = all(torch.equal(a, b) for a, b in zip(repaired.parameters(), averaged.parameters()))
    assert same, "the parameters were changed: only the running statistics are wrong"
    assert not repaired.training, (
        "hand over the flow in evaluation mode: that is what the complaint is about"
    )
    x = data.TwoMoons(noise=0.05).sample(256, seed=3)
    report = checks.check_flow(repaired, x)
    assert "training and evaluation" not in report.failed, report["training and evaluation"].meaning
    assert "rows leak into one another" not in report.failed, (
        "evaluation must not use the statistics of the batch"
    )
    print("Exercise 3: passed")


def check_exercise_4(missing, figure, flow, images):
    """Bits/dim of the integers from a flow of logits."""
    if missing is None or figure is None:
        return print("Exercise 4: not answered yet")
    wrong = set(missing) ^ {"log 256", "logit"}
    assert not wrong, (
        f"of {', '.join(sorted(wrong))} say again: which log_dets belong to layers 0 and 1, and "
        "is the prior in the function?"
    )
    with torch.no_grad():
        z, log_det = flow(
            images, noise=flow.draw_noise(len(images), torch.Generator().manual_seed(1))
        )
    right = (
        losses.bits_per_dim(standard_normal_log_prob(z) + log_det, images.shape[1:]).mean().item()
    )
    assert abs(figure - right) < 0.05, (
        f"the checker finds {right:.3f} bits/dim, you gave {figure:.3f}: flow.log_prob(images) "
        "has all terms"
    )
    print("Exercise 4: passed")


def check_exercise_5(row, make):
    """A random permutation that survives saving."""
    if row is None or make is None:
        return print("Exercise 5: not answered yet")
    assert row == "state lost by saving", (
        f"run check_flow on a flow with couplings and a Patient5 between them; you gave {row!r}"
    )
    torch.manual_seed(0)
    one, other, x = make(16), make(16), random_points(16)
    assert not torch.equal(one(x)[0], other(x)[0]), "two new layers should shuffle differently"
    z, log_det = one(x)
    assert torch.equal(z.sort(1).values, x.sort(1).values) and (log_det == 0).all(), (
        "a permutation puts the same values into another order, and its log_det is 0"
    )
    assert torch.equal(one.inverse(z)[0], x), "inverse(forward(x)) is not x"
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x)[0], other(x)[0]), (
        "the state of one, loaded into another, leaves them different: the order is not in it"
    )
    print("Exercise 5: passed")
