"""Masks and scales on MNIST: what splits the image, at about equal parameters and equal steps.

python benchmarks/masks.py           run what is missing, and store benchmarks/results/masks.json
python benchmarks/masks.py halves    only this row, even if it is there

Every flow is trained on the first 55,000 training images and judged on the 1,000 that follow, with
one draw of the noise each; the test images are not looked at. Rows that lie close together are
trained with a second seed, for the spread. Seconds are processor time on one thread. Samples of
every row go to notebooks/media.
"""

import argparse
import datetime
import functools
import json
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.utils import save_image

from flowlib import Flow, checkpoints, data, losses, masks, models, training
from flowlib.bijections import Bijection, Chain, Flatten, Inverse, Logit, Squeeze, sum_dims
from flowlib.coupling import AffineCoupling
from flowlib.dequantize import Dequantize
from flowlib.flow import MultiScale
from flowlib.networks import ConvResNet
from flowlib.norms import ActNorm, BatchNorm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "masks.json"
SHAPE = C, H, W = (1, 28, 28)
WIDTH, BLOCKS, COUPLINGS = 16, 1, 6
PROTOCOL = {
    "steps": 400,
    "batch_size": 64,
    "lr": 2e-3,
    "clip": 500.0,
    "precision": "auto",
    "seed": 0,
}
HELD_OUT, JUDGED, SNAPSHOTS = 5_000, 1_000, 9
MORE_SEEDS = [1]
CLOSE = ["checkerboard", "alternating", "both", "channel", "random"]
CLOSE += ["multi", "single", "variational"]


def coupling(C, mask):
    """A convolutional affine coupling; the mask is a board (H, W) or a row of the C channels."""
    board = mask.dim() == 2
    n_in, n_out = (C + 1, 2 * C) if board else (int(mask.sum()), 2 * int((~mask).sum()))
    return AffineCoupling(mask, ConvResNet(n_in, n_out, WIDTH, BLOCKS, board))


def normalised(C, masks):
    """One coupling per mask, each followed by batch norm on what it changed, as in the paper."""
    return [layer for mask in masks for layer in (coupling(C, mask), BatchNorm(C, mask))]


class LearnedMaskCoupling(Bijection):
    """An affine coupling that learns which half passes through.

    The mask is hard: the half with the largest scores passes. Gradients reach the scores straight
    through it (Bengio et al., arXiv 1308.3432): p + (hard - p).detach() with p = sigmoid(scores),
    whose value is always 0 or 1. With that mask m:

    forward   z = x exp(s) + t,  s = (1 - m) rescale tanh(raw(m x)),  t = (1 - m) shift(m x)
    log_det   sum s
    inverse   x = (z - t) exp(-s), where s and t see m z = m x
    log_det   -sum s

    `scores` (D,) or (H, W) give the mask its start; `network` returns shift and raw log-scale of
    everything: (B, 2 D) from (B, D), or (B, 2 C, H, W) from the masked image with the mask as one
    more channel, (B, C + 1, H, W).
    """

    def __init__(self, scores, network):
        super().__init__()
        self.scores = nn.Parameter(scores.clone())
        self.network = network
        self.rescale = nn.Parameter(torch.ones(1))

    def mask(self):
        """The mask as zeros and ones, through which gradients reach the scores."""
        p = torch.sigmoid(self.scores)
        passing = self.scores.flatten().argsort(descending=True)[: self.scores.numel() // 2]
        hard = torch.zeros_like(p).view(-1).index_fill(0, passing, 1.0).view_as(p)
        return p + (hard - p).detach()

    def forward(self, x, context=None):
        shift, log_scale = self._shift_and_log_scale(x, context)
        return x * log_scale.exp() + shift, sum_dims(log_scale)

    def inverse(self, z, context=None):
        shift, log_scale = self._shift_and_log_scale(z, context)
        return (z - shift) * (-log_scale).exp(), -sum_dims(log_scale)

    def _shift_and_log_scale(self, x, context):
        mask = self.mask()
        seen = mask * x
        if x.dim() == 4:
            seen = torch.cat([seen, mask.expand(len(x), 1, -1, -1)], dim=1)
        shift, raw = self.network(seen, context).to(x.dtype).chunk(2, dim=1)
        return (1 - mask) * shift, (1 - mask) * self.rescale * torch.tanh(raw)


def learned(i, seed=0):
    """A coupling of random mask (odd i: its complement); a narrower network pays for 784 scores."""
    scores = 0.1 * torch.randn(H, W, generator=torch.Generator().manual_seed(seed + i // 2))
    return LearnedMaskCoupling(
        scores * (-1) ** i, ConvResNet(C + 1, 2 * C, WIDTH - 1, BLOCKS, checkerboard=True)
    )


def flat(*layers):
    """A flow of one scale: preprocessing, one ActNorm, the layers."""
    *_, height, width = Chain(*layers)(torch.zeros(1, *SHAPE))[0].shape
    return Flow(
        Chain(
            Dequantize(),
            Logit(),
            ActNorm(C),
            *layers,
            Flatten((C * H * W // (height * width), height, width)),
        ),
        SHAPE,
    )


def boards(mask):
    """Couplings with `mask(i)`, a vector of pixels, in layer i."""
    return flat(*[coupling(C, mask(i).view(H, W)) for i in range(COUPLINGS)])


def checkerboards(C, H, W, n):
    return [masks.checkerboard(H, W, flip=i % 2 == 1) for i in range(n)]


def halves_of_channels(C, n):
    return [masks.channels(C, flip=i % 2 == 1) for i in range(n)]


def single_scale():
    """The couplings of the multi-scale flow, with nothing factored out."""
    layers = [
        *normalised(C, checkerboards(C, H, W, 3)),
        Squeeze(),
        *normalised(4 * C, halves_of_channels(4 * C, 3)),
        Inverse(Squeeze()),
    ]
    return Flow(
        Chain(
            Dequantize(),
            Logit(),
            *layers,
            *normalised(C, checkerboards(C, H, W, 4)),
            Flatten(SHAPE),
        ),
        SHAPE,
    )


def squeeze_first():
    """Three scales of eight couplings; the squeeze comes first, so none sees full resolution."""
    scales, c, h, w = [], C, H, W
    for k in range(3):
        layers = []
        if k < 2:
            layers, c, h, w = [Squeeze()], 4 * c, h // 2, w // 2
        both = [
            m for pair in zip(checkerboards(c, h, w, 4), halves_of_channels(c, 4)) for m in pair
        ]
        scales.append(Chain(*layers, *normalised(c, both)))
        c = c // 2
    return Flow(Chain(Dequantize(), Logit(), MultiScale(SHAPE, *scales)), SHAPE)


D, odd = C * H * W, lambda i: i % 2 == 1
multi_scale = functools.partial(
    models.realnvp_image, SHAPE, scales=2, width=WIDTH, blocks=BLOCKS, doubling=False
)
ROWS = {  # name: what is compared, what it is, how it is built
    "checkerboard": (
        "masks",
        "checkerboards",
        lambda: boards(lambda i: masks.checkerboard(H, W, odd(i))),
    ),
    "both": (
        "masks",
        "three checkerboards, squeeze, three splits of channels",
        lambda: flat(
            *[coupling(C, m) for m in checkerboards(C, H, W, 3)],
            Squeeze(),
            *[coupling(4 * C, m) for m in halves_of_channels(4 * C, 3)],
        ),
    ),
    "channel": (
        "masks",
        "squeeze, then halves of the channels",
        lambda: flat(Squeeze(), *[coupling(4 * C, m) for m in halves_of_channels(4 * C, 6)]),
    ),
    "halves": ("masks", "upper and lower half", lambda: boards(lambda i: masks.halves(D, odd(i)))),
    "no flip": (
        "masks",
        "checkerboard, the same in every layer",
        lambda: boards(lambda i: masks.checkerboard(H, W)),
    ),
    "multi": ("scales", "two scales, as in the paper", multi_scale),
    "variational": (
        "scales",
        "the same, with learned noise",
        functools.partial(multi_scale, dequant_couplings=2),
    ),
    "single": ("scales", "the same couplings, nothing factored out", single_scale),
    "squeeze_first": (
        "scales",
        "three scales of eight couplings, each begun with the squeeze",
        squeeze_first,
    ),
    "alternating": (
        "masks",
        "every second column",
        lambda: boards(lambda i: masks.alternating(D, odd(i))),
    ),
    "random": (
        "masks",
        "random pixels and their complement",
        lambda: boards(lambda i: masks.random(D, seed=i // 2) ^ odd(i)),
    ),
    "learned": (
        "masks",
        "learned, from a random start",
        lambda: flat(*[learned(i) for i in range(COUPLINGS)]),
    ),
}


@torch.no_grad()
def judge(flow, images, seed=1):
    """Bits/dim of every image, one draw of the noise each."""
    rng = torch.Generator().manual_seed(seed)
    return torch.cat(
        [losses.bits_per_dim(flow.log_prob(piece, seed=rng), SHAPE) for piece in images.split(250)]
    )


def run(name, about, what, build, images):
    torch.manual_seed(PROTOCOL["seed"])
    flow = build()
    start = time.process_time()
    history = training.fit(flow, images.train[:-HELD_OUT], **PROTOCOL, snapshots=SNAPSHOTS)
    per_step = (time.process_time() - start) / PROTOCOL["steps"]
    judged = images.train[-HELD_OUT:][:JUDGED]
    curve = [
        [snapshot.step, round(judge(snapshot.flow, judged[:250]).mean().item(), 4)]
        for snapshot in history.snapshots
    ]
    bits = judge(flow, judged)
    start = time.process_time()
    samples = flow.sample(64, seed=0)
    per_sample = (time.process_time() - start) / 64
    save_image(
        samples[:12] / 255,
        ROOT / "notebooks" / "media" / f"06_{name.replace(' ', '_')}.png",
        nrow=12,
        padding=1,
        pad_value=0.5,
    )
    row = {
        "name": name,
        "compared": about,
        "what": what,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "bits_per_dim": round(bits.mean().item(), 4),
        "standard_error": round((bits.std() / len(bits) ** 0.5).item(), 4),
        "cpu_seconds_per_step": round(per_step, 4),
        "cpu_seconds_per_sample": round(per_sample, 5),
        "curve": curve,
    }
    couplings = [layer for layer in flow.bijection if isinstance(layer, LearnedMaskCoupling)]
    if couplings:
        row["masks"] = [
            ["".join("01"[int(m)] for m in line) for line in layer.mask().round()]
            for layer in couplings
        ]
    print(
        f"{name:14} {row['parameters']:8,} parameters  {row['bits_per_dim']:.3f} bits/dim  "
        f"{per_step:.3f} s per step",
        flush=True,
    )
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ROWS)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = data.load("mnist")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {row["name"]: row for row in stored["rows"]}
    for name in args.names or [name for name in ROWS if name not in done]:
        done[name] = run(name, *ROWS[name], images)
        stored |= {"hardware": checkpoints.hardware(), "date": datetime.date.today().isoformat()}
        store(done, {key: stored[key] for key in ("hardware", "date")})
    for seed in MORE_SEEDS:
        for name in CLOSE:
            others = done[name].setdefault("other_seeds", {})
            if str(seed) not in others:
                torch.manual_seed(seed)
                flow = ROWS[name][2]()
                training.fit(flow, images.train[:-HELD_OUT], **PROTOCOL | {"seed": seed})
                bits = judge(flow, images.train[-HELD_OUT:][:JUDGED]).mean().item()
                others[str(seed)] = round(bits, 4)
                print(f"{name}, seed {seed}: {bits:.3f} bits/dim", flush=True)
                store(done, {key: stored[key] for key in ("hardware", "date")})


def store(done, measured):
    """Write all rows; `measured` holds the hardware and the date of the seconds in them."""
    stored = {
        "protocol": {
            **PROTOCOL,
            "width": WIDTH,
            "blocks": BLOCKS,
            "couplings": COUPLINGS,
            "held_out": HELD_OUT,
            "judged": JUDGED,
        },
        **measured,
        "rows": [done[name] for name in ROWS if name in done],
    }
    checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
