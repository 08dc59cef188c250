"""A flow as a scikit-learn estimator, for tables: pipelines, grid searches and cross-validation take it as it is."""

import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .bijections import Chain
from .common import generator, integer
from .coupling import AffineCoupling
from .flow import Flow
from .masks import random
from .networks import MLP
from .norms import ActNorm
from .training import fit

__all__ = ["FlowDensity"]


class FlowDensity(DensityMixin, BaseEstimator):
    """A density of tables (n_samples, n_features), learned by Real NVP: an ActNorm that standardises, then affine couplings.

    depth         couplings; each two share a random mask and its complement
    hidden        widths of the hidden layers of each coupling's network
    steps         updates
    batch_size    rows per update, drawn at random
    lr            Adam's learning rate, at its peak
    noise         Gaussian noise added to the rows of every update, in standard deviations of each feature: a small table is
                  not learned by heart, and a feature with few distinct values not turned into needles
    random_state  an integer, a `numpy.random.RandomState` or None: weights, masks, rows and noise

    After `fit`: `flow_`, a `flowlib.Flow` in float64; `loss_curve_`, nats per row after every update; `n_features_in_`,
    and `feature_names_in_` where the columns have names. Raises ValueError for fewer than two features (one passes through
    a coupling and decides what happens to the other), for fewer than two rows, and for a constant feature, whose density
    has no bound.

    >>> model = FlowDensity(steps=500, random_state=0).fit(X)
    >>> model.score_samples(X)                 # (n_samples,), log-density of each row in nats
    >>> model.sample(5, random_state=0)        # (5, n_features)
    >>> GridSearchCV(make_pipeline(StandardScaler(), FlowDensity()), {"flowdensity__noise": [0.03, 0.1, 0.3]}).fit(X)
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
        self.depth = depth
        self.hidden = hidden
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.noise = noise
        self.random_state = random_state

    def fit(self, X, y=None):
        """Learn the density of the rows of X, (n_samples, n_features); y is ignored. Returns the estimator."""
        X = validate_data(self, X, dtype="float64", ensure_min_samples=2)
        if X.shape[1] < 2:
            raise ValueError(
                f"FlowDensity needs at least two features, for one to move the other; got n_features = {X.shape[1]}"
            )
        X = torch.tensor(X)
        if (X[0] == X).all(0).any():
            constant = int((X[0] == X).all(0).nonzero()[0])
            raise ValueError(
                f"feature {constant} is constant, so its density has no bound: drop it, with VarianceThreshold for one"
            )
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be finite and not negative, got {self.noise!r}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow_ = _build(X.shape[1], self.depth, self.hidden, seed).double()
        standardise = self.flow_.bijection[0].requires_grad_(
            False
        )  # steps in units of the data would be too long for small ones
        standardise.initialise(X)
        rows = _NoisyRows(X, self.noise * X.std(0, unbiased=False))
        settings = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "clip": 10.0}
        self.loss_curve_ = fit(self.flow_, rows, seed=seed, progress=False, **settings).loss
        return self

    @torch.no_grad()
    def score_samples(self, X):
        """The log-density of each row of X, in nats and in the coordinates of X: (n_samples, n_features) -> (n_samples,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype="float64", reset=False)
        return torch.cat(
            [self.flow_.log_prob(rows) for rows in torch.tensor(X).split(10_000)]
        ).numpy()

    def score(self, X, y=None):
        """The mean log-density of the rows of X, in nats: larger is better, so that a grid search maximises it."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1, random_state=None):
        """Draw rows: (n_samples, n_features). `random_state` is None for fresh ones, an integer or a RandomState."""
        check_is_fitted(self)
        integer("n_samples", n_samples, at_least=1)
        return self.flow_.sample(
            n_samples, seed=int(check_random_state(random_state).randint(2**31 - 1))
        ).numpy()


def _build(D, depth, hidden, seed):
    """The flow of D features."""
    layers = [ActNorm(D)]
    for i in range(integer("depth", depth, at_least=1)):
        mask = random(D, seed=seed + i // 2) ^ (i % 2 == 1)
        layers.append(AffineCoupling(mask, MLP(int(mask.sum()), 2 * int((~mask).sum()), hidden)))
    return Flow(Chain(*layers), shape=(D,))


class _NoisyRows:
    """The rows of a table with fresh noise at every draw, as a density that `fit` can sample."""

    def __init__(self, rows, scale):
        self.rows, self.scale = rows, scale

    def sample(self, n, seed=None):
        rng = generator(seed)
        chosen = self.rows[torch.randint(len(self.rows), (n,), generator=rng)]
        return chosen + self.scale * torch.randn(chosen.shape, generator=rng, dtype=chosen.dtype)
