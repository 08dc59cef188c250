"""Image sets against torchvision's own files, written small; every root and cache lies in tmp_path, and nothing is downloaded."""

import ast
import errno
import hashlib
import http.client
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torchvision import datasets

from flowlib import data
from flowlib.data import images

FILES = ["test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
GIVEN_ROOT = Path(os.environ.get("FLOWLIB_DATA") or Path(__file__).resolve().parents[1] / "data")


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


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, dtype=">u4").tobytes()
        + array.tobytes()
    )


def write_mnist(root, side=28):
    """torchvision's four files with 1,007 and 3 images: the first of these takes more than one chunk to copy."""
    for seed, (split, n) in enumerate({"train": 1_007, "t10k": 3}.items()):
        write_idx(
            root / "MNIST" / "raw" / f"{split}-images-idx3-ubyte", numbers(seed, n, side, side)
        )
        write_idx(root / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte", numbers(seed + 2, n) % 10)


def write_cifar10(root, monkeypatch):
    """torchvision's batches with four images each, whose checksums torchvision is told."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def batch(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batches = [
        batch(f"data_batch_{i}", {"data": numbers(i, 4, 3072), "labels": [i, 0, 1, 2]})
        for i in range(1, 6)
    ]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", batches)
    monkeypatch.setattr(
        datasets.CIFAR10,
        "test_list",
        [batch("test_batch", {"data": numbers(6, 4, 3072), "labels": [6, 7, 8, 9]})],
    )
    name, md5 = batch("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5}
    )


def write_prepared(place, name="mnist", n_train=6, n_test=4, shape=(1, 28, 28)):
    (place / name).mkdir(parents=True)
    for split, n in (("train", n_train), ("test", n_test)):
        np.save(place / name / f"{split}_images.npy", numbers(n, n, *shape))
        np.save(place / name / f"{split}_labels.npy", numbers(n, n))
    return place / name


def downloads(monkeypatch, outcome):
    """Let torchvision's MNIST "download" by calling outcome(root); returns the list of the roots that were asked for."""
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


def refuse_in(place, monkeypatch):
    """Make every temporary folder in `place` fail as on a read-only file system; the file modes of a superuser do not count."""
    mkdtemp = tempfile.mkdtemp

    def refusing(suffix=None, prefix=None, dir=None):
        if Path(dir) == place:
            raise OSError(errno.EROFS, "Read-only file system", str(dir))
        return mkdtemp(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refusing)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What a loaded set is


def test_a_prepared_set_of_any_number_of_images_opens_as_uint8_tensors(root):
    write_prepared(root, "cifar10", 49, 9, (3, 32, 32))
    cifar10 = data.load("cifar10")
    assert (
        cifar10.name == "cifar10"
        and cifar10.train.shape == (49, 3, 32, 32)
        and cifar10.test.shape == (9, 3, 32, 32)
    )
    assert cifar10.train_labels.shape == (49,) and cifar10.test_labels.shape == (9,)
    for tensor in (cifar10.train, cifar10.train_labels, cifar10.test, cifar10.test_labels):
        assert tensor.dtype == torch.uint8
    assert np.array_equal(cifar10.train, numbers(49, 49, 3, 32, 32)) and np.array_equal(
        cifar10.test_labels, numbers(9, 9)
    )


def test_shape_title_and_repr(root):
    write_prepared(root, "mnist")
    write_prepared(root, "cifar10", shape=(3, 32, 32))
    mnist, cifar10 = data.load("mnist"), data.load("cifar10")
    assert mnist.shape == torch.Size([1, 28, 28]) and isinstance(mnist.shape, torch.Size)
    assert (mnist.title, cifar10.title) == ("MNIST", "CIFAR-10")
    assert not mnist.is_standin and mnist.standin_for is None
    assert repr(mnist) == "ImageSet(name='mnist', standin_for=None)"


def test_writing_to_the_tensors_warns_of_nothing_and_never_reaches_the_disk(root):
    folder = write_prepared(root)
    before = {file: (folder / file).read_bytes() for file in FILES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnist = data.load("mnist")
        for tensor in (mnist.train, mnist.train_labels, mnist.test, mnist.test_labels):
            tensor.bitwise_not_()
    assert np.array_equal(mnist.train, ~numbers(6, 6, 1, 28, 28))
    assert {file: (folder / file).read_bytes() for file in FILES} == before
    assert np.array_equal(data.load("mnist").train, numbers(6, 6, 1, 28, 28))


def test_a_prepared_set_of_mnists_size_opens_in_less_than_50_ms(root):
    write_prepared(root, n_train=60_000, n_test=10_000)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        data.load("mnist")
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.05


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        ValueError,
        match="no image set 'MNIST'; there are mnist, cifar10, digits, photos, celeba, faces",
    ):
        data.load("MNIST")


def test_the_package_imports_at_its_top_none_of_the_libraries_that_only_preparing_needs():
    for path in Path(images.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [name.name for name in getattr(node, "names", [])] + [
                getattr(node, "module", None) or ""
            ]
            assert not {"torchvision", "sklearn", "PIL", "filelock"} & {
                module.split(".")[0] for module in modules
            }, path


# Building from torchvision's files


def test_mnist_is_built_from_torchvisions_files_and_equals_them(root):
    write_mnist(root)
    mnist = data.load("mnist")
    raw = {train: datasets.MNIST(root, train=train) for train in (True, False)}
    assert torch.equal(mnist.train, raw[True].data[:, None]) and torch.equal(
        mnist.test, raw[False].data[:, None]
    )
    assert torch.equal(mnist.train_labels.long(), raw[True].targets) and torch.equal(
        mnist.test_labels.long(), raw[False].targets
    )
    assert names(root) == ["MNIST", "mnist"] and names(root / "mnist") == FILES


def test_cifar10_is_built_from_torchvisions_files_and_equals_them(root, monkeypatch):
    write_cifar10(root, monkeypatch)
    cifar10 = data.load("cifar10")
    assert np.array_equal(
        cifar10.train, np.concatenate([numbers(i, 4, 3, 32, 32) for i in range(1, 6)])
    )
    assert np.array_equal(cifar10.test, numbers(6, 4, 3, 32, 32))
    assert cifar10.train_labels.tolist() == [label for i in range(1, 6) for label in (i, 0, 1, 2)]
    assert cifar10.test_labels.tolist() == [6, 7, 8, 9]


def test_it_is_built_once_with_a_progress_bar(root, capsys):
    write_mnist(root)
    first = data.load("mnist")
    assert "preparing MNIST: 100%" in capsys.readouterr().err
    shutil.rmtree(root / "MNIST")
    assert torch.equal(data.load("mnist").train, first.train)
    assert capsys.readouterr().err == ""


def test_the_prepared_folder_may_be_read_by_whoever_may_read_its_neighbours(root):
    write_mnist(root)
    data.load("mnist")
    assert (root / "mnist").stat().st_mode == (root / "MNIST").stat().st_mode


def test_without_variables_the_repositorys_data_folder_and_the_users_cache_are_looked_at(
    tmp_path, monkeypatch
):
    for variable in ("FLOWLIB_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr(
        images, "__file__", str(tmp_path / "repository" / "flowlib" / "data" / "images.py")
    )
    write_prepared(tmp_path / "home" / ".cache" / "flowlib", n_train=5)
    assert len(data.load("mnist").train) == 5
    write_prepared(tmp_path / "repository" / "data", n_train=8)
    assert len(data.load("mnist").train) == 8


def test_the_real_mnist(tmp_path, monkeypatch):
    if not (
        (GIVEN_ROOT / "mnist" / FILES[0]).exists()
        or (GIVEN_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
    ):
        pytest.skip("MNIST is not in the data folder")
    monkeypatch.setenv("FLOWLIB_DATA", str(GIVEN_ROOT))
    refuse_in(GIVEN_ROOT, monkeypatch)  # a test writes nothing there
    mnist = data.load("mnist")
    assert mnist.train.shape == (60_000, 1, 28, 28) and mnist.test.shape == (10_000, 1, 28, 28)
    assert mnist.train.numpy().mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9] and mnist.test_labels[
        :5
    ].tolist() == [7, 2, 1, 0, 4]
    assert mnist.title == "MNIST"


# Builds that end early, and builds at the same time


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["Ctrl-C", "disk full"],
)
def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(root, monkeypatch, error):
    write_mnist(root)
    append = images.append

    def interrupted(path, *args):
        append(path, *args)
        if path.name == "test_images.npy":
            raise error

    monkeypatch.setattr(images, "append", interrupted)
    with pytest.raises(type(error)):
        data.load("mnist")
    assert names(root) == ["MNIST"]
    monkeypatch.setattr(images, "append", append)
    assert len(data.load("mnist").train) == 1_007


def test_a_killed_build_leaves_a_hidden_folder_that_is_never_taken_for_data(root):
    write_mnist(root)
    code = """
import time
from flowlib.data import images

append = images.append

def slow(path, *args):
    append(path, *args)
    if path.name == "test_images.npy":
        print("half-made", flush=True)
        time.sleep(60)

images.append = slow
images.load("mnist")
"""
    build = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert build.stdout.readline() == "half-made\n"
    build.kill()
    build.communicate()
    left, raw = names(root)
    assert left.startswith(".mnist-building-") and raw == "MNIST"
    assert names(root / left / "finished") == [
        "test_images.npy",
        "train_images.npy",
        "train_labels.npy",
    ]
    mnist = data.load("mnist")
    assert torch.equal(mnist.train[:, 0], datasets.MNIST(root).data) and len(mnist.test_labels) == 3


def test_who_finishes_second_uses_what_the_first_has_made(root, monkeypatch):
    write_mnist(root)
    rename = os.rename

    def second(*args):
        write_prepared(root, n_train=5)
        rename(*args)

    monkeypatch.setattr(os, "rename", second)
    assert len(data.load("mnist").train) == 5
    assert names(root) == ["MNIST", "mnist"]


def test_builders_at_the_same_time_all_get_the_set(root, monkeypatch):
    write_mnist(root)
    barrier, read, loaded = threading.Barrier(3, timeout=20), images.read_mnist, []

    def together(*args, **kwargs):
        barrier.wait()
        return read(*args, **kwargs)

    monkeypatch.setitem(
        images.SOURCES, "mnist", images.replace(images.SOURCES["mnist"], read=together)
    )
    threads = [threading.Thread(target=lambda: loaded.append(data.load("mnist"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 3 and all(
        torch.equal(mnist.train[:, 0], datasets.MNIST(root).data) for mnist in loaded
    )
    assert names(root) == ["MNIST", "mnist"]


def test_a_rename_that_fails_for_another_reason_is_reported(root, monkeypatch):
    write_mnist(root)
    monkeypatch.setattr(os, "rename", fails(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        data.load("mnist")
    assert names(root) == ["MNIST"]


# Roots that cannot be written


@pytest.mark.parametrize("how", ["file system", "file mode"])
def test_beside_a_read_only_root_the_set_is_prepared_in_the_users_cache(
    root, cache, monkeypatch, how
):
    write_mnist(root)
    if how == "file mode":
        root.chmod(0o555)
    else:
        refuse_in(root, monkeypatch)
    mnist = data.load("mnist")
    assert torch.equal(mnist.train[:, 0], datasets.MNIST(root).data)
    assert names(root) == ["MNIST"] and names(cache) == ["mnist"]
    root.chmod(0o755)
    shutil.rmtree(root / "MNIST")
    assert len(data.load("mnist").train) == 1_007


def test_a_root_that_cannot_exist_leaves_the_cache(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "file" / "root"))
    assert data.load("digits").name == "digits"
    assert names(cache) == ["digits"]


def test_a_folder_of_the_sets_name_that_holds_something_else_is_left_alone(root, cache):
    """As where case does not count and torchvision's MNIST is also mnist."""
    write_mnist(root)
    (root / "mnist").mkdir()
    (root / "mnist" / "notes.txt").write_text("mine")
    assert len(data.load("mnist").train) == 1_007
    assert names(root / "mnist") == ["notes.txt"] and names(cache) == ["mnist"]


def test_when_neither_can_be_written_the_error_names_both(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "file" / "root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for standin in (False, True):
        with pytest.raises(FileNotFoundError) as caught:
            data.load("digits", standin=standin)
        assert str(caught.value) == (
            f"digits cannot be prepared: neither {tmp_path}/file/root nor {tmp_path}/file/flowlib takes it; "
            "set FLOWLIB_DATA to a folder that can be written"
        )


# Downloads


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_not_there_is_downloaded_into_the_root_or_the_cache(
    root, cache, monkeypatch, writable
):
    asked = downloads(monkeypatch, write_mnist)
    place = root if writable else cache
    if not writable:
        refuse_in(root, monkeypatch)
    mnist = data.load("mnist")
    assert asked and all(folder.parent == place for folder in asked)
    write_mnist(root)
    assert torch.equal(mnist.train[:, 0], datasets.MNIST(root).data)
    assert [name for name in names(place) if name != "MNIST"] == ["mnist"]


def test_the_network_is_left_alone_in_fast_mode(root, monkeypatch):
    asked = downloads(monkeypatch, write_mnist)
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    with pytest.raises(FileNotFoundError, match="downloading failed: FLOWLIB_FAST=1 forbids it"):
        data.load("mnist")
    assert asked == [] and names(root) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            urllib.error.URLError("Name or service not known"),
            "<urlopen error Name or service not known>",
        ),
        (RuntimeError("Error downloading x:\nTried y"), "Error downloading x: Tried y"),
        (http.client.IncompleteRead(b"", 5), "IncompleteRead(0 bytes read, 5 more expected)"),
    ],
    ids=["no network", "torchvision", "cut short"],
)
def test_when_it_cannot_be_had_the_error_says_where_was_looked_and_what_to_do(
    root, cache, monkeypatch, error, text
):
    downloads(monkeypatch, fails(error))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist")
    assert str(caught.value) == (
        f"MNIST is neither in {root}/mnist nor in {cache}/mnist, torchvision's files are not in {root}/MNIST/raw, and downloading failed: {text}. "
        f"Connect to the network and load again; or put torchvision's files into {root}/MNIST/raw; "
        'or take data.load("mnist", standin=True): digits in the same shape.'
    )
    assert names(root) == []


def test_an_interrupted_download_leaves_nothing(root, monkeypatch):
    def outcome(folder):
        write_idx(folder / "MNIST" / "raw" / "train-images-idx3-ubyte", numbers(0, 5, 28, 28))
        raise KeyboardInterrupt

    downloads(monkeypatch, outcome)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist")
    assert names(root) == []


def test_an_empty_folder_of_torchvision_counts_as_not_there(root, monkeypatch):
    (root / "MNIST" / "raw").mkdir(parents=True)
    assert downloads(monkeypatch, write_mnist) == []
    assert len(data.load("mnist").train) == 1_007


# Damaged files


def rewrite(change):
    return lambda path: np.save(path, change(np.load(path)))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


DAMAGES = {
    "missing": (Path.unlink, "No such file"),
    "truncated": (
        lambda path: os.truncate(path, path.stat().st_size - 1),
        "mmap length is greater than file size",
    ),
    "empty file": (lambda path: path.write_bytes(b""), "reading magic string"),
    "no npy file": (lambda path: path.write_bytes(b"PNG" * 100), "magic string is not correct"),
    "garbled header": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"), }", b"(, }")),
        "EOF in multi-line statement",
    ),
    "float": (rewrite(np.float32), "expected uint8"),
    "no images": (rewrite(lambda array: array[:0]), ""),
    "another shape": (rewrite(lambda array: array[..., None]), "expected uint8"),
    "fewer": (rewrite(lambda array: array[:-1]), "labels for"),
    "pickled": (
        rewrite(lambda array: np.array([Touch("unpickled")], dtype=object)),
        "Python objects",
    ),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_files_are_refused_by_their_path(
    root, monkeypatch, tmp_path, file, damage
):
    monkeypatch.chdir(tmp_path)
    folder = write_prepared(root)
    apply, reason = DAMAGES[damage]
    apply(folder / file)
    named = file.replace("images", "labels") if damage == "fewer" else file
    for standin in (False, True):
        with pytest.raises(ValueError) as caught:
            data.load("mnist", standin=standin)
        assert str(caught.value).startswith(
            f"{folder / named} is missing or damaged ("
        ) and reason in str(caught.value)
        assert str(caught.value).endswith(f"; delete the folder {folder} and load again")
    assert not Path("unpickled").exists()


def test_a_file_that_may_not_be_read_is_not_called_damaged(root, monkeypatch):
    write_prepared(root)
    monkeypatch.setattr(
        np.lib.format, "open_memmap", fails(PermissionError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(PermissionError):
        data.load("mnist", standin=True)


def test_the_cure_that_the_error_names_works(root):
    write_mnist(root)
    write_prepared(root, shape=(1, 27, 28))
    with pytest.raises(ValueError, match="delete the folder"):
        data.load("mnist")
    shutil.rmtree(root / "mnist")
    assert len(data.load("mnist").train) == 1_007


RAW_DAMAGES = {
    "truncated": lambda raw: os.truncate(raw / "train-images-idx3-ubyte", 1_000),
    "header only half": lambda raw: os.truncate(raw / "t10k-labels-idx1-ubyte", 3),
    "no IDX file": lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(b"PNG" * 100),
    "another type": lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(
        b"\0\0\x09\1\0\0\0\3abc"
    ),
    "no type": lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x0a\1\0\0\0\3abc"),
    "missing": lambda raw: (raw / "t10k-images-idx3-ubyte").unlink(),
    "other labels": lambda raw: write_idx(raw / "t10k-labels-idx1-ubyte", numbers(0, 4)),
    "another shape": lambda raw: write_mnist(raw.parents[1], side=27),
}


@pytest.mark.parametrize("damage", RAW_DAMAGES)
def test_damaged_originals_of_mnist_are_refused_and_never_replaced_by_a_stand_in(root, damage):
    write_mnist(root)
    RAW_DAMAGES[damage](root / "MNIST" / "raw")
    for standin in (False, True):
        with pytest.raises(ValueError) as caught:
            data.load("mnist", standin=standin)
        assert str(caught.value).startswith(f"{root}/MNIST/raw is incomplete or damaged (")
        assert str(caught.value).endswith("; delete it and load again to have it downloaded anew")
    assert names(root) == ["MNIST"]


def test_damaged_originals_of_cifar10_are_refused(root, monkeypatch):
    write_cifar10(root, monkeypatch)
    with open(root / "cifar-10-batches-py" / "data_batch_3", "ab") as file:
        file.write(b"x")
    with pytest.raises(
        ValueError,
        match=r"cifar-10-batches-py is incomplete or damaged \(.*corrupted.*; delete it and load again",
    ):
        data.load("cifar10")
    assert names(root) == ["cifar-10-batches-py"]


# Stand-ins


@pytest.mark.parametrize(
    ("name", "title", "substitute"),
    [("mnist", "MNIST", "digits"), ("cifar10", "CIFAR-10", "photos")],
)
def test_a_stand_in_says_so_loudly(name, title, substitute):
    with pytest.warns(
        UserWarning,
        match=rf'"{substitute}" stands in for {title}, .* figures and numbers that follow are not {title}\'s',
    ) as caught:
        standin = data.load(name, standin=True)
    assert caught[0].filename == __file__
    assert (standin.name, standin.standin_for, standin.is_standin) == (substitute, name, True)
    assert standin.title == f"{substitute}, a stand-in for {title}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        itself = data.load(substitute, standin=True)
    assert torch.equal(standin.train, itself.train) and torch.equal(
        standin.test_labels, itself.test_labels
    )
    assert (itself.standin_for, itself.is_standin, itself.title) == (None, False, substitute)
    assert standin.shape == images.SOURCES[name].shape


@pytest.mark.parametrize("had", ["prepared", "downloaded"])
def test_no_stand_in_where_the_real_set_can_be_had(root, monkeypatch, had):
    if had == "prepared":
        write_prepared(root, n_train=1_007)
    else:
        downloads(monkeypatch, write_mnist)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnist = data.load("mnist", standin=True)
    assert (mnist.name, mnist.is_standin, len(mnist.train)) == ("mnist", False, 1_007)


def test_digits_are_scikit_learns_in_the_middle_of_mnists_frame():
    digits, originals = data.load("digits"), load_digits()
    assert digits.train.shape == (1_500, 1, 28, 28) and digits.test.shape == (297, 1, 28, 28)
    assert (
        torch.cat([digits.train_labels, digits.test_labels]).tolist() == originals.target.tolist()
    )
    every = torch.cat([digits.train, digits.test])[:, 0].numpy()
    inside = np.zeros((28, 28), dtype=bool)
    inside[4:24, 4:24] = True
    assert not every[:, ~inside].any() and every.max() == 255
    small = np.stack(
        [
            np.asarray(Image.fromarray(image[4:24, 4:24]).resize((8, 8), Image.Resampling.BOX))
            for image in every
        ]
    )
    assert np.abs(small / 255 - originals.images / 16).mean() < 0.06
    assert np.corrcoef(small.ravel(), originals.images.ravel())[0, 1] > 0.97


def test_no_test_digit_is_a_training_digit():
    digits = data.load("digits")
    assert not {image.tobytes() for image in digits.train.numpy()} & {
        image.tobytes() for image in digits.test.numpy()
    }


def test_photos_are_crops_and_no_training_crop_touches_the_strip_of_the_test_crops():
    photos = data.load("photos")
    assert photos.train.shape == (8_000, 3, 32, 32) and photos.test.shape == (1_000, 3, 32, 32)
    tops = {}  # where a crop may come from: its photograph and its first row
    for label, photo in enumerate(load_sample_images().images):
        half = np.asarray(Image.fromarray(photo).reduce(2)).transpose(2, 0, 1)
        for top in range(half.shape[1] - 31):
            for left in range(half.shape[2] - 31):
                tops.setdefault(
                    hash(half[:, top : top + 32, left : left + 32].tobytes()), set()
                ).add((label, top))
    for split, labels, allowed in (
        (photos.train, photos.train_labels, set(range(0, 104 - 31)) | set(range(152, 214 - 31))),
        (photos.test, photos.test_labels, set(range(104, 152 - 31))),
    ):
        for image, label in zip(split.numpy(), labels.tolist()):
            assert tops[hash(image.tobytes())] & {(label, top) for top in allowed}
        assert labels.bincount().tolist() == [len(split) // 2] * 2
        assert len({image.tobytes() for image in split.numpy()}) > 0.85 * len(split)


def test_the_same_photos_are_made_everywhere(tmp_path, monkeypatch):
    first = data.load("photos")
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "elsewhere"))
    again = data.load("photos")
    assert torch.equal(first.train, again.train) and torch.equal(first.test, again.test)
    assert names(tmp_path / "elsewhere") == ["photos"]
