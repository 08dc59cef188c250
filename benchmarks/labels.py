"""log p(x | y) of MNIST test digits under every label, in nats, for notebook 12.

python benchmarks/labels.py [FLOW] [--images 10000] [--draws 1]

FLOW is a shipped flow's name or a file. The draws of the noise are the same under all labels, and
are averaged as probabilities. Stored in results/labels.npz (or $OUT/labels.npz), with what made it.
"""

import argparse
import datetime
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from flowlib import checkpoints, data
from flowlib.flow import standard_normal_log_prob

OUT = Path(os.environ.get("OUT") or Path(__file__).with_name("results")) / "labels.npz"
BATCH = 20  # images, each under all labels


@torch.no_grad()
def under_all_labels(flow, images, draws):
    """log p(x | y) in nats: uint8 (N, C, H, W) -> (N, classes)."""
    device, labels, found = next(flow.parameters()).device, torch.arange(flow.classes), []
    for i, x in enumerate(tqdm(images.split(BATCH), mininterval=10)):
        rows, y = x.to(device).repeat_interleave(flow.classes, 0), labels.repeat(len(x))
        each = []
        for seed in range(i * draws, (i + 1) * draws):
            noise = flow.draw_noise(len(x), torch.Generator().manual_seed(seed))
            z, log_det = flow(rows, y, noise.repeat_interleave(flow.classes, 0))
            each.append((standard_normal_log_prob(z) + log_det).view(len(x), -1))
        found.append((torch.stack(each).logsumexp(0) - math.log(draws)).cpu())
    return torch.cat(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flow", nargs="?", default="mnist_conditional")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1)
    asked = parser.parse_args()
    flow, digits = checkpoints.load(asked.flow), data.load("mnist", limit=asked.images)
    flow.to("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    table = under_all_labels(flow, digits.test, asked.draws)
    seconds = time.perf_counter() - start
    made = {"draws": asked.draws, "batch": BATCH, "seconds": round(seconds, 1)}
    made |= {"hardware": checkpoints.hardware(), "date": str(datetime.date.today())}
    np.savez_compressed(OUT, log_prob=table.numpy(), **made)
    right = (table.argmax(1) == digits.test_labels).double().mean().item()
    print(f"{asked.flow}: {right:.2%} of {len(table)} right, {seconds:.0f} s")


if __name__ == "__main__":
    main()
