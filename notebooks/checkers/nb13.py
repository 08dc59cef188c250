"""Checkers for the exercises of notebook 13."""

import torch
from torch import nn


def check_exercise_1(householder):
    """An orthogonal matrix as a product of reflections, the first vector's first."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    Q = householder(vectors)
    if Q is None:
        return print("Exercise 1: not answered yet")
    assert Q.shape == (4, 4), f"the matrix should be (4, 4), got {tuple(Q.shape)}"
    eye = torch.eye(4, dtype=Q.dtype)
    assert torch.allclose(Q @ Q.T, eye, atol=1e-6), (
        "the matrix is not orthogonal: divide by the squared length of v, which need not be 1"
    )
    assert torch.allclose(householder(vectors[:1]) @ vectors[0], -vectors[0]), (
        "a reflection turns its own vector into minus itself"
    )
    first, second, third = (householder(v[None]) for v in vectors)
    assert not torch.allclose(Q, first @ second @ third, atol=1e-6), (
        "this reflects at the last vector first: later factors belong to the left"
    )
    assert torch.allclose(Q, third @ second @ first, atol=1e-6), (
        "the matrix should be the product of all reflections, H_3 H_2 H_1 for three vectors"
    )
    assert Q.requires_grad, "the matrix should be differentiable: no detach, no numpy"
    print("Exercise 1: passed")


def check_exercise_2(as_iaf):
    """MAF in two dimensions, written as an inverse autoregressive flow."""
    rng = torch.Generator().manual_seed(0)
    for m, c in [(0.0, 0.0), (0.7, -0.4), (-2.0, 1.1)]:
        w = torch.randn(4, generator=rng).tolist()

        def mu(x, w=w):
            return w[0] * torch.sin(2 * x) + w[1]

        def a(x, w=w):
            return torch.tanh(w[2] * x + w[3])

        answer = as_iaf(m, c, mu, a)
        if answer is None:
            return print("Exercise 2: not answered yet")
        t, s = answer
        x = torch.randn(200, 2, generator=rng)
        z_1 = (x[:, 0] - m) * torch.exp(torch.tensor(-c))
        z_2 = (x[:, 1] - mu(x[:, 0])) * (-a(x[:, 0])).exp()
        scaled, shift = s(z_1), t(z_1)
        assert torch.allclose(scaled, -a(x[:, 0]), atol=1e-4), (
            "s(z_1) should be -a(x_1), at the x_1 that belongs to z_1: first undo z_1's own step"
        )
        assert not torch.allclose(shift, -mu(x[:, 0]), atol=1e-4), (
            "the shift comes after the scale here: mu is scaled, too"
        )
        assert torch.allclose(x[:, 1] * scaled.exp() + shift, z_2, atol=1e-4), (
            "x_2 exp(s) + t should be MAF's z_2"
        )
    print("Exercise 2: passed")


class CausalStep(nn.Module):
    """A layer with the parts of the notebook's `CausalAffine` that an inverse needs."""

    def __init__(self, T, C=4):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        weight = torch.randn(T, T, generator=rng).tril(-1) * 0.5 / T**0.5
        self.register_buffer("weight", weight)
        self.passes = 0

    def parameters_of(self, tokens):
        self.passes += 1
        seen = torch.tanh(torch.einsum("ij,bjc->bic", self.weight, tokens))
        return seen, 0.3 * seen.flip(2)

    def tokens_of(self, x):
        return x.flatten(2).movedim(1, 2)

    def image_of(self, tokens, shape):
        return tokens.movedim(1, 2).reshape(shape)

    def forward(self, x, context=None):
        tokens = self.tokens_of(x)
        mu, a = self.parameters_of(tokens)
        return self.image_of((tokens - mu) * (-a).exp(), x.shape), -a.flatten(1).sum(1)


def check_exercise_3(jacobi):
    """The inverse of a causal layer, all tokens at once."""
    layer = CausalStep(T=49)
    x = torch.randn(8, 4, 7, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z, _ = layer(x)
        layer.passes = 0
        answer = jacobi(layer, z, 1e-6)
    if answer is None:
        return print("Exercise 3: not answered yet")
    back, passes = answer
    assert back.shape == x.shape, (
        f"x should have the shape of z, {tuple(x.shape)}, got {tuple(back.shape)}: image_of"
    )
    error = (back - x).abs().max().item()
    assert error < 1e-4, f"layer(x) should be z; x is off by {error:.1e}"
    assert passes == layer.passes, (
        f"you counted {passes} passes, the layer's network ran {layer.passes} times"
    )
    assert passes < 40, (
        f"{passes} passes for 49 tokens: change all tokens in every pass, and stop when none moves"
    )
    print(f"Exercise 3: passed, with {passes} passes for 49 tokens")
