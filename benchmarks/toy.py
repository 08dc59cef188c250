"""Train one architecture on the two moons with flowlib and four other flow libraries, side by side.

    python benchmarks/toy.py [--steps 2000] [--compile]   speed: steps per second, and the test NLL
    python benchmarks/toy.py --gap                        seconds until the gap to the truth closes

Eight affine couplings, two hidden layers of 64, batches of 512 fresh points, fused Adam, one
thread, float32; the same plain loop for all. The libraries take turns, 50 steps each, so that
noise of the machine falls on all alike. Speed is the median over the turns, at a constant rate of
1e-3. With --gap the rate rises to 5e-3 and falls along a cosine over 4,000 steps, and after each
turn the gap E[log p_true - log p_model] is taken over 20,000 fresh points, off the clock.
Prints a table and writes it, with hardware and date, to benchmarks/results/toy.json.
"""

import argparse
import datetime
import json
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from flowlib import Flow, checkpoints, data, masks
from flowlib.bijections import Chain
from flowlib.coupling import AffineCoupling
from flowlib.flow import standard_normal_log_prob
from flowlib.networks import MLP
from flowlib.training import cosine

OUTPUT = Path(__file__).parent / "results" / "toy.json"
DEPTH, HIDDEN, BATCH, TURN = 8, 64, 512, 50
GAPS = (0.05, 0.03, 0.02)  # nats


class Network(nn.Sequential):
    """The coupling network of every library that takes one; the context argument is nflows'."""

    def __init__(self, n_in, n_out):
        super().__init__(
            nn.Linear(n_in, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, n_out),
        )

    def forward(self, x, context=None):
        return super().forward(x)


def flowlib():
    chain = Chain(
        *[
            AffineCoupling(masks.alternating(2, flip=i % 2 == 1), MLP(1, 2, (HIDDEN, HIDDEN)))
            for i in range(DEPTH)
        ]
    )
    flow = Flow(chain, shape=(2,))
    return flow, lambda x: log_normal(*flow(x))


def nflows():
    from nflows import distributions, flows, transforms

    # In release 0.14 the scale is sigmoid(.) + 0.001: it can shrink but not stretch.
    layers = [
        transforms.AffineCouplingTransform(torch.tensor([i % 2, 1 - i % 2]), Network)
        for i in range(DEPTH)
    ]
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([2]))
    return flow, flow.log_prob


def normflows():
    import normflows as nf

    layers = []
    for _ in range(DEPTH):
        layers += [
            nf.flows.AffineCouplingBlock(nf.nets.MLP([1, HIDDEN, HIDDEN, 2], init_zeros=True)),
            nf.flows.Permute(2, mode="swap"),
        ]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), layers)
    return flow, flow.log_prob


def zuko():
    import zuko

    # zuko's NICE has affine couplings
    flow = zuko.flows.NICE(2, transforms=DEPTH, hidden_features=(HIDDEN, HIDDEN))
    return flow, lambda x: flow().log_prob(x)


def FrEIA():
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AffineCouplingOneSided, PermuteRandom

    flow = SequenceINN(2)
    for _ in range(DEPTH):
        flow.append(AffineCouplingOneSided, subnet_constructor=Network)
        flow.append(PermuteRandom)
    return flow, lambda x: log_normal(*flow(x))


def log_normal(z, log_det):
    return standard_normal_log_prob(z) + log_det


class Run:
    """One library's model, optimiser and stopwatch."""

    def __init__(self, make, lr, betas=(0.9, 0.999), compiled=False):
        torch.manual_seed(0)
        self.name, (self.model, log_prob) = make.__name__, make()
        self.log_prob = torch.compile(log_prob) if compiled else log_prob
        self.lr = lr
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, betas=betas, fused=True)
        self.rates, self.gaps = [], []  # steps per second of each turn; (seconds of training, gap)

    def turn(self, batches, factor=1.0):
        self.optimizer.param_groups[0]["lr"] = factor * self.lr
        start = time.perf_counter()
        for x in batches:
            loss = -self.log_prob(x).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.rates.append(len(batches) / (time.perf_counter() - start))

    @torch.no_grad()
    def mean_log_prob(self, x):
        return self.log_prob(x).double().mean().item()

    def row(self):
        return {
            "library": self.name,
            "version": version(self.name),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def speed(moons, steps, compiled):
    """Steps per second of every library, and its test NLL."""
    runs = [Run(make, 1e-3, compiled=compiled) for make in LIBRARIES]
    for i in tqdm(range(steps // TURN), unit="turn"):
        batches = moons.sample(TURN * BATCH, seed=i).split(BATCH)
        for run in runs[i % 5 :] + runs[: i % 5]:
            run.turn(batches)
    test = moons.sample(20_000, seed=10_000)
    return [
        run.row()
        | {
            "steps_per_second": round(statistics.median(run.rates[1:]), 1),
            "fastest_turn": round(max(run.rates), 1),
            "test_nll_nats": round(-run.mean_log_prob(test), 4),
        }
        for run in runs
    ]


def time_to_gap(moons, steps):
    """Seconds of training until every library first comes within each of GAPS, and its last gap."""
    runs = [Run(make, 5e-3, betas=(0.9, 0.99)) for make in LIBRARIES]
    test = moons.sample(20_000, seed=10_000)
    truth = moons.log_prob(test).double().mean().item()
    for i in tqdm(range(steps // TURN), unit="turn"):
        batches = moons.sample(TURN * BATCH, seed=i).split(BATCH)
        for run in runs[i % 5 :] + runs[: i % 5]:
            run.turn(batches, cosine(i * TURN, steps))
            seconds = sum(TURN / rate for rate in run.rates)
            run.gaps.append((seconds, truth - run.mean_log_prob(test)))
    reached = lambda run, gap: next((s for s, g in run.gaps if g <= gap), None)  # noqa: E731
    rounded = lambda seconds: None if seconds is None else round(seconds, 1)  # noqa: E731
    return [
        run.row()
        | {f"seconds_to_{gap}": rounded(reached(run, gap)) for gap in GAPS}
        | {"seconds": rounded(run.gaps[-1][0]), "last_gap_nats": round(run.gaps[-1][1], 4)}
        for run in runs
    ]


def show(rows):
    """A Markdown table of rows."""
    columns = [name for name in rows[0] if name not in ("library", "version")]
    print("\n| library | " + " | ".join(name.replace("_", " ") for name in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row in rows:
        cells = ["never" if row[name] is None else f"{row[name]:,}" for name in columns]
        print(f"| {row['library']} {row['version']} | " + " | ".join(cells) + " |")


LIBRARIES = (flowlib, nflows, normflows, zuko, FrEIA)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="2,000 for the speed, 4,000 for the gap")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--gap", action="store_true", help="seconds until the gap is closed")
    mode.add_argument("--compile", action="store_true", help="torch.compile every log_prob")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")

    moons = data.TwoMoons(noise=0.05)
    steps = args.steps or (4_000 if args.gap else 2_000)
    rows = time_to_gap(moons, steps) if args.gap else speed(moons, steps, args.compile)
    show(rows)
    if not args.gap:
        ratio = rows[0]["steps_per_second"] / max(row["steps_per_second"] for row in rows[1:])
        print(f"\nflowlib against the best peer: {ratio:.2f} times the steps per second")

    stored = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    stored["gap" if args.gap else "compiled" if args.compile else "eager"] = {
        "steps": steps,
        "seed": 0,
        "hardware": checkpoints.hardware(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "entropy_nats": round(moons.entropy, 4),
        "rows": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
