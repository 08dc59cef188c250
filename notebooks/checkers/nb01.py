"""Checkers for the exercises of notebook 01: each says what is wrong, or that it passed.

A function that still returns None, as the stubs in the notebook do, counts as not answered yet.
"""

import math

import torch
from torch.func import jacrev, vmap

from flowlib import masks, plotting
from flowlib.coupling import AffineCoupling

__all__ = ["check_exercise_1", "check_exercise_2", "check_exercise_3", "check_exercise_4"]


def check_exercise_1(inverse_cdf):
    u = (torch.arange(1_000, dtype=torch.float64) + 0.5) / 1_000
    x = inverse_cdf(u)
    if x is None:
        return print("Exercise 1: not answered yet")
    assert torch.is_tensor(x) and x.shape == u.shape, (
        "inverse_cdf(u) must return a tensor of the same shape as u"
    )
    assert (x >= 0).all(), (
        "the Rayleigh density lives on x >= 0: some of your values are negative or NaN"
    )
    assert (x.diff() > 0).all(), "an inverse CDF increases: a larger u must give a larger x"
    below = 1 - torch.exp(-(x**2) / 2)
    worst = (below - u).abs().argmax()
    assert torch.allclose(below, u), (
        f"for u = {u[worst]:.3f} your x is {x[worst]:.3f}, but the probability below that x is "
        f"{below[worst]:.3f}: integrate the density from 0 to x, and solve for x"
    )
    print("Exercise 1: passed")


def check_exercise_2(polar_log_prob):
    box = ((0.0, 8.0), (0.0, 2 * math.pi))
    inside = torch.tensor([[0.5, 1.0], [1.0, 0.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64)
    log_p = polar_log_prob(inside)
    if log_p is None:
        return print("Exercise 2: not answered yet")
    assert torch.is_tensor(log_p) and log_p.shape == (4,), (
        "polar_log_prob(x) must return one log-density per row of x"
    )
    p, cell_area = plotting.evaluate_on_grid(lambda x: polar_log_prob(x.double()), box, 400)
    mass = (p.sum() * cell_area).item()
    assert abs(mass - 1) < 1e-3, (
        f"the density integrates to {mass:.3f}, not to 1: is the determinant there, and is it "
        "that of the map from (r, phi) to z?"
    )
    z = torch.stack([inside[:, 0] * inside[:, 1].cos(), inside[:, 0] * inside[:, 1].sin()], dim=1)
    assert torch.allclose(log_p, _base_log_prob(z) + inside[:, 0].log()), (
        "the density integrates to 1, but its values are wrong"
    )
    print("Exercise 2: passed")


def check_exercise_3(triangular_order, coupling_det):
    for mask in [
        masks.alternating(4, flip=True),
        masks.alternating(5),
        masks.halves(6, flip=True),
        masks.random(7, seed=0),
    ]:
        D = len(mask)
        coupling = AffineCoupling(mask, _random_network(int(mask.sum()), 2 * int((~mask).sum())))
        x = torch.randn(1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        J = _jacobian(coupling, x)[0]
        order, det = triangular_order(mask), coupling_det(mask, J.clone())
        if order is None or det is None:
            return print("Exercise 3: not answered yet")
        assert torch.is_tensor(order) and sorted(order.tolist()) == list(range(D)), (
            f"the order must be a tensor that holds each of 0 ... {D - 1} once"
        )
        above = J[order][:, order].triu(1)
        assert (above == 0).all(), (
            f"for the mask {mask.tolist()} the reordered Jacobian is not zero above the diagonal: "
            "which outputs depend on one input only?"
        )
        assert math.isclose(float(det), torch.linalg.det(J).item(), rel_tol=1e-6), (
            f"for the mask {mask.tolist()} the determinant is wrong"
        )
        others = torch.diag((~mask).double()) == 0  # every entry that is not needed
        noise = torch.randn(J.shape, dtype=J.dtype, generator=torch.Generator().manual_seed(3))
        changed = coupling_det(mask, torch.where(others, noise, J))
        assert math.isclose(float(changed), float(det), rel_tol=1e-6), (
            "coupling_det reads other entries of J than the diagonal ones of the transformed "
            "dimensions: with noise in their place it gives another number"
        )
    print("Exercise 3: passed")


def check_exercise_4(fixed_log_prob):
    first = torch.tensor([True, False])
    layers = [
        AffineCoupling(first, _wave),
        AffineCoupling(~first, _wave),
        AffineCoupling(first, _wave),
    ]
    x = 2 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # a coupling's log_det is the same before and after its step, that of a ripple is not
    for chosen in (layers[:1], layers[:2], layers, [layers[0], _ripple, layers[1]]):
        log_p = fixed_log_prob(chosen, x)
        if log_p is None:
            return print("Exercise 4: not answered yet")
        assert torch.is_tensor(log_p) and log_p.shape == (100,), (
            "fixed_log_prob(layers, x) must return one log-density per row of x"
        )
        J = _jacobian(lambda rows, chosen=chosen: (_run(chosen, rows),), x)
        expected = _base_log_prob(_run(chosen, x)) + torch.linalg.slogdet(J)[1]
        assert torch.allclose(log_p.double(), expected, atol=1e-4), (
            f"with {len(chosen)} layer(s) the log-density differs from autograd's: at which point "
            "does layer k act?"
        )
    p, cell_area = plotting.evaluate_on_grid(
        lambda x: fixed_log_prob(layers, x.double()), ((-12, 12), (-12, 12)), 400
    )
    mass = (p.sum() * cell_area).item()
    assert abs(mass - 1) < 1e-3, f"the density integrates to {mass:.3f}, not to 1"
    print("Exercise 4: passed")


def _wave(kept, context=None):
    return torch.cat([0.9 * torch.sin(1.3 * kept), -0.5 * torch.cos(kept)], dim=1)


def _ripple(x):
    """Not a coupling: each dimension alone, x + 0.45 sin 2x."""
    return x + 0.45 * torch.sin(2 * x), torch.log(1 + 0.9 * torch.cos(2 * x)).sum(1)


def _random_network(n_in, n_out):
    """A fixed random network without a zero derivative anywhere."""
    weight = torch.randn(
        n_in, n_out, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return lambda kept, context=None: torch.tanh(kept.double() @ weight + 0.3)


def _run(layers, x):
    for layer in layers:
        x = layer(x)[0]
    return x


def _jacobian(layer, x):
    return vmap(jacrev(lambda row: layer(row[None])[0][0]))(x).detach()


def _base_log_prob(z):
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
