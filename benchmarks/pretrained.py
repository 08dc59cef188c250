"""How soon a shipped flow is there, and how long it takes to draw 36 samples.

    python benchmarks/pretrained.py

By name, on the CPU: the first loading in a process of its own (flowlib already imported), then the median over 5 grids of
36 samples. Prints a table and writes it, with hardware and date, to benchmarks/results/pretrained.json.
"""

import datetime
import json
import multiprocessing
import time
from pathlib import Path
from statistics import median

import torch

from flowlib import checkpoints

OUTPUT = Path(__file__).with_name("results") / "pretrained.json"


def seconds(action):
    start = time.perf_counter()
    outcome = action()
    return time.perf_counter() - start, outcome


def measure(name):
    loading, flow = seconds(lambda: checkpoints.load(name))
    sampling = [seconds(lambda seed=seed: flow.sample(36, seed=seed))[0] for seed in range(5)]
    size = checkpoints.find(name).stat().st_size
    row = {
        "checkpoint": name,
        "megabytes": round(size / 1e6, 2),
        "load_s": round(loading, 3),
        "sample_36_s": round(median(sampling), 3),
    }
    return row | {"threads": torch.get_num_threads()}


def main():
    rows = []
    for name in sorted(checkpoints.shipped()):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            rows.append(process.apply(measure, (name,)))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    stored = {
        "rows": rows,
        "torch": torch.__version__,
        "hardware": checkpoints.hardware(),
        "date": datetime.date.today().isoformat(),
    }
    checkpoints.write(OUTPUT, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
