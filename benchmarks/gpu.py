"""What a GPU is for: whether captured steps are right there, how fast they are, and flows that
take one to train.

python benchmarks/gpu.py check     captured steps against eager ones, a resumed run, devices
python benchmarks/gpu.py warm cifar10 "doubled compiled"
                                   compile what these rows of the bench need, all at once
python benchmarks/gpu.py bench cifar10 "doubled compiled" --seconds 110
                                   images/s of training: eager, as a CUDA graph, with compiled
                                   parts; and which kernels the time goes to. No row begins later
python benchmarks/gpu.py train celeba_32 celeba_32_5bit --seconds 200
                                   train flows within so many seconds, all of them together, for
                                   equally many steps; score them and draw from them

What is printed carries the time of day; what is found lies in $OUT (or runs/gpu) as soon as it is
known. Training is `flowlib.training.fit`, which captures steps by itself. `--tiny` proves every
command on a CPU.
"""

import argparse
import contextlib
import datetime
import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torchvision.utils import make_grid, save_image

from flowlib import checkpoints, data, graphs, models, plotting, recipes, training
from flowlib.bijections import Chain
from flowlib.coupling import AffineCoupling
from flowlib.flow import Flow
from flowlib.masks import alternating

sys.path.insert(0, str(Path(__file__).parent))
from image import peak
from results import forward_flops, write_metrics

OUT = Path(os.environ.get("OUT") or Path(__file__).resolve().parents[1] / "runs" / "gpu")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CIFAR10, DOUBLED, DIGITS, FACES = (
    recipes.RECIPES[name].arguments
    for name in ("cifar10", "cifar10_paper", "mnist_variational", "celeba")
)
ROWS = {  # model, batch, mode
    "cifar10 eager": (CIFAR10, 256, "eager"),
    "cifar10 graph": (CIFAR10, 256, "graph"),
    "cifar10 compiled": (CIFAR10, 256, "compiled"),
    "cifar10 blocks": (CIFAR10, 256, "blocks"),
    "doubled compiled": (DOUBLED, 256, "compiled"),
    "cifar10_64 eager": (CIFAR10, 64, "eager"),
    "cifar10_64 compiled": (CIFAR10, 64, "compiled"),
    "mnist_variational eager": (DIGITS, 64, "eager"),
    "mnist_variational compiled": (DIGITS, 64, "compiled"),
    "doubled eager": (DOUBLED, 256, "eager"),
    "celeba compiled": (FACES, 64, "compiled"),
    "cifar10 channels-last": (CIFAR10, 256, "channels-last"),
}
MODES = {  # what of flowlib.graphs is left out
    "eager": {"captured": lambda update, flow, batch, state: update},
    "graph": {"compiled_networks": lambda flow: contextlib.nullcontext()},
    "blocks": {"PARTS": ("residual",)},
    "compiled": {},
    "channels-last": {},  # compiled, and the weights of convolutions laid out like the images
}
TINY = {"scales": 2, "width": 8, "blocks": 1, "doubling": False}


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def wait():
    if CUDA:
        torch.cuda.synchronize()


def images_like(model, n):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *model["shape"]), dtype=torch.uint8, generator=rng)


def fit(model, images, mode="compiled", start=None, **settings):
    """Train a flow in one of the modes, new or from the weights of another; and its history."""
    changes = MODES[mode]
    torch.manual_seed(0)
    flow = models.realnvp_image(**model)
    if start:
        recipes.start_from(flow, start, "this recipe")
    if mode == "channels-last":
        flow.to(memory_format=torch.channels_last)
    with mock.patch.multiple(graphs, **changes) if changes else contextlib.nullcontext():
        return flow, training.fit(flow, images, seed=0, progress=False, **settings)


def timed_fit(model, images, actions, **settings):
    """`fit`, and when the steps named in `actions` began; what `actions` holds is called then."""
    began, actions = {}, dict(actions)

    class Watched:
        def __init__(self, *given):
            self.batches = make_batches(*given)

        def __call__(self, step):
            if action := actions.pop(step, None):
                wait()
                action()
                began[step] = time.perf_counter()
            return self.batches(step)

        def __getattr__(self, name):
            return getattr(self.batches, name)

    make_batches = training.make_batches
    with mock.patch.object(training, "make_batches", Watched):
        return *fit(model, images, **settings), began


def steps_per_second(model, images, steps, **settings):
    """Of a fit from its step 10 on; and the seconds from its last step to its end."""
    marks = {10: wait, steps - 1: wait}
    *_, began = timed_fit(model, images, marks, steps=steps, **settings)
    wait()
    return (steps - 11) / (began[steps - 1] - began[10]), time.perf_counter() - began[steps - 1]


def asked(row, name):
    """Whether a row of the bench is meant: by its name, or by that of its model."""
    return f"{row} ".startswith(f"{name} ")


def asked_for(args):
    return [row for row in ROWS if not args.names or any(asked(row, name) for name in args.names)]


def settings_of(name, args):
    """The model of a row, images like its own, and the settings of its training."""
    model, batch, mode = ROWS[name]
    model, batch = ({**model, **TINY}, 4) if args.tiny else (model, batch)
    settings = {"batch_size": batch, "clip": 500.0, "lr": 1e-4, "mode": mode}
    return model, images_like(model, 8 * batch), settings


def warm(args):
    """Fill the compiler's cache for the rows asked for, each in a process of its own."""
    names = [name for name in asked_for(args) if ROWS[name][2] == "compiled"]
    if len(names) == 1:
        model, images, settings = settings_of(names[0], args)
        fit(model, images, steps=1, **settings)
        return say(f"warm: {names[0]}")
    flags = ["--tiny"] if args.tiny else []
    commands = [[sys.executable, __file__, "warm", name, *flags] for name in names]
    return max(child.wait() for child in list(map(subprocess.Popen, commands)))


def bench(args):
    """The rows asked for, one after the other, while there is time."""
    end = time.time() + args.seconds
    found = {"hardware": checkpoints.hardware(), "torch": torch.__version__}
    found |= {"date": str(datetime.date.today()), "training": {}}
    for name in asked_for(args):
        if time.time() > end:
            break
        start, (model, images, settings) = time.perf_counter(), settings_of(name, args)
        batch = settings["batch_size"]
        steps = 16 if args.tiny else {"eager": 25, "graph": 50}.get(settings["mode"], 80)
        row = {"batch": batch}
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        try:
            rate, _ = steps_per_second(model, images, steps, **settings)
            row["images_per_second"] = round(rate * batch, 1)
            row["seconds"] = round(time.perf_counter() - start, 1)
            if CUDA:
                row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            flow = models.realnvp_image(**model).to(DEVICE)
            row["parameters"] = sum(p.numel() for p in flow.parameters())
            flops = 3 * forward_flops(flow, images[:1])
            row["tflops"] = round(flops * rate * batch / 1e12, 2)
            if name == args.profile:
                found["kernels"] = kernels(model, images, **settings)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        found["training"][name] = row
        say(f"bench {name}: {row}")
        checkpoints.write(OUT / "bench.json", json.dumps(found, indent=1).encode())
    found["bfloat16_peak"] = peak(DEVICE, torch.bfloat16)
    checkpoints.write(OUT / "bench.json", json.dumps(found, indent=1).encode())
    say(f"peak: {found['bfloat16_peak'] / 1e12:.0f} TFLOP/s")


def kernels(model, images, **settings):
    """What five steps consist of, as profiled: name, calls and milliseconds, the longest first."""
    kinds = list(torch.profiler.supported_activities() - {torch.profiler.ProfilerActivity.XPU})
    profile = torch.profiler.profile(activities=kinds)
    actions = {12: profile.start, 17: profile.stop}
    timed_fit(model, images, actions, steps=18, **settings)
    time_of = "self_device_time_total" if CUDA else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda e: -getattr(e, time_of))
    total = sum(getattr(e, time_of) for e in events)
    say(f"five steps: {total / 1e3:.1f} ms in {sum(e.count for e in events)} calls")
    rows = [(e.key[:120], e.count, round(getattr(e, time_of) / 1e3, 3)) for e in events[:60]]
    for row in rows[:40]:
        print(f"  {row[2]:9.3f} ms {row[1]:6d} x {row[0]}", flush=True)
    return rows


class Reporter:
    """In place of a run's folder: says how far a training is, and keeps the best flow in $OUT."""

    def __init__(self, run, config, resume, main):
        self.name = run

    def begin(self):
        pass

    def read_state(self):
        return None, None

    def write_state(self, tensors, numbers):
        pass

    def record(self, flow, metrics, best, *context):
        say(f"  {self.name} {'best' if best else ''}", json.dumps(metrics))
        if best:
            checkpoints.save(flow, OUT / f"{self.name}.safetensors", results=metrics, half=True)


def train(args):
    """Measure the pace, train for as many steps as the time allows, then score and draw."""
    start, steps = time.time(), args.steps
    for i, name in enumerate(args.names):
        recipe = recipes.RECIPES[name]
        model, settings = dict(recipe.arguments), dict(recipe.training)
        del settings["epochs"]
        if recipe.start:
            settings["start"] = recipe.start
        given = {"batch_size": args.batch, "lr": args.lr, "label_weight": args.label_weight}
        settings |= {key: value for key, value in given.items() if value}
        examples = recipes.load(recipe.data, model, 300 if args.tiny else None, standin=False)
        if args.tiny:
            model |= TINY
            settings |= {"batch_size": 8, "validation": 20, "start": None}
        share = (start + args.seconds - time.time()) / (len(args.names) - i)
        say(f"{name}: {share:.0f} s for all of it")
        if steps is None:
            steps = affordable(model, examples, settings, share, 16 if args.tiny else 100)
        with mock.patch.object(training, "Run", Reporter):
            flow, history = fit(model, examples, steps=steps, run=name, **settings)
        say(f"{name} trained: {history.seconds:.1f} s, {steps / history.seconds:.1f} steps/s")
        judge(name, flow, examples, history, settings)
        say(f"{name} done, {time.time() - start:.0f} s since the start")


def affordable(model, examples, settings, seconds, steps):
    """Steps of a training that, with its evaluations and the scoring, takes so many seconds."""
    start = time.perf_counter()
    once = {**settings, "evaluations": 1}
    rate, look = steps_per_second(model, examples, steps, **once)
    flow = models.realnvp_image(**model).to(DEVICE).eval()
    recipes.score(flow, examples, limit=100)
    wait()
    began, some = time.perf_counter(), min(1_000, len(examples.test))
    recipes.score(flow, examples, limit=some)
    wait()
    scoring = (time.perf_counter() - began) / some * (9 * len(examples.test) + 2_000)
    left = seconds - (time.perf_counter() - start) - settings["evaluations"] * look - scoring - 8
    say(
        f"  {rate:.1f} steps/s, {rate * settings['batch_size']:.0f} images/s; {look:.1f} s for a "
        f"look, {scoring:.0f} s to score; {left:.0f} s to train"
    )
    return max(10, int(rate * left))


def judge(name, flow, examples, history, settings):
    """Score the float16 weights on the test set; write the card and a picture of 36 samples at
    temperatures .7 and 1."""
    path = OUT / f"{name}.safetensors"
    flow.to(DEVICE)
    full = recipes.score(flow, examples, limit=1_000)["bits_per_dim"]
    checkpoints.save(flow, path, seed=0, half=True)
    flow = checkpoints.load(path).to(DEVICE)
    first = recipes.score(flow, examples, limit=1_000)["bits_per_dim"]
    steps, seen = len(history.loss), len(history.loss) * settings["batch_size"]
    rows = len(examples.train) - settings["validation"]
    found = {
        **recipes.score(flow, examples),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "steps": steps,
        "seconds": round(history.seconds, 1),
        "epochs": round(seen / rows, 1),
        "images_seen": seen,
        "images_per_second": round(seen / history.seconds, 1),
        "bits_per_dim_first_100": recipes.score(flow, examples, limit=100)["bits_per_dim"],
        "bits_per_dim_first_1000": first,
        "float16_costs": round(first - full, 5),
        "weights": "float16",
        "training": settings,
    }
    if settings.get("start"):
        found["start"] = settings["start"]
    write_metrics(path.with_suffix(".metrics.jsonl"), history.evaluations, before={})
    flops = 3 * forward_flops(flow, examples.test[:1]) * seen / history.seconds
    found["share_of_bfloat16_peak"] = round(flops / peak(DEVICE, torch.bfloat16), 4)
    checkpoints.save(flow, path, seed=0, results=found, half=True)
    context = torch.arange(36) % 10 if "context" in settings else None
    grids = []
    for t in (0.7, 1.0):
        images = flow.sample(36, temperature=t, seed=0, context=context).cpu()
        images = images << (8 - flow.dequantize.bits)
        grids.append(make_grid(images, nrow=6, padding=1))
    save_image(torch.cat(grids, dim=2) / 255, OUT / f"{name}_samples.png")
    tight = recipes.score(flow, examples, draws=8)
    found["bits_per_dim_8_draws"] = tight["bits_per_dim"]
    found["images_8_draws"] = tight["test_images"]
    checkpoints.save(flow, path, seed=0, results=found, half=True)
    say(name, json.dumps(found))


def check(args):
    """Every finding on a line of its own; the exit status adds up 1, 2, 4 and 8 for failures."""
    failed = 0
    for i, finding in enumerate((captured_steps, a_resumed_run, a_flow_that_looks, devices)):
        start = time.perf_counter()
        try:
            said = finding()
        except Exception as error:
            failed, said = failed + 2**i, f"FAILED: {type(error).__name__}: {str(error)[:2000]}"
        say(f"check {finding.__name__} ({time.perf_counter() - start:.1f} s): {said}")
    return failed


@contextlib.contextmanager
def warnings_of_graphs():
    """The lines that flowlib.graphs logs within."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    graphs.log.addHandler(handler)
    try:
        yield lines
    finally:
        graphs.log.removeHandler(handler)


CHECKED = {"shape": (3, 16, 16), "scales": 2, "width": 16, "blocks": 2}
CHECKED |= {"doubling": False, "dequant_couplings": 4}
CHECKED_FIT = {"batch_size": 32, "lr": 1e-3, "clip": 500.0, "ema": 0.99, "flip": True}


def apart(losses, others):
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


def captured_steps():
    """Losses and averaged weights after 30 steps, as a graph and compiled, against eager ones."""
    images, said = images_like(CHECKED, 160), []
    for precision, tolerance in ("float32", 2e-3), ("bfloat16", 3e-2):
        settings = {**CHECKED_FIT, "precision": precision, "steps": 30}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            _, eager = fit(CHECKED, images, "eager", **settings)
            for mode in ["graph", "compiled"] if CUDA else ["compiled"]:
                with warnings_of_graphs() as lines:
                    flow, history = fit(CHECKED, images, mode, **settings)
                difference = apart(history.loss, eager.loss)
                said.append(f"{precision} {mode} {difference:.1e}")
                assert not lines, lines
                assert difference < tolerance, said
                assert math.isfinite(flow.log_prob(images[:32], seed=0).mean().item())
    return ", ".join(said)


def a_resumed_run():
    """A bfloat16 run of 6 epochs, against one cut off in its fifth and gone on with."""
    images = images_like(CHECKED, 192)
    settings = {**CHECKED_FIT, "precision": "bfloat16", "epochs": 6, "validation": 32}
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"flowlib_check_{os.getpid()}"

    def cut():
        raise KeyboardInterrupt

    _, whole = fit(CHECKED, images, run=folder / "whole", **settings)
    _, part, _ = timed_fit(CHECKED, images, {23: cut}, run=folder / "cut", **settings)
    assert part.interrupted and len(part.loss) == 23, len(part.loss)
    _, resumed = fit(CHECKED, images, run=folder / "cut", resume=True, **settings)
    difference = apart(resumed.loss, whole.loss)
    assert difference < 3e-2, difference
    exact = "bit-exact" if resumed.loss == whole.loss else f"within {difference:.1e}"
    return f"{len(resumed.loss)} losses {exact}"


class Looking(nn.Module):
    """A coupling's network whose Python looks at a tensor's values, which no graph can record."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x, context=None):
        return (self.weight if x.sum() > 0 else -self.weight).expand(len(x), 2)


def a_flow_that_looks():
    flow = Flow(Chain(AffineCoupling(alternating(2), Looking())), shape=(2,))
    with warnings_of_graphs() as lines:
        history = training.fit(flow, data.TwoMoons(), steps=60, seed=0, progress=False)
    assert len(lines) == CUDA, lines
    assert history.loss[-1] < history.loss[0], history.loss
    return f"{history.loss[0]:.2f} to {history.loss[-1]:.2f} nats; log: {lines}"


def devices():
    """Toys, a 2-D flow, grids and samples on the device."""
    moons = data.TwoMoons()
    points = moons.sample(100, seed=0).to(DEVICE)
    assert moons.log_prob(points).device.type == DEVICE
    flow = models.realnvp_2d()
    with warnings_of_graphs() as lines:
        start = time.perf_counter()
        history = training.fit(flow, moons, steps=500, seed=0, progress=False)
        seconds = time.perf_counter() - start
    assert not lines and history.loss[-1] < 1.5, (lines, history.loss[-1])
    flow.to(DEVICE)
    rng = torch.Generator(DEVICE).manual_seed(0)
    assert flow.sample(8, seed=rng).device.type == DEVICE
    assert flow.sample(8, seed=0).device.type == DEVICE
    assert flow.log_prob(points.cpu()).isfinite().all()
    plotting.evaluate_on_grid(flow.log_prob, ((-2, 3), (-2, 2)), 20)
    return f"loss {history.loss[-1]:.2f} nats after 500 steps in {seconds:.1f} s"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["check", "warm", "bench", "train"])
    parser.add_argument("names", nargs="*", help="recipes of images; rows of bench by their start")
    parser.add_argument("--seconds", type=float, default=200, help="for all of it together")
    parser.add_argument("--until", type=float, help="seconds since 1970, in place of --seconds")
    parser.add_argument("--steps", type=int, help="in place of what the time allows")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--label-weight", type=float)
    parser.add_argument("--profile", default="cifar10 compiled", help="the row of bench to profile")
    parser.add_argument("--tiny", action="store_true", help="small models, few images")
    args = parser.parse_args()
    trained = [name for name, r in recipes.RECIPES.items() if r.model == "realnvp_image"]
    known = trained if args.what == "train" else ROWS
    if unknown := [name for name in args.names if not any(asked(row, name) for row in known)]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if args.until:
        args.seconds = args.until - time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    say(args.what, *args.names, "on", checkpoints.hardware(), "with torch", torch.__version__)
    commands = {"check": check, "warm": warm, "bench": bench, "train": train}
    sys.exit(commands[args.what](args))


if __name__ == "__main__":
    main()
