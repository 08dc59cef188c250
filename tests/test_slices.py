"""The part of a notebook on which an explorer of the site rests: site/slices.py."""

import ast
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[1] / "site"


@pytest.fixture
def lines(monkeypatch):
    """The lines of some cells that a name needs."""
    monkeypatch.syspath_prepend(str(SITE))
    import slices

    yield lambda name, *cells: [ast.unparse(s) for s in slices.needed(list(cells), name)]
    sys.modules.pop("slices")


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


@pytest.mark.parametrize(
    "change",
    ["a[0] = 5", "a.b = 5", "a.append(5)", "training.fit(a, data)", "for i in x:\n    a[i] = i"],
)
def test_changes_in_place_are_kept(lines, change):
    cells = ["from flowlib import training", "a = [1]\nx = data = [0]", change, "b = a"]
    assert ast.unparse(ast.parse(change)) in lines("b", *cells)


def test_calls_of_modules_are_no_changes(lines):
    assert lines("b", "import torch\ntorch.manual_seed(0)", "b = torch.ones(1)") == [
        "import torch",
        "b = torch.ones(1)",
    ]
