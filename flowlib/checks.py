"""`check_flow`: find out what is wrong with a flow, one of flowlib's or anybody's.

Everything is measured on copies: weights, gradients, statistics, mode and torch random state stay.
"""

import contextlib
import copy
import math
import re
import textwrap
import time
from inspect import signature
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .bijections import Chain, Logit
from .common import as_tensor, generator
from .dequantize import Dequantize, VariationalDequantize
from .flow import Flow, standard_normal_log_prob
from .losses import bits_per_dim as to_bits
from .losses import nll
from .norms import initialising

__all__ = ["check_flow", "Report", "Row"]

SECONDS = 10  # that the Jacobian at the data may take
ROWS = """
- shape of log_det | (B,), float | forward must return z as large as x, and one log_det per row. A
  mean or a missing sum trains on a loss of the wrong size. Sum over all dimensions but the batch.
- finite | 0 | Some rows give NaN or infinity. The first such batch ends the training. Look for data
  outside of a layer's domain, and for scales without a bound.
- determinism | 1e-05 | The same rows give other latents the second time. The validation loss
  flickers, and nothing can be inverted. Switch dropout off, and leave noise to Dequantize.
- rows leak into one another | 1e-02 | A row alone is mapped elsewhere than in its batch. The loss
  then depends on the batch size. In evaluation, use running statistics, not those of the batch.
- round trip of data | 1e-03 | inverse(forward(x)) is not x; the error is in standard deviations of
  x. Training never calls inverse, so the loss looks fine, but the samples are wrong. Undo the steps
  of forward in reverse order.
- round trip of latents | 1e-01 | forward(inverse(z)) is not z for z ~ N(0, I). Likelihoods look
  fine, but samples do not follow them. Look for a clamp, and for what only one direction does.
- round trip of images | 0 | inverse does not return the integers that encode was given. The loss is
  right, but reconstructions are off by grey levels. Check the rounding and the number of levels.
- log_det of forward | 1e-03 | log_det is not log |det dz/dx|, which autograd computes. Training
  exploits the error, and the loss falls lower than any density allows. Write down the diagonal of
  the Jacobian and sum its logarithms.
- dimensions never coupled | 0 | Some latents depend on one input only. The loss levels off too
  high, and samples look Gaussian there. Let the masks alternate, or permute between layers.
- log_det far from the data | 5e-01 | Far out log_det is not the Jacobian's, as happens behind a
  clamp. Outliers fold onto other points, and their loss means nothing. Bend large values (SoftLog),
  never cut them.
- log_det of inverse | 1e-03 | The log_det of inverse is not minus that of forward. Maximum
  likelihood looks fine, but a variational fit exploits the error. Turn the sign or mend the sum.
- context | > 0 | Another context gives the same latents. The loss stays where it would be without
  one. Hand the context on through every layer to the networks.
- log_prob | 1e-04 | log_prob is not log N(z; 0, I) + log_det. Training may look fine, but reported
  likelihoods are wrong. Add both terms, D/2 log 2 pi included, and keep their gradients.
- samples | 0, 1 | Samples do not follow log_prob; the numbers are mean and deviation of their
  latents. Pictures are too smooth or too wild for their likelihood. Draw N(0, I) from the seed,
  multiply by the temperature, and apply inverse.
- gradients through both directions | 1e-02 | Autograd misses a way from the output to the inputs or
  weights. The loss is right, but part of the model is not trained. Remove detach, .data, no_grad.
- parameters without gradient | 0 | Some weights got no gradient in the first steps. They stay where
  they started, and the loss levels off too high. Look for a product of two zeros, for silent units,
  and for weights that forward does not use.
- dead networks | 0 | Some ReLU layers give 0 on every row. What follows them is constant, and the
  loss levels off too high. Start these networks anew, with a smaller learning rate.
- bound on the scales | 100 nats | log_det grows without bound far from the data. All is well until
  one outlier turns the loss into NaN. Bound the log-scales, by a multiple of tanh for instance.
- latents | 0, 1, 0 | These are the mean, standard deviation and largest correlation of the latents.
  After training they should be standard normal.
- training and evaluation | 0.20 nats | The loss per dimension differs between the two modes.
  Training looks fine, validation does not. Estimate the running statistics anew
  (training.reestimate_statistics).
- state lost by saving | 0 | The saved state does not bring this flow back. After loading, samples
  and likelihoods are those of another model. Keep masks, permutations, flags and bounds in buffers,
  and weights in parameters.
- data are continuous | no lattice | The values of the data repeat, as integers do. No density is
  bounded there: the loss falls for ever and means nothing. Add uniform noise, as Dequantize does.
- dequantisation noise | 0.50, 0.289 | The noise does not fill its bin; the numbers are its mean and
  deviation. The bits/dim look better than they are. Add u ~ U[0, 1), drawn for every value, before
  dividing by the number of levels.
- integral of the density | 1 ± 0.05 | Summed over a grid around data and samples, the density is
  not 1. The loss is off by the logarithm of that. Mend log_det; if it is right, the density has
  folds or threads finer than the grid.
- log_det in the loss | below 0 | The loss does not fall when log_det rises. The latents collapse
  to a point, and the loss looks too good to be true. Subtract log_det, as losses.nll does.
- prior in the loss | 1 ± 0.1 | The loss weighs -log N(z; 0, I) otherwise than log_det. Without it
  the loss falls for ever; with too little, the latents stay too wide. Sum z^2 / 2 over dimensions,
  then average over rows.
- bits/dim | 0 to 8 | The reported figure cannot be true. 8 bits need no model, and no code needs
  less than 0. Terms outside of log_prob are easily forgotten, so make the preprocessing a part of
  the flow.
"""
ROWS = [entry.split("|", 2) for entry in ROWS.strip()[2:].split("\n- ")]
ROWS = {name.strip(): (limit.strip(), " ".join(text.split())) for name, limit, text in ROWS}


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
                  maybe log_prob(x); or two functions as `forward` and `inverse`
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
    elif x.is_floating_point():
        x = x.to(next((p for p in flow.parameters() if p.is_floating_point()), x))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return Report(Examination(flow, x, context, loss, bits_per_dim).rows)


def _copy(flow):
    """A deep copy; activations that a module keeps lose their graph, which torch cannot copy."""
    kept = tree_leaves([vars(module) for module in flow.modules()])
    graphs = [t for t in kept if torch.is_tensor(t) and not t.is_leaf]
    try:
        return copy.deepcopy(flow, {id(t): t.detach().clone() for t in graphs})
    except Exception as error:
        raise ValueError(f"this flow cannot be copied, nor then checked: {error}") from error


@torch.no_grad()
def _difference(new, old):
    """The largest difference in any pair of tensors, relative above 1; infinite if there is NaN."""
    pairs = [(p, q) for p, q in zip(tree_leaves(new), tree_leaves(old)) if torch.is_tensor(p)]
    errors = [((p - q).abs() / q.abs().clamp(min=1)).nan_to_num(math.inf).max() for p, q in pairs]
    return max(map(float, errors), default=0.0)


def _gradients(output, inputs):
    """The gradients of a sum by several tensors, as one vector."""
    if not output.requires_grad:
        return torch.zeros(1).to(output)
    options = {"retain_graph": True, "materialize_grads": True}
    return torch.cat([g.flatten() for g in torch.autograd.grad(output.sum(), inputs, **options)])


class Examination:
    """A copy of the flow in evaluation mode, and values v (B, ...) on which z depends smoothly.

    They are the data, or for a flow that begins with `Dequantize` the noise that it adds: the
    Jacobian by this noise is that of the whole flow. `core` is what follows the noise, and y what
    goes into it. A check is a method named after the first of the rows that it adds.
    """

    def __init__(self, flow, x, context, loss, bits_per_dim):
        self.flow, self.loss, self.given_bits = _copy(flow).eval(), loss, bits_per_dim
        self.D, self.rows = x[0].numel(), []
        n = max(4, min(256, 2**17 // self.D))
        self.x = self.v = x[:n].detach().clone()
        self.given_context = None if context is None else context[:n].detach().clone()
        self.noise = self.flow.dequantize if isinstance(flow, Flow) else None
        if self.noise is not None:
            self.v = self.flow.draw_noise(len(self.x))
        with contextlib.suppress(Exception):  # the first check meets it again
            self.start()
        self.untouched = _copy(self.flow)
        for name in ROWS:
            self.run(name)
            if self.rows[0].verdict == "FAIL":  # all others need z and log_det
                return

    def run(self, name):
        """Make the check named like this row, if there is one; an error of the flow is a row."""
        try:
            getattr(self, re.sub(r"\W", "_", name), lambda: None)()
        except (NotImplementedError, TimeoutError) as error:
            self.add(name, "note", "not checked", f"This was not checked. {error}")
        except Exception as error:  # a verdict, never a traceback
            self.add(name, True, type(error).__name__, f"The error says: {error}")

    def add(self, name, bad, measured="", more=""):
        """Add a row; `bad` is whether it fails, an error to hold to the threshold, or "note"."""
        threshold, meaning = ROWS[name]
        if isinstance(bad, float):
            bad, measured = not bad <= float(threshold), f"{bad:.1e}"
        verdict = bad if isinstance(bad, str) else "FAIL" if bad else "ok"
        self.rows.append(Row(name, verdict, measured, threshold, f"{meaning} {more}".strip()))

    def start(self):
        """Let layers that start from a first batch do so: a new flow is checked as it will be."""
        with initialising(self.flow):
            self.forward(self.flow, self.v)
        new = any(p.requires_grad and not p.any() for p in self.flow.parameters())
        started, unseen = _copy(self.flow).train(), []
        for module in started.modules():
            mean = getattr(module, "running_mean", None)
            if new and torch.is_tensor(mean) and not mean.any():
                module.momentum = 1.0  # one batch makes all of its statistics
                unseen.append(module)
        self.forward(started, self.v)
        if unseen or not all(map(torch.equal, started.parameters(), self.flow.parameters())):
            self.flow = started.eval()

    def look(self):
        """Take down z and log_det, and make `exact` with rows u: the flow in float64, with noise in
        place of zero weights. At the identity, where layers start, no mistake would show."""
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
            self.precise = self.forward(self.exact, self.u)[0].dtype == torch.float64
        except RuntimeError:  # tensors that the module does not know of stayed in float32
            self.exact, self.u = self.flow, self.v[: len(self.u)]

    def forward(self, module, v, rows=None):
        """(z, log_det) of values v, which belong to these rows of the data, else to the first."""
        rows = slice(len(v)) if rows is None else rows
        given = self.given(v, rows)
        if self.noise is not None and isinstance(module, (Flow, Dequantize)):
            return module(self.x[rows], *(given or [None]), noise=v.clone())
        return module(v.clone(), *given)

    def inverse(self, module, z):
        """(y, log_det or None) of latents z, which belong to the first rows of the data."""
        out = module.inverse(z.clone(), *self.given(z))
        return out if isinstance(out, tuple) else (out, None)

    def given(self, like, rows=None):
        """The context of these rows, else of as many, as further arguments."""
        if self.given_context is None:
            return []
        context = self.given_context[slice(len(like)) if rows is None else rows]
        return [context.to(like.dtype) if context.is_floating_point() else context]

    def core(self, flow):
        return flow if self.noise is None else flow.bijection[1:]

    def after_noise(self, flow, v):
        return v if self.noise is None else self.forward(flow.dequantize, v)[0].detach()

    def layers(self):
        """The name of every layer of a chain, the layer in float64, and its input."""
        chain, v = getattr(self.exact, "bijection", self.exact), self.u
        for i, layer in enumerate(chain if isinstance(chain, Chain) else []):
            yield f"layer {i}, {type(layer).__name__}", layer, v
            v = self.forward(layer, v)[0].detach()

    def first_wrong(self, is_wrong):
        """The first layer for which is_wrong(layer, its input), in words."""
        for name, layer, v in self.layers():
            if is_wrong(layer, v):
                return f"It starts in {name}."
        return ""

    def shape_of_log_det(self):
        z, log_det = self.forward(self.flow, self.v)
        fits = z.shape[:1] == self.v.shape[:1] and z[0].numel() == self.D
        good = fits and log_det.shape == (len(z),) and log_det.is_floating_point()
        more = "" if fits else f"Here z is {tuple(z.shape)} for x of {tuple(self.v.shape)}."
        dtype = str(log_det.dtype).removeprefix("torch.")
        self.add("shape of log_det", not good, f"{tuple(log_det.shape)}, {dtype}", more)
        if good:
            bad = int((~(z.flatten(1).isfinite().all(1) & log_det.isfinite())).sum())
            self.add("finite", bad > 0, f"{bad} of {len(z)}")
            self.look()

    def determinism(self):
        again = self.forward(self.flow, self.v)
        self.add("determinism", _difference(again, (self.z, self.log_det)))

    def rows_leak_into_one_another(self):
        flow = _copy(self.flow)
        alone, pair = (self.inverse(self.core(flow), self.z[:n])[0] for n in (1, 2))
        there = self.forward(flow, self.v[:1])
        error = _difference((there, alone), (self.z[:1], self.log_det[:1], pair[:1]))
        self.add("rows leak into one another", error)

    def trip(self, module, y):
        """How far inverse(forward(y)) is from y at most, in standard deviations of y."""
        back = self.inverse(module, self.forward(module, y)[0])[0]
        return ((back - y).abs().max() / y.std().clamp(min=1e-12)).nan_to_num(math.inf).item()

    def round_trip_of_data(self):
        error, formula, more = self.trip(self.core(self.flow), self.y), 0.0, ""
        if self.precise:
            formula = self.trip(self.core(self.exact), self.after_noise(self.exact, self.u))
        if formula > 3e-4:
            more = f"It is {formula:.0e} in float64, so the inverse is another function. "
            more += self.first_wrong(lambda layer, y: self.trip(layer, y) > 3e-4)
        elif error > 1e-3:
            more = f"It is {formula:.0e} in float64: this is rounding, from depth and scales."
        self.add("round trip of data", max(error, 3 * formula), "", more)

    def round_trip_of_latents(self):
        if self.noise is None:
            z = torch.randn_like(self.z)
            again = self.forward(self.flow, self.inverse(self.flow, z)[0])[0]
            worst = (again - z).abs().flatten(1).amax(1).nan_to_num(math.inf)
            return self.add("round trip of latents", worst.quantile(0.9).item())
        z = self.flow.encode(self.x, *self.given(self.v))
        bad = int((self.inverse(self.flow, z)[0] != self.x).flatten(1).any(1).sum())
        self.add("round trip of images", bad > 0, f"{bad} of {len(z)}")

    @torch.enable_grad()
    def log_det_errors(self, module, v):
        """How far log_det is from slogdet of the Jacobian, row by row; log_det; the Jacobians."""
        v = v[: max(1, min(32, 512 // self.D))]
        log_det = self.forward(module, v)[1].detach().double()
        parts, start = [], time.perf_counter()
        for outputs in torch.arange(self.D, device=v.device).split(max(1, 8192 // self.D)):
            rows = torch.arange(len(v), device=v.device).repeat_interleave(len(outputs))
            copies = v[rows].requires_grad_()  # each of them for the gradient of one output
            z = self.forward(module, copies, rows=rows)[0].flatten(1)
            total = z.gather(1, outputs.repeat(len(v))[:, None]).sum()
            gradients = torch.autograd.grad(total, copies, materialize_grads=True)[0]
            parts.append(gradients.reshape(len(v), len(outputs), -1))
            if (time.perf_counter() - start) / (outputs[-1] + 1) * self.D > SECONDS:
                raise TimeoutError("The Jacobian takes too long: check a smaller flow of its kind.")
        jacobians = torch.cat(parts, 1).double()
        expected = torch.linalg.slogdet(jacobians).logabsdet
        errors = (log_det - expected).abs() / expected.abs().clamp(1, 1e9)
        return errors.nan_to_num(math.inf), log_det, jacobians

    def log_det_of_forward(self):
        (errors, _, J), more = self.log_det_errors(self.exact, self.u), ""
        if errors.max() > 1e-3:
            more = self.first_wrong(lambda *layer: self.log_det_errors(*layer)[0].max() > 1e-3)
            more = more or "No layer is wrong alone: see how they are summed."
        self.add("log_det of forward", errors.max().item(), "", more)
        alone = (J.abs() > 1e-12).any(0).sum(1) <= 1
        if not self.in_unit:  # a curve of one input may be all that is needed
            alone &= (J.amax(0) - J.amin(0)).amax(1) <= 1e-6
        verdict = "FAIL" if 4 * alone.sum() >= self.D and [*self.flow.parameters()] else "note"
        bad = self.D > 1 and bool(alone.any()) and verdict
        self.add("dimensions never coupled", bad, f"{int(alone.sum())} of {self.D}")

    def log_det_far_from_the_data(self):
        if self.in_unit:
            return
        centre, worst = self.u.mean(0), [0.0]
        for factor in (3, 10, 100) if self.D <= 64 else (10,):
            far = centre + factor * (self.u - centre)
            errors, log_det, J = self.log_det_errors(self.exact, far)
            S = torch.linalg.svdvals(J.nan_to_num())
            least = 1e-12 * S[:, :1]  # of a smaller one float64 knows only that it is smaller,
            most = S.maximum(least).log().sum(1)  # so log |det J| is at most this
            told = (S[:, -1] > least[:, 0]) | (log_det > most)
            worst += errors[told & (log_det.abs() <= 20 * self.D)].tolist()
        self.add("log_det far from the data", max(worst))

    def log_det_of_inverse(self):
        def error_of(module, v):
            z, there = self.forward(module, v)
            back = self.inverse(module, z)[1]
            if self.noise is not None and module is self.exact:  # inverse knows no learned noise
                there = there - self.forward(module.dequantize, v)[1]
                there = there - self.D * self.noise.bits * math.log(2)
            return 0.0 if back is None else _difference(-back, there)

        error = error_of(self.exact, self.u)
        more = self.first_wrong(lambda *layer: error_of(*layer) > 1e-3) if error > 1e-3 else ""
        self.add("log_det of inverse", error, "", more)

    def context(self):
        if self.given_context is not None:
            core, y = self.core(self.exact), self.after_noise(self.exact, self.u)
            others = [*range(1, len(y)), 0]  # the rows whose context each is given
            change = _difference(self.forward(core, y, others)[0], self.forward(core, y)[0])
            self.add("context", not change > 0, f"{change:.1e}")

    def log_prob(self):
        if not hasattr(self.flow, "log_prob"):
            return
        x, v, seed = self.v, self.v, {"seed": 0} if isinstance(self.flow, Flow) else {}
        if self.noise is not None:
            x, v = self.x, self.flow.draw_noise(len(self.x), generator(0))
        z, log_det = self.forward(self.flow, v)
        expected = standard_normal_log_prob(z.flatten(1)) + log_det
        with torch.enable_grad():
            claimed = self.flow.log_prob(x.clone(), *self.given(v), **seed)
        if claimed.shape != expected.shape:
            self.add("log_prob", True, f"{tuple(claimed.shape)}")
        elif not claimed.requires_grad and any(p.requires_grad for p in self.flow.parameters()):
            self.add("log_prob", True, "no gradient")
        else:
            self.add("log_prob", _difference(claimed, expected))

    def samples(self):
        if not isinstance(self.flow, Flow):
            return
        draws, off = self.flow.draw_latents(8192 // self.D + 64, generator(0)), []
        for T in (1.0, 0.5):
            z = T * self.flow.draw_latents(min(64, len(self.x)), generator(1))
            context = self.given(z)[0] if self.given(z) else None
            x = self.flow.sample(len(z), temperature=T, seed=1, context=context)
            off.append(_difference(x.double(), self.inverse(self.flow, z)[0].double()))
        mean, std, margin = draws.mean(), draws.var(0).mean().sqrt(), 5 / draws.numel() ** 0.5
        good = mean.abs() <= margin and (std - 1).abs() <= margin and max(off) <= 1e-3
        self.add("samples", not good, f"{mean:+.2f}, {std:.2f}")

    def gradients_through_both_directions(self):
        core = self.core(self.exact)
        y = self.after_noise(self.exact, self.u).clone().requires_grad_()
        inputs = [y, *(p for p in self.exact.parameters() if p.requires_grad)]
        with torch.enable_grad():
            z, there = self.forward(core, y)
            again, back = self.inverse(core, z)
            pairs = [(again, y)] if back is None else [(again, y), (-back, there)]
            errors = [
                _difference(_gradients(one, inputs), _gradients(other, inputs))
                for one, other in pairs
                if _difference(one, other) <= 1e-2  # other checks tell where values differ
            ]
        self.add("gradients through both directions", max(errors, default=0.0))

    def parameters_without_gradient(self, steps=3):
        flow, alive = _copy(self.flow).train(), set()
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
        self.add_found("parameters without gradient", [n for n in named if n not in alive], named)

    def dead_networks(self):
        units = {m: name for name, m in self.flow.named_modules() if isinstance(m, nn.ReLU)}
        alive, note = set(), lambda m, _, out: alive.update([m] if out.any() else [])
        hooks = [unit.register_forward_hook(note) for unit in units]
        self.forward(self.flow, self.v)
        for hook in hooks:
            hook.remove()
        self.add_found("dead networks", [units[m] for m in units if m not in alive], units)

    def add_found(self, name, found, among):
        """Add a row that fails if something was found."""
        more = f"The first is {found[0]}." if found else ""
        self.add(name, bool(found), f"{len(found)} of {len(among)}", more)

    def bound_on_the_scales(self):
        chain, v = self.core(self.exact), self.after_noise(self.exact, self.u)
        chain = getattr(chain, "bijection", chain)
        if self.in_unit:  # a Logit takes it to the real line
            if not (isinstance(chain, Chain) and isinstance(chain[0], Logit)):
                return
            v, chain = chain[0](v)[0], chain[1:]
        near, far = (self.forward(chain, factor * v)[1] for factor in (1e3, 1e6))
        growth = ((far - near).abs().max() / self.D).item()
        self.add("bound on the scales", not growth <= 100, f"{growth:.1e} nats")

    def latents(self):
        z = self.z.flatten(1).double()
        R = torch.corrcoef(z.T).nan_to_num(0).fill_diagonal_(0) if 1 < self.D <= 64 else z[0] * 0
        self.add("latents", "note", f"{z.mean():+.2f}, {z.std():.2f}, {R.abs().max():.2f}")

    def training_and_evaluation(self):
        outs = (self.z, self.log_det), self.forward(_copy(self.flow).train(), self.v)
        here, there = (nll(z.flatten(1), log_det).item() / self.D for z, log_det in outs)
        more, gap = f"Evaluation {here:.2f}, training {there:.2f}.", abs(here - there)
        self.add("training and evaluation", not gap <= 0.2, f"{gap:.2f} nats", more)

    def outputs(self, flow):
        return self.forward(flow, self.v), self.inverse(self.core(flow), self.z)

    def state_lost_by_saving(self):
        state, expected = copy.deepcopy(self.flow.state_dict()), self.outputs(self.flow)
        moved, lost = self.untouched.train(), []
        with contextlib.suppress(Exception):  # what a step of training moves must come back
            self.forward(moved, self.v[: len(self.v) // 2])
            for tensor in filter(torch.is_floating_point, moved.state_dict().values()):
                tensor.mul_(1.1)
            self.outputs(moved.eval())
        moved.eval().load_state_dict(state)
        if _difference(self.outputs(moved), expected) > 1e-4:
            lost.append("loaded after a step of training, the flow is another")
        known = {*self.flow.modules(), *self.flow.parameters()}
        for name, module in self.flow.named_modules():
            for key, value in vars(module).items():
                held = {v for v in tree_leaves(value) if isinstance(v, (nn.Module, nn.Parameter))}
                lost += [f"{name or 'the flow'}: the weights in {key}"] if held - known else []
        for name, layer, v in self.layers():
            with contextlib.suppress(Exception):
                lost += [f"{name}: {what}" for what in self.lost_by(layer, v)]
        more = f"See {'; '.join(lost)}." if lost else ""
        self.add("state lost by saving", bool(lost), f"{len(lost)} found", more)

    def lost_by(self, layer, v):
        """What new layers lack with the state of this one, if its class needs nothing or D."""
        needs = [p for p in signature(type(layer)).parameters.values() if p.default is p.empty]
        layers = [type(layer)(*[self.D][: len(needs)]).to(v).eval() for _ in range(4)]
        for new in layers:
            new.load_state_dict(layer.state_dict())
        outs = [self.forward(new, v)[0] for new in layers]
        if any(_difference(out, outs[0]) > 1e-4 for out in outs):
            yield "new layers differ with its state"
        if _difference([*layers[0].parameters()], [*layer.parameters()]) > 0:
            yield "its first batch after loading sets the weights anew"

    def data_are_continuous(self):
        if self.noise is None:
            distinct, n = len(self.y.unique()), self.y.numel()
            bad = distinct <= 1024 and n >= 20 * distinct
            self.add("data are continuous", bad, f"{distinct:,} distinct of {n:,}")
            noises = [(self.y * 256) % 1]
        elif isinstance(self.noise, VariationalDequantize):
            noises = [self.v]
        else:
            noises = [y * self.noise.levels - self.x for y in (self.y, self.noise(self.x)[0])]
        if self.in_unit:
            mean = max((u.mean().item() for u in noises), key=lambda mean: abs(mean - 0.5))
            std = min(u.flatten(1).std(dim).mean().item() for u in noises for dim in (0, 1))
            good = abs(mean - 0.5) <= 0.05 and abs(std - 12**-0.5) <= 0.02
            self.add("dequantisation noise", not good, f"{mean:.2f}, {std:.3f}")

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
        self.add("integral of the density", not abs(total - 1) <= 0.05, f"{total:.3f}")

    def log_det_in_the_loss(self):
        if self.loss is None:
            return
        z, log_det = self.z.flatten(1).clone().requires_grad_(), self.log_det.clone()
        log_det.requires_grad_()
        with torch.enable_grad():
            total = self.loss(z, log_det).mean()
        by_z, by_log_det = torch.autograd.grad(total, (z, log_det), materialize_grads=True)
        slope = by_log_det.sum().item()
        self.add("log_det in the loss", not slope < 0, f"{slope:+.3g}")
        pull = (by_z * z).sum() / z.square().sum() * len(z)  # 1 for the mean of |z|^2 / 2
        weight = pull.item() / (abs(slope) or 1.0)
        self.add("prior in the loss", not abs(weight - 1) <= 0.1, f"{weight:.3g}")

    def bits_dim(self):
        if (given := self.given_bits) is None:
            return
        if self.noise is None:
            return self.add("bits/dim", not 0 < given <= 8, f"{given:.3f}")
        bits = lambda nats: to_bits(nats, self.x.shape[1:]).mean().item()  # noqa: E731
        own, first = bits(standard_normal_log_prob(self.z) + self.log_det), self.core(self.flow)[0]
        more = f"Measured here: {own:.3f}. What may be missing: log {2**self.noise.bits}, "
        more += f"{self.noise.bits}.000"
        if isinstance(first, Logit):
            more += f"; the logit's log_det, {bits(first(self.y)[1]):.3f}"
        good = given > 0 and abs(given - own) <= 0.1
        self.add("bits/dim", not good, f"{given:.3f}", "" if good else f"{more}.")
