"""What all explorers are: controls, a line of numbers, and a picture that follows them."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anywidget
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from traitlets import Any, Bytes, Dict, HasTraits, Int, List, Unicode, observe, validate

from ..flow import Flow

__all__ = ["Control", "Explorer", "axes_row", "require_flow", "slider"]

HERE = Path(__file__).parent
PREDICTIONS = {}  # question -> what was typed below it


class Control(HasTraits):
    """A slider, with `min`, `max` and `step`, or a choice, with `options`; and its `value`."""

    value = Any()

    def __init__(self, description: str, value, **look):
        self.description, self.look = description, {"description": description, **look}
        vars(self).update(look)
        super().__init__(value=value)

    @validate("value")
    def _fit(self, proposal):
        value = proposal["value"]
        if "step" in self.look:
            return type(self.step)(min(self.max, max(self.min, value)))
        if value not in self.options:
            raise ValueError(f"{self.description} is one of {self.options}, got {value!r}")
        return value


def slider(label: str, value, low, high, step, play=None) -> Control:
    """A slider over integers if `step` is one, otherwise over floats; `play` adds a button that
    moves it by so much ten times a second."""
    return Control(label, value, min=low, max=high, step=step, play=play)


class Explorer(anywidget.AnyWidget):
    """A picture, the controls that move it, and a line that puts it into numbers.

    `update` takes the value of every control by name, changes the artists `moving`, and returns
    (state, text). The rest of `figure` is drawn once, below them, all at twice the resolution.
    While one update is computed, the page holds the events of a dragged slider back, and then
    sends the newest alone. explorer.js shows it all.

    controls   name -> `Control`; setting its `value` draws before the next statement runs
    state      name -> what the picture shows, tensors and numbers
    readout    .value: the line
    picture    .value: the PNG, .width and .height on the page
    alt        what the picture shows, for those who cannot see it: the given words and the line

    >>> figure, _ = axes_row(200, 100, 1)
    >>> square = lambda n: ({"square": n**2}, f"n² = {n**2}")
    >>> w = Explorer({"n": slider("n", 1, 0, 5, 1)}, figure, [], square, "An empty picture.")
    >>> w.controls["n"].value = 3
    >>> w.state, w.readout.value, w.alt
    ({'square': 9}, 'n² = 9', 'An empty picture. n² = 9')
    """

    _esm, _css = HERE / "explorer.js", HERE / "explorer.css"
    _controls, _values, _start = (Dict().tag(sync=True) for _ in range(3))
    _size, _picture, _drawn = List().tag(sync=True), Bytes().tag(sync=True), Int().tag(sync=True)
    _readout, alt, question, answer, prediction = (Unicode().tag(sync=True) for _ in range(5))

    def __init__(self, controls: dict, figure: Figure, moving: list, update: Callable, alt: str):
        super().__init__()
        self.controls, self.state, self._moving, self._update = controls, {}, moving, update
        self._shows, self._asleep = alt, False
        for artist in moving:
            artist.set_animated(True)  # left out when the background is drawn
        width, height = (round(side) for side in figure.bbox.size)
        figure.set_dpi(2 * figure.dpi)
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)
        self.picture = SimpleNamespace(value=b"", width=width, height=height)
        self.readout, self._size = SimpleNamespace(value=""), [width, height]
        self._controls = {name: control.look for name, control in controls.items()}
        self._start = {name: control.value for name, control in controls.items()}
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")

    def ask(self, question: str, answer: str = "") -> "Explorer":
        """Put a question above, with room for a prediction, which stays when the cell is run again,
        and below its answer, folded."""
        with self.hold_sync():
            self.question, self.answer = question, answer
            self.prediction = PREDICTIONS.get(question, "")
        return self

    @observe("prediction")
    def _keep(self, change):
        PREDICTIONS[self.question] = change["new"]

    @observe("_values")
    def _moved_on_the_page(self, change):
        if change["new"] != {name: control.value for name, control in self.controls.items()}:
            self._asleep = True
            for name, value in change["new"].items():
                self.controls[name].value = value
            self._asleep = False
            self.redraw()

    @torch.no_grad()
    def redraw(self, change=None) -> None:
        """Compute the state for the controls as they stand, and draw it; an error is shown, too."""
        if self._asleep:
            return
        values = {name: control.value for name, control in self.controls.items()}
        try:
            state, text = self._update(**values)
            self.state.update(state)
            self._canvas.restore_region(self._background)
            pixels = np.asarray(self._canvas.buffer_rgba())
            for artist in self._moving:
                draw(artist, pixels)
            self.picture.value = png(pixels)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise
        finally:
            line = self.readout.value = re.sub(r"-(?=[\d.]|inf)", "−", text)
            with self.hold_sync():  # one message
                self._values, self._picture, self._readout = values, self.picture.value, line
                self.alt, self._drawn = f"{self._shows} {line}", self._drawn + 1

    def _repr_mimebundle_(self, **kwargs):
        """The live explorer; and its picture, for where there is no kernel."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        data |= {"text/plain": self.alt, "image/png": base64.b64encode(self._picture).decode()}
        caption = f"**{self.question}** Run this cell to move it.".replace("**** ", "")
        look = {"alt": self.alt, "width": self.picture.width, "height": self.picture.height}
        return data, {**metadata, "image/png": {**look, "caption": caption}}


def draw(artist: Artist, pixels: np.ndarray) -> None:
    """Draw an artist of a figure whose pixels (H, W, 4) these are. An image of uint8 (h, w, 3) that
    fills its axes is drawn as blocks: matplotlib would first resample it in float32, and take most
    of an update."""
    if not is_plain(artist):
        return artist.axes.draw_artist(artist)
    image, box = artist.get_array(), artist.get_window_extent()
    y, x = len(pixels) - np.array([box.y1, box.y0]), np.array([box.x0, box.x1])
    (top, bottom), (left, right) = y.round().astype(int), x.round().astype(int)
    blocks = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    pixels[top:bottom, left:right, :3] = blocks


def is_plain(artist: Artist) -> bool:
    """Whether this is an opaque image of uint8 (h, w, 3), its first row on top, all of it shown."""
    if not isinstance(artist, AxesImage) or artist.get_alpha() is not None:
        return False
    image, limits = artist.get_array(), [*artist.axes.get_xlim(), *artist.axes.get_ylim()]
    upright = artist.origin == "upper" and np.allclose(limits, artist.get_extent())
    return upright and image.dtype == np.uint8 and image.shape[2:] == (3,)


def png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels (H, W, 4), without alpha."""
    picture = Image.frombuffer("RGBA", pixels.shape[1::-1], pixels).convert("RGB")
    picture.save(file := io.BytesIO(), "png", compress_level=1)
    return file.getvalue()


def axes_row(width: int, height: int, columns, **margins):
    """A figure of so many pixels, and its axes: a row of so many, or as matplotlib's mosaic has it,
    "0012;0034" for a large one beside two by two. A layout engine would run at every draw."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="none")
    figure.subplots_adjust(**margins)
    mosaic = [range(columns)] if isinstance(columns, int) else columns
    return figure, list(figure.subplot_mosaic(mosaic).values())


def require_flow(name: str, flow: Flow, images: bool) -> None:
    """ValueError for what is no flow, or not one of images, or else of points in the plane."""
    if not isinstance(flow, Flow):
        raise ValueError(f"{name} takes a Flow, got {type(flow).__name__}")
    fits = flow.dequantize is not None and len(flow.shape) == 3 if images else flow.shape == (2,)
    if not fits:
        kind = "uint8 images (C, H, W)" if images else "points in the plane, shape (2,)"
        raise ValueError(f"{name} is for flows of {kind}, got one of shape {tuple(flow.shape)}")
