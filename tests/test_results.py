"""`make results`: what is trained, what a card says, and which weights are shipped."""

import importlib.util
import json
import shutil
from pathlib import Path
from statistics import median

import pytest
import torch

from flowlib import checkpoints, data, models, recipes

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "results.py"
TINY = recipes.Recipe(
    "tiny",
    "a test",
    {"shape": (1, 8, 8), "scales": 1, "width": 4, "blocks": 1},
    {"epochs": 2, "batch_size": 8},
)


def script(folder, patch):
    """The script as a module, with a recipe of its own and folders of its own."""
    spec = importlib.util.spec_from_file_location("results_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng)
    tiny = data.ImageSet("tiny", images[:32], torch.zeros(32), images[32:], torch.zeros(8))
    (folder / "README.md").write_text("<!-- results -->\n<!-- end of results -->\n")
    (folder / "pretrained").mkdir(exist_ok=True)
    patch.setattr(recipes, "load", lambda *args: tiny)
    patch.setitem(recipes.RECIPES, "tiny", TINY)
    patch.setattr(checkpoints, "PRETRAINED", folder / "pretrained")
    patch.setattr(checkpoints, "PACKAGED", folder / "packaged")
    patch.setattr(module, "ROOT", folder)
    patch.setattr(module, "SHIPPED", folder / "shipped.md")
    patch.setattr(module, "peak", lambda *args: 1e12)
    return module


@pytest.fixture
def results(tmp_path, monkeypatch):
    return script(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def with_tiny(tmp_path_factory):
    """A folder in which the recipe was trained and shipped."""
    folder = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        script(folder, patch).ship("tiny")
    return folder


@pytest.fixture
def shipped(with_tiny, tmp_path, monkeypatch):
    """The script in a copy of that folder."""
    shutil.copytree(with_tiny, tmp_path, dirs_exist_ok=True)
    return script(tmp_path, monkeypatch)


def test_a_card_holds_the_figures_of_the_table(shipped):
    card = checkpoints.read_card("tiny")["results"]
    assert (card["steps"], card["epochs"], card["images_seen"], card["test_images"]) == (
        8,
        2,
        64,
        8,
    )
    rate = card["images_per_second"]  # both are rounded to a tenth
    assert 64 / rate == pytest.approx(card["seconds"], abs=0.06 + 0.05 * 64 / rate**2)
    assert card["bits_per_dim_8_draws"] <= card["bits_per_dim"] + 0.2
    speed = f"| 64 | {card['images_per_second']:.0f} | not measured | 8 |"
    assert f"{card['bits_per_dim']:.3f}" in shipped.tables() and speed in shipped.tables()
    assert torch.isfinite(
        checkpoints.load("tiny").log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    ).all()


def test_the_share_of_the_peak_is_of_three_forward_passes_for_each_image(shipped, monkeypatch):
    monkeypatch.setattr(shipped, "peak", lambda device, dtype: 1e9)
    flow, image = checkpoints.load("tiny"), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    share = shipped.share_of_peak(flow, image, pace=1_000)["share_of_bfloat16_peak"]
    assert share == round(3 * shipped.forward_flops(flow, image) * 1_000 / 1e9, 4) > 0


def test_a_flow_is_trained_for_so_many_seconds(results):
    results.ship("tiny", seconds=1e-6)
    card = checkpoints.read_card("tiny")["results"]
    assert (card["steps"], card["epochs"], card["images_seen"]) == (1, 0.2, 8)
    config = json.loads((results.ROOT / "runs" / "tiny" / "config.json").read_text())
    assert (config["seconds"], config["steps"]) == (1e-6, None)


def test_of_a_large_model_only_the_card_is_shipped(results, monkeypatch):
    monkeypatch.setattr(results, "LARGEST", 10)
    results.ship("tiny")
    assert results.cards()["tiny"]["results"]["parameters"] > 10
    assert sorted(path.suffix for path in checkpoints.PRETRAINED.iterdir()) == [".json", ".jsonl"]
    assert checkpoints.load(results.ROOT / "runs" / "tiny").shape == (1, 8, 8)


def test_flows_of_points_are_shipped_with_every_install(results, monkeypatch):
    recipe = recipes.Recipe(data.TwoMoons(), "a test", {"depth": 1}, {"steps": 2}, "nice_2d")
    monkeypatch.setitem(recipes.RECIPES, "points", recipe)
    results.ship("points")
    names = sorted(path.name for path in checkpoints.PACKAGED.iterdir())
    assert names == ["points.json", "points.safetensors"]
    assert "`points`" in results.tables()


def test_the_bound_is_measured_anew_and_the_rest_of_the_card_stays(shipped):
    path = checkpoints.PRETRAINED / "tiny.json"
    before = path.read_text()
    path.write_text(before.replace('"bits_per_dim_8_draws": 8', '"bits_per_dim_8_draws": 9'))
    shipped.renew_bound("tiny")
    assert checkpoints.read_card("tiny") == json.loads(before)


def test_a_further_sitting_starts_from_the_shipped_weights_and_adds_up(shipped):
    first, weights = checkpoints.read_card("tiny"), checkpoints.load("tiny").state_dict()
    shipped.ship("tiny", further=True)
    second = checkpoints.read_card("tiny")
    assert (
        second["seed"],
        second["results"]["sittings"],
        second["results"]["steps"],
        second["results"]["images_seen"],
    ) == (1, 2, 16, 128)
    assert second["results"]["seconds"] > first["results"]["seconds"]
    assert "16 in 2 sittings" in shipped.tables()
    lines = (checkpoints.PRETRAINED / "tiny.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12, 16]
    drift = [
        (weights[key] - now).norm() / weights[key].norm()
        for key, now in checkpoints.load("tiny").state_dict().items()
        if now.dim() == 4
    ]
    assert 0 < median(drift) < 0.2  # fresh weights would be further away than their own length


def test_all_that_will_be_shipped_fits_into_40_megabytes(results, tmp_path):
    """Those that notebooks use when every recipe is trained: large ones in place of the small."""
    last = [name for name in results.ON_CPU + results.ON_GPU if not name.endswith("_small")]
    size = 0
    for name in last:
        flow = models.build(recipes.RECIPES[name].model, **recipes.RECIPES[name].arguments)
        if sum(p.numel() for p in flow.parameters()) <= results.LARGEST:
            checkpoints.save(flow, tmp_path / "flow.safetensors", half=True)
            size += (tmp_path / "flow.safetensors").stat().st_size
    assert 10e6 < size < 40e6


def test_every_recipe_is_in_one_of_the_two_lists_and_missing_ones_are_named(results):
    families = {*results.ON_CPU, *results.ON_GPU}
    on_request = {"celeba", "celeba_32", "celeba_32_5bit", "mnist_variational"}  # hours, rare data
    assert set(recipes.RECIPES) - families == {"tiny", *on_request}
    assert all(f"`{name}`" in results.summary() for name in results.ON_GPU)
