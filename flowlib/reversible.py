"""Backpropagation that recomputes activations by inversion: a trick that only flows have."""

import contextlib

import torch
from torch.autograd.function import once_differentiable
from torch.nn.modules.dropout import _DropoutNd

from .bijections import Chain
from .dequantize import Dequantize
from .norms import BatchNorm

__all__ = ["Reversible"]


class Reversible(Chain):
    """A `Chain` that keeps only its output for the backward pass: there each layer's input comes
    from its inverse, and the layer is run again, five passes of a network for three (arXiv
    1707.04585). ValueError for Dequantize, and in training mode for dropout and BatchNorm, but not
    for batch norms in a coupling's network: they see x_a, which does not change.
    >>> from flowlib import models
    >>> flow = models.realnvp_mlp((1, 4, 4), depth=6)
    >>> flow.bijection = Chain(flow.bijection[0], Reversible(*flow.bijection[1:]))
    """

    def forward(self, x, context=None):
        for m in self.modules():
            if isinstance(m, Dequantize) or (m.training and isinstance(m, BatchNorm | _DropoutNd)):
                raise ValueError(f"{type(m).__name__} has no inverse in training: not Reversible")
        return _ByInversion.apply(self, x, context, *self.parameters())


class _ByInversion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, chain, x, context, *weights):
        z, log_det = Chain.forward(chain, x, context)
        ctx.chain = chain
        ctx.save_for_backward(z, context, *weights)  # weights: an error if they change meanwhile
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, dz, dlog_det):
        x, context, *_ = ctx.saved_tensors  # x is z at first
        given = [context, *ctx.chain.parameters()]
        sums = {t: 0 for t in given if t is not None and t.requires_grad}
        with contextlib.ExitStack() as afterwards:
            for m in ctx.chain.modules():
                if getattr(m, "track_running_stats", False):  # forward has counted them already
                    m.track_running_stats = False
                    afterwards.callback(setattr, m, "track_running_stats", True)
            for layer in reversed(ctx.chain):
                x = layer.inverse(x, context)[0].detach().requires_grad_()
                mine = [t for t in (context, *layer.parameters()) if t in sums]
                with torch.enable_grad():
                    z, log_det = layer(x, context)
                    loss = (z * dz).sum() + (log_det * dlog_det).sum()
                dz, *grads = torch.autograd.grad(loss, [x, *mine], materialize_grads=True)
                sums |= {t: sums[t] + grad for t, grad in zip(mine, grads)}
        return None, dz, *map(sums.get, given)
