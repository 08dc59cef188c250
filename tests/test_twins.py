"""Explorers without a kernel: site/slices.py and site/twins.py."""

import ast
import importlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

SITE = Path(__file__).resolve().parents[1] / "site"


@pytest.fixture
def site(monkeypatch):
    """Modules of site/ by name."""
    monkeypatch.syspath_prepend(str(SITE))
    return importlib.import_module


@pytest.fixture
def lines(site):
    """The lines of some cells that a name needs."""
    needed = site("slices").needed
    return lambda name, *cells: [ast.unparse(s) for s in needed(list(cells), name)]


def test_only_what_a_name_rests_on_is_kept_in_its_order(lines):
    cells = ["import math\nimport os", "a = 1\nb = 2\nprint(a)", "c = a + math.pi"]
    assert lines("c", *cells) == ["import math", "a = 1", "c = a + math.pi"]


def test_the_newest_value_of_a_name_hides_older_ones(lines):
    assert lines("b", "a = slow()\na = 2", "b = a") == ["a = 2", "b = a"]


def test_names_inside_functions_are_needed_but_not_those_of_comprehensions(lines):
    cells = [
        "i = slow()\nk = 3",
        "def f(x):\n    y = 1\n    return [k * i for i in x]",
        "y = slow()",
    ]
    assert lines("z", *cells, "z = f([1])") == [
        "k = 3",
        ast.unparse(ast.parse(cells[1])),
        "z = f([1])",
    ]


def test_cells_are_needed_as_a_whole(site):
    """The second cell brings `a`, and its other statement needs the first; `c` is its own."""
    cells = ["b = 1", "a = 2\nc = b\nd = c", "c = slow()", "x = a + 1"]
    assert site("slices").needed_cells(cells, "x") == [0, 1, 3]
    cells = ["a = 1", "for i in x:\n    a = i", "b = a"]
    assert site("slices").needed_cells(cells, "b") == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    ["a[0] = 5", "a.b = 5", "a.append(5)", "training.fit(a, data)", "for i in x:\n    a[i] = i"],
)
def test_changes_in_place_are_kept(lines, change):
    cells = ["from flowlib import training", "a = [1]\nx = data = [0]", change, "b = a"]
    assert ast.unparse(ast.parse(change)) in lines("b", *cells)


def test_the_names_of_a_loop_are_not_needed_before_it(lines):
    loop = "for i in range(3):\n    a[i] = i"
    assert lines("a", "i = slow()\na = {}", loop) == ["a = {}", loop]


def test_calls_of_modules_are_no_changes(lines):
    assert lines("b", "import torch\ntorch.manual_seed(0)", "b = torch.ones(1)") == [
        "import torch",
        "b = torch.ones(1)",
    ]


def control(value, low, high, step):
    return SimpleNamespace(value=value, min=low, max=high, step=step, description="")


def test_values_are_spread_evenly_with_both_ends_and_the_control_s_own(site):
    values = site("twins").values
    assert values(control(0.0, -3, 3, 0.1), 13) == [i / 2 for i in range(-6, 7)]
    assert values(control(3, 0, 9, 1), 13) == list(range(10))
    odd = values(control(0.7, 0, 1.2, 0.1), 7)
    assert odd == [0, 0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.2]
    assert values(SimpleNamespace(options=("keep", "draw anew")), 1) == ["keep", "draw anew"]


def test_rows_cover_every_setting_of_what_is_held_and_each_value_of_what_moves(site):
    menu = SimpleNamespace(options=("a", "b"), value="a")
    controls = {"menu": menu, "x": control(1, 0, 2, 1), "y": control(0, 0, 1, 1)}
    rows = list(site("twins").Twin(SimpleNamespace(controls=controls)).rows())
    assert [len(row) for row in rows] == [3, 2, 3, 2]
    assert rows[2] == [{"menu": "b", "x": x, "y": 0} for x in (0, 1, 2)]
    assert rows[3] == [{"menu": "b", "x": 1, "y": y} for y in (0, 1)]


def test_a_sprite_over_the_start_is_every_frame(site):
    rng = np.random.default_rng(0)
    start = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    frames = [start.copy() for _ in range(3)]
    frames[1][5:9, 7:9], frames[2][39, 49] = 255, 255
    whole, columns = site("twins").sprite([*map(Image.fromarray, frames)], Image.fromarray(start))
    assert (columns, whole.size) == (2, (100, 80))
    assert np.asarray(whole)[..., 3].mean() < 0.25 * 255  # the rest shows the start below it
    for i, frame in enumerate(frames):
        shown = Image.fromarray(start).convert("RGBA")
        box = (i % 2 * 50, i // 2 * 40, i % 2 * 50 + 50, i // 2 * 40 + 40)
        shown.alpha_composite(whole.crop(box))
        assert (np.asarray(shown)[..., :3] == frame).all()


def test_what_is_put_in_place_of_a_training_must_be_needed(site, monkeypatch):
    twins = site("twins")
    name = ("00_start_here", twins.explorers()[0][1])
    monkeypatch.setitem(twins.SHORTER, name, ("nobody_asked = 1", ""))
    with pytest.raises(ValueError, match="no longer needs"):
        twins.build(*name)


def test_the_picture_that_is_quick_to_pack_is_the_explorer_s(site):
    pixels = np.random.default_rng(0).integers(256, size=(30, 40, 4), dtype=np.uint8)
    quick, png = site("twins").bmp(pixels), site("twins").live.png(pixels)
    quick, png = (np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in (quick, png))
    assert np.array_equal(quick, png) and np.array_equal(quick, pixels[..., :3])
