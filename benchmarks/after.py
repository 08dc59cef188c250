"""Real NVP with its parts exchanged one at a time, on half-size digits at equal compute: the stored
runs of notebook 13, whose cells tagged "part" hold the models.
python benchmarks/after.py [MODEL ...]    two seeds of each that is missing; "noisy": its pictures
"""

import datetime
import functools
import json
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.utils import make_grid, save_image

from flowlib import checkpoints, data, losses, training

OUT = Path(__file__).resolve().parent / "results" / "after.json"
NOTEBOOK = OUT.parents[2] / "notebooks" / "13_after_realnvp.ipynb"
SETTINGS = {"steps": 2_000, "batch_size": 64, "ema": 0.995}
LR = {"realnvp": 5e-3, "glow": 5e-3, "flowpp": 3e-3}  # convolutions
LR |= {"jet": 2e-3, "tarflow": 2e-3, "matching": 2e-3}  # transformers
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def parts():
    """The names that the notebook's cells tagged "part" define."""
    names = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if "part" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


def run(name, images, test, settings):
    """Train one model from settings["seed"]: its row of results, and 36 samples."""
    torch.manual_seed(settings["seed"])
    flow, start = parts()[name](), time.perf_counter()
    if name == "matching":
        loss = parts()["fit_matching"](flow.to(DEVICE), images.to(DEVICE), **settings)
    else:
        loss = training.fit(flow, images, precision="float32", progress=False, **settings).loss
    seconds, loss = time.perf_counter() - start, torch.tensor(loss)
    flow, test = flow.eval().to(DEVICE), test.to(DEVICE)
    with torch.no_grad():
        log_prob = torch.cat([flow.log_prob(x, seed=0) for x in test.split(500)])
        changed = flow.inverse(flow.encode(test[:500]))[0] != test[:500]
    bits = losses.bits_per_dim(log_prob, flow.shape).double()
    flow.sample(36, seed=0)  # warms up
    start = time.perf_counter()
    samples = flow.sample(36, seed=0).cpu()
    sampling = time.perf_counter() - start
    loss = loss if name == "matching" else losses.bits_per_dim(-loss, flow.shape)  # else nats
    row = {
        "bits_per_dim": round(bits.mean().item(), 4),
        "standard_error": round(bits.std().item() / len(bits) ** 0.5, 4),
        "test_images": len(bits),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "mflop": round(mflop(name, flow, test[:2]), 2),
        "seconds": round(seconds, 1),
        "seconds_to_sample_36": round(sampling, 4),
        "pixels_changed_by_round_trip": changed.double().mean().item(),
        "curve": [round(part.mean().item(), 3) for part in loss.split(50)],
        "settings": settings,
        "hardware": checkpoints.hardware(),
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
    }
    return row, samples / 7


@torch.no_grad()
def mflop(name, flow, images):
    """Millions of multiplications and additions of a training step's forward pass, an image."""
    forward = functools.partial(parts()["matching_loss"], flow) if name == "matching" else flow
    flow.train()  # torch counts fused kernels of attention as nothing: this avoids them
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward(images)
    return counter.get_total_flops() / len(images) / 1e6


def noisy(images):
    """36 samples of a TarFlow of noisy digits, and the same denoised."""
    torch.manual_seed(0)
    flow, data_set = parts()["tarflow_of_noise"](), parts()["NoisyImages"](images)
    training.fit(flow, data_set, precision="float32", progress=False, **SETTINGS, lr=2e-3, seed=0)
    samples = flow.to(DEVICE).sample(36, seed=0)
    picture("noisy", samples)
    picture("denoised", parts()["denoise"](flow, samples))


def picture(name, samples):
    """36 images in [0, 1] in four rows, beside the results."""
    grid = make_grid(samples.cpu().float().clamp(0, 1), nrow=9, padding=1, pad_value=1)
    save_image(grid, OUT.with_name(f"after_{name}.png"))


def main():
    wanted, digits = sys.argv[1:] or LR, data.load("mnist")
    images, test = parts()["small"](digits.train), parts()["small"](digits.test)[:2_000]
    found = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for seed in range(2):
        for name in [m for m in LR if m in wanted and f"{m} {seed}" not in found]:
            settings = {**SETTINGS, "lr": LR[name], "seed": seed}
            found[f"{name} {seed}"], samples = run(name, images, test, settings)
            checkpoints.write(OUT, json.dumps(found, indent=1).encode())
            if seed == 0:
                picture(name, samples)
    if "noisy" in wanted:
        noisy(images)


if __name__ == "__main__":
    main()
