"""Train the models that the series ships, and write the tables of results from their cards: in the
README the short ones, in shipped.md all that a card says.

python benchmarks/results.py                 train what is missing from data/pretrained and (points
    in the plane) flowlib/pretrained, going on where a run was cut off: with a CUDA GPU every
    recipe, without one those that two cores can train
python benchmarks/results.py moons           only these, even if they are there
python benchmarks/results.py --seconds 480 cifar10    within so many seconds of training each
python benchmarks/results.py --further mnist train a shipped flow once more from where its weights
    are: its optimiser's state is gone, so the learning rate warms up again; the card adds up both
    and counts the sittings
python benchmarks/results.py --bound mnist_small    measure the bound from several draws anew
python benchmarks/results.py --table         write the tables only
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from flowlib import checkpoints, data, recipes

sys.path.insert(0, str(Path(__file__).parent))
from image import peak

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "benchmarks" / "shipped.md"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0
ON_CPU = ["moons", "sinusoid", "mnist_plain", "mnist_mlp", "mnist_small", "mnist_variational_small"]
ON_CPU += ["mnist_conditional", "mnist_reader_small", "faces_32", "faces_32_conditional"]
ON_GPU = ["cifar10", "mnist", "faces", "cifar10_wide", "cifar10_paper"]  # the most wanted first
LARGEST = (
    7_000_000  # parameters; of larger models only the card is shipped, the weights stay in runs/
)
MOVIES = {
    "mnist_plain": "05_mnist_plain"
}  # runs whose samples are shown as they change, and the name of the pictures

INTRODUCTION = """\
# All that is known about the flows that are shipped

The gap is E[log p_true − log p_flow] over fresh test points, plus or minus its standard error: how far a flow is from the truth.

Bits/dim of images are of the test set, plus or minus their standard error over the images; those of 5-bit pixels are not to be compared with those of 8 (the column bits says which). "Several draws" is the tighter bound that averages so many draws of the dequantisation noise per image, as probabilities. What to train was chosen on held-out training images, except that the idea of the SoftLog in `mnist_mlp` came from test images on which an earlier flow failed. CIFAR-10 has 10,000 test images; where the table says fewer, the copy used lacks the rest.

"Share of peak", of trainings on a GPU, is three times the forward FLOPs of all images seen, per second of training, over what the fastest bfloat16 matrix product reached there (model FLOP utilisation). The flows called `small` were trained on one or two cores beside other work, so their seconds say little about speed; [image.py](image.py) measures that.

Written by `make results`, which trains what is missing, from the cards in [data/pretrained](../data/pretrained) and [flowlib/pretrained](../flowlib/pretrained).

"""  # noqa: E501


def ship(name, further=False, **budget):
    """Train one recipe in runs/<name>, score it, and put it with its card where it is shipped.

    `further` starts from the flow that is there; `budget`, as of `fit`, replaces the recipe's.
    """
    path = home(name) / f"{name}.safetensors"
    before = checkpoints.read_card(path)["results"] if further else {}
    sitting = before.get("sittings", 1) + 1 if further else 1
    run, seed = (
        ROOT / "runs" / (f"{name}_sitting_{sitting}" if further else name),
        SEED + sitting - 1,
    )
    trained, examples, history = recipes.train(
        name, start=path if further else None, seed=seed, run=run, resume=True, **budget
    )
    if history.interrupted:
        raise SystemExit(130)
    flow = checkpoints.load(run)
    flow.to(DEVICE)
    results = {
        **recipes.score(flow, examples, progress=True),
        "parameters": sum(p.numel() for p in trained.parameters()),
        "steps": len(history.loss),
        "seconds": round(history.seconds, 1),
    }
    if isinstance(examples, data.ImageSet):
        results |= image_results(name, flow, examples, history, run)
        write_metrics(path.with_suffix(".metrics.jsonl"), history.evaluations, before)
    if further:
        summed = {
            key: round(before[key] + results[key], 1)
            for key in ("steps", "seconds", "epochs", "images_seen")
            if key in results
        }
        results |= {**summed, "sittings": sitting}
    if start := recipes.RECIPES[name].start:
        results |= {"start": start}
    checkpoints.save(
        flow, path, seed=seed, results=results, half=results.get("weights") == "float16"
    )
    if results["parameters"] > LARGEST:
        path.unlink()
    if name in MOVIES:
        draw_movie(run, MOVIES[name], len(history.evaluations))
    print(f"{name}: {results}")


def home(name):
    """The folder that a flow is shipped in: of every install for points, else of the checkout."""
    points = isinstance(recipes.RECIPES[name].data, data.Density)
    return checkpoints.PACKAGED if points else checkpoints.PRETRAINED


def write_metrics(path, evaluations, before):
    """A line per evaluation; those of a further sitting count on from the earlier ones."""
    earlier = path.read_text() if before else ""
    for metrics in evaluations:
        counted = {
            "step": metrics["step"] + before.get("steps", 0),
            "seconds": round(metrics["seconds"] + before.get("seconds", 0), 2),
        }
        earlier += json.dumps({**metrics, **counted}) + "\n"
    checkpoints.write(path, earlier.encode())


def image_results(name, flow, examples, history, run):
    """What an image flow's card says besides: images seen, how fast, the tighter bound, and more.

    Weights are shipped in float16 if that costs less than 0.001 bits/dim on the first 1,000 test
    images. No share of a CPU's peak: how many cores a training had is not in its history.
    """
    first = recipes.score(flow, examples, limit=1_000)["bits_per_dim"]
    checkpoints.save(flow, run / "half.safetensors", half=True)
    cost = (
        recipes.score(checkpoints.load(run / "half.safetensors").to(DEVICE), examples, limit=1_000)[
            "bits_per_dim"
        ]
        - first
    )
    settings = recipes.RECIPES[name].training
    seen = len(history.loss) * settings["batch_size"]
    pace = seen / history.seconds
    return {
        "bits_per_dim_first_100": recipes.score(flow, examples, limit=100)["bits_per_dim"],
        "bits_per_dim_first_1000": first,
        **bound(flow, examples),
        "epochs": round(seen / (len(examples.train) - settings.get("validation", 0)), 1),
        "images_seen": seen,
        "images_per_second": round(pace, 1),
        **(share_of_peak(flow, examples.test[:1], pace) if DEVICE == "cuda" else {}),
        "float16_costs": round(cost, 5),
        "weights": "float16" if abs(cost) < 0.001 else "float32",
    }


def share_of_peak(flow, image, pace):
    """Three times the forward FLOPs, `pace` images a second over the whole training, evaluations
    and all, in the fastest matrix product measured afterwards."""
    flops = 3 * forward_flops(flow, image) * pace
    return {"share_of_bfloat16_peak": round(flops / peak(DEVICE, torch.bfloat16), 4)}


def bound(flow, examples):
    """The bound from 8 draws of the noise, 16 on CIFAR-10.

    Without a GPU it is that of the first 1,000 test images for a large flow.
    """
    draws = 16 if examples.name == "cifar10" else 8
    limit = 1_000 if DEVICE == "cpu" and forward_flops(flow, examples.test[:1]) > 5e8 else None
    tight = recipes.score(flow, examples, draws=draws, limit=limit, progress=True)
    return {
        f"bits_per_dim_{draws}_draws": tight["bits_per_dim"],
        f"images_{draws}_draws": tight["test_images"],
    }


def renew_bound(name):
    """Put the bound of a shipped flow, measured anew, into its card."""
    card = checkpoints.read_card(name)
    kept = {key: value for key, value in card["results"].items() if not key.endswith("_draws")}
    card["results"] = kept | bound(checkpoints.load(name).to(DEVICE), recipes.data_of(name))
    checkpoints.write(home(name) / f"{name}.json", checkpoints.to_json(card, indent=2))


@torch.no_grad()
def forward_flops(flow, image):
    """Floating-point operations of one image's way from data to latent, counted by torch."""
    image, width = image.to(DEVICE), flow.context_features
    context = torch.zeros(len(image), width, device=DEVICE) if width else None
    with FlopCounterMode(display=False) as counter:
        flow(image, context)
    return counter.get_total_flops()


def draw_movie(run, name, epochs, frames=50, shown=(0, 9, 20, 90)):
    """The run's sample grids as a GIF, and some of them as pictures, in notebooks/media."""
    grids = [Image.open(path).convert("L") for path in sorted((run / "samples").glob("*.png"))]
    media = ROOT / "notebooks" / "media"
    for epoch in shown:
        if epoch < epochs:
            grids[epoch].save(media / f"{name}_epoch_{epoch:02d}.png", optimize=True)
    movie = [grid.quantize(8) for grid in grids[:: max(1, epochs // frames)]]
    movie[0].save(
        media / f"{name}.gif",
        save_all=True,
        append_images=movie[1:],
        duration=120,
        loop=0,
        optimize=True,
    )


def cards():
    folders = checkpoints.PACKAGED, checkpoints.PRETRAINED
    paths = sorted((path for f in folders for path in f.glob("*.json")), key=lambda path: path.stem)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def made(card):
    """The last columns of both tables."""
    r = card["results"]
    sittings = f" in {r['sittings']} sittings" if "sittings" in r else ""
    sittings += after(r)
    seed, hardware, date = card["seed"], card["hardware"], card["date"]
    return f"{r['steps']:,}{sittings} | {r['seconds']:,.0f} s | {seed} | {hardware} | {date} |"


def after(results):
    """Whose weights training started from, where it did not start from nothing."""
    return f", after those of `{results['start']}`" if "start" in results else ""


def tighter(results):
    """The bound from several draws of the noise, how many, and on which images."""
    draws = next(
        int(key.split("_")[3])
        for key in results
        if key.startswith("bits_per_dim_") and key.endswith("_draws")
    )
    images = results.get(f"images_{draws}_draws", results["test_images"])
    of = f", first {images:,}" if images < results["test_images"] else ""
    return f"{results[f'bits_per_dim_{draws}_draws']:.3f} ({draws}{of})"


def tables():
    """All that the cards say: densities in the plane, then images."""
    plane = [
        "| checkpoint | model | data | parameters | gap to the truth (nats) | steps | training "
        "| seed | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    images = [
        "| checkpoint | model | data | bits | parameters | test bits/dim, one draw | several draws "
        "| test images | images seen | images/s | share of peak | steps | training | seed "
        "| hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, card in cards().items():
        r = card["results"]
        bits = "" if "kl_nats" in r else f" {card['arguments'].get('bits', 8)} |"
        start = f"| `{name}` | `{card['builder']}` | {r['data']} |{bits} {r['parameters']:,} |"
        if "kl_nats" in r:
            plane.append(f"{start} {gap(r)} | {made(card)}")
        else:
            seen = r.get("images_seen", r["steps"] * recipes.RECIPES[name].training["batch_size"])
            share = (
                f"{r['share_of_bfloat16_peak']:.1%}"
                if "share_of_bfloat16_peak" in r
                else "not measured"
            )
            speed = r.get("images_per_second", seen / r["seconds"])
            images.append(
                f"{start} {one_draw(r)} | {tighter(r)} | {r['test_images']:,} | {seen:,} "
                f"| {speed:,.0f} | {share} | {made(card)}"
            )
    return "\n".join([*plane, "", *images])


def summary():
    """The README's tables: the columns that fit on a page, and which recipes are not trained."""
    plane = [
        "| checkpoint | data | parameters | gap to the truth (nats) | training |",
        "|---|---|---|---|---|",
    ]
    images = [
        "| checkpoint | data | bits | parameters | test bits/dim | training |",
        "|---|---|---|---|---|---|",
    ]
    for name, card in cards().items():
        r = card["results"]
        training = f"{r['seconds']:,.0f} s, {card['hardware']}{after(r)} |"
        start = f"| `{name}` | {r['data']} |"
        if "kl_nats" in r:
            plane.append(f"{start} {r['parameters']:,} | {gap(r)} | {training}")
        else:
            bits = card["arguments"].get("bits", 8)
            images.append(f"{start} {bits} | {r['parameters']:,} | {one_draw(r)} | {training}")
    missing = ", ".join(f"`{name}`" for name in ON_GPU if name not in cards())
    note = (
        f"\n\nNot trained yet, for want of a GPU: {missing}. "
        "`make results` on a machine with one trains them."
        if missing
        else ""
    )
    return "\n".join([*plane, "", *images]) + note


def gap(results):
    return f"{results['kl_nats']:.4f} ± {results['kl_standard_error']:.4f}"


def one_draw(results):
    return f"{results['bits_per_dim']:.3f} ± {results['bits_per_dim_standard_error']:.3f}"


def with_summary(text):
    """The README's text with the tables between its two markers replaced."""
    return re.sub(
        r"(<!-- results -->\n).*(\n<!-- end of results -->)",
        lambda m: m[1] + summary() + m[2],
        text,
        flags=re.DOTALL,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(recipes.RECIPES)}")
    parser.add_argument(
        "--further", action="store_true", help="go on from the weights that are shipped"
    )
    parser.add_argument(
        "--bound", action="store_true", help="measure the bound from several draws anew"
    )
    parser.add_argument("--table", action="store_true", help="write the tables only")
    parser.add_argument("--seconds", type=float, help="of training, in place of recipes' epochs")
    args = parser.parse_args()
    budget = {"seconds": args.seconds} if args.seconds else {}
    if unknown := set(args.names) - set(recipes.RECIPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if (args.further or args.bound) and not args.names:
        parser.error("--further and --bound need the names of shipped flows")
    torch.set_num_threads(1)  # the same figures whatever the number of cores
    torch.backends.cudnn.allow_tf32 = False  # figures are those of float32
    missing = [
        name for name in ON_CPU + (ON_GPU if DEVICE == "cuda" else []) if name not in cards()
    ]
    for name in [] if args.table else args.names or missing:
        renew_bound(name) if args.bound else ship(name, args.further, **budget)
    readme = ROOT / "README.md"
    readme.write_text(with_summary(readme.read_text()))
    SHIPPED.write_text(INTRODUCTION + tables() + "\n")


if __name__ == "__main__":
    main()
