"""Explorers of flows of points in the plane; a `box` is ((left, right), (bottom, top))."""

import math

import torch

from .. import plotting
from ..bijections import Chain
from ..common import integer
from ..flow import Flow
from ..plotting import LATENT_BOX, ORANGE, to_numpy
from .explorer import Explorer, axes_row, require_flow, slider

__all__ = ["explore_latent", "explore_layers", "explore_training"]


def explore_layers(flow: Flow, x, box=None) -> Explorer:
    """From data x (n, 2) to latent, coloured by where they began, on a mesh that warps along;
    between two layers they move straight, as if the affine step were done in part.

    controls   layer: 0 (data) ... number of layers (latent), any fraction
    state      layer, points (n, 2), mesh (22, 200, 2)

    >>> explore_layers(flow, x).controls["layer"].value = 2.5  # doctest: +SKIP
    """
    require_flow("explore_layers", flow, images=False)
    states = [state.detach().cpu() for state in flow.intermediates(x)]
    box = _box_around(states[0]) if box is None else box
    lines = plotting.mesh(box)
    meshes = [s.cpu().view(lines.shape) for s in flow.intermediates(lines.view(-1, 2))]
    chain = flow.bijection if isinstance(flow.bijection, Chain) else [flow.bijection]
    names = [type(layer).__name__ for layer in chain]
    limits = torch.tensor([plotting.square(box), *[LATENT_BOX] * len(names)])  # of the window

    figure, (ax,) = axes_row(440, 440, 1, left=0.01, right=0.99, bottom=0.01, top=0.99)
    ax.spines[:].set_visible(True)
    ax.set(xticks=[], yticks=[])
    curves = plotting.draw_mesh(ax, meshes[0])
    dots = plotting.points(ax, states[0], limits[0].tolist(), states[0][:, 0], size=5)

    def update(layer):
        k = min(int(layer), len(names) - 1)
        points, mesh, window = (
            torch.lerp(path[k], path[k + 1], layer - k) for path in (states, meshes, limits)
        )
        dots.set_offsets(points.numpy())
        curves.set_segments(mesh.numpy())
        plotting.frame(ax, window.tolist())
        where = f"layer {k + 1} of {len(names)}, {names[k]}, {layer - k:.0%} done"
        std, mean = (m.round(decimals=2) + 0.0 for m in torch.std_mean(points, 0))  # no -0.00
        text = f"{where if layer else 'the data'}\npoints: mean ({mean[0]:.2f}, {mean[1]:.2f}), "
        text += f"standard deviation ({std[0]:.2f}, {std[1]:.2f})"
        return {"layer": layer, "points": points, "mesh": mesh}, text

    alt = f"{len(states[0]):,} points, coloured by where they began, on a mesh that warps along."
    layer = slider("layers done", 0.0, 0, len(names), 0.1, play=0.2)
    return Explorer({"layer": layer}, figure, [curves, dots], update, alt)


def explore_latent(flow: Flow, box=None, radius: float = 0.3) -> Explorer:
    """From a latent to its point, and what becomes of a small circle around it: an ellipse (orange)
    under the Jacobian dx/dz, the white curve under the flow itself. `box` holds the data.

    controls   z1, z2: in standard deviations of the base density
    state      z (2,), x (2,), jacobian (2, 2), log_det = log |det dx/dz| in nats,
               ellipse (100, 2), curve (100, 2)

    >>> explore_latent(flow).controls["z1"].value = -2.0  # doctest: +SKIP
    """
    require_flow("explore_latent", flow, images=False)
    latents = flow.draw_latents(0)  # for their dtype and device
    box = plotting.square(_box_around(flow.sample(2_000, seed=0)) if box is None else box)
    width = box[0][1] - box[0][0]
    angle = torch.linspace(0, 2 * math.pi, 100).to(latents)
    circle = torch.stack([angle.cos(), angle.sin()], 1)

    margins = {"left": 0.05, "right": 0.99, "bottom": 0.1, "top": 0.89, "wspace": 0.16}
    figure, (left, right, close) = axes_row(760, 290, 3, **margins)
    for r in (1, 2, 3):
        left.plot(*to_numpy(r * circle).T, color="0.7", linewidth=0.8)
    plotting.frame(left, LATENT_BOX)
    plotting.density(right, flow.log_prob, box, resolution=120)
    left.set_title("latent z; radii 1, 2, 3")
    right.set_title("its point x = f⁻¹(z)")
    close.set(xticks=[], yticks=[], facecolor="0.2", aspect="equal")
    close.set_xlabel("white: under f⁻¹; orange: its Jacobian", loc="right", fontsize=9)
    (around,) = left.plot([], [], color=ORANGE)
    (dot,) = left.plot([], [], "o", color=ORANGE, markersize=4)
    curves, outlines, dots = [], [], []
    for ax in (right, close):
        curves += ax.plot([], [], color="white", linewidth=1)
        outlines += ax.plot([], [], color=ORANGE)
        dots += ax.plot([], [], "o", color=ORANGE, markersize=4)
    moving, zoom = [around, dot, *curves, *outlines, *dots], close.set_title("")

    def update(z1, z2):
        z = latents.new_tensor([z1, z2])
        x, log_det = (out[0] for out in flow.inverse(z[None]))
        jacobian = torch.autograd.functional.jacobian(lambda z: flow.inverse(z[None])[0][0], z)
        ring = z + radius * circle
        ellipse, curve = x + radius * circle @ jacobian.T, flow.inverse(ring)[0]
        half = min(1.1 * (torch.cat([ellipse, curve]) - x).abs().max().item(), width / 2)
        plotting.frame(close, [(c - half, c + half) for c in x.tolist()])
        zoom.set_text(f"magnified {width / (2 * half):.1f} times")
        shown = {dot: z[None], around: ring}
        shown |= dict.fromkeys(curves, curve) | dict.fromkeys(outlines, ellipse)
        shown |= dict.fromkeys(dots, x[None])
        for artist, points in shown.items():
            artist.set_data(*to_numpy(points).T)
        text = (
            f"x = ({x[0]:.2f}, {x[1]:.2f}), log |det dx/dz| = {log_det:.2f} nats: areas become "
            f"{log_det.exp():.3g} times as large\nlog p(x) = {flow.log_prob(x[None])[0]:.2f} nats"
        )
        state = {"z": z, "x": x, "jacobian": jacobian, "log_det": log_det.item()}
        return {**state, "ellipse": ellipse, "curve": curve}, text

    controls = {f"z{i}": slider(f"z{'₀₁₂'[i]} (std. dev.)", 0.0, -3, 3, 0.1) for i in (1, 2)}
    alt = "A latent in a small circle; its point on the density; close up, the circle's image: an "
    alt += "ellipse under the Jacobian, a curve under the flow."
    return Explorer(controls, figure, [*moving, zoom], update, alt)


def explore_training(history, box=None, n: int = 500, seed: int = 0) -> Explorer:
    """What a flow in the plane had learned, by a history of `training.fit(..., snapshots=k)`: its
    density, n samples from the same latents, and the loss. `box` holds the data.

    controls   snapshot: 0 (before the first step) ... k - 1
    state      snapshot, step, samples (n, 2), density (80, 80), loss: mean of the last 25 steps in
               nats, None before the first

    >>> explore_training(history).controls["snapshot"].value = 0  # doctest: +SKIP
    """
    snapshots = getattr(history, "snapshots", None)
    if not snapshots:
        raise ValueError("explore_training needs a history of training.fit(..., snapshots=12)")
    flows = [snapshot.flow for snapshot in snapshots]
    require_flow("explore_training", flows[-1], images=False)
    integer("n", n, at_least=1)
    samples = [flow.sample(n, seed=seed).cpu() for flow in flows]
    box = plotting.square(_box_around(samples[-1]) if box is None else box)
    densities = [plotting.evaluate_on_grid(flow.log_prob, box, 80)[0] for flow in flows]

    margins = {"left": 0.05, "right": 0.98, "bottom": 0.17, "top": 0.89, "wspace": 0.24}
    figure, (left, middle, right) = axes_row(760, 290, 3, **margins)
    heat = plotting.density(left, flows[-1].log_prob, box, 80)
    dots = plotting.points(middle, samples[-1], box, ORANGE)
    plotting.loss_curve(right, history)
    marker = right.axvline(0, color="black", linewidth=1)
    right.set(ylabel="")
    right.get_legend().remove()
    titles = ["density of the flow", "its samples", "loss, nats per point"]
    for ax, title in zip(figure.axes, titles):
        ax.set_title(title)

    def update(snapshot):
        step = snapshots[snapshot].step
        heat.set_data(densities[snapshot].numpy())
        dots.set_offsets(samples[snapshot].numpy())
        marker.set_xdata([step, step])
        recent = history.loss[max(0, step - 25) : step]
        loss = sum(recent) / len(recent) if recent else None
        text = f"after step {step} of {len(history.loss)}"
        if recent:
            text += f": loss {loss:.3f} nats per point, mean of {len(recent)} steps"
        state = {"snapshot": snapshot, "step": step, "samples": samples[snapshot]}
        return {**state, "density": densities[snapshot], "loss": loss}, text

    last = len(snapshots) - 1
    controls = {"snapshot": slider("snapshot", last, 0, last, 1)}
    alt = f"The density of the flow, {n} samples of it, and the loss, with a mark at the snapshot."
    return Explorer(controls, figure, [heat, dots, marker], update, alt)


def _box_around(x, margin=0.15):
    low, high = x.amin(0), x.amax(0)
    room = margin * (high - low)
    return tuple(zip((low - room).tolist(), (high + room).tolist()))
