"""Explorers of flows of points in the plane."""

import math

import ipywidgets
import torch

from .. import plotting
from ..bijections import Chain
from ..common import integer
from ..plotting import LATENT_BOX, ORANGE
from .explorer import Explorer, axes_row, require_flow, slider

__all__ = ["explore_latent", "explore_layers", "explore_training"]


def explore_layers(flow, x, box=None):
    """From data to latent: a slider over the layers, points coloured by where they began, and the mesh that warps along.

    Between layer k and k + 1 a point is on the straight line between its two states, as if the affine step were done in part.
    flow   of points in the plane;   x   data (n, 2);   box   ((left, right), (bottom, top)) of the data, by default around x
    controls   layer: 0 (data) ... number of layers (latent), any fraction; play
    state      layer, points (n, 2), mesh (22, 200, 2)
    """
    _check_plane("explore_layers", flow)
    flow.as_input(x)
    box = _box_around(x) if box is None else box
    lines = plotting.mesh(box)
    with torch.no_grad():
        states, meshes = (
            flow.intermediates(x),
            [state.view(lines.shape) for state in flow.intermediates(lines.view(-1, 2))],
        )
    names = [
        type(layer).__name__
        for layer in (flow.bijection if isinstance(flow.bijection, Chain) else [flow.bijection])
    ]
    limits = torch.tensor([plotting.square(box), *[LATENT_BOX] * len(names)])

    figure, (ax,) = axes_row(440, 440, 1, left=0.01, right=0.99, bottom=0.01, top=0.99)
    ax.spines[:].set_visible(True)
    ax.set(
        xticks=[], yticks=[]
    )  # the window moves with the points: it begins around the data and ends at ±4
    dots = ax.scatter(*x.T, c=x[:, 0], s=5, linewidths=0, cmap="viridis")
    plotting.draw_mesh(ax, meshes[0])
    curves = ax.collections[-1]
    plotting.frame(ax, limits[0].tolist())

    def update(layer):
        k = min(int(layer), len(names) - 1)
        points, mesh, (xlim, ylim) = (
            torch.lerp(seq[k], seq[k + 1], layer - k) for seq in (states, meshes, limits)
        )
        dots.set_offsets(points.numpy())
        curves.set_segments(mesh.numpy())
        ax.set(xlim=xlim.tolist(), ylim=ylim.tolist())
        where = (
            "the data"
            if layer == 0
            else f"layer {k + 1} of {len(names)}, {names[k]}, {layer - k:.0%} done"
        )
        m1, m2, s1, s2 = (
            round(v, 2) + 0.0 for v in (*points.mean(0).tolist(), *points.std(0).tolist())
        )
        text = (
            f"{where}<br>points: mean ({m1:.2f}, {m2:.2f}), standard deviation ({s1:.2f}, {s2:.2f})"
        )
        return {"layer": layer, "points": points, "mesh": mesh}, text

    layer_slider = slider("layers done", 0.0, 0, len(names), 0.1)
    play = ipywidgets.Play(min=0, max=10 * len(names), step=2, interval=100)  # in tenths of a layer

    def follow(change):
        if round(10 * layer_slider.value) != change.new:
            layer_slider.value = change.new / 10

    play.observe(follow, "value")
    layer_slider.observe(lambda change: play.set_trait("value", round(10 * change.new)), "value")
    return Explorer({"layer": layer_slider, "play": play}, figure, [curves, dots], update)


def explore_latent(flow, box=None, radius=0.3):
    """From a latent to its point: sliders for z1 and z2, and what becomes of a small circle around them.

    The Jacobian dx/dz turns the circle into an ellipse (orange); the flow itself turns it into the thin white curve.
    flow   of points in the plane;   box   ((left, right), (bottom, top)) of the data, by default around samples of the flow
    controls   z1, z2: in standard deviations of the base density
    state      z (2,), x (2,), jacobian (2, 2), log_det = log |det dx/dz| in nats, ellipse (100, 2), curve (100, 2)
    """
    _check_plane("explore_latent", flow)
    box = _box_around(flow.sample(2_000, seed=0)) if box is None else box
    angle = torch.linspace(0, 2 * math.pi, 100)
    circle = torch.stack([angle.cos(), angle.sin()], 1)

    figure, (left, right) = axes_row(
        760, 390, 2, left=0.05, right=0.99, bottom=0.08, top=0.92, wspace=0.14
    )
    for r in (1, 2, 3):
        left.plot(*r * circle.T, color="0.7", linewidth=0.8)
    plotting.frame(left, LATENT_BOX)
    plotting.density(right, flow.log_prob, plotting.square(box), resolution=120)
    left.set_title("latent  z;  circles of radius 1, 2, 3")
    right.set_title("its point  x = f⁻¹(z)")
    (around,), (dot,) = (
        left.plot([], [], color=ORANGE),
        left.plot([], [], "o", color=ORANGE, markersize=4),
    )
    (outline,), (image,) = (
        right.plot([], [], color=ORANGE),
        right.plot([], [], "o", color=ORANGE, markersize=4),
    )
    (true,) = right.plot([], [], color="white", linewidth=1)

    def update(z1, z2):
        z = torch.tensor([z1, z2])
        x, log_det = (out[0] for out in flow.inverse(z[None]))
        jacobian = torch.autograd.functional.jacobian(lambda z: flow.inverse(z[None])[0][0], z)
        ellipse, curve = x + radius * circle @ jacobian.T, flow.inverse(z + radius * circle)[0]
        for artist, shown in [
            (dot, z[None]),
            (around, z + radius * circle),
            (image, x[None]),
            (outline, ellipse),
            (true, curve),
        ]:
            artist.set_data(*shown.T.numpy())
        text = (
            f"x = ({x[0]:.2f}, {x[1]:.2f}), log |det dx/dz| = {log_det:.2f} nats: areas become {log_det.exp():.3g} times as large<br>"
            f"log p(x) = {flow.log_prob(x[None]).item():.2f} nats"
        )
        return {
            "z": z,
            "x": x,
            "jacobian": jacobian,
            "log_det": log_det.item(),
            "ellipse": ellipse,
            "curve": curve,
        }, text

    controls = {
        name: slider(f"{label} (std. dev.)", 0.0, -3, 3, 0.1)
        for name, label in [("z1", "z₁"), ("z2", "z₂")]
    }
    return Explorer(controls, figure, [around, dot, true, outline, image], update)


def explore_training(history, box=None, n=500, seed=0):
    """What a flow in the plane had learned, step by step: density, samples from the same latents, and the loss.

    history   of `training.fit(..., snapshots=k)`;   box   ((left, right), (bottom, top)), by default around the last samples
    controls   snapshot: 0 (before the first step) ... k - 1
    state      snapshot, step, samples (n, 2), density (80, 80), loss: mean of the last 25 steps in nats, None before the first
    """
    if not getattr(history, "snapshots", None):
        raise ValueError(
            "explore_training needs a history with snapshots: training.fit(..., snapshots=12)"
        )
    snapshots = history.snapshots
    _check_plane("explore_training", snapshots[-1].flow)
    samples = [
        snapshot.flow.sample(integer("n", n, at_least=1), seed=seed) for snapshot in snapshots
    ]
    box = plotting.square(_box_around(samples[-1]) if box is None else box)
    densities = [
        plotting.evaluate_on_grid(snapshot.flow.log_prob, box, 80)[0] for snapshot in snapshots
    ]

    figure, (left, middle, right) = axes_row(
        780, 300, 3, left=0.05, right=0.98, bottom=0.17, top=0.89, wspace=0.24
    )
    heat = left.imshow(
        densities[-1].numpy(),
        extent=[*box[0], *box[1]],
        origin="lower",
        vmin=0,
        interpolation="bilinear",
    )
    dots = middle.scatter(*samples[-1].T, s=4, linewidths=0, color=ORANGE)
    plotting.frame(middle, box)
    plotting.loss_curve(right, history)
    marker = right.axvline(0, color="black", linewidth=1)
    right.set(ylabel="")
    right.get_legend().remove()
    for ax, title in zip(
        (left, middle, right), ["density of the flow", "its samples", "loss, nats per point"]
    ):
        ax.set_title(title)

    def update(snapshot):
        step = snapshots[snapshot].step
        heat.set_data(densities[snapshot].numpy())
        dots.set_offsets(samples[snapshot].numpy())
        marker.set_xdata([step, step])
        recent = history.loss[max(0, step - 25) : step]
        loss = sum(recent) / len(recent) if recent else None
        text = f"after step {step} of {len(history.loss)}" + (
            f": loss {loss:.3f} nats per point, mean of {len(recent)} steps" if recent else ""
        )
        return {
            "snapshot": snapshot,
            "step": step,
            "samples": samples[snapshot],
            "density": densities[snapshot],
            "loss": loss,
        }, text

    return Explorer(
        {"snapshot": slider("snapshot", len(snapshots) - 1, 0, len(snapshots) - 1, 1)},
        figure,
        [heat, dots, marker],
        update,
    )


def _box_around(x, margin=0.15):
    low, high = x.amin(0), x.amax(0)
    room = margin * (high - low)
    return tuple(zip((low - room).tolist(), (high + room).tolist()))


def _check_plane(name, flow):
    require_flow(name, flow)
    if flow.shape != (2,):
        raise ValueError(
            f"{name} is for flows of points in the plane, shape (2,), got a flow of shape {tuple(flow.shape)}"
        )
