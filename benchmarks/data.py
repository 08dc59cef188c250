"""How long MNIST takes to prepare once and to open ever after.

    python benchmarks/data.py

Opening: the median over 200 calls of flowlib.data.load("mnist") on the prepared set. Preparing: the
median over 5 new processes of the first call, from torchvision's files (no download); importing
torchvision counts, importing flowlib not. Prints both and writes them, with hardware and date, to
benchmarks/results/data.json.
"""

import datetime
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from flowlib import checkpoints, data

OUTPUT = Path(__file__).parent / "results" / "data.json"
OPENINGS, BUILDS = 200, 5


def write_idx(path, array):
    path.write_bytes(
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, dtype=">u4").tobytes()
        + array.tobytes()
    )


def write_originals(mnist, raw):
    """The four files that torchvision downloads."""
    raw.mkdir(parents=True)
    for prefix, images, labels in (
        ("train", mnist.train, mnist.train_labels),
        ("t10k", mnist.test, mnist.test_labels),
    ):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:, 0].numpy())
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.numpy())


def seconds():
    start = time.perf_counter()
    data.load("mnist")
    return time.perf_counter() - start


def main():
    mnist, builds = data.load("mnist"), []
    with tempfile.TemporaryDirectory() as folder:
        for build in range(BUILDS):
            os.environ["FLOWLIB_DATA"] = os.environ["XDG_CACHE_HOME"] = f"{folder}/{build}"
            write_originals(mnist, Path(folder) / str(build) / "MNIST" / "raw")
            with multiprocessing.get_context("spawn").Pool(1) as process:
                builds.append(process.apply(seconds))
        openings = [seconds() for _ in range(OPENINGS)]

    result = {
        "set": "mnist",
        "open_ms_median": round(1_000 * statistics.median(openings), 2),
        "open_ms_slowest": round(1_000 * max(openings), 2),
        "build_s_median": round(statistics.median(builds), 2),
        "build_s_slowest": round(max(builds), 2),
        "openings": OPENINGS,
        "builds": BUILDS,
        "hardware": checkpoints.hardware(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    for what in ("open", "build"):
        times = {key: value for key, value in result.items() if key.startswith(f"{what}_")}
        print(", ".join(f"{key} {value}" for key, value in times.items()))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
