"""What all explorers are: controls, a line of numbers, and a picture that follows them."""

import html
import io
from collections.abc import Callable

import ipywidgets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..flow import Flow

__all__ = ["Explorer", "LOOK", "axes_row", "require_flow", "slider"]

LOOK = {"style": {"description_width": "8.5em"}, "layout": {"width": "auto"}}


class Explorer(ipywidgets.VBox):
    """Controls, a line that puts the picture into numbers, and a picture of fixed size.

    `update` takes the value of every control by name, changes the artists `moving`, and returns
    (state, text). The rest of `figure` is drawn once, below them. While one update is computed,
    JupyterLab holds the events of a dragged slider back, and then sends the newest alone.

    controls   name -> ipywidgets control; setting its `value` draws before the next statement runs
    state      name -> what the picture shows, tensors and numbers
    readout    the line, `ipywidgets.HTML`
    picture    `ipywidgets.Image`, a PNG

    >>> figure, _ = axes_row(200, 100, 1)
    >>> square = lambda n: ({"square": n**2}, f"n² = {n**2}")
    >>> w = Explorer({"n": slider("n", 1, 0, 5, 1)}, figure, [], square)
    >>> w.controls["n"].value = 3
    >>> w.state, w.readout.value
    ({'square': 9}, 'n² = 9')
    """

    def __init__(self, controls: dict, figure: Figure, moving: list, update: Callable):
        super().__init__(layout={"max_width": "800px"})
        self.controls, self.state, self._moving, self._update = controls, {}, moving, update
        for artist in moving:
            artist.set_animated(True)  # left out when the background is drawn
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)
        width, height = self._canvas.get_width_height()
        self.readout = ipywidgets.HTML(layout={"min_height": "3em", "margin": "0 0 0 4px"})
        fit = {"max_width": "calc(100% - 4px)", "height": "auto"}
        self.picture = ipywidgets.Image(format="png", width=width, height=height, layout=fit)
        columns = {"grid_template_columns": "repeat(auto-fit, minmax(330px, 1fr))"}
        grid = ipywidgets.GridBox(list(controls.values()), layout=columns)
        self.children = [grid, self.readout, self.picture]
        self.add_class("flowlib-explorer")
        self._inputs = {k: c for k, c in controls.items() if not isinstance(c, ipywidgets.Play)}
        self.redraw()
        for control in self._inputs.values():
            control.observe(self.redraw, "value")

    @torch.no_grad()
    def redraw(self, change=None) -> None:
        """Compute the state for the controls as they stand, and draw it; an error is shown, too."""
        try:
            values = {name: control.value for name, control in self._inputs.items()}
            state, self.readout.value = self._update(**values)
        except Exception as error:
            self.readout.value = f"<b>{html.escape(f'{type(error).__name__}: {error}')}</b>"
            raise
        self.state.update(state)
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        png, pixels = io.BytesIO(), np.asarray(self._canvas.buffer_rgba())
        Image.fromarray(pixels).convert("RGB").save(png, "png", compress_level=1)
        self.picture.value = png.getvalue()


def slider(label: str, value, low, high, step):
    """A slider over integers if `step` is one, otherwise over floats."""
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(value, min=low, max=high, step=step, description=label, **LOOK)


def axes_row(width: int, height: int, columns: int, **margins):
    """A figure of so many pixels, and its row of axes; a layout engine would run at every draw."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="none")
    figure.subplots_adjust(**margins)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def require_flow(name: str, flow: Flow, images: bool) -> None:
    """ValueError for what is no flow, or not one of images, or else of points in the plane."""
    if not isinstance(flow, Flow):
        raise ValueError(f"{name} takes a Flow, got {type(flow).__name__}")
    fits = flow.dequantize is not None and len(flow.shape) == 3 if images else flow.shape == (2,)
    if not fits:
        kind = "uint8 images (C, H, W)" if images else "points in the plane, shape (2,)"
        raise ValueError(f"{name} is for flows of {kind}, got one of shape {tuple(flow.shape)}")
