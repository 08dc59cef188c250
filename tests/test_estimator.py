"""FlowDensity: scikit-learn's checks, no table by heart, its errors by their text."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_iris,
    load_wine,
    make_moons,
)
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from flowlib.estimator import FlowDensity, _gaussian, _NoisyRows

QUICK = {"depth": 2, "hidden": (8,), "steps": 5, "batch_size": 64, "random_state": 0}
X = make_moons(300, noise=0.1, random_state=0)[0]


@parametrize_with_checks([FlowDensity(**QUICK)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    return FlowDensity(**QUICK | {"steps": 80, "lr": 1e-2}).fit(X)


@pytest.mark.parametrize("load", [load_wine, load_iris, load_diabetes, load_breast_cancer])
def test_a_small_table_is_not_learned_by_heart(load):
    rows = StandardScaler().fit_transform(load().data)
    gaussian = GaussianMixture(1, random_state=0)
    flow = FlowDensity(depth=4, hidden=(32, 32), steps=100, batch_size=64, random_state=0)
    folds = KFold(3, shuffle=True, random_state=0)
    expected, found = (cross_val_score(model, rows, cv=folds).mean() for model in (gaussian, flow))
    assert found > expected, f"{found:.2f} nats per row held out, a Gaussian {expected:.2f}"


def test_a_large_table_is_learned_beyond_a_gaussian():
    train, test = (make_moons(5_000, noise=0.1, random_state=seed)[0] for seed in (0, 1))
    gaussian = GaussianMixture(1).fit(train).score(test)
    model = FlowDensity(depth=4, hidden=(32, 32), steps=300, lr=5e-3, random_state=0).fit(train)
    assert model.score(test) > gaussian + 0.4
    assert abs(model.sample(2_000, random_state=0).mean(0) - train.mean(0)).max() < 0.15


def test_gaussian_rows_keep_their_gaussian():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(2, 150, 4)) @ rng.normal(size=(4, 4))
    model = FlowDensity(**QUICK | {"steps": 80, "lr": 1e-2}).fit(train)
    assert model.score(test) > GaussianMixture(1).fit(train).score(test) - 0.05


@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0])
def test_noise_leaves_the_covariance_as_it_is(noise):
    rows = _gaussian(X, seed=0)(torch.tensor(X))[0]
    moved = _NoisyRows(rows, noise).sample(50_000, seed=0)
    assert torch.allclose(moved.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.03)


def test_scores_are_log_densities_in_the_coordinates_of_the_data(fitted):
    axis = np.linspace(-6, 7, 500)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert np.exp(fitted.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e3, 1e6), (1e-6, 0.0)])
def test_the_units_of_the_data_change_the_scores_by_a_constant(fitted, scale, shift):
    moved = scale * X + shift
    scores = clone(fitted).fit(moved).score_samples(moved)
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


def test_no_global_generator_is_touched_so_that_threads_do_not_disturb_each_other(fitted):
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: clone(fitted).fit(X), range(3)))
    assert all(np.array_equal(m.score_samples(X), fitted.score_samples(X)) for m in models)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("view", [X[::-1], X[:, ::-1], np.asfortranarray(X), X.tolist()])
def test_views_and_lists_are_taken(fitted, view):
    plain = clone(fitted).fit(np.array(view)).score_samples(np.array(view))
    assert np.array_equal(clone(fitted).fit(view).score_samples(view), plain)


def test_a_data_frame_is_taken_and_its_columns_remembered(fitted):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["east", "north"])
    model = clone(fitted).fit(frame)
    assert list(model.feature_names_in_) == ["east", "north"]
    assert np.array_equal(model.score_samples(frame), fitted.score_samples(X))


def test_a_pickled_copy_is_the_same_model(fitted):
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.score_samples(X), fitted.score_samples(X))
    assert np.array_equal(copy.sample(4, random_state=0), fitted.sample(4, random_state=0))


def test_a_grid_search_over_a_pipeline(fitted):
    pipeline = make_pipeline(StandardScaler(), clone(fitted).set_params(hidden=(32,), steps=200))
    search = GridSearchCV(pipeline, {"flowdensity__lr": [1e-6, 1e-2]}, cv=2).fit(X)
    assert search.best_params_ == {"flowdensity__lr": 1e-2}
    assert search.best_estimator_.score_samples(X).shape == (300,)


def test_it_keeps_the_loss_of_every_update(fitted):
    assert len(fitted.loss_curve_) == 5 + 10 + 21 + 42
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_one_feature_is_refused_by_name():
    with pytest.raises(
        ValueError, match="needs at least two features, one to move the other: n_features = 1"
    ):
        FlowDensity(**QUICK).fit(X[:, :1])


def test_a_constant_feature_is_refused_by_its_number():
    with pytest.raises(ValueError, match="feature 1 is constant, so its density has no bound"):
        FlowDensity(**QUICK).fit(np.column_stack([X[:, 0], np.full(300, 2.5)]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 0, "depth must be an integer of at least 1, got 0"),
        ("steps", 1.5, "steps must be an integer of at least 1, got 1.5"),
        ("batch_size", "all", "batch_size must be an integer of at least 1, got 'all'"),
        ("hidden", 64, "hidden must list the widths of the hidden layers"),
        ("lr", "x", "lr must be finite and not negative, got 'x'"),
        ("lr", float("nan"), "lr must be finite and not negative, got nan"),
        ("noise", -0.1, "noise must be finite and not negative, got -0.1"),
        ("noise", float("inf"), "noise must be finite and not negative, got inf"),
        ("noise", None, "noise must be finite and not negative, got None"),
    ],
)
def test_senseless_settings_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**QUICK | {name: value}).fit(X)


def test_four_rows_are_too_few():
    with pytest.raises(ValueError, match="minimum of 5 is required"):
        FlowDensity(**QUICK).fit(X[:4])


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
