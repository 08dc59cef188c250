"""Checkers for the exercises of notebook 11."""

import time

import torch

from flowlib import data, losses, models


def _flow():
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=3).double()
    x = data.TwoMoons().sample(100, seed=0).double()
    flow.bijection[0].initialise(1 + 2 * x)
    for name, p in flow.named_parameters():
        if "network" in name:
            torch.nn.init.normal_(p, std=0.1)
    return flow, x


def check_exercise_1(accumulate):
    """Gradients of pieces of unequal size, added up."""
    flow, x = _flow()
    flow.zero_grad()
    losses.nll(*flow(x)).backward()
    whole = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    accumulate(flow, x, 32)
    if all(p.grad is None for p in flow.parameters()):
        return print("Exercise 1: not answered yet")
    for expected, p in zip(whole, flow.parameters()):
        assert p.grad is not None and torch.allclose(p.grad, expected, atol=1e-9), (
            "not the large batch's gradient: weigh each piece by its share of the rows"
        )
    print("Exercise 1: passed")


def check_exercise_2(slow, quick):
    """The same mean log-density, quicker."""
    flow, x = _flow()
    if quick(flow, x) is None:
        return print("Exercise 2: not answered yet")
    seconds, values = [], []
    for function in (slow, quick):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            value = float(function(flow, x))
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
        values.append(value)
    assert abs(values[0] - values[1]) < 1e-8, f"expected {values[0]:.6f}, got {values[1]:.6f}"
    assert seconds[0] > 5 * seconds[1], (
        f"only {seconds[0] / seconds[1]:.1f} times as fast: how many rows does each call of the "
        "flow see?"
    )
    print("Exercise 2: passed")


def check_exercise_3(invert):
    """The inverse of a 1 x 1 convolution and its log-determinant."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4, 2, 5, dtype=torch.float64)
    answer = invert(weight, torch.einsum("ij,bjhw->bihw", weight, x))
    if answer is None:
        return print("Exercise 3: not answered yet")
    back, log_det = answer
    assert back.shape == x.shape, f"expected x of shape {tuple(x.shape)}, got {tuple(back.shape)}"
    assert torch.allclose(back, x), "W x does not give z back"
    expected = -10 * torch.linalg.slogdet(weight)[1]
    assert torch.allclose(torch.as_tensor(log_det), expected.expand(3)), (
        f"expected log_det {expected:.4f} for each of the 3 images: minus H W log |det W|"
    )
    print("Exercise 3: passed")
