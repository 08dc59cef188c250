"""Explorers: sliders on a flow, for JupyterLab, that code can move as a hand can.

>>> w = widgets.explore_layers(flow, x)
>>> w                                       # the last line of a cell: shows it
>>> w.controls["layer"].value = 3           # what dragging the slider does
>>> w.state["points"]                       # what the picture then shows, (n, 2)

They need a running kernel. Bad arguments raise a ValueError at once. For flows of points in the plane there are
`explore_layers`, `explore_latent` and `explore_training`; for flows of images `latent_sliders` (with
`principal_directions`), `interpolate`, `manifold` and `explore_scales`.
"""

from .explorer import Explorer
from .images import explore_scales, interpolate, latent_sliders, manifold, principal_directions
from .plane import explore_latent, explore_layers, explore_training

__all__ = [
    "Explorer",
    "explore_latent",
    "explore_layers",
    "explore_scales",
    "explore_training",
    "interpolate",
    "latent_sliders",
    "manifold",
    "principal_directions",
]
