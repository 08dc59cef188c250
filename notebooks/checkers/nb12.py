"""Checkers for the exercises of notebook 12."""

import math

import torch


def examples(n, classes, sharpness, seed=0):
    """Log-likelihoods (n, classes) that are `sharpness` times too sure, and labels."""
    rng = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(n, classes, generator=rng, dtype=torch.float64)
    labels = torch.multinomial(scores.softmax(1), 1, generator=rng)[:, 0]
    offset = 50 * torch.randn(n, 1, generator=rng, dtype=torch.float64) - 2_000
    return sharpness * scores + offset, labels


def check_exercise_1(bayes):
    """Bayes' rule with unequal classes."""
    log_p, _ = examples(200, 4, sharpness=1)
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    answer = bayes(log_p, prior)
    if answer is None:
        return print("Exercise 1: not answered yet")
    assert answer.shape == log_p.shape, (
        f"one row for each image: expected shape {tuple(log_p.shape)}, got {tuple(answer.shape)}"
    )
    assert answer.isfinite().all(), (
        "some probabilities are not finite: exp(-2000) is 0 in a computer, so add the logarithms "
        "first, and log 0 = -inf is as it should be"
    )
    assert torch.allclose(answer.sum(1), torch.ones(200, dtype=torch.float64)), (
        "each row should sum to 1"
    )
    assert not torch.allclose(answer, log_p.softmax(1)), "the prior has no effect"
    assert (answer[:, 3] == 0).all(), "a class of probability 0 has probability 0 for every image"
    expected = (log_p - log_p.max(1, keepdim=True).values).exp() * prior
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(answer, expected), (
        f"the first image should get {[round(p, 3) for p in expected[0].tolist()]}, "
        f"got {[round(p, 3) for p in answer[0].tolist()]}"
    )
    print("Exercise 1: passed")


def check_exercise_2(fit_temperature):
    """The number that takes overconfidence away."""
    for sharpness in (4.0, 0.5):
        log_p, labels = examples(4_000, 5, sharpness)
        tau = fit_temperature(log_p.clone(), labels)
        if tau is None:
            return print("Exercise 2: not answered yet")
        tau = float(tau)
        assert math.isfinite(tau) and tau > 0, f"the temperature is a positive number, got {tau}"
        assert not math.isclose(tau, 1 / sharpness, rel_tol=0.1), (
            "this is 1 / τ: divide by τ, a large one makes a reader less sure"
        )

        def score(tau, log_p=log_p, labels=labels):
            return (log_p / tau).log_softmax(1)[range(len(labels)), labels].mean().item()

        best = max(score(sharpness * factor / 50) for factor in range(35, 71))
        assert score(tau) > best - 1e-4, (
            f"these log-likelihoods are {sharpness:g} times too large, so τ should be about "
            f"{sharpness:g}: got {tau:.3f}, with a mean log p of {score(tau):.4f} instead of "
            f"{best:.4f}"
        )
    print("Exercise 2: passed")


def check_exercise_3(label_bits):
    """What a label saves if classes are unequal, and the most that it could."""
    prior = torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64)
    apart = torch.eye(3, dtype=torch.float64) * 5_000 - 6_000  # classes that cannot be mistaken
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    answer = label_bits(apart[labels], labels, prior)
    if answer is None:
        return print("Exercise 3: not answered yet")
    saved, most = (float(value) for value in answer)
    entropy = -(prior * prior.log2()).sum().item()
    assert not math.isclose(most, entropy * math.log(2), rel_tol=1e-4), "this is in nats"
    assert not math.isclose(most, math.log2(3), rel_tol=1e-4), (
        "log2 K is the entropy of K equally likely classes; these are not"
    )
    assert math.isclose(most, entropy, rel_tol=1e-4), (
        f"the entropy of this prior is {entropy:.4f} bits, got {most:.4f}"
    )
    assert math.isfinite(saved), "not finite: subtract logarithms, and use logsumexp"
    assert math.isclose(saved, entropy, rel_tol=1e-4), (
        f"where images tell their class without a doubt, the label saves all of {entropy:.4f} "
        f"bits; got {saved:.4f}"
    )
    same = torch.full((100, 3), -2_000.0, dtype=torch.float64)
    saved = float(label_bits(same, labels, prior)[0])
    assert abs(saved) < 1e-6, (
        f"where all classes are equally likely images, a label saves nothing; got {saved:.4f} bits"
    )
    log_p, labels = examples(500, 3, sharpness=3)
    joint = log_p + prior.log()
    expected = (joint.log_softmax(1) - prior.log())[range(500), labels].mean().item() / math.log(2)
    saved = float(label_bits(log_p, labels, prior)[0])
    assert math.isclose(saved, expected, rel_tol=1e-4), (
        f"expected the mean of log2 p(x | y) / p(x), {expected:.4f}, got {saved:.4f}"
    )
    print("Exercise 3: passed")


def check_exercise_4(guided_weights):
    """Importance weights of guidance, on two Gaussian classes."""
    rng = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(200_000, generator=rng, dtype=torch.float64)  # p(x | y) = N(1, 1)
    log_y = torch.nn.functional.logsigmoid(2 * x)  # the other class is N(-1, 1)
    answer = guided_weights(log_y, 0.0)
    if answer is None:
        return print("Exercise 4: not answered yet")
    weights, effective = answer
    assert weights.shape == x.shape, f"one weight for each sample, got {tuple(weights.shape)}"
    assert math.isclose(weights.sum(), 1, rel_tol=1e-6), "the weights should sum to 1"
    assert math.isclose(effective, len(x), rel_tol=1e-6), (
        f"without guidance every sample counts: {len(x)}, got {float(effective):.1f}"
    )
    grid = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
    for w in (1.0, 4.0):
        weights, effective = guided_weights(log_y, w)
        density = (-0.5 * (grid - 1) ** 2 + w * torch.nn.functional.logsigmoid(2 * grid)).softmax(0)
        mean, expected = (weights * x).sum().item(), (density * grid).sum().item()
        assert abs(mean - expected) < 0.02, (
            f"for w = {w:g} the mean of p_w is {expected:.3f}, these weights give {mean:.3f}: they "
            "should be proportional to p(y | x)^w"
        )
        assert math.isclose(effective, 1 / weights.square().sum(), rel_tol=1e-6), (
            "the effective number of samples is one over the sum of the squared weights"
        )
    weights, effective = guided_weights(log_y - 5_000, 1.0)
    assert weights.isfinite().all() and math.isclose(weights.sum(), 1, rel_tol=1e-6), (
        "exp(-5000) is 0 in a computer: subtract the largest logarithm, or use a softmax"
    )
    print("Exercise 4: passed")
