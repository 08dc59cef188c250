"""`check_flow`: find out what is wrong with a flow, one of flowlib's or anybody's.

Everything is measured on copies, so the flow is afterwards what it was before: weights, gradients, statistics, mode, random state.
"""

import contextlib
import copy
import html
import math
import textwrap
from typing import NamedTuple

import torch
from torch import nn

from .bijections import Chain, Flatten, Logit, SoftLog
from .coupling import AffineCoupling
from .dequantize import VariationalDequantize
from .flow import Flow, MultiScale, standard_normal_log_prob
from .losses import bits_per_dim as to_bits
from .losses import nll
from .models import build

__all__ = ["check_flow", "Report", "Row"]

LARGEST_JACOBIAN, LARGEST_OF_CONVOLUTIONS = (
    1024,
    256,
)  # beyond these, images are checked on a board cut out of them
OK, FAIL, NOTE = "ok", "FAIL", "note"
CHECKS = {  # the threshold, and what the check means
    "shape of log_det": (
        "(B,), float",
        "log_det is one number per data point; a mean, or a missing sum over dimensions, hides here",
    ),
    "finite": (
        "0",
        "rows with NaN or infinity in z or log_det: data outside the domain of a layer, or exploding scales",
    ),
    "round trip of data": ("1e-03", "inverse(forward(x)) against x, in standard deviations of x"),
    "round trip of latents": (
        "1e-01",
        "forward(inverse(z)) against z ~ N(0, I), in nine rows of ten: what samples suffer",
    ),
    "round trip of images": (
        "0",
        "encode puts the noise at bin centres, so inverse must return the integers",
    ),
    "log_det of forward": (
        "1e-04",
        "against slogdet of the Jacobian by autograd in float64; training climbs the error of a wrong one",
    ),
    "log_det of inverse": (
        "1e-04",
        "must be minus that of forward: the densities of samples are wrong otherwise",
    ),
    "dimensions never coupled": (
        "0",
        "a latent that depends on one input only was never transformed given others: do the masks alternate?",
    ),
    "parameters without gradient": (
        "0",
        "tensors of weights that got no gradient in the first steps of training",
    ),
    "dead networks": (
        "0",
        "ReLU layers with no active unit on any row: what follows them is a constant",
    ),
    "log-scales": (
        "",
        "a saturated tanh passes no gradient, and large |s| stretches rounding errors; layer by layer the largest |s| is",
    ),
    "beyond SoftLog's tau": ("", "SoftLog bends these values only: it is there for rare outliers"),
    "bound on the scales": (
        "100 nats",
        "growth of log_det per dimension, far outside of the data: without a bound one outlier ends the training",
    ),
    "latents": (
        "0, 1, 0",
        "mean, standard deviation, largest correlation: standard normal after training; before it, anything goes",
    ),
    "determinism": (
        "1e-05",
        "the same data twice in evaluation mode: dropout, or noise in a layer that should have none",
    ),
    "rows leak into one another": (
        "1e-02",
        "a row alone against the same row in its batch: evaluation must not use statistics of the batch",
    ),
    "training and evaluation": (
        "0.20 nats",
        "difference of the loss per dimension between the modes: running statistics of other weights",
    ),
    "state lost by saving": (
        "0",
        "tensors and flags that are neither parameters nor buffers do not survive saving",
    ),
    "data are continuous": (
        "",
        "values on a lattice have densities without bound: add uniform noise of one step (Dequantize)",
    ),
    "dequantisation noise": (
        "0.50, 0.289",
        "mean and deviation in bins of the noise, which must fill its bin; half of it is another density",
    ),
    "integral of the density": (
        "1 ± 0.05",
        "over a grid that holds data and samples: a wrong log_det, or mass in a filament finer than the grid",
    ),
    "log_det in the loss": (
        "below 0",
        "slope: the loss must fall as log_det rises, by 1 per nat of a mean over rows",
    ),
    "prior in the loss": (
        "1 ± 0.1",
        "weight of -log N(z; 0, I) against log_det: without it nothing holds the scales, the loss falls for ever",
    ),
    "bits/dim": ("", "8-bit data need 8 without any model, and no code goes below 0"),
}


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
        """The row of a check by its name; KeyError if that check was not made."""
        return {row.check: row for row in self.rows}[check]

    def __str__(self):
        widths = [
            max(map(len, column))
            for column in zip(Row._fields[:4], *(row[:4] for row in self.rows))
        ]
        lines = []
        for *cells, meaning in [Row._fields, *self.rows]:
            first, *rest = textwrap.wrap(meaning, 70)
            lines.append(
                "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths)), first])
            )
            lines += [" " * (sum(widths) + 8) + line for line in rest]
        return "\n".join(
            [*lines, "No check failed." if self.ok else f"Failed: {', '.join(self.failed)}."]
        )

    __repr__ = __str__

    def _repr_html_(self):
        def line(row, tag="td"):
            style = (
                ' style="font-weight: bold; background: rgba(213, 94, 0, 0.2)"'
                if row[1] == FAIL
                else ""
            )
            return (
                f"<tr{style}>"
                + "".join(
                    f'<{tag} style="text-align: left">{html.escape(cell)}</{tag}>' for cell in row
                )
                + "</tr>"
            )

        return f"<table><thead>{line(Row._fields, 'th')}</thead><tbody>{''.join(map(line, self.rows))}</tbody></table>"


@torch.enable_grad()
def check_flow(
    flow=None, x=None, loss=None, bits_per_dim=None, *, forward=None, inverse=None, context=None
):
    """Check a flow on data x (B, ...) and return a `Report`; 64 to 256 rows are a good number.

    flow          a flow of flowlib, or any module with forward(x) -> (z, log_det) and inverse(z) -> x or (x, log_det), with
                  z standard normal and log_det (B,) in nats; or two such functions as `forward` and `inverse`
    loss          the function that training minimises, loss(z, log_det) -> scalar: is the prior in it, and the right sign?
    bits_per_dim  the figure that was reported for 8-bit data x: can it be true?
    context       (B, C) for a conditional flow of flowlib

    A model of another library needs a wrapper of three lines, one of nflows for instance

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
        given = f"one of shape {tuple(x.shape)}" if torch.is_tensor(x) else f"a {type(x).__name__}"
        raise ValueError(f"x must be a tensor (B, ...) of at least two data points, got {given}")
    if flow is not None and not callable(getattr(flow, "inverse", None)):
        raise ValueError(f"a flow needs a method inverse(z); this {type(flow).__name__} has none")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        subject = Subject(
            _Functions(forward, inverse) if flow is None else flow, x.detach(), context
        )
        rows = list(_shapes(subject))
        if FAIL not in [row.verdict for row in rows]:  # everything else computes with z and log_det
            rows += [row for check in EVERY_TIME for row in check(subject)]
            rows += [] if loss is None else _loss(subject, loss)
            rows += [] if bits_per_dim is None else _bits_per_dim(subject, bits_per_dim)
    return Report(rows)


class _Functions(nn.Module):
    """Two functions with a flow's interface."""

    def __init__(self, forward, inverse):
        super().__init__()
        self.forward, self.inverse = forward, inverse


class Subject:
    """A copy of the flow in evaluation mode, its continuous part (the core), and the data y as that part sees them.

    `small` is the subject for what needs float64 and Jacobians: this one, or for large images the same layers on less.
    """

    @torch.no_grad()
    def __init__(self, flow, x, context):
        self.flow, self.is_module = copy.deepcopy(flow).eval(), not isinstance(flow, _Functions)
        self.convolutions = any(isinstance(m, nn.Conv2d) for m in flow.modules())
        self.x = x[: 16 if self.convolutions else 256]
        self.context = None if context is None else context[: len(self.x)]
        self.dequantize = flow.dequantize if isinstance(flow, Flow) else None
        self.core, self.y, self.D = (
            self.flow.bijection if isinstance(flow, Flow) else self.flow,
            self.x,
            x[0].numel(),
        )
        if self.dequantize is not None:
            self.y = self.core[0](self.x, noise=self.flow.draw_noise(len(self.x)))[0]
            self.core = self.core[1:]
        self.z, self.log_det = self.run(self.core, self.y)
        self.small = self._cut_out() or self
        if self.small is self:
            self.exact, self.exact_y = self._in_float64()
            self.tolerance = 1e-4 if self.exact_y.dtype == torch.float64 else 1e-2
        self.unit_interval = self.dequantize is not None or (
            self.D >= 16 and bool(self.y.min() >= 0 and self.y.max() <= 1)
        )

    def _in_float64(self, rows=32, shake=0.05):
        """The core in float64 and data for it. Zeros among the weights become noise, so that no layer is the identity."""
        if not self.is_module:
            return self.core, self.y[:rows]
        core = copy.deepcopy(self.core).double()
        for parameter in filter(torch.is_floating_point, core.parameters()):
            parameter += shake * torch.randn_like(parameter) * (parameter == 0)
        try:
            self.run(core, self.y[:rows].double())
        except RuntimeError:  # tensors that the module does not know of stayed in float32
            return self.core, self.y[:rows]
        return core, self.y[:rows].double()

    def _cut_out(self):
        """The same layers on the middle of the images; None for a small flow, and for one that is tied to its size."""
        tied = (nn.Linear, Flatten)
        limit = LARGEST_OF_CONVOLUTIONS if self.convolutions else LARGEST_JACOBIAN
        if (
            limit >= self.D
            or len(getattr(self.flow, "shape", ())) != 3
            or any(isinstance(m, tied) for m in self.flow.modules())
        ):
            return None
        flow = copy.deepcopy(self.flow)
        (C, H, W), modules = flow.shape, list(flow.modules())
        h = w = 2 ** max([2, *(len(m.scales) for m in modules if isinstance(m, MultiScale))])
        if h >= min(H, W):
            return None  # as small as it can be
        for module in modules:
            for name, board in module.named_buffers(recurse=False):
                if board.dtype == torch.bool and board.dim() == 2:
                    setattr(module, name, board[: len(board) * h // H, : board.shape[1] * w // W])
            if isinstance(module, MultiScale):
                module.shapes = [
                    torch.Size((c, height * h // H, width * w // W))
                    for c, height, width in module.shapes
                ]
        flow.shape = torch.Size((C, h, w))
        top, left = (H - h) // 2, (W - w) // 2
        return Subject(flow, self.x[:, :, top : top + h, left : left + w], self.context)

    def run(self, module, y, row=slice(None)):
        """(z, log_det) of the first len(y) rows, or of copies of one row."""
        context = (
            ()
            if self.context is None
            else (self.context[row][: len(y)].expand(len(y), -1).to(y.dtype),)
        )
        return module(y, *context)

    def undo(self, module, z):
        """x, and log_det or None."""
        context = () if self.context is None else (self.context[: len(z)].to(z.dtype),)
        out = module.inverse(z, *context)
        return out if isinstance(out, tuple) else (out, None)

    def watch(self, kind, look):
        """What look(module, inputs, output) says of every module of this kind, the data going through: {name: result}."""
        seen, modules = (
            {},
            [(name, m) for name, m in self.core.named_modules() if isinstance(m, kind)],
        )
        hooks = [
            m.register_forward_hook(lambda *args, name=name: seen.update({name: look(*args)}))
            for name, m in modules
        ]
        self.run(self.core, self.y)
        for hook in hooks:
            hook.remove()
        return seen


def _row(check, bad, measured, more="", threshold=None):
    """A row of the report; `bad` is a truth value, or the verdict itself."""
    verdict = bad if isinstance(bad, str) else FAIL if bad else OK
    return Row(
        check,
        verdict,
        measured,
        CHECKS[check][0] if threshold is None else threshold,
        CHECKS[check][1] + more,
    )


# The checks. Each takes the subject and gives rows. A comparison that NaN must fail is written `not ... <=`.


def _shapes(s):
    fits = len(s.z) == len(s.y) and s.z[0].numel() == s.D
    good = s.log_det.shape == (len(s.y),) and s.log_det.is_floating_point()
    more = (
        ""
        if fits
        else f"; and z must have as many values as x, not {tuple(s.z.shape)} for {tuple(s.y.shape)}"
    )
    yield _row(
        "shape of log_det",
        not (good and fits),
        f"{tuple(s.log_det.shape)}, {s.log_det.dtype}".replace("torch.", ""),
        more,
    )
    if good and fits:
        bad = int((~(s.z.flatten(1).isfinite().all(1) & s.log_det.isfinite())).sum())
        yield _row("finite", bad, f"{bad} of {len(s.z)}")


@torch.no_grad()
def _round_trip(s):
    small, spread = s.small, s.y.std().clamp(min=1e-12)
    off = lambda module, y: (
        (s.undo(module, s.run(module, y)[0])[0] - y).abs().max() / spread
    ).item()
    error, formula, more = off(s.core, s.y), off(small.exact, small.exact_y), ""
    if not formula <= 1e-4:
        more = (
            f"; off by {formula:.0e} in float64: the inverse is another function, look at masks and joins"
            + _first_layer(small, off)
        )
    elif not error <= 1e-3:
        more = (
            f"; only {formula:.0e} in float64: this is rounding, which grows with depth and scales"
        )
    if isinstance(s.core, Chain) and len(s.core) >= 4:
        more += (
            "; "
            + ", ".join(
                f"{off(s.core[:n], s.y):.0e} after {n}"
                for n in (len(s.core) // 4, len(s.core) // 2, len(s.core))
            )
            + " layers"
        )
    yield _row(
        "round trip of data",
        not (error <= 1e-3 and formula <= 1e-4),
        f"{max(error, formula):.1e}",
        more,
    )
    if s.dequantize is not None:
        lost = int(
            (s.flow.inverse(s.flow.encode(s.x, s.context), s.context)[0] != s.x)
            .flatten(1)
            .any(1)
            .sum()
        )
        yield _row("round trip of images", lost, f"{lost} of {len(s.x)}")
        return
    z = torch.randn_like(s.z)
    error = (
        (s.run(s.core, s.undo(s.core, z)[0])[0] - z).abs().flatten(1).amax(1).quantile(0.9).item()
    )
    yield _row("round trip of latents", not error <= 0.1, f"{error:.1e}")


def _first_layer(s, error):
    """The first layer of a chain whose own error is large, in words."""
    y = s.exact_y
    for i, layer in enumerate(s.exact if isinstance(s.exact, Chain) else []):
        if not error(layer, y) <= 1e-4:
            return f"; first in layer {i}, {type(layer).__name__}"
        y = s.run(layer, y)[0].detach()
    return ""


def _jacobians(s):
    large, s = s, s.small
    if s.D > LARGEST_JACOBIAN:
        yield _row(
            "log_det of forward",
            NOTE,
            "not checked",
            f"; D = {s.D:,} is above {LARGEST_JACOBIAN:,}: check a smaller instance of this model",
        )
        return
    error, jacobians = _log_det_error(s, s.exact, s.exact_y)
    more = (
        ""
        if error <= s.tolerance
        else _first_layer(s, lambda layer, y: _log_det_error(s, layer, y)[0])
    )
    more += "" if s is large else f"; the same layers on boards cut out of the images, D = {s.D}"
    yield _row(
        "log_det of forward", not error <= s.tolerance, f"{error:.1e}", more, f"{s.tolerance:.0e}"
    )
    alone = int(
        ((jacobians.abs() > 1e-12).any(0).sum(1) <= 1).sum()
    )  # latents that depend on one input at most
    yield _row(
        "dimensions never coupled",
        alone and s.D > 1 and (FAIL if s.is_module else NOTE),
        f"{alone} of {s.D}",
    )


def _log_det_error(s, module, y):
    """How far log_det is from slogdet of the Jacobian, relative above 1; and the Jacobians, (B, D, D)."""
    y = y[: 4 if s.D <= 64 else 1]
    jacobians = torch.stack([_jacobian(s, module, y, i) for i in range(len(y))]).double()
    expected, claimed = (
        torch.linalg.slogdet(jacobians).logabsdet,
        s.run(module, y)[1].detach().double(),
    )
    return ((claimed - expected).abs() / expected.abs().clamp(min=1)).nan_to_num(
        math.inf
    ).max().item(), jacobians


def _jacobian(s, module, y, i, at_once=128):
    """dz/dx of row i, (D, D): every output is differentiated in a copy of the row."""
    blocks, row = [], slice(i, i + 1)
    for outputs in torch.arange(y[i].numel()).split(at_once):
        copies = y[row].repeat(len(outputs), *[1] * (y.dim() - 1)).requires_grad_()
        z = s.run(module, copies, row)[0].flatten(1)
        blocks.append(
            torch.autograd.grad(z[torch.arange(len(outputs)), outputs].sum(), copies)[0].flatten(1)
        )
    return torch.cat(blocks)


@torch.no_grad()
def _inverse_log_det(s):
    def off(module, y):
        z, there = s.run(module, y)
        back = s.undo(module, z)[1]
        return (
            0.0 if back is None else ((back + there).abs() / there.abs().clamp(min=1)).max().item()
        )

    s = s.small
    if s.undo(s.core, s.z)[1] is not None:
        error = off(s.exact, s.exact_y)
        bad = not error <= s.tolerance
        yield _row(
            "log_det of inverse",
            bad,
            f"{error:.1e}",
            _first_layer(s, off) if bad else "",
            f"{s.tolerance:.0e}",
        )


def _gradients(s, steps=3):
    flow, alive = copy.deepcopy(s.flow).train(), set()
    named = {name: p for name, p in flow.named_parameters() if p.requires_grad}
    for _ in range(steps if named else 0):
        flow.zero_grad()
        z, log_det = s.run(flow, s.x)
        nll(z.flatten(1), log_det).backward()
        for name, p in named.items():
            if p.grad is not None and p.grad.any():
                alive.add(name)
                p.data -= 1e-3 * p.grad.sign()
    dead = [name for name in named if name not in alive]
    more = (
        f", the first {dead[0]}: zero times zero, units that never fire, or not in the graph"
        if dead
        else ""
    )
    yield _row("parameters without gradient", dead, f"{len(dead)} of {len(named)}", more)
    silent = s.watch(nn.ReLU, lambda _, inputs, out: not out.any())
    names = [name for name, is_silent in silent.items() if is_silent]
    yield _row(
        "dead networks",
        names,
        f"{len(names)} of {len(silent)}",
        f", the first {names[0]}" if names else "",
    )


@torch.no_grad()
def _scales(s):
    def look(coupling, inputs, _):
        size = coupling.shift_and_log_scale(coupling.split(inputs[0])[0], *inputs[1:])[1].abs()
        return size.max().item(), (size > 0.99 * coupling.rescale.abs().max()).float().mean().item()

    if seen := list(s.watch(AffineCoupling, look).values()):
        largest, saturated = map(max, zip(*seen))
        yield _row(
            "log-scales",
            NOTE,
            f"|s| to {largest:.2f}, {saturated:.0%} saturated",
            " " + " ".join(f"{size:.2f}" for size, _ in seen),
        )
    for share in s.watch(
        SoftLog, lambda m, inputs, _: (inputs[0].abs() > m.tau).float().mean().item()
    ).values():
        yield _row("beyond SoftLog's tau", NOTE, f"{share:.2%} of values")
    core, y = s.small.exact, s.small.exact_y
    if isinstance(core, Chain) and isinstance(core[0], Logit):
        y, core = core[0](y)[0], core[1:]
    if not s.is_module or (y.min() >= 0 and y.max() <= 1):
        yield _row(
            "bound on the scales",
            NOTE,
            "not probed",
            "; functions, or data in the unit interval, may not go there",
        )
        return
    near, far = (s.small.run(core, factor * y)[1] for factor in (1e3, 1e6))
    growth = ((far - near).abs().max() / s.small.D).item()
    yield _row(
        "bound on the scales",
        not growth <= 100,
        f"{growth:.1e} nats",
        "; from 1,000 to 1,000,000 times as far out",
    )


@torch.no_grad()
def _latents(s):
    z = s.z.flatten(1).double()
    correlation = (
        f", {torch.corrcoef(z.T).nan_to_num(0).fill_diagonal_(0).abs().max():.2f}"
        if 1 < s.D <= 64
        else ""
    )
    yield _row("latents", NOTE, f"{z.mean():+.2f}, {z.std():.2f}{correlation}")


@torch.no_grad()
def _modes(s):
    def off(out, n):
        error = sum(
            ((new - old[:n]).abs() / (1 + old[:n].abs())).max().item()
            for new, old in zip(out, (s.z, s.log_det))
        )
        return math.inf if math.isnan(error) else error

    error = off(s.run(s.core, s.y), len(s.y))
    yield _row("determinism", error > 1e-5, f"{error:.1e}")
    try:
        error = off(s.run(s.core, s.y[:1]), 1)
    except (ValueError, RuntimeError):  # batch norm in training mode refuses a single row
        error = math.inf
        s.core.eval()
    yield _row("rows leak into one another", error > 1e-2, f"{error:.1e}")
    z, log_det = s.run(copy.deepcopy(s.core).train(), s.y)
    training, evaluation = (
        nll(z.flatten(1), log_det).item() / s.D,
        nll(s.z.flatten(1), s.log_det).item() / s.D,
    )
    gap = abs(training - evaluation)
    yield _row(
        "training and evaluation",
        not gap <= 0.2,
        f"{gap:.2f} nats",
        f"; training {training:.2f}, evaluation {evaluation:.2f}",
    )


@torch.no_grad()
def _state(s):
    inputs, lost = s.watch(nn.Module, lambda _, inputs, __: inputs), []
    for name, module in s.core.named_modules():
        for key in (
            set(vars(module)) - set(vars(nn.Module()))
            if not type(module).__module__.startswith("torch.")
            else ()
        ):
            value = getattr(module, key)
            if torch.is_tensor(value) or (
                isinstance(value, bool)
                and name in inputs
                and _starts_again(module, inputs[name], key)
            ):
                lost.append(f"{name}.{key}".strip("."))
    if built := getattr(s.flow, "built_by", None):
        fresh = build(built["builder"], **built["arguments"])
        fresh.load_state_dict(s.flow.state_dict())
        core = fresh.bijection.to(s.z).eval()
        lost += (
            []
            if torch.equal(s.run(core[1:] if s.dequantize else core, s.y)[0], s.z)
            else ["something: a fresh model with this state differs"]
        )
    yield _row(
        "state lost by saving", lost, f"{len(lost)} found", f": {', '.join(lost)}" if lost else ""
    )


def _starts_again(module, inputs, flag):
    """Whether a layer with this flag the other way round, as in a fresh model, loads its weights and then writes them anew."""
    if module._load_state_dict_pre_hooks:
        return False  # it sees to that itself
    fresh = copy.deepcopy(module).train()
    setattr(fresh, flag, not getattr(fresh, flag))
    fresh.load_state_dict(module.state_dict())
    with contextlib.suppress(Exception):  # most flags say how to compute, and the other way fails
        fresh(2 * inputs[0], *inputs[1:])  # other data than it may have started from
    return any(
        not torch.equal(new, old) for new, old in zip(fresh.parameters(), module.parameters())
    )


@torch.no_grad()
def _data(s):
    if s.dequantize is None:
        distinct, values = len(s.y.unique()), s.y.numel()
        yield _row(
            "data are continuous",
            distinct <= 1024 and values >= 20 * distinct,
            f"{distinct:,} distinct of {values:,}",
        )
    if s.unit_interval and not isinstance(s.dequantize, VariationalDequantize):
        u = (s.y * 256) % 1 if s.dequantize is None else s.y * s.dequantize.levels - s.x
        bad = abs(u.std() - 12**-0.5) > 0.02 or abs(u.mean() - 0.5) > 0.05
        yield _row("dequantisation noise", bool(bad), f"{u.mean():.2f}, {u.std():.3f}")


@torch.no_grad()
def _integral(s, side=256):
    if s.y[0].shape != (2,) or s.context is not None:
        return
    points = torch.cat([s.y, s.undo(s.core, torch.randn(4_000, 2).to(s.z))[0]])
    low, high = points[points.isfinite().all(1)].quantile(
        torch.tensor([0.001, 0.999]).to(points), dim=0
    )
    low, high = low - 0.25 * (high - low), high + 0.25 * (high - low)
    centres = (torch.arange(side).to(s.y) + 0.5) / side
    z, log_det = s.run(s.core, low + (high - low) * torch.cartesian_prod(centres, centres))
    total = (standard_normal_log_prob(z) + log_det).double().exp().mean().item() * (
        high - low
    ).prod().item()
    yield _row("integral of the density", not abs(total - 1) <= 0.05, f"{total:.3f}")


EVERY_TIME = [
    _round_trip,
    _jacobians,
    _inverse_log_det,
    _gradients,
    _scales,
    _latents,
    _modes,
    _state,
    _data,
    _integral,
]


def _loss(s, loss):
    z, log_det = s.z.flatten(1).clone().requires_grad_(), s.log_det.clone().requires_grad_()
    by_z, by_log_det = torch.autograd.grad(loss(z, log_det).mean(), (z, log_det), allow_unused=True)
    slope = 0.0 if by_log_det is None else by_log_det.sum().item()
    pull = (
        0.0 if by_z is None else ((by_z * z).sum() / z.square().sum()).item() * len(z)
    )  # 1 for the mean of |z|^2 / 2
    yield _row("log_det in the loss", not slope < 0, f"{slope:+.3g}")
    weight = pull / (abs(slope) or 1.0)
    yield _row("prior in the loss", not abs(weight - 1) <= 0.1, f"{weight:.3g}")


@torch.no_grad()
def _bits_per_dim(s, given):
    bits = lambda nats: to_bits(nats, s.x.shape[1:]).mean().item()  # noqa: E731
    levels = 8 if s.dequantize is None else s.dequantize.bits
    if not s.unit_interval:
        more = (
            f"; is log {2**levels} missing? {given:.3f} + {levels} = {given + levels:.3f}"
            if -levels < given <= 0
            else ""
        )
        yield _row("bits/dim", not 0 < given <= levels, f"{given:.3f}", more, f"0 to {levels}")
        return
    own = bits(standard_normal_log_prob(s.z.flatten(1)) + s.log_det) + levels
    logit = (
        bits(s.core[0](s.y)[1])
        if isinstance(s.core, Chain) and isinstance(s.core[0], Logit)
        else 0.0
    )
    stories = {f"log {2**levels} is missing": -levels, "the logit's log_det is missing": -logit}
    stories |= {
        f"log {2**levels} and the logit's log_det are missing": -levels - logit,
        f"log {2**levels} was added twice": levels,
    }
    more = f"; measured here on {len(s.x)} rows: {own:.3f}"
    for story, change in stories.items():
        if abs(given - own) > 0.1 and abs(given - own - change) <= 0.1:
            more += f"; {story}: {own:.3f} {change:+.3f} = {own + change:.3f}"
    yield _row(
        "bits/dim",
        not (given > 0 and abs(given - own) <= 0.1),
        f"{given:.3f}",
        more,
        f"{own:.3f} ± 0.1",
    )
