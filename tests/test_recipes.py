"""Recipes: the structure of their models by brute force, sizes, and what `train` makes of them."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, randomise

from flowlib import checkpoints, data, models, recipes, training
from flowlib.data.faces import draw_faces
from flowlib.recipes import RECIPES

OF_CONVOLUTIONS = [name for name, recipe in RECIPES.items() if recipe.model == "realnvp_image"]
STRUCTURES = {  # what `narrow` leaves of them: scales, and colours on boards that are not too large
    (RECIPES[name].arguments["scales"], RECIPES[name].arguments["shape"][0]): name
    for name in OF_CONVOLUTIONS
}.values()
DEPTHS = {  # those that differ in more than their width and the size of their images
    str({**RECIPES[name].arguments, "width": 4, "shape": RECIPES[name].arguments["shape"][0]}): name
    for name in OF_CONVOLUTIONS
}.values()


def millions(name):
    return (
        sum(
            p.numel()
            for p in models.build(RECIPES[name].model, **RECIPES[name].arguments).parameters()
        )
        / 1e6
    )


def narrow(name, **changes):
    """The recipe's model with all its scales, but four features, one block, on a small board."""
    arguments = RECIPES[name].arguments
    H = 2 ** arguments["scales"]
    C = 1 if H == 32 else arguments["shape"][0]  # colours would make it a Jacobian of 1,536 rows
    smaller = {"shape": (C, H, H // 2), "width": 4, "blocks": 1}
    return models.build("realnvp_image", **arguments | smaller | changes)


def context_of(flow, rows):
    if flow.classes:
        return 7
    return torch.ones(rows, flow.context_features) if flow.context_features else None


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_log_det_of_a_recipe_s_structure_is_that_of_its_jacobian(name):
    torch.manual_seed(0)
    flow = randomise(narrow(name).double(), size=0.05)
    context, shape = flow.check_context(context_of(flow, 1), 1), flow.shape
    continuous = lambda x: flow.bijection[2:](x, context)  # noqa: E731  (no Dequantize, no Logit)
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: continuous(x)[0].sum(0), x, vectorize=True
    )
    log_det = torch.linalg.slogdet(jacobian.view(math.prod(shape), -1)).logabsdet
    assert_close(continuous(x)[1], log_det[None], 1e-8)


@pytest.mark.parametrize("name", DEPTHS)
def test_images_come_back_exactly_at_full_depth_in_float64_with_random_noise(name):
    flow = narrow(
        name,
        shape=(RECIPES[name].arguments["shape"][0], 32, 32),
        blocks=RECIPES[name].arguments["blocks"],
    )
    flow = randomise(flow.double(), size=0.02)
    images = torch.randint(
        0, 256, (4, *flow.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    images = images >> (8 - flow.dequantize.bits)
    noise = flow.draw_noise(len(images), torch.Generator().manual_seed(3))
    z, _ = flow(images, context_of(flow, 4), noise)
    assert torch.equal(flow.inverse(z, context_of(flow, 4))[0], images)


@pytest.mark.parametrize(
    ("name", "size"), [("cifar10_paper", 19.6), ("cifar10", 6.57), ("faces", 1.58)]
)
def test_models_have_the_sizes_of_the_paper_and_of_the_shipped_flows(name, size):
    assert millions(name) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(("size", "scales"), [(64, 5), (32, 4)])
def test_models_of_faces_end_in_boards_of_4_by_4(size, scales):
    arguments = recipes.faces_model(size, width=32, blocks=2)
    assert arguments == {
        "shape": (3, size, size),
        "scales": scales,
        "width": 32,
        "blocks": 2,
        "doubling": True,
    }
    assert size // 2 ** (scales - 1) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_builder_and_arguments_that_fit_takes(name):
    inspect.signature(training.fit).bind(None, None, **RECIPES[name].training)
    inspect.signature(getattr(models, RECIPES[name].model)).bind(**RECIPES[name].arguments)


def test_building_a_recipe_s_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    recipes.train("moons", seed=3, steps=1, batch_size=8, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_size_for_images_that_have_one_is_refused():
    with pytest.raises(
        ValueError,
        match="size goes with recipes of faces; mnist_plain has data of its own size",
    ):
        recipes.train("mnist_plain", size=32)


def test_training_can_start_from_another_flow_of_the_same_model(narrow_faces, tmp_path):
    first = recipes.train(
        "celeba", size=32, steps=1, batch_size=16, run=tmp_path / "first", progress=False
    )[0]
    start = tmp_path / "first" / "last.safetensors"
    second = recipes.train(
        "celeba", start=start, size=32, steps=1, batch_size=16, lr=1e-9, seed=5, progress=False
    )[0]
    for p, q in zip(first.parameters(), second.parameters()):
        assert_close(q, p, 1e-6)
    with pytest.raises(
        ValueError,
        match=r"another model than that of celeba: Error.* in loading state_dict",
    ):
        recipes.train("celeba", start=start, size=64, steps=1, progress=False)


def test_a_flow_without_a_context_can_start_one_with(monkeypatch, tmp_path):
    model = {"shape": (1, 8, 8), "scales": 2, "width": 4, "blocks": 1}
    images = data.ImageSet("digits", torch.randint(0, 256, (40, 1, 8, 8)).byte(), None, None, None)
    images.train_labels = torch.arange(40) % 3
    monkeypatch.setattr(recipes, "load", lambda *args: images)
    short = {"steps": 1, "batch_size": 8}
    ordered = recipes.Recipe("digits", "", {**model, "classes": 3}, {**short, "context": "labels"})
    monkeypatch.setitem(RECIPES, "plain", recipes.Recipe("digits", "", model, short))
    monkeypatch.setitem(RECIPES, "ordered", ordered)
    monkeypatch.setitem(RECIPES, "wider", replace(ordered, arguments=model | {"width": 6}))
    plain = recipes.train("plain", run=tmp_path, progress=False)[0].eval()
    start = tmp_path / "last.safetensors"
    flow = recipes.train("ordered", start=start, lr=1e-9, progress=False)[0].eval()
    monkeypatch.setitem(RECIPES, "further", replace(RECIPES["ordered"], start=start))
    same = recipes.train("further", lr=1e-9, progress=False)[0].eval()
    assert flow.classes == same.classes == 3
    for name, p in plain.named_parameters():
        assert_close(flow.get_parameter(name), p, 1e-6)
        assert_close(same.get_parameter(name), p, 1e-6)
    with pytest.raises(ValueError, match="another model than that of wider"):
        recipes.train("wider", start=start, progress=False)


@pytest.fixture
def narrow_faces(monkeypatch):
    """The recipe `celeba`, four features wide, with procedural faces in place of CelebA."""
    settings = {**RECIPES["celeba"].training, "ema": None}  # its statistics take 20 batches
    model = recipes.faces_model(64, width=4, blocks=1)
    small = replace(RECIPES["celeba"], arguments=model, training=settings)
    monkeypatch.setitem(RECIPES, "celeba", small)
    asked = []

    def load(name, *, size=None, limit=None, bits=8, standin=False):
        asked.append((name, size, limit, standin))
        images, labels = draw_faces(60, size)
        return data.ImageSet("faces", images[:50], labels[:50], images[50:], labels[50:])

    monkeypatch.setattr(data, "load", load)
    return asked


def test_size_limit_and_standin_reach_the_data_the_model_and_the_evaluation(narrow_faces, tmp_path):
    flow, faces, history = recipes.train(
        "celeba",
        size=32,
        limit=50,
        standin=True,
        steps=2,
        batch_size=16,
        run=tmp_path / "run",
        progress=False,
    )
    assert narrow_faces == [("celeba", 32, 50, True)]
    assert flow.shape == faces.shape == (3, 32, 32)
    assert len(history.evaluations) == 2  # of at most eight
    assert (
        history.evaluations[0]["validation_loss"] > 0
    )  # 5 of the 50 rows are held out, not the recipe's 5,000
    recipes.data_of(tmp_path / "run", limit=20)
    assert narrow_faces[1:] == [("faces", 32, 20, False)]
    drawn = checkpoints.load(tmp_path / "run").sample(36, seed=0)
    assert drawn.shape == (36, 3, 32, 32)
    assert drawn.dtype == torch.uint8
