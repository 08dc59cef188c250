"""Train a recipe, evaluate a flow, or draw samples from one.

  python -m flowlib train mnist_small                       into runs/mnist_small
  python -m flowlib train mnist_small --resume              go on after an interruption, to the same bits
  python -m flowlib train celeba --size 32 --epochs 50 --lr 3e-4 --seed 0
  python -m flowlib evaluate runs/celeba                    bits per dimension on the test images
  python -m flowlib sample runs/celeba -n 36 -o samples.png

Several GPUs: accelerate launch -m flowlib train ...
Data sets lie in $FLOWLIB_DATA (default: the repository's data/), and are downloaded when the network allows.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from . import checkpoints, recipes
from .runs import write_grid


def main(arguments=None):
    """Run one command; return the exit status: 0, 1 after an error that is explained, 130 after Ctrl-C."""
    args = parser().parse_args(arguments)
    try:
        return args.command(args)
    except (ValueError, OSError) as error:
        print(f"flowlib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def train(args):
    run = args.run or Path("runs") / args.recipe
    names = ("size", "limit", "epochs", "steps", "batch_size", "lr")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    examples, history = recipes.train(
        args.recipe, seed=args.seed, run=run, resume=args.resume, standin=args.standin, **given
    )[1:]
    if history.interrupted:
        print("To go on, give the same command with --resume.")
        return 130
    if recipes.is_main_process():
        report(recipes.score(checkpoints.load(run), examples, progress=True), run)
    return 0


def evaluate(args):
    examples = recipes.data_of(args.flow, args.limit, args.standin)
    figures = recipes.score(
        checkpoints.load(args.flow), examples, draws=args.draws, limit=args.limit, progress=True
    )
    report(figures, Path(args.flow))
    return 0


def sample(args):
    flow = checkpoints.load(args.flow)
    drawn = flow.sample(args.n, temperature=args.temperature, seed=args.seed)
    if flow.dequantize is None:
        np.savetxt(args.output or "samples.csv", drawn.numpy(), delimiter=",", fmt="%.6g")
    else:
        write_grid(drawn, args.output or "samples.png")
    return 0


def report(figures, folder):
    """Print figures, and keep those of a run in its results.json."""
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if folder.is_dir():
        figures = {**figures, "hardware": checkpoints.hardware()}
        checkpoints.write(folder / "results.json", json.dumps(figures, indent=2).encode() + b"\n")


def parser():
    p = argparse.ArgumentParser(
        prog="python -m flowlib",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(required=True, metavar="command")

    names = "\n".join(f"  {name:14} {recipe.about}" for name, recipe in recipes.RECIPES.items())
    t = commands.add_parser(
        "train",
        help="train a recipe",
        description=f"Train a recipe and score it on test data.\n\nrecipes:\n{names}",
    )
    t.formatter_class = argparse.RawDescriptionHelpFormatter
    t.add_argument("recipe", help="one of those above")
    length = t.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=int, help="passes over the training data, instead of the recipe's"
    )
    length.add_argument("--steps", type=int, help="updates, instead of the recipe's epochs")
    t.add_argument("--size", type=int, help="of faces: 64 or 32 pixels")
    t.add_argument("--limit", type=int, help="only the first so many images")
    t.add_argument("--batch-size", type=int, help="rows per update, over all processes together")
    t.add_argument("--lr", type=float, help="Adam's learning rate")
    t.add_argument("--seed", type=int, default=0, help="of weights, data order and noise (0)")
    t.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="where metrics, samples and checkpoints go (runs/RECIPE)",
    )
    t.add_argument(
        "--resume", action="store_true", help="go on with the run in that folder, if there is one"
    )
    t.add_argument(
        "--standin",
        action="store_true",
        help="let small or drawn images stand in for a data set that cannot be had",
    )
    t.set_defaults(command=train)

    e = commands.add_parser(
        "evaluate", help="score a flow on the test data that it was trained for"
    )
    e.add_argument(
        "flow", help="a run's folder, a .safetensors file, or the name of a shipped flow"
    )
    e.add_argument(
        "--draws",
        type=int,
        default=1,
        help="draws of the noise per image; more give a tighter bound (1)",
    )
    e.add_argument("--limit", type=int, help="only the first so many test images")
    e.add_argument("--standin", action="store_true", help="as in train")
    e.set_defaults(command=evaluate)

    s = commands.add_parser("sample", help="draw samples: a PNG of images, a CSV of points")
    s.add_argument(
        "flow", help="a run's folder, a .safetensors file, or the name of a shipped flow"
    )
    s.add_argument("-n", type=int, default=36, help="how many (36)")
    s.add_argument("-o", "--output", metavar="FILE", help="samples.png, or samples.csv for points")
    s.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="scales the latents; below 1, samples crowd towards the likely (1.0)",
    )
    s.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples (0)")
    s.set_defaults(command=sample)
    return p


if __name__ == "__main__":
    sys.exit(main())
