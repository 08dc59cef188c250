"""Checkers for the exercises of notebook 05."""

import math

import torch

from flowlib import masks


def check_exercise_1(missing_nats, corrected):
    """The missing log 256 per dimension, and the corrected figure."""
    if missing_nats is None:
        return print("Exercise 1: not answered yet")
    right = -784 * math.log(256)
    message = f"one grey level is 1/256 wide, so log P = log p - 784 log 256 = log p {right:.1f}; got {missing_nats:.1f}"
    assert abs(missing_nats - right) < 1, message
    assert abs(corrected - 1.9) < 0.01, f"784 log 256 nats are 8 bits per dimension, so the figure is -6.1 + 8, got {corrected:.2f}"
    print("Exercise 1: passed")


def check_exercise_2(mask, with_rows, with_checkerboard):
    """A mask of rows, and how many hidden pixels have all their neighbours visible."""
    if mask is None:
        return print("Exercise 2: not answered yet")
    assert mask.shape == (784,) and mask.dtype == torch.bool, f"the mask should be a boolean vector of 784, got {mask.dtype} {tuple(mask.shape)}"
    rows = mask.view(28, 28)
    assert rows[::2].all() and not rows[1::2].any(), "even rows should pass through, odd rows should not"
    for name, given, board in [("rows", with_rows, rows), ("the checkerboard", with_checkerboard, masks.checkerboard(28, 28))]:
        padded = torch.ones(30, 30, dtype=torch.bool)
        padded[1:-1, 1:-1] = board
        around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        right = int((~board & around).sum())
        assert given == right, f"for {name} {right} hidden pixels see all of their neighbours, got {given}"
    print("Exercise 2: passed")


def check_exercise_3(flow, figure, ignorance):
    """A flow of 5-bit images."""
    if flow is None:
        return print("Exercise 3: not answered yet")
    assert flow.dequantize.bits == 5, f"the flow should begin with Dequantize(bits=5), got bits={flow.dequantize.bits}"
    assert flow.sample(4, seed=0).max() < 32, "samples of a 5-bit flow lie in 0 ... 31"
    assert abs(ignorance - 5) < 1e-6, f"a model that knows nothing needs log2(32) = 5 bits per dimension, got {ignorance}"
    assert 0 < figure < 5, f"a trained flow should be between 0 and ignorance, got {figure:.3f}"
    print("Exercise 3: passed")


def check_exercise_4(bits_too_low):
    """Noise that fills half a cell."""
    if bits_too_low is None:
        return print("Exercise 4: not answered yet")
    message = f"the density can be twice as large on half of the cell, which is worth log 2 nats per dimension; got {bits_too_low} bits"
    assert abs(bits_too_low - 1) < 1e-6, message
    print("Exercise 4: passed")
