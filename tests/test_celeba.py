"""CelebA from folders of small JPEGs that the tests write, and the procedural faces; every root and cache lies in tmp_path."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from flowlib import __main__ as cli
from flowlib import checkpoints, data, recipes
from flowlib.data import celeba, images, npy

N = 40
NAMES = [f"{i:06d}.jpg" for i in range(1, N + 1)]
PARTS = [(0, 0, 1, 0, 2)[i % 5] for i in range(N)]  # 24 train, 8 validation, 8 test, mixed
COLUMNS = ["Eyeglasses", "Smiling", "Young"]
ATTRIBUTES = [[(i >> k) % 2 for k in range(3)] for i in range(N)]
BUILD = """
import sys, time
import flowlib.data.celeba as celeba
from flowlib import data

celeba.CHUNK, append = 4, celeba.append

def slow(path, rows, start):
    append(path, rows, start)
    print(path.name, start, flush=True)
    time.sleep(float(sys.argv[1]))

celeba.append = slow
print("done", len(data.load("celeba", size=32).train), flush=True)
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The root, an empty folder."""
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory):
    """A folder of 40 different JPEGs as CelebA's are: 178 x 218, smooth colours with some noise."""
    folder = tmp_path_factory.mktemp("jpegs")
    rng = np.random.default_rng(0)
    for name in NAMES:
        small = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).resize(
            (178, 218), Image.Resampling.BICUBIC
        )
        Image.fromarray(
            np.asarray(small) // 2 + rng.integers(0, 128, (218, 178, 3), dtype=np.uint8)
        ).save(folder / name, quality=90)
    return folder


@pytest.fixture
def folder(root, jpegs):
    return shutil.copytree(jpegs, root / "img_align_celeba")


def write_partition(place, ending, rows=None):
    rows = list(zip(NAMES, PARTS)) if rows is None else rows
    lines = {
        ".txt": [f"{name} {part}" for name, part in rows],
        ".csv": ["image_id,partition"] + [f"{name},{part}" for name, part in rows],
    }
    (place / f"list_eval_partition{ending}").write_text("\n".join(lines[ending]) + "\n")


def write_attributes(place, ending):
    signs = [[2 * value - 1 for value in values] for values in ATTRIBUTES]
    if ending == ".txt":
        lines = [str(N), " ".join(COLUMNS) + " "] + [
            f"{name} " + " ".join(f"{sign:2d}" for sign in row) for name, row in zip(NAMES, signs)
        ]
    else:
        lines = [",".join(["image_id", *COLUMNS])] + [
            ",".join([name, *map(str, row)]) for name, row in zip(NAMES, signs)
        ]
    (place / f"list_attr_celeba{ending}").write_text("\n".join(lines) + "\n")


def by_pillow(path, size):
    """Pillow's own crop of the authors' 148 x 148 of a 178 x 218 image, and its own shrinking."""
    with Image.open(path) as image:
        return np.asarray(
            image.convert("RGB")
            .crop((15, 40, 163, 188))
            .resize((size, size), Image.Resampling.BILINEAR)
        ).transpose(2, 0, 1)


def pictures(folder, names, size=64):
    return np.stack([by_pillow(folder / name, size) for name in names])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tensors(images):
    return [images.train, images.train_labels, images.test, images.test_labels]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other)))


# From JPEGs to samples


def test_the_command_line_trains_celeba_on_a_folder_of_jpegs(
    folder, root, monkeypatch, tmp_path, capsys
):
    narrow = {**recipes.RECIPES["celeba"].arguments, "width": 4, "blocks": 1}
    monkeypatch.setitem(
        recipes.RECIPES, "celeba", dataclasses.replace(recipes.RECIPES["celeba"], arguments=narrow)
    )
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(
            [
                "train",
                "celeba",
                "--size",
                "32",
                "--epochs",
                "2",
                "--batch-size",
                "6",
                "--lr",
                "3e-4",
                "--seed",
                "0",
            ]
        )
        == 0
    )
    assert "bits_per_dim" in capsys.readouterr().out
    drawn = checkpoints.load("runs/celeba").sample(36)
    assert drawn.shape == (36, 3, 32, 32) and drawn.dtype == torch.uint8
    assert len((tmp_path / "runs" / "celeba" / "metrics.jsonl").read_text().splitlines()) == 2


# Pixels, splits and labels


@pytest.mark.parametrize("size", [64, 32])
def test_pixels_are_pillows_and_the_last_tenth_is_the_test_set(root, folder, size, capsys):
    faces = data.load("celeba", size=size)
    assert np.array_equal(faces.train, pictures(folder, NAMES[:36], size)) and np.array_equal(
        faces.test, pictures(folder, NAMES[36:], size)
    )
    assert faces.shape == (3, size, size) and (faces.name, faces.title, faces.is_standin) == (
        "celeba",
        "CelebA",
        False,
    )
    assert (
        faces.attributes == ()
        and faces.train_labels.shape == (36, 0)
        and faces.test_labels.shape == (4, 0)
    )
    assert all(tensor.dtype == torch.uint8 for tensor in tensors(faces))
    assert "preparing CelebA: 100%" in capsys.readouterr().err
    assert names(root) == [f"celeba_{size}", "img_align_celeba"]


def test_64_is_the_default_size(folder):
    assert data.load("celeba").shape == (3, 64, 64)


@pytest.mark.parametrize("partition", [".txt", ".csv"])
@pytest.mark.parametrize("attributes", [".txt", ".csv"])
def test_partition_and_attributes_stay_with_their_images(
    root, folder, monkeypatch, partition, attributes
):
    monkeypatch.setattr(celeba, "CHUNK", 7)
    write_partition(root, partition)
    write_attributes(root, attributes)
    faces = data.load("celeba", size=32)
    order = {part: [i for i in range(N) if PARTS[i] == part] for part in range(3)}
    train = order[0] + order[1]  # the validation images come last
    assert np.array_equal(faces.train, pictures(folder, [NAMES[i] for i in train], 32))
    assert np.array_equal(faces.test, pictures(folder, [NAMES[i] for i in order[2]], 32))
    assert faces.train_labels.tolist() == [
        ATTRIBUTES[i] for i in train
    ] and faces.test_labels.tolist() == [ATTRIBUTES[i] for i in order[2]]
    assert faces.attributes == tuple(COLUMNS)


@pytest.mark.parametrize("lists", ["", "img_align_celeba"])
@pytest.mark.parametrize("nested", ["img_align_celeba/img_align_celeba", "celeba/img_align_celeba"])
def test_folders_as_kaggle_and_torchvision_have_them(root, jpegs, nested, lists):
    shutil.copytree(jpegs, root / nested)
    (root / "img_align_celeba").mkdir(exist_ok=True)
    place = root / nested.split("/")[0] if lists else root
    write_partition(place, ".csv")
    write_attributes(place, ".txt")
    faces = data.load("celeba", size=32)
    assert len(faces.train) == 32 and faces.attributes == tuple(COLUMNS)
    assert np.array_equal(faces.train[0], by_pillow(jpegs / NAMES[0], 32))


def test_lists_outside_the_root_are_not_taken(root, folder):
    write_attributes(root.parent, ".txt")
    assert data.load("celeba", size=32).attributes == ()


def test_other_images_grey_small_or_png_are_taken_and_other_files_are_not(root):
    folder = root / "img_align_celeba"
    folder.mkdir()
    rng = np.random.default_rng(1)
    grey, small, wide = (
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        for shape in ((218, 178), (100, 120, 3), (148, 400, 3))
    )
    grey.save(folder / "a.jpeg")
    small.save(folder / "b.png")
    wide.save(folder / "c.PNG")
    (folder / "d.txt").write_text("no image")
    (folder / "._a.jpg").write_text("what another system leaves behind")
    (folder / "e.jpg").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faces = data.load("celeba", size=32)
    assert np.array_equal(faces.train[0], by_pillow(folder / "a.jpeg", 32)) and torch.equal(
        faces.train[0, 0], faces.train[0, 2]
    )

    def shrunk(image, box):
        return np.asarray(image.crop(box).resize((32, 32), Image.Resampling.BILINEAR)).transpose(
            2, 0, 1
        )

    assert np.array_equal(faces.train[1], shrunk(small, (10, 0, 110, 100)))
    assert len(faces.train) == 2 and np.array_equal(
        faces.test, shrunk(wide, (126, 0, 274, 148))[None]
    )


def test_a_prepared_set_opens_in_less_than_50_ms_and_without_its_originals(root, folder):
    first = data.load("celeba", size=32)
    shutil.rmtree(folder)
    start = time.perf_counter()
    again = data.load("celeba", size=32)
    assert time.perf_counter() - start < 0.05
    assert equal(first, again)


# Unreadable images


def test_unreadable_images_are_named_counted_and_left_out_and_labels_stay_aligned(
    root, folder, monkeypatch
):
    monkeypatch.setattr(celeba, "CHUNK", 5)
    write_attributes(root, ".csv")
    broken = [3, 7, *range(10, 15), 38]  # one whole chunk among them
    for i in broken:
        (folder / NAMES[i]).write_bytes(
            (folder / NAMES[i]).read_bytes()[:2_000] if i == 7 else b"no JPEG"
        )
    text = r"8 unreadable images in .*img_align_celeba were left out: 000004.jpg \(cannot identify .*, 000008.jpg \(.*truncated.*000013.jpg .*, \.\.\.$"
    with pytest.warns(UserWarning, match=text) as caught:
        faces = data.load("celeba", size=32)
    assert caught[0].filename == __file__
    train, test = ([i for i in part if i not in broken] for part in (range(36), range(36, 40)))
    assert (
        np.array_equal(faces.train, pictures(folder, [NAMES[i] for i in train], 32))
        and len(faces.test) == 3
    )
    assert faces.train_labels.tolist() == [
        ATTRIBUTES[i] for i in train
    ] and faces.test_labels.tolist() == [ATTRIBUTES[i] for i in test]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(faces, data.load("celeba", size=32))
    assert list(json.loads((root / "celeba_32" / "record.json").read_text())["skipped"]) == [
        NAMES[i] for i in broken
    ]


@pytest.mark.parametrize(
    ("broken", "split", "n"), [(range(40), "train", 36), (range(36, 40), "test", 4)]
)
def test_a_split_without_any_readable_image_is_refused_until_the_images_are_better(
    folder, jpegs, broken, split, n
):
    for i in broken:
        (folder / NAMES[i]).write_bytes(bytes((jpegs / NAMES[i]).stat().st_size))
    for standin in (False, True):
        with pytest.raises(
            ValueError,
            match=rf"none of the {n} images of the {split} split in .*img_align_celeba can be read; 0000..\.jpg: cannot",
        ):
            data.load("celeba", size=32, standin=standin)
    shutil.copytree(jpegs, folder, dirs_exist_ok=True)
    assert len(data.load("celeba", size=32).train) == 36


def test_a_file_that_the_system_does_not_hand_over_is_not_skipped(folder, monkeypatch):
    monkeypatch.setattr(celeba, "picture", lambda path, size: path.with_name("gone").read_bytes())
    with pytest.raises(OSError, match=r"0000..\.jpg could not be read \(.*No such file") as caught:
        data.load("celeba", size=32, standin=True)
    assert not isinstance(caught.value, FileNotFoundError)


# Lists that don't fit


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "another value": lambda text: text.replace("1\n", "7\n", 1),
    "another word": lambda text: text.replace("1\n", "yes\n", 1),
    "a column more": lambda text: text.replace("1\n", "1 1\n", 1).replace(",1 1\n", ",1,1\n"),
    "empty": lambda text: "",
    "binary": lambda text: "\x00\ud8ff",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file",
    [
        "list_eval_partition.txt",
        "list_eval_partition.csv",
        "list_attr_celeba.txt",
        "list_attr_celeba.csv",
    ],
)
def test_damaged_lists_are_refused_by_their_path(root, folder, file, damage):
    (write_partition if "partition" in file else write_attributes)(root, file[-4:])
    path = root / file
    path.write_bytes(DAMAGES[damage](path.read_text()).encode(errors="surrogatepass"))
    with pytest.raises(ValueError) as caught:
        data.load("celeba", standin=True)
    text = str(caught.value)
    lacking = damage == "cut off" or (damage == "empty" and file == "list_eval_partition.txt")
    assert (
        text.startswith(f"{path} is damaged (")
        and text.endswith("get it anew, or move it away to do without")
    ) or (lacking and text.startswith(f"{path} lacks "))
    assert names(root) == sorted([file, "img_align_celeba"])


def test_attributes_must_be_as_many_as_their_list_says(root, folder):
    write_attributes(root, ".txt")
    path = root / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("40", "41", 1))
    with pytest.raises(
        ValueError,
        match=r"list_attr_celeba.txt is damaged \(ValueError\('40 lines where it says 41'\)\)",
    ):
        data.load("celeba")


@pytest.mark.parametrize("write", [write_partition, write_attributes])
def test_an_image_that_a_list_lacks_is_named(root, folder, jpegs, write):
    write(root, ".csv")
    shutil.copy(jpegs / NAMES[0], folder / "another.jpg")
    with pytest.raises(
        ValueError,
        match=r"\.csv lacks 1 of the 41 images in .*img_align_celeba, the first is another\.jpg",
    ):
        data.load("celeba")


def test_images_that_are_not_there_may_be_in_the_lists(root, folder):
    write_partition(root, ".txt")
    write_attributes(root, ".txt")
    (folder / NAMES[0]).unlink()
    assert len(data.load("celeba", size=32).train) == 31


def test_a_partition_must_leave_images_on_both_sides(root, folder):
    write_partition(root, ".txt", [(name, 0) for name in NAMES])
    with pytest.raises(
        ValueError, match="has 40 training and 0 test images: there must be some of each"
    ):
        data.load("celeba")


# Builds that end early, and builds at the same time


def killed(lines):
    """A build in another process, four images at a time, killed after so many pieces; returns what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    printed = [process.stdout.readline() for _ in range(lines)]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return printed


@pytest.mark.parametrize(
    "lines", [7, 8, 19]
)  # after images without their labels, after both but before it is on record, in the test set
def test_a_killed_build_goes_on_where_it_was_and_ends_the_same(root, folder, monkeypatch, lines):
    write_attributes(root, ".txt")
    (folder / NAMES[1]).write_bytes(b"no JPEG")
    assert killed(lines)[-1].startswith("train_" if lines < 19 else "test_")
    assert names(root) == [
        ".celeba_32-building",
        ".celeba_32-building.lock",
        "img_align_celeba",
        "list_attr_celeba.txt",
    ]
    looked_at, picture = [], celeba.picture
    monkeypatch.setattr(
        celeba, "picture", lambda path, size: looked_at.append(path.name) or picture(path, size)
    )
    with pytest.warns(UserWarning, match="1 unreadable images .* 000002.jpg"):
        resumed = data.load("celeba", size=32)
    assert sorted(looked_at) == NAMES[{7: 12, 8: 12, 19: 36}[lines] :]
    assert names(root) == ["celeba_32", "img_align_celeba", "list_attr_celeba.txt"]
    shutil.rmtree(root / "celeba_32")
    with pytest.warns(UserWarning):
        assert equal(resumed, data.load("celeba", size=32))


@pytest.fixture
def ctrl_c(monkeypatch):
    """Call it for a build that ends with Ctrl-C after ten images."""

    def interrupted(path, rows, start):
        npy.append(path, rows, start)
        if start:
            raise KeyboardInterrupt

    def build():
        with monkeypatch.context() as patch:
            patch.setattr(celeba, "CHUNK", 10)
            patch.setattr(celeba, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                data.load("celeba", size=32)

    return build


def test_after_ctrl_c_too(folder, ctrl_c, capsys):
    ctrl_c()
    capsys.readouterr()
    assert np.array_equal(data.load("celeba", size=32).train, pictures(folder, NAMES[:36], 32))
    assert " 25%" in capsys.readouterr().err.split("\r")[1]


@pytest.mark.parametrize("change", ["a file more", "another file", "attributes"])
def test_a_build_starts_over_when_its_sources_have_changed(root, folder, jpegs, ctrl_c, change):
    write_attributes(root, ".csv")
    ctrl_c()
    if change == "a file more":
        (root / "list_attr_celeba.csv").unlink()
        shutil.copy(jpegs / NAMES[9], folder / "000000.jpg")
    elif change == "another file":
        shutil.copy(jpegs / NAMES[9], folder / NAMES[0])
    else:
        text = (root / "list_attr_celeba.csv").read_text()
        (root / "list_attr_celeba.csv").write_text(text.replace(f"{NAMES[0]},-1", f"{NAMES[0]},1"))
    faces = data.load("celeba", size=32)
    assert len(faces.train) == 36
    assert np.array_equal(faces.train, pictures(folder, names(folder)[:36], 32))
    assert change != "attributes" or faces.train_labels[0].tolist() == [1, 0, 0]


def test_of_two_processes_one_builds_and_the_other_waits_even_if_the_first_is_killed(
    root, folder, jpegs
):
    def start():
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    builders = [start(), start()]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in builders]
    assert sorted(map(len, printed)) == [1, 21]  # 2 x 10 pieces by one of them
    assert [lines[-1] for lines in printed] == ["done 36"] * 2
    assert names(root) == ["celeba_32", "img_align_celeba"]

    shutil.rmtree(root / "celeba_32")
    first = start()
    first.stdout.readline()
    second = start()
    time.sleep(0.8)
    first.kill()
    first.communicate()
    assert second.communicate(timeout=60)[0].splitlines()[-1] == "done 36"
    assert np.array_equal(data.load("celeba", size=32).train, pictures(jpegs, NAMES[:36], 32))


def test_beside_a_read_only_root_it_is_prepared_in_the_cache(root, folder, tmp_path):
    root.chmod(0o555)
    assert len(data.load("celeba", size=32).train) == 36
    root.chmod(0o755)
    assert names(root) == ["img_align_celeba"] and names(tmp_path / "cache" / "flowlib") == [
        "celeba_32"
    ]


# Arguments and missing data


def test_with_a_limit_only_that_many_images_are_decoded(root, folder, monkeypatch):
    monkeypatch.setattr(celeba, "CHUNK", 3)
    write_partition(root, ".txt")
    (folder / NAMES[1]).write_bytes(b"no JPEG")
    looked_at, picture = [], celeba.picture
    monkeypatch.setattr(
        celeba, "picture", lambda path, size: looked_at.append(path.name) or picture(path, size)
    )
    with pytest.warns(UserWarning, match="1 unreadable"):
        few = data.load("celeba", size=32, limit=5)
    assert len(few.train) == len(few.test) == 5 and len(looked_at) == 11
    assert names(root) == ["celeba_32_first_5", "img_align_celeba", "list_eval_partition.txt"]
    with pytest.warns(UserWarning):
        every = data.load("celeba", size=32)
    assert (
        torch.equal(few.train, every.train[:5])
        and torch.equal(few.test, every.test[:5])
        and len(every.train) == 31
    )
    shutil.rmtree(root / "celeba_32_first_5")
    assert equal(few, data.load("celeba", size=32, limit=5))  # cut from the full set
    assert "celeba_32_first_5" not in names(root)
    assert equal(every, data.load("celeba", size=32, limit=1_000))


def test_a_limit_cuts_the_other_sets():
    digits, few = data.load("digits"), data.load("digits", limit=7)
    assert torch.equal(few.train, digits.train[:7]) and torch.equal(
        few.test_labels, digits.test_labels[:7]
    )
    assert len(few.train_labels) == len(few.test) == 7 and few.attributes is None


@pytest.mark.parametrize("name", ["digits", "celeba"])
@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "5"])
def test_a_bad_limit_is_refused(name, limit):
    with pytest.raises(ValueError, match="limit must be an integer of at least 1"):
        data.load(name, limit=limit, standin=True)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "digits", "photos"])
def test_other_sets_have_no_size(name):
    with pytest.raises(
        ValueError, match=r'size goes with "celeba" and "faces"; .* is always \d x \d\d x \d\d'
    ):
        data.load(name, size=64, standin=True)


@pytest.mark.parametrize("name", ["celeba", "faces"])
@pytest.mark.parametrize("size", [0, 48, 128, 64.0, "64", True])
def test_other_sizes_are_refused(name, size):
    with pytest.raises(
        ValueError, match=r"size must be (one of 64, 32|an integer of at least 1), got "
    ):
        data.load(name, size=size, standin=True)


def test_without_images_the_error_says_what_to_do(root):
    (root / "img_align_celeba").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("celeba")
    assert str(caught.value) == (
        f"there are no images in {root}/img_align_celeba. Make that folder and put CelebA's aligned JPEGs into it (img_align_celeba.zip, with "
        "list_eval_partition.txt and list_attr_celeba.txt beside it, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; any aligned faces "
        'will do); or take data.load("celeba", standin=True): procedural faces of the same shape.'
    )
    assert names(root) == ["img_align_celeba"]


@pytest.mark.parametrize("damage", ["missing", "no JSON", "a name more"])
def test_damaged_attributes_json_is_refused_by_its_path(root, folder, damage):
    data.load("celeba", size=32)
    path = root / "celeba_32" / "attributes.json"
    path.unlink() if damage == "missing" else path.write_text(
        {"no JSON": "[", "a name more": '["Bald"]'}[damage]
    )
    named = "train_labels.npy" if damage == "a name more" else "attributes.json"
    with pytest.raises(
        ValueError,
        match=rf"celeba_32/{named} is missing or damaged .* delete the folder .*/celeba_32 and load again",
    ):
        data.load("celeba", size=32)


# Procedural faces


@pytest.mark.parametrize("size", [64, 32])
def test_faces_are_those_of_draw_faces(root, monkeypatch, size):
    monkeypatch.setattr(images, "PIECE", 32)
    faces = data.load("faces", size=size, limit=70)
    for seed, pixels, labels in (
        (0, faces.train, faces.train_labels),
        (1, faces.test, faces.test_labels),
    ):
        expected, attributes = data.draw_faces(70, size, seed)
        assert torch.equal(pixels, expected) and torch.equal(labels, attributes)
    assert faces.attributes == data.ATTRIBUTES and (faces.name, faces.title, faces.is_standin) == (
        "faces",
        "procedural faces",
        False,
    )
    assert names(root) == [f"faces_{size}_first_70"]


def test_there_are_20_000_faces_and_2_000_to_test(root, monkeypatch, capsys):
    def blank(n, size, seed):
        return torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.zeros(
            n, len(data.ATTRIBUTES), dtype=torch.uint8
        )

    monkeypatch.setattr(images.faces, "draw_faces", blank)
    faces = data.load("faces", size=32)
    assert faces.train.shape == (20_000, 3, 32, 32) and faces.test_labels.shape == (2_000, 7)
    assert "preparing procedural faces: 100%" in capsys.readouterr().err
    monkeypatch.setattr(images.faces, "draw_faces", None)
    assert len(data.load("faces", size=32, limit=500).train) == 500 and names(root) == ["faces_32"]


@pytest.mark.parametrize("size", [64, 32])
def test_faces_stand_in_for_celeba_and_say_so(size):
    with pytest.warns(
        UserWarning,
        match='"faces" stands in for CelebA, .* figures and numbers that follow are not CelebA\'s',
    ) as caught:
        faces = data.load("celeba", size=size, limit=9, standin=True)
    assert caught[0].filename == __file__
    assert (
        faces.title == "procedural faces, a stand-in for CelebA"
        and faces.shape == (3, size, size)
        and len(faces.train) == len(faces.test) == 9
    )
    assert equal(faces, data.load("faces", size=size, limit=9)) and (
        faces.name,
        faces.standin_for,
    ) == ("faces", "celeba")


def test_no_stand_in_where_there_are_images(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("celeba", size=32, standin=True).name == "celeba"
