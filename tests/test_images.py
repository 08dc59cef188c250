"""Image sets against torchvision's own files, written small; nothing is downloaded."""

import ast
import errno
import gzip
import hashlib
import http.client
import os
import pickle
import shutil
import statistics
import tarfile
import threading
import time
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data as pictures
from sklearn.datasets import load_digits, load_sample_images
from torchvision import datasets

from flowlib import data
from flowlib.data import images

GIVEN = Path(os.environ.get("FLOWLIB_DATA") or Path(__file__).resolve().parents[1] / "data")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The root, an empty folder; downloads are off."""
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "flowlib"


def numbers(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.tobytes()


LAYOUTS = {  # how the four files of MNIST come
    "torchvision's": lambda raw, name, content: (raw / name).write_bytes(content),
    "gzipped": lambda raw, name, content: (raw / f"{name}.gz").write_bytes(gzip.compress(content)),
    "dotted": lambda raw, name, content: (raw / name.replace("-idx", ".idx")).write_bytes(content),
    "in folders": lambda raw, name, content: (
        (raw / name).mkdir(),
        (raw / name / name.replace("-idx", ".idx")).write_bytes(content),
    ),
}


def write_mnist(root, layout="torchvision's", side=28):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for seed, (split, n) in enumerate({"train": 7, "t10k": 3}.items()):
        pixels, labels = numbers(seed, n, side, side), numbers(seed + 2, n) % 10
        LAYOUTS[layout](raw, f"{split}-images-idx3-ubyte", idx(pixels))
        LAYOUTS[layout](raw, f"{split}-labels-idx1-ubyte", idx(labels))


def assert_is_mnist(mnist):
    assert np.array_equal(mnist.train[:, 0], numbers(0, 7, 28, 28))
    assert np.array_equal(mnist.test[:, 0], numbers(1, 3, 28, 28))
    assert np.array_equal(mnist.train_labels, numbers(2, 7) % 10)
    assert np.array_equal(mnist.test_labels, numbers(3, 3) % 10)


def write_cifar10(root, monkeypatch):
    """torchvision's batches with four images each, whose checksums torchvision is told."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def batch(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    contents = [{"data": numbers(i, 4, 3072), "labels": [i, 0, 1, 2]} for i in range(1, 7)]
    batches = [batch(f"data_batch_{i}", content) for i, content in enumerate(contents[:5])]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", batches)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", contents[5])])
    name, md5 = batch("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return folder


def write_prepared(place, name="mnist", n_train=6, n_test=4, shape=(1, 28, 28)):
    (place / name).mkdir(parents=True)
    for split, n in (("train", n_train), ("test", n_test)):
        np.save(place / name / f"{split}_images.npy", numbers(n, n, *shape))
        np.save(place / name / f"{split}_labels.npy", numbers(n, n))
    return place / name


def downloads(monkeypatch, outcome):
    """Let torchvision "download" MNIST by calling outcome(folder); returns the folders asked."""
    asked = []

    class MNIST(datasets.MNIST):
        def download(self):
            asked.append(Path(self.root))
            outcome(Path(self.root))

    monkeypatch.setattr(datasets, "MNIST", MNIST)
    monkeypatch.setenv("FLOWLIB_FAST", "0")
    return asked


def fails(error):
    def call(*args, **kwargs):
        raise error

    return call


def names(folder):
    """What a reader sees there: hidden lock files don't count."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def homeless(monkeypatch):
    """As for a user without HOME and without a line in /etc/passwd."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


# What a loaded set is


def test_a_prepared_set_opens_as_uint8_tensors(root):
    write_prepared(root, "cifar10", 49, 9, (3, 32, 32))
    cifar10 = data.load("cifar10")
    assert np.array_equal(cifar10.train, numbers(49, 49, 3, 32, 32))
    assert np.array_equal(cifar10.test_labels, numbers(9, 9))
    tensors = (cifar10.train, cifar10.train_labels, cifar10.test, cifar10.test_labels)
    assert all(tensor.dtype == torch.uint8 for tensor in tensors)
    assert (cifar10.name, cifar10.title, cifar10.shape) == ("cifar10", "CIFAR-10", (3, 32, 32))
    assert not cifar10.is_standin and cifar10.standin_for is None and cifar10.attributes is None
    assert repr(cifar10) == "ImageSet(name='cifar10', standin_for=None)"


def test_writing_to_the_tensors_warns_of_nothing_and_never_reaches_the_disk(root):
    folder = write_prepared(root)
    before = {file: (folder / file).read_bytes() for file in images.FILES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnist = data.load("mnist")
        for tensor in (mnist.train, mnist.train_labels, mnist.test, mnist.test_labels):
            tensor.bitwise_not_()
    assert np.array_equal(mnist.train, ~numbers(6, 6, 1, 28, 28))
    assert {file: (folder / file).read_bytes() for file in images.FILES} == before


def test_a_prepared_set_of_mnists_size_opens_in_less_than_50_ms(root):
    write_prepared(root, n_train=60_000, n_test=10_000)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        data.load("mnist")
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.05


def test_an_unknown_name_is_answered_with_those_there_are():
    text = "no image set 'MNIST'; there are mnist, cifar10, celeba, lfw, digits, photos, faces"
    with pytest.raises(ValueError, match=text):
        data.load("MNIST")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "5"])
def test_a_bad_limit_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be an integer of at least 1"):
        data.load("mnist", limit=limit, standin=True)


def test_only_faces_have_a_size():
    text = r"size goes with sets of faces; MNIST is always \(1, 28, 28\)"
    with pytest.raises(ValueError, match=text):
        data.load("mnist", size=64, standin=True)


def test_a_limit_cuts_both_splits(root):
    write_prepared(root)
    few = data.load("mnist", limit=3)
    assert np.array_equal(few.train, numbers(6, 6, 1, 28, 28)[:3])
    assert len(few.train_labels) == len(few.test) == len(few.test_labels) == 3


def test_importing_the_package_imports_none_of_the_libraries_that_only_preparing_needs():
    heavy = {"torchvision", "sklearn", "skimage", "pyarrow", "PIL"}
    for path in Path(images.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [name.name for name in getattr(node, "names", [])]
            modules.append(getattr(node, "module", None) or "")
            assert not heavy & {module.split(".")[0] for module in modules}, path


# Building from torchvision's files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist_is_built_once_from_its_files_however_they_are_packed(root, layout):
    write_mnist(root, layout)
    assert_is_mnist(data.load("mnist"))
    assert names(root) == ["MNIST", "mnist"] and names(root / "mnist") == sorted(images.FILES)
    shutil.rmtree(root / "MNIST")
    assert_is_mnist(data.load("mnist"))


@pytest.mark.parametrize("packed", [False, True], ids=["batches", "archive"])
def test_cifar10_is_built_from_torchvisions_files_or_their_archive(root, monkeypatch, packed):
    folder = write_cifar10(root, monkeypatch)
    if packed:
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        shutil.rmtree(folder)
    cifar10 = data.load("cifar10")
    train = [numbers(i, 4, 3, 32, 32) for i in range(1, 6)]
    assert np.array_equal(cifar10.train, np.concatenate(train))
    assert np.array_equal(cifar10.test, numbers(6, 4, 3, 32, 32))
    assert cifar10.train_labels.tolist() == [label for i in range(1, 6) for label in (i, 0, 1, 2)]
    assert cifar10.test_labels.tolist() == [6, 0, 1, 2]


def test_the_real_mnist(monkeypatch, tmp_path):
    if not any((GIVEN / file).exists() for file in ("mnist/train_images.npy", "MNIST/raw")):
        pytest.skip("MNIST is not in the data folder")
    (tmp_path / "root" / "MNIST").symlink_to(GIVEN / "MNIST")  # a test writes nothing there
    if (GIVEN / "mnist").exists():
        (tmp_path / "root" / "mnist").symlink_to(GIVEN / "mnist")
    mnist = data.load("mnist")
    assert mnist.train.shape == (60_000, 1, 28, 28) and mnist.test.shape == (10_000, 1, 28, 28)
    assert mnist.train.numpy().mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


# Where sets lie


def test_from_a_checkout_its_data_folder_comes_first_and_elsewhere_the_users_cache(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("FLOWLIB_DATA")
    monkeypatch.setattr(images, "__file__", str(tmp_path / "site" / "flowlib" / "data" / "i.py"))
    write_mnist(tmp_path / "cache" / "flowlib")
    assert_is_mnist(data.load("mnist"))
    assert not (tmp_path / "site").exists()  # nothing is written beside an installed package
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyproject.toml").write_text("")
    write_prepared(tmp_path / "site" / "data", n_train=9)
    assert len(data.load("mnist").train) == 9


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLOWLIB_DATA", "~/mine")
    write_prepared(tmp_path / "mine")
    assert len(data.load("mnist").train) == 6


def test_without_a_home_the_root_is_enough(root, monkeypatch):
    homeless(monkeypatch)
    write_mnist(root)
    for _ in range(2):
        assert_is_mnist(data.load("mnist"))
    monkeypatch.setenv("FLOWLIB_DATA", str(root / "file"))
    (root / "file").write_text("")
    text = rf"no folder takes digits \(tried: {root}/file\); set FLOWLIB_DATA to one"
    with pytest.raises(FileNotFoundError, match=text):
        data.load("digits")


def test_beside_a_read_only_root_the_set_is_prepared_in_the_users_cache(root, cache):
    write_mnist(root)
    root.chmod(0o555)
    assert_is_mnist(data.load("mnist"))
    assert names(root) == ["MNIST"] and names(cache) == ["mnist"]
    root.chmod(0o755)


def test_a_root_that_cannot_exist_leaves_the_cache(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "file" / "root"))
    assert data.load("digits").name == "digits"
    assert names(cache) == ["digits"]


def test_a_folder_of_the_sets_name_may_hold_other_things(root):
    """As where case does not count and torchvision's MNIST is also mnist."""
    write_mnist(root)
    (root / "mnist").mkdir()
    (root / "mnist" / "notes.txt").write_text("mine")
    assert_is_mnist(data.load("mnist"))
    assert names(root / "mnist") == sorted([*images.FILES, "notes.txt"])


# Builds that end early, and builds at the same time


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["Ctrl-C", "disk full"],
)
@pytest.mark.parametrize("at", range(4))
def test_what_an_interrupted_build_leaves_counts_for_nothing(root, monkeypatch, error, at):
    write_mnist(root)
    save = np.save

    def interrupted(path, array):
        save(path, array)
        if path.name == images.FILES[at]:
            os.truncate(path, 200) if at < 3 else path.unlink()
            raise error

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(type(error)):
        data.load("mnist")
    monkeypatch.setattr(np, "save", save)
    assert_is_mnist(data.load("mnist"))
    assert names(root) == ["MNIST", "mnist"] and not list(root.glob(".mnist-*"))


def test_of_builders_at_the_same_time_one_builds_and_all_get_the_set(root, monkeypatch):
    write_mnist(root)
    build, builders, loaded = images.BUILDERS["mnist"], [], []

    def slow(*args):
        builders.append(threading.get_ident())
        time.sleep(0.3)
        build(*args)

    monkeypatch.setitem(images.BUILDERS, "mnist", slow)
    threads = [threading.Thread(target=lambda: loaded.append(data.load("mnist"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builders) == 1 and len(loaded) == 3
    for mnist in loaded:
        assert_is_mnist(mnist)


# Downloads


def test_what_is_not_there_is_downloaded_and_only_what_was_made_of_it_stays(root, monkeypatch):
    asked = downloads(monkeypatch, write_mnist)
    (root / "MNIST" / "raw").mkdir(parents=True)  # an empty folder counts as not there
    assert_is_mnist(data.load("mnist"))
    assert asked and all(folder.parent == root for folder in asked)
    assert names(root) == ["MNIST", "mnist"] and not any((root / "MNIST" / "raw").iterdir())


def test_the_network_is_left_alone_in_fast_mode(root, monkeypatch):
    asked = downloads(monkeypatch, write_mnist)
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    with pytest.raises(FileNotFoundError, match="downloading failed: FLOWLIB_FAST=1 forbids it"):
        data.load("mnist")
    assert asked == [] and names(root) == []


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        RuntimeError("Error downloading x: tried y"),
        http.client.IncompleteRead(b"", 5),
    ],
    ids=["no network", "torchvision", "cut short"],
)
def test_when_it_cannot_be_had_the_error_says_what_to_do(root, monkeypatch, error):
    downloads(monkeypatch, fails(error))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist")
    assert str(caught.value) == (
        f"MNIST is not there, and downloading failed: {error}. Connect to the network; or put "
        f"torchvision's files into {root}/MNIST/raw; or take "
        'data.load("mnist", standin=True): digits in the same shape.'
    )
    assert names(root) == []


def test_an_interrupted_download_leaves_nothing(root, monkeypatch):
    def outcome(folder):
        write_mnist(folder)
        raise KeyboardInterrupt

    downloads(monkeypatch, outcome)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert names(root) == [] and not list(root.glob(".mnist-*"))


# Damaged files


def rewrite(change):
    return lambda path: np.save(path, change(np.load(path)))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def garble(path):
    path.write_bytes(path.read_bytes().replace(b"), }", b"(, }"))


DAMAGES = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "mmap length"),
    "empty file": (lambda path: path.write_bytes(b""), "reading magic string"),
    "no npy file": (lambda path: path.write_bytes(b"PNG" * 100), "magic string is not correct"),
    "garbled header": (garble, ""),
    "float": (rewrite(np.float32), "expected uint8"),
    "no images": (rewrite(lambda array: array[:0]), ""),
    "another shape": (rewrite(lambda array: array[..., None]), "expected uint8"),
    "pickled": (rewrite(lambda array: np.array([Touch("unpickled")], object)), "Python objects"),
}


@pytest.mark.parametrize("file", images.FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_files_are_refused_by_their_path(root, monkeypatch, file, damage):
    monkeypatch.chdir(root)
    folder = write_prepared(root)
    apply, reason = DAMAGES[damage]
    apply(folder / file)
    with pytest.raises(ValueError) as caught:
        data.load("mnist")
    assert str(caught.value).startswith(f"{folder / file} is damaged (")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; move it away and load again")
    assert not Path("unpickled").exists()


def test_as_many_labels_as_images_are_expected(root):
    folder = write_prepared(root)
    np.save(folder / "test_labels.npy", numbers(0, 3))
    with pytest.raises(
        ValueError, match=r"test_labels.npy is damaged .*expected uint8 \(4,\), got"
    ):
        data.load("mnist")


def test_a_file_that_may_not_be_read_is_not_called_damaged(root, monkeypatch):
    write_prepared(root)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(np.lib.format, "open_memmap", fails(denied))
    with pytest.raises(PermissionError):
        data.load("mnist")


@pytest.mark.parametrize("file", images.FILES)
def test_the_cure_that_the_error_names_works(root, file):
    write_mnist(root)
    data.load("mnist")
    os.truncate(root / "mnist" / file, 100)
    with pytest.raises(ValueError, match="move it away"):
        data.load("mnist")
    (root / "mnist" / file).rename(root / "away")
    assert_is_mnist(data.load("mnist"))


RAW_DAMAGES = {
    "truncated": lambda raw: os.truncate(raw / "train-images-idx3-ubyte", 1_000),
    "header only half": lambda raw: os.truncate(raw / "t10k-labels-idx1-ubyte", 3),
    "no IDX file": lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(b"PNG" * 100),
    "missing": lambda raw: (raw / "t10k-images-idx3-ubyte").unlink(),
    "other labels": lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(numbers(0, 4))),
    "another shape": lambda raw: write_mnist(raw.parents[1], side=27),
    "half an archive": lambda raw: (
        (raw / "t10k-images-idx3-ubyte").unlink(),
        (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(9_000))[:30]),
    ),
}


@pytest.mark.parametrize("damage", RAW_DAMAGES)
def test_damaged_originals_are_named_never_to_be_deleted_and_a_stand_in_is_had(root, damage):
    write_mnist(root)
    RAW_DAMAGES[damage](root / "MNIST" / "raw")
    with pytest.raises(ValueError) as caught:
        data.load("mnist")
    assert str(caught.value).startswith(f"{root}/MNIST/raw is damaged (")
    assert "delete" not in str(caught.value)
    with pytest.warns(UserWarning, match='"digits" stands in for MNIST'):
        assert data.load("mnist", standin=True).is_standin


@pytest.mark.parametrize("packed", [False, True], ids=["batches", "archive"])
def test_damaged_originals_of_cifar10_are_refused(root, monkeypatch, packed):
    folder = write_cifar10(root, monkeypatch)
    (folder / "data_batch_3").write_bytes(b"x")
    if packed:
        shutil.rmtree(folder)
        (root / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is damaged \(.*move it away"):
        data.load("cifar10")
    assert "cifar10" not in names(root)


# Stand-ins


@pytest.mark.parametrize(
    ("name", "title", "substitute"),
    [("mnist", "MNIST", "digits"), ("cifar10", "CIFAR-10", "photos")],
)
def test_a_stand_in_says_so_loudly(name, title, substitute):
    text = rf'"{substitute}" stands in for {title}, .* numbers that follow are not {title}\'s'
    with pytest.warns(UserWarning, match=text) as caught:
        standin = data.load(name, standin=True)
    assert caught[0].filename == __file__
    assert (standin.name, standin.standin_for, standin.is_standin) == (substitute, name, True)
    assert standin.title == f"{substitute}, a stand-in for {title}"
    assert standin.shape == images.SHAPES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        itself = data.load(substitute, standin=True)
    assert torch.equal(standin.train, itself.train)
    assert (itself.standin_for, itself.is_standin, itself.title) == (None, False, substitute)


def test_no_stand_in_where_the_real_set_can_be_had(root):
    write_mnist(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("mnist", standin=True).name == "mnist"


def load_twice(name, tmp_path, monkeypatch):
    """Built in two folders, and the second time in double precision, they are the same."""
    first = data.load(name)
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "elsewhere"))
    torch.set_default_dtype(torch.float64)
    try:
        again = data.load(name)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first.train, again.train) and torch.equal(first.test, again.test)
    return first


def test_digits_are_scikit_learns_in_the_middle_of_mnists_frame(tmp_path, monkeypatch):
    digits, originals = load_twice("digits", tmp_path, monkeypatch), load_digits()
    assert digits.train.shape == (1_500, 1, 28, 28) and digits.test.shape == (297, 1, 28, 28)
    labels = torch.cat([digits.train_labels, digits.test_labels])
    assert labels.tolist() == originals.target.tolist()
    every = torch.cat([digits.train, digits.test])
    inside = every[:, :, 4:24, 4:24]
    assert inside.max() == 255 and inside.long().sum() == every.long().sum()
    twice = inside[:, 0].double().repeat_interleave(2, 1).repeat_interleave(2, 2)
    small = torch.nn.functional.avg_pool2d(twice, 5).numpy() / 255
    assert np.abs(small - originals.images / 16).mean() < 0.06
    assert np.corrcoef(small.ravel(), originals.images.ravel())[0, 1] > 0.97
    assert not set(map(bytes, digits.train.numpy())) & set(map(bytes, digits.test.numpy()))


def test_photos_are_crops_and_no_training_crop_touches_the_strip_of_the_test_crops(
    tmp_path, monkeypatch
):
    photos = load_twice("photos", tmp_path, monkeypatch)
    assert photos.train.shape == (12_000, 3, 32, 32) and photos.test.shape == (1_500, 3, 32, 32)
    originals = [*load_sample_images().images, pictures.astronaut(), pictures.chelsea()]
    halves, places = [], []  # photographs; where in each of them a row of 32 pixels is seen
    for photo in [*originals, pictures.coffee(), pictures.rocket()]:
        H, W = photo.shape[0] // 2, photo.shape[1] // 2
        half = photo[: 2 * H, : 2 * W].reshape(H, 2, W, 2, 3).mean((1, 3)).astype(np.uint8)
        rows = {}
        for top, left in np.ndindex(H - 31, W - 31):
            rows.setdefault(half[top, left : left + 32].tobytes(), []).append((top, left))
        halves.append(half)
        places.append(rows)
    for split, pixels, labels in (
        ("train", photos.train, photos.train_labels),
        ("test", photos.test, photos.test_labels),
    ):
        for image, label in zip(pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()):
            half, shared = halves[label], []
            strip = range(len(half) // 2 - 24, len(half) // 2 + 24)
            for top, left in places[label][image[0].tobytes()]:
                if np.array_equal(half[top : top + 32, left : left + 32], image):
                    shared.append(len({*strip} & {*range(top, top + 32)}))
            assert (0 if split == "train" else 32) in shared
        assert labels.bincount().tolist() == [len(pixels) // 6] * 6
        assert len(set(map(bytes, pixels.numpy()))) > 0.85 * len(pixels)
    assert photos.train_labels[:6].tolist() == [0, 1, 2, 3, 4, 5]  # a limit takes some of each


def test_fewer_bits_are_the_highest_of_every_pixel(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path))
    whole, few = (data.load("digits", limit=20, bits=bits) for bits in (8, 5))
    assert torch.equal(few.train, whole.train // 8) and torch.equal(few.test, whole.test // 8)
    assert (few.bits, few.title) == (5, "digits, 5 bits") and (whole.bits, whole.title) == (
        8,
        "digits",
    )
    with pytest.raises(ValueError, match="images hold at most 8 bits, got bits=9"):
        data.load("digits", bits=9)
