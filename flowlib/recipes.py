"""Recipes: a model, the data it learns, and how it is trained, by name; and the figures that a trained flow is judged by."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from . import checkpoints, data, losses, models, training
from .common import integer

__all__ = ["Recipe", "RECIPES", "train", "score", "data_of"]


@dataclass(frozen=True)
class Recipe:
    """`data` is a density or the name of an image set, `model` a builder of `flowlib.models`, `training` arguments of `fit`."""

    about: str
    data: object
    model: str
    arguments: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)


RECIPES = {
    "moons": Recipe("two moons in the plane", data.TwoMoons(noise=0.05), "realnvp_2d"),
    "sinusoid": Recipe("a noisy sine wave in the plane", data.Sinusoid(noise=0.1), "realnvp_2d"),
    "mnist_plain": Recipe(
        "digits with four couplings of fully connected networks, nothing else, all 60,000 images",
        "mnist",
        "realnvp_mlp",
        {"depth": 4, "hidden": (64, 128, 128, 64), "separate": True},
        {
            "epochs": 100,
            "batch_size": 128,
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "schedule": "constant",
        },
    ),
    "mnist_mlp": Recipe(
        "digits with eight shallow couplings, ActNorm, SoftLog, checkerboard masks and a steadier training",
        "mnist",
        "realnvp_mlp",
        {
            "depth": 8,
            "hidden": (72,),
            "separate": False,
            "mask": "checkerboard",
            "norm": "actnorm",
            "tau": 5.0,
        },
        {
            "epochs": 25,
            "batch_size": 128,
            "lr": 1e-3,
            "clip": 100.0,
            "ema": 0.999,
            "validation": 5_000,
        },
    ),
}
PAPER = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "schedule": "constant",
    "batch_size": 64,
    "weight_decay": 5e-5,
}  # its section 4.1
OURS = {
    "lr": 6e-3,
    "batch_size": 256,
    "clip": 500.0,
    "ema": 0.999,
    "validation": 5_000,
}  # a batch that fills a GPU
SMALL = {
    **OURS,
    "lr": 2e-3,
    "batch_size": 32,
    "validation": 1_000,
}  # for two cores and an hour or two
MIRRORED = {"flip": True}
FACES = ("celeba", "faces")


def faces_model(size, width, blocks, doubling=True):
    """Arguments of `realnvp_image` with as many scales as end in boards of 4 x 4, as in the paper."""
    return {
        "shape": (3, size, size),
        "scales": size.bit_length() - 2,
        "width": width,
        "blocks": blocks,
        "doubling": doubling,
    }


RECIPES |= {
    "mnist": Recipe(
        "digits with two scales, constant width and variational dequantisation; for a GPU",
        "mnist",
        "realnvp_image",
        {
            "shape": (1, 28, 28),
            "scales": 2,
            "width": 32,
            "blocks": 3,
            "doubling": False,
            "dequant_couplings": 4,
        },
        {**OURS, "epochs": 100},
    ),
    "mnist_small": Recipe(
        "digits with two scales, on two cores in half an hour",
        "mnist",
        "realnvp_image",
        {"shape": (1, 28, 28), "scales": 2, "width": 24, "blocks": 2},
        {**SMALL, "epochs": 3},
    ),
    "mnist_variational_small": Recipe(
        "the same with variational dequantisation, on one core in an hour and a half",
        "mnist",
        "realnvp_image",
        {"shape": (1, 28, 28), "scales": 2, "width": 24, "blocks": 2, "dequant_couplings": 4},
        {**SMALL, "lr": 6e-3, "epochs": 6},
    ),
    "cifar10_paper": Recipe(
        "the paper's CIFAR-10 model, 19.6 M parameters, trained as the paper says",
        "cifar10",
        "realnvp_image",
        {"shape": (3, 32, 32), "scales": 2, "width": 64, "blocks": 8},
        {**PAPER, **MIRRORED, "validation": 5_000, "epochs": 350},
    ),
    "cifar10": Recipe(
        "the same at constant width, 6.4 M parameters, trained our way; for a GPU",
        "cifar10",
        "realnvp_image",
        {"shape": (3, 32, 32), "scales": 2, "width": 64, "blocks": 8, "doubling": False},
        {**OURS, **MIRRORED, "epochs": 100},
    ),
    "cifar10_wide": Recipe(
        "the paper's model, 19.6 M parameters, trained our way; for a GPU",
        "cifar10",
        "realnvp_image",
        {"shape": (3, 32, 32), "scales": 2, "width": 64, "blocks": 8},
        {**OURS, **MIRRORED, "epochs": 100},
    ),
    "cifar10_small": Recipe(
        "CIFAR-10 on two cores in two hours, 1.3 M parameters",
        "cifar10",
        "realnvp_image",
        {"shape": (3, 32, 32), "scales": 2, "width": 32, "blocks": 2},
        {**SMALL, **MIRRORED, "epochs": 4},
    ),
    "celeba": Recipe(
        "CelebA with as many scales as the paper, 64 x 64 (or --size 32); for a GPU",
        "celeba",
        "realnvp_image",
        faces_model(64, width=32, blocks=2),
        {**OURS, **MIRRORED, "epochs": 50},
    ),
    "celeba_32": Recipe(
        "CelebA at 32 x 32, half a million parameters; for two cores and some hours",
        "celeba",
        "realnvp_image",
        {**faces_model(32, width=32, blocks=2, doubling=False), "dequant_couplings": 2},
        {**SMALL, **MIRRORED, "lr": 5e-3, "epochs": 32},
    ),
    "faces": Recipe(
        "procedural faces of 64 x 64 at constant width, small enough to ship; for a GPU",
        "faces",
        "realnvp_image",
        faces_model(64, width=20, blocks=2, doubling=False),
        {**OURS, **MIRRORED, "validation": 1_000, "epochs": 50},
    ),
    "faces_32": Recipe(
        "procedural faces of 32 x 32, on one core in three quarters of an hour",
        "faces",
        "realnvp_image",
        faces_model(32, width=12, blocks=2, doubling=False),
        {**SMALL, **MIRRORED, "lr": 6e-3, "epochs": 8},
    ),
    "faces_small": Recipe(
        "procedural faces of 64 x 64 on two cores in an hour",
        "faces",
        "realnvp_image",
        {"shape": (3, 64, 64), "scales": 4, "width": 12, "blocks": 2},
        {**SMALL, **MIRRORED, "epochs": 2},
    ),
}


def train(
    name,
    *,
    start=None,
    seed=0,
    size=None,
    limit=None,
    run=None,
    resume=False,
    standin=False,
    progress=True,
    **changes,
):
    """Build the recipe's model, train it with the recipe's arguments (and `changes` to them); return flow, data and history.

    `start` names a flow (as `checkpoints.load` takes it) whose weights training starts from; resume with the same. `size` (64
    or 32) is that of faces; the model gets as many scales as end in boards of 4 x 4. `limit` takes only the first so many
    images. `standin` lets other images stand in for a set that cannot be had. Raises ValueError for an unknown name, for a
    start of another model, and whatever `checkpoints.load`, `data.load` and `training.fit` raise.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe, arguments, settings = (
        RECIPES[name],
        dict(RECIPES[name].arguments),
        dict(RECIPES[name].training),
    )
    if size is not None:
        if recipe.data not in FACES:
            raise ValueError(
                f"size goes with recipes of faces; {name} has images of a size of their own"
            )
        arguments |= faces_model(
            size, arguments["width"], arguments["blocks"], arguments.get("doubling", True)
        )
    examples = recipe.data
    if isinstance(examples, str):
        examples = load(examples, arguments.get("shape"), limit, standin)
        if "validation" in settings:
            settings["validation"] = min(
                settings["validation"], len(examples.train) // 8
            )  # a folder may hold few images
    torch.manual_seed(seed)
    flow = models.build(recipe.model, **arguments)
    if start is not None:
        try:
            flow.load_state_dict(checkpoints.load(start).state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{start} is another model than that of the recipe {name}: {error}"
            ) from error
    if "steps" in changes or "epochs" in changes:
        settings = {key: value for key, value in settings.items() if key not in ("steps", "epochs")}
    history = training.fit(
        flow,
        examples,
        seed=seed,
        run=run,
        resume=resume,
        progress=progress,
        **{**settings, **changes},
    )
    return flow, examples, history


def load(name, shape, limit, standin):
    """The image set for a model of images of this shape."""
    return data.load(name, size=shape[-1] if name in FACES else None, limit=limit, standin=standin)


@torch.no_grad()
def score(flow, examples, *, draws=1, limit=None, seed=1, progress=False):
    """What a flow achieves on test data, as a dict of figures with their standard errors over the test data.

    Image set   bits/dim of the test images (the first `limit`), a bound from `draws` draws of the noise each
    Density     the gap to the truth, E log p_true - log p_model, in nats, over 20,000 fresh points
    """
    if not isinstance(examples, data.ImageSet):
        x = examples.sample(20_000, seed=seed)
        gap = (examples.log_prob(x) - flow.log_prob(x)).double()
        return {
            "data": repr(examples),
            "entropy_nats": round(examples.entropy, 4),
            "kl_nats": round(gap.mean().item(), 4),
            "kl_standard_error": round((gap.std() / len(gap) ** 0.5).item(), 4),
            "test_points": len(x),
        }
    integer("draws", draws, at_least=1)
    if limit is not None:
        integer("limit", limit, at_least=2)  # a standard error needs two
    rng, images = torch.Generator().manual_seed(seed), examples.test[:limit]
    device = next(flow.parameters()).device
    pieces = tqdm(images.split(500), disable=not progress, unit="batch", leave=False)
    bits = torch.cat(
        [
            losses.importance_bits_per_dim(flow, piece.to(device), draws, seed=rng).double().cpu()
            for piece in pieces
        ]
    )
    return {
        "data": examples.name,
        "bits_per_dim": round(bits.mean().item(), 4),
        "bits_per_dim_standard_error": round((bits.std() / len(bits) ** 0.5).item(), 4),
        "draws": draws,
        "test_images": len(bits),
    }


def data_of(flow, limit=None, standin=False):
    """The data that a run's folder, a checkpoint or a shipped flow says it was trained on, loaded (the first `limit` images)."""
    path = Path(flow)
    config = (path if path.is_dir() else path.parent) / "config.json"
    card = json.loads(config.read_text()) if config.is_file() else checkpoints.read_card(flow)
    name = card["data"] if config.is_file() else card["results"].get("data")
    densities = {
        repr(recipe.data): recipe.data
        for recipe in RECIPES.values()
        if isinstance(recipe.data, data.Density)
    }
    if name is None:
        raise ValueError(f"the card of {flow} does not say which data the flow was trained on")
    return (
        densities[name]
        if name in densities
        else load(name, card["arguments"].get("shape"), limit, standin)
    )


def is_main_process():
    """True for one of the processes of a distributed run, and for a process by itself."""
    from accelerate import PartialState

    return PartialState().is_main_process
