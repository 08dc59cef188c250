"""What each change to the plain MNIST recipe buys: equal parameters, ten epochs per row.

python benchmarks/mnist_mlp.py    run what is missing; benchmarks/results/mnist_mlp.json

The last 5,000 training images are held out; the test images are not looked at. Rungs that lie close
together are trained with a second seed, for the spread.
"""

import datetime
import json
from pathlib import Path

import torch

from flowlib import checkpoints, data, models, training

RESULTS = Path(__file__).with_name("results") / "mnist_mlp.json"
PROTOCOL = {"epochs": 10, "batch_size": 128, "lr": 1e-3, "validation": 5_000, "seed": 0}
PLAIN = {
    "training": {"betas": (0.9, 0.999), "schedule": "constant"},
    "model": {"depth": 4, "hidden": (64, 128, 128, 64), "separate": True},
}
MORE_SEEDS, CLOSE = [1], ["shallow", "checkerboard", "softlog"]
STEADY = {"clip": 100.0}
SHALLOW = {"depth": 8, "hidden": (72,), "separate": False}
ROWS = [  # name, what changes, arguments of fit, arguments of realnvp_mlp
    ("plain", "four couplings, two networks each", PLAIN["training"], PLAIN["model"]),
    ("steady", "gradient clipping, warm-up and cosine", STEADY, PLAIN["model"]),
    ("actnorm", "and ActNorm before every coupling", STEADY, PLAIN["model"] | {"norm": "actnorm"}),
    (
        "joint",
        "and one joint network, wider",
        STEADY,
        {"depth": 4, "hidden": (88, 176, 176, 88), "separate": False, "norm": "actnorm"},
    ),
    (
        "eight",
        "and eight couplings, narrower",
        STEADY,
        {"depth": 8, "hidden": (52, 104, 104, 52), "separate": False, "norm": "actnorm"},
    ),
    ("shallow", "and one hidden layer in each", STEADY, SHALLOW | {"norm": "actnorm"}),
    (
        "checkerboard",
        "and checkerboard masks",
        STEADY,
        SHALLOW | {"norm": "actnorm", "mask": "checkerboard"},
    ),
    (
        "softlog",
        "and SoftLog after the first ActNorm",
        STEADY,
        SHALLOW | {"norm": "actnorm", "mask": "checkerboard", "tau": 5.0},
    ),
    (
        "random",
        "random masks instead, without SoftLog",
        STEADY,
        SHALLOW | {"norm": "actnorm", "mask": "random"},
    ),
    (
        "halves",
        "halves instead, without SoftLog",
        STEADY,
        SHALLOW | {"norm": "actnorm", "mask": "halves"},
    ),
    (
        "batchnorm",
        "checkerboard and BatchNorm, without SoftLog",
        STEADY,
        SHALLOW | {"norm": "batchnorm", "mask": "checkerboard"},
    ),
]


def trained(settings, model, images, seed):
    torch.manual_seed(seed)
    flow = models.realnvp_mlp(images.shape, **model)
    return flow, training.fit(flow, images, **PROTOCOL | {"seed": seed}, **settings)


def run(name, change, settings, model, images):
    flow, history = trained(settings, model, images, PROTOCOL["seed"])
    curve = [metrics["validation_bits_per_dim"] for metrics in history.evaluations]
    row = {
        "name": name,
        "change": change,
        "model": model,
        "training": settings,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "validation_bits_per_dim": round(curve[-1], 4),
        "train_bits_per_dim": round(history.evaluations[-1]["bits_per_dim"], 4),
        "seconds": round(history.seconds, 1),
        "curve": [round(bits, 4) for bits in curve],
    }
    print(
        f"{change:45} {row['parameters']:9,} parameters  {row['validation_bits_per_dim']:.3f} "
        f"bits/dim  {row['seconds']:.0f} s",
        flush=True,
    )
    return row


def main():
    images = data.load("mnist")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {row["name"]: row for row in stored["rows"]}
    for name, *rest in ROWS:
        if name not in done:
            done[name] = run(name, *rest, images)
            stored |= {"hardware": checkpoints.hardware()}
            stored |= {"date": datetime.date.today().isoformat()}
            store(done, {key: stored[key] for key in ("hardware", "date")})
    for name, _, settings, model in ROWS:
        others = done[name].setdefault("other_seeds", {}) if name in CLOSE else {}
        for seed in MORE_SEEDS if name in CLOSE else ():
            if str(seed) not in others:
                _, history = trained(settings, model, images, seed)
                bits = history.evaluations[-1]["validation_bits_per_dim"]
                others[str(seed)] = round(bits, 4)
                print(f"{name}, seed {seed}: {others[str(seed)]:.3f} bits/dim", flush=True)
                store(done, {key: stored[key] for key in ("hardware", "date")})


def store(done, measured):
    """Write all rows; `measured` holds the hardware and the date of the seconds in them."""
    stored = {
        "protocol": PROTOCOL,
        **measured,
        "rows": [done[name] for name, *_ in ROWS if name in done],
    }
    checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
