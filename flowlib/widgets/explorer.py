"""What all explorers are: controls, a line of numbers, and a picture that follows them."""

import html
import io
import time

import ipywidgets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..flow import Flow

__all__ = ["Explorer", "LOOK", "axes_row", "require_flow", "slider"]

SLOW = 0.3  # seconds; a picture that takes longer is drawn when the slider is let go
LOOK = {"style": {"description_width": "8.5em"}, "layout": {"width": "auto"}}


class Explorer(ipywidgets.VBox):
    """Controls, a line that puts the picture into numbers, and a picture of fixed size whose bytes are replaced.

    While one update is computed, JupyterLab holds the events of a dragged slider back and then sends the newest alone, so
    the picture never lags more than two updates behind the hand.

    controls   name -> ipywidgets control; setting its `value` draws the picture before the next statement runs
    state      name -> what the picture shows, tensors and numbers
    readout    the line, `ipywidgets.HTML`
    picture    `ipywidgets.Image`, a PNG

    `update` takes the value of every control by its name, changes the artists `moving`, and returns (state, text). The rest
    of `figure` is drawn once; of the moving artists the later ones lie on top.
    """

    def __init__(self, controls, figure, moving, update):
        super().__init__(layout={"max_width": "800px"})
        self.controls, self.state, self._moving, self._update = controls, {}, moving, update
        self._inputs = {
            name: control
            for name, control in controls.items()
            if not isinstance(control, ipywidgets.Play)
        }
        for artist in moving:
            artist.set_animated(True)  # left out when the background is drawn
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)
        width, height = self._canvas.get_width_height()
        self.readout = ipywidgets.HTML(layout={"min_height": "3em", "margin": "0 0 0 4px"})
        self.picture = ipywidgets.Image(
            format="png",
            width=width,
            height=height,
            layout={"max_width": "calc(100% - 4px)", "height": "auto"},
        )
        columns = "repeat(auto-fit, minmax(330px, 1fr))"
        self.children = [
            ipywidgets.GridBox(list(controls.values()), layout={"grid_template_columns": columns}),
            self.readout,
            self.picture,
        ]
        self.add_class("flowlib-explorer")
        start = time.perf_counter()
        self.redraw()
        slow = time.perf_counter() - start > SLOW
        for control in self._inputs.values():
            control.observe(self.redraw, "value")
            if slow and control.has_trait("continuous_update"):
                control.continuous_update = False

    @torch.no_grad()
    def redraw(self, change=None):
        """Compute the state for the controls as they stand, and draw it. An error is shown in the line, and raised."""
        try:
            state, text = self._update(
                **{name: control.value for name, control in self._inputs.items()}
            )
        except Exception as error:
            self.readout.value = f"<b>{html.escape(f'{type(error).__name__}: {error}')}</b>"
            raise
        self.state.update(state)
        self.readout.value = text
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        png = io.BytesIO()
        Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB").save(
            png, "png", compress_level=1
        )
        self.picture.value = png.getvalue()


def slider(label, value, low, high, step):
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(value, min=low, max=high, step=step, description=label, **LOOK)


def axes_row(width, height, columns, **margins):
    """A figure of so many pixels with a row of axes; margins by hand, since a layout engine would run at every draw."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="none")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.subplots_adjust(**margins)
    return figure, axes


def require_flow(name, flow):
    if not isinstance(flow, Flow):
        raise ValueError(f"{name} takes a Flow, got {type(flow).__name__}")
