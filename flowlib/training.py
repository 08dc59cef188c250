"""The training loop: maximum likelihood with Adam, a warm-up and a cosine, a progress bar, checkpoints and exact resume.

It runs on Accelerate: the same call uses one CPU, one GPU, or several (`accelerate launch`). What is random in a step (which
rows, which noise) is a function of the seed and the step alone, so that a resumed run, and any number of processes, see the
same data.
"""

import contextlib
import copy
import math
import time
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from .batches import make_batches
from .common import generator, integer
from .data import Density
from .flow import Flow
from .losses import bits_per_dim, nll
from .networks import ConvResNet
from .norms import initialising
from .checkpoints import Run, require_builder

__all__ = ["fit", "History", "Snapshot", "DivergedError", "reestimate_statistics"]

CHECK_EVERY = 50  # steps between looks at the loss: reading it from a GPU waits for the device
SAVE_EVERY = 60  # seconds between two saved states within an epoch


class Snapshot(NamedTuple):
    """The flow as it was after `step` updates."""

    step: int
    flow: Flow


@dataclass
class History:
    """What happened during a fit: loss in nats per data point after each step, evaluations, snapshots, seconds of training."""

    loss: list = field(default_factory=list)
    evaluations: list = field(default_factory=list)
    snapshots: list = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


class DivergedError(RuntimeError):
    """Training stopped because the loss was lost; `history` holds the run up to there."""

    def __init__(self, message, history):
        super().__init__(message)
        self.history = history


@dataclass
class Settings:
    """The arguments of `fit` that decide what comes out; a run's folder stores them, and a resumed run must repeat them."""

    steps: int
    batch_size: int
    lr: float
    betas: tuple
    schedule: str
    clip: float | None
    ema: float | None
    weight_decay: float
    flip: bool
    validation: int
    precision: str
    compile: bool
    seed: int

    def __post_init__(self):
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ValueError(
                f"unknown precision {self.precision!r}; there are auto, bfloat16, float32"
            )
        self.steps = integer("steps", self.steps, at_least=1)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        self.lr = float(self.lr)
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, or be None, got {self.ema}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")


def warm_up_and_cosine(step, steps):
    """The factor on the learning rate: up linearly over the first 5 % of the steps, down to 0 along a cosine."""
    return min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


SCHEDULES = {"cosine": warm_up_and_cosine, "constant": lambda step, steps: 1.0}


def fit(
    flow,
    data,
    *,
    context=None,
    steps=None,
    epochs=None,
    batch_size=512,
    lr=5e-3,
    betas=(0.9, 0.99),
    schedule="cosine",
    clip=None,
    ema=None,
    weight_decay=0.0,
    flip=False,
    validation=0,
    precision="auto",
    compile=False,
    seed=None,
    snapshots=0,
    run=None,
    resume=False,
    progress=True,
):
    """Train `flow` in place by maximum likelihood and leave it in evaluation mode; return a `History`.

    data        a density with `.sample(n, seed)` (fresh points at every step); a tensor (N, *flow.shape) or an image set (its
                training images), reshuffled every epoch
    context     (N, C), one row per row of a data tensor, for a conditional flow
    steps       updates, 4,000 unless given; or `epochs`, passes over the data
    batch_size  rows per update, over all processes together
    lr, betas   Adam's; schedule "cosine": lr rises over the first 5 % of the steps and falls to 0 along a cosine; or "constant"
    clip        largest norm of the gradient of all weights together
    ema         decay of an exponential moving average of the weights, 0.999 say, and less in the first steps, which are soon
                forgotten; the flow ends with the averaged weights
    weight_decay  L2 penalty on the magnitudes of weight-normed layers, the paper's "weight scale parameters" (there 5e-5)
    flip        mirror half of the images, chosen anew at every step
    validation  rows held out from the end of the data; their loss is reported after every epoch
    precision   "bfloat16": the networks of the couplings compute in it, all else in float32, as evaluation does; "float32";
                "auto": bfloat16 for convolutional networks on hardware that has it
    compile     True: train through `torch.compile`, which takes minutes to start; validation and samples do without
    seed        fixes the data order, noise and fresh points; the initial weights are the caller's (`torch.manual_seed`)
    snapshots   how many copies of the flow to keep, evenly spaced from before the first step to after the last
    run         a folder for metrics, samples and checkpoints (see `flowlib.runs`), written after every epoch (for a density,
                ten times); with `resume=True` a run that was cut off goes on from there, to the same bits

    ActNorm layers that are not initialised yet are started from the first batch. Ctrl-C ends the training early and
    returns what was learned so far. If the loss becomes NaN or infinite, or rises far above where it began, the last
    healthy weights are put back and a DivergedError explains the likely causes.
    Across processes BatchNorm takes its statistics from each process's share of the batch, so it differs from one process.
    Raises ValueError for data of a wrong shape or type, empty, or not finite, for senseless settings, and for a run folder
    that holds another run.
    """
    from accelerate import Accelerator

    integer("snapshots", snapshots, at_least=0)
    if steps is not None and epochs is not None:
        raise ValueError("give steps or epochs, not both")
    if run is not None and seed is None:
        raise ValueError("a run that can be resumed needs a seed: seed=0, say")
    if resume and run is None:
        raise ValueError("resume=True needs the folder of the run to go on with: run=...")
    if not any(True for _ in flow.parameters()):
        raise ValueError("there is nothing to train: this flow has no parameters")
    accelerator, home = (
        Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no"),
        next(flow.parameters()).device,
    )
    seed = _settled_seed(seed, accelerator)
    try:
        flow.to(accelerator.device)
        batches = make_batches(flow, data, context, batch_size, validation, flip, seed)
        if batches.batch_size % accelerator.num_processes:
            raise ValueError(
                f"a batch of {batches.batch_size} rows does not divide by {accelerator.num_processes} processes"
            )
        if epochs is not None:
            steps = integer("epochs", epochs, at_least=1) * batches.per_epoch
        steps = 4_000 if steps is None else steps
        settings = Settings(
            steps,
            batch_size,
            lr,
            betas,
            schedule,
            clip,
            ema,
            weight_decay,
            flip,
            validation,
            precision,
            compile,
            seed,
        )
        folder = (
            None
            if run is None
            else Run(run, _config(flow, data, settings), resume, accelerator.is_main_process)
        )
        with one_thread_if_small(flow, batch_size):
            return _Training(flow, batches, settings, folder, accelerator).run(
                snapshots, home, progress
            )
    finally:
        flow.to(home).eval()


def _settled_seed(seed, accelerator):
    """An integer for all processes: the seed given, or one that the first process draws."""
    rng = generator(seed)
    if seed is None or isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=rng))
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        (seed,) = broadcast_object_list([seed])
    return int(seed)


def _config(flow, data, settings):
    """What a run's folder remembers of what was asked for."""
    named = (
        repr(data)
        if isinstance(data, Density)
        else getattr(data, "name", None) or type(data).__name__
    )
    rows = None if hasattr(data, "sample") else len(getattr(data, "train", data))
    return {**require_builder(flow), "data": named, "rows": rows, **asdict(settings)}


@contextlib.contextmanager
def one_thread_if_small(flow, batch_size, small=50_000_000):
    """Keep a CPU training with small steps on one thread.

    A second thread gains nothing there, and waits for its turn when the machine is busy; and with one thread the same
    seed gives the same figures whatever the number of cores.
    """
    before = torch.get_num_threads()
    first = next(flow.parameters())
    if (
        first.device.type == "cpu"
        and batch_size * sum(p.numel() for p in flow.parameters()) < small
    ):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Training:
    """One call of `fit`: the flow, its optimiser, the average of its weights, and how far they have come."""

    def __init__(self, flow, batches, settings, folder, accelerator):
        self.flow, self.batches, self.settings, self.folder, self.accelerator = (
            flow,
            batches,
            settings,
            folder,
            accelerator,
        )
        self.history, self.best, self.first_step, self.losses = History(), math.inf, 0, []
        _initialise_actnorms(flow, *batches(0))
        self.optimizer = torch.optim.Adam(
            _groups(flow, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True
        )
        self.ema = copy.deepcopy(flow) if settings.ema else flow
        self.ema_pairs = list(self.ema.parameters()), list(flow.parameters())
        if folder:
            self._restore()
        self.bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and _gains_from_bfloat16(flow)
        )
        prepared = accelerator.prepare(flow.train())
        self.model = torch.compile(prepared) if settings.compile else prepared
        self.guard = _DivergenceGuard(flow, settings.lr)

    def run(self, snapshots, home, progress):
        """Train to the end, evaluating and saving on the way; return the history."""
        steps, start = self.settings.steps, time.perf_counter() - self.history.seconds
        keep_at = {round(i * steps / max(snapshots - 1, 1)) for i in range(snapshots)}
        interval = self.batches.interval(steps)
        self.saved_at = time.perf_counter()
        show = progress and self.accelerator.is_main_process
        with tqdm(
            total=steps, initial=self.first_step, disable=not show, unit="step", leave=False
        ) as bar:
            try:
                for step in range(self.first_step, steps + 1):
                    due = (
                        step > self.first_step
                        and (step % interval == 0 or step == steps)
                        and (self.folder or self.settings.validation)
                    )
                    if step in keep_at:
                        self.history.snapshots.append(
                            Snapshot(
                                step, copy.deepcopy(self.flow).to(home).eval().requires_grad_(False)
                            )
                        )
                    if step % CHECK_EVERY == 0 or step == steps or due:
                        self._sync_losses(bar)
                        self.history.seconds = time.perf_counter() - start
                        self._save_and_evaluate(step, due)
                    if step < steps:
                        self._update(step)
            except KeyboardInterrupt:
                self.history.loss += [float(loss) for loss in self.losses]
                self.history.interrupted = True
                again = (
                    " With resume=True it goes on from the last saved state." if self.folder else ""
                )
                tqdm.write(
                    f"Interrupted after {len(self.history.loss)} of {steps} steps; the flow keeps what it has learned so far.{again}"
                )
            finally:
                self.history.seconds = time.perf_counter() - start
        if self.settings.ema:
            self.flow.load_state_dict(self._averaged().state_dict())
        return self.history

    def _update(self, step):
        """One step of Adam on one batch."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * SCHEDULES[settings.schedule](step, settings.steps)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bfloat16):
            z, log_det = self.model(*self._share(self.batches(step)))
        loss = nll(z, log_det)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(self.flow.parameters(), settings.clip)
        self.optimizer.step()
        if settings.ema:
            with torch.no_grad():
                torch._foreach_lerp_(
                    *self.ema_pairs, 1 - min(settings.ema, (1 + step) / (10 + step))
                )
        self.losses.append(loss.detach())

    def _share(self, batch):
        """This process's rows of a global batch."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return [None if part is None else part[rank::world] for part in batch]

    def _sync_losses(self, bar):
        """Read the losses since the last look, and stop a run that is lost."""
        fresh = (
            self.accelerator.reduce(torch.stack(self.losses), "mean").tolist()
            if self.losses
            else []
        )
        self.history.loss += fresh
        self.losses.clear()
        self.guard.check(self.history)
        bar.update(len(fresh))
        if fresh:
            bar.set_postfix_str(f"loss {median(fresh):.3f} nats")

    def _averaged(self):
        """The flow to evaluate, in evaluation mode: the averaged weights with statistics of their own, or the flow itself."""
        if self.settings.ema:
            reestimate_statistics(self.ema, (self.batches(step) for step in range(20)))
        return self.ema.eval()

    def _save_and_evaluate(self, step, due):
        if due:
            self._evaluate(step)
        if self.folder and (due or time.perf_counter() - self.saved_at > SAVE_EVERY):
            self.folder.write_state(*self._state(step))
            self.saved_at = time.perf_counter()

    @torch.no_grad()
    def _evaluate(self, step):
        """Loss on the rows held out, metrics, samples, and the checkpoints `last` and `best`."""
        flow, count = self._averaged(), min(self.batches.interval(self.settings.steps), step)
        losses = {"loss": fmean(self.history.loss[-count:])}
        if self.settings.validation:
            losses["validation_loss"] = self._validation_loss(flow)
        bits = {
            name.replace("loss", "bits_per_dim"): bits_per_dim(-loss, flow.shape)
            for name, loss in losses.items()
        }
        metrics = {
            "step": step,
            "evaluation": len(self.history.evaluations) + 1,
            **losses,
            **(bits if flow.dequantize else {}),
        }
        metrics |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(self.history.seconds, 2),
        }
        self.history.evaluations.append(metrics)
        better = losses.get("validation_loss", math.inf) < self.best
        self.best = min(self.best, losses.get("validation_loss", math.inf))
        if self.folder:
            self.folder.record(flow, metrics, better)
        self.flow.train()

    def _validation_loss(self, flow):
        """Mean loss over the rows held out, of which every process takes its share."""
        total, rows = 0.0, 0
        for batch in filter(lambda batch: len(batch[0]), map(self._share, self.batches.held_out())):
            total, rows = total + nll(*flow(*batch)).item() * len(batch[0]), rows + len(batch[0])
        total, rows = self.accelerator.reduce(
            torch.tensor([total, rows], device=self.accelerator.device, dtype=torch.float64)
        ).tolist()
        return total / rows

    def _state(self, step):
        """Everything that decides what comes next, as tensors and as numbers."""
        tensors = {f"flow.{name}": tensor for name, tensor in self.flow.state_dict().items()}
        tensors |= (
            {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
            if self.settings.ema
            else {}
        )
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in state.items()}
        tensors["loss"] = torch.tensor(self.history.loss, dtype=torch.float64)
        tensors["random"] = torch.get_rng_state()
        return tensors, {"step": step, "best": self.best, "seconds": self.history.seconds}

    def _restore(self):
        """Take up the state that an earlier call left in the folder, if there is one."""
        tensors, numbers = self.folder.read_state()
        if tensors is None:
            self.folder.begin()
            return
        part = lambda prefix: {
            name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
        }
        self.flow.load_state_dict(part("flow."))
        if self.settings.ema:
            self.ema.load_state_dict(part("ema."))
        state = {}
        for name, tensor in part("optimizer.").items():
            i, key = name.split(".")
            state.setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        torch.set_rng_state(tensors["random"])
        self.first_step, self.best = numbers["step"], numbers["best"]
        self.history = History(
            loss=tensors["loss"].tolist(),
            evaluations=self.folder.read_metrics(self.first_step),
            seconds=numbers["seconds"],
        )


def _groups(flow, weight_decay):
    """The parameters for Adam: the magnitudes of weight-normed layers, which decay, and all others."""
    if not weight_decay:
        return flow.parameters()
    named = list(flow.named_parameters())
    decays = [p for name, p in named if name.endswith("weight.original0")]
    if not decays:
        raise ValueError("weight_decay applies to weight-normed layers, and this flow has none")
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": [p for name, p in named if not name.endswith("weight.original0")]},
    ]


def _gains_from_bfloat16(flow):
    """Whether there are convolutions, and hardware that computes them faster in bfloat16."""
    if not any(isinstance(module, ConvResNet) for module in flow.modules()):
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@torch.no_grad()
def reestimate_statistics(flow, batches):
    """Set the running statistics of every batch normalisation to their mean over `batches`, each (x, context, noise).

    Weights that were averaged have other statistics than those that they were averaged from. Leaves `flow` in training mode.
    """
    norms = [module for module in flow.modules() if hasattr(module, "running_mean")]
    if not norms:
        return
    flow.train()
    momenta = [norm.momentum for norm in norms]
    try:
        for i, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (
                    i + 1
                )  # running statistics become the plain mean of those of the batches
            flow(*batch)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


@torch.no_grad()
def _initialise_actnorms(flow, x, context, noise):
    """Run one batch through the flow and let every new ActNorm start from what arrives at it."""
    with initialising(flow):
        flow.eval()(x, context, noise)


class _DivergenceGuard:
    """Remembers the last healthy weights, and stops a run whose loss is lost."""

    def __init__(self, flow, lr):
        self.flow, self.lr, self.good = flow, lr, None

    def check(self, history):
        recent = history.loss[-CHECK_EVERY:]
        limit = history.loss[0] + 10 * self.flow.shape.numel() if recent else math.inf
        healthy = all(map(math.isfinite, recent)) and all(
            p.isfinite().all() for p in self.flow.parameters()
        )
        if healthy and (not recent or median(recent) <= limit):
            self.good = copy.deepcopy(self.flow.state_dict())
            return
        self.flow.load_state_dict(self.good)
        lost = next(
            (i for i, loss in enumerate(history.loss) if not math.isfinite(loss)),
            len(history.loss) - 1,
        )
        raise DivergedError(
            f"training diverged: the loss was {history.loss[0]:.3g} nats at the start and {history.loss[lost]:.3g} at step {lost + 1}. "
            f"The flow has its last healthy weights back. Likely causes, the most common first: a learning rate that is too high "
            f"(lr={self.lr:g} here; try a third of it); log-scales without a bound in a coupling of your own; a few extreme "
            f"outliers, or data outside the domain of the first layer (Logit takes [0, 1]); BatchNorm with small batches.",
            history,
        )
