"""Explorers without a kernel: each value of their slider drawn ahead, into one picture."""

import html
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from flowlib import checkpoints, data, widgets

BOX = ((-1.5, 2.5), (-1.1, 1.6))  # as the notebooks have it
FRAMES, COLUMNS = 28, 7


def layers_of_the_flow(points):
    """Notebooks 00 and 02: the shipped moons flow, layer by layer."""
    alt = (
        "The two moons, coloured from left to right, on a mesh of lines. With every layer the mesh "
        "bends more and the moons are pulled apart, until they are halves of one round cloud."
    )
    return widgets.explore_layers(checkpoints.load("moons"), points, BOX), "layer", alt


TWINS = {  # by page, and by the name on the last line of the explorer's cell
    ("notebooks/00_start_here", "explorer"): lambda: layers_of_the_flow(
        checkpoints.load("moons").sample(1_500, seed=0)
    ),
    ("notebooks/02_two_moons", "explorer"): lambda: layers_of_the_flow(
        data.TwoMoons(noise=0.05).sample(1_500, seed=5)
    ),
}


def draw(explorer, control: str) -> tuple[Image.Image, list[str], list[float]]:
    """All frames in one picture, row by row, their readouts, and the control's values."""
    slider = explorer.controls[control]
    count = min(FRAMES, 1 + round((slider.max - slider.min) / slider.step))
    steps = np.linspace(slider.min, slider.max, count)
    values = [round(round(v / slider.step) * slider.step, 6) for v in steps]
    width, height = int(explorer.picture.width), int(explorer.picture.height)
    sprite = Image.new("RGB", (COLUMNS * width, -(-count // COLUMNS) * height))
    readouts = []
    for i, value in enumerate(values):
        slider.value = value
        frame = Image.open(io.BytesIO(explorer.picture.value))
        sprite.paste(frame, (i % COLUMNS * width, i // COLUMNS * height))
        readouts.append(explorer.readout.value)
    return sprite, readouts, values


def twin(page: str, name: str, folder: Path) -> str:
    """HTML of a slider over the frames; the picture goes to `folder`."""
    explorer, control, alt = TWINS[page, name]()
    sprite, readouts, values = draw(explorer, control)
    file = f"{Path(page).name}_{name}.webp"
    sprite.save(folder / file, quality=65)
    width, height = int(explorer.picture.width), int(explorer.picture.height)
    label = html.escape(explorer.controls[control].description)
    frames = html.escape(json.dumps({"values": values, "readouts": readouts, "columns": COLUMNS}))
    rows = -(-len(values) // COLUMNS)
    return f"""
<figure class="twin" data-frames="{frames}">
<div class="frame" role="img" aria-label="{html.escape(alt)}"
 style="background-image: url('../_static/{file}'); background-size: {100 * COLUMNS}% {100 * rows}%;
 aspect-ratio: {width} / {height}; max-width: {width}px"></div>
<label>{label} <input type="range" min="0" max="{len(values) - 1}" step="1" value="0"></label>
<output aria-live="polite">{readouts[0]}</output>
<figcaption>The slider of this cell with its pictures drawn ahead. Run the cell in JupyterLab
for every value between them.</figcaption></figure>"""
