"""log p(x | y) of MNIST test digits under every label, in nats, for notebook 12.

python benchmarks/labels.py [FLOW] [--images 10000] [--draws 1]

FLOW is a shipped flow's name or a file. Each draw of the noise is the same under all labels. Stored
(draws, images, labels), with what made it, in results/labels_FLOW.npz (or in $OUT).
"""

import argparse
import datetime
import os
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from flowlib import checkpoints, data, losses
from flowlib.flow import standard_normal_log_prob

OUT = Path(os.environ.get("OUT") or Path(__file__).with_name("results"))
BATCH = 20  # images, each under all labels


def one_draw(flow, x, noise):
    """log p(x, noise | y) of every label; in one pass where the base alone sees the label."""
    if not flow.built_by["arguments"].get("context_networks", True):
        first = flow.check_context(0, len(x))
        return losses.under_all_labels(flow, *flow(x, first, noise), first)
    labels = torch.arange(flow.classes).repeat(len(x))
    rows, noise = (part.repeat_interleave(flow.classes, 0) for part in (x, noise))
    z, log_det = flow(rows, labels, noise)
    return (standard_normal_log_prob(z) + log_det).view(len(x), -1)


@torch.no_grad()
def under_all_labels(flow, images, draws):
    """log p(x | y) in nats of every draw: uint8 (N, C, H, W) -> (draws, N, classes)."""
    device, found = next(flow.parameters()).device, []
    for i, x in enumerate(tqdm(images.split(BATCH), mininterval=10)):
        x, each = x.to(device), []
        for seed in range(i * draws, (i + 1) * draws):
            noise = flow.draw_noise(len(x), torch.Generator().manual_seed(seed))
            each.append(one_draw(flow, x, noise))
        found.append(torch.stack(each).cpu())
    return torch.cat(found, dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flow", nargs="?", default="mnist_conditional")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1)
    asked = parser.parse_args()
    flow, digits = checkpoints.load(asked.flow), data.load("mnist", limit=asked.images)
    flow.to("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    each = under_all_labels(flow, digits.test, asked.draws)
    seconds = time.perf_counter() - start
    made = {"draws": asked.draws, "batch": BATCH, "seconds": round(seconds, 1)}
    made |= {"hardware": checkpoints.hardware(), "date": str(datetime.date.today())}
    path = OUT / f"labels_{Path(asked.flow).stem}.npz"
    np.savez_compressed(path, log_prob=each.numpy(), **made)
    read = each.softmax(2).mean(0).argmax(1)  # p(y | image and noise), averaged over the noise
    right = (read == digits.test_labels).double().mean().item()
    print(f"{asked.flow}: {right:.2%} of {len(read)} right, {seconds:.0f} s")


if __name__ == "__main__":
    main()
