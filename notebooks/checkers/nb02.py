"""Checkers for the exercises of notebook 02: each says what is wrong, or that it passed.

An answer that is still None, as the stubs in the notebook leave it, counts as not answered yet.
"""

import torch

from flowlib import data, masks, models, plotting, training
from flowlib.coupling import AffineCoupling
from flowlib.norms import ActNorm

MOONS = data.TwoMoons(noise=0.05)
BOX = ((-1.5, 2.5), (-1.1, 1.6))


def check_exercise_1(make_coupling):
    """Exercise 1: any dimension, any mask; inverse, log-det, and what passes through."""
    for mask in [
        masks.alternating(2),
        masks.alternating(5, flip=True),
        masks.halves(6),
        masks.random(7, seed=0),
    ]:
        torch.manual_seed(0)
        layer = make_coupling(mask)
        if layer is None:
            return print("Exercise 1: not answered yet")
        layer = layer.double()
        x = torch.randn(
            8, len(mask), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        z, log_det = layer(x)
        assert z.shape == x.shape, (
            f"forward must keep the shape {tuple(x.shape)}, got {tuple(z.shape)}"
        )
        assert log_det.shape == (8,), f"log_det must have shape (8,), got {tuple(log_det.shape)}"
        assert torch.equal(z[:, mask], x[:, mask]), (
            "where the mask is True, values must pass through unchanged"
        )
        assert not torch.allclose(z[:, ~mask], x[:, ~mask]), (
            "where the mask is False, values must change"
        )
        jacobian = torch.stack(
            [
                torch.autograd.functional.jacobian(
                    lambda p, layer=layer: layer(p[None])[0][0], point
                )
                for point in x
            ]
        )
        truth = torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(log_det, truth, atol=1e-8), (
            "log_det is not log |det| of the Jacobian dz/dx"
        )
        assert log_det.std() > 0, "the log-scale does not depend on x: is the network constant?"
        back, inverse_log_det = layer.inverse(z)
        assert torch.allclose(back, x, atol=1e-8), "inverse(forward(x)) is not x"
        assert torch.allclose(inverse_log_det, -log_det, atol=1e-8), (
            "the inverse's log_det must be minus the forward's"
        )
    print("Exercise 1: passed")


def check_exercise_2(flow, unlearned_coordinate):
    """Exercise 2: the marginal that a chain of equal masks cannot learn."""
    if flow is None:
        return print("Exercise 2: not answered yet")
    couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling)]
    assert len(couplings) == 8, (
        f"the flow should have eight affine couplings, found {len(couplings)}"
    )
    assert all(m.mask.tolist() == [True, False] for m in couplings), (
        "every mask should be (True, False)"
    )
    assert any(isinstance(m, ActNorm) for m in flow.modules()), "an ActNorm should come first"
    assert unlearned_coordinate in (0, 1), "give the index of the coordinate, 0 or 1"
    x = MOONS.sample(20_000, seed=0)
    z = flow(x)[0]
    correlation = torch.corrcoef(
        torch.stack([x[:, unlearned_coordinate], z[:, unlearned_coordinate]])
    )[0, 1].abs()
    assert correlation > 0.999, (
        "look again: which coordinate reaches the latent side only centred and scaled?"
    )
    print("Exercise 2: passed")


def check_exercise_3(log_prob_at):
    """Exercise 3: the density of samples at another temperature."""
    torch.manual_seed(0)
    flow = models.realnvp_2d()
    training.fit(flow, MOONS, steps=60, seed=0, progress=False)
    x = MOONS.sample(500, seed=0)
    if log_prob_at(flow, x, 1.0) is None:
        return print("Exercise 3: not answered yet")
    with torch.no_grad():
        assert torch.allclose(log_prob_at(flow, x, 1.0), flow.log_prob(x), atol=1e-4), (
            "at T = 1 it must be flow.log_prob"
        )
        for T in (0.5, 0.8):
            p, cell = plotting.evaluate_on_grid(
                lambda points, T=T: log_prob_at(flow, points, T), ((-4, 5), (-4, 4)), resolution=400
            )
            mass = (p.sum() * cell).item()
            assert abs(mass - 1) < 0.01, (
                f"at T = {T} your density integrates to {mass:.3f}: how does the base's "
                "normalisation depend on T?"
            )
    print("Exercise 3: passed")


def check_exercise_4(density, flow):
    """Exercise 4: the gap to the truth on another toy density."""
    if flow is None:
        return print("Exercise 4: not answered yet")
    allowed = (data.TwoSpirals, data.Rings, data.Checkerboard)
    assert isinstance(density, allowed), (
        f"choose one of {', '.join(kind.__name__ for kind in allowed)}"
    )
    x = density.sample(10_000, seed=99)
    with torch.no_grad():
        gap = (density.log_prob(x) - flow.log_prob(x)).mean().item()
    assert gap < 0.4, (
        f"the gap is {gap:.3f} nats; train longer, take more couplings, or choose another density"
    )
    print(f"Exercise 4: passed, {density} with a gap of {gap:.3f} nats")


def desert_mass(log_prob):
    """The mass that a model puts where the two moons have next to none, and the mass in all."""
    p_true, cell = plotting.evaluate_on_grid(MOONS.log_prob, BOX, resolution=400)
    p_model, _ = plotting.evaluate_on_grid(log_prob, BOX, resolution=400)
    return (p_model[p_true < 1e-3].sum() * cell).item(), (p_model.sum() * cell).item()


def check_exercise_5(log_prob):
    """Exercise 5: two modes in the base, less mass between the moons."""
    if log_prob(MOONS.sample(2, seed=0)) is None:
        return print("Exercise 5: not answered yet")
    torch.manual_seed(0)
    standard = models.realnvp_2d()
    training.fit(standard, MOONS, steps=300, seed=0, progress=False)
    desert, mass = desert_mass(log_prob)
    reference, _ = desert_mass(standard.log_prob)
    assert abs(mass - 1) < 0.02, f"your density integrates to {mass:.3f} over the picture"
    assert desert < reference, (
        f"mass in the desert: {desert:.4f} with your base, {reference:.4f} with the standard normal"
    )
    print(
        f"Exercise 5: passed, mass in the desert {desert:.4f} against {reference:.4f} with one bump"
    )
