"""Is anything lost by training in bfloat16? Bits/dim of a small CIFAR-10 model, three seeds each.

python benchmarks/precision.py    run what is missing; benchmarks/results/precision.json

Both precisions see the same weights, images and noise of a seed. They agree if the means over the
seeds differ by at most 0.01 bits/dim, or by two standard deviations of the float32 seeds, whichever
is more.
"""

import datetime
import json
from pathlib import Path
from statistics import fmean, stdev

import torch

from flowlib import checkpoints, data, losses, models, training

RESULTS = Path(__file__).with_name("results") / "precision.json"
MODEL = {"shape": (3, 32, 32), "scales": 2, "width": 16, "blocks": 1}
SETTINGS = {"steps": 500, "batch_size": 32, "lr": 1e-3, "clip": 500.0}
FIRST, SEEDS, PRECISIONS = 400, (0, 1, 2), ("float32", "bfloat16")


def run(precision, seed, images):
    """Mean training bits/dim over the last hundred steps of one training."""
    torch.manual_seed(seed)
    flow = models.realnvp_image(**MODEL)
    history = training.fit(flow, images, seed=seed, precision=precision, progress=False, **SETTINGS)
    bits = losses.bits_per_dim(-torch.tensor(history.loss), images.shape)
    row = {
        "precision": precision,
        "seed": seed,
        "bits_per_dim": round(bits[FIRST:].mean().item(), 5),
        "seconds": round(history.seconds, 1),
        # means over 20 steps
        "curve": [round(mean.item(), 4) for mean in bits.view(-1, 20).mean(1)],
    }
    print(
        f"{precision:8} seed {seed}: {row['bits_per_dim']:.4f} bits/dim over steps {FIRST} to "
        f"{len(bits)}, {row['seconds']:.0f} s",
        flush=True,
    )
    return row


def verdict(rows):
    """The difference of the means, what is tolerated, and whether the one is within the other."""
    by = {
        precision: [row["bits_per_dim"] for row in rows if row["precision"] == precision]
        for precision in PRECISIONS
    }
    if any(len(bits) < len(SEEDS) for bits in by.values()):
        return None
    difference, tolerated = (
        fmean(by["bfloat16"]) - fmean(by["float32"]),
        max(0.01, 2 * stdev(by["float32"])),
    )
    return {
        "float32": round(fmean(by["float32"]), 5),
        "bfloat16": round(fmean(by["bfloat16"]), 5),
        "difference": round(difference, 5),
        "standard_deviation_float32": round(stdev(by["float32"]), 5),
        "tolerated": round(tolerated, 5),
        "agree": abs(difference) <= tolerated,
    }


def main():
    torch.set_num_threads(1)
    images = data.load("cifar10")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {(row["precision"], row["seed"]): row for row in stored["rows"]}
    for seed in SEEDS:
        for precision in PRECISIONS:
            if (precision, seed) not in done:
                done[precision, seed] = run(precision, seed, images)
                stored = {
                    "model": MODEL,
                    "parameters": sum(
                        p.numel() for p in models.realnvp_image(**MODEL).parameters()
                    ),
                    "settings": SETTINGS,
                    "steps_compared": [FIRST, SETTINGS["steps"]],
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "hardware": checkpoints.hardware(),
                    "date": datetime.date.today().isoformat(),
                    "rows": list(done.values()),
                    "verdict": verdict(list(done.values())),
                }
                checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")
    print(stored["verdict"])


if __name__ == "__main__":
    main()
