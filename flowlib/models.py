"""Named flows. Each builder is a short list of layers; read it as the definition of the model."""

import functools
import inspect

from .bijections import ActNorm, Chain, Diagonal
from .common import whole_number
from .coupling import AdditiveCoupling, AffineCoupling
from .flow import Flow
from .masks import alternating
from .networks import MLP

__all__ = ["nice_2d", "realnvp_2d", "build"]

BUILDERS = {}


def builder(function):
    """Register a function that returns a Flow, and let the flow remember how it was built (checkpoints store that)."""

    @functools.wraps(function)
    def build_and_remember(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        flow = function(*args, **kwargs)
        flow.built_by = {"builder": function.__name__, "arguments": dict(bound.arguments)}
        return flow

    BUILDERS[function.__name__] = build_and_remember
    return build_and_remember


def build(name, **arguments):
    """Build a model by its name: build("realnvp_2d", depth=4). Raises ValueError for an unknown name."""
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(sorted(BUILDERS))}")
    return BUILDERS[name](**arguments)


@builder
def nice_2d(depth=8, hidden=(64, 64), context_features=0):
    """NICE for points in the plane: a standardising ActNorm, additive couplings, and one learned scale per dimension."""
    layers = [ActNorm(2)]
    for i in range(whole_number("depth", depth, at_least=1)):
        layers.append(AdditiveCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 1, hidden, context_features)))
    return Flow(Chain(*layers, Diagonal(2)), shape=(2,), context_features=context_features)


@builder
def realnvp_2d(depth=8, hidden=(64, 64), context_features=0):
    """Real NVP for points in the plane: a standardising ActNorm, then affine couplings that take turns."""
    layers = [ActNorm(2)]
    for i in range(whole_number("depth", depth, at_least=1)):
        layers.append(AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, hidden, context_features)))
    return Flow(Chain(*layers), shape=(2,), context_features=context_features)
