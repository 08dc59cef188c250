"""Explorers of flows of images, (C, H, W) of uint8: what the latents hold."""

import torch

from .. import plotting
from ..common import as_tensor, generator, integer
from ..flow import Flow, MultiScale
from .explorer import Control, Explorer, axes_row, require_flow, slider

__all__ = ["explore_scales", "interpolate", "latent_sliders", "manifold", "principal_directions"]

MARGINS = {"left": 0.01, "right": 0.99, "bottom": 0.02, "wspace": 0.06}


def principal_directions(flow: Flow, images, k: int = 4) -> torch.Tensor:
    """The k directions in which the latents of images vary most, (k, D), each as long as their
    standard deviation along it; of its entries the one farthest from 0 is positive.

    >>> principal_directions(flow, images, k=3)  # doctest: +SKIP
    """
    require_flow("principal_directions", flow, images=True)
    images, _ = flow.as_input(images)
    if len(images) < 2:
        raise ValueError(f"principal_directions takes at least 2 images, got {len(images)}")
    k = min(integer("k", k, at_least=1), len(images) - 1)
    z = torch.cat([flow.encode(part) for part in images.split(100)])
    _, spread, directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    directions = directions[:k] * spread[:k, None] / (len(z) - 1) ** 0.5
    return directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()


def latent_sliders(flow: Flow, directions, images) -> Explorer:
    """What latent directions mean in pixels: decode temperature * z + sum of amount * direction.

    directions   (k, D), or name -> (D,): `principal_directions`, or attribute vectors
    images       (n, C, H, W), whose latents are z: of the data, or `flow.sample(n)`
    controls     one per direction, by its name or "direction 1" ...; temperature
    state        z (n, D) as decoded, images (n, C, H, W)

    >>> w = latent_sliders(flow, principal_directions(flow, images), images[:4])  # doctest: +SKIP
    """
    require_flow("latent_sliders", flow, images=True)
    images, _ = flow.as_input(images)
    if not isinstance(directions, dict):
        directions = {f"direction {i}": row for i, row in enumerate(directions, start=1)}
    if "temperature" in directions:
        raise ValueError("a direction may not be called 'temperature', a control of its own")
    start, D = flow.encode(images), flow.shape.numel()
    directions = {name: as_tensor(row, name).to(start) for name, row in directions.items()}
    for name, row in directions.items():
        if row.shape != (D,) or not row.isfinite().all():
            given = f"{tuple(row.shape)} for {name!r}"
            raise ValueError(f"directions must be finite vectors of {D} latents, got {given}")
    columns = min(len(images), 5)
    height = min(440, 60 + -(-len(images) // columns) * 960 // columns)
    figure, axes = axes_row(640, height, "0.;11;11", top=1 - 25 / height, hspace=0.3, **MARGINS)
    _, grid = (plotting.image_grid(ax, images, columns, flow.dequantize.bits) for ax in axes)
    for ax, title in zip(axes, ["unmodified", "modified"]):
        ax.set_title(title, loc="left")
        ax.set_anchor("W")

    def update(temperature, **amounts):
        z = temperature * start + sum(amounts[name] * directions[name] for name in amounts)
        decoded = flow.inverse(z)[0]
        grid.set_data(plotting.tiles(decoded, columns, flow.dequantize.bits))
        length = z.norm(dim=1).mean() / D**0.5
        text = f"mean length of the latents {length:.2f} √D (of draws from the base density: 1)"
        return {"z": z, "images": decoded}, text

    controls = {name: slider(f"{name} (×)", 0.0, -3, 3, 0.25) for name in directions}
    controls["temperature"] = slider("temperature", 1.0, 0, 1.5, 0.05)
    alt = f"Above, {len(images)} images; below, twice as large, what their moved latents decode to."
    return Explorer(controls, figure, [grid], update, alt)


def spherical(a, b, t):
    """Between latents a and b (D,) on an arc, whose points are about as long as its ends."""
    angle = torch.arccos(torch.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:  # parallel: there is no arc
        return torch.lerp(a, b, t)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolate(flow: Flow, a, b) -> Explorer:
    """From image a to image b through all their latents, on a line and on an arc.

    controls   t: 0 (a) ... 1 (b)
    state      t, z (2, D), images (2, C, H, W): straight, spherical

    >>> interpolate(flow, images[0], images[1]).controls["t"].value = 0.25  # doctest: +SKIP
    """
    ends = _batch("interpolate", flow, [a, b])
    start, end = flow.encode(ends)
    figure, axes = axes_row(640, 235, "011223", top=0.88, **MARGINS)
    titles = ["a  (t = 0)", "straight", "spherical", "b  (t = 1)"]
    panels = _panels(flow, axes, ends[[0, 0, 1, 1]], titles)[1:3]

    def update(t):
        z = torch.stack([torch.lerp(start, end, t), spherical(start, end, t)])
        images = flow.inverse(z)[0]
        for panel, image in zip(panels, images):
            panel.set_data(plotting.tiles(image[None], bits=flow.dequantize.bits))
        line, arc = z.norm(dim=1) / z.shape[1] ** 0.5
        text = f"length of the latents: straight {line:.2f} √D, spherical {arc:.2f} √D"
        return {"t": t, "z": z, "images": images}, text

    alt = "Image a, image b, and between them the images at t on the straight and spherical paths."
    return Explorer({"t": slider("t, from a to b", 0.5, 0, 1, 0.05)}, figure, panels, update, alt)


def manifold(flow: Flow, images) -> Explorer:
    """The surface that four images (4, C, H, W) span, by two angles (Real NVP, equation 19).

    z = cos φ (cos φ' z1 + sin φ' z2) + sin φ (cos φ' z3 + sin φ' z4)

    controls   phi, phi_prime: in degrees
    state      z (D,), weights (4,), image (C, H, W)

    >>> manifold(flow, images[:4]).controls["phi"].value = 90  # doctest: +SKIP
    """
    images = _batch("manifold", flow, images)
    if len(images) != 4:
        raise ValueError(f"manifold takes four images, got {len(images)}")
    latents = flow.encode(images)
    figure, axes = axes_row(640, 350, "0012;0034", top=0.93, hspace=0.15, **MARGINS)
    panel = _panels(flow, axes, images[[0, 0, 1, 2, 3]], ["decoded", *"1234"])[0]
    titles = [ax.title for ax in axes[1:]]

    def update(phi, phi_prime):
        angles = latents.new_tensor([phi, phi_prime]).deg2rad()
        weights = torch.outer(*torch.stack([angles.cos(), angles.sin()], 1)).flatten()
        z = weights @ latents
        image = flow.inverse(z[None])[0][0]
        panel.set_data(plotting.tiles(image[None], bits=flow.dequantize.bits))
        for title, weight, index in zip(titles, weights.tolist(), "₁₂₃₄"):
            title.set_text(f"{round(weight, 2) + 0.0:+.2f} z{index}".replace("-", "−"))
        length = z.norm() / len(z) ** 0.5
        text = f"weights {', '.join(f'{round(w, 2) + 0.0:.2f}' for w in weights.tolist())}; "
        text += f"their squares add up to {weights.square().sum():.2f}\nlength {length:.2f} √D"
        return {"z": z, "weights": weights, "image": image}, text

    labels = {"phi": "φ (degrees)", "phi_prime": "φ′ (degrees)"}
    controls = {name: slider(label, 45, 0, 360, 5) for name, label in labels.items()}
    alt = "The decoded image, and beside it the four images with the weights of their latents."
    return Explorer(controls, figure, [panel, *titles], update, alt)


def explore_scales(flow: Flow, image, other=None) -> Explorer:
    """What each scale of latents of an image holds, for a flow with a `MultiScale` layer.

    controls   for scale k = 1 (factored out first, the finest) ...: "source k", one of "keep",
               "draw anew" and, if there is another image, "of the other"; "temperature k", by
               which these latents are multiplied; seed of what is drawn
    state      z (D,), image (C, H, W)

    >>> w = explore_scales(flow, images[0], images[1])    # doctest: +SKIP
    >>> w.controls["source 2"].value = "of the other"     # doctest: +SKIP
    """
    images = _batch("explore_scales", flow, [image] if other is None else [image, other])
    scales = next((layer for layer in flow.modules() if isinstance(layer, MultiScale)), None)
    if scales is None:
        raise ValueError("explore_scales needs a flow with a MultiScale layer")
    parts = scales.split_latent(flow.encode(images))
    figure, axes = axes_row(640, 340, "0112", top=0.92, **MARGINS)
    panel = _panels(flow, axes, images[[0, 0, -1]], ["image", "decoded", "the other"])[1]
    axes[2].set_visible(other is not None)

    def update(seed, **chosen):
        drawn, mixed = scales.split_latent(flow.draw_latents(1, generator(seed))), []
        for k, (own, new) in enumerate(zip(parts, drawn), start=1):
            source = {"keep": own[:1], "draw anew": new, "of the other": own[-1:]}
            mixed.append(chosen[f"temperature {k}"] * source[chosen[f"source {k}"]])
        z = scales.join_latent(mixed)
        decoded = flow.inverse(z)[0]
        panel.set_data(plotting.tiles(decoded, bits=flow.dequantize.bits))
        change = (decoded[0].float() - images[0].float()).square().mean().sqrt()
        white = 2**flow.dequantize.bits - 1
        text = f"change of the pixels: {change:.1f} of {white} grey levels (root mean square)"
        return {"z": z[0], "image": decoded[0]}, text

    options = ("keep", "draw anew", "of the other")[: 1 + len(images)]
    controls = {}
    for k, part in enumerate(parts, start=1):
        end = ", finest" if k == 1 else ", coarsest" if k == len(parts) else ""
        share = f"{part[0].numel() / flow.shape.numel():.1%} of the latents"
        label = f"scale {k}{end}: {share}"
        controls[f"source {k}"] = Control(label, options[k == 1], options=options)
        controls[f"temperature {k}"] = slider(f"scale {k} temperature", 1.0, 0, 1.5, 0.05)
    controls["seed"] = slider("seed of what is drawn", 0, 0, 50, 1)
    alt = "The image, what the chosen latents decode to, and the other image if there is one."
    return Explorer(controls, figure, [panel], update, alt)


def _panels(flow, axes, images, titles):
    """Draw one image in each of the axes, under its title; return what was drawn."""
    for ax, title in zip(axes, titles):
        ax.set_title(title, loc="center")
    bits = flow.dequantize.bits
    return [plotting.image_grid(ax, image[None], 1, bits) for ax, image in zip(axes, images)]


def _batch(name, flow, images):
    """Images (C, H, W), checked one by one, as a batch on the flow's device."""
    require_flow(name, flow, images=True)
    return torch.cat([flow.as_input(as_tensor(image)[None])[0] for image in images])
