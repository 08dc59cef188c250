"""The training loop: maximum likelihood with Adam, a warm-up and a cosine, from top to bottom in
`_train`.

The same call uses one CPU, one GPU, or several (`accelerate launch`). What is random in a step
(which rows, which noise) is a function of the seed and the step alone, so that a resumed run, and
any number of processes, see the same data.
"""

import contextlib
import copy
import functools
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, median
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from . import graphs
from .batches import about, make_batches
from .checkpoints import Run, require_builder
from .common import generator, integer
from .coupling import Coupling
from .flow import Flow
from .losses import bits_per_dim, label_nll, nll
from .networks import ConvResNet
from .norms import initialising

__all__ = ["fit", "History", "Snapshot", "DivergedError", "reestimate_statistics"]

CHECK_EVERY = 50  # steps between looks at the loss: reading it from a GPU waits for the device
SAVE_EVERY = 60  # seconds between two saved states within an epoch
LOOKING = 0.1  # the share of a run by time that may go into evaluations
SMALL = 50_000_000  # rows times weights of a step for which a second thread gains nothing
SETTINGS = ["steps", "seconds", "batch_size", "lr", "betas", "schedule", "clip", "ema", "flip"]
SETTINGS += ["weight_decay", "label_weight", "validation", "evaluations", "keep_best", "precision"]
SETTINGS += ["seed"]


class Snapshot(NamedTuple):
    """The flow as `fit` would have returned it after `step` updates."""

    step: int
    flow: Flow


@dataclass
class History:
    """What happened during a fit: loss in nats per data point after each step, evaluations (dicts
    of metrics), snapshots, seconds of training, and whether Ctrl-C ended it."""

    loss: list[float] = field(default_factory=list, repr=False)
    evaluations: list[dict] = field(default_factory=list, repr=False)
    snapshots: list[Snapshot] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    interrupted: bool = False


class DivergedError(RuntimeError):
    """Training stopped because the loss was lost; `history` holds the run up to there."""

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


def cosine(step, steps):
    """The factor on lr: up linearly over the first 5 % of the steps, down to 0 along a cosine."""
    return min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


SCHEDULES = {"cosine": cosine, "constant": lambda step, steps: 1.0}
PRECISIONS = ("auto", "bfloat16", "float32")


@contextlib.contextmanager
def _true_float32():
    """Let an NVIDIA GPU compute in float32 proper, not in TF32, which keeps 10 bits of 23."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before


def fit(
    flow: Flow,
    data,
    *,
    context=None,
    steps: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    batch_size: int = 512,
    lr: float = 5e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    schedule: str = "cosine",
    clip: float | None = 100.0,
    ema: float | None = None,
    weight_decay: float = 0.0,
    label_weight: float = 0.0,
    flip: bool = False,
    validation: int = 0,
    evaluations: int | None = None,
    keep_best: bool = False,
    precision: str = "auto",
    seed: int | None = None,
    snapshots: int = 0,
    run=None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train `flow` in place by maximum likelihood and leave it in evaluation mode.

    data        a density with `sample(n, seed)` or of torch.distributions, fresh points every step;
                an array (N, *flow.shape), or an image set, reshuffled every epoch
    context     one row or label per row of the data, for a conditional flow; "labels": those of an
                image set
    steps       updates, 4,000 unless given; or `epochs`, passes over the data; or `seconds`: as
                many updates as there is time for, the schedule fitted to that (within 50 updates on
                a GPU). No two runs by time agree to the bit; a resumed one has what time was left
    batch_size  rows per update, over all processes together
    lr, betas   Adam's; with `schedule` "cosine" lr rises over the first 5 % of the steps and falls
                to 0 along a cosine; "constant" leaves it
    clip        largest norm of the gradient of all weights together, in nats
    ema         decay of an average of the weights, 0.999 say, less in the first steps: the result
    weight_decay  L2 penalty on the magnitudes of weight-normed layers (Real NVP: 5e-5)
    label_weight  weight of -log p(label | x) beside -log p(x | label): `losses.label_nll`
    flip        mirror half of the images, chosen anew at every step
    validation  rows held out from the end of the data; their loss is reported after every epoch,
                and with `keep_best` the flow ends with the weights for which it was lowest
    evaluations how often instead of after every epoch; 10 for a density, and by `seconds`, where
                all but the last wait while they have taken more than a tenth of the time
    precision   "bfloat16": the networks of couplings train in it, nothing else; "float32"; "auto":
                bfloat16 for convolutions, where there is hardware for it. No evaluation is in TF32
    seed        fixes data order, noise and fresh points; initial weights are the caller's
    snapshots   copies of the flow to keep, evenly spaced from before the first step to the last
    run         a folder for metrics, samples and checkpoints (see `checkpoints.Run`), written at
                every evaluation; with `resume=True` a run that was cut off goes on: bit-exact on a
                CPU; on a GPU with the same data, noise and state, but kernels that add in any
                order, short of `torch.use_deterministic_algorithms(True)`

    On one GPU a step is a CUDA graph with compiled networks (see `flowlib.graphs`). New ActNorm
    layers start from the first batch. Ctrl-C ends the training early. If the loss becomes NaN or
    rises far above where it began, the last healthy weights are put back and a DivergedError
    explains the likely causes. Across processes BatchNorm sees its share of a batch. Raises
    ValueError for data that do not fit the flow or are not finite, senseless settings, a flow with
    nothing to train, and a run folder that holds another run.

    >>> from flowlib import data, models
    >>> history = fit(models.realnvp_2d(), data.TwoMoons(), steps=20, seed=0, progress=False)
    >>> len(history.loss)
    20
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    snapshots = integer("snapshots", snapshots, at_least=0)
    validation = integer("validation", validation, at_least=0)
    batch_size = integer("batch_size", batch_size, at_least=1)
    evaluations = evaluations and integer("evaluations", evaluations, at_least=1)
    lr, weight_decay, betas = float(lr), float(weight_decay), tuple(map(float, betas))
    label_weight = float(label_weight)
    clip, ema, seconds = (v if v is None else float(v) for v in (clip, ema, seconds))
    flip, keep_best = bool(flip), bool(keep_best)
    weights = [p for p in flow.parameters() if p.requires_grad and not p.is_inference()]
    world = PartialState(cpu=not torch.cuda.is_available())
    one_clock = seconds is None or world.num_processes == 1
    for holds, complaint in [
        (schedule in SCHEDULES, f"schedule must be cosine or constant, got {schedule!r}"),
        (precision in PRECISIONS, f"precision must be {', '.join(PRECISIONS)}, got {precision!r}"),
        (0 <= label_weight < math.inf, f"label_weight must be 0 or more, got {label_weight}"),
        (0 < lr < math.inf, f"lr must be positive and finite, got {lr}"),
        (clip is None or clip > 0, f"clip must be positive or None, got {clip}"),
        (ema is None or 0 < ema < 1, f"ema must lie between 0 and 1, or be None, got {ema}"),
        ([steps, epochs, seconds].count(None) > 1, "give one of steps, epochs and seconds"),
        (seconds is None or 0 < seconds < math.inf, f"seconds must be positive, got {seconds}"),
        (one_clock, "several processes have several clocks: give steps or epochs"),
        (validation or not keep_best, "keep_best needs rows held out: validation=1_000, say"),
        (run is None or seed is not None, "a run that can be resumed needs a seed: seed=0, say"),
        (run is not None or not resume, "resume=True needs the folder to go on with: run=..."),
        (weights, "there is nothing to train: no weight takes gradients; flow.requires_grad_()?"),
    ]:
        if not holds:
            raise ValueError(complaint)

    home = weights[0].device
    if generator(seed) is seed:  # a generator, or None
        seed = torch.randint(2**62, (), generator=seed).item()
    (seed,) = broadcast_object_list([int(seed)])
    gpus = [world.device] if world.device.type == "cuda" else []
    threads = torch.get_num_threads()
    if not gpus and batch_size * sum(p.numel() for p in flow.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(gpus):
            flow.to(world.device)
            batches = make_batches(flow, data, context, batch_size, validation, flip, seed)
            n, parts = batches.batch_size, world.num_processes
            if n % parts:
                raise ValueError(f"a batch of {n} rows does not divide by {parts} processes")
            if epochs is not None:
                steps = integer("epochs", epochs, at_least=1) * batches.per_epoch
            elif not seconds:
                steps = integer("steps", 4_000 if steps is None else steps, at_least=1)
            given = locals()
            settings = SimpleNamespace(**{name: given[name] for name in SETTINGS})
            folder = None
            if run is not None:
                config = require_builder(flow) | about(data, batches) | vars(settings)
                config["data_fingerprint"] = batches.fingerprint()  # last: a seed changes it, too
                folder = Run(run, config, resume, world.is_main_process)
            return _train(flow, batches, settings, folder, world, snapshots, home, progress)
    finally:
        torch.set_num_threads(threads)
        _compute_in_bfloat16(flow, False)
        flow.to(home).eval()


def _train(flow, batches, settings, folder, world, snapshots, home, progress):
    """The loop. What a step computes is `update`; what surrounds it looks, evaluates and saves."""
    from accelerate.utils import reduce

    lr, schedule = settings.lr, SCHEDULES[settings.schedule]
    gpu = world.device.type == "cuda"
    rate = torch.tensor(lr, device=world.device) if gpu else lr
    adam = {"betas": settings.betas, "weight_decay": settings.weight_decay, "fused": True}
    groups = _groups(flow, settings.weight_decay)
    optimizer = torch.optim.Adam(groups, rate, **adam, capturable=gpu)
    history, losses = History(), []
    guard = _DivergenceGuard(flow, lr)
    guard.check(history)
    with torch.no_grad(), _true_float32(), initialising(flow):
        x, context, noise = batches(0)
        z, log_det = flow.eval()(x, context, noise)
        if settings.label_weight:  # refuses flows that it is not for
            label_nll(flow, z, log_det, context)
    model = flow
    if world.num_processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(flow, [world.device] if gpu else None)
    ema = copy.deepcopy(flow) if settings.ema else flow
    weights, ema_weights = list(flow.parameters()), list(ema.parameters())
    pull = torch.zeros((), dtype=weights[0].dtype, device=world.device)  # 1 - decay
    stored = torch.nn.ModuleDict({"flow": flow})
    if settings.ema:
        stored["ema"] = ema
    if settings.keep_best:
        stored["best"] = copy.deepcopy(flow)
    start = _restore(folder, stored, optimizer, history) if folder else {}
    first_step, lowest = start.get("step", 0), start.get("best", math.inf)
    guard.check(history)
    auto = settings.precision == "auto" and _gains_from_bfloat16(flow)
    _compute_in_bfloat16(flow, auto or settings.precision == "bfloat16")

    def update(x, context, noise):
        """One step on one batch: tensors in, the loss out, and nothing that waits for a GPU."""
        z, log_det = model(x, context, noise)
        loss = total = nll(z, log_det)
        if settings.label_weight:
            total = loss + settings.label_weight * label_nll(flow, z, log_det, context)
        optimizer.zero_grad()
        total.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        if settings.ema:
            with torch.no_grad():
                gaps = torch._foreach_sub(weights, ema_weights)
                torch._foreach_mul_(gaps, pull)
                torch._foreach_add_(ema_weights, gaps)
        return loss.detach()

    def share(batch):
        """This process's rows of a global batch."""
        rows = slice(world.process_index, None, world.num_processes)
        return [None if part is None else part[rows] for part in batch]

    @_true_float32()
    def result(step):
        """What `step` updates have led to; averaged weights get batch statistics of their own."""
        if settings.ema:
            some = watched(range(min(20, step)), "statistics")
            reestimate_statistics(ema, map(batches, some))
        return ema.eval()

    def planned(step):
        """How many steps there will be: as asked for, or as the time left allows at this pace."""
        if settings.steps:
            return settings.steps
        now = time.perf_counter()
        pace = (step - first_step or 1) / max(now - paced, 1e-6)
        return max(1, step + math.ceil(pace * max(0.0, began + settings.seconds - now)))

    may_draw, show = _may_draw(flow), progress and world.is_main_process
    watched = functools.partial(tqdm, leave=False, delay=1, disable=not show)
    bar = tqdm(total=settings.steps, initial=first_step, disable=not show, unit="step", leave=False)
    saved_at = paced = time.perf_counter()  # paced: since when steps go at their pace
    began, looking, seen = paced - history.seconds, 0.0, 0
    looks = settings.evaluations or (None if settings.steps and batches.rows else 10)
    try:
        for step in itertools.count(first_step):
            steps = planned(step)
            last = step >= steps
            interval = steps / looks if looks else batches.per_epoch
            late = settings.seconds and looking > LOOKING * (time.perf_counter() - began)
            due = last or (step >= (len(history.evaluations) + 1) * interval and not late)
            due = due and step > first_step and (folder is not None or settings.validation > 0)
            look = due or last or step % CHECK_EVERY == 0
            if look and losses:
                fresh = reduce(torch.stack(losses), "mean").tolist()
                losses.clear()
                history.loss += fresh
                history.seconds = time.perf_counter() - began
                bar.total = steps
                bar.update(len(fresh))
                bar.set_postfix_str(f"loss {median(fresh):.3f} nats")
                guard.check(history)
            passed = sum(step >= round(i * steps / max(snapshots - 1, 1)) for i in range(snapshots))
            if passed > seen and (step > first_step or step == 0):
                kept = copy.deepcopy(result(step)).to(home).requires_grad_(False)
                _compute_in_bfloat16(kept, False)
                history.snapshots.append(Snapshot(step, kept))
            seen = max(seen, passed)
            if due:
                since, ends = time.perf_counter(), [0, *(e["step"] for e in history.evaluations)]
                evaluated, nats = result(step), {"loss": fmean(history.loss[ends[-1] :])}
                if settings.validation:
                    rows = map(share, watched(batches.held_out(), "validation"))
                    nats["validation_loss"] = _mean_nll(evaluated, rows)
                metrics = {"step": step, "evaluation": len(ends), **nats}
                for name, loss in nats.items() if flow.dequantize else []:
                    metrics[name.replace("loss", "bits_per_dim")] = bits_per_dim(-loss, flow.shape)
                metrics["lr"] = lr * schedule(step - 1, steps)
                metrics["seconds"] = round(history.seconds, 2)
                history.evaluations.append(metrics)
                validation = nats.get("validation_loss", math.inf)
                better, lowest = validation < lowest, min(lowest, validation)
                if folder:
                    with _true_float32():
                        folder.record(evaluated, metrics, better, batches.context)
                if better and settings.keep_best:
                    stored["best"].load_state_dict(ema.state_dict())
                looking += time.perf_counter() - since
            if folder and look and (due or time.perf_counter() - saved_at > SAVE_EVERY):
                loss = torch.tensor(history.loss, dtype=torch.float64)
                history.seconds = time.perf_counter() - began
                numbers = {"step": step, "best": lowest, "seconds": history.seconds}
                folder.write_state({"loss": loss, **_tensors(stored, optimizer)}, numbers)
                saved_at = time.perf_counter()
            if last:
                break

            if not flow.training:
                flow.train()
            for group in optimizer.param_groups:
                now = lr * schedule(step, steps)
                group["lr"] = group["lr"].fill_(now) if gpu else now
            if settings.ema:
                pull.fill_(1 - min(settings.ema, (1 + step) / (10 + step)))
            batch = share(batches(step))
            if may_draw:
                torch.manual_seed((settings.seed + step) % 2**63)
            if gpu and step == first_step and world.num_processes == 1:
                state = functools.partial(_tensors, stored, optimizer)
                update = graphs.captured(update, flow, batch, state)
            if step == first_step:
                paced = time.perf_counter()
            losses.append(update(*batch).clone())
    except KeyboardInterrupt:
        history.loss += [float(loss) for loss in losses]
        history.interrupted = True
        again = " With resume=True it goes on from the last saved state." if folder else ""
        done = f"Interrupted after {len(history.loss)} of {steps} steps"
        tqdm.write(f"{done}; the flow keeps what it has learned so far.{again}")
    finally:
        history.seconds = time.perf_counter() - began
        bar.close()
    if lowest < math.inf and settings.keep_best:
        flow.load_state_dict(stored["best"].state_dict())
    elif settings.ema:
        flow.load_state_dict(result(len(history.loss)).state_dict())
    return history


def _tensors(stored, optimizer):
    """All that an update changes: weights and statistics, averages, and Adam's moments."""
    tensors = stored.state_dict()
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _restore(folder, stored, optimizer, history):
    """Take up the state in a run's folder; return step, best and seconds, nothing if it is new."""
    tensors, numbers = folder.read_state()
    if tensors is None:
        folder.begin()
        return {}
    try:
        history.loss, history.seconds = tensors.pop("loss").tolist(), numbers["seconds"]
        moments = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensors.pop(name)
        if not all({"step", "exp_avg", "exp_avg_sq"} == found.keys() for found in moments.values()):
            raise ValueError("moments are missing")
        stored.load_state_dict(tensors)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except (KeyError, RuntimeError, ValueError) as error:
        torn = f"{folder.folder / 'state.safetensors'} is damaged ({error})"
        raise ValueError(f"{torn}; delete the folder and train anew") from error
    history.evaluations = folder.read_metrics(numbers["step"])
    return numbers


class _DivergenceGuard:
    """Remembers the last healthy weights, and stops a run whose loss is lost."""

    def __init__(self, flow, lr):
        self.flow, self.lr, self.good = flow, lr, None

    def check(self, history):
        loss, recent = history.loss, history.loss[-CHECK_EVERY:]
        finite = torch.stack([p.isfinite().all() for p in self.flow.parameters()]).all()
        healthy = finite and all(map(math.isfinite, recent))
        if healthy and (not recent or median(recent) <= loss[0] + 10 * self.flow.shape.numel()):
            self.good = copy.deepcopy(self.flow.state_dict())
            return
        if self.good is None:
            raise DivergedError("there are NaN or infinite weights before the first step", history)
        self.flow.load_state_dict(self.good)
        lost = next((i for i, x in enumerate(loss) if not math.isfinite(x)), len(loss) - 1)
        raise DivergedError(
            f"training diverged: the loss was {loss[0]:.3g} nats at the start and {loss[lost]:.3g} "
            f"at step {lost + 1}. The flow has its last healthy weights back. Likely causes, the "
            f"most common first: a learning rate that is too high (lr={self.lr:g} here; try a "
            "third of it); log-scales without a bound in a coupling of your own; a few extreme "
            "outliers, or data outside the domain of the first layer (Logit takes [0, 1]); "
            "BatchNorm with small batches.",
            history,
        )


@torch.no_grad()
@_true_float32()
def _mean_nll(flow, batches):
    """The mean loss over the rows of all processes' batches, in nats per data point."""
    from accelerate.utils import reduce

    total = torch.zeros(2, dtype=torch.float64, device=next(flow.parameters()).device)
    for batch in batches:
        if len(batch[0]):
            loss = nll(*flow(*batch)).double()
            total += len(batch[0]) * torch.stack([loss, torch.ones_like(loss)])
    loss, rows = reduce(total).tolist()
    return loss / rows


@torch.no_grad()
def reestimate_statistics(flow: Flow, batches: Iterable) -> None:
    """Set the running statistics of every batch normalisation to their mean over `batches`, each
    (x, context, noise). Leaves `flow` in training mode.

    Weights that were averaged have other statistics than those that they were averaged from.

    >>> from flowlib import data, models
    >>> images = torch.randint(256, (32, 1, 4, 4), dtype=torch.uint8)
    >>> flow = models.realnvp_mlp((1, 4, 4), depth=2, norm="batchnorm")
    >>> reestimate_statistics(flow, [(batch, None, None) for batch in images.split(8)])
    """
    momenta = {m: m.momentum for m in flow.modules() if hasattr(m, "running_mean")}
    flow.train()
    try:
        for i, batch in enumerate(batches if momenta else []):
            for norm in momenta:
                norm.momentum = 1 / (i + 1)  # running statistics become the plain mean of them all
            flow(*batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _groups(flow, weight_decay):
    """The parameters for Adam: the magnitudes of weight-normed layers, which decay, and others."""
    decays, others = [], []
    for name, parameter in flow.named_parameters():
        decaying = weight_decay and name.endswith("weight.original0")
        (decays if decaying else others).append(parameter)
    if weight_decay and not decays:
        raise ValueError("weight_decay applies to weight-normed layers, and this flow has none")
    return [{"params": others, "weight_decay": 0.0}, {"params": decays}][: 1 + bool(decays)]


def _may_draw(flow):
    """Whether there are layers that draw from the global generators: dropout, or a user's own."""
    ours = ("torch.nn", "flowlib.")
    dropout = torch.nn.modules.dropout._DropoutNd
    modules = list(flow.modules())
    return any(isinstance(m, dropout) or not type(m).__module__.startswith(ours) for m in modules)


def _compute_in_bfloat16(flow, on):
    """Let the couplings' networks compute in bfloat16 in training, or no longer."""
    for module in flow.modules():
        if isinstance(module, Coupling):
            module.bfloat16 = on


def _gains_from_bfloat16(flow):
    """Whether there are convolutions, and hardware that computes them faster in bfloat16."""
    if not any(isinstance(module, ConvResNet) for module in flow.modules()):
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
