import ast
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import flowlib
from flowlib.common import as_tensor, budget, generator, holds, integer, rand, randn

PACKAGE = Path(flowlib.__file__).parent
FLOORS = [
    "common",
    "masks",
    "networks",
    "bijections",
    "norms",
    "dequantize",
    "reversible",
    "coupling",
    "flow",
    "models",
    "losses",
    "data",
    "checkpoints",
    "plotting",
]
FLOORS += ["batches", "graphs", "training", "checks", "widgets", "estimator", "recipes"]
FLOORS += ["doctor", "__main__"]
HEAVY = [
    "matplotlib",
    "sklearn",
    "tqdm.auto",
    "safetensors",
    "anywidget",
]  # plain tqdm comes with torch


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "full"), ("", "full"), ("0", "full"), ("1", "fast")]
)
def test_budget_follows_the_environment(monkeypatch, value, expected):
    monkeypatch.delenv("FLOWLIB_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("FLOWLIB_FAST", value)
    assert budget("full", "fast") == expected


def test_generator_from_an_integer_is_a_fresh_stream_and_others_are_handed_back():
    assert torch.equal(
        torch.rand(3, generator=generator(7)),
        torch.rand(3, generator=torch.Generator().manual_seed(7)),
    )
    stream = torch.Generator()
    assert generator(stream) is stream
    assert generator(None) is None


@pytest.mark.parametrize("seed", [1.0, "1", True, [1]])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        generator(seed)


def test_a_seed_beyond_64_bits_is_refused_by_name():
    with pytest.raises(ValueError, match="seed"):
        generator(2**70)


def test_integer_hands_back_what_it_accepts():
    assert integer("n", 3, at_least=3) == 3


@pytest.mark.parametrize("value", [2, -1, 3.0, True, "3", None, float("nan")])
def test_integer_refuses_by_name(value):
    with pytest.raises(ValueError, match="n must be an integer of at least 3, got "):
        integer("n", value, at_least=3)


TENSORS = {
    "tensor": torch.arange(6.0).view(2, 3).double(),
    "array": np.arange(6.0).reshape(2, 3),
    "reversed view": np.arange(5.0, -1, -1).reshape(2, 3)[::-1, ::-1],
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "list": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
}


@pytest.mark.parametrize("values", TENSORS.values(), ids=TENSORS)
def test_as_tensor_takes_what_holds_numbers(values):
    assert torch.equal(as_tensor(values), TENSORS["tensor"])


def test_as_tensor_copies_what_may_not_be_written_to():
    array = np.arange(3.0)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_tensor(array)[0] = 7
    assert array[0] == 0


@pytest.mark.parametrize(
    "values", [None, "abc", [[1], [1, 2]], {"a": 1}, np.array(["x"])], ids=repr
)
def test_as_tensor_refuses_what_holds_no_numbers_by_name(values):
    with pytest.raises(ValueError, match="points must be a tensor or an array of numbers, got a "):
        as_tensor(values, "points")


def test_holds_is_false_only_where_it_is_known():
    assert holds(torch.tensor(True)) and not holds(torch.tensor(False))
    assert holds(torch.tensor(False, device="meta"))
    seen = torch.func.vmap(lambda x: x + (1.0 if holds(x > 0) else 2.0))(torch.zeros(2))
    assert seen.tolist() == [1, 1]


@pytest.mark.parametrize("draw", [rand, randn])
def test_draws_have_the_dtype_of_their_model_to_its_last_digit(draw):
    double = draw((1_000,), generator(0), torch.zeros(1, dtype=torch.float64))
    assert double.dtype == torch.float64
    assert (double != double.float().double()).any()


def test_a_fresh_import_loads_nothing_heavy_and_has_every_module_as_an_attribute():
    script = f"""
import sys, flowlib
print([m for m in {HEAVY} if m in sys.modules])
assert set(flowlib.__all__) <= set(dir(flowlib))
flowlib.losses
"""
    found = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert found.strip() == "[]"


@pytest.mark.parametrize("name", flowlib.__all__)
def test_every_public_name_is_an_attribute(name):
    assert getattr(flowlib, name) is not None


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'chek'"):
        flowlib.chek  # noqa: B018


def imported_floors(path):
    """The floors of the house that a file of flowlib imports from, wherever in it that stands."""
    here = ("flowlib", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "flowlib" and len(name) > 1)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_a_file_imports_only_from_floors_below(path):
    floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below = FLOORS[: FLOORS.index(floor)]
    assert set(imported_floors(path)) - {floor} <= set(below)
