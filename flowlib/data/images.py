"""Image sets as uint8 tensors over memory maps: prepared once, opened in milliseconds ever after.

A prepared set is a folder `<root>/<name>` with train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
The root is $FLOWLIB_DATA, or data/ in the repository; the user's cache folder takes its place where it cannot be written.
"""

import contextlib
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

from ..common import budget

__all__ = ["ImageSet", "load"]

SPLITS = ("train", "test")


@dataclass(eq=False)
class ImageSet:
    """Images (N, C, H, W) and labels (N,), uint8, over private memory maps: writing to them never reaches the disk."""

    name: str
    train: torch.Tensor = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)
    standin_for: str | None = None

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
        return f"{title}, a stand-in for {SOURCES[self.standin_for].title}" if self.is_standin else title


def load(name, *, standin=False):
    """Return the image set "mnist", "cifar10", "digits" or "photos" as an `ImageSet`, preparing it on first use.

    It is built from torchvision's own files in the root, or downloaded (never with FLOWLIB_FAST=1). With standin=True, a
    set that cannot be had is replaced, with a warning, by one of the same shape that ships with scikit-learn.

    Raises ValueError for an unknown name and for damaged files, FileNotFoundError for a set that cannot be had.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no image set {name!r}; there are {', '.join(SOURCES)}")
    title, substitute = SOURCES[name].title, SOURCES[name].standin
    try:
        return _load(name)
    except FileNotFoundError:
        if not (standin and substitute):
            raise
    warnings.warn(
        f'"{substitute}" stands in for {title}, which could not be had: the figures and numbers that follow are not {title}\'s. '
        f'data.load("{name}") says what is missing.',
        stacklevel=2,
    )
    return replace(_load(substitute), standin_for=name)


# What each set is made from: these functions return {split: (images, labels)}


def read_mnist(folder, download):
    from torchvision import datasets

    sets = {split: datasets.MNIST(folder, train=split == "train", download=download) for split in SPLITS}
    return {split: (mnist.data.unsqueeze(1).numpy(), mnist.targets.numpy()) for split, mnist in sets.items()}


def read_cifar10(folder, download):
    from torchvision import datasets

    sets = {split: datasets.CIFAR10(folder, train=split == "train", download=download) for split in SPLITS}
    return {split: (cifar10.data.transpose(0, 3, 1, 2), cifar10.targets) for split, cifar10 in sets.items()}


def draw_digits():
    """Scikit-learn's 8 x 8 digits (0 to 16) enlarged to 20 x 20 and centred in 28 x 28, as MNIST's are."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((len(digits.images), 1, 28, 28), dtype=np.uint8)
    for image, small in zip(images, digits.images):
        grey = Image.fromarray((small * 255 / 16).round().astype(np.uint8))
        image[0, 4:24, 4:24] = grey.resize((20, 20), Image.Resampling.BICUBIC)
    return {"train": (images[:1500], digits.target[:1500]), "test": (images[1500:], digits.target[1500:])}


def crop_photos():
    """32 x 32 crops of scikit-learn's two photographs at half scale; the label says which photograph.

    Each photograph is cut before it is scaled: test crops come from a level strip, training crops from above and below it.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images  # two of (427, 640, 3)
    rng = np.random.default_rng(0)

    def crops(n, strips):
        pieces = [[np.asarray(Image.fromarray(photo[strip]).reduce(2)) for strip in strips] for photo in photos]
        images, labels = np.empty((n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 2
        for image, label in zip(images, labels):
            piece = pieces[label][rng.integers(len(strips))]
            top, left = rng.integers(piece.shape[0] - 31), rng.integers(piece.shape[1] - 31)
            image[:] = piece[top : top + 32, left : left + 32].transpose(2, 0, 1)
        return images, labels

    return {"train": crops(8_000, [slice(0, 208), slice(304, 427)]), "test": crops(1_000, [slice(208, 304)])}


@dataclass(frozen=True)
class Source:
    """How a set is made: by `read()` from what ships with the install, or by `read(folder, download)` from `originals`."""

    title: str
    shape: tuple
    read: Callable
    originals: str | None = None  # where torchvision keeps its files, seen from the root
    standin: str | None = None


SOURCES = {
    "mnist": Source("MNIST", (1, 28, 28), read_mnist, originals="MNIST/raw", standin="digits"),
    "cifar10": Source("CIFAR-10", (3, 32, 32), read_cifar10, originals="cifar-10-batches-py", standin="photos"),
    "digits": Source("digits", (1, 28, 28), draw_digits),
    "photos": Source("photos", (3, 32, 32), crop_photos),
}


# Opening and preparing


def _load(name):
    root = Path(os.environ.get("FLOWLIB_DATA") or Path(__file__).resolve().parents[2] / "data").expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowlib"
    for place in (root, cache):
        if _is_prepared(place / name):
            return _open(place / name)
    return _open(_prepare(name, root, cache))


def _is_prepared(folder):
    return any((folder / f"{split}_{part}.npy").exists() for split in SPLITS for part in ("images", "labels"))


def _open(folder):
    """The `ImageSet` over the four files in `folder`; ValueError, with the file's path, for a missing or damaged one."""
    arrays = {}
    for split in SPLITS:
        for part, shape in (("images", SOURCES[folder.name].shape), ("labels", ())):
            path = folder / f"{split}_{part}.npy"
            try:
                array = np.lib.format.open_memmap(path, mode="c")  # refuses pickled objects
                if array.dtype != np.uint8 or array.shape[1:] != shape or len(array) == 0:
                    raise ValueError(f"expected uint8 {('N', *shape)} with N > 0, got {array.dtype} {array.shape}")
                if part == "labels" and len(array) != len(arrays[f"{split}_images"]):
                    raise ValueError(f"{len(array)} labels for {len(arrays[f'{split}_images'])} images")
            except Exception as error:  # a garbled header makes numpy raise nearly anything
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    raise
                raise ValueError(f"{path} is missing or damaged ({error}); delete the folder {folder} and load again") from error
            arrays[f"{split}_{part}"] = torch.from_numpy(array)
    return ImageSet(folder.name, *arrays.values())


def _prepare(name, root, cache):
    """Build the set in a temporary folder, move it to its place beside that in one step, and return the final folder."""
    source = SOURCES[name]
    with _workshop(name, root, cache) as work:
        arrays = _read_originals(name, root, cache, work) if source.originals else source.read()
        finished, final = Path(work) / "finished", Path(work).parent / name
        finished.mkdir()
        with tqdm(total=sum(len(images) for images, _ in arrays.values()), desc=f"preparing {source.title}", unit=" images") as bar:
            for split, (images, labels) in arrays.items():
                _save_images(finished / f"{split}_images.npy", images, source.shape, bar)
                np.save(finished / f"{split}_labels.npy", np.asarray(labels, dtype=np.uint8))
        try:
            os.rename(finished, final)
        except OSError:
            if not _is_prepared(final):  # otherwise another process was quicker
                raise
    return final


def _workshop(name, root, cache):
    """A `TemporaryDirectory` in the first of the two places that can take the set."""
    for place in (root, cache):
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            read_only = place.stat().st_mode & 0o222 == 0  # respected even by a superuser, whom it would not stop
            taken = (place / name).exists()  # "mnist" is torchvision's "MNIST" where case does not count
            if not (read_only or taken):
                return tempfile.TemporaryDirectory(prefix=f".{name}-building-", dir=place, ignore_cleanup_errors=True)
    raise FileNotFoundError(
        f"{SOURCES[name].title} cannot be prepared: neither {root} nor {cache} takes it; set FLOWLIB_DATA to a folder that can be written"
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
            raise ValueError(f"{originals} is incomplete or damaged ({error!r}); delete it and load again to have it downloaded anew") from error
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


def _save_images(path, images, shape, bar):
    """Write `images` (anything with a length and slices) as .npy, a thousand at a time."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (len(images), *shape)})
        for start in range(0, len(images), 1_000):
            chunk = np.ascontiguousarray(images[start : start + 1_000])
            file.write(chunk)
            bar.update(len(chunk))
