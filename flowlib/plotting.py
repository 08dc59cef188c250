"""The figures of the series, in one style: each function draws on given axes, or returns a figure.

Call `use_style()` once per notebook. Colours: data blue, model orange, truth green; densities in
cividis. Whatever holds numbers can be drawn: tensors of any device, with gradients or without,
arrays, data frames. A `box` is ((left, right), (bottom, top)).
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from .checkpoints import tiles
from .common import as_tensor, budget, generator
from .flow import Flow

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
LATENT_BOX = ((-4.0, 4.0), (-4.0, 4.0))


def use_style() -> None:
    """Switch matplotlib to the style of the series, `flow.mplstyle`."""
    plt.style.use(Path(__file__).with_name("flow.mplstyle"))


def show(alt: str) -> None:
    """Display the current figure, sharp on any screen, and close it: the last line of a cell.

    `alt` says what it shows, for those who cannot see it.
    """
    from IPython.display import Image, display

    fig, png, sharpness = plt.gcf(), io.BytesIO(), budget(2, 1)
    fig.savefig(png, dpi=sharpness * fig.dpi, bbox_inches=budget("tight", None))
    plt.close(fig)
    display(Image(png.getvalue(), retina=sharpness == 2, alt=" ".join(alt.split())))


def to_numpy(values) -> np.ndarray:
    """Any numbers as an array, off the GPU and without gradients."""
    return as_tensor(values).detach().cpu().numpy()


@torch.no_grad()
def evaluate_on_grid(log_prob: Callable, box, resolution: int = 200) -> tuple[torch.Tensor, float]:
    """exp(log_prob) at the midpoints of a grid over `box`, and the area of a cell of the grid.

    The values, (resolution, resolution), run from bottom to top and from left to right; their sum
    times the area approximates the mass in the box. `log_prob` is any function (n, 2) -> (n,).

    >>> p, area = evaluate_on_grid(lambda x: -x.square().sum(1), ((-3, 3), (-3, 3)))
    >>> round(float(p.sum() * area), 4)         # the integral is pi
    3.1415
    """
    axes = [low + (high - low) * (torch.arange(resolution) + 0.5) / resolution for low, high in box]
    p = log_prob(torch.cartesian_prod(*axes)).exp().view(resolution, resolution).T.cpu()
    (left, right), (bottom, top) = box
    return p, (right - left) * (top - bottom) / resolution**2


def density(ax: Axes, log_prob: Callable, box, resolution: int = 200, vmax=None) -> AxesImage:
    """Draw exp(log_prob) as a heat map over `box`, as `evaluate_on_grid` has it."""
    p, _ = evaluate_on_grid(log_prob, box, resolution)
    look = {"origin": "lower", "interpolation": "bilinear", "extent": [*box[0], *box[1]]}
    image = ax.imshow(p.numpy(), vmin=0, vmax=vmax, **look)
    frame(ax, box)
    return image


def points(ax: Axes, x, box, color=BLUE, size: float = 4) -> PathCollection:
    """Scatter points (n, 2) at equal aspect; `color` is one colour, or one number per point."""
    look = {"c": color} if isinstance(color, str) else {"c": to_numpy(color), "cmap": "viridis"}
    frame(ax, box)
    return ax.scatter(*to_numpy(x).T, s=size, linewidths=0, **look)


def frame(ax: Axes, box) -> None:
    """Show `box` at equal aspect."""
    ax.set(xlim=box[0], ylim=box[1], aspect="equal")


def square(box):
    """The smallest square box around the same centre, for panels of one size in a row.

    >>> square(((-1, 3), (0, 2)))
    ((-1.0, 3.0), (-1.0, 3.0))
    """
    half = max(high - low for low, high in box) / 2
    return tuple(((low + high) / 2 - half, (low + high) / 2 + half) for low, high in box)


def mesh(box, lines: int = 11, per_line: int = 200) -> torch.Tensor:
    """A mesh of straight lines over `box`, to be pushed through a map: (2 lines, per_line, 2).

    >>> mesh(((-1, 1), (-1, 1))).shape
    torch.Size([22, 200, 2])
    """
    x, y = (torch.linspace(*side, lines) for side in box)
    along_x, along_y = (torch.linspace(*side, per_line) for side in box)
    vertical = torch.cartesian_prod(x, along_y)
    horizontal = torch.cartesian_prod(y, along_x).flip(1)
    return torch.cat([vertical, horizontal]).view(-1, per_line, 2)


def draw_mesh(ax: Axes, curves, color: str = "0.55") -> LineCollection:
    """Draw curves (m, n, 2), as of `mesh`, below everything else."""
    lines = LineCollection(to_numpy(curves), colors=color, linewidths=0.6, zorder=0)
    return ax.add_collection(lines)


@torch.no_grad()
def four_panels(flow: Flow, x, box, seed: int = 0) -> Figure:
    """Both directions: data x (n, 2) and its latents f(x); fresh latents z and their points f⁻¹(z).

    Colour marks where a point stood along the first axis of the panel in which it starts.
    """
    x, _ = flow.as_input(x)
    z = flow.draw_latents(len(x), generator(seed))
    panels = [
        (x, square(box), x[:, 0], "data  x"),
        (flow(x)[0], LATENT_BOX, x[:, 0], "its latents  z = f(x)"),
        (z, LATENT_BOX, z[:, 0], "fresh latents  z ~ N(0, I)"),
        (flow.inverse(z)[0], square(box), z[:, 0], "samples  x = f⁻¹(z)"),
    ]
    fig, axes = plt.subplots(2, 2, figsize=(6, 6), layout="compressed")
    for ax, (xy, limits, color, title) in zip(axes.flat, panels):
        points(ax, xy, limits, color)
        ax.set_title(title)
    return fig


def layer_strip(flow: Flow, x, box, layers=None, columns: int = 4) -> Figure:
    """From data to latent, layer by layer: points (n, 2), coloured by their first coordinate, on a
    mesh that warps along. `layers` are those after which to look, 0 for the data; None is all."""
    states, lines = flow.intermediates(x), mesh(box)
    meshes = flow.intermediates(lines.view(-1, 2))
    layers = range(len(states)) if layers is None else layers
    rows = -(-len(layers) // columns)
    size = (2.4 * columns, 2.5 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed")
    for ax in axes.flat[len(layers) :]:
        ax.set_axis_off()
    for k, ax in zip(layers, axes.flat):
        draw_mesh(ax, meshes[k].view(lines.shape), color="0.8")
        points(ax, states[k], square(box) if k == 0 else LATENT_BOX, states[0][:, 0], size=5)
        ax.set_title("data" if k == 0 else f"after layer {k}")
    return fig


def loss_curve(ax: Axes, history, floor=None, color: str = ORANGE, label: str = "loss") -> None:
    """The loss per step, faint; its running mean; and, as the floor that no model can pass, the
    entropy of the data."""
    loss = np.asarray(history.loss)
    width = max(1, min(25, len(loss) // 10))
    steps = np.arange(1, len(loss) + 1)
    ax.plot(steps, loss, color=color, alpha=0.3, linewidth=0.6)
    centred = steps[width - 1 :] - (width - 1) / 2
    ax.plot(centred, np.convolve(loss, np.ones(width) / width, "valid"), color=color, label=label)
    if floor is not None:
        ax.axhline(floor, color=GREEN, linestyle="--", label=f"entropy of the data, {floor:.3f}")
    ax.set(xlabel="step", ylabel="nats per point")
    ax.legend()


def image_grid(ax: Axes, images, columns: int = 6, bits: int = 8) -> AxesImage:
    """Draw images (n, C, H, W) as one picture, `columns` to a row; `bits` as of their flow or set.

    >>> image_grid(plt.gca(), faces.test[:12], bits=faces.bits)     # doctest: +SKIP
    """
    ax.set_axis_off()
    return ax.imshow(tiles(images, columns, bits), interpolation="nearest")
