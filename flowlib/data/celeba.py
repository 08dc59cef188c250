"""CelebA from a folder of aligned JPEGs: read beside its lists, cropped, shrunk, and written.

Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild" (2015). The crop and 64 x 64
are those of Real NVP (Dinh, Sohl-Dickstein and Bengio 2017), section 4.1.
"""

import contextlib
import json
import warnings
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm.auto import tqdm

FOLDER, ENDINGS = "img_align_celeba", (".jpg", ".jpeg", ".png")


@contextlib.contextmanager
def sound(path):
    """Turns what damaged files make their readers raise, nearly anything, into a ValueError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None):
            raise  # the system's error
        raise ValueError(f"{path} is damaged ({error!r}); move it away and load again") from error


def survey(root):
    """The folder of images, the attributes, and (names, labels (N, A)) to train on and to test.

    list_attr_celeba and list_eval_partition, .txt or .csv, lie beside the images or above them.
    The validation images come last in "train": `fit(validation=19_867)` holds them out. Without a
    partition the last tenth of the files by name is "test"; without attributes A is 0.
    """
    places = [root / outer / FOLDER / inner for outer in ("", "celeba") for inner in ("", FOLDER)]
    for folder in places:
        paths = (path for path in folder.glob("[!.]*") if path.suffix.lower() in ENDINGS)
        if files := sorted(path.name for path in paths if path.is_file()):
            break
    else:
        raise FileNotFoundError(
            f"there are no images in {places[0]}. Put CelebA's aligned JPEGs into that folder, and "
            "its lists beside it (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; any aligned "
            'faces will do); or take procedural faces by data.load("celeba", standin=True).'
        )
    columns, labels = read_list("list_attr_celeba", {"-1": 0, "1": 1}, folder, root, files)
    parts = read_list("list_eval_partition", {"0": 0, "1": 1, "2": 2}, folder, root, files)[1]
    order, cut = parts[:, :1].argsort(0, kind="stable").ravel(), (parts < 2).sum()
    if not parts.size:
        order, cut = range(len(files)), min(len(files) * 9 // 10, len(files) - 1)
    if not 0 < cut < len(files):
        raise ValueError(f"{folder} has {cut} training and {len(files) - cut} test images")
    files, labels = [files[i] for i in order], labels[order]
    return folder, columns, (files[:cut], labels[:cut]), (files[cut:], labels[cut:])


def read_list(name, codes, folder, root, files):
    """One of CelebA's lists: its columns (A,) and the images' values (N, A); A = 0 without it."""
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(root)]
    paths = [place / (name + end) for place in places for end in (".txt", ".csv")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return [], np.zeros((len(files), 0), np.uint8)
    with sound(path):
        separator = "," if path.suffix == ".csv" else None
        lines = path.read_text("utf-8-sig").splitlines()
        rows = [line.split(separator) for line in lines if line.strip()]
        start = [row[0].lower().endswith(ENDINGS) for row in rows].index(True)
        columns = rows[start - 1][1 - len(rows[start]) :] if start else ["part"]
        table = {image: [codes[v.strip()] for v in values] for image, *values in rows[start:]}
        if missing := [name for name in files if name not in table]:
            raise ValueError(f"{len(missing)} of the images are not in it, first {missing[0]}")
        values = np.array([table[name] for name in files], np.uint8)
        return columns, values.reshape(len(files), len(columns))


def crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the square that is kept, in fractions of pixels.

    Rows 40 to 188 and columns 15 to 163 of CelebA's 178 x 218, and in proportion for aligned
    images of another size; of other shapes the middle square of 148/178 of the shorter side.

    >>> crop_box(178, 218)
    (15.0, 40.0, 163.0, 188.0)
    """
    scale = min(width, height) / 178
    side = 148 * scale
    aligned = abs(width / height - 178 / 218) < 0.01
    left, top = (15 * scale, 40 * scale) if aligned else ((width - side) / 2, (height - side) / 2)
    return left, top, left + side, top + side


def picture(path, size):
    """One JPEG or PNG as uint8 (3, size, size): upright, on white, cropped and averaged."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=["JPEG", "PNG"]) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # greys of 16 bits
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    box = crop_box(*image.size)
    square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square).transpose(2, 0, 1)


def picture_or_reason(path, size):
    """The picture, or in words why the file holds none."""
    try:
        return picture(path, size)
    except Exception as error:  # broken images make Pillow raise nearly anything
        if getattr(error, "errno", None):  # the system did not hand over the file
            raise
        return " ".join(str(error).split()) or repr(error)


def build(place, root, name, size, limit):
    """Write all that `survey` finds, or the first `limit` images of each split, into `place`.

    Unreadable images are left out; a warning names them. Raises ValueError if a split has no other.
    """
    folder, attributes, *splits = survey(root)
    place.mkdir(exist_ok=True)
    (place / "attributes.json").write_text(json.dumps(attributes))
    work, unreadable = place / "unfinished.npy", {}
    for split, (names, labels) in zip(("train", "test"), splits):
        names, good = names[:limit], []
        images = np.lib.format.open_memmap(work, "w+", np.uint8, (len(names), 3, size, size))
        with ThreadPool() as pool:
            results = pool.imap(lambda name: picture_or_reason(folder / name, size), names, 32)
            for i, result in enumerate(tqdm(results, f"preparing CelebA: {split}", len(names))):
                if isinstance(result, str):
                    unreadable[names[i]] = result
                else:
                    images[len(good)] = result
                    good.append(i)
        if not good:
            raise ValueError(f"no {split} image in {folder} can be read: {unreadable[names[0]]}")
        np.save(place / f"{split}_images.npy", images[: len(good)])
        np.save(place / f"{split}_labels.npy", labels[good])
    work.unlink()
    if unreadable:
        some = ", ".join(f"{name} ({why})" for name, why in list(unreadable.items())[:5])
        text = f"{len(unreadable)} unreadable images in {folder} were left out: {some}"
        warnings.warn(text + ", ..." * (len(unreadable) > 5), stacklevel=5)
