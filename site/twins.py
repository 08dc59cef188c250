"""Explorers without a kernel: what their controls can show, drawn ahead into build/twins."""

import ast
import html
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import slices
import torch
from PIL import Image
from scipy.ndimage import binary_dilation

from flowlib import plotting
from flowlib.widgets import explorer as live

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS, TWINS = ROOT / "notebooks", ROOT / "build" / "twins"
sys.path.insert(0, str(NOTEBOOKS))  # where the answers below the explorers lie
PIXELS = 8e6  # of one picture of frames, at most
COUNTS = {1: [64], 2: [13, 9]}  # of values, for one control and for two; COUNT each for more
COUNT = 5

# By notebook and name: what is put in place of a long computation, and a word on it.
SHORTER = {
    ("02_two_moons", "explorer_training"): (
        "quick = {'steps': 600, 'seed': 0, 'snapshots': 25, 'progress': False}\n"
        "by_fit = training.fit(models.realnvp_2d(), moons, **quick)",
        "This training was shorter than the chapter's: 600 steps.",
    ),
    ("03_sinusoid", "explorer"): (
        "nice = models.nice_2d()\n"
        "training.fit(nice, wave, steps=400, seed=0, progress=False)\n"
        "runs = {('NICE', 0): (nice, None)}",
        "This flow was trained for 400 steps, fewer than the chapter's.",
    ),
    ("08_celeba", "explorer_attributes"): (
        "faces, small = (data.load('celeba', size=s, limit=600, standin=True) for s in (64, 32))\n"
        "z = flow_32.encode(small.train)\n"
        "marked = {k: labelled(k, len(z)) for k in (SMILE, GLASSES, FAILS)}\n"
        "vectors = {k: z[has].mean(0) - z[~has].mean(0) for k, has in marked.items()}",
        "These directions come from fewer faces than the chapter's.",
    ),
    ("10_flows_for_inference", "explorer"): (
        "x, y = readings(50_000, seed=0)\n"
        "pair = models.realnvp_2d(context_features=1)\n"
        "training.fit(pair, y, context=x, steps=600, seed=0, progress=False)",
        "This flow was trained for 600 steps, fewer than the chapter's.",
    ),
}


def bmp(pixels: np.ndarray) -> bytes:
    """What stands in for an explorer's PNG: a quarter of a twin's time went into packing it."""
    Image.fromarray(pixels).convert("RGB").save(file := io.BytesIO(), "bmp")
    return file.getvalue()


def explorer_of(cell: str) -> str | None:
    """The name of the explorer that a cell shows by its last line, if there is one."""
    last = cell.strip().split("\n")[-1]
    return last if re.fullmatch(r"explorer\w*", last) else None


def build(notebook: str, name: str) -> tuple:
    """A notebook's explorer, by the statements that it needs, and what a reader must know of it."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    end = next(i for i, cell in enumerate(cells) if explorer_of(cell) == name)
    instead, note = SHORTER.get((notebook, name), ("", ""))
    program = slices.needed([*cells[:end], instead, cells[end]], name)
    if not {ast.unparse(s) for s in ast.parse(instead).body} <= {ast.unparse(s) for s in program}:
        raise ValueError(f"{notebook} no longer needs what SHORTER has for its {name}")
    here, space = Path.cwd(), {}
    plotting.use_style()  # this and the next as the set-up cells do
    torch.manual_seed(0)
    try:
        os.chdir(NOTEBOOKS)
        with mock.patch.dict(os.environ, FLOWLIB_FAST="1"):  # short budgets, and no downloads
            exec(compile(ast.Module(program, []), notebook, "exec"), space)
    finally:
        os.chdir(here)
    if any(getattr(value, "is_standin", False) for value in space.values()):
        note += " It was drawn without the real images, from their stand-ins."
    return space[name], note


def values(control, count: int) -> list:
    """All options of a control, or about `count` of its values, with its own and both ends."""
    if hasattr(control, "options"):
        return [o[1] if isinstance(o, tuple) else o for o in control.options]
    last, own = (round((v - control.min) / control.step) for v in (control.max, control.value))
    fewest = max(1, math.ceil(last / (count - 1)))
    even = (s for s in range(fewest, last // 2 + 1) if last % s == own % s == 0)
    chosen = {*range(0, last, next(even, fewest)), own, last}
    return [round(control.min + i * control.step, 6) for i in sorted(chosen)]


class Twin:
    """An explorer's controls, the values of each, and rows of settings. A row moves one control, at
    one setting of those that stay where they are put (`held`); the others are at their start."""

    def __init__(self, explorer):
        self.explorer = explorer
        self.controls = explorer.controls
        counts = COUNTS.get(len(self.controls), [COUNT] * len(self.controls))
        self.values = {k: values(self.controls[k], n) for k, n in zip(self.controls, counts)}
        self.start = {k: c.value for k, c in self.controls.items()}
        menus = [k for k, c in self.controls.items() if hasattr(c, "options")]
        self.held = menus or list(self.controls)[1:][-1:]
        self.moved = [k for k in self.controls if k not in self.held]

    def rows(self):
        """Each row's settings of all controls by name."""
        for setting in itertools.product(*(self.values[k] for k in self.held)):
            at = self.start | dict(zip(self.held, setting))
            for name in self.moved:
                yield [at | {name: value} for value in self.values[name]]

    def show(self, setting: dict) -> tuple[Image.Image, str]:
        """The explorer's picture and readout at a setting of all controls."""
        with mock.patch.object(live, "png", bmp):
            for name, value in setting.items():
                self.controls[name].value = value
        picture = Image.open(io.BytesIO(self.explorer.picture.value)).convert("RGB")
        return picture, self.explorer.readout.value


def cut(frame: np.ndarray, start: np.ndarray, side: int = 16) -> Image.Image:
    """A picture without the blocks that are as in another one: they become transparent. Around the
    rest the colours stay for one block more, so that what lossy compression blurs is not seen."""
    blocks = frame != start
    for axis in (0, 1):
        blocks = np.logical_or.reduceat(blocks, range(0, blocks.shape[axis], side), axis)
    blocks = blocks.any(2)
    near = binary_dilation(blocks, np.ones((3, 3)))
    height, width, _ = frame.shape
    whole = lambda b: b.repeat(side, 0).repeat(side, 1)[:height, :width]  # noqa: E731
    alpha, kept = whole(blocks), whole(near)
    return Image.fromarray(np.dstack([frame * kept[..., None], np.uint8(255 * alpha)]))


def sprite(frames: list[Image.Image], start: Image.Image) -> tuple[Image.Image, int]:
    """One picture of all frames, as sharp as PIXELS allow, and its number of columns. What is as in
    the picture `start` is left out: it lies below."""
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    scale = min(1, math.sqrt(PIXELS / (columns * rows * start.width * start.height)))
    width, height = round(scale * start.width), round(scale * start.height)
    first, *pixels = (np.asarray(frame.resize((width, height))) for frame in [start, *frames])
    whole = Image.new("RGBA", (columns * width, rows * height))
    for i, frame in enumerate(pixels):
        whole.paste(cut(frame, first), (i % columns * width, i // columns * height))
    return whole, columns


def field(label: str, control, shown: list, at: int) -> str:
    """A menu of options, or a slider over values by their number."""
    name = html.escape(control.description or label)
    if hasattr(control, "options"):
        options = "".join(
            f"<option value={i}{' selected' * (i == at)}>{html.escape(str(option))}</option>"
            for i, option in enumerate(shown)
        )
        return f"<label><span>{name}</span> <select>{options}</select></label>"
    slider = f'<input type="range" min="0" max="{len(shown) - 1}" value="{at}">'
    return f"<label><span>{name}</span> {slider} <b></b></label>"


def write(notebook: str, name: str) -> tuple[str, str, str]:
    """Draw a twin: its pictures go to build/twins, and its HTML comes back, after its two names."""
    explorer, note = build(notebook, name)
    twin, stem = Twin(explorer), f"{notebook}_{name}"
    start, readout = twin.show(twin.start)
    alt = getattr(explorer, "alt", "").replace(readout, "").strip()  # of the picture, in words
    start.save(TWINS / f"{stem}.webp", quality=85)
    rows = []
    for i, settings in enumerate(twin.rows()):
        frames, readouts = zip(*map(twin.show, settings))
        picture, columns = sprite(frames, start)
        quick = {"quality": 60, "method": 2}  # half the time of method 4, files 7 % larger
        picture.save(TWINS / f"{stem}_{i}.webp", exact=True, **quick)
        rows.append({"readouts": readouts, "columns": columns})
    names = list(twin.controls)
    state = {
        "alt": alt,
        "pictures": f"../_static/{stem}_",
        "rows": rows,
        "values": [[str(v).replace("-", "−") for v in twin.values[k]] for k in names],
        "start": [twin.values[k].index(twin.start[k]) for k in names],
        "held": [names.index(k) for k in twin.held],
        "moved": [names.index(k) for k in twin.moved],
    }
    fields = "".join(
        field(k, twin.controls[k], twin.values[k], at) for k, at in zip(names, state["start"])
    )
    if len(twin.moved) > 1:
        moved = ", ".join(html.escape(twin.controls[k].description) for k in twin.moved)
        note = f"Here only one of these is moved, and sets the others back: {moved}. {note}"
    question, answer = (html.escape(getattr(explorer, k, "") or "") for k in ("question", "answer"))
    width, height = int(explorer.picture.width), int(explorer.picture.height)
    markup = f"""
<figure class="twin" data-twin="{html.escape(json.dumps(state, ensure_ascii=False))}">
{f'<p class="question">{question}</p>' if question else ""}
<div class="frame" style="max-width: {width}px"><img src="../_static/{stem}.webp"
 width="{width}" height="{height}" alt="{html.escape(alt)}"><div class="moves"></div></div>
<div class="controls">{fields}</div>
<output aria-live="polite">{readout}</output>
{f"<details><summary>Show the answer</summary>{answer}</details>" if answer else ""}
<figcaption>What this cell shows, drawn ahead for some values of its controls. Run the cell in
JupyterLab for all of them. {note}</figcaption></figure>"""
    return notebook, name, markup


def explorers() -> list[tuple[str, str]]:
    """Every explorer of the series, by its notebook and its name there."""
    found = []
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            name = explorer_of("".join(cell["source"])) if cell["cell_type"] == "code" else None
            found += [(path.stem, name)] if name else []
    return found


if __name__ == "__main__":
    shutil.rmtree(TWINS, ignore_errors=True)
    TWINS.mkdir(parents=True)
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=[1]) as pool:
        drawn = list(pool.map(write, *zip(*explorers())))
    found = {f"{notebook} {name}": markup for notebook, name, markup in drawn}
    TWINS.with_suffix(".json").write_text(json.dumps(found))
    size = sum(path.stat().st_size for path in TWINS.iterdir())
    print(f"{len(found)} explorers drawn without a kernel, {size / 1e6:.1f} MB in {TWINS}")
