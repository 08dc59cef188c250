"""How fast the doubled CIFAR-10 model trains: against plain float32 eager mode, and the hardware.

python benchmarks/image.py    on the CPU: two threads, batch 8; on a CUDA GPU: batch 64 and 256

A step is forward, backward and Adam, on random images that lie on the device. Variants take turns;
medians over the turns. The share of the peak is 3 x the forward FLOPs of an image x images per
second, over the fastest matrix product that was measured in the same run, in the variant's own
precision (on a GPU this is called model FLOP utilisation).
"""

import argparse
import datetime
import json
import math
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowlib import checkpoints, models
from flowlib.losses import nll
from flowlib.networks import ConvResNet

RESULTS = Path(__file__).with_name("results") / "image.json"
MODEL = {"shape": (3, 32, 32), "scales": 2, "width": 64, "blocks": 8}
PLAIN, LAST, OURS = (
    "float32, eager, as it comes",
    "channels-last",
    "channels-last, bfloat16 networks, fused Adam",
)
COMPILED = f"{OURS}, compiled"


def as_it_comes(self, x, context=None):
    """ConvResNet.forward without channels-last."""
    colours, mask = (x[:, :-1], x[:, -1:]) if self.checkerboard else (x, x[:, :0])
    colours = self.normalise(colours) * (2 if self.checkerboard else 1)
    x = self.conv_in(torch.cat([colours.relu(), (-colours).relu(), mask], dim=1))
    total = self.skips[0](x)
    for block, skip in zip(self.blocks, self.skips[1:]):
        x = x + block(x)
        total = total + skip(x)
    return self.conv_out(total)


class Variant:
    """One way to train the model: a step on (batch) images, timed."""

    def __init__(self, name, device, batch, tf32=False):
        self.name, self.device, self.batch, self.tf32 = name, device, batch, tf32
        torch.manual_seed(0)
        self.flow = models.realnvp_image(**MODEL).to(device).train()
        if name == PLAIN:
            for network in self.flow.modules():
                if isinstance(network, ConvResNet):
                    network.forward = as_it_comes.__get__(network)
        else:
            self.flow.to(memory_format=torch.channels_last)
        self.bfloat16 = name in (OURS, COMPILED)
        self.optimizer = torch.optim.Adam(
            self.flow.parameters(), lr=1e-4, fused=self.bfloat16 or None
        )
        self.run = torch.compile(self.flow) if name == COMPILED else self.flow
        self.images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
        self.noise = torch.rand(self.images.shape, device=device)
        self.seconds = []

    def step(self):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = nll(*self.run(self.images, None, self.noise))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def time(self, steps):
        """Seconds per step, over several; the first call of a variant warms up."""
        if not self.seconds:
            self.step()
        wait(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        wait(self.device)
        self.seconds.append((time.perf_counter() - start) / steps)
        assert math.isfinite(loss.item())


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device, dtype, tf32=False, n=4096):
    """FLOP/s of the best of several n x n matrix products."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    n = n if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def forward_flops():
    flow = models.realnvp_image(**MODEL).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        flow(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    return counter.get_total_flops()


def cpu_flags():
    """The instructions for bfloat16 that this CPU names."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return sorted(flags & {"avx512_bf16", "amx_bf16", "amx_tile", "avx512f", "avx2"})


def measure(device, batch, turns):
    variants = [
        Variant(PLAIN, device, batch),
        Variant(LAST, device, batch),
        Variant(OURS, device, batch),
    ]
    if device == "cuda":
        variants += [Variant(PLAIN, device, batch, tf32=True), Variant(COMPILED, device, batch)]
    peaks = {False: peak(device, torch.float32), True: peak(device, torch.bfloat16)}
    tf32_peak = peak(device, torch.float32, tf32=True)
    for _ in range(turns):
        for variant in variants:
            variant.time(10 if device == "cuda" else 1)
    rows, flops, base = [], 3 * forward_flops(), batch / median(variants[0].seconds)
    for v in variants:
        speed, best = batch / median(v.seconds), tf32_peak if v.tf32 else peaks[v.bfloat16]
        rows.append(
            {
                "variant": v.name + (", TF32" if v.tf32 else ""),
                "batch": batch,
                "images_per_second": round(speed, 2),
                "slowest_and_fastest": [
                    round(batch / max(v.seconds), 2),
                    round(batch / min(v.seconds), 2),
                ],
                "factor": round(speed / base, 2),
                "peak_gflops": round(best / 1e9, 1),
                "share_of_peak": round(speed * flops / best, 3),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(2)
    rows = [
        row
        for batch in ((64, 256) if device == "cuda" else (8,))
        for row in measure(device, batch, turns)
    ]
    entry = {
        "model": MODEL,
        "parameters": sum(p.numel() for p in models.realnvp_image(**MODEL).parameters()),
        "forward_gflop_per_image": round(forward_flops() / 1e9, 2),
        "turns": turns,
        "threads": torch.get_num_threads(),
        "cpu_flags": cpu_flags(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": checkpoints.hardware(),
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    print(
        f"{entry['hardware']}, {', '.join(entry['cpu_flags'])}, forward "
        f"{entry['forward_gflop_per_image']} GFLOP per image"
    )
    for row in rows:
        figures = (
            f"{row['images_per_second']:9.2f} images/s  {row['factor']:5.2f} x  "
            f"{row['share_of_peak']:6.1%} of {row['peak_gflops']:,} GFLOP/s"
        )
        print(f"batch {row['batch']:4}  {row['variant']:50} {figures}")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    checkpoints.write(RESULTS, json.dumps({**stored, device: entry}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
