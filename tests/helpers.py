"""What several test files need: weights away from their start, and log-determinants by brute
force."""

import torch

from flowlib.norms import ActNorm, BatchNorm


def randomise(module, size=0.1, seed=0):
    """Move every parameter away from its start by Gaussian noise, give norm layers a past, and
    switch to evaluation mode."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=rng)
        for layer in module.modules():
            if isinstance(layer, ActNorm):
                layer.initialised.fill_(True)
            if isinstance(layer, (BatchNorm, torch.nn.BatchNorm2d)):
                layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=rng))
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=rng) + 0.5)
    return module.eval()


def log_slope(function, x):
    """log |det| of the Jacobian, by autograd, of a map of independent rows: x (B, D) -> (B,)."""
    jacobian = torch.autograd.functional.jacobian(lambda rows: function(rows).sum(0), x)
    return torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet


def assert_close(actual, expected, tolerance):
    """Every element within tolerance * max(1, |expected|)."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() <= tolerance, f"off by {error.max():.2e}"
