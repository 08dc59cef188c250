"""The files around the code say the same things as each other."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch"}
ONLY_CONDA = {"python", "pip", "make"}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = project["dependencies"] + project["optional-dependencies"]["dev"]
    return project, dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)", line).groups() for line in pinned)


def conda_lines():
    lines = (ROOT / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    return [line.strip()[2:] for line in lines if re.match(r" +- (?!pip:|--editable)", line)]


def test_environment_yml_and_pyproject_name_the_same_packages_and_bounds():
    project, pip = requirements()
    conda = {
        re.match(r"[\w.-]+", line)[0]: re.search(r">=([\d.]+)", line) for line in conda_lines()
    }
    assert set(conda) - ONLY_CONDA == {CONDA_NAMES.get(name, name) for name in pip}
    for name, version in pip.items():
        assert conda[CONDA_NAMES.get(name, name)][1] == version, name
    assert conda["python"][1] == project["requires-python"].removeprefix(">=")


def test_every_conda_dependency_says_what_it_is_for():
    development = {"nbval", "nbclient", "nbformat", "pytest", "pytest-xdist", "ruff", "setuptools"}
    development.add("pyarrow")
    lines = conda_lines()
    assert [line for line in lines if "#" not in line] == [
        line for line in lines if re.match(r"python>", line)
    ]
    assert development <= {re.match(r"[\w-]+", line)[0] for line in lines}


def test_no_requirement_is_pinned_from_above():
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "environment.yml").read_text()
    assert not re.search(r'[\w"]\s*(==|<=|~=|<)\s*\d', text)


def test_the_tables_of_results_are_what_the_cards_say_and_the_readme_fits_on_a_page():
    results = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))
    readme = (ROOT / "README.md").read_text()
    assert results["summary"]() in readme
    assert results["with_summary"](readme) == readme
    assert results["tables"]() in results["SHIPPED"].read_text()
    assert max(len(line) for line in readme.splitlines() if line.startswith("|")) <= 200


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split()
    assert set(phony) == set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True).stdout


def test_the_floors_are_every_lower_bound_as_an_exact_version(tmp_path):
    """`make test-floors` installs them: all that pyproject.toml asks for at its oldest."""
    make(f"FLOORS={tmp_path}", f"{tmp_path}/constraints.txt")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"].values()
    bounds = [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]]
    bounds += [bound for extra in extras for bound in extra]
    floors = (tmp_path / "constraints.txt").read_text().splitlines()
    assert sorted(floors) == sorted(bound.replace(">=", "==") for bound in bounds)


def test_make_lab_starts_for_root_too():
    assert ("--allow-root" in make("--dry-run", "lab")) == (os.geteuid() == 0)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_finds_all_that_it_imports(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    runpy.run_path(str(path), run_name="imported")
