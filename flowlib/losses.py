"""What is minimised, and what is reported."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .bijections import Chain
from .common import Seed, generator, integer
from .flow import Flow, standard_normal_log_prob

__all__ = ["nll", "bits_per_dim", "importance_bits_per_dim", "reverse_kl"]
__all__ += ["under_all_labels", "label_nll"]


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


def under_all_labels(flow: Flow, z: Tensor, log_det: Tensor, context: Tensor) -> Tensor:
    """log p(x | y) in nats for every label y, from `flow(x, context)` under one label per row,
    one-hot: z (B, D), log_det (B,), context (B, classes) -> (B, classes).

    One pass serves all labels where the last layer alone sees them, the base a mixture of Gaussians
    (arXiv 1912.13025); raises ValueError for a flow whose other layers see them, too.
    >>> from flowlib import models
    >>> flow = models.realnvp_image((1, 4, 4), 1, 4, 1, classes=3, context_networks=False).eval()
    >>> x, y = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.eye(3)[:2]
    >>> under_all_labels(flow, *flow(x, y), y).shape
    torch.Size([2, 3])
    """
    layers = flow.bijection if isinstance(flow.bijection, Chain) else [flow.bijection]
    early = [m for layer in layers[:-1] for m in layer.modules()]
    if not flow.classes or any(getattr(m, "context_features", 0) for m in early):
        raise ValueError("the last layer alone must see the label: context_networks=False, say")
    w, back = layers[-1].inverse(z, context)
    labels = torch.eye(flow.classes, dtype=w.dtype, device=w.device).repeat(len(w), 1)
    z, step = layers[-1](w.repeat_interleave(flow.classes, 0), labels)
    log_prob = standard_normal_log_prob(z) + step
    return log_prob.view(len(w), -1) + (log_det + back)[:, None]


def label_nll(flow: Flow, z: Tensor, log_det: Tensor, context: Tensor) -> Tensor:
    """Mean -log p(y | x) in nats by Bayes' rule, all labels being equally likely before: what
    `under_all_labels` takes -> scalar. In a loss it asks for the label (arXiv 2001.06448).

    >>> from flowlib import models
    >>> flow = models.realnvp_image((1, 4, 4), 1, 4, 1, classes=3, context_networks=False).eval()
    >>> x, y = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.eye(3)[:2]
    >>> label_nll(flow, *flow(x, y), y)  # log 3: all labels are the same as yet
    tensor(1.0986, grad_fn=<NegBackward0>)
    """
    log_prob = under_all_labels(flow, z, log_det, context)
    return -(log_prob.log_softmax(1) * context).sum(1).mean()
