"""Recipes: a model, its data and its training, by name; and how the trained flow is scored."""

import itertools
import re
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from . import checkpoints, data, losses, models, training
from .common import integer
from .flow import Flow

__all__ = ["Recipe", "RECIPES", "train", "score", "data_of"]


@dataclass(frozen=True)
class Recipe:
    """`data` is a density or the name of an image set; `arguments` are those of the builder;
    `start` is a shipped flow whose weights training starts from."""

    data: data.Density | str
    about: str
    arguments: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    model: str = "realnvp_image"
    start: str | None = None


def faces_model(size: int, width: int, blocks: int, doubling: bool = True) -> dict:
    """Arguments of `realnvp_image` with scales down to boards of 4 x 4, as in the paper."""
    boards = {"shape": (3, size, size), "scales": size.bit_length() - 2}
    return {**boards, "width": width, "blocks": blocks, "doubling": doubling}


# fmt: off
DIGITS = {"shape": (1, 28, 28), "scales": 2}
PHOTOS = {"shape": (3, 32, 32), "scales": 2}
LEARNED_NOISE = {"dequant_couplings": 4}
PLAIN = {"lr": 1e-3, "betas": (0.9, 0.999), "schedule": "constant"}
PAPER = {**PLAIN, "batch_size": 64, "weight_decay": 5e-5}  # its section 4.1
OURS = {"lr": 6e-3, "batch_size": 256, "clip": 500.0, "ema": 0.999, "validation": 5_000}  # a GPU
SMALL = {**OURS, "lr": 2e-3, "batch_size": 32, "validation": 1_000}  # two cores, an hour or two
MIRRORED = {"flip": True}
CELEBA = {**SMALL, **MIRRORED, "lr": 3e-3, "batch_size": 64, "keep_best": True}
FACES = ("celeba", "lfw", "faces")  # sets of which there are two sizes

RECIPES = {  # data and what it is; the model's arguments, the training's
    "moons": Recipe(data.TwoMoons(noise=0.05), "two moons in the plane", model="realnvp_2d"),
    "sinusoid": Recipe(data.Sinusoid(noise=0.1), "a noisy sine wave", model="realnvp_2d"),
    "mnist_plain": Recipe("mnist", "four couplings of fully connected networks, nothing else",
        {"depth": 4, "hidden": (64, 128, 128, 64), "separate": True},
        {**PLAIN, "clip": None, "batch_size": 128, "epochs": 100}, "realnvp_mlp"),
    "mnist_mlp": Recipe("mnist", "eight shallow couplings, ActNorm, SoftLog, checkerboards",
        {"depth": 8, "hidden": (72,), "separate": False, "mask": "checkerboard",
         "norm": "actnorm", "tau": 5.0},
        {**OURS, "lr": 1e-3, "batch_size": 128, "clip": 100.0, "epochs": 25}, "realnvp_mlp"),
    "mnist": Recipe("mnist", "constant width and variational dequantisation; for a GPU",
        {**DIGITS, "width": 32, "blocks": 3, "doubling": False, **LEARNED_NOISE},
        {**OURS, "epochs": 100}),
    "mnist_variational": Recipe("mnist", "the same, wider; on a GPU in three minutes",
        {**DIGITS, "width": 48, "blocks": 2, "doubling": False, **LEARNED_NOISE},
        {**OURS, "lr": 4e-3, "batch_size": 64, "keep_best": True, "evaluations": 8, "epochs": 12}),
    "mnist_conditional": Recipe("mnist", "digits on demand: the same, further under their labels",
        {**DIGITS, "width": 48, "blocks": 2, "doubling": False, **LEARNED_NOISE, "classes": 10},
        {**SMALL, "batch_size": 64, "ema": 0.995, "keep_best": True, "evaluations": 8,
         "context": "labels", "epochs": 5}, start="mnist_variational"),
    "mnist_reader_small": Recipe("mnist", "asked for labels; on two cores in an hour and a half",
        {**DIGITS, "width": 24, "blocks": 2, **LEARNED_NOISE, "classes": 10,
         "context_networks": False},
        {**SMALL, "lr": 5e-3, "batch_size": 64, "evaluations": 8, "context": "labels", "epochs": 12,
         "label_weight": 60.0},
        start="mnist_variational_small"),
    "mnist_small": Recipe("mnist", "two scales, on two cores in half an hour",
        {**DIGITS, "width": 24, "blocks": 2}, {**SMALL, "epochs": 3}),
    "mnist_variational_small": Recipe("mnist", "with learned noise, one core, an hour and a half",
        {**DIGITS, "width": 24, "blocks": 2, **LEARNED_NOISE}, {**SMALL, "lr": 6e-3, "epochs": 6}),
    "cifar10_paper": Recipe("cifar10", "the paper's model, 19.6 M parameters, and its training",
        {**PHOTOS, "width": 64, "blocks": 8},
        {**PAPER, **MIRRORED, "validation": 5_000, "epochs": 350}),
    "cifar10": Recipe("cifar10", "constant width, learned noise; in nine minutes of a GPU",
        {**PHOTOS, "width": 64, "blocks": 8, "doubling": False, **LEARNED_NOISE},
        {**OURS, **MIRRORED, "lr": 3e-3, "validation": 1_000, "keep_best": True, "evaluations": 5,
         "epochs": 44}),
    "cifar10_wide": Recipe("cifar10", "the paper's model, trained our way; for a GPU",
        {**PHOTOS, "width": 64, "blocks": 8}, {**OURS, **MIRRORED, "epochs": 100}),
    "celeba": Recipe("celeba", "64 x 64 (or --size 32), scales as in the paper; for a GPU",
        {**faces_model(64, width=48, blocks=2, doubling=False), **LEARNED_NOISE},
        {**CELEBA, "evaluations": 8, "epochs": 18}),
    "celeba_32": Recipe("celeba", "32 x 32; on a GPU in a minute and a half",
        {**faces_model(32, width=48, blocks=2, doubling=False), **LEARNED_NOISE},
        {**CELEBA, "evaluations": 8, "epochs": 21}),
    "celeba_32_5bit": Recipe("celeba", "the same of 5 bits, 32 levels",
        {**faces_model(32, width=48, blocks=2, doubling=False), **LEARNED_NOISE, "bits": 5},
        {**CELEBA, "evaluations": 8, "epochs": 21}),
    "faces_32": Recipe("faces", "drawn, 32 x 32, on one core in three quarters of an hour",
        faces_model(32, width=12, blocks=2, doubling=False),
        {**SMALL, **MIRRORED, "lr": 6e-3, "epochs": 8}),
    "faces_32_conditional": Recipe("faces", "faces on demand: the same, further with attributes",
        {**faces_model(32, width=12, blocks=2, doubling=False), "context_features": 7},
        {**SMALL, "lr": 3e-3, "ema": 0.99, "context": "labels", "epochs": 2}, start="faces_32"),
    "faces": Recipe("faces", "drawn, 64 x 64, learned noise; on a GPU in a minute",
        {**faces_model(64, width=32, blocks=2, doubling=False), **LEARNED_NOISE},
        {**OURS, **MIRRORED, "lr": 3e-3, "batch_size": 128, "validation": 1_000, "evaluations": 4,
         "epochs": 10}),
}
# fmt: on


def train(
    name: str, *, start=None, seed=0, size=None, limit=None, standin=False, progress=True, **changes
) -> tuple[Flow, data.Density | data.ImageSet, training.History]:
    """Train a recipe, with `changes` to its arguments of `fit`; return flow, data and history.

    start   a flow (as `checkpoints.load` takes it) in place of the recipe's own, if any, whose
            weights training starts from; without a context it may start the same model with one
    size    of faces, 64 or 32; the model gets as many scales as end in boards of 4 x 4
    limit   only the first so many images; `standin`: whether other images may stand in for a set
    Raises ValueError for an unknown name and a start of another model, and what `fit` raises.

    >>> flow, moons, history = train("moons", steps=5, progress=False)
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    examples, model = RECIPES[name].data, dict(RECIPES[name].arguments)
    settings = dict(RECIPES[name].training)
    if size is not None:
        if examples not in FACES:
            raise ValueError(f"size goes with recipes of faces; {name} has data of its own size")
        model |= faces_model(size, model["width"], model["blocks"], model.get("doubling", True))
    if isinstance(examples, str):
        examples = load(examples, model, limit, standin)
        if "validation" in settings:  # a folder may hold few images
            settings["validation"] = min(settings["validation"], len(examples.train) // 8)
    seen = examples  # by a run's folder, which remembers the limit in the name of the data
    if limit is not None and isinstance(examples, data.ImageSet):
        seen = replace(examples, name=f"{examples.name}[:{limit}]")
    if {"steps", "epochs", "seconds"} & changes.keys():
        settings.pop("epochs", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = models.build(RECIPES[name].model, **model)
        if start := start or RECIPES[name].start:
            start_from(flow, start, name)
        history = training.fit(flow, seen, seed=seed, progress=progress, **{**settings, **changes})
    return flow, examples, history


def start_from(flow, start, name):
    """Give flow the weights of a flow of the same model, or of the same without a context."""
    given, built = checkpoints.load(start), flow.built_by
    same = given.context_features or not flow.context_features
    plain = {**built["arguments"], "classes": 0, "context_features": 0}
    model = flow if same else models.build(built["builder"], **plain)
    try:
        model.load_state_dict(given.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{start} is another model than that of {name}: {error}") from error
    flow.load_state_dict(model.state_dict(), strict=False)  # what maps the context starts at zero


def load(name, model, limit, standin):
    """The image set for a model with these arguments."""
    size = model["shape"][-1] if name in FACES else None
    return data.load(name, size=size, limit=limit, bits=model.get("bits", 8), standin=standin)


@torch.no_grad()
def score(flow: Flow, examples, *, draws=1, limit=None, seed=1, progress=False) -> dict:
    """What a flow achieves on test data, in full float32, with standard errors over the data.

    Image set   bits/dim of the test images (the first `limit`) and of how many bits those are: a
                bound from `draws` draws of noise; a conditional flow is given their labels
    Density     the gap to the truth, E log p_true - log p_model, in nats, over 20,000 fresh points

    >>> score(checkpoints.load("moons"), data.TwoMoons(noise=0.05))["kl_nats"] < 0.05
    True
    """
    integer("draws", draws, at_least=1)
    if limit is not None:
        integer("limit", limit, at_least=2)  # a standard error needs two
    device, rng = next(flow.parameters()).device, torch.Generator().manual_seed(seed)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if isinstance(examples, data.Density):
            x = examples.sample(20_000, seed=seed)
            values = examples.log_prob(x) - flow.log_prob(x.to(device)).cpu()
        else:
            images, contexts = examples.test[:limit].split(500), itertools.repeat(None)
            if flow.context_features and examples.test_labels is not None:
                contexts = examples.test_labels[:limit].split(500)
            batches = tqdm([*zip(images, contexts)], disable=not progress, leave=False)
            bits = losses.importance_bits_per_dim
            values = torch.cat([bits(flow, x, draws, y, rng).cpu() for x, y in batches])
    deviation, mean = torch.std_mean(values.double())
    mean, error = round(mean.item(), 4), round(deviation.item() / len(values) ** 0.5, 4)
    if isinstance(examples, data.Density):
        truth = {"data": repr(examples), "entropy_nats": round(examples.entropy, 4)}
        return truth | {"kl_nats": mean, "kl_standard_error": error, "test_points": len(values)}
    found = {"data": examples.name, "bits": flow.dequantize.bits, "bits_per_dim": mean}
    found |= {"bits_per_dim_standard_error": error, "draws": draws}
    return found | {"test_images": len(values)}


def data_of(flow, limit: int | None = None, standin: bool = False) -> data.Density | data.ImageSet:
    """What a run's folder, a checkpoint or a shipped flow was trained on, loaded.

    Of images the first `limit`; without one, a run that was trained with a limit keeps to that.

    >>> data_of("moons")
    TwoMoons(noise=0.05)
    """
    card = checkpoints.read_card(flow)
    config, name = checkpoints.find(flow).with_name("config.json"), card["results"].get("data")
    if name is None and config.is_file():
        name = checkpoints.parse(config, config.read_bytes(), data=str)["data"]
    if name is None:
        raise ValueError(f"{flow} does not say which data it was trained on")
    if images := re.fullmatch(r"([a-z]\w*)(?:\[:(\d+)\])?", name):
        limit = limit or (int(images[2]) if images[2] else None)
        return load(images[1], card["arguments"], limit, standin)
    density = re.fullmatch(r"(\w+)\((?:noise=([\d.e-]+))?\)", name)
    if density and density[1] in data.__all__:
        return getattr(data, density[1])(*[float(noise) for noise in density.groups()[1:] if noise])
    raise ValueError(f"{flow} was trained on data that flowlib cannot make again: {name}")
