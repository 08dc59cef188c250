"""Train a recipe, evaluate a flow, draw samples from one, or see what is installed.

  flowlib train mnist_small                       into runs/mnist_small
  flowlib train mnist_small --resume              go on, bit-exact on the CPU
  flowlib train cifar10 --seconds 480             as much as eight minutes allow
  flowlib train celeba --size 32 --epochs 50 --lr 3e-4 --seed 0
  flowlib evaluate runs/celeba                    bits per dimension on the test images
  flowlib sample runs/celeba -n 36 -o samples.png
  flowlib doctor                                  what is there, what is missing, what it costs

python -m flowlib is the same. Several GPUs: accelerate launch -m flowlib train ...
Data sets lie in $FLOWLIB_DATA (default: the repository's data/), downloaded if the network allows.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch

import flowlib  # its floors are imported when they are used: the doctor must run without them

from . import doctor
from .common import integer


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, 1 after an error that is explained, or 130 after Ctrl-C."""
    if (sys.argv[1:] if arguments is None else arguments) == ["doctor"]:
        return doctor.main()
    options = vars(parser().parse_args(arguments))
    command = options.pop("command")
    try:
        return command(**options) or 0
    except (ValueError, OSError, ImportError, flowlib.training.DivergedError) as error:
        print(f"flowlib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def train(recipe, run=None, **options):
    from accelerate import PartialState

    run = run or f"runs/{recipe}"
    _, examples, history = flowlib.recipes.train(recipe, run=run, **options)
    if history.interrupted:
        print("To go on, give the same command with --resume.")
        return 130
    if PartialState().is_main_process:
        report(flowlib.recipes.score(load(run), examples, progress=True), run)


def evaluate(flow, draws=1, limit=None, standin=False):
    examples = flowlib.recipes.data_of(flow, limit, standin)
    score = flowlib.recipes.score(load(flow), examples, draws=draws, limit=limit, progress=True)
    report(score, flow)


def sample(flow, n=36, output=None, temperature=1.0, seed=0, label=None):
    model = load(flow)
    drawn = model.sample(integer("n", n, at_least=1), temperature, seed, label)
    if model.dequantize is not None:
        flowlib.checkpoints.write_grid(drawn, output or "samples.png", model.dequantize.bits)
    else:
        np.savetxt(file := io.BytesIO(), drawn.double().cpu(), delimiter=",", fmt="%.6g")
        flowlib.checkpoints.write(output or "samples.csv", file.getvalue())


def load(flow):
    """The flow, on the GPU if there is one."""
    return flowlib.checkpoints.load(flow, "cuda" if torch.cuda.is_available() else "cpu")


def report(metrics, flow):
    """Print metrics, and keep those of a run in its results.json."""
    for name, value in metrics.items():
        print(f"{name:28} {value}")
    checkpoints = flowlib.checkpoints
    folder = checkpoints.find(flow).parent
    if folder == Path(flow).expanduser():
        results = metrics | {"hardware": checkpoints.hardware()}
        checkpoints.write(folder / "results.json", checkpoints.to_json(results, indent=2))


def parser() -> argparse.ArgumentParser:
    """The commands and their options; what is not given is left to the functions above."""
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    given = {"argument_default": argparse.SUPPRESS, **raw}
    p = argparse.ArgumentParser(prog="flowlib", description=__doc__, **raw)
    commands = p.add_subparsers(required=True, metavar="command")
    recipes = flowlib.recipes.RECIPES.items()
    names = "\n".join(f"  {name:24} {recipe.data}: {recipe.about}" for name, recipe in recipes)
    about = f"Train a recipe and score it on test data.\n\nrecipes:\n{names}"

    t = commands.add_parser("train", help="train a recipe", description=about, **given)
    t.set_defaults(command=train)
    t.add_argument("recipe", help="one of those above")
    t.add_argument("--epochs", type=int, help="passes over the data, instead of the recipe's")
    t.add_argument("--steps", type=int, help="updates, instead of the recipe's epochs")
    t.add_argument("--seconds", type=float, help="of training, instead of the recipe's epochs")
    t.add_argument("--size", type=int, help="of faces: 64 or 32 pixels")
    t.add_argument("--batch-size", type=int, help="rows per update, over all processes together")
    t.add_argument("--lr", type=float, help="Adam's learning rate")
    t.add_argument("--seed", type=int, help="of weights, data order and noise (0)")
    t.add_argument("--run", metavar="FOLDER", help="for metrics and checkpoints (runs/RECIPE)")
    t.add_argument("--resume", action="store_true", help="go on with the run there, if any")

    e = commands.add_parser("evaluate", help="score a flow on test data", **given)
    e.set_defaults(command=evaluate)
    e.add_argument("--draws", type=int, help="of the noise: more give a tighter bound (1)")

    s = commands.add_parser("sample", help="a PNG of images, or a CSV of points", **given)
    s.set_defaults(command=sample)
    s.add_argument("-n", type=int, help="how many (36)")
    s.add_argument("-o", "--output", metavar="FILE", help="samples.png, or samples.csv for points")
    s.add_argument("--temperature", type=float, help="below 1: nearer to what is likely (1.0)")
    s.add_argument("--seed", type=int, help="the same seed gives the same samples (0)")
    s.add_argument("--label", type=int, help="the class, for a flow that takes labels as context")
    about = "what is installed, what is missing, and what that costs"
    d = commands.add_parser("doctor", help=about, description=about, **given)
    d.set_defaults(command=doctor.main)
    for command in (t, e):
        command.add_argument("--limit", type=int, help="only the first so many images")
        command.add_argument("--standin", action="store_true", help="other images may stand in")
    for command in (e, s):
        command.add_argument("flow", help="a run's folder, a .safetensors file, or a shipped flow")
    return p


if __name__ == "__main__":
    sys.exit(main())
