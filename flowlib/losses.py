"""What is minimised, and what is reported."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .common import Seed, generator, integer
from .flow import Flow, standard_normal_log_prob

__all__ = ["nll", "bits_per_dim", "importance_bits_per_dim", "reverse_kl"]


def nll(z: Tensor, log_det: Tensor) -> Tensor:
    """Mean negative log-likelihood of a batch, in nats: z (B, D), log_det (B,) -> scalar.

    -log p(x) = -log N(z; 0, I) - log |det dz/dx|. Both terms are needed: without the first nothing
    holds the scales back, and they grow for ever.
    >>> nll(torch.zeros(5, 2), torch.zeros(5))
    tensor(1.8379)
    """
    return -(standard_normal_log_prob(z) + log_det).mean()


def bits_per_dim(log_prob: Tensor | float, shape: tuple[int, ...]) -> Tensor | float:
    """-log_prob / (D log 2): nats per image of `shape`, (B,) or their mean, to bits per dimension.
    With `Dequantize` a log_prob is that of the integers: there is nothing to add.

    >>> bits_per_dim(-16 * math.log(256), (1, 4, 4))
    8.0
    """
    return -log_prob / (math.prod(shape) * math.log(2))


@torch.no_grad()
def importance_bits_per_dim(flow: Flow, images, k: int, context=None, seed: Seed = None) -> Tensor:
    """The bound from k draws of the noise, averaged as probabilities: uint8 (B, C, H, W) -> (B,).

    log P(x) >= E log 1/k sum_i p(x, u_i), which grows with k (arXiv 1509.00519, theorem 1).
    >>> from flowlib import models
    >>> flow = models.realnvp_mlp((1, 4, 4), depth=1, hidden=(8,))
    >>> importance_bits_per_dim(flow, torch.zeros(3, 1, 4, 4, dtype=torch.uint8), k=2).shape
    torch.Size([3])
    """
    integer("k", k, at_least=1)
    rng = generator(seed)
    draws = torch.stack([flow.log_prob(images, context, rng) for _ in range(k)])
    return bits_per_dim(draws.logsumexp(0) - math.log(k), flow.shape)


def reverse_kl(
    flow: Flow, log_target: Callable[[Tensor], Tensor], n: int, context=None, seed: Seed = None
) -> Tensor:
    """E_q[log q(x) - log_target(x)] = KL(q || p) - log Z in nats, from n samples of the flow q.

    log_target(x), (n, *shape) -> (n,), is log p(x) + log Z: no data, and no normaliser, is needed;
    the minimum is -log Z. Gradients go through the samples, so not for a flow of integers.
    >>> from flowlib.bijections import Diagonal
    >>> flow = Flow(Diagonal(2), shape=(2,))
    >>> reverse_kl(flow, standard_normal_log_prob, n=100)
    tensor(0., grad_fn=<MeanBackward0>)
    """
    integer("n", n, at_least=1)
    if flow.dequantize is not None:
        raise ValueError("a flow that begins with Dequantize gives integers: no gradient passes")
    z = flow.draw_latents(n, generator(seed))
    x, log_det = flow.inverse(z, flow.check_context(context, n))
    log_p = log_target(x)
    if not torch.is_tensor(log_p) or log_p.shape != (n,):
        given = tuple(log_p.shape) if torch.is_tensor(log_p) else f"a {type(log_p).__name__}"
        raise ValueError(f"log_target must return one value per sample, ({n},), got {given}")
    return (standard_normal_log_prob(z) - log_det - log_p).mean()
