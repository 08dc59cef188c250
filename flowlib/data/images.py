"""Image sets as uint8 tensors over memory maps: prepared once, opened in milliseconds ever after.

A prepared set is a folder `<root>/<name>` with train_images.npy, train_labels.npy, test_images.npy and test_labels.npy;
faces come in two sizes and with attributes.json: celeba_64, faces_32, or celeba_64_first_500 with a limit.
The root is $FLOWLIB_DATA, or data/ in the repository; the user's cache folder takes its place where it cannot be written.
"""

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..common import budget, generator, integer
from . import celeba, faces
from .npy import append

__all__ = ["ImageSet", "load"]

SPLITS, PARTS = ("train", "test"), ("images", "labels")
SIZES, PIECE = (64, 32), 31 * faces.BLOCK  # about a thousand images at a time


@dataclass(eq=False)
class ImageSet:
    """Images (N, C, H, W) and labels (N,), uint8, over private memory maps: writing to them never reaches the disk.

    Faces have labels (N, A) in {0, 1} instead; `attributes` names their columns, and is None for the other sets.
    """

    name: str
    train: torch.Tensor = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)
    standin_for: str | None = None
    attributes: tuple | None = field(default=None, repr=False)

    @property
    def is_standin(self):
        """Whether another set was asked for."""
        return self.standin_for is not None

    @property
    def shape(self):
        """The shape of one image, (C, H, W)."""
        return self.train.shape[1:]

    @property
    def title(self):
        """The name for figure titles, which never hides a stand-in: "MNIST", or "digits, a stand-in for MNIST"."""
        title = SOURCES[self.name].title
        return (
            f"{title}, a stand-in for {SOURCES[self.standin_for].title}"
            if self.is_standin
            else title
        )


def load(name, *, size=None, limit=None, standin=False):
    """Return the image set "mnist", "cifar10", "digits", "photos", "celeba" or "faces" as an `ImageSet`, prepared on first use.

    It is built from torchvision's own files in the root, or downloaded (never with FLOWLIB_FAST=1); CelebA from a folder
    img_align_celeba/ of JPEGs (see celeba.py). With standin=True, a set that cannot be had is replaced, with a warning, by
    one of the same shape that ships with the install.

    size   "celeba" and "faces" are 3 x size x size: 64, the default, or 32
    limit  only the first `limit` images of each split; fewer faces are then prepared

    Raises ValueError for arguments that don't fit and for damaged files, FileNotFoundError for a set that cannot be had.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no image set {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name]
    if source.shape is None:
        size = integer("size", 64 if size is None else size, at_least=1)
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, got {size!r}")
    elif size is not None:
        raise ValueError(
            f'size goes with "celeba" and "faces"; {source.title} is always {" x ".join(map(str, source.shape))}'
        )
    if limit is not None:
        limit = integer("limit", limit, at_least=1)
    try:
        return _load(name, size, limit)
    except FileNotFoundError:
        if not (standin and source.standin):
            raise
    warnings.warn(
        f'"{source.standin}" stands in for {source.title}, which could not be had: the figures and numbers that follow are not '
        f'{source.title}\'s. data.load("{name}") says what is missing.',
        stacklevel=2,
    )
    return replace(_load(source.standin, size, limit), standin_for=name)


# What each set is made from: {split: (images, labels)}, or {split: (n, pairs of images and labels)} for faces


def read_mnist(folder, download):
    from torchvision import datasets

    sets = {
        split: datasets.MNIST(folder, train=split == "train", download=download) for split in SPLITS
    }
    return {
        split: (mnist.data.unsqueeze(1).numpy(), mnist.targets.numpy())
        for split, mnist in sets.items()
    }


def read_cifar10(folder, download):
    from torchvision import datasets

    sets = {
        split: datasets.CIFAR10(folder, train=split == "train", download=download)
        for split in SPLITS
    }
    return {
        split: (cifar10.data.transpose(0, 3, 1, 2), cifar10.targets)
        for split, cifar10 in sets.items()
    }


def draw_digits():
    """Scikit-learn's 8 x 8 digits (0 to 16) enlarged to 20 x 20 and centred in 28 x 28, as MNIST's are."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((len(digits.images), 1, 28, 28), dtype=np.uint8)
    for image, small in zip(images, digits.images):
        grey = Image.fromarray((small * 255 / 16).round().astype(np.uint8))
        image[0, 4:24, 4:24] = grey.resize((20, 20), Image.Resampling.BICUBIC)
    return {
        "train": (images[:1500], digits.target[:1500]),
        "test": (images[1500:], digits.target[1500:]),
    }


def crop_photos():
    """32 x 32 crops of scikit-learn's two photographs at half scale; the label says which photograph.

    Each photograph is cut before it is scaled: test crops come from a level strip, training crops from above and below it.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images  # two of (427, 640, 3)
    rng = np.random.default_rng(0)

    def crops(n, strips):
        pieces = [
            [np.asarray(Image.fromarray(photo[strip]).reduce(2)) for strip in strips]
            for photo in photos
        ]
        images, labels = np.empty((n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 2
        for image, label in zip(images, labels):
            piece = pieces[label][rng.integers(len(strips))]
            top, left = rng.integers(piece.shape[0] - 31), rng.integers(piece.shape[1] - 31)
            image[:] = piece[top : top + 32, left : left + 32].transpose(2, 0, 1)
        return images, labels

    return {
        "train": crops(8_000, [slice(0, 208), slice(304, 427)]),
        "test": crops(1_000, [slice(208, 304)]),
    }


def draw_crowds(size, limit):
    """Procedural faces, 20,000 to train on and 2,000 to test, or the first `limit` of each, drawn as they are asked for."""

    def crowd(n, seed):
        rng = generator(seed)
        return n, (
            faces.draw_faces(min(PIECE, n - start), size, rng) for start in range(0, n, PIECE)
        )

    return {
        split: crowd(min(n, limit or n), seed)
        for seed, (split, n) in enumerate(zip(SPLITS, (20_000, 2_000)))
    }


@dataclass(frozen=True)
class Source:
    """How a set is made: by `read()` from what ships with the install, or by `read(folder, download)` from `originals`.

    Sets without a `shape` come in SIZES: faces by `read(size, limit)`, CelebA by celeba.py.
    """

    title: str
    shape: tuple | None
    read: Callable | None
    originals: str | None = None  # where torchvision keeps its files, seen from the root
    standin: str | None = None


SOURCES = {
    "mnist": Source("MNIST", (1, 28, 28), read_mnist, originals="MNIST/raw", standin="digits"),
    "cifar10": Source(
        "CIFAR-10", (3, 32, 32), read_cifar10, originals="cifar-10-batches-py", standin="photos"
    ),
    "digits": Source("digits", (1, 28, 28), draw_digits),
    "photos": Source("photos", (3, 32, 32), crop_photos),
    "celeba": Source("CelebA", None, None, standin="faces"),
    "faces": Source("procedural faces", None, draw_crowds),
}


# Opening and preparing


def _load(name, size, limit):
    root = Path(
        os.environ.get("FLOWLIB_DATA") or Path(__file__).resolve().parents[2] / "data"
    ).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowlib"
    keys = (
        [f"{name}_{size}", *([f"{name}_{size}_first_{limit}"] if limit else [])] if size else [name]
    )
    folder = next(
        filter(_is_prepared, (place / key for key in keys for place in (root, cache))), None
    )
    images = _open(folder or _prepare(keys[-1], name, size, limit, root, cache), name, size)
    return replace(
        images,
        **{
            part: getattr(images, part)[:limit]
            for part in ("train", "train_labels", "test", "test_labels")
        },
    )


def _is_prepared(folder):
    return any((folder / f"{split}_{part}.npy").exists() for split in SPLITS for part in PARTS)


@contextlib.contextmanager
def _reading(path):
    """Turns what a missing or damaged file raises into a ValueError with its path."""
    try:
        yield
    except Exception as error:  # a garbled header makes numpy raise nearly anything
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is missing or damaged ({error}); delete the folder {path.parent} and load again"
        ) from error


def _open(folder, name, size):
    """The `ImageSet` over the files in `folder`; ValueError, with the file's path, for a missing or damaged one."""
    attributes, shapes, arrays = (
        None,
        {"images": SOURCES[name].shape or (3, size, size), "labels": ()},
        {},
    )
    if size:
        with _reading(folder / "attributes.json"):
            attributes = tuple(json.loads((folder / "attributes.json").read_text()))
        shapes["labels"] = (len(attributes),)
    for split in SPLITS:
        for part in PARTS:
            with _reading(path := folder / f"{split}_{part}.npy"):
                array = np.lib.format.open_memmap(path, mode="c")  # refuses pickled objects
                if array.dtype != np.uint8 or array.shape[1:] != shapes[part] or len(array) == 0:
                    raise ValueError(
                        f"expected uint8 {('N', *shapes[part])} with N > 0, got {array.dtype} {array.shape}"
                    )
                if part == "labels" and len(array) != len(arrays[f"{split}_images"]):
                    raise ValueError(
                        f"{len(array)} labels for {len(arrays[f'{split}_images'])} images"
                    )
                arrays[f"{split}_{part}"] = torch.from_numpy(array)
    return ImageSet(name, *arrays.values(), attributes=attributes)


def _prepare(key, name, size, limit, root, cache):
    """Build the set in a temporary folder, move it to its place beside that in one step, and return the final folder."""
    source = SOURCES[name]
    if name == "celeba":
        found = celeba.survey(root)
        with _workshop(key, source, root, cache) as work:  # it shows which place there is
            final = Path(work).parent / key
        celeba.prepare(found, final, size, limit)
        return final
    with _workshop(key, source, root, cache) as work:
        finished, final = Path(work) / "finished", Path(work).parent / key
        finished.mkdir()
        if size:
            pieces = source.read(size, limit)
            (finished / "attributes.json").write_text(json.dumps(faces.ATTRIBUTES))
        else:
            arrays = _read_originals(name, root, cache, work) if source.originals else source.read()
            pieces = {
                split: (len(images), _cut(images, labels))
                for split, (images, labels) in arrays.items()
            }
        with tqdm(
            total=sum(n for n, _ in pieces.values()),
            desc=f"preparing {source.title}",
            unit=" images",
        ) as bar:
            for split, (_, pairs) in pieces.items():
                done = 0
                for images, labels in pairs:
                    append(finished / f"{split}_images.npy", images, done)
                    append(finished / f"{split}_labels.npy", labels, done)
                    done += len(images)
                    bar.update(len(images))
        try:
            os.rename(finished, final)
        except OSError:
            if not _is_prepared(final):  # otherwise another process was quicker
                raise
    return final


def _cut(images, labels):
    return (
        (images[start : start + PIECE], labels[start : start + PIECE])
        for start in range(0, len(images), PIECE)
    )


def _workshop(key, source, root, cache):
    """A `TemporaryDirectory` in the first of the two places that can take the set."""
    for place in (root, cache):
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            read_only = (
                place.stat().st_mode & 0o222 == 0
            )  # respected even by a superuser, whom it would not stop
            taken = (place / key).exists() and not _is_prepared(
                place / key
            )  # "mnist" is torchvision's "MNIST" where case does not count
            if not (read_only or taken):
                return tempfile.TemporaryDirectory(
                    prefix=f".{key}-building-", dir=place, ignore_cleanup_errors=True
                )
    raise FileNotFoundError(
        f"{source.title} cannot be prepared: neither {root} nor {cache} takes it; set FLOWLIB_DATA to a folder that can be written"
    )


def _read_originals(name, root, cache, work):
    """{split: (images, labels)} from the originals: those in the root, or else downloaded into `work`."""
    source = SOURCES[name]
    originals = root / source.originals
    if originals.is_dir() and any(originals.iterdir()):
        try:
            arrays = source.read(root, download=False)
            for split, (images, labels) in arrays.items():
                if images.shape[1:] != source.shape or len(images) != len(labels):
                    raise ValueError(f"{split} has images {images.shape} and {len(labels)} labels")
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(
                f"{originals} is incomplete or damaged ({error!r}); delete it and load again to have it downloaded anew"
            ) from error
        return arrays
    try:
        if budget(False, True):
            raise RuntimeError("FLOWLIB_FAST=1 forbids it")
        return source.read(work, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise FileNotFoundError(
            f"{source.title} is neither in {root / name} nor in {cache / name}, torchvision's files are not in {originals}, and downloading "
            f"failed: {' '.join(str(error).split())}. Connect to the network and load again; or put torchvision's files into {originals}; "
            f'or take data.load("{name}", standin=True): {source.standin} in the same shape.'
        ) from error
