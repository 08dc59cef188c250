"""flowlib as users get it: a wheel, another working directory, no home, no Jupyter, the locale C,
spaces and accents in every path, and nothing but the working directory writable; a notebook alone
there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest

import flowlib
from flowlib import checkpoints

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
SERIES = ["notebooks", "benchmarks/results", "data/pretrained"]
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for path, n in zip(sys.argv[1::2], sys.argv[2::2]):
    cells = json.load(open(path, encoding="utf-8"))["cells"]
    for cell in [cell for cell in cells if cell["cell_type"] == "code"][: int(n)]:
        shell.run_cell("".join(cell["source"])).raise_error()
    print(path, "ends well")
"""
BUILD = "import setuptools.build_meta as build, sys; build.build_wheel(sys.argv[1])"
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
    """A folder in which a wheel of this checkout is unpacked, which installs it, and no more."""
    source, site = tmp_path_factory.mktemp("un été"), tmp_path_factory.mktemp("à côté")
    for name in ["flowlib", *SERIES]:
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, site], cwd=source, check=True, capture_output=True)
    (wheel,) = site.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    wheel.unlink()
    return site


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code and of what ships with it, that its user cannot write to."""
    copy = tmp_path / "ma copie à moi"
    for name in ["flowlib", *SERIES]:
        shutil.copytree(ROOT / name, copy / name)
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield copy
    for folder in folders:
        folder.chmod(0o755)


@pytest.fixture
def python(tmp_path):
    """Runs Python in a folder of its own, where alone it may write; returns what it prints."""
    folder = tmp_path / "quelque part, là"
    fonts = folder / "matplotlib"
    fonts.mkdir(parents=True)
    for known in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
        shutil.copy(known, fonts)  # which takes seconds to make
    if os.geteuid() == 0:
        for path in (folder, fonts):
            os.chown(path, SOMEBODY, SOMEBODY)

    def run(library, *arguments, **environment):
        environment |= {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
        environment |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(fonts)}
        before = files(library)
        result = subprocess.run(
            [*as_somebody(), sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment | {"PATH": os.environ["PATH"], "FLOWLIB_FAST": "1"},
            capture_output=True,
            encoding="utf-8",
        )
        assert result.returncode == 0, result.stderr
        assert files(library) == before
        return result.stdout

    run.folder = folder
    return run


def read_by_notebooks(folder):
    """The files below a folder that code cells name: checkers, results, pictures, flows."""
    cells = (c for path in NOTEBOOKS for c in nbformat.read(path, as_version=4).cells)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    named = re.findall(r'\bSERIES / f?"([^"]+)"', code)
    named += [f"benchmarks/results/{n}" for n in re.findall(r'\bRESULTS / f?"([^"]+)"', code)]
    named += [f"data/pretrained/{n}" for n in re.findall(r'\bPRETRAINED / f?"([^"]+)"', code)]
    patterns = [re.sub(r"\{[^}]*\}", "*", name) for name in named]
    patterns += ["notebooks/checkers/*.py", "data/pretrained/*", "notebooks/[0-9]*.ipynb"]
    found = [sorted(folder.glob(pattern)) for pattern in patterns]
    return [[path.relative_to(folder).as_posix() for path in paths] for paths in found]


def test_a_wheel_holds_every_file_of_the_package_and_those_that_notebooks_read(site):
    installed = files(site / "flowlib")
    assert {path for path in installed if not path.startswith("series/")} == files(ROOT / "flowlib")
    read = read_by_notebooks(ROOT)
    assert len(read) > 15 and all(read)
    assert read_by_notebooks(site / "flowlib" / "series") == read


def test_a_notebook_runs_alone_beside_an_installed_flowlib(site, python):
    """All of notebook 02 with its exercises as they are, and the first solution, which a checker
    judges. Drawings that it links to are not there: their alt texts are."""
    names = "02_two_moons.ipynb", "02_two_moons_solutions.ipynb"
    for path in NOTEBOOKS:
        if path.name in names:
            shutil.copy(path, python.folder)
    said = python(site, "-c", RUN, names[0], 999, names[1], 2, XDG_CACHE_HOME="cache").splitlines()
    stubs = [f"Exercise {i}: not answered yet" for i in range(1, 6)]
    expected = [*stubs, f"{names[0]} ends well", "Exercise 1: passed", f"{names[1]} ends well"]
    assert [line for line in said if re.match("Exercise|.*ends well", line)] == expected


def test_flows_data_sets_and_the_command_line_are_had_from_any_folder(site, python):
    """Without a home or Jupyter, too: data are read, and it is said where more could be put. One
    process, for each imports torch."""
    code = """
import os, sys
sys.modules |= dict.fromkeys(["IPython", "ipykernel", "ipywidgets", "anywidget", "notebook"])
from importlib import metadata
import flowlib
from flowlib import checkpoints, data, plotting
(command,) = metadata.entry_points(group="console_scripts", name="flowlib")
main = command.load()
print(flowlib.__file__)
assert metadata.version("flowlib") == flowlib.__version__
assert main(["doctor"]) == 0
assert checkpoints.load("moons").sample(4).shape == (4, 2)
assert checkpoints.load("sinusoid").sample(4).shape == (4, 2)
assert data.load("digits").train.shape[1:] == (1, 28, 28)
plotting.use_style()
assert main(["sample", "moons", "-n", "4", "-o", "x.csv"]) == 0
os.environ |= {"FLOWLIB_DATA": "data"}
del os.environ["XDG_CACHE_HOME"]
data.load("digits")
del os.environ["FLOWLIB_DATA"]
try:
    data.load("digits")
except FileNotFoundError as error:
    print(error)
"""
    place, *message = python(site, "-c", code, XDG_CACHE_HOME="cache").splitlines()
    assert place == str(site / "flowlib" / "__init__.py")
    for folder in ("cache/flowlib", "data"):
        assert (python.folder / folder / "digits" / "train_images.npy").is_file()
    assert len((python.folder / "x.csv").read_text().splitlines()) in (4, 5)
    assert f"flows         {', '.join(checkpoints.shipped())}" in message
    assert f"flowlib       {flowlib.__version__} in {site / 'flowlib'}" in message
    assert "FLOWLIB_DATA" in message[-1]


def test_a_checkout_that_cannot_be_written_has_all_and_puts_data_into_the_cache(checkout, python):
    code = """
import sys
from flowlib import SERIES, checkpoints, data
sys.path.insert(0, str(SERIES / "notebooks"))
from checkers import nb02
print(nb02.__file__)
checkpoints.load("moons")
checkpoints.load("faces")
data.load("digits")
"""
    said = python(checkout, "-c", code, HOME=".")
    assert said.splitlines()[0] == str(checkout / "notebooks" / "checkers" / "nb02.py")
    assert (python.folder / ".cache" / "flowlib" / "digits" / "train_images.npy").is_file()
