"""Named flows. Each builder is a short list of layers; read it as the definition of the model."""

import functools
import inspect

from .bijections import Chain, Diagonal, Flatten, Inverse, Logit, SoftLog, Squeeze
from .common import integer
from .coupling import AdditiveCoupling, AffineCoupling
from .dequantize import Dequantize, VariationalDequantize
from .flow import Flow, MultiScale
from .masks import alternating, channels, checkerboard, halves, random
from .networks import MLP, ConcatNet, ConvResNet
from .norms import ActNorm, BatchNorm

__all__ = ["nice_2d", "realnvp_2d", "realnvp_mlp", "realnvp_image", "build"]

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
    for i in range(integer("depth", depth, at_least=1)):
        layers.append(
            AdditiveCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 1, hidden, context_features))
        )
    return Flow(Chain(*layers, Diagonal(2)), shape=(2,), context_features=context_features)


@builder
def realnvp_2d(depth=8, hidden=(64, 64), context_features=0):
    """Real NVP for points in the plane: a standardising ActNorm, then affine couplings that take turns."""
    layers = [ActNorm(2)]
    for i in range(integer("depth", depth, at_least=1)):
        layers.append(
            AffineCoupling(alternating(2, flip=i % 2 == 1), MLP(1, 2, hidden, context_features))
        )
    return Flow(Chain(*layers), shape=(2,), context_features=context_features)


VECTOR_MASKS = {  # for images laid out row by row: what passes through in layer i
    "alternating": lambda C, H, W, i: alternating(C * H * W, flip=i % 2 == 1),
    "halves": lambda C, H, W, i: halves(C * H * W, flip=i % 2 == 1),
    "checkerboard": lambda C, H, W, i: (
        checkerboard(H, W, flip=i % 2 == 1).expand(C, H, W).flatten()
    ),
    "random": lambda C, H, W, i: random(C * H * W, seed=i // 2) ^ (i % 2 == 1),
}
NORMS = {
    None: lambda D: [],
    "actnorm": lambda D: [ActNorm(D)],
    "batchnorm": lambda D: [BatchNorm(D)],
}


@builder
def realnvp_mlp(
    shape=(1, 28, 28),
    depth=4,
    hidden=(64, 128, 128, 64),
    separate=True,
    mask="alternating",
    norm=None,
    tau=None,
    bits=8,
):
    """Real NVP for small images as vectors: preprocessing, then affine couplings with fully connected networks.

    separate   one network for the shift and one for the log-scale; False: one joint network with twice the outputs
    mask       "alternating" (columns, if W is even), "halves", "checkerboard", or "random" pairs of complements
    norm       None, "actnorm" or "batchnorm": a normalisation before every coupling
    tau        SoftLog with this threshold after the first normalisation: a pixel that was hardly ever inked has a tiny
               standard deviation, and ink on it would stand hundreds of those away from the rest
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    C, H, W = shape
    D = C * H * W
    layers = [Dequantize(bits), Logit(), Flatten(shape)]
    for i in range(integer("depth", depth, at_least=1)):
        kept = _choose("mask", mask, VECTOR_MASKS)(C, H, W, i)
        n_in, n_out = int(kept.sum()), int((~kept).sum())
        network = (
            ConcatNet(MLP(n_in, n_out, hidden), MLP(n_in, n_out, hidden))
            if separate
            else MLP(n_in, 2 * n_out, hidden)
        )
        tails = [SoftLog(tau)] if tau is not None and i == 0 else []
        layers += [*_choose("norm", norm, NORMS)(D), *tails, AffineCoupling(kept, network)]
    return Flow(Chain(*layers), shape)


@builder
def realnvp_image(
    shape=(3, 32, 32),
    scales=2,
    width=64,
    blocks=8,
    doubling=True,
    batch_norm=True,
    dequant_couplings=0,
    bits=8,
):
    """Real NVP for images, as in the paper's section 3.6 and the authors' code.

    Every scale but the last: three checkerboard couplings, squeeze, three channel couplings, un-squeeze, and a squeeze in
    board order, so that one colour of the checkerboard is factored out. The last: four checkerboard couplings.
    `width` features per convolution; with `doubling` twice as many from the channel couplings on, and again at each scale.
    `dequant_couplings` is the number of couplings that shape the noise of the dequantisation; 0: uniform noise.
    """
    C, H, W = shape
    noise = [
        _image_coupling(C, checkerboard(H, W, flip=i % 2 == 1), width // 2, 2, context=C)
        for i in range(dequant_couplings)
    ]
    dequantize = (
        VariationalDequantize(Chain(Logit(0.0), *noise, Inverse(Logit(0.0))), bits)
        if dequant_couplings
        else Dequantize(bits)
    )
    levels = []
    for k in range(integer("scales", scales, at_least=1)):
        last = k == scales - 1
        layers = _couplings(
            C,
            [checkerboard(H, W, flip=i % 2 == 1) for i in range(4 if last else 3)],
            width,
            blocks,
            batch_norm,
        )
        if not last:
            width *= 2 if doubling else 1
            deep = _couplings(
                4 * C,
                [channels(4 * C, flip=i % 2 == 1) for i in range(3)],
                width,
                blocks,
                batch_norm,
            )
            layers += [Squeeze(), *deep, Inverse(Squeeze()), Squeeze("checkerboard")]
            C, H, W = 2 * C, H // 2, W // 2
        levels.append(Chain(*layers))
    return Flow(Chain(dequantize, Logit(), MultiScale(shape, *levels)), shape)


def _couplings(C, masks, width, blocks, batch_norm):
    """One coupling per mask, each followed by batch norm on what it changed."""
    layers = []
    for mask in masks:
        layers += [
            _image_coupling(C, mask, width, blocks),
            *([BatchNorm(C, mask)] if batch_norm else []),
        ]
    return layers


def _image_coupling(C, mask, width, blocks, context=0):
    """An affine coupling of C channels with a ConvResNet."""
    board = mask.dim() == 2
    n_in, n_out = (C + 1, 2 * C) if board else (int(mask.sum()), 2 * int((~mask).sum()))
    return AffineCoupling(mask, ConvResNet(n_in, n_out, width, blocks, board, context))


def _choose(what, name, options):
    if name not in options:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(map(str, options))}")
    return options[name]
