"""What each ingredient of Real NVP for images contributes: one run and one change per row.

python benchmarks/ablations.py    run what is missing; benchmarks/results/ablations.json

The model is a small `realnvp_image` of procedural faces, 32 x 32; a row changes one thing in it,
and all rows share seed, data order and noise. The faces held out are the last 256 for training;
those for testing are not looked at. A row that diverges is a result, and is stored as one. Every
row is also trained with ten times the learning rate, since stability is what most ingredients are
there for.
"""

import datetime
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from flowlib import checkpoints, data, losses, models, training
from flowlib.bijections import Chain, SoftLog
from flowlib.coupling import AffineCoupling

RESULTS = Path(__file__).with_name("results") / "ablations.json"
MODEL = {"shape": (3, 32, 32), "scales": 2, "width": 16, "blocks": 1}
PROTOCOL = {
    "steps": 300,
    "batch_size": 32,
    "clip": 500.0,
    "flip": True,
    "precision": "auto",
    "seed": 0,
}
RATES, EVERY, HELD_OUT = (2e-3, 2e-2), 50, 256


class Unbounded(AffineCoupling):
    """An affine coupling that takes the log-scale as it comes out of the network."""

    def shift_and_log_scale(self, kept, context=None):
        return self.run_network(kept, context).chunk(2, dim=1)


def without_weight_norm(flow):
    for module in flow.modules():
        if is_parametrized(module, "weight"):
            # a last layer of zeros stays one
            remove_parametrizations(module, "weight", leave_parametrized=True)


def without_network_batch_norm(flow):
    for module in list(flow.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.ReLU):
                child.inplace = False  # it would overwrite what the skip connection still needs


def fixed_rescale(flow):
    for module in flow.modules():
        if isinstance(module, AffineCoupling):
            module.rescale.requires_grad_(False)  # at 1, where it starts


def unbounded(flow):
    fixed_rescale(flow)
    for module in flow.modules():
        if isinstance(module, AffineCoupling):
            module.__class__ = Unbounded


def soft_log(tau):
    def change(flow):
        dequantize, logit, scales = flow.bijection
        flow.bijection = Chain(dequantize, logit, SoftLog(tau), scales)

    return change


ROWS = [  # name, what changes, arguments of realnvp_image, a function that operates on the flow
    ("all", "nothing: all ingredients", {}, None),
    ("flow_bn", "no batch norm between couplings", {"batch_norm": False}, None),
    ("network_bn", "no batch norm in the networks", {}, without_network_batch_norm),
    ("no_bn", "no batch norm at all", {"batch_norm": False}, without_network_batch_norm),
    ("weight_norm", "no weight norm", {}, without_weight_norm),
    ("rescale", "rescale of tanh fixed at 1", {}, fixed_rescale),
    ("unbounded", "no tanh: unbounded log-scales", {}, unbounded),
    ("softlog", "SoftLog with τ = 1 after the logit", {}, soft_log(1.0)),
]


@torch.no_grad()
def bits(flow, images):
    return losses.bits_per_dim(flow.log_prob(images, seed=1), images.shape[1:]).mean().item()


def build(arguments, change):
    """The model of one row, with the seed of all rows."""
    torch.manual_seed(PROTOCOL["seed"])
    flow = models.realnvp_image(**MODEL, **arguments)
    if change:
        change(flow)
    return flow


def run(name, about, arguments, change, lr, train, held_out):
    flow = build(arguments, change)
    parameters = sum(p.numel() for p in flow.parameters() if p.requires_grad)
    error, snapshots = None, PROTOCOL["steps"] // EVERY + 1
    try:
        history = training.fit(flow, train, lr=lr, snapshots=snapshots, progress=False, **PROTOCOL)
    except training.DivergedError as diverged:
        error, history = str(diverged).splitlines()[0], diverged.history
    curve = [bits(snapshot.flow, held_out) for snapshot in history.snapshots]
    loss = [
        losses.bits_per_dim(torch.tensor(-nats), MODEL["shape"]).item() for nats in history.loss
    ]
    last = loss[-EVERY:] if not error else []
    row = {
        "name": name,
        "change": about,
        "lr": lr,
        "parameters": parameters,
        "diverged": error,
        "steps_done": len(loss),
        "validation_bits_per_dim": None if error else clean(curve[-1]),
        "train_bits_per_dim": clean(sum(last) / len(last)) if last else None,
        "seconds": round(history.seconds, 1),
        "steps": [snapshot.step for snapshot in history.snapshots],
        "curve": [clean(value) for value in curve],
        "loss": [
            clean(sum(loss[i : i + 10]) / len(loss[i : i + 10])) for i in range(0, len(loss), 10)
        ],
    }
    print(
        f"{about:36} lr {lr:<6} {row['validation_bits_per_dim']} held out  "
        f"{row['seconds']:.0f} s  {error or ''}",
        flush=True,
    )
    return row


def clean(value):
    """Rounded; None if JSON has no word for it."""
    return round(value, 4) if abs(value) < 1e9 else None


def main():
    train = data.load("faces", size=32).train
    train, held_out = train[:-HELD_OUT], train[-HELD_OUT:]
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {(row["name"], row["lr"]): row for row in stored["rows"]}
    for lr in RATES:
        for name, *rest in ROWS:
            if (name, lr) not in done:
                done[name, lr] = run(name, *rest, lr, train, held_out)
                stored = {
                    "model": MODEL,
                    "protocol": PROTOCOL | {"held_out": HELD_OUT},
                    "hardware": checkpoints.hardware(),
                    "date": datetime.date.today().isoformat(),
                    "rows": [
                        done[name, lr] for lr in RATES for name, *_ in ROWS if (name, lr) in done
                    ],
                }
                checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
