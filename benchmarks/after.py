"""Real NVP with its parts exchanged one at a time, on half-size digits at equal compute: the stored
runs of notebook 13, whose cells tagged "part" hold the models.

python benchmarks/after.py                  all models and seeds that are missing
python benchmarks/after.py --models glow    some; "noisy" makes pictures, no row; --tiny: a few
    steps of each, stored nowhere
"""

import argparse
import datetime
import functools
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.utils import make_grid, save_image

from flowlib import checkpoints, data, losses, training

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "13_after_realnvp.ipynb"
sys.path.insert(0, str(NOTEBOOK.parent))  # its first cell imports the checkers
OUT = ROOT / "benchmarks" / "results" / "after.json"
SETTINGS = {"steps": 2_000, "batch_size": 64, "ema": 0.995}
LR = {"realnvp": 5e-3, "glow": 5e-3, "flowpp": 3e-3}  # convolutions; transformers take 2e-3
MODELS = ["realnvp", "glow", "flowpp", "jet", "tarflow", "matching", "noisy"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def parts():
    """The names that the notebook's cells tagged "part" define, executed where it lies."""
    names, here = {}, os.getcwd()
    os.chdir(NOTEBOOK.parent)
    try:
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if "part" in cell["metadata"].get("tags", []):
                exec("".join(cell["source"]), names)
    finally:
        os.chdir(here)
    return names


def fit(name, flow, images, settings):
    """Train a flow where it is, with the loss that its model asks for; the loss of every step."""
    settings = {**settings, "lr": LR.get(name, 2e-3)}
    if name == "matching":
        return parts()["fit_matching"](flow.to(DEVICE), images.to(DEVICE), **settings)
    return training.fit(flow, images, precision="float32", progress=False, **settings).loss


@torch.no_grad()
def run(name, images, test, settings):
    """Train one model, {"steps": ..., "seed": ...}: its row of results, and 36 samples."""
    torch.manual_seed(settings["seed"])
    flow, start = parts()[name](), time.perf_counter()
    with torch.enable_grad():
        loss = torch.tensor(fit(name, flow, images, settings))
    seconds, test = time.perf_counter() - start, test.to(DEVICE)
    flow.eval().to(DEVICE)
    log_prob = torch.cat([flow.log_prob(x, seed=0) for x in test.split(500)])
    bits = losses.bits_per_dim(log_prob, flow.shape).double()
    flow.sample(36, seed=0)  # warms up
    start = time.perf_counter()
    samples = flow.sample(36, seed=0).cpu()
    sampling = time.perf_counter() - start
    changed = flow.inverse(flow.encode(test[:500]))[0] != test[:500]
    curve = loss[: len(loss) // 50 * 50].reshape(-1, 50).mean(1)  # matching has a loss of its own
    curve = curve if name == "matching" else losses.bits_per_dim(-curve, flow.shape)
    row = {
        "bits_per_dim": round(bits.mean().item(), 4),
        "standard_error": round(bits.std().item() / len(bits) ** 0.5, 4),
        "test_images": len(bits),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "mflop": round(mflop(name, flow, test[:2]), 2),
        "seconds": round(seconds, 1),
        "seconds_to_sample_36": round(sampling, 4),
        "pixels_changed_by_round_trip": changed.double().mean().item(),
        "curve": [round(value, 3) for value in curve.tolist()],
        "settings": {**settings, "lr": LR.get(name, 2e-3)},
        "hardware": checkpoints.hardware(),
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
    }
    return row, samples


def mflop(name, flow, images):
    """Millions of multiplications and additions of a training step's forward pass, an image."""
    step = functools.partial(parts()["matching_loss"], flow) if name == "matching" else flow
    flow.train()  # torch counts a transformer's fast path in evaluation as nothing, and so it
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(images)  # counts the CPU's own kernel of attention
    return counter.get_total_flops() / len(images) / 1e6


def noisy(images, settings):
    """36 samples of a TarFlow of noisy digits, and the same denoised."""
    torch.manual_seed(settings["seed"])
    flow = parts()["tarflow_of_noise"]()
    fit("noisy", flow, parts()["NoisyImages"](images), settings)
    samples = flow.to(DEVICE).sample(36, seed=0)
    return {"noisy": samples, "denoised": parts()["denoise"](flow, samples)}


def picture(samples, path):
    """36 images in [0, 1] in four rows."""
    save_image(make_grid(samples.cpu().float().clamp(0, 1), nrow=9, padding=1, pad_value=1), path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    digits = data.load("mnist")
    images, test = parts()["small"](digits.train), parts()["small"](digits.test)[:2_000]
    settings, found = SETTINGS, json.loads(OUT.read_text()) if OUT.is_file() else {}
    if args.tiny:
        settings, test, found = {**SETTINGS, "steps": 6, "batch_size": 8}, test[:20], {}
    for seed in range(args.seeds):
        for name in args.models:
            if name == "noisy" and seed == 0:
                pictures = noisy(images, {**settings, "seed": seed})
            elif name != "noisy" and f"{name} {seed}" not in found:
                found[f"{name} {seed}"], samples = run(
                    name, images, test, {**settings, "seed": seed}
                )
                print(name, seed, dict(list(found[f"{name} {seed}"].items())[:8]), flush=True)
                pictures = {name: samples / 7} if seed == 0 else {}
            else:
                continue
            if not args.tiny:
                checkpoints.write(OUT, json.dumps(found, indent=1).encode())
                for kind, samples in pictures.items():
                    picture(samples, OUT.with_name(f"after_{kind}.png"))


if __name__ == "__main__":
    main()
