"""flowlib as users get it: a wheel, another working directory, no home, nothing but it writable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOMEBODY = 12345  # in no list of users, so without a home, too


def as_somebody():
    """The start of a command that makes root a user who may read everything and write nothing."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv")
    user = [f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    return ["setpriv", *user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which a wheel of this checkout is installed, and nothing else."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "flowlib", source / "flowlib")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--no-compile", f"--target={site}", str(source)]
    subprocess.run(command, check=True)
    return site


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code and of what ships with it, that its user cannot write to."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "flowlib", copy / "flowlib")
    shutil.copytree(ROOT / "data" / "pretrained", copy / "data" / "pretrained")
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield copy
    for folder in folders:
        folder.chmod(0o755)


@pytest.fixture
def python(tmp_path):
    """Runs Python in a folder of its own, where alone it may write; returns what it prints."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, SOMEBODY, SOMEBODY)

    def run(library, *arguments, **environment):
        environment |= {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
        before = files(library)
        result = subprocess.run(
            [*as_somebody(), sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment | {"PATH": os.environ["PATH"], "FLOWLIB_FAST": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert files(library) == before
        return result.stdout

    run.folder = folder
    return run


def test_a_wheel_holds_every_file_of_the_package(site):
    assert files(site / "flowlib") == files(ROOT / "flowlib")


def test_flows_and_data_sets_are_had_from_any_folder(site, python):
    code = """
import flowlib
from flowlib import checkpoints, data, plotting
print(flowlib.__file__)
assert checkpoints.load("moons").sample(4).shape == (4, 2)
assert checkpoints.load("sinusoid").sample(4).shape == (4, 2)
assert data.load("digits").train.shape[1:] == (1, 28, 28)
plotting.use_style()
"""
    place = python(site, "-c", code, XDG_CACHE_HOME="cache")
    assert place.strip() == str(site / "flowlib" / "__init__.py")
    assert (python.folder / "cache" / "flowlib" / "digits" / "train_images.npy").is_file()


def test_the_command_line_samples_a_shipped_flow(site, python):
    python(site, "-m", "flowlib", "sample", "moons", "-n", "4", "-o", "x.csv")
    assert len((python.folder / "x.csv").read_text().splitlines()) in (4, 5)


def test_without_a_home_it_reads_data_and_says_where_it_could_put_more(site, python):
    code = """
import os
from flowlib import data
data.load("digits")
del os.environ["FLOWLIB_DATA"]
try:
    data.load("digits")
except FileNotFoundError as error:
    print(error)
"""
    message = python(site, "-c", code, FLOWLIB_DATA="data")
    assert "FLOWLIB_DATA" in message


def test_a_checkout_that_cannot_be_written_puts_data_into_the_cache(checkout, python):
    code = """
from flowlib import checkpoints, data
checkpoints.load("moons")
checkpoints.load("faces")
data.load("digits")
"""
    python(checkout, "-c", code, HOME=".")
    assert (python.folder / ".cache" / "flowlib" / "digits" / "train_images.npy").is_file()
