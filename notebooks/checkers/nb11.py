"""Checkers for the exercises of notebook 11."""

import torch

from flowlib import data, losses, masks, models
from flowlib.coupling import AdditiveCoupling, AffineCoupling
from flowlib.networks import MLP


def _flow():
    torch.manual_seed(0)
    flow = models.realnvp_2d(depth=3).double()
    x = data.TwoMoons().sample(100, seed=0).double()
    flow.bijection[0].initialise(1 + 2 * x)
    for name, p in flow.named_parameters():
        if "network" in name:
            torch.nn.init.normal_(p, std=0.1)
    return flow, x


def check_exercise_1(slow, quick):
    """The same mean log-density, in one pass."""
    flow, x = _flow()
    rows = []
    flow.bijection[0].register_forward_hook(lambda layer, given, out: rows.append(len(given[0])))
    expected = float(slow(flow, x))
    rows.clear()
    answer = quick(flow, x)
    if answer is None:
        return print("Exercise 1: not answered yet")
    assert abs(float(answer) - expected) < 1e-8, f"expected {expected:.6f}, got {float(answer):.6f}"
    assert rows == [len(x)], (
        f"{len(rows)} passes through the flow, of {sum(rows)} rows together: one pass takes all "
        f"{len(x)}"
    )
    weights = next(flow.parameters())
    other, fewer = float(quick(flow, x[:7] + 1)), float(slow(flow, x[:7] + 1))
    assert abs(other - fewer) < 1e-8, f"wrong for other rows: expected {fewer:.6f}, got {other:.6f}"
    assert weights.grad is None, "no gradient is asked for"
    print("Exercise 1: passed")


def check_exercise_2(step_back):
    """From a coupling's output to its input, and all gradients."""
    for make, n_out in [(AdditiveCoupling, 2), (AffineCoupling, 4)]:
        torch.manual_seed(0)
        layer = make(masks.alternating(4), MLP(2, n_out, (8,))).double().train()
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.5)
        x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        dz, dlog_det = torch.randn(5, 4).double(), torch.randn(5).double()
        z, log_det = layer(x)
        ((z * dz).sum() + (log_det * dlog_det).sum()).backward()
        expected = [x.detach(), x.grad, *(p.grad for p in layer.parameters())]
        layer.zero_grad()
        answer = step_back(layer, z.detach(), dz, dlog_det)
        if answer is None:
            return print("Exercise 2: not answered yet")
        found = [*answer, *(p.grad for p in layer.parameters())]
        names = ["x", "dx", *(f"the gradient of {name}" for name, _ in layer.named_parameters())]
        for name, mine, theirs in zip(names, found, expected, strict=True):
            assert mine is not None, f"{make.__name__}: {name} is missing"
            if theirs is None:  # the scale of an additive coupling: there is none
                continue
            close = mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-9)
            assert close, f"{make.__name__}: {name} is not that of autograd through the layer"
    print("Exercise 2: passed")


def check_exercise_3(accumulate):
    """Gradients of pieces of unequal size, added up."""
    flow, x = _flow()
    for rows, size in [(100, 32), (70, 50)]:
        flow.zero_grad()
        losses.nll(*flow(x[:rows])).backward()
        whole = [p.grad.clone() for p in flow.parameters()]
        flow.zero_grad()
        seen = []
        hook = flow.bijection[0].register_forward_hook(
            lambda layer, given, out, seen=seen: seen.append(len(given[0]))
        )
        accumulate(flow, x[:rows], size)
        hook.remove()
        if all(p.grad is None for p in flow.parameters()):
            return print("Exercise 3: not answered yet")
        assert max(seen) <= size, f"a pass of {max(seen)} rows: at most {size} fit into memory"
        for expected, p in zip(whole, flow.parameters()):
            assert p.grad is not None and torch.allclose(p.grad, expected, atol=1e-9), (
                "not the large batch's gradient: weigh each piece by its share of the rows"
            )
    print("Exercise 3: passed")
