"""Train the models that the series ships, and write the results tables of the README from their cards.

python benchmarks/results.py            train what is missing from data/pretrained, going on where a run was cut off
python benchmarks/results.py moons      only these, even if they are there
python benchmarks/results.py --table    write the tables only
"""

import argparse
import re
import shutil
from pathlib import Path

import torch
from PIL import Image

from flowlib import checkpoints, data, recipes

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
SHIPPED = ["moons", "sinusoid", "mnist_plain", "mnist_mlp", "mnist_small", "cifar10_small", "faces_small"]
MOVIES = {"mnist_plain": "05_mnist_plain"}  # runs whose samples are shown as they change, and the name of the pictures


def ship(name):
    """Train one recipe in runs/<name>, score it, and put it with its card into data/pretrained."""
    run, path = ROOT / "runs" / name, checkpoints.PRETRAINED / f"{name}.safetensors"
    trained, examples, history = recipes.train(name, seed=SEED, run=run, resume=True)
    if history.interrupted:
        raise SystemExit(130)
    flow = checkpoints.load(run)
    results = {
        **recipes.score(flow, examples, progress=True),
        "parameters": sum(p.numel() for p in trained.parameters()),
        "steps": len(history.loss),
        "seconds": round(history.seconds, 1),
    }
    if isinstance(examples, data.ImageSet):
        results |= image_results(flow, examples, history, path)
        shutil.copy(run / "metrics.jsonl", path.with_suffix(".metrics.jsonl"))
    checkpoints.save(flow, path, seed=SEED, results=results, half=results.get("weights") == "float16")
    if name in MOVIES:
        draw_movie(run, MOVIES[name], len(history.evaluations))
    print(f"{name}: {results}")


def image_results(flow, examples, history, path):
    """Epochs, and on the first 1,000 test images: bits/dim, the tighter bound of 8 draws, and what float16 weights cost.

    Those are shipped if they cost less than 0.001 bits/dim.
    """
    first = recipes.score(flow, examples, limit=1_000)["bits_per_dim"]
    checkpoints.save(flow, path, half=True)
    cost = recipes.score(checkpoints.load(path), examples, limit=1_000)["bits_per_dim"] - first
    return {
        "bits_per_dim_first_1000": first,
        "bits_per_dim_8_draws": recipes.score(flow, examples, draws=8, limit=1_000, progress=True)["bits_per_dim"],
        "images_8_draws": 1_000,
        "epochs": len(history.evaluations),
        "float16_costs": round(cost, 5),
        "weights": "float16" if abs(cost) < 0.001 else "float32",
    }


def draw_movie(run, name, epochs, frames=50, shown=(0, 9, 20, 90)):
    """The run's sample grids as a GIF, and those after some epochs (counted from 0) as pictures, in notebooks/media."""
    grids = [Image.open(path).convert("L") for path in sorted((run / "samples").glob("*.png"))]
    media = ROOT / "notebooks" / "media"
    for epoch in shown:
        if epoch < epochs:
            grids[epoch].save(media / f"{name}_epoch_{epoch:02d}.png", optimize=True)
    movie = [grid.quantize(8) for grid in grids[:: max(1, epochs // frames)]]
    movie[0].save(media / f"{name}.gif", save_all=True, append_images=movie[1:], duration=120, loop=0, optimize=True)


def cards():
    return {path.stem: checkpoints.read_card(path.stem) for path in sorted(checkpoints.PRETRAINED.glob("*.json"))}


def made(card):
    """The last columns of both tables."""
    r = card["results"]
    return f"{r['steps']:,} | {r['seconds']:,.0f} s | {card['seed']} | {card['hardware']} | {card['date']} |"


def tables():
    """The README's results tables, from the cards in data/pretrained: densities in the plane, then images."""
    plane = [
        "| checkpoint | model | data | parameters | gap to the truth (nats) | steps | training | seed | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    images = [
        "| checkpoint | model | data | parameters | test bits/dim, one draw | 8 draws | test images | steps | training | seed | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, card in cards().items():
        r = card["results"]
        start = f"| `{name}` | `{card['builder']}` | {r['data']} | {r['parameters']:,} |"
        if "gap_nats" in r:
            plane.append(f"{start} {r['gap_nats']:.4f} ± {r['gap_standard_error']:.4f} | {made(card)}")
        else:
            of = f" (first {r['images_8_draws']:,})" if "images_8_draws" in r else ""
            bits = f"{r['bits_per_dim']:.3f} ± {r['bits_per_dim_standard_error']:.3f} | {r['bits_per_dim_8_draws']:.3f}{of} | {r['test_images']:,}"
            images.append(f"{start} {bits} | {made(card)}")
    return "\n".join([*plane, "", *images])


def with_tables(text):
    """The README's text with the tables between its two markers replaced."""
    return re.sub(r"(<!-- results -->\n).*(\n<!-- end of results -->)", lambda m: m[1] + tables() + m[2], text, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHIPPED)}")
    parser.add_argument("--table", action="store_true", help="write the tables only")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SHIPPED):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # the same figures whatever the number of cores
    missing = [name for name in SHIPPED if not (checkpoints.PRETRAINED / f"{name}.safetensors").exists()]
    for name in [] if args.table else args.names or missing:
        ship(name)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main()
