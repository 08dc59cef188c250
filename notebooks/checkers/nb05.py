"""Checkers for the exercises of notebook 05."""

import math

import torch

from flowlib import budget, checkpoints, losses


def check_exercise_1(bits):
    """Bits/dim from the log-density of y = (x + u) / levels in [0, 1)^D."""
    value = bits(torch.zeros(3), 784, 256)
    if value is None:
        return print("Exercise 1: not answered yet")
    value = torch.as_tensor(value)
    assert value.shape == (3,), (
        f"one figure for each image: expected shape (3,), got {tuple(value.shape)}"
    )
    assert torch.allclose(value, torch.full((3,), 8.0)), (
        f"density 1 everywhere means 256 equally likely values, 8 bits; got {value[0]:.3f}"
    )
    coarse = float(torch.as_tensor(bits(torch.zeros(1), 12, 32)))
    assert abs(coarse - 5) < 1e-5, f"with 32 levels a density of 1 means 5 bits, got {coarse:.3f}"
    doubled = float(torch.as_tensor(bits(torch.full((1,), 10 * math.log(2)), 10, 256)))
    assert abs(doubled - 7) < 1e-5, (
        "twice the density in each of 10 dimensions saves one bit in each: expected 7, got "
        f"{doubled:.3f}"
    )
    print("Exercise 1: passed")


def check_exercise_2(too_low, total):
    """Noise over half of every cell."""
    if too_low is None:
        return print("Exercise 2: not answered yet")
    message = (
        "the density may be twice as high where the noise goes, in each dimension: what is "
        "log2 of that?"
    )
    assert abs(float(too_low) - 1) < 1e-6, f"{message} You gave {float(too_low):.3f}"
    message = "each value is given twice the mass of its half cell, so the sum is twice 1"
    assert abs(float(total) - 2) < 1e-6, f"{message}; you gave {float(total):.3f}"
    print("Exercise 2: passed")


def check_exercise_3(rows, changed, odd_width):
    """A mask of rows, the pixels that it changes, and alternating(D) where the width is odd."""
    if rows is None:
        return print("Exercise 3: not answered yet")
    for H, W in [(28, 28), (5, 4), (4, 7)]:
        for flip in (False, True):
            mask = rows(H, W, flip=flip)
            assert torch.is_tensor(mask) and mask.dtype == torch.bool, (
                "the mask should be a boolean tensor"
            )
            assert mask.shape == (H * W,), (
                f"for {H} x {W} pixels the mask should have shape ({H * W},), got "
                f"{tuple(mask.shape)}"
            )
            board = mask.view(H, W)
            assert (board == board[:, :1]).all(), (
                "all pixels of a row should share one value: look at mask.view(H, W)"
            )
            expected = [(row % 2 == 0) != flip for row in range(H)]
            assert board[:, 0].tolist() == expected, (
                f"with flip={flip} the first rows should be {expected[:3]}, got "
                f"{board[:3, 0].tolist()}"
            )
    assert changed == 392, (
        f"a coupling changes the pixels where the mask is False: half of 784, got {changed}"
    )
    assert odd_width == "checkerboard", (
        "draw masks.alternating(27 * 27).view(27, 27): the colour of the first pixel differs "
        "from row to row"
    )
    print("Exercise 3: passed")


def check_exercise_4(curve, images):
    """The bound of mnist_mlp against the number of draws."""
    if curve is None:
        return print("Exercise 4: not answered yet")
    assert sorted(curve) == [1, 2, 4, 8, 16], (
        f"the keys should be 1, 2, 4, 8 and 16, got {sorted(curve)}"
    )
    values = [float(curve[k]) for k in sorted(curve)]
    flow, x = checkpoints.load("mnist_mlp"), images.test[:100]
    for k, value in zip(sorted(curve), values):
        measured = losses.importance_bits_per_dim(flow, x, k, seed=3).mean().item()
        assert abs(value - measured) < 0.03, (
            f"k = {k} on the first 100 test images gives about {measured:.3f} bits/dim, you gave "
            f"{value:.3f}"
        )
    assert values[-1] < values[0], "16 draws should come out below one draw"
    print("Exercise 4: passed")


def check_exercise_5(flow, bits5, bits8, images):
    """A flow of 5-bit images, its bits/dim, and what it would need for all 8 bits."""
    if flow is None:
        return print("Exercise 5: not answered yet")
    assert flow.dequantize is not None and flow.dequantize.bits == 5, (
        "the flow should begin with Dequantize(bits=5): use realnvp_mlp(bits=5)"
    )
    x = images.test[:200] >> 3
    with torch.no_grad():
        measured = losses.bits_per_dim(flow.log_prob(x, seed=0), x.shape[1:]).mean().item()
    assert abs(bits5 - measured) < 0.1, (
        f"on the first 200 test images >> 3 the checker finds {measured:.3f} bits/dim, you gave "
        f"{bits5:.3f}"
    )
    assert measured < 5, (
        f"5 bits/dim is what knowing nothing costs; this flow needs {measured:.2f}: train it longer"
    )
    if budget(True, False) and not images.is_standin:
        assert measured < 1.7, (
            f"one Gaussian per pixel is about as good: {measured:.2f} bits/dim; train longer"
        )
    assert abs(bits8 - bits5 - 3) < 1e-3, (
        "three bits that are equally likely cost exactly three more bits per dimension"
    )
    print("Exercise 5: passed")
