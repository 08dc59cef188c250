"""`flowlib doctor`: what is installed, what is missing, and what each missing thing costs."""

import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import flowlib  # its floors are imported when they are used: a broken one must not stop the report

USES = {  # pyproject.toml's dependencies, and what each is needed for
    "torch": "everything",
    "torchvision": "MNIST, CIFAR-10 and grids of samples",
    "numpy": "everything",
    "matplotlib": "figures",
    "scikit-learn": "FlowDensity, and digits and photos, which stand in for MNIST and CIFAR-10",
    "scikit-image": "photos, which stand in for CIFAR-10",
    "jupyterlab": "reading and running the notebooks",
    "ipywidgets": "progress bars",
    "anywidget": "sliders",
    "accelerate": "training",
    "safetensors": "saved and shipped flows, and the command line",
    "tqdm": "training and the command line",
    "constriction": "the entropy coder of notebook 09",
}
GET = {  # how a data set is had that is not prepared, and the files that it can be prepared from
    "mnist": ("download of 11 MB on first use; digits stand in", "MNIST/raw"),
    "cifar10": ("download of 170 MB on first use; photos stand in", "cifar-10-*"),
    "celeba": ("never downloaded, see data/README.md; faces stand in", "img_align_celeba"),
    "lfw": ("download of 233 MB on first use; faces stand in", "lfw_home"),
    **dict.fromkeys(("digits", "photos", "faces"), ("made on first use, without a network", "-")),
}
TOOLS = {  # what else is of use, under which names, and what happens without it
    "chromium": ("chromium chromium-browser google-chrome", "make browser-test skips its tests"),
    "uv": ("uv", "make lab installs with pip"),
}


def main() -> int:
    """Print the report; return 0, or 1 if flows cannot be loaded and sampled here."""
    say("flowlib", f"{flowlib.__version__} in {Path(flowlib.__file__).parent}")
    say("Python", f"{platform.python_version()} on {platform.platform()}")
    bounds, wanting = lower_bounds(), []
    for name, use in USES.items():
        bound = bounds.get(name, "0")
        try:
            version = metadata.version(name)
            old = numbers(version) < numbers(bound)
            say(name, f"{version}, needs {bound}" + f" for {use}" * old)
        except metadata.PackageNotFoundError:
            old = say(name, f"missing: needed for {use}") or True
        wanting += [f"'{name}>={bound}'"] * old
    try:
        inventory()
    except Exception as error:  # whatever a broken installation leads to
        print(f"\nflowlib does not work here: {type(error).__name__}: {error}")
        return 1
    finally:
        if wanting:
            print(f"\nTo put this right: python -m pip install {' '.join(wanting)}")
    return 0


def inventory():
    """Device, flows, data sets and tools; raises whatever stops the core from working."""
    flows, hardware = flowlib.checkpoints.shipped(), flowlib.checkpoints.hardware()
    gpu = flowlib.common.torch.cuda.is_available()
    say("device", hardware if gpu else f"{hardware}; no GPU is seen: large recipes want one")
    flowlib.recipes.checkpoints.load("moons").sample(1)
    say("flows", ", ".join(flows))
    places, files = list(flowlib.data.images.places()), flowlib.data.images.FILES
    for name, (how, originals) in GET.items():
        folders = (folder for place in places for folder in sorted(place.glob(f"{name}*")))
        whole = (f for f in folders if "_first_" not in f.name)
        ready = [str(f) for f in whole if all((f / file).is_file() for file in files)]
        raw = [f"will be prepared from {f}" for p in places for f in sorted(p.glob(originals))]
        say(name, ", ".join(ready) or next(iter(raw), f"not there: {how}"))
    for place in places:
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        say("disk", f"{shutil.disk_usage(there).free / 1e9:.0f} GB free for data in {place}")
    for name, (commands, without) in TOOLS.items():
        say(name, next(filter(None, map(shutil.which, commands.split())), f"missing: {without}"))


def lower_bounds() -> dict[str, str]:
    """The oldest version of each dependency; empty for a folder that is used uninstalled."""
    try:
        required = metadata.requires("flowlib") or []
    except metadata.PackageNotFoundError:
        required = []
    return dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(required), re.MULTILINE))


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def say(name, text):
    print(f"{name:13} {text}")
