import pytest
import torch
from torch.distributions import AffineTransform, Independent, Normal, TransformedDistribution

from flowlib.flow import standard_normal_log_prob
from flowlib.losses import nll


@pytest.mark.parametrize("D", [1, 2, 7])
def test_standard_normal_log_prob_agrees_with_torch(D):
    z = 3 * torch.randn(50, D, dtype=torch.float64)
    expected = Independent(Normal(torch.zeros(D, dtype=torch.float64), 1.0), 1).log_prob(z)
    assert torch.allclose(standard_normal_log_prob(z), expected, rtol=0, atol=1e-12)


def test_nll_is_minus_the_mean_log_prob_of_a_transformed_normal():
    """x = 3 + 2 u with u normal, so z = (x - 3) / 2 and log |det dz/dx| = -D log 2."""
    base = Independent(Normal(torch.zeros(4, dtype=torch.float64), 1.0), 1)
    truth = TransformedDistribution(base, AffineTransform(3.0, 2.0, event_dim=1))
    x = 5 * torch.randn(50, 4, dtype=torch.float64)
    loss = nll((x - 3) / 2, torch.full((50,), 0.5, dtype=torch.float64).log() * 4)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-truth.log_prob(x).mean().item(), abs=1e-12)
