"""What is minimised, and what is reported."""

from .flow import standard_normal_log_prob

__all__ = ["nll"]


def nll(z, log_det):
    """Mean negative log-likelihood of a batch, in nats per data point: z (B, D), log_det (B,) -> scalar.

    -log p(x) = -log N(z; 0, I) - log |det dz/dx|. Both terms are needed: without the first nothing holds the scales
    back, and they grow for ever.
    """
    return -(standard_normal_log_prob(z) + log_det).mean()
