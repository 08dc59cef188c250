"""Checkers for the exercises of notebook 09."""

import math

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flowlib.estimator import FlowDensity


def check_exercise_1(log_density):
    """The log-density of a pipeline, in the coordinates of the data."""
    X = load_wine().data
    pipeline = make_pipeline(
        StandardScaler(), FlowDensity(depth=2, hidden=(8,), steps=5, random_state=0)
    ).fit(X)
    answer = log_density(pipeline, X)
    if answer is None:
        return print("Exercise 1: not answered yet")
    answer = np.asarray(answer)
    assert answer.shape == (len(X),), (
        f"one log-density for each row: expected shape ({len(X)},), got {answer.shape}"
    )
    assert not np.allclose(answer, pipeline.score_samples(X)), (
        "these are still densities of standardised rows: the scaler's log_det is missing"
    )
    expected = pipeline.score_samples(X) - np.log(pipeline[0].scale_).sum()
    assert np.allclose(answer, expected), (
        "standardising divides by scale_, so its log_det is minus the sum of log scale_"
    )
    print("Exercise 1: passed")


def check_exercise_2(gap, shares):
    """How far the mode of a Gaussian is above its draws, and how many of them are near it."""
    if gap is None or shares is None:
        return print("Exercise 2: not answered yet")
    for D in (1, 10, 784):
        assert math.isclose(float(gap(D)), D / 2, rel_tol=1e-6), (
            f"the mean of |z|² / 2 over draws is D / 2: {D / 2} for D = {D}, got {gap(D)}"
        )
    few, many = (float(share) for share in shares)
    assert 0.007 < few < 0.011, (
        f"in 10 dimensions nearly one draw in a hundred comes so near, you found a share of {few}"
    )
    assert 0 <= many < 1e-4, (
        "no draw in 100,000 should come so near to the mode in 100 dimensions, you found a share "
        f"of {many}"
    )
    print("Exercise 2: passed")


def check_exercise_3(waste):
    """The extra bits per symbol of a coder with the wrong table."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.25, 0.25, 0.5])
    value = waste(p, q)
    if value is None:
        return print("Exercise 3: not answered yet")
    assert abs(float(waste(p, p))) < 1e-12, "the right table wastes nothing"
    expected = float((p * np.log2(p / q)).sum())
    assert not math.isclose(value, float(-(p * np.log2(q)).sum())), (
        "this is the whole length of the file: take off what the right table would need"
    )
    assert not math.isclose(value, expected * math.log(2)), (
        "this is in nats; the file is counted in bits"
    )
    assert math.isclose(value, expected), (
        f"symbols come with probability p and cost -log2 q each: expected {expected:.4f} bits, "
        f"got {value:.4f}"
    )
    value = waste(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5]))
    assert math.isclose(value, 1), (
        f"a symbol that never occurs costs nothing: this table wastes 1 bit, got {value}"
    )
    print("Exercise 3: passed")


def check_exercise_4(forward, inverse):
    """Mean and difference of integers, without loss."""
    a, b = torch.cartesian_prod(torch.arange(-20, 21), torch.arange(-20, 21)).T
    out = forward(a, b)
    if out is None:
        return print("Exercise 4: not answered yet")
    m, d = out
    assert not m.is_floating_point() and not d.is_floating_point(), (
        "m and d should be integers: use // and not /"
    )
    assert torch.equal(d, b - a), "d should be b - a"
    assert torch.equal(m, torch.div(a + b, 2, rounding_mode="floor")), (
        "m should be a + floor(d / 2), which is the floor of the mean; -1 // 2 is -1"
    )
    back = inverse(m, d)
    assert back is not None and torch.equal(back[0], a) and torch.equal(back[1], b), (
        "inverse(m, d) should give a and b back, all of them"
    )
    print("Exercise 4: passed")


def check_exercise_5(copied):
    """The share of synthetic rows that are training rows."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(60, 4)) * [1e-3, 1, 10, 1e3]
    value = copied(real[:20], real)
    if value is None:
        return print("Exercise 5: not answered yet")
    assert value == 1, f"these rows are all copies, you found a share of {value}"
    fresh = rng.normal(size=(30, 4)) * [1e-3, 1, 10, 1e3]
    assert copied(fresh, real) == 0, "none of these rows is a copy"
    assert math.isclose(copied(np.concatenate([real[:10], fresh]), real), 0.25), (
        "10 of these 40 rows are copies"
    )
    noisy = real + 1e-8 * real.std(0)
    assert copied(noisy, real) == 1, (
        "these rows differ from training rows by less than a millionth of each column's standard "
        "deviation: they are copies"
    )
    near = real.copy()
    near[:, 0] += 1e-4  # a tenth of that column's standard deviation
    assert copied(near, real) == 0, (
        "a row that differs in one column by a tenth of its standard deviation is no copy: scale "
        "each column"
    )
    print("Exercise 5: passed")
