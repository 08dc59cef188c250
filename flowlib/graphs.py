"""Training at a GPU's pace: networks that are compiled once for all couplings, and a whole step as
one CUDA graph.

A step of an image flow is some ten thousand small kernels, and Python launches them more slowly
than a GPU runs them. Compiled, the normalisations, ReLUs and sums of a network are few kernels; and
a CUDA graph, recorded once, launches a step's forward and backward pass, clipping, Adam and the
average of the weights in a single call.
"""

import contextlib
import copy
import functools
import logging
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from .flow import Flow
from .networks import ConvResNet

__all__ = ["captured", "compiled_networks"]

log = logging.getLogger(__name__)


PARTS = ("enter", "residual", "leave")  # of a ConvResNet: functions of modules and tensors
_functions = {}


def _compiled(function, backend):
    """`function(*modules, *inputs)` such that modules that look alike share what is compiled.

    Compiling modules would compile each anew. Here the first of a kind leaves a copy without values
    of its own, and those of a module are arguments: one function, compiled once for each size of
    board, serves all.
    """

    def call(*given):
        modules = [module for module in given if isinstance(module, nn.Module)]
        kind = function, backend, str(modules)
        if kind not in _functions:
            copies = [copy.deepcopy(module).to("meta") for module in modules]
            run = functools.partial(_run, function, copies)
            _functions[kind] = torch.compile(run, backend=backend, dynamic=False, fullgraph=True)
        return _functions[kind](list(map(_tensors, modules)), *given[len(modules) :])

    return call


def _run(function, modules, tensors, *inputs):
    def bind(module, own):
        return lambda x: functional_call(module, own, (x,))

    return function(*map(bind, modules, tensors), *inputs)


def _tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextlib.contextmanager
def compiled_networks(flow: Flow, backend: str | Callable = "inductor"):
    """Within, the ConvResNets of the flow run compiled, with their own weights and running
    statistics. The first pass compiles, some seconds for each size of board."""
    networks = [module for module in flow.modules() if isinstance(module, ConvResNet)]
    parts = {part: _compiled(getattr(ConvResNet, part), backend) for part in PARTS}
    try:
        for network in networks:
            vars(network).update(parts)
        with torch._dynamo.config.patch(recompile_limit=256):  # boards come in many sizes
            yield
    finally:
        for network in networks:
            for part in parts:
                del vars(network)[part]


def _record(function):
    """A function's kernels as a CUDA graph: its `replay`, and the result, which that fills anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            function(), function()  # compiles, and lets libraries settle
            torch.cuda.set_sync_debug_mode("error")  # what waits for the GPU cannot be recorded
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


def captured(update: Callable, flow: Flow, batch, state: Callable[[], dict[str, torch.Tensor]]):
    """`update(*batch) -> loss` as one CUDA graph with compiled networks, for batches of this shape.

    `state()` names all that an update changes; it is left as it was, and what an update makes (an
    optimiser's moments, at its first step) at 0. What it reads besides must be tensors, filled in
    place. The loss is written to one place, which the next call overwrites. One that cannot be
    captured, since its Python looks at a tensor's values, say, is handed back as it is, and a line
    of log says why.
    """
    before = {name: tensor.clone() for name, tensor in state().items()}
    places = [None if part is None else part.clone() for part in batch]  # where the graph reads
    try:
        with compiled_networks(flow):
            replay, loss = _record(lambda: update(*places))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        log.warning("training goes on without a CUDA graph, which is slower: %s", reason)
        return update
    finally:
        with torch.no_grad():
            for name, tensor in state().items():
                tensor.copy_(before[name]) if name in before else tensor.zero_()

    def replayed(*batch):
        for place, part in zip(places, batch):
            if part is not None:
                place.copy_(part)
        replay()
        return loss

    return replayed
