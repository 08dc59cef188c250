"""Training at a GPU's pace: residual blocks that are compiled once for all couplings, and a whole
step as one CUDA graph.

A step of an image flow launches some ten thousand small kernels, and Python is slower at that than
the GPU is at running them. Compiled, the normalisations, ReLUs and sums of a residual block are few
kernels instead of many; and a CUDA graph, recorded once, launches all that a step consists of,
forward, backward, clipping, Adam and the average of the weights, in a single call.
"""

import contextlib
import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from .flow import Flow
from .networks import ConvResNet

__all__ = ["captured", "compiled_blocks"]

log = logging.getLogger(__name__)


@functools.cache
def _compiled(width, backend="inductor"):
    """`ConvResNet.residual` of blocks of this width as a function of tensors alone, compiled.

    Compiling modules would compile each of them anew. Here the modules hold no values of their own,
    so that one compiled function, per size of board, serves all blocks.
    """
    with torch.device("meta"):
        net = ConvResNet(1, 1, width, blocks=1)
    block, skip = net.blocks[0], net.skips[1]

    def residual(block_tensors, skip_tensors, x, total):
        return ConvResNet.residual(
            lambda x: functional_call(block, block_tensors, (x,)),
            lambda x: functional_call(skip, skip_tensors, (x,)),
            x,
            total,
        )

    return torch.compile(residual, backend=backend, dynamic=False, fullgraph=True)


def _tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


@contextlib.contextmanager
def compiled_blocks(flow: Flow, backend: str = "inductor"):
    """Within, the residual blocks of the flow's ConvResNets run compiled; what they compute, their
    weights and their running statistics are as without.

    The first pass compiles, a few seconds for each width and size of board.
    """

    def residual(block, skip, x, total):
        return _compiled(x.shape[1], backend)(_tensors(block), _tensors(skip), x, total)

    networks = [module for module in flow.modules() if isinstance(module, ConvResNet)]
    for network in networks:
        network.residual = residual
    try:
        with torch._dynamo.config.patch(recompile_limit=64):  # a flow may have many sizes of board
            yield
    finally:
        for network in networks:
            del network.residual


class _Captured:
    """An update whose tensors stay where they were when it was recorded: batches are copied to
    where it reads, and the loss is written to one place, which the next call overwrites."""

    def __init__(self, update, batch):
        self.batch = [None if part is None else part.clone() for part in batch]
        self.replay, self.loss = _record(lambda: update(*self.batch))

    def __call__(self, *batch):
        for static, part in zip(self.batch, batch):
            if static is not None:
                static.copy_(part)
        self.replay()
        return self.loss


def _record(function):
    """A function's kernels as a CUDA graph, after three calls that let libraries settle: its
    `replay`, and what the function returns, filled anew by every replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


def captured(update: Callable, flow: Flow, batch, state: Callable[[], dict[str, Tensor]]):
    """`update(*batch) -> loss` as one CUDA graph with compiled blocks, for batches of this shape.

    `state()` names all tensors that an update changes; it leaves them as they were, those that it
    makes (an optimiser's, at its first step) at 0. What an update reads besides, a learning rate
    say, must be a tensor that is filled in place. Where the update cannot be captured, because its
    Python looks at a tensor's values, say, it is returned as it is, and a line of log says why.
    """
    before = {name: tensor.clone() for name, tensor in state().items()}
    try:
        with compiled_blocks(flow):
            return _Captured(update, batch)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        log.warning("training goes on without a CUDA graph, which is slower: %s", reason)
        return update
    finally:
        with torch.no_grad():
            for name, tensor in state().items():
                tensor.copy_(before[name]) if name in before else tensor.zero_()
