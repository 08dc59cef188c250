"""A flow as a scikit-learn estimator, for tables: pipelines, grid searches, cross-validation."""

import copy
import math
import numbers

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.covariance import empirical_covariance, log_likelihood, shrunk_covariance
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .bijections import Bijection, Chain
from .common import generator, integer
from .coupling import AffineCoupling
from .flow import Flow
from .masks import random
from .networks import MLP
from .training import fit

__all__ = ["FlowDensity"]

SHRINKAGES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3]


class FlowDensity(DensityMixin, BaseEstimator):
    """A density of tables (n_samples, n_features): a Gaussian, and Real NVP as far as that helps.

    The Gaussian is fitted in closed form and whitens the rows. Affine couplings, the identity at
    first, then learn from whitened rows z with noise, (z + h e) / sqrt(1 + h²) with e ~ N(0, I). As
    h falls in stages from 1 to `noise`, each twice as long as the one before, their task goes from
    nearly the Gaussian to nearly the rows themselves. A third of the rows (at most 1,000) is held
    out: couplings are kept if they make these likelier by two standard errors, and a stage that
    makes them as much less likely is the last. So a small table is not learned by heart: where
    little holds for new rows, the Gaussian remains.

    depth         couplings; each two share a random mask and its complement
    hidden        widths of the hidden layers of each coupling's network
    steps         updates at most, shared by the stages, at least one each
    batch_size    rows per update, drawn at random
    lr            Adam's learning rate, at its peak in every stage
    noise         h in the last stage
    random_state  an integer, a `numpy.random.RandomState` or None: all that is drawn

    After `fit`: `flow_`, a `flowlib.Flow` in float64; `loss_curve_`, nats per whitened, noisy row
    after every update; `n_features_in_`, and `feature_names_in_` where the columns have names.
    Raises ValueError for fewer than two features (one passes through a coupling and decides what
    happens to the other), fewer than five rows, a constant feature and senseless settings.

    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> model = FlowDensity(steps=20, random_state=0).fit(X)
    >>> model.score_samples(X).shape, model.sample(5, random_state=0).shape
    ((200,), (5, 3))
    """

    def __init__(
        self,
        depth=6,
        hidden=(64, 64),
        steps=1_000,
        batch_size=256,
        lr=2e-3,
        noise=0.1,
        random_state=None,
    ):
        self.depth, self.hidden = depth, hidden
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.noise, self.random_state = noise, random_state

    def fit(self, X, y=None) -> "FlowDensity":
        """Learn the density of the rows of X, (n_samples, n_features); y is ignored."""
        X = validate_data(self, X, dtype="float64", order="C", ensure_min_samples=5)
        self._check(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rng, (n, D) = generator(seed), X.shape
        gaussian = _gaussian(X, seed)
        z = gaussian(torch.tensor(X))[0][torch.randperm(n, generator=rng)]
        held_out, rows = z.tensor_split([min(n // 3, 1_000)])
        flow = Flow(_couplings(D, self.depth, self.hidden, rng), shape=(D,)).double()
        best, self.loss_curve_ = copy.deepcopy(flow).requires_grad_(False), []
        stages = [h for h in (1.0, 0.5, 0.25) if h > self.noise] + [self.noise]
        settings = {"batch_size": self.batch_size, "lr": self.lr, "clip": 10.0, "seed": rng}
        for k, noise in enumerate(stages):
            steps = max(1, self.steps * 2**k // (2 ** len(stages) - 1))
            noisy = _NoisyRows(rows, noise)
            history = fit(flow, noisy, steps=steps, snapshots=4, progress=False, **settings)
            self.loss_curve_ += history.loss
            scores = {s.flow: s.flow.log_prob(held_out) for s in history.snapshots[1:]}
            candidate = max(scores, key=lambda flow: scores[flow].mean())
            gain = scores[candidate] - best.log_prob(held_out)
            error = 2 * gain.std() / math.sqrt(len(gain))
            if gain.mean() > error:
                best = candidate
            elif gain.mean() < -error:
                break
        self.flow_ = Flow(Chain(gaussian, *best.bijection), shape=(D,)).eval()
        return self

    def _check(self, X):
        if (D := X.shape[1]) < 2:
            raise ValueError(
                f"FlowDensity needs at least two features, one to move the other: n_features = {D}"
            )
        if (constant := np.ptp(X, axis=0) == 0).any():
            raise ValueError(
                f"feature {constant.argmax()} is constant, so its density has no bound: "
                "drop it, with VarianceThreshold for one"
            )
        for name in ("depth", "steps", "batch_size"):
            integer(name, getattr(self, name), at_least=1)
        for name in ("lr", "noise"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")

    @torch.no_grad()
    def score_samples(self, X) -> np.ndarray:
        """The log-density of each row in nats, in the coordinates of X: (n_samples,)."""
        check_is_fitted(self)
        X = torch.tensor(validate_data(self, X, dtype="float64", order="C", reset=False))
        return torch.cat([self.flow_.log_prob(rows) for rows in X.split(10_000)]).numpy()

    def score(self, X, y=None) -> float:
        """The mean log-density of the rows of X, in nats, which a grid search maximises."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1, random_state=None) -> np.ndarray:
        """Draw rows, (n_samples, n_features); `random_state` None gives fresh ones."""
        check_is_fitted(self)
        integer("n_samples", n_samples, at_least=1)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return self.flow_.sample(n_samples, seed=seed).numpy()


class _Gaussian(Bijection):
    """N(mean, L Lᵀ) as a bijection, L lower triangular: z = L⁻¹ (x - mean)."""

    def __init__(self, mean, L):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("L", L)

    def forward(self, x, context=None):
        z = torch.linalg.solve_triangular(self.L, (x - self.mean).T, upper=False).T
        return z, -self.L.diagonal().log().sum().expand(len(x))

    def inverse(self, z, context=None):
        return z @ self.L.T + self.mean, self.L.diagonal().log().sum().expand(len(z))


def _gaussian(X, seed):
    """The Gaussian of the rows; how far its correlations are shrunk is cross-validated."""
    mean, std = X.mean(0), X.std(0)
    z, scores = (X - mean) / std, np.zeros(len(SHRINKAGES))
    for train, test in KFold(5, shuffle=True, random_state=seed).split(z):
        centred = z - z[train].mean(0)
        seen, unseen = (centred[rows].T @ centred[rows] / len(rows) for rows in (train, test))
        for i, shrinkage in enumerate(SHRINKAGES):
            precision = np.linalg.inv(shrunk_covariance(seen, shrinkage))
            scores[i] += log_likelihood(unseen, precision)
    covariance = shrunk_covariance(empirical_covariance(z), SHRINKAGES[scores.argmax()])
    L = np.linalg.cholesky(covariance)
    return _Gaussian(torch.tensor(mean), torch.tensor(std[:, None] * L))


@torch.no_grad()
def _couplings(D, depth, hidden, rng):
    """Affine couplings, the identity at first, whose weights are drawn from `rng` alone."""
    layers = []
    for i in range(depth):
        mask = ~layers[-1].mask if i % 2 else random(D, rng)
        n_in = int(mask.sum())
        with torch.device("meta"):  # where nothing is drawn from torch's global generator
            network = MLP(n_in, 2 * (D - n_in), hidden)
        network.to_empty(device="cpu")
        for linear in list(network)[::2]:
            bound = linear.in_features**-0.5
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=rng)
        for parameter in network[-1].parameters():
            parameter.zero_()
        layers.append(AffineCoupling(mask, network))
    return Chain(*layers)


class _NoisyRows:
    """Whitened rows z with fresh noise, (z + h e) / sqrt(1 + h²), as a density to sample from."""

    def __init__(self, rows, noise):
        self.rows, self.noise = rows, noise

    def sample(self, n, seed=None):
        rng = generator(seed)
        z = self.rows[torch.randint(len(self.rows), (n,), generator=rng)]
        e = torch.randn(z.shape, generator=rng, dtype=z.dtype)
        return (z + self.noise * e) / math.sqrt(1 + self.noise**2)
