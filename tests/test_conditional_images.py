"""Flows of images that take orders: labels and vectors as context, from the door to the network."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, log_slope, randomise
from PIL import Image
from sklearn.datasets import load_digits

from flowlib import Flow, checkpoints, data, losses, models, recipes, training
from flowlib.__main__ import main
from flowlib.batches import make_batches
from flowlib.checks import check_flow
from flowlib.networks import ConvResNet

SHAPE = (1, 4, 4)
LABELS = torch.arange(60) % 3
FLOWS = {
    "labels": {"classes": 3},
    "labels, networks alone": {"classes": 3, "context_base": False},
    "labels, base alone": {"classes": 3, "context_networks": False},
    "vectors": {"context_features": 2},
    "labels, learned noise": {"classes": 3, "dequant_couplings": 2},
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def small_flow(name="labels", scales=2, **changes):
    torch.manual_seed(0)
    arguments = {"scales": scales, "width": 4, "blocks": 1, **FLOWS[name], **changes}
    return models.realnvp_image(SHAPE, **arguments)


def context_of(flow, n=6):
    if flow.classes:
        return torch.arange(n) % flow.classes
    return torch.randn(n, flow.context_features, generator=torch.Generator().manual_seed(1))


def integers(n=6):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=rng)


def labelled():
    return data.ImageSet("mine", integers(60), LABELS.byte(), integers(9), LABELS[:9].byte())


def quick_fit(flow, images, **settings):
    length = {} if "epochs" in settings else {"steps": 4}
    settings = {"batch_size": 10, "precision": "float32", "seed": 0, **length, **settings}
    settings = {"progress": False, **settings}
    return training.fit(flow, images, **settings)


# The density


@every_flow
def test_the_context_changes_nothing_at_the_start_and_everything_later(name):
    flow, x = small_flow(name).eval(), integers()
    context = context_of(flow)
    assert torch.equal(flow.log_prob(x, context, seed=0), flow.log_prob(x, context.roll(1, 0), 0))
    randomise(flow)
    changed = flow.log_prob(x, context, 0) - flow.log_prob(x, context.roll(1, 0), 0)
    assert changed.abs().min() > 1e-3


@every_flow
def test_log_det_and_inverse_are_those_of_the_map_under_its_context(name):
    flow = randomise(small_flow(name).double(), size=0.2)
    continuous, rows = flow.bijection[1:], flow.check_context(context_of(flow), 6)
    y = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z, log_det = continuous(y.view(6, *SHAPE), rows)
    back, log_det_back = continuous.inverse(z, rows)
    assert_close(back.flatten(1), y, 1e-9)
    assert_close(log_det_back, -log_det, 1e-9)
    slope = log_slope(lambda y: continuous(y.view(6, *SHAPE), rows)[0], y)
    assert_close(log_det, slope, 1e-9)


@every_flow
def test_the_noise_has_the_density_that_the_flow_reports(name):
    """The map of the noise, dequantisation and its learned shape included."""
    flow = randomise(small_flow(name).double())
    x, context = integers(), context_of(flow)
    u = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_det = flow(x, context, u.view(6, *SHAPE))[1]
    assert_close(log_det, log_slope(lambda u: flow(x, context, u.view(6, *SHAPE))[0], u), 1e-8)


@every_flow
def test_images_come_back_under_their_context(name):
    flow = randomise(small_flow(name), size=0.05)
    x, context = integers(), context_of(flow)
    z = flow.encode(x, context)
    assert torch.equal(flow.inverse(z, context)[0], x)
    assert not torch.equal(flow.inverse(z, context.roll(1, 0))[0], x)


def test_each_row_has_its_own_context():
    flow = randomise(small_flow())
    x, together = integers(), randomise(small_flow()).log_prob(integers(), context_of(flow), 0)
    noise = flow.draw_noise(6, torch.Generator().manual_seed(0))
    alone = [
        losses.nll(*flow(x[i : i + 1], torch.tensor([i % 3]), noise[i : i + 1])) for i in range(6)
    ]
    assert_close(-torch.stack(alone), together, 1e-5)


def test_one_label_stands_for_all_rows_and_one_hot_rows_for_labels():
    flow, x = randomise(small_flow()), integers()
    expected = flow.log_prob(x, torch.full((6,), 2), seed=0)
    for same in (2, torch.tensor(2), torch.tensor([0.0, 0.0, 1.0]).expand(6, 3), [2] * 6):
        assert torch.equal(flow.log_prob(x, same, seed=0), expected)
    assert torch.equal(flow.log_prob(x, torch.full((6,), 2, dtype=torch.uint8), 0), expected)


def test_samples_are_of_the_class_asked_for():
    flow = randomise(small_flow())
    of_class = [flow.sample(6, seed=0, context=label) for label in range(3)]
    assert not torch.equal(of_class[0], of_class[1])
    mixed = flow.sample(6, seed=0, context=torch.arange(6) % 3)
    for i in range(6):
        assert torch.equal(mixed[i], of_class[i % 3][i])
    assert torch.equal(
        flow.sample(6, temperature=0, context=1), flow.inverse(torch.zeros(6, 16), [1] * 6)[0]
    )


def test_learned_noise_is_the_same_under_every_label():
    """So that it cancels in p(x, u | y) / p(x, u): Bayes' rule compares one image."""
    flow = randomise(small_flow("labels, learned noise"))
    noise = torch.rand(6, *SHAPE)
    layer = flow.dequantize
    under = [layer(integers(), flow.check_context(y, 6), noise)[0] for y in (0, 1)]
    assert torch.equal(*under)


def test_a_whole_batch_of_labels_goes_through_vmap():
    flow, x, labels = randomise(small_flow()), integers(), context_of(small_flow())
    one = lambda x, y, u: flow(x[None], y[None], u[None])[1][0]  # noqa: E731
    noise = torch.rand(6, *SHAPE)
    assert_close(torch.func.vmap(one)(x, labels, noise), flow(x, labels, noise)[1], 1e-4)


# The doors

REFUSED = {
    "none": (
        None,
        r"takes labels 0 ... 2 as context, integers of shape \(6,\) or one for all, got none",
    ),
    "too few": (torch.zeros(5).long(), r"as context, .*, got \(5,\) of torch.int64"),
    "a column": (torch.zeros(6, 1).long(), r"as context, .*, got \(6, 1\) of torch.int64"),
    "floats": (torch.zeros(6), r"as context, .*, got \(6,\) of torch.float32"),
    "a float": (1.0, r"as context, .*, got \(\) of torch.float64"),
    "too large": (torch.arange(6), r"takes labels 0 ... 2 as context, .*, got 0 ... 5"),
    "negative": (-1, r"takes labels 0 ... 2 as context, .*, got -1 ... -1"),
    "a word": ("two", "context must be a tensor or an array of numbers, got a str"),
    "NaN": (torch.full((6, 3), math.nan), "6 of 6 rows of the context hold NaN"),
}


@pytest.mark.parametrize("door", ["log_prob", "sample", "encode", "fit"])
@pytest.mark.parametrize(("context", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_label_is_refused(door, context, message):
    flow = small_flow().eval()
    if isinstance(context, str) and door == "fit":
        message = "context='labels' is for image sets with labels, got 'two'"
    with pytest.raises(ValueError, match=message):
        if door == "sample":
            flow.sample(6, context=context)
        elif door == "fit":
            quick_fit(flow, integers(), context=context, steps=1)
        else:
            getattr(flow, door)(integers(), context)


def test_what_is_no_vector_of_the_right_width_is_refused():
    for context in (torch.zeros(6, 3), torch.zeros(6), 1, None):
        with pytest.raises(ValueError, match=r"takes a context of shape \(6, 2\), got"):
            small_flow("vectors").eval().log_prob(integers(), context)


def test_labels_and_vectors_together_are_refused():
    with pytest.raises(ValueError, match="give classes or context_features"):
        models.realnvp_image(SHAPE, 1, 4, 1, classes=3, context_features=2)


def test_a_network_misses_the_context_that_it_was_built_for():
    with pytest.raises(ValueError, match="built for a context of 2 features; none was given"):
        ConvResNet(1, 2, 4, 1, context_features=2)(torch.zeros(1, 1, 4, 4))


# Training


def test_labels_of_an_image_set_are_its_context():
    runs = []
    for images, context in [
        (labelled(), "labels"),
        (labelled().train, LABELS),
        (labelled().train, torch.eye(3)[LABELS]),
    ]:
        flow = small_flow(scales=1)
        runs.append((quick_fit(flow, images, context=context).loss, flow))
    for loss, flow in runs[1:]:
        assert loss == runs[0][0]
        assert_close(flow.log_prob(integers(), 1, 0), runs[0][1].log_prob(integers(), 1, 0), 0)


def test_labels_stay_with_their_images_shuffled_mirrored_and_held_out():
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(60, *SHAPE)
    examples = data.ImageSet("mine", images, LABELS.byte(), None, None)
    batches = make_batches(small_flow(), examples, "labels", 10, 7, True, seed=0)
    seen = [*map(batches, range(12)), *batches.held_out()]
    assert sum(len(x) for x, _, _ in seen) == 12 * 10 + 7
    for x, context, _ in seen:
        assert torch.equal(context.argmax(1), x[:, 0, 0, 0].long() % 3)
        assert torch.equal(context.sum(1), torch.ones(len(x)))


@pytest.mark.parametrize(
    "examples",
    [integers(60), data.ImageSet("mine", integers(60), None, None, None), data.TwoMoons()],
    ids=["a tensor", "no labels", "a density"],
)
def test_labels_that_are_not_there_are_refused(examples):
    with pytest.raises(ValueError, match="'labels' is for image sets with labels"):
        quick_fit(small_flow(), examples, context="labels")


@every_flow
def test_training_reaches_every_weight(name):
    flow = small_flow(name, scales=1)
    before = {name: p.clone() for name, p in flow.named_parameters()}
    quick_fit(flow, integers(60), context=context_of(flow, 60), steps=4, lr=1e-2)
    assert [name for name, p in flow.named_parameters() if torch.equal(p, before[name])] == []


def test_a_run_keeps_samples_resumes_exactly_and_loads(tmp_path, monkeypatch):
    def train(folder, **more):
        flow = small_flow(scales=1)
        settings = {"context": LABELS, "epochs": 2, "validation": 10, "lr": 1e-2}
        return flow, quick_fit(flow, integers(60), run=folder, **settings, **more)

    whole, history = train(tmp_path / "whole")
    step, calls = torch.optim.Adam.step, iter(range(100))

    def interrupted(self):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", interrupted)
        assert train(tmp_path / "cut")[1].interrupted
    resumed, again = train(tmp_path / "cut", resume=True)
    assert again.loss == history.loss
    x, context = integers(), context_of(whole)
    loaded = [checkpoints.load(tmp_path / run / "last.safetensors") for run in ("whole", "cut")]
    for flow in (resumed, *loaded):
        assert torch.equal(flow.log_prob(x, context, 0), whole.log_prob(x, context, 0))
    grids = sorted((tmp_path / "whole" / "samples").iterdir())
    assert [Image.open(grid).size for grid in grids] == [(6 * 5 + 1, 6 * 5 + 1)] * 2


def test_flows_without_a_context_are_what_they_were():
    """Cards and weights from before there were contexts still make their flow."""
    torch.manual_seed(0)
    flow = models.realnvp_image(SHAPE, 2, 4, 1)
    old = {"shape": SHAPE, "scales": 2, "width": 4, "blocks": 1}
    models.build("realnvp_image", **old).load_state_dict(flow.state_dict())
    assert not any("film" in name for name in flow.state_dict())


def test_a_short_training_tells_digits_apart_by_bayes_rule():
    """p(y | x) = p(x | y) p(y) / p(x): chance is 10 %."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(15).byte()[:, None]
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    flow = models.realnvp_image((1, 8, 8), 1, width=8, blocks=1, classes=10)
    examples = data.ImageSet("8 x 8", images[:1500], labels[:1500], images[1500:], labels[1500:])
    quick_fit(flow, examples, steps=100, batch_size=64, lr=1e-2, context="labels")
    with torch.no_grad():
        under = [flow.log_prob(examples.test, label, seed=0) for label in range(10)]
    log_p = torch.stack(under, dim=1)
    right = (log_p.argmax(1) == examples.test_labels).double().mean()
    assert right > 0.6


# Asking for the label


def mixture():
    return small_flow("labels, base alone").eval()


def test_one_pass_gives_the_density_under_every_label():
    flow, x, noise = randomise(mixture()), integers(), torch.rand(6, *SHAPE)
    expected = torch.stack(
        [-losses.nll(*flow(x[i : i + 1], y, noise[i : i + 1])) for i in range(6) for y in range(3)]
    )
    for given in range(3):
        one_hot = flow.check_context(given, 6)
        found = losses.under_all_labels(flow, *flow(x, given, noise), one_hot)
        assert_close(found.flatten(), expected, 1e-4)


def test_label_nll_is_what_bayes_rule_leaves_of_the_right_label():
    flow, x = randomise(mixture().double()), integers()
    y = flow.check_context(context_of(flow), 6)
    z, log_det = flow(x, y, torch.rand(6, *SHAPE, dtype=torch.float64))
    under = losses.under_all_labels(flow, z, log_det, y)
    expected = under.logsumexp(1) - under[range(6), context_of(flow)]
    assert_close(losses.label_nll(flow, z, log_det, y), expected.mean(), 1e-9)


@pytest.mark.parametrize("flow", [small_flow(), small_flow(classes=0)], ids=["networks", "none"])
def test_a_flow_whose_labels_enter_elsewhere_is_refused(flow):
    with pytest.raises(ValueError, match="alone must see the label: context_networks=False"):
        context = LABELS if flow.classes else None
        quick_fit(flow, integers(60), context=context, label_weight=1.0)


def test_asking_for_the_label_brings_it_and_is_not_counted_as_loss():
    found = {}
    for weight in (0.0, 10.0):
        flow = small_flow("labels, base alone", scales=1)
        settings = {"steps": 60, "batch_size": 30, "lr": 1e-2, "label_weight": weight}
        history = quick_fit(flow, integers(60), context=LABELS, **settings)
        y = flow.check_context(LABELS, 60)
        with torch.no_grad():
            found[weight] = history.loss[0], losses.label_nll(flow, *flow(integers(60), y), y)
    assert found[0.0][0] == found[10.0][0]
    assert found[10.0][1] < 0.5 * found[0.0][1]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_of_the_label_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ValueError, match="label_weight must be 0 or more, got"):
        quick_fit(mixture(), integers(60), context=LABELS, label_weight=weight)


def test_a_context_that_enters_nowhere_is_refused():
    with pytest.raises(ValueError, match="needs context_networks, context_base or both"):
        small_flow(context_networks=False, context_base=False)


# Evaluation


def test_scores_are_those_under_the_labels():
    flow, examples = randomise(small_flow()), labelled()
    found = recipes.score(flow, examples, draws=2, limit=7)
    expected = losses.importance_bits_per_dim(flow, integers(9)[:7], 2, LABELS[:7], seed=1)
    assert found["bits_per_dim"] == round(expected.double().mean().item(), 4)
    assert found["test_images"] == 7
    with pytest.raises(ValueError, match=r"takes labels 0 ... 2 as context, .*, got none"):
        recipes.score(flow, data.ImageSet("mine", integers(), None, integers(), None))


def test_the_bound_of_several_draws_takes_the_context():
    flow, x = randomise(small_flow()), integers()
    rng = torch.Generator().manual_seed(5)
    draws = torch.stack([flow.log_prob(x, 1, rng) for _ in range(3)]).logsumexp(0) - math.log(3)
    expected = losses.bits_per_dim(draws, SHAPE)
    assert_close(losses.importance_bits_per_dim(flow, x, 3, 1, seed=5), expected, 1e-6)


@pytest.mark.parametrize("name", ["labels, learned noise", "vectors"])
def test_a_conditional_flow_of_images_is_examined(name):
    flow, x = small_flow(name, scales=1), integers(64)
    context = context_of(flow, 64)
    quick_fit(flow, x, context=context, steps=10, batch_size=32)
    report = check_flow(flow, x, context=context, loss=losses.nll)
    assert report.ok, report
    assert "context" in [row.check for row in report.rows]


def test_a_flow_that_forgets_its_context_is_found():
    plain = small_flow(scales=1, classes=0).eval()
    flow = Flow(randomise(plain).bijection, SHAPE, classes=3)
    flow.bijection[2].forward = lambda x, context, inner=flow.bijection[2].forward: inner(x)
    assert "context" in check_flow(flow, integers(64), context=context_of(flow, 64)).failed


# The command line


@pytest.mark.filterwarnings('ignore:"digits" stands in')
def test_the_recipe_trains_evaluates_and_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    monkeypatch.chdir(tmp_path)
    recipe = recipes.RECIPES["mnist_conditional"]
    assert recipe.training["context"] == "labels"
    narrow = {**recipe.arguments, "width": 4, "blocks": 1, "dequant_couplings": 1}
    small = replace(recipe, arguments=narrow, training={**recipe.training, "ema": None}, start=None)
    monkeypatch.setitem(recipes.RECIPES, "mnist_conditional", small)
    quick = ["--steps", "2", "--batch-size", "16", "--limit", "64", "--standin", "--run", "run"]
    assert main(["train", "mnist_conditional", *quick]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["arguments"]["classes"] == 10
    assert main(["evaluate", "run", "--limit", "20", "--standin"]) == 0
    assert "bits_per_dim" in capsys.readouterr().out
    assert main(["sample", "run", "-n", "2", "--label", "7"]) == 0
    assert Image.open("samples.png").size == (2 * 29 + 1, 30)
    assert main(["sample", "run", "-n", "2"]) == 1
    complained = capsys.readouterr().err
    assert "takes labels 0 ... 9 as context, integers of shape (2,) or one for all" in complained
    assert main(["sample", "run", "--label", "10"]) == 1
    assert "got 10 ... 10" in capsys.readouterr().err
