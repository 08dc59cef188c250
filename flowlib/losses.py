"""What is minimised, and what is reported."""

import math

import torch

from .common import generator, integer
from .flow import standard_normal_log_prob

__all__ = ["nll", "bits_per_dim", "importance_bits_per_dim", "reverse_kl"]


def nll(z, log_det):
    """Mean negative log-likelihood of a batch, in nats per data point: z (B, D), log_det (B,) -> scalar.

    -log p(x) = -log N(z; 0, I) - log |det dz/dx|. Both terms are needed: without the first nothing holds the scales
    back, and they grow for ever.
    """
    return -(standard_normal_log_prob(z) + log_det).mean()


def bits_per_dim(log_prob, shape):
    """-log_prob / (D log 2): nats per image (B,), or their mean, to bits per dimension, for images of `shape` with D values.

    The log_prob of a flow that begins with `Dequantize` is that of the integers, so nothing else is to be added.
    """
    return -log_prob / (math.prod(shape) * math.log(2))


@torch.no_grad()
def importance_bits_per_dim(flow, images, k, seed=None):
    """A tighter bound than one draw of the noise gives: k draws, averaged as probabilities; (B, C, H, W) uint8 -> (B,) bits/dim.

    log P(x) >= E log 1/k sum_i p(x, u_i), which grows with k towards log P(x) (Burda et al., arXiv 1509.00519, theorem 1).
    k = 1 is `bits_per_dim` of one draw. Raises ValueError for k < 1, and whatever `Flow.log_prob` raises.
    """
    integer("k", k, at_least=1)
    rng = generator(seed)
    draws = torch.stack([flow.log_prob(images, seed=rng) for _ in range(k)])
    return bits_per_dim(draws.logsumexp(0) - math.log(k), images.shape[1:])


def reverse_kl(flow, log_target, n, context=None, seed=None):
    """KL(flow || target) in nats, less the unknown log-normaliser of the target, from n fresh samples -> scalar with gradients.

    E_q[log q(x) - log_target(x)] = KL(q || p) - log Z, where log_target(x), (n, *shape) -> (n,), is log p(x) + log Z: no data, and
    no normaliser, is needed. Its minimum over all densities is -log Z. Samples come from the flow, so gradients go through
    `inverse`; `context` (n, C) is for conditional flows, `seed` fixes the draws. Raises ValueError for n < 1, for a flow of
    integers, and for a log_target that does not return one value per sample.
    """
    integer("n", n, at_least=1)
    if flow.dequantize is not None:
        raise ValueError(
            "a flow that begins with Dequantize gives integers, through which no gradient passes"
        )
    z = flow.draw_latents(n, generator(seed))
    x, log_det = flow.inverse(z, context)
    log_p = log_target(x)
    if log_p.shape != (n,):
        raise ValueError(
            f"log_target must return one value per sample, ({n},), got {tuple(log_p.shape)}"
        )
    return (standard_normal_log_prob(z) - log_det - log_p).mean()
