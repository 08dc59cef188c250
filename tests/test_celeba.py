"""CelebA and LFW from small pictures that the tests write, and the procedural faces."""

import errno
import http.client
import json
import shutil
import sys
import urllib.error
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from flowlib import data
from flowlib.data import celeba, images

N = 40
NAMES = [f"{i:06d}.jpg" for i in range(1, N + 1)]
PARTS = [(0, 0, 1, 0, 2)[i % 5] for i in range(N)]  # 24 train, 8 validation, 8 test, mixed
COLUMNS = ["Eyeglasses", "Smiling", "Young"]
ATTRIBUTES = [[(i >> k) % 2 for k in range(3)] for i in range(N)]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The root, an empty folder."""
    monkeypatch.setenv("FLOWLIB_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def photograph(seed, width=178, height=218):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(smooth // 2 + rng.integers(0, 128, smooth.shape, dtype=np.uint8))


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory):
    """A folder of 40 different JPEGs as CelebA's are."""
    folder = tmp_path_factory.mktemp("jpegs")
    for seed, name in enumerate(NAMES):
        photograph(seed).save(folder / name, quality=90)
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
        lines = [str(N), " ".join(COLUMNS) + " "]
        lines += [f"{name} {' '.join(f'{s:2d}' for s in row)}" for name, row in zip(NAMES, signs)]
    else:
        lines = [",".join(["image_id", *COLUMNS])]
        lines += [",".join([name, *map(str, row)]) for name, row in zip(NAMES, signs)]
    (place / f"list_attr_celeba{ending}").write_text("\n".join(lines) + "\n")


def by_pillow(path, size):
    """The authors' 148 x 148 pixels of a 178 x 218 image, shrunk by Pillow."""
    with Image.open(path) as image:
        square = image.convert("RGB").resize(
            (size, size), Image.Resampling.BILINEAR, box=(15, 40, 163, 188)
        )
    return np.asarray(square).transpose(2, 0, 1)


def pictures(folder, names, size=32):
    return np.stack([by_pillow(folder / name, size) for name in names])


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def equal(one, other):
    parts = ("train", "train_labels", "test", "test_labels")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


# The crop


def test_the_crop_is_rows_40_to_188_and_columns_15_to_163():
    assert celeba.crop_box(178, 218) == pytest.approx((15, 40, 163, 188))


@pytest.mark.parametrize("size", [(89, 109), (356, 436), (534, 654), (90, 110)])
def test_aligned_images_of_another_size_are_cropped_in_proportion(size):
    parts = np.array(celeba.crop_box(*size)) / [size[0], size[1], size[0], size[1]]
    assert parts == pytest.approx([15 / 178, 40 / 218, 163 / 178, 188 / 218], abs=0.004)


@pytest.mark.parametrize("size", [(309, 398), (100, 120), (148, 400), (400, 148), (64, 64)])
def test_of_other_shapes_the_middle_square_is_kept(size):
    left, top, right, bottom = celeba.crop_box(*size)
    assert right - left == pytest.approx(bottom - top) == pytest.approx(min(size) * 148 / 178)
    assert (left + right, top + bottom) == pytest.approx(size)


def test_a_half_size_image_gives_the_crop_of_the_full_one_up_to_resampling(tmp_path):
    """A blob moves by less than a tenth of a pixel of the result, and the pictures agree."""
    rows, columns = np.mgrid[:218, :178]
    blob = 255 * np.exp(-((rows - 150) ** 2 + (columns - 120) ** 2) / 400)
    full = Image.fromarray(blob.astype(np.uint8))
    centres = []
    for name, image in (("full.png", full), ("half.png", full.reduce(2))):
        image.save(tmp_path / name)
        pixels = celeba.picture(tmp_path / name, 32)[0].astype(float)
        weights = pixels.sum()
        centres.append([(pixels * grid).sum() / weights for grid in np.mgrid[:32, :32]])
    assert centres[0] == pytest.approx(centres[1], abs=0.1)
    assert centres[0] == pytest.approx(
        [(150.5 - 40) * 32 / 148 - 0.5, 105.5 * 32 / 148 - 0.5], abs=0.1
    )
    photograph(0).save(tmp_path / "photo.png")
    photograph(0).reduce(2).save(tmp_path / "small.png")
    one, other = (celeba.picture(tmp_path / f, 32).astype(int) for f in ("photo.png", "small.png"))
    assert np.abs(one - other).mean() < 5


# The kinds of pictures


def square(mode, colour):
    return Image.new(mode, (64, 64), colour)


ORANGE = (250, 120, 10)
TRANSPARENT = Image.merge("RGBA", [*square("RGB", ORANGE).split(), square("L", 0)])
HALF = Image.merge("RGBA", [*square("RGB", ORANGE).split(), square("L", 128)])
DEEP = Image.fromarray(np.full((64, 64), 257 * 100, np.uint16))
KINDS = {  # the picture, its file, what it shows
    "RGB": (square("RGB", ORANGE), "a.png", ORANGE),
    "grey": (square("L", 77), "a.jpeg", (77,) * 3),
    "palette": (square("RGB", ORANGE).quantize(4), "a.png", ORANGE),
    "CMYK": (square("RGB", ORANGE).convert("CMYK"), "a.jpg", ORANGE),
    "one bit": (square("1", 1), "a.PNG", (255,) * 3),
    "16 bits": (DEEP, "a.png", (100,) * 3),
    "white of 16 bits": (Image.fromarray(np.full((64, 64), 65535, np.uint16)), "a.png", (255,) * 3),
    "transparent": (TRANSPARENT, "a.png", (255,) * 3),
    "half transparent": (HALF, "a.png", (252, 187, 132)),
    "grey with alpha": (square("LA", (0, 0)), "a.png", (255,) * 3),
    "transparent palette": (TRANSPARENT.quantize(4), "a.png", (255,) * 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_and_png_shows_what_it_should(tmp_path, kind):
    image, name, colour = KINDS[kind]
    image.save(tmp_path / name)
    pixels = celeba.picture(tmp_path / name, 32)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 32)
    assert np.abs(pixels.astype(int) - np.reshape(colour, (3, 1, 1))).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    """The eight ways to hold a camera, each undone by EXIF's orientation."""
    upright = photograph(0)
    T = Image.Transpose
    held = [None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM]
    held += [T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE, T.ROTATE_270]
    way = held[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "upright.png")
    turned = upright if way is None else upright.transpose(way)
    turned.save(tmp_path / "turned.png", exif=exif)
    one, other = (celeba.picture(tmp_path / f"{name}.png", 32) for name in ("upright", "turned"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "EPS", "HTML", "truncated"])
def test_disguised_and_broken_pictures_are_not_opened(folder, kind):
    path = folder / NAMES[3]
    if kind == "HTML":
        path.write_text("<html>")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:2_000])
    else:
        photograph(0).save(path, format=kind)
    reason = "truncated" if kind == "truncated" else "cannot identify image file"
    text = rf"1 unreadable images in .*img_align_celeba were left out: 000004.jpg \(.*{reason}"
    with pytest.warns(UserWarning, match=text) as caught:
        faces = data.load("celeba", size=32)
    assert caught[0].filename == __file__
    assert np.array_equal(faces.train, pictures(folder, [*NAMES[:3], *NAMES[4:36]]))


def test_labels_stay_with_their_images_where_others_are_unreadable(root, folder):
    write_attributes(root, ".csv")
    broken = [3, 7, *range(10, 15), 38]
    for i in broken:
        (folder / NAMES[i]).write_bytes(b"no JPEG")
    with pytest.warns(UserWarning, match=r"8 unreadable .*000013.jpg \(.*\), \.\.\.$"):
        faces = data.load("celeba", size=32)
    train, test = ([i for i in part if i not in broken] for part in (range(36), range(36, 40)))
    assert np.array_equal(faces.train, pictures(folder, [NAMES[i] for i in train]))
    assert faces.train_labels.tolist() == [ATTRIBUTES[i] for i in train]
    assert faces.test_labels.tolist() == [ATTRIBUTES[i] for i in test]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(faces, data.load("celeba", size=32))


def test_a_split_without_any_readable_image_is_refused_until_the_images_are_better(folder, jpegs):
    for name in NAMES[36:]:
        (folder / name).write_bytes(bytes((jpegs / name).stat().st_size))
    with pytest.raises(
        ValueError, match=r"no test image in .*img_align_celeba can be read: cannot"
    ):
        data.load("celeba", size=32)
    shutil.copytree(jpegs, folder, dirs_exist_ok=True)
    assert len(data.load("celeba", size=32).train) == 36


def test_a_file_that_the_system_does_not_hand_over_is_not_skipped(folder, monkeypatch):
    gone = lambda path, size, box: path.with_name("gone").read_bytes()  # noqa: E731
    monkeypatch.setattr(celeba, "picture", gone)
    with pytest.raises(OSError, match="No such file"):
        data.load("celeba", size=32)


# Splits, labels and folders


@pytest.mark.parametrize("size", [64, 32])
def test_pixels_are_pillows_and_the_last_tenth_is_the_test_set(root, folder, size, capsys):
    faces = data.load("celeba", size=None if size == 64 else size)
    assert np.array_equal(faces.train, pictures(folder, NAMES[:36], size))
    assert np.array_equal(faces.test, pictures(folder, NAMES[36:], size))
    assert (faces.shape, faces.name, faces.title) == ((3, size, size), "celeba", "CelebA")
    assert faces.attributes == () and faces.train_labels.shape == (36, 0)
    assert "preparing celeba: train: 100%" in capsys.readouterr().err
    assert names(root) == [f"celeba_{size}", "img_align_celeba"]
    shutil.rmtree(folder)
    assert equal(faces, data.load("celeba", size=size))
    assert len(names(root / f"celeba_{size}")) == 5


@pytest.mark.parametrize("partition", [".txt", ".csv"])
@pytest.mark.parametrize("attributes", [".txt", ".csv"])
def test_partition_and_attributes_stay_with_their_images(root, folder, partition, attributes):
    write_partition(root, partition)
    write_attributes(root, attributes)
    faces = data.load("celeba", size=32)
    order = {part: [i for i in range(N) if PARTS[i] == part] for part in range(3)}
    train = order[0] + order[1]  # the validation images come last
    assert np.array_equal(faces.train, pictures(folder, [NAMES[i] for i in train]))
    assert np.array_equal(faces.test, pictures(folder, [NAMES[i] for i in order[2]]))
    assert faces.train_labels.tolist() == [ATTRIBUTES[i] for i in train]
    assert faces.test_labels.tolist() == [ATTRIBUTES[i] for i in order[2]]
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


def test_other_files_and_lists_outside_the_root_are_not_taken(root, folder):
    write_attributes(root.parent, ".txt")
    (folder / "d.txt").write_text("no image")
    (folder / "._000001.jpg").write_text("what another system leaves behind")
    (folder / "e.jpg").mkdir()
    faces = data.load("celeba", size=32)
    assert len(faces.train) == 36 and faces.attributes == ()


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "another value": lambda text: text.replace("1\n", "7\n", 1),
    "a column more": lambda text: text.replace("1\n", "1 1\n", 1).replace(",1 1\n", ",1,1\n"),
    "empty": lambda text: "",
    "binary": lambda text: "\x00\ud8ff",
}
LISTS = [
    f"{name}{end}"
    for name in ("list_eval_partition", "list_attr_celeba")
    for end in (".txt", ".csv")
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", LISTS)
def test_damaged_lists_are_refused_by_their_path(root, folder, file, damage):
    (write_partition if "partition" in file else write_attributes)(root, file[-4:])
    path = root / file
    path.write_bytes(DAMAGES[damage](path.read_text()).encode(errors="surrogatepass"))
    with pytest.raises(ValueError) as caught:
        data.load("celeba")
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("move it away and load again")
    assert names(root) == sorted([file, "img_align_celeba"])
    path.unlink()
    assert data.load("celeba", size=32).name == "celeba"


@pytest.mark.parametrize("write", [write_partition, write_attributes])
def test_an_image_that_a_list_lacks_is_named_and_others_need_not_be_there(
    root, folder, jpegs, write
):
    write(root, ".csv")
    shutil.copy(jpegs / NAMES[0], folder / "another.jpg")
    with pytest.raises(ValueError, match="1 of the images are not in it, first another"):
        data.load("celeba")
    (folder / "another.jpg").unlink()
    (folder / NAMES[0]).unlink()
    faces = data.load("celeba", size=32)
    assert len(faces.train) + len(faces.test) == N - 1


def test_a_partition_must_leave_images_on_both_sides(root, folder):
    write_partition(root, ".txt", [(name, 0) for name in NAMES])
    with pytest.raises(ValueError, match="has 40 training and 0 test images"):
        data.load("celeba")


def test_a_build_that_was_interrupted_counts_for_nothing(root, folder, monkeypatch):
    def interrupted(results, description, total):
        for i, result in enumerate(results):
            yield result
            if description.endswith("test") and i == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(celeba, "tqdm", interrupted)
        data.load("celeba", size=32)
    assert np.array_equal(data.load("celeba", size=32).test, pictures(folder, NAMES[36:]))
    assert len(names(root / "celeba_32")) == 5


# Arguments and missing data


def test_with_a_limit_only_that_many_images_are_decoded(root, folder, monkeypatch):
    write_partition(root, ".txt")
    looked_at, picture = [], celeba.picture

    def counted(path, size, box):
        looked_at.append(path)
        return picture(path, size, box)

    monkeypatch.setattr(celeba, "picture", counted)
    few = data.load("celeba", size=32, limit=5)
    assert len(few.train) == len(few.test) == 5 and len(looked_at) == 10
    assert names(root) == ["celeba_32_first_5", "img_align_celeba", "list_eval_partition.txt"]
    every = data.load("celeba", size=32)
    assert torch.equal(few.train, every.train[:5]) and torch.equal(few.test, every.test[:5])
    shutil.rmtree(root / "celeba_32_first_5")
    assert equal(few, data.load("celeba", size=32, limit=5))  # cut from the full set
    assert equal(every, data.load("celeba", size=32, limit=1_000))


@pytest.mark.parametrize("name", ["celeba", "lfw", "faces"])
@pytest.mark.parametrize("size", [0, 48, 128, 64.0, "64", True])
def test_other_sizes_are_refused(name, size):
    text = "size must be (64 or 32|an integer of at least 32), got "
    with pytest.raises(ValueError, match=text):
        data.load(name, size=size, standin=True)


def test_without_images_the_error_says_what_to_do(root):
    (root / "img_align_celeba").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("celeba")
    assert str(caught.value) == (
        f"there are no images in {root}/img_align_celeba. Put CelebA's aligned JPEGs into that "
        "folder, and its lists beside it (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; any "
        f"aligned faces will do); or a copy as Parquet files into {root}/celeba; or take "
        "procedural faces by "
        'data.load("celeba", standin=True).'
    )
    assert names(root) == ["img_align_celeba"]


@pytest.mark.parametrize("content", ["[", '["Bald"]'], ids=["no JSON", "a name more"])
def test_damaged_attributes_json_is_refused_by_its_path(root, folder, content):
    data.load("celeba", size=32)
    (root / "celeba_32" / "attributes.json").write_text(content)
    named = "attributes.json" if content == "[" else "train_labels.npy"
    with pytest.raises(ValueError, match=rf"celeba_32/{named} is damaged .* move it away"):
        data.load("celeba", size=32)


# Parquet files


def as_bytes(path, kind):
    """A cell of a column of images, as the hubs have them."""
    content = path.read_bytes()
    return {"bytes": content, "path": path.name} if kind == "struct" else content


def write_parquet(place, jpegs, rows, kind="struct", signs=bool, **more):
    """A file with images, an identity, a name and the attributes of these rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [as_bytes(jpegs / NAMES[i], kind) for i in rows]}
    columns |= {"celeb_id": [7 + i for i in rows], "name": [NAMES[i] for i in rows]}
    columns |= {COLUMNS[k]: [signs(ATTRIBUTES[i][k]) for i in rows] for k in range(3)} | more
    place.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), place)


HUBS = {"struct of bool": ("struct", bool), "bytes of 0 and 1": ("bytes", int)}
HUBS["struct of -1 and 1"] = ("struct", lambda value: 2 * value - 1)


@pytest.mark.parametrize("hub", HUBS)
def test_parquet_files_as_hubs_have_them_one_part_in_several_files(root, jpegs, hub):
    parts = {"train-00001-of-00002": range(10, 20), "train-00000-of-00002": range(10)}
    parts |= {"test-00000-of-00001": range(20, 26), "validation-00000-of-00001": range(26, 30)}
    for name, rows in parts.items():
        write_parquet(root / "celeba" / f"{name}.parquet", jpegs, rows, *HUBS[hub])
    faces = data.load("celeba", size=32)
    train, test = [*range(20), *range(26, 30)], range(20, 26)  # the validation images come last
    assert np.array_equal(faces.train, pictures(jpegs, [NAMES[i] for i in train]))
    assert np.array_equal(faces.test, pictures(jpegs, [NAMES[i] for i in test]))
    assert faces.attributes == tuple(COLUMNS)  # neither the identity nor the name
    assert faces.train_labels.tolist() == [ATTRIBUTES[i] for i in train]
    assert faces.test_labels.tolist() == [ATTRIBUTES[i] for i in test]
    few = data.load("celeba", size=64, limit=3)
    assert np.array_equal(few.train, pictures(jpegs, NAMES[:3], 64))
    assert np.array_equal(few.test, pictures(jpegs, NAMES[20:23], 64))


def test_of_parquet_files_that_name_no_test_the_last_tenth_is_it(root, jpegs):
    write_parquet(root / "celeba" / "data" / "0000.parquet", jpegs, range(N))
    faces = data.load("celeba", size=32)
    assert np.array_equal(faces.train, pictures(jpegs, NAMES[:36]))
    assert np.array_equal(faces.test, pictures(jpegs, NAMES[36:]))


def test_parquet_files_may_have_no_attributes_and_images_that_cannot_be_read(root, jpegs):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [as_bytes(jpegs / name, "struct") for name in NAMES]
    images[3], images[5] = {"bytes": None, "path": "gone.jpg"}, {"bytes": b"x", "path": "x"}
    (root / "celeba").mkdir()
    parquet.write_table(pyarrow.table({"image": images}), root / "celeba" / "train.parquet")
    text = r"2 unreadable images in .*celeba were left out: row 3 \(.*row 5 \("
    with pytest.warns(UserWarning, match=text) as caught:
        faces = data.load("celeba", size=32)
    assert caught[0].filename == __file__
    assert faces.attributes == () and faces.train_labels.shape == (34, 0)
    assert np.array_equal(faces.train[3], by_pillow(jpegs / NAMES[4], 32))


def test_many_rows_stay_in_order(root, jpegs):
    """More than are read, and more than are decoded, at once."""
    rows = [i % N for i in range(1_300)]
    write_parquet(root / "celeba" / "train.parquet", jpegs, rows, "bytes", index=[*range(1_300)])
    faces = data.load("celeba", size=32)
    every = torch.cat([faces.train, faces.test])
    first = pictures(jpegs, NAMES)
    assert all(np.array_equal(every[i], first[i % N]) for i in range(1_300))


@pytest.mark.parametrize("damage", ["cut off", "no images"])
def test_damaged_parquet_files_are_refused(root, jpegs, damage):
    path = root / "celeba" / "train.parquet"
    write_parquet(path, jpegs, range(10), **({"more": [b"x"] * 10} if damage != "cut off" else {}))
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:1_000])
    reason = "train.parquet" if damage == "cut off" else "one column must hold bytes, got"
    with pytest.raises(ValueError, match=rf"celeba is damaged .*{reason}.*move it away"):
        data.load("celeba")


def test_without_pyarrow_the_error_says_what_to_install(root, monkeypatch):
    (root / "celeba").mkdir()
    (root / "celeba" / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = rf"to read {root}/celeba/\*.parquet, pip install pyarrow"
    with pytest.raises(FileNotFoundError, match=text):
        data.load("celeba")


def test_a_folder_of_images_goes_before_parquet_files(root, folder):
    (root / "celeba").mkdir()
    (root / "celeba" / "train.parquet").write_bytes(b"")
    assert len(data.load("celeba", size=32).train) == 36


# Labelled Faces in the Wild

PEOPLE = {f"Person_{i:02d}": 1 + i % 3 for i in range(20)}  # and how many photographs of each


def write_lfw(home):
    """What scikit-learn unpacks: lfw_home/lfw_funneled/NAME/NAME_0001.jpg, of 250 x 250."""
    for person, count in PEOPLE.items():
        folder = home / "lfw_home" / "lfw_funneled" / person
        folder.mkdir(parents=True)
        for i in range(count):
            photograph(100 * i + int(person[-2:]), 250, 250).save(
                folder / f"{person}_{i + 1:04d}.jpg", quality=90
            )
    (home / "lfw_home" / "lfw_funneled" / "pairs.txt").write_text("10 300")


def lfw_pictures(home, people, size):
    """The middle square of 160 x 160 pixels, 10 higher, shrunk by Pillow."""
    paths = [path for person in people for path in sorted(home.rglob(f"{person}/*.jpg"))]
    squares = [
        Image.open(p).resize((size, size), Image.Resampling.BILINEAR, box=(45, 35, 205, 195))
        for p in paths
    ]
    return np.stack([np.asarray(square).transpose(2, 0, 1) for square in squares])


def fake_fetch(monkeypatch, outcome):
    """scikit-learn's downloader replaced by outcome(data_home=...); returns what was asked."""
    asked = []

    def fetch_lfw_people(**options):
        asked.append(options)
        outcome(options["data_home"])

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch_lfw_people)
    monkeypatch.setenv("FLOWLIB_FAST", "0")
    return asked


@pytest.mark.parametrize("size", [64, 32])
def test_lfw_is_fetched_once_and_nobody_is_in_both_parts(root, monkeypatch, size):
    asked = fake_fetch(monkeypatch, write_lfw)
    faces = data.load("lfw", size=size)
    assert [options["data_home"] for options in asked] == [root]
    people = list(PEOPLE)
    assert np.array_equal(faces.train, lfw_pictures(root, people[:18], size))
    assert np.array_equal(faces.test, lfw_pictures(root, people[18:], size))
    assert (faces.name, faces.title) == ("lfw", "Labelled Faces in the Wild")
    assert faces.shape == (3, size, size) and faces.attributes == ()
    assert faces.train_labels.shape == (len(faces.train), 0)
    other = data.load("lfw", size=96 - size, limit=2)
    assert len(asked) == 1 and len(other.train) == len(other.test) == 2
    shutil.rmtree(root / "lfw_home")
    assert equal(faces, data.load("lfw", size=size)) and len(asked) == 1


def test_lfw_that_lies_in_a_read_only_root_is_prepared_in_the_cache(root, tmp_path):
    write_lfw(root)
    root.chmod(0o555)
    assert len(data.load("lfw", size=32).train) == sum(list(PEOPLE.values())[:18])
    assert names(tmp_path / "cache" / "flowlib") == ["lfw_32"]
    root.chmod(0o755)


def test_an_empty_folder_of_lfw_is_refused(root):
    (root / "lfw_home" / "lfw_funneled").mkdir(parents=True)
    with pytest.raises(ValueError, match="lfw_funneled has 0 training and 0 test images"):
        data.load("lfw")


def test_lfw_is_left_alone_in_fast_mode(root, monkeypatch):
    asked = fake_fetch(monkeypatch, write_lfw)
    monkeypatch.setenv("FLOWLIB_FAST", "1")
    with pytest.raises(FileNotFoundError, match="downloading failed: FLOWLIB_FAST=1 forbids it"):
        data.load("lfw")
    assert asked == [] and names(root) == []


ERRORS = [urllib.error.URLError("Name or service not known"), http.client.IncompleteRead(b"", 5)]
ERRORS += [OSError(errno.ENOSPC, "No space left on device")]


@pytest.mark.parametrize("error", ERRORS, ids=["no network", "cut short", "disk full"])
def test_when_lfw_cannot_be_had_the_error_says_what_to_do(root, monkeypatch, error):
    def fails(home):
        raise error

    fake_fetch(monkeypatch, fails)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("lfw")
    assert str(caught.value) == (
        f"Labelled Faces in the Wild is not there, and downloading failed: {error}. Connect to "
        f"the network; or put scikit-learn's lfw_home into {root}; or take "
        'data.load("lfw", standin=True): faces in the same shape.'
    )
    with pytest.warns(UserWarning, match='"faces" stands in for Labelled Faces in the Wild'):
        assert data.load("lfw", size=32, limit=5, standin=True).standin_for == "lfw"


# Procedural faces


@pytest.mark.parametrize("size", [64, 32])
def test_faces_are_those_of_draw_faces_and_stand_in_for_celeba(root, size):
    faces = data.load("faces", size=size, limit=40)
    for seed, split in enumerate(("train", "test")):
        expected, attributes = data.draw_faces(40, size, seed)
        assert torch.equal(getattr(faces, split), expected)
        assert torch.equal(getattr(faces, f"{split}_labels"), attributes)
    assert faces.attributes == data.ATTRIBUTES
    assert (faces.name, faces.title) == ("faces", "procedural faces")
    assert names(root) == [f"faces_{size}_first_40"]
    text = '"faces" stands in for CelebA, .* numbers that follow are not CelebA\'s'
    with pytest.warns(UserWarning, match=text) as caught:
        standin = data.load("celeba", size=size, limit=40, standin=True)
    assert caught[0].filename == __file__
    assert standin.title == "procedural faces, a stand-in for CelebA"
    assert equal(faces, standin) and (standin.name, standin.standin_for) == ("faces", "celeba")


def test_there_are_20_000_faces_and_2_000_to_test(root, monkeypatch):
    def blank(n, size, seed):
        labels = torch.zeros(n, len(data.ATTRIBUTES), dtype=torch.uint8)
        return torch.zeros(n, 3, size, size, dtype=torch.uint8), labels

    monkeypatch.setattr(images.faces, "draw_faces", blank)
    faces = data.load("faces", size=32)
    assert faces.train.shape == (20_000, 3, 32, 32) and faces.test_labels.shape == (2_000, 7)
    monkeypatch.setattr(images.faces, "draw_faces", None)
    assert len(data.load("faces", size=32, limit=500).train) == 500 and names(root) == ["faces_32"]


def test_no_stand_in_where_there_are_images(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("celeba", size=32, standin=True).name == "celeba"


def test_a_prepared_folder_holds_the_names_of_the_attributes(root, folder):
    write_attributes(root, ".csv")
    data.load("celeba", size=32)
    assert json.loads((root / "celeba_32" / "attributes.json").read_text()) == COLUMNS
