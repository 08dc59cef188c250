"""Photographs of faces, cropped and shrunk: CelebA from JPEGs or Parquet files, and LFW.

CelebA: Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild" (2015); the crop and
64 x 64 are those of Real NVP (Dinh, Sohl-Dickstein and Bengio 2017), section 4.1. Labelled Faces
in the Wild: Huang, Ramesh, Berg and Learned-Miller (2007).
"""

import contextlib
import io
import json
import warnings
from itertools import islice
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm.auto import tqdm

FOLDER, ENDINGS = "img_align_celeba", (".jpg", ".jpeg", ".png")
LFW_BOX = (45, 35, 205, 195)  # of 250 x 250: the eyes lie about where CelebA has them


@contextlib.contextmanager
def sound(path):
    """Turns what damaged files make their readers raise, nearly anything, into a ValueError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None):
            raise  # the system's error
        raise ValueError(f"{path} is damaged ({error!r}); move it away and load again") from error


def nine_tenths(n):
    return min(n * 9 // 10, n - 1)


def find_celeba(root):
    """A folder of images with CelebA's lists, or else Parquet files, as a source, a tuple of

    where it lies; N pictures, each a name and a path or an open file; how many of these, from the
    first, are to train on; the names of the attributes; their values (N, A); the crop, if known.
    Without a partition the last tenth by name is "test".
    """
    places = [root / outer / FOLDER / inner for outer in ("", "celeba") for inner in ("", FOLDER)]
    for folder in places:
        paths = (path for path in folder.glob("[!.]*") if path.suffix.lower() in ENDINGS)
        if files := sorted(path.name for path in paths if path.is_file()):
            return from_folder(folder, files, root)
    hub = root / "celeba"
    if files := {str(path.relative_to(hub)): path for path in hub.rglob("[!.]*.parquet")}:
        return from_parquet(hub, files)
    raise FileNotFoundError(
        f"there are no images in {places[0]}. Put CelebA's aligned JPEGs into that folder, and "
        "its lists beside it (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; any aligned "
        f"faces will do); or a copy as Parquet files into {hub}; or take procedural faces by "
        'data.load("celeba", standin=True).'
    )


def from_folder(folder, files, root):
    """Lists, .txt or .csv, lie beside the images or above; those for validation come last."""
    columns, labels = read_list("list_attr_celeba", {"-1": 0, "1": 1}, folder, root, files)
    parts = read_list("list_eval_partition", {"0": 0, "1": 1, "2": 2}, folder, root, files)[1]
    order, cut = parts[:, :1].argsort(0, kind="stable").ravel(), (parts < 2).sum()
    if not parts.size:
        order, cut = np.arange(len(files)), nine_tenths(len(files))
    pictures = ((files[i], folder / files[i]) for i in order)
    return folder, pictures, cut, columns, labels[order], None


def read_list(name, codes, folder, root, files):
    """One of CelebA's lists: its columns (A,) and the images' values (N, A); A = 0 without it."""
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(root)]
    paths = [place / (name + end) for place in places for end in (".txt", ".csv")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return [], np.zeros((len(files), 0), np.uint8)
    with sound(path):
        lines = path.read_text("utf-8-sig").replace(",", " ").splitlines()
        rows = [line.split() for line in lines if line.strip()]
        start = [row[0].lower().endswith(ENDINGS) for row in rows].index(True)
        columns = rows[start - 1][1 - len(rows[start]) :] if start else ["part"]
        table = {image: [codes[value] for value in values] for image, *values in rows[start:]}
        if missing := [name for name in files if name not in table]:
            raise ValueError(f"{len(missing)} of the images are not in it, first {missing[0]}")
        values = np.array([table[name] for name in files], np.uint8)
        return columns, values.reshape(len(files), len(columns))


def from_parquet(hub, files):
    """Parquet files by their names, of which "test" and "val" say what they are for.

    A column of bytes, or of {bytes, path}, holds the images; columns of 0 and 1, or of -1 and 1,
    are attributes.
    """
    try:
        from pyarrow import dataset
    except ImportError as error:
        raise FileNotFoundError(f"to read {hub}/*.parquet, pip install pyarrow") from error
    names = sorted(files, key=lambda name: ("test" in name, "val" in name, name))
    with sound(hub):
        every = dataset.dataset([files[name] for name in names])
        kinds = {field.name: str(field.type) for field in every.schema}
        image = [name for name, kind in kinds.items() if "binary" in kind]
        if len(image) != 1:
            raise ValueError(f"one column must hold bytes, got {kinds}")
        whole = [name for name, kind in kinds.items() if kind.startswith(("bool", "int", "uint"))]
        table = every.to_table(columns=whole)
        sizes = [part.count_rows() for part in every.get_fragments()]
    values = {name: set(table[name].unique().to_pylist()) for name in whole}
    columns = [name for name in whole if values[name] <= {0, 1} or values[name] <= {-1, 1}]
    labels = np.array([table[name].to_numpy() > 0 for name in columns], np.uint8)

    def pictures():
        with sound(hub):
            batches = every.to_batches(columns=image, batch_size=256)
            for i, cell in enumerate(cell for batch in batches for cell in batch[0].to_pylist()):
                yield f"row {i}", io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)

    N = sum(sizes)
    cut = sum(size for name, size in zip(names, sizes) if "test" not in name)
    cut = nine_tenths(N) if cut == N else cut
    return hub, pictures(), cut, columns, labels.reshape(len(columns), N).T, None


def find_people(folder):
    """LFW as scikit-learn unpacks it, a folder of JPEGs per person, in alphabetical order.

    The last tenth of the people are "test": nobody is in both parts.
    """
    paths = sorted(folder.glob("*/[!.]*.jpg"))
    people = sorted({path.parent for path in paths})
    test = {*people[nine_tenths(len(people)) :]}
    cut = sum(path.parent not in test for path in paths)
    pictures = ((path.name, path) for path in paths)
    return folder, pictures, cut, [], np.zeros((len(paths), 0), np.uint8), LFW_BOX


def crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The square that is kept, in fractions of pixels: left, top, right and bottom.

    CelebA's rows 40 to 188 and columns 15 to 163 of 178 x 218, and in proportion for other sizes;
    of other shapes the middle square of 148/178 of the shorter side.

    >>> crop_box(178, 218)
    (15.0, 40.0, 163.0, 188.0)
    """
    scale = min(width, height) / 178
    side = 148 * scale
    aligned = abs(width / height - 178 / 218) < 0.01
    left, top = (15 * scale, 40 * scale) if aligned else ((width - side) / 2, (height - side) / 2)
    return left, top, left + side, top + side


def picture(file, size, box=None):
    """One JPEG or PNG as uint8 (3, size, size): upright, on white, cropped and averaged."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=["JPEG", "PNG"]) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # greys of 16 bits
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image, box = image.convert("RGB"), box or crop_box(*image.size)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square).transpose(2, 0, 1)


def decode(pictures, size, box):
    """Names and pictures, or in words why there is none, in order, a few hundred at a time."""

    def one(named):
        try:
            return named[0], picture(named[1], size, box)
        except Exception as error:  # broken images make Pillow raise nearly anything
            if getattr(error, "errno", None):  # the system did not hand over the file
                raise
            return named[0], " ".join(str(error).split()) or repr(error)

    with ThreadPool() as pool:
        while some := list(islice(pictures, 512)):
            yield from pool.imap(one, some, 16)


def write(folder, source, name, size, limit):
    """Write a source's pictures, or the first `limit` of each split, as prepared sets are.

    Unreadable ones are left out; a warning names them. Raises ValueError if a split has no other.
    """
    place, pictures, cut, attributes, labels, box = source
    n, at, unreadable, work = len(labels), 0, [], folder / "unfinished.npy"
    if not 0 < cut < n:
        raise ValueError(f"{place} has {cut} training and {n - cut} test images")
    folder.mkdir(exist_ok=True)
    (folder / "attributes.json").write_text(json.dumps(attributes))
    for split, start, stop in (("train", 0, cut), ("test", cut, n)):
        stop = min(stop, start + (limit or n))
        chosen, at, good = islice(pictures, start - at, stop - at), stop, []
        images = np.lib.format.open_memmap(work, "w+", np.uint8, (stop - start, 3, size, size))
        decoded = tqdm(decode(chosen, size, box), f"preparing {name}: {split}", stop - start)
        for i, (file, result) in enumerate(decoded, start):
            if isinstance(result, str):
                unreadable.append(f"{file} ({result})")
            else:
                images[len(good)] = result
                good.append(i)
        if not good:
            raise ValueError(f"no {split} image in {place} can be read: {result}")
        np.save(folder / f"{split}_images.npy", images[: len(good)])
        np.save(folder / f"{split}_labels.npy", labels[good])
    work.unlink()
    if unreadable:
        some = ", ".join([*unreadable[:5], *["..."] * (len(unreadable) > 5)])
        text = f"{len(unreadable)} unreadable images in {place} were left out: {some}"
        warnings.warn(text, stacklevel=6)
