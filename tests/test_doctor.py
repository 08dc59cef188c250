"""`flowlib doctor`: what it finds, what it misses, and the status that it ends with."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import flowlib
from flowlib import checkpoints, doctor
from flowlib.__main__ import main
from flowlib.data.images import BUILDERS, FILES

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
BOUNDS = dict.fromkeys(doctor.USES, "1.0")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Versions and lower bounds as every test wants them, and folders of its own for data."""
    versions = dict.fromkeys(doctor.USES, "1.2")
    requires = [*(f"{name}>={bound}" for name, bound in BOUNDS.items()), 'ruff>=9; extra == "dev"']

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return versions


def report(capsys, status=0):
    """What it says, by the first word of each line."""
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line)


def test_it_knows_what_every_dependency_is_for_and_how_every_set_is_had():
    dependencies = PROJECT.read_text().split("dependencies = [")[1].split("]")[0]
    assert [line.split(">=")[0].strip(' "') for line in dependencies.split()] == list(doctor.USES)
    assert set(doctor.GET) == set(BUILDERS)


def test_where_all_is_there_it_says_so_and_ends_well(installed, capsys):
    said = report(capsys)
    assert said["flowlib"].startswith(f"{flowlib.__version__} in ")
    assert all(said[name] == "1.2, needs 1.0" for name in doctor.USES)
    assert said["flows"].split(";")[0].split(", ") == list(checkpoints.shipped())
    assert "no GPU is seen" in said["device"] and "GB free for data in" in said["disk"]
    assert said["uv"] and said["chromium"] and "To" not in said


def test_what_is_missing_or_too_old_is_named_with_its_cost_and_its_remedy(installed, capsys):
    del installed["accelerate"]
    installed["matplotlib"] = "0.10.2+local"
    said = report(capsys)
    assert said["accelerate"] == "missing: needed for training"
    assert said["matplotlib"] == "0.10.2+local, needs 1.0 for figures"
    assert said["To"].endswith("pip install 'matplotlib>=1.0' 'accelerate>=1.0'")


def test_data_sets_are_found_prepared_or_as_the_files_they_come_from(installed, tmp_path, capsys):
    for folder in ("data/mnist", "cache/flowlib/celeba_32", "data/faces_64_first_9"):
        (tmp_path / folder).mkdir(parents=True)
        for file in FILES:
            np.save(tmp_path / folder / file, np.zeros(1, np.uint8))
    (tmp_path / "data" / "cifar-10-batches-py").mkdir()
    said = report(capsys)
    assert said["mnist"] == str(tmp_path / "data" / "mnist")
    assert said["celeba"] == str(tmp_path / "cache" / "flowlib" / "celeba_32")
    assert said["cifar10"] == f"will be prepared from {tmp_path}/data/cifar-10-batches-py"
    assert said["lfw"] == "not there: download of 233 MB on first use; faces stand in"
    assert said["faces"].startswith("not there: made on first use")


def test_a_core_that_does_not_work_ends_with_status_1(installed, monkeypatch, capsys):
    def broken(name):
        raise OSError("moons.safetensors is gone")

    monkeypatch.setattr(checkpoints, "load", broken)
    said = report(capsys, status=1)
    assert said["flowlib"] == "does not work here: OSError: moons.safetensors is gone"


def test_a_folder_that_was_never_installed_has_no_bounds_and_works(installed, monkeypatch, capsys):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    assert report(capsys)["torch"] == "1.2, needs 0"
