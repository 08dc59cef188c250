"""FlowDensity: scikit-learn's checks, no table by heart, its errors by their text."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from flowlib.estimator import FlowDensity

QUICK = {"depth": 2, "hidden": (8,), "steps": 5, "batch_size": 64, "random_state": 0}
X = make_moons(300, noise=0.1, random_state=0)[0]


@parametrize_with_checks([FlowDensity(**QUICK)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    return FlowDensity(**QUICK).fit(X)


def test_it_learns_two_moons():
    model = FlowDensity(hidden=(32, 32), steps=400, lr=5e-3, noise=0.1, random_state=0).fit(X)
    test = make_moons(1_000, noise=0.1, random_state=1)[0]
    gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(X.T))[1]
    assert model.score(test) > gaussian + 0.4
    assert abs(model.sample(2_000, random_state=0).mean(0) - X.mean(0)).max() < 0.15


def test_scores_are_log_densities_in_the_coordinates_of_the_data(fitted):
    axis = np.linspace(-6, 7, 500)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert np.exp(fitted.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e3, 1e6), (1e-6, 0.0)])
def test_the_units_of_the_data_change_the_scores_by_a_constant(fitted, scale, shift):
    moved = scale * X + shift
    scores = FlowDensity(**QUICK).fit(moved).score_samples(moved)
    np.testing.assert_allclose(scores, fitted.score_samples(X) - 2 * np.log(scale), rtol=1e-4)


def test_float64_in_and_out_also_from_other_numbers(fitted):
    for kind in (np.float64, np.float32, np.int64):
        assert fitted.score_samples(X.astype(kind)).dtype == np.float64
    assert fitted.sample(3).dtype == np.float64 and fitted.sample(3).shape == (3, 2)
    assert isinstance(fitted.score(X), float) and fitted.score(X) == pytest.approx(
        fitted.score_samples(X).mean()
    )


def test_the_same_random_state_gives_the_same_model_and_samples(fitted):
    again = clone(fitted).fit(X)
    assert np.array_equal(again.score_samples(X), fitted.score_samples(X))
    assert np.array_equal(again.sample(5, random_state=1), fitted.sample(5, random_state=1))
    assert not np.array_equal(fitted.sample(5), fitted.sample(5))
    other = clone(fitted).set_params(random_state=np.random.RandomState(1)).fit(X)
    assert not np.array_equal(other.score_samples(X), fitted.score_samples(X))


def test_fit_leaves_torchs_global_generator_alone():
    import torch

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    FlowDensity(**QUICK).fit(X)
    assert torch.equal(torch.rand(2), expected)


def test_a_pickled_copy_is_the_same_model(fitted):
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.score_samples(X), fitted.score_samples(X))
    assert np.array_equal(copy.sample(4, random_state=0), fitted.sample(4, random_state=0))


def test_a_grid_search_over_a_pipeline():
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FlowDensity(**QUICK)), {"flowdensity__steps": [1, 60]}, cv=2
    ).fit(X)
    assert search.best_params_ == {"flowdensity__steps": 60}
    assert search.best_estimator_.score_samples(X).shape == (300,)


def test_it_keeps_the_loss_of_every_update(fitted):
    assert len(fitted.loss_curve_) == QUICK["steps"]


def test_noise_widens_the_density():
    narrow, wide = (
        FlowDensity(**QUICK | {"steps": 200, "noise": noise, "lr": 5e-3}).fit(X)
        for noise in (0.0, 1.0)
    )
    assert (
        wide.sample(1_000, random_state=0).var(0).sum()
        > 1.4 * narrow.sample(1_000, random_state=0).var(0).sum()
    )


def test_one_feature_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"FlowDensity needs at least two features.*got n_features = 1"
    ):
        FlowDensity(**QUICK).fit(X[:, :1])


def test_a_constant_feature_is_refused_by_its_number():
    with pytest.raises(ValueError, match="feature 1 is constant, so its density has no bound"):
        FlowDensity(**QUICK).fit(np.column_stack([X[:, 0], np.full(300, 2.5)]))


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_senseless_noise_is_refused(noise):
    with pytest.raises(ValueError, match="noise must be finite and not negative, got"):
        FlowDensity(**QUICK | {"noise": noise}).fit(X)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("depth", 0, "depth must be an integer"), ("steps", 1.5, "steps must be an integer")],
)
@pytest.mark.filterwarnings("ignore")
def test_senseless_settings_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**QUICK | {name: value}).fit(X)


def test_rows_that_do_not_fit_are_refused(fitted):
    with pytest.raises(ValueError, match="X has 3 features, but FlowDensity is expecting 2"):
        fitted.score_samples(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        fitted.score_samples(np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 1"):
        fitted.sample(0)


@pytest.mark.parametrize(
    "call", [lambda m: m.score_samples(X), lambda m: m.score(X), lambda m: m.sample()]
)
def test_an_unfitted_model_says_so(call):
    with pytest.raises(NotFittedError, match="not fitted"):
        call(FlowDensity())
