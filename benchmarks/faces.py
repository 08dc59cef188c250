"""What each ingredient of a flow of real faces buys: one change per row, two seeds.

python benchmarks/faces.py --seconds 1200    run what is missing, as far as the time goes

A small flow of CelebA at 32 x 32, all rows with equally many steps. The last 1,000 training images
are held out and score every row; the test images are not looked at. A row that diverges is a
result. What is found lies in results/faces.json, or in $OUT, after every run. `--tiny` proves every
row on a CPU with a few procedural faces.
"""

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from ablations import bits, clean

from flowlib import checkpoints, data, losses, models, training
from flowlib.bijections import Chain, Flatten, Squeeze
from flowlib.coupling import AffineCoupling
from flowlib.masks import channels, checkerboard
from flowlib.networks import ConvResNet
from flowlib.norms import BatchNorm

RESULTS = Path(os.environ.get("OUT") or Path(__file__).with_name("results")) / "faces.json"
MODEL = {"shape": (3, 32, 32), "scales": 4, "width": 24, "blocks": 2, "doubling": False}
MODEL |= {"dequant_couplings": 4}
FIT = {"steps": 200, "batch_size": 32, "lr": 3e-3, "clip": 500.0, "ema": 0.999, "flip": True}
TINY = {"width": 4, "blocks": 1}, {"steps": 3, "batch_size": 8}
SEEDS, HELD_OUT, EVERY = 2, 1_000, 20


def couplings(C, masks, width, blocks):
    """As `realnvp_image` has them: a coupling for each mask, and batch norm on what it changed."""
    for mask in masks:
        board = mask.dim() == 2
        n_in, n_out = (C + 1, 2 * C) if board else (int(mask.sum()), 2 * int((~mask).sum()))
        yield AffineCoupling(mask, ConvResNet(n_in, n_out, width, blocks, board))
        yield BatchNorm(C, mask)


def rebuild(flow, factor_out, alternate):
    """The same couplings; but nothing is factored out, or all masks are checkerboards."""
    (C, H, _), multi, levels = MODEL["shape"], flow.bijection[-1], []
    look = [flow.built_by["arguments"][key] for key in ("width", "blocks")]
    for level in multi.scales:
        boards = [[checkerboard(n, n, i % 2 == 1) for i in range(4)] for n in (H, H // 2)]
        if level is multi.scales[-1]:
            levels.append(couplings(C, boards[0], *look))
            break
        masks = [channels(4 * C, i % 2 == 1) for i in range(3)] if alternate else boards[1][:3]
        layers = couplings(C, boards[0][:3], *look), couplings(4 * C, masks, *look)
        levels.append([*layers[0], Squeeze(), *layers[1]])
        if factor_out:
            levels[-1] += list(level)[-2:]  # un-squeeze, and squeeze in checkerboard order
        C, H = (2 if factor_out else 4) * C, H // 2
    chains = [Chain(*level) for level in levels]
    if factor_out:
        multi.scales = torch.nn.ModuleList(chains)
    else:
        flow.bijection = Chain(*list(flow.bijection)[:-1], *chains, Flatten((C, H, H)))


ROWS = {  # what changes: arguments of the model, those of `fit`, a function that operates on it
    "nothing: all ingredients": ({}, {}, None),
    "uniform noise, none learned": ({"dequant_couplings": 0}, {}, None),
    "nothing factored out": ({}, {}, lambda flow: rebuild(flow, False, True)),
    "no channel couplings": ({}, {}, lambda flow: rebuild(flow, True, False)),
    "no batch norm between couplings": ({"batch_norm": False}, {}, None),
    "no mirrored images": ({}, {"flip": False}, None),
}


def run(name, seed, train, held_out, tiny):
    (arguments, settings, change), error, began = ROWS[name], None, time.perf_counter()
    torch.manual_seed(seed)
    flow = models.realnvp_image(**{**MODEL, **(TINY[0] if tiny else {}), **arguments})
    if change:
        change(flow)
    settings = {**FIT, **(TINY[1] if tiny else {}), **settings}
    try:
        history = training.fit(flow, train, seed=seed, progress=False, **settings)
    except training.DivergedError as diverged:
        error, history = str(diverged).splitlines()[0], diverged.history
    held_out = held_out.to("cuda" if torch.cuda.is_available() else "cpu")
    flow.to(held_out.device)
    score = sum(bits(flow, part) * len(part) for part in held_out.split(500)) / len(held_out)
    loss = losses.bits_per_dim(-torch.tensor(history.loss), flow.shape)
    row = {"name": name, "seed": seed, "parameters": sum(p.numel() for p in flow.parameters())}
    row |= {"validation_bits_per_dim": None if error else clean(score), "diverged": error}
    row |= {"loss": [clean(part.mean().item()) for part in loss.split(EVERY)], "steps": len(loss)}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1e9, help="for all runs together")
    parser.add_argument("--tiny", action="store_true", help="small models, few images")
    args, start, longest = parser.parse_args(), time.time(), 0.0
    images = data.load("faces" if args.tiny else "celeba", size=32, limit=64 if args.tiny else None)
    n = 16 if args.tiny else HELD_OUT
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    for seed, name in ((seed, name) for seed in range(SEEDS) for name in ROWS):
        if (name, seed) in done or time.time() - start + longest > args.seconds:
            continue
        rows.append(run(name, seed, images.train[:-n], images.train[-n:], args.tiny))
        longest = max(longest, rows[-1]["seconds"] if len(rows) > 1 else 0)  # the first compiles
        found = {"data": images.name, "model": MODEL, "fit": FIT, "held_out": n, "every": EVERY}
        found |= {"hardware": checkpoints.hardware(), "date": str(datetime.date.today())}
        checkpoints.write(RESULTS, json.dumps(found | {"rows": rows}, indent=1).encode() + b"\n")
        said = rows[-1]["diverged"] or rows[-1]["validation_bits_per_dim"]
        print(f"{time.time() - start:5.0f} s  seed {seed}  {name:32} {said}", flush=True)


if __name__ == "__main__":
    main()
