"""Named flows. Each builder is a short list of layers; read it as the definition of the model."""

import functools
import inspect
import math

import torch

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
    """Register a builder, and let its flows remember how they were built, for checkpoints."""

    @functools.wraps(function)
    def build_and_remember(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        flow = function(*args, **kwargs)
        flow.built_by = {"builder": function.__name__, "arguments": dict(bound.arguments)}
        return flow

    BUILDERS[function.__name__] = build_and_remember
    return build_and_remember


def build(name: str, **arguments) -> Flow:
    """Build a model by its name. Raises ValueError for an unknown one.

    >>> build("realnvp_2d", depth=4).built_by["builder"]
    'realnvp_2d'
    """
    return _choose("model", name, BUILDERS)(**arguments)


@builder
def nice_2d(depth: int = 8, hidden: tuple = (64, 64), context_features: int = 0) -> Flow:
    """NICE for points in the plane: ActNorm, additive couplings, one learned scale per dimension.

    >>> len(nice_2d(depth=4).bijection)
    6
    """
    layers = [ActNorm(2)]
    for i in range(integer("depth", depth, at_least=1)):
        network = MLP(1, 1, hidden, context_features)
        layers.append(AdditiveCoupling(alternating(2, flip=i % 2 == 1), network))
    return Flow(Chain(*layers, Diagonal(2)), (2,), context_features)


@builder
def realnvp_2d(depth: int = 8, hidden: tuple = (64, 64), context_features: int = 0) -> Flow:
    """Real NVP for points in the plane: ActNorm, then affine couplings that take turns.

    >>> len(realnvp_2d(depth=4).bijection)
    5
    """
    layers = [ActNorm(2)]
    for i in range(integer("depth", depth, at_least=1)):
        network = MLP(1, 2, hidden, context_features)
        layers.append(AffineCoupling(alternating(2, flip=i % 2 == 1), network))
    return Flow(Chain(*layers), (2,), context_features)


VECTOR_MASKS = {  # for images laid out row by row: what passes through in layer i
    "alternating": lambda C, H, W, i: alternating(C * H * W, i % 2 == 1),
    "halves": lambda C, H, W, i: halves(C * H * W, i % 2 == 1),
    "checkerboard": lambda C, H, W, i: checkerboard(H, W, i % 2 == 1).expand(C, H, W).flatten(),
    "random": lambda C, H, W, i: random(C * H * W, seed=i // 2) ^ (i % 2 == 1),
}
NORMS = {None: None, "actnorm": ActNorm, "batchnorm": BatchNorm}


@builder
def realnvp_mlp(
    shape: tuple[int, ...] = (1, 28, 28),
    depth: int = 4,
    hidden: tuple[int, ...] = (64, 128, 128, 64),
    separate: bool = True,
    mask: str = "alternating",
    norm: str | None = None,
    tau: float | None = None,
    bits: int = 8,
) -> Flow:
    """Real NVP for small images as vectors: affine couplings with fully connected networks.

    separate   one network for the shift and one for the log-scale; False: one joint network
    mask       "alternating" (columns, if W is even), "halves", "checkerboard" or "random"
    norm       None, "actnorm" or "batchnorm": a normalisation before every coupling
    tau        SoftLog with this threshold after the first, for ink where there is hardly ever any
    >>> realnvp_mlp((1, 4, 4), depth=2, hidden=(8,)).sample(3).shape
    torch.Size([3, 1, 4, 4])
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    C, H, W = shape
    make_mask, make_norm = _choose("mask", mask, VECTOR_MASKS), _choose("norm", norm, NORMS)
    layers = [Dequantize(bits), Logit(), Flatten(shape)]
    for i in range(integer("depth", depth, at_least=1)):
        a = make_mask(C, H, W, i)
        n_in, n_out = int(a.sum()), int((~a).sum())
        if separate:
            network = ConcatNet([MLP(n_in, n_out, hidden), MLP(n_in, n_out, hidden)])
        else:
            network = MLP(n_in, 2 * n_out, hidden)
        layers += [make_norm(C * H * W)] if make_norm else []
        layers += [SoftLog(tau)] if tau is not None and i == 0 else []
        layers.append(AffineCoupling(a, network))
    return Flow(Chain(*layers), shape)


@builder
def realnvp_image(
    shape: tuple[int, ...] = (3, 32, 32),
    scales: int = 2,
    width: int = 64,
    blocks: int = 8,
    doubling: bool = True,
    batch_norm: bool = True,
    dequant_couplings: int = 0,
    bits: int = 8,
    classes: int = 0,
    context_features: int = 0,
    context_networks: bool = True,
    context_base: bool = True,
) -> Flow:
    """Real NVP for images, as in the paper's section 3.6 and the authors' code.

    Every scale but the last: three checkerboard couplings, squeeze, three channel couplings,
    un-squeeze, and a squeeze in checkerboard order, so that one colour of the checkerboard is
    factored out. The last: four checkerboard couplings. `width` features per convolution; with
    `doubling` twice as many from the channel couplings on, and again at each scale;
    `dequant_couplings` that shape the noise of the dequantisation. With `classes` a density
    p(x | label), with `context_features` p(x | vector), see `Flow`; the context enters all
    networks (`context_networks`), and as a learned mean and scale of all latents (`context_base`).
    >>> flow = realnvp_image((1, 8, 8), scales=2, width=4, blocks=1, classes=10).eval()
    >>> flow.sample(3, context=7).shape
    torch.Size([3, 1, 8, 8])
    """
    C, H, W = shape
    context = classes or context_features
    seen = context if context_networks else 0
    if context and not (context_networks or context_base):
        raise ValueError("a context needs context_networks, context_base or both")
    boards = lambda n: [checkerboard(H, W, i % 2 == 1) for i in range(n)]  # noqa: E731
    noise = [_image_coupling(C, mask, width // 2, 2, C) for mask in boards(dequant_couplings)]
    shaped = Chain(Logit(0.0), *noise, Inverse(Logit(0.0)))
    dequantize = VariationalDequantize(shaped, bits) if noise else Dequantize(bits)
    levels = []
    for _ in range(integer("scales", scales, at_least=1) - 1):
        layers = _couplings(C, boards(3), width, blocks, batch_norm, seen)
        width *= 2 if doubling else 1
        masks = [channels(4 * C, i % 2 == 1) for i in range(3)]
        layers += [Squeeze(), *_couplings(4 * C, masks, width, blocks, batch_norm, seen)]
        levels.append(Chain(*layers, Inverse(Squeeze()), Squeeze("checkerboard")))
        C, H, W = 2 * C, H // 2, W // 2
    levels.append(Chain(*_couplings(C, boards(4), width, blocks, batch_norm, seen)))
    layers = [dequantize, Logit(), MultiScale(shape, *levels)]
    if context and context_base:
        nothing_passes = torch.zeros(D := math.prod(shape), dtype=torch.bool)
        layers.append(AffineCoupling(nothing_passes, MLP(0, 2 * D, (), context)))
    return Flow(Chain(*layers), shape, context_features, classes)


def _couplings(C, masks, width, blocks, batch_norm, context):
    """One coupling per mask, each followed by batch norm on what it changed."""
    layers = []
    for mask in masks:
        layers.append(_image_coupling(C, mask, width, blocks, 0, context))
        layers += [BatchNorm(C, mask)] if batch_norm else []
    return layers


def _image_coupling(C, mask, width, blocks, context_channels, context=0):
    """An affine coupling of C channels with a ConvResNet."""
    board = mask.dim() == 2
    n_in, n_out = (C + 1, 2 * C) if board else (int(mask.sum()), 2 * int((~mask).sum()))
    network = ConvResNet(n_in, n_out, width, blocks, board, context_channels, context)
    return AffineCoupling(mask, network)


def _choose(what, name, options):
    if name not in options:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(map(str, options))}")
    return options[name]
