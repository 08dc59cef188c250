"""Does the paper's deepest image model train without accidents? Five scales, three seeds.

python benchmarks/stability.py    run what is missing; benchmarks/results/stability.json

A narrow model on procedural faces of 64 x 64, 2,000 steps. A run passes if no loss is NaN or
infinite, and if its evaluation loss, in evaluation mode on faces it has not seen, ends within 0.1
bits/dim of its training loss, the mean over the last 100 steps: batch norm is where the two come
apart.
"""

import datetime
import json
import math
from pathlib import Path
from statistics import fmean

import torch

from flowlib import checkpoints, data, losses, models, training

RESULTS = Path(__file__).with_name("results") / "stability.json"
MODEL = {"shape": (3, 64, 64), "scales": 5, "width": 8, "blocks": 1}
PROTOCOL = {"steps": 2_000, "batch_size": 16, "lr": 1e-3, "clip": 500.0, "flip": True}
UNSEEN, TOLERANCE = 500, 0.1


def run(seed, faces):
    torch.manual_seed(seed)
    flow = models.realnvp_image(**MODEL)
    history = training.fit(flow, faces.train, seed=seed, **PROTOCOL)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(1)
        log_prob = torch.cat(
            [flow.log_prob(piece, seed=rng) for piece in faces.test[:UNSEEN].split(50)]
        )
    train = losses.bits_per_dim(-fmean(history.loss[-100:]), flow.shape)
    evaluation = losses.bits_per_dim(log_prob.double().mean().item(), flow.shape)
    row = {
        "seed": seed,
        "steps": len(history.loss),
        "finite": all(map(math.isfinite, [*history.loss, evaluation])),
        "train_bits_per_dim": round(train, 4),
        "evaluation_bits_per_dim": round(evaluation, 4),
        "gap": round(evaluation - train, 4),
        "worst_step_bits_per_dim": round(
            losses.bits_per_dim(-max(history.loss[200:]), flow.shape), 3
        ),
        "seconds": round(history.seconds, 1),
    }
    row["passes"] = row["finite"] and abs(row["gap"]) <= TOLERANCE
    print(row, flush=True)
    return row


def main():
    torch.set_num_threads(1)
    faces = data.load("faces", size=64)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows = {row["seed"]: row for row in stored["rows"]}
    for seed in range(3):
        if seed not in rows:
            rows[seed] = run(seed, faces)
            stored = {
                "data": faces.name,
                "model": MODEL,
                "protocol": PROTOCOL,
                "unseen": UNSEEN,
                "tolerance": TOLERANCE,
            }
            stored |= {
                "hardware": checkpoints.hardware(),
                "date": datetime.date.today().isoformat(),
                "rows": list(rows.values()),
            }
            checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
