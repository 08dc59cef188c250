"""`check_flow`: find out what is wrong with a flow, one of flowlib's or anybody's.

Everything is measured on copies: weights, gradients, statistics, mode and random state stay.
"""

import contextlib
import copy
import inspect
import itertools
import math
import random
import re
import textwrap
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .bijections import Chain, Logit
from .common import as_tensor, generator
from .dequantize import Dequantize, VariationalDequantize
from .flow import Flow, standard_normal_log_prob
from .losses import bits_per_dim as to_bits
from .losses import nll
from .models import build
from .norms import ActNorm

__all__ = ["check_flow", "Report", "Row"]

SECONDS = 10  # that the Jacobian at one data point may take
TEXTS = """
- shape of log_det | (B,), float | forward must give z as large as x and one log_det per row: a mean
  or a missing sum trains on a loss of the wrong size, so sum over all dimensions but the batch.
- finite | 0 | Rows give NaN or infinity: the first such batch ends the training, so look for data
  outside of a layer's domain, and for scales without a bound.
- determinism | 1e-05 | The same rows give other latents again: validation flickers and nothing can
  be inverted, so switch dropout off in evaluation and leave noise to Dequantize.
- rows leak into one another | 1e-02 | A row alone is mapped otherwise than in its batch: losses
  depend on the batch size, so use running statistics in evaluation mode.
- round trip of data | 1e-03 | inverse(forward(x)) is not x, in standard deviations: the loss never
  calls inverse and looks fine, but samples are wrong, so undo the same steps in reverse order.
- round trip of latents | 1e-01 | forward(inverse(z)) is not z for z ~ N(0, I): likelihoods look
  fine, samples do not follow them, so look for clamps and for what inverse does otherwise.
- round trip of images | 0 | inverse does not return the integers behind encode: reconstructions are
  off by grey levels, so check the rounding and the number of levels.
- log_det of forward | 1e-03 | log_det is not log |det dz/dx| by autograd: training climbs the
  error, below any true loss, so write down the diagonal of the Jacobian and sum its logs.
- dimensions never coupled | 0 | These latents depend on one input only: the loss levels off too
  high, samples look Gaussian there, so let the masks alternate, or permute between layers.
- log_det far from the data | 5e-01 | Far out log_det is not the Jacobian's, as behind a clamp:
  outliers fold onto other points at a made-up loss, so bend values (SoftLog), never cut them.
- log_det of inverse | 1e-03 | It is not minus the log_det of forward: maximum likelihood looks
  fine, a variational fit climbs the error, so turn its sign or mend its sum.
- context | > 0 | Another context gives the same latents: the loss levels off at that of a flow
  without one, so hand the context on through every layer to the networks.
- log_prob | 1e-04 | log_prob is not log N(z; 0, I) + log_det: reported likelihoods are off while
  training looks fine, so add both, D/2 log 2 pi included, and keep the graph.
- samples | 0, 1 | sample does not draw what log_prob describes: pictures are too smooth or too wild
  for it, so send N(0, I) times the temperature, drawn from the seed, through inverse.
- gradients through both directions | 1e-02 | Autograd disagrees with finite differences: part of
  the model is not trained although its loss is right, so remove detach, .data and no_grad.
- parameters without gradient | 0 | Weights got no gradient in the first steps: they stay at their
  start for ever, so look for zero times zero, silent units, and weights outside of the graph.
- dead networks | 0 | ReLU layers are silent on every row: what follows is a constant, the loss
  levels off too high, so start this network anew with a smaller learning rate.
- bound on the scales | 100 nats | log_det per dimension grows without bound far out: all is well
  until one outlier makes the loss NaN, so bound log-scales by a multiple of tanh.
- arithmetic in float64 | yes | A float64 flow computes in float32 somewhere: deep chains lose
  digits and inverses drift, so make new tensors like the input, and drop .float().
- latents | 0, 1, 0 | Mean, standard deviation, largest correlation: standard normal after training.
- training and evaluation | 0.20 nats | The loss per dimension differs between the modes: training
  looks fine, validation does not, so estimate the statistics anew (training.reestimate_statistics).
- state lost by saving | 0 | The saved state does not bring this flow back: after loading,
  likelihoods and samples are another model's, so keep masks, permutations, flags, bounds in
  buffers.
- data are continuous | no lattice | Values repeat as on a lattice, where densities have no bound:
  the loss falls for ever and means nothing, so add uniform noise of one step (Dequantize).
- dequantisation noise | 0.50, 0.289 | The noise does not fill its bin, by mean and deviation:
  bits/dim look better than they are, so add u ~ U[0, 1), drawn for every value, before dividing.
- integral of the density | 1 ± 0.05 | Over a grid of data and samples the density has another mass:
  the loss is off by its log, so mend log_det, then look for a filament finer than the grid.
- log_det in the loss | below 0 | The loss does not fall as log_det rises: latents collapse while
  the loss looks too good to be true, so subtract log_det, as losses.nll does.
- prior in the loss | 1 ± 0.1 | -log N(z; 0, I) weighs otherwise than log_det: without it the loss
  falls for ever, with less z stays too wide, so sum z^2 / 2 over dimensions, then average rows.
- bits/dim | 0 to 8 | This figure cannot be: 8 bits need no model, no code goes below 0, and terms
  outside of log_prob are soon forgotten, so put the preprocessing into the flow.
"""
TEXTS = [entry.split("|", 2) for entry in TEXTS.strip()[2:].split("\n- ")]
TEXTS = {name.strip(): (limit.strip(), " ".join(text.split())) for name, limit, text in TEXTS}


class Row(NamedTuple):
    """One check, "ok", "FAIL" or "note"; `meaning` holds if it fails, and tells what was found."""

    check: str
    verdict: str
    measured: str
    threshold: str
    meaning: str


class Report:
    """What `check_flow` found: `rows`, and `ok` if none of them failed. Prints as a table."""

    def __init__(self, rows):
        self.rows = rows

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [row.check for row in self.rows if row.verdict == "FAIL"]

    def __getitem__(self, check: str) -> Row:
        """The row of a check by its name; KeyError if that check was not made."""
        return {row.check: row for row in self.rows}[check]

    def __repr__(self):
        lines = []
        for *cells, meaning in [Row._fields, *self.rows]:
            lines.append("{:<36}{:<9}{:<27}{}".format(*cells).rstrip())
            if cells[1] in ("FAIL", "note"):
                lines += textwrap.wrap(meaning, 88, initial_indent="    ", subsequent_indent="    ")
        return "\n".join([*lines, f"Failed: {', '.join(self.failed) or 'nothing'}."])


@torch.inference_mode(False)
@torch.no_grad()
def check_flow(
    flow=None, x=None, loss=None, bits_per_dim=None, *, forward=None, inverse=None, context=None
) -> Report:
    """Check a flow on data x (B, ...) and return a `Report`; 64 to 256 rows are a good number.

    flow          a flow of flowlib, or any module with forward(x) -> (z, log_det) and
                  inverse(z) -> x or (x, log_det), z standard normal and log_det (B,) in nats, and
                  maybe log_prob(x), sample(n); or two functions as `forward` and `inverse`
    loss          the function that training minimises, loss(z, log_det) -> scalar
    bits_per_dim  what was reported for 8-bit data x: can it be true?
    context       one row for each of x, for a conditional flow

    What the flow does wrong is told in rows, errors too. Raises ValueError if neither a flow nor
    both functions are given, for less than two data points, for a module without an inverse, for
    one that cannot be copied, and for data that a flow of flowlib refuses.

    >>> x = torch.randn(64, 2)
    >>> check_flow(x=x, forward=lambda x: (2 * x, 0 * x[:, 0]), inverse=lambda z: z / 2).failed
    ['log_det of forward', 'log_det far from the data', 'integral of the density']

    A flow of another library needs a wrapper, one of FrEIA for instance a module with

    >>> forward = lambda self, x: self.flow(x)
    >>> inverse = lambda self, z: self.flow(z, rev=True)
    """
    if (flow is None) == (forward is None or inverse is None):
        raise ValueError("give a flow, or both of forward= and inverse=")
    x = as_tensor(x, "x")
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(f"x must be (B, ...) with at least two data points, got {tuple(x.shape)}")
    if flow is None:
        flow = nn.Module()
        flow.forward, flow.inverse = forward, inverse
    if not callable(getattr(flow, "inverse", None)):
        raise ValueError(f"a flow needs a method inverse(z); this {type(flow).__name__} has none")
    if isinstance(flow, Flow):
        x, context = flow.as_input(x, context)
    with contextlib.ExitStack() as stack:  # every random state comes back
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        return Report(list(Subject(flow, x, context, loss, bits_per_dim).rows()))


def _copy(flow):
    """A deep copy; activations that a module keeps lose their graph, which torch cannot copy."""
    kept = tree_leaves([vars(module) for module in flow.modules()])
    graphs = [t for t in kept if torch.is_tensor(t) and not t.is_leaf]
    try:
        return copy.deepcopy(flow, {id(t): t.detach().clone() for t in graphs})
    except Exception as error:
        raise ValueError(f"this flow cannot be copied, nor then checked: {error}") from error


def _in_training(flow):
    """A copy in training mode, but for dropout, and for layers with statistics of the batch."""
    flow = _copy(flow).train()
    for layer in flow.modules():
        if hasattr(layer, "running_mean") or isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    return flow


def _like(module, x):
    """A tensor of the dtype and on the device of a module's weights."""
    weights = [p for p in module.parameters() if p.is_floating_point()]
    return min(weights, key=lambda p: p.dtype != x.dtype, default=x)


def _difference(new, old):
    """The largest difference in any pair of tensors, relative above 1; infinite if there is NaN."""
    pairs = [(p, q) for p, q in zip(tree_leaves(new), tree_leaves(old)) if torch.is_tensor(p)]
    errors = [((p - q).abs() / q.abs().clamp(min=1)).nan_to_num(math.inf).max() for p, q in pairs]
    return max(map(float, errors), default=0.0)


def _sums(out):
    """Two numbers that stand for (z, log_det): a weighted sum of z, and the sum of log_det."""
    z, log_det = (torch.zeros(1) if t is None else t.double().flatten() for t in out)
    weights = torch.arange(len(z), device=z.device).double().cos()
    return torch.stack([weights @ z, log_det.sum().to(z)])


def _slopes(function, tensors, directions, h):
    """Central differences of the two sums over function(), along directions of these tensors."""
    sums = []
    for step in (h, -2 * h, h):
        for tensor, direction in zip(tensors, directions):
            tensor.data += step * direction
        sums.append(_sums(function()).detach())
    return (sums[0] - sums[1]) / (2 * h)


class Subject:
    """A copy of the flow in evaluation mode, and the values v (B, ...) on which z depends smoothly.

    They are the data, or for a flow that begins with `Dequantize` the noise that it adds: the
    Jacobian by this noise is that of the whole flow. Each check is a generator of arguments for
    `row`, called after the first of its rows in `TEXTS`.
    """

    def __init__(self, flow, x, context, loss, bits_per_dim):
        self.flow, self.loss, self.given_bits = _copy(flow).eval(), loss, bits_per_dim
        images = any(isinstance(m, nn.Conv2d) for m in flow.modules())
        n = max(4, min(16, 2**14 // x[0].numel())) if images else 256
        self.x, self.D = x[:n].detach().clone(), x[0].numel()
        self.given_context = None if context is None else context[:n].detach().clone()
        self.noise = self.flow.dequantize if isinstance(flow, Flow) else None
        if self.noise is not None:
            self.v = self.flow.draw_noise(len(self.x))
        else:
            self.v = self.x.to(_like(flow, self.x)) if x.is_floating_point() else self.x
        with contextlib.suppress(Exception):  # `shape_of_log_det` meets it again
            self.start()
        self.untouched = _copy(self.flow)

    def start(self):
        """Let layers that start from a first batch do so: a new flow is checked as it will be."""
        for layer in self.flow.modules():
            if isinstance(layer, ActNorm) and not layer.initialised:
                first = lambda m, args: None if m.initialised else m.initialise(args[0])  # noqa: E731
                layer.register_forward_pre_hook(first)
        self.forward(self.flow, self.v)
        new = _copy(self.flow).train()
        norms = [m for m in new.modules() if not getattr(m, "running_mean", self.v + 1).any()]
        if untrained := any(p.requires_grad and not p.any() for p in new.parameters()):
            for norm in norms:
                norm.momentum = 1.0  # one batch makes all of its statistics
        self.forward(new, self.v)
        started = not all(map(torch.equal, new.parameters(), self.flow.parameters()))
        if started or (untrained and norms):
            self.flow = new.eval()

    def look(self):
        """Take down z and log_det, and make `exact`: in float64, and no layer at the identity."""
        self.z, self.log_det = self.forward(self.flow, self.v)
        self.y = self.after_noise(self.flow, self.v)
        inside = self.D >= 16 and bool(self.y.min() >= 0 and self.y.max() <= 1)
        self.in_unit = self.noise is not None or inside
        self.exact, self.precise = _copy(self.flow).double(), False
        self.u = self.v[: max(2, min(32, 4096 // self.D))].double()
        for p in self.exact.parameters():
            if p.requires_grad and p.is_floating_point():
                p += (p == 0) * torch.randn_like(p) * 0.2 / p.shape[1:].numel() ** 0.5
        try:
            z, _ = self.forward(self.exact, self.u)
            u, run = self.u.clone(), lambda: self.forward(self.exact, u)
            fine, coarse = (_slopes(run, [u], [torch.ones_like(u)], h) for h in (1e-8, 1e-6))
            smooth = (fine - coarse).abs() <= 1e-2 * coarse.abs() + 1e-3
            self.precise = z.dtype == torch.float64 and bool(smooth.all())
        except RuntimeError:  # tensors that the module does not know of stayed in float32
            self.exact, self.u = self.flow, self.v[: len(self.u)]
        self.tolerance = 1e-3 if self.precise else 1e-2

    def forward(self, module, v, rows=None):
        """(z, log_det) of values v, which belong to these rows of the data."""
        rows = torch.arange(len(v), device=v.device) if rows is None else rows
        if self.noise is not None and isinstance(module, (Flow, Dequantize)):
            return module(self.x[rows], *(self.given(v, rows) or [None]), noise=v.clone())
        return module(v.clone(), *self.given(v, rows))

    def inverse(self, module, z):
        """(y, log_det or None) of latents z, which belong to the first rows."""
        z = z.to(_like(module, z))
        out = module.inverse(z.clone(), *self.given(z, slice(len(z))))
        return out if isinstance(out, tuple) else (out, None)

    def given(self, like, rows):
        """The context of these rows, as further arguments."""
        if self.given_context is None:
            return []
        context = self.given_context[rows]
        return [context.to(like.dtype) if context.is_floating_point() else context]

    def core(self, flow):
        """The part of the flow that follows its noise; `after_noise` is what goes into it."""
        return flow if self.noise is None else flow.bijection[1:]

    def after_noise(self, flow, v):
        return v if self.noise is None else self.forward(flow.dequantize, v)[0].detach()

    def first_wrong(self, is_wrong, n=None):
        """The first layer of a chain for which is_wrong(layer, its input), in words."""
        chain, v = getattr(self.exact, "bijection", self.exact), self.u[:n]
        for i, layer in enumerate(chain if isinstance(chain, Chain) else []):
            if is_wrong(layer, v):
                return f"First in layer {i}, {type(layer).__name__}."
            v = self.forward(layer, v)[0].detach()
        return ""

    def rows(self):
        """All rows that can be made; only the first check's if it fails: all need z and log_det."""
        for name in TEXTS:
            check, ok = getattr(self, re.sub(r"\W", "_", name), tuple), True
            try:
                for found in check():
                    yield (row := _row(*found))
                    ok &= row.verdict != "FAIL"
            except (NotImplementedError, TimeoutError) as error:
                yield _row(name, "note", f"Not checked, {error}.", "not checked")
            except Exception as error:  # a verdict, never a traceback
                yield _row(name, "FAIL", f"The error says: {error}", type(error).__name__)
                ok = False
            if name == "shape of log_det" and not ok:
                return

    def shape_of_log_det(self):
        z, log_det = self.forward(self.flow, self.v)
        if not (torch.is_tensor(z) and torch.is_tensor(log_det)):
            measured = f"z a {type(z).__name__}, log_det a {type(log_det).__name__}"
            return (yield "shape of log_det", True, "", measured)
        fits = z.shape[:1] == self.v.shape[:1] and z[0].numel() == self.D
        good = fits and log_det.shape == (len(z),) and log_det.is_floating_point()
        more = "" if fits else f"Here z is {tuple(z.shape)} for x of {tuple(self.v.shape)}."
        yield "shape of log_det", not good, more, f"{tuple(log_det.shape)}, {log_det.dtype}"
        if good:
            bad = int((~(z.flatten(1).isfinite().all(1) & log_det.isfinite())).sum())
            yield "finite", bad, "", f"{bad} of {len(z)}"
            self.look()

    def determinism(self):
        yield "determinism", _difference(self.forward(self.flow, self.v), (self.z, self.log_det))

    def rows_leak_into_one_another(self):
        flow, true = _copy(self.flow), (self.z[:1], self.log_det[:1])
        alone, both = (self.inverse(self.core(flow), self.z[:n])[0] for n in (1, 2))
        error = _difference((self.forward(flow, self.v[:1]), alone), (true, both[:1]))
        yield "rows leak into one another", error

    def trip(self, module, y):
        """How far inverse(forward(y)) is from y at most, in standard deviations of y."""
        back = self.inverse(module, self.forward(module, y)[0])[0]
        return ((back - y).abs().max() / y.std().clamp(min=1e-12)).nan_to_num(math.inf).item()

    def round_trip_of_data(self):
        error, formula, more = self.trip(self.core(self.flow), self.y), 0.0, ""
        if self.precise:
            formula = self.trip(self.core(self.exact), self.after_noise(self.exact, self.u))
        if formula > 3e-4:
            first = self.first_wrong(lambda layer, y: self.trip(layer, y) > 3e-4)
            more = f"It is {formula:.0e} in float64, so the inverse is another function. {first}"
        elif error > 1e-3:
            more = f"It is {formula:.0e} in float64: this is rounding, from depth and scales."
        yield "round trip of data", max(error, 3 * formula), more

    def round_trip_of_latents(self):
        if self.noise is None:
            z = torch.randn_like(self.z)
            again = self.forward(self.flow, self.inverse(self.flow, z)[0])[0]
            worst = (again - z).abs().flatten(1).amax(1).nan_to_num(math.inf)
            return (yield "round trip of latents", worst.quantile(0.9).item())
        z = self.flow.encode(self.x, *self.given(self.v, slice(None)))
        lost = int((self.inverse(self.flow, z)[0] != self.x).flatten(1).any(1).sum())
        yield "round trip of images", lost, "", f"{lost} of {len(z)}"

    @torch.enable_grad()
    def log_det_errors(self, module, v, rows=None):
        """How far log_det is from slogdet of the Jacobian, row by row; log_det; the Jacobians.

        Every row is copied D times, once for each latent that is differentiated.
        """
        rows = torch.arange(len(v), device=v.device) if rows is None else rows
        D, blocks, start = v[0].numel(), [], time.perf_counter()
        parts = torch.arange(len(v) * D, device=v.device).split(max(16, min(256, 2**17 // D)))
        for index in parts:
            copies = v[index // D].requires_grad_()
            z = self.forward(module, copies, rows[index // D])[0].flatten(1)
            z = z.gather(1, (index % D)[:, None]).sum()
            blocks.append(torch.autograd.grad(z, copies, materialize_grads=True)[0].flatten(1))
            if (time.perf_counter() - start) / len(blocks) * len(parts) > SECONDS:
                raise TimeoutError("this Jacobian takes too long: check a smaller flow of its kind")
        jacobians = torch.cat(blocks).view(len(v), D, D).double()
        expected = torch.linalg.slogdet(jacobians).logabsdet
        claimed = self.forward(module, v, rows)[1].detach().double()
        errors = (claimed - expected).abs() / expected.abs().clamp(1, 1e9)
        return errors.nan_to_num(math.inf), claimed, jacobians

    def log_det_of_forward(self):
        v, D = self.u[: max(1, min(32, 512 // self.D))], self.D
        errors, _, J = self.log_det_errors(self.exact, v)
        error, tolerance, more = errors.max().item(), self.tolerance, ""
        if error > tolerance:
            wrong = lambda layer, v: self.log_det_errors(layer, v)[0].max() > tolerance  # noqa: E731
            more = self.first_wrong(wrong, len(v)) or "No layer is wrong alone: see their sum."
        yield "log_det of forward", error > tolerance, more, f"{error:.1e}", f"{tolerance:.0e}"
        curved = (J.amax(0) - J.amin(0)).amax(1) > 1e-6
        alone = ((J.abs() > 1e-12).any(0).sum(1) <= 1) & ~(curved & (not self.in_unit))
        many = 4 * alone.sum() >= D and [*self.flow.parameters()]
        bad = D > 1 and alone.any() and ("FAIL" if many else "note")
        yield "dimensions never coupled", bad, "", f"{int(alone.sum())} of {D}"
        if not self.in_unit:
            factors, centre = (3, 10, 100) if D <= 64 else (10,), self.u.mean(0)
            far = torch.cat([centre + factor * (v - centre) for factor in factors])
            rows = torch.arange(len(v), device=v.device).repeat(len(factors))
            errors, claimed, _ = self.log_det_errors(self.exact, far, rows)
            seen = errors[claimed.abs() <= 20 * D]  # beyond this float64 underflows
            yield "log_det far from the data", max(seen.tolist(), default=0.0)

    def log_det_of_inverse(self):
        def off(module, v):
            z, there = self.forward(module, v)
            back = self.inverse(module, z)[1]
            if self.noise is not None and module is self.exact:
                there = there - self.forward(module.dequantize, v)[1]
                there = there - self.D * self.noise.bits * math.log(2)
            return 0.0 if back is None else _difference(-back, there)

        error, tolerance = off(self.exact, self.u), self.tolerance
        more = self.first_wrong(lambda *f: off(*f) > tolerance) if error > tolerance else ""
        yield "log_det of inverse", error > tolerance, more, f"{error:.1e}", f"{tolerance:.0e}"

    def context(self):
        if self.given_context is not None:
            rows = torch.arange(len(self.u)).to(self.u.device).roll(1)
            z, other = (self.forward(self.exact, self.u, r)[0] for r in (None, rows))
            change = _difference(other, z)
            yield "context", not change > 0, "", f"{change:.1e}"

    def log_prob(self):
        if not hasattr(self.flow, "log_prob"):
            return
        v, seed = self.v, {"seed": 0} if isinstance(self.flow, Flow) else {}
        if self.noise is not None:
            v = self.flow.draw_noise(len(self.x), generator(0))
        z, log_det = self.forward(self.flow, v)
        x = v if self.noise is None else self.x
        outs = []
        with torch.enable_grad():
            for flow in (self.flow, _in_training(self.flow)):
                outs.append(flow.log_prob(x.clone(), *self.given(v, slice(None)), **seed))
        expected = standard_normal_log_prob(z.flatten(1)) + log_det
        error = _difference(outs[0], expected) if outs[0].shape == expected.shape else math.inf
        frozen = not any(p.requires_grad for p in self.flow.parameters())
        more = "" if outs[1].requires_grad or frozen else "It has no graph."
        yield "log_prob", math.inf if more else error, more

    def samples(self):
        n, off = 8192 // self.D + 64, 0.0
        if isinstance(self.flow, Flow):
            draws, m = self.flow.draw_latents(n, generator(0)), min(64, len(self.x))
            context = None if self.given_context is None else self.given(self.v, slice(m))[0]
            for T in (1.0, 0.5):
                x = self.flow.sample(m, temperature=T, seed=1, context=context)
                again = self.inverse(self.flow, T * self.flow.draw_latents(m, generator(1)))[0]
                off = max(off, _difference(x.double(), again.double()))
        elif hasattr(self.flow, "sample") and self.given_context is None:
            x = self.flow.sample(n)
            draws = self.forward(self.flow, x[0] if isinstance(x, tuple) else x)[0]
        else:
            return
        draws = draws.flatten(1).double().clamp(-6, 6)
        mean, std, margin = draws.mean(), draws.var(0).mean().sqrt(), 5 / draws.numel() ** 0.5
        bad = not (mean.abs() <= margin and (std - 1).abs() <= margin and off <= 1e-3)
        yield "samples", bad, "The numbers are of their latents.", f"{mean:+.2f}, {std:.2f}"

    @torch.enable_grad()
    def gradient_errors(self, function, tensors):
        """How far autograd is from finite differences along a random direction, for both sums."""
        ways = [torch.randn_like(t) / t.numel() ** 0.5 for t in tensors]
        fine, coarse = (_slopes(function, tensors, ways, h) for h in (1e-5, 1e-4))
        for total, slope, other in zip(_sums(function()), fine, coarse):
            along = 0 * slope
            if total.requires_grad:
                grads = torch.autograd.grad(
                    total, tensors, retain_graph=True, materialize_grads=True
                )
                along = sum((grad * way).sum() for grad, way in zip(grads, ways))
            error, noise = (
                (slope - t).abs() / (slope.abs() + t.abs() + 1e-5) for t in (along, other)
            )
            yield max(0.0, (error - 100 * noise).item())  # bisection and solvers are noisy

    def gradients_through_both_directions(self):
        flow, u = _in_training(self.exact), self.u.clone().requires_grad_()
        core, z = self.core(flow), self.forward(flow, u)[0].detach().clone().requires_grad_()
        weights = [p for p in flow.parameters() if p.requires_grad]
        there = [0.0, *self.gradient_errors(lambda: self.forward(flow, u), [u, *weights])]
        back = [0.0, *self.gradient_errors(lambda: self.inverse(core, z), [z, *weights])]
        more = f"See {'forward' if max(there) >= max(back) else 'inverse'}."
        yield "gradients through both directions", max(there + back), more

    def parameters_without_gradient(self, steps=3):
        flow, alive, silent = _copy(self.flow).train(), set(), {}
        named = {name: p for name, p in flow.named_parameters() if p.requires_grad}
        for _ in range(steps if named else 0):
            flow.zero_grad()
            with torch.enable_grad():
                z, log_det = self.forward(flow, self.v)
                nll(z.flatten(1), log_det).backward()
            for name, p in named.items():
                if p.numel() == 1 if p.grad is None else p.grad.any():
                    alive.add(name)  # a lone number outside of the graph is a setting
                p.data -= 0 if p.grad is None else 1e-3 * p.grad.sign()
        dead, flow = [name for name in named if name not in alive], _copy(self.flow)
        more = f"The first is {dead[0]}." if dead else ""
        yield "parameters without gradient", len(dead), more, f"{len(dead)} of {len(named)}"
        for module in flow.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda m, _, out: silent.update({m: not out.any()}))
        self.forward(flow, self.v)
        names = [name for name, m in flow.named_modules() if silent.get(m)]
        more = f"The first is {names[0]}." if names else ""
        yield "dead networks", len(names), more, f"{len(names)} of {len(silent)}"

    def bound_on_the_scales(self):
        chain, v = self.core(self.exact), self.after_noise(self.exact, self.u)
        chain = getattr(chain, "bijection", chain)
        if self.in_unit and isinstance(chain, Chain) and isinstance(chain[0], Logit):
            v, chain = chain[0](v)[0], chain[1:]
        elif self.in_unit or not [*self.flow.parameters()]:
            return
        near, far = (self.forward(chain, factor * v)[1] for factor in (1e3, 1e6))
        growth = ((far - near).abs().max() / self.D).item()
        yield "bound on the scales", not growth <= 100, "", f"{growth:.1e} nats"

    def latents(self):
        if self.z.dtype == torch.float64:
            yield "arithmetic in float64", not self.precise, "", "yes" if self.precise else "no"
        z = self.z.flatten(1).double()
        R = torch.corrcoef(z.T).nan_to_num(0).fill_diagonal_(0) if 1 < self.D <= 64 else z[0] * 0
        yield "latents", "note", "", f"{z.mean():+.2f}, {z.std():.2f}, {R.abs().max():.2f}"

    def training_and_evaluation(self):
        outs = (self.z, self.log_det), self.forward(_copy(self.flow).train(), self.v)
        here, there = (nll(z.flatten(1), log_det).item() / self.D for z, log_det in outs)
        more, gap = f"Evaluation {here:.2f}, training {there:.2f}.", abs(here - there)
        yield "training and evaluation", gap, more, f"{gap:.2f} nats"

    def state_lost_by_saving(self):
        def outputs(flow):
            return self.forward(flow, self.v), self.inverse(self.core(flow), self.z)

        lost, state, true = [], copy.deepcopy(self.flow.state_dict()), outputs(self.flow)
        moved = self.untouched.train()  # what training moves must come back
        with contextlib.suppress(Exception):
            self.forward(moved, self.v[: len(self.v) // 2])
            for tensor in filter(torch.is_floating_point, moved.state_dict().values()):
                tensor.mul_(1.1)
            outputs(moved.eval())
        moved.eval().load_state_dict(state)
        if _difference(outputs(moved), true) > 1e-4:
            lost.append("this flow, moved and loaded")
        if built := getattr(self.flow, "built_by", None):
            fresh = build(built["builder"], **built["arguments"]).to(self.z).eval()
            if [*map(type, fresh.modules())] == [*map(type, self.flow.modules())]:
                fresh.load_state_dict(state)
                lost += ["a new flow"] if _difference(outputs(fresh), true) > 1e-4 else []
        flow, inputs = _copy(self.flow), {}
        for module in flow.modules():
            module.register_forward_hook(lambda m, args, out: inputs.update({m: args}))
        self.forward(flow, self.v)
        known = {*flow.modules(), *flow.parameters()}
        for name, m in flow.named_modules():
            if type(m).__module__.split(".")[0] not in ("torch", "flowlib"):
                lost += [f"{name or 'flow'}: {it}" for it in _forgotten(m, inputs.get(m), known)]
        more = f"See {'; '.join(lost)}." if lost else ""
        yield "state lost by saving", len(lost), more, f"{len(lost)} found"

    def data_are_continuous(self):
        noises = [(self.y * 256) % 1]
        if self.noise is None:
            distinct, n = len(self.y.unique()), self.y.numel()
            bad = distinct <= 1024 and n >= 20 * distinct
            yield "data are continuous", bad, "", f"{distinct:,} distinct of {n:,}"
        elif isinstance(self.noise, VariationalDequantize):
            noises = [self.v]
        else:
            noises = [y * self.noise.levels - self.x for y in (self.y, self.noise(self.x)[0])]
        if self.in_unit:
            pairs = [(u.mean(), *(u.flatten(1).std(dim).mean() for dim in (0, 1))) for u in noises]
            mean, *stds = max(pairs, key=lambda pair: abs(min(pair[1:]) - 12**-0.5))
            bad = not (abs(min(stds) - 12**-0.5) <= 0.02 and abs(mean - 0.5) <= 0.05)
            yield "dequantisation noise", bad, "", f"{mean:.2f}, {min(stds):.3f}"

    def integral_of_the_density(self, side=256):
        if self.y[0].shape != (2,) or self.given_context is not None:
            return
        points = torch.cat([self.y, self.inverse(self.flow, torch.randn(4_000, 2).to(self.z))[0]])
        levels = torch.tensor([0.001, 0.999]).to(points)
        low, high = points[points.isfinite().all(1)].quantile(levels, dim=0)
        low, size = low - 0.25 * (high - low), 1.5 * (high - low)
        centres = (torch.arange(side).to(low) + 0.5) / side
        z, log_det = self.forward(self.flow, low + size * torch.cartesian_prod(centres, centres))
        density = (standard_normal_log_prob(z) + log_det).double().exp()
        total = (density.mean() * size.prod()).item()
        yield "integral of the density", not abs(total - 1) <= 0.05, "", f"{total:.3f}"

    def log_det_in_the_loss(self):
        if self.loss is None:
            return
        given = self.z.flatten(1), self.log_det
        z, log_det = (t.detach().clone().requires_grad_() for t in given)
        with torch.enable_grad():
            total = self.loss(z, log_det).mean()
        by_z, by_log_det = torch.autograd.grad(total, (z, log_det), materialize_grads=True)
        slope = by_log_det.sum().item()
        yield "log_det in the loss", not slope < 0, "", f"{slope:+.3g}"
        pull = (by_z * z).sum() / z.square().sum() * len(z)  # 1 for the mean of |z|^2 / 2
        weight = pull.item() / (abs(slope) or 1.0)
        yield "prior in the loss", not abs(weight - 1) <= 0.1, "", f"{weight:.3g}"

    def bits_dim(self):
        if (given := self.given_bits) is None:
            return
        bits = lambda nats: to_bits(nats, self.x.shape[1:]).mean().item()  # noqa: E731
        levels = 8 if self.noise is None else self.noise.bits
        if not self.in_unit:
            more = f"Is log {2**levels} missing? {given:.3f} + {levels} = {given + levels:.3f}."
            return (yield "bits/dim", not 0 < given <= levels, more * (given <= 0), f"{given:.3f}")
        own, core = (
            bits(standard_normal_log_prob(self.z.flatten(1)) + self.log_det),
            self.core(self.flow),
        )
        own += levels if self.noise is None else 0
        has_logit = isinstance(core, Chain) and isinstance(core[0], Logit)
        logit = bits(core[0](self.y)[1]) if has_logit else 0.0
        stories = {f"log {2**levels} is missing": -levels, "the logit's log_det is missing": -logit}
        stories[f"log {2**levels} and the logit's log_det are missing"] = -levels - logit
        stories[f"log {2**levels} was added twice"] = levels
        more = f"Measured here on {len(self.x)} rows: {own:.3f}"
        for story, change in stories.items():
            if abs(given - own) > 0.1 >= abs(given - own - change):
                more += f"; {story}: {own:.3f} {change:+.3f} = {own + change:.3f}"
        bad = not (given > 0 and abs(given - own) <= 0.1)
        yield "bits/dim", bad, f"{more}.", f"{given:.3f}", f"{own:.3f} ± 0.1"


def _row(check, found, more="", measured=None, threshold=None):
    """A row of the report; `found` is the verdict, whether it fails, or a number to compare."""
    limit, meaning = TEXTS[check]
    measured = f"{found:.1e}" if measured is None else measured.replace("torch.", "")
    if isinstance(found, float):
        found = not found <= float(limit.split()[0])
    verdict = found if isinstance(found, str) else "FAIL" if found else "ok"
    return Row(check, verdict, measured, threshold or limit, f"{meaning} {more}".strip())


def _forgotten(module, args, known):
    """What a layer forgets when it is saved, in words; args are what it was called with."""
    for key, value in vars(module).items():
        for leaf in tree_leaves(value) if not key.startswith("_") else []:
            weights = [*leaf.parameters()] if isinstance(leaf, nn.Module) else [leaf]
            if any(torch.is_tensor(p) and p.requires_grad and p not in known for p in weights):
                yield f"weights in the plain attribute {key}"
    with contextlib.suppress(Exception):
        half = [a[: len(a) // 2] if torch.is_tensor(a) else a for a in args]
        layers, outs = _built_anew(module, half[0]), []
        before = copy.deepcopy([*layers[0].parameters()])
        for new in layers:
            torch.manual_seed(0)
            outs.append(new.eval()(*tree_map_only(torch.Tensor, torch.clone, half)))
        if any(_difference(out, outs[0]) > 1e-4 for out in outs):
            yield f"new layers like this {type(module).__name__} differ with its state"
        layers[0].train()(*half)
        if not all(map(torch.equal, before, layers[0].parameters())):
            yield "its first batch after loading sets the weights anew"


def _built_anew(module, x, n=6):
    """New layers with a layer's state; arguments are read off its attributes, or guessed."""
    parts = (vars(module), module._parameters, module._buffers, module._modules)
    known = {key.lstrip("_"): value for part in parts for key, value in part.items()}
    wanted = inspect.signature(type(module)).parameters.values()
    wanted = [p for p in wanted if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    free = [p.name for p in wanted if p.name not in known and p.default is p.empty]
    usual = [x.shape[1], x.shape[1] // 2, True, (16,), *module.children(), *module.buffers(False)]
    for guess in itertools.islice(itertools.product(usual, repeat=len(free)), 200):
        found = {p.name: known[p.name] for p in wanted if p.name in known} | dict(zip(free, guess))
        with contextlib.suppress(Exception):
            layers = [type(module)(**copy.deepcopy(found)).to(x) for _ in range(n)]
            for new in layers:
                new.load_state_dict(module.state_dict())
            return layers
