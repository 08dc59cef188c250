"""CelebA from its aligned JPEGs: read beside its lists, then cropped, shrunk and written so that a stopped build goes on.

CelebA: Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild" (2015). Crop and 64 x 64: Real NVP, section 4.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .npy import append

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FOLDERS = [
    Path(outer, inner)
    for outer in ("", "celeba")
    for inner in ("img_align_celeba", "img_align_celeba/img_align_celeba")
]
CROP, CHUNK = 148, 1_000


def survey(root):
    """What there is to prepare: the folder of images, the names of the attributes, and {split: (file names, labels (N, A))}.

    Any folder of .jpg, .jpeg or .png files called img_align_celeba will do: in the root, one folder deeper (as Kaggle's
    archive has it) or in celeba/. list_eval_partition and list_attr_celeba, .txt or .csv, are taken from that folder or one
    above it. The validation images come last in "train": `fit(validation=19_867)` holds them out. Without a partition
    the last tenth of the files by name is "test"; without attributes A is 0.

    Raises FileNotFoundError where there are no images, ValueError for lists that are damaged or lack an image.
    """
    folder, files = next(
        ((root / f, files) for f in FOLDERS if (files := image_files(root / f))), (None, [])
    )
    if not files:
        raise FileNotFoundError(
            f"there are no images in {root / FOLDERS[0]}. Make that folder and put CelebA's aligned JPEGs into it "
            f"(img_align_celeba.zip, with list_eval_partition.txt and list_attr_celeba.txt beside it, from {HOME}; any aligned "
            'faces will do); or take data.load("celeba", standin=True): procedural faces of the same shape.'
        )
    attributes, labels = read_list("list_attr_celeba", {"-1": 0, "1": 1}, folder, root, files) or (
        [],
        dict.fromkeys(files, b""),
    )
    _, parts = read_list("list_eval_partition", {"0": 0, "1": 1, "2": 2}, folder, root, files) or (
        [],
        None,
    )
    if parts:
        train, test = (
            sorted((f for f in files if parts[f] < b"\2"), key=parts.get),
            [f for f in files if parts[f] == b"\2"],
        )
    else:
        cut = min(len(files) * 9 // 10, len(files) - 1)
        train, test = files[:cut], files[cut:]
    if not (train and test):
        raise ValueError(
            f"{folder} has {len(train)} training and {len(test)} test images: there must be some of each"
        )

    def table(files):
        return np.frombuffer(b"".join(labels[f] for f in files), np.uint8).reshape(
            len(files), len(attributes)
        )

    return folder, attributes, {"train": (train, table(train)), "test": (test, table(test))}


def image_files(folder):
    """The names of the images in a folder, sorted; none if there is no such folder. Hidden files don't count."""
    names = (
        sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        if folder.is_dir()
        else []
    )
    return [
        name
        for name in names
        if name.lower().endswith((".jpg", ".jpeg", ".png")) and not name.startswith(".")
    ]


def read_list(name, codes, folder, root, files):
    """The columns of one of CelebA's lists and {image: its values as bytes}, or None where there is no such list."""
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(root)]
    path = next(
        (
            p
            for place in places
            for end in (".txt", ".csv")
            if (p := place / (name + end)).is_file()
        ),
        None,
    )
    if path is None:
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = filter(None, csv.reader(file) if path.suffix == ".csv" else map(str.split, file))
            count, columns = None, ["partition"]
            if path.suffix == ".csv":
                columns = next(rows)[1:]
            elif name == "list_attr_celeba":
                (count,), columns = next(rows), next(rows)
            table = {
                image: bytes(codes[value.strip()] for value in values) for image, *values in rows
            }
        if count and int(count) != len(table):
            raise ValueError(f"{len(table)} lines where it says {count}")
        wrong = next(
            (image for image, values in table.items() if len(values) != len(columns)), None
        )
        if wrong:
            raise ValueError(f"{len(table[wrong])} values for {wrong}, and {len(columns)} columns")
    except (ValueError, KeyError, StopIteration, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); get it anew, or move it away to do without"
        ) from error
    missing = [image for image in files if image not in table]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(files)} images in {folder}, the first is {missing[0]}"
        )
    return columns, table


def picture(path, size):
    """One image as uint8 (3, size, size): the authors' square, shrunk and anti-aliased.

    For CelebA's 178 x 218 that is rows 40 to 188 and columns 15 to 163, and the same in proportion for aligned images of
    another size; of other shapes the middle square of the same share of the shorter side. Pillow's bilinear filter averages
    over all the pixels that it merges; grey becomes RGB.
    """
    from PIL import Image

    with Image.open(path) as image:
        box = crop_box(*image.size)
        square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square).transpose(2, 0, 1)


def crop_box(W, H):
    """Left, top, right and bottom of the square that is kept, in (fractions of) pixels."""
    scale = min(W, H) / 178
    aligned = abs(W / H - 178 / 218) < 0.01
    left, top = (
        (15 * scale, 40 * scale) if aligned else ((W - CROP * scale) / 2, (H - CROP * scale) / 2)
    )
    return left, top, left + CROP * scale, top + CROP * scale


def picture_or_reason(path, size):
    """The picture, or in words why the file holds none. A file that the system does not hand over is an error all the same."""
    try:
        return picture(path, size)
    except Exception as error:  # broken images make Pillow raise nearly anything
        if getattr(error, "errno", None):
            raise OSError(f"{path} could not be read ({error}); load again to go on") from error
        return " ".join(str(error).split())


def prepare(found, final, size, limit):
    """Write what `survey` has found into the folder `final`: all of it, or the first `limit` images of each split.

    Images are decoded in parallel, a thousand at a time, in a hidden folder beside `final`, which is moved to its place in
    one step. A build that was stopped, killed even, goes on where it was if the list of files is still the same. Of
    several processes one builds and the others wait. Unreadable images are left out; a warning names them.

    Raises ValueError if no image of a split can be read, OSError where the disk fails.
    """
    from filelock import FileLock

    work = final.with_name(f".{final.name}-building")
    lock = Path(f"{work}.lock")
    with FileLock(lock):
        if not final.exists():
            skipped = build(found, work, size, limit)
            os.rename(work, final)
            if skipped:
                some = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:5])
                text = f"{len(skipped)} unreadable images in {found[0]} were left out: {some}{', ...' if len(skipped) > 5 else ''}"
                warnings.warn(text, stacklevel=5)
    with contextlib.suppress(OSError):
        lock.unlink()  # whoever waited for it finds `final`


def build(found, work, size, limit):
    """Fill the folder `work`, as far as that is not done yet, and return {unreadable image: reason}."""
    folder, attributes, splits = found
    record = work / "record.json"
    contents = [
        [names, [os.path.getsize(folder / name) for name in names], labels.tobytes().hex()]
        for names, labels in splits.values()
    ]
    plan = hashlib.sha256(json.dumps([attributes, contents]).encode()).hexdigest()
    state = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(record.read_text())
    if state.get("plan") != plan:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "attributes.json").write_text(json.dumps(attributes))
        state = {
            "plan": plan,
            "skipped": {},
            "train": [0, 0],
            "test": [0, 0],
        }  # images looked at, images kept
    total = sum(min(len(names), limit or len(names)) for names, _ in splits.values())
    bar = tqdm(
        total=total,
        initial=state["train"][1] + state["test"][1],
        desc="preparing CelebA",
        unit=" images",
    )
    with bar, ThreadPoolExecutor() as pool:
        for split, (names, labels) in splits.items():
            seen, kept = state[split]
            while seen < len(names) and kept < (limit or len(names)):
                chunk = slice(seen, seen + min(CHUNK, (limit or len(names)) - kept))
                results = list(
                    pool.map(lambda name: picture_or_reason(folder / name, size), names[chunk])
                )
                bad = {
                    name: result
                    for name, result in zip(names[chunk], results)
                    if isinstance(result, str)
                }
                good = np.array([not isinstance(result, str) for result in results])
                images = np.array(
                    [result for result in results if not isinstance(result, str)], np.uint8
                ).reshape(-1, 3, size, size)
                append(work / f"{split}_images.npy", images, kept)
                append(work / f"{split}_labels.npy", labels[chunk][good], kept)
                seen, kept = seen + len(results), kept + len(images)
                state = {**state, split: [seen, kept], "skipped": state["skipped"] | bad}
                record.with_suffix(".new").write_text(json.dumps(state))
                os.replace(record.with_suffix(".new"), record)
                bar.update(len(images))
            if not kept:
                shutil.rmtree(work)
                reason = state["skipped"][names[0]]
                raise ValueError(
                    f"none of the {seen} images of the {split} split in {folder} can be read; {names[0]}: {reason}"
                )
    return state["skipped"]
