"""Train one architecture on the two moons with flowlib and four other flow libraries, side by side.

    python benchmarks/toy.py [--steps 2000] [--compile]

Eight affine couplings, two hidden layers of 64, batches of 512 fresh points, Adam at 1e-3, one thread, float32; the
same plain loop and optimiser for all. The libraries take turns, 50 steps each, so that noise of the machine falls on
all alike; the speed is the median over the turns. Test NLL: mean over 20,000 fresh points, in nats.
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

OUTPUT = Path(__file__).parent / "results" / "toy.json"
DEPTH, HIDDEN, BATCH, LR, TURN = 8, 64, 512, 1e-3, 50


class Network(nn.Sequential):
    """The coupling network of every library that lets its user bring one; the context argument is nflows'."""

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

    # In release 0.14 the scale is sigmoid(.) + 0.001: it can shrink but not stretch, which its test NLL shows.
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

    flow = zuko.flows.NICE(
        2, transforms=DEPTH, hidden_features=(HIDDEN, HIDDEN)
    )  # zuko's NICE has affine couplings
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

    def __init__(self, make, compiled):
        torch.manual_seed(0)
        self.name, (self.model, log_prob) = make.__name__, make()
        self.log_prob = torch.compile(log_prob) if compiled else log_prob
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, fused=True)
        self.rates = []

    def turn(self, batches):
        start = time.perf_counter()
        for x in batches:
            loss = -self.log_prob(x).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.rates.append(len(batches) / (time.perf_counter() - start))

    def result(self, test):
        with torch.no_grad():
            nll = -self.log_prob(test).double().mean().item()
        return {
            "library": self.name,
            "version": version("flowlib" if self.name == "flowlib" else self.name),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps_per_second": round(statistics.median(self.rates[1:]), 1),
            "fastest_turn": round(max(self.rates), 1),
            "test_nll_nats": round(nll, 4),
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile every library's log_prob (needs a C++ compiler)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")

    moons = data.TwoMoons(noise=0.05)
    runs = [Run(make, args.compile) for make in (flowlib, nflows, normflows, zuko, FrEIA)]
    for i in tqdm(range(args.steps // TURN), unit="turn"):
        batches = moons.sample(TURN * BATCH, seed=i).split(BATCH)
        for run in runs[i % 5 :] + runs[: i % 5]:
            run.turn(batches)
    rows = [run.result(moons.sample(20_000, seed=10_000)) for run in runs]

    best_peer = max(row["steps_per_second"] for row in rows[1:])
    print(
        "\n| library | parameters | steps/s (median) | fastest turn | test NLL (nats) |\n|---|---|---|---|---|"
    )
    for row in rows:
        name = f"{row['library']} {row['version']}"
        print(
            f"| {name} | {row['parameters']:,} | {row['steps_per_second']} | {row['fastest_turn']} | {row['test_nll_nats']} |"
        )
    print(
        f"\nflowlib against the best peer: {rows[0]['steps_per_second'] / best_peer:.2f} times the steps per second"
    )

    stored = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    stored["compiled" if args.compile else "eager"] = {
        "steps": args.steps,
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
