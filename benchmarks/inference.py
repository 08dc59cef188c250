"""Flows fitted to unnormalised targets by the reverse KL divergence: how well, and how stably.

python benchmarks/inference.py    run what is missing; benchmarks/results/inference.json

`energies`: the four energy functions of Rezende and Mohamed (arXiv 1505.05770, table 1), with soft
walls where they have no end of their own, and a funnel, in the plane. Normalisers by quadrature.
`warm` runs begin with 0.1 log p~ and reach log p~ after half of the steps.
`stability`: two targets in 100 dimensions whose normaliser is known, the posterior of a linear
regression and 50 pairs of a horseshoe prior; bounds of the log-scale and Inverse(SoftLog), with
last layers that start at zero or as torch starts them. Seconds are processor time on one thread.
"""

import datetime
import json
import math
import time
from pathlib import Path

import torch

from flowlib import Flow, checkpoints, losses, masks
from flowlib.bijections import Chain, Diagonal, Inverse, SoftLog
from flowlib.coupling import AffineCoupling
from flowlib.flow import standard_normal_log_prob
from flowlib.networks import MLP

RESULTS = Path(__file__).resolve().parent / "results" / "inference.json"
PLANE = {
    "depth": 8,
    "steps": 1_500,
    "n": 256,
    "lr": 2e-3,
    "clip": 10.0,
    "evaluated": 20_000,
    "seeds": [0, 1, 2],
}
WIDE = {
    "D": 100,
    "hidden": 64,
    "steps": 400,
    "n": 32,
    "lr": 1e-3,
    "tau": 100.0,
    "evaluated": 2_000,
    "seeds": [0, 1, 2],
}
DEPTH = {"regression": 32, "horseshoe": 16}


def bump(x, centre, width):
    """The exponent of a Gaussian bump."""
    return -0.5 * ((x - centre) / width) ** 2


def wall(x):
    """0 for |x1| < 4, then a steep parabola."""
    return bump((x[:, 0].abs() - 4).clamp(min=0), 0, 0.1)


def wave(x):
    return torch.sin(math.pi * x[:, 0] / 2)


def two_waves(x, offset, width):
    y = x[:, 1] - wave(x)
    return torch.logaddexp(bump(y, 0, width), bump(y + offset, 0, 0.35)) + wall(x)


def funnel(x):
    v, y = x.unbind(1)
    return bump(v, 0, 3) + bump(y, 0, (v / 2).exp()) - v / 2 - math.log(3) - math.log(2 * math.pi)


ENERGIES = {
    "U1": lambda x: (
        torch.logaddexp(bump(x[:, 0], 2, 0.6), bump(x[:, 0], -2, 0.6)) + bump(x.norm(dim=1), 2, 0.4)
    ),
    "U2": lambda x: bump(x[:, 1], wave(x), 0.4) + wall(x),
    "U3": lambda x: two_waves(x, 3 * bump(x[:, 0], 1, 0.6).exp(), 0.35),
    "U4": lambda x: two_waves(x, 3 * torch.sigmoid((x[:, 0] - 1) / 0.3), 0.4),
    "funnel": funnel,
}


def quadrature(log_target, box=6.0, cells=2_000):
    """log of the integral over a square, by the midpoint rule in float64."""
    axis = (2 * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 1) * box
    rows = [log_target(torch.stack([axis, y.expand_as(axis)], 1)).logsumexp(0) for y in axis]
    return torch.stack(rows).logsumexp(0).item() + 2 * math.log(2 * box / cells)


def fit_reverse(flow, log_target, steps, n, lr, clip=None, warm=False):
    """Minimise the reverse KL divergence; return the losses, up to the first that is not finite."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    curve = []
    for step in range(steps):
        power = min(1.0, 0.1 + 1.8 * step / steps) if warm else 1.0
        loss = losses.reverse_kl(flow, lambda x, power=power: power * log_target(x), n)
        if not loss.isfinite():
            break
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(flow.parameters(), clip)
        optimizer.step()
        schedule.step()
    return curve


@torch.no_grad()
def weigh(flow, log_target, n, seed=99):
    """Samples and their log-weights, log target - log q."""
    z = flow.draw_latents(n, torch.Generator().manual_seed(seed))
    x, log_det = flow.inverse(z)
    return x, log_target(x) - (standard_normal_log_prob(z) - log_det)


def number(value, digits=4):
    """A figure for the file; None where it is not finite."""
    value = float(value)
    return float(f"{value:.{digits + 1}g}") if math.isfinite(value) else None


def run_plane(name, warm, seed):
    torch.manual_seed(seed)
    layers = [
        AffineCoupling(masks.alternating(2, flip=i % 2 == 1), MLP(1, 2))
        for i in range(PLANE["depth"])
    ]
    flow, start = Flow(Chain(*layers), (2,)), time.process_time()
    fit_reverse(
        flow, ENERGIES[name], **{key: PLANE[key] for key in ("steps", "n", "lr", "clip")}, warm=warm
    )
    seconds = time.process_time() - start
    x, log_w = weigh(flow, ENERGIES[name], PLANE["evaluated"])
    ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().item() / len(log_w)
    row = {
        "target": name,
        "warm": warm,
        "seed": seed,
        "reverse_kl": round(-log_w.mean().item(), 5),
        "log_z": round(log_w.logsumexp(0).item() - math.log(len(log_w)), 5),
        "standard_error": round(math.sqrt((1 / ess - 1) / len(log_w)), 5),
        "ess": round(ess, 4),
        "cpu_seconds": round(seconds, 1),
    }
    if seed == 0:
        row["samples"] = [[round(value, 2) for value in point] for point in x[:500].tolist()]
    return row


def regression(D=WIDE["D"], rows=150, noise=2.0):
    """The Gaussian posterior of a linear regression: correlated features, standard normal prior."""
    rng = torch.Generator().manual_seed(1)
    features = (
        torch.randn(rows, D, generator=rng) * 0.5**0.5
        + torch.randn(rows, 1, generator=rng) * 0.5**0.5
    )
    y = features @ torch.randn(D, generator=rng) + noise * torch.randn(rows, generator=rng)
    precision = features.T @ features / noise**2 + torch.eye(D)
    mean = torch.linalg.solve(precision, features.T @ y / noise**2)
    root = torch.linalg.cholesky(precision)
    return lambda x: (
        -0.5 * ((x - mean) @ root).square().sum(1)
        + root.diagonal().log().sum()
        - D / 2 * math.log(2 * math.pi)
    )


def horseshoe(x, scale=10.0):
    """Pairs (log scale, coefficient): a half-Cauchy scale, and a coefficient normal given it."""
    u, b = x[:, ::2] - math.log(scale), x[:, 1::2] / scale
    each = (
        math.log(2 / math.pi)
        - torch.logaddexp(u, -u)
        + bump(b, 0, u.exp())
        - u
        - math.log(scale * math.sqrt(2 * math.pi))
    )
    return each.sum(1)


def soft(s, a):
    return 2 / math.pi * a * torch.atan(s / a)


CLAMPS = {  # of the log-scale in the direction data -> latent, whose negative makes samples grow
    "none": lambda s: s,
    "asymmetric": lambda s: torch.where(s > 0, soft(s, 2.0), soft(s, 0.1)),
    "reversed": lambda s: torch.where(s > 0, soft(s, 0.1), soft(s, 2.0)),
}


class Clamped(AffineCoupling):
    """An affine coupling whose log-scale is bounded by `clamp` in place of rescale tanh."""

    def __init__(self, mask, network, clamp):
        super().__init__(mask, network)
        self.rescale, self.clamp = None, clamp

    def shift_and_log_scale(self, kept, context=None):
        shift, raw = self.run_network(kept, context).chunk(2, dim=1)
        return shift, self.clamp(raw)


def wide_flow(depth, clamp, softlog, start):
    D, hidden = WIDE["D"], (WIDE["hidden"],) * 2
    layers = [*([Inverse(SoftLog(WIDE["tau"]))] if softlog else []), Diagonal(D)]
    for i in range(depth):
        mask, network = masks.alternating(D, flip=i % 2 == 1), MLP(D // 2, D, hidden)
        if start == "random":
            network[-1].reset_parameters()
        layers.append(
            AffineCoupling(mask, network)
            if clamp == "tanh"
            else Clamped(mask, network, CLAMPS[clamp])
        )
    return Flow(Chain(*layers), (D,))


def run_wide(target, clamp, softlog, start, seed):
    torch.manual_seed(seed)
    flow, log_target, largest = (
        wide_flow(DEPTH[target], clamp, softlog, start),
        WIDE_TARGETS[target],
        [],
    )

    def watched(x):
        largest.append(x.detach().abs().max().item())
        return log_target(x)

    begun = time.process_time()
    curve = fit_reverse(flow, watched, WIDE["steps"], WIDE["n"], WIDE["lr"])
    seconds = time.process_time() - begun
    lost = len(curve) < WIDE["steps"]
    _, log_w = weigh(flow, log_target, WIDE["evaluated"])
    row = {
        "target": target,
        "clamp": clamp,
        "softlog": softlog,
        "start": start,
        "seed": seed,
        "steps": len(curve),
        "first_loss": number(curve[0]) if curve else None,
        "kl": None if lost else number(-log_w.mean()),
        "standard_error": None if lost else number(log_w.std() / len(log_w) ** 0.5, 1),
        "largest": number(max(largest)) if all(map(math.isfinite, largest)) else None,
        "largest_per_10": [number(max(largest[i : i + 10]), 2) for i in range(0, len(largest), 10)],
        "loss_per_10": [
            number(sum(curve[i : i + 10]) / len(curve[i : i + 10]), 3)
            for i in range(0, len(curve), 10)
        ],
        "cpu_seconds": round(seconds, 1),
    }
    print({key: value for key, value in row.items() if "per_10" not in key}, flush=True)
    return row


WIDE_TARGETS = {"regression": regression(), "horseshoe": horseshoe}
WIDE_ROWS = [
    *[
        ("regression", clamp, softlog, "random")
        for clamp in ("none", "tanh", "reversed", "asymmetric")
        for softlog in (False, True)
    ],
    ("regression", "tanh", False, "zero"),
    ("regression", "asymmetric", True, "zero"),
    *[
        ("horseshoe", clamp, softlog, "zero")
        for clamp in ("none", "tanh")
        for softlog in (False, True)
    ],
    ("horseshoe", "asymmetric", True, "zero"),
]


def key(part, row):
    """What a row is a run of."""
    names = {
        "energies": ("target", "warm", "seed"),
        "stability": ("target", "clamp", "softlog", "start", "seed"),
    }
    return (part, *(row[name] for name in names[part]))


def main():
    torch.set_num_threads(1)
    stored = (
        json.loads(RESULTS.read_text())
        if RESULTS.exists()
        else {"log_z": {}, "energies": [], "stability": []}
    )
    stored["log_z"] |= {
        name: round(quadrature(f), 6)
        for name, f in ENERGIES.items()
        if name not in stored["log_z"] and name != "funnel"
    }
    stored["log_z"]["funnel"] = 0.0
    plane = [(name, False) for name in ENERGIES] + [("U4", True)]
    jobs = {("energies", *row, seed): run_plane for row in plane for seed in PLANE["seeds"]}
    jobs |= {("stability", *row, seed): run_wide for row in WIDE_ROWS for seed in WIDE["seeds"]}
    order, done = (
        list(jobs),
        {key(part, row) for part in ("energies", "stability") for row in stored[part]},
    )
    for job, run in jobs.items():
        if job not in done:
            part = job[0]
            stored[part].append(run(*job[1:]))
            stored[part].sort(key=lambda row, part=part: order.index(key(part, row)))
            stored |= {"protocol": {"energies": PLANE, "stability": {**WIDE, "depth": DEPTH}}}
            stored |= {
                "hardware": checkpoints.hardware(),
                "date": datetime.date.today().isoformat(),
            }
            checkpoints.write(RESULTS, json.dumps(stored, allow_nan=False).encode() + b"\n")


if __name__ == "__main__":
    main()
