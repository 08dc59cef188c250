"""The files around the code say the same things as each other."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flowlib

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


def make_lab(tmp_path, *arguments):
    """The commands of a first `make lab`, in which nothing is run."""
    return make("--dry-run", "lab", f"VENV={tmp_path}", *arguments)


def test_make_lab_starts_for_root_too_and_names_the_first_notebook(tmp_path):
    said = make_lab(tmp_path)
    assert ("--allow-root" in said) == (os.geteuid() == 0)
    assert "default_url=/lab/tree/notebooks/00_start_here.ipynb" in said
    assert "GB to download" in said and ".jupyterlab.json" in said


def test_one_setting_takes_torch_without_cuda_before_all_else(tmp_path):
    index = "--index-url https://download.pytorch.org/whl/cpu torch torchvision"
    assert index not in make_lab(tmp_path, "CPU=")  # which the environment may set
    said = make_lab(tmp_path, "CPU=1")
    assert 0 < said.index(index) < said.index("--editable '.[dev")


def test_uv_installs_where_it_is_there_and_can_be_declined(tmp_path):
    assert f"/x/uv pip install --python {tmp_path}/bin/python" in make_lab(tmp_path, "UV=/x/uv")
    assert f"{tmp_path}/bin/python -m pip install" in make_lab(tmp_path, "UV=")


def test_the_version_stands_in_one_place_and_the_changelog_begins_with_it():
    project, _ = requirements()
    assert "version" not in project and project["dynamic"] == ["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert latest == flowlib.__version__


def test_the_workflow_runs_what_ci_runs_from_the_oldest_python_on():
    """Parsed, no more: it has not been run by GitHub."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert jobs["test"]["steps"][-1] == {"run": "bash .ci/run"}
    oldest = requirements()[0]["requires-python"].removeprefix(">=")
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest


def test_the_devcontainer_makes_the_environment_of_the_makefile():
    """Parsed, no more: no container was made of it."""
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text()
    settings = json.loads(re.sub(r"^//.*\n", "", text, flags=re.MULTILINE))
    target = settings["postCreateCommand"].removeprefix("make ")
    assert target in make("--dry-run", "--always-make", "VENV=.venv", target)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_finds_all_that_it_imports(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    runpy.run_path(str(path), run_name="imported")
