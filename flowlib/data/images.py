"""Image sets as uint8 tensors over memory maps: prepared once, opened in milliseconds ever after.

A prepared set is a folder with FILES, called by the set's name; faces come in sizes and with
attributes.json: celeba_64, faces_32, or celeba_64_first_500 with a limit. It lies in $FLOWLIB_DATA,
else in data/ of flowlib's own repository, else, or if that is read-only, in the user's cache.
"""

import contextlib
import gzip
import json
import os
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..common import budget, integer
from . import celeba, faces
from .celeba import sound

FILES = ["train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy"]
SHAPES = dict.fromkeys(("mnist", "digits"), (1, 28, 28))  # faces come in sizes
SHAPES |= dict.fromkeys(("cifar10", "photos"), (3, 32, 32))
LFW = "lfw_home/lfw_funneled"  # as scikit-learn calls it
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "celeba": "CelebA"}
TITLES |= {"lfw": "Labelled Faces in the Wild", "faces": "procedural faces"}
ORIGINALS = {"mnist": ("MNIST", "MNIST/raw"), "cifar10": ("CIFAR10", "cifar-10-batches-py")}
STANDINS = {"mnist": "digits", "cifar10": "photos", "celeba": "faces", "lfw": "faces"}


@dataclass(eq=False)
class ImageSet:
    """Images (N, C, H, W) and labels (N,), uint8; writing to them never reaches the disk.

    Pixels are 0 ... 2^bits - 1. Faces have labels (N, A) in {0, 1}; `attributes` names the columns.

    >>> ImageSet("mine", torch.zeros(5, 1, 8, 8, dtype=torch.uint8), None, None, None).shape
    torch.Size([1, 8, 8])
    """

    name: str
    train: Tensor = field(repr=False)
    train_labels: Tensor | None = field(repr=False)
    test: Tensor | None = field(repr=False)
    test_labels: Tensor | None = field(repr=False)
    standin_for: str | None = None
    attributes: tuple[str, ...] | None = field(default=None, repr=False)
    bits: int = field(default=8, repr=False)

    @property
    def is_standin(self) -> bool:
        """Whether another set was asked for."""
        return self.standin_for is not None

    @property
    def shape(self) -> torch.Size:
        """The shape of one image, (C, H, W)."""
        return self.train.shape[1:]

    @property
    def title(self) -> str:
        """The name for titles of figures: "MNIST", or "digits, a stand-in for MNIST"."""
        title = TITLES.get(self.name, self.name) + f", {self.bits} bits" * (self.bits < 8)
        return f"{title}, a stand-in for {TITLES[self.standin_for]}" if self.is_standin else title


def load(
    name: str, *, size: int | None = None, limit: int | None = None, bits: int = 8, standin=False
) -> ImageSet:
    """The image set "mnist", "cifar10", "celeba" or "lfw"; "digits", "photos" or "faces".

    It is prepared on first use, from files in $FLOWLIB_DATA or (never with FLOWLIB_FAST=1) the net:
    mnist, cifar10   torchvision's files, packed or not, or its download
    celeba           JPEGs in img_align_celeba/, or celeba/*.parquet for pyarrow; no download
    lfw              scikit-learn's lfw_home/, or its download (233 MB); no attributes
    With standin=True, one of the shape that needs neither takes its place, with a warning: digits,
    photos, or drawn faces. Faces have a size, 64 (the default) or 32. With a limit, only the first
    `limit` images of each split are given, and no more faces prepared; of fewer than 8 `bits` the
    highest, as 0 ... 2^bits - 1. Raises ValueError for bad arguments and damaged files,
    FileNotFoundError for a set that cannot be had.

    >>> load("digits", limit=100).train.shape
    torch.Size([100, 1, 28, 28])
    """
    if name not in BUILDERS:
        raise ValueError(f"there is no image set {name!r}; there are {', '.join(BUILDERS)}")
    title, substitute = TITLES.get(name, name), STANDINS.get(name)
    if name not in SHAPES:
        size = integer("size", 64 if size is None else size, at_least=32)
        if size not in (64, 32):
            raise ValueError(f"size must be 64 or 32, got {size}")
    elif size is not None:
        raise ValueError(f"size goes with sets of faces; {title} is always {SHAPES[name]}")
    limit = None if limit is None else integer("limit", limit, at_least=1)
    if integer("bits", bits, at_least=1) > 8:
        raise ValueError(f"images hold at most 8 bits, got bits={bits}")
    try:
        return _load(name, size, limit, bits)
    except (OSError, ValueError):
        if not (standin and substitute):
            raise
    warnings.warn(
        f'"{substitute}" stands in for {title}, which could not be had: the figures and numbers '
        f'that follow are not {title}\'s. data.load("{name}") says what is wrong.',
        stacklevel=2,
    )
    return replace(_load(substitute, size, limit, bits), standin_for=name)


def places():
    """The folders where sets may lie, the first choice first."""
    checkout = Path(__file__).resolve().parents[2]
    if given := os.environ.get("FLOWLIB_DATA"):
        yield Path(given).expanduser()
    elif (checkout / "pyproject.toml").is_file():
        yield checkout / "data"
    with contextlib.suppress(RuntimeError):  # which "~" raises for users without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowlib"


def _load(name, size, limit, bits):
    every = f"{name}_{size}" if size else name
    key = f"{every}_first_{limit}" if size and limit else every
    folders = (place / folder for place in places() for folder in (every, key))
    folder = next(filter(_is_prepared, folders), None) or _prepare(name, key, size, limit)
    attributes, arrays = None, []
    if size:
        with sound(path := folder / "attributes.json"):
            attributes = tuple(json.loads(path.read_text()))
    for path in (folder / file for file in FILES):
        with sound(path):
            array = np.lib.format.open_memmap(path, mode="c")  # refuses pickled objects
            if "images" in path.name:
                expected = (max(1, len(array)), *SHAPES.get(name, (3, size, size)))
            else:
                expected = (len(arrays[-1]), len(attributes)) if size else (len(arrays[-1]),)
            if array.dtype != np.uint8 or array.shape != expected:
                raise ValueError(f"expected uint8 {expected}, got {array.dtype} {array.shape}")
        arrays.append(torch.from_numpy(array))
    train, train_labels, test, test_labels = (array[:limit] for array in arrays)
    if bits < 8:
        train, test = train >> (8 - bits), test >> (8 - bits)
    return ImageSet(name, train, train_labels, test, test_labels, None, attributes, bits)


def _is_prepared(folder):
    return all((folder / file).is_file() for file in FILES)


def _prepare(name, key, size, limit):
    """Build the set in its folder; of several processes one does, and the others wait."""
    looked = list(places())
    place = next(filter(_is_writable, looked), None)
    if place is None:
        tried = ", ".join(map(str, looked)) or "no home folder either"
        raise FileNotFoundError(f"no folder takes {name} (tried: {tried}); set FLOWLIB_DATA to one")
    folder = place / key
    with FileLock(place / f".{key}.lock"):
        if not _is_prepared(folder):
            BUILDERS[name](folder, looked[0], name, size, limit)
    return folder


def _is_writable(place):
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        return os.access(place, os.W_OK) and place.stat().st_mode & 0o222  # for superusers, too


# BUILDERS[name](folder, root, name, size, limit) writes FILES into the folder, the last one last:
# before that the others count for nothing.


def _save(folder, split, images, labels):
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{split}_images.npy", np.asarray(images, np.uint8))
    np.save(folder / f"{split}_labels.npy", np.asarray(labels, np.uint8))


@contextlib.contextmanager
def downloading(name, advice):
    """Refuses to in fast mode, and says what else to do where it fails."""
    try:
        if budget(False, True):
            raise RuntimeError("FLOWLIB_FAST=1 forbids it")
        yield
    except (OSError, RuntimeError, HTTPException) as error:
        raise FileNotFoundError(
            f"{TITLES[name]} is not there, and downloading failed: {error}. Connect to the network;"
            f' or put {advice}; or take data.load("{name}", standin=True): {STANDINS[name]} in the '
            "same shape."
        ) from error


def build_from_torchvision(folder, root, name, *_):
    """From torchvision's files, which may be packed or have dotted names; or downloaded."""
    from torchvision import datasets

    dataset, inside = getattr(datasets, ORIGINALS[name][0]), ORIGINALS[name][1]
    originals, archive = root / inside, root / "cifar-10-python.tar.gz"
    temporary = tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent)
    with temporary as work, sound(originals):
        (copies := Path(work, inside)).mkdir(parents=True)
        for path in filter(Path.is_file, originals.rglob("[!.]*")):
            copy = copies / path.name.removesuffix(".gz").replace(".idx", "-idx")
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                copy.write_bytes(file.read())
        if name == "cifar10" and archive.is_file() and not any(copies.iterdir()):
            datasets.utils.extract_archive(archive, work)
        if not any(copies.iterdir()):
            with downloading(name, f"torchvision's files into {originals}"):
                dataset(work, download=True)
        for split in ("train", "test"):
            data = dataset(work, train=split == "train")
            images = data.data if name == "mnist" else data.data.transpose(0, 3, 1, 2)
            _save(folder, split, images.reshape(len(data.targets), *SHAPES[name]), data.targets)


def build_digits(folder, *_):
    """Scikit-learn's 8 x 8 digits, enlarged to 20 x 20 and centred in 28 x 28 as MNIST's are."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images)[:, None] * 255 / 16
    large = torch.nn.functional.interpolate(small, size=20, mode="bicubic").round().clamp(0, 255)
    images = torch.nn.functional.pad(large, (4, 4, 4, 4))
    _save(folder, "train", images[:1500], digits.target[:1500])
    _save(folder, "test", images[1500:], digits.target[1500:])


def build_photos(folder, *_):
    """32 x 32 crops of six photographs at half scale; the label says which one.

    Two are scikit-learn's, a temple and a flower; four scikit-image's, an astronaut, a cat, a cup
    of coffee and a rocket. Test crops come from a level strip, training crops from above and below.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    crops, rng = {"train": [], "test": []}, np.random.default_rng(0)
    for photo in [*load_sample_images().images, *photos]:
        rows, columns = photo.shape[0] // 2, photo.shape[1] // 2
        half = photo[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3).mean((1, 3))
        windows = np.lib.stride_tricks.sliding_window_view(half.astype(np.uint8), (32, 32), (0, 1))
        above, tops = rows // 2 - 24, np.arange(rows - 31)  # the strip has 48 rows
        apart, inside = (tops <= above - 32) | (tops >= above + 48), abs(tops - above - 8) <= 8
        for split, allowed, n in (("train", apart, 2_000), ("test", inside, 250)):
            chosen = rng.choice(tops[allowed], n), rng.integers(columns - 31, size=n)
            crops[split].append(windows[chosen])
    for split, parts in crops.items():
        images = np.stack(parts, 1).reshape(-1, 3, 32, 32)
        _save(folder, split, images, np.arange(len(images)) % len(parts))


def build_photographs(folder, root, name, size, limit):
    """CelebA as it lies there; LFW as scikit-learn has it there, or downloads it."""
    if name == "celeba":
        source = celeba.find_celeba(root)
    else:
        home = root if (root / LFW).is_dir() else folder.parent
        if not (home / LFW).is_dir():
            with downloading(name, f"scikit-learn's lfw_home into {root}"):
                from sklearn.datasets import fetch_lfw_people

                fetch_lfw_people(data_home=home, min_faces_per_person=500)  # all; reads one's faces
        source = celeba.find_people(home / LFW)
    celeba.write(folder, source, name, size, limit)


def build_faces(folder, root, name, size, limit):
    """Procedural faces, 20,000 to train on and 2,000 to test, or the first `limit` of each."""
    folder.mkdir(exist_ok=True)
    (folder / "attributes.json").write_text(json.dumps(faces.ATTRIBUTES))
    for seed, (split, n) in enumerate((("train", 20_000), ("test", 2_000))):
        _save(folder, split, *faces.draw_faces(min(n, limit or n), size, seed))


BUILDERS = {
    "mnist": build_from_torchvision, "cifar10": build_from_torchvision, "celeba": build_photographs,
    "lfw": build_photographs, "digits": build_digits, "photos": build_photos, "faces": build_faces,
}  # fmt: skip
