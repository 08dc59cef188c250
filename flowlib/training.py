"""The training loop: maximum likelihood with Adam, a warm-up and a cosine, a progress bar, and snapshots on the way."""

import contextlib
import copy
import math
import time
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from .bijections import ActNorm
from .common import generator, whole_number
from .flow import Flow
from .losses import nll

__all__ = ["fit", "History", "Snapshot", "DivergedError"]

CHECK_EVERY = 50  # steps between looks at the loss: reading it from a GPU waits for the device


class Snapshot(NamedTuple):
    """The flow as it was after `step` updates."""

    step: int
    flow: Flow


@dataclass
class History:
    """What happened during a fit: loss in nats per data point after each step, snapshots, seconds of training."""

    loss: list = field(default_factory=list)
    snapshots: list = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


class DivergedError(ValueError):
    """Training stopped because the loss was lost; `history` holds the run up to there."""

    def __init__(self, message, history):
        super().__init__(message)
        self.history = history


def fit(flow, data, *, context=None, steps=4_000, batch_size=512, lr=5e-3, seed=None, snapshots=0, progress=True):
    """Train `flow` in place by maximum likelihood and leave it in evaluation mode; return a `History`.

    data        a density with `.sample(n, seed)` (fresh points at every step), or a tensor (N, *flow.shape), reshuffled
                every epoch
    context     (N, C), one row per row of a data tensor, for a conditional flow
    steps       updates; the learning rate rises linearly to lr over the first 5 % of them, and falls to 0 along a cosine
    seed        fixes the data order and the fresh points; the initial weights are the caller's (`torch.manual_seed`)
    snapshots   how many copies of the flow to keep, evenly spaced from before the first step to after the last

    ActNorm layers that are not initialised yet are started from the first batch. Ctrl-C ends the training early and
    returns what was learned so far. If the loss becomes NaN or infinite, or rises far above where it began, the last
    healthy weights are put back and a DivergedError (a ValueError) explains the likely causes.
    Raises ValueError for data of a wrong shape or type, empty, or not finite, and for senseless settings.
    """
    for name, value, at_least in [("steps", steps, 1), ("batch_size", batch_size, 1), ("snapshots", snapshots, 0)]:
        whole_number(name, value, at_least)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    device = next(flow.parameters()).device
    batches = _batches(flow, data, context, batch_size, generator(seed), device)
    _initialise_actnorms(flow, *next(batches))

    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_and_cosine(step, steps))
    history, keeper, start = History(), _Keeper(flow, lr), time.perf_counter()
    keep_at = {round(i * steps / max(snapshots - 1, 1)) for i in range(snapshots)}
    losses = []
    with one_thread_if_small(flow, batch_size), tqdm(total=steps, disable=not progress, unit="step", leave=False) as bar:
        try:
            for step in range(steps + 1):
                if step in keep_at:
                    history.snapshots.append(Snapshot(step, copy.deepcopy(flow).eval().requires_grad_(False)))
                if step % CHECK_EVERY == 0 or step == steps:
                    fresh = torch.stack(losses).tolist() if losses else []
                    history.loss += fresh
                    losses.clear()
                    keeper.check(history)
                    bar.update(len(fresh))
                    bar.set_postfix_str(f"loss {median(fresh):.3f} nats" if fresh else "")
                if step == steps:
                    break
                x, c = next(batches)
                loss = nll(*flow(x, c))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
        except KeyboardInterrupt:
            history.loss += [float(loss) for loss in losses]
            history.interrupted = True
            tqdm.write(f"Interrupted after {len(history.loss)} of {steps} steps; the flow keeps what it has learned so far.")
        finally:
            flow.eval()
            history.seconds = time.perf_counter() - start
    return history


def warm_up_and_cosine(step, steps):
    """The factor on the learning rate: up linearly over the first 5 % of the steps, down to 0 along a cosine."""
    return min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


@contextlib.contextmanager
def one_thread_if_small(flow, batch_size, small=50_000_000):
    """Keep a CPU training with small steps on one thread.

    A second thread gains nothing there, and waits for its turn when the machine is busy; and with one thread the same
    seed gives the same figures whatever the number of cores.
    """
    before = torch.get_num_threads()
    first = next(flow.parameters())
    if first.device.type == "cpu" and batch_size * sum(p.numel() for p in flow.parameters()) < small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(flow, data, context, batch_size, rng, device):
    """Yield (x, context) for ever; the data is checked once, at the door."""
    if hasattr(data, "sample"):
        if context is not None:
            raise ValueError("a context goes with a data tensor; a density draws fresh points that have none")
        flow._check_context(None, batch_size)
        return _fresh_batches(flow, data, batch_size, rng)
    flow.check_input(data, context)
    return _shuffled_batches(data.to(device), None if context is None else context.to(device), batch_size, rng)


def _fresh_batches(flow, density, batch_size, rng, at_once=100):
    """Draw many batches in one call: sampling a toy density costs mostly its fixed overhead."""
    like = next(flow.parameters())
    while True:
        points = density.sample(at_once * batch_size, seed=rng).to(like)
        flow.check_input(points)
        yield from ((x, None) for x in points.split(batch_size))


def _shuffled_batches(data, context, batch_size, rng):
    batch_size = min(batch_size, len(data))
    while True:
        order = torch.randperm(len(data), generator=rng).to(data.device)
        for rows in order[: len(data) // batch_size * batch_size].split(batch_size):
            yield data[rows], None if context is None else context[rows]


@torch.no_grad()
def _initialise_actnorms(flow, x, context):
    """Run one batch through the flow and let every new ActNorm start from what arrives at it."""
    new = [m for m in flow.modules() if isinstance(m, ActNorm) and not m.initialised]
    if not new:
        return
    hooks = [m.register_forward_pre_hook(lambda m, args: m.initialise(args[0])) for m in new]
    was_training = flow.training
    try:
        flow.eval()(x, context)
    finally:
        flow.train(was_training)
        for hook in hooks:
            hook.remove()


class _Keeper:
    """Remembers the last healthy weights, and stops a run whose loss is lost."""

    def __init__(self, flow, lr):
        self.flow, self.lr, self.good = flow, lr, None

    def check(self, history):
        recent = history.loss[-CHECK_EVERY:]
        limit = history.loss[0] + 10 * self.flow.shape.numel() if recent else math.inf
        healthy = all(map(math.isfinite, recent)) and all(p.isfinite().all() for p in self.flow.parameters())
        if healthy and (not recent or median(recent) <= limit):
            self.good = copy.deepcopy(self.flow.state_dict())
            return
        self.flow.load_state_dict(self.good)
        lost = next((i for i, loss in enumerate(history.loss) if not math.isfinite(loss)), len(history.loss) - 1)
        raise DivergedError(
            f"training diverged: the loss was {history.loss[0]:.3g} nats at the start and {history.loss[lost]:.3g} at step {lost + 1}. "
            f"The flow has its last healthy weights back. Likely causes, the most common first: a learning rate that is too high "
            f"(lr={self.lr:g} here; try a third of it); log-scales without a bound in a coupling of your own; a few extreme "
            f"outliers, or data outside the domain of the first layer (Logit takes [0, 1]); BatchNorm with small batches.",
            history,
        )
