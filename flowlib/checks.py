"""`check_flow`: find out what is wrong with a flow, one of flowlib's or anybody's.

Everything is measured on copies, so the flow is afterwards what it was before: weights, gradients, statistics, mode, random state.
"""

import contextlib
import copy
import html
import math
from typing import NamedTuple

import torch
from torch import nn

from . import models
from .bijections import Logit, SoftLog
from .coupling import AffineCoupling
from .flow import Flow, VariationalDequantize, standard_normal_log_prob
from .losses import bits_per_dim as to_bits
from .losses import nll

__all__ = ["check_flow", "Report", "Row"]

LARGEST_JACOBIAN = 1024
OK, FAIL, NOTE = "ok", "FAIL", "note"


class Row(NamedTuple):
    """One check: its verdict ("ok", "FAIL", or "note" for what only a reader can judge), and what it rests on."""

    check: str
    verdict: str
    measured: str
    threshold: str
    meaning: str


class Report:
    """What `check_flow` found: `rows`, and `ok` if none of them failed. Prints as a table, in a notebook as HTML."""

    def __init__(self, rows):
        self.rows = rows

    @property
    def ok(self):
        return not self.failed

    @property
    def failed(self):
        """The names of the checks that failed."""
        return [row.check for row in self.rows if row.verdict == FAIL]

    def __getitem__(self, check):
        return next(row for row in self.rows if row.check == check)

    def __str__(self):
        widths = [max(len(row[i]) for row in self.rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + f"  {row.meaning}" for row in self.rows]
        return "\n".join([*lines, "No check failed." if self.ok else f"Failed: {', '.join(self.failed)}."])

    __repr__ = __str__

    def _repr_html_(self):
        def line(row):
            style = ' style="font-weight: bold; background: rgba(213, 94, 0, 0.2)"' if row.verdict == FAIL else ""
            return f"<tr{style}>" + "".join(f'<td style="text-align: left">{html.escape(cell)}</td>' for cell in row) + "</tr>"

        head = "".join(f'<th style="text-align: left">{name}</th>' for name in ("check", "verdict", "measured", "threshold", "what it means"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(line, self.rows))}</tbody></table>"


@torch.enable_grad()
def check_flow(flow=None, x=None, loss=None, bits_per_dim=None, *, forward=None, inverse=None, context=None):
    """Check a flow on data x (B, ...) and return a `Report`; B from 64 to 1,000 is a good number.

    flow          a flow of flowlib, or any module with forward(x) -> (z, log_det) and inverse(z) -> x or (x, log_det), with
                  z (B, D) standard normal and log_det (B,) in nats; or two such functions as `forward` and `inverse`
    loss          the function that training minimises, loss(z, log_det) -> scalar: is the prior in it, and the right sign?
    bits_per_dim  the figure that was reported for x: can it be true?
    context       (B, C) for a conditional flow of flowlib

    A model of another library needs a wrapper of three lines, for nflows for instance

    >>> class Wrapper(torch.nn.Module):
    ...     def __init__(self, flow): super().__init__(); self.flow = flow
    ...     def forward(self, x): return self.flow._transform(x)
    ...     def inverse(self, z): return self.flow._transform.inverse(z)
    >>> check_flow(Wrapper(nflows_flow), x)

    Functions are called as they are, with no look at what is inside. Raises ValueError if neither a flow nor both functions
    are given, if x is not a tensor of at least two data points, and for a module without an inverse.
    """
    if (flow is None) == (forward is None or inverse is None):
        raise ValueError("give a flow, or both of forward= and inverse=")
    if not torch.is_tensor(x) or x.dim() < 2 or len(x) < 2:
        raise ValueError(f"x must be a tensor (B, ...) of at least two data points, got {tuple(x.shape) if torch.is_tensor(x) else type(x).__name__}")
    if flow is not None and not callable(getattr(flow, "inverse", None)):
        raise ValueError(f"a flow needs a method inverse(z); this {type(flow).__name__} has none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = Subject(_Functions(forward, inverse) if flow is None else flow, x.detach(), context)
        rows = [row for check in CHECKS for row in _attempt(check, subject)]
        rows += [] if loss is None else _loss(subject, loss)
        rows += [] if bits_per_dim is None else _bits_per_dim(subject, bits_per_dim)
    return Report(rows)


def _attempt(check, subject):
    """The rows of a check; one that says so if the flow raises an error in it."""
    try:
        return check(subject)
    except (RuntimeError, ValueError, IndexError) as error:
        name = check.__name__.strip("_").replace("_", " ")
        return [Row(f"{name}: not run", FAIL, type(error).__name__, "", f"the flow raised an error: {error}")]


class _Functions(nn.Module):
    """Two functions with a flow's interface."""

    def __init__(self, forward, inverse):
        super().__init__()
        self.functions = forward, inverse

    def forward(self, x):
        return self.functions[0](x)

    def inverse(self, z):
        return self.functions[1](z)


class Subject:
    """A copy of the flow in evaluation mode, its continuous part, and the data as that part sees them."""

    def __init__(self, flow, x, context):
        self.flow, self.context = copy.deepcopy(flow).eval(), context
        self.is_module = not isinstance(flow, _Functions)
        self.dequantize = flow.dequantize if isinstance(flow, Flow) else None
        self.x = x[: 256 if x[0].numel() <= LARGEST_JACOBIAN else 32]
        self.context = None if context is None else context[: len(self.x)]
        self.core, self.y = self.flow, self.x
        if self.dequantize is not None:
            self.core = self.flow.bijection[1:]
            self.y = self.flow.bijection[0](self.x, noise=self.flow.draw_noise(len(self.x)))[0].detach()
        with torch.no_grad():
            self.z, self.log_det = self.run(self.core, self.y)
        self.D = self.z[0].numel()

    def run(self, module, y):
        """(z, log_det) of the first len(y) rows of the context."""
        return module(y) if self.context is None else module(y, self.context[: len(y)])

    def undo(self, module, z):
        """x, and log_det or None."""
        out = module.inverse(z) if self.context is None else module.inverse(z, self.context[: len(z)])
        return out if isinstance(out, tuple) else (out, None)

    def double(self, shake=0.0):
        """The continuous part in float64, with noise on its parameters: layers that start as the identity do something then."""
        core = copy.deepcopy(self.core).double() if self.is_module else self.core
        with torch.no_grad():
            for parameter in core.parameters():
                parameter += shake * torch.randn_like(parameter)
        return core

    def rows(self, n):
        """The first n data points in float64 (functions are called in the dtype of the data)."""
        return self.y[:n].double() if self.is_module else self.y[:n]

    def small(self):
        """This subject on boards small enough for a Jacobian: the same weights, and masks cut to size; None if that cannot be."""
        if self.D <= LARGEST_JACOBIAN:
            return self
        built = getattr(self.flow, "built_by", {"arguments": {}})
        if built.get("builder") != "realnvp_image":
            return None
        C, side = built["arguments"]["shape"][0], 2 ** max(2, built["arguments"]["scales"])
        flow = models.build("realnvp_image", **{**built["arguments"], "shape": (C, side, side)})
        own, weights = flow.state_dict(), self.flow.state_dict()
        flow.load_state_dict({name: weights[name] if weights[name].shape == own[name].shape else own[name] for name in own})
        return Subject(flow, self.x[:, :, :side, :side].contiguous(), self.context)


# The checks. Each takes the subject and returns rows.


@torch.no_grad()
def _shapes(s):
    good = s.log_det.shape == (len(s.y),) and s.log_det.is_floating_point() and s.z.shape[0] == len(s.y)
    measured = f"{tuple(s.log_det.shape)}, {s.log_det.dtype}".replace("torch.", "")
    meaning = "log_det is one number per data point; a mean, or a missing sum over dimensions, hides here"
    rows = [Row("shape of log_det", OK if good else FAIL, measured, f"({len(s.y)},), float", meaning)]
    bad = int((~(s.z.flatten(1).isfinite().all(1) & s.log_det.reshape(len(s.y), -1).isfinite().all(1))).sum())
    meaning = "NaN or infinity in z or log_det: data outside the domain of a layer, or exploding scales"
    return [*rows, Row("finite", FAIL if bad else OK, f"{bad} of {len(s.y)} not", "0", meaning)]


@torch.no_grad()
def _round_trip(s):
    tolerance = 1e-3 if s.y.dtype == torch.float32 else 1e-6
    spread = s.y.std().clamp(min=1e-12)
    error = ((s.undo(s.core, s.z)[0] - s.y).abs().max() / spread).item()
    exact, y = s.double(0.05), s.rows(32)
    formula = ((s.undo(exact, s.run(exact, y)[0])[0] - y).abs().max() / spread).item()
    wrong = not formula <= 1e-4
    meaning = "inverse(forward(x)) against x, in standard deviations of x"
    if wrong:
        meaning += f"; in float64 it is off by {formula:.1e}, so the inverse is another function: look at masks and at the order of split and join"
    elif error > tolerance:
        meaning += f"; in float64 it is {formula:.1e}, so this is rounding, which grows with depth and scale{_growth(s)}"
    rows = [Row("round trip of data", FAIL if wrong or not error <= tolerance else OK, f"{max(error, formula):.1e}", f"{tolerance:.0e}", meaning)]
    if s.dequantize is not None:
        lost = int((s.flow.inverse(s.flow.encode(s.x))[0] != s.x).flatten(1).any(1).sum())
        meaning = "encode puts the noise at bin centres; inverse must return the integers"
        return [*rows, Row("round trip of images", FAIL if lost else OK, f"{lost} of {len(s.x)} differ", "0", meaning)]
    z = torch.randn_like(s.z)
    latent = (s.run(s.core, s.undo(s.core, z)[0])[0] - z).abs().flatten(1).amax(1).quantile(0.9).item()
    meaning = "forward(inverse(z)) against z ~ N(0, I), nine rows in ten: what samples suffer"
    return [*rows, Row("round trip of latents", OK if latent <= 100 * tolerance else FAIL, f"{latent:.1e}", f"{100 * tolerance:.0e}", meaning)]


def _growth(s):
    """The error after some of the layers, where there are layers to count."""
    layers = list(s.core.bijection) if isinstance(s.core, Flow) and hasattr(s.core.bijection, "__len__") else []
    if len(layers) < 4:
        return ""
    errors = []
    for depth in (len(layers) // 4, len(layers) // 2, len(layers)):
        part = s.core.bijection[:depth]
        errors.append(f"{(s.undo(part, s.run(part, s.y)[0])[0] - s.y).abs().max().item():.0e} after {depth} layers")
    return f" ({', '.join(errors)})"


def _jacobians(s):
    name, threshold = "log_det of forward", 1e-4
    small = s.small()
    if small is None:
        why = f"D = {s.D:,} is above {LARGEST_JACOBIAN:,}: check a smaller instance, or layer by layer"
        return [Row(name, NOTE, "not checked", f"{threshold:.0e}", why)]
    y = small.rows(4 if small.D <= 64 else 1)
    worst = 0.0
    for shake in (0.0, 0.05):
        core = small.double(shake)
        jacobian = torch.stack([_jacobian(small, core, row[None]) for row in y])
        expected = torch.linalg.slogdet(jacobian.double()).logabsdet
        claimed = small.run(core, y)[1].detach().double()
        off = (claimed.reshape(len(y), -1).sum(1) - expected).abs() / expected.abs().clamp(min=1)
        worst = max(worst, off.nan_to_num(math.inf).max().item())
    threshold = threshold if y.dtype == torch.float64 else 1e-2
    meaning = "against slogdet of the Jacobian by autograd in float64; a wrong one makes every likelihood wrong, and training climbs the error"
    rows = [Row(name, OK if worst <= threshold else FAIL, f"{worst:.1e}", f"{threshold:.0e}", meaning)]
    sees = (jacobian.abs() > 1e-12).any(0)  # (D, D): which inputs each output depends on, weights shaken
    alone = int((sees.sum(1) <= 1).sum())
    meaning = "a latent that depends on one input only was never coupled: do the masks alternate?"
    verdict = FAIL if alone and small.D > 1 and s.is_module else OK
    return [*rows, Row("dimensions never coupled", verdict, f"{alone} of {small.D}", "0", meaning)]


def _jacobian(s, core, row):
    D = row.numel()
    flat = lambda values: s.run(core, values.view_as(row))[0].flatten()  # noqa: E731
    try:
        return torch.autograd.functional.jacobian(flat, row.flatten(), vectorize=True)
    except RuntimeError:  # an operation that cannot be batched
        return torch.autograd.functional.jacobian(flat, row.flatten()).view(D, D)


@torch.no_grad()
def _inverse_log_det(s):
    core = s.double(0.05)
    z, there = s.run(core, s.rows(32))
    back = s.undo(core, z)[1]
    if back is None:
        return []
    off = ((back + there).abs() / there.abs().clamp(min=1)).max().item()
    threshold = 1e-4 if there.dtype == torch.float64 else 1e-2
    meaning = "log_det of the inverse must be minus that of forward: densities of samples are wrong otherwise"
    return [Row("log_det of inverse", OK if off <= threshold else FAIL, f"{off:.1e}", f"{threshold:.0e}", meaning)]


def _gradients(s, steps=3):
    flow = copy.deepcopy(s.flow).train()
    named = {name: p for name, p in flow.named_parameters() if p.requires_grad}
    if not named:
        return []
    optimizer, alive = torch.optim.Adam(named.values(), lr=1e-3), set()
    for _ in range(steps):
        optimizer.zero_grad()
        nll(*_flat(s.run(flow, s.x))).backward()
        alive |= {name for name, p in named.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    dead = [name for name in named if name not in alive]
    meaning = "tensors that got no gradient in three steps of training"
    meaning += f", the first {dead[0]}: zero times zero, units that never fire, or not in the graph" if dead else ""
    return [Row("parameters without gradient", FAIL if dead else OK, f"{len(dead)} of {len(named)}", "0", meaning)]


def _flat(out):
    return out[0].flatten(1), out[1]


@torch.no_grad()
def _scales(s):
    rows = []
    couplings = [(name, m) for name, m in s.core.named_modules() if isinstance(m, AffineCoupling)]
    raw = {}
    hooks = [m.network.register_forward_hook(lambda _, __, out, name=name: raw.update({name: out.chunk(2, 1)[1]})) for name, m in couplings]
    s.run(s.core, s.y)
    for hook in hooks:
        hook.remove()
    if couplings:
        largest = max((m.rescale.abs().max() * raw[name].tanh().abs().max()).item() for name, m in couplings)
        saturated = max((raw[name].tanh().abs() > 0.99).float().mean().item() for name, _ in couplings)
        measured = f"|s| up to {largest:.2f}; tanh saturated in up to {saturated:.0%}"
        meaning = "a saturated tanh passes no gradient; a large |s| in one layer stretches rounding errors with it"
        rows.append(Row("log-scales", NOTE, measured, "", meaning))
    tails = [m for m in s.core.modules() if isinstance(m, SoftLog)]
    seen = []
    hooks = [m.register_forward_hook(lambda m, args, _: seen.append((args[0].abs() > m.tau).float().mean().item())) for m in tails]
    s.run(s.core, s.y)
    for hook in hooks:
        hook.remove()
    if seen:
        rows.append(Row("beyond SoftLog's tau", NOTE, f"{max(seen):.2%} of values", "", "SoftLog changes these only; it is for rare outliers"))
    return [*rows, *_bound(s)]


def _bound(s):
    """Whether log_det stays bounded where no data are: a million times as far out as these."""
    name = "bound on the scales"
    meaning = "how log_det, per dimension, grows from 1,000 to 1,000,000 times as far out; without a bound one outlier ends the training"
    core, y = s.double(0.05), s.rows(32)
    if isinstance(core, nn.Sequential) and isinstance(core[0], Logit):
        y, core = core[0](y)[0], core[1:]
    elif not s.is_module or any(isinstance(m, Logit) for m in core.modules()) or (y.min() >= 0 and y.max() <= 1):
        return [Row(name, NOTE, "not probed", "100 nats", "the data end where a first layer's domain may end")]
    near, far = (s.run(core, factor * y)[1] for factor in (1e3, 1e6))
    growth = ((far - near).abs().max() / s.D).item()
    return [Row(name, OK if growth <= 100 else FAIL, f"{growth:.1e} nats", "100 nats", meaning)]


@torch.no_grad()
def _latents(s):
    z = s.z.flatten(1).double()
    measured = f"mean {z.mean():+.2f}, standard deviation {z.std():.2f}"
    if s.D <= 64:
        correlation = torch.corrcoef(z.T).nan_to_num(0).fill_diagonal_(0).abs().max().item()
        measured += f", largest correlation {correlation:.2f}"
    return [Row("latents", NOTE, measured, "0, 1, 0", "after training they should look standard normal; before, anything goes")]


@torch.no_grad()
def _batch(s):
    again = s.run(s.core, s.y)
    same = torch.equal(again[0], s.z) and torch.equal(again[1], s.log_det)
    meaning = "the same data twice in evaluation mode; dropout, or noise in a layer that should have none"
    rows = [Row("determinism", OK if same else FAIL, "equal" if same else "differs", "equal", meaning)]
    off = math.inf
    with contextlib.suppress(ValueError, RuntimeError):  # batch norm in training mode refuses a single row
        alone = s.run(s.core, s.y[:1])
        off = max((alone[0] - s.z[:1]).abs().max().item(), (alone[1] - s.log_det[:1]).abs().max().item() / s.D)
    off = off if math.isfinite(off) else math.inf
    meaning = "a row alone against the same row in its batch, in evaluation mode: batch statistics must not be used there"
    return [*rows, Row("rows leak into one another", OK if off <= 1e-2 else FAIL, f"{off:.1e}", "1e-02", meaning)]


@torch.no_grad()
def _train_and_eval(s):
    trained = copy.deepcopy(s.core).train()
    per_dim = [nll(*_flat(s.run(core, s.y))).item() / s.D for core in (trained, s.core)]
    gap = abs(per_dim[1] - per_dim[0])
    meaning = f"loss per dimension in training mode {per_dim[0]:.2f}, in evaluation mode {per_dim[1]:.2f}: a gap means statistics of other weights"
    return [Row("training and evaluation", OK if gap <= 0.2 else FAIL, f"{gap:.2f} nats", "0.20 nats", meaning)]


@torch.no_grad()
def _state(s):
    if not s.is_module:
        return []
    attributes = [(f"{name}.{key}", value) for name, module in s.flow.named_modules() for key, value in vars(module).items()]
    lost = [name for name, value in attributes if torch.is_tensor(value)]
    lost += [f"{name}.{flag}" for name, flag in _flags_that_decide(s)]
    if built := getattr(s.flow, "built_by", None):
        fresh = models.build(built["builder"], **built["arguments"])
        fresh.load_state_dict(s.flow.state_dict())
        fresh = fresh.to(next(s.flow.parameters())).eval()
        noise = {"noise": s.flow.draw_noise(len(s.x), torch.Generator().manual_seed(0))}
        before, after = (flow(s.x, s.context, **noise) for flow in (s.flow, fresh))
        lost += [] if all(map(torch.equal, before, after)) else ["a fresh model with this state differs"]
    meaning = "state outside of parameters and buffers does not survive saving" + (f": {lost[0]}" if lost else "")
    return [Row("state lost by saving", FAIL if lost else OK, f"{len(lost)} found", "0", meaning)]


def _flags_that_decide(s):
    """Plain Python flags that, when they are as in a fresh model, make forward write its own parameters anew."""
    for name, module in s.flow.named_modules():
        if type(module).__module__.startswith(("torch.", "flowlib.")):
            continue  # those keep their state in buffers
        for flag in [key for key, value in vars(module).items() if isinstance(value, bool) and key != "training" and not key.startswith("_")]:
            flow = copy.deepcopy(s.flow).train()
            owner = flow.get_submodule(name)
            before = {key: value.clone() for key, value in owner.state_dict().items() if "running" not in key and "tracked" not in key}
            setattr(owner, flag, not getattr(owner, flag))
            with contextlib.suppress(Exception):  # most flags say how to compute, and computing otherwise fails
                s.run(flow, s.x[: len(s.x) // 2])  # other data than those that it may have started from
            after = owner.state_dict()
            if any(not torch.equal(after[key], value) for key, value in before.items()):
                yield name, flag


@torch.no_grad()
def _data(s):
    if s.dequantize is not None:
        u = s.dequantize(s.x)[0] * s.dequantize.levels - s.x
        low, high, spread = u.min().item(), u.max().item(), u.std().item()
        uniform = isinstance(s.dequantize, VariationalDequantize) or (low >= -1e-3 and high <= 1 + 1e-3 and abs(spread - 12**-0.5) < 0.02)
        meaning = "the noise must fill its bin, with standard deviation 0.289 if uniform; half of it is a density on half of the values"
        return [Row("dequantisation noise", OK if uniform else FAIL, f"{low:.2f} to {high:.2f}, deviation {spread:.3f}", "0 to 1", meaning)]
    values = s.x.flatten()
    distinct, repeated = len(values.unique()), len(values)
    discrete = s.D >= 16 and distinct <= 1024 and repeated >= 20 * distinct
    meaning = "values on a lattice have densities without bound: add uniform noise of one step (Dequantize)"
    return [Row("data are continuous", FAIL if discrete else OK, f"{distinct:,} distinct in {repeated:,}", "", meaning)]


@torch.no_grad()
def _integral(s, side=500):
    if s.y[0].numel() != 2 or s.context is not None:
        return []
    samples = s.undo(s.core, torch.randn(4_000, *s.z.shape[1:]).to(s.z))[0]
    points = torch.cat([samples[samples.isfinite().all(1)], s.y])
    low, high = points.amin(0), points.amax(0)
    low, high = low - 0.25 * (high - low), high + 0.25 * (high - low)
    axes = [torch.linspace(low[i], high[i], side + 1, dtype=s.y.dtype)[:-1] + (high[i] - low[i]) / (2 * side) for i in range(2)]
    grid = torch.cartesian_prod(*axes)
    z, log_det = (torch.cat(parts) for parts in zip(*(s.run(s.core, piece) for piece in grid.split(50_000))))
    total = (standard_normal_log_prob(z).double() + log_det.double()).exp().sum().item() * ((high - low).prod() / side**2).item()
    meaning = "the density summed over a grid around data and samples; not 1: wrong log_det, or mass in a filament finer than the grid"
    return [Row("integral of the density", OK if abs(total - 1) <= 0.05 else FAIL, f"{total:.3f}", "1 +- 0.05", meaning)]


CHECKS = [_shapes, _round_trip, _jacobians, _inverse_log_det, _gradients, _scales, _latents, _batch, _train_and_eval, _state, _data, _integral]


def _loss(s, loss):
    z, log_det = s.z.flatten(1).clone().requires_grad_(), s.log_det.clone().requires_grad_()
    value = loss(z, log_det)
    by_z, by_log_det = torch.autograd.grad(value, (z, log_det), allow_unused=True)
    prior = by_z is not None and by_z.abs().max() > 0
    meaning = "without log N(z; 0, I) nothing holds the scales back: the loss falls for ever"
    rows = [Row("prior in the loss", OK if prior else FAIL, "yes" if prior else "no", "yes", meaning)]
    slope = 0.0 if by_log_det is None else by_log_det.sum().item()
    meaning = "the loss must fall as log_det rises, by 1 per nat of a mean: -log p = -log N(z) - log_det"
    return [*rows, Row("log_det in the loss", OK if slope < 0 else FAIL, f"slope {slope:+.2f}", "below 0", meaning)]


@torch.no_grad()
def _bits_per_dim(s, given):
    name, shape = "bits/dim", s.x.shape[1:]
    if s.dequantize is None:
        ok = 0 < given <= 8
        meaning = "of 8-bit data: 8 is what no model at all needs, below 0 no code can go; was the noise, or log 256, forgotten?"
        return [Row(name, OK if ok else FAIL, f"{given:.3f}", "0 to 8", meaning)]
    own = to_bits(s.flow.log_prob(s.x, s.context, seed=0), shape).mean().item()
    logits = [m for m in s.flow.bijection if isinstance(m, Logit)]
    term = to_bits(logits[0](s.y)[1], shape).mean().item() if logits else 0.0
    levels = s.dequantize.bits
    stories = {f"log {2**levels} ({levels} bits) is missing": own - levels, "the logit's log_det is missing": own - term}
    stories |= {f"log {2**levels} and the logit's log_det are missing": own - levels - term, f"log {2**levels} was added twice": own + levels}
    measured, off = f"{given:.3f}", abs(given - own)
    meaning = f"measured here: {own:.3f} on {len(s.x)} data points"
    for story, figure in stories.items():
        if off > 0.1 and abs(given - figure) <= 0.1:
            meaning += f"; {story}: {own:.3f} {figure - own:+.3f} = {figure:.3f}"
    return [Row(name, OK if off <= 0.1 else FAIL, measured, f"{own:.3f} +- 0.1", meaning)]
