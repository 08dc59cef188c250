"""The figures of the series, in one style. Each function draws on axes that it is given, or returns a new figure.

Call `use_style()` once per notebook. Colours: data blue, model orange, truth green; densities in cividis.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection

__all__ = [
    "BLUE",
    "ORANGE",
    "GREEN",
    "LATENT_BOX",
    "use_style",
    "evaluate_on_grid",
    "density",
    "points",
    "frame",
    "square",
    "mesh",
    "draw_mesh",
    "four_panels",
    "layer_strip",
    "loss_curve",
    "image_grid",
]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
LATENT_BOX = ((-4.0, 4.0), (-4.0, 4.0))


def use_style():
    """Switch matplotlib to the style of the series, `flow.mplstyle`."""
    plt.style.use(Path(__file__).with_name("flow.mplstyle"))


@torch.no_grad()
def evaluate_on_grid(log_prob, box, resolution=200):
    """exp(log_prob) at the midpoints of a grid over `box`: (resolution, resolution), rows bottom to top; and the area of a cell.

    The mean of the values times the area of the box approximates the mass in it.
    """
    axes = [low + (high - low) * (torch.arange(resolution) + 0.5) / resolution for low, high in box]
    p = log_prob(torch.cartesian_prod(*axes)).exp().view(resolution, resolution).T
    (left, right), (bottom, top) = box
    return p, (right - left) * (top - bottom) / resolution**2


def density(ax, log_prob, box, resolution=200, vmax=None):
    """Draw exp(log_prob), a function (n, 2) -> (n,), as a heat map over `box`; return the image."""
    p, _ = evaluate_on_grid(log_prob, box, resolution)
    image = ax.imshow(
        p.numpy(),
        extent=[*box[0], *box[1]],
        origin="lower",
        vmin=0,
        vmax=vmax,
        interpolation="bilinear",
    )
    frame(ax, box)
    return image


def points(ax, x, box, color=BLUE, size=4):
    """Scatter points (n, 2) at equal aspect; `color` is one colour, or one number per point."""
    cmap = None if isinstance(color, str) else "viridis"
    ax.scatter(*x.T, c=color, s=size, linewidths=0, cmap=cmap)
    frame(ax, box)


def frame(ax, box):
    ax.set(xlim=box[0], ylim=box[1], aspect="equal")


def square(box):
    """The smallest square with the same centre that holds the box, so that panels in a row are of one size."""
    half = max(high - low for low, high in box) / 2
    return tuple(((low + high) / 2 - half, (low + high) / 2 + half) for low, high in box)


def mesh(box, lines=11, per_line=200):
    """A square mesh of straight lines over `box`: (2 lines, per_line, 2), to be pushed through a map and drawn."""
    (left, right), (bottom, top) = box
    u, v = torch.linspace(left, right, per_line), torch.linspace(bottom, top, per_line)
    vertical = [
        torch.stack([torch.full((per_line,), s), v], 1)
        for s in torch.linspace(left, right, lines).tolist()
    ]
    horizontal = [
        torch.stack([u, torch.full((per_line,), s)], 1)
        for s in torch.linspace(bottom, top, lines).tolist()
    ]
    return torch.stack(vertical + horizontal)


def draw_mesh(ax, curves, color="0.55"):
    ax.add_collection(LineCollection(curves.numpy(), colors=color, linewidths=0.6, zorder=0))


@torch.no_grad()
def four_panels(flow, x, box, seed=0):
    """Both directions in four panels: data x and its latents f(x); fresh latents z and their points in data space.

    Colour marks where a point stood along the first axis of the panel in which it starts.
    """
    z = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed))
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


@torch.no_grad()
def layer_strip(flow, x, box, columns=5):
    """From data to latent, layer by layer: points (n, 2), coloured by their first coordinate, on a mesh that warps along."""
    states = flow.intermediates(x)
    lines = mesh(box)
    meshes = [state.view(lines.shape) for state in flow.intermediates(lines.view(-1, 2))]
    rows = -(-len(states) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(1.5 * columns, 1.7 * rows), squeeze=False, layout="compressed"
    )
    for ax in axes.flat[len(states) :]:
        ax.set_axis_off()
    for k, ax in enumerate(axes.flat[: len(states)]):
        draw_mesh(ax, meshes[k])
        points(ax, states[k], square(box) if k == 0 else LATENT_BOX, x[:, 0], size=3)
        ax.set_title("data" if k == 0 else f"after layer {k}")
        ax.set(xticks=[], yticks=[])
    return fig


def loss_curve(ax, history, floor=None, color=ORANGE, label="loss"):
    """The loss per step, faint; its running mean; and the entropy of the data as the floor that no model can pass."""
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


def image_grid(ax, images, columns=6):
    """Draw uint8 images (n, C, H, W) as one picture, `columns` to a row with a pixel between them; return the image."""
    from torchvision.utils import make_grid

    ax.set_axis_off()
    return ax.imshow(
        make_grid(images, nrow=columns, padding=1, pad_value=128).permute(1, 2, 0).numpy(),
        interpolation="nearest",
    )
