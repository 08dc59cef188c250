"""Explorers of flows of images: what the latents hold."""

import math

import ipywidgets
import torch
from torchvision.utils import make_grid

from .. import plotting
from ..common import generator, integer
from ..flow import MultiScale
from .explorer import LOOK, Explorer, axes_row, require_flow, slider

__all__ = [
    "explore_scales",
    "interpolate",
    "latent_sliders",
    "manifold",
    "principal_directions",
    "spherical",
    "straight",
]


def principal_directions(flow, images, k=4):
    """The k directions in which the latents of images vary most: (k, D), each as long as their standard deviation along it."""
    _check_images("principal_directions", flow, images, at_least=2)
    z = torch.cat([flow.encode(piece) for piece in images.split(100)])
    _, spread, directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    k = min(integer("k", k, at_least=1), len(z) - 1)
    signs = (
        directions[:k].gather(1, directions[:k].abs().argmax(1, keepdim=True)).sign()
    )  # svd leaves them open
    return directions[:k] * signs * spread[:k, None] / (len(z) - 1) ** 0.5


def latent_sliders(flow, directions, images=None, n=8):
    """What latent directions mean in pixels: decode temperature * z + the sum of amount * direction.

    directions   (k, D), or name -> (D,), of latents: `principal_directions`, or attribute vectors
    images       (n, C, H, W) uint8 whose latents are taken for z; by default n latents are drawn from the seed
    controls     one per direction, by its name or "direction 1" ...: how many times it is added; temperature; seed unless images
    state        z (n, D) as decoded, images (n, C, H, W)
    """
    _check_images("latent_sliders", flow, images)
    if torch.is_tensor(directions):
        directions = {f"direction {i + 1}": direction for i, direction in enumerate(directions)}
    D = flow.shape.numel()
    for name, direction in directions.items():
        if (
            not torch.is_tensor(direction)
            or direction.shape != (D,)
            or not direction.isfinite().all()
        ):
            given = (
                tuple(direction.shape) if torch.is_tensor(direction) else type(direction).__name__
            )
            raise ValueError(
                f"directions must be finite vectors of {D} latents, got {given} for {name!r}"
            )
    if not directions:
        raise ValueError("latent_sliders needs at least one direction")
    if {"temperature", "seed"} & set(directions):
        raise ValueError(
            "directions may not be called 'temperature' or 'seed', which are controls of their own"
        )
    still = None if images is None else flow.encode(images)
    n = integer("n", n, at_least=1) if images is None else len(images)
    columns = n if n <= 5 else -(-n // 2)
    rows = -(-n // columns)
    figure, (ax,) = axes_row(
        760, min(420, 30 + rows * 760 // columns), 1, left=0, right=1, bottom=0.01, top=0.99
    )
    grid = plotting.image_grid(ax, torch.zeros(n, *flow.shape, dtype=torch.uint8), columns)

    def update(temperature, seed=None, **amounts):
        z = temperature * (flow.draw_latents(n, generator(seed)) if still is None else still)
        for name, amount in amounts.items():
            z = z + amount * directions[name]
        decoded = flow.inverse(z)[0]
        grid.set_data(_tiles(decoded, columns))
        length = z.norm(dim=1).mean() / D**0.5
        return {
            "z": z,
            "images": decoded,
        }, f"mean length of the latents {length:.2f} √D (of draws from the base density: 1)"

    controls = {name: slider(f"{name} (×)", 0.0, -3, 3, 0.25) for name in directions}
    controls["temperature"] = slider("temperature", 0.8 if still is None else 1.0, 0, 1.5, 0.05)
    if still is None:
        controls["seed"] = slider("seed", 0, 0, 50, 1)
    return Explorer(controls, figure, [grid], update)


def straight(a, b, t):
    """Between latents a and b (D,) on a line, t from 0 to 1."""
    return torch.lerp(a, b, t)


def spherical(a, b, t):
    """Between latents a and b (D,) on an arc, whose points are about as long as its ends; on a line if they are parallel."""
    angle = torch.arccos(torch.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return straight(a, b, t)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolate(flow, a, b):
    """From one image to another through all their latents, on a line and on an arc.

    a, b       images (C, H, W) uint8
    controls   t: 0 (a) ... 1 (b)
    state      t, z (2, D), images (2, C, H, W): straight, spherical
    """
    ends = _stack("interpolate", flow, [a, b])
    latents = flow.encode(ends)
    figure, axes = axes_row(760, 225, 4, left=0.01, right=0.99, bottom=0.02, top=0.87, wspace=0.06)
    panels = _panels(
        axes, [ends[0], *ends, ends[1]], ["a  (t = 0)", "straight", "spherical", "b  (t = 1)"]
    )

    def update(t):
        z = torch.stack([straight(*latents, t), spherical(*latents, t)])
        images = flow.inverse(z)[0]
        for panel, image in zip(panels[1:3], images):
            panel.set_data(_tiles(image[None], 1))
        lengths = z.norm(dim=1) / z.shape[1] ** 0.5
        return {
            "t": t,
            "z": z,
            "images": images,
        }, f"length of the latents: straight {lengths[0]:.2f} √D, spherical {lengths[1]:.2f} √D"

    return Explorer({"t": slider("t, from a to b", 0.5, 0, 1, 0.05)}, figure, panels[1:3], update)


def manifold(flow, images):
    """The surface that four images span, by two angles (Real NVP, equation 19).

    z = cos φ (cos φ' z1 + sin φ' z2) + sin φ (cos φ' z3 + sin φ' z4)
    images     four, (4, C, H, W) uint8
    controls   phi, phi_prime: in degrees
    state      z (D,), weights (4,), image (C, H, W)
    """
    images = _stack("manifold", flow, images, count=4)
    latents = flow.encode(images)
    figure, axes = axes_row(760, 200, 5, left=0.01, right=0.99, bottom=0.02, top=0.86, wspace=0.06)
    panels = _panels(axes, [images[0], *images], ["decoded", *"1234"])

    def update(phi, phi_prime):
        phi, phi_prime = math.radians(phi), math.radians(phi_prime)
        outer, inner = (
            torch.tensor([math.cos(phi), math.sin(phi)]),
            torch.tensor([math.cos(phi_prime), math.sin(phi_prime)]),
        )
        weights = torch.outer(outer, inner).flatten()
        z = weights @ latents
        image = flow.inverse(z[None])[0][0]
        panels[0].set_data(_tiles(image[None], 1))
        for ax, weight, name in zip(axes[1:], weights.tolist(), ["z₁", "z₂", "z₃", "z₄"]):
            ax.set_title(f"{round(weight, 2) + 0.0:+.2f} {name}", loc="center")
        text = f"the squares of the four weights add up to {weights.square().sum():.2f}; length of the latent {z.norm() / len(z) ** 0.5:.2f} √D"
        return {"z": z, "weights": weights, "image": image}, text

    controls = {
        name: slider(label, 45, 0, 360, 5)
        for name, label in [("phi", "φ (degrees)"), ("phi_prime", "φ′ (degrees)")]
    }
    return Explorer(controls, figure, [panels[0], *(ax.title for ax in axes[1:])], update)


def explore_scales(flow, image, other=None):
    """What each scale of latents holds: keep it, draw it anew, or take it from another image; and at what temperature.

    flow           with a `MultiScale` layer;   image, other   (C, H, W) uint8
    controls       for scale k = 1 (factored out first, the finest) ...: "source k", one of "keep", "draw anew" and, if there
                   is another image, "of the other"; "temperature k", by which these latents are multiplied; seed of what is drawn
    state          z (D,), image (C, H, W)
    """
    images = _stack("explore_scales", flow, [image] if other is None else [image, other])
    multi = next((layer for layer in flow.modules() if isinstance(layer, MultiScale)), None)
    if multi is None:
        raise ValueError(
            "explore_scales needs a flow that factors out latents scale by scale, one with a MultiScale layer"
        )
    parts = multi.split_latent(flow.encode(images))
    last = len(parts)
    figure, axes = axes_row(760, 285, 3, left=0.01, right=0.99, bottom=0.02, top=0.9, wspace=0.06)
    panels = _panels(axes, [images[0], images[0], images[-1]], ["image", "decoded", "the other"])
    axes[2].set_visible(other is not None)

    def update(seed, **chosen):
        drawn = multi.split_latent(flow.draw_latents(1, generator(seed)))
        mixed = []
        for k, (own, new) in enumerate(zip(parts, drawn), start=1):
            source = {"keep": own[:1], "draw anew": new, "of the other": own[-1:]}[
                chosen[f"source {k}"]
            ]
            mixed.append(chosen[f"temperature {k}"] * source)
        z = multi.join_latent(mixed)
        decoded = flow.inverse(z)[0]
        panels[1].set_data(_tiles(decoded, 1))
        change = (decoded[0].float() - images[0].float()).square().mean().sqrt()
        return (
            {"z": z[0], "image": decoded[0]},
            f"change of the pixels against the image: {change:.1f} of 255 grey levels (root mean square)",
        )

    options = ["keep", "draw anew", "of the other"][: 2 if other is None else 3]
    share = [part[0].numel() / flow.shape.numel() for part in parts]
    ends = {1: ", finest", last: ", coarsest"} if last > 1 else {}
    controls = {}
    for k in range(1, last + 1):
        label = f"scale {k}{ends.get(k, '')}"
        controls[f"source {k}"] = ipywidgets.Dropdown(
            options=options,
            value="draw anew" if k == 1 else "keep",
            description=label,
            tooltip=f"{share[k - 1]:.1%} of the latents",
            **LOOK,
        )
        controls[f"temperature {k}"] = slider("× temperature", 1.0, 0, 1.5, 0.05)
    controls["seed"] = slider("seed", 0, 0, 50, 1)
    return Explorer(controls, figure, panels[1:2], update)


def _panels(axes, images, titles):
    panels = []
    for ax, image, title in zip(axes, images, titles):
        panels.append(plotting.image_grid(ax, image[None], columns=1))
        ax.set_title(title, loc="center")
    return panels


def _tiles(images, columns):
    """uint8 images (n, C, H, W) as one picture (height, width, 3), as `plotting.image_grid` lays them out."""
    return make_grid(images, nrow=columns, padding=1, pad_value=128).permute(1, 2, 0).numpy()


def _check_images(name, flow, images, at_least=1):
    require_flow(name, flow)
    if flow.dequantize is None or len(flow.shape) != 3:
        raise ValueError(
            f"{name} is for flows of uint8 images (C, H, W), got a flow of shape {tuple(flow.shape)}"
        )
    if images is not None:
        flow.as_input(images)
        if len(images) < at_least:
            raise ValueError(f"{name} takes at least {at_least} images, got {len(images)}")


def _stack(name, flow, images, count=None):
    """Images (C, H, W), checked, as one batch."""
    require_flow(name, flow)
    if not all(torch.is_tensor(image) and image.shape == flow.shape for image in images) or len(
        images
    ) != (count or len(images)):
        given = ", ".join(
            str(tuple(image.shape)) if torch.is_tensor(image) else type(image).__name__
            for image in images
        )
        raise ValueError(
            f"{name} takes {count or 'single'} images of shape {tuple(flow.shape)}, got {given}"
        )
    images = images if torch.is_tensor(images) else torch.stack(list(images))
    _check_images(name, flow, images)
    return images
