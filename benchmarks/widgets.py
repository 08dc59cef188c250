"""How long an explorer takes from the move of a slider to the new picture, in the kernel.

    python benchmarks/widgets.py

Each slider of each explorer goes to 9 values from one end to the other, three times over. The time
is that of setting its value, which computes, draws and encodes the picture (JupyterLab adds what it
takes to show it), on as many threads as a kernel has: by the clock, and of the processor, which
counts no waiting for other programs, but every thread. Prints the medians and the worst, and writes
them, with hardware, load and date, to benchmarks/results/widgets.json. The target is a median of
100 ms by the clock.
"""

import datetime
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from flowlib import checkpoints, data, plotting, training, widgets

OUTPUT = Path(__file__).parent / "results" / "widgets.json"
VALUES, TURNS, TARGET_MS = 9, 3, 100


def explorers():
    """(explorer's name, flow's name, function that makes it)"""
    densities = {"moons": data.TwoMoons(noise=0.05), "sinusoid": data.Sinusoid(noise=0.1)}
    for name, density in densities.items():
        flow, x = checkpoints.load(name), density.sample(1_000, seed=0)
        history = training.fit(flow, density, steps=24, snapshots=12, seed=0, progress=False)
        yield "explore_layers", name, partial(widgets.explore_layers, flow, x)
        yield "explore_latent", name, partial(widgets.explore_latent, flow)
        yield "explore_training", name, partial(widgets.explore_training, history)
    for name in ["mnist_mlp", "mnist_small", "cifar10", "faces", "celeba"]:
        flow = checkpoints.load(name)
        x = data.load(name.split("_")[0], standin=True).test[:40]
        directions = widgets.principal_directions(flow, x)
        sliders = partial(widgets.latent_sliders, flow, directions, x[:4])
        yield "latent_sliders", name, sliders
        yield "interpolate", name, partial(widgets.interpolate, flow, x[0], x[1])
        yield "manifold", name, partial(widgets.manifold, flow, x[:4])
        if name != "mnist_mlp":  # it has no scales
            yield "explore_scales", name, partial(widgets.explore_scales, flow, x[0], x[1])


def update_times(explorer):
    """Seconds of every update: (by the clock, of the processor)."""
    times = []
    for control in explorer.controls.values():
        if not hasattr(control, "step"):
            continue  # a choice
        steps = round((control.max - control.min) / control.step)
        for i in list(range(VALUES)) * TURNS:
            value = control.min + round(i * steps / (VALUES - 1)) * control.step
            if value == control.value:
                continue
            clock, processor = time.perf_counter(), time.process_time()
            control.value = value
            times.append((time.perf_counter() - clock, time.process_time() - processor))
    return times


def main():
    plotting.use_style()
    rows, load = [], os.getloadavg()[0]
    for name, flow, make in explorers():
        clock, processor = zip(*update_times(make()))
        row = {
            "explorer": name,
            "flow": flow,
            "updates": len(clock),
        }
        for kind, times in [("", clock), ("processor_", processor)]:
            row |= {
                f"{kind}median_ms": round(1_000 * statistics.median(times), 1),
                f"{kind}worst_ms": round(1_000 * max(times), 1),
            }
        rows.append(row)
        numbers = [f"{key} {value}" for key, value in row.items() if key.endswith("n_ms")]
        print(f"{name:17} {flow:13}", *numbers, f"worst_ms {row['worst_ms']}", flush=True)
    result = {
        "rows": rows,
        "target_ms": TARGET_MS,
        "torch_threads": torch.get_num_threads(),
        "load_average_at_start": round(load, 1),
        "hardware": checkpoints.hardware(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
